"""Seconds of an epoch by mode (Table A5): real images alone, all generated ones concatenated with them, or pairs; images seen are counted.

    python benchmarks/epochs.py                 the miniature: a small network at 96x48, batches of 8 x 4, ten variants of each image
    python benchmarks/epochs.py --full          ResNet-50 at 384x192, 4 x 8 (hours on a CPU)

Whole epochs of fastai's loop, on drawn people whose variants are copies of the real images: what is in a picture does not matter here. The first epoch of each
mode is not counted. On a busy machine processor seconds say more than the wall's. Writes benchmarks/results/epochs.json."""
import argparse, os, platform, tempfile, time, warnings
from pathlib import Path
import numpy as np, pandas as pd, torch
import ccreid.compat
from fastai.callback.core import Callback
from ccreid.baselines.cal import CAL
from ccreid.data.batches import Preprocessing, reid_dataloaders
from ccreid.data.mannequins import MannequinWorld
from ccreid.dlcr.progressive import ProgressivePairs
from ccreid.files import to_json, write_whole
from ccreid.training.learner import reid_learner

MODES = {'real images alone': None, 'concatenated': 'concatenated', 'pairs': 'progressive'}

class Clock(Callback):
    "Images, steps and seconds of each epoch, loading included"
    order = 99
    def __init__(self): self.epochs = []
    def before_train(self): self.start,self.seen,self.steps = (time.perf_counter(), time.process_time()),0,0
    def after_batch(self):
        if self.training: self.seen,self.steps = self.seen+len(self.xb[0]),self.steps+1
    def after_train(self):
        if self.dls.device.type=='cuda': torch.cuda.synchronize()
        wall,cpu = (b-a for a,b in zip(self.start, (time.perf_counter(), time.process_time())))
        self.epochs.append(dict(images=self.seen, steps=self.steps, seconds=wall, cpu_seconds=cpu))

def epoch_of(mode, dataset, copies, args, size, people, images, backbone):
    "The middle of the epochs after the first"
    dls,clock = reid_dataloaders(dataset, Preprocessing(size), people, images, num_workers=0, device=args.device, cache=True),Clock()
    pairs = [ProgressivePairs(copies, mode=mode)] if mode else []
    learn = reid_learner(dls, backbone, [CAL(start_epoch=0), *pairs, clock])
    with learn.no_bar(), learn.no_logging(): learn.fit(1+args.rounds)
    return {k: float(np.median([e[k] for e in clock.epochs[1:]])) for k in clock.epochs[0]}

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--full', action='store_true', help='ResNet-50 at 384x192')
    parser.add_argument('--people', type=int, default=16, help='with 12 images each')
    parser.add_argument('--variants', type=int, default=10, help='K')
    parser.add_argument('--rounds', type=int, default=1, help='epochs that count')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--out', default=str(Path(__file__).parent/'results'/'epochs.json'))
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    how = ((384,192), 4, 8, 'resnet50') if args.full else ((96,48), 8, 4, 'resnet_mini')
    rows = {}
    with tempfile.TemporaryDirectory() as tmp:
        world = MannequinWorld(identities=(args.people,0,1), outfits=2, cameras=3, images=4, size=how[0], seed=0)
        real = world.write(Path(tmp)/'w', layout='prcc')
        copies = [real.train.assign(clothes=-1, generated_by='copy', source=real.train.path, variant=v) for v in range(args.variants)]
        copies = pd.concat(copies, ignore_index=True)
        for name,mode in MODES.items():
            rows[name] = epoch_of(mode, real, copies, args, *how)
            print(f"{name:20} {rows[name]['images']:6.0f} images  {rows[name]['steps']:4.0f} steps  {rows[name]['seconds']:7.2f} s  "
                  f"{rows[name]['cpu_seconds']:7.2f} s of the processor", flush=True)
    base = rows['pairs']['cpu_seconds' if args.device=='cpu' else 'seconds']
    for r in rows.values(): r['of_pairs'] = r['cpu_seconds' if args.device=='cpu' else 'seconds']/base
    result = dict(benchmark='epochs', backbone=how[3], size=list(how[0]), real=len(real.train), variants=args.variants, rows=rows,
                  device=torch.cuda.get_device_name() if args.device=='cuda' else 'cpu', threads=torch.get_num_threads(), cores=os.cpu_count(),
                  machine=platform.machine(), python=platform.python_version(), torch=torch.__version__, when=time.strftime('%Y-%m-%d'))
    write_whole(args.out, to_json(result, indent=1)+'\n')
    print('wrote', args.out)

if __name__=='__main__': main()
