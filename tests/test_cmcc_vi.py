"Across modalities: balanced batches, two streams, the weighted triplet loss and the second view, beyond the lessons"
import math
from collections import Counter
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, strategies as st
from ccreid.baselines.two_stream import NonLocal, TwoStream
from ccreid.baselines.vi import AGW, CAJ, Balanced, ChannelView, weighted_triplet
from ccreid.cmcc.probes import linear_probe
from ccreid.data.batches import Preprocessing, reid_dataloaders
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samplers import ModalityBalanced, PKSampler
from ccreid.data.samples import DataError, ReIDDataset
from ccreid.data.transforms import train_transform
from ccreid.evaluation.pictures import pair_distances, plot_distances
from ccreid.evaluation.protocols import Protocol
from ccreid.recipes import build, recipe
from ccreid.training.asking import evaluate_all
from ccreid.training.embedding import embed
from ccreid.training.export import export_reid, load_reid, parity
from ccreid.training.learner import reid_learner

# --- the sampler

people = st.lists(st.tuples(st.integers(0,5), st.integers(0,5)), min_size=2, max_size=7) # visible and infrared images of each

def table(counts):
    rows = [(p,m) for p,n in enumerate(counts) for m,k in zip(('visible','infrared'), n) for _ in range(k)]
    return pd.DataFrame(rows, columns=['identity','modality'])

@given(people, st.integers(1,3), st.integers(1,3), st.integers(0,5), st.integers(0,3))
def test_batches_are_balanced_and_people_differ(counts, p, k, seed, e):
    t,both = table(counts),[i for i,n in enumerate(counts) if min(n)]
    if len(both)<p:
        with pytest.raises(DataError, match='in both modalities'): ModalityBalanced(t, p, k, seed)
        return
    s = ModalityBalanced(t, p, k, seed)
    draws = s.epoch(e)
    assert len(draws)==len(s)==s.batches*2*p*k and s.batches>=1 and draws==ModalityBalanced(t, p, k, seed).epoch(e)
    used = Counter(d.row for d in draws)
    for b in range(s.batches):
        batch = [(t.identity[d.row], t.modality[d.row]) for d in draws[b*2*p*k:(b+1)*2*p*k]]
        assert set(Counter(batch).values())=={k} and len({i for i,_ in batch})==p and set(i for i,_ in batch)<=set(both)
    for row,n in used.items():                               # twice only where there are too few
        i,m = t.identity[row],t.modality[row]
        have = counts[i][m=='infrared']
        assert n==1 or have<k
    assert s.alone==sum(max(n)>0 and not min(n) for n in counts)
    assert f'{len(both)} people' in repr(s) and (('left out' in repr(s))==bool(s.alone))

def test_other_labels_and_values_that_cannot_be():
    t = table([(4,4)]*4)
    s = ModalityBalanced(t, 2, 2)
    s.relabel(np.where(t.identity==3, -1, t.identity//2))
    assert {t.identity[d.row] for d in s.epoch(0)}<={0,1,2} and len(s.chunks)==2
    for bad in dict(identities=0), dict(images=0), dict(seed=-1):
        with pytest.raises(DataError, match='must be at least 1'): ModalityBalanced(t, **bad)

def test_the_older_sampler_draws_what_it_drew():
    "Its draws are part of every result that is kept"
    draws = PKSampler(np.repeat(np.arange(5), [6,4,4,1,9]), 2, 3, seed=4).epoch(2)
    import hashlib
    assert hashlib.sha256(str([tuple(d) for d in draws]).encode()).hexdigest()[:12]==DRAWN

DRAWN = 'd5be7329c52c'

# --- the losses

@given(st.lists(st.integers(0,3), max_size=8), st.integers(0,10**6))
def test_the_weighted_triplet_loss_in_loops(identity, seed):
    f = torch.randn(len(identity), 3, generator=torch.Generator().manual_seed(seed))
    total,n = 0.,0
    for i,y in enumerate(identity):
        d = [math.dist(f[i].tolist(), f[j].tolist()) for j in range(len(identity))]
        positive,negative = [d[j] for j,z in enumerate(identity) if z==y and j!=i],[d[j] for j,z in enumerate(identity) if z!=y]
        if not positive or not negative: continue
        mean = lambda ds, s: sum(v*math.exp(s*v) for v in ds)/sum(math.exp(s*v) for v in ds)
        total += math.log(1+math.exp(mean(positive, 1)-mean(negative, -1)))
        n += 1
    f.requires_grad_()
    loss = weighted_triplet(f, torch.tensor(identity, dtype=torch.long))
    assert loss.item()==pytest.approx(total/max(n, 1), abs=1e-3)
    loss.backward(); assert f.grad.isfinite().all()

# --- networks and methods

@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    world = MannequinWorld(identities=(4,0,3), outfits=2, cameras=2, infrared=(1,), images=2, size=(32,16), seed=3)
    return world.write(tmp_path_factory.mktemp('w')/'w', layout='mannequins')

def learner(dataset, *cbs, net=None):
    dls = reid_dataloaders(dataset, Preprocessing((32,16)), 2, 4, num_workers=0, device='cpu')
    torch.manual_seed(0)
    return reid_learner(dls, net or TwoStream('resnet_mini', classes=dls.identities), [Balanced(), *cbs], lr=.01)

def fit(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n)
    return learn

def test_modality_reaches_training_embedding_comparison_and_export(dataset, tmp_path):
    learn = fit(learner(dataset, AGW()))
    stems = learn.model.backbone.net.conv1,learn.model.infrared_stem['conv1']
    assert any(not torch.equal(a, b) for a,b in zip(stems[0].parameters(), stems[1].parameters())) # both learn, apart
    again = load_reid(export_reid(learn, tmp_path/'agw.safetensors'))
    assert again.wants_modality and parity(learn.model, again)<1e-4
    rows = dataset.query.reset_index(drop=True)
    as_they_are,all_day = embed(again, rows),embed(again, rows.assign(modality='visible'))
    infrared = torch.tensor((rows.modality=='infrared').to_numpy())
    assert torch.allclose(as_they_are, embed(learn, rows), atol=1e-4)
    assert torch.allclose(as_they_are[~infrared], all_day[~infrared], atol=1e-5) and not torch.allclose(as_they_are[infrared], all_day[infrared], atol=1e-3)

def test_sgd_has_two_rates_by_the_schedule(dataset):
    r = recipe('sysu_mm01', 'agw', backbone='resnet_mini', pretrained=False, size=(32,16), identities=2, images=4, epochs=4)
    learn = build(r, dataset, device='cpu')
    rates = []
    from fastai.callback.core import Callback
    class Rates(Callback):
        order = 5
        def before_batch(self):
            if self.training and self.iter==0: rates.append([h['lr'] for h in self.opt.hypers])
    learn.add_cb(Rates())
    fit(learn, 4)
    assert type(learn.opt.opt).__name__=='SGD' and learn.group_names==['backbone','rest']
    assert all(a==pytest.approx(.1*b) for a,b in rates) and rates[-1][1]<rates[1][1]
    assert learn.opt.opt.param_groups[0]['nesterov'] and learn.opt.opt.param_groups[0]['momentum']==.9
    learn.remove_cb(AGW)
    assert 'weighted_triplet' not in learn.loss_func.terms and learn.dls.train.dataset.transform.erase==.5

def test_second_views_show_one_channel_of_visible_images_only():
    view = ChannelView(train_transform(Preprocessing((8,4), mean=(0,0,0), std=(1,1,1)), 0, 0, 0))
    image = np.random.default_rng(0).integers(0, 256, (8,4,3), np.uint8)
    seen = set()
    for seed in range(30):
        x = view(image, seed, dict(modality=0))
        assert (x[0]==x[1]).all() and (x[0]==x[2]).all()
        seen |= {c for c in range(3) if np.allclose(x[0], image[...,c]/255, atol=1e-5)}
        assert np.allclose(view(image, seed, dict(modality=1)), image.transpose(2,0,1)/255, atol=1e-5)
    assert seen=={0,1,2} and (view(image, 3, dict(modality=0))==view(image, 3, dict(modality=0))).all()

def test_caj_by_hand_and_its_way_back(dataset):
    learn = learner(dataset, AGW(), CAJ(weight=.5))
    x,labels = learn.dls.train.one_batch()
    rows = labels['modality']==0
    learn.model.train()
    out = learn.model(x, modality=labels['modality'])
    second = learn.model(labels['channel'][rows], modality=labels['modality'][rows])
    out |= {f'caj_{k}': v for k,v in second.items()} | dict(caj_rows=rows.nonzero()[:,0])
    caj,y = learn.caj,labels['identity']
    z = second['logits'].detach()
    assert caj.identity(out, labels).item()==pytest.approx(torch.nn.functional.cross_entropy(z, y[rows]).item(), rel=1e-4)
    p,q = out['logits'][rows].detach().softmax(1),z.softmax(1)
    assert caj.kl(out, labels).item()==pytest.approx((p*(p/q).log()).sum(1).mean().item(), abs=1e-5)
    both = weighted_triplet(torch.cat([out['pooled'], second['pooled']]), torch.cat([y, y[rows]]))
    assert caj.triplet(out, labels).item()==pytest.approx(both.item(), rel=1e-4)
    fit(learn)
    assert {'caj_identity','caj_triplet','caj_kl'}<=set(learn.history[0])
    learn.remove_cb(CAJ)
    assert set(learn.loss_func.terms)=={'identity','weighted_triplet'} and not learn.dls.train.dataset.views

@pytest.mark.parametrize('method', ['agw','agw+caj','cal+balanced','identity+balanced+bpl','cal+balanced+bpl','aim+balanced','pia','pia+caj','pia+hsal'])
def test_every_method_of_the_rows_takes_a_step(dataset, method):
    options = dict(identities=2, images=4, size=(32,16), epochs=1, pretrained=False, backbone='resnet_mini', start_epoch=0)
    learn = fit(build(recipe('mannequins-cmcc', method, **options), dataset, device='cpu'))
    assert all(math.isfinite(v) for v in learn.history[0].values()) and learn.counts[0]['steps']>=1

def test_what_two_streams_and_batches_need(dataset):
    with pytest.raises(ValueError, match='cut out of a ResNet'): TwoStream('vit_tiny_patch16_224', 'avg')
    with pytest.raises(ValueError, match='needs a TwoStream'): learner(dataset, AGW(), net='resnet_mini')
    day = ReIDDataset('day', dataset.root, dataset.samples.assign(modality='visible'))
    with pytest.raises(DataError, match='in both modalities'): learner(day)

# --- pictures and probes

@given(st.lists(st.tuples(st.integers(-2,2), st.integers(0,1), st.integers(0,2)), min_size=2, max_size=14), st.integers(1,5), st.integers(0,10**6))
def test_distances_of_pairs_in_loops(rows, chunk, seed):
    rows = [(i if i!=-1 else 0, m, c) for i,m,c in rows]
    t = pd.DataFrame(dict(identity=[r[0] for r in rows], modality=['visible' if r[1]==0 else 'infrared' for r in rows], camera=[r[2] for r in rows], clothes=-1))
    if len(set(t.modality))<2: return
    f = torch.randn(len(t), 4, generator=torch.Generator().manual_seed(seed))
    p = Protocol('v2i', query_where={'modality': ('visible',)}, gallery_where={'modality': ('infrared',)})
    unit = torch.nn.functional.normalize(f, dim=1)
    expected = dict(positive=[], negative=[])
    for a in range(len(t)):
        for b in range(len(t)):
            if rows[a][1]!=0 or rows[b][1]!=1: continue
            same = rows[a][0]==rows[b][0]>=0
            if same and rows[a][2]==rows[b][2]: continue     # the protocol's junk
            expected['positive' if same else 'negative'].append(1-float(unit[a]@unit[b]))
    got = pair_distances(f, t, p, bins=10, chunk=chunk)
    for k,v in expected.items():
        assert got[k]['pairs']==len(v)==got[k]['counts'].sum()
        assert got[k]['mean']==pytest.approx(np.mean(v), abs=1e-5) if v else math.isnan(got[k]['mean'])
    assert len(plot_distances(f, t, p).axes)==1

def test_probes_find_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=300)
    f = torch.tensor(np.eye(3)[y]+.3*rng.normal(size=(300,3)))
    assert linear_probe(f, y)['accuracy']>.9 and linear_probe(f, rng.integers(3, size=300))['accuracy']<.5
    assert linear_probe(5*f, y)==linear_probe(f, y)
    one = linear_probe(f, np.r_[y[:-1], 99])                 # a class with one image takes no part
    assert one['classes']==3

@pytest.mark.parametrize('layout,people,cameras,infrared', [('sysu_mm01',(3,1,3),6,(2,5)), ('regdb',(4,0,3),2,(1,)), ('llcm',(4,0,3),4,(2,3))])
def test_the_sets_that_agw_is_made_for(tmp_path, layout, people, cameras, infrared):
    "Read in their layouts, trained by their recipe, asked by their protocols"
    world = MannequinWorld(identities=people, outfits=1, cameras=cameras, infrared=infrared, images=2, size=(32,16), seed=2)
    ds = world.write(tmp_path/'w', layout=layout)
    small = dict(backbone='resnet_mini', pretrained=False, size=(32,16), identities=2, images=4, epochs=1, warmup=0)
    learn = fit(build(recipe(layout, 'agw', **small), ds, device='cpu'))
    figures,_ = evaluate_all(learn, ds)
    assert figures and all(0<=m.rank(1)<=1 and m.queries for m in figures.values()) and set(figures)<=set(ds.protocols)
