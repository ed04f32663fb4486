"""What a reader of other people's folders must survive: every file found or counted, two sources that disagree, hostile names and lists, links, damaged manifests and cards"""
import itertools,json,os,re,subprocess,sys,time,unicodedata
from pathlib import Path

import pytest
from hypothesis import given,settings,strategies as st

from ccreid.data.cards import load_card,parse_card
from ccreid.data.checks import check,manifest_counts
from ccreid.data.folders import Folder,read_text
from ccreid.data.layouts import DATASETS,find_layout,load_dataset
from ccreid.data.reading import Layout,Part,folder_number,read_names
from ccreid.data.samples import DataError
from test_data_grammars import OPTIONS,SETS
from test_data_layouts import good,rel,tree,two_lines

TWO = 'two sources name different people'
NO_PART,NO_LIST,UNREAD,UNUSED = 'in no part of the layout','in no list','picture in a format that is not read','not used by this layout'
NAMES = sorted(set(SETS) - {'folder'})

def load(name, root, **kw): return load_dataset(name, root, verbose=False, **{**OPTIONS.get(name, {}), **kw})

def on_disk(root, linked=()):
    "Files below a root, counted by walking it; a folder that is a link is one file unless it is among `linked`"
    n,folders = 0,[Path(root)]
    while folders:
        for p in folders.pop().iterdir():
            if p.is_dir() and (not p.is_symlink() or p.relative_to(root).as_posix() in linked): folders.append(p)
            else: n += 1
    return n

def world(root):
    root = good(root, 'mannequins')
    scene = lambda p: [int(w.strip('c')) for w in os.path.splitext(os.path.basename(p))[0].split('_') if w not in 'vi']
    (root/'mannequins.json').write_text(json.dumps(dict(images={p: scene(p) for p in SETS['mannequins'][1]})))
    return root

def home(root, name): return world(root) if name=='mannequins' else good(root, name)

def accounted(ds): return len(set(ds.samples.path)) + sum(ds.skipped_files.values()) + len(ds.lists) + ds.samples.attrs.get('junk', 0)

# ---- B5: found and passed over are all files

@pytest.mark.parametrize('name', NAMES)
def test_every_layout_accounts_for_strangers(tmp_path, name):
    "A misspelt folder, a picture at the root and in every folder that holds pictures, formats nobody reads, other people's files: each counted, each in the report"
    root = home(tmp_path, name)
    deep = sorted({os.path.dirname(p) for p in SETS[name][1]})
    more = ['trian/0001/a.jpg','trian/0001/b.jpg','trian/note.txt','stray.jpg','readme.txt','.git/config','docs/a.pdf','docs/b/c.txt', *(f'{d}/odd{e}' for d in deep for e in ('.jfif','.heic','.mp4'))]
    before = load(name, root)
    ds = load(name, tree(root, more))
    assert accounted(ds) == on_disk(root) and accounted(before) == on_disk(root) - len(more)
    assert rel(ds) == rel(before)
    assert ds.skipped_files[NO_LIST if name in ('ccvid','regdb','llcm') else NO_PART] >= 4      # trian's three files, and the picture at the root
    assert any(ds.skipped[r].count('trian') for r in (NO_LIST, NO_PART) if r in ds.skipped)     # one entry, not two
    seen = {d for d in deep if any(p in ds.skipped.get(UNREAD, []) for p in (f'{d}/odd.jfif', f'{d}/odd.heic'))}
    assert seen or name=='cuhk03_np'
    report = check(name, root, decode=False, **OPTIONS.get(name, {}))
    words = str(report)
    for reason,paths in ds.skipped.items():
        assert any(reason in l and f"{len(paths) if 'list' in reason and reason!=NO_LIST or 'line' in reason else ds.skipped_files[reason]:,} " in l and paths[0].split('/')[0] in l for l in words.splitlines()), reason
    assert not report.ok and any(UNREAD in p for p in report.problems) and json.loads(json.dumps(report.as_dict()))['skipped_files'] == ds.skipped_files

def prcc(root, *more): return tree(root, [*SETS['prcc'][1], *more])

@pytest.mark.parametrize('more,reason,shown', [('test/x.jpg', NO_PART, 'test/x.jpg'), ('test/D/100/cropped_rgb001.jpg', NO_PART, 'test/D'), ('trian/001/A_cropped_rgb001.jpg', NO_PART, 'trian'),
    ('train/001/A_cropped_rgb009.jp2', UNREAD, 'train/001/A_cropped_rgb009.jp2'), ('train/777/A_cropped_rgb001.avif', UNREAD, 'train/777/A_cropped_rgb001.avif')])
def test_a_person_who_would_be_missed_fails_the_check(tmp_path, more, reason, shown):
    ds = load('prcc', prcc(tmp_path, more))
    assert ds.skipped == {reason: [shown]} and ds.skipped_files == {reason: 1}
    assert any(reason in p and shown in p for p in check('prcc', tmp_path, decode=False).problems)

def test_a_format_nobody_reads_in_a_folder_of_ones_own(tmp_path):
    tree(tmp_path, ['1_1_c1_1.jpg','1_2_c2_1.jpg','2_1_c1_1.jfif','2_1_c1_2.HEIC','a.txt'])
    assert load_dataset('folder', tmp_path, verbose=False).skipped == {UNREAD: ['2_1_c1_1.jfif','2_1_c1_2.HEIC'], 'not an image': ['a.txt']}
    assert any(UNREAD in p for p in check('folder', tmp_path, decode=False).problems)

@pytest.mark.parametrize('name,more', [('prcc','sketch/train/001/A.jpg'), ('ltcc','info/cloth-change_id_train.txt'), ('market1501','gt_bbox/0001_c1s1_001051_00.jpg'), ('market1501','gt_query/0001_c1s1_001051_00_good.mat'),
    ('sysu_mm01','cam1_2_video/0001.avi'), ('regdb','idx/train_visible_9.txt'), ('cuhk03_np','labeled/query/0001_c1_2.png'), ('msmt17','mask_train_v2/0000/x.jpg'), ('msmt17','train/0000/0000_009_01_0303morning_0008_0.jpg'),
    ('prcc','readme.md'), ('prcc','train/001/.DS_Store')])
def test_what_belongs_to_a_set_and_is_not_used_is_a_note(tmp_path, name, more):
    root = good(tmp_path, name)
    before = check(name, root, decode=False, **OPTIONS.get(name, {})).problems
    report = check(name, tree(root, [more]), decode=False, **OPTIONS.get(name, {}))
    assert report.problems == before and sum(report.skipped_files.values()) > 0
    assert any(n.startswith('skipped') and more.split('/')[0] in n for n in report.notes)

def test_people_of_lists_and_people_on_disk(tmp_path):
    root = good(tmp_path/'s', 'sysu_mm01')
    (root/'exp/test_id.txt').write_text('10,55')
    tree(root, ['cam1/0009/0001.jpg','cam4/0009/0001.jpg','cam4/0009/0002.jpg'])
    ds = load('sysu_mm01', root)
    assert ds.skipped == {'listed but missing': ['exp/test_id.txt: person 55'], NO_LIST: ['cam1/0009','cam4/0009']} and ds.skipped_files == {'listed but missing': 0, NO_LIST: 3}
    assert len(check('sysu_mm01', root, decode=False).problems) == 2
    llcm = load('llcm', good(tmp_path/'l', 'llcm'))
    assert llcm.skipped[NO_LIST] == ['test_nir/cam2/0005'] and llcm.skipped['listed but missing'] == ['idx/test_id.txt: person 4']

def test_images_in_no_list(tmp_path):
    for name,more,shown,files in (('ccvid',('session1/003_01/1.jpg','session1/003_01/2.jpg'),'session1/003_01',2), ('deepchange',('train-set/P1_C03_20200813_9_9_bbox.jpg',),'train-set/P1_C03_20200813_9_9_bbox.jpg',1),
                                  ('regdb',('Visible/77/a.bmp',),'Visible/77',1), ('msmt17',('test/0777/a.jpg',),'test/0777',1)):
        root = good(tmp_path/name, name)
        had = load(name, root)
        ds = load(name, tree(root, more))
        assert shown in ds.skipped[NO_LIST] and ds.skipped_files[NO_LIST] == had.skipped_files.get(NO_LIST, 0) + files
        assert any(NO_LIST in p for p in check(name, root, decode=False, **OPTIONS.get(name, {})).problems) == (name!='msmt17')

def test_a_whole_unknown_folder_is_one_entry_with_its_count(tmp_path, capsys):
    prcc(tmp_path, *(f'trian/{p:03d}/A_cropped_rgb{i:03d}.jpg' for p in range(30) for i in range(10)))
    ds = load_dataset('prcc', tmp_path)
    assert ds.skipped == {NO_PART: ['trian']} and ds.skipped_files == {NO_PART: 300}
    assert 'prcc: skipped 300 file(s), in no part of the layout: trian/ (300 files)' in capsys.readouterr().out

words = st.sampled_from(['train','test','A','B','D','query','gallery','001','004','x','cam1','0001','idx','.git','info','sub'])
files = st.sampled_from(['A_cropped_rgb001.jpg','cropped_rgb001.jpg','001_1_c4_000001.png','0001_c1s1_000001_00.jpg','0001_c1s1_000001_00.gif','a.txt','.DS_Store','b.jpg','١_1_c1_1.png','0001.jpg','mannequins.json'])
paths = st.tuples(st.lists(words, max_size=3), files).map(lambda t: '/'.join((*t[0], t[1])))
links = st.tuples(st.lists(words, max_size=2), st.sampled_from(['l.jpg','002','more','C_cropped_rgb001.jpg']), st.sampled_from(['.','..','/etc','/etc/hostname','l.jpg','../nowhere.jpg','../../train','A_cropped_rgb001.jpg']))

@pytest.mark.parametrize('name', ['prcc','ltcc','market1501','sysu_mm01','ccvid'])
def test_found_and_passed_over_are_all_files(tmp_path_factory, name):
    @settings(max_examples=15)
    @given(st.lists(paths, max_size=12), st.lists(links, max_size=4))
    def run(more, odd):
        root = good(tmp_path_factory.mktemp('t'), name)
        for p in more:
            try: tree(root, [p])
            except OSError: pass                                                # a file where a folder should be
        for above,link,target in odd:
            d = root.joinpath(*above)
            try: d.mkdir(parents=True, exist_ok=True); os.symlink(target, d/link)
            except OSError: pass
        ds = load(name, root)
        through = {p for path in rel(ds) for p in itertools.accumulate(path.split('/')[:-1], lambda a,b: f'{a}/{b}')}
        through |= {p for ps in ds.skipped.values() for p in ps for p in itertools.accumulate(p.split('/')[:-1], lambda a,b: f'{a}/{b}')}
        assert accounted(ds) == on_disk(root, through)
        assert not set(rel(ds)) & {p for r,ps in ds.skipped.items() for p in ps}
        every = [p for ps in ds.skipped.values() for p in ps]
        assert len(every) == len(set(every))
    run()

def test_a_folder_that_cannot_be_opened_is_counted(tmp_path, monkeypatch):
    prcc(tmp_path, 'train/005/A_cropped_rgb001.jpg')
    real = os.scandir
    monkeypatch.setattr(os, 'scandir', lambda p: (_ for _ in ()).throw(PermissionError(13, 'Permission denied')) if str(p).endswith('005') else real(p))
    ds = load('prcc', tmp_path)
    assert ds.skipped == {'folder that cannot be opened': ['train/005']} and any('cannot be opened' in p for p in check('prcc', tmp_path, decode=False).problems)

def test_pipes_and_links_in_a_circle(tmp_path):
    prcc(tmp_path, 'train/001/ok/x')
    os.mkfifo(tmp_path/'train/001/A_cropped_rgb050.jpg')
    os.symlink('A_cropped_rgb051.jpg', tmp_path/'train/001/A_cropped_rgb051.jpg')
    os.symlink('nowhere', tmp_path/'train/001/A_cropped_rgb052.jpg')
    os.symlink('loop', tmp_path/'loop'); os.symlink('.', tmp_path/'train/012')
    ds = load('prcc', tmp_path)
    assert ds.skipped['no ordinary file'] == ['loop', *(f'train/001/A_cropped_rgb05{i}.jpg' for i in range(3))]
    assert len(ds.samples) == len(SETS['prcc'][1])
    os.symlink('loop', tmp_path/'rgb')                                          # where the layout may start
    assert len(load('prcc', tmp_path).samples) == len(SETS['prcc'][1])

def test_a_thousand_folders_deep(tmp_path):
    prcc(tmp_path)
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1200): os.mkdir('d'); os.chdir('d')
        Path('a.jpg').touch()
        os.chdir(tmp_path)
        ds = load('prcc', tmp_path)
        assert ds.skipped_files == {NO_PART: 1} and len(ds.samples) == len(SETS['prcc'][1])
    finally:
        os.chdir(here)
        subprocess.run(['rm','-rf',str(tmp_path/'d')], check=True)

# ---- B4: two sources

LLCM_LINE = 'vis/0001/0001_c01_s185535_f7010_vis.jpg'
CONTRADICTIONS = [
    ('last', 'train/000001/000007_1_3.jpg', None), ('last', 'test/gallery/010903/010904_1_3.jpg', None), ('last', 'val/gallery/000900/000901_1_3.jpg', None),
    ('msmt17', 'train/0004/0004_001_02_0113noon_0001_1.jpg', ('list_train.txt','0004/0004_001_02_0113noon_0001_1.jpg 0')), ('msmt17', 'test/0000/0000_003_15_0303morning_0008_3.jpg', ('list_gallery.txt','0000/0000_003_15_0303morning_0008_3.jpg 7')),
    ('msmt17', 'train/0004/0000_001_02_0113noon_0001_1.jpg', ('list_train.txt','0004/0000_001_02_0113noon_0001_1.jpg 4')),
    ('ccvid', 'session1/005_03/00001.jpg', ('train.txt','session1/005_03\t006\tu0')), ('llcm', 'vis/0001/0001_c03_s1_f1_vis.jpg', ('idx/train_vis.txt','vis/0001/0001_c03_s1_f1_vis.jpg 5')),
    ('llcm', 'vis/0001/0009_c03_s1_f1_vis.jpg', ('idx/train_vis.txt','vis/0001/0009_c03_s1_f1_vis.jpg 1')), ('llcm', 'test_vis/cam1/0003/0004_c01_s1_f1_vis.jpg', None),
    ('regdb', 'Visible/1/male_front_v_00009_1.bmp', ('idx/train_visible_2.txt','Visible/1/male_front_v_00009_1.bmp 1'))]

@pytest.mark.parametrize('name,path,line', CONTRADICTIONS)
def test_two_sources_that_name_different_people(tmp_path, name, path, line):
    "The image is dropped, counted, named, a problem for `check`; nothing else changes"
    paths,texts = list(SETS[name][1]),dict(SETS[name][2])
    if name=='llcm':                                                            # a picture more, so that the good pairs are the commoner ones
        paths.append('test_vis/cam2/0003/0003_c02_s1_f2_vis.jpg')
    if name=='msmt17': paths.append('test/0000/0000_005_15_0303morning_0008_5.jpg'); texts['list_gallery.txt'] += '0000/0000_005_15_0303morning_0008_5.jpg 0\n'
    before = load(name, good(tmp_path/'a', name, paths, texts))
    if line: texts[line[0]] += line[1]+'\n'
    root = good(tmp_path/'b', name, [*paths, path], texts)
    ds = load(name, root)
    assert ds.skipped[TWO] == [path] and rel(ds) == rel(before) and ds.samples.identity.tolist() == before.samples.identity.tolist()
    assert any(TWO in n and 'dropped' in n for n in ds.notes) and any(TWO in p and path in p for p in check(name, root, decode=False, **OPTIONS.get(name, {})).problems)

def test_a_list_may_count_anew(tmp_path):
    "Other numbers than the folders' are no contradiction as long as one folder is one person"
    paths,texts = SETS['msmt17'][1:]
    anew = {f: t.replace(' 0\n', ' 17\n').replace(' 4\n', ' 2\n') for f,t in texts.items()}
    a,b = load('msmt17', good(tmp_path/'a', 'msmt17')),load('msmt17', good(tmp_path/'b', 'msmt17', paths, anew))
    assert rel(a) == rel(b) and TWO not in b.skipped and sorted(set(b.query.identity)) == [17]

pairs = st.lists(st.tuples(st.integers(0,4), st.integers(0,4)), min_size=1, max_size=25)

@settings(max_examples=30)
@given(pairs)
def test_partners_are_one_to_one_and_nothing_good_goes(drawn):
    lay = Layout('toy', (Part('', 'train', r'(?P<n>\d+)_(?P<identity>\d+)', '1_2.jpg'),), identity=lambda g: int(g['identity']), clothes=lambda g: None, camera=lambda g: 0,
                 witnesses=(lambda path, g: int(g['folder']),), anew=True,
                 rows=lambda r: [('train', f'{i}.jpg', dict(folder=k, identity=who)) for i,(k,who) in enumerate(drawn)])
    try: kept = [drawn[int(Path(p).stem)] for p in read_names(lay, [f'{i}.jpg' for i in range(len(drawn))]).samples.path]
    except DataError: kept = []
    assert len(set(kept)) == len({k for k,_ in kept}) == len({w for _,w in kept})
    for p in set(drawn):
        rivals = {q for q in drawn if q != p and (q[0]==p[0] or q[1]==p[1])}
        if not rivals: assert p in kept
        if rivals and p in kept: assert all(drawn.count(q) < drawn.count(p) or q not in kept for q in rivals)
        if rivals and all(drawn.count(q) < drawn.count(p) for q in rivals): assert kept.count(p) == drawn.count(p)

def test_an_image_in_two_lists_of_a_split_counts_once(tmp_path):
    paths,texts = SETS['msmt17'][1:]
    ds = load('msmt17', good(tmp_path, 'msmt17', paths, {**texts, 'list_val.txt': texts['list_val.txt']+texts['list_train.txt']}))
    assert ds.skipped['listed twice'] == ['list_val.txt, line 2','list_val.txt, line 3'] and len(ds.samples) == len(load('msmt17', tmp_path).samples)

# ---- C8: junk

def test_junk_with_known_clothes_leaves_no_gap(tmp_path):
    tree(tmp_path, ['train/-1_0_c1_0.png','train/3_5_c1_0.png','train/7_9_c1_0.png','query/8_1_c1_0.png','test/8_1_c2_0.png'])
    lay = Layout('toy', tuple(Part(f, s, r'(?P<identity>-?\d+)_(?P<clothes>\d+)_c(?P<camera>\d)_\d', '3_5_c1_0.png') for f,s in (('train','train'),('query','query'),('test','gallery'))),
                 identity=lambda g: int(g['identity']), clothes=lambda g: int(g['clothes']), camera=lambda g: int(g['camera']))
    ds = read_names(lay, [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*.png')])
    assert ds.train.clothes.tolist() == [0,1] and ds.query.clothes.tolist() == ds.gallery.clothes.tolist() == [2] and 'dropped 1 junk images (identity -1)' in ds.notes

def test_junk_in_the_training_of_a_table(tmp_path):
    tree(tmp_path, ['a.jpg','b.jpg','c.jpg'])
    (tmp_path/'l.csv').write_text('path,identity,clothes,split\na.jpg,-1,0,train\nb.jpg,4,1,train\nc.jpg,5,2,train\n')
    assert load_dataset('folder', tmp_path, csv='l.csv', clothes='shared', verbose=False).train.clothes.tolist() == [0,1]

# ---- D3: names

HOSTILE = ['9'*19, '9'*200, '0'*60+'7', '\x1b[31m', 'a\nb', 'a\rb', 'é', 'e\u0301', '\udcff\udcfe', 'x'*200, ' ', '~', '$HOME', '-rf', 'ｘ', '%00', '\u202e']

@pytest.mark.parametrize('name', [n for n in NAMES if n not in ('regdb','deepchange','msmt17','ccvid')])
def test_one_name_never_stops_a_set(tmp_path, name):
    "In each field of a good name, beside the good ones"
    root = home(tmp_path, name)
    before,n = load(name, root),on_disk(root)
    path = before.samples.path[0]
    stem,ext = os.path.splitext(os.path.basename(path))
    fields = re.split(r'(\d+)', stem)
    for h in HOSTILE:
        for i in {1, len(fields)-2}:
            try: open(os.path.join(os.path.dirname(path), ''.join([*fields[:i], h, *fields[i+1:]])[:240]+ext), 'x').close(); n += 1
            except OSError: pass
        try: os.mkdir(os.path.join(os.path.dirname(os.path.dirname(path)), h[:200]))
        except OSError: pass
    ds = load(name, root)
    assert accounted(ds) == n and set(rel(before)) <= set(rel(ds))
    text = str(check(name, root, decode=False, **OPTIONS.get(name, {})))
    for n in (*ds.notes, *text.split('\n')): assert n.isprintable() or n=='', n

@pytest.mark.parametrize('name', [n for n in NAMES if SETS[n][2]])
def test_one_line_never_stops_a_set(tmp_path, name):
    "Numbers too large, 5,000 digits, blanks, escapes in a line: counted; in a list of numbers: one sentence"
    paths,texts = SETS[name][1:]
    before = load(name, good(tmp_path, name))
    for file,text in texts.items():
        if '_1.txt' in file: continue
        numbers = text.replace(',', '').strip().isdigit()
        for odd in '9'*19, '9'*5000, '\x1b[31m', ' '*99:
            row = text.split('\n')[0]
            new = f'{row},{odd}' if numbers else row.rstrip('0123456789')+odd if row[-1].isdigit() else row.replace('001', odd, 1)
            (tmp_path/file).write_text(text.rstrip('\n') + '\n' + new + '\n')
            try: ds = load(name, tmp_path)
            except DataError as e: assert numbers and file in str(e) and len(str(e).splitlines()) < 3
            else: assert rel(ds) == rel(before)
        (tmp_path/file).write_text(text)

CLASSES = ['a', ' ', '1', '0', '_', '1_', 'a1', ' 1', '1 ', 'a ', 'session1/', 'session1/1_1', 'Visible/1/', 'Visible/1/ ', ',', 'a,', '1,', '.', '_.', '-', '/', '\\', '\t', 'c1_', 'x\n']

def test_time_grows_with_the_length_whatever_a_name_or_line_holds():
    "Every regular expression of every layout, on 16,000 characters that it almost matches"
    slow = []
    for name in DATASETS:
        if name in ('folder','mannequins-ir','mannequins-dg'): continue
        form = find_layout(name)
        for layout in (form, *form.forms):
            grammars = {g for p in layout.parts for g in (p.name, p.line) if g} | set(layout.folders.values()) | set(layout.aside)
            lines = [t.split('\n')[0] for t in SETS[name][2].values()] + [os.path.splitext(os.path.basename(p))[0] for p in SETS[name][1][:2]]
            for g in grammars:
                grammar = re.compile(g, re.ASCII)
                for c in CLASSES:
                    for start in {'', *lines}:
                        text = start[:len(start)//2] + (c*16000)[:16000] + start[len(start)//2:] + '!'
                        took = time.process_time()
                        grammar.fullmatch(text)
                        if time.process_time()-took > .1: slow.append((name, g, c, start))
    assert not slow, slow[:3]

def test_a_line_of_blanks_is_read_in_no_time(tmp_path):
    for name in 'msmt17','regdb','llcm','deepchange','ccvid':
        paths,texts = SETS[name][1:]
        file = next(f for f in texts if 'train' in f and '_1.txt' not in f)
        root = good(tmp_path/name, name, texts={**texts, file: texts[file] + 'a' + ' '*16000 + 'x\n' + 'Visible/1/a' + ' '*16000 + 'x\n'})
        start = time.process_time()
        ds = load(name, root)
        assert time.process_time()-start < 2 and len(ds.skipped['line breaks the grammar']) == 2

@pytest.mark.parametrize('form', ['NFC','NFD'])
def test_names_of_another_machine_match(tmp_path, form):
    u = lambda t,f: unicodedata.normalize(f, t)
    other = {'NFC':'NFD','NFD':'NFC'}[form]
    tree(tmp_path, [u('Zoë/Müller.jpg', form), 'plain.jpg'])
    (tmp_path/'l.csv').write_text(u('path,identity\nZoë/Müller.jpg,1\nplain.jpg,2\n', other))
    ds = load_dataset('folder', tmp_path, csv='l.csv', verbose=False)
    assert rel(ds) == [u('Zoë/Müller.jpg', form), 'plain.jpg'] and not ds.skipped
    if len({e.name for e in tmp_path.iterdir()}) == 3:
        tree(tmp_path, [u('Zoë/Müller.jpg', other)])                            # both are there: the one that is meant, as it stands
        assert rel(load_dataset('folder', tmp_path, csv='l.csv', verbose=False)) == [u('Zoë/Müller.jpg', other), 'plain.jpg']

@pytest.mark.parametrize('data,words', [('0000/a.jpg 0\n'.encode('utf-16'), 'is UTF-16: save it as UTF-8'), ('0000/a.jpg 0\n'.encode('utf-16-le'), 'save it as UTF-8'), ('a 1\nü 2\n'.encode('latin-1'), 'not UTF-8 in line 2'),
    ('a 1\n数据 2\n'.encode('gbk'), 'not UTF-8 in line 2'), (b'version https://git-lfs.github.com/spec/v1\n', 'pointer of Git LFS'), (b'<!DOCTYPE html><html>', 'web page'), (None, 'is a folder'), ('pipe', 'no ordinary file'), ('huge', 'too many for a list')])
def test_lists_that_are_none(tmp_path, data, words):
    root = good(tmp_path, 'msmt17')
    list_ = root/'list_train.txt'
    list_.unlink()
    if data is None: list_.mkdir()
    elif data=='pipe': os.mkfifo(list_)
    elif data=='huge':
        with open(list_, 'wb') as f: f.truncate(2**33)
    else: list_.write_bytes(data)
    with pytest.raises(DataError, match=words) as e: load('msmt17', root)
    assert 'list_train.txt' in str(e.value) and len(str(e.value).splitlines()) == 1

def test_names_that_are_no_text_in_any_locale(tmp_path, any_name):
    "Bytes of GBK and Latin-1, escapes and newlines in names: read or counted, and printed, where the terminal knows ASCII only"
    raw = os.fsencode(prcc(tmp_path/'p'))
    for n in '数据'.encode('gbk')+b'.jpg', b'M\xfcller.jpg', b'A_cropped_rgb001\x1b[31m.jpg', b'A\nB.jpg': open(raw+b'/train/001/'+n, 'w').close()
    last = good(tmp_path/'l', 'last')
    open(os.fsencode(last)+b'/train/000001/000001_\xb0\xa1_3.jpg', 'w').close()  # any text may stand there
    code = (f"from ccreid.data.layouts import load_dataset\nfrom ccreid.data.checks import check\nds = load_dataset('prcc', {str(tmp_path/'p')!r})\nassert ds.skipped_files == {{'name breaks the grammar': 4}}\n"
            f"print(check('prcc', {str(tmp_path/'p')!r}, decode=False))\nds = load_dataset('last', {str(last)!r}); print(len(ds.samples), len(ds.train))")
    done = subprocess.run([sys.executable, '-c', code], env={**os.environ, 'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}, capture_output=True)
    out = done.stdout.decode('ascii')
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    assert '\\x1b[31m' in out and '\\xfcller' in out and 'A\\nB' in out and '\x1b' not in out and out.strip().endswith(f"{len(SETS['last'][1])+1} 4")

# ---- D4: read-only folders and the hub's cache

def snapshot(root, name, repo='datasets--someone--set'):
    "A good tree as the Hugging Face hub's cache keeps it"
    cache = root/repo
    for i,p in enumerate([*SETS[name][1], *SETS[name][2]]):
        blob,link = cache/'blobs'/f'{i:040x}',cache/'snapshots'/'0123abcd'/p
        for q in blob,link: q.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(SETS[name][2].get(p, '').encode())
        link.symlink_to(os.path.relpath(blob, link.parent))
    return cache/'snapshots'/'0123abcd'

@pytest.mark.parametrize('name', ['prcc','msmt17','sysu_mm01'])
def test_a_snapshot_of_the_hub_is_read(tmp_path, name):
    a,b = load(name, snapshot(tmp_path, name)),load(name, good(tmp_path/'plain', name))
    assert rel(a) == rel(b) and a.samples.drop(columns='path').equals(b.samples.drop(columns='path')) and a.skipped == b.skipped
    os.symlink(tmp_path/'datasets--someone--set/snapshots/0123abcd', tmp_path/'mine')
    assert rel(load(name, tmp_path/'mine')) == rel(b)

def test_nothing_but_the_own_blobs_is_allowed(tmp_path):
    root = snapshot(tmp_path, 'prcc')
    other = snapshot(tmp_path, 'prcc', 'datasets--someone--other')
    n = len(load('prcc', root).samples)
    aims = [other.parent.parent/'blobs'/f'{0:040x}', other/'train/001/A_cropped_rgb001.jpg', tmp_path/'x.jpg', root.parent.parent/'refs'/'main', root.parent.parent/'blobs']
    for p in aims[2:4]: p.parent.mkdir(exist_ok=True); p.touch()
    for i,aim in enumerate(aims): os.symlink(aim, root/f'train/001/A_cropped_rgb90{i}.jpg')
    ds = load('prcc', root)
    assert len(ds.samples) == n and len(ds.skipped['link that leaves the folder']) == len(aims)
    (tmp_path/'datasets--a--b/snapshots/v1').mkdir(parents=True); (tmp_path/'datasets--a--b/blobs').symlink_to('/etc')
    assert Folder(tmp_path/'datasets--a--b/snapshots/v1').blobs == ''           # blobs that are a link are nobody's own
    (tmp_path/'sets/snapshots/v1').mkdir(parents=True); (tmp_path/'sets/blobs').mkdir()
    assert Folder(tmp_path/'sets/snapshots/v1').blobs == ''                     # no cache of the hub

def test_a_list_in_a_snapshot_may_name_links(tmp_path):
    root = snapshot(tmp_path, 'msmt17')
    (tmp_path/'secret.jpg').touch()
    link = root/'train/0004/0004_000_02_0113noon_0001_0.jpg'
    link.unlink(); link.symlink_to(tmp_path/'secret.jpg')
    two_lines(lambda: load('msmt17', root), 'outside the data set', 'list_train.txt')

def test_reading_writes_nothing(tmp_path):
    roots = {name: home(tmp_path/name, name) for name in ('prcc','msmt17','mannequins')}
    state = lambda: {str(p): (s.st_mtime_ns, s.st_size, s.st_mode) for p in tmp_path.rglob('*') for s in [p.lstat()]}
    for p in sorted(tmp_path.rglob('*'), reverse=True): p.chmod(0o555 if p.is_dir() else 0o444)
    before = state()
    for name,root in roots.items():
        load(name, root)
        check(name, root, decode=False)
    assert state() == before
    for p in tmp_path.rglob('*'): p.chmod(0o755)

# ---- D1: manifests and cards

def test_a_good_manifest_counts(tmp_path): assert check('mannequins', world(tmp_path), decode=False).ok

DAMAGED = [('', 'is empty'), ('{"a"', 'is damaged'), ('['*100000, 'is damaged'), ('{"a":'*100000, 'is damaged'), ('[1]', 'holds list, not dict'), ('\xff\xfe', 'is damaged'), ('<html>', 'is a web page'), ('version https://git-lfs', 'Git LFS'),
    ('{"layout": "moon"}', 'unknown layout'), ('{"layout": ["prcc"]}', 'unknown layout'), ('{"layout": 5}', 'unknown layout'), (None, 'is a folder')]

@pytest.mark.parametrize('text,words', DAMAGED)
def test_damaged_manifests(tmp_path, text, words):
    root = world(tmp_path)
    (root/'mannequins.json').unlink()
    if text is None: (root/'mannequins.json').mkdir()
    else: (root/'mannequins.json').write_bytes(text.encode('latin-1'))
    for f in (lambda: load('mannequins', root), lambda: check('mannequins', root, decode=False)):
        with pytest.raises(DataError, match=words) as e: f()
        assert 'mannequins.json' in str(e.value) and len(str(e.value).splitlines()) == 1

@pytest.mark.parametrize('head,words', [(dict(domains=['../..']), 'no folder beside it'), (dict(domains={'/etc': 1}), 'no folder beside it'), (dict(domains=['.']), 'no folder beside it'), (dict(domains=[['a']]), 'no folder beside it'), (dict(domains=5), 'damaged'),
    (dict(domains=['gate']), 'no folder beside it'), (dict(domains=['self']), 'holds no images'), (dict(images=[1,2]), 'holds no images'), (dict(images={'train/a.png': [1,2]}), 'four numbers'), (dict(images={'train/a.png': 5}), 'damaged'),
    (dict(images={'train/a.png': ['a',1,2,3]}), 'four numbers'), (dict(images={'/etc/passwd': [0,0,0,0], '../x.png': [0,0,0,0]}), 'lists no file'), (dict(layout='ltcc', world=dict(nonsense=1), images={'train/001_1_c1_000001.png': [0,0,0,0]}), 'damaged'),
    (dict(layout='ltcc', images={'train/001_1_c1_000001.png': [0,0,0,0]}), 'damaged')])
def test_manifests_of_a_wrong_shape_point_nowhere(tmp_path, head, words):
    root = good(tmp_path/'w', 'mannequins')
    (tmp_path/'out').mkdir(); (tmp_path/'out'/'mannequins.json').write_text('{"images": {"train/0_0_c0_v_0.png": [0,0,0,0]}}')
    (root/'gate').symlink_to(tmp_path/'out'); (root/'self').symlink_to('.')
    (root/'mannequins.json').write_text(json.dumps(head))
    with pytest.raises(DataError, match=words) as e: manifest_counts(find_layout('mannequins'), root)
    assert 'mannequins.json' in str(e.value)

def test_a_manifest_that_is_a_link_elsewhere_is_not_read(tmp_path):
    root = world(tmp_path/'w')
    (root/'mannequins.json').rename(tmp_path/'m.json'); (root/'mannequins.json').symlink_to(tmp_path/'m.json')
    with pytest.raises(DataError, match='leads elsewhere'): load('mannequins', root)

LAUGHS = '---\na: &a [x,x,x,x,x,x,x,x,x]\n' + ''.join(f'{c}: &{c} [{",".join(["*"+b]*9)}]\n' for b,c in zip('abcdefgh', 'bcdefghi')) + '---\n'

@pytest.mark.parametrize('text,words', [(LAUGHS, 'aliases'), ('---\na: ['+'['*5000+'\n---\n', 'nested too deeply|no valid YAML'), ('---\na: 2026-99-99\n---\n', 'cannot be read'), ('---\n? [1]\n: {? {a: 1} : 2}\n---\n', 'no valid YAML|lacks|cannot be read'),
    ('---\na: \x00\n---\n', 'no valid YAML'), ('---\na: !!python/object:os.system x\n---\n', 'no valid YAML'), (f"---\na: {'9'*5000}\n---\n", 'cannot be read')])
def test_damaged_cards(text, words):
    start = time.process_time()
    with pytest.raises(DataError, match=words) as e: parse_card(text, 'mine.md')
    assert 'mine.md' in str(e.value) and len(str(e.value).splitlines()) == 1 and time.process_time()-start < 5

@pytest.mark.parametrize('data,words', [(b'---\nname: M\xfcller\n---\n', 'save it as UTF-8'), (b'#'*(2**20+1), 'too many for a card'), ('---\n'.encode('utf-16'), 'UTF-16')])
def test_cards_that_are_no_text(tmp_path, monkeypatch, data, words):
    (tmp_path/'mine.md').write_bytes(data)
    monkeypatch.setattr('ccreid.data.cards.card_folders', lambda: [tmp_path])
    with pytest.raises(DataError, match=words): load_card('mine')

def test_a_picture_of_another_camera_is_counted_and_an_empty_folder_as_one(tmp_path):
    root = prcc(tmp_path/'rgb', 'test/A/100/B_cropped_rgb900.jpg', 'test/A/100/A_cropped_rgb901.jpg')
    (tmp_path/'rgb'/'train'/'newcomer').mkdir()
    ds = load_dataset('prcc', root, verbose=False)
    assert ds.skipped['name breaks the grammar']==['test/A/100/B_cropped_rgb900.jpg'] and any(p.endswith('A_cropped_rgb901.jpg') for p in ds.samples.path)
    problems = check('prcc', root, decode=False).problems
    assert any('B_cropped_rgb900' in p for p in problems) and any(p.startswith('1 passed over, folder name') and 'newcomer' in p for p in problems)

def test_a_person_read_as_unknown_is_a_problem(tmp_path):
    tree(tmp_path, ['nan_1_c1_1.jpg', '2_1_c1_1.jpg', '2_1_c2_2.jpg'])
    report = check('folder', tmp_path, decode=False)
    assert not report.ok and any("identity 'nan' was read as unknown" in p for p in report.problems)
