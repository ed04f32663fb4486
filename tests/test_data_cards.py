"Cards, and the check of a data set on disk against its card or manifest"
import json,os,re,shutil,subprocess,sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ccreid.data import cards as cards_module
from ccreid.data.cards import card_folders,card_names,compare_cards,load_card,parse_card
from ccreid.data.checks import PARTS,check,compare,inspect_images,manifest_counts
from ccreid.data.layouts import DATASETS,find_layout,load_dataset
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import DataError
from ccreid.evaluation.protocols import protocols_for

CARDS = Path(__file__).parent.parent/'data_cards'

@pytest.mark.parametrize('path', sorted(CARDS.glob('*.md')), ids=lambda p: p.stem)
def test_a_card_is_complete_and_agrees_with_the_code(path):
    card = load_card(path.stem)
    assert card.name == path.stem and card.layout in DATASETS and set(card.modality) <= {'visible','infrared'}
    assert set(card.protocols) <= set(protocols_for(card.layout if card.layout in ('prcc','ltcc') else card.name))
    assert all(w in ('identities','images','clothes','cameras') for c in card.counts.values() for w in c)
    assert set(card.counts) <= {'total',*PARTS} and (card.table().source.str.len() > 3).all()
    for heading in ('Ethics',) if card.name in ('prcc','ltcc','mannequins') else (): assert f'## {heading}' in card.text
    for link in re.findall(r'\]\(([^)]+\.md)\)', card.text): assert (CARDS/link).is_file()
    total = [card.expected(s, 'images') for s in PARTS]
    if card.counts: assert sum(t for t in total if t) == card.expected('total', 'images')

def test_every_dataset_has_a_card(): assert set(DATASETS) <= set(card_names()) == {p.stem for p in CARDS.glob('*.md')}

def test_package_data_comes_first(tmp_path, monkeypatch):
    inside,beside = tmp_path/'inside',tmp_path/'beside'
    inside.mkdir(); beside.mkdir()
    text = (CARDS/'prcc.md').read_text()
    (inside/'prcc.md').write_text(text.replace('pretty_name: PRCC', 'pretty_name: inside')); (beside/'prcc.md').write_text(text); (beside/'ltcc.md').write_text((CARDS/'ltcc.md').read_text())
    monkeypatch.setattr(cards_module, 'card_folders', lambda: [inside, beside, tmp_path/'absent'])
    assert load_card('PRCC').pretty_name == 'inside' and load_card('ltcc').pretty_name == 'LTCC' and card_names() == ['ltcc','prcc']
    with pytest.raises(DataError, match='there is no card'): load_card('mannequins')

def test_card_folders_are_package_then_repository():
    package,beside = card_folders()
    assert package.parent.name == 'ccreid' and (package.parent/'data'/'cards.py').is_file() and beside == CARDS.resolve()

@pytest.mark.parametrize('broken,words', [(lambda t: t[4:], 'begins with'), (lambda t: t.replace('obtain:', 'get:'), 'lacks obtain'),
    (lambda t: t.replace('value: 17896', 'value: many'), 'whole value and a source'), (lambda t: t.replace('{value: 17896,', '{'), 'whole value'),
    (lambda t: t.replace(', source: unverified', '', 1), 'source'), (lambda t: t.replace('tags: [', 'tags: [['), 'no valid YAML'), (lambda t: '---\n- a\n---\n', 'lacks')])
def test_broken_cards_are_refused(broken, words):
    with pytest.raises(DataError, match=words) as e: parse_card(broken((CARDS/'prcc.md').read_text()), 'prcc.md')
    assert 'prcc.md' in str(e.value) and len(str(e.value).splitlines()) <= 2

def test_windows_line_ends(): assert parse_card((CARDS/'prcc.md').read_text().replace('\n', '\r\n')).expected('train','images') == 17896

# ---- check

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
    'text':      (lambda w: files(w, 'val/*/*.jpg')[0].write_text('hello'), lambda r: list(r.unreadable.values())==['its content is not an image']),
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
    for text,words in ('{', 'cannot be read'), ('{}', 'lists no file'), ('{"images": {"../../etc/passwd": []}}', 'lists no file'):
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
    assert one == many and list(one[0]) == [paths[3]] and seen == [(i+1, len(paths)) for i in range(len(paths))]
