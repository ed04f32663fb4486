"What goes wrong around a training run: damaged and foreign files, two runs in one place, kills, full disks, states that cannot be read again"
import errno
import io
import json
import os
import pickle
import random
import re
import signal
import stat
import time
import zipfile
from argparse import Namespace
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from hypothesis import given, settings, strategies as st
from safetensors.torch import save, save_file

import ccreid.compat
from ccreid import cli, experiments, files
from ccreid.commands.shared import folder_of_run
from ccreid.data.batches import Preprocessing, reid_dataloaders
from ccreid.data.mannequins import MannequinWorld
from ccreid.files import hold
from ccreid.models.backbones import create_backbone, load_pretrained, resnet_mini
from ccreid.models.reid_model import ReIDModel
from ccreid.tensor_files import read_safetensors, read_torch, safetensors_bytes, torch_bytes
from ccreid.training import checkpoints
from ccreid.training.checkpoints import Checkpoint, save_atomically
from ccreid.training.export import export_reid, load_reid, parity
from ccreid.training.learner import Method, reid_learner
from ccreid.training.retrieval import RetrievalEval
from ccreid.weights import WeightsNotFound, load_weights, locate


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')/'prcc'
    MannequinWorld(identities=(4,0,3), outfits=2, cameras=3, images=1, size=(64,32), seed=4).write(folder, layout='prcc', load=False)
    return folder

@pytest.fixture(scope='module')
def dataset(root):
    from ccreid.data.layouts import load_dataset
    return load_dataset('prcc', root, verbose=False)

def learner(dataset, *cbs, **kwargs):
    dls = reid_dataloaders(dataset, Preprocessing((32,16)), 2, 2, num_workers=0, device='cpu')
    return reid_learner(dls, 'resnet_mini', [*cbs], **kwargs)

def fit(learn, epochs=2):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs)
    return learn

def said(error):
    "The message, which is one line and has no trace of fastai's prefix"
    text = re.sub(r'^Exception occured in .*? when calling event .*?:\n\t', '', str(error.value), flags=re.S)
    assert text and '\n' not in text and len(text)<900, text
    return text

@pytest.fixture(scope='module')
def done(dataset, tmp_path_factory):
    "A checkpoint of two epochs, and the weights it ended with"
    path = tmp_path_factory.mktemp('done')/'c.pth'
    learn = fit(learner(dataset, Checkpoint(path)))
    return path.read_bytes(), {k: v.clone() for k,v in learn.model.state_dict().items()}

@pytest.fixture
def file(done, tmp_path):
    (tmp_path/'c.pth').write_bytes(done[0])
    return tmp_path/'c.pth'

def equal(a, b):
    if isinstance(a, torch.Tensor): return isinstance(b, torch.Tensor) and a.dtype==b.dtype and torch.equal(a, b)
    if isinstance(a, dict): return isinstance(b, dict) and list(a)==list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list,tuple)): return type(a)==type(b) and len(a)==len(b) and all(map(equal, a, b))
    return type(a)==type(b) and a==b

def flipped(content, seed, first=0, last=None):
    "Contents with one flipped bit, at 400 seeded places"
    rng = random.Random(seed)
    for _ in range(400):
        i,bad = rng.randrange(8*first, 8*(last or len(content))),bytearray(content)
        bad[i//8] ^= 1<<i%8
        yield bytes(bad)

STATE = dict(model={f'layer{i}.weight': torch.arange(40.)+i for i in range(8)}, epoch=3, history=[dict(lr=.1, epoch=0)], name='a run')

# --- B7: a bit that flips

def test_any_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    save_atomically(STATE, tmp_path/'c.pth')
    content = (tmp_path/'c.pth').read_bytes()
    assert equal(read_torch(tmp_path/'c.pth'), STATE) and equal(torch.load(tmp_path/'c.pth', weights_only=True), STATE)
    alone = 0
    for bad in flipped(content, 1):
        (tmp_path/'c.pth').write_bytes(bad)
        with pytest.raises(ValueError, match='c.pth (is damaged, or )?(no|is no) ?') as e: read_torch(tmp_path/'c.pth')
        said(e)
        try: alone += not equal(torch.load(io.BytesIO(bad), weights_only=True), STATE)
        except Exception: pass
    assert alone>20                                                    # torch by itself takes these, with other values

def test_a_flipped_bit_in_a_file_without_our_sum_is_refused_or_harmless(tmp_path):
    torch.save(STATE, tmp_path/'old.pth')
    content,refused = (tmp_path/'old.pth').read_bytes(),0
    assert equal(read_torch(tmp_path/'old.pth'), STATE)
    for bad in flipped(content, 2):
        (tmp_path/'old.pth').write_bytes(bad)
        try: assert equal(read_torch(tmp_path/'old.pth'), STATE)
        except ValueError: refused += 1
    assert refused>150

def test_a_flipped_bit_stops_a_resumed_run_and_the_file_stays(dataset, file):
    content = bytearray(file.read_bytes())
    content[len(content)//3] ^= 8
    file.write_bytes(content)
    with pytest.raises(ValueError) as e: fit(learner(dataset, Checkpoint(file)))
    assert said(e)==f'{file} is damaged, or no readable checkpoint: delete it to start afresh' and file.read_bytes()==content

def test_a_checkpoint_of_the_version_before_is_gone_on_from(dataset, done, tmp_path):
    whole = fit(learner(dataset), 3)
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch==2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(learner(dataset, Checkpoint(tmp_path/'n.pth', plan=dict(recipe='x')), Stop()), 3)
    state = torch.load(tmp_path/'n.pth', weights_only=True)
    old = {k: v for k,v in state.items() if k not in ('format','threads')}
    old['plan'] = {k: v for k,v in state['plan'].items() if k!='optimiser'}
    torch.save(old, tmp_path/'old.pth')
    learn = fit(learner(dataset, Checkpoint(tmp_path/'old.pth', plan=dict(recipe='x', precision=''))), 3)
    assert learn.first_epoch==2 and learn.history==whole.history and equal(dict(learn.model.state_dict()), dict(whole.model.state_dict()))
    assert torch.load(tmp_path/'old.pth', weights_only=True)['threads']==1
    torch.save(dict(old, plan=dict(old['plan'], seed=7)), tmp_path/'old.pth')
    with pytest.raises(ValueError, match='another run'): fit(learner(dataset, Checkpoint(tmp_path/'old.pth', plan=dict(recipe='x'))), 3)

@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = ReIDModel(create_backbone('resnet_mini'), classes=4)
    model.preprocessing = Preprocessing((32,16))
    path = export_reid(model, tmp_path_factory.mktemp('exported')/'m.safetensors')
    return path.read_bytes(), model

def test_any_flipped_bit_of_exported_weights_is_noticed(exported, tmp_path):
    content,model = exported
    header = 8+int.from_bytes(content[:8], 'little')
    path,trials = tmp_path/'m.safetensors',[*islice(flipped(content, 3, last=header), 100), *islice(flipped(content, 4, first=header), 30)]
    for bad in trials:
        path.write_bytes(bad)
        with pytest.raises(ValueError) as e: load_reid(path)
        said(e)
    path.write_bytes(content)
    assert parity(model, load_reid(path))==0

def test_an_export_without_a_sum_and_one_of_equal_content(exported, tmp_path):
    content,model = exported
    tensors,about = read_safetensors(content)
    path = tmp_path/'old.safetensors'
    save_file(tensors, path, metadata=dict(ccreid=json.dumps(about)))           # as the version before wrote it
    assert parity(model, load_reid(path))==0
    assert export_reid(model, tmp_path/'again.safetensors').read_bytes()==content
    got = load_weights(path)
    assert got.keys()==tensors.keys() and all(equal(v, tensors[k]) for k,v in got.items())

@settings(max_examples=12)
@given(st.dictionaries(st.text(max_size=5), st.tuples(st.sampled_from(['float32','float16','bfloat16','int64','uint8','bool']), st.lists(st.integers(0, 3), max_size=3)), max_size=4),
       st.dictionaries(st.text(max_size=5).filter(lambda k: k!='sum'), st.text(max_size=9) | st.integers() | st.none(), max_size=3))
def test_what_is_written_is_read(shapes, about):
    shapes.pop('__metadata__', None)
    tensors = {k: (torch.arange(float(np.prod(s, dtype=int)))%2).reshape(s).to(getattr(torch, t)) for k,(t,s) in shapes.items()}
    content = safetensors_bytes(tensors, about)
    got,said_about = read_safetensors(content)
    assert got.keys()==tensors.keys() and all(equal(got[k], tensors[k]) for k in got) and said_about==about
    state = dict(tensors=tensors, about=about)
    whole = torch_bytes(state)
    assert equal(torch.load(io.BytesIO(whole), weights_only=True), state)

def test_pretrained_files_with_a_flipped_bit(tmp_path):
    torch.save(resnet_mini().state_dict(), tmp_path/'w.pth')
    load_pretrained(resnet_mini(), tmp_path/'w.pth')
    content = bytearray((tmp_path/'w.pth').read_bytes())
    content[len(content)//2] ^= 1
    (tmp_path/'w.pth').write_bytes(content)
    with pytest.raises(ValueError) as e: load_pretrained(resnet_mini(), tmp_path/'w.pth')
    assert 'is damaged' in said(e) and 'fetch it again' in said(e)

# --- C2: two runs in one place

def test_a_file_that_another_training_holds(dataset, tmp_path):
    with hold(tmp_path/'.c.pth.lock'):
        with pytest.raises(BlockingIOError) as e: fit(learner(dataset, Checkpoint(tmp_path/'c.pth')))
        assert 'another process trains into' in said(e) and {p.name for p in tmp_path.iterdir()}=={'.c.pth.lock'}
    class Stop(Callback):
        def before_batch(self): raise KeyboardInterrupt
    for error,cb in ((KeyboardInterrupt,Stop()), (ZeroDivisionError,None)):     # whatever ends a fit gives the file back
        learn = learner(dataset, Checkpoint(tmp_path/'c.pth'), *([cb] if cb else []))
        if not cb: learn.loss_func.add('bad', lambda o,l: 1//0)
        with pytest.raises(error): fit(learn)
        hold(tmp_path/'.c.pth.lock').release()

class Intrude(Callback):
    "Another process writes the file while this one trains"
    def __init__(self, path, content, epoch): self.path,self.content,self.at = path,content,epoch
    def before_train(self):
        if self.epoch==self.at: self.path.write_bytes(self.content)

def test_a_checkpoint_of_somebody_else_is_not_overwritten(dataset, file, tmp_path, monkeypatch):
    "Also on a disk without locks"
    monkeypatch.setattr(checkpoints, 'hold', lambda *a, **k: files.Held())
    state = read_torch(file)
    cases = {'another run': torch_bytes(dict(state, plan=dict(state['plan'], seed=5))), 'it is of epoch 1': torch_bytes(state), 'is damaged': b'PK\x03\x04 cut'}
    for says,content in cases.items():
        path = tmp_path/'mine.pth'
        path.unlink(missing_ok=True)
        learn = learner(dataset, Checkpoint(path), Intrude(path, content, 0))
        with pytest.raises(ValueError) as e: fit(learn)
        assert 'was written by another process' in said(e) and says in said(e) and path.read_bytes()==content
    path.unlink()
    fit(learner(dataset, Checkpoint(path), Intrude(path, torch_bytes(dict(state, epoch=0)), 1)))           # this very run, earlier: nothing is lost
    assert read_torch(path)['epoch']==1
    class Gone(Callback):
        def before_train(self): path.unlink()
    path.write_bytes(b'<html>')
    fit(learner(dataset, Checkpoint(path, resume=False), Gone()))                                          # asked for afresh; and what is gone is written again
    assert read_torch(path)['epoch']==1

def test_another_optimiser_or_precision_is_another_run(dataset, file):
    from functools import partial
    from fastai.optimizer import OptimWrapper
    with pytest.raises(ValueError) as e: fit(learner(dataset, Checkpoint(file), opt_func=partial(OptimWrapper, opt=torch.optim.SGD)))
    assert "'optimiser': ('Adam', 'SGD')" in said(e)
    with pytest.raises(ValueError) as e: fit(learner(dataset, Checkpoint(file, plan=dict(precision='bf16'))))
    assert "'precision': (None, 'bf16')" in said(e) and 'delete' not in said(e)

def words(**given): return Namespace(**(dict(out=None, runs=Path('runs'), data='prcc') | given))

def test_folders_tell_runs_apart_and_are_short():
    assert folder_of_run(words(), 'cal', '0')==Path('runs/prcc-cal-0') and folder_of_run(words(layout_trial=2), 'cal', '0')==Path('runs/prcc-trial_2-cal-0')
    assert folder_of_run(words(out='x'), 'cal', '0', precision='bf16')==Path('x')
    options = [{}, dict(layout_csv='a/b.csv'), dict(layout_csv='a_b.csv'), dict(layout_csv='é'*300), dict(layout_csv='x'*300), dict(layout_pattern='{identity}.jpg')]
    more = [{}, dict(recipe='1'), dict(recipe='2'), dict(precision='bf16'), dict(hold_out='2'), dict(hold_out='3'), dict(generated='g'), dict(start='g')]
    names = [folder_of_run(words(**o), 'cal', '0', **m).name for o in options for m in more]
    assert len(set(names))==len(names) and max(len(n.encode()) for n in names)<100
    assert all(re.fullmatch(r'[\w.+-]+', n, re.A) for n in names) and names==[folder_of_run(words(**o), 'cal', '0', **m).name for o in options for m in more]

SMALL = ['--set','backbone=resnet_mini','--set','size=[32,16]','--set','pretrained=false','--set','identities=2','--set','images=2']

def train(ccreid, root, *more, data='prcc'): return ccreid('train','--data',data,'--root',root,'--method','identity','--epochs','1','--device','cpu','--workers','0',*SMALL,*more)

def line(result):
    "The error of a command that could not start"
    code,out,err = result
    lines = [l for l in err.splitlines() if l.startswith('ccreid: ')]
    assert code==2 and len(lines)==1 and 'Traceback' not in err, err
    return lines[0]

def names(folder): return {p.name for p in folder.iterdir() if not p.name.endswith('.lock')}

def test_training_by_the_command_line(ccreid, root, tmp_path, monkeypatch):
    "The name of the folder, who may write there, what kills left, a finished run, and what stays when the disk is full"
    monkeypatch.setenv('CCREID_RUNS', str(tmp_path/'runs'))
    code,out,err = train(ccreid, root)
    assert code==0, err
    run, = (tmp_path/'runs').iterdir()
    assert re.fullmatch(r'prcc-identity-0-[0-9a-f]{6}', run.name) and f'Folder of the run: {run}\n' in out and 'goes on' not in out
    assert names(run)=={'checkpoint.pth','identity.safetensors','metrics.json'} and all(stat.S_IMODE(p.stat().st_mode)&0o044 for p in run.iterdir())
    record = json.loads((run/'metrics.json').read_text())
    assert record['threads']==torch.get_num_threads() and record['protocols']
    before = {n: (run/n).read_bytes() for n in names(run)}
    dead = 4_194_999                                                             # no process has such a number
    for left in (f'.checkpoint.pth.{dead}',f'.making-metrics.json-{dead}-123456','.tmpAbC123',f'.identity.safetensors.{dead}'): (run/left).write_bytes((20).to_bytes(8, 'little')+b'{')
    (run/'.mine').write_text('a letter')
    with hold(run/'.lock'):
        assert 'another training is at work in' in line(train(ccreid, root)) and '--out' in line(train(ccreid, root)) and (run/'.tmpAbC123').exists()
    code,out,err = train(ccreid, root)                                          # the same line: nothing is left to train
    assert code==0 and 'goes on from its checkpoint' in out and 'nothing was trained again' in out and len([*(tmp_path/'runs').iterdir()])==1
    assert names(run)=={'.mine', *before}                                       # what was killed is cleared away, and nothing else
    assert all((run/n).read_bytes()==before[n] for n in ('checkpoint.pth','identity.safetensors'))

    metrics = (run/'metrics.json').read_bytes()
    def full(fd): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(files.os, 'fsync', full)
    assert 'No space left' in line(train(ccreid, root)) and (run/'metrics.json').read_bytes()==metrics and names(run)=={'.mine', *before}

def test_a_run_folder_that_cannot_be_made_is_known_at_once(ccreid, root, tmp_path, monkeypatch):
    def never(*a, **k): raise AssertionError('trained')
    monkeypatch.setattr(experiments, 'run', never)
    (tmp_path/'file').write_text('x')
    assert 'cannot write' in line(train(ccreid, root, '--out',tmp_path/'file')) and (tmp_path/'file').read_text()=='x'

def test_figures_that_are_no_number_are_null(ccreid, root, tmp_path, monkeypatch):
    def run(r, *args, trained=None, **kw): return Namespace(results={}, first_epoch=0), dict(history=[dict(identity=float('nan'))], seconds=float('inf'))
    monkeypatch.setattr(experiments, 'run', run)
    assert train(ccreid, root, '--out',tmp_path/'r')[0]==0
    def no(text): raise AssertionError(text)
    assert json.loads((tmp_path/'r'/'metrics.json').read_text(), parse_constant=no)==dict(history=[dict(identity=None)], seconds=None)

# --- C4: what could only fail at the end

@pytest.fixture
def photos(dataset, tmp_path):
    "A folder without splits: the training images under names that say who and what"
    import shutil
    folder = tmp_path/'photos'
    folder.mkdir()
    t = dataset.train
    for i,(p,who,clothes,camera) in enumerate(zip(t.path, t.identity, t.clothes, t.camera)): shutil.copy(p, folder/f'{who}_{clothes}_c{camera}_{i}{Path(p).suffix}')
    return folder

def test_no_training_and_no_test_people(ccreid, photos, tmp_path):
    text = train(ccreid, photos, data='folder')
    assert 'is for training' in line(text) and '--split train' in text[2]
    code,out,err = train(ccreid, photos, '--split','train','--out',tmp_path/'r', data='folder')
    assert code==0 and 'No test people' in out, err
    assert json.loads((tmp_path/'r'/'metrics.json').read_text())['protocols']=={} and load_reid(tmp_path/'r'/'identity.safetensors').preprocessing.size==(32,16)

def test_weights_are_there_before_anything_is_evaluated(ccreid, root, tmp_path, monkeypatch):
    def fails(*a, **k): raise ValueError('the evaluation failed')
    monkeypatch.setattr('ccreid.runs.evaluate_all', fails)
    assert 'the evaluation failed' in line(train(ccreid, root, '--out',tmp_path/'r'))
    assert load_reid(tmp_path/'r'/'identity.safetensors') and not (tmp_path/'r'/'metrics.json').exists()

def test_a_broken_test_picture_is_found_before_training(ccreid, root, tmp_path):
    import shutil
    shutil.copytree(root, tmp_path/'copy')
    wrong = sorted((tmp_path/'copy').rglob('test/*/*/*.jpg'))[:4]
    for p in wrong: p.write_bytes(b'text')
    result = train(ccreid, tmp_path/'copy', '--out',tmp_path/'r')
    assert '4 of ' in line(result) and 'replace or remove' in line(result) and sum('test' in l and l.endswith('image') for l in result[2].splitlines())<=3
    assert sum(str(p) in l and not l.startswith('ccreid') for p in wrong for l in result[2].splitlines())==3 and names(tmp_path/'r')==set()

def test_evaluation_while_training_that_cannot_be(dataset):
    with pytest.raises(ValueError, match='at least 1'): RetrievalEval(dataset, every=0)
    with pytest.raises(ValueError, match='at least 1'): Checkpoint('c.pth', every=0)
    with pytest.raises(ValueError, match='no image to evaluate'): RetrievalEval(dataset, protocols=[])

# --- C5: states that could not be read again

class Memory(Method):
    def __init__(self, value): self.value,self.got = value,None
    def state_dict(self): return dict(deep=[dict(x=self.value)])
    def load_state_dict(self, state): self.got = state['deep'][0]['x']

def test_arrays_numbers_and_paths_come_back(dataset, tmp_path):
    value = dict(counts=np.arange(6).reshape(2,3), best=np.float32(.25), n=np.int64(3), flag=np.bool_(True), folder=Path('a/b'), seen=(1, None), t=torch.ones(2))
    fit(learner(dataset, Memory(value), Checkpoint(tmp_path/'c.pth')), 1)
    memory = Memory(None)
    fit(learner(dataset, memory, Checkpoint(tmp_path/'c.pth')), 1)
    got = memory.got
    assert type(got['counts']) is np.ndarray and got['counts'].dtype==value['counts'].dtype and (got['counts']==value['counts']).all()
    assert (got['best'], got['n'], got['flag'], got['folder'], got['seen'])==(.25, 3, True, Path('a/b'), (1, None)) and equal(got['t'], torch.ones(2))
    torch.load(tmp_path/'c.pth', weights_only=True)

@dataclass
class Thing: a:int = 1

def test_what_cannot_be_read_again_is_refused_when_it_is_first_saved(dataset, tmp_path):
    for value in (Thing(), frozenset([1]), np.array(['text']), lambda: 1, Namespace(a=1)):
        learn = learner(dataset, Memory(value), Checkpoint(tmp_path/'c.pth'))
        with pytest.raises(ValueError) as e: fit(learn)
        text = said(e)
        assert "state of the callback memory" in text and "['deep'][0]['x']" in text and type(value).__qualname__ in text and 'delete' not in text
        assert len(learn.history)==1 and {p.name for p in tmp_path.iterdir()}=={'.c.pth.lock'}
    class Odd(torch.nn.Module):
        def get_extra_state(self): return Thing()
        def set_extra_state(self, state): pass
    learn = learner(dataset, Checkpoint(tmp_path/'c.pth'))
    learn.model.aux['odd'] = Odd()
    with pytest.raises(ValueError) as e: fit(learn)
    assert 'the state of model cannot be read' in said(e) and not (tmp_path/'c.pth').exists()

# --- C3, C6, C7: kills, leftovers, rights

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_kill_while_saving_leaves_a_whole_file_and_no_lock(tmp_path):
    state,path = dict(weight=torch.arange(200_000.)),tmp_path/'c.pth'
    save_atomically(dict(state, n=0), path)
    left,rng = 0,random.Random(0)
    for k in range(8):
        pid = os.fork()
        if not pid:
            try:
                held = hold(tmp_path/'.lock')
                for n in range(10_000): save_atomically(dict(state, n=n), path)
            finally: os._exit(1)
        time.sleep(.15+.1*rng.random())
        os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
        assert torch.equal(read_torch(path)['weight'], state['weight'])
        with hold(tmp_path/'.lock'): left += len(files.clear_making(tmp_path))
        assert {p.name for p in tmp_path.iterdir()}=={'c.pth','.lock'}
    assert left

def test_what_kills_left_beside_a_checkpoint_goes_and_nothing_else(dataset, file):
    ours,others = ('.c.pth.123','.making-c.pth-12-0a1b2c'),('.other.pth.123','.making-d.pth-12-0a1b2c','c.pth.123','.c.pth.bak')
    for n in ours+others: file.with_name(n).write_text('x')
    fit(learner(dataset, Checkpoint(file)))
    assert {p.name for p in file.parent.iterdir()}=={*others,'c.pth','.c.pth.lock'}

@pytest.mark.skipif(os.name=='nt', reason='rights of POSIX')
def test_rights_are_those_of_the_user(exported, tmp_path):
    for mask,mode in ((0o022,0o644), (0o077,0o600)):
        before = os.umask(mask)
        try: path = export_reid(exported[1], tmp_path/f'{mask}.safetensors'); save_atomically(STATE, tmp_path/f'{mask}.pth')
        finally: os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode)==stat.S_IMODE((tmp_path/f'{mask}.pth').stat().st_mode)==mode
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]

def test_a_full_disk_keeps_the_file_that_was_there(dataset, exported, file, tmp_path, monkeypatch):
    export_reid(exported[1], tmp_path/'m.safetensors')
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    def full(fd): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(files.os, 'fsync', full)
    for write in (lambda: save_atomically(STATE, file), lambda: export_reid(exported[1], tmp_path/'m.safetensors')):
        with pytest.raises(OSError, match='No space left') as e: write()
        assert '\n' not in str(e.value) and str(tmp_path) in str(e.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()}==before

# --- D1: one line

NOT_DAMAGED = {'page': b'<!DOCTYPE html><html>404', 'pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:1', 'notes': b'my notes', 'pickle': pickle.dumps({'a': 1}),
               'zeros': bytes(3000)}

def test_what_lies_there_instead_of_a_checkpoint(dataset, done, tmp_path, monkeypatch):
    state = torch.load(io.BytesIO(done[0]), weights_only=True)
    deep = io.BytesIO()
    with zipfile.ZipFile(deep, 'w') as z: z.writestr('archive/data.pkl', b'\x80\x02' + b'('*100_000 + b'l'*100_000 + b'.'); z.writestr('archive/version', b'3\n')
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'ran'),)
    wide = dict(state, model=dict(state['model'], **{'classifier.weight': torch.zeros(9,9)}))
    cases = NOT_DAMAGED | {'empty': b'', 'cut': done[0][:5000], 'deep': deep.getvalue(), 'list': torch_bytes([1,2]), 'weights': torch_bytes(state['model']),
        'newer': torch_bytes(dict(state, format=2)), 'wide': torch_bytes(wide), 'no model': torch_bytes({k: v for k,v in state.items() if k!='model'}), 'evil': torch_bytes(dict(state, x=Evil())),
        'no plan': torch_bytes({k: v for k,v in state.items() if k!='plan'}), 'text': torch_bytes(dict(state, epoch='1')), 'late': torch_bytes(dict(state, epoch=7)), 'early': torch_bytes(dict(state, epoch=-3)),
        'opt': torch_bytes(dict(state, opt={})), 'other opt': torch_bytes(dict(state, opt=dict(state=1, hypers=[]))), 'no callbacks': torch_bytes(dict(state, plan=state['plan'], callbacks={}))}
    if len(state['callbacks'])==0: cases.pop('no callbacks')
    says = dict(page='web page', pointer='Git LFS', empty='is empty', cut='is damaged', newer='format 2', wide='does not fit the model', evil='mkdir', late='after epoch 7', weights='without plan',
                notes='is no readable checkpoint', opt='does not fit the optimiser')
    learn = learner(dataset, Checkpoint(tmp_path/'c.pth'))
    for name,content in cases.items():
        (tmp_path/'c.pth').write_bytes(content)
        with pytest.raises(ValueError) as e: fit(learn)
        text = said(e)
        assert text.startswith(str(tmp_path/'c.pth')) and says.get(name, '') in text, (name, text)
        assert ('delete it' in text)==(name in ('empty','cut','deep')) or name=='deep', (name, text)
        assert (tmp_path/'c.pth').read_bytes()==content
    assert not (tmp_path/'ran').exists()
    (tmp_path/'c.pth').unlink(); (tmp_path/'c.pth').mkdir()
    with pytest.raises(ValueError, match='is a folder'): fit(learn)
    (tmp_path/'c.pth').rmdir()

def test_a_callback_that_does_not_take_its_state_is_named(dataset, tmp_path):
    fit(learner(dataset, Memory(1), Checkpoint(tmp_path/'c.pth')), 1)
    class Picky(Memory):
        name = 'memory'
        def load_state_dict(self, state): state['other']
    with pytest.raises(ValueError) as e: fit(learner(dataset, Picky(1), Checkpoint(tmp_path/'c.pth')), 1)
    assert 'does not fit the callback memory' in said(e) and "'other'" in said(e)

@pytest.fixture
def unreadable(monkeypatch):
    "Files called secret.* may not be opened"
    import builtins
    real = builtins.open
    def refuse(path, *a, **k):
        if Path(str(path)).stem=='secret': raise PermissionError(errno.EACCES, 'Permission denied', str(path))
        return real(path, *a, **k)
    monkeypatch.setattr(builtins, 'open', refuse)

def test_unreadable_is_not_missing(dataset, tmp_path, unreadable):
    for name in ('secret.pth','secret.safetensors'): (tmp_path/name).write_bytes(b'PK')
    with pytest.raises(ValueError) as e: fit(learner(dataset, Checkpoint(tmp_path/'secret.pth')))
    assert 'cannot be read: Permission denied' in said(e) and 'delete' not in said(e)
    for read in (load_reid, load_weights):
        with pytest.raises(ValueError) as e: read(tmp_path/'secret.safetensors')
        assert 'cannot be read: Permission denied' in said(e)

def test_what_lies_there_instead_of_an_exported_model(exported, tmp_path):
    content = exported[0]
    tensors,about = read_safetensors(content)
    def asking(**changes): return safetensors_bytes(tensors, dict(about, model={**about['model'], **changes}))
    def header(text): return len(text).to_bytes(8, 'little')+text
    cases = NOT_DAMAGED | {'empty': b'', 'cut': content[:-1], 'longer': content+b'x', 'others': save(tensors), 'deep': header(b'['*90_000), 'deeper': header(b'{"__metadata__":{"ccreid":"' + b'['*90_000 + b'"}}'),
        'huge header': (2**60).to_bytes(8, 'little')+b'{}', 'huge tensor': header(b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'),
        'classes': asking(classes=10**12), 'stride': asking(last_stride=10**9), 'net': asking(backbone='convnext_xxlarge'), 'type': asking(backbone=['resnet_mini']), 'kind': asking(kind='ccreid.cli.main'),
        'parts': asking(kind='ccreid.baselines.cssc.CSSCModel', parts=10**9), 'hub': asking(backbone='hf-hub:somebody/net'), 'float': asking(pool=1.5),
        'list': safetensors_bytes(tensors, dict(about, model=[])), 'bare': safetensors_bytes(tensors, dict(model=about['model'])),
        'size': safetensors_bytes(tensors, dict(about, preprocessing=dict(about['preprocessing'], size=[10**9,10**9]))), 'missing tensor': safetensors_bytes({k: v for k,v in tensors.items() if 'bn1' not in k}, about)}
    path,began = tmp_path/'m.safetensors',time.time()
    for name,bad in cases.items():
        path.write_bytes(bad)
        with pytest.raises(ValueError) as e: load_reid(path)
        assert said(e).startswith(str(path)), name
    assert time.time()-began<60
    with pytest.raises(FileNotFoundError, match='no exported model at'): load_reid(tmp_path/'none.safetensors')
    with pytest.raises(ValueError, match='is a folder'): load_reid(tmp_path)

@pytest.mark.parametrize('kind', ['cssc','fire'])
def test_models_of_other_kinds_are_exported_and_loaded(kind, tmp_path):
    from ccreid.baselines import cssc, fire
    model = {'cssc': lambda: cssc.CSSCModel('resnet_mini', classes=3), 'fire': lambda: ReIDModel('resnet_mini', pool='gem', classes=3, neck='bn-no-bias')}[kind]()
    model.preprocessing = Preprocessing((32,16))
    assert parity(model, load_reid(export_reid(model, tmp_path/'m.safetensors')))<1e-5

def test_what_lies_there_instead_of_weights(tmp_path):
    for name,content in NOT_DAMAGED.items():
        for suffix in ('.pth','.safetensors'):
            path = tmp_path/f'{name}{suffix}'
            path.write_bytes(content)
            with pytest.raises(ValueError) as e: load_weights(path)
            assert said(e).startswith(str(path)), path
    torch.save({1: torch.ones(1)}, tmp_path/'keys.pth')
    with pytest.raises(ValueError, match='no table of weights'): load_weights(tmp_path/'keys.pth')
    (tmp_path/'f.pth').mkdir()
    with pytest.raises(ValueError, match='is a folder'): load_weights(tmp_path/'f.pth')
    with pytest.raises(WeightsNotFound): load_weights(tmp_path/'no.pth')
    for name in ('n'*400, 'a\0b'):
        with pytest.raises(WeightsNotFound): locate(name)
    for name in ('resnet50.mine', 5, 'resnet_mimi', ['resnet50']):
        with pytest.raises(ValueError, match='no backbone') as e: create_backbone(name)
        assert '\n' not in str(e.value)

# --- D6: threads

def test_threads_are_recorded_and_another_number_is_said(dataset, tmp_path, capsys):
    fit(learner(dataset, Checkpoint(tmp_path/'c.pth')), 1)
    assert read_torch(tmp_path/'c.pth')['threads']==1==experiments.environment('cpu')['threads']
    fit(learner(dataset, Checkpoint(tmp_path/'c.pth')), 1)
    assert 'threads' not in capsys.readouterr().out
    torch.set_num_threads(2)
    try: learn = fit(learner(dataset, Checkpoint(tmp_path/'c.pth')), 1)
    finally: torch.set_num_threads(1)
    assert learn.first_epoch==1 and 'c.pth: saved by a run with 1 threads, this one has 2' in capsys.readouterr().out

def test_names_that_are_no_text_are_hashed(dataset):
    class Set:
        root,train = '/r',dataset.train.assign(path=['/r/'+os.fsdecode(b'\xd6\xd0%d.jpg' % i) for i in range(len(dataset.train))])
    assert re.fullmatch('[0-9a-f]{10}', experiments.train_hash(Set))
