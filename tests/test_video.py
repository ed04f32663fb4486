"Boxes of people, frames, tracklets: against brute force, round trips, bad input, kill and resume, and as a user writes it"
import json, re, sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from ccreid.data.samples import DataError
from ccreid.video.boxes import BOX, COLUMNS, as_boxes, clip_box, kind_of_boxes, read_boxes, write_boxes
from ccreid.video.frames import FolderFrames, clip_name, natural, open_frames


def table_of(rows): return pd.DataFrame([(f, '', t, *map(float, b), s) for f,t,b,s in rows], columns=list(COLUMNS))

# --- boxes

numbers = st.floats(-500, 2000, width=32).map(lambda v: round(v, 2))
sides = st.floats(.25, 900, width=32).map(lambda v: round(v, 2)+.01)
row = st.tuples(st.integers(0, 60), st.integers(0, 9), numbers, numbers, sides, sides, st.integers(1, 100))


@settings(max_examples=12)
@given(st.lists(row, min_size=1, max_size=30, unique_by=lambda r: r[:2]), st.integers(0, 2))
def test_what_is_written_is_read_again(tmp_path_factory, rows, first):
    path = tmp_path_factory.mktemp('mot')/'t.txt'
    table = table_of([(f, str(t), (x, y, x+w, y+h), s/100) for f,t,x,y,w,h,s in rows])
    found = read_boxes(write_boxes(path, table, first), first=first)
    assert found[['frame','track','score']].values.tolist()==table[['frame','track','score']].values.tolist()
    np.testing.assert_allclose(found[list(BOX)].to_numpy(), table[list(BOX)].to_numpy(), atol=1e-4)


FORMS = {
    'mot': '3,7,10,20,30,80,0.5,-1,-1,-1\n\n 4 , 8 , 1.5 , 2 , 3 , 4\n',
    'blanks': '3 7 10 20 30 80 .5\n4 8 1.5 2 3 4',
    'csv': '﻿Frame,Track_ID,x1,y1,x2,y2,Confidence\n3,7,10,20,40,100,0.5\n4,8,1.5,2,4.5,6,\n',
    'csv;': 'id;height;width;top;left;frame;conf\n7;80;30;20;10;3.0;.5\n\n8;4;3;2;1.5;4;1\n',
    'blank lines': '\n\n"frame",track,left,top,right,bottom,score\n\n3,7.0,10,20,40,100,.5\n4,8,1.5,2,4.5,6,1\n',
    'bb': 'frame,id,bb_left,bb_top,bb_width,bb_height,conf,x,y,z\n3,7,10,20,30,80,.5,-1,-1,-1\n4,8,1.5,2,3,4,1,-1,-1,-1\n',
    'tabs': 'frame\ttrack\tleft\ttop\tright\tbottom\tscore\n3\t7\t10\t20\t40\t100\t.5\n4\t8\t1.5\t2\t4.5\t6\t1',
}

@pytest.mark.parametrize('form', FORMS)
def test_forms_of_text_say_the_same(tmp_path, form):
    (tmp_path/'f').write_text(FORMS[form])
    assert kind_of_boxes(tmp_path/'f')==('mot' if form in ('mot','blanks') else 'csv')
    assert read_boxes(tmp_path/'f').values.tolist()==[[2,'','7',10,20,40,100,.5],[3,'','8',1.5,2,4.5,6,1]]


def coco(**kw):
    images = [dict(id=5, file_name='x/2.jpg', frame_id=9), dict(id=3, file_name='x/1.jpg', frame_id=4)]
    boxes = [dict(image_id=5, track_id=1, bbox=[1,2,3,4], category_id=2), dict(image_id=3, attributes=dict(track_id='a'), bbox=[0,0,1,1], category_id=2, score=.5)]
    return dict(images=images, annotations=boxes, categories=[dict(id=2, name='Person'), dict(id=3, name='dog')]) | kw


def test_coco(tmp_path):
    found = coco()
    found['annotations'] += [dict(image_id=3, bbox=[0,0,9,9], category_id=3), dict(image_id=3, bbox=[0,0,9,9], category_id=2, iscrowd=1)]
    (tmp_path/'c.json').write_text(json.dumps(found))
    table = read_boxes(tmp_path/'c.json')
    assert table.values.tolist()==[[1,'x/2.jpg','1',1,2,4,6,1],[0,'x/1.jpg','a',0,0,1,1,.5]]        # in the order of frame_id
    assert table.attrs==dict(left_out={'of another category': 1, 'of a crowd': 1}, images=2)
    del found['images'][0]['frame_id']; found['categories'] = [dict(id=3, name='dog')]              # now as they stand, and all
    found['annotations'] = found['annotations'][:2]
    (tmp_path/'c.json').write_text(json.dumps(found))
    assert read_boxes(tmp_path/'c.json').frame.tolist()==[0,1]


WRONG = {
    'five.txt': ('1,7,1,2,3', 'line 1: 5 values'), 'word.txt': ('1,7,1,2,3,4\n2,7,1,two,3,4', "line 2: top is 'two', not a number"),
    'inf.txt': ('1,7,1,2,inf,4', "line 1: width is 'inf'"), 'half.txt': ('1.5,7,1,2,3,4', "line 1: the frame is '1.5', not a whole number"),
    'zero.txt': ('0,7,1,2,3,4', 'line 1: frame 0, and frames count from 1'), 'minus.txt': ('1,7,1,2,-3,4', 'line 1: the box is -3 x 4'),
    'twice.txt': ('1,7,1,2,3,4\n\n1,7,1,2,3,5', r'line 3: track 7 has a box in this frame already \(line 1\)'),
    'det.txt': ('1,-1,1,2,3,4,.9', 'line 1: the box belongs to no track'), 'empty.txt': ('', 'empty.txt holds no box'),
    'no.csv': ('frame,track,left,top,right\n1,7,1,2,3', r'line 1: no column bottom \(bottom, y2, ymax\) among frame'),
    'short.csv': ('frame,track,left,top,right,bottom\n1,7,1,2,3', 'line 2: 5 values, fewer than the header'),
    'turned.csv': ('frame,track,left,top,right,bottom\n1,7,5,2,3,9', 'line 2: the box is -2 x 7'),
    'nothing.csv': ('frame,track,left,top,right,bottom\n', 'holds no box'), 'noframe.csv': ('frame,track,left,top,right,bottom\n,7,5,2,9,9', 'line 2: the frame is empty'),
    'notrack.csv': ('frame,left,top,width,height\n1,5,2,9,9', 'line 2: the box belongs to no track'),
    'html.txt': ('<html>no</html>', 'line 1: 1 values'), 'cut.json': ('{"images": [', 'cut.json is damaged'), 'list.json': ('[]', 'holds list, not dict'),
    'noimages.json': (json.dumps(coco(images=None)), 'a list of objects called images'), 'annotation.json': (json.dumps(coco(annotations=[3])), 'called annotations'),
    'lost.json': (json.dumps(coco(annotations=[dict(image_id=77, bbox=[1,2,3,4])])), 'annotation 0: there is no image 77'),
    'bbox.json': (json.dumps(coco(annotations=[dict(image_id=5, track_id=1, bbox=[1,2,3])])), 'annotation 0: bbox is no list'),
    'true.json': (json.dumps(coco(annotations=[dict(image_id=5, track_id=1, bbox=[1,2,True,4])])), 'annotation 0: width is'),
    'ids.json': (json.dumps(coco(images=[dict(id=5), dict(id=5)])), 'an image has no id, or one that another has'),
    'far.txt': ('1e300,7,1,2,3,4', "line 1: the frame is '1e300', not a whole number"), 'id.txt': ('1,anna,1,2,3,4', "line 1: the id is 'anna', not a number"),
    'endless.txt': ('1,7,1e308,2,1e308,4', 'line 1: the box ends nowhere'),
    'mixed.csv': ('frame,track,left,top,right,bottom\n1,7,0,0,9,9\n\nabc,7,0,0,9,9', "line 4: the frame is 'abc', and a whole number in other lines"),
    'long.csv': ('frame,track,left,top,right,bottom,'+'x'*140_000+'\n1,7,0,0,9,9,1', 'line 1: field larger than field limit'),
    'films.json': (json.dumps(coco(images=[dict(id=5, video_id=1), dict(id=3, video_id=2)])), r'images of 2 videos \(video_id\): one film at a time'),
    'listed.json': (json.dumps(coco(annotations=[dict(image_id=[5], track_id=1, bbox=[1,2,3,4])])), r'annotation 0: there is no image \[5\]'),
    'track.json': (json.dumps(coco(annotations=[dict(image_id=5, track_id=[1], bbox=[1,2,3,4])])), r'annotation 0: track_id is \[1\], no number and no text'),
}

@pytest.mark.parametrize('name', WRONG)
def test_what_is_wrong_is_named_in_one_line(tmp_path, name):
    text,says = WRONG[name]
    (tmp_path/name).write_text(text)
    with pytest.raises(DataError, match=says) as e: read_boxes(tmp_path/name)
    assert name in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('written,track', [('7','7'),('7.0','7'),('007','007'),('Ann','Ann'),('-1',''),('-1.0',''),('nan',''),('',''),('Nan','Nan'),('inf','inf'),('1.5','1.5')])
def test_what_is_a_track(tmp_path, written, track):
    (tmp_path/'t.csv').write_text(f'frame,track,left,top,right,bottom\n1,{written},0,0,9,9\n')
    assert read_boxes(tmp_path/'t.csv', detections=True).track.tolist()==[track]
    (tmp_path/'t.json').write_text(json.dumps(coco(annotations=[dict(image_id=5, track_id=written, bbox=[1,2,3,4])])))
    assert read_boxes(tmp_path/'t.json', detections=True).track.tolist()==[track]


anything = st.recursive(st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=3), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(['id','track_id','name']), v, max_size=2), max_leaves=4)
PLACES = [('images',),('annotations',),('categories',), *(('images', 0, k) for k in ('id','file_name','frame_id','video_id')), ('categories', 0, 'id'), ('categories', 0, 'name'), ('categories', 0),
          *(('annotations', 1, k) for k in ('image_id','track_id','attributes','bbox','score','category_id','iscrowd')), ('annotations', 1, 'bbox', 2), ('annotations', 1, 'attributes', 'track_id')]

@settings(max_examples=60)
@given(st.sampled_from(PLACES), anything)
def test_whatever_stands_in_a_coco_file_there_is_a_table_or_one_line(tmp_path_factory, place, value):
    at = found = coco()
    for k in place[:-1]: at = at[k]
    at[place[-1]] = value
    path = tmp_path_factory.mktemp('coco')/'c.json'
    path.write_text(json.dumps(found))
    try: table = read_boxes(path)
    except DataError as e: assert '\n' not in str(e) and 'c.json' in str(e)
    else: assert len(table) and np.isfinite(table[list(BOX)].to_numpy()).all()


@settings(max_examples=60)
@given(st.lists(st.text('019.-+e,; \t"xnaf\n', max_size=30), max_size=4), st.sampled_from(['mot','csv']))
def test_whatever_stands_in_a_text_there_is_a_table_or_one_line(tmp_path_factory, lines, kind):
    path = tmp_path_factory.mktemp('text')/'t.txt'
    path.write_text('\n'.join([*['frame,track,left,top,right,bottom']*(kind=='csv'), '1,7,0,0,9,9', *lines]))
    try: table = read_boxes(path, kind, detections=True)
    except DataError as e: assert 't.txt, line ' in str(e)
    else: assert len(table) and np.isfinite(table[list(BOX)].to_numpy()).all()


def test_a_table_of_ones_own_is_looked_at_before_it_is_used(tmp_path):
    from ccreid.video.linking import link
    own = pd.DataFrame([(0, 7, 1, 2, 4, 6), (1., 7, 1, 2, 4, 6)], columns=['frame','track',*BOX], index=[5,5])
    found = as_boxes(own)
    assert found[list(COLUMNS)].values.tolist()==[[0,'','7',1,2,4,6,1],[1,'','7',1,2,4,6,1]] and found.index.tolist()==[5,5]
    assert as_boxes(own.assign(track=[None,-1.])).track.tolist()==['','']
    assert write_boxes(tmp_path/'w.txt', own).read_text().splitlines()==['1,7,1,2,3,4,1,-1,-1,-1','2,7,1,2,3,4,1,-1,-1,-1']
    wrong = {'a column frame': own.drop(columns='frame'), 'a column top': own.drop(columns='top'), "row 1: left is 'nan', not a number": own.assign(left=[1,None]),
             "row 0: frame is '0.5', not a whole number": own.assign(frame=[.5,1]), 'row 1: a frame counts from 0, or has a name': own.assign(frame=[0,-1]),
             'row 0: right is at least left': own.assign(right=[0,9]), "row 0: right is 'inf'": own.assign(right=np.inf)}
    for says,table in wrong.items():
        for use in as_boxes, link, lambda t: write_boxes(tmp_path/'x.txt', t):
            with pytest.raises(DataError, match=says): use(table)
    with pytest.raises(DataError, match='match_frames'): link(own.assign(frame=-1, name='a.jpg'))
    assert not (tmp_path/'x.txt').exists()


def test_files_that_are_none(tmp_path):
    (tmp_path/'e.csv').write_text('')
    with pytest.raises(DataError, match='e.csv, line 1: no column frame'): read_boxes(tmp_path/'e.csv', kind='csv')
    with pytest.raises(FileNotFoundError, match='no file of boxes at'): read_boxes(tmp_path/'x.txt')
    with pytest.raises(DataError, match='is a folder'): read_boxes(tmp_path)
    (tmp_path/'b.txt').write_bytes(b'1,7,\xff\xfe')
    with pytest.raises(DataError, match='b.txt is damaged'): read_boxes(tmp_path/'b.txt')
    with pytest.raises(ValueError, match='mot, csv, coco, not'): read_boxes(tmp_path/'b.txt', kind='yolo')


def test_detections_are_read_when_asked_for_and_flat_boxes_are_counted(tmp_path):
    (tmp_path/'d.txt').write_text('1,-1,1,2,3,4,.9\n1,-1,1,2,3,4,.9\n1,-1,1,2,0,4,.9\n2,-1,5,5,9,9,0')
    found = read_boxes(tmp_path/'d.txt', detections=True)
    assert len(found)==2 and set(found.track)=={''} and found.attrs['left_out']=={'without area': 1, 'marked 0, not to be considered': 1}
    assert (read_boxes(write_boxes(tmp_path/'e.txt', found), detections=True).values==found.values).all()
    for table,says in (table_of([(0, 'anna', (0,0,1,1), 1.)]), 'not .anna.'), (table_of([(-1, '1', (0,0,1,1), 1.)]).assign(name='a.jpg'), 'match the names'):
        with pytest.raises(ValueError, match=says): write_boxes(tmp_path/'f.txt', table)
    assert not (tmp_path/'f.txt').exists()


@given(st.tuples(numbers, numbers, sides, sides), st.integers(1, 300), st.integers(1, 300))
def test_a_clipped_box_is_the_pixels_of_the_frame_that_the_box_touches(box, W, H):
    (x,y,w,h),touched = box,[]
    got,over = clip_box((x, y, x+w, y+h), (W,H))
    xs,ys = (np.flatnonzero((np.arange(n)+1>a) & (np.arange(n)<a+b)) for n,a,b in ((W,x,w),(H,y,h)))
    assert got==((xs[0], ys[0], xs[-1]+1, ys[-1]+1) if len(xs) and len(ys) else None)
    assert over==(x<0 or y<0 or x+w>W or y+h>H)

# --- frames

@pytest.fixture
def folder(tmp_path):
    "Frames 1 to 12, whose names sort otherwise as texts"
    (tmp_path/'MOT-01'/'img1').mkdir(parents=True)
    for n in range(1, 13): Image.new('RGB', (40,30), (n,0,0)).save(tmp_path/'MOT-01'/'img1'/f'f{n}.png')
    return tmp_path/'MOT-01'/'img1'


def test_frames_of_a_folder_come_in_the_order_of_their_numbers(folder):
    frames = open_frames(folder)
    assert [frames[i].getpixel((3,3))[0] for i in range(len(frames))]==list(range(1, 13)) and frames.size(4)==(40,30)
    assert open_frames(frames) is frames and clip_name(frames)=='MOT-01' and clip_name(FolderFrames(folder.parent))=='MOT-01'
    for i in -1,12:
        with pytest.raises(DataError, match='12 frames'): frames[i]


@pytest.mark.parametrize('ending', ['jpg','png','webp','tiff'])
def test_the_size_of_a_frame_is_that_of_the_picture_however_it_is_to_be_turned(tmp_path, ending):
    for turn in range(1, 9):
        picture = Image.new('RGB', (40,20))
        exif = picture.getexif()
        exif[0x0112] = turn
        picture.save(tmp_path/f'{turn}.{ending}', exif=exif)
    frames = open_frames(tmp_path)
    sizes = [frames.size(i) for i in range(8)]
    assert sizes==[frames[i].size for i in range(8)]==[(40,20)]*4+[(20,40)]*4
    left_below = table_of([(7, '1', (0,30,9,39), 1.)])                   # inside as it is seen, outside as it is stored
    assert len(embed_tracklets(colour, tmp_path, left_below, tmp_path/'v.npz'))==1


@given(st.lists(st.integers(0, 10**6), min_size=1, unique=True))
def test_natural_order_is_that_of_numbers(ns):
    assert [int(n[1:-4]) for n in sorted((f'f{n}.jpg' for n in ns), key=natural)]==sorted(ns)
    assert len({natural(f'{"0"*k}{ns[0]}') for k in range(4)})==4


@pytest.mark.parametrize('make,says', [
    (lambda p: p/'none', 'no folder of frames and no video at'), (lambda p: (p/'e').mkdir() or p/'e', 'holds no picture'),
    (lambda p: Image.new('RGB', (4,4)).save(p/'a.png') or p/'a.png', 'is one picture')])
def test_what_holds_no_frames(tmp_path, make, says):
    with pytest.raises(DataError, match=says): open_frames(make(tmp_path))


def test_without_the_package_one_line_names_the_extra(tmp_path, monkeypatch):
    (tmp_path/'a.mp4').write_bytes(b'x')
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(ImportError, match=r'^av is not installed: pip install "ccreid\[video\]"$'): open_frames(tmp_path/'a.mp4')


def write_video(path, pictures, ticks=None, turn=0):
    "A film whose pixels are kept exactly (.mkv), or nearly (.mp4)"
    import av
    exact = path.suffix=='.mkv'
    with av.open(str(path), 'w') as out:
        stream = out.add_stream('ffv1' if exact else 'mpeg4', rate=25)
        (stream.width,stream.height),stream.pix_fmt = pictures[0].size,'bgr0' if exact else 'yuv420p'
        stream.codec_context.time_base = Fraction(1, 25)
        if turn: stream.set_display_rotation(turn)
        for p,t in zip(pictures, ticks or range(len(pictures))):
            frame = av.VideoFrame.from_image(p)
            frame.pts,frame.time_base = t,Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def greys(n, size=(32,16)): return [Image.new('RGB', size, (9*i,)*3) for i in range(n)]


def test_frames_of_a_video_are_decoded_once_in_order_and_again_when_asked_backwards(tmp_path):
    pytest.importorskip('av')
    frames = open_frames(write_video(tmp_path/'v.mkv', greys(12)))
    decoded,step = [],frames._next
    frames._next = lambda: (decoded.append(1), step())
    assert [frames[i].getpixel((2,2))[0] for i in (0,3,3,4,11)]==[0,27,27,36,99] and len(decoded)==12
    assert frames[2].getpixel((2,2))[0]==18 and len(decoded)==15 and not frames.variable and frames.rate==25 and clip_name(frames)=='v'
    assert frames.size(7)==(32,16) and repr(frames).endswith('25 frames a second')
    with pytest.raises(DataError, match='v.mkv ends after 12 frames'): frames[12]
    frames.close()


def test_a_varying_rate_is_said_and_frames_are_counted_not_timed(tmp_path):
    pytest.importorskip('av')
    frames = open_frames(write_video(tmp_path/'v.mkv', greys(6), [0,1,2,9,10,30]))
    assert [frames[i].getpixel((2,2))[0] for i in range(6)]==[0,9,18,27,36,45] and frames.variable and 'variable' in repr(frames)


def test_a_film_on_its_side_is_turned_as_its_note_says(tmp_path):
    av = pytest.importorskip('av')
    picture = Image.new('RGB', (32,16), 'black')
    picture.paste((255,255,255), (0,0,8,8))                       # a mark in the left upper corner
    for turn,corner in (90,(0,31-2)),(-90,(15-2,0)),(180,(31-2,15-2)):
        try: path = write_video(tmp_path/f'{turn}.mp4', [picture]*3, turn=turn)
        except AttributeError: pytest.skip('this PyAV cannot write the note')
        shown = open_frames(path)
        assert shown.size(0)==((16,32) if abs(turn)==90 else (32,16))
        note = round(next(av.open(str(path)).decode(video=0)).rotation)
        assert note%360==turn%360                                   # counter-clockwise
        bright = np.argwhere(np.asarray(shown[1].convert('L'))>128)
        assert abs(bright.mean(0)[::-1]-corner).max()<8, turn


def test_damaged_videos_end_in_one_line(tmp_path):
    av = pytest.importorskip('av')
    for name,data in ('text.mp4',b'not a film'),('empty.mp4',b''),('page.mp4',b'<html>'):
        (tmp_path/name).write_bytes(data)
        with pytest.raises(DataError, match=name) as e: open_frames(tmp_path/name)
        assert '\n' not in str(e.value)
    whole = write_video(tmp_path/'w.mkv', greys(40, (64,64))).read_bytes()
    (tmp_path/'cut.mkv').write_bytes(whole[:len(whole)//2])
    frames = open_frames(tmp_path/'cut.mkv')
    with pytest.raises(DataError, match=r'cut.mkv(: frame \d+ cannot be decoded| ends after \d+ frames)'):
        for i in range(40): frames[i]
    with av.open(str(tmp_path/'sound.wav'), 'w') as out:
        stream = out.add_stream('pcm_s16le', rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1,800), np.int16), layout='mono')
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with pytest.raises(DataError, match='it has no video stream'): open_frames(tmp_path/'sound.wav')

# --- tracklets

from ccreid.search.exact import ExactIndex
from ccreid.search.vectors import read_vectors
from ccreid.video.tracklets import Crops, boxes_file, embed_tracklets, evenly, match_frames, pool, sampled


@settings(max_examples=30)
@given(st.integers(0, 80), st.integers(1, 9), st.none() | st.integers(1, 30))
def test_boxes_are_taken_evenly(count, every, most):
    at,rest = evenly(count, every, most),list(range(0, count, every))
    assert set(at)<=set(rest) and at==sorted(set(at)) and len(at)==min(len(rest), most or len(rest))
    if most and len(rest)>most: # equal gaps, but for rounding, and half of one at both ends
        where = [rest.index(a) for a in at]
        gaps,ends = np.diff(where),(where[0], len(rest)-1-where[-1])
        assert most==1 or gaps.max()-gaps.min()<=1 and max(ends)<=gaps.max()
        assert abs(ends[0]-ends[1])<=1


@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 999), st.sampled_from(['mean','median']))
def test_pooling_is_what_it_says(n, d, seed, how):
    f = np.random.default_rng(seed).normal(size=(n,d))*np.random.default_rng(seed+1).uniform(.1, 9, (n,1))
    u = np.array([r/np.sqrt((r**2).sum()) for r in f])
    m = np.array([getattr(np, how)(u[:,j]) for j in range(d)])
    if np.linalg.norm(m)<1e-9: return
    v,variance = pool(f, how)
    np.testing.assert_allclose(v, m/np.sqrt((m**2).sum()), atol=1e-6)
    assert variance==pytest.approx(sum(np.var(u[:,j]) for j in range(d)), abs=1e-12)


COLOURS = {'1': (200,30,30), '2': (30,200,60), 'x y': (40,60,220)}

@pytest.fixture
def scene(tmp_path):
    "A folder of 9 frames in which coloured squares move, their boxes, and the same as a list of pictures"
    rows,pictures = [],[]
    (tmp_path/'walk').mkdir()
    for f in range(9):
        p = Image.new('RGB', (80,40), 'black')
        for n,(t,c) in enumerate(COLOURS.items()):
            x,y = 8*f-6+n,3+12*n
            p.paste(c, (x, y, x+8, y+8))
            rows.append((f, t, (x, y, x+8, y+8), 1.))
        p.save(tmp_path/'walk'/f'{f+1}.png')
        pictures.append(p)
    return tmp_path/'walk',table_of(rows),pictures


def colour(pictures): return [[*np.asarray(p, float).mean((0,1)), 9.] for p in pictures]


def test_vectors_are_those_of_the_crops_pooled_by_track(scene, tmp_path):
    folder,table,pictures = scene
    shuffled = table.sample(frac=1, random_state=3)
    v = embed_tracklets(colour, folder, shuffled, tmp_path/'v.npz', batch_size=4)
    assert v.ids==['walk/1','walk/2','walk/x y'] and read_vectors(tmp_path/'v.npz').ids==v.ids
    for t,got in zip(COLOURS, v.vectors):
        crops = [pictures[o.frame].crop((max(0, int(o.left)), int(o.top), min(80, int(o.right)), int(o.bottom))) for o in table[table.track==t].itertuples()]
        f = np.array(colour(crops))
        m = (f/np.linalg.norm(f, axis=1, keepdims=True)).mean(0)
        np.testing.assert_allclose(got, m/np.linalg.norm(m), atol=1e-6)
        assert v.about['tracklets'][f'walk/{t}']['variance']==pytest.approx(1-(m**2).sum(), abs=1e-5)
    assert v.about['counts']==dict(boxes=27, tracks=3, outside=0, clipped=3) and len(read_vectors(boxes_file(tmp_path/'v.npz')))==27
    assert v.about['tracklets']['walk/1']=={'boxes': 9, 'first': 0, 'last': 8, 'variance': v.about['tracklets']['walk/1']['variance']}


def test_a_job_that_is_killed_goes_on_and_pooling_again_embeds_nothing(scene, tmp_path, monkeypatch):
    import ccreid.video.tracklets as tracklets
    from functools import partial
    real = tracklets.embed_to_file
    monkeypatch.setattr(tracklets, 'embed_to_file', lambda *a: real(*a[:6], 4, *a[7:]))            # parts of four crops
    folder,table,_ = scene
    whole = embed_tracklets(colour, folder, table, tmp_path/'w.npz')
    calls = []
    class Cut:
        def __call__(self, pictures):
            calls.append(len(pictures))
            if len(calls)==3: raise KeyboardInterrupt
            return colour(pictures)
    cut = Cut()
    with pytest.raises(KeyboardInterrupt): embed_tracklets(cut, folder, table, tmp_path/'v.npz', crops=tmp_path/'c')
    assert not (tmp_path/'v.npz').exists() and calls==[4,4,4]
    v = embed_tracklets(cut, folder, table, tmp_path/'v.npz', crops=tmp_path/'c')
    np.testing.assert_allclose(v.vectors, whole.vectors, atol=1e-6)
    assert calls==[4,4,4, 4,4,4,4,3] and sorted(p.name for p in (tmp_path/'c'/'walk').iterdir())==['1.jpg','2.jpg','x y.jpg']
    (tmp_path/'c'/'walk'/'2.jpg').unlink()
    median = embed_tracklets(cut, folder, table, tmp_path/'v.npz', 'median', crops=tmp_path/'c')
    assert len(calls)==8 and median.about['pool']=='median' and (tmp_path/'c'/'walk'/'2.jpg').exists()
    moved = table.assign(left=table.left+.5)
    embed_tracklets(cut, folder, moved, tmp_path/'v.npz', crops=tmp_path/'c')                         # other boxes: another job
    assert len(calls)==15
    shown = Image.open(tmp_path/'c'/'walk'/'2.jpg')
    assert shown.size[1]==8 and np.abs(np.asarray(shown, float).mean((0,1))-COLOURS['2']).max()<30


def test_names_of_pictures_find_their_frames(scene):
    folder,table,_ = scene
    frames = open_frames(folder)
    named = table.assign(name=[f'some/where/{f+1}.png' for f in table.frame], frame=-1)
    assert match_frames(named, frames).frame.tolist()==table.frame.tolist()
    with pytest.raises(DataError, match='has no picture 99.png'): match_frames(named.assign(name='99.png'), frames)
    with pytest.raises(DataError, match='has 9 frames, and there is a box in the one of position 9'): match_frames(table.assign(frame=table.frame+1), frames)
    (folder/'b').mkdir()
    Image.new('RGB', (80,40)).save(folder/'b'/'1.png')
    with pytest.raises(DataError, match='1.png, or several'): match_frames(named, open_frames(folder))
    assert match_frames(named.assign(name='b/1.png'), open_frames(folder)).frame.tolist()==[9]*27


@pytest.mark.parametrize('left,numbers,want', [
    ((1,4,7), (1,4,7), [0,1,2]), ((1,4,7), (4,7), [1,2]), ((1,4,7), (2,3), [1,2]), ((2,3,4), (1,3), [0,2]),
    ((1,4,7), (1,2,3), 'none with the number 2'), ((1,4,7), (7,8), 'none with the number 8'), ((1,4,7), (5,), 'has 3 frames, and there is a box in the one of position 4')])
def test_numbers_are_those_of_pictures_where_some_were_left_out(tmp_path, left, numbers, want):
    (tmp_path/'f').mkdir()
    for n in left: Image.new('RGB', (9,9)).save(tmp_path/'f'/f'shot_{n:03}.png')
    (tmp_path/'b.txt').write_text(''.join(f'{n},7,0,0,5,5\n' for n in numbers))
    frames,table = open_frames(tmp_path/'f'),read_boxes(tmp_path/'b.txt')
    if isinstance(want, list): assert match_frames(table, frames).frame.tolist()==want
    else:
        with pytest.raises(DataError, match=want) as e: match_frames(table, frames)
        assert '\n' not in str(e.value)
    table.attrs.pop('first')                                            # positions, not numbers of a file
    if max(numbers)<=3: assert match_frames(table, frames).frame.tolist()==[n-1 for n in numbers]


def test_a_frame_that_cannot_be_read_is_no_crop_to_be_kept(scene, tmp_path):
    folder,table,pictures = scene
    (folder/'5.png').write_bytes(b'')                                   # the middle frame of each track
    v = embed_tracklets(colour, folder, table, tmp_path/'v.npz', skip_bad=True, crops=tmp_path/'c')
    assert v.ids==['walk/1.jpg','walk/2.jpg','walk/x y.jpg'] and all((tmp_path/'c'/i).exists() for i in v.ids)
    assert np.abs(np.asarray(Image.open(tmp_path/'c'/'walk'/'2.jpg'), float).mean((0,1))-COLOURS['2']).max()<30


def test_what_is_wrong_is_said_before_anything_is_embedded(scene, tmp_path):
    folder,table,_ = scene
    def never(pictures): raise AssertionError('embedded')
    def refused(says, table=table, **kw):
        with pytest.raises((DataError,ValueError), match=says) as e: embed_tracklets(never, folder, table, tmp_path/'v.npz', **kw)
        assert '\n' not in str(e.value)
    refused('mean or median', pooling='max')
    refused('no path that leads elsewhere', clip='../up', crops=tmp_path/'c')
    refused('no path that leads elsewhere', clip=str(tmp_path/'up'), crops=tmp_path/'c')
    refused('track 1 has two boxes in one frame .that of position 0', pd.concat([table, table[:1]]))
    refused('a column left', table.drop(columns='left'))
    refused('some boxes have no name', table.assign(name=['1.png']+['']*26, frame=[-1]+[0]*26))
    assert embed_tracklets(colour, folder, table.assign(track=7)[::3], tmp_path/'v.npz').ids==['walk/7']


def test_a_tracklet_that_points_nowhere_is_named(scene, tmp_path):
    folder,table,_ = scene
    def both(pictures): return [[1.,0.] if k%2 else [-1.,0.] for k in range(len(pictures))]
    with pytest.raises(ValueError, match='track x y: the mean of 8 vectors has length 0'): embed_tracklets(both, folder, table[table.track=='x y'][:8], tmp_path/'v.npz')


def test_boxes_outside_are_counted_and_what_cannot_be_used_is_said(scene, tmp_path):
    folder,table,_ = scene
    far = pd.concat([table, table_of([(3, '9', (90,0,99,9), 1.), (4, '1 b', (-5,-5,3,3), 1.)])], ignore_index=True)
    v = embed_tracklets(colour, folder, far, tmp_path/'v.npz')
    assert v.about['counts']==dict(boxes=29, tracks=5, outside=1, clipped=4) and 'walk/9' not in v.ids and 'walk/1 b' in v.ids
    with pytest.raises(DataError, match='no box lies inside'): embed_tracklets(colour, folder, far[far.track=='9'], tmp_path/'x.npz')
    with pytest.raises(DataError, match='without a track'): embed_tracklets(colour, folder, table.assign(track=''), tmp_path/'x.npz')
    with pytest.raises(ValueError, match='at least 1'): embed_tracklets(colour, folder, table, tmp_path/'x.npz', every=0)
    with pytest.raises(ValueError, match='mean or median'): embed_tracklets(colour, folder, table, tmp_path/'x.npz', 'max')
    (folder/'5.png').write_bytes(b'')
    with pytest.raises(DataError, match='5.png.*is empty.*needed for the box 1#4#'): embed_tracklets(colour, folder, table, tmp_path/'x.npz')
    kept = embed_tracklets(colour, folder, table, tmp_path/'y.npz', skip_bad=True)
    assert len(kept.about['skipped'])==3 and kept.about['tracklets']['walk/1']['boxes']==8
    assert not (tmp_path/'x.npz').exists()


def test_a_video_gives_what_its_frames_give_decoded_once(scene, tmp_path, monkeypatch):
    pytest.importorskip('av')
    import ccreid.video.frames as module
    folder,table,pictures = scene
    v = embed_tracklets(colour, folder, table, tmp_path/'v.npz')
    frames,decoded = open_frames(write_video(tmp_path/'walk.mkv', pictures)),[]
    step = frames._next
    frames._next = lambda: (decoded.append(1), step())
    w = embed_tracklets(colour, frames, table, tmp_path/'w.npz', crops=tmp_path/'c')
    np.testing.assert_allclose(w.vectors, v.vectors, atol=1e-6)
    assert len(decoded)==9 and w.ids==['walk/1.jpg','walk/2.jpg','walk/x y.jpg']
    with pytest.raises(DataError, match='walk.mkv.*no names such as'): embed_tracklets(colour, frames, table.assign(frame=-1, name='a'), tmp_path/'x.npz')
    listed = table.assign(name='a.jpg')
    listed.attrs['images'] = 5                                   # the head of this file says no number: its frames are counted
    assert frames.stated==0 and frames.counted()==9
    with pytest.raises(DataError, match='walk.mkv has 9 frames, and the file of boxes lists 5 images'): embed_tracklets(colour, frames, listed, tmp_path/'x.npz')
    with pytest.raises(DataError, match='ends after 9 frames'): embed_tracklets(colour, frames, table.assign(frame=table.frame+5), tmp_path/'x.npz')
    counted,some = open_frames(write_video(tmp_path/'walk.mp4', pictures)),table.assign(name='a.jpg')
    some.attrs['images'] = 5                                     # a COCO file that lists every second frame says another time
    with pytest.raises(DataError, match='walk.mp4 has 9 frames, and the file of boxes lists 5 images'): embed_tracklets(colour, counted, some, tmp_path/'x.npz')
    some.attrs['images'] = 9
    assert len(embed_tracklets(colour, counted, some, tmp_path/'y.npz'))==3


def test_tracklets_are_searched_like_pictures(scene, tmp_path):
    folder,table,_ = scene
    index = ExactIndex()
    index.add(embed_tracklets(colour, folder, table, tmp_path/'v.npz', most=3))
    again = embed_tracklets(colour, folder, table, tmp_path/'w.npz', every=2, clip='again')
    assert [r[0] for r in index.search(again, 1).ids]==['walk/1','walk/2','walk/x y']

# --- linking

import itertools

from ccreid.video.linking import assigned, link, overlaps, purity

box = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 9), st.integers(1, 9)).map(lambda b: (b[0], b[1], b[0]+b[2], b[1]+b[3]))
boxes = st.lists(box, min_size=1, max_size=4)


@settings(max_examples=25)
@given(boxes, boxes)
def test_overlaps_are_those_of_counted_pixels(a, b):
    def pixels(b): return {(x,y) for x in range(b[0], b[2]) for y in range(b[1], b[3])}
    want = [[len(pixels(p)&pixels(q))/len(pixels(p)|pixels(q)) for q in b] for p in a]
    np.testing.assert_allclose(overlaps(a, b), want)


@settings(max_examples=25)
@given(boxes, boxes, st.sampled_from([.1,.3,.7]))
def test_the_assignment_has_the_largest_sum_of_all(a, b, least):
    o = overlaps(a, b)
    o[o<least] = 0
    pairs = assigned(np.array(a, float), np.array(b, float), least)
    n = min(len(a), len(b))
    best = max(sum(o[i,j] for i,j in zip(rows, columns)) for rows in itertools.permutations(range(len(a)), n) for columns in itertools.combinations(range(len(b)), n))
    assert sum(o[i,j] for i,j in pairs)==pytest.approx(best) and all(o[i,j]>=least for i,j in pairs)
    assert len({i for i,_ in pairs})==len({j for _,j in pairs})==len(pairs)


def test_linking_follows_waits_and_ends():
    def walk(frames, x): return [(f, '', (x+f, 0, x+f+10, 20), .9) for f in frames]
    table = table_of(walk([0,1,2,5,6,12], 0)+walk(range(7), 40)+[(3, '', (90,0,99,9), .2)]).sample(frac=1, random_state=1)
    found = link(table, gap=2)
    assert found.groupby('track').frame.apply(list).to_dict()=={'1': [0,1,2,5,6], '2': [0,1,2,3,4,5,6], '3': [3], '4': [12]} or \
           found.groupby('track').frame.apply(list).to_dict()=={'2': [0,1,2,5,6], '1': [0,1,2,3,4,5,6], '3': [3], '4': [12]}
    assert link(table, gap=1).track.nunique()==5 and len(link(table, sure=.5))==13 and len(link(table[:0]))==0
    assert purity(found, ['a']*len(found))==(1., 4.)
    with pytest.raises(ValueError, match='least is above 0'): link(table, least=0.)

# --- a detector

def test_plain_suppression_is_that_of_the_definition():
    import torch
    from ccreid.video.detecting import plain_nms
    rng = np.random.default_rng(0)
    for n in 1,7,60:
        lt = rng.uniform(0, 30, (n,2))
        b = np.concatenate([lt, lt+rng.uniform(1, 20, (n,2))], 1)
        scores,left,kept = rng.permutation(n)/n,set(range(n)),[]
        while left:
            best = max(left, key=lambda i: scores[i])
            kept.append(best)
            left = {i for i in left-{best} if overlaps(b[[best]], b[[i]])[0,0]<=.4}
        assert plain_nms(torch.tensor(b), torch.tensor(scores), .4).tolist()==kept


def test_missing_and_foreign_weights_of_a_detector(tmp_path, monkeypatch):
    import torch
    from ccreid.video.detecting import DETECTOR, detector_weights, open_detector
    from ccreid.weights import WeightsNotFound
    monkeypatch.setenv('CCREID_WEIGHTS', str(tmp_path/'mine'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    with pytest.raises(WeightsNotFound, match=f'no weights of {DETECTOR}: put https://.*fpn-[0-9a-f]+.pth at .*checkpoints.* or ') as e: open_detector()
    assert '\n' not in str(e.value)
    (tmp_path/'mine').mkdir()
    torch.save({'a': torch.zeros(2)}, tmp_path/'mine'/f'{DETECTOR}.pth')
    assert detector_weights()==tmp_path/'mine'/f'{DETECTOR}.pth'
    with pytest.raises(ValueError, match='is of another network: 284 weights are missing, 1 unknown'): open_detector()
    (tmp_path/'mine'/f'{DETECTOR}.pth').write_text('<html>')
    with pytest.raises(ValueError, match='is a web page'): open_detector()
    with pytest.raises(ValueError, match='detectors are'): detector_weights('resnet50')

# --- the command

def test_from_a_film_to_an_answer(scene, ccreid, tmp_path):
    folder,table,pictures = scene
    (tmp_path/'model_of_a_video.py').write_text('import numpy as np\ndef colour(p): return [[*np.asarray(o, float).mean((0,1)), 9.] for o in p]\n')
    numbered = table.assign(track=table.track.map({'1': '1', '2': '2', 'x y': '3'}))
    write_boxes('b.txt', numbered)
    words = ['tracklets','walk','--boxes','b.txt','--weights','model_of_a_video:colour','--device','cpu']
    code,out,err = ccreid(*words, '--out', 'v.npz', '--crops', 'seen', '--most', '3')
    assert code==0 and 'boxes: 27 of 3 tracks, 9 used, 3 clipped\n' in out and 'Vectors: 3 of length 4' in out, err
    assert ccreid('index','v.npz','--out','i.index')[0]==0
    pictures[4].crop((28,15,36,23)).save('who.png')
    code,out,_ = ccreid('search','who.png','--index','i.index','--top','1','--device','cpu')
    assert code==0 and out.split()[-1]=='walk/2.jpg'
    assert ccreid('search','who.png','--index','i.index','--out','page.html','--device','cpu')[0]==0
    assert Path('page.html').read_text().count('src="data:image/jpeg')==4
    code,_,_ = ccreid(*words, '--out', 'w.npz', '--every', '4', '--pooling', 'median', '--clip', 'noon')
    assert code==0 and read_vectors('w.npz').ids==['noon/1','noon/2','noon/3'] and read_vectors('w.npz').about['pool']=='median'
    sys.modules.pop('model_of_a_video', None)


def test_a_detector_leaves_out_frames_that_cannot_be_read_when_asked_to(scene, tmp_path):
    import torch
    from ccreid.video.detecting import detect_people
    class One(torch.nn.Module):
        def forward(self, images): return [dict(boxes=torch.tensor([[0.,0.,5.,5.]]), labels=torch.ones(1).long(), scores=torch.ones(1)) for _ in images]
    folder,_,pictures = scene
    (folder/'5.png').write_bytes(b'')
    with pytest.raises(DataError, match='5.png.*is empty'): detect_people(One(), folder)
    assert detect_people(One(), folder, skip_bad=True).frame.tolist()==[0,1,2,3,5,6,7,8]
    if pytest.importorskip('av'):
        whole = write_video(tmp_path/'w.mkv', greys(40, (64,64))).read_bytes()
        (tmp_path/'cut.mkv').write_bytes(whole[:len(whole)//2])
        found = detect_people(One(), tmp_path/'cut.mkv', skip_bad=True).frame.tolist()
        assert 0<len(found)<40 and found==list(range(len(found)))
        assert detect_people(One(), write_video(tmp_path/'v.mkv', greys(6)), batch_size=4).frame.tolist()==list(range(6))


def test_detected_frames_are_counted_whatever_their_pictures_are_called(scene, ccreid, monkeypatch):
    import torch
    from ccreid.video import detecting
    folder,_,_ = scene
    for n in range(9, 0, -1): (folder/f'{n}.png').rename(folder/f'{2*n-1}.png')           # 1, 3, ..., 17: 1 to 9 are there in part
    class One(torch.nn.Module):
        def forward(self, images): return [dict(boxes=torch.tensor([[0.,0.,5.,5.]]), labels=torch.ones(1).long(), scores=torch.ones(1)) for _ in images]
    monkeypatch.setattr(detecting, 'open_detector', lambda name, device: One())
    code,out,err = ccreid('tracklets','walk','--detect',detecting.DETECTOR,'--weights','resnet_mini','--out','v.npz','--device','cpu')
    assert code==0 and 'boxes: 9 of 1 tracks, 9 used' in out, err
    code,_,err = ccreid('tracklets','walk','--boxes','v.boxes.txt','--weights','resnet_mini','--out','w.npz','--device','cpu')
    assert code==2 and 'numbered with gaps, and there is none with the number 2 of a box' in err


def test_help_is_light():
    import subprocess
    code = "import sys; from ccreid.cli import main\ntry: main(['tracklets','--help'])\nexcept SystemExit: pass\nprint([m for m in ('torch','pandas','PIL','scipy','av') if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stderr=='[]\n' and 'ccreid tracklets film.mp4 --boxes' in done.stdout


@pytest.mark.parametrize('change,says', [
    (['--boxes','none.txt'], 'no file of boxes at none.txt'), (['--boxes','det.txt'], 'det.txt, line 1: the box belongs to no track'), (['--first','2'], 'frame 1, and frames count from 2'),
    (['--out','v.csv'], 'v.csv: a file of vectors ends in'), (['--every','0'], '--every: expected a whole number, at least 1'), (['--first','0'], 'walk has 9 frames, and there is a box in the one of position 9'),
    (['--sure','.9'], '--sure is about --detect'), (['--clip','../up'], 'no path that leads elsewhere'), (['--weights','no_such_network'], 'no backbone')])
def test_what_cannot_be_done_is_one_line(scene, ccreid, change, says):
    write_boxes('b.txt', scene[1].assign(track='1')[::3])
    Path('det.txt').write_text('1,-1,0,0,9,9,.5')
    code,out,err = ccreid('tracklets','walk','--boxes','b.txt','--weights','resnet_mini','--out','v.npz','--device','cpu', *change)
    assert code==2 and says in err and err.count('\n')==1 and not Path('v.npz').exists()


def test_a_detector_by_name_takes_the_place_of_boxes(scene, ccreid, monkeypatch):
    import torch
    from ccreid.video import detecting
    from ccreid.weights import WeightsNotFound
    folder,table,_ = scene
    class Knows(torch.nn.Module):
        calls = 0
        def __init__(self): super().__init__(); self.nothing = torch.nn.Parameter(torch.zeros(1))
        def forward(self, images):
            out = []
            for _ in images:
                b = torch.tensor(table[table.frame==Knows.calls][list(BOX)].to_numpy())
                out.append(dict(boxes=b, labels=torch.ones(len(b)).long(), scores=torch.tensor([.9,.8,.4][:len(b)])))
                Knows.calls += 1
            return out
    words = ['tracklets','walk','--detect',detecting.DETECTOR,'--weights','resnet_mini','--out','v.npz','--device','cpu']
    monkeypatch.setenv('TORCH_HOME', 'nowhere')
    code,_,err = ccreid(*words)
    assert code==2 and err.startswith(f'ccreid: no weights of {detecting.DETECTOR}: put https://') and not Path('v.boxes.txt').exists()
    monkeypatch.setattr(detecting, 'open_detector', lambda name, device: Knows())
    code,out,_ = ccreid(*words)
    assert code==0 and Knows.calls==9 and read_boxes('v.boxes.txt').groupby('frame').size().tolist()==[2]*9  # the third is not sure enough
    assert len(read_vectors('v.npz'))==read_boxes('v.boxes.txt').track.nunique()==18      # squares move by their own width: no overlap
    code,out,_ = ccreid(*words, '--sure', '.3')
    assert code==0 and Knows.calls==9 and 'boxes: those of v.boxes.txt, which is there' in out
    code,out,err = ccreid(*words, '--restart')                                                        # no boxes are known of later frames
    assert code==2 and 'finds nobody in walk (--sure 0.5)' in err
    assert ccreid(*words, '--boxes', 'v.boxes.txt')[0]==2
    code,_,err = ccreid(*words, '--first', '0')
    assert code==2 and '--first is about --boxes' in err
    code,_,err = ccreid(*words, '--weights', 'no_such_network', '--out', 'w.npz')                    # before a film is searched
    assert code==2 and 'no backbone' in err and not Path('w.boxes.txt').exists()
