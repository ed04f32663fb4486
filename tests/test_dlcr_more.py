"DLCR's later rows: each can be trained for a step or two; their images; the plan; and what was declared stays as it was"
import hashlib, json
from dataclasses import replace
import pytest
from ccreid.data.mannequins import MannequinWorld
from ccreid.dlcr import plan
from ccreid.dlcr.chain import FULL, ROWS
from ccreid.evaluations import evaluations_of
from ccreid.experiments import Sets, run_row
from ccreid.generation.expansion import expand
from ccreid.generation.lapses import NO_LAPSES, MannequinDescriber
import ccreid.dlcr.miniature as miniature
import ccreid.dlcr.variations as variations
from ccreid.models.small_diffusion import new_small_diffusion

PARTS = 'methods','words','painters','variants','layouts','labels','gate'
LATER = [row for row in ROWS if row.part in PARTS]
NAMES = {row.name: row for row in ROWS}

@pytest.fixture(scope='module')
def places(tmp_path_factory):
    "Small worlds in two layouts, with sets of images that are made when they are asked for"
    root = tmp_path_factory.mktemp('sets')
    def world(layout, images=1): # one image of each clothes id is trained on
        d = MannequinWorld(identities=(11,0,3), images=images, size=(96,48), seed=7).write(root/layout, layout=layout)
        first = d.train.groupby('clothes').head(1)
        return type(d)(d.name, d.root, d.samples[(d.samples.split!='train')|d.samples.path.isin(first.path)].reset_index(drop=True), d._protocols)
    return {'mannequins': Sets(world('prcc'), root, 'mannequins'), 'mannequins-ltcc': Sets(world('ltcc', 2), root, 'mannequins-ltcc')}

@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    "Three variants in the place of ten; a diffusion model with random weights and a step; a discriminator of one epoch"
    for module in (variations, miniature): monkeypatch.setattr(module, 'K', MANY)
    monkeypatch.setattr(miniature, 'L', 1)
    monkeypatch.setattr(miniature, 'MannequinDescriber', lambda: MannequinDescriber(NO_LAPSES)) # with 20 variants no clothes may be missing
    monkeypatch.setattr(variations, 'small_inpainter', lambda: QUICK)
    monkeypatch.setattr(variations, 'EPOCHS', 1)
MANY,QUICK = 3,variations.small_inpainter(new_small_diffusion(), steps=1, batch=64)

def test_parts_come_in_the_order_of_the_issue_with_two_seeds_each():
    assert list(dict.fromkeys(row.part for row in LATER))==list(PARTS) and all(row.seeds==(0,1) for row in LATER)
    assert ROWS.index(LATER[0])==17 and ROWS[17:]==LATER
    assert all(row.base in NAMES for row in LATER) and {row.data for row in LATER}=={'mannequins','mannequins-ltcc'}
    assert {NAMES[n].tests for n in NAMES if NAMES[n].part=='layouts'}=={('mannequins',)}

def test_what_was_declared_stays_as_it_was():
    "Name, recipe, base and evaluation of the later rows in one digest: it changes when one of them does"
    told = [[r.name, r.recipe.hash, r.base, r.part, r.data, r.evaluation, sorted(r.given.items())] for r in LATER]
    assert len(told)==DECLARED[0] and hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]==DECLARED[1]
DECLARED = 35, '46f37c04cc4f'

METHODS = sorted({r.method for r in LATER if r.trained is None and r.data=='mannequins'})
TRIED = [next(r for r in LATER if r.trained is None and r.method==m and r.data=='mannequins') for m in METHODS]
KINDS = sorted({r.changes['generated'] for r in LATER if 'generated' in r.changes}-{'dlcr'})

@pytest.mark.parametrize('row', TRIED, ids=METHODS)
def test_every_method_takes_a_step_and_is_evaluated(places, row):
    found = evaluations_of(ROWS, row, places['mannequins'][''], places['mannequins'].folder_of)
    r = run_row(replace(row.recipe, epochs=1), places['mannequins'], 0, 'cpu', evaluations=found)
    assert r['steps']>0 and 'clothes-changing' in r['protocols']
    assert r['images_seen']==r['steps']*32*(2 if row.changes.get('generated') and row.changes.get('pairs_mode')!='concatenated' else 1)

def test_faces_are_an_evaluation_of_cals_networks(places):
    faces = [r for r in LATER if r.evaluation=='geff']
    assert [r.trained.name for r in faces]==['CAL','CAL + descriptions, concatenated',FULL.name]
    found = {k: v for k,v in evaluations_of(ROWS, ROWS[0], places['mannequins'][''], places['mannequins'].folder_of).items() if k=='CAL with faces'}
    r = run_row(replace(ROWS[0].recipe, epochs=1), places['mannequins'], 0, 'cpu', evaluations=found)
    assert 'joined the gallery' in r['evaluated']['CAL with faces']['said'] and 'CAL with faces clothes-changing' in r['protocols']

def test_ltccs_layout_is_evaluated_there_and_on_the_other(places):
    row = next(r for r in LATER if r.part=='layouts' and r.method=='dlcr' and r.trained is None)
    found = evaluations_of(ROWS, row, places['mannequins-ltcc'][''], places['mannequins-ltcc'].folder_of)
    r = run_row(replace(row.recipe, epochs=1), places['mannequins-ltcc'], 0, 'cpu', tests={'mannequins': places['mannequins']['']}, evaluations=found)
    assert {'clothes-changing','standard','mannequins clothes-changing',f'{row.name}, refined clothes-changing'}<=r['protocols'].keys()

# ---- the plan

def by_hand(images, queries, rates, k, l):
    "Seconds, one image after the other"
    total = dict.fromkeys(rates, 0.)
    for _ in range(images):
        total['masks'] += 1/rates['masks']; total['descriptions'] += 1/rates['descriptions']
        for _ in range(k): total['painting'] += 1/rates['painting']
    for _ in range(queries):
        total['masks'] += 1/rates['masks']; total['refinement'] += 1/rates['refinement']
        for _ in range(l): total['queries'] += 1/rates['queries']
    return total

def test_seconds_are_those_of_a_loop_over_the_images():
    for images,queries,k,l in ((0,0,10,6), (7,0,10,6), (5,3,2,1)):
        assert plan.seconds_of(images, queries, None, k, l)==pytest.approx(by_hand(images, queries, plan.RATES, k, l))

def test_table_1_is_summed_as_the_paper_prints_it_and_as_it_publishes():
    t = plan.plan_table(plan.TRAINING)
    assert t.generated['all']==2_267_820 and t.generated.drop(['all','LTCC']).sum()==2_172_060 and t.images['all']==226_782
    assert t.hours['all']==pytest.approx(sum(t.hours.drop('all'))) and t.days['all']==pytest.approx(t.hours['all']/24)
    assert plan.plan_table(plan.TRAINING, gpus=8).days['all']==pytest.approx(t.days['all']/8)
    assert 700<t.painting['all']<715 and 'queries' not in t

@pytest.mark.parametrize('hours,days,n', [(0,1,1), (24,1,1), (24.01,1,2), (240,2,5), (1,.01,5)])
def test_gpus_for_a_time(hours, days, n):
    assert plan.gpus_for(hours, days)==n
    assert hours/24/n<=days+1e-6 and (n==1 or hours/24/(n-1)>days)

@pytest.mark.parametrize('rates', [dict(painting=-1), dict(painting=float('nan')), dict(painting=float('inf')), dict(masks=0), dict(walls=1)])
def test_rates_that_are_none(rates):
    with pytest.raises(ValueError): plan.seconds_of(1, rates=rates)

def test_shards_of_the_plan_are_those_of_the_job(tmp_path):
    dataset = MannequinWorld(identities=(2,0,2), images=1, size=(32,16), seed=3).write(tmp_path/'w', layout='prcc')
    turn = lambda images,*_: [im.rotate(180) for im in images]
    for n in (1,5):
        made = [expand(dataset.train, turn, tmp_path/f'job{n}', 2, shard=(i,n), progress=False).attrs['expansion']['made'] for i in range(n)]
        lines = plan.shard_lines('prcc', len(dataset.train), n, rate=2., variants=2)
        assert made==lines.images.tolist() and sum(made)==2*len(dataset.train) and lines.hours.tolist()==[m/2/3600 for m in made]
    from ccreid.options import parser
    for i,line in enumerate(lines.command):
        words = line.split()[1:]
        options = parser(words).parse_args(words)
        assert (options.kind, options.shard, options.variants)==('dlcr', (i,5), '2')

# ---- what the pages quote

TABLE_A2 = {'PCB': (41.8, 53.3, 56.5), 'MGN': (33.8, 62.5, 64.8), 'HPM': (40.4, 56.0, 57.5), 'CAL': (55.2, 62.9, 66.5),
            'AIM': (55.7, 60.2, 61.9), 'GEFF': (83.6, 84.6, 85.8)} # top-1: alone, stage 1, both stages
TABLE_4 = {'PRCC': (37.5, 45.5), 'LaST': (20.7, 25.0), 'VC-Clothes': (5.3, 11.8)} # top-1: CAL, CAL + DLCR

def test_what_pages_quote_of_the_tables():
    from test_dlcr_paper import TABLE_1, TABLE_2, TABLE_A1, TABLE_A3, TABLE_A4, TABLE_A5, TABLE_A6, text
    assert plan.TRAINING=={k: n for k,(n,_) in TABLE_1.items() if n} and (plan.K, plan.L)==(10, 6)
    names = dict(masks='masks', descriptions='descriptions', painting='training', queries='queries', refinement='refinement')
    assert (plan.RATES, plan.MEMORY)==({k: TABLE_A6[o][0] for k,o in names.items()}, {k: TABLE_A6[o][1] for k,o in names.items()})
    page = text('dlcr/chain.ipynb')
    gains = {k: round(b-a, 1) for k,(a,b,_) in TABLE_A2.items()}
    standard = [gains[k] for k in ('PCB','MGN','HPM')]
    assert f'(+{min(standard)} to +{max(standard)} rank-1), least for GEFF (+{gains["GEFF"]})' in page and min(gains.values())==gains['GEFF']
    assert all(a<b<c for a,b,c in TABLE_A2.values())
    assert f"({TABLE_A3['LLaVA'][0]} against {TABLE_A3['both'][0]} rank-1)" in page and f"({TABLE_A4['LLaVA'][0]} both)" in page and TABLE_A4['InstructBLIP'][0]==TABLE_A4['LLaVA'][0]
    far = [round(b-a, 1) for a,b in TABLE_4.values()]
    assert f"better on LTCC (+{TABLE_2['LTCC','ours'][2]} rank-1), and by +{min(far)} to +{max(far)} rank-1" in page
    page = text('dlcr/plan.ipynb')
    with_,without = TABLE_A5['with'][0],TABLE_A5['without'][0]
    assert f'{without} with all generated images concatenated, {with_} with pairs' in page and f"The paper's {without/with_:.1f} times" in page
    total = TABLE_1['Total'][1]
    assert f'{total:,}, counts LTCC' in page and f"{total-TABLE_1['LTCC'][1]:,} are published" in page
    assert TABLE_A1['descriptions'][0]==TABLE_A2['CAL'][1]
