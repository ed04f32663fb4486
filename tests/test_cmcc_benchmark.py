"SYSU-CMCC: the index end to end on two copies of one world, what is refused, and the benchmarks of the miniature"
import shutil
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from ccreid.cmcc.benchmark import SHARE, build_sysu_cmcc
from ccreid.cmcc.index import INDEX
from ccreid.cmcc.miniature import confounded, outfit_of, random_half
from ccreid.data.images import read_image
from ccreid.data.layouts import load_dataset
from ccreid.data.mannequins import MannequinWorld, benchmark, world_hash
from ccreid.data.mannequins.benchmarks import BENCHMARKS, is_benchmark
from ccreid.data.mannequins.writing import find_scene
from ccreid.data.samples import DataError
from ccreid.evaluation.conventions import conventions_table
from ccreid.evaluation.protocols import protocols_for
from ccreid.recipes import recipe

PEOPLE = dict(identities=(4,1,4), size=(32,16), images=4, seed=7)

@pytest.fixture(scope='module')
def roots(tmp_path_factory):
    root = tmp_path_factory.mktemp('both')
    MannequinWorld(outfits=2, cameras=3, **PEOPLE).write(root/'prcc', layout='prcc', load=False)
    MannequinWorld(outfits=1, cameras=6, infrared=(2,5), **PEOPLE).write(root/'sysu', layout='sysu_mm01', load=False)
    return root

@pytest.fixture
def build(roots, tmp_path):
    def f(mapping='identity', *args, **kwargs): return build_sysu_cmcc(roots/'prcc', roots/'sysu', mapping, *args, out=tmp_path/'index', **kwargs)
    return f

def test_every_row_is_the_person_the_camera_and_the_outfit_that_the_worlds_know(build):
    ds = build()
    assert len(ds.samples)==9*(4+2*4) and ds.identities==round(9*SHARE) # PRCC's camera C; two infrared cameras
    who = {}
    for r in ds.samples.itertuples():
        world,scene,_ = find_scene(r.path)
        infrared = scene['camera'] in world.infrared
        assert (r.modality=='infrared')==infrared and r.clothes==2*r.identity+infrared
        assert r.camera==({2: 3, 5: 4}[scene['camera']] if infrared else scene['camera'])
        assert who.setdefault(r.identity, scene['identity'])==scene['identity']
        assert scene['clothes']==(0 if infrared else 1)          # the outfits differ
    assert len(set(who.values()))==9 and not set(ds.train.identity) & set(ds.query.identity)
    assert ds.train.groupby('identity').modality.nunique().eq(2).all()

def test_no_image_is_copied_or_changed(build, roots):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in roots.rglob('*') if p.is_file()}
    ds = build()
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in roots.rglob('*') if p.is_file()}==before
    assert [p.name for p in Path(ds.root).iterdir()]==[INDEX]

def test_the_same_arguments_give_the_same_file_and_another_seed_another_split(build):
    file = Path(build().root)/INDEX
    first = file.read_bytes()
    build(); assert file.read_bytes()==first
    splits = {tuple(build(seed=s).train.path.tolist()) for s in range(4)}
    assert len(splits)>1

def test_prccs_parts_for_training_validation_and_test_are_all_read(build):
    paths = build().samples.path
    assert all(any(f'/rgb/{part}/' in p for p in paths) for part in ('train','val','test'))

@pytest.mark.parametrize('cameras', [('A',), ('B',), ('A','C'), 'ABC'])
def test_cameras_that_show_the_clothes_of_the_night_are_refused_on_mannequins(build, cameras):
    with pytest.raises(DataError, match="choose cameras=\\('C',\\)") as e: build(cameras=cameras)
    assert len(str(e.value).splitlines())==2

def test_on_other_images_nothing_links_clothes_and_the_guess_is_printed(roots, tmp_path):
    for name in 'prcc','sysu':
        shutil.copytree(roots/name, tmp_path/name)
        (tmp_path/name/'mannequins.json').unlink()
    ds = build_sysu_cmcc(tmp_path/'prcc', tmp_path/'sysu', 'identity', ('A','B'), out=tmp_path/'index')
    assert len(ds.samples)==9*(8+8) and any('camera A and B shows other clothes' in n for n in ds.notes)

def table(path, head, *lines):
    path.write_text('\n'.join([head, *lines])+'\n')
    return path

def test_tables_of_the_user(build, tmp_path):
    mapping = table(tmp_path/'m.csv', 'prcc_id,sysu_id', '1,2', '003, 0004', '', '9,9')
    split = table(tmp_path/'s.csv', 'prcc_id,split', '1,train', '3,train', '9,test')
    ds = build(mapping, split=split)
    assert ds.identities==2 and ds.query.identity.nunique()==1
    people = {(Path(p).parent.name, i) for p,i in zip(ds.samples.path, ds.samples.identity)}
    assert people=={('001',0),('0002',0),('003',1),('0004',1),('009',2),('0009',2)}
    assert not any('equal numbers' in n or 'split is drawn' in n for n in ds.notes)

def test_images_taken_out(build, tmp_path):
    ds = build()
    lines = [l.split(',') for l in (Path(ds.root)/INDEX).read_text().splitlines()[2:]]
    first = lines[0][2]
    fewer = build(exclude=[first])
    assert len(fewer.samples)==len(ds.samples)-1 and not any(p.endswith(first) for p in fewer.samples.path)
    list_ = tmp_path/'out.txt'; list_.write_text(first+'\n\n')
    assert len(build(exclude=list_).samples)==len(ds.samples)-1
    few = build(exclude=[l[2] for l in lines if l[3]=='0' and l[1]=='prcc'][:2])
    assert any('1 of 9 people have fewer than four images of a modality' in n for n in few.notes)

@pytest.mark.parametrize('mapping,kwargs,says', [
    ({1: 1, 2: 1}, {}, 'person 1 of sysu_mm01 is there twice'), ({1: 1, 99: 2}, {}, 'person 99 of prcc has no such image'), ({1: 77}, {}, 'person 77 of sysu_mm01 has no'),
    ({}, {}, 'names nobody'), (None, {}, 'a mapping is a table'), ({'a': 1}, {}, 'a mapping is a table'), ([1,2], {}, 'a mapping is a table'), ({1: 1, 2: 2}, dict(split=dict(train=[1,2], test=[2])), 'in training and in the test'),
    ({1: 1, 2: 2}, dict(split=dict(train=[1], test=[3])), 'name different people'), ({1: 1}, dict(split=dict(val=[1])), "not 'val'"),
    ('identity', dict(cameras=()), 'A, B and C'), ('identity', dict(cameras=('C','D')), 'A, B and C'), ('identity', dict(exclude=['x.jpg']), '1 of 1 images to take out are not there')])
def test_what_cannot_be_right_is_said_in_two_lines(build, tmp_path, mapping, kwargs, says):
    with pytest.raises(DataError, match=says) as e: build(mapping, **kwargs)
    assert len(str(e.value).splitlines())<=2 and not (tmp_path/'index').exists()

@pytest.mark.parametrize('lines,says', [(['prcc,sysu','1,1'],'first line should be prcc_id,sysu_id'), (['prcc_id,sysu_id','1'],'line 2'), (['prcc_id,sysu_id','1,1','a,2'],'line 3'),
                                        (['prcc_id,sysu_id','1,b'],"'b' is no number"), (['prcc_id,sysu_id','1,1','1,2'],'line 3: person 1 of prcc is there twice')])
def test_a_mapping_that_is_none(build, tmp_path, lines, says):
    with pytest.raises(DataError, match=says): build(table(tmp_path/'m.csv', *lines))

def test_somebody_with_one_modality_only(build):
    lines = [l.split(',') for l in (Path(build().root)/INDEX).read_text().splitlines()[2:]]
    alone = [l[2] for l in lines if l[3]=='2' and l[1]=='sysu_mm01']
    with pytest.raises(DataError, match='1 people have images of one modality only') as e: build({1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 7, 8: 8, 9: 9}, exclude=alone)
    assert 'leave them out of the mapping' in str(e.value)

# --- the index as others find it

def edit(ds, change):
    file = Path(ds.root)/INDEX
    file.write_text(change(file.read_text()))
    return lambda **kw: load_dataset('sysu_cmcc', ds.root, verbose=False, **kw)

def replaced(n, line): return lambda text: '\n'.join([*text.split('\n')[:n-1], line, *text.split('\n')[n:]])

@pytest.mark.parametrize('change,says', [
    (lambda t: t.split('\n', 1)[1], 'does not say where'), (replaced(1, '# SYSU-CMCC, an index of ccreid: {"format": 1}'), 'does not say where'), (replaced(1, '# SYSU-CMCC, an index of ccreid: {'), 'does not say'),
    (replaced(2, 'a,b'), 'the columns of'), (replaced(3, 'train,prcc,x.jpg,0'), 'line 3 has 4 cells'), (replaced(3, 'val,prcc,x.jpg,0,2'), 'split is train or test'), (replaced(3, 'train,market,x.jpg,0,2'), 'set is prcc or'),
    (replaced(3, 'train,prcc,../../x.jpg,0,2'), 'points outside'), (replaced(3, 'train,prcc,/etc/x.jpg,0,2'), 'points outside'), (replaced(3, 'train,prcc,x.jpg,-1,2'), 'identity is a whole'),
    (replaced(3, 'train,prcc,x.jpg,0,2'), '1 of 108 images of the index are not there'), (lambda t: t.rstrip('\n')+'\n'+t.rstrip('\n').split('\n')[-1]+'\n', 'twice'),
    (lambda t: t.rstrip('\n')+'\ntest'+t.split('\n')[2].removeprefix('train').replace('_rgb001','_rgb00x')+'\n', 'in training and in the test')])
def test_a_table_that_was_edited(build, change, says):
    load = edit(build(), change)
    with pytest.raises(DataError, match=says) as e: load()
    assert len(str(e.value).splitlines())<=2

def test_images_that_moved(roots, tmp_path):
    for name in 'prcc','sysu': shutil.copytree(roots/name, tmp_path/name)
    ds = build_sysu_cmcc(tmp_path/'prcc', tmp_path/'sysu', 'identity', out=tmp_path/'index')
    (tmp_path/'sysu').rename(tmp_path/'elsewhere')
    with pytest.raises(DataError, match='72 of 108 images of the index are not there') as e: load_dataset('sysu_cmcc', tmp_path/'index', verbose=False)
    assert '--sysu-mm01 FOLDER' in str(e.value)
    again = load_dataset('sysu_cmcc', tmp_path/'index', verbose=False, sysu_mm01=tmp_path/'elsewhere')
    assert again.samples.identity.tolist()==ds.samples.identity.tolist()

def test_infrared_images_of_one_channel_or_of_three_are_the_same(tmp_path):
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32,16), np.uint8))
    grey.save(tmp_path/'one.png'); grey.convert('RGB').save(tmp_path/'three.png')
    one,three = (np.asarray(read_image(tmp_path/f'{n}.png')) for n in ('one','three'))
    assert one.shape==(32,16,3) and (one==three).all()

def test_protocols_in_both_directions(build):
    ds = build()
    assert list(ds.protocols)==list(protocols_for('sysu_cmcc'))==['visible-to-infrared','infrared-to-visible','visible-to-infrared-drawn','infrared-to-visible-drawn']
    perfect = lambda t: torch.nn.functional.one_hot(torch.tensor(t.identity.to_numpy()), 9).float().numpy()
    for name,p in ds.protocols.items():
        q,g = p.select(ds.samples)[0]
        assert (q.modality.iloc[0],g.modality.iloc[0])==tuple(name.removesuffix('-drawn').split('-to-')) and q.modality.nunique()==g.modality.nunique()==1
        assert not p.junk(q, g).any() and len(g)==(ds.query.identity.nunique()*(len(set(g.camera))) if 'drawn' in name else (ds.query.modality==g.modality.iloc[0]).sum())
        m = ds.evaluate(perfect, name)
        assert (m.rank(1), m.rank(10), m.rank(20), m.mAP)==(1,1,1,1)

def test_check_train_and_evaluate_know_it_by_name(ccreid, build, roots, tmp_path):
    root = Path(build().root)
    code,out,err = ccreid('check', 'sysu_cmcc', root)
    assert code==0 and 'all is well' in out and 'a guess: equal numbers' in out, out+err
    small = 'identities=2 images=4 size=32x16 pretrained=no backbone=resnet_mini cache=yes start_epoch=1 milestones=1'.split()
    words = [w for s in small for w in ('--set', s)]
    code,out,err = ccreid('train', '--data', 'sysu_cmcc', '--root', root, '--method', 'pia', '--epochs', 2, *words, '--device', 'cpu', '--out', tmp_path/'run')
    assert code==0, out+err
    model, = (tmp_path/'run').glob('*.safetensors')
    code,out,err = ccreid('evaluate', '--data', 'sysu_cmcc', '--root', root, '--weights', model, '--device', 'cpu')
    assert code==0 and 'visible-to-infrared' in out and 'infrared-to-visible' in out and '-drawn' not in out, out+err
    code,out,err = ccreid('evaluate', '--data', 'sysu_cmcc', '--root', root, '--weights', model, '--device', 'cpu', '--protocol', 'visible-to-infrared-drawn', '--looks', tmp_path/'seen')
    assert code==0 and 'visible-to-infrared-drawn: rank-1' in out and 'looks: visible-to-infrared-drawn: positive pairs' in out, out+err
    assert {p.name for p in (tmp_path/'seen').iterdir()}=={'distances-visible-to-infrared-drawn.png','lists-visible-to-infrared-drawn.png','masks.png'}

def test_the_command_builds_it(ccreid, roots, tmp_path):
    code,out,err = ccreid('sysu-cmcc', '--from-prcc', roots/'prcc', '--from-sysu', roots/'sysu', '--mapping', 'identity', '--to', tmp_path/'i')
    assert code==0 and 'sysu_cmcc: 108 images' in out and 'a guess' in out and (tmp_path/'i'/INDEX).is_file(), err
    code,out,err = ccreid('sysu-cmcc', '--from-prcc', roots/'prcc', '--from-sysu', roots/'sysu', '--mapping', tmp_path/'no.csv', '--to', tmp_path/'i')
    assert code and 'no.csv' in err and 'Traceback' not in err

def test_the_table_of_protocols_says_what_is_junk():
    "Only SYSU-MM01 has the rule of the room"
    said = conventions_table(['ltcc','sysu_mm01','regdb','sysu_cmcc']).junk
    assert set(said['sysu_cmcc'])==set(said['regdb'])=={'nothing'} and set(said['sysu_mm01'])=={'everybody by camera 2, for queries of camera 3'}
    assert said['ltcc'].tolist()==['own person, same camera','own person, same camera or other clothes','own person, same camera or same clothes']

# --- the miniature

FROZEN = {'mannequins-cmcc': '92926483769c7eb4', 'mannequins-cmcc-half': '6c1fbf6c6a9a97f1'} # before the first row ran

def test_the_benchmarks_are_what_they_were_before_the_first_row():
    assert {n: world_hash(n) for n in FROZEN}==FROZEN and world_hash('mannequins-ir')=='dc7ea76804315e85'

@pytest.fixture(scope='module')
def infrared(tmp_path_factory):
    return MannequinWorld(identities=(6,2,4), outfits=2, cameras=4, infrared=(2,3), images=(3,2,2), size=(32,16), seed=5).write(tmp_path_factory.mktemp('ir')/'w', layout='mannequins')

def test_clothes_and_modality_go_together_in_one_and_not_in_the_other(infrared):
    for make,together in (confounded, True), (random_half, False):
        ds = make(infrared)
        scenes = [find_scene(p)[1] for p in ds.train.path]
        dark = ds.train.modality=='infrared'
        assert [s['clothes'] for s in scenes]==ds.train.worn.tolist()==outfit_of(ds.train).tolist()
        assert (ds.train.worn==dark).all()==together
        assert set(ds.train.groupby(['identity','modality']).size())=={6} and ds.identities==6
        assert len(ds.query)==len(infrared.query) and not len(ds.val)

def test_the_half_is_drawn_alike_whatever_the_order_of_the_table(infrared):
    from ccreid.data.samples import ReIDDataset
    mixed = ReIDDataset('m', infrared.root, infrared.samples.sample(frac=1, random_state=1).reset_index(drop=True))
    assert set(random_half(mixed).train.path)==set(random_half(infrared).train.path)

def test_what_the_protocols_compare(infrared):
    ds = confounded(infrared)
    for name,p in ds.protocols.items():
        q,g = p.select(ds.samples)[0]
        assert q.modality.unique().tolist()!=g.modality.unique().tolist()
        own = (q.identity.to_numpy()[:,None]==g.identity.to_numpy()) & ~p.junk(q, g).numpy()
        a,b = np.nonzero(own)
        assert (q.clothes.to_numpy()[a]!=g.clothes.to_numpy()[b]).all() and own.any(1).all()
        worn = set(q.worn)
        assert worn==({0,1} if 'any outfit' in name else {0} if name.startswith('visible') else {1})

def test_a_benchmark_of_a_chain_is_a_benchmark(tmp_path, monkeypatch):
    monkeypatch.setitem(BENCHMARKS['mannequins-ir']['world'], 'identities', (3,2,3))
    ds = benchmark('mannequins-cmcc', tmp_path)
    assert ds.name=='mannequins-cmcc' and ds.identities==3 and (tmp_path/'mannequins-ir').is_dir() and not (tmp_path/'mannequins-cmcc').exists()
    assert is_benchmark('mannequins-cmcc') and is_benchmark('mannequins') and not is_benchmark('prcc')
    assert world_hash('mannequins-cmcc')!=FROZEN['mannequins-cmcc']
    r = recipe('mannequins-cmcc', 'cal')
    assert (r.backbone, r.identities, r.images, r.epochs)==('resnet_mini', 8, 8, 36)
    assert recipe('mannequins-cmcc', 'cal', epochs=4).start_epoch==round(25*4/60)
