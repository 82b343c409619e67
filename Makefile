# Two commands are enough on a fresh machine: `make demo` and `make test` make .venv and install all they need.
# With several indexes or a proxy, configure pip as usual (pip.conf or PIP_* variables): nothing here names a host.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-second-device accelerator-tiny soak integrations lint figures docs docs-check release-check benchmark-solvers benchmark-linear-models benchmark-engine benchmark-evidence benchmark-scale benchmark-predict projection extras uci calibration width peers mnist-lenet cifar10-resnet20 cifar100-subset tomography league clean

demo: $(INSTALLED)
	$(BIN)/sampla demo --out sampla-demo

# Each half of the tests on its own core, one thread each; who has finished takes from the other's end.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

# Every stage of experiments/accelerator on the CPU, tiny, in a minute. The run on an accelerator: its README.md.
accelerator-tiny: $(INSTALLED)
	$(BIN)/python -m experiments.accelerator --tiny --out experiments/results/accelerator/quick

# Fits on a second device, which is compiled first (a C++ compiler and ninja): finds what is on the wrong device.
test-second-device: $(INSTALLED)
	PATH=$(abspath $(BIN)):$$PATH SAMPLA_SECOND_DEVICE=1 $(BIN)/pytest tests/test_second_device.py

# docs/reliability.md: kills, flipped bits, interrupts and threads, a quarter of an hour on one core. PARTS=kills does one.
soak: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python -m reliability $(addprefix --only ,$(PARTS))

# The examples with other libraries, which are installed beside sampla: docs/integrations.md. torch stays what it is.
integrations: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[integrations]'
	$(BIN)/pytest tests/test_integrations.py

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The picture and the numbers of docs/architecture.md.
figures: $(INSTALLED)
	$(BIN)/python docs/figures/gprior_invariance.py

# The documentation site, at http://127.0.0.1:8000. docs-check builds it into build/site; a link that leads nowhere is an error.
# Tutorials are run where they or the library have changed; TUTORIALS=shown leaves them as they are.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

docs-check: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Sdist and wheel in build/release/dist, looked into; the wheel tried in an environment of its own. PY chooses another python,
# NEWEST=1 or LOWEST=1 other versions than the tested ones, TORCH=2.14.1 another torch than the tested one.
release-check: $(INSTALLED)
	$(BIN)/python .ci/release.py $(if $(PY),--python $(PY)) $(if $(NEWEST),--constraints '') $(if $(LOWEST),--lowest) $(if $(TORCH),--torch $(TORCH))

# Each page names the command that writes it. Experiments and benchmarks are run from here, as modules: every one knows
# --out, --cache, --threads and --help. --anew measures again what was measured with another state of the library's source.

# benchmarks/solvers.md: ROOT holds mnist/ and cifar10/, CHECKPOINTS the ResNet-20. About an hour on two cores.
benchmark-solvers: $(INSTALLED)
	$(BIN)/python -m benchmarks.solvers --root $(ROOT) --checkpoints $(CHECKPOINTS) --anew

# benchmarks/linear_models.md: needs 12 GiB of memory and 15 GiB of disk in the temporary folder. About an hour.
benchmark-linear-models: $(INSTALLED)
	$(BIN)/python -m benchmarks.linear --anew

# benchmarks/engine.md and vocabulary.md: JAX, the python of an environment with JAX in it, may be left out. A quarter of an hour.
benchmark-engine: $(INSTALLED)
	$(BIN)/python -m benchmarks.engine --anew $(if $(JAX),--jax $(JAX))
	$(BIN)/python -m benchmarks.engine.vocabulary

# benchmarks/evidence.md: seven minutes on one core.
benchmark-evidence: $(INSTALLED)
	$(BIN)/python -m benchmarks.evidence

# benchmarks/predict.md: ten minutes on one free core.
benchmark-predict: $(INSTALLED)
	$(BIN)/python -m benchmarks.predict --anew

# benchmarks/scale.md: two free cores wanted; MOST ends it at so many rows.
benchmark-scale: $(INSTALLED)
	$(BIN)/python -m benchmarks.scale --anew $(if $(MOST),--most $(MOST))

# docs/scaling.md: a second.
projection: $(INSTALLED)
	$(BIN)/python -m benchmarks.projection

extras: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[experiments]'

# experiments/results/uci: ROOT holds the npz files. A run that is cut off goes on where it stopped.
uci: extras
	$(BIN)/python -m experiments.regression.uci --root $(ROOT) $(ANEW)

# experiments/results/calibration: a few minutes.
calibration: $(INSTALLED)
	$(BIN)/python -m experiments.regression.calibration $(ANEW)

# experiments/results/width: ROOT holds the images and the tables, CHECKPOINTS the ResNets. Half an hour on one core.
width: extras
	$(BIN)/python -m experiments.width.suite --root $(ROOT) --checkpoints $(CHECKPOINTS) --anew

# experiments/results/mnist and cifar10: ROOT holds mnist/, cifar10/ and the others, CHECKPOINTS the ResNet-20. The
# peers are installed beside sampla and are no dependency of it.
peers: extras
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r experiments/requirements.txt

# experiments/results/influence: three quarters of an hour on one core, most of it training; no data needed.
influence: peers
	$(BIN)/python -m experiments.influence.lds $(ANEW)

mnist-lenet: peers
	$(BIN)/python -m experiments.classification.mnist --root $(ROOT) $(ANEW)

cifar10-resnet20: peers
	$(BIN)/python -m experiments.classification.cifar10 --root $(ROOT) --checkpoints $(CHECKPOINTS) $(ANEW)

# experiments/results/cifar100-subset: a network trained for three epochs and posteriors of 192 images, to see the
# headline's 11 million parameters and 100 outputs at work on a CPU. Two hours; without --quick it takes a GPU.
cifar100-subset: peers
	$(BIN)/python -m experiments.classification.cifar100_train --root $(ROOT) --checkpoints $(CHECKPOINTS) --epochs 3 --bfloat16
	$(BIN)/python -m experiments.classification.cifar100 --root $(ROOT) --checkpoints $(CHECKPOINTS) --quick \
		--out experiments/results/cifar100-subset $(ANEW)

# experiments/results/tomography-*: ROOT holds ct/ and mnist/. Half a day of a core, an hour and a half of it at 501 x 501.
tomography: extras
	$(BIN)/python -m experiments.tomography.small --root $(ROOT) $(ANEW)
	$(BIN)/python -m experiments.tomography.medium $(ANEW)
	$(BIN)/python -m experiments.tomography.real --root $(ROOT) $(ANEW)
	$(BIN)/python -m experiments.tomography.real --root $(ROOT) --factor 2 --alone --out experiments/results/tomography-real-256 $(ANEW)
	$(BIN)/python -m experiments.tomography.large --root $(ROOT) $(ANEW)

# Every page of experiments/results that a CPU makes, but for the demo's, from one state of the source: ANEW=--anew computes again what another
# state gave. Two days of a core; goes on where it was cut off.
league: uci calibration width influence mnist-lenet cifar10-resnet20 cifar100-subset tomography

# torch first and by its exact version, so that pip never considers another (much larger) build for the rest.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist src/*.egg-info sampla-demo
