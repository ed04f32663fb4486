"""Mannequin pictures per second on one core: image, parsing map, key points and caption; beside reading a picture and a map of that size from files.

Nothing else draws them, so there is no peer; whoever does not draw reads what was drawn before, and that is the floor. Prints a table, writes a JSON."""
import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1') # one core, before numpy starts

import numpy as np
import PIL
from PIL import Image

from ccreid.data.images import read_image
from ccreid.data.mannequins import MannequinWorld, world_hash
from ccreid.files import to_json, write_whole

def rate(size, n, clock=time.perf_counter, repeats=5, **kw):
    "Pictures per second, the median of `repeats` runs after the backgrounds are there"
    w = MannequinWorld((100,0,0), cameras=4, size=size, seed=1, **kw)
    scenes = [(i%100, i//3%2, i%4, None, None, i%7) for i in range(n)]
    for s in scenes[:8]: w.render(*s)
    def run():
        start = clock()
        for s in scenes: w.render(*s)
        return n/(max(clock()-start, 1e-9))
    runs = [run() for _ in range(repeats)]
    return float(np.median(runs)),min(runs),max(runs)

def reading_rate(size, n, repeats=5, **kw):
    "Pictures with their maps per second of processor time, read from files that were drawn before"
    w = MannequinWorld((100,0,0), cameras=4, size=size, seed=1, **kw)
    with tempfile.TemporaryDirectory() as tmp:
        drawn = [w.render(i%100, i//3%2, i%4) for i in range(24)]
        for i,m in enumerate(drawn):
            m.image.save(f'{tmp}/{i}.png')
            Image.fromarray(np.asarray(m.parsing, np.uint8)).save(f'{tmp}/{i}_map.png')
        def run():
            start = time.process_time()
            for i in range(n): read_image(f'{tmp}/{i%24}.png'),np.asarray(Image.open(f'{tmp}/{i%24}_map.png'))
            return n/max(time.process_time()-start, 1e-9)
        return float(np.median([run() for _ in range(repeats)]))

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--images', type=int, default=400, help='pictures per run')
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'mannequins.json')
    a = p.parse_args()
    rows = {}
    for name,size,n,kw in (('128x64',(128,64),a.images,{}), ('128x64 infrared',(128,64),a.images,dict(infrared=(0,1,2,3))), ('256x128',(256,128),a.images//2,{}), ('384x192',(384,192),a.images//4,{})):
        median,low,high = rate(size, n, **kw)
        core,_,_ = rate(size, n, time.process_time, **kw) # what a core does when nobody else wants it
        read = reading_rate(size, n, **kw)
        rows[name] = dict(per_second=round(median,1), lowest=round(low,1), highest=round(high,1), per_cpu_second=round(core,1), read_per_cpu_second=round(read,1))
        print(f'{name:18} {median:7.0f} pictures/s (runs {low:.0f} to {high:.0f}), {core:.0f} per second of processor time; read from files {read:.0f}')
    res = dict(rows=rows, load=os.getloadavg()[0], machine=platform.machine(), python=platform.python_version(), numpy=np.__version__, pillow=PIL.__version__, world=world_hash('mannequins'))
    write_whole(a.out, to_json(res, indent=1)+'\n')
    print(f"written to {a.out}; load of the machine {res['load']:.1f}")

if __name__=='__main__': main()
