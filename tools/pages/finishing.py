"What is done to pages after they are rendered: formulas and fonts from the site itself, navigation, keyboard and screen readers"
import re,shutil,subprocess,tarfile
from pathlib import Path
from . import pictures

KATEX = '0.16.11' # the version whose address smalldocs writes into pages
CDN = f'https://cdn.jsdelivr.net/npm/katex@{KATEX}/dist'
SCRIPT = 'site.js'

def up(docs, page): return '../'*len(page.relative_to(docs).parent.parts)

# --- formulas and fonts, without a network

def katex(cache, say):
    "KaTeX's files from its npm package, kept in `cache`; None where there is no npm"
    folder = cache/f'katex-{KATEX}'
    if (folder/'katex.min.js').exists(): return folder
    npm = shutil.which('npm')
    if not npm:
        say('npm is not here: formulas are read from the public address, so they need a network when a page is read')
        return None
    tmp = folder.with_suffix('.part')
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    res = subprocess.run([npm,'pack',f'katex@{KATEX}','--silent'], cwd=tmp, text=True, capture_output=True, stdin=subprocess.DEVNULL)
    tars = list(tmp.glob('*.tgz'))
    if res.returncode or not tars:
        say(f'npm could not fetch katex@{KATEX}: formulas need a network when a page is read. {res.stderr.strip()[-300:]}')
        return None
    with tarfile.open(tars[0]) as t: t.extractall(tmp, filter='data')
    shutil.rmtree(folder, ignore_errors=True)
    shutil.move(tmp/'package'/'dist', folder)
    shutil.rmtree(tmp)
    return folder

def copy_katex(docs, src):
    dest = docs/'site_libs'/'katex'
    (dest/'contrib').mkdir(parents=True, exist_ok=True)
    for o in 'katex.min.css','katex.min.js','contrib/auto-render.min.js': shutil.copy2(src/o, dest/o)
    shutil.copytree(src/'fonts', dest/'fonts', dirs_exist_ok=True, ignore=shutil.ignore_patterns('*.ttf','*.woff'))

def own_fonts(docs):
    "Themes ask Google for a font; the reader's own one does"
    for p in docs.rglob('site_libs/themes/*.css'):
        txt = p.read_text(encoding='utf-8')
        new = re.sub(r'@import\s+url\(["\']?https?:[^)]*\);?', '', txt)
        if new!=txt: p.write_text(new, encoding='utf-8')

# --- navigation

def contents(text):
    "A folded \"On this page\" below the title, for windows that have no room beside the text"
    m = re.search(r'<nav id="TOC".*?</h2>(<ul>.*?</ul>)</nav>', text, flags=re.S)
    at = text.find('</header>', text.find('id="title-block-header"'))
    if not m or at<0: return text
    links = re.sub(r' (id|class|data-scroll-target)="[^"]*"', '', m[1])
    at += len('</header>')
    return f'{text[:at]}<details class="page-contents"><summary>On this page</summary><nav aria-label="On this page, folded">{links}</nav></details>{text[at:]}'

def broken_names(text):
    "Long names in the contents beside a page break after a dot or an underscore"
    def names(m): return re.sub(r'>([^<]+)</a>', lambda a: '>'+re.sub(r'([._])(?=\w)', r'\1<wbr>', a[1])+'</a>', m[0])
    return re.sub(r'<nav id="TOC".*?</nav>', names, text, count=1, flags=re.S)

def wrapped(text):
    "Printed sentences go on in the next row; what stands in columns does not"
    def pre(m): return m[0] if re.search(r'\S {2,}\S', m[2]) else f'{m[1]}<pre class="wraps"><code>{m[2]}'
    return re.sub(r'(<div class="cell-output[^>]*>\n)<pre><code>([^<]*)', pre, text)

def section_button(m):
    "A link that opens a section of the sidebar is a button"
    attrs = re.sub(r'\s(role="navigation"|aria-label="Toggle section")', '', m[1])
    if 'sidebar-item-toggle' in attrs: return f'<button type="button" tabindex="-1" aria-hidden="true" {attrs}>{m[2]}</button>'
    return f'<button type="button" {attrs}>{m[2]}</button>'

ICON = re.compile(r'(<i\b[^>]*?)\srole="img"')
NAMED = ('<nav id="quarto-sidebar"','Pages'),('<nav id="TOC"','On this page'),('<nav class="page-navigation"','Previous and next page'), \
    ('<nav class="navbar','Site'),('<nav class="quarto-secondary-nav"','Where you are')

def accessible(text):
    "Names for regions, buttons that are buttons, a link past the navigation"
    text = re.sub(r'(<body\b[^>]*>)', r'\1<a class="skip-link" href="#quarto-document-content">Skip to the text</a>', text, count=1)
    text = text.replace('<main class="content" id="quarto-document-content"', '<main class="content" id="quarto-document-content" tabindex="-1"', 1)
    text = re.sub(r'<a (class="sidebar-item-[^>]*data-bs-toggle="collapse"[^>]*)>(.*?)</a>', section_button, text)
    text = ICON.sub(r'\1 aria-hidden="true"', text)
    text = text.replace('<a class="quarto-color-scheme-toggle nav-link" href="" title=', '<a class="quarto-color-scheme-toggle nav-link" href="" role="button" aria-label="Toggle dark mode" title=')
    text = re.sub(r'<th\b([^>]*)></th>', r'<td\1></td>', text) # the corner of a table heads nothing
    text = text.replace('<div id="quarto-margin-sidebar" ', '<div id="quarto-margin-sidebar" role="complementary" aria-label="About this page" ')
    for tag,name in NAMED: text = text.replace(tag, tag.replace('<nav', f'<nav aria-label="{name}"'))
    text = re.sub(r'<nav class="quarto-page-breadcrumbs quarto-title-breadcrumbs([^>]*)aria-label="breadcrumb"', r'<nav class="quarto-page-breadcrumbs quarto-title-breadcrumbs\1aria-label="Sections above"', text)
    return text

def own_search(text, to_root):
    "Our script searches and scrolls; the search box is its own"
    text = re.sub(r'<script src="[^"]*fuse\.min\.js"></script>', '', text)
    text = text.replace('class="smalldocs-search"', 'class="site-search"').replace('smalldocs-search-results', 'site-search-results')
    return text.replace('</head>', f'<script src="{to_root}{SCRIPT}" defer></script></head>', 1)

def finish(docs, cache, script, say):
    "All of it, page by page"
    formulas,n = katex(cache, say),0
    for p in sorted(docs.rglob('*.html')):
        text = p.read_text(encoding='utf-8')
        if formulas and CDN in text: text,n = text.replace(CDN, f'{up(docs, p)}site_libs/katex'),n+1
        if '<main' in text: text = own_search(accessible(wrapped(broken_names(contents(text)))), up(docs, p))
        text = pictures.sized(p, text)
        if p.parent.name=='data_cards': text = re.sub(r'(/(?:blob|edit)/[^"]*?)nbs/(data_cards/)', r'\1\2', text) # cards lie at the top
        p.write_text(text, encoding='utf-8')
    if n: copy_katex(docs, formulas); say(f'{n} pages with formulas, KaTeX {KATEX} copied into the site')
    own_fonts(docs)
    shutil.copy2(script, docs/SCRIPT)
    shutil.rmtree(docs/'site_libs'/'fuse', ignore_errors=True)

# --- what a page must not do

def asked_of_others(text):
    "Addresses outside the site that a browser would ask by itself: styles, scripts, pictures, frames"
    tags = re.findall(r'<(?:link\b(?=[^>]*rel="(?:stylesheet|icon|preload)")|script|img|iframe|source|video)\b[^>]*', text)
    return [u for t in tags for u in re.findall(r'\b(?:href|src)="((?:https?:)?//[^"]+)"', t)]

def asked_by_css(text): return re.findall(r'(?:@import\s+|url\()\s*["\']?((?:https?:)?//[^"\')\s;]+)', text)
