"Examples that can be copied: names that visible code uses come from visible code, or from a folded cell \"Imports\""
import ast,builtins,dis,importlib,os,subprocess,sys,textwrap
from types import CodeType
from fastcore.nbio import mk_cell,read_nb

LOADS = {'LOAD_NAME','LOAD_GLOBAL','LOAD_FROM_DICT_OR_GLOBALS','LOAD_CLASSDEREF'}
STORES = {'STORE_NAME','STORE_GLOBAL'}
KNOWN = set(dir(builtins)) | {'__name__','__doc__','__file__','__annotations__'}
WIDTH = 90

# --- which names a piece of code uses, defines and imports

def plain(source):
    "Code without directives and magics"
    return '\n'.join(l for l in source.splitlines() if not l.lstrip().startswith(('#|','%','!')))

def compiled(code): return compile(code, 'cell', 'exec', flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)

def inner_loads(code):
    "Global names that functions and classes inside a piece of code read when they run"
    own,res = set(),set()
    for i in dis.get_instructions(code):
        if i.opname in STORES: own.add(i.argval)
        elif i.opname in LOADS and i.argval not in own: res.add(i.argval)
    return res.union(*[inner_loads(c) for c in code.co_consts if isinstance(c, CodeType)])

def used(code):
    "Names that a cell reads before it binds them, those that its functions read later, and those that it binds"
    co = compiled(code)
    now,bound = {},set()
    for i in dis.get_instructions(co):
        if i.opname in STORES: bound.add(i.argval)
        elif i.opname in LOADS and i.argval not in bound: now[i.argval] = True
    late = set().union(*[inner_loads(c) for c in co.co_consts if isinstance(c, CodeType)])
    return list(now),sorted(late-bound-set(now)),bound

def absolute(module, level, name):
    "The full name of what `from ..name import` names inside `module`"
    if not level: return name or ''
    parts = module.split('.')[:-level]
    return '.'.join(parts+([name] if name else []))

def imports(tree, module=''):
    "What a cell imports: name -> (module, attribute or None, as), and the modules of its star imports"
    names,stars = {},[]
    for o in ast.walk(tree):
        if isinstance(o, ast.Import):
            for a in o.names: names[a.asname or a.name.split('.')[0]] = (a.name, None, a.asname)
        if isinstance(o, ast.ImportFrom):
            m = absolute(module, o.level, o.module)
            for a in o.names:
                if a.name=='*': stars.append(m)
                else: names[a.asname or a.name] = (m, a.name, a.asname)
    return names,stars

def star_names(module):
    "Names that `from module import *` brings"
    m = importlib.import_module(module)
    return set(getattr(m, '__all__', None) or [o for o in vars(m) if o[0]!='_'])

def patched(o):
    "Is this definition `@patch`ed into a class? It leaves no name behind"
    marks = [d.func if isinstance(d, ast.Call) else d for d in getattr(o, 'decorator_list', [])]
    return any(getattr(d, 'id', '') in ('patch','patch_to','patch_property') for d in marks)

# --- the cells of a page

class Cell:
    "A code cell: is it shown, exported or hidden, and what does it use, bind and import?"
    def __init__(self, cell, module):
        d = cell.directives_
        self.id,self.code,self.problem = cell.get('id', '?'),plain(cell.source),None
        off = lambda k: str(d.get(k, '')).strip().lower()=='false'
        self.exported = any(k in d for k in ('export','exporti','exports'))
        self.shown = 'exports' in d or not (self.exported or 'default_exp' in d or 'hide' in d or off('include:') or off('include')
                                            or off('echo:') or off('echo') or str(d.get('hide:', '')).strip()=='true')
        self.now,self.late,self.bound,self.imports,self.stars,self.attrs = [],[],set(),{},[],set()
        try: tree = ast.parse(self.code)
        except SyntaxError as e: self.problem = f'no Python: {e}'; return
        self.now,self.late,self.bound = used(self.code)
        self.imports,self.stars = imports(tree, module)
        named = {o.name for o in tree.body if hasattr(o, 'name') and not patched(o)} # `patch` leaves a name as it was
        self.bound -= {o.name for o in tree.body if patched(o)}-named
        self.attrs = {o.attr for o in ast.walk(tree) if isinstance(o, ast.Attribute)}
    @property
    def first(self): return next((l for l in self.code.splitlines() if l.strip()), '')[:60]

def import_lines(found):
    "Import statements of (module, attribute or None, as), the standard library first and our own last"
    def room(m): return (m.split('.')[0]=='ccreid')*2 + (m.split('.')[0] not in sys.stdlib_module_names)
    named = lambda n,a: n if a in (None, n) else f'{n} as {a}'
    lines = []
    for place in 0,1,2,3:
        whole = sorted({named(m, a) for m,n,a in found if n is None and room(m)==place}, key=lambda o: (not o.endswith('compat'), o))
        if place<2 and whole: lines.append('import '+', '.join(whole))
        else: lines += [f'import {o}' for o in whole]
        for module in sorted({m for m,n,a in found if n is not None and room(m)==place}):
            names = ', '.join(sorted({named(n, a) for m,n,a in found if m==module and n is not None}))
            line = f'from {module} import {names}'
            if len(line)>WIDTH: line = textwrap.fill(f'from {module} import ({names})', WIDTH, subsequent_indent='    ', break_long_words=False)
            lines.append(line)
    return lines

class Examples:
    "Of one page: what its visible code lacks, where that comes from, and what nothing defines"
    def __init__(self, cells, module='', library=None):
        self.module,self.library,self.patches = module,library,library.patches if library else {}
        self.cells = [Cell(c, module) if c.cell_type=='code' and c.source.strip() and not c.source.startswith('show_doc') else None for c in cells]
        self.found,self.problems,self.at = [],[],None
        self.resolve()

    def visible(self, i=None):
        "Names that visible cells above `i` bind (all visible cells if not given)"
        return set().union(*[c.bound for c in self.cells[:i] if c and c.shown])

    def bound_in(self, c, name):
        "Where a cell that is not shown gets a name from; a string where a reader cannot get it"
        if name in c.imports: return c.imports[name]
        if name in c.bound: return (self.module, name, None) if c.exported and self.module else f'only the hidden cell {c.id} defines it'

    def origin(self, name, i):
        "Where the page gets a name that visible cell `i` uses: the nearest cell above, else the first below, else a star import"
        hidden = [c for c in self.cells if c and not c.shown]
        above = [c for c in reversed(self.cells[:i]) if c and not c.shown]
        for c in above+hidden:
            if res := self.bound_in(c, name): return res
        if name in KNOWN: return None
        if any(name in star_names(m) for c in self.cells if c and c.shown for m in c.stars): return None
        for m in dict.fromkeys(m for c in hidden for m in c.stars):
            if name in star_names(m): return m,name,None
        return ('IPython.display','display',None) if name=='display' else 'nothing defines it'

    def need(self, name, i):
        if name in KNOWN and not any(c and not c.shown and name in {**c.imports, **dict.fromkeys(c.bound)} for c in self.cells): return
        res = self.origin(name, i)
        if isinstance(res, str): self.problems.append(f'cell {self.cells[i].id} ({self.cells[i].first}): `{name}`: {res}')
        elif res: self.add(res, i)

    def add(self, res, i):
        self.at = i if self.at is None else min(self.at, i)
        if res not in self.found: self.found.append(res)

    def resolve(self):
        for i,c in enumerate(self.cells):
            if not c or not c.shown: continue
            if c.problem: self.problems.append(f'cell {c.id} ({c.first}): {c.problem}'); continue
            above = self.visible(i)
            for name in c.now:
                if name not in above: self.need(name, i)
            for name in c.late:
                if name not in self.visible(): self.need(name, i)
        self.side_effects()
        if self.library: self.check_targets()

    def check_targets(self):
        "What visible cells import from the package is there"
        for c in self.cells:
            if not c or not c.shown: continue
            for m,n,_ in c.imports.values():
                if self.library.lacks(m, n): self.problems.append(f'cell {c.id} ({c.first}): there is no `{n}` in {m}' if n else f'cell {c.id}: there is no {m}')

    def side_effects(self):
        "Modules that are imported for the methods they give to other classes, and `ccreid.compat`, which comes before torchvision"
        hidden = [c for c in self.cells if c and not c.shown]
        near = {self.module} | {m for c in hidden for m,*_ in c.imports.values()}
        have = {m for m,*_ in self.found} | {m for c in self.cells if c and c.shown for m,*_ in c.imports.values()}
        have |= {m for c in self.cells if c and c.shown for m in c.stars}
        for i,c in enumerate(self.cells):
            if not c or not c.shown: continue
            for m in sorted(set().union(*[self.patches.get(a, set()) for a in c.attrs]) & near - have - {''}):
                self.add((m, None, None), i)
                have.add(m)
        needs = any(m.split('.')[0] in ('fastai','torchvision') for m,*_ in self.found)
        if needs and any(m=='ccreid.compat' for c in hidden for m,*_ in c.imports.values()): self.add(('ccreid.compat', None, None), self.at)

    def lines(self): return import_lines(self.found)

def imports_cell(lines):
    "The folded cell above the first example"
    cell = mk_cell('#| code-fold: true\n#| code-summary: "Imports"\n' + '\n'.join(lines), 'code')
    cell.directives_ = {}
    return cell

# --- do they run?

def shown_code(path):
    "The code of a staged page as a reader copies it: folded imports and visible cells, without reference and cells that are not run"
    res = []
    for c in read_nb(path).cells:
        if c.cell_type!='code' or c.metadata.get('reference') or c.metadata.get('norun'): continue
        head = [l for l in c.source.splitlines() if l.startswith('#|')]
        if any(l.replace(' ', '') in ('#|echo:false','#|eval:false','#|include:false') for l in head): continue
        res.append(plain(c.source))
    return res

RUNNER = '''
import os, sys, traceback
import matplotlib; matplotlib.use('agg')
cells = open(sys.argv[1]).read().split('\\n#-----\\n')
space = {'__name__': '__main__'}
for i,code in enumerate(cells):
    try: exec(compile(code, f'cell {i}', 'exec'), space)
    except Exception as e:
        print(f'cell {i}: {code.splitlines()[0][:70]}\\n  {type(e).__name__}: {e}', file=sys.stderr)
        sys.exit(1)
'''

def copy_and_run(path, folder, tmp):
    "Run the code of a staged page in a process of its own, as if pasted; the words of its failure, or None"
    at = tmp/'cells.txt'
    at.write_text('\n#-----\n'.join(shown_code(path)))
    res = subprocess.run([sys.executable,'-c',RUNNER,str(at)], cwd=folder, text=True, capture_output=True, stdin=subprocess.DEVNULL,
                         env={**os.environ, 'MPLBACKEND': 'agg'})
    return None if res.returncode==0 else (res.stderr.strip().splitlines() or ['it stopped'])[-2:]
