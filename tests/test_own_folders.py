"A user's own images: patterns and tables against labels that the test itself wrote into names and lines"
import csv, io, os, re
import numpy as np, pandas as pd, pytest
from hypothesis import example, given, settings, strategies as st
from PIL import Image
from ccreid.data.layouts import find_layout, load_dataset
from ccreid.data.mannequins import MannequinWorld, find_scene, plans_folder
from ccreid.data.mannequins.plans import TEXTS
from ccreid.data.own_folders import PLACES, folder, grammar
from ccreid.data.reading import read_names
from ccreid.data.samples import SPLITS, DataError, hold_out

def two_lines(f, *words):
    with pytest.raises(DataError) as e: f()
    text = str(e.value)
    assert 1 <= len(text.splitlines()) <= 2 and all(w in text for w in words), text

def by_name(ds): return ds.samples.assign(path=ds.samples.path.str.removeprefix('/names/')).set_index('path').sort_index()

def same_partition(a, b):
    "Are two labellings one and the same but for names? -1 stays -1"
    pairs = {(x, y) for x, y in zip(a, b, strict=True)}
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs}) and all((x in (None, -1)) == (y == -1) for x, y in pairs)

# ---- labels that were written are labels that are read ----------------------------------------------------------------------

def wordlike(w): return w if w.strip('-. ') and not w.startswith('.') and not re.fullmatch(r'-\d+([.,]\d*)?(e[+-]?\d+)?|\d+[.,]?0*', w, re.I) else f'a{w}'   # nothing but marks says nothing
words = st.text(st.sampled_from('abzÄß李ع7-. '), min_size=1, max_size=4).map(str.strip).map(wordlike)
numbers = st.integers(0, 9999).map(lambda n: f'{n:04d}')

@st.composite
def photos(draw, people=None, unknown=True):
    "Images as (identity, clothes or, if `unknown`, None, camera, frame, modality, split), one a name"
    people = draw(st.sampled_from([words, numbers])) if people is None else people
    cameras = draw(st.sampled_from([words, numbers]))
    one = st.tuples(people, st.none() | words | numbers if unknown else words | numbers, cameras, st.integers(0, 99), st.sampled_from(['visible', 'infrared']), st.sampled_from(SPLITS))
    return draw(st.lists(one, min_size=1, max_size=12, unique_by=lambda p: p[:4]))

def plain(word): return str(int(word)) if re.fullmatch(r'\d+', word, re.ASCII) else word

def check_labels(t, rows):
    "Training people and clothes are numbered apart from the others, and so are the clothes of validation people"
    at = lambda *splits: [i for i, r in enumerate(rows) if r[5] in splits]
    for some in at('train'), at('val', 'query', 'gallery', 'test'):
        assert same_partition([plain(rows[i][0]) for i in some], t.identity.iloc[some].tolist())
    for some in at('train'), at('val'), at('query', 'gallery', 'test'):
        assert same_partition([None if rows[i][1] is None else (plain(rows[i][0]), plain(rows[i][1])) for i in some], t.clothes.iloc[some].tolist())
    assert same_partition([plain(r[2]) for r in rows], t.camera.tolist())
    assert t.frame.tolist() == [r[3] for r in rows] and t.modality.tolist() == [r[4] for r in rows] and t.split.tolist() == [r[5] for r in rows]

@given(photos())
def test_labels_in_names_are_read_back(rows):
    names = [f"{s}/{p}/{'unknown' if c is None else c}_at_{k}_{m}_{f:02d}.png" for p, c, k, f, m, s in rows]
    ds = read_names(folder('{split}/{identity}/{clothes}_at_{camera}_{modality}_{frame}.png'), names)
    assert not ds.skipped and len(ds.samples) == len(rows)
    check_labels(by_name(ds).loc[names], rows)

@given(photos(), st.sampled_from(',;\t'), st.sampled_from(['\n', '\r\n']), st.booleans())
def test_labels_in_a_table_are_read_back(rows, delimiter, end, mark):
    names, out = [f'pictures/{i:03d}.jpg' for i in range(len(rows))], io.StringIO()
    w = csv.writer(out, delimiter=delimiter, lineterminator=end)
    w.writerow(['Path', 'frame', 'identity ', 'clothes', 'camera', 'modality', 'split'])
    for n, (p, c, k, f, m, s) in zip(names, rows): w.writerow([n, f, p, '' if c is None else c, k, m, s])
    ds = read_names(folder(csv='info/labels.csv'), names, {'info/labels.csv': '\ufeff'*mark + out.getvalue()})
    assert not ds.skipped
    check_labels(by_name(ds).loc[names], rows)

@given(photos(numbers))
def test_numbers_stay_numbers_for_test_people(rows):
    ds = read_names(folder('{identity}_{clothes}_{camera}_{modality}_{frame}'), [f"{p}_{c or ''}x_{k}_{m}_{f}.JPEG" for p, c, k, f, m, s in rows])
    assert set(ds.query.identity) == {int(r[0]) for r in rows}

@given(photos(unknown=False), st.sampled_from(SPLITS))
def test_names_and_a_table_that_say_the_same_are_read_the_same(rows, split):
    names = [f'{p}_{c}_{k}_{f}.jpg' for p, c, k, f, m, s in rows]
    pattern = '{identity}_{clothes}_{camera}_{frame}.jpg'
    out = io.StringIO()
    csv.writer(out).writerows([['path', 'identity', 'clothes', 'camera', 'frame'], *([n, *r[:4]] for n, r in zip(names, rows))])
    a, b = read_names(folder(pattern, split=split), names), read_names(folder(csv='l.csv', split=split), names, {'l.csv': out.getvalue()})
    pd.testing.assert_frame_equal(by_name(a), by_name(b))
    assert set(a.samples.split) == {split}

# ---- the default pattern against a parser without regular expressions --------------------------------------------------------

def by_hand(name):
    "(identity, clothes, camera, frame) or None"
    stem, dot, ending = name.rpartition('.')
    parts = stem.split('_')
    digits = lambda s: s != '' and all(c in '0123456789' for c in s)
    if not dot or ending.lower() not in ('jpg', 'jpeg') or '/' in name or len(parts) != 4: return None
    p, c, k, f = parts
    low = lambda s, n: s.strip()[:1] == '-' and digits(s.strip()[1:]) and int(s) < n
    return (p, c, int(k[1:]), int(f)) if p and c and k[:1] == 'c' and digits(k[1:]) and digits(f) and not low(p, -2) and not low(c, -1) else None

bits = st.sampled_from(['0001', '1', '7', 'anna', '_', '_', '_', 'c', 'c1', 'c12', '.jpg', '.JPG', '.jpeg', '.png', '.', '-1', '٣', ' ', 'unknown', '/', 'ĉ', '\u00e9', 'e\u0301', '$'])

@settings(max_examples=300)
@given(st.lists(st.lists(bits, min_size=1, max_size=9).map(''.join), min_size=1, max_size=6, unique=True))
@example(['-3_1_c1_7.jpg', '1_-7_c1_7.jpg', ' _1_c1_7.jpg', '7_1_c1_7.jpg'])
@example(['0001_1_c1_0001.jpg', '0001_1_c1_0001.JPG', '0001_1_c1_0001.jpeg', '-2_1_c1_7.jpg', 'unknown_1_c1_7.jpg'])
def test_near_misses_are_counted_and_never_misread(names):
    names = [n for n in names if not n.startswith('/') and '//' not in n and not n.endswith('/') and not any(p.startswith('.') for p in n.split('/'))]
    names = [n for n in names if not any(o.startswith(n+'/') for o in names)]
    want = {n: by_hand(n) for n in names}
    good = {n: w for n, w in want.items() if w}
    people = {n: w[0] for n, w in good.items() if w[0].strip() not in ('-1', 'unknown') and w[0].strip(' .')}
    if not people:
        with pytest.raises(DataError): read_names(folder(), names)
        return
    ds = read_names(folder(), names)
    t = by_name(ds)
    assert set(t.index) == set(people)
    for n in t.index: assert (t.camera[n], t.frame[n]) == want[n][2:]
    skipped = {p for reason, ps in ds.skipped.items() for p in ps}
    assert all(any(n == p or n.startswith(p+'/') for p in skipped) for n in want if n not in good)
    assert ('junk' in ' '.join(ds.notes)) == (len(people) < len(good))

# ---- patterns ---------------------------------------------------------------------------------------------------------------

pieces = st.sampled_from([*('{%s}' % p for p in PLACES), '_', '-', 'c', '/', '*', '.', '.jpg', '.*', '.gif', '{', '}', '{date}', '\\', 'a b', '(', '[x]', '..', '{}'])

@settings(max_examples=400)
@given(st.lists(pieces, max_size=8).map(''.join))
def test_a_pattern_reads_its_own_example_or_is_refused_in_two_lines(pattern):
    try: regex, extensions, depth, shown = grammar(pattern)
    except DataError as e:
        assert len(str(e).splitlines()) <= 2
        return
    stem, extension = os.path.splitext(shown)
    assert extension in extensions and shown.count('/') == depth and '{identity}' in pattern
    said = regex.fullmatch(stem)
    assert said and said['identity'] == '0001' and set(said.groupdict()) == {p for p in PLACES if '{%s}' % p in pattern}
    if any(level[0] == '.' for level in shown.split('/')): return  # hidden
    ds = read_names(folder(pattern), [shown])
    assert len(ds.samples) == 1 and ds.samples.identity[0] in (0, 1)

@pytest.mark.parametrize('pattern,word', [
    ('{person}.jpg', 'unknown placeholder {person}'), ('{clothes}_{frame}.jpg', '{identity} is missing'), ('', '{identity} is missing'), ('{identity}{camera}.jpg', 'where would'),
    ('{identity}*_1.jpg', 'where would'), ('*{identity}.jpg', 'where would'), ('{identity.jpg', 'brace'), ('{identity}_{frame}.gif', 'no kind of image'), ('../{identity}.jpg', 'outside'), ('/data/{identity}.jpg', 'outside'), ('C:\\{identity}.jpg', 'outside')])
def test_wrong_patterns(pattern, word): two_lines(lambda: folder(pattern), word)

def test_extension_decides_the_kind_of_file():
    names = ['a_1.jpg', 'a_2.JPG', 'a_3.jpeg', 'a_4.png', 'a_5.PNG', 'a_6.bmp', 'a_7.tiff', 'a_8.txt', 'a_9']
    read = lambda p: sorted(by_name(read_names(folder(p), names)).frame)
    assert read('{identity}_{frame}.jpg') == [1, 2, 3] == read('{identity}_{frame}.JPEG')
    assert read('{identity}_{frame}.png') == [4, 5]
    assert read('{identity}_{frame}') == [1, 2, 3, 4, 5, 6, 7] == read('{identity}_{frame}.*')

def test_placeholders():
    one = lambda pattern, name: grammar(pattern)[0].fullmatch(name)
    assert one('{identity}_{camera}', 'anna_hall') and not one('{identity}_c{camera}', 'anna_chall') and one('{identity}_c{camera}', 'anna_c12')
    assert not one('{identity}_{clothes}_{frame}', 'anna_maria_red_1') and one('{identity}_*_{frame}', 'anna_x_1') and not one('{identity}_*_{frame}', 'anna_x_y_1')
    assert one('{split}-{identity}', 'TRAINING-a') and not one('{split}-{identity}', 'summer-a')
    assert one('{identity}/{identity}_*', 'a/a_1') and not one('{identity}/{identity}_*', 'a/b_1') and not one('{identity}_*', 'a/b_1')
    assert one('{camera}_{identity}_x', 'hall_anna_x')
    assert one('{identity}.{camera}', 'a.1') and one('(1) {identity}+', '(1) a+') and not one('a.c{identity}', 'abc7')

def test_a_pattern_that_fits_nothing_shows_what_did_not_fit():
    two_lines(lambda: read_names(folder(), ['anna-red-1.jpg', 'ben-blue-2.jpg']), 'anna-red-1.jpg', 'ben-blue-2.jpg', '{identity}_{clothes}_c{camera}_{frame}.jpg', '{tracklet}')
    two_lines(lambda: read_names(folder('{identity}_{frame}.jpg'), ['people/anna_1.jpg']), 'people', '{identity}')
    two_lines(lambda: read_names(folder('{split}/{identity}.jpg'), ['anna.jpg']), 'anna.jpg')
    two_lines(lambda: read_names(folder(), ['notes.txt']), '0 images', 'notes.txt')

# ---- what words mean --------------------------------------------------------------------------------------------------------

def test_words_are_ranked_and_unknown_is_unknown():
    t = by_name(read_names(folder('{identity}_{clothes}_{camera}_{frame}.jpg'), ['ben_red_hall_1.jpg', 'anna_red_door_1.jpg', 'anna_unknown_Unknown_2.jpg', '-2_red_door_3.jpg', 'unknown_red_door_4.jpg']))
    assert t.loc[['anna_red_door_1.jpg', 'anna_unknown_Unknown_2.jpg', 'ben_red_hall_1.jpg', '-2_red_door_3.jpg'], ['identity', 'camera']].values.tolist() == [[0, 0], [0, -1], [1, 1], [-2, 0]]
    assert len(t) == 4 and t.clothes['anna_unknown_Unknown_2.jpg'] == -1 and t.clothes['ben_red_hall_1.jpg'] != t.clothes['anna_red_door_1.jpg']

def test_garments_of_ones_own_and_shared_ones():
    names = ['1_1_c1_1.jpg', '1_2_c1_1.jpg', '2_1_c1_1.jpg', '2_0001_c1_2.jpg']
    clothes = lambda **kw: by_name(read_names(folder(**kw), names)).loc[names].clothes.tolist()
    assert same_partition([(1, 1), (1, 2), (2, 1), (2, 1)], clothes()) and same_partition([1, 2, 1, 1], clothes(clothes='shared'))

def test_a_tracklet_is_one_person_before_one_camera():
    names = ['a_c1_t1_1.jpg', 'a_c1_t1_2.jpg', 'a_c2_t1_1.jpg', 'b_c1_t1_1.jpg', 'a_c1_t2_1.jpg', 'b_c1_tunknown_1.jpg']
    t = by_name(read_names(folder('{identity}_c{camera}_t{tracklet}_{frame}.jpg'), names)).loc[names]
    assert same_partition([1, 1, 2, 3, 4, None], t.tracklet.tolist())
    assert 'tracklet' not in by_name(read_names(folder('{identity}_c{camera}_t*_{frame}.jpg'), names))

def test_people_on_both_sides_are_told_by_name():
    ds = read_names(folder('{split}/{identity}_{frame}.jpg'), ['train/anna_1.jpg', 'query/anna_2.jpg', 'gallery/anna_3.jpg', 'train/ben_1.jpg'])
    assert '1 people are in training and in the test: anna' in ds.notes
    ds = read_names(folder('{split}/{identity}_{frame}.jpg'), ['train/unknown_1.jpg', 'test/unknown_2.jpg', 'train/ben_1.jpg', 'train/-2_1.jpg', 'test/-2_1.jpg'])
    assert ds.notes == ['dropped 2 junk images (identity -1)']

def test_one_name_in_two_spellings_of_unicode_is_one_person():
    t = by_name(read_names(folder('{identity}_{clothes}_{frame}.jpg'), ['zo\u00eb_caf\u00e9_1.jpg', 'zoe\u0308_cafe\u0301_2.jpg', 'zoe_cafe_3.jpg']))
    assert t.groupby(['identity', 'clothes']).size().tolist() == [1, 2]

def test_without_cameras_nothing_can_be_scored_and_the_user_hears_of_it():
    ds = read_names(folder('{identity}_{frame}.jpg'), ['1_1.jpg', '1_2.jpg', '2_1.jpg', '2_2.jpg'])
    assert set(ds.samples.camera) == {-1} and set(ds.samples.clothes) == {-1}
    with pytest.warns(UserWarning, match='none of the 4 queries'): assert ds.evaluate(lambda t: np.eye(len(t), 4), 'standard').queries == 0

# ---- tables -----------------------------------------------------------------------------------------------------------------

def table(text, names=('a.jpg', 'b.jpg', 'sub/c.jpg'), **kw): return read_names(folder(csv='labels.csv', **kw), names, {'labels.csv': text})

def test_splits_of_a_table_and_of_the_rest():
    text = 'path,identity,split\na.jpg,1,Train\nb.jpg,2,\nsub/c.jpg,3,probe\n'
    assert by_name(table(text)).split.tolist() == ['train', 'test', 'query']
    assert by_name(table(text, split='gallery')).split.tolist() == ['train', 'gallery', 'query']

def test_an_image_may_ask_and_be_searched_but_not_contradict_itself():
    ds = table('path,identity,split\na.jpg,1,query\na.jpg,1,gallery\na.jpg,1,query\na.jpg,1,Probe\n')
    assert ds.samples.split.tolist() == ['query', 'gallery'] and ds.skipped == {'listed twice': ['labels.csv, line 4', 'labels.csv, line 5'], 'in no list': ['b.jpg', 'sub']}
    two_lines(lambda: table('path,identity\na.jpg,1\n\n./a.jpg,2\n'), 'labels.csv, line 4 contradicts labels.csv, line 2', 'a.jpg')
    two_lines(lambda: table('path,identity,split\na.jpg,1,query\na.jpg,2,gallery\n'), 'line 3 contradicts')

def test_quotes_windows_paths_and_empty_lines():
    ds = table('path,identity,clothes\r\n\r\n"a.jpg","Anna, the first","red\r\ncoat"\r\n,,\r\nsub\\c.jpg, Ben ,\r\n')
    assert by_name(ds).index.tolist() == ['a.jpg', 'sub/c.jpg'] and by_name(ds).clothes.tolist() == [0, -1]

@pytest.mark.parametrize('text,words', [
    ('', ["no column 'path'", '(empty)']), ('path,person\n', ["column 'person'"]), ('file,identity\na.jpg,1\n', ["column 'file'"]), ('path\na.jpg\n', ["no column 'identity'"]),
    ('path,identity,Identity\n', ['two columns']), ('a.jpg,1,1\n', ["column 'a.jpg'", 'columns are path, identity']), ('path,identity\na.jpg,1,2\n', ['line 2 has 3 cells, the headings are 2']),
    ('path,identity\na.jpg,1\nb.jpg,\n', ['line 3', 'identity is empty']), ('path,identity\n,1\n', ['line 2', 'path is empty']), ('path,identity,frame\na.jpg,1,1.5\n', ['line 2', 'frame']),
    ('path,identity,split\na.jpg,1,fall\n', ['line 2', 'train, val, query']), ('path,identity,modality\na.jpg,1,heat\n', ['line 2', 'visible, infrared']), ('path,identity\n"a.jpg,1\n', ['damaged']),
    ('path,identity\na.jpg,1\n../b.jpg,1\n', ['line 3', 'outside', '../b.jpg']), ('path,identity\n/etc/passwd,1\n', ['line 2', 'outside']), ('path,identity\nD:\\a.jpg,1\n', ['line 2', 'outside']),
    ('path,identity\nsub/../../x.jpg,1\n', ['line 2', 'outside']), ('path,identity\nx.jpg,1\n', ['0 images', 'x.jpg (listed but missing)', 'labels.csv']), ('path,identity,camera\na.jpg,1,-7\n', ['camera']),
    ('path,identity\na.jpg,-5\n', ['identity']), ('path\tidentity\na.jpg,1\n', ['line 2 has 1 cells'])])
def test_wrong_tables(text, words): two_lines(lambda: table(text), *words)

@settings(max_examples=300)
@given(st.text(st.sampled_from('path,identity;\t"\n\r.jb-1 \x00\ufeff/\\'), max_size=60), st.sampled_from(['', 'path,identity\n', 'path;identity;split\n']))
def test_no_table_makes_it_crash(text, head):
    try: ds = table(head + text, ['a.jpg', 'b.jpg', 'b'])
    except DataError as e: assert len(str(e).splitlines()) <= 3
    else: assert set(by_name(ds).index) <= {'a.jpg', 'b.jpg'}

def test_options():
    two_lines(lambda: folder(split='Test '), 'split', 'gallery'), two_lines(lambda: folder(clothes='common'), "'own'", "'shared'")
    two_lines(lambda: folder('{identity}.jpg', csv='l.csv'), 'one of them'), two_lines(lambda: find_layout('folder', patern='x'), 'patern', 'pattern')
    two_lines(lambda: read_names(folder(csv='../l.csv'), ['a.jpg']), 'outside')

# ---- on disk ----------------------------------------------------------------------------------------------------------------

def photo(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (8, 16), (colour, 90, 30)).save(path)

def test_a_folder_as_folders_are(tmp_path):
    root, away = tmp_path/'my_c3_data'/'photos', tmp_path/'away'
    for n in ('0001_1_c1_0001.jpg', '0001_2_c2_0001.JPG', '0002_1_c1_0001.jpeg'): photo(root/'tmp.png') or (root/'tmp.png').rename(root/n)
    photo(away/'0003_1_c1_0001.jpg'), photo(root/'.trash'/'0004_1_c1_0001.jpg'), photo(root/'old'/'0005_1_c1_0001.jpg'), photo(root/'0006_1_c1_0001.png')
    (root/'Thumbs.db').touch(), (root/'._0001_1_c1_0001.jpg').touch(), (root/'notes.txt').touch()
    (root/'0003_1_c1_0001.jpg').symlink_to(away/'0003_1_c1_0001.jpg'), (root/'0007_1_c1_0001.jpg').symlink_to(root/'0002_1_c1_0001.jpeg')
    ds = load_dataset('folder', root, verbose=False)
    assert sorted(os.path.basename(p) for p in ds.samples.path) == ['0001_1_c1_0001.jpg', '0001_2_c2_0001.JPG', '0002_1_c1_0001.jpeg', '0007_1_c1_0001.jpg']
    assert ds.skipped == {'hidden or system file': ['._0001_1_c1_0001.jpg', '.trash', 'Thumbs.db'], 'not an image': ['notes.txt'], 'name breaks the grammar': ['0006_1_c1_0001.png'],
                          'folder name breaks the grammar': ['old'], 'link that leaves the folder': ['0003_1_c1_0001.jpg']}
    assert ds.name == 'folder' and list(ds.protocols) == ['standard', 'same-clothes', 'clothes-changing'] and len(ds.query) == len(ds.gallery) == 4

def test_a_table_on_disk_reads_nothing_outside(tmp_path):
    root, away = tmp_path/'photos', tmp_path/'away'
    photo(root/'1.jpg'), photo(away/'2.jpg'), photo(root/'deep'/'3.jpg')
    (root/'2.jpg').symlink_to(away/'2.jpg'), (root/'gate').symlink_to(away), (root/'4.jpg').mkdir()
    write = lambda *lines: (root/'labels.csv').write_bytes('\ufeff'.encode() + '\r\n'.join(('path,identity', *lines)).encode())
    write('1.jpg,anna', 'deep/3.jpg,ben', '5.jpg,ben', '4.jpg,ben', 'labels.csv,ben')
    ds = load_dataset('folder', root, csv='labels.csv', verbose=False)
    assert [os.path.relpath(p, root) for p in ds.samples.path] == ['1.jpg', 'deep/3.jpg']
    assert ds.skipped == {'listed but missing': ['5.jpg'], 'not an image': ['4.jpg', 'labels.csv'], 'link that leaves the folder': ['2.jpg', 'gate']}
    assert len(load_dataset('folder', root, csv=root/'labels.csv', verbose=False).samples) == 2
    for line in '2.jpg,anna', 'gate/2.jpg,anna', f'{away}/2.jpg,anna', '../away/2.jpg,anna':
        write('1.jpg,anna', line)
        two_lines(lambda: load_dataset('folder', root, csv='labels.csv'), 'line 3', 'outside')
    (away/'labels.csv').write_text('path,identity\n1.jpg,anna\n')
    for name in '../away/labels.csv', 'gate/labels.csv', away/'labels.csv': two_lines(lambda: load_dataset('folder', root, csv=name))
    (root/'bad.csv').write_bytes(b'path,identity\n1.jpg,Ren\xe9\n')
    two_lines(lambda: load_dataset('folder', root, csv='bad.csv'), 'bad.csv')
    two_lines(lambda: load_dataset('folder', root, csv='lables.csv'), 'looked for lables.csv', 'labels.csv')
    two_lines(lambda: load_dataset('folder', tmp_path/'fotos'), 'does not exist')

def test_mannequins_as_a_folder_of_ones_own(tmp_path):
    world = MannequinWorld((3, 1, 4), outfits=2, cameras=2, images=2, infrared=(1,), size=(48, 24), seed=3)
    plain = world.write(tmp_path/'w', layout='folder')
    assert set(plain.samples.split) == {'test'} and len(plain.samples) == 8*2*2*2
    ds = world.write(tmp_path/'w', layout='folder', csv='labels.csv')
    rows = pd.read_csv(io.StringIO(TEXTS['folder'](world, plans_folder.plan_folder(world))['labels.csv']))
    for r in ds.samples.itertuples():
        said, (_, scene, _) = rows[rows.path == os.path.basename(r.path)].iloc[0], find_scene(r.path)
        assert (r.camera, r.frame, r.split, r.modality) == (said.camera, said.frame, said.split, said.modality) == (scene['camera']+1, scene['frame']+1, r.split, 'infrared' if scene['camera'] else 'visible')
    assert ds.identities == 3 and ds.clothes == 6 and set(ds.query.identity) == {5, 6, 7, 8} and set(ds.val.identity) == {4}
    train, held = hold_out(plain.__class__('folder', plain.root, plain.samples.assign(split='train', identity=plain.samples.identity-1)), 3)
    where = {p: i for i, p in enumerate(held.samples.path)}
    truth = {p: np.eye(3)[sorted(set(held.samples.identity)).index(i)] for p, i in zip(held.samples.path, held.samples.identity)}
    for setting in 'standard', 'same-clothes', 'clothes-changing': assert held.evaluate(truth, setting).rank(1) == 1
    assert len(where) == len(held.samples) == 3*8
