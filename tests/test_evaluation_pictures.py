"Pictures: what is drawn follows from the data"
import subprocess, sys
import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np, pandas as pd, pytest, torch
from matplotlib.colors import to_hex
from PIL import Image
from ccreid.evaluation.metrics import evaluate, retrieval_metrics
from ccreid.evaluation.protocols import CLOTHES_CHANGING, SAME_CLOTHES, STANDARD
from ccreid.evaluation.pictures import (activation, activation_map, choose_queries, plot_cmc, plot_training, plot_tsne, ranked_list, ranked_rows)
from ccreid.evaluation.ranked_lists import COLOURS, RULES

@pytest.fixture
def people(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for p in range(5):
        for c in range(3):
            for i in range(3):
                path = tmp_path/f'{p}_{c}_{i}.png'
                Image.fromarray(rng.integers(0, 255, (16, 8, 3), dtype=np.uint8)).save(path)
                rows.append(dict(path=str(path), identity=p, camera=c, clothes=2*p + (c == 2) if i else -1, split='test'))
    rows.append(rows[0] | dict(identity=-2))
    return pd.DataFrame(rows, index=np.arange(len(rows))*2 + 100), torch.from_numpy(rng.normal(size=(len(rows), 6))).float().round()

@pytest.mark.parametrize('protocol', [STANDARD, SAME_CLOTHES, CLOTHES_CHANGING], ids=lambda p: p.name)
def test_lists_agree_with_metrics(people, protocol):
    "Ranks of right images in the full list give the very AP of the metrics, ties included"
    table, f = people
    m = retrieval_metrics(f, f, table, table, protocol)
    lists = dict(zip(table.index, ranked_rows(f, f, table, table, protocol, count=len(table))))
    junk = protocol.junk(table, table)
    for row, ap in zip(m.query_rows, m.ap.tolist()):
        found = lists[row]
        ranks = found['rank'][found.kind == 'right'].to_numpy()
        assert np.mean(np.arange(1, len(ranks)+1)/ranks) == pytest.approx(ap, abs=1e-6)
        assert set(found.row[found.kind == 'junk']) == set(table.index[junk[table.index.get_loc(row)].numpy()])
    assert (lists[table.index[-1]].kind != 'right').all()                   # a distractor finds nobody

def test_ranked_list_draws_every_row_and_mark(people):
    table, f = people
    m = retrieval_metrics(f, f, table, table, STANDARD)
    choice,before = choose_queries(m, 3, 'worst'),plt.get_fignums()
    fig = ranked_list(f, f, table, table, STANDARD, choice, count=7)
    assert len(fig.axes) == 3*8 and choice.why in fig.get_suptitle()
    lists = ranked_rows(f[table.index.get_indexer(choice.rows)], f, table.loc[choice.rows], table, STANDARD, 7)
    for line, found in zip(np.array(fig.axes).reshape(3, 8), lists):
        for ax, r in zip(line[1:], found.itertuples()):
            assert to_hex(ax.spines['left'].get_edgecolor()) == COLOURS[r.kind]
            assert ax.get_title() == ('junk' if r.kind == 'junk' else f"{r.rank} {dict(right='✓', wrong='✗')[r.kind]}")
            assert ax.get_xlabel() == f'{r.distance:.3f}'
            assert np.array_equal(ax.images[0].get_array(), np.asarray(Image.open(table.path[r.row])))
            assert len(ax.patches) == (r.kind == 'junk')                    # hatched
    assert plt.get_fignums() == before                                      # nothing is left open
    fig.savefig(table.path.iloc[0] + '.png')

def test_ranked_list_with_short_galleries_and_own_images(people):
    table, f = people
    fig = ranked_list(f, f[:2], table, table[:2], STANDARD, image_of=lambda row: np.full((4, 2, 3), row['camera']*60, np.uint8))
    assert len(fig.axes) == 5*3
    with pytest.raises(ValueError, match='row 3 is not in the query table'): ranked_list(f, f, table, table, STANDARD, rows=[100, 3])
    with pytest.raises(ValueError, match='2 and 46 features for 46 queries'): ranked_list(f[:2], f, table, table, STANDARD)

def test_choices(people):
    table, f = people
    m = evaluate(f, table, CLOTHES_CHANGING)
    ap = pd.Series(m.ap.numpy(), index=m.query_rows)
    for rule in RULES:
        for n in (1, 2, 7, 10**6):
            c = choose_queries(m, n, rule, seed=3)
            assert len(set(c.rows)) == min(n, m.queries) and all(isinstance(r, int) for r in c.rows)
            assert c.why.startswith(f'{min(n, m.queries)} of {m.queries} queries') and f'{ap[c.rows].max():.2f}' in c.why
    assert ap[choose_queries(m, 5, 'best').rows].tolist() == sorted(ap, reverse=True)[:5]
    assert ap[choose_queries(m, 5, 'worst').rows].tolist() == sorted(ap)[:5]
    low, high = sorted(ap)[len(ap)//2 - 3], sorted(ap)[len(ap)//2 + 3]
    assert all(low <= v <= high for v in ap[choose_queries(m, 3, 'median').rows])
    spread = ap[choose_queries(m, 4, 'spread').rows].tolist()
    assert spread[0] == ap.min() and spread[-1] == ap.max() and spread == sorted(spread)
    assert choose_queries(m, 5, 'random', 1).rows != choose_queries(m, 5, 'random', 2).rows
    with pytest.warns(UserWarning): none = retrieval_metrics(f[:1], f[-1:], table[:1], table[-1:], STANDARD)
    with pytest.raises(ValueError, match='nothing to choose'): choose_queries(none)

def test_cmc_curves(people):
    table, f = people
    ms = {p.name: evaluate(f, table, p) for p in (STANDARD, CLOTHES_CHANGING)}
    lines = plot_cmc(ms, upto=9).axes[0].lines
    assert len(lines) == 2 and lines[0].get_linestyle() != lines[1].get_linestyle()
    for line, m in zip(lines, ms.values()): assert np.allclose(line.get_ydata(), 100*m.cmc[:9].numpy()) and f'{100*m.mAP:.1f}' in line.get_label()
    assert len(plot_cmc(ms, upto=1000).axes[0].lines[0].get_xdata()) == len(table)

def test_training_curves():
    h = [dict(epoch=3, loss=1., seconds=9), dict(epoch=4, loss=float('nan'), extra='text', **{'clothes-changing mAP': .5})]
    fig = plot_training(h)
    assert [[l.get_label() for l in ax.lines] for ax in fig.axes] == [['loss'], ['clothes-changing mAP']]
    assert fig.axes[1].lines[0].get_xydata().tolist() == [[4, 50]]
    assert len(plot_training([dict(loss=2.)]).axes) == 1
    with pytest.raises(ValueError, match='no numbers'): plot_training([dict(epoch=1, name='x')])

def test_tsne_colours_and_markers(people):
    table, f = people
    fig = plot_tsne(f, table, people=3)
    groups = fig.axes[0].collections
    assert len(groups) == 3*3                                               # three people, two outfits and unknown clothes each
    assert sum(len(g.get_offsets()) for g in groups) == 27
    assert len({to_hex(g.get_facecolor()[0]) for g in groups}) == 3
    with pytest.raises(ValueError, match='too few'): plot_tsne(f[:3], table[:3])

def test_activation_restores_the_model_and_finds_the_spot():
    class Net(torch.nn.Module):
        def forward(self, x):
            assert not self.training
            if x.shape[0] == 9: raise RuntimeError('no')
            m = torch.zeros(len(x), 2, 4, 2); m[:, 1, 3, 0] = -5             # a large negative answer is an answer
            return dict(map=m)
    net = Net().train()
    heat = activation(net, torch.zeros(2, 3, 16, 8))
    assert heat.shape == (2, 16, 8) and net.training
    y, x = divmod(heat[0].argmax().item(), 8)
    assert y >= 12 and x < 4
    with pytest.raises(RuntimeError): activation(net, torch.zeros(9, 3, 16, 8))
    assert net.training
    assert len(activation_map(net, torch.rand(2, 3, 16, 8)).axes) == 4 and len(activation_map(net, torch.rand(3, 16, 8)).axes) == 2
    net.preprocessing = type('P', (), dict(mean=(.5, .5, .5), std=(.25, .25, .25)))()
    assert np.allclose(activation_map(net, torch.zeros(3, 16, 8)).axes[0].images[0].get_array(), .5)

def test_importing_pictures_does_not_import_matplotlib():
    code = "import sys, ccreid.evaluation.pictures; print([m for m in ('fastai','torchvision','matplotlib','sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
