"The speed tables: what the runner makes of each script's figures, what it keeps, and the page that prints it"
import ast, importlib.util, json, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def speed(monkeypatch):
    "The runner as a module"
    monkeypatch.syspath_prepend(str(ROOT/'benchmarks'))
    spec = importlib.util.spec_from_file_location('ccreid_benchmarks_speed', ROOT/'benchmarks'/'speed.py')
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    return mod


def test_the_page_names_the_parts_of_the_runner(speed):
    source = ''.join(''.join(c['source'])+'\n' for c in json.loads((ROOT/'nbs'/'speed.ipynb').read_text())['cells'] if c['cell_type']=='code')
    made = next(o for o in ast.parse(source).body if isinstance(o, ast.Assign) and o.targets[0].id=='PARTS')
    assert [k.arg for k in made.value.keywords]==list(speed.PARTS)


def test_every_part_has_its_script(speed):
    assert {script for script,*_ in speed.PARTS.values()} <= {p.name for p in (ROOT/'benchmarks').glob('*.py')}


def test_search_stands_beside_the_product_and_the_exact_one(speed):
    res = json.loads((ROOT/'benchmarks'/'results'/'search.json').read_text())
    exact,*others = speed.search(res)
    assert exact['ours_over_floor']==round(res['engines'][0]['over_product'], 2)<1.2 and exact['peer']=='' and '1,000,000' in exact['size']
    assert [o['peer'] for o in others]==['exact']*len(others)
    for o,r in zip(others, res['engines'][1:]): assert o['peer_over_ours']==round(res['engines'][0]['cpu_ms']/r['cpu_ms'], 2)


def test_kept_figures_are_whole(speed):
    kept = json.loads((ROOT/'benchmarks'/'results'/'speed.json').read_text())['parts']
    assert set(kept) <= set(speed.PARTS)
    for name,part in kept.items():
        assert part['rows'] and part['processor'] and part['when'], name
        for r in part['rows']:
            assert r['seconds']>0 and all(r[k] is None or r[k]>0 for k in ('peer_over_ours','ours_over_floor','mib','peer_mib')), (name, r)
            assert bool(r['peer'])==(r['peer_over_ours'] is not None) and bool(r['floor'])==(r['ours_over_floor'] is not None), (name, r)


def test_ratios_are_of_ours(speed):
    r = speed.row('x', '1', 2., 'other', 5., 'least', 1.)
    assert (r['peer_over_ours'], r['ours_over_floor'])==(2.5, 2.)
    assert speed.row('x', '1', 2.)['peer_over_ours'] is None


def test_the_strongest_peer_stands_in_the_table(speed):
    res = dict(sizes=[dict(size='a', queries=10, gallery=20, dim=3)],
               rows=[dict(size='a', what=w, cpu_seconds=s) for w,s in (('matrix product', 1.), ('retrieval_metrics (features)', 1.1),
                     ('metrics_from_distances (ready matrix)', .1), ('plain loop (ready matrix)', 4.), ('torchmetrics, per query', 2.))])
    whole,ready = speed.evaluation(res)
    assert whole['peer']=='product, torchmetrics, per query' and whole['peer_over_ours']==round(3/1.1, 2) and whole['ours_over_floor']==1.1
    assert ready['peer_over_ours']==20 and ready['floor']==''
    rows = [dict(source=[8,4], what=w, cpu_ms=ms, apart=far) for w,ms,far in (('Pillow', 2., 0), ('read_image (ours)', 2.1, 0), ('read_image, by PyTorch (ours)', 1., .1), ('Pillow, scaled', .5, 4.),
            ('simplejpeg', 1.5, .1), ('ImageCache (ours)', .01, 0), ('the file alone', .02, None))]
    plain,fast,cached,cut = speed.decoding(dict(rows=rows, network=[4,2]))
    assert (fast['what'], fast['peer'], fast['peer_over_ours'])==('a JPEG, resized by PyTorch', 'Pillow', 2)
    assert plain['peer']=='simplejpeg' and cached['peer_over_ours']==200 and 'not offered' in cut['what'] and cut['peer_over_ours']==4


def test_the_fastest_way_to_the_masks_stands_in_the_table(speed):
    ms = dict(masks=2., forward_distances=10., distances=20., hatrip=25., plain_loss=50.) | {'masks,_plain': 4., 'masks,_pytorch-metric-learning': 3.}
    masks,loss = speed.masks(dict(loss=[dict(n=8, dim=2, cpu_ms=ms)]))
    assert (masks['peer'], masks['peer_over_ours'], masks['ours_over_floor'])==('pytorch-metric-learning', 1.5, .2)
    assert (loss['peer'], loss['peer_over_ours'], loss['ours_over_floor'])==('plain', 2., 1.25)


def test_training_images_of_each_way_stand_beside_pillow(speed):
    rates = dict(source=[2,1], network=[4,2], kind='jpg', cpu_plain=10., cpu_cached=20., cpu_fast=15., cpu_fast_cached=40.)
    rows = [*speed.batches(dict(rates=[dict(rates, huge_pages=False), dict(rates, cpu_fast_cached=50., huge_pages=True)]))]
    assert [(r['what'].partition(': ')[2], r['peer_over_ours']) for r in rows]==[('cache', 2.), ('PyTorch', 1.5), ('cache, PyTorch', 4.), ('cache, PyTorch, large pages', 5.)]


def test_plain_refinement_and_plain_loss_are_ours(monkeypatch):
    "Peers that give something else would be no peers"
    import torch
    monkeypatch.syspath_prepend(str(ROOT/'benchmarks'))
    import hsal, refinement
    q,v,g,who = refinement.data(9, 3, 40, 16, 'cpu')
    assert refinement.plain(q, v, g, who%5).tolist()==refinement.refine(q, v, g, who%5).best.tolist()
    labels = [*hsal.make_labels(64, 'cpu').values()]
    labels[1][::7] = -1
    assert 'masks, plain' in hsal.mask_peers(labels)
    f = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hsal.plain_loss(f, *labels), hsal.hatrip_loss(f, *labels))
    labels[1][0] = labels[1][1]+1
    assert not torch.equal(hsal.plain_masks(*labels)[0], hsal.hard_positives(labels[0], labels[1].roll(1), labels[2]))


def called(speed, monkeypatch, *words):
    monkeypatch.setattr(sys, 'argv', ['speed.py', *map(str, words)])
    try: speed.main()
    except SystemExit as e: return e.code
    return 0


def test_a_part_is_run_kept_and_replaced(speed, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(speed, 'HERE', tmp_path)
    out,script = tmp_path/'speed.json',tmp_path/'large.py'
    script.write_text('import json, sys\nargs = sys.argv[1:]\nrow = dict(queries=1, gallery=2, dim=3, cpu=2. if "--quick" in args else 4., cpu_product=1., mib=5, full_matrix_gib=1)\n'
                      'open(args[args.index("--out")+1], "w").write(json.dumps(dict(rows=[row])))\n')
    read = lambda: json.loads(out.read_text())['parts']
    assert called(speed, monkeypatch, '--only', 'large', '--quick', '--out', out)==0
    assert read()['large']['rows'][0]['ours_over_floor']==2 and read()['large']['quick'] and read()['large']['processor']
    assert called(speed, monkeypatch, '--only', 'large,search', '--out', out)==1 # a script that is missing is said, and the others are run
    assert read()['large']['rows'][0]['ours_over_floor']==4 and list(read())==['large'] and 'search: no search.py: not run' in capfd.readouterr().out
    script.write_text('raise SystemExit(3)')
    before = out.read_text()
    assert called(speed, monkeypatch, '--only', 'large,masks', '--out', out)==1 and out.read_text()==before
    assert called(speed, monkeypatch, '--only', 'nothing', '--out', out)==2 and 'there are evaluation' in capfd.readouterr().err
