# vmae2_ds: what a stranger types. Every target makes .venv first if it is absent; nothing needs sudo.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(abspath $(VENV))/bin
STAMP  := $(VENV)/.installed
# One more than the two cores that CI has: while a test waits for what it started, another computes. With 4 it takes longer.
WORKERS ?= 3
# A file's tests stay in one worker, and files start in the order of tests/longest_first.py. A worker that dies ends the run:
# pytest-xdist 3.8 would wait for ever after it.
SPREAD := -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# The launcher starts `python`, `ninja` and itself by name; DeepSpeed's small C++ builds are kept beside the environment.
export PATH := $(BIN):$(PATH)
export TORCH_EXTENSIONS_DIR ?= $(abspath $(VENV))/torch_extensions
export OMP_NUM_THREADS ?= 1
# Where this is set, every process would compile every module of ours again, and make test starts a thousand.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv quickstart test check gpu bench visit deepspeed clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## make .venv and install the package with its tools (PYTHON=python3.12 picks another interpreter)

$(STAMP): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 10) <= v < (3, 13) or sys.exit(f"make: $(PYTHON) is Python {v[0]}.{v[1]}; vmae2_ds needs 3.10 to 3.12: try make venv PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu it is in the package python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev,hf,bench]' -c constraints.txt
	@touch $@

# One plain moving shape a video, a small model, Muon and pixels as target: what shows something within minutes (docs/LOG.md).
# An interrupted quickstart goes on, a finished one is run anew. With GPUs: make quickstart DS_ACCELERATOR=cuda RANKS=1
quickstart: export DS_ACCELERATOR ?= cpu
quickstart: RANKS ?= 2
quickstart: STEPS ?= 1000
quickstart: SEED ?= 0
quickstart: quickstart_data/train.csv ## make videos, pre-train with dual masking on 2 ranks under ZeRO, draw unseen ones (under 10 minutes on 2 cores)
	$(BIN)/deepspeed --num_accelerators $(RANKS) --module vmae2_ds pretrain vit_ti_pretrain_quickstart \
		--data.manifest quickstart_data/train.csv --train.max-steps $(STEPS) --train.seed $(SEED) --train.runs runs/quickstart
	$(BIN)/vmae2 visualize runs/quickstart/vit_ti_pretrain_quickstart --manifest quickstart_data/val.csv
	@echo "videos: quickstart_data/ (val.csv lists those that were not trained on); run folder, report and pictures are named above"

quickstart_data/train.csv: | venv
	$(BIN)/vmae2 data synth quickstart_data --look plain --size 64 --frames 16 --train-videos 512 --val-videos 48

test: venv ## every test that needs no GPU (under half an hour on 2 cores)
	$(BIN)/python -m pytest -m "not gpu" $(SPREAD)

check: venv ## what a change has to pass before it is pushed: ruff, mypy, the fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow and not gpu" $(SPREAD)

gpu: venv ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

# A variant that fails is a row with its reason: the report is written then too, and make ends as the run did.
bench: venv ## every benchmark case at small size, and a report of it (under 20 minutes on 2 cores)
	$(BIN)/python -m benchmarks run --all --quick; code=$$?; $(BIN)/python -m benchmarks report && exit $$code

visit: MINUTES ?= 10
visit: venv ## ten minutes on this machine's GPU: what is worth most, and a report of it (MINUTES=5 for less)
	$(BIN)/python -m benchmarks visit --minutes $(MINUTES)

# An environment that has the DeepSpeed asked for in front of .venv's packages: torch is the one of .venv, nothing is compiled.
deepspeed: OTHER = build/deepspeed/$(VERSION)
deepspeed: venv ## cases that DeepSpeed may get silently wrong, with another version: make deepspeed VERSION=0.19.3
	@test -n "$(VERSION)" || { echo "make: name a version: make deepspeed VERSION=0.19.3" >&2; exit 1; }
	test -x $(OTHER)/bin/python || $(BIN)/python -m venv --without-pip $(OTHER)
	$(BIN)/python -c 'import pathlib, sysconfig; mine = sysconfig.get_paths()["purelib"]; \
		[path.joinpath("behind.pth").write_text(mine) for path in pathlib.Path("$(OTHER)").glob("lib/python3*/site-packages")]'
	DS_BUILD_OPS=0 $(BIN)/python -m pip --python $(OTHER)/bin/python install --disable-pip-version-check --quiet --no-deps \
		--no-build-isolation --ignore-installed deepspeed==$(VERSION)
	nice $(OTHER)/bin/python -m benchmarks.deepspeed --rows build/deepspeed/$(VERSION).jsonl

clean: ## remove what was built (not .venv, not runs/)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache quickstart_data
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
