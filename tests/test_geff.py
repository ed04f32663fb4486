"GEFF against loops over queries and gallery, faces of mannequins, and InsightFace's path with small ONNX networks"
import math
import numpy as np, pandas as pd, pytest, torch
import ccreid.compat
from hypothesis import given, settings, strategies as st
from PIL import Image
from ccreid.baselines.faces import Face, Faces, MannequinFaces, embed_faces, face_fields, faces_of
from ccreid.baselines.chain import GEFF_OPTIONS
from ccreid.baselines.geff import GEFF, enriched, face_distances, face_embedder, geff_evaluation, references
from ccreid.baselines.onnx_faces import InsightFaces, POINTS, decode, face_package, open_onnx, places, similarity, straightened, suppress
from ccreid.data.mannequins import MannequinWorld, find_scene
from ccreid.evaluation.metrics import evaluate
from ccreid.evaluation.protocols import STANDARD, Protocol
from ccreid.weights import WeightsNotFound

# ---- the algorithm, by loops ----

@st.composite
def worlds(draw):
    "A table of queries and gallery with bodies and faces"
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    n = draw(st.integers(4, 14))
    split = ['query','gallery']+list(rng.choice(['query','gallery'], n-2))
    table = pd.DataFrame(dict(identity=rng.integers(0, 3, n), clothes=rng.integers(-1, 4, n), camera=rng.integers(-1, 3, n), split=split), index=rng.permutation(100)[:n])
    features = torch.tensor(rng.normal(size=(n,3)), dtype=torch.float32)
    has = rng.random(n)<.7
    embeddings = torch.nn.functional.normalize(torch.tensor(rng.normal(size=(n,3)), dtype=torch.float32))*torch.tensor(has)[:,None]
    scores = torch.tensor(rng.uniform(.5, 1, n)*has, dtype=torch.float32)
    return table,features,Faces(embeddings, scores)

def by_hand(geff, table, features, faces, query, gallery):
    "The distances from the definition, one pair at a time"
    at = {k: i for i,k in enumerate(table.index)}
    cos = lambda a, b: float(torch.dot(a, b)/max(a.norm()*b.norm(), 1e-12))
    body = lambda i, j: cos(features[i].double(), features[j].double())
    face = lambda i, j: float(torch.dot(faces.embeddings[i].double(), faces.embeddings[j].double()))
    score,label = faces.scores.tolist(),{k: table[k].tolist() for k in ('camera','clothes')}
    known_same = lambda k, i, j: label[k][i]==label[k][j] and label[k][i]>=0
    seen = lambda i, least: score[i]>0 and score[i]>=least
    q,g = [at[k] for k in query.index],[at[k] for k in gallery.index]
    pool = [i for i,s in enumerate(table.split) if i in q or (geff.pool=='all' and s=='query')]
    beside = {j: [] for j in g}
    for e in pool:
        if not seen(e, geff.enriching): continue
        best = None
        for j in g:
            if not seen(j, geff.enriching) or known_same('camera', e, j): continue
            if geff.changed and known_same('clothes', e, j): continue
            if best is None or face(e, j)>face(e, best): best = j
        if best is not None and face(e, best)>=geff.similarity: beside[best].append(e)
    D = torch.zeros(len(q), len(g))
    for a,i in enumerate(q):
        for b,j in enumerate(g):
            d_body = min([-body(i, j)]+[-body(i, e) for e in beside[j]])
            if not seen(i, geff.detection): d_face = 2.
            else: d_face = 1-(face(i, j) if seen(j, geff.detection) else 0.)
            if geff.rule=='released' and seen(i, geff.detection) and known_same('camera', i, j): d_face = 9/max(1-geff.alpha, 1e-3)
            D[a,b] = geff.alpha*d_body+(1-geff.alpha)*d_face
    return D,beside

kinds = st.builds(GEFF, alpha=st.sampled_from([0.,.5,.75,1.]), similarity=st.sampled_from([0.,.3,.5,2.]), changed=st.booleans(),
                  enriching=st.sampled_from([0.,.7,.8]), detection=st.sampled_from([0.,.7]), pool=st.sampled_from(['all','own']), rule=st.sampled_from(['plain','released']))

@settings(deadline=None, max_examples=40)
@given(worlds(), kinds)
def test_distances_equal_the_definition(world, geff):
    table,features,faces = world
    query,gallery = table[table.split=='query'],table[table.split=='gallery']
    query = query[:max(1, len(query)-1)]                                    # one that may join and is not asked for
    expected,beside = by_hand(geff, table, features, faces, query, gallery)
    torch.testing.assert_close(geff.distances(features, faces, table, query, gallery), expected, rtol=1e-4, atol=1e-5)
    e,reference = geff.joining(faces, table, query, gallery)
    index = list(table.index)
    found = {(int(i), index.index(gallery.index[int(r)])) for i,r in zip(e, reference)}
    assert found=={(i, j) for j,es in beside.items() for i in es}

@settings(deadline=None, max_examples=20)
@given(worlds(), st.permutations(range(14)))
def test_the_order_of_rows_does_not_matter(world, order):
    table,features,faces = world
    order = [i for i in order if i<len(table)]
    q,g = table[table.split=='query'],table[table.split=='gallery']
    a = GEFF().distances(features, faces, table, q, g)
    b = GEFF().distances(features[order], faces[torch.tensor(order)], table.iloc[order], q, g)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

def test_pieces_by_hand():
    cos = torch.tensor([[.9,.4],[.5,.6],[.3,.2],[.7,.7]])
    joined,reference = references(cos, torch.tensor([[False,True],[True,True],[True,True],[True,True]]), .5)
    assert joined.tolist()==[1,3] and reference.tolist()==[1,0]            # 0: not allowed; 1: the better; 2: too low; 3: the first of equals
    d = enriched(torch.tensor([[-.1,-.2],[-.3,-.4]]), torch.tensor([[-.5,-.15,-.05],[.0,-.9,.0]]), torch.tensor([0,1,0]))
    torch.testing.assert_close(d, torch.tensor([[-.5,-.2],[-.3,-.9]]))
    faces = faces_of([Face(np.array([1.,0]), .75), Face(np.array([0,1.]), .65), None])
    torch.testing.assert_close(face_distances(faces, faces), torch.tensor([[0.,1,1],[2,2,2],[2,2,2]]))
    torch.testing.assert_close(face_distances(faces, faces, .6), torch.tensor([[0.,1,1],[1,0,1],[2,2,2]]))

def test_without_faces_or_enrichment_it_is_the_plain_search():
    rng = np.random.default_rng(0)
    n = 60
    table = pd.DataFrame(dict(identity=rng.integers(0, 6, n), clothes=np.arange(n)%12, camera=rng.integers(0, 3, n), split=['query','gallery']*(n//2)))
    features,nobody = torch.randn(n,8, generator=torch.Generator().manual_seed(0)),faces_of([None]*n)
    plain = evaluate(features, table, STANDARD)
    for geff in (GEFF(), GEFF(alpha=1., similarity=2), GEFF(rule='released')):
        found = geff.evaluate(features, nobody, table, STANDARD)
        assert found.mAP==pytest.approx(plain.mAP, abs=1e-6) and torch.equal(found.first_rank, plain.first_rank) and found.skipped==plain.skipped

def test_protocols_that_draw_or_compare_tracklets_and_what_does_not_fit():
    rng,n = np.random.default_rng(1),40
    table = pd.DataFrame(dict(identity=rng.integers(0, 5, n), clothes=rng.integers(0, 9, n), camera=rng.integers(0, 2, n), split=['query','gallery']*(n//2), tracklet=np.arange(n)))
    features,faces = torch.randn(n,4),faces_of([Face(rng.normal(size=4), .9) for _ in range(n)])
    single = Protocol('single', 'standard', shots='single', draws=3, seed=1)
    assert GEFF().evaluate(features, faces, table, single).draws==3
    with pytest.raises(ValueError, match="compares images, and 'tracks' compares tracklets"):
        GEFF().evaluate(features, faces, table, Protocol('tracks', 'standard', unit='tracklet'))
    with pytest.raises(ValueError, match='39 features and 40 faces for 40 rows'): GEFF().evaluate(features[1:], faces, table, STANDARD)
    for bad in (dict(alpha=1.5), dict(similarity=-1), dict(enriching=2), dict(pool='none'), dict(rule='paper')):
        with pytest.raises(ValueError, match=next(iter(bad))): GEFF(**bad)

# ---- mannequins ----

@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    world = MannequinWorld(identities=(2,0,16), outfits=2, cameras=3, images=3, size=(32,16), seed=6)
    return world.write(tmp_path_factory.mktemp('world')/'w', layout='prcc', workers=1)

def test_nobody_has_a_face_from_behind_and_everybody_from_the_front(dataset):
    faces,table = embed_faces(MannequinFaces(), dataset.samples, batch_size=10),dataset.samples
    for path,score in zip(table.path, faces.scores.tolist()):
        world,scene,_ = find_scene(path)
        pose = world.shot(**scene)[1]
        angle = abs((pose.yaw+pose.nod+180)%360-180)
        assert (score>0)==(angle<90) and (score==0 or score==pytest.approx(math.cos(math.radians(angle)), abs=1e-6))
    assert 0<faces.seen(.8).float().mean()<.7

def test_a_face_depends_on_person_scene_and_seed_and_on_no_label(dataset):
    table = dataset.samples
    a = embed_faces(MannequinFaces(), table)
    wrong = table.assign(identity=0, clothes=0, camera=0)
    assert torch.equal(embed_faces(MannequinFaces(), wrong).embeddings, a.embeddings)
    assert not torch.equal(embed_faces(MannequinFaces(seed=5), table).embeddings, a.embeddings)
    exact = embed_faces(MannequinFaces(noise=0), table)
    who = torch.tensor(table.identity.to_numpy())
    pairs = (exact.seen()[:,None] & exact.seen()[None])
    same = pairs & (who[:,None]==who[None]) & (torch.tensor((table.split=='train').to_numpy())[:,None]==torch.tensor((table.split=='train').to_numpy())[None])
    cos = exact.embeddings@exact.embeddings.T
    assert cos[same].min()>1-1e-4 and cos[pairs & ~same].max()<1-1e-3
    assert face_fields(find_scene(table.path.iloc[0])[0].identity(0)).shape==(19,)

def test_a_picture_that_no_world_wrote_is_refused_in_one_line(tmp_path):
    Image.new('RGB', (16,32)).save(tmp_path/'a.png')
    with pytest.raises(ValueError, match='no mannequin world wrote this file') as e: embed_faces(MannequinFaces(), pd.DataFrame(dict(path=[str(tmp_path/'a.png')])))
    assert '\n' not in str(e.value)

def test_figures_by_name(dataset):
    table = dataset.samples[dataset.samples.split!='train'].reset_index(drop=True)
    features = torch.randn(len(table), 8, generator=torch.Generator().manual_seed(0))
    protocols = {k: dataset.protocols[k] for k in ('same-clothes','clothes-changing')}
    known = dict(zip(table.path, features))
    bodies = lambda t: torch.stack([known[p] for p in t.path])
    found,seen,said = geff_evaluation(bodies, dataset, protocols, faces='mannequins')
    faces = embed_faces(MannequinFaces(), table)
    assert set(found)==set(protocols) and seen.path.tolist()==table.path.tolist()
    assert geff_evaluation(bodies, dataset, protocols, 'mannequins')[2]==said                 # as a folder is named
    counts = GEFF().account(faces, table, protocols['same-clothes'])
    assert said==f"same-clothes: {counts['joined']} queries joined the gallery by their faces, {counts['right']} of them beside their own person"
    for name,p in protocols.items(): assert found[name].mAP==GEFF().evaluate(features, faces, table, p).mAP
    assert found['clothes-changing'].rank(1)>evaluate(features, table, protocols['clothes-changing']).rank(1)+.1   # faces against noise
    own = geff_evaluation(bodies, dataset, protocols, faces=MannequinFaces(), pool='own')[0]
    a,b = (GEFF(pool=k).account(faces, table, protocols['clothes-changing']) for k in ('own','all'))
    assert a['joined']<b['joined'] and a['right']<=a['joined'] and a['queries']==b['queries'] and own.keys()==found.keys()

def test_the_options_of_the_evaluation_are_its_arguments_with_their_defaults():
    import dataclasses, inspect
    own = {f.name: f.default for f in dataclasses.fields(GEFF)} | dict(faces=inspect.signature(geff_evaluation).parameters['faces'].default)
    assert {k: o.default for k,o in GEFF_OPTIONS.items()}==own
    assert all(o(o.default)==o.default and o.help for o in GEFF_OPTIONS.values())

# ---- InsightFace's path ----

def test_names_that_lead_nowhere_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv('CCREID_WEIGHTS', str(tmp_path)); monkeypatch.setenv('HF_HUB_OFFLINE', '1'); monkeypatch.setenv('HOME', str(tmp_path))
    for name in ('buffalo_l', tmp_path/'nowhere'):
        with pytest.raises(WeightsNotFound, match='the face networks') as e: face_package(name)
        assert '\n' not in str(e.value)
    home = tmp_path/'.insightface'/'models'/'antelopev2'; home.mkdir(parents=True)
    (home/'scrfd_10g_bnkps.onnx').touch()
    with pytest.raises(WeightsNotFound, match='has no recogniser'): face_package('antelopev2')
    (home/'glintr100.onnx').touch()
    assert [p.name for p in face_package('antelopev2')]==['scrfd_10g_bnkps.onnx','glintr100.onnx']

def test_without_onnxruntime_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'onnxruntime', None)
    for ask in (InsightFaces.from_pretrained, lambda: open_onnx('x.onnx'), lambda: face_embedder('buffalo_l')):
        with pytest.raises(ImportError, match=r'pip install "ccreid\[faces\]"') as e: ask()
        assert '\n' not in str(e.value)

def hand_decode(outputs, side, least):
    "Answer by answer"
    steps,answers = ((8,16,32), 2) if len(outputs)==9 else ((8,16,32,64,128), 1)
    found = []
    for i,s in enumerate(steps):
        k = 0
        for y in range(side//s):
            for x in range(side//s):
                for _ in range(answers):
                    score,(l,t,r,b),p = float(outputs[i][k,0]),outputs[i+len(steps)][k],outputs[i+2*len(steps)][k]
                    if score>=least: found.append((score, [x*s-l*s, y*s-t*s, x*s+r*s, y*s+b*s], [[x*s+p[2*j]*s, y*s+p[2*j+1]*s] for j in range(5)]))
                    k += 1
    return sorted(found, key=lambda o: -o[0])

@pytest.mark.parametrize('n', [9,15])
def test_decoding_equals_loops(n):
    rng,side = np.random.default_rng(n),128
    steps,answers = ((8,16,32), 2) if n==9 else ((8,16,32,64,128), 1)
    outputs = [rng.random((answers*(side//s)**2, d)).astype(np.float32) for d in (1,4,10) for s in steps]
    expected = hand_decode(outputs, side, .9)
    scores,boxes,points = decode([o[None] if n==15 else o for o in outputs], side, .9)       # some files have a batch in front
    assert len(scores)==len(expected)>3
    np.testing.assert_allclose(scores, [o[0] for o in expected]); np.testing.assert_allclose(boxes, [o[1] for o in expected], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(points, [o[2] for o in expected], rtol=1e-4, atol=1e-4)

@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 12))
def test_suppression_equals_loops(seed, n):
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0, 10, (n,4)); boxes[:,2:] = boxes[:,:2]+rng.uniform(1, 8, (n,2))
    kept = []
    for i in range(n):
        ok = True
        for j in kept:
            w = min(boxes[i,2], boxes[j,2])-max(boxes[i,0], boxes[j,0]); h = min(boxes[i,3], boxes[j,3])-max(boxes[i,1], boxes[j,1])
            common = max(w, 0)*max(h, 0)
            area = lambda b: (b[2]-b[0])*(b[3]-b[1])
            ok &= common/(area(boxes[i])+area(boxes[j])-common)<=.4
        if ok: kept.append(i)
    assert suppress(boxes)==kept

@settings(deadline=None, max_examples=30)
@given(st.floats(-3, 3), st.floats(.2, 4), st.floats(-50, 50), st.floats(-50, 50))
def test_a_similarity_is_found_again_and_is_the_best(angle, scale, u, v):
    a,b = scale*math.cos(angle),scale*math.sin(angle)
    m = np.array([[a,-b,u],[b,a,v]])
    np.testing.assert_allclose(similarity(POINTS, POINTS@m[:,:2].T+m[:,2]), m, atol=1e-6)
    rng = np.random.default_rng(0)
    to = POINTS+rng.normal(0, 5, (5,2))
    cost = lambda m: ((POINTS@m[:,:2].T+m[:,2]-to)**2).sum()
    best = similarity(POINTS, to)
    (c,d,e),(f,g,h) = best
    assert c==pytest.approx(g) and d==pytest.approx(-f)
    for k in (1e-2, -1e-2): assert cost(np.array([[c+k,d,e],[f,g+k,h]]))>cost(best) and cost(np.array([[c,d-k,e],[f+k,g,h]]))>cost(best)

def test_a_turned_face_is_straightened():
    face = Image.new('RGB', (112,112))
    for (x,y),colour in zip(POINTS.round().astype(int), ((255,0,0),(0,255,0),(0,0,255),(255,255,0),(0,255,255))):
        face.paste(colour, (x-4,y-4,x+5,y+5))
    turned = face.resize((224,224), Image.Resampling.NEAREST).rotate(90)                  # counter-clockwise
    points = np.array([[y, 111-x] for x,y in POINTS])*2+.5
    back = np.asarray(straightened(turned, points), int)
    for (x,y) in POINTS.round().astype(int): assert np.abs(back[y,x]-np.asarray(face, int)[y,x]).max()<10

# With onnx and onnxruntime: the whole path

@pytest.fixture(scope='module')
def networks(tmp_path_factory):
    "A detector that takes bright spots for faces, and a recogniser that takes mean colours for a vector"
    onnx = pytest.importorskip('onnx'); pytest.importorskip('onnxruntime')
    from onnx import TensorProto as T, helper as h, numpy_helper
    folder,side = tmp_path_factory.mktemp('onnx')/'buffalo_s',64
    folder.mkdir()
    nodes,consts,outs = [],[],[]
    const = lambda name, v: consts.append(numpy_helper.from_array(np.asarray(v), name))
    const('shape', np.array([-1,1], np.int64)); const('axes', np.array([1], np.int64)); const('ten', np.float32(10)); const('shift', np.float32(.5))
    for i,s in enumerate((8,16,32)):
        K = 2*(side//s)**2
        nodes += [h.make_node('AveragePool', ['x'], [f'p{i}'], kernel_shape=[s,s], strides=[s,s]), h.make_node('ReduceMean', [f'p{i}','axes'], [f'm{i}'], keepdims=1),
                  h.make_node('Sub', [f'm{i}','shift'], [f'z{i}']), h.make_node('Mul', [f'z{i}','ten'], [f't{i}']), h.make_node('Concat', [f't{i}']*2, [f'c{i}'], axis=1),
                  h.make_node('Transpose', [f'c{i}'], [f'tt{i}'], perm=[0,2,3,1]), h.make_node('Reshape', [f'tt{i}','shape'], [f'r{i}']), h.make_node('Sigmoid', [f'r{i}'], [f'score{i}'])]
        const(f'box{i}', np.tile(np.float32([0,0,1,1]), (K,1))); const(f'dots{i}', np.tile((POINTS/112).astype(np.float32).reshape(-1), (K,1)))
        nodes += [h.make_node('Identity', [f'{k}{i}'], [f'out_{k}{i}']) for k in ('box','dots')]
    names = [f'score{i}' for i in range(3)]+[f'out_box{i}' for i in range(3)]+[f'out_dots{i}' for i in range(3)]
    outs = [h.make_tensor_value_info(n, T.FLOAT, [None,d]) for n,d in zip(names, [1]*3+[4]*3+[10]*3)]
    def save(name, nodes, takes, gives, consts=()):
        model = h.make_model(h.make_graph(nodes, 'g', [h.make_tensor_value_info('x', T.FLOAT, takes)], gives, list(consts)), opset_imports=[h.make_opsetid('', 18)], ir_version=9)
        onnx.checker.check_model(model); onnx.save(model, folder/f'{name}.onnx')
    save('det_500m', nodes, [1,3,side,side], outs, consts)
    pooled = [h.make_node('AveragePool', ['x'], ['p'], kernel_shape=[56,56], strides=[56,56]), h.make_node('Flatten', ['p'], ['v'])]
    save('w600k_mbf', pooled, [None,3,112,112], [h.make_tensor_value_info('v', T.FLOAT, [None,12])])
    save('w600k_small', pooled, [None,3,96,96], [h.make_tensor_value_info('v', T.FLOAT, [None,3])])
    save('det_two', pooled[:1], [1,3,side,side], [h.make_tensor_value_info('p', T.FLOAT, [None]*4)])
    return folder

def spot(size, at, side, colour=(255,250,245)):
    im = Image.new('RGB', size, (20,20,20)); im.paste(colour, (*at, at[0]+side, at[1]+side)); return im

def test_onnx_networks_are_opened_by_name_and_find_and_embed_faces(networks, tmp_path, monkeypatch):
    monkeypatch.setenv('CCREID_WEIGHTS', str(networks.parent)); monkeypatch.setenv('HOME', str(tmp_path))
    embedder = InsightFaces.from_pretrained('buffalo_s', side=64)
    images = [spot((64,64), (16,32), 16), spot((32,64), (8,16), 8), Image.new('RGB', (50,80))]
    score,box,points = embedder.find(images[0])
    np.testing.assert_allclose(box, [16,32,24,40], atol=1e-4)                       # the first of the answers in the spot, on the grid of 8
    np.testing.assert_allclose(points, [16,32]+POINTS/112*8, atol=1e-4)
    x = (np.float64([255,250,245]).mean()-127.5)/128
    assert score==pytest.approx(1/(1+math.exp(-10*(x-.5))), abs=1e-5)
    a,b,c = embedder(images)
    assert c is None and a.embedding.shape==(12,) and 0<a.score<=1
    by_loops = np.asarray(straightened(images[0], points), float)
    by_loops = np.stack([((by_loops[56*i:56*i+56,56*j:56*j+56,k]-127.5)/127.5).mean() for k in range(3) for i in range(2) for j in range(2)])
    np.testing.assert_allclose(a.embedding, by_loops, atol=1e-3)
    np.testing.assert_allclose(embedder.find(images[1])[1], [8,16,16,24], atol=1e-4)   # a narrow picture: a column of black beside it
    faces = faces_of([a,b,c])
    assert faces.seen().tolist()==[True,True,False]

def test_onnx_files_that_are_none_or_of_another_kind_are_refused_in_one_line(networks, tmp_path):
    good = networks/'det_500m.onnx',networks/'w600k_mbf.onnx'
    cases = {'page.onnx': b'<!DOCTYPE html>', 'pointer.onnx': b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'empty.onnx': b'', 'cut.onnx': good[0].read_bytes()[:200]}
    for name,content in cases.items():
        (tmp_path/name).write_bytes(content)
        with pytest.raises(ValueError, match=name) as e: InsightFaces(tmp_path/name, good[1])
        assert '\n' not in str(e.value)
    with pytest.raises(FileNotFoundError): InsightFaces(tmp_path/'none.onnx', good[1])
    with pytest.raises(ValueError, match='1 outputs: a detector with five points has 9 or 15'): InsightFaces(networks/'det_two.onnx', good[1])
    with pytest.raises(ValueError, match='not 112x112'): InsightFaces(good[0], networks/'w600k_small.onnx')
    with pytest.raises(ValueError, match='has no CUDA'): InsightFaces(*good, device='cuda:0')

def test_geff_takes_the_onnx_networks(networks, tmp_path, monkeypatch):
    monkeypatch.setenv('CCREID_WEIGHTS', str(networks.parent)); monkeypatch.setenv('HOME', str(tmp_path))
    rows = []
    for i in range(4):
        for split,camera in (('query',0),('gallery',1)):
            spot((64,64), (16,32), 16, ((255,240,200),(255,200,250))[i%2]).save(tmp_path/f'{split}{i}.png')
            rows.append(dict(path=str(tmp_path/f'{split}{i}.png'), identity=i%2, clothes=i, camera=camera, split=split))
    table = pd.DataFrame(rows)
    faces = InsightFaces.from_pretrained('buffalo_s', side=64)
    found = GEFF(alpha=0., detection=.5).evaluate(torch.randn(8,4), embed_faces(faces, table), table, STANDARD)
    assert found.rank(1)==1. and found.mAP==1.
