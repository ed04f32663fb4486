"Everything is in pyproject.toml; this only puts the top-level data cards into the built package, as ccreid/data_cards"
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


setup(cmdclass={'build_py': BuildWithCards})
