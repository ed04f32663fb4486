"Expansions: killed at any moment, shared by processes, damaged, out of room, moved; names, seeds and bad images"
import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps

from ccreid import files
from ccreid.data.samples import DataError, make_table
from ccreid.generation import expansion, records
from ccreid.generation.expansion import Rate, SkipImage, expand, read_expansion
from ccreid.generation.records import encode_png, file_names, image_key, image_seed, read_manifest

fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')


def picture(seed, size=(16,24)): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1],3), np.uint8))

def people(root, n=6, folder='rgb/train', size=(16,24)):
    "Sample table of `n` noise images of three people, all with the same file names"
    rows = []
    for i in range(n):
        p = Path(root)/folder/f'{i%3:03d}'/f'A_cropped_rgb{i//3:03d}.png'
        p.parent.mkdir(parents=True, exist_ok=True)
        picture(i, size).save(p)
        rows.append(dict(dataset='prcc', path=str(p), identity=i%3, clothes=i%3, camera=i%2, split='train'))
    return make_table(rows)

def noisy(images, rows, variants, seeds):
    "What comes out depends on the image and the seed"
    return [Image.fromarray(np.asarray(im)^np.random.default_rng(s).integers(0, 256, (im.height,im.width,3), np.uint8)) for im,s in zip(images, seeds)]

def run(table, out, variants=3, edit=noisy, **kw): return expand(table, edit, out, variants, **{'generated_by':'noisy', 'progress':False, **kw})

def contents(out): return {p.relative_to(out).as_posix(): p.read_bytes() for p in Path(out).rglob('*') if p.is_file() and not p.name.startswith('manifest-')}

def on_record(out):
    "Good lines, counted"
    res = []
    for f in Path(out).glob('manifest-*'):
        for l in f.read_bytes().split(b'\n'):
            try: l = json.loads(l); res.append((l['source'],l['variant']))
            except ValueError: pass
    return sorted(res)

def child(f):
    "Run `f` in a forked child; its process id"
    pid = os.fork()
    if pid: return pid
    code = 1
    try: f(); code = 0
    except BaseException as e: os.write(2, f'{type(e).__name__}: {e}\n'.encode()); code = 3 if isinstance(e, OSError) else 1
    finally: os._exit(code)

def wait(pid): return os.waitpid(pid, 0)[1]

@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "A table, and the folder and result of a call that was never interrupted"
    root = tmp_path_factory.mktemp('done')
    table = people(root/'in')
    return table, root/'out', run(table, root/'out')


# --- the result

def test_table_of_the_result(done):
    table,out,res = done
    assert len(res)==18 and res.variant.tolist()==[0,1,2]*6 and res.source.tolist()==[p for p in table.path for _ in range(3)]
    for c in 'identity','camera','dataset','modality': assert res[c].tolist()==[v for v in table[c] for _ in range(3)]
    assert set(res.clothes)=={-1} and set(res.split)=={'train'} and set(res.generated_by)=={'noisy'} and res.path.is_unique
    assert {c: str(t) for c,t in res.dtypes.items() if c in ('identity','clothes','camera','variant')}==dict.fromkeys(('identity','clothes','camera','variant'), 'int64')
    assert all(Path(p).is_absolute() and Path(p).is_relative_to(out) for p in res.path)
    make_table(pd.concat([table, res], ignore_index=True))    # fits beside the originals

def test_a_generated_image_keeps_the_split_of_its_source(done, tmp_path):
    splits = ['train','query','gallery','val','test','train']
    asked = done[0].assign(split=splits)
    res = run(asked, tmp_path/'o')
    assert res.split.tolist()==[s for s in splits for _ in range(3)] and len(res)==18
    assert read_expansion(tmp_path/'o', asked).split.tolist()==res.split.tolist()
    describe = lambda out: json.loads((out/'job.json').read_text())
    assert describe(tmp_path/'o')==describe(done[1])                            # the split is no part of the job

def test_every_file_is_what_the_edit_made_of_its_own_seed(done):
    table,out,res = done
    seeds = [image_seed(0, r.source, r.variant) for r in res.itertuples()]
    for r,s in zip(res.itertuples(), seeds):
        assert np.array_equal(np.asarray(Image.open(r.path)), np.asarray(noisy([Image.open(r.source)], None, None, [s])[0]))
    lines = read_manifest(out)
    assert [lines[r.source,r.variant]['seed'] for r in res.itertuples()]==seeds and len(set(seeds))==18

def test_the_seed_of_the_job_reaches_every_image_and_its_record(done, tmp_path):
    (table,_,res),seen = done,[]
    def edit(images, rows, variants, seeds): seen.extend(seeds); return noisy(images, rows, variants, seeds)
    other = run(table, tmp_path/'o', seed=5, edit=edit)
    expected = [image_seed(5, r.source, r.variant) for r in other.itertuples()]
    lines = read_manifest(tmp_path/'o')
    assert seen==expected==[lines[r.source,r.variant]['seed'] for r in other.itertuples()] and json.loads((tmp_path/'o/job.json').read_text())['seed']==5
    for a,b,s in zip(res.path, other.path, expected):
        assert Path(a).name==Path(b).name and Path(a).read_bytes()!=Path(b).read_bytes()

def test_an_edit_gets_rows_variants_and_seeds_and_nothing_that_depends_on_the_batch(done, tmp_path):
    table,_,_ = done
    seen = {}
    for batch in (1,4,100):
        calls = []
        def spy(images, rows, variants, seeds):
            assert len(images)==len(rows)==len(variants)==len(seeds)<=batch
            assert all(im.mode=='RGB' and type(r) is dict and type(v) is int and type(s) is int for im,r,v,s in zip(images, rows, variants, seeds))
            calls.extend((r['path'],r['identity'],v,s,im.tobytes()) for im,r,v,s in zip(images, rows, variants, seeds))
            return images
        run(table, tmp_path/str(batch), edit=spy, batch=batch, accept='unchanged')
        seen[batch] = calls
    assert seen[1]==seen[4]==seen[100] and len(seen[1])==18
    assert [c[:2] for c in seen[1][::3]]==list(zip(table.path, table.identity))

@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(1,4), st.integers(0,3), st.integers(1,7), st.one_of(st.none(), st.integers(0,7)), st.booleans()), max_size=5))
def test_any_sequence_of_partial_calls_ends_the_same(done, tmp_path_factory, calls):
    table,out,res = done
    folder = tmp_path_factory.mktemp('parts')/'out'
    for n,i,batch,limit,subset in calls: run(table.iloc[1:4] if subset else table, folder, shard=(i%n,n), batch=batch, limit=limit, variants=[1] if subset else 3)
    last = run(table, folder)
    assert contents(folder)==contents(out)
    pd.testing.assert_frame_equal(last.drop(columns='path'), res.drop(columns='path'))
    assert on_record(folder)==on_record(out)                  # nothing made twice

def test_shards_share_the_work_and_leave_nothing_out(done, tmp_path):
    table,out,_ = done
    made = [run(table, tmp_path/'o', shard=(i,4)).attrs['expansion']['made'] for i in range(4)]
    assert made==[6,6,3,3]                                    # whole images: 6 images, 3 variants each
    assert contents(tmp_path/'o')==contents(out)
    again = run(table, tmp_path/'o', shard=(2,5))             # another layout collects everything
    assert len(again)==18 and again.attrs['expansion']==dict(made=0, found=18, damaged=0, skipped={})

def test_more_variants_later_and_variants_by_number(done, tmp_path):
    table,out,_ = done
    run(table, tmp_path/'o', variants=[2]); run(table, tmp_path/'o', variants=2)
    assert contents(tmp_path/'o')==contents(out)
    assert run(table, tmp_path/'o', variants=(2,0)).variant.tolist()==[0,2]*6

def test_limit_and_progress(done, tmp_path):
    table,calls = done[0],[]
    kw = dict(batch=4, progress=lambda *a: calls.append(a))
    assert len(run(table, tmp_path/'o', limit=5, **kw))==5 and calls==[(4,5),(5,5)]
    calls.clear(); assert len(run(table, tmp_path/'o', limit=5, **kw))==10
    calls.clear(); assert len(run(table, tmp_path/'o', limit=0, **kw))==10 and not calls
    assert run(table, tmp_path/'o', **kw).attrs['expansion']==dict(made=8, found=10, damaged=0, skipped={}) and calls[-1]==(8,8)

def test_a_bar_on_the_terminal_with_rate_and_time_left(done, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self): return True
    shown = Terminal()
    run(done[0], tmp_path/'o', limit=5)
    monkeypatch.setattr(sys, 'stderr', shown)
    run(done[0], tmp_path/'o', progress=True, batch=4)
    last = shown.getvalue().split('\r')[-1]
    assert last.startswith('[##############################] 13/13 images, ') and last.rstrip().endswith('/s, 0:00:00 left (5 found)') and last.endswith('\n')

def test_a_manifest_grows_by_a_line_an_image_and_is_never_rewritten(done, tmp_path, monkeypatch):
    "What 200,000 images need: bytes written to manifests are the bytes that are there in the end"
    written = []
    class Counted(io.FileIO):
        def write(self, data): n = super().write(data); written.append((os.path.basename(self.name), n)); return n
    monkeypatch.setattr(records, 'open', lambda p, mode, **k: Counted(p, 'a+') if mode=='ab+' else open(p, mode, **k), raising=False)
    for _ in range(2): run(done[0], tmp_path/'o', variants=20, limit=60)
    log = tmp_path/'o'/'manifest-000-of-001.jsonl'
    assert sum(n for _,n in written)==log.stat().st_size and {f for f,_ in written}=={log.name}
    assert len(written)==120==len(log.read_bytes().splitlines())

def test_the_number_of_variants_may_come_from_numpy(done, tmp_path):
    assert run(done[0], tmp_path/'o', variants=np.int64(2)).variant.tolist()==run(done[0], tmp_path/'o', variants=np.arange(2)).variant.tolist()==[0,1]*6

def test_no_rows_at_all(done, tmp_path):
    res = run(done[0].iloc[:0], tmp_path/'o')
    assert len(res)==0 and {'variant','source','generated_by'}<=set(res.columns) and res.clothes.dtype=='int64'

def test_notes_go_on_record_and_become_columns(done, tmp_path):
    def edit(images, rows, variants, seeds): return [(im,dict(prompt=f'a coat, {v}', steps=v)) if v else im for im,v in zip(images, variants)]
    for _ in range(2): res = run(done[0], tmp_path/'o', edit=edit, variants=2, accept='unchanged')
    assert res.prompt.tolist()==[None,'a coat, 1']*6 or res.prompt.isna().tolist()==[True,False]*6
    assert [l.get('notes') for l in read_manifest(tmp_path/'o').values()]==[None,dict(prompt='a coat, 1', steps=1)]*6
    with pytest.raises(DataError, match="'camera'"): run(done[0], tmp_path/'p', edit=lambda ims, *a: [(im,dict(camera=1)) for im in ims], accept='unchanged')


# --- killed

@fork
def test_killed_twenty_times_at_random_moments(tmp_path):
    "A child tells of each call of its edit, which takes its time; it is killed some calls and some milliseconds later, on any machine before it is done"
    table,kw = people(tmp_path/'in', 20),dict(variants=20)
    whole = run(table, tmp_path/'whole', **kw)
    rng,counts,killed = random.Random(0),[],0
    for k in range(20):
        r,w = os.pipe()
        def telling(*a): os.write(w, b'.'); time.sleep(.004); return noisy(*a)
        pid = child(lambda: run(table, tmp_path/'out', edit=telling, batch=1+k%3, shard=[(0,1),(0,1),(k%3,3)][k%3], **kw))
        os.close(w)
        for _ in range(rng.randint(0, 5)): os.read(r, 1)                      # nothing to read: the child has finished
        time.sleep(rng.uniform(0, .02)); os.kill(pid, signal.SIGKILL); os.close(r)
        killed += os.WIFSIGNALED(wait(pid))
        counts.append(len(list((tmp_path/'out').rglob('*.png'))))
        for p in (tmp_path/'out').rglob('*.png'): Image.open(p).load()        # whole, each of them, at every moment
    assert counts==sorted(counts) and len(set(counts))>10 and killed>15
    res = run(table, tmp_path/'out', **kw)
    assert contents(tmp_path/'out')==contents(tmp_path/'whole')
    assert on_record(tmp_path/'out')==on_record(tmp_path/'whole')
    pd.testing.assert_frame_equal(res.drop(columns='path'), whole.drop(columns='path'))

STAGES = ['mkdir','lock','job','open','write','replace','replaced','line','torn','lined']

def die(): os.kill(os.getpid(), signal.SIGKILL)

def killed_at(stage, nth, table, out):
    "Run in a child that kills itself when it comes to a stage for the n-th time"
    count = [0]
    def due():
        count[0] += 1
        if count[0]==nth: die()
    def before(f):
        def g(*a, **k): due(); return f(*a, **k)
        return g
    def after(f):
        def g(*a, **k):
            r = f(*a, **k); due(); return r
        return g
    R = records.Recorder
    class Half(io.FileIO):
        def write(self, data): super().write(bytes(data)[:len(data)//2]); due(); return super().write(bytes(data)[len(data)//2:])
    if stage=='mkdir': Path.mkdir = after(Path.mkdir)
    elif stage=='lock': records.hold = after(records.hold)
    elif stage=='job': os.link = before(os.link)
    elif stage=='open': files.open = lambda p, mode, **k: (after(open) if mode=='wb' else open)(p, mode, **k)
    elif stage=='write': files.open = lambda p, mode, **k: Half(p, 'w') if mode=='wb' else open(p, mode, **k)
    elif stage=='replace': os.replace = before(os.replace)
    elif stage=='replaced': os.replace = after(os.replace)
    elif stage=='line': R._append = before(R._append)
    elif stage=='lined': R._append = after(R._append)
    elif stage=='torn':
        def torn(self, data): self.log.write(data[:len(data)//2]); due(); self.log.write(data[len(data)//2:])
        R._append = torn
    run(table, out, batch=2)

@fork
@pytest.mark.parametrize('stage', STAGES)
def test_killed_at_every_stage(done, tmp_path, stage):
    table,whole,_ = done
    died = 0
    for nth in (1,2,5):
        out = tmp_path/str(nth)
        for _ in range(2):                                    # killed twice in the same place
            died += os.WIFSIGNALED(wait(child(lambda: killed_at(stage, nth, table, out))))
        run(table, out, batch=3)
        assert contents(out)==contents(whole) and set(on_record(out))==set(on_record(whole))
        assert len(on_record(out))==18                        # no file is made again that had its line
    assert died>=2

def test_a_manifest_torn_at_any_byte(done, tmp_path):
    table,whole,_ = done
    run(table.head(2), tmp_path/'o', variants=2)
    f = tmp_path/'o'/'manifest-000-of-001.jsonl'
    data = f.read_bytes()
    last = data[:-1].rindex(b'\n')+1
    for cut in [*range(last, len(data), 7), len(data)-2, len(data)-1]:
        f.write_bytes(data[:cut])
        res = run(table.head(2), tmp_path/'o', variants=2)
        assert len(res)==4 and res.attrs['expansion']['made']==int(cut<len(data)-1)   # only the line break missing: the line is whole
        assert len(read_manifest(tmp_path/'o'))==4 and f.read_bytes().startswith(data[:cut])
    f.write_bytes(b'\0'*100+b'\n'+b'[1]\n{"source":3}\nnull\n'+data)                      # rubbish between good lines
    assert run(table.head(2), tmp_path/'o', variants=2).attrs['expansion']['made']==0

def test_an_error_in_the_edit_loses_nothing_that_was_finished(done, tmp_path):
    table,whole,_ = done
    def fails(images, rows, variants, seeds):
        if rows[0]['path']==table.path[3]: raise RuntimeError('CUDA out of memory')
        return noisy(images, rows, variants, seeds)
    with pytest.raises(RuntimeError, match='out of memory'): run(table, tmp_path/'o', edit=fails, batch=3)
    assert len(on_record(tmp_path/'o'))==9
    run(table, tmp_path/'o')
    assert contents(tmp_path/'o')==contents(whole)


# --- several at once

@fork
def test_four_processes_in_one_folder(done, tmp_path):
    table,whole,_ = done
    pids = [child(lambda i=i: run(table, tmp_path/'o', shard=(i,4), batch=1)) for i in range(4)]
    assert [wait(p) for p in pids]==[0]*4
    assert len(run(table, tmp_path/'o', shard=(0,2)))==18
    assert contents(tmp_path/'o')==contents(whole) and on_record(tmp_path/'o')==on_record(whole)

@fork
def test_two_processes_with_the_same_shard(done, tmp_path):
    table,_,_ = done
    r,w = os.pipe()
    def slow(*a): os.write(w, b'.'); time.sleep(30); return noisy(*a)
    pid = child(lambda: run(table, tmp_path/'o', edit=slow))
    try:
        os.read(r, 1)
        (tmp_path/'o'/'.making-000-of-001').write_bytes(b'half')              # what the other one is writing
        with pytest.raises(BlockingIOError, match='another process is at work on shard 0/1') as e: run(table, tmp_path/'o')
        assert '\n' not in str(e.value)
        run(table, tmp_path/'o', shard=(1,2))                                 # another shard may work, and leaves that file alone
        assert (tmp_path/'o'/'.making-000-of-001').exists()
    finally: os.kill(pid, signal.SIGKILL); wait(pid)
    res = run(table, tmp_path/'o', shard=(0,2))
    assert len(res)==18 and not (tmp_path/'o'/'.making-000-of-001').exists()  # now it is nobody's


# --- damaged

@pytest.mark.parametrize('how', ['gone','empty','short','long'])
def test_damaged_files_are_made_again(done, tmp_path, how):
    table,whole,_ = done
    res = run(table, tmp_path/'o')
    p = Path(res.path[7]); data = p.read_bytes()
    if how=='gone': p.unlink()
    else: p.write_bytes(dict(empty=b'', short=data[:-1], long=data+b'0')[how])
    res = run(table, tmp_path/'o')
    assert res.attrs['expansion']==dict(made=1, found=17, damaged=1, skipped={})
    assert contents(tmp_path/'o')==contents(whole)

def test_a_flipped_bit_shows_in_the_full_check(done, tmp_path):
    table,whole,_ = done
    res = run(table, tmp_path/'o')
    p = Path(res.path[7]); data = bytearray(p.read_bytes()); data[60] ^= 4; p.write_bytes(data)
    assert run(table, tmp_path/'o').attrs['expansion']['made']==0
    assert run(table, tmp_path/'o', check='full').attrs['expansion']==dict(made=1, found=17, damaged=1, skipped={})
    assert contents(tmp_path/'o')==contents(whole)

def test_somebody_elses_damage_is_not_in_the_table(done, tmp_path):
    table,_,_ = done
    res = run(table, tmp_path/'o')
    Path(res.path[17]).unlink()                               # of row 5: shard 1 of 2
    assert len(run(table, tmp_path/'o', shard=(0,2)))==17 and len(run(table, tmp_path/'o', shard=(1,2)))==18

def test_a_source_that_was_replaced(tmp_path):
    table = people(tmp_path/'in', 3)
    run(table, tmp_path/'o'); before = contents(tmp_path/'o')
    p = Path(table.path[1]); old = p.read_bytes()
    picture(99, (20,30)).save(p)
    assert run(table, tmp_path/'o').attrs['expansion']['made']==3 and contents(tmp_path/'o')!=before
    assert run(table, tmp_path/'o').attrs['expansion']['made']==0             # the last line about an image holds
    p.write_bytes(old); run(table, tmp_path/'o', shard=(1,3))                 # also of two processes
    assert run(table, tmp_path/'o').attrs['expansion']['made']==0
    assert contents(tmp_path/'o')==before
    picture(99, (20,30)).save(p); run(table, tmp_path/'o')                    # and whichever of the two came last
    assert run(table, tmp_path/'o').attrs['expansion']['made']==0
    p.write_bytes(old); run(table, tmp_path/'o')
    assert contents(tmp_path/'o')==before
    Path(table.path[0]).unlink()                              # gone: what was made of it stays
    assert run(table, tmp_path/'o', check='full').attrs['expansion']==dict(made=0, found=9, damaged=0, skipped={})

def test_a_source_of_the_same_size_and_other_content_shows_in_the_full_check(tmp_path):
    table = people(tmp_path/'in', 2)
    for k,p in enumerate(table.path): picture(k).save(p, format='BMP')        # as long as any other of its size
    run(table, tmp_path/'o'); before = contents(tmp_path/'o')
    picture(9).save(table.path[1], format='BMP')
    assert run(table, tmp_path/'o').attrs['expansion']['made']==0 and contents(tmp_path/'o')==before
    assert run(table, tmp_path/'o', check='full').attrs['expansion']==dict(made=3, found=3, damaged=3, skipped={}) and contents(tmp_path/'o')!=before
    assert run(table, tmp_path/'o', check='full').attrs['expansion']['made']==0

def test_a_data_set_that_has_moved(done, tmp_path):
    table = people(tmp_path/'a/in')
    run(table, tmp_path/'o'); before = contents(tmp_path/'o')
    shutil.move(tmp_path/'a/in', tmp_path/'elsewhere')
    there = table.assign(path=[p.replace(str(tmp_path/'a/in'), str(tmp_path/'elsewhere')) for p in table.path])
    for k in range(2):
        res = run(there, tmp_path/'o', check='full')
        assert res.attrs['expansion']['made']==0 and res.source.tolist()[::3]==there.path.tolist() and contents(tmp_path/'o')==before
    assert len(on_record(tmp_path/'o'))==36                   # said once more, under the new paths
    picture(7).save(tmp_path/'elsewhere/rgb/train/000/A_cropped_rgb000.png')     # the same name, another picture
    shutil.move(tmp_path/'elsewhere', tmp_path/'third')
    there = table.assign(path=[p.replace(str(tmp_path/'a/in'), str(tmp_path/'third')) for p in table.path])
    assert run(there, tmp_path/'o').attrs['expansion']['made']==3


# --- no room

@fork
@pytest.mark.parametrize('limit,size', [(500,(16,24)), (900,(4,4)), (3000,(4,4))])
def test_no_room_on_the_disk(tmp_path, limit, size):
    "The system lets no file of the child grow beyond `limit`: images in the first case, then the manifest"
    table = people(tmp_path/'in', size=size)
    whole = run(table, tmp_path/'whole')
    r,w = os.pipe()
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try: run(table, tmp_path/'o', batch=4)
        except OSError as e: os.write(w, f'{e.errno}|{e}'.encode())
        else: os.write(w, b'0|no error')
    assert wait(child(full))==0
    code,text = os.read(r, 5000).decode().split('|', 1)
    assert int(code)==errno.EFBIG and '\n' not in text and 'cannot write to' in text and 'make room and call again' in text and str(tmp_path/'o') in text
    have = contents(tmp_path/'o')
    assert not [n for n in have if '.making' in n]
    assert all(contents(tmp_path/'whole')[n]==d for n,d in have.items())      # whole files only
    log = (tmp_path/'o'/'manifest-000-of-001.jsonl').read_bytes()
    assert len(log)<=limit and (not log or log.endswith(b'\n'))
    run(table, tmp_path/'o')
    assert contents(tmp_path/'o')==contents(tmp_path/'whole') and on_record(tmp_path/'o')==on_record(tmp_path/'whole')

@pytest.mark.parametrize('name', ['replace','mkdir'])
def test_no_room_for_a_name_or_a_folder(done, tmp_path, monkeypatch, name):
    run(done[0], tmp_path/'o', limit=2)
    def none(*a, **k): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'somewhere')
    monkeypatch.setattr(*dict(replace=(os, 'replace'), mkdir=(Path, 'mkdir'))[name], none)
    with pytest.raises(OSError, match='No space left on device') as e: run(done[0], tmp_path/'o')
    assert e.value.errno==errno.ENOSPC and '\n' not in str(e.value) and 'make room' in str(e.value)
    monkeypatch.undo()
    assert not list((tmp_path/'o').rglob('.making*')) and len(run(done[0], tmp_path/'o'))==18

def test_a_folder_that_cannot_be_made(done, tmp_path):
    (tmp_path/'file').write_text('')
    for out in tmp_path/'file', tmp_path/'file/below':
        with pytest.raises(OSError) as e: run(done[0], out)
        assert '\n' not in str(e.value) and str(tmp_path/'file') in str(e.value)


# --- one job, one folder

def test_another_job_is_refused_and_the_folder_stays_as_it_is(done, tmp_path):
    table,_,_ = done
    run(table, tmp_path/'o', settings=dict(model='sd', steps=50, size=(768,256)))
    before = {p: p.read_bytes() for p in (tmp_path/'o').rglob('*') if p.is_file()}
    same = dict(settings=dict(steps=50, size=[768,256], model='sd'))
    for kw,text in [(dict(seed=1, **same), 'seed 0, not 1'), (dict(settings=dict(model='sd', steps=30)), 'settings'), (dict(generated_by='other', **same), 'generated_by noisy, not other')]:
        with pytest.raises(FileExistsError, match=text) as e: run(table, tmp_path/'o', **kw)
        assert '\n' not in str(e.value)
    with pytest.raises(FileExistsError, match='datasets'): run(table.assign(dataset='ltcc'), tmp_path/'o', **same)
    assert {p: p.read_bytes() for p in (tmp_path/'o').rglob('*') if p.is_file()}==before
    assert run(table, tmp_path/'o', **same).attrs['expansion']['made']==0
    (tmp_path/'o/job.json').write_text('{"form')
    with pytest.raises(FileExistsError, match='damaged'): run(table, tmp_path/'o', **same)

def test_a_folder_with_something_else_in_it_is_left_alone(done, tmp_path):
    (tmp_path/'o').mkdir(); (tmp_path/'o/thesis.tex').write_text('x')
    with pytest.raises(FileExistsError, match='something else'): run(done[0], tmp_path/'o')
    assert [p.name for p in (tmp_path/'o').iterdir()]==['thesis.tex']

def test_the_edit_describes_itself(done, tmp_path):
    class Edit:
        generated_by,settings,accept = 'painter',dict(steps=3),'unchanged'
        def __call__(self, images, *a): return images
    res = expand(done[0], Edit(), tmp_path/'o', 1, progress=False)
    assert set(res.generated_by)=={'painter'}
    job = json.loads((tmp_path/'o/job.json').read_text())
    assert (job['settings'],job['generated_by'],job['seed'],job['datasets'])==(dict(steps=3),'painter',0,['prcc']) and len(job['hash'])==16

@pytest.mark.parametrize('kw', [dict(variants=0), dict(variants=[]), dict(variants=[0,-1]), dict(shard=(1,1)), dict(shard=(-1,2)), dict(shard=(0,)), dict(check='no'), dict(batch=0), dict(limit=-1)])
def test_bad_arguments_touch_nothing(done, tmp_path, kw):
    with pytest.raises(DataError): run(done[0], tmp_path/'o', **kw)
    assert not (tmp_path/'o').exists()

def test_bad_tables_touch_nothing(done, tmp_path):
    table = done[0]
    for bad,text in (table.drop(columns='camera'), 'camera'), (table.assign(path=[os.path.relpath(p) for p in table.path]), 'absolute'), (pd.concat([table, table.assign(split='val')]), 'twice'):
        with pytest.raises(DataError, match=text): run(bad, tmp_path/'o')
    class Dataset: samples = table
    with pytest.raises(DataError, match='train'): run(Dataset(), tmp_path/'o')
    assert not (tmp_path/'o').exists()


# --- names and seeds

@given(st.sets(st.tuples(st.sampled_from('ab'), st.sampled_from(['001','1','.','ü','x'*300]), st.sampled_from(['a.jpg','a.png','A.jpg','a b.jpg','a_b.jpg','a','.jpg','\udcff.jpg','x'*300+'.jpg'])), min_size=1))
def test_names_never_collide_and_fit_any_disk(parts):
    paths = ['/'.join(('',*p)) for p in parts]
    names = file_names(paths)
    assert len({n.lower() for n in names.values()})==len(paths) and all(n.isascii() and len(n.split('/')[-1])<100 and n.count('/')==2 for n in names.values())
    assert file_names(paths[::-1])==names                     # no matter the order
    one = paths[0]
    alone = file_names([one])[one]
    others = {n: p for p,n in names.items()}
    assert file_names([one], {alone: 'somebody else'})[one]!=alone and file_names([one], {alone: one})[one]==alone
    assert len({*file_names(['/c/new.jpg'], others).values(), *names.values()})==len(paths)+1

def test_images_of_the_same_name_do_not_overwrite_each_other(tmp_path):
    a,b = people(tmp_path/'A', 3),people(tmp_path/'B', 3)     # A and B: the same folders and file names below
    for r in b.path: picture(len(r)+hash(r)%97).save(r)
    both = pd.concat([a,b], ignore_index=True)
    res = run(both, tmp_path/'o')
    assert res.path.is_unique and len({Path(p).read_bytes() for p in res.path})==18
    run(a, tmp_path/'p'); res = run(b, tmp_path/'p')          # one after the other, which is harder
    assert res.attrs['expansion']['made']==9 and len(list((tmp_path/'p').rglob('*.png')))==18
    assert len(run(both, tmp_path/'p'))==18 and len(list((tmp_path/'p').rglob('*.png')))==18

def test_seeds_depend_on_folder_name_variant_and_job():
    base = image_seed(3, '/d/rgb/train/001/x.jpg', 2)
    assert base==image_seed(3, '/other/disk/001/x.jpg', 2)==image_seed(3, Path('/d/rgb/train/001/x.jpg'), np.int64(2))==image_seed(3, 'C:\\data\\001\\x.jpg', 2)
    others = [image_seed(4, '/d/001/x.jpg', 2), image_seed(3, '/d/002/x.jpg', 2), image_seed(3, '/d/001/y.jpg', 2), image_seed(3, '/d/001/x.jpg', 1), image_seed(31, '/d/001/x.jpg', 2), image_seed(3, '/d/001/x.jpg', 12)]
    assert len({base,*others})==7 and all(0<=s<2**48 for s in others)
    assert image_key('x.jpg')=='x.jpg'

def test_seeds_are_frozen():
    "Somebody's generated set must be found again by the next version"
    assert image_seed(0, '/data/prcc/rgb/train/001/A_cropped_rgb001.jpg', 0)==176572985572076
    assert list(file_names(['/a/001/x.jpg']).values())==['images/7a/001_x_7ae90537c463']


# --- images that are not as they should be

def test_grey_cmyk_deep_and_transparent_images_arrive_as_rgb(tmp_path):
    ramp = np.linspace(0, 255, 24*16).reshape(24,16).astype(np.uint8)
    grey = Image.fromarray(ramp)
    files = {'grey.png':grey, 'cmyk.jpg':grey.convert('CMYK'), 'deep.png':Image.fromarray(ramp.astype(np.uint16)*257), 'alpha.png':Image.merge('RGBA', (grey,grey,grey,grey)),
             'palette.png':grey.convert('RGB').quantize(32), 'bit.png':grey.convert('1'), 'la.png':Image.merge('LA', (grey,grey))}
    (tmp_path/'in').mkdir()
    for n,im in files.items(): im.save(tmp_path/'in'/n)
    table = make_table([dict(dataset='own', path=str(tmp_path/'in'/n), identity=0, split='train') for n in files])
    seen = {}
    def spy(images, rows, variants, seeds): seen.update((Path(r['path']).name, im) for im,r in zip(images, rows)); return images
    res = run(table, tmp_path/'o', edit=spy, variants=1, accept='unchanged')
    assert len(res)==len(files) and all(im.mode=='RGB' and im.size==(16,24) for im in seen.values())
    for n in 'grey.png','deep.png','alpha.png','la.png': assert np.array_equal(np.asarray(seen[n])[...,1], ramp), n
    for n,p in zip(files, res.path):
        with Image.open(p) as im: assert im.mode=='RGB' and np.array_equal(np.asarray(im), np.asarray(seen[n]))

def test_unreadable_images_are_counted_and_tried_again(tmp_path, capsys):
    table = people(tmp_path/'in', 5)
    good = Path(table.path[0]).read_bytes()
    Path(table.path[0]).unlink(); Path(table.path[1]).write_bytes(good[:len(good)//2]); Path(table.path[2]).write_bytes(b''); Path(table.path[3]).unlink(); Path(table.path[3]).mkdir()
    for k in range(2):
        res = run(table, tmp_path/'o', batch=2)
        text = capsys.readouterr().out
        assert len(res)==3 and set(res.source)=={table.path[4]} and sum(res.attrs['expansion']['skipped'].values())==12
        assert '12 images skipped' in text and '3 unreadable: there is no such file' in text and 'the file is empty' in text and len(text.splitlines())==1
    assert len(on_record(tmp_path/'o'))==15                   # the reasons are not written down twice
    Path(table.path[0]).write_bytes(good)
    res = run(table, tmp_path/'o')
    assert len(res)==6 and res.attrs['expansion']['made']==3

def test_what_an_edit_refuses_is_not_tried_again_unless_asked(done, tmp_path, capsys):
    table,calls = done[0],[]
    def picky(images, rows, variants, seeds):
        calls.extend(variants)
        return [None if v==0 else SkipImage('no clothes') if r['camera'] else im for im,r,v in zip(images, rows, variants)]
    for k in range(2):
        res = run(table, tmp_path/'o', edit=picky, variants=2, accept='unchanged')
        assert len(res)==3 and res.attrs['expansion']['skipped']=={'the edit returned nothing':6, 'no clothes':3}
        assert '9 images skipped: 6 the edit returned nothing; 3 no clothes' in capsys.readouterr().out
    assert len(calls)==12
    assert sorted(l['skip'] for l in read_manifest(tmp_path/'o').values() if 'skip' in l)==['no clothes']*3+['the edit returned nothing']*6
    res = run(table, tmp_path/'o', variants=2, retry=True)
    assert len(res)==12 and res.attrs['expansion']==dict(made=9, found=3, damaged=0, skipped={})
    assert run(table, tmp_path/'o', variants=2).attrs['expansion']==dict(made=0, found=12, damaged=0, skipped={})

def test_a_batch_that_raises_skip_is_taken_apart(done, tmp_path):
    table,sizes = done[0],[]
    def picky(images, rows, variants, seeds):
        sizes.append(len(images))
        if any(r['path']==table.path[2] for r in rows): raise SkipImage('two people')
        return noisy(images, rows, variants, seeds)
    res = run(table, tmp_path/'o', edit=picky, variants=1, batch=4)
    assert len(res)==5 and table.path[2] not in set(res.source) and sizes==[4,1,1,1,1,2]

@pytest.mark.parametrize('edit,error,text', [(lambda ims, *a: ims[:-1], ValueError, 'results for'), (lambda ims, *a: [np.asarray(i) for i in ims], TypeError, 'ndarray'), (lambda ims, *a: ims[0], TypeError, 'not iterable')])
def test_an_edit_that_returns_nonsense(done, tmp_path, edit, error, text):
    with pytest.raises(error, match=text): run(done[0], tmp_path/'o', edit=edit)
    assert not list((tmp_path/'o').rglob('*.png'))

def test_an_edit_may_draw_on_its_images(tmp_path):
    table = people(tmp_path/'in', 2)
    def scribble(images, *a):
        for im in images: im.paste(ImageOps.invert(im))
        return noisy(images, *a)
    def tidy(images, *a): return scribble([im.copy() for im in images], *a)
    run(table, tmp_path/'a', edit=scribble, batch=1); run(table, tmp_path/'b', edit=tidy, batch=6)
    assert contents(tmp_path/'a')==contents(tmp_path/'b')


# --- small parts

@given(st.integers(1,40), st.integers(1,40), st.integers(0,99), st.booleans())
def test_png_holds_every_pixel(w, h, seed, flat):
    a = np.full((h,w,3), seed, np.uint8) if flat else np.random.default_rng(seed).integers(0, 256, (h,w,3), np.uint8)
    with Image.open(io.BytesIO(encode_png(Image.fromarray(a)))) as im: assert im.format=='PNG' and im.mode=='RGB' and np.array_equal(np.asarray(im), a)

def test_rate_counts_this_call_only(monkeypatch):
    clock = [0.]
    monkeypatch.setattr(expansion.time, 'monotonic', lambda: clock[0])
    class Terminal(io.StringIO):
        def isatty(self): return True
    bar = Rate(1000, Terminal())
    for t,n in (0.05,1),(10.,20),(20.,40): clock[0] = t; bar(n, 100)
    assert bar.stream.getvalue().count('\r')==2 and '40/100 images, 2.0/s, 0:00:30 left (1,000 found)' in bar.stream.getvalue()
    clock[0] = 50.; bar(100, 100); assert bar.stream.getvalue().endswith('\n')
    log = Rate(0, io.StringIO())
    for t in range(51, 51+130): clock[0] = t; log(t, 10000)
    assert len(log.stream.getvalue().splitlines())==2
