"The contract of training: several methods on one learner, checkpoints, export"
import copy, math, os, random, signal, subprocess, sys, time
from functools import partial
import pytest, torch
import ccreid.compat
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.training import GradientAccumulation
from fastai.optimizer import OptimWrapper
from torch.nn import functional as F
from ccreid.baselines.cal import CAL, clothes_adversarial_loss
from ccreid.data.batches import Draw, Preprocessing, reid_dataloaders
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import ReIDDataset, hold_out
from ccreid.training.checkpoints import Checkpoint
from ccreid.training.embedding import embed
from ccreid.training.export import export_reid, load_reid, parity
from ccreid.training.learner import Method, reid_learner
from ccreid.training.retrieval import RetrievalEval
from ccreid.training.schedules import EpochSchedule, warmup_multistep

@pytest.fixture(scope='session')
def dataset(tmp_path_factory):
    return MannequinWorld(identities=(6,0,4), outfits=2, cameras=3, images=2, size=(64,32), seed=3).write(tmp_path_factory.mktemp('world')/'w', layout='prcc')

def loaders(dataset, identities=3, images=2): return reid_dataloaders(dataset, Preprocessing((64,32)), identities, images, num_workers=0, device='cpu')

def half_generated(dataset):
    "Every second training image of a person counts as generated, its clothes unknown"
    table = dataset.samples.copy()
    made = (table.split=='train') & (table.groupby(['split','identity']).cumcount()%2==1)
    table['generated_by'] = [('test' if m else None) for m in made]
    return ReIDDataset(dataset.name, dataset.root, table, dataset.protocols)

class Pairs:
    "A sampler that lets a generated image of the same identity follow each real one"
    def __init__(self, sampler, table):
        self.sampler, self.batch_size = sampler, 2*sampler.batch_size
        self.real = [not isinstance(g, str) for g in table.generated_by]
        self.identity = table.identity.tolist()
    def __len__(self): return 2*len(self.sampler)
    def epoch(self, e):
        rng, draws = random.Random(e), []
        for d in self.sampler.epoch(e):
            who = self.identity[d.row]
            rows = {kind: [i for i,(p,r) in enumerate(zip(self.identity, self.real)) if p==who and r==kind] for kind in (True,False)}
            draws += [d._replace(row=rng.choice(rows[True])), d._replace(row=rng.choice(rows[False]), seed=d.seed+1)]
        return draws

class SmallPairs(Method):
    def attach(self, learn): learn.wrap_sampler(lambda s: Pairs(s, self.table(learn)))
    def table(self, learn): return learn.dls.dataset.train.reset_index(drop=True)

class PlainIdentity(Method):
    "Replaces the smoothed identity loss by the plain one, at twice the weight"
    def attach(self, learn):
        learn.replace_term('identity', lambda o,l: F.cross_entropy(o['logits'], l['identity']), 2.)

class Watch(Callback):
    "Keeps what each training step saw"
    order = 45
    def before_fit(self): self.steps = []
    def after_loss(self):
        if self.training: self.steps.append((self.epoch, {k: v.detach().clone() for k,v in self.pred.items()}, {k: v.clone() for k,v in self.yb[0].items()},
            {k: v.clone() for k,v in self.loss_func.values.items()}, self.loss.item(), self.learn.cal.classifier_of_clothes.weight.detach().clone()))

def hand_identity(pred, labels):
    total = 0.
    for z,y in zip(pred['logits'].double().tolist(), labels['identity'].tolist()):
        total -= math.log(math.exp(z[y])/sum(math.exp(v) for v in z))
    return total/len(pred['logits'])

def hand_cal(pred, labels, weight, own, scale=16., epsilon=.1):
    total, n = 0., 0
    rows = zip(pred['features'].double(), labels['identity'].tolist(), labels['clothes'].tolist(), labels['generated'].tolist())
    for f,y,c,generated in rows:
        if generated or c<0: continue
        n += 1
        cos = [float(f@w/(f.norm()*w.norm())) for w in weight.double()]
        mine = own[y].tolist()
        others = sum(math.exp(scale*x) for x,m in zip(cos, mine) if not m)
        for j,x in enumerate(cos):
            if mine[j]: total -= ((1-epsilon)*(j==c)+epsilon/sum(mine))*math.log(math.exp(scale*x)/(math.exp(scale*x)+others))
    return total/n

def three(dataset, cbs=(), **kwargs):
    return reid_learner(loaders(half_generated(dataset)), 'resnet_mini', [CAL(start_epoch=0), SmallPairs(), PlainIdentity(), Watch(), *cbs], **kwargs)

def quiet(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args, **kwargs)
    return learn

def check_steps(learn):
    assert learn.watch.steps
    for _,pred,labels,values,loss,weight in learn.watch.steps:
        identity, cal = hand_identity(pred, labels), hand_cal(pred, labels, weight, learn.dls.clothes_of_identity)
        assert values['identity'].item()==pytest.approx(identity, rel=1e-4)
        assert values['cal'].item()==pytest.approx(cal, rel=1e-4)
        assert loss==pytest.approx(2*identity+cal, rel=1e-4)

def test_three_methods_sum_up_as_worked_out_by_hand(dataset):
    learn = quiet(three(dataset), 1)
    check_steps(learn)
    _,_,labels,*_ = learn.watch.steps[0]
    assert len(labels['identity'])==12 and labels['generated'].tolist()==[0,1]*6
    assert labels['identity'][::2].tolist()==labels['identity'][1::2].tolist()
    assert set(labels)=={'identity','clothes','camera','modality','generated','group','row'}

def test_order_of_attaching_does_not_matter(dataset):
    dls = lambda: loaders(half_generated(dataset))
    a = reid_learner(dls(), 'resnet_mini', [CAL(0), SmallPairs(), PlainIdentity(), Watch()])
    b = reid_learner(dls(), 'resnet_mini', [PlainIdentity(), SmallPairs(), Watch(), CAL(0)])
    losses = [[s[4] for s in quiet(l, 1).watch.steps] for l in (a,b)]
    assert losses[0]==losses[1]

def check_accumulation(make, more=lambda output, labels: 0., **tolerance):
    "One SGD step over two batches: parameters move by the mean gradient of the two sums, taken here by hand with `more` beside identity and CAL"
    batches = []
    class Two(Callback):
        order = 99
        def before_batch(self):
            if self.training: batches.append((self.xb[0].clone(), {k: v.clone() for k,v in self.yb[0].items()}))
        def after_batch(self):
            if self.training and len(batches)==2: raise CancelFitException
    learn = make([GradientAccumulation(24), Two()], opt_func=partial(OptimWrapper, opt=torch.optim.SGD), lr=.1, wd=0.)
    model = copy.deepcopy(learn.model)
    classifier = model.aux['clothes_classifier']
    adam = torch.optim.Adam(classifier.parameters(), 3.5e-4, weight_decay=5e-4)
    quiet(learn, 1)
    assert len(batches)==2, 'the data set must give two batches'
    model.train()
    params = [p for n,p in model.named_parameters() if not n.startswith('aux.')]
    grads = [torch.zeros_like(p) for p in params]
    for x,labels in batches:
        out = model(x)
        rows = (labels['generated']==0) & (labels['clothes']>=0)
        loss = F.cross_entropy(16*classifier(out['features'][rows].detach()), labels['clothes'][rows])
        adam.zero_grad(); loss.backward(); adam.step()
        total = 2*F.cross_entropy(out['logits'], labels['identity']) + clothes_adversarial_loss(
            F.normalize(out['features'][rows])@F.normalize(classifier.weight.detach()).T, labels['clothes'][rows], learn.dls.clothes_of_identity[labels['identity'][rows]])
        total = total + more(out, labels)
        for g,d in zip(grads, torch.autograd.grad(total, params, allow_unused=True)):
            if d is not None: g += d/2
    got = [p for n,p in learn.model.named_parameters() if not n.startswith('aux.')]
    for p,g,q in zip(params, grads, got): torch.testing.assert_close(p-.1*g, q, **tolerance)
    torch.testing.assert_close(classifier.weight, learn.model.aux['clothes_classifier'].weight)
    return learn

def test_accumulated_batches_are_no_steps(dataset):
    "Of two batches of 12 whose gradients are added up one is a step: counted once, and callbacks see it after the batch"
    seen = []
    class See(Callback):
        order = 90
        def after_batch(self):
            if self.training: seen.append(bool(self.learn.step_taken))
    learn = quiet(three(dataset, [GradientAccumulation(24), See()]), 2)
    assert len(seen)>=4 and seen==[i%2==1 for i in range(len(seen))]
    assert sum(c['steps'] for c in learn.counts)==sum(seen)

def test_gradient_accumulation_gives_the_mean_of_the_sums(dataset):
    check_steps(check_accumulation(partial(three, dataset), rtol=1e-3, atol=1e-5))

def check_resume(make, path):
    "A run that is interrupted in epoch 2 and begun again takes the steps of one that was not"
    whole = quiet(make([]), 3)
    class Die(Callback):
        def after_batch(self):
            if self.training and self.epoch==2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): quiet(make([Checkpoint(path), Die()]), 3)
    again = quiet(make([Checkpoint(path)]), 3)
    assert [s[0] for s in again.watch.steps]==[2]*len(again.dls.train)
    assert [s[4] for s in again.watch.steps]==[s[4] for s in whole.watch.steps if s[0]==2]
    assert again.history==whole.history
    for (k,a),b in zip(whole.model.state_dict().items(), again.model.state_dict().values()): assert torch.equal(a, b), k
    return again

def test_resumed_run_takes_the_same_steps(dataset, tmp_path): check_steps(check_resume(partial(three, dataset), tmp_path/'c.pth'))

def test_removing_a_method_restores_the_learner(dataset):
    learn = reid_learner(loaders(half_generated(dataset)), 'resnet_mini')
    terms, sampler, bs = dict(learn.loss_func.terms), learn.dls.train.sampler, learn.dls.train.bs
    cbs = [CAL(0), SmallPairs(), PlainIdentity()]
    learn.add_cbs(cbs)
    assert learn.dls.train.bs==2*bs and 'cal' in learn.loss_func.terms and 'clothes_classifier' in learn.model.aux
    for cb in cbs: learn.remove_cb(cb)
    assert learn.loss_func.terms==terms and learn.dls.train.sampler is sampler and learn.dls.train.bs==bs and not len(learn.model.aux)

def test_wrapped_samplers_can_be_removed_in_any_order(dataset):
    learn = reid_learner(loaders(half_generated(dataset)), 'resnet_mini')
    sampler, bs = learn.dls.train.sampler, learn.dls.train.bs
    class Twice(SmallPairs): pass
    first, second = SmallPairs(), Twice()
    learn.add_cbs([first, second])
    assert learn.dls.train.bs==4*bs
    learn.remove_cb(first)
    assert learn.dls.train.bs==2*bs and learn.dls.train.sampler.sampler is sampler
    learn.remove_cb(second)
    assert learn.dls.train.bs==bs and learn.dls.train.sampler is sampler

def test_a_skipped_step_is_known_after_it(dataset):
    "As half precision skips one: a memory must not be updated then"
    from fastai.callback.core import CancelStepException
    seen = []
    class Skip(Callback):
        order = 10
        def before_step(self):
            if self.iter==1: raise CancelStepException
    class Memory(Method):
        def after_step(self): seen.append((self.iter, self.learn.step_taken))
    quiet(reid_learner(loaders(dataset, 2, 2), 'resnet_mini', [Skip(), Memory()]), 1)
    assert seen[:3]==[(0, True), (1, False), (2, True)]

def test_a_method_that_cannot_start_says_so(dataset):
    learn = reid_learner(loaders(dataset), 'resnet_mini', [CAL(start_epoch=5)])
    with pytest.warns(UserWarning, match=r'^CAL starts at epoch 5 \(counted from 0\), and this fit has 1 epoch: it will never become active in it$'): quiet(learn, 1)

def test_before_its_start_cal_changes_nothing(dataset):
    a = quiet(reid_learner(loaders(dataset), 'resnet_mini'), 2)
    b = quiet(reid_learner(loaders(dataset), 'resnet_mini', [CAL(start_epoch=1)]), 2)
    assert a.history[0]['identity']==b.history[0]['identity'] and 'cal' not in b.history[0] and 'cal' in b.history[1]

def test_schedule_acts_on_the_main_optimiser_only(dataset):
    learn = quiet(reid_learner(loaders(dataset), 'resnet_mini', [CAL(0), EpochSchedule(warmup_multistep(1e-3, (1,)))]), 2)
    assert [round(h['lr'], 9) for h in learn.history]==[1e-3, 1e-4]
    assert learn.cal.clothes_opt.param_groups[0]['lr']==3.5e-4

def test_embedding_is_normalised_ordered_and_leaves_the_mode(dataset):
    learn = reid_learner(loaders(dataset), 'resnet_mini')
    table = dataset.samples[dataset.samples.split!='train']
    learn.model.train()
    f = embed(learn, table, batch_size=5)
    assert learn.model.training and f.shape==(len(table), learn.model.dim)
    torch.testing.assert_close(f.norm(dim=1), torch.ones(len(f)))
    torch.testing.assert_close(f.flip(0), embed(learn, table.iloc[::-1], batch_size=7), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(f, embed(learn, table, flip=False), atol=1e-4)
    learn.model.preprocessing = None
    with pytest.raises(ValueError, match='preprocessing'): embed(learn.model, table)

def test_export_and_load(dataset, tmp_path):
    learn = quiet(reid_learner(loaders(dataset), 'resnet_mini', [CAL(0)]), 1)
    path = export_reid(learn, tmp_path/'m.safetensors')
    model = load_reid(path)
    table = dataset.samples[dataset.samples.split!='train']
    torch.testing.assert_close(embed(model, table), embed(learn, table), rtol=1e-4, atol=1e-6)
    assert not len(model.aux) and parity(learn.model, model)<1e-5

def test_an_export_that_differs_is_refused(dataset, tmp_path, monkeypatch):
    learn = reid_learner(loaders(dataset), 'resnet_mini')
    from ccreid.training import export
    def broken(path):
        m = load_reid(path)
        with torch.no_grad(): m.neck.weight.mul_(1.5)
        return m
    monkeypatch.setattr(export, 'load_reid', broken)
    with pytest.raises(ValueError, match='other features'): export_reid(learn, tmp_path/'m.safetensors')
    assert not list(tmp_path.iterdir())

def test_validation_people_in_the_progress_table(dataset):
    rest, people = hold_out(dataset, 2, seed=0)
    cb = RetrievalEval(people, every=2)
    learn = quiet(reid_learner(loaders(rest, 2, 2), 'resnet_mini', [cb]), 3)
    names = list(learn.recorder.metric_names)
    assert 'valid_loss' not in names and 'clothes-changing R1' in names
    assert [c['epoch'] for c in cb.curve]==[1,2]
    column = names.index('clothes-changing R1')-1
    values = [v[column] for v in learn.recorder.values]
    assert values[0]=='' and 0<=values[2]<=100

def test_bad_checkpoint_and_other_run(dataset, tmp_path):
    (tmp_path/'c.pth').write_bytes(b'nonsense')
    with pytest.raises(ValueError, match='no readable checkpoint'): quiet(reid_learner(loaders(dataset), 'resnet_mini', [Checkpoint(tmp_path/'c.pth')]), 1)
    (tmp_path/'c.pth').unlink()
    quiet(reid_learner(loaders(dataset), 'resnet_mini', [Checkpoint(tmp_path/'c.pth')]), 1)
    with pytest.raises(ValueError, match='another run'): quiet(reid_learner(loaders(dataset), 'resnet_mini', [Checkpoint(tmp_path/'c.pth')]), 2)

_script = '''
import sys, torch
torch.set_num_threads(1)
from test_training import *
from ccreid.data.layouts import load_dataset
d = load_dataset('prcc', sys.argv[1])
class Slow(Callback):
    def after_batch(self):
        if self.training: print('step', self.epoch, self.iter, flush=True); time.sleep(.15)
cbs = [CAL(start_epoch=1), Checkpoint(sys.argv[2])] + ([Slow()] if len(sys.argv)>3 else [])
learn = quiet(reid_learner(loaders(d), 'resnet_mini', cbs), 3)
print('sum', sum(p.double().sum().item() for p in learn.model.state_dict().values()), flush=True)
'''

def test_killed_at_any_batch(dataset, tmp_path):
    env = {**os.environ, 'PYTHONPATH': os.path.dirname(__file__), 'OMP_NUM_THREADS': '1'}
    def start(path, *more): return subprocess.Popen([sys.executable, '-c', _script, str(dataset.root), str(path), *more], env=env, stdout=subprocess.PIPE, text=True)
    whole = start(tmp_path/'whole.pth').communicate()[0].split()[-1]
    for steps in (1, 4):
        path = tmp_path/f'{steps}.pth'
        p = start(path, 'slow')
        for _ in range(steps): p.stdout.readline()
        p.send_signal(signal.SIGKILL); p.communicate()
        assert start(path).communicate()[0].split()[-1]==whole
