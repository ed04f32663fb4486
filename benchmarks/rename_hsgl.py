"""Give HSGL's records the names and parts that their recipes have today; figures are not touched (run once).

    python benchmarks/rename_hsgl.py"""
import json
from pathlib import Path
from ccreid.files import to_json, write_whole
from ccreid.registry import rows_of

FOLDER = Path(__file__).parent/'results'

def file_of(part): return FOLDER/('hsgl.json' if part=='core' else f'hsgl-{part}.json')

def main():
    rows = {(row.recipe.hash, row.by_epoch): row for row in rows_of('hsgl', 'all')}
    old = {file: json.loads(file.read_text()) for file in sorted(FOLDER.glob('hsgl*.json'))}
    old = {file: o for file,o in old.items() if o.get('chain')=='hsgl'}
    identities = {k: v for o in old.values() for k,v in o['identities'].items()}
    new = {}
    for record in (r for o in old.values() for r in o['records']):
        row = rows[record['recipe_hash'], 'by_epoch' in record]
        new.setdefault(row.part, []).append(record | dict(row=row.name))
    for part,records in new.items():
        top = to_json(dict(chain='hsgl', identities=identities))[:-1]
        write_whole(file_of(part), top + ', "records": [\n' + ',\n'.join(map(to_json, records)) + '\n]}\n')
        print(f'{file_of(part).name}: {len(records)} runs')
    for file in old.keys()-{file_of(part) for part in new}: file.unlink()

if __name__=='__main__': main()
