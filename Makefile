# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-lab setup-tests demo test-fast test test-all lint bench clean

help: ## list all targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## create the environments for all other targets (each target does this itself)
	@tests/tools/setup.sh

setup-lab:
	@tests/tools/setup.sh lab

setup-tests:
	@tests/tools/setup.sh tests

demo: setup-lab ## break a real Linux guest with a guarded change, and watch the rollback
	@. tests/tools/env.sh && tests/lab/build_guest.sh && .venv/bin/python tests/demo/run_demo.py

test-fast: setup-lab ## run lint and all tests that boot no virtual machine (under 3 minutes)
	@tests/tools/test.sh fast

test: setup-tests ## run all tests except the slow ones, as in CI, with real QEMU and a real guest (about 25 minutes on two cores)
	@tests/tools/test.sh test

test-all: setup-tests ## run all tests, including the slow ones, and build the documentation site
	@tests/tools/test.sh all

lint: setup ## run the static checks only
	@tests/tools/test.sh lint

bench: setup-lab ## compare the performance with other collections (5 minutes; the first run downloads 560 MB)
	@. tests/tools/env.sh && .venv/bin/python tests/benchmarks/run.py

clean: ## remove all generated files
	rm -rf .ansible .cache .hypothesis .venv .venv-2.16 .venv-2.21 tests/output
