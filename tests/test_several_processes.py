"One network trained by several processes: whose share of a batch is whose, and what mathematics says must come out as with one process"
import json, multiprocessing, os, signal, socket, subprocess, sys, tempfile, time
from collections import Counter
from functools import partial
from pathlib import Path
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest, torch
import torch.distributed as dist
import ccreid.compat
from datetime import timedelta
from hypothesis import given,settings,strategies as st
from fastai.callback.progress import CSVLogger
from fastai.callback.training import GradientAccumulation
from fastai.optimizer import OptimWrapper
from ccreid.baselines.aim import AIM
from ccreid.baselines.cal import CAL
from ccreid.baselines.cssc import CSSC,CSSCModel
from ccreid.baselines.mgn import MGN,MGNModel
from ccreid.baselines.two_stream import TwoStream
from ccreid.baselines.vi import AGW,Balanced
from ccreid.cmcc.bpl import BPL
from ccreid.cmcc.pia import PIA,PIANet
from ccreid.data.batches import Preprocessing,reid_dataloaders
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samplers import Draw,ModalityBalanced,PKSampler
from ccreid.data.samples import DataError
from ccreid.data.shares import Share,own_part
from ccreid.dcac.memory import PCL
from ccreid.hsgl.hsal import HSAL
from ccreid.models.backbones import create_backbone
from ccreid.models.reid_model import ReIDModel
from ccreid import cli
from ccreid.runs import SameSteps
from ccreid.training import several,sharing
from ccreid.training.learner import Method,ReIDLearner
from ccreid.training import asking # gives learners `evaluate` and `show_ranked`
from ccreid.training.retrieval import RetrievalEval
from ccreid.training.sharing import own_parameters,running_statistics
from ccreid.training.terms import ReIDLoss,identity_term,triplet_term
from torch.nn.modules.batchnorm import _BatchNorm

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

@settings(max_examples=25)
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

# several real processes

def child(fn, args, rank, count, folder, pipe, joins):
    "One of several processes: what it gives, or what it raises"
    torch.set_num_threads(1)
    try:
        if joins and count>1: dist.init_process_group('gloo', f'file://{folder}/store', timedelta(seconds=60), count, rank)
        said = fn(*args)
    except Exception as e: said = e
    pipe.send(said)
    pipe.close()
    os._exit(0)

def said_by(end):
    try: return end.recv()
    except EOFError: return None                              # somebody killed it

def together(count, fn, *args, seconds=100, joins=True):
    "What `fn(*args)` gives in each of several processes, that make a group unless they do it themselves"
    context,parts = multiprocessing.get_context('forkserver' if torch.cuda.is_available() else 'fork'),[]
    with tempfile.TemporaryDirectory() as folder:
        for r in range(count):
            mine,theirs = context.Pipe(False)
            p = context.Process(target=child, args=(fn, args, r, count, folder, theirs, joins))
            p.start(); theirs.close(); parts.append((p, mine))
        end = time.monotonic()+seconds
        try: return [said_by(mine) if mine.poll(max(0, end-time.monotonic())) else pytest.fail('a process hangs') for _,mine in parts]
        finally:
            for p,_ in parts: p.kill(); p.join()

def talk():
    "Every function of `several`, with values that differ between the processes"
    r,n = several.rank(),several.processes()
    x = torch.tensor([[1.+r], [10.*r]], requires_grad=True)
    rows = several.gathered(x)
    (rows.flatten()*torch.arange(2.*n)).sum().backward()      # the same sum everywhere: its slope at row i is i
    labels = several.gathered_dict(dict(a=torch.tensor([r, -r]), b=torch.tensor([r==1, False]), map=x), 2)
    a,b,c = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    a.grad = torch.tensor([1., r])
    if r==1: b.grad = torch.tensor([float(n), 0.])            # only one process used it
    several.average_gradients([a, b, c])
    double = torch.full((1,), float(r), dtype=torch.float64)
    several.average([double, half := torch.full((2,2), 2.*r)])
    order = []
    with several.in_turn(): order.append(time.monotonic()); time.sleep(.1*several.first())
    table = pd.DataFrame(dict(v=range(7)))
    shares = [several.in_shares(lambda t: torch.tensor(t.v.to_numpy())[:,None]*1., table.head(m), 2)[:,0].tolist() for m in (7,5,1)]
    bad = pytest.raises(ValueError, several.gathered_dict, dict(a=torch.zeros(3)), 2).value
    return dict(rows=rows.tolist(), slope=x.grad.flatten().tolist(), labels={k: v.tolist() for k,v in labels.items()}, bad=str(bad), order=order[0],
        grads=[None if p.grad is None else p.grad.tolist() for p in (a,b,c)], mean=[double.item(), half.tolist()], shares=shares, all=several.from_all(r))

@pytest.mark.parametrize('n', [2,3])
def test_what_processes_tell_each_other(n):
    said = together(n, talk)
    mean = sum(range(n))/n
    for r,s in enumerate(said):
        assert s['rows']==[[v] for q in range(n) for v in (1.+q, 10.*q)]
        assert s['slope']==[n*2.*r, n*(2.*r+1)]               # times the number of processes, so that the mean is right
        assert s['labels']==dict(a=[v for q in range(n) for v in (q,-q)], b=[q==1 and i==0 for q in range(n) for i in (0,1)])
        assert s['grads']==[[1., pytest.approx(mean)], [1., 0.], None] and s['mean']==[pytest.approx(mean), [[pytest.approx(2*mean)]*2]*2]
        assert s['shares']==[[float(v) for v in range(m)] for m in (7,5,1)] and s['all']==list(range(n))
        assert "'a'" in s['bad'] and s['order']>=said[0]['order']+.1*(r>0)

@pytest.fixture(scope='session')
def people(tmp_path_factory):
    dataset = MannequinWorld(identities=(7,0,4), outfits=2, cameras=3, images=2, size=(64,32), seed=3).write(tmp_path_factory.mktemp('world')/'w', layout='prcc')
    learner_of(dataset)                                       # what is imported late is imported once, and not in every process
    return dataset

def without_batchnorm(model):
    "Norms of one picture in the place of those of a batch"
    for m in list(model.modules()):
        for k,c in list(m.named_children()):
            if isinstance(c, _BatchNorm): setattr(m, k, torch.nn.GroupNorm(1, c.num_features))
    return model

def model_of(network, people):
    if isinstance(network, type): return without_batchnorm(network('resnet_mini', classes=people))
    return ReIDModel(create_backbone(network, size=(64,32)), 'avg', people, 'none' if network=='vit_mini' else 'bn')

def learner_of(dataset, network='vit_mini', cbs=(), identities=4, **kwargs):
    torch.manual_seed(0)
    dls = reid_dataloaders(dataset, Preprocessing((64,32)), identities, 2, num_workers=0, device='cpu')
    model = model_of(network, dls.identities)
    model.preprocessing = dls.preprocessing
    loss = ReIDLoss(identity=identity_term(), triplet=(triplet_term(metric='euclidean'), .5))
    if isinstance(network, type): loss.drop('triplet')        # they bring their own
    sgd = partial(OptimWrapper, opt=torch.optim.SGD, momentum=.9)
    return ReIDLearner(dls, model, loss, opt_func=sgd, lr=.01, wd=0., cbs=[*cbs], **kwargs)

def trained(dataset, network, make, epochs=2, **kwargs):
    "What is left of a training, as plain things"
    learn = learner_of(dataset, network, make(dataset), **kwargs)
    before = repr(learn.dls.train.sampler)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs)
    assert repr(learn.dls.train.sampler)==before              # the share is gone when the fit is over
    figures = learn.retrieval_eval.curve if hasattr(learn, 'retrieval_eval') else None
    return dict(state={k: v.numpy() for k,v in learn.model.state_dict().items()}, history=learn.history, counts=learn.counts, curve=figures,
                loss=[float(v) for v in learn.recorder.losses], random=torch.rand(1).item())

def methods(dataset): return [CAL(0), PCL(), RetrievalEval(dataset, every=1)]
def replacing(dataset): return [HSAL(), GradientAccumulation(16)]
def nothing(dataset): return []

def equal_one(dataset, network, make, count=2):
    "A network without BatchNorm, trained by one process and by several: the same weights and figures"
    one, = together(1, trained, dataset, network, make)
    assert isinstance(one, dict), one
    two = together(count, trained, dataset, network, make)
    for s in two:
        assert isinstance(s, dict), s
        assert s['counts']==one['counts'] and len(s['history'])==2 and s['random']==two[0]['random']
        for a,b in zip(one['history'], s['history']): assert b==pytest.approx(a, rel=2e-5)
        assert s['loss']==pytest.approx(one['loss'], rel=2e-5) and set(s['state'])==set(one['state'])
        for k,v in one['state'].items(): np.testing.assert_allclose(s['state'][k], v, rtol=1e-4, atol=2e-6, err_msg=k)
        for k,v in two[0]['state'].items(): np.testing.assert_array_equal(s['state'][k], v, err_msg=k)
        if one['curve']: assert [e['epoch'] for e in s['curve']]==[0,1] and s['curve']==[pytest.approx(e, abs=1e-3) for e in one['curve']]
    moved = learner_of(dataset, network).model.state_dict()
    assert sum(float(np.abs(v-moved[k].numpy()).max())>1e-3 for k,v in one['state'].items() if k in moved)>10 # something was learnt

@pytest.mark.parametrize('make', [methods, replacing])
def test_two_processes_equal_one(people, make):
    "Identity loss, triplets, CAL with a classifier and an optimiser of its own, a memory; HSAL with accumulated gradients"
    equal_one(people, 'vit_mini', make)

@pytest.fixture(scope='session')
def day_and_night(tmp_path_factory):
    world = MannequinWorld(identities=(7,0,2), outfits=2, cameras=3, images=2, size=(64,32), seed=3, infrared=(2,))
    return world.write(tmp_path_factory.mktemp('world')/'light', layout='mannequins', workers=1)

def few(*cbs, steps=2): return [*cbs, SameSteps(steps)] # maxima and hardest pairs turn, many steps later, a rounding into a choice
def prototypes(dataset): return few(Balanced(), AGW(), BPL(1, first='all'))
def disentangled(dataset): return few(Balanced(), CAL(0), PIA(1))
def refined(dataset): return few(CSSC(0), steps=1)
def three_branches(dataset): return few(MGN(), steps=1)

@pytest.mark.parametrize('network,make,count', [(TwoStream, prototypes, 2), (PIANet, disentangled, 2), (CSSCModel, refined, 2), (MGNModel, three_branches, 4)])
def test_other_methods_equal_one_process(day_and_night, network, make, count):
    "AGW with prototypes of both modalities, PIA's two stages, the triplets of CSSC and MGN"
    equal_one(day_and_night, network, make, count)

class Watch(Method):
    "Keeps what a method can see, and a random number that it draws"
    several = True
    def before_fit(self): self.seen,self.pictures,self.drawn = [],[],[]
    def after_pred(self):
        if not self.training: return
        self.seen.append(({k: v.tolist() for k,v in self.yb[0].items()}, {k: tuple(v.shape) for k,v in self.pred.items()}))
        self.pictures.append(self.xb[0].sum((1,2,3)).tolist())
        self.drawn.append(torch.rand(1).item())

def watched(dataset, network='resnet_mini', epochs=1):
    learn = learner_of(dataset, network, [Watch()])
    own = []
    handle = learn.model.register_forward_hook(lambda *args: own.append(torch.rand(1).item()) if learn.model.training else None)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs)
    w = learn.watch
    return dict(seen=w.seen, pictures=w.pictures, drawn=w.drawn, own=own, sums=[learn.model.state_dict()[k].double().sum().item() for k in learn.model.state_dict()],
                statistics=[t.tolist() for t in running_statistics(learn.model)])

def test_methods_see_the_batch_of_one_process(people):
    "Labels and augmented pictures are those of one process, in its order; random numbers of methods are alike, those of the network are not"
    one, = together(1, watched, people)
    two = together(2, watched, people)
    assert [s['seen'] for s in two]==[[(l, {k: v for k,v in p.items() if k!='map'}) for l,p in one['seen']]]*2
    for b,whole in enumerate(one['pictures']): assert sum((s['pictures'][b] for s in two), [])==whole
    assert two[0]['drawn']==two[1]['drawn'] and not set(two[0]['own']) & set(two[1]['own'])
    assert two[0]['sums']==two[1]['sums'] and two[0]['statistics']==two[1]['statistics'] # BatchNorm: local, then the mean

def averaged():
    "Running statistics, and a module that steps itself"
    model = torch.nn.Module()
    model.norm,model.aux = torch.nn.BatchNorm1d(2, momentum=1.),torch.nn.ModuleDict(dict(a=torch.nn.Linear(1, 1)))
    model.aux['a'].own_optimiser = True
    x = torch.tensor([[0.,0.], [2.,4.]])*(1+several.rank())
    model.norm(x)
    torch.nn.init.constant_(model.aux['a'].weight, float(several.rank()))
    several.average([*running_statistics(model), *own_parameters(model)])
    return model.norm.running_mean.tolist(), model.norm.running_var.tolist(), model.aux['a'].weight.item(), int(model.norm.num_batches_tracked)

def test_batchnorm_keeps_the_mean_of_the_processes():
    "By hand: means (1,2) and (2,4), variances (2,8) and (8,32)"
    assert together(2, averaged)==[([1.5, 3.], [5., 20.], .5, 1)]*2

class Blind(Method): pass
def refusals(dataset):
    said = []
    for cbs in ([Blind()], [AIM(0)], []):
        learn = learner_of(dataset, 'resnet_mini', cbs, identities=4 if cbs else 3)
        with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError) as e: learn.fit(1)
        said.append(str(e.value))
    return said

def test_what_cannot_be_shared_is_refused_before_training(people):
    said = together(2, refusals, people)
    assert said[0]==said[1] and all(word in s for word,s in zip(('Blind: cannot be trained by several processes','AIM: cannot','multiple of 2'), said[0]))
    assert Method.several is False and CAL.several and AIM.several and 'several' not in vars(AIM) # a subclass has to say it anew

def differing(dataset, what):
    learn = learner_of(dataset)
    if what=='weights' and several.rank(): torch.nn.init.ones_(learn.model.classifier.bias)
    if what=='batches' and several.rank(): learn.dls.train.sampler.seed = 5
    if what=='epochs': return error(learn, start_epoch=several.rank())
    return error(learn)

def error(learn, **kwargs):
    with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError) as e: learn.fit(2, **kwargs)
    return str(e.value)

@pytest.mark.parametrize('what', ['weights','batches','epochs'])
def test_processes_that_differ_say_so(people, what):
    assert all(f'different {what}' in s for s in together(2, differing, people, what))

def searched(dataset):
    "fastai's search for a rate, then a fit"
    learn = learner_of(dataset)
    with learn.no_bar(), learn.no_logging():
        found = learn.lr_find(num_it=8, show_plot=False).valley
        learn.fit(1)
    return found, learn.history[0]

def test_a_search_for_a_rate(people):
    one, = together(1, searched, people)
    for rate,history in together(2, searched, people): assert rate==pytest.approx(one[0], rel=1e-5) and history==pytest.approx(one[1], rel=2e-5)

def looked_at(dataset, folder):
    "What the first process does alone, such as TensorBoard's callback, while the others go on"
    learn = learner_of(dataset, cbs=[CSVLogger(folder/f'log-{several.rank()}.csv')])
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    if several.first(): plt.close(learn.show_ranked(dataset, queries=2))
    return several.from_all(several.rank()), repr(learn.evaluate(dataset))

def test_one_process_may_look_and_log_alone(people, tmp_path):
    said = together(2, looked_at, people, tmp_path)
    assert [a for a,_ in said]==[[0,1]]*2 and said[0][1]==said[1][1] and 'clothes-changing: rank-1' in said[0][1]
    assert [p.name for p in tmp_path.iterdir()]==['log-0.csv'] and len((tmp_path/'log-0.csv').read_text().splitlines())==3

def logged(dataset, folder):
    from ccreid.training.loggers import MLflowLogger
    logger = MLflowLogger(uri=(folder/'mlruns').as_uri())
    learn = learner_of(dataset, cbs=[logger])
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    return len(logger.client.search_runs([logger.experiment])) if several.first() else logger.run_id

def test_one_process_logs_to_mlflow(people, tmp_path, monkeypatch):
    pytest.importorskip('mlflow')
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    assert together(2, logged, people, tmp_path)==[1, None]

# the command

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

SMALL = 'backbone=resnet_mini size=[64,32] pretrained=false identities=4 images=2'.split()
def words(root, out, *more):
    return ['train','--data','prcc','--root',str(root),'--method','cal','--epochs','4','--device','cpu','--workers','0','--out',str(out),
            *(w for o in SMALL for w in ('--set',o)), *more]

def command(lines, count, port, folder, number, slow, breaks, killed):
    "What a launcher's process does: exit code, output, errors"
    r = next(i for i in range(count) if claimed(folder/f'{number}-{i}'))
    os.environ.update(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    if count==1: del os.environ['WORLD_SIZE']
    if slow:
        own = sharing.SeveralProcesses.before_train
        sharing.SeveralProcesses.before_train = lambda self: (time.sleep(.5*(self.epoch>0)), own(self))
    if breaks==r:
        draws = Share.epoch
        def broken(self, e):
            if e==1 and killed: os.kill(os.getpid(), signal.SIGKILL)
            if e==1: raise OSError(28, 'No space left on device')
            return draws(self, e)
        Share.epoch = broken
    streams = [open(folder/f'{number}-{r}.{k}', 'w+') for k in ('out','err')]
    sys.stdout,sys.stderr = streams
    code = cli.main(lines)
    said = []
    for s in streams: s.flush(); s.seek(0); said.append(s.read())
    return r, code, *said

def claimed(path):
    try: os.close(os.open(path, os.O_CREAT|os.O_EXCL)); return True
    except FileExistsError: return False

def start(folder, root, out, *more, count=2, slow=False, breaks=None, killed=False, until=None):
    "The command in several processes: what each gives, by its number; None where they were killed when `until` is there"
    number = len(list(folder.iterdir()))
    args = words(root, out, *more),count,free_port(),folder,number,slow,breaks,killed
    if until is None: return sorted(filter(None, together(count, command, *args, joins=False)))
    context = multiprocessing.get_context('forkserver' if torch.cuda.is_available() else 'fork')
    ends = [context.Pipe(False) for _ in range(count)]
    parts = [context.Process(target=child, args=(command, args, r, count, folder, end, False)) for r,(_,end) in enumerate(ends)]
    for p in parts: p.start()
    stop = time.monotonic()+100
    while not until.exists() and time.monotonic()<stop: time.sleep(.002)
    for p in parts: p.kill()
    for p in parts: p.join()

@pytest.fixture(scope='session')
def runs(people, tmp_path_factory):
    "A run by two processes, and one that was killed after an epoch and started again"
    folder = tmp_path_factory.mktemp('runs')
    said = folder/'said'
    said.mkdir()
    whole = start(said, people.root, folder/'whole')
    start(said, people.root, folder/'killed', slow=True, until=folder/'killed'/'checkpoint.pth')
    left = torch.load(folder/'killed'/'checkpoint.pth', weights_only=True)
    again = start(said, people.root, folder/'killed')
    return folder,said,whole,left,again

def test_the_first_process_prints_and_writes(runs, people):
    folder,_,whole,*_ = runs
    (_,code,out,err),(_,code1,out1,err1) = whole
    assert code==code1==0, err+err1
    assert out1=='' and '2 processes: each has 2 of the 4 people' in out and 'clothes-changing: rank-1' in out and out.count('epoch 3')==1
    record = json.loads((folder/'whole'/'metrics.json').read_text())
    per_epoch = PKSampler(people.train.identity, 4, 2).batches
    assert record['processes']==2 and record['steps']==4*per_epoch and record['images_seen']==8*record['steps']
    names = {p.name for p in (folder/'whole').iterdir() if p.suffix!='.lock' and p.name!='.lock'}
    assert names=={'checkpoint.pth','cal.safetensors','metrics.json'}

def test_killed_and_started_again(runs):
    "The same weights to the last bit, and the same figures"
    folder,_,_,left,again = runs
    assert left['epoch']<3 and left['plan']['processes']==2   # it was killed on the way
    assert [c for _,c,*_ in again]==[0,0] and 'goes on from its checkpoint' in again[0][2], again
    assert (folder/'killed'/'cal.safetensors').read_bytes()==(folder/'whole'/'cal.safetensors').read_bytes()
    a,b = (json.loads((folder/k/'metrics.json').read_text()) for k in ('whole','killed'))
    assert all(a[k]==b[k] for k in ('history','protocols','steps','images_seen'))

def test_another_number_of_processes_is_another_run(runs, people):
    folder,said,*_ = runs
    (_,code,_,err), = start(said, people.root, folder/'whole', count=1)
    assert code==2 and "'processes': (2, None)" in err

@pytest.mark.parametrize('breaks', [0, 1])
def test_an_error_in_one_process_ends_the_other(runs, people, tmp_path, breaks):
    _,said,*_ = runs
    begun = time.monotonic()
    res = start(said, people.root, tmp_path/'broken', breaks=breaks)
    assert [c for _,c,*_ in res]==[2, 2] and time.monotonic()-begun<60
    assert 'the disk is full' in res[breaks][3] and 'another of the 2 processes ended' in res[1-breaks][3], res
    assert res[1][3].splitlines()[-1].startswith('ccreid (process 1): ') and 'not expected here' not in res[1-breaks][3]

def test_a_process_that_is_killed_ends_the_others(runs, people, tmp_path):
    _,said,*_ = runs
    begun = time.monotonic()
    (r,code,_,err), = start(said, people.root, tmp_path/'broken', breaks=1, killed=True)
    assert (r,code)==(0,2) and time.monotonic()-begun<60 and 'another of the 2 processes ended' in err and len(err.splitlines())==1

def test_what_is_refused_is_one_line_in_each_process(runs, people, tmp_path):
    _,said,*_ = runs
    for more,word in ((('--method','aim'), 'AIM: cannot be trained by several processes'), (('--set','identities=3'), 'dealt evenly')):
        res = start(said, people.root, tmp_path/'no', *more)
        assert [c for _,c,*_ in res]==[2, 2] and all(word in e and len(e.strip().splitlines())<=2 for *_,e in res), res

def test_other_commands_are_done_by_one(ccreid, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    code,_,err = ccreid('settings')
    assert code==2 and 'settings is done by one process, and a launcher started 2' in err
    code,_,err = ccreid('train','--data','prcc','--device','cpu')
    assert code==2 and 'RANK is not set' in err and len(err.splitlines())==1
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0)); taken.listen(1)
        good = dict(RANK='0', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(taken.getsockname()[1]))
        for bad,word in (({}, 'is taken: give the launcher another one'), (dict(RANK='2'), "RANK is '2'"), (dict(RANK='one'), "RANK is 'one'"),
                         (dict(MASTER_PORT='70000'), "MASTER_PORT is '70000'"), (dict(MASTER_PORT='x'), "MASTER_PORT is 'x'")):
            for k,v in {**good, **bad}.items(): monkeypatch.setenv(k, v)
            code,_,err = ccreid('train','--data','prcc','--device','cpu')
            assert code==2 and word in err and len(err.splitlines())==1, err
    monkeypatch.setenv('WORLD_SIZE', 'many')
    assert 'no number of processes' in ccreid('settings')[2]

LAUNCHERS = dict(accelerate=['-m','accelerate.commands.launch','--multi_gpu','--num_processes','2','--main_process_port'],
                 torchrun=['-m','torch.distributed.run','--nproc-per-node','2','--master-port'])

def launch(launcher, folder, *lines):
    if launcher=='accelerate': pytest.importorskip('accelerate')
    env = {k: v for k,v in os.environ.items() if not k.startswith('CCREID_')}|dict(PYTHONPATH=str(Path(cli.__file__).parents[1]))
    return subprocess.Popen([sys.executable, *LAUNCHERS[launcher], str(free_port()), *map(str, lines)], cwd=folder, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

def trained_together(out, said):
    assert said.count('Folder of the run')==1 and said.count('clothes-changing: rank-1')==1
    assert json.loads((out/'metrics.json').read_text())['processes']==2

STARTED = """import json, os, sys, time
new = os.path.join(sys.argv[1], 'new-'+os.environ['RANK'])
with open(new, 'w') as f: json.dump(dict(os.environ), f)
os.rename(new, os.path.join(sys.argv[1], 'env-'+os.environ['RANK']))
end = time.monotonic()+90
while not os.path.exists(os.path.join(sys.argv[1], 'done')) and time.monotonic()<end: time.sleep(.02)
"""

def as_launched(folder, lines):
    "The command, as in a process of a launcher: here without the seconds that imports take"
    r = next(i for i in range(2) if claimed(folder/f'taken-{i}'))
    os.environ.update(json.loads((folder/f'env-{r}').read_text()))
    sys.stdout = open(folder/f'{r}.out', 'w+')
    code = cli.main(lines)
    sys.stdout.flush(); sys.stdout.seek(0)
    return code, sys.stdout.read()

def test_a_launcher_starts_it(people, tmp_path):
    "accelerate's own environment and meeting place"
    (tmp_path/'started.py').write_text(STARTED)
    p = launch('accelerate', tmp_path, 'started.py', tmp_path)
    end = time.monotonic()+90
    while p.poll() is None and len(list(tmp_path.glob('env-*')))<2 and time.monotonic()<end: time.sleep(.02)
    try: said = together(2, as_launched, tmp_path, words(people.root, tmp_path/'run', '--epochs', '1'), joins=False)
    finally: (tmp_path/'done').touch(); _,err = p.communicate(timeout=60)
    assert p.returncode==0, err[-2000:]
    assert sorted(c for c,_ in said)==[0,0], said
    trained_together(tmp_path/'run', ''.join(out for _,out in said))

@pytest.mark.slow
@pytest.mark.parametrize('launcher', LAUNCHERS)
def test_a_launcher_starts_the_module(people, tmp_path, launcher):
    p = launch(launcher, tmp_path, '-m', 'ccreid', *words(people.root, tmp_path/'run', '--epochs', '1'))
    out,err = p.communicate(timeout=300)
    assert p.returncode==0, err[-2000:]
    trained_together(tmp_path/'run', out)
