"HSGL's Algorithm 1 from the command line, on photograph-like pictures, with tiny networks of the real classes in the published layouts"
import json, shutil
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
pytest.importorskip('transformers'); pytest.importorskip('diffusers'); pytest.importorskip('mediapipe')
import ccreid.compat
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from ccreid.data.layouts import load_dataset
from ccreid.data.mannequins import MannequinWorld
from ccreid.generation.catvton import tiny_catvton
from ccreid.generation.inpainting import tiny_pipeline
from ccreid.generation.dressing import Dresser, Fit, soft_edge
from ccreid.generation.jobs import Networks, read_generated
from ccreid.generation.parsing import tiny_parser
from ccreid.generation.tiny_networks import tiny_unet
from ccreid.generation.try_off import attention_blocks
from test_generation_catvton import BASE, NAME, VAE, publish
from test_generation_idm_vton import folder as idm_folder # a fixture

SMALL = '--device cpu --workers 0 --quiet --epochs 1 --set backbone=resnet_mini --set size=[64,32] --set pretrained=false --set identities=3 --set images=2'.split()

@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    "A PRCC of drawn people with the grain of a camera, which no world owns up to"
    root,rng = tmp_path_factory.mktemp('data')/'prcc',np.random.default_rng(0)
    MannequinWorld(identities=(3,0,2), outfits=2, cameras=3, images=2, size=(256,128), seed=4).write(root, layout='prcc')
    (root/'mannequins.json').unlink()
    for p in root.rglob('*.jpg'):
        pixels = np.asarray(Image.open(p).convert('RGB'), float)+rng.normal(0, 4, (256,128,3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(p, quality=92)
    return root

@pytest.fixture(scope='module')
def weights(tmp_path_factory, task_file, photographs):
    "The default networks of every part by their names, tiny: a parser that sees upper clothes in about half of every picture"
    home = tmp_path_factory.mktemp('weights')
    parser = tiny_parser()
    last,upper = parser.model.decode_head.classifier,4                  # ATR's upper clothes
    with torch.no_grad():
        last.weight.zero_(); last.bias.fill_(-99.); last.bias[0] = 0.
        last.weight[upper] = torch.randn(last.weight[upper].shape, generator=torch.Generator().manual_seed(1)); last.bias[upper] = 0.
        seen = parser._scores([Image.open(p) for p in sorted(photographs.rglob('train/**/*.jpg'))])
        last.bias[upper] = -seen[:,upper].median()
    folder = home/'mattmdjaga'/'segformer_b2_clothes'
    parser.model.save_pretrained(folder); parser.processor.save_pretrained(folder)
    shutil.copy(task_file, home/'pose_landmarker_heavy.task')
    dress = tiny_catvton()
    publish(home, dress)                                                # base and autoencoder are those of the try-off too
    tops = {k: v.clone() for k,v in attention_blocks(dress.unet).state_dict().items() if '.attn2.' not in k}
    (home/'ixarchakos'/'tryOffAnyone').mkdir(parents=True)
    save_file(tops, home/'ixarchakos'/'tryOffAnyone'/'model.safetensors')
    tiny_pipeline().save_pretrained(home/'sd2-community'/'stable-diffusion-2-inpainting')
    return home

@pytest.fixture
def run(ccreid, weights, monkeypatch, tmp_path):
    monkeypatch.setenv('CCREID_WEIGHTS', str(weights)); monkeypatch.setenv('CCREID_RUNS', str(tmp_path/'runs'))
    def run(*words):
        code,out,err = ccreid(*words)
        assert code==0, err
        return out
    return run

def made(folder): return sorted(Path(folder).rglob('*.png'))

TRYOFF = 'tryoff.size=64x48', 'tryoff.steps=1'
def shsg(run, photographs, out, *models):
    words = [w for m in (*TRYOFF, *models) for w in ('--model', m)]
    return run('generate','shsg','--data','prcc','--root',photographs,'--out',out,'--device','cpu','--people','1','--garments','2',*words)

def trained(run, photographs, tmp_path, generated, *more):
    "Lines 20 to 36 and 2: training on hard samples, and the figures"
    data = '--data','prcc','--root',photographs
    run('train',*data,*SMALL,'--method','fire+hsal','--set','start_epoch=0','--generated',generated,*more,'--out',tmp_path/'full')
    record = json.loads((tmp_path/'full'/'metrics.json').read_text())
    assert record['train']['generated']==len(made(generated/'images')) and record['protocols']
    assert 'clothes-changing' in run('evaluate','--weights',tmp_path/'full'/'fire+hsal.safetensors',*data,'--device','cpu')
    return record

def dressed(folder, photographs):
    "Settings of the try-on; every image is there, and outside the soft edge of the mask it is its source"
    choices = json.loads((folder/'choices.json').read_text())
    pictures = made(folder/'images')
    assert pictures and len(pictures)==len(choices['people'])*2 and choices['job']['rule']=='ordered'
    samples,networks = read_generated(folder, load_dataset('prcc', photographs, verbose=False)),Networks('cpu')
    look = Dresser(networks.parser, networks.keypoints, size=(64,48))
    assert len(samples)==len(pictures)
    for r in samples.itertuples():
        source = Image.open(r.source).convert('RGB')
        new,old,fit = np.asarray(Image.open(r.path)),np.asarray(source),Fit(source, (64,48))
        edge = soft_edge(look._seen([fit.to(source)], None)[0], .02*64).resize(source.size, Image.Resampling.BILINEAR)
        out = np.asarray(edge)==0
        assert .05<out.mean()<.98 and np.array_equal(new[out], old[out]) and (new[~out]!=old[~out]).any(-1).mean()>.5
    return json.loads((folder/'images'/'job.json').read_text())['settings']['tryon']

def test_algorithm_1_from_check_to_evaluate(run, ccreid, photographs, tmp_path):
    data = '--data','prcc','--root',photographs
    code,out,_ = ccreid('check','prcc',photographs)                     # only the counts are not PRCC's
    assert code==1 and 'something is off' in out and 'damaged' not in out
    out = run('generate','chpsg',*data,'--device','cpu','--variants','1','--model','inpainter.size=64x32','--model','inpainter.steps=1')
    real = load_dataset('prcc', photographs, verbose=False).train
    assert f'{len(real)} images made' in out and 'Drawn' not in out and len(made(tmp_path/'runs'/'prcc-chpsg'))==len(real)
    run('train',*data,*SMALL,'--method','fire','--set','start_epoch=0','--generated',tmp_path/'runs'/'prcc-chpsg','--only-generated','--out',tmp_path/'pre')
    shsg(run, photographs, tmp_path/'shsg', 'tryon.size=64x48', 'tryon.steps=1')
    settings = dressed(tmp_path/'shsg', photographs)
    assert settings['size']==[64,48] and settings['steps']==1 and 'CatVTON' in settings['model'] and settings['guidance']==2.5
    record = trained(run, photographs, tmp_path, tmp_path/'shsg', '--start', tmp_path/'pre'/'fire.safetensors')
    assert record['start']['file'].endswith('fire.safetensors')

def test_the_papers_try_on(run, photographs, idm_folder, tmp_path):
    maps = tmp_path/'maps'
    for p in photographs.rglob('*.jpg'):
        to = maps/p.relative_to(photographs).with_suffix('.png')
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (64,64), (70,90,200)).save(to)
    shsg(run, photographs, tmp_path/'o', f'tryon={idm_folder}', f'body_map={maps}', 'tryon.size=64x48', 'tryon.steps=1')
    assert dressed(tmp_path/'o', photographs)['model']=='IDM-VTON'
    trained(run, photographs, tmp_path, tmp_path/'o')

def test_an_editing_pipeline(run, photographs, tmp_path):
    "InstructPix2Pix by NAME@CLASS, from weights whose index says something else: no mask, words alone, the person put back around it"
    parts = dict(tiny_pipeline().components, unet=tiny_unet(8), requires_safety_checker=False)
    StableDiffusionPipeline(**{**parts, 'image_encoder': None}).save_pretrained(tmp_path/'pix2pix')
    shsg(run, photographs, tmp_path/'o', f"tryon={tmp_path/'pix2pix'}@StableDiffusionInstructPix2PixPipeline", 'tryon.size=64x48', 'tryon.steps=2')
    settings = dressed(tmp_path/'o', photographs)
    assert settings['pipeline']=='StableDiffusionInstructPix2PixPipeline' and settings['steps']==2 and 'Dress the person in {text}' in settings['prompt'] and settings['garment']==''
    trained(run, photographs, tmp_path, tmp_path/'o')

def test_a_setting_that_a_network_has_not(ccreid, photographs, weights, monkeypatch, tmp_path):
    monkeypatch.setenv('CCREID_WEIGHTS', str(weights))
    code,_,err = ccreid('generate','shsg','--data','prcc','--root',photographs,'--out',tmp_path/'o','--device','cpu','--model','tryon.colour=red')
    assert code==2 and len(err.strip().splitlines())==1 and "tryon has no setting 'colour': it has" in err and 'guidance' in err
