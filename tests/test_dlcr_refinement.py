"DLCR's refinement: Algorithm 1 and the released scores against loops, the ranking, tracklets, junk, draws; the command line; rows that share a training"
import json, warnings
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
import ccreid.compat
from hypothesis import given, settings, strategies as st
from ccreid import experiments
from ccreid.data.batches import Preprocessing, reid_dataloaders
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import DataError, ReIDDataset
from ccreid.dlcr.additions import REFINE
from ccreid.dlcr.evaluating import evaluate_refined, query_variants, read_query_variants
from ccreid.dlcr.refinement import best_images, mean_feature, persons, refine, refine_lists, refine_scores, reranked
from ccreid.evaluation.metrics import evaluate, metrics_from_distances
from ccreid.evaluation.neighbours import rerank
from ccreid.evaluation.protocols import CLOTHES_CHANGING, STANDARD, Protocol
from ccreid.evaluations import Features, evaluate_as
from ccreid.experiments import Sets, data_hash, reproduce
from ccreid.generation.expansion import expand
from ccreid.registry import All, Chain, Evaluation, Images, Row, evaluated, forget, register
from ccreid.results import ChainResults, Results
from ccreid.results_tables import compare_rows, results_table
from ccreid.training.asking import compared_table
from ccreid.training.export import export_reid
from ccreid.training.learner import reid_learner

# --- the two algorithms as loops over similarities ---

def people_of(identity): return [i if i>=0 else ('distractor', g) for g,i in enumerate(identity)]

def top(similar, m, junk=()):
    "Line 2 and 3: positions, most similar first, of equal ones the first of the gallery"
    return sorted((g for g in range(len(similar)) if g not in junk), key=lambda g: (-similar[g], g))[:m]

def algorithm_1(rows, identity, m, junk=()):
    who, score = people_of(identity), {}
    for k,similar in enumerate(rows):
        kept = top(similar, m, junk)
        most = max((similar[g] for g in kept), default=0)
        if k==0: score = {who[g]: 0. for g in kept}                                      # S
        for g in kept:
            if who[g] in score and most>0: score[who[g]] += similar[g]/most              # lines 4 and 6; without a positive maximum: no vote
    return score

def released(rows, identity, m, junk=()):
    "u = 1+cos; of a person in a list the best alone; the query's own list counts as the start and as a list"
    who, score = people_of(identity), {}
    for k,similar in enumerate(rows):
        best = {}
        for g in top(similar, m, junk): best.setdefault(who[g], 1+similar[g])
        if k==0: score = dict(best)
        most = max(best.values(), default=0)
        for p,u in best.items():
            if p in score and most>0: score[p] += u*u/most
    return score

LOOPS = dict(paper=algorithm_1, released=released)
coarse = st.sampled_from([-1,-.5,0,.25,.5,.75,1])

@st.composite
def cases(draw):
    "Similarities with many ties, distractors, lists without anything similar, any number of variants"
    n = draw(st.integers(1,7))
    identity = draw(st.lists(st.sampled_from([0,0,1,1,2,-2]), min_size=n, max_size=n))
    queries = [draw(st.lists(st.lists(coarse, min_size=n, max_size=n), min_size=1, max_size=4)) for _ in range(draw(st.integers(1,3)))]
    junk = [draw(st.sets(st.integers(0,n-1))) if draw(st.booleans()) else set() for _ in queries]
    return identity, queries, junk, draw(st.integers(1,8))

def refined(case, rule):
    "The vectorised way, with the variants in a mixed order"
    identity, queries, junk, m = case
    n, own = len(identity), [q[0] for q in queries]
    flat = [(i,v) for i,q in enumerate(queries) for v in q[1:]]
    flat = flat[::2]+flat[1::2]
    hide = lambda rows,whose: torch.tensor([[-torch.inf if g in junk[w] else s for g,s in enumerate(r)] for r,w in zip(rows, whose)]).view(-1, n)
    lists = best_images(hide(own, range(len(own))), m)
    others = best_images(hide([v for _,v in flat], [i for i,_ in flat]), m)
    return refine_lists(lists, others, torch.tensor([i for i,_ in flat], dtype=torch.long), identity, rule)

@given(cases(), st.sampled_from(['paper','released']))
def test_scores_are_those_of_the_loops(case, rule):
    identity, queries, junk, m = case
    r, who = refined(case, rule), people_of(identity)
    for q,rows in enumerate(queries):
        truth = LOOPS[rule](rows, identity, m, junk[q])
        there = r.similar[q]>-torch.inf
        assert [who[g] for g in r.image[q][there].tolist()]==[who[g] for g in top(rows[0], m, junk[q])]
        assert r.image[q][there].tolist()==top(rows[0], m, junk[q])
        for g,s in zip(r.image[q][there].tolist(), r.score[q][there].tolist()): assert s==pytest.approx(truth[who[g]], abs=1e-6)
        assert r.variants[q]==len(rows)-1
        heard = sum(any(who[g] in truth for g in top(v, m, junk[q])) for v in rows[1:])
        assert r.heard[q]==heard
        if truth:
            first = {who[g]: rows[0][g] for g in reversed(top(rows[0], m, junk[q]))}
            best = max(round(s, 6) for s in truth.values())
            winners = {p for p,s in truth.items() if round(s, 6)==best}
            p = int(r.best[q])
            assert (p if p>=0 else ('distractor', -1-p)) in winners

def ranked_by_hand(rows, identity, m, junk, ranking, rule):
    "Gallery positions in groups: what is tied shares one"
    who, score = people_of(identity), LOOPS[rule](rows, identity, m, junk)
    first, similar = top(rows[0], m, junk), rows[0]
    def key(g):
        if ranking=='retrieved': return (0, -round(score[who[g]], 6), -similar[g]) if g in first else (1, 0, -similar[g])
        if who[g] not in score: return (1, 0, 0, -similar[g])
        return (0, -round(score[who[g]], 6), -max(similar[f] for f in first if who[f]==who[g]), -similar[g])
    return {g: key(g) for g in range(len(identity))}

@given(cases(), st.sampled_from(['paper','released']), st.sampled_from(['retrieved','identities']))
def test_the_full_ranking(case, rule, ranking):
    "Any two gallery images stand as the words say, or are tied"
    identity, queries, junk, m = case
    r = refined(case, rule)
    similar = torch.tensor([q[0] for q in queries])
    d = r.distances(similar, ranking=ranking)
    torch.testing.assert_close(torch.cat([r.distances(similar[i:i+1], slice(i, i+1), ranking) for i in range(len(d))]), d)
    for q,rows in enumerate(queries):
        key = ranked_by_hand(rows, identity, m, junk[q], ranking, rule)
        for a in key:
            for b in key: assert np.sign(d[q,a]-d[q,b])==(key[a]>key[b])-(key[a]<key[b]), (a, b, key[a], key[b], d[q])

# --- features ---

def cosines(f, g): return [[float(a.double()@b.double()/(a.double().norm()*b.double().norm())) for b in g] for a in f]

@pytest.mark.parametrize('rule', ['paper','released'])
@pytest.mark.parametrize('n,l,m', [(40,6,5), (40,0,5), (3,2,5), (40,6,1), (40,1,40)])
def test_one_query_and_many_from_features(rule, n, l, m):
    g = torch.Generator().manual_seed(n+l+m)
    gallery, identity = torch.randn(n, 8, generator=g), torch.randint(5, (n,), generator=g).tolist()
    query, variants = torch.randn(9, 8, generator=g)*3, torch.randn(9, l, 8, generator=g)
    many = refine(query, variants, gallery, identity, m, rule)
    blocks = refine(query, variants, gallery, identity, m, rule, chunk_bytes=1)
    flat = refine(query, variants.flatten(0, 1), gallery, torch.tensor(identity), m, rule, owner=np.repeat(np.arange(9), l), similarity=lambda f,g: f@g.T)
    for i in range(9):
        truth = LOOPS[rule](cosines([query[i], *variants[i]], gallery), identity, m)
        one = refine_scores(query[i], variants[i], gallery, identity, m, rule)
        assert one==pytest.approx(truth, rel=1e-5) and all(isinstance(k, int) and isinstance(v, float) for k,v in one.items())
        for r in (many, blocks, flat): assert {p: s for p,s in zip(r.person[i].tolist(), r.score[i].tolist())}==pytest.approx(truth, rel=1e-5)

def test_distractors_have_no_name_and_do_not_add_up():
    gallery = torch.tensor([[1.,0],[1,.1],[1,.2],[0,1]])
    scores = refine_scores(torch.tensor([1.,0]), torch.tensor([[1.,0]]), gallery, [-2,-2,3,3], 3)
    assert list(scores)==[3] and scores[3]==pytest.approx(2/1.04**.5)
    assert persons([-2,5,-2,-1]).tolist()==[-1,5,-3,-4]
    assert refine(torch.tensor([[1.,0]]), torch.zeros(1,0,2), gallery, [-2,-2,3,3], 3).best.item()==-1

def test_lists_that_say_nothing_are_counted_and_leave_the_rest_alone():
    x = torch.eye(4)
    r = refine(x[:1], torch.stack([x[3:], -x[:1]], 1), x[:3], [0,1,2], top_m=1)              # the variant finds nothing near; the opposite
    assert r.score.tolist()==[[1.]] and r.best.item()==0
    r = refine(torch.cat([x[:1]]*2), x[1:2], x[:3], [0,1,2], top_m=1, owner=[1])
    assert r.variants.tolist()==[0,1] and r.heard.tolist()==[0,0] and r.score.flatten().tolist()==[1.,1.]
    assert repr(r)=='Refined: lists of 1 for 2 queries; 1 without variants, 1 whose variants found nobody of them' and len(repr(r))<=110

@pytest.mark.parametrize('change,words', [(dict(rule='x'), "'paper' or 'released'"), (dict(top_m=0), 'at least 1'), (dict(owner=[0,2]), 'from 0 to 1'), (dict(owner=[0]), 'of each of 2'), (dict(owner=[-1,0]), 'from 0 to 1'),
    (dict(gallery_identity=[0]), '3 gallery images and 1 identities'), (dict(query=torch.zeros(2,3)), r'query must be a matrix \[N,4\]'), (dict(variants=torch.zeros(2,3)), r'variants must be a matrix'),
    (dict(owner=None), r'\[2,l,D\]'), (dict(gallery=torch.zeros(0,4), gallery_identity=[]), 'is empty'), (dict(query=torch.full((2,4), torch.nan)), 'nan'), (dict(query=torch.zeros(2,4, dtype=torch.bool)), 'real numbers')])
def test_what_does_not_fit_is_one_sentence(change, words):
    right = dict(query=torch.ones(2,4), variants=torch.ones(2,4), gallery=torch.ones(3,4), gallery_identity=[0,1,2], owner=[0,1])
    with pytest.raises(ValueError, match=words) as e: refine(**{**right, **change})
    assert '\n' not in str(e.value)

def test_the_mean_feature():
    g = torch.Generator().manual_seed(0)
    q, v, owner = torch.randn(3, 5, generator=g), torch.randn(4, 5, generator=g), [2,0,2,2]
    got = mean_feature(q, v, owner)
    for i in range(3):
        some = [q[i]/q[i].norm()]+[f/f.norm() for f,o in zip(v, owner) if o==i]
        mean = sum(some)/len(some)
        torch.testing.assert_close(got[i], mean/mean.norm())

def test_re_ranking_is_done_list_by_list():
    "The k-th variants of all queries are re-ranked together, as the queries are"
    g = torch.Generator().manual_seed(1)
    gallery, identity = torch.randn(30, 6, generator=g), torch.randint(4, (30,), generator=g)
    query, variants = torch.randn(5, 6, generator=g), torch.randn(5, 2, 6, generator=g)
    r = refine(query, variants, gallery, identity, similarity=reranked)
    rows = [1-rerank(f, gallery) for f in (query, variants[:,0], variants[:,1])]
    for i in range(5):
        truth = algorithm_1([x[i].tolist() for x in rows], identity.tolist(), 5)
        assert dict(zip(r.person[i].tolist(), r.score[i].tolist()))==pytest.approx(truth, rel=1e-5)

# --- protocols ---

def toy_set(seed=0, tracklets=False):
    "Queries, gallery and variants of a toy set, and a function from a table to random features by path"
    rng, rows = np.random.default_rng(seed), []
    for split,n in (('query',10), ('gallery',24)):
        for i in range(n):
            r = dict(dataset='toy', path=f'/{split}{i}.jpg', identity=int(rng.integers(4)), clothes=int(rng.integers(3)), camera=int(rng.integers(2)), split=split)
            if tracklets: r |= dict(identity=(i//2)%4, tracklet=i//2, frame=i%2)
            rows.append(r)
    table = pd.DataFrame(rows)
    table['clothes'] += 3*table.identity
    made = [dict(r, path=f"{r['path']}_{v}", clothes=-1, source=r['path'], variant=v) for r in rows if r['split']=='query' and r['path']!='/query3.jpg' for v in (0,2,5)]
    feature = {p: torch.from_numpy(rng.standard_normal(12)).float() for p in [*table.path, *[r['path'] for r in made]]}
    return SimpleNamespace(samples=table, protocols={}, name='toy'), pd.DataFrame(made), lambda t: torch.stack([feature[p] for p in t.path])

def metrics_by_hand(d, query, gallery, protocol):
    "Hits and average precisions of queries that have a positive; ties count against"
    junk = protocol.junk(query, gallery)
    hits, aps = [], []
    for i in range(len(query)):
        right = [g for g in range(len(gallery)) if not junk[i,g] and gallery.identity.iloc[g]==query.identity.iloc[i]]
        wrong = [g for g in range(len(gallery)) if not junk[i,g] and gallery.identity.iloc[g]!=query.identity.iloc[i]]
        if not right: continue
        places = [1+k+sum(float(d[i,w])<=float(d[i,g])+1e-6 for w in wrong) for k,g in enumerate(sorted(right, key=lambda g: float(d[i,g])))]
        hits.append(places[0]==1); aps.append(np.mean([(k+1)/p for k,p in enumerate(places)]))
    return np.mean(hits), np.mean(aps)

@pytest.mark.parametrize('junk', ['after','before'])
@pytest.mark.parametrize('protocol', [STANDARD, CLOTHES_CHANGING])
@pytest.mark.parametrize('rule', ['paper','released'])
def test_evaluating_equals_the_loops(junk, protocol, rule):
    dataset, made, features = toy_set()
    query, gallery = protocol.select(dataset.samples)[0]
    results,table,said = evaluate_refined(features, dataset, {'p': protocol}, made, variants=2, top_m=4, rule=rule, junk=junk)
    g, mask, d = features(gallery), protocol.junk(query, gallery), []
    for i in range(len(query)):
        some = made[(made.source==query.path.iloc[i]) & (made.variant<5)]
        rows = cosines([*features(query.iloc[i:i+1]), *(features(some) if len(some) else [])], g)
        hide = set(mask[i].nonzero()[:,0].tolist()) if junk=='before' else set()
        key = ranked_by_hand(rows, gallery.identity.tolist(), 4, hide, 'retrieved', rule)
        order = sorted(set(key.values()))
        d.append([order.index(key[k]) for k in range(len(gallery))])
    hit, ap = metrics_by_hand(torch.tensor(d), query, gallery, protocol)
    assert (results['p'].rank(1), results['p'].mAP)==(pytest.approx(hit), pytest.approx(ap))
    assert said.startswith('up to 2 variants of 10 queries; 1 without any, ')

def test_tracklets_pool_variants_as_they_pool_frames():
    dataset, made, features = toy_set(tracklets=True)
    protocol = Protocol('tracks', unit='tracklet', seen_by='')
    query = protocol.select(dataset.samples)[0][0]
    f,owner = query_variants(features, made, query, 2, protocol.roles(dataset.samples)[0])
    assert len(query)==5 and owner.tolist()==[0,0,1,1,2,2,3,3,4,4]
    for k,(t,v) in enumerate((t,v) for t in range(5) for v in (0,2)):
        frames = [p for p in (f'/query{2*t}.jpg', f'/query{2*t+1}.jpg') if p!='/query3.jpg']     # one frame lost its variants
        rows = made[made.source.isin(frames) & (made.variant==v)]
        assert len(rows)==len(frames)
        torch.testing.assert_close(f[k], features(rows).mean(0))
    results,_,said = evaluate_refined(features, dataset, {'tracks': protocol}, made)
    assert results['tracks'].queries==5 and said.startswith('up to 6 variants of 5 queries; 0 without any')

def test_draws_are_averaged_and_every_way_has_the_same_queries():
    dataset, made, features = toy_set()
    protocol = Protocol('single', shots='single', draws=3, seen_by='')
    plain = evaluate(features(dataset.samples), dataset.samples, protocol)
    for kw in ({}, dict(rule='mean'), dict(variants=0), dict(ranking='identities'), dict(rerank=True), dict(rule='mean', rerank=True)):
        m = evaluate_refined(features, dataset, {'single': protocol}, made, **kw)[0]['single']
        assert (m.draws, m.queries)==(3, plain.queries)
    same = evaluate_refined(features, dataset, {'single': protocol}, None, variants=0, top_m=1)[0]['single']
    assert (same.mAP, same.rank(1))==(pytest.approx(plain.mAP), pytest.approx(plain.rank(1)))

def test_distances_may_be_given_row_by_row():
    dataset, _, features = toy_set()
    query, gallery = STANDARD.select(dataset.samples)[0]
    d = torch.rand(len(query), len(gallery), generator=torch.Generator().manual_seed(0))
    asked = []
    def rows(i, j): asked.append((i, j)); return d[i:j]
    assert metrics_from_distances(rows, query, gallery, STANDARD, chunk_bytes=1).as_dict()==metrics_from_distances(d, query, gallery, STANDARD).as_dict()
    assert asked==[(i, i+1) for i in range(10)]
    with pytest.raises(ValueError, match=r'distances\[0,0\] is nan'): metrics_from_distances(lambda i,j: d[i:j]*torch.nan, query, gallery, STANDARD)
    with pytest.raises(ValueError, match='nothing to compare'): metrics_from_distances(rows, query.iloc[:0], gallery, STANDARD)

# --- a network, the command line, rows ---

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp('refine')
    w = MannequinWorld(identities=(4,0,5), outfits=2, cameras=3, images=2, size=(64,32), seed=1)
    dataset = w.write(root/'prcc', layout='prcc', workers=1)
    def edit(images, rows, variants, seeds): return [w.redress(r['path'], ('red T-shirt','green coat')[v], s).image for r,v,s in zip(rows, variants, seeds)]
    made = expand(dataset.query, edit, root/'queries'/'images', variants=2, progress=False)
    dls = reid_dataloaders(dataset, Preprocessing((64,32)), 3, 2, num_workers=0, device='cpu')
    learn = reid_learner(dls, 'resnet_mini')
    return SimpleNamespace(root=root, dataset=dataset, folder=root/'queries', learn=learn, weights=export_reid(learn, root/'w.safetensors'))

def test_variants_keep_their_split_and_are_never_trained_on(world):
    made = read_query_variants(world.folder, world.dataset)
    assert set(made.split)=={'query'} and len(made)==2*len(world.dataset.query) and (made.clothes==-1).all()
    from ccreid.generation.jobs import add_samples
    with pytest.raises(DataError, match='of split query'): add_samples(world.dataset, made)
    with pytest.raises(FileNotFoundError, match='no folder'): read_query_variants(world.root/'x', world.dataset)
    (world.root/'empty').mkdir(exist_ok=True)
    with pytest.raises(DataError, match='no job.json'): read_query_variants(world.root/'empty', world.dataset)
    only = ReIDDataset('t', world.root, world.dataset.train)
    with pytest.raises(DataError, match='no query to have variants of'): read_query_variants(world.folder, only)

@pytest.fixture
def chain():
    "A chain that has registered refinement, or one that is registered here"
    if 'refine' in All('evaluations'): yield; return
    register(Chain('toy-refine', evaluations={'refine': REFINE}))
    yield
    forget('toy-refine')

def test_the_command_line(world, ccreid, chain, tmp_path):
    data = 'evaluate','--data','prcc','--root',world.root/'prcc'
    net = *data,'--weights',world.weights,'--device','cpu'
    code,out,err = ccreid(*net, '--refine', world.folder, '--json')
    assert code==0 and 'refine: up to 6 variants of' in err
    got = json.loads(out)
    assert [k for k in got if '+' in k]==[f'{k} + refine' for k in got if '+' not in k] and got
    direct,_,said = evaluate_refined(Features(world.learn), world.dataset, {'clothes-changing': world.dataset.protocols['clothes-changing']}, world.folder)
    assert got['clothes-changing + refine']['mAP']==pytest.approx(direct['clothes-changing'].mAP, abs=1e-6)
    code,out,_ = ccreid(*net, '--protocol', 'clothes-changing', '--refine', world.folder, '--refine-variants', '1', '--refine-top-m', '2', '--refine-rule', 'released', '--refine-junk', 'before')
    assert code==0 and 'refine: up to 1 variants of 10 queries' in out and 'clothes-changing + refine: rank-1' in out
    # features of other code: those of the variants must be in the file too
    table, made = compared_table(world.dataset), read_query_variants(world.folder, world.dataset)
    f = Features(world.learn)
    every = pd.concat([table, made])
    np.savez(tmp_path/'f.npz', paths=np.array(every.path.tolist()), features=f(every).numpy())
    code,out,_ = ccreid(*data, '--features', tmp_path/'f.npz', '--protocol', 'clothes-changing', '--refine', world.folder, '--json')
    assert code==0 and json.loads(out)['clothes-changing + refine']['mAP']==pytest.approx(direct['clothes-changing'].mAP, abs=1e-6)
    np.savez(tmp_path/'g.npz', paths=np.array(table.path.tolist()), features=f(table).numpy())
    for words,said in ((('--features', tmp_path/'g.npz', '--refine', world.folder), 'no feature for'), (('--weights', world.weights, '--device', 'cpu', '--refine', tmp_path/'x'), 'no folder'),
                       (('--weights', world.weights, '--device', 'cpu', '--refine-top-m', '3'), '--refine-top-m is for --refine FOLDER'), (('--weights', world.weights, '--refine', 'x', '--refine-top-m', '0'), 'at least 1'),
                       (('--weights', world.weights, '--refine', 'x', '--refine-rule', 'y'), 'one of paper, released, mean')):
        code,_,err = ccreid(*data, *words)
        assert code==2 and said in err and len(err.strip().split('\n'))==1, err
    assert '--refine-ranking' in ccreid('evaluate', '--help')[1]

SMALL = dict(backbone='resnet_mini', pretrained=False, size=(64,32), identities=3, images=2, epochs=1)
TRAINED = Row('trained', 'identity', SMALL, seeds=(0,1))
ROWS = (TRAINED, evaluated(TRAINED, '+ refinement', 'toy', dict(top_m=3)), evaluated(TRAINED, 'voting alone', 'toy', dict(variants=0), base='+ refinement'), Row('other', 'identity', dict(SMALL, lr=1e-3), seeds=(0,)))

@pytest.fixture
def rows():
    images = {'toy-queries': Images('variants of queries', job='ccreid.hsgl.generating:make_coarse', split='query')}
    way = Evaluation('toy', 'ccreid.dlcr.evaluating:evaluate_refined', 'toy-queries', REFINE.options)
    yield register(Chain('toy', images=images, evaluations={'toy': way}, rows=ROWS))
    forget('toy')

def own(world, path, **kw):
    lines = []
    return reproduce('toy', path, world.root, device='cpu', data=world.dataset, data_name='prcc', generated={'toy-queries': world.folder}, log=lines.append, **kw), lines

def test_rows_that_share_a_training(world, rows, tmp_path, monkeypatch):
    "One training for three rows; each has its own figures; a row that is asked for later is worked out without touching the others"
    runs = []
    monkeypatch.setattr(experiments, 'run_row', lambda *args, **kw: runs.append(args[2]) or real(*args, **kw)) if (real := experiments.run_row) else None
    results,_ = own(world, tmp_path/'toy.json', seeds=(0,))
    assert runs==[0,0] and [r['row'] for r in results.records]==['trained','other']                  # two networks, four rows
    record = results.records[0]
    assert set(record['evaluated'])=={'+ refinement','voting alone'} and record['evaluated']['voting alone']['given']==dict(variants=0)
    assert 'up to 6 variants of' in record['evaluated']['+ refinement']['said']
    of = {row.name: results.of(row) for row in results.rows}
    assert {k: len(v) for k,v in of.items()}=={'trained':1,'+ refinement':1,'voting alone':1,'other':1}
    assert len({frozenset(v[0]['protocols']) for v in of.values()})==1 and of['+ refinement'][0]['row']=='+ refinement'
    assert of['+ refinement'][0]['protocols']!=of['trained'][0]['protocols']
    table = results_table(results, 'core')
    assert table.seeds.tolist()==[1,1,1,1] and 'clothes-changing R1 difference' in table and not any('+ refinement' in c for c in table.columns)
    assert compare_rows(results, [('+ refinement','trained')]).seeds.tolist()==[1]
    again,_ = own(world, tmp_path/'toy.json', seeds=(0,), rows=['voting alone'])
    assert runs==[0,0] and again.records==results.records                                            # nothing left to do
    own(world, tmp_path/'toy.json', seeds=(1,), rows=['voting alone'])
    assert runs==[0,0,1] and [r['seed'] for r in ChainResults(tmp_path/'toy.json', 'toy').on('prcc').of(ROWS[0].on('prcc'))]==[0,1]

def test_records_of_before_are_what_they_were_and_may_gain_an_evaluation(world, rows, tmp_path):
    "A record without evaluations is not touched by reading; run again it gains them, if its own figures are the same"
    plain,_ = own(world, tmp_path/'a.json', seeds=(0,), rows=['trained'])
    full = plain.records[0]
    bare = {k: v for k,v in full.items() if k!='evaluated'}
    theirs = {k for e in full['evaluated'].values() for k in e['protocols'].values()}
    bare['protocols'] = {k: p for k,p in full['protocols'].items() if k not in theirs}
    place = ChainResults(tmp_path/'b.json', 'toy').on('prcc', full['world'])
    row, view = (r.on('prcc') for r in ROWS[:2])
    assert place.parts['core'].add(dict(bare)) and place.of(row)==[bare] and place.of(view)==[]
    assert place.missing([(row,0), (view,0)])==[(view,0)]
    assert place.add(view, dict(full)) and place.missing([(row,0), (view,0)])==[] and len(place.records)==1
    assert place.of(row)[0]['protocols']==bare['protocols'] and place.of(view)[0]['protocols']
    other = dict(full, protocols={k: dict(p, mAP=.123) for k,p in full['protocols'].items()})
    with pytest.warns(UserWarning, match='other figures'): assert not place.add(row, other)
    assert view.trained.recipe.hash==row.recipe.hash==view.recipe.hash
    elsewhere = evaluated(TRAINED, '+ refinement', 'toy', dict(top_m=4)).on('prcc')                  # other settings: not the same row
    assert place.of(elsewhere)==[] and place.missing([(elsewhere,0)])==[(elsewhere,0)]

def test_a_row_and_its_evaluation_are_claimed_together(rows, tmp_path):
    place = ChainResults(tmp_path/'c.json', 'toy').on('prcc', 'w')
    runs = [(r.on('prcc'), 0) for r in ROWS[:3]]
    with place.claim(runs) as mine:
        assert mine[0].name=='trained'
        with place.claim(runs) as other: assert other is None

def test_images_of_the_test_are_not_trained_on_and_count_for_the_data(world, rows, tmp_path):
    sets = Sets(world.dataset, tmp_path, 'prcc', {'toy-queries': str(world.folder)})
    assert sets.folder_of('toy-queries')==str(world.folder)
    with pytest.raises(ValueError, match='nothing is trained on them'): sets['toy-queries']
    assert data_hash(world.dataset)!=data_hash(world.dataset, folders=[world.folder])
    with pytest.raises(ValueError, match='Rows want toy-queries images'): reproduce('toy', tmp_path/'d.json', tmp_path, data=world.dataset, rows=['voting alone'], seeds=(0,))

def test_on_a_benchmark_the_variants_are_made_when_they_are_wanted(world, tmp_path, monkeypatch):
    "The miniature of a kind of the test, in the folder of the benchmark; the evaluations work on the learner"
    made = []
    def miniature(dataset, folder):
        made.append(folder)
        return expand(dataset.query, lambda images,rows,variants,seeds: [im.transpose(0) for im in images], folder, variants=2, progress=False)
    way = Evaluation('toy', 'ccreid.dlcr.evaluating:evaluate_refined', 'toy-queries', REFINE.options)
    register(Chain('toy', images={'toy-queries': Images('variants', miniature, split='query')}, evaluations={'toy': way}, rows=ROWS))
    try:
        place, seen = experiments._Benchmarks(tmp_path, ChainResults(tmp_path/'e.json', 'toy')), []
        place.sets['mannequins'] = Sets(world.dataset, tmp_path, 'mannequins')
        monkeypatch.setattr(experiments, 'run_row', lambda r, sets, seed, device, by_epoch, **kw: seen.append((r.hash, kw)))
        for row in ROWS: place.run(row, 0, 'cpu')
        assert [list(kw.get('evaluations', {})) for _,kw in seen]==[['+ refinement','voting alone']]*3+[[]] and made==[tmp_path/'mannequins-toy-queries']
        results,table,about = seen[0][1]['evaluations']['+ refinement'](world.learn)
        assert about['given']==dict(top_m=3) and 'of 20 queries; 0 without any' in about['said'] and set(results)==set(seen[0][1]['evaluations']['voting alone'](world.learn)[0])
    finally: forget('toy')

def test_chains_with_rows_that_evaluate_nothing_are_refused():
    stray = evaluated(Row('gone', 'identity'), 'view', 'toy', base='view')
    with pytest.raises(ValueError, match="row 'view' evaluates 'gone', which is none"): register(Chain('toy', rows=(stray,)))
    few = Row('few', 'identity', seeds=(0,))
    with pytest.raises(ValueError, match='not trained with all its seeds'): register(Chain('toy', rows=(few, evaluated(few, 'view', 'toy', seeds=(0,1)))))
    with pytest.raises(ValueError, match='is an evaluation of'): evaluated(stray, 'more', 'toy')
