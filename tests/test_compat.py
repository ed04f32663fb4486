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
    assert out==['healthy', 'True'] or out==['declared', 'True']

def test_the_installed_pair_is_repaired_exactly_where_its_import_fails():
    out = fresh("""
        try: import torchvision; works = True
        except RuntimeError as e: works = False; assert 'torchvision::nms does not exist' in str(e)
        print(works)""")
    state = fresh("""
        import ccreid.compat, torch, torchvision
        print(ccreid.compat.torchvision_state, hasattr(torch.ops.torchvision, 'nms'))""")
    assert state==['healthy' if out==['True'] else 'declared', 'True']

def test_second_call_and_foreign_declaration_do_no_harm():
    out = fresh("""
        import torch
        try: import torchvision
        except RuntimeError: torch.library.define('torchvision::nms', '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        import ccreid.compat as c
        import torchvision
        print(c.torchvision_state, c.ensure_torchvision())""")
    assert out[0] in ('imported','declared') and out[1]=='imported'

DEFINES = "torch.library.define(f'torchvision::{n}', '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')"
FAKES = { # what a package of that name does when it is imported
    'healthy': f"""
        import torch, pathlib
        assert list(pathlib.Path(__file__).parent.glob('_C*'))
        for n in ('nms','qnms'): {DEFINES} # as a compiled file does: twice is an error
        """,
    'unfit': """
        import torch
        from . import half
        if not hasattr(torch.ops.torchvision, 'nms'): raise RuntimeError('operator torchvision::nms does not exist')
        done = True
        """,
    'broken': "raise RuntimeError('CUDA driver version is insufficient')",
    'needs': "import no_such_package_anywhere"}

@pytest.fixture
def fake(tmp_path):
    "A folder with a package torchvision of a kind, whose compiled file has a name"
    def make(kind, file='_C.so'):
        folder = tmp_path/'torchvision'
        folder.mkdir()
        (folder/'__init__.py').write_text(textwrap.dedent(FAKES[kind]))
        (folder/'half.py').write_text('')
        (folder/file).write_bytes(b'compiled')
        return [tmp_path]
    return make

@pytest.mark.parametrize('file', ['_C.so','_C_stable.so','_C.cpython-311-x86_64-linux-gnu.so','_C_next_name.pyd'])
def test_a_healthy_torchvision_is_left_alone_whatever_its_compiled_file_is_called(fake, file):
    out = fresh("""
        import ccreid.compat as c, torchvision
        print(c.torchvision_state, c.ensure_torchvision())""", fake('healthy', file))
    assert out==['healthy', 'imported']

@pytest.mark.parametrize('file', ['_C.so','_C_stable.so'])
def test_an_unfit_torchvision_is_imported_after_all(fake, file):
    out = fresh("""
        import ccreid.compat as c, torch, torchvision
        print(c.torchvision_state, torchvision.done, *[hasattr(torch.ops.torchvision, n) for n in c.OPERATORS])""", fake('unfit', file))
    assert out==['declared', 'True', 'True', 'True']

@pytest.mark.parametrize('kind,says', [('broken','insufficient'), ('needs','no_such_package_anywhere')])
def test_another_failure_is_not_hidden_and_nothing_is_declared(fake, kind, says):
    out = fresh(f"""
        import ccreid.compat as c, torch
        print(c.torchvision_state, hasattr(torch.ops.torchvision, 'nms'))
        try: import torchvision
        except Exception as e: print({says!r} in str(e))""", fake(kind))
    assert out==['broken', 'False', 'True']

def test_absent_torchvision():
    out = fresh("""
        class Hidden:
            def find_spec(name, *a):
                if name=='torchvision': raise ModuleNotFoundError(f'No module named {name!r}', name=name)
        sys.meta_path.insert(0, Hidden)
        import torch, ccreid.compat as c
        print(c.torchvision_state, hasattr(torch.ops.torchvision, 'nms'))""")
    assert out==['absent', 'False']

HEAVY = ('fastai', 'torchvision', 'timm')
LIGHT = ['ccreid', 'ccreid.evaluation', 'ccreid.models.losses', 'ccreid.models.memory', 'ccreid.settings', 'ccreid.weights', 'ccreid.files']
LIGHT += [f'ccreid.evaluation.{o}' for o in ('protocols', 'metrics', 'neighbours', 'pictures')
          if (ROOT/f'ccreid/evaluation/{o}.py').exists()]

@pytest.mark.parametrize('name', LIGHT)
def test_light_import(name):
    out = fresh(f"""
        import {name}
        print('heavy:', *[o for o in {HEAVY!r} if o in sys.modules])""")
    assert out==['heavy:']
