"A large world in shards: the same bytes for any number of workers, kills that lose one shard at most, names, recipes and rows"
import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ccreid.data.mannequins import BENCHMARKS, MANIFEST, MannequinWorld, find_scene, world_hash
from ccreid.data.mannequins import benchmarks as module
from ccreid.data.mannequins import shards as sharding
from ccreid.data.mannequins.benchmarks import LARGE, benchmark, benchmark_worlds, draw_benchmark
from ccreid.data.mannequins.shards import draw_shards, shards, write_shards
from ccreid.data.mannequins.writing import LAYOUTS

ROOT = Path(__file__).resolve().parent.parent
WORLD = dict(identities=(7,2,4), outfits=2, cameras=3, images=1, size=(32,16), seed=6)
NAME = 'mannequins-large'

@pytest.fixture(scope='module')
def world(): return MannequinWorld(**WORLD)

@pytest.fixture(scope='module')
def plain(world, tmp_path_factory):
    root = tmp_path_factory.mktemp('plain')/'w'
    world.write(root, 'mannequins', workers=1, load=False)
    return content(root)

@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(BENCHMARKS[NAME], 'world', WORLD)
    monkeypatch.setitem(LARGE, NAME, 2)

def content(root): return {p.relative_to(root).as_posix(): p.read_bytes() for p in Path(root).rglob('*') if p.is_file()}

# ---- bytes

@pytest.mark.parametrize('people,workers', [(1,1), (4,3), (50,2)])
def test_same_bytes_for_any_cut_and_any_number_of_workers(world, plain, tmp_path, people, workers):
    assert write_shards(world, tmp_path/'w', 'mannequins', people, workers=workers)==0
    assert content(tmp_path/'w')==plain and [p.name for p in tmp_path.iterdir()]==['w']

@pytest.mark.parametrize('layout', ['mannequins','prcc','last'])
def test_a_cut_is_a_partition_by_people(world, layout):
    plan,cut = LAYOUTS[layout](world),shards(world, layout, 3)
    assert sum(map(len, cut.values()))==len(plan) and {k: v for part in cut.values() for k,v in part.items()}==plan
    owners = [{s['identity'] for s in part.values()} for part in cut.values()]
    assert owners==[set(range(i, min(i+3, 13))) for i in range(0, 13, 3)]

def test_a_layout_with_lists_has_them_too(tmp_path):
    w = MannequinWorld((3,0,2), outfits=2, cameras=2, images=1, size=(32,16), seed=8)
    w.write(tmp_path/'a', 'ltcc', workers=1, load=False); write_shards(w, tmp_path/'b', 'ltcc', 2, workers=1)
    assert content(tmp_path/'a')==content(tmp_path/'b') and any(n.endswith('.txt') for n in content(tmp_path/'b'))

# ---- stopping

def test_a_shard_is_whole_or_not_there(world, plain, tmp_path, monkeypatch):
    drawn = []
    def dies(job, real=sharding._draw):
        config,tmp,part = job
        drawn.append(len(part))
        if len(drawn)==3: real((config, tmp, part[:5])); raise KeyboardInterrupt           # five of its images are there
        return real(job)
    monkeypatch.setattr(sharding, '_draw', dies)
    with pytest.raises(KeyboardInterrupt): write_shards(world, tmp_path/'w', 'mannequins', 2, workers=1)
    work, = (p for p in tmp_path.iterdir() if p.name.startswith('.drawing-w-'))
    whole = sorted(p.name for p in (work/'.shards').iterdir() if not p.name.startswith('.making-'))
    assert whole==['00000','00001'] and not (tmp_path/'w').exists()
    stamps = {p: p.stat().st_mtime_ns for name in whole for p in (work/'.shards'/name).rglob('*.png')}
    assert len(stamps)==24
    assert write_shards(world, tmp_path/'w', 'mannequins', 2, workers=1)==0
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path/'w').rglob('*.png')}
    assert all(kept[p.name]==t for p,t in stamps.items()) and sum(drawn[3:])==(13-4)*6        # those were not drawn again
    assert content(tmp_path/'w')==plain and [p.name for p in tmp_path.iterdir()]==['w']

@pytest.mark.parametrize('after', [1, 17, 77])
def test_stopped_while_images_move_to_their_place(world, plain, tmp_path, monkeypatch, after):
    moved = []
    class Os:
        def __getattr__(self, k): return getattr(os, k)
        def replace(self, a, b):
            if '/.shards/' in str(a) and '.making-' not in str(a):
                if len(moved)==after: raise KeyboardInterrupt
                moved.append(b)
            os.replace(a, b)
    monkeypatch.setattr(sharding, 'os', Os())
    with pytest.raises(KeyboardInterrupt): write_shards(world, tmp_path/'w', 'mannequins', 5, workers=1)
    monkeypatch.setattr(sharding, 'os', os)
    def nothing(job): raise AssertionError('drawn again')
    monkeypatch.setattr(sharding, '_draw', nothing)
    assert write_shards(world, tmp_path/'w', 'mannequins', 5, workers=1)==0 and content(tmp_path/'w')==plain

KILLED = '''import sys
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.mannequins.shards import write_shards
write_shards(MannequinWorld(identities=(40,2,8), outfits=2, cameras=4, images=1, size=(128,64), seed=6), sys.argv[1], 'mannequins', 2, workers=2,
             progress=lambda done,total: print(done, flush=True))
'''

def test_killed_and_done_again(tmp_path):
    "The parent, by SIGKILL, in the middle; its workers end too"
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    run = subprocess.Popen([sys.executable,'-c',KILLED,tmp_path/'w'], env=env, stdout=subprocess.PIPE, text=True)
    first = [int(run.stdout.readline()) for _ in range(3)]
    run.send_signal(signal.SIGKILL); run.wait()
    time.sleep(.7)                                                              # whoever watches looks twice a second
    assert not (tmp_path/'w').exists()
    again = subprocess.run([sys.executable,'-c',KILLED,tmp_path/'w'], env=env, capture_output=True, text=True)
    counts = list(map(int, again.stdout.split()))
    assert again.returncode==0 and counts[-1]==50*8 and counts[0]>=first[-1]>first[0]==0   # it went on, and did not begin anew
    w = MannequinWorld(identities=(40,2,8), outfits=2, cameras=4, images=1, size=(128,64), seed=6)
    assert {p.name for p in (tmp_path/'w').rglob('*.png')}=={p.split('/')[-1] for p in LAYOUTS['mannequins'](w)}
    assert [p.name for p in tmp_path.iterdir()]==['w']

def test_what_is_there_is_said_first_and_how_many_shards_is_a_number(world, tmp_path):
    said = []
    def draw(most): return write_shards(world, tmp_path/'w', 'mannequins', 5, workers=1, most=most, progress=lambda *a: said.append(a))
    assert [draw(1), draw(0), draw(1), draw(None)]==[2,2,1,0]
    assert said==[(0,78), (30,78), (30,78), (30,78), (60,78), (60,78), (78,78)]
    with pytest.raises(ValueError, match='most: .*got -1'): write_shards(world, tmp_path/'v', 'mannequins', 5, most=-1)

def test_a_full_disk_leaves_no_half_of_a_shard(world, plain, tmp_path, monkeypatch):
    def full(job, real=sharding._draw):
        config,tmp,part = job
        real((config, tmp, part[:5]))
        if '00001' in tmp: raise OSError(errno.ENOSPC, 'No space left on device')
        return real(job)
    monkeypatch.setattr(sharding, '_draw', full)
    with pytest.raises(OSError, match='what was drawn is kept'): write_shards(world, tmp_path/'w', 'mannequins', 5, workers=1)
    work, = tmp_path.iterdir()
    assert [p.name for p in (work/'.shards').iterdir()]==['00000'] and len(list(work.rglob('*.png')))==30
    monkeypatch.undo()
    assert write_shards(world, tmp_path/'w', 'mannequins', 5, workers=1)==0 and content(tmp_path/'w')==plain

def test_a_killed_process_is_said_and_shards_stay(world, plain, tmp_path, monkeypatch):
    def killed(jobs, workers, draw):
        yield draw(next(iter(jobs)))
        raise ChildProcessError('a process that draws was killed')
    monkeypatch.setattr(sharding, '_in_pool', killed)
    with pytest.raises(ChildProcessError, match='killed'): write_shards(world, tmp_path/'w', 'mannequins', 2, workers=2)
    monkeypatch.undo()
    assert draw_shards(world, next(tmp_path.glob('.drawing-*')), shards(world, 'mannequins', 2), 1, most=0)==6
    assert write_shards(world, tmp_path/'w', 'mannequins', 2, workers=1)==0 and content(tmp_path/'w')==plain

def test_other_things_at_the_place_are_refused(world, plain, tmp_path):
    (tmp_path/'mine').mkdir(); (tmp_path/'mine/letter').write_text('')
    with pytest.raises(FileExistsError): write_shards(world, tmp_path/'mine', 'mannequins', 2, overwrite=True)
    other = MannequinWorld(**{**WORLD, 'seed': 7})
    other.write(tmp_path/'w', 'mannequins', workers=1, load=False)
    with pytest.raises(FileExistsError): write_shards(world, tmp_path/'w', 'mannequins', 2)
    assert write_shards(world, tmp_path/'w', 'mannequins', 5, overwrite=True, workers=1)==0 and content(tmp_path/'w')==plain

@pytest.mark.parametrize('options,words', [(dict(people=0), 'people of a shard: .*at least 1, got 0'), (dict(people=2.5), 'got 2.5'), (dict(people=True), 'got True'),
    (dict(most=1.5), 'most: .*got 1.5'), (dict(layout='nope'), "layout 'nope' is unknown"), (dict(layout='sysu_mm01'), 'SYSU-MM01')])
def test_what_cannot_be_drawn_leaves_nothing(world, tmp_path, options, words):
    with pytest.raises(ValueError, match=words): write_shards(world, tmp_path/'w', **{'layout': 'mannequins', **options})
    assert not list(tmp_path.iterdir())

# ---- the benchmark

def test_it_is_what_the_issue_asks_for():
    w = benchmark_worlds(NAME)['']
    assert w.identities==(1000,100,400) and w.size==(256,128) and w.cameras==8 and w.outfits==6 and not w.infrared
    assert world_hash(NAME)=='f912faeff7bbf32b'

def test_its_people_are_in_no_other_world():
    large = benchmark_worlds(NAME)['']
    mine = {repr(large.identity(i)) for i in range(0, large.people, 3)}
    others = {repr(w.identity(i)) for n in BENCHMARKS if n!=NAME for w in benchmark_worlds(n).values() for i in range(0, w.people, 5)}
    assert len(mine)==500 and not mine & others
    seeds = [spec['world']['seed'] for spec in BENCHMARKS.values()]
    assert len(set(seeds))==len(seeds)

def test_drawn_found_and_read(small, tmp_path):
    assert draw_benchmark(NAME, tmp_path, workers=1, most=2)==5 and not (tmp_path/NAME).exists()
    ds = benchmark(NAME, tmp_path, workers=1)
    assert (len(ds.train), ds.identities, ds.clothes, len(ds.query), len(ds.gallery))==(7*6, 7, 14, 4*6, 4*6)
    assert set(ds.protocols)=={'standard','same-clothes','clothes-changing'}
    world,scene,_ = find_scene(ds.train.path.iloc[-1])
    assert world.config==MannequinWorld(**WORLD).config and scene['identity']<7
    assert ds.samples.clothes.nunique()==26
    stamp = os.stat(tmp_path/NAME/MANIFEST).st_mtime_ns
    benchmark(NAME, tmp_path)
    assert os.stat(tmp_path/NAME/MANIFEST).st_mtime_ns==stamp

def test_only_large_ones_are_drawn_in_shards(tmp_path):
    with pytest.raises(ValueError, match='not drawn in shards'): draw_benchmark('mannequins', tmp_path, most=1)
    assert not list(tmp_path.iterdir()) and set(LARGE)<=set(BENCHMARKS)==set(module.BENCHMARKS)

def test_the_commands(small, tmp_path, capsys):
    from ccreid.cli import main
    assert main(['draw', NAME, '--root', str(tmp_path), '--most', '3', '--workers', '1'])==0
    assert '4 shards are left' in capsys.readouterr().out
    assert main(['draw', NAME, '--root', str(tmp_path), '--workers', '1'])==0 and 'complete' in capsys.readouterr().out
    assert main(['check', NAME, str(tmp_path)])==0
    assert '42' in capsys.readouterr().out
    next((tmp_path/NAME/'train').iterdir()).unlink()
    assert main(['check', NAME, str(tmp_path/NAME)])==1
    assert main(['draw', 'mannequins-huge', '--root', str(tmp_path)])==2 and 'unknown' in capsys.readouterr().err
    assert main(['draw', 'mannequins', '--root', str(tmp_path), '--most', '1'])==2

def test_how_fast_is_what_was_drawn_since_the_first_word(monkeypatch):
    "Several processes end their first shards together: nothing is known of the time before, but that it was there"
    from ccreid.commands import draw
    def told(*steps):
        watch,now = draw._Watch(),iter([t for n,(t,_,_) in enumerate(steps) for t in [t]*(2 if n==0 else 1)])
        monkeypatch.setattr(draw, 'monotonic', lambda: next(now))
        for _,done,total in steps: watch(done, total)
        return watch.told()
    assert told((0,0,900), (20,100,900), (20.1,200,900), (20.1,300,900))==' (15 images a second)'
    assert told((0,500,900), (10,600,900))==' (10 images a second)' and told((0,900,900))==''       # 500 were there; all were
    assert told((0,0,40), (5,40,40), (5,0,60), (10,60,60))==' (10 images a second)'                # two worlds, as of mannequins-dg

def test_a_bar_that_stays_unfinished_ends_its_line(small, tmp_path, monkeypatch, ccreid):
    class Terminal(io.StringIO):
        def isatty(self): return True
    monkeypatch.setattr(sys, 'stderr', t := Terminal())
    code,out,_ = ccreid('draw', NAME, '--root', tmp_path, '--most', 2, '--workers', 1)
    assert code==0 and t.getvalue().endswith('\n') and '5 shards are left' in out

def test_files_that_are_missing_are_said_and_drawn_again(small, tmp_path, ccreid):
    draw = 'draw',NAME,'--root',tmp_path,'--workers',1
    ccreid(*draw)
    next((tmp_path/NAME/'train').iterdir()).unlink()
    code,_,err = ccreid(*draw)
    assert code==2 and 'files missing' in err and '--overwrite' in err and len(err.splitlines())==1
    assert ccreid(*draw, '--overwrite')[0]==0 and ccreid('check', NAME, tmp_path)[0]==0

def test_what_a_chain_makes_of_a_benchmark_is_drawn_too(tmp_path, monkeypatch, ccreid):
    monkeypatch.setitem(BENCHMARKS['mannequins-ir'], 'world', dict(identities=(2,0,2), outfits=2, cameras=4, infrared=(2,3), images=1, size=(32,16), seed=5))
    assert ccreid('draw', 'mannequins-cmcc', '--root', tmp_path)[0]==0
    assert [p.name for p in tmp_path.iterdir()]==['mannequins-ir'] and ccreid('draw', 'mannequins-cm', '--root', tmp_path)[0]==2

# ---- recipes and rows

def test_recipes_are_those_for_photographs():
    from ccreid.recipes import recipe
    for method in 'identity','triplet','cal','cal+hsal','aim':
        large,real = recipe(NAME, method),recipe('prcc', method)
        assert {k: v for k,v in large.as_dict().items() if k not in ('data','size')}=={k: v for k,v in real.as_dict().items() if k not in ('data','size')}
        assert large.size==(256,128) and large.backbone=='resnet50' and not large.cache
    assert recipe('mannequins', 'cal').backbone=='resnet_mini'

def test_rows_are_declared_and_not_run():
    from ccreid.experiments import results_table
    from ccreid.registry import rows_of
    from ccreid.results import ChainResults
    rows = rows_of('hsgl', 'large')
    assert len(rows)==8 and {r.data for r in rows}=={NAME} and not [r for r in rows_of('hsgl', 'extended') if r in rows]
    table = results_table(ChainResults(ROOT/'benchmarks'/'results'/'hsgl.json', 'hsgl'), 'large')
    assert list(table.index)==[r.name for r in rows]
    if not (ROOT/'benchmarks'/'results'/'hsgl-large.json').exists(): assert (table.seeds=='not run').all()
