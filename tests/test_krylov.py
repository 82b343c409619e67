"""The block Krylov space of M: what it holds to rounding, what it leaves out, and bounds that hold at every size."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

import dense
from cases import SPECTRA, randn, spectrum_model
from sampla.inference.krylov import KrylovSpace, krylov_space

ROUNDING = 100.0
"""Units of epsilon times |M|; the worst seen over the tables here is 15."""
PRECISIONS = torch.logspace(-6, 6, 13, dtype=torch.float64)
FORMS = {
    "1 / (x + a)": lambda x, a: 1 / (x + a),
    "1 / (x + a)^2": lambda x, a: 1 / (x + a) ** 2,
    "log(1 + x / a) / x": lambda x, a: torch.where(x > 0, torch.log1p(x / a) / x.clamp_min(1e-300), 1 / a),
}

every_spectrum = pytest.mark.parametrize("name", SPECTRA)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
PROVED = ["1 / (x + a)", "log(1 + x / a) / x"]


def largest_eigenvector(model):
    """(1, P): M adds nothing to it, so that the second block is narrower than the first."""
    return torch.linalg.eigh(model.curvature_product(torch.eye(60).to(model.features.like)).double()).eigenvectors.mT[
        -1:
    ]


STARTS = {
    "draws": lambda model: model.draw_noise(0, 4).data_part,  # in the range of M
    "anything": lambda model: randn(4, 60).to(model.features.like),
    "an eigenvector too": lambda model: torch.cat([randn(3, 60), largest_eigenvector(model)]).to(model.features.like),
}
every_start = pytest.mark.parametrize("start", STARTS)


def grown(model, start, iterations=100) -> list[KrylovSpace]:
    """The space before the first product and after each of them."""
    spaces = [krylov_space(start)]
    while not spaces[-1].complete and spaces[-1].iterations < iterations:
        spaces.append(spaces[-1].grown(model))
    return spaces


def assert_holds(space, matrix, start):
    """V V' = I, T = V M V', M V' = V' T + (coupling to the rows that follow), X = (V X')' V: to rounding."""
    accuracy = ROUNDING * torch.finfo(space.basis.dtype).eps
    size = float(torch.linalg.matrix_norm(matrix, 2))
    basis, following = space.basis.columns(slice(None)).double(), space.following.double()
    everything = torch.cat([basis, following])
    torch.testing.assert_close(everything @ everything.mT, torch.eye(len(everything)).double(), rtol=0, atol=accuracy)
    torch.testing.assert_close(space.gram, basis @ matrix @ basis.mT, rtol=0, atol=accuracy * size)
    image = space.gram @ basis
    image[len(basis) - len(space.coupling) :] += space.coupling @ following
    torch.testing.assert_close(image, basis @ matrix, rtol=0, atol=accuracy * size)
    lengths = start.double().norm(dim=1).max()
    known = basis if space.iterations else following
    torch.testing.assert_close(space.start.mT @ known, start.double(), rtol=0, atol=accuracy * float(lengths))
    assert len(basis) == sum(space.widths)
    assert space.gram.dtype == space.coupling.dtype == space.start.dtype == torch.float64


@every_spectrum
@both_dtypes
@every_start
def test_every_size_holds_what_it_says_until_nothing_follows(name, dtype, start):
    model, matrix = spectrum_model(name, dtype)
    first = STARTS[start](model)
    spent = model.ledger.products
    spaces = grown(model, first)
    for space in spaces:
        assert_holds(space, matrix, first)
    assert spaces[-1].complete
    assert model.ledger.products - spent == len(spaces[-1].basis), (
        "one product for every row, and none for a row that does not follow"
    )
    assert (len(spaces[-1].basis) == 60) == (name != "low rank")


@both_dtypes
def test_a_space_ends_where_the_rank_of_the_data_does(dtype):
    """20 eigenvalues that are not zero: 20 rows, and at most two blocks that rounding adds."""
    model, _ = spectrum_model("low rank", dtype)
    assert len(grown(model, STARTS["draws"](model))[-1].basis) in range(20, 29)


@both_dtypes
def test_one_eigenvalue_is_known_after_one_product(dtype):
    model, _ = spectrum_model("flat", dtype)
    model.curvature_product = lambda vectors: 3 * vectors
    spaces = grown(model, randn(4, 60).to(dtype))
    assert [len(space.basis) for space in spaces] == [0, 4]


@both_dtypes
@pytest.mark.parametrize(
    ("mix", "rank"),
    [
        ([[1, 0], [1, 0], [0, 1]], 2),  # twice the same
        ([[1, 0], [0, 1], [2, -3]], 2),  # a combination
        ([[1, 0], [0, 0]], 1),  # zero
        ([[1, 0], [1e9, 0]], 1),
        ([[0, 0]], 0),
    ],
)
def test_dependent_starts_count_once(mix, rank, dtype):
    model, matrix = spectrum_model("power law", dtype)
    start = torch.tensor(mix).to(dtype) @ randn(2, 60).to(dtype)
    spaces = grown(model, start, iterations=5)
    assert [s.widths for s in spaces] == ([(rank,) * n for n in range(6)] if rank else [()])
    for space in spaces:
        assert_holds(space, matrix, start)


@every_spectrum
@both_dtypes
@every_start
def test_before_is_the_space_one_iteration_earlier(name, dtype, start):
    model, _ = spectrum_model(name, dtype)
    spaces = grown(model, STARTS[start](model))
    if start == "an eigenvector too":
        assert spaces[2].widths == (4, 3)
    for earlier, later in pairwise(spaces[1:]):
        back = later.before()
        assert back.widths == earlier.widths
        assert torch.equal(back.basis.columns(slice(None)), earlier.basis.columns(slice(None)))
        assert torch.equal(back.following, earlier.following)
        size = ROUNDING * torch.finfo(dtype).eps * float(earlier.gram.norm())
        for part in ("gram", "coupling", "start"):
            torch.testing.assert_close(getattr(back, part), getattr(earlier, part), rtol=0, atol=size)


@every_spectrum
@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("iterations", [1, 3, 100])
def test_galerkin_is_the_dense_one_and_knows_its_image(name, varying, iterations):
    """Conditioning loses up to 1e4 of rounding where M is nearly singular and the prior weak."""
    model, matrix = spectrum_model(name)
    start = STARTS["draws"](model)
    space = grown(model, start, iterations)[-1]
    precision = 0.01 * (1 + randn(60, seed=3).square() if varying else torch.ones(60).double())
    right = start + 0.1 * randn(4, 60, seed=4)
    value, image = space.galerkin(right, precision)
    expected = dense.galerkin(matrix, precision, space.basis.columns(slice(None)), right)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    torch.testing.assert_close(image, value @ matrix, rtol=1e-9, atol=1e-9 * float(image.abs().max()))
    if space.complete and not varying:
        exact = torch.linalg.solve(matrix + precision.diag(), start.mT).mT
        torch.testing.assert_close(space.galerkin(start, precision)[0], exact, rtol=1e-7, atol=1e-9)


def read_off(space, function, a):
    """What Gauss, Gauss-Radau and their mean make of x' f(M) x."""
    return [function(rule.nodes, a) @ rule.weights for rule in (space.gauss, space.gauss_radau, space.quadrature)]


@every_spectrum
@every_start
@pytest.mark.parametrize("form", PROVED)
def test_the_truth_lies_between_gauss_and_gauss_radau(name, start, form):
    """At every size, for every vector and a over twelve decades.

    Rounding moves eigenvalues by some 1e-15 of the largest, 100, that is by 1e-13. Gauss-Radau inverts T, which is
    singular in the space that first exceeds the rank of M: there its lowest node is off by the root of epsilon.
    """
    function, lost = FORMS[form], 1e-8 if name == "low rank" else 1e-12
    model, matrix = spectrum_model(name)
    first = STARTS[start](model)
    spaces = grown(model, first)
    for a in PRECISIONS:
        truth = dense.quadratic_forms(matrix, lambda x, a=a: function(x, a), first)
        slack = (1e-11 + 1e-12 / float(a)) * truth
        for space in spaces[1:]:
            below, above, middle = read_off(space, function, a)
            assert bool((below <= truth + slack).all()), f"Gauss above at a = {a}, {space.iterations} iterations"
            too_low = truth * (1 - lost / float(a)) - slack
            assert bool((above >= too_low).all()), f"Gauss-Radau below at a = {a}, {space.iterations} iterations"
            worse = torch.maximum((below - truth).abs(), (above - truth).abs())
            assert bool(((middle - truth).abs() <= worse + slack).all())


@every_spectrum
@every_start
@pytest.mark.parametrize("form", FORMS)
def test_a_space_that_nothing_follows_is_exact(name, start, form):
    model, matrix = spectrum_model(name)
    first = STARTS[start](model)
    space = grown(model, first)[-1]
    for a in PRECISIONS:
        truth = dense.quadratic_forms(matrix, lambda x, a=a: FORMS[form](x, a), first)
        for value in read_off(space, FORMS[form], a):
            torch.testing.assert_close(value, truth, rtol=1e-11 + 1e-11 / float(a), atol=0)


def test_the_square_is_bounded_for_one_vector_and_only_nearly_for_a_block():
    """What the module says about 1 / (x + a)^2, on 40 random matrices; the block's worst is 1 % outside."""
    worst = {1: 0.0, 2: 0.0}
    for seed in range(40):
        rotation = torch.linalg.qr(randn(8, 8, seed=seed)).Q
        matrix = rotation * 10 ** randn(8, seed=1000 + seed) @ rotation.mT
        model = SimpleNamespace(curvature_product=lambda vectors, matrix=matrix: vectors @ matrix)
        for count in worst:
            start = randn(count, 8, seed=2000 + seed)
            for a in torch.tensor([0.01, 0.1, 1.0, 10.0]).double():
                truth = dense.quadratic_forms(matrix, lambda x, a=a: (x + a) ** -2, start)
                for space in grown(model, start)[1:-1]:
                    below, above, _ = read_off(space, lambda x, a: (x + a) ** -2, a)
                    worst[count] = max(worst[count], *(below / truth - 1).tolist(), *(1 - above / truth).tolist())
    assert worst[1] < 1e-8
    assert 1e-3 < worst[2] < 0.1


@every_spectrum
def test_the_rules_close_in_on_the_truth(name):
    """Bounds that were trivially wide would pass the test above: three products bring gamma at a = 1 to 10 %."""
    model, matrix = spectrum_model(name)
    start = STARTS["draws"](model)
    space = grown(model, start, 3)[-1]
    truth = dense.quadratic_forms(matrix, lambda x: 1 / (x + 1), start).sum()
    for rule in (space.gauss, space.gauss_radau):
        assert abs(float(((rule.nodes + 1).reciprocal() @ rule.weights).sum() / truth) - 1) < 0.1


@both_dtypes
def test_nan_is_refused(dtype):
    model, _ = spectrum_model("flat", dtype)
    model.curvature_product = lambda vectors: vectors * torch.nan
    with pytest.raises(ArithmeticError, match="NaN or infinity"):
        krylov_space(randn(2, 60).to(dtype)).grown(model)
