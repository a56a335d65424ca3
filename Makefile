# Needs Python 3.11 or later with pip, and make. Everything is installed into .venv, once.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test browser fuzz lint docs dist clean

demo: $(STAMP)
	$(BIN)/python examples/classifier/demo.py --out demo

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile

# Pages in Chromium, which the system has to bring, as npm: apt-get install chromium npm.
AXE := $(BIN)/../axe/node_modules/axe-core/axe.min.js
browser: $(STAMP) $(AXE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "playwright>=1.49"
	$(BIN)/python -m pytest -m browser tests/browser

$(AXE):
	npm install --silent --no-save --no-audit --no-fund --prefix $(BIN)/../axe axe-core@4

# Malformed inputs, others each time: make fuzz FUZZ_COUNT=3000, or FUZZ_SEED=7 for those of a seed that was printed.
FUZZ_COUNT ?= 1500
FUZZ_SEED ?=
fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz.run --count $(FUZZ_COUNT) $(addprefix --seed ,$(FUZZ_SEED))

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck step/*.sh .ci/run share/bash-completion/completions/onnxcalib
	$(BIN)/check-jsonschema --builtin-schema vendor.github-actions action.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows examples/ci/github-actions.yml
	sed '1,/^---$$/d' templates/validate.yml | $(BIN)/check-jsonschema --builtin-schema vendor.gitlab-ci \
	  --data-transform gitlab-ci --default-filetype yaml -

# Broken links are errors. The pages can be read from the disk: site/index.html.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# The wheel and the sdist, built, checked, and used in an empty environment.
dist: $(STAMP)
	$(BIN)/python .ci/dist.py

# torch comes first and alone: where pip has a CPU wheel of this version at hand, nothing later pulls CUDA packages.
# pip compiles what it installs, but no editable project: commands start 0.15 s sooner where Python writes no bytecode.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m compileall -q onnxcalib cli
	touch $@

clean:
	rm -rf .venv build dist demo site .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
