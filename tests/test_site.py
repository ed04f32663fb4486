"What makes pages of notebooks: imports, reference, pictures, navigation, search"
import argparse, json, re, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
pytest.importorskip('nbdev')
from fastcore.nbio import mk_cell, read_nb, write_nb, new_nb
from pages import examples, finishing, pictures, reference, searching


def page(*cells):
    "Cells of a page as nbdev sees them"
    res = [mk_cell(c, 'code') for c in cells]
    for c in res: c.directives_ = c.directives
    return res


@pytest.fixture
def toy(tmp_path):
    "A package of three modules, parsed"
    (tmp_path/'ccreid').mkdir()
    (tmp_path/'ccreid'/'__init__.py').write_text('')
    (tmp_path/'ccreid'/'base.py').write_text('class Base:\n    def __init__(self, size:int=3, # How many\n    ): self.size = size\n')
    (tmp_path/'ccreid'/'tail.py').write_text('from fastcore.basics import patch\nfrom .base import Base\n@patch\ndef grow(self:Base, by:int=1)->int: # More\n    "Make it larger"\n    return by\n')
    (tmp_path/'ccreid'/'toy.py').write_text(TOY)
    return reference.Library(tmp_path)

TOY = '''from dataclasses import dataclass
from ccreid.base import Base
from somewhere import Callback

@dataclass
class Point:
    "A place"
    x:int # To the right
    y:float=.5 # Up | down
    _hidden:int=0 # Nobody's

class Kind(Base):
    "One of them"
    def told(self, a, b=None): "Says it"; return a
    def untold(self): return 1
    def _own(self): "Private"

class Method(Callback): "A paper"

def second(
    x:list,     # Numbers
    y:dict=None, # Words, `{'a': 1}`
)->list: # As many
    "What it does"
    return x

def first(): return 1
'''

# --- examples

def found(*cells, module='ccreid.toy', library=None): return examples.Examples(page(*cells), module, library)


def test_what_is_shown_is_imported_from_where_the_page_has_it():
    p = found('#| export\nimport numpy as np, pandas as pd\nfrom pathlib import Path\nfrom .base import Base\ndef own(): return np.ones(1)',
              '#| hide\nfrom fastcore.test import *\nimport math', 'a = own()\ntest_eq(a[0], math.floor(1.5))', 'Path("."), Base, np.ones(2), [a for b in range(2)], print')
    assert p.problems==[] and p.at==2
    assert p.lines()==['import math', 'from pathlib import Path', 'import numpy as np', 'from fastcore.test import test_eq', 'from ccreid.base import Base', 'from ccreid.toy import own']


def test_what_a_visible_cell_defines_needs_no_import():
    p = found('import math\nx = math.pi', '#| code-fold: true\ny = x', 'def f(z): return g(z)+y\nclass C:\n    k = 1\n    j = k',
              'def g(z): return z', 'for i in range(3): z = i\nwith open("a") as h: z, h, [q for q in range(2) if q]\nlambda u: u\nf(1), C().k')
    assert (p.problems, p.found)==([], [])


@pytest.mark.parametrize('cells,words', [
    (['#| hide\nx = 1', 'x+1'], r'`x`: only the hidden cell'),
    (['#| echo: false\nx = 1', 'x+1'], r'`x`: only the hidden cell'),
    (['y+1'], r'`y`: nothing defines it'),
    (['def f(): return nobody\nf()'], r'`nobody`: nothing defines it'),
    (['x = x+1'], r'`x`: nothing defines it'),
    (['x ='], r'no Python')])
def test_a_name_that_nobody_sees_stops_the_build(cells, words):
    p = found(*cells)
    assert len(p.problems)==1 and re.search(words, p.problems[0]) and re.match(r'cell \S+ \(', p.problems[0])


def test_a_patched_method_brings_its_module(toy):
    p = found('#| hide\nfrom ccreid.tail import patch', 'from ccreid.base import Base\nBase().grow()', library=toy)
    assert p.problems==[] and p.lines()==['import ccreid.tail']
    p = found('from ccreid.base import Base\nBase().size', library=toy)
    assert p.found==[]
    p = found('from ccreid.base import Bass\nimport ccreid.nowhere', library=toy)
    assert len(p.problems)==2


def test_long_imports_are_broken():
    lines = examples.import_lines([('ccreid.toy', f'name_number_{i}', None) for i in range(12)])[0].splitlines()
    assert len(lines)>1 and max(map(len, lines))<=examples.WIDTH and all(l.startswith('    ') for l in lines[1:])


def test_pasted_code_runs_or_says_why(tmp_path):
    cells = page('#| code-fold: true\n#| code-summary: "Imports"\nimport math', 'x = math.pi', '#| eval: false\nnobody()', '#| echo: false\nnobody()')
    marked = mk_cell('nobody()', 'code'); marked['metadata']['norun'] = True
    file = tmp_path/'a.ipynb'
    write_nb(new_nb([*cells, marked]), file)
    assert examples.copy_and_run(file, tmp_path, tmp_path) is None
    write_nb(new_nb([*cells, mk_cell('x+nobody', 'code')]), file)
    assert 'NameError' in ' '.join(examples.copy_and_run(file, tmp_path, tmp_path))

# --- reference

def shown(toy, source=TOY): return reference.Reference(toy, 'ccreid.toy', 'https://x').of_cell(source)


def test_definitions_come_in_the_order_of_the_source(toy):
    heads = [re.search(r'^#+ (.+)', t, flags=re.M)[1] for t in shown(toy)]
    assert heads==['Point', 'Kind', 'Kind.told', 'Method', 'second', 'first']


def test_classes_are_classes_and_fields_have_their_comments(toy):
    point,kind,told,method,second,first = shown(toy)
    assert 'class Point(x, y=0.5)' in point and '| `x` | `int` |  | To the right |' in point and 'Up \\| down' in point and 'hidden' not in point
    assert 'class Kind(size:int=3, # How many\n)' in kind and 'A kind of `Base`.' in kind and 'Also: `untold`.' in kind and '_own' not in kind
    assert '#### Kind.told' in told and 'def told(a, b=None):' in told and 'NoneType' not in ''.join(shown(toy))
    assert 'class Method(…)' in method and 'after_create' not in method
    assert "y:dict=None, # Words, `{'a': 1}`" in second and ')->list: # As many' in second and '*What it does*' in second
    assert f"toy.py#L{TOY[:TOY.index('def second')].count(chr(10))+1})" in second


def test_patched_methods_are_shown_with_their_class(toy):
    text, = reference.Reference(toy, 'ccreid.tail', 'https://x').of_cell(toy.sources['ccreid.tail'])
    assert '### Base.grow' in text and 'def grow(by:int=1)->int: # More' in text and 'tail.py#L4' in text


def test_long_signatures_are_broken():
    code = reference.signature('def f(self, '+', '.join(f'argument_{i}={{"a": ({i},)}}' for i in range(9))+')->int: return 1\n')
    two = reference.signature('def f(self, first=partial(a, b=1), second="a long text that needs its room", another=None, last=None,\n          third=(1,2,3), **kwargs): return 1\n')
    assert two=='def f(\n    first=partial(a, b=1), second="a long text that needs its room", another=None,\n    last=None, third=(1,2,3), **kwargs\n):'
    assert max(map(len, code.splitlines()))<=reference.WIDTH and code.startswith('def f(\n    argument_0={"a": (0,)},') and code.endswith(')->int:')


def test_help_of_every_command():
    def make(words=()):
        p = argparse.ArgumentParser(prog='tool')
        sub = p.add_subparsers()
        train = sub.add_parser('train', description='Trains')
        train.add_argument('--epochs', help='how long '*30)
        if 'train' in words: train.add_argument('--asked') # as the options of layouts, which take time to look up
        return p
    text = reference.commands_text(make)
    assert '### tool train' in text and '--epochs' in text and '--asked' in text and max(map(len, text.splitlines()))<=90
    assert '### tool train' in reference.commands_text(lambda: make())


def test_all_names_lead_to_their_places(toy):
    text = reference.all_names(toy, {'ccreid.toy': ('toy.ipynb', 'Toy')})
    for o in '[`Point`](/toy.ipynb#point): A place', '[`Kind.told`](/toy.ipynb#kind.told): Says it', '[Toy](/toy.ipynb)': assert o in text
    assert '_own' not in text

# --- pictures

def test_pictures_have_words():
    shows = dict(output_type='display_data', data={'image/png': ''}, metadata={})
    cells = [mk_cell('Text. Three people, each in two outfits:', 'markdown'), *page('show()', 'ax.set(title=f"Loss of {x}", xlabel="epoch")', '#| fig-cap: "A curve"\nplot()', '#| fig-alt: "Mine"\nplot()', 'nothing()')]
    for c in cells[1:5]: c['outputs'] = [shows]
    pictures.describe(cells)
    assert [pictures.directive(c.source, 'fig-alt') for c in cells]==['', 'Three people, each in two outfits', 'Plot: Loss of …; x: epoch', 'A curve', 'Mine', '']
    assert pictures.without_words('<img src="a"><img alt="" src="b"><img alt="c" src="d">')==['<img src="a">', '<img alt="" src="b">']


def test_pictures_keep_their_place(tmp_path):
    from PIL import Image
    Image.new('RGB', (30, 20)).save(tmp_path/'a.png')
    Image.new('RGB', (300, 150)).save(tmp_path/'b.png', dpi=(192,192))
    (tmp_path/'c.svg').write_text('<svg xmlns="x" width="70" height="40"></svg>')
    text = pictures.sized(tmp_path/'p.html', ''.join(f'<img alt="x" loading="lazy" src="{n}">' for n in ('a.png','b.png','c.svg')))
    assert [tuple(map(int, m)) for m in re.findall(r'width="(\d+)" height="(\d+)"', text)]==[(30,20), (150,75), (70,40)] and 'lazy' not in text

# --- navigation

PAGE = ('<html><head><script src="../site_libs/fuse/fuse.min.js"></script></head><body class="x"><nav id="quarto-sidebar" class="s">'
        '<a class="sidebar-item-text sidebar-link" data-bs-toggle="collapse" data-bs-target="#s" role="navigation" aria-expanded="true"><span>Data</span></a></nav>'
        '<div class="smalldocs-search" id="quarto-search"></div><main class="content" id="quarto-document-content"><header id="title-block-header"><h1 class="title">T</h1></header>'
        '<i class="bi" role="img"></i></main><nav id="TOC" role="doc-toc"><h2 id="toc-title">On this page</h2><ul><li><a href="#a" id="toc-a" class="nav-link">A</a></li></ul></nav></body></html>')


def test_pages_can_be_used_by_keyboard_and_on_a_phone():
    text = finishing.own_search(finishing.accessible(finishing.contents(PAGE)), '../')
    assert '<a class="skip-link" href="#quarto-document-content">' in text and '<button type="button" class="sidebar-item-text' in text
    assert 'role="navigation"' not in text and 'role="img"' not in text and 'aria-label="Pages"' in text
    folded = re.search(r'</header>(<details class="page-contents">.*?</details>)', text)[1]
    assert '<a href="#a">A</a>' in folded and 'id=' not in folded
    assert 'fuse' not in text and 'class="site-search"' in text and '<script src="../site.js" defer>' in text


def test_long_names_break_where_they_are_joined():
    text = finishing.broken_names(PAGE.replace('>A</a>', '>Learner.add_term</a>').replace('</main>', '<a href="#b">b_c</a></main>'))
    assert '>Learner.<wbr>add_<wbr>term</a>' in text and '>b_c</a>' in text


def test_printed_sentences_wrap_and_tables_do_not():
    text = '<div class="cell-output cell-output-display">\n<pre><code>%s</code></pre>\n</div>'
    assert '<pre class="wraps">' in finishing.wrapped(text % 'one long sentence\n  and another') and 'wraps' not in finishing.wrapped(text % 'a   1\nbc  2')


def test_nothing_is_asked_of_others():
    asks = '<link rel="stylesheet" href="https://a/b.css"><script src="//c/d.js"></script><img alt="x" src="https://e/f.png">'
    assert len(finishing.asked_of_others(asks))==3
    assert finishing.asked_of_others('<link rel="canonical" href="https://a"><a href="https://b">c</a><img alt="x" src="d.png">')==[]
    assert finishing.asked_by_css('@import url(https://fonts.x/css2?a;b);a{background:url(data:x)}')!=[]


def test_fonts_come_from_the_reader(tmp_path):
    css = tmp_path/'site_libs'/'themes'/'a.css'
    css.parent.mkdir(parents=True)
    css.write_text('@charset "UTF-8";@import url(https://fonts.x/css2?family=Lato:ital,wght@0,400;0,700&display=swap);:root{--a:1}')
    finishing.own_fonts(tmp_path)
    assert css.read_text()=='@charset "UTF-8";:root{--a:1}'


def test_folded_solutions_open_by_keyboard(docs):
    from types import SimpleNamespace as Cell
    md = lambda text: Cell(cell_type='markdown', source=text)
    one = md('a\n\n::: {.callout-tip collapse="true" title="Solution"}\nIt is 3.\n:::\n\n::: {.callout-note}\nb\n:::\n')
    over = [md('::: {.callout-tip collapse="true"}\n## Look\nfirst'), Cell(cell_type='code', source='::: no fence'), md('last\n:::\n\nnext')]
    docs.opens_by_keyboard([one, *over])
    assert '<details class="folded">\n<summary>Solution</summary>\n\nIt is 3.\n\n</details>' in one.source and '::: {.callout-note}\nb\n:::' in one.source
    assert over[0].source=='<details class="folded">\n<summary>Look</summary>\n\nfirst' and over[1].source=='::: no fence'
    assert over[2].source=='last\n\n</details>\n\nnext'


def test_no_page_is_stray_untitled_or_without_words(docs, tmp_path, monkeypatch):
    monkeypatch.setattr(docs, 'docs', tmp_path)
    monkeypatch.setattr(docs, 'sources', lambda: ['a.ipynb','b.md'])
    for n in 'a','b': (tmp_path/f'{n}.html').write_text(f'<main><h1 class="title">{n}</h1></main>')
    assert docs.check_pages()==[]
    (tmp_path/'b.html').write_text('<main><h1 class="title">a</h1><img src="x.png"></main><script src="https://c/d.js"></script>')
    (tmp_path/'c.html').write_text('<p>')
    bad = ' '.join(docs.check_pages())
    for o in 'c.html: a page that is neither', "share the title 'a'", 'b.html: a picture without words', 'b.html: asks https://c/d.js': assert o in bad

# --- search

SITE = {'metrics.html': ('Retrieval metrics', '<p>How a list is judged.</p><h2 data-anchor-id="map">From distances</h2><p>mAP and rank-1 of a list.</p><pre>secret()</pre>'),
        'sets.html': ('Clothes-changing sets', '<p>Eight layouts, PRCC and others.</p><h3 data-anchor-id="prcc">prcc</h3><p>Its files.</p>'),
        'other.html': ('Curves', '<p>The map of settings. We load nothing; rank-1 is drawn. PRCC too.</p><h3 data-anchor-id="l.add_term">Learner.add_term</h3><p>Adds.</p>')}


@pytest.fixture
def index(tmp_path):
    for n,(t,body) in SITE.items(): (tmp_path/n).write_text(f'<main><header><h1 class="title">{t}</h1></header>{body}</main>')
    (tmp_path/'search.yml').write_text('metrics.ipynb: [mAP, rank-1]\nsets.ipynb: [load PRCC]\ngone.ipynb: [x]\n')
    assert searching.write_index(tmp_path, tmp_path/'search.yml')==['search.yml: there is no page gone.html']
    return tmp_path/'search.json'


def test_the_index_holds_prose_without_code(index):
    pages = {p[0]: p for p in json.loads(index.read_text())}
    assert pages['metrics.html'][1:3]==['Retrieval metrics', 'mAP, rank-1'] and 'secret' not in index.read_text()
    assert pages['metrics.html'][4]==[['', '', 'How a list is judged.'], ['map', 'From distances', 'mAP and rank-1 of a list.']]


@pytest.mark.parametrize('query,first', [('load PRCC','sets.html'), ('mAP','metrics.html'), ('map','metrics.html'), ('rank-1','metrics.html'), ('rank1','metrics.html'),
                                         ('add_term','other.html#l.add_term'), ('nowhere',None)])
def test_pages_are_found_by_what_people_type(index, query, first):
    if not shutil.which('node'): pytest.skip('needs node')
    code = ('const {rank,prepared} = require(process.argv[1]); const r = rank(prepared(JSON.parse(require("fs").readFileSync(process.argv[2]))), process.argv[3], 5)[0];'
            'console.log(r ? r.page.href+(r.section.anchor ? "#"+r.section.anchor : "") : "")')
    res = subprocess.run(['node','-e',code,str(ROOT/'nbs'/'site.js'),str(index),query], capture_output=True, text=True)
    assert res.stdout.strip()==(first or ''), res.stderr


def test_words_for_the_search_name_pages_that_are_there(docs):
    assert set(searching.keywords(ROOT/'nbs'/'search.yml')) <= {re.sub(r'\.(ipynb|md)$', '.html', o) for o in docs.sources()}
