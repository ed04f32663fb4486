"""Which of the declared flaws of a stand-in a gate catches: precision and recall against the truth, beside dropping as many at random.

    python benchmarks/gate.py              120 images of 20 people, three variants inside a mask and two without one (a few minutes on a core)
    python benchmarks/gate.py --people 2   a look

The judges are the small backbone of the package, and a network trained with CAL on people of another world. The describers name what is shown, a garment in
odd colours by the nearest colour's name: one never errs, one has the declared lapses. Writes benchmarks/results/gate.json."""
import argparse, tempfile, time, warnings
from functools import partial
from pathlib import Path
import numpy as np
import ccreid.compat
from ccreid.data.mannequins import DECLARED, MannequinWorld, find_scene
from ccreid.files import to_json, write_whole
from ccreid.generation.expansion import expand
from ccreid.generation.gate import distances_to_source, off_parts, real_limit
from ccreid.generation.lapses import DECLARED_LAPSES, NO_LAPSES, MannequinDescriber
from ccreid.generation.painted import body_distance, true_flaws
from ccreid.generation.recloth import Recloth, noted
from ccreid.generation.sifting import against_truth, read_judge
from ccreid.generation.stand_ins import MannequinInpainter, MannequinParser
from ccreid.generation.wardrobe import random_clothes
from ccreid.recipes import build, recipe
from ccreid.training.embedding import embed

SHARE = .5 # Of real pairs, as `real_limit` has it

def painted(dataset, folder, masked, variants):
    "Images of a kind in made-up clothes"
    words,paint = random_clothes(dataset.train, 0),MannequinInpainter(DECLARED)
    def ask(rows, variants): return [words[(r['clothes']+1+v)%len(words)].text() for r,v in zip(rows, variants)]
    def plain(images, rows, variants, seeds):
        texts = ask(rows, variants)
        return noted(paint(images, None, texts, seeds, rows=rows), texts)
    edit = Recloth(MannequinParser(), paint, ask, 'paper') if masked else plain
    settings = None if masked else dict(painter=paint.settings, mask='none')
    return expand(dataset.train, edit, folder, variants, progress=False, settings=settings)

def trained(root, people, epochs):
    "A network that has seen other people"
    other = MannequinWorld((max(8, 2*people),0,2), images=2, size=(96,48), seed=8).write(root/'other', layout='prcc')
    learn = build(recipe('mannequins', 'cal', epochs=epochs), other, 0, 'cpu')
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs)
    return learn.model

def half_a_stranger(dataset):
    "Half of the mean distance between two people"
    world,people = find_scene(dataset.train.path.iloc[0])[0],range(dataset.train.identity.nunique())
    return .5*float(np.mean([body_distance(world.identity(i), world.identity(j)) for i in people for j in range(i)]))

def farther(distances, flawed):
    "Chance that an image with the flaw is farther from its original than one without: 0.5 says nothing"
    a,b = distances[flawed],distances[~flawed]
    return float(((a[:,None]>b).mean()+(a[:,None]>=b).mean())/2) if len(a) and len(b) else float('nan')

def measure(dataset, made, judges, describers, moved):
    "Rows of the table for one kind of images"
    flaws = [true_flaws(p) for p in made.path]
    truth = {'colours': [bool(f.misnamed) for f in flaws], 'smears': [f.smeared for f in flaws], 'body': [f.moved>moved for f in flaws]}
    truth = {k: np.array(v) for k,v in truth.items() if any(v)}
    truth['any of them'] = np.any(list(truth.values()), 0)
    dropped,limits,order = {},{},[]
    for name,model in judges.items():
        look = partial(embed, model)
        limits[name],far = real_limit(dataset.train, look, SHARE),distances_to_source(made, look)
        dropped[f'identity, {name}'] = far>limits[name]
        order += [dict(judge=name, flaw=k, farther=farther(far, t)) for k,t in truth.items()]
    for name,d in describers.items():
        off = np.array([off_parts(t, d.one(p))[0] for t,p in zip(made.prompt, made.path)])
        for most in (0,1): dropped[f'words, {name}' + ', one part may be off'*most] = off>most
    return [dict(gate=g, flaw=k, **against_truth(o, t)) for g,o in dropped.items() for k,t in truth.items()],limits,order

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--people', type=int, default=20, help='whose images are painted')
    parser.add_argument('--epochs', type=int, default=8, help='of the judge that is trained')
    parser.add_argument('--out', default=str(Path(__file__).parent/'results'/'gate.json'))
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    rows,order,limits,start = [],[],{},time.process_time()
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        dataset = MannequinWorld((args.people,0,2), images=1, size=(96,48), seed=7).write(tmp/'world', layout='prcc')
        judges = {'small backbone': read_judge('resnet_mini'), 'CAL on others': trained(tmp, args.people, args.epochs)}
        describers = {'no lapses': MannequinDescriber(NO_LAPSES), 'declared lapses': MannequinDescriber(DECLARED_LAPSES)}
        moved = half_a_stranger(dataset)
        for kind,masked,variants in (('inside a mask',True,3), ('without a mask',False,2)):
            made = painted(dataset, tmp/kind.replace(' ', '-'), masked, variants)
            found,limits,ranks = measure(dataset, made, judges, describers, moved)
            for into,what in ((rows,found), (order,ranks)): into += [{'images painted': kind, **r} for r in what]
            print(f'{kind}: {len(made)} images, {time.process_time()-start:.0f} s', flush=True)
    for r in rows+order: print({k: round(float(v), 2) if isinstance(v, float) else v for k,v in r.items()})
    result = dict(benchmark='gate', people=args.people, epochs=args.epochs, share=SHARE, limits=limits, moved_by_more_than=moved, order=order, rows=rows)
    write_whole(args.out, to_json(result, indent=1)+'\n')
    print('wrote', args.out)

if __name__=='__main__': main()
