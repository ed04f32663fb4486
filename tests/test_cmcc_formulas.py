"CMCC's equations 1 to 13 against loops written from the paper, and what must hold beyond the examples"
import copy, math
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from ccreid.cmcc.disentangle import DualBranch, orthogonality_loss
from ccreid.cmcc.prototypes import ModalityPrototypes, prototype_loss

def sigma(x): return 1/(1+math.exp(-x))

# --- Eq. 1 to 3

def masks_in_loops(branch, m):
    "Eq. 1 and 2, place by place"
    B,C,H,W = m.shape
    w,k = branch.attention.weight[0].tolist(),branch.attention.kernel_size[0]//2
    lam,identity,clothes = sigma(branch.raw.item()),torch.zeros(B,1,H,W),torch.zeros(B,1,H,W)
    for b in range(B):
        seen = [[[max(m[b,:,y,x].tolist()) for x in range(W)] for y in range(H)], [[sum(m[b,:,y,x].tolist())/C for x in range(W)] for y in range(H)]]
        for y in range(H):
            for x in range(W):
                z = sum(w[s][i+k][j+k]*seen[s][y+i][x+j] for s in (0,1) for i in range(-k,k+1) for j in range(-k,k+1) if 0<=y+i<H and 0<=x+j<W)
                clothes[b,0,y,x] = sigma(z)
                identity[b,0,y,x] = 1-lam*sigma(z)
    return identity, clothes

@pytest.mark.parametrize('pool,kernel,raw', [('avg',3,0.), ('max+avg',1,1.3), ('max+avg',3,-2.), ('avg',7,.4)])
def test_masks_and_features_are_the_equations(pool, kernel, raw):
    torch.manual_seed(kernel)
    branch = DualBranch(3, pool, kernel).eval()
    with torch.no_grad(): branch.raw.fill_(raw)
    m = torch.randn(2, 3, 4, 3)
    f,fc,identity,clothes = branch(m)
    expected = masks_in_loops(branch, m)
    assert torch.allclose(identity, expected[0], atol=1e-5) and torch.allclose(clothes, expected[1], atol=1e-5)
    for got,mask,neck in (f, identity, branch.neck),(fc, clothes, branch.clothes_neck):
        for b in range(2):
            masked = [[[mask[b,0,y,x].item()*m[b,c,y,x].item() for x in range(3)] for y in range(4)] for c in range(3)]
            flat = [[v for row in c for v in row] for c in masked]
            pooled = [sum(v)/12 for v in flat] if pool=='avg' else [max(v) for v in flat]+[sum(v)/12 for v in flat]
            scaled = [p/math.sqrt(1+neck.eps)*w for p,w in zip(pooled, neck.weight.tolist())] # statistics of a new BatchNorm: 0 and 1
            assert got[b].tolist()==pytest.approx(scaled, abs=1e-5)

@settings(max_examples=15)
@given(st.integers(0,10**6), st.sampled_from(['avg','max+avg']), st.booleans())
def test_without_suppression_the_identity_feature_is_plain_pooling(seed, pool, training):
    torch.manual_seed(seed)
    branch = DualBranch(4, pool, 3).train(training)
    with torch.no_grad(): branch.raw.fill_(-torch.inf)
    m = torch.randn(3, 4, 3, 2)
    plain = copy.deepcopy(branch)
    assert torch.equal(branch(m)[0], plain.neck(plain.pool(m)))

@given(st.integers(0,10**6), st.floats(-6,6))
def test_masks_stay_in_their_range(seed, raw):
    torch.manual_seed(seed)
    branch = DualBranch(4, 'avg', 3)
    with torch.no_grad(): branch.raw.fill_(raw)
    identity,clothes = branch.masks(10*torch.randn(3, 4, 3, 2))
    assert (clothes>=0).all() and (clothes<=1).all() and (identity>=0).all() and (identity<=1).all() and 0<branch.suppression<1

def test_lambda_learns():
    torch.manual_seed(0)
    branch = DualBranch(4, 'avg', 3)
    branch(torch.randn(3, 4, 3, 2))[0].pow(2).sum().backward()
    assert branch.raw.grad is not None and branch.attention.weight.grad.abs().sum()>0

@pytest.mark.parametrize('kwargs,says', [(dict(kernel=2),'odd number'), (dict(kernel=0),'odd number'), (dict(pool='token'),'must not be token'), (dict(pool='mean'),'no pooling')])
def test_branches_that_cannot_be(kwargs, says):
    with pytest.raises(ValueError, match=says): DualBranch(4, **kwargs)

# --- Eq. 5

@given(st.integers(0,6), st.integers(1,5), st.integers(0,10**6))
def test_orthogonality_is_the_mean_absolute_cosine(n, d, seed):
    g = torch.Generator().manual_seed(seed)
    f,fc = torch.randn(n, d, generator=g),torch.randn(n, d, generator=g)
    cosines = [abs(sum(a*b for a,b in zip(x, y)))/math.sqrt(sum(a*a for a in x)*sum(b*b for b in y)) for x,y in zip(f.tolist(), fc.tolist())]
    assert orthogonality_loss(f, fc).item()==pytest.approx(sum(cosines)/max(n, 1), abs=1e-5)

def test_orthogonality_of_half_precision_and_of_nothing():
    big = torch.full((2,512), 6e4).half() # a sum of squares in half precision would be infinite
    assert orthogonality_loss(big, -big).item()==pytest.approx(1)
    f = torch.zeros(2, 3, requires_grad=True)
    orthogonality_loss(f, torch.ones(2, 3)).backward()
    assert f.grad.isfinite().all()
    with pytest.raises(ValueError, match='one shape'): orthogonality_loss(torch.zeros(2,3), torch.zeros(3,3))

# --- Eq. 6 to 9

def unit(v): return [x/math.sqrt(sum(y*y for y in v)) for x in v]

class Loops:
    "Eq. 7 to 9 with lists: {(modality, identity): prototype}"
    def __init__(self, momentum): self.momentum,self.p = momentum,{}
    def update(self, features, identity, modality):
        for key in {(m,y) for m,y in zip(modality, identity) if y>=0}:
            own = [unit(f) for f,y,m in zip(features, identity, modality) if (m,y)==key]
            mean = [sum(c)/len(own) for c in zip(*own)]
            old = self.p.get(key)
            self.p[key] = unit(mean if old is None else [self.momentum*a+(1-self.momentum)*b for a,b in zip(old, mean)])

batch = st.lists(st.tuples(st.integers(-1,2), st.integers(0,1)), min_size=1, max_size=8)

@settings(max_examples=30)
@given(st.lists(batch, min_size=1, max_size=4), st.sampled_from([0.,.5,.9,1.]), st.integers(0,10**6))
def test_prototypes_follow_the_equations(batches, momentum, seed):
    g = torch.Generator().manual_seed(seed)
    prototypes,loops = ModalityPrototypes(3, 4, momentum),Loops(momentum)
    for labels in batches:
        f = torch.randn(len(labels), 4, generator=g)
        y,m = (torch.tensor(c) for c in zip(*labels))
        before = [p.clone() for p in (prototypes.visible, prototypes.infrared)]
        seen_first = prototypes.at_first_sight(f, y, m)
        assert torch.equal(prototypes.visible, before[0]) and torch.equal(prototypes.infrared, before[1]) # nothing is kept
        new = {k for k in zip(m.tolist(), y.tolist()) if k[1]>=0 and k not in loops.p}
        prototypes.update(f, y, m)
        loops.update(f.tolist(), y.tolist(), m.tolist())
        for (k,who) in new: assert torch.allclose(seen_first[k][who], (prototypes.visible, prototypes.infrared)[k][who], atol=1e-6) # Eq. 7 both times
        for k in (0,1):
            for who in range(3):
                p = (prototypes.visible, prototypes.infrared)[k][who]
                assert prototypes.seen[k,who].item()==((k,who) in loops.p)
                assert p.tolist()==pytest.approx(loops.p.get((k,who), [0.]*4), abs=1e-4)

def test_start_takes_all_images_and_forgets():
    torch.manual_seed(0)
    f,y,m = torch.randn(20, 4),torch.arange(20)%3,(torch.arange(20)//3)%2
    prototypes = ModalityPrototypes(4, 4)
    prototypes.update(f[:4], torch.tensor([3,3,0,0]), m[:4])
    prototypes.start(f, y, m)
    loops = Loops(.9); loops.update(f.tolist(), y.tolist(), m.tolist())
    assert prototypes.seen.tolist()==[[True]*3+[False]]*2
    for (k,who),p in loops.p.items(): assert (prototypes.visible, prototypes.infrared)[k][who].tolist()==pytest.approx(p, abs=1e-5)

@pytest.mark.parametrize('y,m,says', [([0,5],[0,1],'label 5'), ([0,1],[0,2],'0 \\(visible\\) or 1'), ([0,1],[0],'of one batch')])
def test_labels_that_cannot_be(y, m, says):
    with pytest.raises(ValueError, match=says): ModalityPrototypes(3, 4).update(torch.randn(2,4), torch.tensor(y), torch.tensor(m))

# --- Eq. 10 to 13

def loss_in_loops(features, identity, prototypes, temperature):
    total,n = 0.,0
    for f,y in zip(features, identity):
        if y<0 or not any(prototypes[y]): continue
        f = unit(f)
        z = [sum(a*b for a,b in zip(f, p))/temperature if any(p) else None for p in prototypes]
        total -= math.log(math.exp(z[y])/sum(math.exp(v) for v in z if v is not None))
        n += 1
    return total/max(n, 1)

@given(st.lists(st.integers(-1,4), max_size=7), st.lists(st.booleans(), min_size=5, max_size=5), st.sampled_from([1/16,1.,.5]), st.integers(0,10**6))
def test_prototype_loss_is_the_equation(identity, seen, temperature, seed):
    g = torch.Generator().manual_seed(seed)
    p = torch.nn.functional.normalize(torch.randn(5, 3, generator=g), dim=1)*torch.tensor(seen)[:,None]
    f = torch.randn(len(identity), 3, generator=g, requires_grad=True)
    loss = prototype_loss(f, torch.tensor(identity, dtype=torch.long), p, temperature)
    assert loss.item()==pytest.approx(loss_in_loops(f.tolist(), identity, p.tolist(), temperature), abs=1e-4)
    loss.backward()
    assert f.grad.isfinite().all()

def test_the_loss_of_half_precision():
    p = torch.nn.functional.normalize(torch.randn(4, 2048, generator=torch.Generator().manual_seed(0)), dim=1)
    f = (6e4*torch.sign(p[:3])).half().requires_grad_()
    loss = prototype_loss(f, torch.arange(3), p.half())
    loss.backward()
    assert loss.dtype==torch.float32 and loss.isfinite() and f.grad.isfinite().all()
    with torch.autocast('cpu', torch.bfloat16): assert prototype_loss(f.float(), torch.arange(3), p).item()==pytest.approx(loss.item(), rel=.02)

def test_no_gradient_reaches_the_prototypes():
    p = torch.nn.functional.normalize(torch.randn(3, 4), dim=1).requires_grad_()
    prototype_loss(torch.randn(2, 4, requires_grad=True), torch.tensor([0,1]), p).backward()
    assert p.grad is None
