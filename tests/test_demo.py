"The demo on a tiny world: its rows are those of the results table, and what it says of them is right"
import importlib.util, json
from pathlib import Path
import numpy as np
import pytest
from ccreid import demo as module
from ccreid.data.mannequins import MannequinWorld, world_hash
from ccreid.experiments import Sets, run, run_row
from ccreid.hsgl.miniature import GARMENTS
from ccreid.recipes import recipe
from ccreid.training.export import load_reid

ROOT = Path(__file__).parent.parent

@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    out, lines = tmp_path_factory.mktemp('demo'), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'quick_world', lambda: MannequinWorld(identities=(10,0,6), outfits=2, cameras=3, images=4, seed=7))
        summary = module.demo(out, quick=True, seed=3, device='cpu', log=lambda o: lines.append(str(o)))
    return out, summary, lines

def test_the_demos_rows_are_those_of_the_results():
    committed = [r for chain in ('foundations','hsgl') for r in json.loads((ROOT/'benchmarks'/'results'/f'{chain}.json').read_text())['records']]
    for name,settings in module.METHODS.items():
        r = recipe('mannequins', **settings)
        same = [(o['recipe_hash'], o['world'], o['steps']) for o in committed if o['row']==name and o['seed']==0]
        assert same and set(same)=={(r.hash, world_hash('mannequins'), same[0][2])}, name

def test_each_row_is_what_the_runner_of_results_gives(tiny):
    out, summary, _ = tiny
    dataset = MannequinWorld(identities=(10,0,6), outfits=2, cameras=3, images=4, seed=7).write(out/'data'/'quick'/'mannequins', layout='prcc')
    sets = Sets(dataset, out/'data'/'quick')
    for name,settings in module.METHODS.items():
        record = run_row(recipe('mannequins', epochs=2, **settings), sets, 3, 'cpu')
        shown = summary['methods'][name]
        for k in ('recipe_hash','seed','steps','images_seen','history','protocols'): assert shown[k]==record[k], (name, k)
    r = recipe('mannequins', epochs=2, **settings)
    other = run(r, sets[r.generated], 3, 'cpu', quiet=True)[1]                     # without the limit of steps it is another run
    assert other['steps']>record['steps'] and other['history']!=record['history']

def test_generated_images_are_counted_and_announced(tiny):
    out, summary, lines = tiny
    text = '\n'.join(lines)
    files = [p for p in (out/'data'/'quick'/'mannequins-shsg-fifth'/'images').rglob('*') if p.suffix in ('.jpg','.png')]
    assert len(files)==5*GARMENTS                     # a fifth of 120 pictures, by five people in all garments
    before, after = text.index('25 images, 20% of the 120 real ones'), text.index(f'{len(files)} generated images (SHSG)')
    assert text.index('Training: CAL (')<before<after<text.index('Training: CAL + SHSG + HSAL (')
    page = (out/'report.html').read_text()
    assert f'{len(files)} generated images (SHSG)' in page and 'the same number of steps' in page
    assert 'Generated images take the place of real ones, same number of steps' in summary['what'] and summary['what'] in text
    assert len({(r['steps'], r['images_seen']) for r in summary['methods'].values()})==1

def test_weights_of_every_row_are_kept(tiny):
    for name in ('identity','cal','cal+hsal+shsg-fifth'): load_reid(tiny[0]/f'{name}.safetensors', 'cpu')

def record(hits): # 10 people with two queries each
    return dict(seed=0, protocols={'clothes-changing': dict(hits=hits, ap=[0.]*20, identities=[i//2 for i in range(20)])})

def test_differences_are_to_the_row_before_whatever_their_sign():
    rows = {'a': record('10'*10), 'b': record('11'*4+'10'*6), 'c': record('00'*10)}
    line = module.difference_line(rows)
    assert 'b minus a +20.0 points' in line and 'c minus b -70.0 points' in line and 'c minus a' not in line
    assert line.startswith('Clothes-changing rank-1: ') and line.count('95 % interval')==2 and '10 identities resampled' in line
    gain = np.array([.5]*4+[0]*6)                                               # of each person: one query in two, or none
    drawn = 100*gain[np.random.default_rng(0).integers(10, size=(20000,10))].mean(1)
    lo, hi = (float(o) for o in line.split('b minus a +20.0 points, 95 % interval [')[1].split(']')[0].split(','))
    assert lo==pytest.approx(np.quantile(drawn, .025), abs=1) and hi==pytest.approx(np.quantile(drawn, .975), abs=1)
    assert module.difference_line(dict(list(rows.items())[:2])).count('minus')==1

def test_the_readmes_table_takes_what_the_demo_writes(tiny):
    out, summary, _ = tiny
    spec = importlib.util.spec_from_file_location('ccreid_tools_readme_assets', ROOT/'tools'/'readme_assets.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    saved = json.loads((out/'metrics.json').read_text())
    assert saved['difference']==summary['difference'] and set(saved)=={'what','difference','seconds','methods'}
    text = tool.table(saved)
    for name,r in saved['methods'].items():
        for setting,p in r['protocols'].items(): assert f"| {name} | {setting} | {100*p['R1']:.1f} |" in text
    assert text.count('\n| ')==2*len(module.METHODS) and saved['difference'] in text and 'same number of steps' in text
    assert (out/'ranked_list.png').exists()
