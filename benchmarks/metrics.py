"""How long retrieval metrics take, against the matrix product they cannot avoid and a plain loop over the queries.

    python benchmarks/metrics.py            both sizes, five interleaved runs, medians
    python benchmarks/metrics.py --quick    a tenth of the queries, three runs

Features are random people (a centre each, plus noise), labels have the sizes and the junk rules of the benchmark. Every contender gets the
same input in the same run, one after the other, round by round; ratios are of medians. Processor seconds stand beside wall seconds: on a busy machine
they say more. Peers join the table where they are installed.
Writes benchmarks/results/metrics.json."""
import argparse, os, platform, resource, statistics, sys, time
from pathlib import Path
import numpy as np, pandas as pd, torch
from ccreid.evaluation.metrics import retrieval_metrics, metrics_from_distances
from ccreid.evaluation.protocols import STANDARD, CLOTHES_CHANGING
from ccreid.files import to_json, write_whole

SIZES = {
    'market': dict(queries=3368, gallery=15913, dim=2048, people=750, distractors=2793, cameras=6, protocol=STANDARD),
    'prcc': dict(queries=3543, gallery=3384, dim=4096, people=71, distractors=0, cameras=1, protocol=CLOTHES_CHANGING),
}

def make(queries, gallery, dim, people, distractors, cameras, protocol, share=1., seed=0):
    "Features and tables of one size; `share` keeps that part of the queries"
    rng = np.random.default_rng(seed)
    queries = int(queries*share)
    g_id = np.r_[np.arange(gallery - distractors) % people, np.full(distractors, -2)]
    q_id = np.arange(queries) % people
    q = pd.DataFrame(dict(identity=q_id, camera=rng.integers(0, cameras, queries) + (100 if cameras == 1 else 0), clothes=2*q_id))
    g = pd.DataFrame(dict(identity=g_id, camera=rng.integers(0, cameras, gallery), clothes=np.where(g_id < 0, -1, 2*g_id + 1)))
    centres = rng.standard_normal((people + 1, dim), dtype=np.float32)
    noisy = lambda ids: torch.from_numpy(centres[np.where(ids < 0, rng.integers(0, people, len(ids)), ids)]*.25
                                         + rng.standard_normal((len(ids), dim), dtype=np.float32))
    return noisy(q_id), noisy(g_id), q, g, protocol

def plain_loop(distances, query, gallery, protocol):
    "The usual way: argsort, then one query at a time in Python"
    q, g = ({c: t[c].to_numpy() for c in ('identity', 'camera', 'clothes')} for t in (query, gallery))
    d = distances.numpy()
    order = np.argsort(d, axis=1)
    aps, cmc = [], np.zeros(len(gallery))
    for i in range(len(d)):
        o = order[i]
        same = g['identity'][o] == q['identity'][i]
        junk = same & (g['camera'][o] == q['camera'][i])
        if protocol.setting == 'clothes-changing': junk |= same & (g['clothes'][o] == q['clothes'][i])
        hits = np.flatnonzero(same[~junk])
        if len(hits) == 0: continue
        aps.append(np.mean(np.arange(1, len(hits)+1) / (hits+1)))
        cmc[hits[0]:] += 1
    return float(np.mean(aps))

def peers(q, g, query, gallery):
    "What installed libraries offer for one query after another, given the distances (same mAP or left out)"
    found = {}
    try:
        import ccreid.compat # torchmetrics brings torchvision along
        from torchmetrics.functional.retrieval import retrieval_average_precision
        def torchmetrics_loop(distances, query, gallery, protocol):
            ids, aps = torch.tensor(gallery.identity.to_numpy().copy()), []
            for i in range(len(distances)):
                keep = ~protocol.junk(query.iloc[i:i+1], gallery)[0]
                hit = ids[keep] == int(query.identity.iloc[i])
                if hit.any(): aps.append(retrieval_average_precision(2 - distances[i][keep], hit).item())
            return float(np.mean(aps))
        found['torchmetrics, per query'] = torchmetrics_loop
    except ImportError: pass
    try:
        import ccreid.compat
        from torchreid.reid.metrics.rank import evaluate_rank # as pip installs it: without its compiled part
        def torchreid_rank(distances, query, gallery, protocol):
            if protocol is not STANDARD: raise NotImplementedError # knows no clothes
            columns = [t[c].to_numpy() for c in ('identity','camera') for t in (query,gallery)]
            return float(evaluate_rank(distances.numpy(), *columns, use_cython=False)[1])
        found['torchreid'] = torchreid_rank
    except ImportError: pass
    return found

def product(q, g): return torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(g).T

def answered(f):
    "What a contender gives; None where it does not know the protocol"
    try: return f()
    except NotImplementedError: return None

def run(name, rounds, share):
    "Interleaved timings of all contenders at one size"
    q, g, query, gallery, protocol = make(**SIZES[name], share=share)
    distances = 1 - product(q, g)
    ours = retrieval_metrics(q, g, query, gallery, protocol)
    contenders = {
        'matrix product': lambda: q @ g.T,
        'retrieval_metrics (features)': lambda: retrieval_metrics(q, g, query, gallery, protocol),
        'metrics_from_distances (ready matrix)': lambda: metrics_from_distances(distances, query, gallery, protocol),
        'plain loop (ready matrix)': lambda: plain_loop(distances, query, gallery, protocol),
    } | {k: (lambda f=f: f(distances, query, gallery, protocol)) for k, f in peers(q, g, query, gallery).items()}
    check = {k: value for k, f in contenders.items() if k != 'matrix product' and (value := answered(f)) is not None}
    contenders = {k: f for k, f in contenders.items() if k in check or k == 'matrix product'}
    for k, v in check.items(): assert abs(getattr(v, 'mAP', v) - ours.mAP) < 1e-4, (k, v, ours)
    times, cpu = {k: [] for k in contenders}, {k: [] for k in contenders}
    for _ in range(rounds):
        for k, f in contenders.items():
            start, busy = time.perf_counter(), time.process_time()
            f()
            times[k].append(time.perf_counter() - start); cpu[k].append(time.process_time() - busy)
    seconds, work = ({k: statistics.median(v) for k, v in t.items()} for t in (times, cpu))
    base, loop = seconds['matrix product'], seconds['plain loop (ready matrix)']
    rows = [dict(size=name, what=k, seconds=round(s, 3), of_product=round(s/base, 2), loop_over_this=round(loop/s, 2),
                 cpu_seconds=round(work[k], 3), cpu_of_product=round(work[k]/work['matrix product'], 2),
                 spread=[round(min(times[k]), 3), round(max(times[k]), 3)]) for k, s in seconds.items()]
    shape = dict(queries=len(query), gallery=len(gallery), dim=q.shape[1], positives=round(len(gallery)/SIZES[name]['people'], 1))
    return rows, dict(size=name, **shape, mAP=ours.mAP, rank1=ours.rank(1), skipped=ours.skipped,
                      features_over_product=round(seconds['retrieval_metrics (features)']/base, 3))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='a tenth of the queries, three rounds')
    parser.add_argument('--rounds', type=int, default=None, help='interleaved rounds (5; quick: 3)')
    parser.add_argument('--threads', type=int, default=None, help='threads for torch (default: its own choice)')
    parser.add_argument('--out', default=str(Path(__file__).parent/'results'/'metrics.json'))
    args = parser.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    rows, shapes = [], []
    for name in SIZES:
        r, s = run(name, args.rounds or (3 if args.quick else 5), .1 if args.quick else 1.)
        rows += r; shapes.append(s)
        print(pd.DataFrame(r).drop(columns='spread').to_string(index=False)); print(s, end='\n\n')
    result = dict(benchmark='metrics', quick=args.quick, rows=rows, sizes=shapes, threads=torch.get_num_threads(), cores=os.cpu_count(),
                  load=os.getloadavg()[0], machine=platform.machine(), python=platform.python_version(), torch=torch.__version__, numpy=np.__version__,
                  peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024, when=time.strftime('%Y-%m-%d'))
    write_whole(args.out, to_json(result, indent=1) + '\n')
    print('wrote', args.out)

if __name__ == '__main__': main()
