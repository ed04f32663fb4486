"The small diffusion model, with random weights: its sizes, its words, its files, its losses, and steps that can be killed"
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors import safe_open

from ccreid.data.mannequins import BENCHMARKS, COLOURS, DOMAINS, KINDS, PATTERNS, PRETRAINING, MannequinWorld, parse_caption
from ccreid.generation.inpainting import ClothesInpainter
from ccreid.generation.painted_colours import colour_seen, colour_shares, painted_colours
from ccreid.generation.parsing import clothes_mask
from ccreid.models.small_diffusion import (LENGTH, PARTS, VOCABULARY, about_small_diffusion, caption_tokenizer, new_small_diffusion, plain_input,
    save_small_diffusion, small_diffusion)
from ccreid.models.small_training import (denoising_loss, hidden, latents_of, mean_guess, noise_error, noise_table, picture_error, pixels, rescale, said,
    time_weight, training_mask, vae_loss, words_of)
from ccreid.training.steps import Training
from ccreid.weights import WeightsNotFound

diffusers = pytest.importorskip('diffusers')
transformers = pytest.importorskip('transformers')
for library in diffusers,transformers: library.utils.logging.disable_progress_bar()
ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT/'ccreid/assets/small_diffusion'

@pytest.fixture(scope='module')
def pipe():
    p = new_small_diffusion()
    p.set_progress_bar_config(disable=True)
    return p

@pytest.fixture(scope='module')
def people():
    world = MannequinWorld((6,0,0), domain='park', size=(96,48), seed=3)
    drawn = [world.render(i) for i in range(6)]
    return np.stack([np.asarray(m.image) for m in drawn]), np.stack([clothes_mask(m.parsing) for m in drawn]), [[str(g) for g in m.garments] for m in drawn]

@pytest.fixture(scope='module')
def batch(pipe, people): return latents_of(pipe.vae, *people[:2]) | dict(outfit=people[2])

# ---- sizes

def test_it_is_small_and_of_the_real_classes(pipe):
    n = {p: sum(o.numel() for o in getattr(pipe, p).parameters()) for p in PARTS}
    assert type(pipe) is diffusers.StableDiffusionInpaintPipeline and type(pipe.vae) is diffusers.AutoencoderKL
    assert type(pipe.unet) is diffusers.UNet2DConditionModel and type(pipe.text_encoder) is transformers.CLIPTextModel
    assert 3.5e5<n['vae']<5e5 and 7e5<n['unet']<1.1e6 and n['text_encoder']<1e5
    assert pipe.unet.config.in_channels==9 and pipe.unet.config.out_channels==4 and list(pipe.unet.config.block_out_channels)==[32,64]
    assert pipe.vae_scale_factor==8 and pipe.vae.config.scaling_factor==1 and pipe.scheduler.config.prediction_type=='epsilon'

def test_latents_are_an_eighth(pipe):
    with torch.no_grad():
        z = pipe.vae.encode(torch.zeros(1,3,96,48)).latent_dist.mean
        assert z.shape==(1,4,12,6) and pipe.vae.decode(z).sample.shape==(1,3,96,48)
        x = plain_input(z)
        assert x.shape==(1,9,12,6) and torch.equal(x[:,:4], z) and (x[:,4]==1).all() and (x[:,5:]==0).all()

def test_the_same_seed_gives_the_same_weights_and_nobody_elses_numbers_change():
    torch.manual_seed(5); a = torch.rand(1)
    torch.manual_seed(5); one = new_small_diffusion(1); b = torch.rand(1)
    two,three = new_small_diffusion(1),new_small_diffusion(2)
    assert torch.equal(a, b) and torch.equal(one.unet.conv_in.weight, two.unet.conv_in.weight)
    assert not torch.equal(one.unet.conv_in.weight, three.unet.conv_in.weight)

# ---- words

def read(words, text): return words.convert_ids_to_tokens(words(text).input_ids)[1:-1]

@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_captions_are_read_word_by_word(seed):
    from ccreid.data.mannequins import describe
    from ccreid.data.mannequins.garments import dress
    outfit = dress(np.random.default_rng(seed))
    want = [w for g in parse_caption(describe(outfit)) for w in ([g.colour] if g.pattern=='plain' else [g.colour, g.second, g.pattern])+[g.kind]]
    assert read(WORDS, describe(outfit))==want[:LENGTH-2] and len(want)<=LENGTH-2

WORDS = caption_tokenizer()

@pytest.mark.parametrize('text,tokens', [('', []), ('crimson velvet', []), ('RED Jumper', ['red','sweater']), ('gray sneakers', ['grey','trainers']),
    ('a top', ['tank top']), ('a tank top', ['tank top']), ('a long skirt', ['long skirt']), ('longskirts', []), ('t-shirt', ['t-shirt']), ('tee', ['t-shirt']),
    ('plaid pants', ['checked','trousers']), ('a plain white shirt', ['white','shirt']), ('black hat', ['black','cap']), ('red,white', ['red','white']),
    ('two-tone', ['two-tone']), ('bored', []), ('<|endoftext|>', [])])
def test_words_synonyms_and_the_rest(text, tokens): assert [t for t in read(WORDS, text) if t not in VOCABULARY[:2]]==tokens

def test_the_vocabulary_is_that_of_captions():
    assert set(VOCABULARY[2:])=={*COLOURS, *PATTERNS[1:], *KINDS} and len(set(VOCABULARY))==len(VOCABULARY)
    assert [WORDS.convert_tokens_to_ids(w) for w in VOCABULARY]==list(range(len(VOCABULARY)))

# ---- files

def test_files_go_round_and_are_small(pipe, tmp_path):
    save_small_diffusion(pipe, tmp_path/'m', dict(note='x', history=[(1,.5)], measures={3: .25}))
    again = small_diffusion(tmp_path/'m')
    for part in PARTS:
        for k,v in getattr(pipe, part).state_dict().items(): assert torch.equal(getattr(again, part).state_dict()[k], v.half().float()), k
        with safe_open(tmp_path/'m'/part/PARTS[part], 'pt') as f:
            assert f.metadata()['format']=='pt' and json.loads(f.metadata()['ccreid'])['note']=='x'
            assert all(f.get_tensor(k).dtype==torch.float16 for k in f.keys())
    assert about_small_diffusion(tmp_path/'m')==dict(note='x', history=[[1,.5]], measures={'3': .25})
    assert sum(p.stat().st_size for p in (tmp_path/'m').rglob('*') if p.is_file())<5e6
    texts = ''.join(p.read_text() for p in (tmp_path/'m').rglob('*.json'))
    assert str(tmp_path) not in texts and 'TokenizersBackend' not in texts

def test_a_damaged_file_is_not_read(pipe, tmp_path):
    save_small_diffusion(pipe, tmp_path/'m', {})
    file = tmp_path/'m'/'unet'/PARTS['unet']
    data = bytearray(file.read_bytes()); data[len(data)//2] ^= 4; file.write_bytes(data)
    with pytest.raises(ValueError, match='damaged'): small_diffusion(tmp_path/'m')
    file.unlink()
    with pytest.raises(WeightsNotFound, match='no weights at'): small_diffusion(tmp_path/'m')
    with pytest.raises(WeightsNotFound, match='nobody'): small_diffusion('nobody')

# ---- the pipeline

def test_it_is_called_like_any_other_and_paints_inside_the_mask_only(pipe, tmp_path):
    world = MannequinWorld((2,0,0), domain='park', seed=3)
    people = [world.render(i) for i in range(2)]
    images,masks = [m.image for m in people],[clothes_mask(m.parsing) for m in people]
    paint = ClothesInpainter(pipe, size=(96,48), steps=2, batch=2, device='cpu', name='small')
    made = paint(images, masks, 'a red coat', [1,2])
    for a,b,m in zip(map(np.asarray, images), map(np.asarray, made), masks):
        assert a.shape==b.shape and (a[~m]==b[~m]).all() and (a[m]!=b[m]).any()
    assert paint.settings['steps']==2 and [o.tobytes() for o in paint(images, masks, 'a red coat', [1,2])]==[o.tobytes() for o in made]
    assert paint(images, masks, 'a blue dress', [1,2])[0].tobytes()!=made[0].tobytes()
    save_small_diffusion(pipe, tmp_path/'m', {})
    named = ClothesInpainter.from_pretrained(tmp_path/'m', size=(96,48), steps=2, batch=2, device='cpu')
    loaded = ClothesInpainter(small_diffusion(tmp_path/'m'), size=(96,48), steps=2, batch=2, device='cpu')
    assert [o.tobytes() for o in named(images, masks, 'a red coat', [1,2])]==[o.tobytes() for o in loaded(images, masks, 'a red coat', [1,2])]

# ---- losses, against loops

def test_the_loss_of_the_autoencoder_by_hand(pipe):
    torch.manual_seed(1)
    x,g = torch.rand(2,3,96,48)*2-1,torch.Generator().manual_seed(4)
    with torch.no_grad():
        got = vae_loss(pipe.vae, x, g, weight=.5).item()
        d,noise = pipe.vae.encode(x).latent_dist,torch.randn(2,4,12,6, generator=torch.Generator().manual_seed(4))
        y = pipe.vae.decode(d.mean+d.logvar.mul(.5).exp()*noise).sample
    far = [.5*(m*m+v-1-np.log(v)) for m,v in zip(d.mean.flatten().tolist(), d.logvar.exp().flatten().tolist())]
    assert got==pytest.approx((y-x).abs().mean().item()+.5*np.mean(far), rel=1e-4)

@given(st.lists(st.floats(-3,3), min_size=4, max_size=4), st.lists(st.floats(.1,5), min_size=4, max_size=4))
@settings(max_examples=8, deadline=None)
def test_another_scale_of_latents_is_another_scale_and_nothing_else(m, s):
    vae,x = new_small_diffusion(1).vae,torch.rand(1,3,32,16, generator=torch.Generator().manual_seed(0))
    m,s = torch.tensor(m),torch.tensor(s)
    with torch.no_grad():
        old = vae.encode(x).latent_dist; picture = vae.decode(old.mean).sample
        new = rescale(vae, m, s).encode(x).latent_dist
        assert torch.allclose(new.mean, (old.mean-m[:,None,None])/s[:,None,None], atol=1e-4)
        assert torch.allclose(new.std*s[:,None,None], old.std, atol=1e-4) and torch.allclose(vae.decode(new.mean).sample, picture, atol=1e-3)

def test_a_training_mask_is_never_less_than_the_clothes(people):
    rng,sizes = np.random.default_rng(0),set()
    for _ in range(60):
        m = people[1][1]; new = training_mask(m, rng)
        assert new.dtype==bool and (new | ~m).all()
        sizes.add(int(new.sum()))
    assert m.sum() in sizes and len(sizes)>=5 # as it is, four widths, perhaps a box
    assert not training_mask(np.zeros((4,4), bool), rng).any()

def test_what_is_hidden_and_how_often():
    n,g = 4000,torch.Generator().manual_seed(0)
    mask,masked,grey = torch.zeros(n,1,2,2),torch.full((n,4,2,2), 3.),torch.full((4,2,2), 2.)
    a,b = hidden(mask, masked, grey, g)
    kinds = [(a[i].flatten().unique().tolist(), b[i].flatten().unique().tolist()) for i in range(n)]
    share = [sum(k==o for k in kinds)/n for o in (([1.],[0.]), ([1.],[2.]), ([0.],[3.]))]
    assert share==pytest.approx([.3,.05,.65], abs=.03) and sum(share)==pytest.approx(1)
    assert [torch.equal(*p) for p in zip(hidden(mask, masked, grey, plain=0, whole=0), (mask, masked))]==[True,True]

def test_how_often_nothing_is_said():
    g = torch.Generator().manual_seed(0)
    texts = [said(['a red coat','blue jeans'], g) for _ in range(3000)]
    assert texts.count('')/3000==pytest.approx(.1+.9*.01, abs=.02) and texts.count('a red coat, blue jeans')/3000==pytest.approx(.9**3, abs=.03)
    assert set(texts)=={'', 'a red coat', 'blue jeans', 'a red coat, blue jeans'} and said(['x'], g, none=0, short=0)=='x'

def test_latents_and_mask_are_the_pipelines(pipe, people):
    images,masks,_ = people
    got = latents_of(pipe.vae, images, masks)
    with torch.no_grad():
        x = torch.tensor(images).permute(0,3,1,2)/127.5-1
        hole = x.clone()
        for i in range(len(x)): hole[i][:,torch.tensor(masks[i])] = 0
        assert torch.allclose(pixels(images), x) and torch.allclose(got['masked'].float(), pipe.vae.encode(hole).latent_dist.mean, atol=2e-3)
        assert torch.equal(got['mask'][:,0], torch.tensor(masks)[:,::8,::8])
        theirs = pipe.prepare_mask_latents(torch.tensor(masks)[:,None].float(), hole, 6, 96, 48, torch.float32, 'cpu', torch.Generator().manual_seed(0), False)
    assert torch.equal(theirs[0].bool(), got['mask'])
    assert ((theirs[1]-got['masked'].float()).abs()<6*got['masked_std'].float()+.01).all()

def test_the_noise_error_from_the_equation(pipe, batch):
    z,m,k = (batch[o].float() for o in ('mean','mask','masked'))
    t,states = torch.tensor([10,200,400,600,800,999]),words_of(pipe, ['red coat']*6)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        got = noise_error(pipe.unet, pipe.scheduler, z, m, k, states, t, torch.Generator().manual_seed(2))
        b = np.linspace(.00085**.5, .012**.5, 1000)**2
        for i in range(6):
            a = np.prod(1-b[:t[i]+1])
            x = torch.cat([a**.5*z[i]+(1-a)**.5*noise[i], m[i], k[i]])[None].float()
            want = (pipe.unet(x, t[i], states[i:i+1]).sample-noise[i]).square().mean().item()
            assert got[i].item()==pytest.approx(want, rel=1e-3)
    w = time_weight(pipe.scheduler, torch.arange(1000))
    assert w.mean().item()==pytest.approx(1, abs=1e-4) and (w.diff()>0).all()
    assert (w[700]/w[100]).item()==pytest.approx((np.prod(1-b[:101])/np.prod(1-b[:701]))**.5, rel=1e-4)

def test_the_loss_of_a_batch_weighs_and_averages(pipe, batch):
    grey = torch.zeros(4,12,6)
    with torch.no_grad():
        one = [denoising_loss(pipe, batch, grey, torch.Generator().manual_seed(s)).item() for s in (0,0,1)]
    assert one[0]==one[1]!=one[2] and all(np.isfinite(one))

def test_the_guess_by_the_mean_is_the_best_linear_one(pipe):
    z = torch.randn(4000,1,1,1, generator=torch.Generator().manual_seed(0))*.7+.3
    noise,a = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)),pipe.scheduler.alphas_cumprod[400].item()
    zt = a**.5*z+(1-a)**.5*noise
    x,y = zt.flatten().numpy(),noise.flatten().numpy()
    slope,cut = np.polyfit(x, y, 1)
    assert mean_guess(pipe.scheduler, z, 400)==pytest.approx(((y-slope*x-cut)**2).mean(), rel=.05)

def test_tables_of_errors(pipe, batch, people):
    t = noise_table(pipe, batch, times=(100,900))
    assert set(t)=={100,900} and set(t[100])=={'inpainting','plain','plain, no text','mean guess'} and t==noise_table(pipe, batch, times=(100,900))
    assert t[100]['inpainting']!=t[100]['plain']!=t[100]['plain, no text'] and t[900]['mean guess']<t[100]['mean guess']
    e = picture_error(pipe.vae, people[0])
    flat = picture_error(pipe.vae, np.full((1,96,48,3), 90, np.uint8))
    assert e['autoencoder']>e['smaller']>1 and flat['smaller']==pytest.approx(0, abs=1e-3)

# ---- training

def test_a_few_steps_lower_the_loss_on_one_batch(batch):
    own = new_small_diffusion(3)
    grey,fixed = torch.zeros(4,12,6),lambda g: denoising_loss(own, batch, grey, torch.Generator().manual_seed(0))
    t = Training(dict(unet=own.unet, text=own.text_encoder), fixed, lr=2e-3, steps=12, log=lambda text: None)
    before = fixed(None).item()
    t.run()
    losses = fixed(None).item()
    assert not own.unet.training and losses<before
    v = new_small_diffusion(3).vae
    x = torch.rand(2,3,96,48, generator=torch.Generator().manual_seed(0))*2-1
    one = lambda g: vae_loss(v, x, torch.Generator().manual_seed(0))
    before = one(None).item()
    Training(dict(vae=v), one, lr=2e-3, steps=8, log=lambda text: None).run()
    assert one(None).item()<before

def trained(file, batch, dies=None, steps=6):
    own = new_small_diffusion(4)
    def loss(g):
        if t.step==dies: raise KeyboardInterrupt
        return denoising_loss(own, batch, torch.zeros(4,12,6), g)
    t = Training(dict(unet=own.unet, text=own.text_encoder), loss, lr=1e-3, steps=steps, file=file, every=0, log=lambda text: None)
    try: t.run()
    except KeyboardInterrupt: return None
    return [p.clone() for p in t.weights]

def test_killed_and_started_again_it_ends_where_it_would_have(batch, tmp_path):
    whole = trained(None, batch)
    assert trained(tmp_path/'t.pth', batch, dies=3) is None and (tmp_path/'t.pth').exists()
    again = trained(tmp_path/'t.pth', batch)
    assert all(torch.equal(a, b) for a,b in zip(whole, again))
    assert all(torch.equal(a, b) for a,b in zip(trained(tmp_path/'t.pth', batch), again)) # done: nothing is left to do

def test_the_average_by_a_loop():
    net = torch.nn.Linear(3, 1)
    t = Training(dict(net=net), lambda g: net(torch.randn(5,3, generator=g)).square().mean(), lr=.1, steps=30, decay=.6)
    mean = net.weight.detach().clone()
    for k in range(1, 31):
        t.one_step()
        d = min(.6, (1+k)/(10+k))
        mean = d*mean+(1-d)*net.weight.detach()
    assert torch.allclose(mean, t.average[0], atol=1e-5)

def test_minutes_are_of_the_processor_and_one_plan_is_given():
    net = torch.nn.Linear(2, 1)
    t = Training(dict(net=net), lambda g: net(torch.ones(4,2)).mean(), minutes=.002, log=lambda text: None)
    t.run()
    assert t.progress==1 and .12<=t.used<2 and t.step>3
    for plan in {}, dict(steps=3, minutes=1):
        with pytest.raises(ValueError, match='either steps or minutes'): Training(dict(net=net), None, **plan)

# ---- colours

def test_the_colour_seen_is_the_nearest_of_the_drawings():
    where = np.zeros((4,4), bool); where[1:3] = True
    drawings = {c: np.broadcast_to(np.array(COLOURS[c]), (4,4,3)) for c in ('red','navy','white')}
    picture = np.full((4,4,3), 255.); picture[1:3] = (180,40,50)
    assert colour_seen(picture, where, drawings)=='red' and colour_seen(picture, ~where, drawings)=='white'

def test_shares_of_colours_of_those_who_know_and_those_who_do_not():
    world = MannequinWorld((5,0,0), outfits=1, domain='plaza', seed=9)
    def truth(images, masks, prompts, seeds):
        return [world.render(i, camera=i%world.cameras, frame=i, garments=p).image for i,p in enumerate(prompts)]
    right = colour_shares(painted_colours(truth, world, 5))
    assert (right.share==1).all() and right.garments['all']==right.garments[:-1].sum()>8 and right.chance['upper']==pytest.approx(1/16)
    assert colour_shares(painted_colours(lambda images, *a: images, world, 5)).share['all']<.7

# ---- the script, and what ships

def test_the_script_from_the_first_picture_to_the_files_and_again(tmp_path):
    args = [sys.executable, str(ROOT/'benchmarks'/'train_small_diffusion.py'), '--people', '16', '--vae-steps', '2', '--unet-steps', '2', '--vae-batch', '2',
            '--unet-batch', '4', '--measured', '0', '--no-bf16', '--work', str(tmp_path/'w'), '--out', str(tmp_path/'m')]
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    first = subprocess.run(args, env=env, capture_output=True, text=True)
    assert first.returncode==0, first.stderr[-2000:]
    about = about_small_diffusion(tmp_path/'m')
    assert about['people']==16 and about['places']==', '.join(PRETRAINING) and about['vae_steps']==about['unet_steps']==2
    state = small_diffusion(tmp_path/'m').unet.state_dict()
    (tmp_path/'m'/'unet'/PARTS['unet']).unlink()
    second = subprocess.run(args, env=env, capture_output=True, text=True)
    assert second.returncode==0 and 'pictures-' not in second.stdout # drawn once
    assert all(torch.equal(v, state[k]) for k,v in small_diffusion(tmp_path/'m').unet.state_dict().items())

def test_it_is_trained_where_no_benchmark_is_drawn():
    sys.path.insert(0, str(ROOT/'benchmarks'))
    try: import train_small_diffusion as script
    finally: sys.path.pop(0)
    seeds = {spec['world']['seed'] for spec in BENCHMARKS.values()}
    used = {script.SEED+more+i for more in (0,100,200) for i in range(len(DOMAINS))}
    assert not seeds & used and not set(PRETRAINING) & set(BENCHMARKS['mannequins-dg']['domains'])

@pytest.mark.skipif(not SHIPPED.is_dir(), reason='not trained yet')
def test_what_ships():
    assert sum(p.stat().st_size for p in SHIPPED.rglob('*') if p.is_file())<5e6
    about,pipe = about_small_diffusion(),small_diffusion()
    assert about['made_by']=='benchmarks/train_small_diffusion.py' and about['people']>1000 and about['unet_steps']>1000
    own = about['measures']["a benchmark's places"]
    assert own['picture']['autoencoder']<own['picture']['smaller']
    assert all(row['inpainting']<row['mean guess'] for row in own['noise'].values())
    assert own['colours']['share']['all']>own['colours']['chance']['all']
    assert all(v.isfinite().all() for part in PARTS for v in getattr(pipe, part).state_dict().values())
