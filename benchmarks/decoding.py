"""From a JPEG on the disk to the picture a network is given (256x128): by each decoder that is installed, beside Pillow.

    python benchmarks/decoding.py            four sizes of photographs, five rounds
    python benchmarks/decoding.py --quick    two sizes, two rounds

Decoding and resizing together, by Pillow, or by PyTorch where the name says so; one process, one thread, files just written. `scaled` lets the decoder leave out detail that the size does not need
(Pillow's `draft`, a minimum size in simplejpeg); `ImageCache` is the loaders' own option, which decodes each file once. Contenders take turns; medians.
`apart` is the mean difference from Pillow's picture in grey levels of 255. An option is worth its name from 2.5 times Pillow. Writes benchmarks/results/decoding.json."""
import argparse, io, os, platform, statistics, tempfile, time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np, pandas as pd, PIL, torch
from PIL import Image
from batches import pictures
from ccreid.data.batches import ImageCache, Preprocessing
from ccreid.data.transforms import read_image
from ccreid.files import to_json, write_whole

NETWORK = (256,128)
SIZES = ((128,64), (256,128), (512,256), (1024,512))

def content(path):
    with open(path, 'rb') as f: return f.read()

def decoders(pre):
    "Name -> function of a path that gives the resized picture"
    (height,width),fast = pre.size,replace(pre, interpolation='torch_bilinear')
    def pillow(path): return pre.resize(Image.open(io.BytesIO(content(path))).convert('RGB'))
    def draft(path):
        im = Image.open(io.BytesIO(content(path)))
        im.draft('RGB', (width,height))
        return pre.resize(im.convert('RGB'))
    found = {'Pillow': pillow, 'read_image (ours)': lambda path: pre.resize(read_image(path)), 'read_image, by PyTorch (ours)': lambda path: fast.resize(read_image(path)), 'Pillow, scaled': draft}
    try:
        from simplejpeg import decode_jpeg
        found['simplejpeg'] = lambda path: pre.resize(Image.fromarray(decode_jpeg(content(path))))
        found['simplejpeg, scaled'] = lambda path: pre.resize(Image.fromarray(decode_jpeg(content(path), min_height=height, min_width=width)))
    except ImportError: pass
    try:
        from turbojpeg import TJPF_RGB, TurboJPEG
        jpeg = TurboJPEG()
        found['PyTurboJPEG'] = lambda path: pre.resize(Image.fromarray(jpeg.decode(content(path), pixel_format=TJPF_RGB)))
    except (ImportError,RuntimeError,OSError): pass # the library itself is another package
    try:
        import ccreid.compat
        from torchvision.io import decode_jpeg as by_torchvision
        def tv(path): return pre.resize(Image.fromarray(by_torchvision(torch.frombuffer(bytearray(content(path)), dtype=torch.uint8)).permute(1, 2, 0).numpy()))
        found['torchvision.io'] = tv
    except (ImportError,RuntimeError): pass
    cache = ImageCache(pre)
    return found | {'ImageCache (ours)': lambda path: cache[path], 'the file alone': content}

def apart(picture, reference): return float(np.abs(np.asarray(picture, np.float32)-np.asarray(reference, np.float32)).mean())

def usable(found, path):
    "Those that can decode here: torchvision is also built without JPEG"
    def works(f):
        try: f(path); return True
        except RuntimeError: return False
    return {k: f for k,f in found.items() if works(f)}

def measure(source, n, rounds, folder):
    "Rows of one size of photographs"
    table = pictures(folder, n, source, 'jpg')
    found = usable(decoders(Preprocessing(NETWORK)), table.path[0])
    times,busy = {k: [] for k in found},{k: [] for k in found}
    for r in range(rounds+1): # the first does not count, and fills the cache
        for k,f in found.items():
            start,work = time.perf_counter(),time.process_time()
            for p in table.path: f(p)
            if r: times[k].append(time.perf_counter()-start); busy[k].append(time.process_time()-work)
    ms = {k: 1000*statistics.median(v)/n for k,v in times.items()}
    cpu = {k: 1000*statistics.median(v)/n for k,v in busy.items()}
    far = {k: np.mean([apart(f(p), found['Pillow'](p)) for p in table.path[:8]]) for k,f in found.items() if k!='the file alone'}
    return [dict(source=list(source), what=k, ms=round(ms[k], 3), cpu_ms=round(cpu[k], 3), pillow_over_this=round(ms['Pillow']/ms[k], 2),
                 cpu_pillow_over_this=round(cpu['Pillow']/max(cpu[k], 1e-6), 2), apart=round(float(far[k]), 2) if k in far else None) for k in found]

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='two sizes, two rounds')
    parser.add_argument('--images', type=int, default=64)
    parser.add_argument('--rounds', type=int, help='rounds in turn (5; quick: 2)')
    parser.add_argument('--out', default=str(Path(__file__).parent/'results'/'decoding.json'))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for source in SIZES[1:3] if args.quick else SIZES:
        with tempfile.TemporaryDirectory() as tmp: rows += measure(source, args.images, args.rounds or (2 if args.quick else 5), tmp)
        print(pd.DataFrame([r for r in rows if r['source']==list(source)]).to_string(index=False), end='\n\n', flush=True)
    result = dict(benchmark='decoding', quick=args.quick, network=list(NETWORK), images=args.images, rows=rows, cores=os.cpu_count(), load=round(os.getloadavg()[0], 1),
                  machine=platform.machine(), python=platform.python_version(), pillow=PIL.__version__, when=time.strftime('%Y-%m-%d'))
    write_whole(args.out, to_json(result, indent=1)+'\n')
    print('wrote', args.out)

if __name__=='__main__': main()
