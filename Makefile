# make book | pdf | test | lint | bench | soak | mutate | audit      (PROFILE=laptop|quick|protocol|paper)
# PYTHON=python3.12 and PIN=constraints.txt count when the environment is made: with the first call, or after `make clean`.
# REPOSITORY=https://github.com/OWNER/NAME puts launch buttons on the pages: for Binder, and for Colab after `make fork`.
PROFILE ?= laptop
PYTHON ?= python3
PIN ?=
REPOSITORY ?=

ifneq ($(filter book pdf,$(or $(MAKECMDGOALS),book)),)
ifeq ($(wildcard params/$(PROFILE)/*.yaml),)
$(error PROFILE = $(PROFILE) is not allowed: use laptop, quick, protocol or paper)
endif
endif

CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
BIN := .venv/bin
ENV := .venv/installed
SITE := _build/$(PROFILE)
CHAPTERS := $(notdir $(wildcard chapters/*.ipynb))
PAGES := _toc.yml README.md CONTRIBUTING.md $(wildcard chapters/*.md chapters/*.bib static/*)
SCRIPTS := _build/npm/done
# grids, which several chapters read; a chapter's own file is among its prerequisites
GRIDS := $(foreach f,$(wildcard params/*/*.yaml),$(if $(wildcard chapters/$(notdir $(f:.yaml=.ipynb))),,$(f)))
CODE := $(wildcard ncutils/*.py ncutils/*.csv ncutils/book/*.py ncutils/book/widgets/*) $(wildcard results/*.parquet results/*.csv) $(GRIDS)

# Chapters run side by side, one a core, unless make is told otherwise (-j1).
ifeq ($(filter -j% --jobs%,$(MAKEFLAGS)),)
MAKEFLAGS := $(MAKEFLAGS) -j$(CORES)
endif

.PHONY: book pdf test lint bench soak mutate audit fork clean FORCE
.DELETE_ON_ERROR:

book: $(SITE)/_build/html/index.html
	@echo "The book: $(SITE)/_build/html/index.html"
	@$(BIN)/python tools/failures.py $(SITE)/chapters

# All pages as one PDF, printed by the system's Chromium.
pdf: book
	$(BIN)/jupyter-book build --builder singlehtml $(SITE)
	$(BIN)/python tools/pdf.py $(SITE)/_build/singlehtml/chapters/intro.html $(SITE)/book.pdf

# One worker more than cores, since many tests wait (for a browser, Ray's nodes, a kernel); they share the built book.
SIDE_BY_SIDE := --numprocesses=$(shell expr $(CORES) + 1) --maxprocesses=8 --dist=worksteal
test: lint
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

# Format, rules and types; `$(BIN)/ruff format` and `$(BIN)/ruff check --fix` mend most of what it finds.
lint: $(ENV)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy

bench: $(ENV)
	$(BIN)/python benchmarks/run.py

# The tests with more kills, examples and interruptions, their counts into the book's page "How this is tested".
soak: $(ENV)
	NCUTILS_SOAK=1 NCUTILS_COUNTS=results/tests.csv $(BIN)/python -m pytest $(SIDE_BY_SIDE)

# Changes the modules that pyproject.toml names under tool.mutmut one place at a time, in a copy, and writes how many changes a
# test noticed into results/mutants.csv, the others into results/survivors.csv: each wants a test, or a reason there. Hours;
# MUTANTS='ncutils.theory.*' tries those alone, and a second call goes on where the first one stopped. A large module can be
# sampled: MUTANTS="$(python tools/mutants.py _build/mutate --draw ncutils/book/claims.py 100)", once it has been copied.
MUTANTS ?=
mutate: $(ENV)
	$(BIN)/python -m mutmut --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet --editable '.[mutate]'
	mkdir -p _build/mutate
	cp -R pyproject.toml README.md _toc.yml ncutils tests tools chapters params results _build/mutate
	cd _build/mutate && OMP_NUM_THREADS=1 $(abspath $(BIN))/python -m mutmut run $(foreach name,$(MUTANTS),'$(name)')
	$(BIN)/python tools/mutants.py _build/mutate results

# Known vulnerabilities of the pinned versions. It needs a network, and an environment of its own: it is no part of the book's.
audit:
	test -x _build/audit/bin/pip-audit || { $(PYTHON) -m venv _build/audit && _build/audit/bin/pip install --quiet pip-audit; }
	_build/audit/bin/python tools/audit.py constraints.txt

$(SITE)/_build/html/index.html: $(ENV) $(SITE)/_config.yml $(PAGES:%=$(SITE)/%) $(SCRIPTS) $(CHAPTERS:%=$(SITE)/chapters/%)
	mkdir -p $(SITE)/static
	cp $(filter-out $(SCRIPTS),$(wildcard $(dir $(SCRIPTS))*)) $(SITE)/static/
	rm -f $(SITE)/_build/html/index.html  # written only where absent: it leads to the first page
	$(BIN)/jupyter-book build -W --keep-going $(SITE)
	touch $@

# A page that has not changed keeps its time, so that Sphinx does not read it again.
$(PAGES:%=$(SITE)/%): $(SITE)/%: %
	@mkdir -p $(@D)
	cp $< $@

$(SITE)/_config.yml: _config.yml FORCE
	@mkdir -p $(@D)
	@cp $< $@.new
ifneq ($(REPOSITORY),)
	@printf 'repository: {url: "%s", branch: main}\nlaunch_buttons: {binderhub_url: "https://mybinder.org"%s}\n' '$(REPOSITORY)' \
	  "$$(grep -lq fetches-project chapters/*.ipynb && echo ', colab_url: "https://colab.research.google.com"')" >> $@.new
endif
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

# A chapter runs again when its notebook, its parameters, ncutils or the shipped results have changed; not for new prose
# alone. One that fails is still shown, up to its error, named at the end, and runs again next time.
define EXECUTE
@mkdir -p $(@D)
$(BIN)/python tools/execute.py $< $@ $(word 2,$^) $(if $(filter-out $<,$?),,--prose) || touch -t 197001020000 $@
endef
$(SITE)/chapters/%.ipynb: chapters/%.ipynb params/$(PROFILE)/%.yaml $(CODE) $(ENV)
	$(EXECUTE)

# Of the profile protocol: a chapter without a file of its own takes the laptop's.
$(SITE)/chapters/%.ipynb: chapters/%.ipynb params/laptop/%.yaml $(CODE) $(ENV)
	$(EXECUTE)

$(SITE)/chapters/21_costs.ipynb: $(wildcard results/*.json)

$(SCRIPTS): tools/scripts.py
	$(PYTHON) tools/scripts.py $(@D)
	touch $@

# torch and torchvision bring GPU libraries: about 5 GB on Linux, once. With bytecode: where Python may not write it later, each
# process would compile torch anew.
$(ENV): pyproject.toml $(PIN)
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[book,test]' $(PIN:%=--constraint %)
	touch $@

# Once in a fork, then commit: its chapters run in Colab, to which their pages then have a button.
fork: $(ENV)
	$(BIN)/python tools/fork.py '$(REPOSITORY)' $(CHAPTERS:%=chapters/%)

clean:
	rm -rf .venv _build
