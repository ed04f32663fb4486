"CAL's loss against loops written from the equation"
import math
import pytest, torch
from hypothesis import given, strategies as st
from ccreid.baselines.cal import CAL, clothes_adversarial_loss

def by_hand(cosines, clothes, own, scale, epsilon):
    total, n = 0., 0
    for cos,c,mine in zip(cosines.tolist(), clothes.tolist(), own.tolist()):
        if c<0: continue
        n += 1
        K = sum(mine)
        others = sum(math.exp(scale*x) for x,m in zip(cos, mine) if not m)
        for j,(x,m) in enumerate(zip(cos, mine)):
            if not m: continue
            q = (1-epsilon)*(j==c) + epsilon/K
            total -= q*math.log(math.exp(scale*x)/(math.exp(scale*x)+others))
    return total/n if n else 0.

@st.composite
def batches(draw):
    people = draw(st.integers(1,4))
    garments = [draw(st.integers(1,3)) for _ in range(people)]
    start = [sum(garments[:i]) for i in range(people)]
    rows = draw(st.lists(st.tuples(st.integers(0,people-1), st.integers(0,99), st.booleans()), min_size=1, max_size=6))
    own = torch.zeros(len(rows), sum(garments), dtype=torch.bool)
    clothes = []
    for i,(p,k,known) in enumerate(rows):
        own[i, start[p]:start[p]+garments[p]] = True
        clothes.append(start[p]+k%garments[p] if known else -1)
    cosines = torch.tensor(draw(st.lists(st.floats(-1,1,width=32), min_size=own.numel(), max_size=own.numel()))).view(own.shape)
    return cosines, torch.tensor(clothes), own

@given(batches(), st.sampled_from([1.,16.]), st.sampled_from([0.,.1,.5]))
def test_equals_the_equation(batch, scale, epsilon):
    cosines, clothes, own = batch
    got = clothes_adversarial_loss(cosines, clothes, own, scale, epsilon).item()
    assert got==pytest.approx(by_hand(cosines, clothes, own, scale, epsilon), rel=1e-4, abs=1e-5)

@given(batches())
def test_gradient_is_finite_and_unknown_rows_have_none(batch):
    cosines, clothes, own = batch
    cosines = cosines.clone().requires_grad_()
    clothes_adversarial_loss(cosines, clothes, own).backward()
    assert cosines.grad.isfinite().all()
    assert (cosines.grad[clothes<0]==0).all()

def test_own_other_clothes_do_not_count_in_the_denominator():
    own = torch.tensor([[1,1,0]]).bool()
    low, high = torch.tensor([[.3,-1,.2]]), torch.tensor([[.3,1.,.2]])
    a, b = (clothes_adversarial_loss(c, torch.tensor([0]), own, epsilon=0.) for c in (low, high))
    assert a==b

def test_shared_garment_counts_for_all_who_wear_it():
    own = torch.tensor([[1,0,1],[0,1,1]]).bool()
    got = clothes_adversarial_loss(torch.zeros(2,3), torch.tensor([2,2]), own, scale=1., epsilon=0.)
    assert got.item()==pytest.approx(math.log(2))

def test_shapes_must_agree():
    with pytest.raises(ValueError, match='one shape'): clothes_adversarial_loss(torch.zeros(2,3), torch.tensor([0,1]), torch.ones(2,4).bool())

@pytest.mark.parametrize('generated', [False, True])
def test_generated_images_take_part_where_asked_and_their_garment_is_known(generated):
    labels = dict(clothes=torch.tensor([0,3,-1,-1]), generated=torch.tensor([0,1,1,0]))
    assert CAL(generated=generated).usable(labels).tolist()==[True,generated,False,False]
