"""What a training step of DCAC costs by mode (its Table 6): `python benchmarks/feedback_cost.py`

Time, memory, trained weights and forward operations of one step without the cache of latents, for the miniature's networks on
the CPU; with `--real`, on a graphics card, for CLIP's ViT-B/16 and Stable Diffusion 1.5 with random weights and batches of 64.
Each mode is measured `--times` times, the median counts. On a CPU the time is the processor's, of one thread, and the memory is
counted: weights, gradients, Adam's moments, and what is kept for the way back. On a graphics card both are measured.
"""
import argparse, os, statistics, time
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
import ccreid.compat
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from ccreid.dcac.clip_reid import clip_reid
from ccreid.dcac.conditioning import CorrelationAware
from ccreid.dcac.diffusion import new_stable_diffusion
from ccreid.dcac.expert import DiffusionExpert
from ccreid.files import to_json, write_whole
from ccreid.models.small_diffusion import new_small_diffusion
from ccreid.runs import environment

MODES = 'baseline','frozen','lora','partial-1','partial-2','full'
SMALL = dict(people=64, batch=32, reid=('vit_mini', (96,48)), size=(96,48))
REAL = dict(people=751, batch=64, reid=(None, (256,128)), size=(128,128))

class Step:
    "One training step of a mode, and its parts"
    def __init__(self, mode, real, device, checkpointing, precision):
        setup = REAL if real else SMALL
        torch.manual_seed(0)
        name,size = setup['reid']
        self.reid = clip_reid(setup['people'], *((name,) if name else ()), size=size).to(device).train()
        self.x = torch.rand(setup['batch'], 3, *size, device=device)*2-1
        self.y = torch.arange(setup['batch'], device=device)//4
        self.expert = self.condition = None
        if mode not in ('baseline','inference'):
            pipe = None if real else new_small_diffusion(0)
            unet,vae = new_stable_diffusion() if real else (pipe.unet, pipe.vae)
            self.expert = DiffusionExpert(unet, vae, None if real else pipe.scheduler, mode, size=setup['size'],
                                          checkpointing=checkpointing).to(device)
            self.condition = CorrelationAware(setup['people'], self.expert.dim).to(device)
            self.clean = torch.rand(setup['batch'], 3, *setup['size'], device=device)*2-1
        self.device,self.dtype,self.mode = torch.device(device),dict(bf16=torch.bfloat16, none=None)[precision],mode
        self.opt = torch.optim.Adam(self.trained(), 1e-6)

    def modules(self): return [self.reid, *([self.condition, self.expert.unet] if self.expert else [])]
    def trained(self): return [p for m in self.modules() for p in m.parameters() if p.requires_grad]

    def forward(self):
        "The loss of a batch"
        with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            out = self.reid(self.x)
            loss = F.cross_entropy(out['logits'].float(), self.y, label_smoothing=.1)
            if self.expert is None: return loss
            g = torch.Generator().manual_seed(0)
            z = self.expert.drawn(self.expert.moments(self.clean), g)
            return loss+self.expert.error(z, self.condition(out['logits'].float()), g).mean()

    def __call__(self):
        self.opt.zero_grad()
        self.forward().backward()
        self.opt.step()

def counted_memory(step):
    "Bytes of weights, gradients, Adam's moments and of what is kept for the way back"
    kept = {}
    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t): loss = step.forward()
    own = {p.untyped_storage().data_ptr() for m in step.modules() for p in m.parameters()}
    weights = sum(p.numel()*p.element_size() for m in step.modules() for p in m.parameters())
    if step.expert: weights += sum(p.numel()*p.element_size() for p in step.expert.vae.parameters())
    trained = sum(p.numel()*p.element_size() for p in step.trained())
    del loss
    return weights+3*trained+sum(v for k,v in kept.items() if k not in own)

def measured(step, times):
    "Median milliseconds and gigabytes of a step"
    cuda = step.device.type=='cuda'
    clock = time.perf_counter if cuda else time.process_time
    for _ in range(3 if cuda else 1): step()
    if cuda: torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats()
    spent = []
    for _ in range(times):
        began = clock()
        step()
        if cuda: torch.cuda.synchronize()
        spent.append(1000*(clock()-began))
    memory = torch.cuda.max_memory_allocated() if cuda else counted_memory(step)
    return statistics.median(spent),memory/1e9

@torch.no_grad()
def inference(step, times):
    "The same of the encoder alone; its memory on a graphics card only"
    net = step.reid.eval()
    net.classifier = None
    cuda = step.device.type=='cuda'
    clock = time.perf_counter if cuda else time.process_time
    step.opt.zero_grad()
    step.opt,spent = None,[] # neither gradients nor moments are needed
    if cuda: torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
    for k in range(times+1):
        began = clock()
        net(step.x)
        if cuda: torch.cuda.synchronize()
        if k: spent.append(1000*(clock()-began))
    found = dict(ms=round(statistics.median(spent), 2))
    return found | (dict(gb=round(torch.cuda.max_memory_allocated()/1e9, 4)) if cuda else {})

def operations(f):
    with FlopCounterMode(display=False) as c, torch.no_grad(): f()
    return c.get_total_flops()/1e12

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--real', action='store_true', help="the paper's networks, random weights; wants a graphics card")
    p.add_argument('--times', type=int, default=5); p.add_argument('--device', default='cpu')
    p.add_argument('--checkpointing', action='store_true', help='compute the UNet twice and keep less')
    p.add_argument('--precision', choices=('none','bf16'), default='none')
    p.add_argument('--modes', nargs='+', choices=MODES, default=MODES)
    p.add_argument('--out', help='benchmarks/results/feedback_cost.json if not given; with --real feedback_cost_real.json')
    a = p.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for mode in a.modes:
        step = Step(mode, a.real, a.device, a.checkpointing, a.precision)
        ms,gb = measured(step, a.times)
        millions = sum(o.numel() for o in step.trained())/1e6
        rows[mode] = dict(ms=round(ms, 2), tflops=round(operations(step.forward), 6), gb=round(gb, 4), millions=round(millions, 4))
        print(mode, rows[mode], flush=True)
        if mode=='baseline':
            encoder = sum(o.numel() for n,o in step.reid.named_parameters() if o.requires_grad and not n.startswith('classifier'))/1e6
            rows['inference'] = dict(**inference(step, a.times), tflops=round(operations(lambda: step.reid(step.x)), 6),
                                     millions=round(encoder, 4))
        del step
    setup = REAL if a.real else SMALL
    about = dict(networks='real' if a.real else 'miniature', batch=setup['batch'], people=setup['people'], times=a.times,
                 checkpointing=a.checkpointing, precision=a.precision, cache=False, memory='measured' if a.device!='cpu' else 'counted',
                 clock='wall' if a.device!='cpu' else 'processor')
    out = Path(a.out or f"benchmarks/results/feedback_cost{'_real'*a.real}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, to_json(dict(**about, **environment(a.device), rows=rows), indent=1)+'\n')

if __name__=='__main__': main()
