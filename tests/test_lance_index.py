"LanceDB: the same answers as exact search, filters, readers, refusals, and deletion looked for in the bytes of the folder"
import os, signal, subprocess, sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('lancedb'), pytest.importorskip('pyarrow')

from ccreid import cli
from ccreid.files import hold
from ccreid.search.exact import ExactIndex, open_index
from ccreid.search.lance_index import LanceIndex
from ccreid.search.vectors import Vectors, write_vectors
from test_search import WHERE, fitting, unit


def some(n=300, seed=0, model='aa', start=0):
    columns = dict(camera=[i%3 if i%7 else None for i in range(n)], time=[f'2024-05-{1+i%28:02}' for i in range(n)],
                   person=["o'hara" if i%2 else 'bob' for i in range(n)])
    return Vectors(unit(n, 8, seed), [f'p{start+i:04}' for i in range(n)], model, dict(name='net', weights='w', folder='/pictures'), columns)


def both(folder, n=300):
    exact,lance = ExactIndex(),LanceIndex(folder)
    for i in exact,lance: i.add(some(n))
    return exact,lance


def same(exact, lance, top=6, where=None):
    a,b = (i.search(unit(9, 8, 5), top, 'aa', where) for i in (exact,lance))
    return a.ids==b.ids and np.allclose(a.scores[:,:b.scores.shape[1]], b.scores, atol=1e-6)


def holding(folder, *marks):
    "Files of a folder in which one of these texts or vectors is found"
    marks = [m.encode() if isinstance(m, str) else m.tobytes() for m in marks]
    return [p for p in Path(folder).rglob('*') if p.is_file() and any(m in p.read_bytes() for m in marks)]


def test_it_is_an_index_like_the_other(tmp_path):
    exact,lance = both(tmp_path/'l')
    assert same(exact, lance) and same(exact, lance, 1000) and (len(lance),lance.dim,lance.model,lance.about)==(300,8,'aa',exact.about)
    for where in [*WHERE[:-2], "person=o'hara", ["person!=o'hara","camera>0"], 'person=nobody']: assert same(exact, lance, 7, where), where
    for i in exact,lance: i.remove(['p0003','p0100']); i.add(unit(1, 8, 7), ['x'], 'aa', dict(camera=[2], Place=['door']))
    assert same(exact, lance) and same(exact, lance, 5, 'Place=door') and same(exact, lance, 5, 'camera=2') and 'x' in lance and 'p0003' not in lance
    again = open_index(tmp_path/'l')
    assert type(again) is LanceIndex and same(exact, again) and sorted(again.ids)==sorted(exact.ids) and again.save(tmp_path/'l')==tmp_path/'l'
    with pytest.raises(ValueError, match='lies in its folder'): again.save(tmp_path/'m')
    assert lance.known(['x','p0004','p0008'])==exact.known(['x','p0004','p0008']) and lance.known(['x'])==[dict(camera=2, Place='door')]
    with pytest.raises(KeyError, match='no id'): lance.known(['x','p0003'])
    for i in exact,lance: i.remove(i.ids)
    assert len(lance)==0 and lance.search(unit(1, 8), model='aa').ids==[[]] and same(exact, lance)


@pytest.mark.parametrize('cells', [None, False, True])
def test_what_is_removed_is_in_no_file(tmp_path, cells):
    exact,lance = both(tmp_path/'l')
    kept = np.stack(lance._table.search().limit(None).to_arrow()['vector'].to_pylist()).astype(np.float32)
    if cells is not None: lance.build(4, codes=bool(cells))
    assert len(holding(tmp_path, kept[77]))==1+(cells is False) and holding(tmp_path, 'p0077')  # the file of data, and cells
    lance._table.delete("id = 'p0077'")
    assert holding(tmp_path, kept[77])                                                             # marked is not gone
    lance.add(Vectors(kept[77:78], ['p0077'], 'aa', lance.about))
    assert lance.remove('p0077')==1
    assert not holding(tmp_path, kept[77], 'p0077') and holding(tmp_path, kept[78]) and len(lance)==299
    assert bool(lance._table.list_indices())==(cells is not None)
    exact.remove('p0077')
    lance.probe = 69
    if not cells: assert same(exact, lance)                                                        # codes are rounded
    assert lance.search(kept[78], 1, 'aa').ids==[['p0078']]


def test_what_a_killed_process_left_goes_with_the_next(tmp_path, monkeypatch):
    import ccreid.search.lance_index as module
    _,lance = both(tmp_path/'l')
    row = unit(300, 8)[5]
    with monkeypatch.context() as m:
        calls = []
        m.setattr(module, '_tidy', lambda self: calls.append(1))
        lance.remove('p0005')
    assert len(calls)==2 and holding(tmp_path, 'p0005') and 'p0005' not in lance
    with pytest.raises(KeyError, match='no id'): lance.remove('p0005')
    assert not holding(tmp_path, 'p0005', row) and len(lance)==299


DIES = """
import os, signal, sys
import numpy as np, pyarrow as pa
import ccreid.search.lance_index as module
def dying(table):
    "What is written is cut in the middle: the process is gone"
    def pieces():
        yield from table.to_batches(max_chunksize=1000)
        os.kill(os.getpid(), signal.SIGKILL)
    return pa.RecordBatchReader.from_batches(table.schema, pieces())
def work(what, folder):
    index,made = module.LanceIndex(folder),module._arrow
    create = index._base.create_table
    if what=='add': module._arrow = lambda *a: dying(made(*a))
    else: index._base.create_table = lambda name, rows, **kw: create(name, dying(rows), **kw)
    if what=='add': index.add(np.load(sys.argv[1]), [f'k{i}' for i in range(20_000)], 'aa', dict(place=['door']*20_000))
    else: index.remove('p0001')
for line in sys.stdin: # a process for each line; this one never touches LanceDB, so that it may fork
    if not (pid := os.fork()):
        try: work(*line.rstrip().split(' ', 1))
        finally: os._exit(0)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


@pytest.fixture
def killed(tmp_path):
    "Runs a process that dies in the middle of adding 20,000 vectors, or of removing one"
    np.save(tmp_path/'rows.npy', unit(20_000, 8, 7))
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(Path(cli.__file__).parent.parent), *sys.path])}
    with subprocess.Popen([sys.executable,'-c',DIES,tmp_path/'rows.npy'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as nursery:
        def run(work, folder):
            print(work, folder, file=nursery.stdin, flush=True)
            assert os.WTERMSIG(int(nursery.stdout.readline()))==signal.SIGKILL
        yield run
        nursery.stdin.close()


@pytest.mark.skipif(os.name!='posix', reason='signals of POSIX')
def test_a_kill_in_the_middle_leaves_what_was_there_and_the_next_change_tidies_up(tmp_path, killed):
    killed('add', tmp_path/'l')                                                                    # of the first vectors
    row = unit(20_000, 8, 7)[5]
    assert holding(tmp_path/'l', row)
    with pytest.raises(ValueError, match='holds no index of LanceDB'): open_index(tmp_path/'l')
    exact,lance = both(tmp_path/'l')
    assert same(exact, lance) and not holding(tmp_path/'l', row)
    killed('add', tmp_path/'l')                                                                    # of later ones
    assert len(lance)==300 and same(exact, open_index(tmp_path/'l')) and holding(tmp_path/'l', row)
    killed('remove', tmp_path/'l')
    assert same(exact, open_index(tmp_path/'l')) and 'p0001' in lance
    for i in exact,lance: i.remove('p0002')
    assert same(exact, lance) and not holding(tmp_path/'l', row, 'p0002') and holding(tmp_path/'l', 'p0001')
    lance.add(some(20, 7, start=1000))
    assert len(lance)==319


def test_whose_vectors_they_are_may_be_said_later_and_is_kept(tmp_path):
    index = LanceIndex(tmp_path/'l')
    index.add(Vectors(unit(300, 8), [f'a{i}' for i in range(300)], about=dict(name='net'), columns=dict(camera=[1]*300)))
    index.build(4)
    index.add(unit(1, 8, 3), ['b'], 'aa', dict(person=['ada']))
    again = open_index(tmp_path/'l')
    assert (again.model,again.about,len(again),again.kinds)==('aa',dict(name='net'),301,dict(camera='number', person='text')) and again._table.list_indices()
    for model in 'bb','':
        with pytest.raises(ValueError, match='index holds those of aa'): again.add(unit(1, 8, 4), ['c'], model)


def test_equal_cosines_come_in_the_order_of_their_names(tmp_path):
    index = LanceIndex(tmp_path/'l')
    index.add(np.repeat(unit(1, 8), 20, 0), [f'p{i:02}' for i in reversed(range(20))])
    assert index.search(unit(1, 8), 4).ids==[['p00','p01','p02','p03']] and len(index.search(np.repeat(unit(1, 8), 3, 0), 99).ids[2])==20
    assert index.search(np.zeros((0,8))).ids==[]


def test_names_and_values_of_any_letters(tmp_path):
    odd = ["a'b",'a"b','a\\b',"a\\'b",'%','_','ü','日本','x; DROP','`q`',' lead','nul\0x','new\nline','NULL','true','1']
    exact,lance = ExactIndex(),LanceIndex(tmp_path/'l')
    for i in exact,lance: i.add(unit(16, 8), odd, 'aa', dict(Camera=[*range(16)], camera=odd, select=odd))
    for o in odd:
        where = [] if o[0]==' ' else [f'camera={o}', f'select={o}', 'Camera<99']
        assert lance.search(unit(1, 8), 20, 'aa', where).ids==exact.search(unit(1, 8), 20, 'aa', where).ids and lance.known(o)==exact.known(o)
        assert lance.remove(o)==1 and o not in lance
        exact.remove(o)


def test_many_read_while_one_writes(tmp_path):
    _,lance = both(tmp_path/'l', 50)
    readers = [open_index(tmp_path/'l') for _ in range(3)]
    lance.add(some(20, 3, start=100))
    assert [len(r) for r in readers]==[70]*3
    lance.remove('p0100')
    assert [len(r) for r in readers]==[69]*3 and all(r.search(unit(20, 8, 3)[0], 1, 'aa').ids!=[['p0100']] for r in readers)
    with hold(tmp_path/'l'/'.lock'):
        for f in (lambda: lance.add(some(1, 4, start=500)), lambda: lance.remove('p0001'), lambda: lance.build(2)):
            with pytest.raises(BlockingIOError, match='another process'): f()
    assert len(readers[0])==69


@pytest.mark.parametrize('f,error,said', [
    (lambda i: i.add(some(1, model='bb', start=900)), ValueError, 'vectors of two models'), (lambda i: i.add(some(1, model='', start=900)), ValueError, 'do not say'),
    (lambda i: i.add(unit(1, 9), ['x'], 'aa'), ValueError, 'length 9'), (lambda i: i.add(some(2)), ValueError, "'p0000' is in the index"),
    (lambda i: i.add(unit(1, 8), ['x'], 'aa', dict(camera=['a'])), ValueError, 'holds numbers in the index'), (lambda i: i.add(unit(1, 8)*0, ['x'], 'aa'), ValueError, 'nowhere'),
    (lambda i: i.add(unit(1, 8), ['x'], 'aa', dict(camera=[2**53+1])), ValueError, 'above 2\\*\\*53'), (lambda i: i.remove('none'), KeyError, 'no id'),
    (lambda i: i.add(unit(1, 8), ['a\udcff'], 'aa'), ValueError, 'UTF-8'), (lambda i: i.add(unit(1, 8), ['x'], 'aa', dict(person=['\udcff'])), ValueError, 'UTF-8'),
    (lambda i: i.search(unit(1, 8), 3, 'aa', 'person=\udcff'), ValueError, 'UTF-8'), (lambda i: 'a\udcff' in i, ValueError, 'UTF-8'),
    (lambda i: i.search(unit(1, 8), model='bb'), ValueError, 'vectors of two models'), (lambda i: i.search(unit(1, 8), 0, 'aa'), ValueError, 'whole number'),
    (lambda i: i.search(unit(1, 8), 3, 'aa', 'colour=red'), ValueError, 'no column colour'), (lambda i: i.search(unit(1, 8), 3, 'aa', 'camera=a'), ValueError, 'holds numbers')])
def test_what_does_not_belong_is_refused(shared, f, error, said):
    with pytest.raises(error, match=said): f(shared)
    assert len(shared)==50 and 'x' not in shared


@pytest.fixture(scope='module')
def shared(tmp_path_factory): return both(tmp_path_factory.mktemp('l')/'l', 50)[1]


def test_folders_that_are_none_and_a_missing_package(tmp_path, monkeypatch):
    import lancedb, pyarrow as pa, sys
    (tmp_path/'empty'/'vectors.lance').mkdir(parents=True)
    with pytest.raises(ValueError, match='holds no vectors yet'): LanceIndex(tmp_path/'empty').build()
    with pytest.raises(ValueError, match='UTF-8'): LanceIndex(tmp_path/'empty').add(unit(1, 8), ['a\udcff'])
    with pytest.raises(ValueError, match='empty holds no index'): open_index(tmp_path/'empty')
    lancedb.connect(str(tmp_path/'other')).create_table('vectors', pa.table(dict(id=['a'])))
    with pytest.raises(ValueError, match='no index of ccreid'): open_index(tmp_path/'other')
    monkeypatch.setitem(sys.modules, 'lancedb', None)
    with pytest.raises(ImportError, match=r'pip install "ccreid\[search\]"'): LanceIndex(tmp_path/'x')


def test_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_vectors('v.npz', some(30)); write_vectors('w.npz', some(30, model='bb', start=50))
    assert cli.main('index v.npz --out l --engine lancedb'.split())==0
    assert cli.main('search v.npz --index l --top 1 --where camera=1'.split())==0
    assert 'p0001' in capsys.readouterr().out
    for line,said in (('index v.npz --out l --engine lancedb', 'l is there'), ('index v.npz w.npz --out m --engine lancedb', 'two models'),
                      ('index v.npz --out m --engine lancedb --probe 3', '--probe is for --engine faiss')):
        assert cli.main(line.split())==2 and said in capsys.readouterr().err
    assert sorted(os.listdir())==['l','v.npz','w.npz']
    os.makedirs('s.making/vectors.lance')                                                          # of one that was killed
    assert cli.main('index v.npz --out s/ --engine lancedb'.split())==0 and len(open_index('s'))==30
    assert sorted(os.listdir())==['l','s','v.npz','w.npz']
