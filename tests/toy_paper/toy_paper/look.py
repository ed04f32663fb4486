"A command: `ccreid toy-look`"
from ccreid.commands.shared import add_data, read_dataset
from ccreid.options import of_rule
from ccreid.registry import Command
from ccreid.values import whole


def options(parser):
    add_data(parser)
    parser.add_argument('--least', type=of_rule(whole(1)), default=2, help='outfits that a person needs to count (2)')


def run(options):
    outfits = read_dataset(options).train.groupby('identity').clothes.nunique()
    print(f'{(outfits>=options.least).sum()} of {len(outfits)} people have {options.least} outfits')


command = Command('count people with several outfits', options, run, 'ccreid toy-look --data prcc --root ~/data/prcc',
                  reads_data=True)
