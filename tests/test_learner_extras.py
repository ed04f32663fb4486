"The learner's smaller promises: modality, groups, views, rows, frozen modules, fastai's helpers, light imports"
import json, os, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from torch import nn
import ccreid.compat
from fastai.callback.core import Callback
from ccreid.baselines.cal import CAL
from ccreid.data.batches import Draw, ReIDImages, embedding_loader, modality_of, reid_dataloaders, view_seed
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import DataError
from ccreid.data.transforms import Preprocessing, test_transform as as_tested, train_transform
from ccreid.models.backbones import create_backbone
from ccreid.models.reid_model import ReIDModel, ask
from ccreid.recipes import build, recipe
from ccreid.training.checkpoints import Checkpoint
from ccreid.training.embedding import embed
from ccreid.training.export import export_reid, load_reid, parity
from ccreid.training.frozen import freeze, frozen_parts, frozen_sums, kept_state, thaw
from ccreid.training.learner import Method, parameter_groups, reid_learner, trained_parameters
from ccreid.training.retrieval import RetrievalEval
from ccreid.training.schedules import EpochSchedule, warmup_multistep

ROOT = Path(__file__).resolve().parent.parent
PRE = Preprocessing((64,32))

@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    world = MannequinWorld(identities=(6,0,4), outfits=2, cameras=3, images=2, size=(64,32), seed=3)
    return world.write(tmp_path_factory.mktemp('world')/'w', layout='prcc')

@pytest.fixture(scope='module')
def mixed(dataset):
    "The same with every second picture called infrared"
    from ccreid.data.samples import ReIDDataset
    table = dataset.samples.copy()
    table['modality'] = [('visible','infrared')[i%2] for i in range(len(table))]
    return ReIDDataset('mixed', dataset.root, table, dataset.protocols)

def loaders(dataset, **kwargs): return reid_dataloaders(dataset, PRE, 3, 2, num_workers=0, device='cpu', **kwargs)

def learner(dataset, cbs=None, **kwargs): return reid_learner(loaders(dataset), 'resnet_mini', cbs, **kwargs)

def quiet(learn, n=1, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, **kwargs)
    return learn

def weights(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}

def equal(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

# --- modality

class TwoStems(ReIDModel):
    "Keeps what it was asked, and dims infrared pictures"
    wants_modality = True
    def forward(self, image, modality):
        self.asked = [*getattr(self, 'asked', []), modality.tolist()]
        assert modality.dtype==torch.long and modality.shape==(len(image),)
        return super().forward(image*(1-.5*modality.view(-1,1,1,1)))

def test_a_model_that_wants_the_modality_gets_it_everywhere(mixed, dataset, tmp_path):
    torch.manual_seed(0)
    model = TwoStems('resnet_mini', classes=loaders(mixed).identities)
    class Watch(Callback):
        order = 99
        def before_fit(self): self.seen = []
        def before_batch(self): self.seen.append(self.yb[0]['modality'].tolist())
    learn = quiet(reid_learner(loaders(mixed), model, [Watch()]))
    assert model.asked==learn.watch.seen and {o for b in model.asked for o in b}=={0,1}
    table = mixed.samples[mixed.samples.split!='train'].reset_index(drop=True)
    both = embed(learn, table, batch_size=5)
    kind = torch.from_numpy(modality_of(table))
    x = torch.cat(list(embedding_loader(table, PRE)))
    with torch.no_grad(): by_hand = [model.eval()(o, modality=kind)['features'] for o in (x, x.flip(-1))]
    torch.testing.assert_close(both, nn.functional.normalize(sum(by_hand)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both, embed(learn, table.drop(columns='modality')), atol=1e-3)
    model.asked = []
    assert parity(model, model)==0 and model.asked[0]==[0,1,0,1]
    model.asked = []
    quiet(reid_learner(loaders(mixed), model, [RetrievalEval(mixed, every=1)]))
    assert {o for b in model.asked for o in b}=={0,1}

def test_export_compares_a_model_that_asks(mixed, tmp_path, monkeypatch):
    from ccreid.training import export
    model = TwoStems('resnet_mini', classes=3)
    model.preprocessing = PRE
    with pytest.raises(ValueError, match='other features'): export_reid(model, tmp_path/'m.safetensors') # would come back as another kind
    monkeypatch.setattr(export.ReIDModel, 'from_config', classmethod(lambda cls, config: TwoStems(**{k: v for k,v in config.items() if k!='last_stride'})))
    model.config.pop('size', None)
    assert export_reid(model, tmp_path/'m.safetensors').exists()

def test_modality_of_tables_with_and_without_it(dataset):
    t = dataset.train
    assert modality_of(t.drop(columns='modality')).tolist()==[0]*len(t)
    assert modality_of(t.assign(modality=[None,'infrared']*(len(t)//2))).tolist()==[0,1]*(len(t)//2)
    assert modality_of(t.iloc[:0]).shape==(0,)
    with pytest.raises(DataError, match="modality is visible or infrared, not 'x-ray'"): modality_of(t.assign(modality='x-ray'))
    assert ask(nn.Flatten(), torch.zeros(2,3), None).shape==(2,3)

# --- rows and views

class ByRow:
    "A transform that writes what it is told into the picture"
    wants_row, preprocessing = True, PRE
    def __call__(self, image, seed, labels):
        self.told = labels
        return np.full((3,64,32), labels['camera'], np.float32)

def test_transforms_may_look_at_the_row(dataset):
    t = dataset.train
    images = ReIDImages(t, ByRow())
    for i in (0, len(t)-1):
        x,labels = images[Draw(i, 0, 7, 3)]
        assert (x==int(t.camera.iloc[i])).all() and images.transform.told==labels
        assert set(labels)=={'identity','clothes','camera','modality','generated','group','row'} and labels['row']==i
        assert all(type(v) in (int,bool) for v in labels.values())
    x = torch.cat(list(embedding_loader(t, PRE, transform=ByRow())))
    assert x[:,0,0,0].tolist()==t.camera.tolist()
    assert (loaders(dataset, test=ByRow()).valid.dataset[0][0]==loaders(dataset).valid.dataset[0][1]['camera']).all()
    assert embed(learner(dataset), t, transform=ByRow()).shape==(len(t),256)

def test_a_second_view_is_real_and_has_its_own_seed(dataset):
    class Two(Method):
        def attach(self, learn): learn.add_view('second')
        def after_pred(self):
            if self.training: self.learn.pred['other'] = self.learn.model(self.yb[0]['second'])['features']
    learn = quiet(learner(dataset, [Two()]))
    x,labels = learn.dls.train.one_batch()
    assert labels['generated'].sum()==0 and labels['second'].shape==x.shape and not torch.equal(labels['second'], x)
    plain = learner(dataset).dls.train
    plain.set_epoch(learn.dls.train.epoch)
    assert torch.equal(plain.one_batch()[0], x)                          # the first view is what it was
    images = learn.dls.train.dataset
    one,again,other = (images[Draw(0, 0, s)][1]['second'] for s in (5, 5, 6))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(one, images[Draw(0, 0, view_seed(5, 'second'))][0])
    assert images[Draw(0, 0, 5)][1]['generated']==0                       # as with a sampler that draws a row twice
    with pytest.raises(ValueError, match="'second' already"): learn.add_cb(Two())
    with pytest.raises(ValueError, match="'row' already"): learn.add_view('row')

# --- groups

def test_parameter_groups_cover_everything_once(dataset):
    model = learner(dataset, [CAL(0)]).model
    names,groups = parameter_groups(model, dict(low='backbone', necks=['neck','pool']))
    assert names==['low','necks','rest'] and sorted(id(p) for g in groups for p in g)==sorted(map(id, trained_parameters(model)))
    assert {id(p) for p in groups[2]}=={id(p) for p in model.classifier.parameters()}
    assert parameter_groups(model, trained_parameters)==([], trained_parameters(model))
    assert parameter_groups(model, lambda m: dict(a=m.parameters()))[0]==['a']
    with pytest.raises(ValueError, match='splitter: .*wings'): parameter_groups(model, dict(a='wings'))
    with pytest.raises(ValueError, match="group 'b' holds a parameter twice"): parameter_groups(model, dict(a='backbone', b='backbone.net'))

def test_each_group_has_its_rate_also_after_a_new_optimiser(dataset):
    r = recipe('mannequins', 'fire', epochs=3, start_epoch=1, identities=3, images=2, size=(64,32))
    learn = build(r, dataset, device='cpu')
    learn.remove_cb(EpochSchedule)
    learn.splitter = dict(backbone='backbone', fine='aux.fine_classifier')
    learn.add_cb(EpochSchedule(dict(backbone=warmup_multistep(1e-5, (2,)), fine=warmup_multistep(1e-3), rest=warmup_multistep(1e-4))))
    rates = []
    class Watch(Callback):
        def before_batch(self):
            if self.training: rates.append([g['lr'] for g in self.learn.opt.opt.param_groups])
    learn.add_cb(Watch())
    quiet(learn, 3)
    n = len(learn.dls.train)
    np.testing.assert_allclose(rates, [[1e-5,1e-3,1e-4]]*2*n+[[1e-6,1e-3,1e-4]]*n)
    assert learn.model.aux['fine_classifier'].weight is learn.opt.opt.param_groups[1]['params'][0]

def test_rates_that_do_not_fit_the_groups_are_refused(dataset):
    for rate,says in ([min], '1 rates, and the optimiser 2 groups'), (dict(low=min), 'has rates for low'):
        with pytest.raises(ValueError, match=says): quiet(learner(dataset, [EpochSchedule(rate)], splitter=dict(backbone='backbone')))

# --- frozen modules

class Helper(Method):
    "Asks a frozen network in every step"
    def __init__(self, scale=1.): self.scale = scale
    def attach(self, learn):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(learn.model.dim, 8), nn.BatchNorm1d(8))
        with torch.no_grad(): net[0].weight.mul_(self.scale)
        self.net = learn.add_module('helper', net, frozen=True)
        learn.add_term('helped', lambda o,l: self.net(o['features']).pow(2).mean(), .1)

def test_frozen_modules_stay_and_are_in_no_checkpoint(dataset, tmp_path):
    path = tmp_path/'c.pth'
    learn = learner(dataset, [Helper(), Checkpoint(path)])
    before = {k: v.clone() for k,v in learn.helper.net.state_dict().items()}
    quiet(learn, 2)
    assert equal(before, dict(learn.helper.net.state_dict())) and not learn.helper.net.training and learn.history[0]['helped']>0
    saved = torch.load(path, weights_only=True)
    assert not [k for k in saved['model'] if 'helper' in k] and saved['plan']['frozen']==frozen_sums(learn.model)
    assert 'frozen' not in torch.load(self_made(dataset, tmp_path/'plain.pth'), weights_only=True)['plan']
    class Die(Callback):
        def before_epoch(self):
            if self.epoch==2: raise KeyboardInterrupt
    whole = quiet(learner(dataset, [Helper(), Checkpoint(tmp_path/'w.pth')]), 3)
    with pytest.raises(KeyboardInterrupt): quiet(learner(dataset, [Helper(), Checkpoint(tmp_path/'d.pth'), Die()]), 3)
    again = quiet(learner(dataset, [Helper(), Checkpoint(tmp_path/'d.pth')]), 3)
    assert again.first_epoch==2 and equal(weights(whole), weights(again))
    for cbs in ([Helper(2.)], []):
        with pytest.raises(ValueError, match='another run.*frozen|another run.*terms'): quiet(learner(dataset, [*cbs, Checkpoint(tmp_path/'d.pth')]), 3)
    assert [k for k in weights(again) if 'helper' in k] and len(export_reid(again, tmp_path/'m.safetensors').read_bytes())<2e6

def self_made(dataset, path):
    quiet(learner(dataset, [Checkpoint(path)]))
    return path

def test_frozen_is_undone_with_its_callback(dataset):
    learn = learner(dataset, [Helper()])
    net = learn.helper.net
    learn.model.train()
    assert not net[1].training and not any(p.requires_grad for p in net.parameters())
    assert not {id(p) for p in net.parameters()} & {id(p) for p in trained_parameters(learn.model)}
    learn.remove_cb(learn.helper)
    assert net.training and all(p.requires_grad for p in net.parameters()) and not frozen_parts(learn.model)
    with pytest.raises(ValueError, match='frozen'): learn.add_module('x', nn.Linear(1,1), own_optimiser=True, frozen=True)

def test_parts_of_the_network_itself_can_be_frozen(dataset, tmp_path):
    learn = learner(dataset, [Checkpoint(tmp_path/'c.pth')])
    stem = freeze(learn.model.backbone.net.conv1)
    before = {k: v.clone() for k,v in stem.state_dict().items()}
    quiet(learn)
    assert equal(before, dict(stem.state_dict())) and not [k for k in kept_state(learn.model) if k.startswith('backbone.net.conv1.')]
    again = embed(load_reid(export_reid(learn, tmp_path/'m.safetensors')), dataset.query)
    torch.testing.assert_close(embed(learn, dataset.query), again, rtol=1e-4, atol=1e-6)
    assert thaw(stem).training

@pytest.mark.parametrize('every', [0, -1, 1.5, '1', None])
def test_a_checkpoint_counts_epochs(every, tmp_path):
    with pytest.raises(ValueError, match=f'every counts epochs .* not {every!r}'): Checkpoint(tmp_path/'c.pth', every=every)

def test_what_cannot_be_exported_is_named(tmp_path):
    class Own(nn.Module):
        channels = 3
        def forward(self, x): return x
    own = ReIDModel(Own())
    own.preprocessing = PRE
    for model,says in ((nn.Linear(2,2), 'a Linear is no ReIDModel'), ('x', 'a str is no ReIDModel'), (ReIDModel('resnet_mini'), 'preprocessing'), (own, 'export_onnx')):
        with pytest.raises(ValueError, match=says): export_reid(model, tmp_path/'m.safetensors')
    assert not list(tmp_path.iterdir())

# --- fastai's helpers

def test_lr_find_leaves_no_trace(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    def make():
        cbs = [CAL(0), EpochSchedule(warmup_multistep(1e-3, (1,))), RetrievalEval(dataset, every=1), Checkpoint(tmp_path/'c.pth')]
        return learner(dataset, cbs)
    plain,learn = quiet(make(), 2),None
    (tmp_path/'c.pth').unlink()
    learn = make()
    before,state = weights(learn),torch.random.get_rng_state()
    with learn.no_bar(): found = learn.lr_find(num_it=8, show_plot=False)
    assert 1e-7<=found.valley<=10 and equal(before, weights(learn)) and torch.equal(state, torch.random.get_rng_state())
    assert not (tmp_path/'c.pth').exists() and not (tmp_path/'models').exists() and learn.history==[] and learn.dls.train.epoch==0
    assert learn.retrieval_eval.curve==[] and learn.cal.clothes_opt is None and learn.opt is None
    quiet(learn, 2)
    assert equal(weights(plain), weights(learn)) and plain.history==learn.history
    after,optimiser = weights(learn),{k: v['step'].clone() for k,v in learn.opt.opt.state_dict()['state'].items()}
    with learn.no_bar(): learn.lr_find(num_it=8, show_plot=False)
    assert equal(after, weights(learn)) and plain.history==learn.history and len(learn.retrieval_eval.curve)==2
    assert [c['steps'] for c in plain.counts]==[c['steps'] for c in learn.counts] and len(learn.counts)==2
    assert all(torch.equal(optimiser[k], v['step']) for k,v in learn.opt.opt.state_dict()['state'].items())
    class Stop(Callback):
        def after_batch(self):
            if hasattr(self.learn, 'lr_finder'): raise KeyboardInterrupt
    learn.add_cb(Stop())
    with pytest.raises(KeyboardInterrupt), learn.no_bar(): learn.lr_find(num_it=8, show_plot=False)
    assert equal(after, weights(learn)) and learn.checkpoint.run and not hasattr(learn, 'lr_finder')

def test_lr_find_puts_back_what_a_method_exchanges(dataset):
    r = recipe('mannequins', 'fire+hsal', epochs=2, start_epoch=0, identities=3, images=2, size=(64,32))
    histories = []
    for look in (False, True):
        learn = build(r, dataset, device='cpu')
        if look:
            with learn.no_bar(): learn.lr_find(num_it=6, show_plot=False)
            assert [cb for cb in learn.cbs if hasattr(cb, 'clusters')][0].clusters==[]
        histories.append(quiet(learn, 2).history)
    assert histories[0]==histories[1]

def test_a_search_that_is_too_short_says_so(dataset):
    "As with memories that are empty in the first batch: the loss is many times larger in the second"
    class Grows(Method):
        seen = 0
        def attach(self, learn): learn.add_term('grows', self.term)
        def term(self, output, labels):
            self.seen += 1
            return 50.*(self.seen>1)+0.*output['features'].mean()
    learn = learner(dataset, [Grows()])
    before = weights(learn)
    with pytest.raises(ValueError, match='ended after 2 batches.*num_it.*stop_div=False') as e, learn.no_bar(): learn.lr_find(num_it=16, show_plot=False)
    assert '\n' not in str(e.value) and equal(before, weights(learn)) and learn.opt is None and learn.grows.seen==0
    with learn.no_bar(): assert learn.lr_find(num_it=16, show_plot=False, stop_div=False).valley>0

def test_one_cycle_and_a_schedule_do_not_go_together(dataset):
    learn = learner(dataset)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-3)
    lrs = learn.recorder.lrs
    assert len(lrs)==2*len(learn.dls.train) and max(lrs)==pytest.approx(1e-3, rel=.3) and lrs[-1]<lrs[0]<max(lrs)
    learn.add_cb(EpochSchedule(warmup_multistep(1e-3)))
    with pytest.raises(ValueError, match=r'two callbacks set the learning rate.*remove_cb\(EpochSchedule\)'), learn.no_bar(): learn.fit_one_cycle(1)
    quiet(learn)
    assert learn.history[-1]['lr']==1e-3

def test_summary_only_looks(dataset, tmp_path, capsys):
    learn = learner(dataset, [CAL(0), Helper(), Checkpoint(tmp_path/'c.pth'), RetrievalEval(dataset)])
    before = weights(learn)
    learn.model.train()
    text = str(learn.summary())
    for o in ('Conv2d','BatchNorm2d','ReIDModel','6 x 3 x 64 x 32','identity, cal, helped','RetrievalEval','Total params'): assert o in text, o
    assert equal(before, weights(learn)) and learn.model.training and learn.opt is None and not list(tmp_path.iterdir())
    assert capsys.readouterr().out==''
    assert 'ReIDModel' not in str(reid_learner(loaders(dataset), TwoStems('resnet_mini', classes=6)).summary()).split('\n')[1]
    quiet(learn)
    assert 'OptimWrapper' in str(learn.summary())

# --- they say what they are

def test_learner_loaders_and_samplers_say_what_they_are(dataset):
    from ccreid.data.batches import ImageCache, InOrder
    from ccreid.data.samplers import PKSampler
    learn = learner(dataset, [CAL(0), EpochSchedule(warmup_multistep(1e-3))])
    assert repr(learn)=='ReIDLearner: resnet_mini, 6 identities, terms identity + cal, callbacks CAL, EpochSchedule'
    train,valid = learn.dls.train,learn.dls.valid
    assert repr(train)==f'ReIDLoader: {len(train)} batches of 6 pictures, 64x32 pixels, drawn by PKSampler from {len(train.dataset)}'
    assert 'by InOrder from' in repr(valid) and repr(valid.sampler)==f'InOrder: {len(valid.dataset)} rows, 12 in a batch'
    assert repr(train.sampler)==(f'PKSampler: {len(train)} batches of 3 people x 2 pictures, '
                                 f'from {len(train.dataset)} of 6 people, seed 0')
    images = train.dataset
    assert repr(images)==f'ReIDImages: {len(images)} pictures of 6 people'
    images.append(dataset.train.iloc[:2].assign(generated_by='mannequins'))
    assert repr(images)==f'ReIDImages: {len(images)} pictures of 6 people, 2 of them generated'
    assert repr(ImageCache(PRE))=='ImageCache: 0 pictures of 64x32 pixels'
    class Twice:
        "Says nothing of itself, and could not"
        def __init__(self, sampler): self.sampler,self.batch_size = sampler,sampler.batch_size
        def __len__(self): return len(self.sampler)
        def epoch(self, e): return self.sampler.epoch(e)
        def __repr__(self): raise AssertionError('asked')
    train.wrap_sampler(Twice)
    assert 'by Twice of PKSampler from' in repr(train).replace('\n ', '')

def test_what_they_say_fits_a_page(dataset):
    "Many terms and callbacks, a loss and a model that know no names"
    learn = learner(dataset, [CAL(0)])
    for i in range(9): learn.add_term(f'a_long_name_of_a_term_{i}', lambda output,labels: output['features'].mean())
    said = repr(learn)
    assert max(map(len, said.split('\n')))<=90 and 'a_long_name_of_a_term_8' in said
    other = reid_learner(loaders(dataset), nn.Linear(2,2), loss_func=nn.L1Loss())
    assert repr(other)=='ReIDLearner: Linear, 6 identities, terms L1Loss'

# --- imports

_code = '''
import sys
def heavy(): return [m for m in ('sklearn','scipy.stats','torchvision','timm','torch._dynamo','fastai.vision','IPython') if m in sys.modules]
import ccreid.training.learner, ccreid.training.trial, ccreid.training.checkpoints, ccreid.training.export, ccreid.experiments
print(heavy())
'''

def test_the_learner_starts_without_what_it_may_never_need():
    assert subprocess.run([sys.executable, '-c', _code], capture_output=True, text=True, env=os.environ).stdout.strip()=='[]'

# --- make gpu

@pytest.fixture(scope='module')
def gpu():
    from importlib.util import module_from_spec, spec_from_file_location
    spec = spec_from_file_location('ccreid_tools_gpu', ROOT/'tools'/'gpu.py')
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

@pytest.mark.skipif(torch.cuda.is_available(), reason='there is CUDA')
def test_without_cuda_make_gpu_says_so(gpu, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert gpu.main([])==2
    out = capsys.readouterr().out
    assert out.count('\n')==1 and 'No CUDA here' in out and not list(tmp_path.iterdir())

def test_a_step_that_fails_is_said_and_the_others_run(gpu, tmp_path, monkeypatch, capsys):
    def wrong(o): raise RuntimeError('features differ')
    monkeypatch.setattr(gpu, 'steps', lambda o: [('wrong', wrong), ('metrics', gpu.same_metrics)])
    assert gpu.main(['--cpu', '--out', str(tmp_path/'a.json')])==1
    found = json.loads((tmp_path/'a.json').read_text())
    assert found['device_name'] and [s['state'] for s in found['steps'].values()]==['FAILED','ok']
    assert 'RuntimeError: features differ' in capsys.readouterr().out
    assert gpu.main(['--cpu', '--limit', '-1', '--out', str(tmp_path/'b.json')])==1
    assert {s['state'] for s in json.loads((tmp_path/'b.json').read_text())['steps'].values()}=={'not run'}

@pytest.mark.slow
def test_the_steps_of_make_gpu_run_on_the_cpu(gpu, tmp_path):
    assert gpu.main(['--cpu', '--limit', '3600', '--out', str(tmp_path/'a.json')])==0


def test_the_list_that_is_drawn_is_the_list_that_was_scored(tmp_path, monkeypatch):
    from ccreid.data.mannequins import MannequinWorld
    from ccreid.evaluation import ranked_lists
    from ccreid.evaluation.comparing import compared
    from ccreid.training.asking import compared_features
    videos = MannequinWorld(identities=(3,0,4), outfits=2, cameras=2, images=4, size=(32,16), seed=3).write(tmp_path/'v', layout='ccvid')
    name = next(k for k,p in videos.protocols.items() if p.unit=='tracklet')
    model,seen = ReIDModel('resnet_mini'),[]
    model.preprocessing = Preprocessing((32,16))
    monkeypatch.setattr(ranked_lists, 'ranked_list', lambda q, g, query, gallery, *args: seen.append((q, g, query)))
    model.show_ranked(videos, name, queries=1)
    table,features = compared_features(model, videos, [videos.protocols[name]])
    (q,g,query), wanted = seen[0], next(compared(features, table, videos.protocols[name]))
    assert torch.equal(q, wanted[0]) and torch.equal(g, wanted[1]) and len(q)==len(query)
    first = query.iloc[0]
    frames = table[(table.tracklet==first.tracklet) & (table.split==first.split) & (table.identity==first.identity)]
    assert len(frames)>1 and torch.allclose(q[0], features[frames.index].mean(0), atol=1e-5)
