"How much a model looks at clothes: shares of variance and line-ups by loops, the drawn set, photographs, the command"
import json, sys
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest

from ccreid.evaluation.crossed import components, people_drawn, products, variance_shares
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


def by_equations(y, people):
    "Equations (2) and (4) as they are written, for people of whom some are there twice"
    shape = y.shape[1:-1]
    sets = [S for r in range(len(shape)+1) for S in combinations(range(len(shape)), r)]
    def effect(i, S):
        e = 0
        for r in range(len(S)+1):
            for T in combinations(S, r):
                m = y[i]
                for f in range(len(shape)):
                    if f not in T: m = m.mean(f, keepdims=True)
                e = e+(-1)**(len(S)-r)*m
        return e
    N,d = (lambda S: np.prod([n for f,n in enumerate(shape) if f not in S])),(lambda S: np.prod([shape[f]-1 for f in S]))
    E = {(i,S): effect(i, S) for i in set(people) for S in sets}
    A = {S: N(S)/d(S)*np.mean([(E[i,S]**2).sum() for i in people]) for S in sets}
    B = {S: N(S)/d(S)*np.mean([(E[i,S]*E[j,S]).sum() for i,j in product(people, repeat=2) if i!=j]) for S in sets}
    found = {}
    for S in sets:
        own = tuple(f+1 for f in S)
        up = [(T, (-1)**(len(T)-len(S))/N(S)) for T in sets if set(S)<=set(T)]
        if S: found[own] = sum(k*B[T] for T,k in up)
        found[(0,*own)] = sum(k*(A[T]-B[T]) for T,k in up)
    return found


@pytest.mark.parametrize('shape', [(3,2),(5,3,2),(4,2,3,2)])
def test_drawings_of_people_are_what_the_equations_give_and_nobody_meets_her_copy(shape):
    y = np.random.default_rng(0).normal(size=(*shape,5))
    w = people_drawn(shape[0], 5, 3)
    found = components(products(y), shape[1:], w)
    assert (w.sum(1)==shape[0]).all() and (w[1:]>1).any()
    for r,row in enumerate(w):
        wanted = by_equations(y, [i for i,k in enumerate(row) for _ in range(int(k))])
        assert found.keys()==wanted.keys()
        for S in wanted: assert found[S][r]==pytest.approx(wanted[S], abs=1e-9)


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


def test_intervals_of_who_is_nearer_count_pairs_of_different_people_as_often_as_they_were_drawn():
    y,n = np.random.default_rng(2).normal(size=(4,3,1,2,5)),4
    unit = y/np.linalg.norm(y, axis=-1, keepdims=True)
    def share(i, j):
        "How often person j in the same clothes is nearer to i than i in other clothes"
        at = [(o,p,c) for o,p,c in product(range(3), range(3), range(2)) if o!=p]
        return np.mean([unit[i,o,0,c]@unit[j,o,0,1-c]>unit[i,o,0,c]@unit[i,p,0,1-c] for o,p,c in at])
    r,w = redressed(y, 9, 5),people_drawn(n, 9, 5)
    for k,row in enumerate(w):
        people = [i for i,m in enumerate(row) for _ in range(int(m))]
        assert r.drawn['nearer'][k]==pytest.approx(np.mean([share(i, j) for i,j in product(people, repeat=2) if i!=j]))


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


def test_activation_under_garments_is_what_loops_count_and_no_batch_is_too_large():
    import torch
    from torch import nn
    from ccreid.clothes.looks import _one_each, shares_under, under_garments
    from ccreid.evaluation.pictures import activation
    from ccreid.training.any_model import embedder
    rng = np.random.default_rng(0)
    heat,masks = torch.tensor(rng.random((3,4,5))),rng.random((3,4,5))<.4
    heat[2] = 0
    inside,area = shares_under(heat, masks)
    for k in range(2):
        cells = [(float(heat[k,i,j]), masks[k,i,j]) for i,j in product(range(4), range(5))]
        assert inside[k]==pytest.approx(sum(h for h,m in cells if m)/sum(h for h,_ in cells)) and area[k]==pytest.approx(np.mean([m for _,m in cells]))
    assert np.isnan(inside[2])
    d,seen = drawn_set(people=3, outfits=5, poses=2, cameras=2),[]
    network = embedder('resnet_mini')
    prepare = network.prepare
    class Spy(nn.Module):
        def __init__(self, net): super().__init__(); self.net = net
        def forward(self, x): seen.append(len(x)); return self.net(x)
    from ccreid.clothes import looks
    real = looks.map_of
    looks.map_of = lambda model: Spy(real(model))
    try: found = under_garments(network, d, 20, batch_size=8)
    finally: looks.map_of = real
    assert max(seen)<=8 and sum(seen)==15
    at = _one_each(d)
    one = [shares_under(activation(real(network), prepare(d.pictures[k])[None]), d.garments[[k]]) for k in at.ravel()]
    inside,area = (np.array([float(o[k][0]) for o in one]) for k in (0,1))
    assert found['activation'].value==pytest.approx(inside.mean(), abs=1e-5) and found['times'].value==pytest.approx(inside.mean()/area.mean(), abs=1e-4)


def test_two_models_of_one_name_keep_a_column_each_and_other_people_are_not_said_to_be_new():
    from ccreid.clothes.page import clothes_page, side_by_side
    d = drawn_set(people=3, outfits=2, poses=1, cameras=2, seed=2026)
    a,b = (clothes_test(lambda p, k=k: [[*np.asarray(o, float)[:k].mean((0,1)), 9.] for o in p], d, 'mine', 10) for k in (40,90))
    table = side_by_side([a,b])
    assert table.shape==(11,3) and list(table.columns)==['','mine','mine'] and (table.iloc[:,1]!=table.iloc[:,2]).any()
    from ccreid.data.mannequins import MannequinWorld
    from ccreid.clothes.pictures import _crowd
    known = MannequinWorld(**BENCHMARKS['mannequins']['world'])     # another population may well be that of a benchmark
    assert repr(known.identity(0))==repr(_crowd(3, 2, 2, 2026)[0].identity(0)) and 'in no training set' not in clothes_page([a], d, 10)
    d.about['seed'] = 2031
    assert 'in no training set' in clothes_page([a], d, 10)


@pytest.mark.parametrize('lines,says', [('a.png,Ann,coat,door,\n', 'lines have more fields than the header'), ('a.png,Ann,coat\n', 'line 2: a field is empty'), ('', 'has no rows'),
                                        ('a.png,Ann,coat,door\nb.png,Bea,coat,door,x\n', 'is no table')])
def test_tables_with_too_few_or_too_many_fields(tmp_path, lines, says):
    (tmp_path/'t.csv').write_text('path,person,clothes,camera\n'+lines)
    with pytest.raises(DataError, match=says) as e: read_photographs(tmp_path/'t.csv')
    assert 't.csv' in str(e.value) and '\n' not in str(e.value)


def test_the_thinnest_level_goes_first_and_what_is_left_is_whole():
    rng = np.random.default_rng(3)
    for seed in range(20):
        cells = [c for c in product('pqrst', 'abc', '12', 'xy') if rng.random()<.93]
        t = whole_part(pd.DataFrame(cells, columns=['person','clothes','pose','camera']))
        n = [t[k].nunique() for k in t]
        assert len(t)==np.prod(n) and not t.duplicated().any()


def test_photographs_are_refused_only_where_no_three_people_share_two_outfits_in_a_view():
    from ccreid.clothes.pictures import _few, _grown
    rng,found = np.random.default_rng(0),[]
    for _ in range(60):
        cells = [c for c in product('pqrst','abcd','12','xy') if rng.random()<rng.uniform(.3, .8)]
        t,have = pd.DataFrame(cells, columns=['person','clothes','pose','camera']),set(cells)
        there = any(sum((i,a,*v) in have and (i,b,*v) in have for i in 'pqrst')>=3 for a,b in combinations('abcd', 2) for v in product('12','xy'))
        grown = _grown(t)
        assert _few(grown) is not there
        if there: assert len(grown)==np.prod([grown[k].nunique() for k in grown]) and not grown.duplicated().any()
        found.append((there, _few(whole_part(t))))
    assert (True,True) in found and (True,False) in found and (False,True) in found    # the thinnest first goes too far now and then


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
    ('--model resnet_mini --out shut.html', 'shut.html is a folder'),
    ('--model resnet_mini --out people.csv/new/a.html', 'people.csv is no folder'),
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
    (photographs/'shut.html').mkdir()
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
