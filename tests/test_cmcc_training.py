"PIA on the learner: both stages by hand, steps that are skipped, resuming around the switch, export, and what is refused"
import copy, math, shutil, warnings
import pytest, torch
import ccreid.compat
from fastai.callback.core import Callback, CancelFitException, CancelStepException
from fastai.callback.training import GradientAccumulation
from ccreid.baselines.cal import CAL
from ccreid.baselines.vi import Balanced, TwoStream
from ccreid.cmcc.bpl import BPL
from ccreid.cmcc.pia import PIA, PIANet
from ccreid.data.batches import Preprocessing, reid_dataloaders
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import ReIDDataset
from ccreid.recipes import build, recipe
from ccreid.runs import SameSteps, hand_over
from ccreid.training.checkpoints import Checkpoint
from ccreid.training.export import export_reid, load_reid, parity
from ccreid.training.learner import reid_learner
from ccreid.training.terms import ReIDLoss, identity_term
from test_cmcc_formulas import Loops, loss_in_loops

@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    world = MannequinWorld(identities=(4,0,3), outfits=2, cameras=2, infrared=(1,), images=2, size=(32,16), seed=3)
    return world.write(tmp_path_factory.mktemp('w')/'w', layout='mannequins')

def learner(dataset, *cbs, seed=0, net=None, **kwargs):
    dls = reid_dataloaders(dataset, Preprocessing((32,16)), 2, 4, seed=seed, num_workers=0, device='cpu', cache=True)
    torch.manual_seed(seed)
    net = PIANet('resnet_mini', classes=dls.identities) if net is None else net
    return reid_learner(dls, net, [Balanced(), *cbs], seed=seed, loss_func=ReIDLoss(identity=identity_term(0.)), lr=1e-3, **kwargs)

def fit(learn, n, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, **kwargs)
    return learn

class WatchSteps(Callback):
    "Keeps what each step saw, and can skip some"
    order = 45
    def __init__(self, skip=()): self.skip,self.seen,self.moved,self.n = skip,[],[],-1
    def before_batch(self):
        self.n += self.training
        self.before = self._weights()
    def _weights(self): return next(self.learn.model.parameters()).detach().clone()
    def after_batch(self):
        if self.training: self.moved.append(not torch.equal(self.before, self._weights()))
    def after_loss(self):
        if self.training: self.seen.append(({k: v.detach().clone() for k,v in self.pred.items()}, {k: v.clone() for k,v in self.yb[0].items()},
                                            dict(self.loss_func.values), self.loss.item(), self.epoch))
    def before_step(self):
        if self.n in self.skip: raise CancelStepException()

def prototypes_of(cb): return cb.prototypes.visible.clone(), cb.prototypes.infrared.clone()

def test_both_stages_are_the_sums_of_eq_14_and_15(dataset):
    "Every step of three epochs, prototypes and losses worked out with lists"
    pia,steps = PIA(stage_two=1, weight_orthogonality=.7, weight_inter=2.),WatchSteps()
    learn = fit(learner(dataset, pia, steps), 3)
    loops = Loops(.9)
    for pred,labels,values,loss,epoch in steps.seen:
        f,y,m = pred['features'].tolist(),labels['identity'].tolist(),labels['modality'].tolist()
        z = pred['logits'].double().tolist()
        expected = -sum(math.log(math.exp(a[i])/sum(map(math.exp, a))) for a,i in zip(z, y))/len(y)
        assert values['identity'].item()==pytest.approx(expected, abs=1e-4)
        fc = pred['clothes_features'].tolist()
        cosine = sum(abs(sum(a*b for a,b in zip(u, v)))/math.sqrt(sum(a*a for a in u)*sum(b*b for b in v)) for u,v in zip(f, fc))/len(f)
        assert values['orthogonality'].item()==pytest.approx(cosine, abs=1e-4)
        total = expected+values['dbdl_clothes'].item()+.7*cosine
        assert ('intra' in values)==(epoch>=1)
        if epoch>=1:
            first = copy.deepcopy(loops)
            new = Loops(.9); new.update(f, y, m)
            for k,p in new.p.items(): first.p.setdefault(k, p)
            table = lambda k: [first.p.get((k,i), [0.]*len(f[0])) for i in range(4)]
            rows = lambda k: ([a for a,b in zip(f, m) if b==k], [a for a,b in zip(y, m) if b==k])
            intra = sum(loss_in_loops(*rows(k), table(k), 1/16) for k in (0,1))
            inter = sum(loss_in_loops(*rows(k), table(1-k), 1/16) for k in (0,1))
            assert values['intra'].item()==pytest.approx(intra, rel=1e-3, abs=1e-3) and values['inter'].item()==pytest.approx(inter, rel=1e-3, abs=1e-3)
            total += intra+2*inter
            loops.update(f, y, m)
        assert loss==pytest.approx(total, rel=1e-3)
    assert len(steps.seen)>=6
    for (k,i),p in loops.p.items(): assert prototypes_of(pia)[k][i].tolist()==pytest.approx(p, abs=1e-3)

def test_nothing_moves_before_the_switch_and_when_a_step_is_skipped(dataset):
    pia = PIA(stage_two=2)
    learn = fit(learner(dataset, pia), 2)
    assert not pia.prototypes.seen.any() and not pia.prototypes.visible.any()
    pia,steps = PIA(stage_two=0),WatchSteps(skip=range(100))
    learn = fit(learner(dataset, pia, steps), 1)
    assert steps.seen and not pia.prototypes.seen.any() # looked at, and not kept
    assert all(v['intra'].isfinite() for _,_,v,_,_ in steps.seen)

def test_a_skipped_step_is_as_if_its_batch_had_not_been(dataset):
    pia,steps = PIA(stage_two=0),WatchSteps(skip=(1,))
    fit(learner(dataset, pia, steps), 2)
    loops = Loops(.9)
    for i,(pred,labels,*_) in enumerate(steps.seen):
        if i!=1: loops.update(pred['features'].tolist(), labels['identity'].tolist(), labels['modality'].tolist())
    for (k,i),p in loops.p.items(): assert prototypes_of(pia)[k][i].tolist()==pytest.approx(p, abs=1e-3)

def test_batches_that_only_accumulate_move_nothing(dataset):
    pia,steps = PIA(stage_two=0),WatchSteps()
    fit(learner(dataset, pia, steps, GradientAccumulation(16)), 2) # batches of 8
    loops = Loops(.9)
    assert any(steps.moved) and not all(steps.moved)
    for (pred,labels,*_),moved in zip(steps.seen, steps.moved):
        if moved: loops.update(pred['features'].tolist(), labels['identity'].tolist(), labels['modality'].tolist())
    for (k,i),p in loops.p.items(): assert prototypes_of(pia)[k][i].tolist()==pytest.approx(p, abs=1e-3)

def test_values_of_half_precision_that_overflow_stay_out(dataset):
    class Overflow(Callback):
        "A batch whose features are infinite, as half precision makes them; its step is skipped"
        order = -5
        def after_pred(self):
            if self.training and self.iter==0: self.learn.pred = {**self.pred, 'features': self.pred['features']*float('inf')}
        def before_step(self):
            if self.iter==0: raise CancelStepException()
    pia = PIA(stage_two=0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # the means of the epoch are not numbers, and are said to be
        fit(learner(dataset, pia, Overflow()), 1)
    assert all(p.isfinite().all() for p in prototypes_of(pia)) and pia.prototypes.seen.any()

class KeepEach(Callback):
    "Copies the checkpoint after some epochs"
    order = 95
    def __init__(self, file, epochs): self.file,self.epochs = file,epochs
    def after_epoch(self):
        if self.epoch in self.epochs: shutil.copy(self.file, f'{self.file}-{self.epoch}')

def resumed(dataset, file, **kwargs):
    pia = PIA(**kwargs)
    learn = learner(dataset, SameSteps(1), pia, Checkpoint(file))
    return fit(learn, 58), pia

def test_resumed_at_54_55_and_56_the_prototypes_are_the_same(dataset, tmp_path):
    "The paper's switch, with epochs of one step: killed before it, at it and after it"
    file = tmp_path/'run.pth'
    pia = PIA()
    whole = fit(learner(dataset, SameSteps(1), pia, Checkpoint(file), KeepEach(file, (53,54,55))), 58)
    assert [('inter' in h) for h in whole.history]==[h['epoch']>=55 for h in whole.history]
    for done in 53,54,55: # epochs that were done: the run goes on with 54, 55 and 56
        shutil.copy(f'{file}-{done}', again := tmp_path/f'{done}.pth')
        learn,other = resumed(dataset, again)
        assert [h['epoch'] for h in learn.history]==list(range(58))
        for a,b in zip(prototypes_of(pia), prototypes_of(other)): assert torch.equal(a, b), done
        for k,v in whole.model.state_dict().items(): assert torch.equal(v, learn.model.state_dict()[k]), (done, k)
        assert learn.history==whole.history

def test_prototypes_of_all_images_begin_at_their_means(dataset):
    pia = BPL(1, first='all')
    class Look(Callback):
        order = 5
        def before_batch(self):
            if self.training and self.epoch==1 and self.iter==0: self.learn.at_start = (self.learn.model.aux['prototypes'].seen.clone(),)
    learn = fit(learner(dataset, pia, Look()), 2)
    assert learn.at_start[0].all()

def test_cal_stays_where_it_is_asked_for(dataset):
    learn = fit(learner(dataset, CAL(0), PIA(stage_two=0)), 1)
    assert set(learn.loss_func.terms)=={'identity','cal','intra','inter','dbdl_clothes','orthogonality'}
    assert {'cal','inter','lambda'}<=set(learn.history[0])
    learn.remove_cb(PIA)
    assert set(learn.loss_func.terms)=={'identity','cal'} and set(learn.model.aux)=={'clothes_neck','clothes_classifier'}

def test_the_exported_network_is_the_identity_branch(dataset, tmp_path):
    learn = fit(learner(dataset, PIA(stage_two=0)), 1)
    again = load_reid(export_reid(learn, tmp_path/'pia.safetensors'))
    assert parity(learn.model, again)<1e-5 and not len(again.aux) and again.branch.clothes_neck is None and again.classifier is None
    x = torch.randn(2, 3, 32, 16)
    out = again(x)
    assert 'clothes_features' not in out and set(out)=={'features','map','mask_identity','mask_clothes'}
    assert torch.allclose(out['features'], learn.model.eval()(x)['features'], atol=1e-5)

@pytest.mark.parametrize('change,net,says', [
    (dict(clothes=-1), None, 'needs clothes labels'), (dict(modality='visible'), None, 'both modalities|training images of both'),
    ({}, 'resnet_mini', 'needs a PIANet')])
def test_what_pia_cannot_do_without(dataset, change, net, says):
    data = ReIDDataset('w', dataset.root, dataset.samples.assign(**change))
    dls = reid_dataloaders(data, Preprocessing((32,16)), 2, 4, num_workers=0, device='cpu')
    net = net or PIANet('resnet_mini', classes=dls.identities)
    with pytest.raises(ValueError, match=says): reid_learner(dls, net, PIA())

def test_images_with_unknown_clothes_take_no_part_in_the_clothes_loss(dataset):
    learn = learner(dataset, PIA())
    pia = learn.pia
    torch.manual_seed(0)
    f = torch.randn(4, learn.model.dim)
    labels = dict(clothes=torch.tensor([0,-1,2,-1]))
    known = pia.clothes(dict(clothes_features=f[[0,2]]), dict(clothes=labels['clothes'][[0,2]]))
    assert pia.clothes(dict(clothes_features=f), labels).item()==pytest.approx(known.item(), abs=1e-6)
    assert pia.clothes(dict(clothes_features=f), dict(clothes=torch.full((4,), -1))).item()==0

def test_the_recipe_is_the_papers(dataset):
    r = recipe('sysu_cmcc', 'pia')
    assert (r.backbone, r.size, r.pool, r.epochs, r.milestones, r.lr, r.start_epoch) == ('resnet50', (384,192), 'max+avg', 90, (30,60), 3.5e-4, 55)
    assert (r.identities, r.images, r.smoothing, r.pia_orthogonality, r.pia_inter, r.pia_momentum)==(8, 8, 0., .5, 1.5, .9)
    small = recipe('mannequins-cmcc', 'pia', identities=2, images=4, size=(32,16), epochs=2, start_epoch=1, pretrained=False)
    learn = build(small, dataset, device='cpu')
    sampler = learn.dls.train.sampler
    assert type(sampler).__name__=='ModalityBalanced' and (sampler.identities, sampler.images)==(2,2)
    assert [type(cb).__name__ for cb in learn.cbs if type(cb).__name__ in ('PIA','CAL')]==['PIA'] and learn.pia.start_epoch==1
    assert build(recipe('mannequins-cmcc', 'pia', identities=2, images=4, size=(32,16), pretrained=False, pia_progressive=False), dataset, device='cpu').pia.start_epoch==0

def test_a_stage_that_never_comes_is_said_before_the_fit(dataset):
    with pytest.warns(UserWarning, match='starts at epoch 55'): fit(learner(dataset, PIA()), 1)

def test_a_network_to_start_from_brings_its_branch():
    "And two streams their second stem; classifiers and what only training needs stay behind"
    for make,own in (PIANet, 'branch.attention.weight'),(TwoStream, 'infrared_stem.conv1.0.weight'):
        torch.manual_seed(0); a = make('resnet_mini', classes=3)
        torch.manual_seed(1); b = make('resnet_mini', classes=5)
        before = b.classifier.weight.clone()
        names = hand_over(a, b)
        assert own in names and torch.equal(a.state_dict()[own], b.state_dict()[own]) and torch.equal(before, b.classifier.weight)
        x = torch.randn(2, 3, 32, 16)
        assert torch.equal(a.eval()(x)['features'], b.eval()(x)['features'])
