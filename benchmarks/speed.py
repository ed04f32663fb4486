"""All speed tables in one go: runs the other scripts and keeps their ratios in benchmarks/results/speed.json, from which the page "How fast it is" is made.

    python benchmarks/speed.py                      everything (an hour on two cores); `make bench`
    python benchmarks/speed.py --quick              small sizes, some minutes
    python benchmarks/speed.py --only decoding,large

A part that is not run keeps what it had. Each row sets our time beside the strongest peer that is installed and beside a floor, the work that nobody can leave
out, all measured in turn by one run of one script. Seconds are the processor's, those of all threads together: they hold on a busy machine, where the wall's do not.
Each part carries its processor, threads, load and day."""
import argparse, json, os, platform, subprocess, sys, tempfile, time
from pathlib import Path
from ccreid.files import to_json, write_whole

HERE = Path(__file__).resolve().parent

def row(what, size, seconds, peer='', peer_seconds=None, floor='', floor_seconds=None, mib=None, peer_mib=None, **more):
    "A line of the table; ratios are times of ours"
    ratio = lambda a, b: round(a/b, 2) if a and b else None
    return dict(what=what, size=size, seconds=seconds, peer=peer, peer_over_ours=ratio(peer_seconds, seconds), floor=floor, ours_over_floor=ratio(seconds, floor_seconds),
                mib=mib, peer_mib=peer_mib) | more

# ---- from what a script wrote to lines of the table

def evaluation(res):
    for s in res['sizes']:
        t = {r['what']: r['cpu_seconds'] for r in res['rows'] if r['size']==s['size']}
        size,product = f"{s['queries']:,} × {s['gallery']:,} × {s['dim']:,}",t['matrix product']
        loops = {k.replace(' (ready matrix)', ''): v for k,v in t.items() if 'loop' in k or 'per query' in k}
        best = min(loops, key=loops.get)
        yield row('evaluation, from features', size, t['retrieval_metrics (features)'], f'product, {best}', product+loops[best], 'matrix product', product)
        yield row('evaluation, from distances', size, t['metrics_from_distances (ready matrix)'], best, loops[best])

def large(res):
    for r in res['rows']:
        size = f"{r['queries']:,} × {r['gallery']:,} × {r['dim']:,}"
        yield row('evaluation, from features', size, r['cpu'], floor='matrix product', floor_seconds=r['cpu_product'], mib=r['mib'], peer_mib=round(1024*r['full_matrix_gib']),
                  note='the other memory: distances and order of all pairs, by arithmetic')

def neighbours(res):
    for r in res['rows']:
        t = r['cpu']
        yield row('Jaccard distance and DBSCAN', f"{r['images']:,} × {r['dim']:,}", t['ours'], 'dense matrices', t['dense'], 'nearest neighbours', t['nearest'], r['ours_mib'], r['dense_mib'])

def masks(res):
    for r in res['loss']:
        t,size = r['cpu_ms'],f"{r['n']:,} × {r['dim']:,}"
        best = min((k for k in t if k.startswith('masks,_')), key=t.get)
        yield row('hard masks', size, t['masks']/1000, best[7:], t[best]/1000, 'distances, forward', t['forward_distances']/1000)
        yield row('loss with hard masks', size, t['hatrip']/1000, 'plain', t['plain_loss']/1000, 'distances, both ways', t['distances']/1000)

def refinement(res):
    c = res['cost']
    yield row('refinement, from features', f"{c['queries']:,} × {c['n']:,} × {c['dim']:,}, {c['l']} variants", c['cpu_ms']['refine']/1000, 'one query at a time', c['cpu_ms']['plain']/1000,
              'matrix products', c['cpu_ms']['products']/1000)

def decoding(res):
    ours,fast = 'read_image (ours)','read_image, by PyTorch (ours)'
    aside = (ours, fast, 'ImageCache (ours)', 'the file alone')
    for source in dict.fromkeys(tuple(r['source']) for r in res['rows']):
        t = {r['what']: r for r in res['rows'] if tuple(r['source'])==source}
        ms = {k: r['cpu_ms'] for k,r in t.items()}
        size,near = '{}×{} to {}×{}'.format(*source, *res['network']),[k for k in ms if k not in aside and t[k]['apart']<.5]
        best,cut = min(near, key=ms.get),[k for k in ms if 'scaled' in k and t[k]['apart']>=.5]
        yield row('a JPEG, decoded and resized', size, ms[ours]/1000, best, ms[best]/1000, 'Pillow', ms['Pillow']/1000)
        yield row('a JPEG, resized by PyTorch', size, ms[fast]/1000, 'Pillow', ms['Pillow']/1000, note=f"{t[fast]['apart']} grey levels apart")
        yield row('a JPEG, from the cache', size, ms['ImageCache (ours)']/1000, 'Pillow', ms['Pillow']/1000, 'reading the file', ms['the file alone']/1000)
        for k in cut: yield row('a JPEG with less detail: not offered', size, ms[k]/1000, 'Pillow', ms['Pillow']/1000, note=f"{k}: {t[k]['apart']} grey levels apart")

def batches(res):
    for r in res['rates']:
        size = f"{r['kind']} {'×'.join(map(str, r['source']))} to {'×'.join(map(str, r['network']))}"
        ways = {'fast_cached': 'cache, PyTorch, large pages'} if r['huge_pages'] else {'cached': 'cache', 'fast': 'PyTorch', 'fast_cached': 'cache, PyTorch'}
        for way,what in ways.items(): yield row(f'a training image: {what}', size, 1/r[f'cpu_{way}'], 'decoded each time, Pillow', 1/r['cpu_plain'])

def reranking(res):
    for r in res['rows']:
        t = r['cpu']
        yield row('re-ranking', f"{r['queries']:,} × {r['gallery']:,} × {r['dim']:,}", t['ours'], 'dense matrices', t['dense'], 'matrix product', t['product'], r['ours_mib'], r['dense_mib'])

def rendering(res):
    for size,r in res['rows'].items():
        yield row('a mannequin, map, key points, caption', size.replace('x', '×'), 1/r['per_cpu_second'], floor='reading picture and map', floor_seconds=1/r['read_per_cpu_second'])

def embedding(res):
    t = {r['what']: r['cpu_seconds'] for r in res['rows']}
    best = min((k for k in t if k not in ('embed (ours)','network')), key=t.get)
    yield row('features of files', f"{res['images']:,} × {'×'.join(map(str, res['size']))}, {res['backbone']}", t['embed (ours)'], best, t[best], 'network alone', t['network'])

def search(res):
    a,of = res['about'],{r['engine']: r for r in res['engines']}
    size,exact = f"{a['queries']:,} × {a['vectors']:,} × {a['dim']:,}, nearest {a['top']}",of['exact']
    yield row('search, exact, a query', size, exact['cpu_ms']/1000, floor='matrix product', floor_seconds=exact['cpu_ms']/exact['over_product']/1000, mib=round(exact['memory_mb']))
    for name,r in of.items():
        if name!='exact': yield row(f'search, {name}, a query', size, r['cpu_ms']/1000, 'exact', exact['cpu_ms']/1000, mib=round(r['memory_mb']), peer_mib=round(exact['memory_mb']),
                                    note=f"{100*r['recall']:.0f} % of the nearest are found")

# name -> (script, arguments in full, arguments of --quick, lines from its JSON)
PARTS = {
    'evaluation': ('metrics.py', ['--rounds','3'], ['--quick'], evaluation),
    'large': ('large.py', [], ['--quick'], large),
    'neighbours': ('neighbours.py', ['--sizes','18000','--rounds','1'], ['--quick'], neighbours),
    'masks': ('hsal.py', ['--steps','0'], ['--quick','--steps','0'], masks),
    'refinement': ('refinement.py', [], ['--quick','--rounds','2'], refinement),
    'decoding': ('decoding.py', [], ['--quick'], decoding),
    'batches': ('batches.py', [], ['--images','128'], batches),
    'reranking': ('reranking.py', [], ['--quick'], reranking),
    'rendering': ('mannequins.py', [], ['--images','60'], rendering),
    'embedding': ('embedding.py', [], ['--quick'], embedding),
    'search': ('search.py', ['--engines','exact','faiss:auto'], ['--quick'], search),
}

def processor():
    "The name of this machine's processor, as it says itself"
    try: text = Path('/proc/cpuinfo').read_text()
    except OSError: text = ''
    names = [l.partition(':')[2].strip() for l in text.splitlines() if l.startswith('model name')]
    if not names and sys.platform=='darwin':
        names = [subprocess.run(['sysctl','-n','machdep.cpu.brand_string'], capture_output=True, text=True).stdout.strip()]
    return (names or [''])[0] or platform.processor() or platform.machine()

def run(name, quick):
    "Run a part's script; what it measured, or None where the script is not there or fails"
    script,full,few,lines = PARTS[name]
    if not (HERE/script).exists(): print(f'speed: {name}: no {script}: not run', flush=True); return None
    with tempfile.TemporaryDirectory() as tmp:
        out,start = Path(tmp)/'out.json',time.time()
        code = subprocess.run([sys.executable, str(HERE/script), *(few if quick else full), '--out', str(out)]).returncode
        if code or not out.exists(): print(f'speed: {name}: {script} failed', flush=True); return None
        res = json.loads(out.read_text())
    import torch
    rows = [{k: float(f'{v:.3g}') if k=='seconds' else v for k,v in r.items()} for r in lines(res)]
    return dict(rows=rows, quick=quick, processor=processor(), cores=os.cpu_count(), threads=res.get('threads', 1), load=round(os.getloadavg()[0], 1),
                python=platform.python_version(), torch=torch.__version__, device=res.get('device', 'cpu'), took=round(time.time()-start), when=time.strftime('%Y-%m-%d'))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='small sizes; the table says so')
    parser.add_argument('--only', default='', help=f'parts, with commas between: {", ".join(PARTS)}')
    parser.add_argument('--out', type=Path, default=HERE/'results'/'speed.json')
    args = parser.parse_args()
    names = args.only.split(',') if args.only else list(PARTS)
    if wrong := [n for n in names if n not in PARTS]: parser.error(f'no part {wrong[0]!r}; there are {", ".join(PARTS)}')
    failed = []
    for name in names:
        print(f'== {name}', flush=True)
        part = run(name, args.quick)
        if part is None: failed.append(name); continue
        kept = json.loads(args.out.read_text()) if args.out.exists() else dict(benchmark='speed', parts={})
        kept['parts'] = {n: p for n in PARTS if (p := part if n==name else kept['parts'].get(n))}
        write_whole(args.out, to_json(kept, indent=1)+'\n')
    print(f'speed: {len(names)-len(failed)} parts in {args.out}' + f'; not run: {", ".join(failed)}'*bool(failed))
    sys.exit(bool(failed))

if __name__=='__main__': main()
