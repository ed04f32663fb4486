"How much a model looks at clothes: shares of variance and line-ups by loops, the drawn set, photographs, the command"
import json, sys
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest

from ccreid.evaluation.crossed import components, products, variance_shares
from ccreid.evaluation.redressed import LINE_UPS, redressed


def mean_squares(y):
    "Mean square of every set of factors, by loops over cells and inclusion-exclusion of marginal means"
    shape = y.shape[:-1]
    k,found = len(shape),{}
    for size in range(1, k+1):
        for S in combinations(range(k), size):
            ss = 0
            for cell in product(*(range(shape[a]) for a in S)):
                effect = np.zeros(y.shape[-1])
                for r in range(size+1):
                    for T in combinations(range(size), r):
                        at = [slice(None)]*k
                        for t in T: at[S[t]] = slice(cell[t], cell[t]+1)
                        effect += (-1)**(size-r)*y[tuple(at)].reshape(-1, y.shape[-1]).mean(0)
                ss += (effect**2).sum()
            away = np.prod([n for a,n in enumerate(shape) if a not in S])
            found[S] = ss*away/np.prod([shape[a]-1 for a in S])
    return found


def by_solving(y):
    "Variances whose expected mean squares are those that were found"
    ms,shape = mean_squares(y),y.shape[:-1]
    sets = list(ms)
    away = lambda T: np.prod([n for a,n in enumerate(shape) if a not in T])
    A = np.array([[away(T) if set(S)<=set(T) else 0 for T in sets] for S in sets], float)
    return dict(zip(sets, np.linalg.solve(A, [ms[S] for S in sets])))


@pytest.mark.parametrize('shape', [(3,2),(4,3,2),(3,4,2,3)])
def test_shares_are_those_of_expected_mean_squares(shape):
    y = np.random.default_rng(sum(shape)).normal(size=(*shape,3)) + np.arange(shape[1]).reshape(1,-1,*[1]*(len(shape)-1))
    found = {k: v[0] for k,v in components(products(y), shape[1:], np.ones((1,shape[0]))).items()}
    wanted = by_solving(y)
    assert found.keys()==wanted.keys()
    for S in wanted: assert found[S]==pytest.approx(wanted[S], abs=1e-9)
    names = ('identity','clothes','pose','camera')[:len(shape)]
    s = variance_shares(y, names, 20)
    assert sum(s.of(k).value for k in s.drawn)==pytest.approx(1)
    assert s.of('clothes').value==pytest.approx(wanted[(1,)]/sum(wanted.values()))


def test_a_drawing_of_people_never_multiplies_a_person_with_her_copy():
    y = np.random.default_rng(0).normal(size=(4,3,2,5))
    w = np.array([[2,0,1,1.]])
    gram = products(y)
    found,people = components(gram, (3,2), w),[0,0,2,3]
    for S,g in gram.items():
        other = [g[a,b] for (m,a),(n,b) in product(enumerate(people), repeat=2) if a!=b]
        own = [g[a,a] for a in people]
        if S==(1,2): # the largest set: nothing else is in it
            assert found[S][0]==pytest.approx(np.mean(other)) and found[(0,1,2)][0]==pytest.approx(np.mean(own)-np.mean(other))


def by_loops(y):
    "The probability and the three line-ups, one case after the other"
    y = y/np.linalg.norm(y, axis=-1, keepdims=True)
    n,O,P,C,_ = y.shape
    fits = lambda v,w: v[1]!=w[1] if C>1 else v[0]!=w[0] if P>1 else True
    views = list(product(range(P), range(C)))
    nearer,won = [],{k: [] for k in LINE_UPS}
    for i,o,v,w in product(range(n), range(O), views, views):
        if not fits(v, w): continue
        q = y[i,o][v]
        s = lambda j,p: round(float(q @ y[j,p][w]), 6)
        others = [j for j in range(n) if j!=i]
        for p in range(O):
            if p==o: continue
            nearer += [(s(j,o)>s(i,p))+.5*(s(j,o)==s(i,p)) for j in others]
            won['kept'].append(s(i,o)>max(s(j,p) for j in others))
            won['changed'].append(s(i,p)>max(s(j,p) for j in others))
            won['lured'].append(s(i,p)>max(s(j,o) for j in others))
    return dict(nearer=np.mean(nearer), **{k: np.mean(v) for k,v in won.items()})


@pytest.mark.parametrize('shape', [(4,3,2,2),(3,2,3,1),(5,2,1,1),(3,2,1,2)])
def test_who_is_nearer_is_what_loops_count(shape):
    rng = np.random.default_rng(sum(shape))
    y = rng.normal(size=(*shape,6)) + rng.normal(size=(shape[0],1,1,1,6)) + rng.normal(size=(1,shape[1],1,1,6))
    r,wanted = redressed(y, 50),by_loops(y)
    for k,v in wanted.items():
        assert r.of(k).value==pytest.approx(v, abs=1e-12)
        assert 0<=r.of(k).low<=r.of(k).high<=1


def test_whole_numbers_tie_and_ties_are_half_a_win():
    y = np.random.default_rng(1).integers(-1, 2, size=(4,2,2,2,3))+.0
    y[(y==0).all(-1)] = 1
    wanted,r = by_loops(y),redressed(y, 5)
    assert {k: r.of(k).value for k in wanted}==pytest.approx(wanted)


# --- the set, the test and the command

from PIL import Image

from ccreid.clothes.measuring import PARTS, clothes_test, in_words, parts_of
from ccreid.clothes.pictures import FACTORS, add_generated, drawn_set, photograph_set, read_photographs, whole_part
from ccreid.data.samples import DataError
from ccreid.data.mannequins import BENCHMARKS

FEW = dict(people=4, outfits=3, poses=2, cameras=2)


def test_the_drawn_people_and_outfits_are_in_no_benchmark():
    from ccreid.clothes import pictures
    from ccreid.data.mannequins import MannequinWorld
    mine = pictures._crowd(30, 8, 3, pictures.SEED)[0]
    bodies = {repr(mine.identity(i)) for i in range(30)}
    for spec in BENCHMARKS.values():
        for domain in spec.get('domains', ('plaza',)):
            w = MannequinWorld(**spec['world'], domain=domain)
            assert not bodies & {repr(w.identity(i)) for i in range(w.people)}


def test_everybody_wears_everything_and_nothing_of_her_own():
    d = drawn_set(**FEW)
    assert d.shape==(4,3,2,2) and len(d)==48==len(d.garments)
    one = np.stack([np.asarray(d.pictures[k], int) for k in range(48)]).reshape(4,3,2,2,128,64,3)
    worn = d.garments.reshape(4,3,2,2,128,64)
    for p,c in product(range(2), range(2)):
        rim = one[:,:,p,c,:30,:6]                    # a corner: one place, whoever stands there in whatever
        assert (rim==rim[:1,:1]).all()
        assert (one[0,0,p,c]!=one[1,0,p,c]).any() and (one[0,0,p,c]!=one[0,1,p,c]).any()
    assert worn.mean((4,5)).min()>.02
    assert len(set(d.levels['clothes']))==3
    other = drawn_set(**FEW, seed=1)
    assert other.levels['clothes']!=d.levels['clothes']


def codes(d):
    "Level of each factor of each picture"
    return np.stack(np.unravel_index(np.arange(len(d)), d.shape), 1)


def test_a_model_whose_shares_are_known():
    "Vectors made of the labels: 9 parts clothes, 4 parts person, 1 part camera, before length 1"
    d = drawn_set(people=16, outfits=5, poses=1, cameras=2)
    at,rng = {p.tobytes(): k for k,p in enumerate(d.pictures.items)},np.random.default_rng(0)
    levels,part = codes(d),{0: 2., 1: 3., 3: 1.}
    tables = {a: s*rng.normal(size=(d.shape[a], 800))/800**.5 for a,s in part.items()}
    def model(pictures): return [sum(tables[a][levels[at[p.tobytes()]][a]] for a in tables) for p in pictures]
    f = clothes_test(model, d, 'known', 100).figures()
    for k,v in {'clothes': 9/14, 'identity': 4/14, 'camera': 1/14, 'rest': 0, 'clothes with others': 0}.items(): assert f[k].value==pytest.approx(v, abs=.03)
    assert f['nearer'].value==1 and f['garments'] is None and f['lured'].value==0
    assert f['pose'] is None and sum(f[k].value for k in PARTS if f[k])==pytest.approx(1)


def test_each_part_is_in_one_group_and_bad_vectors_are_refused():
    names = [' × '.join(c) for r in (1,2,3,4) for c in combinations(FACTORS, r)]
    groups = parts_of(names)
    assert sorted(sum(groups.values(), []))==sorted(names) and tuple(groups)==PARTS
    assert all('clothes' in n for n in groups['clothes with others']) and not any('clothes' in n for n in groups['rest'])
    d = drawn_set(**FEW)
    with pytest.raises(ValueError, match='same vector'): clothes_test(lambda p: np.ones((len(p),3)), d)
    with pytest.raises(ValueError, match='not finite'): clothes_test(lambda p: np.full((len(p),3), np.nan), d)


def test_the_thinnest_level_goes_first_and_what_is_left_is_whole():
    rng = np.random.default_rng(3)
    for seed in range(20):
        cells = [c for c in product('pqrst', 'abc', '12', 'xy') if rng.random()<.93]
        t = whole_part(pd.DataFrame(cells, columns=['person','clothes','pose','camera']))
        n = [t[k].nunique() for k in t]
        assert len(t)==np.prod(n) and not t.duplicated().any()


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    "Four people, each in clothes of her own before two cameras, as files and a table"
    d = drawn_set(people=4, outfits=4, poses=1, cameras=2)
    rows = []
    for i,c in product(range(4), range(2)):
        d.pictures[d.at(i,i,0,c)].save(tmp_path/f'{i}-{c}.png')
        rows.append((f'{i}-{c}.png', f'person {i}', f'own {i}', f'camera {c}'))
    pd.DataFrame(rows, columns=['path','person','clothes','camera']).to_csv(tmp_path/'people.csv', index=False)
    (tmp_path/'model_of_clothes.py').write_text(
        'import numpy as np\ndef colour(pictures): return [np.asarray(p.resize((4,8)), float).ravel()-128 for p in pictures]\n')
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop('model_of_clothes', None)


def generated(folder, table, variants=3, notes=True):
    "Images of a generator that paints the lower half of a picture in one of some colours"
    from ccreid.clothes.pictures import _sample_table, _numbered
    from ccreid.generation.expansion import expand
    def paint(images, rows, variants, seeds):
        found = []
        for image,v in zip(images, variants):
            new = np.array(image); new[60:] = (200, 60*v, 255-60*v)
            found.append((Image.fromarray(new), dict(prompt=f'colour {v}')) if notes else Image.fromarray(new))
        return found
    expand(_sample_table(_numbered(table, ['person','camera'])).train, paint, folder, variants)


def test_photographs_alone_are_too_few_and_generated_images_fill_them(photographs):
    table = read_photographs('people.csv')
    with pytest.raises(DataError, match='no three people wear the same two outfits'): photograph_set(table)
    generated('made', table)
    d = photograph_set(add_generated(table, 'made'))
    assert d.shape==(4,3,1,2) and d.levels['clothes']==['colour 0','colour 1','colour 2']
    assert d.about['left_out']=={'outfits': 4} and d.about['used']==24
    pixels = np.asarray(d.pictures[d.at(2,1,0,1)])
    assert tuple(pixels[-1,0])==(200,60,195) and np.array_equal(pixels[:50], np.asarray(Image.open('2-1.png'))[:50])
    generated('plain', table, notes=False)
    assert photograph_set(add_generated(table, 'plain')).levels['clothes']==['variant 0','variant 1','variant 2']


def test_the_command_on_drawn_people_and_on_photographs(photographs, run):
    few = '--people 4 --outfits 3 --poses 1 --cameras 2 --resamples 20 --device cpu'
    code,out,err = run(f'clothes-test --model model_of_clothes:colour --model resnet_mini {few} --out a.html --out a.json')
    assert code==0 and 'not measured' in out and '24 pictures, 4 people; a.html; a.json' in out
    found,page = json.loads(open('a.json').read()),open('a.html').read()
    assert [m['model'] for m in found['models']]==['model_of_clothes:colour','resnet_mini']
    assert found['models'][0]['garments'] is None and set(found['models'][1]['garments'])=={'activation','area','times'}
    assert page.count('<img')==3+1+9 and 'src="http' not in page and 'How much does it look at clothes?' in page
    generated('made', read_photographs('people.csv'))
    code,out,_ = run('clothes-test --model model_of_clothes:colour --table people.csv --generated made --resamples 20 --json')
    got = json.loads(out)
    assert code==0 and got['set']['kind']=='photographs' and got['set']['left_out']=={'outfits': 4}


@pytest.mark.parametrize('words, says', [
    ('--model resnet_mini --out a.pdf', 'written as .html or .json'),
    ('--model resnet_mini --model resnet_mini', 'named twice'),
    ('--model resnet_mini --people 2', 'people are 3 to'),
    ('--model resnet_mini --outfits 1', 'outfits are 2 to'),
    ('--model resnet_mini --poses 9', 'poses are 1 to 8'),
    ('--model resnet_mini --people none', 'people'),
    ('--model resnet_mini --resamples 0', 'resamples'),
    ('--model resnet_mini --generated made', 'needs --table'),
    ('--model resnet_mini --table people.csv --poses 2', 'leave it out with --table'),
    ('--model resnet_mini --table gone.csv', 'no table'),
    ('--model resnet_mini --table people.csv', 'no three people'),
    ('--model resnet_mini --table people.csv --generated gone', 'no folder'),
    ('--model resnet_mini --table people.csv --generated .', 'no generated images'),
    ('--model no_such_network', 'no backbone'),
    ('--model gone.safetensors', 'gone.safetensors'),
    ('--model model_of_clothes:nothing', 'model_of_clothes'),
    ('', '--model')])
def test_what_is_wrong_is_one_line_and_nothing_is_written(photographs, run, words, says):
    code,out,err = run(f'clothes-test {words} --device cpu --out b.json' if '--out' not in words else f'clothes-test {words}')
    assert code==2 and out=='' and says in err and len(err.splitlines())==1, err
    assert not list(photographs.glob('b.json')) and not list(photographs.glob('a.*'))


def test_the_results_are_of_todays_recipes_and_world_and_differences_are_those_of_the_rows():
    from pathlib import Path
    from ccreid.data.mannequins import world_hash
    from ccreid.registry import load
    root = Path(__file__).resolve().parent.parent
    found = json.loads((root/'benchmarks'/'results'/'clothes_test.json').read_text())
    assert found['world']==world_hash('mannequins') and len(found['seeds'])>=2
    names = {r['row'] for r in found['rows']}
    assert len(found['rows'])==len(names)*len(found['seeds']) and {r['steps'] for r in found['rows']}=={960}
    for r in found['rows']:
        row = 'identity loss' if r['row']=='many outfits' else r['row']
        assert next(o for o in load(r['chain']).rows if o.name==row).recipe.hash==r['recipe_hash']
        assert sum(v[0] for v in r['test']['shares'].values())==pytest.approx(1, abs=1e-4)
    def mean(name, k):
        runs = [r for r in found['rows'] if r['row']==name]
        return np.mean([r['protocols']['clothes-changing']['R1'] if k=='R1' else r['test']['shares'].get(k, r['test'].get(k))[0]
                        for r in runs])
    for d in found['differences']:
        for k in ('R1','clothes','identity','nearer','changed','lured'):
            assert d[k][0]==pytest.approx(mean(d['a'], k)-mean(d['b'], k), abs=1e-4) and d[k][1]<=d[k][0]<=d[k][2]
