"What `Class?` shows: the arguments that the class is made with"
import importlib, inspect, pickle, pkgutil

import pytest

import ccreid

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

def modules():
    for m in pkgutil.walk_packages(ccreid.__path__, 'ccreid.'):
        if m.name.endswith('__main__'): continue
        try: yield importlib.import_module(m.name)
        except ImportError: pass                                # a part that is not installed

def public_classes():
    for module in modules():
        for name in getattr(module, '__all__', ()):
            found = getattr(module, name)
            if inspect.isclass(found) and found.__module__==module.__name__: yield found

CLASSES = list(public_classes())

def without_self(f):
    signature = inspect.signature(f)
    return signature.replace(parameters=list(signature.parameters.values())[1:])

def maker(cls):
    "The function that takes the arguments: the first of both names in the order in which Python looks"
    base = next(b for b in cls.__mro__ if '__init__' in vars(b) or '__new__' in vars(b))
    return vars(base).get('__init__', vars(base).get('__new__'))

def test_all_are_found():
    names = {c.__name__ for c in CLASSES}
    assert len(CLASSES)>100 and {'HSAL', 'TryOn', 'MaxPool', 'WeightsNotFound', 'TripletTerm', 'ReIDLearner'}<=names

@pytest.mark.parametrize('cls', CLASSES, ids=lambda c: f'{c.__module__}.{c.__name__}')
def test_a_class_shows_the_arguments_it_is_made_with(cls):
    shown,made = inspect.signature(cls),maker(cls)
    if inspect.isfunction(made): assert shown==without_self(made)
    if made is object.__init__: assert not shown.parameters     # nothing to say
    kinds = [p.kind for p in shown.parameters.values()]
    assert not set(VARIABLE)<=set(kinds), f'{shown} says nothing'

def test_errors_go_through_a_process_border():
    for cls in CLASSES:
        if not issubclass(cls, Exception): continue
        error = pickle.loads(pickle.dumps(cls('what is wrong')))
        assert type(error) is cls and str(error)=='what is wrong' and error.args==('what is wrong',)

def test_interfaces_are_not_made_but_can_be_inherited():
    from ccreid.hsgl.try_on import TryOn
    with pytest.raises(TypeError, match='TryOn only says what is asked'): TryOn()
    class Mine(TryOn):
        def __init__(self, steps): self.steps = steps
    class Yours(TryOn): pass
    assert Mine(3).steps==3 and not inspect.signature(Yours).parameters and Yours() is not None
