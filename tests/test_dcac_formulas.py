"DCAC's formulas against loops from the equations; CLIP's weights; what is refused"
import math
import pytest, torch
import ccreid.compat
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file
from ccreid.dcac.clip_reid import CLIP, CLIPBackbone, CLIPReID, clip_preprocessing, clip_reid, load_clip, resized_positions
from ccreid.dcac.conditioning import KINDS, BatchNorm, ClassWise, ConditionNet, CorrelationAware, InstanceWise, SiLU, new_conditioning
from ccreid.dcac.diffusion import MODES, TrainedPart, adapt, diffusion_loss, lora_targets, sd_scheduler
from ccreid.dcac.latents import encode_moments, sample_latents
from ccreid.dcac.memory import PrototypeMemory
from ccreid.data.transforms import Preprocessing
from ccreid.generation.tiny_networks import tiny_unet, tiny_vae
from ccreid.models.backbones import create_backbone
from ccreid.models.reid_model import ReIDModel
from ccreid.training.export import export_reid, load_reid, parity
from ccreid.weights import WeightsNotFound

def dot(a, b): return sum(x*y for x,y in zip(a, b))
def unit(a): n = math.sqrt(dot(a, a)); return [x/n for x in a]
def softmax(z): m = max(z); e = [math.exp(v-m) for v in z]; return [v/sum(e) for v in e]

# --- Eq. 6 and 7

class Loops:
    "The memory as lists"
    def __init__(self, momentum, tau): self.mu,self.tau,self.rows = momentum,tau,{}
    def start(self, f, y):
        self.rows = {}
        for i in sorted({o for o in y if o>=0}):
            own = [unit(a) for a,b in zip(f, y) if b==i]
            self.rows[i] = unit([sum(v)/len(own) for v in zip(*own)])
    def update(self, f, y):
        for i in {o for o in y if o>=0}:
            own = [unit(a) for a,b in zip(f, y) if b==i]
            hard = min(own, key=lambda a: dot(a, self.rows[i]))
            self.rows[i] = unit([self.mu*m+(1-self.mu)*h for m,h in zip(self.rows[i], hard)])
    def loss(self, f, y):
        said = []
        for a,i in zip(f, y):
            if i<0: continue
            p = softmax([dot(unit(a), self.rows[k])/self.tau for k in sorted(self.rows)])
            said.append(-math.log(p[sorted(self.rows).index(i)]))
        return sum(said)/len(said)

@settings(max_examples=20)
@given(st.integers(0, 9999), st.sampled_from([0., .2, .9]), st.sampled_from([.05, .5]), st.integers(1, 3))
def test_the_memory_is_eq_6_and_7(seed, momentum, tau, steps):
    g = torch.Generator().manual_seed(seed)
    memory,loops = PrototypeMemory(4, 5, momentum, tau).double(),Loops(momentum, tau)
    f,y = torch.randn(12, 5, generator=g, dtype=torch.float64),torch.cat([torch.arange(4), torch.randint(-1, 4, (8,), generator=g)])
    memory.start(f, y), loops.start(f.tolist(), y.tolist())
    for _ in range(steps):
        f,y = torch.randn(9, 5, generator=g, dtype=torch.float64),torch.randint(0, 4, (9,), generator=g)
        assert memory.loss(f, y).item()==pytest.approx(loops.loss(f.tolist(), y.tolist()), rel=1e-6)
        memory.update(f, y), loops.update(f.tolist(), y.tolist())
        for i,row in loops.rows.items(): assert memory.rows[i].tolist()==pytest.approx(row, abs=1e-9)

def test_the_papers_settings_are_the_defaults():
    m = PrototypeMemory(3, 2)
    assert (m.momentum, m.temperature)==(.2, .01)
    assert (CorrelationAware(3).dim, CorrelationAware(3).temperature, ClassWise(3).rule)==(768, .6, 'paper')

def test_names_of_arguments():
    "What others call by name"
    memory,g = PrototypeMemory(identities=3, dim=2, momentum=.2, temperature=.01),torch.Generator().manual_seed(0)
    f,y = torch.randn(6, 2),torch.arange(6)%3
    memory.start(features=f, identity=y); memory.update(features=f, identity=y)
    assert memory.loss(features=f, identity=y).shape==()
    base = CorrelationAware(identities=3, dim=32, temperature=.6)
    others = ClassWise(identities=3, dim=32),InstanceWise(features=2, dim=32),SiLU(base),BatchNorm(base),ConditionNet(base)
    for cond in (base, *others): assert cond(logits=torch.randn(6, 3), features=f, identity=y).shape==(6,1,32)
    unet = tiny_unet(channels=4)
    loss = diffusion_loss(unet=unet, scheduler=sd_scheduler(), latents=torch.randn(6, 4, 4, 4), condition=base(torch.randn(6, 3)), generator=g)
    assert loss.shape==(6,) and lora_targets(unet=unet)

# --- Eq. 12

@settings(max_examples=25)
@given(st.integers(0, 9999), st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.sampled_from([.1, .6, 1., 5.]))
def test_conditions_are_eq_12(seed, batch, people, dim, tau):
    torch.manual_seed(seed)
    z,y,f = 3*torch.randn(batch, people),torch.randint(0, people, (batch,)),torch.randn(batch, 7)
    correlation,paper,released = CorrelationAware(people, dim, tau),ClassWise(people, dim, tau),ClassWise(people, dim, tau, 'released')
    v = correlation.prompts.tolist()
    for o in paper,released: o.load_state_dict(correlation.state_dict())
    for i,row in enumerate(z.tolist()):
        p = softmax([o/tau for o in row])
        c = [sum(p[j]*v[j][k] for j in range(people)) for k in range(dim)]
        assert correlation(z)[i,0].tolist()==pytest.approx(c, abs=1e-4)
        assert paper(z, None, y)[i,0].tolist()==pytest.approx([p[y[i]]*o for o in v[y[i]]], abs=1e-4)
        assert released(z, f, y)[i,0].tolist()==pytest.approx(v[y[i]], abs=1e-6)
    instance = InstanceWise(7, dim)
    for i,row in enumerate(f.tolist()):
        expected = [dot(unit(row), instance.weight[:,k].tolist()) for k in range(dim)]
        assert instance(None, f)[i,0].tolist()==pytest.approx(expected, abs=1e-4)

def test_what_flows_back_through_each_condition():
    torch.manual_seed(0)
    for kind in KINDS:
        z,f = torch.randn(6, 5, requires_grad=True),torch.randn(6, 7, requires_grad=True)
        (new_conditioning(kind, 5, 7, 8)(z, f, torch.arange(6)%5)*torch.randn(6,1,8)).sum().backward()
        assert (z.grad is not None)==(kind not in ('instance','class-released')) and (f.grad is not None)==(kind=='instance'), kind

def test_conditions_after_conditions():
    torch.manual_seed(0)
    base,z = CorrelationAware(5, 8),torch.randn(9, 5)
    c = base(z)[:,0]
    assert torch.allclose(SiLU(base)(z)[:,0], c*torch.sigmoid(c))
    normal = (c-c.mean(0))/(c.var(0, unbiased=False)+1e-5).sqrt()
    assert torch.allclose(BatchNorm(base)(z)[:,0], normal, atol=1e-5)
    net = ConditionNet(base, 4)
    a,b = [m.weight for m in net.net if isinstance(m, torch.nn.Linear)]
    norm = lambda x: (x-x.mean(0))/(x.var(0, unbiased=False)+1e-5).sqrt()
    silu = lambda x: x*torch.sigmoid(x)
    assert torch.allclose(net(z)[:,0], silu(norm(silu(norm(c))@a.T))@b.T, atol=1e-3)
    assert a.shape==(4,8) and ConditionNet(CorrelationAware(3)).net[2].weight.shape==(96,768)

def test_half_precision_changes_no_condition():
    base,z = CorrelationAware(5, 8),torch.randn(3, 5)
    with torch.autocast('cpu', torch.bfloat16): c = base(z.bfloat16())
    assert c.dtype==torch.float32 and torch.allclose(c, base(z.bfloat16().float()))

@pytest.mark.parametrize('call,says', [
    (lambda: CorrelationAware(4)(torch.zeros(2, 5)), r'4 prompts need logits \[B,4\], not \[2, 5\]'),
    (lambda: CorrelationAware(4)(None), 'not None'), (lambda: CorrelationAware(4, temperature=0.), 'above 0'),
    (lambda: ClassWise(4)(torch.zeros(2, 4)), 'needs the identities'), (lambda: ClassWise(4)(torch.zeros(1, 4), None, torch.tensor([4])), 'no prompt'),
    (lambda: InstanceWise(4)(None, torch.zeros(2, 5)), r'features \[B,4\]'), (lambda: new_conditioning('words', 1, 1), 'choose from'),
    (lambda: PrototypeMemory(2, 2, temperature=0), 'above 0'), (lambda: PrototypeMemory(2, 2, momentum=2), 'weight of the old')])
def test_bad_conditions_and_memories(call, says):
    with pytest.raises(ValueError, match=says): call()

# --- Eq. 9 to 11

@settings(max_examples=4)
@given(st.integers(0, 999), st.sampled_from([None, (0,300), (700,1000)]))
def test_the_diffusion_loss_is_eq_10_and_11(seed, times):
    torch.manual_seed(seed)
    unet,scheduler = tiny_unet(channels=4),sd_scheduler()
    z,c = torch.randn(2, 4, 4, 4),torch.randn(2, 1, 32)
    with torch.no_grad(): error = diffusion_loss(unet, scheduler, z, c, torch.Generator().manual_seed(seed), times)
    g = torch.Generator().manual_seed(seed)
    t = torch.randint(*(times or (0,1000)), (2,), generator=g)
    noise = torch.randn(z.shape, generator=g)
    beta = [(math.sqrt(.00085)+i*(math.sqrt(.012)-math.sqrt(.00085))/999)**2 for i in range(1000)]
    for i in range(2):
        alpha = math.prod(1-b for b in beta[:t[i]+1])
        noisy = math.sqrt(alpha)*z[i]+math.sqrt(1-alpha)*noise[i]
        with torch.no_grad(): found = unet(noisy[None], t[i], encoder_hidden_states=c[i:i+1]).sample[0]
        assert error[i].item()==pytest.approx(((found-noise[i])**2).mean().item(), rel=1e-3)

def test_latents_are_drawn_from_what_the_autoencoder_says():
    torch.manual_seed(0)
    vae,x = tiny_vae(),torch.rand(2, 3, 16, 8)*2-1
    m = encode_moments(vae, x)
    many = torch.stack([sample_latents(m, .5, torch.Generator().manual_seed(s)) for s in range(400)])
    mean,log_variance = m.chunk(2, 1)
    assert torch.allclose(many.mean(0), .5*mean, atol=.2*.5*(log_variance/2).exp().max().item())
    assert torch.allclose(many.std(0), .5*(log_variance/2).exp(), rtol=.25)

@pytest.mark.parametrize('mode', MODES)
def test_what_each_mode_trains(mode):
    torch.manual_seed(0)
    unet = tiny_unet(channels=4)
    before = {k: v.clone() for k,v in unet.state_dict().items()}
    net = adapt(unet, mode, rank=2)
    free = {n for n,p in net.named_parameters() if p.requires_grad}
    heads = {n.split('.')[0] for n in free}
    output = {'up_blocks','time_embedding','conv_norm_out','conv_out'}
    everything = {n.split('.')[0] for n,_ in net.named_parameters()}
    assert heads==dict(frozen=set(), lora=heads, scratch=everything, full=everything, **{'partial-1': output, 'partial-2': output|{'mid_block'}})[mode]
    if mode=='lora': assert free and all('lora_' in n for n in free)
    same = all(torch.equal(v, before[k]) for k,v in net.state_dict().items() if k in before)
    assert same==(mode!='scratch') and net.training is False
    assert sum(p.numel() for p in TrainedPart(net).parameters())==sum(p.numel() for p in net.parameters() if p.requires_grad)

def test_targets_are_attention_and_the_gate():
    names = lora_targets(tiny_unet(channels=4))
    ends = {n.split('transformer_blocks.0.')[1] for n in names}
    assert ends=={f'attn{i}.to_{k}' for i in (1,2) for k in ('q','k','v','out.0')}|{'ff.net.0.proj'}
    assert len(names)==len(set(names)) and len(names)%9==0

def test_moving_the_trained_part_moves_the_network():
    net = adapt(tiny_unet(channels=4), rank=2)
    part = TrainedPart(net)
    part.load_state_dict({k: torch.ones_like(v) for k,v in part.state_dict().items()})
    part.double()
    assert all((p==1).all() and p.dtype==torch.float64 for p in net.parameters() if p.requires_grad)

# --- CLIP

def test_positions_lie_between_the_four_nearest():
    torch.manual_seed(0)
    table = torch.randn(1, 1+9, 2)
    found = resized_positions(table, (5,2))
    assert torch.equal(found[:,0], table[:,0])
    for i in range(5):
        for j in range(2):
            y,x = max((i+.5)*3/5-.5, 0),max((j+.5)*3/2-.5, 0)
            y0,x0 = int(y),int(x)
            y1,x1,b,a = min(y0+1, 2),min(x0+1, 2),y-y0,x-x0
            at = lambda r, c: table[0,1+3*r+c]
            expected = (1-b)*((1-a)*at(y0,x0)+a*at(y0,x1))+b*((1-a)*at(y1,x0)+a*at(y1,x1))
            assert found[0,1+2*i+j].tolist()==pytest.approx(expected.tolist(), abs=1e-5)

def as_openai(net, grid):
    "The weights of a timm transformer by OpenAI's names, with positions of a square"
    names = [('patch_embed.proj.weight','conv1.weight'), ('norm_pre.','ln_pre.'), ('blocks.','transformer.resblocks.'), ('norm1','ln_1'),
             ('norm2','ln_2'), ('qkv.','in_proj_'), ('attn.proj','attn.out_proj'), ('mlp.fc1','mlp.c_fc'), ('mlp.fc2','mlp.c_proj')]
    state = {}
    for k,v in net.state_dict().items():
        if k=='head.weight': k,v = 'proj',v.T
        elif k=='cls_token': k,v = 'class_embedding',v[0,0]
        elif k=='pos_embed': k,v = 'positional_embedding',torch.arange((1+grid**2)*v.shape[-1]).float().view(-1, v.shape[-1])
        elif k.startswith('norm.'): k = k.replace('norm.', 'ln_post.')
        for a,b in names: k = k.replace(a, b)
        state[f'visual.{k}'] = v.contiguous()
    return state | {'positional_embedding': torch.zeros(77, 4), 'logit_scale': torch.zeros(())}

@pytest.fixture(scope='module')
def small_clip():
    "The class of the real encoder, of one thin layer"
    import timm
    from unittest import mock
    make = timm.create_model
    def thin(name, **kw): return make(name, embed_dim=32, depth=1, num_heads=2, **kw)
    with mock.patch('timm.create_model', thin): yield CLIPBackbone(CLIP, (64,32), dim=8)

@pytest.mark.parametrize('form', ['openai','timm','own size'])
def test_weights_of_clip_by_both_names(small_clip, form, tmp_path):
    torch.manual_seed(1)
    net = small_clip.net
    given = {k: torch.randn_like(v) for k,v in net.state_dict().items()}
    with torch.no_grad():
        for k,v in net.state_dict().items(): v.copy_(given[k])
    if form=='openai': found = as_openai(net, 3)
    else: found = {**given, 'head.bias': torch.zeros(8)} | (dict(pos_embed=torch.arange(320.).view(1, 10, 32)) if form=='timm' else {})
    save_file(found, tmp_path/'clip.safetensors')
    with torch.no_grad():
        for v in net.state_dict().values(): v.zero_()
    load_clip(small_clip, tmp_path/'clip.safetensors')
    own = net.state_dict()
    assert all(torch.equal(own[k], given[k]) for k in own if k!='pos_embed')
    places = given['pos_embed'] if form=='own size' else resized_positions(torch.arange(320.).view(1, 10, 32), (4,2))
    assert torch.allclose(own['pos_embed'], places)

def test_files_of_something_else_are_refused(small_clip, tmp_path):
    path = tmp_path/'clip.safetensors'
    good = {**small_clip.net.state_dict(), 'head.bias': torch.zeros(8)}
    before = {k: v.clone() for k,v in small_clip.net.state_dict().items()}
    for change,says in ((lambda s: s.pop('norm.weight'), '1 weights are missing'), (lambda s: s.update(more=torch.zeros(1)), '1 unknown'),
                        (lambda s: s['head.bias'].add_(1), '1 unknown'), (lambda s: s.update({'head.weight': torch.zeros(9, 32)}), 'another shape')):
        state = {k: v.clone() for k,v in good.items()}
        change(state)
        save_file(state, path)
        with pytest.raises(ValueError, match=says): load_clip(small_clip, path)
    for content in b'<!DOCTYPE html>', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n':
        path.write_bytes(content)
        with pytest.raises(ValueError, match='clip.safetensors'): load_clip(small_clip, path)
    with pytest.raises(WeightsNotFound, match='no weights at'): load_clip(small_clip, tmp_path/'none.safetensors')
    assert all(torch.equal(v, before[k]) for k,v in small_clip.net.state_dict().items()) # nothing half-loaded

@pytest.mark.parametrize('make', [lambda n: clip_reid(3, n), lambda n: create_backbone(n, size=(224,224))])
@pytest.mark.parametrize('name', ['vit_base_patch16_clip_224.openai','vit_large_patch14_clip_336.openai'])
def test_the_wrong_activation_is_refused_by_name(make, name):
    with pytest.raises(ValueError, match=r'trained with QuickGELU, and .* has GELU: use vit_\w+_clip_quickgelu_\d+\.openai'): make(name)

def test_weights_of_the_wrong_activation_are_refused_whatever_the_network_is_called():
    with pytest.raises(ValueError, match='has GELU'): create_backbone('vit_base_patch16_clip_224', 'vit_base_patch16_clip_quickgelu_224.openai')

def test_the_model_is_built_again_and_exported_without_classifier(tmp_path):
    model = clip_reid(5, 'test_vit', (64,32), dim=8)
    assert model.preprocessing==clip_preprocessing((64,32))==Preprocessing((64,32), (.5,)*3, (.5,)*3, False, 'bicubic')
    again = load_reid(export_reid(model, tmp_path/'m.safetensors'))
    assert type(again) is CLIPReID and parity(model, again)<1e-5 and again.classifier is None and again.preprocessing==model.preprocessing
    assert ReIDModel.from_config(model.config).classifier.weight.shape==(5,8)
    with pytest.raises(ValueError, match='no CLIPReID'): ReIDModel.from_config(dict(kind='ccreid.dcac.clip_reid.CLIPReID', backbone='test_vit'))

def test_the_patch_projection_stays_and_the_rest_learns():
    model = clip_reid(5, 'test_vit', (64,32), dim=8)
    model(torch.randn(4, 3, 64, 32))['logits'].square().sum().backward()
    still = {n for n,p in model.named_parameters() if p.grad is None}
    assert still=={'backbone.net.patch_embed.proj.weight','backbone.net.patch_embed.proj.bias','neck.bias'}
