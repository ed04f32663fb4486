"Sets, distances and clusters against loops written from the definitions"
import subprocess, sys
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy import sparse
from sklearn.cluster import DBSCAN
from ccreid.evaluation.neighbours import jaccard_distance, cluster, rerank, min_sums, k_reciprocal, JaccardDistance
from ccreid.evaluation.reciprocal import nearest, encode

def unit(f): return f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12)

def loop_lists(f, k):
    "Neighbour lists, the image itself first"
    cos = unit(f) @ unit(f).T
    np.fill_diagonal(cos, np.inf)
    return [list(np.argsort(-row, kind='stable')[:k]) for row in cos]

def loop_sets(lists, k, half):
    "R*(i,k) one image at a time"
    def mutual(i, k): return {j for j in lists[i][:k] if i in lists[j][:k]}
    res = []
    for i in range(len(lists)):
        R = mutual(i, k); star = set(R)
        for c in R:
            S = mutual(c, half)
            if len(S & R) > 2/3*len(S): star |= S
        res.append(star)
    return res

def loop_encoding(f, k1, k2, half, scale=None):
    n, cos = len(f), unit(f) @ unit(f).T
    lists = loop_lists(f, n)
    V = np.zeros((n, n))
    for i, star in enumerate(loop_sets(lists, k1, half)):
        for j in star: V[i, j] = np.exp(-(2 - 2*cos[i, j])*(1 if scale is None else scale[i]))
        V[i] /= V[i].sum()
    return V if k2 == 1 else np.stack([np.mean([V[j] for j in lists[i][:k2]], axis=0) for i in range(n)])

def loop_jaccard(V): return np.array([[1 - np.minimum(a, b).sum()/np.maximum(a, b).sum() for b in V] for a in V])

def crowd(people=8, images=7, dim=6, noise=.6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(people, dim))[np.repeat(np.arange(people), images)] + noise*rng.normal(size=(people*images, dim))

@pytest.mark.parametrize('k1,k2,half', [(10, 3, None), (7, 1, None), (30, 6, None), (30, 6, 16), (200, 6, None), (2, 2, None), (1, 1, None)])
@pytest.mark.parametrize('noise', [.2, 1.5])
def test_jaccard_equals_dense_definition(k1, k2, half, noise):
    f = crowd(noise=noise, seed=k1)
    J = jaccard_distance(torch.from_numpy(f), k1, k2, half)
    want = loop_jaccard(loop_encoding(f, k1, k2, half or int(np.around(k1/2))))
    assert np.abs(J.toarray() - want).max() < 1e-5
    assert np.abs(1 - J.similarity.toarray() - want).max() < 1e-5
    assert (J.toarray() == J.toarray().T).all() and np.abs(J.toarray().diagonal()).max() < 1e-5

@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.integers(1, 12), st.integers(1, 8), st.integers(0, 10**6))
def test_jaccard_on_random_sizes(n, k1, k2, seed):
    f = np.random.default_rng(seed).normal(size=(n, 4))
    J = jaccard_distance(f, k1, k2)
    assert np.abs(J.toarray() - loop_jaccard(loop_encoding(f, min(k1, n), k2, int(np.around(k1/2)) or 1))).max() < 1e-5

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(0, 10**6), st.sampled_from([1, 7, 2**21]))
def test_min_sums_is_the_sum_of_minima(n, m, k, seed, pairs):
    rng = np.random.default_rng(seed)
    A, B = (sparse.csr_array(np.where(rng.random((r, k)) < .4, rng.random((r, k)), 0)) for r in (n, m))
    brute = lambda X, Y: np.array([[sum(min(x, y) for x, y in zip(a, b)) for b in Y.toarray()] for a in X.toarray()])
    assert np.allclose(min_sums(A, B, pairs=pairs).toarray(), brute(A, B), atol=1e-6)
    assert np.allclose(min_sums(A, A, pairs=pairs).toarray(), np.triu(brute(A, A)), atol=1e-6)

def test_nearest_does_not_depend_on_blocks_and_starts_with_itself():
    f = torch.from_numpy(crowd(seed=3)).float()
    f = torch.cat([f, f[:20]])                                              # duplicates: still the image itself at place 0
    for chunk_bytes in (8, 2**11, 2**26):
        cos, index = nearest(f, 9, chunk_bytes)
        assert (index[:, 0] == torch.arange(len(f))).all() and (cos.diff() <= 1e-6).all()
        assert all(len(set(row)) == 9 for row in index.tolist())
        want = torch.nn.functional.normalize(f) @ torch.nn.functional.normalize(f).T
        assert torch.allclose(cos[:, 1:], want.fill_diagonal_(2).topk(9).values[:, 1:], atol=1e-5)

def test_reciprocal_sets():
    f = crowd(noise=1.2)
    lists = np.array(loop_lists(f, 9))
    R = k_reciprocal(lists, 6).toarray()
    for i in range(len(f)): assert set(np.flatnonzero(R[i])) == {j for j in lists[i][:6] if i in lists[j][:6]}

def test_order_of_images_does_not_matter():
    f = crowd(noise=1.)
    order = np.random.default_rng(2).permutation(len(f))
    assert np.allclose(jaccard_distance(f[order], 10, 3).toarray(), jaccard_distance(f, 10, 3).toarray()[order][:, order], atol=1e-6)

@pytest.mark.parametrize('eps', [.3, .5, .8])
def test_clusters_equal_dense_dbscan(eps):
    f = np.concatenate([crowd(noise=.9, seed=5), np.tile([[9., 0, 0, 0, 0, 0]], (6, 1))])   # and six copies of one image
    J = jaccard_distance(f, 10, 3)
    want = DBSCAN(eps=eps, min_samples=4, metric='precomputed').fit_predict(J.toarray().astype(np.float64))
    got = cluster(J, eps, 4)
    assert got.dtype == torch.int64 and got.tolist() == want.tolist()
    assert got[-6:].unique().numel() == 1 and got[-1] >= 0                  # distance 0 is a neighbour
    assert cluster(f, eps, 4, k1=10, k2=3).tolist() == want.tolist()
    graph = J.neighbours(eps)
    dense = J.toarray()
    assert graph.nnz == (dense <= eps).sum() and (graph.data > 0).all()

def test_rerank_equals_loops():
    f = crowd(noise=.8, people=6, images=6); q, g = f[::4], np.delete(f, np.s_[::4], axis=0)
    both = np.concatenate([q, g])
    d = 2 - 2*unit(both) @ unit(both).T
    largest = d.max(1)
    V = loop_encoding(both, 9, 3, 5, scale=1/largest)                        # k1=8 neighbours besides itself, half 4 besides itself
    want = .7*loop_jaccard(V)[:len(q), len(q):] + .3*(d/largest[:, None])[:len(q), len(q):]
    got = rerank(torch.from_numpy(q), torch.from_numpy(g), k1=8, k2=3, lambda_value=.3)
    assert got.dtype == torch.float32 and np.abs(got.numpy() - want).max() < 1e-5
    assert np.abs(rerank(q, g, 8, 3, chunk_bytes=100).numpy() - want).max() < 1e-5

def test_bad_input():
    f = torch.randn(10, 3)
    bad = f.clone(); bad[4, 1] = float('nan')
    for call in (lambda: jaccard_distance(bad), lambda: cluster(bad), lambda: rerank(bad, f)):
        with pytest.raises(ValueError, match='1 of 10 rows hold nan or infinite values, first row 4'): call()
    with pytest.raises(ValueError, match='matrix'): jaccard_distance(torch.ones(3))
    with pytest.raises(ValueError, match='eps'): jaccard_distance(f).neighbours(1.)
    assert cluster(f[:1]).tolist() == [-1]                                   # one image is an outlier, not an error
    assert cluster(torch.ones(5, 3), min_samples=4).tolist() == [0]*5
    assert jaccard_distance(f.half(), 4, 2).toarray().shape == (10, 10)

@pytest.mark.gpu
def test_gpu_equals_cpu():
    f = torch.from_numpy(crowd(noise=.9)).float()
    assert np.abs(jaccard_distance(f.cuda(), 10, 3).toarray() - jaccard_distance(f, 10, 3).toarray()).max() < 1e-5
    assert torch.allclose(rerank(f[:9].cuda(), f[9:].cuda(), 8, 3), rerank(f[:9], f[9:], 8, 3), atol=1e-5)

def test_light_import():
    code = "import sys, ccreid.evaluation.neighbours; print([m for m in ('fastai','torchvision','matplotlib','sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
