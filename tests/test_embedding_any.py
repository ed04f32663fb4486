"Any pictures by any model: folders, files and arrays, networks, timm, ONNX and functions; bad pictures, fingerprints"
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from ccreid.data.loose_pictures import ENDINGS, find_pictures, pictures_of
from ccreid.data.samples import DataError
from ccreid.data.transforms import Preprocessing
from ccreid.models.reid_model import ReIDModel
from ccreid.training.any_model import embedder, open_model
from ccreid.training.embedders import FunctionEmbedder, NetworkEmbedder, OnnxEmbedder, TimmVector, timm_embedder
from ccreid.training.embedding import embed
from ccreid.training.export import export_reid, load_reid

PRE = Preprocessing((32,16))


def noise(n, seed=0): return np.random.default_rng(seed).integers(0, 256, (n,24,12,3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    for i,a in enumerate(noise(7)):
        (tmp_path/'all'/f'{i%2}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(a).save(tmp_path/'all'/f'{i%2}'/f'{i}.png')
    return tmp_path/'all'


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    model = ReIDModel('resnet_mini', classes=4).eval()
    model.preprocessing = PRE
    return model


def by_hand(model, arrays):
    "Features by the formula, a picture at a time"
    found = []
    for a in arrays:
        x = PRE.normalise(np.asarray(Image.fromarray(a).resize((16,32), Image.Resampling.BILINEAR)))
        x = torch.from_numpy(x)[None]
        with torch.no_grad(): f = model(x)['features']+model(x.flip(-1))['features']
        found.append(f/f.norm())
    return torch.cat(found)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('batch', [1, 3, 50])
def test_every_source_gives_the_vectors_of_the_formula(folder, model, workers, batch):
    if workers and batch!=3: pytest.skip('processes once')
    arrays,kw = noise(7),dict(batch_size=batch, num_workers=workers)
    wanted = by_hand(model, arrays)
    files = [folder/f'{i%2}'/f'{i}.png' for i in range(7)]
    mixed = [str(files[0]), arrays[1], Image.fromarray(arrays[2]), *files[3:]]
    for source in (files, list(arrays), arrays, [Image.fromarray(a) for a in arrays], mixed, iter(mixed),
                   pd.DataFrame(dict(path=[str(f) for f in files]))):
        torch.testing.assert_close(embed(model, source, **kw), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(embed(model, folder, **kw), wanted[[0,2,4,6,1,3,5]], atol=1e-5, rtol=0)
    torch.testing.assert_close(embed(model, str(files[4]), **kw), wanted[[4]], atol=1e-5, rtol=0)


def test_labels_do_not_change_what_is_seen(folder, model):
    table = pd.DataFrame(dict(path=[str(folder/n) for n in find_pictures(folder)], modality='visible'))
    labelled = table.assign(identity=0, clothes=0, camera=0)
    torch.testing.assert_close(embed(model, labelled), embed(model, table), atol=1e-6, rtol=0)


def test_what_an_embedder_was_told_counts_for_every_source(folder, model):
    "Own transform, mirror image: given with the model or afterwards, with labels or without"
    def own(picture, seed): return np.ascontiguousarray(PRE.normalise(255-np.asarray(picture.resize((16,32)))))
    table = pd.DataFrame(dict(path=[str(folder/n) for n in find_pictures(folder)], modality='visible', identity=0, clothes=0, camera=0))
    wanted = embed(model, folder, transform=own, flip=False)
    told = embedder(model, flip=False, transform=own)
    for found in (embed(told, folder), embed(told, table), embed(model, table, transform=own, flip=False), embed(embedder(model), table, flip=False, transform=own),
                  embed(embedder(model, transform=own), folder, flip=False), embed(embedder(model, flip=False), table, transform=own)):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert (embed(model, table, flip=False)-wanted).abs().max()>.01 and (embed(model, table, transform=own)-wanted).abs().max()>1e-4
    def colour(pictures): return [[1.,2.] for _ in pictures]
    for how in (dict(flip=True), dict(transform=own)):
        for fixed in colour, embedder(colour):
            with pytest.raises(ValueError, match='sees pictures in its own way: leave out'): embed(fixed, folder, **how)
    assert len(embed(colour, folder, flip=False))==7


@pytest.mark.parametrize('workers', [0, 2])
def test_a_bad_picture_is_named_or_left_out_and_counted(folder, model, workers):
    whole = embed(model, folder)
    names = find_pictures(folder)
    for name,content in (('0/4.png', b''), ('1/3.png', (folder/'1'/'3.png').read_bytes()[:60])): (folder/name).write_bytes(content)
    with pytest.raises(DataError, match=r'cannot read the picture 0/4\.png: the file is empty'): embed(model, folder, num_workers=workers, batch_size=2)
    skipped = {}
    rest = embed(model, folder, num_workers=workers, batch_size=2, skipped=skipped)
    assert set(skipped)=={names.index('0/4.png'), names.index('1/3.png')} and skipped[names.index('0/4.png')]=='the file is empty'
    torch.testing.assert_close(rest, whole[[i for i in range(7) if i not in skipped]], atol=1e-5, rtol=0)
    for f in folder.rglob('*.png'): f.write_bytes(b'x')
    with pytest.raises(ValueError, match='none of 7 pictures can be read'): embed(model, folder, skipped={})


@pytest.mark.parametrize('bad,said', [
    (np.zeros((4,4)), 'float64 [4, 4]'), (np.zeros((4,4,4), np.uint8), 'uint8 [4, 4, 4]'), (np.zeros((0,4,3), np.uint8), 'uint8 [0, 4, 3]'),
    (np.zeros((3,4,4), np.uint8), 'uint8 [3, 4, 4]')])
def test_an_array_of_another_kind_is_refused_by_its_place(model, bad, said):
    with pytest.raises(DataError) as e: embed(model, [noise(1)[0], bad])
    assert '#1' in str(e.value) and said in str(e.value)


def test_a_folder_is_never_left(tmp_path, folder):
    Image.new('RGB', (4,4)).save(tmp_path/'secret.png')
    (folder/'link.png').symlink_to(tmp_path/'secret.png')
    (folder/'round').symlink_to(folder)
    (folder/'up').symlink_to(tmp_path)
    (folder/'.hidden.png').write_bytes(b'')
    assert find_pictures(folder)==sorted(f'{i%2}/{i}.png' for i in range(7))


@settings(max_examples=30, deadline=None)
@given(st.sets(st.text('ab1.-', min_size=1, max_size=5).filter(lambda n: n[0]!='.'), min_size=1, max_size=6), st.sampled_from(ENDINGS))
def test_all_pictures_of_a_folder_are_found_in_one_order(tmp_path_factory, names, end):
    place = tmp_path_factory.mktemp('f')
    for n in names: (place/(n+end.upper())).touch(); (place/(n+'.txt')).touch()
    assert find_pictures(place)==sorted(n+end.upper() for n in names)

# --- models

def test_a_learner_its_network_and_its_file_are_one_model(model, tmp_path):
    from types import SimpleNamespace
    file = export_reid(model, tmp_path/'m.safetensors')
    learner = SimpleNamespace(model=model)
    assert len({embedder(m).fingerprint for m in (model, learner, file, str(file), load_reid(file))})==1
    torch.testing.assert_close(embed(str(file), noise(3)), embed(learner, noise(3)), atol=1e-5, rtol=0)


def test_what_decides_about_vectors_decides_about_the_fingerprint(model, tmp_path):
    def again(**kw):
        m = load_reid(export_reid(model, tmp_path/'m.safetensors'))
        m.preprocessing = Preprocessing(**{**PRE.to_dict(), **kw})
        return m
    other = again()
    with torch.no_grad(): list(other.parameters())[3].view(-1)[0] += .5
    seen = [NetworkEmbedder(m).fingerprint for m in (again(), again(size=(32,32)), again(mean=(0,0,0)), again(interpolation='bicubic'), other)]
    seen += [NetworkEmbedder(again(), flip=False).fingerprint, NetworkEmbedder(again(), transform=lambda p, s: None).fingerprint]
    assert len(set(seen))==len(seen) and seen[0]==NetworkEmbedder(again()).fingerprint


def test_a_network_of_timm_is_seen_as_its_config_says():
    import timm
    torch.manual_seed(0)
    net = timm.create_model('resnet10t', num_classes=5).eval()
    config = timm.data.resolve_model_data_config(net)
    pre = embedder(net).model.preprocessing
    assert pre.size==tuple(config['input_size'][1:]) and pre.mean==config['mean'] and pre.std==config['std'] and not pre.flip
    picture = noise(1)[0]
    x = torch.from_numpy(pre.normalise(pre.resize(picture)))[None]
    with torch.no_grad(): f = net.forward_head(net.forward_features(x), pre_logits=True)[0]
    torch.testing.assert_close(embed(net, [picture])[0], f/f.norm(), atol=1e-5, rtol=0)
    assert net.num_classes==5 and embed(net, [picture], flip=True).shape==(1,512)


def test_pictures_are_prepared_as_the_weights_of_a_name_were_trained(tmp_path, monkeypatch):
    "`resnet18` means torchvision's weights by the library's settings, `resnet18.a1_in1k` timm's own, `vit_mini` ours"
    import timm
    from safetensors.torch import save_file
    monkeypatch.setenv('CCREID_WEIGHTS', str(tmp_path))
    for name in 'resnet18','resnet18.a1_in1k': save_file(timm.create_model('resnet18', num_classes=0).state_dict(), tmp_path/f'{name}.safetensors')
    for name,tag in (('resnet18', 'tv_in1k'), ('resnet18.a1_in1k', 'a1_in1k')):
        pre,cfg = open_model(name, size=(64,32)).model.preprocessing,timm.get_pretrained_cfg(f'resnet18.{tag}')
        assert pre==Preprocessing((64,32), cfg.mean, cfg.std, False, cfg.interpolation)
    assert {open_model(n).model.preprocessing.interpolation for n in ('resnet18','resnet18.a1_in1k')}=={'bilinear','bicubic'}
    assert open_model('vit_mini').model.preprocessing==Preprocessing((96,48), (.5,)*3, (.5,)*3, False, 'bicubic')


def test_a_vit_of_timm_gives_its_class_token_at_any_size():
    found = TimmVector(__import__('timm').create_model('vit_tiny_patch16_224', num_classes=3))
    assert found.eval()(torch.zeros(1,3,224,224)).shape==(1,192)
    assert timm_embedder('vit_tiny_patch16_224', size=(64,32), pretrained=False).vectors(torch.zeros(2,3,64,32)).shape==(2,192)


def test_the_mode_of_a_network_stays(model):
    model.train()
    try:
        embed(model, noise(2))
        assert model.training
    finally: model.eval()


def test_functions_are_called_with_pictures_and_must_give_a_vector_each():
    seen = []
    def look(pictures):
        seen.extend(pictures)
        return torch.ones(len(pictures), 2, requires_grad=True)
    assert embed(look, noise(5), batch_size=2).shape==(5,2) and len(seen)==5
    assert all(p.mode=='RGB' and p.size==(12,24) for p in seen)
    for wrong in (lambda ps: [1.]*len(ps), lambda ps: [[1.]], lambda ps: np.zeros((len(ps),2,2))):
        with pytest.raises(ValueError, match='not one vector each'): embed(wrong, noise(2))
    for wrong in (lambda ps: None, lambda ps: [['a'] for _ in ps], lambda ps: [[1.]*(i+1) for i,_ in enumerate(ps)], lambda ps: np.ones((len(ps),2), complex),
                  lambda ps: [[None,1.] for _ in ps], lambda ps: np.ones((len(ps),2), bool)):
        with pytest.raises(ValueError, match='gives (NoneType|list|ndarray), not a vector of numbers for each picture'): embed(wrong, noise(2))
    with pytest.raises(ValueError, match=r'gives vectors of different lengths: \[1, 2\]'): embed(lambda ps: np.ones((len(ps),len(ps))), noise(3), batch_size=2)
    for kind in torch.bfloat16,torch.float16,torch.int64:
        assert embed(lambda ps: torch.ones(len(ps), 4, dtype=kind), noise(2)).tolist()==[[.5]*4]*2


@pytest.fixture(scope='module')
def onnx_file(tmp_path_factory):
    "Networks whose vector is the mean of each channel in the left and the right half"
    onnx = pytest.importorskip('onnx'); pytest.importorskip('onnxruntime')
    from onnx import TensorProto as T, helper as h
    place = tmp_path_factory.mktemp('onnx')
    def save(name, takes, nodes, gives):
        g = h.make_graph(nodes, 'g', [h.make_tensor_value_info('x', T.FLOAT, takes)], [h.make_tensor_value_info('v', T.FLOAT, gives)])
        onnx.save(h.make_model(g, opset_imports=[h.make_opsetid('', 18)], ir_version=9), place/name)
    pool = [h.make_node('AveragePool', ['x'], ['p'], kernel_shape=[32,8], strides=[32,8])]
    flat = h.make_node('Flatten', ['p'], ['v'])
    save('any.onnx', ['batch',3,32,16], [*pool, flat], ['batch',6])
    save('two.onnx', [2,3,32,16], [*pool, flat], [2,6])
    save('open.onnx', ['batch',3,'h','w'], [*pool, flat], ['batch',6])
    save('map.onnx', ['batch',3,32,16], [h.make_node('Identity', ['x'], ['v'])], ['batch',3,32,16])
    save('face.onnx', [1,112], [h.make_node('Identity', ['x'], ['v'])], [1,112])
    return place


def test_an_onnx_file_is_a_model(onnx_file):
    arrays = noise(5)
    x = np.stack([PRE.normalise(PRE.resize(a)) for a in arrays])
    wanted = torch.from_numpy(np.stack([x[...,:8].mean((2,3)), x[...,8:].mean((2,3))], -1).reshape(5, 6))
    unit = wanted/wanted.norm(dim=1, keepdim=True)
    for name in 'any.onnx','two.onnx': # a fixed batch of two, and five pictures
        torch.testing.assert_close(embed(str(onnx_file/name), arrays, batch_size=3), unit, atol=1e-5, rtol=0)
    torch.testing.assert_close(embed(open_model(onnx_file/'open.onnx', size=(32,16)), arrays), unit, atol=1e-5, rtol=0)
    both = wanted+wanted.reshape(5,3,2).flip(-1).reshape(5,6)
    torch.testing.assert_close(embed(str(onnx_file/'any.onnx'), arrays, flip=True), both/both.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)


def test_onnx_files_that_do_not_fit_are_refused_in_one_line(onnx_file, tmp_path):
    with pytest.raises(ValueError, match='any size'): open_model(onnx_file/'open.onnx')
    with pytest.raises(ValueError, match='takes 32x16 pixels, not 64x32'): open_model(onnx_file/'any.onnx', size=(64,32))
    with pytest.raises(ValueError, match='not pictures'): open_model(onnx_file/'face.onnx')
    with pytest.raises(ValueError, match='not one vector each'): embed(str(onnx_file/'map.onnx'), noise(1))
    (tmp_path/'x.onnx').write_bytes(b'<!DOCTYPE html>')
    with pytest.raises(ValueError, match='no network that onnxruntime opens'): open_model(tmp_path/'x.onnx')
    with pytest.raises(FileNotFoundError): open_model(tmp_path/'none.onnx')


def test_the_fingerprint_of_an_onnx_file_is_of_its_content_and_its_preprocessing(onnx_file, tmp_path):
    (tmp_path/'copy.onnx').write_bytes((onnx_file/'any.onnx').read_bytes())
    a,b = OnnxEmbedder(onnx_file/'any.onnx'),OnnxEmbedder(tmp_path/'copy.onnx')
    assert a.fingerprint==b.fingerprint!=OnnxEmbedder(onnx_file/'any.onnx', Preprocessing((32,16), flip=True)).fingerprint


def test_without_onnxruntime_a_line_names_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match=r'pip install "ccreid\[search\]"'): embed('x.onnx', noise(1))


def test_what_is_no_model_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('mine_of_a_test.py').write_text('def vector(pictures): return [[1.]]*len(pictures)\n')
    assert open_model('mine_of_a_test:vector').fingerprint==FunctionEmbedder(None, 'mine_of_a_test:vector').fingerprint
    assert os.getcwd() not in __import__('sys').path
    for name,error,said in (('resnet5000', ValueError, 'no backbone'), ('none.safetensors', FileNotFoundError, 'none.safetensors'),
                            ('json:nobody', ValueError, 'cannot be imported')):
        with pytest.raises(error, match=said): open_model(name)
    for wrong in (None, 3, []):
        with pytest.raises(TypeError, match='a model is'): embed(wrong, noise(1))
