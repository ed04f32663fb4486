"CatVTON: real classes of diffusers with tiny random weights; keys and shapes of the real network without numbers"
import copy, functools, json, re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ccreid.compat
pytest.importorskip('diffusers')
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock

from ccreid.data.mannequins import MannequinWorld
from ccreid.generation.body_masks import PARTS
from ccreid.generation.catvton import CatVTON, tiny_catvton
from ccreid.generation.catvton_weights import VARIANTS, catvton_keys, load_catvton_attention
from ccreid.generation.dressing import Fit, soft_edge
from ccreid.generation.edits import NO_NUMBERS, SkipImage, on_white
from ccreid.generation.textless import self_only
from ccreid.generation.try_off import attention_blocks
from ccreid.weights import WeightsNotFound

BASE, VAE, NAME = 'stable-diffusion-v1-5/stable-diffusion-inpainting', 'stabilityai/sd-vae-ft-mse', 'zhengchong/CatVTON'


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Rows of drawn people, and their pictures"
    table = MannequinWorld((6,0,1), images=(1,1,1), seed=9).write(tmp_path_factory.mktemp('w')/'people', workers=1).train
    rows = table.drop_duplicates('identity').head(4).to_dict('records')
    return rows, [Image.open(r['path']).convert('RGB') for r in rows]

@pytest.fixture(scope='module')
def real():
    "The UNet of Stable Diffusion 1.5 for inpainting, without numbers"
    with torch.device('meta'): return UNet2DConditionModel(in_channels=9, cross_attention_dim=768, attention_head_dim=8)

@functools.cache
def _made(seed, mask_free): return tiny_catvton(seed, mask_free=mask_free)

def tiny(seed=0, mask_free=False, **kw):
    "A `tiny_catvton` that a test may change; the networks are made once"
    o = copy.deepcopy(_made(seed, mask_free))
    small = dict(size=(64,48), steps=2, batch=2, name=o.name)
    return CatVTON(o.unet, o.vae, o.scheduler, o.parser, o.detector, mask_free=mask_free, **{**small, **kw})

@pytest.fixture
def dress(): return tiny()

def garment(colour='red', size=(60,80)):
    im = Image.new('RGB', size, 'white')
    im.paste(colour, (size[0]//4, size[1]//4, size[0]*3//4, size[1]*3//4))
    return im

def wear(dress, world, which, seeds, garments=None):
    rows, images = [[o[i] for i in which] for o in world]
    return dress(images, garments or [garment()]*len(which), ['']*len(which), seeds, rows=rows)

def numbers(unet): return {k: v.clone() for k,v in unet.state_dict().items()}
def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def file_of(unet): return {k: unet.state_dict()[n].clone() for k,n in catvton_keys(unet).items()}
def blocks(unet): return [m for m in unet.modules() if isinstance(m, BasicTransformerBlock)]


# --- the file

WIDTHS = [320]*2+[640]*2+[1280]*2+[1280]*3+[640]*3+[320]*3+[1280]
PLACES = [f'down_blocks.{i}.attentions.{j}' for i in range(3) for j in range(2)] + [f'up_blocks.{i}.attentions.{j}' for i in (1,2,3) for j in range(3)] + ['mid_block.attentions.0']

def test_the_80_keys_of_the_real_network_one_by_one(real):
    want = {}
    for i,(w,place) in enumerate(zip(WIDTHS, PLACES, strict=True)):
        for part,shape in {'to_q.weight': (w,w), 'to_k.weight': (w,w), 'to_v.weight': (w,w), 'to_out.0.weight': (w,w), 'to_out.0.bias': (w,)}.items():
            want[f'{8*i}.{part}'] = f'{place}.transformer_blocks.0.attn1.{part}',shape
    keys, own = catvton_keys(real), real.state_dict()
    assert list(keys)==list(want) and len(keys)==80
    assert {k: (n, tuple(own[n].shape)) for k,n in keys.items()}==want
    assert sum(own[n].numel() for n in keys.values())==49_574_080 and round(sum(p.numel() for p in real.parameters())/1e6, 1)==859.5

def test_the_real_file_only_fits_with_the_middle_block_last(real):
    "On the meta device there are shapes to compare, and nothing to copy"
    own = real.state_dict()
    state = {k: torch.empty(own[n].shape, device='meta') for k,n in catvton_keys(real).items()}
    assert load_catvton_attention(real, state) is real
    order = [*range(6),15,*range(6,15)]
    moved = {f"{8*new}.{k.split('.', 1)[1]}": state[k] for new,old in enumerate(order) for k in state if k.split('.')[0]==str(8*old)}
    assert set(moved)==set(state)
    with pytest.raises(ValueError, match='0 weights are missing, 0 unknown and 15 of another shape, such as 72.to_q.weight'): load_catvton_attention(real, moved)

def test_the_list_of_the_released_code_gives_every_eighth_number(dress):
    "All modules of an attention in one list: itself, three layers, the outputs and their two parts, and a processor that is a module"
    from diffusers.models.attention_processor import AttnProcessor2_0
    class Module(torch.nn.Module, AttnProcessor2_0): pass
    own = dict(dress.unet.attn_processors)
    dress.unet.set_attn_processor({k: Module() if 'attn1' in k else p for k,p in own.items()})
    listed = torch.nn.ModuleList([m for n,m in dress.unet.named_modules() if 'attn1' in n])
    assert set(catvton_keys(dress.unet))<=set(listed.state_dict())
    for k,n in catvton_keys(dress.unet).items(): assert listed.state_dict()[k].data_ptr()==dress.unet.state_dict()[n].data_ptr()

def test_another_order_than_try_offs(dress):
    ours = [n.rsplit('.attn1', 1)[0] for n in catvton_keys(dress.unet).values() if n.endswith('to_q.weight')]
    firsts = [m.transformer_blocks[0] for g in attention_blocks(dress.unet) for m in g]
    names = {m: n for n,m in dress.unet.named_modules()}
    theirs = [names[m] for m in firsts]
    assert sorted(ours)==sorted(theirs) and ours!=theirs and ours[-1].startswith('mid_block')

def test_block_i_is_filled_with_i_and_nothing_else_changes(dress):
    before = numbers(dress.unet)
    load_catvton_attention(dress.unet, {k: torch.full_like(v, float(k.split('.')[0])) for k,v in file_of(dress.unet).items()})
    places = 'down_blocks.0.attentions.0','up_blocks.1.attentions.0','up_blocks.1.attentions.1','mid_block.attentions.0'
    for i,place in enumerate(places):
        for p in dress.unet.get_submodule(f'{place}.transformer_blocks.0.attn1').parameters(): assert (p==8*i).all()
    after = dress.unet.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed<=set(catvton_keys(dress.unet).values()) and len(changed)>=19 # the bias of the first may have been 0

def test_half_precision_in_the_file(dress):
    state = {k: v.half() for k,v in file_of(tiny(1).unet).items()}
    load_catvton_attention(dress.unet, state)
    own = dress.unet.state_dict()
    for k,n in catvton_keys(dress.unet).items(): assert own[n].dtype==torch.float32 and torch.equal(own[n], state[k].float())

def lose(s): del s['24.to_v.weight']
def add(s): s['1.weight'] = torch.zeros(32,32)
def bend(s): s['8.to_out.0.bias'] = torch.zeros(1)
def rename(s):
    for k in list(s): s['unet.'+k] = s.pop(k)
def empty(s): s.clear()
def swap(s):
    for part in 'to_q.weight','to_k.weight','to_v.weight','to_out.0.weight','to_out.0.bias': s[f'24.{part}'],s[f'8.{part}'] = s[f'8.{part}'],s[f'24.{part}']

@pytest.mark.parametrize('spoil, says', [(lose, '1 weights are missing, 0 unknown and 0 of another shape, such as 24.to_v.weight'), (add, '0 weights are missing, 1 unknown and 0 of another shape, such as 1.weight'),
    (bend, '0 weights are missing, 0 unknown and 1 of another shape, such as 8.to_out.0.bias'), (rename, '20 weights are missing, 20 unknown and 0'), (empty, '20 weights are missing'), (swap, '10 of another shape')])
def test_what_does_not_fit_is_one_line_and_nothing_is_loaded(dress, spoil, says):
    before, state = numbers(dress.unet), file_of(tiny(1).unet)
    spoil(state)
    with pytest.raises(ValueError) as e: load_catvton_attention(dress.unet, state)
    assert says in str(e.value) and '\n' not in str(e.value) and len(str(e.value))<300
    assert same(before, numbers(dress.unet))


# --- the network

def test_the_cross_attentions_do_not_matter(dress):
    x = torch.randn(2, 9, 16, 6, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(): before = dress.unet(x, 5, encoder_hidden_states=None).sample
    with torch.no_grad():
        for b in blocks(dress.unet):
            for p in b.attn2.parameters(): p.normal_()
    with torch.inference_mode(): assert torch.equal(before, dress.unet(x, 5, encoder_hidden_states=None).sample)
    with torch.no_grad():
        for b in blocks(dress.unet): b.norm2.weight.mul_(2)
    with torch.inference_mode(): assert not torch.equal(before, dress.unet(x, 5, encoder_hidden_states=None).sample)

def test_the_equation_of_every_block(dress):
    for b in blocks(dress.unet):
        with torch.inference_mode():
            h = torch.randn(2, 12, b.norm1.normalized_shape[0], generator=torch.Generator().manual_seed(0))
            h1 = h+b.attn1(b.norm1(h))
            h2 = h1+b.norm2(h1)
            torch.testing.assert_close(b(h), h2+b.ff(b.norm3(h2)), rtol=0, atol=0)

def brute(attn, queries, tokens):
    "Multi-head attention, token by token"
    q, k, v = attn.to_q(queries)[0], attn.to_k(tokens)[0], attn.to_v(tokens)[0]
    d, out = q.shape[1]//attn.heads, torch.zeros_like(q)
    for head in range(attn.heads):
        cut = slice(head*d, (head+1)*d)
        for i in range(len(q)):
            scores = torch.stack([(q[i,cut]*k[j,cut]).sum()/d**.5 for j in range(len(k))])
            weights = scores.exp()/scores.exp().sum()
            out[i,cut] = sum(w*v[j,cut] for j,w in enumerate(weights))
    return attn.to_out[0](out)[None]

@pytest.mark.parametrize('persons, garments', [(6,6), (5,3), (1,4)])
def test_joined_attention_is_queries_of_one_and_keys_of_both(dress, persons, garments):
    attn = blocks(dress.unet)[0].attn1
    g = torch.Generator().manual_seed(persons)
    person, cloth = torch.randn(1, persons, 32, generator=g), torch.randn(1, garments, 32, generator=g)
    both = torch.cat([person,cloth], 1)
    with torch.inference_mode():
        cut = attn(both)[:,:persons]
        torch.testing.assert_close(cut, brute(attn, person, both), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(cut, attn(person, encoder_hidden_states=both), rtol=1e-4, atol=1e-5)
        hidden = torch.tensor([0.]*persons+[-1e9]*garments)[None,None]
        alone = attn(both, attention_mask=hidden)[:,:persons]
        torch.testing.assert_close(alone, attn(person), rtol=1e-4, atol=1e-5)
        assert (alone-cut).abs().max()>1e-3


# --- what it is shown

def shown(dress, image, mask, cloth, seed=3):
    with torch.inference_mode(): return dress.shown([image], [mask], [cloth], [torch.Generator().manual_seed(seed)])

@pytest.fixture
def person(): return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64,48,3), np.uint8))

@pytest.fixture
def mask():
    m = np.zeros((64,48), bool); m[16:40,8:40] = True
    return m

def test_the_condition_step_by_step(dress, person, mask):
    "Person with a hole of grey 0 above the garment on white, drawn in this order from one generator"
    without, given = shown(dress, person, mask, garment())
    g = torch.Generator().manual_seed(3)
    pixels = [torch.tensor(np.asarray(im, np.float32)/127.5-1).permute(2,0,1)[None] for im in (person, on_white(garment(), (64,48)))]
    pixels[0][0][:,torch.tensor(mask)] = 0
    with torch.inference_mode():
        z = []
        for x in pixels:
            d = dress.vae.encode(x).latent_dist
            z.append((d.mean+d.std*torch.randn(d.mean.shape, generator=g))*dress.vae.config.scaling_factor)
    small = torch.tensor(mask[::8,::8]).float()[None,None]
    torch.testing.assert_close(given, torch.cat([torch.cat([small,0*small], 2), torch.cat(z, 2)], 1), rtol=0, atol=1e-4)
    torch.testing.assert_close(without, torch.cat([torch.cat([small,0*small], 2), torch.cat([z[0],0*z[1]], 2)], 1), rtol=0, atol=1e-4)

def test_what_is_under_the_mask_is_not_seen(dress, person, mask):
    other = np.asarray(person).copy(); other[mask] = 7
    for a,b in zip(shown(dress, person, mask, garment()), shown(dress, Image.fromarray(other), mask, garment())): assert torch.equal(a, b)
    other[~mask] = 7
    assert not torch.equal(a, shown(dress, Image.fromarray(other), mask, garment())[1])

def test_without_a_mask(person, mask):
    dress = tiny(mask_free=True)
    without, given = shown(dress, person, mask, garment())
    assert without.shape==given.shape==(1,4,8,12)
    assert torch.equal(without[...,:6], given[...,:6]) and not without[...,6:].any() and given[...,6:].all()
    assert torch.equal(given, shown(dress, person, ~mask, garment())[1])    # the mask is not told

@pytest.mark.parametrize('size', [(10,10), (100,50), (50,100), (7,300)])
def test_a_garment_keeps_its_shape_on_white(size):
    got = np.asarray(on_white(Image.new('RGB', size, 'red'), (64,48)))
    assert got.shape==(64,48,3)
    red = (got==(255,0,0)).all(-1)
    rows, columns = red.any(1).nonzero()[0], red.any(0).nonzero()[0]
    h, w = len(rows), len(columns)
    assert h==64 or w==48
    assert abs(h-size[1]*min(64/size[1], 48/size[0]))<=1 and abs(w-size[0]*min(64/size[1], 48/size[0]))<=1
    assert abs(rows[0]-(63-rows[-1]))<=1 and abs(columns[0]-(47-columns[-1]))<=1                       # in the middle
    assert (got[~red]==255).all()


# --- guidance and steps

def watch(dress, monkeypatch):
    "What the UNet is given"
    seen, real = [], dress.unet.forward
    def forward(x, *args, **kw):
        seen.append((x.clone(), kw))
        return real(x, *args, **kw)
    monkeypatch.setattr(dress.unet, 'forward', forward)
    return seen

@pytest.mark.parametrize('guidance, batch', [(2.5,2), (1.01,2), (1,1), (0,1)])
def test_guidance_up_to_one_is_a_single_batch(guidance, batch, person, mask, monkeypatch):
    dress = tiny(guidance=guidance, steps=3)
    seen = watch(dress, monkeypatch)
    with torch.inference_mode(): dress.paint([person], [mask], [garment()], [''], [0])
    assert len(seen)==3
    for x,kw in seen:
        assert x.shape==(batch,9,16,6) and kw['encoder_hidden_states'] is None
        if batch==2:
            assert torch.equal(x[0,:5], x[1,:5]) and torch.equal(x[0,5:,:8], x[1,5:,:8])
            assert not x[0,5:,8:].any() and x[1,5:,8:].abs().max()>0
        else: assert x[0,5:,8:].abs().max()>0                               # with the garment

@pytest.mark.parametrize('guidance', [1, 2.5, 7])
def test_all_steps_by_a_plain_loop(guidance, person, mask):
    "DDIM with eta 1, from the formula: variance and direction written out, noise of the picture's generator"
    dress = tiny(guidance=guidance, steps=4)
    g = torch.Generator().manual_seed(5)
    with torch.inference_mode():
        without, given = dress.shown([person], [mask], [garment()], [g])
        state = g.get_state()
        got = dress.denoise(without, given, [g])
        g.set_state(state)
        alphas = torch.cumprod(1-torch.linspace(.00085**.5, .012**.5, 1000)**2, 0)
        x = torch.randn(1, 4, 16, 6, generator=g)
        for t in (751, 501, 251, 1):
            def noise(seen): return dress.unet(torch.cat([x,seen], 1), t, encoder_hidden_states=None).sample
            e = noise(given) if guidance<=1 else noise(without)+guidance*(noise(given)-noise(without))
            a, b = alphas[t], alphas[t-250] if t>=250 else alphas[0]
            clean = (x-(1-a)**.5*e)/a**.5
            sigma = ((1-b)/(1-a)*(1-a/b))**.5
            x = b**.5*clean+(1-b-sigma**2).clamp(min=0)**.5*e+sigma*torch.randn(x.shape, generator=g)
    torch.testing.assert_close(got, x, rtol=1e-3, atol=1e-3)

def test_the_upper_or_the_left_half_is_kept(person, mask, monkeypatch):
    for mask_free,size in (False,(1,4,16,6)),(True,(1,4,8,12)):
        dress = tiny(mask_free=mask_free)
        z = torch.randn(size, generator=torch.Generator().manual_seed(0))
        monkeypatch.setattr(dress, 'denoise', lambda *a: z)
        with torch.inference_mode():
            got = dress.paint([person], [mask], [garment()], [''], [0])[0]
            assert got.tobytes()==dress.decode(z[...,:8,:6])[0].tobytes() and got.size==(48,64)


# --- through the frame

def test_alone_and_in_any_company(dress, world):
    all4 = wear(dress, world, [0,1,2,3], [5,6,7,8])
    for order in [2], [2,0], [3,2,1]:
        got = wear(dress, world, order, [5+i for i in order])
        for i,im in zip(order, got): assert im.tobytes()==all4[i].tobytes()
    assert len({im.tobytes() for im in wear(dress, world, [1]*3, [0,1,2])})==3

@pytest.mark.parametrize('batch', [1, 3])
def test_another_size_of_batch_is_the_same_but_for_rounding(dress, world, batch):
    a, b = wear(dress, world, [0,1,2], [5,6,7]), wear(tiny(batch=batch), world, [0,1,2], [5,6,7])
    for x,y in zip(a, b): assert np.abs(np.asarray(x, int)-np.asarray(y, int)).max()<=2

def test_nothing_global_is_drawn_or_changed(dress, world):
    torch.manual_seed(0); before = torch.get_rng_state()
    a = wear(dress, world, [0], [1])[0].tobytes()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(9)
    assert wear(dress, world, [0], [1])[0].tobytes()==a
    torch.manual_seed(9); before = torch.get_rng_state()
    assert same(numbers(tiny_catvton().unet), numbers(dress.unet)) and torch.equal(before, torch.get_rng_state())

@pytest.mark.parametrize('part', PARTS)
@pytest.mark.parametrize('fit', ['stretch','pad'])
def test_outside_the_soft_edge_not_a_pixel_changes(world, part, fit):
    dress = tiny(part=part, fit=fit)
    made, inside = wear(dress, world, [0,1,2,3], [0]*4), 0
    for i,new in enumerate(made):
        rows, image = world[0][i], world[1][i]
        f = Fit(image, dress.size, fit)
        m = dress._seen([f.to(image)], [rows])[0]
        if isinstance(m, SkipImage):
            assert str(new)==str(m); continue
        edge = soft_edge(m, .02*64).crop(f.box).resize(image.size, Image.Resampling.BILINEAR)
        out = np.asarray(edge)==0
        a, b = np.asarray(image), np.asarray(new)
        assert new.size==image.size and .05<out.mean()<.95 and np.array_equal(a[out], b[out])
        inside += (a[~out]!=b[~out]).mean()>.8
    assert inside>=2

def test_nothing_is_put_back_without_an_edge(world):
    image = world[1][0]
    new = wear(tiny(edge=None), world, [0], [0])[0]
    assert new.size==image.size and (np.asarray(new)!=np.asarray(image)).any(-1).mean()>.9

def test_the_mask_free_one_through_the_frame(world):
    dress = tiny(mask_free=True)
    new = wear(dress, world, [0], [0])[0]
    changed = (np.asarray(new)!=np.asarray(world[1][0])).any(-1).mean()
    assert .03<changed<.7 and dress.settings['mask_free'] is True            # the frame puts the person back around it

def test_the_garment_and_the_seed_matter_and_the_text_does_not(dress, world):
    rows, images = world[0][:1], world[1][:1]
    a = dress(images, [garment()], ['a coat'], [1], rows=rows)[0].tobytes()
    assert a==dress(images, [garment()], ['socks'], [1], rows=rows)[0].tobytes()
    assert a!=dress(images, [garment('blue')], ['a coat'], [1], rows=rows)[0].tobytes()
    assert a!=dress(images, [garment()], ['a coat'], [2], rows=rows)[0].tobytes()

def test_who_cannot_be_dressed_is_skipped(world):
    dress = tiny_catvton(parser=lambda images, rows=None: [np.zeros((9,9), np.uint8)]*len(images))
    assert [str(o) for o in wear(dress, world, [0,1], [0,0])]==['no upper clothes']*2

def test_values_that_are_no_numbers(dress, world):
    with torch.no_grad(): dress.vae.decoder.conv_out.weight[0] = float('inf')
    got = wear(dress, world, [0,1,2], [0,0,0])
    assert all(isinstance(o, SkipImage) and str(o)==NO_NUMBERS for o in got)

def test_one_bad_picture_of_a_batch(dress, world, monkeypatch):
    good = wear(dress, world, [0,1], [0,1])
    real = dress.denoise
    def spoil(*args):
        z = real(*args); z[1] = float('nan')
        return z
    monkeypatch.setattr(dress, 'denoise', spoil)
    got = wear(dress, world, [0,1], [0,1])
    assert got[0].tobytes()==good[0].tobytes() and str(got[1])==NO_NUMBERS

def test_in_bfloat16(world):
    dress = tiny_catvton(dtype=torch.bfloat16)
    a = wear(dress, world, [0,1], [0,1])
    assert dress.settings['dtype']=='bfloat16' and all(im.size==world[1][0].size for im in a)
    assert a[1].tobytes()==wear(dress, world, [1], [1])[0].tobytes()

@pytest.mark.parametrize('kw', [dict(size=(60,48)), dict(size=(64,50)), dict(size=(0,0)), dict(size=512), dict(size=(64,)), dict(size=(64,48,3)), dict(size=(64.5,48)), dict(size=(-64,48)), dict(steps=0),
    dict(steps=2.5), dict(guidance=-1), dict(guidance=float('nan')), dict(part='hat'), dict(fit='crop'), dict(edge=2), dict(batch=0)])
def test_bad_options_are_one_line(kw):
    with pytest.raises(ValueError) as e: tiny(**kw)
    assert '\n' not in str(e.value) and len(str(e.value))<200

@pytest.mark.parametrize('size', [(64,48), (72,56), (128,64)])
def test_multiples_of_eight_will_do(world, size):
    assert wear(tiny(size=size, keep_size=False), world, [0], [0])[0].size==size[::-1]

def test_a_unet_with_other_channels():
    a, b = tiny(), tiny(mask_free=True)
    for unet,mask_free,says in (a.unet,True,'without a mask the UNet takes 8 channels, and this one 9'), (b.unet,False,'with a mask the UNet takes 9 channels, and this one 8'):
        with pytest.raises(ValueError, match=says): CatVTON(unet, a.vae, a.scheduler, None, None, mask_free=mask_free)

def test_the_record(dress):
    s = json.loads(json.dumps(dress.settings))
    assert s==dict(model='tiny-catvton-0', part='upper', size=[64,48], fit='stretch', edge=.02, keep_size=True, steps=2, guidance=2.5, mask_free=False, dtype='float32', parser='mannequins', keypoints='mannequins')
    defaults = CatVTON(dress.unet, dress.vae, dress.scheduler, None, None).settings
    assert (defaults['size'], defaults['steps'], defaults['guidance'])==([1024,768], 50, 2.5)


# --- by name

def publish(home, dress, variant='mix-48k-1024', name=NAME, base=BASE):
    "A tiny network in the published layout; the base has other attentions than the file"
    file = home/name/variant/'attention'/'model.safetensors'
    file.parent.mkdir(parents=True)
    save_file(file_of(dress.unet), file)
    other = tiny(7, mask_free=dress.mask_free).unet
    other.load_state_dict({**dress.unet.state_dict(), **{n: other.state_dict()[n].clone() for n in catvton_keys(other).values()}})
    other.save_pretrained(home/base/'unet')
    dress.scheduler.save_pretrained(home/base/'scheduler')
    dress.vae.save_pretrained(home/VAE)
    return file

@pytest.fixture
def home(tmp_path, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setenv('CCREID_WEIGHTS', str(tmp_path/'mine'))
    return tmp_path/'mine'

def load(dress, **kw):
    return CatVTON.from_pretrained(dress.parser, dress.detector, **{**dict(size=(64,48), steps=2, batch=2, device='cpu'), **kw})

def one_line(error):
    text = str(error.value)
    words = re.sub(r'/\S+/', '', text)                       # without the folders of this machine
    assert text and '\n' not in text and len(words)<320, text
    return text

def test_saved_in_the_published_layout_and_read_by_name(home, dress, world):
    file = publish(home, dress)
    again = load(dress)
    assert same(numbers(again.unet), numbers(dress.unet)) and same(numbers(again.vae), numbers(dress.vae))
    want = wear(dress, world, [0,1], [0,1])
    assert [im.tobytes() for im in wear(again, world, [0,1], [0,1])]==[im.tobytes() for im in want]
    assert (again.settings['model'], again.settings['variant'])==(NAME, 'mix-48k-1024')
    for where,name,variant in (home/NAME, 'CatVTON', 'mix-48k-1024'), (file, 'model.safetensors', None), (str(file), 'model.safetensors', None):
        again = load(dress, weights=where)
        assert same(numbers(again.unet), numbers(dress.unet))
        assert again.settings['model']==name and again.settings.get('variant')==variant
    base, vae = home/BASE, home/VAE
    assert same(numbers(load(dress, weights=file, base=base, vae=vae).unet), numbers(dress.unet))

def test_each_variant_has_its_file_and_its_size(home, dress):
    publish(home, dress)
    for i,variant in enumerate(VARIANTS[1:3]):
        other = tiny(i+1)
        publish(home, other, variant)
        with pytest.raises(AssertionError): assert same(file_of(load(dress).unet), file_of(other.unet))
        got = CatVTON.from_pretrained(None, None, variant=variant, device='cpu')
        assert same(file_of(got.unet), file_of(other.unet)) and got.size==(512,384) and got.settings['variant']==variant
    assert CatVTON.from_pretrained(None, None, device='cpu').size==(1024,768)
    with pytest.raises(ValueError, match="not 'mix'"): load(dress, variant='mix')

@pytest.mark.parametrize('how', [dict(mask_free=True), dict(variant='mask-free')])
def test_the_mask_free_one_by_name(home, world, how):
    dress = tiny(mask_free=True)
    publish(home, dress, name='zhengchong/CatVTON-MaskFree', base='timbrooks/instruct-pix2pix')
    again = load(dress, **how)
    assert again.mask_free is True and same(numbers(again.unet), numbers(dress.unet))
    assert wear(again, world, [0], [0])[0].tobytes()==wear(dress, world, [0], [0])[0].tobytes()

def test_nothing_there_is_said_in_order(home, dress):
    "The line names what is missing and where it goes; what is put there is found"
    for name,where in (NAME, home/NAME/'mix-48k-1024/attention/model.safetensors'), (BASE, home/BASE), (VAE, home/VAE):
        with pytest.raises(WeightsNotFound) as e: load(dress)
        assert name in one_line(e) and one_line(e).endswith(f'Put them at {where}')
        if name==NAME:
            where.parent.mkdir(parents=True); save_file(file_of(dress.unet), where)
        elif name==BASE:
            dress.unet.save_pretrained(where/'unet'); dress.scheduler.save_pretrained(where/'scheduler')
        else: dress.vae.save_pretrained(where)
    assert same(numbers(load(dress).unet), numbers(dress.unet))

def test_a_folder_without_the_variant(home, dress):
    publish(home, dress)
    with pytest.raises(WeightsNotFound, match='no weights at .*dresscode-16k-512') as e: load(dress, weights=home/NAME, variant='dresscode-16k-512')
    one_line(e)

PAGE, POINTER = b'<!DOCTYPE html><html><body>denied</body></html>', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n'

@pytest.mark.parametrize('content, says', [(PAGE, 'web page'), (POINTER, 'git lfs pull'), (b'', 'empty'), (b'x'*99, 'damaged')])
def test_a_file_that_is_none(home, dress, content, says):
    publish(home, dress).write_bytes(content)
    with pytest.raises(ValueError, match=says) as e: load(dress)
    one_line(e)

@pytest.mark.parametrize('spoil', [lose, add, bend, rename, swap])
def test_a_file_of_another_network(home, dress, spoil):
    file, state = publish(home, dress), file_of(dress.unet)
    spoil(state); save_file({k: v.clone() for k,v in state.items()}, file)
    with pytest.raises(ValueError, match='is of another network') as e: load(dress)
    one_line(e)

@pytest.mark.parametrize('part', [f'{BASE}/unet', VAE])
@pytest.mark.parametrize('how', ['page','pointer','missing','surplus','shape','gone','config'])
def test_a_base_that_is_not_whole(home, dress, part, how):
    "diffusers would go on with what a file does not have"
    from safetensors.torch import load_file
    publish(home, dress)
    file = home/part/'diffusion_pytorch_model.safetensors'
    state = load_file(file)
    key = next(iter(state))
    if how=='missing': del state[key]
    if how=='surplus': state['not.here'] = torch.zeros(1)
    if how=='shape': state[key] = torch.zeros(3)
    if how in ('missing','surplus','shape'): save_file(state, file, metadata=dict(format='pt'))
    if how in ('page','pointer'): file.write_bytes(PAGE if how=='page' else POINTER)
    if how in ('gone','config'): (home/part/'config.json' if how=='config' else file).unlink()
    with pytest.raises(ValueError, match='AutoencoderKL' if part==VAE else 'UNet2DConditionModel') as e: load(dress)
    text = one_line(e)
    if how=='missing': assert f'1 weights are missing, 0 unknown and 0 of another shape, such as {key}' in text
    if how=='surplus': assert '0 weights are missing, 1 unknown and 0 of another shape, such as not.here' in text

def test_a_base_without_its_scheduler(home, dress):
    publish(home, dress)
    (home/BASE/'scheduler'/'scheduler_config.json').unlink()
    with pytest.raises(ValueError, match='holds no DDIMScheduler in scheduler') as e: load(dress)
    one_line(e)

def test_a_base_with_other_channels(home, dress):
    publish(home, dress)
    free = tiny(mask_free=True)
    free.unet.save_pretrained(home/BASE/'unet')
    with pytest.raises(ValueError, match='with a mask the UNet takes 9 channels, and this one 8'): load(dress)

def test_what_is_loaded_can_run_in_half_precision(home, dress, world):
    publish(home, dress)
    half = load(dress, dtype=torch.bfloat16)
    assert half.unet.dtype==half.vae.dtype==torch.bfloat16 and half.settings['dtype']=='bfloat16'
    assert wear(half, world, [0], [0])[0].size==world[1][0].size

def test_the_packages_are_asked_for_first(home, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'diffusers', None)
    for make in tiny_catvton, lambda: CatVTON.from_pretrained(None, None):
        with pytest.raises(ImportError, match=r'pip install "ccreid\[generate\]"'): make()
