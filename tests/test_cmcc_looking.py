"What rows look at: distances, lists, attention and probes against loops, in a record and back, and the pictures made of it"
import json, math
from dataclasses import replace
import numpy as np, pytest, torch
from ccreid.baselines.two_stream import TwoStream
from ccreid.cmcc.figures import PANELS, _points, curves, looks_of, looks_table, plot_attention, plot_lists, plot_pairs
from ccreid.cmcc.looking import BINS, COUNT, QUERIES, attention, lists_of, look, on_clothes, pairs_of, probes_of, shown_rows
from ccreid.cmcc.miniature import confounded
from ccreid.cmcc.pia import PIANet
from ccreid.data.images import read_image
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.mannequins.writing import truth
from ccreid.data.samples import ReIDDataset
from ccreid.data.transforms import Preprocessing
from ccreid.evaluations import Features, evaluations_of
from ccreid.experiments import ChainResults
from ccreid.generation.parsing import clothes_mask
from ccreid.models.reid_model import ReIDModel, ask
from ccreid.registry import rows_of
from ccreid.runs import run

V2I = 'visible-to-infrared'

@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    world = MannequinWorld(identities=(4,0,4), outfits=2, cameras=4, infrared=(2,3), images=(2,2,1), size=(32,16), seed=5)
    return confounded(world.write(tmp_path_factory.mktemp('w')/'w', layout='mannequins'))

@pytest.fixture(scope='module')
def table(dataset): return dataset.query.reset_index(drop=True)

@pytest.fixture(scope='module')
def features(table): return torch.randn(len(table), 5, generator=torch.Generator().manual_seed(0))

def network(cls=PIANet, **kwargs):
    torch.manual_seed(0)
    net = cls('resnet_mini', classes=4, **kwargs)
    net.preprocessing = Preprocessing((32,16))
    return net.eval()

def cosine(a, b): return sum(x*y for x,y in zip(a, b))/math.sqrt(sum(x*x for x in a)*sum(y*y for y in b))

def pairs_in_loops(features, table):
    "Distance, and whether it is one person, of each visible image of outfit 0 and each infrared one of outfit 1"
    rows = list(zip(features.tolist(), table.itertuples()))
    for f,q in rows:
        for g,o in rows:
            if (q.modality,q.worn,o.modality,o.worn)==('visible',0,'infrared',1): yield 1-cosine(f, g), q, o

def test_pairs_are_those_of_the_loops(dataset, table, features):
    found = pairs_of(features, table, {V2I: dataset.protocols[V2I]})[V2I]
    for kind,same in (('positive',True), ('negative',False)):
        expected = [d for d,q,o in pairs_in_loops(features, table) if (q.identity==o.identity)==same]
        assert found[kind]['pairs']==len(expected) and found[kind]['mean']==pytest.approx(np.mean(expected), abs=1e-4)
        assert abs(np.array(found[kind]['counts'])-np.histogram(expected, BINS, (0,2))[0]).sum()<=2 # at an edge
    json.dumps(found)

def test_lists_are_the_nearest_of_fixed_queries(dataset, table, features):
    lists = lists_of(features, table, {V2I: dataset.protocols[V2I]}, dataset.root)[V2I]
    again = lists_of(-features.flip(0), table, {V2I: dataset.protocols[V2I]}, dataset.root)[V2I]
    assert len(lists)==QUERIES and [l['query'] for l in lists]==[l['query'] for l in again] # whatever they find
    names = lambda row: row.path.removeprefix(f'{dataset.root}/')
    for l in lists:
        near = sorted((d, names(o), q.identity==o.identity) for d,q,o in pairs_in_loops(features, table) if names(q)==l['query'])[:COUNT]
        assert l['found']==[n for _,n,_ in near] and l['kinds']==''.join('wr'[s] for *_,s in near)

def test_activation_on_clothes_is_the_ratio_of_two_means(table):
    paths,ratios = table.path[:3].tolist(),[]
    heat = torch.rand(3, 32, 16, generator=torch.Generator().manual_seed(1))
    for h,path in zip(heat.tolist(), paths):
        labels = truth(path).parsing
        mask = clothes_mask(labels)
        on = [h[y][x] for y in range(32) for x in range(16) if mask[y][x]]
        person = [h[y][x] for y in range(32) for x in range(16) if labels[y][x]]
        ratios.append((sum(on)/len(on))/(sum(person)/len(person)))
    assert on_clothes(heat, paths)==pytest.approx(sum(ratios)/3, abs=1e-4)
    assert on_clothes(heat[:0], []) is None

def test_attention_is_the_length_of_the_map_under_the_mask(table):
    net,rows = network(),table.iloc[:5]
    heat,mask = attention(net, rows, batch_size=2)
    from ccreid.data.batches import embedding_loader
    out = net(torch.cat(list(embedding_loader(rows, net.preprocessing))))
    assert torch.allclose(heat, (out['map'].pow(2).sum(1).sqrt()*out['mask_identity'][:,0]), atol=1e-4) and torch.allclose(mask, out['mask_clothes'][:,0], atol=1e-5)
    assert attention(network(ReIDModel), rows)[1] is None

def test_two_streams_are_told_the_modality(table):
    net = network(TwoStream)
    with torch.no_grad(): net.infrared_stem['conv1'][0].weight.mul_(-1)
    night = table[table.modality=='infrared'].iloc[:2]
    assert not torch.allclose(attention(net, night)[0], attention(net, night.assign(modality='visible'))[0], atol=1e-3)

def test_images_to_look_at_are_one_of_each_person_and_role(dataset, table):
    day,night = shown_rows(table, dataset.protocols[V2I], 2)
    assert day.identity.tolist()==night.identity.tolist() and len(day)==2
    assert set(day.modality)=={'visible'} and set(night.modality)=={'infrared'} and set(day.worn)=={0} and set(night.worn)=={1}
    assert [len(t) for t in shown_rows(table, dataset.protocols[V2I], 3, people=False)]==[3,3]
    assert [len(t) for t in shown_rows(table, dataset.protocols[V2I], 999)]==[4,4]

def test_probes_of_one_or_of_two_features(dataset, table):
    net = network()
    f = Features(net)(table)
    both,one = probes_of(net, f, table),probes_of(network(ReIDModel), f, table)
    assert [*both]==['f','f_clothes'] and [*one]==['f'] and both['f']==one['f']
    assert set(both['f'])=={'identity','clothes','modality'} and all(0<=v<=1 for p in both.values() for k in p.values() for v in k.values())
    assert probes_of(net, f, table.assign(clothes=table.clothes.where(table.index>5, -1)))['f']['modality']['chance']<1

def test_images_that_no_world_has_drawn(dataset, table, tmp_path):
    "On photographs the clothes are not known: no ratio, and all else"
    paths = []
    for i,p in enumerate(table.path):
        read_image(p).save(tmp_path/f'{i}.png'); paths.append(str(tmp_path/f'{i}.png'))
    photos = ReIDDataset('photos', tmp_path, table.assign(path=paths), {V2I: dataset.protocols[V2I]})
    results,_,seen = look(Features(network()), photos, photos.protocols, tmp_path/'seen')
    assert results=={} and seen['on_clothes']==dict(visible=None, infrared=None) and seen['maps'] and seen['probes']
    assert {p.name for p in (tmp_path/'seen').iterdir()}=={f'distances-{V2I}.png', f'lists-{V2I}.png', 'masks.png'}
    assert str(seen).startswith(f'{V2I}: positive pairs ') and len(str(seen).splitlines())==1
    with pytest.raises(ValueError, match='two modalities'): look(Features(network()), ReIDDataset('day', tmp_path, table[table.modality=='visible']), photos.protocols)

@pytest.fixture(scope='module')
def filled(dataset, tmp_path_factory):
    "A results file with one short run of PIA, as `reproduce` keeps it"
    rows = {row.name: row for row in rows_of('cmcc', 'all')}
    small = replace(rows['PIA'].recipe, epochs=2, identities=2, size=(32,16), start_epoch=1, milestones=(1,))
    found = evaluations_of(list(rows.values()), rows['PIA'], dataset, lambda kind: None)
    assert [*found]==['PIA: looks']
    _,record = run(small, dataset, 0, 'cpu', quiet=True, evaluations=found)
    file = tmp_path_factory.mktemp('r')/'cmcc.json'
    results = ChainResults(file, 'cmcc')
    for part in results.parts.values(): part.now = lambda row: (small.hash, 'world')
    assert results.parts['core'].add(dict(record, row='PIA', world='world'))
    results.parts['core'].read()
    return results,record

def test_a_record_holds_what_was_seen_and_gives_it_back(filled):
    results,record = filled
    seen, = looks_of(results, 'PIA')
    assert seen==json.loads(json.dumps(record['evaluated']['PIA: looks']['said']))
    plain, = results.of({r.name: r for r in results.rows}['PIA'])
    assert set(plain['protocols'])==set(record['protocols']) # looks add no figure of their own
    assert looks_of(results, 'CAL')==[]
    with pytest.raises(ValueError, match='does not look'): looks_of(results, 'AGW')

def test_tables_and_pictures_of_what_has_run_and_what_has_not(filled, dataset):
    results,_ = filled
    t = looks_table(results, ['CAL','PIA'])
    seen, = looks_of(results, 'PIA')
    assert t.seeds.tolist()==['not run',1] and t.loc['CAL'].drop('seeds').eq('').all()
    assert float(t.loc['PIA','positive pairs'])==pytest.approx(seen['pairs'][V2I]['positive']['mean'], abs=6e-4)
    assert float(t.loc['PIA','f_clothes: modality'])==pytest.approx(100*seen['probes']['f_clothes']['modality']['accuracy'], abs=.06)
    assert plot_pairs(results, ['CAL'])=='not run' and len(plot_pairs(results, ['CAL','PIA']).axes)==1
    image_of = lambda name: np.asarray(read_image(dataset.root/name))
    assert len(plot_lists(seen, image_of).axes)==QUERIES*(1+COUNT)
    assert len(plot_attention({'PIA': seen}, image_of).axes)==2*len(seen['maps'])

def test_curves_take_the_same_seeds_everywhere():
    rows = rows_of('cmcc', 'all')
    known = {row.name for row in rows}
    assert {name for *_,name in _points()}<=known and {p for p,*_ in _points()}==set(PANELS)
    class Some:
        def __init__(self): self.rows = rows
        def of(self, row):
            seeds = dict.fromkeys(('PIA, λ₁ = 0','PIA, λ₂ = 3'), (0,1)) | {'PIA': (0,1,2,3,4)}
            return [dict(seed=s, protocols={p: dict(R1=.1*s, mAP=0.) for p in (V2I,'infrared-to-visible')}) for s in seeds.get(row.name, ())]
    t = curves(Some())
    there = t[t.seeds>0]
    assert set(there.row)=={'PIA','PIA, λ₁ = 0','PIA, λ₂ = 3'} and set(there.seeds)=={2} and there[V2I].tolist()==pytest.approx([5.]*len(there))
    assert t[t.row=='PIA'].groupby('panel').value.first().to_dict()==dict(zip(PANELS, (55,.5,1.5,.9)))
