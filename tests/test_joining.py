"Joined data sets: labels against a mapping worked out pair by pair, figures against those of the sets alone"
import copy, pickle
from dataclasses import replace
from itertools import permutations
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from ccreid.data.joining import Share, join, leave_one_out, rename, separate, single_source, transfer
from ccreid.data.layouts import find_layout, load_dataset
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.mannequins import plans_infrared, plans_standard
from ccreid.data.mannequins.plans import PLANS, TEXTS
from ccreid.data.reading import read_names
from ccreid.data.samples import DataError, ReIDDataset, hold_out, make_table, relabel
from ccreid.evaluation.conventions import CONVENTIONS
from ccreid.evaluation.metrics import evaluate
from ccreid.evaluation.protocols import Protocol, protocols_for
from test_data_layouts import tree

pytestmark = pytest.mark.filterwarnings('ignore:none of the')
NUMBERS = 'identity', 'clothes', 'camera', 'tracklet'

# ---- random data sets -------------------------------------------------------------------------------------------------------

def random_set(name, rng, n=40, tracklets=False, people=(900, 940), splits=('train', 'val', 'query', 'gallery', 'test'), **kw):
    "Numbers far from 0, unknown clothes and cameras, passers-by; a tracklet shows one person"
    rows = []
    for i in range(n):
        s = rng.choice(splits)
        person, clothes, camera = int(rng.integers(*people)), int(rng.integers(-1, 60)), int(rng.integers(-1, 9))
        if s in ('gallery', 'test') and rng.random() < .1: person = -2
        row = dict(dataset=name, path=f'/{name}/cam{camera+1}/{abs(person):04}/{i:04}.jpg', identity=person, clothes=clothes, camera=camera,
                   modality=('visible', 'infrared')[rng.integers(2)], split=s)
        if tracklets: row |= dict(tracklet=abs(person)*10+int(rng.integers(3)), frame=i, role=('query', 'gallery')[rng.integers(2)] if s == 'val' else '')
        rows.append(row)
    rows += [dict(rows[0], path=f'/{name}/cam1/0900/{n+i:04}.jpg', identity=people[0]+i, split='train') for i in range(2)]
    return ReIDDataset(name, f'/{name}', relabel(make_table(rows)), **kw)

@st.composite
def sets(draw, least=1, most=4):
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    return [random_set(f'set{k}', rng, n=draw(st.integers(1, 30)), tracklets=draw(st.booleans())) for k in range(draw(st.integers(least, most)))]

def figures(ds, features, protocol):
    "Everything that evaluation says, or the error"
    try: m = evaluate(features, ds.samples, protocol)
    except ValueError as e: return 'no image' if 'no image among' in str(e) else 'no tracklet' if 'tracklet' in str(e) else repr(e)
    rows = ds.samples.path.loc[m.query_rows].tolist()
    return [repr(v) for v in (rows, m.mAP, m.mINP, m.queries, m.skipped, m.draws, m.spread, m.cmc.tolist(), m.ap.tolist(), m.first_rank.tolist())]

def blocks(datasets, seed=0):
    "Features of a joined table, and of each set"
    features = torch.randn(sum(len(ds.samples) for ds in datasets), 6, generator=torch.Generator().manual_seed(seed))
    return features, features.split([len(ds.samples) for ds in datasets])

# ---- labels -----------------------------------------------------------------------------------------------------------------

@given(sets())
def test_numbers_are_renamed_one_to_one_and_never_shared(datasets):
    joined = join(datasets)
    parts = np.split(np.arange(len(joined.samples)), np.cumsum([len(ds.samples) for ds in datasets])[:-1])
    owner = {}
    for k, (ds, rows) in enumerate(zip(datasets, parts)):
        new, old = joined.samples.iloc[rows], ds.samples
        for c in old.columns.difference(NUMBERS): assert new[c].tolist() == old[c].tolist()
        for c in NUMBERS:
            if c not in old: continue
            mapping = {}
            for a, b, train in zip(old[c], new[c], old.split == 'train'):
                place = train if c in ('identity', 'clothes') else None
                if a < 0: assert b == a
                else:
                    assert mapping.setdefault((place, a), b) == b
                    assert owner.setdefault((c, b), (k, place, a)) == (k, place, a)
    assert sorted(set(joined.train.identity[joined.train.identity >= 0])) == list(range(sum(ds.identities for ds in datasets)))
    assert sorted(set(joined.train.clothes[joined.train.clothes >= 0])) == list(range(sum(ds.clothes for ds in datasets)))
    known = joined.train[joined.train.identity >= 0]
    order = known.groupby('dataset').identity.agg(['min', 'max']).loc[[ds.name for ds in datasets]]
    assert (order['min'].to_numpy()[1:] > order['max'].to_numpy()[:-1]).all()       # in the order given

@given(sets())
def test_taking_apart_gives_back_what_was_joined(datasets):
    before = [ds.samples.copy() for ds in datasets]
    back = separate(join(datasets))
    assert list(back) == [ds.name for ds in datasets]
    for ds, old in zip(datasets, before):
        new = back[ds.name]
        pd.testing.assert_frame_equal(new.samples, old)
        assert new.protocols == ds.protocols
        pd.testing.assert_frame_equal(ds.samples, old)                             # the argument is left alone

@settings(max_examples=25)
@given(sets(2, 4))
def test_joining_in_steps_is_joining_at_once(datasets):
    once, steps = join(datasets), join([join(datasets[:-1]), datasets[-1]])
    for c in 'identity', 'clothes': assert once.train[c].tolist() == steps.train[c].tolist()
    for c in [c for c in NUMBERS if c in once.samples]:
        a, b = once.samples[c], steps.samples[c]
        assert pd.Series(list(zip(a, b))).nunique() == a.nunique() == b.nunique()
    inner = separate(steps)[join(datasets[:-1]).name]
    pd.testing.assert_frame_equal(inner.samples, join(datasets[:-1]).samples)
    assert inner.protocols == join(datasets[:-1]).protocols
    features, alone = blocks(datasets)
    for ds, f in zip(datasets, alone):
        name = f'{ds.name}/standard' if ds is datasets[-1] else f'{inner.name}/{ds.name}/standard'
        assert figures(steps, features, steps.protocols[name]) == figures(ds, f, ds.protocols['standard'])

# ---- protocols --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', sorted(CONVENTIONS))
@settings(max_examples=4)
@given(seed=st.integers(0, 10**6))
def test_every_protocol_gives_the_same_figures_in_company(name, seed):
    rng = np.random.default_rng(seed)
    mine = random_set(name, rng, n=150, tracklets=name in ('ccvid', 'deepchange', 'last'), people=(3, 9))
    datasets = [random_set('before', rng, tracklets=True), mine, random_set('after', rng)]
    joined, (features, alone) = join(datasets), blocks(datasets, seed)
    compared = 0
    for key, p in mine.protocols.items():
        q = joined.protocols[f'{name}/{key}']
        want = figures(mine, alone[1], p)
        assert figures(joined, features, q) == want, key
        compared += isinstance(want, list)
        assert (q.name, type(q).__name__, q.drawn, q.same_identity_only) == (f'{name}/{key}', type(p).__name__, p.drawn, p.same_identity_only)
        pairs = list(zip(p.select(mine.samples), q.select(joined.samples), strict=True)) if isinstance(want, list) else []
        for (a, b), (c, d) in pairs[:2]:
            assert p.junk(a, b).equal(q.junk(c, d))
            assert a.identity.tolist() == c.identity.tolist() and b.camera.tolist() == d.camera.tolist()
        val = figures(mine, alone[1], p.on('val'))
        assert figures(joined, features, q.on('val')) == val
        few = replace(q, name='few', seed=seed % 7, draws=2)
        assert figures(joined, features, few) == figures(mine, alone[1], replace(p, seed=seed % 7, draws=2))
    assert compared

def test_the_camera_numbers_of_a_protocol_still_mean_its_own_cameras():
    "Not just the same figures: other figures would come out if cameras or people were taken as they are in the joined table"
    rng = np.random.default_rng(0)
    prcc, other = random_set('prcc', rng, n=200, people=(3, 12)), random_set('other', rng, n=60)
    joined, (features, alone) = join([other, prcc]), blocks([other, prcc])
    naive = replace(prcc.protocols['clothes-changing'], query_where=dict(camera=(2,), dataset=('prcc',)), gallery_where=dict(camera=(0,), dataset=('prcc',)))
    assert figures(joined, features, naive) != figures(prcc, alone[1], prcc.protocols['clothes-changing'])
    drawn = prcc.protocols['clothes-changing-single-shot']
    kept = joined.samples.camera - (joined.samples.camera[joined.samples.dataset == 'prcc'].min() + 1)
    shifted = ReIDDataset('x', '/x', joined.samples[joined.samples.dataset == 'prcc'].assign(camera=kept.clip(lower=-1)).pipe(relabel))
    assert figures(shifted, alone[1], drawn) != figures(prcc, alone[1], drawn)      # draws depend on people's numbers

class Odd(Protocol):
    "A protocol with a junk rule on whole tables, about absolute numbers"
    def junk(self, query, gallery):
        q, g = (torch.as_tensor(t['camera'].to_numpy() + t['identity'].to_numpy()) for t in (query, gallery))
        return (q[:, None] + g) % 3 == 0

def test_a_protocol_class_of_ones_own():
    rng = np.random.default_rng(1)
    mine = random_set('mine', rng, n=100, people=(3, 9), protocols={'odd': Odd('odd')})
    datasets = [random_set('a', rng), mine]
    features, alone = blocks(datasets)
    assert figures(join(datasets), features, join(datasets).protocols['mine/odd']) == figures(mine, alone[1], Odd('odd'))

def test_protocols_can_be_copied_pickled_and_changed():
    rng = np.random.default_rng(2)
    datasets = [random_set('sysu_mm01', rng, n=100), random_set('b', rng)]
    joined = join(datasets)
    for p in joined.protocols.values():
        for q in pickle.loads(pickle.dumps(p)), copy.deepcopy(p), replace(p): assert q == p and type(q) is type(p)
        assert replace(p, name='x') != p and p.shares and 'shares' not in str(separate(joined)['b'].protocols)

def test_part_of_a_joined_table_is_enough():
    rng = np.random.default_rng(3)
    datasets = [random_set('a', rng, n=80, people=(3, 9)), random_set('b', rng)]
    joined, (features, alone) = join(datasets), blocks(datasets)
    rows = np.flatnonzero(joined.samples.split.isin(['query', 'gallery', 'test']))
    part = ReIDDataset('part', '/', joined.samples.iloc[rows].reset_index(drop=True), joined.protocols)
    for k, p in datasets[0].protocols.items():
        assert figures(part, features[rows], joined.protocols[f'a/{k}']) == figures(datasets[0], alone[0], p)
    with pytest.raises(ValueError, match='is not from the joined table'): joined.protocols['b/standard'].select(datasets[1].samples)
    with pytest.raises(ValueError, match="no column 'dataset'"): joined.protocols['b/standard'].select(joined.samples.drop(columns='dataset'))
    with pytest.raises(ValueError, match='no image among'): joined.protocols['b/standard'].select(joined.samples[joined.samples.dataset == 'a'])

@settings(max_examples=15)
@given(sets(2, 3), st.integers(0, 100))
def test_holding_people_out_of_a_joined_set(datasets, seed):
    joined, (features, alone) = join(datasets), blocks(datasets)
    rest, held = hold_out(joined, 2, seed)
    assert rest.identities == joined.identities - 2 and held.samples.identity.nunique() == 2
    kept = joined.samples.path.isin(set(rest.samples.path)).to_numpy()
    for ds, f in zip(datasets, alone):
        for k, p in ds.protocols.items(): assert figures(rest, features[torch.as_tensor(kept.copy())], rest.protocols[f'{ds.name}/{k}']) == figures(ds, f, p)
    back = separate(rest)
    for ds in datasets:
        old = ds.samples[ds.samples.path.isin(set(rest.samples.path))].reset_index(drop=True)
        pd.testing.assert_frame_equal(back[ds.name].samples[list(NUMBERS[:3])], relabel(old)[list(NUMBERS[:3])])

# ---- names and bad input ----------------------------------------------------------------------------------------------------

def two_lines(f, *words):
    with pytest.raises(DataError) as e: f()
    assert len(str(e.value).splitlines()) <= 2 and all(w in str(e.value) for w in words), str(e.value)

def test_what_cannot_be_joined():
    rng = np.random.default_rng(4)
    a, b = random_set('a', rng), random_set('b', rng)
    two_lines(lambda: join([a, b, a]), 'two data sets are called a', 'rename')
    two_lines(lambda: join([a, rename(a, 'b')]), 'a and b both hold the picture')
    two_lines(lambda: join([join([a, b]), rename(b, 'c')]), 'a+b and c both hold the picture')
    two_lines(lambda: join([join([a]), ReIDDataset('x', '/x', b.samples.assign(dataset='a'))]), 'both hold rows of the data set a')
    two_lines(lambda: join([]), 'no data set'), two_lines(lambda: join({}), 'no data set')
    two_lines(lambda: join(a), 'a is one data set'), two_lines(lambda: join([a, '/data/b']), 'load_dataset')
    two_lines(lambda: single_source([a, a]), 'two data sets are called a')
    two_lines(lambda: transfer(a, rename(a, 'b')), 'both hold the picture')      # a target that was trained on
    two_lines(lambda: leave_one_out([a]), 'no data set')

def test_a_dict_names_the_sets():
    rng = np.random.default_rng(5)
    one, other = random_set('folder', rng), rename(random_set('x', rng), 'folder')
    joined = join({'office': one, 'street': other})
    assert joined.name == 'office+street' and joined.samples.dataset.unique().tolist() == ['office', 'street']
    assert list(joined.protocols) == [f'{n}/{p}' for n in ('office', 'street') for p in protocols_for('folder')]
    assert one.name == 'folder' and set(one.samples.dataset) == {'folder'}
    assert set(rename(joined, 'both').samples.dataset) == {'office', 'street'} and rename(joined, 'both').protocols == joined.protocols

def test_columns_that_only_some_sets_have():
    rng = np.random.default_rng(6)
    a, b = random_set('a', rng, tracklets=True), random_set('b', rng)
    b = ReIDDataset('b', '/b', b.samples.assign(weight=.5, generated_by='x', variant=np.arange(len(b.samples))))
    joined = join([a, b])
    assert joined.samples[['tracklet', 'frame', 'variant']].dtypes.astype(str).tolist() == ['int64']*3
    of = lambda n: joined.samples[joined.samples.dataset == n]
    assert set(of('b').tracklet) == {-1} and set(of('b').role) == {''} and set(of('a').variant) == {-1} and set(of('a').generated_by) == {''}
    assert of('a').weight.isna().all() and set(of('b').weight) == {.5}
    assert 'tracklet' not in separate(joined)['b'].samples and 'weight' not in separate(joined)['a'].samples

# ---- several data sets in one root, and domain generalisation ----------------------------------------------------------------

def standard_sets():
    "Four tiny copies of the usual sets, by their names alone"
    res = []
    for k, name in enumerate(('market1501', 'dukemtmc', 'msmt17', 'cuhk03_np')):
        world = MannequinWorld((2+k, 0, 3), outfits=1, cameras=2, images=2 if name != 'msmt17' else 3, seed=k)
        plan = PLANS[name](world)
        ds = read_names(find_layout(name), plan, TEXTS[name](world, plan))
        res.append(ReIDDataset(name, f'/{name}', ds.samples.assign(path=ds.samples.path.str.replace('/names', f'/{name}'))))
    return res

def test_twelve_pairs_and_four_targets():
    four = standard_sets()
    pairs, out = single_source(four), leave_one_out(four)
    assert list(pairs) == [f'{a.name}->{b.name}' for a, b in permutations(four, 2)] and len(pairs) == 12
    assert list(out) == [ds.name for ds in four]
    for target in four:
        f = torch.randn(len(target.samples), 5, generator=torch.Generator().manual_seed(1))
        tested = target.samples.split.isin(['query', 'gallery', 'test']).to_numpy()
        for source, ds in [([a], pairs[f'{a.name}->{target.name}']) for a in four if a is not target] + [([a for a in four if a is not target], out[target.name])]:
            assert set(ds.train.path) == {p for a in source for p in a.train.path}                 # training parts only
            assert set(ds.samples.dataset[ds.samples.split != 'train']) - {a.name for a in source} == {target.name}
            assert sorted(set(ds.train.identity)) == list(range(sum(a.identities for a in source)))
            assert ds.train.groupby('dataset').camera.nunique().sum() == ds.train.camera.nunique()
            assert ds.protocols == target.protocols
            padded = torch.zeros(len(ds.samples), 5)
            padded[torch.tensor(ds.samples.dataset.eq(target.name).tolist())] = f[torch.tensor(tested.tolist())]
            assert figures(ds, padded, ds.protocols['standard']) == figures(target, f, target.protocols['standard'])
    three = out['dukemtmc']
    assert three.name == 'market1501+msmt17+cuhk03_np->dukemtmc'
    assert single_source({ds.name: ds for ds in four}).keys() == pairs.keys()

def test_nothing_to_train_or_to_test_on():
    rng = np.random.default_rng(7)
    a = random_set('a', rng)
    only = lambda name, *splits: ReIDDataset(name, '/o', relabel(random_set(name, rng, n=60).part(*splits)))
    two_lines(lambda: transfer(only('b', 'query', 'gallery'), a), 'b has no training images')
    two_lines(lambda: transfer(a, only('b', 'train', 'query')), 'b has no query or no gallery')
    assert len(transfer(a, only('b', 'test')).query)

def test_domains_in_one_root(tmp_path):
    "Files need not be drawn: names are enough"
    worlds = {d: MannequinWorld((2, 1, 2), outfits=2, cameras=2, images=2, domain=d, seed=9) for d in ('plaza', 'campus', 'market')}
    for d, w in worlds.items(): tree(tmp_path/d, PLANS['mannequins'](w))
    (tmp_path/'mannequins.json').write_text('{}')
    ds = load_dataset('mannequins-dg', tmp_path, verbose=False)
    places = separate(ds)
    assert list(places) == ['mannequins-campus', 'mannequins-market', 'mannequins-plaza']
    assert [p.identities for p in places.values()] == [2, 2, 2] and [p.name for p in places.values()] == list(places)
    assert sum(len(p.samples) for p in places.values()) == len(ds.samples)
    again = join(places)
    both = ds.samples.merge(again.samples, on='path', suffixes=('', '_new'))
    assert len(both) == len(ds.samples) and (both.dataset == both.dataset_new).all()
    for c in NUMBERS[:3]:
        for train in True, False:
            rows = both[(both.split == 'train') == train]
            assert rows.groupby([c, f'{c}_new']).ngroups == rows[c].nunique() == rows[f'{c}_new'].nunique()
    assert (both.identity == both.identity_new)[both.split == 'train'].all()
    assert len(single_source(places)) == 6
    f = torch.randn(len(ds.samples), 4, generator=torch.Generator().manual_seed(0))
    target = leave_one_out(places)['mannequins-market']
    rows = ds.samples.set_index('path').index.get_indexer(target.samples.path)
    where = dict(dataset=('mannequins-market',))
    for k, p in ds.protocols.items():
        assert figures(target, f[rows], target.protocols[k]) == figures(ds, f, replace(p, query_where=where, gallery_where=where))

def test_a_share_leaves_the_table_alone():
    rng = np.random.default_rng(8)
    joined = join([random_set('a', rng), random_set('b', rng)])
    before = joined.samples.copy()
    joined.protocols['b/standard'].shares[0].own(joined.samples)
    pd.testing.assert_frame_equal(joined.samples, before)
    assert isinstance(joined.protocols['b/standard'].shares[0], Share)
