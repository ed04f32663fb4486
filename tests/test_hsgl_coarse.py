"Coarse samples: the real parser and inpainting pipeline in tiny, labels, skips, odd pictures, resuming"
import inspect
import numpy as np, pandas as pd, pytest
from PIL import Image
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import DataError
from ccreid.data.transforms import read_image
from ccreid.generation.parsing import clothes_mask
from ccreid.generation.stand_ins import MannequinInpainter, MannequinParser
from ccreid.generation.recloth import Recloth
from ccreid.hsgl.coarse import PROMPTS, coarse_edit, generate_coarse_samples


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return MannequinWorld(identities=(3,0,2), images=1, size=(64,32), seed=4).write(tmp_path_factory.mktemp('w')/'w', layout='prcc')

class Watching(MannequinInpainter):
    def __call__(self, images, masks, prompts, seeds, rows=None):
        self.seen = [(len(images), prompts, [m.shape for m in masks])]
        return super().__call__(images, masks, prompts, seeds, rows)

@pytest.mark.parametrize('prompt,text', [('paper',PROMPTS['paper']), ('released',PROMPTS['released']), ('a red coat','a red coat')])
@pytest.mark.parametrize('rule', ['released','paper'])
def test_masks_and_texts_reach_the_painter_and_the_rest_stays(data, prompt, text, rule):
    rows = data.train.to_dict('records')
    images = [Image.open(r['path']).convert('RGB') for r in rows]
    paint = Watching()
    res = coarse_edit(MannequinParser(), paint, prompt, rule)(images, rows, [0]*len(rows), list(range(len(rows))))
    assert paint.seen==[(len(rows), text, [(64,32)]*len(rows))]
    for im,m,out in zip(images, MannequinParser()(images, rows=rows), res):
        keep = ~clothes_mask(m, rule)
        assert keep.any() and (np.asarray(im)[keep]==np.asarray(out)[keep]).all() and (np.asarray(im)!=np.asarray(out)).any()

def test_labels_and_bytes_do_not_depend_on_batch_or_shard(data, tmp_path):
    make = lambda out,**kw: generate_coarse_samples(data.train, MannequinParser(), MannequinInpainter(), tmp_path/out, 3, progress=False, **kw)
    a = make('a', batch=4)
    make('b', batch=1, shard=(1,2)); b = make('b', batch=7, shard=(0,2))
    assert len(a)==len(b)==3*len(data.train)
    for x,y in zip(a.itertuples(), b.itertuples()):
        assert (x.identity,x.camera,x.clothes,x.variant,x.source,x.split)==(y.identity,y.camera,-1,y.variant,y.source,'train')
        assert open(x.path, 'rb').read()==open(y.path, 'rb').read()
    source = data.train.set_index('path')
    for x in a.itertuples(): assert (x.identity, x.camera)==tuple(source.loc[x.source, ['identity','camera']])
    per = a.groupby('source').path.apply(lambda ps: len({Image.open(p).tobytes() for p in ps}))
    assert (per==3).all()                                                       # another seed, another outfit

def test_an_image_without_clothes_is_skipped_and_counted(data, tmp_path, capsys):
    class Blind(MannequinParser):
        def __call__(self, images, rows=None):
            return [m*(r['camera']!=0) for m,r in zip(super().__call__(images, rows), rows)]
    res = generate_coarse_samples(data.train, Blind(), MannequinInpainter(), tmp_path/'o', 2, progress=False)
    assert 0 not in set(res.camera) and len(res)==2*(data.train.camera!=0).sum()
    n = 2*(data.train.camera==0).sum()
    assert f'{n} images skipped: {n} no clothes found' in capsys.readouterr().out
    with pytest.raises(DataError, match='no image'): generate_coarse_samples(data.train[:0], Blind(), MannequinInpainter(), tmp_path/'p')

def test_texts_and_numbers_of_the_paper(data):
    assert PROMPTS==dict(paper='generate a new cloth for the person', released='change the outfit of the person')
    defaults = {k: p.default for k,p in inspect.signature(generate_coarse_samples).parameters.items()}
    assert (defaults['variants'], defaults['prompt'])==(10, 'paper') and coarse_edit(MannequinParser(), Watching()).prompt==PROMPTS['paper']

def test_of_two_people_the_larger_is_dressed():
    "Two drawn people side by side, the second at half the size: only the first one's clothes reach the painter"
    m = MannequinWorld(identities=2, size=(128,64), seed=4).render(0)
    small = np.asarray(Image.fromarray(m.parsing).resize((32,64), Image.Resampling.NEAREST))
    two = np.concatenate([np.pad(small, ((40,24),(0,0))), m.parsing], 1)
    seen = []
    def paint(images, masks, prompts, seeds, rows=None): seen.extend(masks); return images
    Recloth(lambda images, rows=None: [two], paint, '')([Image.new('RGB', (96,128))], [{}], [0], [0])
    assert clothes_mask(two)[:,:32].any() and not seen[0][:,:32].any() and np.array_equal(seen[0][:,32:], clothes_mask(m.parsing))

def test_another_text_is_another_job(data, tmp_path):
    make = lambda **kw: generate_coarse_samples(data.train, MannequinParser(), MannequinInpainter(), tmp_path/'o', 1, progress=False, **kw)
    make()
    with pytest.raises(FileExistsError): make(prompt='released')

def test_the_real_pipeline_in_tiny(data, tmp_path):
    "transformers parses, diffusers paints; random weights, so any class may be found"
    pytest.importorskip('diffusers'); pytest.importorskip('transformers')
    from ccreid.generation.inpainting import tiny_inpainter
    from ccreid.generation.parsing import tiny_parser
    parser,paint = tiny_parser(),tiny_inpainter()
    images = [Image.open(p).convert('RGB') for p in data.train.path]
    masks = [clothes_mask(m) for m in parser(images)]
    some = np.array([m.any() for m in masks])
    res = generate_coarse_samples(data.train, parser, paint, tmp_path/'o', 1, progress=False)
    assert some.any() and res.source.tolist()==data.train.path[some].tolist()
    for p,im,m in zip(res.path, [im for im,s in zip(images, some) if s], [m for m in masks if m.any()]):
        out,im = np.asarray(Image.open(p)),np.asarray(im)
        assert (out[~m]==im[~m]).all() and (out[m]!=im[m]).any()

def test_odd_pictures(tmp_path, capsys):
    "Grey, CMYK, 16 bits and a palette are painted in as they are read; nobody on it, torn or missing are skipped with the reason; a map of another size stops the job in one line"
    from ccreid.generation.inpainting import tiny_inpainter
    m = MannequinWorld(identities=2, size=(64,32), seed=4).render(0)
    grey = np.asarray(m.image.convert('L'))
    pictures = {'1.png':m.image.convert('L'), '2.jpg':m.image.convert('CMYK'), '3.png':Image.fromarray(grey.astype(np.uint16)*257), '4.png':m.image.convert('P'),
        '5.png':Image.new('RGB', (32,64), 'white')}
    for name,im in pictures.items(): im.save(tmp_path/name)
    (tmp_path/'6.png').write_bytes((tmp_path/'1.png').read_bytes()[:400])
    names = [*pictures, '6.png', '7.png']
    table = pd.DataFrame(dict(dataset='odd', path=[str(tmp_path/n) for n in names], identity=0, clothes=0, camera=0, modality='visible', split='train'))
    def parser(images, rows=None): return [m.parsing if len(np.unique(im))>1 else np.zeros((64,32), np.uint8) for im in images]
    res = generate_coarse_samples(table, parser, tiny_inpainter(), tmp_path/'o', 1, progress=False)
    assert res.source.tolist()==table.path[:4].tolist()
    said = capsys.readouterr().out
    assert '3 images skipped' in said and all(w in said for w in ('1 no clothes found','truncated','no such file'))
    mask = clothes_mask(m.parsing)
    for p,s in zip(res.path, res.source):
        out,im = np.asarray(Image.open(p)),np.asarray(read_image(s))
        assert out.shape==(64,32,3) and (out[~mask]==im[~mask]).all() and (out[mask]!=im[mask]).any()
    assert np.array_equal(np.asarray(read_image(res.source[2]))[...,0], grey)
    def other(images, rows=None): return [m.parsing[:32] for _ in images]
    with pytest.raises(ValueError, match='the mask is 32×32, the image 64×32') as e: generate_coarse_samples(table[:1], other, tiny_inpainter(), tmp_path/'p', 1, progress=False)
    assert '\n' not in str(e.value)
