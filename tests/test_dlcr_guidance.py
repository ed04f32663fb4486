"Discriminator guidance: every formula against loops, training that is killed, real pipelines of random weights, the command"
import json, math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

diffusers = pytest.importorskip('diffusers')
transformers = pytest.importorskip('transformers')

from ccreid import registry
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.images import read_image
from ccreid.dlcr import discriminator_training as training
from ccreid.dlcr import latents as latents_module
from ccreid.dlcr.discriminator import FILE, LIMIT, LatentDiscriminator, add_noise, draw_times, vp_abar, vp_times
from ccreid.dlcr.discriminator_training import CHECKPOINT, fit_discriminator, noisy_batches, train_discriminator
from ccreid.dlcr.guidance import discriminator_loss, guided_noise, log_ratio_gradient, posterior_mean, prediction_factor
from ccreid.dlcr.guide import COMMANDS, GUIDANCE
from ccreid.dlcr.guiding import DiscriminatorGuidance, GuidedInpainter, guided, guiding, inpainter_of
from ccreid.dlcr.latents import encode, latents_of, scaling_of
from ccreid.generation.expansion import expand
from ccreid.generation.inpainting import tiny_inpainter, tiny_pipeline
from ccreid.generation.jobs import Networks, StandIns, count_left
from ccreid.generation.parsing import clothes_mask
from ccreid.generation.recloth import Recloth
from ccreid.generation.stand_ins import MannequinParser
from ccreid.generation.tiny_networks import tiny_vae
from ccreid.registry import Chain, Images
from ccreid.weights import WeightsNotFound

diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()
SCALING = 4.3 # of the autoencoder of random weights, so that its latents have a spread of 1
ABAR = tiny_pipeline().scheduler.alphas_cumprod


def network(seed=0, **kw):
    torch.manual_seed(seed)
    return LatentDiscriminator(ABAR, **{**dict(width=8, depth=2, scaling=SCALING), **kw})

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    return MannequinWorld(identities=(3,0,2), images=1, size=(64,32), seed=4).write(tmp_path_factory.mktemp('w')/'w', layout='prcc', workers=1)

@pytest.fixture(scope='module')
def inpaint():
    painter = tiny_inpainter(size=(64,32), batch=4)
    painter.pipe.vae.register_to_config(scaling_factor=SCALING)
    return painter

@pytest.fixture(scope='module')
def made(world, inpaint, tmp_path_factory):
    "A folder of generated images, as `ccreid generate` leaves it"
    out = tmp_path_factory.mktemp('made')/'made'
    return out, expand(world.train, Recloth(MannequinParser(), inpaint, 'a red coat'), out, 2, progress=False)

@pytest.fixture(scope='module')
def trained(world, inpaint, made, tmp_path_factory):
    out = tmp_path_factory.mktemp('run')
    return out, *train_discriminator(world.train, made[1], inpaint, out, width=16, epochs=20, lr=3e-3)

@pytest.fixture(scope='module')
def asked(world):
    rows = world.train[:4].to_dict('records')
    images = [read_image(r['path']) for r in rows]
    return images, [clothes_mask(m) for m in MannequinParser()(images, rows=rows)]


# --- Eq. 5 to 9

@given(st.lists(st.floats(-20, 20), min_size=1, max_size=6), st.lists(st.floats(-20, 20), min_size=1, max_size=6))
def test_loss_is_equation_5_term_by_term(real, generated):
    d = lambda logit: 1/(1+math.exp(-logit))
    want = -sum(math.log(d(l)) for l in real)/len(real) - sum(math.log(d(-l)) for l in generated)/len(generated)
    assert discriminator_loss(torch.tensor(real), torch.tensor(generated)).item()==pytest.approx(want, rel=1e-4, abs=1e-6)

def test_the_loss_is_smallest_where_the_logit_is_the_logarithm_of_the_ratio():
    "A place where real is three times as dense as generated, over a fine grid of logits"
    grid = torch.linspace(-4, 4, 8001)
    loss = torch.stack([.75*torch.nn.functional.softplus(-l)+.25*torch.nn.functional.softplus(l) for l in grid])
    assert grid[loss.argmin()].item()==pytest.approx(math.log(3), abs=2e-3)

@pytest.mark.parametrize('mode', [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_gradient_against_differences_in_any_mode(mode):
    net, time, step = network().double(), torch.tensor([.2,.7], dtype=torch.float64), 1e-4
    with mode():
        x = torch.randn(2, 4, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        h = log_ratio_gradient(lambda x, t: net.forward(x, t), x, time)
    assert not h.requires_grad
    for place in ((0,0,0,0), (1,3,2,1), (0,2,3,1)):
        moved = torch.zeros_like(h); moved[place] = step
        with torch.no_grad(): slope = (net(x.clone()+moved, time)-net(x.clone()-moved, time)).sum()/(2*step)
        assert h[place].item()==pytest.approx(slope.item(), rel=1e-3, abs=1e-6)

def mixture(draw, n=3):
    share = torch.tensor(draw[:n], dtype=torch.float64)
    mean, std = torch.tensor(draw[n:2*n], dtype=torch.float64), torch.tensor(draw[2*n:], dtype=torch.float64)
    def log_density(x, abar):
        bumps = torch.distributions.Normal(abar.sqrt()*mean, (abar*std**2+1-abar).sqrt())
        return ((share/share.sum()).log()+bumps.log_prob(x[...,None])).logsumexp(-1)
    return log_density

bumps = st.tuples(*[st.floats(.1, 1)]*3, *[st.floats(-3, 3)]*3, *[st.floats(.3, 1)]*3).map(list)

@settings(max_examples=20)
@given(bumps, bumps, st.floats(.01, .99))
def test_with_the_exact_ratio_and_weight_1_the_noise_is_that_of_real_data(p, q, abar):
    p, q, abar, x = mixture(p), mixture(q), torch.tensor(abar, dtype=torch.float64), torch.linspace(-4, 4, 33, dtype=torch.float64)
    noise = lambda density: -(1-abar).sqrt()*log_ratio_gradient(density, x, abar)
    h = log_ratio_gradient(lambda x, a: q(x, a)-p(x, a), x, abar)
    assert torch.allclose(guided_noise(noise(p), h, abar), noise(q), atol=1e-9)
    assert torch.equal(guided_noise(noise(p), h, abar, 0), noise(p))

def test_mean_of_equation_9_is_that_of_bayes():
    "For x0 known, Eq. 9 with its true noise is the mean of q(x[t-1]|x[t],x0), from the product of two normal densities"
    beta = torch.tensor([.1,.2,.3], dtype=torch.float64)
    alpha, abar = 1-beta, (1-beta).cumprod(0)
    x0, x2 = torch.tensor(.7, dtype=torch.float64), torch.tensor(-.4, dtype=torch.float64)
    noise = (x2-abar[2].sqrt()*x0)/(1-abar[2]).sqrt()
    prior, there = abar[1].sqrt()*x0, x2/alpha[2].sqrt()            # of x1: from x0, and from x2
    v, w = 1-abar[1], beta[2]/alpha[2]
    assert posterior_mean(x2, noise, alpha[2], abar[2]).item()==pytest.approx(((prior*w+there*v)/(v+w)).item(), abs=1e-12)

@given(st.floats(.02,.98), st.floats(-2,2), st.floats(-2,2), st.floats(-1,1))
def test_other_kinds_of_estimates(abar, x, noise, change):
    a, s = math.sqrt(abar), math.sqrt(1-abar)
    x0 = lambda e: (x-s*e)/a
    kinds = dict(epsilon=lambda e: e, v_prediction=lambda e: a*e-s*x0(e), sample=x0)
    for kind,f in kinds.items():
        got = prediction_factor(kind, torch.tensor(abar, dtype=torch.float64)).item()*change
        assert got==pytest.approx(f(noise+change)-f(noise), abs=1e-9)
    with pytest.raises(ValueError, match='cannot be guided'): prediction_factor('flow', torch.tensor(.5))


# --- noise and network

def test_times_of_the_paper_are_uniform_and_have_the_noise_of_the_sampler():
    time, abar = draw_times(20_000, ABAR, generator=torch.Generator().manual_seed(0))
    t = (time*999).round().long()
    assert torch.equal(abar, ABAR[t]) and t.min()==0 and t.max()==999
    counts = torch.histc(t.float(), 10, 0, 1000)/2000
    assert (counts-1).abs().max()<.1

def test_times_as_released_have_the_density_of_importance():
    "beta/(1-exp(-B)), by a sum over small steps"
    edges = torch.logspace(-5, 0, 400_001, dtype=torch.float64)
    middle = (edges[1:]+edges[:-1])/2
    mass = ((.1+19.9*middle)/(1-torch.exp(-(.1*middle+19.9*middle**2/2)))*edges.diff()).cumsum(0)
    for u in (.1,.3,.5,.8,.99):
        want = middle[(mass/mass[-1]>=u).nonzero()[0,0]].item()
        assert vp_times(torch.tensor([u])).item()==pytest.approx(want, rel=2e-3)
    time, abar = draw_times(1000, ABAR, 'released', torch.Generator().manual_seed(0))
    assert torch.equal(abar, vp_abar(time)) and 1e-5*.99<=time.min() and time.max()<=1 and time.median()<.2

def test_noise_in_one_step_has_mean_and_spread_of_many_steps():
    beta = torch.tensor([.1,.2,.3])
    mean, variance = 2., 0.
    for b in beta.tolist(): mean, variance = math.sqrt(1-b)*mean, (1-b)*variance+b
    abar = (1-beta).prod()
    ones = torch.ones(1,1,1,1)
    assert add_noise(2*ones, abar[None], 0*ones).item()==pytest.approx(mean, abs=1e-6)
    assert add_noise(0*ones, abar[None], ones).item()**2==pytest.approx(variance, abs=1e-6)

def test_the_schedules_of_the_reference():
    assert round(ABAR[400].sqrt().item(), 2)==.65 and round(vp_abar(torch.tensor(.4)).sqrt().item(), 2)==.44

def test_a_logit_is_of_one_image_and_the_released_one_is_cut_off():
    net, x, time = network(), torch.randn(5,4,7,3), torch.rand(5)
    whole = net(x, time)
    for i in range(5): assert torch.allclose(net(x[i:i+1], time[i:i+1]), whole[i:i+1], atol=1e-5)
    loud = network(rule='released')
    with torch.no_grad(): loud.head.bias.fill_(50)
    assert torch.equal(loud(x, time), torch.full((5,), LIMIT)) and LIMIT==pytest.approx(11.5129, abs=1e-4)
    assert not log_ratio_gradient(loud, x, time).any()

@pytest.mark.parametrize('change', [dict(width=12), dict(rule='code')])
def test_a_network_that_cannot_be_is_refused(change):
    with pytest.raises(ValueError): network(**change)

def test_a_file_gives_the_same_network_and_others_are_one_line(tmp_path):
    net, x, time = network(rule='released', depth=1), torch.randn(2,4,5,5), torch.tensor([.1,.6])
    net.save(tmp_path/FILE, data='prcc')
    for name in (tmp_path, tmp_path/FILE):
        again = LatentDiscriminator.from_pretrained(name)
        assert torch.equal(again(x, time), net(x, time).detach()) and again.config==net.config and again.about['data']=='prcc'
    good = (tmp_path/FILE).read_bytes()
    bad = dict(flip=good[:-3]+bytes([good[-3]^1])+good[-2:], page=b'<!doctype html>', empty=b'', cut=good[:200])
    for name,content in bad.items():
        (tmp_path/f'{name}.safetensors').write_bytes(content)
        with pytest.raises(ValueError) as e: LatentDiscriminator.from_pretrained(tmp_path/f'{name}.safetensors')
        assert '\n' not in str(e.value) and name in str(e.value)
    with pytest.raises(WeightsNotFound): LatentDiscriminator.from_pretrained(tmp_path/'none.safetensors')

def test_a_file_whose_description_is_of_another_network(tmp_path):
    net = network()
    net.config['width'] = 16
    net.save(tmp_path/FILE)
    with pytest.raises(ValueError, match='other weights than its description'): LatentDiscriminator.from_pretrained(tmp_path)


# --- latents

@pytest.mark.parametrize('rule', ['paper','released'])
def test_latents_by_hand(asked, rule):
    torch.manual_seed(0)
    vae, images = tiny_vae((8,8)), asked[0]
    pixels = torch.tensor(np.stack([np.asarray(im.resize((16,32), Image.Resampling.LANCZOS)) for im in images])).permute(0,3,1,2).float()
    with torch.no_grad(): want = vae.encode(pixels/127.5-1 if rule=='paper' else pixels).latent_dist.mean
    if rule=='paper': want = want*vae.config.scaling_factor
    assert torch.allclose(encode(vae, images, (32,16), rule), want, rtol=1e-3, atol=1e-3)
    assert scaling_of(vae, rule)==(vae.config.scaling_factor if rule=='paper' else 1)

def test_parts_that_are_there_are_not_made_again(world, tmp_path, monkeypatch):
    torch.manual_seed(0)
    vae, paths, calls = tiny_vae((8,8)), list(world.train.path)[:7], []
    monkeypatch.setattr(latents_module, '_PART', 3)
    whole = latents_of(paths, vae, tmp_path/'a', (32,16), batch=2)
    real = latents_module.encode
    def counted(*args):
        calls.append(len(args[1]))
        if len(calls)==3: raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(latents_module, 'encode', counted)
    with pytest.raises(KeyboardInterrupt): latents_of(paths, vae, tmp_path/'b', (32,16), batch=2)
    assert [p.name for p in sorted((tmp_path/'b').iterdir())]==['00000.safetensors']
    calls[:] = [0]*3
    assert torch.equal(latents_of(paths, vae, tmp_path/'b', (32,16), batch=2), whole) and calls[3:]==[2,1,1]
    (tmp_path/'b'/'00001.safetensors').write_bytes(b'torn'); calls[:] = [0]*3
    assert torch.equal(latents_of(paths, vae, tmp_path/'b', (32,16), batch=2), whole) and calls[3:]==[2,1]
    calls[:] = [0]*3
    torch.manual_seed(1)
    assert not torch.equal(latents_of(paths, tiny_vae((8,8)), tmp_path/'b', (32,16), batch=2), whole) and len(calls)==8


# --- training

@pytest.fixture(scope='module')
def heaps():
    g = torch.Generator().manual_seed(0)
    return torch.randn(10,4,4,2, generator=g)+.4, torch.randn(31,4,4,2, generator=g)-.4

def test_every_real_image_once_an_epoch_and_as_many_generated_ones(heaps, monkeypatch):
    monkeypatch.setattr(training, 'draw_times', lambda n, *_: (torch.zeros(n), torch.ones(n)))     # no noise: latents as they are
    real, generated = heaps
    seen = [x for x,_ in noisy_batches(real, generated, network(), 4, 0, 0)]
    assert [len(x) for x in seen]==[4,4,4,4,2,2]
    place = lambda x, heap: [next(i for i,o in enumerate(heap) if torch.equal(o, row)) for row in x]
    assert sorted(place(torch.cat(seen[::2]), real))==list(range(10))
    assert len(place(torch.cat(seen[1::2]), generated))==10
    drawn = {i for epoch in range(20) for x in [x for x,_ in noisy_batches(real, generated, network(), 4, 0, epoch)][1::2] for i in place(x, generated)}
    assert drawn==set(range(31))

def test_one_epoch_is_adam_on_equation_5(heaps):
    a, b = network(), network()
    got, = fit_discriminator(a, *heaps, 1, batch=4, lr=1e-3)
    opt = torch.optim.Adam(b.parameters(), 1e-3, weight_decay=1e-7)
    batches, sums = list(noisy_batches(*heaps, b, 4, 0, 0)), [0,0]
    for (x,time),(y,when) in zip(batches[::2], batches[1::2]):
        real, made = torch.sigmoid(b(x, time)), torch.sigmoid(b(y, when))
        loss = -real.log().mean()-(1-made).log().mean()
        opt.zero_grad(); loss.backward(); opt.step()
        sums[0] += len(x)*loss.item(); sums[1] += ((real>.5).sum()+(made<=.5).sum()).item()/2
    assert got==dict(epoch=0, loss=pytest.approx(sums[0]/10, rel=1e-4), right=pytest.approx(sums[1]/10))
    moved = [(p-q).abs().mean().item() for p,q in zip(a.parameters(), b.parameters())]
    assert np.median(moved)<1e-6      # biases before a norm have no gradient, of whose rounding Adam makes steps

@pytest.mark.parametrize('rule', ['paper','released'])
def test_a_killed_run_ends_as_one_that_was_not(heaps, tmp_path, monkeypatch, rule):
    net = network(rule=rule)
    history = fit_discriminator(net, *heaps, 4, lr=1e-2)
    real, calls = training.discriminator_loss, []
    def killed(*args):
        calls.append(1)
        if len(calls)==5: raise KeyboardInterrupt                      # in the middle of epoch 2
        return real(*args)
    monkeypatch.setattr(training, 'discriminator_loss', killed)
    with pytest.raises(KeyboardInterrupt): fit_discriminator(network(rule=rule), *heaps, 4, lr=1e-2, checkpoint=tmp_path/CHECKPOINT)
    second = network(seed=9, rule=rule)                                 # its weights come from the checkpoint
    assert fit_discriminator(second, *heaps, 4, lr=1e-2, checkpoint=tmp_path/CHECKPOINT)==history
    for p,q in zip(second.parameters(), net.parameters()): assert torch.equal(p, q)
    assert history[-1]['loss']<history[0]['loss']

@pytest.mark.parametrize('change,says', [(dict(seed=1), 'seed 0, not 1'), (dict(batch=3), 'batch 8, not 3'), (dict(epochs=1), '2 epochs already'),
                                         (dict(size=[1,2]), r'size None, not \[1, 2\]')])
def test_another_run_is_refused(heaps, tmp_path, change, says):
    fit_discriminator(network(), *heaps, epochs=2, checkpoint=tmp_path/CHECKPOINT)
    with pytest.raises(FileExistsError, match=says): fit_discriminator(network(), *heaps, **{**dict(epochs=2), **change}, checkpoint=tmp_path/CHECKPOINT)

def test_damaged_checkpoints_are_one_line(heaps, tmp_path):
    path = tmp_path/CHECKPOINT
    for content in (b'', b'<!doctype html>', b'PK torn'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match='checkpoint') as e: fit_discriminator(network(), *heaps, 1, checkpoint=path)
        assert '\n' not in str(e.value)
    training.write_whole(path, training.torch_bytes(dict(epoch=3)))
    with pytest.raises(ValueError, match='no checkpoint of a discriminator'): fit_discriminator(network(), *heaps, 1, checkpoint=path)

def test_a_data_set_and_a_folder_become_a_file_and_again_the_same_bytes(trained, world, made, inpaint):
    out, net, history = trained
    before = (out/FILE).read_bytes()
    about = LatentDiscriminator.from_pretrained(out).about
    assert (about['real'],about['generated'],about['epochs'],about['size'])==(len(world.train), 2*len(world.train), 20, [64,32])
    assert net.config==dict(channels=4, width=16, depth=3, rule='paper', scaling=inpaint.pipe.vae.config.scaling_factor)
    assert torch.equal(net.abar, ABAR) and history[-1]['loss']<history[0]['loss']
    train_discriminator(world.train, made[1], inpaint, out, width=16, epochs=20, lr=3e-3)
    assert (out/FILE).read_bytes()==before
    with pytest.raises(FileExistsError, match='images'): train_discriminator(world.train[:4], made[1], inpaint, out, width=16, epochs=20, lr=3e-3)
    with training.hold(out/'.lock'), pytest.raises(BlockingIOError): train_discriminator(world.train, made[1], inpaint, out)

def test_what_has_no_latents_is_refused(world, made, tmp_path):
    for other in (StandIns().inpainter, object(), type('Flux', (), dict(pipe=object()))()):
        with pytest.raises(ValueError, match='cannot be guided'): train_discriminator(world.train, made[1], other, tmp_path/'x')
    assert not (tmp_path/'x').exists()


# --- guided pipelines

def latents(pipe, guidance, asked, steps=3, scale=7.5, size=(64,32), **kw):
    images, masks = (o[:3] for o in asked)
    white = [Image.fromarray(m.astype(np.uint8)*255) for m in masks]
    noise = [torch.Generator().manual_seed(s) for s in range(len(images))]
    with guiding(pipe, guidance):
        return pipe(prompt=['a coat']*len(images), image=images, mask_image=white, height=size[0], width=size[1], num_inference_steps=steps,
                    guidance_scale=scale, generator=noise, output_type='latent', **kw).images

def test_a_pipeline_step_by_step_with_guidance_added_once(trained, inpaint, asked):
    "All of DDIM from the equations: both halves asked apart, mixed, and then corrected"
    pipe, net, first = inpaint.pipe, trained[1], []
    def note(pipe, i, t, kept):
        first.append((t.item(), dict(kept))); return kept
    names = ['latents','prompt_embeds','mask','masked_image_latents']
    got = latents(pipe, DiscriminatorGuidance(net, 3.), asked, callback_on_step_end=note, callback_on_step_end_tensor_inputs=names)
    times, kept = [t for t,_ in first], first[0][1]
    n = len(got)
    none, words = kept['prompt_embeds'][:n], kept['prompt_embeds'][n:]
    known = torch.cat([kept['mask'], kept['masked_image_latents']], 1)[:n]
    x = first[0][1]['latents']                                          # after the first step
    for k in range(1, len(times)):
        t, then = times[k], times[k+1] if k+1<len(times) else None
        a = ABAR[t]; b = ABAR[then] if then is not None else pipe.scheduler.final_alpha_cumprod
        with torch.no_grad(): e0, e1 = (pipe.unet(torch.cat([x,known], 1), t, o).sample for o in (none, words))
        xs = x.clone().requires_grad_()
        logit = net(xs, torch.full((n,), t/999)); d = torch.sigmoid(logit)
        h, = torch.autograd.grad((d/(1-d)).log().sum(), xs)                              # Eq. 6 as it stands
        noise = e0+7.5*(e1-e0) + 3.*(-(1-a).sqrt()*h)                                    # Eq. 7 and 8
        x = b.sqrt()*(x-(1-a).sqrt()*noise)/a.sqrt()+(1-b).sqrt()*noise
    assert torch.allclose(x, got, atol=2e-4)

def test_adding_to_both_halves_is_adding_once():
    e0, e1, g, s = torch.randn(4, 100, dtype=torch.float64)
    assert torch.allclose((e0+g)+s*((e1+g)-(e0+g)), e0+s*(e1-e0)+g)

@pytest.mark.parametrize('scheduler', ['DDIMScheduler','PNDMScheduler','EulerDiscreteScheduler','DPMSolverMultistepScheduler'])
def test_guidance_raises_the_score_with_the_same_noise(trained, inpaint, asked, scheduler):
    pipe, net, own = inpaint.pipe, trained[1], inpaint.pipe.scheduler
    pipe.scheduler = getattr(diffusers, scheduler).from_config(own.config)
    try:
        belief = [net(latents(pipe, DiscriminatorGuidance(net, w), asked, 5), torch.zeros(3)) for w in (0,1,4)]
        assert belief[0].mean()<belief[1].mean()<belief[2].mean() and (belief[2]>belief[0]).all()
    finally: pipe.scheduler = own

@pytest.mark.parametrize('scale', [7.5, 1.])
def test_weight_0_is_the_plain_pipeline_bit_for_bit(trained, inpaint, asked, scale):
    pipe, net = inpaint.pipe, trained[1]
    z = latents(pipe, DiscriminatorGuidance(net, 0), asked, scale=scale)
    class Off: weight = 0
    assert torch.equal(z, latents(pipe, Off(), asked, scale=scale)) and not pipe.unet._forward_hooks
    assert not torch.equal(z, latents(pipe, DiscriminatorGuidance(net, 1), asked, scale=scale))

def test_the_hook_goes_away_also_after_an_error(trained, inpaint):
    with pytest.raises(KeyError):
        with guiding(inpaint.pipe, DiscriminatorGuidance(trained[1])): raise KeyError
    assert not inpaint.pipe.unet._forward_hooks

@pytest.mark.parametrize('kind', ['epsilon','v_prediction','sample'])
@pytest.mark.parametrize('as_tuple', [True, False])
def test_what_the_hook_adds_by_kind_of_estimate(kind, as_tuple):
    pipe, net = tiny_pipeline(), network()
    pipe.scheduler.register_to_config(prediction_type=kind)
    x, words, t, w = torch.randn(2,9,8,4), torch.randn(2,7,32), 300, 2.
    ask = lambda: pipe.unet(x, t, words, return_dict=False)[0] if as_tuple else pipe.unet(sample=x, timestep=t, encoder_hidden_states=words).sample
    with torch.no_grad():
        plain = ask()
        with guiding(pipe, DiscriminatorGuidance(net, w)): got = ask()
    a, s = ABAR[t].sqrt(), (1-ABAR[t]).sqrt()
    noise_of = dict(epsilon=lambda o: o, v_prediction=lambda o: a*o+s*x[:,:4], sample=lambda o: (x[:,:4]-a*o)/s)[kind]
    h = log_ratio_gradient(net, x[:,:4], torch.full((2,), t/999))
    assert torch.allclose(noise_of(got)-noise_of(plain), -w*s*h, atol=1e-5)

def test_half_precision_and_the_halves(trained):
    pipe, net = tiny_pipeline(), trained[1]
    pipe.unet.to(torch.bfloat16)
    x, words = torch.randn(1,9,8,4).to(torch.bfloat16), torch.randn(1,7,32).to(torch.bfloat16)
    with torch.no_grad(), guiding(pipe, DiscriminatorGuidance(net)): out = pipe.unet(torch.cat([x,x]), 300, torch.cat([words,words])).sample
    assert out.dtype==torch.bfloat16 and torch.equal(out[0], out[1])
    assert torch.isfinite(out.float()).all()

def test_the_released_discriminator_guides_early_steps_alone(inpaint):
    late = DiscriminatorGuidance(network(rule='released', scaling=1.))
    assert late.above==200 and DiscriminatorGuidance(network()).above==-1
    at = [t for t in range(0, 1000, 50) if late.correction(torch.randn(1,4,4,4), t, inpaint.pipe.scheduler) is not None]
    assert at==list(range(250, 1000, 50))
    late.check(inpaint)                                                 # it fits by construction: its noise is another one

@pytest.mark.parametrize('net,says', [
    (lambda: LatentDiscriminator(torch.linspace(.99,.01,1000), width=8, scaling=SCALING), 'another schedule'),
    (lambda: LatentDiscriminator(ABAR[:500], width=8, scaling=SCALING), 'another schedule'),
    (lambda: network(scaling=.5), 'times 0.5, not 4.3'), (lambda: network(channels=16), '16 channels, not 4')])
def test_a_discriminator_of_something_else_is_refused(inpaint, net, says):
    with pytest.raises(ValueError, match=says) as e: guided(inpaint, DiscriminatorGuidance(net(), name='mine'))
    assert '\n' not in str(e.value) and 'mine' in str(e.value) and inpaint.name in str(e.value)

def test_a_guided_inpainter_is_one_and_says_so(trained, inpaint, asked):
    better = guided(inpaint, DiscriminatorGuidance(trained[1], 4))
    seeds = [1,2,3,4]
    plain, new = inpaint(*asked, 'a red coat', seeds), better(*asked, 'a red coat', seeds)
    for im,m,a,b in zip(*asked, plain, new):
        im, a, b = map(np.asarray, (im, a, b))
        assert (b[~m]==im[~m]).all() and (a[m]!=b[m]).any()
    assert better(asked[0][::-1], asked[1][::-1], 'a red coat', seeds[::-1])[3].tobytes()==new[0].tobytes()
    assert better.settings=={**inpaint.settings, 'guided': dict(better.guidance.settings)} and better.batch==inpaint.batch
    json.dumps(better.settings)
    assert [a.tobytes() for a in inpaint(*asked, 'a red coat', seeds)]==[a.tobytes() for a in plain]
    assert guided(inpaint, DiscriminatorGuidance(trained[1], 0)) is inpaint is guided(inpaint, None)


# --- parts and the command

def make_coats(dataset, out, models, **kwargs):
    return count_left(expand(dataset.train, Recloth(MannequinParser(), inpainter_of(models), 'a red coat'), out, 1, **kwargs), len(dataset.train))

@pytest.fixture
def chain():
    new = dict(parts={k: v for k,v in GUIDANCE.items() if k not in registry.All('parts')},         # what no chain has registered
               commands={k: v for k,v in COMMANDS.items() if k not in registry.All('commands')})
    yield registry.register(Chain('coats', **new, images=dict(coats=Images('coats', job=make_coats))))
    registry.forget('coats')

def test_stand_ins_are_never_guided_and_settings_need_a_discriminator(chain, tmp_path):
    assert type(inpainter_of(StandIns())).__name__=='MannequinInpainter'
    with pytest.raises(ValueError, match='discriminator.weight is set, but no discriminator'): inpainter_of(Networks(**{'discriminator.weight': '1'}))
    with pytest.raises(WeightsNotFound, match='none.safetensors'): inpainter_of(Networks(discriminator=str(tmp_path/'none.safetensors')))

def test_from_the_command_line(ccreid, chain, world, made, inpaint, tmp_path):
    inpaint.pipe.save_pretrained(tmp_path/'tiny')
    data = ['--data','prcc','--root',world.root,'--device','cpu']
    painter = ['--model',f"inpainter={tmp_path/'tiny'}",'--model','inpainter.size=64x32']
    guide = ['guide',*data,*painter,'--generated',made[0],'--epochs','2','--width','8','--depth','2','--out',tmp_path/'run']
    code, out, err = ccreid(*guide)
    assert code==0, err
    assert f'{len(world.train)} real and {2*len(world.train)} generated images' in out and 'epoch 2: loss' in out and 'discriminator=' in out
    first = (tmp_path/'run'/FILE).read_bytes()
    code, out, _ = ccreid(*guide)
    assert code==0 and 'epoch' not in out and (tmp_path/'run'/FILE).read_bytes()==first     # nothing is trained again
    files = lambda out: {p.name: p.read_bytes() for p in sorted((tmp_path/out).glob('images/*/*.png'))}
    def generate(out, *more):
        code, text, err = ccreid('generate','coats',*data,*painter,'--model','inpainter.steps=2','--out',tmp_path/out,*more)
        return code, err
    by = ['--model',f"discriminator={tmp_path/'run'}"]
    assert generate('plain')[0]==0 and generate('guided', *by, '--model','discriminator.weight=9')[0]==0
    assert generate('zero', *by, '--model','discriminator.weight=0')[0]==0
    assert files('plain')==files('zero') and len(files('plain'))==len(world.train)
    assert files('plain').keys()==files('guided').keys() and files('plain')!=files('guided')
    code, err = generate('plain', *by)
    assert code==2 and 'another job' in err and len(err.strip().splitlines())==1           # a folder has one guidance

@pytest.mark.parametrize('more,says', [
    (['--generated','nowhere'], 'no folder'), (['--rule','code'], 'invalid choice'), (['--width','9'], 'multiple of 8'), (['--epochs','0'], 'at least 1')])
def test_what_cannot_start_is_one_line(ccreid, chain, world, made, inpaint, tmp_path, more, says):
    inpaint.pipe.save_pretrained(tmp_path/'tiny')
    code, _, err = ccreid('guide','--data','prcc','--root',world.root,'--device','cpu','--generated',made[0],'--model',f"inpainter={tmp_path/'tiny'}",
                          '--out',tmp_path/'run',*more)
    assert code==2 and says in err and len([l for l in err.strip().splitlines() if l.startswith('ccreid')])==1

def test_drawn_people_need_a_named_inpainter(ccreid, chain, world, made, tmp_path):
    code, _, err = ccreid('guide','--data','prcc','--root',world.root,'--device','cpu','--generated',made[0],'--out',tmp_path/'run')
    assert code==2 and 'cannot be guided' in err and 'inpainter=NAME' in err
