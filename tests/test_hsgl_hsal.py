"Hard pairs, the adjusted triplet loss and HSAL against loops written from the equations"
import copy, inspect, itertools, pickle, warnings
from functools import partial
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
import ccreid.compat
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from hypothesis import given, strategies as st
from torch import nn
from ccreid.baselines.cal import CAL
from ccreid.data.batches import Preprocessing, reid_dataloaders
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import ReIDDataset, relabel
from ccreid.hsgl.definitions import hard_negatives, hard_pair_counts, hard_pairs_in, hard_positives
from ccreid.hsgl.hatrip import adjust_distances, hatrip_loss
from ccreid.hsgl.hsal import HSAL, hatrip_term, plot_adjustment
from ccreid.training.checkpoints import Checkpoint
from ccreid.training.learner import Method, reid_learner
from ccreid.training.terms import ReIDLoss, TripletTerm, identity_term, triplet_term
from test_training import PlainIdentity, SmallPairs, Watch, check_accumulation, check_resume, hand_cal, hand_identity, quiet

# --- the equations, pair by pair ---

def is_hard_positive(a, b):
    "Eq. 1 for samples (identity, clothes, camera)"
    if a[0]<0 or a[0]!=b[0]: return False
    return (a[1]>=0 and b[1]>=0 and a[1]!=b[1]) or a[2]!=b[2]

def is_hard_negative(a, b): return a[0]!=b[0] and a[1]>=0 and a[1]==b[1]

def distance(p, q): return (p-q).pow(2).sum().clamp(min=1e-12).sqrt()

def loops(features, samples, alpha, margin):
    "Eq. 6 to 12 anchor by anchor; differentiable"
    def factor(i, j):
        if is_hard_positive(samples[i], samples[j]): return 1+alpha
        return 1-alpha if is_hard_negative(samples[i], samples[j]) else 1.
    total, n = [features.sum()*0, features.sum()*0], range(len(samples))
    for half,scale in enumerate((lambda i,j: 1., factor)):
        anchors = 0
        for a in n:
            positive = [scale(a,j)*distance(features[a], features[j]) for j in n if j!=a and samples[j][0]==samples[a][0]]
            negative = [scale(a,j)*distance(features[a], features[j]) for j in n if samples[j][0]!=samples[a][0]]
            if not positive or not negative: continue
            anchors += 1
            total[half] = total[half] + (max(positive)-min(negative)+margin).clamp(min=0)
        total[half] = total[half]/max(anchors, 1)
    return total[0]+.5*total[1]

def samples_of(labels): return list(zip(*(labels[k].tolist() for k in ('identity','clothes','camera'))))

def columns(samples): return (torch.tensor(c) for c in zip(*samples))

def batches(lowest=0): # few labels, so that every kind of pair is common
    return st.lists(st.tuples(st.integers(lowest,2), st.integers(-1,2), st.integers(-1,1)), min_size=1, max_size=12)

def with_features(samples, seed, dim=3): return torch.randn(len(samples), dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

# --- definitions ---

def test_every_kind_of_pair_once():
    "Both masks on a list that holds each combination of labels, one pair a row: what the sentence of Eq. 1 says of it"
    kinds = [ # two samples (identity, clothes, camera), hard positive?, hard negative?
        ((0,0,0), (0,0,0), False, False), ((0,0,0), (0,1,0), True, False), ((0,0,0), (0,0,1), True, False), ((0,0,0), (0,1,1), True, False),
        ((0,-1,0), (0,1,0), False, False), ((0,-1,0), (0,-1,0), False, False), ((0,-1,0), (0,1,1), True, False), ((0,-1,0), (0,-1,1), True, False),
        ((0,0,-1), (0,0,-1), False, False), ((0,0,-1), (0,0,1), True, False), ((0,0,-1), (0,1,-1), True, False),
        ((0,0,0), (1,0,0), False, True), ((0,0,0), (1,0,1), False, True), ((0,0,0), (1,1,0), False, False), ((0,0,0), (1,1,1), False, False),
        ((0,-1,0), (1,-1,0), False, False), ((0,-1,0), (1,0,0), False, False),
        ((-2,0,0), (-2,1,1), False, False), ((-2,0,0), (-2,0,0), False, False), ((-2,0,0), (1,0,0), False, True)]
    for a,b,positive,negative in kinds:
        identity, clothes, camera = columns([a,b])
        for y,c,v in ((identity, clothes, camera), [x.flip(0) for x in (identity, clothes, camera)]):
            assert hard_positives(y, c, v).tolist()==[[False,positive],[positive,False]], (a, b)
            assert hard_negatives(y, c).tolist()==[[False,negative],[negative,False]], (a, b)

@given(batches(-2))
def test_masks_are_the_definition(samples):
    hp, hn = hard_positives(*columns(samples)), hard_negatives(*list(columns(samples))[:2])
    for (i,a),(j,b) in itertools.product(enumerate(samples), repeat=2):
        assert hp[i,j].item()==(i!=j and is_hard_positive(a, b))
        assert hn[i,j].item()==is_hard_negative(a, b)
    assert hp.dtype==hn.dtype==torch.bool and not hp.diagonal().any() and not hn.diagonal().any()

@given(batches(-2))
def test_counts_of_a_table_are_those_of_the_loops(samples):
    table = pd.DataFrame(samples, columns=['identity','clothes','camera'])
    n = hard_pairs_in(table)
    pairs = [(a,b) for i,a in enumerate(samples) for j,b in enumerate(samples) if i!=j]
    same = [(a,b) for a,b in pairs if a[0]==b[0]>=0]
    assert n==dict(images=len(samples), identities=len({a[0] for a in samples if a[0]>=0}), positive=len(same),
        hard_positive=sum(is_hard_positive(a, b) for a,b in pairs), hard_negative=sum(is_hard_negative(a, b) for a,b in pairs),
        other_clothes=sum(min(a[1],b[1])>=0 and a[1]!=b[1] for a,b in same), other_camera=sum(a[2]!=b[2] for a,b in same),
        negative=sum(a[0]!=b[0] for a,b in pairs))

def test_counts_of_a_large_table_need_no_matrix():
    rng = np.random.default_rng(0)
    n = hard_pairs_in(dict(identity=rng.integers(0,900,200_000), clothes=np.zeros(200_000, int), camera=np.zeros(200_000, int)))
    assert n['hard_negative']==n['negative']==200_000**2-n['positive']-200_000 and n['hard_positive']==0

@given(st.lists(st.integers(2,5), min_size=1, max_size=4), st.integers(0,3), st.integers(0,2), st.randoms(use_true_random=False))
def test_eq_3_against_the_table_it_speaks_of(images, garments, selected, rng):
    "Originals in clothes of their own; the new images keep their camera. N_HN is exact, N_HP counts pairs of one garment and camera too many"
    original = [[(k, 1000*k+rng.randrange(3), rng.randrange(2)) for _ in range(n)] for k,n in enumerate(images)]
    new = [(y, 100_000+g, v) for person in original for y,_,v in person[:selected] for g in range(garments)]
    everything = [s for person in original for s in person]
    got = hard_pair_counts(images, garments, selected)
    partners = lambda test: sum(test(a, b) for i,a in enumerate(new) for b in everything+new[:i]+new[i+1:])
    alike = sum(a==b for i,a in enumerate(new) for b in new[:i]+new[i+1:])
    assert got==(partners(is_hard_positive)+alike, partners(is_hard_negative))
    assert all(isinstance(x, int) for x in got)

def test_eq_3_wants_no_negative_numbers():
    with pytest.raises(ValueError, match='not be negative'): hard_pair_counts([3,-1], 2, 2)

@pytest.mark.parametrize('identity,clothes,camera,says', [([0,1],[0],[0,1],'one length'), ([[0,1]],[[0,1]],[[0,1]],'one label a sample')])
def test_labels_of_another_shape_are_refused(identity, clothes, camera, says):
    with pytest.raises(ValueError, match=says): hard_positives(*map(torch.tensor, (identity, clothes, camera)))
    with pytest.raises(ValueError, match=says): hard_negatives(*map(torch.tensor, (identity, clothes)))

def test_features_and_labels_go_together():
    y = torch.tensor([0,0,1])
    with pytest.raises(ValueError, match='2 features and 3 labels'): hatrip_loss(torch.zeros(2,4), y, y, y)
    with pytest.raises(ValueError, match='one length: identity 3, clothes 2, camera 3'): hatrip_loss(torch.zeros(3,4), y, y[:2], y)
    bad = torch.tensor([[0.],[float('nan')],[1.]])
    assert hatrip_loss(bad, y, y, y).isnan() # is not hidden

# --- the loss ---

@given(batches(), st.sampled_from([0.,.05,.5]), st.integers(0,10**6))
def test_adjusted_distances(samples, alpha, seed):
    f = with_features(samples, seed)
    d = torch.cdist(f, f)
    hp, hn = hard_positives(*columns(samples)), hard_negatives(*list(columns(samples))[:2])
    got = adjust_distances(d, hp, hn, alpha)
    for (i,a),(j,b) in itertools.product(enumerate(samples), repeat=2):
        factor = 1+alpha if i!=j and is_hard_positive(a, b) else 1-alpha if is_hard_negative(a, b) else 1.
        assert got[i,j].item()==pytest.approx(factor*d[i,j].item(), abs=1e-12)

@given(batches(), st.sampled_from([0.,.05,.5]), st.sampled_from([0.,.3,2.]), st.integers(0,10**6))
def test_loss_is_the_equation(samples, alpha, margin, seed):
    f = with_features(samples, seed)
    got = hatrip_loss(f, *columns(samples), alpha=alpha, margin=margin)
    assert got.shape==() and got.item()==pytest.approx(loops(f, samples, alpha, margin).item(), rel=1e-6, abs=1e-6)

@given(batches(), st.sampled_from([.05,.5]), st.sampled_from([0.,2.]), st.integers(0,10**6))
def test_gradient_is_that_of_the_loops(samples, alpha, margin, seed):
    f = with_features(samples, seed).requires_grad_()
    got, = torch.autograd.grad(hatrip_loss(f, *columns(samples), alpha=alpha, margin=margin), f)
    want, = torch.autograd.grad(loops(f, samples, alpha, margin), f)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)

def test_gradient_by_differences():
    samples = [(0,0,0),(0,1,0),(0,0,1),(1,1,0),(1,2,1),(2,2,-1),(2,-1,-1),(3,0,0)]
    f = with_features(samples, 3).requires_grad_()
    labels = list(columns(samples))
    assert hatrip_loss(f, *labels, alpha=.3, margin=.5)>0
    assert torch.autograd.gradcheck(lambda x: hatrip_loss(x, *labels, alpha=.3, margin=.5), f)

@given(batches(), st.integers(0,10**6))
def test_order_of_the_batch_does_not_matter(samples, seed):
    f, labels, order = with_features(samples, seed), list(columns(samples)), torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    a, b = hatrip_loss(f, *labels, alpha=.2, margin=.1), hatrip_loss(f[order], *(l[order] for l in labels), alpha=.2, margin=.1)
    assert a.item()==pytest.approx(b.item(), abs=1e-9)

def test_an_identity_that_comes_twice_does_not_shift_the_rows():
    "64 images, 8 of each identity but one that fills two places: cutting the matrix into equal rows gives another number here"
    y = torch.arange(8).repeat_interleave(8); y[y==7] = 6
    samples = list(zip(y.tolist(), (y*3+torch.arange(64)%2).tolist(), (torch.arange(64)%3).tolist()))
    f = with_features(samples, 0, 5)
    assert hatrip_loss(f, *columns(samples)).item()==pytest.approx(loops(f, samples, .05, 0.).item(), rel=1e-6)
    d, same = torch.cdist(f, f), y[:,None]==y[None]
    assert same.sum()%64==0 # the count is divisible, so nothing fails
    assert not torch.equal(d[same].view(64, -1).amax(1), d.masked_fill(~same, 0).amax(1))

def test_the_hardest_pair_is_mined_again_after_adjusting():
    f = torch.tensor([[0.],[4.],[7.],[8.],[12.]])
    got = hatrip_loss(f, torch.tensor([0,0,0,1,1]), torch.tensor([0,0,1,1,2]), torch.zeros(5), alpha=.5)
    assert got.item()==pytest.approx(3.75) # 3.70 with the pairs of the plain distances

def test_features_are_taken_as_they_are():
    samples = [(0,0,0),(0,1,0),(1,1,0),(1,2,0)]
    f = with_features(samples, 0)
    assert hatrip_loss(10*f, *columns(samples)).item()==pytest.approx(10*hatrip_loss(f, *columns(samples)).item())

def test_nothing_to_compare_costs_nothing_and_has_a_gradient():
    for samples in ([(0,0,0)]*3, [(0,0,0),(1,0,0),(2,0,0)], [(0,0,0)]):
        f = with_features(samples, 0).requires_grad_()
        loss = hatrip_loss(f, *columns(samples), margin=1.)
        assert loss.item()==0 and torch.equal(torch.autograd.grad(loss, f)[0], torch.zeros_like(f))
    f = torch.zeros(4, 2, requires_grad=True) # all alike
    hatrip_loss(f, torch.tensor([0,0,1,1]), torch.arange(4), torch.zeros(4), margin=1.).backward()
    assert f.grad.isfinite().all()

def test_the_device_is_asked_for_no_value():
    "Fake tensors have no values: whatever would wait for the device fails"
    from torch._subclasses.fake_tensor import FakeTensorMode
    with FakeTensorMode():
        f = torch.randn(8, 4, requires_grad=True)
        labels = [torch.zeros(8, dtype=torch.long) for _ in range(3)]
        hatrip_loss(f, *labels).backward()
        assert f.grad.shape==f.shape

def test_names_and_defaults_are_those_that_are_promised():
    def arguments(f): return [(n, p.default) for n,p in inspect.signature(f).parameters.items()]
    none = inspect.Parameter.empty
    assert arguments(hard_positives)==[('identity',none), ('clothes',none), ('camera',none)] and arguments(hard_negatives)==[('identity',none), ('clothes',none)]
    assert arguments(hard_pair_counts)==[('images_per_identity',none), ('garments',none), ('selected',none)]
    from ccreid.hsgl.hsal import adjust_distances, hatrip_loss # offered beside the callback
    assert arguments(adjust_distances)==[('distances',none), ('hard_positive',none), ('hard_negative',none), ('alpha',none)]
    assert arguments(hatrip_loss)==[('features',none), ('identity',none), ('clothes',none), ('camera',none), ('alpha',.05), ('margin',0.)]
    assert arguments(HSAL.__init__)[1:4]==[('alpha',.05), ('weight',None), ('margin',None)]
    for h in HSAL(), HSAL(alpha=None, weight=None, margin=None):   # None is: not given
        assert (h.alpha, h.weight, h.margin, h.rule, h.start_epoch)==(.05, None, None, 'paper', 0)
        assert (h.weight_of(0), h.term().margin, h.term().alpha)==(.1, 0., .05)

@pytest.mark.parametrize('alpha', [-.1, 1., 1.05])
def test_alpha_is_a_share(alpha):
    with pytest.raises(ValueError, match='alpha'): hatrip_loss(torch.zeros(2,2), torch.zeros(2), torch.zeros(2), torch.zeros(2), alpha=alpha)
    with pytest.raises(ValueError, match='alpha'): HSAL(alpha=alpha)

# --- on a ReIDLearner ---

@pytest.fixture(scope='session')
def shared(tmp_path_factory):
    "Every second training image of a person counts as generated, in one of two garments that all wear; some clothes are unknown"
    made = MannequinWorld(identities=(6,0,4), outfits=2, cameras=3, images=2, size=(64,32), seed=3).write(tmp_path_factory.mktemp('world')/'w', layout='prcc')
    t = made.samples.copy()
    k = t.groupby(['split','identity']).cumcount()
    generated = (t.split=='train') & (k%2==1)
    t['generated_by'] = [('test' if m else None) for m in generated]
    t.loc[generated, 'clothes'] = 1000+(k[generated]//2)%2
    t.loc[(t.split=='train') & (k%5==2), 'clothes'] = -1
    return ReIDDataset(made.name, made.root, relabel(t))

def loaders(dataset, identities=3, images=2): return reid_dataloaders(dataset, Preprocessing((64,32)), identities, images, num_workers=0, device='cpu')

def both(dataset, cbs=(), alpha=.2, weight=.3, **kwargs):
    return reid_learner(loaders(dataset), 'resnet_mini', [CAL(start_epoch=0), HSAL(alpha, weight), SmallPairs(), PlainIdentity(), Watch(), *cbs], **kwargs)

def hand_hsal(pred, labels, alpha, margin=0.): return loops(pred['features'].double(), samples_of(labels), alpha, margin).item()

def check_steps(learn, alpha=.2, weight=.3):
    assert learn.watch.steps
    for _,pred,labels,values,loss,classifier in learn.watch.steps:
        identity, cal = hand_identity(pred, labels), hand_cal(pred, labels, classifier, learn.dls.clothes_of_identity)
        hsal = hand_hsal(pred, labels, alpha)
        assert values['cal'].item()==pytest.approx(cal, rel=1e-4)
        assert values['hsal'].item()==pytest.approx(hsal, rel=1e-4)
        assert loss==pytest.approx(2*identity+cal+weight*hsal, rel=1e-4)

def test_cal_and_hsal_sum_up_as_worked_out_by_hand(shared):
    learn = quiet(both(shared), 1)
    check_steps(learn)
    assert list(learn.loss_func.terms)==['identity','cal','hsal']
    kinds = [samples_of(s[2]) for s in learn.watch.steps]
    assert any(is_hard_negative(a, b) for k in kinds for a in k for b in k), 'the batches must hold hard negatives'
    assert any(c<0 for k in kinds for _,c,_ in k), 'and unknown clothes'
    plain = [hand_hsal(s[1], s[2], 0.) for s in learn.watch.steps]
    assert all(p<s[3]['hsal'].item() for p,s in zip(plain, learn.watch.steps)), 'and the adjustment must matter'

def test_order_of_attaching_does_not_matter(shared):
    def run(*cbs): return [s[4] for s in quiet(reid_learner(loaders(shared), 'resnet_mini', cbs), 1).watch.steps]
    a, b = run(CAL(0), HSAL(), SmallPairs(), PlainIdentity(), Watch()), run(HSAL(), PlainIdentity(), SmallPairs(), Watch(), CAL(0))
    assert a==pytest.approx(b, rel=1e-5)

def test_gradient_accumulation_gives_the_mean_of_the_sums(shared):
    "The loops' gradient for HSAL"
    check_steps(check_accumulation(partial(both, shared), lambda out, labels: .3*loops(out['features'], samples_of(labels), .2, 0.), rtol=1e-3, atol=2e-5))

def test_resumed_run_takes_the_same_steps(shared, tmp_path):
    check_steps(check_resume(partial(both, shared), tmp_path/'c.pth'))
    with pytest.raises(ValueError, match='other settings of HSAL'): quiet(both(shared, [Checkpoint(tmp_path/'c.pth')], alpha=.1), 3)

class TripletBaseline(Method):
    "As FIRe²: a triplet loss from its second stage on"
    def attach(self, learn): learn.add_term('triplet', triplet_term(.3, 'euclidean'), lambda e: .8*(e>=1))

class FiveTriplets(Method):
    def attach(self, learn):
        for i in range(1, 6): learn.add_term(f'triplet_{i}', self.one(i))
    def one(self, i): return Scaled(i, 'pooled' if i<5 else 'features')

class Scaled:
    "A term of a user's own, which says what it was made with"
    margin = .3
    def __init__(self, factor, features): self.factor,self.features = factor,features
    def __call__(self, output, labels):
        return triplet_term(self.margin, 'euclidean')(dict(features=self.factor*output[self.features]), labels)

def test_replaces_the_triplet_of_a_baseline_and_gives_it_back(shared):
    learn = reid_learner(loaders(shared), 'resnet_mini', [TripletBaseline()])
    old = dict(learn.loss_func.terms)
    learn.add_cb(HSAL())
    assert list(learn.loss_func.terms)==['identity','triplet']
    seen = []
    class See(Callback):
        def after_loss(self):
            if self.training: seen.append((self.epoch, self.pred['features'].detach().clone(), self.yb[0], dict(self.loss_func.values), self.loss.item()))
    learn.add_cb(See()); quiet(learn, 2)
    for epoch,f,labels,values,loss in seen:
        assert ('triplet' in values)==(epoch>=1)
        if epoch==0: continue
        want = loops(f.double(), samples_of(labels), .05, .3).item()
        assert values['triplet'].item()==pytest.approx(want, rel=1e-4)
        assert loss==pytest.approx(values['identity'].item()+.8*want, rel=1e-4)
    learn.remove_cb(learn.hsal)
    assert learn.loss_func.terms==old

def test_replaces_all_five_each_with_its_own_features(shared):
    learn = reid_learner(loaders(shared), 'resnet_mini', [FiveTriplets(), HSAL()])
    assert learn.hsal.replaced==[f'triplet_{i}' for i in range(1, 6)] and 'hsal' not in learn.loss_func.terms
    x, labels = learn.dls.train.one_batch()
    with torch.no_grad(): out = learn.model(x)
    learn.loss_func(out, labels)
    for i in range(1, 6):
        want = loops(out['pooled' if i<5 else 'features'].double(), samples_of(labels), .05, .3).item()
        assert learn.loss_func.values[f'triplet_{i}'].item()==pytest.approx(want, rel=1e-4)

def five_images():
    "Features on a line and their labels: (output with four kinds of features, labels)"
    f = torch.tensor([[0.,0],[4,0],[7,0],[8,0],[12,0]])
    labels = dict(identity=torch.tensor([0,0,0,1,1]), clothes=torch.tensor([0,0,1,1,2]), camera=torch.zeros(5))
    return dict(features=f, features_3=2*f, salient=3*f, content=4*f), labels

@pytest.mark.parametrize('given,expected', [(None, (1,3,2)), ('content', (4,4,4)), (dict(triplet_3='content'), (1,3,4)), (lambda output: output['salient'], (3,3,3))])
def test_features_of_a_replaced_term(shared, given, expected):
    "As the term was made; by the term's name where nothing says; what the user writes down counts, for all or for one"
    def plain(output, labels): return output['features'].sum()
    loss = ReIDLoss(identity=identity_term(), triplet=triplet_term(.3, 'euclidean'), triplet_2=partial(lambda output,labels,margin,features: 0., margin=.3, features='salient'), triplet_3=plain)
    learn = reid_learner(loaders(shared), 'resnet_mini', [HSAL(alpha=.5, features=given)], loss_func=loss)
    assert learn.hsal.replaced==['triplet','triplet_2','triplet_3']
    output, labels = five_images()
    for name,factor in zip(learn.hsal.replaced, expected):
        want = loops(factor*output['features'], samples_of(labels), .5, .3).item()
        assert loss.terms[name][0](output, labels).item()==pytest.approx(want), name

def closure(margin, features): return lambda output, labels: output[features].sum()*margin

@pytest.mark.parametrize('term,margin,features', [
    (TripletTerm(.7, 'euclidean', 'pooled'), .7, 'pooled'), (triplet_term(.4), .4, 'features'), (Scaled(2, 'content'), .3, 'content'),
    (hatrip_term(margin=.2, features='salient'), .2, 'salient'), (partial(Scaled(2, 'content'), labels=None), .3, 'content'),
    (partial(closure, margin=.5, features='a'), .5, 'a'), (partial(Scaled(2, 'content'), margin=.6), .6, 'content'),
    (closure(.9, 'content'), .3, 'features_4'), (lambda output, labels: 0., .3, 'features_4')])
def test_terms_are_asked_for_margin_and_features_and_not_looked_into(term, margin, features):
    new = HSAL(alpha=.1, rule='released').term('triplet_4', term)
    assert (new.alpha,new.margin,new.features,new.rule)==(.1, margin, features, 'released')
    new = HSAL(margin=0., features='mine').term('triplet_4', term)              # written down: counts
    assert (new.margin,new.features)==(0., 'mine')

def test_a_replaced_term_works_as_before_until_the_start(shared):
    loss = ReIDLoss(identity=identity_term(), triplet=(triplet_term(.4, 'euclidean'), .7))
    reid_learner(loaders(shared), 'resnet_mini', [HSAL(alpha=.5, start_epoch=2, weight=5.)], loss_func=loss)
    output, labels = five_images()
    old = triplet_term(.4, 'euclidean')(output, labels).item()
    new = loops(output['features'], samples_of(labels), .5, .4).item()
    assert new>old
    for loss.epoch,value,weight in ((0,old,.7), (1,old,.7), (2,new,5.), (9,new,5.)):
        assert loss.terms['triplet'][0](output, labels).item()==pytest.approx(value) and loss.weight('triplet')==weight

def test_a_baseline_attached_later_is_found_before_the_fit(shared):
    def run(*cbs):
        learn = quiet(reid_learner(loaders(shared), 'resnet_mini', cbs), 2)
        return learn, learn.history
    (a, ha), (b, hb) = run(TripletBaseline(), HSAL()), run(HSAL(), TripletBaseline())
    assert list(a.loss_func.terms)==list(b.loss_func.terms)==['identity','triplet'] and ha==hb
    b.remove_cb(b.triplet_baseline) # the baseline goes first: nothing of it stays
    quiet(b, 1)
    assert list(b.loss_func.terms)==['identity','hsal']
    b.remove_cb(b.hsal)
    assert list(b.loss_func.terms)==['identity']

def test_what_the_user_writes_down_counts(shared):
    learn = reid_learner(loaders(shared), 'resnet_mini', [TripletBaseline(), HSAL(weight=.1, margin=0.)])
    assert [learn.loss_func.terms['triplet'][1](e) for e in (0,1)]==[.1,.1]
    x, labels = learn.dls.train.one_batch()
    with torch.no_grad(): out = learn.model(x)
    assert learn.loss_func.terms['triplet'][0](out, labels).item()==pytest.approx(loops(out['features'].double(), samples_of(labels), .05, 0.).item(), rel=1e-4)
    again = pickle.loads(pickle.dumps(HSAL(margin=1.)))
    assert (again.margin,again.weight)==(1.,None)

def test_released_rule_reads_pseudo_clusters_that_a_baseline_writes(shared):
    class Clusters(Method):
        "Pseudo-clusters as FIRe² has them: within one person"
        def before_batch(self):
            if self.training: self.yb[0]['cluster'] = 10*self.yb[0]['identity']+self.yb[0]['row']%2
    seen = []
    class See(Callback):
        def after_loss(self):
            if self.training: seen.append((self.pred['features'].detach().clone(), self.yb[0], self.loss_func.values['hsal'].item()))
    for rule in ('released','paper'):
        seen.clear()
        quiet(reid_learner(loaders(shared), 'resnet_mini', [Clusters(), HSAL(alpha=.3, rule=rule), See()]), 1)
        for f,labels,value in seen:
            clothes = labels['cluster' if rule=='released' else 'clothes']
            assert value==pytest.approx(loops(f.double(), samples_of(dict(labels, clothes=clothes)), .3, 0.).item(), rel=1e-4)

def test_what_can_never_become_active_says_so(shared):
    bare = ReIDDataset('bare', shared.root, shared.samples.assign(clothes=-1, camera=-1))
    for cb,data,says in ((HSAL(weight=0.), shared, 'weight is 0'), (HSAL(weight=lambda e: float(e>5)), shared, 'weight is 0'),
                         (HSAL(start_epoch=2), shared, 'starts at epoch 2'), (HSAL(), bare, 'no two training images')):
        with pytest.warns(UserWarning, match=says) as said: quiet(reid_learner(loaders(data), 'resnet_mini', cb), 1)
        assert len(said)==1
    class NeverTriplet(Method):
        def attach(self, learn): learn.add_term('triplet', triplet_term(), 0.)
    with pytest.warns(UserWarning, match='weight is 0'): quiet(reid_learner(loaders(shared), 'resnet_mini', [NeverTriplet(), HSAL()]), 1)
    class EarlyTriplet(Method):
        def attach(self, learn): learn.add_term('triplet', triplet_term(), lambda e: float(e<1))
    with pytest.warns(UserWarning, match='weight is 0'): quiet(reid_learner(loaders(shared), 'resnet_mini', [EarlyTriplet(), HSAL(start_epoch=1)]), 2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        quiet(reid_learner(loaders(shared), 'resnet_mini', HSAL(start_epoch=1)), 2)

# --- on a plain learner ---

class Tiny(nn.Module):
    def __init__(self, kind=dict):
        super().__init__()
        self.kind, self.body, self.head = kind, nn.Linear(6,4), nn.Linear(4,3)
    def forward(self, x):
        f = self.body(x)
        return self.kind(features=f, logits=self.head(f))

class Classified:
    def __init__(self, features, logits): self.features, self.logits = features, logits

def logits_of(pred): return pred['logits'] if isinstance(pred, dict) else pred.logits
def plain_loss(pred, labels): return nn.functional.cross_entropy(logits_of(pred).float(), labels['identity'])

def plain_learner(kind=dict, bs=8, cbs=(), **kwargs):
    torch.manual_seed(0)
    rows = [(torch.randn(6), dict(identity=i%3, clothes=i%5-1, camera=i%2)) for i in range(16)]
    dls = DataLoaders(DataLoader(rows, bs=bs), DataLoader(rows, bs=bs), device='cpu')
    return Learner(dls, Tiny(kind), loss_func=plain_loss, cbs=cbs, opt_func=partial(OptimWrapper, opt=torch.optim.SGD), **kwargs)

@pytest.mark.parametrize('kind', [dict, SimpleNamespace, Classified])
def test_a_plain_learner_is_enough(kind):
    seen = []
    class See(Callback):
        order = 50
        def after_loss(self):
            p = self.pred
            seen.append((self.training, (p['features'] if isinstance(p, dict) else p.features).detach(), logits_of(p).detach(), self.yb[0], self.loss_grad.item(), self.loss.item()))
    quiet(plain_learner(kind, cbs=[HSAL(alpha=.2, weight=.7, margin=.1), See()]), 1, .1)
    assert [s[0] for s in seen]==[True]*2+[False]*2
    for training,f,z,labels,grad,loss in seen:
        want = nn.functional.cross_entropy(z, labels['identity']).item()
        if training: want += .7*loops(f.double(), samples_of(labels), .2, .1).item()
        assert grad==loss==pytest.approx(want, rel=1e-5)

def test_accumulation_on_a_plain_learner():
    whole, parts = (quiet(plain_learner(bs=8, cbs=[HSAL(weight=.7), *more]), 1, .1) for more in ((), [GradientAccumulation(16)]))
    model = plain_learner().model
    grads = [torch.zeros_like(p) for p in model.parameters()]
    for x,labels in plain_learner().dls.train:
        out = model(x)
        total = plain_loss(out, labels)+.7*loops(out['features'], samples_of(labels), .05, 0.)
        for g,d in zip(grads, torch.autograd.grad(total, list(model.parameters()))): g += d/2
    for p,g,q in zip(model.parameters(), grads, parts.model.parameters()): torch.testing.assert_close(p-.1*g, q, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(whole.model.head.weight, parts.model.head.weight)

def test_mixed_precision_leaves_the_loss_in_32_bits():
    seen = []
    class Half(Callback):
        "What fastai's MixedPrecision does, on a CPU"
        order = 10
        def before_batch(self): self.cast = torch.autocast('cpu', torch.bfloat16); self.cast.__enter__()
        def after_loss(self): self.cast.__exit__(None, None, None); seen.append((self.training, self.pred['features'].detach(), self.yb[0], self.pred, self.loss_grad))
    quiet(plain_learner(cbs=[HSAL(weight=1.), Half()]), 1, .1)
    for training,f,labels,pred,grad in seen:
        assert f.dtype==torch.bfloat16
        if not training: continue
        want = plain_loss({k: v.detach() for k,v in pred.items()}, labels).item()+loops(f.double(), samples_of(labels), .05, 0.).item()
        assert grad.dtype==torch.float32 and grad.item()==pytest.approx(want, rel=1e-4)

def test_a_plain_learner_without_features_or_labels_is_told():
    with pytest.raises(ValueError, match="'features' of the model's output, which has logits"):
        quiet(plain_learner(lambda features, logits: dict(logits=logits), cbs=HSAL()), 1)
    learn = plain_learner(cbs=HSAL())
    learn.dls = DataLoaders(*[DataLoader([(torch.randn(6), dict(identity=i%2, clothes=0)) for i in range(8)], bs=4)]*2, device='cpu')
    with pytest.raises(ValueError, match="'camera' of the labels, which has identity, clothes"): quiet(learn, 1)
    with pytest.warns(UserWarning, match='weight is 0'): quiet(plain_learner(cbs=HSAL(start_epoch=3)), 1)

def test_plot_shows_each_kind_once():
    import matplotlib.pyplot as plt
    samples = [(0,0,0),(0,0,0),(0,1,0),(1,1,0),(1,2,1),(1,2,1)]
    fig = plot_adjustment(with_features(samples, 0), *columns(samples))
    names = [t.get_text() for t in fig.axes[0].get_legend().get_texts()]
    assert names==['easy positive: 2','hard positive: 4','easy negative: 8','hard negative: 1']
    plt.close(fig)
