"`ccreid generate --gate`, then `ccreid train`, on photograph-like pictures, with tiny networks of the real classes"
import json
import pytest
pytest.importorskip('transformers'); pytest.importorskip('diffusers')
from ccreid.data.transforms import Preprocessing
from ccreid.generation.jobs import read_generated
from ccreid.models.reid_model import ReIDModel
from ccreid.training.export import export_reid
from test_dlcr_generating import TINY, dataset, record, run, weights # fixtures among them
from test_hsgl_algorithm import SMALL, photographs # likewise

def test_images_are_left_out_by_a_network_and_by_words(run, ccreid, photographs, tmp_path):
    judge = ReIDModel('resnet_mini')
    judge.preprocessing = Preprocessing((64,32))
    file,folder = export_reid(judge, tmp_path/'judge.safetensors'),tmp_path/'runs'/'prcc-dlcr-random'
    words = 'generate','dlcr-random','--data','prcc','--root',photographs,'--device','cpu','--variants','1',*TINY
    code,_,err = ccreid(*words, '--gate','identity')                    # before anything is made
    assert code==2 and '--model judge=FILE' in err and len(err.strip().splitlines())==1 and not folder.exists()
    for flag,value in (('--gate','nose'), ('--gate-share','0'), ('--gate-off','4'), ('--gate-rule','taste')):
        code,_,err = ccreid(*words, flag, value)
        assert code==2 and flag in err and len(err.strip().splitlines())==1
    asked = '--variants','1',*TINY,'--gate','both','--model',f'judge={file}'
    out = run('generate dlcr-random', *asked, '--gate-share','0.02')
    real = dataset(photographs)
    good = read_generated(folder, real)
    said = json.loads((folder/'sifted.json').read_text())
    assert 0<len(good)<len(real.train)==len(said['images']) and f'gate: {len(real.train)-len(good)} of {len(real.train)} images dropped' in out
    assert said['asked']==dict(by='both', share=.02, rule='colours') and said['limits']['off']==0 and (folder/'asked'/'answers').is_dir()
    run('train', *SMALL, '--method','dlcr','--generated',folder,'--out',tmp_path/'trained')
    assert record(tmp_path/'trained')['train']['generated']==len(good)
    run('generate dlcr-random', '--variants','1',*TINY, '--gate','none')
    assert len(read_generated(folder, real))==len(real.train) and not (folder/'sifted.json').exists()
