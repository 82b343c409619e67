"""(a) A LeNet on MNIST: every solver at the alpha that EM finds, and whole fits against the paper's schedule."""

import warnings
from copy import deepcopy
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sampla.apps.demo.data import mnist
from sampla.apps.demo.networks import network_for
from sampla.apps.demo.training import RECIPES, train
from sampla.features import NetworkFeatures, ScaledFeatures
from sampla.likelihoods import Categorical
from sampla.model import Ledger, LinearModel
from sampla.solvers import BlockCG, LinearSystem, RightHandSide, solve
from solver_cases.contestants import TABLE
from solver_cases.fits import Subject, fit, sampling_problem, two_digits
from solver_cases.measure import measure
from solver_cases.paper import paper_schedule
from solver_cases.problem import SEED, Problem, Say, Truth
from solver_cases.settings import Settings
from solver_cases.store import Store

FIT_COLUMNS = 16
_BATCH = 500
_KNOWN = 16
"""Columns whose truth is found: enough to judge the error of 64 on."""
_ACCURACY = 1e-10


def run(settings: Settings, store: Store) -> None:
    """Fill the store with ``mnist/...``."""
    subject = trained(settings)
    found = store.once("mnist/fit", lambda: fit(subject, FIT_COLUMNS, settings.say)[1])
    settings.say(f"mnist: alpha {found['alpha']:.4g}, {found['passes']:.1f} passes, {found['seconds']:.0f} s")
    store.once(f"mnist/fit-{settings.mnist_columns}", lambda: fit(subject, settings.mnist_columns, settings.say)[1])
    alpha = two_digits(found["alpha"])

    def truth(features: NetworkFeatures, scale: Tensor, rhs: Tensor, alpha: float) -> Truth:  # noqa: ARG001
        return solved_in_float64(subject, scale, rhs, alpha, settings.say)

    problem = sampling_problem(subject, alpha, settings.mnist_columns, _KNOWN, settings.cache, truth, settings.say)
    store.once("mnist/problem", lambda: {"name": problem.name, "alpha": alpha, **problem.facts})
    run_table("mnist", problem, settings, store)
    store.once("mnist/paper", lambda: paper_schedule(subject, found, settings.paper_cap, settings.say))


def run_table(part: str, problem: Problem, settings: Settings, store: Store) -> None:
    """Every contestant of this part; each is kept as soon as it is done."""
    for entry in (entry for entry in TABLE if part in entry.parts):

        def row(entry: Any = entry) -> dict[str, Any] | None:
            found = measure(entry.name, problem, entry.factory, entry.max_steps, settings.say)
            return None if found is None else {**found, "problem": problem.name, "alpha": problem.alpha}

        store.once(f"{part}/rows/{entry.name}", row)


def trained(settings: Settings) -> Subject:
    """The network, trained on the images that the posterior is about, or kept from an earlier run."""
    assert settings.root is not None
    data = mnist(settings.root).train.first(settings.mnist_images)
    network = network_for("mnist", data.images, SEED)
    path = settings.cache / f"lenet-{settings.mnist_images}.safetensors"
    if path.is_file():
        network.load_state_dict(load_file(path))
        network.eval()
    else:
        training = train(network, data, RECIPES["mnist"], SEED, progress=False)
        settings.say(f"mnist: trained in {training.seconds:.0f} s to a loss of {training.loss:.4f}")
        save_file(network.state_dict(), path)
    return Subject("mnist", network, data.batches(_BATCH))


def solved_in_float64(subject: Subject, scale: Tensor, rhs: Tensor, alpha: float, say: Say) -> Truth:
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
