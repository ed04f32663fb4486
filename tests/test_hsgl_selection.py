"Key points and selection: the real pose networks, Eq. 2 and sharpness against other ways to compute them, and odd pictures"
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib.cbook
import numpy as np
import pandas as pd
import pytest
from hypothesis import given,strategies as st
from PIL import Image

from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import DataError
from ccreid.generation.stand_ins import MannequinKeypoints
from ccreid.generation.keypoints import MediaPipeKeypoints,people_in,pose_model
from ccreid.hsgl.selection import POSE_RULES,face_measures,grey,is_frontal,pose_faults,quality,rank_quality,select,select_as_released,sharpness,show_selection
from ccreid.weights import WeightsNotFound

# --- the real detector --------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='session')
def mediapipe(task_file): return MediaPipeKeypoints(task_file, border=0)

@pytest.fixture(scope='session')
def bordered(task_file): return MediaPipeKeypoints(task_file)


def photograph(): return Image.open(matplotlib.cbook.get_sample_data('grace_hopper.jpg', asfileobj=False)).convert('RGB')

@pytest.fixture(scope='module')
def world(): return MannequinWorld(identities=(12,0,2), size=(256,128), seed=3)


def test_a_photograph(mediapipe):
    "Grace Hopper looks at us: face points seen, in their places, and frontal by every reading"
    found, = mediapipe([photograph()])
    assert found.shape==(33,4) and found.dtype==np.float32
    nose,left,right,left_ear,right_ear = found[[0,2,5,7,8]]
    assert found[[0,2,5,7,8],3].min()>.9
    assert np.allclose(nose[:2], (.53,.38), atol=.03) and np.allclose(left[:2], (.60,.32), atol=.03) and np.allclose(right[:2], (.45,.32), atol=.03)
    assert right_ear[0]<right[0]<nose[0]<left[0]<left_ear[0] and max(left[1], right[1])<nose[1]
    w,h = photograph().size
    assert [is_frontal(found, rule, aspect=w/h) for rule in POSE_RULES]==[True]*4


def test_nobody_two_people_and_other_modes(mediapipe):
    one = photograph().resize((256,300))
    two = Image.new('RGB', (512,300)); two.paste(one, (0,0)); two.paste(one.resize((205,240)), (256,60))
    rng = np.random.default_rng(0)
    noise,white = Image.fromarray(rng.integers(0, 256, (128,64,3), np.uint8)),Image.new('RGB', (64,128), 'white')
    assert mediapipe([noise, white])==[None,None]
    both, = mediapipe([two])
    assert both.shape==(2,33,4) and (both[0,0,0]<.5) and (both[1,0,0]>.5)    # the bigger one first
    for mode in ('L','CMYK','RGBA','P'): assert people_in(mediapipe([one.convert(mode)])[0]).shape==(1,33,4)
    deep = Image.fromarray(np.asarray(one.convert('L')).astype(np.uint16)*257)
    assert np.array_equal(*mediapipe([deep, one.convert('L')]))              # 16 bits are scaled, not cut off
    same = mediapipe([one, white, one])
    assert same[1] is None and np.array_equal(same[0], same[2])


def test_mannequins_are_people_to_it(mediapipe, world):
    "From the front: the true joints within a few percent; the numbers written in the notebook are what it finds"
    people = [world.render(i, view='front') for i in range(12)]
    found = mediapipe([m.image for m in people])
    assert sum(len(people_in(f))==1 for f in found)>=11
    joints = [0,2,5,11,12,23,24,27,28]
    off = [np.abs(people_in(f)[0][joints,:2]-m.keypoints[joints,:2]).mean() for f,m in zip(found, people) if f is not None]
    assert np.median(off)<.03 and max(off)<.08
    written = {'front': [(.51,.16,1), (.54,.15,1), (.47,.15,1), (.56,.16,1), (.43,.16,1)], 'front-left': [(.47,.16,1), (.51,.15,1), (.46,.15,1), (.56,.17,1), (.46,.16,1)],
        'back': [(.52,.16,1), (.50,.16,1), (.55,.15,1), (.46,.17,1), (.58,.17,1)]}
    for view,numbers in written.items():
        assert np.allclose(people_in(mediapipe([world.render(7, view=view).image])[0])[0][[0,2,5,7,8]][:,[0,1,3]], numbers, atol=.02)


def test_a_border_shows_people_in_tight_crops_and_their_points_lie_where_they_lay(mediapipe, bordered, world):
    crops,bare = [],[]
    for i in range(12):
        m = world.render(i, view='front')
        x,y = (m.keypoints[:,:2]*m.image.size).T
        box = [round(v) for v in (max(x.min()-6, 0), max(y.min()-14, 0), min(x.max()+6, m.image.width), m.image.height)]
        crops.append((m.image.crop(box), (m.keypoints[:,:2]*m.image.size-box[:2])/np.subtract(box[2:], box[:2])))
    images = [im.resize((im.width//2, im.height//2)) for im,_ in crops]
    plain,more = ([people_in(f) for f in detector(images)] for detector in (mediapipe, bordered))
    assert sum(map(len, more))>=sum(map(len, plain)) and sum(len(f)==1 for f in more)>=10
    off = [np.abs(f[0][[11,12,23,24],:2]-k[[11,12,23,24]]).mean() for f,(_,k) in zip(more, crops) if len(f)]
    assert np.median(off)<.06

def test_two_people_stay_two_and_nobody_stays_nobody_with_a_border(bordered):
    one = photograph().resize((256,300))
    two = Image.new('RGB', (512,300)); two.paste(one, (0,0)); two.paste(one.resize((205,240)), (256,60))
    assert len(people_in(bordered([two])[0]))==2 and bordered([Image.new('RGB', (64,128), 'white')])==[None]
    found, = bordered([photograph()])
    w,h = photograph().size
    assert [is_frontal(found, rule, aspect=w/h) for rule in POSE_RULES]==[True]*4 and bordered.settings['border']==.25

def test_points_go_back_where_they_were():
    from ccreid.generation.keypoints import _bordered, _without_border
    pixels = np.zeros((40,20,3), np.uint8)
    wide,b = _bordered(pixels, .25)
    assert b==5 and wide.shape==(50,30,3) and (wide[:5]==128).all() and (wide[5:45,5:25]==0).all()
    inside = np.zeros((1,33,4), np.float32); inside[...,0],inside[...,1],inside[...,2],inside[...,3] = 15/30,45/50,.2,.9
    assert np.allclose(_without_border(inside, 20, 40, 5)[0,0], [.5,1.,.3,.9])
    assert _without_border(np.zeros((0,33,4), np.float32), 20, 40, 5).shape==(0,33,4)


def test_what_eq_2_can_and_cannot_tell_with_it(mediapipe, world):
    "The paper's three constraints let every back pass, because its visibility is 1 from all sides; the released function does not"
    found = {v: [people_in(f)[0] for f in mediapipe([world.render(i, 0, i%3, view=v).image for i in range(12)]) if f is not None] for v in ('front','back')}
    share = {(v,rule): np.mean([is_frontal(k, rule, aspect=.5) for k in ks]) for v,ks in found.items() for rule in POSE_RULES}
    assert share['back','paper']>.9 and share['front','paper']>.9
    assert share['front','ordered']>.9 and share['back','ordered']<.3
    assert share['back','released']<.2 and share['front','released']>.5


def test_select_with_it(mediapipe, tmp_path):
    dataset = MannequinWorld(identities=(4,0,1), outfits=2, cameras=3, images=1, size=(256,128), seed=3).write(tmp_path/'p', layout='prcc', workers=1)
    own = select(dataset, MannequinKeypoints(), n=3, m=2)
    real = select(dataset, mediapipe, n=3, m=2, rule='released')
    assert len(real.images)==len(own.images)==len(dataset.train)
    assert set(real.people.path)<=set(real.images.path[real.images.reason==''])
    truly = {p for p,k in zip(dataset.train.path, MannequinKeypoints()([None]*len(dataset.train), rows=dataset.train.to_dict('records'))) if k[:6,3].min()>.7}
    assert len(set(real.people.path)&truly)>=.7*len(real.people)>0


def test_missing_model_and_missing_package_say_so_in_one_line(tmp_path, monkeypatch, task_file):
    monkeypatch.setenv('CCREID_WEIGHTS', str(tmp_path))
    for name in ('pose_landmarker_heavy','pose_landmarker_lite'):
        with pytest.raises(WeightsNotFound) as e: MediaPipeKeypoints.from_pretrained(name)
        assert '\n' not in str(e.value) and f'{name}.task' in str(e.value) and str(tmp_path) in str(e.value) and 'https://' in str(e.value)
    with pytest.raises(WeightsNotFound, match='no pose model at'): MediaPipeKeypoints.from_pretrained(tmp_path/'x.task')
    (tmp_path/'pose_landmarker_heavy.task').write_bytes(task_file.read_bytes())
    assert pose_model('pose_landmarker_heavy').parent==tmp_path
    assert people_in(MediaPipeKeypoints.from_pretrained()([photograph()])[0]).shape==(1,33,4)
    for bad in (b'', b'not a model', task_file.read_bytes()[:5000]):
        (tmp_path/'bad.task').write_bytes(bad)
        with pytest.raises(ValueError) as e: MediaPipeKeypoints(tmp_path/'bad.task')
        assert '\n' not in str(e.value) and 'bad.task is not a pose model' in str(e.value)
    monkeypatch.setitem(sys.modules, 'mediapipe', None)
    with pytest.raises(ImportError) as e: MediaPipeKeypoints(task_file)
    assert str(e.value)=="key points of photographs need MediaPipe: pip install 'ccreid[pose]'"


# --- the pose test ------------------------------------------------------------------------------------------------------------------------

numbers = st.floats(0, 1).map(lambda x: round(x, 3))
near = st.sampled_from([.69,.7,.71,.05,.049,.1,.08,.081,.4,.39,.8,.81,.3,.29,.5]) | numbers

@st.composite
def faces(draw):
    k = np.zeros((33,4))
    for i in (0,2,5,7,8,11,12,23,24): k[i] = [draw(near) for _ in range(4)]
    return k


def score_by_hand(k):
    "The released function's score once more, word for word from the reference"
    nose,le,re,lear,rear = (k[i] for i in (0,2,5,7,8))
    score = .3*abs(le[1]-re[1])+.3*abs(nose[0]-(le[0]+re[0])/2)+.4*abs(lear[3]-rear[3])
    if lear[3]>.8 and rear[3]<.3 or rear[3]>.8 and lear[3]<.3: score += .5
    if abs(re[0]-le[0])<.08: score += .3
    return score

def by_hand(k, rule):
    "Eq. 2, and what the released function makes of it"
    nose,le,re,lear,rear = (k[i] for i in (0,2,5,7,8))
    seen = [p[3]>.7 for p in (nose,le,re)]
    level,ears,apart = abs(le[1]-re[1]),abs(lear[3]-rear[3]),abs(re[0]-le[0])
    if rule=='paper': return any(seen) and level<.05 and ears<.4
    if rule=='prose': return all(seen) and level<.05 and ears<.4 and apart>.08
    if rule=='ordered':
        (lx,ly),(rx,ry),(hx,hy),(gx,gy) = ((k[i][0]*ASPECT, k[i][1]) for i in (11,12,23,24))
        trunk = (((lx+rx)/2-(hx+gx)/2)**2+((ly+ry)/2-(hy+gy)/2)**2)**.5
        return any(seen) and level<.05 and ears<.4 and trunk>0 and (lx-rx)/trunk>.2
    return all(seen) and score_by_hand(k)<.3 and level<.05 and apart>.08 and ears<.4


ASPECT = .5

@given(faces())
def test_frontal_is_what_the_reference_says(k):
    assert face_measures(k)['score']==pytest.approx(score_by_hand(k), abs=1e-12)
    for rule in POSE_RULES:
        assert is_frontal(k, rule, ASPECT)==by_hand(k, rule)
        assert is_frontal(k, rule, ASPECT)==(pose_faults(k, rule, ASPECT)==[])
    assert is_frontal(k)==is_frontal(k, 'paper')
    if is_frontal(k, 'released'): assert is_frontal(k, 'prose')              # each reading is stricter than the one before
    if is_frontal(k, 'prose'): assert is_frontal(k, 'paper')


def test_at_the_limits():
    "Seen at 0.7 is not seen; level at 0.05, ears at 0.4, eyes at 0.08 and a score of 0.3 are refused"
    def face(seen=1., level=0., ears=0., apart=.25, off=0.):
        k = np.zeros((33,4))
        k[[0,2,5],3],k[7,3] = seen,ears
        k[2,:2],k[5,0],k[0,0] = (apart,level),0.,apart/2+off
        return k
    assert is_frontal(face(), 'released') and is_frontal(face(seen=.7+1e-9), 'released') and pose_faults(face(seen=.7))==['face not seen']
    assert pose_faults(face(level=.05))==['eyes not level'] and is_frontal(face(level=.05-1e-9))
    assert pose_faults(face(ears=.4))==['one ear hidden'] and is_frontal(face(ears=.4-1e-9))
    assert pose_faults(face(apart=.08), 'released')==['eyes too close'] and is_frontal(face(apart=.08+1e-9), 'released') and is_frontal(face(apart=.01))
    assert pose_faults(face(off=1.), 'released')==['score too high'] and is_frontal(face(off=.999), 'released')


@given(faces())
def test_a_mirror_and_points_that_are_not_of_the_face_change_nothing(k):
    mirrored = k.copy()
    mirrored[[2,5,7,8,11,12,23,24]] = k[[5,2,8,7,12,11,24,23]]
    mirrored[:,0] = 1-mirrored[:,0]
    other = k.copy()
    other[[9,10,*range(13,23),*range(25,33)]] = .123
    for rule in POSE_RULES:
        if abs(face_measures(k)['apart']-.08)>1e-9 and abs(face_measures(k)['score']-.3)>1e-9: assert is_frontal(k, rule, ASPECT)==is_frontal(mirrored, rule, ASPECT)
        assert is_frontal(k, rule, ASPECT)==is_frontal(other, rule, ASPECT)


@pytest.mark.parametrize('bad', [np.zeros((33,3)), np.zeros((17,4)), np.zeros((2,33,4)), np.zeros(33*4)])
def test_other_shapes_are_refused(bad):
    with pytest.raises(ValueError, match=r'\[33,4\]'): is_frontal(bad)
    if bad.ndim<3:
        with pytest.raises(ValueError, match=r'\[33,4\]'): people_in(bad)


# --- sharpness and quality ----------------------------------------------------------------------------------------------------------------

@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6), st.booleans())
def test_sharpness_is_opencvs(h, w, seed, colour):
    import cv2
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, (h,w,3) if colour else (h,w), np.uint8)
    g = cv2.cvtColor(np.ascontiguousarray(a[...,::-1]), cv2.COLOR_BGR2GRAY) if colour else a
    assert np.array_equal(grey(a), g)
    expected = cv2.Laplacian(g, cv2.CV_64F).var()
    assert sharpness(a)==pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert sharpness(Image.fromarray(a))==sharpness(a)


def test_sharpness_by_loops():
    a = np.random.default_rng(0).integers(0, 256, (5,4)).astype(np.uint8)
    at = lambda y,x: int(a[abs(y) if y<5 else 8-y, abs(x) if x<4 else 6-x])     # mirrored, the edge not repeated
    lap = [at(y-1,x)+at(y+1,x)+at(y,x-1)+at(y,x+1)-4*at(y,x) for y in range(5) for x in range(4)]
    assert sharpness(a)==pytest.approx(np.var(lap))
    assert sharpness(255-a)==pytest.approx(sharpness(a)) and sharpness(a[::-1])==pytest.approx(sharpness(a))


def test_quality_of_both_rules():
    for s in (0, 30, 100, 1e6):
        assert quality(30, 50, s)==pytest.approx(1500*(.5+.5*min(s/100, 1)))
        assert quality(30, 50, s, 'released-prcc')==pytest.approx(1500*(10+.5*min(s/100, 1)))
    assert quality(10, 10, 100)==2*quality(10, 10, 0)                          # blur costs a half ...
    assert quality(10, 10, 100, 'released-prcc')/quality(10, 10, 0, 'released-prcc')==1.05 # ... or hardly anything


# --- selection ----------------------------------------------------------------------------------------------------------------------------

def table_of(paths, identity, clothes=None, split='train'):
    return pd.DataFrame(dict(dataset='t', path=[str(p) for p in paths], identity=identity, clothes=clothes if clothes is not None else identity, camera=0, modality='visible', split=split))


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "60 pictures of three sizes, some blurred, some exact copies of others, of 6 people in 9 clothes"
    folder,rng = tmp_path_factory.mktemp('pictures'),np.random.default_rng(0)
    paths = []
    for i in range(60):
        h,w = ((40,20),(48,24),(60,30))[i%3]
        a = rng.integers(0, 256, (h,w,3)).astype(np.uint8) if i%4 else np.full((h,w,3), 10+i, np.uint8)
        if i in (13,29): a = np.asarray(Image.open(paths[i-12]))
        paths.append(folder/f'{(i*37)%60:03d}.png')
        Image.fromarray(a).save(paths[-1])
    people = rng.integers(0, 6, 60)
    return table_of(paths, people, people+6*rng.integers(0, 2, 60)*(people<3))


def looks(path):
    "Whether this picture is frontal, by its name alone"
    return int(Path(path).stem)%3

def detector(images, rows=None):
    k = np.zeros((33,4)); k[:,3] = .9; k[11,:2],k[12,:2],k[[23,24],1] = (.7,.2),(.3,.2),.6
    hidden = k.copy(); hidden[:6,3] = .1
    return [k if looks(r['path']) else hidden if int(Path(r['path']).stem)%2 else None for r in rows]


@pytest.mark.parametrize('n,m,rule', [(1,1,'paper'), (3,5,'paper'), (5,50,'released-prcc')])
def test_selection_by_brute_force(pictures, n, m, rule):
    got = select(pictures, detector, n=n, m=m, quality_rule=rule, batch=7)
    scored = []
    for r in pictures.to_dict('records'):
        im = Image.open(r['path'])
        scored.append((-float(quality(im.width, im.height, sharpness(im), rule)), r['path'], r))
    good = sorted((o for o in scored if looks(o[1])), key=lambda o: o[:2])
    chosen,garments,worn = defaultdict(list),[],set()
    for _,p,r in good:
        if len(chosen[r['identity']])<n: chosen[r['identity']].append(p)
        if len(garments)<m and r['clothes'] not in worn: garments.append(p); worn.add(r['clothes'])
    assert got.people.path.tolist()==[p for i in sorted(chosen) for p in chosen[i]]
    assert got.garments.path.tolist()==garments
    assert select(pictures, detector, n=n, m=m, quality_rule=rule, distinct=False).garments.path.tolist()==[p for _,p,_ in good[:m]]
    reasons = dict(zip(got.images.path, got.images.reason))
    for _,p,r in scored:
        if looks(p): assert (reasons[p]=='')==(p in chosen[r['identity']]) and (reasons[p]=='' or reasons[p].startswith('rank '))
        else: assert reasons[p]==('face not seen' if int(Path(p).stem)%2 else 'no person')
    assert got.reasons().sum()==60 and got.reasons()['accepted']==len(got.people)


def test_neither_the_order_of_rows_nor_the_batch_matters(pictures):
    a = select(pictures, detector, n=2, m=4)
    for k in range(3):
        b = select(pictures.sample(frac=1, random_state=k), detector, n=2, m=4, batch=1+10*k)
        assert a.people.path.tolist()==b.people.path.tolist() and a.garments.path.tolist()==b.garments.path.tolist()
        assert rank_quality(pictures.sample(frac=1, random_state=k), workers=1+k).path.tolist()==rank_quality(pictures).path.tolist()


def test_ranks_say_where_a_refused_picture_stands(pictures):
    got = select(pictures, detector, n=2, m=4)
    for _,part in got.images[got.images.reason.str.startswith('rank') | (got.images.reason=='')].groupby('identity'):
        ranked = part.sort_values(['quality','path'], ascending=[False,True])
        assert ranked.reason.tolist()==['']*min(2, len(part))+[f'rank {i} of {len(part)}' for i in range(3, len(part)+1)]


def test_unknown_clothes_are_no_duplicates(pictures):
    assert len(select(pictures.assign(clothes=-1), detector, m=5).garments)==5


def test_only_training_rows_are_looked_at(pictures):
    t = pictures.copy()
    t.loc[t.index%2==0, 'split'] = 'test'
    got = select(t, detector, n=2, m=4)
    assert set(got.images.path)==set(t.path[t.split=='train'])
    with pytest.raises(DataError, match='no training images'): select(t.assign(split='test'), detector)


def test_odd_files_are_counted_with_their_reason(pictures, tmp_path, capsys):
    a = np.random.default_rng(0).integers(0, 256, (40,20,3)).astype(np.uint8)
    files = {'1.png':Image.fromarray(a[...,0]), '2.jpg':Image.fromarray(a).convert('CMYK'), '4.png':Image.fromarray(a[...,0].astype(np.uint16)*257), '5.png':Image.fromarray(a).convert('P')}
    for name,im in files.items(): im.save(tmp_path/name)
    (tmp_path/'7.jpg').write_bytes((tmp_path/'2.jpg').read_bytes()[:200])
    (tmp_path/'8.png').write_text('no picture'); (tmp_path/'10.png').touch()
    t = table_of([*(tmp_path/n for n in files), tmp_path/'7.jpg', tmp_path/'8.png', tmp_path/'10.png', tmp_path/'11.png'], 0)
    got = select(t, detector, n=9)
    assert got.images.reason.str.split(':').str[0].tolist()==['']*4+['unreadable']*4
    assert all(w in r.lower() for w,r in zip(('truncated','not an image','empty','no such file'), got.images.reason[4:], strict=True))
    assert got.images.width.tolist()==[20]*4+[0]*4 and len(got.people)==4
    deep = got.images.set_index('path')
    assert deep.sharpness[str(tmp_path/'4.png')]==pytest.approx(deep.sharpness[str(tmp_path/'1.png')]) # 16 bits are scaled, not clipped
    ranked = rank_quality(t)
    assert len(ranked)==4 and len(ranked.attrs['unreadable'])==4
    assert '4 of 8 pictures left out' in capsys.readouterr().out
    with pytest.raises(DataError, match='no image was accepted: 4 unreadable'): select(t[4:], detector)
    two = lambda images, rows=None: [np.zeros((2,33,4))]*len(images)
    with pytest.raises(DataError, match='two people'): select(t, two)
    show_selection(got)


def test_as_released(pictures):
    drawn = select_as_released(pictures, n=4, among=6)
    for i,part in pictures.groupby('identity'):
        large = sorted(part.path, key=lambda p: (-np.prod(Image.open(p).size), p))[:6]
        mine = drawn[drawn.identity==i].path
        assert set(mine)<=set(large) and len(mine)==min(4, len(large)) and mine.is_unique
    assert drawn.path.tolist()==select_as_released(pictures.sample(frac=1, random_state=1), n=4, among=6).path.tolist()
    others = [tuple(select_as_released(pictures, n=4, among=6, seed=s).path) for s in range(8)]
    assert len(set(others))>4


@pytest.mark.parametrize('kw', [dict(n=0), dict(m=0), dict(rule='both'), dict(quality_rule='ltcc'), dict(epsilon=1)])
def test_wrong_arguments(pictures, kw):
    with pytest.raises(ValueError): select(pictures, detector, **kw)
