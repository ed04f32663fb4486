"Data cards: what they state, that it adds up, agrees with the code and is shown with a picture; and what happens to a card that is wrong"
import importlib.util,re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given,strategies as st
from PIL import Image

from ccreid.data import cards as cards_module
from ccreid.data.cards import COUNTED,RULED,card_folders,card_names,compare_cards,load_card,parse_card
from ccreid.data.layouts import DATASETS,all_layouts,find_layout
from ccreid.data.mannequins.layout_pictures import by_part,kind,layout_picture,pick_files,small_worlds,wrap
from ccreid.data.mannequins.plans import PLANS
from ccreid.data.samples import SPLITS,DataError
from ccreid.evaluation.protocols import protocols_for

ROOT = Path(__file__).parent.parent
CARDS = ROOT/'data_cards'
PARTS = ('train','val','query','gallery','test')
every_card = pytest.mark.parametrize('path', sorted(CARDS.glob('*.md')), ids=lambda p: p.stem)
SECTIONS = ['How it was made','How it lies on disk','Labels','Protocols','Known defects','Ethics and licence']

# ---- what the cards say

@every_card
def test_a_card_is_complete_and_agrees_with_the_code(path):
    card = load_card(path.stem)
    assert card.name == path.stem and card.layout in all_layouts() and set(card.modality) <= {'visible','infrared'}
    assert find_layout(card.layout).name == card.layout
    assert card.protocols == list(protocols_for(card.name))
    headings = re.findall(r'^## (.+)$', card.text, re.M)
    assert [h for h in headings if h in SECTIONS] == SECTIONS and headings[-1] == SECTIONS[-1]
    assert card.text.startswith('# ') and len(card.license_details) > 10 and len(card.source) > 20
    assert card.license in ('apache-2.0','cc-by-nc-sa-4.0','other','unknown')

@every_card
def test_every_count_has_a_source(path):
    card = load_card(path.stem)
    for counts in card.counts, *card.by_option.values():
        assert set(counts) <= {'total',*PARTS}
        for facts in counts.values():
            assert facts and set(facts) <= set(COUNTED)
            for value,source in facts.values(): assert value >= 0 and len(source) > 3
    assert (card.counts == {}) == (card.head['counts'] == 'computed') == (path.stem.split('-')[0] in ('mannequins','folder'))

LEFT_OVER = {'sysu_mm01': 1118} # pictures of people whom one camera saw: in the archive and in no part

@every_card
def test_the_parts_make_the_total(path):
    card = load_card(path.stem)
    for options in ({}, *(dict([o.split('=')]) for o in card.by_option)):
        images = [card.expected(s, 'images', **options) for s in PARTS if s in card.counts_for(**options)]
        total = card.expected('total', 'images', **options)
        if None in images or total is None:
            assert path.stem in ('ccvid','sysu_mm01') or not card.counts  # whose parts are not all known
            continue
        assert total - sum(images) == LEFT_OVER.get(path.stem, 0)
    for s,facts in card.counts.items():
        if 'infrared' in facts: assert facts['infrared'][0] <= facts['images'][0] and 'infrared' in card.modality
        assert facts.get('identities', (0,))[0] <= card.expected('total', 'identities')

def total(name, what='images'): return load_card(name).expected('total', what)
def parts(name, what, *splits): return [load_card(name).expected(s, what) for s in splits]

def test_figures_of_the_field():
    "Numbers as the papers and READMEs print them, written down a second time"
    assert total('prcc') == 17896+5002+3873+3543+3384 == 33698
    assert total('ltcc') == 9576+493+7050 == 17119
    assert total('vc_clothes') == 9449+1020+8591 == 19060
    assert total('ccvid', 'identities') == 75+151 == 226 and total('ccvid', 'tracklets') == 948+834+1074
    assert parts('last', 'images', 'query','gallery') == [10176,125353] and 10176+125353 == 135529 and total('last') == 71248+21379+135529
    assert total('deepchange') == 75083+4976+17865+17527+62956 == 178407 and total('deepchange', 'identities') == 450+150+521
    assert total('celeb_reid') == 20208+2972+11006 == 34186 and total('celeb_reid', 'identities') == 632+420
    assert parts('market1501', 'images', 'train','query','gallery') == [12936,3368,15913] and total('market1501', 'identities') == 751+750
    assert parts('dukemtmc', 'images', 'train','query','gallery') == [16522,2228,17661]
    assert parts('msmt17', 'images', 'train','query','gallery') == [32621,11659,82161] and total('msmt17', 'identities') == 1041+3060
    msmt = load_card('msmt17').counts_for(train='train')
    assert msmt['train']['images'][0] == 30248 and msmt['val']['images'][0] == 2373 and msmt['query'] == load_card('msmt17').counts['query']
    cuhk = load_card('cuhk03_np')
    assert parts('cuhk03_np', 'images', 'train','query','gallery') == [7365,1400,5332]
    assert [cuhk.expected(s, 'images', boxes='labeled') for s in ('train','query','gallery')] == [7368,1400,5328]
    assert [cuhk.expected(s, 'images', boxes='detected') for s in ('train','query','gallery')] == [7365,1400,5332]
    assert parts('sysu_mm01', 'images', 'train','query','gallery') == [22258+11909, 1883+1920, 1374+1565+1918+1918]
    assert total('sysu_mm01') == 30071+15792 and parts('sysu_mm01', 'infrared', 'train','query','gallery') == [11909,3803,0]
    assert parts('regdb', 'images', 'train','test') == [4120,4120] and total('regdb') == 412*20
    assert total('llcm') == 46767 == 16946+13975 + 8680+7166 and parts('llcm', 'images', 'train','test') == [30921,15846] and total('llcm', 'identities') == 713+351

def test_hearsay_is_named_as_such():
    "Numbers for which no source was found carry the word"
    for name,split,what in (('prcc','gallery','images'), ('ltcc','train','identities'), ('vc_clothes','query','images'), ('ccvid','query','tracklets'),
                            ('last','gallery','images'), ('deepchange','train','images'), ('sysu_mm01','train','images'), ('dukemtmc','gallery','identities')):
        assert load_card(name).counts[split][what][1].startswith('unverified'), (name, split, what)

def test_every_dataset_has_a_card(): assert set(DATASETS) < set(all_layouts()) == set(card_names()) == {p.stem for p in CARDS.glob('*.md')}

@every_card
def test_the_text_repeats_no_count(path):
    "A number of the head stands in the head alone"
    text = re.sub(r'```.*?```', '', load_card(path.stem).text, flags=re.S)
    counts = {v for _,facts in load_card(path.stem).counts.items() for v,_ in facts.values() if v>1000}
    assert not {f'{v:,}' for v in counts} & set(re.findall(r'[\d,]*\d', text))

@every_card
def test_rules_are_well_formed_and_about_the_data_set(path):
    card = load_card(path.stem)
    for r in card.rules:
        assert r['column'] in RULED and sum(k in r for k in ('between','among','one_identity')) == 1
        if 'among' in r and r['column']=='camera': assert all(0 <= c < card.expected('total', 'cameras') for c in r['among'])
        if 'between' in r and r['column']=='camera' and card.expected('total', 'cameras'): assert r['between'] == [0, card.expected('total', 'cameras')-1]
    if card.expected('total', 'cameras'): assert any(r['column']=='camera' for r in card.rules)
    if path.stem in ('last','celeb_reid'): assert card.expected('total', 'cameras') is None and 'no camera labels' in card.text

def test_the_withdrawn_one_says_so_first():
    card = load_card('dukemtmc')
    assert card.withdrawn and [n for n in card_names() if load_card(n).withdrawn] == ['dukemtmc']
    assert card.text.split('\n\n')[1].startswith('**This data set was withdrawn.**') and 'withdrawn' in card._repr_markdown_() and 'never' in card.license_details
    assert 'http' not in card.obtain and 'withdrawn' in card.head['description']

def test_ccvid_says_what_a_tracklet_is():
    text = ' '.join(load_card('ccvid').text.split())
    assert 'raining samples frames' in text and "a tracklet's feature is the mean over the features of its frames" in text

@every_card
def test_links_and_pictures_lead_somewhere(path):
    card = load_card(path.stem)
    for link in re.findall(r'\]\(([^)]+)\)', card.text):
        if not link.startswith('http'): assert (CARDS/link.split('#')[0]).is_file(), link
    assert re.findall(r'^!\[[^\]]+\]\(([^)]+)\)$', card.text, re.M) == [f'pictures/{path.stem}.png']

# ---- pictures

@every_card
def test_the_picture_is_small_and_is_what_the_code_draws(path):
    "A level or two may differ between machines, letters and people may not"
    file = CARDS/'pictures'/f'{path.stem}.png'
    assert file.stat().st_size <= 60_000
    with Image.open(file) as im: seen,dpi = np.asarray(im.convert('RGB')).astype(int),im.info.get('dpi')
    drawn = np.asarray(layout_picture(path.stem).convert('RGB')).astype(int)
    assert seen.shape == drawn.shape and np.abs(seen-drawn).mean() < 2, 'run tools/card_pictures.py'
    assert dpi and round(dpi[0]) == 96

def test_no_picture_is_left_over(): assert {p.stem for p in (CARDS/'pictures').iterdir()} == set(card_names())

def test_the_tool_writes_the_same_bytes_twice(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location('card_pictures', ROOT/'tools'/'card_pictures.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, 'PICTURES', tmp_path/'pictures')
    tool.main(['celeb_reid'])
    first = (tmp_path/'pictures'/'celeb_reid.png').read_bytes()
    tool.main(['celeb_reid'])
    assert (tmp_path/'pictures'/'celeb_reid.png').read_bytes() == first and len(list((tmp_path/'pictures').iterdir())) == 1
    monkeypatch.setattr(tool, 'LIMIT', 1000)
    with pytest.raises(SystemExit, match='more than 1,000'): tool.main(['celeb_reid'])

@pytest.mark.parametrize('name', sorted(PLANS))
def test_a_picture_shows_every_kind_of_folder(name):
    (world,) = small_worlds(name).values()
    plan = PLANS[name](world)
    picked,kinds = pick_files(plan),{kind(p) for p in plan}
    assert len(picked) == len(set(picked)) == min(8, len(plan)) and set(picked) <= set(plan)
    assert {kind(p) for p in picked} == kinds or len(kinds) > 8
    assert [by_part(kind(p)) for p in picked] == sorted(by_part(kind(p)) for p in picked)
    assert len({plan[p]['identity'] for p in picked}) > 2 and len({plan[p]['camera'] for p in picked}) > 1

@given(st.text('abc/_-, 1é', max_size=80), st.integers(1,30))
def test_captions_are_wrapped_without_loss(text, width):
    lines = wrap(text, width)
    assert ''.join(lines) == text and all(0 < len(l) <= width for l in lines)

@given(st.dictionaries(st.tuples(st.sampled_from(['train','query','cam1/01','x/y']), st.integers(0,30)), st.tuples(st.integers(0,3), st.integers(0,2), st.integers(0,2)), max_size=25), st.integers(1,9))
def test_picking_files(files, n):
    plan = {f'{d}/{i}.jpg': dict(identity=a, clothes=b, camera=c, frame=0) for (d,i),(a,b,c) in files.items()}
    picked = pick_files(plan, n)
    assert len(picked) == min(n, len(plan)) and len(set(picked)) == len(picked) and set(picked) <= set(plan)
    per_kind = [sum(kind(p)==k for p in picked) for k in {kind(p) for p in plan}]
    have = [sum(kind(p)==k for p in plan) for k in {kind(p) for p in plan}]
    if len(have) <= n: assert all(a >= min(h, n//len(have)) for a,h in zip(per_kind, have))    # no kind is left out for another

def test_unknown_layouts_have_no_picture():
    with pytest.raises(ValueError, match='no plan for the layout') as e: layout_picture('imagenet')
    assert len(str(e.value).splitlines()) == 1

# ---- pages of the site

@every_card
def test_a_card_becomes_a_page(docs, tmp_path, monkeypatch, path):
    "First what it is and its picture, then every fact, count and rule of the head, then the other sections"
    monkeypatch.setattr(docs, 'proc', tmp_path)
    docs.stage_card(path)
    card,page = load_card(path.stem),(tmp_path/'data_cards'/path.name).read_text()
    assert page.startswith('---\n') and page.index(f'(pictures/{path.stem}.png)') < page.index('| what the code reads |') < page.index('## How it was made')
    assert page.index('what the code reads') > page.index(card.text.split('\n\n')[1]) and '../nbs/' not in page
    for counts in card.counts, *card.by_option.values():
        for split,facts in counts.items():
            assert f'| **{split}** |' in page
            for what,(value,source) in facts.items(): assert f'| {what} | {value:,} | {source} |' in page
    for r in card.rules: assert f"- {r['rule']} (`{r['column']}`" in page
    assert f'| **license** | {card.license} |' in page and all(p in page for p in card.protocols)

def test_links_of_cards_and_of_outputs_lead_to_pages(docs, tmp_path, monkeypatch):
    monkeypatch.setattr(docs, 'proc', tmp_path)
    docs.stage_card(CARDS/'folder.md')
    assert '](/tutorials/own_images.ipynb)' in (tmp_path/'data_cards'/'folder.md').read_text()
    from fastcore.nbio import mk_cell
    cell = mk_cell('show()', 'code')
    cell['outputs'] = [dict(output_type='display_data', data={'text/markdown': ['| [PRCC](../../data_cards/prcc.md) | <https://a.b/c> |']}, metadata={})]
    docs.localize(cell, Path('explanations'))
    assert cell.outputs[0]['data']['text/markdown'] == '| [PRCC](/data_cards/prcc.md) | <https://a.b/c> |'

# ---- reading cards

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
    assert package.parent.name == 'ccreid' and (package.parent/'data'/'cards.py').is_file() and beside == package.parent.parent/'data_cards'

def change(*path, to): # A change of a card's head
    def f(text):
        _,head,body = text.split('---\n', 2)
        head = yaml.safe_load(head)
        at = head
        for k in path[:-1]: at = at[k]
        if to is None: del at[path[-1]]
        else: at[path[-1]] = to
        return f'---\n{yaml.safe_dump(head)}---\n{body}'
    return f

fact = dict(value=1, source='a paper')
BROKEN = [(lambda t: t[4:], 'begins with'), (lambda t: '', 'begins with'), (lambda t: '---\nname: x\n', 'begins with'), (lambda t: t.replace('tags: [', 'tags: [['), 'no valid YAML'), (lambda t: '---\n- a\n---\n', 'lacks'),
    (change('obtain', to=None), 'lacks obtain'), (change('rules', to=None), 'lacks rules'), (change('protocols', to='standard'), 'protocols must be a list'), (change('modality', to=[]), 'modality must be a list'),
    (change('counts','train','images','value', to='many'), 'train: images needs a whole value and a source'), (change('counts','train','images','value', to=1.5), 'whole value'),
    (change('counts','train','images','value', to=True), 'whole value'), (change('counts','train','images','source', to=None), 'source'), (change('counts','train','images','source', to=''), 'source'), (change('counts','train','images', to=17896), 'whole value'),
    (change('counts','train','pictures', to=fact), "'pictures' is none of images"), (change('counts','trian', to=dict(images=fact)), "'trian' must be one of"), (change('counts','train', to=5), 'must be one of'),
    (change('counts', to='many'), 'counts maps'), (change('counts', to=[1]), 'counts maps'), (change('counts_by_option', to=dict(labeled={})), 'option=value'), (change('counts_by_option', to=[1]), 'option=value'),
    (change('counts_by_option', to={'boxes=labeled': dict(train=dict(images=3))}), 'boxes=labeled: counts: train: images needs'),
    (change('rules', to='none'), 'rules must be a list'), (change('rules', to=['cameras']), 'rule 1 has no sentence'), (change('rules', 1, to=dict(column='camera', among=[1])), 'rule 2 has no sentence'),
    (change('rules', 0, 'column', to='kamera'), 'column must be one of'), (change('rules', 0, 'column', to=None), 'column must be one of'), (change('rules', 0, 'split', to='train'), 'split is a list'), (change('rules', 0, 'split', to=['trian']), 'split is a list'),
    (change('rules', 0, 'between', to=None), 'say one of'), (change('rules', 0, 'among', to=[1]), 'say one of'), (change('rules', 0, 'between', to=[2,0]), 'between takes'), (change('rules', 0, 'between', to=[0]), 'between takes'),
    (change('rules', 0, 'between', to=5), 'between takes'), (change('rules', 0, 'between', to=['a','b']), 'between takes'), (change('rules', 1, 'among', to=1), 'among takes'), (change('rules', 1, 'among', to=[]), 'among takes'),
    (change('rules', 3, 'one_identity', to=False), 'one_identity is true'), (change('rules', 0, 'splits', to=['train']), "unknown key 'splits'")]

@pytest.mark.parametrize('broken,words', BROKEN, ids=[w for _,w in BROKEN])
def test_broken_cards_are_refused_in_one_line(broken, words):
    text = broken((CARDS/'prcc.md').read_text())
    with pytest.raises(DataError, match=re.escape(words)) as e: parse_card(text, 'prcc.md')
    assert str(e.value).startswith('prcc.md: ') and len(str(e.value).splitlines()) == 1 and len(str(e.value)) < 300

@every_card
def test_a_card_survives_its_own_yaml(path):
    "The change that changes nothing gives the same card: what the test above refuses, it refuses for its change"
    card = load_card(path.stem)
    again = parse_card(change('name', to=card.name)(path.read_text()), path.name)
    assert again == card

def test_windows_line_ends(): assert parse_card((CARDS/'prcc.md').read_text().replace('\n', '\r\n')) == load_card('prcc')

def test_the_template_of_the_folder_card_is_a_card():
    "What the page tells a user to write is accepted"
    text = (CARDS/'folder.md').read_text()
    head = yaml.safe_load(re.search(r'```yaml\n(.*?)```', text, re.S)[1])
    for k,v in head.items(): text = change(k, to=v)(text)
    card = parse_card(text)
    assert card.expected('test','images') == 1200 and len(card.rules) == 2

# ---- options and comparison

def test_options():
    card = load_card('msmt17')
    assert card.counts_for() == card.counts == card.counts_for(train='train+val') == card.counts_for(unheard='of')
    other = card.counts_for(train='train')
    assert {s for s in other if other[s] != card.counts.get(s)} == {'train','val'} and set(card.counts) | {'val'} == set(other)
    assert len(card.table(train='train')) == sum(map(len, other.values())) and card.expected('val','images') is None
    assert load_card('regdb').expected('test', 'images', trial=7) == 4120

def test_comparison():
    table = compare_cards()
    assert len(table) == len(card_names()) and (table != '').all(axis=None)
    assert table.loc['PRCC'].tolist()[:5] == ['17,896 / 7,416 / 3,384','150 / 71 / 71','300 / 142 / 71',3,'visible'] and table.loc['PRCC','protocols'].count(',') == 3
    assert table.loc['RegDB','identities'] == '206 / 206' and table.loc['RegDB','clothes'] == '-' and table.loc['SYSU-MM01','cameras'] == 6
    assert table.loc['CCVID','images'] == '118,613 / ? / ?' and table.loc['DukeMTMC-reID','licence'] == 'withdrawn'
    assert table.loc['Mannequins','images'] == 'computed' and list(compare_cards(['ltcc','prcc']).index) == ['LTCC','PRCC'] and list(compare_cards(['ltcc']).index) == ['LTCC']
