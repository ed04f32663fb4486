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
from ccreid.video.boxes import BOX, COLUMNS, clip_box, kind_of_boxes, read_boxes, write_boxes
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
    'tabs': 'frame\ttrack\tleft\ttop\tright\tbottom\tscore\n3\t7\t10\t20\t40\t100\t.5\n4\t8\t1.5\t2\t4.5\t6\t1',
}

@pytest.mark.parametrize('form', FORMS)
def test_forms_of_text_say_the_same(tmp_path, form):
    (tmp_path/'f').write_text(FORMS[form])
    assert kind_of_boxes(tmp_path/'f')==('csv' if form in ('csv','csv;','tabs') else 'mot')
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
    assert table.attrs['left_out']=={'of another category': 1, 'of a crowd': 1}
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
}

@pytest.mark.parametrize('name', WRONG)
def test_what_is_wrong_is_named_in_one_line(tmp_path, name):
    text,says = WRONG[name]
    (tmp_path/name).write_text(text)
    with pytest.raises(DataError, match=says) as e: read_boxes(tmp_path/name)
    assert name in str(e.value) and '\n' not in str(e.value)


def test_files_that_are_none(tmp_path):
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
    for table,says in (table_of([(0, 'anna', (0,0,1,1), 1.)]), 'not .anna.'), (table_of([(-1, '1', (0,0,1,1), 1.)]), 'match the names'):
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
