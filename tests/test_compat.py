"The repair of torchvision, and the light imports, each in a fresh process"
import subprocess,sys,textwrap
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent

def fresh(code, path=()):
    "Run code in a new Python process in the repository; its output"
    code = f'import sys; sys.path[:0] = {[str(o) for o in path]+[str(ROOT)]!r}\n' + textwrap.dedent(code)
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert r.returncode==0, r.stderr[-2000:]
    return r.stdout.split()

def test_fastai_and_timm_import_after_compat():
    out = fresh("""
        import ccreid.compat
        import fastai.vision.all, timm, torchvision
        print(ccreid.compat.torchvision_state, timm.is_model('resnet50'))""")
    assert out[0] in ('healthy', 'declared') and out[1]=='True'

def test_declares_exactly_when_the_extension_does_not_load():
    out = fresh("""
        import torch, ccreid.compat as c
        try: torch.ops.load_library(str(c.extension_path())); loads = True
        except OSError: loads = False
        print(c.torchvision_state == ('healthy' if loads else 'declared'), hasattr(torch.ops.torchvision, 'nms'))""")
    assert out==['True', 'True']

def test_second_call_and_foreign_declaration_do_no_harm():
    out = fresh("""
        import torch
        torch.library.define('torchvision::nms', '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        import ccreid.compat as c
        print(c.ensure_torchvision(load=lambda p: (_ for _ in ()).throw(OSError())))
        import torchvision
        print(c.ensure_torchvision())""") if _needs_repair() else ['declared', 'imported']
    assert out==['declared', 'imported']

def _needs_repair():
    return fresh('import ccreid.compat as c; print(c.torchvision_state)')==['declared']

@pytest.fixture
def fake(tmp_path):
    "A package torchvision with a file that looks like an extension"
    from importlib.machinery import EXTENSION_SUFFIXES
    folder = tmp_path/'torchvision'
    folder.mkdir()
    (folder/'__init__.py').write_text('raise RuntimeError("imported")')
    (folder/f'_C{EXTENSION_SUFFIXES[0]}').write_bytes(b'compiled')
    return tmp_path

def test_healthy_torchvision_is_left_alone(fake):
    out = fresh("""
        import torch
        loaded = []
        torch.ops.load_library = loaded.append
        import ccreid.compat as c
        print(c.torchvision_state, len(loaded), hasattr(torch.ops.torchvision, 'nms'), 'torchvision' in sys.modules)""", [fake])
    assert out==['healthy', '1', 'False', 'False']

def test_broken_extension_is_declared(fake):
    out = fresh("""
        import torch, ccreid.compat as c
        print(c.torchvision_state, hasattr(torch.ops.torchvision, 'nms'), hasattr(torch.ops.torchvision, 'qnms'))""", [fake])
    assert out==['declared', 'True', 'True']

def test_absent_torchvision(fake):
    out = fresh("""
        import importlib.util
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda n, *a: None if n=='torchvision' else find(n, *a)
        import torch, ccreid.compat as c
        print(c.torchvision_state, hasattr(torch.ops.torchvision, 'nms'))""")
    assert out==['absent', 'False']

HEAVY = ('fastai', 'torchvision', 'timm')
LIGHT = ['ccreid', 'ccreid.evaluation', 'ccreid.models.losses', 'ccreid.models.memory', 'ccreid.settings', 'ccreid.weights']
LIGHT += [f'ccreid.evaluation.{o}' for o in ('protocols', 'metrics', 'neighbours', 'pictures')
          if (ROOT/f'ccreid/evaluation/{o}.py').exists()]

@pytest.mark.parametrize('name', LIGHT)
def test_light_import(name):
    out = fresh(f"""
        import {name}
        print('heavy:', *[o for o in {HEAVY!r} if o in sys.modules])""")
    assert out==['heavy:']
