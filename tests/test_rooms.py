"The rooms of the library, read from its source: which room may import from which, and that no shared room names a paper"
import ast, re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ('data','evaluation','models','training','generation') # rooms that are folders; modules beside them are shared too
CHAINS = {p.parent.name for p in (ROOT/'nbs').glob('*/chain.ipynb')}
PAPERS = sorted({'hsgl','dlcr','sync_person_cloud','cmcc','dcac'} | CHAINS - {'baselines','foundations'})
STILL = set() # shared modules that name a paper: none


def modules():
    "Name without the package, and syntax tree, of every module"
    for p in sorted((ROOT/'ccreid').rglob('*.py')):
        if p.name not in ('_modidx.py','__init__.py'):
            yield p.relative_to(ROOT/'ccreid').with_suffix('').as_posix().replace('/', '.'), p.read_text(encoding='utf-8')


def imports(name, source):
    "Modules of this package, without its name, that a module imports anywhere; addresses in texts (`ccreid.x:y`) too"
    package = ('ccreid.'+name).split('.')[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = package[:len(package)-node.level+1] if node.level else []
            full = '.'.join([*base, *(node.module or '').split('.')]).strip('.')
            yield full
            yield from (f'{full}.{a.name}' for a in node.names)
        elif isinstance(node, ast.Import): yield from (a.name for a in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r'\b(ccreid(?:\.\w+)+)(?=:\w)', node.value)


def rooms_of(name, source):
    "Rooms, or modules that stand alone, which a module imports from"
    return {i.split('.')[1] for i in imports(name, source) if i.startswith('ccreid.')}


MODULES = dict(modules())


def test_the_reader_of_imports_sees_every_way_of_importing():
    source = ('from ..data.samples import DataError\nfrom .. import evaluation\nimport ccreid.models.losses as l\n'
              'def f():\n    from ccreid.hsgl.hsal import HSAL\n    return "ccreid.dlcr.chain:chain"\n')
    assert rooms_of('training.x', source)=={'data','evaluation','models','hsgl','dlcr'}
    assert rooms_of('x', 'from . import data\nfrom .evaluation import metrics')=={'data','evaluation'}


def test_data_and_evaluation_do_not_import_each_other():
    bad = [n for n,s in MODULES.items() for a,b in (('data','evaluation'),('evaluation','data'))
           if n.split('.')[0]==a and b in rooms_of(n, s)]
    assert bad==[]


@pytest.mark.parametrize('room', SHARED)
def test_a_room_knows_no_paper_no_recipe_and_no_command(room):
    above = set(PAPERS) | {'baselines','foundations','recipes','experiments','demo','cli','results','reports',
                          'runs','commands','options','results_records','results_tables','all','failures'}
    bad = {n: sorted(found) for n,s in MODULES.items() if n.split('.')[0]==room and (found := rooms_of(n, s) & above)}
    assert bad=={}


def test_rooms_import_downwards_only():
    order = ('data','evaluation','models','training')
    bad = [f'{n}: {room}' for n,s in MODULES.items() if (own := n.split('.')[0]) in order
           for room in rooms_of(n, s) if room in order and order.index(room) > order.index(own)]
    assert bad==[]


@pytest.mark.parametrize('room,beside', [('search', set()),('video', {'search'}),('clothes', {'search'}),('engines', set())])
def test_rooms_that_use_models_know_no_training_of_ours_and_only_the_room_beside_them(room, beside):
    "Of what stands below training they take the writer of pages alone, and the list of generated images"
    above = {'data','evaluation','models','training','reports','generation','files','settings','weights','compat','values','tables','tensor_files','registry','between'}
    own = {n: s for n,s in MODULES.items() if n.split('.')[0]==room}
    assert own and {n: sorted(found) for n,s in own.items() if (found := rooms_of(n, s)-above-beside-{room})}=={}
    assert not any(names_a_paper(s) for s in own.values())
    assert rooms_of('engines', MODULES['engines'])<={'weights'} and rooms_of('reports', MODULES['reports'])<={'files'}


def names_a_paper(source):
    "Papers that the code of a module names: in names, texts that are code or data, and imports; not in docstrings"
    tree = ast.parse(source)
    holders = [n for n in ast.walk(tree) if isinstance(n, (ast.Module,ast.ClassDef,ast.FunctionDef))]
    docs = {id(n.body[0].value) for n in holders if n.body and isinstance(n.body[0], ast.Expr)}
    said = []
    for n in ast.walk(tree):
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs: said.append(n.value)
        said += [v for field in ('id','attr','name','module','arg') if isinstance(v := getattr(n, field, None), str)]
    words = {w for text in said for w in re.split(r'[^a-z0-9]+', text.lower().replace('sync_person_cloud', 'spcloud'))}
    return {p for p in PAPERS if p in words or p=='sync_person_cloud' and 'spcloud' in words}


def test_no_shared_module_names_a_paper():
    shared = {n: s for n,s in MODULES.items() if '.' not in n or n.split('.')[0] in SHARED}
    assert len(shared)>60
    named = {n for n,s in shared.items() if names_a_paper(s)}
    assert named-STILL==set(), {n: names_a_paper(shared[n]) for n in named-STILL}
    assert names_a_paper('def f(): "hsgl"\nx = 1')==set() and names_a_paper('x = "ccreid.hsgl.hsal"')=={'hsgl'}


def test_chains_never_import_each_other():
    sides = set(PAPERS)
    bad = [f'{n}: {r}' for n,s in MODULES.items() if (own := n.split('.')[0]) in sides
           for r in rooms_of(n, s) if r in sides and r!=own]
    assert bad==[]


def test_every_meeting_of_data_and_evaluation_is_in_its_place():
    "The module in between really has both, and imports neither before it is asked"
    tree = ast.parse(MODULES['between'])
    assert rooms_of('between', MODULES['between'])=={'data','evaluation'}
    assert not any(isinstance(n, (ast.Import,ast.ImportFrom)) for n in tree.body)
