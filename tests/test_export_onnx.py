"Networks as ONNX files: every kind against torch at several batch sizes, what the files say, what leaves no file, and the command"
import io
import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from ccreid import cli
from ccreid.baselines.cssc import CSSCModel
from ccreid.baselines.mgn import MGNModel
from ccreid.baselines.parts import HPMModel, PCBModel
from ccreid.baselines.two_stream import TwoStream
from ccreid.cmcc.pia import PIANet
from ccreid.dcac.clip_reid import clip_reid
from ccreid.data.transforms import Preprocessing
from ccreid.models.backbones import create_backbone
from ccreid.models.reid_model import ReIDModel
from ccreid.training.any_model import open_model
from ccreid.training.embedders import NetworkEmbedder
from ccreid.training.embedding import embed
from ccreid.training.export import export_reid

onnx,onnxruntime = pytest.importorskip('onnx'),pytest.importorskip('onnxruntime')
from ccreid.training import onnx_export as module
from ccreid.training.onnx_export import export_onnx, onnx_bytes, onnx_parity

SIZE = (96,48)
NETWORKS = {
    'max+avg': lambda: ReIDModel('resnet_mini', classes=3), 'gem': lambda: ReIDModel('resnet_mini', 'gem'),
    'token': lambda: ReIDModel(create_backbone('vit_mini', size=SIZE), 'token'), 'pcb': lambda: PCBModel('resnet_mini', 3),
    'hpm': lambda: HPMModel('resnet_mini', 3, levels=2), 'mgn': lambda: MGNModel('resnet_mini', 3),
    'cssc': lambda: CSSCModel('resnet_mini', 3, parts=2, width=32), 'pia': lambda: PIANet('resnet_mini', classes=3),
    'clip': lambda: clip_reid(3, 'vit_mini', SIZE, dim=32), 'uneven stripes': lambda: PCBModel('resnet_mini', 3, parts=5),
    'uneven pyramid': lambda: HPMModel('resnet_mini', 3, levels=3), 'two-stream': lambda: TwoStream('resnet_mini', classes=3)}


def made(name='max+avg', flip=False):
    torch.manual_seed(0)
    model = NETWORKS[name]()
    for m in model.modules():                                  # normalisations as after training, not as at the start
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            for t in (m.weight, m.running_var): t is not None and nn.init.uniform_(t, .5, 1.5)
            nn.init.normal_(m.running_mean, std=.1)
    for p in getattr(model, 'infrared_stem', nn.Identity()).parameters(): nn.init.normal_(p, std=.2) # else both stems are alike
    model.preprocessing = Preprocessing(SIZE, (.5,.4,.3), (.2,.3,.4), flip=flip, interpolation='bicubic')
    return model


def pictures(n=7): return list(np.random.default_rng(0).integers(0, 256, (n,40,20,3), dtype=np.uint8))


@pytest.mark.parametrize('name', NETWORKS)
def test_every_network_gives_the_same_through_embed(name, tmp_path):
    model = made(name, flip=name=='gem').train()
    assert export_onnx(model, tmp_path/'m.onnx', 1e-4)<1e-5 and model.training and [p.name for p in tmp_path.iterdir()]==['m.onnx']
    ours,theirs = embed(model, pictures()),embed(str(tmp_path/'m.onnx'), pictures(), batch_size=3)
    assert ((ours*theirs).sum(1)>1-1e-5).all()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_the_file_says_how_it_wants_to_see_a_picture(tmp_path):
    model = made('gem', flip=True)
    export_onnx(model, tmp_path/'m.onnx')
    found = open_model(tmp_path/'m.onnx')
    assert found.preprocessing==found.own==model.preprocessing and found.batch is None
    assert open_model(tmp_path/'m.onnx', size=SIZE).fingerprint==found.fingerprint!=open_model(tmp_path/'m.onnx', flip=False).fingerprint
    with pytest.raises(ValueError, match='takes 96x48 pixels, not 64x32'): open_model(tmp_path/'m.onnx', size=(64,32))
    torch.testing.assert_close(embed(tmp_path/'m.onnx', pictures(), flip=False), embed(model, pictures(), flip=False), atol=1e-4, rtol=0)
    proto = onnx.load(tmp_path/'m.onnx')
    said = json.loads({p.key: p.value for p in proto.metadata_props}['ccreid'])
    assert said['preprocessing']==model.preprocessing.to_dict() and len(said['weights'])==16
    assert [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]==['batch',3,*SIZE]


@pytest.mark.parametrize('words', ['', '[]', '{}', '{"preprocessing": 3}', '{"preprocessing": {"size": [0, 1]}}', '{'*9])
def test_a_file_that_says_nonsense_is_refused_in_a_line(words, tmp_path):
    proto = onnx.load_from_string(onnx_bytes(made('gem')))
    onnx.helper.set_model_props(proto, dict(ccreid=words)); onnx.save(proto, tmp_path/'m.onnx')
    with pytest.raises(ValueError, match='says nothing sound about its preprocessing') as e: open_model(tmp_path/'m.onnx')
    assert '\n' not in str(e.value) and len(str(e.value))<400


def changed(content):
    "The same file with one weight that is another"
    proto = onnx.load_from_string(content)
    t = max((t for t in proto.graph.initializer if t.data_type==1), key=lambda t: np.prod(t.dims))
    t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(t)*np.float32(1.01), t.name))
    return proto.SerializeToString()


def test_other_features_leave_no_file_and_the_old_one(tmp_path, monkeypatch):
    model,bytes_of = made('gem'),module.onnx_bytes
    assert 1e-4<onnx_parity(model, changed(onnx_bytes(model)))<1
    monkeypatch.setattr(module, 'onnx_bytes', lambda *a: changed(bytes_of(*a)))
    with pytest.raises(ValueError, match=r'gives other features \(difference .*, tolerance 0.0001\): nothing was written'): export_onnx(model, tmp_path/'m.onnx')
    assert not any(tmp_path.iterdir())
    (tmp_path/'m.onnx').write_bytes(b'old')
    with pytest.raises(ValueError): export_onnx(model, tmp_path/'m.onnx')
    assert (tmp_path/'m.onnx').read_bytes()==b'old' and export_onnx(model, tmp_path/'m.onnx', tolerance=1)>1e-4


class Counts(nn.Module):
    "Takes the length of its batch for a number of its own, which tracing makes a law"
    preprocessing = Preprocessing((8,4), flip=False)
    def __init__(self): super().__init__(); self.w = nn.Parameter(torch.ones(1))
    def forward(self, x): return x.mean((2,3)).reshape(int(x.shape[0]), 3)*self.w*float(len(x))


class Unwritable(Counts):
    def forward(self, x): return torch.linalg.svdvals(x.mean(1)).sum(1, keepdim=True)*self.w


def test_what_an_exporter_gets_wrong_or_cannot_write_leaves_no_file(tmp_path):
    for net,words in ((Counts(), 'The exported network is another one|gives other features'), (Unwritable(), 'the exporter torchscript cannot write Unwritable')):
        with pytest.raises(ValueError, match=words) as e: export_onnx(net, tmp_path/'m.onnx')
        assert '\n' not in str(e.value) and not any(tmp_path.iterdir())


class Uneven(Counts):
    "A pooling that the older exporter refuses, with a word of torch's own"
    def forward(self, x): return nn.functional.adaptive_avg_pool2d(x, (5,1)).flatten(1)*self.w


def test_a_refusal_of_torch_is_one_line_and_no_listing_of_the_network(tmp_path, capfd):
    with pytest.raises(ValueError, match='the exporter torchscript cannot write Uneven: .*adaptive_avg_pool2d'): export_onnx(Uneven(), tmp_path/'m.onnx')
    assert not ''.join(capfd.readouterr()).strip() and not any(tmp_path.iterdir())


@pytest.mark.parametrize('wrong,said', [
    (lambda m: delattr(m, 'preprocessing'), 'this ReIDModel carries no preprocessing: set'), (lambda m: m.half(), r'has weights of torch.float16: write `model.float\(\)`')])
def test_what_cannot_be_written_is_said_in_a_line_by_all_that_write(wrong, said, tmp_path):
    import ccreid.training.hub # `save_pretrained`
    model = made('gem'); wrong(model)
    for write in (lambda: export_onnx(model, tmp_path/'m.onnx'), lambda: export_reid(model, tmp_path/'m.safetensors'), lambda: model.save_pretrained(tmp_path/'m'),
                  lambda: model.push_to_hub('a/b'), lambda: export_onnx(type('Learner', (), dict(model=model))(), tmp_path/'m.onnx')):
        with pytest.raises(ValueError, match=said) as e: write()
        assert '\n' not in str(e.value) and not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match='a Counts is no ReIDModel, .*: write it as ONNX'): export_reid(Counts(), tmp_path/'m.safetensors')


def test_a_file_of_two_streams_hears_the_modality(tmp_path):
    model = made('two-stream', flip=True).eval()
    export_onnx(model, tmp_path/'m.onnx')
    found,ours = open_model(tmp_path/'m.onnx'),NetworkEmbedder(model)
    x,modality = torch.randn(5, 3, *SIZE),torch.tensor([0,1,1,0,1])
    torch.testing.assert_close(found.vectors(x, modality), ours.vectors(x, modality), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.vectors(x), ours.vectors(x, torch.zeros(5, dtype=torch.long)), atol=1e-4, rtol=1e-4)
    assert (found.vectors(x)-found.vectors(x, modality)).abs().amax(1).gt(.01).tolist()==[False,True,True,False,True]
    found.batch = 2                                            # as in a file that takes two at a time
    torch.testing.assert_close(found.vectors(x, modality), ours.vectors(x, modality), atol=1e-4, rtol=1e-4)
    table = pd.DataFrame(dict(path=[str(tmp_path/f'{i}.png') for i in range(5)], modality=['visible','infrared','infrared','visible','infrared']))
    for p,a in zip(table.path, pictures(5)): Image.fromarray(a).save(p)
    table = table.assign(identity=0, clothes=0, camera=0)
    torch.testing.assert_close(embed(tmp_path/'m.onnx', table), embed(model, table), atol=1e-4, rtol=0)


def test_a_network_that_asks_for_more_than_pictures_is_refused(tmp_path):
    class Two(nn.Module):
        def forward(self, x, age): return x.mean((2,3))+age
    with warnings.catch_warnings(action='ignore'):
        torch.onnx.export(Two(), (torch.zeros(1,3,8,4), torch.zeros(1,1)), tmp_path/'m.onnx', input_names=['picture','age'], dynamo=False)
    with pytest.raises(ValueError, match='m.onnx takes picture, age, not pictures alone'): open_model(tmp_path/'m.onnx')
    with pytest.raises(FileNotFoundError, match='^no ONNX file at .*none.onnx$'): open_model(tmp_path/'none.onnx')
    (tmp_path/'d.onnx').mkdir()
    with pytest.raises(ValueError, match='d.onnx is a folder, not a file'): open_model(tmp_path/'d.onnx')


def test_a_nan_is_a_difference(tmp_path):
    model = made('gem'); model.neck.norm.weight.data.fill_(torch.nan) if hasattr(model.neck, 'norm') else next(model.neck.parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match='difference inf'): export_onnx(model, tmp_path/'m.onnx')
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_the_newer_exporter(tmp_path):
    pytest.importorskip('onnxscript')
    for name in 'gem','two-stream','uneven stripes','token':
        assert export_onnx(made(name), tmp_path/'m.onnx', exporter='dynamo')<1e-5
        torch.testing.assert_close(embed(tmp_path/'m.onnx', pictures()), embed(made(name), pictures()), atol=1e-4, rtol=0)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = made('gem', flip=True)
    export_reid(model, 'run/gem.safetensors')
    (tmp_path/'run'/'metrics.json').write_text(json.dumps(dict(data='prcc', method='gem', seed=1, protocols={'standard': dict(R1=.5, mAP=.4, queries=3)})))
    assert cli.main('export run --onnx m.onnx --folder m --license mit --name a/b'.split())==0
    said = capsys.readouterr().out
    assert 'm.onnx: images of 96x48 in batches of any length' in said and 'tolerance 0.0001' in said and '50.0' in (tmp_path/'m'/'README.md').read_text()
    torch.testing.assert_close(embed('m.onnx', pictures()), embed('m', pictures()), atol=1e-4, rtol=0)
    for words,line in (('m', 'nothing to write'), ('m --onnx m.pb', 'ends in .onnx'), ("none --onnx n.onnx", "none is no file and no folder: a network of ccreid is needed"),
                       ('m --onnx n.onnx --tolerance 0', 'nothing was written'), ('m --onnx n.onnx --tolerance x', '--tolerance'),
                       ('m --onnx n.onnx --exporter magic', 'magic'), ('m --onnx n.onnx --license mit', '--license is for a card, which --folder writes'), ('m --folder n --evaluation m/config.json', 'figures')):
        try: code = cli.main(f'export {words}'.split())
        except SystemExit as e: code = e.code
        err = capsys.readouterr().err
        assert code==2 and line in err and 'Traceback' not in err, err
    assert sorted(p.name for p in tmp_path.iterdir())==['m','m.onnx','run']
