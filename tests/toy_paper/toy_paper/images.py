"The generated images: red, green and blue change places"
from PIL import Image
from ccreid.generation.expansion import expand
from ccreid.generation.jobs import add_samples, count_left

ORDERS = (1,2,0), (2,0,1), (0,2,1), (1,0,2), (2,1,0)


class Recolour:
    "An edit for `expand`"
    generated_by,settings = 'TOY-IMAGES',{}
    def __call__(self, images, rows, variants, seeds):
        return [Image.merge('RGB', [image.split()[c] for c in ORDERS[v]]) for image,v in zip(images, variants)]


def make(dataset, out, models, *, colours=2, **kwargs):
    "The job of `ccreid generate toy-images`; it needs no network"
    return count_left(expand(dataset.train, Recolour(), out, colours, **kwargs), colours*len(dataset.train))


def miniature(dataset, out):
    "The same for rows of results on mannequins"
    return add_samples(dataset, make(dataset, out, None, progress=False))
