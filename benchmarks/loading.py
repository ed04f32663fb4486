"""How long it takes to read a data set's table from disk, and to check all its pictures, against plain loops in the same run.

    python benchmarks/loading.py            180,000 names in four layouts; a PRCC of 33,698 pictures checked without and with decoding
    python benchmarks/loading.py --quick    a tenth of everything, one round

The names are empty files; the pictures are 64 different ones of 256x128 pixels and some 10 KB, as photographs of that size are, written again and again with a number
behind the last byte so that no two files are equal. The plain loops are our own writing of what the field's loaders do (`glob`, a regular expression, a second pass
for the labels; no check of anything), and of the usual way to look for broken files (Pillow, one after the other). Files were just written, so the disk plays
no part. Contenders take turns; medians. Writes benchmarks/results/loading.json."""
import argparse, glob, os, platform, re, statistics, tempfile, time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import io
import numpy as np, pandas as pd, PIL
from PIL import Image
from ccreid.data.checks import check
from ccreid.data.layouts import load_dataset
from ccreid.files import to_json, write_whole

LARGE = 180_000

def files(root, names, contents=None):
    "Write files, empty unless there are contents to take in turn"
    made = set()
    for i,n in enumerate(names):
        p = f'{root}/{n}'
        if (d := os.path.dirname(p)) not in made: os.makedirs(d, exist_ok=True); made.add(d)
        with open(p, 'wb') as f:
            if contents: f.write(contents[i%len(contents)] + i.to_bytes(4, 'big'))

# ---- trees of names; each gives (names, {list file: text})

def market1501(n):
    parts = (('bounding_box_train', .5, 0, 750), ('query', .1, 750, 750), ('bounding_box_test', .4, 750, 750))
    return [f'{d}/{first + i%people + 1:04d}_c{i//people%6 + 1}s1_{i:06d}_00.jpg' for d,share,first,people in parts for i in range(round(share*n))], {}

def ltcc(n):
    parts = (('train', .5, 0, 77), ('query', .1, 77, 75), ('test', .4, 77, 75))
    return [f'{d}/{first + i%people + 1:03d}_{i//people%3 + 1}_c{i//people%12 + 1}_{i:06d}.png' for d,share,first,people in parts for i in range(round(share*n))], {}

def deepchange(n):
    parts = (('train-set', .42, 0, 450), ('val-set-query', .03, 450, 150), ('val-set-gallery', .1, 450, 150), ('test-set-query', .1, 600, 521), ('test-set-gallery', .35, 600, 521))
    names,texts = [],{}
    for d,share,first,people in parts:
        own = [f'P{first + i%people + 1}_C{i//people%17 + 1:02d}_{20200813 + i//people%5}_{i//people:06d}_{i:06d}_bbox.jpg' for i in range(round(share*n))]
        names += [f'{d}/{p}' for p in own]
        texts[f'{d}-bbox.txt'] = ''.join(f'{p},{i//20}\n' for i,p in enumerate(own))
    return names, texts

def prcc(n):
    "The numbers of pictures of the real one are `prcc(33698)`"
    share = n/33698
    named = [f'rgb/{s}/{i%150 + 1:03d}/{"ABC"[i//150%3]}_cropped_rgb{i//450 + 1:03d}.jpg' for s,k in (('train',17896), ('val',5002)) for i in range(round(k*share))]
    return named + [f'rgb/test/{c}/{i%71 + 151:03d}/cropped_rgb{i//71 + 1:03d}.jpg' for c,k in (('A',3384), ('B',3873), ('C',3543)) for i in range(round(k*share))], {}

# ---- plain loops

def by_glob(root, folders, pattern):
    "Flat folders: glob, search each whole path, number the people, go through it again"
    grammar,rows = re.compile(pattern),[]
    for d in folders:
        paths = glob.glob(os.path.join(root, d, '*.jpg')) + glob.glob(os.path.join(root, d, '*.png'))
        labels = {p: i for i,p in enumerate(sorted({int(grammar.search(p).groups()[0]) for p in paths}))}
        for p in paths:
            pid,cam = map(int, grammar.search(p).groups())
            rows.append((p, labels[pid] if d==folders[0] else pid, cam - 1))
    return rows

def by_list(root, folders):
    "Lists: each line split, each name split, the file looked for"
    rows = []
    for d in folders:
        with open(f'{root}/{d}-bbox.txt') as f: lines = [l.split(',') for l in f.read().splitlines()]
        people = {p: i for i,p in enumerate(sorted({l[0].split('_')[0] for l in lines}))}
        worn = {k: i for i,k in enumerate(sorted({''.join(l[0].split('_')[:3:2]) for l in lines}))}
        for name,tracklet in lines:
            pid,cam,day = name.split('_')[:3]
            path = os.path.join(root, d, name)
            if not os.path.exists(path): raise FileNotFoundError(path)
            rows.append((path, people[pid], int(cam[1:]), worn[pid+day], int(tracklet)))
    return rows

def by_person(root):
    "PRCC: a folder a person, sorted; labels in a second pass"
    rows,train = [],sorted(os.listdir(f'{root}/rgb/train'))
    worn = {k: i for i,k in enumerate(sorted([*train, *(p+'C' for p in train)]))}
    for s in 'train','val':
        for i,p in enumerate(sorted(glob.glob(f'{root}/rgb/{s}/*'))):
            for f in glob.glob(f'{p}/*.jpg'):
                c = os.path.basename(f)[0]
                rows.append((f, i, 'ABC'.index(c), worn.get(os.path.basename(p) + 'C'*(c=='C'))))
    for c in 'ABC':
        for p in sorted(glob.glob(f'{root}/rgb/test/{c}/*')):
            rows += [(f, int(os.path.basename(p)), 'ABC'.index(c), None) for f in glob.glob(f'{p}/*.jpg')]
    return rows

def look(root, whole):
    "Pillow on every file, one after the other: decoded, or only `verify()`, which does not notice a JPEG that was cut off"
    bad = []
    for p in Path(root).rglob('*.jpg'):
        try:
            with Image.open(p) as im: im.load() if whole else im.verify()
        except Exception as e: bad.append((p, e))
    return bad

PLAIN = {
    'market1501': lambda root: by_glob(root, ('bounding_box_train', 'query', 'bounding_box_test'), r'([-\d]+)_c(\d)'),
    'ltcc': lambda root: by_glob(root, ('train', 'query', 'test'), r'(\d+)_\d+_c(\d+)'),
    'deepchange': lambda root: by_list(root, ('train-set', 'val-set-query', 'val-set-gallery', 'test-set-query', 'test-set-gallery')),
    'prcc': by_person,
}
TREES = dict(market1501=market1501, ltcc=ltcc, deepchange=deepchange, prcc=prcc)

def pictures(n=64, size=(256,128), seed=0):
    "JPEGs of smooth random pictures with some noise, as large as photographs of that size"
    rng,(h,w) = np.random.default_rng(seed),size
    res = []
    for _ in range(n):
        a = np.asarray(Image.fromarray(rng.integers(0, 256, (h//8,w//8,3), np.uint8)).resize((w,h), Image.Resampling.BICUBIC), np.int16)
        Image.fromarray((a + rng.integers(-8, 9, a.shape)).clip(0, 255).astype(np.uint8)).save(f := io.BytesIO(), 'JPEG', quality=85)
        res.append(f.getvalue())
    return res

def timed(contenders, rounds):
    "Median wall and processor seconds of functions that take turns, with the lowest and highest wall time"
    times,work = {k: [] for k in contenders},{k: [] for k in contenders}
    for f in contenders.values(): f()
    for _ in range(rounds):
        for k,f in contenders.items():
            start,busy = time.perf_counter(),time.process_time()
            f()
            times[k].append(time.perf_counter() - start); work[k].append(time.process_time() - busy)
    return {k: dict(seconds=round(statistics.median(t), 2), cpu_seconds=round(statistics.median(work[k]), 2), spread=[round(min(t), 2), round(max(t), 2)]) for k,t in times.items()}

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='a tenth of the files, one round')
    parser.add_argument('--rounds', type=int, help='rounds in turn (5; quick: 1)')
    parser.add_argument('--workers', type=int, help='threads that decode (one a core)')
    parser.add_argument('--out', default=str(Path(__file__).parent/'results'/'loading.json'))
    args = parser.parse_args()
    n,m,rounds = (LARGE//10, 3370, args.rounds or 1) if args.quick else (LARGE, 33698, args.rounds or 5)
    loads,checks = [],[]
    with tempfile.TemporaryDirectory() as tmp:
        for name,make in TREES.items():
            root = f'{tmp}/{name}'
            names,texts = make(n)
            files(root, names)
            for p,t in texts.items(): Path(root, p).write_text(t)
            found,plain = load_dataset(name, root, verbose=False),PLAIN[name](root)
            assert len(found.samples) == len(plain) == len(names), (name, len(found.samples), len(plain), len(names))
            t = timed(dict(ours=lambda: load_dataset(name, root, verbose=False), plain=lambda: PLAIN[name](root)), rounds)
            loads.append(dict(layout=name, images=len(names), lists=bool(texts), seconds=t['ours']['seconds'], plain_loop=t['plain']['seconds'],
                              of_plain=round(t['ours']['seconds']/t['plain']['seconds'], 2), cpu_seconds=t['ours']['cpu_seconds'], spread=t['ours']['spread']))
        print(pd.DataFrame(loads).drop(columns='spread').to_string(index=False), end='\n\n')
        root,contents = f'{tmp}/pictures',pictures()
        names,_ = prcc(m)
        files(root, names, contents)
        run = lambda decode: check('prcc', root, decode=decode, workers=args.workers, progress=None)
        report = run(True)
        assert not report.unreadable and not report.copies and sum(r['found'] for r in report.counts if r['what']=='images' and r['split']!='total') == len(names)
        t = timed({'check': lambda: run(True), 'check --no-decode': lambda: run(False), 'Pillow, load()': lambda: look(root, True), 'Pillow, verify()': lambda: look(root, False)}, rounds)
        checks = [dict(what=k, images=len(names), **v, images_per_second=round(len(names)/max(v['seconds'], .01)), of_load_loop=round(v['seconds']/t['Pillow, load()']['seconds'], 2))
                  for k,v in t.items()]
        print(pd.DataFrame(checks).drop(columns='spread').to_string(index=False), end='\n\n')
    result = dict(benchmark='loading', quick=args.quick, rounds=rounds, loads=loads, checks=checks, bytes_per_picture=round(statistics.mean(map(len, contents))),
                  workers=args.workers or os.cpu_count(), cores=os.cpu_count(), load=os.getloadavg()[0], machine=platform.machine(), python=platform.python_version(),
                  numpy=np.__version__, pandas=pd.__version__, pillow=PIL.__version__, when=time.strftime('%Y-%m-%d'))
    write_whole(args.out, to_json(result, indent=1) + '\n')
    print('wrote', args.out)

if __name__ == '__main__': main()
