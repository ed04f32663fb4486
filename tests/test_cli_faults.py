"What goes wrong at the command line: one line whatever the exception, options and settings out of range, no home, no terminal, pipes and signals, complex features"
import errno, json, os, re, shutil, signal, subprocess, sys, tempfile, time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from pathlib import Path
import matplotlib, numpy as np
import pytest, torch
from hypothesis import given, settings as examples, strategies as st
from ccreid import cli, failures, options, settings
from ccreid.data.batches import reid_dataloaders
from ccreid.data.layouts import load_dataset
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samplers import PKSampler
from ccreid.data.samples import DataError
from ccreid.data.transforms import Preprocessing
from ccreid.evaluation.comparing import compared, real_numbers
from ccreid.evaluation.metrics import evaluate, metrics_from_distances, retrieval_metrics
from ccreid.evaluation.neighbours import jaccard_distance, rerank
from ccreid.evaluation.pictures import plot_tsne
from ccreid.evaluation.protocols import STANDARD, Protocol
from ccreid.evaluation.ranked_lists import ranked_list
from ccreid.recipes import RULES, Recipe, build, recipe, values_of
from ccreid.registry import Command
from ccreid.training import progress
from ccreid.training.schedules import warmup_multistep

CORE = getattr(np, '_core', None) or np.core # its name before numpy 2

REPO = Path(cli.__file__).parent.parent

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')/'prcc'
    MannequinWorld(identities=(6,0,3), outfits=2, cameras=3, images=2, size=(32,16), seed=4).write(folder, layout='prcc')
    return folder

@pytest.fixture(scope='module')
def dataset(root): return load_dataset('prcc', root, verbose=False)

def one_line(err, lines=1):
    assert err.startswith('ccreid: ') and len(err.strip().splitlines())<=lines and err.strip().isprintable() and 'Traceback' not in err, err
    return err

def raising(monkeypatch, e):
    def command(a):
        if isinstance(e, BaseException): raise e
        e()
    monkeypatch.setitem(options.COMMANDS, 'settings', Command('settings', lambda parser: None, command))

# --- one line whatever the exception

def full_disk():
    try: raise OSError(errno.ENOSPC, 'No space left on device', '/runs/a')
    except OSError: raise RuntimeError('cannot pickle it')

@pytest.mark.parametrize('e, says', [
    (OSError(errno.ENOSPC, 'No space left on device', 'a.pth'), 'the disk is full (a.pth: No space'), (full_disk, 'the disk is full (cannot pickle it)'),
    (RuntimeError('[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file data/0: file write failed'), 'the disk is full'),
    (RuntimeError('[enforce fail at inline_container.cc:603] . unexpected pos 128 vs 22'), 'the disk is full'),
    (type('SafetensorError', (Exception,), {})('Error while serializing: I/O error: No space left on device (os error 28)'), 'the disk is full'),
    (MemoryError(), 'memory is full'), (CORE._exceptions._ArrayMemoryError((10**9,), np.dtype(float)), 'memory is full'),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:116] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12 (Cannot allocate memory)"), 'memory is full'),
    (torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.'), "the GPU's memory is full"),
    (OSError(errno.EMFILE, 'Too many open files', 'a.jpg'), 'too many files are open'), (RuntimeError('received 0 items of ancdata'), 'too many files are open'),
    (RuntimeError('unable to open shared memory object </torch_1_2> in read-write mode: Too many open files (24)'), 'too many files are open'),
    (RuntimeError('unable to write to file </torch_1_2>: No space left on device (28)'), 'shared memory is full'),
    (RuntimeError('DataLoader worker (pid 71) is killed by signal: Bus error. It is possible that dataloader\'s workers are out of shared memory.'), 'shared memory is full'),
    (RuntimeError('DataLoader worker (pid 71) is killed by signal: Killed. '), 'a process that worked for this one was killed'),
    (RuntimeError('DataLoader worker (pid(s) 71) exited unexpectedly'), 'a process that worked for this one was killed'),
    (BrokenProcessPool('A process in the process pool was terminated abruptly'), 'a process that worked for this one was killed'),
    (AssertionError('Torch not compiled with CUDA enabled'), 'the GPU cannot be used'), (RuntimeError('Found no NVIDIA driver on your system.'), 'the GPU cannot be used'),
    (RuntimeError('CUDA error: no kernel image is available for execution on the device\nCompile with `TORCH_USE_CUDA_DSA`'), 'the GPU cannot be used'),
    (ModuleNotFoundError("No module named 'diffusers'", name='diffusers'), 'pip install "ccreid[generate]"'), (ImportError('libGL.so.1: cannot open shared object file'), 'libGL.so.1'),
    (PermissionError(errno.EACCES, 'Permission denied', '/x/settings.ini'), '/x/settings.ini: Permission denied')])
def test_a_machine_that_is_full_or_broken_is_one_line_with_a_way_out(ccreid, monkeypatch, tmp_path, e, says):
    raising(monkeypatch, e)
    code, _, err = ccreid('settings')
    assert code==2 and says in one_line(err) and 'not expected' not in err
    assert not list(Path(os.environ['CCREID_RUNS']).parent.rglob('*.log')) and not list(tmp_path.iterdir())

def recursion(): return recursion()
@pytest.mark.parametrize('e, says', [(KeyError('model'), "KeyError: 'model'"), (recursion, 'RecursionError'), (lambda: int('x\x1b[2J'), 'ValueError: invalid literal'),
    (TypeError(), 'TypeError'), (AssertionError('a\nb\nc'), 'AssertionError: a b c'), (ValueError('x'*9000), 'ValueError: xx'), (lambda: np.stack([[1],[1,2]]), 'ValueError')])
def test_what_nobody_expected_leaves_its_trace_in_a_file(ccreid, monkeypatch, e, says):
    raising(monkeypatch, e)
    code, _, err = ccreid('settings')
    file = Path(re.search(r'the trace is in (\S+)\)', one_line(err))[1])
    assert code==2 and says in err and len(err)<2000 and file.parent==Path(os.environ['CCREID_RUNS'])
    text = file.read_text()
    assert 'ccreid settings' in text and 'Traceback' in text and 'test_cli_faults.py' in text and len(text)<100_000
    file.unlink()
    for words in (('--debug','settings'), ('settings','--debug')):
        code, _, err = ccreid(*words)
        assert code==2 and 'Traceback' in err and says in err.splitlines()[-1] and not list(file.parent.iterdir())

def test_the_trace_goes_elsewhere_where_runs_cannot_be_written(ccreid, monkeypatch, tmp_path):
    (tmp_path/'file').touch(); (tmp_path/'tmp').mkdir()
    monkeypatch.setenv('CCREID_RUNS', str(tmp_path/'file')); monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path/'tmp'))
    raising(monkeypatch, KeyError('model'))
    assert str(tmp_path/'tmp') in ccreid('settings')[2] and len(list((tmp_path/'tmp').iterdir()))==1
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path/'file'))
    assert '--debug prints the trace' in one_line(ccreid('settings')[2])

def test_an_error_that_came_from_a_reading_process_is_its_own_words(ccreid, monkeypatch):
    from torch._utils import ExceptionWrapper
    def far():
        try: PKSampler([0,0,1,1], 3)
        except Exception as e: wrapped = ExceptionWrapper((type(e), e, e.__traceback__), 'in DataLoader worker process 0')
        wrapped.reraise()
    raising(monkeypatch, far)
    code, _, err = ccreid('settings')
    assert code==2 and one_line(err.replace('\n        ', ' ')).startswith('ccreid: a batch needs 3 different people') and 'not expected' not in err

def test_interrupted_and_names_that_cannot_be_printed(ccreid, monkeypatch):
    raising(monkeypatch, KeyboardInterrupt())
    assert ccreid('settings')[::2]==(1, 'ccreid: interrupted\n')
    raising(monkeypatch, FileNotFoundError(2, 'No such file or directory', 'a\x1b[31m\udcff\n.jpg'))
    assert ccreid('settings')[2]=='ccreid: a\\x1b[31m\\xff\\n.jpg: No such file or directory\n'

# --- options

@pytest.mark.parametrize('line, says', [(l.rsplit(' | ', 1)) for l in '''
train --data prcc --workers -1 | --workers: expected a whole number from 0 to 1,024, got -1
train --data prcc --every 0 | --every: expected a whole number, at least 1, got 0
train --data prcc --epochs 0 | --epochs: expected a whole number, at least 1, got 0
train --data prcc --epochs 1e9 | --epochs
train --data prcc --epochs 1000000000 | Setting epochs
train --data prcc --seed -1 | --seed
train --data prcc --seed 18446744073709551616 | --seed
train --data prcc --hold-out -3 | --hold-out
train --data prcc --device gpu | for gpu, write cuda
train --data prcc --device 0 | write cuda:0
train --data prcc --device mps | mps
train --data prcc --set epochs=-1 | Setting epochs: expected a whole number from 1
train --data prcc --set smoothing=5 | Setting smoothing: expected a number, at least 0 and below 1, got 5
train --data prcc --set size=["a","b"] | Setting size
train --data prcc --set milestones=["a"] | Setting milestones
train --data prcc --set lr=nan | Setting lr: expected a number, above 0, got nan
train --data prcc --set lr=-1 | Setting lr
train --data prcc --set identities=0 | Setting identities
train --data prcc --set images=1.5 | Setting images
train --data prcc --set start_epoch=-1 | Setting start_epoch
train --data prcc --set cache=1 | Setting cache: expected true or false
train --data prcc --set pad=-3 | Setting pad
train --data prcc --set fill=1,2 | Setting fill
train --data prcc --set generated=nobody | Setting generated
train --data prcc --method identity+hsal --set hsal_weight=none | Setting hsal_weight: expected a number, at least 0, got 'none'
train --data prcc --set backbone= | Setting backbone
train --data prcc --set data=ltcc | Unknown setting data
train --data prcc --set =3 | --set: expected NAME=VALUE
generate chpsg --data prcc --batch 0 | --batch
reproduce hsgl --minutes -1 | --minutes
reproduce hsgl --minutes nan | --minutes
check prcc ~nobody-of-this-name | no such home folder
evaluate --data prcc --features ~nobody-of-this-name/f | no such home folder
settings please | unrecognized arguments: please
trane | invalid choice: 'trane'
'''.strip().splitlines()])
def test_options_out_of_range_are_one_line(ccreid, line, says):
    code, out, err = ccreid(*line.split())
    assert code==2 and says in one_line(err) and not out

@pytest.mark.parametrize('words', [('train','--data',''), ('train','--data','prcc','--root',''), ('check','prcc',''), ('check','','.'), ('train','--data','prcc','--out',' '), ('train','--data','prcc','--device',''),
    ('evaluate','--data','prcc','--features',''), ('evaluate','--data','prcc','--weights',''), ('train','--data','prcc','--start','a\0b'), ('settings','\x1b[2J'), ('train','--data','\udcff\n')])
def test_empty_texts_and_texts_for_terminals(ccreid, words):
    code, out, err = ccreid(*words)
    assert code==2 and one_line(err.replace('\n        ', ' '))

# --- settings of a recipe

def test_every_setting_has_a_rule_and_hashes_stay():
    assert set(RULES)=={f.name for f in fields(Recipe)}-{'data','method','options'}
    assert values_of(dict(size='96,48'))==values_of(dict(size='96x48'))==values_of(dict(size='[96,48]'))==dict(size=(96,48))
    assert values_of(dict(milestones='20,40', backbone='50', pretrained='False', lr='1e-3', fill='', cache='yes'))==dict(milestones=(20,40), backbone='50', pretrained=False, lr=.001, fill=(), cache=True)
    assert recipe('prcc', size=[96,48], lr=np.float64(.1)).hash==recipe('prcc', size=(96,48), lr=.1).hash
    assert recipe('prcc', triplet=1).hash!=recipe('prcc', triplet=1.).hash     # a number is hashed as it was written, as ever
    assert (recipe('prcc').hash, recipe('mannequins','fire+hsal').hash)==('443be6c392','0a76dc8fd7')

@given(st.sampled_from(['epochs','identities','lr','wd','smoothing','margin','start_epoch','pad','hsal_alpha']), st.one_of(st.integers(-3, 3), st.floats(), st.text(max_size=3), st.none(), st.booleans()))
def test_numbers_in_range_are_taken_and_others_name_their_setting(name, value):
    low, high, kind = dict(epochs=(1,1e5,int), identities=(1,65536,int), lr=(5e-324,1e308,float), wd=(0,1e308,float), smoothing=(0,1-1e-12,float), margin=(0,2,float), start_epoch=(0,1e5,int),
                           pad=(0,4096,int), hsal_alpha=(0,1-1e-12,float))[name]
    fits = type(value) in ((int,) if kind is int else (int,float)) and low<=value<=high
    if name=='hsal_alpha' and value is None: return                            # not given
    if fits: assert getattr(recipe('prcc', 'cal+hsal', **{name: value}), name)==value
    else:
        with pytest.raises(ValueError, match=f'^Setting {name}: expected .*, got '): recipe('prcc', 'cal+hsal', **{name: value})

def test_library_doors_beside_the_recipe(dataset):
    with pytest.raises(ValueError, match='seed: expected a whole number'): build(recipe('prcc'), dataset, seed=-1)
    with pytest.raises(ValueError, match='seed: expected a whole number'): build(recipe('prcc'), dataset, seed=2**64)
    for bad in (dict(identities=2.5), dict(images='2'), dict(seed=-1)):
        with pytest.raises(DataError, match='expected a whole number'): PKSampler([0,0,1,1], **{**dict(identities=2, images=2), **bad})
    for bad in (dict(milestones=('a',)), dict(lr=float('nan')), dict(warmup=-1), dict(milestones=5)):
        with pytest.raises(ValueError, match='expected'): warmup_multistep(**{**dict(lr=1.), **bad})

def test_sizes_are_two_numbers_or_one_line(dataset):
    assert reid_dataloaders(dataset, [32,16], 2, 2, num_workers=0, device='cpu').preprocessing==Preprocessing((32,16))
    for size in ((96,48), [96,48], np.array([96,48])): assert Preprocessing(size).size==(96,48) and all(type(n) is int for n in Preprocessing(size).size)
    for size in (96, '96x48', (96,), (96.5,48), (0,48), (96,-1), None, ('a','b')):
        with pytest.raises(DataError, match='size must be .height, width., not'): Preprocessing(size)

def test_devices_of_settings_and_of_calls(monkeypatch):
    monkeypatch.setenv('CCREID_DEVICE', 'gpu')
    with pytest.raises(settings.SettingsError, match="CCREID_DEVICE.*write cuda"): settings.get('device')
    for text in ('gpu','0','','mps' if not torch.backends.mps.is_available() else 'x', 'cuda:99999'):
        with pytest.raises(settings.SettingsError, match='the call'): settings.pick_device(text)
    assert settings.pick_device(torch.device('cpu'))=='cpu'

# --- a user without a name

HOMELESS = '''if 1:
    import os, pwd, sys
    def nobody(uid): raise KeyError(uid)
    pwd.getpwuid = nobody
    root, files = sys.argv[1:]
    sys.path.insert(0, %r)
    from ccreid import cli
    import ccreid.experiments, ccreid.training.export, ccreid.data.checks, encodings.cp437
    os.chdir(files)
    if os.getuid()==0: os.setuid(54321)
    print('codes', [cli.main(l) for l in (['settings'], ['check','prcc',root,'--counts-from','manifest'],
        ['evaluate','--data','prcc','--root',root,'--features',files+'/f.npz','--device','cpu'])])
    open('settings.ini','w').write('[DEFAULT]\\nseed = 1\\n'); os.chmod('settings.ini', 0)
    print('code', cli.main(['settings']))'''

def test_no_home_and_an_unknown_user(root, dataset):
    with tempfile.TemporaryDirectory() as tmp:
        os.chmod(tmp, 0o777)
        root = shutil.copytree(root, Path(tmp)/'prcc')
        paths = [os.path.relpath(p, dataset.root) for p in dataset.samples.path]
        np.savez(Path(tmp)/'f.npz', paths=np.array(paths), features=np.random.default_rng(0).normal(size=(len(paths),8)))
        os.chmod(Path(tmp)/'f.npz', 0o644)
        r = subprocess.run([sys.executable, '-c', HOMELESS%str(REPO), str(root), tmp], env={'OMP_NUM_THREADS':'1', 'MPLCONFIGDIR':matplotlib.get_cachedir()}, capture_output=True, text=True)
        assert 'codes [0, 0, 0]' in r.stdout, r.stdout+r.stderr
        assert f'weights = {tmp}/weights    (default without a home folder)' in r.stdout and 'rank-1' in r.stdout
        if os.getuid()==0: assert 'code 2' in r.stdout and f'{tmp}/settings.ini cannot be read: Permission denied' in r.stderr

# --- a process of its own: pipes, locales, signals

def process(*words, code='', env=(), **kwargs):
    start = ['-c', f'import sys, time; sys.argv[0]="ccreid"; from ccreid import cli, options; from ccreid.registry import Command\n{code}\nsys.exit(cli.main())'] if code else ['-m','ccreid']
    return subprocess.Popen([sys.executable, *start, *words], env={**os.environ, 'PYTHONPATH':str(REPO), **dict(env)}, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler), **kwargs) # a test run in the background ignores it

def test_a_pipe_that_closes_is_no_error_and_a_full_disk_is_one_line(tmp_path):
    run = process('settings', stdout=subprocess.PIPE); run.stdout.close()
    assert (run.stderr.read(), run.wait())==('', 141)
    if not os.path.exists('/dev/full'): return
    with open('/dev/full', 'w') as full: run = process('settings', stdout=full)
    err = run.stderr.read()
    assert run.wait()==2 and one_line(err).startswith('ccreid: the disk is full')

def test_any_name_is_printed_under_any_locale(tmp_path):
    run = process('settings', env={'LC_ALL':'C', 'PYTHONIOENCODING':'ascii', 'CCREID_DATA':os.fsdecode('/日本'.encode()+b'\xff')}, stdout=subprocess.PIPE)
    out, err = run.communicate()
    assert (run.returncode, err)==(0, '') and 'data = /\\u65e5\\u672c\\udcff' in out

@pytest.mark.parametrize('signals', [[signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_sigterm_says_what_ctrl_c_says_and_a_second_one_kills(signals):
    code = '''def wait(a):
    try: print('ready', flush=True); time.sleep(60)
    finally: print('cleaned', flush=True); time.sleep(SLEEP)
options.COMMANDS['settings'] = Command('wait', lambda parser: None, wait)'''.replace('SLEEP', str(20*(len(signals)-1)))
    run = process('settings', code=code, stdout=subprocess.PIPE)
    assert run.stdout.readline()=='ready\n'
    run.send_signal(signals[0])
    assert run.stdout.readline()=='cleaned\n'
    for s in signals[1:]: run.send_signal(s)
    _, err = run.communicate(timeout=15)
    assert (run.returncode, err)==((1, 'ccreid: interrupted\n') if len(signals)==1 else (-signal.SIGTERM, ''))

# --- no terminal

def test_a_log_of_training_is_a_line_an_epoch(ccreid, root, tmp_path, monkeypatch):
    words = ['train','--data','prcc','--root',root,'--method','cal','--epochs','2','--device','cpu','--workers','0','--hold-out','2','--every','1','--set','backbone=resnet_mini','--set','size=32x16',
             '--set','pretrained=false','--set','identities=2','--set','images=2']
    code, out, err = ccreid(*words, '--out', tmp_path/'a')
    assert code==0, err
    lines = [l for l in out.splitlines() if l.startswith('epoch ')]
    assert [l.split()[1] for l in lines]==['0','1'] and all(w in l for l in lines for w in ('train_loss','identity','clothes-changing R1','time'))
    assert not re.search('[\r\x1b█]', out+err)
    monkeypatch.setattr(progress, 'somebody_looks', lambda: True)              # a terminal: --quiet keeps the lines
    code, out, err = ccreid(*words, '--quiet', '--out', tmp_path/'b')
    assert code==0 and out.count('\nepoch ')==2 and not re.search('[\r\x1b█]', out+err)

# --- evaluation

def test_complex_features_are_refused_at_every_door(dataset):
    t = dataset.samples[dataset.samples.split!='train'].reset_index(drop=True)
    q, g = STANDARD.select(t)[0]
    f = torch.randn(len(t), 8, generator=torch.Generator().manual_seed(0))
    doors = [lambda f: evaluate(f, t, STANDARD), lambda f: retrieval_metrics(f[:len(q)], f[:len(g)], q, g, STANDARD), lambda f: metrics_from_distances(f[:1,:1].expand(len(q), len(g)), q, g, STANDARD),
             lambda f: next(compared(f, t, STANDARD)), lambda f: rerank(f[:3], f[3:]), lambda f: jaccard_distance(f), lambda f: ranked_list(f[:len(q)], f[:len(g)], q, g, STANDARD),
             lambda f: plot_tsne(f, t), lambda f: dataset.evaluate(lambda rows: f[:len(rows)], 'same-clothes')]
    for door in doors:
        for wrong in (torch.complex(f, f), f>0):
            with pytest.raises(ValueError, match='must be real numbers, not torch'): door(wrong)
    for wrong in (f.numpy()*1j, f.numpy().astype(object), f.numpy().astype(str)):
        with pytest.raises(ValueError, match='must be real numbers, not'): evaluate(wrong, t, STANDARD)

@given(st.lists(st.integers(-2**53, 2**53), min_size=1), st.sampled_from(['int64','int32','int16','uint8','float64','float16','>f4']))
@examples(max_examples=30)
def test_numbers_are_widened_without_change(values, dtype):
    with np.errstate(all='ignore'): values = np.array(values).astype(dtype)
    for x in (values, torch.as_tensor(values.astype(values.dtype.newbyteorder('=')))):
        got = real_numbers(x)
        assert got.is_floating_point() and np.array_equal(got.double().numpy(), values.astype('float64'))

def test_a_data_set_for_a_table_and_a_name_for_a_protocol(dataset):
    f = torch.randn(len(dataset.samples), 8, generator=torch.Generator().manual_seed(0))
    expected = evaluate(f, dataset.samples, dataset.protocols['clothes-changing']).mAP
    assert evaluate(f, dataset, 'clothes-changing').mAP==expected and evaluate(f.tolist(), dataset, dataset.protocols['clothes-changing']).mAP==pytest.approx(expected)
    assert evaluate(f, dataset.samples, 'clothes-changing').queries>0
    with pytest.raises(ValueError, match="unknown protocol 'cc': give a Protocol, or a name of same-clothes, clothes-changing"): evaluate(f, dataset, 'cc')
    for wrong in (None, 3, {}):
        with pytest.raises(ValueError, match='unknown protocol'): evaluate(f, dataset, wrong)
    with pytest.raises(ValueError, match='table must be a sample table or a ReIDDataset, not ndarray'): evaluate(f, np.zeros(3), STANDARD)

def test_no_figure_is_null_in_json_and_not_a_number_in_print(ccreid, root, dataset, tmp_path, monkeypatch):
    people = sorted(set(dataset.samples.identity[dataset.samples.split=='gallery']))
    alone = Protocol('alone', query_where={'identity': (people[0],)}, gallery_where={'identity': tuple(people[1:])})
    paths = [os.path.relpath(p, dataset.root) for p in dataset.samples.path]
    np.savez(tmp_path/'f.npz', paths=np.array(paths), features=np.ones((len(paths),4)))
    monkeypatch.setattr('ccreid.experiments.multi_shot', lambda dataset: dict(alone=alone))
    words = 'evaluate','--data','prcc','--root',root,'--features',tmp_path/'f.npz','--device','cpu'
    with pytest.warns(UserWarning, match='none of the'): code, out, _ = ccreid(*words, '--json')
    def never(name): raise AssertionError(name)
    assert code==0 and json.loads(out, parse_constant=never)['alone']['mAP'] is None
    with pytest.warns(UserWarning, match='none of the'): code, out, _ = ccreid(*words)
    assert code==0 and 'alone: rank-1 n/a  rank-5 n/a  mAP n/a  mINP n/a' in out and 'nan' not in out

def test_what_is_missing_in_a_ram_disk_is_missing_and_not_a_full_memory():
    for e in FileNotFoundError('no exported model at /dev/shm/none.safetensors'), PermissionError(13, 'Permission denied', '/dev/shm/a'):
        assert failures.kind_of(e) is None
    assert failures.kind_of(OSError(errno.ENOSPC, 'No space left on device', '/dev/shm/a')) is not None

def test_lists_of_features_that_are_no_numbers_are_not_drawn(dataset):
    t = dataset.samples[dataset.samples.split!='train'].reset_index(drop=True)
    q, g = STANDARD.select(t)[0]
    with pytest.raises(ValueError, match='nan or infinite'): ranked_list(torch.full((len(q),4), torch.nan), torch.ones(len(g),4), q, g, STANDARD)
    with pytest.raises(ValueError, match='no values'): evaluate(torch.ones(len(t),0), t, STANDARD)
