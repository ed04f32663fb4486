"Garments, try-off and try-on: the library on disk, diffusers' own code with tiny random networks, masks against OpenCV, and the labels that make hard negatives"
import errno,json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given,strategies as st
from PIL import Image,ImageDraw
import ccreid.compat
from diffusers import AutoencoderKL,DDIMScheduler,UNet2DConditionModel
from safetensors.torch import save_file

import ccreid.files as files
from ccreid.data.mannequins import DECLARED,MannequinWorld,parse_caption,truth
from ccreid.data.samples import DataError,ReIDDataset,validate
from ccreid.data.transforms import read_image
from ccreid.generation.expansion import SkipImage
from ccreid.generation import tiny_networks
from ccreid.generation.parsing import tiny_parser
from ccreid.generation.stand_ins import MannequinKeypoints,MannequinParser,MannequinTryOff,MannequinTryOn
from ccreid.generation.jobs import add_samples,label_garments
from ccreid.hsgl import garments as garments_module
from ccreid.hsgl.definitions import hard_negatives,hard_pair_counts,hard_pairs_in
from ccreid.hsgl.garments import INDEX,GarmentLibrary,collect_garments,show_garments
from ccreid.generation.body_masks import upper_body_mask
from ccreid.hsgl.selection import select
from ccreid.generation.try_off import DiffusionTryOff,attention_blocks,garment_on_white,load_attention
from ccreid.hsgl.try_on import DressUp,generate_hard_samples,show_hard_samples
from ccreid.weights import WeightsNotFound


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    return MannequinWorld(identities=(6,0,2), outfits=2, cameras=3, images=(3,1,1), size=(64,32), seed=3).write(tmp_path_factory.mktemp('world')/'prcc', layout='prcc', workers=1)

@pytest.fixture(scope='module')
def selection(dataset): return select(dataset, MannequinKeypoints(), n=2, m=3)

@pytest.fixture(scope='module')
def library(selection, tmp_path_factory):
    return collect_garments(selection.garments, MannequinTryOff((64,48)), GarmentLibrary(tmp_path_factory.mktemp('garments')/'library'))


# --- the library --------------------------------------------------------------------------------------------------------------------------

def a_garment(seed=0, size=(12,9)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*size,3)).astype(np.uint8)),rng.random(size)<.6


@given(st.lists(st.text(min_size=1, max_size=80).filter(lambda t: t.split()), min_size=1, max_size=5))
def test_what_goes_in_comes_out(tmp_path_factory, texts):
    root = tmp_path_factory.mktemp('library')
    library = GarmentLibrary(root/'l')
    for i,t in enumerate(texts): library.add(*a_garment(i), t, source=f'/data/{t}.jpg')
    again = GarmentLibrary(root/'l')
    assert len(again)==len(texts) and len(set(again.names))==len(texts) and again.digest==library.digest
    for i,(g,t) in enumerate(zip(again, texts)):
        image,mask = a_garment(i)
        assert g.text==' '.join(t.split()) and g.source==f'/data/{t}.jpg' and g.image.tobytes()==image.tobytes() and np.array_equal(g.mask, mask)
    inside = {p.resolve().relative_to((root/'l').resolve()).as_posix() for p in root.rglob('*') if p.is_file()}      # nothing was written elsewhere
    assert inside=={INDEX}|{f'{k}/{n}.png' for k in ('images','masks') for n in again.names}


@given(st.text(max_size=20) | st.sampled_from(['..','../x','a/b','a\\b','/etc/x','C:x','a.png','A','ä','-a','a'*65,'a\n','nul\0']))
def test_no_name_leaves_the_folder(tmp_path_factory, name):
    root = tmp_path_factory.mktemp('library')
    library = GarmentLibrary(root/'l')
    library.add(*a_garment(), 'a coat')
    before = (root/'l'/INDEX).read_text()
    if name and name[0] in 'abcdefghijklmnopqrstuvwxyz0123456789' and set(name)<=set('abcdefghijklmnopqrstuvwxyz0123456789-') and len(name)<65: library.add(*a_garment(), 'a coat', name=name)
    elif name:
        with pytest.raises(DataError): library.add(*a_garment(), 'a coat', name=name)
        (root/'l'/INDEX).write_text(before.replace('"000-a-coat"', json.dumps(name)))     # nor can an index from somebody else
        with pytest.raises(DataError): GarmentLibrary(root/'l')
    assert all((root/'l').resolve() in p.resolve().parents for p in root.rglob('*') if p.is_file())


@pytest.mark.parametrize('stop', [0,1,2])
def test_a_full_disk_at_every_file_leaves_a_whole_library(tmp_path, monkeypatch, stop):
    library = GarmentLibrary(tmp_path/'l')
    library.add(*a_garment(0), 'a coat')
    real,calls = files.write_whole,[]
    def full(path, data, tmp):
        calls.append(path)
        if len(calls)>stop:
            Path(tmp).write_bytes(data[:len(data)//2]); Path(tmp).unlink()
            raise OSError(errno.ENOSPC, 'No space left on device')
        real(path, data, tmp=tmp)
    monkeypatch.setattr(garments_module, 'write_whole', full)
    with pytest.raises(OSError): library.add(*a_garment(1), 'a shirt')
    for l in (library, GarmentLibrary(tmp_path/'l')): assert [g.text for g in l]==['a coat']
    monkeypatch.undo()
    library.add(*a_garment(1), 'a shirt')
    assert [(g.text, g.mask.sum()) for g in GarmentLibrary(tmp_path/'l')]==[(t, a_garment(i)[1].sum()) for i,t in enumerate(('a coat','a shirt'))]


def test_a_name_is_given_once(tmp_path):
    library = GarmentLibrary(tmp_path/'l')
    library.add(*a_garment(0), 'a coat', name='coat')
    for l in (library, GarmentLibrary(tmp_path/'l')):
        with pytest.raises(DataError, match="a garment 'coat'"): l.add(*a_garment(1), 'another coat', name='coat')
        assert l['coat'].text=='a coat' and l['coat'].image.tobytes()==a_garment(0)[0].tobytes()


def test_damaged_libraries_say_so(tmp_path):
    library = GarmentLibrary(tmp_path/'l')
    library.add(*a_garment(), 'a coat')
    good = (tmp_path/'l'/INDEX).read_bytes()
    for bad in (b'', b'[', b'[]', b'7', b'{}', b'{"garments": 7}', b'{"garments": [7]}', b'{"garments": [{"name": "a"}]}', good[:-20], b'\xff\xfe'):
        (tmp_path/'l'/INDEX).write_bytes(bad)
        with pytest.raises(DataError) as e: GarmentLibrary(tmp_path/'l')
        assert '\n' not in str(e.value)
    (tmp_path/'l'/INDEX).write_bytes(good)
    for kind in ('images','masks'):
        p = tmp_path/'l'/kind/'000-a-coat.png'
        data = p.read_bytes()
        for damage in (data[:-5], data[:30], b''):
            p.write_bytes(damage)
            with pytest.raises(DataError, match='not what was saved'): GarmentLibrary(tmp_path/'l')[0]
        p.unlink()
        with pytest.raises(DataError, match='is missing'): GarmentLibrary(tmp_path/'l')[0]
        p.write_bytes(data)
    assert GarmentLibrary(tmp_path/'l')[0].text=='a coat'


def test_a_garment_of_any_mode_is_kept_as_it_is_read(tmp_path):
    image,mask = a_garment(0)
    grey = np.asarray(image.convert('L'))
    library = GarmentLibrary(tmp_path/'l')
    for name,im,want in (('grey', image.convert('L'), image.convert('L').convert('RGB')), ('cmyk', image.convert('CMYK'), image.convert('CMYK').convert('RGB')),
                         ('deep', Image.fromarray(grey.astype(np.uint16)*257), image.convert('L').convert('RGB'))):
        library.add(im, mask, 'a coat', name=name)
        assert GarmentLibrary(tmp_path/'l')[name].image.tobytes()==want.tobytes()
    with pytest.raises(ValueError, match='floating-point'): library.add(Image.fromarray(grey.astype(np.float32)), mask, 'a coat')
    assert GarmentLibrary(tmp_path/'l').names==['grey','cmyk','deep']


def test_collecting_skips_and_goes_on(selection, tmp_path, capsys):
    "Pictures without a garment are counted; what is there is not taken twice; a stop in between is made up for"
    t,calls = selection.garments,[]
    def tryoff(images, seeds=None, rows=None):
        calls.append((rows[0]['path'], seeds))
        if rows[0]['path']==t.path[1]: return [None]
        if len(calls)==3: raise KeyboardInterrupt
        return [(*a_garment(len(calls)), 'a coat')]
    library = GarmentLibrary(tmp_path/'l')
    with pytest.raises(KeyboardInterrupt): collect_garments(t, tryoff, library)
    assert library.sources==[t.path[0]]
    collect_garments(t, tryoff, GarmentLibrary(tmp_path/'l'), seed=5)
    assert GarmentLibrary(tmp_path/'l').sources==[t.path[0], t.path[2]]
    assert [c[0] for c in calls]==[t.path[0], t.path[1], t.path[2], t.path[1], t.path[2]] and calls[0][1] is None and calls[-1][1]==[5]
    assert f'1 of 3 pictures gave no garment, the first: {t.path[1]}' in capsys.readouterr().out


def test_mannequins_give_what_they_wear(library, selection):
    assert library.sources==selection.garments.path.tolist()
    for g in library:
        (said,) = parse_caption(g.text)
        assert said in truth(g.source).garments and said.slot in ('outer','upper','dress')
        assert g.mask.shape==(64,48) and .05<g.mask.mean()<.95
    assert len(show_garments(library).axes)==2*len(library)


# --- try-off by diffusion -----------------------------------------------------------------------------------------------------------------

def tiny_unet(): return tiny_networks.tiny_unet(block_out_channels=(16,16), attention_head_dim=8, cross_attention_dim=24)
def tiny_vae(): return tiny_networks.tiny_vae((16,16))


@pytest.fixture(scope='module')
def tryoff_weights(tmp_path_factory):
    "Folders as the hub has them: an inpainting network, an autoencoder, and a file with attention blocks alone"
    root = tmp_path_factory.mktemp('weights')
    torch.manual_seed(0)
    unet = tiny_unet()
    unet.save_pretrained(root/'base'/'unet'); DDIMScheduler().save_pretrained(root/'base'/'scheduler'); tiny_vae().save_pretrained(root/'vae')
    state = {k: torch.randn_like(v)*.1 for k,v in attention_blocks(unet).state_dict().items()}
    save_file(state, root/'tops.safetensors')
    return root,state


def from_files(root, parser, **kw):
    return DiffusionTryOff.from_pretrained(parser, weights=root/'tops.safetensors', base=root/'base', vae=root/'vae', device='cpu', **{'size':(64,48), 'steps':3, **kw})


def test_tryoff_from_files(tryoff_weights, selection):
    "The real loading and the real call: sizes, seeds, and the same result in any company"
    root,state = tryoff_weights
    net = from_files(root, MannequinParser())
    assert all(torch.equal(v, state[k]) for k,v in attention_blocks(net.unet).state_dict().items())
    rows = selection.garments.to_dict('records')
    images = [read_image(r['path']) for r in rows]
    got = net(images, rows=rows)
    assert len(got)==3
    for image,mask,text in got:
        assert image.size==(48,64) and mask.shape==(64,48) and mask.dtype==bool and text=='casual garment'
        assert (np.asarray(image)[~mask]==255).all()
    assert [o[0].tobytes() for o in net(images[1:], rows=rows[1:])]==[o[0].tobytes() for o in got[1:]]
    assert from_files(root, MannequinParser())(images, rows=rows)[0][0].tobytes()==got[0][0].tobytes()
    assert net(images, seeds=[36]*3, rows=rows)[0][0].tobytes()==got[0][0].tobytes()!=net(images, seeds=[1]*3, rows=rows)[0][0].tobytes()
    assert from_files(root, MannequinParser(), text=lambda im: f'{im.width} wide')(images[:1], rows=rows[:1])[0][2]=='48 wide'


def test_the_two_halves_the_mask_and_guidance(tryoff_weights, selection):
    "What the network sees: noise, mask on top only, the cut person over the whole one; below, nothing, in the unconditional half"
    root,_ = tryoff_weights
    net = from_files(root, MannequinParser(), steps=1)
    row = selection.garments.iloc[0].to_dict()
    image,worn = read_image(row['path']),np.isin(truth(row['path']).parsing, (5,6,7,10))
    seen,forward = [],net.unet.forward
    net.unet.forward = lambda x, t, **kw: seen.append((x, kw)) or forward(x, t, **kw)
    net.lay_out(image, worn, 0)
    (x,kw), = seen
    assert x.shape==(2,9,2*32,24) and kw['encoder_hidden_states'] is None    # this autoencoder halves
    noise,m,known = x[:,:4],x[:,4:5],x[:,5:]
    assert torch.equal(noise[0], noise[1]) and torch.equal(m[0], m[1])
    assert m[:,:,32:].abs().max()==0 and .02<m[:,:,:32].mean()<.9 and set(m.unique().tolist())<={0.,1.}
    assert known[0,:,32:].abs().max()==0 and known[1,:,32:].abs().max()>0 and torch.equal(known[0,:,:32], known[1,:,:32])
    assert not torch.allclose(known[1,:,:32], known[1,:,32:])
    out = {}
    for g in (0., 1., 2.5): net.guidance = g; out[g] = np.asarray(net.lay_out(image, worn, 0)).astype(int)
    assert np.abs(out[0.]-out[1.]).max()>0 and np.abs(out[1.]-out[2.5]).max()>0


def tryoff_by_hand(net, image, worn, seed):
    "The released loop once more: encode, stack, fifty steps of DDIM with eta 1, the upper half decoded"
    W,H,g = 48,64,torch.Generator().manual_seed(seed)
    pixels = torch.tensor(np.array(image.resize((W,H)))).permute(2,0,1)[None].float()/127.5-1
    m = torch.tensor(np.array(Image.fromarray(worn).resize((W,H)))).float()[None,None]
    scale = net.vae.config.scaling_factor
    holes = pixels.clone()
    holes[:,:,m[0,0]==1] = 0
    top = net.vae.encode(holes).latent_dist.sample(g)*scale
    bottom = net.vae.encode(pixels).latent_dist.sample(g)*scale
    h,w = top.shape[-2:]
    small = m[:,:,::H//h,::W//w]
    mask = torch.zeros(1,1,2*h,w); mask[:,:,:h] = small
    x = torch.randn(1,4,2*h,w, generator=g)
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(net.steps)
    for t in scheduler.timesteps:
        def noise(lower): return net.unet(torch.cat([x, mask, torch.cat([top,lower], 2)], 1), t, encoder_hidden_states=None).sample
        without,with_ = noise(torch.zeros_like(bottom)),noise(bottom)
        x = scheduler.step((1-net.guidance)*without+net.guidance*with_, t, x, eta=1., generator=g).prev_sample
    return net.vae.decode(x[:,:,:h]/scale).sample[0]/2+.5


@pytest.mark.parametrize('guidance', [1., 2.5])
def test_tryoff_is_the_released_loop(tryoff_weights, selection, guidance):
    net = from_files(tryoff_weights[0], MannequinParser(), steps=4, guidance=guidance)
    for k in range(2):
        path = selection.garments.path[k]
        image,worn = read_image(path),np.isin(truth(path).parsing, (5,6,7,10))
        with torch.no_grad(): expected = tryoff_by_hand(net, image, worn, 7)
        got = torch.tensor(np.array(net.lay_out(image, worn, 7))).permute(2,0,1)/255.
        assert expected.min()<1 and (got-expected.clamp(0, 1)).abs().max()<1.1/255
        assert got.std()>.02


def test_the_ground_is_white(tryoff_weights, selection):
    half = np.arange(64)[:,None]+np.zeros((1,48))<32
    row = selection.garments.iloc[0].to_dict()
    net = from_files(tryoff_weights[0], MannequinParser(), ground=lambda im: half)
    (image,mask,_), = net([read_image(row['path'])], rows=[row])
    assert np.array_equal(mask, half) and (np.asarray(image)[32:]==255).all() and (np.asarray(image)[:32]<255).any()


def test_cross_attentions_are_bypassed(tryoff_weights, selection):
    root,_ = tryoff_weights
    row = selection.garments.iloc[0].to_dict()
    net = from_files(root, MannequinParser())
    before = net([read_image(row['path'])], rows=[row])[0][0].tobytes()
    for name,p in net.unet.named_parameters():
        if '.attn2.' in name: p.data.add_(1.)
    assert net([read_image(row['path'])], rows=[row])[0][0].tobytes()==before
    for name,p in net.unet.named_parameters():
        if '.attn1.to_v' in name: p.data.add_(1.)
    assert net([read_image(row['path'])], rows=[row])[0][0].tobytes()!=before


def test_tryoff_refuses(tryoff_weights, tmp_path, monkeypatch):
    root,state = tryoff_weights
    nothing = from_files(root, lambda images, rows=None: [np.zeros((im.height,im.width), np.uint8) for im in images])
    assert nothing([Image.new('RGB', (32,64))])==[None]
    wrong = from_files(root, lambda images, rows=None: [np.full((9,9), 5, np.uint8) for _ in images])
    with pytest.raises(ValueError, match=r'label map is \(9, 9\), the image \(64, 32\)'): wrong([Image.new('RGB', (32,64))])
    real = from_files(root, tiny_parser(), steps=1)                            # a real SegFormer finds something or nothing, and both are fine
    assert all(o is None or o[0].size==(48,64) for o in real([Image.fromarray(np.random.default_rng(i).integers(0, 256, (64,32,3)).astype(np.uint8)) for i in range(3)]))
    with pytest.raises(ValueError, match='is of another network'): load_attention(tiny_unet(), {k: v for k,v in state.items() if 'proj_in' not in k})
    with pytest.raises(ValueError, match='is of another network'): load_attention(tiny_unet(), {**state, 'x':torch.zeros(1)})
    monkeypatch.setenv('CCREID_WEIGHTS', str(tmp_path))
    with pytest.raises(WeightsNotFound) as e: DiffusionTryOff.from_pretrained(None)
    assert '\n' not in str(e.value) and 'ixarchakos/tryOffAnyone' in str(e.value)
    with pytest.raises(WeightsNotFound, match='stable-diffusion-inpainting'): DiffusionTryOff.from_pretrained(None, weights=root/'tops.safetensors')


def test_tryoff_of_two_people_and_of_odd_pictures(tryoff_weights, selection):
    "The larger person's garment is meant; 16 bits are scaled and not cut off, so a grey picture gives the same in 8 and in 16 bits"
    m = truth(selection.garments.path[0])
    small = np.asarray(Image.fromarray(m.parsing).resize((16,32), Image.Resampling.NEAREST))
    two = np.concatenate([np.pad(small, ((20,12),(0,0))), m.parsing], 1)
    net,seen = from_files(tryoff_weights[0], lambda images, rows=None: [two]),[]
    net.lay_out = lambda image, worn, seed: seen.append(worn) or Image.new('RGB', (48,64), 'red')
    net([Image.new('RGB', (48,64))])
    assert np.isin(two, (5,6,7,10))[:,:16].any() and not seen[0][:,:16].any() and np.array_equal(seen[0][:,16:], np.isin(m.parsing, (5,6,7,10)))
    grey = m.image.convert('L')
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16)*257)
    net = from_files(tryoff_weights[0], lambda images, rows=None: [m.parsing]*len(images), steps=2)
    a,b,c = (o[0].tobytes() for o in net([grey, deep, grey.convert('RGB')]))
    assert a==b==c
    assert net([grey.convert('CMYK')])[0][0].size==(48,64)


def test_tryoff_defaults_are_the_released_ones(tryoff_weights): # 384×512, 50 steps, guidance 2.5, seed 36, and the words of the released try-on
    parts = tiny_unet(),tiny_vae(),DDIMScheduler()
    net = DiffusionTryOff(*parts, None)
    assert (net.size, net.steps, net.guidance, net.seed, net.text)==((512,384), 50, 2.5, 36, 'casual garment')
    m = np.array([[4,5,6,7,8,9,10,11,12]])
    seen = []
    net = DiffusionTryOff(*parts, lambda images, rows=None: [m])
    net.lay_out = lambda image, worn, seed: seen.append((worn, seed)) or Image.new('RGB', (9,1), 'red')
    net([Image.new('RGB', (9,1))])
    assert seen[0][0].tolist()==[[False,True,True,True,False,False,True,False,False]] and seen[0][1]==36


def test_white_ground():
    im = Image.new('RGB', (30,30), (250,251,252))
    im.paste((10,200,30), (5,5,20,25)); im.paste('white', (9,9,12,12)); im.paste((250,250,200), (22,22,28,28))
    mask = garment_on_white(im)
    assert mask.sum()==15*20+36 and mask[10,10] and not mask[0,0]


# --- the mask of the try-on ---------------------------------------------------------------------------------------------------------------

def mask_by_opencv(labels, keypoints, arm_width=60):
    "The released rule once more, with OpenCV, at 384×512"
    W,H = 384,512
    p = cv2.resize(labels, (W,H), interpolation=cv2.INTER_NEAREST_EXACT)
    has = lambda *k: np.isin(p, k)
    keep = has(18,19,1,4,9,12).astype(np.uint8)                                # shoes, hat, glasses, trousers, skirt
    arms = np.zeros((H,W), np.uint8)
    for label,points in ((14,(11,13,15)), (15,(12,14,16))):
        arm = has(label).astype(np.uint8)
        if keypoints is not None and all(keypoints[i,3]>=.5 for i in points):
            s,e,w = (keypoints[i,:2]*[W,H] for i in points)
            d = ImageDraw.Draw(canvas := Image.new('L', (W,H)))
            d.line([*s, *e, *(e+1.2*(w-e))], 1, arm_width, 'curve')
            d.arc([*(s-arm_width//2), *(s+arm_width//2)], 0, 360, 1, arm_width//2)
            line = np.array(canvas)
            keep |= arm & (1-line)
            arm = line
        arms |= arm
    box = np.ones((5,5), np.uint8)
    m = cv2.dilate(has(5,6,7,10).astype(np.uint8), box, iterations=5) | cv2.dilate(arms, box, iterations=4)
    m[(keep | has(1,4,13))>0] = 0
    m[[0,-1]] = 0; m[:,[0,-1]] = 0
    outside = m.copy()
    cv2.floodFill(outside, np.zeros((H+2,W+2), np.uint8), (0,0), 2)
    m = (outside!=2).astype(np.uint8)
    n,region,stats,_ = cv2.connectedComponentsWithStats(m, connectivity=8)
    return region==1+stats[1:,cv2.CC_STAT_AREA].argmax() if n>1 else m>0


def test_mask_against_opencv():
    world = MannequinWorld(identities=(10,0,1), size=(128,64), seed=5)
    for i in range(10):
        m = world.render(i, i%2, i%3, view=('front','left','back-right')[i%3])
        for k in (None, m.keypoints):
            a,b = upper_body_mask(m.parsing, k),mask_by_opencv(m.parsing, k)
            assert (a|b).sum()==0 or (a&b).sum()/(a|b).sum()>.99, i


@given(st.integers(0, 10**6))
def test_mask_keeps_its_promises(seed):
    "On any label map: one piece, no border, nothing that must stay unless it is a filled hole"
    rng = np.random.default_rng(seed)
    labels = cv2.resize(rng.choice([0,2,5,6,9,12,13,14,15,18], (8,6)).astype(np.uint8), (96,128), interpolation=cv2.INTER_NEAREST)
    k = np.concatenate([rng.random((33,3)), rng.random((33,1))], 1)
    m = upper_body_mask(labels, k, size=(128,96))
    n,region = cv2.connectedComponents(m.astype(np.uint8), connectivity=8)
    assert n<=2 and not (m[[0,-1]].any() or m[:,[0,-1]].any())
    holes = cv2.connectedComponents((~m).astype(np.uint8), connectivity=4)[0]
    assert holes==2 or not m.any() or cv2.connectedComponents((~m).astype(np.uint8), connectivity=8)[0]==2
    if not np.isin(labels, (5,6,7,10,14,15)).any() and k[11:17,3].max()<.5: assert not m.any()


# --- hard samples -------------------------------------------------------------------------------------------------------------------------

@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=30), st.integers(-1, 7), st.sets(st.integers(0, 5)))
def test_garments_and_labels_are_one_to_one_and_without_gaps(pairs, last, known):
    samples = pd.DataFrame(dict(variant=[v for v,_ in pairs], identity=[i for _,i in pairs], garment=[f'g{v}' for v,_ in pairs], clothes=-1), columns=['variant','identity','garment','clothes'])
    train = pd.DataFrame(dict(split='train', clothes=[*range(last+1), *range(last+1, last+1+len(known))], garment=['']*(last+1)+[f'g{v}' for v in sorted(known)]))
    got = label_garments(samples, pd.concat([train, pd.DataFrame(dict(split='test', clothes=[99], garment=['']))]))
    assert got.clothes.dtype==np.int64
    label = dict(zip(got.garment, got.clothes))
    assert len(set(label.values()))==len(label) and all((got.clothes==got.garment.map(label)).tolist())
    new = sorted(c for g,c in label.items() if int(g[1:]) not in known)
    assert new==list(range(last+1+len(known), last+1+len(known)+len(new)))
    for v,c in zip(sorted(known), range(last+1, 99)): assert label.get(f'g{v}', c)==c
    ordered = [label[g] for g in sorted(label) if int(g[1:]) not in known]
    assert ordered==sorted(ordered)                                            # in the order of the library


@pytest.fixture(scope='module')
def made(selection, library, dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp('shsg')/'out'
    return out,generate_hard_samples(selection.people, library, MannequinTryOn(), out, dataset, seed=4, progress=False)


def test_hard_samples(made, selection, library, dataset):
    out,t = made
    validate(t)
    assert len(t)==len(selection.people)*len(library)
    source = dataset.samples.set_index('path')
    for r in t.to_dict('records'):
        s,g = source.loc[r['source']],library[r['garment']]
        assert (r['identity'], r['camera'], r['modality'], r['split'], r['generated_by'])==(s.identity, s.camera, 'visible', 'train', 'SHSG')
        assert library.names[r['variant']]==g.name and r['clothes']==dataset.clothes+r['variant'] and r['text']==g.text
        assert Path(r['path']).parent.parent.parent==out and Image.open(r['path']).size==Image.open(r['source']).size
        said, = parse_caption(g.text)
        assert said not in truth(r['source']).garments or np.abs(np.asarray(Image.open(r['path'])).astype(int)-np.asarray(Image.open(r['source']))).mean()<3
    assert t.path.is_unique and set(t.columns)==set(dataset.samples.columns)|{'variant','generated_by','source','garment','text'}


def test_names_do_not_collide_where_the_released_ones_do(dataset, library, tmp_path):
    "Pictures of cameras A, B and C with one number: the released script writes them all to one file"
    one = dataset.train[(dataset.train.identity==0) & dataset.train.path.str.endswith('rgb001.jpg')]
    other = dataset.train[(dataset.train.identity==1) & dataset.train.path.str.endswith('rgb001.jpg')]
    t = generate_hard_samples(pd.concat([one, other]), library, lambda images, *a, rows=None: images, tmp_path/'out', dataset, progress=False, accept='unchanged')
    released = {f'{Path(s).parent.name}_{101+v}_{"_".join(Path(s).stem.split("_")[1:])}.png' for s,v in zip(t.source, t.variant)}
    assert len(one)>1 and len(t)==(len(one)+len(other))*len(library)>len(released)
    assert t.path.nunique()==len(t) and all(np.array_equal(read_image(a), read_image(b)) for a,b in zip(t.path, t.source))
    assert sorted(set(t.camera))==sorted(set(one.camera)) and len(set(one.camera))==len(one)


def test_hard_negatives_exist_now(made, dataset, selection, library):
    _,t = made
    more = add_samples(dataset, t)
    before,after = hard_pairs_in(dataset.train),hard_pairs_in(more.train)
    assert before['hard_negative']==0
    people = t.groupby('identity').source.nunique()
    by_hand = len(library)*(people.sum()**2-(people**2).sum())                 # per garment: ordered pairs of images of different people
    assert after['hard_negative']==by_hand>0
    if people.nunique()==1: assert by_hand==hard_pair_counts([1]*len(people), len(library), int(people.iloc[0]))[1]
    mask = hard_negatives(torch.tensor(more.train.identity.to_numpy()), torch.tensor(more.train.clothes.to_numpy()))
    assert mask.sum().item()==by_hand
    assert after['hard_positive']>before['hard_positive'] and more.clothes==dataset.clothes+len(library) and more.identities==dataset.identities
    assert len(more.query)==len(dataset.query) and len(dataset.samples)+len(t)==len(more.samples) and 'SHSG' in more.notes[-1]
    assert len(show_hard_samples(t, people=3).axes)==3*(1+len(library))


def test_any_portions_give_the_same_files(made, selection, library, dataset, tmp_path):
    "Two shards with a limit, in small batches, finished by a third call: the same images and labels as in one go"
    _,whole = made
    go = lambda **kw: generate_hard_samples(selection.people, library, MannequinTryOn(), tmp_path/'out', dataset, seed=4, progress=False, **kw)
    part = go(shard=(1,2), limit=3, batch=2)
    assert len(part)==3
    go(shard=(0,2), batch=5)
    again = go(batch=1)
    same = [c for c in whole if c!='path']
    pd.testing.assert_frame_equal(again[same], whole[same])
    assert [Path(p).read_bytes() for p in again.path]==[Path(p).read_bytes() for p in whole.path]
    assert [Path(p).name for p in again.path]==[Path(p).name for p in whole.path]


def test_labels_have_no_gap_where_a_garment_fails(selection, library, dataset, tmp_path, capsys):
    def tryon(images, garments, texts, seeds, rows=None): return [SkipImage('not this one') if t==library[1].text else im for im,t in zip(images, texts)]
    t = generate_hard_samples(selection.people, library, tryon, tmp_path/'out', dataset, progress=False, accept='unchanged')
    assert sorted(t.clothes.unique())==[dataset.clothes, dataset.clothes+1] and set(t.garment)=={library.names[0], library.names[2]}
    assert f'{len(selection.people)} not this one' in capsys.readouterr().out
    ReIDDataset('x', dataset.root, add_samples(dataset, t).samples)            # which would refuse labels with gaps


def test_adding_twice_and_to_strangers(made, dataset):
    _,t = made
    more = add_samples(dataset, t)
    second = label_garments(t.assign(path=t.path.str.replace('.png', '-2.png')), more.train)
    assert second.clothes.tolist()==t.clothes.tolist()
    assert add_samples(more, second).clothes==more.clothes
    with pytest.raises(DataError, match='identity 77'): add_samples(dataset, t.assign(identity=77))
    assert more.samples.variant.dtype==np.int64 and more.samples.garment[0]=='' and more.samples.generated_by[0]==''


def test_dressup_in_a_generated_table_and_bad_input(made, dataset, library, tmp_path):
    _,t = made
    with pytest.raises(DataError, match='nobody to dress'): generate_hard_samples(t.head(0), library, MannequinTryOn(), tmp_path/'a', dataset)
    with pytest.raises(DataError, match='no garment'): generate_hard_samples(t, GarmentLibrary(tmp_path/'none'), MannequinTryOn(), tmp_path/'a', dataset)
    with pytest.raises(ValueError): DressUp(lambda images, *a, rows=None: images[:1], library)([Image.new('RGB', (4,4))]*2, [{}]*2, [0,1], [0,0])
    other = GarmentLibrary(tmp_path/'other')
    for g in list(library)[::-1]: other.add(g.image, g.mask, g.text)
    with pytest.raises(FileExistsError, match='another job'): generate_hard_samples(t.drop_duplicates('source').head(2).assign(path=lambda t: t.source), other, MannequinTryOn(), made[0], dataset, seed=4, progress=False)
    assert DressUp(MannequinTryOn(), library).settings!=DressUp(MannequinTryOn(DECLARED), library).settings
    again = generate_hard_samples(t.head(2), library, lambda images, *a, rows=None: images, tmp_path/'b', dataset, progress=False, accept='unchanged') # a generated image can be dressed again
    assert len(again)==2*len(library) and again.source.tolist()[0]==t.path[0]

def test_tryoff_weights_that_do_not_fit_change_nothing():
    unet = tiny_unet()
    before = {k: v.clone() for k,v in unet.state_dict().items()}
    state = {k: torch.ones_like(v) for k,v in attention_blocks(unet).state_dict().items() if '.attn2.' not in k}
    first = next(iter(state))
    for wrong in {**state, first: torch.ones(3)}, {k: v for k,v in state.items() if k!=first}, {**state, 'stranger': torch.ones(1)}:
        with pytest.raises(ValueError, match='is of another network') as e: load_attention(unet, wrong)
        assert '\n' not in str(e.value) and all(torch.equal(v, before[k]) for k,v in unet.state_dict().items())
    load_attention(unet, state)
    assert torch.equal(attention_blocks(unet).state_dict()[first], state[first])
