"Pairs, both mistakes, thresholds, probabilities and open sets against loops; what must not change them; what is refused"
import json, math, subprocess, sys
from dataclasses import replace
from functools import lru_cache

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, strategies as st

from ccreid.data.layouts import load_dataset
from ccreid.data.mannequins import MannequinWorld
from ccreid.evaluation.open_set import OpenSet, open_set
from ccreid.evaluation.pairs import Pairs, pairs_from_scores, plot_scores, verification_pairs
from ccreid.evaluation.protocols import CLOTHES_CHANGING, SAME_CLOTHES, STANDARD, Protocol
from ccreid.evaluation.thresholds import (METHODS, Calibration, calibrate, calibration_error, choose_threshold, plot_reliability,
                                          plot_threshold, reliability)
from ccreid.evaluation.verification import Rate, plot_det, plot_roc
from ccreid.verifying import trained_on, validate_on, validation_people, verify

SETTINGS = STANDARD, SAME_CLOTHES, CLOTHES_CHANGING


def world(seed=0, people=6, images=6, dim=5, unknown=.2, distractors=3):
    "Features and labels of a small test, some clothes unknown, some distractors, on a coarse grid so that scores tie"
    rng = np.random.default_rng(seed)
    n = people*images
    identity = np.concatenate([np.repeat(np.arange(people), images), np.full(distractors, -2)])
    clothes = np.where(rng.random(len(identity)) < unknown, -1, identity.clip(0)*2 + rng.integers(2, size=len(identity)))
    table = pd.DataFrame(dict(identity=identity, clothes=clothes, camera=rng.integers(3, size=len(identity)),
                              split=np.where(np.arange(len(identity)) % 2, 'query', 'gallery')))
    table.loc[n:, 'split'] = 'gallery'
    table['path'] = [f'{i}.jpg' for i in range(len(table))]
    return rng.integers(-1, 3, size=(len(identity), dim)) + .01, table


def every_pair(features, table, protocol):
    "(score, Is it one person?, query's person, gallery's) of each pair that counts, one after the other"
    unit = [f/np.linalg.norm(f) for f in features]
    found = []
    for i, q in table[table.split == 'query'].iterrows():
        for j, g in table[table.split == 'gallery'].iterrows():
            own = q.identity == g.identity and q.identity >= 0
            same_clothes = q.clothes == g.clothes and q.clothes >= 0
            junk = own and (q.camera == g.camera or {'standard': False, 'same-clothes': not same_clothes,
                                                     'clothes-changing': same_clothes}[protocol.setting])
            if not junk: found.append((round(float(unit[i] @ unit[j]), 6), own, q.identity, g.identity))
    return found


def rate(pairs, one, threshold, times=None):
    "Share of the pairs of a kind that are accepted, by a loop"
    hits = total = 0
    for score, own, p, q in pairs:
        if own != one: continue
        n = 1 if times is None else times.get(p, 1) if own else times.get(p, 1)*times.get(q, 1)
        hits, total = hits + n*(score >= threshold), total + n
    return hits/total if total else math.nan


def equal_errors(pairs, times=None):
    "Where straight lines between the points of (FAR, FRR) cross the diagonal"
    points = [(0., 1.)] + [(rate(pairs, False, t, times), 1 - rate(pairs, True, t, times))
                           for t in sorted({p[0] for p in pairs}, reverse=True)]
    for (f0, r0), (f1, r1) in zip(points, points[1:]):
        if f1 >= r1: return f0 + (r0 - f0)/((r0 - f0) + (f1 - r1))*(f1 - f0)


def drawings(table, protocol, n, seed=0):
    "How often each person was drawn, as documented: as many as there are people with a number"
    query, gallery = protocol.select(table)[0]
    people = sorted({*query.identity, *gallery.identity} - {-2})
    w = np.random.default_rng(seed).multinomial(len(people), np.full(len(people), 1/len(people)), size=n)
    return [dict(zip(people, row)) for row in w]


@pytest.mark.parametrize('protocol', SETTINGS, ids=lambda p: p.name)
@pytest.mark.parametrize('seed', range(3))
def test_every_rate_is_that_of_a_loop_over_pairs(protocol, seed):
    features, table = world(seed)
    pairs, loop = verification_pairs(features, table, protocol, resamples=20), every_pair(features, table, protocol)
    assert pairs.exact and pairs.people == 6
    assert (pairs.positive.sum(), pairs.negative.sum()) == (sum(p[1] for p in loop), sum(not p[1] for p in loop))
    assert pairs.levels.tolist() == sorted({p[0] for p in loop})
    for t in (*pairs.levels, -2, 2, .1234):
        assert pairs.tar(t).value == pytest.approx(rate(loop, True, t)) and pairs.far(t).value == pytest.approx(rate(loop, False, t))
    assert pairs.eer().value == pytest.approx(equal_errors(loop))
    for far in (1/pairs.negative.sum(), .05, .3, 1):
        allowed = [rate(loop, True, t) for t in (*pairs.levels, 2) if rate(loop, False, t) <= far]
        assert pairs.tar_at(far).value == pytest.approx(max(allowed))


@pytest.mark.parametrize('protocol', SETTINGS, ids=lambda p: p.name)
def test_intervals_are_those_of_people_drawn_by_hand(protocol):
    features, table = world(1)
    pairs, loop = verification_pairs(features, table, protocol, resamples=15, seed=4), every_pair(features, table, protocol)
    drawn = drawings(table, protocol, 15, 4)
    t = float(np.median(pairs.levels))
    for got, one in (pairs.tar(t), True), (pairs.far(t), False):
        values = [v for w in drawn if not math.isnan(v := rate(loop, one, t, w))]
        assert (got.low, got.high) == pytest.approx(tuple(np.quantile(values, [.025, .975])))
    values = [v for w in drawn if (v := equal_errors(loop, w)) is not None and not math.isnan(v)]
    got = pairs.eer()
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(values, [.025, .975])))
    at = [max([v for s in (*pairs.levels, 2) if rate(loop, False, s, w) <= .1 and not math.isnan(v := rate(loop, True, s, w))],
              default=math.nan) for w in drawn]
    got = pairs.tar_at(.1)
    assert (got.low, got.high) == pytest.approx(tuple(np.nanquantile(at, [.025, .975])))


@given(seed=st.integers(0, 50), setting=st.sampled_from(SETTINGS))
def test_curves_are_monotone_and_agree_with_scikit_learn(seed, setting):
    from sklearn.metrics import det_curve, roc_curve
    features, table = world(seed, people=4)
    loop = every_pair(features, table, setting)
    if len({p[1] for p in loop}) < 2: return
    pairs = verification_pairs(features, table, setting, resamples=3)
    y, score = [p[1] for p in loop], [p[0] for p in loop]
    far, tar, t = pairs.roc()
    for a, b in zip((far, tar, t), roc_curve(y, score, drop_intermediate=False)): assert np.allclose(a, b)
    for a, b in zip(pairs.det(), det_curve(y, score)): assert np.allclose(a, b)
    assert (np.diff(far) >= 0).all() and (np.diff(tar) >= 0).all() and (far[0], tar[0], far[-1], tar[-1]) == (0, 0, 1, 1)
    rates = [pairs.tar_at(f).value for f in np.linspace(max(pairs.finest, 1e-9), 1, 12)]
    assert all(a <= b for a, b in zip(rates, rates[1:])) and 0 <= pairs.eer().value <= 1


def same(a, b):
    for k in ('levels', 'positive', 'negative', 'drawn_positive', 'drawn_negative'): assert np.array_equal(getattr(a, k), getattr(b, k)), k


def test_neither_order_nor_chunks_nor_scale_nor_type_change_anything():
    features, table = world(2, people=9, images=8)
    mixed = np.random.default_rng(0).permutation(len(table))
    for p in SETTINGS:
        one = verification_pairs(features, table, p)
        same(one, verification_pairs(features[mixed], table.iloc[mixed], p))
        for chunk in (1, 500, 10_000): same(one, verification_pairs(features, table, p, chunk_bytes=chunk))
        same(one, verification_pairs(features*7, table, p))
        same(one, verification_pairs(torch.tensor(features), table, p))
        same(one, verification_pairs(features[::-1].copy(), table, p, rows=table.index[::-1]))


@pytest.mark.parametrize('protocol', SETTINGS, ids=lambda p: p.name)
def test_a_ladder_of_few_levels_is_exact_on_its_levels(protocol):
    rng = np.random.default_rng(0)
    _, table = world(3, people=12, images=8)
    features = rng.normal(size=(len(table), 6))
    loop, pairs = every_pair(features, table, protocol), verification_pairs(features, table, protocol, levels=40, also=[.123, 5.])
    assert not pairs.exact and len(pairs.levels) <= 42 and {.123, 5.} <= set(pairs.levels)
    for t in pairs.levels:
        assert pairs.tar(t).value == pytest.approx(rate(loop, True, t)) and pairs.far(t).value == pytest.approx(rate(loop, False, t))
    between = (pairs.levels[3] + pairs.levels[4])/2
    with pytest.raises(ValueError, match=r'lies between two levels: count the pairs again with also='): pairs.tar(between)
    fine = verification_pairs(features, table, protocol, levels=10**6)
    assert fine.exact and abs(fine.eer().value - pairs.eer().value) < .05


def test_a_matrix_of_scores_and_features_give_the_same():
    features, table = world(4)
    query, gallery = STANDARD.select(table)[0]
    unit = features/np.linalg.norm(features, axis=1, keepdims=True)
    for p in SETTINGS:
        same(pairs_from_scores(unit[query.index] @ unit[gallery.index].T, query, gallery, p), verification_pairs(features, table, p))


def test_galleries_that_are_drawn_are_counted_together():
    features, table = world(5, people=8, images=10)
    single = replace(STANDARD, shots='single', draws=3)
    parts = [every_pair(features, table.loc[sorted({*q.index, *g.index})], STANDARD) for q, g in single.select(table)]
    pairs = verification_pairs(features, table, single)
    assert pairs.negative.sum() == sum(not p[1] for part in parts for p in part)
    assert pairs.draws == 3 and pairs.finest == 3/pairs.negative.sum()                # three times the same people tell no finer rate
    assert math.isnan(pairs.tar_at(2/pairs.negative.sum()).value) and 'in a drawn gallery' in pairs.notes([1e-6])[0]
    t = float(np.median(pairs.levels))
    assert pairs.tar(t).value == pytest.approx(rate([p for part in parts for p in part], True, t))


def test_tracklets_are_compared_by_their_mean():
    features, table = world(6, people=5, images=8, distractors=0)
    table = table.assign(tracklet=table.identity*10 + table.camera*2 + (table.split == 'query'), frame=range(len(table)))
    tracks = replace(STANDARD, unit='tracklet')
    pairs = verification_pairs(features, table, tracks)
    means = table.groupby('tracklet').apply(lambda t: features[t.index].mean(0), include_groups=False)
    first = table.drop_duplicates('tracklet')
    loop = every_pair([means[t] for t in first.tracklet], first.reset_index(drop=True), STANDARD)
    assert (pairs.positive.sum(), pairs.negative.sum()) == (sum(p[1] for p in loop), sum(not p[1] for p in loop))
    assert pairs.eer().value == pytest.approx(equal_errors(loop))


def test_unknown_clothes_equal_nothing_and_distractors_are_never_anybody():
    query = pd.DataFrame(dict(identity=[1, 1, 2], clothes=[-1, 5, 7], camera=0))
    gallery = pd.DataFrame(dict(identity=[1, 1, 2, -2], clothes=[-1, 5, 7, -1], camera=1))
    count = lambda p: (lambda n: (int(n.positive.sum()), int(n.negative.sum())))(pairs_from_scores(np.eye(3, 4), query, gallery, p))
    assert count('standard') == (5, 7) and count('same-clothes') == (2, 7)          # 5 with 5, 7 with 7
    assert count('clothes-changing') == (3, 7)                                      # all pairs with an unknown outfit


@pytest.mark.parametrize('protocol', SETTINGS, ids=lambda p: p.name)
def test_pairs_of_one_kind_are_refused(protocol):
    features, table = world(0)
    one = table[table.identity == 0]
    with pytest.raises(ValueError, match=f"protocol '{protocol.name}': no pair shows two people"):
        verification_pairs(features[one.index], one.assign(camera=range(len(one)), clothes=[0, 0, 1, 1, 0, 0]), protocol)
    with pytest.raises(ValueError, match='no pair shows one person, among .* nothing to accept'):
        verification_pairs(features, table.assign(camera=0), protocol)
    with pytest.raises(ValueError): verification_pairs(features, table.assign(split='train'), protocol)


def test_bad_numbers_are_refused_in_a_line():
    features, table = world(0)
    query, gallery = STANDARD.select(table)[0]
    for bad in (np.nan, np.inf):
        wrong = features.copy(); wrong[1, 0] = bad
        with pytest.raises(ValueError, match='nan, infinite'): verification_pairs(wrong, table, STANDARD)
        with pytest.raises(ValueError, match='finite'): pairs_from_scores(np.full((len(query), len(gallery)), bad), query, gallery, STANDARD)
    with pytest.raises(ValueError, match='features has 3 rows'): verification_pairs(features[:3], table, STANDARD)
    with pytest.raises(ValueError, match='scores has shape'): pairs_from_scores(np.zeros((2, 2)), query, gallery, STANDARD)
    with pytest.raises(ValueError, match='real numbers'): verification_pairs(features + 1j, table, STANDARD)
    with pytest.raises(ValueError, match="unknown protocol 'x'"): verification_pairs(features, table, 'x')
    pairs = verification_pairs(features, table, STANDARD)
    for far in (0, -1, 1.1, math.nan):
        with pytest.raises(ValueError, match='above 0 and up to 1'): pairs.tar_at(far)
        with pytest.raises(ValueError, match='above 0 and up to 1'): choose_threshold(pairs, far)


def test_a_rate_finer_than_the_pairs_is_said_and_not_invented():
    features, table = world(0)
    pairs = verification_pairs(features, table, STANDARD)
    fine = pairs.finest*.99
    assert math.isnan(pairs.tar_at(fine).value) and str(pairs.tar_at(fine)) == 'n/a'
    assert not math.isnan(pairs.tar_at(pairs.finest).value)
    assert pairs.notes([fine, .5]) == [f'FAR {100*fine:g} % is finer than one of the {pairs.negative.sum():,} pairs of two people: not told']
    d = pairs.as_dict([fine])
    assert len(d['notes']) == 1 and math.isnan(d['tar_at_far'][f'{fine:g}']['value'])
    with pytest.raises(ValueError, match='the finest is'): choose_threshold(pairs, fine)


def test_people_are_drawn_and_not_pairs():
    "Copies of the same pictures add pairs, and no knowledge"
    rng = np.random.default_rng(0)
    _, table = world(0, people=20, images=8, distractors=0)
    features = rng.normal(size=(20, 6)).repeat(8, 0) + rng.normal(size=(160, 6))
    few = verification_pairs(features, table, STANDARD)
    twice = pd.concat([table, table]).reset_index(drop=True)
    many = verification_pairs(np.vstack([features]*2), twice, STANDARD)
    t = few.levels[len(few.levels)//2]
    assert many.negative.sum() == 4*few.negative.sum() and many.eer().value == pytest.approx(few.eer().value)
    assert many.eer() == pytest.approx(few.eer()) and few.eer().high - few.eer().low > .02


# --- thresholds

@lru_cache
def counted(seed):
    features, table = world(seed, people=4)
    return verification_pairs(features, table, STANDARD, resamples=0), every_pair(features, table, STANDARD)


@given(seed=st.integers(0, 4), far=st.floats(.02, 1))
def test_the_threshold_is_the_lowest_allowed_one(seed, far):
    pairs, loop = counted(seed)
    if far < pairs.finest: return
    t = choose_threshold(pairs, far)
    assert rate(loop, False, t) <= far
    lower = [s for s in pairs.levels if s < t]
    assert all(rate(loop, False, s) > far for s in lower) and pairs.tar_at(far).value == rate(loop, True, t)


def balanced(loop, prior):
    "A weight for each pair, so that those of one person have the share `prior`"
    n = {k: sum(p[1] == k for p in loop) for k in (True, False)}
    return [prior/n[True] if p[1] else (1 - prior)/n[False] for p in loop]


@pytest.mark.parametrize('prior', [.5, .1])
def test_calibrations_are_scikit_learns_on_single_pairs(prior):
    from sklearn.isotonic import IsotonicRegression
    features, table = world(7)
    loop = every_pair(features, table, STANDARD)
    score, y, w = np.array([p[0] for p in loop]), np.array([p[1] for p in loop], float), np.array(balanced(loop, prior))
    pairs = verification_pairs(features, table, STANDARD)
    stairs = IsotonicRegression(y_min=0, y_max=1, out_of_bounds='clip').fit(score, y, sample_weight=w)
    got = calibrate(pairs, 'isotonic', prior)
    assert np.allclose(got(pairs.levels), stairs.predict(pairs.levels)) and got.prior == prior
    s = calibrate(pairs, 'logistic', prior)
    p = s(score)
    assert (np.diff(s(np.linspace(-1, 1, 50))) >= 0).all() and ((p > 0) & (p < 1)).all()
    assert (w*p).sum() == pytest.approx(prior, abs=.02)                  # a logistic curve is right on average


@given(p=st.floats(0, 1), old=st.floats(.01, .99), new=st.floats(.01, .99))
def test_a_prior_moves_odds_and_comes_back(p, old, new):
    c = Calibration('none', lambda s: s, old, old)
    moved = float(c.with_prior(new)(p))
    assert 0 <= moved <= 1 and (moved in (0, 1)) >= (p in (0, 1))
    if 1e-6 < p < 1 - 1e-6: assert moved/(1 - moved) == pytest.approx(p/(1 - p)*new/(1 - new)/(old/(1 - old)), rel=1e-6)
    assert float(c.with_prior(new).with_prior(old)(p)) == pytest.approx(p, abs=1e-9)


@pytest.mark.parametrize('bins', [4, 10])
def test_reliability_is_that_of_a_loop(bins):
    features, table = world(8)
    loop, pairs = every_pair(features, table, STANDARD), verification_pairs(features, table, STANDARD, resamples=30, seed=2)
    c = calibrate(verification_pairs(*world(9), STANDARD), 'logistic', .3)
    t, boxes = reliability(c, pairs, bins), {}
    for pair, w in zip(loop, balanced(loop, .3)): boxes.setdefault(min(int(float(c(pair[0]))*bins), bins - 1), []).append((pair, w))
    assert len(t) == len(boxes) and t.share.sum() == pytest.approx(1)
    for row, k in zip(t.itertuples(), sorted(boxes)):
        share = sum(w for _, w in boxes[k])
        assert row.share == pytest.approx(share) and row.observed == pytest.approx(sum(w for p, w in boxes[k] if p[1])/share)
        assert row.predicted == pytest.approx(sum(w*float(c(p[0])) for p, w in boxes[k])/share)
        assert row.low <= row.high
    error = sum(sum(w for _, w in b)*abs(sum(w*(p[1] - float(c(p[0]))) for p, w in b)/sum(w for _, w in b)) for b in boxes.values())
    assert calibration_error(t) == pytest.approx(error)


def test_isotonic_calibration_is_right_about_the_pairs_it_was_fitted_on():
    for p in SETTINGS:
        pairs = verification_pairs(*world(3, people=10), p)
        assert calibration_error(reliability(calibrate(pairs), pairs)) < 1e-9
    with pytest.raises(ValueError, match="no calibration 'x': choose isotonic or logistic"): calibrate(pairs, 'x')
    for prior in (0, 1, 2, math.nan):
        with pytest.raises(ValueError, match='between 0 and 1'): calibrate(pairs, prior=prior)
        with pytest.raises(ValueError, match='between 0 and 1'): calibrate(pairs).with_prior(prior)


# --- open set

def door_by_loop(features, table, protocol, enrolled, draws, seed):
    "(known scores and people, unknown scores and people) as documented"
    unit = [f/np.linalg.norm(f) for f in features]
    query, gallery = table[table.split == 'query'], table[table.split == 'gallery']
    people = sorted(set(gallery.identity) - {-2})
    n = min(max(round(enrolled*len(people)), 1), len(people) - 1)
    known, unknown = [], []
    for d in range(draws):
        inside = {people[k] for k in np.random.default_rng([seed, d]).permutation(len(people))[:n]} | {-2}
        for i, q in query.iterrows():
            own, other = [], []
            for j, g in gallery.iterrows():
                if g.identity not in inside: continue
                mine = q.identity == g.identity and q.identity >= 0
                clothes = q.clothes == g.clothes and q.clothes >= 0
                if mine and (q.camera == g.camera or {'standard': False, 'same-clothes': not clothes, 'clothes-changing': clothes}[protocol.setting]):
                    continue
                (own if mine else other).append(round(float(unit[i] @ unit[j]), 6))
            if q.identity not in inside: unknown.append((max(other), q.identity))
            elif own: known.append((max(own) if max(own) > max(other, default=-math.inf) else -math.inf, q.identity))
    return known, unknown


@pytest.mark.parametrize('protocol', SETTINGS, ids=lambda p: p.name)
@pytest.mark.parametrize('enrolled', [.3, .5])
def test_a_door_is_that_of_a_loop(protocol, enrolled):
    features, table = world(11, people=8)
    door = open_set(features, table, protocol, enrolled=enrolled, draws=3, seed=5, resamples=10)
    known, unknown = door_by_loop(features, table, protocol, enrolled, 3, 5)
    assert sorted(door.known) == sorted(k for k, _ in known) and sorted(door.unknown) == sorted(u for u, _ in unknown)
    assert sorted(door.known_people) == sorted(p for _, p in known) and door.finest == 3/len(unknown)
    for fpir in (door.finest, .2, .7, 1):
        rates = [(np.mean([u >= t for u, _ in unknown]), np.mean([k >= t for k, _ in known]))
                 for t in [3., *{u for u, _ in unknown}, *{k for k, _ in known if k > -9}, -8.]]
        assert door.identified_at(fpir).value == pytest.approx(max(r for f, r in rates if f <= fpir))
    found, alarms = door.at(.5)
    assert found.value == pytest.approx(np.mean([k >= .5 for k, _ in known])) and alarms.value == pytest.approx(np.mean([u >= .5 for u, _ in unknown]))
    drawn = drawings(table, protocol, 10, 5)
    shares = [sum(w[p]*(u >= .5) for u, p in unknown)/sum(w[p] for _, p in unknown) for w in drawn if sum(w[p] for _, p in unknown)]
    assert (alarms.low, alarms.high) == pytest.approx(tuple(np.quantile(shares, [.025, .975])))


def test_a_door_needs_both_and_says_what_it_cannot_tell():
    features, table = world(11)
    one = table[table.identity <= 0]
    with pytest.raises(ValueError, match='needs two people in the gallery'): open_set(features[one.index], one, STANDARD)
    strangers = table[(table.split == 'gallery') | (table.identity == 0)]
    with pytest.raises(ValueError, match='no query is of'): open_set(features[strangers.index], strangers, STANDARD, draws=1, enrolled=.99)
    with pytest.raises(ValueError, match='no query is of somebody enrolled'): open_set(features, table.assign(camera=0), STANDARD)
    door = open_set(features, table, STANDARD, draws=2)
    assert math.isnan(door.identified_at(door.finest*.9).value) and len(door.notes([door.finest*.9, 1])) == 1
    for f in (0, 1.5):
        with pytest.raises(ValueError, match='above 0 and up to 1'): door.identified_at(f)
    same_door = open_set(features, table, STANDARD, draws=2, chunk_bytes=1)
    assert sorted(same_door.known) == sorted(door.known) and np.array_equal(same_door.unknown, door.unknown)


def test_ties_with_a_stranger_are_lost():
    query = pd.DataFrame(dict(identity=[1, 2], camera=0, split='query'))
    table = pd.concat([query, query.assign(camera=1, split='gallery'), pd.DataFrame(dict(identity=[-2], camera=[1], split=['gallery']))],
                      ignore_index=True)
    door = open_set(np.ones((5, 2)), table, STANDARD, draws=4)           # all pictures alike
    assert set(door.known) == {-np.inf} and door.identified_at(1).value == 0


# --- figures

def test_figures_show_what_they_say():
    found = {p.name: verification_pairs(*world(3, people=10), p, also=[.5]) for p in SETTINGS}
    assert len(plot_roc(found).axes[0].lines) == 4 and len(plot_det(found).axes[0].lines) == 4
    assert [t.get_text() for t in plot_scores(found).axes[0].get_legend().get_texts()][0] == 'two people'
    lines = plot_threshold(found, .5).axes[0].lines
    assert [l.get_label() for l in lines][-1] == 'threshold 0.500' and len(lines) == 5
    p = found['standard']
    assert f'{100*p.far(.5).value:.1f} % falsely accepted' in [l.get_label() for l in lines]
    c = calibrate(p)
    assert len(plot_reliability({k: reliability(c, v) for k, v in found.items()}).axes[0].containers) == 3


def test_importing_brings_neither_matplotlib_nor_scikit_learn():
    code = ("import sys, ccreid.evaluation.open_set, ccreid.evaluation.thresholds\n"
            "print([m for m in ('fastai','torchvision','timm','matplotlib','sklearn') if m in sys.modules])")
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_printed_lines_fit():
    pairs = verification_pairs(*world(3, people=10), replace(CLOTHES_CHANGING, name='visible-to-infrared-transposed'))
    for text in (repr(pairs), pairs.summary(), repr(open_set(*world(3), STANDARD, draws=2))):
        assert max(map(len, text.split('\n'))) <= 90, text


# --- a whole data set, and the command

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')/'ltcc'
    MannequinWorld(identities=(8, 0, 6), outfits=2, cameras=3, images=(1, 1, 2), size=(64, 32), seed=4).write(folder, layout='ltcc')
    return folder


@pytest.fixture(scope='module')
def dataset(root): return load_dataset('ltcc', root, verbose=False)


def look(table):
    "A feature for each image that depends on its name alone"
    return np.stack([np.random.default_rng(sum(map(ord, str(p)[-20:]))).normal(size=8) + i for p, i in zip(table.path, table.identity)])


def test_validation_people_are_trainings_and_never_the_tests(dataset):
    table, split, words = validation_people(dataset, 5, seed=1)
    test = set(dataset.samples.path[dataset.samples.split != 'train'])
    assert table.identity.nunique() == 5 and not set(table.path) & test and split == 'test' and '5 of 8' in words
    assert set(table.path) == set(validation_people(dataset, 5, 1)[0].path) != set(validation_people(dataset, 5, 2)[0].path)
    from ccreid.data.samples import hold_out
    assert set(table.path) == set(hold_out(dataset, 5, 1)[1].samples.path)       # as training holds them out
    for who in (1, 8, 9):
        with pytest.raises(ValueError, match='choose 2 to 7'): validation_people(dataset, who)


def test_a_split_val_is_used_in_its_roles(tmp_path):
    MannequinWorld(identities=(4, 5, 3), outfits=2, cameras=3, images=2, size=(64, 32), seed=4).write(tmp_path/'last', layout='last')
    last = load_dataset('last', tmp_path/'last', verbose=False)
    found = validate_on(look, last, {'standard': last.protocols['standard']}, 'val', resamples=0)
    own = verification_pairs(look(last.val), last.val, last.protocols['standard-val'], resamples=0)
    assert found.pairs['standard'].negative.sum() == own.negative.sum() and found.images == len(last.val)


def test_the_threshold_comes_from_validation_people_alone(dataset):
    test = dataset.samples[dataset.samples.split != 'train'].reset_index(drop=True)
    held = validate_on(look, dataset, dataset.protocols, 6)
    found = verify(look(test), test, dataset.protocols, held, far=.1, resamples=5)
    assert found.threshold == choose_threshold(held.pairs['same-clothes'], .1) and found.chosen_by == 'same-clothes'
    other = verify(-look(test)[::-1].copy(), test, dataset.protocols, held, far=.1, resamples=5)     # another test, the same threshold
    assert other.threshold == found.threshold
    assert [float(c(.9)) for c in other.calibrations.values()] == [float(c(.9)) for c in found.calibrations.values()]
    d = found.as_dict('clothes-changing')
    assert d['threshold']['chosen_by'] == 'same-clothes' and d['threshold']['false_accepts']['value'] == found.pairs['clothes-changing'].far(found.threshold).value
    assert found.as_dict('nothing') is None
    fine = verify(look(test), test, dataset.protocols, held, far=1e-6, resamples=0)
    assert fine.threshold is None and any('no threshold: a rate of false accepts of 0.0001 %' in n for n in fine.notes)


def test_what_cannot_be_done_is_a_note(dataset):
    test = dataset.samples[dataset.samples.split != 'train'].reset_index(drop=True)
    def without(table): raise ValueError('f.npz: no feature for 3 images')
    held = validate_on(without, dataset, dataset.protocols)
    assert held.pairs == {} and held.notes == ['no validation people: f.npz: no feature for 3 images']
    found = verify(look(test), test, dataset.protocols, held, resamples=0)
    assert found.threshold is None and held.notes[0] in found.text() and len(found.pairs) == 3
    alone = test.assign(clothes=test.identity)                                   # nobody changes clothes
    found = verify(look(alone), alone, dataset.protocols, resamples=0)
    assert set(found.pairs) == {'standard', 'same-clothes'} and any("'clothes-changing': no pair shows one person" in n for n in found.notes)
    equal = validate_on(lambda t: np.ones((len(t), 2)), dataset, dataset.protocols, 5)
    found = verify(look(test), test, dataset.protocols, equal, far=.5, resamples=0)
    assert found.threshold is None and any('share the highest score' in n for n in found.notes)


def test_a_broken_record_beside_the_weights_tells_nothing(dataset, tmp_path):
    file = tmp_path/'cal.safetensors'
    for text in ('', '[]', '{"method": "cal"}', '{"method": "cal", "train": 3}', '\0'):
        (tmp_path/'metrics.json').write_text(text)
        assert trained_on(file, dataset, 10, 0) is None
    (tmp_path/'metrics.json').write_text(json.dumps(dict(method='cal', train=dict(images=len(dataset.train) + 4, generated=4))))
    assert trained_on(file, dataset, 10, 0) is True


@pytest.fixture
def features(dataset, tmp_path):
    np.savez(tmp_path/'f.npz', paths=dataset.samples.path.to_numpy(str), features=look(dataset.samples).astype('float32'))
    return tmp_path/'f.npz'


def words(root, features, *more): return 'evaluate', '--data', 'ltcc', '--root', root, '--features', features, '--device', 'cpu', *more


def test_evaluate_verifies_into_json_text_and_page(ccreid, root, features, tmp_path):
    code, out, err = ccreid(*words(root, features, '--verify', '--validation', '6', '--far', '.1', '--json', '--report', tmp_path/'r.html'))
    assert code == 0, err
    got = json.loads(out)
    assert set(got) == {'standard', 'same-clothes', 'clothes-changing'}
    for d in got.values():
        v = d['verification']
        assert 'mAP' in d and v['threshold']['far'] == .1 and v['validation'] == dict(source='6 of 8 training people (seed 0)', images=36, trained_on=None)
        assert v['open_set']['identified_at']['0.01']['value'] is None and any('FPIR 1 % is finer than one of' in n for n in v['notes'])
    page = (tmp_path/'r.html').read_text()
    assert page.count('<img') == 6 and 'Threshold' in page and 'report: ' in err
    code, text, _ = ccreid(*words(root, features, '--verify', '--validation', '6', '--far', '.1'))
    assert code == 0 and f"Threshold {v['threshold']['value']:.4f}, for FAR 10 %" in text and 'Open set' in text and 'mAP' in text
    assert 'Validation: 6 of 8 training people' in text
    plain = json.loads(ccreid(*words(root, features, '--json'))[1])
    assert {k: {n: d[n] for n in d if n != 'verification'} for k, d in got.items()} == plain     # nothing else changes
    again = json.loads(ccreid(*words(root, features, '--verify', '--validation', '6', '--far', '.1', '--json'))[1])
    assert again == got


def test_evaluate_says_when_there_are_no_validation_people(ccreid, root, dataset, tmp_path):
    test = dataset.samples[dataset.samples.split != 'train']
    np.savez(tmp_path/'t.npz', paths=test.path.to_numpy(str), features=look(test))
    code, out, _ = ccreid(*words(root, tmp_path/'t.npz', '--verify'))
    assert code == 0 and 'no validation people: ' in out and 'no feature for' in out and 'Threshold' not in out and 'EER' in out
    code, out, _ = ccreid(*words(root, tmp_path/'t.npz', '--verify', '--validation', 'val'))
    assert code == 0 and 'no validation people: ltcc has no split val' in out
    assert ccreid(*words(root, tmp_path/'t.npz', '--report', tmp_path/'plain.html'))[0] == 0
    assert (tmp_path/'plain.html').read_text().count('<img') == 1


@pytest.mark.parametrize('more, says', [
    (('--far', '.1'), '--far is for --verify: give that too'), (('--validation', '3'), '--validation is for --verify'),
    (('--verify', '--far', '0'), 'a number, above 0 and below 1'), (('--verify', '--validation', '1'), '`val` or a whole number, at least 2'),
    (('--verify', '--validation', 'test'), '`val` or a whole number')])
def test_evaluate_refuses_in_one_line(ccreid, root, features, more, says):
    code, _, err = ccreid(*words(root, features, *more))
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1


def test_one_protocol_alone_and_too_many_people(ccreid, root, features):
    code, out, _ = ccreid(*words(root, features, '--verify', '--validation', '6', '--far', '.1', '--protocol', 'clothes-changing', '--json'))
    assert code == 0 and json.loads(out)['clothes-changing']['verification']['threshold']['chosen_by'] == 'clothes-changing'
    code, out, _ = ccreid(*words(root, features, '--verify', '--validation', '8'))
    assert code == 0 and 'no validation people: ltcc: 8 of 8 training people cannot be held out: choose 2 to 7' in out


def test_the_people_that_training_held_out_are_found_again(ccreid, root, tmp_path):
    small = '--epochs 1 --steps 1 --device cpu --workers 0 --quiet --set backbone=resnet_mini --set size=64x32 --set pretrained=false'.split()
    run = tmp_path/'run'
    code, _, err = ccreid('train', '--data', 'ltcc', '--root', root, '--method', 'identity', '--hold-out', '3', '--out', run, *small,
                          '--set', 'identities=2', '--set', 'images=2')
    assert code == 0, err
    for n, says in ('3', 'left out of the training of this model'), ('4', 'a fair choice only if'):
        code, out, err = ccreid('evaluate', '--data', 'ltcc', '--root', root, '--weights', run/'identity.safetensors', '--device', 'cpu',
                                '--verify', '--far', '.1', '--validation', n, '--protocol', 'same-clothes')
        assert code == 0 and says in out, err
