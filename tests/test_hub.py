"Models as folders and on the hub: every network there and back, what is refused, cards that the hub's own classes read, answers of a hub"
import hashlib
import http.server
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from huggingface_hub import DatasetCard, ModelCard
from PIL import Image
from safetensors.torch import save_file

from ccreid.baselines.cssc import CSSCModel
from ccreid.baselines.mgn import MGNModel
from ccreid.baselines.parts import HPMModel, PCBModel
from ccreid.baselines.two_stream import TwoStream
from ccreid.cmcc.pia import PIANet
from ccreid.dcac.clip_reid import clip_reid
from ccreid.data import dataset_cards
from ccreid.data.cards import card_names, load_card
from ccreid.data.dataset_cards import write_dataset_card
from ccreid.data.transforms import Preprocessing
from ccreid.models.backbones import create_backbone
from ccreid.tensor_files import read_safetensors, torch_bytes
from ccreid.training.any_model import kind_of_model, network_of, open_model
from ccreid.training.embedding import embed
from ccreid.training.export import export_reid, load_reid, parity
from ccreid.training.hub import ReIDModel, is_hub_id
from ccreid.training.model_cards import figures_of, model_card
from ccreid.training.model_folders import CONFIG, MODEL, config_of, read_folder, write_folder

SIZE = (96,48)
NETWORKS = {
    'max+avg': lambda: ReIDModel('resnet_mini', classes=3), 'gem': lambda: ReIDModel('resnet_mini', 'gem', 3, 'bn-no-bias', 'cosine'),
    'token': lambda: ReIDModel(create_backbone('vit_mini', size=SIZE), 'token', 3, 'none'), 'pcb': lambda: PCBModel('resnet_mini', 3),
    'hpm': lambda: HPMModel('resnet_mini', 3, levels=2), 'mgn': lambda: MGNModel('resnet_mini', 3),
    'cssc': lambda: CSSCModel('resnet_mini', 3, parts=2, width=32), 'two-stream': lambda: TwoStream('resnet_mini', classes=3),
    'pia': lambda: PIANet('resnet_mini', classes=3), 'clip': lambda: clip_reid(3, 'vit_mini', SIZE, dim=32)}


def made(name='max+avg', seed=0, **how):
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    model.preprocessing = Preprocessing(SIZE, (.5,.4,.3), (.2,.3,.4), flip=how.get('flip', False), interpolation='bicubic')
    return model


@pytest.fixture(scope='module')
def once(tmp_path_factory): return write_folder(made(), tmp_path_factory.mktemp('once')/'small')


@pytest.fixture
def folder(once, tmp_path): return Path(shutil.copytree(once, tmp_path/'small'))


def pictures(n=3): return list(np.random.default_rng(0).integers(0, 256, (n,40,20,3), dtype=np.uint8))


@pytest.mark.parametrize('name', NETWORKS)
def test_every_network_there_and_back(name, tmp_path):
    model = made(name, flip=name=='gem')
    place = model.save_pretrained(tmp_path/'m')
    again,config = ReIDModel.from_pretrained(place),json.loads((place/CONFIG).read_text())
    assert type(again) is type(model) and again.preprocessing==model.preprocessing and not again.training and again.classifier is None
    assert parity(model, again)==0
    kept = {k: v for k,v in model.state_dict().items() if k in again.state_dict()}
    assert kept.keys()==again.state_dict().keys() and all(torch.equal(v, again.state_dict()[k]) and v.dtype==again.state_dict()[k].dtype for k,v in kept.items())
    assert config['dim']==embed(again, pictures()).shape[1] and config['preprocessing']['interpolation']=='bicubic'
    assert config['parameters']==sum(p.numel() for p in again.parameters())
    card = ModelCard.load(place/'README.md')
    assert f"| weights | {config['parameters']:,} |" in card.text and '96 pixels high, 48 wide' in card.text
    assert parity(again, type(again).from_pretrained(again.save_pretrained(tmp_path/'again')))==0


def test_a_folder_goes_wherever_a_file_goes(folder, tmp_path, capsys, monkeypatch):
    from ccreid import cli
    file = export_reid(made(), tmp_path/'m.safetensors')
    assert open_model(folder).fingerprint==open_model(file).fingerprint and parity(load_reid(folder), load_reid(file))==0
    monkeypatch.chdir(tmp_path)
    (tmp_path/'gallery').mkdir()
    for i,a in enumerate(pictures()): Image.fromarray(a).save(tmp_path/'gallery'/f'{i}.png')
    assert cli.main('embed gallery --weights small --out v.npz --device cpu'.split())==0
    with np.load('v.npz') as z:
        torch.testing.assert_close(torch.from_numpy(z['features']), embed(file, tmp_path/'gallery'), atol=1e-5, rtol=0)
    assert cli.main('embed gallery --weights small --size 96x48 --out w.npz --device cpu'.split())==2
    assert 'has its own size' in capsys.readouterr().err
    Path('resnet_mini').mkdir()                                # a folder of that name that is no model hides nothing
    assert open_model('resnet_mini').name=='resnet_mini'


# --- one door for every command that takes a model

KINDS = 'file','folder','run','checkpoint','onnx','hub','function','timm'


@pytest.fixture
def kinds(folder, tmp_path, monkeypatch):
    "A folder with a model of each kind that lies on a disk"
    monkeypatch.chdir(tmp_path)
    Path('runs/x').mkdir(parents=True)
    torch.save(dict(state_dict={'a': torch.zeros(1)}), 'model.pth.tar-60')
    torch.save({'a': torch.zeros(1)}, 'old.pth', _use_new_zipfile_serialization=False)
    for name in 'resnet18','only','two','full': Path(name).mkdir()
    Path('only/pytorch_model.bin').write_bytes(b'\x80')
    for file in 'runs/x/cal.safetensors','odd.name','two/a.safetensors','two/b.safetensors': shutil.copy(folder/MODEL, file)
    return tmp_path


@pytest.mark.parametrize('name,kind', [('small', 'folder'), ('./small/', 'folder'), ('small/model.safetensors', 'file'), ('odd.name', 'file'), ('runs/x', 'run'), ('two', 'run'),
    ('none.safetensors', 'file'), ('model.pth.tar-60', 'checkpoint'), ('old.pth', 'checkpoint'), ('any/where.ONNX', 'onnx'), ('only', 'folder'), ('resnet18', 'timm'), ('runs/', 'folder'),
    ('a/b', 'hub'), ('a/b@refs/pr/1', 'hub'), ('timm/resnet18.a1_in1k', 'timm'), ('timm:resnet18', 'timm'), ('hf-hub:timm/resnet18.a1_in1k', 'timm'), ('mine:f', 'function'),
    ('pack.age:f', 'function'), ('none', 'timm'), ('', 'timm')])
def test_what_a_name_means(kinds, name, kind): assert kind_of_model(name)==kind


@pytest.mark.parametrize('name', ['a/b.pth', 'model.pth', 'a/b/c', '/nowhere/at/all', 'x.pth.tar-60', './none', '../a/b', 'a--b/c'])
def test_the_path_of_nothing_is_no_name_on_the_hub(kinds, name, monkeypatch):
    monkeypatch.setattr('ccreid.weights._reachable', lambda timeout: pytest.fail('the hub was asked'))
    for call in kind_of_model, open_model, network_of:
        with pytest.raises(FileNotFoundError, match='^no file and no folder of a model at ') as e: call(name)
        assert '\n' not in str(e.value)


@settings(max_examples=40)
@given(st.text(max_size=12) | st.text('ab/.:@-~', max_size=8))
def test_any_text_means_something_or_is_refused(name):
    try: assert kind_of_model(name) in KINDS
    except FileNotFoundError as e: assert '\n' not in str(e)


@pytest.mark.parametrize('name,said', [('two', r'no run with one model in it \(a.safetensors, b.safetensors\): give the file'), ('only', 'pytorch_model.bin, a pickle'),
    ('runs/', 'no model.safetensors in runs'), ('none', "no backbone 'none'.*and no file or folder of a model has that name"), ('model.pth.tar-60', 'holds no ResNet'),
    ('old.pth', 'holds no ResNet'), ('none.onnx', 'no ONNX file at none.onnx|onnxruntime')])
def test_what_is_no_model_is_said_in_a_line(kinds, name, said):
    with pytest.raises((ValueError,OSError,ImportError), match=said) as e: open_model(name)
    assert '\n' not in str(e.value)


def test_a_network_and_the_file_of_its_weights(kinds, monkeypatch):
    for name,file in (('small', 'small/model.safetensors'), ('runs/x', 'runs/x/cal.safetensors'), ('odd.name', 'odd.name')):
        model,found = network_of(name)
        assert parity(model, made())==0 and found==Path(file) and open_model(name).fingerprint==open_model('small').fingerprint
        with pytest.raises(ValueError, match='has its own size'): network_of(name, size=SIZE)
    for name in 'a.onnx','mine:f','resnet18','none':
        with pytest.raises(ValueError, match='a network of ccreid is needed here'): network_of(name)
    monkeypatch.setattr('ccreid.weights._reachable', lambda timeout: (_ for _ in ()).throw(ConnectionError('no hub')))
    with pytest.raises(FileNotFoundError, match='no model a/b: it was not fetched before; no hub; no file and no folder has that name'): network_of('a/b')
    with pytest.raises(ValueError, match='is a file: `load_reid` reads it'): ReIDModel.from_pretrained('odd.name')


def test_ccreids_own_checkpoint_leads_to_the_file_beside_it(kinds):
    torch.save(dict(model=made().state_dict(), epoch=1), 'checkpoint.pth')
    with pytest.raises(ValueError, match='checkpoint.pth is a checkpoint of ccreid itself: give the .safetensors file'): open_model('checkpoint.pth')


def test_commands_take_every_kind(kinds, monkeypatch, capsys):
    import torchvision
    from ccreid import cli
    from ccreid.data.mannequins import MannequinWorld
    MannequinWorld(identities=(3,0,4), outfits=2, cameras=3, images=1, size=SIZE).write('w', layout='prcc')
    torch.save(torchvision.models.resnet18().state_dict(), 'resnet.pth')
    monkeypatch.setattr('ccreid.weights._reachable', lambda timeout: None)
    monkeypatch.setattr('huggingface_hub.hf_hub_download', lambda name, file, **kw: str(kinds/'small'/file))
    def figures(name, *more):
        assert cli.main(['evaluate',*'--data prcc --root w --device cpu --json --weights'.split(), name, *more])==0
        out,err = capsys.readouterr()
        return json.loads(out),err
    wanted = figures('small')[0]
    for name in 'runs/x','somebody/small@v1': assert figures(name)[0]==wanted
    assert 'resnet.pth: resnet18 at 64x32; left out 2 weights (fc.weight, fc.bias)' in figures('resnet.pth', '--size', '64x32')[1]
    assert cli.main('clusters --data prcc --root w --model somebody/small --out c.csv --device cpu'.split())==0 and Path('c.csv').is_file()
    assert cli.main('export somebody/small --folder again'.split())==0 and parity(read_folder('again'), made())==0
    train = 'train --data prcc --root w --method triplet --epochs 1 --steps 1 --device cpu --quiet --out t --set size=96x48 --set backbone=resnet_mini --set identities=3 --set pretrained=false'
    assert cli.main([*train.split(), '--start', 'small'])==0, capsys.readouterr().err
    assert json.loads(Path('t/metrics.json').read_text())['start']==dict(file='small', sha256=hashlib.sha256((kinds/'small'/MODEL).read_bytes()).hexdigest())
    capsys.readouterr()
    for words,line in (('evaluate --data prcc --root w --features f.npz --size 64x32', '--size is for --weights'), ('embed nowhere --weights small --out v.npz', 'nowhere: there is no such file or folder'),
                       ('train --data prcc --root w --start small/config.json', 'small/config.json')):
        assert cli.main(words.split())==2
        err = capsys.readouterr().err
        assert line in err and 'Traceback' not in err and not list(kinds.glob('v.npz*'))


@settings(max_examples=6)
@given(st.data())
def test_weights_that_do_not_fit_are_counted(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('m')
    model = made()
    config,weights = config_of(model),{k: v for k,v in model.state_dict().items() if not k.startswith('classifier')}
    names = sorted(weights)
    gone = data.draw(st.sets(st.sampled_from(names), max_size=4))
    bent = data.draw(st.sets(st.sampled_from([n for n in names if n not in gone and weights[n].ndim]), max_size=3))
    more = data.draw(st.sets(st.sampled_from(['x','y','backbone.net.fc.weight']), max_size=3))
    state = {k: v for k,v in weights.items() if k not in gone}
    for k in bent: state[k] = torch.cat([state[k], state[k]])
    for k in more: state[k] = torch.zeros(2)
    (folder/CONFIG).write_text(json.dumps(config)); save_file({k: v.contiguous() for k,v in state.items()}, folder/MODEL)
    wrong = len(gone)+len(bent)+len(more)
    if not wrong: assert parity(model, read_folder(folder))==0
    else:
        with pytest.raises(ValueError, match=f' {wrong} tensors are missing, of another shape or not asked for'): read_folder(folder)


@pytest.mark.parametrize('name,content,said', [
    (MODEL, b'', 'is empty'), (MODEL, b'<html>', 'web page'), (MODEL, b'version https://git-lfs.github.com/spec/v1\n', 'Git LFS'),
    (MODEL, torch_bytes(dict(a=torch.zeros(2))), 'is a zip archive'), (MODEL, b'\x80\x04K\x01.', 'is damaged'),
    (CONFIG, b'', 'is empty'), (CONFIG, b'<!DOCTYPE html>', 'web page'), (CONFIG, b'{', 'is damaged'), (CONFIG, b'[]', 'it holds list'),
    (CONFIG, b'{"architectures": ["ViTModel"]}', 'a model of ViTModel'), (CONFIG, b'{"library_name": "timm"}', 'a model of timm'),
    (CONFIG, b'['*100_000, 'is damaged'), (CONFIG, b'{"library_name": "ccreid", "model": {}, "preprocessing": 3}', 'lacks preprocessing')])
def test_what_is_something_else_is_refused_in_a_line(folder, name, content, said):
    (folder/name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as e: ReIDModel.from_pretrained(folder)
    assert name in str(e.value) and '\n' not in str(e.value) and len(str(e.value))<400


def test_one_changed_byte_is_found(folder):
    whole = (folder/MODEL).read_bytes()
    for at in (len(whole)-1, len(whole)//2):
        (folder/MODEL).write_bytes(whole[:at]+bytes([whole[at]^1])+whole[at+1:])
        with pytest.raises(ValueError, match='is damaged'): read_folder(folder)


def test_descriptions_that_ask_for_too_much(folder):
    (folder/MODEL).unlink(); state = {k: v for k,v in made().state_dict().items() if not k.startswith('classifier')}
    save_file(state, folder/MODEL)                             # without a word of its own: the description alone counts
    config = json.loads((folder/CONFIG).read_text())
    for part,change,said in (('model', dict(classes=10**12), 'classes'), ('model', dict(kind='os.path'), 'no kind of model'),
                             ('model', dict(backbone='resnet101'), 'tensors are missing'), ('preprocessing', dict(size=[10**9,10**9]), 'size'),
                             ('preprocessing', dict(std=[0,1,1]), 'std')):
        (folder/CONFIG).write_text(json.dumps(config | {part: config[part] | change}))
        with pytest.raises(ValueError, match=said) as e: read_folder(folder)
        assert '\n' not in str(e.value)


def test_killed_between_two_files_it_is_no_model(folder, monkeypatch):
    from ccreid.training import model_folders
    other,write = made('gem', 1),model_folders.write_whole
    def killed(path, *args):
        if path.name==CONFIG: raise KeyboardInterrupt
        return write(path, *args)
    monkeypatch.setattr(model_folders, 'write_whole', killed)
    with pytest.raises(KeyboardInterrupt): write_folder(other, folder)
    with pytest.raises(ValueError, match='is of another model than config.json'): read_folder(folder)
    monkeypatch.undo()
    assert parity(other, read_folder(write_folder(other, folder)))==0 and sorted(p.name for p in folder.iterdir())==[CONFIG, MODEL]


def test_only_a_pickle_is_refused_by_its_name(folder):
    for name in 'pytorch_model.bin','model.pth': (folder/name).write_bytes(b'\x80')
    assert parity(made(), read_folder(folder))==0              # beside good weights it is not looked at
    (folder/MODEL).unlink()
    with pytest.raises(ValueError, match='model.pth, a pickle, which is not opened'): read_folder(folder)


# --- cards

def test_figures_of_a_run_of_the_command_and_of_evaluate_are_the_same(tmp_path):
    from ccreid.evaluation.metrics import RetrievalMetrics
    assert hasattr(RetrievalMetrics, 'as_dict')
    said = {'rank-1': .5, 'rank-5': .75, 'rank-10': 1., 'mAP': .4, 'mINP': .3, 'queries': 4, 'protocol': 'x', 'skipped': 0}
    kept = dict(data='prcc', method='cal', seed=2, protocols={'x': dict(R1=.5, R5=.75, R10=1., R20=1., mAP=.4, mINP=.3, queries=4)})
    class Metrics:
        def as_dict(self): return said
    for one in ({'x': said}, {'x': Metrics()}, kept): assert figures_of(one)[0]=={'x': {k: said[k] for k in ('rank-1','rank-5','rank-10','mAP','mINP','queries')}}
    assert figures_of(kept)[1]==dict(data='prcc', method='cal', seed=2)
    (tmp_path/'metrics.json').write_text(json.dumps(kept))
    assert figures_of(tmp_path/'metrics.json')==figures_of(kept)


shares = st.floats(0, 1)
@settings(max_examples=6)
@given(st.dictionaries(st.text('abc -', min_size=1, max_size=8).map(str.strip).filter(bool),
                       st.fixed_dictionaries({'rank-1': shares, 'mAP': shares, 'mINP': shares}), min_size=1, max_size=3))
def test_the_hubs_own_class_reads_every_figure_back(found):
    card = ModelCard(model_card(made('gem'), 'a/b', found, 'ltcc', 'mit', judged='prcc'))
    read = {(r.dataset_config, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert read=={(p,k): round(v, 4) for p,row in found.items() for k,v in row.items()}
    assert {r.dataset_type for r in card.data.eval_results}=={'prcc'} and card.data.license=='mit' and 'LTCC' in card.text
    assert ModelCard(str(card)).data.to_dict()==card.data.to_dict()


def test_a_card_without_figures_says_so_and_invents_nothing():
    card = ModelCard(model_card(made('gem')))
    assert card.data.eval_results is None and card.data.license=='unknown'
    for words in ('Not evaluated', 'No licence was stated', 'Not said.', 'not meant for following people'): assert words in card.text


@pytest.mark.parametrize('name', card_names())
def test_every_data_card_is_one_for_the_hub_with_the_same_facts(name, tmp_path):
    ours,card = load_card(name),DatasetCard.load(write_dataset_card(name, tmp_path))
    d = card.data
    assert (d.license, d.pretty_name, d.license_details, d.get('ccreid'))==(ours.license, ours.pretty_name, ours.license_details, ours.head)
    assert d.license in ('apache-2.0','cc-by-nc-sa-4.0','other','unknown') and (d.get('license_name') is not None)==(d.license=='other')
    assert d.task_categories==['image-feature-extraction'] and ('withdrawn' in d.tags)==ours.withdrawn and set(ours.head['tags'])<=set(d.tags)
    total = ours.expected('total', 'images')
    if total: assert d.size_categories=={4: '1K<n<10K', 5: '10K<n<100K', 6: '100K<n<1M'}[len(str(total))]
    drawn = any((f/'pictures'/f'{name}.png').is_file() for f in dataset_cards.card_folders()) # a wheel has none
    assert (tmp_path/'pictures'/f'{name}.png').is_file()==drawn and 'no picture of it is here' in card.text or name=='folder'
    assert DatasetCard(str(card)).data.to_dict()==d.to_dict()


def test_a_card_from_a_wheel_has_no_picture_and_no_link_to_one(tmp_path, monkeypatch):
    for name in 'cards','drawn/pictures': (tmp_path/name).mkdir(parents=True)
    Image.new('RGB', (4,4)).save(tmp_path/'drawn'/'pictures'/'prcc.png')
    monkeypatch.setattr(dataset_cards, 'card_folders', lambda: [tmp_path/'drawn'])
    text = write_dataset_card('prcc', tmp_path/'a').read_text()
    monkeypatch.setattr(dataset_cards, 'card_folders', lambda: [tmp_path/'cards'])
    bare = write_dataset_card('prcc', tmp_path/'b').read_text()
    assert 'pictures/prcc.png' in text and 'pictures/' not in bare and bare.count('## ')==text.count('## ') and not (tmp_path/'b'/'pictures').exists()


@pytest.mark.parametrize('wrong', [{'a': {'mAP': 50}}, {'a': {'mAP': -.1}}, {'a': {'mAP': True}}, {'a': {'mAP': 'x'}}, {'a': {'mAP': None, 'queries': 3}},
                                   {'a': 3}, {'a': None}, {'protocols': 3}, {'protocols': [1]}, [1], 3, {}])
def test_what_are_no_figures_is_one_line(wrong):
    with pytest.raises(ValueError, match='no share|no figures|by protocol') as e: model_card(made('gem'), evaluation=wrong)
    assert '\n' not in str(e.value)


def test_figures_with_odd_companions():
    assert figures_of({'a': {'mAP': .5, 'rank-1': float('nan'), 'queries': None}, 2: {'R1': 1, 'mAP': np.float32(.25)}})[0]=={
        'a': {'mAP': .5}, '2': {'rank-1': 1., 'mAP': .25}}
    card = ModelCard(model_card(made('gem'), "it's\nmine", {'up|down\nleft': {'mAP': .5}}))
    assert '| up\\|down\\nleft | - | - | - | 50.0 |' in card.text and "from_pretrained(\"it's\\\\nmine\")" in card.text
    assert card.text.strip().splitlines()[0]=="# it's\\nmine"


@pytest.mark.parametrize('license,data,wanted', [('', '', dict(license='unknown')), ('MIT', '', dict(license='mit')), ('mit', 'prcc', dict(license='mit')),
    ('', 'folder', dict(license='unknown')),
    ('', 'prcc', dict(license='other', license_name='terms-of-prcc', license_link='https://ccreid.github.io/ccreid/data_cards/prcc.html')),
    ('other', 'prcc', dict(license='other', license_name='terms-of-prcc', license_link='https://ccreid.github.io/ccreid/data_cards/prcc.html'))])
def test_a_licence_is_what_the_hub_knows(license, data, wanted):
    "Beside `other` the hub wants a name and a link"
    card = ModelCard(model_card(made('gem'), data=data, license=license))
    assert {k: v for k,v in card.data.to_dict().items() if k.startswith('license')}==wanted
    assert 'template' not in card.text
    for no in 'my own licence','other','-':
        with pytest.raises(ValueError, match='licence') as e: model_card(made('gem'), license=no)
        assert '\n' not in str(e.value)


def test_a_run_without_test_people_is_passed_on_without_figures(tmp_path, monkeypatch, capsys):
    from ccreid import cli
    monkeypatch.chdir(tmp_path)
    export_reid(made('gem'), 'run/gem.safetensors')
    Path('run/metrics.json').write_text(json.dumps(dict(data='folder', method='gem', seed=1, protocols={})))
    assert cli.main('export run --folder m'.split())==0, capsys.readouterr().err
    text = Path('m/README.md').read_text()
    assert 'Not evaluated' in text and 'Pictures of its makers' in text and 'template' not in text


# --- the hub

@pytest.mark.parametrize('name,fits', [('a/b', True), ('a-b/c.d_e', True), ('a', False), ('a/b/c', False), ('../b', False), ('/b', False),
                                       ('a--b/c', False), ('a/b..c', False), ('~/b', False), ('a/b ', False), (3, False), ('a/'+'b'*99, False)])
def test_names_of_repositories(name, fits): assert is_hub_id(name) is fits


@pytest.fixture
def server(monkeypatch):
    "A server in the place of the hub that refuses everything with `.status`, and what it was asked"
    class Refusing(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get('Content-Length') or 0))
            asked.append(f'{self.command} {self.path}')
            self.send_response(200 if self.command=='HEAD' and self.path=='/' else seen.status)
            self.send_header('Content-Length', '0'); self.end_headers()
        do_HEAD = do_GET = do_POST = answer
        def log_message(self, *args): pass
    asked,seen = [],type('Seen', (), dict(status=403))
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Refusing)
    threading.Thread(target=s.serve_forever, args=[.01], daemon=True).start()
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'ENDPOINT', f'http://127.0.0.1:{s.server_port}')
    seen.asked = asked
    yield seen
    s.shutdown(); s.server_close()


@pytest.mark.parametrize('status', [401, 403])
def test_a_hub_that_refuses_is_one_line(server, status):
    server.status = status
    with pytest.raises(ConnectionError) as e: made().push_to_hub('somebody/small', token='none')
    said = str(e.value)
    assert said.startswith('nothing was sent to somebody/small: ') and '\n' not in said and len(said)<200
    assert f'HTTP {status}' in said and any('POST /api/repos/create' in a for a in server.asked)


def test_no_hub_at_all_is_one_line(monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(ConnectionError, match=r'^nothing was sent to a/b: ConnectionError: http://127.0.0.1:9 does not answer: .*refused'):
        made().push_to_hub('a/b')
    with pytest.raises(FileNotFoundError, match=r'^no model a/b at v1: it was not fetched before; http://127.0.0.1:9 does not answer'):
        ReIDModel.from_pretrained('a/b', revision='v1')
    with pytest.raises(FileNotFoundError, match='no model a/b at v1'): open_model('a/b@v1')


def test_what_is_sent_can_be_fetched(tmp_path, monkeypatch):
    "Recorders stand in for two methods of `HfApi` and for the download: no hub is asked"
    from huggingface_hub import HfApi
    calls,place = [],tmp_path/'snapshots'/'abc'
    monkeypatch.setattr('ccreid.weights._reachable', lambda timeout: None)
    for name in ('create_repo','create_branch'):
        monkeypatch.setattr(HfApi, name, lambda self, repo, name=name, **kw: calls.append((name, repo, kw)))
    monkeypatch.setattr(HfApi, 'upload_folder', lambda self, folder_path, **kw: (calls.append(('upload', kw)), shutil.copytree(folder_path, place), 'url')[2])
    model = made('gem')
    assert model.push_to_hub('a/b', {'x': {'mAP': .5}}, 'prcc', 'mit', revision='v1', private=True)=='url'
    assert [c[0] for c in calls]==['create_repo','create_branch','upload']
    assert calls[0][1:]==('a/b', dict(private=True, exist_ok=True)) and calls[1][2]==dict(branch='v1', exist_ok=True)
    assert calls[2][1]['revision']=='v1' and calls[2][1]['repo_id']=='a/b' and ModelCard.load(place/'README.md').data.license=='mit'
    asked = []
    def download(name, file, revision=None, **how):
        asked.append((name, file, revision, how['local_files_only'], how['token']))
        return str(place/file)
    monkeypatch.setattr('huggingface_hub.hf_hub_download', download)
    assert parity(model, ReIDModel.from_pretrained('a/b', revision='v1', token='t'))==0
    assert asked==[('a/b', CONFIG, 'v1', False, 't'), ('a/b', MODEL, 'abc', False, 't')]
    assert open_model('a/b@v1').fingerprint==open_model(place).fingerprint


@pytest.fixture
def hub(folder, monkeypatch):
    "A server that speaks as much of the hub's HTTP as a download needs: one repository, somebody/small, with two commits"
    COMMITS = dict(main='1'*40, v1='2'*40)
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self, body=True):
            seen.append(f'{self.command} {self.path}')
            if self.path=='/': return self.reply(200)
            repo,_,rest = self.path.strip('/').partition('/resolve/')
            revision,_,name = rest.partition('/')
            commit = COMMITS.get(revision, revision)
            error = None if repo=='somebody/small' else 'RepoNotFound'
            if error is None and commit not in COMMITS.values(): error = 'RevisionNotFound'
            if error is None and not (folder/name).is_file(): error = 'EntryNotFound'
            if error: return self.reply(404, {'X-Error-Code': error})
            content = (folder/name).read_bytes()
            self.reply(200, {'X-Repo-Commit': commit, 'ETag': f'"{hashlib.sha1(content).hexdigest()}"', 'Content-Length': len(content)})
            if body: self.wfile.write(content)
        def do_HEAD(self): self.do_GET(body=False)
        def reply(self, status, headers={}):
            self.send_response(status)
            for k,v in ({'Content-Length': 0} | headers).items(): self.send_header(k, str(v))
            self.end_headers()
        def log_message(self, *args): pass
    seen = []
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=s.serve_forever, args=[.01], daemon=True).start()
    from huggingface_hub import constants
    place = f'http://127.0.0.1:{s.server_port}'
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True, raising=False)
    monkeypatch.setattr(constants, 'ENDPOINT', place)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', place+'/{repo_id}/resolve/{revision}/{filename}')
    yield type('Hub', (), dict(seen=seen, folder=folder, stop=lambda: (s.shutdown(), s.server_close())))
    s.shutdown(); s.server_close()


def test_a_download_as_the_hub_answers_it(hub, tmp_path):
    "By huggingface_hub itself: fetched once, then from its cache, also where nobody answers any more"
    where = dict(cache_dir=tmp_path/'cache')
    assert parity(made(), ReIDModel.from_pretrained('somebody/small', **where))==0
    assert any('/resolve/main/config.json' in a for a in hub.seen) and any(f'/resolve/{"1"*40}/model.safetensors' in a for a in hub.seen)
    ReIDModel.from_pretrained('somebody/small', revision='v1', **where)
    assert sum(a.startswith('GET') and 'safetensors' in a for a in hub.seen)==1 # the same content lies in the cache
    for name,more,said in (('somebody/none', {}, 'there is no such repository'), ('somebody/small', dict(revision='v9'), 'it has no such revision')):
        with pytest.raises(FileNotFoundError, match=f'^no model {name}.*: {said}') as e: ReIDModel.from_pretrained(name, **more, **where)
        assert '\n' not in str(e.value)
    (hub.folder/CONFIG).rename(hub.folder/'other.json')
    with pytest.raises(FileNotFoundError, match='it has no config.json or no model.safetensors'): ReIDModel.from_pretrained('somebody/small', cache_dir=tmp_path/'new')
    hub.stop()
    assert parity(made(), ReIDModel.from_pretrained('somebody/small', revision='v1', timeout=1., **where))==0


def test_bad_figures_stop_before_anything_is_written_or_sent(tmp_path, monkeypatch):
    monkeypatch.setattr('ccreid.weights._reachable', lambda timeout: pytest.fail('the hub was asked'))
    with pytest.raises(ValueError, match='no share'): made().push_to_hub('a/b', {'x': {'mAP': 50}})
    with pytest.raises(ValueError, match='no share'): made().save_pretrained(tmp_path/'m', {'x': {'mAP': 50}})
    assert not (tmp_path/'m').exists()
