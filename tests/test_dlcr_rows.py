"DLCR's rows: what they train on, the steps they take, their recipes; and that what was declared before they ran stays as it was"
from dataclasses import replace
import numpy as np, pytest
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import DataError
from ccreid.dlcr.chain import FULL, chain
from ccreid.dlcr.miniature import K, L, SEED, account, described, plan
from ccreid.dlcr.targets import Targets
from ccreid.evaluations import evaluations_of
from ccreid.experiments import Sets, run, run_row
from ccreid.generation.stand_ins import outfit_of
from ccreid.generation.wardrobe import random_clothes
from ccreid.recipes import callbacks_of, recipe
from ccreid.registry import CHAINS, SEEDS, rows_of

HASHES = { # Of the rows that ran
    'CAL': '3351a2bf73', 'CAL + standard diffusion, concatenated': '8fc4ac8e46', 'CAL + made-up clothes, concatenated': '6181497597',
    'CAL + descriptions, concatenated': '17ec8e932a', 'CAL + standard diffusion, all K': '3391ac2c9a', 'CAL + made-up clothes, all K': '271ed8d5d6',
    'CAL + descriptions, all K': 'ab01728808', 'CAL + descriptions, progressive': '9730eb1bcf', 'CAL, real pairs': '1273cddcb8',
    'CAL + perfect painter, progressive': 'c2caded723', 'CAL + other colours, all K': 'fda3f22865',
    'CAL + descriptions, progressive as released': '92946f0ea3'}

@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp('sets')
    return Sets(MannequinWorld(identities=(8,0,4), images=2, size=(96,48), seed=7).write(root/'world', layout='prcc'), root)

def test_recipes_have_the_hashes_with_which_they_ran():
    rows = {r.name: r for r in CHAINS['dlcr']}
    assert {n: rows[n].recipe.hash for n in HASHES}==HASHES
    assert {n for n,r in rows.items() if r.trained is None and r.part in ('core','generators','released')}==HASHES.keys()

def test_the_core_is_table_a1_and_its_controls():
    core = rows_of('dlcr')
    trained = [r for r in core if r.trained is None]
    assert len(core)==12 and len(trained)==9 and all(r.seeds==SEEDS and r.data=='mannequins' for r in core)
    assert [r.trained.name for r in core if r.trained]==[FULL.name]*3 and [r.given for r in core if r.trained]==[{}, dict(variants=0), dict(rule='mean')]
    by = {r.name: r for r in core}
    assert by['CAL + descriptions, all K'].base=='CAL + made-up clothes, all K' and by[FULL.name].base=='CAL + descriptions, all K'

def test_words_in_which_the_rows_are_painted(sets):
    "They decide the images: other words would make other rows"
    words = [Targets(o, SEED).settings['words'] for o in (described(sets['']), random_clothes(sets[''].train, SEED))]
    assert words==['049fb815f0f8d38f', '9e8194affe8811ea']
    for texts in (Targets(described(sets[''])).texts, Targets(random_clothes(sets[''].train)).texts):
        for t in texts.values(): assert outfit_of(t, 0)==outfit_of(t, 1)      # nothing is left to chance

@pytest.mark.parametrize('kind,by', [('dlcr','DLCR'), ('dlcr-random','DLCR-random'), ('dlcr-plain','DLCR-plain')])
def test_kinds_have_ten_images_for_each_real_one(sets, kind, by):
    real,both = sets[''].train,sets[kind].train
    made = both[both.generated_by==by]
    assert len(made)==K*len(real)==len(both)-len(real) and set(made.clothes)=={-1} and set(made.variant)==set(range(K))
    assert made.groupby('source').identity.first().to_dict()==dict(zip(real.path, real.identity))
    assert f'{K*len(real)} images' in plan(sets['']) and '10.0 for each' in account(made, both)
    column = 'target' if kind=='dlcr' else 'made_up'
    own = dict(zip(real.path, real.clothes))
    assert all(t!=own[s] for t,s in zip(made[column], made.source)) and (made.groupby('source')[column].nunique()==K).all()

def test_variants_of_queries_are_a_table_and_never_trained_on(sets):
    asked = sets['dlcr-queries']
    assert len(asked)==L*len(sets[''].query) and set(asked.split)=={'query'} and set(asked.source)==set(sets[''].query.path)
    with pytest.raises((ValueError,DataError,AttributeError)): run_row(recipe('mannequins', 'dlcr', generated='dlcr-queries', epochs=1), sets, 0, 'cpu')

def test_rows_of_pairs_take_the_same_steps_and_twice_the_images(sets):
    def ran(row, **kw): return run_row(replace(row.recipe, epochs=2), sets, 0, 'cpu', **kw)
    rows = {r.name: r for r in CHAINS['dlcr']}
    cal = ran(rows['CAL'])
    for name,times in {'CAL + descriptions, concatenated': 1, 'CAL + descriptions, all K': 2, 'CAL, real pairs': 2}.items():
        r = ran(rows[name])
        assert r['steps']==cal['steps'] and r['images_seen']==times*cal['images_seen'], name
        assert r['train']['generated']==(0 if name=='CAL, real pairs' else K*len(sets[''].train))
    full = ran(FULL, evaluations=evaluations_of(list(chain.rows), FULL, sets[''], sets.folder_of))
    assert full['steps']==cal['steps'] and full['images_seen']==2*cal['images_seen']
    assert {'CAL + descriptions, progressive, refined','the same, voting alone','the same, mean feature'}<=full['evaluated'].keys()

def test_the_method_is_cal_with_pairs():
    names = lambda m, **kw: [type(cb).__name__ for cb in callbacks_of(recipe('prcc', m, **kw))]
    assert names('dlcr')==names('cal+pairs')==[*names('cal'), 'ProgressivePairs']
    r = recipe('prcc', 'dlcr')
    assert r.identities*r.images==32 and r.generated=='dlcr' and callbacks_of(r)[-1].every==5
    mini = recipe('mannequins', 'dlcr', generated='dlcr')
    assert mini.identities*mini.images==32==recipe('mannequins', 'cal').identities*recipe('mannequins', 'cal').images and callbacks_of(mini)[-1].every==1

@pytest.mark.parametrize('method', ['pcb','mgn','hpm','aim'])
def test_table_3s_other_models_train_on_pairs_by_name(sets, method):
    "As the table of where everything is says: a step on image and partner, each loss a number"
    r = replace(recipe('mannequins', method+'+pairs', generated='dlcr'), epochs=1, identities=2, images=2)
    record = run(r, sets['dlcr'], 0, 'cpu', quiet=True, steps=1)[1]
    assert record['images_seen']==8 and record['steps']==1 and np.isfinite([v for v in record['history'][0].values()]).all()
