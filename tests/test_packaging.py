"What a user gets: the wheel, the Makefile, the pins; and that notebooks, modules, README and sidebar say the same"
import ast, filecmp, json, os, re, shutil, subprocess, sys, time, tomllib, zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']


def run(*cmd, cwd, **env):
    "Run a command to its end; its output is shown if it fails"
    res = subprocess.run([str(c) for c in cmd], cwd=cwd, env={**os.environ, 'MPLBACKEND': 'agg', **env}, text=True,
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert res.returncode==0, f'{" ".join(map(str, cmd))}\n{res.stdout[-4000:]}'
    return res.stdout


def copy_sources(to, *names):
    "A copy of files and folders of the repository, without what was built in them"
    skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '*.egg-info', '_proc', '_docs')
    for n in names:
        if (ROOT/n).is_dir(): shutil.copytree(ROOT/n, to/n, ignore=skip, symlinks=True)
        elif (ROOT/n).exists(): shutil.copy2(ROOT/n, to/n)
    return to


def files(folder): return {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file() and '__pycache__' not in p.parts}


# --- the wheel

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    src = copy_sources(tmp_path_factory.mktemp('src'), 'pyproject.toml', 'setup.py', 'MANIFEST.in', 'LICENSE', 'README.md', 'ccreid', 'data_cards')
    run(sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', src/'dist', src, cwd=src)
    return next((src/'dist').glob('*.whl'))


@pytest.fixture(scope='module')
def site(wheel, tmp_path_factory):
    "The wheel as it lies in site-packages"
    site = tmp_path_factory.mktemp('site')
    with zipfile.ZipFile(wheel) as z: z.extractall(site)
    return site


def test_the_wheel_holds_all_modules_cards_and_weights_and_nothing_else(wheel):
    have = {n for n in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in n}
    want = {f'ccreid/{n}' for n in files(ROOT/'ccreid') if n.endswith(('.py','.safetensors')) or n.startswith('assets/')} | {'ccreid/py.typed'}
    want |= {f'ccreid/data_cards/{p.name}' for p in (ROOT/'data_cards').glob('*.md')}
    assert have==want
    assert 'ccreid/data_cards/prcc.md' in have and any(n.endswith('.safetensors') for n in have)


def test_the_wheel_is_small_enough_to_ship(wheel): assert wheel.stat().st_size < 12e6


def test_the_wheel_has_licence_and_command(wheel):
    z = zipfile.ZipFile(wheel)
    read = lambda end: next(z.read(n).decode() for n in z.namelist() if n.endswith(end))
    assert 'Apache License' in read('.dist-info/licenses/LICENSE')
    assert 'ccreid = ccreid.cli:main' in read('entry_points.txt')
    assert re.search(r'^License-Expression: Apache-2.0$', read('METADATA'), re.M)


def test_the_readme_of_the_wheel_has_no_link_beside_itself(wheel):
    z = zipfile.ZipFile(wheel)
    text = next(z.read(n).decode() for n in z.namelist() if n.endswith('METADATA'))
    links = re.findall(r'\]\(([^)\s]+)\)', text)
    assert len(links)>20 and all(o.startswith('https://') for o in links), links
    assert 'Description-Content-Type: text/markdown' in text and '](https://github.com/ccreid/ccreid/raw/main/nbs/images/' in text
    for o in links:
        if m := re.fullmatch(r'https://github.com/ccreid/ccreid/(?:raw|blob)/main/(.+)', o): assert (ROOT/m[1]).exists(), o


def test_the_wheel_reads_its_own_cards_and_imports_every_module(site, tmp_path):
    code = '''
import importlib,pkgutil,sys
import ccreid
assert ccreid.__file__.startswith(sys.argv[1]), ccreid.__file__
from ccreid.data.cards import load_card
assert load_card('prcc') is not None
from ccreid.data import cards
names = [m.name for m in pkgutil.walk_packages(ccreid.__path__, 'ccreid.')]
for n in names: importlib.import_module(n)
bad = [n for n in names if not sys.modules[n].__file__.startswith(sys.argv[1])]
assert len(names)>30 and not bad, bad
print('imported', len(names))
'''
    assert 'imported' in run(sys.executable, '-c', code, site, cwd=tmp_path, PYTHONPATH=str(site))


def test_light_parts_import_neither_fastai_nor_torchvision(site, tmp_path):
    light = ['ccreid', 'ccreid.evaluation.protocols', 'ccreid.evaluation.metrics', 'ccreid.evaluation.neighbours', 'ccreid.evaluation.pictures',
             'ccreid.evaluation.pairs', 'ccreid.evaluation.verification', 'ccreid.evaluation.thresholds', 'ccreid.evaluation.open_set',
             'ccreid.models.losses', 'ccreid.models.memory', 'ccreid.data.samples', 'ccreid.data.layouts', 'ccreid.data.cards', 'ccreid.data.mannequins']
    code = ('import importlib,sys\nfor n in sys.argv[1:]:\n  importlib.import_module(n)\n'
            '  heavy = [m for m in ("fastai","torchvision","timm") if m in sys.modules]\n  assert not heavy, (n, heavy)')
    run(sys.executable, '-c', code, *light, cwd=tmp_path, PYTHONPATH=str(site))


# --- one source: notebooks, modules, README, sidebar

@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    return copy_sources(tmp_path_factory.mktemp('checkout'), 'pyproject.toml', '_quarto.yml', 'README.md', 'README_files', 'LICENSE',
                        'CONTRIBUTING.md', 'CHANGELOG.md', 'nbs', 'ccreid', 'data_cards', 'tools')


def same(a, b, inside):
    fa,fb = files(a),files(b)
    return sorted(fa^fb) + sorted(f for f in fa&fb if f.endswith(inside) and not filecmp.cmp(a/f, b/f, shallow=False))


def test_notebooks_are_clean_and_modules_are_what_they_export(checkout):
    for p in (checkout/'ccreid').rglob('*.py'):
        if p.name not in ('__init__.py',): p.unlink() # so that a module without a notebook shows
    module = lambda call: run(sys.executable, '-c', call, cwd=checkout)
    module('from nbdev.clean import nbdev_clean; nbdev_clean()')
    module('from nbdev.export import nb_export; from nbdev.doclinks import nbdev_export; nbdev_export()')
    assert same(ROOT/'ccreid', checkout/'ccreid', '.py')==[]
    assert same(ROOT/'nbs', checkout/'nbs', '.ipynb')==[]


def test_the_readme_is_that_of_the_index(checkout):
    pytest.importorskip('smalldocs')
    before = (ROOT/'README.md').read_text()
    run(sys.executable, 'tools/docs.py', '--what', 'readme', cwd=checkout)
    assert (checkout/'README.md').read_text()==before
    assert 'make demo' in before[:1500] and 'make test' in before[:1500] # the first screen


def test_local_links_of_the_documents_reach_files():
    bad = []
    for name in 'README.md','CONTRIBUTING.md','CHANGELOG.md':
        for to in re.findall(r'\]\(([^)\s#]+)', (ROOT/name).read_text()):
            if not re.match(r'[a-z]+:', to) and not (ROOT/to).exists(): bad.append((name, to))
    assert bad==[]


def test_expected_failures_are_tried():
    "`expect_fail(...)` alone makes a context manager and tests nothing; it belongs into a `with`"
    bad = []
    for p in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in p.parts: continue
        for c in json.loads(p.read_text())['cells']:
            if c['cell_type']!='code': continue
            try: tree = ast.parse(''.join(c['source']))
            except SyntaxError: continue # a magic or a shell line
            entered = {id(i.context_expr) for w in ast.walk(tree) if isinstance(w, ast.With) for i in w.items}
            bad += [f'{p.relative_to(ROOT)}: {ast.unparse(n)[:80]}' for n in ast.walk(tree) if isinstance(n, ast.Call)
                    and getattr(n.func, 'id', '')=='expect_fail' and id(n) not in entered]
    assert bad==[]


def test_every_page_is_in_the_sidebar_once(docs): assert docs.check_sidebar()==[]


def test_the_link_check_finds_what_is_broken(docs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(docs, 'docs', tmp_path)
    (tmp_path/'sub').mkdir()
    (tmp_path/'index.html').write_text('<h1 id="top-of-it">x</h1><a href="sub/a.html#here">ok</a><a href="https://example.org/x">not ours</a>')
    (tmp_path/'sub'/'a.html').write_text('<p id="here"></p><a href="../index.html#top-of-it">ok</a><a href="#here">ok</a>')
    docs.check_links()
    assert '2 pages, 3 links' in capsys.readouterr().out
    (tmp_path/'sub'/'b.html').write_text('<a href="../no.html">a</a><a href="a.html#gone">b</a><img src="c.png"><a href="/index.html">d</a><a href="../../e">e</a>')
    with pytest.raises(SystemExit) as e: docs.check_links()
    text = str(e.value)
    assert '5 broken links' in text
    for o in 'no.html does not exist','names no place','c.png does not exist','starts at the root','leaves the site': assert o in text


def test_a_card_becomes_a_table_and_prose(docs, tmp_path, monkeypatch):
    monkeypatch.setattr(docs, 'proc', tmp_path/'_proc')
    card = tmp_path/'toy.md'
    card.write_text('---\nname: toy\nimages: 12345\nsplits:\n  train: {images: 10, identities: 2}\nlicence: null\n---\n\n# Toy\n\nProse.\n')
    docs.stage_card(card)
    page = (tmp_path/'_proc'/'data_cards'/'toy.md').read_text()
    for o in 'title: Toy','| **images** | 12,345 |','| **splits: train** | images 10, identities 2 |','Prose.': assert o in page
    assert '# Toy' not in page


# --- Makefile and pins

def dry(folder, target, changed=None):
    bins = folder/'.venv'/'bin'
    bins.mkdir(parents=True, exist_ok=True)
    shutil.copy2(ROOT/'Makefile', folder)
    old = time.time()-1000
    for o in 'pyproject.toml','setup.py','constraints.txt':
        (folder/o).touch()
        os.utime(folder/o, (old, old))
    (bins/'python').touch()
    for o in 'base','dev':
        (folder/'.venv'/f'.installed-{o}').touch()
        os.utime(folder/'.venv'/f'.installed-{o}', (old+100, old+100))
    if changed: (folder/changed).touch()
    return run('make', '-n', target, cwd=folder)


@pytest.mark.skipif(not shutil.which('make'), reason='no make')
@pytest.mark.parametrize('target', ['demo', 'test', 'docs', 'lab'])
def test_make_installs_again_only_when_the_lists_changed(tmp_path, target):
    assert 'pip install' not in dry(tmp_path, target)
    for changed in 'pyproject.toml','constraints.txt': assert 'pip install' in dry(tmp_path, target, changed)


def pins():
    lines = [l.split('#')[0].strip() for l in (ROOT/'constraints.txt').read_text().splitlines()]
    return {canonicalize_name(r.name): r for r in (Requirement(l) for l in lines if l)}


def test_every_direct_dependency_is_pinned_within_its_bounds():
    groups = {'': PROJECT['dependencies'], **PROJECT['optional-dependencies']}
    pinned,bad = pins(),[]
    for group,reqs in groups.items():
        for r in map(Requirement, reqs):
            pin = pinned.get(canonicalize_name(r.name))
            if pin is None: bad.append(f'{group}: {r.name} is not in constraints.txt')
            elif not r.specifier.contains(next(iter(pin.specifier)).version): bad.append(f'{group}: {r} excludes the tested {pin}')
    assert bad==[]
    assert all(len(r.specifier)==1 and next(iter(r.specifier)).operator=='==' for r in pinned.values())

def test_cells_with_imports_hold_nothing_else():
    "The build of the site runs each cell that imports, and none of those before it"
    import ast
    from fastcore.nbio import read_nb
    bad = []
    for f in sorted((ROOT/'nbs').rglob('*.ipynb')):
        for c in read_nb(f).cells:
            if c.cell_type!='code' or '#| export' in c.source or f.name[0]=='.' or 'checkpoint' in str(f): continue
            try: body = ast.parse('\n'.join(l for l in c.source.splitlines() if not l.lstrip().startswith(('%','!')))).body
            except SyntaxError: continue
            kinds = {isinstance(o, (ast.Import,ast.ImportFrom)) for o in body}
            if kinds=={True,False}: bad.append(f'{f.relative_to(ROOT)}: {c.source[:60]!r}')
    assert not bad, '\n'.join(bad)
