"""Chains, their options and rows: what is registered, and that old results keep their names"""
import importlib.metadata
import pytest
from ccreid import registry
from ccreid.recipes import Recipe, recipe
from ccreid.registry import CHAINS, All, Chain, Option, Row
from ccreid.values import number

PINNED = { # Hashes of the recipes of all rows whose figures are kept in benchmarks/results
    'foundations: identity loss': 'fe303a4d14',
    'foundations: identity + triplet': 'c881943bf7',
    'foundations: CAL': '3351a2bf73',
    'hsgl: CAL': '3351a2bf73',
    'hsgl: CAL + HSAL': 'abbc37234a',
    'hsgl: CAL + SHSG': 'c879f12a6c',
    'hsgl: CAL + SHSG + HSAL': 'ede1c8a587',
    'hsgl: FIRe²': 'fc36b1d65d',
    'hsgl: FIRe² + HSAL': '0a76dc8fd7',
    'hsgl: FIRe² + SHSG': '583695eaca',
    'hsgl: FIRe² + SHSG + HSAL': '0c441c686e',
    'hsgl: FIRe² + CHPSG': '7910689922',
    'hsgl: FIRe² + CHPSG + SHSG + HSAL': 'b82ef15005',
    'hsgl: CAL + perfect SHSG + HSAL': '1b2e6970b2',
    'hsgl: AIM': 'a20bacfd03',
    'hsgl: AIM + HSAL': '0fa96c1fa8',
    'hsgl: AIM + SHSG': '8c06b5f1ef',
    'hsgl: AIM + SHSG + HSAL': '1a6b819d59',
    'hsgl: FIRe² + CHPSG + SHSG': 'aba58e32a2',
    'hsgl: CAL + HSAL, α = 0': 'b457b31648',
    'hsgl: CAL + SHSG + HSAL, α = 0': 'def094198b',
    'hsgl: FIRe² + real images first': 'cd72c2ea0a',
    'hsgl: CSSC': '4053753fad',
    'hsgl: CSSC + HSAL': '12d60847a8',
    'hsgl: CSSC + SHSG': 'cbb966159c',
    'hsgl: CSSC + SHSG + HSAL': '20cef38ce8',
    'hsgl: CSSC + CHPSG': '6ab6fb9a58',
    'hsgl: CSSC + CHPSG + SHSG + HSAL': '4b9691c4fd',
    'hsgl: CAL, by epoch': '3351a2bf73',
    'hsgl: CAL + HSAL, by epoch': 'abbc37234a',
    'hsgl: CAL + SHSG + HSAL, by epoch': 'ede1c8a587',
    'hsgl: CAL + SHSG + HSAL, α = 0, λ = 0.03': '758b8469ec',
    'hsgl: CAL + SHSG + HSAL, α = 0, λ = 0.3': '5d985bb2a3',
    'hsgl: CAL + SHSG + HSAL, α = 0, λ = 1': '62d04e7c8d',
    'hsgl: CAL + SHSG + HSAL, α = 0.05, λ = 0.03': '7ef8215a5b',
    'hsgl: CAL + SHSG + HSAL, α = 0.05, λ = 0.3': 'd07da404a9',
    'hsgl: CAL + SHSG + HSAL, α = 0.05, λ = 1': '3518ef832d',
    'hsgl: CAL + SHSG + HSAL, α = 0.1, λ = 0.03': 'f88b098ca3',
    'hsgl: CAL + SHSG + HSAL, α = 0.1, λ = 0.1': '3d7bd1933e',
    'hsgl: CAL + SHSG + HSAL, α = 0.1, λ = 0.3': 'e36cd3e9da',
    'hsgl: CAL + SHSG + HSAL, α = 0.1, λ = 1': '890ba6ebc8',
    'hsgl: CAL + SHSG + HSAL, α = 0.2, λ = 0.03': 'c3b07c78c4',
    'hsgl: CAL + SHSG + HSAL, α = 0.2, λ = 0.1': '839dff9e04',
    'hsgl: CAL + SHSG + HSAL, α = 0.2, λ = 0.3': '28f1dfdd40',
    'hsgl: CAL + SHSG + HSAL, α = 0.2, λ = 1': '6c931478ab'}

def test_the_recipes_of_kept_results_have_the_hashes_they_had():
    now = {f'{chain}: {row.name}': row.recipe.hash for chain in ('foundations','hsgl') for row in CHAINS[chain]}
    assert {k: now.get(k) for k in PINNED}==PINNED
