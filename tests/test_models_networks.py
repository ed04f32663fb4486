"Backbones, poolings, heads and the re-identification model"
import copy
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file
from torch import nn
from ccreid.models.backbones import Backbone, create_backbone, create_pool, load_pretrained, resnet_mini
from ccreid.models.heads import BNNeck, CosineClassifier, LinearClassifier
from ccreid.models.reid_model import ReIDModel

def awake(model):
    "timm starts the last normalisation of each block at 0, which hides the block: draw all of them"
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): nn.init.uniform_(m.weight, .5, 1.5)
    return model

def strides(net): return {n:m.stride for n,m in net.named_modules() if isinstance(m, nn.Conv2d)}

@pytest.mark.parametrize('name,changed', [('resnet18', {'layer4.0.conv1', 'layer4.0.downsample.0'}),
                                          ('resnet50', {'layer4.0.conv2', 'layer4.0.downsample.0'}),
                                          ('resnet_mini', {'layer4.0.conv1', 'layer4.0.downsample.0'})])
def test_last_stride_changes_two_convolutions_and_nothing_else(name, changed):
    a,b = create_backbone(name, last_stride=2).net,create_backbone(name).net
    before,after = strides(a),strides(b)
    assert {n for n in before if before[n]!=after[n]}==changed
    assert all(after[n]==(1,1) for n in changed)
    assert all(m.dilation==(1,1) for m in b.modules() if isinstance(m, nn.Conv2d))
    assert {k:v.shape for k,v in a.state_dict().items()}=={k:v.shape for k,v in b.state_dict().items()}

def test_last_stride_is_not_timms_output_stride():
    import timm
    torch.manual_seed(0)
    ours = awake(create_backbone('resnet18')).eval()
    theirs = timm.create_model('resnet18', num_classes=0, output_stride=16).eval()
    theirs.load_state_dict(ours.net.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(): a,b = ours(x),theirs.forward_features(x)
    assert a.shape==b.shape and (a-b).abs().max()>1e-3

def test_every_second_place_of_the_finer_map():
    "A block with stride 1, read at every second place, is the block with stride 2 (first convolution and shortcut)"
    fine = awake(create_backbone('resnet_mini')).eval()
    coarse = create_backbone('resnet_mini', last_stride=2).eval()
    coarse.load_state_dict(fine.state_dict())
    x = torch.randn(2, 64, 6, 4)
    with torch.no_grad():
        for part in (lambda b: b.bn1(b.conv1(x)), lambda b: b.downsample(x)):
            torch.testing.assert_close(part(fine.net.layer4[0])[:,:,::2,::2], part(coarse.net.layer4[0]))

@pytest.mark.parametrize('name', ['resnet26d', 'seresnet50', 'resnext50_32x4d'])
def test_relatives_of_the_resnet(name):
    b = create_backbone(name).eval()
    assert b.stride==16
    with torch.no_grad(): assert b(torch.zeros(1, 3, 64, 32)).shape==(1, b.channels, 4, 2)

def test_other_networks_keep_their_stride():
    b = create_backbone('mobilenetv3_small_050')
    assert b.stride==32 and b.channels==b(torch.zeros(2, 3, 96, 48)).shape[1]

def test_networks_without_a_map():
    with pytest.raises(ValueError, match='gives neither a feature map'): create_backbone('levit_128s')

def test_bad_names():
    with pytest.raises(ValueError, match='such as resnet_mini'): create_backbone('resnet_mimi')
    with pytest.raises(ValueError, match='last stride'): create_backbone('resnet_mini', last_stride=3)
    with pytest.raises(ValueError, match='no pooling'): create_pool('mean')

def test_making_a_backbone_leaves_no_trace():
    "No random numbers are drawn for measuring, no running statistics moved, training mode kept"
    net = resnet_mini()
    stats = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    b = Backbone(net, 'mini')
    assert torch.equal(state, torch.get_rng_state()) and b.net.training
    for k,v in net.state_dict().items(): assert torch.equal(v, stats[k])

def test_mini_is_small(tmp_path):
    save_file(ReIDModel('resnet_mini', classes=None).state_dict(), tmp_path/'m.safetensors')
    assert (tmp_path/'m.safetensors').stat().st_size <= 2e6

# --- pretrained weights

def test_pretrained_by_path_and_name(tmp_path, monkeypatch):
    a = create_backbone('resnet_mini')
    state = {k:torch.randn_like(v) if v.is_floating_point() else v for k,v in a.net.state_dict().items()}
    save_file(state|{'fc.weight':torch.ones(5, 128), 'fc.bias':torch.ones(5)}, tmp_path/'mine.safetensors')
    monkeypatch.setenv('CCREID_WEIGHTS', str(tmp_path))
    for asked in (tmp_path/'mine.safetensors', 'mine'):
        b = create_backbone('resnet_mini', pretrained=asked)
        for k,v in b.net.state_dict().items(): assert torch.equal(v, state[k]), k

def test_pretrained_true_asks_for_its_name(monkeypatch, tmp_path):
    import ccreid.models.backbones as module
    asked = []
    def locate(name, hub=None):
        asked.append((name, hub))
        save_file(create_backbone(name).net.state_dict(), tmp_path/'w.safetensors')
        return tmp_path/'w.safetensors'
    monkeypatch.setattr(module, 'locate', locate)
    for n in ('resnet_mini', 'resnet18', 'resnet18.a1_in1k'): create_backbone(n, pretrained=True)
    assert asked==[('resnet_mini',None), ('resnet18',None), ('resnet18.a1_in1k','timm/resnet18.a1_in1k')]

def test_weights_that_do_not_fit(tmp_path):
    good = create_backbone('resnet_mini').net.state_dict()
    cases = dict(missing={k:v for k,v in good.items() if k!='layer1.0.conv1.weight'},
                 extra=good|{'layer9.weight':torch.ones(1)}, shape=good|{'bn1.weight':torch.ones(3)})
    for name,state in cases.items():
        save_file(state, tmp_path/f'{name}.safetensors')
        with pytest.raises(ValueError, match='does not fit this network: 1 tensors'):
            create_backbone('resnet_mini', pretrained=tmp_path/f'{name}.safetensors')

def test_old_files_without_batch_counters_fit(tmp_path):
    state = {k:v for k,v in create_backbone('resnet_mini').net.state_dict().items() if 'num_batches' not in k}
    save_file(state, tmp_path/'old.safetensors')
    load_pretrained(resnet_mini(), tmp_path/'old.safetensors')

# --- pooling and heads

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 999))
def test_pools_equal_the_loop(b, c, h, w, seed):
    x = torch.randn(b, c, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pools = {n:create_pool(n).double()(x).detach() for n in ('avg', 'max', 'gem', 'max+avg')}
    for i in range(b):
        for j in range(c):
            v = x[i,j].flatten().tolist()
            gem = (sum(max(o, 1e-6)**3 for o in v)/len(v))**(1/3)
            assert abs(pools['avg'][i,j]-sum(v)/len(v))<1e-9 and pools['max'][i,j]==max(v)
            assert abs(pools['gem'][i,j]-gem)<1e-6
            assert pools['max+avg'][i,j]==max(v) and abs(pools['max+avg'][i,c+j]-sum(v)/len(v))<1e-9
            assert sum(max(o, 1e-6) for o in v)/len(v)-1e-9 <= pools['gem'][i,j] <= max(max(v), 1e-6)+1e-9

def test_gem_learns_its_exponent_without_nan_on_dead_maps():
    pool = create_pool('gem')
    x = torch.zeros(2, 3, 4, 4, requires_grad=True)
    pool(x).sum().backward()
    assert pool.p.grad.isfinite().all() and x.grad.isfinite().all()
    assert pool.multiplier==1 and create_pool('max+avg').multiplier==2

def test_neck_equals_the_formula_and_keeps_a_frozen_shift():
    torch.manual_seed(0)
    neck,x = BNNeck(5, bias=False),torch.randn(8, 5)
    expected = neck.weight*(x-x.mean(0))/(x.var(0, unbiased=False)+1e-5).sqrt()
    torch.testing.assert_close(neck(x), expected)
    opt = torch.optim.SGD(neck.parameters(), lr=1.)
    neck(x).pow(3).sum().backward()
    opt.step()
    assert (neck.bias==0).all()
    both = BNNeck(5)
    assert both.bias.requires_grad and (both.bias==0).all()

def test_classifiers():
    torch.manual_seed(0)
    lin = LinearClassifier(400, 300)
    assert abs(lin.weight.std()-.001)<2e-5 and (lin.bias==0).all()
    head,x = CosineClassifier(16, 7),torch.randn(5, 16)
    head.weight.data *= torch.arange(1., 8)[:,None]                       # the length of a row does not matter
    for i in range(5):
        for c in range(7): assert abs(head(x)[i,c]-F.cosine_similarity(x[i], head.weight[c], dim=0))<1e-5
    assert head(x).abs().max()<=1+1e-6

# --- the model

@pytest.mark.parametrize('pool,dim', [('avg',128), ('max',128), ('gem',128), ('max+avg',256)])
@pytest.mark.parametrize('neck,classifier', [('bn','linear'), ('bn-no-bias','cosine'), ('none','linear-no-bias')])
def test_model_outputs_and_config(pool, dim, neck, classifier):
    model = awake(ReIDModel('resnet_mini', pool=pool, classes=7, neck=neck, classifier=classifier))
    out = model(torch.randn(4, 3, 96, 48))
    assert type(out) is dict and all(isinstance(o, torch.Tensor) for o in out.values())
    assert {k:tuple(v.shape) for k,v in out.items()}==dict(features=(4,dim), pooled=(4,dim), map=(4,128,6,3), logits=(4,7))
    twin = ReIDModel.from_config(model.config)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 128, 64)
    with torch.no_grad(): a,b = model.eval()(x),twin.eval()(x)
    for k in a: assert torch.equal(a[k], b[k])

def test_config_is_json_and_keeps_the_stride():
    import json
    model = ReIDModel(create_backbone('resnet_mini', last_stride=2), classes=None)
    twin = ReIDModel.from_config(json.loads(json.dumps(model.config)))
    assert twin.backbone.stride==32 and twin.config==model.config
    assert set(twin(torch.randn(2, 3, 96, 48)))=={'features', 'pooled', 'map'}

def test_aux_travels_with_the_model():
    model = ReIDModel('resnet_mini')
    n = len(list(model.parameters()))
    model.aux['clothes'] = CosineClassifier(model.dim, 3)
    assert len(list(model.parameters()))==n+1 and 'aux.clothes.weight' in model.state_dict()

def test_channels_last_and_batch_independence():
    model = awake(ReIDModel('resnet_mini', classes=3)).eval()
    x = torch.randn(5, 3, 96, 48)
    with torch.no_grad():
        plain,one = model(x),model(x[:1])
        last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    for k in plain:
        torch.testing.assert_close(plain[k], last[k], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(plain[k][:1], one[k], atol=1e-4, rtol=1e-4)

def test_deepcopy_and_autocast():
    model = copy.deepcopy(awake(ReIDModel('resnet_mini', classes=3)))
    with torch.autocast('cpu', dtype=torch.bfloat16): out = model(torch.randn(4, 3, 96, 48))
    assert all(o.float().isfinite().all() for o in out.values())
