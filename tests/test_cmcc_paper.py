"What the pages quote from CMCC's paper, against figures entered once from its text"
import json, math, re
from pathlib import Path
import pytest
from ccreid.data.cards import load_card
from ccreid.recipes import recipe
from ccreid.cmcc.benchmark import SHARE
from ccreid.cmcc.pia import PIA
import inspect

NBS = Path(__file__).parents[1]/'nbs'
pytestmark = pytest.mark.skipif(not NBS.is_dir(), reason='the notebooks are in the repository')

V2I_I2V = ('R1','R10','R20','mAP')*2
TABLE_1 = {
    'DDAG': (18.3,52.1,54.7,19.6, 16.8,49.7,54.6,17.2), 'CAJ': (21.5,53.4,56.9,20.7, 19.8,50.6,56.2,19.6), 'MPANet': (19.8,51.2,55.5,19.9, 18.4,51.1,57.8,19.0),
    'PMT': (18.6,50.8,57.4,19.2, 17.9,52.5,58.7,18.9), 'SAAI': (20.4,52.3,57.6,21.2, 19.1,50.2,58.6,19.2), 'DEEN': (21.7,53.2,59.6,22.6, 20.5,52.3,58.9,21.3),
    'MCLNet': (22.6,56.2,60.3,23.4, 21.4,56.4,59.4,21.7), 'HOS-Net': (23.1,57.5,59.6,24.3, 21.7,57.2,61.4,22.7), 'MMN': (21.8,54.2,56.1,21.3, 20.5,55.6,59.3,19.7),
    'IDKL': (22.4,56.0,60.3,21.7, 21.3,55.7,60.8,22.3), 'GI-ReID': (24.5,53.4,62.1,22.6, 21.3,49.7,57.8,23.1), 'CAL': (40.1,63.2,76.2,33.2, 35.6,58.2,65.3,37.1),
    'AIM': (41.2,62.4,75.6,34.8, 34.8,56.9,65.1,36.3), 'CaAug': (42.6,65.6,77.4,36.6, 38.2,57.4,66.4,38.2), 'PIA': (57.0,78.6,85.3,46.5, 50.4,65.3,69.6,50.3)}
TABLE_2 = { # rank-1 and mAP, V2I and I2V
    'CAL': (40.1,33.2,35.6,37.1), 'DBDL': (43.2,35.7,38.6,38.7), 'DBDL + orth': (45.6,37.6,40.5,39.1), 'DBDL + orth + intra': (46.9,39.5,42.7,41.6),
    'PIA': (57.0,46.5,50.4,50.3), 'PIA, not progressive': (42.8,35.4,42.6,40.7)}

def cells(page): return [''.join(c['source']) for c in json.loads((NBS/page).read_text(encoding='utf-8'))['cells']]
def text(page): return ' '.join(' '.join(cells(page)).split())

def test_the_papers_own_tables_agree():
    for name in 'CAL','PIA': assert (TABLE_1[name][0], TABLE_1[name][3], TABLE_1[name][4], TABLE_1[name][7])==TABLE_2[name]
    gain = lambda a, b: tuple(round(x-y, 1) for x,y in zip(TABLE_2[a], TABLE_2[b]))
    assert gain('DBDL', 'CAL')==(3.1, 2.5, 3.0, 1.6)                             # §5.3
    assert gain('PIA', 'DBDL + orth + intra')==(10.1, 7.0, 7.7, 8.7)             # §5.3

def test_the_page_has_the_papers_tables():
    space = {}
    cell, = [c for c in cells('cmcc/results.ipynb') if c.startswith('paper = {')]
    exec(cell.split('\npd.')[0], space)
    assert space['paper']==TABLE_2
    cell, = [c for c in cells('cmcc/results.ipynb') if c.startswith('quoted = ')]
    exec(cell.split('\nfigures')[0], space)
    lines = [l.split() for l in space['quoted'].splitlines()]
    assert {n: tuple(map(float, v)) for n,*v in lines}==TABLE_1

def test_figures_in_words():
    words = text('cmcc/results.ipynb')
    assert 'from a mean distance of 0.729 to 0.551, and negative ones go apart, from 1.02 to 1.102' in words # §5.4
    assert 'brings 17 points of rank-1 over CAL' in words and round(TABLE_2['PIA'][0]-TABLE_2['CAL'][0])==17
    assert '$3.1+2.4+1.3+10.1=16.9$' in words and '214 people, 18,375 images; 141 and 73' in words
    assert '(best at 55, 0 is `not progressive`), λ₁ (best at 0.5), λ₂ (1.5) and α (0.9)' in words
    lowest = TABLE_2['PIA, not progressive'][0]
    assert '42.8 over CAL\'s 40.1, but 2.8 below row 3' in words and round(TABLE_2['DBDL + orth'][0]-lowest, 1)==2.8

def test_what_stands_in_the_text_of_the_contradictions():
    words = text('cmcc/results.ipynb')
    for o in ('"All results involving BPL are obtained under the proposed progressive learning scheme", says §5.3', 'once calls the method FID', '"achieves only marginal improvement", says §5.3 of row 6',
              'λ₂ "controls the contribution of intra-modality prototype learning" in the text after Eq. 15'): assert o in words

def test_settings_that_the_paper_names():
    r,defaults = recipe('sysu_cmcc', 'pia'),{k: p.default for k,p in inspect.signature(PIA).parameters.items()}
    assert (r.size, r.lr, r.epochs, r.milestones, r.identities, r.images)==((384,192), 3.5e-4, 90, (30,60), 8, 8)      # §5.1
    assert (defaults['stage_two'], defaults['weight_orthogonality'], defaults['weight_inter'], defaults['momentum'], defaults['temperature'])==(55, .5, 1.5, .9, 1/16)

def test_the_card_has_the_papers_counts():
    card = load_card('sysu_cmcc')
    count = lambda s, what: card.expected(s, what)
    assert [(count(s, 'identities'), count(s, 'images')) for s in ('total','train','test')]==[(214,18375), (141,12141), (73,6234)]
    assert SHARE==141/214

def test_the_other_methods_in_words():
    words,first = text('cmcc/results.ipynb'),{n: v[0] for n,v in TABLE_1.items()}
    across = [v for n,v in first.items() if n not in ('GI-ReID','CAL','AIM','CaAug','PIA')]
    assert len(across)==10 and (round(min(across)), round(max(across)))==(18,23) and 'ten methods across modalities have 18 to 23 % of rank-1' in words
    clothes = [first[n] for n in ('CAL','AIM','CaAug')]
    assert (math.floor(min(clothes)), round(max(clothes)))==(40,43) and 'CAL, AIM and CaAug, made for changing clothes in one modality, 40 to 43 %' in words
    assert f"GI-ReID, made for these too, has {first['GI-ReID']} %" in words

def test_the_schedule_of_the_miniature_is_the_papers():
    "36 epochs are 90 in steps of 2.5: no epoch of the paper is rounded, and Stage II has the paper's share of the rate"
    share = lambda n, start, drops: sum(10.**-sum(e>=d for d in drops) for e in range(start, n))/sum(10.**-sum(e>=d for d in drops) for e in range(n))
    r = recipe('mannequins-cmcc', 'pia')
    assert (r.start_epoch*2.5, tuple(2.5*m for m in r.milestones), r.epochs*2.5)==(55, (30,60), 90)
    assert share(r.epochs, r.start_epoch, r.milestones)==pytest.approx(share(90, 55, (30,60)))
