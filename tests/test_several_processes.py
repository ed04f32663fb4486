"One network trained by several processes: whose share of a batch is whose, and what mathematics says must come out as with one process"
from collections import Counter
import numpy as np
import pandas as pd
import pytest
from hypothesis import given,settings,strategies as st
from ccreid.data.samplers import Draw,ModalityBalanced,PKSampler
from ccreid.data.samples import DataError
from ccreid.data.shares import Share,own_part

class Pairs:
    "Lets another picture of the same person follow each draw, with labels by rows"
    def __init__(self, sampler, labels): self.sampler,self.labels,self.batch_size = sampler,np.asarray(labels),2*sampler.batch_size
    def __len__(self): return 2*len(self.sampler)
    def epoch(self, e):
        rng = np.random.default_rng(e)
        return [x for d in self.sampler.epoch(e) for x in (d, d._replace(row=int(rng.choice(np.flatnonzero(self.labels==self.labels[d.row])))))]

def of(kind, rng, people, images):
    "A sampler of a kind over random people, and their labels"
    labels = rng.permutation(np.concatenate([np.arange(9).repeat(2), rng.integers(0, 9, 30)]))
    if kind=='balanced':
        both = np.concatenate([labels, labels])
        table = pd.DataFrame(dict(identity=both, modality=['visible']*len(labels)+['infrared']*len(labels)))
        return ModalityBalanced(table, people, images, seed=3),both
    sampler = PKSampler(labels, people, images, seed=3)
    return (Pairs(sampler, labels) if kind=='pairs' else sampler),labels

@settings(max_examples=40)
@given(kind=st.sampled_from(['plain','pairs','balanced']), count=st.integers(1, 4), each=st.integers(1, 2), images=st.integers(1, 3), seed=st.integers(0, 99))
def test_shares_are_the_batch(kind, count, each, images, seed):
    "Against the definition, draw by draw: every draw of the batch is in exactly one share, and all draws of a person in one"
    sampler,labels = of(kind, np.random.default_rng(seed), count*each, images)
    shares = [Share(sampler, labels, r, count) for r in range(count)]
    whole,parts = sampler.epoch(seed),[s.epoch(seed) for s in shares]
    n,m = sampler.batch_size,shares[0].batch_size
    assert n==m*count and [len(p) for p in parts]==[len(s) for s in shares]==[len(whole)//count]*count
    for b in range(len(whole)//n):
        batch,cut = whole[b*n:(b+1)*n],[p[b*m:(b+1)*m] for p in parts]
        assert Counter(batch)==sum((Counter(c) for c in cut), Counter())
        people = [{labels[d.row] for d in c} for c in cut]
        assert [len(p) for p in people]==[each]*count and len(set.union(*people))==each*count
        assert [c for c in cut]==[[d for d in batch if labels[d.row] in p] for p,c in zip(people, cut)] # the order of the batch

def test_labels_that_change_are_seen():
    "As when a method clusters anew: the labels are looked at when the epoch is drawn"
    labels = np.array([0,0,1,1,2,2,3,3])
    sampler = PKSampler(labels.copy(), 4, 2)
    share = Share(sampler, labels, 0, 2)
    before = share.epoch(0)
    labels[:] = labels[::-1].copy()
    assert {labels[d.row] for d in share.epoch(0)}=={labels[d.row] for d in before}
    labels[:] = [0,0,0,0,0,0,1,1]
    with pytest.raises(DataError, match='evenly'): share.epoch(0)

@pytest.mark.parametrize('people,pictures,count', [(4,1,3), (3,2,2), (1,4,2)])
def test_people_that_cannot_be_dealt_are_refused_by_every_process(people, pictures, count):
    rows = np.arange(people).repeat(pictures)
    said = set()
    for r in range(count):
        with pytest.raises(DataError, match=f'multiple of {count}') as e: own_part([Draw(i) for i in range(len(rows))], rows, r, count)
        said.add(str(e.value))
    assert len(said)==1
