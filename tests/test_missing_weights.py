"Whatever a real network wants and does not find, the user reads one line: what is missing, where it was looked for, what to do"
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ccreid import weights
from ccreid.generation.inpainting import ClothesInpainter, tiny_inpainter, tiny_pipeline
from ccreid.generation.describers import Describer
from ccreid.generation.parsing import SegformerParser, tiny_parser
from ccreid.generation.idm_vton import IDMVTON
from ccreid.generation.keypoints import MediaPipeKeypoints
from ccreid.generation.summarizers import Summarizer
from ccreid.generation.tiny_talkers import tiny_instructblip, tiny_language, tiny_llava, tiny_qwen
from ccreid.generation.try_off import DiffusionTryOff
from ccreid.weights import WeightsNotFound, locate, need

pytest.importorskip('diffusers')
pytest.importorskip('transformers')


@pytest.fixture
def home(tmp_path, monkeypatch):
    "No weights, and no network"
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setenv('CCREID_WEIGHTS', str(tmp_path/'mine'))
    return tmp_path

LOADERS = dict(parser=lambda home, **kw: SegformerParser.from_pretrained(**kw), inpainter=lambda home, **kw: ClothesInpainter.from_pretrained(**kw),
    try_off=lambda home, **kw: DiffusionTryOff.from_pretrained(None, **kw), try_on=lambda home, **kw: IDMVTON.from_pretrained(None, None, None, **kw),
    keypoints=lambda home, **kw: MediaPipeKeypoints.from_pretrained(**kw), describer=lambda home, **kw: Describer.from_pretrained(**kw), summarizer=lambda home, **kw: Summarizer.from_pretrained(**kw))
NAMED = dict(parser='mattmdjaga/segformer_b2_clothes', inpainter='sd2-community/stable-diffusion-2-inpainting', try_off='ixarchakos/tryOffAnyone', try_on='yisol/IDM-VTON', keypoints='pose_landmarker_heavy', describer='llava-hf/llava-1.5-7b-hf', summarizer='meta-llama/Llama-2-7b-chat-hf')

def one_line(error):
    text = str(error.value)
    assert text and '\n' not in text and len(text)<420 and 'local_files_only' not in text, text
    return text

@pytest.mark.parametrize('what', LOADERS)
def test_nothing_on_disk_and_no_network(home, what):
    with pytest.raises(WeightsNotFound) as e: LOADERS[what](home)
    text = one_line(e)
    assert NAMED[what] in text and str(home/'mine') in text
    assert what=='keypoints' or 'HF_HUB_OFFLINE' in text

@pytest.mark.parametrize('what, package, extra', [('parser','transformers','generate'), ('inpainter','diffusers','generate'), ('inpainter','transformers','generate'), ('try_off','diffusers','generate'),
    ('try_on','diffusers','generate'), ('try_on','transformers','generate'), ('keypoints','mediapipe','pose'), ('describer','transformers','generate'), ('summarizer','transformers','generate')])
def test_a_package_is_not_installed(home, monkeypatch, what, package, extra):
    "Said before anything is looked for on the hub (the pose network, a file to be fetched by hand, may come first)"
    monkeypatch.setitem(sys.modules, package, None)
    kw = {}
    if what=='keypoints':
        (home/'x.task').write_bytes(b''); kw = dict(name=home/'x.task')
    with pytest.raises(ImportError) as e: LOADERS[what](home, **kw)
    text = one_line(e)
    assert package in text.lower() and f'ccreid[{extra}]' in text and 'pip install' in text

def test_tiny_networks_need_the_packages_too(monkeypatch):
    for package,makers in dict(transformers=(tiny_parser,tiny_pipeline,tiny_inpainter,tiny_language,tiny_llava,tiny_qwen,tiny_instructblip), diffusers=(tiny_pipeline,)).items():
        with monkeypatch.context() as m:
            m.setitem(sys.modules, package, None)
            for make in makers:
                with pytest.raises(ImportError, match=rf'^{package} is not installed: pip install "ccreid\[generate\]"$'): make()

@pytest.mark.parametrize('what', ['parser','inpainter','try_off','try_on','describer','summarizer'])
def test_a_folder_without_the_networks(home, what):
    (home/'empty').mkdir()
    torch.save({}, home/'a.pth')
    kw = dict(try_off=dict(weights=home/'a.pth', base=home/'empty', vae=home/'empty'), try_on=dict(weights=home/'empty')).get(what, dict(name=home/'empty'))
    with pytest.raises(ValueError) as e: LOADERS[what](home, **kw)
    assert str(home/'empty') in one_line(e)

@pytest.mark.parametrize('name', ['./nowhere', '../nowhere/model', './a/b', '/nowhere/model', '~/nowhere/model', 'nowhere/x.safetensors', './x.pth'])
@pytest.mark.parametrize('file', [None, 'model.safetensors'])
def test_a_path_is_no_name(home, monkeypatch, name, file):
    def no_hub(*args): raise AssertionError('the hub was asked for a path')
    monkeypatch.setattr(weights, '_hub', no_hub)
    with pytest.raises(WeightsNotFound) as e: locate(name, file)
    assert one_line(e)==f'no weights at {Path(name).expanduser().absolute()}'

@pytest.mark.parametrize('file, place', [(None,'huge'), ('model.safetensors','huge.safetensors'), ('huge.task','huge/huge.task')])
def test_what_is_put_where_the_line_says_is_found(home, file, place):
    with pytest.raises(WeightsNotFound) as e: locate('huge', file)
    target = Path(one_line(e).split('Put them at ')[1])
    assert target==home/'mine'/place
    if file is None: target.mkdir(parents=True)
    else: target.parent.mkdir(parents=True, exist_ok=True); target.write_bytes(b'')
    assert locate('huge', file)==target

def test_a_hub_that_does_not_answer_is_named(tmp_path):
    "In a fresh process, for the address is read once: the line says which address, also where a whole folder is wanted"
    code = f'''if 1:
        import sys; sys.path.insert(0, {str(Path(weights.__file__).parent.parent)!r})
        from ccreid.weights import locate
        for file in None, 'model.safetensors':
            try: locate('somebody/huge', file)
            except FileNotFoundError as e: print(e)'''
    env = os.environ | dict(HF_ENDPOINT='http://127.0.0.1:9', HF_HOME=str(tmp_path/'hf'), no_proxy='127.0.0.1', CCREID_WEIGHTS=str(tmp_path/'mine'))
    env.pop('HF_HUB_OFFLINE', None)
    lines = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=100).stdout.splitlines()
    assert len(lines)==2
    for line in lines: assert 'somebody/huge' in line and 'http://127.0.0.1:9 does not answer' in line and str(tmp_path/'mine') in line and len(line)<420, line

def test_what_the_hub_has_in_its_cache_is_used_without_network(home, monkeypatch):
    import huggingface_hub
    asked = []
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda repo, **kw: asked.append(kw) or str(home))
    assert locate('somebody/huge', None, only=['*.json'])==home and asked==[dict(local_files_only=True, allow_patterns=['*.json'])]

def test_a_package_that_is_there_but_broken(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path/'ccreid_broken_thing.py').write_text('raise ImportError("needs x>=2\\nand more")\n')
    (tmp_path/'ccreid_hungry_thing.py').write_text('import ccreid_no_such_thing\n')
    with pytest.raises(ImportError) as e: need('json', 'ccreid_broken_thing', extra='pose')
    assert str(e.value)=='ccreid_broken_thing cannot be imported (ImportError: needs x>=2): pip install "ccreid[pose]"'
    with pytest.raises(ImportError, match='ccreid_hungry_thing cannot be imported .*ccreid_no_such_thing'): need('ccreid_hungry_thing')
    with pytest.raises(ImportError, match='^ccreid_no_such_thing is not installed'): need('ccreid_no_such_thing')
    assert need('json', 'os.path') is None
