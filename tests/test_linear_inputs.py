"""Everything that can be X and y: the same answer from all of them, nothing copied whole, clear errors for the rest."""

import os

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.exceptions import NotFittedError

import sampla
from sampla.linear import sources
from sampla.linear.sources import ArraySource, ChunkSource, FileSource, open_source

ROWS, COLUMNS = 90, 6


def problem(dtype=np.float64):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, COLUMNS)).astype(dtype)
    return x, (x @ rng.standard_normal((COLUMNS, 2)) + 0.3 * rng.standard_normal((ROWS, 2)) + 1).astype(dtype)


class Chunks:
    """A source of chunks that starts anew on every pass."""

    def __init__(self, x, y, change=0.0):
        self.x, self.y, self.change, self.passes = x, y, change, 0

    def __iter__(self):
        self.passes += 1
        for start in range(0, len(self.x), 25):
            shift = self.change * (self.passes > 2)
            yield self.x[start : start + 25] + shift, self.y[start : start + 25]


@pytest.fixture
def stored(tmp_path):
    """A memmap on disk, of float32."""

    def make(array):
        path = tmp_path / "x.dat"
        array.tofile(path)
        return np.memmap(path, dtype=array.dtype, mode="r", shape=array.shape)

    return make


def inputs(kind, x, y, make):
    if kind == "memmap":
        return make(x), y
    if kind == "memmap-slice":
        wide = np.hstack([x, x])
        return make(np.vstack([wide[:5], wide]))[5:, COLUMNS:], y
    if kind == "memmap-columns":
        return make(np.ascontiguousarray(x.T)).T, y
    if kind == "chunks":
        return Chunks(x, y), None
    if kind == "chunks of frames":
        return [(pd.DataFrame(x[part]), pd.DataFrame(y[part])) for part in (slice(0, 40), slice(40, None))], None
    if kind == "list of chunks":
        return [(x[:40], y[:40]), (sparse.csr_array(x[40:]), y[40:])], None
    convert = {
        "fortran": np.asfortranarray, "reversed": lambda a: a[::-1][::-1], "csr": sparse.csr_matrix,
        "csc array": sparse.csc_array, "coo": sparse.coo_matrix, "torch": torch.from_numpy, "list": np.ndarray.tolist,
    }  # fmt: skip
    return convert[kind](x), torch.from_numpy(y) if kind == "torch" else y


KINDS = (
    "fortran", "reversed", "csr", "csc array", "coo", "torch", "list", "memmap", "memmap-slice", "memmap-columns",
    "chunks", "chunks of frames", "list of chunks",
)  # fmt: skip


@pytest.mark.parametrize("solver", ["exact", "block-cg"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_input_give_the_same_model(kind, solver, stored, monkeypatch):
    monkeypatch.setattr(sources, "_ENTRIES", 20 * COLUMNS)  # several chunks
    x, y = problem()
    settings = {"prior_precision": 0.5, "noise_precision": 4.0, "tol": 1e-6, "num_samples": 4, "random_state": 0}
    expected = sampla.BayesianLinearRegression(solver="exact", **settings).fit(x, y)
    reg = sampla.BayesianLinearRegression(solver=solver, progress=False, **settings)
    reg.fit(*inputs(kind, x, y, stored))
    np.testing.assert_allclose(reg.coef_, expected.coef_, rtol=1e-5)
    np.testing.assert_allclose(reg.intercept_, expected.intercept_, rtol=1e-5)
    given = inputs(kind, x, y, stored)[0] if "chunks" not in kind else x
    np.testing.assert_allclose(reg.predict(given), expected.predict(x), rtol=1e-5)
    assert reg.n_features_in_ == COLUMNS


def test_arrays_are_read_as_views():
    x, y = problem()
    for rows in (x, np.asfortranarray(x), torch.from_numpy(x)):
        chunk, _, _ = next(ArraySource(rows, torch.from_numpy(y)).chunks(10))
        assert np.shares_memory(chunk.numpy(), np.asarray(rows))
    matrix = sparse.csr_matrix(x)
    chunk, _, _ = next(ArraySource(matrix).chunks(10))
    assert np.shares_memory(chunk.data, matrix.data)


def test_memmaps_are_read_from_their_file(stored):
    x, _ = problem(np.float32)
    rows = stored(x)
    assert isinstance(open_source(rows), FileSource)
    assert isinstance(open_source(rows[10:, 2:]), FileSource)
    assert isinstance(open_source(rows.T), ArraySource)  # rows are not contiguous in the file
    read = np.vstack([chunk.numpy().copy() for chunk, _, _ in open_source(rows[10:, 2:]).chunks(7)])
    np.testing.assert_array_equal(read, x[10:, 2:])


@pytest.mark.parametrize("solver", ["exact", "block-cg"])
def test_a_file_that_shrinks_during_the_fit(stored, solver, monkeypatch):
    x, y = problem(np.float32)
    rows = stored(x)
    read, calls = FileSource._read, []

    def shrinking(self, *args):
        calls.append(1)
        if len(calls) == 2:
            os.truncate(rows.filename, x.nbytes // 2)
        read(self, *args)

    monkeypatch.setattr(FileSource, "_read", shrinking)
    with pytest.raises(ValueError, match=r"expected 90 rows in .*x\.dat, got a file that ends after byte .*fit anew"):
        sampla.BayesianLinearRegression(solver=solver).fit(rows, y)


def test_weights_count_rows():
    """A weight of two is a row that comes twice, and one of zero a row that is not there; in chunks, too."""
    x, y = problem()
    weights = np.tile([0.0, 1, 2], ROWS // 3)
    reg = sampla.BayesianLinearRegression().fit(x, y, weights)
    repeated = np.repeat(np.arange(ROWS), weights.astype(int))
    again = sampla.BayesianLinearRegression().fit(x[repeated], y[repeated])
    np.testing.assert_allclose(reg.coef_, again.coef_, rtol=1e-6)
    assert reg.log_marginal_likelihood_ == pytest.approx(again.log_marginal_likelihood_)
    chunks = [(x[:50], y[:50], weights[:50]), (x[50:], y[50:], weights[50:])]
    np.testing.assert_allclose(sampla.BayesianLinearRegression().fit(chunks).coef_, reg.coef_, rtol=1e-6)


NAN = np.where(np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) == 8, np.nan, 1.0)
BAD = {  # each makes the arguments of fit from good ones
    "no y": (lambda x, _: (x, None), r"requires y to be passed"),
    "lengths": (lambda x, y: (x, y[:-1]), r"inconsistent numbers of samples"),
    "1-D X": (lambda x, y: (x[:, 0], y), r"Expected 2D array|Reshape your data"),
    "1-D torch": (lambda x, y: (torch.from_numpy(x[:, 0]), y), r"X of shape \(n, D\).*Reshape your data"),
    "NaN": (lambda x, y: (x * NAN, y), r"contains NaN"),
    "infinity": (lambda x, y: (np.where(x == x[2, 1], np.inf, x), y), r"contains infinity"),
    "NaN in torch": (lambda x, y: (torch.from_numpy(x * NAN), y), r"finite entries of X.*got 1 NaN"),
    "NaN in chunks": (lambda x, y: ([(x * NAN, y)], None), r"finite entries of X.*got 1 NaN"),
    "NaN in sparse": (lambda x, y: (sparse.csr_matrix(x * NAN), y), r"contains NaN"),
    "NaN in y": (lambda x, y: (x, y * NAN[:, :2] * np.nan), r"contains NaN"),
    "text": (lambda x, _: (x.astype(str), np.full(ROWS, "a")), r"could not convert|dtype|numeric"),
    "columns": (lambda x, y: ([(x, y), (x[:, :3], y)], None), r"X of shape \(n, 6\) in chunk 1, got \(90, 3\)"),
    "targets": (lambda x, y: ([(x, y[:-1])], None), r"90 targets .* in chunk 0, got \[89\]"),
    "no chunks": (lambda x, y: (Chunks(x[:0], y), None), r"at least one chunk"),
    "changing chunks": (lambda x, y: (Chunks(x, y, 0.1), None), r"the same 90 rows on every pass"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_refused(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        sampla.BayesianLinearRegression(solver="block-cg", num_samples=2, progress=False).fit(*make(*problem()))


def test_chunks_that_can_be_read_only_once_are_refused():
    x, y = problem()
    with pytest.raises(TypeError, match="can be read only once"):
        sampla.BayesianLinearRegression().fit(pair for pair in [(x, y)])
    with pytest.raises(TypeError, match=r"chunk 0: expected \(X, Y\)"):
        ChunkSource([x])


SETTINGS = {
    "prior": ({"prior": "gprior"}, r"unknown prior 'gprior'.*Did you mean 'g-prior'"),
    "noise": ({"noise": "diag"}, r"unknown noise structure"),
    "solver": ({"solver": "svd"}, r"unknown solver"),
    "samples": ({"num_samples": 1}, r"num_samples as an integer of at least 2, got 1"),
    "precision": ({"prior_precision": -1.0}, r"positive prior_precision"),
    "noise precision": ({"noise_precision": 0.0}, r"positive noise precision, got 0"),
    "noise size": ({"noise_precision": np.ones(3)}, r"noise precision for 2 outputs, got one for 3"),
    "groups": ({"groups": [0, 1]}, r"groups of shape \(6,\), one label a column, got \(2,\)"),
    "tol": ({"tol": 0.0}, r"tol in \(0, 1\)"),
    "steps": ({"max_iter": 0}, r"max_iter of at least 1"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_bad_settings_are_refused(name):
    settings, message = SETTINGS[name]
    with pytest.raises(ValueError, match=message):
        sampla.BayesianLinearRegression(**settings).fit(*problem())


def test_negative_weights_are_refused():
    x, y = problem()
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        sampla.BayesianLinearRegression().fit(x, y, np.full(ROWS, -1.0))
    with pytest.raises(ValueError, match="weights of at least zero, got -1"):
        sampla.BayesianLinearRegression().fit([(x, y, np.full(ROWS, -1.0))])
    with pytest.raises(ValueError, match=r"at least one (non-zero|row with a positive weight)"):  # by its version
        sampla.BayesianLinearRegression().fit(x, y, np.zeros(ROWS))


def test_before_fit_and_for_both_spreads():
    x, y = problem()
    with pytest.raises(NotFittedError):
        sampla.BayesianLinearRegression().predict(x)
    with pytest.raises(ValueError, match="At most one of them"):
        sampla.BayesianLinearRegression().fit(x, y).predict(x, return_std=True, return_cov=True)
    with pytest.raises(ValueError, match=r"4 features, but .* expecting 6"):
        sampla.BayesianLinearRegression().fit(x, y).predict(x[:, :4])


def test_too_large_for_the_exact_way(monkeypatch):
    from sampla.linear import settings

    monkeypatch.setattr(settings, "_LARGEST", 5)
    with pytest.raises(ValueError, match=r"smaller side of X at most 5 for solver='exact'.*got 6"):
        sampla.BayesianLinearRegression(solver="exact").fit(*problem())


@pytest.mark.parametrize("solver", ["exact", "block-cg"])
def test_degenerate_columns(solver):
    """Constant columns keep their prior, copies share a coefficient: the model without them predicts the same."""
    x, y = problem()
    settings = {"prior_precision": 1.0, "noise_precision": 4.0, "tol": 1e-6, "random_state": 0, "progress": False}
    constant = np.hstack([x, np.full((ROWS, 1), 7.0), np.zeros((ROWS, 1))])
    plain = sampla.BayesianLinearRegression(solver=solver, **settings).fit(x, y)
    for standardize in (False, True):
        reg = sampla.BayesianLinearRegression(solver=solver, standardize=standardize, **settings).fit(constant, y)
        np.testing.assert_allclose(reg.coef_[:, -2:], 0, atol=1e-8)
        if not standardize:
            np.testing.assert_allclose(reg.coef_[:, :-2], plain.coef_, rtol=1e-4)
    copies = sampla.BayesianLinearRegression(solver=solver, **settings).fit(np.hstack([x, x]), y)
    np.testing.assert_allclose(copies.coef_[:, :6], copies.coef_[:, 6:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("value", [0.1, 1.0, 3.7])
def test_a_group_of_constant_columns_has_nothing_to_learn(value, seed):
    """Its centred columns are rounding, and alpha of rounding has no end."""
    rng = np.random.default_rng(seed)
    x = np.hstack([rng.standard_normal((60, 2)), np.full((60, 2), value)])
    y, kept = x[:, 0] + rng.standard_normal(60), {"random_state": seed, "progress": False}
    found = sampla.BayesianLinearRegression(solver="block-cg", groups=[0, 0, 1, 1], **kept).fit(x, y)
    plain = sampla.BayesianLinearRegression(solver="exact", **kept).fit(x[:, :2], y)
    assert found.prior_precision_[1] == 1
    if plain.prior_precision_ < 100:  # else the data do not tell it
        assert found.prior_precision_[0] == pytest.approx(float(plain.prior_precision_), rel=0.01)
    mean, std = found.predict(x, return_std=True)
    np.testing.assert_allclose(mean, plain.predict(x[:, :2]), atol=0.02)
    np.testing.assert_allclose(std, plain.predict(x[:, :2], return_std=True)[1], rtol=0.05)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 3.7])
@pytest.mark.parametrize("solver", ["exact", "block-cg"])
def test_constant_columns_alone_leave_the_intercept(solver, value, seed):
    rng = np.random.default_rng(seed)
    x, y, kept = np.full((60, 4), value), rng.standard_normal(60), {"random_state": seed, "progress": False}
    found = sampla.BayesianLinearRegression(solver=solver, **kept).fit(x, y)
    np.testing.assert_allclose(found.predict(x), y.mean(), atol=1e-6)
    classes = sampla.BayesianLogisticRegression(solver=solver, **kept).fit(x, y > 0)
    np.testing.assert_allclose(classes.predict_proba(x)[:, 1], (y > 0).mean(), atol=0.02)


@pytest.mark.parametrize("solver", ["exact", "block-cg"])
def test_degenerate_rows(solver):
    x, y = problem()
    one = sampla.BayesianLinearRegression(solver=solver, progress=False)
    with pytest.raises(ValueError, match="n_samples = 1"):
        one.fit(x[:1], y[:1])
    fixed = sampla.BayesianLinearRegression(
        solver=solver, fit_intercept=False, prior_precision=1.0, noise_precision=4.0, progress=False, random_state=0
    ).fit(x[:1], y[:1])
    np.testing.assert_allclose(fixed.coef_, y[:1].T @ x[:1] / ((x[:1] ** 2).sum() + 0.25), rtol=1e-3, atol=1e-6)
    zeros = np.vstack([x, np.zeros((40, COLUMNS))])  # rows that say nothing but what the noise is
    reg = sampla.BayesianLinearRegression(solver=solver, fit_intercept=False, progress=False, random_state=0)
    reg.fit(zeros, np.vstack([y, np.zeros((40, 2))]))
    assert np.isfinite(reg.coef_).all()


@pytest.mark.parametrize("y", [np.full(20, 3.0), np.zeros(20)])
def test_targets_that_do_not_vary(y):
    reg = sampla.BayesianLinearRegression().fit(problem()[0][:20], y)
    mean, std = reg.predict(problem()[0][:20], return_std=True)
    np.testing.assert_allclose(mean, y, atol=1e-6)
    assert np.isfinite(std).all()
    assert std.max() < 1e-3


def test_the_data_are_not_changed():
    x, y = problem()
    before = x.copy(), y.copy()
    for solver in ("exact", "block-cg"):
        sampla.BayesianLinearRegression("g-prior", solver=solver, num_samples=2, progress=False).fit(x, y)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(y, before[1])
