"The command `generate` and what training does with its folders: shards, stops, choices, other people's folders, missing networks"
import json
import multiprocessing
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from ccreid import cli
from ccreid.baselines.cssc import CSSCModel
from ccreid.data.layouts import load_dataset
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import DataError, hold_out
from ccreid.experiments import hand_over, train_hash
from ccreid.generation import inpainting, parsing
from ccreid.generation.expansion import SkipImage, read_expansion
from ccreid.generation.jobs import Networks, StandIns, add_samples, generate, load_object, models_for, read_generated
from ccreid.generation.stand_ins import MannequinInpainter, MannequinParser, MannequinTryOff
from ccreid.hsgl.coarse import generate_coarse_samples
from ccreid.generation import catvton, editing, idm_networks, idm_vton, keypoints, try_off
from ccreid.hsgl import generating
from ccreid.models.reid_model import ReIDModel
from ccreid.recipes import recipe
from ccreid.training.export import load_reid

KINDS = ('chpsg','shsg')
ARGS = dict(chpsg=['--variants','2'], shsg=['--people','1','--garments','2'])

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')/'prcc'
    MannequinWorld(identities=(4,0,3), outfits=2, cameras=3, images=2, size=(64,32), seed=4).write(folder, layout='prcc')
    return folder

@pytest.fixture(scope='module')
def dataset(root): return load_dataset('prcc', root, verbose=False)

@pytest.fixture(scope='module')
def whole(root, tmp_path_factory):
    "Each kind, made in one go"
    out = tmp_path_factory.mktemp('whole')
    for kind in KINDS: assert cli.main(['generate', kind, '--data','prcc', '--root',str(root), '--out',str(out/kind), '--device','cpu', *ARGS[kind]])==0
    return out

def files(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file() and not p.name.startswith(('manifest-','.'))}
def images(folder): return [k for k in files(folder) if k.startswith(('images/images','images/')) and k.endswith('.png')]

def make(ccreid, kind, root, out, *more): return ccreid('generate', kind, '--data','prcc', '--root',root, '--out',out, '--device','cpu', *ARGS[kind], *more)

def one_line(result):
    code, _, err = result
    assert code==2 and len(err.strip().splitlines())==1 and err.startswith('ccreid: '), err
    return err

@pytest.mark.parametrize('kind', KINDS)
def test_two_shards_are_one_run(ccreid, root, whole, tmp_path, kind):
    seen = []
    for shard in ('1/2','0/2'):
        code, out, err = make(ccreid, kind, root, tmp_path/'s', '--shard',shard, '--batch',3)
        assert code==0 and out.count('Drawn people')==1, err
        seen.append(len(images(tmp_path/'s')))
    assert files(tmp_path/'s')==files(whole/kind) and 0<seen[0]<seen[1] and ', 0 left to make' in out

@pytest.mark.parametrize('kind', KINDS)
def test_a_look_first_and_then_the_rest(ccreid, root, whole, tmp_path, kind):
    n = len(images(whole/kind))
    for limit,made,there in ((2,2,0), (1,1,2), (None,n-3,3), (None,0,n)):
        code, out, err = make(ccreid, kind, root, tmp_path/'l', *(['--limit',limit] if limit else []))
        assert code==0 and f'{kind}: {made} images made, {there} were there, 0 skipped, {n-made-there} left to make' in out and str(tmp_path/'l') in out.splitlines()[-1], out+err
        assert len(images(tmp_path/'l'))==made+there
    assert files(tmp_path/'l')==files(whole/kind)

def test_the_folder_is_named_by_set_and_kind_and_benchmarks_are_known(ccreid, root, dataset, tmp_path, monkeypatch):
    import ccreid.data.mannequins as package
    monkeypatch.setenv('CCREID_RUNS', str(tmp_path/'runs'))
    monkeypatch.setattr(package, 'benchmark', lambda name, root: dataset)
    code, out, _ = ccreid('generate','chpsg','--data','mannequins','--variants','1','--limit','1','--device','cpu','--seed','5')
    assert code==0 and 'Drawn people' in out and (tmp_path/'runs'/'mannequins-chpsg'/'job.json').is_file()
    job = json.loads((tmp_path/'runs'/'mannequins-chpsg'/'job.json').read_text())
    assert job['seed']==5 and job['generated_by']=='CHPSG' and job['settings']['inpainter']['imperfections'] # the declared ones, not the perfect inpainter
    assert 'another job' in one_line(ccreid('generate','chpsg','--data','mannequins','--device','cpu','--seed','6'))

@pytest.mark.parametrize('words, says', [
    (['chpsg','--shard','2/2'], 'from 0 to n-1'), (['chpsg','--shard','1/0'], "--shard: expected i/n with i from 0 to n-1, got '1/0'"), (['chpsg','--shard','half'], "'half'"), (['shsg','--shard','-1/2'], None),
    (['gan'], 'chpsg, shsg'), (['chpsg','--people','3'], 'option of shsg'), (['shsg','--variants','3'], 'chpsg; shsg has people'), (['chpsg','--model','inpainter'], 'NAME=VALUE'),
    (['chpsg','--model','painter=x'], "'painter'"), (['chpsg','--variants','0'], 'variants'), (['chpsg','--limit','-1'], 'limit'), (['chpsg','--batch','0'], 'batch'), (['shsg','--garments','0'], 'at least 1')])
def test_what_makes_no_sense_is_one_line(ccreid, root, tmp_path, words, says):
    result = ccreid('generate', *words, '--data','prcc', '--root',root, '--device','cpu', '--out',tmp_path/'o')
    if says is None: assert result[0]==2
    else: assert says in one_line(result)
    assert not list(tmp_path.rglob('*.png'))

def test_folders_of_others_are_left_alone(ccreid, root, whole, tmp_path):
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'letter.txt').write_text('x'); (tmp_path/'file').write_text('x')
    for kind in KINDS:
        for out in (tmp_path/'mine', tmp_path/'file', whole/{'chpsg':'shsg', 'shsg':'chpsg'}[kind]):
            before = files(tmp_path)
            assert 'choose another folder' in one_line(make(ccreid, kind, root, out)).lower()
            assert files(tmp_path)==before
    assert 'garments 2, not 3' in one_line(ccreid('generate','shsg','--data','prcc','--root',root,'--out',whole/'shsg','--device','cpu','--people','1','--garments','3'))
    code, _, err = make(ccreid, 'chpsg', tmp_path/'nowhere', tmp_path/'o')
    assert code==2 and 'nowhere does not exist' in err and 'Traceback' not in err

def test_choices_are_made_once(ccreid, root, whole, tmp_path, monkeypatch):
    shutil.copytree(whole/'shsg', tmp_path/'s')
    for p in (tmp_path/'s'/'images'/'images').rglob('*.png'): p.unlink()
    monkeypatch.setattr(generating, 'select', None); monkeypatch.setattr(generating, 'collect_garments', None); monkeypatch.setattr(StandIns, 'tryoff', property(lambda s: 1/0, lambda s,v: None), raising=False)
    code, out, err = make(ccreid, 'shsg', root, tmp_path/'s')
    assert code==0 and files(tmp_path/'s')==files(whole/'shsg'), err
    for text,says in {'{"job":':'is damaged', '[]':'is no record of what was chosen: it holds list', '{"job": {}}':'is damaged'}.items():
        (tmp_path/'s'/'choices.json').write_text(text)
        assert says in one_line(make(ccreid, 'shsg', root, tmp_path/'s'))

def test_limits_of_the_selection(ccreid, root, whole, tmp_path, capsys):
    "Settings of the pose test reach it, are on record, and may not change within a folder"
    def begin(name, *args): return ccreid('generate', 'shsg', '--data', 'prcc', '--root', str(root), '--out', str(tmp_path/name), *ARGS['shsg'], *args)
    code, out, err = begin('all')
    assert code==0, err
    job = json.loads((tmp_path/'all'/'choices.json').read_text())['job']
    assert not {'seen','quality'} & job.keys() # as usual: as before there were settings
    assert 'no image was accepted' in one_line(begin('none', '--seen', '1', '--rule', 'paper'))
    code, out, err = begin('other', '--level', '0.2', '--quality', 'released-prcc')
    assert code==0, err
    job = json.loads((tmp_path/'other'/'choices.json').read_text())['job']
    assert (job['level'], job['quality'])==(.2, 'released-prcc')
    assert 'level 0.2, not None' in one_line(begin('other', '--quality', 'released-prcc'))
    assert 'level None, not 0.2' in one_line(begin('all', '--level', '0.2'))
    assert 'at most 1' in one_line(begin('x', '--seen', '1.5'))

def test_killed_between_two_garments(ccreid, root, whole, tmp_path, monkeypatch):
    one, taken = MannequinTryOff.one, []
    def dies(self, path):
        if len(taken)==1: raise KeyboardInterrupt
        taken.append(path)
        return one(self, path)
    monkeypatch.setattr(MannequinTryOff, 'one', dies)
    assert make(ccreid, 'shsg', root, tmp_path/'k')[0]==1 and not images(tmp_path/'k')
    monkeypatch.setattr(MannequinTryOff, 'one', one)
    assert make(ccreid, 'shsg', root, tmp_path/'k')[0]==0 and files(tmp_path/'k')==files(whole/'shsg')

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_two_processes_at_once_choose_the_same(dataset, whole, tmp_path):
    work = lambda i: generate('shsg', dataset, tmp_path/'p', StandIns(), people=1, garments=2, shard=(i,2), progress=False)
    both = [multiprocessing.get_context('fork').Process(target=work, args=(i,)) for i in (0,1)]
    for p in both: p.start()
    for p in both: p.join()
    assert [p.exitcode for p in both]==[0,0] and files(tmp_path/'p')==files(whole/'shsg')

def test_nobody_can_be_dressed(dataset, tmp_path, capsys):
    models = StandIns()
    models.tryon = lambda images, *a, **kw: [SkipImage('no upper clothes')]*len(images)
    made = generate('shsg', dataset, tmp_path/'o', models, people=1, garments=2, progress=False)
    wanted = made.attrs['expansion']['skipped']['no upper clothes']
    assert len(made)==0<wanted and made.attrs['expansion']['left']==0 and f'{wanted} images skipped: {wanted} no upper clothes' in capsys.readouterr().out
    with pytest.raises(DataError, match='has no image'): read_generated(tmp_path/'o', dataset)

@pytest.mark.parametrize('kind', KINDS)
def test_data_and_folder_may_move(ccreid, root, whole, tmp_path, kind):
    shutil.copytree(root, tmp_path/'moved'/'prcc'); shutil.copytree(whole/kind, tmp_path/'g')
    moved = load_dataset('prcc', tmp_path/'moved'/'prcc', verbose=False)
    samples, before = read_generated(tmp_path/'g', moved), read_generated(whole/kind, load_dataset('prcc', root, verbose=False))
    assert set(samples.source)<=set(moved.train.path) and (samples.drop(columns=['path','source']).values==before.drop(columns=['path','source']).values).all()
    code, out, err = make(ccreid, kind, tmp_path/'moved'/'prcc', tmp_path/'g')
    assert code==0 and f'0 images made, {len(samples)} were there' in out and files(tmp_path/'g')==files(whole/kind), err

def test_read_what_is_there_and_of_this_set(root, dataset, whole, tmp_path):
    shutil.copytree(whole/'chpsg', tmp_path/'g')
    samples = read_generated(tmp_path/'g', dataset)
    assert len(samples)==2*len(dataset.train) and set(samples.clothes)=={-1} and set(samples.generated_by)=={'CHPSG'}
    of = dataset.train.set_index('path')
    for r in samples.itertuples(): assert (r.identity, r.camera)==tuple(of.loc[r.source, ['identity','camera']])
    Path(samples.path[0]).unlink(); Path(samples.path[5]).write_bytes(b'cut')
    less = read_generated(tmp_path/'g', dataset)
    assert less.path.tolist()==samples.path.drop([0,5]).tolist() and less.attrs['expansion']==dict(made=0, found=len(samples)-2, damaged=2, skipped={}, elsewhere=0)
    rest, people = hold_out(dataset, 1, 0)
    kept = read_generated(tmp_path/'g', rest)
    gone = samples.source.isin(people.samples.path)
    assert 0<gone.sum()==len(samples)-len(kept)-kept.attrs['expansion']['damaged']-(kept.attrs['expansion']['elsewhere']-gone.sum()) and kept.attrs['expansion']['elsewhere']==gone.sum()
    assert set(kept.identity)==set(rest.train.identity) and not set(kept.source) & set(people.samples.path)
    assert len(add_samples(rest, kept).train)==len(rest.train)+len(kept)

def test_a_folder_of_another_set_is_refused(dataset, root, whole, tmp_path):
    other = MannequinWorld(identities=(4,0,3), outfits=2, cameras=3, images=2, size=(64,32), seed=5).write(tmp_path/'prcc', layout='prcc') # the same names
    for kind in KINDS:
        with pytest.raises(DataError, match=rf'{len(images(whole/kind))} were made of other images') as e: read_generated(whole/kind, other)
        assert '\n' not in str(e.value)
    for folder,says in ((root, 'no generated images'), (tmp_path/'none', 'no folder')):
        with pytest.raises((DataError, FileNotFoundError), match=says): read_generated(folder, dataset)
    shutil.copytree(whole/'chpsg', tmp_path/'g')
    for text,says in {'':'is empty', '[]':'it holds list', '{"a": 1}':'damaged'}.items():
        (tmp_path/'g'/'job.json').write_text(text)
        with pytest.raises(DataError, match=says): read_expansion(tmp_path/'g', dataset.train)

def test_a_source_that_was_replaced_since_counts_as_damaged(root, tmp_path, whole):
    shutil.copytree(root, tmp_path/'prcc')
    d = load_dataset('prcc', tmp_path/'prcc', verbose=False)
    generate('chpsg', d, tmp_path/'g', StandIns(), variants=2, progress=False)
    shutil.copyfile(d.train.path.iloc[1], d.train.path.iloc[0])
    made = read_generated(tmp_path/'g', d)
    assert made.attrs['expansion']['damaged']==2 and d.train.path.iloc[0] not in set(made.source)

# networks

@pytest.fixture
def photographs(root, tmp_path):
    "A data set that no world has drawn"
    shutil.copytree(root, tmp_path/'photos'/'prcc')
    (tmp_path/'photos'/'prcc'/'mannequins.json').unlink()
    return tmp_path/'photos'/'prcc'

def test_photographs_want_networks(ccreid, photographs, tmp_path, monkeypatch):
    monkeypatch.setenv('CCREID_WEIGHTS', str(tmp_path/'my weights'))
    err = one_line(make(ccreid, 'chpsg', photographs, tmp_path/'o'))
    assert 'segformer_b2_clothes' in err and 'my weights' in err
    assert "wants DensePose's pictures" in one_line(make(ccreid, 'shsg', photographs, tmp_path/'o', '--model','tryon=idm-vton'))
    assert "no part 'code'" in one_line(make(ccreid, 'shsg', photographs, tmp_path/'o', '--model',f'code={tmp_path}'))
    (tmp_path/'maps').mkdir()
    for file in ('none.torchscript','/nowhere/none.torchscript'): # a body map that is not there
        assert 'none.torchscript' in one_line(make(ccreid, 'shsg', photographs, tmp_path/'o', '--model','tryon=idm-vton', '--model',f'body_map={file}'))
    with monkeypatch.context() as m:
        m.setitem(sys.modules, 'transformers', None)
        assert 'pip install "ccreid[generate]"' in one_line(make(ccreid, 'chpsg', photographs, tmp_path/'o'))
    assert not (tmp_path/'o').exists()

def test_each_network_is_loaded_as_asked(dataset, monkeypatch, tmp_path):
    "Once, with names, device, precision and batch"
    calls = []
    def loader(part): return lambda *a, **kw: calls.append((part, a, kw)) or part
    for part,network in dict(parser=parsing.SegformerParser, inpainter=inpainting.ClothesInpainter, keypoints=keypoints.MediaPipeKeypoints,
                             tryoff=try_off.DiffusionTryOff, tryon=idm_vton.IDMVTON).items():
        monkeypatch.setattr(network, 'from_pretrained', loader(part))
    n = Networks('cpu', 'bf16', 3, tryon='idm-vton', body_map='os.path:join')
    assert [n.tryon, n.tryoff, n.inpainter, n.parser, n.keypoints, n.tryon]==['tryon','tryoff','inpainter','parser','keypoints','tryon']
    half = dict(device='cpu', dtype=torch.bfloat16)
    assert calls==[('parser', (parsing.SEGFORMER,), dict(batch=3, device='cpu')), ('keypoints', ('pose_landmarker_heavy',), {}),
        ('tryon', ('parser', 'keypoints', os.path.join, 'yisol/IDM-VTON'), half), ('tryoff', ('parser', 'ixarchakos/tryOffAnyone'), half), ('inpainter', (inpainting.SD2,), dict(batch=3, **half))]
    assert 'dtype' not in Networks('cpu').where
    whole = tmp_path/'whole'
    for part in idm_networks._FOLDERS: (whole/part).mkdir(parents=True)
    for name,weights in {'idm-vton': 'yisol/IDM-VTON', 'IDM-VTON': 'yisol/IDM-VTON', 'yisol/IDM-VTON': 'yisol/IDM-VTON', str(whole): str(whole), 'camenduru/IDM-VTON-F16': 'camenduru/IDM-VTON-F16'}.items():
        calls.clear()
        assert Networks('cpu', tryon=name, body_map='os.path:join').tryon=='tryon' and calls[-1][1][-1]==weights
    for network in catvton.CatVTON,editing.EditingTryOn: monkeypatch.setattr(network, 'from_pretrained', loader(network.__name__))
    for name,expected in {'catvton': ('CatVTON', (), {}), 'CatVTON-mask-free': ('CatVTON', (), dict(mask_free=True)), 'a/pipeline': ('EditingTryOn', ('a/pipeline', None), {}),
                          'a/b@FluxFillPipeline': ('EditingTryOn', ('a/b', 'FluxFillPipeline'), {})}.items():
        calls.clear()
        assert Networks('cpu', tryon=name).tryon==expected[0]
        assert calls[-1]==(expected[0], ('parser','keypoints',*expected[1]), dict(device='cpu', **expected[2])), name
    assert Networks('cpu').names['tryon']=='catvton'
    for part in 'parser','inpainter','tryoff','tryon': # what the name of a part says is no setting of it
        for name in 'weights','labels','pipeline','name','device':
            if (part,name)==('inpainter','pipeline') or (part,name)==('tryon','weights'): continue
            with pytest.raises(ValueError, match=f'{part} has no setting {name!r}'): getattr(Networks('cpu', **{f'{part}.{name}': 'x'}), part)
    assert isinstance(models_for(dataset), StandIns) and isinstance(models_for(dataset, device='cpu'), StandIns) and isinstance(models_for(dataset, parser='x'), Networks)

def test_the_real_code_of_coarse_samples_from_folders(ccreid, photographs, tmp_path, monkeypatch):
    "Parser and pipeline are read from disk as anybody's would be; random weights, so any class may be found"
    pytest.importorskip('diffusers'); pytest.importorskip('transformers')
    from ccreid.generation.inpainting import ClothesInpainter, tiny_pipeline
    from ccreid.generation.parsing import tiny_parser
    parser = tiny_parser()
    parser.model.save_pretrained(tmp_path/'parser'); parser.processor.save_pretrained(tmp_path/'parser'); tiny_pipeline().save_pretrained(tmp_path/'painter')
    monkeypatch.setattr(ClothesInpainter, 'from_pretrained', partial(ClothesInpainter.from_pretrained, size=(32,16), steps=1))
    code, out, err = make(ccreid, 'chpsg', photographs, tmp_path/'o', '--limit',3, '--batch',2, '--model',f"parser={tmp_path/'parser'}", '--model',f"inpainter={tmp_path/'painter'}")
    n = len(images(tmp_path/'o'))
    assert code==0 and f'{n} images made' in out and 'Drawn' not in out, err
    settings = json.loads((tmp_path/'o'/'job.json').read_text())['settings']
    assert settings['inpainter']['model']=='painter' and settings['parser']['parser']=='parser' and n+sum('skip' in json.loads(l) for l in (tmp_path/'o'/'manifest-000-of-001.jsonl').read_text().splitlines())==3

def test_a_body_map_is_a_folder_an_object_or_a_program(tmp_path):
    import torch
    from ccreid.generation.body_maps import BodyMapFolder, TorchScriptDensePose
    assert Networks('cpu', body_map=str(tmp_path)).body_map.folder==tmp_path and isinstance(Networks('cpu', body_map=str(tmp_path)).body_map, BodyMapFolder)
    assert Networks('cpu', body_map='os.path:join').body_map is os.path.join
    torch.jit.script(torch.nn.Identity()).save(str(tmp_path/'x.torchscript'))
    found = Networks('cpu', body_map=str(tmp_path/'x.torchscript')).body_map
    assert isinstance(found, TorchScriptDensePose) and found.device.type=='cpu'
    with pytest.raises(ValueError, match="wants DensePose's pictures"): Networks('cpu').body_map

# training

SMALL = ['--set','backbone=resnet_mini','--set','size=[64,32]','--set','pretrained=false','--set','identities=4','--set','images=2','--epochs','1','--device','cpu','--workers','0','--quiet']
def train(ccreid, root, *more): return ccreid('train','--data','prcc','--root',root,*SMALL,*more)

@pytest.fixture(scope='module')
def pretrained(root, whole, tmp_path_factory):
    out = tmp_path_factory.mktemp('pre')
    assert cli.main(['train','--data','prcc','--root',str(root),*SMALL,'--method','identity','--generated',str(whole/'chpsg'),'--out',str(out)])==0
    return out

def test_train_with_generated_images(ccreid, root, dataset, whole, pretrained, tmp_path):
    record = json.loads((pretrained/'metrics.json').read_text())
    more = dict(backbone='resnet_mini', size=(64,32), pretrained=False, identities=4, images=2, epochs=1)
    assert record['recipe']['generated']=='chpsg' and record['recipe_hash']==recipe('prcc', 'identity', generated='chpsg', **more).hash!=recipe('prcc', 'identity', **more).hash
    assert record['generated']==dict(folder=str(whole/'chpsg'), images=2*len(dataset.train)) and record['protocols']
    assert record['images_seen']==3*len(dataset.train)                         # all of them, in one epoch
    code, out, err = train(ccreid, root, '--method','cal', '--set','start_epoch=0', '--set','identities=3', '--generated',whole/'shsg', '--hold-out','1', '--out',tmp_path/'r')
    assert code==0 and 'generated images (SHSG)' in out and 'made of images that are not trained on' in out, err
    classes = load_clothes(tmp_path/'r')
    rest = hold_out(dataset, 1, 0)[0]
    assert classes==rest.clothes+read_generated(whole/'shsg', rest).garment.nunique()>rest.clothes # CAL tells the garments apart

def test_pretraining_on_coarse_samples_alone(ccreid, root, dataset, whole, tmp_path):
    words = '--method','identity','--generated',whole/'chpsg','--only-generated'
    code, out, err = train(ccreid, root, *words, '--out',tmp_path/'r')
    assert code==0 and '200.0% of' in out and 'Trained on them alone' in out, err
    record = json.loads((tmp_path/'r'/'metrics.json').read_text())
    assert record['recipe']['generated']=='chpsg-alone' and record['images_seen']==2*len(dataset.train)
    assert record['train']['share']==1 and record['train']['images']==2*len(dataset.train)
    code, out, err = train(ccreid, root, '--method','identity', '--only-generated', '--out',tmp_path/'s')
    assert code==2 and '--only-generated needs --generated' in err and not (tmp_path/'s').exists()

def load_clothes(run):
    return torch.load(run/'checkpoint.pth', weights_only=True)['model']['aux.clothes_classifier.weight'].shape[0]

def test_start_from_a_pretraining(ccreid, root, whole, pretrained, tmp_path, monkeypatch):
    import ccreid.runs as runs
    begun, look = [], lambda t: {k: v.clone() for k,v in t.model.state_dict().items()}
    monkeypatch.setattr(runs, 'hand_over', lambda s, t: begun.append((look(t), hand_over(s, t), look(t))))
    words = '--method','cal','--set','start_epoch=0','--generated',whole/'shsg'
    code, out, err = train(ccreid, root, *words, '--start',pretrained/'identity.safetensors', '--out',tmp_path/'r')
    assert code==0, err
    (before, names, after), = begun
    weights = load_reid(pretrained/'identity.safetensors').state_dict()
    assert set(names)==set(weights) and not all(torch.equal(before[k], v) for k,v in weights.items()) # an exported model has no classifier
    for k,v in after.items(): assert torch.equal(v, weights.get(k, before[k])), k
    record = json.loads((tmp_path/'r'/'metrics.json').read_text())
    assert record['start']['file'].endswith('identity.safetensors') and len(record['start']['sha256'])==64 and record['recipe']['generated']=='shsg'
    assert train(ccreid, root, *words, '--start',pretrained/'identity.safetensors', '--out',tmp_path/'r')[0]==0 # finished: nothing to do
    shutil.copytree(whole/'shsg', tmp_path/'g')
    for more in ([], ['--start',tmp_path/'r'/'cal.safetensors']):
        err = train(ccreid, root, *words, *more, '--out',tmp_path/'r')
        assert err[0]==2 and 'another run' in err[2] and "'start'" in err[2]
    assert 'another one' in train(ccreid, root, '--method','identity', '--set','backbone=resnet18', '--start',pretrained/'identity.safetensors')[2]
    for bad in (tmp_path/'none.safetensors', pretrained/'metrics.json'):
        assert Path(bad).name in one_line(train(ccreid, root, '--start',bad))

def test_a_checkpoint_goes_on_with_the_same_generated_images_only(ccreid, root, dataset, tmp_path):
    words = '--method','identity','--generated',tmp_path/'g','--out',tmp_path/'r'
    made = lambda **kw: generate('chpsg', dataset, tmp_path/'g', StandIns(), variants=1, progress=False, **kw)
    first = made()
    assert train(ccreid, root, *words)[0]==0
    before = train_hash(add_samples(dataset, first))
    shutil.rmtree(tmp_path/'g')
    again = made(seed=1)                                                        # the same names with other people's clothes
    assert train_hash(add_samples(dataset, again))==before
    code, _, err = train(ccreid, root, *words)
    assert code==2 and 'another run' in err and "'generated'" in err
    shutil.rmtree(tmp_path/'g'); made()
    assert train(ccreid, root, *words)[0]==0
    code, _, err = train(ccreid, root, '--method','identity','--out',tmp_path/'r')
    assert code==2 and 'another run' in err

def test_training_folders_that_will_not_do(ccreid, root, whole, tmp_path):
    other = tmp_path/'prcc'
    MannequinWorld(identities=(4,0,3), outfits=2, cameras=3, images=2, size=(64,32), seed=5).write(other, layout='prcc', load=False)
    assert 'made of other images' in one_line(train(ccreid, other, '--generated',whole/'chpsg'))
    assert 'no folder' in one_line(train(ccreid, root, '--generated',tmp_path/'none'))
    assert '--generated' in one_line(train(ccreid, root, '--set','generated=shsg'))

def test_hand_over_wants_the_same_network():
    a, b = ReIDModel('resnet_mini', classes=3), ReIDModel('resnet_mini', classes=5)
    assert len(hand_over(a, b))==len(a.state_dict())-2                          # without the classifier
    c = CSSCModel('resnet_mini', classes=3)
    exported = ReIDModel.from_config({**c.config, 'classes': None})             # its neck and the classifiers in its blocks stay at home
    assert set(hand_over(exported, c))==set(exported.state_dict())<set(hand_over(c, CSSCModel('resnet_mini', classes=3)))
    for other in (ReIDModel('resnet_mini', neck='bn-no-bias'), ReIDModel('resnet_mini', pool='avg'), ReIDModel('resnet18')):
        with pytest.raises(ValueError, match='another one') as e: hand_over(other, a)
        assert '\n' not in str(e.value)


def test_a_picture_is_parsed_once_however_many_variants(root, tmp_path):
    from ccreid.generation.recloth import Recloth
    dataset,seen = load_dataset('prcc', root, verbose=False),[]
    class Parser(MannequinParser):
        def __call__(self, images, rows=None): seen.extend(r['path'] for r in rows); return super().__call__(images, rows=rows)
    rows = dataset.train.head(3)
    one = generate_coarse_samples(rows, Parser(), MannequinInpainter(), tmp_path/'one', 5, batch=4, progress=False)
    assert sorted(seen)==sorted(rows.path) and len(one)==15
    other = generate_coarse_samples(rows, MannequinParser(), MannequinInpainter(), tmp_path/'other', 5, batch=15, progress=False)
    assert [Path(p).read_bytes() for p in one.path]==[Path(p).read_bytes() for p in other.path]

def test_objects_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path/'mine_here.py').write_text('thing = 3')
    with pytest.raises(ValueError, match='cannot be imported'): load_object('mine_here:thing')
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_object('mine_here:thing')==3 and sys.path==before
    for bad in ('x','no_such_module:f','os:no_such_name',':','os:'):
        with pytest.raises(ValueError, match='module:attribute'): load_object(bad)
    sys.modules.pop('mine_here')

# --- the paper's table on a data set of photographs

def test_rows_of_the_table_run_on_photographs(ccreid, root, whole, photographs, tmp_path, monkeypatch):
    from dataclasses import replace
    from ccreid.registry import Row, rows_of
    from ccreid.recipes import miniature
    full = Row.recipe.fget
    small = dict(backbone='resnet_mini', pretrained=False, size=(64,32), identities=4, images=2)
    monkeypatch.setattr(Row, 'recipe', property(lambda row: replace(miniature(full(row), 3), **small))) # three epochs of a small network
    rows = 'CAL','CAL + SHSG + HSAL','FIRe² + CHPSG + SHSG + HSAL'
    line = ['reproduce','hsgl','--data','prcc','--root',photographs,'--seeds','1','--device','cpu','--out',tmp_path/'r.json',*(w for row in rows for w in ('--rows',row))]
    code,out,err = ccreid(*line)
    assert code==2 and 'Rows want chpsg and shsg images' in err and '--generated chpsg=FOLDER --generated shsg=FOLDER' in err
    code,out,err = ccreid(*line, '--generated',f"chpsg={whole/'chpsg'}", '--generated',f"shsg={whole/'shsg'}", '--workers','0')
    assert code==0 and '3/3 FIRe² + CHPSG + SHSG + HSAL, seed 0: ' in out, err
    records = {r['row']: r for r in json.loads((tmp_path/'r.json').read_text())['records']}
    assert set(records)==set(rows) and {r['data'] for r in records.values()}=={'prcc'}
    hard = len(images(whole/'shsg'))
    real = len(load_dataset('prcc', photographs, verbose=False).train)
    for row in rows[1:]: assert records[row]['train']['generated']==hard and records[row]['train']['images']==hard+real, row
    assert records[rows[2]]['pretraining_train']==dict(images=2*real, generated=2*real, share=1., per_person=2*real/4)
    assert records['CAL']['recipe']['data']=='prcc' and records['CAL']['steps']==records[rows[1]]['steps']
