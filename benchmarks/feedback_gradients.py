"""How loud the feedback of DCAC is beside the other losses: `python benchmarks/feedback_gradients.py`

The length of the gradient of the encoder's weights from each term of the loss alone, on the first batch of a training from one of
the miniature's places, seed by seed, before weights (all are 1). Nothing is trained. `--root` is the folder in which
`ccreid reproduce dcac` drew its images; if it is not given, they are drawn for this alone.
"""
import argparse, os, tempfile
os.environ.setdefault('OMP_NUM_THREADS', '1')
from pathlib import Path
import ccreid.compat
import torch
from fastai.callback.core import Callback, CancelFitException
from ccreid.data.mannequins.benchmarks import benchmark
from ccreid.files import to_json, write_whole
from ccreid.recipes import recipe
from ccreid.registry import SEEDS
from ccreid.runs import environment, run

def length(value, weights):
    "Of the gradient of a loss"
    found = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
    return sum(float(g.double().square().sum()) for g in found if g is not None)**.5

class FirstBatch(Callback):
    "Look at the first batch, and stop"
    order = 50
    def after_loss(self):
        own = dict(self.learn.model.named_parameters())
        encoder = [p for n,p in own.items() if p.requires_grad and not n.startswith('aux')]
        terms = self.learn.loss_func.terms
        self.found = {n: float(f'{length(term(self.learn.pred, self.learn.yb[0]), encoder):.3g}') for n,(term,_) in terms.items()}
        raise CancelFitException()

def measured(name, dataset, seeds):
    "Lengths by seed and term"
    rows = {}
    for seed in seeds:
        look = FirstBatch()
        run(recipe(name, 'dcac'), dataset, seed, 'cpu', quiet=True, cbs=[look])
        rows[str(seed)] = look.found
        print(seed, look.found, flush=True)
    return rows

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--root', help='folder of the images')
    p.add_argument('--data', default='mannequins-plaza')
    p.add_argument('--seeds', nargs='+', type=int, default=SEEDS)
    p.add_argument('--out', default='benchmarks/results/feedback_gradients.json')
    a = p.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder: rows = measured(a.data, benchmark(a.data, a.root or folder), a.seeds)
    out = Path(a.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, to_json(dict(data=a.data, **environment('cpu'), rows=rows), indent=1)+'\n')

if __name__=='__main__': main()
