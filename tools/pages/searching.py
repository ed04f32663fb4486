"The index that the search box reads: sections of pages with their words, short enough to load at once"
import json,re
from html.parser import HTMLParser
import yaml

TEXT,DOC = 220,140 # characters kept of a section and of a definition's docstring
LEFT_OUT = {'script','style','pre','table','details','nav','button','figure','math','svg'}
VOID = {'img','br','hr','input','meta','link','source','wbr'}

class Sections(HTMLParser):
    "Sections of a page's text: anchor, heading, prose; code, tables and folded parts are left out"
    def __init__(self, text):
        super().__init__()
        self.found,self.inside,self.out,self.heading,self.title = [['','','']],0,0,None,''
        self.stack = []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag=='main': self.inside = 1
        if not self.inside or tag in VOID: return
        skip = tag in LEFT_OUT or 'math' in (a.get('class') or '') or tag=='header' or 'page-navigation' in (a.get('class') or '')
        self.stack.append((tag, skip))
        self.out += skip
        if tag in ('h2','h3','h4') and a.get('data-anchor-id'):
            self.found.append([a['data-anchor-id'],'',''])
            self.heading = tag
    def handle_endtag(self, tag):
        if tag=='main': self.inside = 0
        if tag==self.heading: self.heading = None
        while self.stack and tag not in VOID:
            t,skip = self.stack.pop()
            self.out -= skip
            if t==tag: break
    def handle_data(self, data):
        if not self.inside or self.out: return
        self.found[-1][1 if self.heading else 2] += data

def tidy(text): return ' '.join(text.replace('\xad', '').split())

def cut(text, n): return text if len(text)<=n else text[:n].rsplit(' ', 1)[0]

def page_title(text):
    m = re.search(r'<h1 class="title">(.*?)</h1>', text, flags=re.S)
    return tidy(re.sub(r'<[^>]+>', '', m[1])) if m else ''

def description(text):
    m = re.search(r'<div class="description">(.*?)</div>', text, flags=re.S)
    return tidy(re.sub(r'<[^>]+>', '', m[1])) if m else ''

def words(text): return set(re.findall(r"[a-z0-9]+(?:[-_.][a-z0-9]+)*", text.lower()))

def is_name(heading): return re.fullmatch(r'[\w.]+', heading) is not None and ('_' in heading or '.' in heading or heading[:1].isupper())

def entries(text):
    "Of one page: [anchor, heading, text] for each section, the page itself first; and the words that the cut left out"
    secs = [[a,tidy(h),tidy(t)] for a,h,t in Sections(text).found]
    secs[0][2] = tidy(description(text)+' '+secs[0][2])
    whole = words(' '.join(t for *_,t in secs))
    res = [[a,h,cut(re.sub(r'^source ', '', t), DOC if is_name(h) else TEXT)] for a,h,t in secs if h or not a]
    return res,whole-words(' '.join(f'{h} {t}' for _,h,t in res))

def common(pages, share=.25):
    "Words that stand on so many pages that they find nothing"
    count = {}
    for _,_,_,rest in pages:
        for w in rest: count[w] = count.get(w, 0)+1
    return {w for w,n in count.items() if n>share*len(pages)}

def keywords(file):
    "Page -> words under which people look for it, as written by hand"
    said = yaml.safe_load(file.read_text(encoding='utf-8')) if file.exists() else {}
    return {re.sub(r'\.(ipynb|md)$', '.html', k): v for k,v in (said or {}).items()}

def write_index(docs, file):
    "Write `search.json`: pages as [address, title, keywords, other words, sections]"
    said,pages = keywords(file),[]
    for p in sorted(docs.rglob('*.html')):
        text = p.read_text(encoding='utf-8')
        if '<main' not in text: continue
        secs,rest = entries(text)
        pages.append((p.relative_to(docs).as_posix(), page_title(text), secs, rest))
    often = common(pages)
    lost = sorted(set(said)-{p[0] for p in pages})
    index = [[a,t,', '.join(said.get(a, [])),' '.join(sorted(w for w in rest-often if len(w)>2 and not w[0].isdigit())) if a!='names.html' else '',
              secs if a!='names.html' else secs[:1]] for a,t,secs,rest in pages]
    (docs/'search.json').write_text(json.dumps(index, ensure_ascii=False, separators=(',',':')), encoding='utf-8')
    return [f'{file.name}: there is no page {o}' for o in lost]
