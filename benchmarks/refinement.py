"""What refinement costs beside the matrix products it cannot do without, and how many queries a second it settles from ready similarities.

    python benchmarks/refinement.py                 l = 6, n = 3,384, D = 4,096; PRCC's 3,543 queries for the rate
    python benchmarks/refinement.py --quick         fewer queries
    python benchmarks/refinement.py --device cuda   on a GPU

`plain` is the same written one query and one list at a time, as evaluations usually are: both must name the same people. `products` are the cosines of queries and variants with the gallery, block by block, and nothing else; `refine` is Algorithm 1 from the same features,
normalising included. `queries_per_second` starts from similarities that are there: lists, votes and scores. The contenders alternate, round by round; medians.
On a busy machine processor seconds (`cpu_`) say more than the wall's. Writes benchmarks/results/refinement.json.
The paper names 642.6 images a second on an A100 (Table A6), which holds more than this part."""
import argparse, os, platform, statistics, time
from pathlib import Path
import torch
from torch.nn import functional as F
from ccreid.dlcr.refinement import best_images, refine, refine_lists
from ccreid.files import to_json, write_whole

PEOPLE, CHUNK = 71, 2**24

def data(queries, l, n, dim, device):
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(PEOPLE, dim, generator=g)
    def some(count): return (centres[torch.arange(count)%PEOPLE]+2*torch.randn(count, dim, generator=g)).to(device)
    return some(queries), torch.stack([some(queries) for _ in range(l)], 1), some(n), torch.arange(n)%PEOPLE

def products(q, v, gallery):
    "Unit features and their cosines, in the blocks that refinement has"
    g, f = F.normalize(gallery), F.normalize(torch.cat([q, v.flatten(0, 1)]))
    step = max(1, CHUNK//(8*len(g)))
    for i in range(0, len(f), step): (f[i:i+step]@g.T).sum()

def plain(q, v, gallery, identity, m=5):
    "Algorithm 1, one query after the other: whom each shows"
    g,who,best = F.normalize(gallery),identity.tolist(),[]
    for own,others in zip(F.normalize(q), F.normalize(v, dim=-1)):
        score = {}
        for k,similar in enumerate((own@g.T, *(others@g.T))):
            value,image = (x.tolist() for x in similar.topk(m))
            if k==0: score = {who[i]: 0. for i in image}
            if value[0]<=0: continue
            for s,i in zip(value, image):
                if who[i] in score: score[who[i]] += s/value[0]
        best.append(max(score, key=score.get))
    return torch.tensor(best)

def alternate(contenders, rounds, device):
    "Medians by the wall and by the processor, after a round that does not count"
    sync = torch.cuda.synchronize if device=='cuda' else lambda: None
    times = {k: [] for k in contenders}
    for r in range(rounds+1):
        for k,f in contenders.items():
            sync(); wall, busy = time.perf_counter(), time.process_time()
            f(); sync()
            if r: times[k].append((time.perf_counter()-wall, time.process_time()-busy))
    return [{k: statistics.median(t[i] for t in v) for k,v in times.items()} for i in (0,1)]

def against_products(queries, l, n, dim, rounds, device):
    q, v, gallery, identity = data(queries, l, n, dim, device)
    contenders = {'products': lambda: products(q, v, gallery), 'refine': lambda: refine(q, v, gallery, identity), 'plain': lambda: plain(q, v, gallery, identity)}
    assert torch.equal(refine(q, v, gallery, identity).best, plain(q, v, gallery, identity))
    wall, busy = alternate(contenders, rounds, device)
    return dict(queries=queries, l=l, n=n, dim=dim, cpu_ms={k: round(1000*v, 1) for k,v in busy.items()}, products_ms=round(1000*wall['products'], 1), refine_ms=round(1000*wall['refine'], 1),
                ratio=round(wall['refine']/wall['products'], 3), cpu_ratio=round(busy['refine']/busy['products'], 3))

def from_similarities(queries, l, n, rounds, device):
    g = torch.Generator().manual_seed(0)
    own, others = torch.rand(queries, n, generator=g).to(device), torch.rand(queries*l, n, generator=g).to(device)
    owner, identity = torch.arange(queries, device=device).repeat_interleave(l), (torch.arange(n)%PEOPLE).to(device)
    wall, busy = alternate({rule: lambda: refine_lists(best_images(own, 5), best_images(others, 5), owner, identity, rule) for rule in ('paper','released')}, rounds, device)
    return [dict(rule=k, queries=queries, l=l, n=n, queries_per_second=round(queries/wall[k]), queries_per_processor_second=round(queries/busy[k])) for k in wall]

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='fewer queries')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=None, help='threads for torch (default: its own choice)')
    parser.add_argument('--out', default=str(Path(__file__).parent/'results'/'refinement.json'))
    args = parser.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    cost = against_products(70 if args.quick else 350, 6, 3384, 4096, args.rounds, args.device)
    print(f"refine takes {cost['ratio']:.2f} times its matrix products (processor: {cost['cpu_ratio']:.2f}), at most 1.3 wanted", cost, sep='\n', flush=True)
    rates = from_similarities(350 if args.quick else 3543, 6, 3384, args.rounds, args.device)
    for r in rates: print(f"{r['rule']}: {r['queries_per_second']:,} queries a second, 5,000 wanted", r, sep='\n', flush=True)
    result = dict(benchmark='refinement', quick=args.quick, device=torch.cuda.get_device_name() if args.device=='cuda' else 'cpu', rounds=args.rounds, cost=cost, rates=rates,
                  threads=torch.get_num_threads(), cores=os.cpu_count(), load=round(os.getloadavg()[0], 1), machine=platform.machine(), python=platform.python_version(),
                  torch=torch.__version__, when=time.strftime('%Y-%m-%d'))
    write_whole(args.out, to_json(result, indent=1)+'\n')
    print('wrote', args.out)

if __name__ == '__main__': main()
