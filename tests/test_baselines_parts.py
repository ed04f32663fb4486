"PCB, HPM and MGN against loops over stripes, their losses by hand, parameters counted, and as recipes, exports and resumed runs"
import math
import numpy as np, pytest, torch
import ccreid.compat
from fastai.callback.core import Callback
from hypothesis import given, settings, strategies as st
from torch import nn
from ccreid.baselines import mgn as mgn_page, parts as parts_page
from ccreid.baselines.mgn import MGN, MGNModel, ThreeBranches, eight_parts
from ccreid.baselines.parts import HPMModel, PCBModel, PartNeck, Parts
from ccreid.data.batches import Preprocessing, reid_dataloaders
from ccreid.data.mannequins import MannequinWorld
from ccreid.hsgl.hatrip import hatrip_loss
from ccreid.hsgl.hsal import HSAL
from ccreid.models.backbones import create_backbone
from ccreid.models.reid_model import ReIDModel
from ccreid.recipes import METHODS, MODELS, build, recipe
from ccreid.training.checkpoints import Checkpoint
from ccreid.training.embedding import embed
from ccreid.training.export import export_reid, load_reid, parity
from ccreid.training.learner import reid_learner
from ccreid.training.schedules import EpochSchedule, warmup_multistep

@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    world = MannequinWorld(identities=(6,0,3), outfits=2, cameras=3, images=2, size=(64,32), seed=3)
    return world.write(tmp_path_factory.mktemp('world')/'w', layout='prcc', workers=1)

KINDS = dict(pcb=(PCBModel, Parts, 1), hpm=(HPMModel, Parts, 1), mgn=(MGNModel, MGN, 2)) # model, losses, last stride

def quiet(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args, **kwargs)
    return learn

def learner(dataset, name, *cbs, **kwargs):
    model,losses,stride = KINDS[name]
    dls = reid_dataloaders(dataset, Preprocessing((64,32)), 3, 2, num_workers=0, device='cpu', cache=True)
    torch.manual_seed(0)
    net = model(create_backbone('resnet_mini', last_stride=stride), dls.identities)
    return reid_learner(dls, net, [losses(**kwargs), *cbs], lr=1e-3)

class Watch(Callback):
    "What each training step saw"
    order = 45
    def before_fit(self): self.steps = []
    def after_loss(self):
        if not self.training: return
        keep = lambda d: {k: v.detach().clone() for k,v in d.items()}
        self.steps.append(dict(epoch=self.epoch, pred=keep(self.pred), labels=keep(self.yb[0]), loss=self.loss.item()))

class Given(nn.Module):
    "A backbone that gives the map it is called with"
    def __init__(self, channels): super().__init__(); self.channels = channels
    def forward(self, m): return m

# ---- stripes, by loops ----

def hand_stripes(m, cuts, how):
    "[B][n][c] by loops over cuts, stripes, channels and places; a stripe has every row that it touches"
    B,c,h,w = m.shape
    found = [[] for _ in range(B)]
    for b in range(B):
        for n in cuts:
            for i in range(n):
                rows = range(math.floor(i*h/n), math.ceil((i+1)*h/n))
                values = [[m[b,k,y,x].item() for y in rows for x in range(w)] for k in range(c)]
                if how=='max': found[b].append([max(v) for v in values])
                elif how=='avg': found[b].append([sum(v)/len(v) for v in values])
                else: found[b].append([max(v)+sum(v)/len(v) for v in values])
    return torch.tensor(found)

maps = st.tuples(st.integers(1,3), st.integers(1,4), st.integers(1,9), st.integers(1,3), st.integers(0,99)).map(
    lambda o: torch.randn(*o[:4], generator=torch.Generator().manual_seed(o[4])))

@settings(deadline=None, max_examples=25)
@given(maps, st.integers(1,6))
def test_pcb_compares_the_means_of_its_stripes_each_of_length_1_head_first(m, n):
    model = PCBModel(Given(m.shape[1]), parts=n).eval()
    expected = []
    for one in hand_stripes(m, (n,), 'avg'):
        row = []
        for part in one.tolist():
            length = math.sqrt(sum(v*v for v in part))
            row += [v/max(length, 1e-12) for v in part]
        expected.append(row)
    torch.testing.assert_close(model(m)['features'], torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert model.dim==n*m.shape[1] and list(model(m))==['features','map']

@settings(deadline=None, max_examples=20)
@given(maps, st.sampled_from(['paper','released']), st.integers(1,4))
def test_hpm_reduces_each_part_by_its_own_layer(m, rule, levels):
    torch.manual_seed(1)
    model = HPMModel(Given(m.shape[1]), levels=levels, width=3, rule=rule).eval()
    neck,bn = model.neck,model.neck.norm
    bn.running_mean.uniform_(-1, 1); bn.running_var.uniform_(.5, 2); bn.weight.data.uniform_(.5, 2); bn.bias.data.uniform_(-1, 1)
    pooled = hand_stripes(m, [2**k for k in range(levels)], 'both' if rule=='paper' else 'max')
    expected = torch.zeros(len(m), 2**levels-1, 3)
    for b in range(len(m)):
        for p in range(2**levels-1):
            for j in range(3):
                x,at = sum(pooled[b,p,k].item()*neck.reduce[p,k,j].item() for k in range(m.shape[1])),3*p+j
                x = (x-bn.running_mean[at].item())/math.sqrt(bn.running_var[at].item()+bn.eps)*bn.weight[at].item()+bn.bias[at].item()
                expected[b,p,j] = max(x, 0.)
    torch.testing.assert_close(model(m)['features'], expected.flatten(1), rtol=1e-3, atol=1e-4)

@settings(deadline=None, max_examples=20)
@given(maps, maps)
def test_mgns_eight_parts_in_order(a, b):
    a = a[:1]; b = b[:1, :1].expand(-1, a.shape[1], -1, -1); c = b.flip(2)*2
    expected = torch.cat([hand_stripes(m, (1,), 'max') for m in (a, b, c)]+[hand_stripes(b, (2,), 'max'), hand_stripes(c, (3,), 'max')], 1)
    assert torch.equal(eight_parts([a, b, c]), expected)

def test_a_shared_neck_has_one_layer_and_its_statistics_run_over_parts():
    torch.manual_seed(0)
    x,shared,own = torch.randn(5,3,4),PartNeck(3, 4, 6, shared=True),PartNeck(3, 4, 6)
    values = torch.stack([torch.stack([part@shared.reduce[0] for part in one]) for one in x])             # [5,3,6]
    for j in range(6):
        v = values[:,:,j]
        expected = ((v-v.mean())/(v.var(unbiased=False)+1e-5).sqrt()).clamp(min=0)
        torch.testing.assert_close(shared(x)[:,:,j], expected, rtol=1e-4, atol=1e-5)
    for p in range(3):
        v = x[:,p]@own.reduce[p]
        expected = ((v-v.mean(0))/(v.var(0, unbiased=False)+1e-5).sqrt()).clamp(min=0)
        torch.testing.assert_close(own(x)[:,p], expected, rtol=1e-4, atol=1e-5)

# ---- what comes out ----

@pytest.mark.parametrize('name,parts', [('pcb',6),('hpm',15),('mgn',8)])
def test_each_part_has_its_own_classifier_and_the_output_keeps_the_contract(name, parts):
    torch.manual_seed(0)
    model = KINDS[name][0]('resnet_mini', classes=5)
    out = model(torch.randn(3,3,64,32))
    assert type(out) is dict and all(isinstance(v, torch.Tensor) for v in out.values())
    assert {'features','map','logits'}<=set(out) and out['features'].shape==(3,model.dim) and out['map'].shape[1]==128
    own = [out[f'logits_{i}'] for i in range(1,parts+1)]
    for c,f,o in zip(model.classifier, (out[f'features_{i}'] for i in range(1,parts+1)), own):
        torch.testing.assert_close(o, f@c.weight.T+(0 if c.bias is None else c.bias))
    torch.testing.assert_close(out['logits'], sum(own)/parts)
    for i,o in enumerate(own):                                                 # a loss on one part moves one classifier
        grads = torch.autograd.grad(o.sum(), list(model.classifier.parameters()), retain_graph=True, allow_unused=True)
        moved = {n.split('.')[0] for (n,_),g in zip(model.classifier.named_parameters(), grads) if g is not None and g.abs().sum()>0}
        assert moved=={str(i)}
    assert list(model.eval()(torch.randn(1,3,64,32)))==['features','map','logits']
    assert not any('logits' in k for k in KINDS[name][0]('resnet_mini')(torch.randn(2,3,64,32)))

def test_dropout_is_in_training_alone_and_not_in_the_features():
    model = PCBModel('resnet_mini', classes=5, dropout=50)
    model.backbone.eval()                                       # the same map each time
    x = torch.randn(3,3,64,32)
    a,b = model(x),model(x)
    assert torch.equal(a['features'], b['features']) and not torch.equal(a['logits_1'], b['logits_1'])
    model.eval()
    assert torch.equal(model(x)['logits'], model(x)['logits'])
    with pytest.raises(ValueError): PCBModel('resnet_mini', dropout=101)

def count(module): return sum(p.numel() for p in module.parameters())

def test_parameters_are_as_many_as_the_layers_have():
    c,w,C,base = 128,256,7,count(create_backbone('resnet_mini'))
    assert count(PCBModel('resnet_mini', classes=C))==base + (c*w+2*w) + 6*(w*C+C)
    assert count(HPMModel('resnet_mini', classes=C))==base + 15*(c*w+2*w) + 15*w*C
    end = count(create_backbone('resnet_mini').net.layer4)          # its third stage has one block: all of it is shared
    assert count(MGNModel('resnet_mini', classes=C))==base + 2*end + 8*(c*w+2*w) + 8*w*C
    assert count(PCBModel('resnet_mini'))==base and count(HPMModel('resnet_mini'))==base+15*(c*w+2*w)
    assert [len(m('resnet_mini', classes=C).classifier) for m,_,_ in KINDS.values()]==[6,15,8]

def test_branches_begin_as_copies_and_are_trained_apart():
    backbone = create_backbone('resnet18', last_stride=2).eval()
    x = torch.randn(1,3,64,32)
    before = backbone(x)
    three = ThreeBranches(backbone).eval()
    a,b,c = three(x)
    torch.testing.assert_close(a, before); torch.testing.assert_close(b, c)
    assert b.shape[2:]==(4,2) and a.shape[2:]==(2,1) and len(three.net.layer3)==1 and len(three.branches[0])==2
    kinds = [{id(p) for p in branch.parameters()} for branch in three.branches]
    assert not kinds[0] & kinds[1] and not kinds[1] & kinds[2]
    with pytest.raises(ValueError, match='MGN takes a ResNet apart, and vit_tiny'): MGNModel('vit_tiny_patch16_224')

@pytest.mark.parametrize('name', KINDS)
def test_a_description_makes_the_same_structure_again(name):
    model = KINDS[name][0]('resnet_mini', classes=4, **(dict(rule='released', levels=3) if name=='hpm' else {}))
    twin = ReIDModel.from_config(model.config)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2,3,64,32)
    assert type(twin) is type(model) and twin.config==model.config
    assert torch.equal(twin.eval()(x)['features'], model.eval()(x)['features'])

@pytest.mark.parametrize('bad', [dict(levels=1000), dict(levels=0), dict(rule='mean'), dict(wings=2)])
def test_a_description_that_makes_no_sense_is_one_error(bad):
    with pytest.raises(ValueError): ReIDModel.from_config(HPMModel('resnet_mini').config | bad)

def test_a_transformer_gives_parts_too():
    torch.manual_seed(0)
    model = HPMModel(create_backbone('vit_tiny_patch16_224', size=(64,32)), classes=3, levels=2)
    assert model(torch.randn(2,3,64,32))['features'].shape==(2,3*256)
    assert model.config['size']==[64,32] and ReIDModel.from_config(model.config).backbone.size==(64,32)

# ---- losses ----

def hand_ce(logits, y, smoothing):
    total = 0.
    for row,k in zip(logits.double().tolist(), y.tolist()):
        log_sum = math.log(sum(math.exp(v) for v in row))
        q = [(1-smoothing)*(j==k)+smoothing/len(row) for j in range(len(row))]
        total -= sum(a*(v-log_sum) for a,v in zip(q, row))
    return total/len(y)

def hand_triplet(f, y, margin):
    "Batch-hard by loops"
    f,y,hinges = f.double(),y.tolist(),[]
    for i in range(len(y)):
        d = [(f[i]-f[j]).norm().item() for j in range(len(y))]
        near = [d[j] for j in range(len(y)) if y[j]!=y[i]]
        far = [d[j] for j in range(len(y)) if y[j]==y[i] and j!=i]
        if near and far: hinges.append(max(max(far)-min(near)+margin, 0.))
    return sum(hinges)/len(hinges)

@pytest.mark.parametrize('name,parts,kwargs', [('pcb',6,{}), ('hpm',15,dict(smoothing=.2)), ('mgn',8,dict(margin=.7)), ('mgn',8,dict(stripes=False))])
def test_the_total_of_each_step_is_the_sum_by_hand(dataset, name, parts, kwargs):
    for s in quiet(learner(dataset, name, Watch(), **kwargs), 1).watch.steps:
        out,y,smoothing = s['pred'],s['labels']['identity'],kwargs.get('smoothing', .1 if name=='mgn' else 0.)
        total = sum(hand_ce(out[f'logits_{i}'], y, smoothing) for i in range(1,parts+1))*(1/8 if name=='mgn' else 1)
        if name=='mgn':
            pieces = [out['features'].split(256, 1)[i] for i in range(8)]
            on = pieces[:3]+([torch.cat(pieces[3:5], 1), torch.cat(pieces[5:], 1)] if kwargs.get('stripes', True) else [])
            total += sum(hand_triplet(f, y, kwargs.get('margin', .3)) for f in on)/len(on)
        assert s['loss']==pytest.approx(total, rel=1e-4)

def test_hsal_is_added_to_pcb_and_hpm_and_replaces_all_triplets_of_mgn(dataset):
    for name in 'pcb','hpm':
        learn = quiet(learner(dataset, name, HSAL(), Watch()), 1)
        assert list(learn.loss_func.terms)[-1]=='hsal' and learn.hsal.replaced==[]
        s = learn.watch.steps[0]
        expected = sum(hand_ce(s['pred'][f'logits_{i}'], s['labels']['identity'], 0.) for i in range(1,learn.model.parts+1))
        labels = {k: s['labels'][k] for k in ('identity','clothes','camera')}
        assert s['loss']==pytest.approx(expected+.1*hatrip_loss(s['pred']['features'], **labels, alpha=.05, margin=0.).item(), rel=1e-4)
    learn = quiet(learner(dataset, 'mgn', HSAL(), Watch(), margin=.4), 1)
    assert learn.hsal.replaced==[f'triplet_{i}' for i in range(1,6)] and 'hsal' not in learn.loss_func.terms
    s = learn.watch.steps[0]
    out,labels = s['pred'],{k: s['labels'][k] for k in ('identity','clothes','camera')}
    keys = 'features_1','features_2','features_3','halves','thirds'
    expected = sum(hand_ce(out[f'logits_{i}'], labels['identity'], .1) for i in range(1,9))/8
    expected += sum(hatrip_loss(out[k], **labels, alpha=.05, margin=.4).item() for k in keys)/5
    assert s['loss']==pytest.approx(expected, rel=1e-4)

def test_losses_need_their_network_and_leave_nothing_behind(dataset):
    plain = reid_learner(learner(dataset, 'pcb').dls, 'resnet_mini')
    for cb,message in ((Parts(), 'Parts needs a PartModel, not a ReIDModel'), (MGN(), 'MGN needs a MGNModel, not a ReIDModel')):
        with pytest.raises(ValueError, match=message): plain.add_cb(cb)
        assert list(plain.loss_func.terms)==['identity']
    for name in KINDS:
        learn = learner(dataset, name)
        learn.remove_cb(next(cb for cb in learn.cbs if isinstance(cb, Parts)))
        assert list(learn.loss_func.terms)==['identity'] and not len(learn.model.aux)

# ---- export, resume, recipes, command line ----

@pytest.mark.parametrize('name', KINDS)
def test_export_and_load(dataset, tmp_path, name):
    learn = quiet(learner(dataset, name), 1)
    model = load_reid(export_reid(learn, tmp_path/'m.safetensors'))
    assert type(model) is KINDS[name][0] and model.classifier is None and parity(learn.model, model)<1e-5
    table = dataset.samples[dataset.samples.split!='train']
    torch.testing.assert_close(embed(model, table), embed(learn, table), rtol=1e-4, atol=1e-6)

@pytest.mark.parametrize('name', KINDS)
def test_resumed_is_the_same_run_to_the_bit(dataset, tmp_path, name):
    schedule = lambda: EpochSchedule(warmup_multistep(1e-3, (2,), warmup=1, factor=.1))
    whole = quiet(learner(dataset, name, schedule(), Watch()), 3)
    class Die(Callback):
        def after_batch(self):
            if self.training and self.epoch==2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): quiet(learner(dataset, name, schedule(), Checkpoint(tmp_path/'c.pth'), Die()), 3)
    again = quiet(learner(dataset, name, schedule(), Checkpoint(tmp_path/'c.pth'), Watch()), 3)
    assert again.first_epoch==2 and again.history==whole.history
    assert [s['loss'] for s in again.watch.steps]==[s['loss'] for s in whole.watch.steps if s['epoch']==2]
    for (k,a),b in zip(whole.model.state_dict().items(), again.model.state_dict().values()): assert torch.equal(a, b), k

_same = dict(size=(384,128), identities=16, images=4, lr=3.5e-4, wd=5e-4, epochs=60, milestones=(40,), backbone='resnet50', pretrained=True, triplet=0.)

@pytest.mark.parametrize('data', ['prcc','ltcc','market1501'])
@pytest.mark.parametrize('method,own', [('pcb',dict(smoothing=0.,warmup=0)), ('hpm',dict(smoothing=0.,warmup=0,hpm_rule='paper')),
    ('mgn',dict(smoothing=.1,warmup=10,warmup_factor=.01,margin=.3,mgn_stripes=True))])
def test_recipes_carry_the_settings(data, method, own):
    r = recipe(data, method)
    assert {k: getattr(r, k) for k in _same | own}==_same | own
    cb, = METHODS[method](r)
    assert cb.smoothing==r.smoothing and cb.weight==(1/8 if method=='mgn' else 1.)
    assert getattr(cb, 'margin', .3)==r.margin
    small = recipe('mannequins', method)
    assert (small.size,small.backbone,small.identities,small.images)==((96,48),'resnet_mini',8,4)

def test_options_belong_to_their_method_and_change_the_hash_only_where_given():
    with pytest.raises(ValueError, match='Setting hpm_rule is one of hpm, which method pcb has not'): recipe('prcc', 'pcb', hpm_rule='paper')
    with pytest.raises(ValueError, match='hpm_rule'): recipe('prcc', 'hpm', hpm_rule='mean')
    plain = recipe('prcc', 'hpm')
    assert recipe('prcc', 'hpm', hpm_rule='paper').hash==plain.hash!=recipe('prcc', 'hpm', hpm_rule='released').hash
    assert recipe('prcc', 'mgn', mgn_stripes=False).hash!=recipe('prcc', 'mgn').hash

SMALL = dict(size=(64,32), identities=3, images=2, epochs=1, pretrained=False, backbone='resnet_mini')

@pytest.mark.parametrize('method,change', [('pcb+hsal',{}), ('hpm+hsal',dict(hpm_rule='released')), ('mgn+hsal',dict(mgn_stripes=False))])
def test_a_recipe_builds_and_trains_with_hsal(dataset, method, change):
    r = recipe('prcc', method, **SMALL, **change)
    learn = quiet(build(r, dataset, 0, 'cpu', num_workers=0), 1)
    name = method.split('+')[0]
    assert type(learn.model) is KINDS[name][0] and np.isfinite([v for v in learn.history[0].values()]).all()
    if name=='hpm': assert learn.model.rule=='released'
    if name=='mgn': assert learn.hsal.replaced==['triplet_1','triplet_2','triplet_3'] and learn.model.config['last_stride']==2
    assert MODELS[name](r, learn.dls).classifier[0].weight.shape==(learn.dls.identities,256)

def test_on_the_command_line_a_part_model_is_trained_and_evaluated(ccreid, dataset, tmp_path):
    small = [o for k,v in dict(size='64x32', identities=3, images=2, pretrained='false', backbone='resnet_mini', hpm_rule='released').items() for o in ('--set',f'{k}={v}')]
    run = ('train','--data','prcc','--root',dataset.root,'--method','hpm+hsal','--epochs','1','--device','cpu','--workers','0',*small)
    code,out,err = ccreid(*run, '--out', tmp_path/'run')
    assert code==0, err
    weights, = (tmp_path/'run').glob('*.safetensors')
    assert load_reid(weights).rule=='released'
    code,out,err = ccreid('evaluate','--data','prcc','--root',dataset.root,'--weights',weights,'--device','cpu')
    assert code==0 and 'clothes-changing: rank-1' in out
    code,_,err = ccreid(*run[:-2], '--set', 'hpm_rule=mean', '--out', tmp_path/'no')
    assert code and 'hpm_rule' in err
