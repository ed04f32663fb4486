"The check of a data set on disk: counts, pictures, names, labels, sides; and its command"
import io,json,os,random,shutil,sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given,strategies as st
from PIL import Image

from ccreid import cli
from ccreid.data import checks as checks_module
from ccreid.data.cards import load_card
from ccreid.data.checks import PARTS,broken_rules,check,compare,manifest_counts
from ccreid.data.inspecting import Bar,inspect_images,misplaced
from ccreid.data.layouts import DATASETS,find_layout,load_dataset
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.mannequins.plans import PLANS,TEXTS
from ccreid.data.samples import DataError,make_table

# ---- copies in all layouts; the pictures are small and no two are alike

NO_VAL = dict(identities=(4,0,3))
WORLDS = {n: NO_VAL for n in ('ltcc','ccvid','celeb_reid')} | {n: NO_VAL | dict(outfits=1, cameras=2) for n in ('market1501','dukemtmc','msmt17','cuhk03_np')} | dict(
    vc_clothes=NO_VAL | dict(cameras=4), sysu_mm01=dict(outfits=1, cameras=6, infrared=(2,5)), regdb=NO_VAL | dict(outfits=1, cameras=2, infrared=(1,)),
    llcm=NO_VAL | dict(outfits=1, cameras=4, infrared=(2,3)))

def world_for(name): return MannequinWorld(**{**dict(identities=(4,2,3), cameras=3, images=2, size=(32,16), seed=5), **WORLDS.get(name, {})})

def lay(root, name, world=None):
    "A copy as a world writes it, but for its pictures"
    world = world or world_for(name)
    plan,kinds,rng = PLANS[name](world),dict(jpg='JPEG', png='PNG', bmp='BMP'),np.random.default_rng(0)
    for p in plan:
        (root/p).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16,8,3), np.uint8)).save(root/p, kinds[p.rsplit('.', 1)[1].lower()])
    for p,text in TEXTS[name](world, plan).items():
        (root/p).parent.mkdir(parents=True, exist_ok=True)
        (root/p).write_text(text)
    (root/'mannequins.json').write_text(json.dumps(dict(format=1, layout=name, world=world.config, images={p: list(s.values()) for p,s in plan.items()})))
    return root

NAMES = [n for n in DATASETS if n in PLANS]

@pytest.fixture(scope='module')
def copies(tmp_path_factory):
    "Function from a layout to a copy, which nobody may change"
    made = {}
    def copy(name):
        if name not in made: made[name] = lay(tmp_path_factory.mktemp(name), name)
        return made[name]
    return copy

@pytest.fixture
def copy(copies, tmp_path):
    "Function from a layout to a copy of one's own"
    return lambda name: Path(shutil.copytree(copies(name), tmp_path/name))

def images(report): return {r['split']: r['found'] for r in report.counts if r['what']=='images'}

@pytest.mark.parametrize('name', NAMES)
def test_every_layout_agrees_with_its_manifest(copies, name):
    root = copies(name)
    report,ds = check(name, root, counts_from='manifest', progress=None),load_dataset(name, root, verbose=False)
    assert report.ok, str(report)
    assert all(r['state']=='ok' for r in report.counts) and images(report) == {s: len(t) for s in PARTS if len(t := getattr(ds, s))}
    assert {r['rule'] for r in report.rules} == {r['rule'] for r in load_card(name).rules}

@pytest.mark.parametrize('name', NAMES)
def test_every_layout_misses_a_lost_picture(copy, name):
    root = copy(name)
    lost = random.Random(3).choice(sorted(load_dataset(name, root, verbose=False).samples.path))
    os.unlink(lost)
    report = check(name, root, decode=False, counts_from='manifest')
    assert not report.ok and [r for r in report.counts if r['what']=='images' and r['state']=='differs'], str(report)
    if load_dataset(name, root, verbose=False).skipped.get('listed but missing'): assert 'listed but missing' in str(report) and Path(lost).name in str(report)

@pytest.mark.parametrize('name', NAMES)
def test_every_layout_is_told_from_the_real_data(copies, name):
    report = check(name, copies(name), decode=False)
    if load_card(name).counts:
        assert not report.ok and 'mannequins drew this copy' in str(report) and '--counts-from manifest' in str(report)
        assert any(r['expected'] for r in report.counts)
    else: assert report.ok

FOREIGN = 'its content is not an image of a kind that is read: JPEG, PNG, WebP, BMP, TIFF'

@pytest.mark.parametrize('name,damage,reason', [
    ('prcc', lambda b: b'', 'the file is empty'), ('ltcc', lambda b: b[:len(b)//2], None), ('vc_clothes', lambda b: b'<html>404</html>', f'{FOREIGN}; it is a web page (HTML), perhaps the message of a server that refused the download'),
    ('ccvid', lambda b: b[:200], None), ('last', lambda b: b[:len(b)-60], None), ('deepchange', lambda b: b[:300]+b[340:-80], None)])
def test_one_broken_picture_is_found(copy, name, damage, reason):
    root = copy(name)
    victim = Path(random.Random(1).choice(sorted(load_dataset(name, root, verbose=False).samples.path)))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64,32,3), np.uint8)).save(victim)
    assert check(name, root, counts_from='manifest', progress=None).ok
    victim.write_bytes(damage(victim.read_bytes()))
    report = check(name, root, counts_from='manifest', progress=None)
    assert not report.ok and list(report.unreadable) == [str(victim)] and (reason is None or report.unreadable[str(victim)] == reason)
    assert f"{os.path.relpath(victim, report.root)}: " in str(report)
    assert check(name, root, decode=False, counts_from='manifest').ok          # nobody looked

def test_many_broken_pictures_are_counted_and_the_first_are_named(copy):
    root = copy('ltcc')
    for p in (root/'train').iterdir(): p.write_bytes(b'x')
    n = len(list((root/'train').iterdir()))
    report = check('ltcc', root, counts_from='manifest', progress=None)
    assert len(report.unreadable) == n and f'{n} image(s) cannot be read' in str(report) and f'and {n-10} more' in str(report) and str(report).count('not an image') == 10

def test_names_that_break_the_grammar_are_counted_with_one_that_would_not(copy):
    root = copy('vc_clothes')
    for i in range(5): (root/'query'/f'{i}_1_1_1.jpg').write_bytes(b'x')
    (root/'query'/'more').mkdir(); (root/'query'/'Thumbs.db').touch(); (root/'query'/'readme.txt').touch()
    report = check('vc_clothes', root, counts_from='manifest', progress=None)
    assert not report.ok and len(report.problems) == 2 and not report.unreadable
    assert '5 passed over, name breaks the grammar: query/0_1_1_1.jpg, query/1_1_1_1.jpg, query/2_1_1_1.jpg ...' in str(report) and '0001-02-03-04.jpg' in str(report)
    assert 'folder name breaks the grammar: query/more' in str(report)

# ---- lists

@pytest.mark.parametrize('name,file', [('ccvid','query.txt'), ('deepchange','test-set-gallery-bbox.txt')])
def test_what_a_list_names_and_nobody_has(copy, name, file):
    root = copy(name)
    lines = (root/file).read_text().splitlines()
    (root/file).write_text('\r\n'.join([*lines, lines[0].replace('_', '_9', 1), 'what is this?', lines[0], '']))
    report = check(name, root, decode=False, counts_from='manifest')
    assert not report.ok and all(r['state']=='ok' for r in report.counts), str(report)
    assert {k: len(v) for k,v in report.skipped.items()} == {'listed but missing': 1, 'line breaks the grammar': 1, 'listed twice': 1}
    assert len(report.problems) == 3 and f'{file}, line {len(lines)+2}' in str(report)

@pytest.mark.parametrize('name,file,line', [('ccvid','train.txt','../session1/001_01 001 u0'), ('deepchange','train-set-bbox.txt','/etc/P1_C1_1.jpg,7')])
def test_a_list_that_leads_outside_stops_the_check(copy, capsys, name, file, line):
    root = copy(name)
    with open(root/file, 'a') as f: f.write(line+'\n')
    with pytest.raises(DataError, match='outside the data set'): check(name, root)
    assert cli.main(['check', name, str(root)]) == 2
    out,err = capsys.readouterr()
    assert out == '' and err.startswith('ccreid: ') and len(err.strip().splitlines()) <= 2 and file in err

# ---- rules

labels = st.lists(st.tuples(st.integers(-2,3).filter(lambda i: i!=-1), st.integers(-1,4), st.integers(-1,3), st.sampled_from(['train','val','query'])), max_size=12)

@given(labels, st.integers(0,3), st.integers(0,3), st.sets(st.integers(0,3), min_size=1), st.lists(st.sampled_from(['train','val','query']), unique=True))
def test_rules_against_loops(rows, lo, hi, allowed, splits):
    t = pd.DataFrame([dict(path=f'/{n}', identity=i, clothes=c, camera=k, split=s) for n,(i,c,k,s) in enumerate(rows)], columns=['path','identity','clothes','camera','split'])
    for c in 'identity','clothes','camera': t[c] = t[c].astype('int64')
    within = [n for n,r in enumerate(rows) if not splits or r[3] in splits]
    among = [f'/{n}' for n in within if rows[n][2] != -1 and rows[n][2] not in allowed]
    between = [f'/{n}' for n in within if not lo <= rows[n][0] <= hi]
    owner = lambda n: (rows[n][3]=='train', rows[n][0])
    shared = [f'/{n}' for n in within if rows[n][1] != -1 and any(rows[m][1]==rows[n][1] and owner(m) != owner(n) for m in within)]
    rules = [dict(rule='a', column='camera', among=sorted(allowed)), dict(rule='b', column='identity', between=[lo,hi]), dict(rule='c', column='clothes', one_identity=True)]
    got = broken_rules(t, [r | (dict(split=splits) if splits else {}) for r in rules])
    assert [(g['rule'], g['broken'], g['first']) for g in got] == [(r, len(b), b[:3]) for r,b in zip('abc', (among, between, shared))]

def test_a_broken_rule_is_off_and_named(copy):
    root = copy('ltcc')
    victim = sorted((root/'query').glob('*_c1_*'))[0]
    victim.rename(victim.with_name(victim.name.replace('_c1_', '_c13_')))
    report = check('ltcc', root, decode=False, counts_from='manifest')
    (rule,) = [r for r in report.rules if r['broken']]
    assert not report.ok and rule['broken'] == 1 and '_c13_' in rule['first'][0] and rule['rule'] in str(report)

# ---- counts

def test_counts_of_options(copies):
    cuhk,split = load_card('cuhk03_np'),lambda r: {x['split']: x['expected'] for x in r.counts if x['what']=='images' and x['split']!='total'}
    for options in {}, dict(boxes='detected'), dict(boxes='labeled'):
        report = check('cuhk03_np', copies('cuhk03_np'), decode=False, **options)
        assert split(report) == {s: cuhk.expected(s, 'images', **options) for s in ('train','query','gallery')}
    assert cuhk.expected('train', 'images', boxes='labeled') != cuhk.expected('train', 'images')

def test_the_test_is_query_and_gallery():
    found = pd.DataFrame(dict(images=[3,5,5]), index=['train','query','gallery'])
    got = compare(found, dict(test=dict(images=(5,'a paper'))))
    assert [(r['split'], r['state']) for r in got] == [('train','unknown'), ('query','ok'), ('gallery','ok')]

def test_a_total_that_is_known_better_than_its_parts(copies):
    report = check('deepchange', copies('deepchange'), decode=False)            # all parts are hearsay, the total is not
    assert [r for r in report.counts if r['state']=='differs'] == [dict(split='total', what='images', found=len(load_dataset('deepchange', report.root, verbose=False).samples),
                                                                        expected=178407, source=load_card('deepchange').counts['total']['images'][1], state='differs')]

def test_invented_cameras_are_not_counted(copies):
    report = check('celeb_reid', copies('celeb_reid'), decode=False, counts_from='manifest')
    assert 'cameras' not in {r['what'] for r in report.counts} and report.ok

# ---- two sides

def test_a_leak_is_found_where_numbers_cannot_tell(copy):
    root = copy('celeb_reid')                                                  # the test counts its people anew
    a,b = sorted((root/'train').iterdir())[0],sorted((root/'gallery').iterdir())[0]
    shutil.copy(a, b)
    report = check('celeb_reid', root, counts_from='manifest', progress=None)
    assert not report.ok and all(r['state']=='ok' for r in report.counts)
    assert any('in training and in the test' in p for p in report.problems) and a.name in str(report) and b.name in str(report)

owners = st.lists(st.tuples(st.integers(0,5), st.sampled_from(['train','val','query','gallery','test']), st.integers(0,2)), max_size=12, unique=True)

@given(owners, st.lists(st.sets(st.integers(0,5), min_size=2), max_size=3))
def test_misplaced_against_the_definition(rows, groups):
    groups = [sorted(g - set().union(*map(set, groups[:i]))) for i,g in enumerate(groups)]
    groups = [g for g in groups if len(g) > 1]
    t = pd.DataFrame(rows, columns=['path','split','identity'])
    t = t[t.path.isin(t.path)]
    groups = [[p for p in g if p in set(t.path)] for g in groups]
    groups = [g for g in groups if len(g) > 1]
    side = lambda s: s if s in ('train','val') else 'test'
    pairs = lambda g: [(side(s), i) for p,s,i in rows if p in g]
    all_groups = groups + [[p] for p in dict.fromkeys(r[0] for r in rows) if not any(p in g for g in groups)]
    leaks = [g for g in all_groups if {'train','test'} <= {s for s,_ in pairs(g)}]
    mixed = [g for g in all_groups if any(a != b and a[0]==b[0] for a in pairs(g) for b in pairs(g))]
    got = misplaced(t, groups)
    assert sorted(got[0]) == sorted(leaks) and sorted(got[1]) == sorted(mixed)

# ---- the command

@pytest.fixture
def ccreid(capsys):
    def call(*words):
        try: code = cli.main([str(w) for w in words])
        except SystemExit as e: code = e.code
        return code, *capsys.readouterr()
    return call

def test_command_0_1_2(ccreid, copy):
    root = copy('prcc')
    code,out,err = ccreid('check','prcc',root,'--counts-from','manifest','--workers','2')
    assert code == 0 and 'all is well' in out and err == ''                    # no bar where there is no terminal
    assert ccreid('check','prcc',root,'--no-decode')[0] == 1                   # the card's counts
    code,out,err = ccreid('check','prcc',root/'nowhere')
    assert code == 2 and out == '' and len(err.strip().splitlines()) == 2 and 'does not exist' in err
    for words in (('prcc',), ('prcc',root,'--trail','2'), ('prcc',root,'--workers','0'), ('prcc',root,'--workers','two'), ('prcc',root,'--counts-from','x'), ('folders',root)):
        code,out,err = ccreid('check', *words)
        assert code == 2 and out == '' and 'Traceback' not in err and len([l for l in err.splitlines() if l.startswith('ccreid')]) == 1, words

def test_command_json(ccreid, copy):
    root = copy('ltcc')
    victim = sorted((root/'train').iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:200])
    (root/'train'/'x.png').touch()
    code,out,err = ccreid('check','ltcc',root,'--counts-from','manifest','--json')
    report = json.loads(out)
    assert code == 1 and err == '' and report['ok'] is False and report['name'] == 'ltcc' and report['root'] == str(root)
    assert list(report['unreadable']) == [str(victim)] and report['skipped'] == {'name breaks the grammar': ['train/x.png'], 'not used by this layout': ['info']}
    assert all({'split','what','found','expected','source','state'} <= set(r) for r in report['counts']) and all(r['broken']==0 for r in report['rules'])
    victim.unlink(); (root/'train'/'x.png').unlink()
    assert json.loads(ccreid('check','ltcc',root,'--json','--no-decode')[1])['decoded'] is False

def test_command_takes_the_options_of_layouts(ccreid, copies):
    root = copies('regdb')
    assert ccreid('check','regdb',root,'--counts-from','manifest','--trial','1')[0] == 0
    code,_,err = ccreid('check','regdb',root,'--trial','11')
    assert code == 2 and '11' in err
    code,_,err = ccreid('check','regdb',root,'--boxes','labeled')
    assert code == 2 and 'no option boxes' in err
    code,out,_ = ccreid('check','--help')
    assert code == 0 and '--trial' in out and 'regdb: 1' in out and '--pattern' in out

def test_the_bar_is_for_terminals(monkeypatch, copy):
    class Terminal(io.StringIO):
        def isatty(self): return True
    screen = Terminal()
    monkeypatch.setattr(sys, 'stderr', screen)
    report = check('prcc', copy('prcc'), counts_from='manifest')
    total = sum(images(report).values())
    assert report.ok and screen.getvalue().endswith('\n') and f'{total:,}/{total:,} images' in screen.getvalue()
    assert check('prcc', report.root, decode=False, counts_from='manifest').ok and screen.getvalue().count('\n') == 1

def test_files_are_read_once(monkeypatch, copy):
    import builtins
    root,read = copy('prcc'),[]
    real = builtins.open
    monkeypatch.setattr(builtins, 'open', lambda f, *a, **k: (read.append(str(f)) if str(f).endswith('.jpg') else None, real(f, *a, **k))[1])
    report = check('prcc', root, counts_from='manifest', progress=None)
    assert report.ok and len(read) == sum(images(report).values()) and len(set(read)) == len(read)

def test_ctrl_c_ends_it_at_once(copies):
    def interrupt(done, total):
        if done: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): check('prcc', copies('prcc'), counts_from='manifest', progress=interrupt)

# ---- a world as it is drawn

@pytest.fixture(scope='module')
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp('worlds')
    MannequinWorld(identities=(4,2,3), images=2, size=(32,16), seed=5).write(root/'prcc', layout='prcc', load=False)
    MannequinWorld(identities=(4,0,3), images=2, size=(32,16), cameras=4, seed=5).write(root/'ltcc', layout='ltcc', load=False)
    MannequinWorld(identities=(4,2,3), images=2, size=(32,16), infrared=(1,), seed=5).write(root/'mannequins', layout='mannequins', load=False)
    return root

@pytest.fixture
def world(written, tmp_path):
    shutil.copytree(written, tmp_path/'w')
    return tmp_path/'w'

def counts(report, state=None): return [(r['split'], r['what'], r['found'], r['expected']) for r in report.counts if state in (None, r['state'])]

@pytest.mark.parametrize('name', ['prcc','ltcc','mannequins'])
def test_a_good_copy_is_good(written, name):
    report = check(name, written/name, counts_from='manifest', progress=None)
    assert report.ok and not report.unreadable and not report.problems and report.decoded
    assert counts(report) and all(f==e for _,_,f,e in counts(report))
    ds = load_dataset(name, written/name, verbose=False)
    assert {(s,w,f) for s,w,f,_ in counts(report)} == {(s,w,int(v)) for s,row in ds.summary().iterrows() for w,v in row.items()}
    assert 'all is well' in str(report) and '<table' in report._repr_html_()

def test_mannequins_need_not_be_told_to_read_the_manifest(written): assert check('mannequins', written/'mannequins', progress=None).ok

def test_a_mannequin_copy_is_not_the_real_data(written):
    report = check('prcc', written/'prcc', decode=False)
    assert not report.ok and ('train','images',24,17896) in counts(report, 'differs') and not report.decoded
    assert ('train','identities',4,150) in counts(report, 'unverified')                  # hearsay alone is no failure

def test_unverified_numbers_do_not_fail():
    import pandas as pd
    found = pd.DataFrame(dict(images=[5]), index=['train'])
    assert compare(found, dict(train=dict(images=(6,'unverified; by ear'))))[0]['state'] == 'unverified'
    assert compare(found, dict(train=dict(images=(6,'a paper'))))[0]['state'] == 'differs'
    assert compare(found, {})[0]['state'] == 'unknown'

def files(world, pattern): return sorted((world/'prcc'/'rgb').glob(pattern))
ACCIDENTS = {
    'gone':      (lambda w: files(w, 'train/*/*.jpg')[0].unlink(), lambda r: ('train','images',23,24) in counts(r, 'differs')),
    'cut':       (lambda w: files(w, 'test/A/*/*.jpg')[0].write_bytes(files(w, 'test/A/*/*.jpg')[0].read_bytes()[:200]), lambda r: len(r.unreadable)==1),
    'empty':     (lambda w: files(w, 'val/*/*.jpg')[0].write_bytes(b''), lambda r: list(r.unreadable.values())==['the file is empty']),
    'text':      (lambda w: files(w, 'val/*/*.jpg')[0].write_text('hello'), lambda r: list(r.unreadable.values())==[FOREIGN]),
    'name':      (lambda w: shutil.copy(files(w, 'train/*/*.jpg')[0], files(w, 'train/*')[0]/'D_x.jpg'), lambda r: any('grammar' in p and 'D_x.jpg' in p for p in r.problems)),
    'folder':    (lambda w: (w/'prcc'/'rgb'/'train'/'new').mkdir(), lambda r: any('folder name' in p for p in r.problems)),
    'two people': (lambda w: shutil.copy(files(w, 'train/*/A*.jpg')[0], files(w, 'train/*')[1]/'A_cropped_rgb090.jpg'), lambda r: any('more than one person' in p for p in r.problems)),
    'both sides': (lambda w: shutil.copytree(files(w, 'train/*')[0], w/'prcc'/'rgb'/'train'/files(w, 'test/A/*')[0].name), lambda r: any('in training and in the test' in p for p in r.problems)),
    'link':      (lambda w: os.symlink(w/'ltcc'/'train', w/'prcc'/'rgb'/'train'/'777'), lambda r: any('link' in p for p in r.problems))}

@pytest.mark.parametrize('accident', list(ACCIDENTS))
def test_accidents_are_found(world, accident):
    happen,seen = ACCIDENTS[accident]
    happen(world)
    report = check('prcc', world/'prcc', counts_from='manifest', progress=None)
    assert not report.ok and seen(report), str(report)
    assert json.loads(json.dumps(report.as_dict()))['ok'] is False and 'something is off' in str(report)

def test_harmless_things_are_no_failure(world):
    (world/'prcc'/'rgb'/'train'/'.DS_Store').touch(); (world/'prcc'/'readme.txt').touch()
    same = files(world, 'train/*/A*.jpg')[:1][0]
    report = check('prcc', world/'prcc', counts_from='manifest', progress=None)
    assert report.ok and report.skipped == {'hidden or system file': ['train/.DS_Store']}
    shutil.copy(same, same.with_name('A_cropped_rgb091.jpg'))                            # a copy of the same person: told, but only the count is off
    report = check('prcc', world/'prcc', counts_from='manifest', progress=None)
    assert len(report.copies) == 1 and not report.problems and ('train','images',25,24) in counts(report, 'differs')

def test_no_decode_opens_nothing(world, monkeypatch):
    for p in files(world, 'train/*/*.jpg'): p.write_bytes(b'')
    monkeypatch.setattr(Image, 'open', lambda *a, **k: pytest.fail('an image was opened'))
    report = check('prcc', world/'prcc', decode=False, counts_from='manifest')
    assert report.ok and 'no image was opened' in str(report)

def test_manifests_of_domains(written, tmp_path):
    for d in 'harbour','plaza': shutil.copytree(written/'mannequins', tmp_path/'dg'/d)
    (tmp_path/'dg'/'mannequins.json').write_text(json.dumps(dict(domains=dict(harbour='x', plaza='y'))))
    report = check('mannequins-dg', tmp_path/'dg', decode=False)
    one = {(s,w): f for s,w,f,_ in counts(check('mannequins', written/'mannequins', decode=False))}
    assert report.ok
    assert {(s,w): f for s,w,f,_ in counts(report)} == {k: 2*v for k,v in one.items()}
    looked = check('mannequins-dg', tmp_path/'dg', progress=None)                        # the domains are copies of each other: seen
    assert not looked.ok and 'more than one person' in ' '.join(looked.problems)
    next((tmp_path/'dg'/'plaza'/'train').iterdir()).unlink()
    assert not check('mannequins-dg', tmp_path/'dg', decode=False).ok

def test_bad_manifests(world):
    m = world/'prcc'/'mannequins.json'
    for text,words in ('{', 'is damaged'), ('{}', 'lists no file'), ('{"images": {"../../etc/passwd": []}}', 'lists no file'):
        m.write_text(text)
        with pytest.raises(DataError, match=words): check('prcc', world/'prcc', counts_from='manifest', decode=False)
    m.unlink()
    with pytest.raises(DataError, match='no mannequins.json'): check('prcc', world/'prcc', counts_from='manifest')
    with pytest.raises(DataError, match='card or manifest'): check('prcc', world/'prcc', counts_from='x')
    with pytest.raises(DataError, match='does not exist'): check('prcc', world/'nowhere')

def test_inspection_is_the_same_in_any_number_of_threads(world):
    files(world, 'train/*/*.jpg')[3].write_bytes(b'x')
    paths = [str(p) for p in files(world, 'train/*/*.jpg')]
    seen = []
    one,many = inspect_images(paths, 1, lambda *a: seen.append(a)), inspect_images(paths, 8, None)
    assert one == many and list(one[0]) == [paths[3]] and seen[-1] == (len(paths), len(paths))
