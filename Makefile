# Everything CI does, by name; `make check` is all of it that needs no GPU. After
#   python3 -m venv .venv && .venv/bin/pip install -e '.[test,dev]'
# the targets use that environment; PYTHON=... names another.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
BIN = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
PYTEST = $(PYTHON) -P -m pytest
SOURCES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
ISAS = baseline avx2 avx512 avx512_bf16 amx

.PHONY: build test isa triton lint format types tables cuda-check triton-check sanitize bench \
  bench-quick gpu wheel sdist dist check clean

build:  ## install in place; recompiles only the kernels that changed
	$(PYTHON) -m pip install --quiet --no-deps -e .

test:
	$(PYTEST)

isa:  ## the CPU kernels once per instruction set this processor has; `make test` does it too
	@for isa in $(ISAS); do \
	  reason=$$(CLIPWEATHER_CPU_ISA=$$isa $(PYTHON) -P -c \
	    'from clipweather_fast.ops import _native; print(_native.why_not_loaded() or "")'); \
	  if [ -n "$$reason" ]; then \
	    echo "isa: $$isa skipped: $$reason"; \
	    if [ $$isa = baseline ]; then exit 1; fi; \
	    continue; \
	  fi; \
	  echo "isa: $$isa"; \
	  CLIPWEATHER_CPU_ISA=$$isa $(PYTEST) -q --backend cpu --brief tests/ops || exit 1; \
	done

triton:  ## the Triton kernels, interpreted on the CPU; `make test` does it too
	TRITON_INTERPRET=1 $(PYTEST) -q --backend triton --brief tests/ops

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	$(BIN)/clang-format -i $(SOURCES)

types:
	$(PYTHON) -m mypy

tables:  ## the README's tables that follow from the code
	$(PYTHON) docs/readme_tables.py

cuda-check:  ## registers and spills of every CUDA kernel; compiles with warnings as errors
	$(PYTHON) -m benchmarks.ptxas

triton-check:  ## registers and shared memory of every Triton kernel, compiled for sm_90
	$(PYTHON) -m benchmarks.triton_resources

# A copy of the package with the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer.
# libstdc++ is preloaded as well, or AddressSanitizer does not see the exceptions it throws.
SANITIZED = build/sanitize/site
sanitize:
	rm -rf $(SANITIZED)
	mkdir -p $(SANITIZED)
	cp -r clipweather_fast $(SANITIZED)/
	rm -f $(SANITIZED)/clipweather_fast/_C*.so
	cmake -S . -B build/sanitize/cmake -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1 -fno-var-tracking" \
	  -DPython_EXECUTABLE=$(shell $(PYTHON) -c 'import sys; print(sys.executable)') \
	  -Dpybind11_DIR=$(shell $(PYTHON) -m pybind11 --cmakedir) \
	  -DCLIPWEATHER_CUDA=off -DCLIPWEATHER_SANITIZE=address,undefined \
	  -DCLIPWEATHER_OUTPUT_DIR=$(CURDIR)/$(SANITIZED)/clipweather_fast \
	  -DCLIPWEATHER_OUTPUT_NAME=_C$(shell $(PYTHON) -c \
	    'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
	cmake --build build/sanitize/cmake
	$(MAKE) isa PYTHON="env PYTHONPATH=$(CURDIR)/$(SANITIZED) \
	  LD_PRELOAD='$(shell g++ -print-file-name=libasan.so) $(shell g++ -print-file-name=libstdc++.so)' \
	  ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(PYTHON)"

bench:  ## the headline's shapes, with the allocator of the claims and for a look with glibc's default
	$(PYTEST) benchmarks
	$(PYTEST) benchmarks/ops/bench_sar_conv2d.py --bench-allocator default
	$(PYTHON) -m benchmarks.report

bench-quick:  ## every benchmark's correctness gate and one short timing
	$(PYTEST) benchmarks --quick

gpu:  ## builds, tests, sanitizes and benchmarks on a machine with a GPU, in under nine minutes
	$(PYTHON) -m benchmarks.gpu

wheel:
	$(PYTHON) -m pip wheel --no-deps --wheel-dir dist .

sdist:
	$(PYTHON) -c 'import setuptools.build_meta as backend; print(backend.build_sdist("dist"))'

dist: sdist  ## a source distribution, and the proof that it builds
	CLIPWEATHER_CUDA=off $(PYTHON) -m pip wheel --no-deps --wheel-dir dist/from-sdist dist/*.tar.gz

check: lint types test triton-check cuda-check

clean:
	rm -rf build dist *.egg-info clipweather_fast/_C*.so
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
