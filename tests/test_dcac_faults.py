"Diffusion models that cannot give feedback: what is missing, damaged or of another kind is named with its folder, in one line"
import json, shutil
from functools import partial
import pytest, torch
import ccreid.compat
from safetensors.torch import load_file, save_file
from ccreid.dcac.alignment import FeatureAlignment, middle_features
from ccreid.dcac.denoisers import UNetDenoiser
from ccreid.dcac.diffusion import sd_scheduler
from ccreid.dcac.expert import DiffusionExpert, load_expert
from ccreid.generation.tiny_networks import tiny_unet, tiny_vae
from ccreid.weights import WeightsNotFound
from test_dcac_denoisers import sd3
from test_dcac_training import dataset, learner

FILE = 'diffusion_pytorch_model.safetensors'

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('whole')/'sd'
    tiny_unet(channels=4).save_pretrained(path/'unet'); tiny_vae().save_pretrained(path/'vae'); sd_scheduler().save_pretrained(path/'scheduler')
    return path

def changed(path, **values): path.write_text(json.dumps(json.loads(path.read_text()) | values))

def wider(f): tiny_unet(channels=4, block_out_channels=(32,64)).save_pretrained(f/'wide'); shutil.copy(f/'wide'/FILE, f/'unet'/FILE)

def without(f, part):
    state = load_file(f/part/FILE)
    state.pop(next(iter(state)))
    save_file(state, f/part/FILE, metadata=dict(format='pt'))

FAULTS = {
    'no UNet': (lambda f: shutil.rmtree(f/'unet'), 'config.json'), 'no autoencoder': (lambda f: shutil.rmtree(f/'vae'), 'config.json'),
    'no schedule': (lambda f: shutil.rmtree(f/'scheduler'), 'scheduler_config.json'), 'no weights': (lambda f: (f/'unet'/FILE).unlink(), FILE),
    'a web page': (lambda f: (f/'unet'/FILE).write_text('<!DOCTYPE html><html>'), r'web page \(HTML\)'),
    'a pointer': (lambda f: (f/'vae'/FILE).write_text('version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n'), 'pointer of Git LFS'),
    'half of it': (lambda f: (f/'unet'/FILE).write_bytes((f/'unet'/FILE).read_bytes()[:999]), 'damaged'),
    'another architecture': (wider, 'expected shape'), 'one weight too few': (lambda f: without(f, 'vae'), '1 weights are missing'),
    'no JSON': (lambda f: (f/'vae'/'config.json').write_text('<html>'), 'not a valid JSON'),
    'velocities': (lambda f: changed(f/'scheduler'/'scheduler_config.json', prediction_type='v_prediction'), 'predicts v_prediction'),
    'one like SDXL': (lambda f: tiny_unet(channels=4, addition_embed_type='text_time', addition_time_embed_dim=8,
                                          projection_class_embeddings_input_dim=80).save_pretrained(f/'unet'), 'addition_embed_type'),
    'depth as a fifth channel': (lambda f: tiny_unet(channels=5).save_pretrained(f/'unet'), 'takes 5 channels and gives 4')}

@pytest.mark.parametrize('name', FAULTS)
def test_what_is_wrong_with_a_folder_is_named(folder, tmp_path, name):
    change,says = FAULTS[name]
    change(shutil.copytree(folder, tmp_path/'mine'))
    with pytest.raises(ValueError, match=says) as e: load_expert(str(tmp_path/'mine'), size=(16,8), rank=2)
    assert str(tmp_path/'mine') in str(e.value) and len(str(e.value).splitlines())==1

def test_a_whole_folder_is_read_and_one_that_is_not_there_is_named(folder, tmp_path):
    assert load_expert(str(folder), size=(16,8), rank=2).dim==32
    for name in (str(tmp_path/'none'), 'no_such_model'):
        with pytest.raises(WeightsNotFound, match=name.split('/')[-1]): load_expert(name)

@pytest.mark.parametrize('more, says', [(dict(class_embed_type='timestep'), 'class_embed_type'), (dict(num_class_embeds=3), 'num_class_embeds'),
    (dict(encoder_hid_dim=16, encoder_hid_dim_type='text_proj'), 'encoder_hid_dim'), (dict(cross_attention_dim=(16,32)), 'several lengths')])
def test_a_unet_that_wants_more_than_a_condition(more, says):
    with pytest.raises(ValueError, match=says): UNetDenoiser(tiny_unet(channels=4, **more))

def test_a_network_without_a_middle_is_no_target(dataset, tmp_path):
    make = lambda seed=0: DiffusionExpert(sd3(), tiny_vae(), size=(16,8), mode='frozen')
    with pytest.raises(ValueError, match='SD3Transformer2DModel has no middle block'): learner(dataset, FeatureAlignment(make))
    with pytest.raises(ValueError, match='no middle block'): middle_features(make(), torch.randn(1, 4, 8, 4), torch.Generator())

@pytest.mark.parametrize('mode', ['lora','frozen','full'])
def test_checkpointing_runs_a_block_again_and_changes_nothing(mode):
    "In evaluation mode too, which the UNet is in"
    found = {}
    for saving in (False,True):
        torch.manual_seed(0)
        e,calls = DiffusionExpert(tiny_unet(channels=4), tiny_vae(), size=(16,8), rank=2, mode=mode, checkpointing=saving),[]
        e.unet.up_blocks[0].resnets[0].conv1.register_forward_hook(lambda *_: calls.append(1))
        torch.manual_seed(1)
        c = torch.randn(2, 1, 32, requires_grad=True)
        e.error(torch.randn(2, 4, 8, 4), c, torch.Generator().manual_seed(0)).sum().backward()
        found[saving] = c.grad,[p.grad for p in e.trained().parameters()],len(calls)
    (a,ps,once),(b,qs,twice) = found[False],found[True]
    assert (once, twice)==(1, 2) and torch.allclose(a, b, atol=1e-6) and a.abs().sum()>0
    assert all(p is q is None or torch.allclose(p, q, atol=1e-5) for p,q in zip(ps, qs)) and len(ps)==len(qs)
