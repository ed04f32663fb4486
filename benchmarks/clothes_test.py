"""How much do our own rows look at clothes? Trains them again, two seeds or more, and puts each through the clothes test

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
            world.render(int(person), k, k*world.cameras//each, frame=k).image.save(tmp := f'{paths[-1]}.making', 'JPEG', quality=95, subsampling=0)
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

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--folder', type=Path, required=True, help='where networks and pictures are kept')
    p.add_argument('--seeds', type=int, nargs='+', default=SEEDS)
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

if __name__=='__main__': main()
