"""Try everything that needs CUDA, in under six minutes: a line a step, and a JSON with the device's name

python tools/gpu.py [--out FILE.json] [--full] [--cpu]

Without CUDA it says so and exits with 2; with --cpu the same steps run on the CPU, at tiny sizes, to try the script itself."""
import argparse, json, os, signal, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import torch
import ccreid.compat
from fastai.callback.core import Callback
from ccreid.data.batches import reid_dataloaders
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import make_table
from ccreid.data.transforms import Preprocessing
from ccreid.demo import demo
from ccreid.evaluation.metrics import evaluate
from ccreid.experiments import environment, multi_shot, run, compared_table
from ccreid.files import to_json, write_whole
from ccreid.recipes import recipe
from ccreid.tensor_files import read_torch
from ccreid.training.embedding import embed
from ccreid.training.learner import reid_learner
from ccreid.training.progress import progress

LIMIT = 330 # Seconds after which no further step is begun


# --- what the steps work on

def dataset_in(folder):
    "A world of mannequins, drawn once"
    from ccreid.data.layouts import load_dataset
    root = folder/'world'
    if root.exists(): return load_dataset('prcc', root)
    return MannequinWorld(identities=(16,0,12), outfits=2, cameras=3, images=4, seed=1).write(root, layout='prcc')

def photographs(folder, n, size, people):
    "Smooth random JPEGs of a size, and their training table"
    import numpy as np
    from PIL import Image
    folder.mkdir()
    rng,(h,w),rows = np.random.default_rng(0),size,[]
    for i in range(n):
        small = Image.fromarray(rng.integers(0, 256, (h//8,w//8,3), np.uint8))
        path = folder/f'{i:05d}.jpg'
        small.resize((w,h), Image.Resampling.BICUBIC).save(path)
        rows.append(dict(dataset='photographs', path=str(path), identity=i%people, clothes=i%people, camera=0, split='train'))
    return make_table(rows)

class Pause(Callback):
    "Says that the first epoch is saved, and waits to be killed"
    order = 95 # after the checkpoint
    def after_epoch(self):
        if self.epoch: return
        print('ready', flush=True)
        time.sleep(600)

def child(folder, device, precision, pause):
    "Two epochs of CAL + HSAL beside a checkpoint; the last line says what became of them"
    r = recipe('mannequins', 'cal+hsal', epochs=2, start_epoch=0, identities=8)
    learn,_ = run(r, dataset_in(folder), 0, device, precision or None, checkpoint=folder/f'{precision or "float32"}.pth', quiet='lines',
                  num_workers=0, cbs=[Pause()] if pause else [])
    print(json.dumps(dict(first_epoch=learn.first_epoch, history=learn.history)), flush=True)


# --- the steps: each returns figures, or raises

def marked_tests(o):
    "The tests marked gpu"
    files = [str(p) for p in sorted((ROOT/'tests').glob('test_*.py')) if 'mark.gpu' in p.read_text()]
    done = subprocess.run([sys.executable, '-m', 'pytest', '-o', 'addopts=--strict-markers', '-m', 'gpu', *files], cwd=ROOT, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or ['no output'])
    counts = next((l for l in reversed(last) if 'passed' in l or 'skipped' in l or 'failed' in l), last[-1])
    if done.returncode not in (0,5): raise RuntimeError(f'{counts} | {done.stdout[-600:]} {done.stderr[-300:]}')
    return dict(files=len(files), exit_code=done.returncode, said=counts.strip(' ='))

def killed_and_resumed(o, precision):
    "CAL + HSAL, killed after an epoch and resumed"
    def start(pause):
        words = ['--child', str(o.folder), '--device', o.device, '--precision', precision] + ['--pause']*pause
        return subprocess.Popen([sys.executable, __file__, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p = start(True)
    for line in p.stdout:
        if line.strip()=='ready': break
    p.send_signal(signal.SIGKILL)
    rest = p.communicate()[1]
    if p.returncode!=-signal.SIGKILL: raise RuntimeError(f'ended by itself: {rest[-400:]}')
    path = o.folder/f'{precision or "float32"}.pth'
    before = read_torch(path, 'a checkpoint', 'run again')
    p = start(False)
    out,err = p.communicate()
    if p.returncode: raise RuntimeError(f'did not go on: {err[-400:]}')
    found,after = json.loads(out.strip().splitlines()[-1]),read_torch(path, 'a checkpoint', 'run again')
    losses = {k: round(v, 4) for k,v in found['history'][-1].items()}
    if before['plan']!=after['plan'] or (before['epoch'],after['epoch'],found['first_epoch'])!=(0,1,1): raise RuntimeError('not the same run')
    if any(v!=v for v in losses.values()): raise RuntimeError(f'not a number: {losses}')
    return dict(precision=precision or 'float32', last_epoch=losses)

def demo_rows(o):
    "The rows of the demo"
    found = demo(o.folder/'demo', quick=not o.full, device=o.device, log=lambda *a: None)
    rows = {k: {p: round(100*f['R1'], 1) for p,f in r['protocols'].items()} for k,r in found['methods'].items()}
    return dict(quick=not o.full, rank1=rows, seconds_training={k: r['seconds'] for k,r in found['methods'].items()})

def embedding(o):
    "Features on the device against the CPU's"
    dataset = dataset_in(o.folder)
    dls = reid_dataloaders(dataset, Preprocessing((96,48)), 4, 4, num_workers=0, device=o.device)
    learn,table = reid_learner(dls, 'resnet_mini'),compared_table(dataset)
    learn.model.to(o.device)
    started = time.time()
    here = embed(learn, table)
    seconds = time.time()-started
    cosine = (here*embed(learn.model.cpu(), table)).sum(1).min().item()
    if not cosine>.999: raise RuntimeError(f'features differ: smallest cosine {cosine:.5f}')
    return dict(images=len(table), images_a_second=round(len(table)/seconds), smallest_cosine=round(cosine, 6))

class Clock(Callback):
    "Seconds of each step, and how long it waited for its batch; the first epoch does not count"
    order = 100
    def __init__(self, device): self.device,self.steps,self.waits,self.last = device,[],[],None
    def _now(self):
        if self.device=='cuda': torch.cuda.synchronize()
        return time.perf_counter()
    def before_batch(self):
        if self.training and self.last is not None: self.waits.append(self._now()-self.last)
    def after_batch(self):
        if not self.training: return
        now = self._now()
        if self.last is not None: self.steps.append(now-self.last)
        self.last = now
    def before_train(self): self.last = None
    def after_train(self):
        if self.epoch==0: self.steps,self.waits = [],[]

def training_speed(o):
    "Images a second in training, and the loader's share of the time"
    name,size,n,people,p,k = ('resnet_mini',(96,48),64,4,2,4) if o.device=='cpu' else ('resnet50',(384,192),2048,64,8,8)
    table = photographs(o.folder/'photographs', n, size, people)
    workers = 0 if o.device=='cpu' else min(16, os.cpu_count() or 1)
    dls = reid_dataloaders(table, Preprocessing(size), p, k, num_workers=workers, device=o.device)
    clock = Clock(o.device)
    learn = reid_learner(dls, name, [clock], precision=None if o.device=='cpu' else 'bf16')
    with progress(learn, True): learn.fit(2)
    seconds = sum(clock.steps)
    return dict(backbone=name, size=list(size), batch=p*k, workers=workers, images_a_second=round(p*k*len(clock.steps)/seconds, 1),
                share_of_the_loader=round(sum(clock.waits)/seconds, 3), steps=len(clock.steps))

def same_metrics(o):
    "Metrics on the device against the CPU's"
    dataset = dataset_in(o.folder)
    table = compared_table(dataset)
    f = torch.nn.functional.normalize(torch.randn(len(table), 64, generator=torch.Generator().manual_seed(0)))
    for name,protocol in multi_shot(dataset).items():
        a,b = evaluate(f, table, protocol),evaluate(f.to(o.device), table, protocol)
        worst = (a.ap-b.ap.cpu()).abs().nan_to_num().max().item()
        near = torch.allclose(a.ap, b.ap.cpu(), rtol=0, atol=1e-5, equal_nan=True)
        if not near or not torch.equal(a.hits, b.hits.cpu()): raise RuntimeError(f'{name}: average precision differs by {worst:.2g}')
    return dict(protocols=list(multi_shot(dataset)), images=len(table))


# --- one after another

def steps(o):
    "Name and function of each step; what matters most comes first"
    precisions = [''] if o.device=='cpu' else ['bf16','fp16']
    return [('metrics', same_metrics), ('embedding', embedding), ('training speed', training_speed),
            *[(f'kill and resume {p}'.strip(), lambda o, p=p: killed_and_resumed(o, p)) for p in precisions],
            ('tests marked gpu', marked_tests), ("the demo's rows", demo_rows)]

def all_steps(o):
    "Run the steps; a record of each"
    started,records = time.time(),{}
    for name,step in steps(o):
        begun = time.time()
        if begun-started>o.limit: record = dict(state='not run')
        else:
            try: record = dict(state='ok', **step(o))
            except Exception as e: record = dict(state='FAILED', error=f'{type(e).__name__}: {" ".join(str(e).split())[:1500]}')
        records[name] = record | dict(seconds=round(time.time()-begun, 1))
        print(f'[{time.time()-started:4.0f} s] {name}: ' + ', '.join(f'{k} {v}' for k,v in records[name].items()), flush=True)
    return records

def main(words=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', default='runs/gpu.json', help='where the figures go')
    p.add_argument('--full', action='store_true', help='the whole demo, not the quick one')
    p.add_argument('--cpu', action='store_true', help='the same steps on the CPU, at tiny sizes')
    p.add_argument('--limit', type=float, default=LIMIT, help='seconds after which no step is begun')
    for hidden in '--child','--device','--precision': p.add_argument(hidden, default='', help=argparse.SUPPRESS)
    p.add_argument('--pause', action='store_true', help=argparse.SUPPRESS)
    o = p.parse_args(words)
    if o.child: return child(Path(o.child), o.device, o.precision, o.pause)
    if not o.cpu and not torch.cuda.is_available():
        print('No CUDA here: nothing was tried (--cpu runs the same steps on the CPU)')
        return 2
    o.device = 'cpu' if o.cpu else 'cuda'
    about = environment(o.device)
    print(f"{about['device_name']}, torch {about['versions']['torch']}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        o.folder = Path(folder)
        dataset_in(o.folder)
        records = all_steps(o)
    write_whole(Path(o.out), to_json(dict(**about, steps=records), indent=1))
    bad = [k for k,r in records.items() if r['state']!='ok']
    print(f"{len(records)-len(bad)} of {len(records)} steps are fine" + f" (not: {', '.join(bad)})"*bool(bad) + f'; figures in {o.out}')
    return int(bool(bad))

if __name__=='__main__': sys.exit(main())
