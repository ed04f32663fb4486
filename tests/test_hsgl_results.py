"Rows with generated images and pretraining: the steps they take, what goes over, what the record says"
import warnings
import pytest, torch
from ccreid.data.mannequins import MannequinWorld
from ccreid.registry import CHAINS, SEEDS, rows_of
from ccreid.experiments import Results, SameSteps, Sets, hand_over, results_table, run, run_row
from ccreid.hsgl.chain import account_shsg, plan_fifth
from ccreid.hsgl.miniature import DOSE, DRESSED, GARMENTS, VARIANTS, draw_people, dressed_for
from ccreid.generation.jobs import only_generated
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
    with pytest.raises(ValueError, match='No chain makes images'): sets['nothing']

def test_the_dose_is_a_fifth_and_the_people_are_drawn_alike_each_time(sets):
    real,whole,fifth = sets[''].train,sets['shsg'].train,sets['shsg-fifth'].train
    made,all_made = (t[t.generated_by=='SHSG'] for t in (fifth, whole))
    people = round(.2*len(real)/5)
    assert len(made)==5*people and made.identity.nunique()==people==dressed_for(len(real))
    assert (made.groupby('identity').garment.nunique()==5).all() and set(made.garment)==set(all_made.garment)
    assert set(zip(made.source, made.garment))<set(zip(all_made.source, all_made.garment))
    again = draw_people(all_made.drop_duplicates('identity'), len(real))
    assert sorted(again.identity)==sorted(set(made.identity))
    assert f'{people*GARMENTS} images, {DOSE:.0%} of the {len(real)} real ones' in plan_fifth(sets[''])
    assert f'{len(made)/len(real):.1%} of {len(real)} real images' in account_shsg(made, fifth)

def test_doses_are_what_the_paper_has_where_there_are_people_enough():
    for real in range(90, 4000, 7): assert .18<=dressed_for(real)*GARMENTS/real<=.22 or real<125, real
    assert dressed_for(3)==1

def test_coarse_samples_alone(sets):
    both,alone,real = sets['chpsg'],sets['chpsg-alone'],sets['']
    assert (alone.train.generated_by=='CHPSG').all() and len(alone.train)==len(both.train)-len(real.train)
    assert alone.train.path.tolist()==both.train.path[both.train.generated_by=='CHPSG'].tolist()
    assert set(alone.train.identity)==set(real.train.identity)
    for part in ('query','gallery'): assert getattr(alone, part).path.tolist()==getattr(real, part).path.tolist()
    assert alone.protocols.keys()==real.protocols.keys()
    with pytest.raises(ValueError, match='no training image is generated'): only_generated(real)
    record = run_row(recipe('mannequins', 'fire', pretrain='chpsg-alone', epochs=2, pretrain_epochs=1), sets, 0, 'cpu')
    assert record['pretraining_train']['share']==1 and record['train']['share']==0

def test_an_epoch_with_generated_images_has_the_steps_of_the_real_ones(sets):
    r = recipe('mannequins', 'cal', generated='shsg')
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
    r = recipe('mannequins', 'fire+hsal', generated='shsg', pretrain='chpsg', epochs=2, pretrain_epochs=1, start_epoch=1)
    with warnings.catch_warnings():
        warnings.simplefilter('error') # a pretraining that ends before the second stage is no surprise
        record = run_row(r, sets, 0, 'cpu')
    _, plain = run(recipe('mannequins', 'fire', epochs=2, start_epoch=1), sets[''], 0, 'cpu', quiet=True)
    assert record['steps']==plain['steps'] and record['images_seen']==plain['images_seen']
    assert record['pretraining_images_seen']==plain['images_seen']//2 and record['recipe_hash']==r.hash
    assert 'pretraining_images_seen' not in run_row(recipe('mannequins', 'cal', generated='shsg', epochs=1), sets, 0, 'cpu')

def test_rows_without_additions_run_as_before(sets):
    r = recipe('mannequins', 'cal', epochs=1)
    a, b = run_row(r, sets, 3, 'cpu'), run(r, sets[''], 3, 'cpu', quiet=True)[1]
    assert a['history']==b['history'] and a['protocols']==b['protocols']

def test_every_row_has_a_base_on_the_same_benchmark_and_the_core_is_small():
    for chain,rows in CHAINS.items():
        known = {r.name: r for r in rows}
        assert len(known)==len(rows) and len(rows_of(chain))<=12 and all(r.seeds==SEEDS for r in rows_of(chain))
        for r in rows: assert not r.base or known[r.base].data==r.data and set(r.seeds)<=set(known[r.base].seeds), r

def test_extended_rows_are_all_but_the_core():
    core, more = rows_of('hsgl'), rows_of('hsgl', 'extended')
    large = rows_of('hsgl', 'large')
    assert sorted(rows_of('hsgl', 'all'), key=repr)==sorted(core+more+large, key=repr)
    assert len({r.name for r in core+more+large})==len(core+more+large)
    assert {r.part for r in more}=={'table','controls','ltcc','pretraining','epochs','map','double-dose'}

def test_without_adjustment_hsal_is_one_and_a_half_plain_triplet_losses(sets):
    "alpha = 0: L(d) + 0.5 L(d'), and d' is d"
    losses = [build(recipe('mannequins', 'cal+hsal', hsal_alpha=a, hsal_weight=w), sets[''], 0, 'cpu').loss_func for a,w in ((0.,.1), (.05,.3))]
    torch.manual_seed(0)
    f = 3*torch.randn(16, 8)
    labels = dict(identity=torch.arange(16)//4, clothes=torch.arange(16)//2, camera=torch.arange(16)%2)
    d = torch.cdist(f, f)
    plain = sum(max(0., max(d[i,j].item() for j in range(16) if j!=i and j//4==i//4) - min(d[i,j].item() for j in range(16) if j//4!=i//4)) for i in range(16))/16
    values = [l.terms['hsal'][0](dict(features=f), labels).item() for l in losses]
    assert plain>0 and values[0]==pytest.approx(1.5*plain, rel=1e-4) and values[1]>values[0]
    assert [l.terms['hsal'][1](0) for l in losses]==[.1,.3]

def test_replaced_triplets_keep_their_weight_unless_another_is_asked_for(sets):
    plain, same, other = (build(recipe('mannequins', m, **c), sets[''], 0, 'cpu').loss_func.terms for m,c in (('cssc',{}), ('cssc+hsal',{}), ('cssc+hsal',dict(hsal_weight=.5))))
    assert [n for n in plain if 'triplet' in n]==[f'triplet_{i}' for i in range(1,6)]
    weight = lambda terms, e: [w(e) if callable(w) else w for n,(_,w) in terms.items() if 'triplet' in n]
    assert weight(same, 15)==weight(plain, 15)==[1.]*5 and weight(same, 0)==weight(plain, 0)==[0.]*5 and weight(other, 15)==[.5]*5

def test_looking_after_every_epoch_changes_nothing(sets):
    r = recipe('mannequins', 'cal+hsal', epochs=2)
    a, b = run_row(r, sets, 1, 'cpu'), run_row(r, sets, 1, 'cpu', by_epoch=True)
    assert a['protocols']==b['protocols'] and 'by_epoch' not in a and [e['epoch'] for e in b['by_epoch']]==[0,1]
    for p in a['protocols']: assert b['by_epoch'][-1][f'{p} R1']==pytest.approx(100*a['protocols'][p]['R1'])

def test_a_pretraining_on_real_images_takes_the_benchmark_itself(sets):
    assert sets['real'] is sets['']
    record = run_row(recipe('mannequins', 'fire', pretrain='real', epochs=1, pretrain_epochs=1, start_epoch=0), sets, 0, 'cpu')
    assert record['pretraining_images_seen']==record['images_seen']

def test_results_of_two_benchmarks_share_a_file(tmp_path):
    "Query people of each benchmark are kept apart, and a row is fresh only in its own world"
    rows = {r.name: r for r in CHAINS['hsgl']}
    results = Results(tmp_path/'r.json', 'hsgl', 'w')
    results.worlds['mannequins-ltcc'] = 'l'
    def record(name, ids, hits):
        row = rows[name]
        p = dict(R1=hits.count('1')/len(hits), R5=1., mAP=.5, mINP=.1, queries=len(hits), skipped=0, hits=hits, ap=[.5]*len(hits), identities=ids)
        return dict(row=name, seed=0, data=row.data, world='l' if 'ltcc' in row.data else 'w', recipe_hash=row.recipe.hash, protocols={'clothes-changing': p})
    for name,ids,hits in (('CAL',[1,1,2],'100'), ('CSSC',[7,8],'01'), ('CAL + HSAL',[1,1,2],'110'), ('CSSC + HSAL',[7,8],'11')): results.add(record(name, ids, hits))
    again = Results(tmp_path/'r.json', 'hsgl', 'w'); again.worlds['mannequins-ltcc'] = 'l'
    assert {r['row']: r['protocols']['clothes-changing']['identities'] for r in again.records}=={
        'CAL': [1,1,2], 'CAL + HSAL': [1,1,2], 'CSSC': [7,8], 'CSSC + HSAL': [7,8]}
    table = results_table(again, 'ltcc')
    assert table.loc['CSSC + HSAL','clothes-changing R1 difference'].startswith('+50.0') and table.loc['CSSC','clothes-changing R1']=='50.0'
    assert table.loc['CSSC + SHSG','seeds']=='not run' and 'CAL' not in table.index
    again.worlds['mannequins-ltcc'] = 'another'
    assert results_table(again, 'ltcc').loc['CSSC','seeds']=='stale' and results_table(again).loc['CAL','seeds']==1

@pytest.mark.parametrize('change', [dict(generated='shsg'), dict(pretrain='chpsg')])
def test_a_recipe_with_generated_images_is_not_run_without_them(sets, change):
    with pytest.raises(ValueError, match='run_row'): run(recipe('mannequins', 'fire', epochs=1, **change), sets[''], 0, 'cpu', quiet=True)


def test_epochs_end_after_so_many_steps_and_a_resumed_run_has_the_same(sets, tmp_path):
    r = recipe('mannequins', 'identity', epochs=2)
    record = run(r, sets['chpsg'], 0, 'cpu', quiet=True, steps=2, checkpoint=tmp_path/'c.pth')[1]
    assert record['steps']==4 and record['images_seen']==4*r.identities*r.images
    assert run(r, sets['chpsg'], 0, 'cpu', quiet=True, steps=2, checkpoint=tmp_path/'c.pth')[1]['protocols']==record['protocols']
    for steps in 3,None:
        with pytest.raises(ValueError, match='steps'): run(r, sets['chpsg'], 0, 'cpu', quiet=True, steps=steps, checkpoint=tmp_path/'c.pth')
    with pytest.raises(ValueError, match='ccreid generate'): run(recipe('mannequins', 'cal', generated='shsg'), sets[''], 0, 'cpu')
