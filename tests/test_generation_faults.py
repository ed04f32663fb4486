"Failed generation, damaged records, wrong clocks; worlds killed at every step, drawing processes, and what readers say of damaged files"
import errno
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from ccreid.data.mannequins import MannequinWorld, find_scene
from ccreid.data.mannequins import drawing_files, placing
from ccreid.data.mannequins.placing import MANIFEST, write_folder
from ccreid.data.samples import DataError, make_table
from ccreid.generation import records
from ccreid.generation.edits import FAULTS, SkipImage, fault, to_picture
from ccreid.generation.expansion import expand, read_expansion
from ccreid.generation.inpainting import ClothesInpainter
from ccreid.generation.records import read_manifest
from ccreid.hsgl import generating
from ccreid.hsgl.garments import GarmentLibrary, collect_garments
from ccreid.generation.idm_vton import tiny_idm_vton
from ccreid.generation.try_off import DiffusionTryOff

fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')

def picture(seed, size=(8,12)): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1],3), np.uint8))

def people(root, n=4):
    rows = []
    for i in range(n):
        p = Path(root)/f'{i:03d}'/'a.png'
        p.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(p)
        rows.append(dict(dataset='own', path=str(p), identity=i, clothes=i, camera=i%2, split='train'))
    return make_table(rows)

def noisy(images, rows, variants, seeds): return [picture(s, im.size) for im,s in zip(images, seeds)]

def run(table, out, edit=noisy, variants=2, **kw): return expand(table, edit, out, variants, **{'generated_by':'noisy', 'progress':False, **kw})
def contents(out): return {p.relative_to(out).as_posix(): p.read_bytes() for p in Path(out).rglob('*.png')}
def about(res): return res.attrs['expansion']
def one_line(e, *words):
    assert '\n' not in str(e.value) and all(w in str(e.value) for w in words), str(e.value)

def child(f):
    pid = os.fork()
    if pid: return pid
    code = 1
    try: f(); code = 0
    except BaseException as e: os.write(2, f'{type(e).__name__}: {e}\n'.encode())
    finally: os._exit(code)

def wait(pid): return os.waitpid(pid, 0)[1]

@pytest.fixture(scope='module')
def table(tmp_path_factory): return people(tmp_path_factory.mktemp('in'))

@pytest.fixture(scope='module')
def whole(table, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')/'o'
    run(table, out)
    return contents(out)


# --- results that are none

BAD = {'the result is all black': lambda im: Image.new('RGB', im.size), 'the result is of a single colour': lambda im: Image.new('L', im.size, 200),
       'the edit changed nothing': lambda im: im, 'the result is too small': lambda im: Image.new('RGB', (0,4))}

@pytest.mark.parametrize('reason', BAD)
def test_a_failed_result_is_skipped_found_again_and_tried_again(table, whole, tmp_path, capsys, reason):
    calls = []
    def edit(images, rows, variants, seeds):
        calls.extend(variants)
        return [BAD[reason](im) if r['camera']==1 and v==0 else o for im,r,v,o in zip(images, rows, variants, noisy(images, rows, variants, seeds))]
    for k in range(2):
        res = run(table, tmp_path/'o', edit)
        assert about(res)==dict(made=6*(1-k), found=6*k, damaged=0, skipped={reason:2}) and f'2 images skipped: 2 {reason}' in capsys.readouterr().out
        assert len(res)==6==len(contents(tmp_path/'o'))==len(read_expansion(tmp_path/'o', table))
    assert len(calls)==8
    res = run(table, tmp_path/'o', edit, retry=True)                          # fails again: counted again, written down once
    assert len(calls)==10 and about(res)['skipped']=={reason:2} and len((tmp_path/'o/manifest-000-of-001.jsonl').read_text().splitlines())==8
    assert about(run(table, tmp_path/'o', retry=True))==dict(made=2, found=6, damaged=0, skipped={}) and contents(tmp_path/'o')==whole

@given(st.integers(0,5), st.integers(0,5), st.integers(1,30), st.integers(1,30), st.integers(0,2), st.integers(0,2), st.booleans(), st.sets(st.sampled_from(FAULTS)))
def test_faults_by_a_plain_loop(w, h, sw, sh, flat, sflat, same, accept):
    def draw(w, h, flat, seed):
        a = np.random.default_rng(seed).integers(0, 256, (h,w,3), np.uint8)
        return Image.fromarray(a*0+[0,0,90][flat] if flat else a) if w and h else Image.new('RGB', (w,h))
    source = draw(sw, sh, sflat, 0)
    image = source.copy() if same else draw(w, h, flat, 1)
    pixels,own = [im.getpixel((x,y)) for im in (image,) for y in range(im.height) for x in range(im.width)],[source.getpixel((x,y)) for y in range(sh) for x in range(sw)]
    want = set()
    if not pixels: want = {'small'}
    else:
        if 4*min(image.size)<min(sw,sh): want.add('small')
        if all(p==pixels[0] for p in pixels): want.add('plain')
        if image.size==source.size and pixels==own: want.add('unchanged')
        want -= accept
    said = fault(image, source, accept)
    assert bool(said)==bool(want)
    if said: assert next(f for f in FAULTS if f in want)==dict(small='small', black='plain', colour='plain', nothing='unchanged')[said.split()[-1]]

def test_black_sources_are_named_as_such(tmp_path, capsys):
    table = people(tmp_path/'in', 2)
    Image.new('RGB', (8,12)).save(table.path[0])
    run(table, tmp_path/'o', lambda ims, *a: [Image.new('RGB', im.size) for im in ims], 1)
    assert '1 source and result are all black' in (said := capsys.readouterr().out) and '1 the result is all black' in said

def test_what_an_edit_means_to_give_is_accepted(table, tmp_path, capsys):
    class Same:
        generated_by,accept = 'same',('unchanged',)
        def __call__(self, images, *a): return images
    assert len(expand(table, Same(), tmp_path/'o', 1, progress=False))==4
    plain = lambda ims, *a: [Image.new('RGB', im.size) for im in ims]
    for k in range(2): assert about(run(table, tmp_path/'p', plain, accept='plain'))['made']==8*(1-k)     # found again, too
    assert len(read_expansion(tmp_path/'p', table))==8
    with pytest.raises(DataError, match='accept names faults, which are small, plain, unchanged, not black') as e: run(table, tmp_path/'q', accept=['black'])
    one_line(e); assert not (tmp_path/'q').exists()

def test_black_pictures_of_before_are_damaged_and_made_again(table, whole, tmp_path):
    "As a version wrote them that looked at nothing"
    def some(images, rows, variants, seeds): return [Image.new('RGB', (8,12)) if r['camera'] else o for r,o in zip(rows, noisy(images, rows, variants, seeds))]
    run(table, tmp_path/'o', some, accept='plain')
    log = tmp_path/'o'/'manifest-000-of-001.jsonl'
    log.write_text(log.read_text().replace(', "accepted": "plain"', ''))
    res = read_expansion(tmp_path/'o', table)
    assert about(res)==dict(made=0, found=4, damaged=4, skipped={}, elsewhere=0) and set(res.camera)=={0}
    assert about(run(table, tmp_path/'o'))==dict(made=4, found=4, damaged=4, skipped={}) and contents(tmp_path/'o')==whole

def test_good_images_are_written_as_ever(table, whole, tmp_path):
    run(table, tmp_path/'o')
    lines = [json.loads(l) for l in (tmp_path/'o/manifest-000-of-001.jsonl').read_text().splitlines()]
    assert all(list(l)==['source','variant','seed','file','bytes','sha256','source_bytes','source_sha256','time'] for l in lines) and contents(tmp_path/'o')==whole
    for lock in (tmp_path/'o').glob('*.lock'): lock.unlink()                  # the folder of a version that locked the manifest itself
    assert about(run(table, tmp_path/'o'))==dict(made=0, found=8, damaged=0, skipped={})


# --- values that are no numbers

class Pipe:
    "An inpainting pipeline of diffusers that gives what it is told"
    def __init__(self, results): self.results = results
    def to(self, *a): return self
    def set_progress_bar_config(self, **k): pass
    def __call__(self, prompt, **k): return SimpleNamespace(images=[self.results.pop(0) for _ in prompt])

def test_overflow_and_black_squares_do_not_hide_behind_the_mask():
    good = np.random.default_rng(0).random((16,8,3)).astype(np.float32)
    nan = good.copy(); nan[3,2,1] = np.nan
    paint = ClothesInpainter(Pipe([good, nan, np.zeros_like(good), np.full_like(good, np.inf)]), size=(16,8), batch=1, device='cpu')
    mask = np.zeros((12,8), bool); mask[4:8] = True
    res = paint([picture(i) for i in range(4)], [mask]*4, 'a coat', [0]*4)
    assert [str(o) if isinstance(o, SkipImage) else '' for o in res]==['', 'the network gave values that are no numbers', 'the result is all black', 'the network gave values that are no numbers']
    assert np.array_equal(np.asarray(res[0])[~mask], np.asarray(picture(0))[~mask])
    pil = Image.fromarray((good*255).round().astype(np.uint8))
    assert to_picture(good).tobytes()==pil.tobytes() and to_picture(pil) is pil

def test_try_on_that_overflows_skips_its_own_picture_only():
    "The image prompt of one garment is no number: its picture is skipped, the one beside it is as if it were alone"
    labels = np.zeros((16,12), np.uint8); labels[4:12,3:9] = 5
    net = tiny_idm_vton(parser=lambda ims, rows=None: [labels]*len(ims), detector=lambda ims, rows=None: [np.zeros((0,33,4))]*len(ims), size=(32,24), steps=1)
    fine,real = {},net.networks.pipe.feature_extractor
    def broken(pictures, **kw):
        seen = real(pictures, **kw)
        for im,x in zip(pictures, seen['pixel_values']):
            if im.getpixel((0,0))==(0,0,0): x[0,0,0] = np.nan
        return seen
    net.networks.pipe.feature_extractor = broken
    garments = [Image.new('RGB', (9,9), c) for c in ('black','red')]
    res = net([picture(0)]*2, garments, ['a coat']*2, [0,1])
    assert isinstance(res[0], SkipImage) and 'no numbers' in str(res[0]) and isinstance(res[1], Image.Image)
    assert net([picture(0)], garments[1:], ['a coat'], [1])[0].tobytes()==res[1].tobytes()

def test_try_off_that_overflows_gives_no_garment(table, tmp_path, capsys):
    net = object.__new__(DiffusionTryOff)
    net.part = 'upper'
    net.parser,net.seed,net.ground,net.text = lambda ims, rows=None: [np.full((12,8), 5, np.uint8)]*len(ims),0,lambda g: np.ones((12,8), bool),'a coat'
    made = iter([lambda: to_picture(np.full((12,8,3), np.nan)), lambda: Image.new('RGB', (8,12)), lambda: picture(3), lambda: picture(4)])
    net.lay_out = lambda *a: next(made)()
    library = collect_garments(table, net, GarmentLibrary(tmp_path/'l'))
    assert len(library)==2 and library.sources==table.path[2:].tolist()
    assert '2 of 4 pictures gave no garment' in (said := capsys.readouterr().out) and '1 the network gave values that are no numbers; 1 the result is all black' in said


# --- records

@pytest.fixture(scope='module')
def made(table, tmp_path_factory):
    out = tmp_path_factory.mktemp('made')/'o'
    run(table, out)
    return (out/'manifest-000-of-001.jsonl').read_bytes(), {p.relative_to(out): p.read_bytes() for p in out.rglob('*') if p.is_file()}

def copy(made, out):
    for n,d in made[1].items(): (out/n).parent.mkdir(parents=True, exist_ok=True); (out/n).write_bytes(d)
    return out/'manifest-000-of-001.jsonl'

WRONG = [dict(seed=[1]), dict(file='../../x.png'), dict(file='/etc/passwd'), dict(file='images/../../x.png'), dict(file='images/ab/..'), dict(file='images\\ab\\x.png'), dict(bytes=-1), dict(bytes=2.), dict(bytes=10**30),
         dict(variant=True), dict(variant=1.), dict(variant=-1), dict(source=3), dict(time='now'), dict(time=1e300), dict(time=float('nan')), dict(sha256=None), dict(source_bytes='9'),
         dict(notes=[1]), dict(notes=dict(path='/etc/passwd')), dict(skip=3), dict(file=None)]

@pytest.mark.parametrize('wrong', [*map(lambda w: json.dumps(w), WRONG), '[1]', '"', '\0\0\0', '['*20000, 'null', '{}', '{"source": "/a"}', '1'*6000, '\udcff'])
def test_a_line_that_nobody_wrote_is_damage_and_its_image_is_made_again(table, whole, made, tmp_path, capsys, wrong):
    log = copy(made, tmp_path/'o')
    lines = made[0].split(b'\n')
    try: changed = json.dumps({**json.loads(lines[3]), **json.loads(wrong)}) if wrong in map(json.dumps, WRONG) else wrong
    except ValueError: changed = wrong
    log.write_bytes(b'\n'.join([*lines[:3], changed.encode(errors='surrogateescape'), *lines[4:]]))
    found = []
    assert len(read_manifest(tmp_path/'o', found))==7 and found==[('manifest-000-of-001.jsonl', 4)]
    res = read_expansion(tmp_path/'o', table)
    assert len(res)==7 and (about(res)['damaged'], about(res)['lines'])==(1,1) and 'the first is line 4 of manifest-000-of-001.jsonl' in capsys.readouterr().out
    for k in range(2):
        res = run(table, tmp_path/'o')
        assert about(res)==dict(made=1-k, found=7+k, damaged=1-k, skipped={}, lines=1) and capsys.readouterr().out.count('1 lines on record are damaged')==1
    assert contents(tmp_path/'o')==whole and all(Path(p).is_relative_to(tmp_path/'o') for p in res.path)

@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2500), st.integers(0,255)), min_size=1, max_size=6), st.integers(0, 2500))
def test_any_damage_to_a_manifest_is_survived(table, whole, made, tmp_path_factory, flips, cut):
    out = tmp_path_factory.mktemp('d')/'o'
    log = copy(made, out)
    data = bytearray(made[0])
    for at,byte in flips: data[at%len(data)] = byte
    log.write_bytes(data[:len(data)-cut%200])
    res = run(table, out)
    assert {Path(p).resolve().is_relative_to(out.resolve()) for p in res.path}=={True}
    assert {n for n in contents(out)}>=set(whole) and about(run(table, out))['made']==0

def test_a_line_that_a_kill_has_torn_is_said_and_is_no_damage(table, whole, made, tmp_path, capsys):
    log = copy(made, tmp_path/'o')
    for cut in (2,60,300):
        log.write_bytes(made[0][:-cut])
        assert 'lines' not in about(read_expansion(tmp_path/'o', table))
        res = run(table, tmp_path/'o')
        assert 'the last line breaks off, as it does when a process is killed' in capsys.readouterr().out and about(res)=={**about(res), 'made':1+(cut==300)*0, 'damaged':0} and 'lines' not in about(res)
        run(table, tmp_path/'o'); assert capsys.readouterr().out==''          # said once
    assert contents(tmp_path/'o')==whole

@pytest.mark.parametrize('first,then', [((0,2),(0,1)), ((0,1),(0,2)), ((0,2),(1,2))])
def test_a_clock_a_year_ahead_does_not_win_for_ever(tmp_path, monkeypatch, first, then):
    table,now = people(tmp_path/'in', 1),time.time()
    if then==(1,2): table = people(tmp_path/'in', 2).tail(1); first = (0,1)
    source = table.path.iloc[0]
    monkeypatch.setattr(records.time, 'time', lambda: now+3.15e7)
    run(table, tmp_path/'o', shard=first)
    monkeypatch.setattr(records.time, 'time', lambda: now)                    # the clock was put right, the source was replaced
    picture(7, (9,14)).save(source)
    assert about(run(table, tmp_path/'o', shard=then if then!=(1,2) else (0,3)))['made']==2
    for shard in (first, then, (0,1)): assert about(run(table, tmp_path/'o', shard=shard))==dict(made=0, found=2, damaged=0, skipped={})
    assert len(read_expansion(tmp_path/'o', table))==2
    log = next((tmp_path/'o').glob('manifest-*.jsonl'))                       # a folder in which an earlier version wrote under the right time
    picture(8, (10,15)).save(source)
    for f in (tmp_path/'o').glob('manifest-*.jsonl'):
        f.write_text(''.join(json.dumps({**json.loads(l), 'time':now+9e7 if f==log else now})+'\n' for l in f.read_text().splitlines()))
    made = [about(run(table, tmp_path/'o'))['made'] for _ in range(3)]
    assert made==[2,0,0]

def test_notes_with_numbers_that_json_has_not(table, tmp_path):
    def edit(images, rows, variants, seeds): return [(o, dict(score=np.float32('inf') if v else np.arange(2))) for o,v in zip(noisy(images, rows, variants, seeds), variants)]
    run(table, tmp_path/'o', edit)
    assert [l['notes']['score'] for l in read_manifest(tmp_path/'o').values()]==[[0,1],None]*4
    settings = dict(limit=float('nan'))
    for k in range(2): assert about(run(table, tmp_path/'p', settings=settings))['made']==8*(1-k)


# --- files that are not what they should be

JUNK = {b'':'is empty', b'{"a":':'is damaged', b'['*100000:'is damaged', b'\xff\xfe{':'is damaged', b'[]':'holds list', b'<!DOCTYPE html><html>':'is a web page', b'version https://git-lfs.github.com/spec/v1\n':'Git LFS', b'{}':'is'}

def readers(tmp_path, table):
    "(file, error, what reads it, contents that are JSON and wrong all the same)"
    out,choices,library,world = (tmp_path/n for n in ('e','c','l','w'))
    run(table, out)
    entry = dict(name='a', text='a', source='', image='0', mask='0')
    chosen = dict(job={}, people=[], garments=[], reasons={}, done=True)
    data = SimpleNamespace(name='own', root=str(Path(table.path[0]).parent), train=table)
    models = SimpleNamespace(keypoints=SimpleNamespace(settings={}), tryoff=None)
    MannequinWorld(1, images=1, cameras=1, outfits=1, size=(32,16)).write(world, 'mannequins', load=False)
    head = json.loads((world/MANIFEST).read_text())
    image = next(world.rglob('*.jpg'), None) or next(world.rglob('*.png'))
    rel = image.relative_to(world).as_posix()
    choices.mkdir(); library.mkdir()
    def changed(**kw): return {**head, 'world':{**head['world'], **kw}}
    return [
        (out/'job.json', FileExistsError, lambda: run(table, out), [dict(datasets='own', generated_by='x'), dict(datasets=[[1]], generated_by='x'), dict(datasets=['own'], generated_by=3)]),
        (out/'job.json', DataError, lambda: read_expansion(out, table), [dict(datasets=7, generated_by='x')]),
        (choices/'choices.json', FileExistsError, lambda: generating.choose(data, choices, models), [{**chosen, k:v} for k,v in dict(job=3, people='ab', garments=[1], reasons={'a':'b'}, done=1).items()]),
        (library/'garments.json', DataError, lambda: GarmentLibrary(library), [dict(garments=g) for g in (7, [7], [{**entry, 'text':3}], [{**entry, 'image':None}], [{**entry, 'name':'../a'}], [entry,entry])]),
        (world/MANIFEST, ValueError, lambda: find_scene(image), [changed(size=[10**6,10**6]), changed(identities=10**12), changed(size='large'), changed(cameras=[1]), changed(colour=3), changed(strength=3), changed(outfits=None), {**head, 'images':[1]}, {**head, 'world':[]}, {**head, 'format':[2]},
            *({**head, 'images':{rel:s}} for s in (3, [0,0,0], [0,0,0,'a'], [0,0,0,True], [9,0,0,0], [0,-1,0,0]))])]

def test_one_line_for_every_file_that_is_not_what_it_should_be(table, tmp_path):
    for path,error,read,wrong in readers(tmp_path, table):
        good = path.read_bytes() if path.exists() else b'{}'
        for data,says in [*JUNK.items(), *((json.dumps(w).encode(), 'is') for w in wrong)]:
            path.write_bytes(data); os.utime(path, ns=(time.time_ns(), time.time_ns()))
            with pytest.raises(error) as e: read()
            assert type(e.value) is error, (path.name, data[:60], e.value)
            one_line(e, str(path), says)
            assert len(str(e.value))<500 and ('damaged' not in str(e.value) or 'again' in str(e.value) or 'restore' in str(e.value)), e.value
        path.unlink(); path.mkdir()
        with pytest.raises((error, FileNotFoundError)) as e: read()
        one_line(e)
        path.rmdir(); path.write_bytes(good)

def test_a_world_that_is_too_large_is_refused_before_anything_is_allocated(tmp_path):
    for kw,says in (dict(size=(10**6,10**6)), 'size of a world'), (dict(identities=10**6, images=10**3), 'too large to be written'):
        with pytest.raises(ValueError, match=says) as e: MannequinWorld(**kw).write(tmp_path/'w', 'mannequins')
        one_line(e)
    assert not list(tmp_path.iterdir())

def test_garments_and_choices_on_a_full_or_read_only_disk(tmp_path, monkeypatch):
    library = GarmentLibrary(tmp_path/'l')
    library.add(picture(0), np.ones((12,8)), 'a coat')
    for code in (errno.ENOSPC, errno.EROFS):
        def none(*a, **k): raise OSError(code, os.strerror(code))
        with monkeypatch.context() as m:
            m.setattr(os, 'replace', none)
            with pytest.raises(OSError) as e: library.add(picture(1), np.ones((12,8)), 'a shirt')
            one_line(e, os.strerror(code), str(tmp_path))
        assert GarmentLibrary(tmp_path/'l').names==['000-a-coat']==library.names and not list((tmp_path/'l').rglob('.making*'))


# --- worlds

def filling(digest, names=('a.png','b/c.png'), then=None):
    def build(tmp):
        for n in names: (tmp/n).parent.mkdir(exist_ok=True); (tmp/n).write_text(digest)
        if then: then()
        (tmp/MANIFEST).write_text(json.dumps(dict(hash=digest, images={n:[] for n in names})))
    return build

def put(root, digest, **kw): return write_folder(root, filling(digest, **kw), digest, overwrite=True, files=lambda: {MANIFEST,'a.png','b/c.png'})
def holds(root, digest): return (placing._existing(root), [p.name for p in root.parent.iterdir()])==(digest, [root.name])

@fork
@pytest.mark.parametrize('step', ['begun','drawn','aside','swapped','removing','put back'])
def test_a_world_killed_at_every_step(tmp_path, capsys, step):
    "The place holds the old world or the new one, whole, and the next run leaves nothing else there"
    root = tmp_path/'w'
    put(root, 'old')
    def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)
    def replacing():
        real,n = os.replace,[0]
        def replace(a, b):
            n[0] += 1
            if step=='aside' and n[0]==1 or step=='swapped' and n[0]==2: real(a, b); die()
            if step=='drawn': die()
            real(a, b)
        os.replace = replace
        if step=='removing': placing.shutil.rmtree = die
        put(root, 'new', then=die if step=='begun' else None)
    if step=='put back': os.replace(root, tmp_path/'.making-w-00000000-old'); (tmp_path/'.making-w-00000000').mkdir()    # the new one is not complete
    else: assert os.WIFSIGNALED(wait(child(replacing)))
    now = dict(begun='old', drawn='old', aside='new', swapped='new', removing='new').get(step, 'old')
    assert len(list(tmp_path.iterdir()))>1
    assert not write_folder(root, lambda tmp: 1/0, now, files=lambda: ()) and holds(root, now), list(tmp_path.iterdir())
    assert ('was killed while it replaced' in capsys.readouterr().out)==(step in ('aside','put back'))
    assert put(root, 'third') and holds(root, 'third')

@pytest.mark.parametrize('fails', [1,2])
def test_a_rename_that_fails_or_is_interrupted_brings_the_old_world_back(tmp_path, monkeypatch, fails):
    root = tmp_path/'w'
    put(root, 'old')
    for error in (OSError(errno.ENOSPC, 'No space left on device'), KeyboardInterrupt()):
        real,n = os.replace,[0]
        def replace(a, b):
            n[0] += 1
            if n[0]==fails: raise error
            real(a, b)
        with monkeypatch.context() as m:
            m.setattr(os, 'replace', replace)
            with pytest.raises(type(error)) as e: put(root, 'new')
        if isinstance(error, OSError): one_line(e, 'cannot write', 'No space left', 'nothing of it is left behind')
        assert holds(root, 'old')

@fork
def test_two_processes_that_want_one_world_draw_it_once(tmp_path):
    root,log = tmp_path/'d'/'w',tmp_path/'log'
    def slow():
        with open(log, 'a') as f: f.write('drawn\n')
        time.sleep(.4)
    def work(i):
        out = os.open(tmp_path/f'out{i}', os.O_CREAT|os.O_WRONLY); os.dup2(out, 1)
        import sys; sys.stdout = os.fdopen(1, 'w')
        write_folder(root, filling('one', then=slow), 'one'); sys.stdout.flush()
    assert [wait(p) for p in [child(lambda i=i: work(i)) for i in range(3)]]==[0]*3
    assert log.read_text()=='drawn\n' and holds(root, 'one')
    said = sorted((tmp_path/f'out{i}').read_text().count('another process is drawing there, waiting for it') for i in range(3))
    assert said[0]==0 and said[1:]==[1,1]

def test_leftovers_of_earlier_versions_and_folders_of_others(tmp_path, capsys):
    root = tmp_path/'w'
    filling('old')(tmp_path/'.w-0a_b1234-old') if (tmp_path/'.w-0a_b1234-old').mkdir() is None else 0
    half = tmp_path/'.w-0a_b1234'; half.mkdir(); (half/'a.png').write_text('x')
    assert not write_folder(root, filling('old'), 'old', files=lambda: {'a.png'}) and holds(root, 'old')          # put back, and tidied up
    mine = tmp_path/'.w-personal'; mine.mkdir(); (mine/'letter.txt').write_text('x')
    kept = tmp_path/'.w-mybackup-old'; kept.mkdir(); filling('old')(kept)
    other = tmp_path/'.making-w-of-another-0123abcd'; other.mkdir()
    capsys.readouterr()
    assert put(root, 'new') and placing._existing(root)=='new' and (mine/'letter.txt').exists() and placing._existing(kept)=='old' and other.exists()
    assert capsys.readouterr().out.count('remove it if nobody needs it')==2

def test_a_manifest_that_may_not_be_read_is_not_overwritten(tmp_path, monkeypatch):
    root = tmp_path/'w'
    put(root, 'old')
    def denied(*a, **k): raise PermissionError(errno.EACCES, 'Permission denied')
    with monkeypatch.context() as m:
        m.setattr(placing, 'open', denied, raising=False)
        with pytest.raises(PermissionError) as e: put(root, 'new')
        one_line(e, str(root/MANIFEST), 'cannot be read: Permission denied')
    assert holds(root, 'old')
    (root/MANIFEST).write_text('{'); assert put(root, 'new') and holds(root, 'new')       # damaged: replaced, as it was asked for

def test_a_shared_world_in_a_folder_where_one_may_not_write(tmp_path, monkeypatch):
    root = tmp_path/'w'
    put(root, 'old'); (tmp_path/'.making-w-01234567').mkdir()
    def denied(*a, **k): raise PermissionError(errno.EACCES, 'cannot write')
    monkeypatch.setattr(placing, 'hold', denied)
    assert not write_folder(root, filling('old'), 'old')
    with pytest.raises(PermissionError): put(root, 'new')


# --- processes that draw

PLAN = {f'{i}.png': dict(identity=0) for i in range(500)}
WORLD = MannequinWorld(1, images=1, cameras=1, outfits=1, size=(16,16))

def alive(pid):
    try: return open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[0] not in 'ZX'
    except OSError: return False

@fork
@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='needs /proc')
@pytest.mark.parametrize('sign,asked', [(signal.SIGKILL,True), (signal.SIGTERM,True), (signal.SIGKILL,False)])
def test_drawing_processes_end_with_their_parent(tmp_path, sign, asked):
    "Also where the system cannot be asked to end them (the last case)"
    def draws(self, **k):
        (tmp_path/f'{os.getpid()}').touch(); time.sleep(.02)
        return SimpleNamespace(image=Image.new('RGB', (2,2)))
    def work():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        drawing_files._Config.render = draws
        if not asked: drawing_files.sys = SimpleNamespace(platform='other')
        (tmp_path/'d').mkdir(); drawing_files.draw_files(WORLD, tmp_path/'d', PLAN, workers=2)
    pid = child(work)
    until = time.monotonic()+30
    def workers(): return [int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()]
    while len(workers())<2 and time.monotonic()<until: time.sleep(.01)
    os.kill(pid, sign); assert os.WTERMSIG(wait(pid))==sign and len(workers())==2 and pid not in workers()
    until = time.monotonic()+10
    while any(map(alive, workers())) and time.monotonic()<until: time.sleep(.02)
    assert not any(map(alive, workers()))

@fork
def test_a_drawing_process_that_is_killed_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing_files._Config, 'render', lambda self, **k: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ChildProcessError) as e: write_folder(tmp_path/'w', lambda tmp: drawing_files.draw_files(WORLD, tmp, PLAN, workers=2), 'one')
    one_line(e, 'workers=1'); assert not list(tmp_path.iterdir())

@fork
def test_ctrl_c_and_a_full_disk_in_the_middle_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing_files._Config, 'render', lambda self, **k: SimpleNamespace(image=Image.new('RGB', (2,2))))
    def stop(done, total):
        if done: raise KeyboardInterrupt
    draw = lambda **kw: write_folder(tmp_path/'w', lambda tmp: drawing_files.draw_files(WORLD, tmp, PLAN, workers=2, **kw), 'one')
    with pytest.raises(KeyboardInterrupt): draw(progress=stop)
    assert not list(tmp_path.iterdir())
    def full(self, **k): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(drawing_files._Config, 'render', full)
    with pytest.raises(OSError) as e: draw()
    one_line(e, 'No space left on device', str(tmp_path/'w')); assert not list(tmp_path.iterdir())
