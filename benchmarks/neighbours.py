"""k-reciprocal Jaccard distance and clustering: sparse (ours) against the dense way, in seconds and memory.

    python benchmarks/neighbours.py                 2,000 and 6,000 images
    python benchmarks/neighbours.py --sizes 18000   the training set of PRCC (minutes, and some 4 GB for the dense way)
    python benchmarks/neighbours.py --quick         1,000 images

The dense way is our own writing of what public code does: full matrices, one image at a time. Each contender runs in a process of its own (so that
its peak memory is its own), alternating with the other; labels must agree. Writes benchmarks/results/neighbours.json."""
import argparse, json, os, platform, resource, statistics, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, torch
from ccreid.files import to_json, write_whole

def make(n, dim, seed=0):
    "People of 40 images in several outfits: clusters of uneven density, and hubs"
    rng = np.random.default_rng(seed)
    people = max(1, n//40)
    who = np.arange(n) % people
    f = rng.standard_normal((people, dim), dtype=np.float32)[who] + .8*rng.standard_normal((3*people, dim), dtype=np.float32)[who*3 + rng.integers(0, 3, n)]
    return torch.from_numpy(f + rng.uniform(.7, 1.6, (n, 1)).astype(np.float32)*rng.standard_normal((n, dim), dtype=np.float32))

def dense(features, k1=30, k2=6, eps=.5, min_samples=4):
    "Everything as N by N matrices, image by image"
    from sklearn.cluster import DBSCAN
    f = torch.nn.functional.normalize(features)
    cos = f @ f.T
    n = len(f)
    rank = cos.clone().fill_diagonal_(9).topk(k1, dim=1).indices.numpy()
    def mutual(i, k): return rank[i, :k][(rank[rank[i, :k], :k] == i).any(1)]
    wide, strict = [mutual(i, k1) for i in range(n)], [mutual(i, int(np.around(k1/2))) for i in range(n)]
    V = np.zeros((n, n), np.float32)
    for i in range(n):
        star = wide[i]
        for c in wide[i]:
            if 3*len(np.intersect1d(strict[c], wide[i])) > 2*len(strict[c]): star = np.append(star, strict[c])
        star = np.unique(star)
        weight = torch.softmax(-(2 - 2*cos[i, star]), 0).numpy()
        V[i, star] = weight
    del cos
    V = np.stack([V[rank[i, :k2]].mean(0) for i in range(n)])
    holders = [np.flatnonzero(V[:, j]) for j in range(n)]
    J = np.zeros((n, n), np.float32)
    for i in range(n):
        s = np.zeros(n, np.float32)
        for j in np.flatnonzero(V[i]): s[holders[j]] += np.minimum(V[i, j], V[holders[j], j])
        J[i] = 1 - s/(2 - s)
    del V
    return DBSCAN(eps=eps, min_samples=min_samples, metric='precomputed').fit_predict(np.maximum(J, 0))

def ours(features, k1=30, k2=6, eps=.5, min_samples=4):
    from ccreid.evaluation.neighbours import cluster
    return cluster(features, eps, min_samples, k1=k1, k2=k2).numpy()

def one_knn(features):
    from ccreid.evaluation.reciprocal import nearest
    return nearest(features, 30)[1].numpy()

WAYS = dict(ours=ours, dense=dense, nearest=one_knn)

def worker(way, n, dim):
    "One run in this process; prints seconds, memory above the features, labels"
    import sklearn.cluster, scipy.sparse, ccreid.evaluation.neighbours       # imports are not timed
    features = make(n, dim)
    base, start, busy = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
    labels = WAYS[way](features)
    seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    print(json.dumps(dict(seconds=seconds, cpu=cpu, mib=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)/1024,
                          labels=labels.tolist() if labels.ndim == 1 else [])))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', type=int, nargs='*', help='numbers of images')
    parser.add_argument('--dim', type=int, default=2048, help='length of a feature')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--quick', action='store_true', help='1,000 images of 256 numbers, one round')
    parser.add_argument('--worker', nargs=2, help=argparse.SUPPRESS)
    parser.add_argument('--out', default=str(Path(__file__).parent/'results'/'neighbours.json'))
    args = parser.parse_args()
    if args.worker: return worker(args.worker[0], int(args.worker[1]), args.dim)
    if args.quick: args.sizes, args.dim, args.rounds = [1000], 256, 1
    rows = []
    for n in args.sizes or [2000, 6000]:
        runs = {w: [] for w in WAYS}
        for _ in range(args.rounds):
            for way in WAYS:
                out = subprocess.run([sys.executable, __file__, '--worker', way, str(n), '--dim', str(args.dim)], capture_output=True, text=True, check=True)
                runs[way].append(json.loads(out.stdout))
        a, b = (np.array(runs[w][0]['labels']) for w in ('ours', 'dense'))
        if not np.array_equal(a, b):
            from sklearn.metrics import adjusted_rand_score
            agree = adjusted_rand_score(a, b)
            assert agree > .999, f'labels differ: adjusted Rand index {agree}'
        med = {w: {k: statistics.median(r[k] for r in runs[w]) for k in ('seconds', 'cpu', 'mib')} for w in WAYS}
        rows.append(dict(images=n, dim=args.dim, clusters=int(a.max()) + 1, outliers=int((a < 0).sum()), same_labels=bool(np.array_equal(a, b)),
                         ours=round(med['ours']['seconds'], 2), dense=round(med['dense']['seconds'], 2), nearest_only=round(med['nearest']['seconds'], 2),
                         cpu={w: round(med[w]['cpu'], 3) for w in WAYS}, times_faster=round(med['dense']['seconds']/med['ours']['seconds'], 2),
                         ours_mib=round(med['ours']['mib']), dense_mib=round(med['dense']['mib']), memory_share=round(med['ours']['mib']/med['dense']['mib'], 3)))
        print(pd.DataFrame(rows[-1:]).T.to_string(header=False), end='\n\n')
    result = dict(benchmark='neighbours', quick=args.quick, rounds=args.rounds, rows=rows, threads=torch.get_num_threads(), cores=os.cpu_count(), load=os.getloadavg()[0],
                  machine=platform.machine(), python=platform.python_version(), torch=torch.__version__, numpy=np.__version__, when=time.strftime('%Y-%m-%d'))
    write_whole(args.out, to_json(result, indent=1) + '\n')
    print('wrote', args.out)

if __name__ == '__main__': main()
