"The images of DLCR's later rows: each kind is made, counted and trained on"
from dataclasses import replace
import pytest
from ccreid.dlcr.chain import IMAGES, chain
from ccreid.experiments import run_row
from test_dlcr_more import KINDS, LATER, MANY, places, quickly # fixtures among them

@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_images_is_made_and_trained_on(places, kind):
    row = next(r for r in LATER if r.changes.get('generated')==kind)
    sets,real = places['mannequins'],len(places['mannequins'][''].train)
    r = run_row(replace(row.recipe, epochs=1), sets, 0, 'cpu')
    many = {'dlcr-1': 1, 'dlcr-2': 2, 'dlcr-4': 4, 'dlcr-20': 20, 'dlcr-diffusion': 4, 'dlcr-guided': 4}.get(kind, MANY)
    if 'sifted' in kind: assert 0<r['train']['generated']<4*real
    else: assert r['train']['generated']==many*real
    if kind=='dlcr-target':
        made = sets[kind].train[sets[kind].train.generated_by!='']
        assert (made.clothes==made.target).all() and set(made.clothes)<=set(sets[''].train.clothes)

def test_as_many_pass_as_are_drawn_at_random(places):
    count = [sets.train.generated_by.ne('').sum() for sets in (places['mannequins'][k] for k in ('dlcr-sifted','dlcr-sifted-by-chance'))]
    assert count[0]==count[1]

def test_kinds_for_mannequins_are_none_of_the_command_line():
    assert all(IMAGES[k].job is None for k in KINDS) and set(KINDS)<={*chain.images}
