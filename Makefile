# make demo   explain a real network on drawn images, no network beyond pip; prints the atlas's path
# make test   the test suite
# make test-faults   long tests: lost nodes, storage, drivers, a submitted job
# make check  lint, types, import rule
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-faults check format pictures bench-quality bench-fit bench-planted bench-record bench-simulate bench-atlas bench-faults bench-gpu
demo: .venv/installed
	$(BIN)/neuroscribe demo

test: .venv/installed-dev
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# Runs with lost nodes, storage that is away, a full disk and killed drivers, and a submitted job: minutes each.
test-faults: .venv/installed-dev
	NEUROSCRIBE_FAULTS=1 $(BIN)/pytest tests/test_faults.py tests/test_cluster_jobs.py

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_house.py

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --editable '.[demo]'
	touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch .venv/installed $@

# The pictures of the README, from the demo's atlas; needs Chromium.
pictures: .venv/installed-dev
	$(BIN)/python docs/images/draw.py runs/demo/atlas

# Forward selection against the published search on real photographs (needs ../shared).
bench-quality: .venv/installed-dev
	$(BIN)/python benchmarks/quality.py examples/efficientnet-lite0-tiny-imagenet.yaml \
		--out runs/tiny-imagenet --results benchmarks/results/quality-tiny-imagenet.json

# Speed, memory and accuracy of moments and searches, against scikit-learn on the raw matrix.
bench-fit: .venv/installed-dev
	$(BIN)/python benchmarks/fit.py --results benchmarks/results/fit.json

# Planted neurons found again as noise, collinearity and the number of images change; draws the figure.
bench-planted: .venv/installed-dev
	$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/planted.py --results benchmarks/results/planted.json --figure docs/images/planted-recovery.svg

# Correlation with intervals, measures, null distribution and ablation, against plain loops.
bench-simulate: .venv/installed-dev
	$(BIN)/python benchmarks/simulate.py --results benchmarks/results/simulate.json
	$(BIN)/python benchmarks/ablation.py --results benchmarks/results/ablation.json

# The record stage end to end, against raw forward passes and a plain loop (needs ../shared); the recorder alone.
bench-record: .venv/installed-dev
	$(BIN)/python benchmarks/record.py --rounds 2 --compiled --results benchmarks/results/record.json
	$(BIN)/python benchmarks/recording.py --device cpu --images 512 --rounds 3 --results benchmarks/results/recording-cpu.json
	$(BIN)/python benchmarks/scaling.py --results benchmarks/results/scaling.json

# The atlas of 10^5 made-up neurons: time, memory and bytes to build, and how fast a browser shows it.
bench-atlas: .venv/installed-dev
	$(BIN)/python benchmarks/atlas.py --results benchmarks/results/atlas.json

# Faults of every kind in every stage, at random with a seed, until 60 are survived or the time is up.
bench-faults: .venv/installed-dev
	$(BIN)/python benchmarks/faults.py --faults 60 --each 10 --results benchmarks/results/faults.json

# Every figure and test that needs a GPU, under nine minutes; what is not installed is named and skipped.
bench-gpu:
	$(PYTHON) benchmarks/gpu.py
