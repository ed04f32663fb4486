"Training without labels: that none gets in, that killed runs go on, that odd clusterings are survived, and steps worked out by hand"
import warnings
import numpy as np, pandas as pd, pytest, torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from ccreid.data.batches import Preprocessing, reid_dataloaders
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import ReIDDataset
from ccreid.recipes import build, recipe
from ccreid.sync_person_cloud.memories import self_identity_loss
from ccreid.sync_person_cloud.miniature import spc
from ccreid.sync_person_cloud.pseudo_labels import pseudo_labels
from ccreid.sync_person_cloud.training import SyncPersonCloud, cloud_model
from ccreid.training.checkpoints import Checkpoint
from ccreid.training.embedding import embed_training
from ccreid.training.learner import reid_learner

SMALL = dict(k1=12, k2=4, steps=3, eps=.5)

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp('world')
    return MannequinWorld(identities=(10,0,4), images=2, size=(64,32), seed=6).write(root/'world', layout='prcc')

@pytest.fixture(scope='module')
def copied(world, tmp_path_factory): return spc(world, tmp_path_factory.mktemp('copies'))

def learner(data, cbs=(), P=3, K=2, seed=0, **kwargs):
    dls = reid_dataloaders(data, Preprocessing((64,32)), identities=P, images=K, seed=seed, cache=True, device='cpu')
    torch.manual_seed(seed)
    return reid_learner(dls, cloud_model('resnet_mini'), [SyncPersonCloud(**SMALL | kwargs), *cbs], seed=seed, lr=1e-3)

def train(learn, epochs=2):
    with warnings.catch_warnings(), learn.no_bar(), learn.no_logging():
        warnings.filterwarnings('ignore', '.*clusters? of.*'); warnings.filterwarnings('ignore', 'Your generator')
        learn.fit(epochs)
    return learn

def bits(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def equal(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

# --- no label gets in

def relabelled(data, how, seed=0):
    "A data set whose training labels say something else: shuffled, noise, everybody by himself, or half of them one"
    rng,table = np.random.default_rng(seed),data.samples.copy()
    train = (table.split=='train').to_numpy(); n = int(train.sum())
    for k in 'identity','clothes','camera':
        old = table.loc[train, k].to_numpy()
        new = dict(shuffled=rng.permutation(old), noise=rng.integers(0, 7, n), alone=np.arange(n), half=old//2)[how]
        table.loc[train, k] = new
    return ReIDDataset(data.name, data.root, table)

@pytest.fixture(scope='module')
def honest(copied): return {kind: train(learner(copied, memory=kind)) for kind in ('both','instance')}

@pytest.mark.parametrize('how', ['shuffled','noise','alone','half'])
@pytest.mark.parametrize('kind', ['both','instance'])
def test_no_label_reaches_training(copied, honest, how, kind):
    other = relabelled(copied, how)
    assert not np.array_equal(other.train.identity, copied.train.identity)
    blind,honest = train(learner(other, memory=kind)),honest[kind]
    assert equal(bits(blind), bits(honest)) and torch.equal(blind.sync_person_cloud.clusters, honest.sync_person_cloud.clusters)
    assert [c['steps'] for c in blind.counts]==[c['steps'] for c in honest.counts]==[3, 3]
    for e in range(2):
        for k in 'contrast','self_identity','clusters','outliers': assert blind.history[e].get(k)==honest.history[e].get(k)
    assert {k: v.shape for k,v in blind.model.state_dict().items()}=={k: v.shape for k,v in honest.model.state_dict().items()}

def test_the_test_would_see_a_leak(copied):
    "The control with cameras, and the one with identities, do change when labels do"
    for leak in dict(by_camera=True), dict(labels='identity'):
        a,b = (train(learner(d, **leak), 1) for d in (copied, relabelled(copied, 'shuffled')))
        assert not equal(bits(a), bits(b)), leak

def test_a_whole_recipe_is_blind(copied):
    r = recipe('mannequins', 'sync_person_cloud', generated='spc', epochs=1, size=(64,32), spc_steps=2, spc_k1=12, spc_eps=.5)
    a,b = (train(build(r, d, 0, 'cpu'), 1) for d in (copied, relabelled(copied, 'shuffled')))
    assert equal(bits(a), bits(b)) and list(a.loss_func.terms)==['contrast','self_identity']

def test_a_network_with_a_classifier_and_terms_of_labels_are_refused_or_go(copied):
    dls = reid_dataloaders(copied, Preprocessing((64,32)), 3, 2, device='cpu')
    with pytest.raises(ValueError, match='has a classifier'): reid_learner(dls, 'resnet_mini', SyncPersonCloud())
    r = recipe('mannequins', 'sync_person_cloud', triplet=1., size=(64,32))
    assert list(build(r, copied, 0, 'cpu').loss_func.terms)==['contrast','self_identity']

# --- killed, and gone on

class Kill(Callback):
    order = 95
    def __init__(self, epoch): self.at = epoch
    def after_epoch(self):
        if self.epoch==self.at: raise KeyboardInterrupt

@pytest.mark.parametrize('at', [0, 1, 2])
def test_a_run_that_is_killed_after_any_epoch_ends_the_same(copied, tmp_path, at):
    whole = train(learner(copied), 3)
    with pytest.raises(KeyboardInterrupt): train(learner(copied, [Checkpoint(tmp_path/'c.pth'), Kill(at)]), 3)
    again = train(learner(copied, [Checkpoint(tmp_path/'c.pth')]), 3)
    assert equal(bits(again), bits(whole)) and again.history==whole.history
    a,b = again.sync_person_cloud,whole.sync_person_cloud
    assert torch.equal(a.clusters, b.clusters) and a.figures==b.figures and a.idle==b.idle
    if at<2: assert all(torch.equal(v, b.memory.state_dict()[k]) for k,v in a.memory.state_dict().items())

def test_killed_in_the_middle_of_an_epoch(copied, tmp_path):
    class Now(Callback):
        def after_batch(self):
            if self.epoch==1 and self.iter==1: raise KeyboardInterrupt
    whole = train(learner(copied), 3)
    with pytest.raises(KeyboardInterrupt): train(learner(copied, [Checkpoint(tmp_path/'c.pth'), Now()]), 3)
    assert equal(bits(train(learner(copied, [Checkpoint(tmp_path/'c.pth')]), 3)), bits(whole))

# --- clusterings that are odd

@pytest.mark.parametrize('found,steps,words', [
    (lambda n: torch.full((n,), -1), 0, '0 clusters of .* no step is taken .*Raise eps'),
    (lambda n: torch.zeros(n, dtype=torch.long), 0, '1 cluster of .* no step is taken .*Lower eps'),
    (lambda n: torch.arange(n)%2, 3, '2 clusters of .*, fewer than the 3 of a batch'),
    (lambda n: torch.arange(n)%3, 3, None)])
def test_few_clusters_none_and_a_giant(copied, found, steps, words):
    learn = learner(copied)
    cloud,before = learn.sync_person_cloud,bits(learn)
    cloud.find = lambda f: found(len(f))
    with warnings.catch_warnings(record=True) as said, learn.no_bar(), learn.no_logging():
        warnings.simplefilter('always'); learn.fit(2)
    told = [str(w.message) for w in said if 'epoch' in str(w.message)]
    assert [c['steps'] for c in learn.counts]==[steps]*2 and len(told)==(2 if words else 0)
    import re
    for w in told: assert re.search(words, w), w
    assert cloud.idle==(2 if not steps else 0)
    if not steps:
        assert equal(bits(learn), before) and '2 such epochs' in told[-1]
    else: assert not equal(bits(learn), before) and all(p.isfinite().all() for p in learn.model.parameters())

def test_clusters_of_a_single_image(copied):
    learn = learner(copied); n = len(learn.sync_person_cloud.real)
    learn.sync_person_cloud.find = lambda f: torch.where(torch.arange(n)<4, torch.arange(n), -1)
    train(learn, 1)
    assert learn.counts[0]['steps']==3 and learn.history[0]['contrast']>0

def test_nothing_is_trained_with_no_steps(copied):
    learn = learner(copied, steps=0); before = bits(learn)
    train(learn, 1)
    assert equal(bits(learn), before) and learn.counts[0]['steps']==0

# --- a step by hand

class First(Callback):
    "What the first batch was, and what came of it"
    order = 50
    def after_loss(self):
        if hasattr(self, 'was'): return
        self.was,self.y_was = True,{k: v.clone() for k,v in self.yb[0].items()}
        self.f_was,self.loss_was = self.pred['features'].detach().clone(),self.learn.loss.item()
        m = self.learn.sync_person_cloud.memory
        self.rows_were = {k: getattr(m, k).rows.clone() for k in ('average','hardest')}
    def after_step(self):
        if hasattr(self, 'rows_are'): return
        m = self.learn.sync_person_cloud.memory
        self.rows_are = {k: getattr(m, k).rows.clone() for k in ('average','hardest')}

def test_the_first_step_is_algorithm_1(copied):
    learn = learner(copied, [First()])
    features = embed_training(learn, learn.sync_person_cloud.real)
    z = pseudo_labels(features, SMALL['eps'], 4, SMALL['k1'], SMALL['k2'])
    train(learn, 1)
    o,table = learn.first,copied.train.reset_index(drop=True)
    assert torch.equal(z, learn.sync_person_cloud.clusters)
    P = min(3, int(z.max())+1)
    assert len(o.f_was)==P*2*5 and o.y_was['generated'].view(-1, 5)[0].tolist()==[False]+[True]*4
    place = {p: i for i,p in enumerate(table.path[table.generated_by==''])}
    for row,cluster,image in zip(o.y_was['row'].tolist(), o.y_was['cluster'].tolist(), o.y_was['image'].tolist()):
        made = table.generated_by[row]!=''
        source = table.source[row] if made else table.path[row]
        assert cluster==z[place[source]] and image==(-1 if made else place[source])
    for g in o.y_was['row'].view(-1, 5).tolist(): assert {table.source[r] for r in g[1:]}=={table.path[g[0]]} and len(set(g))==5
    real = F.normalize(features, dim=1)                                     # Eq. 4: rows begin at one of their own
    f,y = F.normalize(o.f_was, dim=1),o.y_was['cluster']
    assert torch.equal(o.rows_were['average'], o.rows_were['hardest'])
    for c,row in enumerate(o.rows_were['average']): assert (real[z==c]-row).abs().amax(1).min()<1e-5
    want = sum(F.cross_entropy(f@r.T/.05, y) for r in o.rows_were.values())+.3*self_identity_loss(o.f_was.view(-1, 5, o.f_was.shape[1]))
    assert o.loss_was==pytest.approx(want.item(), rel=1e-4)
    for c in y.unique():                                                    # Eq. 6 and 7, after the step, with features from before
        mine = f[y==c]
        assert torch.allclose(o.rows_are['average'][c], F.normalize(.3*o.rows_were['average'][c]+.7*mine.mean(0), dim=0), atol=1e-5)
        moved = F.normalize(.3*o.rows_were['hardest'][c]+.7*mine, dim=1)
        assert (moved-o.rows_are['hardest'][c]).abs().amax(1).min()<1e-5
    rest = [c for c in range(len(o.rows_were['average'])) if c not in y.tolist()]
    assert torch.equal(o.rows_are['average'][rest], o.rows_were['average'][rest])

def test_a_group_is_cut_and_mirrored_alike(copied):
    "Copies that are their source come out of the augmentation like their source"
    learn = learner(copied); train(learn, 1)
    images,s = learn.dls.train.dataset,learn.sync_person_cloud.sampler
    assert images.transform.erase==0 and images.transform.pad==0
    from ccreid.data.samplers import Draw
    for d in s.epoch(0)[:10]:
        a,b = images[d][0],images[Draw(d.row, 0, d.seed, -1)][0]
        assert torch.equal(a, b)
    flips = {d.seed for d in s.epoch(0)}
    assert len(flips)==len(s.epoch(0))//5

def test_the_memory_waits_for_the_step_and_takes_all_pieces(copied):
    moved = []
    class Watch(Callback):
        order = 60
        def before_batch(self): moved.append(len(self.learn.sync_person_cloud.pending))
    learn = learner(copied, [GradientAccumulation(2*30), Watch()], steps=4)
    train(learn, 1)
    assert moved[:4]==[0, 1, 0, 1]
    skipped = learner(copied, steps=1)
    train(skipped, 1); cloud = skipped.sync_person_cloud
    cloud.pending = [(torch.randn(2, 128), torch.tensor([0, 1]))]; before = {k: v.clone() for k,v in cloud.memory.state_dict().items()}
    skipped.step_taken = False; cloud.after_step()
    assert all(torch.equal(v, before[k]) for k,v in cloud.memory.state_dict().items()) and cloud.pending==[]

@pytest.mark.parametrize('kw', [dict(memory='average'), dict(memory='hardest'), dict(memory='each'), dict(memory='instance'), dict(contrast='real'),
    dict(unit=False, kl_temperature=1.), dict(copies=2), dict(copies=0), dict(distance='cosine', eps=.05), dict(alpha=0.)])
def test_every_variant_trains(copied, kw):
    learn = train(learner(copied, **kw), 1)
    size = 1+kw.get('copies', 4)
    assert ('self_identity' in learn.loss_func.terms)==(size>1)
    assert all(p.isfinite().all() for p in learn.model.parameters())
    if kw.get('contrast')=='real': assert learn.history[0]['contrast']>0

def test_real_alone_leaves_copies_out_of_contrast_and_memory(copied):
    class Seen(Callback):
        order = 40
        def after_loss(self):
            (f,at), = self.learn.sync_person_cloud.pending
            assert (at[self.yb[0]['generated'].bool()]==-1).all() and (at[~self.yb[0]['generated'].bool()]>=0).all()
            self.times = getattr(self, 'times', 0)+1
    learn = train(learner(copied, [Seen()], contrast='real'), 1)
    assert learn.seen.times==3

def test_removing_gives_everything_back(copied):
    learn = learner(copied)
    learn.remove_cb(learn.sync_person_cloud)
    assert list(learn.loss_func.terms)==['identity'] and type(learn.dls.train.sampler).__name__=='PKSampler'
    assert learn.dls.train.dataset.transform.erase==.5 and len(learn.dls.train)==len(learn.dls.train.sampler)//6

def test_lacking_copies_are_counted(copied):
    table = copied.samples
    gone = ReIDDataset(copied.name, copied.root, table.drop(table.index[table.variant==3][:5]).reset_index(drop=True))
    with pytest.warns(UserWarning, match='5 of 80 images have fewer than 4 copies|5 of .* images have fewer than 4 copies'): learner(gone)
