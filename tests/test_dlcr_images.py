"DLCR's images: the draw of clothes, words, edits, tiles, labels, terms; bad input, killing and going on"
import json
from collections import Counter
from pathlib import Path
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from ccreid.data.images import glance, read_image
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import DataError
from ccreid.data.strips import tile_of, tile_path
from ccreid.dlcr.edits import PlainEdit, Recolourer, masked_edit
from ccreid.dlcr.generating import WORDS, quickly, read_words
from ccreid.dlcr.targets import Targets, draw_targets
from ccreid.dlcr.tiles import read_lines, read_released, read_tiles, write_released, write_tiles
from ccreid.generation.descriptions import Description
from ccreid.generation.inpainting import ClothesInpainter, tiny_pipeline
from ccreid.generation.jobs import LABELS, Networks, StandIns, add_samples, generate, label_by, read_generated
from ccreid.generation.stand_ins import MannequinInpainter
from ccreid.generation.terms import reminder, terms_of
from ccreid.generation.tiny_networks import tiny_unet

# -- the draw

@given(st.sets(st.integers(0, 400), min_size=2, max_size=60), st.integers(0, 2**40), st.text(max_size=20), st.data())
@settings(max_examples=60, deadline=None)
def test_clothes_are_different_never_the_own_and_nested(clothes, seed, name, data):
    own = data.draw(st.sampled_from(sorted(clothes)) | st.just(-1))
    n = len(clothes-{own})
    drawn = draw_targets(f'a/{name}', own, clothes, n, seed)
    assert sorted(drawn)==sorted(clothes-{own})
    k = data.draw(st.integers(1, n))
    assert draw_targets(f'/else/where/a/{name}', own, [*clothes]*2, k, seed)==drawn[:k]
    with pytest.raises(DataError, match='other clothes cannot be drawn'): draw_targets(f'a/{name}', own, clothes, n+1, seed)
    with pytest.raises(DataError): draw_targets(f'a/{name}', own, clothes, 0, seed)

def test_ordered_pairs_of_clothes_come_alike_often():
    "K = 2 of four others: each of the 12 ordered pairs, by chi square"
    count = Counter(tuple(draw_targets(f'd/{i}.jpg', 4, range(5), 2)) for i in range(6000))
    assert len(count)==12 and sum((n-500)**2/500 for n in count.values())<31.3 # 99.9 % with 11 degrees

def test_a_draw_is_the_images_own():
    a,b = ([draw_targets(f'd/{i}.jpg', 0, range(30), 10, s) for i in range(50)] for s in (0,1))
    assert len({tuple(o) for o in a+b})==100 and a==[draw_targets(f'd/{i}.jpg', 0, range(30), 10) for i in range(50)]

def test_targets_ask_in_the_words_of_the_clothes():
    words = {c: Description(f'a {w} shirt') for c,w in enumerate(('red','blue','green','grey'))} | {9: Description()}
    t = Targets(words, seed=3)
    rows = [dict(path=f'd/{i}.jpg', clothes=i%4, split='train') for i in range(20)]
    for v in range(3):
        for r,text in zip(rows, t(rows, [v]*20)):
            assert text.notes['target']==draw_targets(r['path'], r['clothes'], range(4), 3, 3)[v]!=r['clothes']
            assert text==words[text.notes['target']].text()                    # 9 has no words: it is never drawn
    same = Targets(words, shared=True)
    first = [same.of(dict(path=f'd/{i}', clothes=7, split='query'), 0).notes['target'] for i in range(9)]
    assert len(set(first))==1

# -- edits

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    return MannequinWorld(identities=(6,0,3), images=1, size=(64,32), seed=4).write(tmp_path_factory.mktemp('w')/'w', layout='prcc')

def opened(rows): return [read_image(r['path']) for r in rows]

@pytest.mark.parametrize('fill,changed', [(5,True), (0,False)])
def test_a_full_mask_and_an_empty_one(world, fill, changed):
    rows = world.train[:2].to_dict('records')
    images = opened(rows)
    parser = lambda images, rows=None: [np.full((64,32), fill, np.uint8) for _ in images]
    painted = lambda images, masks, prompts, seeds, rows=None: [Image.new('RGB', im.size, 'red') if m.any() else None for im,m in zip(images, masks)]
    for got in masked_edit(parser, painted, 'a red coat')(images, rows, [0,0], [1,2]):
        assert (got.getcolors()==[(64*32, (255,0,0))]) if changed else str(got)=='no clothes found'
    for im,got in zip(images, Recolourer()(images, [np.full((64,32), bool(fill))]*2, '', [1,2])):
        assert got is None if not changed else (np.asarray(got)!=np.asarray(im)).any(-1).mean()>.9

@given(st.integers(0, 2**47))
@settings(max_examples=25, deadline=None)
def test_another_colour_keeps_light_and_what_is_outside(seed):
    rng = np.random.default_rng(seed)
    image,mask = Image.fromarray(rng.integers(0, 256, (9,7,3)).astype(np.uint8)),rng.random((9,7))<.5
    mask[0,0] = True
    new = np.asarray(Recolourer()([image], [mask], [''], [seed])[0]).astype(int)
    old = np.asarray(image).astype(int)
    assert (new[~mask]==old[~mask]).all() and np.abs(new.max(-1)-old.max(-1)).max()<=3
    assert np.array_equal(new, np.asarray(Recolourer()([image], [mask], [''], [seed])[0]))

def test_a_plain_picture_has_no_mask_and_its_strength_on_record(world):
    "A tiny image-to-image pipeline of the real class: nothing of the source is put back"
    pytest.importorskip('transformers'); pytest.importorskip('diffusers')
    import ccreid.compat
    from diffusers import StableDiffusionImg2ImgPipeline
    parts = dict(tiny_pipeline().components, unet=tiny_unet(4), requires_safety_checker=False, image_encoder=None)
    paint = ClothesInpainter(StableDiffusionImg2ImgPipeline(**parts), size=(64,32), steps=4, strength=.5, whole=True, device='cpu')
    targets = Targets({c: Description(f'a shirt of kind {c}') for c in range(12)})
    edit,rows = PlainEdit(paint, targets),world.train[:3].to_dict('records')
    got = edit(opened(rows), rows, [0,1,2], [5,6,7])
    assert edit.settings['painter']['strength']==.5 and edit.settings['painter']['whole'] and edit.settings['mask']=='none'
    assert [n['prompt'] for _,n in got]==[str(t) for t in targets(rows, [0,1,2])] and all(n['target']!=r['clothes'] for (_,n),r in zip(got, rows))
    direct = paint(opened(rows), None, [n['prompt'] for _,n in got], [5,6,7])
    assert [a.tobytes() for a,_ in got]==[b.tobytes() for b in direct]
    for (new,_),old in zip(got, opened(rows)): assert new.size==old.size and (np.asarray(new)!=np.asarray(old)).any(-1).mean()>.9

# -- jobs

def make(world, out, **kw): return generate(kw.pop('kind', 'dlcr'), world, out, StandIns(), progress=False, **kw)

def test_batches_shards_and_kills_give_the_same_files(world, tmp_path, monkeypatch):
    whole = make(world, tmp_path/'a', variants=3)
    make(world, tmp_path/'b', variants=3, shard=(1,2), batch=1)
    calls = []
    def dies(self, *args, **kw):
        calls.append(1)
        if len(calls)==3: raise KeyboardInterrupt
        return paint(self, *args, **kw)
    paint = MannequinInpainter.__call__
    monkeypatch.setattr(MannequinInpainter, '__call__', dies)
    with pytest.raises(KeyboardInterrupt): make(world, tmp_path/'b', variants=3, shard=(0,2), batch=4)
    monkeypatch.setattr(MannequinInpainter, '__call__', paint)
    parts = make(world, tmp_path/'b', variants=3, shard=(0,2), batch=4)
    assert parts.attrs['expansion']['left']==0 and len(parts)==len(whole)==3*len(world.train)
    for x,y in zip(whole.itertuples(), parts.itertuples()):
        assert (x.source, x.variant, x.target, x.prompt, x.clothes)==(y.source, y.variant, y.target, y.prompt, -1)
        assert Path(x.path).read_bytes()==Path(y.path).read_bytes()

def test_words_are_made_once_and_may_be_given(world, tmp_path):
    make(world, tmp_path/'a', variants=1)
    class Silent(StandIns):
        @property
        def describer(self): raise AssertionError('asked again')
    again = generate('dlcr', world, tmp_path/'a', Silent(), variants=2, progress=False)
    asked = generate('dlcr-queries', world, tmp_path/'q', Silent(), variants=2, words=str(tmp_path/'a'), progress=False)
    words = read_words(tmp_path/'a', world)
    assert set(asked.prompt)<={d.text() for d in words.values()} and not (tmp_path/'q'/WORDS).exists()
    assert len(again)==2*len(world.train) and set(asked.split)=={'query'} and set(asked.source)==set(world.query.path)
    with pytest.raises(FileExistsError, match='another job'):                  # other words, another job
        (tmp_path/'own.json').write_text(json.dumps({str(c): f'shirt {c} | jeans | shoes' for c in range(12)}))
        make(world, tmp_path/'a', variants=2, words=str(tmp_path/'own.json'))

@pytest.mark.parametrize('content,why', [('{"77": "a | b | c"}','clothes 77, which nobody'), ('{"0": "a shirt"}','is damaged'),
                                         ('[1]','it holds list'), ('{"x": "a | b | c"}','is damaged'), ('{',r'w\.json')])
def test_words_that_do_not_fit(world, tmp_path, content, why):
    (tmp_path/'w.json').write_text(content)
    with pytest.raises(DataError, match=why): read_words(tmp_path/'w.json', world)
    with pytest.raises(FileNotFoundError): read_words(tmp_path/'none.json', world)

def test_clothes_without_words_are_never_drawn(world, tmp_path, capsys):
    (tmp_path/'w.json').write_text(json.dumps({str(c): f'a shirt of kind {c} | jeans | shoes' for c in range(5)} | {'5': ' | | '}))
    made = make(world, tmp_path/'o', variants=4, words=str(tmp_path/'w.json'))
    assert set(made.target)=={0,1,2,3,4}
    with pytest.raises(DataError, match='5 other clothes are wanted for each image, 4 are described'): make(world, tmp_path/'p', variants=5, words=str(tmp_path/'w.json'))

def test_labels_are_the_targets_where_that_is_asked_for(world, tmp_path):
    a = make(world, tmp_path/'a', variants=2, labels='target')
    b = read_generated(tmp_path/'a', world)
    assert a.clothes.tolist()==b.clothes.tolist()==b.target.tolist() and add_samples(world, b).clothes==world.clothes
    assert set(make(world, tmp_path/'a', variants=2).clothes)=={-1}==set(read_generated(tmp_path/'a', world).clothes)
    for column in ('nothing','camera_','prompt'):
        label_by(tmp_path/'a', column)
        with pytest.raises(DataError, match='no column of clothes'): read_generated(tmp_path/'a', world)
    (tmp_path/'a'/LABELS).write_text('{')
    with pytest.raises(DataError): read_generated(tmp_path/'a', world)

def test_queries_are_painted_quickly_unless_told_otherwise():
    plain,told = Networks('cpu'),Networks('cpu', **{'inpainter.steps': '50'})
    for n in (plain,told): quickly(n)
    assert plain.set=={('inpainter','size'): '384x128', ('inpainter','steps'): '10'} and told.set['inpainter','steps']=='50'
    quickly(StandIns()); quickly(object())

# -- tiles

def strip_of(n, size=(6,4), seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (size[1],size[0],3)).astype(np.uint8)) for _ in range(n)]

@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**30))
@settings(max_examples=30, deadline=None)
def test_tiles_come_back_bit_for_bit(tmp_path_factory, n, w, h, seed):
    path,images = tmp_path_factory.mktemp('t')/'s.png',strip_of(n, (w,h), seed)
    words = [Description(f'a shirt of kind {i}', 'jeans'*(i%2), 'shoes') for i in range(n)]
    write_tiles(path, images, words)
    got = read_tiles(path)
    assert [t.tobytes() for t in got]==[im.tobytes() for im in images] and read_lines(path.with_suffix('.txt'))==words
    for i in range(n): assert read_image(tile_path(path, i, n)).tobytes()==images[i].tobytes()

def test_odd_strips_and_texts(tmp_path):
    path = tmp_path/'s.png'
    write_tiles(path, strip_of(10))
    assert len(read_tiles(path))==10 and not path.with_suffix('.txt').exists()
    path.with_suffix('.txt').write_text('\n\n  Blue Shirt|jeans  |  White Shoes.\nshirt | pants | shoes\n\n')
    assert read_lines(path.with_suffix('.txt'))==[Description('blue shirt','jeans','white shoes'), Description('shirt','pants','shoes')]
    assert [t.size for t in read_tiles(path)]==[(30,4)]*2
    with pytest.raises(DataError, match='60 pixels wide, which are not 7 tiles'): read_tiles(path, 7)
    path.with_suffix('.txt').write_text('\n')
    with pytest.raises(DataError, match='describes no tile'): read_tiles(path)
    path.with_suffix('.txt').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(DataError, match='it is no text'): read_tiles(path)
    with pytest.raises(DataError, match='cannot read the image'): read_tiles(tmp_path/'none.png', 10)
    with pytest.raises(ValueError, match='one each'): write_tiles(path, strip_of(3), [Description()]*2)
    with pytest.raises(ValueError, match='at least one'): write_tiles(path, [])

def test_a_path_that_is_really_called_so_is_a_file(tmp_path):
    odd = tmp_path/'x.png#tile1of2'
    Image.new('RGB', (4,2), 'red').save(odd, 'PNG')
    assert tile_of(str(odd))==(str(odd), 0, 1) and read_image(str(odd)).size==(4,2)
    Image.new('RGB', (4,2), 'blue').save(tmp_path/'y.png')
    assert read_image(tile_path(tmp_path/'y.png', 1, 2)).size==(2,2) and glance(tile_path(tmp_path/'y.png', 1, 2)) is None
    with pytest.raises(DataError, match='not 3 tiles'): read_image(tile_path(tmp_path/'y.png', 1, 3))
    assert 'no such file' in glance(tile_path(tmp_path/'z.png', 1, 2))

@pytest.mark.parametrize('cut,ending', [(0,'.png'), (1,'.png'), (1,'.jpg')])
def test_the_published_layout_is_read_where_it_lies(world, tmp_path, cut, ending, capsys):
    made = make(world, tmp_path/'job', variants=8)
    n = write_released(made, world, tmp_path/'all')
    start = tmp_path/'all'
    for _ in range(cut): start = next(p for p in start.iterdir() if p.is_dir())
    if ending=='.jpg':
        for p in list(start.rglob('*.png')): Image.open(p).save(p.with_suffix('.jpg'), quality=100); p.unlink()
    back = read_generated(start, world)
    assert n==len(world.train) and len(back)==8*n and set(back.generated_by)=={'DLCR'} and back.attrs['expansion']['elsewhere']==0
    at = made.set_index(['source','variant'])
    for r in back.iloc[::9].itertuples():
        here,there = np.asarray(read_image(r.path)).astype(int),np.asarray(read_image(at.path[r.source,r.variant])).astype(int)
        assert here.shape==there.shape and (ending=='.jpg' or (here==there).all())
        assert r.prompt.split(' | ')[0].strip() in at.prompt[r.source,r.variant]
    victim = sorted(start.rglob('*'+ending))[0]
    Image.new('RGB', (31,5)).save(victim)
    assert len(again := read_generated(start, world))==8*(n-1) and again.attrs['expansion']['damaged']==1
    assert '1 strips are left out' in capsys.readouterr().out
    strip = sorted(start.rglob('*'+ending))[1]
    strip.with_suffix('.txt').write_text('a shirt | jeans | boots\n'*4)      # four lines beside eight tiles: every tile would show two people
    assert len(again := read_generated(start, world))==8*(n-2) and again.attrs['expansion']['damaged']==2
    victim.unlink()
    assert len(read_generated(start, world))==8*(n-2) and '4 tiles of 64×64 pixels' in capsys.readouterr().out.splitlines()[-1]
    assert read_released(tmp_path/'job', world) is None

# -- terms

def test_the_terms_of_the_source_are_on_record(world, tmp_path):
    make(world, tmp_path/'o', variants=1, limit=1)
    job = json.loads((tmp_path/'o'/'images'/'job.json').read_text())
    assert list(job['terms'])==sorted(set(world.train.dataset))
    assert terms_of(['LTCC'])['LTCC']['redistribution']=='forbidden' and 'LTCC: do not pass' in reminder(['LTCC'])
    assert terms_of(['CCVID'])['CCVID']['redistribution'].startswith('allowed') and reminder(['CCVID'])==''
