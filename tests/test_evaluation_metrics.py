"Protocols and metrics against loops written from the definitions"
import subprocess, sys
from fractions import Fraction
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from ccreid.evaluation.cross_modality import DrawnPerCamera
from ccreid.evaluation.metrics import (retrieval_metrics, metrics_from_distances, evaluate, mean_metrics, RetrievalMetrics,
                                       paired_bootstrap)
from ccreid.evaluation.protocols import Protocol, STANDARD, SAME_CLOTHES, CLOTHES_CHANGING, SETTINGS, protocols_for
from ccreid.evaluation.ranking import count_within
from ccreid.evaluation.statistics import two_way_interval, variance_components

pytestmark = pytest.mark.filterwarnings('ignore:none of the')
THREE = (STANDARD, SAME_CLOTHES, CLOTHES_CHANGING)

# ---- the definitions, one pair and one query at a time -------------------------------------------------------------------

def junk_pair(setting, q, g):
    if q.identity < 0 or g.identity < 0 or q.identity != g.identity: return False
    same_camera, same_clothes = q.camera == g.camera, q.clothes == g.clothes and q.clothes != -1
    return {'standard': same_camera, 'clothes-changing': same_camera or same_clothes,
            'same-clothes': same_camera or not same_clothes}[setting]

def loop_metrics(distance, query, gallery, junk):
    "`distance(i, j)` and `junk(i, j)` for every pair; lists of AP, INP, first rank of the queries with a positive"
    res = []
    for i, q in enumerate(query.itertuples()):
        right, wrong = [], []
        for j, g in enumerate(gallery.itertuples()):
            if junk(i, j): continue
            (right if q.identity == g.identity and q.identity >= 0 else wrong).append(distance(i, j))
        if not right: continue
        ranks = [k + sum(w <= d for w in wrong) for k, d in enumerate(sorted(right), 1)]
        res.append((i, sum(k/r for k, r in enumerate(ranks, 1))/len(ranks), len(ranks)/ranks[-1], ranks[0]))
    return res

def agree(m, expected, query, gallery):
    assert (m.queries, m.skipped) == (len(expected), len(query) - len(expected))
    assert m.query_rows.tolist() == [query.index[e[0]] for e in expected]
    if not expected: return
    for got, col in ((m.ap, 1), (m.inp, 2), (m.first_rank, 3)): assert np.allclose(got, [e[col] for e in expected], atol=1e-6)
    assert m.mAP == pytest.approx(np.mean([e[1] for e in expected]), abs=1e-9)
    assert m.mINP == pytest.approx(np.mean([e[2] for e in expected]), abs=1e-9)
    curve = [np.mean([e[3] <= k for e in expected]) for k in range(1, len(gallery) + 1)]
    assert np.allclose(m.cmc, curve, atol=1e-6)
    assert m.rank(5) == pytest.approx(curve[min(5, len(curve)) - 1], abs=1e-6)

def exact_cosine(a, b):
    "Cosine distances up to a monotone map that is exact in rational arithmetic: -sign(ab) (ab)^2 / |b|^2"
    def d(i, j):
        dot, norm = int(a[i] @ b[j]), int(b[j] @ b[j])
        return -Fraction(dot*abs(dot), norm) if norm and (a[i] @ a[i]) else Fraction(0)
    return d

labels = st.tuples(st.sampled_from([-2, 0, 0, 1, 1, 2, 3]), st.integers(0, 2), st.integers(-1, 3))
def tables(n): return st.lists(labels, min_size=1, max_size=n).map(
    lambda rows: pd.DataFrame(rows, columns=['identity', 'camera', 'clothes'], index=np.arange(len(rows))*3 + 5))
def features(n, dim): return st.lists(st.lists(st.integers(-2, 2), min_size=dim, max_size=dim), min_size=n, max_size=n).map(
    lambda v: np.array(v, dtype=np.int64).reshape(n, dim))

@st.composite
def problems(draw):
    query, gallery, dim = draw(tables(6)), draw(tables(12)), draw(st.integers(1, 3))
    return query, gallery, draw(features(len(query), dim)), draw(features(len(gallery), dim))

@settings(max_examples=250, deadline=None)
@given(problems(), st.sampled_from(THREE), st.sampled_from([1, 100, 2**28]), st.sampled_from(['float32', 'float64', 'float16', 'bfloat16']))
def test_features_equal_exact_loops(problem, protocol, chunk_bytes, dtype):
    "Quantised features in one to three dimensions: duplicates and exact ties everywhere"
    query, gallery, f, g = problem
    rows = [list(t.itertuples()) for t in (query, gallery)]
    expected = loop_metrics(exact_cosine(f, g), query, gallery, lambda i, j: junk_pair(protocol.setting, rows[0][i], rows[1][j]))
    f, g = (torch.from_numpy(x).to(getattr(torch, dtype)) for x in (f, g))
    agree(retrieval_metrics(f, g, query, gallery, protocol, chunk_bytes=chunk_bytes), expected, query, gallery)

class OtherRoom(Protocol):
    "Junk that concerns other people too"
    def rule(self, q, g): return q['camera'] == g['camera']

class DenseJunk(Protocol):
    "The built-in rule through the dense mask"
    def junk(self, query, gallery): return Protocol.junk(self, query, gallery)

@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from(SETTINGS), st.sampled_from([1, 300, 2**28]), st.randoms())
def test_distances_equal_loops_sparse_and_dense(problem, setting, chunk_bytes, random):
    query, gallery, _, _ = problem
    d = np.array([[random.randint(4, 8) for _ in range(len(gallery))] for _ in range(len(query))])
    rows = [list(t.itertuples()) for t in (query, gallery)]
    expected = loop_metrics(lambda i, j: d[i, j], query, gallery, lambda i, j: junk_pair(setting, rows[0][i], rows[1][j]))
    for p in (Protocol('fast', setting), DenseJunk('dense', setting)):
        agree(metrics_from_distances(torch.from_numpy(d), query, gallery, p, chunk_bytes=chunk_bytes), expected, query, gallery)
    expected = loop_metrics(lambda i, j: d[i, j], query, gallery, lambda i, j: rows[0][i].camera == rows[1][j].camera)
    agree(metrics_from_distances(d.astype(np.float16), query, gallery, OtherRoom('room'), chunk_bytes=chunk_bytes), expected, query, gallery)

@settings(max_examples=100, deadline=None)
@given(problems(), st.sampled_from(SETTINGS))
def test_junk_mask_pair_by_pair(problem, setting):
    query, gallery, _, _ = problem
    mask = Protocol('p', setting).junk(query, gallery)
    assert mask.dtype == torch.bool and tuple(mask.shape) == (len(query), len(gallery))
    assert mask.tolist() == [[junk_pair(setting, q, g) for g in gallery.itertuples()] for q in query.itertuples()]

# ---- properties at a size where kernels, chunks and both ways of counting come into play ----------------------------------

def crowd(people=30, images=40, dim=64, noise=2.5, seed=0, distractors=50):
    rng = np.random.default_rng(seed)
    identity = np.r_[np.repeat(np.arange(people), images), np.full(distractors, -2)]
    table = pd.DataFrame(dict(identity=identity, camera=rng.integers(0, 3, len(identity)), clothes=rng.integers(-1, 3, len(identity))))
    centres = rng.normal(size=(people + 1, dim))
    return table, torch.from_numpy(centres[identity] + noise*rng.normal(size=(len(identity), dim))).float()

@pytest.mark.parametrize('protocol', THREE, ids=lambda p: p.name)
def test_float_features_equal_loops(protocol):
    table, f = crowd(images=60 if protocol is STANDARD else 20, people=12)   # more than 24 positives: the other way of counting
    query = table.iloc[::17]
    d = -torch.nn.functional.normalize(f[::17].double()) @ torch.nn.functional.normalize(f.double()).T
    rows, q = list(table.itertuples()), list(query.itertuples())
    expected = loop_metrics(lambda i, j: d[i, j].item(), query, table, lambda i, j: junk_pair(protocol.setting, q[i], rows[j]))
    m = retrieval_metrics(f[::17], f, query, table, protocol)
    assert m.mAP == pytest.approx(np.mean([e[1] for e in expected]), abs=1e-5)
    agree(retrieval_metrics(f[::17].double(), f.double(), query, table, protocol), expected, query, table)
    agree(metrics_from_distances(d, query, table, protocol), expected, query, table)

def same(a, b, atol=0.):
    assert (a.queries, a.skipped) == (b.queries, b.skipped)
    for k in ('ap', 'inp', 'first_rank', 'cmc'): assert torch.allclose(getattr(a, k), getattr(b, k), rtol=0, atol=atol), k

def test_row_order_chunks_and_scale_do_not_matter():
    table, f = crowd()
    f = f.round()                                                            # exact products, many ties
    f[300:600] = f[:300]                                                     # duplicate images, partly under other names
    query, fq = table.iloc[::11], f[::11]
    for protocol in THREE:
        m = retrieval_metrics(fq, f, query, table, protocol)
        order = np.random.default_rng(1).permutation(len(table))
        same(m, retrieval_metrics(fq, f[order], query, table.iloc[order], protocol))
        for chunk_bytes in (1, 10**6): same(m, retrieval_metrics(fq, f, query, table, protocol, chunk_bytes=chunk_bytes))
        same(m, retrieval_metrics(fq*3, f*torch.rand(len(f), 1).mul(4).add(1).round(), query, table, protocol))
        cmc = m.cmc
        assert (cmc.diff() >= 0).all() and 0 <= cmc[0] and cmc[-1] == 1
        assert (m.ap <= 1).all() and (m.inp <= 1).all() and (m.ap >= 1/m.first_rank/40 - 1e-6).all()

def test_duplicates_of_real_valued_features_stay_tied():
    "Copies under another identity are ahead of the right image wherever they stand in the gallery"
    table, f = crowd(people=20, images=10, dim=2048, distractors=0)
    other = table.assign(identity=table.identity + 100)
    gallery = pd.concat([other[:77], table, other[77:]], ignore_index=True)
    g = torch.cat([f[:77], f, f[77:]])
    for chunk_bytes in (1, 2**28):
        m = retrieval_metrics(f, g, table, gallery, STANDARD, chunk_bytes=chunk_bytes)
        assert (m.first_rank >= 2).all()                                     # its impostor is never behind
        alone = retrieval_metrics(f, f, table, table, STANDARD)
        assert m.mAP < .75*alone.mAP

def test_collapsed_model_gets_no_credit():
    table, f = crowd(people=10, images=10, distractors=0)
    m = retrieval_metrics(torch.ones_like(f), torch.ones_like(f), table, table, STANDARD)
    assert m.rank(1) == 0 and (m.first_rank == 91).all()                     # all 90 wrong images are ahead

def test_counting_equals_sorting_on_both_sides_of_the_switch():
    x = torch.randn(5, 300).mul(6).round()
    for p in (1, 24, 25, 100):
        lim = x[:, :p].sort(1).values
        want = torch.searchsorted(x.sort(1).values, lim, right=True)
        used = torch.tensor([p, 0, 1, p//2, p])
        got = count_within(x, lim, used)
        for i, n in enumerate(used): assert torch.equal(got[i, :n], want[i, :n])

@pytest.mark.parametrize('protocol', (*THREE, OtherRoom('room')), ids=lambda p: p.name)
def test_sorting_path_of_other_devices_gives_the_same(protocol, monkeypatch):
    "What a GPU does, done on the CPU"
    import ccreid.evaluation.ranking as ranking
    table, f = crowd(people=12); f = f.round()
    m = retrieval_metrics(f[::3], f, table[::3], table, protocol)
    called = []
    def by_sorting(distances, limits, used):
        called.append(1)
        return ranking.count_by_sorting(distances, limits)
    monkeypatch.setattr(ranking, 'count_within', by_sorting)
    same(m, retrieval_metrics(f[::3], f, table[::3], table, protocol))
    assert called

def test_inputs_stay_untouched():
    table, f = crowd(people=5, images=40)
    d = torch.cdist(f, f); copies = f.clone(), d.clone(), table.copy()
    metrics_from_distances(d, table, table, OtherRoom('room')); metrics_from_distances(d, table, table, STANDARD)
    retrieval_metrics(f, f, table, table, STANDARD)
    assert torch.equal(f, copies[0]) and torch.equal(d, copies[1]) and table.equals(copies[2])

def test_memory_is_bounded_by_chunk_bytes():
    code = '''
import resource, sys, numpy as np, pandas as pd, torch
from ccreid.evaluation.metrics import retrieval_metrics
from ccreid.evaluation.protocols import CLOTHES_CHANGING
torch.set_num_threads(1)
n = 12000
t = pd.DataFrame(dict(identity=np.arange(n)//12, camera=np.arange(n)%3, clothes=np.arange(n)//4))
f = torch.randn(n, 8)
retrieval_metrics(f[:100], f, t[:100], t, CLOTHES_CHANGING)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
m = retrieval_metrics(f, f, t, t, CLOTHES_CHANGING, chunk_bytes=2**25)
print((peak() - before)/(2**20 if sys.platform=='darwin' else 1024), m.queries)
'''
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert float(out[0]) < 120, out                                          # MiB; the matrix would be 549
    assert int(out[1]) == 12000

@pytest.mark.gpu
def test_gpu_equals_cpu():
    table, f = crowd()
    f = f.round()
    for protocol in (*THREE, OtherRoom('room'), DenseJunk('dense', 'same-clothes')):
        same(retrieval_metrics(f, f, table, table, protocol), retrieval_metrics(f.cuda(), f.cuda(), table, table, protocol), atol=1e-6)

# ---- draws ---------------------------------------------------------------------------------------------------------------

def prcc_like(people=12, images=6, seed=0):
    rng = np.random.default_rng(seed)
    t = pd.DataFrame([dict(path=f'/data/{"ABC"[c]}/{p:03}/{i:03}.jpg', identity=p, camera=c, clothes=2*p + (c == 2), split='test')
                      for p in range(people) for c in range(3) for i in range(images)])
    centre, coat = rng.normal(size=(people, 8)), rng.normal(size=(2*people, 8))
    return t, torch.from_numpy(centre[t.identity] + coat[t.clothes] + rng.normal(size=(len(t), 8))).float()

def test_single_shot_draws():
    table, f = prcc_like()
    p = protocols_for('prcc')['clothes-changing-single-shot']
    pairs = p.select(table)
    assert len(pairs) == 10 and len({tuple(g.index) for _, g in pairs}) > 1
    for q, g in pairs:
        assert g.identity.is_unique and set(g.identity) == set(range(12)) and set(g.camera) == {0} and set(q.camera) == {2}
    mixed = table.sample(frac=1, random_state=1)                             # another order of files: the same draws
    assert [set(g.path) for _, g in p.select(mixed)] == [set(g.path) for _, g in pairs]
    seen = pd.concat([g for _, g in pairs]).path.value_counts()
    assert len(seen) > 12*3                                                  # different images of a person get their turn
    m = evaluate(f, table, p)
    each = [retrieval_metrics(f[q.index], f[g.index], q, g, p) for q, g in pairs]
    assert m.draws == 10 and m.mAP == pytest.approx(np.mean([e.mAP for e in each]))
    assert m.spread['rank-1'] == pytest.approx(np.std([e.rank(1) for e in each], ddof=1))
    assert m.mAP >= m.rank(1) and torch.allclose(m.ap, torch.stack([e.ap for e in each]).mean(0))
    moved = evaluate(f[mixed.index], mixed, p)                               # features follow the rows of the table
    assert moved.mAP == pytest.approx(m.mAP, abs=1e-9)

def test_mean_of_draws_that_skip_different_queries():
    one = dict(cmc=torch.tensor([1., 1.]), mINP=.5, inp=torch.tensor([.5]), first_rank=torch.tensor([1.]), ranks=(1,))
    a = RetrievalMetrics(mAP=.5, queries=1, skipped=2, ap=torch.tensor([.5]), query_rows=np.array([4]), **one)
    b = RetrievalMetrics(mAP=1., queries=1, skipped=2, ap=torch.tensor([1.]), query_rows=np.array([9]), **one)
    m = mean_metrics([a, b])
    assert (m.queries, m.skipped, m.mAP) == (2, 1, .75) and m.query_rows.tolist() == [4, 9] and m.ap.tolist() == [.5, 1.]
    more = RetrievalMetrics(mAP=1., queries=1, skipped=2, ap=torch.tensor([1.]), query_rows=np.array([9]), **one | dict(ranks=(1,2)))
    assert mean_metrics([a, more]).mAP == .75 and mean_metrics([more, a]).rank(2) == 1

def test_a_protocol_prints_what_makes_it_again():
    for p in (DrawnPerCamera('x'), DrawnPerCamera('x', by_identity=False), CLOTHES_CHANGING, STANDARD):
        made = eval(repr(p))
        assert made == p and type(made) is type(p)
    assert repr(DrawnPerCamera('x')) == "DrawnPerCamera('x')"

def test_roles_and_validation_people():
    table, f = prcc_like()
    (q, g), = CLOTHES_CHANGING.select(table)
    assert len(q) == len(g) == len(table)
    with pytest.raises(ValueError, match=r"no image among 216 .*splits here: \{'val': .*on\('val'\)"): STANDARD.select(table.assign(split='val'))
    assert evaluate(f, table.assign(split='val'), STANDARD.on('val')).mAP == pytest.approx(evaluate(f, table, STANDARD).mAP)
    with pytest.raises(ValueError, match='camera'): Protocol('x', query_where={'camera': (9,)}).select(table)
    with pytest.raises(ValueError, match="no column 'camera'"): STANDARD.junk(table.drop(columns='camera'), table)

# ---- bad input -----------------------------------------------------------------------------------------------------------

def people(*ids): return pd.DataFrame(dict(identity=ids, camera=range(len(ids)), clothes=-1))

def test_absent_identities_are_skipped_and_counted():
    m = retrieval_metrics(torch.eye(3), torch.eye(3), people(1, 2, 99), people(2, 3, 1), STANDARD)
    assert (m.queries, m.skipped) == (2, 1) and '1 skipped' in repr(m) and m.as_dict()['skipped'] == 1

def test_all_skipped_warns_and_is_nan():
    with pytest.warns(UserWarning, match='none of the 2 queries'):
        m = retrieval_metrics(torch.eye(2), torch.eye(2), people(8, 9), people(1, 2), STANDARD)
    assert (m.queries, m.skipped) == (0, 2) and np.isnan(m.mAP) and np.isnan(m.rank(1))

def test_identity_with_one_image():
    "Its only gallery image is itself: junk, so the query is skipped; the others are not disturbed"
    t = people(1, 1, 2)
    m = retrieval_metrics(torch.eye(3), torch.eye(3), t, t, STANDARD)
    assert (m.queries, m.skipped) == (2, 1)

def test_unknown_clothes():
    t = people(1, 1, 2)
    f = torch.eye(3)
    assert retrieval_metrics(f, f, t, t, CLOTHES_CHANGING).queries == 2     # unknown is not the same: stays
    with pytest.warns(UserWarning): assert retrieval_metrics(f, f, t, t, SAME_CLOTHES).queries == 0

@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_non_finite(bad):
    f = torch.eye(3); f[1, 2] = bad
    with pytest.raises(ValueError, match='gallery_features: 1 of 3 rows hold nan.*first row 1'):
        retrieval_metrics(torch.eye(3), f, people(1, 2, 3), people(1, 2, 3), STANDARD)
    with pytest.raises(ValueError, match=r'distances\[1,2\]'): metrics_from_distances(f, people(1, 2, 3), people(1, 2, 3), STANDARD)

def test_mismatched_lengths_and_shapes():
    t = people(1, 2, 3)
    with pytest.raises(ValueError, match='query_features has 2 rows, but the query table has 3'): retrieval_metrics(torch.eye(3)[:2], torch.eye(3), t, t, STANDARD)
    with pytest.raises(ValueError, match='gallery_features has 4 rows, but the gallery table has 3'): retrieval_metrics(torch.eye(3), torch.ones(4, 3), t, t, STANDARD)
    with pytest.raises(ValueError, match='3 dimensions, gallery features 5'): retrieval_metrics(torch.eye(3), torch.ones(3, 5), t, t, STANDARD)
    with pytest.raises(ValueError, match='matrix'): retrieval_metrics(torch.ones(3), torch.eye(3), t, t, STANDARD)
    with pytest.raises(ValueError, match='empty'): retrieval_metrics(torch.ones(0, 3), torch.eye(3), t[:0], t, STANDARD)
    with pytest.raises(ValueError, match=r'shape \(3, 2\)'): metrics_from_distances(torch.ones(3, 2), t, t, STANDARD)

@pytest.mark.parametrize('bad', [['a', 'b', 'c'], ['1', '2', '3'], [0, 1, np.nan], [.5, 1, 2]])
def test_labels_that_are_no_integers(bad):
    with pytest.raises(ValueError, match="column 'camera' is .*labels are integers"):
        retrieval_metrics(torch.eye(3), torch.eye(3), people(1, 2, 1), people(1, 2, 1).assign(camera=bad), STANDARD)

def test_tables_of_other_makers():
    "Nullable integers, small integers, any unique index, no paths, no split"
    t, f = people(1, 2, 1, 2), torch.eye(4).add(.1)
    want = evaluate(f, t, STANDARD)
    same(want, evaluate(f, t.astype({'identity': 'Int64', 'camera': 'int8'}), STANDARD))
    m = evaluate(f, t.set_index(pd.Index(list('wxyz'))), STANDARD)
    assert m.query_rows.tolist() == list('wxyz') and m.mAP == want.mAP
    with pytest.raises(ValueError, match='repeated labels'): evaluate(f, t.set_index(pd.Index([0, 0, 1, 2])), STANDARD)

def test_arrays_lists_of_types():
    t = people(1, 2, 1)
    want = retrieval_metrics(torch.eye(3), torch.eye(3), t, t, STANDARD)
    for f in (np.eye(3), np.eye(3, dtype=np.float16), np.eye(3, dtype=int)): same(want, retrieval_metrics(f, f, t, t, STANDARD))
    same(want, retrieval_metrics(torch.eye(3, requires_grad=True), torch.eye(3, dtype=torch.float64), t, t, STANDARD))

# ---- bootstrap -----------------------------------------------------------------------------------------------------------

def loop_bootstrap(gap, identity, picks_of):
    "One resample: `picks_of(n)` draws n positions; people then seeds"
    names = sorted(set(identity)); people_, seeds = picks_of(len(names)), picks_of(len(gap))
    values = [gap[s][i] for s in seeds for p in people_ for i in range(len(identity)) if identity[i] == names[p]]
    return np.mean(values)

def test_bootstrap_equals_a_loop_in_distribution():
    rng = np.random.default_rng(0)
    identity = [3, 3, 3, 8, 5, 5]
    a, b = rng.normal(size=(2, 3, 6)); a += .5
    d, low, high = paired_bootstrap(a, b, identity, n=20000)
    draws = [loop_bootstrap(a - b, identity, lambda n: rng.integers(n, size=n)) for _ in range(4000)]
    assert d == pytest.approx((a - b).mean())
    assert np.allclose([low, high], np.quantile(draws, [.025, .975]), atol=.06*(high - low))

def loop_two_way(y, level=.95):
    "Cells [seeds][people] -> components and interval, written from the equations"
    S,P = len(y),len(y[0])
    m = sum(sum(row) for row in y)/(S*P)
    persons = [sum(y[s][p] for s in range(S))/S for p in range(P)]
    seeds = [sum(y[s])/P for s in range(S)]
    mp = S*sum((v-m)**2 for v in persons)/(P-1)
    ms = P*sum((v-m)**2 for v in seeds)/(S-1)
    me = sum((y[s][p]-persons[p]-seeds[s]+m)**2 for s in range(S) for p in range(P))/((P-1)*(S-1))
    components = [max(0, (mp-me)/S)**.5, max(0, (ms-me)/P)**.5, me**.5]
    kept = ([(1, mp, P-1)] if mp>me else []) + ([(1, ms, S-1)] if ms>me else [])
    if len(kept)!=1: kept.append((1-len(kept), me, (P-1)*(S-1)))
    total = sum(c*v for c,v,_ in kept)
    nu = max(1, total**2/sum((c*v)**2/d for c,v,d in kept))
    return components, m, stats.t.ppf((1+level)/2, nu)*(total/(S*P))**.5

@pytest.mark.parametrize('people,seeds,rest', [(5, 0, 20), (0, 3, 20), (0, 0, 20), (9, 3, 1), (0, 4, .1), (7, 0, 0)])
def test_two_way_interval_equals_loops(people, seeds, rest):
    for k in range(20):
        rng = np.random.default_rng(k)
        y = rng.normal(1, people, 6) + rng.normal(0, seeds, (4, 1)) + rng.normal(0, rest, (4, 6))
        a,identity = np.repeat(y, 3, axis=1),np.repeat([4, 9, 2, 7, 30, 5], 3)
        components,mean,half = loop_two_way(y.tolist())
        np.testing.assert_allclose(variance_components(a, a*0, identity), components, atol=1e-6)
        np.testing.assert_allclose(two_way_interval(a, a*0, identity), (mean, mean-half, mean+half), atol=1e-9)
        shuffled = rng.permutation(18)
        np.testing.assert_allclose(two_way_interval(a[::-1][:,shuffled], a*0, identity[shuffled]),
                                   (mean, mean-half, mean+half), atol=1e-9)

def test_two_way_interval_holds_what_it_says_where_people_differ_in_queries():
    held,bootstrap = [],[]
    for k in range(400):
        rng = np.random.default_rng(k)
        identity = np.repeat(np.arange(30), rng.integers(1, 8, 30))
        y = (rng.normal(0, 5, 30) + rng.normal(0, 1, (5, 1)) + rng.normal(0, 20, (5, 30)))[:,identity]
        d = two_way_interval(y, y*0, identity)
        assert d.difference==pytest.approx(y.mean())
        held.append(d.low<=0<=d.high)
    assert .92 <= np.mean(held) <= .99

def test_two_way_interval_of_one_seed_is_students():
    rng = np.random.default_rng(3)
    y = rng.normal(2, 5, 25)
    expected = stats.ttest_1samp(y, 0).confidence_interval(.9)
    np.testing.assert_allclose(two_way_interval(y, y*0, np.arange(25), level=.9)[1:], expected)
    assert two_way_interval(y*0+1, y*0, np.arange(25))==(1, 1, 1)
    for f in two_way_interval,variance_components:
        with pytest.raises(ValueError, match='one person'): f([1, 2], [1, 1], [5, 5])
        with pytest.raises(ValueError, match='query_identity has 3'): f(y, y, [1, 2, 3])
        with pytest.raises(ValueError, match='nan'): f([1, np.nan], [1, 1], [5, 6])

def test_bootstrap_is_paired_and_antisymmetric():
    a, identity = np.random.default_rng(1).uniform(size=50), np.arange(50)//5
    assert paired_bootstrap(a, a, identity) == (0, 0, 0)
    up, down = paired_bootstrap(a + .1, a, identity), paired_bootstrap(a, a + .1, identity)
    assert up[1] == pytest.approx(.1) and (down[1], down[2]) == pytest.approx((-.1, -.1))
    with pytest.raises(ValueError, match='query_identity has 3'): paired_bootstrap(a, a, [1, 2, 3])

def test_light_imports():
    code = "import sys, ccreid.evaluation.metrics, ccreid.evaluation.statistics; print([m for m in ('fastai','torchvision','matplotlib','sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
