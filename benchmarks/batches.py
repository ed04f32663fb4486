"""Training images a second through the loader, one process: decoding each time, and from the cache

python benchmarks/batches.py [--out FILE.json]
"""
import argparse,json,os,platform,statistics,tempfile,time

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


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument('--out', help='write the figures as JSON'); args.add_argument('--images', type=int, default=512)
    args = args.parse_args()
    torch.set_num_threads(1)
    res = []
    print(f"{'source':>14} {'network':>9} | {'decode only':>11} {'plain':>8} {'cached':>8}   images/s, one process")
    with tempfile.TemporaryDirectory() as tmp:
        for source,network,kind in ((128,64),(96,48),'png'), ((128,64),(128,64),'png'), ((128,64),(128,64),'jpg'), ((256,128),(384,192),'jpg'):
            n = args.images
            table,pre = pictures(tmp, n, source, kind),Preprocessing(network)
            kw = dict(identities=8, images=8, num_workers=0, device='cpu')
            plain = reid_dataloaders(table, pre, **kw).train
            cached = reid_dataloaders(table, pre, cache=ImageCache(pre), **kw).train
            def run(dl):
                for _ in dl: pass
            r = dict(source=source, network=network, kind=kind,
                     decode=rate(lambda: [read_image(p) for p in table.path], n),
                     plain=rate(lambda: run(plain), len(plain)*64), cached=rate(lambda: run(cached), len(cached)*64))
            r |= {f'cpu_{k}': rate(lambda: run(dl), len(dl)*64, 3, time.process_time) for k,dl in (('plain',plain), ('cached',cached))}
            res.append(r)
            print(f"{kind+' '+'×'.join(map(str,source)):>14} {'×'.join(map(str,network)):>9} | {r['decode']:11,.0f} {r['plain']:8,.0f} {r['cached']:8,.0f}")
    labels = np.repeat(np.arange(150), 120)[:17896]
    sampler,times = PKSampler(labels, 8, 8),[]
    for e in range(7):
        start = time.perf_counter(); sampler.epoch(e); times.append(time.perf_counter()-start)
    ms = 1000*statistics.median(times)
    print(f'sampler, one epoch of 17,896 images of 150 people: {ms:.1f} ms')
    if args.out:
        with open(args.out, 'w') as f:
            json.dump(dict(rates=res, sampler_ms=ms, machine=platform.processor() or platform.machine(), torch=torch.__version__), f, indent=1)


if __name__ == '__main__': main()
