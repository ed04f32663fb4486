"""Pretrain the small transformer that ships with the package: `python benchmarks/pretrain_vit.py`

It plays the part that CLIP's weights play for photographs: of a batch of drawn people it learns which caption belongs to whom.
It sees the pictures of `train_small_diffusion.py` (each person once, in four places where no benchmark is drawn), with the captions
of their outfits, and never an identity label.

It can be killed at any moment: started again with the same arguments it goes on from the last checkpoint in the folder `--work`.
"""
import argparse, os
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1'); os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
import numpy as np
import ccreid.compat
import torch
import torch.nn.functional as F
from PIL import Image
from train_small_diffusion import SEED, SIZE, draw, made_once, say
from ccreid.data.mannequins import DOMAINS, PRETRAINING, MannequinWorld
from ccreid.files import write_whole
from ccreid.models.backbones import create_backbone
from ccreid.models.small_training import pixels, said
from ccreid.models.small_vit import CaptionMatching, kept_weights, matching_loss, share_matched
from ccreid.models.vits import vit_mini
from ccreid.tensor_files import safetensors_bytes
from ccreid.training.steps import Training

OTHERS,CAPTIONED,AGAIN = 64,SEED+300,SEED+400  # people on whom it is measured, and the first seeds of their worlds

def moved(x, g, margin=4):
    "Mirrored, or cut out of a picture with a margin, each by chance"
    if torch.rand(1, generator=g)<.5: x = x.flip(-1)
    top,left = torch.randint(0, 2*margin+1, (2,), generator=g).tolist()
    return F.pad(x, (margin,)*4, mode='replicate')[:,:,top:top+SIZE[0],left:left+SIZE[1]]

def photographed(place, n):
    "n people of a place in two outfits before two cameras: pictures [outfit][camera]"
    world = MannequinWorld((n,0,0), outfits=2, cameras=2, images=1, domain=place, seed=AGAIN+DOMAINS.index(place))
    def picture(i, outfit, camera):
        return np.asarray(world.render(i, outfit, camera).image.resize(SIZE[::-1], Image.Resampling.LANCZOS))
    return [[np.stack([picture(i, o, c) for i in range(n)]) for c in (0,1)] for o in (0,1)]

@torch.no_grad()
def found_again(embed, seen):
    "Rank-1 in per cent before another camera: in the same outfit, in another one"
    first,same,other = (F.normalize(embed(pixels(o)), dim=1) for o in (seen[0][0], seen[0][1], seen[1][1]))
    return [round(100*share_matched(first, o), 1) for o in (same, other)]

@torch.no_grad()
def measure(net, seed, n=OTHERS):
    "How good it is, in two of its own places and in two of a benchmark"
    torch.manual_seed(seed+1)
    nothing,resnet = CaptionMatching(vit_mini()).eval(),create_backbone('resnet_mini', pretrained=True).eval()
    mean,std = (torch.tensor(v)[:,None,None] for v in ((.485,.456,.406), (.229,.224,.225)))
    ways = {'vit_mini': net.images, 'random weights': nothing.images,
            'resnet_mini': lambda x: resnet(((x+1)/2-mean)/std).mean((2,3))}
    found = {}
    for place in ('park','suburb','plaza','market'):
        drawn,seen = draw(place, n, CAPTIONED),photographed(place, n)
        x,texts = pixels(drawn['images'].numpy()),[', '.join(o) for o in drawn['outfits']]
        found[place] = {k: dict(zip(('same outfit','other outfit'), found_again(f, seen))) for k,f in ways.items()}
        for k,m in (('vit_mini',net), ('random weights',nothing)):
            found[place][k]['own caption'] = round(100*share_matched(m.images(x), m.texts(texts)), 1)
    return found

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--people', type=int, default=24000, help='drawn people in all')
    p.add_argument('--minutes', type=float, default=10., help="of the processor's time"); p.add_argument('--steps', type=int)
    p.add_argument('--lr', type=float, default=1e-3); p.add_argument('--batch', type=int, default=128)
    p.add_argument('--seed', type=int, default=0); p.add_argument('--measured', type=int, default=OTHERS)
    p.add_argument('--pictures', default='runs/small_diffusion', help='folder of the pictures, drawn if they are not there')
    p.add_argument('--work', default='runs/vit_mini', help='folder of the checkpoint')
    p.add_argument('--out', default='ccreid/assets/vit_mini.safetensors')
    a = p.parse_args()
    torch.set_num_threads(1)
    pictures,work = Path(a.pictures),Path(a.work)
    for folder in pictures,work: folder.mkdir(parents=True, exist_ok=True)
    n = a.people//len(PRETRAINING)
    drawn = [made_once(pictures/f'pictures-{d}-{n}.pth', lambda: draw(d, n)) for d in PRETRAINING]
    images,outfits = torch.cat([o['images'] for o in drawn]),[o for d in drawn for o in d['outfits']]
    torch.manual_seed(a.seed)
    net = CaptionMatching(vit_mini())

    def loss(g):
        idx = torch.randint(len(images), (a.batch,), generator=g)
        texts = [said(outfits[i], g, none=0.) for i in idx]
        return matching_loss(net.images(moved(pixels(images[idx].numpy()), g)), net.texts(texts), net.scale.clamp(max=4.6).exp())

    plan = dict(steps=a.steps) if a.steps is not None else dict(minutes=a.minutes)
    training = Training(dict(net=net), loss, a.lr, **plan, file=work/'vit.pth', seed=a.seed, log=lambda text: say(text))
    training.run()
    about = dict(made_by='benchmarks/pretrain_vit.py', people=len(images), places=', '.join(PRETRAINING), seed=a.seed, batch=a.batch,
                 steps=training.step, minutes=round(training.used/60, 1), history=training.history)
    if a.measured: about['measures'] = measure(net, a.seed, a.measured)
    out = Path(a.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, safetensors_bytes(kept_weights(net), about))
    say(f"{out}: {out.stat().st_size/1e6:.2f} MB, {training.step} steps; {about.get('measures')}")

if __name__=='__main__': main()
