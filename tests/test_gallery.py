"The gallery of known people: pooling against plain loops, ids, forgetting down to the bytes, kills, locks, the three commands"
import json, os, re, signal, sys, unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccreid import cli
from ccreid.files import hold
from ccreid.search.exact import ExactIndex, open_index
from ccreid.search.gallery import check_name, enrol, forget, open_gallery, people, who, who_page
from ccreid.search.vectors import Vectors
from test_search import unit

PEOPLE = dict(ada=3, bob=1, cem=4, dea=2)


def some(n, d=8, seed=0, model='aa', folder='/pictures', name='p'):
    return Vectors(unit(n, d, seed), [f'{name}{i}.jpg' for i in range(n)], model, dict(name='net', weights='w', folder=folder))


@pytest.fixture
def gallery(tmp_path):
    file = tmp_path/'people.gallery'
    for seed,(name,n) in enumerate(PEOPLE.items()): enrol(file, name, some(n, seed=seed, name=name))
    return file


@pytest.mark.parametrize('pool', ['best','mean'])
def test_pooling_is_that_of_plain_loops(gallery, pool):
    index,queries = open_gallery(gallery),unit(20, 8, 99)
    rows = {name: unit(n, 8, seed).astype(float) for seed,(name,n) in enumerate(PEOPLE.items())}
    for q,a in zip(queries.astype(float), who(index, queries, model='aa', pool=pool)):
        best,mean = ({k: f([float(q@g) for g in v]) for k,v in rows.items()} for f in (max, lambda s: sum(s)/len(s)))
        order = sorted(PEOPLE, key=lambda k: -dict(best=best, mean=mean)[pool][k])
        assert [p['name'] for p in a['people']]==order and a['name']==order[0]
        for p in a['people']:
            assert abs(p['best']-best[p['name']])<1e-5 and abs(p['mean']-mean[p['name']])<1e-5 and p['pictures']==PEOPLE[p['name']]
            assert p['nearest']==f"/pictures/{p['name']}{int(np.argmax(rows[p['name']]@q))}.jpg"
        assert a['score']==a['people'][0][pool]


def test_nobody_below_the_threshold_and_somebody_at_it(gallery):
    index,q = open_gallery(gallery),unit(1, 8, 99)
    score = who(index, q, model='aa')[0]['score']
    named = [who(index, q, t, model='aa')[0]['name'] is not None for t in (-1, score-.001, score+.001, 1)]
    assert named==[True,True,False,False]
    assert [len(who(index, q, model='aa', top=k)[0]['people']) for k in (1, 3, 9)]==[1,3,4]


def test_who_reaches_the_threshold_just_so_is_named_and_equals_stand_by_name(tmp_path):
    for name in 'zoe','bob','ada','mia': enrol(tmp_path/'g', name, Vectors([[0.,1.] if name=='mia' else [1.,0.]], [name], 'aa'))
    index = open_gallery(tmp_path/'g')
    for pool in 'best','mean':
        a, = who(index, [2.,0.], 1, pool, model='aa')
        assert a['name']=='ada' and a['score']==1 and [p['name'] for p in a['people']]==['ada','bob','zoe','mia']
        assert who(index, [1.,1e-3], 1, pool, model='aa')[0]['name'] is None


def test_ids_are_given_once_and_kept(gallery):
    before = open_gallery(gallery)
    assert [i for i in before.ids if i.startswith('cem')]==['cem/1','cem/2','cem/3','cem/4']
    assert enrol(gallery, 'ada', some(2, seed=7, name='more'))==['ada/4','ada/5']
    forget(gallery, 'bob')
    after = open_gallery(gallery)
    kept = lambda index: {i: index._rows()[n].tobytes() for n,i in enumerate(index.ids)}
    assert {i: v for i,v in kept(before).items() if i[:3]!='bob'}.items() <= kept(after).items() and len(after)==11
    assert {k: len(v) for k,v in people(after).items()}==dict(ada=5, cem=4, dea=2)
    assert (after.model,after.about['weights'],'folder' in after.about)==('aa','w',False)


def test_what_is_known_of_a_picture_stays(gallery):
    v = some(2, seed=8, name='x')
    v.columns = dict(camera=[3,4])
    enrol(gallery, 'eva', v)
    assert open_gallery(gallery).search(unit(1, 8), 9, 'aa', 'camera=4').ids==[['eva/2']]


def everything(folder): return b''.join(p.read_bytes() for p in Path(folder).rglob('*') if p.is_file())


def test_who_is_forgotten_is_in_no_file(gallery, tmp_path):
    marks = [row.tobytes() for row in unit(3, 8)]+[b'ada/1',b'/pictures/ada0.jpg']
    assert all(m in everything(tmp_path) for m in marks)
    assert forget(gallery, ' ada ')==3
    assert not any(m in everything(tmp_path) for m in marks) and b'"ada' not in everything(tmp_path)
    assert sorted(people(open_gallery(gallery)))==['bob','cem','dea']
    for name in 'bob','cem','dea': forget(gallery, name)
    assert len(open_gallery(gallery))==0 and unit(4, 8, 2)[1].tobytes() not in everything(tmp_path)
    assert enrol(gallery, 'ada', some(1))==['ada/1']


def killed(work):
    "Run in a process that dies in the middle of writing, when all is written but has not its name"
    pid = os.fork()
    if not pid:
        os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
        try: work()
        finally: os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1])==signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
def test_a_kill_leaves_the_old_file_and_what_it_left_is_forgotten_too(gallery, tmp_path):
    before,mark = gallery.read_bytes(),unit(2, 8, 50)[0].tobytes()
    killed(lambda: enrol(gallery, 'eva', some(2, seed=50)))
    assert gallery.read_bytes()==before and mark in everything(tmp_path)              # in the file that has no name yet
    killed(lambda: forget(gallery, 'ada'))
    assert gallery.read_bytes()==before and len(open_gallery(gallery))==10
    forget(gallery, 'bob')
    assert mark not in everything(tmp_path) and b'"bob' not in everything(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir())==['.people.gallery.lock','people.gallery']
    assert enrol(gallery, 'eva', some(2, seed=50))==['eva/1','eva/2']


def test_two_do_not_write_at_once(gallery):
    before = gallery.read_bytes()
    with hold(gallery.with_name('.people.gallery.lock')):
        for f in (lambda: enrol(gallery, 'eva', some(1)), lambda: forget(gallery, 'ada')):
            with pytest.raises(BlockingIOError, match='another process is changing'): f()
    assert gallery.read_bytes()==before and forget(gallery, 'ada')==3


@pytest.mark.parametrize('f,said', [
    (lambda g: enrol(g, 'eva', some(1, model='bb')), 'vectors of two models'), (lambda g: enrol(g, 'eva', some(1, model='')), 'do not say which model'),
    (lambda g: enrol(g, 'eva', some(1, d=9)), 'length 9'), (lambda g: enrol(g, 'ada', some(1, name='ada')), 'is a picture of ada already'),
    (lambda g: enrol(g, 'eva', Vectors(np.zeros((0,8)), [], 'aa')), 'no pictures of eva'), (lambda g: enrol(g, '  ', some(1)), 'has a name'),
    (lambda g: enrol(g, 'a\nb', some(1)), 'has a name'), (lambda g: enrol(g, 'x'*201, some(1)), 'has a name'), (lambda g: enrol(g, 3, some(1)), 'has a name'),
    (lambda g: forget(g, 'eva'), 'nobody called eva, but 4 others'), (lambda g: who(open_gallery(g), unit(1, 8), model='bb'), 'vectors of two models'),
    (lambda g: who(open_gallery(g), unit(1, 8)), 'do not say'), (lambda g: who(open_gallery(g), unit(1, 7), model='aa'), 'length 7'),
    (lambda g: who(open_gallery(g), unit(1, 8), 1.1, model='aa'), 'threshold, .* at most 1'), (lambda g: who(open_gallery(g), unit(1, 8), float('nan'), model='aa'), 'threshold'),
    (lambda g: who(open_gallery(g), unit(1, 8), '.5', model='aa'), "threshold, .* got '.5'"),
    (lambda g: who(open_gallery(g), unit(1, 8), pool='max', model='aa'), 'best or mean'), (lambda g: who(open_gallery(g), unit(1, 8), top=0, model='aa'), 'whole number')])
def test_what_cannot_be_is_refused_and_changes_nothing(gallery, f, said):
    before = gallery.read_bytes()
    with pytest.raises(ValueError, match=said): f(gallery)
    assert gallery.read_bytes()==before


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
def test_through_a_link_it_is_the_same_gallery(gallery, tmp_path):
    (tmp_path/'elsewhere').mkdir()
    link,mark = tmp_path/'elsewhere'/'link.gallery',unit(1, 8, 50)[0].tobytes()
    link.symlink_to(gallery)
    killed(lambda: enrol(link, 'eva', some(1, seed=50)))
    assert mark in everything(tmp_path)
    with hold(gallery.with_name('.people.gallery.lock')):
        with pytest.raises(BlockingIOError): forget(link, 'ada')
    assert forget(link, 'ada')==3 and mark not in everything(tmp_path) and b'"ada' not in everything(tmp_path)
    assert link.is_symlink() and [p.name for p in (tmp_path/'elsewhere').iterdir()]==['link.gallery']


@pytest.mark.skipif(os.name!='posix', reason='rights of POSIX')
def test_a_file_that_others_may_not_read_stays_so(gallery):
    gallery.chmod(0o600)
    enrol(gallery, 'eva', some(1, seed=9)); forget(gallery, 'ada')
    assert gallery.stat().st_mode & 0o777==0o600


def test_a_name_is_one_name_in_whatever_form_its_letters_are(gallery):
    one,two = (unicodedata.normalize(f, 'José') for f in ('NFC','NFD'))
    assert one!=two and enrol(gallery, two, some(1, seed=20, name='x'))==[f'{one}/1'] and enrol(gallery, one, some(1, seed=21, name='y'))==[f'{one}/2']
    index = open_gallery(gallery)                                                     # one that other code wrote
    index.add(Vectors(unit(1, 8, 22), [f'{two}/7'], 'aa', columns=dict(person=[two], picture=['z'])))
    index.save(gallery)
    assert enrol(gallery, two, some(1, seed=23, name='w'))==[f'{one}/8']
    assert forget(gallery, two)==4 and 'José' not in unicodedata.normalize('NFC', ''.join(people(open_gallery(gallery))))


def test_who_remains_alone_is_one_other(tmp_path):
    enrol(tmp_path/'g', 'ada', some(1))
    with pytest.raises(ValueError, match='but 1 other$'): forget(tmp_path/'g', 'bob')


def test_other_files_are_no_galleries(tmp_path):
    index = ExactIndex()
    columns = dict(person=['ada','ada','bob'], picture=['a','b','c'])
    for n,(ids,more) in enumerate(((['a.jpg','b.jpg','c.jpg'], {}), (['ada/1','ada/2','ada/3'], {}), (['ada/1','ada/x','bob/1'], {}),
                                   (['1/1','1/2','2/1'], dict(person=[1,1,2])), (['ada/1','ada/2','bob/1'], dict(picture=[1,2,3])))):
        index = ExactIndex()
        index.add(unit(3, 8), ids, columns=columns | more)
        index.save(tmp_path/f'{n}.index')
        with pytest.raises(ValueError, match='no gallery of known people'): enrol(tmp_path/f'{n}.index', 'ada', some(1, model=''))
    index = ExactIndex()
    index.add(some(3))
    index.save(tmp_path/'plain.index')
    (tmp_path/'page').write_text('<html>')
    for name,said in ('plain.index', 'no gallery of known people'), ('page', 'page'):
        for f in open_gallery, lambda p: forget(p, 'ada'), lambda p: enrol(p, 'ada', some(1)):
            with pytest.raises(ValueError, match=said): f(tmp_path/name)
    with pytest.raises(FileNotFoundError): forget(tmp_path/'none', 'ada')
    assert open_index(tmp_path/'plain.index').ids==index.ids

# --- commands

MINE = 'import numpy as np\ndef colour(pictures): return [[*np.asarray(p, float).mean((0,1))-128, 9.] for p in pictures]\ndef other(pictures): return colour(pictures)\n'


@pytest.fixture
def here(tmp_path, monkeypatch):
    colours = dict(ada=(200,30,30), bob=(30,200,30), cem=(30,30,200))
    for name,c in colours.items():
        (tmp_path/name).mkdir()
        for i in range(2): Image.new('RGB', (4,8), tuple(v+i for v in c)).save(tmp_path/name/f'{i}.png')
    Image.new('RGB', (4,8), (198,32,31)).save(tmp_path/'who.png')
    Image.new('RGB', (4,8), (200,200,30)).save(tmp_path/'stranger.png')
    (tmp_path/'model_of_people.py').write_text(MINE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop('model_of_people', None)


@pytest.fixture
def run(capsys):
    def f(line):
        capsys.readouterr()
        code = cli.main((line+' --device cpu'*(not line.startswith('forget'))).split())
        return code,*capsys.readouterr()
    return f


def test_enrol_who_forget(here, run):
    code,out,_ = run('enrol ada ada --gallery g --weights model_of_people:colour')
    assert (code,out)==(0, 'ada: 2 pictures more in g, ada/1 to ada/2\n')
    assert run('enrol bob bob/0.png bob/1.png --gallery g')[0]==0
    code,out,_ = run('who who.png stranger.png --gallery g --threshold .9')
    assert code==0 and re.fullmatch(r'who\.png: ada\n   1\.000 best .*  ada \(2\)\n .*bob \(2\)\nstranger\.png: nobody\n.*\n.*\n', out), out
    os.chdir('cem')
    got = json.loads(run('who ../who.png --gallery ../g --json --top 1 --pool mean')[1])
    os.chdir('..')
    assert got['results'][0]['name']=='ada' and got['pool']=='mean' and got['known']==2 and len(got['results'][0]['people'])==1
    assert run('who who.png stranger.png --gallery g --out w.html --threshold .9')[0]==0
    page = Path('w.html').read_text()
    assert page.count('<img')==2*3 and '<b>nobody</b>' in page and 'no picture<' not in page and 'http' not in page
    assert run('who who.png --gallery g --out w.json')[0]==0 and json.loads(Path('w.json').read_text())['results'][0]['name']=='ada'
    assert run('forget ada --gallery g')[1]=='ada: 2 pictures are gone from g\n'
    assert run('who who.png --gallery g')[1].startswith('who.png: bob') and b'ada/' not in Path('g').read_bytes()
    assert run('search who.png --index g --out s.html')[0]==0                         # a gallery is an index; its ids are no paths
    assert Path('s.html').read_text().count('<img')==3 and 'bob/1' in Path('s.html').read_text()


@pytest.mark.parametrize('line,said', [
    ('enrol eva cem --gallery new', 'a new gallery needs a model: give --weights'), ('enrol eva none --gallery g', 'none'),
    ('enrol eva cem --gallery g --weights model_of_people:other', 'vectors of two models'), ('enrol ada ada --gallery g', 'already'),
    ('forget eva --gallery g', 'nobody called eva'), ('forget ada --gallery none', 'no index at none'), ('who who.png --gallery none', 'no index at none'),
    ('who who.png --gallery g --threshold 2', '--threshold'), ('who who.png --gallery g --out w.txt', 'w.txt'), ('who who.png --gallery g --top 0', '--top'),
    ('who who.png --gallery who.png', 'who.png'), ('who none.png --gallery g', 'none.png'), ('who who.png --gallery g --pool sum', '--pool')])
def test_what_cannot_be_is_said_in_a_line_or_two(here, run, line, said):
    run('enrol ada ada --gallery g --weights model_of_people:colour')
    before = {p.name: p.read_bytes() for p in here.iterdir() if p.is_file()}
    code,out,err = run(line)
    assert code==2 and out=='' and said in err and len(err.splitlines())<=2 and err.startswith('ccreid: ')
    assert {p.name: p.read_bytes() for p in here.iterdir() if p.is_file()}==before
