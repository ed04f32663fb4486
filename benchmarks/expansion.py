"""What `expand` costs an image beside the edit, at the start and at the end of a long job, and what resuming costs

python benchmarks/expansion.py [--images 20000] [--size 128x64] [--out FILE.json]
python benchmarks/expansion.py --images 200000      (needs 3 GB of disk and some minutes)
"""
import argparse,os,platform,resource,tempfile,time

os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np

from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import make_table
from ccreid.files import to_json, write_whole
from ccreid.generation.expansion import expand


def pictures(folder, n, size):
    "Training table of `n` mannequins in files of that size"
    world = MannequinWorld((max(1, n//50),0,0), images=50, cameras=1, outfits=1, size=size, seed=1)
    rows = []
    for i in range(n):
        path = f'{folder}/{i//50:04d}/{i:06d}.jpg'
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if i<500: world.render(i//50%world.people, frame=i%50).image.save(path, quality=95)
        else: os.link(f'{folder}/{i%500//50:04d}/{i%500:06d}.jpg', path)
        rows.append(dict(dataset='bench', path=path, identity=i//50, clothes=i//50, camera=0, split='train'))
    return make_table(rows)


class Edit:
    "Gives back what it gets, and takes the processor's time between its calls: that is what everything else costs"
    accept = ('unchanged',)
    def __init__(self): self.last,self.gaps = None,[]
    def __call__(self, images, rows, variants, seeds):
        now = time.process_time()
        if self.last: self.gaps.append((now-self.last)/len(images))
        self.last = time.process_time()
        return images


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument('--images', type=int, default=20000); args.add_argument('--variants', type=int, default=10)
    args.add_argument('--size', default='128x64', help='height x width'); args.add_argument('--batch', type=int, default=8)
    args.add_argument('--out', help='write the figures as JSON'); args.add_argument('--folder', help='where to write (a temporary folder)')
    args = args.parse_args()
    size,memory = tuple(map(int, args.size.split('x'))),lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    with tempfile.TemporaryDirectory(dir=args.folder) as tmp:
        table = pictures(f'{tmp}/in', args.images//args.variants, size)
        kw = dict(variants=args.variants, batch=args.batch, generated_by='bench', progress=False)
        edit,before = Edit(),memory()
        start,cpu = time.perf_counter(),time.process_time()
        res = expand(table, edit, f'{tmp}/out', **kw)
        whole,cpu = time.perf_counter()-start,time.process_time()-cpu
        ms,tenth = 1000*np.array(edit.gaps),max(1, len(edit.gaps)//10)
        start = time.perf_counter(); again = expand(table, None, f'{tmp}/out', **kw); resume = time.perf_counter()-start
        start = time.perf_counter(); expand(table, None, f'{tmp}/out', check='full', **kw); full = time.perf_counter()-start
        assert len(res)==len(again)==len(table)*args.variants and again.attrs['expansion']['made']==0
        r = dict(images=len(res), size=size, variants=args.variants, batch=args.batch, ms_an_image=1000*whole/len(res), cpu_ms_an_image=1000*cpu/len(res), ms_median=float(np.median(ms)),
                 ms_first_tenth=float(np.median(ms[:tenth])), ms_last_tenth=float(np.median(ms[-tenth:])), resume_s=resume, full_check_s=full,
                 extra_MiB=memory()-before, manifest_MiB=os.path.getsize(f'{tmp}/out/manifest-000-of-001.jsonl')/2**20)
    print(f"{r['images']:,} images of {size[0]}×{size[1]}: {r['ms_an_image']:.2f} ms an image beside the edit, all in all;"
          f" {r['cpu_ms_an_image']:.2f} of processor time (first tenth {r['ms_first_tenth']:.2f}, last tenth {r['ms_last_tenth']:.2f})")
    print(f"call again: {r['resume_s']:.1f} s, with full check {r['full_check_s']:.1f} s; {r['extra_MiB']:.0f} MiB more memory; manifest {r['manifest_MiB']:.0f} MiB")
    if args.out:
        write_whole(args.out, to_json(dict(**r, machine=platform.processor() or platform.machine()), indent=1))


if __name__ == '__main__': main()
