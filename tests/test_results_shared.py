"Results files that several processes fill together: nothing lost, nothing done twice, nothing written over"
import functools, json, multiprocessing, os, signal, tempfile, threading, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st
from ccreid import demo, experiments, registry, results as results_module
from ccreid.data.mannequins import world_hash
from ccreid.registry import CHAINS, Chain, Row
from ccreid.reports import Report
from ccreid.results import Results, pack, unpack
from ccreid.results_tables import difference, query_values, results_table

ROOT = Path(__file__).parent.parent
FROZEN = ROOT/'benchmarks'/'results'
FORK = multiprocessing.get_context('fork')
ROWS = [Row(f'row {i}', 'identity', dict(epochs=i+1)) for i in range(16)]

def figures(hits='10', ids=(1,2), **kw):
    n = len(hits)
    return dict(R1=hits.count('1')/n if n else None, R5=1., mAP=.4, mINP=.3, queries=n, skipped=0, hits=hits, ap=[.25]*n, identities=list(ids)) | kw

def record(row, seed, world='w', hits='10', ids=(1,2), **kw):
    return dict(row=row.name, world=world, recipe_hash=row.recipe.hash, seed=seed, seconds=1., protocols={'clothes-changing': figures(hits, ids, **kw)})

def strict(path):
    def no(c): raise ValueError(c)
    return json.loads(path.read_text(encoding='utf-8'), parse_constant=no)

@pytest.fixture
def chain(monkeypatch):
    "A chain of 80 runs that train nothing"
    monkeypatch.setitem(registry._here, 'shared', Chain('shared', rows=tuple(ROWS)))
    monkeypatch.setattr(results_module, 'world_hash', lambda name: 'w')
    monkeypatch.setattr(experiments, 'benchmark', lambda *a, **k: None)
    def no(*a): raise AssertionError('a run began')
    monkeypatch.setattr(experiments, 'run_row', no)
    return ROWS

def stub(trace, seconds=.004, at=None):
    "A training of milliseconds that writes down its beginning; `at` is called in it"
    def run_row(r, sets, seed, *args):
        with open(trace, 'a') as f: f.write(f'{r.hash} {seed} {os.getpid()}\n')
        if at: at(r, seed)
        time.sleep(seconds)
        return {k: v for k,v in record(ROWS[r.epochs-1], seed).items() if k not in ('row','world')}
    return run_row

def process(file, trace, log=None, seeds=range(5), **kw):
    "Another process that reproduces the chain"
    def target():
        experiments.run_row = stub(trace, **kw)
        experiments.reproduce('shared', file, file.parent, seeds, log=lambda line: log and open(log, 'a').write(line+'\n'))
    p = FORK.Process(target=target)
    p.start()
    return p

def begun(trace): return [tuple(l.split()[:2]) for l in trace.read_text().splitlines()] if trace.exists() else []

def wait_for(what, seconds=20):
    end = time.time()+seconds
    while not what():
        assert time.time()<end, 'waited in vain'
        time.sleep(.002)

def test_three_processes_share_eighty_runs(chain, tmp_path):
    file, trace = tmp_path/'r.json', tmp_path/'trace'
    ps, seen = [process(file, trace) for _ in range(3)], 0
    while any(p.is_alive() for p in ps):
        n = len(Results(file, 'shared', 'w').records)                           # whole at any moment, and never less than before
        assert n>=seen; seen = n
        time.sleep(.01)
    assert [p.exitcode for p in ps]==[0]*3
    wanted = sorted((row.recipe.hash, str(seed)) for row in ROWS for seed in range(5))
    assert sorted(begun(trace))==wanted                                         # none twice
    assert sorted((r['recipe_hash'], str(r['seed'])) for r in strict(file)['records'])==wanted
    assert len({l.split()[2] for l in trace.read_text().splitlines()})==3       # all three took part
    assert sorted(p.name for p in tmp_path.iterdir())==['.r.json.lock','r.json','trace']

def test_what_a_killed_process_was_doing_is_done_by_the_others(chain, tmp_path):
    file, trace, lines = tmp_path/'r.json', tmp_path/'trace', tmp_path/'lines'
    stuck = process(file, trace, seconds=60)
    wait_for(lambda: len(begun(trace))==1)
    other = process(file, trace, lines, (0,1))
    wait_for(lambda: len(begun(trace))>9)
    (tmp_path/f'.making-r.json-{stuck.pid}-abcdef').write_text('half')          # as if it had died writing
    (tmp_path/f'.making-other.json-{stuck.pid}-abcdef').write_text('half')      # of another file's writer
    os.kill(stuck.pid, signal.SIGKILL); stuck.join(); other.join()
    done = begun(trace)
    assert other.exitcode==0 and len(done)==33 and done.count(done[0])==2 and len(set(done))==32
    assert len(strict(file)['records'])==32 and 'another process' not in lines.read_text()
    assert sorted(p.name for p in tmp_path.iterdir())==['.making-other.json-%d-abcdef' % stuck.pid, '.r.json.lock', 'lines', 'r.json', 'trace']

def test_kills_at_any_moment_lose_nothing_that_was_kept(chain, tmp_path):
    file, trace = tmp_path/'r.json', tmp_path/'trace'
    kept = set()
    for k in range(6):
        p = process(file, trace, seeds=(0,1), seconds=0)
        time.sleep(.05+.013*k); p.kill(); p.join()
        if not file.exists(): continue
        now = {(r['row'], r['seed']) for r in strict(file)['records']}
        assert kept<=now; kept = now
    p = process(file, trace, seeds=(0,1)); p.join()
    assert len(strict(file)['records'])==32 and len(begun(trace))<=38           # each kill costs one run at most
    assert sorted(o.name for o in tmp_path.iterdir())==['.r.json.lock','r.json','trace']

def test_runs_of_others_are_said_and_left_to_them(chain, tmp_path, monkeypatch):
    file, trace, lines = tmp_path/'r.json', tmp_path/'trace', []
    stuck = process(file, trace, seconds=60)
    wait_for(lambda: len(begun(trace))==1)
    monkeypatch.setattr(experiments, 'run_row', stub(trace, 0))
    rows = [row.name for row in ROWS[:2]]
    results = experiments.reproduce('shared', file, tmp_path, rows=rows, log=lines.append)
    assert len(results.records)==9 and lines[-1]=='1 run is being done by another process: row 0, seed 0' and sum('R1 50.0' in l for l in lines)==9
    experiments.reproduce('shared', file, tmp_path, rows=rows, minutes=0, log=lines.append)
    assert len(lines)==11 and 'row 0, seed 0' in lines[-1]                      # theirs is not counted as not started
    stuck.kill(); stuck.join()
    assert results.claimed([(ROWS[0],0)])==[] and not list(tmp_path.glob('.r.json.claims'))

def test_threads_share_the_runs_too(chain, tmp_path, monkeypatch):
    file, trace = tmp_path/'r.json', tmp_path/'trace'
    monkeypatch.setattr(experiments, 'run_row', stub(trace))
    ts = [threading.Thread(target=experiments.reproduce, args=('shared', file, tmp_path), kwargs=dict(log=lambda _: None, seeds=(0,))) for _ in range(3)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert len(begun(trace))==len(set(begun(trace)))==len(strict(file)['records'])==16

def test_one_object_in_many_threads(chain, tmp_path):
    results = Results(tmp_path/'r.json', 'shared', 'w')
    ts = [threading.Thread(target=lambda i=i: [results.add(record(ROWS[i], s)) for s in range(4)]) for i in range(5)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert len(results.records)==len(strict(results.path)['records'])==20

def test_a_child_that_ends_does_not_give_the_claim_away(chain, tmp_path):
    results, runs = (Results(tmp_path/'r.json', 'shared', 'w') for _ in '12'), [(ROWS[0],0)]
    one, two = results
    with one.claim(runs) as mine:
        p = FORK.Process(target=lambda: None); p.start(); p.join()
        with two.claim(runs) as theirs: assert mine==runs[0] and theirs is None
    with two.claim(runs) as theirs: assert theirs==runs[0]

def test_an_interrupt_leaves_the_file_whole_and_the_claims_free(chain, tmp_path, monkeypatch):
    file, trace = tmp_path/'r.json', tmp_path/'trace'
    def stop(r, seed):
        if len(begun(trace))==4: raise KeyboardInterrupt
    monkeypatch.setattr(experiments, 'run_row', stub(trace, 0, stop))
    with pytest.raises(KeyboardInterrupt): experiments.reproduce('shared', file, tmp_path, log=lambda _: None)
    assert len(strict(file)['records'])==3
    results, runs = Results(file, 'shared', 'w'), [(row,0) for row in ROWS]
    with results.claim(runs) as run: assert run==(ROWS[3],0)
    assert results.claimed(runs)==[]

def test_a_link_to_the_file_is_the_same_file(chain, tmp_path):
    (tmp_path/'real').mkdir()
    one = Results(tmp_path/'real'/'r.json', 'shared', 'w'); one.add(record(ROWS[0], 0))
    (tmp_path/'link.json').symlink_to(one.path)
    two, runs = Results(tmp_path/'link.json', 'shared', 'w'), [(ROWS[1],0)]
    with one.claim(runs), two.claim(runs) as theirs: assert theirs is None
    two.add(record(ROWS[1], 0)); one.add(record(ROWS[2], 0))
    assert len(strict(one.path)['records'])==3 and two.path.is_symlink()

def test_records_are_merged_and_stale_ones_stay(chain, tmp_path):
    a, b = (Results(tmp_path/'r.json', 'shared', 'w') for _ in '12')
    assert a.add(record(ROWS[0], 0)) and b.add(record(ROWS[1], 0)) and a.add(record(ROWS[0], 1))
    assert [r['seed'] for r in b.of(ROWS[0])]==[0] and len(a.records)==3
    before = b.path.read_bytes()
    assert not b.add(record(ROWS[0], 1) | dict(seconds=9.)) and b.path.read_bytes()==before # the earlier one stays; both are equal up to time
    with pytest.warns(UserWarning, match=r'r\.json has other figures of row 0, seed 1: these stay'): assert not b.add(record(ROWS[0], 1, hits='11'))
    assert b.path.read_bytes()==before
    assert b.add(record(ROWS[0], 1, 'another world', '101', (4,4,5))) and b.add(record(ROWS[0], 1) | dict(recipe_hash='old'))
    c = Results(tmp_path/'r.json', 'shared', 'w')
    assert len(c.records)==5 and len(c.of(ROWS[0]))==2 and {r['recipe_hash']=='old' for r in c.of(ROWS[0], fresh=False)}=={True,False}
    other = Results(c.path, 'shared', 'another world').of(ROWS[0])[0]['protocols']['clothes-changing']
    assert (other['identities'], other['hits'])==([4,4,5], '101')               # queries of each world with their own people
    assert {tuple(r['protocols']['clothes-changing']['identities']) for r in c.of(ROWS[0])}=={(1,2)}
    c.remove(c.of(ROWS[0], fresh=False))
    assert len(a.records)==3 and a.add(record(ROWS[2], 0)) and len(a.records)==4 # what was taken out does not come back

def test_a_file_that_was_joined_by_hand(chain, tmp_path):
    "Of two records of one run the first counts; what else stands in the file stays"
    results = Results(tmp_path/'r.json', 'shared', 'w')
    for s in (1,0): results.add(record(ROWS[0], s)); results.add(record(ROWS[1], s, hits='11'))
    saved = strict(results.path)
    saved['records'] += [r | dict(device='another') for r in saved['records'][:2]]
    results.path.write_text(json.dumps(saved | dict(note='joined')))
    results.read()
    assert [(r['seed'], 'device' in r) for r in results.of(ROWS[0])]==[(0,False),(1,False)]
    assert results_table(results, ['row 0','row 1']).loc['row 1','clothes-changing R1 difference'].startswith('+50.0')
    results.add(record(ROWS[2], 0))
    saved = strict(results.path)
    assert len(saved['records'])==7 and saved['note']=='joined'

@pytest.mark.parametrize('change,words', [(dict(recipe_hash=None), 'has no recipe_hash'), (dict(protocols={'p': figures(ap=[.5, float('nan')])}), 'none missing'), (dict(protocols=None), 'row 3'),
    (dict(protocols={'p': figures(hits='101')}), 'do not fit'), (dict(protocols={'p': {}}), 'row 3')])
def test_what_is_no_record_is_not_kept(chain, tmp_path, change, words):
    results = Results(tmp_path/'r.json', 'shared', 'w')
    with pytest.raises(ValueError, match=words) as e: results.add(record(ROWS[3], 2) | change)
    assert "Row 'row 3', seed 2 is not kept: " in str(e.value) and not results.path.exists()

def test_a_file_that_goes_is_written_again(chain, tmp_path):
    results = Results(tmp_path/'r.json', 'shared', 'w')
    results.add(record(ROWS[0], 0)); results.path.unlink(); results.add(record(ROWS[1], 0))
    assert len(strict(results.path)['records'])==2

WRONG = {'empty': (b'', 'is empty: move it away'), 'page': (b'<!DOCTYPE html><title>502</title>', 'is a web page'), 'pointer': (b'version https://git-lfs.github.com/spec/v1\n', 'Git LFS'),
    'half': (b'{"chain": "shared", "identities": {}, "rec', 'is damaged, or no results file: move it away'), 'list': (b'[]', 'holds list, not dict'), 'deep': (b'['*100_000, 'is damaged'),
    'other': (b'{"what": "a demo"}', 'is no results file'), 'records': (b'{"chain": "shared", "identities": {}, "records": {}}', 'is no results file'),
    'chain': (b'{"chain": "hsgl", "identities": {}, "records": []}', 'holds the results of the chain hsgl, not of shared: choose another file')}

@pytest.mark.parametrize('kind', WRONG)
def test_a_file_that_is_something_else_is_refused_and_stays(chain, tmp_path, kind):
    content, words = WRONG[kind]
    (file := tmp_path/'r.json').write_bytes(content)
    for call in (lambda: Results(file, 'shared', 'w'), lambda: experiments.reproduce('shared', file, tmp_path)):
        with pytest.raises(ValueError) as e: call()
        assert str(e.value).startswith(f'{file} ') and words in str(e.value) and '\n' not in str(e.value)
    assert file.read_bytes()==content and [p.name for p in tmp_path.iterdir()]==['r.json']

def test_a_file_that_turns_bad_meanwhile_is_not_written_over(chain, tmp_path):
    results = Results(tmp_path/'r.json', 'shared', 'w')
    results.add(record(ROWS[0], 0))
    for content in WRONG.values():
        results.path.write_bytes(content[0])
        with pytest.raises(ValueError): results.add(record(ROWS[1], 0))
        assert results.path.read_bytes()==content[0] and len(results.records)==1

def test_a_folder_is_no_results_file(chain, tmp_path):
    with pytest.raises(ValueError, match='is a folder, not a file'): Results(tmp_path, 'shared', 'w')

def spoil(**change): return lambda r: r | change
def spoil_figures(**change): return lambda r: r | dict(protocols={'clothes-changing': {**r['protocols']['clothes-changing'], **change}})

@pytest.mark.parametrize('change,words', [(spoil(row=3), 'has no row'), (spoil(seed='0'), 'has no seed'), (spoil(recipe_hash=None), 'has no recipe_hash'), (spoil(protocols=[]), 'has no protocols'),
    (lambda r: {k: v for k,v in r.items() if k not in ('row','world')}, 'has no row, world'), (lambda r: 'text', 'a record is str, not dict'), (spoil(protocols={'clothes-changing': 5}), 'do not fit'),
    (spoil(protocols={'new': dict(hits='x1', ap=[])}), 'do not fit'), *[(spoil_figures(**c), 'do not fit') for c in (dict(hits='x17'), dict(hits='0'), dict(hits=3), dict(ap='AAAA'), dict(ap='é'), dict(ap=None),
    dict(ap=pack([.5]*100_000)), dict(identities=[1]), dict(identities='none'), dict(identities=7))]])
def test_a_record_of_the_wrong_shape_is_named(chain, tmp_path, change, words):
    results = Results(tmp_path/'r.json', 'shared', 'w')
    results.add(record(ROWS[0], 0)); results.add(record(ROWS[3], 2))
    saved = strict(results.path); saved['records'][1] = change(saved['records'][1])
    results.path.write_text(json.dumps(saved))
    with pytest.raises(ValueError) as e: Results(results.path, 'shared', 'w')
    text = str(e.value)
    assert text.startswith(f'{results.path} is damaged, or of another version: ') and words in text and '\n' not in text
    if words=='do not fit' or 'recipe_hash' in words: assert "row 'row 3', seed 2" in text

@given(data=st.data())
def test_damage_anywhere_is_one_sentence_or_harmless(data):
    content = _small()
    at = data.draw(st.integers(0, len(content)-1))
    cut = data.draw(st.booleans())
    bad = content[:at] if cut else content[:at]+data.draw(st.binary(min_size=1, max_size=3))+content[at+1:]
    file = Path(_folder.name)/'r.json'
    file.write_bytes(bad)
    try: results = Results(file, 'foundations', 'w')
    except ValueError as e: assert str(e).startswith(f'{file} ') and '\n' not in str(e)
    else:
        for r in results.records:
            for p in r['protocols'].values(): assert len(p['hits'])==len(p['ap'])==len(p['identities'])

_folder = tempfile.TemporaryDirectory()
@functools.cache
def _small():
    r = Results(Path(_folder.name)/'small.json', 'foundations', 'w')
    for s in range(2): r.add(record(CHAINS['foundations'][0], s, hits='1101', ids=(1,1,2,3)))
    return r.path.read_bytes()

@pytest.mark.parametrize('chain', ['foundations','hsgl'])
def test_frozen_files_read_as_ever_and_are_written_back_the_same(chain, tmp_path):
    content = (FROZEN/f'{chain}.json').read_bytes()
    (file := tmp_path/f'{chain}.json').write_bytes(content)
    results, saved = Results(file, chain, 'w'), json.loads(content)
    assert len(results.records)==len(saved['records'])
    for r,s in zip(results.records, saved['records']):
        assert {k: v for k,v in r.items() if k!='protocols'}=={k: v for k,v in s.items() if k!='protocols'}
        for k,p in s['protocols'].items():
            full, ids = r['protocols'][k], saved['identities'][k if r['data']=='mannequins' else f"{r['data']} {k}"]
            assert full=={**p, 'identities': ids, 'hits': unpack(p['hits']), 'ap': unpack(p['ap'])}
            assert full['hits'].count('1')/len(ids)==pytest.approx(full['R1']) and np.mean(full['ap'])==pytest.approx(full['mAP'], abs=1e-4)
    results.remove([])
    assert file.read_bytes()==content

def test_tables_of_the_frozen_files_are_those_of_the_pages():
    "The figures that the page of the foundations prints"
    table = results_table(Results(FROZEN/'foundations.json', 'foundations', world_hash('mannequins')))
    assert table.loc['CAL'].tolist()[:3]==[5, '99.3 ± 0.3', '96.8 ± 0.4']
    assert table.loc['identity loss','clothes-changing R1']=='7.4 ± 1.5' and table.loc['CAL','clothes-changing R1']=='6.9 ± 1.0'

def test_no_query_counts(chain, tmp_path):
    "What has no figure is null in the file and n/a in tables"
    nan = float('nan')
    results = Results(tmp_path/'r.json', 'shared', 'w')
    for i in range(2):
        for s in range(2): results.add(record(ROWS[i], s, hits='', ids=(), R1=nan, R5=nan, mAP=nan, mINP=np.float32('nan')))
    saved = strict(results.path)
    assert saved['records'][0]['protocols']['clothes-changing']['mAP'] is None
    for r in (results, Results(results.path, 'shared', 'w')):
        table = results_table(r)
        assert table.loc['row 1'].tolist()==[2,'n/a','n/a','n/a'] and table.loc['row 0'].tolist()[:3]==[2,'n/a','n/a'] and table.loc['row 2','seeds']=='not run'
        assert all(query_values(o, 'clothes-changing', w).shape==(0,) for o in r.records for w in ('R1','mAP'))
        with pytest.raises(ValueError, match='clothes-changing: no query counts'): difference(r.of(ROWS[1]), r.of(ROWS[0]), 'clothes-changing')

def test_differences_need_the_same_queries(chain):
    a, b = record(ROWS[0], 0), record(ROWS[1], 0, ids=(1,3))
    with pytest.raises(ValueError, match='same queries'): difference([a], [b], 'clothes-changing')
    with pytest.raises(ValueError, match='same queries'): difference([a, record(ROWS[0], 1, hits='101', ids=(1,2,2))], [a, record(ROWS[0], 1)], 'clothes-changing')
    assert difference([record(ROWS[0], 0, hits='11')], [a], 'clothes-changing')[0]==50

@given(st.lists(st.floats(0, 1)), st.text('01'))
def test_packing_is_exact_to_four_digits(values, hits):
    assert unpack(pack(hits))==hits and unpack(pack(values), len(values))==[round(10_000*v)/10_000 for v in values]
    for bad in (float('nan'), -.1, 1.1, float('inf')):
        with pytest.raises(ValueError): pack([*values, bad])

@pytest.mark.parametrize('minutes', [-1, -.5, float('nan'), float('-inf')])
def test_minutes_that_are_none(chain, tmp_path, minutes):
    with pytest.raises(ValueError, match='a number from 0 on is needed'): experiments.reproduce('shared', tmp_path/'r.json', tmp_path, minutes=minutes)
    assert not list(tmp_path.iterdir())

def test_where_nothing_can_be_written_nothing_is_begun(chain, tmp_path, monkeypatch):
    def no(*a): raise AssertionError('images were drawn')
    monkeypatch.setattr(experiments, 'benchmark', no)
    (tmp_path/'file').write_text('')
    with pytest.raises(ValueError, match='r.json cannot be read: Not a directory$'): experiments.reproduce('shared', tmp_path/'file'/'r.json', tmp_path)
    def denied(*a): raise PermissionError(13, 'Permission denied')
    with monkeypatch.context() as patch:
        patch.setattr(os, 'mkdir', denied)
        with pytest.raises(OSError, match='cannot write to .*new: Permission denied$'): experiments.reproduce('shared', tmp_path/'new'/'r.json', tmp_path)
    results = Results(tmp_path/'r.json', 'shared', 'w'); results.add(record(ROWS[0], 0))
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    with pytest.raises(OSError, match='r.json is write-protected'): experiments.reproduce('shared', results.path, tmp_path)
    assert len(strict(results.path)['records'])==1

def test_a_finished_chain_is_read_where_nothing_can_be_written(chain, tmp_path, monkeypatch):
    results = Results(tmp_path/'r.json', 'shared', 'w')
    for s in range(5): results.add(record(ROWS[0], s))
    def full(*a, **k): raise OSError(30, 'Read-only file system')
    for o in ('open','replace','mkdir','unlink'): monkeypatch.setattr(os, o, full)
    assert len(experiments.reproduce('shared', results.path, tmp_path, rows=['row 0']).records)==5

def test_a_full_disk_leaves_what_was_there(chain, tmp_path, monkeypatch):
    results = Results(tmp_path/'r.json', 'shared', 'w')
    results.add(record(ROWS[0], 0))
    before = results.path.read_bytes()
    def full(*a): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='cannot write .*r.json: No space left on device'): results.add(record(ROWS[1], 0))
    assert results.path.read_bytes()==before and len(results.records)==1
    monkeypatch.undo(); assert results.add(record(ROWS[1], 0))
    assert sorted(p.name for p in tmp_path.iterdir())==['.r.json.lock','r.json']

def test_a_report_is_whole_or_as_it_was(tmp_path, monkeypatch):
    report = Report('Names', os.fsdecode(b'from \xd6\xd0.jpg'))
    path = report.write(tmp_path/'a'/'report.html')
    assert 'from \\udcd6\\udcd0.jpg' in path.read_text(encoding='utf-8') and [p.name for p in path.parent.iterdir()]==['report.html']
    def full(*a): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='cannot write .*report.html'): Report('Other').write(path)
    assert 'Names' in path.read_text(encoding='utf-8') and [p.name for p in path.parent.iterdir()]==['report.html']

def test_the_demos_figures_are_strict_json_and_whole(tmp_path, monkeypatch):
    nan, lines = float('nan'), []
    empty = dict(R1=nan, R5=nan, mAP=nan, mINP=nan, hits='', ap=[], identities=[])
    def run(r, *a, **k): return None, dict(seed=0, seconds=1., recipe=r.as_dict(), protocols={'clothes-changing': dict(empty), 'same-clothes': figures()})
    world = SimpleNamespace(write=lambda *a, **k: SimpleNamespace(train=pd.DataFrame(dict(identity=[1]))))
    for name,value in dict(run=run, quick_world=lambda: world, PKSampler=lambda *a: SimpleNamespace(batches=1), export_reid=lambda *a: None, write_report=lambda *a: None,
                           generated_images=lambda *a: (None, ''), Sets=lambda dataset, root: {'': dataset, 'shsg-fifth': dataset}).items(): monkeypatch.setattr(demo, name, value)
    summary = demo.demo(tmp_path, quick=True, log=lines.append)
    saved = strict(tmp_path/'metrics.json')
    assert saved['methods']['CAL']['protocols']['clothes-changing']['mAP'] is None and saved['methods']['CAL']['protocols']['same-clothes']['mAP']==.4
    assert summary['difference']=='Clothes-changing rank-1: n/a, no query counts.' and 'n/a' in lines[-1] and 'nan' not in lines[-1]
    before = (tmp_path/'metrics.json').read_bytes()
    def full(*a): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='cannot write .*metrics.json'): demo.demo(tmp_path, quick=True, log=lines.append)
    assert (tmp_path/'metrics.json').read_bytes()==before and [p.name for p in tmp_path.iterdir() if p.name!='.lock']==['metrics.json']
