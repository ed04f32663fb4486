"Run every notebook and every test, and end with one line that counts them"
import argparse, os, subprocess, sys, tempfile, time
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def environment():
    "One thread a process: the processes themselves are the parallelism. No network, no window"
    env = dict(os.environ)
    for k in 'OMP_NUM_THREADS','MKL_NUM_THREADS': env.setdefault(k, '1')
    env.update(MPLBACKEND=env.get('MPLBACKEND', 'agg'), HF_HUB_OFFLINE='1', PYTHONUNBUFFERED='1')
    return env


WARM = ['nbdev.test','torch','pandas','matplotlib.pyplot','scipy.stats','sklearn'] # other people's; nothing of ours


def nbdev_test_alone(path, flags, folder):
    "In a process that does nothing else: what it prints goes to the file `log`, and there is a file `passed` if it does"
    with open(folder/'log', 'wb') as f:
        for stream in 1,2: os.dup2(f.fileno(), stream)
    import multiprocessing
    from nbdev.test import nbdev_test
    multiprocessing.set_start_method(None, force=True) # a notebook's own processes begin as everywhere
    nbdev_test(path, flags=flags, n_workers=0)
    (folder/'passed').touch()


def processes():
    "Each notebook's process begins with large packages imported, where it can be copied from one that has them"
    import multiprocessing
    if sys.platform!='linux': return multiprocessing.get_context('spawn')
    ctx = multiprocessing.get_context('forkserver')
    ctx.set_forkserver_preload(WARM)
    return ctx


def run_notebook(path, flags, ctx):
    "Run one notebook in a process of its own; returns whether it passed, its seconds and what it printed"
    start = time.time()
    with tempfile.TemporaryDirectory() as tmp:
        log,passed = Path(tmp)/'log',Path(tmp)/'passed'
        p = ctx.Process(target=nbdev_test_alone, args=(str(path), flags, Path(tmp)))
        p.start(); p.join()
        text = log.read_text(encoding='utf-8', errors='replace') if log.exists() else ''
        # 255 also where another thread, starting a process, has read the exit code of this one first
        ok = passed.exists() and p.exitcode in (0,255)
    return ok, time.time()-start, text if ok else f'{text}exit code {p.exitcode}'


def notebooks(flags, workers):
    "All notebooks, each in its own process, so that none passes by what another one imported"
    from concurrent.futures import ThreadPoolExecutor, as_completed
    files = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not any(q[0] in '._' for q in p.relative_to(ROOT/'nbs').parts))
    passed = failed = 0
    os.chdir(ROOT); os.environ.update(environment())
    ctx = processes()
    with ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(run_notebook, f, flags, ctx): f for f in files}
        for job in as_completed(jobs):
            ok,secs,text = job.result()
            passed,failed = passed+ok,failed+(not ok)
            print(f'{"ok  " if ok else "FAIL"} {secs:6.1f} s  {jobs[job].relative_to(ROOT)}', flush=True)
            if not ok: print(text, flush=True)
    print(f'notebooks: {passed} passed, {failed} failed', flush=True)
    return passed,failed


def tests(rest, workers):
    "pytest on tests/, a file at a time to each process, counted from its own XML report"
    whole = not any(o.startswith('tests') for o in rest)
    if workers>1 and whole: rest = ['-n', str(workers), '--dist', 'loadfile', *rest]
    with tempfile.TemporaryDirectory() as tmp:
        xml = Path(tmp)/'report.xml'
        res = subprocess.run([sys.executable, '-m', 'pytest', f'--junitxml={xml}', *rest], cwd=ROOT, env=environment(),
                             stdin=subprocess.DEVNULL)
        if not xml.exists(): return 0,1
        suite = ET.parse(xml).getroot()
        if suite.tag!='testsuite': suite = suite.find('testsuite')
        n = {k: int(suite.get(k, 0)) for k in ('tests','failures','errors','skipped')}
    failed = n['failures']+n['errors']
    if res.returncode and not failed: failed = 1 # nothing collected, a broken option, a crash after the report
    passed = n['tests']-n['failures']-n['errors']-n['skipped']
    print(f'tests: {passed} passed, {failed} failed, {n["skipped"]} skipped', flush=True)
    return passed,failed


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--only', choices=['notebooks','pytest'], help='run one half')
    p.add_argument('--flags', default='', help='also run the cells with these flags, e.g. "slow gpu"')
    p.add_argument('--workers', type=int, default=min(os.cpu_count() or 1, 8), help='notebooks, and files of tests, at a time')
    args,rest = p.parse_known_args() # what is left goes to pytest
    passed = failed = 0
    if args.only!='pytest':
        a,b = notebooks(args.flags, args.workers)
        passed,failed = passed+a,failed+b
    if args.only!='notebooks':
        a,b = tests(rest, args.workers)
        passed,failed = passed+a,failed+b
    print(f'{passed} passed, {failed} failed', flush=True)
    sys.exit(bool(failed))


if __name__=='__main__': main()
