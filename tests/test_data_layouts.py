"Folders to tables: label rules against loops written from the definitions, roots, accidents, fuzz"
import os,random,re,shutil,subprocess,sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given,settings,strategies as st

from ccreid.data.layouts import DATASETS,find_layout,load_dataset
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.reading import read_names
from ccreid.data.samples import DataError,ReIDDataset,hold_out,make_table,relabel
from test_data_grammars import OPTIONS,SETS,near_miss


def tree(root, names):
    for n in names:
        p = Path(root)/n
        p.parent.mkdir(parents=True, exist_ok=True)
        p.touch()
    return Path(root)

def rel(ds): return [os.path.relpath(p, ds.root).replace(os.sep, '/') for p in ds.samples.path]


PRCC = [f'rgb/{s}/{p}/{c}_cropped_rgb{i:03d}.jpg' for s in ('train','val') for p in ('001','004','092') for c in 'ABC' for i in (1,7)] + \
       [f'rgb/test/{c}/{p}/cropped_rgb{i:03d}.jpg' for p in ('100','333') for c in 'ABC' for i in (1,2)]

def prcc_reference(paths):
    "The rules of the field's code in loops: {path: (identity, clothes key, camera, split)}; train labels are ranks of sorted strings"
    train = [p for p in paths if p.startswith('train/')]
    pids = sorted({p.split('/')[1] for p in train})
    key = lambda pid,cam: pid if cam in 'AB' else pid+'C'
    worn = sorted({key(p.split('/')[1], p.split('/')[2][0]) for p in train})
    res = {}
    for p in paths:
        f = p.split('/')
        if f[0]=='train': res[p] = (pids.index(f[1]), worn.index(key(f[1], f[2][0])), 'ABC'.index(f[2][0]), 'train')
        elif f[0]=='val': res[p] = (int(f[1]), ('val', key(f[1], f[2][0])), 'ABC'.index(f[2][0]), 'val')
        else: res[p] = (int(f[2]), ('test', key(f[2], f[1])), 'ABC'.index(f[1]), 'gallery' if f[1]=='A' else 'query')
    return res

def check_against(ds, ref):
    "Identity, camera, split equal the reference; train clothes equal; other clothes equal as a partition, unique to their part"
    assert sorted(ref) == sorted(rel(ds))
    seen,back = {},{}
    for path,r in zip(rel(ds), ds.samples.itertuples()):
        identity,clothes,camera,split = ref[path]
        assert (r.identity, r.camera, r.split) == (identity, camera, split), path
        if split=='train': assert r.clothes == clothes, path
        assert seen.setdefault(clothes, r.clothes) == r.clothes and back.setdefault(r.clothes, clothes) == clothes, path

def test_prcc_labels(tmp_path):
    ds = load_dataset('prcc', tree(tmp_path, PRCC))
    check_against(ds, prcc_reference([p[4:] for p in PRCC]))
    assert ds.samples.path.map(os.path.isabs).all() and ds.notes == []
    assert set(ds.query.camera) == {1,2} and set(ds.gallery.camera) == {0} and len(ds.val) == 18
    assert set(ds.train.clothes).isdisjoint(ds.val.clothes) and set(ds.val.clothes).isdisjoint(ds.query.clothes)

LTCC = [f'{s}/{p:03d}_{k}_c{c}_{i:06d}.png' for s,ps in (('train',(0,3,10)),('query',(7,)),('test',(7,12)))
        for p in ps for k in (1,2,10) for c,i in ((1,2),(12,1581))]

def test_ltcc_labels(tmp_path):
    ds = load_dataset('ltcc', tree(tmp_path/'LTCC_ReID', LTCC).parent)
    train = [p for p in LTCC if p.startswith('train')]
    name = lambda p: p.split('/')[1].split('_')
    pids,worn = sorted({int(name(p)[0]) for p in train}), sorted({'_'.join(name(p)[:2]) for p in train})
    ref = {}
    for p in LTCC:
        pid,k,c,_ = name(p)
        split = dict(train='train', query='query', test='gallery')[p.split('/')[0]]
        key = f'{pid}_{k}'
        ref[p] = (pids.index(int(pid)), worn.index(key), int(c[1:])-1, split) if split=='train' else (int(pid), ('test',key), int(c[1:])-1, split)
    check_against(ds, ref)
    assert '12 of' not in ' '.join(ds.notes)            # a gallery person without a query is no fault

@pytest.mark.parametrize('name,files,strip', [('prcc',PRCC,4), ('ltcc',LTCC,0)])
@pytest.mark.parametrize('above', ['my_c3_data', '001_2_c3', 'x_c1/999_9_c9_000001.png', '(a[b)*', 'données 数据', '%41'])
def test_the_path_above_does_not_matter(tmp_path, name, files, strip, above):
    a = load_dataset(name, tree(tmp_path/'plain', files), verbose=False)
    b = load_dataset(name, tree(tmp_path/above, files), verbose=False)
    pd.testing.assert_frame_equal(a.samples.drop(columns='path'), b.samples.drop(columns='path'))
    assert rel(a) == rel(b)

@pytest.mark.parametrize('inside', ['', 'rgb', 'prcc/rgb', 'PRCC/RGB', 'prcc/prcc/rgb'])
def test_prcc_root_at_any_usual_depth(tmp_path, inside):
    tree(tmp_path/'d'/inside, [p[4:] for p in PRCC])
    assert len(load_dataset('prcc', tmp_path/'d').samples) == len(PRCC)
    assert len(load_dataset('PRCC', str(tmp_path/'d'/inside)).samples) == len(PRCC)

def test_relative_root_gives_absolute_paths(tmp_path, monkeypatch):
    tree(tmp_path/'prcc', PRCC)
    monkeypatch.chdir(tmp_path)
    assert all(os.path.isfile(p) and os.path.isabs(p) for p in load_dataset('prcc', 'prcc').samples.path)

def two_lines(f, *needles):
    with pytest.raises(DataError) as e: f()
    text = str(e.value)
    assert 1 <= len(text.splitlines()) <= 2, text
    for n in needles: assert n in text, (n, text)

def test_wrong_roots_are_told_in_two_lines(tmp_path):
    tree(tmp_path, [f'prcc/{p}' for p in PRCC]); (tmp_path/'empty').mkdir(); (tmp_path/'f.txt').write_text('')
    two_lines(lambda: load_dataset('prcc', tmp_path/'none'/'x'), 'does not exist', str(tmp_path))
    two_lines(lambda: load_dataset('prcc', tmp_path/'f.txt'), 'not a folder')
    two_lines(lambda: load_dataset('prcc', tmp_path/'empty'), 'train/', 'an empty folder')
    two_lines(lambda: load_dataset('ltcc', tmp_path/'prcc'), 'query', 'found rgb/')
    two_lines(lambda: load_dataset('prcc', tmp_path/'prcc'/'rgb'/'train'), 'looks right')
    two_lines(lambda: load_dataset('mannequins', tmp_path), 'mannequins.json')
    two_lines(lambda: load_dataset('market', tmp_path), 'known are', 'prcc')
    two_lines(lambda: load_dataset('prcc', tmp_path, trial=3), 'no option trial')

def test_a_part_is_missing(tmp_path):
    tree(tmp_path, [p for p in PRCC if '/C/' not in p])
    two_lines(lambda: load_dataset('prcc', tmp_path), 'test/C/', 'found test/, train/, val/')

def test_no_image_at_all(tmp_path):
    for d in 'train','query','test': (tmp_path/d).mkdir()
    two_lines(lambda: load_dataset('ltcc', tmp_path), '0 images', '001_1_c4_015861.png', 'only empty folders')
    tree(tmp_path, ['train/a.png','query/b.png','test/c.png','test/d.png'])
    two_lines(lambda: load_dataset('ltcc', tmp_path), '0 images', 'name breaks the grammar', 'and 1 more')

def test_an_empty_part_is_noted(tmp_path):
    tree(tmp_path, [p for p in LTCC if not p.startswith('query')]); (tmp_path/'query').mkdir()
    assert 'no image in query' in load_dataset('ltcc', tmp_path, verbose=False).notes

def test_everything_passed_over_is_counted_and_printed(tmp_path, capsys):
    odd = ['train/.DS_Store','train/Thumbs.db','train/001_1_c1_000001.PNG','train/001_1_c1_2.jPg','train/001-1-c1-3.png','train/list.txt',
           'train/sub/001_1_c1_000009.png','query/००७_1_c1_000001.png','query/007_1_c0_000001.png','query/ 007_1_c1_000001.png','query/007_1_c1_000001.png.png']
    ds = load_dataset('ltcc', tree(tmp_path, LTCC+odd))
    assert len(ds.samples) == len(LTCC)+2                                       # the two with capital extensions
    assert ds.skipped == {'hidden or system file': ['train/.DS_Store','train/Thumbs.db'], 'not an image': ['train/list.txt'],
        'folder name breaks the grammar': ['train/sub'],
        'name breaks the grammar': sorted(['query/ 007_1_c1_000001.png','query/007_1_c0_000001.png','query/007_1_c1_000001.png.png',
                                           'query/००७_1_c1_000001.png','train/001-1-c1-3.png'])}
    out = capsys.readouterr().out
    assert 'skipped 5 file(s)' in out and '...' in out and 'Thumbs.db' in out
    load_dataset('ltcc', tmp_path, verbose=False)
    assert capsys.readouterr().out == ''

def test_strays_beside_person_folders(tmp_path):
    ds = load_dataset('prcc', tree(tmp_path, PRCC+['rgb/train/stray.jpg','rgb/train/abc/A_cropped_rgb001.jpg','rgb/train/12/A_cropped_rgb001.jpg',
                                                   'rgb/train/001/D_cropped_rgb001.jpg','rgb/train/001/A_cropped_rgb.jpg']), verbose=False)
    assert len(ds.samples) == len(PRCC) and ds.identities == 3
    assert ds.skipped['folder name breaks the grammar'] == ['train/12','train/abc']
    assert ds.skipped['name breaks the grammar'] == ['train/001/A_cropped_rgb.jpg','train/001/D_cropped_rgb001.jpg','train/stray.jpg']

def test_links(tmp_path):
    outside = tree(tmp_path/'outside', ['999_1_c1_000001.png','train/999_1_c1_000001.png'])
    root = tree(tmp_path/'in'/'LTCC_ReID', LTCC)
    os.symlink(outside/'999_1_c1_000001.png', root/'train'/'999_1_c1_000001.png')
    os.symlink(root/LTCC[0], root/'train'/'998_1_c1_000001.png')
    ds = load_dataset('ltcc', root, verbose=False)
    assert ds.skipped == {'link that leaves the folder': ['train/999_1_c1_000001.png']}
    assert 'train/998_1_c1_000001.png' in rel(ds)
    os.symlink(root, tmp_path/'link')                                           # a root that is a link is what the user asked for
    assert len(load_dataset('ltcc', tmp_path/'link', verbose=False).samples) == len(ds.samples)

def test_labels_that_look_wrong_are_noted(tmp_path):
    ds = load_dataset('ltcc', tree(tmp_path, LTCC+['query/003_1_c1_000001.png','query/500_1_c1_000001.png']), verbose=False)
    assert any('1 people are in training and in the test: 3' in n for n in ds.notes)
    assert any('not in the gallery' in n and '500' in n for n in ds.notes)

# ---- bad input, in every layout: the good trees and their labels are those of the tests of grammars

ALL = [n for n in SETS if n!='folder']                                          # a user's own folder has tests of its own
LISTS = [n for n in ALL if any('.jpg' in t or 'session' in t or '.bmp' in t for t in SETS[n][2].values())]  # their images are named in lists
FOLDERS = [n for n in ALL if n not in LISTS]
options = lambda name: OPTIONS.get(name, {})

def good(root, name, paths=None, texts=None):
    "The good tree of a data set on disk"
    tree(root, SETS[name][1] if paths is None else paths)
    for f,t in (SETS[name][2] if texts is None else texts).items():
        (Path(root)/f).parent.mkdir(parents=True, exist_ok=True)
        (Path(root)/f).write_bytes(t.encode())
    if name=='mannequins': (Path(root)/'mannequins.json').write_text('{}')
    return Path(root)

def load(name, root, **kw): return load_dataset(name, root, verbose=False, **{**options(name), **kw})

def same(a, b):
    "Two data sets with the same files and labels"
    assert rel(a) == rel(b)
    pd.testing.assert_frame_equal(a.samples.drop(columns='path'), b.samples.drop(columns='path'))

def images_of(name):
    "Relative paths of the pictures that the good tree gives, and of their folders"
    paths = [os.path.relpath(p, '/names') for p in read_names(find_layout(name, **options(name)), *SETS[name][1:]).samples.path]
    return paths, sorted({os.path.dirname(p) for p in paths})

@pytest.mark.parametrize('name', ALL)
def test_the_disk_says_what_the_names_say(tmp_path, name):
    same(load(name, good(tmp_path, name)), read_names(find_layout(name, **options(name)), *SETS[name][1:]))

@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('above', ['my_c3_data', '0001_c2s3_000004_05.jpg', 'P1_C2_x/session3/001_12', 'cam3/train/0007', '9-9-9-9.jpg', '(a[b)* %41', 'données 数据'])
def test_no_label_comes_from_above(tmp_path, name, above):
    same(load(name, good(tmp_path/above, name)), load(name, good(tmp_path/'plain', name)))

@pytest.mark.parametrize('name', ALL)
def test_capital_extensions(tmp_path, name):
    capital = lambda t: re.sub(r'\.(jpg|png|bmp)(?=\W|$)', lambda m: m[0].upper(), t)
    paths,texts = SETS[name][1:]
    ds = load(name, good(tmp_path/'big', name, [re.sub(r'\.\w+$', lambda m: m[0].upper(), p) for p in paths], {f: capital(t) for f,t in texts.items()}))
    plain = load(name, good(tmp_path/'small', name))
    assert [p.lower() for p in rel(ds)] == [p.lower() for p in rel(plain)]
    pd.testing.assert_frame_equal(ds.samples.drop(columns='path'), plain.samples.drop(columns='path'))

@pytest.mark.parametrize('name', ALL)
def test_hidden_and_system_files(tmp_path, name):
    paths,folders = images_of(name)
    clutter = [f'{d}/{n}' for d in folders for n in ('.DS_Store','Thumbs.db','thumbs.db','desktop.ini','.hidden/x.jpg')] + [f"{os.path.dirname(p)}/._{os.path.basename(p)}" for p in paths]
    ds = load(name, tree(good(tmp_path/'a', name), clutter))
    same(ds, load(name, good(tmp_path/'b', name)))
    found = ds.skipped.pop('hidden or system file', [])
    assert set(found) <= {c.replace('/x.jpg', '') for c in clutter} and (len(found) >= 4 or name in LISTS)
    assert ds.skipped == load(name, tmp_path/'b').skipped

@pytest.mark.parametrize('name', FOLDERS)
def test_links_into_the_data_and_out_of_it(tmp_path, name):
    root = good(tmp_path/'in', name)
    paths,folders = images_of(name)
    fresh = lambda p: re.sub(r'\d(?=\.\w+$)', lambda m: str((int(m[0])+5)%10), p)      # another frame: a good name that is not there yet
    source,inside = next((p, fresh(p)) for p in paths if fresh(p) not in paths)
    outside = tree(tmp_path/'out', ['picture.jpg','folder/picture.jpg'])
    os.symlink(root/source, root/inside)
    assert inside in rel(load(name, root))
    for target in outside/'picture.jpg', outside/'folder', '/etc', '../../../..', root.parent:
        link = root/os.path.dirname(source)/f'link{os.path.splitext(source)[1]}'
        os.symlink(target, link)
        ds = load(name, root)
        assert os.path.relpath(link, root) in ds.skipped.get('link that leaves the folder', []), target
        assert len(ds.samples) == len(paths)+1 and all(os.path.realpath(p).startswith(str(root)) for p in ds.samples.path)
        link.unlink()

@pytest.mark.parametrize('name', LISTS)
def test_a_listed_link_that_leads_out_is_refused(tmp_path, name):
    root = good(tmp_path/'in', name)
    outside = tree(tmp_path/'out', ['a.jpg'])
    victim = root/images_of(name)[0][0]
    if name=='ccvid':
        shutil.move(victim.parent, tmp_path/'out'/'walk'); os.symlink(tmp_path/'out'/'walk', victim.parent)
    else:
        victim.unlink(); os.symlink(outside/'a.jpg', victim)
    two_lines(lambda: load(name, root), 'outside the data set')

@pytest.mark.parametrize('name', ALL)
def test_names_in_other_scripts(tmp_path, name):
    paths,folders = images_of(name)
    arabic,wide = str.maketrans('0123456789', '٠١٢٣٤٥٦٧٨٩'),str.maketrans('0123456789_c', '０１２３４５６７８９＿ｃ')
    odd = [f'{os.path.dirname(p)}/{os.path.basename(p).translate(t)}' for p in paths for t in (arabic,wide)]
    ds = load(name, tree(good(tmp_path/'a', name), odd if name not in ('llcm','ccvid') else []))   # these two take any name of a picture
    same(ds, load(name, good(tmp_path/'b', name)))
    if name in FOLDERS: assert set(odd) <= set(ds.skipped['name breaks the grammar'])

@pytest.mark.parametrize('name', [n for n in ALL if SETS[n][2]])
@pytest.mark.parametrize('change', ['\r\n', '\r', '\ufeff', '\n\n \n', 'BOTH'])
def test_line_ends_and_marks_of_lists(tmp_path, name, change):
    edit = {'\ufeff': lambda t: '\ufeff'+t, 'BOTH': lambda t: '\ufeff'+t.replace('\n', '\r\n')}.get(change, lambda t: t.replace('\n', change))
    same(load(name, good(tmp_path/'a', name, texts={f: edit(t) for f,t in SETS[name][2].items()})), load(name, good(tmp_path/'b', name)))

def test_only_line_ends_end_a_line(tmp_path):
    "Other characters that some programs break lines at may stand in a name"
    paths,texts = SETS['deepchange'][1:]
    odd = [f'P9_C2_20200813_a{c}b.jpg' for c in ('\u2028','\u2029','\x85','\x0b','\x0c','\x1c')]
    ds = load('deepchange', good(tmp_path, 'deepchange', [*paths, *(f'train-set/{n}' for n in odd)],
                                 {**texts, 'train-set-bbox.txt': texts['train-set-bbox.txt']+''.join(f'{n},90\n' for n in odd)}))
    assert {f'train-set/{n}' for n in odd} <= set(rel(ds)) and not ds.skipped

@pytest.mark.parametrize('name', LISTS)
def test_a_listed_image_is_missing(tmp_path, name, capsys):
    root = good(tmp_path, name)
    paths,_ = images_of(name)
    gone = random.Random(0).choice([p for p in paths if name!='llcm' or not p.startswith('test')])
    shutil.rmtree((root/gone).parent) if name=='ccvid' else (root/gone).unlink()
    ds = load_dataset(name, root, **options(name))
    assert len(ds.samples) == len(paths) - (2 if name=='ccvid' else 1)
    assert [p for p in ds.skipped['listed but missing'] if 'person 4' not in p] == [os.path.dirname(gone) if name=='ccvid' else gone]
    assert 'listed but missing' in capsys.readouterr().out

@pytest.mark.parametrize('name', [n for n in ALL if SETS[n][2]])
def test_a_list_is_missing_or_no_text(tmp_path, name):
    for i,f in enumerate(SETS[name][2]):
        if '_1.txt' in f: continue                                              # RegDB: another trial
        root = good(tmp_path/str(i), name)
        (root/f).write_bytes(b'\xff\xfe\x00\x01\x80')
        two_lines(lambda: load(name, root), os.path.basename(f))
        (root/f).unlink()
        if name=='deepchange' and f.startswith('val'): assert not len(load(name, root).val[lambda t: t.role==f.split('-')[2]]) # nobody needs validation
        else: two_lines(lambda: load(name, root), os.path.basename(f))

@pytest.mark.parametrize('name,where', [(n,w) for n in LISTS for w in ('{}/../../../{}', '../{}', '/{}', 'C:\\{}', '..\\{}', 'c:/{}', '//server/{}', '{above}')
                                        if n!='regdb' or w[:2]=='{}'])           # RegDB's lines begin with Visible or Thermal, another breaks the grammar
def test_a_list_that_points_outside_is_refused(tmp_path, name, where):
    "Nothing outside is read, whether or not it exists"
    paths,texts = SETS[name][1:]
    file = next(f for f in texts if 'train' in f and '_1.txt' not in f)
    root = good(tmp_path/'in', name)
    tree(tmp_path, paths)                                                       # the same files, one folder too high
    line = texts[file].split('\n')[0]
    given = re.match(r'[^\s,]+', line)[0]
    wrong = (str(root.parent/given) if where=='{above}' else where.format(*[given]*where.count('{}'))) + line[len(given):]
    (root/file).write_text(texts[file]+wrong+'\n')
    two_lines(lambda: load(name, root), 'outside the data set', f"{file}, line {len(texts[file].splitlines())+1}")

@pytest.mark.parametrize('name', ALL)
def test_zero_images(tmp_path, name):
    paths,texts = SETS[name][1:]
    root = good(tmp_path, name)
    for p in paths: (root/p).unlink()
    two_lines(lambda: load(name, root), '0 images', str(tmp_path))
    for p in paths: (root/p).with_name('a?b.png').touch()
    if name not in ('ccvid','llcm'): two_lines(lambda: load(name, root), '0 images', 'breaks the grammar' if name in FOLDERS else 'missing')

@pytest.mark.parametrize('name', ALL)
def test_newcomers_are_told_in_two_lines(tmp_path, name):
    root = good(tmp_path/'data'/'set', name)
    (tmp_path/'empty').mkdir(); (tmp_path/'notes.txt').touch(); tree(tmp_path/'photos', ['IMG_1.jpg','IMG_2.jpg'])
    other = good(tmp_path/'other', 'ltcc' if name!='ltcc' else 'prcc')
    deep = next(p for p in images_of(name)[1] if p)
    two_lines(lambda: load(name, tmp_path/'nowhere'), 'does not exist', 'name the folder')
    two_lines(lambda: load(name, tmp_path/'notes.txt'), 'is a file', 'name the folder')
    two_lines(lambda: load(name, tmp_path/'empty'), 'looked for', 'an empty folder', 'name the folder that holds')
    two_lines(lambda: load(name, tmp_path/'photos'), 'looked for', 'IMG_1.jpg', 'name the folder that holds')
    two_lines(lambda: load(name, other), 'looked for', 'found') if name not in ('vc_clothes','celeb_reid') else None
    two_lines(lambda: load(name, root/deep), 'looked for', f'{root} looks right')

@pytest.mark.parametrize('name', ALL)
def test_mixed_up_splits(tmp_path, name):
    "A training person among the queries is noted, unless the data set counts the people of its test anew"
    paths,texts = list(SETS[name][1]),dict(SETS[name][2])
    add = {'prcc': 'test/B/001/cropped_rgb001.jpg', 'ltcc': 'query/001_1_c4_015861.png', 'vc_clothes': 'query/0001-01-01-01.jpg', 'market1501': 'query/0002_c1s1_000451_03.jpg',
           'dukemtmc': 'query/0001_c2_f0046182.jpg', 'cuhk03_np': 'detected/query/0001_c1_23.png', 'last': 'test/query/000001_001_0010_1.jpg', 'mannequins': 'query/0001_0002_c1_v_0003.png',
           'celeb_reid': 'query/632_7_0.jpg', 'deepchange': 'test-set-query/P1_C03_20200813_1_2_bbox.jpg', 'msmt17': 'test/0004/0004_000_02_0113noon_0001_0.jpg'}
    line = {'deepchange': ('test-set-query-bbox.txt','P1_C03_20200813_1_2_bbox.jpg,0'), 'ccvid': ('query.txt','session1/001_01\t001\tu0_l0'), 'msmt17': ('list_query.txt','0004/0004_000_02_0113noon_0001_0.jpg 4'),
            'regdb': ('idx/test_visible_2.txt','Visible/1/male_front_v_00001_1.bmp 9')}
    if name in add: paths.append(add[name])
    if name in line: texts[line[name][0]] += line[name][1]+'\n'
    if name=='sysu_mm01': texts['exp/test_id.txt'] += ',1'
    if name=='llcm': texts['idx/test_id.txt'] = '3,1'; paths.append('test_vis/cam1/0001/0001_c01_s1_f1_vis.jpg')
    mixed = [n for n in load(name, good(tmp_path, name, paths, texts)).notes if 'are in training and in the test' in n]
    assert len(mixed) == (name not in ('celeb_reid','msmt17'))
    assert not [n for n in load(name, good(tmp_path/'good', name)).notes if 'are in training and in the test' in n]

# ---- fuzz

chars = st.one_of(st.sampled_from(list('0123456789_cvABCrgb.- ')), st.characters(blacklist_characters='/\0', blacklist_categories=('Cs',)))

@settings(max_examples=40)
@given(names=st.lists(near_miss('001_1_c4_015861.png', chars).filter(lambda n: 0 < len(n.encode()) < 200 and n not in ('.','..')), max_size=6))
def test_fuzzed_folders_do_not_crash(tmp_path_factory, names):
    root = tree(tmp_path_factory.mktemp('fuzz'), LTCC)
    for n in names: (root/'train'/n).touch()
    ds = load_dataset('ltcc', root, verbose=False)
    on_disk = sum(len(os.listdir(root/d)) for d in ('train','query','test'))
    assert len(ds.samples) + sum(map(len, ds.skipped.values())) == on_disk    # everything is read or accounted for

# ---- mannequins

def native_reference(paths):
    "What the names of the native layout say, in loops"
    train = [p for p in paths if p.startswith('train/')]
    name = lambda p: p.split('/')[1][:-4].split('_')
    pids,worn = (sorted({int(name(p)[k]) for p in train}) for k in (0,1))
    res = {}
    for p in paths:
        i,k,c,_,_ = name(p)
        split,i,k,c = p.split('/')[0],int(i),int(k),int(c[1:])
        res[p] = (pids.index(i), worn.index(k), c, split) if split=='train' else (i, (split, k), c, split)
    return res

def test_round_trip_native(tmp_path):
    world = MannequinWorld(identities=(4,2,3), outfits=2, cameras=3, images=2, infrared=(2,), size=(32,16), seed=5)
    ds = world.write(tmp_path/'w', layout='mannequins')
    check_against(ds, native_reference(rel(ds)))
    assert ds.identities == 4 and ds.clothes == 8 and len(ds.val) == 2*2*3*2 and len(ds.query) == len(ds.gallery) == 3*2*3*2
    assert ((ds.samples.modality=='infrared') == (ds.samples.camera==2)).all()
    for t in ds.train,ds.val,ds.query:
        assert t.groupby('clothes').identity.nunique().max() == 1 and (t.groupby('identity').clothes.nunique() == 2).all()
    again = load_dataset('mannequins', tmp_path/'w', verbose=False)
    pd.testing.assert_frame_equal(again.samples, ds.samples)

def test_round_trip_field_layouts(tmp_path):
    p = MannequinWorld(identities=(4,2,3), images=2, size=(32,16), seed=5).write(tmp_path/'p', layout='prcc')
    check_against(p, prcc_reference(rel(p)))
    assert (p.identities, p.clothes, len(p.train), len(p.val), len(p.query), len(p.gallery)) == (4, 8, 24, 12, 12, 6)
    l = MannequinWorld(identities=(4,0,3), outfits=3, cameras=2, images=2, size=(32,16), seed=5).write(tmp_path/'l', layout='ltcc')
    assert (l.identities, l.clothes, len(l.train), len(l.query), len(l.gallery)) == (4, 12, 48, 18, 18)
    assert l.train.groupby('clothes').identity.nunique().max() == 1
    pd.testing.assert_frame_equal(load_dataset('mannequins', tmp_path/'p', verbose=False).samples, p.samples)   # the manifest says PRCC

def test_domains_share_no_label(tmp_path):
    for d in 'harbour','plaza','woods':
        tree(tmp_path/d, [f'{s}/{i:04d}_{2*i+k:04d}_c{c}_v_0000.png' for s,people in (('train',(0,1)),('val',(2,)),('test',(3,4)))
                          for i in people for k in (0,1) for c in (0,1)])
    (tmp_path/'mannequins.json').write_text('{}')
    ds = load_dataset('mannequins-dg', tmp_path, verbose=False)
    by = {d: t for d,t in ds.samples.groupby('dataset')}
    assert set(by) == {'mannequins-harbour','mannequins-plaza','mannequins-woods'} and ds.identities == 6 and ds.clothes == 12
    for column in 'clothes','camera':
        assert sum(t[column].nunique() for t in by.values()) == ds.samples[column].nunique()
    for part in 'train','val','query':
        assert sum(getattr(ds, part)[lambda t: t.dataset==d].identity.nunique() for d in by) == getattr(ds, part).identity.nunique()

def test_damaged_manifest(tmp_path):
    tree(tmp_path, ['train/0_0_c0_v_0.png'])
    for text in '{"a"', '[1]', '{"layout": "moon"}':
        (tmp_path/'mannequins.json').write_text(text)
        two_lines(lambda: load_dataset('mannequins', tmp_path), 'mannequins.json')

# ---- tables

def test_held_out_people(tmp_path):
    ds = load_dataset('prcc', tree(tmp_path, PRCC))
    for seed in range(4):
        rest,val = hold_out(ds, 1, seed)
        assert rest.identities == 2 and sorted(rest.train.identity.unique()) == [0,1] and sorted(rest.train.clothes.unique()) == [0,1,2,3]
        assert set(rest.train.path) | set(val.samples.path) == set(ds.train.path) and not set(rest.train.path) & set(val.samples.path)
        assert set(val.samples.split) == {'test'} and len(val.train) == 0
        for part in 'query','gallery','val':
            pd.testing.assert_frame_equal(getattr(rest, part).reset_index(drop=True), getattr(ds, part).reset_index(drop=True))
        assert not set(rest.train.clothes) & set(rest.query.clothes)
        pd.testing.assert_frame_equal(rest.samples, hold_out(ds, 1, seed)[0].samples)
    for n in 0, 3, -1, 1.0, 0.01:
        with pytest.raises(DataError, match='hold out'): hold_out(ds, n)

labels = st.lists(st.tuples(st.integers(-2,9).filter(lambda i: i!=-1), st.integers(-1,9), st.sampled_from(['train','query'])), min_size=1, max_size=30)

@given(labels)
def test_relabel_keeps_the_partition(rows):
    t = make_table([dict(dataset='d', path=f'/{n}', identity=i, clothes=c, camera=0, split=s) for n,(i,c,s) in enumerate(rows)])
    r = relabel(t)
    for c in 'identity','clothes':
        old,new = t[c][(t.split=='train') & (t[c]>=0)],r[c][(t.split=='train') & (t[c]>=0)]
        assert sorted(set(new)) == list(range(old.nunique()))
        assert len(set(zip(old, new))) == old.nunique()
        pd.testing.assert_series_equal(t[c].drop(old.index), r[c].drop(old.index))
    ds = ReIDDataset('d', '/', r)
    assert len(ds.train)+len(ds.query) == len(t) and list(ds.query.index) == list(r.index[r.split=='query'])

@pytest.mark.parametrize('change,rule', [(dict(identity=-3),'identity'), (dict(clothes=-2),'clothes'), (dict(camera=-2),'camera'), (dict(split='valid'),'split'),
    (dict(modality='thermal'),'modality'), (dict(path='a.jpg'),'absolute'), (dict(identity=np.nan),'whole'), (dict(clothes='red'),'whole'), (dict(camera=1.5),'whole')])
def test_rules_are_named_with_the_file(change, rule):
    good = [dict(dataset='d', path=f'/{n}.jpg', identity=0, clothes=0, camera=0, modality='visible', split='train') for n in range(3)]
    make_table(good)
    with pytest.raises(DataError) as e: make_table(good[:2]+[good[2] | change], source='my list')
    assert rule in str(e.value) and 'my list' in str(e.value)
    if rule!='whole': assert (change.get('path') or '/2.jpg') in str(e.value)

# ---- weight and speed

def test_imports_stay_light():
    code = ("import sys, ccreid.data.samples, ccreid.data.layouts, ccreid.data.cards, ccreid.data.checks, ccreid.data.transforms, ccreid.data.samplers\n"
            "assert not [m for m in ('fastai','torchvision','timm') if m in sys.modules]")
    subprocess.run([sys.executable, '-c', code], check=True)

@pytest.mark.parametrize('name', ALL)
def test_the_disk_is_asked_once_a_folder(tmp_path, monkeypatch, name):
    "180,000 images in a few seconds: no question to the disk about a single image (benchmarks/loading.py takes the time)"
    load(name, good(tmp_path, name))                                            # what is imported late is imported
    asked = Counter()
    for module,f in (os,'scandir'), (os,'stat'), (os,'lstat'), (os,'listdir'), (os.path,'realpath'), (os.path,'exists'), (os.path,'isfile'):
        monkeypatch.setattr(module, f, lambda p, *a, real=getattr(module, f), f=f, **k: (asked.update([(f, str(p))]), real(p, *a, **k))[1])
    load(name, tmp_path)
    paths,folders = images_of(name)
    assert not [p for _,p in asked if os.path.splitext(p)[1] in ('.jpg','.png','.bmp')]
    listed = Counter({p: n for (f,p),n in asked.items() if f=='scandir' and os.path.relpath(p, tmp_path) in folders})
    assert listed and max(listed.values()) == 1
