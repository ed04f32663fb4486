"Write the notebooks of the course without their solutions, for students: `make student`, or `python tools/student.py --out FOLDER`"
import argparse,ast,copy,json,os,re,sys,yaml
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))
from ccreid.files import write_whole

SITE = 'https://ccreid.github.io/ccreid/'
FENCE = re.compile(r'(:{3,})[ \t]*(.*?)[ \t]*$')  # opens a block where something follows the colons, closes one where nothing does
SOLUTION = re.compile(r'\{\.callout-.*\btitle="Solution')
TESTS = re.compile(r'\b(test_\w+|expect_fail|assert)\b')

def pages():
    "The notebooks of the sidebar's section Course, and the exercises of the teaching page; relative to nbs/"
    side = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    course = next(o for o in side if isinstance(o, dict) and o.get('section')=='Course')
    links = [course['href'], *(o['href'] for o in course['contents'])]
    return list(dict.fromkeys(l.partition('#')[0] for l in links))

# --- one notebook

def hidden_test(cell):
    "Is it a code cell that the page hides, and that tests? Imports of tests are needed by other cells"
    if cell['cell_type']!='code' or not re.search(r'^#\|\s*hide\s*$', cell['source'], flags=re.M): return False
    try: body = ast.parse(cell['source']).body
    except SyntaxError: return False # a magic or a shell line
    return any(TESTS.search(ast.unparse(o)) for o in body if not isinstance(o, (ast.Import,ast.ImportFrom)))

def pieces(text, depth):
    "Pieces of a Markdown cell with the depth of blocks inside a solution (0: outside) at which each begins, and the depth after it"
    parts,kept,code = [],[],False
    for line in text.splitlines():
        if line.lstrip().startswith('```'): code = not code
        fence = None if code else FENCE.match(line)
        if depth:
            if fence: depth += 1 if fence[2] else -1
            if not depth: kept = []
        elif fence and SOLUTION.match(fence[2]):
            parts += [(False, '\n'.join(kept).strip('\n')), (True, '')]
            depth,kept = 1,[]
        else: kept.append(line)
    if not depth: parts.append((False, '\n'.join(kept).strip('\n')))
    return parts,depth

def answer_cell(name):
    "The empty cell where a solution was"
    return dict(cell_type='code', execution_count=None, id=name, metadata={}, outputs=[], source='# your answer')

def named(name, taken):
    "An id of a cell that no other has"
    res,k = name[:60],1
    while res in taken: res,k = f'{name[:56]}-{k}',k+1
    taken.add(res)
    return res

def without_solutions(nb, where='the notebook'):
    "A copy of a notebook: an empty cell in the place of each solution, hidden tests left out; `ValueError` if a solution never ends"
    res,depth,taken = [],0,{c['id'] for c in nb['cells']}
    for cell in nb['cells']:
        cell = dict(copy.deepcopy(cell), source=''.join(cell['source']))
        if cell['source'].startswith('[![Open in Colab]'): continue # it leads to the page with its solutions
        if cell['cell_type']!='markdown':
            if not depth and not hidden_test(cell): res.append(cell)
            continue
        parts,depth = pieces(cell['source'], depth)
        if parts==[(False, cell['source'])]: res.append(cell); continue
        texts = 0
        for answer,text in parts:
            if answer: res.append(answer_cell(named(cell['id']+'-answer', taken)))
            elif text:
                res.append({**cell, 'source': text, 'id': cell['id'] if not texts else named(cell['id']+'-after', taken)})
                texts += 1
    if depth: raise ValueError(f'{where}: a solution begins and never ends; close it by a line `:::`')
    return {**nb, 'cells': res}

def point_outwards(nb, page, there):
    "Links to notebooks that students are not given lead to the site"
    def to_site(m):
        to = os.path.normpath(os.path.join(os.path.dirname(page), m[2]))
        return m[0] if to in there or to.startswith('..') else f'{m[1]}{SITE}{to[:-len("ipynb")]}html'
    for c in nb['cells']:
        if c['cell_type']=='markdown': c['source'] = re.sub(r'(\]\()([^):#\s]+\.ipynb)', to_site, c['source'])
    return nb

# --- all of them

def student_notebooks():
    "Text by page: what students get"
    there,res = pages(),{}
    for page in there:
        nb = json.loads((root/'nbs'/page).read_text(encoding='utf-8'))
        nb = point_outwards(without_solutions(nb, page), page, there)
        for c in nb['cells']: c['source'] = c['source'].splitlines(keepends=True)
        res[page] = json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True)+'\n'
    return res

def main(argv=None):
    "Write them, each whole; what is in the folder already, such as somebody's answers, is not touched"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=root/'student', help='folder to write to (default: student/ of the repository)')
    out,made = parser.parse_args(argv).out,student_notebooks()
    other = [p for p,text in made.items() if (out/p).exists() and (out/p).read_text(encoding='utf-8')!=text]
    if other:
        raise SystemExit(f'{out/other[0]} is there and differs, perhaps by somebody\'s answers ({len(other)} of {len(made)} notebooks). '
                         'Move the folder away, or choose another: --out FOLDER')
    for page,text in made.items(): write_whole(out/page, text)
    print(f'{len(made)} notebooks without solutions in {out}')

if __name__=='__main__': main()
