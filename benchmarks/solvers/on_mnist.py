"""(a) A LeNet on MNIST: every solver at the alpha that EM finds, and whole fits against the paper's schedule."""

import warnings
from copy import deepcopy

import torch
from experiments.common.command import say
from experiments.common.store import Store
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.solvers.contestants import TABLE
from benchmarks.solvers.fits import Subject, fit, sampling_problem
from benchmarks.solvers.measure import measure
from benchmarks.solvers.paper import paper_schedule
from benchmarks.solvers.problem import SEED, Problem, Truth
from benchmarks.solvers.sizes import Run
from sampla.apps.demo.data import mnist
from sampla.apps.demo.networks import network_for
from sampla.apps.demo.training import RECIPES, train
from sampla.features import ScaledFeatures
from sampla.likelihoods import Categorical
from sampla.model import Ledger, LinearModel
from sampla.solvers import BlockCG, LinearSystem, RightHandSide, solve

FIT_COLUMNS = 16
_BATCH = 500
_KNOWN = 16
"""Columns whose truth is found: enough to judge the error of 64 on."""
_ACCURACY = 1e-10


def run(given: Run) -> None:
    """Fill the store with ``mnist/...``."""
    store, columns, subject = given.store, given.sizes.mnist[1], trained(given)
    found = store.once("mnist/fit", lambda: fit(subject, FIT_COLUMNS)[1])
    say(f"mnist: alpha {found['alpha']:.4g}, {found['passes']:.1f} passes, {found['seconds']:.0f} s")
    store.once(f"mnist/fit-{columns}", lambda: fit(subject, columns)[1])
    run_table("mnist", sampling_problem(subject, found, columns, _KNOWN, store.cache, solved_in_float64), store)
    store.once("mnist/paper", lambda: paper_schedule(subject, found.values, given.sizes.paper))


def run_table(part: str, problem: Problem, store: Store) -> None:
    """Every contestant of this part; each is kept as soon as it is done."""
    store.once(f"{part}/problem", lambda: {"name": problem.name, "alpha": problem.alpha, **problem.facts})
    for entry in (entry for entry in TABLE if part in entry.parts):
        store.once(f"{part}/rows/{entry.name}", lambda e=entry: measure(e.name, problem, e.factory, e.max_steps, say))


def trained(given: Run) -> Subject:
    """The network, trained on the images that the posterior is about, or kept from an earlier run."""
    assert given.root is not None
    count = given.sizes.mnist[0]
    data = mnist(given.root).train.first(count)
    network = network_for("mnist", data.images, SEED)
    path = given.store.cache / f"lenet-{count}.safetensors"
    if path.is_file():
        network.load_state_dict(load_file(path))
        network.eval()
    else:
        training = train(network, data, RECIPES["mnist"], SEED, progress=False)
        say(f"mnist: trained in {training.seconds:.0f} s to a loss of {training.loss:.4f}")
        save_file(network.state_dict(), path)
    return Subject("mnist", network, data.batches(_BATCH))


def solved_in_float64(subject: Subject, scale: Tensor, rhs: Tensor, alpha: float) -> Truth:
    """Block CG on all columns at once, the network in float64; the residual is computed anew at the end."""
    exact = Subject(subject.name, deepcopy(subject.network).double(), [(x.double(), y) for x, y in subject.batches])
    model = LinearModel(ScaledFeatures(exact.features, scale.double()), Categorical(), exact.batches, Ledger())
    model.survey()
    precision = torch.full_like(rhs[0], alpha)
    system = LinearSystem(model, precision, torch.ones_like(precision))  # the g-prior makes diag M one
    target = RightHandSide(rhs, torch.zeros_like(rhs), len(rhs), SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters is the residual, which is told
        found = solve(
            BlockCG(), system, target, tolerance=_ACCURACY, max_passes=120, say=lambda text: say(f"truth: {text}")
        )
    curvature_value = model.curvature_product(found.value)
    residual = rhs - curvature_value - alpha * found.value
    words = f"block CG in float64, K = {len(rhs)}, {found.passes} passes, stated error {found.error:.0e}"
    return Truth(found.value, curvature_value, float(residual.norm() / rhs.norm()), words)
