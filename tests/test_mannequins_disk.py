"Mannequins on disk: layouts, their limits, atomic writing, re-dressing written files"
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from ccreid.data.mannequins import BENCHMARKS, DECLARED, Garment, Imperfections, MannequinWorld, benchmark, find_scene, redress, truth, world_hash
from ccreid.data.mannequins import benchmarks as module
from ccreid.data.mannequins.writing import MANIFEST

@pytest.fixture(scope='module')
def prcc(tmp_path_factory):
    root = tmp_path_factory.mktemp('001_2_c3')/'prcc'
    w = MannequinWorld((4,2,3), images=2, seed=3)
    return w, root, w.write(root, workers=1)

@pytest.fixture(scope='module')
def native(tmp_path_factory):
    root = tmp_path_factory.mktemp('native')/'w'
    w = MannequinWorld((3,1,3), cameras=4, images=2, seed=4, infrared=(2,3))
    return w, root, w.write(root, 'mannequins', workers=1)

def files(root): return sorted(p.relative_to(root).as_posix() for p in root.rglob('*') if p.is_file())

def test_prcc_tree_and_table(prcc):
    w,root,ds = prcc
    names = files(root)
    assert {'rgb/train/001/A_cropped_rgb001.jpg','rgb/val/005/C_cropped_rgb002.jpg','rgb/test/B/009/cropped_rgb002.jpg',MANIFEST}<=set(names)
    assert len(names)==9*3*2+1
    assert (len(ds.train), len(ds.val), len(ds.query), len(ds.gallery))==(24,12,12,6)
    assert ds.identities==4 and ds.clothes==8
    for (i,c),t in ds.train.groupby(['identity','clothes']): assert set(t.camera) in ({0,1},{2})
    assert Image.open(ds.train.path.iloc[0]).size==(64,128)

def test_labels_of_the_loader_are_those_of_the_world(native):
    w,root,ds = native
    assert len(ds.samples)==7*2*4*2
    for r in ds.samples.itertuples():
        _,scene,_ = find_scene(r.path)
        assert (scene['camera'],r.modality)==(r.camera, 'infrared' if r.camera in (2,3) else 'visible')
        assert w.split(scene['identity'])==r.split
        if r.split!='train': assert scene['identity']==r.identity
    assert ds.samples.clothes.nunique()==14

def test_ltcc_tree_and_table(tmp_path):
    w = MannequinWorld((3,0,4), outfits=3, cameras=5, images=2, seed=1)
    ds = w.write(tmp_path/'x', 'ltcc', workers=1)
    names = files(tmp_path/'x')
    assert all(re.fullmatch(r'(train|query|test)/\d{3}_\d_c\d+_\d{6}\.png|info/.*|mannequins\.json', n) for n in names)
    assert (tmp_path/'x/info/cloth-change_id_test.txt').read_text().split()==['4','5','6','7']
    assert (len(ds.train), len(ds.query), len(ds.gallery))==(90,60,60) and ds.clothes==9

@pytest.mark.parametrize('kw,layout,limit', [(dict(outfits=3),'prcc','PRCC holds exactly 2 outfits per person .* got 3'), (dict(cameras=4),'prcc','exactly 3 cameras'),
    (dict(infrared=(1,)),'prcc','visible'), (dict(identities=(1000,0,2)),'prcc','three digits'), (dict(identities=(2,2,2)),'ltcc','no validation split'),
    (dict(identities=(2,0,2),infrared=(0,)),'ltcc','visible'), (dict(),'market','layout')])
def test_layout_limits_are_named_and_nothing_is_written(tmp_path, kw, layout, limit):
    with pytest.raises(ValueError, match=limit) as e: MannequinWorld(**{**dict(identities=(2,1,2), images=1), **kw}).write(tmp_path/'x', layout)
    assert len(str(e.value).splitlines())==1 and not list(tmp_path.iterdir())

def test_write_reuse_refuse_overwrite(tmp_path):
    a,b = (MannequinWorld((2,1,2), images=1, seed=s) for s in (0,1))
    root = tmp_path/'w'
    a.write(root, load=False)
    stamp = {n:(root/n).stat().st_mtime_ns for n in files(root)}
    a.write(root, load=False)
    assert stamp=={n:(root/n).stat().st_mtime_ns for n in files(root)} # reused
    with pytest.raises(FileExistsError, match='overwrite'): b.write(root, load=False)
    assert find_scene(root/'rgb/train/001/A_cropped_rgb001.jpg')[0].seed==0
    b.write(root, overwrite=True, load=False)
    assert find_scene(root/'rgb/train/001/A_cropped_rgb001.jpg')[0].seed==1
    assert [p.name for p in tmp_path.iterdir()]==['w']

def test_incomplete_world_is_not_reused(tmp_path):
    w = MannequinWorld((2,1,2), images=1)
    w.write(tmp_path/'w', load=False)
    (tmp_path/'w/rgb/train/002/B_cropped_rgb001.jpg').unlink()
    with pytest.raises(FileExistsError): w.write(tmp_path/'w', load=False)
    w.write(tmp_path/'w', overwrite=True, load=False)
    assert (tmp_path/'w/rgb/train/002/B_cropped_rgb001.jpg').is_file()

def test_foreign_folders_are_never_overwritten(tmp_path):
    (tmp_path/'mine').mkdir(); (tmp_path/'mine/thesis.txt').write_text('years of work')
    with pytest.raises(FileExistsError, match='not written by a mannequin world'): MannequinWorld((1,0,1), images=1).write(tmp_path/'mine', overwrite=True)
    assert (tmp_path/'mine/thesis.txt').read_text()=='years of work'

def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    w = MannequinWorld((2,1,2), images=1)
    def fail(done, total):
        if done: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): w.write(tmp_path/'w', progress=fail, workers=1)
    assert not list(tmp_path.iterdir())

def test_processes_draw_the_same_files(tmp_path):
    w = MannequinWorld((40,0,30), images=1, seed=9)
    w.write(tmp_path/'one', 'mannequins', workers=1, load=False); w.write(tmp_path/'two', 'mannequins', workers=2, load=False)
    assert files(tmp_path/'one')==files(tmp_path/'two')
    assert all((tmp_path/'one'/n).read_bytes()==(tmp_path/'two'/n).read_bytes() for n in files(tmp_path/'one'))

# ---- re-dressing

def test_written_pixels_are_the_rendered_ones(native):
    w,root,ds = native
    for p in ds.samples.path[::11]: assert (np.asarray(Image.open(p))==np.asarray(truth(p).image)).all()

def test_a_mask_keeps_background_face_and_hair(prcc):
    w,root,ds = prcc
    for p in ds.samples.path[::4]:
        old = np.asarray(Image.open(p).convert('RGB'))
        before = truth(p)
        m = redress(p, 'a yellow and black striped hoodie, a red long skirt and white boots')
        new = np.asarray(m.image)
        face = np.isin(before.parsing, (2,13))
        assert (new[face]==old[face]).all()
        back = (before.parsing==0)&(m.parsing==0)
        assert (new[back]==old[back]).all()
        assert np.abs(new.astype(int)-old)[~face&~back].mean()>15
        assert m.caption.startswith('a yellow and black striped hoodie') and (m.parsing==12).sum()>100

def test_a_given_mask_is_kept_to_the_pixel(native):
    w,root,ds = native
    p = ds.train.path.iloc[0]
    mask = truth(p).parsing==truth(p).garments[0].cut.label
    old,new = np.asarray(Image.open(p)),np.asarray(redress(p, 'a green coat', mask=mask).image)
    assert (old[~mask]==new[~mask]).all() and (old[mask]!=new[mask]).any()
    with pytest.raises(ValueError, match='mask'): redress(p, 'a green coat', mask=mask[:5])

def test_the_same_outfit_changes_nothing(native):
    w,root,ds = native
    for p in ds.samples.path[::13]: assert (np.asarray(Image.open(p))==np.asarray(redress(p, truth(p).caption).image)).all()

def test_redress_takes_text_garment_or_list_and_keeps_the_pose(native):
    w,root,ds = native
    p = ds.train.path.iloc[3]
    ms = [redress(p, g) for g in ('a red dress', Garment('dress','red'), [Garment('dress','red')])]
    assert len({m.image.tobytes() for m in ms})==1
    assert (ms[0].keypoints==truth(p).keypoints).all()
    assert w.redress(p, 'a red dress').image.tobytes()==ms[0].image.tobytes()

def test_imperfections_are_seeded_and_off_by_default(native):
    w,root,ds = native
    p = ds.train.path.iloc[5]
    a = [redress(p, 'a red dress', seed=s).image.tobytes() for s in range(4)]
    assert len(set(a))==1
    b = [redress(p, 'a red dress', seed=s, imperfections=DECLARED).image.tobytes() for s in range(12)]
    assert len(set(b))>3 and b[2]==redress(p, 'a red dress', seed=2, imperfections=DECLARED).image.tobytes()

def test_the_body_drifts_only_without_a_mask(native):
    w,root,ds = native
    p = ds.train.path.iloc[5]
    knobs = Imperfections(identity_drift=1.)
    true = truth(p)
    kept = [redress(p, 'a red dress', seed=s, imperfections=knobs) for s in range(4)]
    free = [redress(p, 'a red dress', seed=s, mask=False, imperfections=knobs) for s in range(4)]
    assert all((m.keypoints==true.keypoints).all() for m in kept) and len({m.image.tobytes() for m in kept})==1
    assert all((m.keypoints!=true.keypoints).any() for m in free) and len({m.image.tobytes() for m in free})==4

def test_artefacts_stay_in_what_was_drawn_anew(native):
    w,root,ds = native
    p = ds.train.path.iloc[1]
    perfect = redress(p, 'a red dress')
    flawed = redress(p, 'a red dress', imperfections=Imperfections(artefacts=1.))
    changed = (np.asarray(perfect.image)!=np.asarray(flawed.image)).any(-1)
    assert changed.sum()>10 and not np.isin(perfect.parsing[changed], (0,2,13)).any()

def test_off_wardrobe_changes_only_the_asked_garments(native):
    w,root,ds = native
    p = ds.train.path.iloc[2]
    perfect,odd = (redress(p, 'a red sweater and navy trousers', imperfections=Imperfections(off_wardrobe=k)) for k in (0.,1.))
    changed = np.abs(np.asarray(perfect.image).astype(int)-np.asarray(odd.image)).max(-1)>25
    assert changed.sum()>100 and np.isin(perfect.parsing[changed], (5,9)).mean()>.9
    assert odd.caption==perfect.caption # what was asked for

def test_bad_images(prcc, tmp_path):
    w,root,ds = prcc
    lone = tmp_path/'a.png'
    Image.new('RGB',(64,128)).save(lone)
    with pytest.raises(FileNotFoundError, match='does not exist'): redress(tmp_path/'nobody.png', 'a red dress')
    with pytest.raises(ValueError, match='no mannequins.json'): redress(lone, 'a red dress')
    stray = root/'rgb/train/001/Z_stray.jpg'
    Image.new('RGB',(64,128)).save(stray)
    try:
        with pytest.raises(ValueError, match='not written by that world'): redress(stray, 'a red dress')
    finally: stray.unlink()
    p = ds.train.path.iloc[0]
    with pytest.raises(ValueError, match='flarg'): redress(p, 'a red flarg')
    with pytest.raises(ValueError, match='another world'): MannequinWorld((4,2,3), images=2, seed=8).redress(p, 'a red dress')

def test_the_scene_is_found_by_path_from_anywhere(prcc, monkeypatch):
    w,root,ds = prcc
    monkeypatch.chdir(root/'rgb/train')
    assert find_scene('001/A_cropped_rgb002.jpg')[1]==dict(identity=0, clothes=0, camera=0, frame=1)

def test_a_damaged_manifest_says_so(tmp_path):
    w = MannequinWorld((1,0,1), images=1); w.write(tmp_path/'w', load=False)
    (tmp_path/'w'/MANIFEST).write_text('{')
    with pytest.raises(ValueError, match='damaged'): find_scene(tmp_path/'w/rgb/train/001/A_cropped_rgb001.jpg')

# ---- benchmarks

def test_benchmarks_hold_enough_people():
    for name,spec in BENCHMARKS.items():
        train,val,test = spec['world']['identities']
        assert test>=150 and (val>=16 or spec['layout'] in ('ltcc','vc_clothes')) and train>=48

def test_a_small_benchmark_of_each_kind(tmp_path, monkeypatch):
    for spec in BENCHMARKS.values(): 
        k = spec['world']['identities']
        monkeypatch.setitem(spec['world'], 'identities', (3, 2 if k[1] else 0, 3))
    ds = benchmark('mannequins', tmp_path); assert ds.root==tmp_path/'mannequins'/'rgb' or ds.name=='prcc'
    assert benchmark('mannequins', tmp_path, layout='ltcc').name=='ltcc'
    ir = benchmark('mannequins-ir', tmp_path)
    assert set(ir.train.modality)=={'visible','infrared'} and set(ir.query.modality)=={'visible','infrared'}
    dg = benchmark('mannequins-dg', tmp_path)
    assert dg.samples.dataset.nunique()==4
    for c in ('identity','camera','clothes'): # disjoint between domains
        assert sum(t[c].nunique() for _,t in dg.query.groupby('dataset'))==dg.query[c].nunique()
    p = dg.query.path.iloc[-1]
    assert redress(p, 'a red dress').scene['identity']==find_scene(p)[1]['identity']
    stamp = os.stat(p).st_mtime_ns
    benchmark('mannequins-dg', tmp_path)
    assert os.stat(p).st_mtime_ns==stamp
    monkeypatch.setitem(BENCHMARKS['mannequins-dg']['world'], 'seed', 1)
    with pytest.raises(FileExistsError): benchmark('mannequins-dg', tmp_path)

def test_benchmark_words():
    with pytest.raises(ValueError, match='market'): benchmark('market', '.')
    with pytest.raises(ValueError, match='layout'): benchmark('mannequins-ir', '.', layout='prcc')

def test_world_hash_follows_the_constants(monkeypatch):
    a = world_hash('mannequins')
    assert a==world_hash('mannequins') and a!=world_hash('mannequins-ir')
    monkeypatch.setitem(BENCHMARKS['mannequins']['world'], 'seed', 1)
    assert world_hash('mannequins')!=a
