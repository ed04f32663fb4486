"DLCR from the command line, on photograph-like pictures, with tiny networks of the real classes: check, describe, paint, train, refine"
import json
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
pytest.importorskip('transformers'); pytest.importorskip('diffusers')
import ccreid.compat
from diffusers import StableDiffusionPipeline
from ccreid.data.layouts import load_dataset
from ccreid.dlcr.tiles import write_released
from ccreid.generation.inpainting import tiny_pipeline
from ccreid.generation.jobs import Networks, read_generated
from ccreid.generation.parsing import clothes_mask, main_person, tiny_parser
from ccreid.generation.tiny_networks import tiny_unet
from ccreid.generation.tiny_talkers import taught, tiny_language, tiny_llava
from test_hsgl_algorithm import SMALL, made, photographs # a fixture

@pytest.fixture(scope='module')
def weights(tmp_path_factory, photographs):
    "The default networks of every part by their names, tiny: a parser that sees upper clothes in about half of every picture"
    home,parser,upper = tmp_path_factory.mktemp('weights'),tiny_parser(),4
    last = parser.model.decode_head.classifier
    with torch.no_grad():
        last.weight.zero_(); last.bias.fill_(-99.); last.bias[0] = 0.
        last.weight[upper] = torch.randn(last.weight[upper].shape, generator=torch.Generator().manual_seed(1)); last.bias[upper] = 0.
        last.bias[upper] = -parser._scores([Image.open(p) for p in sorted(photographs.rglob('*.jpg'))])[:,upper].median()
    folder = home/'mattmdjaga'/'segformer_b2_clothes'
    parser.model.save_pretrained(folder); parser.processor.save_pretrained(folder)
    llava,processor = tiny_llava()
    taught(llava, processor.tokenizer, 'shirt').save_pretrained(home/'llava-hf'/'llava-1.5-7b-hf'); processor.save_pretrained(home/'llava-hf'/'llava-1.5-7b-hf')
    llama,tokenizer = tiny_language()
    taught(llama, tokenizer, 'shirt').save_pretrained(home/'meta-llama'/'Llama-2-7b-chat-hf'); tokenizer.save_pretrained(home/'meta-llama'/'Llama-2-7b-chat-hf')
    tiny_pipeline().save_pretrained(home/'sd2-community'/'stable-diffusion-2-inpainting')
    parts = dict(tiny_pipeline().components, unet=tiny_unet(4), requires_safety_checker=False, image_encoder=None)
    StableDiffusionPipeline(**parts).save_pretrained(home/'stable-diffusion-v1-5'/'stable-diffusion-v1-5')
    return home

@pytest.fixture
def run(ccreid, weights, photographs, monkeypatch, tmp_path):
    monkeypatch.setenv('CCREID_WEIGHTS', str(weights)); monkeypatch.setenv('CCREID_RUNS', str(tmp_path/'runs'))
    def run(command, *words):
        code,out,err = ccreid(*command.split(), '--data','prcc','--root',photographs,'--device','cpu',*words)
        assert code==0, err
        return out
    return run

TINY = '--model','inpainter.size=64x32','--model','inpainter.steps=1'
def dataset(photographs): return load_dataset('prcc', photographs, verbose=False)
def record(folder): return json.loads((folder/'metrics.json').read_text())

def painted(samples):
    "Outside the mask every image is its source, inside it is not"
    parser = Networks('cpu').parser
    for r in samples.iloc[::5].itertuples():
        source = Image.open(r.source).convert('RGB')
        mask = clothes_mask(main_person(parser([source])[0]), 'paper')
        new,old = np.asarray(Image.open(r.path)),np.asarray(source)
        assert .05<mask.mean()<.98 and np.array_equal(new[~mask], old[~mask]) and (new[mask]!=old[mask]).any(-1).mean()>.5

def test_from_check_to_refined_figures(run, ccreid, photographs, tmp_path):
    code,out,_ = ccreid('check','prcc',photographs)                     # only the counts are not PRCC's
    assert code==1 and 'something is off' in out and 'damaged' not in out
    real = dataset(photographs)
    n,folder = len(real.train),tmp_path/'runs'/'prcc-dlcr'
    out = run('generate dlcr', '--variants','2', *TINY)
    assert f'{2*n} images made' in out and 'Drawn' not in out and '6 clothes described' in out
    words = json.loads((folder/'words.json').read_text())
    assert set(words['descriptions'].values())=={'shirt |  | '} and 'llava' in str(words['settings']) and 'Llama' in str(words['settings'])
    samples = read_generated(folder, real)
    assert len(samples)==2*n==len(made(folder)) and set(samples.prompt)=={'A person wearing shirt'} and set(samples.clothes)=={-1}
    own = dict(zip(real.train.path, real.train.clothes))
    assert all(t!=own[s] for s,t in zip(samples.source, samples.target))
    painted(samples)
    job = json.loads((folder/'images'/'job.json').read_text())
    assert next(iter(job['terms'].values()))['terms'].startswith('academic use only') and job['settings']['mask']=='paper' and job['settings']['inpainter']['steps']==1
    again = run('generate dlcr', '--variants','2','--labels','target', *TINY)          # no model is asked again
    assert '0 images made' in again and 'clothes described by' not in again
    assert (known := read_generated(folder, real)).clothes.tolist()==known.target.tolist()

    run('generate dlcr-queries', '--variants','2','--words',folder, *TINY)
    asked = tmp_path/'runs'/'prcc-dlcr-queries'
    assert len(made(asked))==2*len(real.query)
    run('train', *SMALL, '--method','dlcr','--set','start_epoch=0','--generated',folder,'--out',tmp_path/'full')
    r = record(tmp_path/'full')
    assert r['method']=='dlcr' and r['recipe']['generated']=='dlcr' and r['train']['generated']==2*n and r['images_seen']==r['steps']*2*3*2
    out = run('evaluate', '--weights',tmp_path/'full'/'dlcr.safetensors','--refine',asked,'--refine-variants','2')
    assert 'clothes-changing + refine: rank-1' in out and 'up to 2 variants' in out and '0 without any' in out
    code,_,err = ccreid('train','--data','prcc','--root',photographs,*SMALL,'--generated',asked,'--out',tmp_path/'no')
    assert code==2 and len(err.strip().splitlines())==1 and not (tmp_path/'no'/'metrics.json').exists()

def test_without_a_mask_and_by_tiles(run, ccreid, photographs, tmp_path):
    real = dataset(photographs)
    run('generate dlcr-plain', '--variants','2','--model','redrawer.size=64x32','--model','redrawer.steps=2','--model','redrawer.strength=0.5')
    plain = tmp_path/'runs'/'prcc-dlcr-plain'
    settings = json.loads((plain/'images'/'job.json').read_text())['settings']
    assert settings['painter']['strength']==.5 and settings['mask']=='none' and settings['painter']['pipeline']=='StableDiffusionImg2ImgPipeline'
    samples = read_generated(plain, real)
    assert all((np.asarray(Image.open(r.path))!=np.asarray(Image.open(r.source).convert('RGB'))).any(-1).mean()>.5 for r in samples.iloc[::4].itertuples())
    run('train', *SMALL, '--method','dlcr','--set','pairs_mode=concatenated','--generated',plain,'--out',tmp_path/'plain')
    assert record(tmp_path/'plain')['recipe']['generated']=='dlcr-plain'
    for kind in ('dlcr-random','dlcr-recoloured'): assert f'{len(real.train)} images made' in run(f'generate {kind}', '--variants','1', *(TINY if kind=='dlcr-random' else ()))
    run('generate dlcr-random', '--variants','1','--made-up','model','--out',tmp_path/'asked', *TINY)          # LLaMA says shirt, the lists the rest
    told,lists = (read_generated(f, real) for f in (tmp_path/'asked', tmp_path/'runs'/'prcc-dlcr-random'))
    assert told.made_up.tolist()==lists.made_up.tolist() and all(p.startswith('A person wearing shirt, ') for p in told.prompt)
    assert [p.split(', ')[-1] for p in told.prompt]==[p.split(', ')[-1] for p in lists.prompt]
    words = json.loads((tmp_path/'asked'/'words.json').read_text())
    assert 'Llama' in words['settings']['summarizer']['summarizer'] and len(words['descriptions'])==real.train.clothes.nunique()
    write_released(samples, real, tmp_path/'tiles')
    out = run('train', *SMALL, '--method','dlcr','--generated',tmp_path/'tiles','--out',tmp_path/'tiled')
    assert f'{len(samples)} generated images (DLCR)' in out and record(tmp_path/'tiled')['train']['generated']==len(samples)

@pytest.mark.parametrize('words,why', [
    (('generate','dlcr','--variants','7'), '7 other clothes are wanted'), (('generate','dlcr','--variants','2','--words','nowhere'), 'nowhere'),
    (('generate','dlcr','--variants','6'), '6 other clothes are wanted for each image, there are 5'), (('generate','dlcr-random','--made-up','model','--model','summarizer=none'), 'no summarizer makes up clothes'),
    (('generate','dlcr-plain','--labels','target'), 'labels is an option of dlcr'), (('generate','dlcr','--labels','some'), 'one of unknown, target'),
    (('train','--method','dlcr',*SMALL), 'wants generated images')])
def test_what_cannot_be_done_is_said_in_a_line(ccreid, weights, photographs, monkeypatch, tmp_path, words, why):
    monkeypatch.setenv('CCREID_WEIGHTS', str(weights)); monkeypatch.setenv('CCREID_RUNS', str(tmp_path))
    more = () if '--device' in words else ('--device','cpu')
    code,_,err = ccreid(*words, '--data','prcc','--root',photographs, *more)
    assert code==2 and why in err and len(err.strip().splitlines())<=2, err
