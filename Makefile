# make test    lint, types, tests: what CI runs            make demo    the whole loop on the embedded sample
# make bench   measurements, beside a peer                 make clean   what the other targets made, but not .venv
# make wheel   dist/underpar-*.whl; with WITHOUT="sample record" without the sample of text and without record.pack
#
# The first target makes .venv with the versions of constraints.txt. TORCH=system takes torch, and all else that is
# already there and fits pyproject.toml, from the Python that runs (for a machine with its own CUDA build).

PYTHON ?= python3
TORCH ?= pinned
PY := .venv/bin/python

# This Python's packages are put on the new environment's path by name: --system-site-packages would leave out those of
# a Python that is itself a virtual environment.
ifeq ($(TORCH),system)
share := import sys; \
  open(sys.argv[1] + "/system.pth", "w").write("\n".join(p for p in sys.path if p.endswith("-packages")))
else ifneq ($(TORCH),pinned)
$(error TORCH=$(TORCH): expected pinned or system)
endif

# awk: the lines of constraints.txt about packages that are not there yet.
absent := function id(name) { name = tolower(name); gsub(/[-_.]+/, "-", name); return name } \
  NR == FNR { there[id($$1)]; next } !(id($$1) in there)

.PHONY: demo test lint bench wheel clean

demo: .venv/.ready
	$(PY) -m underpar demo

test: lint .venv/.compiled
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --dist loadfile  # a file's tests share what they make

lint: .venv/.ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: .venv/.ready
	$(PY) -m pytest -s -m benchmark

WITHOUT ?=
files_sample := trainer/sample/*.xz trainer/sample/*.model
files_record := artifacts/models/record.pack
wheel: .venv/.ready
	rm -rf build/wheel && mkdir -p build/wheel
	git archive HEAD | tar -x -C build/wheel
	cd build/wheel && rm -f $(foreach part,$(WITHOUT),$(or $(files_$(part)),$(error WITHOUT=$(part): expected sample or record)))
	$(PY) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist build/wheel

clean:
	rm -rf build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -exec rm -rf {} +

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "underpar needs Python 3.11 or later; name one with: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python has no venv module; on Debian: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
ifeq ($(TORCH),system)
	$(PY) -m pip uninstall --quiet --yes setuptools  # the old one of Python 3.11's venv would hide this Python's
	$(PYTHON) -c '$(share)' "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(PY) -c 'import torch; print("torch", torch.__version__, "of this machine")'
	$(PY) -m pip list --format=freeze | awk -F== '$(absent)' - constraints.txt > .venv/constraints.txt
else
	cp constraints.txt .venv/constraints.txt
endif
	$(PY) -m pip install --constraint .venv/constraints.txt 'setuptools>=77'
	$(PY) -m pip install --constraint .venv/constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@

.venv/.compiled: .venv/.ready  # what processes side by side would each compile
	$(PY) -m underpar prove artifacts/models/small.pack --docs trainer/sample/val.jsonl.xz --documents 1
	touch $@
