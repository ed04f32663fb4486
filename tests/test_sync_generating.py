"Copies in other clothes: the command, shards and stops, four kinds of synthesizers, templates; and a run from the command line"
import json, shutil
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from ccreid.data.layouts import load_dataset
from ccreid.data.mannequins import MannequinWorld
from ccreid.generation.catvton import CatVTON, tiny_catvton
from ccreid.generation.inpainting import tiny_inpainter
from ccreid.generation.jobs import Networks, StandIns, generate, read_generated
from ccreid.generation.stand_ins import MannequinInpainter, MannequinParser, MannequinTryOn
from ccreid.sync_person_cloud.generating import load_synthesizer
from ccreid.sync_person_cloud.synthesis import (FolderSynthesizer, InpaintSynthesizer, MannequinSynthesizer, Reclothing, Template,
    TryOnSynthesizer, drawn_templates, read_templates, synthesize)
from ccreid.tables import DataError

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')/'prcc'
    MannequinWorld(identities=(4,0,3), images=1, size=(64,32), seed=4).write(folder, layout='prcc')
    return folder

@pytest.fixture(scope='module')
def dataset(root): return load_dataset('prcc', root, verbose=False)

@pytest.fixture(scope='module')
def whole(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')/'spc'
    generate('spc', dataset, out, StandIns(), progress=False)
    return out

def pictures(folder): return {p.name: p.read_bytes() for p in Path(folder).rglob('*.png')}

def test_two_shards_a_stop_and_another_batch_are_one_run(ccreid, root, whole, tmp_path):
    line = ['generate','spc','--data','prcc','--root',root,'--out',tmp_path/'out','--device','cpu']
    for more in (['--limit','5'], ['--shard','1/2','--batch','3'], ['--shard','0/2']):
        code,out,err = ccreid(*line, *more)
        assert code==0, err
    assert '0 left to make' in out and pictures(tmp_path/'out')==pictures(whole)

def test_the_command_trains_on_them_and_on_pictures_without_names(ccreid, root, whole, tmp_path, dataset):
    small = ['--device','cpu','--epochs','1','--quiet','--set','size=64x32','--set','backbone=resnet_mini','--set','spc_steps=2','--set','spc_k1=8',
             '--set','spc_k2=2','--set','spc_eps=0.7','--set','images=2','--set','identities=4','--workers','0']
    code,out,err = ccreid('train','--data','prcc','--root',root,'--method','sync_person_cloud','--generated',whole,'--out',tmp_path/'run', *small)
    assert code==0, err
    record = json.loads((tmp_path/'run'/'metrics.json').read_text())
    assert record['train']['share']==.8 and {'clusters','outliers'}<=record['history'][0].keys()
    assert (tmp_path/'run'/'sync_person_cloud.safetensors').is_file()
    flat = tmp_path/'flat'; flat.mkdir()
    for i,p in enumerate(dataset.train.path): shutil.copy(p, flat/f'snap{i:03d}{Path(p).suffix}')
    code,out,err = ccreid('train','--data','folder','--root',flat,'--pattern','{identity}','--split','train','--method','sync_person_cloud',
                          '--out',tmp_path/'own', *small)
    assert code==0 and 'no test people' in out.lower(), err

def test_templates_are_others_for_each_copy_and_the_same_wherever_the_data_lie(dataset, tmp_path):
    bank = drawn_templates(8)
    edit = Reclothing(MannequinSynthesizer(), bank)
    for p in dataset.train.path:
        names = [edit.template_of(p, v).name for v in range(8)]
        assert len(set(names))==8 and names==[edit.template_of('/elsewhere/'+'/'.join(Path(p).parts[-2:]), v).name for v in range(8)]
    other = Reclothing(MannequinSynthesizer(), bank, seed=1)
    assert any(edit.template_of(p, 0).name!=other.template_of(p, 0).name for p in dataset.train.path)
    assert edit.settings!=other.settings and edit.settings!=Reclothing(MannequinSynthesizer(), bank[:7]).settings

def test_another_bank_is_another_job(dataset, whole, tmp_path):
    shutil.copytree(whole, tmp_path/'spc')
    with pytest.raises(FileExistsError): generate('spc', dataset, tmp_path/'spc', StandIns(), template_seed=3, progress=False)

def test_nobody_of_a_data_set_is_a_template(dataset):
    worn = {m.caption for m in map(truth_of, dataset.samples.path)}
    assert not worn&{t.text for t in drawn_templates(16)}

def truth_of(path):
    from ccreid.data.mannequins import truth
    return truth(path)

def test_face_and_background_stay(dataset, whole):
    made = read_generated(whole, dataset)
    for r in list(made.itertuples())[:12]:
        keep = np.isin(truth_of(r.source).parsing, (2, 13))
        a,b = (np.asarray(Image.open(p)) for p in (r.path, r.source))
        assert (a[keep]==b[keep]).all() and (a!=b).any()

def test_ready_made_images_become_copies(dataset, tmp_path):
    ready = tmp_path/'pise'; ready.mkdir()
    for i,p in enumerate(dataset.train.path):
        for v in range(2 if i else 1):
            place = ready/Path(p).parent.name; place.mkdir(exist_ok=True)
            Image.new('RGB', (32,64), (10*v, i, 50)).save(place/f'{Path(p).stem}_{v}.png')
    made = synthesize(dataset.train, FolderSynthesizer(ready), drawn_templates(4), tmp_path/'out', copies=2, progress=False)
    assert len(made)==2*len(dataset.train)-1 and made.attrs['expansion']['skipped']=={'no ready-made image': 1}
    for r in made.itertuples():
        i = list(dataset.train.path).index(r.source)
        assert np.asarray(Image.open(r.path))[0,0].tolist()==[10*r.variant, i, 50]
    assert type(Networks(synthesizer=str(ready)).synthesizer) is FolderSynthesizer

def test_inpainting_by_words_with_the_real_class(dataset, tmp_path):
    (tmp_path/'t').mkdir(); (tmp_path/'t'/'templates.csv').write_text('file,text\n,a red coat\n,blue jeans\n')
    made = synthesize(dataset.train.head(2), InpaintSynthesizer(MannequinParser(), tiny_inpainter()), read_templates(tmp_path/'t'), tmp_path/'o', copies=2, progress=False)
    assert len(made)==4 and set(made.text)=={'a red coat','blue jeans'}

def test_try_on_gets_picture_and_words(dataset):
    "A tiny CatVTON goes by the picture, the mannequins' try-on by the words; both get what the template has"
    rows = dataset.train.head(2).to_dict('records')
    people = [Image.open(r['path']).convert('RGB') for r in rows]
    red,blue = (Template('a.png', 'a green coat', Image.new('RGB', (48,64), c)) for c in ('red','blue'))
    for net in tiny_catvton(), MannequinTryOn():
        got = TryOnSynthesizer(net)(people, [red]*2, [7,8], rows)
        direct = net(people, [red.image]*2, [red.text]*2, [7,8], rows=rows)
        assert [a.tobytes() for a in got]==[b.tobytes() for b in direct]
        other = TryOnSynthesizer(net)(people, [blue]*2, [7,8], rows)
        assert all((a.tobytes()!=b.tobytes())==(type(net) is CatVTON) for a,b in zip(got, other))
        assert Reclothing(TryOnSynthesizer(net), [red]).settings['synthesizer']==net.settings

def test_what_is_lacking_is_said_in_one_line(ccreid, root, tmp_path):
    (tmp_path/'t').mkdir(); (tmp_path/'t'/'templates.csv').write_text('file,text\nnot_there.png,a coat\n')
    line = ['generate','spc','--data','prcc','--root',root,'--out',tmp_path/'o','--device','cpu']
    for more,words in ((['--templates',tmp_path/'t'], 'not_there.png is missing'), (['--templates',tmp_path/'none'], 'has no templates'),
                       (['--model','synthesizer=gan'], 'synthesizer is inpaint, tryon, a folder'), (['--copies','0'], 'copies')):
        code,out,err = ccreid(*line, *more)
        assert code==2 and words in err and 'Traceback' not in err, err
    with pytest.raises(ValueError, match='goes by a template.s image'): TryOnSynthesizer(None)([Image.new('RGB', (4,4))], [Template('w', 'words')], [0])
    with pytest.raises(ValueError, match='goes by a template.s text'):
        InpaintSynthesizer(MannequinParser(), MannequinInpainter())([Image.new('RGB', (4,4))], [Template('w')], [0], [dict(path='x')])
    (tmp_path/'t'/'templates.csv').write_text('name,text\na,b\n')
    with pytest.raises(DataError, match='first line names file and text'): read_templates(tmp_path/'t')

def test_clusters_of_a_folder_are_a_table_that_is_read_again(ccreid, dataset, tmp_path):
    import torch
    from ccreid.data.batches import Preprocessing
    from ccreid.sync_person_cloud.training import cloud_model
    from ccreid.training.export import export_reid
    flat = tmp_path/'flat'; flat.mkdir()
    for i,p in enumerate(dataset.train.path): shutil.copy(p, flat/f'snap{i:03d}{Path(p).suffix}')
    torch.manual_seed(0)
    model = cloud_model('resnet_mini'); model.preprocessing = Preprocessing((64,32)); export_reid(model, tmp_path/'m.safetensors')
    line = ['clusters','--data','folder','--root',flat,'--pattern','{identity}','--split','train','--device','cpu','--model',tmp_path/'m.safetensors',
            '--k1','8','--k2','3','--eps','0.7','--min-samples','2']
    code,out,err = ccreid(*line, '--out',flat/'clusters.csv', '--sheet',tmp_path/'sheet.jpg')
    assert code==2 and 'the sheet is a PNG file' in err and not (flat/'clusters.csv').exists()
    code,out,err = ccreid(*line, '--out',flat/'clusters.csv', '--sheet',tmp_path/'new'/'sheet.png')
    assert code==0 and 'clusters of' in out and 'The pictures by cluster' in out, err
    assert Image.open(tmp_path/'new'/'sheet.png').format=='PNG'
    lines = (flat/'clusters.csv').read_text().split()
    assert lines[0]=='path,identity' and len(lines)==1+len(dataset.train)
    read = load_dataset('folder', flat, csv='clusters.csv', split='train', verbose=False)
    assert len(read.train)==sum(not l.endswith(',-1') for l in lines[1:])>0
    code,out,err = ccreid(*line, '--out',flat/'clusters.csv')
    assert code==2 and 'may have been corrected' in err
    code,out,err = ccreid('train','--data','folder','--root',flat,'--csv','clusters.csv','--split','train','--method','triplet','--out',tmp_path/'run',
        '--device','cpu','--epochs','1','--quiet','--workers','0','--set','size=64x32','--set','backbone=resnet_mini','--set','images=2','--set','identities=2')
    assert code==0 and (tmp_path/'run'/'triplet.safetensors').is_file(), err

def test_a_sheet_shows_every_cluster_and_outliers_last(tmp_path):
    import pandas as pd
    from ccreid.sync_person_cloud.labelling import cluster_sheet
    shade = {'a': (250,0,0), 'b': (0,250,0), 'c': (0,0,250)}
    rows = [(f'{k}{i}.png', {'a': 0, 'b': 1, 'c': -1}[k]) for k in 'abc' for i in range({'a': 5, 'b': 2, 'c': 1}[k])]
    for name,_ in rows: Image.new('RGB', (20,40), shade[name[0]]).save(tmp_path/name)
    sheet = np.asarray(cluster_sheet(pd.DataFrame(rows, columns=['path','identity']), tmp_path, columns=3, size=(40,60), most=4))
    assert sheet.shape==(20+120+20+60+20+60, 120, 3)
    def shown(y, x): return tuple(sheet[y+23,x+20].tolist())
    want = [(20, 'aaa'), (80, 'a'), (160, 'bb'), (240, 'c')]                    # `most` is 4: the fifth is not shown
    for y,line in want:
        for k in range(3): assert shown(y, 40*k)==(shade[line[k]] if k<len(line) else (255,)*3), (y, k)

def test_most_being_outliers_is_said(ccreid, dataset, tmp_path):
    import torch
    from ccreid.data.batches import Preprocessing
    from ccreid.sync_person_cloud.training import cloud_model
    from ccreid.training.export import export_reid
    torch.manual_seed(0)
    model = cloud_model('resnet_mini'); model.preprocessing = Preprocessing((64,32)); export_reid(model, tmp_path/'m.safetensors')
    code,out,err = ccreid('clusters','--data','prcc','--root',dataset.root,'--device','cpu','--model',tmp_path/'m.safetensors',
                          '--eps','0.001','--out',tmp_path/'c.csv')
    assert code==0 and '0 clusters of 0 pictures' in out and 'Most are outliers' in out, err

def test_evaluate_single_shot_from_the_command_line(ccreid, dataset, root, tmp_path):
    "Both ways on one network: the figures are those of the evaluation itself, the flag stands alone, its option does not"
    import torch
    from ccreid.data.batches import Preprocessing
    from ccreid.evaluations import Features, evaluate_as
    from ccreid.sync_person_cloud.training import cloud_model
    from ccreid.training.export import export_reid, load_reid
    torch.manual_seed(0)
    model = cloud_model('resnet_mini'); model.preprocessing = Preprocessing((64,32)); export_reid(model, tmp_path/'m.safetensors')
    line = ['evaluate','--data','prcc','--root',root,'--device','cpu','--weights',tmp_path/'m.safetensors','--json']
    code,out,err = ccreid(*line, '--single-shot', '--single-shot-draws', '4')
    assert code==0 and 'mean of 4 galleries of one image a person' in err, err
    got = json.loads(out)
    found,_,_ = evaluate_as('single-shot', Features(load_reid(tmp_path/'m.safetensors', 'cpu')), dataset, draws=4)
    assert set(got)==set(found) | {f'{k} + single-shot' for k in found}
    for k,m in found.items():
        one = got[f'{k} + single-shot']
        assert one['mAP']==pytest.approx(m.mAP) and one['mAP']>=one['rank-1']-1e-9
    code,out,err = ccreid(*line, '--single-shot-draws', '4')
    assert code==2 and '--single-shot-draws is for --single-shot: give that too' in err
    code,out,err = ccreid(*line, '--single-shot', '--single-shot-draws', '0')
    assert code==2 and '--single-shot-draws' in err and err.count('\n')==1
