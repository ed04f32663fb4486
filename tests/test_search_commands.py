"`ccreid embed`, `index` and `search` as a user writes them, from a picture to an answer"
import json, os, re, signal, subprocess, sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ccreid import cli
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import ReIDDataset
from ccreid.search.exact import open_index
from ccreid.search.vectors import Vectors, read_vectors, write_vectors

REPO = Path(cli.__file__).parent.parent
MINE = 'import numpy as np\ndef colour(pictures): return [[*np.asarray(p, float).mean((0,1))-128, 9.] for p in pictures]\ndef other(pictures): return colour(pictures)\n'


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A folder with pictures, a query that is nearly the fourth of them, and a model"
    rng = np.random.default_rng(0)
    (tmp_path/'gallery'/'x').mkdir(parents=True)
    colours = rng.integers(30, 226, (6,3))
    for i,c in enumerate(colours): Image.new('RGB', (4,8), tuple(map(int, c))).save(tmp_path/'gallery'/'x'/f'{i}.png')
    Image.new('RGB', (4,8), tuple(int(v)+1 for v in colours[3])).save(tmp_path/'who.png')
    (tmp_path/'model_of_a_test.py').write_text(MINE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop('model_of_a_test', None)


@pytest.fixture
def index(here, run):
    assert run('embed gallery --weights model_of_a_test:colour --out v.npz --device cpu')[0]==0
    assert run('index v.npz --out i.index')[0]==0
    return 'i.index'


def test_from_a_picture_to_an_answer(index, run):
    v = read_vectors('v.npz')
    assert v.ids==[f'x/{i}.png' for i in range(6)] and v.about['weights']=='model_of_a_test:colour'
    code,out,_ = run('search who.png --index i.index --top 2 --device cpu')
    assert code==0 and re.fullmatch(r'who\.png\n   1  (0\.99\d|1\.000)  x/3\.png\n   2  0\.\d{3}  x/\d\.png\n', out)
    os.chdir('gallery') # the index knows where its pictures are, and its model by name
    code,out,_ = run('search ../who.png --index ../i.index --top 9 --json --device cpu')
    os.chdir('..')
    got = json.loads(out)
    assert code==0 and len(got['results'][0]['found'])==6 and got['results'][0]['found'][0]['id']=='x/3.png' and got['model']==v.model


def test_a_page_holds_its_pictures_and_json_the_same(index, run):
    assert run('search who.png gallery --index i.index --top 3 --out found.html --device cpu')[0]==0
    page = Path('found.html').read_text()
    assert page.count('<figure>')==7*4 and page.count('src="data:image/jpeg')==7*4 and 'http' not in page
    assert run('search who.png gallery --index i.index --top 3 --out found.json --device cpu')[0]==0
    rows = json.loads(Path('found.json').read_text())['results']
    assert [r['found'][0]['id'] for r in rows]==['x/3.png', *(f'x/{i}.png' for i in range(6))]
    assert [r['query'] for r in rows]==['who.png', *(f'gallery/x/{i}.png' for i in range(6))]
    (Path('gallery')/'x'/'3.png').unlink()
    assert run('search v.npz --index i.index --top 3 --out gone.html')[0]==0 and 'no picture<' in Path('gone.html').read_text()


def test_a_file_of_vectors_is_a_query_and_needs_no_model(index, run):
    code,out,_ = run('search v.npz --index i.index --top 1')
    assert code==0 and [l.split()[-1] for l in out.splitlines()[1::2]]==[f'x/{i}.png' for i in range(6)]


def test_what_is_known_is_asked_for(index, run):
    Path('known.csv').write_text('path,camera,time\n'+''.join(f'x/{i}.png,{i%2},{9+i:02}:00\n' for i in range(5)))
    assert run('index v.npz --out k.index --table known.csv --names x/{identity}.png')[0]==0
    code,out,_ = run('search v.npz --index k.index --top 9 --where camera=1 --where time>=10:00 --where person!=3 --json')
    assert code==0 and [[f['id'] for f in r['found']] for r in json.loads(out)['results']]==[['x/1.png']]*6
    assert json.loads(out)['results'][0]['found'][0]['known']==dict(person=1, camera=1, time='10:00')
    assert run('search v.npz --index k.index --top 9 --out k.html')[0]==0
    page = Path('k.html').read_text()
    assert page.count('<br>person 1, camera 1, time 10:00</figcaption>')==6 and page.count('<br>person 5</figcaption>')==6
    Path('known.csv').write_text(Path('known.csv').read_text().replace('x/', './x/'))            # as `find .` writes names
    before = Path('k.index').read_bytes()
    assert run('index v.npz --out k.index --table known.csv --names x/{identity}.png')[0]==0 and Path('k.index').read_bytes()==before
    code,_,err = run('search v.npz --index k.index --where colour=red')
    assert code==2 and 'there is no column colour: there are person, camera, time' in err


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    "Drawn people in the layout of PRCC, and vectors of them all, drawn by lot"
    ds = MannequinWorld(identities=(2,0,3), outfits=2, cameras=3, images=2, size=(96,48)).write(tmp_path_factory.mktemp('prcc'), layout='prcc')
    names = [p.relative_to(ds.root).as_posix() for p in sorted(ds.root.rglob('*.jpg'))]
    rows = np.random.default_rng(0).normal(size=(len(names),4))
    write_vectors(file := ds.root.parent/'v.npz', Vectors(rows, names, 'aa', dict(folder=str(ds.root))))
    return ds,file


def test_a_data_set_says_what_is_known(people, run, tmp_path, monkeypatch):
    ds,file = people
    monkeypatch.chdir(tmp_path)
    assert run(f'index {file} --out d.index --data prcc --root {file.parent}')[0]==0
    index = open_index('d.index')
    rows = {Path(p).relative_to(ds.root).as_posix(): r for p,r in zip(ds.samples.path, ds.samples.itertuples())}
    assert len(rows)==len(index.ids) and sorted(index.columns)==['camera','clothes','frame','person']
    for i,known in zip(index.ids, index.known(index.ids)):
        r,test = rows[i],rows[i].split!='train'
        assert known==dict(camera=r.camera, frame=r.frame) | (dict(person=r.identity, clothes=r.clothes) if test else {})
    assert {rows[i].split for i in index.ids}>={'train','query','gallery'}
    found = index.search(np.ones(4), 99, 'aa', ['person=3','camera!=0']).ids[0]
    assert sorted(found)==sorted(i for i,r in rows.items() if r.identity==3 and r.camera!=0 and r.split!='train') and found
    Path('t.csv').write_text(f'path,camera\n{index.ids[0]},9\n')                          # a table has the last word
    assert run(f'index {file} --out d.index --data prcc --root {file.parent} --table t.csv')[0]==0
    assert open_index('d.index').columns['camera'][:2]==[9,None]


def test_what_a_data_set_does_not_know_is_not_said(people):
    from ccreid.search.filters import columns_of_dataset
    ds = people[0]
    table = ds.samples.assign(identity=np.where(ds.samples.split=='query', -2, ds.samples.identity), clothes=-1, tracklet=range(len(ds.samples)),
                              modality=['infrared' if c==1 else 'visible' for c in ds.samples.camera])
    other = ReIDDataset('prcc', ds.root, table, ds.protocols, no_cameras=('prcc',))
    got = columns_of_dataset(other, [*table.path, 'x.jpg'])
    assert sorted(got)==['frame','modality','person','tracklet'] and all(v[-1] is None for v in got.values())
    assert got['person']==[*(i if s=='gallery' else None for i,s in zip(ds.samples.identity, ds.samples.split)), None]
    assert got['modality'][:-1]==table.modality.tolist() and got['tracklet'][:-1]==[*range(len(table))]
    again = pd.concat([table, table.assign(split='val', identity=7)], ignore_index=True)          # each picture in two splits
    assert columns_of_dataset(ReIDDataset('two', ds.root, again, ds.protocols), [*table.path])['person']==got['person'][:-1]
    joined = columns_of_dataset(ReIDDataset('two', ds.root, table.assign(dataset=['a','b']*(len(table)//2)), ds.protocols), [*table.path])
    assert joined['dataset'][:2]==['a','b'] and 'camera' in joined and columns_of_dataset(ds, [])=={}
    with pytest.raises(ValueError, match='none of the vectors is of prcc: .* /elsewhere/a.jpg, and its own such as'): columns_of_dataset(ds, ['a.jpg'], '/elsewhere')


@pytest.mark.parametrize('line,said', [
    ('index v.npz --out v.npz', 'v.npz holds the vectors: choose another name'), ('index v.npz --out ./gallery/../v.npz', 'holds the vectors'),
    ('index v.npz --out j.index --root gallery', '--root is for --data'), ('index v.npz --out j.index --data nothing', 'nothing'),
    ('index v.npz --out j.index --data prcc --root gallery', 'gallery'),
    ('index v.npz --out j.index --table none.csv', 'none.csv'), ('index v.npz --out j.index --table model_of_a_test.py', 'no column path or id'),
    ('index v.npz --out j.index --names {person}.png', 'unknown placeholder'), ('index v.npz --out j.index --names y/{identity}.png', 'no name fits'),
    ('search v.npz --index i.index --where camera=1', 'there is no column camera: there is none'), ('search v.npz --index i.index --where camera', 'no condition'),
    ('embed gallery --weights model_of_a_test:colour --out v.csv', 'v.csv: a file of vectors ends in .npz or .parquet'),
    ('embed nowhere --weights model_of_a_test:colour --out w.npz', 'nowhere: there is no such file'),
    ('embed gallery --weights model_of_a_test:nothing --out w.npz', 'cannot be imported'),
    ('embed gallery --weights resnet5000 --out w.npz', "no backbone 'resnet5000'"),
    ('embed gallery --weights none.safetensors --out w.npz', 'none.safetensors'),
    ('embed gallery --out w.npz', '--weights'), ('embed gallery --weights resnet_mini', '--out'),
    ('embed gallery --weights resnet_mini --out w.npz --size 3', '--size'), ('embed gallery --weights resnet_mini --out w.npz --batch 0', '--batch'),
    ('index none.npz --out j.index', 'none.npz'), ('index who.png --out j.index', 'ends in .npz'),
    ('index v.npz v.npz --out j.index', "'x/0.png' is in the index"), ('index v.npz --out j.index --factory Flat', '--factory is for --engine faiss'),
    ('search who.png --index none.index', 'none.index'), ('search who.png --index v.npz', 'v.npz is no index, but perhaps a file of vectors: give it to `ccreid index`'),
    ('search v.npz who.png --index i.index', 'v.npz: a file of vectors is the only query'), ('search who.png --index gallery', 'gallery is a folder'), ('search none.png --index i.index', 'none.png'),
    ('search who.png --index i.index --top 0', '--top'), ('search who.png --index i.index --out found.txt', 'found.txt: what is found is written as .html or .json'),
    ('search who.png --index i.index --weights model_of_a_test:other', 'vectors of two models cannot be compared'),
    ('search who.png', '--index')])
def test_what_cannot_be_is_said_in_a_line_or_two(index, run, line, said):
    before = {p: p.read_bytes() for p in Path('.').iterdir() if p.is_file()}
    code,out,err = run(line+(' --device cpu' if line.startswith(('embed','search')) else ''))
    assert code==2 and out=='' and said in err and len(err.splitlines())<=2 and err.startswith('ccreid: ')
    assert {p: p.read_bytes() for p in Path('.').iterdir() if p.is_file()}==before


def test_vectors_of_another_model_do_not_come_into_an_index(index, run):
    assert run('embed who.png --weights model_of_a_test:other --out o.npz --device cpu')[0]==0
    before = Path('i.index').read_bytes()
    code,_,err = run('index v.npz o.npz --out i.index')
    assert code==2 and 'vectors of two models' in err and Path('i.index').read_bytes()==before
    assert run('search o.npz --index i.index')[0]==2
    write_vectors('plain.npz', Vectors(np.eye(4)[:2], ['a','b']))
    code,_,err = run('search plain.npz --index i.index')
    assert code==2 and 'do not say which model' in err


@pytest.mark.skipif(sys.platform!='linux', reason='names that are no text')
def test_names_that_are_no_text_are_found_and_shown(here, run):
    name = os.fsdecode(b'bad\xff\n<b>.png')
    Image.new('RGB', (4,8), (9,9,250)).save(Path('gallery')/name)
    assert run('embed gallery --weights model_of_a_test:colour --out v.npz --device cpu')[0]==0 and run('index v.npz --out i.index')[0]==0
    for end in 'html','json': assert run(f'search v.npz --index i.index --top 1 --out f.{end}')[0]==0
    page,found = Path('f.html').read_text(),json.loads(Path('f.json').read_text())['results']
    assert page.count('bad\\xff\\n&lt;b&gt;.png')==4 and 'no picture<' not in page                     # query and found: name and alt
    assert [r['found'][0]['id'] for r in found if r['query']==name]==[name]
    code,out,_ = run('search v.npz --index i.index --top 1')
    assert code==0 and out.count('bad\\xff')==2


def test_several_folders_in_one_index_keep_their_pictures(index, run):
    assert run('embed who.png --weights model_of_a_test:colour --out w.npz --device cpu')[0]==0
    assert run('index v.npz w.npz --out both.index')[0]==0
    both = open_index('both.index')
    assert both.ids[-1]==os.path.join(os.getcwd(), 'who.png') and len(both)==7
    code,_,_ = run('search gallery/x/3.png --index both.index --top 2 --out f.html --device cpu')
    assert code==0 and 'no picture<' not in Path('f.html').read_text()


def test_bad_pictures_end_the_command_or_are_left_out(here, run):
    Path('gallery/x/2.png').write_bytes(b'')
    line = 'embed gallery --weights model_of_a_test:colour --out v.npz --device cpu'
    code,_,err = run(line)
    assert code==2 and 'x/2.png: the file is empty' in err and not Path('v.npz').exists()
    code,out,_ = run(line+' --skip-bad') # no part was done, so that none stands in the way
    assert code==0 and 'left out: 1 of 6 pictures' in out and len(read_vectors('v.npz'))==5


def test_the_small_network_of_the_library_at_two_sizes(here, run):
    assert run('embed gallery --weights resnet_mini --out a.npz --device cpu')[0]==0
    assert run('embed gallery --weights resnet_mini --size 64x32 --flip --out b.npz --device cpu')[0]==0
    a,b = read_vectors('a.npz'),read_vectors('b.npz')
    assert a.model!=b.model and (b.about['size'],b.about['flip'])==([64,32],True)
    run('index b.npz --out b.index')
    assert open_index('b.index').about['size']==[64,32]
    code,out,_ = run('search gallery/x/4.png --index b.index --top 1 --device cpu')                # seen as the index says
    assert code==0 and out.endswith('1.000  x/4.png\n')


def test_parquet_and_faiss(here, run):
    pytest.importorskip('pyarrow'); pytest.importorskip('faiss')
    assert run('embed gallery --weights model_of_a_test:colour --out v.parquet --device cpu')[0]==0
    assert run('index v.parquet --out f.index --engine faiss --factory IVF2,Flat --probe 2')[0]==0
    code,out,_ = run('search who.png --index f.index --top 1 --device cpu')
    assert code==0 and out.endswith('x/3.png\n')


def test_a_kill_loses_nothing_that_was_done(here):
    (here/'slow_of_a_test.py').write_text(MINE+'import time\ndef slow(pictures):\n    print("batch", flush=True); time.sleep(60)\n')
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(REPO), os.environ.get('PYTHONPATH', '')])}
    words = [sys.executable,'-m','ccreid','embed','gallery','--weights','slow_of_a_test:slow','--out','v.npz','--device','cpu']
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout.readline()=='batch\n'
    process.send_signal(signal.SIGKILL); process.wait(); process.stdout.close()
    assert not Path('v.npz').exists() and Path('v.npz.parts/job.json').exists()
    (here/'slow_of_a_test.py').write_text(MINE+'slow = colour\n')
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert done.returncode==0 and len(read_vectors('v.npz'))==6 and not Path('v.npz.parts').exists(), done.stderr


def test_the_commands_are_light_until_they_run():
    code = ("import sys; from ccreid.cli import main\nfor w in (['--help'],['embed','--help'],['index','--help'],['search','--help']):\n"
            "    try: main(w)\n    except SystemExit: pass\n"
            "print([o for o in ('torch','pandas','numpy','PIL','faiss') if o in sys.modules], file=sys.stderr)")
    env = {**os.environ, 'PYTHONPATH': str(REPO)}
    done = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, env=env)
    assert done.stderr=='[]\n' and all(f'ccreid {w} ' in done.stdout for w in ('embed','index','search'))
