"Other networks that give feedback: velocities by loops, packing, folders, LoRA, a training that is killed and resumed; several tokens; offsets"
import json, math
from functools import partial
import diffusers, pytest, torch
import ccreid.compat
from hypothesis import given, settings, strategies as st
from ccreid.dcac.conditioning import CorrelationAware, SeveralTokens, new_conditioning
from ccreid.dcac.denoisers import Denoiser, FluxDenoiser, SD3Denoiser, UNetDenoiser, denoiser_of, kind_of_folder, packed, unpacked
from ccreid.dcac.diffusion import TrainedPart, adapt, lora_targets
from ccreid.dcac.expert import DiffusionExpert, load_expert
from ccreid.dcac.feedback import DiffusionFeedback
from ccreid.dcac.memory import PCL
from ccreid.generation.tiny_networks import tiny_unet, tiny_vae
from ccreid.training.checkpoints import Checkpoint
from test_dcac_formulas import softmax
from test_dcac_training import Kill, Steps, dataset, fit, learner, networks, expert

def sd3(channels=4):
    return diffusers.SD3Transformer2DModel(sample_size=32, patch_size=2, in_channels=channels, out_channels=channels, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64, pos_embed_max_size=32).eval()

def flux(channels=4, guided=True):
    return diffusers.FluxTransformer2DModel(patch_size=1, in_channels=4*channels, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4,4,8), guidance_embeds=guided).eval()

FLOWS = {'sd3': sd3, 'flux': flux, 'flux, not guided': partial(flux, guided=False)}

@pytest.mark.parametrize('name', FLOWS)
@pytest.mark.parametrize('times', [None, (300,700)])
def test_the_error_is_that_of_the_velocity_image_by_image(name, times):
    "The network called by diffusers' own words, one image at a time"
    torch.manual_seed(0)
    net = FLOWS[name]()
    z,c = torch.randn(3, 4, 8, 4),torch.randn(3, 2, 32)
    with torch.no_grad(): found = denoiser_of(net).error(z, c, torch.Generator().manual_seed(5), times)
    g = torch.Generator().manual_seed(5)
    t,noise = torch.randint(*(times or (0,1000)), (3,), generator=g),torch.randn(z.shape, generator=g)
    for i in range(3):
        s = (t[i].item()+1)/1000
        x = (1-s)*z[i:i+1]+s*noise[i:i+1]
        kw = dict(encoder_hidden_states=c[i:i+1], pooled_projections=torch.zeros(1, net.config.pooled_projection_dim))
        with torch.no_grad():
            if name=='sd3': v = net(x, timestep=torch.tensor([1000*s]), **kw).sample[0]
            else:
                rows = [(y,w) for y in range(4) for w in range(2)]
                tokens = torch.stack([torch.stack([x[0,k,2*y+a,2*w+b] for k in range(4) for a in (0,1) for b in (0,1)]) for y,w in rows])[None]
                ids = torch.tensor([[0.,y,w] for y,w in rows])
                if net.config.guidance_embeds: kw['guidance'] = torch.ones(1)
                out = net(tokens, timestep=torch.tensor([s]), img_ids=ids, txt_ids=torch.zeros(2, 3), **kw).sample[0]
                v = torch.zeros(4, 8, 4)
                for o,(y,w) in zip(out, rows):
                    for n,(k,a,b) in enumerate((k,a,b) for k in range(4) for a in (0,1) for b in (0,1)): v[k,2*y+a,2*w+b] = o[n]
        assert found[i].item()==pytest.approx(((noise[i]-z[i])-v).square().mean().item(), rel=1e-4)

@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_packing_and_back(b, c, h, w):
    x = torch.arange(b*c*2*h*2*w).float().view(b, c, 2*h, 2*w)
    tokens = packed(x)
    assert tokens.shape==(b, h*w, 4*c) and torch.equal(unpacked(tokens, (2*h,2*w)), x)

@pytest.mark.parametrize('make,kind', [(lambda: tiny_unet(channels=4), UNetDenoiser), (sd3, SD3Denoiser), (flux, FluxDenoiser)])
def test_every_kind_gives_a_gradient_and_gets_lora(make, kind):
    torch.manual_seed(0)
    net = make()
    n = len(lora_targets(net))
    d = denoiser_of(adapt(net, rank=2))
    assert type(d) is kind and isinstance(d, Denoiser) and (d.dim, d.channels)==(32, 4) and n>=9
    with torch.no_grad():
        for p in TrainedPart(d.net).parameters(): p.normal_(std=.1)
    c = torch.randn(2, 1, 32, requires_grad=True)
    d.error(torch.randn(2, 4, 8, 4), c, torch.Generator().manual_seed(0)).sum().backward()
    moved = {k for k,p in d.net.named_parameters() if p.requires_grad and p.grad is not None and p.grad.abs().max()>0}
    assert c.grad.abs().sum()>0 and moved and all('lora_' in k for k,p in d.net.named_parameters() if p.requires_grad)

def test_what_is_no_denoiser_and_what_does_not_fit():
    for call,says in ((lambda: denoiser_of(torch.nn.Linear(1, 1)), 'no feedback from Linear'), (lambda: Denoiser(), 'only says what is asked'),
                      (lambda: adapt(flux(), 'partial-2'), 'none of the parts that partial-2 trains'), (lambda: packed(torch.zeros(1, 1, 3, 2)), '3x2'),
                      (lambda: DiffusionExpert(sd3(8), tiny_vae(), size=(32,16)), 'for 8 channels, the autoencoder has 4'),
                      (lambda: DiffusionExpert(sd3(), tiny_vae(), size=(34,16)), 'multiples of 4'),
                      (lambda: UNetDenoiser(tiny_unet(channels=5)), 'takes 5 channels and gives 4')):
        with pytest.raises((ValueError,TypeError), match=says): call()

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp('flow')
    sd3().save_pretrained(path/'transformer'); tiny_vae(shift_factor=.5, scaling_factor=2.).save_pretrained(path/'vae')
    return path

def test_a_folder_with_a_transformer(folder, tmp_path):
    e = load_expert(str(folder), mode='frozen', size=(32,16))
    assert kind_of_folder(folder)==('transformer','SD3Transformer2DModel') and isinstance(e.denoiser, SD3Denoiser) and e.dim==32
    m = torch.randn(2, 8, 16, 8)
    g = torch.Generator().manual_seed(0)
    mean,log_variance = m.chunk(2, 1)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(e.drawn(m, g), 2*(mean+(log_variance/2).exp()*noise-.5), atol=1e-5)         # shift, then scale
    (tmp_path/'transformer').mkdir()
    (tmp_path/'transformer'/'config.json').write_text(json.dumps(dict(_class_name='Other')))
    with pytest.raises(ValueError, match='its transformer is Other'): load_expert(str(tmp_path))
    (tmp_path/'transformer'/'config.json').write_text('<!DOCTYPE html>')
    with pytest.raises(ValueError, match=tmp_path.name): load_expert(str(tmp_path))

def flow_run(dataset, folder, file, *cbs):
    steps = Steps()
    make = partial(load_expert, str(folder), size=(16,8), rank=2)
    correlation = partial(new_conditioning, 'correlation', temperature=.6)
    return fit(learner(dataset, PCL(), DiffusionFeedback(make, correlation), steps, Checkpoint(file), *cbs), 2),steps

def test_a_flow_trains_beside_and_goes_on_when_killed(dataset, folder, tmp_path):
    whole,steps = flow_run(dataset, folder, tmp_path/'whole.pth')
    with pytest.raises(KeyboardInterrupt): flow_run(dataset, folder, tmp_path/'run.pth', Kill(1))
    again,rest = flow_run(dataset, folder, tmp_path/'run.pth')
    assert [s[3] for s in rest.seen]==[s[3] for s in steps.seen if s[4]==1] and again.history==whole.history
    for (k,a),b in zip(whole.model.state_dict().items(), again.model.state_dict().values()): assert torch.equal(a, b), k

# --- several tokens, offsets

@settings(max_examples=15)
@given(st.integers(0, 999), st.integers(2, 6), st.integers(1, 6), st.sampled_from([.1, .6, 2.]))
def test_tokens_are_the_likeliest_people(seed, people, k, tau):
    torch.manual_seed(seed)
    k = min(k, people)
    cond,z = SeveralTokens(people, 3, tau, k),torch.randn(4, people)
    v = cond.prompts.tolist()
    for i,row in enumerate(z.tolist()):
        p = softmax([o/tau for o in row])
        for n,j in enumerate(sorted(range(people), key=lambda j: -p[j])[:k]):
            assert cond(z)[i,n].tolist()==pytest.approx([p[j]*o for o in v[j]], abs=1e-5)
    with pytest.raises(ValueError, match='tokens of'): SeveralTokens(people, 3, tau, people+1)
    with pytest.raises(ValueError, match='tokens of'): SeveralTokens(people, 3, tau, 0)

def test_several_tokens_wake_the_queries():
    "With one token queries and keys of the cross-attention get no gradient, with several they do"
    torch.manual_seed(0)
    for k in (1, 3):
        lora = adapt(tiny_unet(channels=4), rank=2)
        with torch.no_grad():
            for n,p in lora.named_parameters():
                if 'lora_B' in n: p.normal_()
        c = 5*SeveralTokens(5, 32, 5., k)(torch.randn(3, 5))
        denoiser_of(lora).error(torch.randn(3, 4, 8, 8), c, torch.Generator().manual_seed(1)).sum().backward()
        grad = max(p.grad.abs().max().item() for n,p in lora.named_parameters() if 'lora_A' in n and 'attn2.to_q' in n)
        assert (grad>1e-6)==(k>1), (k, grad)

def test_offsets_of_the_release():
    torch.manual_seed(0)
    plain,odd = tiny_unet(channels=4),tiny_unet(channels=4)
    odd.load_state_dict(plain.state_dict())
    without = {n for n in lora_targets(plain) if plain.get_submodule(n).bias is None}
    assert {n.rsplit('.', 1)[1] for n in without}=={'to_q','to_k','to_v'}
    odd = adapt(odd, rank=2, offsets=True)
    for n in without:
        layer = odd.get_submodule(n)
        bound = 1/math.sqrt(layer.in_features)
        assert 0<layer.bias.abs().max()<=bound and layer.bias.std().item()==pytest.approx(bound/math.sqrt(3), rel=.4) and not layer.bias.requires_grad
    kept = {k: v for k,v in plain.state_dict().items()}
    assert all(torch.equal(v, kept[k.replace('.base_layer', '')]) for k,v in odd.state_dict().items() if k.replace('.base_layer', '') in kept)
    make = lambda **kw: DiffusionExpert(tiny_unet(channels=4), tiny_vae(), size=(16,8), rank=2, **kw)
    torch.manual_seed(0); a = make().about()
    torch.manual_seed(0); b = make(offsets=True).about()
    assert a['unet']!=b['unet'] and b['offsets'] and 'offsets' not in a
