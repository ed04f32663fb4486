"Pictures inside notebooks in 256 colours: `tools/pictures.py [NOTEBOOK ...]`; all of them without a name. Text and tables stay"
import argparse,base64,io,json
from pathlib import Path
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent

def smaller(data):
    "A PNG with a palette of 256 colours; the same bytes where that would not be smaller, or where it has a palette"
    image = Image.open(io.BytesIO(data))
    if image.format!='PNG' or image.mode in ('P','1','L'): return data
    about = {k: image.info[k] for k in ('dpi',) if k in image.info}
    if image.mode=='RGBA': # figures are drawn on white
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image)
    found = image.convert('RGB').quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    found.save(out := io.BytesIO(), 'PNG', optimize=True, **about)
    return min(data, out.getvalue(), key=len)

def shrink(path):
    "Shrink the pictures of a notebook; bytes saved"
    text = path.read_text(encoding='utf-8')
    nb,saved = json.loads(text),0
    for cell in nb['cells']:
        for output in cell.get('outputs', []):
            data = output.get('data', {})
            if 'image/png' not in data: continue
            old = ''.join(data['image/png'])
            raw = base64.b64decode(old)
            if (new := smaller(raw)) is raw or len(new)>=len(raw): continue
            saved += len(raw)-len(new)
            text = text.replace(json.dumps(old)[1:-1], json.dumps(base64.b64encode(new).decode()+('\n' if old.endswith('\n') else ''))[1:-1])
    if saved: path.write_text(text, encoding='utf-8')
    return saved

def notebooks():
    "All notebooks of the site"
    inside = lambda p: not any(o[0] in '._' for o in p.relative_to(ROOT/'nbs').parts)
    return sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if inside(p))

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('notebooks', nargs='*', type=Path)
    total = sum(shrink(p) for p in parser.parse_args().notebooks or notebooks())
    print(f'{total/1e6:.2f} MB saved; {sum(p.stat().st_size for p in notebooks())/1e6:.2f} MB of notebooks')

if __name__=='__main__': main()
