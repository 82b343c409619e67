"""No pass over the data waits for an accelerator, batch by batch: it reads no number off it and copies nothing there.

A host that waits lets the device run dry. Each of these is a wait: reading a number (``item``, ``float``, ``bool``),
choosing entries by a mask, decompositions that check their result, and copies between devices other than from
page-locked memory. The device is "meta", which has no values, so that reading one fails; the other waits are counted.

Block conjugate gradients has to read some: they are counted with tensors that say they are on "meta" and have values.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import sampla
from sampla.core.batch import Batch
from sampla.core.chunks import Chunks
from sampla.core.data import Data
from sampla.core.stack import Stack
from sampla.features import Features, NetworkFeatures, OutputsAt, ScaledFeatures
from sampla.likelihoods import Likelihood
from sampla.model import LinearModel
from sampla.solvers import BlockCG, LinearSystem, RightHandSide, Sketch

CPU, THERE, K = torch.device("cpu"), torch.device("meta"), 3
_WAITS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim")


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device that is not the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        before = {t.device.type for t in given}
        made = func(*args, **(kwargs or {}))
        devices = before | {t.device.type for t in tree_leaves(made) if isinstance(t, Tensor)}
        masks = name.startswith("index") and any(t.dtype in (torch.bool, torch.uint8) for t in given[1:])
        elsewhere = devices != {"cpu"}
        copied = name in ("_to_copy", "copy_", "_copy_from") and len(devices) > 1
        if elsewhere and (
            name in _WAITS or (name.startswith("linalg_") and name != "linalg_vecdot") or masks or copied
        ):
            self.found.append(name)
        return made


class Many(Data):
    """So many data where the network is."""

    cut, fixed_order = True, True

    def __init__(self, size: int, classes: bool) -> None:
        self._size, self._classes = size, classes

    @property
    def num_data(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Batch]:
        shape, kind = ((self._size,), torch.long) if self._classes else ((self._size, 3), torch.float32)
        inputs, targets = torch.empty(self._size, 5, device=THERE), torch.empty(shape, dtype=kind, device=THERE)
        yield Batch(inputs, targets, 0, self._size)


LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "categorical": sampla.Categorical,
    "some left out": lambda: sampla.Categorical(ignore_index=-100),
    "bernoulli": sampla.Bernoulli,
    "gaussian": lambda: sampla.Gaussian(2.0),
    "by output": lambda: sampla.Gaussian(torch.tensor([1.0, 2.0, 3.0])),
    "full": lambda: sampla.Gaussian(torch.eye(3)),
}
PASSES: dict[str, Callable[[LinearModel, Tensor], Any]] = {
    "M v": lambda m, v: m.curvature_product(v),
    "part of M v": lambda m, v: m.curvature_product(v, stride=2),
    "Hessian": lambda m, v: m.newton_product(v[:1], v[1:2]),
    "gradient": lambda m, v: m._loss_gradient(v[:1]),
    "noise": lambda m, v: m.draw_noise(0, len(v)),
    "moments": lambda m, v: m.noise_moments(v[:1], v),
}


def model(size: int, likelihood: str, composed: str, vectors_on: torch.device | None) -> LinearModel:
    layers = nn.Linear(5, 4, device=THERE), nn.LayerNorm(4, device=THERE), nn.Linear(4, 3, device=THERE)
    network = nn.Sequential(*layers).eval()
    names = [name for name, _ in network.named_parameters()]
    features: Features = NetworkFeatures(network, names, vectors_on=vectors_on, tangent="tangent" in composed)
    total, place = features.layout.total, features.like.device
    if "scaled" in composed:
        features = ScaledFeatures(features, torch.empty(total, device=place))
    if "at the mode" in composed:
        features = OutputsAt(features, torch.empty(1, total, device=place))
    data = Many(size, likelihood in ("categorical", "some left out"))
    return LinearModel(features, LIKELIHOODS[likelihood](), data, chunks=Chunks(entries=12, columns=K))


def waits(name: str, likelihood: str, composed: str, size: int, vectors_on: torch.device | None) -> list[str]:
    with Waits() as waited:
        here = model(size, likelihood, composed, vectors_on)
        vectors = torch.empty(K, here.num_parameters, device=here.features.like.device)
        waited.found.clear()
        PASSES[name](here, vectors)
    return waited.found


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", PASSES)
def test_a_pass_waits_for_nothing(name: str, likelihood: str) -> None:
    """But for the copy of a small matrix, once."""
    if name == "moments" and LIKELIHOODS[likelihood]().noise_precision is None:
        return
    matrix = likelihood in ("by output", "full") and name != "moments"
    for composed in ("plain", "scaled, tangent", "scaled, at the mode")[: 1 if name == "noise" else 3]:
        assert len(waits(name, likelihood, composed, 8, None)) == matrix


@pytest.mark.parametrize("name", PASSES)
def test_vectors_that_live_elsewhere_are_copied_at_the_two_ends_of_a_pass(name: str) -> None:
    with FakeTensorMode():
        one, many = (waits(name, "gaussian", "scaled, tangent", size, CPU) for size in (4, 8))
    assert many == one


class Elsewhere(Tensor):
    """A tensor that says it is on "meta", with its values on the CPU."""

    @staticmethod
    def __new__(cls, values: Tensor) -> "Elsewhere":
        made = Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device=THERE
        )
        made.values_here = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("only within Device")


class Device(TorchDispatchMode):
    """Computes with tensors of ``Elsewhere``, and counts what waits for all that they have been asked to compute.

    Reading waits, and so does a copy there, unless it need not be waited for or nothing is left to compute.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits, self._computing = 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(isinstance(each, Elsewhere) for each in given)
        assert not there or name == "copy_" or all(isinstance(each, Elsewhere) or each.ndim == 0 for each in given)
        wanted = kwargs.get("device")
        if wanted is not None:
            kwargs["device"] = CPU
        reads = name in ("_local_scalar_dense", "is_nonzero", "item") or (name == "_to_copy" and wanted == CPU)
        copies = name == "_to_copy" and wanted == THERE and not there
        if (there and reads) or (copies and self._computing and not kwargs.get("non_blocking")):
            self.waits += 1
            self._computing = False
        elif there:
            self._computing = True
        here = {id(each.values_here): each for each in given if isinstance(each, Elsewhere)}
        args, kwargs = tree_map(lambda x: x.values_here if isinstance(x, Elsewhere) else x, (args, kwargs))
        made = func(*args, **kwargs)
        if reads or not (there or wanted == THERE):
            return made
        return tree_map(lambda x: here[id(x)] if id(x) in here else Elsewhere(x) if isinstance(x, Tensor) else x, made)


@pytest.mark.parametrize("sketched", [False, True])
def test_a_pass_of_block_cg_waits_four_times(sketched: bool) -> None:
    """As does each product that measures its error; and it finds the same numbers as on the CPU."""
    generator, size = torch.Generator().manual_seed(0), 40
    rows = torch.randn(size, size, generator=generator, dtype=torch.float64) * torch.logspace(0, -3, size)[:, None]
    basis, data, prior = torch.linalg.qr(rows.mT)[0].mT[:5].contiguous(), *torch.randn(2, K, size, generator=generator)
    matrix = (rows.mT @ rows).float()

    def run(there: Callable[[Tensor], Tensor], device: Device) -> tuple[Tensor, list[float], list[int]]:
        here, ones = there(matrix), there(torch.full((size,), 1e-3))
        model = SimpleNamespace(rounding=1e-7, curvature_product=lambda vectors, *_: vectors @ here)
        near = Sketch(Stack([there(basis.float())]), there(basis @ rows.mT @ rows @ basis.mT), 1e-3).at(ones)
        system = LinearSystem(model, ones, there(matrix.diagonal().clone()), near if sketched else None)
        rhs, solver = RightHandSide(there(data), 0.03 * there(prior), K, 0), BlockCG()
        state, errors, waits = solver.init(system, rhs, None), [], []
        for turn in range(8):
            before, products = device.waits, state.check_products
            state = solver.step(system, rhs, state)
            if turn == 3:
                state = solver.certify(system, rhs, state, 0.1)
            errors.append(solver.error(state))
            waits.append(device.waits - before - 4 * (state.check_products - products))
            if solver.stagnated(state):
                break
        value = solver.solution(system, rhs, state).value
        return (value.values_here if isinstance(value, Elsewhere) else value), errors, waits

    expected, stated, _ = run(lambda x: x, Device())
    with Device() as device:
        found, told, waits = run(Elsewhere, device)
    torch.testing.assert_close(found, expected)
    assert told == pytest.approx(stated)
    assert waits == [4] * len(waits)
