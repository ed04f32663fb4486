"""How much do our own rows look at clothes? Trains them again, two seeds or more, and puts each to the test

Declared before the first run. Rows, all of 960 steps on the benchmark `mannequins`: `identity loss`, `CAL`, and
`CAL + SHSG + HSAL` (HSGL) by their recipes; `many outfits`, the ceiling: the identity loss on the same people before the
same cameras, as many pictures, each of them in an outfit of its own. Direction: in the order in which clothes-changing
rank-1 rises (many outfits above HSGL, HSGL above the identity loss; CAL is not expected to be told from the identity
loss), the share of variance due to clothes falls, that due to identity rises, the wrong person in the same clothes is
nearer less often, and rank-1 under re-dressing rises. Test people belong to no training set, nor do their outfits.
"""
import argparse, json, os, time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

SEEDS = (0,1)
ROWS = {'identity loss': ('foundations','identity loss'), 'CAL': ('foundations','CAL'),
        'CAL + SHSG + HSAL': ('hsgl','CAL + SHSG + HSAL'), 'many outfits': ('foundations','identity loss')}

def many_outfits(dataset, folder):
    "The training people before the same cameras, as many pictures, each in an outfit of its own"
    from ccreid.data.mannequins import MannequinWorld
    from ccreid.data.mannequins.benchmarks import BENCHMARKS
    from ccreid.data.samples import ReIDDataset
    spec,train = BENCHMARKS['mannequins']['world'],dataset.train
    each = len(train)//train.identity.nunique()
    world = MannequinWorld(**{**spec, 'outfits': each})  # the same people: an identity follows from seed and number
    people = sorted(train.identity.unique())
    rows,paths = train.sort_values(['identity','path']).index,[]
    folder.mkdir(parents=True, exist_ok=True)
    for person in people:
        for k in range(each):
            paths.append(str(folder/f'{person:04d}_{k:02d}.jpg'))
            if Path(paths[-1]).exists(): continue
            image,tmp = world.render(int(person), k, k*world.cameras//each, frame=k).image,f'{paths[-1]}.making'
            image.save(tmp, 'JPEG', quality=95, subsampling=0)
            os.replace(tmp, paths[-1])
    samples = dataset.samples.copy()
    samples.loc[rows, 'path'] = paths
    samples.loc[rows, 'clothes'] = range(len(paths))
    samples.loc[rows, 'camera'] = [k*world.cameras//each for _ in people for k in range(each)]
    return ReIDDataset(dataset.name, dataset.root, samples, dataset._protocols, dataset.notes, dataset.no_cameras)

def train(name, seed, sets, folder):
    "One run: its network as an export, and its record"
    from ccreid.experiments import run_row
    from ccreid.files import to_json, write_whole
    from ccreid.registry import load
    from ccreid.runs import run
    from ccreid.training.export import export_reid
    chain,row = ROWS[name]
    file = folder/f"{name.replace(' + ', '-').replace(' ', '_')}-{seed}.safetensors"
    kept = file.with_suffix('.json')
    if kept.exists(): return file,json.loads(kept.read_text())
    recipe = next(r for r in load(chain).rows if r.name==row).recipe
    keep = lambda learn: export_reid(learn, file)
    if name!='many outfits': record = run_row(recipe, sets, seed, 'cpu', trained=keep)
    else: record = run(recipe, many_outfits(sets[''], folder/'many-outfits'), seed, 'cpu', quiet=True, trained=keep)[1]
    figures = {k: {m: p[m] for m in ('R1','mAP','queries')} for k,p in record['protocols'].items()}
    record = {k: record[k] for k in ('method','recipe_hash','seed','steps','images_seen','train','seconds','versions')}
    write_whole(kept, to_json(record | dict(row=name, chain=chain, protocols=figures), indent=1))
    return file,json.loads(kept.read_text())

FIGURES = 'clothes','identity','clothes with others','pose','camera','rest','nearer','kept','changed','lured'

def hits_of(network, dataset):
    "Rank-1 hits of the clothes-changing protocol, and whose queries they are"
    from ccreid.training.asking import evaluate_all
    results,table = evaluate_all(network, dataset)
    m = results['clothes-changing']
    return m.hits.numpy().astype(float),table.identity.loc[m.query_rows].to_numpy()

def tested_as(name, network, dressed, dataset):
    "(figures for the file, draws of people by figure, hits, identities) of a network"
    from ccreid.clothes.measuring import as_dict, clothes_test, parts_of
    from ccreid.evaluation.redressed import LINE_UPS
    t = clothes_test(network, dressed, name)
    drawn = {k: t.shares.raw(*v)/t.shares.total for k,v in parts_of(t.shares.drawn).items()}
    drawn |= {k: t.redressed.drawn[k] for k in ('nearer',*LINE_UPS)}
    return as_dict(t),drawn,*hits_of(network, dataset)

def gap(a, b, rng):
    "Difference of two rows [seeds,R+1], paired by seed, with its interval over people and seeds"
    import numpy as np
    d = np.asarray(a)-np.asarray(b)
    pick = rng.integers(len(d), size=(d.shape[1]-1, len(d)))
    draws = d[pick, np.arange(1, d.shape[1])[:,None]].mean(1)
    return [round(float(v), 5) for v in (d[:,0].mean(), *np.quantile(draws, [.025,.975]))]

def compare(found, names):
    "For every two rows the differences of all figures, and of clothes-changing rank-1"
    import numpy as np
    from itertools import combinations
    from ccreid.evaluation.statistics import paired_bootstrap
    res = []
    for a,b in combinations(names, 2):
        rng = np.random.default_rng(0)
        figures = {k: gap([o[1][k] for o in found[a]], [o[1][k] for o in found[b]], rng) for k in FIGURES}
        R1 = paired_bootstrap([o[2] for o in found[a]], [o[2] for o in found[b]], found[a][0][3])
        res.append(dict(a=a, b=b, R1=[round(float(v), 5) for v in R1], **figures))
    return res

def report(folder, seeds, sets, out):
    "Test the networks that are there, and write the file; `SystemExit` where one is missing"
    from ccreid.clothes.pictures import drawn_set
    from ccreid.data.mannequins import world_hash
    from ccreid.files import to_json, write_whole
    from ccreid.runs import environment
    from ccreid.training.any_model import embedder
    from ccreid.training.export import load_reid
    dressed,found,rows = drawn_set(),{},[]
    for name in ROWS:
        for seed in seeds:
            file,record = train(name, seed, sets, folder)
            one = tested_as(name, load_reid(file), dressed, sets[''])
            again = one[2].mean()
            assert abs(again-record['protocols']['clothes-changing']['R1'])<1e-6, (name, seed, again)
            found.setdefault(name, []).append(one)
            rows.append(record | dict(test=one[0]))
            print(name, seed, *(f"{k} {100*one[1][k][0]:.1f}" for k in FIGURES), f'R1 {100*again:.1f}', flush=True)
    start = tested_as('before training', embedder('resnet_mini').model, dressed, sets[''])
    before = dict(test=start[0], protocols={'clothes-changing': dict(R1=float(start[2].mean()), queries=len(start[2]))})
    n,O,P,C = dressed.shape
    res = dict(set=dict(dressed.about, people=n, outfits=O, poses=P, cameras=C), world=world_hash('mannequins'),
               seeds=list(seeds), rows=rows, before=before, differences=compare(found, list(ROWS)), **environment('cpu'))
    write_whole(out, to_json(res, indent=1)+'\n')
    print(f'written to {out}')

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--folder', type=Path, required=True, help='where networks and pictures are kept')
    p.add_argument('--seeds', type=int, nargs='+', default=SEEDS)
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'clothes_test.json')
    p.add_argument('--train-only', action='store_true', help='stop when the networks are there')
    a = p.parse_args()
    from ccreid.data.mannequins import benchmark
    from ccreid.experiments import Sets
    a.folder.mkdir(parents=True, exist_ok=True)
    sets = Sets(benchmark('mannequins', a.folder), a.folder)
    for seed in a.seeds:
        for name in ROWS:
            start = time.time()
            file,record = train(name, seed, sets, a.folder)
            ranks = ', '.join(f"{k} {100*v['R1']:.1f}" for k,v in record['protocols'].items())
            print(f"{name}, seed {seed}: {record['steps']} steps, {ranks} ({time.time()-start:.0f} s)", flush=True)
    if not a.train_only: report(a.folder, a.seeds, sets, a.out)

if __name__=='__main__': main()
