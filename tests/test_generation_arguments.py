"Arguments of try-on, try-off, editing and inpainting networks: one door for Python and for the command line, before anything is loaded"
import inspect

import pytest

import ccreid.compat
pytest.importorskip('diffusers')
from ccreid.generation.arguments import RULES, arguments_of, checked, read_arguments, rule_of
from ccreid.generation.catvton import CatVTON
from ccreid.generation.dressing import Dresser
from ccreid.generation.editing import EditingTryOn
from ccreid.generation.foreground import Foreground
from ccreid.generation.idm_vton import IDMVTON
from ccreid.generation.inpainting import ClothesInpainter
from ccreid.generation.jobs import Networks
from ccreid.generation.pipelines import DiffusersPipeline
from ccreid.generation.try_off import DiffusionTryOff

CLASSES = Dresser, CatVTON, IDMVTON, EditingTryOn, DiffusersPipeline, ClothesInpainter, DiffusionTryOff, Foreground
WRONG = dict(threshold=[0, 1, 'half'], size=[512, 'abc', (64,), (64.5,48), (0,8), (64,48,3), True], steps=[0, -1, 2.5, 'many', True], guidance=['high', -1, float('nan'), True], strength=[0, 1.5, 'full', -.1],
             batch=[0, 'all'], edge=[2, 'wide'], options=['abc', 3], embed=['abc'], ground=['abc'], mask_free=['yes', 1], whole=['yes'], edit=[1], offload=['true'], seed=[1.5, []], keep_size=[0], negative=[5], text=[[]])

def own(cls):
    "Arguments that a class has a rule for"
    return {name: rule for name,p in inspect.signature(cls.__init__).parameters.items() if (rule := rule_of(p))}

@pytest.mark.parametrize('cls', CLASSES)
def test_wrong_values_are_one_line_that_names_the_argument(cls):
    "No network is there: nothing is looked at before the arguments"
    needed = [p for p in inspect.signature(cls.__init__).parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    seen = 0
    for name in own(cls).keys() & WRONG.keys():
        for value in WRONG[name]:
            with pytest.raises(ValueError) as e: cls(*[None]*len(needed), **{name: value})
            assert str(e.value).startswith(f'{name}: expected ') and '\n' not in str(e.value) and len(str(e.value))<200, (name, value, str(e.value))
            seen += 1
    assert seen

def test_every_class_checks_what_it_has():
    for name in ('steps','guidance'): assert [cls.__name__ for cls in CLASSES if name in own(cls)]==['CatVTON','IDMVTON','DiffusersPipeline','ClothesInpainter','DiffusionTryOff']
    assert set(RULES)<={name for cls in CLASSES for name in own(cls)}
    for cls in CLASSES: assert hasattr(cls.__init__, '__wrapped__'), cls

def load(part, make, **asked): return Networks(**{f'{part}.{k}': v for k,v in asked.items()}).load(part, make, *GIVEN[make.__self__])

GIVEN = {CatVTON: (None,None), IDMVTON: (None,None,None,'no-such-weights'), EditingTryOn: (None,None,'no-such-weights'), ClothesInpainter: ('no-such-weights',), DiffusionTryOff: (None,'no-such-weights')}

@pytest.mark.parametrize('cls', GIVEN)
def test_settings_are_read_by_what_they_are_for(cls, monkeypatch, tmp_path):
    "Wrong ones are refused in one line before weights are looked for"
    for name,texts in dict(size=['512','abc','64x48x3'], steps=['0','many'], guidance=['high','-1'], strength=['0','2'], batch=['0'], edge=['wide'], offload=['maybe']).items():
        if name not in arguments_of(cls.from_pretrained, *GIVEN[cls]): continue
        for text in texts:
            with pytest.raises(ValueError, match=rf'tryon\.{name}: expected ') as e: load('tryon', cls.from_pretrained, **{name: text})
            assert '\n' not in str(e.value)
    objects = {'ground','embed','about','options','device','dtype'} & arguments_of(cls.from_pretrained, *GIVEN[cls]).keys()
    assert objects
    for name in objects:
        with pytest.raises(ValueError, match=f'tryon.{name} is an object, which no text stands for') as e: load('tryon', cls.from_pretrained, **{name: 'abc'})
        assert '\n' not in str(e.value)
    with pytest.raises(ValueError, match="tryon has no setting 'colour': it has ") as e: load('tryon', cls.from_pretrained, colour='red')
    listed = set(str(e.value).split('it has ')[1].split(', '))
    assert not listed & {'ground','embed','about','options','device','dtype','name','parser','detector'} and 'steps' in listed and '\n' not in str(e.value)

def test_settings_arrive_as_values():
    got = []
    class Painter:
        "An example"
        def __init__(self, pipe, steps:int=3, edge:float|None=.1, seed:int|str='image', text='a coat', offload:bool=False, size=(8,8)): pass
        @classmethod
        def from_pretrained(cls, name, **kw): got.append(kw)
    Networks(**{'parser.steps': '20', 'parser.edge': 'none', 'parser.seed': '7', 'parser.text': '42', 'parser.offload': 'true', 'parser.size': '64x48'}).load('parser', Painter.from_pretrained, 'x')
    assert got==[dict(steps=20, edge=None, seed=7, text='42', offload=True, size=(64,48))]
    assert read_arguments('p', Painter.from_pretrained, ['x'], dict(seed='released', size=[16,8], edge=.5))==dict(seed='released', size=(16,8), edge=.5)

def test_offload_is_a_setting_of_pipelines():
    for make,given in (EditingTryOn.from_pretrained, (None,None,'x')), (ClothesInpainter.from_pretrained, ('x',)):
        assert read_arguments('tryon', make, given, dict(offload='true'))==dict(offload=True)

def test_checking_keeps_signature_and_words():
    class A:
        @checked
        def __init__(self, x, size=(8,8)):
            "Words"
            self.size = size
    assert list(inspect.signature(A).parameters)==['x','size'] and A.__init__.__doc__=='Words'
    assert A(1).size==(8,8) and A(1, [16,8]).size==(16,8)
    with pytest.raises(TypeError): A(1, colour=2)
