"Take the table and the ranked list that `make demo` made into the README and the front page"
import json, os, subprocess, sys
from pathlib import Path
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def table(summary):
    "`metrics.json` of the demo as a Markdown table, with the words that say how it was made"
    rows = ['| method | setting | rank-1 | rank-5 | mAP | mINP | training |', '|:--|:--|--:|--:|--:|--:|--:|']
    for name,r in summary['methods'].items():
        for setting,p in r['protocols'].items():
            figures = ' | '.join(f'{100*p[k]:.1f}' for k in ('R1','R5','mAP','mINP'))
            rows.append(f"| {name} | {setting} | {figures} | {r['seconds']:.0f} s |")
    first = next(iter(summary['methods'].values()))
    made = f"{summary['difference']} {summary['what']} Made on {first['device_name']} in {summary['seconds']:.0f} s."
    return '\n'.join(rows) + f'\n\n{made}\n'


def main(demo=ROOT/'runs'/'demo'):
    demo,to = Path(demo),ROOT/'nbs'/'images'
    missing = [o for o in ('metrics.json','ranked_list.png') if not (demo/o).exists()]
    if missing: raise SystemExit(f"{demo} has no {' and no '.join(missing)}: run `make demo` first")
    to.mkdir(exist_ok=True)
    (to/'demo_table.md').write_text(table(json.loads((demo/'metrics.json').read_text())))
    picture = Image.open(demo/'ranked_list.png').convert('RGB').quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    picture.save(to/'demo_ranked_list.png', optimize=True)
    env = dict(os.environ, OMP_NUM_THREADS='1')
    run = lambda *cmd: subprocess.run([sys.executable, *cmd], cwd=ROOT, env=env, check=True)
    run('-c', "from nbdev.test import nbdev_test; nbdev_test('nbs/index.ipynb', save=True, n_workers=0)")
    run('-c', "from nbdev.clean import nbdev_clean; nbdev_clean('nbs/index.ipynb')")
    run('tools/docs.py', '--what', 'readme')
    print('nbs/images, nbs/index.ipynb and README.md are those of', demo)


if __name__=='__main__': main(*sys.argv[1:])
