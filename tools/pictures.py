"Small pictures in notebooks, as JPEG or in 80 colours: `tools/pictures.py [NOTEBOOK ...]`; all of them without a name"
import argparse,base64,io,json
from pathlib import Path
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent

COLOURS,QUALITY = 80,80

def smaller(data):
    "(kind, bytes) of a PNG made smaller: a palette, or JPEG for what is like a photograph; itself where it has few colours"
    image = Image.open(io.BytesIO(data))
    if image.format!='PNG' or image.getcolors(COLOURS): return 'png', data
    about = {k: image.info[k] for k in ('dpi',) if k in image.info}
    if image.mode in ('LA','PA') or 'transparency' in image.info: image = image.convert('RGBA')
    if image.mode=='RGBA': image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image) # as on a page
    image = image.convert('RGB')
    image.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(png := io.BytesIO(), 'PNG', optimize=True, **about)
    image.save(jpeg := io.BytesIO(), 'JPEG', quality=QUALITY, optimize=True, **about)
    best = min(data, png.getvalue(), key=len)
    return ('jpeg', jpeg.getvalue()) if len(jpeg.getvalue())<.95*len(best) else ('png', best)

def shrink_outputs(nb):
    "Shrink the pictures of a notebook's content in place; bytes saved"
    saved = 0
    for cell in nb['cells']:
        for output in cell.get('outputs', []):
            data = output.get('data', {})
            if 'image/png' not in data: continue
            old = base64.b64decode(''.join(data['image/png']))
            kind,new = smaller(old)
            if len(new)>=len(old): continue
            saved += len(old)-len(new)
            del data['image/png']
            data[f'image/{kind}'] = base64.b64encode(new).decode()
    return saved

def shrink(path):
    "Shrink the pictures of a notebook's file; bytes saved"
    nb = json.loads(path.read_text(encoding='utf-8'))
    if saved := shrink_outputs(nb): path.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True)+'\n', encoding='utf-8')
    return saved

def before_saving(model, **kwargs):
    "JupyterLab's hook: `make lab` saves notebooks with small pictures"
    if model['type']=='notebook' and model['content']: shrink_outputs(model['content'])

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
