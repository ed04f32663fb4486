"What every test starts from: one thread, repeatable examples, the user's own settings out of sight, no network"
import importlib.util
import os
from pathlib import Path

for k in 'OMP_NUM_THREADS','MKL_NUM_THREADS': os.environ.setdefault(k, '1')
os.environ.setdefault('MPLBACKEND', 'agg')
os.environ['HF_HUB_OFFLINE'] = '1'

import pytest
from hypothesis import HealthCheck,settings
from pose_networks import task_file # a fixture

settings.register_profile('ccreid', deadline=None, derandomize=True, max_examples=50, print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.load_profile('ccreid')


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='also run the tests marked slow')


def pytest_collection_modifyitems(config, items):
    for item in items:
        if 'slow' in item.keywords and not config.getoption('--slow'):
            item.add_marker(pytest.mark.skip(reason='slow: give --slow'))
        if 'gpu' in item.keywords:
            import torch
            if not torch.cuda.is_available(): item.add_marker(pytest.mark.skip(reason='needs CUDA'))


@pytest.fixture(scope='session', autouse=True)
def one_thread():
    "Many small tensors: threads cost more than they bring, and sums come out the same on every machine"
    import torch
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_settings(tmp_path_factory, monkeypatch):
    "No CCREID_* variable and no settings file of the user's reaches a test; what is written goes to a temporary folder"
    for k in [k for k in os.environ if k.startswith('CCREID_')]: monkeypatch.delenv(k)
    home = tmp_path_factory.mktemp('home')
    monkeypatch.setenv('XDG_CONFIG_HOME', str(home/'config'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(home/'cache'))
    monkeypatch.setenv('CCREID_RUNS', str(home/'runs'))


@pytest.fixture
def any_name(tmp_path):
    "For tests of names that are not UTF-8, which the disk of a Mac refuses"
    odd = tmp_path/os.fsdecode(b'\xff')
    try: odd.touch()
    except OSError: pytest.skip('this disk takes only names that are UTF-8')
    odd.unlink()


@pytest.fixture
def ccreid(capsys, tmp_path, monkeypatch):
    "The command line, called with words in a folder of its own: exit code, output, errors"
    from ccreid import cli
    monkeypatch.chdir(tmp_path)
    def call(*words):
        try: code = cli.main([str(w) for w in words])
        except SystemExit as e: code = e.code
        out, err = capsys.readouterr()
        return code, out, err
    return call


@pytest.fixture
def run(capsys):
    "The command line in this process: exit code, output, errors"
    def f(line):
        from ccreid import cli
        capsys.readouterr()
        try: code = cli.main(line.split())
        except SystemExit as e: code = e.code
        return code,*capsys.readouterr()
    return f

@pytest.fixture(scope='session')
def docs():
    "The script that makes the site"
    pytest.importorskip('smalldocs')
    root,here = Path(__file__).resolve().parent.parent,os.getcwd()
    spec = importlib.util.spec_from_file_location('ccreid_tools_docs', root/'tools'/'docs.py')
    mod = importlib.util.module_from_spec(spec)
    os.chdir(root)
    try: spec.loader.exec_module(mod)
    finally: os.chdir(here)
    return mod
