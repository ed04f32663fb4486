"Everything is in pyproject.toml; this only puts the top-level data cards into the built package, as ccreid/data_cards, and makes the README's links whole"
import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithCards(build_py):
    "Copy `data_cards/*.md` beside the modules; an editable install reads them where they are"

    def cards(self):
        return sorted((ROOT/'data_cards').glob('*.md'))

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False): return
        to = Path(self.build_lib)/'ccreid'/'data_cards'
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir(parents=True)
        for card in self.cards(): shutil.copy2(card, to)

    def get_outputs(self, include_bytecode=1):
        return super().get_outputs(include_bytecode) + [
            str(Path(self.build_lib)/'ccreid'/'data_cards'/card.name) for card in self.cards()]


def readme():
    "README.md as the package index shows it: what lies beside it in the repository is not there, so links lead to GitHub"
    at = lambda m: f'{m[1]}[{m[2]}](https://github.com/ccreid/ccreid/{"raw" if m[1] else "blob"}/main/{m[3]})'
    return re.sub(r'(!?)\[([^\]\n]*)\]\((?![a-z]+:|#)([^)\s]+)\)', at, (ROOT/'README.md').read_text(encoding='utf-8'))


setup(cmdclass={'build_py': BuildWithCards}, long_description=readme(), long_description_content_type='text/markdown')
