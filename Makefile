# make book | make test | make bench      (PROFILE=quick|laptop|paper, PYTHON=python3.12, PIN=constraints.txt)
PROFILE ?= quick
PYTHON ?= python3
PIN ?=

BIN := .venv/bin
ENV := .venv/installed
SITE := _build/$(PROFILE)
CHAPTERS := $(notdir $(wildcard chapters/*.ipynb))
PAGES := _config.yml _toc.yml references.bib $(wildcard *.md) $(wildcard assets/*)
WIDGETS := _build/html-manager/embed.js
CODE := $(wildcard ncutils/*.py) $(wildcard results/*.parquet)

# Chapters run side by side, one a core, unless make is told otherwise (-j1).
ifeq ($(filter -j% --jobs%,$(MAKEFLAGS)),)
MAKEFLAGS := $(MAKEFLAGS) -j$(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
endif

.PHONY: book test bench clean
.DELETE_ON_ERROR:

book: $(SITE)/_build/html/index.html
	@echo "The book: $(SITE)/_build/html/index.html"
	@$(BIN)/python assets/failures.py $(SITE)/chapters

test: $(ENV)
	$(BIN)/python -m pytest

bench: $(ENV)
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/ufm_step.py

$(SITE)/_build/html/index.html: $(ENV) $(PAGES) $(WIDGETS) $(CHAPTERS:%=$(SITE)/chapters/%)
	mkdir -p $(SITE)/assets $(SITE)/_static
	cp $(WIDGETS) $(SITE)/_static/
	cp $(filter-out assets/%,$(PAGES)) $(SITE)/
	cp $(filter assets/%,$(PAGES)) $(SITE)/assets/
	$(BIN)/jupyter-book build -W --keep-going $(SITE)
	touch $@

# A chapter runs again when its notebook, its parameters, ncutils or the shipped results have changed. One that fails is
# still shown, up to its error, named at the end, and runs again next time.
$(SITE)/chapters/%.ipynb: chapters/%.ipynb params/$(PROFILE)/%.yaml $(CODE) $(ENV)
	mkdir -p $(@D)
	$(BIN)/papermill $< $@ -f params/$(PROFILE)/$*.yaml || touch -t 197001020000 $@

# The widget manager of the explorers, for pages without a kernel and without a network; from its CDN where npm is missing.
HTML_MANAGER := @jupyter-widgets/html-manager@1
$(WIDGETS):
	mkdir -p $(@D)
	if archive=$$(npm pack --silent --pack-destination $(@D) $(HTML_MANAGER)); \
	then tar -xzOf $(@D)/$$archive package/dist/embed.js > $@; \
	else echo "npm cannot fetch $(HTML_MANAGER): the book's explorers will load it from cdn.jsdelivr.net instead" >&2; \
	echo 'document.head.appendChild(Object.assign(document.createElement("script"), {src: "https://cdn.jsdelivr.net/npm/$(HTML_MANAGER)/dist/embed.js"}))' > $@; fi

# torch and torchvision bring GPU libraries: about 5 GB on Linux, once.
$(ENV): pyproject.toml $(PIN)
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[book,test]' $(PIN:%=--constraint %)
	touch $@

clean:
	rm -rf .venv _build
