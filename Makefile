# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
#
# The entry point for developers: it installs what is needed and runs the right program. setup.py
# builds the native part. V=1 shows commands; VMLINUX=build/vmlinux builds with what "make vmlinux"
# wrote.

PYTHON ?= python3
MINUTES ?= 30
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/ready
# What the build requires, from pyproject.toml.
REQUIRES = $(shell sed -n 's/^requires = \[\(.*\)\]$$/\1/p' pyproject.toml | tr -d ',')

# A plain path, because setuptools' import hook would add 10 ms to each start. (Its editable installs
# leave out data files, so the man page and the completions are linked.)
EDITABLE := --config-settings editable_mode=compat

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# Root must leave no files in a tree that is not root's.
AS_ROOT := $(if $(SUDO),sudo env PYTHONDONTWRITEBYTECODE=1)
Q := $(if $(filter 1,$(V)),,@)
QUIET := $(if $(filter 1,$(V)),,-q)

# bpftool is in /usr/sbin, which an ordinary user's PATH may lack.
export PATH := $(PATH):/usr/sbin:/sbin
# In a developer's build, warnings in our C are errors.
export PYBOOTSTRAP_WERROR := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export V VMLINUX

BUILT = build dist $(VENV) *.egg-info examples/*/build examples/*/dist examples/*/*.egg-info examples/*/*/*.bpf.o pybootstrap/engine/*.so .hypothesis .*_cache \
	__pycache__ */__pycache__ */*/__pycache__ */*/*/__pycache__
# The project that "make new" writes.
TEMPLATE := pybootstrap/engine/template
C_FILES = $(wildcard bpf/*.[ch] pybootstrap/*.c pybootstrap/engine/native/*.[ch] $(TEMPLATE)/bpf/*.c vmlinux/*.h bench/*.[ch] tests/exactness/*.c tests/live/*.c tests/sanitize/*.c examples/*/bpf/*.[ch])

EXAMPLES = $(addprefix ./,$(wildcard examples/*))

# Programs outside the package; each directory is checked by itself.
SCRIPTS = $(wildcard bench packaging tests/exactness tests/matrix tests/wheels tests/sanitize tests/service tests/fuzz tests/soak)

# Projects of their own, with tests.
EXAMPLES = $(wildcard examples/*)

# The end of a recipe whose shell has put the names of missing packages into $$missing.
define INSTALL_MISSING
test -n "$$missing" || exit 0; \
	echo "  APT    $$missing"; \
	command -v apt-get >/dev/null || { \
		echo "make: no apt-get here: install what corresponds to$$missing, and try again" >&2; exit 1; }; \
	test -z "$(SUDO)" || command -v sudo >/dev/null || { \
		echo "make: installing$$missing needs root: run 'make deps' as root once" >&2; exit 1; }; \
	install() { $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >build/apt.log 2>&1; }; \
	mkdir -p build; \
	install || { $(SUDO) apt-get update -qq >build/apt.log 2>&1 && install; } || { cat build/apt.log >&2; exit 1; }
endef

.DELETE_ON_ERROR:
.PHONY: all deps test-deps run test test-kernels kernel-deps test-wheels roots-deps test-service service-deps lint format sanitize fuzz soak bench wheels reproduce release new new-deps vmlinux clean help

all: $(READY) build/bootstrap.1 ## Build into .venv (the default)
	$(Q)$(PY) setup.py $(QUIET) build_completions build_ext --inplace

build/bootstrap.1: docs/bootstrap.1.in pybootstrap/cli.py pybootstrap/engine/options.py pybootstrap/_version.py | $(READY)
	@echo "  MAN     $@"
	$(Q)$(PY) setup.py $(QUIET) build_manpages >build/man.log

$(READY): pyproject.toml setup.py | deps
	@echo "  VENV    $(VENV)"
	$(Q)$(PYTHON) -m venv $(VENV)
	$(Q)$(PY) -m pip install $(QUIET) $(REQUIRES)
	$(Q)$(PY) setup.py $(QUIET) build_ext --inplace
	@echo "  PIP     pybootstrap-bpf[test,dev]"
	$(Q)$(PY) -m pip install $(QUIET) --no-build-isolation $(EDITABLE) -e '.[test,dev]'
	$(Q)mkdir -p $(VENV)/share/man/man1
	$(Q)ln -sf $(CURDIR)/build/bootstrap.1 $(VENV)/share/man/man1/
	$(Q)cp -rsf $(CURDIR)/build/share $(VENV)/ && find $(VENV)/share -name '*.inputs' -delete
	@touch $@

deps: ## Install the system packages that are missing (Debian, Ubuntu)
	@missing=; \
	need() { name=$$1; shift; "$$@" >/dev/null 2>&1 || missing="$$missing $$name"; }; \
	bpftool() { command bpftool version || command -v /usr/lib/linux-tools*/*/bpftool; }; \
	bpftool_package() { grep -qs '^ID=ubuntu' /etc/os-release && echo linux-tools-generic || echo bpftool; }; \
	need clang clang --version; \
	need clang-format clang-format --version; \
	need "$$(bpftool_package)" bpftool; \
	need gcc cc --version; \
	need libc6-dev test -e /usr/include/stdlib.h; \
	need pkg-config pkg-config --version; \
	need libelf-dev pkg-config libelf; \
	need zlib1g-dev pkg-config zlib; \
	test -e libbpf/src/Makefile || need libbpf-dev pkg-config 'libbpf >= 1.0'; \
	need python3-venv $(PYTHON) -c 'import ensurepip, venv'; \
	need python3-dev $(PYTHON) -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")'; \
	$(INSTALL_MISSING)

# A first run should show something on an idle machine, too.
run: all ## Build and run the command, as root: make run ARGS='-d 10'; without ARGS a demonstration
ifeq ($(strip $(ARGS)),)
	@echo "Six events of this machine, while this runs sleep and false. Without these: make run ARGS='-d 10'"
	@while kill -0 $$$$ 2>/dev/null; do sleep 0.1; /bin/false; done & \
	$(AS_ROOT) $(VENV)/bin/bootstrap -n 6
else
	@$(AS_ROOT) $(VENV)/bin/bootstrap $(ARGS)
endif

# Programs that read our JSON in the tests, a workload, shells, and what the examples' tests need.
test-deps: | deps
	@missing=; \
	need() { name=$$1; shift; "$$@" >/dev/null 2>&1 || missing="$$missing $$name"; }; \
	need jq jq --version; \
	need nodejs node --version; \
	need perl perl -MJSON::PP -e 1; \
	need stress-ng stress-ng --version; \
	need bash-completion test -e /usr/share/bash-completion/bash_completion; \
	need zsh zsh --version; \
	need fish fish --version; \
	need iproute2 ip -V; \
	need iputils-ping ping -V; \
	$(INSTALL_MISSING)

test: all test-deps ## Run all tests, as root: make test ARGS='-k exec'
	@$(AS_ROOT) env PYBOOTSTRAP_REQUIRE_KERNEL=1 $(PY) -m pytest -p no:cacheprovider $(ARGS)

# The inputs of the wheels that decide what it does on a kernel.
WHEEL_INPUTS = $(wildcard bpf/*.[ch] vmlinux/*.h pybootstrap/*.py pybootstrap/*/*.py pybootstrap/*.c pybootstrap/engine/native/* packaging/*.py packaging/*.txt) setup.py pyproject.toml

build/kernels/wheel: $(WHEEL_INPUTS) | all
	$(Q)$(MAKE) wheels

kernel-deps: | deps
	@missing=; \
	need() { name=$$1; shift; "$$@" >/dev/null 2>&1 || missing="$$missing $$name"; }; \
	need qemu-system-x86 qemu-system-x86_64 --version; \
	need busybox-static busybox true; \
	$(INSTALL_MISSING)

test-kernels: build/kernels/wheel kernel-deps ## Run the checks of tests/matrix on Debian's kernels, old and new
	$(Q)ls dist/*_x86_64.whl >/dev/null 2>&1 || $(MAKE) wheels
	@echo "  WHEEL   examples/*"
	$(Q)rm -rf build/kernels/examples
	$(Q)$(PY) -m pip wheel $(QUIET) --no-deps --no-build-isolation -w build/kernels/examples $(EXAMPLES)
	$(Q)$(PY) tests/matrix/run.py --wheel dist/*_x86_64.whl \
		$$(printf -- '--example %s ' build/kernels/examples/*.whl) --cache build/kernels $(ARGS)

service-deps: | deps
	@missing=; \
	need() { name=$$1; shift; "$$@" >/dev/null 2>&1 || missing="$$missing $$name"; }; \
	need systemd test -x /lib/systemd/systemd; \
	need python3-venv /usr/bin/python3 -c 'import venv'; \
	$(INSTALL_MISSING)

test-service: build/kernels/wheel service-deps ## Run the systemd unit under systemd as init, as root
	@$(AS_ROOT) $(PY) tests/service/run.py --wheel dist/*_x86_64.whl $(ARGS)

lint: all ## Check style and types
	$(Q)$(PY) -m ruff check $(QUIET)
	$(Q)$(PY) -m ruff format --check $(QUIET)
	$(Q)$(PY) -m mypy --no-error-summary
	$(Q)set -e; for scripts in $(SCRIPTS); do \
		MYPYPATH=$$scripts:tests/matrix $(PY) -m mypy --no-error-summary --explicit-package-bases $$scripts; \
	done
	$(Q)set -e; for example in $(EXAMPLES); do \
		MYPYPATH=$$example:$$example/tests $(PY) -m mypy --no-error-summary --explicit-package-bases $$example; \
	done
	$(Q)MYPYPATH=$(TEMPLATE) $(PY) -m mypy --no-error-summary --explicit-package-bases $(wildcard $(TEMPLATE)/*.py $(TEMPLATE)/*/*.py)
	$(Q)clang-format --dry-run -Werror $(C_FILES)

format: all ## Format Python and C
	$(Q)$(PY) -m ruff check --fix $(QUIET)
	$(Q)$(PY) -m ruff format $(QUIET)
	$(Q)clang-format -i $(C_FILES)

sanitize: all ## Run the shim under ASan, UBSan and LSan, as root
	@$(AS_ROOT) $(PY) tests/sanitize/run.py $(ARGS)

fuzz: all ## Fuzz the decoder and the renderers: make fuzz ARGS='--seconds 600'
	@$(PY) tests/fuzz/fuzz_decode.py $(ARGS)

soak: all ## Trace under a mixed load, as root: make soak MINUTES=30
	@$(AS_ROOT) $(PY) tests/soak/soak.py --minutes $(MINUTES) $(ARGS)

bench: all ## Measure, as root, next to the other tracers that are installed
	@$(AS_ROOT) $(PY) bench/run.py $(ARGS)

# Built in an environment of its own, because other versions of the tools may give other bytes.
TOOLS := build/wheels/venv

$(TOOLS)/ready: packaging/requirements.txt | deps
	@echo "  VENV    $(TOOLS)"
	$(Q)$(PYTHON) -m venv --clear $(TOOLS)
	$(Q)$(TOOLS)/bin/python -m pip install $(QUIET) -r $<
	@touch $@

wheels: $(TOOLS)/ready ## Make the sdist and the wheels for other machines, in dist/
	$(Q)$(TOOLS)/bin/python packaging/wheels.py
	$(Q)mkdir -p build/kernels && touch build/kernels/wheel
	@ls -1 dist/*

reproduce: $(TOOLS)/ready ## Build them again from a copy in another directory, and compare
	$(Q)$(TOOLS)/bin/python packaging/reproduce.py

release: $(TOOLS)/ready ## Build, compare and check what would be uploaded; it uploads nothing
	$(Q)test -z "$$(git status --porcelain)" || { \
		echo "make: the tree has changes that are not committed: commit or remove them" >&2; exit 1; }
	$(Q)$(MAKE) wheels
	$(Q)$(MAKE) reproduce
	$(Q)$(TOOLS)/bin/twine check --strict dist/*.whl dist/*.tar.gz
	@echo "To be uploaded:"; cat dist/SHA256SUMS

roots-deps: | deps
	@missing=; \
	need() { name=$$1; shift; "$$@" >/dev/null 2>&1 || missing="$$missing $$name"; }; \
	need qemu-system-arm qemu-system-aarch64 --version; \
	need busybox-static busybox true; \
	$(INSTALL_MISSING)

test-wheels: build/kernels/wheel $(TOOLS)/ready roots-deps ## Install the wheels in Debian roots, old and new, of x86_64 and aarch64
	$(Q)ls dist/*_x86_64.whl dist/*_aarch64.whl >/dev/null 2>&1 || $(MAKE) wheels
	@$(AS_ROOT) $(PY) tests/wheels/run.py --zig "$(TOOLS)/bin/python -m ziglang" $(ARGS)

# pybootstrap can use a checkout of libbpf; a tool is compiled against the system's headers.
new-deps: | deps
	@missing=; \
	need() { name=$$1; shift; "$$@" >/dev/null 2>&1 || missing="$$missing $$name"; }; \
	need libbpf-dev pkg-config 'libbpf >= 1.0'; \
	$(INSTALL_MISSING)

new: | new-deps ## Write the project of a tool of your own: make new NAME=mytool DIR=../mytool
	@$(PYTHON) -m pybootstrap.engine.new '$(NAME)' '$(or $(DIR),../$(NAME))'

vmlinux: | deps ## Write all types of the running kernel to build/vmlinux/vmlinux.h
	@echo "  BTF     build/vmlinux/vmlinux.h"
	$(Q)mkdir -p build/vmlinux
	$(Q)$${BPFTOOL:-bpftool} btf dump file /sys/kernel/btf/vmlinux format c >build/vmlinux/vmlinux.h || \
		{ rm -f build/vmlinux/vmlinux.h; exit 1; }

clean: ## Remove what was built
	$(Q)rm -rf $(BUILT) 2>/dev/null || $(SUDO) rm -rf $(BUILT)

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20
