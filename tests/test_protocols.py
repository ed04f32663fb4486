"Every protocol of every data set against loops written from its rules; draws against loops written from their description"
import random
from fractions import Fraction
from itertools import product
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy.io import loadmat, savemat
from ccreid.data.samples import DataError, ReIDDataset, hold_out, make_table
from ccreid.evaluation.comparing import compared, pool_tracklets, rows_compared
from ccreid.evaluation.conventions import CONVENTIONS, conventions, conventions_table, main_protocols
from ccreid.evaluation.cross_modality import DrawnPerCamera, SharedRoom, official_draw, seeded_draw
from ccreid.evaluation.metrics import evaluate, metrics_from_distances, retrieval_metrics
from ccreid.evaluation.protocols import CLOTHES_CHANGING, Protocol, STANDARD, first_frames, protocols_for
from ccreid.evaluation.ranked_lists import ranked_rows

pytestmark = pytest.mark.filterwarnings('ignore:none of the')

# ---- random tables, one maker a data set: small, with labels as the data set has them, absent people and distractors where it has any ----

def rows_of(name, place, cells, **labels):
    "One row for each of `cells` (identity, count, columns): `place` makes the path"
    rows = []
    for identity, count, columns in cells:
        for i in range(count):
            row = dict(dataset=name, identity=identity, clothes=-1, camera=-1, modality='visible', split='test') | labels | columns
            rows.append(row | dict(path=f'/data/{name}/' + place(row, i)))
    return rows

def prcc(rng):
    held_out = rng.random() < .5                                             # people held out of training have both roles
    return rows_of('prcc', lambda r, i: f"test/{'ABC'[r['camera']]}/{r['identity']:03}/cropped_rgb{i:03}.jpg",
                   [(p, rng.integers(0, 4), dict(camera=c, clothes=2*p + (c == 2), split='test' if held_out else 'query' if c else 'gallery')) for p in range(1, 7) for c in range(3)])

def with_clothes(name, cameras=4):
    def make(rng):
        return rows_of(name, lambda r, i: f"{r['split']}/{r['identity']}_{r['outfit']}_c{r['camera']}_{i}.jpg",
                       [(p, rng.integers(0, 3), dict(camera=c, outfit=k, clothes=-1 if rng.random() < .1 else 3*p + k, split=s))
                        for p, c, k, s in product(range(4), range(cameras), range(2), ('query', 'gallery'))])
    return make

def video(rng):
    rows, t = [], 0
    for p, c, k, s in product(range(3), range(2), range(2), ('query', 'gallery')):
        for _ in range(rng.integers(0, 3)):
            rows += rows_of('ccvid', lambda r, i: f"session{k+1}/{p:03}_{r['tracklet']:02}/{i:05}.jpg", [(p, rng.integers(1, 5), dict(camera=c, clothes=2*p + k, split=s, tracklet=t))])
            t += 1
    for i, r in enumerate(rows): r['frame'] = int(r['path'][-9:-4])
    return rows

def without_cameras(name):
    def make(rng):
        rows = rows_of(name, lambda r, i: f"{r['split']}/{r.get('role', '')}/{r['identity']}_{i}.jpg",
                       [(p, rng.integers(0, 4), dict(split=s, role=r)) for p in range(5)
                        for s, r in (('query', ''), ('gallery', ''), *((('val', 'query'), ('val', 'gallery')) if name == 'last' else ()))])
        return [r | dict(camera=i) for i, r in enumerate(rows)]
    return make

def deepchange(rng):
    return rows_of('deepchange', lambda r, i: f"{r['split']}-{r['role']}/P{r['identity']}C{r['camera']}_{r['tracklet']}_{i}.jpg",
                   [(p, rng.integers(0, 3), dict(camera=c, tracklet=int(rng.integers(0, 6)), split=s, role=r)) for p in range(4) for c in range(2)
                    for s, r in (('query', ''), ('gallery', ''), ('val', 'query'), ('val', 'gallery'))])

def market(name):
    def make(rng):
        distractors = [(-2, 4, dict(camera=1, split='gallery'))] if name == 'market1501' else []
        return rows_of(name, lambda r, i: f"{r['split']}/{r['identity']}_c{r['camera']}_{i}.jpg",
                       [(p, rng.integers(0, 3), dict(camera=c, split=s)) for p in range(5) for c in range(3) for s in ('query', 'gallery')] + distractors)
    return make

def sysu_mm01(rng):
    people = rng.choice(np.arange(1, 534), 5, replace=False).tolist()
    return rows_of('sysu_mm01', lambda r, i: f"cam{r['camera']+1}/{r['identity']:04}/{i+1:04}.jpg",
                   [(p, 0 if rng.random() < .2 else rng.integers(1, 4 if c in (2, 5) else 14), dict(camera=c, **(dict(modality='infrared', split='query') if c in (2, 5) else dict(split='gallery'))))
                    for p in people for c in range(6)])

def regdb(rng):
    return rows_of('regdb', lambda r, i: f"{r['modality']}/{r['identity']}/{i}.bmp",
                   [(p, rng.integers(0, 4), dict(camera=int(rng.integers(0, 2)), modality=m)) for p in range(6) for m in ('visible', 'infrared')])

def llcm(rng):
    return rows_of('llcm', lambda r, i: f"{dict(visible='test_vis', infrared='test_nir')[r['modality']]}/cam{r['camera']+1}/{r['identity']:04}/{r['identity']:04}_{i}.jpg",
                   [(p, rng.integers(0, 4), dict(camera=c, modality=m)) for p in rng.choice(np.arange(1, 1064), 5, replace=False).tolist() for c in (0, 1, 2, 8) for m in ('visible', 'infrared')])

def both_kinds(rng):
    return rows_of('mannequins-ir', lambda r, i: f"test/{r['identity']}_{r['clothes']}_c{r['camera']}_{r['modality'][0]}_{i}.png",
                   [(p, rng.integers(0, 3), dict(camera=c, clothes=2*p + k, modality='infrared' if c > 1 else 'visible')) for p in range(4) for c in range(4) for k in range(2)])

TABLES = {**{n: with_clothes(n) for n in ('ltcc', 'vc_clothes', 'folder', 'mannequins', 'mannequins-dg')}, **{n: market(n) for n in ('market1501', 'dukemtmc', 'msmt17', 'cuhk03_np')},
          **{n: without_cameras(n) for n in ('last', 'celeb_reid')}, 'prcc': prcc, 'ccvid': video, 'deepchange': deepchange, 'sysu_mm01': sysu_mm01, 'regdb': regdb, 'llcm': llcm, 'mannequins-ir': both_kinds}

# ---- the rules, one pair of rows at a time: who asks, who is searched, what is junk ----------------------------------------

def own(q, g): return q['identity'] == g['identity'] and q['identity'] >= 0
def camera_rule(q, g): return own(q, g) and q['camera'] == g['camera']
def changed_rule(q, g): return own(q, g) and (q['camera'] == g['camera'] or (q['clothes'] == g['clothes'] and q['clothes'] != -1))
def same_rule(q, g): return own(q, g) and (q['camera'] == g['camera'] or q['clothes'] != g['clothes'] or q['clothes'] == -1)
def tracklet_rule(q, g): return own(q, g) and q['tracklet'] == g['tracklet']
def no_rule(q, g): return False
def room_rule(q, g): return q['camera'] + 1 == 3 and g['camera'] + 1 == 2

def asks(r): return r['split'] in ('query', 'test')
def searched(r): return r['split'] in ('gallery', 'test')
def within(role, **where): return lambda r: role(r) and all(r[k] in v for k, v in where.items())
def validation(role): return lambda r: r['split'] == 'val' and r['role'] == role
VISIBLE, INFRARED = ('visible',), ('infrared',)
NO_CAM3 = (0, 1, 3, 4, 5, 6, 7, 8)

def rule(junk, query=asks, gallery=searched, draw=None, people=False, film=False): return dict(junk=junk, query=query, gallery=gallery, draw=draw, people=people, film=film)

def draw_like_the_field(trial, rows, each):
    "Set the seed, then person by person and camera by camera"
    random.seed(trial)
    taken = []
    for person in sorted({f"{r['identity']:04d}" for r in rows}):
        for camera in range(1, 10):
            files = sorted(r['path'] for r in rows if f"{r['identity']:04d}" == person and r['camera'] + 1 == camera)
            if files and each == 1: taken.append(random.choice(files))
            elif files: taken += random.sample(files, min(each, len(files)))
    return [r for r in rows if r['path'] in taken]

def drawn_gallery(each): return lambda t, q, g: (q, draw_like_the_field(t, g, each))
def drawn_queries(t, q, g): return draw_like_the_field(t, q, 1), g

THREE = {'standard': rule(camera_rule), 'same-clothes': rule(same_rule), 'clothes-changing': rule(changed_rule)}
PLAIN = {'standard': rule(camera_rule)}
def directions(junk, **more): return {f'{a[0]}-to-{b[0]}': rule(junk, within(asks, modality=a), within(searched, modality=b), **more) for a, b in ((VISIBLE, INFRARED), (INFRARED, VISIBLE))}
RULES = {
    'prcc': {'same-clothes': rule(no_rule, within(asks, camera=(1,)), within(searched, camera=(0,))), 'clothes-changing': rule(no_rule, within(asks, camera=(2,)), within(searched, camera=(0,)))},
    **{n: THREE for n in ('ltcc', 'folder', 'mannequins', 'mannequins-dg')}, **{n: PLAIN for n in ('market1501', 'dukemtmc', 'msmt17', 'cuhk03_np')},
    'ccvid': {k: r | dict(film=True) for k, r in THREE.items()},
    'vc_clothes': {'standard': rule(camera_rule), 'same-clothes': rule(camera_rule, within(asks, camera=(1, 2)), within(searched, camera=(1, 2))),
                   'clothes-changing': rule(camera_rule, within(asks, camera=(2, 3)), within(searched, camera=(2, 3)))},
    'celeb_reid': {'standard': rule(no_rule)},
    'last': {'standard': rule(no_rule), 'standard-val': rule(no_rule, validation('query'), validation('gallery'))},
    'deepchange': {'standard': rule(tracklet_rule), 'standard-val': rule(tracklet_rule, validation('query'), validation('gallery'))},
    'sysu_mm01': {f'{w}-{s}-shot': rule(room_rule, within(asks, modality=INFRARED), within(searched, camera=c), drawn_gallery(n), people=True)
                  for w, c in (('all-search', (0, 1, 3, 4)), ('indoor', (0, 1))) for s, n in (('single', 1), ('multi', 10))},
    'regdb': directions(no_rule),
    'llcm': {'visible-to-infrared': rule(camera_rule, within(asks, modality=VISIBLE), within(searched, modality=INFRARED, camera=NO_CAM3), drawn_gallery(1), people=True),
             'infrared-to-visible': rule(camera_rule, within(asks, modality=INFRARED, camera=NO_CAM3), within(searched, modality=VISIBLE), drawn_gallery(1), people=True),
             'visible-to-infrared-transposed': rule(camera_rule, within(asks, modality=INFRARED, camera=NO_CAM3), within(searched, modality=VISIBLE), drawn_queries, people=True)},
    'mannequins-ir': {**THREE, **directions(camera_rule)},
}

# ---- the figures, one query at a time --------------------------------------------------------------------------------------

def distance(a, b):
    "What orders as the cosine distance does, exact for whole numbers"
    dot, norm = int(a @ b), int(b @ b)
    return -Fraction(dot*abs(dot), norm) if norm and (a @ a) else Fraction(0)

def figures_of(query, gallery, junk, people):
    "(row, AP, INP, first rank) of the queries with an answer"
    res = []
    for q in query:
        seen = [(distance(q['feature'], g['feature']), own(q, g), g['identity'] if g['identity'] >= 0 else g['path']) for g in gallery if not junk(q, g)]
        seen.sort(key=lambda s: s[:2])                                       # a wrong answer at the same distance comes first
        ranks = [i for i, s in enumerate(seen, 1) if s[1]]
        if not ranks: continue
        first = ranks[0]
        if people:
            named = []
            for _, right, who in seen:
                if who not in named: named.append(who)
            first = named.index(q['identity']) + 1
        res.append((q['row'], sum(k/r for k, r in enumerate(ranks, 1))/len(ranks), len(ranks)/ranks[-1], first))
    return res

def as_film(rows):
    "One entry a tracklet: its first frame, and the sum of its features, which points where their mean does"
    walks = {}
    for r in rows: walks.setdefault(r['tracklet'], []).append(r)
    return [min(w, key=lambda r: (r['frame'], r['path'])) | dict(feature=sum(r['feature'] for r in w)) for w in walks.values()]

def reference(rows, r):
    "Figures of each draw, and how many queries there were in all"
    query, gallery = [x for x in rows if r['query'](x)], [x for x in rows if r['gallery'](x)]
    if r['film']: query, gallery = as_film(query), as_film(gallery)
    draws = [r['draw'](t, query, gallery) for t in range(10)] if r['draw'] else [(query, gallery)]
    return [figures_of(q, g, r['junk'], r['people']) for q, g in draws], len({x['row'] for q, _ in draws for x in q}), [(q, g) for q, g in draws]

def problem(name, seed, dim=3, spread=2):
    "A data set in random order with any index, whole-number features, and its rows as dicts"
    rng = np.random.default_rng([seed, len(name)])
    rows = TABLES[name](rng)
    rows = [rows[i] for i in rng.permutation(len(rows))]
    table = make_table(rows)
    table.index = rng.permutation(len(table))*2 + 7
    f = rng.integers(-spread, spread + 1, (len(table), dim))
    return table, f, [r | dict(row=i, feature=v) for i, r, v in zip(table.index, table.to_dict('records'), f)]

def agree(m, each, asked):
    counted = {row for draw in each for row, *_ in draw}
    assert (m.queries, m.skipped, m.draws) == (len(counted), asked - len(counted), len(each)) and set(m.query_rows.tolist()) == counted
    if not all(each): return
    column = lambda k: [[d[k] for d in draw] for draw in each]
    assert m.mAP == pytest.approx(np.mean([np.mean(v) for v in column(1)]), abs=1e-6)
    assert m.mINP == pytest.approx(np.mean([np.mean(v) for v in column(2)]), abs=1e-6)
    for k in (1, 2, 3, 5, 10, 20): assert m.rank(k) == pytest.approx(np.mean([np.mean([f <= k for f in v]) for v in column(3)]), abs=1e-6), k
    values = pd.DataFrame([d for draw in each for d in draw]).groupby(0).mean().loc[m.query_rows]
    assert np.allclose(m.ap, values[1], atol=1e-6) and np.allclose(m.inp, values[2], atol=1e-6) and np.allclose(m.first_rank, values[3], atol=1e-5)
    hits = pd.DataFrame([(row, first == 1) for draw in each for row, _, _, first in draw]).groupby(0)[1].mean().loc[m.query_rows]
    assert np.allclose(m.hits, hits.to_numpy(float), atol=1e-6)

EVERY = [(n, p) for n, ps in RULES.items() for p in ps]

def test_there_is_a_rule_for_every_protocol_and_none_too_many():
    single = {'prcc': ['same-clothes-single-shot', 'clothes-changing-single-shot']}
    assert {n: sorted([*ps, *single.get(n, [])]) for n, ps in RULES.items()} == {n: sorted(conventions(n)) for n in CONVENTIONS}
    assert set(TABLES) == set(RULES)

@pytest.mark.parametrize('name,protocol', EVERY, ids=lambda x: x)
def test_evaluate_equals_the_rules(name, protocol):
    for seed in range(6):
        table, f, rows = problem(name, seed)
        each, asked, pairs = reference(rows, RULES[name][protocol])
        p = protocols_for(name)[protocol]
        for got, (q, g) in zip(p.select(table), pairs, strict=True):
            assert [set(part.index) for part in got] == [{r['row'] for r in q}, {r['row'] for r in g}]
        film = p.unit == 'tracklet'                                          # a mean of whole numbers is none: doubles keep its ties
        agree(evaluate(torch.from_numpy(f).to(torch.float64 if film else torch.float32), table, p, chunk_bytes=[1, 300, 2**28][seed % 3]), each, asked)

@pytest.mark.parametrize('name,protocol', EVERY, ids=lambda x: x)
def test_junk_pair_by_pair(name, protocol):
    table, f, rows = problem(name, 3)
    _, _, pairs = reference(rows, RULES[name][protocol])
    p = protocols_for(name)[protocol]
    at = dict(zip(table.index, rows))
    for query, gallery in p.select(table)[:2]:
        assert p.junk(query, gallery).tolist() == [[RULES[name][protocol]['junk'](at[i], at[j]) for j in gallery.index] for i in query.index]

@pytest.mark.parametrize('setting', ['same-clothes', 'clothes-changing'])
def test_single_shot_of_prcc(setting):
    "Any image of each person, ten times; evaluated draw by draw with the loops"
    for seed in range(4):
        table, f, rows = problem('prcc', seed)
        p, r = protocols_for('prcc')[setting+'-single-shot'], RULES['prcc'][setting]
        at = dict(zip(table.index, rows))
        pairs = [([at[i] for i in q.index], [at[i] for i in g.index]) for q, g in p.select(table)]
        assert len(pairs) == 10
        for q, g in pairs:
            assert {x['row'] for x in q} == {x['row'] for x in rows if r['query'](x)}
            assert sorted(x['identity'] for x in g) == sorted({x['identity'] for x in rows if r['gallery'](x)}) and all(r['gallery'](x) for x in g)
        agree(evaluate(torch.from_numpy(f).float(), table, p), [figures_of(q, g, r['junk'], False) for q, g in pairs], len(pairs[0][0]))

# ---- the same rules on what the loaders make of mannequins in every layout -------------------------------------------------

WORLDS = dict(prcc=dict(outfits=2, cameras=3), ltcc=dict(outfits=3, cameras=3), vc_clothes=dict(outfits=3, cameras=4), ccvid=dict(outfits=3, cameras=3), last=dict(identities=(2, 4, 5), outfits=3, cameras=2),
    deepchange=dict(identities=(2, 4, 5), outfits=2, cameras=2), celeb_reid=dict(outfits=2, cameras=3), market1501=dict(cameras=6), dukemtmc=dict(cameras=8), msmt17=dict(cameras=11), cuhk03_np=dict(cameras=2),
    sysu_mm01=dict(identities=(2, 2, 5), cameras=6, infrared=(2, 5)), regdb=dict(identities=(5, 0, 5), cameras=2, infrared=(1,)), llcm=dict(cameras=6, infrared=(3, 4, 5)), folder=dict(outfits=2, cameras=3),
    **{n: dict(outfits=2, cameras=4, infrared=(2, 3)) for n in ('mannequins', 'mannequins-ir')})

@pytest.mark.parametrize('name', list(WORLDS))
def test_loaded_copies_are_judged_by_the_rules(name):
    from ccreid.data.layouts import find_layout
    from ccreid.data.mannequins import MannequinWorld
    from ccreid.data.mannequins.plans import PLANS, TEXTS
    from ccreid.data.mannequins import plans_infrared, plans_standard        # noqa: they enter their plans
    from ccreid.data.reading import read_names
    layout = 'mannequins' if name == 'mannequins-ir' else name
    world = MannequinWorld(**dict(identities=(2, 0, 5), outfits=1, images=(1, 2, 3), size=(32, 16), seed=5) | WORLDS[name])
    plan = PLANS[layout](world)
    ds = read_names(find_layout(name), [p.removeprefix('rgb/') for p in plan], TEXTS[layout](world, plan))
    f = np.random.default_rng(0).integers(-2, 3, (len(ds.samples), 3))
    rows = [r | dict(row=i, feature=v) for i, r, v in zip(ds.samples.index, ds.samples.to_dict('records'), f)]
    assert ds.name == name and set(RULES[name]) <= set(ds.protocols)
    for protocol, r in RULES[name].items():
        each, asked, _ = reference(rows, r)
        m = evaluate(torch.from_numpy(f).double(), ds.samples, ds.protocols[protocol])
        agree(m, each, asked)
        assert m.queries > 0 and m.ap.min() < 1

# ---- official draws --------------------------------------------------------------------------------------------------------

def write_orders(path, rows, trials=10, seed=0, cameras=6, people=533):
    "A file like rand_perm_cam.mat: shuffled numbers from 1 of each camera's images of each person"
    rng, cells = np.random.default_rng(seed), np.empty((cameras, 1), object)
    for c in range(cameras):
        cells[c, 0] = np.empty((people, 1), object)
        for i in range(people):
            n = sum(r['camera'] == c and r['identity'] == i + 1 for r in rows)
            cells[c, 0][i, 0] = np.stack([rng.permutation(n) + 1 for _ in range(trials)]).astype(np.uint8) if n else np.zeros((trials, 0))
    savemat(path, dict(rand_perm_cam=cells))
    return path

def official_names(path, rows, trial, shots):
    "Read as the field's Python ports of the official code do"
    perm, names = loadmat(path)['rand_perm_cam'], []
    for cam in range(1, 7):
        of_camera = perm[cam-1][0].squeeze()
        for i in sorted({r['identity'] for r in rows}):
            if of_camera[i-1].size: names += [f'cam{cam}/{i:04d}/{n:04d}.jpg' for n in of_camera[i-1][trial][:shots]]
    return set(names)

@pytest.mark.parametrize('seed', range(3))
def test_official_draws_equal_the_loop(tmp_path, seed):
    table, f, rows = problem('sysu_mm01', seed)
    path = write_orders(tmp_path/'rand_perm_cam.mat', rows, seed=seed)
    seeded = protocols_for('sysu_mm01')
    for name, p in protocols_for('sysu_mm01', permutations=path).items():
        where, shots = ((0, 1, 3, 4) if name.startswith('all') else (0, 1)), 1 if 'single' in name else 10
        pairs = p.select(table)
        assert len(pairs) == 10
        for t, (_, g) in enumerate(pairs):
            want = {n for n in official_names(path, rows, t, shots) if int(n[3]) - 1 in where}
            assert {'/'.join(x.split('/')[-3:]) for x in g.path} == want and len(g) == len(want)
        if shots == 1: assert [set(g.path) for _, g in pairs] != [set(g.path) for _, g in seeded[name].select(table)]
        at = dict(zip(table.index, rows))
        each = [figures_of([at[i] for i in q.index], [at[i] for i in g.index], room_rule, True) for q, g in pairs]
        agree(evaluate(torch.from_numpy(f).float(), table, p), each, len(pairs[0][0]))

def test_official_draws_that_do_not_fit(tmp_path):
    table, f, rows = problem('sysu_mm01', 0)
    draw = lambda path, t=table, **kw: protocols_for('sysu_mm01', permutations=path, **kw)['all-search-multi-shot'].select(t)
    path = write_orders(tmp_path/'rand_perm_cam.mat', rows)
    assert len(draw(path)) == 10 and len(draw(str(path))) == 10
    visible = table[(table.modality == 'visible') & (table.camera == 0)]
    with pytest.raises(DataError, match='there is no file .*\n.*seeded'): draw(tmp_path/'other.mat')
    with pytest.raises(DataError, match=r'which the table does not have\n'): draw(path, table[~table.path.str.endswith('0001.jpg')])
    with pytest.raises(DataError, match='holds no order for cam'): draw(write_orders(tmp_path/'small.mat', rows, people=2))
    with pytest.raises(DataError, match='holds no order for cam4'): draw(write_orders(tmp_path/'three.mat', rows, cameras=3), table[table.camera != 0])
    with pytest.raises(DataError, match='holds 3 draws, draw 4'): draw(write_orders(tmp_path/'few.mat', rows, trials=3))
    with pytest.raises(DataError, match='called otherwise, first /x/1.jpg'): official_draw(visible.assign(path=[f'/x/{i}.jpg' for i in range(1, len(visible)+1)]), path, 0)
    for content in (b'', b'MATLAB 5.0 MAT-file'*20, path.read_bytes()[:900]):
        (tmp_path/'bad.mat').write_bytes(content)
        with pytest.raises(DataError, match='bad.mat is no rand_perm_cam.mat, or is damaged'): draw(tmp_path/'bad.mat')
    savemat(tmp_path/'wrong.mat', dict(something=np.eye(3)))
    with pytest.raises(DataError, match='wrong.mat is no rand_perm_cam.mat'): draw(tmp_path/'wrong.mat')
    table.path = table.path.str.replace('/', '\\')                           # a table made on Windows
    assert len(draw(path, table)) == 10

def test_official_file_that_changes_is_read_again(tmp_path):
    _, _, rows = problem('sysu_mm01', 1)
    table = make_table([r for r in rows if r['modality'] == 'visible'])
    import os
    path = write_orders(tmp_path/'p.mat', rows, seed=1)
    first = set(official_draw(table, path, 0).path)
    write_orders(path, rows, seed=2); os.utime(path, ns=(1, 1))
    assert set(official_draw(table, path, 0).path) != first

# ---- draws: order, place and portability -----------------------------------------------------------------------------------

@settings(max_examples=40)
@given(st.integers(0, 9), st.sampled_from([1, 2, 10]), st.randoms(use_true_random=False))
def test_seeded_draw_depends_on_names_alone(trial, each, rnd):
    rows = [dict(path=f'/d/cam{c}/{p:04}/{i:04}.jpg', identity=p, camera=c - 1) for p in (3, 20, 111) for c in (1, 2, 4) for i in range(1, 2 + (p*c) % 5)] + [
        dict(path='/d/cam1/x.jpg', identity=-2, camera=0)]
    want = {r['path'] for r in draw_like_the_field(trial, [r for r in rows if r['identity'] >= 0], each)} | {'/d/cam1/x.jpg'}
    state = random.getstate()
    rnd.shuffle(rows)
    got = seeded_draw(pd.DataFrame(rows), trial, each)
    random.setstate(state)
    assert set(got.path) == want and len(got) == len(want) and got.index.is_monotonic_increasing
    assert set(seeded_draw(pd.DataFrame(rows).assign(path=lambda t: t.path.str.replace('/', '\\')), trial, each).path.str.replace('\\', '/')) == want

def test_a_draw_leaves_the_global_generator_alone():
    table, _, _ = problem('llcm', 0)
    random.seed(5); before = random.getstate()
    for p in protocols_for('llcm').values(): p.select(table)
    assert random.getstate() == before

def test_draws_that_need_a_column_say_so():
    table, f, _ = problem('sysu_mm01', 0)
    p = protocols_for('sysu_mm01')['indoor-single-shot']
    for column in ('camera', 'modality'):
        with pytest.raises(ValueError, match=f"no column '{column}'"): p.select(table.drop(columns=column))
    with pytest.raises(ValueError, match="no column 'path'"): p.select(table.drop(columns='path'))
    for name, protocol, column in (('ccvid', 'standard', 'tracklet'), ('deepchange', 'standard', 'tracklet'), ('last', 'standard-val', 'role'), ('ltcc', 'clothes-changing', 'clothes')):
        table, f, _ = problem(name, 0)
        with pytest.raises(ValueError, match=f"no column '{column}'"): evaluate(torch.from_numpy(f), table.drop(columns=column), protocols_for(name)[protocol])
    with pytest.raises(ValueError, match="protocol 'standard-val', query: no image"):
        protocols_for('last')['standard-val'].select(problem('last', 0)[0].query("split != 'val'"))

def test_transposed_counts_every_query_that_was_drawn():
    table, f, rows = problem('llcm', 2)
    p = protocols_for('llcm')['visible-to-infrared-transposed']
    m = evaluate(torch.from_numpy(f).float(), table, p)
    drawn = {i for q, _ in p.select(table) for i in q.index}
    assert m.queries + m.skipped == len(drawn) > len(p.select(table)[0][0]) and len(m.ap) == m.queries and m.skipped >= 0

# ---- ranks that count people -----------------------------------------------------------------------------------------------

def walk_down(distances, query, gallery, junk):
    "Rank of the query's person in the sorted list of people, None without an answer"
    people = []
    for _, _, j in sorted((d, own(query, g), j) for j, (d, g) in enumerate(zip(distances, gallery)) if not junk(query, g)):
        who = gallery[j]['identity'] if gallery[j]['identity'] >= 0 else ('passer-by', j)
        if who not in people: people.append(who)
    return people.index(query['identity']) + 1 if query['identity'] >= 0 and query['identity'] in people else None

class Room(Protocol):
    def rule(self, q, g): return q['camera'] == g['camera']

person = st.tuples(st.sampled_from([-2, 0, 0, 1, 1, 2, 3]), st.integers(0, 2), st.integers(-1, 2))
def people_table(n): return st.lists(person, min_size=1, max_size=n).map(lambda v: pd.DataFrame(v, columns=['identity', 'camera', 'clothes']))

@settings(max_examples=150)
@given(people_table(5), people_table(14), st.sampled_from([1, 200, 2**28]), st.randoms(use_true_random=False), st.sampled_from([0., 1.]))
def test_ranks_of_people(query, gallery, chunk_bytes, rnd, tolerance):
    d = np.array([[rnd.randint(2, 6)*3 for _ in range(len(gallery))] for _ in range(len(query))])    # ties everywhere; a tolerance below 3 ties no more
    qs, gs = query.to_dict('records'), gallery.to_dict('records')
    for p, junk in ((Protocol('fast', by_identity=True), camera_rule), (Protocol('changed', 'clothes-changing', by_identity=True), changed_rule),
                    (Room('dense', by_identity=True), lambda q, g: q['camera'] == g['camera'])):
        want = [walk_down(row, q, gs, junk) for row, q in zip(d, qs)]
        m = metrics_from_distances(torch.from_numpy(d), query, gallery, p, chunk_bytes=chunk_bytes, tolerance=tolerance)
        images = metrics_from_distances(torch.from_numpy(d), query, gallery, Protocol('x', p.setting) if p.name != 'dense' else Room('x'))
        assert m.first_rank.tolist() == [w for w in want if w is not None] and m.query_rows.tolist() == [i for i, w in enumerate(want) if w is not None]
        assert torch.equal(m.ap, images.ap) and torch.equal(m.inp, images.inp) and bool((m.first_rank <= images.first_rank).all())
        if m.queries: assert np.allclose(m.cmc, [np.mean([w <= k for w in want if w]) for k in range(1, len(gallery)+1)], atol=1e-6)

def test_ranks_of_people_by_tolerance():
    "Within the tolerance of the own nearest image counts as ahead of it, just beyond does not"
    q, g = pd.DataFrame(dict(identity=[1], camera=[0])), pd.DataFrame(dict(identity=[1, 2, 2, 3], camera=[1]*4))
    d = torch.tensor([[.5, .5 + 1e-3, .9, .5 + 3e-3]])
    ranks = [metrics_from_distances(d, q, g, Protocol('p', by_identity=True), tolerance=t).first_rank.item() for t in (0., 2e-3, 1e-2)]
    assert ranks == [1, 2, 3]

def test_ranks_of_people_on_both_ways_of_counting(monkeypatch):
    "What a GPU does, done on the CPU, and float features against exact loops"
    import ccreid.evaluation.ranking as ranking
    table, f, rows = problem('sysu_mm01', 4, dim=6)
    p = protocols_for('sysu_mm01')['all-search-multi-shot']
    want = evaluate(torch.from_numpy(f).float(), table, p)
    monkeypatch.setattr(ranking, 'count_within', lambda d, limits, used: ranking.count_by_sorting(d, limits))
    got = evaluate(torch.from_numpy(f).float(), table, p)
    assert torch.equal(got.first_rank, want.first_rank) and got.mAP == want.mAP

@pytest.mark.gpu
@pytest.mark.parametrize('name', ['sysu_mm01', 'llcm', 'ccvid'])
def test_gpu_equals_cpu(name):
    table, f, _ = problem(name, 1)
    for p in protocols_for(name).values():
        a, b = (evaluate(torch.from_numpy(f).double().to(d), table, p) for d in ('cpu', 'cuda'))
        assert torch.equal(a.first_rank, b.first_rank) and a.mAP == pytest.approx(b.mAP)

def test_ranked_rows_count_people():
    table, f, rows = problem('sysu_mm01', 1)
    p, at = protocols_for('sysu_mm01')['all-search-single-shot'], dict(zip(table.index, rows))
    qf, gf, q, g = next(compared(torch.from_numpy(f).float(), table, p))
    m, right = retrieval_metrics(qf, gf, q, g, p), 0
    for row, shown in zip(q.index, ranked_rows(qf, gf, q, g, p, count=len(g))):
        assert (shown['rank'][shown.kind == 'junk'] == 0).all() and len(set(shown['rank']) - {0}) == g.identity.loc[shown.row[shown.kind != 'junk']].nunique()
        hit = shown['rank'][shown.kind == 'right']
        if len(hit):
            assert hit.min() == hit.max() == m.first_rank[m.query_rows.tolist().index(row)].item()   # one person, one rank
            right += 1
    assert right == m.queries > 3

# ---- tracklets -------------------------------------------------------------------------------------------------------------

@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=25), st.integers(1, 7), st.randoms(use_true_random=False))
def test_pooled_tracklets_and_first_frames(frames, chunk, rnd):
    table = pd.DataFrame([dict(tracklet=t*10, frame=i, path=f'/{t}/{k:03}.jpg', identity=t % 2, camera=0) for k, (t, i, _, _) in enumerate(frames)])
    f = torch.tensor([v[2:] for v in frames], dtype=torch.float32)
    order = list(range(len(table))); rnd.shuffle(order)
    names, means = pool_tracklets(f, order, table.tracklet.iloc[order], chunk)
    assert names.tolist() == sorted(set(table.tracklet)) and means.dtype == torch.float32
    for n, mean in zip(names, means): assert torch.allclose(mean, f[(table.tracklet == n).tolist()].mean(0), atol=1e-6)
    first = first_frames(table.iloc[order])
    assert {r.path for r in first.itertuples()} == {min(w.itertuples(), key=lambda r: (r.frame, r.path)).path for _, w in table.groupby('tracklet')}
    assert [order.index(i) for i in first.index] == sorted(order.index(i) for i in first.index) and first.tracklet.is_unique

def test_a_tracklet_is_judged_by_all_of_its_frames():
    "A first frame that looks like somebody else does not matter to the mean"
    film = pd.DataFrame([dict(path=f'/{t}/{i}.jpg', identity=p, camera=c, tracklet=t, frame=i, split=s) for t, p, c, s in
                         ((0, 1, 0, 'query'), (1, 1, 1, 'gallery'), (2, 2, 1, 'gallery')) for i in range(3)])
    f = torch.tensor([[0., 1], [9, 0], [9, 0], [0, 1], [9, 0], [9, 0], [0, 9], [0, 9], [0, 9]])
    assert evaluate(f, film, Protocol('film', unit='tracklet')).rank(1) == 1
    assert evaluate(f, film, STANDARD).rank(1) < 1
    for dtype in (torch.float16, torch.bfloat16, torch.int64): assert evaluate(f.to(dtype), film, Protocol('film', unit='tracklet')).mAP == 1

def test_tracklets_in_both_roles_and_drawn():
    table, f, _ = problem('ccvid', 0)
    both = table.assign(split='test')
    f = torch.from_numpy(f).double()
    m = evaluate(f, both, protocols_for('ccvid')['standard'])
    assert m.queries + m.skipped == both.tracklet.nunique()
    once = Protocol('once', unit='tracklet', shots='single', draws=3)
    assert [sorted(g.identity) for _, g in once.select(both)] == [[0, 1, 2]]*3
    assert len(rows_compared(table, once)) < len(table)
    rows = rows_compared(table, once)
    part = evaluate(f[table.index.get_indexer(rows)], table, once, rows=rows)
    assert part.as_dict() == evaluate(f, table, once).as_dict()

@pytest.mark.parametrize('change,says', [(dict(tracklet=-1), 'rows have no tracklet'), (dict(tracklet=3), 'shows more than one identity'), (dict(tracklet=.5), "column 'tracklet' is float64")])
def test_tracklets_that_are_none(change, says):
    table, f, _ = problem('ccvid', 0)
    with pytest.raises(ValueError, match=says): protocols_for('ccvid')['standard'].select(table.assign(**change))

# ---- the register ----------------------------------------------------------------------------------------------------------

def test_names_as_agreed():
    assert list(protocols_for('PRCC')) == ['same-clothes', 'clothes-changing', 'same-clothes-single-shot', 'clothes-changing-single-shot']
    assert list(protocols_for('llcm')) == ['visible-to-infrared', 'infrared-to-visible', 'visible-to-infrared-transposed']
    assert list(protocols_for('whatever')) == list(protocols_for('folder')) == ['standard', 'same-clothes', 'clothes-changing']
    assert all(k == p.name for n in CONVENTIONS for k, p in protocols_for(n).items())
    with pytest.raises(ValueError, match="no option 'trial'"): protocols_for('regdb', trial=2)
    assert len(conventions_table()) == sum(len(conventions(n)) for n in CONVENTIONS) and not conventions_table().isna().any().any()

def test_ordinary_rules_stay_on_the_fast_path():
    slow = {(n, k) for n in CONVENTIONS for k, p in conventions(n).items() if not (p.same_identity_only and type(p).junk is Protocol.junk)}
    assert slow == {('sysu_mm01', k) for k in conventions('sysu_mm01')}
    assert SharedRoom.same_identity_only is False and DrawnPerCamera.same_identity_only is True

def test_fast_and_dense_agree_for_the_new_fields(monkeypatch):
    for name in ('deepchange', 'llcm', 'regdb', 'ccvid'):
        table, f, _ = problem(name, 5)
        for p in protocols_for(name).values():
            fast = evaluate(torch.from_numpy(f).double(), table, p)
            with monkeypatch.context() as m:
                m.setattr(type(p), 'same_identity_only', False)
                dense = evaluate(torch.from_numpy(f).double(), table, p)
            assert torch.equal(fast.first_rank, dense.first_rank) and fast.mAP == dense.mAP and fast.queries == dense.queries

def test_held_out_people_are_judged_as_the_test_people():
    rows = [dict(r, split='train', identity=r['identity']) for r in market('market1501')(np.random.default_rng(1)) if r['identity'] >= 0]
    ds = ReIDDataset('market1501', '/data', make_table(rows))
    rest, people = hold_out(ds, 3)
    assert list(people.protocols) == ['standard'] and list(main_protocols(protocols_for('last-validation'))) == ['standard']
    assert evaluate(torch.randn(len(people.samples), 4), people.samples, people.protocols['standard']).queries > 0
    assert list(protocols_for('last-validation')) == ['standard']            # people held out of training have no column `role`

def test_a_training_run_looks_at_the_right_rows():
    from ccreid.experiments import compared_table as rows_for, figures, multi_shot, query_values
    table, f, _ = problem('last', 0)
    ds = ReIDDataset('last', '/data/last', table)
    assert list(multi_shot(ds)) == ['standard'] and set(rows_for(ds).split) == {'query', 'gallery'}
    assert set(rows_for(ds, [ds.protocols['standard-val']]).split) == {'val'}
    table, f, _ = problem('sysu_mm01', 0)
    ds = ReIDDataset('sysu_mm01', '/data', table)
    assert len(multi_shot(ds)) == 4
    m = evaluate(torch.from_numpy(f).float(), ds.samples, ds.protocols['all-search-single-shot'])
    record = dict(protocols=dict(p=figures(m, ds.samples)))
    assert query_values(record, 'p').mean() == pytest.approx(m.hits.mean().item(), abs=1e-4) and len(query_values(record, 'p')) == m.queries
    assert 0 < query_values(record, 'p').mean() < 1 and len(set(query_values(record, 'p'))) > 2      # shares of draws, not hits

# ---- scoring a data set ----------------------------------------------------------------------------------------------------

def loaded(name, seed=0):
    table, f, rows = problem(name, seed)
    order = np.argsort(table.index)                                          # a data set numbers its rows from 0
    return ReIDDataset(name, f'/data/{name}', table.iloc[order].reset_index(drop=True)), f[order].astype(np.float64)

@pytest.mark.parametrize('name', list(RULES))
def test_evaluate_of_a_data_set_by_dict_and_by_function(name):
    from ccreid.data.layouts import load_dataset                             # noqa: all that a user imports
    ds, f = loaded(name)
    relative = dict(zip(ds.samples.path.str.removeprefix(f'/data/{name}/'), f))
    for protocol, p in ds.protocols.items():
        want = evaluate(f, ds.samples, p).as_dict()
        needed = []
        def embed(table):
            needed.extend(table.index)
            return torch.from_numpy(f[table.index])
        assert ds.evaluate(embed, protocol).as_dict() == want
        assert needed == rows_compared(ds.samples, p).tolist() and len(set(needed)) == len(needed)
        only = {ds.samples.path[i]: torch.from_numpy(f[i]) for i in needed}   # nothing else needs a feature
        assert ds.evaluate(only, p).as_dict() == ds.evaluate(relative, protocol).as_dict() == want
        used = {i for q, g in p.select(ds.samples) for i in (*q.index, *g.index)}
        assert set(needed) == used if p.unit == 'image' else used < set(needed)
        lost = ds.samples.path[needed[-1]]
        with pytest.raises(DataError, match=f'1 of the {len(needed)} images that are compared have no feature, first {lost}'):
            ds.evaluate({k: v for k, v in only.items() if k != lost}, protocol)

def test_evaluate_of_a_data_set_on_bad_input():
    ds, f = loaded('ltcc')
    good = dict(zip(ds.samples.path, f))
    with pytest.raises(DataError, match="ltcc has no protocol 'cloth-changing'\nit has standard, same-clothes, clothes-changing"): ds.evaluate(good, 'cloth-changing')
    for protocol in (None, 7, {'standard'}):
        with pytest.raises(DataError, match='a name or a Protocol'): ds.evaluate(good, protocol)
    for features in (f, list(f), None, 'features.npz'):
        with pytest.raises(DataError, match='a dict from path to vector or a function'): ds.evaluate(features, 'standard')
    for shape in ((3, 2), (len(f),), (1, len(f), 2)):
        with pytest.raises(DataError, match='returned shape'): ds.evaluate(lambda t: np.zeros(shape), 'standard')
    with pytest.raises(DataError, match='all of one length'): ds.evaluate(good | {ds.samples.path[3]: np.zeros(9)}, 'standard')
    with pytest.raises(ValueError, match='nan'): ds.evaluate(good | {p: np.full(3, np.nan) for p in ds.samples.path[:2]}, 'standard')
    other = ReIDDataset('ltcc', '/elsewhere', ds.samples)                    # keys relative to a root that is not theirs
    with pytest.raises(DataError, match='keys are absolute paths or relative to /elsewhere, not such as '): other.evaluate({k.removeprefix('/data/'): v for k, v in good.items()}, 'standard')

def test_evaluate_takes_a_protocol_of_ones_own_and_options():
    ds, f = loaded('market1501')
    mine = Protocol('mine', query_where={'camera': (0,)}, gallery_where={'camera': (1, 2)})
    good = dict(zip(ds.samples.path, f))
    m = ds.evaluate(good, mine, ranks=(1, 2))
    assert m.protocol == 'mine' and m.ranks == (1, 2) and m.as_dict() == evaluate(f, ds.samples, mine, ranks=(1, 2)).as_dict()
    assert ds.evaluate({k.replace('/', '\\'): v for k, v in good.items()}, mine).mAP == m.mAP
