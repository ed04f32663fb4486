"DCAC from the command line: Market-1501's layout trains, PRCC's and LTCC's test; several sources; where the network looks; memory that runs out"
import json
import pytest, torch
import ccreid.compat
from diffusers import PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from ccreid.data.layouts import load_dataset
from ccreid.data.mannequins import MannequinWorld
from ccreid.dcac.clip_reid import CLIPBackbone
from ccreid.dcac.diffusion import sd_scheduler
from ccreid.dcac.expert import load_expert
from ccreid.generation.tiny_networks import tiny_unet, tiny_vae
from ccreid.training.embedding import embed
from ccreid.training.export import load_reid
from ccreid.training.learner import ReIDLearner
from ccreid.weights import load_weights

SETS = dict(market1501=dict(outfits=1, cameras=2), cuhk03_np=dict(outfits=1, cameras=2), dukemtmc=dict(outfits=1, cameras=2),
            prcc=dict(outfits=2, cameras=3), ltcc=dict(identities=(5,0,4), outfits=2, cameras=2))

@pytest.fixture(scope='module')
def roots(tmp_path_factory):
    "A folder of small worlds, each other people in another set's layout"
    root = tmp_path_factory.mktemp('sets')
    for k,(name,about) in enumerate(SETS.items()):
        about = dict(identities=(4,0,4), images=2, size=(64,32), seed=20+k) | about
        MannequinWorld(**about).write(root/name, layout=name, workers=1, load=False)
    return root

@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "A folder of weights: the encoder under timm's name, with places of a square, and a diffusion model in diffusers' layout"
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp('weights')
    save_file({k: v+.01*torch.randn_like(v) for k,v in CLIPBackbone('test_vit', (160,160)).net.state_dict().items()}, folder/'test_vit.safetensors')
    tiny_unet(channels=4).save_pretrained(folder/'sd'/'unet'); tiny_vae().save_pretrained(folder/'sd'/'vae')
    PNDMScheduler(beta_start=.00085, beta_end=.012, beta_schedule='scaled_linear', skip_prk_steps=True, set_alpha_to_one=False,
                  steps_offset=1).save_pretrained(folder/'sd'/'scheduler')       # the schedule that Stable Diffusion 1.5 is published with
    return folder

SMALL = [w for s in 'backbone=test_vit size=64x32 identities=2 images=4 dcac_diffusion=sd dcac_size=16x8 pad=0'.split() for w in ('--set', s)]

@pytest.fixture
def train(ccreid, weights, monkeypatch, tmp_path):
    monkeypatch.setenv('CCREID_WEIGHTS', str(weights))
    def call(data, root, *more):
        return ccreid('train', '--data', data, '--root', root, '--method', 'dcac', '--epochs', 1, *SMALL, *more, '--device', 'cpu',
                      '--workers', 0, '--out', tmp_path/'run')
    return call

def by_a_loop(model, ds, protocol):
    "Rank-1 and number of queries that count, query by query"
    query,gallery = protocol.select(ds.samples)[0]
    q,g = (embed(model, t.reset_index(drop=True), progress=False) for t in (query, gallery))
    junk,right = protocol.junk(query, gallery).tolist(),[]
    for i,person in enumerate(query.identity):
        found = [((q[i]-g[j]).norm().item(), gallery.identity.iloc[j]==person) for j in range(len(gallery)) if not junk[i][j]]
        if any(same for _,same in found): right.append(min(found)[1])
    return sum(right)/len(right),len(right)

def test_market_trains_and_prcc_and_ltcc_test(ccreid, train, roots, weights, tmp_path):
    code,out,err = train('market1501', roots)
    assert code==0, out+err
    file, = (tmp_path/'run').glob('*.safetensors')
    about = json.loads((tmp_path/'run'/'metrics.json').read_text())
    assert list(about['protocols'])==['standard'] and about['history'][0]['diffusion']>0             # the source's own test (Table 8)
    net,given = load_reid(file),load_weights(weights/'test_vit.safetensors')
    assert torch.equal(net.backbone.net.patch_embed.proj.weight, given['patch_embed.proj.weight'])   # began there, and frozen
    assert torch.allclose(net.backbone.net.head.weight, given['head.weight'], atol=1e-4)
    state = torch.load(tmp_path/'run'/'checkpoint.pth', weights_only=True)
    assert {v.shape[0] for k,v in state['model'].items() if 'lora_A' in k}=={8} and 'temperature=0.6' in state['callbacks']['diffusion_feedback']['conditioning']
    for name,wanted in (('prcc', {'clothes-changing','same-clothes'}), ('ltcc', {'clothes-changing','standard'}), ('dukemtmc', {'standard'})):
        code,out,err = ccreid('evaluate', '--data', name, '--root', roots, '--weights', file, '--device', 'cpu', '--json')
        assert code==0, out+err
        found,ds = json.loads(out),load_dataset(name, roots, verbose=False)
        assert wanted<=set(found), set(found)
        for k in wanted:
            rank1,counted = by_a_loop(net, ds, ds.protocols[k])
            assert found[k]['queries']==counted>0, (name, k)
            if ds.protocols[k].draws==1: assert found[k]['R1']==pytest.approx(rank1), (name, k)

def test_several_sources_train_and_the_fourth_tests(ccreid, train, roots, tmp_path):
    "Leave one out, with the paper's rank and temperature for several sources"
    code,out,err = train('market1501+cuhk03_np', roots, '--boxes', 'detected')
    assert code==0, out+err
    about = json.loads((tmp_path/'run'/'metrics.json').read_text())
    assert set(about['protocols'])=={'market1501/standard','cuhk03_np/standard'}
    state = torch.load(tmp_path/'run'/'checkpoint.pth', weights_only=True)
    assert state['model']['classifier.weight'].shape[0]==8==len(state['model']['aux.conditioning.prompts'])
    assert {v.shape[0] for k,v in state['model'].items() if 'lora_A' in k}=={32}
    assert 'temperature=1.0' in state['callbacks']['diffusion_feedback']['conditioning']
    code,out,err = ccreid('evaluate', '--data', 'dukemtmc', '--root', roots, '--weights', next((tmp_path/'run').glob('*.safetensors')), '--device', 'cpu')
    assert code==0 and out.startswith('standard: rank-1'), out+err

@pytest.mark.parametrize('data, more, says', [
    ('market1501+', (), "unknown data set ''"), ('market1501+nothing', (), "unknown data set 'nothing'"), ('prcc+prcc', (), 'two data sets are called prcc'),
    ('market1501+prcc', ('--boxes','detected'), 'none of market1501, prcc has an option --boxes')])
def test_sources_that_cannot_be_joined(train, roots, tmp_path, data, more, says):
    code,out,err = train(data, roots, *more)
    assert code==2 and says in err and 'Traceback' not in err and len(err.strip().splitlines())<=2, err
    assert not (tmp_path/'run').exists()

def test_where_a_network_looks_from_its_checkpoint(ccreid, train, roots, tmp_path):
    "Fig. 3 of a run on photographs; an exported network alone cannot say"
    assert train('market1501', roots)[0]==0
    file, = (tmp_path/'run').glob('*.safetensors')
    look = lambda folder, data='market1501': ccreid('evaluate', '--data', data, '--root', roots, '--weights', file, '--device', 'cpu', '--dcac-looks', folder)
    code,out,err = look(tmp_path/'run')
    assert code==0 and 'dcac-looks: ' in out and 'of the maps on the person' in out, out+err
    assert (tmp_path/'run'/'looks.png').read_bytes()[:4]==b'\x89PNG'
    code,out,err = look(tmp_path)
    assert code==2 and 'checkpoint.pth' in err and 'Traceback' not in err, err
    code,out,err = look(tmp_path/'run', 'ltcc')
    assert code==2 and 'classifier.weight' in err and 'another shape' in err and 'Traceback' not in err, err  # five people, not four
    (tmp_path/'run'/'looks.png').unlink()
    state = torch.load(tmp_path/'run'/'checkpoint.pth', weights_only=True)
    for change,says in ((lambda m: m['neck.running_mean'].add_(1), 'another training'), (lambda m: m.pop('neck.weight'), '1 weights are missing')):
        change(state['model']); torch.save(state, tmp_path/'run'/'checkpoint.pth')
        code,out,err = look(tmp_path/'run')
        assert code==2 and says in err and 'checkpoint.pth' in err and 'Traceback' not in err, err
    (tmp_path/'run'/'checkpoint.pth').write_text('<!DOCTYPE html>')
    code,out,err = look(tmp_path/'run')
    assert code==2 and 'checkpoint.pth' in err and 'Traceback' not in err and not (tmp_path/'run'/'looks.png').exists(), err

@pytest.mark.parametrize('where', [(UNet2DConditionModel,'forward'), (ReIDLearner,'_backward')])
def test_memory_that_runs_out_there_and_back_is_one_line(train, roots, monkeypatch, where):
    def full(*args, **kwargs): raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 3 GiB')
    monkeypatch.setattr(*where, full, raising=False)
    code,out,err = train('market1501', roots)
    assert code==2 and 'out of memory: the diffusion model with 8 images of 16x8 pixels, gradient checkpointing on' in err, err
    assert len(err.strip().splitlines())==1 and 'not expected' not in err

def test_the_published_schedule_is_that_of_the_paper(weights):
    e = load_expert(str(weights/'sd'), size=(16,8), rank=2)
    assert torch.equal(e.scheduler.alphas_cumprod, sd_scheduler().alphas_cumprod) and e.scheduler.config.num_train_timesteps==1000

@pytest.mark.parametrize('content, says', [(None, 'not found'), (b'<!DOCTYPE html><html>', 'web page'), (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n', 'Git LFS'),
                                           ('another', 'another shape')])
def test_weights_of_the_encoder_that_are_none(train, weights, roots, tmp_path, monkeypatch, content, says):
    (tmp_path/'mine').mkdir()
    file = tmp_path/'mine'/'test_vit.safetensors'
    if content=='another': save_file({k: v[:3].clone() if k=='head.weight' else v for k,v in load_weights(weights/'test_vit.safetensors').items()}, file)
    elif content: file.write_bytes(content)
    monkeypatch.setenv('CCREID_WEIGHTS', str(tmp_path/'mine'))
    code,out,err = train('market1501', roots)
    assert code==2 and says in err and str(tmp_path/'mine') in err and 'Traceback' not in err and len(err.strip().splitlines())<=2, err
    assert not list((tmp_path/'run').glob('*.safetensors'))
