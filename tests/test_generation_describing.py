"Clothes in words: answers of every form and fault, the most frequent garment by brute force, real classes in tiny sizes, files, the command line"
import json, pickle
from collections import Counter
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from ccreid import registry
from ccreid.data.mannequins import MannequinWorld
from ccreid.data.mannequins.garments import COLOURS, KINDS, LIP, Garment, parse_caption
from ccreid.generation import keeping, lapses
from ccreid.generation.answer_lists import from_json, items_of
from ccreid.generation.answers import FAULTS, PARTS, Answer, Said, is_foreign, read_answer
from ccreid.generation.clauses import garments_in, key_of
from ccreid.generation.descriptions import FORMS, Description, Descriptions, read_description
from ccreid.generation.describers import DESCRIBERS, Describer, InstructBlipDescriber
from ccreid.generation.describing import as_released, describe_clothes, most_frequent, repaired, summarise
from ccreid.generation.garment_words import SLOT, nouns_in
from ccreid.generation.jobs import PARTS as NETWORKS, Networks, StandIns
from ccreid.generation.lapses import DECLARED_LAPSES, NO_LAPSES, Lapses, MannequinDescriber, true_description, wrong_parts
from ccreid.generation.questions import QUESTIONS, SUMMARIES, evenly, joined
from ccreid.generation.summarizers import Summarizer
from ccreid.generation.talkers import Talker
from ccreid.generation.tiny_talkers import taught, tiny_instructblip, tiny_language, tiny_llava, tiny_qwen
from ccreid.generation.wardrobe import invented_clothes, random_clothes, random_description
from ccreid.registry import Chain, Images, Option
from ccreid.values import text as a_text

import transformers
transformers.utils.logging.disable_progress_bar(); transformers.utils.logging.set_verbosity_error()


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    return MannequinWorld((6,0,1), images=(3,1,1), size=(32,16), seed=8).write(tmp_path_factory.mktemp('w')/'w', layout='prcc', workers=1)

@pytest.fixture(scope='module')
def table(people): return people.train

def three(d): return tuple(getattr(d, p) for p in PARTS)
def first(a): return tuple((*getattr(a, p), '')[0] for p in PARTS)
def keys(d): return tuple(key_of(o) for o in (three(d) if isinstance(d, Description) else first(d)))


# --- answers

colours = st.sampled_from(sorted(COLOURS))
def garment(slot, patterned=True):
    kinds = st.sampled_from([k.name for k in KINDS.values() if k.slot==slot])
    plain = st.builds(lambda k,c: str(Garment(k, c)), kinds, colours)
    both = st.tuples(colours, colours).filter(lambda o: o[0]!=o[1])
    dyed = st.builds(lambda k,c,p: str(Garment(k, c[0], p, c[1])), kinds, both, st.sampled_from(['striped','checked','two-tone','dotted','printed','pinstriped']))
    return st.one_of(plain, dyed) if patterned else plain

outfits = st.one_of(st.builds(Description, garment('upper'), garment('lower'), garment('shoes')), st.builds(Description, garment('dress'), st.just(''), garment('shoes')),
                    st.builds(lambda o,i,l,s: Description(f'{o} over {i}', l, s), garment('outer'), garment('upper'), garment('lower'), garment('shoes')))
MARKS = dict(dots=lambda k: f'{k+1}. ', brackets=lambda k: f'{k+1}) ', both=lambda k: f'({k+1}) ', letters=lambda k: f"({'abc'[k]}) ", letter=lambda k: f"{'abc'[k]}) ", dashes=lambda k: '- ', stars=lambda k: '* ',
             bullets=lambda k: '• ', roman=lambda k: f"{('i','ii','iii')[k]}. ", colons=lambda k: f'{k+1}: ', bold=lambda k: f'**{k+1}.** ', nothing=lambda k: '', dash=lambda k: f'{k+1} - ')
ONE_LINE = {'dots','brackets','both','letters','letter','bullets','colons'}

@pytest.mark.parametrize('mark', MARKS)
@given(outfit=outfits, order=st.permutations(range(3)), one_line=st.booleans(), upper=st.booleans())
@settings(max_examples=15)
def test_a_list_numbered_in_any_way_and_order(mark, outfit, order, one_line, upper):
    texts = [t for i in order if (t := three(outfit)[i])]
    items = [MARKS[mark](k)+(t.capitalize() if upper else t) for k,t in enumerate(texts)]
    answer = read_answer((' ' if one_line and mark in ONE_LINE else '\n').join(items))
    assert keys(answer)==keys(outfit) and answer.faults==()

@given(outfit=outfits, order=st.permutations(range(3)), form=st.integers(0, 7))
def test_sentences_names_and_json_in_any_order(outfit, order, form):
    named = [(PARTS[i], three(outfit)[i]) for i in order]
    there = [t for _,t in named if t]
    label = dict(upper='Upper body', lower='Lower body', footwear='Footwear')
    texts = [f"The person is wearing {', '.join(there[:-1])}, and {there[-1]}.", f"She has {' and '.join(there)} on", '\n'.join(f"**{label[p]}**: {t or 'none'}" for p,t in named),
             json.dumps({p: t or None for p,t in named}), '```json\n'+json.dumps([dict(part=p, item=t) for p,t in named if t], indent=1)+'\n```', ' | '.join(f'{label[p]}: {t or "not visible"}' for p,t in named),
             '\n\n'.join(f"{label[p]}:\n{t or 'None'}" for p,t in named), json.dumps(there)]
    answer = read_answer(texts[form])
    assert keys(answer)==keys(outfit) and answer.faults==(), (texts[form], answer)

@pytest.mark.parametrize('text,upper,lower,foot', [
    ('Her top is yellow and black. Her trousers are grey and her shoes are white.', 'yellow and black top', 'grey trousers', 'white shoes'),
    ('The man is wearing a white shirt with a black collar, grey pants and black shoes', 'a white shirt with a black collar', 'grey pants', 'black shoes'),
    ('A t-shirt and shorts. The t-shirt is red. The shorts are blue.', 'red t-shirt', 'blue shorts', ''),
    ('Top: T-shirt (white)\nBottom: Jeans (blue)\nShoes: black', 'white T-shirt', 'blue Jeans', 'black shoes'),
    ('Upper body: a red kurta. Lower body: a white churidar. Footwear: mojaris', 'a red kurta', 'a white churidar', 'mojaris'),
    ('a navy suit over a white shirt, dress shoes', 'a navy suit over a white shirt', '', 'dress shoes'),
    ('The person wears tracksuit bottoms and no shoes, and carries a red backpack', '', 'tracksuit bottoms', ''),
    ('[{"type": "hoodie", "color": "grey"}, {"type": "jeans", "color": "blue"}]', 'grey hoodie', 'blue jeans', ''),
    ('Sure! Here are the clothes:\n\n1. White shirt\n2. Black pants\n\nI hope this helps!', 'White shirt', 'Black pants', ''),
    ('a dress and, underneath, black tights; the shoes are not visible', 'a dress', 'black tights', '')])
def test_answers_as_models_give_them(text, upper, lower, foot):
    answer = read_answer(text)
    assert (*first(answer), answer.faults)==(upper, lower, foot, ())

@pytest.mark.parametrize('text,fault', [('', 'empty'), (' \n', 'empty'), ('...', 'empty'), (None, 'empty'), ('-', 'empty'), ('{}', 'empty'),
    ('Una mujer con camiseta roja y zapatos', 'language'), ('Der Mann trägt eine blaue Jacke und Schuhe', 'language'), ('他穿着红色T恤', 'language'), ('Мужчина в красной рубашке', 'language'), ('Une robe noire et des chaussures', 'language'),
    ("I'm sorry, I cannot see the person.", 'nothing'), ('The image is too dark.', 'nothing'), ('No shoes', 'nothing'), ('A backpack and a red hat', 'nothing'), ('none', 'nothing'), ('[]', 'empty'),
    ('blue jeans, a black skirt', 'contradictory'), ('jeans or trousers', 'contradictory'), ('a dress with jeans', 'contradictory'), ('a red shirt; a blue polo', 'contradictory'), ('boots and sandals', 'contradictory'),
    ('a red shirt, blue', 'cut'), ('a red shirt and', 'cut'), ('1. a red shirt\n2.', 'cut'), ('a shirt, jeans, and a pair of', 'cut'), ('{"upper": "a shirt", "lower": "je', 'cut'), (Said('a shirt, jeans.', True), 'cut'), ('- a shirt\n-', 'cut')])
def test_every_fault_has_its_name(text, fault):
    assert read_answer(text).faults==(fault,) and fault in FAULTS

def test_what_is_left_of_a_faulty_answer_counts():
    assert first(read_answer('a red shirt, blue'))==('a red shirt','','') and read_answer('a shirt, jeans or a skirt').lower==('jeans','a skirt')
    assert read_answer('una camiseta y jeans')==Answer(faults=('language',))          # nothing of it
    assert read_answer('a dress and jeans').whole and read_answer('a dress and tights').faults==()

@given(st.text(max_size=200))
@settings(max_examples=200)
def test_no_text_is_too_odd(text):
    answer = read_answer(text)
    assert set(answer.faults)<=set(FAULTS) and all(isinstance(t, str) and t for p in PARTS for t in getattr(answer, p))
    assert bool({'empty','language','nothing'} & set(answer.faults))==(not (answer.upper or answer.lower or answer.footwear))

@given(st.lists(st.sampled_from(['a','red','shirt',', ','and','1. ','\n','- ','jeans','with','(',')','{','"',':','none','upper body','white','over','boots','not','dress','| ','is','in']), max_size=40))
@settings(max_examples=200)
def test_words_of_answers_in_any_order_do_no_harm(words):
    answer = read_answer(' '.join(words))
    assert all(nouns_in(t) or p for p in PARTS for t in getattr(answer, p)) and summarise([answer]) is not None

def test_long_texts_take_no_time():
    import time
    start = time.process_time()
    for text in 'a red and '*3000+'shirt', '('*20_000, '1. '*10_000, 'a shirt, '*3000, '[{'*10_000, 'upper body: '*3000, '\n- '*10_000: read_answer(text)
    assert time.process_time()-start<6

def test_a_text_that_was_cut_stays_so_between_processes():
    said = pickle.loads(pickle.dumps(Said('a hat', True)))
    assert said=='a hat' and said.cut and not Said('a hat').cut and isinstance(said, Said)

def test_every_kind_that_mannequins_wear_has_its_part():
    where = dict(upper='inner', outer='outer', dress='whole', lower='lower', shoes='footwear')
    for kind in KINDS.values():
        (*_,slot), = nouns_in(f'a red {kind.name}')
        assert slot==('under' if kind.name=='leggings' else where.get(kind.slot, 'other')), kind.name


# --- descriptions

def test_a_description_is_frozen_shows_itself_and_makes_prompts():
    d = Description('a red dress', '', 'boots')
    with pytest.raises(FrozenInstanceError): d.upper = 'x'
    assert str(d)==d.text()=='A person wearing a red dress and boots' and hash(d)==hash(Description('a red dress','','boots'))
    assert d.missing==() and Description('a shirt').missing==('lower','footwear') and not Description() and "upper='a red dress'" in repr(d)
    with pytest.raises(ValueError, match="form is paper, released, line, not 'short'"): d.text('short')

@given(outfits, st.sampled_from(sorted(FORMS)))
def test_prompts_are_read_back(outfit, form):
    back = read_description(outfit.text(form))
    assert keys(back)==keys(outfit)

@given(outfits)
def test_mannequins_can_wear_what_a_prompt_says(outfit):
    worn = parse_caption(outfit.text(), strict=False)
    assert {' '.join(map(str, worn))}=={' '.join(t for o in three(outfit) if o for t in o.split(' over '))}

def test_many_show_themselves_in_a_line_or_a_table():
    many = Descriptions({c: Description(f'a <{c}> shirt') for c in range(40)}, about='me')
    assert max(map(len, repr(many).split('\n')))<=90 and len(repr(many).split('\n'))<12 and '&lt;3&gt;' in many._repr_html_() and many==dict(many)


# --- the most frequent

garments = {'upper': ['a red shirt','red shirt','a blue polo','a coat over a red shirt','a green dress'], 'lower': ['jeans','blue jeans','a skirt','black leggings'], 'footwear': ['boots','white shoes','white boots']}
answers = st.lists(st.fixed_dictionaries({p: st.lists(st.sampled_from(texts), max_size=2, unique=True) for p,texts in garments.items()}), max_size=7)

def by_hand(answers, part):
    "The paper's sentence in loops: which garment do most images have; ties by how common its words are, then by who came first"
    groups, order = {}, []
    for a in answers:
        seen = {}
        for t in a[part]: seen[key_of(t)] = t
        for key,t in seen.items():
            if key not in groups: groups[key] = []; order.append(key)
            groups[key].append(t)
    best, best_score = '', None
    for key in order:
        common = 0
        for w in key:
            for other in order:
                if w in other: common += len(groups[other])
        score = (len(groups[key]), common/max(len(key), 1))
        if best_score is None or score>best_score:
            best_score, spelled = score, {}
            for t in groups[key]: spelled[t] = spelled.get(t, 0)+1
            best = max(spelled, key=spelled.get)
    return best

@given(answers, st.sampled_from(PARTS))
@settings(max_examples=200)
def test_the_most_frequent_garment_against_loops(answers, part):
    read = [Answer(**{p: tuple(t) for p,t in a.items()}) for a in answers]
    assert most_frequent(read, part)==by_hand(answers, part)

@given(outfits, st.lists(outfits, max_size=3), st.randoms())
def test_a_majority_wins_in_any_order(right, wrong, rng):
    texts = [right.text()]*(len(wrong)+1)+[w.text('line') if '|' in w.text() else w.text() for w in wrong]
    rng.shuffle(texts)
    assert keys(summarise(texts))==keys(right)

def test_below_a_dress():
    dress, leggings, jeans = 'a red dress, boots', 'a red dress, black leggings, boots', 'a red dress, jeans'
    assert summarise([dress, dress, leggings])==Description('a red dress','','boots') and summarise([dress, leggings]).lower=='black leggings'
    assert summarise([dress, jeans]).lower=='' and summarise([jeans]*3).lower=='' and summarise(['a blue jumpsuit']).lower==''
    assert summarise(['a shirt, leggings']*2+[dress]).lower=='leggings'               # leggings are a lower garment of their own, too
    assert summarise(['a coat over a red dress', 'a coat over a red dress, jeans']).lower==''
    assert summarise([])==summarise(['', 'Lo siento, no la veo', 'No clothes.'])==Description()

def test_the_repair_of_a_summary():
    texts = ['a red shirt, jeans, boots', 'a red shirt, jeans', 'a blue polo, a skirt']
    full = Description('a red shirt','jeans','boots')
    cases = {'Upper body: a red shirt\nLower body: jeans\nFootwear: boots': {}, 'a blue polo, a red shirt, jeans, boots': dict(chosen=1), 'jeans, a skirt, boots, a red shirt': dict(chosen=1),
             '': dict(filled=3), 'Lo siento, no veo la ropa': dict(filled=3), 'a red shirt': dict(filled=2), 'Lower body: none': dict(filled=3), 'a red shirt and a blue polo': dict(chosen=1, filled=2)}
    for summary,count in cases.items(): assert repaired(summary, texts)==(full, count), summary
    assert repaired('a teal coat, a skirt and sandals', texts)[0]==Description('a teal coat','a skirt','sandals')      # the model's word stands
    assert repaired('a green dress and jeans', texts)[0]==Description('a green dress','','boots')
    assert repaired('jeans', ['a dress, boots']*2)[0]==Description('a dress','','boots')

def test_the_released_reading_loses_letters_and_keeps_small_talk():
    text = 'Sure! Here you go:\n1. Red shirt\n2) Blue jeans, torn\nBoots\n10. a\n\nI hope this helps!'
    d = as_released(text)
    assert d.items==(' Red shirt', ' Blue jeans, torn', 'oots', ' a\n', ' hope this helps!')
    assert d.text('released')=='red shirt blue jeans torn oots hope this helps!'
    assert (d.upper, d.footwear)==('Red shirt','') and not as_released('a red shirt, jeans') and d.text('paper').startswith('A person wearing Red shirt')


# --- describing a data set

class Quiet(MannequinDescriber):
    "Counts, and can be killed"
    def __init__(self, *args, after=None, **kw): super().__init__(*args, **kw); self.asked,self.after,self.batch = [],after,5
    def one(self, path):
        if self.after is not None and len(self.asked)>=self.after: raise KeyboardInterrupt
        self.asked.append(path); return super().one(path)

def test_without_lapses_everything_is_known(table, capsys):
    got = describe_clothes(table, MannequinDescriber(NO_LAPSES), progress=None)
    assert set(got)==set(table.clothes) and all(keys(d)==keys(true_description(table.path[table.clothes==c].iloc[0])) for c,d in got.items())
    assert 'answers: no faults; parts unknown: 0' in capsys.readouterr().out and got.counts['images']==len(table)

def test_summarising_repairs_what_images_lack(table):
    said = {p: MannequinDescriber().one(p) for p in table.path}
    true = {p: true_description(p) for p in table.path}
    alone = np.sum([wrong_parts(summarise([said[p]]), true[p]) for p in table.path], 0)
    all = np.sum([wrong_parts(summarise([said[p] for p in own.path]), true[own.path.iloc[0]]) for _,own in table.groupby('clothes')], 0)
    assert alone[0]/alone[1]>.25 and all[0]/all[1]<.6*alone[0]/alone[1]

def test_a_killed_job_goes_on_and_asks_nothing_twice(table, tmp_path, capsys):
    whole = describe_clothes(table, Quiet(), progress=None)
    for after in 4, 17, 0:
        with pytest.raises(KeyboardInterrupt): describe_clothes(table, Quiet(after=after), folder=tmp_path, progress=None)
    left = Quiet()
    assert describe_clothes(table, left, folder=tmp_path, progress=None)==whole
    done = Counter(table.clothes)
    assert 0<len(left.asked)<len(table) and len(left.asked)==len(table)-sum(n for c,n in done.items() if not set(table.path[table.clothes==c])&set(left.asked))
    again = Quiet()
    assert describe_clothes(table, again, folder=tmp_path, progress=None)==whole and again.asked==[]
    assert not [p for p in tmp_path.rglob('.making*')] and f'({len(table)} found)' in capsys.readouterr().out

def test_another_prompt_describer_or_image_is_another_file(table, tmp_path):
    def ask(**kw): describe_clothes(kw.pop('table', table), MannequinDescriber(**kw.pop('who', {})), folder=tmp_path, progress=None, **kw); return len(list(tmp_path.glob('answers/*.json')))
    n = table.clothes.nunique()
    assert [ask(), ask(), ask(who=dict(seed=1)), ask(who=dict(lapses=NO_LAPSES)), ask(images=1), ask(table=table.iloc[1:])]==[n, n, 2*n, 3*n, 4*n, 4*n+1]

@pytest.mark.parametrize('damage', ['{}', '', 'not json', '{"job": 1, "said": []}', '<html>', '[]'])
def test_a_damaged_file_is_one_line(table, tmp_path, damage):
    describe_clothes(table, MannequinDescriber(), folder=tmp_path, progress=None)
    file = sorted(tmp_path.glob('answers/*'))[2]
    file.write_text(damage)
    with pytest.raises(ValueError) as e: describe_clothes(table, MannequinDescriber(), folder=tmp_path, progress=None)
    assert file.name in str(e.value) and '\n' not in str(e.value)

class ScriptedDescriber:
    "Stand-in for a describer whose answers a test has written down: no network gives a certain faulty text when it is wanted"
    settings = dict(describer='script')
    def __init__(self, answers): self.answers = answers # Function of the rows
    def __call__(self, images, rows=None): return self.answers(rows)

class ScriptedSummarizer:
    "Stand-in for a summarizer that gives a certain text, such as a list with small talk around it"
    settings,batch = dict(summarizer='script'),4
    def __init__(self, text): self.text,self.asked = text,[]
    def __call__(self, answers):
        self.asked.append(len(answers))
        return [self.text]*len(answers)

silent_on_3 = ScriptedDescriber(lambda rows: ['a red shirt and jeans' if r['clothes']!=3 else None for r in rows])

def test_clothes_without_an_answer_are_left_out_or_made_up_and_counted(table, capsys):
    got = describe_clothes(table, silent_on_3, progress=None)
    assert set(got)==set(table.clothes)-{3} and got.counts['none']==1 and got.counts['made_up']==0 and 'without an answer: 1, left out' in capsys.readouterr().out
    got = describe_clothes(table, silent_on_3, missing='random', seed=4, progress=None)
    assert got[3]==random_description(4, 3) and got.counts['made_up']==1 and '1, made up' in capsys.readouterr().out
    assert got[0]==Description('a red shirt','jeans') and got.counts['unknown']==len(got)-1

def test_faults_are_counted(table):
    said = ['', 'Una camiseta y un pantalón', 'nobody', 'jeans or a skirt', Said('a red shirt', True), 'a red shirt, jeans and boots']
    counts = describe_clothes(table[table.clothes==0].iloc[:6], ScriptedDescriber(lambda rows: said[:len(rows)]), progress=None).counts
    assert {k: counts[k] for k in FAULTS}==dict(empty=1, language=1, nothing=1, contradictory=1, cut=1)

def test_generated_images_and_unknown_clothes_are_not_described(table):
    odd = table.assign(generated_by=['x' if k%2 else '' for k in range(len(table))], clothes=[-1 if c==0 else c for c in table.clothes])
    asked = Quiet()
    got = describe_clothes(odd, asked, progress=None)
    assert 0 not in got and set(asked.asked)==set(odd.path[(odd.generated_by=='') & (odd.clothes>=0)]) and got.counts['passed_over']==len(table)-len(asked.asked)

@pytest.mark.parametrize('kw,says', [(dict(rule='mine'), 'rule is paper or released'), (dict(missing='no'), 'missing is skip or random'), (dict(rule='released'), 'pass one')])
def test_what_cannot_be_done_is_said_before_anybody_is_asked(table, kw, says):
    asked = Quiet()
    with pytest.raises(ValueError, match=says): describe_clothes(table, asked, **kw)
    assert asked.asked==[]

def test_a_model_that_gives_too_few_texts(table):
    with pytest.raises(ValueError, match='the describer gave 1 texts for'): describe_clothes(table, ScriptedDescriber(lambda rows: ['a hat']), progress=None)
    with pytest.raises(ValueError, match='nothing to describe'): describe_clothes(table.assign(clothes=-1), silent_on_3)
    with pytest.raises(ValueError, match='a list of answers is needed'): summarise('a red shirt')

def test_progress_counts_the_images_of_this_call(table, tmp_path):
    said = []
    describe_clothes(table[table.clothes<2], Quiet(), folder=tmp_path, progress=None)
    describe_clothes(table, Quiet(), folder=tmp_path, progress=lambda *o: said.append(o))
    new = int((table.clothes>=2).sum())
    assert said[-1]==(new,new) and [d for d,_ in said]==sorted(d for d,_ in said) and {t for _,t in said}=={new}

def test_evenly_chosen():
    for n in range(1, 12):
        for m in range(0, 14):
            got = evenly(range(n), m)
            assert len(got)==(min(m, n) or n) and got==sorted(set(got)) and got[0]==0 and (len(got)<2 or np.ptp(np.diff(got))<=1)


# --- mannequins

def test_lapses_come_as_often_as_declared(table, tmp_path):
    world = MannequinWorld((24,0,1), images=(5,1,1), size=(16,16), seed=2).write(tmp_path/'w', workers=1).train
    def share(of, **kw): return np.mean([of(MannequinDescriber(Lapses(**kw)).one(p), p) for p in world.path])
    assert abs(share(lambda a,_: a=='', empty=.1)-.1)<.04 and abs(share(lambda a,_: is_foreign(a), language=.1)-.1)<.04 and abs(share(lambda a,_: getattr(a, 'cut', False), cut=.2)-.2)<.05
    assert abs(share(lambda a,_: 'contradictory' in read_answer(a).faults, contradictory=.2)-.2)<.05
    def wrong(a, p): w,n = wrong_parts(summarise([a]), true_description(p)); return w/n
    assert abs(share(wrong, omitted=.3)-.3)<.05 and share(wrong)==0 and .15<share(wrong, wrong=.2)<.3

def test_the_stand_in_goes_by_the_file_alone(table, tmp_path):
    rows, describe = table.to_dict('records')[:6], MannequinDescriber()
    lied = [dict(path=r['path'], clothes=99, identity=99, garment='a hat') for r in rows]
    assert describe([None]*6, rows)==describe([None]*6, lied)==[describe([None], [r])[0] for r in rows]
    (tmp_path/'x.jpg').write_bytes(b'')
    for bad in ([dict(path=str(tmp_path/'x.jpg'))], [dict(path='/nowhere/x.jpg')]):
        with pytest.raises((ValueError, FileNotFoundError)): describe([None], bad)
    stand_ins = StandIns()
    assert isinstance(stand_ins.describer, MannequinDescriber) and stand_ins.describer.lapses==DECLARED_LAPSES and stand_ins.summarizer is None

def test_made_up_clothes_are_of_three_parts_and_of_the_seed():
    table = pd.DataFrame(dict(clothes=[5,-1,2,5,0]))
    got = random_clothes(table, 3)
    assert list(got)==[0,2,5] and got==random_clothes(table[::-1], 3) and got!=random_clothes(table, 4) and got[5]==random_description(3, 5)
    for k in range(200):
        d = random_description(0, k)
        slots = [g.slot for g in parse_caption(d.text(), strict=False)]
        assert not d.missing and slots==['upper','lower','shoes'] and read_answer(d.text()).faults==()

def test_clothes_that_a_model_makes_up():
    table = pd.DataFrame(dict(clothes=[0,1,2]))
    inventor = Summarizer(*tiny_language(), words=6, device='cpu', name='tiny')
    got = invented_clothes(table, inventor)                                            # noise: everything comes from the lists
    assert got==random_clothes(table) and got.about=='tiny' and got.counts['filled']==9
    assert len(set(inventor.invent(3)))==3 and inventor.invent(3)==inventor.invent(3)
    model,tokenizer = tiny_language()
    got = invented_clothes(table, Summarizer(taught(model, tokenizer, 'jeans'), tokenizer, words=8, device='cpu'))
    assert all(d==Description(random_description(0, c).upper, 'jeans', random_description(0, c).footwear) for c,d in got.items()) and got.counts['filled']==6


# --- models of the real classes

images = [Image.fromarray(np.random.default_rng(k).integers(0, 255, (40+8*k, 20+8*k, 3), dtype=np.uint8)) for k in range(3)]
MODELS = dict(llava=(tiny_llava, Describer), qwen=(tiny_qwen, Describer), instructblip=(tiny_instructblip, InstructBlipDescriber))

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('models')
    for name,(make,_) in MODELS.items():
        for part in make(): part.save_pretrained(root/name)
    for part in tiny_language(): part.save_pretrained(root/'llama')
    return root

@pytest.mark.parametrize('name', MODELS)
def test_a_describer_from_a_folder_answers_as_in_company(folders, name):
    make,cls = MODELS[name]
    d = Networks('cpu', batch=2, **{'describer': folders/name, 'describer.words': '6', 'describer.prompt': 'What is worn?'}).describer
    assert type(d) is cls and d.batch==2
    answers = d(images)
    assert answers==cls(*make(), prompt='What is worn?', words=6, device='cpu')(images)==[d([im])[0] for im in images] and len(set(answers))>1
    assert all(isinstance(a, Said) and a.cut for a in answers) and d([])==[]
    assert d.settings==dict(describer=name, asked='What is worn?', words=6, dtype='float32')

def test_greedy_answers_against_a_loop_over_tokens():
    "The network asked for one token after another, without `generate`"
    import torch
    model,processor = tiny_llava()
    d = Describer(model, processor, prompt='What is it?', words=5, device='cpu')
    x = d.encode([d.prompt(d.asked, image=True)], images[:1])
    tokens, new = x['input_ids'], []
    with torch.inference_mode():
        for _ in range(5):
            new.append(int(model(input_ids=tokens, pixel_values=x['pixel_values'], attention_mask=torch.ones_like(tokens)).logits[0,-1].argmax()))
            tokens = torch.cat([tokens, torch.tensor([new[-1:]])], 1)
    assert processor.tokenizer.decode(new, skip_special_tokens=True).strip()==d(images[:1])[0]

def test_drawn_answers_depend_on_image_prompt_and_seed_alone():
    def ask(images, **kw): return Describer(*tiny_llava(), **{**dict(words=6, device='cpu', temperature=1., prompt='What is it?'), **kw})(images)
    whole = ask(images)
    assert whole==[ask([im])[0] for im in images]==ask(images, batch=1) and ask(images, seed=1)!=whole and ask(images, prompt='Which is it?')!=whole and ask(images[:1]*2)[0]==ask(images[:1]*2)[1]
    import torch
    torch.manual_seed(5); before = torch.rand(1); torch.manual_seed(5); ask(images[:1])
    assert torch.rand(1)==before                                                       # nobody's random numbers change

def test_an_answer_that_ends_is_not_cut():
    model,tokenizer = tiny_language()
    talker = Talker(model, tokenizer, words=4, device='cpu')
    import torch
    assert talker._said(torch.tensor([70,71,2,0])).cut is False and talker._said(torch.tensor([70,71,72,73])).cut is True and talker._said(torch.tensor([70])).cut is False
    assert talker._said(torch.tensor([70,71,2,0]))==tokenizer.decode([70,71])

def test_questions_go_through_the_template_of_the_model(folders):
    d = Describer(*tiny_qwen(), device='cpu')
    assert d.prompt(d.asked, image=True)==f"USER: <|vision_start|><|image_pad|><|vision_end|>{QUESTIONS['paper']} ASSISTANT: "
    assert InstructBlipDescriber(*tiny_instructblip(), prompt='released', device='cpu').prompt('What?')=='What?'
    s = Summarizer(*tiny_language(), prompt='released', device='cpu')
    assert s.prompt('x')=='USER: x ASSISTANT: ' and QUESTIONS['released']=='What clothes is the person wearing?' and s.asked=='Extract the clothing items from the following text: '
    with pytest.raises(ValueError, match='no chat template'): Describer(*tiny_instructblip(), device='cpu')(images)

def test_a_prompt_that_begins_as_texts_do_gets_no_second_beginning():
    model,tokenizer = tiny_language()
    talker = Talker(model, tokenizer, device='cpu')
    assert (talker.encode(['<s>hat'])['input_ids']==1).sum()==1 and talker.encode(['a hat','a'])['attention_mask'].tolist()==[[1]*5,[0]*4+[1]]

def test_a_summarizer_reads_all_and_answers_one(folders, table, tmp_path):
    networks = Networks('cpu', batch=3, **{'summarizer': folders/'llama', 'summarizer.words': '5', 'describer': folders/'llava', 'describer.words': '4'})
    got = describe_clothes(table, networks.describer, networks.summarizer, tmp_path, progress=None, missing='random')
    assert set(got)==set(table.clothes) and len(list(tmp_path.glob('summaries/*')))==table.clothes.nunique()==len(list(tmp_path.glob('answers/*')))
    def never(*args, **kw): raise AssertionError('asked again')
    networks.describer.say = networks.summarizer.say = never
    assert describe_clothes(table, networks.describer, networks.summarizer, tmp_path, progress=None, missing='random')==got

def test_rules_for_a_summary(table):
    listing = ScriptedSummarizer('Sure:\n1. a red shirt\n2. a blue polo\n3. jeans\n\nI hope this helps!')
    polo = ScriptedDescriber(lambda rows: ['a blue polo and boots']*len(rows))
    paper,released = (describe_clothes(table, polo, listing, rule=r, progress=None) for r in ('paper','released'))
    n = table.clothes.nunique()
    assert set(paper.values())=={Description('a blue polo','jeans','boots')} and paper.counts['chosen']==paper.counts['filled']==n and listing.asked==[4]*(n//4)*2
    assert {d.text('released') for d in released.values()}=={'a red shirt a blue polo jeans hope this helps!'} and released.counts['chosen']==0

def test_a_taught_word_goes_all_the_way_through_real_classes(table):
    "A tiny LLaVA that says shirt and a tiny Llama that says jeans: the summary's word stands, the part that it leaves out comes from the answers"
    llava,processor = tiny_llava(); model,tokenizer = tiny_language()
    describe = Describer(taught(llava, processor.tokenizer, 'shirt'), processor, words=8, device='cpu')
    summarize = Summarizer(taught(model, tokenizer, 'jeans'), tokenizer, words=8, device='cpu')
    got = describe_clothes(table, describe, summarize, images=1, progress=None)
    n = table.clothes.nunique()
    assert set(got.values())=={Description('shirt','jeans')} and got.counts['filled']==n and got.counts['unknown']==n and not any(got.counts[f] for f in FAULTS)

def test_many_answers_fit_into_a_prompt():
    answers = [f'{k} is a red shirt and blue jeans' for k in range(300)]
    text = joined(answers, words=400)
    assert len([w for w in text.split() if w!='-'])<=400 and len(text.splitlines())==400//8==50 and text.startswith('- 0 is') and '294 is' in text
    assert joined(answers, 'released').split()==' '.join(answers).split()[:200] and joined([]) =='' and joined(['word '*900], words=10)=='- '+' '.join(['word']*10)

@pytest.mark.parametrize('part,setting,value,says', [('describer','words','many','expected a whole number'), ('describer','prompt','papers','paper, released'), ('describer','beams','3','no setting'), ('describer','temperature','hot','a number'),
    ('summarizer','most','-3','whole number'), ('summarizer','prompt','x','paper, released'), ('summarizer','model','x','no setting')])
def test_settings_are_refused_before_anything_is_loaded(part, setting, value, says):
    with pytest.raises(ValueError, match=says) as e: getattr(Networks('cpu', **{part: 'no/such', f'{part}.{setting}': value}), part)
    assert '\n' not in str(e.value)

def test_folders_that_hold_something_else(folders, tmp_path):
    with pytest.raises(ValueError, match='sees no images'): Describer.from_pretrained(folders/'llama', device='cpu')
    (tmp_path/'model.safetensors').write_text('<html>'); (tmp_path/'config.json').write_text((folders/'llava'/'config.json').read_text())
    with pytest.raises(ValueError, match='web page') as e: Describer.from_pretrained(tmp_path, device='cpu')
    assert '\n' not in str(e.value)
    from safetensors.torch import load_file, save_file
    state = load_file(folders/'llava'/'model.safetensors'); state.pop(sorted(state)[5]); save_file(state, tmp_path/'model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(ValueError, match='1 weights are missing'): Describer.from_pretrained(tmp_path, device='cpu')
    for name in 'llama','none','': assert name in ('llama',) or Networks('cpu', summarizer=name).summarizer is None

def test_names_are_of_hubs_and_parts_of_the_shared_room():
    assert all(o.count('/')==1 for o in DESCRIBERS.values()) and {'llava','instructblip'}<=set(DESCRIBERS) and sum('qwen' in n for n in DESCRIBERS)>=2
    assert NETWORKS['describer'].weights in DESCRIBERS and NETWORKS['summarizer'].weights=='llama'


# --- the command line

def make_words(dataset, out, models, *, words, **kwargs):
    from ccreid.generation.expansion import expand
    told = describe_clothes(dataset.train, models.describer, models.summarizer, Path(out).parent/'words', missing='random', progress=None)
    def edit(images, rows, variants, seeds): return [(Image.new('RGB', im.size, (3*v+1,0,0)), dict(prompt=told[r['clothes']].text(words))) for im,r,v in zip(images, rows, variants)]
    made = expand(dataset.train, edit, out, 1, accept='plain', generated_by='words', **kwargs)
    made.attrs['expansion']['left'] = 0
    return made

@pytest.fixture
def chain():
    yield registry.register(Chain('wordy', images=dict(wordy=Images('people in words', job=make_words, options=dict(words=Option(a_text(tuple(FORMS)), 'paper', 'form'))))))
    registry.forget('wordy')

def test_describer_and_summarizer_by_name_on_the_command_line(ccreid, chain, people, folders, tmp_path):
    general = 'generate', 'wordy', '--data', 'prcc', '--root', people.root, '--device', 'cpu'
    code,out,err = ccreid(*general, '--out', tmp_path/'a', '--model', f'describer={folders/"llava"}', '--model', 'describer.words=3', '--model', 'describer.prompt=released',
                          '--model', f'summarizer={folders/"llama"}', '--model', 'summarizer.words=3')
    assert code==0, err
    n = people.train.clothes.nunique()
    assert f'{n} clothes described by llava from {len(people.train)} images' in out and len(list((tmp_path/'words'/'summaries').glob('*')))==n
    record = json.loads(next((tmp_path/'words'/'answers').glob('*')).read_text())['job']['settings']
    assert record==dict(describer='llava', asked=QUESTIONS['released'], words=3, dtype='float32')
    code,out,err = ccreid(*general, '--out', tmp_path/'b', '--words', 'line', '--limit', '2')
    assert code==0 and 'described by mannequins' in out and 'Drawn people' in out, err
    code,out,err = ccreid(*general, '--out', tmp_path/'c', '--model', 'describer.beams=3')
    assert code and 'no setting' in err+out and len((err+out).strip().splitlines())<40
    code,out,err = ccreid('generate', '--help')
    assert 'describer' in out and 'summarizer' in out
