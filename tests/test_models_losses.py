"Losses against loops written from their definitions"
import math
import pytest, torch
from torch import Tensor
from hypothesis import given, settings, strategies as st
from ccreid.models.losses import batch_hard_triplet, cross_entropy, hardest_pairs, pairwise_distances

def loop_triplet(d, ids, margin):
    "The definition, one anchor at a time, on a matrix with gradient"
    terms = []
    for a in range(len(ids)):
        pos = [d[a,j] for j in range(len(ids)) if j!=a and ids[j]==ids[a]]
        neg = [d[a,j] for j in range(len(ids)) if ids[j]!=ids[a]]
        if not pos or not neg: continue
        p,n = max(pos, key=Tensor.item),min(neg, key=Tensor.item)
        h = p-n+margin
        terms.append(h if h>0 else h*0)
    return sum(terms)/len(terms) if terms else d.sum()*0

batches = st.integers(0, 10_000).flatmap(lambda s: st.tuples(
    st.just(s), st.lists(st.integers(0, 4), min_size=1, max_size=14), st.sampled_from([0., .3, 2.])))

@settings(max_examples=60, deadline=None)
@given(batches)
def test_triplet_and_gradient_equal_the_loop(batch):
    seed,ids,margin = batch
    ids = torch.tensor(ids)
    d = torch.rand(len(ids), len(ids), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    a,b = d.clone().requires_grad_(),d.clone().requires_grad_()
    ours,loop = batch_hard_triplet(a, ids, margin),loop_triplet(b, ids, margin)
    torch.testing.assert_close(ours, loop)
    ours.backward(); loop.backward()
    torch.testing.assert_close(a.grad, b.grad)

def test_triplet_gradient_to_features_equals_the_loop():
    g = torch.Generator().manual_seed(3)
    f = torch.randn(12, 5, generator=g, dtype=torch.float64)
    ids = torch.tensor([0,0,0,0,1,1,1,2,2,3,3,4])
    a,b = f.clone().requires_grad_(),f.clone().requires_grad_()
    batch_hard_triplet(pairwise_distances(a), ids, .3).backward()
    d = torch.stack([torch.stack([((x-y).pow(2).sum()+1e-300).sqrt() for y in b]) for x in b])
    loop_triplet(d, ids, .3).backward()
    torch.testing.assert_close(a.grad, b.grad)

def test_anchor_itself_is_no_positive_and_changes_nothing_when_others_are_there():
    "Counting the anchor, as released code does, gives the same when every identity has two images"
    f = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(8)//2
    d = pairwise_distances(f)
    same = ids[:,None]==ids[None]
    released = (d.masked_fill(~same, -math.inf).amax(1) - d.masked_fill(same, math.inf).amin(1) + .3).clamp(min=0).mean()
    torch.testing.assert_close(batch_hard_triplet(d, ids, .3), released)

@pytest.mark.parametrize('ids', [[0,1,2,3], [5,5,5,5], [7]])
def test_no_anchor_is_zero_with_a_gradient_of_zero(ids):
    f = torch.randn(len(ids), 3, requires_grad=True)
    loss = batch_hard_triplet(pairwise_distances(f), torch.tensor(ids), .3)
    assert loss.item()==0
    loss.backward()
    assert (f.grad==0).all()

def test_duplicate_images_give_finite_gradients():
    f = torch.ones(6, 4, requires_grad=True)
    batch_hard_triplet(pairwise_distances(f), torch.tensor([0,0,0,1,1,1]), .3).backward()
    assert f.grad.isfinite().all()
    c = torch.zeros(4, 4, requires_grad=True)      # zero features have no direction
    batch_hard_triplet(pairwise_distances(c, metric='cosine'), torch.tensor([0,0,1,1]), .3).backward()
    assert c.grad.isfinite().all()

def test_hardest_pairs_marks_incomplete_anchors():
    far,near,valid = hardest_pairs(torch.rand(3, 3), torch.tensor([0,0,1]))
    assert valid.tolist()==[True,True,False] and far[2]==-math.inf and near[2].isfinite()
    far,near,valid = hardest_pairs(torch.rand(2, 2), torch.tensor([4,4]))
    assert not valid.any() and (near==math.inf).all()

def test_nan_is_not_hidden():
    d = torch.rand(4, 4)
    d[0,1] = math.nan
    assert batch_hard_triplet(d, torch.tensor([0,0,1,1]), .3).isnan()

def test_triplet_is_independent_of_order():
    g = torch.Generator().manual_seed(1)
    f,ids,order = torch.randn(9, 3, generator=g),torch.tensor([0,0,0,1,1,2,2,2,3]),torch.randperm(9, generator=g)
    a = batch_hard_triplet(pairwise_distances(f), ids, .5)
    torch.testing.assert_close(a, batch_hard_triplet(pairwise_distances(f[order]), ids[order], .5))

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(0, 1000))
def test_distances_equal_the_loop(m, n, dim, seed):
    g = torch.Generator().manual_seed(seed)
    a,b = torch.randn(m, dim, generator=g, dtype=torch.float64),torch.randn(n, dim, generator=g, dtype=torch.float64)
    euclid,cosine = pairwise_distances(a, b),pairwise_distances(a, b, metric='cosine')
    for i in range(m):
        for j in range(n):
            e = math.sqrt(sum((x-y)**2 for x,y in zip(a[i].tolist(), b[j].tolist())))
            dot = sum(x*y for x,y in zip(a[i].tolist(), b[j].tolist()))
            c = 1 - dot/math.sqrt(sum(x*x for x in a[i].tolist())*sum(y*y for y in b[j].tolist()))
            assert abs(euclid[i,j].item()-max(e, 1e-6))<1e-6 and abs(cosine[i,j].item()-c)<1e-9

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(2, 7), st.sampled_from([0., .1, .5, 1.]), st.integers(0, 1000))
def test_cross_entropy_equals_the_sum(n, classes, smoothing, seed):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, classes, generator=g, dtype=torch.float64)
    y = torch.randint(classes, (n,), generator=g)
    total = 0.
    for i in range(n):
        norm = math.log(sum(math.exp(o) for o in z[i].tolist()))
        for c in range(classes):
            q = (1-smoothing)*(c==y[i].item()) + smoothing/classes
            total -= q*(z[i,c].item()-norm)
    assert abs(cross_entropy(z, y, smoothing).item()-total/n)<1e-9

def test_cross_entropy_gradient_is_probability_minus_target():
    z = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0,1,2,3,0])
    cross_entropy(z, y).backward()
    q = .9*torch.nn.functional.one_hot(y, 4) + .1/4
    torch.testing.assert_close(z.grad, (z.detach().softmax(1)-q)/5)

def test_empty_batch_has_a_gradient():
    z = torch.zeros(0, 4, requires_grad=True)
    cross_entropy(z, torch.zeros(0, dtype=torch.long)).backward()
    assert z.grad.shape==(0,4)

def test_bad_input():
    with pytest.raises(ValueError, match='square distance matrix'): batch_hard_triplet(torch.rand(3,4), torch.zeros(3), .3)
    with pytest.raises(ValueError, match='metric must be'): pairwise_distances(torch.rand(2,2), metric='l1')
    with pytest.raises(IndexError): cross_entropy(torch.zeros(1,3), torch.tensor([3]))
