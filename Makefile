# Everything a person, a hook or a CI job does here goes through these targets. `make help` lists them.

PYTHON ?= python3.11
EXTRA  ?= $(if $(shell command -v nvidia-smi),gpu,cpu)# the engine: cpu or gpu
PORT   ?= 8000#                                         where `run` listens
ARGS   ?=#                                              more arguments for run, test or lock
ROWS   ?= demo1,demo4,demo16,r16x1,r16x4,r16x16,r64x4,prefill1,prefill16,crowd16,whole16,slots,zipf# of bench

BIN     := .venv/bin
BASE    := .base/demo
STATE   := .state
LOCK    := locks/$(if $(filter gpu,$(EXTRA)),dev-gpu,dev).txt
QUIET   := $(if $(MAKE_TERMERR),,--quiet)# uv draws its progress on a terminal and nowhere else
COMPILE := $(BIN)/uv pip compile --quiet --generate-hashes --no-header \
           --no-emit-index-url --no-emit-find-links --python-version 3.11
EXTRAS  := $(COMPILE) pyproject.toml --overrides locks/overrides.txt --python-platform x86_64-manylinux_2_34

# torch's CPU build is not on PyPI. It comes from a directory of wheels that uv or pip was told of, if the locked one
# lies there, else from PyTorch's own index. The locks' hashes decide what is accepted, whichever index it came from.
TORCH   = $(shell sed -n 's/^torch==\([^ ]*+cpu\).*/\1/p' $(LOCK))
WHEELS  = $(subst $(COMMA), ,$(UV_FIND_LINKS)) $(or $(PIP_FIND_LINKS),$(shell $(BIN)/python -m pip config get global.find-links 2>/dev/null))
LOCAL   = $(firstword $(dir $(wildcard $(WHEELS:%=%/torch-$(TORCH)-*.whl))))
SOURCE  = $(if $(TORCH),$(if $(LOCAL),--find-links $(LOCAL),--extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match))
COMMA  := ,

# Where the machine has certificates of its own, a company's among them, uv trusts those, as pip does.
export UV_SYSTEM_CERTS ?= $(if $(wildcard /etc/ssl/certs/*.crt /etc/pki/tls/certs/*.crt),true,false)

.DEFAULT_GOAL := help
.PHONY: help install demo run test lint format bench adapters lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/.installed-$(EXTRA) ## Make .venv and install the locked set (EXTRA=cpu or gpu; found out by itself)
	@:

.venv/.uv: locks/uv.txt
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes --requirement locks/uv.txt
	@touch $@

.venv/.installed-$(EXTRA): $(LOCK) locks/build.txt pyproject.toml | .venv/.uv
	@echo "Installing $(LOCK): what isn't in uv's cache is downloaded first, which can take minutes."
	@rm -f .venv/.installed-*
	@$(BIN)/uv pip sync $(QUIET) --python $(BIN)/python --require-hashes --compile-bytecode $(SOURCE) $(LOCK)
	@$(BIN)/uv pip install $(QUIET) --python $(BIN)/python --no-deps --build-constraints locks/build.txt --editable .
	@touch $@

demo: install # Put the embedded demo base in place
	@$(BIN)/loradock demo-model $(BASE)

run: demo ## Serve the demo base and the adapters in adapters/ on 127.0.0.1 (PORT=8000)
	@exec $(BIN)/loradock serve --model $(BASE) --adapters-dir adapters --state-dir $(STATE) --port $(PORT) $(ARGS)

test: demo ## Run the whole test suite (ARGS="-k name" for a part)
	@$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: install ## Check style, types, layers, and the deployment files
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/yamllint --strict .
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml docker-compose.gpu.yml
	@sh -n .ci/run

format: install ## Format the code and repair what ruff can
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

bench: demo ## Measure throughput, swaps, kills, floods and loads beside vLLM's own server, and merging beside PEFT
	@$(BIN)/python bench/side_by_side.py --base $(BASE) --adapter adapters/pirate --rows $(ROWS)
	@$(BIN)/python bench/registrations.py --base $(BASE) --adapter adapters/pirate --servers loradock,vllm-same
	@$(BIN)/python bench/lora_step.py
	@$(BIN)/python bench/front_end.py --base $(BASE) --servers loradock,vllm-same --minutes 10
	@$(BIN)/python bench/swaps.py --base $(BASE) --adapters adapters
	@$(BIN)/python bench/cold_loads.py --base $(BASE) --servers loradock,vllm-same
	@$(BIN)/python bench/flood.py --base $(BASE) --adapter adapters/pirate --servers loradock,vllm-same
	@$(BIN)/python bench/residency.py --base $(BASE) --adapters adapters
	@$(BIN)/python bench/kills.py --base $(BASE) --adapters adapters
	@$(BIN)/python bench/merge.py --base $(BASE) --adapter adapters/pirate

adapters: demo ## Train the demo adapters again
	@$(BIN)/python adapters/train.py --base $(BASE) --out adapters

lock: .venv/.uv ## Resolve the locks again, keeping versions where possible (ARGS=--upgrade takes new ones)
	$(EXTRAS) $(SOURCE) $(ARGS) --extra cpu --group dev --output-file locks/dev.txt
	$(EXTRAS) $(SOURCE) --extra cpu --constraints locks/dev.txt --output-file locks/cpu.txt
	cp locks/dev.txt locks/dev-gpu.txt # uv keeps the versions it finds in the file it writes
	$(EXTRAS) --extra gpu --group dev --output-file locks/dev-gpu.txt
	$(EXTRAS) --extra gpu --constraints locks/dev-gpu.txt --output-file locks/gpu.txt
	echo uv | $(COMPILE) - --constraints locks/dev.txt --output-file locks/uv.txt
	printf 'hatchling\neditables\n' | $(COMPILE) - --constraints locks/dev.txt --output-file locks/build.txt

clean: ## Remove .venv, the demo base and every cache; .state stays
	rm -rf .venv .base dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
