"Pseudo-labels, memories and batches of Sync-Person-Cloud against loops written from the equations"
import math
import numpy as np, pandas as pd, pytest, torch
from collections import Counter
from hypothesis import given, strategies as st
from ccreid.evaluation.neighbours import cluster
from ccreid.sync_person_cloud.batches import ClusterSampler, copies_of, deal_clusters
from ccreid.sync_person_cloud.instances import MEMORIES, InstanceMemory, OneMemory, memory_of
from ccreid.sync_person_cloud.memories import ClusterMemories, kl, self_identity_loss
from ccreid.sync_person_cloud.pseudo_labels import cluster_figures, half_list, jaccard_distance, pseudo_labels
from test_evaluation_neighbours import loop_encoding, loop_jaccard

def softmax(v, T=1.): e = [math.exp(x/T-max(v)/T) for x in v]; return [x/sum(e) for x in e]
def unit(v): n = math.sqrt(sum(x*x for x in v)) or 1.; return [x/n for x in v]
def slow_kl(a, b, T=.05, is_unit=True):
    if is_unit: a,b = unit(a),unit(b)
    return sum(p*(math.log(p)-math.log(q)) for p,q in zip(softmax(a, T), softmax(b, T)))
def cos(a, b): return sum(x*y for x,y in zip(unit(a), unit(b)))

def crowd(people=6, images=6, dim=6, noise=.6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(people, dim))[np.repeat(np.arange(people), images)]+noise*rng.normal(size=(people*images, dim))

# --- labels

@pytest.mark.parametrize('k1,k2', [(8,3), (30,6), (5,1)])
def test_the_distance_is_cluster_contrasts_with_its_longer_strict_lists(k1, k2):
    f = crowd(noise=.9, seed=k1)
    want = loop_jaccard(loop_encoding(f, k1, k2, round(k1/2)+1))
    assert np.abs(jaccard_distance(f, k1, k2).toarray()-want).max()<1e-5

def test_the_strict_lists_are_not_the_default_ones():
    assert half_list(30)==16
    f = crowd(noise=1.5, people=12, images=8, seed=3)
    assert np.abs(jaccard_distance(f, 12, 4).toarray()-loop_jaccard(loop_encoding(f, 12, 4, 6))).max()>1e-3

@given(st.integers(2, 30), st.integers(2, 12), st.integers(1, 6), st.sampled_from([.2, .4, .7]), st.integers(0, 10**6))
def test_labels_are_dbscan_on_that_distance(n, k1, k2, eps, seed):
    from sklearn.cluster import DBSCAN
    f = np.random.default_rng(seed).normal(size=(n, 3))
    d = jaccard_distance(f, k1, k2).toarray().astype(np.float64)
    if (np.abs(d-eps)<1e-6).any(): return
    want = DBSCAN(eps=eps, min_samples=4, metric='precomputed').fit_predict(d)
    assert pseudo_labels(f, eps, 4, k1, k2).tolist()==want.tolist()

@given(st.integers(2, 40), st.integers(0, 10**6), st.sampled_from([.1, .3, .4, .6, .9, .999]))
def test_pairs_that_are_dropped_early_change_no_label(n, seed, eps):
    f = np.random.default_rng(seed).normal(size=(n, 4))
    assert cluster(f, eps, 3, k1=8, k2=3).tolist()==cluster(jaccard_distance_all(f), eps, 3).tolist()

def jaccard_distance_all(f):
    from ccreid.evaluation.neighbours import jaccard_distance
    return jaccard_distance(f, 8, 3)

def test_wrong_input():
    f = torch.randn(10, 3); f[4,1] = float('nan')
    with pytest.raises(ValueError, match='1 of 10 rows hold nan'): pseudo_labels(f)
    with pytest.raises(ValueError, match='eps must lie in'): pseudo_labels(torch.randn(10, 3), eps=1.)
    with pytest.raises(ValueError, match='distance is jaccard or cosine'): pseudo_labels(f, distance='x')

@given(st.lists(st.tuples(st.integers(-1,4), st.integers(0,3), st.integers(-1,2)), min_size=1, max_size=24))
def test_figures_of_a_clustering_equal_loops(rows):
    z,y,c = (list(o) for o in zip(*rows))
    c = [-1 if v<0 else 10*who+v for v,who in zip(c, y)]               # outfits of a person's own
    got = cluster_figures(z, y, c)
    n = len(z); pairs = [(i,j) for i in range(n) for j in range(i)]
    found = [p for p in pairs if z[p[0]]>=0 and z[p[0]]==z[p[1]]]
    true = [p for p in pairs if y[p[0]]==y[p[1]]]
    both = set(found)&set(true)
    assert got['precision']==pytest.approx(len(both)/max(len(found), 1)) and got['recall']==pytest.approx(len(both)/max(len(true), 1))
    if both: assert got['F']==pytest.approx(2/(len(found)/len(both)+len(true)/len(both)))
    clusters = {v for v in z if v>=0}
    joined = {z[i] for i,j in pairs for i,j in ((i,j),) if z[i]>=0 and z[i]==z[j] and y[i]==y[j] and c[i]>=0 and c[j]>=0 and c[i]!=c[j]}
    assert got['joined']==pytest.approx(len(joined)/max(len(clusters), 1))
    assert got['clusters']==len(clusters) and got['outliers']==z.count(-1)

# --- memories

@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 6), st.sampled_from([(.05,True), (1.,False), (.3,True)]), st.integers(0, 10**6))
def test_self_identity_is_the_equation(G, n, D, how, seed):
    f = torch.randn(G, n, D, generator=torch.Generator().manual_seed(seed))
    v = f.tolist()
    want = sum(slow_kl(v[g][a], v[g][b], *how) for g in range(G) for a in range(n) for b in range(n))/(G*n)
    assert self_identity_loss(f, *how).item()==pytest.approx(want, rel=1e-3, abs=1e-4)
    assert self_identity_loss(f, *how)>=-1e-6

def test_self_identity_has_the_gradient_of_the_loop():
    torch.manual_seed(0)
    f,g = (torch.randn(2, 3, 5, dtype=torch.float32, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    self_identity_loss(f).backward()
    (sum(kl(g[i,a], g[i,b]) for i in range(2) for a in range(3) for b in range(3))/6).backward()
    assert torch.allclose(f.grad, g.grad, atol=1e-4) and f.grad.abs().max()>0

@given(st.integers(2, 5), st.integers(2, 12), st.integers(2, 5), st.integers(0, 10**6), st.booleans())
def test_loss_and_update_are_equations_6_to_8(N, B, D, seed, is_unit):
    g = torch.Generator().manual_seed(seed)
    m = ClusterMemories(N, D, momentum=.3, temperature=.05 if is_unit else 1., unit=is_unit)
    m.start(torch.randn(N, D, generator=g), torch.arange(N))
    m.average.rows = torch.nn.functional.normalize(torch.randn(N, D, generator=g))
    f,y = 2*torch.randn(B, D, generator=g),torch.randint(-1, N, (B,), generator=g)
    F,rows = f.tolist(),{k: getattr(m, k).rows.tolist() for k in ('average','hardest')}
    known = [i for i in range(B) if y[i]>=0]
    want = sum(-math.log(softmax([cos(F[i], r)/.2 for r in R])[y[i]]) for R in rows.values() for i in known)/max(len(known), 1)
    assert m.loss(f, y, .2).item()==pytest.approx(want, rel=1e-3, abs=1e-4)
    m.update(f, y)
    for c in range(N):
        mine = [i for i in known if y[i]==c]
        if not mine:
            assert m.average.rows[c].tolist()==pytest.approx(rows['average'][c]) and m.hardest.rows[c].tolist()==pytest.approx(rows['hardest'][c])
            continue
        mean = [sum(unit(F[i])[d] for i in mine)/len(mine) for d in range(D)]
        new = unit([.3*o+.7*v for o,v in zip(rows['average'][c], mean)])
        assert m.average.rows[c].tolist()==pytest.approx(new, abs=1e-4)
        old = rows['hardest'][c]
        size = lambda v: math.sqrt(sum(x*x for x in v))
        score = {i: slow_kl(F[i], old) if is_unit else slow_kl(F[i], [size(F[i])*o for o in old], 1., False) for i in mine}
        top = sorted(score.values())[-2:]
        if len(top)>1 and top[1]-top[0]<1e-4*(1+top[1]): continue        # a draw
        worst = unit(F[max(score, key=score.get)])
        assert m.hardest.rows[c].tolist()==pytest.approx(unit([.3*o+.7*v for o,v in zip(old, worst)]), abs=1e-4)

def test_start_is_one_uniform_draw_for_both():
    f,y = torch.eye(8),torch.tensor([0,0,0,0,1,1,-1,-1])
    seen = Counter()
    for seed in range(200):
        m = ClusterMemories(2, 8)
        m.start(f, y, torch.Generator().manual_seed(seed))
        assert torch.equal(m.average.rows, m.hardest.rows)
        seen.update(m.average.rows.argmax(1).tolist())
    assert set(seen)=={0,1,2,3,4,5} and all(30<=seen[i]<=75 for i in range(4))

@given(st.integers(2, 8), st.integers(1, 6), st.integers(0, 10**6))
def test_an_instance_memory_is_the_average_over_own_rows(N, B, seed):
    g = torch.Generator().manual_seed(seed)
    own = torch.randint(-1, 3, (N,), generator=g)
    m = InstanceMemory(N, 4); m.start(torch.randn(N, 4, generator=g), own)
    f,y = torch.randn(B, 4, generator=g),torch.randint(-1, 3, (B,), generator=g)
    rows = [(i, r) for i,r in enumerate(m.memory.rows.tolist()) if own[i]>=0]
    losses = []
    for q,c in zip(f.tolist(), y.tolist()):
        mine = [k for k,(i,_) in enumerate(rows) if own[i]==c]
        if c<0 or not mine: continue
        p = softmax([cos(q, r)/.3 for _,r in rows])
        losses.append(-sum(math.log(p[k]) for k in mine)/len(mine))
    assert m.loss(f, y, .3).item()==pytest.approx(sum(losses)/len(losses) if losses else 0., rel=1e-3, abs=1e-4)

@pytest.mark.parametrize('name', MEMORIES)
def test_every_memory_keeps_unit_rows_and_no_gradient(name):
    torch.manual_seed(0)
    m = memory_of(name, 3, 9, 6)
    y = torch.arange(9)%3
    m.start(torch.randn(9, 6), y, torch.Generator().manual_seed(0))
    f = torch.randn(9, 6, requires_grad=True)
    loss = m.loss(f, y); loss.backward()
    assert f.grad.abs().max()>0
    m.update(f, torch.arange(9) if name=='instance' else y)
    for k,v in m.state_dict().items():
        if k.endswith('rows'): assert torch.allclose(v.norm(dim=1), torch.ones(len(v)), atol=1e-5) and not v.requires_grad

def test_each_is_one_after_the_other():
    m = OneMemory(1, 2, .3, 'each'); m.start(torch.tensor([[1.,0]]), torch.tensor([0]))
    f = torch.tensor([[0.,1], [1,1], [1,0]]); row = [1.,0.]
    for v in f.tolist(): row = unit([.3*a+.7*b for a,b in zip(row, unit(v))])
    m.update(f, torch.zeros(3, dtype=torch.long))
    assert m.memory.rows[0].tolist()==pytest.approx(row, abs=1e-5)

# --- batches

@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 20), st.integers(0, 99))
def test_dealing_is_even_and_never_twice_in_a_hand(n, p, steps, seed):
    p = min(p, n)
    hands = deal_clusters(n, p, steps, np.random.default_rng(seed))
    assert hands.shape==(steps, p) and all(len(set(h))==p for h in hands)
    counts = [int((hands==c).sum()) for c in range(n)]
    assert max(counts)-min(counts)<=1

@given(st.lists(st.integers(-1, 5), min_size=1, max_size=30), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2), st.integers(0, 9))
def test_an_epoch_is_steps_of_clusters_of_groups(labels, P, K, S, e):
    rows = np.arange(len(labels)*S).reshape(len(labels), S)+100
    s = ClusterSampler(labels, P, K, 3, rows, seed=1)
    draws,clusters = s.epoch(e),len({c for c in labels if c>=0})
    assert len(draws)==len(s)==(3*min(P, clusters)*K*(1+S) if clusters>1 else 0)
    for b in range(0, len(draws), s.batch_size):
        batch = draws[b:b+s.batch_size]
        real = batch[::1+S]
        assert all(labels[d.row]>=0 for d in real)
        assert all(n==K for n in Counter(labels[d.row] for d in real).values())
        for k,d in enumerate(real):
            group = batch[k*(1+S):(k+1)*(1+S)]
            assert [g.row for g in group[1:]]==rows[d.row].tolist() and len({g.seed for g in group})==len({g.group for g in group})==1
    for c in {c for c in labels if c>=0}:                               # nobody twice where there are enough
        if labels.count(c)>=K and clusters>1:
            for b in range(0, len(draws), s.batch_size):
                mine = [d.row for d in draws[b:b+s.batch_size:1+S] if labels[d.row]==c]
                assert len(mine)==len(set(mine))

def test_copies_follow_their_source_however_the_table_lies():
    rng = np.random.default_rng(0)
    real = [dict(path=f'r{i}', generated_by='', source='', variant=-1) for i in range(5)]
    made = [dict(path=f'r{i}v{v}', generated_by='SPC', source=f'r{i}', variant=v) for i in range(4) for v in range(3)]
    table = pd.DataFrame([*real, *made]).iloc[rng.permutation(17)]
    slots,lacking = copies_of(table, 3)
    paths = table.path.tolist()
    for i,p in enumerate(paths):
        if 'v' in p: continue
        assert [paths[j] for j in slots[i]]==([p]*3 if p=='r4' else [f'{p}v{v}' for v in range(3)])
    assert lacking==1 and copies_of(table, 2)[0].shape==(17, 2)
