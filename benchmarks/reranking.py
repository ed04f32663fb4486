"""k-reciprocal re-ranking: `rerank` (sparse) against the dense way, beside the distance matrix that both begin with.

    python benchmarks/reranking.py            1,000 queries in a gallery of 5,000; features of 2,048 numbers
    python benchmarks/reranking.py --quick    200 in 1,000, of 256 numbers

The dense way is our own writing of what public code does: matrices of all images by all images, one image at a time. Distances of both must agree.
Each runs in a process of its own, so that its peak memory is its own, in turn with the others; medians. Writes benchmarks/results/reranking.json."""
import argparse, json, os, platform, resource, statistics, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, torch
from ccreid.files import to_json, write_whole
from neighbours import make

def dense(q, g, k1=20, k2=6, lambda_value=.3):
    "Everything as N by N matrices, image by image"
    f = torch.nn.functional.normalize(torch.cat([q, g]))
    n,distance = len(f),(2-2*f@f.T).numpy()
    distance /= distance.max(1, keepdims=True)
    rank = np.argsort(distance, 1)[:, :k1+1].astype(np.int32)
    def mutual(i, k): return rank[i, :k+1][(rank[rank[i, :k+1], :k+1]==i).any(1)]
    half = [mutual(i, int(np.around(k1/2))) for i in range(n)]
    V = np.zeros((n,n), np.float32)
    for i in range(n):
        wide = star = mutual(i, k1)
        for c in wide:
            if 3*len(np.intersect1d(half[c], wide))>2*len(half[c]): star = np.append(star, half[c])
        star = np.unique(star)
        weight = np.exp(-distance[i, star])
        V[i, star] = weight/weight.sum()
    V = np.stack([V[rank[i, :k2]].mean(0) for i in range(n)])
    holders = [np.flatnonzero(V[:,j]) for j in range(n)]
    result = np.empty((len(q),len(g)), np.float32)
    for i in range(len(q)):
        s = np.zeros(n, np.float32)
        for j in np.flatnonzero(V[i]): s[holders[j]] += np.minimum(V[i,j], V[holders[j],j])
        result[i] = (1-lambda_value)*(1-s/(2-s))[len(q):]+lambda_value*distance[i, len(q):]
    return result

def ours(q, g):
    from ccreid.evaluation.neighbours import rerank
    return rerank(q, g).numpy()

def product(q, g):
    f = torch.nn.functional.normalize(torch.cat([q, g]))
    for part in f.split(1024): (part@f.T).sum()
    return np.zeros(0)

WAYS = dict(ours=ours, dense=dense, product=product)

def worker(way, queries, gallery, dim):
    "One run in this process; prints seconds, memory above the features, and the distances' mean of each query"
    import scipy.sparse, ccreid.evaluation.neighbours # imports are not timed
    f = make(queries+gallery, dim)
    base,start,busy = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,time.perf_counter(),time.process_time()
    d = WAYS[way](f[:queries], f[queries:])
    seconds,cpu = time.perf_counter()-start,time.process_time()-busy
    print(json.dumps(dict(seconds=seconds, cpu=cpu, mib=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-base)/1024,
                          distances=d[:20].astype(float).round(6).tolist() if d.ndim==2 else [])))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--queries', type=int, default=1000)
    parser.add_argument('--gallery', type=int, default=5000)
    parser.add_argument('--dim', type=int, default=2048)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--quick', action='store_true', help='small, one round')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    parser.add_argument('--out', default=str(Path(__file__).parent/'results'/'reranking.json'))
    args = parser.parse_args()
    if args.quick: args.queries,args.gallery,args.dim,args.rounds = 200,1000,256,1
    if args.worker: return worker(args.worker, args.queries, args.gallery, args.dim)
    runs = {w: [] for w in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            out = subprocess.run([sys.executable, __file__, '--worker', way, '--queries', str(args.queries), '--gallery', str(args.gallery), '--dim', str(args.dim)],
                                 stdout=subprocess.PIPE, text=True, check=True)
            runs[way].append(json.loads(out.stdout))
    apart = float(np.abs(np.array(runs['ours'][0]['distances'])-np.array(runs['dense'][0]['distances'])).max())
    assert apart<1e-3, f'distances differ by {apart}'
    med = {w: {k: statistics.median(r[k] for r in runs[w]) for k in ('seconds','cpu','mib')} for w in WAYS}
    row = dict(queries=args.queries, gallery=args.gallery, dim=args.dim, ours=round(med['ours']['seconds'], 3), dense=round(med['dense']['seconds'], 3),
               product=round(med['product']['seconds'], 3), cpu={w: round(med[w]['cpu'], 3) for w in WAYS}, times_faster=round(med['dense']['seconds']/med['ours']['seconds'], 2),
               of_product=round(med['ours']['seconds']/med['product']['seconds'], 2), ours_mib=round(med['ours']['mib']), dense_mib=round(med['dense']['mib']), apart=apart)
    print(pd.Series(row).to_string())
    result = dict(benchmark='reranking', quick=args.quick, rounds=args.rounds, rows=[row], threads=torch.get_num_threads(), cores=os.cpu_count(),
                  load=round(os.getloadavg()[0], 1), machine=platform.machine(), python=platform.python_version(), torch=torch.__version__, when=time.strftime('%Y-%m-%d'))
    write_whole(args.out, to_json(result, indent=1)+'\n')
    print('wrote', args.out)

if __name__=='__main__': main()
