"Clothes-changing data sets: every label of a written world against loops over its scenes, names from the documentation, traps, limits"
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given,strategies as st

from ccreid.data.clothes_changing_sets import celeb_reid,ccvid,deepchange,last,ltcc,prcc,vc_clothes
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.mannequins.plans import PLANS,TEXTS,all_scenes,check_limits
from ccreid.data.reading import read,read_names
from ccreid.data.checks import _summary
from ccreid.data.joining import join,rename,separate,transfer
from ccreid.data.samples import DataError,hold_out
from ccreid.data.standard_sets import market1501
from ccreid.evaluation.protocols import protocols_for
from ccreid.generation.jobs import add_samples
from test_data_layouts import tree

SETS = dict(prcc=prcc, ltcc=ltcc, vc_clothes=vc_clothes, ccvid=ccvid, last=last, deepchange=deepchange, celeb_reid=celeb_reid)
FITTING = dict(prcc=dict(identities=(3,2,2), outfits=2, cameras=3), ltcc=dict(identities=(3,0,2), outfits=3, cameras=2), # worlds that each layout can hold
    vc_clothes=dict(identities=(2,0,3), outfits=3, cameras=4), ccvid=dict(identities=(2,0,3), outfits=3, cameras=3),
    last=dict(identities=(3,2,2), outfits=3, cameras=2), deepchange=dict(identities=(2,2,3), outfits=2, cameras=2),
    celeb_reid=dict(identities=(3,0,2), outfits=2, cameras=3))

def world_for(name, **kw): return MannequinWorld(**{**FITTING[name], 'images':(1,2,3), 'size':(32,16), 'seed':5, **kw})
def planned(name, world):
    "Plan and texts, relative to where the layout starts"
    plan = PLANS[name](world)
    return {p.removeprefix('rgb/'):s for p,s in plan.items()},TEXTS[name](world, plan)
def from_plan(name, world): return read_names(SETS[name](), *planned(name, world))
def rel(ds): return [os.path.relpath(p, ds.root).replace(os.sep, '/') for p in ds.samples.path]
def table(ds, *columns): return {p:tuple(r) for p,r in zip(rel(ds), ds.samples[list(columns)].values.tolist())}


def split_of(name, world, s):
    "(split, role) of a scene, from the sentences of the page"
    part = world.split(s['identity'])
    if part=='train': return 'train',''
    if name=='prcc': return ('val','') if part=='val' else ('gallery' if s['camera']==0 else 'query','')
    if name in ('ltcc','vc_clothes'): asked = s['frame']==0
    else:
        asked = s['identity']%world.cameras==s['camera']            # one camera asks for a person
        if name!='ccvid': asked = asked and s['frame']==0           # all frames of a tracklet go one way
    role = 'query' if asked else 'gallery'
    return ('val',role) if part=='val' else (role,'')

def worn(name, world, s):
    "What the label is a label of: within training, validation or test, as a tuple; None: nobody knows"
    part = world.split(s['identity'])
    if name=='celeb_reid': return None
    if name=='last' and part!='train': return (s['identity'],)
    return (s['identity'],s['clothes'])

def expected(name, world, plan):
    "Labels of each file of a plan, in loops"
    train = sorted({s['identity'] for s in plan.values() if world.split(s['identity'])=='train'})
    start,number = 0,{}
    for part in 'train','val','test':
        keys = sorted({worn(name, world, s) for s in plan.values() if world.split(s['identity'])==part and worn(name, world, s) is not None})
        for r,k in enumerate(keys): number[part,k] = start+r
        start += len(keys)
    res = {}
    for path,s in plan.items():
        part,n = world.split(s['identity']),world.images[('train','val','test').index(world.split(s['identity']))]
        split,role = split_of(name, world, s)
        first = world.people_of(part)[0] if name=='celeb_reid' else 0
        tracklet = {'ccvid':(s['identity'],s['clothes'],s['camera']),
                    'deepchange':(s['identity'],s['clothes'],s['camera'],2*s['frame']>=n)}.get(name)
        res[path] = dict(identity=train.index(s['identity']) if part=='train' else s['identity']-first+1,
            clothes=number.get((part,worn(name, world, s)), -1), camera=s['camera']+12*(name=='ccvid' and s['clothes']==2),
            split=split, role=role, tracklet=tracklet,
            frame=(s['clothes']*world.cameras+s['camera'])*n+s['frame']+1 if name=='ltcc' else s['frame']+1)
    return res

def compare(ds, name, world):
    plan,_ = planned(name, world)
    ref = expected(name, world, plan)
    assert sorted(ref)==sorted(rel(ds)) and ds.skipped==({'not used by this layout': ['info']} if name=='ltcc' else {})
    t = ds.samples
    assert set(t.modality)=={'visible'} and set(t.dataset)=={name}
    rows = dict(zip(rel(ds), t.itertuples()))
    for path,r in ref.items():
        got = rows[path]
        assert (got.identity, got.clothes, got.split)==(r['identity'], r['clothes'], r['split']), (path, got, r)
        if name not in ('last','celeb_reid'): assert got.camera==r['camera'], (path, got, r)
        if name in ('prcc','ltcc','vc_clothes','ccvid'): assert got.frame==r['frame'], (path, got, r)
        if 'role' in t: assert got.role==r['role'], (path, got, r)
    if name in ('last','celeb_reid'): assert sorted(t.camera)==list(range(len(t)))  # a camera of its own for each image
    assert ('role' in t)==(name in ('last','deepchange') and world.identities[1]>0) and ('frame' in t)==(name in ('prcc','ltcc','vc_clothes','ccvid'))
    assert ('tracklet' in t)==(name in ('ccvid','deepchange'))
    if 'tracklet' in t:
        pairs = {(rows[p].tracklet, r['tracklet']) for p,r in ref.items()}
        assert len(pairs)==len({a for a,_ in pairs})==len({b for _,b in pairs})     # the same partition
        assert sorted({a for a,_ in pairs})==list(range(len(pairs)))                # numbered over the whole set
    assert not [n for n in ds.notes if not n.startswith('no camera labels') and 'not used by this layout: info/ (2 files)' not in n]


@pytest.mark.parametrize('name', SETS)
def test_labels_of_a_plan(name):
    compare(from_plan(name, world_for(name)), name, world_for(name))

@pytest.mark.parametrize('name', SETS)
@pytest.mark.parametrize('images', [2, (3,2,2), (1,3,5)])
def test_labels_with_other_numbers_of_images(name, images):
    compare(from_plan(name, world_for(name, images=images)), name, world_for(name, images=images))

@pytest.mark.parametrize('name,kw', [('vc_clothes',dict(outfits=2)), ('ccvid',dict(outfits=1,cameras=12)), ('ccvid',dict(outfits=2,cameras=2,images=1)), ('ltcc',dict(outfits=9,cameras=12)),
    ('last',dict(identities=(2,0,2))), ('last',dict(outfits=1,cameras=1,images=2)), ('deepchange',dict(outfits=40,cameras=1,images=2)), ('deepchange',dict(outfits=1,cameras=17,images=1)),
    ('celeb_reid',dict(cameras=1,outfits=1,images=2)), ('celeb_reid',dict(identities=(12,0,11),images=(1,1,2))), ('prcc',dict(identities=(12,0,11)))])
def test_labels_of_other_worlds(name, kw):
    compare(from_plan(name, world_for(name, **kw)), name, world_for(name, **kw))

@pytest.mark.parametrize('name', SETS)
def test_written_and_read_from_disk(name, tmp_path):
    world = world_for(name)
    ds = world.write(tmp_path/'w', layout=name)
    assert all(os.path.isfile(p) for p in ds.samples.path)
    compare(read(SETS[name](), tmp_path/'w', verbose=False), name, world)
    compare(ds, name, world)
    for file,text in planned(name, world)[1].items(): assert (tmp_path/'w'/file).read_text()==text

@pytest.mark.parametrize('name', SETS)
def test_every_query_has_a_match_in_every_protocol(name):
    t = from_plan(name, world_for(name)).samples
    protocols = protocols_for(name)
    assert protocols
    for p in protocols.values():
        for q,g in p.select(t):
            right = q.identity.to_numpy()[:,None]==g.identity.to_numpy()
            assert len(q) and (right & ~p.junk(q, g).numpy()).any(1).all(), p.name

def test_clothes_really_change_where_a_protocol_says_so():
    "Rows that a protocol picks by camera or setting wear what its name says, counted on the scenes"
    for name in 'prcc','ltcc','vc_clothes','ccvid':
        world = world_for(name)
        ds,(plan,_) = from_plan(name, world),planned(name, world)
        scene = dict(zip(ds.samples.index, (plan[p] for p in rel(ds))))
        for kind,same in (('same-clothes',True), ('clothes-changing',False)):
            p = protocols_for(name)[kind]
            q,g = p.select(ds.samples)[0]
            keep = (q.identity.to_numpy()[:,None]==g.identity.to_numpy()) & ~p.junk(q, g).numpy()
            pairs = [(scene[q.index[a]], scene[g.index[b]]) for a,b in zip(*np.nonzero(keep))]
            assert pairs and all((a['clothes']==b['clothes'])==same and a['camera']!=b['camera'] for a,b in pairs), (name, kind)

def test_deepchange_finds_the_same_camera_on_another_tracklet():
    world = world_for('deepchange', cameras=1, images=4)
    t = from_plan('deepchange', world).samples
    p = protocols_for('deepchange')['standard']
    q,g = p.select(t)[0]
    junk = p.junk(q, g).numpy()
    for a,(_,x) in enumerate(q.iterrows()):
        for b,(_,y) in enumerate(g.iterrows()):
            assert junk[a,b]==(x.identity==y.identity and x.tracklet==y.tracklet)
    assert junk.any() and ((q.camera.to_numpy()[:,None]==g.camera.to_numpy()) & (q.identity.to_numpy()[:,None]==g.identity.to_numpy()) & ~junk).any()

def test_deepchange_and_last_validate_on_their_roles():
    for name in 'last','deepchange':
        t = from_plan(name, world_for(name)).samples
        q,g = protocols_for(name)['standard-val'].select(t)[0]
        assert set(q.split)==set(g.split)=={'val'} and set(q.role)=={'query'} and set(g.role)=={'gallery'}
        assert len(q)+len(g)==(t.split=='val').sum()


# names as the data sets' own documentation, or loaders that are in use, show them

def test_vc_clothes_names():
    ds = read_names(vc_clothes(), ['train/0001-01-01-01.jpg', 'train/0001-02-03-04.jpg', 'train/0301-04-02-12.jpg', 'query/0512-03-01-01.jpg', 'gallery/0512-04-02-01.jpg'])
    assert table(ds, 'identity','clothes','camera','split','frame')=={'train/0001-01-01-01.jpg':(0,0,0,'train',1), 'train/0001-02-03-04.jpg':(0,1,1,'train',4),
        'train/0301-04-02-12.jpg':(1,2,3,'train',12), 'query/0512-03-01-01.jpg':(512,3,2,'query',1), 'gallery/0512-04-02-01.jpg':(512,4,3,'gallery',1)}

CCVID = {'train.txt':'session1/001_01\t001\tu0_l0_s0_c0_a0\nsession1/001_12\t001\tu1_l0_s0_c0_a0\nsession2/161_07 161 u0_l0_s0_c0_a0\n',
         'query.txt':'session1/002_01 002 u0_l0_s0_c0_a0\n', 'gallery.txt':'session2/002_01 002 u2_l1_s0_c0_a0\nsession3/002_01 002 u0_l0_s0_c0_a0\n'}
FRAMES = [f'{l.split()[0]}/{f:05d}.jpg' for t in CCVID.values() for l in t.splitlines() for f in (1,2,10)]

def test_ccvid_names():
    ds = read_names(ccvid(), FRAMES, CCVID)
    assert len(ds.samples)==len(FRAMES) and list(ds.samples.frame)==[1,2,10]*6
    first = {p.rsplit('/',1)[0]:r for p,r in table(ds, 'identity','clothes','camera','split').items()}
    assert first=={'session1/001_01':(0,0,0,'train'), 'session1/001_12':(0,1,11,'train'), 'session2/161_07':(1,2,6,'train'),
        'session1/002_01':(2,3,0,'query'), 'session2/002_01':(2,4,0,'gallery'), 'session3/002_01':(2,3,12,'gallery')}
    assert ds.samples.tracklet.nunique()==6 and ds.notes==[]

@pytest.mark.parametrize('name', SETS)
def test_cameras_that_are_made_up_are_not_counted(name):
    "Nor by `check`; and nowhere else: not in what is held out, renamed, joined with a set that has cameras, taken apart again, or grown by generated images"
    ds = from_plan(name, world_for(name))
    unknown = name in ('last','celeb_reid')
    def all_dashes(ds): return (ds.summary().cameras=='-').all()
    assert all_dashes(ds)==unknown and set(ds.no_cameras)==({name} if unknown else set())
    assert ('cameras' in _summary(ds, SETS[name]()))!=unknown
    if not unknown: assert ds.summary().dtypes.eq('int64').all() and ds.summary().cameras.max()==ds.samples.camera.nunique()
    rest,aside = hold_out(ds, 1)
    market = read_names(market1501(), ['bounding_box_train/0002_c1s1_000451_03.jpg','bounding_box_train/0002_c2s1_000451_03.jpg','query/0003_c1s1_000451_03.jpg','bounding_box_test/0003_c2s1_000451_03.jpg'])
    both = join([rename(ds, 'x'), market])
    for other in rest, aside, rename(ds, 'x'), separate(both)['x'], add_samples(ds, ds.train.assign(path=ds.train.path+'.png', generated_by='test')): assert all_dashes(other)==unknown
    if unknown: assert both.summary().cameras.drop('val', errors='ignore').tolist()==[2,1,1]    # Market's
    assert not all_dashes(both) and not all_dashes(separate(both)['market1501'])
    assert transfer(market, ds).summary().cameras.eq('-').tolist()==[False]+[unknown]*2 and transfer(ds, market).summary().cameras.loc[['query','gallery']].tolist()==[1,1]
    assert ('-' in str(ds.summary()))==unknown and ('<td>-</td>' in ds._repr_html_())==unknown

def test_last_names():
    names = ['train/000000/000000_000_00001_0001_01_000.jpg', 'train/000000/000000_017_00002_0001_01_002.jpg', 'train/004999/004999_000_00001_0001_01_000.jpg',
        'val/query/005007_012_00001_0001_01_000.jpg', 'val/gallery/005007/005007_012_00002_0001_01_003.jpg',
        'test/query/010903_012_01066_1075_01_000.jpg', 'test/gallery/010903/010903_012_01067_1075_01_000.jpg', 'test/gallery/010904/010904_001_00001_0001_01_009.jpg']
    ds = read_names(last(), names)
    assert table(ds, 'identity','clothes','split','role')==dict(zip(names, [(0,0,'train',''), (0,1,'train',''), (1,2,'train',''), (5007,3,'val','query'), (5007,3,'val','gallery'),
        (10903,4,'query',''), (10903,4,'gallery',''), (10904,5,'gallery','')]))
    assert ds.samples.camera.is_unique and len(ds.val)==2

def test_deepchange_names():
    lists = {'train-set':['P0702_C13_20200813_154757_000038_bbox.jpg,5', 'P0702_C13_20200814_154757_000038_bbox.jpg,5,0.9,12'], 'val-set-query':['P0003_C01_20200101_000000_000001_bbox.jpg,1'],
        'val-set-gallery':['P0003_C01_20200101_000000_000002_bbox.jpg,1'], 'test-set-query':['P1121_C17_20201231_235959_000001_bbox.jpg,900'],
        'test-set-gallery':['P1121_C17_20201231_235959_000002_bbox.jpg,900', 'P1121_C02_20201231_235959_000002_bbox.jpg,7']}
    names = [f"{d}/{l.split(',')[0]}" for d,ls in lists.items() for l in ls]
    ds = read_names(deepchange(), names, {f'{d}-bbox.txt':'\n'.join(ls) for d,ls in lists.items()})
    assert table(ds, 'identity','clothes','camera','split','role','tracklet')==dict(zip(names, [(0,0,12,'train','',1), (0,1,12,'train','',1), (3,2,0,'val','query',0), (3,2,0,'val','gallery',0),
        (1121,3,16,'query','',3), (1121,3,16,'gallery','',3), (1121,3,1,'gallery','',2)]))

def test_celeb_reid_names():
    names = [f'train/{p}_{y}_0.jpg' for p in (1,2,632) for y in (1,2)]+['query/1_1_0.jpg','query/420_1_1.jpg','gallery/1_2_0.jpg','gallery/420_9_0.jpg']
    ds = read_names(celeb_reid(), names)
    got = table(ds, 'identity','clothes','split')
    assert got=={n:(dict([('1',0),('2',1),('632',2)])[n[6:].split('_')[0]] if n[0]=='t' else int(n.split('/')[1].split('_')[0]), -1, n.split('/')[0]) for n in names}
    assert ds.samples.camera.is_unique and ds.notes==['no camera labels: every image counts as a camera of its own']


# traps

@pytest.mark.parametrize('name', SETS)
@pytest.mark.parametrize('above', ['my_c3_data', '001_2_c3', '0007-01-01-01.jpg', 'P1_C1_x', 'session3/001_09', '7_1_0'])
def test_folders_above_say_nothing(name, above, tmp_path):
    plan,texts = planned(name, world_for(name))
    tree(tmp_path/above, plan)
    for p,text in texts.items():
        (tmp_path/above/p).parent.mkdir(exist_ok=True)
        (tmp_path/above/p).write_text(text)
    compare(read(SETS[name](), tmp_path/above, verbose=False), name, world_for(name))

@pytest.mark.parametrize('name,usual', [('vc_clothes','VC-Clothes'), ('vc_clothes','vc-clothes/VC-Clothes'), ('ccvid','CCVID'), ('last','LaST'), ('last','last'), ('deepchange','DeepChangeDataset'),
    ('deepchange','deepchange/DeepChangeDataset'), ('celeb_reid','Celeb-reID'), ('celeb_reid','celeb_reid')])
def test_usual_roots(name, usual, tmp_path):
    plan,texts = planned(name, world_for(name))
    for p in (*plan,*texts):
        (tmp_path/usual/p).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/usual/p).write_text(texts.get(p, ''))
    for root in tmp_path,tmp_path/usual: compare(read(SETS[name](), root, verbose=False), name, world_for(name))

def test_vc_clothes_digits_of_any_width_do_not_collide():
    names = ['train/1-1-11-1.jpg','train/11-1-1-1.jpg','train/111-1-1-1.jpg','query/1-2-12-1.jpg','gallery/11-3-2-1.jpg']
    ds = read_names(vc_clothes(), names)
    assert ds.train.clothes.nunique()==3 and ds.part('query','gallery').clothes.nunique()==2

def test_last_takes_the_last_field_whatever_lies_between_and_no_label_from_a_folder():
    names = ['train/000001/000001_000.jpg','train/000001/000001_9_000.jpg','train/000001/000001_9_9_9_9_9_001.jpg','train/folder_7_003/000002_1_000.jpg','train/000002/000002_1_1_001.x.jpg','train/000002/000002_5_001.jpg',
             'test/query/000009_5.jpg','test/gallery/person_10/000009_6.jpg']
    assert table(read_names(last(), names), 'identity','clothes')==dict(zip(names, [(0,0),(0,0),(0,1),(1,2),(1,3),(1,3),(9,4),(9,4)]))

def lists_of(train, query=('P5_C1_a_b.jpg,1',), gallery=('P5_C2_a_b.jpg,2',)):
    lists = {'train-set':train, 'val-set-query':('P4_C1_a_b.jpg,1',), 'val-set-gallery':('P4_C2_a_b.jpg,2',), 'test-set-query':query, 'test-set-gallery':gallery}
    return [f"{d}/{l.split(',')[0].strip()}" for d,ls in lists.items() for l in ls if '_' in l],{f'{d}-bbox.txt':'\r\n'.join(ls)+'\r\n\r\n' for d,ls in lists.items()}

def test_deepchange_takes_the_third_field_up_to_the_first_dot():
    train = ('P1_C1_20200101_9.jpg,1', 'P1_C2_20200101.x_20200202.jpg,2', 'P1_C2_20200102.jpg,3', 'P2_C1_20200101_9.jpg,4', 'P10_C1_20200101_9.jpg,5')
    ds = read_names(deepchange(), *lists_of(train))
    by = {p[10:]:r for p,r in table(ds, 'identity','clothes').items() if p[:9]=='train-set'}
    assert by['P1_C1_20200101_9.jpg']==by['P1_C2_20200101.x_20200202.jpg'] and len(set(by.values()))==4
    assert [by[n][0] for n in ('P1_C2_20200102.jpg','P2_C1_20200101_9.jpg','P10_C1_20200101_9.jpg')]==[0,1,2]

def test_deepchange_tracklet_numbers_may_start_anew():
    "Tracklet 1 of one person is not tracklet 1 of another"
    t = read_names(deepchange(), *lists_of(('P1_C1_a_1.jpg,1', 'P1_C1_a_2.jpg,1', 'P2_C1_a_1.jpg,1', 'P1_C1_a_3.jpg,01'))).samples
    by = dict(zip((os.path.basename(p) for p in t[t.split=='train'].path), t.tracklet))
    assert by['P1_C1_a_1.jpg']==by['P1_C1_a_2.jpg']==by['P1_C1_a_3.jpg']!=by['P2_C1_a_1.jpg']

def test_deepchange_small_letters():
    a,b = (read_names(deepchange(), *lists_of(n)) for n in (('P1_C3_a_1.jpg,1', 'P2_C1_b_1.jpg,2'), ('p1_c3_a_1.jpg,1', 'p2_c1_b_1.jpg,2')))
    assert a.train[['identity','clothes','camera','tracklet']].equals(b.train[['identity','clothes','camera','tracklet']])

def test_ccvid_lists_of_other_hands():
    "Windows line ends, blank lines, slashes the other way round, a byte order mark; a frame is any image"
    texts = {k:'\ufeff'+v.replace('\n', '\r\n\r\n') for k,v in CCVID.items()}
    texts['train.txt'] = texts['train.txt'].replace('session1/001_01', 'session1\\001_01')
    a,b = read_names(ccvid(), FRAMES, CCVID),read_names(ccvid(), FRAMES, texts)
    same = ['path','identity','clothes','camera','split','frame']
    assert a.samples[same].equals(b.samples[same]) and b.samples.tracklet.nunique()==6
    odd = [f'{f[:15]}/img-{f[16:-4]}.PNG' for f in FRAMES]+['session1/001_01/Thumbs.db','session1/001_01/notes.txt']
    c = read_names(ccvid(), odd, CCVID)
    assert list(c.samples.frame)==list(a.samples.frame) and sum(map(len, c.skipped.values()))==2
    assert 'frame' not in read_names(ccvid(), [*FRAMES,'session1/001_01/x.jpg'], CCVID).samples

def test_ccvid_takes_listed_tracklets_only_and_counts_the_rest():
    ds = read_names(ccvid(), [f for f in FRAMES if '161_07' not in f]+['session1/003_01/00001.jpg'], CCVID | {'query.txt':CCVID['query.txt']+'session4/002_01 002 u0\nsession1/002_00 002 u0\nnonsense\n'})
    assert ds.skipped=={'listed but missing':['session2/161_07'], 'line breaks the grammar':['query.txt, line 2','query.txt, line 3','query.txt, line 4'], 'in no list':['session1/003_01']}
    assert not any('003_01' in p for p in ds.samples.path)

@pytest.mark.parametrize('bad', ['../other/session1/001_01', '/etc/session1/001_01', 'C:\\ccvid\\session1\\001_01', 'session1/../../session1/001_01'])
def test_lists_that_lead_outside_are_refused(bad):
    with pytest.raises(DataError, match='query.txt, line 2'): read_names(ccvid(), FRAMES, CCVID | {'query.txt':CCVID['query.txt']+f'{bad} 002 u0\n'})
    names,texts = lists_of(('P1_C1_a_1.jpg,1',))
    with pytest.raises(DataError, match='train-set-bbox.txt, line 1'): read_names(deepchange(), names, texts | {'train-set-bbox.txt':f'{bad}/P1_C1_a_1.jpg,1\n'})

NEAR = dict(vc_clothes=['train/0001-00-01-01.jpg','train/0001-01-01.jpg','train/0001_01_01_01.jpg','train/0001-01-01-01-01.jpg','train/-1-01-01-01.jpg','train/０001-01-01-01.jpg','train/0001-01-01-01.gif'],
    last=['train/000001/000001.jpg','train/000001/x_000001_000.jpg','train/000001/000001_.jpg','train/000001_000.jpg','test/query/000009/000009_1.jpg'],
    celeb_reid=['train/0_1_0.jpg','train/-1_1_0.jpg','train/1.jpg','train/1_x_0.jpg','train/a1_1_0.jpg'])
GOOD = dict(vc_clothes=['train/0001-01-01-01.jpg','query/0002-01-01-01.jpg','gallery/0002-02-01-01.jpg'], celeb_reid=['train/1_1_0.jpg','query/1_1_0.jpg','gallery/1_2_0.jpg'],
    last=['train/000001/000001_1_000.jpg','test/query/000009_1.jpg','test/gallery/000009/000009_2.jpg'])

@pytest.mark.parametrize('name', NEAR)
def test_near_misses_are_counted_and_get_no_label(name):
    ds = read_names(SETS[name](), GOOD[name]+NEAR[name])
    assert sorted(rel(ds))==sorted(GOOD[name])
    counted = {p for ps in ds.skipped.values() for p in ps}
    assert all(n in counted or os.path.dirname(n) in counted for n in NEAR[name])

numbers = st.integers(1, 99999)
@given(st.lists(st.tuples(numbers, st.integers(1,99), st.integers(1,99), st.integers(0,5), st.integers(1,9)), min_size=1, max_size=20, unique=True))
def test_any_numbers_in_any_width_come_back(people):
    "VC-Clothes and Celeb-reID on numbers of all widths: the labels are those that the name was made of"
    names = {f'gallery/{p:0{w}d}-{c:0{w}d}-{k:0{w}d}-{f:02d}.jpg':(p,k,c,f) for p,c,k,f,w in people}
    ds = read_names(vc_clothes(), names)
    keys = {}
    for path,(i,worn,c,f) in table(ds, 'identity','clothes','camera','frame').items():
        p,k,cam,frame = names[path]
        assert (i,c,f)==(p,cam-1,frame)
        keys.setdefault((p,k,len(path.split('-')[1])), set()).add(worn)
    assert all(len(v)==1 for v in keys.values())
    assert ds.samples.groupby('clothes').identity.nunique().max()==1       # no garment on two people
    stars = {f'query/{p}_{k}_{f}.jpg':p for p,c,k,f,w in people}
    assert {p:r[0] for p,r in table(read_names(celeb_reid(), stars), 'identity').items()}==stars


# limits of the plans

TOO_MUCH = [('vc_clothes',dict(cameras=3),'exactly 4 cameras: got 3'), ('vc_clothes',dict(outfits=4),'at most 3 outfits per person: got 4'), ('vc_clothes',dict(outfits=1),'at least 2 outfits'),
    ('vc_clothes',dict(identities=(2,1,2)),'no validation split'), ('vc_clothes',dict(images=1),'at least 2 images'), ('ccvid',dict(cameras=13),'at most 12 cameras: got 13'), ('ccvid',dict(cameras=1),'at least 2 cameras'),
    ('ccvid',dict(outfits=4),'at most 3 outfits'), ('ccvid',dict(identities=(2,1,2)),'no validation split'), ('last',dict(cameras=1,images=(2,1,2)),'at least 2 images'), ('deepchange',dict(identities=(2,0,2)),'has a validation split'),
    ('deepchange',dict(outfits=337),'at most 336 outfits'), ('celeb_reid',dict(identities=(2,1,2)),'no validation split'), ('celeb_reid',dict(identities=(2,0,0)),'needs training and test people'),
    ('last',dict(identities=(0,2,2)),'needs training and test people'), ('prcc',dict(outfits=3),'exactly 2 outfits'), ('prcc',dict(cameras=4),'exactly 3 cameras'), ('ltcc',dict(identities=(2,1,2)),'no validation split')]

@pytest.mark.parametrize('name,kw,needle', TOO_MUCH)
def test_what_a_layout_cannot_hold(name, kw, needle, tmp_path):
    with pytest.raises(ValueError, match=needle) as e: world_for(name, **kw).write(tmp_path/'w', layout=name)
    assert len(str(e.value).splitlines())==1 and not (tmp_path/'w').exists()

@pytest.mark.parametrize('name', SETS)
def test_infrared_cameras_are_refused(name):
    with pytest.raises(ValueError, match='visible images only'): PLANS[name](world_for(name, infrared=(0,)))

@pytest.mark.parametrize('name', SETS)
def test_plans_hold_each_scene_once_and_all_scenes(name):
    world = world_for(name)
    plan = PLANS[name](world)
    key = lambda s: tuple(s.values())
    scenes = [key(s) for s in plan.values()]
    assert len(scenes)==len(set(scenes))
    if name not in ('prcc','vc_clothes'): assert set(scenes)=={key(s) for _,s in all_scenes(world)}
    assert {s['identity'] for s in plan.values()}==set(range(world.people))

def test_plans_of_frozen_worlds_have_not_moved():
    "The benchmarks' files are named by these plans"
    import hashlib,json
    digest = lambda plan: hashlib.sha256(json.dumps(plan).encode()).hexdigest()[:16]
    assert digest(PLANS['prcc'](world_for('prcc')))=='433fd595727fc89b'
    assert digest(PLANS['ltcc'](world_for('ltcc')))=='f77b218d12190886'
    assert digest(PLANS['mannequins'](world_for('prcc', infrared=(1,))))=='904e6d7cfd0a99e8'
    assert TEXTS['ltcc'](world_for('ltcc'), {})=={'info/cloth-change_id_train.txt':'1\n2\n3\n', 'info/cloth-change_id_test.txt':'4\n5\n'}
