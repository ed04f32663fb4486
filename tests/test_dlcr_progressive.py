"DLCR's pairs: the schedule and the partners against loops, CAL + HSAL + pairs against the sum by hand, clusters, clothes, recipes"
import shutil, warnings
from collections import Counter
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
import ccreid.compat
from fastai.callback.core import Callback
from hypothesis import given, settings, strategies as st
from ccreid.baselines.cal import CAL
from ccreid.baselines.cssc import CSSC, CSSCModel
from ccreid.baselines.fire import FIRe2, fine_labels
from ccreid.data.batches import PKSampler, Preprocessing, ReIDImages, reid_dataloaders
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import DataError, ReIDDataset, make_table, relabel
from ccreid.data.transforms import train_transform
from ccreid.dlcr.additions import pair_options, progressive
from ccreid.dlcr.partners import PairSampler, Partners
from ccreid.dlcr.progressive import ProgressivePairs, available_variants
from ccreid.generation.jobs import add_samples
from ccreid.hsgl.hsal import HSAL
from ccreid.recipes import build, recipe
from ccreid.registry import All, Chain, forget, register
from ccreid.runs import SameSteps
from ccreid.training.checkpoints import Checkpoint
from ccreid.training.embedding import embed_training
from ccreid.training.learner import reid_learner
from test_hsgl_hsal import check_steps, is_hard_negative, loops, samples_of
from test_training import PlainIdentity, Watch, check_accumulation, check_resume, quiet

# --- the schedule ---

def as_the_paper_says(epoch, variants, parts, every):
    "Part after part, each of K/p variants, one more after every N epochs; whole variants, one at least"
    used, left = 1, epoch
    while left>=every and used<parts: used, left = used+1, left-every
    whole = 0
    while whole+1 <= Fraction(variants*used, parts): whole += 1
    return max(1, whole)

def as_released(count, thresholds=(5,10,15), percentages=(.25,.5,.75)):
    "Read off the code: the counter begins at 0"
    for t,p in zip(thresholds, percentages):
        if count<=t: return int(10*p)
    return 10

@given(st.integers(0,80), st.integers(1,13), st.integers(1,6), st.integers(1,9))
def test_the_schedule_is_the_papers(epoch, variants, parts, every):
    got = available_variants(epoch, variants, parts, every)
    assert got==as_the_paper_says(epoch, variants, parts, every) and 1<=got<=variants and isinstance(got, int)
    assert got<=available_variants(epoch+1, variants, parts, every)
    assert available_variants(every*(parts-1), variants, parts, every)==variants
    assert available_variants(epoch+1, variants, parts, every, 'released')==available_variants(epoch, variants, parts, every)

def test_the_schedule_of_the_code():
    assert [available_variants(e, rule='released') for e in range(30)]==[as_released(e) for e in range(30)]

@pytest.mark.parametrize('kw', [dict(epoch=-1), dict(epoch=0, variants=0), dict(epoch=0, parts=0), dict(epoch=0, every=0), dict(epoch=0, variants=2.5), dict(epoch=True)])
def test_numbers_out_of_range(kw):
    with pytest.raises(ValueError, match='is a whole number, at least'): available_variants(**kw)

def test_words_that_are_none():
    with pytest.raises(ValueError, match="'paper' or 'released'"): available_variants(0, rule='x')
    with pytest.raises(ValueError, match="'paper' or 'released'"): ProgressivePairs(rule='x')
    with pytest.raises(ValueError, match='mode is one of progressive, all, concatenated, real'): ProgressivePairs(mode='x')
    with pytest.raises(ValueError, match='parts is a whole number'): ProgressivePairs(parts=0)

# --- partners, by loops ---

def toy(people, generated):
    rows = [dict(dataset='toy', path=f'/{i}.jpg', identity=p, clothes=0, camera=0, split='train', generated_by='') for i,p in enumerate(people)]
    rows += [dict(rows[0], path=f'/g{i}.png', identity=p, generated_by='toy') for i,(p,_,_) in enumerate(generated)]
    images = ReIDImages(make_table(rows), train_transform(Preprocessing((32,16))))
    return Partners(images, len(people)+np.arange(len(generated)), [s for _,s,_ in generated], [v for *_,v in generated])

@st.composite
def worlds(draw):
    people = draw(st.lists(st.integers(0,3), min_size=2, max_size=7))
    generated = []
    for i,p in enumerate(people):
        if draw(st.booleans()): generated += [(p, i, v) for v in draw(st.lists(st.integers(0,9), unique=True, max_size=4))]
    for _ in range(draw(st.integers(0,2))): generated.append((draw(st.sampled_from(people)), -1, draw(st.integers(0,9))))
    return people, draw(st.permutations(generated))

def allowed(people, generated, row, many):
    "Positions that may follow an image, and of which kind they are"
    where = {g: len(people)+i for i,g in enumerate(generated)}
    groups = {}
    for k,g in enumerate(generated): groups.setdefault((g[1],) if g[1]>=0 else ('person', g[0]), []).append((g[2], len(people)+k))
    open_of = {k: [at for _,at in sorted(v)[:many(len(v))]] for k,v in groups.items()}
    if (row,) in open_of: return 'own', set(open_of[row,])
    owner = {at: g[0] for at,g in zip(range(len(people), 99), generated)}
    mine = {at for ats in open_of.values() for at in ats if owner[at]==people[row]}
    if mine: return 'person', mine
    others = {i for i,p in enumerate(people) if p==people[row] and i!=row}
    return 'real', others or {row}

@settings(max_examples=25)
@given(worlds(), st.sampled_from([lambda n: 1, lambda n: n, lambda n: max(1, n//2)]))
def test_partners_are_those_that_loops_find(world, many):
    people, generated = world
    partners, rng, rows = toy(people, generated), np.random.default_rng(0), np.arange(len(people))
    truth = [allowed(people, generated, r, many) for r in rows]
    counts = Counter(kind for kind,_ in truth)
    assert partners.kinds(rows)=={k: counts[k] for k in ('own','person','real')}
    seen = np.array([partners.follow(rows, many, rng) for _ in range(120)])
    for r,(_,may) in enumerate(truth): assert set(seen[:,r].tolist())==may, (r, may)
    real = np.array([partners.follow(rows, None, rng) for _ in range(60)])
    for r in rows:
        others = {i for i,p in enumerate(people) if p==people[r] and i!=r} or {r}
        assert set(real[:,r].tolist())==others

def test_partners_are_drawn_evenly():
    partners = toy([0,0,1], [(0,0,v) for v in range(4)])
    got = np.bincount(partners.follow([0]*4000, lambda n: n, np.random.default_rng(1)))[3:]
    assert abs(got/4000-.25).max()<.03
    assert set(partners.follow([1]*300, lambda n: 2, np.random.default_rng(1)).tolist())=={3,4}

def test_the_order_of_an_epoch_depends_on_seed_and_number_alone():
    partners, inner = toy([0,0,1,1,2,2], [(i//2,i,v) for i in range(6) for v in range(3)]), PKSampler([0,0,1,1,2,2]+[-1]*18, 2, 2, seed=5)
    def sampler(seed=0): return PairSampler(inner, partners, lambda e,n: n, seed)
    later = sampler()
    later.epoch(3), later.epoch(0)
    assert later.epoch(7)==sampler().epoch(7)!=sampler(1).epoch(7)
    draws = sampler().epoch(7)
    assert draws[::2]==inner.epoch(7) and len({d.seed for d in draws})==len(draws)
    assert 'PairSampler' in repr(later) and 'PKSampler' in repr(later) and max(map(len, repr(later).split('\n')))<=90

# --- training ---

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Real images, and three variants of each: files of their own, in garments that several people are given"
    root = tmp_path_factory.mktemp('pairs')
    real = MannequinWorld(identities=(6,0,3), outfits=2, cameras=3, images=2, size=(64,32), seed=3).write(root/'w', layout='prcc', workers=1)
    (root/'made').mkdir()
    made, clothes = [], real.train.clothes.max()+1
    for i,r in enumerate(real.train.to_dict('records')):
        for v in range(3):
            path = root/'made'/f'{i}_{v}{Path(r["path"]).suffix}'
            shutil.copy(r['path'], path)
            made.append(dict(r, path=str(path), clothes=(i+v)%4 if v else -1, generated_by='test', source=r['path'], variant=v))
    return SimpleNamespace(real=real, made=pd.DataFrame(made), joined=add_samples(real, pd.DataFrame(made)))

def loaders(dataset, **kw): return reid_dataloaders(dataset, Preprocessing((64,32)), 3, 2, num_workers=0, device='cpu', **kw)

def all_three(world, cbs=(), clothes=True, **kwargs):
    pairs = ProgressivePairs(world.made, every=1, parts=3, clothes=clothes)
    return reid_learner(loaders(world.real), 'resnet_mini', [CAL(start_epoch=0), HSAL(.2, .3), pairs, PlainIdentity(), Watch(), *cbs], **kwargs)

def check_pairs(learn, made):
    "Every step: image and partner by turns, of one person, the partner a variant of that very image, no later one than the epoch allows"
    paths, source, variant, latest = learn.dls.train.dataset.paths, dict(zip(made.path, made.source)), dict(zip(made.path, made.variant)), {}
    for epoch,_,labels,*_ in learn.watch.steps:
        assert labels['generated'].tolist()==[0,1]*6
        assert labels['identity'][::2].tolist()==labels['identity'][1::2].tolist()
        for a,b in labels['row'].view(-1, 2).tolist():
            assert source[paths[b]]==paths[a] and variant[paths[b]]<available_variants(epoch, 3, 3, 1)
            latest[epoch] = max(latest.get(epoch, 0), variant[paths[b]]+1)
    assert latest=={e: available_variants(e, 3, 3, 1) for e in latest}!={}, 'and none earlier: the parts grow with the epochs of the fit'

def test_cal_hsal_and_pairs_sum_up_as_worked_out_by_hand(world):
    learn = quiet(all_three(world), 2)
    check_steps(learn)
    check_pairs(learn, world.made)
    assert list(learn.loss_func.terms)==['identity','cal','hsal']
    kinds = [samples_of(s[2]) for s in learn.watch.steps]
    assert any(is_hard_negative(a, b) for k in kinds for a in k for b in k), 'the batches must hold hard negatives'
    assert any((s[2]['clothes'][1::2]>=0).any() for s in learn.watch.steps), 'and generated images with known clothes'

def test_gradient_accumulation_gives_the_mean_of_the_sums(world):
    check_steps(check_accumulation(partial(all_three, world), lambda out, labels: .3*loops(out['features'], samples_of(labels), .2, 0.), rtol=1e-3, atol=2e-5))

def test_a_resumed_run_draws_and_steps_alike(world, tmp_path):
    learn = check_resume(partial(all_three, world), tmp_path/'c.pth')
    check_steps(learn); check_pairs(learn, world.made)
    with pytest.raises(ValueError, match=r"other settings of ProgressivePairs .*clothes"): quiet(all_three(world, [Checkpoint(tmp_path/'c.pth')], clothes=False), 3)
    fewer = SimpleNamespace(real=world.real, made=world.made[world.made.variant<2])
    with pytest.raises(ValueError, match=r"other settings of ProgressivePairs .*images"): quiet(all_three(fewer, [Checkpoint(tmp_path/'c.pth')]), 3)

def plain(world, *cbs, data=None, **kw): return reid_learner(loaders(data or world.real), 'resnet_mini', [ProgressivePairs(**kw), *cbs])

def test_clothes_losses_see_the_real_half_alone(world):
    "Also a CAL that would take generated images with known clothes: unless asked for, there are none"
    for clothes in (False, True):
        cal = CAL(0, generated=True)
        learn = plain(world, cal, data=world.joined, clothes=clothes, mode='all')
        x,labels = learn.dls.train.one_batch()
        seen = cal.usable(labels)
        assert seen[::2].all() and seen[1::2].any()==clothes
        if not clothes:
            own = torch.zeros_like(learn.dls.clothes_of_identity)
            for i,c in zip(world.real.train.identity, world.real.train.clothes): own[i,c] = True
            assert torch.equal(cal.clothes_of_identity, own)
            assert not torch.equal(loaders(world.joined).clothes_of_identity, own)   # which was wrong of the joined set

@pytest.mark.parametrize('mode,steps,batch', [('progressive',6,12), ('all',6,12), ('real',6,12), ('concatenated',24,6)])
def test_the_four_ways_and_their_size(world, mode, steps, batch):
    "From the joined set and from a table beside it: the same draws; nothing is left behind"
    labels = {}
    for name,data,made in (('joined',world.joined,None), ('table',world.real,world.made)):
        learn = reid_learner(loaders(data), 'resnet_mini')
        loader, before = learn.dls.train, (len(learn.dls.train), learn.dls.train.bs, len(learn.dls.train.dataset), learn.dls.train.sampler.epoch(1), learn.dls.clothes_of_identity.clone(), learn.dls.train.dataset.labels['clothes'].tolist())
        learn.add_cb(pairs := ProgressivePairs(made, mode=mode, parts=2, every=3))
        assert (len(loader), loader.bs)==(steps, batch)
        draws = [loader.sampler.epoch(e) for e in (0,3)]
        labels[name] = [[loader.dataset.paths[d.row] for d in ds] for ds in draws]
        made_rows = [[bool(loader.dataset.labels['generated'][d.row]) for d in ds] for ds in draws]
        if mode in ('progressive','all'): assert made_rows[0]==[False,True]*(len(draws[0])//2)
        elif mode=='real': assert not any(made_rows[0]) and all(a.row!=b.row for a,b in zip(draws[0][::2], draws[0][1::2]))
        else: assert .7<np.mean(made_rows[0])<.8
        variants = [dict(zip(world.made.path, world.made.variant)).get(p) for p in labels[name][0]]
        if mode=='progressive': assert set(variants)=={None, 0}
        if mode=='all': assert set(variants)=={None, 0, 1, 2}
        learn.remove_cb(pairs)
        assert (len(loader), loader.bs, len(loader.dataset), loader.sampler.epoch(1))==before[:4] and not loader.dataset.beside.any()
        assert torch.equal(learn.dls.clothes_of_identity, before[4]) and loader.dataset.labels['clothes'].tolist()==before[5]
    assert labels['joined']==labels['table']

def test_real_pairs_need_no_generated_image(world):
    learn = quiet(plain(world, mode='real'), 1)
    assert len(learn.dls.train)==6 and learn.counts[0]['images']==72

def test_as_many_steps_as_without(world):
    learn = quiet(plain(world, SameSteps(4), data=world.joined, every=1), 1)
    assert learn.counts==[dict(epoch=0, steps=4, images=48)]

def test_images_without_variants_of_their_own(world):
    lacking = world.made[(world.made.identity>0) & (world.made.source!=world.made.source.iloc[-1])]
    with pytest.warns(UserWarning, match=r'^7 of 36 training images have no generated image of their own: 1 are paired with another of their person, 6 with a real image$'): learn = plain(world, generated=lacking, every=1)
    x,labels = learn.dls.train.one_batch()
    assert labels['identity'][::2].tolist()==labels['identity'][1::2].tolist()
    real = [bool(learn.dls.train.dataset.labels['generated'][d.row]) for d in learn.dls.train.sampler.epoch(0)[1::2]]
    people = [int(learn.dls.train.dataset.labels['identity'][d.row]) for d in learn.dls.train.sampler.epoch(0)[1::2]]
    assert all(made==(p>0) for made,p in zip(real, people)) and 0 in people

def test_what_does_not_fit_is_refused_and_leaves_nothing_behind(world):
    cases = [(world.made.assign(identity=99), 'identity 99, who has no real training image'), (world.made.assign(identity=-1), 'who has no real'),
             (world.made.assign(split='query'), 'of split query, which is never trained on'), (world.made.assign(identity=(world.made.identity+1)%6), 'but was made of'),
             (world.made.iloc[:0], 'no training image is generated'), (None, 'no training image is generated')]
    for table,words in cases:
        learn = reid_learner(loaders(world.real), 'resnet_mini')
        before = learn.dls.train.sampler, len(learn.dls.train.dataset)
        with pytest.raises(DataError, match=words): learn.add_cb(ProgressivePairs(table))
        assert (learn.dls.train.sampler, len(learn.dls.train.dataset))==before and not hasattr(learn, 'progressive_pairs')

def test_parts_that_are_never_reached(world):
    with pytest.warns(UserWarning, match='after every 5 epochs this fit of 1 uses 1 of 4 parts'): quiet(plain(world, generated=world.made), 1)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn = plain(world, generated=world.made, every=1, parts=1)
        learn.n_epoch = 1
        learn.progressive_pairs.before_fit()

def test_new_labels_take_the_partners_along(world):
    "As a method does that clusters people anew; who is nobody is neither drawn nor follows"
    learn = plain(world, data=world.joined, every=1)
    loader, n = learn.dls.train, len(world.real.train)
    new = np.r_[np.where(np.arange(n)<30, np.arange(n)//5, -1), np.full(3*n, 77)]    # of generated rows nothing is asked
    loader.relabel(new)
    for e in range(3):
        draws = loader.sampler.epoch(e)
        who = loader.dataset.labels['identity'][[d.row for d in draws]]
        assert (who[::2]==who[1::2]).all() and set(who)<=set(range(6)) and all(d.row<30 for d in draws[::2])

# --- clusters ---

def test_fire_never_clusters_generated_images(world):
    for mode in ('all','concatenated'):
        seen = []
        class Look(Callback):
            order = 45
            def after_loss(self):
                if self.training: seen.append((dict(self.yb[0]), {k: v.detach() for k,v in self.pred.items()}))
        fire = FIRe2(start_epoch=0, k1=3, k2=2)
        learn = reid_learner(loaders(world.joined), 'resnet_mini', [fire, ProgressivePairs(mode=mode), Look(), SameSteps(3)], lr=1e-3)
        features, identity = fire.embed()
        n = len(world.real.train)
        assert len(features)==len(identity)==n
        z,_,owner = fine_labels(embed_training(learn, range(n)), world.real.train.identity.to_numpy(), 3, 2, .4)
        quiet(learn, 1)
        assert torch.equal(fire.z[:n], z) and (fire.z[n:]==-1).all() and torch.equal(fire.owner, owner)
        for labels,output in seen: assert ((labels['cluster']<0)==(labels['generated']==1)).all()
        labels,output = next(s for s in seen if (s[0]['generated']==0).sum()>2)
        real = labels['generated']==0
        def far(rows):
            fire.generator.manual_seed(1)
            return fire.far({k: v[rows] for k,v in output.items()}, {k: v[rows] for k,v in labels.items()})
        torch.testing.assert_close(far(slice(None)), far(real))
        assert fire.far(output, dict(labels, cluster=torch.full_like(labels['cluster'], -1)))==0
        torch.testing.assert_close(fire.ffm(output, labels), fire.ffm({k: v[real] for k,v in output.items()}, {k: v[real] for k,v in labels.items()}))

def test_cssc_has_no_clusters_and_learns_from_pairs(world):
    dls = loaders(world.joined)
    torch.manual_seed(0)
    learn = quiet(reid_learner(dls, CSSCModel('resnet_mini', dls.identities), [CSSC(start_epoch=0), ProgressivePairs(every=1, parts=1), SameSteps(2)], lr=1e-3), 1)
    terms = {k: v for k,v in learn.history[0].items() if k not in ('epoch','lr')}
    assert len(terms)==10 and all(np.isfinite(v) for v in terms.values()) and learn.counts[0]['images']==24

# --- recipes ---

@pytest.fixture
def addon():
    "The name under which a chain has registered pairs, or one that is registered here"
    if 'pairs_mode' in All('options'):
        yield next(o for o in All('options')['pairs_mode'].of if o in All('addons'))
        return
    register(Chain('toy-pairs', addons={'progressive': 'ccreid.dlcr.additions:progressive'}, options=pair_options('progressive')))
    yield 'progressive'
    forget('toy-pairs')

def test_a_recipe_has_them_by_name(addon, world):
    r = recipe('prcc', f'cal+{addon}')
    assert r.hash==recipe('prcc', f'cal+{addon}', pairs_mode='progressive', pairs_parts=4, pairs_clothes=False).hash!=recipe('prcc', f'cal+{addon}', pairs_mode='real').hash
    pairs, = progressive(r)
    assert (pairs.every, pairs.parts, pairs.rule, pairs.mode, pairs.clothes)==(5, 4, 'paper', 'progressive', False)
    assert [progressive(recipe('prcc', f'cal+{addon}', epochs=e))[0].every for e in (60,30,16,1)]==[5,2,1,1]
    assert progressive(recipe('prcc', f'cal+{addon}', pairs_every=7, epochs=16))[0].every==7
    with pytest.raises(ValueError, match='pairs_rule'): recipe('prcc', f'cal+{addon}', pairs_rule='x')
    small = dict(backbone='resnet_mini', pretrained=False, size=(64,32), identities=3, images=2, epochs=2, start_epoch=0)
    learn = build(recipe('prcc', f'cal+{addon}', generated='', pairs_every=1, pairs_parts=2, **small), world.joined, device='cpu')
    assert learn.dls.train.bs==12 and learn.cal.generated is False
    quiet(learn, 2)
    assert [c['images'] for c in learn.counts]==[72,72] and all('cal' in h for h in learn.history)
