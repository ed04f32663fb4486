"DCAC's rows: sources and tests by names alone, controls on a real learner, the class-wise condition that is the baseline, looks"
import json
from functools import partial
from pathlib import Path
import numpy as np, pytest, torch
import ccreid.compat
from ccreid.data.layouts import find_layout
from ccreid.data.mannequins import MannequinWorld, world_hash
from ccreid.data.mannequins.benchmarks import benchmark_worlds
from ccreid.data.mannequins.writing import manifest, truth
from ccreid.data.reading import read_names
from ccreid.dcac import miniature
from ccreid.dcac.alignment import FeatureAlignment, middle_features
from ccreid.dcac.clip_reid import clip_reid
from ccreid.dcac.conditioning import new_conditioning
from ccreid.dcac.controls import PromptControl
from ccreid.dcac.expert import DiffusionExpert
from ccreid.dcac.feedback import DiffusionFeedback
from ccreid.dcac.looking import cam_layer, class_maps, look_alikes, on_person, reconstructed, shown_people, told_errors
from ccreid.dcac.memory import PCL
from ccreid.experiments import Sets, run_row
from ccreid.evaluations import evaluations_of
from ccreid.recipes import recipe
from ccreid.registry import CHAINS, Row, evaluated, load, rows_of
from ccreid.training.checkpoints import Checkpoint
from test_dcac_training import Kill, Scaler, Spoil, Steps, correlation, dataset, expert, fit, learner, networks

ROOT = Path(__file__).resolve().parent.parent

# --- benchmarks

@pytest.fixture(scope='module')
def whole():
    names = [f'{d}/{p}' for d,w in benchmark_worlds('mannequins-dg').items() for p in manifest(w, 'mannequins')['images']]
    return read_names(find_layout('mannequins-dg'), names)

def place(p): return Path(p).parts[2]
def outfit(p): return int(Path(p).name.split('_')[1])%2

def test_sources_train_and_all_places_are_tested(whole):
    for name,b in load('dcac').benchmarks.items():
        d = getattr(miniature, b.take.split(':')[1])(whole)
        words = name.split('-')[1:]
        sources = {p for p in miniature.PLACES if p!=words[1]} if words[0]=='without' else {words[0]}
        assert d.name==name and {place(p) for p in d.train.path}==sources and list(d.protocols)==list(miniature.PLACES)
        assert d.identities==64*len(sources) and len(d.train)==8*d.identities and sorted(set(d.train.identity))==list(range(d.identities))
        assert ({outfit(p) for p in d.train.path}=={0})==(name!='mannequins-market-two')
        own = whole.samples.set_index('path')
        assert set(own.split[d.train.path])=={'train'}
        for where,p in d.protocols.items():
            q,g = p.select(d.samples)[0]
            assert {place(o) for o in [*q.path, *g.path]}=={where} and len(q)==len(g)==1200 and set(own.split[q.path])=={'test'}
            few = q.iloc[::97]
            right = (few.identity.to_numpy()[:,None]==g.identity.to_numpy()) & ~p.junk(few, g).numpy()
            assert (right.sum(1)==2).all()                                   # the other camera, the same outfit
            assert (few.clothes.to_numpy()[:,None]==g.clothes.to_numpy())[right].all() and (few.camera.to_numpy()[:,None]!=g.camera.to_numpy())[right].all()

def test_worlds_are_what_they_were_before_the_first_row():
    known = dict(HASHES)
    assert {k: world_hash(k) for k in known}==known

HASHES = [
    ('mannequins-plaza', '09eb2acbb0cc2166'),
    ('mannequins-campus', '40d991dc1540f12f'),
    ('mannequins-station', '74a5ce472129b08f'),
    ('mannequins-market', 'c391791fea14d574'),
    ('mannequins-without-plaza', '41b6d17ef7e867e5'),
    ('mannequins-without-campus', '7be41aface3061b1'),
    ('mannequins-without-station', '837213e2a9058782'),
    ('mannequins-without-market', '896a10416ef5e595'),
    ('mannequins-market-two', 'bf665241ecc4fbe7'),
]

def test_rows_are_declared():
    core = rows_of('dcac')
    assert len(core)==12 and all(r.seeds==(0,1,2,3,4) for r in core) and all(len(r.seeds)==2 for r in rows_of('dcac', 'extended') if r.trained is None)
    parts = list(dict.fromkeys(r.part for r in rows_of('dcac', 'extended')))
    assert parts[:7]==['modes','conditions','prompts','ranks','intricate','rest','sources']
    names = {r.name for r in CHAINS['dcac']}
    assert {f'DCAC, {m}' for m in ('partial-1','partial-2','full','scratch')}<=names and {f'DCAC, rank {r}' for r in (2,4,16,32)}<=names
    assert recipe('mannequins-plaza', 'dcac').hash!=recipe('mannequins-plaza', 'dcac', dcac_times=(0,300)).hash

# --- controls

def prompts(learn): return learn.model.aux['conditioning'].prompts.detach().clone()

def controlled(dataset, expert, **kw):
    learn = learner(dataset, PCL(), DiffusionFeedback(expert, correlation), PromptControl(**kw), wd=1e-2)
    first = prompts(learn)
    return fit(learn, 1),first

def test_prompts_by_rate_gradient_and_decay(dataset, expert):
    plain,first = controlled(dataset, expert)
    same = fit(learner(dataset, PCL(), DiffusionFeedback(expert, correlation), wd=1e-2), 1)
    for (k,a),b in zip(plain.model.state_dict().items(), same.model.state_dict().values()): assert torch.equal(a, b), k   # looking changes nothing
    frozen,_ = controlled(dataset, expert, rate=0.)
    assert torch.equal(prompts(frozen), first) and not torch.equal(prompts(plain), first)
    far,_ = controlled(dataset, expert, rate=100.)
    assert (prompts(far)-first).norm()>20*(prompts(plain)-first).norm()
    decayed,_ = controlled(dataset, expert, by='decay')
    h = decayed.history[-1]
    assert h['prompts_shrunk']>.75 and 0<h['prompts_decay']<1 and (prompts(decayed).abs()<=first.abs()+1e-3).float().mean()>.99
    assert h['prompts_moved']==pytest.approx((prompts(decayed)-first).square().mean().sqrt().item(), rel=1e-4)
    pulled,_ = controlled(dataset, expert, by='gradient')
    zero = fit(learner(dataset, PCL(), DiffusionFeedback(expert, correlation), wd=0.), 1)
    assert abs(pulled.history[-1]['prompts_shrunk'])<.4
    moved,free = prompts(pulled)-first,prompts(zero)-first
    assert torch.nn.functional.cosine_similarity(moved.flatten(), free.flatten(), 0)>.5     # the rest still decays

class Pushes(Steps):
    "The gradient of the prompts and the prompts themselves, before each step"
    order = -30
    def __init__(self): super().__init__(); self.pushes = []
    def before_step(self):
        p = self.learn.model.aux['conditioning'].prompts
        self.pushes.append((p.grad.tolist(), p.tolist()))

def test_what_moves_the_prompts_by_lists(dataset, expert):
    "Share of decay in the push, way, and how much of it goes to 0, of one epoch"
    seen = Pushes()
    learn = learner(dataset, PCL(), DiffusionFeedback(expert, correlation), PromptControl(), seen, wd=1e-2)
    first = prompts(learn)
    fit(learn, 1)
    total,shares = lambda rows: sum(abs(o) for row in rows for o in row),[]
    for g,v in seen.pushes: shares.append(.01*total(v)/(.01*total(v)+total(g)))
    h,moved = learn.history[-1],(prompts(learn)-first).flatten().tolist()
    start = first.flatten().tolist()
    assert len(shares)==len(seen.seen)>1 and h['prompts_decay']==pytest.approx(sum(shares)/len(shares), rel=1e-4)
    length = lambda v: sum(o*o for o in v)**.5
    assert h['prompts_moved']==pytest.approx(length(moved)/len(moved)**.5, rel=1e-4)
    assert h['prompts_shrunk']==pytest.approx(-sum(m*o for m,o in zip(moved, start))/(length(moved)*length(start)), rel=1e-3)

class Seen(Steps):
    "The prompts before and after each batch"
    def __init__(self): super().__init__(); self.pairs = []
    def before_batch(self): super().before_batch(); self.was = prompts(self.learn)
    def after_batch(self):
        super().after_batch()
        if self.training: self.pairs.append((self.was, prompts(self.learn)))

@pytest.mark.parametrize('scaled', [False, True])
def test_a_skipped_step_moves_no_prompts_whatever_their_rate(dataset, expert, scaled):
    "Skipped by the feedback, and by a scaler, whose steps are controlled like others"
    def run(**kw):
        seen = Seen()
        cbs = [PCL(), DiffusionFeedback(expert, correlation), PromptControl(**kw), Spoil((1,)), *[Scaler()]*scaled, seen]
        with pytest.warns(UserWarning, match='was not a number'): fit(learner(dataset, *cbs), 2)
        return seen.pairs
    far,plain,still = run(rate=100.),run(),run(rate=0.)
    assert len(far)>2 and torch.equal(*far[1]) and torch.equal(*plain[1]) and all(torch.equal(a, b) for a,b in still)
    way = lambda pair: (pair[1]-pair[0]).norm().item()
    assert way(plain[0])>0 and way(far[0])==pytest.approx(100*way(plain[0]), rel=1e-2) and not torch.equal(*far[2])

def test_there_must_be_prompts_to_control(dataset, expert):
    instance = DiffusionFeedback(expert, partial(new_conditioning, 'instance'))
    fit(learner(dataset, instance, PromptControl()), 1)
    with pytest.raises(ValueError, match='no prompts to control'): learner(dataset, instance, PromptControl(0.))

def test_the_released_class_wise_condition_is_the_baseline_bit_by_bit(dataset, expert):
    base = fit(learner(dataset, PCL()), 2)
    fed = fit(learner(dataset, PCL(), DiffusionFeedback(expert, partial(new_conditioning, 'class-released'))), 2)
    assert 'diffusion' in fed.history[0]
    own = fed.model.state_dict()
    for k,v in base.model.state_dict().items(): assert torch.equal(v, own[k]), k

def test_noise_is_looked_for_in_another_image(dataset, expert):
    steps = [Steps(), Steps()]
    runs = [fit(learner(dataset, DiffusionFeedback(partial(expert, mode='frozen'), correlation, another=o), s), 1) for o,s in zip((False,True), steps)]
    fed = runs[1].diffusion_feedback
    labels = steps[1].seen[0][1]
    g = lambda: torch.Generator().manual_seed(0)
    m = fed.moments([runs[1].dls.train.dataset.paths[i] for i in labels['row'].tolist()])
    assert torch.equal(fed.latents(labels, g()), fed.expert.drawn(m.roll(4, 0), g()))
    y = labels['identity']
    assert (y!=y.roll(4, 0)).all()                                           # of somebody else

# --- feature alignment

def test_alignment_by_a_loop(dataset, networks):
    from ccreid.generation.tiny_networks import tiny_unet, tiny_vae
    def frozen(seed=0):
        unet,vae = tiny_unet(channels=4),tiny_vae()
        for net,state in zip((unet, vae), networks): net.load_state_dict(state)
        return DiffusionExpert(unet, vae, size=(16,8), mode='frozen')
    cb,steps = FeatureAlignment(frozen, .5),Steps()
    learn = fit(learner(dataset, cb, steps), 1)
    h = cb.targets
    assert h.mean(0).abs().max()<1e-4 and h.std(0).sub(1).abs().max()<1e-3
    before = frozen().about()
    assert cb.expert.about()==before
    pred,labels,values,loss,*_ = steps.seen[0]
    head = torch.nn.Linear(8, 32)
    with torch.random.fork_rng(): torch.manual_seed(0); head = torch.nn.Linear(8, 32)
    apart = []
    for f,i in zip(pred['features'], labels['row'].tolist()):
        a,b = head(f).tolist(),h[i].tolist()
        apart.append(1-sum(x*y for x,y in zip(a, b))/(sum(x*x for x in a)**.5*sum(y*y for y in b)**.5))
    assert values['alignment'].item()==pytest.approx(sum(apart)/len(apart), rel=1e-3)
    assert loss==pytest.approx(values['identity'].item()+.5*values['alignment'].item(), rel=1e-4)

def test_alignment_killed_and_resumed_and_beside_another_unet(dataset, networks, tmp_path):
    from ccreid.generation.tiny_networks import tiny_unet, tiny_vae
    def make(seed=0, other=0.):
        unet,vae = tiny_unet(channels=4),tiny_vae()
        for net,state in zip((unet, vae), networks): net.load_state_dict(state)
        with torch.no_grad(): unet.conv_in.weight.add_(other)
        return DiffusionExpert(unet, vae, size=(16,8), mode='frozen')
    run = lambda file, *cbs, **kw: fit(learner(dataset, PCL(), FeatureAlignment(partial(make, **kw)), Checkpoint(tmp_path/file), *cbs), 2)
    whole = run('whole.pth')
    with pytest.raises(KeyboardInterrupt): run('run.pth', Kill(1))
    with pytest.raises(ValueError, match='another diffusion model'): run('run.pth', other=.1)
    again = run('run.pth')
    assert again.history==whole.history
    for (k,a),b in zip(whole.model.state_dict().items(), again.model.state_dict().values()): assert torch.equal(a, b), k

def test_what_the_middle_of_the_unet_gives_image_by_image():
    "Noise of time 100 by the formula, no condition, and the mean over the places of what the middle block gives"
    from ccreid.generation.tiny_networks import tiny_unet, tiny_vae
    torch.manual_seed(0)
    e,z = DiffusionExpert(tiny_unet(channels=4), tiny_vae(), size=(16,8), mode='frozen'),torch.randn(3, 4, 8, 4)
    found = middle_features(e, z, torch.Generator().manual_seed(2))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    kept = 1.
    for i in range(101): kept *= 1-(.00085**.5+i*(.012**.5-.00085**.5)/999)**2
    for i in range(3):
        said = []
        handle = e.unet.mid_block.register_forward_hook(lambda m, a, out: said.append(out))
        with torch.no_grad(): e.unet((kept**.5*z[i]+(1-kept)**.5*noise[i])[None], 100, encoder_hidden_states=torch.zeros(1, 1, 32))
        handle.remove()
        assert torch.allclose(found[i], said[0][0].mean((1,2)), atol=1e-4)

# --- looks

@pytest.fixture(scope='module')
def people(tmp_path_factory):
    world = MannequinWorld(identities=(6,0,4), outfits=1, cameras=2, images=2, size=(96,48), seed=4)
    return world.write(tmp_path_factory.mktemp('p')/'p', layout='mannequins', workers=1)

@pytest.fixture(scope='module')
def net():
    torch.manual_seed(2)
    return clip_reid(6, 'vit_mini', (96,48), pretrained=True).eval()

def test_grad_cam_by_hand_and_by_the_package(people, net):
    t = shown_people(people.train)
    x,classes = torch.rand(3, 3, 96, 48),torch.tensor([1,4,0])
    maps = class_maps(net, x, classes)
    for i in range(3):
        said = []
        handle = cam_layer(net).register_forward_hook(lambda m, a, out: said.append(out))
        s = net(x[i:i+1])['logits'][0,classes[i]]
        handle.remove()
        g, = torch.autograd.grad(s, said[0])
        w = [sum(g[0,1+p,k].item() for p in range(18))/18 for k in range(96)]
        for p in range(18):
            want = max(0., sum(w[k]*said[0][0,1+p,k].item() for k in range(96)))
            assert maps[i,p//3,p%3].item()==pytest.approx(want, abs=1e-5)
    assert net.training is False and maps.shape==(3,6,3)
    package = pytest.importorskip('pytorch_grad_cam')
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    class Logits(torch.nn.Module):
        def __init__(self): super().__init__(); self.net = net
        def forward(self, x): return self.net(x)['logits']
    cam = package.GradCAM(Logits(), [cam_layer(net)], reshape_transform=lambda o: o[:,1:].transpose(1, 2).reshape(len(o), -1, 6, 3))
    theirs = cam(x, [ClassifierOutputTarget(int(c)) for c in classes])
    for a,b in zip(theirs, maps):
        b = torch.nn.functional.interpolate(b[None,None], (96,48), mode='bilinear')[0,0].numpy()
        if b.std()>0: assert np.corrcoef(a.ravel(), b.ravel())[0,1]>.95

def test_look_alikes_by_a_loop_and_shares_of_the_person(people):
    from PIL import Image
    t = shown_people(people.train)
    assert t.identity.tolist()==list(range(6))
    small = [np.asarray(Image.open(p).convert('RGB').resize((6,12), Image.Resampling.BOX), float) for p in t.path]
    want = [min((j for j in range(6) if j!=i), key=lambda j: ((small[i]-small[j])**2).sum()) for i in range(6)]
    assert look_alikes(t).tolist()==want
    person = [torch.from_numpy(truth(p).parsing>0).float() for p in t.path]
    assert on_person(torch.stack(person), t.path)[0]==1. and on_person(1-torch.stack(person), t.path)[0]==0.
    share,area = on_person(torch.ones(6, 6, 3), t.path)
    assert share==area==pytest.approx(float(np.mean([p.mean() for p in person])), abs=1e-3)
    assert on_person(torch.ones(1, 6, 3), [ROOT/'README.md']) is None

def test_a_row_writes_down_its_looks(people, tmp_path):
    "The real row runner, an evaluation that shares the training, the shipped networks"
    base = Row('fed', 'dcac', dict(epochs=1, identities=3, images=2), data='mannequins-plaza')
    rows = [base, evaluated(base, 'fed: looks', 'dcac-looks')]
    sets = Sets(people, tmp_path, 'people')
    found = evaluations_of(rows, base, people, sets.folder_of)
    record = run_row(base.recipe, sets, 0, 'cpu', evaluations=found)
    said = record['evaluated']['fed: looks']['said']
    assert record['evaluated']['fed: looks']['protocols']=={} and 0<=said['person']<=1 and len(said['maps'])==4
    assert sorted(said['told'])==[100,300,500,700,900] and all(set(v)=={'own','another','nothing'} for v in said['told'].values())
    json.dumps(record)
    assert record['history'][0]['prompts_moved']>0

def test_the_error_by_condition_is_the_experts():
    from ccreid.generation.tiny_networks import tiny_unet, tiny_vae
    torch.manual_seed(0)
    e = DiffusionExpert(tiny_unet(channels=4), tiny_vae(), size=(16,8), mode='frozen')
    z,c = torch.randn(4, 4, 8, 4),torch.randn(4, 1, 32)
    found = told_errors(e, z, c, (200,), seed=3)[200]
    with torch.no_grad():
        for k,v in dict(own=c, another=c[[2,3,0,1]], nothing=0*c).items():
            assert found[k]==pytest.approx(e.error(z, v, torch.Generator().manual_seed(3), (200,201)).mean().item(), abs=1e-4)

def test_a_reconstruction_by_the_formula():
    "What is left of z_t = sqrt(a) z + sqrt(1-a) noise when the UNet's noise is taken out, decoded; the true noise gives the latent itself"
    from types import SimpleNamespace
    from ccreid.generation.tiny_networks import tiny_unet, tiny_vae
    torch.manual_seed(0)
    e,z,c = DiffusionExpert(tiny_unet(channels=4), tiny_vae(), size=(16,8), mode='frozen'),torch.randn(2, 4, 8, 4),torch.randn(2, 1, 32)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    kept = 1.
    for i in range(301): kept *= 1-(.00085**.5+i*(.012**.5-.00085**.5)/999)**2
    noisy = kept**.5*z+(1-kept)**.5*noise
    with torch.no_grad():
        show = lambda v: (e.vae.decode(v/.18215).sample/2+.5).clamp(0, 1)
        said = e.unet(noisy, torch.tensor([300,300]), encoder_hidden_states=c).sample
        assert torch.allclose(reconstructed(e, z, c, 300, seed=1), show((noisy-(1-kept)**.5*said)/kept**.5), atol=1e-4)
        e.unet.forward = lambda *args, **kwargs: SimpleNamespace(sample=noise)
        assert torch.allclose(reconstructed(e, z, c, 300, seed=1), show(z), atol=1e-4)
