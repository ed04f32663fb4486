"Samplers, augmentation, loaders: properties, statistics, equality across processes, damaged files"
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given,strategies as st
from PIL import Image,ImageFile

from ccreid.data.batches import (Draw,ImageCache,InOrder,PKSampler,Preprocessing,ReIDImages,ReIDLoader,embedding_loader,reid_dataloaders)
from ccreid.data.samplers import deal,number_of_batches
from ccreid.data.samples import DataError,ReIDDataset,make_table
from ccreid.data.transforms import CAL_FILL,FILTERS,read_image,resized,test_transform,train_transform

PRE = Preprocessing((64,32))

@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    "10 people in training with 3 to 9 pictures, 4 in the test; the 7th has one picture"
    root,rng,rows = tmp_path_factory.mktemp('pictures'),np.random.default_rng(0),[]
    for i in range(14):
        for n in range(1 if i==7 else 3+i%7):
            path = root/f'{i}_{n}.png'
            small = rng.integers(0, 256, (8,4,3), np.uint8)
            Image.fromarray(small).resize((40,80), Image.Resampling.BICUBIC).save(path)
            split = 'train' if i<10 else ('query','gallery','test')[n%3]
            rows.append(dict(dataset='d', path=str(path), identity=i, clothes=2*i+n%2 if n%5 else -1, camera=n%3, split=split,
                             modality='infrared' if n%3==2 else 'visible'))
    from ccreid.data.samples import relabel
    return ReIDDataset('d', root, relabel(make_table(rows)))

# ---- the sampler

counts = st.lists(st.integers(1, 12), min_size=2, max_size=12)

@given(counts, st.integers(1, 4), st.integers(1, 4), st.integers(0, 5), st.integers(0, 3))
def test_batches_hold_p_people_k_times(sizes, p, k, seed, epoch):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes))*3, sizes))
    if p > len(sizes):
        with pytest.raises(DataError, match='different people'): PKSampler(labels, p, k)
        return
    s = PKSampler(labels, p, k, seed)
    draws = s.epoch(epoch)
    assert len(draws) == len(s) > 0 and len(draws)%s.batch_size == 0 and s.batch_size == p*k
    for b in range(0, len(draws), p*k):
        assert sorted(Counter(labels[d.row] for d in draws[b:b+p*k]).values()) == [k]*p
        for i in range(b, b+p*k, k): assert len({labels[d.row] for d in draws[i:i+k]}) == 1     # a person's pictures follow each other
    shown = Counter(d.row for d in draws)
    for row,n in shown.items(): assert n==1 or sizes[labels[row]//3] < k              # no picture twice, unless there are too few
    assert draws == PKSampler(labels, p, k, seed).epoch(epoch)
    assert len({d.seed for d in draws}) == len(draws)

@given(counts, st.integers(1, 4), st.integers(0, 9))
def test_as_many_chunks_are_dealt_as_can_be(chunks, p, seed):
    b = number_of_batches(chunks, p)
    hands = deal(chunks, p, np.random.default_rng(seed))
    assert hands.shape == (b, p) and all(len(set(h.tolist()))==p for h in hands)
    assert (np.bincount(hands.ravel(), minlength=len(chunks)) <= np.array(chunks)).all()
    assert sum(min(n, b+1) for n in chunks) < p*(b+1)                                  # one batch more is impossible

def test_coverage_is_that_of_cal_and_differs_by_epoch():
    sizes = np.random.default_rng(1).integers(20, 200, 60)
    labels = np.repeat(np.arange(60), sizes)
    s = PKSampler(labels, 8, 8)
    cal = (sizes//8).sum()//8*64                                                       # pictures that CAL's rule shows
    assert cal*.98 <= len(s) <= cal
    seen = [frozenset(d.row for d in s.epoch(e)) for e in range(3)]
    assert len(set(seen)) == 3 and len(frozenset.union(*seen)) > .99*len(labels)

def test_each_chunk_is_as_likely_to_be_left_out():
    drawn = Counter()
    for seed in range(300): drawn.update(deal([3]*5, 4, np.random.default_rng(seed)).ravel().tolist())   # 15 chunks, 12 dealt
    assert all(abs(drawn[i]/300-12/5) < .15 for i in range(5))

def test_negative_labels_are_never_drawn():
    labels = np.array([0,0,-1,1,1,-2,2,2])
    s = PKSampler(labels, 2, 2)
    assert all(labels[d.row] >= 0 for e in range(5) for d in s.epoch(e))
    with pytest.raises(DataError, match='there are 0'): PKSampler(np.full(4, -1), 1, 1)
    for bad in dict(identities=0), dict(images=0):
        with pytest.raises(DataError, match='at least 1'): PKSampler(labels, **bad)

# ---- augmentation

def erased(x, fill=CAL_FILL):
    "Mask of pixels that hold the fill value"
    return np.isclose(x, np.float32(fill)[:,None,None], atol=1e-6).all(0)

def test_statistics_of_cals_augmentation():
    card = np.zeros((128,64,3), np.uint8)
    card[:,:32] = 60; card[:,0] = 250; card[0] = 200                                   # no pixel has the fill value
    t,n = train_transform(Preprocessing((128,64))),1500
    plain = test_transform(t.preprocessing)(card)
    assert not erased(plain).any()
    shares,boxes = [],[]
    for s in range(n):
        m = erased(t(card, s))
        if m.any():
            ys,xs = np.flatnonzero(m.any(1)),np.flatnonzero(m.any(0))
            h,w = ys[-1]-ys[0]+1, xs[-1]-xs[0]+1
            assert m.sum() == h*w                                                      # a full rectangle
            shares.append(h*w/m.size); boxes.append(h/w)
    assert abs(len(shares)/n-.5) < .05
    assert .015 < min(shares) < .05 and .33 < max(shares) < .42                        # .02 to .4 but for rounding
    assert .27 < min(boxes) < .5 and 2.5 < max(boxes) < 3.8
    only = lambda **kw: train_transform(t.preprocessing, **(dict(crop=0, hflip=0, erase=0) | kw))
    for kw in dict(hflip=.5), dict(crop=.5), dict(erase=.5):
        changed = np.mean([not np.array_equal(only(**kw)(card, s), plain) for s in range(n)])
        assert abs(changed-.5) < .05, kw
    np.testing.assert_array_equal(only(hflip=1)(card, 0), plain[:,:,::-1])
    assert all(np.array_equal(only()(card, s), plain) for s in range(5))

def test_crop_windows_are_those_of_an_enlarged_picture():
    im = np.random.default_rng(0).integers(0, 256, (128,64,3), np.uint8)
    pre = Preprocessing((128,64))
    big = np.asarray(Image.fromarray(im).resize((72,144), Image.Resampling.BILINEAR)).astype(int)
    windows = {(y,x): big[y:y+128, x:x+64] for y in range(17) for x in range(9)}
    t,found = train_transform(pre, crop=1, hflip=0, erase=0),Counter()
    for s in range(60):
        got = (pre.denormalise(t(im, s))*255).round().astype(int)
        best = min(windows, key=lambda k: np.abs(windows[k]-got).mean())
        assert np.abs(windows[best]-got).mean() < .5                                   # rounding alone
        found[best] += 1
    assert len(found) > 30

def test_pad_and_fill_of_fire():
    im = np.full((64,32,3), 255, np.uint8)
    t = train_transform(PRE, pad=10, fill=(0,0,0))
    black = PRE.normalise(np.zeros((1,1,3), np.uint8))[:,0,0]
    frames,fills = 0,0
    for s in range(200):
        x = t(im, s)
        frames += np.isclose(x, black[:,None,None]).all(0).any()
        fills += erased(x, (0,0,0)).any()
    assert frames > 180 and 70 < fills < 130                                           # padded always, erased half the time

@pytest.mark.parametrize('seed', [0, 1, 2**62, 12345])
def test_a_seed_is_a_picture(dataset, seed):
    t,im = train_transform(PRE),read_image(dataset.train.path.iloc[0])
    a = t(im, seed)
    assert a.dtype == np.float32 and a.shape == (3,64,32)
    np.testing.assert_array_equal(a, t(im, seed))
    np.testing.assert_array_equal(a, t(PRE.resize(im), seed))                          # resized before: the same

# ---- loaders

def same(a, b):
    assert len(a) == len(b) > 0
    for (xa,la),(xb,lb) in zip(a, b):
        assert torch.equal(xa, xb) and la.keys() == lb.keys()
        for k in la: assert torch.equal(la[k], lb[k]), k

def loaders(ds, preprocessing=PRE, **kw): return reid_dataloaders(ds, preprocessing, **(dict(identities=4, images=3, num_workers=0, device='cpu') | kw))

def test_workers_and_cache_change_nothing(dataset):
    ref = list(loaders(dataset).train)
    for kw in dict(num_workers=2), dict(cache=True), dict(cache=True, num_workers=2): same(ref, list(loaders(dataset, **kw).train))
    same(list(loaders(dataset, clean=(20,12)).train), list(loaders(dataset, clean=(20,12), cache=True).train))
    same(list(loaders(dataset).valid), list(loaders(dataset, num_workers=2, cache=True).valid))
    random_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    torch.manual_seed(99); np.random.seed(99)                                          # nobody else's randomness has a say
    same(ref, list(loaders(dataset).train))
    torch.set_rng_state(random_state[0])

def test_batches_and_labels(dataset):
    dls = loaders(dataset, clean=(16,8))
    t = dls.dataset.train
    for x,labels in dls.train:
        assert type(labels) is dict and x.shape == (12,3,64,32) and x.dtype == torch.float32
        assert set(labels) == {'identity','clothes','camera','modality','generated','group','row','clean'}
        rows = t.iloc[labels['row'].numpy()]
        for k in 'identity','clothes','camera': assert labels[k].tolist() == rows[k].tolist() and labels[k].dtype == torch.int64
        assert labels['modality'].tolist() == [int(m=='infrared') for m in rows.modality]
        assert not labels['generated'].any() and labels['generated'].dtype == torch.bool and (labels['group'] == -1).all()
        assert labels['clean'].shape == (12,3,16,8) and 0 <= labels['clean'].min() and labels['clean'].max() <= 1
        assert sorted(labels['identity'].unique(return_counts=True)[1].tolist()) == [3]*4
    assert dls.identities == 10 and dls.clothes_count == t.clothes[t.clothes>=0].nunique()
    ref = torch.zeros(10, dls.clothes_count, dtype=torch.bool)
    for i,c in zip(t.identity, t.clothes):
        if c >= 0: ref[i,c] = True
    assert torch.equal(dls.clothes_of_identity, ref)

def test_valid_goes_through_query_and_gallery_once(dataset):
    dls = loaders(dataset)
    rows = torch.cat([l['row'] for _,l in dls.valid])
    assert rows.tolist() == list(range(len(rows)))
    both = set(dataset.query.path) | set(dataset.gallery.path)
    assert sorted(dls.valid.dataset.paths) == sorted(both)                             # an image of split `test` comes once

def test_epochs(dataset):
    dl = loaders(dataset).train
    def rows(): return [l['row'].tolist() for _,l in dl]
    first,second = rows(),rows()
    assert first != second and dl.epoch == 2
    dl.one_batch(); assert dl.epoch == 2
    dl.set_epoch(1); assert rows() == second
    dl.set_epoch(0); assert rows() == first
    assert [len(list(dl)) for _ in range(3)] == [len(dl)]*3

class Twice:
    def __init__(self, sampler): self.sampler,self.batch_size = sampler,2*sampler.batch_size
    def __len__(self): return 2*len(self.sampler)
    def epoch(self, e): return [d for i,o in enumerate(self.sampler.epoch(e)) for d in (o._replace(group=i), o._replace(group=i, variant=1))]

def test_wrapped_sampler_relabel_and_generated_pictures(dataset):
    dl = loaders(dataset).train
    n = len(dl)
    dl.wrap_sampler(Twice)
    assert len(dl) == n and dl.bs == 24
    for x,l in dl:
        assert len(x) == 24 and torch.equal(x[0::2], x[1::2])                          # same row, same seed: one crop for the group
        assert torch.equal(l['group'][0::2], l['group'][1::2]) and l['generated'].tolist() == [False,True]*12
    clusters = np.full(len(dataset.train), -1); clusters[:30] = np.repeat(np.arange(5), 6)
    dl.relabel(clusters)
    seen = torch.cat([torch.stack([l['row'], l['identity']], 1) for _,l in dl])
    assert (seen[:,1] == torch.tensor(clusters)[seen[:,0]]).all() and set(seen[:,1].tolist()) == set(range(5))
    with pytest.raises(DataError, match='different people'): dl.relabel(np.full(len(dataset.train), -1))
    start = dl.dataset.append(dataset.query.iloc[:2].assign(generated_by='x'))
    assert start == len(dataset.train) and dl.dataset[start+1][1]['generated'] is True

def test_new_keeps_the_sampler(dataset):
    dl = loaders(dataset).train
    dl.set_epoch(5)
    other = dl.new()
    same(list(other), list(ReIDLoader(dl.dataset, dl.sampler, epoch=5)))

def test_embedding_in_order(dataset):
    t = dataset.query
    ref = torch.stack([torch.from_numpy(test_transform(PRE)(read_image(p))) for p in t.path])
    for workers in 0,2: assert torch.equal(torch.cat(list(embedding_loader(t, PRE, 5, workers))), ref)
    assert list(embedding_loader(t.iloc[:0], PRE)) == []

def test_a_plain_fastai_learner_trains(dataset):
    from fastai.learner import Learner
    from torch import nn
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.head = nn.Linear(3, 10)
        def forward(self, x): return dict(logits=self.head(x.mean((2,3))))
    seen = []
    def loss(out, labels):
        assert type(labels) is dict
        seen.append(labels['row'].tolist())
        return nn.functional.cross_entropy(out['logits'], labels['identity'].clamp(max=9))
    learn = Learner(loaders(dataset), Net(), loss_func=loss)
    learn.remove_cbs([c for c in learn.cbs if c.name=='progress'])
    with learn.no_logging(): learn.fit(2)
    assert len(seen) == 2*(len(learn.dls.train)+len(learn.dls.valid)) and learn.dls.train.epoch == 2

def test_show_batch_names_person_clothes_and_camera(dataset):
    import matplotlib.pyplot as plt
    plt.close('all')
    dl = loaders(dataset).train
    dl.show_batch(max_n=5)
    titles = [a.get_title() for a in plt.gcf().axes if a.get_title()]
    _,l = dl.one_batch()
    assert len(titles) == 5
    for i,t in enumerate(titles):
        assert f"person {l['identity'][i]}\n" in t and f"cam {l['camera'][i]}" in t and ('?' in t) == (l['clothes'][i] < 0).item()
    plt.close('all')

# ---- damaged files

@pytest.fixture
def damaged(dataset, tmp_path):
    good = Image.open(dataset.train.path.iloc[0])
    good.save(tmp_path/'cut.jpg'); (tmp_path/'cut.jpg').write_bytes((tmp_path/'cut.jpg').read_bytes()[:-40])
    good.save(tmp_path/'cut.png'); (tmp_path/'cut.png').write_bytes((tmp_path/'cut.png').read_bytes()[:200])
    good.save(tmp_path/'bits.png'); b = bytearray((tmp_path/'bits.png').read_bytes()); b[60:80] = bytes(20); (tmp_path/'bits.png').write_bytes(b)
    (tmp_path/'empty.jpg').touch(); (tmp_path/'text.jpg').write_text('I am a text'); (tmp_path/'folder.jpg').mkdir()
    return tmp_path

@pytest.mark.parametrize('name', ['cut.jpg','cut.png','bits.png','empty.jpg','text.jpg','folder.jpg','none.jpg'])
@pytest.mark.parametrize('workers', [0,2])
def test_a_damaged_file_is_one_clear_error(dataset, damaged, name, workers):
    t = dataset.train.copy()
    t.loc[t.index[-1], 'path'] = str(damaged/name)
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    for make in (lambda: loaders(t, identities=10, num_workers=workers).train, lambda: embedding_loader(t, PRE, 8, workers)):
        with pytest.raises(DataError) as e:
            for _ in range(3): list(make())
        text = str(e.value)
        assert str(damaged/name) in text and 'ccreid check' in text and len(text.splitlines()) == 2 and 'Traceback' not in text
    with pytest.raises(DataError, match=name): loaders(t, cache=True)
    assert ImageFile.LOAD_TRUNCATED_IMAGES == lenient

def test_threads_do_not_leave_pillow_lenient_or_strict(damaged, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor
    for setting in True,False:
        monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', setting)
        def refused(_):
            with pytest.raises(DataError): read_image(damaged/'cut.jpg')
            return True
        with ThreadPoolExecutor(8) as pool: assert all(pool.map(refused, range(200)))
        assert ImageFile.LOAD_TRUNCATED_IMAGES is setting

def test_odd_but_good_pictures(tmp_path):
    grey = (np.arange(20*10).reshape(20,10)%256).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path/'l.png'); Image.fromarray(grey.astype(np.uint16)*257).save(tmp_path/'i16.png')
    Image.fromarray(grey).convert('RGB').quantize(256).save(tmp_path/'p.png'); Image.fromarray(grey).convert('RGBA').save(tmp_path/'rgba.png')
    Image.fromarray(grey).convert('CMYK').save(tmp_path/'cmyk.tif'); Image.fromarray(grey>127).save(tmp_path/'bit.png')
    for n in 'l.png','i16.png','p.png','rgba.png','cmyk.tif':
        im = np.asarray(read_image(tmp_path/n)).astype(int)
        assert im.shape == (20,10,3) and np.abs(im-grey[...,None]).max() <= 1, n
    assert set(np.unique(np.asarray(read_image(tmp_path/'bit.png')))) == {0,255}
    Image.new('RGB', (1,1), (10,20,30)).save(tmp_path/'one.png')
    assert (PRE.denormalise(test_transform(PRE)(read_image(tmp_path/'one.png')))*255).round()[0,0].tolist() == [10,20,30]
    assert np.isfinite(train_transform(PRE)(read_image(tmp_path/'one.png'), 3)).all()

@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    im = np.zeros((8,4,3), np.uint8); im[0,0] = 255
    pil = Image.fromarray(im); exif = pil.getexif(); exif[0x0112] = orientation
    pil.save(tmp_path/'o.png', exif=exif)
    ways = {1: lambda a: a, 2: lambda a: a[:,::-1], 3: lambda a: a[::-1,::-1], 4: lambda a: a[::-1], 5: lambda a: a.transpose(1,0,2),
            6: lambda a: np.rot90(a, -1), 7: lambda a: a.transpose(1,0,2)[::-1,::-1], 8: lambda a: np.rot90(a)}
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path/'o.png')), ways[orientation](im))

# ---- PyTorch resizes as Pillow does

@given(st.integers(1, 90), st.integers(1, 60), st.tuples(st.integers(1, 96), st.integers(1, 64)), st.integers(0, 9))
def test_both_resize_alike(h, w, size, seed):
    a = np.random.default_rng(seed).integers(0, 256, (h,w,3), np.uint8)
    by_pillow,by_torch = resized(a, size, FILTERS['bilinear']),resized(a, size, FILTERS['torch_bilinear'])
    assert by_torch.shape==by_pillow.shape==(*size,3) and by_torch.dtype==np.uint8
    assert np.abs(by_torch.astype(int)-by_pillow).max()<=1
    np.testing.assert_array_equal(by_torch, resized(Image.fromarray(a), size, FILTERS['torch_bilinear']))
    kept = a.copy(); kept.flags.writeable = False
    np.testing.assert_array_equal(by_torch, resized(kept, size, FILTERS['torch_bilinear']))
    if (h,w)==size: np.testing.assert_array_equal(by_pillow, a)

def test_loaders_that_resize_by_torch(dataset):
    pre = Preprocessing((48,24), interpolation='torch_bilinear')
    kept,read,workers = (next(iter(loaders(dataset, preprocessing=pre, cache=c, num_workers=n).train)) for c,n in ((True,0), (False,0), (False,1)))
    for other in read,workers:
        torch.testing.assert_close(kept[0], other[0], rtol=0, atol=0)
        assert kept[1]['row'].tolist()==other[1]['row'].tolist()
    by_pillow = next(iter(loaders(dataset, preprocessing=Preprocessing((48,24))).train))
    assert kept[1]['row'].tolist()==by_pillow[1]['row'].tolist()
    apart = (kept[0]-by_pillow[0]).abs()*255*.22
    assert 0<apart.max()<=5 and apart.mean()<.5 # the same windows, mirrored alike, erased alike
    with pytest.raises(ValueError, match='read-only'): loaders(dataset, preprocessing=pre, cache=True).train.dataset.picture(Draw(0))[0] = 0

def test_a_cache_of_another_filter_is_refused(dataset):
    with pytest.raises(DataError, match=r'bilinear; asked for are \(64, 32\), torch_bilinear'):
        loaders(dataset, preprocessing=Preprocessing((64,32), interpolation='torch_bilinear'), cache=ImageCache(PRE))
    for no in 0,None,False: assert loaders(dataset, cache=no).cache is None
    with pytest.raises(DataError, match='cache is True, False or an ImageCache'): loaders(dataset, cache='here')

def test_wrong_requests(dataset):
    for f,words in ((lambda: loaders(dataset, identities=11), 'there are 10'), (lambda: loaders(dataset.query), 'no training image'),
                    (lambda: loaders(dataset, cache=ImageCache(Preprocessing((8,8)))), 'cache holds'), (lambda: loaders(dataset, erase=1.5), 'probability')):
        with pytest.raises(DataError, match=words): f()
