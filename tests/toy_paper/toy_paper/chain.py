"The one object that ccreid looks for: what the paper brings, by name"
from ccreid.registry import Chain, Images, Option, Row
from ccreid.values import number, whole

options = dict(strength=Option(number(), 1., 'weight of the pull between outfits', of=('toy',)))

images = {'toy-images': Images('training images in other colours', 'toy_paper.images:miniature', 'toy_paper.images:make',
    dict(colours=Option(whole(1, 5), 2, 'images made of each training image')))}

small = dict(backbone='resnet_mini', pretrained=False, size=(64,32), identities=4, images=2, epochs=1)
rows = (Row('plain', 'identity', small),
        Row('pulled', 'toy', dict(small, strength=.7)),
        Row('pulled + images', 'toy', dict(small, strength=.7, generated='toy-images'), part='images'))

chain = Chain('toy', 'Clothes that pull no more', options=options, methods=dict(toy='toy_paper.method:toy'),
              images=images, rows=rows, commands={'toy-look': 'toy_paper.look:command'},
              pages=('https://example.org/toy-paper',))
