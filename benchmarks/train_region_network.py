"""Train the network of regions for drawn people, in the shape of PISE: `python benchmarks/train_region_network.py`

It sees drawn people, each of them once, in four places where no benchmark is drawn, with their label maps and key points, and
never an identity label. Clothes are hidden, and it learns to draw them from the codes of their regions.

It can be killed at any moment: started again with the same arguments it goes on from the last checkpoint in the folder `--work`.
"""
import argparse, os, time
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np
import pandas as pd
import ccreid.compat
import torch
from PIL import Image
from ccreid.data.mannequins import DOMAINS, PRETRAINING, MannequinWorld
from ccreid.files import write_whole
from ccreid.generation.painted_colours import colour_shares, painted_colours
from ccreid.models.small_training import pixels
from ccreid.sync_person_cloud.redrawing import SIZE, filled_in, grey_levels, prepared, redraw, redrawing_loss
from ccreid.sync_person_cloud.regions import RegionNetwork, pose_maps, regions_of, save_region_network, worn_of
from ccreid.tensor_files import read_torch, torch_bytes
from ccreid.training.steps import Training

CAMERAS,SEED = 18,9101                     # of a place; of the first world
VIEWS = 'front','left','right','back'

def say(text): print(f'{time.strftime("%H:%M:%S")} {text}', flush=True)

def made_once(file, make):
    "What a file holds, made if there is none"
    if not file.exists():
        started = time.process_time()
        write_whole(file, torch_bytes(make()))
        say(f'{file.name}: {file.stat().st_size/1e6:.0f} MB, {time.process_time()-started:.0f} s')
    return read_torch(file)

def draw(place, n):
    "n people of a place, each seen once: pictures and label maps in the network's size, key points"
    world = MannequinWorld((n,0,0), outfits=1, cameras=CAMERAS, images=1, domain=place, seed=SEED+DOMAINS.index(place))
    images,labels,points = np.zeros((n,*SIZE,3), np.uint8),np.zeros((n,*SIZE), np.uint8),np.zeros((n,33,4), np.float32)
    for i in range(n):
        m = world.render(i, 0, i%CAMERAS, VIEWS[i//CAMERAS%4])
        images[i] = m.image.resize(SIZE[::-1], Image.Resampling.LANCZOS)
        labels[i],points[i] = Image.fromarray(m.parsing).resize(SIZE[::-1], Image.Resampling.NEAREST),m.keypoints
    return dict(images=torch.from_numpy(images), labels=torch.from_numpy(labels), points=torch.from_numpy(points))

def ready(drawn): return prepared([m.image for m in drawn], [m.parsing for m in drawn], [m.keypoints for m in drawn])

def errors(net, place, n, seed=SEED+100):
    "Grey levels of clothes: of n people in the own ones and in those of another one, whom it has not seen"
    world = MannequinWorld((n,0,0), outfits=1, cameras=6, images=1, domain=place, seed=seed+DOMAINS.index(place))
    people = [world.render(i, camera=i%6) for i in range(n)]
    others = [world.render((i+1)%n, camera=(i+1)%6, frame=1) for i in range(n)]
    right = ready([world.render(i, camera=i%6, garments=list(others[i].garments)) for i in range(n)])
    person,clothes = ready(people),ready(others)
    here = worn_of(person[1])
    same = here*(person[1]*right[1]).sum(1, keepdim=True)      # where the region stays what it was
    own = {name: grey_levels(o, person[0], here) for name,o in
           dict(network=redraw(net, person, person), filled=filled_in(person, person)).items()}
    other = {name: grey_levels(o, right[0], same) for name,o in
             dict(network=redraw(net, person, clothes), filled=filled_in(person, clothes), unchanged=person[0]).items()}
    return dict(own=own, other=other, same_region=(same.sum()/here.sum()).item())

def painter(net, world, templates, fill=False):
    "What `painted_colours` asks to paint: the template is a stranger who wears what the text says"
    def paint(images, masks, prompts, seeds):
        people = ready([world.render(i, camera=i%world.cameras, frame=i) for i in range(len(images))])
        clothes = ready([templates.render(i%templates.people, view='front', garments=p) for i,p in enumerate(prompts)])
        made = filled_in(people, clothes) if fill else redraw(net, people, clothes)
        return list(((made+1)*127.5).round().clamp(0, 255).byte().movedim(1, -1).numpy())
    return paint

def colours(net, places, n, fill=False):
    "Share of garments in the colour that was asked for"
    templates = MannequinWorld((n,0,0), outfits=1, cameras=1, images=1, size=SIZE, seed=SEED+300)
    worlds = [MannequinWorld((n,0,0), outfits=1, cameras=6, images=1, size=SIZE, domain=d, seed=SEED+200) for d in places]
    return colour_shares(pd.concat([painted_colours(painter(net, w, templates, fill), w, n) for w in worlds]))

def measure(net, places, n):
    "How good its pictures are, on n people of each place whom it has not seen"
    parts = [errors(net, d, n) for d in places]
    def mean(k): return {name: round(float(np.mean([o[k][name] for o in parts])), 2) for name in parts[0][k]}
    return dict(people=n*len(places), own=mean('own'), other=mean('other'),
                same_region=round(float(np.mean([o['same_region'] for o in parts])), 3),
                colours=colours(net, places, n).round(3).to_dict(), filled=colours(net, places, n, True).share.round(3).to_dict())

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--people', type=int, default=8000, help='drawn people in all')
    p.add_argument('--minutes', type=float, default=18., help="of the processor's time"); p.add_argument('--steps', type=int)
    p.add_argument('--lr', type=float, default=2e-3); p.add_argument('--batch', type=int, default=16)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--no-bf16', action='store_true', help='in 32 bits, for processors without bfloat16')
    p.add_argument('--measured', type=int, default=64, help='people on whom it is measured')
    p.add_argument('--work', default='runs/region_network', help='folder of pictures and the checkpoint')
    p.add_argument('--out', default='ccreid/assets/region_network.safetensors')
    a = p.parse_args()
    torch.set_num_threads(1)
    work,n = Path(a.work),a.people//len(PRETRAINING)
    work.mkdir(parents=True, exist_ok=True)
    parts = [made_once(work/f'people-{d}-{n}.pth', lambda: draw(d, n)) for d in PRETRAINING]
    data = {k: torch.cat([o[k] for o in parts]) for k in parts[0]}
    torch.manual_seed(a.seed)
    net = RegionNetwork().to(memory_format=torch.channels_last)

    def loss(g):
        idx = torch.randint(len(data['images']), (a.batch,), generator=g)
        images,regions = pixels(data['images'][idx].numpy()),regions_of(data['labels'][idx])
        pose = pose_maps(data['points'][idx], (SIZE[0]//2, SIZE[1]//2))
        with torch.autocast('cpu', torch.bfloat16, enabled=not a.no_bf16): return redrawing_loss(net, images, regions, pose, g)

    plan = dict(steps=a.steps) if a.steps is not None else dict(minutes=a.minutes)
    training = Training(dict(net=net), loss, a.lr, **plan, file=work/'network.pth', decay=.995, seed=a.seed, log=say)
    training.run()
    about = dict(made_by='benchmarks/train_region_network.py', people=len(data['images']), places=', '.join(PRETRAINING),
                 seed=a.seed, steps=training.step, batch=a.batch, minutes=round(training.used/60, 1), history=training.history)
    if half := a.measured//2:
        about['measures'] = {'its own places': measure(net, ('park','suburb'), half),
                             "a benchmark's places": measure(net, ('plaza','market'), half)}
        say(f"measured: {about['measures']}")
    save_region_network(net, a.out, about)
    say(f'{a.out}: {Path(a.out).stat().st_size/1e6:.2f} MB')

if __name__=='__main__': main()
