"Qdrant: the real client against a stand-in for the server; the same answers as exact search, filters, refusals, keys, removal"
import os, signal, socket, sys, warnings

import numpy as np
import pytest

pytest.importorskip('qdrant_client')

from ccreid import cli
from ccreid.search import qdrant_index as module
from ccreid.search.exact import ExactIndex, open_index
from ccreid.search.gallery import open_gallery
from ccreid.search.qdrant_index import KEY, QdrantIndex, open_qdrant, point_of
from ccreid.search.vectors import Vectors, write_vectors
from qdrant_stand_in import serving
from test_search import WHERE, unit


@pytest.fixture(autouse=True)
def no_key(monkeypatch): monkeypatch.delenv(KEY, raising=False)


@pytest.fixture
def server():
    with serving() as s: yield s


def some(n=300, seed=0, model='aa', start=0):
    columns = dict(camera=[i%3 if i%7 else None for i in range(n)], time=[f'2024-05-{1+i%28:02}' for i in range(n)],
                   person=["o'hara" if i%2 else 'bob' for i in range(n)])
    return Vectors(unit(n, 8, seed), [f'p{start+i:04}' for i in range(n)], model, dict(name='net', weights='w', folder='/pictures'), columns)


def both(url, n=300):
    exact,qdrant = ExactIndex(),QdrantIndex(f'{url}/people')
    for i in exact,qdrant: i.add(some(n))
    return exact,qdrant


def same(exact, qdrant, top=6, where=None):
    a,b = (i.search(unit(9, 8, 5), top, 'aa', where) for i in (exact,qdrant))
    return a.ids==b.ids and np.allclose(a.scores[:,:b.scores.shape[1]], b.scores, atol=1e-6)


def test_it_is_an_index_like_the_other(server):
    url,held = server
    exact,qdrant = both(url)
    assert same(exact, qdrant) and same(exact, qdrant, 1000) and (len(qdrant),qdrant.dim,qdrant.model,qdrant.about)==(300,8,'aa',exact.about)
    for where in [*WHERE, "person=o'hara", ["person!=o'hara","camera>0"], 'camera<=1', 'camera>=2', 'time!=2024-05-03', 'time>2025']:
        assert same(exact, qdrant, 7, where), where
    for i in exact,qdrant: i.remove(['p0003','p0100']); i.add(unit(1, 8, 7), ['x'], 'aa', dict(camera=[2.5], Place=['door']))
    assert same(exact, qdrant) and same(exact, qdrant, 5, 'Place=door') and same(exact, qdrant, 5, 'camera=2.5') and 'x' in qdrant and 'p0003' not in qdrant
    again = open_index(f'{url}/people/')
    assert type(again) is QdrantIndex and same(exact, again) and sorted(again.ids)==sorted(exact.ids) and again.save(f'{url}/people')==f'{url}/people'
    with pytest.raises(ValueError, match='lies on its server'): again.save('people.index')
    with pytest.raises(ValueError, match='no gallery'): open_gallery(f'{url}/people')
    for ids in (['x','p0004','p0008'], ['p0007']): assert qdrant.known(ids)==exact.known(ids)
    with pytest.raises(KeyError, match='no id'): qdrant.known(['x','p0003'])
    assert repr(again)=='QdrantIndex: 299 vectors of length 8 of net aa' and exact.kind!=again.kind
    for i in exact,qdrant: assert i.remove(i.ids)==299
    assert len(qdrant)==0 and qdrant.search(unit(1, 8), model='aa').ids==[[]] and same(exact, qdrant)


def test_equal_cosines_come_in_the_order_of_their_names(server):
    index = QdrantIndex(f'{server[0]}/people')
    row = unit(1, 8)
    index.add(np.repeat(row, 20, 0), [f'p{i:02}' for i in reversed(range(20))])
    assert index.search(row, 4).ids==[['p00','p01','p02','p03']]
    assert len(index.search(np.repeat(row, 3, 0), 99).ids[2])==20 and index.search(np.zeros((0,8))).ids==[]


def test_many_vectors_in_pieces_and_many_pages_of_ids(server):
    url,held = server
    index = QdrantIndex(f'{url}/people', exact=True)
    index.add(unit(2500, 4), [f'p{i:04}' for i in range(2500)])
    assert held.upserts==3 and len(index)==2500 and sorted(index.ids)==[f'p{i:04}' for i in range(2500)]
    index.search(unit(1, 4))
    asked = held.log[-1][2]['searches'][0]
    assert asked['params']['exact'] is True and asked['limit']==26 and asked['with_payload']==['id']
    assert index.remove([f'p{i:04}' for i in range(2400)])==2400 and len(index)==100
    queries,calls = unit(45, 4, 1),len(held.log)
    found = index.search(queries, 10_000)                                                          # 20 queries a call
    assert [len(b['searches']) for _,p,b,_ in held.log[calls:] if 'query' in p]==[20,20,5] and found.scores.shape==(45,100)
    wanted = queries.astype(float)@unit(2500, 4)[2400:].astype(float).T
    assert found.ids==[[f'p{2400+n:04}' for n in np.argsort(-row)] for row in wanted]


def test_points_are_uuids_of_names_and_payloads_hold_what_is_known(server):
    url,held = server
    both(url, 8)
    points = held.collections['people']['points']
    assert sorted(points)==sorted(point_of(f'p{i:04}') for i in range(8))
    assert points[point_of('p0001')][1]==dict(id='p0001', camera=1, time='2024-05-02', person="o'hara")
    assert 'camera' not in points[point_of('p0007')][1]                                            # nothing is said about it
    assert held.collections['people']['metadata']==dict(ccreid=dict(model='aa', about=dict(name='net', weights='w', folder='/pictures')), ccreid_whole=True)
    made = [p.split('?')[0] for m,p,*_ in held.log if m=='PUT']
    assert made==['/collections/people',*['/collections/people/index']*3,'/collections/people/points']


def test_what_is_removed_is_gone_from_the_server_or_said(server):
    url,held = server
    _,index = both(url, 20)
    assert index.remove('p0007')==1 and point_of('p0007') not in held.collections['people']['points'] and len(index)==19
    assert index.remove(['p0001','p0002','p0001'])==2 and index.remove([])==0
    before = dict(held.collections['people']['points'])
    with pytest.raises(KeyError, match='no id'): index.remove(['p0005','p0007'])
    assert held.collections['people']['points'].keys()==before.keys()
    held.deletes = False
    with pytest.raises(OSError, match="still holds 'p0005'"): index.remove('p0005')


@pytest.mark.parametrize('f,error,said', [
    (lambda i: i.add(some(1, model='bb', start=900)), ValueError, 'vectors of two models'), (lambda i: i.add(some(1, model='', start=900)), ValueError, 'do not say'),
    (lambda i: i.add(unit(1, 9), ['x'], 'aa'), ValueError, 'length 9, and those in the index 8'), (lambda i: i.add(some(2)), ValueError, "'p0000' is in the index"),
    (lambda i: i.add(unit(1, 8), ['x'], 'aa', dict(camera=['a'])), ValueError, 'holds numbers in the index'), (lambda i: i.add(unit(1, 8)*0, ['x'], 'aa'), ValueError, 'nowhere'),
    (lambda i: i.add(unit(1, 8), ['x'], 'aa', dict(camera=[2**53+1])), ValueError, 'above 2\\*\\*53'), (lambda i: i.remove('none'), KeyError, 'no id'),
    (lambda i: i.add(unit(1, 8), ['a\udcff'], 'aa'), ValueError, 'UTF-8'), (lambda i: i.add(unit(1, 8), ['x'], 'aa', dict(person=['\udcff'])), ValueError, 'UTF-8'),
    (lambda i: i.search(unit(1, 8), model='bb'), ValueError, 'vectors of two models'), (lambda i: i.search(unit(1, 8), 0, 'aa'), ValueError, 'whole number'),
    (lambda i: i.search(unit(1, 7), 3, 'aa'), ValueError, 'length 7'),
    (lambda i: i.search(unit(1, 8), 3, 'aa', 'colour=red'), ValueError, 'no column colour'), (lambda i: i.search(unit(1, 8), 3, 'aa', 'camera=a'), ValueError, 'holds numbers')])
def test_what_does_not_belong_is_refused(server, f, error, said):
    _,index = both(server[0], 50)
    before = len(server[1].collections['people']['points'])
    with pytest.raises(error, match=said): f(index)
    assert len(server[1].collections['people']['points'])==before==50 and len(index)==50


def test_another_program_changed_the_collection(server):
    url,held = server
    _,one = both(url, 20)
    other = open_qdrant(f'{url}/people')
    other.add(unit(1, 8, 7), ['x'], 'aa', dict(Place=['door']))
    assert one.search(unit(1, 8, 7), 1, 'aa', 'Place=door').ids==[['x']]
    held.collections.clear()
    assert one.search(unit(1, 8), model='aa').ids==[[]]
    other = QdrantIndex(f'{url}/people')
    other.add(some(3, model='bb'))
    with pytest.raises(ValueError, match='two models'): one.search(unit(1, 8), model='aa')


def test_a_first_model_that_is_named_later_is_kept(server):
    index = QdrantIndex(f'{server[0]}/people')
    index.add(unit(2, 8), ['a','b'])
    assert open_qdrant(f'{server[0]}/people').model==''
    index.add(unit(1, 8, 3), ['c'], 'aa')
    with pytest.raises(ValueError, match='two models'): open_qdrant(f'{server[0]}/people').add(unit(1, 8, 4), ['d'], 'bb')


def test_a_piece_that_fails_takes_the_others_back():
    with serving(fail_after=2) as (url,held):
        index = QdrantIndex(f'{url}/people')
        with pytest.raises(ValueError, match='error 507: Not enough space'): index.add(unit(2500, 4), [f'p{i}' for i in range(2500)])
        assert held.upserts==3 and not held.collections and len(index)==0 and index.dim is None
        held.fail_after = 4
        index.add(unit(10, 4), [f'q{i}' for i in range(10)])
        with pytest.raises(ValueError, match='error 507'): index.add(unit(2500, 4), [f'p{i}' for i in range(2500)])
        assert len(index)==10 and sorted(index.ids)==[f'q{i}' for i in range(10)]


def test_a_collection_that_was_never_finished_is_refused(server, monkeypatch):
    url,held = server
    index = QdrantIndex(f'{url}/people')
    monkeypatch.setattr(module, '_take_back', lambda *_: None)                                     # as if the process were killed
    monkeypatch.setattr(held, 'update', lambda *_: 1/0)
    with pytest.raises(ValueError, match='error 500'): index.add(some(20))
    assert len(held.collections['people']['points'])==20
    for f in (lambda: open_index(f'{url}/people'), lambda: QdrantIndex(f'{url}/people'), lambda: index.search(unit(1, 8), model='aa')):
        with pytest.raises(ValueError, match='people is not whole'): f()


def killed(url, vectors, pieces):
    "A process that dies while it adds vectors, after so many pieces of a thousand"
    if not (pid := os.fork()):
        try:
            index,sent = QdrantIndex(url),[]
            send = index._client.upsert
            def dying(*args, **kw):
                if len(sent)==pieces: os.kill(os.getpid(), signal.SIGKILL)
                sent.append(send(*args, **kw))
            index._client.upsert = dying
            index.add(vectors)
        finally: os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1])==signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
def test_a_kill_while_adding_leaves_a_clear_line_or_an_index_that_can_be_used(server, tmp_path, monkeypatch, capsys):
    url,held = server
    people,vectors = f'{url}/people',some(2500)
    killed(people, vectors, 2)                                                                     # the first of a collection
    assert len(held.collections['people']['points'])==2000
    for f in (lambda: open_index(people), lambda: QdrantIndex(people)):
        with pytest.raises(ValueError, match='people is not whole: .*delete the collection and make it again$'): f()
    monkeypatch.chdir(tmp_path)
    write_vectors('v.npz', some(3))
    assert cli.main(f'index v.npz --out {people} --engine qdrant'.split())==2 and 'is not whole' in capsys.readouterr().err
    held.collections.clear()
    exact,index = both(url, 300)
    later = some(2500, 3, start=1000)
    killed(people, later, 1)                                                                       # later ones
    index = open_index(people)
    assert len(index)==1300 and index.search(unit(300, 8)[:3], 1, 'aa').ids==[['p0000'],['p0001'],['p0002']]
    with pytest.raises(ValueError, match="'p1000' is in the index"): index.add(later)
    assert index.remove({*later.ids} & {*index.ids})==1000
    for i in index,exact: i.add(later)
    assert same(exact, index) and len(index)==2800


def test_collections_of_others_and_old_servers(server):
    url,held = server
    with pytest.raises(FileNotFoundError, match='people: the server has no such collection'): open_index(f'{url}/people')
    _,index = both(url, 3)
    for metadata in (None, {}, dict(ccreid=3, ccreid_whole=True), dict(ccreid=dict(model=3, about={}), ccreid_whole=True)):
        held.collections['other'] = {**held.collections['people'], 'metadata': metadata}
        with pytest.raises(ValueError, match='other is a collection of Qdrant, but no index of ccreid'): open_index(f'{url}/other')
    held.collections['other'] = {**held.collections['people'], 'vectors': dict(face=dict(size=8, distance='Cosine'))}
    with pytest.raises(ValueError, match='no index of ccreid'): open_index(f'{url}/other')
    with serving(keeps_metadata=False) as (old,kept):
        with pytest.raises(ValueError, match='Qdrant 1.16 or newer'): QdrantIndex(f'{old}/people').add(some(3))
        assert not kept.collections


def test_columns_with_too_many_texts_cannot_be_ordered(server, monkeypatch):
    _,index = both(server[0], 60)
    monkeypatch.setattr(module, 'MOST', 28)
    assert index.search(unit(1, 8), 3, 'aa', 'time>2024-05-20').ids[0]
    monkeypatch.setattr(module, 'MOST', 27)
    with pytest.raises(ValueError, match='column time holds more than 27 different texts'): index.search(unit(1, 8), 3, 'aa', 'time>2024-05-20')
    assert index.search(unit(1, 8), 3, 'aa', 'time=2024-05-20').ids[0]


def test_a_key_comes_from_the_environment_alone(monkeypatch):
    with serving(key='top-secret', prefix='/qdrant') as (url,held):
        for key,said in (None,f'wants a key that allows this: set {KEY}'),('wrong',f'it refuses that in {KEY}'):
            if key: monkeypatch.setenv(KEY, key)
            with pytest.raises(PermissionError, match=said) as e: open_index(f'{url}/people')
            assert 'top-secret' not in str(e.value) and str(key) not in str(e.value)
        monkeypatch.setenv(KEY, 'top-secret')
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            exact,qdrant = both(url, 9)
        assert same(exact, qdrant) and held.log[-1][3]=='top-secret' and all('top-secret' not in f'{p}{b}' for _,p,b,_ in held.log)
        assert 'top-secret' not in repr(qdrant)
    with pytest.warns(UserWarning, match='insecure'): module._connected('http://example.org:6333')  # nothing is sent yet
    for url in 'http://me:top-secret@localhost/people', 'http://me:top-secret@localhost:99999/people', 'https://localhost/people?key=top-secret':
        with pytest.raises(ValueError, match=KEY) as e: QdrantIndex(url)
        assert 'top-secret' not in str(e.value)


def test_where_no_server_is_or_another(monkeypatch):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        with pytest.raises(ConnectionError, match='people: no server answers'): open_index(f'http://127.0.0.1:{s.getsockname()[1]}/people')
    with serving(prefix='/elsewhere') as (url,_):
        with pytest.raises(FileNotFoundError, match='no such collection, or no Qdrant server'): QdrantIndex(url.replace('elsewhere', 'people'))
    with serving() as (url,held):
        monkeypatch.setattr(held, 'answer', lambda *_: ['something else'])
        with pytest.raises(ValueError, match='no Qdrant server answers'): QdrantIndex(f'{url}/people')
    for path in 'people', ':memory:', '/tmp/people', 'file:///tmp/people', 's3://bucket/people':
        with pytest.raises(ValueError, match='unpickles'): QdrantIndex(path)
    monkeypatch.setitem(sys.modules, 'qdrant_client', None)
    with pytest.raises(ImportError, match=r'pip install "ccreid\[search\]"'): QdrantIndex('http://localhost/people')


def test_the_commands(server, tmp_path, monkeypatch, capsys):
    url,held = server
    monkeypatch.chdir(tmp_path)
    write_vectors('v.npz', some(30)); write_vectors('w.npz', some(30, model='bb', start=50)); write_vectors('u.npz', some(5, 3, start=80))
    def run(line): return cli.main(line.format(url).split()),*capsys.readouterr()
    code,out,_ = run('index v.npz u.npz --out {}/l --engine qdrant')
    assert code==0 and out==f'QdrantIndex: 35 vectors of length 8 of net aa in {url}/l\n'
    code,out,_ = run('search v.npz --index {}/l --top 1 --where camera=1 --where time>=2024-05-02 --json')
    assert code==0 and '"id": "p0001"' in out and '"time": "2024-05-02"' in out
    log = len(held.log)
    for line,said in (('index v.npz --out {}/l --engine qdrant', 'l is there'), ('index v.npz w.npz --out {}/m --engine qdrant', 'two models'),
                      ('index v.npz --out {}/m --engine qdrant --probe 3', '--probe is for --engine faiss'), ('index v.npz --out m --engine qdrant', 'unpickles'),
                      ('index v.npz --out :memory: --engine qdrant', 'unpickles'), ('index v.npz --out {}/m', 'for --engine qdrant'),
                      ('index v.npz --out {}/m --engine lancedb', 'for --engine qdrant'), ('index v.npz --out {} --engine qdrant', 'names no collection'),
                      ('search v.npz --index {}/m', 'm: the server has no such collection'), ('search w.npz --index {}/l', 'two models'),
                      ('search v.npz --index http://127.0.0.1:1/l', 'no server answers')):
        code,out,err = run(line)
        assert code==2 and out=='' and said in err and err.startswith('ccreid: ') and len(err.splitlines())==1, err
    assert sorted(os.listdir())==['u.npz','v.npz','w.npz'] and [*held.collections]==['l'] and len(held.log)>log
