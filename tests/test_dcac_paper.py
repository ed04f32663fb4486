"What the pages quote from DCAC's paper, against figures entered once from its text; and the settings of its §5.2"
import inspect, json, re
from pathlib import Path
import pytest
import ccreid.compat
from ccreid.dcac.expert import SD, DiffusionExpert
from ccreid.dcac.feedback import DiffusionFeedback, by_source
from ccreid.dcac.memory import PrototypeMemory
from ccreid.recipes import callbacks_of, recipe
from ccreid.training.schedules import warmup_multistep

NBS = Path(__file__).parents[1]/'nbs'
pytestmark = pytest.mark.skipif(not NBS.is_dir(), reason='the notebooks are in the repository')

BASELINE = dict(zip(('MA→D','MA→MS','MA→C3','D→MA','D→MS','D→C3','MS→MA','MS→D','MS→C3','C3→MA','C3→D','C3→MS'),
    ((47.8,67.3), (22.0,50.1), (30.0,30.4), (41.7,70.5), (19.0,46.9), (22.1,23.1), (51.0,76.5), (57.1,73.8), (32.7,32.9), (39.6,66.2), (41.4,62.7), (16.6,45.2))))
DCAC = dict(zip(BASELINE,
    ((49.5,69.1), (23.4,52.1), (32.5,33.2), (42.3,71.5), (19.7,47.4), (23.0,23.5), (52.1,77.9), (58.4,75.0), (34.1,34.4), (42.0,68.6), (43.2,64.8), (17.8,47.3))))
TABLE_4 = {'MA': (56.7,80.0), 'D': (58.9,75.4), 'MS': (27.5,56.7), 'C3': (42.5,43.6), 'average': (46.4,63.9)}
TABLE_5 = {'baseline': (22.0,50.1,51.0,76.5), 'frozen': (21.3,49.7,50.8,76.5), 'lora': (23.4,52.1,52.1,77.9), 'partial-1': (22.1,50.3,47.1,74.6),
           'partial-2': (22.1,50.4,51.9,78.5), 'full': (21.8,50.1,51.5,76.6), 'scratch': (21.9,50.3,51.7,77.6)}
TABLE_6 = {'baseline': (140.3,1.46,7.58,85.94), 'frozen': (464.7,8.50,17.22,86.51), 'lora': (578.1,8.52,18.15,89.01), 'partial-1': (647.1,8.50,23.92,599.37),
           'partial-2': (662.1,8.50,25.01,696.41), 'full': (735.9,8.50,28.24,946.03)}
INFERENCE = 40.3,1.46,2.27,85.55 # of Table 6
TABLE_7 = {'baseline': (22.0,50.1,51.0,76.5), 'instance': (22.4,50.8,51.6,77.7), 'class': (22.6,51.2,50.5,76.5), 'correlation': (23.4,52.1,52.1,77.9)}
TABLE_8 = {'baseline': (86.4,94.4,70.4,88.1), 'instance': (86.4,94.7,70.4,88.5), 'class': (86.6,94.5,70.6,88.2), 'correlation': (86.8,94.9,70.1,88.3)}
TABLE_9 = {8: (23.4,52.1,51.4,77.3), 16: (22.1,50.7,51.7,77.9), 32: (22.4,51.4,52.1,77.9), 64: (22.9,51.6,51.1,77.5)}
TABLE_10 = {'silu': (22.4,50.8,50.4,76.9), 'batch-norm': (22.5,50.9,51.0,76.8), 'net': (21.9,50.1,50.5,76.2)}

def cells(page): return [''.join(c['source']) for c in json.loads((NBS/'dcac'/page).read_text(encoding='utf-8'))['cells']]
def text(page): return ' '.join(' '.join(cells(page)).split())

@pytest.fixture(scope='module')
def quoted():
    "What the results page holds"
    space = {}
    for c in cells('results.ipynb'):
        if m := re.match(r'(single|several|modes|conditions|further) = ', c): exec(c.split('\ngained')[0].split('\npd.')[0].split('\nown')[0], space)
    return space

def test_the_page_has_the_papers_tables(quoted):
    assert quoted['single']=={k: BASELINE[k]+DCAC[k] for k in BASELINE}
    assert quoted['several']==TABLE_4
    assert quoted['modes']=={k: TABLE_5[k]+TABLE_6[k] for k in TABLE_6}
    assert quoted['conditions']=={k: TABLE_7[k]+TABLE_8[k] for k in TABLE_7}
    assert quoted['further']==TABLE_10 and quoted['ranks']==TABLE_9

def test_the_papers_own_tables_agree():
    ma,ms = 'MA→MS','MS→MA'
    assert TABLE_5['baseline']==TABLE_7['baseline']==BASELINE[ma]+BASELINE[ms] and TABLE_5['lora']==TABLE_7['correlation']==DCAC[ma]+DCAC[ms]
    assert TABLE_9[8][:2]+TABLE_9[32][2:]==TABLE_5['lora']
    for k in (0,1): assert round(sum(TABLE_4[o][k] for o in ('MA','D','MS','C3'))/4, 1)==pytest.approx(TABLE_4['average'][k], abs=.11)

def test_figures_in_words():
    words = text('results.ipynb')
    assert 'It gains 0.4 to 2.8 points over its baseline' in words
    gains = [round(b-a, 1) for k in BASELINE for a,b in zip(BASELINE[k], DCAC[k])]
    assert (min(gains), max(gains), len(gains))==(.4, 2.8, 24) and all(g>0 for g in gains) and 'All 24 gains are positive' in words
    assert 'From scratch (no line in Table 6): 21.9, 50.3 and 51.7, 77.6' in words and TABLE_5['scratch']==(21.9,50.3,51.7,77.6)
    assert '(mAP 21.8 and 21.9, against 22.0)' in words and (TABLE_5['full'][0], TABLE_5['scratch'][0], TABLE_5['baseline'][0])==(21.8, 21.9, 22.0)
    assert 'partial 1 loses 3.9 points of mAP' in words and round(TABLE_5['baseline'][2]-TABLE_5['partial-1'][2], 1)==3.9
    assert 'Inference (no line in Table 5): {} ms, {} TFLOPs, {} GB, {} M'.format(*INFERENCE) in words
    there,back = ([round(v[k], 1) for v in TABLE_9.values()] for k in (0,2))             # ranks 8, 16, 32, 64
    others = sorted(there[1:])
    assert 'The four ranks lie within 1.3 points of mAP from Market-1501 and within 1.0 back' in words
    assert [round(max(o)-min(o), 1) for o in (there, back)]==[1.3, 1.]
    assert 'the lowest is the best, and of the other three each higher one is better; back, the third is' in words
    assert max(there)==there[0] and there[1:]==others and max(back)==back[2]
    times = [TABLE_6[m][0] for m in ('frozen','full','baseline')]
    assert 'the full mode takes 1.6 times as long as the frozen one' in words and round(times[1]/times[0], 1)==1.6
    assert "a step takes 3.3 times as long as the baseline's in the paper, 6.1 times here" in words and round(times[0]/times[2], 1)==3.3
    cost = json.loads((NBS.parent/'benchmarks'/'results'/'feedback_cost.json').read_text())['rows']
    modes = [cost[m]['ms'] for m in ('frozen','lora','partial-1','partial-2','full')]
    assert round(modes[0]/cost['baseline']['ms'], 1)==6.1 and max(modes)/min(modes)<1.21
    assert 'Memory and trained weights grow in the paper' in words and all(
        [t[k] for t in TABLE_6.values()][1:]==sorted(t[k] for t in TABLE_6.values())[1:] for k in (2,3))
    assert "Table 6's 89.01 M leave room" in words and TABLE_6['lora'][3]==89.01
    assert '(rank-1 73.2)' in words and '(80.1 and 79.7)' in words and DCAC['D→MA'][1]<73.2 and DCAC['MS→MA'][1]<79.7      # LDU; TransMatcher, MDA
    assert 'leave the frozen patch projection out' in words and '85.55' in words
    assert '(22.9 at 64, 22.1 at 16)' in words and (TABLE_9[64][0], TABLE_9[16][0])==(22.9, 22.1)==(others[-1], others[0])
    assert '64, has its lowest mAP (51.1)' in words and min(v[2] for v in TABLE_9.values())==TABLE_9[64][2]==51.1
    assert '(51.6 against 50.5), which is below the baseline' in words and TABLE_7['instance'][2]==51.6 and TABLE_7['class'][2]==50.5<TABLE_7['baseline'][2]
    assert 'its mAP is 0.3 below' in words and round(TABLE_8['baseline'][2]-TABLE_8['correlation'][2], 1)==.3 and min(v[2] for v in TABLE_8.values())==TABLE_8['correlation'][2]
    own = [round(TABLE_8['correlation'][k]-TABLE_8['baseline'][k], 1) for k in range(4)]
    assert own==[.4,.5,-.3,.2] and '+0.4 and +0.5 points on Market-1501, −0.3 and +0.2 on MSMT17' in words
    assert "(nine times the operations, the paper's six)" in words and round(8.50/1.46)==6

def test_settings_that_the_paper_names():
    "§5.2"
    r,memory = recipe('market1501', 'dcac'),PrototypeMemory(2, 2)
    assert (r.epochs, r.milestones, r.wd, r.identities, r.images, r.size)==(60, (30,50), 1e-4, 16, 4, (256,128))
    rate = warmup_multistep(r.lr, r.milestones, warmup=r.warmup, factor=r.warmup_factor)
    assert [rate(e) for e in (0,10,29,30,49,50)]==pytest.approx([5e-7, 5e-6, 5e-6, 5e-7, 5e-7, 5e-8])
    assert (memory.momentum, memory.temperature)==(.2, .01)
    assert [by_source(s) for s in ('cuhk03_np','market1501','dukemtmc','msmt17','a+b')]==[(.1,8), (.6,8), (.6,8), (1.,32), (1.,32)]
    default = {k: p.default for f in (DiffusionFeedback, DiffusionExpert) for k,p in inspect.signature(f).parameters.items()}
    assert (default['weight'], default['rank'], default['mode'], default['size'])==(1., 8, 'lora', (128,128))
    pcl,fed,control = callbacks_of(r)
    assert (control.rate, control.by)==(1., 'both')                           # only looks
    assert (pcl.weight, fed.weight, fed.made_by.args[0])==(1., 1., SD) and 'stable-diffusion-v1-5' in SD

def test_quoted_sentences_are_the_papers():
    "Word for word"
    said = {'clip_reid.ipynb': ['to acquire a certain level of generalization abilities','frozen for stability'],
            'conditioning.ipynb': ['softmax weighting in Equation (12) is replaced by one-hot selection, which only keeps the probability score of the corresponding class and resets others to zero',
                'the same as the one activating latent features in the diffusion model','a multi-layer perceptron network, including the mixture of linear, non-linear, and normalization','The temperature factor is closely related to the size of the training datasets'],
            'diffusion.ipynb': ['only the output blocks trainable','only the middle and output blocks','the query, key, value and output transformation matrices in attention computation, and the linear transformation matrices in feed-forward networks'],
            'results.ipynb': ['only limited improvement','presents a certain level of improvement','obvious performance degradation on source domains',
                'sensitive to intra-ID variations','the linear transformation matrices in feed-forward networks','A lower rank is optimal for training on small datasets',
                'The higher rank was optimal','achieves state-of-the-art performance'],
            'latents.ipynb': ['No data augmentation is used for the diffusion model'],
            'looking.ipynb': ['baseline model mainly focuses on background areas but the person bodies are almost ignored','more body parts'],
            'chain.ipynb': ['may even slightly harm it']}
    for page,words in said.items():
        for w in words: assert w in text(page), (page, w)
