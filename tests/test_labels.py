"Labels as people write them: missing ones, numbers, names in two spellings; in tables, patterns, dicts and npz files"
import pytest

from ccreid.data.samples import DataError, ReIDDataset, make_table

# ---- the door of messages ----------------------------------------------------------------------------------------------------

def test_messages_and_notes_hold_nothing_that_cannot_be_printed():
    name = 'a\x1b[2J\r\x00\u202e\udce9.jpg'
    error = DataError(f'{name} is no image\nsave it again')
    assert error.args[0].splitlines() == ['a\\x1b[2J\\r\\x00\\u202e\\xe9.jpg is no image', 'save it again']
    ds = ReIDDataset('d', '/d', make_table([dict(dataset='d', path='/d/a.jpg', identity=0, split='train')]), notes=[f'skipped {name}', 'two\nlines'])
    assert ds.notes == ['skipped a\\x1b[2J\\r\\x00\\u202e\\xe9.jpg', 'two\\nlines']
    with pytest.raises(DataError) as e: make_table([dict(dataset='d', path='/d/\x1b\udcff.jpg', identity=-7, split='train')])
    str(e.value).encode()
