"DLCR's pages of results on a made-up file: they run with all rows, with some, with none, and their figures are those of the file"
import ast, json
from pathlib import Path
import numpy as np, pandas as pd, pytest
from ccreid.files import plain
from ccreid.registry import CHAINS
from ccreid.results import ChainResults
from ccreid.runs import environment

PAGE = Path(__file__).parents[1]/'nbs'/'dlcr'/'results.ipynb'
MORE = PAGE.with_name('more_results.ipynb')
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason='the notebooks are in the repository')
ROWS = {row.name: row for row in CHAINS['dlcr']}
VIEWS = {name: [r for r in ROWS.values() if r.trained is not None and r.trained.name==name] for name in ROWS}
LATER = [row for row in ROWS.values() if row.part not in ('core','generators','released','refinement')]
PEOPLE = np.repeat(np.arange(8), 3).tolist()

def figures(rng):
    "Of one protocol, as a run has them"
    hits,ap = (rng.random(len(PEOPLE))<rng.uniform(.2, .8)).astype(int),rng.random(len(PEOPLE)).round(4)
    return dict(R1=float(hits.mean()), mAP=float(ap.mean()), hits=''.join(map(str, hits)), ap=ap.tolist(), identities=PEOPLE, queries=len(PEOPLE), skipped=0)

def record(row, seed, rng):
    "A record of `run`, with made-up figures"
    names = 'same-clothes','clothes-changing'
    made = 19_200 if row.changes.get('generated') else 0
    evaluated = {v.name: dict(evaluation=v.evaluation, given=plain(v.given), said='up to 6 variants of 1200 queries; 0 without any', protocols={p: f'{v.name} {p}' for p in names}) for v in VIEWS[row.name]}
    keys = [*names, *(f'{t} {p}' for t in row.tests for p in names), *(k for about in evaluated.values() for k in about['protocols'].values())]
    pairs = row.changes.get('pairs_mode') in ('all','real') or row.method=='dlcr' and row.changes.get('pairs_mode')!='concatenated'
    return dict(data=row.data, seed=seed, recipe_hash=row.recipe.hash, steps=960, images_seen=960*32*(1+pairs), history=[dict(identity_1=2., identity_2=3.)], seconds=100.+seed, protocols={k: figures(rng) for k in keys},
                train=dict(images=1920+made, generated=made, share=made/(1920+made), per_person=(1920+made)/160), **environment('cpu')) | (dict(evaluated=evaluated) if evaluated else {})

def written(path, wanted):
    "A file with these rows and seeds, by the library's own classes"
    results,rng = ChainResults(path, 'dlcr'),np.random.default_rng(0)
    for name,seeds in wanted.items():
        for seed in seeds: assert results.add(ROWS[name], record(ROWS[name], seed, rng))
    return ChainResults(path, 'dlcr')

def page(path, file=PAGE):
    "What a page's cells leave behind, and the tables that they show; what stands below the rows' tables is not run"
    import matplotlib
    matplotlib.use('agg')
    space,shown = {},{}
    for c in json.loads(file.read_text(encoding='utf-8'))['cells']:
        source = ''.join(c['source'])
        if source.startswith('## One row, live'): break
        if c['cell_type']!='code': continue
        tree = ast.parse(source.replace('../../benchmarks/results/dlcr.json', str(path)))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, 'page', 'exec'), space)
        if last is not None: shown[source] = eval(compile(ast.Expression(last.value), 'page', 'eval'), space)
    return space,[o for o in shown.values() if isinstance(o, pd.DataFrame)]

def all_rows(): return {name: row.seeds for name,row in ROWS.items() if row.trained is None}

def test_the_page_with_every_row(tmp_path, capsys):
    results = written(tmp_path/'d.json', all_rows())
    space,tables = page(tmp_path/'d.json')
    assert len(tables)>=8 and not any(t.astype(str).isin(['not run','stale']).to_numpy().any() for t in tables)
    mean = lambda name, what: np.mean([r['protocols']['clothes-changing'][what] for r in results.of(ROWS[name])])*100
    lines = pd.concat([t for t in tables if 'R1 two ways' in t.columns])
    assert len(lines)==3+5+8+8+6+5 and (lines.seeds==5).sum()==3+5+8+8+6+2      # two of the extended rows evaluate five networks
    kept, = (t for t in tables if 'the same, mean feature, over CAL + descriptions, progressive' in t.index)
    same = lambda name: np.mean([r['protocols']['same-clothes']['R1'] for r in results.of(ROWS[name])])*100
    assert kept.loc['CAL + descriptions, all K, over CAL','R1'].startswith(f"{same('CAL + descriptions, all K')-same('CAL'):+.1f} [")
    for words,a,b in (('standard diffusion over CAL, concatenated','CAL + standard diffusion, concatenated','CAL'), ('progressive over all K','CAL + descriptions, progressive','CAL + descriptions, all K'),
                      ('refined over not','CAL + descriptions, progressive, refined','CAL + descriptions, progressive'), ('variants over voting alone','CAL + descriptions, progressive, refined','the same, voting alone'),
                      ('CAL + descriptions, all K','CAL + descriptions, all K','CAL')):
        for what in ('R1','mAP'): assert lines.loc[words,what].startswith(f'{mean(a, what)-mean(b, what):+.1f} ['), words
    green = next(t for t in tables if 'CAL + descriptions, progressive, refined' in t.index and 'R1, paper' in t.columns)
    assert green['R1, paper'].tolist()==['+0.5','+5.5','+7.7','+0.5','+5.5','+7.7','+9.8','+11.3'] and green['mAP, paper'].tolist()[-2:]==['+6.6','+7.2']   # Table A1 in green
    levels = next(t for t in tables if 'R1, concatenated' in t.columns)
    assert list(levels.columns)==[f'{what}, {where}' for where in ('concatenated','pairs','paper') for what in ('R1','mAP')]
    assert levels['R1, paper'].tolist()==[55.2,55.7,60.7,62.9,65.0,66.5] and levels['mAP, paper'].tolist()==[55.8,55.9,58.9,60.9,62.4,63.0]
    assert levels.loc['refined','R1, pairs'].startswith(f"{mean('CAL + descriptions, progressive, refined', 'R1'):.1f} ±") and levels.loc['descriptions','mAP, pairs'].startswith(f"{mean('CAL + descriptions, all K', 'mAP'):.1f} ±")
    dose = next(t for t in tables if 'for_each' in t.columns)
    assert dose.loc['CAL + descriptions, all K',['real','generated','for_each','steps','images_seen']].tolist()==[1920,19200,10,960,61440] and dose.loc['CAL','images_seen']==30720
    said = capsys.readouterr().out
    different = {frozenset(p[:2]) for p in space['compared'] if p[-1]=='clothes-changing'}
    assert f"{len(space['compared'])} intervals; of the {2*len(different)} different ones with changed clothes" in said and len(space['compared'])==2*len(lines)
    assert 'seed: 0; 1; 2; 3; 4' in said and 'steps: 960' in said and 'images_seen: 30720; 61440' in said and f'world: {results.world}' in said
    made = next(t for t in tables if 'recipe' in t.columns)
    assert made.loc['CAL + descriptions, progressive, refined','counted, first seed'].startswith('up to 6 variants') and made.loc['CAL','recipe']==ROWS['CAL'].recipe.hash and made.runs.sum()==sum(len((row.trained or row).seeds) for row in ROWS.values())

@pytest.mark.parametrize('wanted', [{}, {'CAL': (0,)}, {'CAL': (0,1), 'CAL + descriptions, progressive': (2,3), 'CAL + descriptions, all K': (0,1,2)}])
def test_the_page_with_some_rows_or_none(tmp_path, capsys, wanted):
    "Rows without common seeds are not compared, and nothing is counted that is not there"
    written(tmp_path/'d.json', wanted)
    space,tables = page(tmp_path/'d.json')
    lines = pd.concat([t for t in tables if 'R1 two ways' in t.columns])
    told = lines[lines.R1.str.contains('[', regex=False)]
    assert len(lines)==35 and (lines.R1=='not run').sum()==len(lines)-len(told) and len(space['compared'])==2*len(told)
    assert bool(len(told))==bool(wanted) and (lines.seeds=='not run').sum()==len(lines)-len(told) and f'{2*len(told)} intervals' in capsys.readouterr().out

def test_the_other_tables_with_every_row(tmp_path, capsys):
    results = written(tmp_path/'d.json', all_rows())
    space,tables = page(tmp_path/'d.json', MORE)
    assert not any(t.astype(str).isin(['not run','stale','nan']).to_numpy().any() for t in tables)
    two = lambda name, p='clothes-changing': 100*np.mean([r['protocols'][p]['R1'] for r in results.of(ROWS[name]) if r['seed'] in (0,1)])
    lines = pd.concat([t for t in tables if 'R1 two ways' in t.columns])
    shown = {a for a,*_ in space['compared']} | {b for _,b,_ in space['compared']}
    assert {row.name for row in LATER}<=shown and len(space['compared'])==len(lines)                # every row declared is compared with something
    assert lines.R1.str.contains('[', regex=False).all()
    for words,a,b in (('PCB: concatenated, over alone','PCB + descriptions, concatenated','PCB'), ('1 over 0','CAL + descriptions, K = 1, concatenated','CAL'),
                      ('guided, over not','CAL + a guided diffusion model, K = 4, concatenated','CAL + a diffusion model, K = 4, concatenated')):
        assert abs(float(lines.loc[[words],'R1'].iloc[0].split()[0])-(two(a)-two(b)))<.051
    methods = next(t for t in tables if 'paper: alone' in t.columns)
    assert methods.loc['HPM',['alone','refined']].tolist()==[round(two('HPM'), 1), round(two('HPM + descriptions, progressive, refined'), 1)]
    assert methods['paper: alone'].tolist()==[41.8,33.8,40.4,55.2,55.7,83.6] and methods['stage 1'].tolist()==[53.3,62.5,56.0,62.9,60.2,84.6]
    assert methods['stage 1 + 2'].tolist()==[56.5,64.8,57.5,66.5,61.9,85.8] and methods.loc['CAL with faces','refined']==''                     # Table A2
    layout = next(t for t in tables if "LTCC's layout" in t.columns)
    assert layout.loc["CAL in LTCC's layout","PRCC's layout"]==round(two("CAL in LTCC's layout", 'mannequins clothes-changing'), 1)
    told = next(t for t in tables if 'part' in t.columns)
    assert len(told)==len(LATER) and told.loc['PCB','recipe']==ROWS['PCB'].recipe.hash
    said = capsys.readouterr().out
    assert f"{2*len(space['compared'])} intervals, {2*len(set(space['compared']))} different ones" in said and 'seed: 0; 1' in said

@pytest.mark.parametrize('wanted', [{}, {'CAL': (0,)}, {'PCB': (0,1), 'PCB + descriptions, progressive': (1,)}])
def test_the_other_tables_with_some_rows_or_none(tmp_path, capsys, wanted):
    written(tmp_path/'d.json', wanted)
    space,tables = page(tmp_path/'d.json', MORE)
    lines = pd.concat([t for t in tables if 'R1 two ways' in t.columns])
    told = lines[lines.R1.str.contains('[', regex=False)]
    assert (lines.seeds=='not run').sum()==len(lines)-len(told) and len(told)==len(space['compared']) and f'{2*len(told)} intervals' in capsys.readouterr().out
