"""Train the small diffusion model that ships with the package: `python benchmarks/train_small_diffusion.py`

It plays the part that Stable Diffusion's weights play for photographs. It sees drawn people, each of them once, in four
places where no benchmark is drawn, with the captions of their outfits, and never an identity label. First the autoencoder,
then the UNet with the text encoder, on latents that are worked out once.

It can be killed at any moment: started again with the same arguments it goes on from the last checkpoint in the folder `--work`.
"""
import argparse, os, time
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1'); os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
import numpy as np
import pandas as pd
import ccreid.compat
import diffusers
import torch
import transformers
from PIL import Image
from ccreid.data.mannequins import DOMAINS, PRETRAINING, MannequinWorld
from ccreid.files import write_whole
from ccreid.generation.inpainting import ClothesInpainter
from ccreid.generation.painted_colours import colour_shares, painted_colours
from ccreid.generation.parsing import clothes_mask
from ccreid.models.small_diffusion import PARTS, new_small_diffusion, save_small_diffusion
from ccreid.models.small_training import denoising_loss, latents_of, noise_table, picture_error, pixels, rescale, training_mask, vae_loss
from ccreid.tensor_files import read_torch, torch_bytes
from ccreid.training.steps import Training

SIZE,CAMERAS,SEED = (96,48),18,8101        # of the pictures; of a place; of the first world
VIEWS = 'front','left','right','back'

def say(text): print(f'{time.strftime("%H:%M:%S")} {text}', flush=True)

def made_once(file, make):
    "What a file holds, made if there is none"
    if not file.exists():
        started = time.process_time()
        write_whole(file, torch_bytes(make()))
        say(f'{file.name}: {file.stat().st_size/1e6:.0f} MB, {time.process_time()-started:.0f} s')
    return read_torch(file)

def draw(place, n, seed=SEED):
    "n people of a place, each seen once: pictures and label maps of 96×48 pixels, outfits in words"
    world = MannequinWorld((n,0,0), outfits=1, cameras=CAMERAS, images=1, domain=place, seed=seed+DOMAINS.index(place))
    images,labels,outfits = np.zeros((n,*SIZE,3), np.uint8),np.zeros((n,*SIZE), np.uint8),[]
    for i in range(n):
        m = world.render(i, 0, i%CAMERAS, VIEWS[i//CAMERAS%4])
        images[i] = m.image.resize(SIZE[::-1], Image.Resampling.LANCZOS) # as the pipeline's pictures
        labels[i] = Image.fromarray(m.parsing).resize(SIZE[::-1], Image.Resampling.NEAREST)
        outfits.append([str(g) for g in m.garments])
    return dict(images=torch.from_numpy(images), labels=torch.from_numpy(labels), outfits=outfits)

def encode(vae, drawn, place):
    "The latents of a place's pictures, with and without holes"
    rng,parts = np.random.default_rng([SEED, DOMAINS.index(place)]),[]
    masks = np.stack([training_mask(clothes_mask(o, ('released','paper')[rng.integers(2)]), rng) for o in drawn['labels'].numpy()])
    for i in range(0, len(masks), 64):
        parts.append(latents_of(vae, drawn['images'][i:i+64].numpy(), masks[i:i+64]))
    return {k: torch.cat([o[k] for o in parts]) for k in parts[0]}

def latent_scale(vae, images, n=2000):
    "Mean and deviation of each channel"
    with torch.no_grad():
        z = torch.cat([vae.encode(pixels(images[i:i+50])).latent_dist.mean for i in range(0, min(n, len(images)), 50)])
    return z.mean((0,2,3)),z.std((0,2,3))

def grey_latents(vae):
    "Of a picture that is all hidden"
    with torch.no_grad(): return vae.encode(torch.zeros(1,3,*SIZE)).latent_dist.mean[0]

def measure(pipe, places, n):
    "How good the model is, on n people of each place whom it has not seen"
    drawn = {d: draw(d, n, SEED+100) for d in places}
    parts = [encode(pipe.vae, o, d) for d,o in drawn.items()]
    batch = {k: torch.cat([o[k] for o in parts]) for k in parts[0]} | dict(outfit=[o for d in drawn.values() for o in d['outfits']])
    images = torch.cat([o['images'] for o in drawn.values()]).numpy()
    worlds = [MannequinWorld((n,0,0), outfits=1, cameras=6, images=1, domain=d, seed=SEED+200) for d in places]
    def colours(guidance):
        paint = ClothesInpainter(pipe, size=SIZE, steps=25, guidance=guidance, batch=8, device='cpu')
        return colour_shares(pd.concat([painted_colours(paint, w, n) for w in worlds]))
    shares = {g: colours(g) for g in (1., 3., 5., 7.5)}
    return dict(people=n*len(places), picture=picture_error(pipe.vae, images), noise=noise_table(pipe, batch), steps=25,
                colours=shares[3.].round(3).to_dict(), by_guidance={g: round(float(t.share['all']), 3) for g,t in shares.items()})

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--people', type=int, default=24000, help='drawn people in all')
    p.add_argument('--vae-minutes', type=float, default=20., help="of the processor's time"); p.add_argument('--vae-steps', type=int)
    p.add_argument('--unet-minutes', type=float, default=42.); p.add_argument('--unet-steps', type=int)
    p.add_argument('--vae-lr', type=float, default=2e-3); p.add_argument('--unet-lr', type=float, default=1e-3)
    p.add_argument('--vae-batch', type=int, default=16); p.add_argument('--unet-batch', type=int, default=64)
    p.add_argument('--kl', type=float, default=1e-3); p.add_argument('--seed', type=int, default=0)
    p.add_argument('--no-bf16', action='store_true', help='the autoencoder in 32 bits, for processors without bfloat16')
    p.add_argument('--measured', type=int, default=64, help='people on whom it is measured')
    p.add_argument('--work', default='runs/small_diffusion', help='folder of pictures, latents and checkpoints')
    p.add_argument('--out', default='ccreid/assets/small_diffusion')
    a = p.parse_args()
    torch.set_num_threads(1)
    for library in diffusers,transformers: library.utils.logging.disable_progress_bar()
    work,pipe,bf16 = Path(a.work),new_small_diffusion(a.seed),not a.no_bf16
    work.mkdir(parents=True, exist_ok=True)
    vae = pipe.vae
    n = a.people//len(PRETRAINING)
    drawn = {d: made_once(work/f'pictures-{d}-{n}.pth', lambda: draw(d, n)) for d in PRETRAINING}
    images = torch.cat([o['images'] for o in drawn.values()]).numpy()

    def vae_batch(g):
        idx = torch.randint(len(images), (a.vae_batch,), generator=g).numpy()
        x = pixels(images[idx])
        if torch.rand(1, generator=g)<.5: x = x.flip(-1)
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16): return vae_loss(vae, x, g, a.kl)

    def plan(part): # steps, or minutes
        steps = getattr(a, f'{part}_steps')
        return dict(steps=steps) if steps is not None else dict(minutes=getattr(a, f'{part}_minutes'))

    first = Training(dict(vae=vae), vae_batch, a.vae_lr, **plan('vae'), file=work/'vae.pth', decay=.995, seed=a.seed,
                     log=lambda text: say(f'vae {text}'))
    first.run()
    mean,std = latent_scale(vae, images[::max(1, len(images)//2000)])
    say(f'latents: mean {[round(v, 2) for v in mean.tolist()]}, deviation {[round(v, 2) for v in std.tolist()]}')
    rescale(vae, mean, std)
    coded = {d: made_once(work/f'latents-{d}-{n}-{first.step}.pth', lambda: encode(vae, drawn[d], d)) for d in PRETRAINING}
    data = {k: torch.cat([o[k] for o in coded.values()]) for k in next(iter(coded.values()))}
    outfits,grey = [o for d in drawn.values() for o in d['outfits']],grey_latents(vae)

    def unet_batch(g):
        idx = torch.randint(len(outfits), (a.unet_batch,), generator=g)
        return denoising_loss(pipe, {k: v[idx] for k,v in data.items()} | dict(outfit=[outfits[i] for i in idx]), grey, g)

    second = Training(dict(unet=pipe.unet, text_encoder=pipe.text_encoder), unet_batch, a.unet_lr, **plan('unet'),
                      file=work/f'unet-{first.step}.pth', seed=a.seed+1, log=lambda text: say(f'unet {text}'))
    second.run()
    about = dict(made_by='benchmarks/train_small_diffusion.py', people=len(images), places=', '.join(PRETRAINING), seed=a.seed,
                 vae_steps=first.step, vae_batch=a.vae_batch, vae_minutes=round(first.used/60, 1),
                 unet_steps=second.step, unet_batch=a.unet_batch, unet_minutes=round(second.used/60, 1),
                 vae_history=first.history, unet_history=second.history)
    save_small_diffusion(pipe, a.out, about)
    half = a.measured//2
    if half:
        about['measures'] = {'its own places': measure(pipe, ('park','suburb'), half),
                             "a benchmark's places": measure(pipe, ('plaza','market'), half)}
        say(f"measured: {about['measures']}")
    save_small_diffusion(pipe, a.out, about)
    size = sum((Path(a.out)/part/file).stat().st_size for part,file in PARTS.items())
    say(f'{a.out}: {size/1e6:.2f} MB')

if __name__=='__main__': main()
