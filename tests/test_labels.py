"Labels as people write them: missing ones, numbers, names in two spellings; in tables, patterns, dicts and npz files"
import io, os, struct, time, unicodedata, zipfile
import numpy as np, pandas as pd, pytest, torch
from hypothesis import example, given, settings, strategies as st

from ccreid.data.joining import join
from ccreid.data.label_words import MISSING, is_missing, lookalikes, plain_word
from ccreid.data.layouts import load_dataset
from ccreid.data.own_folders import folder, grammar
from ccreid.data.reading import read_names
from ccreid.data.samples import DataError, ReIDDataset, hold_out, make_table, relabel
from ccreid.evaluation.scoring import features_of, find_names, read_npz
from ccreid.experiments import read_features

def complaint(f, *words, lines=2, error=DataError):
    with pytest.raises(error) as e: f()
    text = str(e.value)
    assert 1 <= len(text.splitlines()) <= lines and all(w in text for w in words), text
    text.encode()
    return text

def table(text, names=('a.jpg', 'b.jpg', 'c.jpg', 'd.jpg'), **kw): return read_names(folder(csv='l.csv', **kw), names, {'l.csv': text})
def by_name(ds): return ds.samples.path.str.removeprefix('/names/').tolist()
def labels(ds, *columns): return ds.samples.sort_values(['path', 'split'])[list(columns)].values.tolist()

# ---- the door of messages ----------------------------------------------------------------------------------------------------

def test_messages_and_notes_hold_nothing_that_cannot_be_printed():
    name = 'a\x1b[2J\r\x00\u202e\udce9.jpg'
    error = DataError(f'{name} is no image\nsave it again')
    assert error.args[0].splitlines() == ['a\\x1b[2J\\r\\x00\\u202e\\xe9.jpg is no image', 'save it again']
    ds = ReIDDataset('d', '/d', make_table([dict(dataset='d', path='/d/a.jpg', identity=0, split='train')]), notes=[f'skipped {name}', 'two\nlines'])
    assert ds.notes == ['skipped a\\x1b[2J\\r\\x00\\u202e\\xe9.jpg', 'two\\nlines']
    complaint(lambda: make_table([dict(dataset='d', path='/d/\x1b\udcff.jpg', identity=-7, split='train')]), '\\x1b\\xff')

# ---- missing labels ----------------------------------------------------------------------------------------------------------

GONE = ['nan', 'NaN', '-nan', 'NA', 'N/A', 'n/a', 'n.a.', '<NA>', '#N/A', '#N/A N/A', '#NA', '#NV', '#REF!', '#DIV/0!', '#NAME?', '#WERT!', 'None', 'null', 'NULL',
        '\\N', 'nil', '?', '??', '-', '--', '\u2014', '...', '1.#QNAN', '-inf', 'missing', 'NA\u200b', '\xa0NA']

def photos(clothes, camera=''):
    "Ten people, each twice in known clothes before two cameras, and twice before others in clothes that nobody knows"
    head = 'path,identity,clothes,camera,tracklet\n'
    return head + ''.join(f'{p}_{i}.jpg,p{p},{clothes if i > 1 else i},{i},{camera if i > 1 else 1}\n' for p in range(10) for i in range(4))

def test_a_word_for_a_missing_value_gives_the_figures_of_an_empty_cell():
    names = [f'{p}_{i}.jpg' for p in range(10) for i in range(4)]
    rng = np.random.default_rng(0)
    features = {n: rng.normal(size=3) for n in names}
    read = lambda word: table(photos(word, word), names)
    empty = read('')
    want = empty.evaluate(features, 'clothes-changing').as_dict()
    for word in GONE:
        ds = read(word)
        pd.testing.assert_frame_equal(ds.samples, empty.samples)
        assert f"clothes {word.strip()!r} was read as unknown, in 20 image(s) such as 0_2.jpg" in ds.notes and f"tracklet {word.strip()!r} was read as unknown, in 20 image(s) such as 0_2.jpg" in ds.notes
    assert ds.evaluate(features, 'clothes-changing').as_dict() == want and want['queries'] == 40
    assert (empty.samples.clothes == -1).sum() == 20 and not any('unknown' in n for n in empty.notes)
    taken = table(photos('NA', 'NA'), names, missing='')                      # the defect, which is an option
    assert (taken.samples.clothes >= 0).all() and taken.evaluate(features, 'clothes-changing').as_dict() != want

@pytest.mark.parametrize('word', GONE + [''])
def test_a_person_that_is_missing_is_refused_with_the_line(word):
    say = ["identity is 'NA'"] if word == 'NA' else ['identity is']
    complaint(lambda: table(f'path,identity\na.jpg,anna\nb.jpg,{word}\n'), 'l.csv, line 3', 'write -1', *say)

@pytest.mark.parametrize('word', ['-1', '-1.0', '-1,0', '-01', 'unknown', 'UNKNOWN'])
def test_a_person_said_to_be_unknown_is_junk(word):
    ds = table(f'path;identity\na.jpg;anna\nb.jpg;{word}\n')
    assert len(ds.samples) == 1 and 'dropped 1 junk images (identity -1)' in ds.notes and not any('read as unknown' in n for n in ds.notes)

def test_somebody_may_be_called_nil():
    text = 'path,identity,clothes\na.jpg,Nil,navy\nb.jpg,NA,na\nc.jpg,x,-\n'
    complaint(lambda: table(text), 'line 2', "'Nil'", "missing=''")
    ds = table(text, missing='')
    assert ds.samples.identity.nunique() == 3 == (ds.samples.clothes >= 0).sum() and not any('unknown' in n for n in ds.notes)
    complaint(lambda: table(text, missing=' X ,?'), 'line 4', "'x'")

def test_missing_words_in_names():
    names = ['NA_1_c1_3.jpg', 'anna_NA_c1_1.jpg', 'anna_n.a._c2_2.jpg', 'anna_red_c3_3.jpg', 'anna_None_c4_4.jpg', '#REF!_red_c1_1.jpg', 'unknown_unknown_c1_9.jpg']
    ds = read_names(folder(), names)
    assert ds.samples.identity.tolist() == [0]*4 and [n for n, c in zip(by_name(ds), ds.samples.clothes) if c >= 0] == ['anna_red_c3_3.jpg']
    assert [n for n in ds.notes if 'unknown' in n] == [f'{k} {w!r} was read as unknown, in 1 image(s) such as {n}' for k, w, n in
        (('identity', '#REF!', names[5]), ('identity', 'NA', names[0]), ('clothes', 'NA', names[1]), ('clothes', 'None', names[4]), ('clothes', 'n.a.', names[2]))]
    assert 'dropped 3 junk images (identity -1)' in ds.notes
    assert len(set(read_names(folder(missing=''), names).samples.identity)) == 3

def test_split_and_modality_take_no_word_for_nothing():
    for k in 'split', 'modality': complaint(lambda: table(f'path,identity,{k}\na.jpg,1,NA\n'), 'line 2', f"{k} is 'NA'")
    assert labels(table('path,identity,split,modality,frame\na.jpg,1,,,\n'), 'split', 'modality') == [['test', 'visible']]
    assert 'frame' not in table('path,identity,frame\na.jpg,1,NA\n').samples and labels(table('path,identity,frame\na.jpg,1,03.0\n'), 'frame') == [[3]]

@given(st.text(max_size=6))
def test_what_is_missing_and_what_is_a_word_is_settled_for_every_text(word):
    plain = plain_word(word)
    assert plain_word(plain) == plain and plain == unicodedata.normalize('NFC', plain) and plain_word(f' {word}\t') == plain
    if is_missing(word): assert plain == '-1'
    if any(c.isalpha() for c in word) and word.strip().casefold() not in MISSING | {'unknown'} and '#' not in word and not is_missing(word): assert plain != '-1'
    assert not is_missing(word, ()) and plain_word('NA', ()) == 'NA'

# ---- one label, one spelling -------------------------------------------------------------------------------------------------

ways = st.tuples(st.integers(0, 12), st.sampled_from(['{}', '{}.0', '{},0', '0{}', ' {} ', '{}.00', '{}.000000', '00{}.0', '{}\u200b']))

@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(ways, ways, ways), min_size=1, max_size=8))
def test_a_number_has_one_label_however_it_is_written(rows):
    names, write = [f'{i}.jpg' for i in range(len(rows))], lambda w: w[1].format(w[0])
    text = 'path;identity;clothes;camera\n' + ''.join(f'{n};{write(p)};{write(c)};{write(k)}\n' for n, (p, c, k) in zip(names, rows))
    got, plain = table(text, names), table('path;identity;clothes;camera\n' + ''.join(f'{n};{p[0]};{c[0]};{k[0]}\n' for n, (p, c, k) in zip(names, rows)), names)
    pd.testing.assert_frame_equal(got.samples, plain.samples)
    assert [[p, k] for p, k in got.samples.sort_values('path')[['identity', 'camera']].values.tolist()] == [[rows[int(i)][0][0], rows[int(i)][2][0]] for i in sorted(range(len(rows)), key=lambda i: names[i])]

def test_two_spellings_in_two_lines_are_no_contradiction():
    assert len(table('path;identity;split\na.jpg;3;query\na.jpg;3.0;gallery\na.jpg;03;query\n').samples) == 2
    complaint(lambda: table('path;identity;split\na.jpg;3;query\na.jpg;3.5;gallery\n'), 'line 3 contradicts')

def test_numbers_that_a_spreadsheet_rounded_are_refused():
    for k in 'identity', 'clothes', 'camera', 'tracklet':
        row = dict(identity='1', clothes='1', camera='1', tracklet='1') | {k: '1.23457E+14'}
        complaint(lambda: table('path,identity,clothes,camera,tracklet\na.jpg,' + ','.join(row.values()) + '\n'), 'line 2', k, "'1.23457E+14'", 'digits')
    assert len(table('path,identity\na.jpg,12e5\n').samples) == 1

def test_numbers_below_those_that_mean_something():
    for k, v in dict(identity='-3', clothes='-2', camera='-99', tracklet='-' + '9'*30).items():
        row = dict(identity='1', clothes='1', camera='1', tracklet='1') | {k: v}
        complaint(lambda: table('path,identity,clothes,camera,tracklet\na.jpg,' + ','.join(row.values()) + '\n'), 'line 2', k, v)
    ds = read_names(folder(), ['-3_1_c1_1.jpg', '1_-2_c1_1.jpg', '-2_1_c1_1.jpg', '1_1_c1_1.jpg'])
    assert sorted(ds.samples.identity) == [-2, 1] and ds.skipped == {'name breaks the grammar': ['-3_1_c1_1.jpg', '1_-2_c1_1.jpg']}

def test_one_huge_number_stops_no_set():
    huge = ['9'*20, '9'*5000, '1'*16]
    assert sorted(table('path,identity,camera\n' + ''.join(f'{n}.jpg,{v},{v}\n' for n, v in zip('abc', huge))).samples.identity) == [0, 1, 2]
    ds = read_names(folder(), [f'{huge[0]}_1_c1_1.jpg', f'7_{huge[0]}_c{huge[2]}_1.jpg', f'8_1_c1_{"9"*18}.jpg', f'8_1_c{"9"*40}_1.jpg'])
    assert len(ds.samples) == 3 and ds.samples.frame.max() == 10**18 - 1 and len(ds.skipped['name breaks the grammar']) == 1
    complaint(lambda: table(f'path,identity,frame\na.jpg,1,{"9"*5000}\n'), 'line 2', 'frame')
    assert len(complaint(lambda: table(f'path,identity,clothes\na.jpg,1,-{"9"*5000}\n'), 'line 2')) < 300

def test_a_pattern_and_names_in_two_forms():
    names = ['caf\u00e9/zo\u00eb/zoe\u0308_1.jpg', 'cafe\u0301/zo\u00eb/zo\u00eb_2.jpg', 'cafe/zo\u00eb/zo\u00eb_3.jpg']
    for pattern in 'caf\u00e9/{identity}/{identity}_{frame}.jpg', 'cafe\u0301/{identity}/{identity}_{frame}.jpg':
        ds = read_names(folder(pattern), names)
        assert sorted(ds.samples.frame) == [1, 2] and set(ds.samples.identity) == {0} and sorted(by_name(ds)) == sorted(names[:2])
    assert read_names(folder(missing=['zoe']), ['zoe_1_c1_1.jpg', 'anna_1_c1_1.jpg']).samples.identity.tolist() == [0]

# ---- look-alikes -------------------------------------------------------------------------------------------------------------

def test_labels_that_look_alike_are_reported_and_stay_two():
    ds = table('path,identity,clothes,camera\na.jpg,Anna,red coat,hall\nb.jpg,anna,redcoat,Hall\nc.jpg,anna,red  coat,door\nd.jpg,ben,red coat,door\n')
    assert ds.samples.identity.nunique() == 3 and ds.samples.clothes.nunique() == 4
    assert [n for n in ds.notes if 'alike' in n] == [
        "identity 'Anna', 'anna' look alike and count as different", "clothes 'red  coat', 'redcoat' look alike and count as different", "camera 'Hall', 'hall' look alike and count as different"]
    names = ['p1_1_c1_1.jpg', 'p01_1_c1_2.jpg', 'zo\u00eb_1_c1_1.jpg', 'zoe\u0308_1_c1_2.jpg', 'Ben_1_c1_1.jpg', 'BEN_1_c1_2.jpg']
    ds = read_names(folder(), names)
    assert ds.samples.identity.nunique() == 5 and "identity 'BEN', 'Ben' look alike and count as different, and so do 1 more" in ds.notes
    assert not any('alike' in n for n in read_names(folder(), ['7_1_c1_1.jpg', '007_2_c2_1.jpg', '8_1_c1_1.jpg']).notes)

@given(st.lists(st.text(st.sampled_from('aAbB0 1\u200b'), max_size=5), max_size=8))
def test_look_alikes_against_a_plain_loop(words):
    words = sorted({plain_word(w) for w in words})
    def look(w):
        w = ''.join(c for c in w.lower() if c not in ' \u200b')
        out = ''
        for i, c in enumerate(w):
            if c == '0' and i+1 < len(w) and w[i+1] in '01' and (not out or out[-1] not in '01'): continue
            out += c
        return out
    twins = {frozenset(v for v in words if look(v) == look(w)) for w in words}
    assert {frozenset(t) for t in lookalikes(words)} == {t for t in twins if len(t) > 1}

# ---- tables as they come -----------------------------------------------------------------------------------------------------

def test_line_ends_marks_and_quotes():
    want = labels(table('path,identity,clothes\na.jpg,anna,"red, long"\nb.jpg,ben,\n'), 'identity', 'clothes')
    for end in '\r', '\r\n', '\n\n', '\r\r': assert labels(table(f'path,identity,clothes{end}a.jpg,anna,"red, long"{end}b.jpg,ben,{end}'), 'identity', 'clothes') == want
    assert labels(table('\ufeffpath;identity;clothes\ra.jpg;anna;"red, long, thin, soft"\rb.jpg;ben;\r'), 'identity', 'clothes') == want

@pytest.mark.parametrize('text,words', [
    ('path,identity\n', ['0 images', 'l.csv']), ('path,identity,path\n', ['two columns']), ('path,identity\na.jpg,"anna\nb.jpg,ben\n', ['damaged']), ('path,identity\na.jpg,an\0na\n', ['NUL', 'UTF-8']),
    ('p\0a\0t\0h\0,\0', ['NUL', 'UTF-8']), ('path,identity\na.jpg,' + 'x'*10_000_000 + '\n', ['line 2', 'damaged']), ('x'*200_000 + '\na\n', ['l.csv', 'damaged'])])
def test_damaged_tables_are_two_short_lines(text, words): assert len(complaint(lambda: table(text), *words)) < 500

def test_blanks_take_time_in_proportion():
    def seconds(n):
        start = time.perf_counter()
        for text in f'a.jpg,{" "*n}x,{" "*n}\n', ' '*n + '\n', f'a.jpg,{"0"*n}x,{"0."*(n//2)}\n', f'a.jpg,1,{" 0"*(n//2)}x\n':
            plain_word.cache_clear()
            table(f'path,identity,clothes\n{text}b.jpg,ben,red\n')
        fits = grammar('{identity}_{clothes} - {camera}*_{frame}'.replace('}*', '}_*'))[0].fullmatch
        for name in ' '*n, '_'*n, 'a_'*(n//2), ' -'*(n//2), '1'*n: fits(name)
        return time.perf_counter() - start
    seconds(100)
    assert seconds(64_000) < 2                                                # quadratic: minutes

# ---- found + skipped = all files ---------------------------------------------------------------------------------------------

pieces = st.sampled_from(['anna_1_c1_1.jpg', 'ben_2_c1_1.JPG', 'NA_1_c1_1.jpg', 'cleo.jpg', '.hidden.jpg', 'Thumbs.db', 'notes.txt', 'x.jfif', '-5_1_c1_1.jpg', 'an\u00e9_1_c1_1.jpg'])
folders = st.sampled_from(['', '', 'day1/', 'day1/late/', '.git/', '@eaDir/', 'old/', 'a/b/c/'])

@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(folders, pieces).map(''.join), max_size=8, unique=True), st.sampled_from(['{identity}_{clothes}_c{camera}_{frame}', '*/{identity}_{clothes}_c{camera}_{frame}.jpg', 'csv']), st.randoms())
def test_every_file_is_found_or_counted(names, how, random):
    names = [*names, 'day1/zoe_9_c9_9.jpg', 'zoe_9_c8_9.jpg']
    listed = sorted({n for n in names if random.random() < .5 and not any(q[0] in '.@T' for q in n.split('/'))} | {'zoe_9_c8_9.jpg', 'gone.jpg'})
    text = 'path,identity\n' + ''.join(f'{n},{"-1" if "/NA_" in f"/{n}" else "anna"}\n' for n in listed)
    ds = read_names(folder(csv='l.csv') if how == 'csv' else folder(how), dict.fromkeys(names), {'l.csv': text} if how == 'csv' else {})
    found = set(ds.samples.path.str.removeprefix('/names/'))
    skipped = {p for ps in ds.skipped.values() for p in ps}
    covered = lambda n: n in skipped or any(n.startswith(f'{p}/') for p in skipped)
    junk = [n for n in set(names) if n not in found and not covered(n)]
    assert not any(covered(n) for n in found)
    assert all(os.path.basename(n).startswith('NA_') for n in junk) and (f'dropped {len(junk)} junk images (identity -1)' in ds.notes) == bool(junk)
    for reason, ps in ds.skipped.items(): assert any(reason in note and str(ps[0]) in note for note in ds.notes)
    if how == 'csv': assert 'gone.jpg' in skipped

def test_images_in_no_line_are_counted_and_links_in_circles_end(tmp_path):
    (tmp_path/'day'/'late').mkdir(parents=True)
    for n in 'a.jpg', 'b.jpg', 'day/c.jpg', 'day/late/d.png', 'day/notes.txt': (tmp_path/n).touch()
    (tmp_path/'day'/'up').symlink_to(tmp_path), (tmp_path/'again').symlink_to(tmp_path/'day')
    (tmp_path/'l.csv').write_text('path,identity\na.jpg,1\nagain/c.jpg,2\n')
    ds = load_dataset('folder', tmp_path, csv='l.csv', verbose=False)
    skipped = {p for ps in ds.skipped.values() for p in ps}
    assert len(ds.samples) == 2 and 'b.jpg' in ds.skipped['in no list'] and 'l.csv' not in skipped
    for n in 'b.jpg', 'day/c.jpg', 'day/late/d.png', 'day/notes.txt': assert any(f'{n}/'.startswith(f'{p}/') for p in skipped)   # by itself, or with its folder

# ---- tables made by programs -------------------------------------------------------------------------------------------------

BASE = dict(dataset='d', path='/d/a.jpg', identity=0, split='train')
def second(**kw): return make_table([BASE, BASE | dict(path='/d/b.jpg') | kw]).iloc[1]

def test_a_sample_table_takes_no_label_that_lost_something():
    for v in None, float('nan'), pd.NA, pd.NaT, np.float32('nan'):
        for k in 'clothes', 'camera', 'tracklet': assert second(**{k: v})[k] == -1
        complaint(lambda: second(identity=v), '/d/b.jpg', 'identity is missing', '1 of 2')
    complaint(lambda: second(clothes=1+2j), 'whole numbers', 'clothes')
    for v in True, np.True_, 'NA', 'nan', '', '3.0', '1_0', '\u0663', 3.5, b'3', [1], float('inf'), 2**63, 2**80, 1e300, 2.**53, '9'*5000, '9'*19:
        for k in 'identity', 'clothes', 'camera': assert len(complaint(lambda: second(**{k: v}), '/d/b.jpg', 'whole numbers', k)) < 300
    for v, n in ((3., 3), ('4', 4), (' 5 ', 5), (np.int8(6), 6), (np.uint64(7), 7), (2.**53-1, 2**53-1), (2**63-1, 2**63-1), (2**53+1, 2**53+1)):
        assert second(identity=v).identity == n
    t = pd.DataFrame([BASE, BASE | dict(path='/d/b.jpg', identity=1)])
    for kind in 'Int64', 'float64', 'category', 'int32', 'str': assert make_table(t.astype(dict(identity=kind))).identity.tolist() == [0, 1]
    complaint(lambda: ReIDDataset('d', '/d', make_table(t).astype(dict(clothes='Int64'))), 'int64', 'make_table')
    assert make_table([BASE | dict(role='query', modality='infrared'), BASE | dict(path='/d/b.jpg')]).iloc[1][['role', 'modality']].tolist() == ['', 'visible']
    complaint(lambda: second(dataset=None), 'dataset'), complaint(lambda: second(split=None), 'split'), complaint(lambda: second(path=None), 'path')
    complaint(lambda: make_table(pd.DataFrame([[0, 1]], columns=['identity', 'identity'])), 'identity')

def test_whoever_is_nobody_is_no_class():
    ds = ReIDDataset('d', '/d', make_table([BASE | dict(path=f'/d/{i}.jpg', identity=v, clothes=c) for i, (v, c) in enumerate([(0, 0), (1, -1), (-2, -1), (2, 1)])]))
    assert ds.identities == 3 and ds.summary().identities['train'] == 3
    rest, held = hold_out(ds, 1)
    assert rest.identities == 2 and -2 in set(rest.train.identity) and set(held.samples.identity) <= {0, 1, 2} and (held.samples.identity >= 0).all()
    assert relabel(ds.samples).equals(ds.samples)

def test_huge_labels_are_joined_or_refused_and_never_wrap():
    def toy(name, *people): return ReIDDataset(name, f'/{name}', make_table([dict(dataset=name, path=f'/{name}/{i}.jpg', identity=p, camera=p, clothes=p, split='test') for i, p in enumerate(people)]))
    both = join([toy('a', 2**62), toy('b', 2**61)])
    assert both.samples.identity.tolist() == [2**62, 2**62 + 1 + 2**61]
    complaint(lambda: join([toy('a', 2**62), toy('b', 2**62)]), 'a + b', 'large')
    complaint(lambda: join([toy('a', 2**63-1), toy('b', 0)]), 'large')

# ---- names of features -------------------------------------------------------------------------------------------------------

def named(*paths, root='/data'): return ReIDDataset('n', root, make_table([dict(dataset='n', path=f'{root}/{p}', identity=i, split='test') for i, p in enumerate(paths)]))

forms = st.sampled_from(['zo\u00eb', 'zoe\u0308', 'zoe', '\u00c5', 'A\u030a', '\u212b'])

@settings(deadline=None)
@given(st.lists(forms, min_size=1, unique=True), st.lists(forms, unique=True), st.data())
def test_names_find_their_image_or_none(paths, keys, data):
    ds = named(*(f'{p}/1.jpg' for p in paths))
    written = [data.draw(st.sampled_from([f'{k}/1.jpg', f'{k}\\1.jpg', f'/data/{k}/1.jpg', f'./{k}/1.jpg'])) for k in keys]
    nfc = lambda w: unicodedata.normalize('NFC', w)
    try: got = find_names(ds, written, ds.samples.path)
    except DataError as e:
        loose = [p for p in paths if p not in keys]
        assert 'more than one' in str(e) and any(sum(nfc(k) == nfc(p) for k in keys if k not in paths) > 1 or sum(nfc(q) == nfc(p) for q in loose) > 1 for p in loose)
        return
    for p, i in zip(paths, got):
        if p in keys: assert i == keys.index(p)                               # as it is written, always
        elif i is not None: assert nfc(keys[i]) == nfc(p) and keys[i] not in paths and sum(nfc(q) == nfc(p) for q in paths if q not in keys) == 1
        else: assert not [k for k in keys if nfc(k) == nfc(p) and k not in paths]
    used = [i for i in got if i is not None]
    assert len(used) == len(set(used))                                        # no feature for two images

def test_a_twin_in_training_keeps_its_name():
    ds = named('zo\u00eb.jpg', 'zoe\u0308.jpg')
    with pytest.raises(DataError, match='1 of the 1 images'): features_of(ds, {'zo\u00eb.jpg': [1., 0]}, ds.samples[1:])

def test_features_in_a_dict():
    ds = named('caf\u00e9/1.jpg', 'b.jpg')
    good = {'cafe\u0301\\1.jpg': [1., 2], '/data/b.jpg': np.array([3., 4])}
    assert features_of(ds, good, ds.samples).tolist() == [[1, 2], [3, 4]]
    for v, w in ((np.array([1, np.nan]), 'nan'), (torch.tensor([1, torch.inf]), 'infinity'), (np.array([1j, 0]), 'complex'), ('ab', 'no vector'), (None, 'no vector'), ([1., 2, 3], 'one length')):
        complaint(lambda: features_of(ds, good | {'/data/b.jpg': v}, ds.samples), w), complaint(lambda: ds.evaluate(good | {'/data/b.jpg': v}, 'standard'), w)
    assert '/data/b.jpg' in complaint(lambda: features_of(ds, good | {'/data/b.jpg': [np.nan, 1]}, ds.samples), '1 of 2')
    complaint(lambda: features_of(ds, good | {'b.jpg': [0., 0]}, ds.samples), 'same image twice')
    complaint(lambda: ds.evaluate(lambda t: np.full((len(t), 2), 1j), 'standard'), 'complex'), complaint(lambda: ds.evaluate(lambda t: 'x', 'standard'), 'no matrix')

# ---- npz files ---------------------------------------------------------------------------------------------------------------

def npy(shape, dtype='<f4', content=b'', version=1):
    head = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b'\x93NUMPY' + bytes([version, 0]) + struct.pack('<H' if version == 1 else '<I', len(head)+1) + head + b'\n' + content

def packed(path, features, names=None, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', compression) as z:
        z.writestr('paths.npy', names or npy((1,), '<U1', 'a'.encode('utf-32-le')))
        z.writestr('features.npy', features)

class Boom:
    def __reduce__(self): return os.mkdir, ('unpickled',)

def test_a_file_that_is_no_npz_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, good = tmp_path/'f\x1b.npz', dict(paths=np.array(['a', 'b']), features=np.eye(2))
    def write(**kw): np.savez(path, **good | kw)
    def lie(shape, **kw): packed(path, npy(shape, content=b'\0'*4), **kw)
    for make, *words in [
        (lambda: path.write_bytes(b''), 'is empty', 'numpy.savez'), (lambda: path.write_bytes(b'<html>sorry'), 'web page'), (lambda: path.write_bytes(b'version https://git-lfs.github.com/spec/v1'), 'LFS'),
        (lambda: path.write_bytes(b'PK\x03\x04 cut'), 'is damaged'), (lambda: np.save(path.open('wb'), np.eye(2)), 'is damaged'), (lambda: path.write_bytes(b'\x80\x04K\x01.'), 'is damaged'),
        (lambda: write(paths=np.array([Boom(), 1], object)), 'Python objects', '`paths`'), (lambda: write(features=np.array([[Boom()], [1]], object)), 'Python objects', '`features`'),
        (lambda: np.savez(path, names=np.eye(2)), 'no array `paths`', 'names.npy'), (lambda: write(paths=np.array('a')), '()'), (lambda: write(features=np.eye(3)), '(2,)', '(3, 3)'),
        (lambda: write(features=np.zeros((2, 3, 4))), '[N,D]'), (lambda: write(features=np.eye(2)*1j), 'complex'), (lambda: write(features=np.array([['a'], ['b']])), 'not real numbers'),
        (lambda: write(paths=np.arange(2)), 'not text'), (lambda: lie((10**15, 1)), 'cannot hold'), (lambda: lie((10**9, 10**9, 10**9)), 'cannot hold'),
        (lambda: packed(path, npy((1, 10**7), content=b'\0'*(4*10**7)), npy((1,), '<U99999999', b''), zipfile.ZIP_DEFLATED), 'cannot hold', '`paths`'), (lambda: lie((-1, 1)), 'f\\x1b.npz'),
        (lambda: packed(path, npy((1, 1), content=b'\0'*4, version=3)), 'f\\x1b.npz')]:
        make()
        text = complaint(lambda: read_npz(path), 'f\\x1b.npz', *words, lines=1, error=ValueError)
        assert 'allow_pickle' not in text and 'Traceback' not in text
    assert not (tmp_path/'unpickled').exists()
    complaint(lambda: read_npz(tmp_path), 'is a folder', lines=1, error=ValueError), complaint(lambda: read_npz(tmp_path/'none.npz'), 'none.npz', lines=1, error=FileNotFoundError)
    (tmp_path/'cut.npz').write_bytes((write() or path).read_bytes()[:-40]), complaint(lambda: read_npz(tmp_path/'cut.npz'), 'is damaged', lines=1, error=ValueError)
    whole = bytearray(path.read_bytes()); whole[whole.index(b'\x93NUMPY')+130] ^= 4; (tmp_path/'bit.npz').write_bytes(whole)
    complaint(lambda: read_npz(tmp_path/'bit.npz'), 'is damaged', lines=1, error=ValueError)

def test_sizes_that_the_zip_itself_declares_are_bounded(tmp_path):
    packed(path := tmp_path/'f.npz', npy((2**40, 1), content=b'\0'*8))
    raw, size = path.read_bytes(), struct.pack('<II', *[len(npy((2**40, 1))) + 8]*2)
    for at in (raw.index(size), raw.rindex(size)): raw = raw[:at] + struct.pack('<II', 2**32-2, 2**32-2) + raw[at+8:]   # both the entry and the list say 4 GB
    packed(path, npy((2**30 - 40, 1), content=b'\0'*8))
    path.write_bytes(raw)
    complaint(lambda: read_npz(path), 'f.npz', lines=1, error=ValueError)

@pytest.mark.parametrize('kind', ['f2', 'f4', 'f8', '>f4', 'i1', 'i8', 'u2', 'u8', 'g'])
@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_numbers_of_every_kind_come_back(tmp_path, kind, save):
    save(tmp_path/'f.npz', paths=np.array(['caf\u00e9'.encode(), b'b']), features=np.asfortranarray(np.arange(6).reshape(2, 3).astype(kind)))
    names, matrix = read_npz(tmp_path/'f.npz')
    assert names == ['caf\u00e9', 'b'] and matrix.double().tolist() == np.arange(6).reshape(2, 3).astype(kind).astype(float).tolist()

def test_features_of_a_file(tmp_path):
    ds, path = named('caf\u00e9/1.jpg', 'b.jpg', 'c.jpg'), tmp_path/'f.npz'
    def read(names, features=np.arange(6.).reshape(3, 2)):
        np.savez(path, paths=np.array(names), features=features)
        return read_features(path, ds)[1].tolist()
    assert read(['c.jpg', 'cafe\u0301\\1.jpg', '/data/b.jpg']) == [[2, 3], [4, 5], [0, 1]]
    for names, word in ((['c.jpg', 'x.jpg', 'b.jpg'], 'no feature for 1 of 3'), (['c.jpg', 'b.jpg', './b.jpg'], 'twice')):
        complaint(lambda: read(names), 'f.npz', word, lines=1, error=ValueError)
    complaint(lambda: read(['caf\u00e9/1.jpg', 'b.jpg', 'c.jpg'], np.array([[0, 1], [0, np.nan], [1, 1]])), 'f.npz', '1 of 3', '/data/b.jpg', lines=1, error=ValueError)

@pytest.mark.parametrize('word', ['-1.000', '-1,000', '-1.', '-1.0', '\u22121', '\u22121.0', '\uff0d1'])
def test_minus_one_is_unknown_with_any_zeros_and_any_sign(word):
    assert plain_word(word)=='-1'

def test_low_numbers_that_are_not_whole_are_refused():
    for word in '-1e0', '-2.5', '-1.5e3':
        ds = read_names(folder(), [f'{word}_1_c1_1.jpg', '1_1_c1_1.jpg'])
        assert ds.skipped=={'name breaks the grammar': [f'{word}_1_c1_1.jpg']}, word

def test_names_that_are_no_utf8_do_not_look_alike():
    a,b = (os.fsdecode(t.encode('gbk')) for t in '王李')
    assert lookalikes([a, b])==[] and not any('alike' in n for n in read_names(folder(), [f'{a}_1_c1_1.jpg', f'{b}_1_c1_1.jpg']).notes)

def test_an_npz_that_is_a_pipe_or_holds_truth_values_or_names_in_bytes(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    with pytest.raises(ValueError, match='no ordinary file'): read_npz(tmp_path/'pipe')
    np.savez(tmp_path/'b.npz', paths=np.array(['a']), features=np.ones((1,2), bool))
    with pytest.raises(ValueError, match='b.npz holds bool in'): read_npz(tmp_path/'b.npz')
    name = '王.jpg'.encode('gbk')
    np.savez(tmp_path/'g.npz', paths=np.array([name]), features=np.ones((1,2)))
    assert read_npz(tmp_path/'g.npz')[0]==[os.fsdecode(name)]

def test_messages_about_names_with_a_newline_have_two_lines(tmp_path):
    with pytest.raises(DataError) as e: read_names(folder(pattern='{identity}_x.jpg'), ['a\nb.jpg', 'c\nd.jpg'])
    assert len(str(e.value).splitlines())==2 and 'a\\nb.jpg' in str(e.value)

def test_links_that_lead_back_do_not_multiply_the_images(tmp_path):
    for i in range(3): os.symlink('.', tmp_path/f'back{i}')
    (tmp_path/'1_1_c1_1.jpg').write_bytes(b''); (tmp_path/'deep').mkdir(); (tmp_path/'deep'/'2_1_c1_1.jpg').write_bytes(b'')
    start = time.process_time()
    ds = load_dataset('folder', tmp_path, verbose=False, pattern='*/{identity}_{clothes}_c{camera}_{frame}.jpg')
    assert [os.path.relpath(p, tmp_path) for p in ds.samples.path]==['deep/2_1_c1_1.jpg']
    with pytest.raises(DataError): load_dataset('folder', tmp_path, verbose=False, pattern='*/*/*/*/*/*/*/*/{identity}_{clothes}_c{camera}_{frame}.jpg')
    assert time.process_time()-start < 3
