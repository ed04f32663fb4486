"Files that are whole or absent, locks between real processes, and what is said about every kind of wrong file"
import json,os,signal,subprocess,sys,threading,time
from pathlib import Path
import numpy as np
import pytest
from hypothesis import given,strategies as st
from ccreid.files import Unfit,clear_making,found_at,hold,plain,read_json,reading,shown,to_json,write_whole

ROOT = Path(__file__).parent.parent

def child(code, *args):
    "A process that has nothing but ccreid.files"
    return subprocess.Popen([sys.executable, '-c', f'import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}', *map(str, args)], text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

@given(st.text(st.characters(codec=None), max_size=20))
def test_shown_can_always_be_printed(name):
    seen = shown(name)
    seen.encode('utf-8')
    assert seen.isprintable() and (seen==name)==name.isprintable()

@pytest.mark.parametrize('raw', [b'\xd6\xd0.jpg', b'a\x1b[2Jb', b'a\rb', b'a\nb', 'a\u2028b'.encode()])
def test_names_of_files_are_shown_with_escapes(raw):
    seen = shown(os.fsdecode(raw))
    assert '\\' in seen and seen.isprintable() and seen.encode()

values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda o: st.lists(o) | st.dictionaries(st.text(), o), max_leaves=12)

def by_loop(v):
    if isinstance(v, dict): return {k: by_loop(o) for k,o in v.items()}
    if isinstance(v, list): return [by_loop(o) for o in v]
    return None if isinstance(v, float) and (v!=v or v in (float('inf'), float('-inf'))) else v

@given(values)
def test_json_is_strict_and_comes_back(value):
    def no(name): raise AssertionError(name)
    assert json.loads(to_json(value), parse_constant=no)==by_loop(value)

def test_numbers_of_numpy_in_every_place():
    assert plain({'a': np.float64('nan'), 2: (np.int8(3), np.bool_(True), np.array([[1, np.inf]])), 'p': Path('x')})=={'a': None, '2': [3, True, [[1., None]]], 'p': 'x'}
    with pytest.raises(TypeError): to_json({'a': object()})

def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path):
    path = tmp_path/'results.json'
    code = """
from ccreid.files import write_whole
n = 0
while True:
    write_whole(sys.argv[1], f'{n}:' + 'x'*300_000 + f':{n}', sync=False)
    if not n: print('begun', flush=True)
    n += 1"""
    for k in range(6):
        p = child(code, path)
        assert p.stdout.readline()=='begun\n', p.stderr.read()
        time.sleep(.01+.007*k)
        p.send_signal(signal.SIGKILL); p.wait()
        first,xs,last = path.read_text().split(':')
        assert first==last and len(xs)==300_000
    assert len(list(tmp_path.iterdir()))<=7
    clear_making(tmp_path)
    assert [o.name for o in tmp_path.iterdir()]==['results.json']

def test_what_users_own_is_not_taken_for_a_leftover_nor_what_is_being_written(tmp_path):
    dead,alive = 4_194_999,os.getpid()
    kept = ['.gitignore', '.env.1', '.making', f'x.making-{dead}', '.config.json', f'.config.json.{dead}', f'.best.pth.{dead}', f'.index.html.{dead}', '.tmp', '.tmp123',
            '.tmpnotes1', f'checkpoint.pth.{dead}', '.lock', '.making-000-of-003', f'.making-a-{alive}-abcdef', f'.making-b-{alive}-123456', f'.checkpoint.pth.{alive}']
    gone = [f'.making-a-{dead}-abcdef', f'.making-{dead}', f'.checkpoint.pth.{dead}', f'.metrics.json.{dead}', f'.cal.safetensors.{dead}', f'.report.html.{dead}', '.tmpAb12Cd']
    for n in kept+gone: (tmp_path/n).write_text('notes of mine')
    (tmp_path/'.tmpAb12Cd').write_bytes((20).to_bytes(8, 'little')+b'{"a":')
    (tmp_path/f'.making-folder-{dead}-abcdef').mkdir()
    assert sorted(clear_making(tmp_path))==sorted(gone)
    assert {o.name for o in tmp_path.iterdir()}=={*kept, f'.making-folder-{dead}-abcdef'} and clear_making(tmp_path/'none')==[]

def test_tidying_takes_nothing_from_a_writer(tmp_path):
    stop = threading.Event()
    def tidy():
        while not stop.is_set(): clear_making(tmp_path)
    (t := threading.Thread(target=tidy)).start()
    try:
        for i in range(150): write_whole(tmp_path/'h.json', f'{i}', sync=False)
    finally: stop.set(); t.join()
    assert (tmp_path/'h.json').read_text()=='149'

def test_a_failed_write_says_so_and_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path/'m.json'
    path.write_text('old')
    for name in ('replace','fsync'):
        with monkeypatch.context() as m:
            def full(*a): raise OSError(28, 'No space left on device')
            m.setattr(os, name, full)
            with pytest.raises(OSError, match='cannot write .*m.json: No space left on device') as e: write_whole(path, 'new')
            assert e.value.errno==28
        assert path.read_text()=='old' and [o.name for o in tmp_path.iterdir()]==['m.json']
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match='cannot write'): write_whole(tmp_path/'file'/'below.json', 'x')

def test_a_disk_that_takes_no_more_is_noticed(tmp_path):
    (path := tmp_path/'x').write_text('old')
    p = child("""
import resource
from ccreid.files import write_whole
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try: write_whole(sys.argv[1], b'x'*100_000)
except OSError as e: print(e.strerror)""", path)
    said = p.communicate()[0]
    assert said.startswith(f'cannot write {path}: File too large') and path.read_text()=='old' and len(list(tmp_path.iterdir()))==1

def test_long_and_strange_names(tmp_path):
    for name in 'n'*250, 'ü'*120, 'a\n.json':
        write_whole(tmp_path/name, name.encode())
        assert (tmp_path/name).read_bytes()==name.encode()
    assert len(list(tmp_path.iterdir()))==3

def test_names_that_are_not_utf8(tmp_path, any_name):
    write_whole(tmp_path/os.fsdecode(b'\xd6\xd0\n.json'), b'x')
    assert os.listdir(os.fsencode(tmp_path))==[b'\xd6\xd0\n.json']

def test_two_threads_that_write_one_file(tmp_path):
    def write(c):
        for _ in range(30): write_whole(tmp_path/'f', c*50_000, sync=False)
    threads = [threading.Thread(target=write, args=c) for c in 'ab']
    for t in threads: t.start()
    for t in threads: t.join()
    assert (tmp_path/'f').read_text() in ('a'*50_000, 'b'*50_000) and len(list(tmp_path.iterdir()))==1

def test_a_lock_is_free_when_its_holder_was_killed(tmp_path):
    code = """
from ccreid.files import hold
lock = hold(sys.argv[1]); print('held', flush=True); sys.stdin.read()"""
    p = child(code, tmp_path/'run'/'.lock')
    assert p.stdout.readline()=='held\n', p.stderr.read()
    with pytest.raises(BlockingIOError, match='another process is at work in .*run'): hold(tmp_path/'run'/'.lock')
    p.kill(); p.wait()
    with hold(tmp_path/'run'/'.lock') as lock: pass
    assert hold(tmp_path/'run'/'.lock').is_locked

def test_waiting_says_so_once_and_goes_on(tmp_path, capsys):
    first = hold(tmp_path/'.lock')
    threading.Timer(.3, first.release).start()
    with hold(tmp_path/'.lock', 'wait a little', wait=True): pass
    assert capsys.readouterr().out=='wait a little\n'

def test_locks_where_nothing_may_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match='cannot write to'): hold(tmp_path/'file'/'.lock')

KINDS = {'empty': (b'', 'is empty'), 'page': (b'\n<!doctype HTML><title>404', 'web page'), 'old page': (b'<html>', 'web page'),
         'pointer': (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'Git LFS'), 'junk': (b'\x00\x01\xff'*99, 'is damaged, or no list of things'),
         'deep': (b'['*200_000, 'is damaged'), 'digits': (b'['+b'9'*6000+b']', 'is damaged'), 'other': (b'{"a": 1}', 'it holds dict, not list')}

@pytest.mark.parametrize('kind', KINDS)
def test_every_wrong_file_is_one_line_with_its_name(tmp_path, kind):
    (path := tmp_path/'a.json').write_bytes(KINDS[kind][0])
    with pytest.raises(LookupError) as e: read_json(path, 'a list of things', 'make it again', LookupError, list)
    text = e.value.args[0]
    assert text.startswith(f'{path} ') and KINDS[kind][1] in text and '\n' not in text and e.value.__cause__ is None
    assert ('make it again' in text)==(kind in ('empty','junk','deep','digits'))   # advice to throw away only what is damaged

def test_what_is_no_file(tmp_path):
    assert found_at(tmp_path)=='is a folder, not a file' and found_at(tmp_path/'x')=='does not exist'
    os.mkfifo(tmp_path/'pipe')
    assert 'no ordinary file' in found_at(tmp_path/'pipe')
    with pytest.raises(ValueError, match='no ordinary file'): read_json(tmp_path/'pipe', 'a list')
    with pytest.raises(FileNotFoundError, match='no list at'): read_json(tmp_path/'x', 'a list')
    with pytest.raises(ValueError, match='cannot be read'): read_json(tmp_path/('n'*300), 'a list')
    with pytest.raises(ValueError, match='cannot be read|null'): read_json('a\0b', 'a list')

def test_an_error_that_names_the_file_is_not_wrapped_again(tmp_path):
    (path := tmp_path/'inner').write_bytes(b'x')
    (outer := tmp_path/'outer').write_bytes(b'y')
    with pytest.raises(ValueError) as e:
        with reading(outer, 'a checkpoint'):
            with reading(path, 'a manifest'): raise Unfit('is of version 9, this is 1: update ccreid')
    assert str(e.value)==f'{path} is of version 9, this is 1: update ccreid'
    with pytest.raises(MemoryError):
        with reading(outer, 'a checkpoint'): raise MemoryError

def test_a_file_that_comes_while_it_is_looked_for_was_not_there(tmp_path, monkeypatch):
    "Another process writes it between the look and the sentence"
    path,look = tmp_path/'r.json',os.stat
    def late(p, *a, **k):
        try: return look(p, *a, **k)
        except FileNotFoundError:
            if str(p)==str(path): path.write_text('{}')
            raise
    monkeypatch.setattr(os, 'stat', late)
    with pytest.raises(FileNotFoundError, match='no results file at'): read_json(path, 'a results file')
    assert read_json(path, 'a results file')=={}
