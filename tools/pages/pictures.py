"Pictures of pages: what they say to somebody who does not see them, and how large they are"
import ast,base64,html,io,json,re
from pathlib import Path
from PIL import Image

MOST = 200 # characters of a description

# --- what a picture says

def directive(source, key):
    "Value of a cell's `#| key: value`"
    m = re.search(rf'^#\|\s*{key}:\s*(.+)$', source, flags=re.M)
    if not m: return ''
    text = m[1].strip()
    return json.loads(text) if text[0]=='"' else text.strip("'")

def text_of(o):
    "Text of a string or f-string in code; what is computed becomes an ellipsis"
    if isinstance(o, ast.Constant) and isinstance(o.value, str): return o.value
    if isinstance(o, ast.JoinedStr): return ''.join(v.value if isinstance(v, ast.Constant) else '…' for v in o.values)
    return ''

TITLES = {'set_title': 0, 'title': 0, 'suptitle': 0}
LABELS = {'set_xlabel': 'xlabel', 'set_ylabel': 'ylabel', 'xlabel': 'xlabel', 'ylabel': 'ylabel'}

def plot_texts(code):
    "Titles and axis labels that a piece of matplotlib code sets"
    titles,axes = [],{}
    try: tree = ast.parse(code)
    except SyntaxError: return titles,axes
    for o in ast.walk(tree):
        if not isinstance(o, ast.Call): continue
        name = o.func.attr if isinstance(o.func, ast.Attribute) else ''
        if name in TITLES and o.args: titles.append(text_of(o.args[0]))
        if name in LABELS and o.args: axes[LABELS[name]] = text_of(o.args[0])
        if name in ('set','plot','subplots'):
            titles += [text_of(k.value) for k in o.keywords if k.arg=='title']
            axes |= {k.arg: text_of(k.value) for k in o.keywords if k.arg in ('xlabel','ylabel')}
    return [t for t in titles if t.strip('… ')],{k: v for k,v in axes.items() if v}

def sentences(markdown):
    "Sentences of a piece of Markdown, without headings, code, tables, formulas and marks"
    text = re.sub(r'```.*?```|\$\$.*?\$\$|<!--.*?-->', ' ', markdown, flags=re.S)
    lines = [l for l in text.splitlines() if not re.match(r'\s*(#|\||:::|>\s|---)', l)]
    text = re.sub(r'!\[[^\]]*\]\([^)]*\)', ' ', ' '.join(lines))
    text = re.sub(r'\[([^\]]*)\]\([^)]*\)(\{[^}]*\})?', r'\1', text)
    text = re.sub(r'[`*$\\]', '', re.sub(r'^\s*([-*]|\d+\.)\s+', '', text)).strip()
    return [o.strip() for o in re.split(r'(?<=[.:!?])\s+', text) if o.strip()]

def description(code, before):
    "What a picture shows: a plot's title and axes, else the last sentence of the text above it"
    titles,axes = plot_texts(code)
    said = next((o[-1] for t in reversed(before) if (o := sentences(t))), '')
    parts = [', '.join(dict.fromkeys(titles))] if titles else [said.rstrip(':')] if said else []
    if axes: parts.append(', '.join(f'{k[0]}: {v}' for k,v in axes.items()))
    text = ('Plot: ' if titles or axes else '')+'; '.join(p for p in parts if p)
    return text if len(text)<=MOST else text[:MOST-1].rsplit(' ', 1)[0]+'…'

def has_picture(cell): return any(k.startswith('image/') for o in cell.get('outputs', []) for k in o.get('data', {}))

def describe(cells):
    "Give every cell with a picture a `fig-alt`; where `fig-cap` says what it is, that"
    before = []
    for c in cells:
        if c.cell_type=='markdown': before.append(c.source)
        if c.cell_type!='code' or not has_picture(c) or directive(c.source, 'fig-alt'): continue
        text = directive(c.source, 'fig-cap') or description(c.source, before)
        if text: c.source = f'#| fig-alt: {json.dumps(text, ensure_ascii=False)}\n{c.source}'

# --- how large it is

def size(b):
    "Width and height at which a picture is shown, in CSS pixels: a figure has the inches it was drawn for, other images their pixels"
    if b.lstrip()[:4]==b'<svg': return tuple(round(float(re.search(rb'\b%s="([\d.]+)' % k, b)[1])) for k in (b'width',b'height'))
    im = Image.open(io.BytesIO(b))
    dpi = im.info.get('dpi', (96,))[0]
    scale = 96/dpi if dpi>100 else 1
    return round(im.width*scale),round(im.height*scale)

def sized(page, text):
    "The HTML of a page, its pictures with width and height, so that nothing moves when they arrive"
    def fit(m):
        tag = m[0]
        src = html.unescape(re.search(r'src="([^"]*)"', tag)[1])
        if re.match(r'https?:', src): return tag
        try: w,h = size(base64.b64decode(src.partition(',')[2]) if src.startswith('data:') else (Path(page).parent/src.split('?')[0]).read_bytes())
        except (OSError,TypeError): return tag # no picture that has a size in pixels, or none at all: the link check tells
        tag = re.sub(r'\s(width|height|loading)="[^"]*"', '', tag)
        return f'<img width="{w}" height="{h}"{tag[4:]}'
    return re.sub(r'<img\b[^>]*\bsrc="[^"]*"[^>]*>', fit, text)

def without_words(text):
    "Pictures of a page that say nothing"
    return [m[0][:80] for m in re.finditer(r'<img\b[^>]*>', text) if not re.search(r'\balt="[^"]*[^"\s][^"]*"', m[0])]
