"""What HSAL costs: masks and loss beside the distance matrix they work on, and its share of a training step.

    python benchmarks/hsal.py                 n = 64, 1,024 and 4,096; ResNet-50 steps at batch 64 (minutes on a CPU, seconds on a GPU)
    python benchmarks/hsal.py --quick         n = 64 and 1,024; steps at batch 8
    python benchmarks/hsal.py --device cuda   on a GPU, also with bf16; the default where there is one

Masks: `plain` compares labels with labels, one line an equation; `pytorch-metric-learning`, where it is installed, builds the same pairs from its own matches.
Loss: `plain loss` takes Algorithm 1 by its letter, both matrices whole and mined with gradients; masks, and losses, must agree. `distances` is the Euclidean matrix, forward and backward; `hatrip` is masks, adjustment, both minings and the matrix, forward and backward; what
HSAL adds is their difference. Contenders alternate, round by round; medians; on a busy machine processor seconds (`cpu_`) say
more than the wall's. Labels are P x K batches of K = 8 in three outfits; a fifth of the images wears one of five garments that everybody has.
Step: model, label-smoothed identity loss and, every other time, 0.1 times HSAL; backward, Adam. Writes benchmarks/results/hsal.json."""
import argparse, os, platform, statistics, time
from contextlib import nullcontext
from pathlib import Path
import numpy as np, pandas as pd, torch
import ccreid.compat
from ccreid.files import to_json, write_whole
from ccreid.hsgl.definitions import hard_negatives, hard_positives
from ccreid.hsgl.hatrip import adjust_distances, hatrip_loss
from ccreid.hsgl.hsal import hatrip_term
from ccreid.models.losses import pairwise_distances
from ccreid.models.reid_model import ReIDModel
from ccreid.training.terms import ReIDLoss, identity_term

def make_labels(n, device, seed=0):
    "Identity, clothes and camera of n images, eight of each person"
    rng = np.random.default_rng(seed)
    identity = np.arange(n)//8
    clothes = np.where(rng.random(n)<.2, 10**6+rng.integers(0, 5, n), 3*identity+rng.integers(0, 3, n))
    return dict(identity=torch.tensor(identity, device=device), clothes=torch.tensor(clothes, device=device), camera=torch.tensor(rng.integers(0, 4, n), device=device))

def clock(f, device):
    "Seconds of one call by the wall and by the processor, the device's work included"
    sync = torch.cuda.synchronize if device=='cuda' else (lambda: None)
    sync(); start, busy = time.perf_counter(), time.process_time()
    f()
    sync()
    return time.perf_counter()-start, time.process_time()-busy

def alternate(contenders, rounds, device):
    "Median seconds of each by the wall, and by the processor, after one round that does not count"
    times = {k: [] for k in contenders}
    for r in range(rounds+1):
        for k,f in contenders.items():
            s = clock(f, device)
            if r: times[k].append(s)
    return [{k: statistics.median(x[i] for x in v) for k,v in times.items()} for i in (0,1)]

def plain_masks(identity, clothes, camera):
    "Eq. 5, read from left to right"
    same = lambda v: v[:,None]==v[None,:]
    known = (clothes[:,None]!=-1) & (clothes[None,:]!=-1)
    return same(identity) & (known & ~same(clothes) | ~same(camera)), ~same(identity) & known & same(clothes)

def metric_learning_masks(identity, clothes, camera):
    "From the pairs of pytorch-metric-learning; `ImportError` where that is not installed"
    from pytorch_metric_learning.utils.loss_and_miner_utils import get_matches_and_diffs as pairs
    (same,other),(alike,changed),(_,elsewhere) = ([m.bool() for m in pairs(v)] for v in (identity,clothes,camera))
    known = (clothes[:,None]!=-1) & (clothes[None,:]!=-1)
    return same & (known & changed | elsewhere), other & known & alike

def plain_loss(features, identity, clothes, camera, alpha=.05):
    "Algorithm 1 by its letter: a matrix, an adjusted matrix, hinges on both"
    distances,same = pairwise_distances(features),identity[:,None]==identity[None,:]
    own = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    def hinges(d):
        far,near = d.masked_fill(~own, -torch.inf).max(1).values,d.masked_fill(same, torch.inf).min(1).values
        there = own.any(1) & (~same).any(1)
        return torch.relu(far-near)[there].sum()/there.sum()
    return hinges(distances)+.5*hinges(adjust_distances(distances, *plain_masks(identity, clothes, camera), alpha))

def mask_peers(labels):
    "Ways to the masks that are there and give ours, by name"
    ours,found = (hard_positives(*labels), hard_negatives(labels[0], labels[1])),{}
    for name,f in (('plain', plain_masks), ('pytorch-metric-learning', metric_learning_masks)):
        try: given = f(*labels)
        except ImportError: continue
        assert all(torch.equal(a, b) for a,b in zip(ours, given)), name
        found[f'masks, {name}'] = lambda f=f: f(*labels)
    return found

def loss_rows(sizes, dims, rounds, device):
    rows = []
    for dim in dims:
        for n in sizes:
            labels = make_labels(n, device)
            f = torch.randn(n, dim, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
            def backward(loss): f.grad = None; loss.backward()
            assert torch.allclose(plain_loss(f, *labels.values()), hatrip_loss(f, *labels.values()), rtol=1e-4)
            med, work = alternate({
                'masks': lambda: (hard_positives(*labels.values()), hard_negatives(labels['identity'], labels['clothes'])),
                'forward distances': lambda: pairwise_distances(f), 'forward hatrip': lambda: hatrip_loss(f, *labels.values()),
                'distances': lambda: backward(pairwise_distances(f).sum()), 'hatrip': lambda: backward(hatrip_loss(f, *labels.values())),
                'plain loss': lambda: backward(plain_loss(f, *labels.values())),
            } | mask_peers([*labels.values()]), rounds if n>256 else 10*rounds, device)
            ms = {k: round(1000*v, 3) for k,v in med.items()}
            cpu = {k.replace(' ', '_'): round(1000*v, 3) for k,v in work.items()}
            rows.append(dict(n=n, dim=dim, cpu_ms=cpu, masks_ms=ms['masks'], distances_ms=ms['distances'], hatrip_ms=ms['hatrip'],
                             added_of_distances=round(med['hatrip']/med['distances']-1, 3),
                             forward_distances_ms=ms['forward distances'], forward_hatrip_ms=ms['forward hatrip'],
                             forward_added_of_distances=round(med['forward hatrip']/med['forward distances']-1, 3),
                             cpu_added_of_distances=round(work['hatrip']/work['distances']-1, 3),
                             cpu_forward_added_of_distances=round(work['forward hatrip']/work['forward distances']-1, 3)))
            print(pd.DataFrame(rows[-1:]).T.to_string(header=False), end='\n\n', flush=True)
    return rows

def step_row(batch, size, rounds, device, precision):
    "One training step with and without HSAL"
    torch.manual_seed(0)
    model = ReIDModel('resnet50', classes=150).to(device, memory_format=torch.channels_last).train()
    opt = torch.optim.Adam(model.parameters(), lr=3.5e-4, weight_decay=5e-4)
    x = torch.randn(batch, 3, *size, device=device).to(memory_format=torch.channels_last)
    labels = make_labels(batch, device)
    plain, hsal = ReIDLoss(identity=identity_term()), ReIDLoss(identity=identity_term(), hsal=(hatrip_term(), .1))
    cast = (lambda: torch.autocast('cuda', torch.bfloat16)) if precision=='bf16' else nullcontext
    def step(loss_func):
        with cast(): output = model(x)
        loss = loss_func(output, labels)
        loss.backward(); opt.step(); opt.zero_grad()
    f = torch.randn(batch, model.dim, device=device, requires_grad=True)
    def term():
        f.grad = None
        hatrip_term()(dict(features=f), labels).backward()
    med, work = alternate({'without': lambda: step(plain), 'with': lambda: step(hsal)}, rounds, device)
    alone, busy = (t['term'] for t in alternate({'term': term}, 50, device))
    return dict(batch=batch, size=list(size), precision=precision, without_ms=round(1000*med['without'], 2), with_ms=round(1000*med['with'], 2),
                added_by_difference=round(med['with']/med['without']-1, 4), cpu_added_by_difference=round(work['with']/work['without']-1, 4),
                term_alone_ms=round(1000*alone, 3), term_of_step=round(alone/med['without'], 5), cpu_term_of_step=round(busy/work['without'], 5))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='small sizes, small batch')
    parser.add_argument('--rounds', type=int, default=None, help='rounds of each measurement of the loss (5; quick: 3)')
    parser.add_argument('--steps', type=int, default=None, help='training steps with and without HSAL (2; GPU: 50; 0: none)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=None, help='threads for torch (default: its own choice)')
    parser.add_argument('--out', default=str(Path(__file__).parent/'results'/'hsal.json'))
    args = parser.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    rounds = args.rounds or (3 if args.quick else 5)
    loss = loss_rows((64,1024) if args.quick else (64,1024,4096), (2048,) if args.quick else (2048,4096), rounds, args.device)
    steps = []
    for precision in () if args.steps==0 else ('fp32','bf16') if args.device=='cuda' else ('fp32',):
        steps.append(step_row(8 if args.quick else 64, (384,192), args.steps or (50 if args.device=='cuda' else 2), args.device, precision))
        print(steps[-1], flush=True)
    result = dict(benchmark='hsal', quick=args.quick, device=torch.cuda.get_device_name() if args.device=='cuda' else 'cpu', rounds=rounds, loss=loss, steps=steps,
                  threads=torch.get_num_threads(), cores=os.cpu_count(), load=round(os.getloadavg()[0], 1), machine=platform.machine(), python=platform.python_version(),
                  torch=torch.__version__, when=time.strftime('%Y-%m-%d'))
    write_whole(args.out, to_json(result, indent=1) + '\n')
    print('wrote', args.out)

if __name__ == '__main__': main()
