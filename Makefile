# Everything sets up what it needs: Python 3.11 (as $(PYTHON)), make and git are enough on a fresh machine.
# ARGS is passed on: make test ARGS="tests/store -k minio", make demo ARGS="--store s3://bucket/prefix".

PYTHON ?= python3
UV_VERSION = 0.13.9
UV = .tools/uv-venv/bin/uv
BIN = .venv/bin
PROTOS = $(shell find ckptd/rpc -name '*.proto')
ARGS ?=

# Tests and demo start hundreds of processes; each would compile all of torch anew (6 s of CPU) where the environment forbids
# keeping what is compiled, for uv installs sources only.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup servers test lint proto demo chaos long bench
.DEFAULT_GOAL := help

help:
	@echo "make demo    a training job, a killed node, and what becomes of it (under 3 minutes)"
	@echo "make test    all tests"
	@echo "make lint    style, types, who may import whom"
	@echo "make chaos   break everything at random, check the invariants (25 minutes)"
	@echo "make long    many kills, many checkpoints: ARGS=fixed, changing or flat (docs/long-runs.md)"
	@echo "make bench   the figures, all or one: FIGURE=stall"
	@echo "make proto   generate the gRPC stubs anew"

# Synced again when a pyproject.toml or what is compiled changes.
setup: .venv/.synced

$(UV):
	$(PYTHON) -m venv .tools/uv-venv
	.tools/uv-venv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/.synced: pyproject.toml client/pyproject.toml $(wildcard ckptd/codec/_*.[ch] client/ckptd_client/_*.c) | $(UV)
	$(UV) sync --quiet --all-groups --python $(PYTHON)
	@touch $@

# What is measured beside us; `make setup` after it removes it again only when a pyproject.toml has changed.
.venv/.bench: .venv/.synced
	$(UV) sync --quiet --all-groups --extra bench --python $(PYTHON)
	@touch $@

# MinIO, Azurite and the like: built from pinned sources, or installed, when missing.
servers: setup
	@$(BIN)/python -m chaos.tools

test: servers
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

demo: setup
	$(BIN)/ckptd demo $(ARGS)

chaos: servers
	$(BIN)/python -m chaos.run $(ARGS)

long: servers
	$(BIN)/python -m chaos.long $(ARGS)

bench: servers .venv/.bench
	$(BIN)/python -m benchmarks.state
	$(BIN)/python -m benchmarks.$(or $(FIGURE),run) $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	@sh systemd/verify.sh $(CURDIR)/$(BIN)/ckptd

# From the root, so that a file's path is its Python package and the stubs import each other as they lie.
proto: setup
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)
