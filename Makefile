# make run    the whole study into runs/$(RUN_NAME) (default: the embedded phantom; a few minutes on 2 cores)
# make verify  the default study into runs/verify, compared with the numbers in tests/golden/
# make test   everything but CUDA: the tests, the committed notebooks once, and what they left
# make test-quick   the tests of at most three seconds; test-plain: all that execute no notebook
# make test-sample  the notebooks on real VQAv2
# make gpu    tests and benchmarks on CUDA with what is installed, in under seven minutes
# make address ADDRESS=https://github.com/you/fork   (into badges and setup cells)
# Settings are passed on, for example: make run SEED=1 RUN_NAME=second
#   make run PROFILE=colab DATA_ROOT=path/to/vqav2 CHECKPOINT=data/phantom-vilt
#   make run RUN_NAME=longer SET="epochs=6 batch_size=32"     (any setting of helpers/run/settings.py)
#   make run MODELS="path/to/vilt,path/to/another"   (fine-tuned models to analyse in 03 to 06)
#   make run RUNS="longer second"     (the report compares this run with these)
#   make sweep SEEDS="0 1 2"          (a run a seed; the last one's report compares them)
PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV ?= .venv
PROFILE ?= phantom
SEED ?= 0
RUN_NAME ?=
DATA_ROOT ?=
CHECKPOINT ?=
MODELS ?=
SET ?=
RUNS ?=
SEEDS ?= 0 1 2

BIN := $(VENV)/bin
# Bars and hub look-ups have no place in a saved notebook or an offline run.
export TQDM_DISABLE := 1
export HF_HUB_OFFLINE := $(if $(filter phantom,$(PROFILE)),1,)
export PYTHONHASHSEED := 0
# Threads that wait hand over their core: beside other work a training step takes a tenth of the time.
export OMP_WAIT_POLICY := PASSIVE

GIVEN = --profile "$(PROFILE)" --seed "$(SEED)" --run-name "$(RUN_NAME)" \
	--data-root "$(DATA_ROOT)" --checkpoint "$(CHECKPOINT)" --set $(SET) $(if $(MODELS),models=$(MODELS))

NOTEBOOKS = $(sort $(wildcard notebooks/*.ipynb notebooks/appendix/*.ipynb))
# What the others need, in this order, and what needs them all; the others run side by side.
FIRST = notebooks/01_setup.ipynb notebooks/03_layer_attention.ipynb
LAST = notebooks/07_report.ipynb

.PHONY: run sweep verify test test-quick test-plain test-chain test-sample lint render bench gpu replicas clean

run: $(VENV)/made
	$(BIN)/python -m tools.run_notebooks $(GIVEN) --runs $(RUNS)

sweep: $(VENV)/made
	$(BIN)/python -m tools.run_notebooks $(GIVEN) --seeds $(SEEDS)

verify: $(VENV)/made
	$(BIN)/python -m tools.verify

# One thread a process: the models are small, and two threads take twice as long as one.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
CHAIN := $(PYTEST) --nbval-lax --nbval-cell-timeout=900
SHARED := -n 2 --dist loadfile --no-loadscope-reorder  # long files come first: tests/conftest.py

test-quick: $(VENV)/made
	$(PYTEST) $(SHARED) -m "not slow and not browser and not notebooks and not gpu"

test-plain: $(VENV)/made
	$(PYTEST) $(SHARED) -m "not gpu and not notebooks"

# The chain begins and ends with a single process: the tests beside it keep the second core busy.
test: $(VENV)/made
	$(MAKE) --no-print-directory -j2 --output-sync=target test-plain test-chain

test-chain: $(VENV)/made
	$(CHAIN) $(FIRST)
	$(CHAIN) $(SHARED) $(filter-out $(FIRST) $(LAST),$(NOTEBOOKS))
	$(CHAIN) $(LAST) tests/tools/test_notebooks.py

test-sample: $(VENV)/made
	TEST_SAMPLE=1 $(BIN)/python -m pytest -m notebooks -k real_questions tests/tools

lint: $(VENV)/made
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tools.check_counts

render: $(VENV)/made
	$(BIN)/python -m tools.run_notebooks --render

bench: $(VENV)/made
	for name in extract prepare train; do \
		$(BIN)/python benchmarks/bench_$$name.py $(if $(DATA_ROOT),--data-root "$(DATA_ROOT)") || exit 1; done
	$(BIN)/python benchmarks/bench_ablate.py
	$(BIN)/python benchmarks/bench_prune.py
	$(BIN)/python benchmarks/bench_scale.py

gpu:  # builds and downloads nothing
	$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/bench_gpu.py

address: $(VENV)/made
	$(BIN)/python -m tools.address $(ADDRESS)

# About an hour on 2 cores; a killed call goes on.
replicas: $(VENV)/made
	$(BIN)/python -m tools.replicas

clean:
	rm -rf runs data/generated

$(VENV)/made: requirements.txt
	$(PYTHON) -m venv $(VENV)
	-$(BIN)/python -m pip install --quiet --upgrade pip  # 3.11's own takes 98 s of a core, not 41
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@
