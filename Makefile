# demo: from a fresh clone to a report of few pages. repro: all results again. The others: what they say. Running one twice does no work twice.
PYTHON ?= python3
VENV := .venv
FIND_LINKS := $(shell pip config get global.find-links 2>/dev/null)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export UV_HTTP_TIMEOUT := 300
# Tests start hundreds of processes, each of which would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo repro smoke check test test-cuda test-kernels test-device test-vllm lint audit setup docs vllm

demo: setup
	python -m examples.demo

# Hours: every result of the models in params.yaml that is stale.
repro: setup
	dvc repro
	@echo "The report is in artifacts/report/index.html"

# Pipeline, registry and look-up on the smallest settings, as Prefect flows, in a copy of the last commit.
smoke: setup
	python -m flows.smoke

setup: $(VENV)/.stamp

$(VENV)/.stamp: requirements.txt pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	command -v uv >/dev/null || $(VENV)/bin/python -m pip install --quiet uv
	uv pip install --python $(VENV)/bin/python --no-deps --compile-bytecode $(addprefix --find-links ,$(FIND_LINKS)) \
		-r requirements.txt
	uv pip install --python $(VENV)/bin/python --no-deps --editable .
	$(VENV)/bin/python -m sparsemm.ops.build
	touch $@

# What a contributor runs at every save: under 90 seconds on two idle cores. Long tests, and those that need servers or a
# device, are left out by their markers (tests/conftest.py).
CHECK_TESTS := align chase/test_strongest_keys.py cache/test_layer.py cache/test_slab.py evaluate/test_metrics.py \
	test_statistics.py layouts ops params policies test_allocations.py test_budgets.py test_imports.py \
	test_prompts.py test_contributing.py test_scores.py
check: setup
	OMP_NUM_THREADS=1 python -m pytest --numprocesses 2 --dist loadfile -m "not slow and not services and not cuda" \
		$(addprefix tests/,$(CHECK_TESTS))

# A thread of torch each, and a process more than the two cores it is meant for: many tests wait for servers. A crash of
# compiled code ends the run: another process in its place can leave it waiting for ever.
PYTEST := -m pytest --numprocesses 3 --dist loadfile --max-worker-restart 0
KERNEL_TESTS := tests/ops/test_sanitizers.py tests/ops/test_cuda.py
test: setup
	OMP_NUM_THREADS=1 python $(PYTEST) --no-loadscope-reorder --durations 20 $(addprefix --ignore ,$(KERNEL_TESTS))

# What needs a CUDA device or something in its place: both of the next two.
test-cuda: test-kernels test-device

# The kernels in their emulation and under sanitizers.
test-kernels: setup
	OMP_NUM_THREADS=1 python -m pytest --numprocesses 2 --dist worksteal $(KERNEL_TESTS)

# On a CUDA device, or where there is none on a stand-in for it: what is not about a device is left to `test`.
CUDA_TESTS := cuda_stand_in cache/test_device.py cache/test_graphs.py align benchmarks chase commands evaluate profiling \
	studies training report/test_stage.py test_families.py test_models.py
NOT_CUDA := $(addprefix tests/,benchmarks/test_controls.py benchmarks/test_peers.py training/test_card.py)
test-device: setup
	OMP_NUM_THREADS=1 python tests/cuda_stand_in $(PYTEST) --durations 10 \
		$(addprefix tests/,$(CUDA_TESTS)) $(addprefix --ignore ,$(NOT_CUDA)) \
		--deselect tests/evaluate/test_plugin.py::test_lmms_evals_command_line_says_what_the_stage_says

# vLLM wants other versions than the rest, so it has an environment of its own.
VLLM_BIN := $(CURDIR)/.venv-vllm/bin
vllm: .venv-vllm/.stamp

.venv-vllm/.stamp: requirements-vllm.txt pyproject.toml tests/vllm/environment/sitecustomize.py
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv .venv-vllm
	command -v uv >/dev/null || $(VLLM_BIN)/python -m pip install --quiet uv
	PATH=$(PATH):$(VLLM_BIN) uv pip install --python $(VLLM_BIN)/python --no-deps \
		$(addprefix --find-links ,$(FIND_LINKS)) -r requirements-vllm.txt
	PATH=$(PATH):$(VLLM_BIN) uv pip install --python $(VLLM_BIN)/python --no-deps --editable .
	cp tests/vllm/environment/sitecustomize.py $$($(VLLM_BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
	touch $@

# vLLM's own imports warn, so only warnings from SparseMM are errors here. SELECT="not slow": what CI runs.
test-vllm: vllm
	OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest tests/vllm -m "$(SELECT)" --confcutdir tests/vllm -o filterwarnings="error:::sparsemm" \
		--numprocesses 2 --dist load --durations 10

lint: setup
	ruff check . && ruff format --check . && mypy

audit: setup
	python .ci/audit.py

# The documentation site, in build/site; warnings are errors.
docs: .venv-docs/.stamp
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	@echo "The site is in build/site/index.html"

.venv-docs/.stamp: requirements-docs.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --no-deps -r requirements-docs.txt
	.venv-docs/bin/python -I -m pip check # a pin that is missing, wherever PYTHONPATH points
	touch $@
