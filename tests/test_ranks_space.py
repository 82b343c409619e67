"""The Krylov space in slices, one on each process: what one process finds, for 1 / ranks of its memory.

One group of two processes and one of four go through all cases; a fit begins on two, goes on on four and ends on one.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import sampla
from processes import Ending, data, error_of, laplace, part, require_equal, run, told
from sampla.core import journal
from sampla.distributed import Ranks, Slices, _ranks
from sampla.inference.exact import ExactPosterior
from sampla.inference.krylov import KrylovSpace, krylov_space
from sampla.solvers import RightHandSide, Seen, Sketch

PROBES = sampla.EM(exact_up_to=0, num_samples=3, max_steps=12)
"""Traces from probes, and a space that does not hold all of the range of M."""
CASES: dict[str, dict[str, Any]] = {
    "noise learnt": {"kind": "gaussian"},
    "mode searched, float32": {"kind": "categorical", "prior": "isotropic", "dtype": torch.float32},
    "linear mode": {"kind": "categorical", "curvature_at": "linear-mode"},
    "several alphas": {
        "kind": sampla.Gaussian(10.0),
        "prior": sampla.Layerwise(1.0, learn=False),
        "log_evidence": True,
        "tolerance": 1e-10,
    },
}
ON_FOUR = ["noise learnt"]
STOPPED = {"noise learnt": (9, 6), "linear mode": (24, 20)}
"""Fits that are stopped twice: at which reading of two processes, and of the four that go on."""
SIZE = 26
"""P of the fits."""
WIDE = [1, 3, 21]
"""P of spaces of a plain matrix: below the number of processes, no multiple of it, and one."""


@dataclass
class Matrix:
    """M as it is."""

    matrix: Tensor

    def curvature_product(self, vectors: Tensor) -> Tensor:
        return vectors @ self.matrix


def posed(size: int) -> tuple[Matrix, Tensor, Tensor]:
    """M (P, P) that keeps even and odd numbers apart, vectors (3, P) of the even ones alone, and a precision (P,)."""
    generator = torch.Generator().manual_seed(size)
    place = torch.arange(size)
    apart = (place[:, None] + place) % 2 == 0
    root = torch.randn(size, size, generator=generator).double() * 0.8 ** place.double() * apart
    vectors = torch.randn(3, size, generator=generator).double() @ root.mT * (place % 2 == 0)
    return Matrix(root @ root.mT), vectors, 0.1 + torch.rand(size, generator=generator).double()


def of_space(size: int, slices: Slices | None) -> dict[str, np.ndarray]:
    """What a space of two iterations says, then a sketch of two spaces, as numbers."""
    model, vectors, precision = posed(size)
    space = krylov_space(vectors, slices)
    for _ in range(2):
        space = space if space.complete else space.grown(model)
    value, image = space.galerkin(vectors, precision)
    found = {"gauss": space.gauss.nodes, "value": value, "image": image, "forms": forms(space)}
    before = space.before() if space.iterations > 1 else space
    found |= {"before": forms(before), "its value": before.galerkin(vectors, precision)[0]}
    found["solved"] = space.sketch().at(precision).solve(vectors)
    seen = Seen(8, space.basis.slices)
    seen.see(vectors, model.curvature_product(vectors) + precision * vectors)
    sketch = seen.sketch(space.sketch(), precision, 1 / precision, 8)
    assert sketch is not None
    found["seen"] = sketch.at(precision).solve(vectors)
    while not space.complete:
        space = space.grown(model)
    wider = space.widened(torch.ones(2, size, dtype=torch.float64) + torch.eye(2, size))
    found["widened"] = torch.tensor(len(wider.following))
    while not wider.complete:
        wider = wider.grown(model)
    wider = wider.widened(torch.eye(size, dtype=torch.float64))
    while not wider.complete:
        wider = wider.grown(model)
    exact = ExactPosterior(wider.closed(3), precision)
    rhs = RightHandSide(vectors, torch.zeros_like(vectors), 3, 0)
    samples = exact.samples(rhs)
    found |= {
        "exact": samples.value,
        "its image": samples.curvature_value,
        "columns": gram_of(exact.function_columns()),
    }
    assert samples.effective_dimension is not None
    found |= {"dimension": samples.effective_dimension, "determined": wider.determined(0.5)}
    return {name: np.asarray(each) for name, each in found.items()}


def forms(space: KrylovSpace) -> Tensor:
    """x' (M + 1)^-1 x of the start vectors."""
    return (space.quadrature.nodes + 1).reciprocal() @ space.quadrature.weights


def gram_of(columns: Tensor) -> Tensor:
    """Whose signs and order do not matter."""
    return columns.mT @ columns / len(columns)


def case(name: str) -> tuple[sampla.LinearisedLaplace, TensorDataset]:
    settings = {"em": PROBES, **CASES[name]}
    kind = settings.pop("kind")
    known = kind if isinstance(kind, str) else "gaussian"
    return laplace(kind, **settings), data(known, settings.get("dtype", torch.float64))


class Watched:
    """The largest Krylov space of a fit: bytes of all its vectors, as they are in memory, and what they would be whole.

    Inside of ``with`` every space that grows or preconditions is looked at.
    """

    def __init__(self, size: int) -> None:
        self.size, self.held, self.whole = size, 0, 0

    def see(self, space: KrylovSpace) -> None:
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in parts_of(space)}
        held = sum(each.nbytes() for each in storages.values())
        if held > self.held:
            rows = sum(map(len, parts_of(space)))
            self.held, self.whole = held, rows * self.size * space.basis.parts[0].element_size()

    def __enter__(self) -> "Watched":
        self._grown, self._sketch = KrylovSpace.grown, KrylovSpace.sketch

        def grown(space: KrylovSpace, model: Any) -> KrylovSpace:
            found = self._grown(space, model)
            self.see(found)
            return found

        def sketch(space: KrylovSpace) -> Sketch:
            self.see(space)
            return self._sketch(space)

        KrylovSpace.grown, KrylovSpace.sketch = grown, sketch  # type: ignore[method-assign,assignment]
        return self

    def __exit__(self, *_: object) -> None:
        KrylovSpace.grown, KrylovSpace.sketch = self._grown, self._sketch  # type: ignore[method-assign]


def parts_of(space: KrylovSpace) -> list[Tensor]:
    return [*space.basis.parts, space.following]


def answers(rank: int, size: int, folder: str) -> Iterator[tuple[str, Any]]:
    """What one process of a group has to say."""
    _ranks._AT_ONCE = 200  # bytes: vectors are laid together in more than one turn
    for numbers in WIDE:
        yield f"space of {numbers}", of_space(numbers, Slices(Ranks(rank, size, False), numbers))
    for name in CASES if size == 2 else ON_FOUR:
        la, whole = case(name)
        with Watched(SIZE) as watched:
            found = told(la.fit(part(whole, rank, size)))
        yield name, found
        yield f"bytes of {name}", (watched.held, watched.whole)
        if name == "noise learnt":
            yield "plan", str(la.plan(part(whole, rank, size)))
            yield "kept", held_by_sketch(la)
    journal._EVERY, journal._SHARE = 0.0, 1e9
    for name, stops in STOPPED.items():
        place = Path(folder) / f"{name} on {size}"
        yield f"stopped {name}", stopped(name, rank, size, place, stops[size == 4])
        if rank == 0:
            kept = sorted(path.name for path in place.iterdir())
            yield f"files {name}", [each for each in kept if each.startswith("space-")]
            shutil.copytree(place, Path(folder) / f"{name} on {1 if size == 4 else 4}")
        if size == 4 or name == "noise learnt":
            la, whole = case(name)
            with Watched(SIZE) as watched:
                yield f"resumed {name}", told(la.fit(part(whole, rank, size), place))
            yield f"bytes of resumed {name}", (watched.held, watched.whole)
    if size == 2:
        la, whole = case("noise learnt")
        with Watched(SIZE) as watched:
            yield "resumed of one", told(la.fit(part(whole, rank, size), Path(folder) / "of one"))
        yield "bytes of resumed of one", (watched.held, watched.whole)
    yield "all", True


def held_by_sketch(la: sampla.LinearisedLaplace) -> tuple[int, int]:
    """Bytes of the vectors that are kept for new data, and what they would be whole."""
    kept = la._inference.kept  # type: ignore[union-attr]
    basis = kept.sketch.basis
    return sum(each.untyped_storage().nbytes() for each in basis.parts), len(basis) * kept.data_part[0].nbytes


def stopped(name: str, rank: int, size: int, place: Path, stop: int) -> str:
    """The error of a fit that an error of the last process stops at one of its readings."""
    la, whole = case(name)

    def act(reading: int) -> None:
        if rank == size - 1 and reading == stop:
            raise RuntimeError("this disk is gone")

    loader = Ending(part(whole, rank, size), act)
    return error_of(lambda: la.fit(sampla.as_shard(loader), place))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    assert stopped("noise learnt", 0, 1, folder / "of one", 9) == "RuntimeError: this disk is gone"
    return run(answers, 2, folder)


@pytest.fixture(scope="module")
def four(two: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    assert all("all" in said for said in two)
    return run(answers, 4, folder)


@pytest.fixture(scope="module")
def groups(two: list[dict[str, Any]], four: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    return [two, four]


@pytest.fixture(scope="module")
def alone() -> Mapping[str, dict[str, np.ndarray]]:
    """What one process finds."""
    found = {}
    for name in CASES:
        la, whole = case(name)
        found[name] = told(la.fit(DataLoader(whole, batch_size=13)))
    return found


@pytest.mark.parametrize("size", WIDE)
def test_a_space_in_slices_says_what_a_whole_one_says(groups: list[Any], size: int) -> None:
    expected = of_space(size, None)
    model, vectors, precision = posed(size)
    inverse = torch.linalg.inv(model.matrix + precision.diag())
    np.testing.assert_allclose(expected["exact"], vectors @ inverse, rtol=0, atol=1e-9)
    np.testing.assert_allclose(expected["its image"], vectors @ inverse @ model.matrix, rtol=0, atol=1e-9)
    np.testing.assert_allclose(expected["dimension"], (inverse @ model.matrix).diagonal(), rtol=0, atol=1e-9)
    halves = torch.linalg.inv(model.matrix + 0.5 * torch.eye(size)) @ model.matrix
    np.testing.assert_allclose(expected["determined"], halves.diagonal(), rtol=0, atol=1e-9)
    assert int(expected["widened"]) == min(2, size // 2)
    for said in groups:
        for each in said:
            require_equal(each[f"space of {size}"], expected, 1e-9)
            for name, value in each[f"space of {size}"].items():  # or they would not decide alike
                np.testing.assert_array_equal(value, said[0][f"space of {size}"][name], err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_fits_find_what_one_process_finds(groups: list[Any], alone: Any, name: str) -> None:
    for each in [*groups[0], *(groups[1] if name in ON_FOUR else [])]:
        require_equal(each[name], alone[name], 1e-5 if "float32" in name else 1e-10)


def require_shared(said: list[Any], name: str) -> None:
    """Every process of a group holds its slice of the bytes, the last one the rest."""
    held, (whole,) = [each[name][0] for each in said], {each[name][1] for each in said}
    width = -(-SIZE // len(said))
    widths = [width] * (len(said) - 1)
    assert [each * SIZE for each in held] == [each * whole for each in (*widths, SIZE - sum(widths))]
    assert whole > 0


@pytest.mark.parametrize("name", CASES)
def test_a_process_holds_its_slice_of_the_space_alone(groups: list[Any], name: str) -> None:
    for said in groups if name in ON_FOUR else groups[:1]:
        require_shared(said, f"bytes of {name}")


@pytest.mark.parametrize("name", STOPPED)
def test_so_it_does_after_it_has_gone_on(four: list[dict[str, Any]], name: str) -> None:
    require_shared(four, f"bytes of resumed {name}")


def test_two_go_on_from_what_one_has_left(two: list[dict[str, Any]], alone: Any) -> None:
    for each in two:
        require_equal(each["resumed of one"], alone["noise learnt"], 1e-10)
    require_shared(two, "bytes of resumed of one")


def test_so_it_does_of_what_is_kept_for_new_data(groups: list[Any]) -> None:
    for said in groups:
        require_shared(said, "kept")


def test_the_plan_counts_slices(groups: list[Any]) -> None:
    for said in groups:
        for each in said:
            part_of_space = (
                f"{-(-SIZE // len(said)):5} of    EM's Krylov space, as preconditioner, a slice of 26 vectors"
            )
            assert part_of_space in each["plan"]
            assert f"{len(said)}, each of which holds all this, and of EM's Krylov space a slice" in each["plan"]


@pytest.mark.parametrize("name", STOPPED)
def test_a_stopped_fit_goes_on_with_as_many_or_another_number(
    groups: list[Any], alone: Any, folder: Path, name: str
) -> None:
    for said in groups:
        assert said[-1][f"stopped {name}"] == "RuntimeError: this disk is gone"
        assert len(said[0][f"files {name}"]) > 1  # it had a space
        for each in said if name == "noise learnt" or len(said) == 4 else []:
            require_equal(each[f"resumed {name}"], alone[name], 1e-10)
    la, whole = case(name)
    found = told(la.fit(DataLoader(whole, batch_size=13), folder / f"{name} on 1"))
    require_equal(found, alone[name], 1e-10)
    assert not [path for path in (folder / f"{name} on 1").iterdir() if "space-" in path.name]
