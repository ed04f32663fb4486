"""Pretrain the small backbone that ships with the package: `python benchmarks/pretrain_backbone.py`

It plays the part that ImageNet weights play for a ResNet-50. It sees drawn people of another world, each only once,
and learns which garments they wear, in which pattern, how they are turned, which part of the picture belongs to
which part of the body or piece of clothing, and to undo noise. It never sees an identity label. Every row of every results table starts from these weights.
"""
import argparse, os, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import numpy as np
import ccreid.compat
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from ccreid.data.mannequins import KINDS, PATTERNS, MannequinWorld
from ccreid.models.backbones import create_backbone

WORLD = dict(identities=(12000,0,0), outfits=1, cameras=6, images=1, seed=7001) # other people, other clothes
VIEWS = ('front','left','right','back')
SIZE = (96,48)
GRID = (16,8) # cells in which the shares of the 20 parts are predicted
MEAN, STD = torch.tensor([.485,.456,.406])[:,None,None], torch.tensor([.229,.224,.225])[:,None,None]

def picture(i):
    "One person seen once, and what it shows"
    m = world.render(i, 0, i%WORLD['cameras'], VIEWS[(i//WORLD['cameras'])%4], frame=i)
    kinds, patterns = ([float(any(getattr(g, what)==n for g in m.garments)) for n in names] for what,names in (('kind',KINDS),('pattern',PATTERNS)))
    h, w = m.parsing.shape[0]//GRID[0], m.parsing.shape[1]//GRID[1]
    parts = np.stack([(m.parsing==c).reshape(GRID[0],h,GRID[1],w).mean((1,3)) for c in range(20)])
    return np.asarray(m.image.resize(SIZE[::-1])), np.array(kinds+patterns, np.float32), (i//WORLD['cameras'])%4, parts.astype(np.float16)

def init():
    global world
    world = MannequinWorld(**WORLD)

class Heads(nn.Module):
    "What is learnt on top of the map and dropped afterwards"
    def __init__(self, channels, labels):
        super().__init__()
        self.labels, self.view, self.clean = nn.Linear(channels, labels), nn.Linear(channels, len(VIEWS)), nn.Conv2d(channels, 3, 1)
        self.parts = nn.Conv2d(channels, 20, 1)
    def forward(self, m):
        f = m.mean((2,3))
        return self.labels(f), self.view(f), self.clean(m), self.parts(F.interpolate(m, GRID, mode='bilinear'))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--epochs', type=int, default=20); p.add_argument('--seed', type=int, default=0)
    p.add_argument('--out', default='ccreid/assets/resnet_mini.safetensors')
    a = p.parse_args()
    started = time.time()
    with ProcessPoolExecutor(os.cpu_count(), initializer=init) as pool:
        images, labels, views, parts = zip(*pool.map(picture, range(WORLD['identities'][0]), chunksize=100))
    images = torch.from_numpy(np.stack(images)).permute(0,3,1,2).contiguous()
    labels, views, cells = torch.from_numpy(np.stack(labels)), torch.tensor(views), torch.from_numpy(np.stack(parts))
    print(f'{len(images)} pictures drawn in {time.time()-started:.0f} s')
    torch.manual_seed(a.seed)
    backbone = create_backbone('resnet_mini')
    heads = Heads(backbone.channels, labels.shape[1])
    params = [*backbone.parameters(), *heads.parameters()]
    steps = a.epochs*(len(images)//64)
    opt = torch.optim.AdamW(params, 2e-3, weight_decay=.01)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, 2e-3, steps)
    for epoch in range(a.epochs):
        sums = np.zeros(5)
        for idx in torch.randperm(len(images))[:len(images)//64*64].view(-1,64):
            clean = (images[idx].float()/255-MEAN)/STD
            noisy = clean + torch.rand(64,1,1,1)*.5*torch.randn_like(clean)
            logits, view, back, body = heads(backbone(noisy))
            parts = (F.binary_cross_entropy_with_logits(logits, labels[idx])*5, F.cross_entropy(view, views[idx]),
                     F.mse_loss(back, F.adaptive_avg_pool2d(clean, back.shape[-2:])), F.cross_entropy(body, cells[idx].float())*3)
            loss = sum(parts)
            opt.zero_grad(); loss.backward(); opt.step(); sched.step()
            sums += [loss.item(), *(v.item() for v in parts)]
        print(f'epoch {epoch}: loss, garments and patterns, view, noise, parts: ' + ' '.join(f'{v:.3f}' for v in sums/(len(images)//64)), flush=True)
    out = Path(a.out); out.parent.mkdir(parents=True, exist_ok=True)
    tmp = out.with_name(f'.{out.name}')
    save_file({k: v.contiguous() for k,v in backbone.net.state_dict().items()}, tmp, metadata=dict(made_by='benchmarks/pretrain_backbone.py', epochs=str(a.epochs), seed=str(a.seed)))
    os.replace(tmp, out)
    print(f'{out}: {out.stat().st_size/1e6:.2f} MB, {time.time()-started:.0f} s in all')

if __name__=='__main__': main()
