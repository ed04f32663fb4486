"What the pages quote from DLCR's paper, against figures entered once from its text"
import json, re
from pathlib import Path
import pytest
from ccreid.dlcr.additions import PAPER_EPOCHS, PAPER_EVERY, REFINE
from ccreid.dlcr.chain import IMAGES
from ccreid.dlcr.generating import FOR_QUERIES
from ccreid.dlcr.miniature import K, L
from ccreid.dlcr.tiles import TILES
from ccreid.recipes import recipe

NBS = Path(__file__).parents[1]/'nbs'
pytestmark = pytest.mark.skipif(not NBS.is_dir(), reason='the notebooks are in the repository')

TABLE_1 = {'PRCC': (17_896, 178_960), 'LTCC': (9_576, 95_760), 'CCVID': (118_613, 1_186_130), 'VC-Clothes': (9_449, 94_490),
           'LaST': (71_248, 712_480), 'Total': (None, 2_267_820)}
TABLE_2 = {('PRCC','CAL'): (55.2, 55.8), ('PRCC','ours'): (66.5, 63.0, 11.3, 7.2), ('CCVID','CAL'): (81.7, 79.6),
           ('CCVID','ours'): (88.0, 84.5, 6.3, 4.9), ('VC-Clothes','CAL'): (85.8, 79.8), ('VC-Clothes','3DSL'): (79.9, 81.2),
           ('VC-Clothes','ours'): (87.1, 81.1, 1.3, 1.3), ('LTCC','CAL'): (39.5, 18.0), ('LTCC','CCFA'): (45.3, 22.1),
           ('LTCC','ours'): (41.3, 19.6, 1.8, 1.6)}
TABLE_A1 = {'CAL': (55.2, 55.8), 'standard diffusion': (55.7, 55.9, .5, .1), 'made-up clothes': (60.7, 58.9, 5.5, 3.1),
            'descriptions': (62.9, 60.9, 7.7, 5.1), 'progressive': (65.0, 62.4, 9.8, 6.6), 'refined': (66.5, 63.0, 11.3, 7.2)}
TABLE_A3 = {'random': (60.7, 58.9), 'LLaVA': (61.6, 60.1, .9, 1.2), 'both': (62.9, 60.9, 2.2, 2.0)}
TABLE_A4 = {'LLaVA': (62.9, 60.9), 'InstructBLIP': (62.9, 61.3)}
TABLE_A5 = {'without': (691, 64.0), 'with': (65, 65.0)} # seconds an epoch, top-1
TABLE_A6 = {'masks': (61.6, 1), 'descriptions': (4.0, 56), 'training': (.89, 4), 'queries': (3.33, 2.6), 'refinement': (642.6, 1)}

def cells(page): return [''.join(c['source']) for c in json.loads((NBS/page).read_text(encoding='utf-8'))['cells']]
def text(page): return ' '.join(' '.join(cells(page)).split())
def gain(table, a, b, k=0): return round(table[a][k]-table[b][k], 1)

@pytest.mark.parametrize('table,base', [(TABLE_A1,'CAL'), (TABLE_A3,'random')])
def test_levels_and_differences_agree_within_rounding(table, base):
    for name,(r1,mAP,*printed) in table.items():
        for level,start,plus in zip((r1, mAP), table[base], printed): assert abs(level-start-plus)<.051, name

def test_tables_of_the_paper_agree_with_each_other():
    for data in ('PRCC','CCVID','VC-Clothes','LTCC'):
        ours,base = TABLE_2[data,'ours'],TABLE_2[data,'CAL']
        assert [round(ours[k]-base[k], 1) for k in (0,1)]==list(ours[2:])
    assert all(made==10*real for name,(real,made) in TABLE_1.items() if real) and sum(m for n,(_,m) in TABLE_1.items() if n!='Total')==TABLE_1['Total'][1]
    assert TABLE_A1['refined'][:2]==TABLE_2['PRCC','ours'][:2] and TABLE_A3['both'][:2]==TABLE_A1['descriptions'][:2]==TABLE_A4['LLaVA']

def test_the_page_has_the_papers_table():
    cell, = [c for c in cells('dlcr/results.ipynb') if c.startswith('paper = {')]
    space = {}
    exec(cell, space)
    assert space['paper']=={name: row[:2] for name,row in TABLE_A1.items()}

def test_contradictions_are_quoted_as_they_stand():
    words = text('dlcr/results.ipynb')
    said = words[words.index('**Where the paper contradicts itself.**'):words.index('## Summary')]
    for sentence,expected in {
        'Without progressive learning': [TABLE_A5['without'][1], TABLE_A1['descriptions'][0]],
        'caption has cumulative gains': [5.5, TABLE_A1['made-up clothes'][2], TABLE_A1['made-up clothes'][3]],
        "but 3DSL's mAP": [TABLE_2['VC-Clothes','3DSL'][1], TABLE_2['VC-Clothes','ours'][1]],
        'The throughput of query inpainting': [TABLE_A6['queries'][0], TABLE_A6['training'][0], round(TABLE_A6['queries'][0]/TABLE_A6['training'][0], 1)]}.items():
        part = re.split(r'\. (?=[A-Z"])', said[said.index(sentence):])[0]
        found = re.findall(r'(?<![§\d.A])\d+\.\d+', re.sub(r'§[\d.]+\d', '', part))
        assert [float(v) for v in found]==expected, (sentence, part)
    assert "less than 2 GB in §3.2.2" in said and f"less than {TABLE_A6['refinement'][1]} GB in Table A6" in said
    assert '48GB' in said and f"{TABLE_A6['descriptions'][1]} GB" in said
    without = TABLE_1['Total'][1]-TABLE_1['LTCC'][1]
    assert f"{TABLE_1['Total'][1]:,}" in said and f'{without:,}' in said and f'{without:,}' in text('dlcr/tiles.ipynb')

def test_settings_that_the_paper_names():
    "Section 4 and 16"
    r,o = recipe('prcc', 'dlcr'),{k: v.default for k,v in REFINE.options.items()}
    assert (K, L, TILES)==(10, 6, 10) and (o['variants'], o['top_m'])==(6, 5) and (PAPER_EVERY, PAPER_EPOCHS)==(5, 60)
    assert r.identities*r.images==32 and r.size==(384,192) and r.epochs==60 and r.pairs_parts==4 and r.pairs_rule=='paper'
    defaults = lambda kind: {k: v.default for k,v in IMAGES[kind].options.items()}
    assert defaults('dlcr')['variants']==10 and defaults('dlcr-queries')['variants']==6 and defaults('dlcr')['mask']=='paper'
    assert FOR_QUERIES==dict(size='384x128', steps='10') # half of 768x256

def test_figures_in_words():
    "Where pages quote a table in their prose"
    page = text('dlcr/results.ipynb')
    assert f"({'Table A5'}: {TABLE_A5['without'][0]} s against {TABLE_A5['with'][0]} s)" in page
    assert '50 steps at 768×256' in page and '17,896' in text('generation/describers.ipynb')
    assert 'Table A4' in text('generation/describers.ipynb') and '62.9 % rank-1 both, 60.9 and 61.3 % mAP' in text('generation/describers.ipynb')
    assert f"{TABLE_A3['LLaVA'][0]} and {TABLE_A3['both'][0]}" in text('generation/summarizers.ipynb')
    assert gain(TABLE_A3, 'both', 'LLaVA')==1.3
    hours = text('dlcr/generating.ipynb')
    assert f"describes {TABLE_A6['descriptions'][0]:.0f} images a second, paints {TABLE_A6['training'][0]} training images and {TABLE_A6['queries'][0]} query variants (Table A6)" in hours
    assert f"{TABLE_A6['refinement'][0]} queries a second on an A100 (Table A6)" in text('dlcr/refinement.ipynb')
    assert f"{TABLE_A1['made-up clothes'][0]} % rank-1 on PRCC, {TABLE_A1['descriptions'][0]} with descriptions" in text('generation/wardrobe.ipynb')
    assert f"the paper's {TABLE_A1['refined'][1]} beside {TABLE_A1['refined'][0]} is below it" in text('dlcr/refinement.ipynb') and gain(TABLE_A1, 'refined', 'progressive')==1.5 and gain(TABLE_A1, 'refined', 'progressive', 1)==.6

QUOTES = { # Words of the paper, entered once from its text
    'to occasionally respond with missing or incorrect clothing items': 'generation/summarizers.ipynb',
    'missing or incorrect clothing items': 'generation/lapses.ipynb',
    'the information of the clothing items for the upper and lower body, as well as the footwear': 'generation/questions.ipynb',
    'summarize them into a single clothing description': 'generation/questions.ipynb',
    'random sets of clothing items for each specific body part (top, bottom, footwear)': 'generation/wardrobe.ipynb',
    'keep the most frequently occurring descriptions across the images of $c$': 'generation/describing.ipynb',
    'original batch size': 'dlcr/chain.ipynb', 'four distinct, equal partitions': 'dlcr/progressive.ipynb',
    'divide the image resolution by half': 'dlcr/generating.ipynb'}

@pytest.mark.parametrize('quote,page', QUOTES.items())
def test_quotes_are_the_papers_words(quote, page): assert re.search(r'["\u201c][^"\u201d]*'+re.escape(quote), text(page)), page
