"Checkpoints of torchreid and open-reid: the features of the other code, names counted, what cannot be opened, and the command"
import os

import ccreid.compat # before torchvision
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings, strategies as st

from ccreid import cli
from ccreid.training.embedding import embed
from ccreid.training.export import parity
from ccreid.training.hub import ReIDModel
from ccreid.training.other_checkpoints import load_other, resnet_of

NAMES = 'resnet18','resnet34','resnet50','resnet101','resnet152'


def theirs(name='resnet18', seed=0):
    "torchvision's network, from which both libraries have their names, with normalisations as after training"
    torch.manual_seed(seed)
    net = torchvision.models.get_model(name).eval()
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            for t in (m.weight, m.running_var): torch.nn.init.uniform_(t, .5, 1.5)
    net.fc = torch.nn.Identity()
    return net


def state_of(net): return net.state_dict() | {'classifier.weight': torch.zeros(7, 4), 'classifier.bias': torch.zeros(7)}


def saved(path, state, **more): torch.save(dict(state_dict=state, epoch=3, **more), path); return path


@pytest.mark.parametrize('name', NAMES)
def test_depth_is_read_off_the_names(name):
    with torch.device('meta'): state = torchvision.models.get_model(name).state_dict()
    assert resnet_of(state)==name and resnet_of({k: v for k,v in state.items() if 'layer3.1.' not in k}) is None


@pytest.mark.parametrize('before', ['', 'module.', 'base.', 'module.base.'])
@pytest.mark.parametrize('name', ['resnet18','resnet50'])
def test_the_features_of_the_other_code(name, before, tmp_path):
    if name=='resnet50' and before: pytest.skip('once')
    net = theirs(name)
    optimiser = torch.optim.Adam(net.parameters())
    plan = torch.optim.lr_scheduler.MultiStepLR(optimiser, [2])
    path = saved(tmp_path/'model.pth.tar-3', {before+k: v for k,v in state_of(net).items()}, rank1=np.float32(.5),
                 optimizer=optimiser.state_dict(), scheduler=plan.state_dict())
    model,left = load_other(path, (128,64))
    x = torch.randn(2, 3, 128, 64)
    with torch.no_grad(): torch.testing.assert_close(model(x)['features'], net(x), atol=1e-4, rtol=1e-4)
    assert left==['classifier.weight','classifier.bias'] and not model.training
    assert model.preprocessing.size==(128,64) and not model.preprocessing.flip
    if before=='base.': assert parity(model, ReIDModel.from_pretrained(model.save_pretrained(tmp_path/'m')))==0


@settings(max_examples=4)
@given(st.data())
def test_names_that_do_not_fit_are_counted(tmp_path_factory, data):
    state = state_of(theirs())
    names = [k for k in state if not k.startswith(('classifier','conv1')) and not k.endswith('num_batches_tracked') and '.conv1' not in k]
    gone,bent = data.draw(st.sets(st.sampled_from(names), max_size=3)),data.draw(st.sets(st.sampled_from(names), max_size=3))
    more = data.draw(st.sets(st.sampled_from(['attention.weight','head','layer5.w']), max_size=3))
    for k in bent: state[k] = torch.zeros(2, 2, 2)
    for k in gone: del state[k]
    for k in more: state[k] = torch.zeros(1)
    path = saved(tmp_path_factory.mktemp('c')/'x.pth', state)
    if not (gone | bent | more):
        assert resnet_of(state)==load_other(path)[0].config['backbone']=='resnet18'
        return
    said = f'{len(gone)} weights are missing, {len(more)} unknown and {len(bent-gone)} of another shape'
    with pytest.raises(ValueError, match=said) as e: load_other(path)
    assert '\n' not in str(e.value)


class Evil:
    def __reduce__(self): return os.system, ('touch opened',)


@pytest.mark.parametrize('content,said', [(b'', 'is empty'), (b'<html>', 'web page'), (b'version https://git-lfs', 'Git LFS'), (b'\x80\x04K\x01.', 'damaged|holds no table')])
def test_what_is_no_checkpoint(tmp_path, content, said):
    (tmp_path/'x.pth').write_bytes(content)
    with pytest.raises(ValueError, match=said): load_other(tmp_path/'x.pth')
    with pytest.raises(FileNotFoundError): load_other(tmp_path/'none.pth')


def test_nothing_runs_when_a_checkpoint_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for more in (Evil(), np.array([Evil()], object), np.zeros(2)):
        with pytest.raises(ValueError, match='holds more than tensors and plain values'): load_other(saved(tmp_path/'x.pth', {'conv1.weight': torch.zeros(1)}, rank1=more))
    assert not (tmp_path/'opened').exists()
    torch.save(dict(a=np.float32(1)), tmp_path/'y.pth')        # elsewhere numbers of numpy do not pass: the door is shut again
    with pytest.raises(Exception, match='numpy'): torch.load(tmp_path/'y.pth', weights_only=True)


@pytest.mark.parametrize('extra,said', [('conv1.conv.weight', "torchreid's OSNet"), ('layer1.0.bn1.IN.weight', 'IBN'), ('fc.0.weight', 'layers `fc`'),
                                        ('base.feat.weight', 'layer `feat`')])
def test_what_has_no_place_is_named_with_the_way_round(tmp_path, extra, said):
    with pytest.raises(ValueError, match=said) as e: load_other(saved(tmp_path/'x.pth', state_of(theirs()) | {extra: torch.zeros(2)}))
    assert 'write it as ONNX' in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(ValueError, match="fastreid's"): load_other(saved(tmp_path/'x.pth', {'backbone.conv1.weight': torch.zeros(1), 'heads.weight': torch.zeros(1)}))
    with pytest.raises(ValueError, match='holds no ResNet'): load_other(saved(tmp_path/'x.pth', {'blocks.0.w': torch.zeros(1)}))


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path/'model.pth.tar-3', state_of(theirs()), rank1=np.float64(.5))
    assert cli.main('export model.pth.tar-3 --size 64x32 --folder m'.split())==0
    said = 'model.pth.tar-3: resnet18 at 64x32; left out 2 weights (classifier.weight, classifier.bias)'
    assert said in capsys.readouterr().out
    a = list(np.random.default_rng(0).integers(0, 256, (2,64,32,3), dtype=np.uint8))
    torch.testing.assert_close(embed('m', a), embed(load_other('model.pth.tar-3', (64,32))[0], a))
    (tmp_path/'x.pth').write_bytes(b'no')
    assert cli.main('export x.pth --folder n'.split())==2 and not (tmp_path/'n').exists()
    assert 'Traceback' not in capsys.readouterr().err
