"""Training images a second through the loader, one process: decoding each time or from the cache, resizing by Pillow or by PyTorch

    python benchmarks/batches.py [--out FILE.json]

Everything twice: as a process is started, and with THP_MEM_ALLOC_ENABLE=1, with which PyTorch asks Linux for large tensors in pages of 2 MiB. Each of both is a process of its own.
"""
import argparse,json,os,platform,statistics,subprocess,sys,tempfile,time
from dataclasses import replace

os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np
import torch
from PIL import Image

from ccreid.data.batches import ImageCache,Preprocessing,reid_dataloaders
from ccreid.data.samplers import PKSampler
from ccreid.data.samples import make_table
from ccreid.data.transforms import read_image


def pictures(folder, n, size, kind, people=32):
    "Smooth random pictures with some noise, as large as photographs of that size; their training table"
    rng,(h,w) = np.random.default_rng(0),size
    rows = []
    for i in range(n):
        a = np.asarray(Image.fromarray(rng.integers(0, 256, (h//8,w//8,3), np.uint8)).resize((w,h), Image.Resampling.BICUBIC), np.int16)
        path = f'{folder}/{kind}_{h}x{w}_{i:05d}.{kind}'
        Image.fromarray((a+rng.integers(-8, 9, a.shape)).clip(0, 255).astype(np.uint8)).save(path)
        rows.append(dict(dataset='bench', path=path, identity=i%people, clothes=i%people, camera=0, split='train'))
    return make_table(rows)


def rate(f, n, repeats=5, clock=time.perf_counter):
    "Median images a second of `f()`, which handles `n`; by the processor's clock where that is given"
    f()
    times = []
    for _ in range(repeats):
        start = clock(); f(); times.append(clock()-start)
    return n/statistics.median(times)


WAYS = {'plain': ('bilinear', False), 'cached': ('bilinear', True), 'fast': ('torch_bilinear', False), 'fast_cached': ('torch_bilinear', True)} # filter, cache?

def measure(images):
    "Images a second of each way, by the wall's clock and by the processor's, one row a kind of picture"
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        for source,network,kind in ((128,64),(96,48),'png'), ((128,64),(128,64),'png'), ((128,64),(128,64),'jpg'), ((256,128),(256,128),'jpg'), ((256,128),(384,192),'jpg'):
            table,pre = pictures(tmp, images, source, kind),Preprocessing(network)
            row = dict(source=source, network=network, kind=kind, decode=rate(lambda: [read_image(p) for p in table.path], images))
            for way,(filter,cache) in WAYS.items():
                dl = reid_dataloaders(table, replace(pre, interpolation=filter), identities=8, images=8, num_workers=0, device='cpu', cache=cache).train
                def run():
                    for _ in dl: pass
                row[way],row[f'cpu_{way}'] = (rate(run, len(dl)*64, 5, clock) for clock in (time.perf_counter, time.process_time))
            rows.append(row)
            print(f"{kind+' '+'×'.join(map(str, source)):>14} {'×'.join(map(str, network)):>9} | {row['decode']:11,.0f}", *(f'{row[w]:11,.0f}' for w in WAYS), flush=True)
    return rows

def with_pages(huge, images):
    "The same in a process whose large tensors have large pages, or not"
    with tempfile.TemporaryDirectory() as tmp:
        env = {k: v for k,v in os.environ.items() if k!='THP_MEM_ALLOC_ENABLE'} | (dict(THP_MEM_ALLOC_ENABLE='1') if huge else {})
        subprocess.run([sys.executable, __file__, '--images', str(images), '--rows', f'{tmp}/rows.json'], env=env, check=True)
        with open(f'{tmp}/rows.json') as f: return [dict(r, huge_pages=huge) for r in json.load(f)]

def sampler_ms():
    "One epoch's draws of 17,896 images of 150 people"
    sampler,times = PKSampler(np.repeat(np.arange(150), 120)[:17896], 8, 8),[]
    for e in range(7):
        start = time.perf_counter(); sampler.epoch(e); times.append(time.perf_counter()-start)
    return 1000*statistics.median(times)

def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument('--out', help='write the figures as JSON'); args.add_argument('--images', type=int, default=512)
    args.add_argument('--rows', help='measure in this process and write the rows alone')
    args = args.parse_args()
    torch.set_num_threads(1)
    if args.rows:
        with open(args.rows, 'w') as f: return json.dump(measure(args.images), f)
    res = []
    for huge in (False, True) if sys.platform=='linux' else (False,):
        print('pages of 2 MiB' if huge else 'usual pages', f"{'source':>14} {'network':>9} | decode only", *(f'{w:>11}' for w in WAYS), '  images/s, one process', sep=' ')
        res += with_pages(huge, args.images)
    print(f'sampler, one epoch of 17,896 images of 150 people: {(ms := sampler_ms()):.1f} ms')
    if args.out:
        with open(args.out, 'w') as f:
            json.dump(dict(rates=res, sampler_ms=ms, machine=platform.processor() or platform.machine(), torch=torch.__version__), f, indent=1)


if __name__ == '__main__': main()
