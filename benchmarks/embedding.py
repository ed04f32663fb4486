"""Features of files: `embed`, a plain loop over torchvision's transforms, and timm's own transform and loader; beside the network alone.

    python benchmarks/embedding.py                                 256 JPEGs of 256x128, ResNet-50
    python benchmarks/embedding.py --quick                         64, ResNet-18
    python benchmarks/embedding.py --images 2048 --device cuda

All begin with the same files and end with the same features on the CPU, without mirrored views; `network` is given batches that are ready.
The weights are random: they play no part in the time. Contenders take turns; medians. Writes benchmarks/results/embedding.json."""
import argparse, os, platform, statistics, tempfile, time
from pathlib import Path
import ccreid.compat
import numpy as np, pandas as pd, torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from batches import pictures
from ccreid.data.batches import Preprocessing
from ccreid.files import to_json, write_whole
from ccreid.models.reid_model import ReIDModel
from ccreid.training.embedding import embed

BATCH = 64

class Files:
    "What a loader of the usual kind reads"
    def __init__(self, paths, transform): self.paths,self.transform = list(paths),transform
    def __len__(self): return len(self.paths)
    def __getitem__(self, i):
        with Image.open(self.paths[i]) as im: return self.transform(im.convert('RGB'))

def contenders(model, table, size, device):
    "Name -> function that gives the features [N,D]"
    import timm.data, torchvision.transforms as T
    mean,std = model.preprocessing.mean,model.preprocessing.std
    def through(loader):
        found = []
        with torch.no_grad():
            for x in loader: found.append(F.normalize(model(x.to(device))['features']).cpu())
        return torch.cat(found)
    plain = T.Compose([T.Resize(size), T.ToTensor(), T.Normalize(mean, std)])
    by_timm = timm.data.create_transform((3,*size), is_training=False, interpolation='bilinear', mean=mean, std=std, crop_pct=1., crop_mode='squash')
    ready = list(DataLoader(Files(table.path, plain), BATCH))
    return {'embed (ours)': lambda: embed(model, table, flip=False, batch_size=BATCH),
            'torchvision loop': lambda: through(DataLoader(Files(table.path, plain), BATCH)),
            'timm transform': lambda: through(DataLoader(Files(table.path, by_timm), BATCH)),
            'network': lambda: through(ready)}

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=256)
    parser.add_argument('--backbone', default='resnet50')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--quick', action='store_true', help='64 files, ResNet-18, one round')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=None, help='threads for torch (default: its own choice)')
    parser.add_argument('--out', default=str(Path(__file__).parent/'results'/'embedding.json'))
    args = parser.parse_args()
    if args.quick: args.images,args.backbone,args.rounds = 64,'resnet18',1
    if args.threads: torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    size = (256,128)
    model = ReIDModel(args.backbone, classes=2).to(args.device).eval()
    model.preprocessing = Preprocessing(size)
    with tempfile.TemporaryDirectory() as tmp:
        table = pictures(tmp, args.images, size, 'jpg')
        ways = contenders(model, table, size, args.device)
        given = {k: f() for k,f in ways.items()}
        apart = {k: float((v-given['embed (ours)']).abs().max()) for k,v in given.items()}
        assert max(apart.values())<.02, apart # unit vectors; resizing differs in the last bit at most
        times,busy = {k: [] for k in ways},{k: [] for k in ways}
        for _ in range(args.rounds):
            for k,f in ways.items():
                start,work = time.perf_counter(),time.process_time()
                f()
                times[k].append(time.perf_counter()-start); busy[k].append(time.process_time()-work)
    wall,cpu = ({k: statistics.median(v) for k,v in t.items()} for t in (times,busy))
    rows = [dict(what=k, images_per_second=round(args.images/wall[k], 1), seconds=round(wall[k], 3), cpu_seconds=round(cpu[k], 3), of_network=round(wall[k]/wall['network'], 3),
                 over_ours=round(wall[k]/wall['embed (ours)'], 3), apart=round(apart[k], 5)) for k in ways]
    print(pd.DataFrame(rows).to_string(index=False))
    result = dict(benchmark='embedding', quick=args.quick, images=args.images, backbone=args.backbone, size=list(size), rounds=args.rounds, rows=rows,
                  device=torch.cuda.get_device_name() if args.device=='cuda' else 'cpu', threads=torch.get_num_threads(), cores=os.cpu_count(), load=round(os.getloadavg()[0], 1),
                  machine=platform.machine(), python=platform.python_version(), torch=torch.__version__, when=time.strftime('%Y-%m-%d'))
    write_whole(args.out, to_json(result, indent=1)+'\n')
    print('wrote', args.out)

if __name__=='__main__': main()
