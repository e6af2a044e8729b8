# make train   a GPT from raw text to report, in minutes on two cores
# make code    that GPT, trained on to fill in code
# make test    all tests
# make lint    ruff
.DELETE_ON_ERROR:
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
SHELL := bash

VENV := .venv
PYTHON := $(VENV)/bin/python
RUN := runs/demo
DATA := $(RUN)/data
CODE := runs/code
RANKS ?= 2
OVERRIDES ?=

.PHONY: train code test lint install clean

install: $(VENV)/installed

$(VENV)/installed: setup.py constraints.txt
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "megagpt needs Python 3.11 or later, not %d.%d" % sys.version_info[:2])'
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools wheel
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	touch $@

train: $(RUN)/report.html
	@echo
	echo "report:    $(RUN)/report.html (open it in a browser)"
	echo "metrics:   $(RUN)/metrics.jsonl, held-out figures in $(RUN)/evaluation.json"
	echo "try it:    $(PYTHON) tools/generate.py --checkpoint $(RUN) --prompt 'def read_lines(path):'"
	echo "next:      docs/configuration.md, and $(PYTHON) -m megagpt --help"

$(DATA)/stdlib.jsonl: | $(VENV)/installed
	$(PYTHON) tools/demo_corpus.py --output $@

$(DATA)/tokenizer.json: $(DATA)/stdlib.jsonl
	$(PYTHON) tools/train_tokenizer.py $< --vocab-size 4096 --output $@

$(DATA)/stdlib.json: $(DATA)/tokenizer.json $(DATA)/stdlib.jsonl
	$(PYTHON) tools/preprocess.py $(DATA)/stdlib.jsonl --tokenizer $(DATA)/tokenizer.json --output $(DATA)/stdlib

$(RUN)/evaluation.json: $(DATA)/stdlib.json
	$(VENV)/bin/torchrun --nproc-per-node $(RANKS) -m megagpt experiment=demo $(OVERRIDES)

$(RUN)/report.html: $(RUN)/evaluation.json
	$(PYTHON) tools/report.py $(RUN)

code: $(CODE)/report.html
	@echo
	echo "report:    $(CODE)/report.html (open it in a browser)"
	echo "figures:   $(CODE)/evaluation_before.json and $(CODE)/evaluation.json"
	echo "try it:    $(PYTHON) tools/generate.py --checkpoint $(CODE) --prompt 'def double(x):' --suffix $$'\n    return y'"

# The demo's own targets say when it is to be made anew; `make clean` begins all over.
$(CODE)/data/tokenizer.json: | $(RUN)/evaluation.json
	mkdir -p $(@D)
	$(PYTHON) tools/train_tokenizer.py --extend $(RUN)/tokenizer.json --output $(CODE)/data/code.json $(DATA)/stdlib.jsonl
	$(PYTHON) tools/train_tokenizer.py --extend $(CODE)/data/code.json --add chat --output $@

$(CODE)/data/stdlib.json: $(CODE)/data/tokenizer.json
	$(PYTHON) tools/preprocess.py $(DATA)/stdlib.jsonl --tokenizer $< --output $(CODE)/data/stdlib

$(CODE)/evaluation.json: $(CODE)/data/stdlib.json
	$(VENV)/bin/torchrun --nproc-per-node $(RANKS) -m megagpt experiment=demo_code $(OVERRIDES)

$(CODE)/report.html: $(CODE)/evaluation.json
	$(PYTHON) tools/report.py $(CODE)

test: $(VENV)/installed
	$(PYTHON) -m pytest

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(RUN) $(CODE)
