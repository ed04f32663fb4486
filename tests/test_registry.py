"""Chains, their options and rows: what is registered, and that old results keep their names"""
import importlib.metadata
import warnings
import pytest
from ccreid import registry
from ccreid.recipes import Recipe, recipe
from ccreid.experiments import reproduce
from ccreid.registry import CHAINS, All, Chain, Images, Option, Row
from ccreid.values import number, whole

PINNED = { # Hashes of the recipes of all rows whose figures are kept in benchmarks/results
    'foundations: identity loss': 'fe303a4d14',
    'foundations: identity + triplet': 'c881943bf7',
    'foundations: CAL': '3351a2bf73',
    'hsgl: CAL': '3351a2bf73',
    'hsgl: CAL + HSAL': 'abbc37234a',
    'hsgl: CAL + double SHSG': 'c879f12a6c',
    'hsgl: CAL + double SHSG + HSAL': 'ede1c8a587',
    'hsgl: FIRe²': 'fc36b1d65d',
    'hsgl: FIRe² + HSAL': '0a76dc8fd7',
    'hsgl: FIRe² + double SHSG': '583695eaca',
    'hsgl: FIRe² + double SHSG + HSAL': '0c441c686e',
    'hsgl: FIRe² + real and CHPSG': '7910689922',
    'hsgl: FIRe² + real and CHPSG + double SHSG + HSAL': 'b82ef15005',
    'hsgl: CAL + double perfect SHSG + HSAL': '1b2e6970b2',
    'hsgl: AIM': 'a20bacfd03',
    'hsgl: AIM + HSAL': '0fa96c1fa8',
    'hsgl: AIM + double SHSG': '8c06b5f1ef',
    'hsgl: AIM + double SHSG + HSAL': '1a6b819d59',
    'hsgl: FIRe² + real and CHPSG + double SHSG': 'aba58e32a2',
    'hsgl: CAL + HSAL, α = 0': 'b457b31648',
    'hsgl: CAL + double SHSG + HSAL, α = 0': 'def094198b',
    'hsgl: FIRe² + real images first': 'cd72c2ea0a',
    'hsgl: CSSC': '4053753fad',
    'hsgl: CSSC + HSAL': '12d60847a8',
    'hsgl: CSSC + double SHSG': 'cbb966159c',
    'hsgl: CSSC + double SHSG + HSAL': '20cef38ce8',
    'hsgl: CSSC + real and CHPSG': '6ab6fb9a58',
    'hsgl: CSSC + real and CHPSG + double SHSG + HSAL': '4b9691c4fd',
    'hsgl: CAL, by epoch': '3351a2bf73',
    'hsgl: CAL + HSAL, by epoch': 'abbc37234a',
    'hsgl: CAL + double SHSG + HSAL, by epoch': 'ede1c8a587',
    'hsgl: CAL + double SHSG + HSAL, α = 0, λ = 0.03': '758b8469ec',
    'hsgl: CAL + double SHSG + HSAL, α = 0, λ = 0.3': '5d985bb2a3',
    'hsgl: CAL + double SHSG + HSAL, α = 0, λ = 1': '62d04e7c8d',
    'hsgl: CAL + double SHSG + HSAL, α = 0.05, λ = 0.03': '7ef8215a5b',
    'hsgl: CAL + double SHSG + HSAL, α = 0.05, λ = 0.3': 'd07da404a9',
    'hsgl: CAL + double SHSG + HSAL, α = 0.05, λ = 1': '3518ef832d',
    'hsgl: CAL + double SHSG + HSAL, α = 0.1, λ = 0.03': 'f88b098ca3',
    'hsgl: CAL + double SHSG + HSAL, α = 0.1, λ = 0.1': '3d7bd1933e',
    'hsgl: CAL + double SHSG + HSAL, α = 0.1, λ = 0.3': 'e36cd3e9da',
    'hsgl: CAL + double SHSG + HSAL, α = 0.1, λ = 1': '890ba6ebc8',
    'hsgl: CAL + double SHSG + HSAL, α = 0.2, λ = 0.03': 'c3b07c78c4',
    'hsgl: CAL + double SHSG + HSAL, α = 0.2, λ = 0.1': '839dff9e04',
    'hsgl: CAL + double SHSG + HSAL, α = 0.2, λ = 0.3': '28f1dfdd40',
    'hsgl: CAL + double SHSG + HSAL, α = 0.2, λ = 1': '6c931478ab'}

def test_the_recipes_of_kept_results_have_the_hashes_they_had():
    now = {f'{chain}: {row.name}': row.recipe.hash for chain in ('foundations','hsgl') for row in CHAINS[chain]}
    assert {k: now.get(k) for k in PINNED}==PINNED

@pytest.fixture
def toy():
    "A chain of this process alone"
    made = registry.register(Chain('toy', options=dict(strength=Option(number(), .5, of=('toy','extra')), free=Option(number())),
        methods=dict(toy=lambda r: []), addons=dict(extra=lambda r: [r.strength]), rows=(Row('a', 'toy', dict(strength=.7)),)))
    yield made
    registry.forget('toy')

def entry(monkeypatch, **values):
    "Entry points as if these packages were installed too"
    more = [importlib.metadata.EntryPoint(name, value, registry.GROUP) for name,value in values.items()]
    real = registry.entry_points
    monkeypatch.setattr(registry, 'entry_points', lambda group: [*real(group=group), *more])
    registry._entries.cache_clear()
    monkeypatch.setattr(registry, '_said', set())

@pytest.fixture(autouse=True)
def fresh():
    yield
    registry._entries.cache_clear()

# --- options

def test_an_option_is_a_setting_and_what_is_not_given_is_none(toy):
    plain = recipe('mannequins', 'toy')
    assert plain.strength==.5 and plain.free is None and plain.options=={}
    given = recipe('mannequins', 'toy', strength=.7)
    assert given.strength==.7 and given.hash!=plain.hash and given.as_dict()['strength']==.7 and 'options' not in given.as_dict()
    assert recipe('mannequins', 'toy', strength=None)==plain
    assert recipe('mannequins', 'toy', strength=.5).hash==plain.hash              # the declared default, written down
    assert recipe('mannequins', 'toy', free=0.).hash!=plain.hash                   # nothing is declared: whatever is given counts

@pytest.mark.parametrize('method,settings,says', [
    ('toy', dict(strength=-1), 'Setting strength: expected a number'), ('toy', dict(strength='x'), 'Setting strength: expected'),
    ('cal', dict(strength=.7), 'Setting strength is one of toy and extra, which method cal has not'),
    ('cal', dict(free=1.), 'is one of toy, which'), ('toy', dict(lr=None), 'Setting lr'), ('toy', dict(strenght=1), 'Unknown setting strenght'),
    ('toy+toy', {}, 'Unknown method'), ('cal+extra+extra', {}, 'Unknown method'), ('extra', {}, r'each also with .*\+hsal or \+extra')])
def test_slips_are_said(toy, method, settings, says):
    with pytest.raises(ValueError, match=says) as e: recipe('mannequins', method, **settings)
    assert '\n' not in str(e.value)

def test_a_weight_that_is_given_is_not_the_same_as_none():
    for method in ('cal+hsal','fire+hsal'):
        assert recipe('mannequins', method, hsal_weight=.1).hash!=recipe('mannequins', method).hash
        assert recipe('mannequins', method, hsal_alpha=.05).hash==recipe('mannequins', method).hash

def test_add_ons_go_with_every_method_in_their_order(toy):
    from ccreid.recipes import callbacks_of
    assert callbacks_of(recipe('mannequins', 'toy+extra', strength=.9))==[.9]
    names = [type(o).__name__ for o in callbacks_of(recipe('mannequins', 'cal+hsal'))]
    assert names==['CAL','HSAL']

def test_a_later_setting_leaves_hashes_alone():
    "What a recipe of today says beyond that of the first results counts only where it is used"
    from dataclasses import fields
    first = 'data method backbone pretrained size identities images epochs lr wd milestones warmup smoothing triplet margin start_epoch cache'.split()
    later = [f.name for f in fields(Recipe) if f.name not in [*first,'options']]
    plain = Recipe('prcc', 'cal')
    for name in later:
        default = Recipe.__dataclass_fields__[name].default
        other = {str: 'x', int: 3, float: .5, tuple: (1.,2.,3.)}[type(default)]
        assert Recipe('prcc', 'cal', **{name: default}).hash==plain.hash!=Recipe('prcc', 'cal', **{name: other}).hash, name

def test_a_recipe_can_be_copied_and_sent():
    import copy, pickle
    r = recipe('mannequins', 'cal+hsal', hsal_alpha=.1)
    assert copy.deepcopy(r)==r==pickle.loads(pickle.dumps(r)) and eval(repr(r))==r and max(map(len, repr(r).splitlines()))<=90

# --- chains

def test_names_are_known_without_an_import(monkeypatch):
    entry(monkeypatch, far='no_such_package.chain:chain')
    assert registry.names()[:2]==['foundations','baselines'] and 'hsgl' in registry.names() and registry.names()[-1]=='far'

@pytest.mark.parametrize('value,says', [('no_such_package.chain:chain', 'cannot be imported'), ('ccreid.values:whole', 'not the `Chain` of that name'),
    ('ccreid.hsgl.chain:chain', 'not the `Chain` of that name'), ('ccreid.values:nothing', 'cannot be imported')])
def test_a_broken_chain_is_left_out_and_said_once(monkeypatch, value, says):
    entry(monkeypatch, far=value)
    with pytest.warns(UserWarning, match=f'The chain far is left out: .*{says}') as w:
        assert [c.name for c in registry.chains()]==[n for n in registry.names() if n!='far']
        registry.chains()
    assert len(w)==1 and 'cal' in All('methods')
    with pytest.raises(ValueError, match=says): registry.load('far')

def test_a_chain_that_takes_a_taken_name_is_left_out(monkeypatch):
    import sys, types
    module = types.ModuleType('toy_clash')
    module.chain = Chain('clash', methods=dict(cal=len))
    monkeypatch.setitem(sys.modules, 'toy_clash', module)
    entry(monkeypatch, clash='toy_clash:chain')
    with pytest.warns(UserWarning, match="left out: 'cal' among its methods is one of chain baselines already"):
        assert All('methods').chain_of('cal').name=='baselines'

def test_every_address_of_our_own_chains_leads_somewhere():
    for chain in registry.chains():
        for kind in ('methods','settings','addons','models'):
            for name,address in getattr(chain, kind).items(): assert registry.resolve(address) is not None, (chain.name, kind, name)
        for images in chain.images.values():
            for o in (images.miniature, images.job, images.plan, images.account, images.show): assert o is None or callable(registry.resolve(o))
        for part in chain.parts.values(): assert callable(registry.resolve(part.load)) and (part.stand_in is None or callable(registry.resolve(part.stand_in)))

def test_options_of_a_job_are_its_keywords_with_their_defaults():
    import inspect
    for chain in registry.chains():
        for name,images in chain.images.items():
            if images.job is None: continue
            takes = inspect.signature(registry.resolve(images.job)).parameters
            for k,option in images.options.items(): assert takes[k].kind==takes[k].KEYWORD_ONLY and takes[k].default==option.default, (name, k)

# --- the site, and the names that are offered together

def test_registered_pages_are_those_of_the_sidebar():
    import yaml
    from pathlib import Path
    root = Path(__file__).parent.parent
    def entries(o):
        if isinstance(o, str): return [o]
        if isinstance(o, dict): return entries(o.get('contents', []))
        return [e for x in o for e in entries(x)]
    side = entries(yaml.safe_load((root/'_quarto.yml').read_text())['website']['sidebar']['contents'])
    index = (root/'nbs'/'index.ipynb').read_text()
    for chain in registry.chains():
        folder = [p for p in side if p.startswith(f'{chain.name}/')]
        assert set(folder)<=set(chain.pages)<=set(side), chain.name
        assert len(chain.pages)==len(set(chain.pages))
        if chain.name not in ('foundations','baselines'): assert f'{chain.name}/' in index, f'{chain.name} is not on the front page'

def test_the_names_offered_together_mean_one_thing():
    import ccreid, importlib, pkgutil
    import ccreid.all as everything
    offered = {n: getattr(everything, n) for n in everything.__all__}
    assert 35<=len(offered)<=55
    elsewhere = {}
    for m in pkgutil.walk_packages(ccreid.__path__, 'ccreid.'):
        if m.name.endswith(('_modidx','__main__')): continue
        try: module = importlib.import_module(m.name)
        except ImportError: continue
        for n in getattr(module, '__all__', ()):
            if n in offered and getattr(module, n) is not offered[n]: elsewhere.setdefault(n, []).append(m.name)
    assert elsewhere=={}

# --- rows on a data set of one's own

def own(tmp_path, runs=()):
    from ccreid.data.mannequins import MannequinWorld
    return MannequinWorld(identities=(4,0,3), images=2, size=(64,32), seed=1).write(tmp_path/'own', layout='prcc')

def test_rows_without_their_images_are_said_before_anything_runs(tmp_path, monkeypatch):
    from ccreid import experiments
    def no(*a, **k): raise AssertionError('a run began')
    monkeypatch.setattr(experiments, 'run_row', no)
    dataset,lines = own(tmp_path),[]
    again = lambda **kw: experiments.reproduce('hsgl', tmp_path/'r.json', tmp_path, log=lines.append, data=dataset, data_name='prcc', **kw)
    with pytest.raises(ValueError, match='Rows want chpsg and shsg images: .* --generated chpsg=FOLDER'): again()
    assert lines==['CAL + perfect SHSG + HSAL: left out, its images are made for mannequins alone']
    with pytest.raises(ValueError, match="No kind of images is called 'typo'"): again(generated={'typo': tmp_path})
    with pytest.raises((ValueError,OSError), match='no folder'): again(generated={'chpsg': tmp_path/'none', 'shsg': tmp_path/'none'})

def test_results_on_own_data_count_for_that_data(tmp_path, monkeypatch):
    from ccreid import experiments
    from ccreid.results import ChainResults
    from ccreid.results_tables import results_table
    dataset,seen = own(tmp_path),[]
    def quick(r, sets, seed, device, by_epoch, checkpoint=None, **kw):
        seen.append((r.data, kw))
        found = dict(R1=.5, mAP=.4, hits='10', ap=[.6,.2], identities=[1,2])
        return dict(data=r.data, recipe_hash=r.hash, seed=seed, seconds=0., protocols={'clothes-changing': found})
    monkeypatch.setattr(experiments, 'run_row', quick)
    again = lambda data: experiments.reproduce('foundations', tmp_path/'r.json', tmp_path, (0,), log=lambda _: None, data=data,
                                               data_name='prcc', precision='bf16')
    results = again(dataset)
    assert len(seen)==3 and seen[0]==('prcc', dict(precision='bf16')) and len(again(dataset).records)==3 and len(seen)==3
    assert set(results_table(results).seeds)=={1}=={*results_table(ChainResults(tmp_path/'r.json', 'foundations').on('prcc')).seeds}
    fewer = type(dataset)(dataset.name, dataset.root, dataset.samples.iloc[:-1], dataset.protocols)
    again(fewer)
    assert len(seen)==6                                                        # another test set: other results
    results = again(dataset); results.remove(results.of(results.rows[0]))
    assert not results.of(results.rows[0]) and len(ChainResults(tmp_path/'r.json', 'foundations').records)==5

def test_a_pretraining_is_kept_for_a_row_that_goes_on(tmp_path):
    from ccreid.experiments import Sets, _start_of, run_row
    dataset = own(tmp_path)
    r = recipe('mannequins', 'identity', pretrain='real', epochs=1, pretrain_epochs=1, size=(64,32), identities=4, images=2)
    file = tmp_path/'runs'/'a.pth'
    first = run_row(r, Sets(dataset, tmp_path, folders={}), 0, 'cpu', checkpoint=file)
    kept = _start_of(file).read_bytes()
    again = run_row(r, Sets(dataset, tmp_path, folders={}), 0, 'cpu', checkpoint=file) # all epochs are done: nothing is trained again
    assert _start_of(file).read_bytes()==kept and again['protocols']==first['protocols']
    assert again['pretraining_images_seen']==first['pretraining_images_seen']>0


@pytest.fixture
def beside():
    "Register chains beside those that there are, for one test"
    there = []
    yield lambda *args, **kwargs: there.append(registry.register(Chain(*args, **kwargs)).name)
    for name in there: registry.forget(name)


@pytest.mark.filterwarnings('ignore:.*is left out')
def test_a_broken_thing_of_one_chain_harms_no_other(beside):
    from ccreid.generation.jobs import KINDS, Networks, _options, parts
    greedy = Images(job=print, options=dict(seed=Option(whole(0)), batch=Option(whole(1))))
    beside('broken', options=dict(often=3), images={'dots':'nowhere:IMAGES', 'dashes':5, 'greedy':greedy},
           parts={'lens':'nowhere:PART', 'film':5})
    assert 'chpsg' in KINDS and 'greedy' in KINDS and not {'dots','dashes'} & set(KINDS)
    assert not {'lens','film'} & parts().keys() and Networks('cpu').names['parser']
    with pytest.raises(ValueError, match='Unknown setting often'): recipe('mannequins', 'cal', often=2)
    assert _options('chpsg', dict(seed=0, batch=8))==dict(variants=10, prompt='paper', mask='released', seed=0, batch=8)
    with pytest.raises(ValueError, match='garments is an option of shsg'): _options('chpsg', dict(garments=3))


def test_what_is_left_out_is_said_once(beside):
    beside('broken', images={'stripes':5})
    with pytest.warns(UserWarning, match="'stripes' among the images of chain broken is left out: no `Images`"): list(All('images'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        list(All('images'))


def test_a_pretraining_on_images_of_a_chain_without_a_length_has_that_of_the_others(beside):
    beside('dotted', images=dict(dots=Images()))
    assert recipe('mannequins', 'fire', pretrain='dots').pretrain_epochs==4


def test_a_pretraining_keeps_the_options_of_its_method(beside):
    from ccreid.experiments import _without_additions
    beside('pulling', options=dict(pull=Option(number(), 1.)), methods=dict(pulled=lambda r: []))
    r = recipe('mannequins', 'pulled+hsal', pull=.5, hsal_alpha=.2, pretrain='real', pretrain_epochs=2)
    assert _without_additions(r).options==dict(pull=.5) and _without_additions(r).method=='pulled'


def test_recipes_are_keys_and_a_default_that_is_given_is_the_same_run():
    assert len({recipe('mannequins', 'cal+hsal'), recipe('mannequins', 'cal+hsal')})==1
    assert recipe('mannequins', 'cal+hsal', hsal_alpha=.05).hash==recipe('mannequins', 'cal+hsal').hash


@pytest.mark.parametrize('given', [dict(precision='bf16'), dict(generated={'shsg':'x'}), dict(data_name='prcc')])
def test_what_is_for_data_of_ones_own_is_not_swallowed(tmp_path, given):
    with pytest.raises(ValueError, match='give data too'):
        reproduce('foundations', tmp_path/'f.json', tmp_path, minutes=0, **given)
    with pytest.raises(TypeError): reproduce('foundations', tmp_path/'f.json', tmp_path, minutess=0)
