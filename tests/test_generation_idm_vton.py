"IDM-VTON on stock classes: attention against loops, files in the published key names, what each input does, and one line for whatever is wrong"
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
import ccreid.compat
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from ccreid.generation.body_maps import BodyMapFolder, TorchScriptDensePose, paint_parts, parts_in
from ccreid.generation.edits import SkipImage
from ccreid.generation.garment_features import SDXL, GarmentFeatures, ReadFeatures, WriteFeatures, self_attentions
from ccreid.generation.idm_networks import IDMNetworks, holds_idm_vton, tiny_idm_networks
from ccreid.generation.idm_unets import load_garment_net, load_tryon_net
from ccreid.generation.image_prompts import image_prompt_shapes
from ccreid.generation.idm_vton import NEGATIVE, IDMVTON, tiny_idm_vton

def noisy(size=(48,32), seed=0):
    "A picture (width, height)"
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1],3)).astype(np.uint8))

def parser(images, rows=None):
    "Everybody wears a shirt in the middle"
    res = []
    for im in images:
        m = np.zeros(im.size[::-1], np.uint8)
        m[im.height//4:im.height*3//4, im.width//4:im.width*3//4] = 5
        res.append(m)
    return res

def nobody(images, rows=None): return [None]*len(images)
def bodies(images, rows=None): return [Image.new('RGB', im.size, (84,1,68)) for im in images]

def adapter(networks, body_map=bodies, **kw):
    return IDMVTON(networks, parser, nobody, body_map, **{'size':(64,48), 'steps':2, 'batch':2, **kw})

@pytest.fixture(scope='module')
def tiny(): return tiny_idm_networks()

def numbers(im): return np.asarray(im).astype(float)


# --- features

def by_loops(attn, person, garment):
    "The released way: one list of tokens, all attend to all, the first stay; by loops over heads and queries"
    with torch.no_grad():
        both = torch.cat([person, garment], 1)
        q,k,v = attn.to_q(both),attn.to_k(both),attn.to_v(both)
        B,N,D = person.shape
        d,res = D//attn.heads,torch.zeros(B,both.shape[1],D)
        for b in range(B):
            for h in range(attn.heads):
                own = slice(h*d, (h+1)*d)
                for i in range(both.shape[1]):
                    scores = torch.stack([q[b,i,own]@k[b,j,own] for j in range(both.shape[1])])/d**.5
                    weights = scores.exp()/scores.exp().sum()
                    res[b,i,own] = sum(w*v[b,j,own] for j,w in enumerate(weights))
        return attn.to_out[0](res)[:,:N]

@pytest.mark.parametrize('M', [1,3,7])
def test_reading_is_concatenating_attending_and_cutting(M):
    torch.manual_seed(M)
    attn,states = Attention(query_dim=12, heads=3, dim_head=4),{}
    person,garment = torch.randn(2,5,12),torch.randn(2,M,12)
    with torch.no_grad():
        written = WriteFeatures(states, 'a')(attn, garment)
        read = ReadFeatures(states, 'a')(attn, person)
        assert torch.equal(written, AttnProcessor2_0()(attn, garment)) and torch.equal(states['a'], garment)
        assert torch.equal(ReadFeatures(states, 'b')(attn, person), AttnProcessor2_0()(attn, person)) # nothing under that name
    assert torch.allclose(read, by_loops(attn, person, garment), atol=1e-5) and read.shape==person.shape

def test_zeros_take_their_share_of_the_softmax():
    "With N equal scores of 0 and M zero tokens, N/(N+M) of the person's value is left"
    attn = Attention(query_dim=4, heads=1, dim_head=4)
    with torch.no_grad():
        for p in attn.parameters(): p.zero_()
        attn.to_v.weight.copy_(torch.eye(4)); attn.to_out[0].weight.copy_(torch.eye(4))
        person = torch.ones(1,3,4)
        for M in (1,3,9):
            got = ReadFeatures({'a': torch.zeros(1,M,4)}, 'a')(attn, person)
            assert torch.allclose(got, torch.full_like(person, 3/(3+M)), atol=1e-6)

def test_seventy_blocks_of_sdxl_in_the_order_in_which_they_run():
    with torch.device('meta'):
        writer,reader = (UNet2DConditionModel(**{**SDXL, **kw}).eval() for kw in (dict(addition_embed_type=None), dict(in_channels=13)))
    features = GarmentFeatures(writer, reader)
    names = self_attentions(writer)
    assert len(names)==70 and [sum(n.startswith(p) for n in names) for p in ('down_blocks.1','down_blocks.2','mid_block','up_blocks.0','up_blocks.1')]==[4,20,10,30,6]
    assert {type(p) for n,p in reader.attn_processors.items() if n in names}=={ReadFeatures} and {type(p) for n,p in reader.attn_processors.items() if n not in names}=={AttnProcessor2_0}
    ran = []
    for net in (writer, reader):
        for n,m in net.named_modules():
            if n.endswith('.attn1'): m.register_forward_hook(lambda m, i, o, n=n, net=net: ran.append((net is writer, f'{n}.processor')))
    x,t,text = torch.zeros(1,4,64,48, device='meta'),torch.zeros(1, device='meta'),torch.zeros(1,77,2048, device='meta')
    with torch.no_grad():
        writer(x, t, text)
        assert list(features.states)==names
        reader(torch.zeros(1,13,64,48, device='meta'), t, text, added_cond_kwargs=dict(text_embeds=torch.zeros(1,1280, device='meta'), time_ids=torch.zeros(1,6, device='meta')))
    assert [n for w,n in ran if w]==names and [n for w,n in ran if not w]==names
    assert sum(p.numel() for p in reader.parameters())/1e6==pytest.approx(2567.5, abs=.05)
    prompt = image_prompt_shapes(reader)
    assert sum(v.numel() for k,v in prompt.items() if '_ip.' in k)/1e6==pytest.approx(340.8, abs=.05) and sum('_ip.' in k for k in prompt)==140

def test_what_is_written_is_the_normed_state(tiny):
    "norm1's output, block by block"
    normed = {}
    hooks = [m.register_forward_hook(lambda m, i, o, n=n: normed.__setitem__(n.replace('norm1', 'attn1.processor'), o)) for n,m in tiny.garment_net.named_modules()
             if n.endswith('.norm1') and 'transformer_blocks' in n]
    with torch.no_grad(): tiny.garment_net(torch.randn(2,4,16,12), torch.tensor(500), torch.randn(2,7,64))
    for h in hooks: h.remove()
    states = dict(tiny.features.states); tiny.features.clear()
    assert set(states)==set(normed) and all(torch.equal(v, normed[k]) for k,v in states.items())


# --- files in the published form

LAYER = ('0.norm1.weight 0.norm1.bias 0.norm2.weight 0.norm2.bias 0.to_q.weight 0.to_kv.weight 0.to_out.weight '
         '1.0.weight 1.0.bias 1.1.weight 1.3.weight').split()
QUERIES = 'latents proj_in.weight proj_in.bias proj_out.weight proj_out.bias norm_out.weight norm_out.bias'.split()

def published(unet):
    "The table that the published file would have: diffusers' names taken back by hand"
    state,res = unet.state_dict(),{}
    proj = 'encoder_hid_proj.image_projection_layers.0.'
    for k,v in state.items():
        if not k.startswith('encoder_hid_proj.'): res[k.replace('_ip.0.weight', '_ip.weight')] = v
    for k in QUERIES: res[f'encoder_hid_proj.{k}'] = state[proj+k]
    theirs = {'0.norm1':'ln0', '0.norm2':'ln1', '0.to_q':'attn.to_q', '0.to_out':'attn.to_out.0', '1.0':'ff.0', '1.1':'ff.1.net.0.proj', '1.3':'ff.1.net.2'}
    for i in range(4):
        here = f'{proj}layers.{i}.'
        for k in LAYER:
            part,_,kind = k.rpartition('.')
            value = torch.cat([state[f'{here}attn.to_k.weight'], state[f'{here}attn.to_v.weight']]) if part=='0.to_kv' else state[f'{here}{theirs[part]}.{kind}']
            res[f'encoder_hid_proj.layers.{i}.{k}'] = value
    return {k: v.detach().clone().contiguous() for k,v in res.items()}

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "The published layout, tiny: the TryonNet as .bin, its image prompt among its weights; surplus weights in the GarmentNet's file"
    root,n = tmp_path_factory.mktemp('idm')/'IDM-VTON',tiny_idm_networks()
    for part in ('vae','text_encoder','text_encoder_2','image_encoder','tokenizer','tokenizer_2','scheduler'): getattr(n.pipe, part).save_pretrained(root/part)
    for part,net,kw in (('unet', n.unet, dict(encoder_hid_dim=48, encoder_hid_dim_type='ip_image_proj')), ('unet_encoder', n.garment_net, {})):
        (root/part).mkdir()
        (root/part/'config.json').write_text(json.dumps({**json.loads(net.to_json_string()), **kw}))
    torch.save(published(n.unet), root/'unet'/'diffusion_pytorch_model.bin')
    garment = {**n.garment_net.state_dict(), **{f'add_embedding.linear_{i}.{p}': torch.ones(3) for i in (1,2) for p in ('weight','bias')}}
    save_file({k: v.contiguous() for k,v in garment.items()}, root/'unet_encoder'/'diffusion_pytorch_model.safetensors')
    return root

@pytest.fixture(scope='module')
def loaded(folder): return IDMNetworks.from_pretrained(folder, device='cpu')

def test_a_folder_of_the_published_form_is_the_same_networks(folder, loaded, tiny, capsys):
    assert holds_idm_vton(folder)==''
    assert loaded.name=='IDM-VTON' and not any(p.requires_grad for p in loaded.unet.parameters())
    for part in ('unet','vae','image_encoder'):
        a,b = getattr(loaded, part).state_dict(),getattr(tiny, part).state_dict()
        assert set(a)==set(b) and all(torch.equal(v, b[k]) for k,v in a.items()), part
    assert all(torch.equal(v, tiny.garment_net.state_dict()[k]) for k,v in loaded.garment_net.state_dict().items())
    make = lambda n: adapter(n)([noisy()], [noisy(seed=1)], ['a coat'], [5])[0]
    assert make(loaded).tobytes()==make(tiny).tobytes()
    load_garment_net(folder/'unet_encoder')
    assert '4 weights add_embedding.* are not used' in capsys.readouterr().out

def test_the_file_holds_what_the_image_prompt_takes_and_nothing_else(folder):
    state = torch.load(folder/'unet'/'diffusion_pytorch_model.bin', weights_only=True)
    own = UNet2DConditionModel.from_config({**json.loads((folder/'unet'/'config.json').read_text()), 'encoder_hid_dim':None, 'encoder_hid_dim_type':None}).state_dict()
    more = set(state)-set(own)
    assert not set(own)-set(state) and all(k.startswith('encoder_hid_proj.') or k.endswith(('attn2.processor.to_k_ip.weight','attn2.processor.to_v_ip.weight')) for k in more)
    with pytest.raises(ValueError, match='ip_image_proj'): UNet2DConditionModel.from_pretrained(folder/'unet', use_safetensors=False) # diffusers cannot make it

def test_through_the_name_of_the_whole(folder):
    net = IDMVTON.from_pretrained(parser, nobody, bodies, folder, device='cpu', size=(64,48), steps=1)
    assert net.settings['model']=='IDM-VTON' and net([noisy()], [noisy(seed=1)], ['a coat'], [0])[0].size==(48,32)
    half = IDMNetworks.from_pretrained(folder, device='cpu', dtype=torch.bfloat16)
    assert {p.dtype for p in half.unet.parameters()}=={torch.bfloat16} and half.vae.dtype==torch.float32 and half.image_encoder.dtype==torch.bfloat16
    made = adapter(half, steps=1, size=(32,24), batch=1)([noisy()], [noisy(seed=1)], ['a coat'], [0])[0]
    assert isinstance(made, Image.Image)

def one_line(call, *words):
    with pytest.raises(ValueError) as e: call()
    text = str(e.value)
    assert '\n' not in text and len(text)<420 and all(w in text for w in words), text

DAMAGE = {
    'missing': (lambda s: s.pop('conv_in.weight'), '1 weights are missing'),
    'missing of the prompt': (lambda s: s.pop('encoder_hid_proj.layers.3.1.3.weight'), '1 weights are missing'),
    'missing block of the prompt': (lambda s: s.pop('mid_block.attentions.0.transformer_blocks.1.attn2.processor.to_v_ip.weight'), '1 weights are missing'),
    'no prompt': (lambda s: [s.pop(k) for k in list(s) if 'encoder_hid' in k], 'no image prompt'),
    'surplus': (lambda s: s.update({'encoder_hid_proj.layers.4.1.3.weight': torch.zeros(1)}), '1 unknown'),
    'surplus add': (lambda s: s.update({'add_embedding.linear_3.weight': torch.zeros(1)}), '1 unknown'),
    'shape': (lambda s: s.update({'conv_in.weight': torch.zeros(32,9,3,3)}), '1 of another shape'),
    'shape of the prompt': (lambda s: s.update({'encoder_hid_proj.proj_in.weight': torch.zeros(128,47)}), 'of another shape')}

@pytest.mark.parametrize('kind', DAMAGE)
def test_wrong_keys_of_the_tryon_net(folder, tmp_path, kind):
    damage,words = DAMAGE[kind]
    state = torch.load(folder/'unet'/'diffusion_pytorch_model.bin', weights_only=True)
    damage(state)
    (tmp_path/'config.json').write_text((folder/'unet'/'config.json').read_text())
    torch.save(state, tmp_path/'diffusion_pytorch_model.bin')
    one_line(lambda: load_tryon_net(tmp_path), words, 'diffusion_pytorch_model.bin')

def test_wrong_keys_of_the_garment_net(folder, tmp_path):
    state = load_file(folder/'unet_encoder'/'diffusion_pytorch_model.safetensors')
    (tmp_path/'config.json').write_text((folder/'unet_encoder'/'config.json').read_text())
    for change,words in (({'add_embeddings.x': torch.zeros(1)}, '1 unknown'), ({'conv_in.weight': torch.zeros(1)}, '1 of another shape')):
        save_file({**state, **change}, tmp_path/'diffusion_pytorch_model.safetensors')
        one_line(lambda: load_garment_net(tmp_path), words)
    state.pop('conv_out.bias'); save_file(state, tmp_path/'diffusion_pytorch_model.safetensors')
    one_line(lambda: load_garment_net(tmp_path), '1 weights are missing', 'conv_out.bias')

PAGE,POINTER = b'<!DOCTYPE html><html>404</html>',b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n'
FILES = ['unet/diffusion_pytorch_model.bin','unet_encoder/diffusion_pytorch_model.safetensors','vae/diffusion_pytorch_model.safetensors','text_encoder/model.safetensors',
         'image_encoder/model.safetensors']

@pytest.fixture
def copy(folder, tmp_path):
    import shutil
    shutil.copytree(folder, tmp_path/'copy')
    return tmp_path/'copy'

@pytest.mark.parametrize('file', FILES)
@pytest.mark.parametrize('content, words', [(PAGE,'web page'), (POINTER,'pointer of Git LFS'), (b'', 'is empty'), (None, '')])
def test_pages_pointers_and_holes(copy, file, content, words):
    if content is None: (copy/file).unlink()
    else: (copy/file).write_bytes(content)
    one_line(lambda: IDMNetworks.from_pretrained(copy, device='cpu'), words, str(copy/Path(file).parent if content is None else copy/file))

@pytest.mark.parametrize('part', ['vae','text_encoder_2','image_encoder'])
def test_the_other_networks_are_counted_too(copy, part):
    file = copy/part/('diffusion_pytorch_model.safetensors' if part=='vae' else 'model.safetensors')
    state = load_file(file)
    gone = next(k for k in state if k.endswith('weight'))
    for change,words in (({k: v for k,v in state.items() if k!=gone}, '1 weights are missing'), ({**state, 'more.weight': torch.zeros(2)}, '1 unknown')):
        save_file(change, file, {'format':'pt'})
        one_line(lambda: IDMNetworks.from_pretrained(copy, device='cpu'), words, str(file))

def test_configurations_that_will_not_do(copy):
    text = (copy/'unet'/'config.json').read_text()
    for content,words in ((text.replace('"in_channels": 13', '"in_channels": 9'), '9 channels, not 13'), ('{', 'config.json'), ('[]', 'config.json'), ('{}', 'None channels')):
        (copy/'unet'/'config.json').write_text(content)
        one_line(lambda: IDMNetworks.from_pretrained(copy, device='cpu'), words)
    (copy/'unet'/'config.json').unlink()
    one_line(lambda: IDMNetworks.from_pretrained(copy, device='cpu'), 'config.json')
    import shutil
    shutil.rmtree(copy/'image_encoder')
    one_line(lambda: IDMNetworks.from_pretrained(copy, device='cpu'), 'no folder image_encoder')

def test_only_what_is_opened_is_fetched(folder, monkeypatch):
    "Of each UNet the safetensors, and the .bin only where there are none"
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects
    asked,there = [],[f'{p}/{n}' for p in ('unet','unet_encoder') for n in ('config.json','diffusion_pytorch_model.bin','diffusion_pytorch_model.safetensors')]
    there += ['image_encoder/model.safetensors','image_encoder/pytorch_model.bin','tokenizer/vocab.json','tokenizer/merges.txt','densepose/model_final.pkl','unet/README.md']
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda repo, allow_patterns=None, **k: asked.append(allow_patterns) or str(folder))
    monkeypatch.setattr('ccreid.weights._reachable', lambda timeout: None)
    IDMNetworks.from_pretrained('yisol/IDM-VTON', device='cpu')
    got = [set(filter_repo_objects(there, allow_patterns=o)) for o in asked]
    assert got[0]=={o for o in there if not o.endswith(('.bin','.pkl','.md'))} and got[1:]==[{'unet/diffusion_pytorch_model.bin'}]

def test_nothing_is_unpickled(copy):
    class Evil:
        def __reduce__(self): return (Path.touch, (copy/'ran',))
    torch.save(dict(a=Evil()), copy/'unet'/'diffusion_pytorch_model.bin')
    one_line(lambda: IDMNetworks.from_pretrained(copy, device='cpu'), 'not opened')
    assert not (copy/'ran').exists()


# --- the loop

def by_hand(net, image, mask, body, garment, text, seed):
    "The released loop once more, for one picture of the network's size: 13 channels, two answers, features of the garment or zeros"
    n,g = net.networks,torch.Generator().manual_seed(seed)
    H,W = net.size
    to = lambda im: torch.tensor(np.array(im)).permute(2,0,1)[None].float()/127.5-1
    scale = n.vae.config.scaling_factor
    def latents(x):
        d = n.vae.encode(x).latent_dist
        return (d.mean+d.std*torch.randn(d.mean.shape, generator=g))*scale
    m = torch.tensor(mask)[None,None].float()
    holes = to(image).clone(); holes[:,:,m[0,0]==1] = 0
    person,pose = latents(holes),latents(to(body))
    cloth = latents(to(garment))
    x = torch.randn(person.shape[1:], generator=g)[None]
    with_,without,sum_,sum_0 = n.pipe.encode_prompt(f'model is wearing {text}', negative_prompt=NEGATIVE)
    cloth_text = n.pipe.encode_prompt(f'a photo of {text}', do_classifier_free_guidance=False)[0]
    pixels = n.pipe.feature_extractor([garment], return_tensors='pt')['pixel_values']
    seen,nothing = (n.image_encoder(p, output_hidden_states=True).hidden_states[-2] for p in (pixels, torch.zeros_like(pixels)))
    ids = torch.tensor([[H,W,0,0,H,W]]).float()
    known = [m[:,:,::n.factor,::n.factor], person, pose]
    n.scheduler.set_timesteps(net.steps)
    for t in n.scheduler.timesteps:
        def answer(words, pooled, prompt, features):
            n.features.states.clear(); n.features.states.update(features)
            return n.unet(torch.cat([x, *known], 1), t, words, added_cond_kwargs=dict(text_embeds=pooled, time_ids=ids, image_embeds=[prompt[:,None]])).sample
        n.features.clear()
        n.garment_net(cloth, t, cloth_text)
        written = dict(n.features.states)
        given = answer(with_, sum_, seen, written)
        bare = answer(without, sum_0, nothing, {k: torch.zeros_like(v) for k,v in written.items()})
        noise = bare+net.guidance*(given-bare)
        x = n.scheduler.step(noise, t, x, generator=g).prev_sample
    n.features.clear()
    return n.vae.decode(x/scale).sample[0].permute(1,2,0)/2+.5

def test_the_loop_is_the_released_one(tiny):
    net = adapter(tiny, steps=3, edge=None, batch=1)
    image,garment = noisy((48,64)),noisy((48,64), 1)
    got = net([image], [garment], ['a coat'], [7])[0]
    seen = parser([image.resize((24,32))])
    mask = net._seen([image], None)[0]
    with torch.no_grad(): expected = by_hand(net, image, mask, bodies([image])[0], garment, 'a coat', 7)
    assert mask.any() and seen and np.abs(numbers(got)/255-expected.clamp(0, 1).numpy()).max()<1.5/255
    assert expected.std()>.02

def made(tiny, garment=1, text='a coat', seed=3, **kw):
    return numbers(adapter(tiny, edge=None, batch=1, **kw)([noisy()], [noisy(seed=garment)], [text], [seed])[0])

def test_every_input_matters(tiny, monkeypatch):
    first = made(tiny)
    assert np.array_equal(first, made(tiny))
    differs = lambda x: assert_(np.abs(x-first).max()>0)
    def assert_(o): assert o
    differs(made(tiny, garment=2)); differs(made(tiny, text='a red shirt')); differs(made(tiny, seed=4)); differs(made(tiny, guidance=1.)); differs(made(tiny, strength=.5))
    differs(made(tiny, body_map=lambda images, rows=None: [noisy(seed=9)]*len(images)))
    with monkeypatch.context() as m:                                                # the image prompt alone
        real = IDMVTON._image_prompt
        m.setattr(IDMVTON, '_image_prompt', lambda self, garments: real(self, [noisy(seed=2).resize((48,64))]))
        differs(made(tiny))
    with monkeypatch.context() as m:                                                # the features alone
        m.setattr(GarmentFeatures, 'guide', lambda self: self.states.update({k: torch.cat([torch.zeros_like(v), v.roll(1, 1)*2]) for k,v in self.states.items()}))
        differs(made(tiny))

def test_zero_features_are_not_no_features(tiny):
    torch.manual_seed(0)
    told = dict(encoder_hidden_states=torch.randn(1,7,64), added_cond_kwargs=dict(text_embeds=torch.randn(1,32), time_ids=torch.tensor([[64.,48,0,0,64,48]]), image_embeds=[torch.randn(1,1,17,48)]))
    x,t = torch.randn(1,13,16,12),torch.tensor(500)
    with torch.no_grad():
        none = tiny.unet(x, t, **told).sample
        tiny.garment_net(torch.randn(1,4,16,12), t, torch.randn(1,7,64))
        given = tiny.unet(x, t, **told).sample
        for k,v in tiny.features.states.items(): tiny.features.states[k] = torch.zeros_like(v)
        zeros = tiny.unet(x, t, **told).sample
        tiny.features.guide(); assert all(len(v)==2 for v in tiny.features.states.values())
        tiny.features.clear()
        assert torch.equal(tiny.unet(x, t, **told).sample, none)
    assert min((a-b).abs().max() for a,b in ((none, zeros), (none, given), (zeros, given)))>1e-4

def test_a_picture_alone_or_in_company(tiny):
    net,images,garments = adapter(tiny),[noisy(seed=i) for i in range(3)],[noisy(seed=9-i) for i in range(3)]
    texts = ['a coat','a red shirt','a dress']
    got = net(images, garments, texts, [5,6,7])
    for order in ([1],[2,0,1]):
        again = net([images[i] for i in order], [garments[i] for i in order], [texts[i] for i in order], [[5,6,7][i] for i in order])
        assert [im.tobytes() for im in again]==[got[i].tobytes() for i in order]
    other = adapter(tiny, batch=3)(images, garments, texts, [5,6,7])
    assert max(np.abs(numbers(a)-numbers(b)).max() for a,b in zip(other, got))<=1      # another size of batch: rounding only

def test_seeds_texts_and_sizes(tiny):
    image,garment = noisy((30,50)),noisy(seed=1)
    fixed = adapter(tiny, seed='released', text='casual garment', keep_size=False)
    a,b = (fixed([image], [garment], [t], [s])[0] for t,s in (('x',6),('y',7)))
    assert a.size==(48,64) and a.tobytes()==b.tobytes()==adapter(tiny, seed=42, text='casual garment', keep_size=False)([image], [garment], ['z'], [0])[0].tobytes()
    asked,real = [],tiny.pipe.encode_prompt
    try:
        tiny.pipe.encode_prompt = lambda *a, **kw: asked.append((a, kw)) or real(*a, **kw)
        fixed([image], [garment], ['x'], [0]); adapter(tiny)([image], [garment], ['a coat'], [0])
    finally: del tiny.pipe.encode_prompt
    assert [a[0][0] for a,_ in asked]==['model is wearing casual garment','a photo of casual garment','model is wearing a coat','a photo of a coat']
    assert asked[0][1]['negative_prompt'][0]==NEGATIVE=='monochrome, lowres, bad anatomy, worst quality, low quality'
    assert adapter(tiny)([image], [garment], ['x'], [0])[0].size==(30,50)
    s = IDMVTON(tiny, None, None, None).settings
    assert (s['size'], s['steps'], s['guidance'], s['strength'], s['seed'], s['text'], s['fit'])==([1024,768], 30, 2., 1., 'image', None, 'stretch')
    assert json.dumps(s) and fixed.settings!=adapter(tiny).settings
    for kw in (dict(seed='other'), dict(steps=0), dict(size=(65,48)), dict(strength=2), dict(strength=0), dict(guidance=-1), dict(seed=1.5)):
        with pytest.raises(ValueError): IDMVTON(tiny, None, None, None, **kw)

def test_outside_the_mask_nothing_changes(tiny):
    image = noisy((48,64))
    net = adapter(tiny, edge=0.)
    got,mask = net([image], [noisy(seed=1)], ['x'], [0])[0],net._seen([image], None)[0]
    assert np.array_equal(numbers(got)[~mask], numbers(image)[~mask]) and (numbers(got)[mask]!=numbers(image)[mask]).any()

def test_pictures_of_any_mode(tiny):
    image,garment = noisy().convert('L'),noisy(seed=1).convert('L')
    deep = lambda im: Image.fromarray(np.asarray(im).astype(np.uint16)*257)
    def out(person, cloth): return adapter(tiny, steps=1)([person], [cloth], ['x'], [0])[0].tobytes()
    assert out(image, garment)==out(deep(image), deep(garment))==out(image.convert('RGB'), garment.convert('RGB'))
    assert out(image.convert('CMYK'), garment.convert('CMYK'))

def test_who_is_skipped(tiny):
    images,garments = [noisy(seed=i) for i in range(4)],[noisy(seed=9)]*4
    def labels(ims, rows=None): return [np.zeros((64,32), np.uint8), np.full((64,32), 9, np.uint8), *parser(ims[2:])]
    def keypoints(ims, rows=None): return [None, None, np.zeros((2,33,4)), None]
    asked = []
    def some(ims, rows=None): asked.append((len(ims), rows)); return [SkipImage('no body map') if r['path']=='2' else im for im,r in zip(ims, rows)]
    rows = [dict(path=str(i)) for i in range(4)]
    net = IDMVTON(tiny, labels, keypoints, some, size=(64,48), steps=1, batch=2)
    got = net(images, garments, ['x']*4, [0]*4, rows=rows)
    assert [str(o) for o in got[:3]]==['no upper clothes','no upper clothes','two people'] and isinstance(got[3], Image.Image)
    assert [n for n,_ in asked]==[2] and all(r['path']=='3' for r in asked[0][1])                  # nobody else was asked for
    net = adapter(tiny, some, batch=2)
    got = net(images[:3], garments[:3], ['x']*3, [4,5,6], rows=rows[:3])
    assert str(got[2])=='no body map' and all(isinstance(o, Image.Image) for o in got[:2])
    got = net(images[2:], garments[2:], ['x']*2, [6,7], rows=rows[2:])                            # one of a batch has none
    assert str(got[0])=='no body map' and got[1].tobytes()==net(images[3:], garments[3:], ['x'], [7], rows=rows[3:])[0].tobytes()
    with pytest.raises(ValueError, match='4 images, 1 garments'): net(images, garments[:1], ['x']*4, [0]*4)

def test_tiny_ones_are_the_same_for_a_seed():
    a,b,c = (tiny_idm_vton(s, parser, nobody, steps=1)([noisy()], [noisy(seed=1)], ['x'], [0])[0].tobytes() for s in (0,0,1))
    assert a==b!=c


# --- body maps

def test_body_maps_by_path(tmp_path):
    maps = tmp_path/'maps'
    for name,colour in (('rgb/train/1/a.png','red'), ('2/a.jpg','blue'), ('b.png','green')):
        (maps/name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4,6), colour).save(maps/name)
    found = BodyMapFolder(maps)
    rows = [dict(path=p) for p in ('/d/prcc/rgb/train/1/a.jpg','/d/prcc/rgb/train/2/a.jpg','/d/prcc/rgb/train/3/b.jpg','/d/prcc/rgb/train/3/c.jpg')]
    got = found([Image.new('RGB', (8,12))]*4, rows=rows)
    assert [o.getpixel((0,0)) for o in got[:1]+got[2:3]]==[(255,0,0),(0,128,0)] and got[1].getpixel((0,0))[2]>240
    assert isinstance(got[3], SkipImage) and str(got[3])=='no body map'
    assert found([None], rows=rows[:1])[0].getpixel((0,0))==(255,0,0)               # again: the same image has it
    with pytest.raises(ValueError, match='of two images'): found([None], rows=[dict(path='/d/prcc/rgb/train/4/b.jpg')])
    (maps/'e.png').write_bytes(PAGE)
    got = found([None], rows=[dict(path='/x/e.jpg')])
    assert str(got[0]).startswith('its body map e.png cannot be read: ') and 'web page' in str(got[0]) and '\n' not in str(got[0])
    for rows in (None, []):
        with pytest.raises(ValueError, match='pass rows='): found([None], rows=rows)
    with pytest.raises(ValueError, match='no folder'): BodyMapFolder(tmp_path/'none')

def test_parts_against_a_loop():
    "Nearest-neighbour scores: every pixel of a box asks the cell it lies in, where the box is a multiple of the scores' size"
    rng = np.random.default_rng(0)
    coarse,fine = torch.zeros(1,2,2,2),torch.zeros(1,25,2,2)
    person,part = rng.integers(0, 2, (2,2)),rng.integers(1, 25, (2,2))
    for i in range(2):
        for j in range(2): coarse[0,person[i,j],i,j] = 1.; fine[0,part[i,j],i,j] = 1.
    got = parts_in((10,10), torch.tensor([[2.,3.,4.,5.]]), coarse, fine)            # a box of 2×2: the scores themselves
    expected = np.zeros((10,10), int)
    for i in range(2):
        for j in range(2):
            if person[i,j]: expected[3+i,2+j] = part[i,j]
    assert np.array_equal(got, expected) and person.any()
    two = parts_in((4,8), torch.tensor([[0.,0.,4.,4.],[2.,0.,8.,4.]]), torch.tensor([0.,1.]).reshape(1,2,1,1).repeat(2,1,1,1),
                   torch.nn.functional.one_hot(torch.tensor([5,9]), 25).float()[:,:,None,None])
    assert np.array_equal(two, [[5,5,9,9,9,9,9,9]]*4)
    assert not parts_in((4,4), torch.tensor([[9.,9.,12.,12.]]), coarse, fine).any()  # outside

def test_colours_of_parts():
    cv2 = pytest.importorskip('cv2')
    got = np.asarray(paint_parts(np.arange(25)[None]))[0]
    assert tuple(got[0])==(0,0,0)
    for i in range(1,25): assert tuple(got[i])==tuple(cv2.applyColorMap(np.uint8([[int(255*i/24+1e-6)]]), cv2.COLORMAP_PARULA)[0,0,::-1])

class OnePerson(torch.nn.Module):
    def forward(self, x):
        n = 0 if bool((x.sum()==0).item()) else 1
        box = torch.tensor([[0.,0.,float(x.shape[2]),float(x.shape[1])]])[:n]
        coarse = torch.tensor([0.,1.]).reshape(1,2,1,1)[:n]
        fine = torch.zeros(1,25,1,1)[:n]
        if n>0: fine[0,int(x[0,0,0].item())] = 1.
        return box,coarse,fine,fine,fine

class WithNms(torch.nn.Module):
    def forward(self, x):
        boxes = torch.zeros(1,4)
        return boxes[torch.ops.torchvision.nms(boxes, boxes[:,0], .5)]

def test_a_torchscript_densepose(tmp_path, capsys, monkeypatch):
    torch.jit.script(OnePerson()).save(str(tmp_path/'net.torchscript'))
    net = TorchScriptDensePose.from_pretrained(tmp_path/'net.torchscript', device='cpu')
    got = net([Image.new('RGB', (6,4), (7,0,0)), Image.new('RGB', (6,4)), Image.new('L', (3,3), 11)])
    assert got[0].tobytes()==paint_parts(np.full((4,6), 7)).tobytes() and got[2].tobytes()==paint_parts(np.full((3,3), 11)).tobytes()
    assert str(got[1])=='no body found' and net.settings=={'body_map':'net'}
    (tmp_path/'hub').mkdir(); (tmp_path/'net.torchscript').rename(tmp_path/'hub'/'densepose_r50_fpn_dl.torchscript')
    assert TorchScriptDensePose.from_pretrained(tmp_path/'hub', device='cpu').settings['body_map']=='densepose_r50_fpn_dl'
    assert not capsys.readouterr().out
    monkeypatch.setenv('CCREID_WEIGHTS', str(tmp_path))
    TorchScriptDensePose.from_pretrained('hub', device='cpu')                           # by name
    assert capsys.readouterr().out=='hub: a TorchScript file is a program, which will run here. Take it only from somebody you trust\n'

@pytest.mark.parametrize('content, words', [(PAGE,'web page'), (POINTER,'Git LFS'), (b'','is empty'), (b'PK\x03\x04rubbish','is damaged')])
def test_files_that_are_no_torchscript(tmp_path, content, words):
    (tmp_path/'x.torchscript').write_bytes(content)
    one_line(lambda: TorchScriptDensePose.from_pretrained(tmp_path/'x.torchscript', device='cpu'), words)

def test_a_program_that_wants_nms_where_it_is_only_declared(tmp_path, monkeypatch):
    import torchvision
    torch.jit.script(WithNms()).save(str(tmp_path/'x.torchscript'))
    def broken(*args): raise RuntimeError("Couldn't load custom C++ ops.\nMore words")
    with monkeypatch.context() as m:
        m.setattr(torchvision.ops, 'nms', broken)
        with pytest.raises(ImportError, match='compiled operator nms') as e: TorchScriptDensePose.from_pretrained(tmp_path/'x.torchscript', device='cpu')
    assert '\n' not in str(e.value) and torchvision.__version__ in str(e.value)
    monkeypatch.setattr(torchvision.ops, 'nms', lambda *args: torch.zeros(1, dtype=torch.int64))   # where it runs, the file is loaded
    assert TorchScriptDensePose.from_pretrained(tmp_path/'x.torchscript', device='cpu')
