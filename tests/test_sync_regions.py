"The network in the shape of PISE: regions, poses, codes and layers by loops, what it may see, its file, its copies, its training script"
import json, runpy, sys
from pathlib import Path
import numpy as np, pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from PIL import Image
from ccreid.data.mannequins import LIP, MannequinWorld
from ccreid.data.mannequins.body import KEYPOINTS
from ccreid.generation.edits import SkipImage
from ccreid.generation.stand_ins import MannequinKeypoints, MannequinParser
from ccreid.registry import rows_of
from ccreid.sync_person_cloud.redrawing import (RegionSynthesizer, codes_in_training, filled_in, grey_levels, hide, prepared, redraw,
    redrawing_loss)
from ccreid.sync_person_cloud.regions import (REGIONS, WORN, RegionNetwork, RegionNorm, SpatialNorm, fill_missing, mean_worn, pose_maps,
    region_means, region_network, regions_of, save_region_network, worn_of)
from ccreid.sync_person_cloud.synthesis import Template, drawn_templates

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT/'ccreid/assets/region_network.safetensors'
shipped = pytest.mark.skipif(not SHIPPED.is_file(), reason='no weights are shipped')

@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return RegionNetwork().eval()

def ready(drawn): return prepared([m.image for m in drawn], [m.parsing for m in drawn], [m.keypoints for m in drawn])

@pytest.fixture(scope='module')
def people():
    world = MannequinWorld(identities=4, outfits=2, cameras=3, domain='market', seed=12)
    return ready([world.render(i, camera=i%3) for i in range(4)]),ready([world.render(i, 1, (i+1)%3) for i in range(4)])

# --- regions, poses and codes

def test_regions_are_eight_and_every_class_of_lip_is_in_one():
    assert len(REGIONS)==8 and sorted(sum(map(list, REGIONS.values()), []))==sorted(LIP)
    maps = regions_of(np.arange(20, dtype=np.uint8).reshape(1, 4, 5))
    for c,name in enumerate(LIP):
        assert [r for r,names in enumerate(REGIONS.values()) if name in names]==maps[0,:,c//5,c%5].nonzero().flatten().tolist()
    assert [list(REGIONS)[i] for i in WORN]==['top','bottom','shoes']

@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(2, 9))
def test_pose_maps_by_loops(seed, h, w):
    points = np.random.default_rng(seed).uniform(-.2, 1.2, (2, 33, 4)).astype(np.float32)
    got = pose_maps(points, (h, w), .1)
    joint = {n: i for i,n in enumerate(KEYPOINTS)}
    for b,k,name in ((0, 0, 'nose'), (1, 3, 'left_ear'), (1, 16, 'right_ankle'), (0, 17, None)):
        x,y,_,v = points[b,joint[name]] if name else points[b,[joint['left_shoulder'],joint['right_shoulder']]].mean(0)
        for i in range(h):
            for j in range(w):
                want = v*np.exp(-((x*w-j-.5)**2+(y*h-i-.5)**2)/(2*(.1*h)**2))
                assert got[b,k,i,j].item()==pytest.approx(float(want), abs=1e-4)

@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_codes_are_means_and_the_worn_ones_stand_in(seed):
    g = np.random.default_rng(seed)
    labels = g.integers(0, 8, (1, 6, 4))
    maps,f = F.one_hot(torch.from_numpy(labels), 8).movedim(-1, 1).float(),torch.from_numpy(g.normal(size=(1, 3, 6, 4))).float()
    means,filled = region_means(f, maps)
    for r in range(8):
        cells = [f[0,:,i,j] for i in range(6) for j in range(4) if labels[0,i,j]==r]
        assert filled[0,r]==len(cells)
        if cells: assert torch.allclose(means[0,r], torch.stack(cells).mean(0), atol=1e-5)
    worn = [f[0,:,i,j] for i in range(6) for j in range(4) if labels[0,i,j] in WORN]
    mean = torch.stack(worn).mean(0) if worn else torch.zeros(3)
    assert torch.allclose(mean_worn(means, filled)[0,0], mean, atol=1e-5)
    whole = fill_missing(means, filled)
    for r in range(8): assert torch.allclose(whole[0,r], means[0,r] if filled[0,r] else mean, atol=1e-5)

# --- layers

def test_a_region_norm_by_loops():
    torch.manual_seed(1)
    norm,x,c,labels = RegionNorm(4, 5),torch.randn(2, 4, 4, 3),torch.randn(2, 8, 5),torch.randint(0, 8, (2, 4, 3))
    torch.nn.init.normal_(norm.bias)
    y = norm(x, F.one_hot(labels, 8).movedim(-1, 1).float(), c)
    for b in range(2):
        for d in range(4):
            mean,std = x[b,d].mean(),(x[b,d].var(correction=0)+1e-5).sqrt()
            for i in range(4):
                for j in range(3):
                    r = labels[b,i,j]
                    told = c[b,r]@norm.weight[r]+norm.bias[r]
                    assert y[b,d,i,j].item()==pytest.approx(((x[b,d,i,j]-mean)/std*(1+told[d])+told[4+d]).item(), abs=1e-4)

def test_a_spatial_norm_treats_all_channels_alike():
    torch.manual_seed(2)
    norm,x,other = SpatialNorm(3),torch.randn(1, 5, 4, 4),torch.randn(1, 3, 4, 4)
    told = norm.told(other)
    want = F.instance_norm(x)*(1+told[:,:1])+told[:,1:]
    assert torch.allclose(norm(x, other), want, atol=1e-6)

def test_the_network_is_small():
    assert .5e6<=sum(p.numel() for p in RegionNetwork().parameters())<=1e6

# --- what it may see

def test_the_persons_own_clothes_are_not_seen_and_the_rest_is_kept(net, people):
    (images,regions,pose),clothes = people
    here = worn_of(regions)
    strange = torch.where(here>0, torch.rand_like(images)*2-1, images)
    one,two = (redraw(net, (o,regions,pose), clothes) for o in (images, strange))
    assert torch.allclose(one, two, atol=1e-5) and torch.equal(torch.where(here>0, 0., one), torch.where(here>0, 0., images))
    assert hide(images, regions)[here.expand_as(images)>0].abs().max()==0

def test_only_codes_of_clothes_come_from_the_other_picture(net, people):
    person,(images,regions,_) = people
    here = worn_of(regions).expand_as(images)>0
    far = F.max_pool2d(worn_of(regions), 21, 1, 10).expand_as(images)<1         # beyond what the encoder sees of a cell of clothes
    same = redraw(net, person, (torch.where(far, -images, images), regions))
    assert torch.allclose(same, redraw(net, person, (images,regions)), atol=1e-5)
    other = redraw(net, person, (torch.where(here, -images, images), regions))
    assert (other-same).abs().max()>1e-3

def test_lost_codes_and_the_loss_draw_by_the_generator(net, people):
    images,regions,pose = people[0]
    one,two,three = (codes_in_training(net, images, regions, torch.Generator().manual_seed(s), .5) for s in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, three)
    keep = [r for r in range(8) if r not in WORN]
    assert torch.equal(one[:,keep], three[:,keep])
    loss = redrawing_loss(net, images, regions, pose, torch.Generator().manual_seed(0)); loss.backward()
    assert loss>0 and all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    net.zero_grad()

def test_filled_regions_and_grey_levels_by_loops(people):
    (images,regions,_),(other,theirs,_) = people
    made = filled_in((images,regions), (other,theirs))
    for b in range(len(images)):
        worn = other[b][:,worn_of(theirs)[b,0]>0].mean(1)
        for r in WORN:
            where = regions[b,r]>0
            if not where.any(): continue
            want = other[b][:,theirs[b,r]>0].mean(1) if theirs[b,r].any() else worn
            assert torch.allclose(made[b][:,where], want[:,None].expand(-1, where.sum()), atol=1e-4)
    a,b = torch.zeros(1, 3, 2, 2),torch.zeros(1, 3, 2, 2); b[0,:,0,0] = 2/255*3; b[0,0,1,1] = 1.
    assert grey_levels(a, b, torch.tensor([[[[1.,1],[0,0]]]]))==pytest.approx(1.5)

# --- file

def test_weights_go_into_a_file_and_back_and_others_are_refused(net, tmp_path):
    save_region_network(net, tmp_path/'n.safetensors', dict(steps=5))
    assert (tmp_path/'n.safetensors').stat().st_size<2e6
    again = region_network(tmp_path/'n.safetensors')
    assert again.about==dict(steps=5) and not again.training
    for k,v in net.state_dict().items(): assert torch.equal(again.state_dict()[k], v.half().float())
    save_region_network(RegionNetwork(code=32), tmp_path/'other.safetensors', {})
    with pytest.raises(ValueError, match='region network') as e: region_network(tmp_path/'other.safetensors')
    assert '\n' not in str(e.value)
    with pytest.raises(FileNotFoundError, match='no weights at'): region_network(tmp_path/'none.safetensors')
    data = bytearray((tmp_path/'n.safetensors').read_bytes()); data[-1] ^= 1; (tmp_path/'bad.safetensors').write_bytes(data)
    with pytest.raises(ValueError, match='bad.safetensors'): region_network(tmp_path/'bad.safetensors')

# --- copies

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    return MannequinWorld(identities=(2,0,2), images=1, seed=4).write(tmp_path_factory.mktemp('w')/'world', layout='prcc')

def test_copies_have_the_size_of_their_source_and_change_clothes_alone(net, world):
    rows = world.train.to_dict('records')[:3]
    images = [Image.open(r['path']).convert('RGB') for r in rows]
    parser = MannequinParser()
    made = RegionSynthesizer(net, parser, MannequinKeypoints())(images, drawn_templates(3), [0]*3, rows=rows)
    for im,new,labels in zip(images, made, parser(images, rows)):
        where = worn_of(regions_of(labels[None]))[0,0].bool().numpy()
        a,b = np.asarray(im),np.asarray(new)
        assert a.shape==b.shape==(128,64,3) and (a==b).all(-1)[~where].all() and (a!=b).any(-1)[where].mean()>.9

def test_templates_that_do_not_know_their_regions_are_parsed_and_nobody_is_survived(net, world):
    rows = world.train.to_dict('records')[:1]
    images,template = [Image.open(rows[0]['path']).convert('RGB')],drawn_templates(1)[0]
    true,asked = MannequinParser()(images, rows)[0],[]
    class Parser:
        def __call__(self, images, rows=None):
            if rows is None: asked.append(images[0]); return [template.labels]
            return [true]
    class Points:
        def __init__(self, found): self.found = found
        def __call__(self, images, rows=None): return [self.found]
    points = MannequinKeypoints()(images, rows)[0]
    bare = Template(template.name, template.text, template.image)
    def make(t, found): return np.asarray(RegionSynthesizer(net, Parser(), Points(found))(images, [t], [0], rows=rows)[0])
    assert (make(template, points)==make(bare, points)).all() and len(asked)==1
    assert (make(template, points[None].repeat(2, 0))==make(template, points)).all()
    assert make(template, None).shape==(128,64,3)
    with pytest.raises(ValueError, match='a has none'): make(Template('a', 'a coat'), points)
    true = np.zeros_like(true)
    found, = RegionSynthesizer(net, Parser(), Points(points))(images, [template], [0], rows=rows)
    assert isinstance(found, SkipImage)

def test_a_templates_regions_are_no_part_of_its_name_or_of_a_job():
    from ccreid.sync_person_cloud.synthesis import MannequinSynthesizer, Reclothing
    bank = drawn_templates(3)
    bare = [Template(t.name, t.text, t.image) for t in bank]
    assert bank==bare and repr(bank)==repr(bare)
    assert Reclothing(MannequinSynthesizer(), bank).settings==Reclothing(MannequinSynthesizer(), bare).settings

# --- the script

def test_the_script_trains_goes_on_and_tells(tmp_path, monkeypatch, capsys):
    "The same arguments again: nothing is drawn or trained anew, and the file is the same; more steps go on from there"
    def call(*more):
        monkeypatch.setattr(sys, 'argv', ['x','--people','16','--batch','4','--no-bf16','--work',str(tmp_path/'w'),
                                          '--out',str(tmp_path/'n.safetensors'), *more])
        threads = torch.get_num_threads()
        try: runpy.run_path(str(ROOT/'benchmarks/train_region_network.py'), run_name='__main__')
        finally: torch.set_num_threads(threads)
        return (tmp_path/'n.safetensors').read_bytes(),capsys.readouterr().out
    first,out = call('--steps','3','--measured','0')
    assert 'people-park-4.pth' in out and 'step 3' in out
    again,out = call('--steps','3','--measured','0')
    assert again==first and 'people-park' not in out and 'step' not in out
    more,out = call('--steps','4','--measured','2')
    about = region_network(tmp_path/'n.safetensors').about
    assert more!=first and 'step 4' in out and about['steps']==4 and about['people']==16
    for m in about['measures'].values():
        assert m['people']==2 and set(m['own'])=={'network','filled'} and set(m['other'])=={'network','filled','unchanged'} and 0<m['same_region']<=1

# --- what is shipped

@shipped
def test_the_shipped_weights_are_small_and_say_how_good_they_are():
    assert SHIPPED.stat().st_size<2e6
    about = region_network().about
    assert about['made_by']=='benchmarks/train_region_network.py' and set(about['measures'])=={'its own places', "a benchmark's places"}
    for m in about['measures'].values():
        assert m['other']['network']<m['other']['unchanged'] and m['colours']['share']['all']>2*m['colours']['chance']['all']

@shipped
def test_the_shipped_weights_draw_the_colours_of_the_other_clothes():
    world = MannequinWorld((12,0,0), outfits=1, cameras=6, images=1, domain='station', seed=77)
    people,others = ([world.render((i+k)%12, camera=(i+k)%6, frame=k) for i in range(12)] for k in (0,1))
    right = ready([world.render(i, camera=i%6, garments=list(others[i].garments)) for i in range(12)])
    person,clothes = ready(people),ready(others)
    same = worn_of(person[1])*(person[1]*right[1]).sum(1, keepdim=True)
    made = redraw(region_network(), person, clothes)
    assert grey_levels(made, right[0], same)<.6*grey_levels(person[0], right[0], same)

@shipped
def test_the_row_of_the_network_is_the_full_one_with_its_copies():
    row, = [row for row in rows_of('sync_person_cloud', 'all') if row.part=='own-network']
    assert row.changes==dict(generated='spc-regions') and row.base=='Ca + Ci + Cs' and len(row.seeds)==2

@shipped
def test_the_kind_of_the_network_makes_four_copies_of_everybody(world, tmp_path):
    from ccreid.registry import All, resolve
    made = resolve(All('images')['spc-regions'].miniature)(world, tmp_path/'copies').train
    new = made[made.generated_by=='SPC']
    assert len(new)==4*len(world.train) and set(new.groupby('source').garment.nunique())=={4}
    assert not set(new.path.map(lambda p: Path(p).read_bytes())) & set(world.train.path.map(lambda p: Path(p).read_bytes()))
