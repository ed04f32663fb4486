"Engines: the same files, lines and errors whoever works; and Ray itself, where it is installed"
import importlib.util
import json
import operator
import os
import pickle
import signal
import sys
from pathlib import Path
from unittest import mock

import pytest

from ccreid.cli import main
from ccreid.data.mannequins import MannequinWorld
from ccreid.engines import LocalEngine, RayEngine, _closed, _opened, current, using
from ccreid.generation.edits import SkipImage
from ccreid.generation.expansion import expand
from ccreid.generation.records import read_manifest
from ccreid.search.job import embed_to_file, parts_of
from ccreid.search.vectors import read_vectors
from ccreid.tables import DataError

ROOT = Path(__file__).resolve().parent.parent
RAY = importlib.util.find_spec('ray') is not None

class Elsewhere(LocalEngine):
    "As if other processes worked: everything is pickled, items are done from the last to the first, and some twice"
    elsewhere = True
    def __init__(self, again=()): self.again = again
    def each(self, work, state, items):
        work,state = pickle.loads(pickle.dumps((work, state)))
        done = {}
        for k,item in list(enumerate(items))[::-1]:
            for _ in range(1+(k in self.again)): done[k] = _closed(work, state, pickle.loads(pickle.dumps(item)))
        for k in range(len(items)): yield _opened(done[k])

def tint(images, rows, variants, seeds):
    res = [im.point(lambda x, s=s: (x+s%97+1)%256) for im,s in zip(images, seeds)]
    return [SkipImage('no') if r['camera']==1 and v==1 else (im, dict(how=f'{v}')) for im,r,v in zip(res, rows, variants)]

def odd(images, rows, variants, seeds): return [(im.point(lambda x: 255-x), dict(camera=1)) for im in images]
def colour(pictures): return [[float(v) for v in p.resize((2,2)).tobytes()] for p in pictures]

@pytest.fixture(scope='module')
def people(tmp_path_factory):
    world = MannequinWorld((4,0,2), outfits=2, cameras=2, images=1, size=(32,16), seed=11)
    ds = world.write(tmp_path_factory.mktemp('data')/'people', 'mannequins', workers=1)
    Path(ds.train.path.iloc[3]).write_bytes(b'not a picture')
    return ds

def content(out): return {p.relative_to(out).as_posix(): p.read_bytes() for p in Path(out).rglob('*.png')}

def lines(out, name='manifest-000-of-001.jsonl'):
    return [{k: v for k,v in json.loads(t).items() if k!='time'} for t in (Path(out)/name).read_text().splitlines()]

# ---- the interface

def test_results_come_in_the_order_of_items_and_errors_as_they_are():
    assert list(LocalEngine().each(lambda s, i: s*i, 2, iter([3,1,2])))==[6,2,4]
    class Own(Exception):
        def __init__(self, a, b): super().__init__(f'{a}{b}')
    def fails(s, i): raise Own('ha', 'lt')                              # cannot be pickled: the words stay
    with pytest.raises(RuntimeError, match='Own: halt'): _opened(_closed(fails, 0, 0))
    with pytest.raises(DataError, match='two lines\nof text'): _opened(_closed(says, 0, 'two lines\nof text'))

def says(state, item): raise DataError(item)

def test_a_named_engine_holds_within_its_block():
    a,b = LocalEngine(),Elsewhere()
    with using(a):
        with using(b): assert current() is b
        assert current() is a
        with pytest.raises(KeyError):
            with using(b): raise KeyError
        with using(None): assert current() is a
    assert type(current()) is LocalEngine and current() is not a

def test_without_ray_one_line_says_what_to_install(tmp_path, capsys):
    with mock.patch.dict(sys.modules, ray=None):
        with pytest.raises(ImportError, match=r'^ray is not installed: pip install "ccreid\[scale\]"$'): RayEngine()
        assert main(['embed', str(tmp_path), '--weights', 'resnet_mini', '--out', str(tmp_path/'v.npz'), '--engine', 'ray'])==2
    assert capsys.readouterr().err.count('\n')==1 and not (tmp_path/'v.npz').exists()
    assert main(['embed', str(tmp_path), '--weights', 'resnet_mini', '--out', str(tmp_path/'v.npz'), '--address', 'auto'])==2
    assert '--address is for --engine ray' in capsys.readouterr().err

# ---- expansion

@pytest.mark.parametrize('batch,again', [(1, (0,5)), (3, (1,)), (100, ())])
def test_an_expansion_by_others_has_the_same_files_and_lines(people, tmp_path, batch, again, capsys):
    kw = dict(variants=2, batch=batch, progress=False)
    a = expand(people.train, tint, tmp_path/'a', **kw)
    b = expand(people.train, tint, tmp_path/'b', engine=Elsewhere(again), **kw)
    assert content(tmp_path/'a')==content(tmp_path/'b') and len(content(tmp_path/'a'))==16*2-8-1-(1 if people.train.camera.iloc[3]!=1 else 0)
    assert lines(tmp_path/'a')==lines(tmp_path/'b') and not list((tmp_path/'b').glob('.making-*'))
    assert a.drop(columns='path').equals(b.drop(columns='path')) and a.attrs==b.attrs

def test_an_engine_of_a_block_reaches_the_job(people, tmp_path):
    seen = []
    class Seen(Elsewhere):
        def each(self, work, state, items): seen.append(len(items)); yield from super().each(work, state, items)
    with using(Seen()): expand(people.train, tint, tmp_path/'b', 1, batch=4, progress=False)
    assert seen==[4]

def test_a_job_that_was_stopped_elsewhere_goes_on_here(people, tmp_path):
    class Stops(Elsewhere):
        def each(self, work, state, items):
            for k,found in enumerate(super().each(work, state, items)):
                if k==2: raise KeyboardInterrupt                       # all images are there, two batches are on record
                yield found
    expand(people.train, tint, tmp_path/'a', 2, batch=4, progress=False)
    with pytest.raises(KeyboardInterrupt): expand(people.train, tint, tmp_path/'b', 2, batch=4, progress=False, engine=Stops())
    assert len(read_manifest(tmp_path/'b'))==8
    (tmp_path/'b'/'.making-0.1-0123456789ab').write_bytes(b'half')        # of a worker that was killed
    expand(people.train, tint, tmp_path/'b', 2, batch=4, progress=False)
    assert content(tmp_path/'a')==content(tmp_path/'b') and lines(tmp_path/'a')==lines(tmp_path/'b') and not list((tmp_path/'b').glob('.making-*'))

def test_shards_leave_what_other_shards_have_begun(people, tmp_path):
    out = tmp_path/'b'
    expand(people.train, tint, out, 1, shard=(0,2), progress=False)
    (out/'.making-1.2-0123456789ab').write_bytes(b'half')
    expand(people.train, tint, out, 1, shard=(0,2), progress=False, engine=Elsewhere())
    assert (out/'.making-1.2-0123456789ab').exists()
    expand(people.train, tint, out, 1, shard=(1,2), progress=False, engine=Elsewhere())
    assert not list(out.glob('.making-*'))

def test_errors_of_an_edit_are_those_of_a_local_job(people, tmp_path):
    for engine in (None, Elsewhere()):
        with pytest.raises(DataError, match="the edit notes 'camera'"): expand(people.train, odd, tmp_path/str(engine), 1, progress=False, engine=engine)

# ---- vectors

def test_vectors_by_others_are_the_same_bytes(people, tmp_path):
    good = [p for k,p in enumerate(people.train.path) if k!=3]
    embed_to_file(colour, good, tmp_path/'a.npz', batch_size=2, part=4)
    embed_to_file(colour, good, tmp_path/'b.npz', batch_size=2, part=4, engine=Elsewhere((0,2)))
    assert (tmp_path/'a.npz').read_bytes()==(tmp_path/'b.npz').read_bytes() and not parts_of(tmp_path/'b.npz').exists()
    with pytest.raises(DataError): embed_to_file(colour, people.train.path.tolist(), tmp_path/'c.npz', part=4, engine=Elsewhere())
    some = embed_to_file(colour, people.train.path.tolist(), tmp_path/'d.npz', part=4, skip_bad=True, engine=Elsewhere())
    assert some.ids==read_vectors(tmp_path/'a.npz').ids and len(some.about['skipped'])==1

# ---- Ray itself

@pytest.mark.skipif(not RAY, reason='Ray is not installed')
def test_killed_workers_of_ray_lose_and_double_nothing(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location('ray_kill', ROOT/'benchmarks'/'ray_kill.py')
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, ray_kill=module):
        spec.loader.exec_module(module)
        import ray.cloudpickle
        ray.cloudpickle.register_pickle_by_value(module)                # workers have no such module
        module.main(['--people', '4', '--out', str(tmp_path/'r.json')])
    rows = json.loads((tmp_path/'r.json').read_text())['rows']
    assert {k for k in rows}=={'local','asked','ray','killed','embed'} and all(not (r['lost'] or r['doubled'] or r['other']) and r['lines'] for r in rows.values())

@pytest.mark.skipif(not RAY, reason='Ray is not installed')
@pytest.mark.parametrize('kind,options', [('chpsg', dict(variants=2)), ('shsg', dict(people=1, garments=2)), ('dlcr', dict(variants=2))])
def test_edits_of_papers_survive_the_journey(kind, options, tmp_path):
    "Pickled as Ray does it, here without its processes"
    from ray import cloudpickle
    from ccreid.generation.jobs import generate, models_for
    class Travels(Elsewhere):
        def each(self, work, state, items):
            work,state = pickle.loads(cloudpickle.dumps((work, state)))
            for item in items: yield _opened(_closed(work, state, item))
    ds = MannequinWorld((4,0,2), outfits=2, cameras=3, images=2, size=(64,32), seed=4).write(tmp_path/'prcc', 'prcc', workers=1)
    for name,engine in (('a', None), ('b', Travels())): generate(kind, ds, tmp_path/name, models_for(ds), engine, limit=6, progress=False, **options)
    assert content(tmp_path/'a')==content(tmp_path/'b')!={}

@pytest.mark.skipif(not RAY, reason='Ray is not installed')
def test_bad_arguments_of_ray():
    with pytest.raises(ValueError, match='1 or more'): RayEngine(actors=0)

@pytest.mark.skipif(not RAY, reason='Ray is not installed')
def test_without_an_address_ray_is_started_here(monkeypatch):
    "Whatever cluster was started on this machine before, or is named in the environment for others"
    monkeypatch.setenv('RAY_ADDRESS', '127.0.0.1:1')
    assert list(RayEngine(actors=1, memory=200*2**20).each(operator.mul, 3, range(3)))==[0,3,6]

class Stays:
    "Can be packed, and not unpacked elsewhere"
    def __getstate__(self): return {'a': 1}
    def __setstate__(self, state): raise OSError('not here')

def fatal(state, item):
    if item==2: os.kill(os.getpid(), signal.SIGKILL)
    return item

def times(state, item): return state*item

@pytest.mark.skipif(not RAY, reason='Ray is not installed')
def test_an_item_that_no_process_survives_ends_the_job_and_ray_data_is_as_before():
    "Ray alone would start processes for ever"
    import ray
    from ray import cloudpickle
    from ray.data import DataContext
    def context(): return DataContext.get_current().execution_options.preserve_order, DataContext.get_current().enable_progress_bars
    here,before = sys.modules[__name__],context()
    cloudpickle.register_pickle_by_value(here)                         # workers have no such module
    ray.init(address='local', num_cpus=2, include_dashboard=False, object_store_memory=200*2**20, log_to_driver=False, logging_level='ERROR')
    try:
        engine = RayEngine(actors=2)
        with pytest.raises(ChildProcessError, match='4 processes of Ray died at the same work'): list(engine.each(fatal, 0, range(4)))
        with pytest.raises(ValueError, match=r'cannot be sent to other processes \(OSError: not here\)'): list(engine.each(times, Stays(), [1]))
        assert list(engine.each(times, 3, range(4)))==[0,3,6,9] and context()==before
    finally:
        ray.shutdown()
        cloudpickle.unregister_pickle_by_value(here)
