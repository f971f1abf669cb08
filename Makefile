# Every target sets up what it needs: each works alone on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt
# A file stays in one process: its fixtures, such as models and tokenizers, are made once.
PARALLEL_TESTS := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

export RAY_USAGE_STATS_ENABLED ?= 0
# Each process that a test starts would compile the modules anew.
unexport PYTHONDONTWRITEBYTECODE

# Two targets at once would install into one environment at once.
.NOTPARALLEL:
.PHONY: help vendor setup serve test test-fast test-all test-clients coverage wheel k8s nodes image gpu fuzz fuzz-schemas fuzz-kernels planted-faults fuzz-http chaos soak bench plots lint format clean

help:
	@echo "make serve      serve serve_config.yaml on http://127.0.0.1:8000 (Ctrl-C stops it)"
	@echo "make test       run tests of every kind, also on real Ray clusters and in Chromium, without the slow ones; twelve minutes on two cores"
	@echo "make test-fast  run the tests without Ray clusters and browser that take less than a second; of each at most 12 cases"
	@echo "make test-all   run every test; half an hour on two cores. SLOW_PART=0/8: the first eighth of the slow ones, as CI does"
	@echo "make test-clients  run clients of other projects, unchanged, against phi-3-tiny, and write docs/clients.md"
	@echo "make test-clients NAMES=\"openai ollama\"  only those; they write nothing"
	@echo "make coverage   run the tests without Ray clusters and browser, with the lines and branches that no test reached"
	@echo "make fuzz       compare 20,000 random requests with transformers, token for token; about an hour on two cores"
	@echo "make fuzz CASES=2000 QUANTIZATION=int4   the same with weights in int4, int8, gguf-q4_k_m, gguf-q4_0, gguf-q8_0 or stored-bfloat16"
	@echo "make fuzz CASES=2000 RUNNER=device   the same with the runner of a GPU, without its kernels"
	@echo "make fuzz-schemas  ask for JSON of 2,000 random schemas; every finished answer must validate; ten minutes on two cores"
	@echo "make fuzz-kernels  compare the GPU's kernels with the reference on 400 random shapes, in Triton's interpreter"
	@echo "make planted-faults  plant faults in the GPU's kernels and runner, one by one, and show which test notices each; an hour on two cores"
	@echo "make fuzz-http  throw 10,000 good and bad requests at the API; none may get a 5xx"
	@echo "make chaos      ten minutes of load while something random dies every ten seconds: who was answered, who was lost"
	@echo "make soak       an hour of load while nothing dies: memory, threads and files, before and after"
	@echo "make bench      the engine beside transformers on this machine, in tokens per second; three minutes"
	@echo "make vendor     fetch the libraries of the chat page anew, with npm; their versions and checksums are in tests/web/vendor.py"
	@echo "make k8s        render k8s/ and check it against the schemas of Kubernetes and KubeRay, without a cluster; writes k8s/rayservice.yaml"
	@echo "make nodes      the Serve config of k8s/base on Ray nodes in network namespaces, from zero, with the loss of a node; needs root, iproute2 and curl"
	@echo "make image      carry out the Dockerfile without Docker, run the image in a network namespace and ask it; needs root, iproute2 and tini"
	@echo "make plots      draw docs/images/*.svg from docs/data/*.json"
	@echo "make gpu        check and measure the engine on the GPU of this machine, nine minutes at most; needs only PYTHON with torch, transformers, triton; PARTS=\"kernels mini\": only those"
	@echo "make lint       formatting, lint rules, strict types, import contracts"
	@echo "make format     let ruff format and mend"
	@echo "make wheel      build the wheel and the source archive, and print what the wheel contains"
	@echo "make setup      only make $(VENV), with every version of constraints.txt"

setup: $(VENV)/.dev

# Both install the package itself, which compiles its kernels; so the second does not wait for the first.
INSTALLED_FROM := pyproject.toml setup.py constraints.txt $(shell find phi3_serve/engine/kernels/csrc -name '*.cpp' -o -name '*.h')
define install
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v not in ((3, 11), (3, 12)) and f"Python 3.11 or 3.12 is needed, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the packages of constraints.txt into $(VENV) (once, some minutes) ..."
	$(PIP) -q -e $(1)
	@touch $(VENV)/.runtime $@
endef

$(VENV)/.runtime: $(INSTALLED_FROM)
	$(call install,.)

$(VENV)/.dev: $(INSTALLED_FROM)
	$(call install,.[dev])

serve: $(VENV)/.runtime
	@exec $(BIN)/phi3-serve up serve_config.yaml

# Tests without clusters run in one process for each core. The others share clusters and measure times.
test: $(VENV)/.dev
	$(PARALLEL_TESTS) -m "not cluster and not slow"
	$(BIN)/python -m pytest -m "cluster and not slow"

# SLOW_PART=I/N: of the slow tests only part I of N. RERUNS=1: run a test that fails once more, and list it.
CHOSEN = $(addprefix --slow-part=,$(SLOW_PART)) $(addprefix -rR --reruns=,$(RERUNS))
test-all: $(VENV)/.dev
	$(PARALLEL_TESTS) -m "not cluster" $(CHOSEN)
	$(BIN)/python -m pytest -m cluster $(CHOSEN)

test-fast: $(VENV)/.dev
	$(PARALLEL_TESTS) -m "not cluster and not browser and not slow and not thorough" --max-cases 12

# Each environment is made once for each version of its requirements. The packages pass by while they are installed.
CLIENTS := $(VENV)-clients
CLIENT_PIP := bin/python -m pip install --disable-pip-version-check --progress-bar off

test-clients: $(VENV)/.dev $(CLIENTS)/.done $(CLIENTS)-openai-2/.done $(CLIENTS)-benchmarks/.done tests/clients/javascript/node_modules/.done
	$(BIN)/python -m tests.clients $(CLIENTS) $(NAMES)

$(CLIENTS)/.done: tests/clients/requirements.txt tests/clients/requirements-without-dependencies.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/$(CLIENT_PIP) -r $<
	$(@D)/$(CLIENT_PIP) --no-deps -r tests/clients/requirements-without-dependencies.txt
	@touch $@

$(CLIENTS)-%/.done: tests/clients/requirements-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/$(CLIENT_PIP) -r $<
	@touch $@

tests/clients/javascript/node_modules/.done: tests/clients/javascript/package.json
	cd tests/clients/javascript && npm install --no-audit --no-fund
	@touch $@

coverage: $(VENV)/.dev
	$(PARALLEL_TESTS) -m "not cluster and not browser" --cov --cov-report=term-missing:skip-covered

fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.engine.parity $(or $(CASES),20000) $(or $(SEED),100) $(or $(QUANTIZATION),none) $(or $(RUNNER),host) $(if $(ADAPTERS),adapters)

fuzz-schemas: $(VENV)/.dev
	$(BIN)/python -m tests.structured.fuzz $(or $(CASES),2000) $(or $(SEED),0)

fuzz-kernels: $(VENV)/.dev
	$(BIN)/python -m tests.engine.kernels.fuzz $(or $(CASES),400) $(or $(SEED),0)

planted-faults: $(VENV)/.dev
	$(BIN)/python -m tests.engine.planted_faults $(WORDS)

fuzz-http: $(VENV)/.dev
	FUZZ_EXAMPLES=$(or $(EXAMPLES),10000) $(BIN)/python -m pytest -p schemathesis.pytest.plugin tests/api/test_openapi_fuzz.py

chaos: $(VENV)/.dev
	$(BIN)/python -m tests.serving.chaos --seconds $(or $(SECONDS),600) --every $(or $(EVERY),10) --seed $(or $(SEED),0)

soak: $(VENV)/.dev
	$(BIN)/python -m tests.serving.chaos --seconds $(or $(SECONDS),3600) --every 0

bench: $(VENV)/.runtime
	$(BIN)/phi3-serve bench engine --concurrency 1,16 --peers generate,batching

k8s: $(VENV)/.dev
	$(BIN)/python -m tests.k8s

nodes: $(VENV)/.dev
	$(BIN)/python -m tests.k8s.nodes

image: $(VENV)/.dev
	$(BIN)/python -m tests.image $(or $(STAGES),cpu)

plots:
	PYTHONPATH=. $(PYTHON) docs/plots.py

vendor:
	$(PYTHON) -m tests.web.vendor

gpu:
	PYTHONPATH=. $(PYTHON) -m tests.gpu $(PARTS)

wheel: $(VENV)/.dev
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python -m zipfile -l dist/*.whl

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(CLIENTS)* tests/clients/javascript/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info build dist
