"""Evaluation as large as MSMT17's: 11,659 queries in a gallery of 82,161, and the memory that it takes above the features.

    python benchmarks/large.py                 features of 2,048 numbers: 0.7 GiB of them
    python benchmarks/large.py --quick         a tenth of both, of 256 numbers

`retrieval_metrics` and the matrix product that it cannot avoid, each in a process of its own. The usual way holds the whole matrix of distances and its order:
`full_matrix_gib` says how much that is, by arithmetic. Random people of 75 images each. Writes benchmarks/results/large.json."""
import argparse, json, os, platform, resource, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, torch
from ccreid.files import to_json, write_whole

QUERIES,GALLERY,CAMERAS = 11659,82161,15

def worker(way, queries, gallery, dim):
    "One run in this process; prints seconds and memory above the features"
    from ccreid.evaluation.metrics import retrieval_metrics
    from ccreid.evaluation.protocols import STANDARD
    rng,people = np.random.default_rng(0),max(2, gallery//75)
    centres = rng.standard_normal((people,dim), dtype=np.float32)
    def some(n):
        ids = np.arange(n)%people
        f = rng.standard_normal((n,dim), dtype=np.float32)
        for i in range(0, n, 256): f[i:i+256] += .25*centres[ids[i:i+256]] # a few at a time: the peak from which memory is counted is that of the features
        return torch.from_numpy(f),pd.DataFrame(dict(identity=ids, camera=rng.integers(0, CAMERAS, n), clothes=ids))
    (q,query),(g,table) = some(queries),some(gallery)
    few = slice(0, 64)
    retrieval_metrics(q[few], g[few], query[few], table[few], STANDARD) # imports and first uses are not measured
    base,start,busy = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,time.perf_counter(),time.process_time()
    if way=='product':
        for part in q.split(512): (part@g.T).sum()
        figures = {}
    else:
        m = retrieval_metrics(q, g, query, table, STANDARD)
        figures = dict(mAP=m.mAP, rank1=m.rank(1))
    print(json.dumps(dict(seconds=time.perf_counter()-start, cpu=time.process_time()-busy, mib=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-base)/1024, **figures)))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--queries', type=int, default=QUERIES)
    parser.add_argument('--gallery', type=int, default=GALLERY)
    parser.add_argument('--dim', type=int, default=2048)
    parser.add_argument('--quick', action='store_true', help='a tenth of both, short features')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    parser.add_argument('--out', default=str(Path(__file__).parent/'results'/'large.json'))
    args = parser.parse_args()
    if args.quick: args.queries,args.gallery,args.dim = QUERIES//10,GALLERY//10,256
    if args.worker: return worker(args.worker, args.queries, args.gallery, args.dim)
    sizes,runs = [],{}
    for o in 'queries','gallery','dim': sizes += [f'--{o}', str(getattr(args, o))]
    for way in 'evaluate','product':
        out = subprocess.run([sys.executable, __file__, '--worker', way, *sizes], stdout=subprocess.PIPE, text=True, check=True)
        runs[way] = json.loads(out.stdout)
    e,p = runs['evaluate'],runs['product']
    row = dict(queries=args.queries, gallery=args.gallery, dim=args.dim, seconds=round(e['seconds'], 2), product=round(p['seconds'], 2), cpu=round(e['cpu'], 2), cpu_product=round(p['cpu'], 2), cpu_of_product=round(e['cpu']/p['cpu'], 2),
               mib=round(e['mib']), product_mib=round(p['mib']), full_matrix_gib=round(args.queries*args.gallery*(4+8)/2**30, 2), mAP=e['mAP'], rank1=e['rank1'])
    print(pd.Series(row).to_string())
    result = dict(benchmark='large', quick=args.quick, rows=[row], threads=torch.get_num_threads(), cores=os.cpu_count(), load=round(os.getloadavg()[0], 1),
                  machine=platform.machine(), python=platform.python_version(), torch=torch.__version__, when=time.strftime('%Y-%m-%d'))
    write_whole(args.out, to_json(result, indent=1)+'\n')
    print('wrote', args.out)

if __name__=='__main__': main()
