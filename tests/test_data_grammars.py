"""Random and near-miss names and list lines at every layout: no crash, no wrong label

What a name says is decided here a second time, by small parsers that split strings where the layouts use regular expressions. They are written from the data sets' descriptions; each
yields (path, split, identity, key of the clothes or None, camera or None, modality, role) of the names that must be read, and nothing for those that must be refused."""
import os,string,unicodedata
from collections import defaultdict

import pytest
from hypothesis import event,given,settings,strategies as st

from ccreid.data.layouts import DATASETS,find_layout
from ccreid.data.reading import read_names
from ccreid.data.samples import DataError

class Refused(Exception): "A list that must stop the reader"

def digits(s): return s.isascii() and s.isdigit()

def stem_of(path, hidden=True):
    "Base name without extension, None where the file is no image or must not be seen"
    parts = path.split('/')
    if hidden and any(p.startswith('.') or p.lower() in ('thumbs.db','desktop.ini','__macosx','@eadir') for p in parts): return None
    stem,dot,ext = parts[-1].rpartition('.')
    return stem if dot and stem.strip('.') and ext.lower() in ('jpg','jpeg','png','bmp') else None

# ---- names of flat folders and of folders with a person each: fields of a stem -> (identity, clothes, camera) or None

def ltcc(f):
    if len(f)==4 and digits(f[0]) and digits(f[1]) and f[2][:1]=='c' and digits(f[2][1:]) and f[2][1]!='0' and digits(f[3]): return int(f[0]),(f[0],f[1]),int(f[2][1:])-1

def market(f):
    if len(f)==4 and (f[0]=='-1' or digits(f[0])) and len(f[1])>3 and f[1][0]+f[1][2]=='cs' and f[1][1] in '123456' and digits(f[1][3:]) and digits(f[2]) and digits(f[3].removesuffix('.jpg')):
        return int(f[0]) or -2,None,int(f[1][1])-1

def duke(f):
    if len(f)==3 and digits(f[0]) and len(f[1])==2 and f[1][0]=='c' and f[1][1] in '12345678' and f[2][:1]=='f' and digits(f[2][1:]): return int(f[0]),None,int(f[1][1])-1

def cuhk(f):
    if len(f)==3 and digits(f[0]) and f[1] in ('c1','c2') and digits(f[2]): return int(f[0]),None,int(f[1][1])-1

def vc(f):
    if len(f)==4 and all(map(digits, f)) and int(f[1]): return int(f[0]),(f[0],f[2]),int(f[1])-1

def celeb(f):
    if len(f)>1 and digits(f[0]) and int(f[0]) and digits(f[1]): return int(f[0]),None,None

MARKET = dict(bounding_box_train='train', query='query', bounding_box_test='gallery')

def flat(fields, folders, between='_', above=''):
    def rows(paths, texts):
        for p in paths:
            folder,_,name = p.removeprefix(above).rpartition('/')
            if p.startswith(above) and folder in folders and (stem := stem_of(p)) is not None and (r := fields(stem.split(between))):
                yield p,folders[folder],*r,'visible',''
    return rows

def prcc(paths, texts):
    def clothes(pid, letter): return pid+'C' if letter=='C' else pid
    for p in paths:
        if (stem := stem_of(p)) is None: continue
        match p.split('/'), stem.split('_'):
            case ['train' | 'val' as split, pid, _], [letter, 'cropped', n]: pass
            case ['test', letter, pid, _], ['cropped', n]: split = 'test'
            case ['test', letter, pid, _], ['A' | 'B' | 'C', 'cropped', n]: split = 'test'
            case _: continue
        if letter not in ('A','B','C') or not digits(pid) or len(pid)<3 or n[:3]!='rgb' or not digits(n[3:]): continue
        yield p,split if split!='test' else 'gallery' if letter=='A' else 'query',int(pid),clothes(pid, letter),'ABC'.index(letter),'visible',''

def last(paths, texts):
    for p in paths:
        if (stem := stem_of(p)) is None: continue
        match p.split('/'):
            case ['train', _, _]: split,role = 'train',''
            case ['val', 'query', _] | ['val', 'gallery', _, _]: split,role = 'val',p.split('/')[1]
            case ['test', 'query', _] | ['test', 'gallery', _, _]: split,role = p.split('/')[1],''
            case _: continue
        pid,_,rest = stem.partition('_')
        if not digits(pid) or not rest: continue
        if split=='train':
            worn = stem.split('.')[0].split('_')[1:]
            if worn and worn[-1]: yield p,split,int(pid),(pid,worn[-1]),None,'visible',''
        else: yield p,split,int(pid),pid,None,'visible',role

def mannequins(paths, texts):
    for p in paths:
        *domain,split,name = p.split('/')
        if (stem := stem_of(p)) is None or split not in ('train','val','query','gallery','test') or len(domain)>1: continue
        if domain and not (domain[0][0].isascii() and domain[0][0].isalpha() and domain[0].isascii() and domain[0].replace('_', 'a').isalnum()): continue
        f = stem.split('_')
        if len(f)==5 and all(map(digits, (f[0],f[1],f[2][1:],f[4]))) and f[2][0]=='c' and f[3] in ('v','i'):
            d = (f'mannequins-{domain[0]}' if domain else 'mannequins',)
            yield p,split,int(f[0]),int(f[1]),int(f[2][1:]),dict(v='visible', i='infrared')[f[3]],'',*d

def own_word(word):
    "A person, garment or camera of one's own folder; None is unknown"
    word = unicodedata.normalize('NFC', word.strip())
    for mark in '.,':      # 7. and 7.00 are 7; but 7.000 may be seven thousand
        head,found,tail = word.partition(mark)
        if found and digits(head.removeprefix('-')) and not tail.strip('0') and (len(tail)!=3 or head[0]=='-'): word = head
    if word.casefold() in ('','unknown') or not word.strip(string.punctuation): return None   # nothing but marks says nothing
    return int(word) if digits(word.removeprefix('-')) and len(word.removeprefix('-'))<16 else word

def folder(paths, texts):
    "By the default pattern; all play both roles"
    for p in paths:
        stem,f = stem_of(p),p.rpartition('/')[2].rpartition('.')[0].split('_')
        if stem is None or '/' in p or p.rpartition('.')[2].lower() not in ('jpg','jpeg') or len(f)!=4 or not f[0] or not f[1] or f[2][:1]!='c' or not digits(f[2][1:]) or not digits(f[3]) or max(len(f[2])-1, len(f[3]))>18: continue
        pid,worn = own_word(f[0]),own_word(f[1])
        pid,worn = (None if o==-1 else o for o in (pid,worn))
        if any(isinstance(o, int) and o < least for o,least in ((pid,-2),(worn,0))): continue   # no label is so low
        yield p,'test',-1 if pid is None else pid,None if worn is None else (pid,worn),own_word(f[2][1:]),'visible',''

# ---- lists

SPACE = ' \t\n\r\f\v'

def numbers(text):
    words = text.removeprefix('\ufeff').strip(' \t\r\n,;').replace(',', ' ').replace(';', ' ').split()
    if not all(map(digits, words)): raise Refused
    return {int(w) for w in words}

def lines(text):
    for line in text.removeprefix('\ufeff').replace('\r\n', '\n').replace('\r', '\n').split('\n'):
        if line.strip(): yield line.strip()

def last_word(line):
    "(what stands before the last white space, the last word)"
    head = line.rstrip(SPACE)
    i = max((head.rfind(c) for c in SPACE), default=-1)
    return (head[:i].rstrip(SPACE), head[i+1:]) if i>0 else ('', head)

def inside(given, folder=''):
    "A listed path in its plain form; a path that leads out of the data set stops everything"
    p = given.replace('\\', '/')
    if p.startswith('/') or p[1:2]==':' and p[0].isascii() and p[0].isalpha() or '..' in p.split('/'): raise Refused
    return '/'.join(q for q in f'{folder}/{p}'.split('/') if q not in ('','.'))

def deepchange(paths, texts):
    for folder,split,role in ('train-set','train',''), ('val-set-query','val','query'), ('val-set-gallery','val','gallery'), ('test-set-query','query',''), ('test-set-gallery','gallery',''):
        seen = set()
        for line in lines(texts[f'{folder}-bbox.txt']):
            name,comma,rest = line.partition(',')
            if not comma or not name.strip(SPACE) or not digits(rest.partition(',')[0].strip(SPACE)): continue
            p = inside(name.rstrip(SPACE), folder)
            if p not in paths or p in seen or (stem := stem_of(p, False)) is None: continue
            seen.add(p)
            f = stem.split('_', 2)
            worn = f[2].split('_')[0].split('.')[0] if len(f)==3 else ''
            if f[0][:1] in ('P','p') and digits(f[0][1:]) and len(f)==3 and f[1][:1] in ('C','c') and digits(f[1][1:]) and int(f[1][1:]) and worn:
                yield p,split,int(f[0][1:]),(f[0][1:],worn),int(f[1][1:])-1,'visible',role

def ccvid(paths, texts):
    for split in 'train','query','gallery':
        seen = set()
        for line in lines(texts[f'{split}.txt']):
            rest,worn = last_word(line)
            given,pid = last_word(rest)
            if not given or not digits(pid) or any(c in given for c in SPACE): continue
            walk = given.replace('\\', '/').split('/')
            number = walk[-1].split('_')
            if len(walk)<2 or walk[-2][-8:] not in ('session1','session2','session3') or len(number)!=2 or not all(map(digits, number)) or not int(number[1]): continue
            folder = inside(given)
            if folder in seen: continue
            seen.add(folder)
            for p in paths:
                if p.rpartition('/')[0]==folder and stem_of(p.rpartition('/')[2]) is not None:
                    yield p,split,int(pid),f'{pid}_{worn}',int(number[1])-1 + 12*(walk[-2][-1]=='3'),'visible',''

def msmt17(paths, texts):
    for file,folder,split in ('train','train','train'), ('val','train','train'), ('query','test','query'), ('gallery','test','gallery'):
        seen = set()
        for line in lines(texts[f'list_{file}.txt']):
            given,pid = last_word(line)
            if not given or not digits(pid): continue
            p = inside(given, folder)
            if p not in paths or p in seen or (stem := stem_of(p, False)) is None: continue
            seen.add(p)
            f = stem.split('_', 3)
            if len(f)==4 and digits(f[0]) and digits(f[1]) and digits(f[2]) and 1<=int(f[2])<=15 and len(f[2])<3 and f[3]: yield p,split,int(pid),None,int(f[2])-1,'visible',''

def sysu_mm01(paths, texts):
    who = {s: numbers(texts[f'exp/{s}_id.txt']) for s in ('train','val','test')}
    for p in paths:
        f,stem = p.split('/'),stem_of(p)
        if stem is None or len(f)!=3 or f[0] not in [f'cam{c}' for c in range(1,7)] or not digits(f[1]) or not digits(stem): continue
        infrared = f[0] in ('cam3','cam6')
        for split,people in (('train',who['train'] | who['val']), ('query' if infrared else 'gallery',who['test'])):
            if int(f[1]) in people: yield p,split,int(f[1]),None,int(f[0][3])-1,'infrared' if infrared else 'visible',''

def regdb(paths, texts):
    for split in 'train','test':
        for folder,what in ('Visible','visible'), ('Thermal','thermal'):
            seen = set()
            for line in lines(texts[f'idx/{split}_{what}_2.txt']):
                given,label = last_word(line)
                walk = given.replace('\\', '/').split('/', 2)
                if not digits(label) or len(walk)<3 or walk[0]!=folder or not digits(walk[1]): continue
                p = inside(given)
                if p in paths and p not in seen and stem_of(p, False): yield p,split,int(label),None,int(folder=='Thermal'),'infrared' if folder=='Thermal' else 'visible',''
                if p in paths: seen.add(p)

def llcm(paths, texts):
    test = numbers(texts['idx/test_id.txt'])
    for what,modality in ('vis','visible'), ('nir','infrared'):
        seen = set()
        for line in lines(texts[f'idx/train_{what}.txt']):
            given,label = last_word(line)
            if not given or not digits(label): continue
            p = inside(given)
            if p not in paths or p in seen or (stem := stem_of(p, False)) is None: continue
            seen.add(p)
            f = stem.split('_', 2)
            if len(f)>1 and digits(f[0]) and f[1][0:1]=='c' and digits(f[1][1:]) and 1<=int(f[1][1:])<=9: yield p,'train',int(label),None,int(f[1][1:])-1,modality,''
        for p in paths:
            f = p.split('/')
            if len(f)==4 and f[0]==f'test_{what}' and f[1][:3]=='cam' and f[1][3:] in list('123456789') and digits(f[2]) and int(f[2]) in test and stem_of(p): yield p,'test',int(f[2]),None,int(f[1][3:])-1,modality,''

# ---- two sources of one person: (layout, path, identity) -> numbers that a second source states; and whether the first counts anew

def whole(word): return [int(word)] if digits(word) and len(word)<19 else []

def seconds(name, path):
    *_,above,file = ['', *path.split('/')]
    if name=='last': return whole(above)
    if name=='ccvid': return whole(above.split('_')[0])
    if name=='msmt17': return [('folder',n) for n in whole(above)] + [('name',n) for n in whole(file.split('_')[0])]
    if name=='regdb': return whole(path.split('/')[1])
    if name=='llcm':
        f = file.split('_')
        named = whole(f[0]) if len(f)>1 and f[1][:1]=='c' and digits(f[1][1:2]) else []
        return [('folder',n) for n in whole(above)] + [('name',n) for n in named]
    return []

def agreeing(name, rows):
    "The rows whose sources agree; of pairs that share a side the commonest stays, in the order of their numbers of images"
    if name in ('last','ccvid'): return [r for r in rows if all(n==r[2] for n in seconds(name, r[0]))]
    out = set()
    for side in ('train','val'),('query','gallery','test'):
        for what in {type(n) is tuple and n[0] for r in rows for n in seconds(name, r[0])}:
            pairs = defaultdict(list)
            for i,r in enumerate(rows):
                for n in seconds(name, r[0]):
                    if r[1] in side and (type(n) is tuple and n[0])==what: pairs[n,r[2]].append(i)
            gone,free = set(),set(pairs)
            for size in sorted({len(i) for i in pairs.values()}, reverse=True):
                now = [p for p in free if len(pairs[p])==size]
                for p in now: gone |= {q for q in free if q!=p and len(pairs[q])<size and (q[0]==p[0] or q[1]==p[1])} | {q for q in now if q!=p and (q[0]==p[0] or q[1]==p[1])}
                free -= gone | set(now)
            out |= {i for p in gone for i in pairs[p]}
    return [r for i,r in enumerate(rows) if i not in out]

# ---- a small good tree of each

def three(*names, folders=MARKET, above=''): return [f'{above}{d}/{n}' for d,ns in zip(folders, names) for n in ns]

LTCC = dict(train='train', query='query', test='gallery')
OWN = dict(train='train', query='query', gallery='gallery')
LLCM = {f'{w}/0001/0001_c0{c}_s185535_f70{c}0_{w}.jpg': 1 for w in ('vis','nir') for c in (1,2)} | {f'{w}/0007/0007_c09_s1_f1_{w}.jpg': 0 for w in ('vis','nir')}
SETS = {
    'prcc': (prcc, [f'{s}/{p}/{c}_cropped_rgb{i:03d}.jpg' for s in ('train','val') for p in ('001','004') for c in 'ABC' for i in (1,7)] + [f'test/{c}/{p}/cropped_rgb00{i}.jpg' for p in ('100','333') for c in 'ABC' for i in (1,2)], {}),
    'ltcc': (flat(ltcc, LTCC), three(['001_1_c4_015861.png','001_10_c1_000001.png','004_2_c12_000002.png'], ['009_1_c2_000003.png'], ['009_2_c1_000004.png','009_1_c1_000004.png'], folders=LTCC), {}),
    'vc_clothes': (flat(vc, OWN, '-'), three(['0001-01-01-01.jpg','0001-04-02-01.jpg','0013-02-01-10.jpg'], ['0300-01-01-01.jpg'], ['0300-02-01-01.jpg','0300-04-02-07.jpg'], folders=OWN), {}),
    'celeb_reid': (flat(celeb, OWN), three(['1_1_0.jpg','1_2_0.jpg','632_10_0.jpg'], ['1_3_0.jpg'], ['1_4_0.jpg','2_1_0.jpg'], folders=OWN), {}),
    'market1501': (flat(market, MARKET), three(['0002_c1s1_000451_03.jpg','0002_c6s3_000451_03.jpg','0007_c2s1_000001_01.jpg'], ['0003_c1s1_000551_00.jpg'], ['0003_c2s1_000551_00.jpg','0000_c2s1_000551_00.jpg','-1_c3s2_000551_09.jpg']), {}),
    'dukemtmc': (flat(duke, MARKET), three(['0001_c2_f0046182.jpg','0001_c8_f0046182.jpg','0020_c1_f0000001.jpg'], ['0005_c2_f0046985.jpg'], ['0005_c5_f0051781.jpg']), {}),
    'cuhk03_np': (flat(cuhk, MARKET, above='detected/'), three(['0001_c1_23.png','0001_c2_1.png','0003_c2_7.png'], ['0002_c1_22.png'], ['0002_c2_466.png'], above='detected/') + ['labeled/query/0001_c1_1.png'], {}),
    'last': (last, ['train/000001/000001_001_0010_1.jpg','train/000001/000001_001_0010_2.jpg','train/000007/000007_a.b_012.jpg','val/query/000900_001_0001.jpg','val/gallery/000900/000900_002_0001.jpg',
                    'test/query/010903_012_01066_1075_01_000.jpg','test/gallery/010903/010903_013_01066_1075_01_001.jpg'], {}),
    'mannequins': (mannequins, ['train/0000_0000_c0_v_0000.png','train/0001_0002_c1_i_0003.png','val/0002_0004_c1_v_0003.png','query/0003_0006_c1_v_0003.png','gallery/0003_0007_c0_v_0003.png','woods/train/0000_0000_c0_v_0000.png','woods/test/0001_0001_c2_i_0000.png'], {}),
    'folder': (folder, ['0001_02_c1_0001.jpg','0001_03_c2_0001.jpg','anna_red_c1_1.jpg','berta_red_c10_002.jpeg','berta_-1_c1_003.jpg','-2_1_c1_1.jpg','-1_1_c3_1.jpg'], {}),
    'deepchange': (deepchange, *(lambda parts: ([f'{d}/{n}' for d,ns in parts.items() for n in ns], {f'{d}-bbox.txt': ''.join(f'{n},{i//2}\n' for i,n in enumerate(ns)) for d,ns in parts.items()}))({
        'train-set': ['P1_C03_20200813_1_2_bbox.jpg','P1_C13_20200813_1_3_bbox.jpg','P1_C13_20200914_1_3_bbox.jpg','P20_C01_20200914_1_3_bbox.jpg'], 'val-set-query': ['P500_C1_20200813_1.jpg'], 'val-set-gallery': ['P500_C2_20200813_1.jpg'],
        'test-set-query': ['P700_C1_20200813_1.jpg'], 'test-set-gallery': ['P700_C2_20200813_1.jpg','P0700_C2_20200814_1.jpg']})),
    'ccvid': (ccvid, [f'session{s}/{p}_{w}/{f:05d}.jpg' for s,p,w in ((1,'001','01'),(3,'001','02'),(1,'002','12'),(1,'100','01'),(2,'100','01')) for f in (1,2)],
        {'train.txt': 'session1/001_01\t001\tu0_l0\nsession3/001_02\t001\tu1_l0\nsession1/002_12\t002\tu0_l0\n', 'query.txt': 'session1/100_01\t100\tu0_l0\n', 'gallery.txt': 'session2/100_01\t100\tu0_l1\n'}),
    'msmt17': (msmt17, [f'{d}/0000/0000_00{i}_{c}_0303morning_0008_{i}.jpg' for d in ('train','test') for i,c in enumerate(('01','05','15'))] + ['train/0004/0004_000_02_0113noon_0001_0.jpg'],
        {'list_train.txt': '0000/0000_000_01_0303morning_0008_0.jpg 0\n0004/0004_000_02_0113noon_0001_0.jpg 4\n', 'list_val.txt': '0000/0000_001_05_0303morning_0008_1.jpg 0\n',
         'list_query.txt': '0000/0000_000_01_0303morning_0008_0.jpg 0\n', 'list_gallery.txt': '0000/0000_001_05_0303morning_0008_1.jpg 0\n0000/0000_002_15_0303morning_0008_2.jpg 0\n'}),
    'sysu_mm01': (sysu_mm01, [f'cam{c}/{p}/000{i}.jpg' for c in range(1,7) for p in ('0001','0002','0007','0010') for i in (1,2)], {'exp/train_id.txt': '1,2', 'exp/val_id.txt': '7\n', 'exp/test_id.txt': '10,11'}),
    'regdb': (regdb, [f'{d}/{p}/male_front_{k}_0000{i}_{p}.bmp' for d,k in (('Visible','v'),('Thermal','t')) for p in (1,3,12) for i in (1,2)],
        {f'idx/{s}_{w}_{t}.txt': ''.join(f'{d}/{p}/male_front_{w[0]}_0000{i}_{p}.bmp {l}\n' for p,l in ps for i in (1,2)) for s,ps in (('train',((1,0),(12,1))),('test',((3,0),))) for w,d in (('visible','Visible'),('thermal','Thermal')) for t in (1,2)}),
    'llcm': (llcm, [*LLCM, 'test_vis/cam1/0003/0003_c01_s1_f1_vis.jpg','test_vis/cam9/0003/any.jpg','test_nir/cam1/0003/0003_c01_s1_f1_nir.jpg','test_nir/cam2/0005/0005_c02_s1_f1_nir.jpg'],
        {f'idx/train_{w}.txt': ''.join(f'{p} {l}\n' for p,l in LLCM.items() if p.startswith(w)) for w in ('vis','nir')} | {'idx/test_id.txt': '3,4'}),
}
OPTIONS = dict(regdb=dict(trial=2))

def test_every_layout_has_a_parser(): assert set(SETS) == set(DATASETS) - {'mannequins-ir','mannequins-dg'}             # these two are read as mannequins are

# ---- labels from rows, in loops

def check(name, paths, texts):
    "Read, and compare every label with what the parser says; how it ended"
    layout,(rows,*_) = find_layout(name, **OPTIONS.get(name, {})),SETS[name]
    try: want = [r if len(r)==8 else (*r, name) for r in rows(list(dict.fromkeys(paths)), texts)]
    except Refused:
        with pytest.raises(DataError): read_names(layout, paths, texts)
        return 'refused'
    want = agreeing(name, list({r[:2]: r for r in reversed(want)}.values())[::-1])          # an image that two lists of a split name counts as the first says
    if not [r for r in want if r[2] != -1]:
        with pytest.raises(DataError): read_names(layout, paths, texts)
        return 'nothing left'
    ds = read_names(layout, paths, texts)
    assert len({r[0] for r in want}) + sum(ds.skipped_files.values()) + len(ds.lists) == len({*paths, *texts})      # all files, always
    want = [r for r in want if r[2] != -1]
    t = ds.samples
    got = {(os.path.relpath(p, ds.root), s): r for p,s,r in zip(t.path, t.split, t.itertuples())}
    assert set(got) == {r[:2] for r in want}
    people = {k: i for i,k in enumerate(sorted({(r[7],r[2]) for r in want if r[1]=='train' and r[2]>=0}))}
    numbered = len({r[7] for r in want})==1 and name!='folder'                 # numbers stay as they are, or it only counts who is the same
    forth,back,cameras,persons = {},{},defaultdict(set),defaultdict(set)
    for path,split,identity,worn,camera,modality,role,dataset in want:
        g = got[path,split]
        part = split if split in ('train','val') else 'test'
        assert (g.modality, getattr(g, 'role', ''), g.dataset) == (modality, role, dataset), path
        if split=='train' and identity>=0: assert g.identity == people[dataset,identity], path
        elif numbered or identity==-2: assert g.identity == identity, path
        else: persons[g.identity].add((dataset,identity)); persons[dataset,identity].add(g.identity)
        if worn is None: assert g.clothes == -1
        else: assert forth.setdefault((part,dataset,worn), g.clothes) == g.clothes and back.setdefault(g.clothes, (part,dataset,worn)) == (part,dataset,worn), path
        if numbered and camera is not None: assert g.camera == camera, path
        cameras[dataset,camera].add(g.camera)
    assert all(len(v)==1 for v in persons.values())
    if None in {c for _,c in cameras}: assert t.camera.is_unique
    else: assert all(len(c)==1 for c in cameras.values()) and len({*map(tuple, cameras.values())}) == len(cameras)
    return f'{len(want)-len(BASE[name])} more than the good'

BASE = {name: list(rows(paths, texts)) for name,(rows,paths,texts) in SETS.items()}

@pytest.mark.parametrize('name', SETS)
def test_good_names(name):
    paths,texts = SETS[name][1:]
    assert check(name, paths, texts).startswith('0 more') or name in ('market1501','folder')   # their junk is dropped
    unlisted = {'labeled/query/0001_c1_1.png', 'test_nir/cam2/0005/0005_c02_s1_f1_nir.jpg', 'train/0000/0000_002_15_0303morning_0008_2.jpg'}
    assert {r[0] for r in BASE[name]} == set(paths) - unlisted

# ---- every near miss of one edit

def neighbours(text, alphabet='07aA_-. cv٣０é', places=None):
    "All texts one edit away: a character less, more, another, in the other case, swapped with the next"
    for i in places or range(len(text)+1):
        for c in alphabet:
            yield text[:i]+c+text[i:]
            if i<len(text): yield text[:i]+c+text[i+1:]
        if i<len(text):
            yield text[:i]+text[i+1:]
            yield text[:i]+text[i].swapcase()+text[i+1:]
            yield text[:i]+text[i+1:i+2]+text[i]+text[i+2:]

def also_listed(rows, old, new):
    "Lines of a list, and behind each that names the path `old`, or its folder, those that name one of `new` instead"
    for row in rows:
        yield row
        for a,b in ((a, b) for a in range(len(old)) for b in (len(old), len(old)-1) if a<b):
            name = '/'.join(old[a:b])
            if row.startswith(name) and row[len(name):len(name)+1] in (' ','\t',','):
                yield from dict.fromkeys('/'.join(n[a:b])+row[len(name):] for n in new if n[:a]==old[:a] and n[b:]==old[b:])
                break

def possible(paths, new):
    "Which new paths a disk could hold beside the others: no file is also a folder"
    files,folders = set(paths),{'/'.join(p.split('/')[:k]) for p in paths for k in range(1, p.count('/')+1)}
    for parts in new:
        p = '/'.join(parts)
        if all(q.strip('.') and not '/' in q for q in parts) and p not in folders and not any('/'.join(parts[:k]) in files for k in range(1, len(parts))): yield parts

@pytest.mark.parametrize('name', SETS)
def test_names_one_edit_away(name):
    paths,texts = SETS[name][1:]
    for path in {tuple(len(q) for q in p.split('/')): p for p in paths}.values():
        old = path.split('/')
        for i in range(len(old)):
            new = list(possible(paths, [[*old[:i],n,*old[i+1:]] for n in dict.fromkeys(neighbours(old[i]))]))
            more = list(dict.fromkeys([*paths, *('/'.join(n) for n in new)]))
            assert len(more) > len(paths)+10
            check_each(name, more, texts)
            if texts: check_each(name, more, {f: '\n'.join(also_listed(t.split('\n'), old, new)) for f,t in texts.items()})

def stops(name, paths, texts):
    "Must the reader stop at these lists?"
    try: list(SETS[name][0](paths, texts))
    except Refused: return True
    return False

def check_each(name, paths, texts):
    "Lines that stop the reader are tried one by one; all others together"
    good,passed = SETS[name][2],{}
    for f,text in texts.items():
        alone = {row: {**good, f: good[f].rstrip('\n')+'\n'+row+'\n'} for row in text.split('\n') if row not in good[f].split('\n')}
        stopping = {row for row,t in alone.items() if stops(name, paths, t)}
        for row in stopping: assert check(name, paths, alone[row]) == 'refused'
        passed[f] = '\n'.join(row for row in text.split('\n') if row not in stopping)
    check(name, paths, good)
    for f in passed:
        if passed[f] != good[f]: check(name, paths, {**good, f: passed[f]})

@pytest.mark.parametrize('name', [n for n in SETS if SETS[n][2]])
def test_lines_one_edit_away(name):
    "Each in the place of a good line, one file after the other; at the beginning and behind the name, names had their turn above"
    paths,texts = SETS[name][1:]
    for f,text in texts.items():
        row,*rest = text.split('\n')
        numbers,n = row.replace(',', '').isdigit(),len(row)
        for new in dict.fromkeys(neighbours(row, '07a,;- ٣' if numbers else '0a ٣,\t', range(n+1) if numbers or n<25 else [0,1,*range(n-(11 if name=='ccvid' else 5), n+1)])):
            if '_1.txt' not in f: check(name, paths, {**texts, f: '\n'.join([new, *rest])})

# ---- the fuzz

chars = st.one_of(st.sampled_from(list('0123456789_-cCsfABrgbPvi., ')), st.characters(blacklist_characters='/\0\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029', blacklist_categories=('Cs',)))

@st.composite
def near_miss(draw, good, chars=chars):
    "A good text with a few characters put in, taken out, changed or swapped; or, rarely, anything"
    if draw(st.integers(0, 9))==0: return draw(st.text(chars, min_size=1, max_size=20))+draw(st.sampled_from(['','.png','.JPG','.jpeg']))
    text = list(good)
    for _ in range(draw(st.integers(1, 3))):
        i = draw(st.integers(0, max(len(text)-1, 0)))
        what = draw(st.sampled_from('idcds'))
        if what=='i': text.insert(i, draw(chars))
        elif what=='d' and len(text)>1: del text[i]
        elif what=='c' and text: text[i] = draw(chars)
        elif what=='s' and i: text[i-1],text[i] = text[i],text[i-1]
    return ''.join(text)

@st.composite
def trees(draw, name):
    "A good tree with wrong names, wrong folders, wrong list lines, other line ends"
    paths,texts = SETS[name][1:]
    paths,texts = list(paths),dict(texts)
    for _ in range(draw(st.integers(1, 3))):
        old = draw(st.sampled_from(paths)).split('/')
        parts = list(old)
        i = draw(st.sampled_from([*range(len(parts)), *[len(parts)-1]*6]))
        parts[i] = draw(near_miss(parts[i])).replace('/', '') or 'x'
        if not list(possible(paths, [parts])): continue
        paths.append('/'.join(parts))
        if draw(st.booleans()): texts = {f: '\n'.join(also_listed(t.split('\n'), old, [parts])) for f,t in texts.items()}
    for file in sorted(texts):
        if not draw(st.booleans()): continue
        rows = texts[file].split('\n')
        for _ in range(draw(st.integers(0, 2))):
            row = draw(st.sampled_from(rows))
            new = draw(st.one_of(near_miss(row, st.one_of(chars, st.sampled_from(list('/\\\t')))), st.just(row), st.sampled_from(['../'+row, '/'+row, 'C:'+row, './'+row, ' '+row+' ', row.replace('/', '\\'), ''])))
            rows.insert(draw(st.integers(0, len(rows))), new)
        if draw(st.booleans()): paths = [p for p in paths if p != draw(st.sampled_from(paths))] or paths
        texts[file] = draw(st.sampled_from(['','\ufeff'])) + draw(st.sampled_from(['\n','\r\n'])).join(rows)
    return draw(st.permutations(paths)),texts

@pytest.mark.parametrize('name', SETS)
def test_wrong_names_are_refused_and_right_ones_read(name):
    @settings(max_examples=100)
    @given(trees(name))
    def run(tree): event(check(name, *tree))
    run()

@pytest.mark.slow
@pytest.mark.parametrize('name', SETS)
def test_for_longer(name):
    @settings(max_examples=3000, derandomize=False)
    @given(trees(name))
    def run(tree): check(name, *tree)
    run()
