"Standard and cross-modality data sets: every layout written by mannequins and read back, documented names, known traps, bad lists, random names"
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ccreid.data.cross_modality_sets import llcm, regdb, sysu_mm01
from ccreid.data.layouts import DATASETS, load_dataset
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.mannequins.plans import PLANS, TEXTS
from ccreid.data.mannequins.plans_infrared import plan_llcm, plan_regdb, plan_sysu_mm01
from ccreid.data.mannequins.plans_standard import plan_cuhk03_np, plan_dukemtmc, plan_market1501, plan_msmt17
from ccreid.data.reading import read, read_names
from ccreid.data.samples import DataError
from ccreid.data.standard_sets import cuhk03_np, dukemtmc, market1501, msmt17
from test_data_layouts import tree

NAMES = ('market1501','dukemtmc','msmt17','cuhk03_np','sysu_mm01','regdb','llcm')

def relative(ds): return [os.path.relpath(p, ds.root).replace(os.sep, '/') for p in ds.samples.path]

def labels(ds, *columns): return {p: tuple(r) for p,r in zip(relative(ds), ds.samples[list(columns)].values.tolist())}

# --- written by mannequins, read back ------------------------------------------------------------------------------------------

WORLDS = dict(
    market1501=dict(identities=(3,0,2), cameras=6, images=(2,1,3)),
    dukemtmc=dict(identities=(3,0,2), cameras=8, images=(1,1,2)),
    msmt17=dict(identities=(3,0,4), cameras=11, images=(1,1,2)),
    cuhk03_np=dict(identities=(3,0,2), cameras=2, images=(2,1,3)),
    sysu_mm01=dict(identities=(2,2,3), cameras=6, images=(1,2,2), infrared=(2,5)),
    regdb=dict(identities=(3,0,4), cameras=2, images=(2,1,2), infrared=(1,)),
    llcm=dict(identities=(2,0,3), cameras=6, images=(2,1,1), infrared=(3,4,5)))

@pytest.fixture(scope='module')
def written(tmp_path_factory):
    "name -> (world, root, manifest's images), each written once"
    cache = {}
    def get(name):
        if name not in cache:
            world = MannequinWorld(outfits=1, size=(32,16), seed=5, **WORLDS[name])
            root = world.write(tmp_path_factory.mktemp('c3_0001_c2s1')/name, layout=name, workers=1, load=False)
            fields = ('identity','clothes','camera','frame')
            images = json.loads((root/'mannequins.json').read_text())['images']
            cache[name] = world, root, {p: dict(zip(fields, s)) for p,s in images.items()}
        return cache[name]
    return get

def truth(name, world, images, option):
    "What the table should say of each file, from its scene by loops: path -> (identity, camera, modality, split, role); a file that is not in it is left out"
    train, val, test = (list(world.people_of(s)) for s in ('train','val','test'))
    res = {}
    for path,s in images.items():
        person, camera = s['identity'], s['camera']
        modality = 'infrared' if camera in world.infrared else 'visible'
        part, role, number = world.split(person), '', person+1
        if name in ('market1501','dukemtmc','msmt17','cuhk03_np'):
            split = 'train' if part=='train' else 'query' if s['frame']==0 else 'gallery'
            if name=='market1501' and part=='test' and s['frame']==world.images[2]: continue # junk
            if name=='market1501' and part=='train' and s['frame']==world.images[0]: part, split, number = 'test', 'gallery', -2
            if name=='cuhk03_np' and path.split('/')[0]!=option.get('boxes', 'detected'): continue
            if name=='msmt17': number = person-(train[0] if part=='train' else test[0])
            if name=='msmt17' and part=='train' and option and camera==world.cameras-1 and s['frame']==world.images[0]-1: split = 'val'
        elif name=='sysu_mm01':
            split = part if part!='test' else 'query' if modality=='infrared' else 'gallery'
            if part=='val' and not option: split = 'train'
            if split=='val': role = 'query' if modality=='infrared' else 'gallery'
        elif name=='regdb':
            ring = list(range(world.people))
            for _ in range(option.get('trial', 1)-1): ring = ring[1:]+ring[:1]
            people = sorted(ring[:len(train)]) if person in ring[:len(train)] else sorted(ring[len(train):])
            split, number = ('train' if person in ring[:len(train)] else 'test'), people.index(person)
        elif name=='llcm':
            split, camera = part, camera if camera<world.cameras//2 else camera-world.cameras//2
        res[path] = [number, camera, modality, split, role]
    learned = []
    for number,_,_,split,_ in res.values():
        if split=='train' and number not in learned: learned.append(number)
    for row in res.values():
        if row[3]=='train': row[0] = sum(n<row[0] for n in learned)
    return {p: tuple(r) for p,r in res.items()}

OPTIONS = [*((n,{}) for n in NAMES), ('msmt17',dict(train='train')), ('cuhk03_np',dict(boxes='labeled')), ('sysu_mm01',dict(train='train')),
           *(('regdb',dict(trial=t)) for t in (2,5,8,10))]

@pytest.mark.parametrize('name,option', OPTIONS)
def test_every_label_of_a_written_world(written, name, option):
    world,root,images = written(name)
    ds = load_dataset(name, root, verbose=False, **option)
    if 'role' not in ds.samples: ds.samples['role'] = ''
    assert labels(ds, 'identity','camera','modality','split','role')==truth(name, world, images, option)
    assert set(ds.samples.clothes)=={-1} and set(ds.samples.dataset)=={name}
    assert not [n for n in ds.notes if not n.startswith('dropped') and 'not used by this layout' not in n], ds.notes

@pytest.mark.parametrize('name', NAMES)
def test_written_files_are_images_in_the_format_they_claim(written, name):
    world,root,images = written(name)
    kinds = {'.jpg':'JPEG', '.png':'PNG', '.bmp':'BMP'}
    for path in list(images)[::7]:
        with Image.open(root/path) as im: assert (im.size, im.format)==((16,32), kinds[Path(path).suffix])
    assert {Path(p).suffix for p in images}=={dict(cuhk03_np='.png', regdb='.bmp').get(name, '.jpg')}

@pytest.mark.parametrize('name', ('market1501','dukemtmc'))
def test_frames_of_a_written_world(written, name):
    _,root,images = written(name)
    ds = load_dataset(name, root, verbose=False)
    assert {p: f for p,(f,) in labels(ds, 'frame').items()}=={p: images[p]['frame']+1 for p in relative(ds)}

def test_market_world_has_junk_and_distractors_for_each_camera(written):
    world,root,images = written('market1501')
    junk,other = ([images[p] for p in images if p.startswith(f'bounding_box_test/{n}_')] for n in ('-1','0000'))
    assert {(s['identity'],s['camera'],s['frame']) for s in junk}=={(3,c,3) for c in range(6)}
    assert {(s['identity'],s['camera'],s['frame']) for s in other}=={(0,c,2) for c in range(6)}
    ds = load_dataset('market1501', root, verbose=False)
    assert 'dropped 6 junk images (identity -1)' in ds.notes and sum(ds.gallery.identity==-2)==6

def test_cuhk_world_lacks_one_detected_training_image(written):
    _,root,_ = written('cuhk03_np')
    labeled,detected = ({p.split('/', 1)[1]: s for p,s in labels(load_dataset('cuhk03_np', root, verbose=False, boxes=b), 'split').items()} for b in ('labeled','detected'))
    assert detected.items()<labeled.items() and [labeled[p] for p in labeled.keys()-detected.keys()]==[('train',)]

def test_trials_of_a_written_world_differ_and_hold_everybody_once(written):
    world,root,images = written('regdb')
    seen = set()
    for t in range(1,11):
        ds = load_dataset('regdb', root, verbose=False, trial=t)
        people = {split: frozenset(images[p]['identity'] for p,(s,) in labels(ds, 'split').items() if s==split) for split in ('train','test')}
        assert len(people['train'])==3 and not people['train'] & people['test'] and len(people['train'] | people['test'])==7
        seen.add(people['train'])
    assert len(seen)==7     # seven people stand in the ring, so the window comes round after seven trials

LIMITS = [(plan_market1501,dict(outfits=2),'exactly 1 outfits'), (plan_market1501,dict(cameras=7),'at most 6 cameras'), (plan_market1501,dict(cameras=1),'at least 2 cameras'),
    (plan_market1501,dict(images=1),'at least 2 images'), (plan_market1501,dict(identities=(1,1,1)),'no validation split'), (plan_market1501,dict(infrared=(0,)),'visible images only'),
    (plan_dukemtmc,dict(cameras=9),'at most 8 cameras'), (plan_msmt17,dict(cameras=16),'at most 15 cameras'), (plan_msmt17,dict(identities=(2,0,0)),'training and test people'),
    (plan_cuhk03_np,dict(cameras=3),'exactly 2 cameras'), (plan_sysu_mm01,dict(cameras=6, infrared=(2,4), identities=(1,1,1)),r'infrared=\(2, 5\)'),
    (plan_sysu_mm01,dict(cameras=5, identities=(1,1,1)),'exactly 6 cameras'), (plan_sysu_mm01,dict(cameras=6, infrared=(2,5)),'validation'),
    (plan_regdb,dict(infrared=(0,)),r'infrared=\(1,\)'), (plan_regdb,dict(cameras=3, infrared=(1,)),'exactly 2 cameras'),
    (plan_llcm,dict(cameras=3),'even number'), (plan_llcm,dict(cameras=4, infrared=(1,3)),r'infrared=\(2, 3\)'), (plan_llcm,dict(cameras=20, infrared=tuple(range(10,20))),'at most 18')]

@pytest.mark.parametrize('plan,kw,message', LIMITS)
def test_what_a_layout_cannot_hold_is_named(plan, kw, message):
    with pytest.raises(ValueError, match=message) as e: plan(MannequinWorld(**{**dict(identities=(2,0,2), cameras=2, outfits=1, images=2), **kw}))
    assert len(str(e.value).splitlines())==1

def test_plans_and_layouts_are_known_by_name():
    assert set(NAMES)<=set(PLANS) and set(NAMES)<=set(TEXTS) and set(NAMES)<=set(DATASETS)

# --- names as the data sets' documentation shows them ----------------------------------------------------------------------------

DOCUMENTED = [ # layout, test path, (identity, camera, split)
    (market1501, 'query/0001_c1s1_001051_00.jpg', (1,0,'query')), (market1501, 'bounding_box_test/1501_c6s4_015872_12.jpg', (1501,5,'gallery')),
    (market1501, 'bounding_box_test/0000_c3s2_047544_03.jpg', (-2,2,'gallery')), (market1501, 'query/0010_c5s3_014012_00.JPG', (10,4,'query')),
    (market1501, 'query/0001_c2s1_001051_00.jpg.jpg', (1,1,'query')), # a doubled ending of old copies
    (dukemtmc, 'query/0005_c2_f0046985.jpg', (5,1,'query')), (dukemtmc, 'bounding_box_test/7140_c8_f0166082.jpg', (7140,7,'gallery')),
    (cuhk03_np, 'detected/query/0003_c1_21.png', (3,0,'query')), (cuhk03_np, 'detected/bounding_box_test/1467_c2_9.png', (1467,1,'gallery')), (cuhk03_np, 'detected/query/0003_c2_7.jpg', (3,1,'query'))]

@pytest.mark.parametrize('layout,path,expected', DOCUMENTED)
def test_documented_names(layout, path, expected):
    assert list(labels(read_names(layout(), [path]), 'identity','camera','split').values())==[expected]

@pytest.mark.parametrize('layout,path', [(market1501,'query/0001_c7s1_001051_00.jpg'), (market1501,'query/0001_c12s1_001051_00.jpg'), (market1501,'query/-2_c1s1_001051_00.jpg'),
    (market1501,'query/0001_c1_001051_00.jpg'), (market1501,'query/x0001_c1s1_001051_00.jpg'), (market1501,'query/٠٠٠١_c1s1_001051_00.jpg'), (dukemtmc,'query/-1_c1_f0046985.jpg'),
    (dukemtmc,'query/0001_c9_f0046985.jpg'), (dukemtmc,'query/0001_c1s1_001051_00.jpg'), (cuhk03_np,'detected/query/0003_c3_1.png'), (cuhk03_np,'detected/query/0003_c1_a.png')])
def test_other_names_are_counted_and_never_guessed(layout, path):
    good = {'market1501':'query/0009_c1s1_000001_00.jpg', 'dukemtmc':'query/0009_c1_f0000001.jpg', 'cuhk03_np':'detected/query/0009_c1_1.png'}[layout.__name__]
    ds = read_names(layout(), [good, path])
    assert relative(ds)==[good] and ds.skipped=={'name breaks the grammar': [path]}

def test_only_the_folders_that_count_are_read():
    ds = read_names(market1501(), ['query/0001_c1s1_001051_00.jpg', 'gt_bbox/0001_c1s1_001051_00.jpg.jpg', 'gt_query/0001_c1s1_001051_00_good.mat', 'query/Thumbs.db', 'query/.0001_c1s1_001051_00.jpg'])
    assert relative(ds)==['query/0001_c1s1_001051_00.jpg']
    assert ds.skipped=={'hidden or system file': ['query/.0001_c1s1_001051_00.jpg','query/Thumbs.db'], 'not used by this layout': ['gt_bbox','gt_query']}

def test_nothing_but_junk_is_dropped_and_distractors_match_nobody():
    ds = read_names(market1501(), [f'bounding_box_test/{p}_c1s1_00000{i}_00.jpg' for i,p in enumerate(('-1','-1','0000','0000','0007'))]+['query/0007_c2s1_000001_00.jpg'])
    assert sorted(ds.gallery.identity)==[-2,-2,7] and [n for n in ds.notes if 'junk' in n]==['dropped 2 junk images (identity -1)']

def test_a_duke_folder_is_no_market_folder():
    with pytest.raises(DataError, match='0 images') as e: read_names(market1501(), ['bounding_box_train/0001_c2_f0046182.jpg'])
    assert '0002_c1s1_000451_03.jpg' in str(e.value) and len(str(e.value).splitlines())==2

# --- MSMT17 ----------------------------------------------------------------------------------------------------------------------

MSMT = {'train': ['0000/0000_000_01_0303morning_0008_0.jpg','0001/0001_003_10_0302noon_0100_1.jpg'], 'val': ['0001/0001_004_15_0302noon_0101_1.jpg'],
        'query': ['0000/0000_045_12_0303morning_0006_2.jpg','0001/0001_000_02_0114noon_0001_0.jpg'], 'gallery': ['0000/0000_046_01_0303morning_0006_2_ex.jpg','0001/0001_001_14_0114noon_0002_0.jpg']}

def msmt_names(end='\n', train='train', test='test'):
    texts = {f'list_{k}.txt': ''.join(f'{p} {int(p[:4])}{end}' for p in ps) for k,ps in MSMT.items()}
    return [f"{train if k in ('train','val') else test}/{p}" for k,ps in MSMT.items() for p in ps], texts

MSMT_LABELS = [(0,0,'train'), (1,9,'train'), (1,14,'train'), (0,11,'query'), (1,1,'query'), (0,0,'gallery'), (1,13,'gallery')]

@pytest.mark.parametrize('end', ('\n','\r\n',' \r\n\r\n'))
def test_msmt_lists(end):
    ds = read_names(msmt17(), *msmt_names(end))
    assert list(labels(ds, 'identity','camera','split').values())==MSMT_LABELS and ds.notes==[] and ds.skipped=={}

def test_msmt_validation_apart():
    ds = read_names(msmt17(train='train'), *msmt_names())
    assert list(labels(ds, 'identity','camera','split').values())==[r if i!=2 else (1,14,'val') for i,r in enumerate(MSMT_LABELS)]

def on_disk(root, names, texts):
    tree(root, names)
    for n,t in texts.items():
        (root/n).parent.mkdir(parents=True, exist_ok=True)
        (root/n).write_bytes(t.encode())
    return root

@pytest.mark.parametrize('folders,root', [(('train','test'),'MSMT17_V1'), (('mask_train_v2','mask_test_v2'),'msmt17/MSMT17_V2'), (('train','test'),'.')])
def test_msmt_forms_with_lists(tmp_path, folders, root):
    on_disk(tmp_path/root, *msmt_names('\n', *folders))
    ds = load_dataset('msmt17', tmp_path, verbose=False)
    assert list(labels(ds, 'identity','camera','split').values())==MSMT_LABELS and all(p.startswith(folders) for p in relative(ds))

def test_msmt_repacked_has_cameras_of_two_digits(tmp_path):
    names = ['bounding_box_train/0000_c1_0003.jpg','bounding_box_train/0000_c14_0030.jpg','bounding_box_train/0007_c2_0000.jpg','query/0000_c15_0000.jpg','bounding_box_test/0000_c1_0001.jpg',
             'bounding_box_test/0007_012_05_0303morning_0006_2_ex.jpg','bounding_box_test/0007_012_5_0001.jpg','bounding_box_test/0007_c16_0001.jpg']
    tree(tmp_path/'MSMT17', names)
    ds = load_dataset('msmt17', tmp_path, verbose=False)
    assert labels(ds, 'identity','camera')==dict(zip(names, [(0,0),(0,13),(1,1),(0,14),(0,0),(7,4)])) and ds.skipped=={'name breaks the grammar': names[-2:]}
    assert not any('in the test' in n for n in ds.notes)    # person 0 of the test is another one
    with pytest.raises(DataError, match="re-packed") as e: load_dataset('msmt17', tmp_path, train='train')
    assert "train='train+val'" in str(e.value) and len(str(e.value).splitlines())==2

def test_msmt_what_no_list_names_is_left_out_and_what_is_missing_is_counted():
    names,texts = msmt_names()
    gone = names.pop()
    ds = read_names(msmt17(), names+['train/0005/0005_000_01_0303morning_0008_0.jpg','test/0000/0000_001_01_0303morning_0008_0.jpg'], texts)
    assert len(ds.samples)==6 and ds.skipped=={'listed but missing': [gone], 'in no list': ['test/0000/0000_001_01_0303morning_0008_0.jpg','train/0005']}

def test_msmt_broken_lines_are_counted():
    names,texts = msmt_names()
    texts['list_val.txt'] += '0001/0001_004_15_0302noon_0101_1.jpg\n'+texts['list_val.txt']+'0001/0001_005_99_0302noon_0101_1.jpg 1\nword\n'
    ds = read_names(msmt17(), names+['train/0001/0001_005_99_0302noon_0101_1.jpg'], texts)
    assert len(ds.samples)==7
    assert ds.skipped=={'line breaks the grammar': ['list_val.txt, line 2','list_val.txt, line 5'], 'listed twice': ['list_val.txt, line 3'],
                        'name breaks the grammar': ['train/0001/0001_005_99_0302noon_0101_1.jpg']}

@pytest.mark.parametrize('path', ('../secret/0001_004_15_0302noon_0101_1.jpg','/etc/0001_004_15_0302noon_0101_1.jpg','C:\\0001_004_15_0302noon_0101_1.jpg','0001/../../../0001_004_15_0302noon_0101_1.jpg'))
def test_a_list_that_leads_outside_is_refused(path):
    names,texts = msmt_names()
    texts['list_query.txt'] += f'{path} 1\n'
    with pytest.raises(DataError, match='list_query.txt, line 3 points outside') as e: read_names(msmt17(), names, texts)
    assert len(str(e.value).splitlines())==2

def test_a_listed_link_that_leads_outside_is_refused(tmp_path):
    secret = tree(tmp_path/'elsewhere', ['0009_000_01_0303morning_0008_0.jpg'])
    names,texts = msmt_names()
    root = on_disk(tmp_path/'MSMT17_V1', names, {**texts, 'list_query.txt': texts['list_query.txt']+'0009/0009_000_01_0303morning_0008_0.jpg 9\n'})
    (root/'test/0009').symlink_to(secret)
    with pytest.raises(DataError, match='list_query.txt, line 3'): load_dataset('msmt17', root)

# --- SYSU-MM01 -------------------------------------------------------------------------------------------------------------------

SYSU = {'exp/train_id.txt': '1,4\n', 'exp/val_id.txt': '2\n', 'exp/test_id.txt': '6,10\n'}
SYSU_NAMES = [f'cam{c}/{i:04d}/{f:04d}.jpg' for c in range(1,7) for i in (1,2,3,4,6,10) for f in (1,2)]

def sysu_truth(path, train=('0001','0002','0004')):
    camera,person = int(path[3]),path[5:9]
    if person=='0003': return None
    if person in train: return train.index(person), camera-1, 'infrared' if camera in (3,6) else 'visible', 'train'
    return int(person), camera-1, 'infrared' if camera in (3,6) else 'visible', 'query' if camera in (3,6) else 'gallery'

@pytest.mark.parametrize('texts', (SYSU, {k: v.replace(',', ', ').replace('\n', '\r\n') for k,v in SYSU.items()}, {k: v.replace(',', '\n') for k,v in SYSU.items()}))
def test_sysu_lists_decide_and_others_are_left_out(texts):
    ds = read_names(sysu_mm01(), SYSU_NAMES, texts)
    assert labels(ds, 'identity','camera','modality','split')=={p: t for p in SYSU_NAMES if (t := sysu_truth(p))}
    assert ds.notes==['skipped 12 file(s), in no list: cam1/0003/ (2 files), cam2/0003/ (2 files), cam3/0003/ (2 files) ...']

def test_sysu_validation_apart():
    ds = read_names(sysu_mm01(train='train'), SYSU_NAMES, SYSU)
    assert labels(ds, 'identity','split','role')=={p: t for p in SYSU_NAMES if '0003' not in p[5:9] for t in [
        {'0001':(0,'train',''), '0004':(1,'train',''), '0002':(2,'val','query' if p[3] in '36' else 'gallery'), '0006':(6,'query' if p[3] in '36' else 'gallery',''),
         '0010':(10,'query' if p[3] in '36' else 'gallery','')}[p[5:9]]]}

@pytest.mark.parametrize('text', ('1,x\n','1;4.5','id\n1,4'))
def test_sysu_list_of_other_things_is_refused(text):
    with pytest.raises(DataError, match='exp/train_id.txt'): read_names(sysu_mm01(), SYSU_NAMES, {**SYSU, 'exp/train_id.txt': text})

def test_sysu_camera_is_the_folder_below_the_root(tmp_path):
    root = on_disk(tmp_path/'cam3'/'0006'/'SYSU-MM01', SYSU_NAMES, SYSU)
    for where in root, root.parent: assert labels(load_dataset('sysu_mm01', where, verbose=False), 'identity','camera','modality','split')=={p: t for p in SYSU_NAMES if (t := sysu_truth(p))}

def test_sysu_people_in_two_lists_are_noticed():
    ds = read_names(sysu_mm01(), SYSU_NAMES, {**SYSU, 'exp/test_id.txt': '4,6\n'})
    assert [n for n in ds.notes if 'in the test' in n]==['1 people are in training and in the test: 4']

def test_sysu_without_lists_is_told(tmp_path):
    tree(tmp_path, SYSU_NAMES)
    with pytest.raises(DataError, match='exp/train_id.txt') as e: load_dataset('sysu_mm01', tmp_path)
    assert len(str(e.value).splitlines())==2

# --- RegDB -----------------------------------------------------------------------------------------------------------------------

def regdb_lists(trial, train, test):
    return {f'idx/{s}_{k}_{trial}.txt': ''.join(f'{k.title()}/{i}/male_front_{k[0]}_{f:05d}_{i}.bmp {n}\r\n' for n,i in enumerate(people) for f in (7,9))
            for s,people in (('train',train),('test',test)) for k in ('visible','thermal')}

REGDB_NAMES = [f'{k}/{i}/male_front_{k[0].lower()}_{f:05d}_{i}.bmp' for k in ('Visible','Thermal') for i in (1,2,285,412) for f in (7,9)]
REGDB = {**regdb_lists(1, (285,2), (1,412)), **regdb_lists(2, (1,2), (412,285))}

@pytest.mark.parametrize('trial,train,test', ((1,(285,2),(1,412)), (2,(1,2),(412,285)), ('2',(1,2),(412,285))))
def test_regdb_trials(trial, train, test):
    ds = read_names(regdb(trial=trial), REGDB_NAMES, REGDB)
    expected = {}
    for p in REGDB_NAMES:
        folder,person,_ = p.split('/')
        split,people = ('train',train) if int(person) in train else ('test',test)
        expected[p] = people.index(int(person)), int(folder=='Thermal'), 'infrared' if folder=='Thermal' else 'visible', split
    assert labels(ds, 'identity','camera','modality','split')==expected
    assert ds.skipped=={'not used by this layout': sorted(p for p in REGDB if not p.endswith(f'_{trial}.txt'))} and len(ds.notes)==1

def test_regdb_trials_differ():
    one,two = (labels(read_names(regdb(trial=t), REGDB_NAMES, REGDB), 'split') for t in (1,2))
    assert sum(one[p]!=two[p] for p in REGDB_NAMES)==8 # people 1 and 285 change sides

def test_regdb_test_list_of_another_trial_is_noticed():
    mixed = {k: REGDB[k.replace('_1', '_2')] if 'test' in k else v for k,v in REGDB.items() if k.endswith('_1.txt')}
    assert list(read_names(regdb(), REGDB_NAMES, mixed).notes)==['skipped 4 file(s), in no list: Thermal/1/ (2 files), Visible/1/ (2 files)', '1 people are in training and in the test: 285']

def test_regdb_image_of_the_wrong_light_is_counted():
    texts = {**REGDB, 'idx/train_visible_1.txt': REGDB['idx/train_visible_1.txt']+'Thermal/2/male_front_t_00007_2.bmp 1\n'}
    assert read_names(regdb(), REGDB_NAMES, texts).skipped=={'line breaks the grammar': ['idx/train_visible_1.txt, line 5'], 'not used by this layout': sorted(p for p in REGDB if '_2' in p)}

def test_regdb_missing_trial_is_told(tmp_path):
    root = on_disk(tmp_path/'RegDB', REGDB_NAMES, REGDB)
    assert len(load_dataset('regdb', tmp_path, verbose=False, trial=2).samples)==16
    with pytest.raises(DataError, match='idx/train_visible_3.txt') as e: load_dataset('regdb', root, trial=3)
    assert len(str(e.value).splitlines())==2

# --- LLCM ------------------------------------------------------------------------------------------------------------------------

LLCM_LISTS = {'idx/train_vis.txt': 'vis/0001/0001_c01_s185535_f7010_vis.jpg 0\nvis/0351/0351_c09_s185535_f7011_vis.jpg 1\n',
              'idx/train_nir.txt': 'nir/0351/0351_c06_s200656_f4830_nir.jpg 1\r\nnir/0001/0001_c03_s200656_f4831_nir.jpg 0\r\n', 'idx/test_id.txt': '3,10\n'}
LLCM_NAMES = [l.split()[0] for t in ('vis','nir') for l in LLCM_LISTS[f'idx/train_{t}.txt'].splitlines()]
LLCM_TEST = [f'test_{m}/cam{c}/{i:04d}/{i:04d}_c{c:02d}_s185734_f3195_{m}.jpg' for m in ('vis','nir') for c in range(1,10) for i in (3,7,10) if (m,c)!=('nir',3)]

def llcm_truth():
    res = dict(zip(LLCM_NAMES, [(0,0,'visible','train'), (1,8,'visible','train'), (1,5,'infrared','train'), (0,2,'infrared','train')]))
    for m in ('vis','nir'):
        for c in range(1,10):
            for i in (3,10):
                if (m,c)!=('nir',3): res[f'test_{m}/cam{c}/{i:04d}/{i:04d}_c{c:02d}_s185734_f3195_{m}.jpg'] = i, c-1, 'visible' if m=='vis' else 'infrared', 'test'
    return res

LLCM_7 = sorted(os.path.dirname(p) for p in LLCM_TEST if '/0007/' in p)    # the person in no list

def test_llcm_cameras_are_shared_and_unlisted_people_left_out():
    ds = read_names(llcm(), LLCM_NAMES+LLCM_TEST, LLCM_LISTS)
    assert labels(ds, 'identity','camera','modality','split')==llcm_truth() and ds.skipped=={'in no list': LLCM_7} and len(ds.notes)==1
    assert set(ds.query[ds.query.modality=='visible'].camera)-set(ds.query[ds.query.modality=='infrared'].camera)=={2}

def test_llcm_empty_infrared_camera(tmp_path):
    root = on_disk(tmp_path/'LLCM', LLCM_NAMES+LLCM_TEST, LLCM_LISTS)
    (root/'test_nir/cam3').mkdir()
    ds = load_dataset('llcm', tmp_path, verbose=False)
    assert labels(ds, 'identity','camera','modality','split')==llcm_truth() and ds.skipped=={'in no list': LLCM_7} and len(ds.notes)==1

def test_llcm_other_folders_are_counted():
    more = ['test_vis/cam10/0003/a.jpg','test_vis/cam0/0003/a.jpg','test_vis/cam1/three/a.jpg','test_vis/cam1/0003/a.txt']
    ds = read_names(llcm(), LLCM_NAMES+LLCM_TEST+more, LLCM_LISTS)
    assert labels(ds, 'identity','camera','modality','split')==llcm_truth()
    assert ds.skipped=={'folder name breaks the grammar': ['test_vis/cam0','test_vis/cam1/three','test_vis/cam10'], 'not an image': ['test_vis/cam1/0003/a.txt'], 'in no list': LLCM_7}

def test_llcm_person_of_the_test_in_training_is_noticed():
    ds = read_names(llcm(), LLCM_NAMES+LLCM_TEST+['vis/0010/0010_c01_s1_f1_vis.jpg'], {**LLCM_LISTS, 'idx/train_vis.txt': LLCM_LISTS['idx/train_vis.txt']+'vis/0010/0010_c01_s1_f1_vis.jpg 2\n'})
    assert list(ds.notes)[1:]==['1 people are in training and in the test: 10']

# --- options and roots -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name,option,allowed', [('msmt17',dict(train='all'),"'train+val', 'train'"), ('sysu_mm01',dict(train='val'),"'train+val', 'train'"),
    ('cuhk03_np',dict(boxes='both'),"'detected', 'labeled'"), ('cuhk03_np',dict(boxes=None),"'detected', 'labeled'"), *(('regdb',dict(trial=t),'1, 2, 3, 4, 5, 6, 7, 8, 9, 10') for t in (0,11,-1,1.5,'one',None,True))])
def test_wrong_option_names_the_right_ones(tmp_path, name, option, allowed):
    with pytest.raises(DataError) as e: load_dataset(name, tmp_path, **option)
    assert allowed in str(e.value) and next(iter(option)) in str(e.value) and len(str(e.value).splitlines())<=2

SMALL = dict(market1501=(['query/0001_c1s1_001051_00.jpg','bounding_box_train/0002_c1s1_001051_00.jpg','bounding_box_test/0001_c2s1_001051_00.jpg'],{}),
    dukemtmc=(['query/0001_c1_f0001051.jpg','bounding_box_train/0002_c1_f0001051.jpg','bounding_box_test/0001_c2_f0001051.jpg'],{}), msmt17=msmt_names(),
    cuhk03_np=(['detected/query/0001_c1_1.png','detected/bounding_box_train/0002_c1_1.png','detected/bounding_box_test/0001_c2_1.png'],{}),
    sysu_mm01=(SYSU_NAMES,SYSU), regdb=(REGDB_NAMES,REGDB), llcm=(LLCM_NAMES+LLCM_TEST,LLCM_LISTS))

@pytest.mark.parametrize('name,below', [('market1501',b) for b in ('','market1501','Market-1501-v15.09.15','market1501/Market-1501-v15.09.15','Market1501')]
    + [('dukemtmc',b) for b in ('','dukemtmcreid','dukemtmc-reid/DukeMTMC-reID','DukeMTMC-reID')] + [('msmt17',b) for b in ('','MSMT17_V1','msmt17/MSMT17_V1')]
    + [('cuhk03_np',b) for b in ('','cuhk03-np','cuhk03np')] + [('sysu_mm01',b) for b in ('','SYSU-MM01')] + [('regdb',b) for b in ('','RegDB')] + [('llcm',b) for b in ('','LLCM')])
def test_usual_roots(tmp_path, name, below):
    names,texts = SMALL[name]
    on_disk(tmp_path/'data'/below, names, texts)
    ds = load_dataset(name, tmp_path/'data', verbose=False)
    assert Path(ds.root)==tmp_path/'data'/below and len(ds.samples)>=3

@pytest.mark.parametrize('name', NAMES)
def test_a_wrong_root_is_told_in_two_lines(tmp_path, name):
    tree(tmp_path, ['holiday/1.jpg'])
    with pytest.raises(DataError, match='looked for') as e: load_dataset(name, tmp_path)
    assert 'holiday' in str(e.value) and len(str(e.value).splitlines())==2

# --- random names ----------------------------------------------------------------------------------------------------------------

def by_hand(name, stem):
    "Person and camera of a base name, by splitting: None where it is not a name of the data set"
    fields = stem.split('_')
    number = lambda s: s.isascii() and s.isdigit()
    if name=='market1501':
        if len(fields)!=4: return None
        pid,place,frame,box = fields
        box = box.removesuffix('.jpg')
        if len(place)<4 or place[0]!='c' or place[2]!='s' or not number(place[3:]) or not number(frame) or not number(box): return None
        if place[1] not in '123456' or not (number(pid) or pid=='-1'): return None
        return (-2 if int(pid)==0 else int(pid)), int(place[1])-1
    if len(fields)!=3 or not number(fields[0]) or len(fields[1])!=2 or fields[1][0]!='c': return None
    pid,camera,frame = fields
    if name=='dukemtmc': return (int(pid), int(camera[1])-1) if camera[1] in '12345678' and frame[:1]=='f' and number(frame[1:]) else None
    return (int(pid), int(camera[1])-1) if camera[1] in '12' and number(frame) else None

digits = st.text('0123456789', min_size=1, max_size=6)
near = {'market1501': st.tuples(st.sampled_from(['','','-1_','0000_']), digits, st.sampled_from('12345607٣'), st.sampled_from(['s1','s12','s3','s','S1','']), digits, digits, st.sampled_from(['','','.jpg','_','x'])).map(
            lambda t: f'{t[0] or t[1]+"_"}c{t[2]}{t[3]}_{t[4]}_{t[5]}{t[6]}'),
        'dukemtmc': st.tuples(digits, st.sampled_from('0123456789'), st.sampled_from(['f','','F','_f']), digits).map(lambda t: f'{t[0]}_c{t[1]}_{t[2]}{t[3]}'),
        'cuhk03_np': st.tuples(digits, st.sampled_from('01234'), st.sampled_from(['','f','-']), digits).map(lambda t: f'{t[0]}_c{t[1]}_{t[2]}{t[3]}')}

@pytest.mark.parametrize('name', near)
def test_random_names_are_read_right_or_not_at_all(name):
    layout,above = dict(market1501=(market1501(),''), dukemtmc=(dukemtmc(),''), cuhk03_np=(cuhk03_np(),'detected/'))[name]
    accepted = []
    @given(st.lists(near[name] | st.text('_c-s0123f.', min_size=1, max_size=16).filter(lambda s: s[0]!='.'), min_size=1, max_size=8, unique=True))
    def run(stems):
        paths = {f'{above}query/{s}.jpg': by_hand(name, s) for s in stems}
        expected = {p: t for p,t in paths.items() if t and t[0]!=-1}
        try: ds = read_names(layout, list(paths))
        except DataError: assert not expected
        else:
            assert labels(ds, 'identity','camera')==expected
            assert sorted(ds.skipped.get('name breaks the grammar', []))==sorted(p for p,t in paths.items() if t is None)
            accepted.extend(expected)
    run()
    assert len(set(accepted))>10 # random names that fit came up

@given(st.lists(st.tuples(st.integers(0,30), st.integers(0,99), st.integers(1,15), st.sampled_from(('train','val','query','gallery'))), min_size=1, unique_by=lambda t: (t[0],t[1],t[2],t[3])),
       st.sampled_from(('train','train+val')), st.sampled_from(('\n','\r\n')))
def test_random_msmt_lists(images, option, end):
    files,texts,expected = [],{f'list_{k}.txt': '' for k in ('train','val','query','gallery')},{}
    for person,index,camera,where in images:
        below = f'{person:04d}/{person:04d}_{index:03d}_{camera:02d}_{where}_0001_0.jpg'
        path = f"{'train' if where in ('train','val') else 'test'}/{below}"
        files.append(path)
        texts[f'list_{where}.txt'] += f'{below} {person}{end}'
        expected[path] = [person, camera-1, 'train' if where=='val' and option=='train+val' else where]
    learned = sorted({r[0] for r in expected.values() if r[2]=='train'})
    for r in expected.values():
        if r[2]=='train': r[0] = learned.index(r[0])
    assert labels(read_names(msmt17(train=option), files, texts), 'identity','camera','split')=={p: tuple(r) for p,r in expected.items()}
