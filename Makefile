# finetune-operator: everything a person runs. `make help` lists it.
#
# What is built or downloaded lives outside the working tree, in $(FINETUNE_CACHE), keyed by what it was made from, so
# that a second run and a second clone find it there.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The system's Python where it will do, which is what the images run: distributions build theirs with profile-guided
# optimisation, and one that was built without it (pyenv's, unless told) took 1.6 times as long for plain Python.
FITTING := import ensurepip, os, sys, sysconfig as s; sys.exit(sys.version_info < (3, 11) or not os.path.exists(s.get_path("include") + "/Python.h"))
PYTHON ?= $(firstword $(shell for python in /usr/bin/python3 python3; do $$python -c '$(FITTING)' 2>/dev/null && echo $$python; done) python3)
export FINETUNE_CACHE ?= $(HOME)/.cache/finetune-operator
VENV := $(FINETUNE_CACHE)/venv-$(shell { $(PYTHON) -c 'import sys; print(sys.executable, sys.version)'; cat requirements/uv.txt requirements/dev.txt; } | sha256sum | cut -c1-12)
RUN := PYTHONPATH=operator:trainer:cli:. $(VENV)/bin/
HELM := $(FINETUNE_CACHE)/bin/helm

GPUS ?= 0
# What is installed into the embedded cluster besides, such as training-operator.
WITH ?=
ADDITIONS = $(addprefix --with ,$(WITH))
WORKERS ?= 2

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

# --- for a person who wants to see it ---------------------------------------------------------------------------------

.PHONY: demo
demo: $(if $(filter current,$(CLUSTER)),venv,programs-and-venv) ## bring up a cluster, install the chart, run the sample job to its end (CLUSTER=current uses your kubeconfig)
	@$(RUN)python -m dev.demo $(if $(filter current,$(CLUSTER)),--current)

.PHONY: tour
tour: $(if $(filter current,$(CLUSTER)),venv,programs-and-venv) ## the customer demo, step by step (PAUSE=1 waits for Enter before each, CLUSTER=current uses your kubeconfig)
	@$(RUN)python -m dev.tour $(if $(filter current,$(CLUSTER)),--current) $(if $(PAUSE),--pause)

.PHONY: cluster cluster-down cluster-status
cluster: programs-and-venv ## the embedded two-node Kubernetes with both images and a mirror of the Hub (GPUS=8 claims GPUs on each node, WITH=training-operator installs it)
	@$(PYTHON) -m dev.cluster up --gpus $(GPUS) $(ADDITIONS)
	@$(RUN)python -m dev.mirror

cluster-down: ## take it down and leave nothing behind
	@$(PYTHON) -m dev.cluster down

cluster-status: ## what of it is running
	@$(PYTHON) -m dev.cluster status

# --- for a person who changes it --------------------------------------------------------------------------------------

.PHONY: venv venv-path
venv: $(VENV)/.ready ## the Python environment, pinned and hashed, in the cache

venv-path: ## where that is
	@echo $(VENV)

# Its name has the digest of Python and the requirements: it is not older for a clone whose files are new.
$(VENV)/.ready:
	@echo "Python environment: installing $$(grep -c '==' requirements/dev.txt) packages (about 5 GB, once) into $(VENV)"
	@rm -rf "$(VENV)"
	$(PYTHON) -m venv "$(VENV)"
	"$(VENV)/bin/python" -m pip install --quiet --require-hashes -r requirements/uv.txt
	"$(VENV)/bin/uv" pip install --quiet --require-hashes --python "$(VENV)/bin/python" -r requirements/dev.txt
	@touch $@

.PHONY: test test-fast test-gang test-apiserver test-kueue test-e2e
test test-e2e: export WITH := training-operator
test: ## every test, the end-to-end ones on the embedded cluster included
	@$(MAKE) --no-print-directory programs-and-venv
	@$(MAKE) --no-print-directory lint test-fast test-gang test-apiserver
	@$(MAKE) --no-print-directory test-e2e

test-fast: venv ## what needs no cluster, a few minutes
	$(RUN)python -m pytest -n $(WORKERS) --dist loadfile -m "not gang and not apiserver and not kueue and not e2e"

test-gang: venv ## training in several processes, which spend tens of seconds on importing torch
	$(RUN)python -m pytest -m gang

# Each file has a control plane of its own, and waits for it more than it computes.
test-apiserver: venv cluster-programs ## what needs an API server and etcd, but no nodes
	$(RUN)python -m pytest -n $(WORKERS) --dist loadfile -m apiserver tests/integration

test-kueue: venv cluster-programs ## the same with Kueue itself, which the first time takes many minutes to build: no part of `make test`
	$(RUN)python -m pytest -m kueue tests/integration

# Most of their time is waiting: for a pod, a download, the end of a gang. So those that disturb nobody run side by side.
test-e2e: cluster ## what needs the whole cluster
	$(RUN)python -m pytest -n 3 --dist loadfile -m "e2e and beside" tests/e2e
	$(RUN)python -m pytest -m "e2e and not beside" tests/e2e

.PHONY: cluster-programs
cluster-programs: ## build the embedded cluster's programs into the cache
	@$(PYTHON) -m dev.cluster programs $(ADDITIONS)

.PHONY: programs-and-venv
programs-and-venv:
	@# The environment waits on the network and the disk while the cluster's programs wait on the processor.
	@$(MAKE) --no-print-directory --jobs=2 venv cluster-programs

.PHONY: lint
lint: venv cluster-programs ## ruff, mypy, the laws of the house, the chart, the Dockerfiles, the generated files
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy
	$(RUN)lint-imports
	$(RUN)hadolint operator/Dockerfile trainer/Dockerfile
	$(HELM) lint --strict helm/finetune-operator
	@$(MAKE) --no-print-directory check-generated

SBOM := build/sbom

.PHONY: sbom audit audit-or-say-so
sbom: venv ## a bill of materials (CycloneDX) of the Python packages of both images, into build/sbom
	@mkdir -p $(SBOM)
	$(VENV)/bin/cyclonedx-py requirements requirements/operator.txt --pyproject pyproject.toml --of JSON -o $(SBOM)/operator.cdx.json
	$(VENV)/bin/cyclonedx-py requirements requirements/trainer.txt --pyproject pyproject.toml --of JSON -o $(SBOM)/trainer.cdx.json

# Asks a public service, so it is no part of `make test`; CI asks too, and says loudly where it could not.
audit: venv ## known vulnerabilities of what is pinned, asked of OSV; needs the network
	@$(RUN)python -m dev.audit

audit-or-say-so: venv
	@$(RUN)python -m dev.audit --offline-passes

.PHONY: format
format: venv ## let ruff format and mend what it can
	$(RUN)ruff check --fix .
	$(RUN)ruff format .

.PHONY: docs docs-serve
docs: venv ## the guide as HTML into site/; ends with an error when a link leads nowhere
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet

docs-serve: venv ## the guide at http://127.0.0.1:8000, built anew at each change
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs serve

# --- generated files --------------------------------------------------------------------------------------------------

.PHONY: generate check-generated golden requirements
generate: venv cluster-programs ## the CRD, the plain manifest of the chart, the reference
	$(RUN)python -m dev.generate --helm $(HELM)

check-generated: venv cluster-programs
	$(RUN)python -m dev.generate --helm $(HELM) --check

golden: venv ## rewrite the golden manifests; read the difference before you commit it
	$(RUN)python -m pytest -q tests/golden --golden-update

PIP_COMPILE := $(VENV)/bin/uv pip compile --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
	--python-version 3.11 --custom-compile-command "make requirements" --quiet

requirements: venv ## pin and hash the requirement files anew from pyproject.toml
	$(PIP_COMPILE) pyproject.toml --extra operator --extra trainer --extra cli --group dev -o requirements/dev.txt
	$(PIP_COMPILE) pyproject.toml --extra operator -c requirements/dev.txt -o requirements/operator.txt
	$(PIP_COMPILE) pyproject.toml --extra trainer -c requirements/dev.txt -o requirements/trainer.txt
	$(PIP_COMPILE) pyproject.toml --extra cli -c requirements/dev.txt -o requirements/cli.txt
