"What a tile costs that lies in a strip of ten: run alone, prints a table and writes benchmarks/results/tiles.json"
import json, sys, tempfile, time
from pathlib import Path
import numpy as np
from PIL import Image
from ccreid.data.images import read_image
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.strips import tile_path
from ccreid.dlcr.tiles import read_tiles, write_tiles
from ccreid.generation.records import encode_png

SIZE,TILES,TIMES = (384,192),10,7

def milliseconds(work, *args):
    "The median of several runs, in time of the processor"
    spent = []
    for _ in range(TIMES):
        start = time.process_time(); work(*args); spent.append(1000*(time.process_time()-start))
    return float(np.median(spent))

def main(out):
    world = MannequinWorld(identities=TILES, size=SIZE, seed=3)
    images = [world.render(i).image for i in range(TILES)]
    rng = np.random.default_rng(0)                     # the grain of a camera: photographs compress less than drawings
    images = [Image.fromarray((np.asarray(im)+rng.normal(0, 4, (*SIZE,3))).clip(0, 255).astype(np.uint8)) for im in images]
    with tempfile.TemporaryDirectory() as tmp:
        strip,single = Path(tmp)/'strip.png',Path(tmp)/'single.png'
        write_tiles(strip, images); single.write_bytes(encode_png(images[3]))
        found = {'in its strip, ms': milliseconds(read_image, tile_path(strip, 3, TILES)),
                 'as a file, ms': milliseconds(read_image, single),
                 'of ten that are all used, ms': milliseconds(read_tiles, strip)/TILES,
                 'strip, kB': strip.stat().st_size/1000, 'ten files, kB': TILES*single.stat().st_size/1000}
    found = {k: round(v, 2 if k.endswith('ms') else 0) for k,v in found.items()} | {'size': list(SIZE), 'tiles': TILES}
    for k,v in found.items(): print(f'{k:30} {v}')
    Path(out).write_text(json.dumps(found, indent=1)+'\n')

if __name__=='__main__': main(sys.argv[1] if len(sys.argv)>1 else Path(__file__).parent/'results'/'tiles.json')
