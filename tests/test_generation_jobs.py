"Kinds of images, parts and stand-ins as chains register them, and inpainting with a text for each image"
import hashlib, json
from pathlib import Path

import pytest
from PIL import Image

from ccreid import registry
from ccreid.data.mannequins import DECLARED, PERFECT, MannequinWorld
from ccreid.generation import jobs
from ccreid.generation.expansion import expand
from ccreid.generation.jobs import KINDS, PARTS, Networks, StandIns, add_samples, generate, load_object, models_for, parts, read_generated
from ccreid.generation.recloth import Recloth
from ccreid.generation.stand_ins import MannequinInpainter, MannequinParser
from ccreid.hsgl.coarse import coarse_edit
from ccreid.registry import Chain, Images, Option, Part
from ccreid.values import whole


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return MannequinWorld(identities=(3,0,2), images=1, size=(64,32), seed=4).write(tmp_path_factory.mktemp('w')/'w', layout='prcc')

class Painter:
    "A stand-in with imperfections, and one argument more"
    def __init__(self, imperfections=PERFECT, size=3): self.imperfections,self.size = imperfections,size
class Plain:
    "A stand-in whose first argument is something else"
    def __init__(self, size=7): self.size = size

loaded = []
def load_brush(networks):
    loaded.append('brush')
    return networks.names['brush'],networks.where,networks.batch
def load_easel(networks): return 'easel',networks.brush

def make_dots(dataset, out, models, *, dots, tint=None, **kwargs):
    def edit(images, rows, variants, seeds): return [Image.new('RGB', im.size, (v,0,0)) for im,v in zip(images, variants)]
    edit.settings = dict(dots=dots, tint=tint)
    return expand(dataset.train, edit, out, dots, accept='plain', generated_by='dots', **kwargs)

@pytest.fixture
def chain():
    dots = Images('dots', job=f'{__name__}:make_dots', options=dict(dots=Option(whole(1,9), 2), tint=Option(whole(), None)))
    lines = Images('lines', job=print, options=dict(lines=Option(whole(), 1)))
    brushes = dict(brush=Part('hair', load_brush, Painter), easel=Part('', load_easel, Plain), canvas=Part('', load_easel))
    yield registry.register(Chain('art', images=dict(dots=dots, lines=lines, small=Images('in miniature only', miniature=print)), parts=brushes))
    registry.forget('art')


def test_kinds_are_those_with_a_job_and_only_while_their_chain_is_there(chain):
    assert {'dots','lines'}<=set(KINDS) and 'small' not in KINDS and KINDS['dots'].help=='dots'
    registry.forget('art')
    assert 'dots' not in KINDS and 'brush' not in parts() and set(PARTS)<=set(parts())

def test_a_part_is_loaded_once_when_it_is_asked_for_and_may_ask_for_others(chain):
    loaded.clear()
    n = Networks('cpu', 'fp16', 5, brush='silk')
    assert loaded==[] and n.names['easel']=='' and n.names['parser']==PARTS['parser'].weights
    assert n.easel==('easel', ('silk', dict(device='cpu', dtype=jobs.torch.float16), 5)) and n.brush is n.brush and loaded==['brush']
    assert not hasattr(n, 'violin') and not hasattr(n, '__deepcopy__')
    with pytest.raises(ValueError, match="no part 'violin' of the generators: there are parser, inpainter, "): Networks(violin='x')
    with pytest.raises(ValueError, match='fp16 or bf16'): Networks(precision='double')

def test_stand_ins_that_can_fall_short_get_the_imperfections_and_no_others(chain, data, capsys):
    s = models_for(data)
    assert isinstance(s, StandIns) and 'Drawn people' in capsys.readouterr().out
    assert (s.brush.imperfections, s.brush.size, s.easel.size)==(DECLARED, 3, 7) and s.brush is s.brush
    assert StandIns(PERFECT).brush.imperfections==PERFECT==StandIns(PERFECT).inpainter.imperfections
    assert isinstance(models_for(data, brush='silk'), Networks)
    with pytest.raises(ValueError, match='no stand-in for canvas') as e: s.canvas
    assert '\n' not in str(e.value)

def test_a_name_that_the_library_has_is_left_out_with_a_warning():
    registry.register(Chain('greedy', parts=dict(parser=Part('mine', load_brush), mine=Part('', load_brush))))
    try:
        with pytest.warns(UserWarning, match="part 'parser' of chain greedy"): known = parts()
    finally: registry.forget('greedy')
    assert known['parser'] is PARTS['parser'] and 'mine' in known

@pytest.mark.parametrize('kind, options, says', [
    ('dots', dict(lines=3), 'lines is an option of lines; dots has dots, tint'), ('lines', dict(dots=3), 'dots is an option of dots; lines has lines'),
    ('dots', dict(dots=10), 'dots: expected a whole number'), ('dots', dict(dots='x'), 'dots: expected'), ('small', {}, 'Unknown kind'), ('gan', {}, 'Unknown kind')])
def test_options_of_others_and_values_that_do_not_fit(chain, data, tmp_path, kind, options, says):
    with pytest.raises(ValueError, match=says) as e: generate(kind, data, tmp_path/'o', StandIns(), **options)
    assert '\n' not in str(e.value) and not (tmp_path/'o').exists()

def test_a_job_gets_its_defaults_and_the_rest_goes_to_the_expansion(chain, data, tmp_path):
    made = generate('dots', data, tmp_path/'o', StandIns(), tint=None, dots=None, limit=3, seed=5, progress=False)
    job = json.loads((tmp_path/'o'/'job.json').read_text())
    assert len(made)==3 and job['settings']==dict(dots=2, tint=None) and job['seed']==5
    whole_ = generate('dots', data, tmp_path/'o', StandIns(), seed=5, progress=False)
    assert len(whole_)==2*len(data.train) and len(add_samples(data, read_generated(tmp_path/'o', data)).train)==3*len(data.train)

def test_images_of_test_people_are_never_added_to_a_data_set(data, tmp_path):
    made = expand(data.query, coarse_edit(MannequinParser(), MannequinInpainter()), tmp_path/'o', 1, progress=False)
    assert set(made.split)==set(data.query.split)
    with pytest.raises(ValueError, match=f'{len(made)} generated images are of split query'): add_samples(data, made)
    with pytest.raises(ValueError, match='who is not in the training set'): add_samples(data, made.assign(split='train', identity=99))

def test_an_object_by_its_name():
    assert load_object('json:dumps') is json.dumps
    for bad in 'json','json:nothing','no_such_module:x',':x','':
        with pytest.raises(ValueError, match="'module:attribute'") as e: load_object(bad)
        assert '\n' not in str(e.value)


# a text for all, or for each

def listen(heard):
    def inpaint(images, masks, prompts, seeds, rows=None):
        heard.append(prompts)
        return [Image.new('RGB', im.size, (1,2,3+s%9)) for im,s in zip(images, seeds)]
    return inpaint

def batch(data, n=3):
    rows = data.train[:n].to_dict('records')
    return [Image.open(r['path']).convert('RGB') for r in rows],rows

def test_a_text_reaches_the_painter_as_it_is_and_leaves_no_note(data):
    heard,(images,rows) = [],batch(data)
    made = Recloth(MannequinParser(), listen(heard), 'a red coat')(images, rows, [0]*3, [1]*3)
    assert heard==['a red coat'] and all(isinstance(o, Image.Image) for o in made)

def test_a_function_gives_a_text_for_each_which_is_noted(data, tmp_path):
    heard = []
    def ask(rows, variants): return [f"{r['camera']}-{v}" for r,v in zip(rows, variants)]
    edit = Recloth(MannequinParser(), listen(heard), ask)
    made = expand(data.train, edit, tmp_path/'o', 2, batch=2, accept='plain', progress=False)
    assert made.prompt.tolist()==[f'{c}-{v}' for c,v in zip(made.camera, made.variant)]==[t for part in heard for t in part]
    with_real = add_samples(data, made)
    assert set(with_real.query.prompt)=={''}
    assert 'ask' in edit.settings['prompt'] and made.generated_by.unique().tolist()==['Recloth']
    ask.settings = dict(writer='v1')
    assert Recloth(MannequinParser(), listen([]), ask).settings['prompt']==dict(writer='v1')
    images,rows = batch(data)
    with pytest.raises(ValueError, match='3 images and 1 prompts'): Recloth(MannequinParser(), listen([]), lambda rows, variants: ['x'])(images, rows, [0]*3, [1]*3)

def test_a_refused_image_stays_refused_with_a_function(data):
    images,rows = batch(data)
    class Blind(MannequinParser):
        def __call__(self, images, rows=None): return [m*(i>0) for i,m in enumerate(super().__call__(images, rows))]
    first,*rest = Recloth(Blind(), listen([]), lambda rows, variants: ['x']*len(rows))(images, rows, [0]*3, [1]*3)
    assert 'no clothes found' in str(first) and all(notes==dict(prompt='x') for _,notes in rest)

def test_folders_that_were_made_before_are_found_again(tmp_path):
    "The description of the job and the names of its images are those of the first version"
    world = MannequinWorld(identities=(4,0,3), outfits=2, cameras=3, images=2, size=(64,32), seed=4).write(tmp_path/'prcc', layout='prcc')
    made = expand(world.train, coarse_edit(MannequinParser(), MannequinInpainter(DECLARED)), tmp_path/'chpsg', 1, progress=False)
    names = '\n'.join(sorted(Path(p).relative_to(tmp_path).as_posix() for p in made.path))
    assert json.loads((tmp_path/'chpsg'/'job.json').read_text())['hash']=='3d484ca0d6132116'
    assert hashlib.sha256(names.encode()).hexdigest()[:16]=='81470d35b4e961e7'
