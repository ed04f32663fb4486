"Write README.md and render the site, with its links checked; needs no quarto, no network and no running kernel"
import ast,base64,re,shutil,subprocess,sys,tempfile,yaml
from importlib import import_module
from pathlib import Path
from html.parser import HTMLParser
from urllib.parse import unquote,urlsplit
from fastcore.nbio import mk_cell,read_nb,write_nb
from fastcore.script import call_parse
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.process import Processor
from nbdev import processors
from nbdev.processors import FilterDefaults,rm_export
from nbdev.readme_filter import doc_link
from nbdev import serve
from smalldocs.check import scan

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pages import examples,finishing,pictures,reference,searching

cfg = get_config()
root,proc,docs = cfg.config_path,cfg.config_path/'_proc',cfg.doc_path
base = cfg.doc_url.rstrip('/')+'/'
ALL_NAMES = 'names.md' # a page that no notebook holds: it is made here

def say(*o): print('docs:', *o, flush=True)
def fail(what, problems):
    if problems: raise SystemExit(f'docs: {what}\n' + '\n'.join(f'  {o}' for o in problems))

# --- the sidebar and the notebooks name the same pages

def entries(o):
    "All pages named anywhere in a piece of `_quarto.yml`"
    if isinstance(o, str): return [o] if o.endswith(('.ipynb','.md')) else []
    if isinstance(o, dict): return [e for k in ('contents','href','file') if k in o for e in entries(o[k])]
    return [e for x in o for e in entries(x)]

def sources():
    "All pages that there are: notebooks, and the data cards from the top-level folder"
    nbs = [p.relative_to(cfg.nbs_path).as_posix() for p in cfg.nbs_path.rglob('*.ipynb')
           if not any(q[0] in '._' for q in p.relative_to(cfg.nbs_path).parts)]
    return sorted(nbs) + [ALL_NAMES] + sorted(f'data_cards/{p.name}' for p in (root/'data_cards').glob('*.md'))

def check_sidebar():
    side = entries(yaml.safe_load((root/'_quarto.yml').read_text())['website']['sidebar']['contents'])
    have = sources()
    bad  = [f'{o}: in the sidebar, not on disk' for o in side if o not in have]
    bad += [f'{o}: on disk, not in the sidebar' for o in have if o not in side]
    bad += [f'{o}: twice in the sidebar' for o in sorted({o for o in side if side.count(o)>1})]
    return bad

def only_existing(o, have):
    "`_quarto.yml` without the entries that have no page yet (drafts)"
    if isinstance(o, list): return [r for x in o if (r := only_existing(x, have)) is not None]
    if isinstance(o, str): return None if o.endswith(('.ipynb','.md')) and o not in have else o
    if isinstance(o, dict):
        if str(o.get('href','')).endswith(('.ipynb','.md')) and o['href'] not in have: return None
        res = {k: only_existing(v, have) for k,v in o.items()}
        return None if 'section' in o and not res.get('contents') else res
    return o

# --- staging

def outside(m, folder):
    "A link of a notebook in `folder` to a file of the repository outside nbs/: cards are pages, other files are shown by GitHub"
    u = urlsplit(m[2])
    if u.scheme or u.netloc or not u.path.startswith('../'): return m[0]
    to = (cfg.nbs_path/folder/unquote(u.path)).resolve()
    if cfg.nbs_path.resolve() in to.parents or not to.exists(): return m[0]
    path,tail = to.relative_to(root.resolve()).as_posix(),f'#{u.fragment}' if u.fragment else ''
    return f'{m[1]}(/{path}{tail})' if path.startswith('data_cards/') else f'{m[1]}({cfg.git_url}/blob/{cfg.branch}/{path}{tail})'

class Faults(list):
    "What is wrong with the staged pages, each with the page's name"
    def of(self, nb, problems): self += [f'{getattr(nb, "path_", "?")}: {o}' for o in problems]

faults = Faults()

def module_of(nb):
    "The module that a notebook is exported to; empty where it is none"
    said = [getattr(c, 'directives_', c.directives) for c in nb.cells if c.cell_type=='code']
    name = next((d['default_exp'] for d in said if 'default_exp' in d), '')
    return f'ccreid.{name}' if name else ''

class show_imports(Processor):
    "A folded cell \"Imports\" above the first example that needs one; cells that cannot be run by everybody are marked"
    def begin(self):
        cells = self.nb.cells
        page = examples.Examples(cells, module_of(self.nb), library())
        faults.of(self.nb, page.problems)
        flags = set(cfg.get('tst_flags', '').split())
        for c in cells:
            if c.cell_type=='code' and flags & set(c.directives_): c['metadata']['norun'] = True
        if page.found: cells.insert(page.at, examples.imports_cell(page.lines()))

class show_reference(Processor):
    "The definitions of an exported cell, in the order of the source, and the help of commands on their page"
    def begin(self):
        cells,ref = self.nb.cells,reference.Reference(library(), module_of(self.nb), f'{cfg.git_url}/blob/{cfg.branch}')
        for i in reversed(range(len(cells))):
            if cells[i].cell_type=='code' and processors._want_doc(cells[i]):
                cells[i+1:i+1] = reference.reference_cells(ref, examples.plain(cells[i].source))
        if ref.module=='ccreid.cli': self.commands()
    def commands(self):
        "Before the last cell, which leads to the next page"
        cell = mk_cell(reference.commands_text(command_parser()), 'markdown')
        cell.directives_ = {}
        self.nb.cells.insert(len(self.nb.cells)-1, cell)

def library():
    "The package's source, parsed once"
    if not hasattr(library, 'made'): library.made = reference.Library(root)
    return library.made

def command_parser():
    "The function that makes the command line's parser, from whichever module has it"
    for name in 'ccreid.cli','ccreid.options':
        if callable(make := getattr(import_module(name), 'parser', None)): return make
    raise SystemExit('docs: neither ccreid.cli nor ccreid.options has a function `parser`')

class show_source(Processor):
    "Exported code stays on the page: folded, below the signatures it gives; open where it gives none (constants). Imports go"
    def housekeeping(self, o):
        return isinstance(o, (ast.Import,ast.ImportFrom)) or isinstance(o, ast.Assign) and getattr(o.targets[0], 'id', '') in ('_all_','__all__')

    def __call__(self, cell):
        if cell.cell_type!='code' or not cell.source: return
        if 'export' not in cell.directives_ or 'hide' in cell.directives_: return rm_export(cell)
        code = '\n'.join(l for l in cell.source.splitlines() if not l.startswith('#|')).strip()
        if all(self.housekeeping(o) for o in ast.parse(code).body): del cell['source']; return
        cell.is_source,cell.source,cell['metadata']['reference'] = True,code,True

    def end(self):
        cells,i = self.nb.cells,0
        while i<len(cells):
            j = i+1
            if getattr(cells[i], 'is_source', False):
                while j<len(cells) and getattr(cells[j], 'has_sd', False): j += 1
                private = any(isinstance(o, reference.DEFS) for o in ast.parse(cells[i].source).body)
                if j>i+1 or private:
                    cells[i].source = '#| code-fold: true\n#| code-summary: "Code"\n' + cells[i].source
                    cells[i:j] = cells[i+1:j]+cells[i:i+1]
            i = j

PLAIN_WORDS = {'head','test'} # names of functions that mostly stand for something else

def named_page(self, sym, found=NbdevLookup.doc):
    "The page of a name in backticks; a plain word links to no other library"
    to = found(self, sym)
    return None if to and re.fullmatch('[a-z]+', sym) and (sym in PLAIN_WORDS or not to.startswith(base)) else to
NbdevLookup.doc = named_page

class SiteProcessors(FilterDefaults):
    "nbdev's steps; the reference is read from the source, so that no cell is run"
    instead = {processors.add_show_docs: [show_imports,show_reference], processors.clean_show_doc: [], processors.exec_show_docs: [], rm_export: [show_source]}
    def base_procs(self): return [p for o in super().base_procs() for p in self.instead.get(o, [o])]
serve.FilterDefaults = SiteProcessors

FENCE = re.compile(r'^(:{3,})[ \t]*(\{[^}\n]*\})?[ \t]*$', flags=re.M)

def summary_of(words, text):
    "What a folded callout is called, and the text behind its opening line without that"
    title = re.search(r'title="([^"]*)"', words)
    head = re.match(r'\s*#+ (.+)\n', text)
    if head and not title: return head[1], text[head.end():]
    return title[1] if title else 'More', text

def opens_by_keyboard(cells):
    "A folded callout becomes `<details>`, which the keyboard and a screen reader know, also where it holds cells of code"
    stack = []
    def fence(m):
        if m[2] is None: return '\n</details>' if stack and stack.pop() else m[0]
        stack.append('.callout-' in m[2] and bool(re.search('collapse="?true', m[2])))
        return f'\0{m[2]}\0' if stack[-1] else m[0]
    for c in cells:
        if c.cell_type!='markdown': continue
        text = FENCE.sub(fence, c.source)
        while '\0' in text:
            before,words,after = text.split('\0', 2)
            title,after = summary_of(words, after)
            text = f'{before}<details class="folded">\n<summary>{title}</summary>\n\n{after.lstrip()}'
        c.source = text

def localize(c, folder):
    "Make links to our own site relative to its root, and drop the front matter smalldocs does not read"
    c.source = c.source.replace(base, '/')
    if c.cell_type=='markdown': c.source = re.sub(r'(\])\(([^)\s]+)\)', lambda m: outside(m, folder), c.source)
    if c.cell_type=='raw': c.source = re.sub(r'^output-file:.*\n', '', c.source, flags=re.M)
    for o in c.get('outputs', []):
        d = o.get('data', {})
        for k in 'text/markdown','text/html':
            if k in d: d[k] = ''.join(d[k]).replace(base, '/')
        if 'text/markdown' in d: d['text/markdown'] = re.sub(r'(\])\(([^)\s]+)\)', lambda m: outside(m, folder), d['text/markdown'])

def as_text(v):
    "A value of a card's front matter in one readable piece of Markdown"
    if isinstance(v, dict) and 'value' in v: return f"{as_text(v['value'])} ({as_text(v.get('source'))})" if v.get('source') else as_text(v['value'])
    if isinstance(v, dict): return ', '.join(f'{k} {as_text(o)}' for k,o in v.items())
    if isinstance(v, (list,tuple)): return ', '.join(as_text(o) for o in v)
    if isinstance(v, bool): return 'yes' if v else 'no'
    if isinstance(v, int): return str(v) if 1900<=v<=2100 else f'{v:,}'
    return ' '.join(str(v).split()).replace('|', '\\|') if v is not None else ''

def rows(d, pre=''):
    "One row a fact; a dict of dicts is opened one level"
    for k,v in d.items():
        name = pre+str(k).replace('_',' ')
        if isinstance(v, dict) and 'value' not in v and any(isinstance(o, (dict,list)) for o in v.values()): yield from rows(v, name+': ')
        elif isinstance(v, list) and v and all(isinstance(o, dict) for o in v):
            for i,o in enumerate(v): yield f'{name} {i+1}',as_text(o)
        else: yield name,as_text(v)

def count_rows(counts):
    "Part, what, count and source of each count of a card"
    for split,facts in counts.items():
        for what,fact in facts.items(): yield split,what,f"{fact['value']:,}",as_text(fact.get('source'))

def counts_table(title, counts):
    "The counts of a card as a table, a part named once"
    lines,last = [f'| {title} | | count | source |','|:--|:--|--:|:--|'],None
    for split,what,count,source in count_rows(counts):
        lines.append(f"| {f'**{split}**' if split!=last else ''} | {what} | {count} | {source} |")
        last = split
    return '\n'.join(lines)

def rule_text(r):
    "A rule of a card: its sentence, and how it is checked"
    if 'between' in r: values = '{} to {}'.format(*r['between'])
    else: values = as_text(r['among']) if 'among' in r else 'one person each'
    where = f", {as_text(r['split'])}" if r.get('split') else ''
    return f"- {as_text(r['rule'])} (`{r['column']}`{where}: {values})"

def from_card(m):
    "A link of a card to a notebook becomes a link to its page"
    return f'{m[1]}(/{m[2]})'

def stage_card(path):
    "A data card as a page: what it is, then what the code reads, counts and rules as tables, then its other sections"
    txt = path.read_text()
    _,fm,body = txt.split('---\n', 2) if txt.startswith('---\n') else ('','{}',txt)
    fm = yaml.safe_load(fm) or {}
    m = re.match(r'\s*# (.+)\n', body)
    if m: body = body[m.end():]
    body = re.sub(r'(\])\(\.\./nbs/([^)\s]+)\)', from_card, body)
    title = m[1] if m else str(fm.get('title') or fm.get('pretty_name') or fm.get('name') or path.stem)
    head = yaml.safe_dump({'title': title, 'description': str(fm.get('description') or f'Data card of {title}')}, allow_unicode=True)
    counts = {'part': fm['counts']} if isinstance(fm.get('counts'), dict) else {}
    counts |= {f'with {o.replace("=", " = ")}': c for o,c in (fm.get('counts_by_option') or {}).items()}
    apart = ('title','pretty_name','description','rules','counts_by_option')+('counts',)*bool(counts)
    facts = {k:v for k,v in fm.items() if k not in apart}
    linked = lambda v: re.sub(r'(https?://[^\s,;)]+)', r'<\1>', v)
    table = '\n'.join(f'| **{k}** | {linked(v)} |' for k,v in rows(facts))
    tables = ([('front-matter', f'| what the code reads | |\n|:--|:--|\n{table}')] if facts else []) + [('front-matter .counts', counts_table(o, c)) for o,c in counts.items()]
    read = ''.join(f'\n::: {{.{kind}}}\n\n{o}\n\n:::\n' for kind,o in tables)
    if fm.get('rules'): read += '\nRules that `ccreid check` verifies on the table (cameras count from 0 there):\n\n' + '\n'.join(map(rule_text, fm['rules'])) + '\n'
    what,sections,rest = body.partition('\n## ')
    dest = proc/'data_cards'/path.name
    dest.parent.mkdir(parents=True, exist_ok=True)
    dest.write_text(f'---\n{head}---\n{what}\n{read}{sections}{rest}')

def stage_names(pages):
    "The page of all names, in the order of the sidebar"
    order = [o for o in entries(yaml.safe_load((root/'_quarto.yml').read_text())['website']['sidebar']['contents']) if o in pages]
    of,titles = {},{}
    for o in order:
        source = read_nb(cfg.nbs_path/o)
        head = yaml.safe_load(pages[o].cells[0].source.strip().strip('-')) if pages[o].cells[0].cell_type=='raw' else {}
        if (m := module_of(source)) in library().modules: of[m] = (o, str(head.get('title', o)))
    (proc/ALL_NAMES).write_text(reference.all_names(library(), of), encoding='utf-8')

def stage(draft=False):
    "Processed notebooks and cards in `_proc`; stops at Pandoc-only syntax, which `smalldocs check` does not look for in notebooks"
    bad = check_sidebar()
    if not draft: fail('_quarto.yml and the pages differ', bad)
    elif bad: say(f'draft: {len(bad)} differences between _quarto.yml and the pages left aside')
    shutil.rmtree(proc, ignore_errors=True)
    faults.clear()
    serve.proc_nbs(n_workers=0) # in this process: the source is parsed once
    if draft:
        conf = only_existing(yaml.safe_load((root/'_quarto.yml').read_text()), sources())
        (proc/'_quarto.yml').unlink(missing_ok=True)
        (proc/'_quarto.yml').write_text(yaml.safe_dump(conf, sort_keys=False, allow_unicode=True))
    bad,pages = [o.replace(f'{cfg.nbs_path}/', '') for o in faults],{}
    for p in sorted(proc.rglob('*.ipynb')):
        nb = read_nb(p)
        opens_by_keyboard(nb.cells)
        pictures.describe(nb.cells)
        for c in nb.cells:
            localize(c, p.relative_to(proc).parent)
            if c.cell_type=='markdown': bad += [f'{p.relative_to(proc)}: {msg}' for _,msg in scan(c.source)]
            if c.cell_type=='code': bad += [f'{p.relative_to(proc)}: an output is an error or a warning: {"".join(o.get("text") or o.get("ename"))[:150]}'
                                            for o in c.get('outputs', []) if o.output_type=='error' or o.get('name')=='stderr']
        write_nb(nb, p)
        pages[p.relative_to(proc).as_posix()] = nb
    stage_names(pages)
    for p in proc.rglob('*.md'): # a table that another page includes is no page
        if p.relative_to(proc).as_posix()!=ALL_NAMES: p.unlink()
    for p in sorted((root/'data_cards').glob('*.md')): stage_card(p)
    for p in sorted((root/'data_cards'/'pictures').glob('*.png')): # the cards show them
        (proc/'data_cards'/'pictures').mkdir(exist_ok=True)
        shutil.copy2(p, proc/'data_cards'/'pictures')
    if not draft: fail('pages that are not fit to be shown', bad)
    elif bad: say('draft:', *bad)

# --- rendering

def markdown_copies():
    "Name the Markdown copy of each page as the modules' docstrings do: `page.html.md`"
    old,new = '.llms.md','.html.md'
    for p in docs.rglob('*'+old): p.rename(p.with_name(p.name[:-len(old)]+new))
    for p in [*docs.rglob('*.html'),*docs.rglob('*'+new),docs/'llms.txt']:
        if p.exists() and old in (txt := p.read_text()): p.write_text(txt.replace(old, new))

def render(draft=False):
    "Render `_proc` to the docs folder, make the pages whole, and look at what a page must not do"
    strict = [] if draft else ['--strict']
    if subprocess.run([sys.executable,'-m','smalldocs.cli','render',*strict,'-q',str(proc)]).returncode:
        raise SystemExit('docs: the site is not written; see the lines above')
    shutil.rmtree(docs, ignore_errors=True)
    shutil.move(proc/docs.name, docs)
    finishing.finish(docs, root/'.cache', cfg.nbs_path/finishing.SCRIPT, say)
    markdown_copies()
    lost = searching.write_index(docs, cfg.nbs_path/'search.yml')
    if draft: say('draft:', *lost) if lost else None
    else: fail('pages that are not fit to be shown', lost+check_pages())

def render_by_quarto():
    "Render `_proc` by Quarto itself, into a folder of its own"
    from nbdev.quarto_render import render_quarto
    if not shutil.which('quarto'): raise SystemExit("docs: no quarto on the path: pip install 'ccreid[quarto]', or `make quarto`")
    to = docs.with_name(f'{docs.name}_quarto')
    render_quarto(proc, proc/to.name)
    shutil.rmtree(to, ignore_errors=True)
    shutil.move(proc/to.name, to)
    say(f'the site by Quarto is in {to.name}/')

def check_pages():
    "No page beside those of the sidebar, a title of its own for each, words for every picture, nothing asked of other servers"
    want = {re.sub(r'\.(ipynb|md)$', '.html', o) for o in sources()}
    bad,titles = [],{}
    for p in sorted(docs.rglob('*.html')):
        here,text = p.relative_to(docs).as_posix(),p.read_text(encoding='utf-8')
        if here not in want: bad.append(f'{here}: a page that is neither a notebook nor a card')
        titles.setdefault(searching.page_title(text), []).append(here)
        bad += [f'{here}: a picture without words for those who do not see it (`#| fig-alt: ...`): {o}' for o in pictures.without_words(text)]
        bad += [f'{here}: a name that becomes a link by itself stands in a link: [...{o}' for o in re.findall(r'\]\([^)\s]*\.ipynb\)', text)]
        bad += [f'{here}: asks {o}' for o in finishing.asked_of_others(text) if not o.startswith(finishing.CDN)]
    bad += [f'{p.relative_to(docs)}: asks {o}' for p in docs.rglob('*.css') for o in finishing.asked_by_css(p.read_text(encoding='utf-8'))]
    return bad+[f'{" and ".join(v)} share the title {k!r}' for k,v in titles.items() if len(v)>1]

# --- links

class Page(HTMLParser):
    "What a page points at, and the names that others can point at"
    def __init__(self, txt):
        super().__init__()
        self.links,self.names = [],{'','top'}
        self.feed(txt)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        for k in 'id','name':
            if a.get(k): self.names.add(a[k])
        for k in 'href','src','poster','data-bs-target':
            if a.get(k): self.links.append(a[k] if k!='data-bs-target' or a[k].startswith('#') else '')

def check_links(draft=False):
    "Every link inside the site reaches a file in it, and every `#name` a name on that page"
    pages = {p.resolve(): Page(p.read_text()) for p in docs.rglob('*.html')}
    bad,n = [],0
    for p,page in pages.items():
        here = p.relative_to(docs.resolve()).as_posix()
        for link in page.links:
            u = urlsplit(link)
            if u.scheme or u.netloc or not link: continue
            n += 1
            if u.path.startswith('/'):
                bad.append(f'{here}: {link} starts at the root of the server: broken under a sub-path')
                continue
            to = (p.parent/unquote(u.path)).resolve() if u.path else p
            if to.is_dir(): to = to/'index.html'
            if docs.resolve() not in to.parents: bad.append(f'{here}: {link} leaves the site')
            elif not to.exists(): bad.append(f'{here}: {link} does not exist')
            elif u.fragment and to in pages and unquote(u.fragment) not in pages[to].names and not u.fragment.startswith(':~:'):
                bad.append(f'{here}: {link} names no place on {to.relative_to(docs.resolve()).as_posix()}')
    for css in docs.rglob('*.css'):
        for m in re.finditer(r'url\(\s*["\']?([^"\')]+)', css.read_text()):
            if m[1].startswith(('data:','http:','https:','//','#')): continue
            n += 1
            to = css.parent/unquote(urlsplit(m[1]).path)
            if not to.exists() and 'katex' not in css.parts: bad.append(f'{css.relative_to(docs)}: {m[1]} does not exist')
    if not draft: fail(f'{len(bad)} broken links', sorted(set(bad)))
    elif bad: say(f'draft: {len(bad)} broken links')
    say(f'{len(pages)} pages, {n} links inside the site, checked')

# --- README

def md_output(o, name, imgs):
    "Markdown of one cell output; pictures go to the folder `imgs`"
    d = o.get('data', {})
    if 'image/png' in d:
        imgs.mkdir(exist_ok=True)
        (imgs/f'{name}.png').write_bytes(base64.b64decode(''.join(d['image/png'])))
        return f'![]({imgs.name}/{name}.png)'
    for k in 'text/markdown','text/html':
        if k in d: return ''.join(d[k])
    txt = ''.join(o.text if o.output_type=='stream' else d.get('text/plain', ''))
    return f'```text\n{txt.rstrip()}\n```' if txt.strip() else ''

def readme_link(m):
    "A link of the index as it works on the repository's front page: pictures and files of the repository, pages of the site"
    bang,text,to = m.groups()
    if bang: to = to if urlsplit(to).scheme else f'nbs/{to}'
    elif to.startswith('../'): to = to[3:]
    else: to = doc_link(to, cfg.doc_url)
    return f'{bang}[{text}]({to})'

def readme():
    "Write `README.md` from the index notebook"
    nb,imgs = read_nb(cfg.nbs_path/cfg.readme_nb),root/'README_files'
    FilterDefaults()(nb)
    shutil.rmtree(imgs, ignore_errors=True)
    fm = yaml.safe_load(nb.cells[0].source.strip().strip('-'))
    res = ['<!-- Made from nbs/index.ipynb: edit the notebook -->', f"# {fm['title']}", f"> {fm['description']}"]
    for c in nb.cells[2:]: # after the front matter and nbdev's warning
        if c.cell_type=='markdown': res.append(re.sub(r'(!?)\[([^\]\n]*)\]\(([^)\s]+)\)', readme_link, c.source))
        elif c.source.strip():
            src = '\n'.join(l for l in c.source.splitlines() if not l.startswith('#|'))
            if not re.search(r'^#\|\s*echo:\s*false', c.source, flags=re.M): res.append(f'```python\n{src}\n```')
            res += [md_output(o, f'{c.id}-{j}', imgs) for j,o in enumerate(c.get('outputs', []))]
    (root/'README.md').write_text('\n\n'.join(r.strip('\n') for r in res if r.strip())+'\n')

def copied(pages):
    "Run the visible code of staged pages, each in a process of its own"
    bad = []
    with tempfile.TemporaryDirectory() as tmp:
        for o in pages:
            path = proc/f'{o}.ipynb'
            if not path.exists(): raise SystemExit(f'docs: {path} is not there; `tools/docs.py --what stage` writes it')
            if words := examples.copy_and_run(path, (cfg.nbs_path/o).parent, Path(tmp)): bad.append(f'{o}: {" ".join(words)}')
    fail('code that does not run when it is copied', bad)
    say(f'{len(pages)} pages run as they are shown')

@call_parse
def main(
    what:str='all', # One of readme, stage, links, copy, quarto, all
    pages:str='', # For `copy`: staged pages whose visible code is run as if pasted, such as evaluation/metrics,data/samplers
    draft:bool=False, # Leave aside the sidebar's entries that have no page yet
):
    "Build README.md and the site"
    if what in ('readme','all'): readme()
    if what in ('stage','quarto','all'): stage(draft)
    if what=='quarto': render_by_quarto()
    if what=='all': render(draft)
    if what in ('links','all'): check_links(draft)
    if what=='copy': copied(pages.split(','))
    if what=='all': say(f'the site is in {docs.name}/: open it with `python -m http.server -d {docs.name}`')
