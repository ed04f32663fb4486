"Coarse samples: the real parser and inpainting pipeline in tiny, labels, skips, resuming"
import numpy as np, pytest
from PIL import Image
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import DataError
from ccreid.generation.parsing import clothes_mask
from ccreid.generation.stand_ins import MannequinInpainter, MannequinParser
from ccreid.hsgl.coarse import PROMPTS, Recloth, generate_coarse_samples


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
    res = Recloth(MannequinParser(), paint, prompt, rule)(images, rows, [0]*len(rows), list(range(len(rows))))
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
    assert f'{2*(data.train.camera==0).sum()} images skipped' in capsys.readouterr().out
    with pytest.raises(DataError, match='no image'): generate_coarse_samples(data.train[:0], Blind(), MannequinInpainter(), tmp_path/'p')

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
