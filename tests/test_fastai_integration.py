"What fastai's users know works on our learner, or is refused in one line before training"
import os, subprocess, sys
import pytest, torch
import ccreid.compat
from pathlib import Path
from fastai.callback.core import Callback, FetchPredsCallback
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger, ShowGraphCallback
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback, TerminateOnNaNCallback
from fastai.callback.training import BnFreeze, GradientAccumulation, GradientClip, ShortEpochCallback
from torch.nn import functional as F
from ccreid.baselines.cal import CAL
from ccreid.baselines.fire import FIRe2
from ccreid.data.batches import Preprocessing, reid_dataloaders
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.samples import DataError, ReIDDataset
from ccreid.hsgl.hsal import HSAL
from ccreid.models.reid_model import ReIDModel
from ccreid.training.adapting import MixedIdentity, epoch_figures, fitted
from ccreid.training.checkpoints import Checkpoint
from ccreid.recipes import build, recipe
from ccreid.training.embedding import embed
from ccreid.training.learner import Method, reid_learner
from ccreid.training.retrieval import RetrievalEval
from ccreid.training.schedules import EpochSchedule, warmup_multistep
from ccreid.training.terms import ReIDLoss, identity_term, triplet_term

PRE = Preprocessing((64,32))
WATCHED = 'clothes-changing mAP'

@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    world = MannequinWorld(identities=(6,0,4), outfits=2, cameras=3, images=2, size=(64,32), seed=3)
    return world.write(tmp_path_factory.mktemp('world')/'w', layout='prcc')

@pytest.fixture
def learner(dataset, tmp_path):
    def make(*cbs, data=dataset, backbone='resnet_mini', **kwargs):
        dls = reid_dataloaders(data, PRE, 3, 2, num_workers=0, device='cpu')
        return reid_learner(dls, backbone, list(cbs), path=tmp_path, **kwargs)
    return make

@pytest.fixture(scope='module')
def trained(dataset, tmp_path_factory):
    "One for the questions that change nothing"
    dls = reid_dataloaders(dataset, PRE, 3, 2, num_workers=0, device='cpu')
    return quiet(reid_learner(dls, 'resnet_mini', path=tmp_path_factory.mktemp('trained')))

def quiet(learn, n=1, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, **kwargs)
    return learn

def looking(dataset, every=1): return RetrievalEval(dataset, 'clothes-changing', every=every)

def refused(words, f, error=ValueError):
    "Called, it raises an error of one line with these words"
    with pytest.raises(error) as e: f()
    text = str(e.value)
    assert all(w in text for w in words), text
    assert '\n' not in text and len(text)<300, text

# --- questions

def test_predictions_are_those_of_the_model_in_the_order_of_the_rows(trained, dataset):
    out,labels = trained.get_preds()
    rows = trained.dls.valid.items
    assert labels['identity'].tolist()==rows.identity.tolist() and labels['camera'].tolist()==rows.camera.tolist()
    torch.testing.assert_close(F.normalize(out['features']), embed(trained, rows, flip=False), rtol=1e-4, atol=1e-5)
    assert all(v.ndim==2 and len(v)==len(rows) for v in out.values())            # no feature maps

def test_training_pictures_come_once_and_without_augmentation(trained, dataset):
    x,out,labels,found = trained.get_preds(ds_idx=0, with_input=True, with_decoded=True)
    assert labels['row'].tolist()==list(range(len(dataset.train))) and labels['identity'].tolist()==dataset.train.identity.tolist()
    again,_,_ = trained.get_preds(ds_idx=0, with_input=True)
    assert torch.equal(x, again) and torch.equal(found, out['logits'].argmax(1))
    drawn = trained.get_preds(ds_idx=0, reorder=False)[1]['row'].tolist()
    assert drawn==[d.row for d in trained.dls.train.sampler.epoch(trained.dls.train.epoch)]

def test_the_loss_of_each_picture_is_the_cross_entropy(trained):
    out,labels,losses = trained.get_preds(ds_idx=0, with_loss=True)
    for i in (0, 7, -1):
        logp = out['logits'][i].double().log_softmax(0)
        by_hand = -.9*logp[labels['identity'][i]] - .1*logp.mean()
        assert losses[i].item()==pytest.approx(by_hand.item(), rel=1e-4)
    refused(['ds_idx=0'], lambda: trained.get_preds(with_loss=True))
    refused(['no callbacks'], lambda: trained.get_preds(cbs=Callback()))

def test_parts_that_are_not_asked_for_are_none(trained):
    assert trained.get_preds(with_preds=False, with_targs=False)==(None,None)
    out,_ = trained.get_preds(act=lambda z: z.softmax(1))
    torch.testing.assert_close(out['logits'].sum(1), torch.ones(len(out['logits'])))

def test_an_activation_leaves_the_losses_alone(trained):
    from fastai.interpret import Interpretation
    plain,soft = (trained.get_preds(ds_idx=0, act=act, with_loss=True) for act in (None, lambda z: z.softmax(1)))
    assert torch.equal(plain[2], soft[2]) and not torch.equal(plain[0]['logits'], soft[0]['logits'])
    assert torch.equal(Interpretation.from_learner(trained, ds_idx=0, act=lambda z: z.softmax(1)).losses, plain[2])

@pytest.mark.parametrize('wrong', [lambda ds: 'x', lambda ds: ds.query, lambda ds: ds.query.path.tolist(), lambda ds: Path(ds.root),
    lambda ds: (o for o in ()), lambda ds: [torch.zeros(2,3,64,32)], lambda ds: [(torch.zeros(2,3,64,32),)], lambda ds: [(torch.zeros(2,3,64,32), torch.zeros(2))]],
    ids=['text','table','paths','folder','generator','pictures','no labels','labels'])
def test_what_is_no_loader_is_refused(wrong, trained, dataset):
    refused(['dl is a loader', 'dls.test_dl(pictures)'], lambda: trained.get_preds(dl=wrong(dataset)), TypeError)
    refused(['dl is a loader'], lambda: trained.show_results(dl=wrong(dataset)), TypeError)

def test_other_questions_that_have_no_answer(trained, dataset):
    for i in (2, -1, 'train'): refused(['ds_idx=', '0 asks for'], lambda: trained.get_preds(ds_idx=i))
    refused(['ds_idx=2'], lambda: trained.show_results(ds_idx=2))
    refused(['one picture', 'get_preds'], lambda: trained.predict(Path(dataset.train.path.iloc[0]).parent))
    refused(['max_n=0'], lambda: trained.show_losses(0))
    refused(['max_n=0'], lambda: trained.dls.show_batch(max_n=0))
    for columns in (['path'], ['path','identity','clothes']):
        refused(['no camera', 'with_labels'], lambda: trained.dls.test_dl(dataset.query[columns], with_labels=True), DataError)

def test_what_is_not_known_is_left_out(learner, dataset):
    "New pictures have no person, a model without classifier finds none"
    import matplotlib.pyplot as plt
    def titles():
        said = [a.get_title() for a in plt.gcf().axes]
        plt.close('all')
        return said
    blind = learner(backbone=ReIDModel('resnet_mini'), loss_func=ReIDLoss(triplet=triplet_term()))
    blind.show_results(ds_idx=0, max_n=2)
    assert titles()==['person 0']*2
    blind.show_results(dl=blind.dls.test_dl(dataset.query), max_n=2)
    assert titles()==['']*2
    seeing = learner()
    seeing.show_results(dl=seeing.dls.test_dl(dataset.query), max_n=2)
    assert all(t.startswith('like person ') for t in titles())
    pairs = seeing.dls.decode_batch(seeing.dls.valid.one_batch(), max_n=2)
    assert [str(t) for _,t in pairs]==[f'person {i}' for i in dataset.query.identity[:2]] and pairs[0][0].shape==(3,64,32)

def test_a_question_changes_nothing(learner, dataset, tmp_path):
    "Neither the history nor the file of a checkpoint, nor the training that follows"
    def two(ask):
        learn = learner(CAL(0), Checkpoint(tmp_path/f'{ask}.pt', resume=False))
        quiet(learn)
        if ask:
            before = (tmp_path/f'{ask}.pt').read_bytes(),learn.history,[m.training for m in learn.model.modules()]
            learn.get_preds(), learn.get_preds(ds_idx=0, reorder=False), learn.predict(dataset.query.path.iloc[0])
            learn.show_results(max_n=2), learn.show_losses(2)
            assert before==((tmp_path/f'{ask}.pt').read_bytes(),learn.history,[m.training for m in learn.model.modules()])
        return quiet(learn).history
    assert two(True)==two(False)

def test_predict_is_one_row_of_get_preds(trained, dataset):
    out,_,found = trained.get_preds(with_decoded=True)
    person,index,numbers = trained.predict(trained.dls.valid.items.path.iloc[3])
    assert person==index.item()==found[3].item()
    torch.testing.assert_close(numbers['features'], out['features'][3])
    picture,*_ = trained.predict(trained.dls.valid.items.path.iloc[3], with_input=True)
    assert picture.shape==(3,64,32)
    with pytest.raises(DataError, match='none.jpg'): trained.predict('none.jpg')
    with pytest.raises(TypeError, match='of type int'): trained.predict(3)

def test_a_model_without_classifier_finds_nobody(learner, dataset):
    learn = learner(backbone=ReIDModel('resnet_mini'), loss_func=ReIDLoss(triplet=triplet_term()))
    assert learn.predict(dataset.query.path.iloc[0])[:2]==(None,None)
    assert learn.get_preds(with_decoded=True)[2] is None
    refused(['no classifier'], lambda: learn.get_preds(ds_idx=0, with_loss=True))

def test_nobody_for_the_test(learner, dataset):
    alone = ReIDDataset('alone', dataset.root, dataset.train)
    learn = quiet(learner(data=alone))
    refused(['ds_idx=0'], learn.get_preds)
    refused(['for the test', 'nothing to'], learn.show_results)
    assert len(learn.get_preds(ds_idx=0)[0]['features'])==len(dataset.train)

def test_show_results_shows_ranked_lists_or_pictures(trained):
    import matplotlib.pyplot as plt
    assert len(trained.show_results(max_n=2).axes)==2*(1+8)          # query and the whole small gallery
    assert len(trained.show_results(max_n=1, shuffle=False, protocol='same-clothes').axes)>2
    plt.close('all')
    trained.show_results(ds_idx=0, max_n=3)
    assert [a.get_title().split('\n')[0] for a in plt.gcf().axes]==['person 0']*3
    plt.close('all')

def test_validate_gives_the_figures(learner, dataset):
    learn = quiet(learner(looking(dataset)))
    assert list(learn.validate())==[learn.retrieval_eval.curve[-1][k] for k in ('clothes-changing R1', WATCHED)]
    assert len(learn.retrieval_eval.curve)==1 and len(learn.history)==1
    refused(['RetrievalEval(dataset)'], lambda: learn.validate(ds_idx=0))
    refused(['RetrievalEval(dataset)'], learner().validate)

def test_refused_for_good(trained, tmp_path):
    refused(['export_reid', 'safetensors', 'ccreid train'], trained.export)
    assert not list(trained.path.glob('*.pkl'))
    refused(['flip=True'], trained.tta)
    refused(["splitter=dict(body='backbone')"], trained.freeze)
    refused(['learn.evaluate'], lambda: trained.dls.vocab, AttributeError)

def test_interpretation(trained, dataset):
    from fastai.interpret import ClassificationInterpretation, Interpretation
    look = Interpretation.from_learner(trained, ds_idx=0)
    losses = trained.get_preds(ds_idx=0, with_loss=True)[2]
    assert torch.equal(look.top_losses(3)[1], losses.topk(3).indices)
    assert look.top_losses(2, items=True)[2].path.tolist()==dataset.train.path.iloc[losses.topk(2).indices.tolist()].tolist()
    look.show_results([1,0])
    refused(['ds_idx=0'], lambda: Interpretation.from_learner(trained))
    refused(['learn.show_losses()'], lambda: look.plot_top_losses(2))
    refused(['learn.evaluate'], lambda: ClassificationInterpretation.from_learner(trained, ds_idx=0), AttributeError)

# --- callbacks

SMALL = dict(early=lambda: EarlyStoppingCallback('train_loss'), plateau=lambda: ReduceLROnPlateau('train_loss'),
    best=lambda: SaveModelCallback('train_loss'), nan=TerminateOnNaNCallback, clip=GradientClip, csv=CSVLogger,
    accumulate=lambda: GradientAccumulation(12), freeze=BnFreeze, short=lambda: ShortEpochCallback(.5),
    fetch=FetchPredsCallback, mixup=MixUp, cutmix=CutMix)

@pytest.mark.parametrize('name', SMALL)
def test_a_callback_of_fastai_runs(name, learner, dataset):
    learn = quiet(learner(looking(dataset)), cbs=SMALL[name]())
    assert len(learn.history)==1 and learn.history[0]['identity']>0 and learn.recorder.values[0][0]>0

@pytest.mark.parametrize('name', ['accumulate','best','clip','fetch','nan'])
def test_it_runs_beside_cal(name, learner):
    learn = quiet(learner(CAL(0)), cbs=SMALL[name]())
    assert set(learn.history[0])=={'epoch','lr','identity','cal'}

@pytest.mark.parametrize('name', ['to_fp16','to_bf16'])
def test_half_precision_may_be_asked_for_without_cuda(name, learner):
    learn = learner(CAL(0))
    assert quiet(getattr(learn, name)()).history[0]['cal']>0 and learn.get_preds()[0]['features'].dtype==torch.float32

def test_the_best_weights_are_kept_by_our_columns(learner, dataset, tmp_path, capsys):
    learn = learner(looking(dataset))
    quiet(learn, 2, cbs=SaveModelCallback(WATCHED, fname='best'))
    curve = [c[WATCHED] for c in learn.retrieval_eval.curve]
    assert capsys.readouterr().out.count('Better model')==(1 if curve[0]>=curve[1] else 2)
    state = torch.load(tmp_path/'models'/'best.pth', weights_only=True)
    assert all(torch.equal(v, state[k]) for k,v in learn.model.state_dict().items())   # loaded at the end
    other = learner()
    other.load('best')
    assert torch.equal(other.get_preds()[0]['features'], learn.get_preds()[0]['features'])

@pytest.mark.parametrize('cb', [SaveModelCallback, EarlyStoppingCallback, ReduceLROnPlateau])
def test_a_figure_to_watch_must_be_there_in_each_epoch(cb, learner, dataset):
    learn = learner(looking(dataset, every=2))
    state = {k: v.clone() for k,v in learn.model.state_dict().items()}
    refused(["'train_loss', 'clothes-changing R1'"], lambda: quiet(learn, cbs=cb()))
    refused(['every=1'], lambda: quiet(learn, cbs=cb(WATCHED)))
    assert all(torch.equal(v, state[k]) for k,v in learn.model.state_dict().items()) and not learn.history

@pytest.mark.parametrize('groups', [None, dict(body='backbone')])
def test_a_rate_that_is_reduced_is_reduced(groups, learner):
    learn = learner(**dict(splitter=groups) if groups else {})
    quiet(learn, 5, cbs=ReduceLROnPlateau('train_loss', min_delta=99., factor=2., min_lr=1e-4, patience=1), lr=slice(1e-5,4e-4) if groups else 4e-4)
    assert [h['lr'] for h in learn.history]==pytest.approx([4e-4,4e-4,2e-4,1e-4,1e-4])
    assert len({h['lr'] for h in learn.opt.hypers})==1                      # the body's rate was below the least already

def test_one_callback_sets_the_rate(learner, dataset):
    schedule = lambda: EpochSchedule(warmup_multistep(1e-3))
    says = ['two callbacks set the learning rate', 'remove_cb(EpochSchedule)']
    refused([*says, 'ReduceLROnPlateau'], lambda: quiet(learner(schedule()), cbs=ReduceLROnPlateau('train_loss')))
    learn = learner(schedule(), splitter=dict(body='backbone'))
    for f in (learn.fit_one_cycle, learn.fine_tune): refused([*says, 'fit_one_cycle and the like'], lambda: f(1))
    assert all(p.requires_grad for p in learn.model.parameters()) and not learn.history
    refused(['remove_cb(ReduceLROnPlateau)'], lambda: learner(ReduceLROnPlateau('train_loss')).fit_one_cycle(1))
    with learn.no_bar(): learn.lr_find(num_it=8, show_plot=False)           # the search goes beside a schedule
    learn.remove_cb(EpochSchedule)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1)

def test_weights_of_an_earlier_run_are_not_taken_for_the_best(learner, tmp_path, capsys):
    class NoNumber(Callback):
        order = -1
        def after_loss(self): self.learn.loss = self.learn.loss*float('nan')
    quiet(learner(seed=1)).save('model')
    learn = quiet(learner(), cbs=[NoNumber(), TerminateOnNaNCallback(), SaveModelCallback('train_loss')])
    old = torch.load(tmp_path/'models'/'model.pth', weights_only=True)['model']
    assert not torch.equal(learn.model.classifier.weight, old['classifier.weight']) and 'no weights were saved' in capsys.readouterr().out

def test_all_epochs_may_be_saved_where_few_are_looked_at(learner, dataset, tmp_path):
    quiet(learner(looking(dataset, every=2)), 2, cbs=SaveModelCallback(WATCHED, every_epoch=True, fname='e'))
    assert sorted(p.name for p in (tmp_path/'models').iterdir())==['e_0.pth','e_1.pth']

class Falls(Callback):
    "Figures of a table that get better, then worse"
    order,figures = 45,[5.,9.,7.,8.]
    def attach(self, learn):
        from fastai.learner import ValueMetric
        learn.metrics = [ValueMetric(lambda: self.figures[learn.epoch], 'figure')]

REMEMBER = dict(best=lambda: SaveModelCallback('figure'), early=lambda: EarlyStoppingCallback('figure', patience=1),
                plateau=lambda: ReduceLROnPlateau('figure', patience=1), accumulate=lambda: GradientAccumulation(30))

@pytest.mark.parametrize('name', REMEMBER)
def test_what_a_callback_remembers_survives_a_kill(name, learner, tmp_path):
    "Killed after the best epoch, and gone on: what the uninterrupted run is"
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch==2: raise KeyboardInterrupt
    def run(file, *cbs): return quiet(learner(Falls(), REMEMBER[name](), Checkpoint(tmp_path/file), *cbs, lr=1e-3), 4)
    whole = run('a.pt')
    with pytest.raises(KeyboardInterrupt): run('b.pt', Stop())
    rest = run('b.pt')
    assert rest.history==whole.history and [c['steps'] for c in rest.counts]==[c['steps'] for c in whole.counts]
    assert all(torch.equal(v, rest.model.state_dict()[k]) for k,v in whole.model.state_dict().items())

@pytest.mark.parametrize('how', ['fit_one_cycle','fit_flat_cos'])
def test_a_schedule_of_fastai_goes_on_where_it_stopped(how, learner, tmp_path):
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch==1: raise KeyboardInterrupt
    def run(file, *cbs):
        learn = learner(Checkpoint(tmp_path/file), *cbs)
        with learn.no_bar(), learn.no_logging(): getattr(learn, how)(3, 1e-3)
        return learn
    whole = run('a.pt')
    with pytest.raises(KeyboardInterrupt): run('b.pt', Stop())
    rest = run('b.pt')
    assert rest.history==whole.history and len({h['lr'] for h in whole.history})>1 and all(type(h['lr']) is float for h in whole.history)
    assert all(torch.equal(v, rest.model.state_dict()[k]) for k,v in whole.model.state_dict().items())

def test_fine_tune_is_two_fits_and_no_checkpoint_goes_through_both(learner, tmp_path):
    learn = learner(splitter=dict(body='backbone'))
    refused(['two fits', 'Checkpoint'], lambda: learn.fine_tune(1, cbs=Checkpoint(tmp_path/'a.pt')))
    learn.add_cb(Checkpoint(tmp_path/'a.pt'))
    refused(['two fits', 'Checkpoint'], lambda: learn.fine_tune(1))
    assert all(p.requires_grad for p in learn.model.parameters()) and not (tmp_path/'a.pt').exists()

def test_half_precision_goes_on_with_its_factor(learner, tmp_path):
    "By the scaler alone, as there is no CUDA here; and through a checkpoint, where it is switched off"
    from types import SimpleNamespace
    from fastai.callback.fp16 import MixedPrecision
    one,other = fitted(MixedPrecision()),fitted(MixedPrecision())
    for cb,scale in ((one, 4.), (other, 1024.)): cb.learn = SimpleNamespace(scaler=torch.amp.GradScaler('cpu', init_scale=scale))
    one.learn.scaler.scale(torch.ones(()))
    other.load_state_dict(one.state_dict())
    assert other.learn.scaler.get_scale()==4.
    if torch.cuda.is_available(): return
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch==1: raise KeyboardInterrupt
    whole = quiet(learner(Checkpoint(tmp_path/'a.pt')).to_fp16(), 2)
    with pytest.raises(KeyboardInterrupt): quiet(learner(Checkpoint(tmp_path/'b.pt'), Stop()).to_fp16(), 2)
    assert quiet(learner(Checkpoint(tmp_path/'b.pt')).to_fp16(), 2).history==whole.history

def test_two_callbacks_of_a_class_both_have_their_state(learner, dataset, tmp_path):
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch==1: raise KeyboardInterrupt
    def make(*cbs): return learner(looking(dataset), RetrievalEval(dataset, 'same-clothes', every=1), Checkpoint(tmp_path/'c.pt'), *cbs)
    with pytest.raises(KeyboardInterrupt): quiet(make(Stop()), 2)
    curves = [cb.curve for cb in quiet(make(), 2).cbs if isinstance(cb, RetrievalEval)]
    assert [[c['epoch'] for c in curve] for curve in curves]==[[0,1],[0,1]] and all('same-clothes R1' in c for c in curves[1])

def test_a_callback_is_there_once(learner):
    cal = CAL(0)
    learn = learner(cal)
    refused(['CAL is there already', 'remove_cb(CAL)'], lambda: learn.add_cb(cal))
    assert list(learn.loss_func.terms)==['identity','cal'] and quiet(learn).history[0]['cal']>0

def test_what_a_learner_cannot_be_made_of(learner, dataset):
    from fastai.data.core import DataLoaders
    for wrong in ('csv', 3, torch.nn.ReLU()):
        refused(['cbs are callbacks', 'such as CAL()'], lambda: learner(wrong), TypeError)
        refused(['cbs are callbacks'], lambda: quiet(learner(), cbs=[CSVLogger(), wrong]), TypeError)
    for dls in (None, DataLoaders.from_dsets([1,2], [1,2], bs=1)): refused(['reid_dataloaders'], lambda: reid_learner(dls, 'resnet_mini'), TypeError)
    learn = learner(opt_func=torch.optim.SGD)
    for _ in range(2): refused(['partial(OptimWrapper, opt=torch.optim.SGD)'], lambda: quiet(learn))
    assert learn.opt is None
    refused(['call fit'], learn.plot_terms)

def test_callbacks_of_a_fit_are_added_all_or_none(learner):
    class Cannot(Method):
        def attach(self, learn): raise ValueError('not here')
    learn = learner()
    names = lambda: sorted(type(cb).__name__ for cb in learn.cbs)
    before = names()
    refused(['not here'], lambda: quiet(learn, cbs=[CAL(0), CSVLogger(), Cannot()]))
    assert names()==before and list(learn.loss_func.terms)==['identity'] and len(learn.model.aux)==0
    assert set(quiet(learn, cbs=CAL(0)).history[0])=={'epoch','lr','identity','cal'}

@pytest.mark.parametrize('change', [lambda l: l.wrap_sampler(lambda s: s), lambda l: l.add_view('second'), lambda l: l.add_clean_view((8,4))],
                         ids=['sampler','view','clean'])
def test_loaders_that_another_learner_changed_are_named(change, dataset, recwarn):
    class Changes(Method):
        def attach(self, learn): change(learn)
    dls = reid_dataloaders(dataset, PRE, 3, 2, num_workers=0, device='cpu')
    def make(*cbs): return reid_learner(dls, 'resnet_mini', cbs)
    make(), make(CAL(0))
    first = make(Changes())
    assert not [w for w in recwarn if 'another learner' in str(w.message)]
    with pytest.warns(UserWarning, match='Changes of another learner .* reid_dataloaders'): make()
    first.remove_cb(Changes)
    recwarn.clear()
    make()
    assert not [w for w in recwarn if 'another learner' in str(w.message)]

def test_other_loaders_do_not_lose_a_method_quietly(dataset, learner, recwarn):
    class Wraps(Method):
        def attach(self, learn): learn.wrap_sampler(lambda s: s)
    bigger = reid_dataloaders(dataset, Preprocessing((96,48)), 3, 2, num_workers=0, device='cpu')
    learn = quiet(learner(Wraps()))
    old,learn.dls = learn.dls,bigger
    refused(['Wraps changed the loaders', 'make another learner'], lambda: quiet(learn))
    learn.dls = old
    learn.remove_cb(Wraps)
    recwarn.clear()
    quiet(learn)
    assert not [w for w in recwarn if 'preprocessing' in str(w.message)]
    learn.dls = bigger
    with pytest.warns(UserWarning, match=r'\(96, 48\), and the model asks for \(64, 32\)'): quiet(learn)
    learn.model.preprocessing = bigger.preprocessing
    recwarn.clear()
    assert quiet(learn).history[0]['identity']>0 and not [w for w in recwarn if 'preprocessing' in str(w.message)]

def other_losses():
    from fastai.losses import CrossEntropyLossFlat, LabelSmoothingCrossEntropy
    return CrossEntropyLossFlat(), LabelSmoothingCrossEntropy(), torch.nn.CrossEntropyLoss(), F.cross_entropy, lambda out,labels: out['features'].mean()

@pytest.mark.parametrize('i', range(5))
def test_a_loss_without_terms_is_refused_and_goes_as_a_term(i, learner):
    loss = other_losses()[i]
    learn = learner(loss_func=loss)
    refused(['the loss is', 'identity_term(smoothing)', 'ReIDLoss(identity='], lambda: quiet(learn))
    refused(['ReIDLoss(identity='], lambda: learner(CAL(0), loss_func=loss))
    if i==4: return
    learn.loss_func = ReIDLoss(identity=lambda out,labels: loss(out['logits'], labels['identity']))
    assert quiet(learn).history[0]['identity']>0

def test_the_csv_has_our_columns(learner, dataset, tmp_path):
    learn = quiet(learner(looking(dataset)), 2, cbs=CSVLogger())
    head,*rows = (tmp_path/'history.csv').read_text().split('\n')[:3]
    assert head==f'epoch,train_loss,clothes-changing R1,{WATCHED},time'
    assert [float(r.split(',')[3]) for r in rows]==[c[WATCHED] for c in learn.retrieval_eval.curve]

def test_averaged_metrics_are_refused(learner):
    refused(['RetrievalEval(dataset)'], lambda: quiet(learner(metrics=lambda out,labels: torch.tensor(1.))))

def test_the_graph_has_the_training_loss(learner, dataset, monkeypatch):
    seen = []
    from fastprogress.fastprogress import ConsoleMasterBar
    monkeypatch.setattr(ConsoleMasterBar, 'update_graph', lambda self, *args: seen.append(args))
    learn = learner(looking(dataset))
    with learn.no_logging(): learn.fit(2, cbs=ShowGraphCallback())
    steps = len(learn.dls.train)
    assert [len(graphs[0][1]) for graphs,_,_ in seen]==[steps,2*steps] and all(len(g)==1 for g,_,_ in seen)
    assert seen[0][1]==(0,2*steps) and seen[1][0][0][1]==pytest.approx([float(v) for v in learn.recorder.losses])
    refused(['no_bar'], lambda: quiet(learner(), cbs=ShowGraphCallback()))

# --- mixed pictures

class Watch(Callback):
    order = 45
    def before_fit(self): self.steps = []
    def before_batch(self): self.own = self.x.clone()
    def after_loss(self):
        self.steps.append((self.x.clone(), self.pred['logits'].detach().clone(), dict(self.yb[0]), self.learn.loss.item()))

@pytest.mark.parametrize('cb', [MixUp, CutMix])
def test_mixed_pictures_have_the_soft_target(cb, learner):
    learn = quiet(learner(cb(), Watch()))
    steps = learn.watch.steps
    assert len(steps)==len(learn.dls.train)
    for _,z,labels,loss in steps:
        share = labels['share'].double()[:,None]
        assert ((0<=share) & (share<=1)).all() and (labels['partner'].sort().values==labels['identity'].sort().values).all()
        own,other = (F.one_hot(labels[k], z.shape[1]).double() for k in ('identity','partner'))
        soft = .9*(share*own+(1-share)*other) + .1/z.shape[1]
        assert loss==pytest.approx(-(soft*z.double().log_softmax(1)).sum(1).mean().item(), rel=1e-4)
    assert any(0<l['share'].min()<1 for *_,l,_ in steps)

def test_mixup_mixes_the_pictures_of_the_partner(learner):
    class Before(Callback):
        order = -5
        def before_batch(self): self.learn.plain = self.x.clone()
    class After(Callback):
        order = 5
        def before_batch(self):
            labels,rows = self.yb[0],range(len(self.x))
            for i in rows:
                mixes = [torch.lerp(self.learn.plain[j], self.learn.plain[i], labels['share'][i]) for j in rows
                         if labels['identity'][j]==labels['partner'][i]]
                assert any(torch.allclose(self.x[i], m, atol=1e-5) for m in mixes)
            self.learn.looked = True
    assert quiet(learner(Before(), MixUp(), After())).looked

def test_mixing_leaves_nothing_behind(learner):
    learn = learner()
    plain = quiet(learner()).history
    mixup = MixUp()
    learn.add_cb(mixup)
    assert isinstance(learn.loss_func.terms['identity'][0], MixedIdentity)
    learn.remove_cb(mixup)
    assert quiet(learn).history==plain

@pytest.mark.parametrize('cb', [MixUp, CutMix])
@pytest.mark.parametrize('others', [lambda: CAL(0), HSAL, FIRe2], ids=['CAL','HSAL','FIRe2'])
def test_methods_that_know_one_person_refuse_mixed_pictures(cb, others, learner):
    learn = learner(cb(), others())
    refused(['two people', 'identity terms'], lambda: quiet(learn))
    assert not learn.history

def test_mixing_goes_on_where_it_stopped(learner, tmp_path):
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch==1: raise KeyboardInterrupt
    whole = quiet(learner(MixUp(), Checkpoint(tmp_path/'a.pt')), 2)
    with pytest.raises(KeyboardInterrupt): quiet(learner(MixUp(), Checkpoint(tmp_path/'b.pt'), Stop()), 2)
    rest = quiet(learner(MixUp(), Checkpoint(tmp_path/'b.pt')), 2)
    assert rest.history==whole.history
    assert all(torch.equal(v, rest.model.state_dict()[k]) for k,v in whole.model.state_dict().items())

def test_a_class_of_somebody_else_is_left_as_it_is():
    class MixUp(Callback): pass
    assert not {'attach','before_batch'}&{*vars(fitted(MixUp()))}

# --- other ways to train

def test_freezing_holds_the_body_still(learner):
    learn = learner(splitter=dict(body='backbone'))
    body = {k: v.clone() for k,v in learn.model.backbone.named_parameters()}
    learn.freeze()
    quiet(learn)
    assert all(torch.equal(v, body[k]) for k,v in learn.model.backbone.named_parameters())
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1)
    assert any(not torch.equal(v, body[k]) for k,v in learn.model.backbone.named_parameters())

def test_what_was_frozen_thaws_with_an_optimiser_that_did_not_know_it(learner):
    learn = learner(splitter=dict(body='backbone'))
    learn.freeze()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, reset_opt=True)
    body = {k: v.clone() for k,v in learn.model.backbone.named_parameters()}
    learn.add_cb(CAL(0))                                                    # brings a module: another optimiser
    quiet(learn)
    assert all(torch.equal(v, body[k]) for k,v in learn.model.backbone.named_parameters())
    learn.unfreeze()
    assert all(p.requires_grad for p in learn.model.parameters())
    assert len({id(p) for g in learn.opt.param_lists for p in g})==len([*learn.model.parameters()])-len([*learn.model.aux.parameters()])
    quiet(learn)
    assert all(not torch.equal(v, body[k]) for k,v in learn.model.backbone.named_parameters() if 'conv' in k)

def test_weights_that_do_not_fit_change_nothing(learner):
    quiet(learner(CAL(0))).save('cal')
    for other in (learner(seed=1), learner(CAL(0), seed=1, pool='avg')):
        before = {k: v.clone() for k,v in other.model.state_dict().items()}
        refused(['cal does not fit', 'the network and the methods'], lambda: other.load('cal'))
        assert all(torch.equal(v, before[k]) for k,v in other.model.state_dict().items())
    with pytest.raises(FileNotFoundError, match='nothing.pth'): learner().load('nothing')
    assert learner(CAL(0), seed=1).load('cal').get_preds()[0]['features'].isfinite().all()

def test_the_recorder_draws(learner):
    import matplotlib.pyplot as plt
    learn = quiet(learner())
    assert len(learn.recorder.plot_loss(0, show_epochs=True).lines[0].get_ydata())==len(learn.dls.train)
    refused(['no validation loss', 'plot_terms'], lambda: learn.recorder.plot_loss(with_valid=True))
    learn.recorder.plot_sched()
    assert plt.gcf().axes[0].lines[0].get_ydata().tolist()==learn.recorder.lrs
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1)
    learn.recorder.plot_sched()
    assert len(plt.gcf().axes)==2                                           # rate and momentum
    plt.close('all')

# --- every chain

CHAINS = {'cal+hsal': {}, 'cal+pairs': dict(pairs_mode='real'), 'pia': {}, 'sync_person_cloud': dict(spc_k1=12, spc_eps=.5), 'pcl': dict(backbone='vit_mini')}

@pytest.mark.parametrize('name', CHAINS)
@pytest.mark.filterwarnings('ignore')
def test_the_learner_of_a_chain_answers(name, dataset, tmp_path):
    import matplotlib.pyplot as plt
    table = dataset.samples.assign(modality=[('visible','infrared')[i%2] for i in range(len(dataset.samples))]) if name=='pia' else dataset.samples
    data = ReIDDataset(dataset.name, dataset.root, table, dataset.protocols)
    settings = dict(backbone='resnet_mini', pretrained=False, size=(64,32), identities=2, images=2, epochs=2, start_epoch=0)
    def make():
        learn = build(recipe('mannequins-cmcc' if name=='pia' else 'prcc', name, **settings|CHAINS[name]), data, device='cpu', num_workers=0)
        learn.path = tmp_path
        return learn
    learn = quiet(make(), cbs=[SaveModelCallback('train_loss', fname='m'), GradientClip(), TerminateOnNaNCallback(), CSVLogger()])
    assert learn.history and all(torch.equal(v, learn.model.state_dict()[k]) for k,v in torch.load(tmp_path/'models'/'m.pth', weights_only=True).items())
    out,labels,found = learn.get_preds(ds_idx=0, with_decoded=True)
    assert len(out['features'])==len(labels['row'])==len(data.train) and (found is None)==(name=='sync_person_cloud')
    assert len(learn.predict(data.query.path.iloc[0]))==3 and 'Total params' in str(learn.summary())
    for kwargs in (dict(), dict(ds_idx=0), dict(dl=learn.dls.test_dl(data.query))): learn.show_results(max_n=2, **kwargs)
    if found is None: refused(['no classifier', 'learn.show_ranked'], learn.show_losses)
    else: learn.show_losses(2)
    plt.close('all')
    with learn.no_bar(): assert learn.lr_find(num_it=8, show_plot=False, stop_div=False).valley>0
    refused(['export_reid'], learn.export)
    refused(['remove_cb(EpochSchedule)'], lambda: learn.fit_one_cycle(1))
    refused(['remove_cb(EpochSchedule)'], lambda: quiet(learn, cbs=ReduceLROnPlateau('train_loss')))
    refused(['two people'], lambda: quiet(make(), cbs=MixUp()))

@pytest.mark.parametrize('name,args', [('fit_one_cycle',dict(n_epoch=1)), ('fit_flat_cos',dict(n_epoch=1)),
    ('fit_sgdr',dict(n_cycles=1, cycle_len=1)), ('lr_find',dict(num_it=8, show_plot=False))])
def test_ways_to_fit(name, args, learner):
    learn = learner(CAL(0))
    with learn.no_bar(), learn.no_logging(): getattr(learn, name)(**args)
    assert len(learn.recorder.lrs)>=6

def test_what_prints_prints(learner, capsys):
    learn = learner(CAL(0), MixUp(), SaveModelCallback('train_loss'))
    learn.show_training_loop()
    assert 'MixUp' in capsys.readouterr().out and 'CAL' in str(learn.summary())

def test_show_batch_and_one_batch(trained):
    import matplotlib.pyplot as plt
    trained.dls.show_batch(max_n=3)
    assert len(plt.gcf().axes)==3 and trained.dls.one_batch()[0].shape==(6,3,64,32)
    plt.close('all')

# --- loggers

def test_figures_of_an_epoch_are_numbers(learner, dataset):
    seen = []
    class Look(Callback):
        order = 55
        def after_epoch(self): seen.append(epoch_figures(self.learn))
    learn = quiet(learner(looking(dataset, every=2), CAL(0), Look()), 2)
    assert {*seen[0]}=={'lr','identity','cal','train_loss'} and {*seen[1]}-{*seen[0]}=={'clothes-changing R1', WATCHED}
    assert seen[1]['cal']==learn.history[1]['cal'] and all(type(v) is float for s in seen for v in s.values())

def test_tensorboard(learner, dataset, tmp_path):
    pytest.importorskip('tensorboard')
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    learn = quiet(learner(looking(dataset, every=2), CAL(0)), 2, cbs=TensorBoardCallback(tmp_path/'b', n_preds=2))
    seen = EventAccumulator(str(tmp_path/'b')).Reload()
    assert [s.value for s in seen.Scalars('cal')]==pytest.approx([h['cal'] for h in learn.history], rel=1e-5)
    assert len(seen.Scalars('train_loss'))==2*len(learn.dls.train) and len(seen.Scalars(WATCHED))==1
    assert seen.Tags()['images'] and seen.Tags()['graph']
    refused(['projector=False'], lambda: quiet(learner(), cbs=TensorBoardCallback(tmp_path/'c', projector=True)))

def test_tensorboard_changes_nothing_in_training(learner, tmp_path):
    pytest.importorskip('tensorboard')
    from fastai.callback.tensorboard import TensorBoardCallback
    assert quiet(learner(), 2).history==quiet(learner(), 2, cbs=TensorBoardCallback(tmp_path/'b', n_preds=1)).history

def test_weights_and_biases(learner, dataset, tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb')
    from fastai.callback.wandb import WandbCallback
    for k,v in dict(WANDB_MODE='offline', WANDB_SILENT='true', WANDB_DIR=str(tmp_path)).items(): monkeypatch.setenv(k, v)
    with wandb.init(project='t', dir=tmp_path) as run:
        learn = quiet(learner(looking(dataset, every=2), CAL(0)), 2, cbs=WandbCallback(n_preds=4))
        said = dict(run.summary)
        assert run.config['terms']=='identity + cal' and run.config['backbone']=='resnet_mini'
    assert said['cal']==pytest.approx(learn.history[1]['cal']) and WATCHED in said
    assert said['Prediction_Samples']['nrows']==4
    refused(['SaveModelCallback'], lambda: quiet(learner(), cbs=WandbCallback(log_model=True)))

def test_mlflow(learner, dataset, tmp_path, monkeypatch):
    pytest.importorskip('mlflow')
    from ccreid.training.loggers import MLflowLogger
    refused(['MLflow cannot write'], lambda: MLflowLogger(uri='nowhere://x'))
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    def logger(**kwargs): return MLflowLogger('t', uri=(tmp_path/'runs').as_uri(), **kwargs)
    cb = logger(title='one', values=dict(start=None))
    learn = quiet(learner(looking(dataset, every=2), CAL(0), cb), 2)
    run = cb.client.get_run(cb.run_id)
    assert run.info.status=='FINISHED' and run.data.params['terms']=='identity + cal' and run.data.params['start']=='None'
    assert [m.value for m in cb.client.get_metric_history(cb.run_id, 'cal')]==[h['cal'] for h in learn.history]
    assert run.data.metrics[WATCHED]==learn.retrieval_eval.curve[-1][WATCHED]
    class Stop(Callback):
        order = 60
        def after_epoch(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): quiet(learner(other := logger(), Stop()), 2)
    run = cb.client.get_run(other.run_id)
    assert run.info.status=='FAILED' and run.data.metrics['identity']>0
    assert run.info.experiment_id==cb.experiment

def test_where_mlflow_cannot_write_is_said_before_training(learner, tmp_path, monkeypatch):
    pytest.importorskip('mlflow')
    from importlib.util import find_spec
    from ccreid.training.loggers import MLflowLogger
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    cb = MLflowLogger('gone', uri=tmp_path/'runs ü', values={'a?b': 1, 'ä b': 2})             # a folder, and names that MLflow refuses
    quiet(learner(cb))
    assert {'a_b','ä b'}<=set(cb.client.get_run(cb.run_id).data.params) and list((tmp_path/'runs ü').iterdir())
    cb.client.delete_experiment(cb.experiment)
    refused(["'gone' was deleted", 'another name'], lambda: MLflowLogger('gone', uri=tmp_path/'runs ü'))
    (tmp_path/'file').write_text('')
    refused(['MLflow cannot write'], lambda: MLflowLogger(uri=tmp_path/'file'/'x'))
    if not find_spec('sqlalchemy'): refused(['pip install mlflow'], lambda: MLflowLogger(uri=f'sqlite:///{tmp_path}/m.db'))
    refused(['MLflow cannot write'], lambda: MLflowLogger('', uri=tmp_path/'runs ü'))

def test_of_several_processes_the_first_one_logs(learner, tmp_path, monkeypatch):
    pytest.importorskip('mlflow')
    from ccreid.training import loggers
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    monkeypatch.setattr(loggers, 'first', lambda: False)
    cb = loggers.MLflowLogger(uri=tmp_path/'runs')
    quiet(learner(cb))
    assert cb.run_id is None and not (tmp_path/'runs').exists()

def test_a_logger_that_is_not_installed_is_named(monkeypatch):
    from ccreid.training.loggers import MLflowLogger
    monkeypatch.setitem(sys.modules, 'mlflow', None)
    refused(['ccreid[loggers]'], MLflowLogger, ImportError)

# --- the command line stays light

def test_help_imports_one_package_of_others():
    code = ('import sys\nbefore = {m.split(".")[0] for m in sys.modules}\nfrom ccreid.cli import main\n'
            'try: main(["--help"])\nexcept SystemExit: pass\n'
            'new = {m.split(".")[0] for m in sys.modules}-before-sys.stdlib_module_names\n'
            'print(*sorted(n for n in new if not n.startswith("_")), file=sys.stderr)')
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).resolve().parent.parent)}
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
    assert 'examples:' in run.stdout and run.stderr.split()==['ccreid','fastcore']
