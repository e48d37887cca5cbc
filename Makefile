# Everything happens in a virtual environment of its own, .venv
PYTHON ?= python3
# Installed before all else, so that no other package chooses it. For PyTorch's CPU build, smaller by gigabytes, add the
# --index-url that its page on installation gives
TORCH ?= torch==2.13.0
ENV ?= BreakoutNoFrameskip-v4
STEPS ?= 10000
SEED ?= 0
SUITE ?= classic
LOGS ?= logs
# hyperparams/<name>.yml. CONF= is RL Zoo's budget, for which Atari needs 7 GB
CONF ?= $(if $(findstring NoFrameskip,$(ENV)),low_budget)
BIN := .venv/bin

.PHONY: train test pytest test-slow soak bench-replay bench-training bench-update bench-atari bench-checkpoint bench-sweep bench-gpu bench-smoke bench-learning report type lint format check-codestyle commit-checks clean

# Train on a real game through RL Zoo, then draw the learning curve and film the agent
train: .venv/ready
	$(BIN)/python -m rl_zoo3.train --algo rainbow --env $(ENV) -n $(STEPS) --seed $(SEED) -f $(LOGS) --eval-freq -1 -P $(if $(CONF),-conf $(CONF))
	$(BIN)/python examples/show_run.py $(LOGS)/rainbow --env $(ENV)

# What CI runs. Types are checked while the first tests wait for their processes
test: .venv/ready check-codestyle
	$(MAKE) -j 2 type pytest

pytest: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

# The long forms, and examples that the tests have not seen
test-slow: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --hypothesis-profile default -m slow -s
	$(BIN)/python -m pytest -n 2 --hypothesis-profile default tests/test_frames.py tests/test_losses.py tests/test_n_step.py \
		tests/test_priorities.py tests/test_replay_buffer.py

# Kills, full disks, memory: the long forms of what the tests try a few times
soak: .venv/ready
	$(BIN)/python -m pytest --hypothesis-profile default -m slow -s tests/test_checkpoint.py tests/test_fuzz.py

bench-replay: .venv/ready
	$(BIN)/python benchmarks/speed/bench_replay.py

# Peers of the benchmarks need an environment of their own, see CONTRIBUTING.md; those that are not installed are left out
bench-training: .venv/ready
	$(BIN)/python benchmarks/speed/bench_training.py

bench-update: .venv/ready
	$(BIN)/python benchmarks/speed/bench_update.py

bench-atari: .venv/ready
	$(BIN)/python benchmarks/speed/bench_atari.py

bench-checkpoint: .venv/ready
	$(BIN)/python benchmarks/speed/bench_checkpoint.py

bench-sweep: .venv/ready
	$(BIN)/python benchmarks/speed/bench_sweep.py

bench-gpu: .venv/ready
	$(BIN)/python benchmarks/speed/bench_gpu.py

# Has a change made training slow? Under three minutes
bench-smoke: .venv/ready
	$(BIN)/python benchmarks/speed/bench_training.py --smoke

bench-learning: .venv/ready
	$(BIN)/python benchmarks/learning/run.py $(SUITE)

# Tables and figures of what bench-learning has done so far
report: .venv/ready
	$(BIN)/python benchmarks/learning/report.py $(SUITE)

type: .venv/ready
	$(BIN)/mypy

lint: .venv/ready
	$(BIN)/ruff check .

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check-codestyle: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

commit-checks: format type lint

# What was trained, in logs, stays
clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/ready: pyproject.toml hatch_build.py sb3_rainbow_zoo.pth
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q -e ".[dev]"
	touch $@
