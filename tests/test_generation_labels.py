"Sets of classes, networks from folders and from TorchScript, the ground of a garment: real classes of transformers and torchvision, in tiny"
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn

transformers = pytest.importorskip('transformers')
import ccreid.compat
from safetensors.torch import load_file, save_file
from ccreid.data.mannequins import LIP
from ccreid.generation import parsing
from ccreid.generation.foreground import Foreground, foreground, in_front
from ccreid.generation.jobs import PARTS, Networks, StandIns
from ccreid.generation.label_sets import ATR, LABELS, PASCAL, label_set, to_lip
from ccreid.generation.parsing import SegformerParser, clothes_mask, tiny_parser
from ccreid.generation.scripted_parser import SIZES, ScriptedParser, fit_square, is_script, load_any_parser, load_script
from ccreid.generation.segmenters import load_network
from ccreid.weights import WeightsNotFound

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
rng = np.random.default_rng(3)
IMAGES = [Image.fromarray(rng.integers(0, 256, (h,w,3), np.uint8)) for h,w in ((64,32), (50,71), (33,20))]

def one_line(call, error=ValueError):
    with pytest.raises(error) as e: call()
    text = str(e.value)
    assert text and '\n' not in text and len(text)<420, text
    return text

def segformer(n, seed=0, **kw):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation
    torch.manual_seed(seed)
    return SegformerForSemanticSegmentation(SegformerConfig(depths=[1]*4, hidden_sizes=[8,16,16,16], num_attention_heads=[1,2,2,2], decoder_hidden_size=16, num_labels=n, **kw)).eval()

def processor(h=64, w=32): return transformers.SegformerImageProcessor(size=dict(height=h, width=w))

def saved(folder, model, config=None):
    "As published; `config`: a function that changes the dict of config.json"
    model.save_pretrained(folder); processor().save_pretrained(folder)
    if config:
        path = folder/'config.json'
        about = json.loads(path.read_text()); config(about); path.write_text(json.dumps(about))
    return folder

def nameless(about): about.pop('id2label'); about.pop('label2id'); about.pop('num_labels', None)

# --- sets of classes

def test_the_three_sets_are_those_of_schp():
    assert {k: len(v) for k,v in LABELS.items()}==dict(lip=20, atr=18, pascal=7) and SIZES.keys()==LABELS.keys()
    assert [LIP[i] for i in to_lip(PASCAL)]==['background','face','upper-clothes','upper-clothes','left-arm','pants','pants']
    assert to_lip(['Background','Head','Torso','Upper Arms','Lower Arms','Upper Legs','Lower Legs']).tolist()==to_lip(PASCAL).tolist()

@given(st.sampled_from(['auto',*LABELS]), st.integers(1,30), st.sampled_from([None,'unnamed',*LABELS]))
def test_a_set_is_taken_or_refused(labels, n, named):
    "Against what it should be, case by case"
    names = () if named is None else [f'LABEL_{i}' for i in range(n)] if named=='unnamed' else LABELS[named]
    if named in LABELS: n = len(names)
    want = None
    if named in LABELS: want = to_lip(LABELS[named]) if labels in ('auto', named) else None
    elif labels!='auto' and len(LABELS[labels])==n: want = to_lip(LABELS[labels])
    if want is not None: assert label_set(n, labels, names).tolist()==want.tolist()
    else:
        text = one_line(lambda: label_set(n, labels, names, 'mine'))
        assert text.startswith('mine') and (f'{n} classes' in text or 'otherwise' in text)

def test_mismatches_say_what_would_fit():
    assert "labels='lip' has as many" in one_line(lambda: label_set(20, 'atr'))
    assert 'no known set' in one_line(lambda: label_set(19, 'lip'))
    assert 'not \'cihp\'' in one_line(lambda: label_set(20, 'cihp'))
    assert "labels='auto' reads them" in one_line(lambda: label_set(20, 'lip', LIP[::-1]))

@pytest.mark.parametrize('labels', LABELS)
def test_a_folder_whose_classes_have_no_names(labels, tmp_path):
    "With LABEL_0, ... and without any word on classes: the same maps, which are those of the network, translated"
    model = segformer(len(LABELS[labels]), seed=5)
    for i,change in enumerate((None, nameless)):
        folder = saved(tmp_path/str(i), model, change)
        parser = SegformerParser.from_pretrained(folder, labels, device='cpu', batch=1)
        assert parser.settings==dict(parser=str(i), dtype='float32', labels=labels)
        for image,got in zip(IMAGES, parser(IMAGES)):
            with torch.no_grad(): scores = model(**processor()(image, return_tensors='pt')).logits
            raw = nn.functional.interpolate(scores, image.size[::-1], mode='bilinear')[0].argmax(0).numpy()
            want = to_lip(LABELS[labels])[raw]
            if labels=='pascal':                                 # left and right arms, column by column
                columns = [x for y in range(want.shape[0]) for x in range(want.shape[1]) if want[y,x]==5] or [x for y in range(want.shape[0]) for x in range(want.shape[1]) if want[y,x]]
                middle = sum(columns)/len(columns)
                for y in range(want.shape[0]):
                    for x in range(want.shape[1]):
                        if want[y,x]==14 and x<middle: want[y,x] = 15
            assert got.dtype==np.uint8 and np.array_equal(got, want)
        other = next(k for k in LABELS if k!=labels)
        for wrong in (other,) if change else (other,'auto'): one_line(lambda: SegformerParser.from_pretrained(folder, wrong, device='cpu'))
    text = one_line(lambda: SegformerParser.from_pretrained(folder, device='cpu'))
    assert 'of another shape' in text and f'[{len(LABELS[labels])}' in text     # transformers thinks of two classes

def test_names_are_not_overruled(tmp_path):
    folder = saved(tmp_path/'atr', tiny_parser().model)
    assert 'labels' not in SegformerParser.from_pretrained(folder, device='cpu').settings
    assert SegformerParser.from_pretrained(folder, 'atr', device='cpu').settings['labels']=='atr'
    assert '18 classes' in one_line(lambda: SegformerParser.from_pretrained(folder, 'lip', device='cpu'))
    swapped = saved(tmp_path/'swapped', tiny_parser(ATR[::-1]).model)
    assert 'otherwise' in one_line(lambda: SegformerParser.from_pretrained(swapped, 'atr', device='cpu'))

def test_clothes_of_pascal():
    labels = to_lip(PASCAL)[np.arange(7)[None]]
    for rule in parsing.CLOTHES: assert clothes_mask(labels, rule)[0].tolist()==[False,False,True,True,False,True,True]

# --- folders

def semantic(config): return transformers.AutoModelForSemanticSegmentation,transformers.AutoImageProcessor,{}

def test_what_fits_comes_back_bit_by_bit(tmp_path):
    model = segformer(4)
    folder = saved(tmp_path/'x', model)
    state = load_file(folder/'model.safetensors')
    save_file({**state, 'a.position_ids': torch.arange(3)}, folder/'model.safetensors', metadata=dict(format='pt'))
    got,_ = load_network(folder, semantic)
    assert all(torch.equal(v, got.state_dict()[k]) for k,v in model.state_dict().items())

@pytest.mark.parametrize('change,says', [(lambda s: s.pop('decode_head.classifier.bias'), '1 weights are missing, 0 unknown and 0 of'), (lambda s: s.update(extra=torch.ones(1)), '0 weights are missing, 1 unknown'),
    (lambda s: s.update({'renamed': s.pop('decode_head.classifier.bias')}), '1 weights are missing, 1 unknown'), (lambda s: s.update({'decode_head.classifier.bias': torch.ones(9)}), '1 of another shape, such as decode_head.classifier.bias is [9]')])
def test_one_weight_that_does_not_fit(tmp_path, change, says):
    folder = saved(tmp_path/'x', segformer(4))
    state = load_file(folder/'model.safetensors'); change(state)
    save_file(state, folder/'model.safetensors', metadata=dict(format='pt'))
    for load in lambda: load_network(folder, semantic), lambda: Foreground.from_pretrained(folder, device='cpu'): assert says in one_line(load)

@pytest.mark.parametrize('load', [SegformerParser.from_pretrained, Foreground.from_pretrained])
def test_folders_that_hold_something_else(tmp_path, load):
    whole = saved(tmp_path/'whole', segformer(2))
    def spoilt(name, file, content):
        shutil.copytree(whole, tmp_path/name)
        if content is None: (tmp_path/name/file).unlink()
        else: (tmp_path/name/file).write_bytes(content)
        return tmp_path/name
    about = json.loads((whole/'config.json').read_text())
    cases = {'web page': spoilt('a', 'model.safetensors', b'<html>no</html>'), 'Git LFS': spoilt('b', 'model.safetensors', b'version https://git-lfs.github.com/spec/v1\n'),
        'damaged': spoilt('c', 'model.safetensors', b'x'*99), 'no model.safetensors': spoilt('d', 'model.safetensors', None), 'auto_map': spoilt('e', 'config.json', json.dumps({**about, 'auto_map': {'AutoModel':'x.Y'}}).encode()),
        'web page (HTML)': spoilt('f', 'config.json', b'<!DOCTYPE html>'), 'config.json': spoilt('g', 'config.json', None), 'model_type': spoilt('h', 'config.json', json.dumps({**about, 'model_type':'isnet'}).encode()),
        'preprocessor': spoilt('i', 'preprocessor_config.json', None)}
    for says,folder in cases.items():
        text = one_line(lambda: load(folder, device='cpu'))
        assert str(folder) in text and (says in text or says in ('model_type','preprocessor')), (says, text)
    assert 'no weights at' in one_line(lambda: load(tmp_path/'nowhere', device='cpu'), WeightsNotFound)

def test_code_of_a_folder_does_not_run(tmp_path):
    folder = saved(tmp_path/'x', segformer(2), lambda a: a.update(model_type='mine', auto_map=dict(AutoConfig='code.C', AutoModelForSemanticSegmentation='code.M')))
    (folder/'code.py').write_text(f"open({str(tmp_path/'ran')!r}, 'w')\n")
    one_line(lambda: Foreground.from_pretrained(folder, device='cpu'))
    assert not (tmp_path/'ran').exists()

def test_a_network_of_another_kind(tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModel
    CLIPTextModel(CLIPTextConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path/'x')
    assert str(tmp_path/'x') in one_line(lambda: Foreground.from_pretrained(tmp_path/'x', device='cpu'))

# --- TorchScript

def head(n, seed=0):
    from torchvision.models.segmentation.fcn import FCNHead
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 16, 7, stride=4, padding=3), nn.ReLU(), FCNHead(16, n)).eval()

@pytest.fixture
def script(tmp_path):
    def make(n, name='schp.pt'): torch.jit.script(head(n)).save(tmp_path/name); return tmp_path/name
    return make

def test_square_pixel_by_pixel():
    image = IMAGES[0]                                            # 32 wide, 64 high: no change of size in 64
    x,(left,top,right,bottom) = fit_square(image, 64)
    assert (left,top,right,bottom)==(16,0,48,64) and x.shape==(3,64,64) and x.dtype==torch.float32
    pixels,mean,std = np.asarray(image),(.485,.456,.406),(.229,.224,.225)
    for y in range(0, 64, 7):
        for i in range(64):
            for c in range(3):
                value = pixels[y,i-16,c] if 16<=i<48 else 0
                assert abs(x[2-c,y,i].item()-(value/255-mean[c])/std[c])<1e-5

@given(st.integers(1,300), st.integers(1,300), st.integers(8,64))
@settings(max_examples=40, deadline=None)
def test_a_picture_fits_its_square(w, h, size):
    left,top,right,bottom = fit_square(Image.new('L', (w,h)), size)[1]
    assert max(right-left, bottom-top)==size and min(right-left, bottom-top)>=1 and 0<=left and 0<=top and right<=size and bottom<=size
    assert abs((right-left)*max(w,h)-w*size)<=max(w,h)*1 and abs(left-(size-right))<=1 and abs(top-(size-bottom))<=1

@pytest.mark.parametrize('labels', LABELS)
def test_scripted_maps_by_hand(script, labels):
    n = len(LABELS[labels])
    parser,net = ScriptedParser.from_file(script(n), labels, size=64, batch=1, device='cpu'),head(n)
    for image,got in zip(IMAGES, parser(IMAGES)):
        x,(left,top,right,bottom) = fit_square(image, 64)
        with torch.no_grad(): scores = net(x[None])
        scores = nn.functional.interpolate(scores, (64,64), mode='bilinear', align_corners=True)[:,:,top:bottom,left:right]
        want = to_lip(LABELS[labels])[nn.functional.interpolate(scores, image.size[::-1], mode='bilinear')[0].argmax(0)]
        if labels=='pascal': want = np.where(want==15, 14, want); got = np.where(got==15, 14, got)
        assert got.shape==image.size[::-1] and (got==want).mean()>.995
    assert parser.settings==dict(parser='schp.pt', dtype='float32', labels=labels, size=64)
    three = ScriptedParser.from_file(script(n), labels, size=64, batch=3, device='cpu')
    for whole,image in zip(three(IMAGES), IMAGES): assert np.array_equal(three([image])[0], whole)
    assert three([])==[]

def test_scripted_files_that_do_not_fit(script, tmp_path):
    path = script(20)
    assert "20 classes, labels='atr' 18: labels='lip' has as many" in one_line(lambda: load_any_parser(path, 'atr', size=64, device='cpu'))
    for labels in 'auto','mine': assert 'lip, atr, pascal' in one_line(lambda: load_any_parser(path, labels, device='cpu'))
    torch.save(head(20).state_dict(), tmp_path/'weights.pt'); (tmp_path/'a.pt').write_text('<html>'); (tmp_path/'b.pt').write_text('version https://git-lfs'); (tmp_path/'c.pt').write_bytes(b''); (tmp_path/'d.pt').mkdir()
    (tmp_path/'e.pt').write_bytes(path.read_bytes()[:200])
    for name,says in dict(weights='holds weights without', a='web page', b='Git LFS', c='is empty', d='folder', e='damaged').items(): assert says in one_line(lambda: load_script(tmp_path/f'{name}.pt')), name
    assert 'no weights at' in one_line(lambda: load_script(tmp_path/'none.pt'), WeightsNotFound)
    assert 'ends in .pt' in one_line(lambda: load_script('somebody/schp'))
    class Trap:
        def __reduce__(self): return open, (str(tmp_path/'ran'),'w')
    torch.save(Trap(), tmp_path/'trap.pt')
    one_line(lambda: load_script(tmp_path/'trap.pt'))
    assert not (tmp_path/'ran').exists()

def test_no_name_is_ever_a_script(monkeypatch):
    "What comes from the hub is opened by transformers, never by torch.jit"
    def no(*a, **k): raise AssertionError('a script was opened')
    monkeypatch.setattr(torch.jit, 'load', no)
    monkeypatch.setattr('ccreid.weights._hub', lambda *a: (_ for _ in ()).throw(OSError('no network')))
    assert not any(map(is_script, ('somebody/schp', 'schp', 'x.safetensors', 'x.pth', 'a.pt/b')))
    for name in 'somebody/schp','schp': one_line(lambda: load_any_parser(name, 'lip', device='cpu'), WeightsNotFound)

# --- the ground of a garment

def slow_mask(front, largest):
    "Holes filled and the largest piece kept, by flooding"
    h,w = front.shape
    def flood(start, inside, steps):
        seen,waiting = {start},[start]
        while waiting:
            y,x = waiting.pop()
            for dy,dx in steps:
                p = (y+dy,x+dx)
                if 0<=p[0]<h and 0<=p[1]<w and p not in seen and inside(p): seen.add(p); waiting.append(p)
        return seen
    four = [(0,1),(1,0),(0,-1),(-1,0)]; eight = four+[(1,1),(1,-1),(-1,1),(-1,-1)]
    outside = set()
    for p in [(y,x) for y in range(h) for x in range(w) if (y in (0,h-1) or x in (0,w-1)) and not front[y,x]]:
        if p not in outside: outside |= flood(p, lambda q: not front[q], four)
    filled = {(y,x) for y in range(h) for x in range(w)}-outside
    pieces = []
    for p in sorted(filled):
        if not any(p in o for o in pieces): pieces.append(flood(p, lambda q: q in filled, eight))
    if largest and pieces: filled = max(pieces, key=len)
    res = np.zeros((h,w), bool)
    for p in filled: res[p] = True
    return res

@given(st.integers(0, 10**6), st.integers(1,9), st.integers(1,9), st.booleans(), st.sampled_from([.2,.5,.8]))
@settings(max_examples=60, deadline=None)
def test_foreground_against_flooding(seed, h, w, largest, threshold):
    scores = torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (1,h,w))).float()
    front = (1/(1+np.exp(-scores[0].numpy().astype(float))))>=threshold
    assert np.array_equal(foreground(scores, (h,w), [], threshold, largest), slow_mask(front, largest))
    several = torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (4,h,w))).float()
    front = np.array([[max(range(4), key=lambda c: several[c,y,x]) in (1,3) for x in range(w)] for y in range(h)])
    assert np.array_equal(foreground(several, (h,w), [1,3], largest=largest), slow_mask(front, largest))

def test_which_classes_are_in_front():
    assert in_front(['Background','a','b'])==[1,2] and in_front(['a','__background__'])==[0] and in_front(['LABEL_0','LABEL_1','LABEL_2'])==[1,2]
    assert in_front(['wall','apparel'], ['apparel'])==[1] and in_front(['wall','apparel'], [0])==[0]
    for names,classes in ((['wall','apparel'],None), (['background'],None), (['a','b'],['c']), (['a','b'],[2]), (['a','b'],[-1]), (['a','b'],[True]), (['a','b'],[])): one_line(lambda: in_front(names, classes))

@pytest.mark.parametrize('n', [1,2,5])
def test_a_ground_by_name_is_its_network(n, tmp_path):
    model = segformer(n, seed=4)
    ground = Foreground.from_pretrained(saved(tmp_path/'x', model), device='cpu')
    for image in IMAGES:
        with torch.no_grad(): scores = model(**processor()(image, return_tensors='pt')).logits
        scores = nn.functional.interpolate(scores, image.size[::-1], mode='bilinear')[0]
        front = (scores[0]>=0 if n==1 else scores.argmax(0)>0).numpy()
        got = ground(image)
        assert got.dtype==bool and np.array_equal(got, slow_mask(front, False))
    many = Foreground.from_pretrained(tmp_path/'x', device='cpu', batch=2)
    for whole,image in zip(many.masks(IMAGES), IMAGES): assert np.array_equal(many.masks([image])[0], whole)

def test_clipseg_is_asked_in_words(tmp_path):
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor, ViTImageProcessor
    from ccreid.generation.inpainting import tiny_pipeline
    layers = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, projection_dim=8)
    torch.manual_seed(1)
    tokenizer = tiny_pipeline().tokenizer
    model = CLIPSegForImageSegmentation(CLIPSegConfig(text_config=layers|dict(num_hidden_layers=2, vocab_size=1000, eos_token_id=tokenizer.eos_token_id), vision_config=layers|dict(num_hidden_layers=3, image_size=32, patch_size=16),
        projection_dim=8, extract_layers=[0,1,2], reduce_dim=8, decoder_num_attention_heads=2, decoder_intermediate_size=16)).eval()
    words = CLIPSegProcessor(ViTImageProcessor(size=dict(height=32, width=32)), tokenizer)
    model.save_pretrained(tmp_path); words.save_pretrained(tmp_path)
    by_text = {}
    for text in 'clothes','a shoe':
        ground = Foreground.from_pretrained(tmp_path, device='cpu', text=text, threshold=.5)
        with torch.no_grad(): want = model(**words(text=[text], images=[IMAGES[1]], return_tensors='pt', padding=True)).logits
        by_text[text] = ground._scores([IMAGES[1]])
        assert torch.allclose(by_text[text].reshape(want.shape), want, atol=1e-6) and by_text[text].shape==(1,1,32,32)
        assert ground(IMAGES[1]).shape==IMAGES[1].size[::-1]
    assert not torch.equal(*by_text.values())

def test_bad_thresholds():
    for t in 0,1,-1.,2: assert 'threshold' in one_line(lambda: Foreground(segformer(1), processor(), threshold=t, device='cpu'))

# --- by name, from the commands

def test_parts_are_words_and_networks(tmp_path, script, monkeypatch):
    folder,path = saved(tmp_path/'x', segformer(20)),script(20)
    assert Networks('cpu').labels=='auto' and Networks('cpu').ground is None and list(PARTS)==['parser','inpainter','describer','summarizer','judge','labels']
    assert Networks('cpu', parser=str(folder), labels='lip').parser.lip.tolist()==list(range(20))
    assert 'without names' in one_line(lambda: Networks('cpu', parser=str(folder)).parser)
    monkeypatch.setitem(SIZES, 'lip', 64)
    assert isinstance(Networks('cpu', parser=str(path), labels='lip').parser, ScriptedParser)
    assert isinstance(Networks('cpu', ground=str(saved(tmp_path/'g', segformer(1)))).ground, Foreground)
    assert 'no stand-in for ground' in one_line(lambda: StandIns().ground)

def test_a_named_ground_reaches_the_try_off(tmp_path, monkeypatch):
    from ccreid.generation.try_off import DiffusionTryOff
    got = []
    monkeypatch.setattr(DiffusionTryOff, 'from_pretrained', lambda *a, **kw: got.append((a, kw)) or 'off')
    monkeypatch.setattr(SegformerParser, 'from_pretrained', lambda *a, **kw: 'parser')
    assert Networks('cpu').tryoff=='off' and got.pop()==(('parser','ixarchakos/tryOffAnyone'), dict(device='cpu'))
    n = Networks('cpu', 'bf16', ground=str(saved(tmp_path/'g', segformer(1))))
    assert n.tryoff=='off' and got.pop()==(('parser','ixarchakos/tryOffAnyone'), dict(device='cpu', dtype=torch.bfloat16, ground=n.ground))
    missing = one_line(lambda: Networks('cpu', ground=str(tmp_path/'none')).tryoff, WeightsNotFound)
    assert 'none' in missing and not got                          # said before the try-off is loaded

@pytest.mark.parametrize('part,worn', [('upper',{'upper-clothes','dress','coat','jumpsuits'}), ('lower',{'dress','pants','jumpsuits','skirt'}), ('full',{'upper-clothes','dress','coat','jumpsuits','pants','skirt'})])
def test_what_is_taken_off(part, worn, monkeypatch):
    from ccreid.generation.try_off import DiffusionTryOff
    labels = np.arange(20, dtype=np.uint8).reshape(4,5)
    class Net:                                                   # only asked for its processors
        attn_processors = {}
        def eval(self): return self
        def set_attn_processor(self, own): pass
    off = DiffusionTryOff(Net(), Net(), None, lambda images, rows=None: [labels]*len(images), part=part)
    cut = []
    monkeypatch.setattr(DiffusionTryOff, 'one', lambda self, image, worn, seed: cut.append(worn))
    off([Image.new('RGB', (5,4))])
    assert {LIP[labels[p]] for p in zip(*np.nonzero(cut[0]))}==worn

def test_no_other_part():
    from ccreid.generation.try_off import DiffusionTryOff
    assert "not 'shoes'" in one_line(lambda: DiffusionTryOff(None, None, None, None, part='shoes'))
