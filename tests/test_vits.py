"Transformers and other networks of timm: maps, vectors, sizes, weights of another size, preprocessing, export"
import pytest, torch
from safetensors.torch import save_file
import ccreid.compat
import timm
from ccreid.data.transforms import Preprocessing
from ccreid.models.backbones import Backbone, create_backbone, load_pretrained
from ccreid.models.reid_model import ReIDModel
from ccreid.models.vits import create_network, feature_map, preprocessing_of, resampled, whole_vector
from ccreid.training.embedding import embed_batch
from ccreid.training.export import export_reid, load_reid, parity

SIZE = (128,64)
KINDS = { # name: channels of the map, its size, length of the vector
    'vit_tiny_patch16_224': (192, (8,4), 192),
    'swin_tiny_patch4_window7_224': (768, (4,2), 768),
    'convnext_atto': (320, (4,2), 320),
    'efficientnet_b0': (1280, (4,2), 1280),
    'mobilenetv3_small_050': (288, (4,2), 1024),
    'mixer_s32_224': (512, (4,2), 512)}

@pytest.mark.parametrize('name', KINDS)
def test_every_kind_gives_a_map_and_a_vector(name):
    channels,place,vector = KINDS[name]
    b = create_backbone(name, size=SIZE).eval()
    with torch.no_grad():
        x = torch.randn(2,3,*SIZE)
        m,v = b.map_and_vector(x)
        assert torch.equal(m, b(x))
    assert m.shape==(2,channels,*place) and v.shape==(2,vector) and (b.channels,b.vector)==(channels,vector)
    assert b.stride==SIZE[0]//place[0] and b.size==(None if name in ('convnext_atto','efficientnet_b0','mobilenetv3_small_050') else SIZE)

def small(name, **kw): return timm.create_model(name, num_classes=0, img_size=SIZE, depth=1, **kw).eval()

def test_tokens_lie_where_their_patches_lay():
    net = small('vit_tiny_patch16_224')
    x = torch.randn(1,3,*SIZE)
    with torch.no_grad():
        f = net.forward_features(x)
        m = feature_map(net, f, SIZE)
        net.patch_embed.proj.weight.zero_()
    for row in range(8):
        for col in range(4): assert torch.equal(m[:,:,row,col], f[:,1+4*row+col])
    assert torch.equal(whole_vector(net, f), f[:,0])
    swin = create_network('swin_tiny_patch4_window7_224', (96,48))[0].eval()
    with torch.no_grad():
        f = swin.forward_features(torch.randn(1,3,96,48))
        m = feature_map(swin, f, (96,48))
    assert f.shape==(1,3,2,768) and torch.equal(m[0,:,2,1], f[0,2,1])

def test_the_vector_of_networks_with_and_without_a_class_token():
    x = torch.randn(2,3,*SIZE)
    with torch.no_grad():
        siglip = small('vit_base_patch16_siglip_224')
        f = siglip.forward_features(x)
        assert siglip.cls_token is None and torch.equal(whole_vector(siglip, f), siglip.attn_pool(f))
        assert feature_map(siglip, f, SIZE).shape==(2,768,8,4)
        gap = small('vit_base_patch16_clip_quickgelu_224')
        assert torch.equal(whole_vector(gap, f2 := gap.forward_features(x)), f2[:,0])
        two = small('deit_tiny_distilled_patch16_224')                # class token and distillation token
        f = two.forward_features(x)
        assert f.shape[1]==34 and torch.equal(feature_map(two, f, SIZE)[:,:,0,0], f[:,2])
        registers = timm.create_model('vit_tiny_patch16_224', num_classes=0, img_size=SIZE, depth=1, reg_tokens=4).eval()
        f = registers.forward_features(x)
        assert torch.equal(feature_map(registers, f, SIZE)[:,:,0,0], f[:,5])

def test_sizes_that_cannot_be_are_refused():
    for size in (120,64),(128,72),(8,8):
        with pytest.raises(ValueError, match=r'^vit_tiny_patch16_224 cuts an image into patches of 16x16, which do not divide .*nearest size'):
            create_backbone('vit_tiny_patch16_224', size=size)
    with pytest.raises(ValueError, match='patches of 4x4'): create_backbone('swin_tiny_patch4_window7_224', size=(130,64))
    b = create_backbone('vit_tiny_patch16_224', size=SIZE)
    with pytest.raises(ValueError, match='made for 128x64 pixels, and the image has 64x128'): b(torch.zeros(1,3,64,128))
    assert create_backbone('vit_tiny_patch16_224').size==(224,224)
    assert create_backbone('resnet18', size=(33,17)).size is None
    with pytest.raises(ValueError, match='neither'): create_backbone('levit_128s')

def test_asking_for_a_size_changes_no_convolutional_network():
    torch.manual_seed(0); a = create_backbone('efficientnet_b0')
    torch.manual_seed(0); b = create_backbone('efficientnet_b0', size=SIZE)
    for (k,v),w in zip(a.state_dict().items(), b.state_dict().values()): assert torch.equal(v, w), k

REDUCED = {
    'vit_tiny_patch16_224': (dict(depth=1), 'pos_embed'),
    'swin_tiny_patch4_window7_224': (dict(depths=(1,1), embed_dim=12, num_heads=(1,2)), 'layers.0.blocks.0.attn.relative_position_bias_table')}

@pytest.mark.parametrize('name', REDUCED)
def test_weights_of_another_size_are_resampled_and_anything_else_refused(name, tmp_path):
    less,key = REDUCED[name]
    full,net = timm.create_model(name, num_classes=7, **less),timm.create_model(name, num_classes=0, img_size=(64,16), **less)
    save_file(full.state_dict(), tmp_path/'w.safetensors')
    load_pretrained(net, tmp_path/'w.safetensors')
    own,given = net.state_dict(),full.state_dict()
    assert all(torch.equal(own[k], given[k]) for k in own if own[k].shape==given[k].shape and 'index' not in k)
    assert own[key].shape!=given[key].shape and 0<own[key].std()<=given[key].std()*1.5
    save_file({k: v for k,v in given.items() if 'norm' not in k}, tmp_path/'less.safetensors')
    with pytest.raises(ValueError, match='does not fit this network'): load_pretrained(net, tmp_path/'less.safetensors')

def test_position_embeddings_keep_the_class_token_and_the_order():
    wide,tall = timm.create_model('vit_tiny_patch16_224', num_classes=0, depth=1),small('vit_tiny_patch16_224')
    with torch.no_grad(): wide.pos_embed.copy_(torch.arange(197.)[None,:,None].expand_as(wide.pos_embed))
    pos = resampled(tall, wide.state_dict())['pos_embed']
    assert pos.shape==tall.pos_embed.shape and (pos[0,0]==0).all()
    rows = pos[0,1:,0].view(8,4)
    assert (rows.diff(dim=0)>0).all() and (rows.diff(dim=1)>0).all()

def test_preprocessing_is_that_of_the_weights():
    ours = Preprocessing((64,32))
    for name in ('resnet_mini','resnet50','vit_tiny_patch16_224'): assert preprocessing_of(name, (64,32))==ours
    assert preprocessing_of('resnet_mini', (64,32), pretrained=True)==ours
    assert preprocessing_of('resnet50', (64,32), pretrained=True)==ours      # torchvision's weights: bilinear, ImageNet
    clip = preprocessing_of('vit_base_patch16_clip_quickgelu_224.openai', (64,32), pretrained=True)
    assert clip.mean==pytest.approx((.4815,.4578,.4082), abs=1e-4) and clip.interpolation=='bicubic'
    assert preprocessing_of('vit_base_patch16_siglip_224.webli', (64,32), pretrained=True, flip=False).to_dict()==dict(
        size=[64,32], mean=[.5]*3, std=[.5]*3, flip=False, interpolation='bicubic')
    assert preprocessing_of('resnet18', (64,32), pretrained='vit_base_patch16_siglip_224.webli').mean==(.5,.5,.5)
    b = create_backbone('vit_tiny_patch16_224', size=SIZE)
    assert preprocessing_of(b, SIZE)==Preprocessing(SIZE)
    b.pretrained = True
    assert preprocessing_of(b, SIZE).mean==tuple(timm.get_pretrained_cfg('vit_tiny_patch16_224').mean)

@pytest.mark.parametrize('weights', ['me/resnet50.mine','me/r50','models/resnet50.pth'])
def test_weights_of_somebody_else_say_nothing_of_preprocessing(weights, monkeypatch):
    monkeypatch.setenv('CCREID_WEIGHTS_RESNET50', weights)
    assert preprocessing_of('resnet50', (64,32), pretrained=True)==Preprocessing((64,32))
    assert preprocessing_of('resnet50', (64,32), pretrained='resnet50.pth')==Preprocessing((64,32))

def test_a_token_is_asked_only_of_a_backbone_that_has_one():
    own = torch.nn.Conv2d(3, 8, 3); own.channels = 8
    assert ReIDModel(own)(torch.zeros(2, 3, 16, 8))['features'].shape==(2,16)
    with pytest.raises(ValueError, match="pool 'token' needs a backbone with `vector`"): ReIDModel(own, pool='token')

def test_a_network_that_fails_without_a_word_is_named():
    class Silent(torch.nn.Module):
        num_features = 8
        def forward_features(self, x): raise AssertionError
    with pytest.raises(ValueError, match='own gives neither a feature map .* nor tokens: AssertionError'): Backbone(Silent(), 'own')

@pytest.mark.parametrize('name,pool', [('vit_tiny_patch16_224','token'), ('convnext_atto','gem')])
def test_exported_models_are_built_again_from_name_and_size(name, pool, tmp_path):
    model = ReIDModel(create_backbone(name, size=SIZE), pool=pool, classes=5)
    model.preprocessing = preprocessing_of(model.backbone, SIZE)
    again = load_reid(export_reid(model, tmp_path/'m.safetensors'))
    assert parity(model, again)<1e-5 and again.config=={**model.config, 'classes': None}
    assert again.config.get('size')==(None if name=='convnext_atto' else list(SIZE))
    assert embed_batch(again, torch.zeros(1,3,*SIZE), True).shape==(1,model.dim)

def test_the_shapes_of_a_swin_are_known_without_its_memory():
    from ccreid.training.export import _shapes
    shapes = _shapes(dict(backbone='swin_tiny_patch4_window7_224', size=[128,64], pool='avg', classes=None))
    assert shapes['backbone.net.layers.0.blocks.0.attn.relative_position_bias_table'][1]==3 and shapes['neck.weight']==(768,)

def test_gradients_reach_the_network_through_map_and_token():
    for pool in 'token','gem':
        model = ReIDModel('vit_tiny_patch16_224', pool=pool, classes=5, size=(32,16))
        model(torch.randn(2,3,32,16))['logits'].square().sum().backward()
        assert model.backbone.net.patch_embed.proj.weight.grad.abs().sum()>0

def test_a_model_of_pooled_tokens_has_no_pooling_of_maps():
    model = ReIDModel('vit_tiny_patch16_224', pool='token', size=SIZE)
    assert model.dim==192 and model.eval()(torch.zeros(1,3,*SIZE))['map'].shape==(1,192,8,4)
    with pytest.raises(ValueError, match='no pooling of a map'): model.pool(torch.zeros(1,192,8,4))
    assert 'size' not in ReIDModel('resnet_mini').config
