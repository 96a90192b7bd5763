# make env    create an environment in $(VENV); nothing is installed outside it
# make demo   train a detector with PWLU from scratch, evaluate it, export its backbone
# make test   run the tests; make test-slow runs those that take minutes
# make gpu    on a machine with a GPU: build the kernels for it, test them, train, and measure (no network needed)
# make lint   run the linters; make format fixes what they can
#
# VENV        folder of the environment, created if absent
# RUN         the Python of an environment made otherwise, for make gpu
# PYTHON      the Python to create it with
# TORCH       pip requirements for torch, e.g. TORCH='torch==2.6.0 torchvision==0.21.0'
# DETECTRON2  pip requirement for detectron2 instead of the pinned wheel, e.g.
#             DETECTRON2='git+https://github.com/facebookresearch/detectron2.git'
VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch torchvision
DETECTRON2 ?=
OUTPUT ?= output/demo

PIP := $(VENV)/bin/pip --disable-pip-version-check
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.pwlu_det
KERNELS := $(wildcard pwlu_det/csrc/*.h pwlu_det/csrc/*/*.* pwlu_det/csrc/*/*/*)

.PHONY: env demo test test-slow gpu lint format clean
env: $(STAMP)

$(STAMP): requirements/env.txt requirements/evaluators.txt requirements/detectron2.txt pyproject.toml setup.py $(KERNELS)
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(PIP) install --no-cache-dir $(TORCH)
	$(PIP) install --no-cache-dir -r requirements/env.txt
	$(PIP) install --no-cache-dir --no-deps -r requirements/evaluators.txt
	$(RUN) -c "import detectron2" 2>/dev/null || $(MAKE) --no-print-directory detectron2
	$(PIP) install --no-build-isolation --no-deps -e .
	touch $@

# The wheel is tagged for Python 3.10, because of a compiled part that is not used: hence the options.
.PHONY: detectron2
detectron2:
ifeq ($(DETECTRON2),)
	$(PIP) install --no-cache-dir --no-deps --only-binary=:all: --implementation cp --python-version 3.10 \
	  --target "$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	  -r requirements/detectron2.txt
else
	$(PIP) install --no-cache-dir --no-build-isolation '$(DETECTRON2)'
endif

demo: env
	$(RUN) tools/demo.py --output $(OUTPUT)

# Two processes with one thread each: tests spend most of their time starting the commands that they run. glibc
# raises its threshold with every large tensor that is freed, and then keeps their memory, unless it is fixed.
# Files stay together, as their tests share fixtures.
PYTEST := OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=131072 $(RUN) -m pytest -n 2 --dist loadfile

test: env
	$(PYTEST) -m "not slow"

test-slow: env
	$(PYTEST) -m slow -rs

# It does not depend on env, which may need a network.
gpu:
	$(RUN) tools/gpu_report.py

lint: env
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(KERNELS)

format: env
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(VENV)/bin/clang-format -i $(KERNELS)

clean:
	rm -rf output build *.egg-info pwlu_det/_C*
