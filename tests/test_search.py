"Files of vectors, the job that can be killed, and search: against brute force, with ties, removal, round trips, refusals"
import json, os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from ccreid.search.exact import ExactIndex, Found, Index, nearest, open_index
from ccreid.search.job import embed_to_file, parts_of
from ccreid.search.vectors import Vectors, read_vectors, write_vectors
from ccreid.tensor_files import safetensors_bytes

REPO = Path(__file__).resolve().parent.parent


def unit(n, d, seed=0):
    x = np.random.default_rng(seed).normal(size=(n,d))
    return (x/np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def brute(queries, rows, k):
    "All cosines in float64, sorted; equal ones in the order of the rows"
    s = (queries[:,None].astype(np.float64)*rows[None].astype(np.float64)).sum(-1)
    at = np.argsort(-s, axis=1, kind='stable')[:,:k]
    return at, np.take_along_axis(s, at, 1)

# --- exact search

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 60), st.integers(1, 12), st.integers(4, 4000), st.integers(0, 9), st.booleans())
def test_the_answer_is_that_of_brute_force_whatever_the_chunk(n, q, k, d, memory, seed, copies):
    rows = unit(n, d, seed)
    if copies: rows = rows[np.random.default_rng(seed).integers(0, min(n, 4), n)]
    queries = np.concatenate([unit(q, d, seed+1), rows[:1]])
    at,s = nearest(queries, rows, k := min(k, n), memory)
    wanted,scores = brute(queries, rows, k)
    np.testing.assert_array_equal(at, wanted)
    np.testing.assert_allclose(s, scores, atol=1e-7)


def test_differences_that_float32_does_not_see_are_seen():
    rows = np.tile(unit(1, 64), (50,1))
    rows[31] = np.nextafter(rows[31], np.float32(2)*np.sign(rows[31]))               # a hair longer in every number
    assert nearest(rows[:1], rows, 3, 300)[0].tolist()==[[31,0,1]]


def test_large_galleries_in_many_chunks_and_many_queries():
    rows,queries = unit(3000, 24),unit(600, 24, 1)                                     # more queries than a block
    rows[100:400] = rows[7]
    queries[5] = rows[7]
    at,_ = nearest(queries, rows, 50, 2**16)
    np.testing.assert_array_equal(at, brute(queries, rows, 50)[0])
    assert at[5].tolist()==[7, *range(100, 149)]


def test_memory_is_bounded_by_what_is_said(monkeypatch):
    import ccreid.search.exact as exact
    seen = []
    class Watched:
        def __init__(self, t): self.t = t
        def __matmul__(self, other): seen.append(self.t.shape[0]*other.shape[1]*4); return self.t@other
        def __len__(self): return len(self.t)
    real = torch.from_numpy
    calls = []
    def from_numpy(a):
        calls.append(a.shape)
        return Watched(real(a)) if len(calls)==1 else real(a)
    monkeypatch.setattr(exact.torch, 'from_numpy', from_numpy)
    exact._proposed(unit(10, 8), unit(1000, 8), 20, 2**12//(4*10))
    assert len(seen)>9 and max(seen)<=2**12


def filled(n=40, d=8, engine=ExactIndex, **kw):
    index = engine(**kw)
    index.add(Vectors(unit(n, d), [f'p{i}' for i in range(n)], 'aa', dict(name='net', folder='/pictures')))
    return index


def test_adding_in_pieces_and_removing_is_as_if_it_had_never_been_there():
    rows,index = unit(40, 8),ExactIndex('aa')
    for k in range(0, 40, 7): index.add(rows[k:k+7], [f'p{i}' for i in range(k, min(k+7, 40))], model='aa')
    assert index.remove(['p3','p17','p3'])==2 and index.remove('p39')==1
    keep = [i for i in range(40) if i not in (3,17,39)]
    found = index.search(rows, 5, 'aa')
    assert found.ids==[[f'p{keep[i]}' for i in row] for row in brute(rows, rows[keep], 5)[0]]
    index.add(rows[3:4], ['p3'], model='aa')
    assert index.search(rows[3], 1, 'aa').ids==[['p3']] and index.ids[-1]=='p3' and len(index)==38


def test_removed_vectors_are_not_in_the_file(tmp_path):
    index = filled()
    mark = index._rows()[11].tobytes()
    assert mark in index.save(tmp_path/'before').read_bytes()
    index.remove('p11')
    after = index.save(tmp_path/'after').read_bytes()
    assert mark not in after and b'"p11"' not in after


def test_lengths_do_not_count_and_scores_are_cosines():
    index = ExactIndex()
    index.add([[3.,0.],[0.,1e-3],[-7.,0.]], ['a','b','c'])
    found = index.search([1e6,0.], 9)
    assert found.ids==[['a','b','c']] and found.scores.tolist()==[[1.,0.,-1.]]
    assert found.as_dict()[0][2]==dict(rank=3, id='c', score=-1.0)


def test_nothing_in_nothing_found():
    assert ExactIndex().search(unit(3, 4)).ids==[[],[],[]]
    index = filled(2)
    index.remove(['p0','p1'])
    assert len(index)==0 and index.search(unit(1, 8), model='aa').ids==[[]]


@pytest.mark.parametrize('what,said', [
    (dict(vectors=unit(1, 8), ids=['x']), 'do not say which model'), (dict(vectors=unit(1, 8), ids=['x'], model='bb'), 'vectors are of model bb, and the index holds those of aa'),
    (dict(vectors=Vectors(unit(1, 8), ['x'], 'bb')), 'model bb'), (dict(vectors=unit(1, 9), ids=['x'], model='aa'), 'have length 9, and those in the index 8'),
    (dict(vectors=unit(2, 8), ids=['x'], model='aa'), '2 vectors, and 1 ids'), (dict(vectors=unit(1, 8), model='aa'), '1 vectors, and 0 ids'),
    (dict(vectors=unit(2, 8), ids=['x','x'], model='aa'), 'twice'), (dict(vectors=unit(1, 8), ids=['p3'], model='aa'), "'p3' is in the index"),
    (dict(vectors=unit(1, 9), ids=['x'], model='bb'), 'vectors are of model bb'), (dict(vectors=unit(1, 8)*0, ids=['x'], model='aa'), 'points nowhere'), (dict(vectors=unit(1, 8)*np.nan, ids=['x'], model='aa'), 'not finite')])
def test_what_does_not_belong_is_refused_and_nothing_changes(what, said):
    index = filled()
    with pytest.raises(ValueError, match=said): index.add(**what)
    assert len(index)==40 and index.search(unit(40, 8)[:1], 1, 'aa').ids==[['p0']] and 'x' not in index


def test_queries_of_another_model_are_refused():
    index = filled()
    for q,kw in ((Vectors(unit(1, 8), ['q'], 'bb'), {}), (unit(1, 8), {}), (unit(1, 8), dict(model='bb')), (unit(1, 7), dict(model='aa'))):
        with pytest.raises(ValueError): index.search(q, **kw)
    for top in (0, -1, 1.5, None):
        with pytest.raises(ValueError, match='whole number'): index.search(unit(1, 8), top, 'aa')
    assert index.search(Vectors(unit(1, 8), ['q'], 'aa'), 2).ids==index.search(unit(1, 8), 2, 'aa').ids


@pytest.mark.parametrize('kind', ['float64','float16','bfloat16','int8','list','rows'])
def test_numbers_of_every_kind_are_vectors(kind):
    whole = np.random.default_rng(0).integers(-8, 9, (30,6))+.0                        # which all kinds can hold
    whole[:,0] += 20
    def of(a):
        if kind=='list': return a.tolist()
        if kind=='rows': return [torch.tensor(r) for r in a]
        return a.astype(kind) if hasattr(np, kind) else torch.tensor(a, requires_grad=True).to(getattr(torch, kind))
    index,plain = ExactIndex(),ExactIndex()
    index.add(of(whole), [str(i) for i in range(30)]); plain.add(np.float32(whole), [str(i) for i in range(30)])
    a,b = index.search(of(whole[3:5]), 9),plain.search(whole[3:5], 9)
    assert a.ids==b.ids and (a.scores==b.scores).all() and a.ids[0][0]=='3'


def test_an_empty_list_is_no_vectors():
    for nothing in [], (), np.zeros((0,8)), torch.zeros(0, 8), np.zeros(0):
        index = filled()
        index.add(nothing, [], 'aa')
        assert len(index)==40 and index.search(nothing, model='aa').ids==[] and len(Vectors(nothing, []))==0


@pytest.mark.parametrize('vectors,said', [([[1.,2.],[3.]], 'not all of one length'), ([[1e300,1.]], 'not finite in float32'), ([[True,False]], 'not bool'),
    (None, 'not object'), ('abc', 'not <U3'), ([[1j,2.]], 'not complex128'), (np.zeros((1,2,3)), r'not \[1, 2, 3\]'), (3., r'not \[\]'), ([[np.inf,1.]], 'not finite')])
@pytest.mark.filterwarnings('error')
def test_what_are_no_vectors(vectors, said):
    with pytest.raises(ValueError, match=said): ExactIndex().search(vectors)
    with pytest.raises(ValueError, match=said): Vectors(vectors, ['a'])


def test_what_is_given_beside_vectors_counts_or_is_refused():
    some = Vectors(unit(2, 8, 1), ['x','y'], 'aa', dict(folder='/other'), dict(camera=[1,2]))
    index = filled()
    index.add(some, ['a','b'], columns=dict(camera=[7,8]))
    assert index.ids[-2:]==['a','b'] and index.known(['a','b'])==[dict(camera=7),dict(camera=8)]
    index.add(Vectors(unit(1, 8, 2), ['z']), model='aa')                               # nobody had said whose it is
    for f in (lambda: index.add(Vectors(unit(1, 8, 3), ['w'], 'aa'), model='bb'), lambda: index.search(some, model='bb')):
        with pytest.raises(ValueError, match='are of model aa, not bb'): f()
    with pytest.raises(ValueError, match='2 vectors, and 1 ids'): index.add(some, ['c'])
    with pytest.raises(ValueError, match='a list of texts'): index.add(unit(2, 8, 5), 'cd', 'aa')
    with pytest.raises(ValueError, match='the fingerprint is a text, not 3'): Vectors([[1.]], ['a'], 3)
    assert len(index)==43 and Vectors([[1.]], ['a'], 'm', None).about=={}


def test_ids_in_whatever_holds_them():
    index = known()[0]
    assert index.known('p11')==index.known(i for i in ['p11']) ==index.known(np.array(['p11'])) and index.known('p11')[0]['person']=='ada'
    assert index.remove(i for i in ['p1','p2'])==2 and index.remove({'p3','p4'})==2 and index.remove('p11')==1 and index.remove([])==0
    assert len(index)==35 and not {'p1','p2','p3','p4','p11'} & {*index.ids}


def test_how_many_is_a_whole_number_of_any_kind():
    index = filled()
    for top in 3, np.int64(3), torch.tensor(3): assert len(index.search(unit(1, 8), top, 'aa').ids[0])==3
    for top in True, 0, -1, 2.5, '3', None, [3]:
        with pytest.raises(ValueError, match='top: .*whole number'): index.search(unit(1, 8), top, 'aa')


def test_the_function_itself_takes_any_rows_and_says_what_it_cannot():
    rows,queries = unit(9, 4),unit(2, 4, 1)
    wanted = nearest(queries, rows, 3)
    for q,r in ((queries.astype(float), rows), (queries, rows[::-1].copy()[::-1]), (np.asfortranarray(queries), np.asfortranarray(rows))):
        at,s = nearest(q, r, 3)
        assert (at==wanted[0]).all() and (s==wanted[1]).all()
    assert [o.shape for o in nearest(queries[:0], rows, 3)]==[(0,3),(0,3)]
    for k,among in ((0, None), (10, None), (-1, None), (3, np.array([1,2]))):
        with pytest.raises(ValueError, match='k is from 1 to'): nearest(queries, rows, k, among=among)


def known(n=40, engine=ExactIndex, **kw):
    "An index with cameras, times and people, some of them not known"
    index = engine(**kw)
    columns = dict(camera=[i%3 if i%7 else None for i in range(n)], time=[f'2024-05-{1+i%28:02}' for i in range(n)], person=['ada' if i%2 else 'bob' for i in range(n)])
    index.add(Vectors(unit(n, 8), [f'p{i}' for i in range(n)], 'aa', dict(name='net'), columns))
    return index, columns


WHERE = ['camera=1', 'camera!=1', 'camera<1.5', ['camera>=1','person!=bob'], 'time>=2024-05-20', ['time<2024-05-20','time>2024-05-18'], 'person=nobody', []]


def fitting(columns, where, n):
    "Positions that fulfil conditions, in plain Python"
    def holds(i, w):
        name,op,value = next((w.partition(o)[0], o, w.partition(o)[2]) for o in ('!=','>=','<=','=','<','>') if o in w)
        v = columns[name][i]
        if v is None: return False
        value = float(value) if name=='camera' else value
        return {'=': v==value, '!=': v!=value, '<': v<value, '<=': v<=value, '>': v>value, '>=': v>=value}[op]
    return [i for i in range(n) if all(holds(i, w) for w in ([where] if isinstance(where, str) else where))]


@pytest.mark.parametrize('where', WHERE)
@pytest.mark.parametrize('memory', [40, 2**26])
def test_filters_come_before_the_search(where, memory):
    index,columns = known(memory=memory)
    rows,queries,fits = unit(40, 8),unit(5, 8, 3),fitting(columns, where, 40)
    found = index.search(queries, 4, 'aa', where)
    wanted = brute(queries, rows[fits], min(4, len(fits)))[0] if fits else np.zeros((5,0), int)
    assert found.ids==[[f'p{fits[i]}' for i in row] for row in wanted]


def test_what_is_known_comes_with_what_was_found():
    index,columns = known()
    index.remove('p3')
    asked = ['p7','p0','p7']
    assert index.known(asked)==[{k: v[int(i[1:])] for k,v in columns.items() if v[int(i[1:])] is not None} for i in asked]
    for gone in 'p3','nobody':
        with pytest.raises(KeyError, match='no id'): index.known(['p1',gone])
    assert filled(3).known(['p1'])==[{}]


def test_a_filter_holds_after_adding_and_removing(tmp_path):
    index,columns = known()
    assert index.search(unit(1, 8), 99, 'aa', 'camera=1').ids
    index.remove([f'p{i}' for i in range(0, 40, 3)])
    index.add(unit(2, 8, 9), ['x','y'], 'aa', dict(camera=[1,None], place=['door','yard']))
    again = open_index(index.save(tmp_path/'i'))
    for i in index,again:
        got = {*i.search(unit(1, 8), 99, 'aa', 'camera=1').ids[0]}
        assert got=={f'p{k}' for k in fitting(columns, 'camera=1', 40) if k%3}|{'x'}
        assert i.search(unit(1, 8), 99, 'aa', 'place!=door').ids==[['y']]
    with pytest.raises(ValueError, match='holds texts in the index'): index.add(unit(1, 8), ['z'], 'aa', dict(place=[3]))
    assert 'z' not in index and len(index)==len(again)==28 and [len(v) for v in index.columns.values()]==[28]*4
    index.remove('y'); index.remove('x')
    assert [*index.columns]==['camera','time','person']


@settings(max_examples=40, deadline=None)
@given(st.integers(60, 3000), st.integers(1, 40), st.integers(1, 6), st.integers(0, 99), st.integers(1, 300))
def test_the_largest_by_groups_are_the_largest(n, width, q, seed, values):
    from ccreid.search.exact import _largest
    s = torch.from_numpy(np.random.default_rng(seed).integers(0, values, (q,n)).astype(np.float32))
    v,at = _largest(s, min(width, n))
    assert torch.equal(v, s.topk(min(width, n))[0]) and torch.equal(s.gather(1, at), v)
    assert all(len(set(row))==len(row) for row in at.tolist())


def test_the_largest_may_stand_behind_the_last_whole_group():
    from ccreid.search.exact import _largest
    s = torch.zeros(1, 32*8+5)
    s[0,-1],s[0,-3],s[0,7] = 3,2,1
    assert _largest(s, 2)[1].tolist()==[[260,258]]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 80), st.integers(1, 80), st.integers(0, 99), st.integers(4, 3000), st.integers(1, 4))
def test_among_some_rows_the_answer_is_that_of_brute_force(n, k, seed, memory, kinds):
    rng = np.random.default_rng(seed)
    rows = unit(kinds, 6, seed)[rng.integers(0, kinds, n)]                             # many copies
    among = np.flatnonzero(rng.random(n)<.6)
    if not len(among): among = np.array([n-1])
    k = min(k, len(among))
    at,_ = nearest(rows[:2], rows, k, memory, among)
    np.testing.assert_array_equal(at, among[brute(rows[:2], rows[among], k)[0]])


def test_an_engine_says_what_it_lacks():
    class Half(Index): kind = 'half'
    with pytest.raises(AttributeError): Half().add([[1.]], ['a'])

# --- index files

def test_a_file_gives_the_index_back(tmp_path):
    index = filled()
    index.remove('p5')
    index.add(Vectors(unit(3, 8, 9), ['ü\n','b.jpg','c'], 'aa', dict(folder='/other')))
    again = open_index(index.save(tmp_path/'a.index'))
    assert again.ids==index.ids and again.ids[-3]=='/other/ü\n' and (again.model,again.dim,again.about)==('aa',8,index.about)
    a,b = (i.search(unit(9, 8, 3), 7, 'aa') for i in (index, again))
    assert a.ids==b.ids and (a.scores==b.scores).all()
    with pytest.raises(ValueError, match='model bb'): again.add(unit(1, 8), ['x'], model='bb')


def test_files_that_are_none_are_refused_in_one_line(tmp_path):
    content = filled().save(tmp_path/'a').read_bytes()
    said = json.dumps
    about = dict(index='exact', model='aa', dim=8, about={}, settings={})
    ids = lambda v: torch.frombuffer(bytearray(said(v).encode()), dtype=torch.uint8)
    rows = torch.from_numpy(unit(2, 8))
    files = dict(cut=content[:len(content)//2], head=content[:5], empty=b'', page=b'<!doctype html>', pickle=b'\x80\x04.', flipped=content[:-5]+b'\0'+content[-4:],
                 other=safetensors_bytes(dict(a=rows), dict(b=1)), engine=safetensors_bytes(dict(vectors=rows, ids=ids(['a','b'])), {**about, 'index':'magic'}),
                 few=safetensors_bytes(dict(vectors=rows, ids=ids(['a'])), about), long=safetensors_bytes(dict(vectors=rows, ids=ids(['a','b'])), {**about, 'dim':9}),
                 twice=safetensors_bytes(dict(vectors=rows, ids=ids(['a','a'])), about), noids=safetensors_bytes(dict(vectors=rows), about),
                 words=safetensors_bytes(dict(vectors=rows, ids=ids(3)), about), said=safetensors_bytes(dict(vectors=rows, ids=ids(['a','b'])), {**about, 'about':3}),
                 model=safetensors_bytes(dict(vectors=rows, ids=ids(['a','b'])), {**about, 'model':3}), set=safetensors_bytes(dict(vectors=rows, ids=ids(['a','b'])), {**about, 'settings':dict(x=1)}))
    for name,data in files.items():
        (tmp_path/name).write_bytes(data)
        with pytest.raises(ValueError) as e: open_index(tmp_path/name)
        assert str(e.value).startswith(str(tmp_path/name)) and len(str(e.value).splitlines())==1, name
    with pytest.raises(FileNotFoundError): open_index(tmp_path/'none')
    with pytest.raises(ValueError, match='folder'): open_index(tmp_path)


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = filled().save(tmp_path/'a.index')
    before,other = path.read_bytes(),filled(9)
    def full(*args): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', full)
        with pytest.raises(OSError, match='cannot write'): other.save(path)
    assert path.read_bytes()==before and [p.name for p in tmp_path.iterdir()]==['a.index']

# --- FAISS

@pytest.fixture
def faiss(): return pytest.importorskip('faiss')


@pytest.mark.parametrize('factory', ['auto', 'Flat', 'IVF4,Flat', 'HNSW16', 'RR8,IVF4,Flat', 'RR8,HNSW16', 'L2norm,Flat'])
def test_faiss_is_an_index_like_the_other(faiss, tmp_path, factory):
    from ccreid.search.faiss_index import FaissIndex
    index,exact = filled(400, 8, FaissIndex, factory=factory, probe=4),filled(400, 8)
    rows = unit(400, 8)
    def same():
        queries = Vectors(unit(30, 8, 5), [f'q{i}' for i in range(30)], 'aa')
        a,b = index.search(queries, 6),exact.search(queries, 6)
        hits = np.mean([len(set(x)&set(y))/6 for x,y in zip(a.ids, b.ids)])
        return hits>.97 if 'HNSW' in factory else a.ids==b.ids and np.allclose(a.scores, b.scores, atol=1e-6)
    assert same()
    for i in index,exact: i.remove(['p0','p77','p399'])
    assert same() and index.search(rows[77], 1, 'aa').ids!=[['p77']] and len(index)==397
    for i in index,exact: i.add(rows[77:78], ['p77'], model='aa')
    assert same() and index.search(rows[77], 1, 'aa').ids==[['p77']]
    index = open_index(index.save(tmp_path/'f.index'))
    assert type(index) is FaissIndex and same() and index.factory==factory
    for i in index,exact: i.remove('p5'); i.add(rows[5:6], ['again'], model='aa')
    assert same()
    with pytest.raises(ValueError, match='model bb'): index.search(unit(1, 8), model='bb')


@pytest.mark.parametrize('factory', ['Flat', 'IVF4,Flat', 'HNSW16', 'RR8,IVF4,Flat'])
def test_faiss_filters_before_it_searches(faiss, factory):
    from ccreid.search.faiss_index import FaissIndex
    index,columns = known(engine=FaissIndex, factory=factory, probe=4)
    exact = known()[0]
    for i in index,exact: i.remove('p4')
    for where in WHERE:
        a,b = (i.search(unit(5, 8, 3), 4, 'aa', where) for i in (index,exact))
        assert a.ids==b.ids if factory!='HNSW16' else {*sum(a.ids, [])}<={f'p{k}' for k in fitting(columns, where, 40)}


def test_faiss_gives_fewer_where_it_finds_fewer_and_can_be_emptied(faiss):
    from ccreid.search.faiss_index import FaissIndex
    index = filled(100, 8, FaissIndex, factory='IVF20,Flat', probe=1)
    found = index.search(unit(1, 8), 100, 'aa')
    assert 0<len(found.ids[0])<100 and np.isnan(found.scores[0,-1]) and len(found.as_dict()[0])==len(found.ids[0])
    index.remove([*index.ids])
    assert len(index)==0 and index.search(unit(1, 8), 3, 'aa').ids==[[]]
    index.add(unit(40, 8), [str(i) for i in range(40)], model='aa')
    assert index.search(unit(1, 8), 1, 'aa').ids==[['0']]


def test_what_faiss_cannot_build_is_said_and_nothing_is_lost(faiss, tmp_path):
    from ccreid.search.faiss_index import FaissIndex
    for wrong in (dict(factory=3), dict(factory=''), dict(probe=-1), dict(probe=1.5)):
        with pytest.raises(ValueError, match='expected a'): FaissIndex(**wrong)
    index = filled(50, 8, FaissIndex, factory='IVF60,Flat')                            # more cells than vectors
    for f in (lambda: index.search(unit(1, 8), 1, 'aa'), lambda: index.remove('p1'), lambda: index.save(tmp_path/'a')):
        for _ in range(2):
            with pytest.raises(ValueError, match="FAISS cannot build 'IVF60,Flat' of 50 vectors"): f()
    assert len(index)==50 and 'p1' in index and not (tmp_path/'a').exists()
    index.add(unit(50, 8, 1), [f'q{i}' for i in range(50)], 'aa')                      # enough now
    assert index.search(unit(50, 8)[1:2], 1, 'aa').ids==[['p1']]
    index.remove(index.ids)
    assert len(open_index(index.save(tmp_path/'a')))==len(open_index(FaissIndex(factory='HNSW16').save(tmp_path/'b')))==0


def test_what_is_removed_from_faiss_is_not_in_its_file(faiss, tmp_path):
    from ccreid.search.faiss_index import FaissIndex
    for factory in 'Flat','IVF4,Flat','HNSW16','Flat,RFlat':
        index = filled(50, 8, FaissIndex, factory=factory)
        mark = filled(50, 8)._rows()[11].tobytes()
        assert mark in index.save(tmp_path/'a').read_bytes()
        index.remove('p11')
        assert mark not in index.save(tmp_path/'a').read_bytes()


def test_faiss_files_are_refused_like_others(faiss, tmp_path):
    from ccreid.search.faiss_index import FaissIndex
    content = filled(50, 8, FaissIndex).save(tmp_path/'a').read_bytes()
    about = dict(index='faiss', model='aa', dim=8, about={}, settings={})
    ids = torch.frombuffer(bytearray(b'["a"]'), dtype=torch.uint8)
    junk = safetensors_bytes(dict(faiss=torch.zeros(9, dtype=torch.uint8), numbers=torch.tensor([0]), ids=ids), about)
    for name,data in dict(cut=content[:-20], junk=junk).items():
        (tmp_path/name).write_bytes(data)
        with pytest.raises(ValueError, match=name): open_index(tmp_path/name)
    with pytest.raises(ValueError, match='FAISS cannot build'): filled(50, 8, FaissIndex, factory='IVF9000,Flat').search(unit(1, 8), 1, 'aa')
    with pytest.raises(ValueError, match='FAISS cannot build'): filled(50, 8, FaissIndex, factory='nothing').search(unit(1, 8), 1, 'aa')


def test_without_faiss_a_line_says_what_to_install(monkeypatch):
    from ccreid.search.faiss_index import FaissIndex
    monkeypatch.setitem(sys.modules, 'faiss', None)
    with pytest.raises(ImportError, match=r'pip install "ccreid\[search\]"'): FaissIndex()

# --- files of vectors

@pytest.mark.parametrize('end', ['.npz', '.parquet'])
def test_vectors_come_back_as_they_were(tmp_path, end):
    if end=='.parquet': pytest.importorskip('pyarrow')
    some = Vectors(unit(7, 5), ['a.jpg','b b','ü','c\nd','/x/y','#0','-'], 'aa', dict(name='net', skipped={'z': 'why'}),
                   dict(camera=[1,2,None,4,5,6,2**62+1], time=[.5,None,1e300,-0.,1.,2.,3.], person=['','ü',None,'a','b','c','d']))
    again = read_vectors(write_vectors(tmp_path/f'v{end}', some))
    assert (again.ids,again.model,again.about,again.columns)==(some.ids,'aa',some.about,some.columns) and (again.vectors==some.vectors).all() and again.vectors.dtype==np.float32
    content = (tmp_path/f'v{end}').read_bytes()
    for name,data in dict(cut=content[:-30], half=content[:len(content)//2], empty=b'', page=b'<!doctype html>').items():
        (tmp_path/f'{name}{end}').write_bytes(data)
        with pytest.raises(ValueError, match=name): read_vectors(tmp_path/f'{name}{end}')


def test_a_parquet_file_is_read_by_others(tmp_path):
    pd,_ = pytest.importorskip('pandas'),pytest.importorskip('pyarrow')
    table = pd.read_parquet(write_vectors(tmp_path/'v.parquet', Vectors(unit(3, 4), ['a','b','c'], 'aa')))
    assert table.id.tolist()==['a','b','c'] and np.allclose(np.stack(table.vector), unit(3, 4))
    table.assign(when=pd.to_datetime(['2024-05-01T10:00','2024-05-02T00:00',None]), n=[1.5,None,2], flag=[True,False,True]).to_parquet(tmp_path/'more.parquet')
    assert read_vectors(tmp_path/'more.parquet').columns==dict(when=['2024-05-01T10:00:00','2024-05-02T00:00:00',None], n=[1.5,None,2.])
    table.drop(columns='id').to_parquet(tmp_path/'other.parquet')
    with pytest.raises(ValueError, match='no columns id and vector'): read_vectors(tmp_path/'other.parquet')
    pd.DataFrame(dict(id=['a','b'], vector=[[1.,2.],[3.]])).to_parquet(tmp_path/'ragged.parquet')
    with pytest.raises(ValueError, match='ragged.parquet'): read_vectors(tmp_path/'ragged.parquet')
    import pyarrow as pa, pyarrow.parquet
    half = pa.FixedSizeListArray.from_arrays(pa.array([1.,2.,3.,4.]), 2, mask=pa.array([False,True]))
    for vectors in ([[1.],[2.,3.,4.]], [[1.,2.],None], half, [[],[1.,2.]]):                # as many numbers as two rows of two, or of one
        pa.parquet.write_table(pa.table(dict(id=['a','b'], vector=vectors)), tmp_path/'wrong.parquet')
        with pytest.raises(ValueError, match='wrong.parquet holds vectors of different lengths, or none'): read_vectors(tmp_path/'wrong.parquet')
    pa.parquet.write_table(pa.table(dict(id=['a','b'], vector=['x','y'])), tmp_path/'text.parquet')
    with pytest.raises(ValueError, match='holds string in `vector`, not lists of numbers'): read_vectors(tmp_path/'text.parquet')
    for kind in pa.list_(pa.float64()),pa.large_list(pa.float16()),pa.list_(pa.int32(), 2):
        rows = pa.array([np.float16([1,2]),np.float16([3,4])] if kind==pa.large_list(pa.float16()) else [[1,2],[3,4]], kind)
        pa.parquet.write_table(pa.table(dict(id=['a','b'], vector=rows)), tmp_path/'kind.parquet')
        assert read_vectors(tmp_path/'kind.parquet').vectors.tolist()==[[1,2],[3,4]]


@pytest.mark.parametrize('end', ['.npz', '.parquet'])
def test_no_vectors_come_back_as_none(tmp_path, end):
    if end=='.parquet': pytest.importorskip('pyarrow')
    for nothing in Vectors([], [], 'aa'),Vectors(np.zeros((0,8)), [], 'aa'):
        again = read_vectors(write_vectors(tmp_path/f'v{end}', nothing))
        assert len(again)==0 and again.model=='aa'


def test_an_npz_that_would_have_to_be_unpickled_is_refused(tmp_path):
    np.savez(tmp_path/'v.npz', paths=np.array(['a'], object), features=np.eye(1))
    with pytest.raises(ValueError, match='v.npz'): read_vectors(tmp_path/'v.npz')
    np.savez(tmp_path/'w.npz', paths=['a'], features=np.eye(1), about=np.array([dict(a=1)], object))
    with pytest.raises(ValueError, match='w.npz'): read_vectors(tmp_path/'w.npz')


def test_vectors_of_a_job_can_be_evaluated(tmp_path):
    from ccreid.evaluation.scoring import read_npz
    names,features = read_npz(write_vectors(tmp_path/'v.npz', Vectors(unit(2, 3), ['x/a.jpg','b'], 'aa')))
    assert names==['x/a.jpg','b'] and features.shape==(2,3)

# --- the job

@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path/'pictures').mkdir()
    for i in range(10): Image.fromarray(rng.integers(0, 256, (8,4,3), dtype=np.uint8)).save(tmp_path/'pictures'/f'{i}.png')
    return tmp_path/'pictures'


def colour(pictures): return np.array([[*np.asarray(p).mean((0,1)), 1.] for p in pictures])


SLOW = '''
import sys, time
import numpy as np
from ccreid.search.job import embed_to_file
from ccreid.training.embedders import FunctionEmbedder
def slow(pictures):
    print('batch', flush=True); time.sleep(float(sys.argv[3]))
    return np.array([[*np.asarray(p).mean((0,1)), 1.] for p in pictures])
embed_to_file(FunctionEmbedder(slow, 'colour'), sys.argv[1], sys.argv[2], part=2)
'''


def test_killed_and_started_again_only_what_is_missing_is_done(folder, tmp_path):
    out = tmp_path/'v.npz'
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(REPO), os.environ.get('PYTHONPATH', '')])}
    run = subprocess.Popen([sys.executable,'-c',SLOW,str(folder),str(out),'.3'], stdout=subprocess.PIPE, text=True, env=env)
    for _ in range(3): assert run.stdout.readline()=='batch\n'                       # in the third part of five
    run.send_signal(signal.SIGKILL); run.wait(); run.stdout.close()
    assert not out.exists() and sorted(p.name for p in parts_of(out).glob('*.npz'))==['000000.npz','000001.npz']
    done = subprocess.run([sys.executable,'-c',SLOW,str(folder),str(out),'0'], capture_output=True, text=True, env=env)
    assert done.stdout=='batch\n'*3, done.stderr
    assert not parts_of(out).exists() and [p.name for p in tmp_path.iterdir() if p.is_file()]==['v.npz']
    straight = embed_to_file(__import__('ccreid.training.embedders', fromlist=['x']).FunctionEmbedder(colour, 'colour'), folder, tmp_path/'w.npz')
    v = read_vectors(out)
    assert v.ids==straight.ids==[f'{i}.png' for i in range(10)] and (v.vectors==straight.vectors).all() and v.model==straight.model


class Stop(Exception): pass

def stopping(after, name='colour'):
    from ccreid.training.embedders import FunctionEmbedder
    calls = []
    def f(pictures):
        calls.append(len(pictures))
        if len(calls)>after: raise Stop
        return colour(pictures)
    e = FunctionEmbedder(f, name)
    e.calls = calls
    return e


def begun(folder, out):
    with pytest.raises(Stop): embed_to_file(stopping(2), folder, out, part=2)
    assert not out.exists()


def test_a_damaged_part_is_made_again(folder, tmp_path):
    begun(folder, out := tmp_path/'v.npz')
    part = parts_of(out)/'000001.npz'
    part.write_bytes(part.read_bytes()[:50])
    again = stopping(99)
    embed_to_file(again, folder, out, part=2)
    assert len(again.calls)==4 and np.allclose(read_vectors(out).vectors, embed_to_file(stopping(99), folder, tmp_path/'w.npz').vectors)


@pytest.mark.parametrize('change', ['picture', 'gone', 'more', 'model', 'part', 'skip'])
def test_parts_of_another_job_are_refused_until_told(folder, tmp_path, change):
    begun(folder, out := tmp_path/'v.npz')
    model,kw = stopping(99, 'other' if change=='model' else 'colour'),dict(part=5 if change=='part' else 2, skip_bad=change=='skip')
    if change=='picture': Image.new('RGB', (4,8)).save(folder/'0.png')
    if change=='gone': (folder/'9.png').unlink()
    if change=='more': Image.new('RGB', (4,8)).save(folder/'a.png')
    with pytest.raises(ValueError, match='parts of another job'): embed_to_file(model, folder, out, **kw)
    assert not out.exists() and len([*parts_of(out).glob('*.npz')])==2
    whole = embed_to_file(model, folder, out, restart=True, **kw)
    assert len(whole)==len([*folder.iterdir()]) and sum(model.calls)==len(whole)


def test_a_job_that_did_nothing_stands_in_nobodys_way(folder, tmp_path):
    out = tmp_path/'v.npz'
    with pytest.raises(Stop): embed_to_file(stopping(0), folder, out, part=2)
    assert not [*parts_of(out).glob('*.npz')]
    assert len(embed_to_file(stopping(99, 'other'), folder, out, part=5))==len([*folder.iterdir()])


def test_a_file_that_is_there_stays_or_is_replaced_whole(folder, tmp_path):
    out = tmp_path/'v.npz'
    first,again = stopping(99),stopping(99)
    embed_to_file(first, folder, out); embed_to_file(again, folder, out)
    assert len(first.calls)==1 and again.calls==[]
    before = out.read_bytes()
    with pytest.raises(Stop): embed_to_file(stopping(1, 'other'), folder, out, part=2)
    assert out.read_bytes()==before
    embed_to_file(other := stopping(99, 'other'), folder, out, part=2)
    assert len(other.calls)==4 and read_vectors(out).model==other.fingerprint


def test_a_folder_that_was_moved_is_not_embedded_again_but_found(folder, tmp_path):
    out = tmp_path/'v.npz'
    before = embed_to_file(stopping(99), folder, out, about=dict(weights='old'))
    place = folder.rename(tmp_path/'moved')
    after = embed_to_file(again := stopping(99), place, out, about=dict(weights='new'))
    found = read_vectors(out)
    assert again.calls==[] and (found.vectors==before.vectors).all() and found.ids==before.ids
    assert found.about==after.about=={**before.about, 'folder': str(place), 'weights': 'new'}
    stamp = out.stat().st_mtime_ns
    embed_to_file(again, place, out, about=dict(weights='new'))
    assert again.calls==[] and out.stat().st_mtime_ns==stamp


def test_a_record_of_a_job_that_is_damaged_says_the_way_out(folder, tmp_path):
    begun(folder, out := tmp_path/'v.npz')
    (parts_of(out)/'job.json').write_text('{')
    with pytest.raises(ValueError, match='job.json is damaged.*--restart'): embed_to_file(stopping(99), folder, out, part=2)
    assert len(embed_to_file(stopping(99), folder, out, part=2, restart=True))==10


def test_a_vector_that_points_nowhere_is_named(folder, tmp_path):
    fourth = np.asarray(Image.open(folder/'4.png')).tolist()
    def model(pictures): return [[0.,0.] if np.asarray(p).tolist()==fourth else [1.,0.] for p in pictures]
    with pytest.raises(ValueError, match='gives 4.png a vector of length 0'): embed_to_file(model, folder, tmp_path/'v.npz')
    assert not (tmp_path/'v.npz').exists()


def test_bad_pictures_end_the_job_or_are_counted(folder, tmp_path):
    (folder/'3.png').write_bytes(b'')
    with pytest.raises(ValueError, match='3.png: the file is empty'): embed_to_file(stopping(99), folder, tmp_path/'v.npz', part=4)
    v = embed_to_file(stopping(99), folder, tmp_path/'w.npz', part=4, skip_bad=True)
    assert len(v)==9 and '3.png' not in v.ids and v.about['skipped']=={'3.png': 'the file is empty'} and v.about['pictures']==10
    for p in folder.iterdir(): p.write_bytes(b'')
    with pytest.raises(ValueError, match='none of 10 pictures'): embed_to_file(stopping(99), folder, tmp_path/'x.npz', skip_bad=True)


def test_two_processes_do_not_make_one_file(folder, tmp_path):
    from ccreid.files import hold
    out = tmp_path/'v.npz'
    with hold(parts_of(out)/'.lock'):
        with pytest.raises(BlockingIOError, match='another process is making'): embed_to_file(stopping(99), folder, out)
    assert len(embed_to_file(stopping(99), folder, out))==10


def test_wrong_ends_and_names_that_come_twice_are_said_before_the_work(folder, tmp_path):
    for pictures,path,said in ((folder, 'v.csv', 'ends in .npz or .parquet'), ([folder/'0.png', folder/'0.png'], 'v.npz', 'twice')):
        model = stopping(99)
        with pytest.raises(ValueError, match=said): embed_to_file(model, pictures, tmp_path/path)
        assert model.calls==[]
    assert [p.name for p in tmp_path.iterdir()]==['pictures']


def test_what_cannot_be_is_said_before_the_work_and_leaves_nothing(folder, tmp_path):
    for kw,error,said in ((dict(part=0), ValueError, 'part: expected a whole number'), (dict(batch_size=0), ValueError, 'batch_size: expected a whole number'),
                          (dict(about=dict(x=object())), TypeError, 'JSON')):
        with pytest.raises(error, match=said): embed_to_file(model := stopping(99), folder, tmp_path/'v.npz', **kw)
        assert model.calls==[]
    assert [p.name for p in tmp_path.iterdir()]==['pictures']


def test_vectors_of_different_lengths_are_refused(folder, tmp_path):
    def model(pictures): return np.ones((len(pictures),len(pictures)))
    for kw in dict(batch_size=3), dict(batch_size=3, part=3):                          # in one part, and among parts
        with pytest.raises(ValueError, match=r'model gives vectors of different lengths: \[1, 3\]'): embed_to_file(model, folder, tmp_path/f'{len(kw)}.npz', **kw)


def test_pictures_in_memory_are_known_by_their_content(tmp_path):
    a = np.random.default_rng(0).integers(0, 256, (4,8,4,3), dtype=np.uint8)
    embed_to_file(first := stopping(99), [a[0], Image.fromarray(a[1])], tmp_path/'v.npz')
    embed_to_file(same := stopping(99), [a[0], Image.fromarray(a[1])], tmp_path/'v.npz')
    embed_to_file(other := stopping(99), [a[0], Image.fromarray(a[2])], tmp_path/'v.npz')
    assert (len(first.calls),len(same.calls),len(other.calls))==(1,0,1)
