"Draw the pictures of the data cards into data_cards/pictures: `python tools/card_pictures.py [NAME ...]`"
import io, sys
from pathlib import Path

from ccreid.data.cards import card_names
from ccreid.data.mannequins.layout_pictures import layout_picture

PICTURES = Path(__file__).resolve().parent.parent/'data_cards'/'pictures'
LIMIT = 60_000 # bytes: a card's page stays small


def png(name):
    "The picture of a layout as the bytes of a PNG, at 96 dots per inch"
    to = io.BytesIO()
    layout_picture(name).save(to, 'PNG', optimize=True, dpi=(96,96))
    return to.getvalue()


def main(names=()):
    PICTURES.mkdir(exist_ok=True)
    for name in names or card_names():
        picture = png(name)
        if len(picture)>LIMIT: raise SystemExit(f'{name}.png has {len(picture):,} bytes, more than {LIMIT:,}: show fewer or smaller pictures')
        (PICTURES/f'{name}.png').write_bytes(picture)
        print(f'{name}.png {len(picture):,} bytes')


if __name__=='__main__': main(sys.argv[1:])
