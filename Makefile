# make demo: install into .venv and run the main job. make test: install and run all checks. make docs: the pages as a site.
PYTHON ?= python3
BIN := .venv/bin

demo: .venv/installed
	$(BIN)/python tools/eval.py table=demo expect=results/demo/table.csv tolerance=0.3

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2 tools/eval.py table=demo_full expect=results/demo_full/table.csv tolerance=0.3

docs: .venv/installed
	$(BIN)/mkdocs build --strict
	@echo "Open .venv/site/index.html"

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "ovss-bench needs Python 3.11 or later; name one with: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "Python's venv is missing; on Debian: apt-get install python3-venv"; exit 1; }
	@test -e $@ || $(PYTHON) -c 'import shutil, sys; gb = shutil.disk_usage(".").free / 1e9; sys.exit(f"{gb:.1f} GB are free on the disk of this folder, and the installation takes about 8: make room, remove a .venv that was not finished, or work in a copy on another disk" if gb < 8 else 0)'
	@echo "Installing into .venv (several GB with PyTorch, a few minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '.[test]' || { echo "The installation was not finished: mend what pip reports, remove .venv (rm -r .venv), and run make again"; exit 1; }
	@$(BIN)/python -c 'import cv2' || { echo "OpenCV needs libraries of the system; on Debian: apt-get install libgl1 libglib2.0-0 libxcb1"; exit 1; }
	@touch $@

.PHONY: demo test docs
