"A sixth paper as an installed package: in training, settings, generation, results and help of the command line; what is broken in one"
import json, os, shutil, subprocess, sys
from pathlib import Path

import pytest

from ccreid import cli, experiments, options
from ccreid.commands import generate as generating
from ccreid.data.mannequins import MannequinWorld
from ccreid.generation.jobs import PARTS
from ccreid.options import Parser, parser
from ccreid.registry import All, Chain, Command, Images, Option, Part, forget, register
from ccreid.values import whole

REPO = Path(cli.__file__).parent.parent
PAPER = Path(__file__).parent/'toy_paper'
WORLD = dict(identities=(6,0,3), outfits=2, cameras=3, images=2, size=(64,32), seed=4)

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')/'prcc'
    MannequinWorld(**WORLD).write(folder, layout='prcc')
    return folder

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "A folder with the toy paper, installed, and another package whose chain cannot be imported"
    tmp = tmp_path_factory.mktemp('packages')
    source,site = shutil.copytree(PAPER, tmp/'source'),tmp/'site'
    pip = [sys.executable,'-m','pip','install','--quiet','--disable-pip-version-check','--no-deps','--no-index','--no-build-isolation']
    done = subprocess.run([*pip, '--target',site, source], capture_output=True, text=True)
    assert done.returncode==0, done.stderr
    broken = site/'broken_paper-1.0.dist-info'
    broken.mkdir()
    (broken/'METADATA').write_text('Metadata-Version: 2.1\nName: broken-paper\nVersion: 1.0\n')
    (broken/'entry_points.txt').write_text('[ccreid.chains]\nbroken = no_such_paper.chain:chain\n')
    return site

LEFT_OUT = "ccreid: The chain broken is left out: 'no_such_paper.chain:chain' cannot be imported: No module named 'no_such_paper'\n"

def python(code, site, folder, *words):
    env = {**os.environ, 'PYTHONPATH':os.pathsep.join([str(REPO), str(site)]), 'COLUMNS':'100'}
    run = subprocess.run([sys.executable,'-c',code,*map(str, words)], env=env, cwd=folder, capture_output=True, text=True)
    assert run.returncode==0, run.stderr
    return run

# --- the paper in a package

LIGHT = '''if 1:
    import sys
    from ccreid.cli import main
    try: main(['--help'])
    except SystemExit: pass
    print([o for o in ('torch','pandas','numpy','scipy','fastai','PIL') if o in sys.modules])'''

def test_help_shows_the_commands_of_papers_and_stays_light(site, tmp_path):
    run = python(LIGHT, site, tmp_path)
    *text,last = run.stdout.splitlines()
    assert last=='[]'
    assert run.stderr==LEFT_OUT and any('toy-look' in l and 'count people' in l for l in text)

SESSION = '''if 1:
    import contextlib, io, json, sys
    from ccreid import cli
    lines,results = json.loads(sys.argv[1]),[]
    for line in lines:
        out,err = io.StringIO(),io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = cli.main(line)
            except SystemExit as e: code = e.code
        results.append((code, out.getvalue(), err.getvalue()))
    print(json.dumps(results))'''

SMALL = '--epochs 1 --device cpu --workers 0 --quiet --set backbone=resnet_mini --set size=64x32 --set pretrained=false --set identities=4 --set images=2'
LINES = dict(train_help='train --help', generate_help='generate --help', reproduce_help='reproduce --help', look='toy-look --data prcc --root {root}',
    make='generate toy-images --data prcc --root {root} --colours 3 --device cpu', wrong='generate toy-images --data prcc --root {root} --variants 2 --device cpu',
    train=f'train --data prcc --root {{root}} --method toy --set strength=0.7 {SMALL}',
    images=f'train --data prcc --root {{root}} --method toy --generated runs/prcc-toy-images {SMALL}',
    refused=f'train --data prcc --root {{root}} --method identity --set strength=0.7 {SMALL}',
    range=f'train --data prcc --root {{root}} --method toy --set strength=-1 {SMALL}', rows='reproduce toy --minutes 0', none='reproduce toy --rows map',
    own='reproduce toy --rows all --data prcc --root {root} --seeds 1 --device cpu --generated toy-images=runs/prcc-toy-images')

@pytest.fixture(scope='module')
def session(site, root, tmp_path_factory):
    "Several commands of one process, in a folder of their own: code, output and errors by name"
    folder = tmp_path_factory.mktemp('work')
    (folder/'settings.ini').write_text('[DEFAULT]\nruns = runs\nseed = 0\n')
    with pytest.MonkeyPatch.context() as patch:
        for k in [k for k in os.environ if k.startswith('CCREID_')]: patch.delenv(k)
        run = python(SESSION, site, folder, json.dumps([l.format(root=root).split() for l in LINES.values()]))
    return folder, dict(zip(LINES, json.loads(run.stdout.splitlines()[-1])))

def words(text): return ' '.join(text.split())

def test_a_paper_of_another_package_stands_in_the_help(session):
    _,said = session
    code,out,err = said['train_help']
    assert code==0 and err==LEFT_OUT                                            # once in a process
    assert all(not said[k][2].startswith('ccreid: The') for k in LINES if k!='train_help')
    assert ', toy; each also with +' in words(out) and '+hsal' in words(out)
    assert 'strength=VALUE weight of the pull between outfits (of toy): a number, at least 0; 1.0 if not given' in words(out)
    out = words(said['generate_help'][1])
    assert '--colours COLOURS toy-images: images made of each training image (2)' in out and 'toy-images training images in other colours' in out
    out = words(said['reproduce_help'][1])
    assert 'toy Clothes that pull no more. Rows: core (2), images (1). Pages: https://example.org/toy-paper.' in out

def test_its_method_and_its_setting_are_trained_with(session):
    folder,said = session
    assert said['train'][0]==0, said['train'][2]
    run, = (folder/'runs').glob('prcc-toy-0-*')
    record = json.loads((run/'metrics.json').read_text())
    assert record['method']=='toy' and record['recipe']['strength']==.7 and record['recipe_hash'] and 'pull' in record['history'][0]
    assert (run/'toy.safetensors').is_file()
    for name,why in dict(refused='Setting strength is one of toy, which method identity has not', range='Setting strength: expected a number, at least 0').items():
        code,_,err = said[name]
        assert code==2 and why in err and len(err.splitlines())==1

def test_its_images_are_made_and_trained_on(session):
    folder,said = session
    assert said['make'][0]==0 and 'toy-images: 108 images made' in said['make'][1], said['make']
    code,_,err = said['wrong']
    assert code==2 and 'variants is an option of ' in err and 'chpsg; toy-images has colours' in err
    assert said['images'][0]==0 and '108 generated images (TOY-IMAGES)' in said['images'][1], said['images'][2]
    run, = (folder/'runs').glob('prcc-toy-toy-images-0-*')
    assert json.loads((run/'metrics.json').read_text())['recipe']['generated']=='toy-images'

def test_its_rows_and_its_command(session):
    folder,said = session
    assert said['rows'][0]==0 and 'core' in said['rows'][1] and '4 runs' not in said['rows'][1] and '10 runs not started' in said['rows'][1]
    code,out,err = said['own']
    assert code==0 and '3/3 pulled + images, seed 0: ' in out and '\nimages\n' in out, err
    first,more = [json.loads((folder/'runs'/f'prcc-toy{part}.json').read_text())['records'] for part in ('','-images')]
    assert [(r['row'], r['seed'], r['data'], r['recipe'].get('strength')) for r in first+more]==[('plain',0,'prcc',None), ('pulled',0,'prcc',.7), ('pulled + images',0,'prcc',.7)]
    assert said['none'][0]==2 and "Chain toy has no rows 'map': choose from all, extended, core, images" in said['none'][2]
    assert said['look'][0]==0 and '6 of 6 people have 2 outfits' in said['look'][1]

# --- what papers bring, in this process

@pytest.fixture
def papers():
    "Registers chains, which are forgotten at the end"
    names = []
    def add(name, **kwargs): names.append(register(Chain(name, **kwargs)).name)
    yield add
    for name in names: forget(name)

def hello(options): print('hello')
def nothing(parser): pass

@pytest.mark.parametrize('what, says', [
    (dict(commands={'train': Command('x', nothing, hello)}), 'The command train of chain {} is left out: ccreid has one of that name'),
    (dict(commands={'other': 3}), 'The command other of chain {} is left out: no `Command`'),
    (dict(commands={'other': 'no_such_paper:x'}), 'The command other of chain {} is left out: '),
    (dict(commands={'other': Command('x', 'no_such_paper:x', hello)}), 'The command other of chain {} is left out: '),
    (dict(commands={'other': Command('x', lambda p: p.add_argument('--debug'), hello)}), 'The command other of chain {} is left out: argument --debug: conflicting'),
    (dict(commands={'other': Command('x', lambda p: p.add_argument('--x', help='100 %'), hello)}), 'The command other of chain {} is left out: '),
    (dict(commands={'other': Command('x', lambda p: 1/0, hello)}), 'The command other of chain {} is left out: division by zero'),
    (dict(options={'other': 3}), 'The option other of chain {} is left out: no `Option`'),
    (dict(images={'other': 'no_such_paper:x'}), 'The kind of images other of chain {} is left out: '),
    (dict(images={'other': Images('x', job=len, options=dict(seed=Option(whole())))}), 'The option seed of other is left out: there is one of that name'),
    (dict(images={'other': Images('x', job=len, options=dict(often=3))}), 'The option often of other is left out: no `Option`'),
    (dict(parts={'parser': Part('x', len)}), 'The part parser of chain {} is left out: ccreid has one of that name')])
def test_what_is_broken_in_a_paper_is_left_out_in_one_line(ccreid, papers, monkeypatch, what, says):
    monkeypatch.setattr(options, '_said', set())
    papers('broken', **what)
    code,out,err = ccreid('settings')
    assert code==0 and 'seed = ' in out
    assert err.startswith('ccreid: '+says.format('broken')) and len(err.splitlines())==1
    assert ccreid('settings')[2]==''                                            # once
    if 'commands' in what: assert ccreid('other')[0]==2 or says.startswith('The command train')

def test_commands_of_papers_get_settings_and_layouts_and_their_code_counts(ccreid, papers, monkeypatch):
    seen = []
    def add(p): p.add_argument('--seed', type=int); p.add_argument('--device')
    papers('toy', commands={'toy-look': Command('100 % of it', add, lambda o: seen.append(o) or 3, reads_data=True)})
    monkeypatch.setenv('CCREID_SEED', '7')
    assert ccreid('toy-look','--trial','2')[0]==3
    assert (seen[0].seed, seen[0].device, seen[0].layout_trial)==(7, 'cpu', 2)
    code,out,_ = ccreid('--help')
    assert code==0 and '100 % of it' in out

def test_two_kinds_with_an_option_of_one_name_share_a_flag(papers):
    kind = lambda low, default: Images('x', job=len, options=dict(big_toys=Option(whole(low), default, 'toys')))
    papers('one', images=dict(red=kind(1, 5))); papers('two', images=dict(blue=kind(3, 5), green=kind(1, 2)))
    p = Parser('generate'); generating._add_kinds(p); generating._add_flags(p)
    assert p.format_help().count('--big-toys BIG_TOYS')==2 and 'red, blue: toys (5); green: toys (2)' in words(p.format_help())
    values = lambda line: generating._values(p.parse_args(line.split()))
    assert (values('red --big-toys 2'), values('blue --big-toys 3'), values('green'), values('other --big-toys 3'))==(dict(big_toys=2), dict(big_toys=3), {}, dict(big_toys='3'))
    with pytest.raises(ValueError, match='--big-toys: expected a whole number, at least 3, got 2'): values('blue --big-toys 2')
    with pytest.raises(SystemExit): values('red --big-toys 0')

def test_every_generator_has_the_parts_that_the_help_names(): assert list(PARTS)==list(generating._COMMON)

def test_flags_of_kinds_never_hide_one_of_the_command():
    p = parser()
    flags = next(a for a in p._actions if a.dest=='command').choices['generate']._option_string_actions
    own = {f[2:].replace('-', '_') for f in flags if f.startswith('--')} - {o for kind in All('images').values() for o in kind.options}
    assert own|{'kind'}==set(generating.GENERAL)

# --- reproduce, on a data set

@pytest.fixture
def asked(monkeypatch):
    "What `reproduce` of the library is called with, in place of hours of training"
    calls = []
    monkeypatch.setattr(experiments, 'reproduce', lambda *args, **kwargs: calls.append((args, kwargs)))
    class Table:
        T = property(lambda self: self)
        def to_string(self): return 'a table'
    monkeypatch.setattr(experiments, 'results_table', lambda results, part: Table())
    return calls

def test_reproduce_passes_a_data_set_on(ccreid, asked, root, monkeypatch, tmp_path):
    runs,data = Path(os.environ['CCREID_RUNS']),tmp_path/'data'
    monkeypatch.setenv('CCREID_DATA', str(data))
    code,out,err = ccreid('reproduce','foundations','--data','prcc','--root',root,'--seeds','2','--generated','a=f','--generated','b=g','--device','cpu')
    assert code==0 and 'core\na table' in out, err
    (chain,file,folder),given = asked.pop()
    assert (chain, Path(file), Path(folder))==('foundations', runs/'prcc-foundations.json', data)   # nothing goes into the data set's folder
    assert given['data'].root and len(given['data'].train) and given['data'].name=='prcc' and (given['data_name'], given['generated'])==('prcc', dict(a='f', b='g'))
    assert (given['seeds'], given['rows'], given['device'])==((0,1), ['core'], 'cpu')
    assert ccreid('reproduce','foundations','--data','prcc','--root',root,'--out','mine.json')[0]==0 and Path(asked.pop()[0][1])==Path('mine.json')

def test_reproduce_without_a_data_set_is_as_ever(ccreid, asked, root):
    assert ccreid('reproduce','hsgl','--rows','ltcc','--root',root,'--minutes','3')[0]==0
    args,given = asked.pop()
    assert args==('hsgl', Path(os.environ['CCREID_RUNS'])/'hsgl.json', str(root)) and 'data' not in given
    assert (given['seeds'], given['minutes'], given['rows'])==((0,1,2,3,4), 3., ['ltcc'])

@pytest.mark.parametrize('line, says', [l.rsplit(' | ', 1) for l in '''
reproduce foundations --generated a=b | --generated is for a data set of its own: give --data too
reproduce foundations --trial 2 | --trial is for a data set of its own: give --data too
reproduce foundations --seeds 6 | --seeds: expected a whole number from 1 to 5, got 6
reproduce foundations --seeds 0 | --seeds: expected
reproduce foundations --data prcc --generated a | --generated: expected NAME=VALUE
reproduce fondations --data prcc --root /nowhere | Unknown chain 'fondations': choose from foundations
reproduce foundations --rows maps --data prcc --root /nowhere | Chain foundations has no rows 'maps'
'''.strip().splitlines()])
def test_reproduce_says_what_is_missing_before_it_reads(ccreid, asked, line, says):
    code,out,err = ccreid(*line.split())
    assert code==2 and says in err and len(err.splitlines())==1 and not asked and not out
