# Every task of the repository by name; `make` alone lists them (a target ends in `## group: what it does`).

# From the command line only: names as plain as OUT mean other things in other people's environments.
PROJECT =
CONFIG  = demo
STAGE   =
TOOL    =
GPUS    = 1
NODES   = 1
CKPT    =
OUT     =
ARGS    =
FROM    =
TO      =
SLURM   =
WORKERS = 2

# From the command line or the environment. VENV= (empty) uses PYTHON as it is and installs nothing.
PYTHON ?= python3
VENV   ?= .venv

.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

# ---- the environment: made on first use, brought up to date when the pinned versions change --------------------------

# An environment that stands keeps its Python unless PYTHON is given.
BASE  := $(if $(and $(filter file,$(origin PYTHON)),$(wildcard $(VENV)/bin/python)),$(VENV)/bin/python,$(PYTHON))
XY    := $(shell $(BASE) -c 'import sys; print("%d%d" % sys.version_info[:2])' 2>/dev/null)
LOCK  := requirements/py$(XY).txt
BIN   := $(if $(VENV),$(VENV)/bin/)
PY    := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
READY := $(if $(VENV),$(VENV)/.ready-$(XY)-$(firstword $(shell cksum $(LOCK) 2>/dev/null)))
BENCH := $(if $(VENV),$(READY)-bench)

$(READY):
	@requirements/install.sh '$(BASE)' '$(VENV)' '$(LOCK)' '$@'

$(BENCH): $(READY)
	$(PY) -m pip install --disable-pip-version-check --no-deps -r requirements/bench.txt
	@touch '$@'

# ---- what was asked for ----------------------------------------------------------------------------------------------

# A folder is a project when it has a train.py; whoever adds one edits nothing here.
PROJECTS := $(sort $(patsubst projects/%/train.py,%,$(wildcard projects/*/train.py)))
CONFIGS   = $(sort $(patsubst projects/$(PROJECT)/configs/%.yaml,%,$(wildcard projects/$(PROJECT)/configs/*.yaml)))
STAGES    = $(sort $(patsubst projects/$(PROJECT)/train_%.py,%,$(wildcard projects/$(PROJECT)/train_*.py)))
TOOLS     = $(filter-out __init__,$(sort $(patsubst projects/$(PROJECT)/%.py,%,$(shell \
	grep -l '__name__ == "__main__"' projects/$(PROJECT)/*.py 2>/dev/null))))
YAML      = $(if $(filter %.yaml,$(CONFIG)),$(CONFIG),projects/$(PROJECT)/configs/$(CONFIG).yaml)
TESTS     = $(if $(PROJECT),tests/$(PROJECT),tests)

quote   = '$(subst ','\'',$1)'
nearest = $(or $(shell $(BASE) -c 'import difflib, sys; given, *names = sys.argv[1:]; \
	print(*sorted(names, key=lambda name: -difflib.SequenceMatcher(None, given, name).ratio()), sep=", ")' \
	$(call quote,$2) $3),none yet)
# $(call known,NAME,value,valid ones): stop unless the value is one of them.
known   = $(if $(filter-out $3,$(or $2,?)),$(error $(if $2,$1=$2 is not known here,$1 is missing); valid: \
	$(call nearest,$1,$2,$3)))

# OUT comes last: it holds against the run.out of an @file in ARGS too.
OPTIONS = $(ARGS) $(if $(OUT),$(call quote,run.out=$(OUT)))
WEIGHTS = $(if $(CKPT),$(call quote,ckpt=$(CKPT)))
# The same command as one process, as one process per GPU, or as a job on several machines.
RUN     = $(if $(filter-out 0 1,$(NODES)),$(PY) -m core.slurm nodes=$(NODES) gpus=$(GPUS) $(SLURM) --,$(PY) \
	$(if $(filter-out 0 1,$(GPUS)),-m torch.distributed.run --standalone --nproc-per-node $(GPUS)) -m)
PYTEST  = OMP_NUM_THREADS=1 $(PY) -m pytest

.PHONY: help setup train eval predict convert doctor demo tool transcode slurm config summary tensorboard bench test test-dist \
	test-gpu test-all golden check format clean lock project project-if-given projects config-file stage demo-data

project:
	@:$(call known,PROJECT,$(PROJECT),$(PROJECTS))

project-if-given:
	@:$(if $(PROJECT),$(call known,PROJECT,$(PROJECT),$(PROJECTS)))

# CONFIG is a name, or a file of one's own.
config-file: project
	@:$(if $(filter %.yaml,$(CONFIG)),\
	$(if $(wildcard $(CONFIG)),,$(error CONFIG=$(CONFIG): no such file)),$(call known,CONFIG,$(CONFIG),$(CONFIGS)))

stage: project
	@:$(if $(STAGE),$(call known,STAGE,$(STAGE),$(STAGES)))

demo-data: $(READY)
	$(if $(filter demo,$(CONFIG)),@$(PY) -m projects.$(PROJECT).demo --data-only)

# ---- work ------------------------------------------------------------------------------------------------------------

setup: $(READY) ## work: make or update the environment (targets that need it do so by themselves)
	@echo '$(or $(VENV),$(PYTHON)) is ready'

train: config-file stage $(READY) demo-data ## work: train PROJECT with CONFIG, evaluate, write the report
	$(RUN) projects.$(PROJECT).train$(if $(STAGE),_$(STAGE)) $(YAML) $(OPTIONS)

eval: config-file $(READY) demo-data ## work: evaluate CKPT, or the best weights of OUT
	$(RUN) projects.$(PROJECT).eval $(YAML) $(WEIGHTS) $(OPTIONS)

predict: config-file $(READY) demo-data ## work: answer for inputs without labels, as a file and a report
	$(PY) -m projects.$(PROJECT).predict $(YAML) $(WEIGHTS) $(OPTIONS)

convert: project $(READY) ## work: turn the official weights CKPT into ours at OUT
	$(PY) -m projects.$(PROJECT).convert $(if $(CKPT),$(call quote,$(CKPT))) $(if $(OUT),$(call quote,$(OUT))) $(ARGS)

doctor: config-file $(READY) demo-data ## work: check machine, data, geometry and weights before a run
	$(PY) -m projects.$(PROJECT).doctor $(YAML) $(OPTIONS)

demo: project-if-given $(READY) ## work: data, training, evaluation and prediction in a minute (PROJECT, or all)
	@set -e; for name in $(or $(PROJECT),$(PROJECTS)); do $(PY) -m projects.$$name.demo $(ARGS); done

tool: project $(READY) ## work: any other command of PROJECT by its name: TOOL=NAME ARGS="..." (--help explains it)
	@:$(call known,TOOL,$(TOOL),$(TOOLS))
	$(PY) -m projects.$(PROJECT).$(TOOL) $(ARGS)

transcode: $(READY) ## work: scale the videos of FROM once into TO, resumable; ARGS="short_side=256 workers=8"
	$(PY) -m core.video transcode $(call quote,$(FROM)) $(call quote,$(TO)) $(ARGS)

slurm: config-file stage $(READY) demo-data ## work: train as a SLURM job of NODES x GPUS (SLURM="hours=24")
	$(PY) -m core.slurm nodes=$(NODES) gpus=$(GPUS) $(SLURM) -- \
	projects.$(PROJECT).train$(if $(STAGE),_$(STAGE)) $(YAML) $(OPTIONS)

# ---- look ------------------------------------------------------------------------------------------------------------

help: ## look: this list
	@awk 'BEGIN { FS = ":.*## "; split("work look trust", order, " ") } \
	/^[a-z-]+:.*## / { split($$2, part, ": "); text = substr($$2, length(part[1]) + 3); \
	group[part[1]] = group[part[1]] sprintf("  %-12s %s\n", $$1, text) } \
	END { for (i = 1; i <= 3; i++) printf "%s%s\n%s", (i > 1 ? "\n" : ""), order[i], group[order[i]] }' Makefile
	@printf '\n%s\n  %s\n' 'variables' \
	'PROJECT  CONFIG=demo  STAGE=  TOOL=  GPUS=1  NODES=1  CKPT=  OUT=  ARGS="key=value ..."  PYTHON=python3  VENV=.venv'
	@printf '\n%s\n  %s\n' 'projects' '$(or $(PROJECTS),none yet)'

config: config-file stage $(READY) ## look: print the resolved configuration
	@$(PY) -m projects.$(PROJECT).train$(if $(STAGE),_$(STAGE)) $(YAML) $(OPTIONS) --print

summary: config-file $(READY) ## look: parameters and multiply-adds of the model, by module
	@$(PY) -m projects.$(PROJECT).model $(YAML) $(OPTIONS)

tensorboard: $(READY) ## look: curves of all runs, or of OUT
	$(PY) -m tensorboard.main --logdir $(call quote,$(or $(OUT),runs)) $(ARGS)

bench: $(BENCH) ## look: measure speed against other libraries (ARGS="video loader" for some benches)
	$(PY) -m bench $(ARGS)

# ---- trust -----------------------------------------------------------------------------------------------------------

test: project-if-given $(READY) ## trust: the tests, of all or of PROJECT, without those that need a GPU
	$(PYTEST) -n $(WORKERS) -m 'not gpu' $(TESTS) $(ARGS)

test-dist: project-if-given $(READY) ## trust: what needs two processes
	$(PYTEST) -m dist $(TESTS) $(ARGS)

test-gpu: project-if-given $(READY) ## trust: what needs a CUDA device
	$(PYTEST) -m gpu $(TESTS) $(ARGS)

test-all: project-if-given $(READY) ## trust: everything this machine can run
	$(PYTEST) -n $(WORKERS) $(TESTS) $(ARGS)

golden: project-if-given $(READY) ## trust: parity with the official code, as a table
	$(PYTEST) -n $(WORKERS) -m golden $(if $(PROJECT),tests/core) $(TESTS) $(ARGS)

check: $(READY) ## trust: ruff, mypy (strict on core), import contracts
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)mypy
	$(BIN)lint-imports --no-logo

format: $(READY) ## trust: let ruff repair and format what it can
	$(BIN)ruff check --fix .
	$(BIN)ruff format .

lock: ## trust: choose the newest versions again (see CONTRIBUTING.md)
	@requirements/lock.sh '$(PYTHON)'

clean: ## trust: remove caches; data, runs and the environment stay
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find bench core projects tests -name __pycache__ -type d -prune -exec rm -rf {} +
