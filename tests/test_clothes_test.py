"How much a model looks at clothes: shares of variance and line-ups by loops, the drawn set, photographs, the command"
import json, sys
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest

from ccreid.evaluation.crossed import components, products, variance_shares
from ccreid.evaluation.redressed import LINE_UPS, redressed


def mean_squares(y):
    "Mean square of every set of factors, by loops over cells and inclusion-exclusion of marginal means"
    shape = y.shape[:-1]
    k,found = len(shape),{}
    for size in range(1, k+1):
        for S in combinations(range(k), size):
            ss = 0
            for cell in product(*(range(shape[a]) for a in S)):
                effect = np.zeros(y.shape[-1])
                for r in range(size+1):
                    for T in combinations(range(size), r):
                        at = [slice(None)]*k
                        for t in T: at[S[t]] = slice(cell[t], cell[t]+1)
                        effect += (-1)**(size-r)*y[tuple(at)].reshape(-1, y.shape[-1]).mean(0)
                ss += (effect**2).sum()
            away = np.prod([n for a,n in enumerate(shape) if a not in S])
            found[S] = ss*away/np.prod([shape[a]-1 for a in S])
    return found


def by_solving(y):
    "Variances whose expected mean squares are those that were found"
    ms,shape = mean_squares(y),y.shape[:-1]
    sets = list(ms)
    away = lambda T: np.prod([n for a,n in enumerate(shape) if a not in T])
    A = np.array([[away(T) if set(S)<=set(T) else 0 for T in sets] for S in sets], float)
    return dict(zip(sets, np.linalg.solve(A, [ms[S] for S in sets])))


@pytest.mark.parametrize('shape', [(3,2),(4,3,2),(3,4,2,3)])
def test_shares_are_those_of_expected_mean_squares(shape):
    y = np.random.default_rng(sum(shape)).normal(size=(*shape,3)) + np.arange(shape[1]).reshape(1,-1,*[1]*(len(shape)-1))
    found = {k: v[0] for k,v in components(products(y), shape[1:], np.ones((1,shape[0]))).items()}
    wanted = by_solving(y)
    assert found.keys()==wanted.keys()
    for S in wanted: assert found[S]==pytest.approx(wanted[S], abs=1e-9)
    names = ('identity','clothes','pose','camera')[:len(shape)]
    s = variance_shares(y, names, 20)
    assert sum(s.of(k).value for k in s.drawn)==pytest.approx(1)
    assert s.of('clothes').value==pytest.approx(wanted[(1,)]/sum(wanted.values()))


def test_a_drawing_of_people_never_multiplies_a_person_with_her_copy():
    y = np.random.default_rng(0).normal(size=(4,3,2,5))
    w = np.array([[2,0,1,1.]])
    gram = products(y)
    found,people = components(gram, (3,2), w),[0,0,2,3]
    for S,g in gram.items():
        other = [g[a,b] for (m,a),(n,b) in product(enumerate(people), repeat=2) if a!=b]
        own = [g[a,a] for a in people]
        if S==(1,2): # the largest set: nothing else is in it
            assert found[S][0]==pytest.approx(np.mean(other)) and found[(0,1,2)][0]==pytest.approx(np.mean(own)-np.mean(other))


def by_loops(y):
    "The probability and the three line-ups, one case after the other"
    y = y/np.linalg.norm(y, axis=-1, keepdims=True)
    n,O,P,C,_ = y.shape
    fits = lambda v,w: v[1]!=w[1] if C>1 else v[0]!=w[0] if P>1 else True
    views = list(product(range(P), range(C)))
    nearer,won = [],{k: [] for k in LINE_UPS}
    for i,o,v,w in product(range(n), range(O), views, views):
        if not fits(v, w): continue
        q = y[i,o][v]
        s = lambda j,p: round(float(q @ y[j,p][w]), 6)
        others = [j for j in range(n) if j!=i]
        for p in range(O):
            if p==o: continue
            nearer += [(s(j,o)>s(i,p))+.5*(s(j,o)==s(i,p)) for j in others]
            won['kept'].append(s(i,o)>max(s(j,p) for j in others))
            won['changed'].append(s(i,p)>max(s(j,p) for j in others))
            won['lured'].append(s(i,p)>max(s(j,o) for j in others))
    return dict(nearer=np.mean(nearer), **{k: np.mean(v) for k,v in won.items()})


@pytest.mark.parametrize('shape', [(4,3,2,2),(3,2,3,1),(5,2,1,1),(3,2,1,2)])
def test_who_is_nearer_is_what_loops_count(shape):
    rng = np.random.default_rng(sum(shape))
    y = rng.normal(size=(*shape,6)) + rng.normal(size=(shape[0],1,1,1,6)) + rng.normal(size=(1,shape[1],1,1,6))
    r,wanted = redressed(y, 50),by_loops(y)
    for k,v in wanted.items():
        assert r.of(k).value==pytest.approx(v, abs=1e-12)
        assert 0<=r.of(k).low<=r.of(k).high<=1


def test_whole_numbers_tie_and_ties_are_half_a_win():
    y = np.random.default_rng(1).integers(-1, 2, size=(4,2,2,2,3))+.0
    y[(y==0).all(-1)] = 1
    wanted,r = by_loops(y),redressed(y, 5)
    assert {k: r.of(k).value for k in wanted}==pytest.approx(wanted)
