"""Fits on a second device against the same fits on the CPU: whatever is on the wrong device is refused there.

Run by ``make test-second-device``, which compiles the device (second_device.cpp; torch has it from then on), and by
``python -m experiments.accelerator`` on a device that is there: ``SAMPLA_SECOND_DEVICE`` is "1" or the device's name.
"""

import os
import warnings
from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sampla
from networks import Cube
from sampla.features import NetworkFeatures, select_parameters
from sampla.tomography import FunctionOperator, Recipe, ray_transform
from tomography_case import SIDE, digit, noisy, parallel, small_dip

_ASKED = os.environ.get("SAMPLA_SECOND_DEVICE", "")
if not _ASKED:
    pytest.skip("compiles a device: make test-second-device", allow_module_level=True)
SECOND = "second" if _ASKED == "1" else _ASKED


@pytest.fixture(scope="module", autouse=True)
def _second(tmp_path_factory: pytest.TempPathFactory) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # as many digits as the CPU has
    if SECOND != "second":
        return
    from torch.utils.cpp_extension import load

    torch.utils.rename_privateuse1_backend("second")
    source = os.path.join(os.path.dirname(__file__), "second_device.cpp")
    folder = str(tmp_path_factory.mktemp("second"))
    load("sampla_second_device", [source], build_directory=folder, extra_cflags=["-O1", "-w"]).open()
    backend = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0, _is_in_bad_fork=lambda: False,
        manual_seed_all=lambda _: None, get_rng_state=lambda _: torch.get_rng_state(), set_rng_state=lambda *_: None,
        get_amp_supported_dtype=lambda: [torch.bfloat16],
    )  # fmt: skip
    torch._register_device_module("second", backend)
    torch.utils.generate_methods_for_privateuse1_backend()


def data(kind: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 1, 8, 8, generator=generator)
    scores = torch.tanh(x.flatten(1)[:, :3] + x.flatten(1)[:, 3:6])
    noise = 0.2 * torch.randn(40, 3, generator=generator)
    targets = {"categorical": scores.argmax(1), "bernoulli": (scores > 0).float(), "gaussian": scores + noise}
    return x, targets[kind]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(),
        nn.Linear(36, 20), nn.BatchNorm1d(20), nn.Tanh(), nn.LayerNorm(20), nn.Linear(20, 3),
    ).eval()  # fmt: skip


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16, padding_idx=0)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens)).mean(1))


class Recurrent(nn.Module):
    """Rows of an image, one after the other; in double reverse mode, which cuDNN's layers do not know."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x[:, 0])[0][:, -1])


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Cube.apply(self.first(x.flatten(1))))


def everything(model: nn.Module, loader: Any, kind: str | sampla.Likelihood, options: dict[str, Any]) -> dict[str, Any]:
    """A plan, a fit, and all that can be asked of it, on the CPU."""
    la = sampla.LinearisedLaplace(
        model, kind, **{"num_samples": 8, "solver": "block-cg", "chunks": (16, 4), "progress": False} | options
    )
    assert la.plan(loader).fits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sampla.ConvergenceWarning)
        la.fit(loader)
    x, y = loader[0]
    x, y = x[:5], y[:5].to(next(model.parameters()).device)
    found = la.predict(x)
    group = torch.tensor([0, 0, 1, 1, 2]).to(y.device)
    result = {
        "alpha": la.prior_precision_, "gamma": la.effective_dimension_, "std": found.std, "mean": found.mean,
        "log_prob": found.log_prob(y), "joint": found.joint_log_prob(y, group),
    }  # fmt: skip
    if kind in ("categorical", "bernoulli"):
        result |= {"probs": found.probs, "entropy": found.entropy, "probit": la.predict(x, "probit").probs}
    lives = next(iter(la.samples_.values())).device
    expected = next(model.parameters()).device if la.vectors_on is None else la.vectors_on
    assert lives == expected
    return {name: value.cpu().double() for name, value in result.items()}


def assert_the_same(model: nn.Module, loader: Any, kind: str | sampla.Likelihood, **options: Any) -> None:
    """The fit on the second device agrees with the CPU's up to what rounding does to an iteration."""
    here = everything(model, loader, kind, {**options, "vectors_on": None})
    there = everything(deepcopy(model).to(SECOND), loader, kind, options)
    for name, value in here.items():
        size = float(value.abs().max())
        torch.testing.assert_close(
            there[name], value, rtol=1e-3, atol=1e-3 * size, msg=lambda text, n=name: f"{n}: {text}"
        )


def batches(kind: str) -> list[tuple[Tensor, Tensor]]:
    x, y = data(kind)
    return [(x[:20], y[:20]), (x[20:], y[20:])]


CASES: list[tuple[str, dict[str, Any]]] = [
    ("categorical", {}),
    ("categorical", {"prior": "layerwise"}),
    ("categorical", {"curvature_at": "linear-mode"}),
    ("bernoulli", {"prior": "isotropic"}),
    ("gaussian", {}),
    ("gaussian", {"em": sampla.EM(method="samples")}),
    ("gaussian", {"prior": sampla.Isotropic(3.0, learn=False)}),
]


@pytest.mark.parametrize("vectors_on", [None, "cpu"])
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_a_fit(kind: str, options: dict[str, Any], vectors_on: str | None) -> None:
    assert_the_same(network(), batches(kind), kind, **options, vectors_on=vectors_on)


@pytest.mark.parametrize("at", ["network", "linear-mode"])
@pytest.mark.parametrize("vectors_on", [None, "cpu"])
def test_influence(vectors_on: str | None, at: str) -> None:
    found, (x, y), prior = [], data("categorical"), sampla.GPrior(1.0, learn=False)
    options = {"solver": "block-cg", "tolerance": 1e-3, "width": "em", "progress": False}
    for model, on in ((network(), None), (network().to(SECOND), vectors_on)):
        la = sampla.LinearisedLaplace(model, prior=prior, vectors_on=on, **options).fit(batches("categorical"))
        found.append(la.influence(batches("categorical"), (x[:5], y[:5]), at=at).change.cpu())
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 0.02


@pytest.mark.parametrize("structure", ["diagonal", "full"])
def test_noise_structures(structure: str) -> None:
    assert_the_same(network(), batches("gaussian"), sampla.Gaussian(structure=structure), vectors_on="cpu")
    assert_the_same(network(), batches("gaussian"), sampla.Gaussian(structure=structure))


@pytest.mark.parametrize("solver", ["dense", "minibatch", "sgd"])
def test_solvers(solver: str) -> None:
    assert_the_same(network(), batches("categorical"), "categorical", solver=solver, max_passes=20)


def test_dual_descent() -> None:
    """Its coordinates come in the order of the data: nothing is drawn, and rounding stays what it is."""
    prior = sampla.Isotropic(300.0, learn=False)
    assert_the_same(network(), batches("gaussian"), sampla.Gaussian(4.0), solver="dual", prior=prior, max_passes=20)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False)[0].mean(1)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(8, 3), "perceptron": lambda: nn.Sequential(nn.Linear(8, 4), nn.GELU(), nn.Linear(4, 3)),
    "conv": lambda: nn.Conv2d(3, 4, 3, padding=1), "strided": lambda: nn.Conv2d(3, 4, 3, 2, bias=False),
    "dilated": lambda: nn.Conv2d(3, 4, 3, dilation=2), "grouped": lambda: nn.Conv2d(3, 6, 3, groups=3),
    "one by one": lambda: nn.Conv2d(3, 4, 1, 2),
    "reflected": lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 2, 2), "conv1d": lambda: nn.Conv1d(8, 4, 3),
    "batch norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3)),
    "group norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 3, 3)),
    "max pooling": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)),
    "mean pooling": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    "enlarged": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 3)),
    "attention": _Attention,
    "encoder": lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_products(name: str) -> None:
    """J' J v, and all three ways there, as on the CPU."""
    torch.manual_seed(0)
    layer = LAYERS[name]().eval()
    shape = (5, 3, 8, 8) if any(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in layer.modules()) else (5, 8, 8)
    x = torch.randn(shape)
    found = []
    for device in ("cpu", SECOND):
        features = NetworkFeatures(layer.to(device), select_parameters(layer)[0])
        vectors = torch.randn(3, features.layout.total, generator=torch.Generator().manual_seed(1)).to(device)
        here = features.linearise(x.to(device))
        pushed = here.jvp(vectors)
        found.append([t.cpu() for t in (pushed, here.vjp(pushed), here.product(vectors, lambda _, v: v))])
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4 * float(here.abs().max()))


def test_a_recurrent_network() -> None:
    torch.manual_seed(0)
    assert_the_same(Recurrent().eval(), batches("categorical"), "categorical")


@pytest.mark.parametrize("vectors_on", [None, "cpu"])
def test_other_networks(vectors_on: str | None) -> None:
    _, y = data("categorical")
    tokens = torch.randint(0, 20, (40, 6), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    assert_the_same(Words().eval(), [(tokens, y)], "categorical", vectors_on=vectors_on)
    assert_the_same(Custom().eval(), batches("categorical"), "categorical", vectors_on=vectors_on)


@pytest.mark.parametrize("vectors_on", [None, "cpu"])
def test_files(tmp_path: Any, vectors_on: str | None) -> None:
    """A fit that was stopped goes on; a posterior is read on the second device and on the CPU."""
    model, loader = network().to(SECOND), batches("categorical")
    for steps in (1, 30):
        la = sampla.LinearisedLaplace(
            model, num_samples=8, solver="block-cg", em=sampla.EM(max_steps=steps), vectors_on=vectors_on,
            progress=False,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sampla.ConvergenceWarning)
            la.fit(loader, checkpoint=tmp_path)
    assert len(la.report_.trace) > 1
    la.save(tmp_path / "posterior")
    x = loader[0][0][:5]
    for each in (model, network()):
        found = sampla.LinearisedLaplace.load(tmp_path / "posterior", each).predict(x)
        torch.testing.assert_close(found.std.cpu(), la.predict(x).std.cpu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"solver": "block-cg"}, {"noise": "full"}, {"noise": "diagonal"}])
def test_linear_regression(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 12, generator=generator, dtype=torch.float64)
    targets = rows[:, :2] + 0.3 * torch.randn(60, 2, generator=generator, dtype=torch.float64)
    found = []
    for device in ("cpu", SECOND):
        fitted = sampla.BayesianLinearRegression(random_state=0, **options).fit(rows.to(device), targets.to(device))
        found.append(fitted.predict(rows[:5].to(device), return_std=True))
    for here, there in zip(*found, strict=True):
        np.testing.assert_allclose(np.asarray(there), np.asarray(here), rtol=1e-8)


@pytest.mark.parametrize("solver", ["exact", "block-cg"])
def test_logistic_regression(solver: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 12, generator=generator, dtype=torch.float64)
    labels = (rows[:, 0] + rows[:, 1] > 0).long()
    found = [
        sampla.BayesianLogisticRegression(random_state=0, solver=solver)
        .fit(rows.to(device), labels.to(device))
        .predict_proba(rows[:5].to(device))
        for device in ("cpu", SECOND)
    ]
    np.testing.assert_allclose(np.asarray(found[1]), np.asarray(found[0]), rtol=1e-6)


def test_tomography() -> None:
    """Training on the device too; with a dense matrix, as torch has no sparse products there."""
    plain = ray_transform(parallel(), torch.float64)
    sinogram, std = noisy(plain, digit())
    found = []
    for device in ("cpu", SECOND):
        matrix = torch.from_numpy(plain.scipy.toarray()).to(device)
        operator = FunctionOperator(
            lambda images, m=matrix: images.flatten(1) @ m.mT, lambda u, m=matrix: (u @ m).view(-1, SIDE, SIDE),
            plain.image_shape, plain.num_measurements, matrix,
        )  # fmt: skip
        dip = small_dip(operator, noise_std=std, num_samples=8, recipe=Recipe(steps=20, start_steps=10))
        dip.network.to(device)
        image = dip.fit(sinogram).posterior_.predict_image()
        found.append((image.mean.cpu(), image.deviations.cpu()))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)


def test_a_posterior_that_was_fitted_on_the_cpu_goes_there_without_its_network() -> None:
    x, y = data("categorical")
    model = network()
    la = sampla.LinearisedLaplace(model, num_samples=4, prior=sampla.GPrior(1.0, learn=False), progress=False)
    la.fit([(x, y)])
    expected, functions = la.predict(x[:5]), la.functions(6)(x[:5])
    found = la.to(SECOND).predict(x[:5])
    assert found.mean.device.type == SECOND.partition(":")[0]
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    for name in ("mean", "std", "probs", "mutual_information", "joint_covariance"):
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.log_prob(y[:5]).cpu(), expected.log_prob(y[:5]), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(la.functions(6)(x[:5]).cpu(), functions, rtol=1e-3, atol=1e-4)
    loader = la.predict([(x[:3], y[:3]), (x[3:5], y[3:5])])
    assert loader.mean.device.type == "cpu"
    torch.testing.assert_close(loader.probs, expected.probs, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(la.to("cpu").predict(x[:5]).probs, expected.probs)
