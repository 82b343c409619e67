"""Networks in whatever types: bfloat16, float16, mixed, complex, quantised, and torch.autocast in or around them.

Right values are dense ones in float64 from the same weights; the rest is refused with what is there and what to do.
"""

import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dense
import sampla

NOISE, PRIOR = 25.0, 1.0
X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
Y = (2 * X[:, :1]).sin()


def laplace(net: nn.Module, solver: str, num_samples: int = 600, **options: Any) -> sampla.LinearisedLaplace:
    prior = sampla.Isotropic(PRIOR, learn=False)
    return sampla.LinearisedLaplace(
        net, sampla.Gaussian(NOISE), prior, solver=solver, num_samples=num_samples, progress=False, **options
    )


def covariance(rows: Tensor) -> Tensor:
    """J H^-1 J' in float64 from (N, P) J."""
    inverse = torch.linalg.inv(NOISE * rows.mT @ rows + PRIOR * torch.eye(rows.shape[1], dtype=torch.float64))
    return rows @ inverse @ rows.mT


def exact(net: nn.Module, names: list[str] | None = None) -> Tensor:
    """The predictive covariance at the data, of a float64 copy."""
    copy = deepcopy(net).double()
    names = names or [name for name, _ in copy.named_parameters()]
    return covariance(dense.jacobian(copy, names, X.double()).flatten(0, -2))


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 1)).eval()


class Joined(nn.Module):
    """A body and a head in types of their own."""

    def __init__(self, body: torch.dtype, head: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(3, 8).to(body), nn.Linear(8, 1).to(head)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x.to(self.body.weight.dtype)).tanh().to(self.head.weight.dtype))
        return out


@pytest.mark.parametrize("solver", ["dense", "block-cg"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_variances_of_coarse_networks_are_those_of_their_weights(dtype: torch.dtype, solver: str) -> None:
    net, x, y = mlp().to(dtype), X.to(dtype), Y.to(dtype)
    la = laplace(net, solver).fit([(x, y)])
    copy = deepcopy(net).double()
    rows = dense.jacobian(copy, [n for n, _ in copy.named_parameters()], x.double()).flatten(0, -2)
    found = la.predict(x)
    dense.assert_covariance(found.deviations.flatten(1).double(), covariance(rows))
    assert la.report_.solve_error < 0.02
    close = 4 * torch.finfo(dtype).eps  # a network may round otherwise in smaller pieces
    torch.testing.assert_close(found.mean, net(x).detach().float(), rtol=close, atol=close)
    assert {s.dtype for s in la.samples_.values()} == {torch.float32}
    assert (
        f"network of {str(dtype)[6:]}, linearised in float32; its own outputs are rounded by about" in str(la.report_)
    ) == (dtype != torch.float32)


def test_a_coarse_network_that_learns_is_saved_and_loaded(tmp_path: Path) -> None:
    net, x, y = mlp().bfloat16(), X.bfloat16(), Y.bfloat16()
    la = sampla.LinearisedLaplace(net, "gaussian", solver="block-cg", progress=False).fit([(x, y)], tmp_path / "c")
    la.save(tmp_path / "posterior")
    again = sampla.LinearisedLaplace.load(tmp_path / "posterior", net)
    assert torch.equal(again.predict(x).variance, la.predict(x).variance)
    assert "linearised in float32" in str(again.report_)


MIXED = {
    "float32, float64 head": (torch.float32, torch.float64, None),
    "float64, float32 head": (torch.float64, torch.float32, None),
    "bfloat16, float32 head": (torch.bfloat16, torch.float32, None),
    "bfloat16 frozen, float32 head": (torch.bfloat16, torch.float32, ["head.*"]),
    "float32 chosen, float64 head": (torch.float32, torch.float64, ["body.*"]),
    "float32 chosen, bfloat16 head": (torch.float32, torch.bfloat16, ["body.*"]),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_types(name: str) -> None:
    body, head, chosen = MIXED[name]
    net = Joined(body, head).eval()
    la = laplace(net, "block-cg", parameters=chosen).fit([(X, Y)])
    draws = la.predict(X).deviations.flatten(1).double()
    dense.assert_covariance(draws, exact(net, list(la.samples_)))
    assert la.report_.dead_parameters == []  # a coarse body's rounding is no reason to silence a fine head


@pytest.mark.parametrize("name", ["float32, float64 head", "float64, float32 head"])
def test_mixed_types_with_classes(name: str) -> None:
    """The same samples as of the network in float64 throughout: noise is keyed, so only rounding differs."""
    body, head, _ = MIXED[name]
    net = Joined(body, head).eval()
    net.head = nn.Linear(net.head.in_features, 3).to(head).eval()
    prior, data = sampla.Isotropic(PRIOR, learn=False), [(X, (X[:, 0] > 0).long() + (X[:, 1] > 0.5).long())]
    same = Joined(torch.float64, torch.float64).eval()
    same.head = nn.Linear(net.head.in_features, 3).double().eval()
    same.load_state_dict(net.state_dict())
    mixed, fine = (
        sampla.LinearisedLaplace(one, prior=prior, solver="block-cg", tolerance=1e-4, progress=False).fit(data)
        for one in (net, same)
    )
    assert mixed.report_.dead_parameters == fine.report_.dead_parameters == []
    for key, sample in fine.samples_.items():
        torch.testing.assert_close(mixed.samples_[key].double(), sample, rtol=1e-2, atol=1e-3)


class Spectral(nn.Module):
    """A layer of a Fourier neural operator, with a readout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 3, dtype=torch.complex64))
        self.readout = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        modes = torch.fft.rfft(x, n=6)[:, None, :3] * self.weight
        out: Tensor = self.readout(torch.fft.irfft(modes, n=6).sum(1).tanh())
        return out


def complex_rows(net: nn.Module) -> Tensor:
    """(N, P) in float64: by differences of a function of real and imaginary parts, no derivative of torch's."""
    copy = deepcopy(net)
    copy.weight.data, copy.readout = copy.weight.data.to(torch.complex128), copy.readout.double()
    reals = [torch.view_as_real(p.data) if p.is_complex() else p.data for p in copy.parameters()]
    rows = []
    for part in reals:
        flat = part.view(-1)
        for i in range(flat.numel()):
            values = []
            for step in (1e-6, -2e-6):
                flat[i] += step
                values.append(copy(X.double()).detach().flatten())
            flat[i] += 1e-6
            rows.append((values[0] - values[1]) / 2e-6)
    return torch.stack(rows, 1)


@pytest.mark.parametrize("solver", ["dense", "block-cg"])
def test_complex_parameters_are_two_reals_each(solver: str, tmp_path: Path) -> None:
    net = Spectral().eval()
    la = laplace(net, solver, 800).fit([(X, Y)])
    assert la.report_.num_parameters == 2 * 6 + 7
    draws = la.predict(X).deviations.flatten(1).double()
    dense.assert_covariance(draws, covariance(complex_rows(net)))
    assert la.samples_["weight"].shape == (800, 2, 3)
    assert la.samples_["weight"].is_complex()
    assert la.linear_mean_ is not None
    assert la.linear_mean_["weight"].shape == (2, 3)
    la.save(tmp_path / "posterior")
    again = sampla.LinearisedLaplace.load(tmp_path / "posterior", net)
    assert torch.equal(again.samples_["weight"], la.samples_["weight"])
    assert torch.equal(again.predict(X).variance, la.predict(X).variance)


def test_complex_inputs() -> None:
    class Real(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, z: Tensor) -> Tensor:
            out: Tensor = self.inner(z.real + z.imag)
            return out

    net, z = Real().eval(), torch.complex(X, X.flip(0))
    draws = laplace(net, "dense", 8).fit([(z, Y)]).predict(z).deviations
    plain = laplace(net.inner, "dense", 8).fit([(z.real + z.imag, Y)]).predict(z.real + z.imag).deviations
    torch.testing.assert_close(draws, plain)
    spoiled = z.clone()
    spoiled[3] = complex(0, float("nan"))
    with pytest.raises(ValueError, match=r"expected finite inputs .*got 3 NaN"):
        laplace(net, "dense", 8).fit([(spoiled, Y)])


class Around(nn.Module):
    """A network inside which something happens to the types."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self._how = mlp(), forward

    def forward(self, x: Tensor) -> Tensor:
        return self._how(self.inner, x)


def cast_inside(inner: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        out: Tensor = inner(x)
    return out.float()


def hard_cast(inner: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = inner(x.to(torch.bfloat16))
    return out


def hard_detour(inner: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = inner[2](inner[:2](x).to(torch.bfloat16).to(x.dtype))
    return out


def complex_out(inner: nn.Module, x: Tensor) -> Tensor:
    return torch.complex(inner(x), inner(-x))


REFUSED: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "autocast inside": (
        lambda: Around(cast_inside),
        ValueError,
        r"results in bfloat16, by torch\.autocast inside forward, in module 'inner\.0' \(Linear\)\. Take",
    ),
    "autocast inside a bfloat16 network": (
        lambda: Around(cast_inside).bfloat16(),
        ValueError,
        r"results in bfloat16, by torch\.autocast inside forward, in module 'inner\.0' \(Linear\)",
    ),
    "a cast inside a bfloat16 network": (
        lambda: Around(hard_cast).bfloat16(),
        ValueError,
        r"network of bfloat16 that can be linearised with the same numbers in float32, got results in bfloat16, by a "
        r"cast to it inside forward, in the network itself \(Around\); module 'inner\.0' \(Linear\) then fails",
    ),
    "a detour through bfloat16": (
        lambda: Around(hard_detour),
        ValueError,
        r"results in bfloat16, by a cast to it inside forward, in the network itself \(Around\)",
    ),
    "complex outputs": (
        lambda: Around(complex_out),
        TypeError,
        r"expected real outputs, got \(60, 1\) complex64.*torch\.view_as_real",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_linearised_is_refused_by_name(name: str) -> None:
    make, error, match = REFUSED[name]
    net = make().eval()
    dtype = next(net.parameters()).dtype
    with pytest.raises(error, match=match):
        laplace(net, "dense", 4).fit([(X.to(dtype), Y.to(dtype))])


def test_a_quantised_network_is_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        body = torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear}, dtype=torch.qint8)
    net = nn.Sequential(body, nn.Linear(1, 1)).eval()
    with pytest.raises(ValueError, match=r"module '0\.0' \(Linear\) is quantised by the range of the whole batch"):
        laplace(net, "dense", 4).fit([(X, Y)])


def test_an_autocast_around_a_fit_is_put_aside() -> None:
    net = mlp()
    plain = laplace(net, "block-cg", 8).fit([(X, Y)])
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.warns(UserWarning, match="called under torch.autocast, which is put aside"):
            la = laplace(net, "block-cg", 8).fit([(X, Y)])
        draws = la.predict(X)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(draws.deviations, plain.predict(X).deviations)
    assert torch.equal(draws.mean, plain.predict(X).mean)
    assert "torch.autocast around the fit put aside" in str(la.report_)
