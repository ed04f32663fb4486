"Momentum memories against loops over samples and classes"
import copy, math
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from ccreid.models.memory import MomentumMemory, class_hardest, class_means

def unit(v): return v/max(v.norm().item(), 1e-12)

class LoopMemory:
    "The definitions, one sample and one class at a time"
    def __init__(self, classes, momentum): self.rows,self.m,self.classes = {},momentum,classes
    def move(self, c, f): self.rows[c] = unit(self.m*self.rows[c] + (1-self.m)*f if c in self.rows else f)
    def update(self, features, labels, choose, score=None):
        groups = {}
        for f,y in zip(features, labels.tolist()):
            if y>=0: groups.setdefault(y, []).append(unit(f))
        for c,fs in groups.items():
            mean = sum(fs)/len(fs)
            if choose=='each':
                for f in fs: self.move(c, f)
            elif choose=='mean' or c not in self.rows: self.move(c, mean)
            else:
                score_ = score or (lambda f, r: -(f@r).item())
                best = None
                for f in fs:
                    s = score_(f, self.rows[c])
                    if best is None or s>best[0]: best = (s, f)
                self.move(c, best[1])
    def loss(self, features, labels, t):
        terms = []
        for f,y in zip(features, labels.tolist()):
            if y not in self.rows: continue
            z = {c:(unit(f)@r).item()/t for c,r in self.rows.items()}
            top = max(z.values())
            terms.append(top + math.log(sum(math.exp(o-top) for o in z.values())) - z[y])
        return sum(terms)/len(terms) if terms else 0.
    def table(self, dim):
        res = torch.zeros(self.classes, dim, dtype=torch.float64)
        for c,r in self.rows.items(): res[c] = r
        return res

def kl(f, rows): return F.kl_div(rows.log_softmax(-1), f.log_softmax(-1), reduction='none', log_target=True).sum(-1)

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(['mean', 'hardest', 'each', 'kl']), st.sampled_from([0., .2, .9, 1.]),
       st.lists(st.lists(st.integers(-1, 5), max_size=12), min_size=1, max_size=4))
def test_updates_and_loss_equal_the_loop(seed, choose, momentum, batches):
    g = torch.Generator().manual_seed(seed)
    ours,loop = MomentumMemory(6, 4, momentum).double(),LoopMemory(6, momentum)
    score = dict(score=kl) if choose=='kl' else {}
    name = 'hardest' if choose=='kl' else choose
    for labels in batches:
        y = torch.tensor(labels, dtype=torch.long)
        f = torch.randn(len(y), 4, generator=g, dtype=torch.float64)
        assert abs(ours.loss(f, y, .2).item()-loop.loss(f, y, .2))<1e-9
        ready = [copy.deepcopy(ours) for _ in range(2)] if choose in ('hardest','kl') else []
        ours.update(f, y, name, **score)
        loop.update(f, y, name, **({'score':lambda a,b: kl(a,b).item()} if score else {}))
        torch.testing.assert_close(ours.rows, loop.table(4))
        assert ours.seen.tolist()==[c in loop.rows for c in range(6)]
        if not ready: continue
        unit_f,own = F.normalize(f, dim=1),y.clamp(min=0)
        logits = ready[0].logits(f, .5) if choose=='hardest' else torch.stack([-kl(unit_f, r.expand_as(f)) for r in ready[0].rows], 1)
        for memory,score_ in zip(ready, (logits, -logits[range(len(y)), own])):  # computed before, as logits or as scores
            memory.update(f, y, name, score=score_)
            torch.testing.assert_close(memory.rows, ours.rows)

@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=20), st.integers(0, 99))
def test_hardest_takes_the_first_of_the_largest(pairs, seed):
    labels,score = torch.tensor([o[0] for o in pairs]),torch.tensor([float(o[1]) for o in pairs])
    features = torch.arange(len(pairs)).float()[:,None]        # a feature is its own index
    classes,chosen = class_hardest(features, labels, score)
    for c,f in zip(classes.tolist(), chosen[:,0].tolist()):
        top = max(s for y,s in pairs if y==c)
        assert int(f)==next(i for i,o in enumerate(pairs) if o==(c, top))
    classes,means = class_means(features, labels)
    for c,f in zip(classes.tolist(), means[:,0].tolist()):
        own = [i for i,o in enumerate(pairs) if o[0]==c]
        assert abs(f-sum(own)/len(own))<1e-4

def test_start_mean_forgets_and_skips_outliers():
    g = torch.Generator().manual_seed(0)
    f,y = torch.randn(20, 3, generator=g),torch.randint(-1, 3, (20,), generator=g)
    memory = MomentumMemory(5, 3)
    memory.update(torch.randn(1, 3, generator=g), torch.tensor([4]))
    memory.start(f, y)
    assert memory.seen.tolist()==[True]*3+[False]*2 and (memory.rows[3:]==0).all()
    for c in range(3): torch.testing.assert_close(memory.rows[c], unit(F.normalize(f, dim=1)[y==c].mean(0)))

def test_random_start_is_a_member_uniform_and_seeded():
    f,y = torch.eye(4),torch.tensor([0,0,0,1])
    counts = torch.zeros(4)
    for s in range(300):
        memory = MomentumMemory(2, 4)
        memory.start(f, y, 'random', torch.Generator().manual_seed(s))
        counts += memory.rows.sum(0)
    assert counts[3]==300 and counts[:3].sum()==300 and (counts[:3]>65).all()
    a,b = MomentumMemory(2, 4),MomentumMemory(2, 4)
    for m in (a, b): m.start(f, y, 'random', torch.Generator().manual_seed(5))
    assert torch.equal(a.rows, b.rows)

def test_backward_never_moves_a_row_and_rows_get_no_gradient():
    memory = MomentumMemory(3, 4)
    memory.start(torch.randn(9, 4), torch.arange(9)%3)
    before = memory.rows.clone()
    f = torch.randn(6, 4, requires_grad=True)
    for _ in range(2): (memory.loss(f, torch.arange(6)%3)/2).backward()
    assert torch.equal(memory.rows, before) and not memory.rows.requires_grad and not list(memory.parameters())
    memory.update(f, torch.arange(6)%3)
    assert not memory.rows.requires_grad and not torch.equal(memory.rows, before)

def test_loss_gradient_equals_the_formula():
    torch.manual_seed(0)
    memory = MomentumMemory(4, 3).double()
    memory.start(torch.randn(6, 3, dtype=torch.float64), torch.tensor([0,0,1,1,2,2]))    # class 3 stays unseen
    f = F.normalize(torch.randn(5, 3, dtype=torch.float64), dim=1).requires_grad_()
    y = torch.tensor([0,1,2,3,-1])
    memory.loss(f, y, .1).backward()
    for i in range(5):
        if i>2: assert (f.grad[i]==0).all(); continue
        p = (f[i].detach()@memory.rows[:3].T/.1).softmax(0)
        g = (p@memory.rows[:3] - memory.rows[y[i]])/.1/3
        g = g - (g@f[i].detach())*f[i].detach()             # features are scaled to length 1 inside
        torch.testing.assert_close(f.grad[i], g)

def test_see_leaves_the_known():
    memory = MomentumMemory(2, 2)
    memory.see(torch.tensor([[1.,0.]]), torch.tensor([0]))
    memory.see(torch.tensor([[0.,1.],[0.,2.],[2.,0.]]), torch.tensor([0,1,1]))
    torch.testing.assert_close(memory.rows, torch.tensor([[1.,0.],[.5**.5,.5**.5]]))

def test_round_trip_of_state(tmp_path):
    memory = MomentumMemory(7, 3)
    memory.update(torch.randn(4, 3), torch.tensor([1,3,3,5]))
    torch.save(memory.state_dict(), tmp_path/'m.pt')
    twin = MomentumMemory(7, 3)
    twin.load_state_dict(torch.load(tmp_path/'m.pt', weights_only=True))
    f,y = torch.randn(5, 3),torch.tensor([0,1,2,3,3])
    for m in (memory, twin): m.update(f, y, 'each')
    assert torch.equal(memory.rows, twin.rows) and torch.equal(memory.seen, twin.seen)
    with pytest.raises(RuntimeError, match='size mismatch'): MomentumMemory(8, 3).load_state_dict(memory.state_dict())

def test_half_precision_features_are_taken_as_float32():
    memory = MomentumMemory(2, 8)
    memory.update(torch.randn(4, 8).half(), torch.tensor([0,0,1,1]))
    assert memory.rows.dtype==torch.float32
    assert memory.loss(torch.randn(4, 8).half(), torch.tensor([0,0,1,1])).dtype==torch.float32

def test_bad_input():
    memory = MomentumMemory(2, 3)
    with pytest.raises(ValueError, match='label 2 in a memory of 2'): memory.update(torch.ones(1,3), torch.tensor([2]))
    with pytest.raises(ValueError, match='need features'): memory.update(torch.ones(2,3), torch.tensor([0]))
    with pytest.raises(ValueError, match='weight of the old'): MomentumMemory(2, 3, momentum=-.1)
    with pytest.raises(ValueError, match="'random'"): memory.start(torch.ones(1,3), torch.tensor([0]), 'median')
    with pytest.raises(ValueError, match="'hardest'"): memory.update(torch.ones(1,3), torch.tensor([0]), 'worst')
