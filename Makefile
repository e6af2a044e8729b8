# make train   a GPT from raw text to report, in minutes on two cores
# make code    that GPT, trained on to fill in code, then to edit by instruction
# make chatgpt the GPT of make train, taught to talk: demonstrations, a reward model, PPO; then a page to talk to it
# make embed   that GPT, taught to find functions by their docstrings, and a map of the functions
# make incontext  a small GPT that finds a rule in the examples of its prompt: accuracy by number of examples
# DEVICE=cuda after train, code or chatgpt: the same in the size of GPT-3 125M, for one GPU
# make test    the tests that are run before every commit; make test-slow the others; make test-all both;
#              make test-thorough both, with every case of those that have many
# make test-megatron-core VERSION=0.19.2  what megagpt asks of Megatron-Core, with another version than the installed one
# make lint    ruff
# make docs    the documentation as a site in build/docs/html, without a network
.DELETE_ON_ERROR:
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
SHELL := bash

VENV := .venv
PYTHON := $(VENV)/bin/python
MEGAGPT := $(VENV)/bin/megagpt
PIP := $(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# cpu: a model of 4 million parameters, in minutes. cuda: the same chain in the size of GPT-3 125M for one GPU, in an hour.
DEVICE ?= cpu
ifeq ($(filter $(DEVICE),cpu cuda),)
$(error DEVICE is "$(DEVICE)"; it must be cpu or cuda)
endif
CUDA := $(filter cuda,$(DEVICE))
SIZE := $(if $(CUDA),_125m)
RUN := runs/demo$(SIZE)
DATA := $(RUN)/data
STAGE := runs/$(if $(CUDA),demo_)
CODE := $(STAGE)code$(SIZE)
EDIT := $(STAGE)edit$(SIZE)
CHAT := $(STAGE)chatgpt$(SIZE)
SFT := $(STAGE)sft$(SIZE)
REWARD := $(STAGE)reward$(SIZE)
PPO := $(STAGE)ppo$(SIZE)
VOCABULARY := $(if $(CUDA),16384,4096)
# The larger model also reads the source of the installed packages, and learns all kinds of edits.
CORPUS := $(if $(CUDA),--packages)
EDITS := $(if $(CUDA),,--kinds uppercase,lowercase,number_lines,reverse_lines,sort_lines,single_spaces,add_comment --max-chars 60)
# Kinds that have so many prompts that held-out ones are new.
INSTRUCTIONS := --kinds repeat,copy,reverse,capitals,first,last,count,recall,follow_up,system
# Fewer than the demonstrations, since a reward model reads several answers to each prompt.
RANKED := $(if $(CUDA),20000,2200)
EMBED := runs/embed
INCONTEXT := runs/incontext
RANKS ?= $(if $(CUDA),1,2)
# Those of some run folders whose run has ended.
MADE = $(patsubst %/evaluation.json,%,$(wildcard $(addsuffix /evaluation.json,$(1))))
# What `megagpt serve` can serve after `make chatgpt`: its model, and those of other demos that have been made.
SERVED = $(PPO) $(call MADE,$(CODE) $(EDIT) $(EMBED))
# What the report of `make chatgpt` shows and links to beside its own runs, as far as it has been made.
FURTHER = $(if $(wildcard $(EMBED)/map.html),--link 'map of functions=../../$(EMBED)/map.html') \
	$(if $(wildcard $(INCONTEXT)/rules/report.html),--link 'accuracy by number of examples=../../$(INCONTEXT)/rules/report.html')
VERSION ?= 0.19.2
# Tests that run at a time: more than two cores, because tests wait much of their time.
WORKERS ?= 4
# A worker takes whole files, whose fixtures are expensive, in the order of tests/conftest.py: ordered by their number
# of tests, the few long tests would all come last.
SIDE_BY_SIDE := --dist loadfile --no-loadscope-reorder
OVERRIDES ?=

# Says how long a target will take on this machine.
ABOUT = $(if $(CUDA),$(PYTHON) tools/demo_time.py --need-gpu,$(PYTHON) tools/demo_time.py $(1) --ranks $(RANKS))

.PHONY: train code chatgpt embed incontext test test-slow test-all test-thorough test-megatron-core lint docs install clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml setup.py constraints.txt
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "megagpt needs Python 3.11 or later, not %d.%d" % sys.version_info[:2])'
	python3 -m venv $(VENV)
	$(PIP) setuptools wheel
	$(PIP) torch
	$(PIP) --no-build-isolation --editable .
	touch $@

# What the tests need besides.
$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --no-build-isolation --editable ".[dev]"
	touch $@

train: $(RUN)/report.html
	@echo
	echo "report:    $(RUN)/report.html (open it in a browser)"
	echo "metrics:   $(RUN)/metrics.jsonl, held-out figures in $(RUN)/evaluation.json"
	echo "try it:    $(MEGAGPT) generate --checkpoint $(RUN) --prompt 'def read_lines(path):'"
	echo "next:      docs/tutorial.md (a model from your own text), and $(MEGAGPT) --help"

$(DATA)/stdlib.jsonl: | $(VENV)/installed
	@$(call ABOUT,train)
	$(PYTHON) tools/demo_corpus.py $(CORPUS) --output $@

$(DATA)/tokenizer.json: $(DATA)/stdlib.jsonl
	$(MEGAGPT) data tokenizer $< --vocab-size $(VOCABULARY) --output $@

$(DATA)/stdlib.json: $(DATA)/tokenizer.json $(DATA)/stdlib.jsonl
	$(MEGAGPT) data preprocess $(DATA)/stdlib.jsonl --tokenizer $(DATA)/tokenizer.json --output $(DATA)/stdlib

$(RUN)/evaluation.json: $(DATA)/stdlib.json
	$(MEGAGPT) train --nproc-per-node $(RANKS) experiment=demo$(SIZE) $(OVERRIDES)

$(RUN)/report.html: $(RUN)/evaluation.json
	$(MEGAGPT) report $(RUN)

code: $(EDIT)/report.html
	@echo
	echo "words of held-out documents filled in, before and after; with both sides (fim) and from the left side alone:"
	grep -h exact_match $(CODE)/evaluation_before.json $(CODE)/evaluation.json
	echo "held-out edits, before and after; similarity if nothing is changed at all:"
	grep -h similarity $(EDIT)/evaluation_before.json $(EDIT)/evaluation.json
	echo
	echo "reports:   $(CODE)/report.html and $(EDIT)/report.html (open them in a browser)"
	echo "figures:   evaluation_before.json and evaluation.json in $(CODE) and $(EDIT)"
	echo "try it:    $(MEGAGPT) generate --checkpoint $(EDIT) --prompt 'the old river' --instruction 'Convert to upper case.' --greedy"
	echo "           $(MEGAGPT) generate --checkpoint $(CODE) --prompt 'def double(x):' --suffix $$'\n    return y'"

# The demo's own targets say when it is to be made anew; `make clean` begins all over.
$(CODE)/data/tokenizer.json: | $(RUN)/evaluation.json
	mkdir -p $(@D)
	$(MEGAGPT) data tokenizer --extend $(RUN)/tokenizer.json --output $(CODE)/data/code.json $(DATA)/stdlib.jsonl
	$(MEGAGPT) data tokenizer --extend $(CODE)/data/code.json --add chat --output $@

$(CODE)/data/stdlib.json: $(CODE)/data/tokenizer.json
	$(MEGAGPT) data preprocess $(DATA)/stdlib.jsonl --tokenizer $< --output $(CODE)/data/stdlib

$(CODE)/evaluation.json: $(CODE)/data/stdlib.json
	$(MEGAGPT) train --nproc-per-node $(RANKS) experiment=demo_code$(SIZE) $(OVERRIDES)

$(CODE)/report.html: $(CODE)/evaluation.json
	$(MEGAGPT) report $(CODE)

$(CODE)/data/edits.jsonl: | $(VENV)/installed
	@$(call ABOUT,code)
	mkdir -p $(@D)
	$(MEGAGPT) data edits --split validation $(EDITS) --count 203 --output $(CODE)/data/held_out_edits.jsonl
	$(MEGAGPT) data edits --split train $(EDITS) --count 21000 --output $@

$(EDIT)/evaluation.json: $(CODE)/data/edits.jsonl | $(CODE)/evaluation.json
	$(MEGAGPT) train --nproc-per-node $(RANKS) experiment=demo_edit$(SIZE) $(OVERRIDES)

$(EDIT)/report.html: $(EDIT)/evaluation.json $(CODE)/report.html
	$(MEGAGPT) report $(EDIT)

$(VENV)/installed-serve: $(VENV)/installed
	$(PIP) --no-build-isolation --editable ".[serve]"
	touch $@

chatgpt: $(CHAT)/report.html $(VENV)/installed-serve
	@echo
	echo "held-out instructions that the model follows, and ten of its answers:"
	cat $(PPO)/answers.txt
	echo
	echo "report:    $(CHAT)/report.html (open it in a browser): every stage's curves"
	echo "figures:   evaluation.json, and evaluation_before.json, in $(SFT), $(REWARD) and $(PPO)"
	echo "try it:    $(MEGAGPT) chat --checkpoint $(PPO) --greedy"
	echo "chat page: $(MEGAGPT) serve $(SERVED)"
	echo "           then open http://127.0.0.1:8000/ in a browser; programs take http://127.0.0.1:8000/v1 (docs/serving.md)"

$(CHAT)/data/conversations.jsonl: | $(VENV)/installed
	@$(call ABOUT,chatgpt)
	$(MEGAGPT) data instructions --split validation $(INSTRUCTIONS) --count 300 --seed 1 --output-dir $(@D)/held_out
	$(MEGAGPT) data instructions --split train $(INSTRUCTIONS) --count $(RANKED) --seed 2 --output-dir $(@D)/ranked
	$(MEGAGPT) data instructions --split train $(INSTRUCTIONS) --count 20000 --output-dir $(@D)

$(SFT)/evaluation.json: $(CHAT)/data/conversations.jsonl $(CODE)/data/stdlib.json | $(RUN)/evaluation.json
	$(MEGAGPT) train --nproc-per-node $(RANKS) experiment=demo_sft$(SIZE) $(OVERRIDES)

$(REWARD)/evaluation.json: $(SFT)/evaluation.json
	$(MEGAGPT) train --nproc-per-node $(RANKS) experiment=demo_reward$(SIZE) $(OVERRIDES)

$(PPO)/evaluation.json: $(REWARD)/evaluation.json
	$(MEGAGPT) train --nproc-per-node $(RANKS) experiment=demo_ppo$(SIZE) $(OVERRIDES)

# How many held-out instructions each of the two models follows.
$(SFT)/answers.txt $(PPO)/answers.txt: %/answers.txt: %/evaluation.json
	rm -rf $*/instructions
	$(MEGAGPT) evaluate task=instructions data=$(CHAT)/data/held_out/conversations.jsonl checkpoint=$* \
	    output=$*/instructions max_new_tokens=24 > $@

$(CHAT)/report.html: $(PPO)/answers.txt $(SFT)/answers.txt
	$(MEGAGPT) report $(RUN) $(call MADE,$(CODE) $(EDIT)) $(SFT) $(REWARD) $(PPO) --output $@ $(FURTHER) \
	    --link 'chat page, while `megagpt serve` runs=http://127.0.0.1:8000/'

embed: $(EMBED)/map.html $(EMBED)/report.html
	@echo
	echo "before:    mrr $$(sed -n 's/.*"mrr": \([0-9.]*\).*/\1/p' $(EMBED)/evaluation_before.json), mean reciprocal rank among 1,000 functions; now:"
	$(MEGAGPT) evaluate task=code_search data=$(EMBED)/data/held_out.jsonl checkpoint=$(EMBED) output=$(EMBED)/code_search
	echo "report:    $(EMBED)/report.html, and $(EMBED)/map.html, a map of the functions (open them in a browser)"
	echo "try it:    $(MEGAGPT) search ask $(EMBED)/index 'copy a file'"

$(VENV)/installed-embeddings: $(VENV)/installed
	$(PIP) --no-build-isolation --editable ".[embeddings]"
	touch $@

$(EMBED)/data/pairs.jsonl: | $(VENV)/installed-embeddings
	$(MEGAGPT) data pairs --kind code --output $@

$(EMBED)/evaluation.json: $(EMBED)/data/pairs.jsonl | $(RUN)/evaluation.json
	$(MEGAGPT) train --nproc-per-node $(RANKS) experiment=demo_embed $(OVERRIDES)

$(EMBED)/report.html: $(EMBED)/evaluation.json
	$(MEGAGPT) report $(EMBED)

# The pairs that the run holds out, by the same shares.
$(EMBED)/data/held_out.jsonl: $(EMBED)/data/pairs.jsonl
	$(MEGAGPT) data pairs --kind code --split validation --split-shares 0.78,0.22,0 --output $@

$(EMBED)/map.html: $(EMBED)/data/held_out.jsonl $(EMBED)/evaluation.json
	$(MEGAGPT) search index $< --key positive --checkpoint $(EMBED) --output $(EMBED)/index
	$(MEGAGPT) search map $(EMBED)/index --output $@

incontext: $(INCONTEXT)/report.html $(INCONTEXT)/rules/result.json
	@echo
	echo "report:    $(INCONTEXT)/report.html (open it in a browser)"
	echo "accuracy:  by the number of examples in the prompt, in $(INCONTEXT)/rules"
	echo "try it:    $(MEGAGPT) generate --checkpoint $(INCONTEXT) --greedy --prompt $$'cQ\naT\ncQ\na'"

$(VENV)/installed-in-context: $(VENV)/installed
	$(PIP) --no-build-isolation --editable ".[in-context]"
	touch $@

$(INCONTEXT)/data/rules.jsonl: | $(VENV)/installed-in-context
	mkdir -p $(@D)
	$(MEGAGPT) data rules --count 130000 --output $@

$(INCONTEXT)/data/tokenizer.json: $(INCONTEXT)/data/rules.jsonl
	$(MEGAGPT) data tokenizer $< --vocab-size 257 --max-mb 1 --output $@

$(INCONTEXT)/data/rules.json: $(INCONTEXT)/data/tokenizer.json $(INCONTEXT)/data/rules.jsonl
	$(MEGAGPT) data preprocess $(INCONTEXT)/data/rules.jsonl --tokenizer $< --output $(INCONTEXT)/data/rules

$(INCONTEXT)/evaluation.json: $(INCONTEXT)/data/rules.json
	$(MEGAGPT) train --nproc-per-node $(RANKS) experiment=demo_incontext $(OVERRIDES)

$(INCONTEXT)/report.html: $(INCONTEXT)/evaluation.json
	$(MEGAGPT) report $(INCONTEXT)

# Rules that no document has, with 0 to 8 examples in the prompt.
$(INCONTEXT)/rules/result.json: $(INCONTEXT)/evaluation.json
	$(MEGAGPT) evaluate "tasks=[rules]" "shots=[0,1,2,4,8]" checkpoint=$(INCONTEXT) output=$(INCONTEXT)/rules

test: $(VENV)/installed-dev
	$(PYTHON) -m pytest --numprocesses $(WORKERS) $(SIDE_BY_SIDE) -m "not slow"

test-slow: $(VENV)/installed-dev
	$(PYTHON) -m pytest --numprocesses $(WORKERS) $(SIDE_BY_SIDE) -m slow --durations 25

# All cases of tests that have many: hours.
test-thorough: $(VENV)/installed-dev
	$(PYTHON) -m pytest --numprocesses $(WORKERS) $(SIDE_BY_SIDE) --durations 25 --thorough

test-all: $(VENV)/installed-dev
	$(PYTHON) -m pytest --numprocesses $(WORKERS) $(SIDE_BY_SIDE) --durations 25

# The wheel for this Python is taken whatever Python the version asks for, and comes first on the path.
MEGATRON := $(VENV)/megatron-core-$(VERSION)
MEGATRON_TESTS := tests/parallel tests/model tests/checkpoint/convert/test_megatron.py \
	tests/checkpoint/convert/test_megatron_dist.py tests/data/test_indexed.py tests/plan/test_trace.py \
	tests/stages/test_resume.py tests/rl/test_ppo.py

test-megatron-core: $(VENV)/installed-dev
	$(PYTHON) -m pip install --quiet --target $(MEGATRON) --upgrade --no-deps --ignore-requires-python megatron-core==$(VERSION)
	export PYTHONPATH=$(CURDIR)/$(MEGATRON)
	$(PYTHON) -c 'import megatron.core; assert megatron.core.__version__ == "$(VERSION)", megatron.core.__file__'
	$(PYTHON) -m pytest --numprocesses $(WORKERS) $(SIDE_BY_SIDE) --durations 10 $(MEGATRON_TESTS)

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) --no-build-isolation --editable ".[docs]"
	touch $@

docs: $(VENV)/installed-docs
	$(PYTHON) tools/build_docs.py --output build/docs
	@echo "open build/docs/html/index.html in a browser"

clean:
	rm -rf $(RUN) $(CODE) $(EDIT) $(CHAT) $(SFT) $(REWARD) $(PPO) $(EMBED) $(INCONTEXT)
