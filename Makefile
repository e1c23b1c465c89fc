# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-lab setup-tests demo test-fast test test-all lint bench clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## make the environments that everything below needs (each target does this itself)
	@tests/tools/setup.sh

setup-lab:
	@tests/tools/setup.sh lab

setup-tests:
	@tests/tools/setup.sh tests

demo: setup-lab ## break a real Linux guest with a guarded change, and watch it come back
	@. tests/tools/env.sh && tests/lab/build_guest.sh && .venv/bin/python tests/demo/run_demo.py

test-fast: setup-lab ## lint, and the tests that boot no virtual machine (under 3 minutes)
	@tests/tools/test.sh fast

test: setup-tests ## what CI runs: all but the slow ones, with real QEMU and a real guest (about half an hour on two cores)
	@tests/tools/test.sh test

test-all: setup-tests ## everything, the slow ones and the documentation site as well
	@tests/tools/test.sh all

lint: setup ## the static checks alone
	@tests/tools/test.sh lint

bench: setup-lab ## measure beside others; asserts nothing (5 minutes, and the first time 560 MB of their collections)
	@. tests/tools/env.sh && .venv/bin/python tests/benchmarks/run.py

clean: ## remove all that was made here
	rm -rf .ansible .cache .hypothesis .venv .venv-2.16 .venv-2.21 tests/output
