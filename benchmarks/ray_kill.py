"Workers of Ray killed in the middle of both long jobs, and the process that asked for them: is anything lost or doubled? Prints a table, writes a JSON"
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

from ccreid.data.mannequins import MannequinWorld
from ccreid.files import to_json, write_whole
from ccreid.generation.expansion import expand
from ccreid.generation.records import read_manifest
from ccreid.search.job import embed_to_file
from ccreid.search.vectors import read_vectors

def die_once(marker):
    "End this process as SIGKILL does, unless somebody has died of this marker before"
    try: os.close(os.open(marker, os.O_CREAT|os.O_EXCL))
    except FileExistsError: return
    os.kill(os.getpid(), signal.SIGKILL)

class Tint:
    "An edit whose process dies once, at one image"
    generated_by = 'Tint'
    def __init__(self, marker='', fatal=-1): self.marker,self.fatal,self.settings = marker,fatal,{}
    def __call__(self, images, rows, variants, seeds):
        if self.marker and self.fatal in [r['frame']+1000*r['identity']+100*v for r,v in zip(rows, variants)]: die_once(self.marker)
        return [im.point(lambda x, s=s: (x+s%97+1)%256) for im,s in zip(images, seeds)]

class Mean:
    "A model whose process dies once, at its n-th call"
    def __init__(self, marker='', fatal=-1): self.marker,self.fatal,self.calls = marker,fatal,0
    def __call__(self, pictures):
        self.calls += 1
        if self.marker and self.calls==self.fatal: die_once(self.marker)
        return [[float(v) for v in p.resize((2,2)).tobytes()] for p in pictures]

def content(out): return {p.relative_to(out).as_posix(): p.read_bytes() for p in Path(out).rglob('*.png')}

def lines(out):
    "Lines of the manifest as they stand, without their time"
    text = (Path(out)/'manifest-000-of-001.jsonl').read_text().splitlines()
    return [[(k, v) for k,v in json.loads(t).items() if k!='time'] for t in text]

def engine(actors=2):
    from ccreid.engines import RayEngine
    return RayEngine(actors=actors, memory=200*2**20)

def people(folder, n):
    world = MannequinWorld((n,0,2), outfits=2, cameras=2, images=1, size=(64,32), seed=11)
    return world.write(Path(folder)/'people', 'mannequins', workers=1)

def asked(folder, n, stop):
    "The job in a process of its own, which is killed after some batches"
    def progress(done, total):
        if done>=stop: os.kill(os.getpid(), signal.SIGKILL)
    expand(people(folder, n).train, Tint(), Path(folder)/'asked', 2, batch=4, progress=progress, engine=engine())

def trial(name, job, same):
    "A row of the table"
    start = time.perf_counter()
    job()
    row = dict(seconds=round(time.perf_counter()-start, 1), **same())
    print(f"{name:44} {row['seconds']:6.1f} s   {row['items']:4} items, lost {row['lost']}, doubled {row['doubled']}, other bytes {row['other']}"
          f"{', same lines' if row.get('lines') else ''}", flush=True)
    assert not (row['lost'] or row['doubled'] or row['other']), name
    return row

def compared(out, local):
    "How an expansion differs from the local one"
    want,got,log = content(local),content(out),lines(out)
    keys = [(dict(l)['source'], dict(l)['variant']) for l in log]
    assert len(read_manifest(out))==len(set(keys)) and not list(Path(out).glob('.making-*'))
    return dict(items=len(got), lost=len(want.keys()-got.keys()), doubled=len(keys)-len(set(keys)), other=sum(got.get(k)!=v for k,v in want.items()),
                lines=log==lines(local))

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--people', type=int, default=12, help='people for training, 4 images each')
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'ray_kill.json')
    p.add_argument('--asked', nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args(argv)
    if a.asked: return asked(a.asked[0], a.people, int(a.asked[1]))
    try: engine()
    except ImportError as e: return print(f'not run: {e}')
    import ray
    with tempfile.TemporaryDirectory() as tmp:
        f,rows = Path(tmp),{}
        table = people(f, a.people).train
        kw = dict(variants=2, batch=4, progress=False)
        rows['local'] = trial('expansion, local', lambda: expand(table, Tint(), f/'local', **kw), lambda: compared(f/'local', f/'local'))
        me = [sys.executable, os.path.abspath(__file__), '--people', str(a.people), '--asked', tmp, '12']
        died = subprocess.run(me, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
        assert died==-signal.SIGKILL, died
        first = len(read_manifest(f/'asked'))
        assert 0<first<len(content(f/'local'))
        ray.init(address='local', num_cpus=2, include_dashboard=False, object_store_memory=200*2**20, log_to_driver=False, logging_level='ERROR') # one for all trials
        mark = lambda name: str(f/f'died-{name}')
        rows['asked'] = trial(f'expansion, asking process killed after {first}', lambda: expand(table, Tint(), f/'asked', engine=engine(), **kw),
                              lambda: compared(f/'asked', f/'local'))
        rows['ray'] = trial('expansion, Ray', lambda: expand(table, Tint(), f/'ray', engine=engine(), **kw), lambda: compared(f/'ray', f/'local'))
        fatal = 1000*int(table.identity.iloc[len(table)//2])+100
        rows['killed'] = trial('expansion, a worker killed', lambda: expand(table, Tint(mark('a'), fatal), f/'killed', engine=engine(), **kw),
                               lambda: compared(f/'killed', f/'local'))
        assert Path(mark('a')).exists()
        embed = dict(batch_size=4, part=8)
        embed_to_file(Mean(), table.path.tolist(), f/'local.npz', **embed)
        def vectors():
            want,got = read_vectors(f/'local.npz'),read_vectors(f/'killed.npz')
            return dict(items=len(got), lost=len(set(want.ids)-set(got.ids)), doubled=len(got.ids)-len(set(got.ids)), lines=got.ids==want.ids,
                        other=int((got.vectors!=want.vectors).any(1).sum()))
        rows['embed'] = trial('vectors, a worker killed', lambda: embed_to_file(Mean(mark('b'), 3), table.path.tolist(), f/'killed.npz', engine=engine(), **embed),
                              vectors)
        assert Path(mark('b')).exists()
        ray.shutdown()
    write_whole(a.out, to_json(dict(rows=rows, ray=ray.__version__, cores=os.cpu_count(), load=os.getloadavg()[0]), indent=1)+'\n')
    print(f'written to {a.out}')

if __name__=='__main__': main()
