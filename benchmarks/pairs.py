"""What pairs cost: a training step on 32 real and 32 generated images beside one on 32 and one on 64 real ones, and what drawing the partners takes.

    python benchmarks/pairs.py                 ResNet-50 at 384x192, 4 people x 8 images, CAL (minutes on a CPU)
    python benchmarks/pairs.py --quick         the miniature: a small network at 96x48, 8 x 4
    python benchmarks/pairs.py --device cuda   on a GPU

Whole steps of fastai's loop are timed, loading from memory included, on drawn people whose variants are copies of the real images: what is in a picture
does not matter here. The three alternate, epoch by epoch; medians over the steps, without the first of each epoch. On a busy machine processor seconds
(`cpu_`) say more than the wall's. Twice as many images cost twice as much; wanted is at most 2.1 times a step on 32, and `over_twice` is a step with pairs
over one on 64 real images. `draw_ms` is the order of an epoch of PRCC's size (17,896 images with ten variants each), inside and around.

Under Linux the C library gives large blocks back after every step and asks for them again, page by page: a ResNet-50's step on 64 images then takes 1.6
times as long, one on 32 1.5 times, with pairs or without. So the process keeps them here (`KEEP`); --as-is leaves that out. Writes results/pairs.json."""
import argparse, os, platform, statistics, sys, tempfile, time, warnings
from pathlib import Path
import numpy as np, pandas as pd, torch
import ccreid.compat
from fastai.callback.core import Callback, CancelEpochException
from ccreid.baselines.cal import CAL
from ccreid.data.batches import Preprocessing, reid_dataloaders
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samplers import PKSampler
from ccreid.dlcr.partners import PairSampler, Partners
from ccreid.dlcr.progressive import ProgressivePairs, available_variants
from ccreid.files import to_json, write_whole
from ccreid.training.learner import reid_learner

KEEP = dict(MALLOC_MMAP_THRESHOLD_=str(10**11), MALLOC_TRIM_THRESHOLD_=str(10**11))

class Clock(Callback):
    "Seconds of each training step, the loading before it included"
    order = 99
    def __init__(self, steps): self.steps,self.times = steps,[]
    def before_train(self): self.last = None
    def after_batch(self):
        if not self.training: return
        if self.dls.device.type=='cuda': torch.cuda.synchronize()
        now = time.perf_counter(), time.process_time()
        if self.last: self.times.append([b-a for a,b in zip(self.last, now)])
        self.last = now
        if self.iter==self.steps: raise CancelEpochException

def learners(args, size, people, images, backbone, folder):
    world = MannequinWorld(identities=(4*people,0,1), outfits=2, cameras=3, images=max(3, images), size=size, seed=0)
    dataset = world.write(Path(folder)/'w', layout='prcc')
    copies = pd.concat([dataset.train.assign(path=dataset.train.path, clothes=-1, generated_by='copy', source=dataset.train.path, variant=v) for v in range(2)])
    found = {}
    for name,n,cbs in (('baseline',people,[]), ('pairs',people,[ProgressivePairs(copies, mode='all')]), ('twice',2*people,[])):
        dls = reid_dataloaders(dataset, Preprocessing(size), n, images, num_workers=0, device=args.device, cache=True)
        clock = Clock(args.steps)
        found[name] = reid_learner(dls, backbone, [CAL(start_epoch=0), *cbs, clock]), clock
    return found

def step_cost(args, size, people, images, backbone):
    with tempfile.TemporaryDirectory() as folder:
        found = learners(args, size, people, images, backbone, folder)
        for _ in range(args.rounds):
            for learn,_ in found.values():
                with learn.no_bar(), learn.no_logging(): learn.fit(1)
    med = {k: [statistics.median(t[i] for t in clock.times) for i in (0,1)] for k,(_,clock) in found.items()}
    ratios = {a+name: round(med['pairs'][i]/med[than][i], 3) for i,a in enumerate(('','cpu_')) for name,than in (('ratio','baseline'), ('over_twice','twice'))}
    return dict(backbone=backbone, size=list(size), real_images=people*images, steps=len(found['pairs'][1].times),
                **{f'{k}_ms': round(1000*wall, 1) for k,(wall,_) in med.items()}, **ratios)

class Labels:
    "As much of `ReIDImages` as partners need"
    def __init__(self, labels): self.labels = labels
    def __len__(self): return len(self.labels['identity'])

def draw_cost(rounds):
    "Milliseconds for the order of an epoch, without any picture"
    n, k = 17_896, 10
    identity = np.repeat(np.arange(150), n//150+1)[:n]
    images = Labels(dict(identity=np.r_[identity, np.repeat(identity, k)], generated=np.r_[np.zeros(n, int), np.ones(n*k, int)]))
    partners = Partners(images, n+np.arange(n*k), np.repeat(np.arange(n), k), np.tile(np.arange(k), n))
    inner = PKSampler(np.r_[identity, np.full(n*k, -1)], 4, 8)
    pairs = PairSampler(inner, partners, available_variants)
    def ms(f): t = time.process_time(); f(); return 1000*(time.process_time()-t)
    return {name: round(statistics.median(ms(lambda: s.epoch(e)) for e in range(rounds)), 1) for name,s in (('inner',inner), ('pairs',pairs))}

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='the miniature')
    parser.add_argument('--rounds', type=int, default=3, help='epochs of each')
    parser.add_argument('--steps', type=int, default=4, help='timed steps of an epoch')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=None, help='threads for torch (default: its own choice)')
    parser.add_argument('--as-is', action='store_true', help='memory goes back to the system after every step')
    parser.add_argument('--out', default=str(Path(__file__).parent/'results'/'pairs.json'))
    args = parser.parse_args()
    kept = sys.platform=='linux' and not args.as_is
    if kept and not KEEP.keys()<=os.environ.keys(): os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
    if args.threads: torch.set_num_threads(args.threads)
    warnings.simplefilter('ignore')
    step = step_cost(args, (96,48), 8, 4, 'resnet_mini') if args.quick else step_cost(args, (384,192), 4, 8, 'resnet50')
    print(f"a step with pairs takes {step['ratio']:.2f} times one without (processor: {step['cpu_ratio']:.2f}), at most 2.1 wanted", f"and {step['over_twice']:.2f} times one on as many real images", step, sep='\n', flush=True)
    draw = draw_cost(5)
    print(f"order of an epoch of PRCC's size: {draw['pairs']:.0f} ms with partners, {draw['inner']:.0f} ms of them inside", flush=True)
    result = dict(benchmark='pairs', quick=args.quick, device=torch.cuda.get_device_name() if args.device=='cuda' else 'cpu', rounds=args.rounds, memory_kept=kept, step=step, draw_ms=draw,
                  threads=torch.get_num_threads(), cores=os.cpu_count(), load=round(os.getloadavg()[0], 1), machine=platform.machine(), python=platform.python_version(),
                  torch=torch.__version__, when=time.strftime('%Y-%m-%d'))
    write_whole(args.out, to_json(result, indent=1)+'\n')
    print('wrote', args.out)

if __name__ == '__main__': main()
