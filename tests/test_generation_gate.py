"The gate for generated images: formulas against loops, the truth of painted images, verdicts on disk, the command line with real classes"
import json, math, shutil
from types import SimpleNamespace
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from ccreid.data.mannequins import DECLARED, PERFECT, Imperfections, MannequinWorld
from ccreid.data.samples import DataError
from ccreid.generation import sifting
from ccreid.generation.expansion import expand
from ccreid.generation.gate import colours_in, distances_to_source, off_parts, passes, real_limit, verdict_in_words
from ccreid.generation.jobs import Networks, StandIns, generate, read_generated
from ccreid.generation.lapses import NO_LAPSES, MannequinDescriber
from ccreid.generation.painted import body_distance, made_of, shown_garments, true_flaws
from ccreid.generation.recloth import Recloth, noted
from ccreid.generation.sifting import VERDICT, against_truth, check_gate, forget_verdict, passed, read_judge, sift
from ccreid.generation.stand_ins import MannequinInpainter, MannequinParser
from ccreid.generation.wardrobe import random_clothes
from ccreid.models.reid_model import ReIDModel
from ccreid.data.transforms import Preprocessing
from ccreid.training.export import export_reid
from ccreid.training.model_folders import write_folder
from ccreid.weights import WeightsNotFound

numbers = st.integers(0, 2**16)

def features_of(seed):
    "A network whose features are drawn by the path"
    def one(p):
        f = np.random.default_rng([seed, *str(p).encode()]).normal(size=4)
        return f/np.linalg.norm(f)
    return lambda table: torch.tensor(np.array([one(p) for p in table.path]).reshape(-1, 4))

@settings(max_examples=25, deadline=None)
@given(numbers, st.lists(st.integers(0, 3), max_size=12))
def test_distances_are_those_of_a_loop(seed, sources):
    look,t = features_of(seed),pd.DataFrame(dict(path=[f'm{i}' for i in range(len(sources))], source=[f's{s}' for s in sources]))
    one = lambda p: look(pd.DataFrame(dict(path=[p])))[0]
    expected = [1-float(sum(a*b for a,b in zip(one(m), one(s)))) for m,s in zip(t.path, t.source)]
    assert distances_to_source(t, look)==pytest.approx(expected)

@settings(max_examples=25, deadline=None)
@given(numbers, st.lists(st.tuples(st.integers(-1, 2), st.integers(-1, 2)), max_size=10), st.sampled_from([.1,.5,1.]))
def test_the_limit_is_the_quantile_over_all_pairs(seed, people, share):
    look = features_of(seed)
    t = pd.DataFrame(dict(path=[f'r{i}' for i in range(len(people))], identity=[i for i,_ in people], clothes=[c for _,c in people])).astype(dict(identity=int, clothes=int))
    f = look(t)
    pairs = [(i,j) for i in range(len(t)) for j in range(i) if t.identity[i]==t.identity[j]>=0]
    changed = [(i,j) for i,j in pairs if t.clothes[i]!=t.clothes[j] and t.clothes[i]>=0<=t.clothes[j]]
    if not pairs:
        with pytest.raises(DataError, match='no person has two'): real_limit(t, look, share)
    else:
        far = [1-float(f[i]@f[j]) for i,j in changed or pairs]
        assert real_limit(t, look, share, most=10**6)==pytest.approx(np.quantile(far, share))

COLOURS = 'red','blue','green','grey','black'
def text(c): return f'A person wearing a {c[0]} shirt, {c[1]} trousers and {c[2]} boots'
three = st.tuples(*[st.sampled_from(COLOURS)]*3)

@settings(max_examples=60, deadline=None)
@given(three, three, st.sets(st.integers(0, 2)))
def test_parts_that_are_off_are_counted_one_by_one(asked, shown, omitted):
    "An answer that leaves parts out: only what it says counts, and both rules agree where the nouns do"
    words = [f'a {shown[0]} shirt', f'{shown[1]} trousers', f'{shown[2]} boots']
    said = '\n'.join(f'{i+1}. {w}' for i,w in enumerate(words) if i not in omitted)
    expected = sum(asked[i]!=shown[i] for i in range(3) if i not in omitted),3-len(omitted)
    assert off_parts(text(asked), said)==off_parts(text(asked), said, 'words')==expected

@pytest.mark.parametrize('asked,said,rule,expected', [
    ('a gray shirt', 'a grey shirt', 'colours', (0,1)), ('a red shirt', 'a shirt', 'words', (0,1)), ('a red shirt', 'a red jacket', 'words', (1,1)),
    ('a red shirt', 'a red jacket', 'colours', (0,1)), ('a red and blue striped shirt', 'a blue shirt', 'colours', (0,1)),
    ('a black coat over a white shirt', 'a red coat', 'colours', (1,1)), ('a dark shirt', 'a light shirt', 'colours', (0,1)), ('', 'a shirt', 'colours', (0,0)),
    ('a denim skirt', 'a blue skirt', 'colours', (0,1)), ('a red shirt | black trousers | boots', 'black pants', 'colours', (0,1))])
def test_garments_that_agree_and_that_do_not(asked, said, rule, expected): assert off_parts(asked, said, rule)==expected

def test_colours_have_one_name():
    assert colours_in('gray and violet')=={'grey','purple'} and not colours_in('a long printed leather jacket')

@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.one_of(st.just(math.nan), st.floats(0, 2)), st.one_of(st.just(math.nan), st.integers(0, 3))), max_size=8), st.floats(0, 2), st.integers(0, 3))
def test_who_passes_one_by_one(rows, limit, most):
    t = pd.DataFrame(rows, columns=['distance','off'], dtype=float)
    expected = [not (d==d and d>limit) and not (o==o and o>most) for d,o in rows]
    assert passes(t, limit, most).tolist()==expected
    assert verdict_in_words(t, limit, most).startswith(f'gate: {expected.count(False)} of {len(rows)} images dropped')

@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12))
def test_precision_and_recall_one_by_one(rows):
    r = against_truth([d for d,_ in rows], [f for _,f in rows])
    both,dropped,flawed = sum(d and f for d,f in rows),sum(d for d,_ in rows),sum(f for _,f in rows)
    same = lambda a,b: a==pytest.approx(b, nan_ok=True)
    assert same(r['precision'], both/dropped if dropped else math.nan) and same(r['recall'], both/flawed if flawed else math.nan)
    assert same(r['precision_by_chance'], flawed/len(rows) if rows else math.nan) and same(r['recall_by_chance'], dropped/len(rows) if rows else math.nan)
    with pytest.raises(ValueError, match='one each'): against_truth([True], [])

# ---- the truth

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    return MannequinWorld((3,0,2), images=1, size=(96,48), seed=11).write(tmp_path_factory.mktemp('w')/'world', layout='prcc')

def paint(dataset, folder, imperfections, masked=True, variants=2):
    words,painter = random_clothes(dataset.train, 0),MannequinInpainter(imperfections)
    def ask(rows, numbers): return [words[(r['clothes']+1+v)%len(words)].text() for r,v in zip(rows, numbers)]
    def plain(images, rows, numbers, seeds): return noted(painter(images, None, texts := ask(rows, numbers), seeds, rows=rows), texts)
    edit = Recloth(MannequinParser(), painter, ask, 'paper') if masked else plain
    return expand(dataset.train, edit, folder, variants, progress=False, settings=None if masked else dict(painter=painter.settings, mask='none'))

@pytest.mark.parametrize('imperfections', [PERFECT, Imperfections(artefacts=1.), Imperfections(off_wardrobe=1.), Imperfections(identity_drift=.5)])
def test_flaws_are_those_that_were_declared(world, tmp_path, imperfections):
    "Each chance at 1 shows in every image, and nothing else does; without a mask alone a body moves"
    for masked in (True,False):
        made = paint(world, tmp_path/str(masked), imperfections, masked, 1)
        for p in made.path[:6]:
            f = true_flaws(p)
            assert f.smeared==bool(imperfections.artefacts) and bool(f.odd)==bool(imperfections.off_wardrobe) and set(f.misnamed)<=set(f.odd)
            assert (f.moved>0)==bool(imperfections.identity_drift and not masked) and f.shown==shown_garments(p)

def test_a_perfect_painter_is_never_contradicted_by_who_never_errs(world, tmp_path):
    made,look = paint(world, tmp_path/'p', PERFECT, variants=1),MannequinDescriber(NO_LAPSES)
    for t,p in zip(made.prompt, made.path): assert off_parts(t, look.one(p), 'words')[0]==0
    odd,wrong = paint(world, tmp_path/'o', Imperfections(off_wardrobe=1.), variants=1),0
    for t,p in zip(odd.prompt, odd.path): wrong += off_parts(t, look.one(p))[0]>0
    assert wrong>.7*len(odd)

def test_images_of_nobody_have_no_truth(world, tmp_path):
    turned = expand(world.train[:1], lambda images,*_: [im.rotate(9) for im in images], tmp_path/'t', 1, progress=False)
    assert made_of(world.train.path[0]) is None and made_of(turned.path[0])[0]['source']==world.train.path[0]
    with pytest.raises(DataError, match='no stand-in'): true_flaws(turned.path[0])
    with pytest.raises(DataError, match='on record in no folder'): true_flaws(tmp_path/'x.png')

def test_bodies_are_as_far_apart_as_a_loop_says(world):
    from ccreid.data.mannequins import find_scene
    from ccreid.data.mannequins.body import STRENGTH
    w = find_scene(world.train.path[0])[0]
    a,b = w.identity(0),w.identity(1)
    assert body_distance(a, b)==pytest.approx(math.sqrt(sum(((getattr(a, k)-getattr(b, k))/s)**2 for k,s in STRENGTH.items())/len(STRENGTH)))
    assert body_distance(a, a)==0==body_distance(b, b) and body_distance(a, b)==body_distance(b, a)

# ---- on disk

class Counting(MannequinDescriber):
    asked,dies = 0,None
    def __call__(self, images, rows=None):
        if self.dies is not None and self.asked>=self.dies: raise KeyboardInterrupt
        self.asked += len(images)
        return super().__call__(images, rows)

def test_a_killed_gate_goes_on_and_other_limits_cost_nothing(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sifting, '_GROUP', 8)
    made,describer = paint(world, tmp_path/'m', DECLARED, variants=1),Counting()
    describer.dies = 8
    with pytest.raises(KeyboardInterrupt): sift(made, world.train, tmp_path/'m', SimpleNamespace(describer=describer), 'words', progress=False)
    assert not (tmp_path/'m'/VERDICT).exists() and len(passed(made, tmp_path/'m'))==len(made)
    describer.dies = None
    good = sift(made, world.train, tmp_path/'m', SimpleNamespace(describer=describer), 'words', progress=False)
    assert describer.asked==len(made) and 0<len(good)<len(made) and f'gate: {len(made)-len(good)} of {len(made)}' in capsys.readouterr().out
    lax = sift(made, world.train, tmp_path/'m', SimpleNamespace(describer=describer), 'words', most=3, progress=False)
    assert describer.asked==len(made)==len(lax)
    fresh = Counting()
    whole = sift(made, world.train, tmp_path/'m2', SimpleNamespace(describer=fresh), 'words', progress=False)
    assert whole.path.tolist()==good.path.tolist()

def test_verdicts_that_are_damaged_or_too_old(world, tmp_path):
    made = paint(world, tmp_path/'m', PERFECT, variants=1)
    sift(made[:3], world.train, tmp_path/'m', SimpleNamespace(judge=read_judge('resnet_mini')), 'identity', 1., progress=False)
    with pytest.raises(DataError, match=f'says nothing of {len(made)-3} images'): read_generated(tmp_path/'m', world)
    for broken in ('', '[]', '{}', '{"limits": {"distance": 1}, "images": []}', '{"limits": {}, "images": {}}'):
        (tmp_path/'m'/VERDICT).write_text(broken)
        with pytest.raises(DataError) as e: read_generated(tmp_path/'m', world)
        assert '\n' not in str(e.value) and VERDICT in str(e.value)
    forget_verdict(tmp_path/'m'); forget_verdict(tmp_path/'m')
    assert len(read_generated(tmp_path/'m', world))==len(made)

@pytest.mark.parametrize('bad', [dict(by='nose'), dict(share=0), dict(share=1.1), dict(most=4), dict(rule='taste')])
def test_what_a_gate_cannot_be_is_said_before_anything_is_made(world, tmp_path, bad):
    with pytest.raises(ValueError): check_gate(**bad)
    names = dict(by='gate', share='gate_share', most='gate_off', rule='gate_rule')
    with pytest.raises(ValueError): generate('dlcr-random', world, tmp_path/'g', StandIns(), progress=False, **{names[k]: v for k,v in bad.items()})
    assert not (tmp_path/'g').exists()

def test_a_gate_behind_a_job(world, tmp_path, capsys):
    make = lambda **kw: generate('dlcr-random', world, tmp_path/'g', StandIns(), variants=1, progress=False, **kw)
    make(gate='words', limit=3)
    assert 'the gate waits until all images are there' in capsys.readouterr().out and not (tmp_path/'g'/VERDICT).exists()
    good = make(gate='words')
    n = good.attrs['expansion']
    assert n['made']+n['found']==len(world.train)==len(good)+n['sifted_out'] and n['sifted_out']>0
    assert read_generated(tmp_path/'g', world).path.tolist()==good.path.tolist()
    assert len(make())==len(world.train) and len(read_generated(tmp_path/'g', world))==len(good)   # not asked again: the verdict stays
    assert len(make(gate='none'))==len(world.train)==len(read_generated(tmp_path/'g', world))
    with pytest.raises(ValueError, match='no gate for them'): generate('dlcr-queries', world, tmp_path/'q', StandIns(), gate='words')

def test_judges(tmp_path):
    model = ReIDModel('resnet_mini', classes=3)
    model.preprocessing = Preprocessing((96,48))
    file = export_reid(model, tmp_path/'judge.safetensors')
    assert read_judge(file).dim==model.dim and read_judge('resnet_mini').dim!=0
    with pytest.raises(ValueError, match='--model judge=FILE'): Networks(device='cpu').judge
    assert type(Networks(device='cpu', judge=str(file)).judge) is ReIDModel
    (tmp_path/'run').mkdir(); shutil.copy(file, tmp_path/'run'/'cal.safetensors')
    for place in tmp_path/'run',write_folder(model, tmp_path/'folder'): # a folder of a run, of a model
        found = Networks(device='cpu', judge=str(place)).judge
        assert all(torch.equal(v, found.state_dict()[k]) for k,v in read_judge(file).state_dict().items())
    with pytest.raises(FileNotFoundError, match='no file and no folder of a model'): read_judge('./nothing')
    (tmp_path/'bad').write_text('<html>')
    with pytest.raises(ValueError): read_judge(tmp_path/'bad')
    with pytest.raises((ValueError,WeightsNotFound)): read_judge('no_such_network')
