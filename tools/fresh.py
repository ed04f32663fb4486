"""Try the wheel in an environment of its own: with what pip chooses today (newest), or with the lowest versions that pyproject.toml allows (oldest)

It is installed with its optional parts, every module is imported, the quick demo runs, and the tests do, but for those marked slow."""
import argparse, os, re, subprocess, sys, tempfile, time, tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ('generate','pose') # Optional parts that are installed too
REPOSITORY = ('packaging','public','site','speed','student','style') # Tests of notebooks, site and wheel, which need the tools for development
IMPORT_ALL = '''
import importlib, pkgutil, sys, ccreid
assert ccreid.__file__.startswith(sys.prefix), f'{ccreid.__file__} is not the wheel'
names = [m.name for m in pkgutil.walk_packages(ccreid.__path__, 'ccreid.') if not m.name.endswith('__main__')]
for name in names: importlib.import_module(name)
from ccreid.compat import torchvision_state
print(len(names), 'modules imported; torchvision:', torchvision_state)'''
VERSIONS = '''
import importlib.metadata as m, sys
print(sys.version.split()[0], *(f"{n} {m.version(n)}" for n in sys.argv[1:]), sep=', ')'''


def lowest():
    "The lowest allowed version of each dependency, as pip's constraints"
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
    wanted = [*project['dependencies'], *(d for p in PARTS for d in project['optional-dependencies'][p])]
    found = [re.match(r'([\w.-]+)(?:\[\w+\])?>=([\w.]+)', d) for d in wanted]
    if not all(found): sys.exit(f'pyproject.toml: a dependency without a lowest version: {wanted[found.index(None)]}')
    return {m[1]: m[2] for m in found}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('which', choices=['newest','oldest'])
    p.add_argument('--wheel', help='a wheel that is built already')
    args,rest = p.parse_known_args() # what is left goes to pytest
    start = time.time()
    def run(*cmd, cwd=ROOT):
        print(f'[{time.time()-start:4.0f} s]', *(re.sub(r'\s+', ' ', str(c))[:70] for c in cmd[:8]), flush=True)
        code = subprocess.run([str(c) for c in cmd], cwd=cwd, stdin=subprocess.DEVNULL).returncode
        if code: sys.exit(f'FAILED ({args.which}): exit code {code}')
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        tmp.chmod(0o755)                                          # a test runs as another user
        if not args.wheel: run(sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', tmp/'dist', ROOT)
        wheel = Path(args.wheel).resolve() if args.wheel else next((tmp/'dist').glob('*.whl'))
        run(sys.executable, '-m', 'venv', tmp/'venv')
        py,known = tmp/'venv'/('Scripts' if sys.platform=='win32' else 'bin')/'python',lowest()
        (tmp/'oldest.txt').write_text('\n'.join(f'{n}=={v}' for n,v in known.items()))
        run(py, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', f"{wheel}[{','.join(PARTS)}]", 'pytest', 'pytest-xdist', 'hypothesis', 'setuptools>=77',
            *(['-c', tmp/'oldest.txt'] if args.which=='oldest' else []))
        run(py, '-c', VERSIONS, *known, cwd=tmp)
        run(py, '-c', IMPORT_ALL, cwd=tmp)
        run(py, '-c', 'import sys; from ccreid.cli import main; sys.exit(main())', 'demo', '--quick', cwd=tmp)
        at_once = ['-n', min(os.cpu_count() or 1, 8), '--dist', 'loadfile']
        left_out = [f'--ignore=tests/test_{name}.py' for name in REPOSITORY]
        run(py.with_name('pytest'), *at_once, '-o', f'cache_dir={tmp}/cache', *left_out, *rest)
    print(f'{args.which}: all is well ({time.time()-start:.0f} s)')


if __name__=='__main__': main()
