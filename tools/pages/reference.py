"The reference on a page, made from its module's source: signatures as written, classes as classes, fields as tables, in the source's order"
import argparse,ast,html,inspect,io,re,textwrap,tokenize
from functools import cached_property
from pathlib import Path
from fastcore.nbio import mk_cell
from .examples import imports,patched

WIDTH = 90
DEFS = (ast.FunctionDef,ast.AsyncFunctionDef,ast.ClassDef)

def public(name): return name[0]!='_'

class Library:
    "All modules of the package as parsed source: their top-level names, classes, and what they patch into classes"
    def __init__(self, root, package='ccreid'):
        self.modules,self.sources,self.files = {},{},{}
        for p in sorted((Path(root)/package).rglob('*.py')):
            parts = p.relative_to(root).with_suffix('').parts
            name = '.'.join(parts[:-1] if parts[-1]=='__init__' else parts)
            self.sources[name],self.files[name] = p.read_text(encoding='utf-8'),p.relative_to(root).as_posix()
            self.modules[name] = ast.parse(self.sources[name])
    def definitions(self, module): return [o for o in self.modules[module].body if isinstance(o, DEFS)] if module in self.modules else []
    def names(self, module):
        "Names that can be imported from a module"
        res = {m.rpartition('.')[2] for m in self.modules if m.rpartition('.')[0]==module}
        for o in ast.walk(self.modules[module]):
            if isinstance(o, (ast.Import,ast.ImportFrom)): res |= {a.asname or a.name.split('.')[0] for a in o.names}
            elif isinstance(o, DEFS): res.add(o.name)
            elif isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store): res.add(o.id)
        return res
    def lacks(self, module, name):
        "Is `from module import name` wrong? None for modules that are not ours"
        if module.split('.')[0]!='ccreid': return None
        return module not in self.modules or name is not None and name not in self.names(module)
    @cached_property
    def patches(self):
        "Method name -> modules that patch it into a class"
        res = {}
        for m in self.modules:
            for o in self.definitions(m):
                if patched(o): res.setdefault(o.name, set()).add(m)
        return res
    def class_of(self, name, module):
        "Module and node of the class that `name` means inside `module`; None where it is not one of ours"
        for o in self.definitions(module):
            if isinstance(o, ast.ClassDef) and o.name==name: return module,o
        if module not in self.modules: return None
        found,_ = imports(self.modules[module], module)
        to = found.get(name)
        if to and to[0] in self.modules and to[0]!=module: return self.class_of(to[1] or name, to[0])
    def line(self, module, name):
        "Line of a module's definition"
        owner,_,method = name.rpartition('.')
        for o in self.definitions(module):
            if patched(o) and owner and (patch_class(o),o.name)==(owner,method) or not patched(o) and o.name==name: return o.lineno
            if owner and o.name==owner and not patched(o):
                for d in o.body:
                    if getattr(d, 'name', None)==method: return d.lineno

def patch_class(o):
    "The class that a patched function goes into, as its `self` says; of several the first"
    a = (o.args.posonlyargs+o.args.args)[:1]
    return ast.unparse(a[0].annotation).split('|')[0].strip() if a and a[0].annotation else ''

# --- signatures

def tokens(source): return list(tokenize.generate_tokens(io.StringIO(source).readline))

def header(source):
    "The text of a `def` up to its colon, with the comment that follows it there"
    depth,toks = 0,tokens(source)
    lines = source.splitlines(keepends=True)
    at = next(i for i,t in enumerate(toks) if t.string=='def')
    for i,t in enumerate(toks[at:], at):
        if t.type==tokenize.OP and t.string in '([{': depth += 1
        elif t.type==tokenize.OP and t.string in ')]}': depth -= 1
        elif t.type==tokenize.OP and t.string==':' and depth==0:
            end = toks[i+1] if toks[i+1].type==tokenize.COMMENT else t
            row,col = toks[at].start
            text = lines[row-1:end.end[0]]
            text[-1] = text[-1][:end.end[1]]
            text[0] = text[0][col:]
            return ''.join(text)

def without_self(text): return re.sub(r'\(\s*(self|cls)\b(\s*:\s*(\w[\w.|\[\]]*|"[^"]*"))?\s*(,[ \t]*(#[^\n]*)?|(?=\)))', '(', text, count=1)

def arguments(text):
    "What is before, inside and after the parentheses of a one-line signature, split at its commas"
    start,depth,parts,last = text.index('('),0,[],text.index('(')+1
    for t in tokens(text.rstrip(':')+'\n'):
        if t.type!=tokenize.OP or t.start[0]>1: continue
        if t.string in '([{': depth += 1
        elif t.string in ')]}':
            depth -= 1
            if depth==0: return text[:start+1],[*parts,text[last:t.start[1]].strip()],text[t.start[1]:]
        elif t.string==',' and depth==1:
            parts.append(text[last:t.start[1]].strip())
            last = t.end[1]

def fitted(text):
    "A signature without comments that is too long, broken between its arguments"
    if max(map(len, text.splitlines()))<=WIDTH or '(' not in text or '#' in text: return text
    text = re.sub(r'\s*\n\s*', ' ', text).replace('( ', '(')
    before,parts,after = arguments(text)
    lines = ['']
    for o in [p for p in parts if p]:
        if lines[-1] and len(lines[-1])+len(o)+6>WIDTH: lines.append('')
        lines[-1] += (' ' if lines[-1] else '')+o+','
    return before+'\n    '+'\n    '.join(lines).rstrip(',')+'\n'+after

def dedented(text):
    "The lines of a method's signature, moved to where a function's would stand"
    first,*rest = text.splitlines()
    if not rest: return text
    depth = min((len(l)-len(l.lstrip()) for l in rest if l.strip()), default=0)
    if rest[-1].lstrip()[:1]==')': depth = len(rest[-1])-len(rest[-1].lstrip())
    else: depth -= 4
    return '\n'.join([first]+[l[max(min(depth, len(l)-len(l.lstrip())), 0):] if depth>0 else l for l in rest])

def signature(source, name=None, kind='def'):
    "A function's signature as written; `kind` and `name` replace `def` and its own name"
    text = dedented(without_self(header(source)))
    m = re.match(r'def\s+(\w+)', text)
    text = f'{kind} {name or m[1]}'+text[m.end():]
    return fitted(re.sub(r'\)\s*->\s*None\s*:', '):', text) if kind=='class' else text)

# --- classes

def base_names(o): return [ast.unparse(b) for b in o.bases]
def is_dataclass(o): return any('dataclass' in ast.unparse(d) for d in o.decorator_list)
def has_fields(o): return is_dataclass(o) or 'NamedTuple' in base_names(o)

def fields(o, source):
    "Name, type, default and comment of each field; `source` is the text the class was parsed from"
    lines,comments = source.splitlines(),{t.start[0]: t.string.lstrip('# ').strip() for t in tokens(source) if t.type==tokenize.COMMENT}
    code = lambda n: '' if n is None else ast.unparse(n)
    return [(a.target.id, code(a.annotation), code(a.value), comments.get(a.end_lineno, '')) for a in o.body
            if isinstance(a, ast.AnnAssign) and isinstance(a.target, ast.Name) and public(a.target.id)]

def cell_text(s): return s.replace('|', '\\|').replace('\n', ' ')

def fields_table(rows):
    "The fields of a class, one a row; columns that say nothing are left out"
    head,keep = ('field','type','default',''),[0]+[i for i in (1,2,3) if any(r[i] for r in rows)]
    mark = lambda r: [f'`{r[0]}`', f'`{cell_text(r[1])}`' if r[1] else '', f'`{cell_text(r[2])}`' if r[2] else '', cell_text(r[3])]
    lines = ['| '+' | '.join(head[i] for i in keep)+' |', '|'+'|'.join([':--']*len(keep))+'|']
    return '\n'.join(lines+['| '+' | '.join(mark(r)[i] for i in keep)+' |' for r in rows])

class Reference:
    "Markdown cells for the definitions of exported cells of one page"
    def __init__(self, library, module, source_url=''):
        self.library,self.module,self.source_url = library,module,source_url

    def segment(self, source, o):
        lines = source.splitlines()[o.lineno-1:o.end_lineno]
        return textwrap.dedent('\n'.join(lines))+'\n'

    def heading(self, name, level):
        line = self.library.line(self.module, name)
        file = self.library.files.get(self.module)
        link = f'[source]({self.source_url}/{file}#L{line}){{style="float:right; font-size:smaller"}}\n\n' if self.source_url and file and line else ''
        return ('---\n\n'+link if level==3 else '') + f"{'#'*level} {name}\n\n"

    def doc(self, o):
        "The docstring of this very definition, its first line in italics"
        text = ast.get_docstring(o) or ''
        return re.sub(r'^(\s*)(.+)', r'\1*\2*', text, count=1)

    def block(self, name, code, doc, level, more=''):
        return self.heading(name, level) + f'```python\n{code}\n```\n\n' + '\n\n'.join(t for t in (doc, more) if t)

    def function(self, o, source, name=None, level=3):
        name = name or o.name
        marks = {d.id if isinstance(d, ast.Name) else getattr(d, 'attr', '') for d in o.decorator_list}
        as_prop = any(isinstance(d, ast.Call) and any(k.arg=='as_prop' for k in d.keywords) for d in o.decorator_list)
        if marks & {'property','cached_property'} or as_prop:
            ret = f'->{ast.unparse(o.returns)}' if o.returns else ''
            return self.block(name, f"{name.rpartition('.')[2]}{ret} # property", self.doc(o), level)
        return self.block(name, signature(self.segment(source, o)), self.doc(o), level)

    def init(self, o, source, module):
        "`__init__` of a class or of the nearest base of ours that has one, with the source that it is in"
        for d in o.body:
            if isinstance(d, ast.FunctionDef) and d.name=='__init__': return d,source
        for b in base_names(o):
            if base := self.library.class_of(b, module):
                if res := self.init(base[1], self.library.sources[base[0]], base[0]): return res

    def class_code(self, o, source):
        if has_fields(o):
            return fitted(f'class {o.name}('+', '.join(n+(f'={d}' if d else '') for n,_,d,_ in fields(o, source))+')')
        if found := self.init(o, source, self.module): return signature(self.segment(found[1], found[0]), o.name, 'class').removesuffix(':')
        return f'class {o.name}()' if not o.bases else f'class {o.name}(…)'

    def methods(self, o, source):
        "The public methods of a class: those with a docstring in full, the others by name"
        defs = [d for d in o.body if isinstance(d, (ast.FunctionDef,ast.AsyncFunctionDef)) and (public(d.name) or d.name=='__call__')]
        defs = [d for d in defs if not any('setter' in ast.unparse(m) for m in d.decorator_list)]
        told = [d for d in defs if ast.get_docstring(d)]
        rest = [f'`{d.name}`' for d in defs if d not in told and d.name!='__call__']
        return [self.function(d, source, f'{o.name}.{d.name}', 4) for d in told],f"Also: {', '.join(rest)}." if rest else ''

    def class_(self, o, source):
        bases = [b for b in base_names(o) if b not in ('object','NamedTuple') and public(b)]
        more = [f"A kind of {', '.join(f'`{b}`' for b in bases)}."] if bases else []
        if has_fields(o) and (rows := fields(o, source)): more.append(fields_table(rows))
        shown,also = self.methods(o, source)
        return [self.block(o.name, self.class_code(o, source), self.doc(o), 3, '\n\n'.join(more+[also]*bool(also))), *shown]

    def of_cell(self, source):
        "Markdown of each public definition of a cell, in its order"
        res = []
        for o in ast.parse(source).body:
            if not isinstance(o, DEFS) or not public(o.name): continue
            if isinstance(o, ast.ClassDef): res += self.class_(o, source)
            else: res.append(self.function(o, source, f'{patch_class(o)}.{o.name}' if patched(o) else None))
        return res

def reference_cells(reference, source):
    cells = [mk_cell(t, 'markdown') for t in reference.of_cell(source)]
    for c in cells: c.has_sd,c.directives_ = True,{}
    return cells

# --- the command line

def subcommands(parser):
    "Name and parser of each subcommand"
    return {n: p for a in parser._actions if isinstance(a, argparse._SubParsersAction) for n,p in a.choices.items()}

def commands_text(make, width=88):
    "Markdown with the help of a command and of its subcommands; `make(words)` gives the parser, with the options that these words ask for"
    made = lambda *words: make(words) if inspect.signature(make).parameters else make()
    def helped(p):
        p.formatter_class = lambda prog, cls=p.formatter_class: cls(prog, width=width)
        return f'```text\n{p.format_help().rstrip()}\n```'
    whole = made()
    each = [subcommands(made(n))[n] for n in subcommands(whole)]
    return '\n\n'.join([f'## Help of every command\n\n{helped(whole)}']+[f'### {p.prog}\n\n{helped(p)}' for p in each])

# --- all names

def public_names(library, module):
    "Public definitions and constants of a module, with the anchor that a page has for them (None for constants) and one line on them"
    res = []
    for o in library.modules[module].body:
        if isinstance(o, DEFS) and public(o.name):
            name = f'{patch_class(o)}.{o.name}' if patched(o) else o.name
            if not public(name): continue              # a method of a class that is nobody's business
            res.append((name, name.lower(), (ast.get_docstring(o) or '').split('\n')[0]))
            if isinstance(o, ast.ClassDef):
                res += [(f'{o.name}.{d.name}', f'{o.name}.{d.name}'.lower(), (ast.get_docstring(d) or '').split('\n')[0]) for d in o.body
                        if isinstance(d, (ast.FunctionDef,ast.AsyncFunctionDef)) and public(d.name) and ast.get_docstring(d)]
        elif isinstance(o, ast.Assign) and isinstance(o.targets[0], ast.Name) and public(o.targets[0].id):
            res.append((o.targets[0].id, None, ''))
    return list(dict.fromkeys(res))

def all_names(library, pages):
    "The page \"All names\"; `pages`: module -> (path of its notebook, title)"
    text = ['---\ntitle: All names\ndescription: Every public function, class, method and constant, with the page that explains it\n---\n']
    for module,(path,title) in pages.items():
        rows = public_names(library, module)
        if not rows: continue
        text.append(f'\n## {module}\n\nExplained in [{title}](/{path}).\n')
        text += [f"- [`{n}`](/{path}{'#'+a if a else ''})" + (f': {html.escape(d, quote=False)}' if d else '') for n,a,d in rows]
    return '\n'.join(text)+'\n'
