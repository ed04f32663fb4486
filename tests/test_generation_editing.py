"Pipelines of diffusers called by their signature, and try-on by them: the real classes, tiny and random"
import functools, inspect, json, shutil
from types import SimpleNamespace

import numpy as np, pytest, torch
from PIL import Image

import ccreid.compat
import diffusers
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_inpaint, pipeline_qwenimage_edit_plus

from ccreid.generation.dressing import TryOn
from ccreid.generation.edits import SkipImage
from ccreid.generation.editing import PROMPTS, EditingTryOn, prompt_for
from ccreid.generation.inpainting import ClothesInpainter, tiny_inpainter, tiny_pipeline
from ccreid.generation.pipeline_files import file_patterns, half_of, index_of, load_pipeline, pipeline_class, read_pipeline
from ccreid.generation.pipeline_kinds import PIPELINES, Kind, call_names, kind_of
from ccreid.generation.pipelines import DiffusersPipeline
from ccreid.generation.placing import default_dtype, main_dtype, place_pipeline
from ccreid.generation.tiny_networks import tiny_unet, tiny_vae
from ccreid.weights import WeightsNotFound

diffusers.utils.logging.disable_progress_bar(); diffusers.utils.logging.set_verbosity_error()


# --- tiny versions of the real classes; the encoders of texts are left out

def tiny_kl(latents, widths=(4,), **kw):
    return tiny_vae(widths, 1, layers_per_block=1, latent_channels=latents, use_quant_conv=False, use_post_quant_conv=False, shift_factor=.06, scaling_factor=1.5)

def flow(): return diffusers.FlowMatchEulerDiscreteScheduler()

def tiny_sd(channels=9, cross=32):
    return dict(tiny_pipeline().components, unet=tiny_unet(channels, cross_attention_dim=cross), requires_safety_checker=False)

def tiny_sdxl():
    unet = tiny_unet(block_out_channels=(32,64), transformer_layers_per_block=(1,2), attention_head_dim=(2,4), cross_attention_dim=64, use_linear_projection=True,
        addition_embed_type='text_time', addition_time_embed_dim=8, projection_class_embeddings_input_dim=6*8+32)
    return dict(vae=tiny_vae((8,16), 4), unet=unet, scheduler=diffusers.EulerDiscreteScheduler(), **dict.fromkeys(['text_encoder','text_encoder_2','tokenizer','tokenizer_2']))

def tiny_sd3():
    net = diffusers.SD3Transformer2DModel(sample_size=32, patch_size=2, in_channels=16, out_channels=16, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64, pos_embed_max_size=32)
    return dict(transformer=net, vae=tiny_kl(16), scheduler=flow(), **dict.fromkeys(['text_encoder','text_encoder_2','text_encoder_3','tokenizer','tokenizer_2','tokenizer_3']))

def tiny_flux(channels=8):
    net = diffusers.FluxTransformer2DModel(patch_size=1, in_channels=channels, out_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4,4,8), guidance_embeds=True)
    return dict(transformer=net, vae=tiny_kl(2), scheduler=flow(), **dict.fromkeys(['text_encoder','text_encoder_2','tokenizer','tokenizer_2']))

def tiny_qwen(edit=True):
    net = diffusers.QwenImageTransformer2DModel(patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8,4,4))
    vae = diffusers.AutoencoderKLQwenImage(base_dim=8, z_dim=4, dim_mult=[1,2,4], num_res_blocks=1, temperal_downsample=[False,True], latents_mean=[0.]*4, latents_std=[1.]*4)
    return dict(transformer=net, vae=vae, scheduler=flow(), text_encoder=None, tokenizer=None, **(dict(processor=None) if edit else {}))

def tiny_zimage():
    net = diffusers.ZImageTransformer2DModel(all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[8,4,4], axes_lens=[256,64,64])
    return dict(transformer=net, vae=tiny_kl(16, (4,8)), scheduler=flow(), text_encoder=None, tokenizer=None)

def tiny_klein():
    net = diffusers.Flux2Transformer2DModel(patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(4,4,4,4))
    vae = diffusers.AutoencoderKLFlux2(block_out_channels=(4,), layers_per_block=1, latent_channels=1, norm_num_groups=1, down_block_types=('DownEncoderBlock2D',), up_block_types=('UpDecoderBlock2D',),
        use_quant_conv=False, use_post_quant_conv=False)
    return dict(transformer=net, vae=vae, scheduler=flow(), text_encoder=None, tokenizer=None)

PARTS = dict(StableDiffusionInpaint=tiny_sd, StableDiffusionXLInpaint=tiny_sdxl, StableDiffusion3Inpaint=tiny_sd3, FluxFill=lambda: tiny_flux(20), FluxInpaint=tiny_flux, FluxKontextInpaint=tiny_flux,
    QwenImageInpaint=lambda: tiny_qwen(False), QwenImageEditInpaint=tiny_qwen, ZImageInpaint=tiny_zimage, Flux2KleinInpaint=tiny_klein,
    FluxKontext=tiny_flux, QwenImageEdit=tiny_qwen, QwenImageEditPlus=tiny_qwen, Flux2Klein=tiny_klein)
ALL = list(PARTS)
MASKED = [n for n in ALL if PIPELINES[n].mode!='edit']

def built(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(diffusers, f'{name}Pipeline')(**PARTS[name]())

tiny = functools.cache(built)

def numbers(texts, *shape):
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(1+sum(map(ord, t)))) for t in texts])

def words(length, width, pooled=0, negative=True, mask=False, listed=False):
    "A hook `embed`"
    def embed(prompts):
        res = {}
        for key,texts in (('',prompts),('negative_',['']*len(prompts)))[:1+negative]:
            res[f'{key}prompt_embeds'] = list(numbers(texts, length, width)) if listed else numbers(texts, length, width)
            if pooled: res[f'{"negative_" if key else ""}pooled_prompt_embeds'] = numbers(texts, pooled)
            if mask: res[f'{key}prompt_embeds_mask'] = torch.ones(len(texts), length, dtype=torch.long)
        return res
    return embed

def embedder(name):
    if name=='StableDiffusionInpaint': return None                        # it has a text encoder
    if 'XL' in name: return words(7, 64, 32)
    if '3' in name: return words(7, 32, 64)
    if 'Klein' in name: return words(7, 16)
    if 'Flux' in name: return words(7, 32, 32, negative=False)
    return words(7, 16, mask=True) if 'Qwen' in name else words(7, 16, listed=True)

def arguments(name, **kw):
    "Of `DiffusersPipeline` for a tiny one"
    options = dict(_auto_resize=False) if 'Kontext' in name else {}
    size = (64,64) if name=='Flux2Klein' else (64,32)
    return {**dict(size=size, steps=2, device='cpu', name=name, embed=embedder(name), options=options), **kw}

def painter(name, **kw): return DiffusersPipeline(tiny(name), **arguments(name, **kw))
def inpainter(name, **kw): return ClothesInpainter(tiny(name), **arguments(name, **{'batch': 2, **kw}))

@pytest.fixture(autouse=True)
def small_references(monkeypatch):
    "Editors of Qwen bring what they look at to a million pixels: here to 64×32"
    for module in pipeline_qwenimage_edit,pipeline_qwenimage_edit_inpaint: monkeypatch.setattr(module, 'calculate_dimensions', lambda area, ratio: (32, 64, None))
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, 'calculate_dimensions', lambda area, ratio: (32, 64))

@pytest.fixture
def spy(monkeypatch):
    "What the pipelines are called with"
    got = []
    def on(name):
        cls = type(tiny(name)); call = cls.__call__
        @functools.wraps(call)
        def wrapped(self, *args, **kw): got.append(kw); return call(self, *args, **kw)
        monkeypatch.setattr(cls, '__call__', wrapped)
        return got
    return on

def picture(seed, size=(40,72)): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1],3), np.uint8))
IMAGES = [picture(i) for i in range(3)]
MASK = np.zeros((72,40), bool); MASK[18:50,8:30] = True
def equal(a, b): return np.array_equal(np.asarray(a), np.asarray(b))


# --- every class

@pytest.mark.parametrize('name', ALL)
def test_it_paints_inside_the_mask_from_its_seed_and_text(name):
    inpaint = inpainter(name, embed=embedder(name))
    n = 3 if inpaint.batch>1 else 2
    prompts,seeds = ['a red coat','jeans','a hat'][:n],[1,2,3][:n]
    made = inpaint(IMAGES[:n], [MASK]*n, prompts, seeds)
    for im,new in zip(IMAGES, made):
        assert new.size==im.size and equal(np.asarray(new)[~MASK], np.asarray(im)[~MASK])
        assert (np.asarray(new)!=np.asarray(im))[MASK].any(-1).mean()>.9
    again = inpaint(IMAGES[n-1:0:-1], [MASK]*(n-1), prompts[n-1:0:-1], seeds[n-1:0:-1])          # other company, other place
    assert equal(again[-1], made[1])
    other = inpaint([IMAGES[1]]*2, [MASK]*2, ['jeans','a scarf'], [7,2])          # another seed, another text
    assert not equal(other[0], made[1]) and not equal(other[1], made[1])
    assert inpaint.batch==(2 if PIPELINES[name].batch else 1)

@pytest.mark.parametrize('name', [n for n in ALL if PIPELINES[n].batch])
def test_alone_and_in_a_batch(name):
    paint = painter(name)
    both = paint(IMAGES[:2], ['a coat','a hat'], [1,2], [MASK]*2)
    for i in range(2):
        alone = paint(IMAGES[i:i+1], [['a coat','a hat'][i]], [1+i], [MASK])[0]
        assert alone.shape==(64,32,3) and np.abs(alone-both[i]).max()<2e-3 and np.abs(alone-both[1-i]).max()>.05

@pytest.mark.parametrize('name', ALL)
def test_guidance_goes_by_the_name_that_the_class_has(name, spy):
    got = spy(name)
    painter(name, guidance=2.5)(IMAGES[:1], ['a coat'], [1])
    key = 'true_cfg_scale' if 'Qwen' in name else 'guidance_scale'
    assert got[0][key]==2.5 and 'guidance_scale' in got[0] or key=='true_cfg_scale'
    if key=='true_cfg_scale': assert 'guidance_scale' not in got[0]
    assert set(got[0])<=set(call_names(tiny(name))) and got[0]['num_inference_steps']==2 and got[0]['output_type']=='np'
    assert [g.initial_seed() for g in got[0]['generator']]==[1] and got[0]['generator'][0].device.type=='cpu'
    assert ('prompt' in got[0])==(name=='StableDiffusionInpaint')                # the others are given embeddings

@pytest.mark.parametrize('name', ALL)
def test_strength_is_full_where_it_blends(name, spy):
    got,usual = spy(name),call_names(tiny(name)).get('strength')
    paint = painter(name)
    paint(IMAGES[:1], ['a coat'], [1])
    assert got[0].get('strength', usual)==paint.strength==(None if usual is None else .9999 if 'XL' in name else 1.)
    if usual is None:
        with pytest.raises(ValueError, match=f'{name}Pipeline has no strength'): painter(name, strength=.5)
    else:
        painter(name, strength=.7)(IMAGES[:1], ['a coat'], [1])
        assert got[1]['strength']==.7
        with pytest.raises(ValueError): painter(name, strength=1.5)

@pytest.mark.parametrize('name', MASKED)
def test_white_is_painted(name, spy):
    got = spy(name)
    paint = painter(name, strength=1. if 'XL' not in name else None)
    paint(IMAGES[:1], ['a coat'], [1], [MASK]); paint(IMAGES[:1], ['a coat'], [1])
    for call,inside in zip(got, (np.asarray(Image.fromarray(MASK).convert('L').resize((32,64), Image.NEAREST)), np.full((64,32), 255))):
        mask = call['mask_image'][0] if isinstance(call['mask_image'], list) else call['mask_image']
        assert mask.size==(32,64) and equal(mask, inside) and set(np.unique(inside))<={0,255}

def test_the_table_agrees_with_the_signatures():
    for name,kind in PIPELINES.items():
        names = call_names(getattr(diffusers, f'{name}Pipeline'))
        assert (kind.mode=='edit')==(not {'mask_image','mask'} & set(names)) and 'prompt' in names and {'image','images','input_images'} & set(names), name
        assert (kind.mode!='blend' or names['strength'] is not None) and (kind.garment not in ('ip_adapter_image','image_reference') or kind.garment in names)


# --- what is asked of a class that would not hear it

@pytest.mark.parametrize('kw,words', [(dict(negative='hat'), 'FluxFillPipeline takes no negative prompt'), (dict(options=dict(image_guidance_scale=2)), 'does not take image_guidance_scale'),
    (dict(options=dict(prompt='x')), 'set otherwise: prompt'), (dict(options=dict(guidance_scale=3)), 'set otherwise: guidance_scale'), (dict(garment='list'), "takes no garment picture by 'list'"),
    (dict(garment='image_reference'), 'no garment picture'), (dict(embed=lambda p: dict(prompt_embeds_mask=0)), 'takes no prompt_embeds_mask')])
def test_refusals_of_one_line(kw, words):
    with pytest.raises(ValueError, match=words) as e: painter('FluxFill', **kw)(IMAGES[:1], ['a coat'], [1], [MASK])
    assert '\n' not in str(e.value)

def test_negative_texts(spy):
    with pytest.raises(ValueError, match='true_cfg_scale above 1'): painter('FluxInpaint', negative='hat')
    assert painter('FluxInpaint', negative='hat', options=dict(true_cfg_scale=2.)).options==dict(true_cfg_scale=2.)
    told = DiffusersPipeline(tiny('QwenImageInpaint'), **arguments('QwenImageInpaint', embed=None))
    assert told._words(['a','b'])==dict(prompt=['a','b'], negative_prompt=[' ',' '])
    told.guidance = 1.
    assert told._words(['a'])==dict(prompt=['a'], negative_prompt=None)
    got = spy('StableDiffusionInpaint')
    painter('StableDiffusionInpaint', negative='hat')(IMAGES[:2], ['a','b'], [1,2], [MASK]*2)
    assert got[0]['negative_prompt']==['hat','hat'] and got[0]['prompt']==['a','b']

def test_the_two_guidances_of_instruct_pix2pix(monkeypatch):
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline(**tiny_sd(8), image_encoder=None) if 'image_encoder' not in tiny_sd(8) else diffusers.StableDiffusionInstructPix2PixPipeline(**tiny_sd(8))
    a,b,c = (DiffusersPipeline(pipe, size=(64,32), steps=2, device='cpu', **kw)(IMAGES[:1], ['a coat'], [1])[0] for kw in ({}, dict(options=dict(image_guidance_scale=1.5)), dict(options=dict(image_guidance_scale=3.))))
    assert equal(a, b) and not equal(a, c)                                  # 1.5 is its own

def test_counts_and_garments_that_do_not_go():
    paint = painter('StableDiffusionInpaint')
    for args in [(IMAGES[:2], ['a'], [1,2]), (IMAGES[:1], ['a'], [1,2]), (IMAGES[:1], ['a'], [1], [MASK]*2)]:
        with pytest.raises(ValueError, match='as many'): paint(*args)
    with pytest.raises(ValueError, match='without an IP-Adapter'): paint(IMAGES[:1], ['a'], [1], [MASK], IMAGES[:1])
    with pytest.raises(ValueError, match='load_ip_adapter'): painter('StableDiffusionInpaint', garment='ip_adapter_image')
    with pytest.raises(ValueError, match='QwenImageInpaintPipeline takes no picture of a garment$'): painter('QwenImageInpaint')(IMAGES[:1], ['a'], [1], [MASK], IMAGES[:1])

def test_sizes_are_rounded_to_what_the_network_takes():
    assert painter('StableDiffusionInpaint', size=(70,30)).size==(72,32) and painter('FluxFill', size=(70,30)).size==(64,32) and painter('FluxFill', size=(8,8)).size==(16,16)
    inpaint = inpainter('FluxFill', size=(72,40))
    assert inpaint(IMAGES[:1], [MASK], ['a'], [1])[0].size==IMAGES[0].size and inpaint.settings['size']==list(inpaint.size)==list(inpaint.painter.size)==[64,32]

def test_types_by_device():
    assert [default_dtype(d, half_of(t)) for d,t in (('cpu',True),('cuda',False),('cuda',True),('mps',False))]==[torch.float32, torch.float16, torch.bfloat16, torch.float32]


# --- unknown classes

class Base:
    def to(self, *a): return self
    def set_progress_bar_config(self, **k): pass

class Marker(Base):
    "An inpainting pipeline that is in no table: paints what its seed says"
    def __call__(self, prompt, image, mask, guidance_scale=3., strength=.3, generator=None, seen=None):
        assert isinstance(prompt, str) and image.size==mask.size==(32,64) and (guidance_scale,strength)==(3.,1.) and seen==5
        return SimpleNamespace(images=[np.random.default_rng(generator[0].initial_seed()).random((64,32,3))])

class Whole(Base):
    def __call__(self, prompt, image, strength=.8, generator=None): return SimpleNamespace(images=[image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])

class Text(Base):
    def __call__(self, prompt, height, width): raise AssertionError

def test_an_unknown_class_with_the_right_signature():
    assert kind_of(Marker)==Kind('blend') and kind_of(Whole)==Kind('edit') and kind_of(Text)==Kind('')
    inpaint = ClothesInpainter(Marker(), size=(64,32), steps=2, device='cpu', options=dict(seen=5))
    made = inpaint(IMAGES, [MASK]*3, 'a coat', [1,2,1])
    assert inpaint.batch==1 and not equal(made[0], made[1]) and equal(np.asarray(made[0])[MASK], np.asarray(made[2])[MASK])
    assert equal(np.asarray(made[0])[~MASK], np.asarray(IMAGES[0])[~MASK])

def test_classes_without_a_mask_or_a_picture():
    with pytest.raises(ValueError, match='Whole takes no mask: give edit=True') as e: ClothesInpainter(Whole(), device='cpu')
    with pytest.raises(ValueError, match='Text takes no picture') as f: ClothesInpainter(Text(), device='cpu', edit=True)
    assert '\n' not in str(e.value)+str(f.value)
    for kw in dict(edit=True),dict(whole=True): assert ClothesInpainter(Whole(), size=(64,32), device='cpu', **kw).painter.strength==.8
    made = ClothesInpainter(Whole(), size=(72,40), device='cpu', edit=True)(IMAGES[:1], [MASK], 'a', [1])[0]
    assert equal(np.asarray(made)[MASK], np.asarray(IMAGES[0])[:,::-1][MASK]) and equal(np.asarray(made)[~MASK], np.asarray(IMAGES[0])[~MASK])


# --- the whole picture

def test_the_whole_edit_is_kept():
    for name in 'FluxKontext','StableDiffusionInpaint':
        whole = inpainter(name, whole=True)
        made,inside = whole(IMAGES[:1], None, 'a coat', [1])[0],inpainter(name)(IMAGES[:1], [np.ones_like(MASK)], 'a coat', [1])[0]
        assert made.size==IMAGES[0].size and equal(made, inside) and whole.settings['whole'] is True     # a mask of everything keeps everything
        assert 'whole' not in inpainter(name).settings
    kept = inpainter('FluxKontext')(IMAGES[:1], [MASK], 'a coat', [1])[0]
    assert equal(np.asarray(kept)[MASK], np.asarray(inpainter('FluxKontext', whole=True)(IMAGES[:1], None, 'a coat', [1])[0])[MASK])

def test_image_to_image_with_its_strength_on_record():
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**tiny_sd(4))
    a,b = (ClothesInpainter(pipe, size=(64,32), steps=4, strength=s, batch=2, whole=True, device='cpu') for s in (.25,1.))
    near,far = (np.abs(np.asarray(e(IMAGES[:1], None, 'a coat', [1])[0], int)-np.asarray(IMAGES[0], int)).mean() for e in (a,b))
    assert [e.settings['strength'] for e in (a,b)]==[.25,1.] and a.settings['pipeline']=='StableDiffusionImg2ImgPipeline' and near!=far and a.batch==2
    default = ClothesInpainter(pipe, size=(64,32), whole=True, device='cpu')
    assert default.settings['strength']==.8                                   # the class's own, for it does not blend


# --- records

def test_the_record_says_what_decides():
    assert tiny_inpainter().settings==dict(model='tiny-0', size=[48,16], steps=2, guidance=7.5, strength=None, negative=None, dtype='float32')   # as ever
    s = inpainter('QwenImageInpaint').settings
    assert s==dict(model='QwenImageInpaint', size=[64,32], steps=2, guidance=4., strength=1., negative=None, dtype='float32', pipeline='QwenImageInpaintPipeline', garment='', embed=s['embed'])
    assert json.loads(json.dumps(inpainter('FluxKontext').settings))['_auto_resize'] is False


# --- pictures of garments

def coat(colour): im = Image.new('RGB', (50,60), 'white'); im.paste(colour, (10,5,40,50)); return im

@pytest.mark.parametrize('name,way', [('FluxFill','canvas'), ('FluxKontextInpaint','image_reference'), ('Flux2KleinInpaint','image_reference'), ('QwenImageEditPlus','list'), ('Flux2Klein','list'), ('QwenImageInpaint','canvas')])
def test_a_picture_of_the_garment_changes_the_result(name, way, spy):
    got = spy(name)
    paint = painter(name, **(dict(garment='canvas') if name=='QwenImageInpaint' else {}))
    assert paint.garment==way
    h,w = paint.size
    red,blue = (paint(IMAGES[:1], ['a coat'], [1], [MASK], [coat(c)])[0] for c in ('red','blue'))
    without = paint(IMAGES[:1], ['a coat'], [1], [MASK])[0]
    assert red.shape==(h,w,3) and not equal(red, blue) and not equal(red, without)
    assert equal(painter(name, garment='text')(IMAGES[:1], ['a coat'], [1], [MASK])[0], without)
    if way=='list': assert [im.size for im in got[0]['image']]==[(w,h)]*2 and len(got[2]['image'])==1
    if way=='image_reference': assert 'image_reference' in got[0] and 'image_reference' not in got[2]
    if way=='canvas':
        image,mask = (o[0] if isinstance(o, list) else o for o in (got[0]['image'], got[0]['mask_image']))
        assert (got[0]['width'],got[0]['height'])==(2*w,h) and image.size==mask.size==(2*w,h) and not np.asarray(mask)[:,:w].any()
        assert equal(np.asarray(mask)[:,w:], Image.fromarray(MASK).resize((w,h), Image.NEAREST).convert('L')) and tuple(np.asarray(image)[h//2,w//2])==(255,0,0)

@pytest.mark.parametrize('name', ['FluxKontextInpaint','Flux2KleinInpaint'])
def test_references_in_a_batch_stay_with_their_person(name):
    paint = painter(name)
    assert paint.batches
    both = paint(IMAGES[:2], ['a coat']*2, [1,2], [MASK]*2, [coat('red'),coat('blue')])
    for i,c in enumerate(['red','blue']): assert np.abs(paint(IMAGES[i:i+1], ['a coat'], [1+i], [MASK], [coat(c)])[0]-both[i]).max()<2e-3

def test_an_ip_adapter_takes_the_picture(spy):
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = diffusers.StableDiffusionInpaintPipeline(**tiny_sd())
        vision = CLIPVisionModelWithProjection(CLIPVisionConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16, projection_dim=16))
        pipe.register_modules(image_encoder=vision.eval(), feature_extractor=CLIPImageProcessor(size=dict(shortest_edge=32), crop_size=dict(height=32, width=32)))
        proj = {'proj.weight': torch.randn(4*32,16), 'proj.bias': torch.zeros(4*32), 'norm.weight': torch.ones(32), 'norm.bias': torch.zeros(32)}
        widths = [a.to_k.in_features for n,a in pipe.unet.named_modules() if n.endswith('attn2')]
        keys = {f'{2*i+1}.to_{k}_ip.weight': torch.randn(32, w) for i,w in enumerate(widths) for k in 'kv'}
        pipe.unet._load_ip_adapter_weights([dict(image_proj=proj, ip_adapter=keys)])
    paint = DiffusersPipeline(pipe, size=(64,32), steps=2, device='cpu')
    assert paint.garment=='ip_adapter_image' and not paint.batches
    both = paint(IMAGES[:2], ['a coat']*2, [1,2], [MASK]*2, [coat('red'),coat('blue')])
    for i,c in enumerate(['red','blue']): assert equal(paint(IMAGES[i:i+1], ['a coat'], [1+i], [MASK], [coat(c)])[0], both[i])
    assert not equal(paint(IMAGES[:1], ['a coat'], [1], [MASK], [coat('blue')])[0], both[0])


# --- try-on

class Parser:
    settings = dict(parser='a square')
    def __call__(self, images, rows=None):
        maps = [np.zeros(im.size[::-1], np.uint8) for im in images]
        for m in maps: m[len(m)//4:len(m)//2, 2:-2] = 5
        return maps

def nobody(images, rows=None): return [None]*len(images)

def dresser(name, **kw): return EditingTryOn(painter(name, **kw.pop('pipeline', {})), Parser(), nobody, **kw)

@pytest.mark.parametrize('name', ['StableDiffusionInpaint','FluxFill','FluxKontextInpaint','QwenImageEditPlus','ZImageInpaint','Flux2KleinInpaint'])
def test_try_on_by_several_classes(name):
    dress = dresser(name, batch=2)
    made = dress(IMAGES[:2], [coat('red')]*2, ['a red coat']*2, [1,2])
    for im,new in zip(IMAGES[:2], made):
        changed = (np.asarray(im)!=np.asarray(new)).any(-1)
        assert new.size==im.size and changed[22:32,12:28].mean()>.8 and not changed[45:].any()
    assert equal(dress(IMAGES[1:2], [coat('red')], ['a red coat'], [2])[0], made[1]) and not equal(dress(IMAGES[1:2], [coat('red')], ['a red coat'], [9])[0], made[1])
    s = dress.settings
    assert s['pipeline']==f'{name}Pipeline' and s['prompt']==dress.prompt and s['parser']=='a square' and s['part']=='upper' and s['steps']==2

def test_what_is_said():
    assert {prompt_for(painter(n)) for n in ('FluxKontext','QwenImageEdit')}=={PROMPTS[False,'']} and all('{text}' in p for p in PROMPTS.values())
    assert prompt_for(painter('FluxFill'))==PROMPTS[True,'canvas'] and prompt_for(painter('FluxFill', garment='text'))==PROMPTS[True,''] and prompt_for(painter('Flux2Klein'))==PROMPTS[False,'list']
    said = []
    dress = dresser('FluxFill', prompt='{text}! {more}', pipeline=dict(embed=lambda p: said.extend(p) or embedder('FluxFill')(p)))
    dress(IMAGES[:1], [coat('red')], ['a {red} coat'], [1])
    assert said==['a {red} coat! {more}']

def test_garments_without_a_picture():
    with pytest.raises(ValueError, match="garment='text'"): dresser('FluxFill')(IMAGES[:1], [None], ['a coat'], [1])
    assert dresser('FluxFill', pipeline=dict(garment='text'))(IMAGES[:1], [None], ['a coat'], [1])[0].size==IMAGES[0].size
    assert dresser('QwenImageEdit')(IMAGES[:1], [None], ['a coat'], [1])[0].size==IMAGES[0].size

def test_values_that_are_no_numbers_skip_one_person():
    pipe = built('FluxFill')
    with torch.no_grad(): pipe.vae.decoder.conv_out.bias[0] = float('nan')
    made = EditingTryOn(DiffusersPipeline(pipe, **arguments('FluxFill')), Parser(), nobody)(IMAGES[:2], [coat('red')]*2, ['a coat']*2, [1,2])
    assert [str(o) for o in made]==['the network gave values that are no numbers']*2 and all(isinstance(o, SkipImage) for o in made)

def test_the_whole_result_of_an_editor():
    whole,inside = (dresser('FluxKontext', edge=e)(IMAGES[:1], [None], ['a coat'], [1])[0] for e in (None,.02))
    assert (np.asarray(whole)!=np.asarray(IMAGES[0])).any(-1).mean()>.9>(np.asarray(inside)!=np.asarray(IMAGES[0])).any(-1).mean()


# --- loading

@pytest.mark.parametrize('name', ALL)
def test_saved_and_loaded(name, tmp_path):
    folder = tmp_path/'weights'
    tiny(name).save_pretrained(folder)
    paint = DiffusersPipeline.from_pretrained(str(folder), **{k: v for k,v in arguments(name).items() if k!='name'})
    assert type(paint.pipe)==type(tiny(name)) and paint.name=='weights' and index_of(folder)['_class_name']==f'{name}Pipeline'
    for part,net in tiny(name).components.items():
        if isinstance(net, torch.nn.Module): assert all(torch.equal(v, paint.pipe.components[part].state_dict()[k]) for k,v in net.state_dict().items())
    if name in ('FluxFill','QwenImageEditPlus','StableDiffusionInpaint'):
        assert equal(paint(IMAGES[:1], ['a coat'], [1], [MASK])[0], painter(name)(IMAGES[:1], ['a coat'], [1], [MASK])[0])

def test_another_class_for_the_same_weights(tmp_path):
    text = diffusers.QwenImagePipeline(**tiny_qwen(False)); text.save_pretrained(tmp_path/'qwen')
    diffusers.StableDiffusionPipeline(**tiny_sd(4)).save_pretrained(tmp_path/'sd')
    diffusers.Flux2KleinPipeline(**tiny_klein()).save_pretrained(tmp_path/'klein')
    def loaded(folder, **kw): return type(read_pipeline(tmp_path/folder, **kw)[0]).__name__
    assert loaded('qwen')=='QwenImageInpaintPipeline'==loaded('qwen', pipeline='QwenImageInpaintPipeline') and loaded('sd')=='StableDiffusionInpaintPipeline'
    assert loaded('klein')=='Flux2KleinPipeline' and loaded('klein', pipeline='Flux2KleinInpaintPipeline')=='Flux2KleinInpaintPipeline'
    inpaint = ClothesInpainter.from_pretrained(tmp_path/'klein', 'Flux2KleinInpaintPipeline', size=(64,32), steps=2, device='cpu', embed=embedder('Flux2Klein'))
    assert inpaint(IMAGES[:1], [MASK], 'a coat', [1])[0].size==IMAGES[0].size and inpaint.settings['pipeline']=='Flux2KleinInpaintPipeline' and inpaint.name=='klein'
    with pytest.raises(ValueError, match='takes no picture'): ClothesInpainter.from_pretrained(tmp_path/'qwen', 'QwenImagePipeline', device='cpu')
    dress = EditingTryOn.from_pretrained(Parser(), nobody, tmp_path/'klein', prompt='{text}', size=(64,64), steps=2, edge=.1, batch=3, device='cpu', embed=embedder('Flux2Klein'))
    assert (dress.edge,dress.batch,dress.prompt,dress.pipeline.garment)==(.1,1,'{text}','list') and dress(IMAGES[:1], [coat('red')], ['a'], [1])[0].size==IMAGES[0].size

def test_variants(tmp_path):
    tiny('FluxFill').save_pretrained(tmp_path/'f', variant='fp16')
    assert (tmp_path/'f'/'vae'/'diffusion_pytorch_model.fp16.safetensors').is_file()
    assert load_pipeline(tmp_path/'f', variant='fp16').transformer.config.in_channels==20
    with pytest.raises(ValueError, match='safetensors') as e: load_pipeline(tmp_path/'f')
    assert '\n' not in str(e.value)

SD_FILES = ['v1-5.ckpt','v1-5.safetensors','model_index.json','README.md','tokenizer/vocab.json','tokenizer/merges.txt','scheduler/scheduler_config.json','safety_checker/model.safetensors','safety_checker/config.json',
            *(f'{p}/{n}' for p in ('unet','vae') for n in ('config.json','diffusion_pytorch_model.bin','diffusion_pytorch_model.safetensors','diffusion_pytorch_model.fp16.safetensors')),
            'text_encoder/model.safetensors','text_encoder/model.fp16.safetensors','text_encoder/pytorch_model.bin']
FLUX_FILES = ['model_index.json','flux1-fill-dev.safetensors','ae.safetensors','dev_grid.jpg','tokenizer_2/spiece.model','tokenizer_2/tokenizer.json','text_encoder/model.safetensors','vae/diffusion_pytorch_model.safetensors',
              *(f'text_encoder_2/model-0000{i}-of-00002.safetensors' for i in (1,2)),'text_encoder_2/model.safetensors.index.json',
              *(f'transformer/diffusion_pytorch_model-0000{i}-of-00003.safetensors' for i in (1,2,3)), 'transformer/diffusion_pytorch_model-00001-of-00003.fp16.safetensors']

def wanted(files, index, variant=None):
    from huggingface_hub.utils import filter_repo_objects
    return {f for f in filter_repo_objects(files, allow_patterns=file_patterns(index, variant)) if not f.endswith(('.json','.txt'))}

def test_which_files_are_fetched():
    sd = dict(_class_name='StableDiffusionInpaintPipeline', unet=['diffusers','UNet2DConditionModel'], vae=['diffusers','AutoencoderKL'], text_encoder=['transformers','CLIPTextModel'], safety_checker=['stable_diffusion','X'],
              image_encoder=[None,None], scheduler=['diffusers','DDIMScheduler'], requires_safety_checker=True)
    whole = {'unet/diffusion_pytorch_model.safetensors','vae/diffusion_pytorch_model.safetensors','text_encoder/model.safetensors'}
    assert wanted(SD_FILES, sd)==whole==wanted(SD_FILES, {}) and wanted(SD_FILES, sd, 'fp16')=={f.replace('.safetensors', '.fp16.safetensors') for f in whole}
    flux = {p: ['diffusers','X'] for p in ('transformer','vae','text_encoder','text_encoder_2','tokenizer_2')}
    assert set(FLUX_FILES)-wanted(FLUX_FILES, flux)-{f for f in FLUX_FILES if f.endswith('.json')}=={'flux1-fill-dev.safetensors','ae.safetensors','dev_grid.jpg','transformer/diffusion_pytorch_model-00001-of-00003.fp16.safetensors'}
    with pytest.raises(ValueError, match='a part is called'): file_patterns({'../up': ['diffusers','X']})

def test_the_index_is_asked_for_first(monkeypatch, tmp_path):
    import huggingface_hub
    asked = []
    tiny('FluxFill').save_pretrained(tmp_path/'f')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda repo, allow_patterns=None, **k: asked.append((repo, allow_patterns)) or str(tmp_path/'f'))
    monkeypatch.setattr('ccreid.weights._reachable', lambda timeout: None)
    pipe,name = read_pipeline('black-forest-labs/FLUX.1-Fill-dev')
    assert type(pipe).__name__=='FluxFillPipeline' and name=='black-forest-labs/FLUX.1-Fill-dev'
    assert [a[0] for a in asked]==[name]*2 and asked[0][1]==['model_index.json'] and 'transformer/diffusion_pytorch_model.safetensors' in asked[1][1] and not any('unet' in p for p in asked[1][1])

def changed_index(folder, **kw):
    path = folder/'model_index.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **kw}))

def drop(folder):
    from safetensors.torch import load_file, save_file
    path = folder/'vae'/'diffusion_pytorch_model.safetensors'
    state = load_file(path); state.pop('decoder.conv_out.bias'); path.unlink(); save_file(state, path, dict(format='pt'))

def add(folder):
    from safetensors.torch import load_file, save_file
    path = folder/'vae'/'diffusion_pytorch_model.safetensors'
    state = load_file(path)|{'more': torch.ones(1)}; path.unlink(); save_file(state, path, dict(format='pt'))

def rewritten(text):
    def act(folder): p = folder/'transformer'/'diffusion_pytorch_model.safetensors'; p.unlink(); p.write_text(text)
    return act

def pickled(folder):
    p = folder/'transformer'/'diffusion_pytorch_model.safetensors'; p.unlink(); torch.save({}, folder/'transformer'/'diffusion_pytorch_model.bin')

def narrower(folder):
    p = folder/'transformer'/'config.json'; p.write_text(p.read_text().replace('"in_channels": 20', '"in_channels": 24'))

@pytest.mark.parametrize('act,words', [(lambda f: (f/'model_index.json').unlink(), 'there is no model_index.json'), (lambda f: (f/'model_index.json').write_text('<html>'), 'web page'),
    (lambda f: changed_index(f, _class_name='FluxPaintPipeline'), 'has no pipeline FluxPaintPipeline'), (lambda f: changed_index(f, _class_name=['mine','Pipe']), 'has no pipeline'),
    (lambda f: changed_index(f, vae=['diffusers','AutoencoderXY']), 'has no AutoencoderXY'), (drop, '1 weights are missing.*decoder.conv_out.bias'), (add, '1 unknown.*more'),
    (rewritten('version https://git-lfs.github.com/spec/v1\noid'), 'pointer of Git LFS'), (rewritten('<!DOCTYPE html><html>'), 'web page'), (rewritten(''), 'is empty'), (rewritten('xyz'), 'damaged'), (pickled, 'safetensors'), (narrower, 'x_embedder.weight')])
def test_wrong_folders_are_one_line(act, words, tmp_path):
    tiny('FluxFill').save_pretrained(tmp_path/'f')
    act(tmp_path/'f')
    for call in lambda: ClothesInpainter.from_pretrained(tmp_path/'f', device='cpu'), lambda: EditingTryOn.from_pretrained(Parser(), nobody, tmp_path/'f', device='cpu'):
        with pytest.raises(ValueError, match=words) as e: call()
        assert '\n' not in str(e.value) and 'f holds no pipeline of diffusers with safetensors' in str(e.value)

def test_weights_that_are_nowhere(monkeypatch, tmp_path):
    monkeypatch.setenv('CCREID_WEIGHTS', str(tmp_path))
    with pytest.raises(WeightsNotFound) as e: EditingTryOn.from_pretrained(Parser(), nobody, 'klein-at-home')
    assert '\n' not in str(e.value) and str(tmp_path) in str(e.value)
    with pytest.raises(ValueError, match='has no pipeline torch'): pipeline_class('torch')

def test_words_of_the_index_are_kept(tmp_path):
    "Which are no parts: whether a network is distilled, how an empty text is told"
    for name,words in {'Flux2KleinInpaint': dict(is_distilled=True), 'StableDiffusionXLInpaint': dict(force_zeros_for_empty_prompt=True)}.items():
        folder = tmp_path/name
        tiny(name).save_pretrained(folder)
        changed_index(folder, **words)
        config = read_pipeline(folder)[0].config
        assert {k: config[k] for k in words}==words, name


# --- where it runs

def test_a_network_that_was_loaded_in_its_type_is_moved_and_not_cast(tmp_path, monkeypatch):
    "What a class keeps in float32 stays there, and nothing is warned of"
    said = []
    monkeypatch.setattr(diffusers.models.modeling_utils.logger, 'warning', said.append)
    built('FluxInpaint').transformer.to('cpu', torch.float32)
    assert 'kept in float32: []' in said.pop()                              # what diffusers says of any cast
    tiny('FluxFill').save_pretrained(tmp_path/'f')
    pipe = load_pipeline(tmp_path/'f', dtype=torch.bfloat16)
    kept = pipe.transformer.proj_out.float()                                # as for a class that keeps it
    paint = DiffusersPipeline(pipe, size=(64,32), device='cpu', dtype=torch.bfloat16)
    assert kept.weight.dtype==torch.float32 and main_dtype(paint.pipe.transformer)==main_dtype(paint.pipe.vae)==torch.bfloat16
    DiffusersPipeline(pipe, size=(64,32), device='cpu', dtype=torch.float32)
    assert {p.dtype for p in pipe.transformer.parameters()}=={torch.float32} and not said

def test_offload(monkeypatch):
    for kw in dict(device='cpu'),dict(device='mps'):
        with pytest.raises(ValueError, match='offload takes networks of diffusers to a CUDA device') as e: painter('FluxFill', offload=True, **kw)
        assert '\n' not in str(e.value)
    pipe,asked = built('FluxFill'),[]
    monkeypatch.setattr(type(pipe), 'enable_model_cpu_offload', lambda self, **kw: asked.append(kw))
    monkeypatch.setattr(type(pipe), 'to', lambda self, *a: pytest.fail('all of it was moved'))
    for make in DiffusersPipeline,ClothesInpainter: make(pipe, size=(64,32), offload=True, device='cuda:0', dtype=torch.float32)
    assert [str(kw['device']) for kw in asked]==['cuda:0']*2
    with pytest.raises(ValueError, match='Marker is to run on cuda'): place_pipeline(Marker(), 'cuda', torch.float16, True)
    import sys
    monkeypatch.setitem(sys.modules, 'accelerate', None)
    with pytest.raises(ImportError, match=r'ccreid\[generate\]'): DiffusersPipeline(pipe, size=(64,32), offload=True, device='cuda')

def test_weights_made_for_few_steps(tmp_path, capsys):
    tiny('Flux2KleinInpaint').save_pretrained(tmp_path/'klein'); changed_index(tmp_path/'klein', is_distilled=True)
    def paced(*args, **kw):
        paint = DiffusersPipeline(*args, size=(64,32), device='cpu', **kw)
        return paint.steps,paint.guidance,capsys.readouterr().out
    klein = read_pipeline(tmp_path/'klein')[0]
    steps,guidance,said = paced(klein, name='klein')
    assert (steps,guidance)==(4,1.) and said=='klein was made for few steps: 4 steps, guidance 1\n'
    assert paced(klein, steps=9, guidance=2.)==(9,2.,'') and paced(klein, steps=9)[:2]==(9,1.)
    assert paced(tiny('Flux2KleinInpaint'), name='klein')==(50,8.,'')             # these weights say nothing
    assert paced(tiny('ZImageInpaint'), name='Tongyi-MAI/Z-Image-Turbo')[:2]==(8,0.) and paced(tiny('ZImageInpaint'), name='Z-Image')[:2]==(50,5.)
    fast = built('FluxInpaint'); fast.transformer.register_to_config(guidance_embeds=False)
    assert paced(fast)[:2]==(4,0.) and paced(tiny('FluxInpaint'))[:2]==(28,7.)
    inpaint = ClothesInpainter(fast, size=(64,32), device='cpu')
    assert (inpaint.settings['steps'], inpaint.settings['guidance'])==(4,0.)

# --- files in pieces, and the index before all files

def test_weights_in_pieces(tmp_path):
    tiny('FluxFill').save_pretrained(tmp_path/'f', max_shard_size='8KB')
    assert len(list((tmp_path/'f'/'transformer').glob('*-of-*.safetensors')))>1
    net = load_pipeline(tmp_path/'f').transformer
    assert all(torch.equal(v, net.state_dict()[k]) for k,v in tiny('FluxFill').transformer.state_dict().items())
    piece = sorted((tmp_path/'f'/'transformer').glob('*-of-*.safetensors'))[-1]
    piece.unlink()
    with pytest.raises(ValueError, match='holds no pipeline') as e: load_pipeline(tmp_path/'f')
    assert '\n' not in str(e.value)

def test_a_class_that_paints_into_nothing_is_refused_by_the_index(monkeypatch, tmp_path):
    import huggingface_hub
    asked = []
    (tmp_path/'model_index.json').write_text(json.dumps(dict(_class_name='DDPMPipeline')))
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda repo, allow_patterns=None, **k: asked.append(allow_patterns) or str(tmp_path))
    monkeypatch.setattr('ccreid.weights._reachable', lambda timeout: None)
    with pytest.raises(ValueError, match='DDPMPipeline takes no picture') as e: read_pipeline('some/noise')
    assert '\n' not in str(e.value) and asked==[['model_index.json']]
