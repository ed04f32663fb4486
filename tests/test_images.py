"Every picture comes in through one door: what is opened, how large, which way up, in how many bits, and how fast broken ones are found"
import builtins,errno,io,logging,os,pickle,random,re,shutil,signal,socket,struct,sys,threading,warnings,zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
import pytest
from hypothesis import given,settings,strategies as st
from PIL import EpsImagePlugin,Image,ImageOps,PngImagePlugin
import ccreid.data.images as images
from ccreid.data.depth import deep_bits,to_rgb
from ccreid.data.images import MOST_BYTES,MOST_PIXELS,glance,read_image
from ccreid.data.inspecting import inspect_images,quick_look
from ccreid.data.samples import DataError

KINDS = 'jpg','png','webp','bmp','tif'
PIXELS = np.random.default_rng(0).integers(0, 256, (24,16,3), np.uint8)

def too_long(*_): raise TimeoutError('it hangs')

@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    "Nothing warns, hangs, or has been told before"
    monkeypatch.setattr(images, '_told', set())
    if hasattr(signal, 'alarm'): before = signal.signal(signal.SIGALRM, too_long); signal.alarm(30)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield
    if hasattr(signal, 'alarm'): signal.alarm(0); signal.signal(signal.SIGALRM, before)

def reason(path):
    "Why it is refused; always one `DataError` of two lines with the file's name"
    with pytest.raises(DataError) as e: read_image(path)
    text = str(e.value)
    assert len(text.splitlines())==2 and e.value.reason in text and (hasattr(path, 'read') or '\0' in str(path) or str(path) in text)
    return e.value.reason

def save(im, path, **kw): im.save(path, **kw); return path
def encoded(im, kind, **kw): im.save(f := io.BytesIO(), kind, **kw); return f.getvalue()
def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data))
def png(a, colour, depth=16, before=b''):
    "A PNG written by hand, as Pillow writes no deep colours"
    rows = b''.join(b'\0'+r.astype('>u2' if depth==16 else 'u1').tobytes() for r in a)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', a.shape[1], a.shape[0], depth, colour, 0, 0, 0)) + before + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')
def tiff(a, order='<', packed=False, more=()):
    "A TIFF written by hand"
    h,w = a.shape[:2]
    c,data = a[0,0].size,a.astype(f'{order}u2').tobytes()
    data = zlib.compress(data) if packed else data
    tags = sorted([(256,4,[w]), (257,4,[h]), (258,3,[16]*c), (259,3,[8 if packed else 1]), (262,3,[2 if c==3 else 1]), (273,4,[0]), (277,3,[c]), (278,4,[h]), (279,4,[len(data)]),
                   *([(338,3,[2])] if c==4 else []), *more])
    if c==4: tags = [(t,k,[2] if t==262 else v) for t,k,v in tags]
    at = 8+2+12*len(tags)+4
    extra,body = b'',struct.pack(f'{order}H', len(tags))
    place = at+sum(len(v)*2 for t,k,v in tags if len(v)*(2 if k==3 else 4)>4)
    for t,k,v in tags:
        v = [place] if t==273 else v
        field = struct.pack(f"{order}{len(v)}{'H' if k==3 else 'I'}", *v)
        if len(field) > 4: field,extra = struct.pack(f'{order}I', at+len(extra)),extra+field
        body += struct.pack(f'{order}HHI', t, k, len(v)) + field.ljust(4, b'\0')
    return (b'II*\0' if order=='<' else b'MM\0*') + struct.pack(f'{order}I', 8) + body + bytes(4) + extra + data

# ---- one door

def test_nobody_else_opens_pictures():
    root = Path(images.__file__).parents[1]
    door = re.compile(r'\bImage\.open\b|\bimread\b|ImageFile\.Parser|from PIL\.Image import.*\bopen\b|ImagePlugin')
    at = {p.relative_to(root).as_posix() for p in root.rglob('*.py') if door.search(p.read_text(encoding='utf-8'))}
    assert at=={'data/images.py'}

POSTSCRIPT = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 24\n%%EndComments\nshowpage\n'

@pytest.mark.skipif(os.name!='posix', reason='a program for the shell')
def test_a_program_named_jpg_is_never_run(tmp_path, monkeypatch):
    from ccreid.data.mannequins.redressing import redress_scene
    from ccreid.data.mannequins.world import MannequinWorld
    from ccreid.evaluation.ranked_lists import open_image
    from ccreid.hsgl.garments import GarmentLibrary
    trace,bad = tmp_path/'ran',tmp_path/'person.jpg'
    (tmp_path/'bin').mkdir(); (tmp_path/'bin/gs').write_text(f'#!/bin/sh\necho run >> {trace}\n'); (tmp_path/'bin/gs').chmod(0o755)
    monkeypatch.setenv('PATH', f"{tmp_path/'bin'}:{os.environ['PATH']}"); monkeypatch.setattr(EpsImagePlugin, 'gs_binary', None)
    bad.write_bytes(POSTSCRIPT)
    with open(bad, 'rb') as f, pytest.raises(Exception): Image.open(f).load()
    assert trace.exists(); trace.unlink(); monkeypatch.setattr(EpsImagePlugin, 'gs_binary', None)       # the trap works
    world = MannequinWorld((1,0,0), outfits=2, cameras=1, images=1)
    wardrobe = GarmentLibrary(tmp_path/'wardrobe')
    wardrobe.add(Image.fromarray(PIXELS), np.ones((24,16), bool), 'a shirt', name='shirt')
    (tmp_path/'wardrobe/images/shirt.png').write_bytes(POSTSCRIPT)
    import hashlib
    index = tmp_path/'wardrobe/garments.json'
    index.write_text(re.sub(r'("image": ")\w+', rf'\g<1>{hashlib.sha256(POSTSCRIPT).hexdigest()}', index.read_text()))
    for door in (lambda: read_image(bad), lambda: read_image(io.BytesIO(POSTSCRIPT)), lambda: open_image(dict(path=str(bad))), lambda: GarmentLibrary(tmp_path/'wardrobe')['shirt'],
                 lambda: redress_scene(world, dict(identity=0, clothes=0, camera=0, frame=0), 'a red shirt', path=bad)):
        with pytest.raises(DataError, match='of a kind that is read: JPEG, PNG, WebP, BMP, TIFF'): door()
    for look in inspect_images,quick_look: assert 'of a kind' in str(look([bad], progress=None))
    assert not trace.exists()

@pytest.mark.parametrize('kind', ['GIF','ICO','PPM','TGA','PCX','SGI','DIB','EPS','PDF','JPEG2000','AVIF','MSP'])
def test_other_kinds_are_refused_whatever_their_name(tmp_path, kind):
    try: data = encoded(Image.fromarray(PIXELS).convert('1' if kind=='MSP' else 'RGB'), kind)
    except (KeyError, OSError, ValueError): pytest.skip(f'this Pillow writes no {kind}')
    (tmp_path/'a.jpg').write_bytes(data)
    assert 'not an image of a kind that is read' in reason(tmp_path/'a.jpg') and glance(tmp_path/'a.jpg')==reason(tmp_path/'a.jpg')

def test_the_first_bytes_count_and_not_the_name(tmp_path):
    for kind in KINDS:
        save(Image.fromarray(PIXELS), tmp_path/f'a.{kind}', **(dict(lossless=True) if kind=='webp' else {}))
        shutil.copy(tmp_path/f'a.{kind}', tmp_path/'b.jpg')
        im = read_image(tmp_path/'b.jpg')
        assert im.mode=='RGB' and (kind=='jpg' or np.array_equal(im, PIXELS)) and glance(tmp_path/'b.jpg') is None

def test_pillow_is_told_which_kind_to_try(tmp_path, monkeypatch):
    asked,real = [],Image.open
    monkeypatch.setattr(Image, 'open', lambda f, **kw: asked.append(kw['formats']) or real(f, **kw))
    starts = dict(JPEG=b'\xff\xd8\xff\xe0', PNG=b'\x89PNG\r\n\x1a\n', WEBP=b'RIFF\x20\0\0\0WEBPVP8 '+bytes(14), BMP=b'BM', TIFF=b'II*\0')
    for start in starts.values(): (tmp_path/'a').write_bytes(start+POSTSCRIPT); assert 'damaged' in reason(tmp_path/'a')
    (tmp_path/'a').write_bytes(POSTSCRIPT); reason(tmp_path/'a')
    assert asked==[(k,) for k in starts]                                                                  # and not asked about the last one

def test_what_lies_there_instead_is_said(tmp_path):
    (tmp_path/'a.jpg').write_text('<html>gone</html>'); assert 'it is a web page' in reason(tmp_path/'a.jpg')
    (tmp_path/'a.jpg').write_text('version https://git-lfs.github.com/spec/v1\n'); assert 'Git LFS' in reason(tmp_path/'a.jpg')
    (tmp_path/'a.jpg').write_bytes(b''); assert reason(tmp_path/'a.jpg')=='the file is empty'
    assert 'as text' in reason(io.StringIO('x')) and 'no such file' in reason(tmp_path/'b.jpg') and 'a folder' in reason(tmp_path)
    for odd in None,5,'a\0b.jpg': reason(odd)
    with pytest.raises(DataError) as e: read_image(tmp_path/'a\n\x1b[31m.jpg')
    assert len(str(e.value).splitlines())==2 and '\x1b' not in str(e.value)
    assert pickle.loads(pickle.dumps(e.value)).reason==e.value.reason                                    # from a loader's process

@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no named pipes here')
def test_pipes_sockets_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path/'p.jpg')
    with socket.socket(socket.AF_UNIX) as s:
        at = os.path.relpath(tmp_path/'s.jpg'); s.bind(at if len(at)<100 else str(tmp_path/'s.jpg'))
        for p in tmp_path/'p.jpg',tmp_path/'s.jpg','/dev/zero','/dev/null': assert 'pipe, socket or device' in reason(p) and 'pipe' in glance(p)
        assert len(inspect_images([tmp_path/'p.jpg', tmp_path/'s.jpg', tmp_path], progress=None)[0])==3

def test_what_this_machine_lacks_is_no_fault_of_the_picture(tmp_path, monkeypatch):
    p = save(Image.fromarray(PIXELS), tmp_path/'a.jpg')
    def failing(error):
        def fail(*a, **k): raise error
        monkeypatch.setattr(images, 'open', fail, raising=False)
    failing(PermissionError(errno.EACCES, 'Permission denied')); assert reason(p)==glance(p)=='there is no permission to read it'
    failing(OSError(errno.EIO, 'Input/output error')); assert reason(p)=='Input/output error'
    for error in OSError(errno.EMFILE, 'Too many open files'),MemoryError():
        failing(error)
        for f in read_image,glance,lambda p: inspect_images([p], progress=None):
            with pytest.raises(type(error)) as e: f(p)
            assert not isinstance(e.value, DataError)

# ---- sizes

def declaring(kind, w, h):
    "A file of a few bytes or kilobytes that declares w x h pixels"
    data = bytearray(encoded(Image.fromarray(PIXELS), dict(jpg='JPEG', png='PNG', webp='WEBP', bmp='BMP', tif='TIFF', vp8l='WEBP').get(kind, 'WEBP'), **(dict(lossless=True) if kind=='vp8l' else {})))
    if kind=='jpg': i = data.index(b'\xff\xc0'); data[i+5:i+9] = struct.pack('>HH', h, w)
    if kind=='png': data[16:24] = struct.pack('>II', w, h); data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
    if kind=='bmp': data[18:26] = struct.pack('<ii', w, h)
    if kind=='tif':
        for tag,v in (256,w),(257,h): i = data.index(struct.pack('<HH', tag, 4) if struct.pack('<HH', tag, 4) in data else struct.pack('<HH', tag, 3)); data[i:i+12] = struct.pack('<HHII', tag, 4, 1, v)
    if kind=='webp': data[26:30] = struct.pack('<HH', w, h)
    if kind=='vp8l': data[21:25] = struct.pack('<I', (w-1)|(h-1)<<14|1<<28)
    if kind=='vp8x': data = b'RIFF'+struct.pack('<I', 22+len(data)-12)+b'WEBPVP8X'+struct.pack('<II', 10, 0)+(w-1).to_bytes(3, 'little')+(h-1).to_bytes(3, 'little')+data[12:]
    return bytes(data)

@pytest.mark.parametrize('kind', ['jpg','png','bmp','tif','webp','vp8l','vp8x'])
def test_more_pixels_than_the_bound_are_not_decoded(tmp_path, kind, monkeypatch):
    resource = pytest.importorskip('resource')
    most,before = Image.MAX_IMAGE_PIXELS,resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for w,h in (13_370,13_370),(9000,8000),(16_000,16_001) if kind[0]=='v' or kind=='webp' else (60_000,65_000):
        (tmp_path/'a').write_bytes(declaring(kind, w, h))
        assert f'{w:,} x {h:,} pixels, more than {MOST_PIXELS:,}' in reason(tmp_path/'a') and glance(tmp_path/'a')==reason(tmp_path/'a')
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)*(1 if sys.platform=='darwin' else 1024)
    assert grown<2**26 and Image.MAX_IMAGE_PIXELS==most
    (tmp_path/'a').write_bytes(declaring(kind, 16, 24)); assert read_image(tmp_path/'a').size==(16,24)
    monkeypatch.setattr(images, 'MOST_PIXELS', 16*24-1); assert '16 x 24' in reason(tmp_path/'a')
    monkeypatch.setattr(images, 'MOST_PIXELS', 16*24); assert read_image(tmp_path/'a').size==(16,24) and glance(tmp_path/'a') is None
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 9); assert 'MAX_IMAGE_PIXELS, was lowered' in reason(tmp_path/'a')  # somebody's own bound

def test_tiles_and_bytes_are_bounded_too(tmp_path):
    (tmp_path/'a.tif').write_bytes(tiff(PIXELS[...,0], more=[(322,4,[60_000]), (323,4,[60_000])]))
    assert '60,000 x 60,000' in reason(tmp_path/'a.tif')
    save(Image.fromarray(PIXELS), tmp_path/'b.png')
    with open(tmp_path/'b.png', 'r+b') as f: f.truncate(MOST_BYTES+1)                                   # takes no room on the disk
    assert f'{MOST_BYTES+1:,} bytes' in reason(tmp_path/'b.png') and 'bytes' in glance(tmp_path/'b.png')
    class Endless:
        def read(self, n): assert n==MOST_BYTES+1; return bytes(n)
    assert 'more than' in reason(Endless())

@pytest.mark.parametrize('name', [b'zTXt',b'iTXt',b'iCCP'])
def test_packed_text_is_not_unpacked_without_end(tmp_path, name):
    blob = zlib.compress(bytes(2**23))
    body = {b'zTXt': b'a\0\0'+blob, b'iTXt': b'a\0\1\0\0\0'+blob, b'iCCP': b'a\0\0'+blob}[name]
    (tmp_path/'a.png').write_bytes(png(PIXELS, 2, 8, chunk(name, body)*20))
    assert 'too large' in reason(tmp_path/'a.png')

# ---- warnings, and other people's settings

BROKEN = {'directory': b'Exif\0\0II*\0\x08\0\0\0\xff\xff', 'header': b'Exif\0\0XXXX', 'values': b'Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x05\0\0\0\x01\xff\xff\xff\xff\x01\x1a\0\x05\0\0\0\x01\0\0\xff\0', 'empty': b'Exif\0\0',
          'word': b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x08\0\0\0\x1a\0\0\0\0\0\0\0sideways'}

@pytest.mark.parametrize('how', list(BROKEN))
@pytest.mark.parametrize('kind', ['jpg','png','webp'])
def test_broken_exif_stops_nothing_and_says_nothing(tmp_path, how, kind):
    Image.fromarray(PIXELS).save(tmp_path/f'a.{kind}', exif=BROKEN[how])
    assert read_image(tmp_path/f'a.{kind}').size==(16,24) and glance(tmp_path/f'a.{kind}') is None

def test_threads_hear_their_own_warnings_and_not_ours(tmp_path):
    p = tmp_path/'a.jpg'
    Image.fromarray(PIXELS).save(p, exif=BROKEN['directory'])
    def mine():
        with pytest.raises(UserWarning): Image.open(p).getexif()
        return True
    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit((lambda: read_image(p).size==(16,24)) if i%2 else mine) for i in range(200)]
        assert all(j.result() for j in jobs)
    held = list(warnings.filters)
    read_image(p); assert warnings.filters==held and held.count(images._QUIET)==1                        # once, however many pictures

def test_pillow_logs_nothing_of_ours(tmp_path, caplog):
    (tmp_path/'a.tif').write_bytes(tiff(PIXELS[...,0].astype(np.uint16)).replace(struct.pack('<HHIHH', 277, 3, 1, 1, 0), struct.pack('<HHIHH', 277, 3, 1, 99, 0)))
    with caplog.at_level(logging.DEBUG): reason(tmp_path/'a.tif')
    assert not caplog.records
    with caplog.at_level(logging.ERROR), pytest.raises(Exception): Image.open(tmp_path/'a.tif')
    assert caplog.records

def test_a_broken_index_of_second_views_is_a_plain_jpeg(tmp_path):
    im = Image.fromarray(PIXELS)
    good = encoded(im, 'MPO', save_all=True, append_images=[im])
    (tmp_path/'a.jpg').write_bytes(good); assert read_image(tmp_path/'a.jpg').size==(16,24) and glance(tmp_path/'a.jpg') is None
    r = random.Random(0)
    for i in range(120):
        bad = bytearray(good); at = bad.index(b'MPF\0')
        for _ in range(r.choice((1,2,8))): bad[at+4+r.randrange(80)] = r.randrange(256)
        (tmp_path/'a.jpg').write_bytes(bad); assert np.array_equal(read_image(tmp_path/'a.jpg'), Image.open(io.BytesIO(encoded(im, 'JPEG'))))

# ---- upright

def turned(kind, orientation, mode):
    im = Image.fromarray(PIXELS[...,0].astype(np.uint16)*256) if mode=='I;16' else Image.fromarray(PIXELS).convert(mode)
    exif = Image.Exif(); exif[0x0112] = orientation
    note = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'
    if kind=='xmp.jpg':
        data = encoded(im, 'JPEG'); body = b'http://ns.adobe.com/xap/1.0/\0'+note.encode()
        return data[:2] + b'\xff\xe1' + struct.pack('>H', len(body)+2) + body + data[2:]
    info = PngImagePlugin.PngInfo()
    if kind=='xmp.png': info.add_itxt('XML:com.adobe.xmp', note)
    if kind=='raw.png': raw = exif.tobytes(); info.add_text('Raw profile type exif', f'\nexif\n{len(raw):8}\n{raw.hex()}\n')
    if kind.endswith('.png') and kind!='a.png': return encoded(im, 'PNG', pnginfo=info)
    return encoded(im, dict(jpg='JPEG', png='PNG', webp='WEBP', tif='TIFF')[kind[-3:] if kind[-3:]!='ebp' else 'webp'], exif=exif, **(dict(compression='tiff_lzw') if kind=='lzw.tif' and 0<orientation<9 else {}))

@pytest.mark.parametrize('kind,mode', [('a.jpg','RGB'), ('a.jpg','L'), ('xmp.jpg','RGB'), ('a.png','RGB'), ('a.png','I;16'), ('xmp.png','L'), ('raw.png','RGB'), ('a.webp','RGB'), ('a.tif','L'), ('a.tif','RGB'), ('a.tif','I;16'), ('lzw.tif','L')])
def test_every_kind_is_upright_as_exif_transpose_has_it(tmp_path, kind, mode):
    for o in range(10):
        (tmp_path/kind).write_bytes(data := turned(kind, o, mode))
        with warnings.catch_warnings(): warnings.simplefilter('ignore'); ref = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        ref = np.asarray(ref)>>8 if mode=='I;16' else np.asarray(ref.convert('RGB'))
        got = read_image(tmp_path/kind)
        assert np.array_equal(np.asarray(got)[...,0] if mode=='I;16' else got, ref), o
        assert got.getexif().get(0x0112, 1)==1 or o in (0,1,9)
        if o==6: assert got.size==(24,16)

# ---- more than eight bits

def low_and_high(bits, shape=(5,4), seed=0):
    a = np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.uint16); a.flat[0] = 2**bits-1
    return a

@pytest.mark.parametrize('bits', range(8, 17))
def test_deep_greys_by_the_rule(tmp_path, bits):
    a = low_and_high(bits)
    even = bits+bits%2
    expect = np.array([[int(v)//2**(even-8) for v in row] for row in a])                                 # by hand
    files = dict(png=encoded(Image.fromarray(a), 'PNG'), tif=encoded(Image.fromarray(a), 'TIFF'), big=tiff(a, '>'), zip=tiff(a, packed=True), int32=encoded(Image.fromarray(a.astype(np.int32)), 'TIFF'), hand=png(a, 0))
    for name,data in files.items():
        images._told.add('x')
        im,b,guessed = images.decode(data)
        assert b==even and guessed==(even!=16) and np.array_equal(np.asarray(im), np.repeat(expect[...,None], 3, -1)), name
        assert np.array_equal(im, to_rgb(Image.open(io.BytesIO(data))))
    assert 64<=expect.max()<=255

@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 2**31-1), min_size=1, max_size=5))
def test_the_rule_holds_its_promises(values):
    a = np.array(values, dtype=np.int64)
    b = deep_bits(a)
    assert b%2==0 and 8<=b<=32 and a.max()<2**b
    if 256<=a.max() and (a%257).any(): assert (a.max()>>(b-8))>=64
    if 2**14<=a.max()<2**16: assert b==16                                                               # full 16 bits: divided by 256, as ever

def test_what_the_file_states_counts(tmp_path):
    a = low_and_high(9)
    ten = lambda data: images.decode(data)[1:]
    assert ten(png(a, 0))==(10,True) and ten(png(a, 0, before=chunk(b'sBIT', b'\x0a')))==(16,False)
    assert ten(tiff(a, more=[(281,3,[4095])]))==(12,False) and ten(tiff(a, more=[(281,3,[65535])]))==(16,False) and ten(tiff(a, more=[(281,3,[255])]))==(10,True)  # that last is not true
    eight = PIXELS[...,0]//8
    im,b,guessed = images.decode(encoded(Image.fromarray(eight.astype(np.uint16)*257), 'PNG'))
    assert (b,guessed)==(16,False) and np.array_equal(np.asarray(im)[...,0], eight)                       # 8 bits that were stretched, all of them dark
    white = tiff(a).replace(struct.pack('<HHIHH', 262, 3, 1, 1, 0), struct.pack('<HHIHH', 262, 3, 1, 0, 0))
    assert np.array_equal(255-np.asarray(images.decode(tiff(a))[0]), images.decode(white)[0])            # 0 is white

def test_negative_and_floating_values_are_refused(tmp_path):
    save(Image.fromarray(np.array([[-3,9]], np.int32)), tmp_path/'n.tif'); assert 'below 0' in reason(tmp_path/'n.tif')
    save(Image.fromarray(np.array([[.5,9]], np.float32)), tmp_path/'f.tif'); assert reason(tmp_path/'f.tif')=='floating-point pixels; save it with 8 or 16 bits'

@pytest.mark.parametrize('bits', [9,10,12,13,14,15,16])
@pytest.mark.parametrize('make', [lambda a: png(a, 2), lambda a: png(np.concatenate([a, 0*a[...,:1]+65535], -1), 6), lambda a: tiff(a), lambda a: tiff(a, '>'), lambda a: tiff(a, packed=True), lambda a: tiff(a, '>', packed=True),
                                  lambda a: tiff(np.concatenate([a, 0*a[...,:1]+65535], -1))], ids=['png','png-alpha','tiff','tiff-big','tiff-zip','tiff-big-zip','tiff-alpha'])
def test_deep_colours_by_the_same_rule(bits, make):
    a = low_and_high(bits, (5,4,3))
    im,b,guessed = images.decode(make(a))
    assert b==bits+bits%2 and guessed==(b!=16) and np.array_equal(np.asarray(im), a>>(b-8))

def test_deep_grey_with_transparency_is_not_black():
    a = low_and_high(12)
    im,b,_ = images.decode(png(np.stack([a, a*0+65535], -1), 4))
    assert b==12 and np.abs(np.asarray(im)[...,0].astype(int)-(a>>4)).max()<16                           # the lower bytes are lost

def test_told_once_in_a_process_and_counted_by_check(tmp_path):
    for i,bits in enumerate((14,14,12,16)): save(Image.fromarray(low_and_high(bits, (24,16), i)), tmp_path/f'{i}.png')
    save(Image.fromarray(PIXELS), tmp_path/'8.png')
    paths = sorted(tmp_path.glob('*.png'))
    read_image(paths[3]); read_image(paths[4])                                                           # nothing to tell
    with pytest.warns(UserWarning, match=r'0\.png has more than 8 bits and does not say how many.*one of 14.*ccreid check') as told:
        for _ in range(3): [read_image(p) for p in paths]
    assert len(told)==1 and told[0].filename==__file__
    seen = inspect_images(paths, progress=None)
    unreadable,copies = seen
    assert not unreadable and not copies and list(seen.deep.values())==[14,14,12,16]
    assert seen.notes==[f'4 picture(s) with more than 8 bits are read as 1 of 12 bits, 2 of 14 bits, 1 of 16 bits, first: {paths[0]} (14)']
    assert inspect_images(paths[4:], progress=None).notes==[]

def test_check_tells_of_deep_pictures(tmp_path):
    from ccreid.data.checks import check
    for i in range(3): save(Image.fromarray(low_and_high(14, (24,16), i)), tmp_path/f'anna_red_c1_{i}.png')
    report = check('folder', tmp_path, pattern='{identity}_{clothes}_c{camera}_{frame}.png', progress=None)
    assert report.ok and '3 picture(s) with more than 8 bits are read as 3 of 14 bits, first: anna_red_c1_0.png (14)' in str(report)

@pytest.mark.parametrize('mode', ['1','L','LA','P','RGBA','CMYK','YCbCr','HSV','I;16','I','La','RGBa','PA','RGBX'])
def test_every_mode_becomes_rgb_and_transparency_is_dropped(mode):
    im = to_rgb(Image.new(mode, (3,2)))
    assert im.mode=='RGB' and im.size==(3,2)
    clear = Image.new('RGBA', (2,2), (9,8,7,0))
    assert to_rgb(clear).getpixel((0,0))==(9,8,7)
    low = Image.fromarray(PIXELS[...,0]); low.info['transparency'] = 7
    assert np.array_equal(np.asarray(to_rgb(low))[...,1], PIXELS[...,0]) and low.info['transparency']==7   # and the picture in memory is as it was

def test_the_first_of_many_frames(tmp_path):
    first,second = Image.fromarray(PIXELS),Image.fromarray(255-PIXELS)
    for kind,kw in dict(png={}, tif={}, webp=dict(lossless=True)).items():
        first.save(tmp_path/f'a.{kind}', save_all=True, append_images=[second], **kw)
        assert np.array_equal(read_image(tmp_path/f'a.{kind}'), PIXELS) and glance(tmp_path/f'a.{kind}') is None

# ---- damage

def samples():
    im,exif = Image.fromarray(PIXELS),Image.Exif()
    exif[0x0112],exif[0x010e] = 6,'x'*40
    deep = Image.fromarray(low_and_high(12, (24,16)))
    return dict(jpg=encoded(im, 'JPEG', exif=exif), progressive=encoded(im, 'JPEG', progressive=True), cmyk=encoded(im.convert('CMYK'), 'JPEG'), png=encoded(im, 'PNG', exif=exif), palette=encoded(im.quantize(16), 'PNG', transparency=3),
                deep=encoded(deep, 'PNG'), colour=png(low_and_high(12, (24,16,3)), 2), webp=encoded(im, 'WEBP', exif=exif), lossless=encoded(im, 'WEBP', lossless=True), bmp=encoded(im, 'BMP'), tif=encoded(im, 'TIFF'),
                lzw=encoded(im, 'TIFF', compression='tiff_lzw'), deeptif=encoded(deep, 'TIFF'), mpo=encoded(im, 'MPO', save_all=True, append_images=[im]))

@pytest.mark.parametrize('kind', list(samples()))
def test_damage_is_a_picture_or_one_error_and_a_glance_tells_no_lies(tmp_path, kind, capfd):
    r,data = random.Random(kind),samples()[kind]
    p = tmp_path/'a.jpg'
    images._told.add('x')
    found = dict(cut=[0,0], flip=[0,0], drop=[0,0])
    for k in range(150):
        bad,how = bytearray(data),('cut','flip','drop')[k%3]
        if how=='cut': del bad[r.randrange(len(bad)):]
        elif how=='drop': i = r.randrange(len(bad)); del bad[i:i+r.choice((1,4,30))]
        else:
            for _ in range(r.choice((1,1,3,10))): bad[r.randrange(len(bad))] ^= 1<<r.randrange(8)
        p.write_bytes(bad)
        quick = glance(p)
        try:
            im = read_image(p)
            assert im.mode=='RGB' and quick is None
            if how=='cut': assert im.size in ((16,24),(24,16))
        except DataError as e:
            assert str(p) in str(e) and len(str(e).splitlines())==2 and quick in (None, e.reason)
            assert 'object at 0x' not in e.reason                                                       # the reason, not Pillow's shrug
            found[how][0] += 1; found[how][1] += quick is not None
    assert found['cut'][0]>10 and found['cut'][0]==found['cut'][1], found                                   # a glance finds all that were cut
    capfd.readouterr()

def test_a_thumbnail_does_not_hide_the_cut(tmp_path):
    im = Image.fromarray(PIXELS)
    small = encoded(im.resize((4,6)), 'JPEG')
    data = encoded(im, 'JPEG', exif=b'Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0'+small)
    p = tmp_path/'a.jpg'
    for n in range(1, len(data), 7):
        p.write_bytes(data[:n])
        assert glance(p)==reason(p)
    p.write_bytes(data[:data.index(small)+len(small)]); assert glance(p)==reason(p)
    p.write_bytes(data+bytes(100)); assert glance(p) is None and read_image(p).size==(16,24)                 # bytes after the end are a camera's own

def test_a_quick_look_decodes_none_that_is_whole(tmp_path, monkeypatch):
    from matplotlib import cbook
    paths = [save(Image.fromarray(PIXELS), tmp_path/f'a.{k}') for k in KINDS] + [tmp_path/'none.jpg']
    (tmp_path/'cut.png').write_bytes((tmp_path/'a.png').read_bytes()[:-200]); paths.append(tmp_path/'cut.png')
    decoded = []
    real = images.decode
    monkeypatch.setattr(images, 'decode', lambda data: decoded.append(1) or real(data))
    calls = []
    seen = quick_look(map(str, paths), 2, lambda *a: calls.append(a))
    assert list(seen)==[str(p) for p in paths[-2:]] and seen[str(paths[-2])]=='there is no such file' and 'truncated' in seen[str(paths[-1])].lower()
    assert len(decoded)==1 and calls==[(0,7),(7,7)]
    assert quick_look([])=={} and quick_look(paths)==quick_look(paths, 1)=={Path(k): v for k,v in seen.items()}
    with pytest.raises(DataError, match='workers'): quick_look(paths, 0)
    assert glance(cbook.get_sample_data('grace_hopper.jpg', asfileobj=False)) is None

def test_deep_colours_have_a_quarter_of_the_pixels(tmp_path, monkeypatch):
    (tmp_path/'a.png').write_bytes(png(PIXELS.astype(np.uint16)*257, 2)); (tmp_path/'b.png').write_bytes(png(PIXELS[...,0].astype(np.uint16)*257, 0))
    monkeypatch.setattr(images, 'MOST_PIXELS', 4*16*24-1)
    assert 'of deep colour' in reason(tmp_path/'a.png') and read_image(tmp_path/'b.png').size==(16,24)
    monkeypatch.setattr(images, 'MOST_PIXELS', 4*16*24)
    assert read_image(tmp_path/'a.png').size==(16,24)

def test_only_the_main_process_tells_of_deep_pictures(tmp_path, monkeypatch):
    (tmp_path/'a.png').write_bytes(png(np.full((24,16), 1000, np.uint16), 0))
    monkeypatch.setattr(images, '_told', set()); monkeypatch.setattr(images, '_helping', lambda: True)
    with warnings.catch_warnings(record=True) as said: warnings.simplefilter('always'); read_image(tmp_path/'a.png')
    assert not said
    monkeypatch.setattr(images, '_helping', lambda: False)
    with pytest.warns(UserWarning, match='more than 8 bits'): read_image(tmp_path/'a.png')
