"The command line as its users meet it"
import json, os, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
from ccreid import cli, experiments
from ccreid.data.layouts import load_dataset
from ccreid.data.mannequins import MannequinWorld

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')/'prcc'
    MannequinWorld(identities=(8,0,5), outfits=2, cameras=3, images=2, size=(64,32), seed=4).write(folder, layout='prcc')
    return folder

SMALL = ['--set','backbone=resnet_mini','--set','size=[64,32]','--set','pretrained=false','--set','identities=4','--set','images=2']

def train(ccreid, root, *more): return ccreid('train','--data','prcc','--root',root,'--method','cal','--epochs','2','--device','cpu','--workers','0',*SMALL,*more)

def test_train_then_evaluate_and_go_on(ccreid, root, tmp_path):
    run = tmp_path/'run'
    code, out, err = train(ccreid, root, '--out', run)
    assert code==0, err

    assert {p.name for p in run.iterdir() if p.suffix!='.lock' and p.name!='.lock'}=={'checkpoint.pth','cal.safetensors','metrics.json'}
    record = json.loads((run/'metrics.json').read_text())
    assert record['seed']==0 and record['recipe']['start_epoch']==1 and set(record['protocols'])=={'same-clothes','clothes-changing'}
    code, out, _ = ccreid('evaluate','--data','prcc','--root',root,'--weights',run/'cal.safetensors','--device','cpu','--json')
    figures = json.loads(out)
    assert code==0
    for k,p in figures.items(): assert p['mAP']==pytest.approx(record['protocols'][k]['mAP'], abs=1e-6)
    before = (run/'cal.safetensors').read_bytes()
    assert train(ccreid, root, '--out', run)[0]==0                    # finds the finished checkpoint: nothing is trained again
    assert (run/'cal.safetensors').read_bytes()==before
    assert json.loads((run/'metrics.json').read_text())['seconds']==record['seconds']
    code, _, err = train(ccreid, root, '--out', run, '--set','lr=0.1')
    assert code==2 and 'another run' in err and 'recipe' in err and not err.split('ccreid: ')[-1].startswith('Exception')

def test_single_shot_by_name_and_all(ccreid, root, tmp_path):
    d = load_dataset('prcc', root, verbose=False)
    paths = [os.path.relpath(p, d.root) for p in d.samples.path]
    np.savez(tmp_path/'f.npz', paths=np.array(paths), features=np.random.default_rng(0).normal(size=(len(paths),8)).astype('float32'))
    code, out, _ = ccreid('evaluate','--data','prcc','--root',root,'--features',tmp_path/'f.npz','--protocol','all','--json')
    assert code==0 and set(json.loads(out))==set(d.protocols)
    assert json.loads(out)['clothes-changing-single-shot']['draws']==10
    code, _, err = ccreid('evaluate','--data','prcc','--root',root,'--features',tmp_path/'f.npz','--protocol','nonsense')
    assert code==2 and 'clothes-changing' in err

@pytest.mark.parametrize('write', [
    lambda p: p.write_bytes(b''), lambda p: p.write_bytes(b'PK\x03\x04 cut'), lambda p: np.save(p.open('wb'), np.zeros(3)),
    lambda p: np.savez(p, features=np.zeros((2,3))), lambda p: np.savez(p, paths=np.array(['a']), features=np.zeros((2,3))),
    lambda p: np.savez(p, paths=np.array([['a']]), features=np.zeros((1,3))), lambda p: np.savez(p, paths=np.array(['a','a']), features=np.zeros((2,3))),
    lambda p: np.savez(p, paths=np.array(['a'], dtype=object), features=np.zeros((1,3))), lambda p: None])
def test_bad_feature_files_are_one_line(ccreid, root, tmp_path, write):
    path = tmp_path/'bad.npz'
    write(path)
    code, out, err = ccreid('evaluate','--data','prcc','--root',root,'--features',path)
    assert code==2 and len(err.strip().splitlines())==1 and 'bad.npz' in err

@pytest.mark.parametrize('words', [
    ('train','--data','prcc','--root','nowhere'), ('train','--data','nothing','--root','.'), ('train','--data','prcc','--method','call'),
    ('train','--data','prcc','--root','.','--set','epoch=3'), ('evaluate','--data','prcc','--root','.','--weights','none.safetensors'),
    ('check','prcc','nowhere'), ('check','nothing','.'), ('reproduce','nothing'), ('demo','--seed','x'), ('train',), (), ('train','--data','prcc','--set','lr'), ('train','--data','prcc','--root','.','--set','size=64'),
    ('train','--data','prcc','--root','.','--set','lr=fast'), ('train','--data','prcc','--root','.','--device','cuda:99'),
    ('evaluate','--data','prcc','--root','.')])
def test_what_cannot_start_ends_with_2_and_says_why(ccreid, words):
    code, out, err = ccreid(*words)
    assert code==2
    assert len([l for l in err.strip().splitlines() if l.startswith('ccreid')])==1 and 'Traceback' not in err

def test_missing_weights_name_their_folder(ccreid, root, monkeypatch, tmp_path):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1'); monkeypatch.setenv('CCREID_WEIGHTS', str(tmp_path/'my weights'))
    code, _, err = ccreid('train','--data','prcc','--root',root,'--method','identity','--epochs','1','--device','cpu')
    assert code==2 and 'my weights' in err and 'resnet50' in err and len(err.strip().splitlines())==1

def test_check_ends_with_1_if_something_is_off(ccreid, root, tmp_path):
    import shutil
    code, out, _ = ccreid('check','prcc',root,'--counts-from','manifest')
    assert code==0, out
    copy = tmp_path/'copy'
    shutil.copytree(root, copy)
    victim = next(copy.rglob('A_cropped*.jpg'))
    victim.write_bytes(victim.read_bytes()[:200])
    code, out, _ = ccreid('check','prcc',copy,'--counts-from','manifest','--json')
    assert code==1 and victim.name in json.dumps(json.loads(out))
    assert ccreid('check','prcc',copy,'--counts-from','manifest','--no-decode')[0]==0

def test_a_broken_image_stops_training_with_one_line(ccreid, root, tmp_path):
    import shutil
    copy = tmp_path/'copy'
    shutil.copytree(root, copy)
    for victim in copy.rglob('train/*/A_*.jpg'): victim.write_bytes(b'this is text')
    code, _, err = train(ccreid, copy, '--out', tmp_path/'run')
    last = [l for l in err.splitlines() if l.startswith('ccreid:')]
    assert code==2 and len(last)==1 and '.jpg' in last[0]

def test_held_out_people_show_in_the_table(ccreid, root, tmp_path):
    code, out, err = train(ccreid, root, '--hold-out','3','--every','1','--out',tmp_path/'r')
    assert code==0 and 'clothes-changing R1' in out, err

def test_settings_say_where_they_come_from(ccreid, monkeypatch, tmp_path):
    (tmp_path/'settings.ini').write_text('[DEFAULT]\ndata = pictures\n')
    monkeypatch.setenv('CCREID_SEED', '7')
    code, out, _ = ccreid('settings')
    lines = {l.split(' = ')[0]: l for l in out.splitlines()}
    assert code==0 and str(tmp_path/'pictures') in lines['data'] and 'settings.ini' in lines['data']
    assert 'seed = 7' in lines['seed'] and 'CCREID_SEED' in lines['seed']

def test_help_needs_no_torch():
    code = "import sys; from ccreid.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint('torch' in sys.modules, file=sys.stderr)"
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'examples:' in r.stdout and r.stderr.strip()=='False'

def test_reproduce_goes_on_where_it_stopped(tmp_path, monkeypatch):
    ran = []
    def run_row(r, sets, seed, *args, **kwargs):
        if len(ran)==4: raise KeyboardInterrupt
        ran.append((r.method, seed))
        p = dict(R1=.5, R5=1., mAP=.4, mINP=.3, queries=2, skipped=0, hits='10', ap=[.6,.2], identities=[1,2])
        return dict(recipe_hash=r.hash, seed=seed, seconds=1., protocols={'clothes-changing': p})
    monkeypatch.setattr(experiments, 'run_row', run_row)
    monkeypatch.setattr(experiments, 'benchmark', lambda *a, **k: None)
    file = tmp_path/'f.json'
    with pytest.raises(KeyboardInterrupt): experiments.reproduce('foundations', file, tmp_path, seeds=(0,1), log=lambda *_: None)
    assert len(json.loads(file.read_text())['records'])==4
    first, ran[:] = list(ran), []
    lines = []
    results = experiments.reproduce('foundations', file, tmp_path, seeds=(0,1), log=lines.append)
    assert sorted(first+ran)==sorted((m,s) for m in ('identity','triplet','cal') for s in (0,1)) and len(lines)==2
    ran.clear(); experiments.reproduce('foundations', file, tmp_path, seeds=(0,1), log=lines.append)
    assert not ran
    assert experiments.reproduce('foundations', tmp_path/'g.json', tmp_path, minutes=0, log=lines.append).records==[] and 'not started' in lines[-1]
    table = experiments.results_table(results)
    assert table.loc['CAL','clothes-changing R1']=='50.0 ± 0.0' and table.loc['CAL','clothes-changing R1 difference'].startswith('+0.0')

@pytest.mark.parametrize('chain', list(experiments.CHAINS))
def test_committed_results_are_of_this_world_and_these_recipes(chain):
    file = Path(__file__).parent.parent/'benchmarks'/'results'/f'{chain}.json'
    results = experiments.ChainResults(file, chain)
    run = [row for row in experiments.CHAINS[chain] if row.part!='large']    # which wants a graphics card; its page prints `not run`
    if not results.records: pytest.skip(f'no row of {chain} has been run yet')
    assert run or not list(file.parent.glob(f'{chain}*.json'))
    for row in run: assert [r['seed'] for r in results.of(row)]==list(row.seeds), f'{row.name} is stale: run `ccreid reproduce {chain} --rows {row.part}`'
    assert len(results.records)==sum(len(row.seeds) for row in run if row.trained is None) # and nothing else lies there
