"Methods that are taken off a learner in any order leave what the others did, and in the end nothing"
from functools import partial
from itertools import permutations

import pytest

import ccreid.compat
from ccreid.baselines.cal import CAL
from ccreid.baselines.cssc import CSSC, CSSCModel
from ccreid.baselines.fire import FIRe2
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import hold_out
from ccreid.data.transforms import Preprocessing
from ccreid.data.batches import reid_dataloaders
from ccreid.hsgl.hsal import HSAL
from ccreid.training.learner import Method, reid_learner
from ccreid.training.retrieval import RetrievalEval
from ccreid.training.terms import ReIDLoss, TripletTerm


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    return MannequinWorld(identities=(6,0,4), outfits=2, cameras=3, images=2, size=(64,32), seed=3).write(tmp_path_factory.mktemp('world')/'w', layout='prcc', workers=1)

@pytest.fixture
def learn(dataset): return reid_learner(reid_dataloaders(dataset, Preprocessing((64,32)), 3, 2, num_workers=0, device='cpu'), 'resnet_mini', lr=1e-3)

def fit(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1)

def terms(learn): return list(learn.loss_func.terms.items())

MAKERS = dict(cal=partial(CAL, 0), fire=partial(FIRe2, start_epoch=0, k1=3, k2=2), hsal=HSAL)
OWN = dict(cal={'cal'}, fire={'triplet','ffm','far'}, hsal={'hsal'})

@pytest.mark.parametrize('attached', list(permutations(MAKERS)), ids='-'.join)
def test_terms_whatever_the_order(learn, attached):
    "Without a fit: what is there is there because somebody who is still there brought it"
    before = terms(learn)
    for removed in permutations(MAKERS):
        cbs = {k: MAKERS[k]() for k in attached}
        learn.add_cbs(list(cbs.values()))
        for k in removed:
            learn.remove_cb(cbs.pop(k))
            names,allowed = set(learn.loss_func.terms),{'identity'}.union(*(OWN[c] for c in cbs))
            assert allowed-{'hsal'}<=names<=allowed, (removed, k)                # HSAL has no term of its own where it took the triplet's
            if 'fire' in cbs and 'hsal' not in cbs: assert isinstance(learn.loss_func.terms['triplet'][0], TripletTerm)
        assert terms(learn)==before and not len(learn.model.aux), removed

@pytest.mark.parametrize('attached', [('cal','fire','hsal'), ('hsal','fire','cal')], ids='-'.join)
@pytest.mark.parametrize('gone', [*MAKERS, ('fire','cal'), ('fire','hsal')], ids=lambda o: o if isinstance(o, str) else '-'.join(o))
def test_the_fit_afterwards_is_that_of_the_others(learn, dataset, attached, gone):
    gone = (gone,) if isinstance(gone, str) else gone
    before,cbs = terms(learn),{k: MAKERS[k]() for k in attached}
    learn.add_cbs(list(cbs.values()))
    for k in gone: learn.remove_cb(cbs.pop(k))
    fit(learn)
    want = {'identity'}.union(*(OWN[c] for c in cbs))-({'hsal'} if 'fire' in cbs else set())
    assert set(learn.loss_func.terms)==want==set(learn.history[0])-{'epoch','lr'}
    for cb in list(cbs.values()): learn.remove_cb(cb)
    assert terms(learn)==before and not len(learn.model.aux)
    fit(learn)
    assert set(learn.history[0])=={'epoch','lr','identity'}

def test_five_triplets_go_with_their_baseline(dataset):
    dls = reid_dataloaders(dataset, Preprocessing((64,32)), 3, 2, num_workers=0, device='cpu')
    learn = reid_learner(dls, CSSCModel('resnet_mini', dls.identities), lr=1e-3)
    before,baseline,hsal = terms(learn),CSSC(start_epoch=0),HSAL()
    learn.add_cbs([baseline, hsal])
    assert len(hsal.replaced)==5
    learn.remove_cb(baseline)
    assert terms(learn)==before
    learn.remove_cb(hsal)
    assert terms(learn)==before

class Change(Method):
    "One change of the loss"
    def __init__(self, verb, *args): self.verb,self.args = verb,args
    def attach(self, learn): getattr(learn, f'{self.verb}_term')(*self.args)

def a(o, l): return 0.
def b(o, l): return 1.
def c(o, l): return 2.

def test_replaced_twice(learn):
    (_,(first,weight)), = terms(learn)
    for order,between in (((0,1),(b,1.)), ((1,0),(a,2.))):
        cbs = [Change('replace','identity',a,2.), Change('replace','identity',b)]
        learn.add_cbs(cbs)
        assert terms(learn)==[('identity',(b,2.))]                               # the second keeps the weight that it finds
        learn.remove_cb(cbs[order[0]])
        assert terms(learn)==[('identity',between)]
        learn.remove_cb(cbs[order[1]])
        assert terms(learn)==[('identity',(first,weight))]

def test_dropped_and_added_again(learn):
    before = terms(learn)
    for order in permutations(range(3)):
        cbs = [Change('replace','identity',a), Change('drop','identity'), Change('add','identity',c,3.)]
        learn.add_cbs(cbs)
        assert terms(learn)==[('identity',(c,3.))]
        there = set(range(3))
        for i in order:
            learn.remove_cb(cbs[i]); there.remove(i)
            want = (c,3.) if 2 in there else None if 1 in there else (a,1.) if 0 in there else before[0][1]
            assert dict(learn.loss_func.terms).get('identity')==want, (order, i)
        assert terms(learn)==before

def test_terms_keep_their_place(learn):
    "The sum is taken in this order, and the order decides the last bits"
    learn.add_term('mine', a)
    cbs = [Change('drop','identity'), Change('add','theirs',b)]
    learn.add_cbs(cbs)
    assert list(learn.loss_func.terms)==['mine','theirs']
    learn.remove_cb(cbs[0])
    assert list(learn.loss_func.terms)==['identity','mine','theirs']
    learn.remove_cb(cbs[1])
    assert list(learn.loss_func.terms)==['identity','mine']                      # what no callback brought stays

def test_a_loss_that_was_exchanged_is_left_alone(learn):
    cb = Change('add','x',a)
    learn.add_cb(cb)
    learn.loss_func = ReIDLoss(own=b)
    learn.remove_cb(cb)
    assert terms(learn)==[('own',(b,1.))]

class Clean(Method):
    def __init__(self, size): self.size = size
    def attach(self, learn): learn.add_clean_view(self.size)

@pytest.mark.parametrize('order', list(permutations(range(3))))
def test_clean_views(learn, order):
    images = learn.dls.train.dataset
    cbs = [Clean((16,8)), Clean((24,12)), Clean((32,16))]
    learn.add_cbs(cbs)
    there = set(range(3))
    for i in order:
        learn.remove_cb(cbs[i]); there.remove(i)
        x,labels = learn.dls.train.one_batch()
        assert tuple(labels['clean'].shape[2:])==cbs[max(there)].size if there else 'clean' not in labels
    assert images.clean is None

@pytest.mark.parametrize('order', [(0,1), (1,0)])
def test_columns_of_the_table(learn, dataset, order):
    _,people = hold_out(dataset, identities=2, seed=0)
    cbs = [RetrievalEval(people, ['same-clothes']), RetrievalEval(people, ['clothes-changing'])]
    learn.add_cbs(cbs)
    names = [[f'{k} {w}' for w in ('R1','mAP')] for k in ('same-clothes','clothes-changing')]
    assert list(learn.metrics.attrgot('name'))==names[0]+names[1]
    learn.remove_cb(cbs[order[0]])
    assert list(learn.metrics.attrgot('name'))==names[order[1]]
    learn.remove_cb(cbs[order[1]])
    assert len(learn.metrics)==0
