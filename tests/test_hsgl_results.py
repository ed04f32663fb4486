"Rows with generated images and pretraining: the steps they take, what goes over, what the record says"
import pytest, torch
from ccreid.data.mannequins import MannequinWorld
from ccreid.experiments import CHAINS, SameSteps, Sets, hand_over, run, run_row
from ccreid.hsgl.miniature import DRESSED, GARMENTS, VARIANTS
from ccreid.recipes import build, recipe

@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp('sets')
    return Sets(MannequinWorld(identities=(10,0,6), images=4, size=(96,48), seed=7).write(root/'world', layout='prcc'), root)

def test_generated_sets_are_made_once_and_by_name(sets):
    real, made = sets[''], sets['shsg']
    assert sets['shsg'] is made and (sets.root/'mannequins-shsg').is_dir()
    extra = made.train[made.train.generated_by=='SHSG']
    assert len(made.train)==len(real.train)+len(extra) and len(extra)==extra.identity.nunique()*GARMENTS*DRESSED
    assert extra.clothes.nunique()==GARMENTS and not set(extra.clothes) & set(real.train.clothes)
    assert len(sets['chpsg'].train)==(1+VARIANTS)*len(real.train)
    with pytest.raises(KeyError): sets['nothing']

def test_an_epoch_with_generated_images_has_the_steps_of_the_real_ones(sets):
    r = recipe('mannequins', 'cal', extra='shsg')
    plain, longer = (build(r, sets[k], 0, 'cpu') for k in ('','chpsg'))
    steps = len(plain.dls.train)
    assert len(longer.dls.train)>steps
    same = build(r, sets['chpsg'], 0, 'cpu', cbs=[SameSteps(steps)])
    assert len(same.dls.train)==steps
    inner, drawn = longer.dls.train.sampler, same.dls.train.sampler
    for e in 0,1: assert drawn.epoch(e)==inner.epoch(e)[:steps*inner.batch_size]
    seen = {d.row for e in range(12) for d in drawn.epoch(e)}
    assert len(seen)>.9*len(sets['chpsg'].train)                                # all have their turn

def test_backbone_and_neck_go_over_and_classifiers_do_not(sets):
    r = recipe('mannequins', 'fire')
    a, b = (build(r, sets[''], seed, 'cpu') for seed in (0,1))
    before = {k: v.clone() for k,v in b.model.state_dict().items()}
    for p in a.model.parameters(): p.data += 1
    names = hand_over(a, b)
    for k,v in b.model.state_dict().items():
        mine = k.split('.')[0] in ('backbone','pool','neck')
        assert (k in names)==mine and torch.equal(v, a.model.state_dict()[k] if mine else before[k]), k
    assert any(k.startswith('classifier') for k in before)

def test_a_row_with_pretraining(sets):
    r = recipe('mannequins', 'fire+hsal', extra='shsg', pretrain='chpsg', epochs=2, pretrain_epochs=1, start_epoch=1)
    with pytest.warns(UserWarning, match='never become active'): record = run_row(r, sets, 0, 'cpu')
    _, plain = run(recipe('mannequins', 'fire', epochs=2, start_epoch=1), sets[''], 0, 'cpu', quiet=True)
    assert record['steps']==plain['steps'] and record['images_seen']==plain['images_seen']
    assert record['pretraining_images_seen']==plain['images_seen']//2 and record['recipe_hash']==r.hash
    assert 'pretraining_images_seen' not in run_row(recipe('mannequins', 'cal', extra='shsg', epochs=1), sets, 0, 'cpu')

def test_rows_without_additions_run_as_before(sets):
    r = recipe('mannequins', 'cal', epochs=1)
    a, b = run_row(r, sets, 3, 'cpu'), run(r, sets[''], 3, 'cpu', quiet=True)[1]
    assert a['history']==b['history'] and a['protocols']==b['protocols']

def test_every_row_has_a_base_in_its_table():
    for rows in CHAINS.values():
        assert len(rows)<=12 and all(not r.base or r.base in [q.name for q in rows] for r in rows)

@pytest.mark.parametrize('change', [dict(extra='shsg'), dict(pretrain='chpsg')])
def test_a_recipe_with_generated_images_is_not_run_without_them(sets, change):
    with pytest.raises(ValueError, match='run_row'): run(recipe('mannequins', 'fire', epochs=1, **change), sets[''], 0, 'cpu', quiet=True)
