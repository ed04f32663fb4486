"Settings and weights: the order of places, strangers' files, bad values, nothing unpickled, nothing slow"
import os,pickle,subprocess,sys,time
from pathlib import Path
import pytest, torch
from safetensors.torch import save_file
from ccreid import settings, weights
from ccreid.settings import SettingsError
from ccreid.weights import WeightsNotFound, load_weights, locate

@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    "No settings but the test's own"
    for k in list(os.environ):
        if k.startswith('CCREID_'): monkeypatch.delenv(k)
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path/'config'))
    (tmp_path/'a'/'b').mkdir(parents=True)
    monkeypatch.chdir(tmp_path/'a'/'b')

def ini(folder, text, section='[DEFAULT]\n'):
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'settings.ini').write_text(section+text)
    return folder/'settings.ini'

def test_order_of_the_four_places(tmp_path, monkeypatch):
    assert settings.resolve()['seed']==(0, 'default')
    user = ini(tmp_path/'config'/'ccreid', 'seed = 1\nruns = mine\n')
    assert settings.resolve()['seed']==(1, str(user))
    near = ini(tmp_path/'a', 'seed = 2\n')
    assert settings.resolve()['seed']==(2, str(near))
    assert settings.resolve()['runs'].value==user.parent/'mine'        # each key on its own
    nearer = ini(tmp_path/'a'/'b', 'data = d\n')
    assert settings.resolve()['seed']==(1, str(user))                  # only the nearest file of ours counts
    assert settings.resolve()['data']==(nearer.parent/'d', str(nearer))
    monkeypatch.setenv('CCREID_SEED', '3')
    assert settings.get('seed')==3 and 'CCREID_SEED' in settings.resolve()['seed'].source
    monkeypatch.setenv('CCREID_SEED', '')
    assert settings.get('seed')==1                                     # empty is unset

@pytest.mark.parametrize('section,text', [('[DEFAULT]\n', 'lib_name = old\nseed = 9\n'), ('[Settings]\n', 'seed = 9\n'),
                                          ('[DEFAULT]\n', 'gtk-theme = dark\n')])
def test_strangers_are_passed_over(tmp_path, section, text):
    ours = ini(tmp_path/'a', 'seed = 2\n')
    ini(tmp_path/'a'/'b', text, section)
    assert settings.resolve()['seed']==(2, str(ours))

def test_paths(tmp_path, monkeypatch):
    ini(tmp_path/'a', 'data = ../x\nruns = ~/r%s\nweights = /abs\n')
    found = settings.resolve()
    assert found['data'].value==tmp_path/'a'/'..'/'x'
    assert found['runs'].value==Path.home()/'r%s' and found['weights'].value==Path('/abs')
    monkeypatch.setenv('CCREID_DATA', 'rel')
    assert settings.get('data')==tmp_path/'a'/'b'/'rel'

def test_percent_and_comments_do_not_crash(tmp_path):
    ini(tmp_path/'a', '# 100%\ndata = /disk/50%(x)s%\n')
    assert settings.get('data')==Path('/disk/50%(x)s%')

@pytest.mark.parametrize('text', ['seed = many', 'seed = -1', 'seed =', 'device = gpu', 'device = cuda:x', 'seed = 1.5'])
def test_bad_value_names_file_and_key(tmp_path, text):
    path = ini(tmp_path/'a', text+'\n')
    with pytest.raises(SettingsError) as e: settings.resolve()
    assert text.split()[0] in str(e.value) and str(path) in str(e.value) and '\n' not in str(e.value)

@pytest.mark.parametrize('content', [b'seed = 1\n', b'[DEFAULT]\nseed = 1\nseed = 2\n', b'[DEFAULT\nseed=1', b'\xff\xfe\x00'])
def test_unreadable_file_is_one_line(tmp_path, content):
    (tmp_path/'a'/'settings.ini').write_bytes(content)
    with pytest.raises(SettingsError) as e: settings.resolve()
    assert str(tmp_path/'a'/'settings.ini') in str(e.value) and '\n' not in str(e.value)

def test_device(monkeypatch):
    assert settings.get('device')==('cuda' if torch.cuda.is_available() else 'cpu')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert settings.get('device')=='cuda' and settings.pick_device('cuda:1')=='cuda:1'
    monkeypatch.setenv('CCREID_DEVICE', 'cuda:2')
    with pytest.raises(SettingsError, match='CCREID_DEVICE.*torch sees 2'): settings.get('device')
    monkeypatch.setenv('CCREID_DEVICE', 'cpu')
    assert settings.get('device')=='cpu'

def test_weights_keys_are_open(tmp_path, monkeypatch):
    ini(tmp_path/'a', 'weights_my.net = me/mine\nweights_resnet50 = me/r50\n')
    assert settings.get('weights_my.net')=='me/mine' and settings.get('weights_resnet50')=='me/r50'
    monkeypatch.setenv('CCREID_WEIGHTS_RESNET50', 'env/r50')
    assert settings.get('weights_resnet50')=='env/r50'
    with pytest.raises(KeyError, match='weights_resnet18'): settings.get('weigths')

def test_settings_file_of_the_repository():
    path = Path(settings.__file__).parent.parent
    if not (path/'settings.ini').exists(): pytest.skip('installed without the repository')
    cfg = settings.read_ini(path)
    assert set(cfg.d)==set(settings.DEFAULTS)                      # all keys shown, none unknown
    for k in cfg.d: settings.parse(k, cfg.d[k], 'settings.ini', path)

# --- weights

@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('CCREID_WEIGHTS', str(tmp_path/'w'))
    (tmp_path/'w').mkdir()
    return tmp_path/'w'

def test_locate_in_the_users_folder(folder):
    (folder/'sd').mkdir()
    save_file({'a':torch.ones(1)}, folder/'sd'/'model.safetensors')
    assert locate('sd')==folder/'sd'/'model.safetensors' and locate('sd', file=None)==folder/'sd'
    save_file({'a':torch.ones(1)}, folder/'resnet50.safetensors')
    assert locate('resnet50')==folder/'resnet50.safetensors'
    assert locate(folder/'resnet50.safetensors')==folder/'resnet50.safetensors' and locate(folder)==folder

def test_shipped_weights_go_first(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, 'ASSETS', tmp_path/'assets')
    (tmp_path/'assets').mkdir()
    for o in (folder, tmp_path/'assets'): save_file({'a':torch.ones(1)}, o/'tiny.safetensors')
    assert locate('tiny')==tmp_path/'assets'/'tiny.safetensors'

def test_a_name_is_no_path_of_the_working_folder(folder):
    Path('resnet50').mkdir()
    with pytest.raises(WeightsNotFound): locate('resnet50', hub='nobody/nothing', timeout=1.)

def test_hub_download_and_cache(folder, tmp_path, monkeypatch):
    import huggingface_hub
    asked = []
    monkeypatch.setattr(weights, '_reachable', lambda timeout: asked.append('reach'))
    monkeypatch.setattr(huggingface_hub, 'try_to_load_from_cache', lambda repo, file: None)
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', lambda repo, file, **k: f'/cache/{repo}/{file}')
    assert locate('resnet50')==Path('/cache/timm/resnet50.tv_in1k/model.safetensors') and asked==['reach']
    assert locate('me/mine', file='x.safetensors')==Path('/cache/me/mine/x.safetensors')
    monkeypatch.setattr(huggingface_hub, 'try_to_load_from_cache', lambda repo, file: '/cached')
    assert locate('resnet50')==Path('/cached') and len(asked)==2          # in the cache: the network is not asked

def test_without_network_one_quick_error(folder):
    "A fresh process whose hub address answers nobody: seconds, one line, folder and hub id named"
    code = f'''if 1:
        import sys; sys.path.insert(0, {str(Path(weights.__file__).parent.parent)!r})
        from ccreid.weights import locate
        for kw in (dict(), dict(file=None)):
            try: locate('resnet50', **kw)
            except FileNotFoundError as e: print(type(e).__name__, e)'''
    env = os.environ | dict(HF_ENDPOINT='http://127.0.0.1:9', HF_HOME=str(folder/'hf'), no_proxy='127.0.0.1')
    env.pop('HF_HUB_OFFLINE', None)
    start = time.time()
    r = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=100)
    lines = r.stdout.splitlines()
    assert len(lines)==2 and not r.stderr, r.stderr
    for l in lines: assert l.startswith('WeightsNotFound') and 'timm/resnet50.tv_in1k' in l and str(folder/'resnet50') in l
    assert time.time()-start < 20                                        # the client alone would retry for 23 s each

def test_offline_is_respected(folder, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    def no_network(*args, **kwargs): raise AssertionError('the network was asked')
    monkeypatch.setattr(weights, 'urlopen', no_network)
    with pytest.raises(WeightsNotFound, match='HF_HUB_OFFLINE'): locate('nobody/nothing_at_all')

def test_without_the_hub_client(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(WeightsNotFound, match='not installed'): locate('resnet50')

def test_http_error_means_reachable(monkeypatch):
    from urllib.error import HTTPError
    def answer(*args, **kwargs): raise HTTPError('u', 405, 'no', {}, None)
    monkeypatch.setattr(weights, 'urlopen', answer)
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    weights._reachable(1.)

class Evil:
    def __reduce__(self): return os.mkdir, (str(Evil.target),)

@pytest.mark.parametrize('name', ['a.pth', 'a.pt', 'a.bin', 'b.pth'])
def test_nothing_is_run_on_opening(tmp_path, name):
    Evil.target = tmp_path/'ran'
    if name[0]=='a': torch.save({'w':Evil()}, tmp_path/name)
    else: (tmp_path/name).write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ValueError, match='not opened'): load_weights(tmp_path/name)
    assert not Evil.target.exists()
    torch.load(tmp_path/name, weights_only=False) if name[0]=='a' else pickle.loads((tmp_path/name).read_bytes())
    assert Evil.target.exists()                                          # the trap would have worked

def test_formats_and_wrappers(tmp_path):
    state = {'w':torch.randn(2,3), 'n':torch.tensor(3)}
    save_file(state, tmp_path/'a.safetensors')
    for name,o in (('plain.pth', state), ('wrapped.pt', {'state_dict':state, 'epoch':3}), ('model.bin', {'model':state})):
        torch.save(o, tmp_path/name)
    for p in tmp_path.glob('*.*'):
        if p.is_file(): torch.testing.assert_close(load_weights(p), state)

@pytest.mark.parametrize('name,content', [('a.safetensors', b''), ('a.safetensors', b'not weights at all'), ('a.pth', b''),
                                          ('a.pth', b'PK\x03\x04broken'), ('a.pth', b'text'), ('a.pkl', b'x')])
def test_damaged_files(tmp_path, name, content):
    (tmp_path/name).write_bytes(content)
    with pytest.raises(ValueError) as e: load_weights(tmp_path/name)
    assert str(tmp_path/name) in str(e.value) and '\n' not in str(e.value)

def test_missing_path_and_wrong_content(tmp_path):
    with pytest.raises(WeightsNotFound): load_weights(tmp_path/'no.pth')
    with pytest.raises(WeightsNotFound, match='no weights at'): locate(tmp_path/'no.safetensors')
    torch.save({'w':torch.ones(1), 'note':'text'}, tmp_path/'mixed.pth')
    with pytest.raises(ValueError, match='no table'): load_weights(tmp_path/'mixed.pth')
