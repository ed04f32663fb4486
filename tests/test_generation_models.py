"Parsers, inpainters and stand-ins: real code of transformers and diffusers on tiny random networks, and mannequins"
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from ccreid import settings as user_settings
from ccreid.data.mannequins import DECLARED, LIP, Imperfections, MannequinWorld, parse_caption, redress, truth
from ccreid.data.transforms import read_image
from ccreid.generation import parsing
from ccreid.generation.expansion import SkipImage, expand
from ccreid.generation.inpainting import SD2, SD15, ClothesInpainter, as_mask, composite, tiny_inpainter, tiny_pipeline
from ccreid.generation.label_sets import ATR, to_lip
from ccreid.generation.parsing import CLOTHES, SEGFORMER, SegformerParser, clothes_mask, full_batches, main_person, tiny_parser
from ccreid.generation.stand_ins import MannequinInpainter, MannequinKeypoints, MannequinParser, MannequinTryOff, MannequinTryOn, outfit_of
from ccreid.weights import WeightsNotFound

diffusers = pytest.importorskip('diffusers')
transformers = pytest.importorskip('transformers')
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()
MINE = str(user_settings.get('weights'))                      # the user's folder; a test does not see it otherwise


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    "Training rows of a written world, with their images"
    table = MannequinWorld((3,1,1), images=(1,1,1), seed=9).write(tmp_path_factory.mktemp('w')/'people', workers=1).train
    return table, table.to_dict('records'), [read_image(p) for p in table.path]

@pytest.fixture(scope='module')
def parser(): return tiny_parser(batch=3)

@pytest.fixture(scope='module')
def inpaint(): return tiny_inpainter(batch=3)

def arrays(images): return [np.asarray(im) for im in images]
def same(a, b): return len(a)==len(b) and all(np.array_equal(x, y) for x,y in zip(arrays(a), arrays(b)))


# --- sets of classes

def test_atr_goes_to_the_namesakes_of_lip():
    table = to_lip(ATR)
    assert table.dtype==np.uint8 and len(table)==18
    for name,i in zip(ATR, table): assert LIP[i]==dict(belt='pants', bag='background').get(name, name)

@given(st.permutations(range(20)), st.sampled_from([str.upper, str.title, lambda s: s.replace('-', '_'), lambda s: f' {s} '.replace('-', ' ')]))
def test_any_order_and_spelling_of_lip(order, spell):
    assert to_lip([spell(LIP[i]) for i in order]).tolist()==list(order)

@pytest.mark.parametrize('names', [['LABEL_0'], ['coat','toga'], ['']])
def test_unknown_classes_are_named(names):
    with pytest.raises(ValueError, match=repr(names[-1])): to_lip(names)

@given(st.integers(0, 10**6), st.sampled_from(list(CLOTHES)))
def test_clothes_mask_pixel_by_pixel(seed, rule):
    labels = np.random.default_rng(seed).integers(0, 20, (5,4))
    worn = {'glove','sunglasses','upper-clothes','dress','coat','socks','pants','jumpsuits','scarf','skirt','left-shoe','right-shoe'} - (set() if rule=='released' else {'glove','sunglasses','scarf'})
    mask = clothes_mask(labels, rule)
    assert mask.dtype==bool and mask.tolist()==[[LIP[c] in worn for c in row] for row in labels]

def test_clothes_mask_refuses_nonsense():
    with pytest.raises(ValueError, match='released or paper'): clothes_mask(np.zeros((2,2)), 'code')
    with pytest.raises(ValueError, match=r'\[2, 2, 3\]'): clothes_mask(np.zeros((2,2,3)))


# --- other people

def slow_main_person(labels):
    "The same, region by region, by flooding"
    left,regions = {tuple(p) for p in np.argwhere(labels>0)},[]
    while left:
        front,region = [left.pop()],[]
        while front:
            y,x = front.pop(); region.append((y,x))
            for n in [(y+i,x+j) for i in (-1,0,1) for j in (-1,0,1)]:
                if n in left: left.remove(n); front.append(n)
        regions.append(sorted(region))
    res = labels.copy()
    if regions:
        is_head = lambda p: labels[p] in (1,2,4,13)
        main = own = max(sorted(regions), key=len)
        away = lambda r: min(math.dist(p, q) for p in r for q in main)
        headed = [r for r in sorted(regions) if any(map(is_head, r))]
        if headed and main not in headed: own = min(headed, key=away)
        for r in headed:
            if r not in (main, own) and not all(map(is_head, r)):
                for p in r: res[p] = 0
    return res

@settings(max_examples=80)
@given(st.integers(0, 10**6), st.integers(1,9), st.integers(1,9), st.floats(.1,.6))
def test_main_person_against_flooding(seed, h, w, density):
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 20, (h,w))*(rng.random((h,w))<density)
    got = main_person(labels)
    assert got.dtype==np.uint8 and np.array_equal(got, slow_main_person(labels))

def test_of_two_people_the_larger_is_dressed(people, inpaint):
    _,rows,images = people
    big,small = truth(rows[0]['path']).parsing,truth(rows[3]['path']).parsing[::2,::2]
    labels = np.concatenate([np.pad(small, ((64,0),(0,0))), big], 1)
    image = Image.fromarray(np.concatenate([np.pad(np.asarray(images[3])[::2,::2], ((64,0),(0,0),(0,0))), np.asarray(images[0])], 1))
    mask = clothes_mask(main_person(labels))
    assert clothes_mask(labels)[:,:32].any() and not mask[:,:32].any() and np.array_equal(mask[:,32:], clothes_mask(big))
    new = inpaint([image], [mask], 'a red coat', [1])[0]
    assert np.array_equal(np.asarray(new)[~mask], np.asarray(image)[~mask]) and (np.asarray(new)[mask]!=np.asarray(image)[mask]).any()

def test_a_rail_parts_nobody(people):
    "Whichever part of a person is the largest, the others stay, and a person behind goes"
    other = truth(people[1][3]['path']).parsing[::4,::4]
    for r in people[1][:3]:
        for y in range(0, 125, 5):
            labels = truth(r['path']).parsing.copy(); labels[y:y+3] = 0
            assert np.array_equal(main_person(labels), labels)
            behind = np.pad(labels, ((0,0),(0,20))); behind[40:72,-16:] = other
            assert np.array_equal(main_person(behind), np.pad(labels, ((0,0),(0,20))))

def test_mannequins_are_one_person_each(people):
    for r in people[1]: assert np.array_equal(main_person(truth(r['path']).parsing), truth(r['path']).parsing)


# --- SegFormer

def test_parser_agrees_with_transformers_own_post_processing(parser, people):
    images = people[2][:4]+[people[2][0].resize((41,93))]
    x = parser.processor(images=images, return_tensors='pt')
    with torch.no_grad(): out = parser.model(**x)
    ref = parser.processor.post_process_semantic_segmentation(out, target_sizes=[im.size[::-1] for im in images])
    for got,want in zip(parser(images), ref):
        assert got.dtype==np.uint8 and (got==to_lip(ATR)[want.numpy()]).mean()>.999   # the reference has another batch size

def test_company_does_not_change_a_map(parser, people):
    images = people[2][:5]
    whole = parser(images)
    assert same(parser(images[::-1])[::-1], whole)
    for i in range(5): assert same(parser(images[i:i+1]), whole[i:i+1])
    assert parser([])==[] and len({m.tobytes() for m in whole})==5

def test_parser_with_the_classes_of_lip(people):
    parser = tiny_parser(names=LIP, seed=1)
    assert parser.lip.tolist()==list(range(20)) and parser(people[2][:1])[0].shape==(128,64)
    with pytest.raises(ValueError, match='LABEL_0.*labels=.atr. has as many'): tiny_parser(names=[f'LABEL_{i}' for i in range(18)])

@pytest.mark.parametrize('mode', ['L','CMYK','RGBA','P','1','I;16'])
def test_images_of_other_modes(parser, inpaint, people, mode):
    _,rows,images = people
    odd,mask = images[0].convert('L' if mode=='I;16' else mode),np.zeros((128,64), bool)
    rgb = odd.convert('RGB'); mask[30:60] = True
    if mode=='I;16': odd = Image.fromarray(np.asarray(odd).astype(np.uint16)*256+77)
    assert odd.mode==mode and same(parser([odd]), parser([rgb]))
    for paint in inpaint, lambda *a: MannequinInpainter()(*a, rows=rows[:1]):
        new = paint([odd], [mask], 'a red coat', [1])[0]
        assert new.mode=='RGB' and same([new], paint([rgb], [mask], 'a red coat', [1])) and np.array_equal(np.asarray(new)[~mask], np.asarray(rgb)[~mask])

def test_parser_by_path_and_by_name(parser, people, tmp_path, monkeypatch):
    folder = tmp_path/'weights'/'clothes'
    parser.model.save_pretrained(folder); parser.processor.save_pretrained(folder)
    monkeypatch.setenv('CCREID_WEIGHTS', str(tmp_path/'weights'))
    for name in folder,str(folder),'clothes':
        again = SegformerParser.from_pretrained(name, device='cpu', batch=3)
        assert same(again(people[2][:2]), parser(people[2][:2])) and again.settings==dict(parser='clothes', dtype='float32')

@pytest.mark.parametrize('cls', [SegformerParser, ClothesInpainter])
def test_missing_weights_are_one_line(cls, tmp_path, monkeypatch):
    monkeypatch.setenv('CCREID_WEIGHTS', str(tmp_path/'mine'))
    for name in [(), ('at-home',), (str(tmp_path/'nowhere'),)]:
        with pytest.raises(WeightsNotFound) as e: cls.from_pretrained(*name)
        assert '\n' not in str(e.value) and str(tmp_path) in str(e.value)

def test_a_pickle_is_not_opened(parser, tmp_path):
    folder = tmp_path/'pickled'
    parser.model.save_pretrained(folder); parser.processor.save_pretrained(folder)
    (folder/'model.safetensors').unlink()
    class Trap:
        def __reduce__(self): return Path.touch, (tmp_path/'sprung',)
    torch.save({'weight': Trap()}, folder/'pytorch_model.bin')
    for cls in SegformerParser,ClothesInpainter:
        with pytest.raises(ValueError, match='safetensors') as e: cls.from_pretrained(folder, device='cpu')
        assert '\n' not in str(e.value)
    assert not (tmp_path/'sprung').exists()

def test_packages_that_are_not_there(monkeypatch):
    for name,cls in ('transformers',SegformerParser),('diffusers',ClothesInpainter):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=r'pip install "ccreid\[generate\]"'): cls.from_pretrained('x')

def test_the_room_opens_without_transformers_and_diffusers():
    code = 'import sys, ccreid.generation.stand_ins, ccreid.generation.expansion; print([m for m in ("transformers","diffusers","fastai") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], text=True, capture_output=True).stdout.strip()=='[]'

def test_only_the_files_that_are_used_come_from_the_hub(monkeypatch, tmp_path):
    import huggingface_hub
    index = {name: ['diffusers', kind] for name,kind in dict(unet='UNet2DConditionModel', vae='AutoencoderKL', scheduler='DDIMScheduler', safety_checker='X').items()}
    index |= dict(_class_name='StableDiffusionInpaintPipeline', text_encoder=['transformers','CLIPTextModel'], tokenizer=['transformers','CLIPTokenizer'])
    (tmp_path/'model_index.json').write_text(json.dumps(index))
    asked,first = {},[]
    def download(repo, allow_patterns=None, **k): first.append((repo,allow_patterns)); asked[repo] = allow_patterns; return str(tmp_path)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    for cls in SegformerParser,ClothesInpainter:
        with pytest.raises(ValueError): cls.from_pretrained()       # nothing was downloaded
    assert ('sd2-community/stable-diffusion-2-inpainting',['model_index.json']) in first # what it is, before its gigabytes
    from huggingface_hub.utils import filter_repo_objects
    sd = ['512-inpainting-ema.ckpt','512-inpainting-ema.safetensors','model_index.json','tokenizer/merges.txt','tokenizer/vocab.json','scheduler/scheduler_config.json','safety_checker/model.safetensors',
          *(f'{p}/{n}' for p in ('unet','vae') for n in ('config.json','diffusion_pytorch_model.bin','diffusion_pytorch_model.safetensors','diffusion_pytorch_model.fp16.safetensors')),
          'text_encoder/pytorch_model.bin','text_encoder/model.safetensors','text_encoder/model.fp16.safetensors']
    assert set(filter_repo_objects(sd, allow_patterns=asked['sd2-community/stable-diffusion-2-inpainting']))=={'model_index.json','tokenizer/merges.txt','tokenizer/vocab.json','scheduler/scheduler_config.json',
        'unet/config.json','vae/config.json','unet/diffusion_pytorch_model.safetensors','vae/diffusion_pytorch_model.safetensors','text_encoder/model.safetensors'}
    assert set(filter_repo_objects(['config.json','model.safetensors','pytorch_model.bin','optimizer.pt','preprocessor_config.json'], allow_patterns=asked[parsing.SEGFORMER]))=={'config.json','model.safetensors','preprocessor_config.json'}

@given(st.lists(st.integers(), max_size=20), st.integers(1,7))
def test_full_batches(items, n):
    got = list(full_batches(items, n))
    assert all(len(b)==n for b in got) and len(got)==-(-len(items)//n)
    flat = [x for b in got for x in b]
    assert flat[:len(items)]==items and all(x==items[-1] for x in flat[len(items):])


# --- composites

@given(st.integers(1,12), st.integers(1,12), st.integers(1,20), st.integers(1,20), st.integers(0,10**6))
def test_composite_bit_for_bit(w, h, gw, gh, seed):
    rng = np.random.default_rng(seed)
    source,new = (Image.fromarray(rng.integers(0, 256, (b,a,3), np.uint8)) for a,b in ((w,h),(gw,gh)))
    mask = rng.random((h,w))<.5
    out = np.asarray(composite(source, new, mask))
    assert np.array_equal(out[~mask], np.asarray(source)[~mask])
    assert np.array_equal(out[mask], np.asarray(new if (gw,gh)==(w,h) else new.resize((w,h), Image.Resampling.LANCZOS))[mask])

def test_masks_in_all_forms():
    image,m = Image.new('RGB', (3,2)),np.array([[1,0,1],[0,0,1]])
    for mask in m, m.astype(bool), m*255, m.tolist(), Image.fromarray((m*255).astype(np.uint8)), Image.fromarray(m.astype(bool)):
        assert as_mask(mask, image).dtype==bool and np.array_equal(as_mask(mask, image), m)

@pytest.mark.parametrize('shape', [(64,128),(128,65),(128,64,1),(128,),()])
def test_a_mask_of_another_size_is_refused(people, inpaint, shape):
    _,rows,images = people
    for call in inpaint, lambda *a: MannequinInpainter()(*a, rows=rows[:1]):
        with pytest.raises(ValueError, match=f"the mask is {'×'.join(map(str, shape))}, the image 128×64"): call(images[:1], [np.ones(shape, bool)], 'jeans', [0])
    with pytest.raises(ValueError, match='the mask is'): composite(images[0], images[0], np.ones(shape))


# --- diffusion

def masks_of(rows): return [clothes_mask(truth(r['path']).parsing) for r in rows]

def test_inpainter_is_the_pipeline_and_nothing_else(people):
    "One image through diffusers by hand"
    _,rows,images = people
    inpaint,pipe,mask = tiny_inpainter(batch=1, steps=3, guidance=4.),tiny_pipeline(),masks_of(rows[:1])[0]
    pipe.set_progress_bar_config(disable=True)
    ref = pipe('a red coat', images[0].resize((16,48), Image.LANCZOS), Image.fromarray(mask).convert('L').resize((16,48), Image.NEAREST), height=48, width=16, num_inference_steps=3,
               guidance_scale=4., generator=torch.Generator().manual_seed(7)).images[0].resize((64,128), Image.LANCZOS)
    new = np.asarray(inpaint(images[:1], [mask], 'a red coat', [7])[0])
    assert np.array_equal(new[mask], np.asarray(ref)[mask]) and np.array_equal(new[~mask], np.asarray(images[0])[~mask])

def test_every_argument_reaches_the_pipeline(people, monkeypatch):
    got = {}
    class Pipe:
        def to(self, *a): got['to'] = a; return self
        def set_progress_bar_config(self, **k): pass
        def __call__(self, **k): got.update(k); return type('R', (), dict(images=[Image.new('RGB', (k['width'],k['height']))]*len(k['prompt'])))
    _,rows,images = people
    call = dict(images=images[:2], masks=masks_of(rows[:2]), prompts=['a','b'], seeds=[5,6])
    ClothesInpainter(Pipe(), device='cpu', batch=2)(**call)
    assert (got['height'],got['width'],got['num_inference_steps'],got['guidance_scale'],got['prompt'],got['negative_prompt'])==(768,256,50,7.5,['a','b'],None) and 'strength' not in got
    assert [g.initial_seed() for g in got['generator']]==[5,6] and all(g.device.type=='cpu' for g in got['generator']) and got['to']==(torch.device('cpu'), torch.float32)
    assert all(im.size==(256,768) for im in got['image']+got['mask_image']) and set(np.unique(np.asarray(got['mask_image'][0])))=={0,255}
    ClothesInpainter(Pipe(), size=(384,128), steps=10, guidance=2., strength=.5, negative='lowres', device='cpu', dtype=torch.bfloat16, batch=1)(**call)
    assert (got['height'],got['width'],got['num_inference_steps'],got['guidance_scale'],got['strength'],got['negative_prompt'])==(384,128,10,2.,.5,['lowres']) and got['to'][1]==torch.bfloat16
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    for device,dtype in ('cuda',torch.float16),('cpu',torch.float32),('mps',torch.float32): assert ClothesInpainter(Pipe(), device=device).dtype==dtype

def test_company_does_not_change_a_picture(people, inpaint):
    _,rows,images = people
    n,masks,prompts = 5,masks_of(rows[:5]),['a red coat','jeans','a hat','boots','a scarf']
    whole = inpaint(images[:n], masks, prompts, list(range(n)))
    for order in [[4,3,2,1,0],[0],[1],[2],[3,0],[2,4,1,0]]:
        got = inpaint([images[i] for i in order], [masks[i] for i in order], [prompts[i] for i in order], order)
        assert same(got, [whole[i] for i in order])
    for im,m,new in zip(images, masks, whole): assert np.array_equal(np.asarray(new)[~m], np.asarray(im)[~m]) and not np.array_equal(np.asarray(new)[m], np.asarray(im)[m])

def test_another_batch_size_differs_in_the_last_bits_only(people):
    _,rows,images = people
    a,b = (tiny_inpainter(batch=k)(images[:4], masks_of(rows[:4]), 'a coat', [1,2,3,4]) for k in (1,4))
    assert max(np.abs(x.astype(int)-y).max() for x,y in zip(arrays(a), arrays(b)))<=2

def test_seed_prompt_and_global_randomness(people, inpaint):
    _,rows,images = people
    m = masks_of(rows[:1])
    ref = inpaint(images[:1], m, 'a red coat', [3])
    torch.manual_seed(99); state = torch.get_rng_state()
    assert same(inpaint(images[:1], m, ['a red coat'], [3]), ref)
    assert not same(inpaint(images[:1], m, 'a red coat', [4]), ref) and not same(inpaint(images[:1], m, 'a blue coat', [3]), ref)
    tiny_pipeline(); tiny_parser()
    assert torch.equal(torch.get_rng_state(), state)

def test_images_of_several_sizes_in_one_batch(inpaint, people):
    _,rows,images = people
    mixed = [images[0],images[1].resize((50,77)),images[2].resize((200,31))]
    masks = [np.random.default_rng(i).random(im.size[::-1])<.3 for i,im in enumerate(mixed)]
    for im,m,new in zip(mixed, masks, inpaint(mixed, masks, 'a coat', [1,2,3])): assert new.size==im.size and np.array_equal(np.asarray(new)[~m], np.asarray(im)[~m])

def test_nothing_to_paint(people, inpaint):
    _,rows,images = people
    empty,m = np.zeros((128,64), bool),masks_of(rows[1:2])[0]
    got = inpaint(images[:3], [empty,m,empty], 'a coat', [1,2,3])
    assert got[0] is None and got[2] is None and same([got[1]], inpaint(images[1:2], [m], 'a coat', [2]))
    assert inpaint(images[:2], [empty]*2, 'a coat', [1,2])==[None,None] and inpaint([], [], [], [])==[]
    everything = inpaint(images[:1], [~empty], 'a coat', [1])[0]
    assert everything.size==(64,128)

def test_bad_calls(people, inpaint):
    _,rows,images = people
    m = masks_of(rows[:2])
    for args in (images[:2],m[:1],'x',[1,2]),(images[:2],m,['x'],[1,2]),(images[:2],m,'x',[1]):
        with pytest.raises(ValueError, match='one each'): inpaint(*args)
        with pytest.raises(ValueError, match='one each'): MannequinInpainter()(*args, rows=rows[:2])
    for kw in dict(size=(100,64)),dict(size=(0,8)),dict(steps=0),dict(batch=0):
        with pytest.raises(ValueError): tiny_inpainter(**kw)

@pytest.mark.parametrize('dtype,apart', [(torch.bfloat16,10), (torch.float16,1)])
def test_sixteen_bits_run_and_are_close(people, dtype, apart):
    _,rows,images = people
    m = masks_of(rows[:2])
    a,b = (arrays(tiny_inpainter(dtype=d)(images[:2], m, 'a coat', [1,2])) for d in (torch.float32,dtype))
    assert 0<np.abs(a[0].astype(int)-b[0]).mean()<apart
    assert all(np.array_equal(x[~k], np.asarray(im)[~k]) for x,k,im in zip(b, m, images))

def test_inpainter_by_path_and_by_name(people, inpaint, tmp_path, monkeypatch):
    _,rows,images = people
    monkeypatch.setenv('CCREID_WEIGHTS', str(tmp_path))
    inpaint.pipe.save_pretrained(tmp_path/'sd')
    ref = inpaint(images[:2], masks_of(rows[:2]), 'a coat', [1,2])
    for name in 'sd',tmp_path/'sd':
        again = ClothesInpainter.from_pretrained(name, size=(48,16), steps=2, batch=3, device='cpu')
        assert same(again(images[:2], masks_of(rows[:2]), 'a coat', [1,2]), ref)
        assert again.settings==dict(inpaint.settings, model='sd') and again.pipe.safety_checker is None
    (tmp_path/'sd'/'unet'/'diffusion_pytorch_model.safetensors').unlink()
    with pytest.raises(ValueError, match='sd holds no pipeline') as e: ClothesInpainter.from_pretrained('sd', device='cpu')
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('name', [SEGFORMER, pytest.param(SD2, marks=pytest.mark.slow), pytest.param(SD15, marks=pytest.mark.slow)])
def test_published_weights_where_they_are(name, people, monkeypatch):
    "By name, in the user's folder of weights or the hub's cache; nothing is downloaded"
    monkeypatch.setenv('CCREID_WEIGHTS', MINE)
    _,rows,images = people
    try: model = SegformerParser.from_pretrained(name, device='cpu', batch=2) if name==SEGFORMER else ClothesInpainter.from_pretrained(name, size=(128,64), steps=2, batch=2, device='cpu')
    except WeightsNotFound as e: pytest.skip(str(e))
    if name==SEGFORMER:
        assert sorted(set(model.lip.tolist()))==sorted(set(to_lip(ATR).tolist()))                 # ATR's classes, whatever their spelling
        maps = model(images[:3])
        assert [m.shape for m in maps]==[(128,64)]*3 and same(model(images[2:3]), maps[2:])
    else:
        m = masks_of(rows[:3]); new = arrays(model(images[:3], m, 'a red coat', [1,2,3]))
        assert same(model(images[2:3], m[2:], 'a red coat', [3]), new[2:])
        for im,k,x in zip(images, m, new): assert np.array_equal(x[~k], np.asarray(im)[~k]) and (x[k]!=np.asarray(im)[k]).any()

@pytest.mark.gpu
def test_half_precision_on_cuda(people):
    _,rows,images = people
    for dtype in None,torch.bfloat16:
        inpaint = tiny_inpainter(device='cuda', dtype=dtype, batch=3)
        assert inpaint.dtype==(dtype or torch.float16)
        whole,m = inpaint(images[:5], masks_of(rows[:5]), 'a coat', range(5)),masks_of(rows[:5])
        assert same(inpaint(images[4:5], m[4:], 'a coat', [4]), whole[4:])
        assert all(np.array_equal(np.asarray(n)[~k], np.asarray(im)[~k]) for im,k,n in zip(images, m, whole))


# --- all together

def edit_of(parser, inpaint, prompt='a new coat'):
    def edit(images, rows, variants, seeds):
        return inpaint(images, [clothes_mask(m) for m in parser(images, rows=rows)], prompt, seeds, rows=rows)
    edit.settings = {**parser.settings, **inpaint.settings}
    return edit

def test_a_set_made_in_portions_is_the_same_set(people, parser, inpaint, tmp_path):
    table = people[0].head(4)
    edit = edit_of(parser, inpaint)
    kw = dict(variants=2, progress=False)
    whole = expand(table, edit, tmp_path/'whole', batch=8, **kw)
    for limit,batch,shard in (1,1,(0,1)),(2,3,(1,2)),(None,5,(0,2)): expand(table, edit, tmp_path/'parts', limit=limit, batch=batch, shard=shard, **kw)
    parts = expand(table, edit, tmp_path/'parts', batch=4, **kw)
    assert [Path(p).read_bytes() for p in parts.path]==[Path(p).read_bytes() for p in whole.path] and len(whole)==8
    with pytest.raises(FileExistsError, match='settings'): expand(table, edit_of(parser, tiny_inpainter(steps=3)), tmp_path/'parts', **kw)

def test_a_picture_without_a_person_is_skipped(people, tmp_path, capsys):
    "No clothes, no person: the parser sees background or bare skin, nothing is generated, and the job goes on"
    table,rows,images = people
    def see(images, rows=None): return [np.full(im.size[::-1], 0 if r['path']==table.path[0] else 13 if r['path']==table.path[1] else 5, np.uint8) for im,r in zip(images, rows)]
    see.settings = {}
    res = expand(table.head(4), edit_of(see, tiny_inpainter()), tmp_path/'o', variants=1, progress=False)
    assert res.source.tolist()==table.path.tolist()[2:4] and '2 images skipped' in capsys.readouterr().out


def test_two_people_in_one_picture_through_the_whole_job(people, tmp_path):
    "The larger is dressed, the other's pixels stay bit for bit; the picture is known by its path, so the parser is told what it sees"
    table,rows,images = people
    big,small = truth(rows[0]['path']).parsing,np.pad(truth(rows[3]['path']).parsing[::4,::4], ((96,0),(0,0)))
    Image.fromarray(np.concatenate([np.asarray(images[0]), np.pad(np.asarray(images[3])[::4,::4], ((96,0),(0,0),(0,0)))], 1)).save(tmp_path/'two.png')
    def both(images, rows=None): return [np.concatenate([big, small], 1)]*len(images)
    def edit(ims, rows, variants, seeds): return [o or SkipImage('no clothes') for o in tiny_inpainter()(ims, [clothes_mask(main_person(m)) for m in both(ims)], 'a coat', seeds)]
    made = expand(table.head(1).assign(path=str(tmp_path/'two.png')), edit, tmp_path/'o', variants=2, progress=False)
    assert len(made)==2 and clothes_mask(small).any()
    for p in made.path:
        a,b = np.asarray(Image.open(tmp_path/'two.png')),np.asarray(Image.open(p))
        assert np.array_equal(a[:,64:], b[:,64:]) and (a[:,:64][clothes_mask(big)]!=b[:,:64][clothes_mask(big)]).any()

# --- stand-ins

def test_stand_ins_tell_the_truth(people):
    _,rows,images = people
    for m,k,r in zip(MannequinParser()(images, rows=rows), MannequinKeypoints()(images, rows=rows), rows):
        t = truth(r['path'])
        assert np.array_equal(m, t.parsing) and np.array_equal(k, t.keypoints) and k.shape==(33,4) and k.dtype==np.float32
    small = MannequinParser()([images[0].resize((32,50))], rows=rows[:1])[0]
    assert small.shape==(50,32) and set(np.unique(small))<=set(np.unique(truth(rows[0]['path']).parsing))

def test_stand_ins_do_not_look_at_labels(people):
    table,rows,images = people
    wrong = [{**r, 'identity':99, 'clothes':99, 'camera':99, 'split':'query', 'dataset':'x'} for r in rows[:3]]
    bare = [dict(path=r['path']) for r in rows[:3]]
    m = masks_of(rows[:3])
    for call in (lambda r: MannequinParser()(images[:3], rows=r), lambda r: MannequinKeypoints()(images[:3], rows=r),
                 lambda r: MannequinInpainter(DECLARED)(images[:3], m, 'a red coat', [1,2,3], rows=r), lambda r: MannequinTryOn(DECLARED)(images[:3], [None]*3, ['a red coat']*3, [1,2,3], rows=r),
                 lambda r: [o[0] for o in MannequinTryOff()(images[:3], rows=r)]):
        assert same(call(rows[:3]), call(wrong)) and same(call(rows[:3]), call(bare))

def test_stand_ins_without_a_scene(people, tmp_path):
    _,rows,images = people
    images[0].save(tmp_path/'copy.png')
    calls = [lambda **k: MannequinParser()(images[:1], **k), lambda **k: MannequinKeypoints()(images[:1], **k), lambda **k: MannequinTryOff()(images[:1], **k),
             lambda **k: MannequinInpainter()(images[:1], [np.ones((128,64))], 'jeans', [0], **k), lambda **k: MannequinTryOn()(images[:1], [None], ['jeans'], [0], **k)]
    for call in calls:
        with pytest.raises(ValueError, match='pass rows='): call()
        with pytest.raises(ValueError, match='1 images and 2 rows'): call(rows=rows[:2])
        with pytest.raises(ValueError, match='no mannequin world wrote this file'): call(rows=[dict(path=str(tmp_path/'copy.png'))])
        with pytest.raises(FileNotFoundError, match='does not exist'): call(rows=[dict(path=str(tmp_path/'none.png'))])

@pytest.mark.parametrize('imperfections', [Imperfections(), DECLARED, Imperfections(1.,1.,1.)])
def test_the_inpainter_keeps_what_is_outside_the_mask(people, imperfections):
    _,rows,images = people
    rng,inpaint = np.random.default_rng(0),MannequinInpainter(imperfections)
    masks = [rng.random((128,64))<p for p in np.linspace(.1, 1, len(images))]
    prompts = ['a red and white striped dress','new clothes please',None]*3
    for im,m,new,r in zip(images, masks, inpaint(images, masks, prompts[:len(images)], range(len(images)), rows=rows), rows):
        a,b,t = np.asarray(im),np.asarray(new),truth(r['path']).parsing
        assert np.array_equal(a[~m], b[~m]) and np.array_equal(a[np.isin(t, (2,13))], b[np.isin(t, (2,13))]) and (a[m]!=b[m]).any()

def test_the_inpainter_paints_into_the_image_it_is_given(people):
    _,rows,images = people
    marked = images[0].copy(); marked.paste((9,9,9), (0,0,64,10))
    m = masks_of(rows[:1])[0]
    new = np.asarray(MannequinInpainter()([marked], [m], 'a red coat', [0], rows=rows[:1])[0])
    assert (new[:10]==9).all() and np.array_equal(new[~m], np.asarray(marked)[~m])

def test_perfect_inpainting_is_redressing(people):
    _,rows,images = people
    m = masks_of(rows[:1])
    assert same(MannequinInpainter()(images[:1], m, 'a red coat', [5], rows=rows[:1]), [redress(rows[0]['path'], 'a red coat', 5, mask=m[0]).image])
    free = MannequinInpainter(DECLARED)(images[:1], None, 'a red coat', [5], rows=rows[:1])
    assert same(free, [redress(rows[0]['path'], 'a red coat', 5, mask=False, imperfections=DECLARED).image]) and not same(free, MannequinInpainter()(images[:1], None, 'a red coat', [5], rows=rows[:1]))
    assert MannequinInpainter()(images[:1], [np.zeros((128,64))], 'jeans', [0], rows=rows[:1])==[None]

def test_what_a_prompt_asks_for():
    assert outfit_of('The person wears a red hoodie with magnificent blue jeans', 3)==parse_caption('a red hoodie, blue jeans')
    vague = [outfit_of('generate a new cloth for the person', s) for s in range(30)]
    assert len(set(map(tuple, vague)))>20 and vague[4]==outfit_of('', 4)==outfit_of(None, 4)
    with pytest.raises(ValueError, match='two garments'): outfit_of('jeans and a skirt', 0)

def test_try_off_gives_the_upper_garment_on_white(people):
    _,rows,images = people
    off = MannequinTryOff(size=(128,96))
    for image,mask,text in off(images, rows=rows):
        assert image.size==(96,128) and image.mode=='RGB' and mask.shape==(128,96) and mask.dtype==bool and .05<mask.mean()<.9
        assert (np.asarray(image)[~mask]==255).all()
        ys,xs = np.nonzero(mask); assert ys.min()>0 and xs.min()>0 and ys.max()<127 and xs.max()<95       # nothing is cut off
    for (_,_,text),r in zip(off(images, rows=rows), rows):
        worn = {g.slot:g for g in truth(r['path']).garments}
        assert text==str(worn.get('outer') or worn.get('upper') or worn['dress'])
    a,b = (off(images[:1], seeds=s, rows=rows[:1])[0] for s in (None,[4]))
    assert a[0].tobytes()==b[0].tobytes()

def test_try_on_puts_the_named_garment_on(people):
    _,rows,images = people
    n,texts = 3,['a red and white striped t-shirt','a green coat','a long dress']
    on = MannequinTryOn()(images[:n], [images[0]]*n, texts, [1,2,3], rows=rows[:n])
    for im,new,text,r in zip(images, on, texts, rows):
        old = truth(r['path']).parsing
        assert same([new], [redress(r['path'], text).image]) and np.array_equal(np.asarray(new)[np.isin(old, (2,13))], np.asarray(im)[np.isin(old, (2,13))])
        assert not same([new], [im])
    assert same(MannequinTryOn()(images[1:2], [None], texts[1:2], [2], rows=rows[1:2]), on[1:2])
    with pytest.raises(ValueError, match='toga'): MannequinTryOn()(images[:1], [None], ['a toga'], [0], rows=rows[:1])
    with pytest.raises(ValueError, match='one each'): MannequinTryOn()(images[:2], [None], texts[:2], [0,1], rows=rows[:2])

def test_stand_ins_on_infrared_and_prcc_worlds(tmp_path):
    table = MannequinWorld((2,0,1), cameras=2, images=(1,1,1), infrared=(1,), seed=2).write(tmp_path/'ir', 'mannequins', workers=1).train
    rows,images = table.to_dict('records'),[read_image(p) for p in table.path]
    assert {r['modality'] for r in rows}=={'visible','infrared'}
    for im,new,r in zip(images, MannequinInpainter()(images, masks_of(rows), 'a red coat and jeans', range(len(rows)), rows=rows), rows):
        if r['modality']=='infrared': assert (np.ptp(np.asarray(new), -1)<=np.ptp(np.asarray(im), -1).max()).all()    # stays without colour
    assert all((np.ptp(np.asarray(g), -1)[m].max()>0 or text.split()[1] in ('black','white','grey')) for g,m,text in MannequinTryOff((64,48))(images, rows=rows))
