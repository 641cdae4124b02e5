# One command per verb. Every verb does what it needs itself: on a fresh clone, with nothing but Python 3.11 and make, it
# makes .venv, installs the pinned versions of constraints.txt into it, and runs. `make help` lists the verbs.

VENV      := .venv
RUN       := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# A rival that only benchmarks need, WeightWatcher, is in an environment of its own, with the same pinned versions.
BENCH_VENV := .venv-bench
BENCHED    := $(BENCH_VENV)/.installed
# Python to make .venv with: `make PYTHON=/path/to/python3.11 test`. Left out, the first of these that is 3.11 or newer.
PYTHON    ?=
CANDIDATES := $(or $(PYTHON),python3.11 python3 python3.12 python3.13)

# Both names, because pip renamed the variable that also holds build environments to the constraints.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test check bench bench-kills bench-trainers bench-subscribers bench-overload bench-soak bench-fuzz \
  bench-spectra bench-scale bench-gpu bench-venv venv clean
.DEFAULT_GOAL := help

help:  ## list the verbs
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24

demo: $(INSTALLED)  ## a real training run with a collapsing layer, watched by a real daemon
	@$(RUN) -m rankd demo

# Much of the suite waits for processes and their patience: several tests at once, how many tests/conftest.py says.
test: $(INSTALLED)  ## the whole test suite; ARGS="-k wire" narrows it, ARGS="-n 0" runs one test after the other
	@$(RUN) -m pytest --numprocesses auto --dist worksteal $(ARGS)

check: $(INSTALLED)  ## lint, format and types
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

# Those that need what few machines have: atheris, a CUDA device.
BY_HAND := benchmarks/fuzz_codec.py benchmarks/spectra_gpu.py benchmarks/tap_gpu.py benchmarks/two_gpus.py

bench: $(INSTALLED)  ## every benchmark, the long ones for a minute; one JSON object a line
	@failed=; for file in $(filter-out $(BY_HAND),$(wildcard benchmarks/[!_]*.py)); do \
	  echo "== $$file" >&2; $(RUN) "$$file" || failed="$$failed $$file"; \
	done; \
	if [ -n "$$failed" ]; then echo "make: failed:$$failed" >&2; exit 1; fi

bench-kills: $(INSTALLED)  ## a daemon killed 100 times while it records: what is lost; 8 minutes
	@$(RUN) benchmarks/kills.py --kills 100 --measurements 5000 $(ARGS)

bench-trainers: $(INSTALLED)  ## 64 trainers at once: fairness and memory; 5 minutes
	@$(RUN) benchmarks/trainers.py --trainers 64 --seconds 300 $(ARGS)

bench-subscribers: $(INSTALLED)  ## 50 subscribers, 10 of them stuck: the delay of the others; 5 minutes
	@$(RUN) benchmarks/subscribers.py --windows 7 --window-seconds 40 $(ARGS)

bench-overload: $(INSTALLED)  ## ten times what a daemon can measure: memory, lag, what is still measured; 5 minutes
	@$(RUN) benchmarks/overload.py --minutes 5 $(ARGS)

bench-soak: $(INSTALLED)  ## runs, subscribers and daemons come and go: memory and open files; 30 minutes
	@$(RUN) benchmarks/soak.py --minutes 30 --kill-seconds 180 $(ARGS)

bench-fuzz: $(INSTALLED)  ## fuzzing of every reader of foreign bytes, then of a daemon on raw sockets; 20 minutes
	@$(RUN) -c 'import atheris' 2>/dev/null || \
	  $(RUN) -m pip install --quiet --editable ./client --editable '.[fuzz]'
	@$(RUN) benchmarks/fuzz_codec.py --minutes 10 --inputs 1000000 $(ARGS)
	@$(RUN) benchmarks/fuzz_sockets.py --seconds 600

bench-spectra: $(BENCHED)  ## the spectral engine on the CPU: cost beside svdvals and WeightWatcher, bars, scaling; minutes
	@failed=; run() { $(BENCH_VENV)/bin/python "$$@" || failed="$$failed $$1"; }; \
	run benchmarks/spectra_cpu.py; \
	run benchmarks/bars.py --seeds 50; \
	run benchmarks/scaling.py --device cpu --picture docs/scaling-cpu.svg; \
	if [ -n "$$failed" ]; then echo "make: failed:$$failed" >&2; exit 1; fi

bench-scale: $(INSTALLED)  ## what models of 7 B to 405 B need: measured, fitted, computed; docs/scaling.md; 20 minutes
	@$(RUN) benchmarks/scale.py --long $(ARGS)

bench-gpu: $(INSTALLED)  ## the spectral engine on a CUDA device: cost beside svdvals, bars, scaling; minutes
	@failed=; run() { $(RUN) "$$@" || failed="$$failed $$1"; }; \
	run benchmarks/spectra_gpu.py; \
	run benchmarks/bars.py --seeds 50 --device cuda; \
	run benchmarks/scaling.py --device cuda --picture docs/scaling-cuda.svg; \
	if [ -n "$$failed" ]; then echo "make: failed:$$failed" >&2; exit 1; fi

bench-venv: $(BENCHED)  ## only make .venv-bench, with the rivals that benchmarks are compared with

venv: $(INSTALLED)  ## only make .venv

clean:  ## remove .venv, caches and build products
	rm -rf $(VENV) $(BENCH_VENV) build dist client/build client/dist *.egg-info client/*.egg-info \
	  .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Touched last, so that an install that broke off is tried again.
$(INSTALLED): pyproject.toml client/pyproject.toml constraints.txt
	@set -e; found=; \
	for python in $(CANDIDATES); do \
	  "$$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  found="$$python"; break; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "make: none of [$(CANDIDATES)] is Python 3.11 or newer with venv; name one: make PYTHON=/path/to/it" >&2; \
	  exit 1; \
	fi; \
	echo "make: $(VENV) with $$("$$found" --version), versions from constraints.txt" >&2; \
	"$$found" -m venv $(VENV); \
	$(RUN) -m pip install --quiet --editable ./client --editable '.[dev]'; \
	touch $@

$(BENCHED): $(INSTALLED) benchmarks/requirements.txt
	@$(RUN) -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install --quiet --editable ./client --editable . -r benchmarks/requirements.txt
	@touch $@
