"DCAC on the learner: every step by hand, beside other methods, killed and resumed, steps that are skipped, what is saved, the command line"
import math, shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
import ccreid.compat
from fastai.callback.core import Callback, CancelStepException
from fastai.callback.training import GradientAccumulation
from ccreid.baselines.cal import CAL
from ccreid.data.batches import Preprocessing, reid_dataloaders
from ccreid.data.mannequins import MannequinWorld
from ccreid.dcac.clip_reid import clip_reid
from ccreid.dcac.conditioning import CorrelationAware, new_conditioning
from ccreid.dcac.expert import DiffusionExpert, load_expert
from ccreid.dcac.feedback import DiffusionFeedback, step_seed
from ccreid.dcac.memory import PCL
from ccreid.dlcr.progressive import ProgressivePairs
from ccreid.generation.tiny_networks import tiny_unet, tiny_vae
from ccreid.hsgl.hsal import HSAL
from ccreid.models.small_diffusion import new_small_diffusion
from ccreid.training.checkpoints import Checkpoint
from ccreid.training.export import export_reid, load_reid, parity
from ccreid.training.learner import reid_learner
from ccreid.training.terms import ReIDLoss, identity_term
from test_dcac_formulas import Loops, softmax

SIZE = (16,8)

@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    world = MannequinWorld(identities=(4,0,3), outfits=2, cameras=3, images=2, size=(64,32), seed=3)
    return world.write(tmp_path_factory.mktemp('w')/'w', layout='prcc', workers=1)

@pytest.fixture(scope='module')
def networks():
    "A UNet and an autoencoder with weights that are always the same"
    torch.manual_seed(7)
    return tiny_unet(channels=4).state_dict(),tiny_vae().state_dict()

@pytest.fixture(scope='module')
def expert(networks):
    def make(seed=0, mode='lora', rank=2, **kw):
        unet,vae = tiny_unet(channels=4),tiny_vae()
        for net,state in zip((unet, vae), networks): net.load_state_dict(state)
        return DiffusionExpert(unet, vae, size=SIZE, mode=mode, rank=rank, seed=seed, **kw)
    return make

correlation = partial(new_conditioning, 'correlation', temperature=.6)

def learner(dataset, *cbs, seed=0, size=(64,32), **kwargs):
    dls = reid_dataloaders(dataset, Preprocessing(size), 2, 4, seed=seed, num_workers=0, device='cpu', cache=True)
    torch.manual_seed(seed)
    net = clip_reid(dls.identities, 'test_vit', size, dim=8)
    return reid_learner(dls, net, cbs, seed=seed, loss_func=ReIDLoss(identity=identity_term()), lr=1e-3, **kwargs)

def fit(learn, n):
    with learn.no_bar(), learn.no_logging(): learn.fit(n)
    return learn

class Steps(Callback):
    "Keeps what each batch saw, and whether its step moved the network"
    order = 60
    def __init__(self): self.seen,self.moved = [],[]
    def _first(self): return self.learn.model.classifier.weight.detach().clone()
    def before_batch(self): self.before = self._first()
    def after_loss(self):
        if self.training: self.seen.append(({k: v.detach().clone() for k,v in self.pred.items()}, dict(self.yb[0]), dict(self.loss_func.values),
            self.loss.item(), self.epoch, self.iter, self._prompts()))
    def after_batch(self):
        if self.training: self.moved.append(not torch.equal(self.before, self._first()))
    def _prompts(self):
        c = self.learn.model.aux['conditioning'] if 'conditioning' in self.learn.model.aux else None
        return None if c is None else {k: v.detach().clone() for k,v in c.state_dict().items()}

def test_every_step_is_the_sum_of_eq_13(dataset, expert):
    "A frozen model, so that every error can be worked out again: conditions and memory by lists, noise from (seed, epoch, step)"
    steps,cb = Steps(),DiffusionFeedback(partial(expert, mode='frozen'), correlation, weight=.7)
    learn = fit(learner(dataset, PCL(), cb, steps, seed=5), 2)
    again,paths = expert(mode='frozen'),learn.dls.train.dataset.paths
    memory = learn.model.aux['pcl_memory']
    assert len(steps.seen)>=4 and list(learn.model.aux)==['pcl_memory','conditioning']
    for pred,labels,values,loss,epoch,step,cond in steps.seen:
        g = torch.Generator().manual_seed(step_seed(5, epoch, step))
        mean,log_variance = again.cache()([paths[i] for i in labels['row'].tolist()]).chunk(2, 1)
        z = .18215*(mean+(log_variance/2).exp()*torch.randn(mean.shape, generator=g))
        v,c = cond['prompts'].tolist(),[]
        for row in pred['logits'].tolist():
            p = softmax([o/.6 for o in row])
            c.append([sum(p[j]*v[j][k] for j in range(4)) for k in range(32)])
        t,noise = torch.randint(0, 1000, (8,), generator=g),torch.randn(z.shape, generator=g)
        with torch.no_grad():
            noisy = again.scheduler.add_noise(z, noise, t)
            found = again.unet(noisy, t, encoder_hidden_states=torch.tensor(c)[:,None]).sample
        each = ((found-noise)**2).flatten(1).mean(1)
        assert pred['diffusion_error'].tolist()==pytest.approx(each.tolist(), rel=1e-3)
        assert values['diffusion'].item()==pytest.approx(each.mean().item(), rel=1e-3)
        z,y = pred['logits'].double().tolist(),labels['identity'].tolist()
        smooth = [[-math.log(o) for o in softmax(row)] for row in z]
        identity = sum(.9*s[i]+.1*sum(s)/4 for s,i in zip(smooth, y))/8
        assert values['identity'].item()==pytest.approx(identity, rel=1e-4)
        assert loss==pytest.approx(identity+values['pcl'].item()+.7*each.mean().item(), rel=1e-4)
    assert memory.seen.all()

def test_the_memory_of_an_epoch_by_lists(dataset):
    "From the centroids on, every loss and every row"
    steps,pcl,kept = Steps(),PCL(),[]
    class Look(Callback):
        order = 1 # after the memory was begun
        def before_train(self): kept.append([r.tolist() for r in self.learn.model.aux['pcl_memory'].rows])
    learn = fit(learner(dataset, pcl, Look(), steps), 2)
    for e in (0,1):
        loops = Loops(.2, .01)
        loops.rows = dict(enumerate(kept[e]))
        for pred,labels,values,*_ in (s for s in steps.seen if s[4]==e):
            f,y = pred['features'].tolist(),labels['identity'].tolist()
            assert values['pcl'].item()==pytest.approx(loops.loss(f, y), rel=1e-2, abs=1e-3)
            loops.update(f, y)
    for i,row in loops.rows.items(): assert learn.model.aux['pcl_memory'].rows[i].tolist()==pytest.approx(row, abs=1e-4)

# --- beside others

def test_beside_cal_and_hsal_nothing_of_theirs_changes(dataset, expert):
    others = lambda: [CAL(start_epoch=0), HSAL()]
    alone,both = Steps(),Steps()
    fit(learner(dataset, *others(), alone), 1)
    learn = fit(learner(dataset, *others(), PCL(), DiffusionFeedback(expert, correlation), both), 1)
    assert list(learn.loss_func.terms)==['identity','cal','hsal','pcl','diffusion']
    a,b = alone.seen[0],both.seen[0]
    for k,v in a[2].items(): assert torch.equal(v, b[2][k]), k             # the first step: same weights, same images
    values = b[2]
    assert b[3]==pytest.approx((values['identity']+values['cal']+.1*values['hsal']+values['pcl']+values['diffusion']).item(), rel=1e-5)
    for cb in (DiffusionFeedback, PCL): learn.remove_cb(cb)
    assert list(learn.loss_func.terms)==['identity','cal','hsal'] and set(learn.model.aux)=={'clothes_classifier'}

def test_generated_partners_are_encoded_too(dataset, expert, tmp_path):
    made = []
    for i,r in enumerate(dataset.train.to_dict('records')):
        path = tmp_path/f'{i}{Path(r["path"]).suffix}'
        shutil.copy(r['path'], path)
        made.append(dict(r, path=str(path), clothes=-1, generated_by='test', source=r['path'], variant=0))
    learn = learner(dataset, ProgressivePairs(pd.DataFrame(made), every=1, parts=1), DiffusionFeedback(expert, correlation))
    fit(learn, 2)
    kept = set(learn.diffusion_feedback.moments.kept)
    assert any(str(tmp_path) in p for p in kept) and any(str(tmp_path) not in p for p in kept)
    assert all(math.isfinite(h['diffusion']) for h in learn.history)

def test_accumulated_gradients_move_rows_only_at_steps(dataset, expert):
    "Rows of the memory, prompts and network: all or nothing"
    class Rows(Steps):
        def __init__(self): super().__init__(); self.rows,self.prompts = [],[]
        def _now(self): return [self.learn.model.aux['pcl_memory'].rows.clone(), self.learn.model.aux['conditioning'].prompts.detach().clone()]
        def before_batch(self): super().before_batch(); self.at = self._now()
        def after_batch(self):
            super().after_batch()
            if self.training:
                for kept,a,b in zip((self.rows, self.prompts), self.at, self._now()): kept.append(not torch.equal(a, b))
    steps = Rows()
    fit(learner(dataset, PCL(), DiffusionFeedback(expert, correlation), steps, GradientAccumulation(16)), 1)
    assert any(steps.moved) and not all(steps.moved) and steps.moved==steps.rows==steps.prompts

def test_an_image_is_encoded_once_or_in_every_step(dataset, expert):
    def encoded(**kw):
        count,e = [],expert()
        encode = e.vae.encode
        e.vae.encode = lambda x: (count.append(len(x)), encode(x))[1]
        cb = DiffusionFeedback(e, correlation, **kw)
        learn = fit(learner(dataset, cb), 2)
        return sum(count),learn
    once,learn = encoded()
    always,other = encoded(cache=False)
    assert once==len(learn.diffusion_feedback.moments)<=len(learn.dls.train.dataset) and always==8*sum(c['steps'] for c in other.counts)
    assert other.history[0]['diffusion']==pytest.approx(learn.history[0]['diffusion'], rel=.05)    # the same, resized twice and in 8 bits

def test_noise_depends_on_seed_epoch_and_step_alone():
    found = {step_seed(s, e, i) for s in range(6) for e in range(6) for i in range(6)}
    assert len(found)==216 and step_seed(1, 2, 3)==step_seed(1, 2, 3)

def test_what_is_made_depends_on_the_seed_alone(dataset, expert):
    prompts = lambda *cbs, **kw: learner(dataset, *cbs, DiffusionFeedback(expert, correlation), **kw).model.aux['conditioning'].prompts
    assert torch.equal(prompts(), prompts(CAL(0), PCL())) and not torch.equal(prompts(), prompts(seed=1))

# --- killed, saved, exported

class Kill(Callback):
    order = 95
    def __init__(self, epoch): self.at = epoch
    def before_batch(self):
        if self.training and self.epoch==self.at and self.iter==1: raise KeyboardInterrupt

def run(dataset, expert, file, *cbs, mode='lora', epochs=2, **kw):
    steps = Steps()
    learn = learner(dataset, PCL(), DiffusionFeedback(partial(expert, mode=mode, **kw), correlation), steps, Checkpoint(file), *cbs)
    return fit(learn, epochs),steps

@pytest.mark.parametrize('mode', ['lora','partial-1'])
def test_a_killed_run_goes_on_as_if_nothing_had_been(dataset, expert, tmp_path, mode):
    whole,steps = run(dataset, expert, tmp_path/'whole.pth', mode=mode)
    with pytest.raises(KeyboardInterrupt): run(dataset, expert, tmp_path/'run.pth', Kill(1), mode=mode)
    again,rest = run(dataset, expert, tmp_path/'run.pth', mode=mode)
    assert [s[4] for s in rest.seen]==[1]*len(rest.seen) and [s[3] for s in rest.seen]==[s[3] for s in steps.seen if s[4]==1]
    for (k,a),b in zip(whole.model.state_dict().items(), again.model.state_dict().values()): assert torch.equal(a, b), k
    for (k,a),b in zip(whole.diffusion_feedback.expert.unet.state_dict().items(), again.diffusion_feedback.expert.unet.state_dict().values()):
        assert torch.equal(a, b), k
    assert again.history==whole.history

def test_a_checkpoint_holds_only_what_is_trained(dataset, expert, tmp_path):
    learn,_ = run(dataset, expert, tmp_path/'run.pth', epochs=1)
    state = torch.load(tmp_path/'run.pth', weights_only=True)
    size = sum(v.numel()*v.element_size() for v in state['model'].values())
    e = learn.diffusion_feedback.expert
    own = sum(p.numel()*4 for n,p in learn.model.named_parameters() if not n.startswith('aux.'))
    trained = sum(p.numel()*4 for p in e.trained().parameters())+4*32*4
    frozen = sum(p.numel()*4 for p in [*e.unet.parameters(), *e.vae.parameters()] if not p.requires_grad)
    small = 4*8*4+4+100*8                                                       # rows of the memory, statistics of the neck
    assert own+trained<=size<=own+trained+small and frozen>10*trained
    assert (tmp_path/'run.pth').stat().st_size<3*(own+trained)+150_000<3*(own+trained)+frozen    # with Adam's two moments
    keys = [k for k in state['model'] if k.startswith('aux.diffusion')]
    assert keys and all('lora_' in k for k in keys)

@pytest.fixture(scope='module')
def saved(dataset, expert, tmp_path_factory):
    run(dataset, expert, file := tmp_path_factory.mktemp('saved')/'run.pth', epochs=2)
    return file

@pytest.mark.parametrize('change', [dict(rank=3), dict(mode='full'), dict(rule='released'), dict(frozen=1.)])
def test_another_diffusion_model_is_another_run(dataset, expert, saved, tmp_path, change):
    def other(seed=0, frozen=0., **kw):
        made = expert(seed, **kw)
        with torch.no_grad(): made.vae.encoder.conv_in.weight.add_(frozen)
        return made
    shutil.copy(saved, tmp_path/'run.pth')
    with pytest.raises(ValueError, match='run.pth') as e: run(dataset, other, tmp_path/'run.pth', epochs=2, **change)
    assert len(str(e.value).splitlines())<=3
    if 'rank' not in change and 'mode' not in change: assert 'another diffusion model' in str(e.value)

def test_the_export_is_the_encoder_alone(dataset, expert, tmp_path):
    learn = fit(learner(dataset, PCL(), DiffusionFeedback(expert, correlation)), 1)
    path = export_reid(learn, tmp_path/'m.safetensors')
    again = load_reid(path)
    assert parity(learn.model, again)<1e-5 and not len(again.aux) and again.classifier is None
    assert set(again.state_dict())=={k for k in learn.model.state_dict() if not k.startswith(('aux.','classifier.'))}

# --- what goes wrong

class Spoil(Callback):
    "Makes the autoencoder's latents no numbers in some steps, as half precision may"
    order = -9
    def __init__(self, at): self.at = at
    def after_pred(self):
        if self.training and self.iter in self.at: self.learn.pred = {**self.pred, 'logits': self.pred['logits']+float('nan')}

def test_a_step_with_no_number_is_skipped_and_counted(dataset, expert):
    cb = DiffusionFeedback(expert, correlation)
    steps = Steps()
    with pytest.warns(UserWarning, match='was not a number'): learn = fit(learner(dataset, PCL(), cb, Spoil((1,)), steps), 2)
    assert [not m for m in steps.moved]==[s[5]==1 for s in steps.seen] and any(steps.moved)
    assert [h['skipped'] for h in learn.history]==[1,1] and sum(c['steps'] for c in learn.counts)==sum(steps.moved)
    assert all(v.isfinite().all() for v in learn.model.state_dict().values() if v.is_floating_point())

class Scaler(Callback):
    "As fastai's half precision: gradients are 1024 times as large until the step, which is skipped where they are no numbers"
    order = 10
    def before_fit(self): self.learn.scaler = SimpleNamespace(is_enabled=lambda: True)
    def before_backward(self): self.learn.loss_grad = 1024*self.loss_grad
    def before_step(self):
        grads = [p.grad for p in self.learn.model.parameters() if p.grad is not None]
        for g in grads: g.div_(1024)
        if not all(g.isfinite().all() for g in grads): raise CancelStepException()

def test_a_step_that_a_scaler_skips_is_counted_too(dataset, expert):
    "Half precision with a scaler: the scaler skips the step, once, and the weights stay numbers"
    cb,steps = DiffusionFeedback(expert, correlation),Steps()
    with pytest.warns(UserWarning, match='was not a number'): learn = fit(learner(dataset, PCL(), cb, Spoil((1,)), Scaler(), steps), 1)
    assert learn.history[0]['skipped']==1 and sum(c['steps'] for c in learn.counts)==len(steps.seen)-1
    assert all(v.isfinite().all() for v in learn.model.state_dict().values() if v.is_floating_point())

def test_a_scaler_that_looks_after_it_is_left_alone(dataset, expert):
    cb = DiffusionFeedback(expert, correlation)
    learn = learner(dataset, cb)
    cb.unsound,learn.scaler = True,SimpleNamespace(is_enabled=lambda: True)
    cb.before_step()                                                            # nothing is raised
    learn.scaler = SimpleNamespace(is_enabled=lambda: False)
    with pytest.raises(Exception) as e: cb.before_step()
    assert type(e.value).__name__=='CancelStepException'

@pytest.mark.parametrize('cond,says', [(CorrelationAware(4, 16), 'conditions have 16 numbers, and the diffusion model listens to 32'),
                                       (CorrelationAware(5, 32), r'5 prompts need logits \[B,5\], not \[8, 4\]')])
def test_conditions_that_do_not_fit_are_named(dataset, expert, cond, says):
    with pytest.raises(ValueError, match=says): fit(learner(dataset, DiffusionFeedback(expert, cond)), 1)

def test_memory_that_does_not_suffice_is_said_in_one_line(dataset, expert):
    def full(*args, **kwargs): raise torch.cuda.OutOfMemoryError('CUDA out of memory')
    e = expert(checkpointing=True)
    e.unet.forward = full
    with pytest.raises(RuntimeError, match=r'out of memory: the diffusion model with 8 images of 16x8 pixels, gradient checkpointing on'):
        fit(learner(dataset, DiffusionFeedback(e, correlation)), 1)

# --- the small model of the library, and the command line

def test_the_small_diffusion_model_takes_part(dataset):
    pipe = new_small_diffusion(1)
    e = DiffusionExpert(pipe.unet, pipe.vae, pipe.scheduler, size=(96,48))
    assert e.dim==64
    learn = fit(learner(dataset, DiffusionFeedback(e, correlation), size=(64,32)), 1)
    assert next(iter(learn.diffusion_feedback.moments.kept.values())).shape==(8,12,6) and math.isfinite(learn.history[0]['diffusion'])

def test_train_by_the_command_line(ccreid, dataset, expert, tmp_path):
    "The real classes in a folder of diffusers' layout, the options of the chain, and a second start that goes on"
    e = expert(mode='frozen')
    for name,part in dict(unet=e.unet, vae=e.vae, scheduler=e.scheduler).items(): part.save_pretrained(tmp_path/'sd'/name)
    small = f'backbone=test_vit pool=token size=64x32 pretrained=no identities=2 images=4 dcac_diffusion={tmp_path/"sd"} dcac_size=16x8 dcac_rank=2 pad=0'
    words = [w for s in small.split() for w in ('--set', s)]
    train = lambda epochs, *more: ccreid('train', '--data', 'prcc', '--root', dataset.root, '--method', 'dcac', '--epochs', epochs, *words, *more,
                                         '--device', 'cpu', '--workers', 0, *(() if '--out' in more else ('--out', tmp_path/'run')))
    code,out,err = train(1)
    assert code==0, out+err
    model, = (tmp_path/'run').glob('*.safetensors')
    again = load_reid(model)
    assert again.preprocessing==Preprocessing((64,32), (.5,)*3, (.5,)*3, False, 'bicubic') and again.config['kind'].endswith('CLIPReID')
    (tmp_path/'sd'/'unet'/'diffusion_pytorch_model.safetensors').write_text('<!DOCTYPE html>')
    code,out,err = train(1, '--set', 'dcac_rank=4', '--out', tmp_path/'other')
    assert code==2 and 'web page' in err and str(tmp_path/'sd') in err and 'Traceback' not in err, err
    code,out,err = train(1, '--set', 'dcac_diffusion=no_such_model', '--out', tmp_path/'other')
    assert code==2 and 'no_such_model' in err and 'Traceback' not in err, err

def test_the_help_needs_no_heavy_package():
    import subprocess, sys
    code = ("import sys\nfrom ccreid import cli\n"
            "try: cli.main(['train','--help'])\nexcept SystemExit: pass\n"
            "bad = [m for m in ('torch','diffusers','peft','transformers') if m in sys.modules]\nassert not bad, bad\n"
            "import ccreid.dcac.chain\nbad = [m for m in ('torch','diffusers','peft') if m in sys.modules]\nassert not bad, bad")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode==0 and 'dcac_rank' in done.stdout, done.stderr
