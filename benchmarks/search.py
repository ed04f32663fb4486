"""What the engines of search cost: building, querying, the share of the true nearest that is found, memory, the file.

    python benchmarks/search.py                     a million vectors of 512 numbers, 100 queries, the nearest 50
    python benchmarks/search.py --quick             20,000 vectors
    python benchmarks/search.py --vectors 100000 --engines exact faiss:auto

Each engine has a process of its own. `build_s` is adding and, where there is something to be learned, learning; `query_ms` is one query of a hundred that are
asked at once, seconds of the wall, `cpu_ms` those of the processor, which say more on a busy machine; `memory_mb` is the highest point of the process's memory
above what it held when the vectors had been read (the index holds a copy of them); `recall` is the share of the exact nearest 50 that is found; `remove_s` is
taking one vector out, really. For the exact engine the plain matrix product of queries and vectors, alone and with `topk`, is timed in turn with it, in the
same process: `over_product` and `over_topk` are medians of its processor seconds over theirs. Wanted is at most 1.2 times the product with `topk`.

Vectors are drawn: people are random directions, pictures of a person lie around them (cosine with the direction about 0.7), sixty a person; a query is
one picture more of somebody. Real vectors lie differently. LanceDB and FAISS are left out where they are not installed. Writes results/search.json."""
import argparse, json, os, platform, resource, shutil, statistics, subprocess, sys, tempfile, time
from pathlib import Path

ENGINES = ['exact', 'faiss:auto', 'faiss:HNSW32', 'lancedb', 'lancedb:cells', 'lancedb:codes']


def drawn(n, d, queries, seed=0):
    "(vectors, queries), float32 of length 1, sixty vectors a person"
    import numpy as np
    rng = np.random.default_rng(seed)
    people = rng.normal(size=(max(1, n//60),d)).astype(np.float32)
    def pictures(of):
        x = people[of]
        x += rng.standard_normal(x.shape, np.float32)
        return np.divide(x, np.linalg.norm(x, axis=1, keepdims=True), out=x)
    rows = np.empty((n,d), np.float32)
    for a in range(0, n, 50_000): rows[a:a+50_000] = pictures(np.arange(a, min(a+50_000, n))%len(people))
    return rows, pictures(rng.integers(0, len(people), queries))


def held(): return int(Path('/proc/self/statm').read_text().split()[1])*resource.getpagesize()/1e6 if Path('/proc/self/statm').exists() else 0


def timed(f):
    "(result, seconds of the wall, of the processor)"
    wall, cpu = time.perf_counter(), time.process_time()
    r = f()
    return r, time.perf_counter()-wall, time.process_time()-cpu


def made(engine, folder):
    "An empty index"
    from ccreid.search.exact import ExactIndex
    from ccreid.search.faiss_index import FaissIndex
    kind, _, detail = engine.partition(':')
    if kind=='exact': return ExactIndex()
    if kind=='faiss': return FaissIndex(factory=detail)
    from ccreid.search.lance_index import LanceIndex
    return LanceIndex(folder/'vectors.lance')


def one(engine, folder, top, repeats):
    "Figures of an engine, in this process"
    import numpy as np, torch
    rows, queries = (np.load(folder/f'{k}.npy') for k in ('rows','queries'))
    ids = [f'{i:07}' for i in range(len(rows))]
    index, start = made(engine, folder), held()
    def build():
        index.add(rows, ids)
        if ':' in engine and engine.startswith('lancedb'): index.build(codes=engine.endswith('codes'))
        index.search(queries[:1], 1)                   # FAISS learns at the first search
    _, build_s, build_cpu = timed(build)
    found, times = None, []
    plain, sorting = [], []
    def product(): return torch.from_numpy(queries)@torch.from_numpy(rows).T
    for _ in range(repeats):
        found, wall, cpu = timed(lambda: index.search(queries, top))
        times.append((wall,cpu))
        if engine=='exact':
            plain.append(timed(product)[2]); sorting.append(timed(lambda: product().topk(min(top, len(rows))))[2])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3-start
    r = dict(engine=engine, build_s=build_s, build_cpu_s=build_cpu, query_ms=1e3*statistics.median(w for w,_ in times)/len(queries),
             cpu_ms=1e3*statistics.median(c for _,c in times)/len(queries), memory_mb=memory)
    if engine=='exact':
        mid = statistics.median
        r |= dict(over_product=mid(c/p for (_,c),p in zip(times, plain)), over_topk=mid(c/p for (_,c),p in zip(times, sorting)))
        (folder/'true.json').write_text(json.dumps(found.ids))
    true = json.loads((folder/'true.json').read_text())
    r['recall'] = sum(len({*a} & {*b}) for a,b in zip(true, found.ids))/sum(map(len, true))
    r['remove_s'] = timed(lambda: index.remove(ids[len(ids)//2]))[1]
    return r


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true'); p.add_argument('--vectors', type=int); p.add_argument('--dim', type=int, default=512)
    p.add_argument('--queries', type=int, default=100); p.add_argument('--top', type=int, default=50); p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--engines', nargs='+', default=ENGINES); p.add_argument('--out', default=Path(__file__).parent/'results/search.json')
    p.add_argument('--one', help=argparse.SUPPRESS); p.add_argument('--folder', type=Path, help=argparse.SUPPRESS)
    o = p.parse_args()
    if o.one: return print(json.dumps(one(o.one, o.folder, o.top, o.repeats)))
    import importlib.util
    import numpy as np, torch
    from ccreid.files import to_json, write_whole
    n = o.vectors or (20_000 if o.quick else 1_000_000)
    engines = ['exact', *(e for e in o.engines if e!='exact')]
    there = lambda e: e=='exact' or all(importlib.util.find_spec(m) for m in (e.split(':')[0], 'pyarrow') if not (e[0]=='f' and m=='pyarrow'))
    folder, res = Path(tempfile.mkdtemp()), []
    about = dict(vectors=n, dim=o.dim, queries=o.queries, top=o.top, repeats=o.repeats, threads=torch.get_num_threads(), cores=os.cpu_count(),
                 processor=processor(), torch=torch.__version__)
    try:
        for name,a in zip(('rows','queries'), drawn(n, o.dim, o.queries)): np.save(folder/f'{name}.npy', a)
        for e in engines:
            if not there(e): print(f'{e}: not installed, left out'); continue
            words = [sys.executable, __file__, '--one', e, '--folder', folder, '--top', o.top, '--repeats', o.repeats]
            done = subprocess.run([*map(str, words)], capture_output=True, text=True)
            if done.returncode: print(f'{e}: {done.stderr.strip().splitlines()[-1][:200]}'); continue
            res.append(r := json.loads(done.stdout.splitlines()[-1]))
            print('  '.join(f'{k} {v:.3g}' if isinstance(v, float) else f'{v:14}' for k,v in r.items()), flush=True)
            if not o.quick: write_whole(o.out, to_json(dict(about=about, engines=res), indent=1))
            shutil.rmtree(folder/'vectors.lance', ignore_errors=True)
    finally: shutil.rmtree(folder, ignore_errors=True)


def processor():
    "The name of the processor"
    info = Path('/proc/cpuinfo')
    names = [l.split(':')[1].strip() for l in info.read_text().splitlines() if l.startswith('model name')] if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


if __name__=='__main__': main()
