"The course: its path in the sidebar, its exercises, and what students get of it"
import ast, builtins, importlib.util, json, re
from pathlib import Path

import nbformat, pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def student():
    spec = importlib.util.spec_from_file_location('ccreid_tools_student', ROOT/'tools'/'student.py')
    spec.loader.exec_module(mod := importlib.util.module_from_spec(spec))
    return mod


@pytest.fixture(scope='module')
def made(student): return {p: json.loads(text) for p,text in student.student_notebooks().items()}


def notebook(*cells):
    "Kinds and sources -> a notebook"
    extra = dict(code=dict(execution_count=None, outputs=[dict(output_type='stream', name='stdout', text='printed\n')]))
    return dict(cells=[dict(cell_type=k, id=f'cell-{i}', metadata={}, source=s, **extra.get(k, {})) for i,(k,s) in enumerate(cells)],
                metadata={}, nbformat=4, nbformat_minor=5)


def sources(nb): return [(c['cell_type'], ''.join(c['source'])) for c in nb['cells']]


OPEN = '::: {.callout-tip collapse="true" title="Solution"}'
SMALL = notebook(('markdown', '# A page'), ('code', 'import math'), ('code', '#| hide\nfrom fastcore.test import test_eq'),
    ('code', '#| hide\ntest_eq(1, 1)'), ('code', 'x = 1'),
    ('markdown', f'### 1. How many?\n\n{OPEN}\n\nThree.'), ('code', 'secret = 3'),
    ('markdown', '::: {.callout-note}\nA note in it\n:::\n\n```\n:::\n```'), ('code', '#| hide\nassert secret==3'),
    ('markdown', f':::\n\n### 2. Why?\n\n{OPEN}\nBecause.\n:::\n\nGo on.\n\n{OPEN}\nOnce more\n:::\n\nThe end.'),
    ('markdown', '::: {.callout-note title="Paper and code"}\nstays\n:::'), ('code', 'y = 2'))


def test_an_empty_cell_takes_the_place_of_each_solution(student):
    before = json.dumps(SMALL)
    nb = student.without_solutions(SMALL)
    answer = ('code', '# your answer')
    assert sources(nb)==[('markdown', '# A page'), ('code', 'import math'), ('code', '#| hide\nfrom fastcore.test import test_eq'), ('code', 'x = 1'),
        ('markdown', '### 1. How many?'), answer, ('markdown', '### 2. Why?'), answer, ('markdown', 'Go on.'), answer, ('markdown', 'The end.'),
        ('markdown', '::: {.callout-note title="Paper and code"}\nstays\n:::'), ('code', 'y = 2')]
    assert json.dumps(SMALL)==before
    ids = [c['id'] for c in nb['cells']]
    assert len(ids)==len(set(ids)) and nb==student.without_solutions(SMALL)
    assert [c['outputs'] for c in nb['cells'] if c['cell_type']=='code' and c['source']=='# your answer']==[[]]*3
    nbformat.validate(nbformat.from_dict(nb))


def test_a_solution_that_never_ends_is_refused(student):
    with pytest.raises(ValueError, match='page: a solution begins and never ends'):
        student.without_solutions(notebook(('markdown', OPEN), ('code', 'x = 1')), 'page')


def test_links_to_pages_that_students_lack_lead_to_the_site(student):
    nb = notebook(('markdown', '[a](b.ipynb) [b](../x/c.ipynb#d) [e](https://x.org/f.ipynb) [g](../../data_cards/g.md)'))
    text = sources(student.point_outwards(nb, 'tutorials/a.ipynb', ['tutorials/b.ipynb']))[0][1]
    assert text==f'[a](b.ipynb) [b]({student.SITE}x/c.html#d) [e](https://x.org/f.ipynb) [g](../../data_cards/g.md)'


# --- the real pages

def test_the_course_is_a_path_of_pages_that_exist(student):
    pages = student.pages()
    assert pages[0]=='tutorials/course.ipynb' and pages[-1]=='tutorials/teaching.ipynb' and len(pages)==9
    text = '\n'.join(s for _,s in sources(json.loads((ROOT/'nbs'/pages[0]).read_text(encoding='utf-8'))))
    steps = re.findall(r'^\| (\d) \| \[.+?\]\((.+?)\)', text, flags=re.M)
    assert [n for n,_ in steps]==list('1234567')
    assert [(ROOT/'nbs'/'tutorials'/l).resolve() for _,l in steps]==[(ROOT/'nbs'/p).resolve() for p in pages[1:-1]]
    for n,page in enumerate(pages[1:-1], 1):
        text = '\n'.join(s for _,s in sources(json.loads((ROOT/'nbs'/page).read_text(encoding='utf-8'))))
        assert re.search(rf'^\*Step {n} of 7 of \[the course\]', text, flags=re.M) and '\n## Summary' in '\n'+text, page


def solution_texts(page):
    "Lines of the solutions of a page, long enough to be told from others"
    inside,res = False,[]
    for kind,s in sources(json.loads((ROOT/'nbs'/page).read_text(encoding='utf-8'))):
        for l in s.splitlines():
            if kind=='markdown' and l.startswith(':::'): inside = 'title="Solution"' in l; continue
            if inside and len(l)>30: res.append(l)
    return res


def test_no_solution_is_left_and_each_had_one_that_runs(made):
    for page,nb in made.items():
        nbformat.validate(nbformat.from_dict(nb))
        ids,text = [c['id'] for c in nb['cells']],'\n'.join(s for _,s in sources(nb))
        assert len(ids)==len(set(ids))
        answers,gone = text.count('# your answer'),solution_texts(page)
        assert answers==(0 if page.endswith('course.ipynb') else 6 if page.endswith('teaching.ipynb') else 3), page
        assert len(gone)>=3*answers and not [l for l in gone if l in text], page
        assert 'title="Solution' not in text and sum('assert ' in l or 'test_' in l for l in gone)>=answers, page


def names(sources):
    "Names that cells define, and names that they use"
    known,used = set(),set()
    for s in sources:
        for n in ast.walk(ast.parse('\n'.join(l for l in s.splitlines() if not l.lstrip().startswith(('%','!'))))):
            if isinstance(n, ast.Name): (used if isinstance(n.ctx, ast.Load) else known).add(n.id)
            elif isinstance(n, (ast.FunctionDef,ast.ClassDef)): known.add(n.name)
            elif isinstance(n, ast.arg): known.add(n.arg)
            elif isinstance(n, ast.ExceptHandler) and n.name: known.add(n.name)
            elif isinstance(n, ast.alias) and n.name=='*':
                listed = re.search(r'^__all__ = (\[.*?\])', (ROOT/'ccreid'/'all.py').read_text(encoding='utf-8'), flags=re.M|re.S)
                known |= set(ast.literal_eval(listed[1]))
            elif isinstance(n, ast.alias): known.add(n.asname or n.name.split('.')[0])
    return known,used


def test_what_is_left_needs_nothing_of_what_was_taken_out(made):
    for page,nb in made.items():
        known,used = names(s for k,s in sources(nb) if k=='code')
        assert not used-known-set(dir(builtins))-{'get_ipython'}, page


def test_what_somebody_wrote_is_not_overwritten(student, made, tmp_path, capsys):
    out = tmp_path/'student'
    student.main(['--out', str(out)])
    assert {p.relative_to(out).as_posix() for p in out.rglob('*') if p.is_file()}==set(made)
    student.main(['--out', str(out)]) # once more, over the same
    mine = out/'evaluation'/'metrics.ipynb'
    mine.write_text(mine.read_text(encoding='utf-8').replace('# your answer', '# mine'), encoding='utf-8')
    kept = mine.read_text(encoding='utf-8')
    with pytest.raises(SystemExit, match=r'metrics.ipynb is there and differs.*1 of 9 notebooks'): student.main(['--out', str(out)])
    assert mine.read_text(encoding='utf-8')==kept
