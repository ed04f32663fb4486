"Take the table and the ranked list that `make demo` made into the README and the front page"
import os, shutil, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASSETS = {'table.md': 'demo_table.md', 'ranked_list.png': 'demo_ranked_list.png'}


def main(demo=ROOT/'runs'/'demo'):
    demo,to = Path(demo),ROOT/'nbs'/'images'
    missing = [o for o in ASSETS if not (demo/o).exists()]
    if missing: raise SystemExit(f"{demo} has no {' and no '.join(missing)}: run `make demo` first")
    to.mkdir(exist_ok=True)
    for src,dst in ASSETS.items(): shutil.copyfile(demo/src, to/dst)
    env = dict(os.environ, OMP_NUM_THREADS='1')
    run = lambda *cmd: subprocess.run([sys.executable, *cmd], cwd=ROOT, env=env, check=True)
    run('-c', "from nbdev.test import nbdev_test; nbdev_test('nbs/index.ipynb', save=True, n_workers=0)")
    run('-c', "from nbdev.clean import nbdev_clean; nbdev_clean('nbs/index.ipynb')")
    run('tools/docs.py', '--what', 'readme')
    print('nbs/images, nbs/index.ipynb and README.md are those of', demo)


if __name__=='__main__': main(*sys.argv[1:])
