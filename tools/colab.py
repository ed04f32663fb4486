"""Every tutorial can be opened in Colab: a badge below its title, and a first cell that installs the library there and nowhere else

    python tools/colab.py           write both where they are missing or old (`make export` does)
    python tools/colab.py --check   only say where; exit code 1 if anywhere

The clone that is installed is the one that the notebook belongs to, with the files that tutorials read beside them.
The cell is hidden on the site, and neither nbdev-test nor the site runs it (`eval: false`)."""
import argparse, json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from ccreid.files import write_whole

FOLDER = 'nbs/tutorials'
REPO = 'https://github.com/ccreid/ccreid'
IDS = {'markdown': 'c01ab0a1', 'code': 'c01ab0a2'}
INSTALL = f'''#| hide
#| eval: false
if 'google.colab' in str(get_ipython()):
    shell = get_ipython()
    shell.system('[ -e /content/ccreid ] || git clone -q --depth 1 {REPO} /content/ccreid')
    shell.run_line_magic('pip', 'install -q /content/ccreid')
    shell.run_line_magic('cd', '-q /content/ccreid/{FOLDER}')'''


GENERATE = re.compile(r'^(from|import) (diffusers|transformers|peft)\b', re.M)


def install(nb):
    "The install cell of a notebook, with the optional part `generate` where its code imports what that brings"
    wanted = any(GENERATE.search(''.join(c['source'])) for c in nb['cells'] if c['cell_type']=='code')
    return INSTALL.replace("'install -q /content/ccreid'", "'install -q /content/ccreid[generate]'") if wanted else INSTALL


def badge(name):
    "The badge of a tutorial, a link to it in Colab"
    where = REPO.replace('https://github.com', 'https://colab.research.google.com/github')
    return f'[![Open in Colab](../images/colab.svg)]({where}/blob/main/{FOLDER}/{name})'


def is_ours(cell):
    "Is it a badge or an install cell, also an older one or one that nbdev gave another id?"
    source = ''.join(cell['source'])
    return cell['id'] in IDS.values() or source.startswith('[![Open in Colab]') or 'google.colab' in source


def made(kind, source):
    "A cell as nbdev-clean leaves it"
    cell = dict(cell_type=kind, id=IDS[kind], metadata={}, source=source.splitlines(keepends=True))
    return cell if kind=='markdown' else dict(cell, execution_count=None, outputs=[])


def with_cells(nb, name):
    "A copy of a notebook with both cells below its title; as it is, but for old ones, where it has no code to run"
    cells = [c for c in nb['cells'] if not is_ours(c)]
    if not any(c['cell_type']=='code' for c in cells): return {**nb, 'cells': cells}
    return {**nb, 'cells': [cells[0], made('markdown', badge(name)), made('code', install(nb)), *cells[1:]]}


def tutorials(root=ROOT): return sorted(p for p in (root/FOLDER).glob('*.ipynb') if p.name[0] not in '._')


def as_text(nb): return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True)+'\n'


def main(argv=None, root=ROOT):
    "Write the cells, or say where they are missing"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--check', action='store_true', help='write nothing')
    check,old = p.parse_args(argv).check,[]
    for path in tutorials(root):
        nb = json.loads(path.read_text(encoding='utf-8'))
        new = with_cells(nb, path.name)
        if new==nb: continue
        old.append(path.relative_to(root).as_posix())
        if not check: write_whole(path, as_text(new))
    for o in old: print('colab:', 'missing or old in' if check else 'written in', o)
    return int(check and bool(old))


if __name__=='__main__': sys.exit(main())
