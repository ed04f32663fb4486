"The small transformer: its loss, its script, what ships; and what a step of DCAC costs"
import json, os, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
import ccreid.compat
from ccreid.data.mannequins import DOMAINS, PRETRAINING
from ccreid.data.mannequins.benchmarks import BENCHMARKS
from ccreid.dcac.clip_reid import clip_reid
from ccreid.models.small_vit import about_small_vit, matching_loss
from ccreid.weights import load_weights

ROOT = Path(__file__).resolve().parent.parent

def script(name, *args):
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, str(ROOT/'benchmarks'/name), *map(str, args)], env=env, capture_output=True, text=True)
    assert done.returncode==0, done.stderr[-2000:]
    return done.stdout

def test_matching_by_a_loop():
    torch.manual_seed(0)
    a,b = (torch.nn.functional.normalize(torch.randn(4, 3), dim=1) for _ in range(2))
    s,loss = 2.5,0.
    for i in range(4):
        for x,y in ((a,b), (b,a)):
            e = [np.exp(s*float(x[i]@y[j])) for j in range(4)]
            loss -= np.log(e[i]/sum(e))/8
    assert matching_loss(a, b, s).item()==pytest.approx(loss, rel=1e-5)

def test_the_script_trains_is_resumed_and_ships_what_the_encoder_reads(tmp_path):
    args = ['--people', 16, '--steps', 2, '--batch', 4, '--measured', 0, '--pictures', tmp_path/'p', '--work', tmp_path/'w', '--out', tmp_path/'vit_mini.safetensors']
    script('pretrain_vit.py', *args)
    first = load_weights(tmp_path/'vit_mini.safetensors')
    (tmp_path/'vit_mini.safetensors').unlink()
    assert 'pictures-' not in script('pretrain_vit.py', *args)                # drawn once, trained once
    assert all(torch.equal(v, first[k]) for k,v in load_weights(tmp_path/'vit_mini.safetensors').items())
    net = clip_reid(3, 'vit_mini', (96,48), tmp_path/'vit_mini.safetensors')
    assert torch.equal(net.backbone.net.head.weight.half(), first['head.weight']) and about_small_vit(tmp_path/'vit_mini.safetensors')['people']==16

def test_what_ships():
    file = ROOT/'ccreid'/'assets'/'vit_mini.safetensors'
    about,state = about_small_vit(),load_weights(file)
    assert file.stat().st_size<2e6 and about['made_by']=='benchmarks/pretrain_vit.py' and about['minutes']<=15 and about['places']==', '.join(PRETRAINING)
    assert all(v.dtype==torch.float16 and v.isfinite().all() for v in state.values()) and sum(v.numel() for v in state.values())<7e5
    for by in about['measures'].values(): assert by['vit_mini']['own caption']>80>10>by['random weights']['own caption']
    sys.path.insert(0, str(ROOT/'benchmarks'))
    try: import pretrain_vit
    finally: sys.path.pop(0)
    used = {pretrain_vit.SEED+more+i for more in (0,300,400) for i in range(len(DOMAINS))}
    assert not used & {spec['world']['seed'] for spec in BENCHMARKS.values()}

def test_what_a_step_costs(tmp_path):
    script('feedback_cost.py', '--times', 1, '--modes', 'baseline', 'lora', '--out', tmp_path/'cost.json')
    found = json.loads((tmp_path/'cost.json').read_text())
    kept = json.loads((ROOT/'benchmarks'/'results'/'feedback_cost.json').read_text())
    for mode in ('baseline','lora','inference'):
        for k in ('tflops','millions'): assert found['rows'][mode][k]==pytest.approx(kept['rows'][mode][k], rel=1e-3), (mode, k)
    rows = kept['rows']
    order = ['baseline','frozen','lora','partial-1','partial-2','full']
    assert [rows[m]['millions'] for m in order]==sorted(rows[m]['millions'] for m in order) and [rows[m]['gb'] for m in order]==sorted(rows[m]['gb'] for m in order)
    assert kept['cache'] is False and kept['device_name'] and rows['frozen']['tflops']==rows['full']['tflops']<rows['lora']['tflops']

def test_the_real_cost_goes_its_own_way(tmp_path, monkeypatch):
    "The branch for a graphics card, with tiny networks of the real classes; it leaves the miniature's file alone"
    from ccreid.generation.tiny_networks import tiny_unet, tiny_vae
    monkeypatch.syspath_prepend(str(ROOT/'benchmarks')); monkeypatch.chdir(tmp_path)
    import feedback_cost
    monkeypatch.setattr(feedback_cost, 'REAL', dict(people=8, batch=4, reid=('test_vit', (64,32)), size=(32,16)))
    monkeypatch.setattr(feedback_cost, 'new_stable_diffusion', lambda: (tiny_unet(channels=4), tiny_vae()))
    monkeypatch.setattr(sys, 'argv', ['feedback_cost.py','--real','--times','1','--modes','baseline','lora','full','--checkpointing','--precision','bf16'])
    feedback_cost.main()
    file, = tmp_path.rglob('*.json')
    found = json.loads(file.read_text())
    rows = found['rows']
    assert file.name=='feedback_cost_real.json' and (found['networks'], found['batch'], found['checkpointing'])==('real', 4, True)
    assert [*rows]==['baseline','inference','lora','full'] and rows['baseline']['millions']<rows['lora']['millions']<rows['full']['millions']
    assert rows['inference']['millions']<rows['baseline']['millions'] and 'gb' not in rows['inference'] and rows['full']['tflops']<rows['lora']['tflops']
