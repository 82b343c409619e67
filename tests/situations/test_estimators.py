"""What people pass to the estimators: the right value whatever holds them, in whatever units, or a word."""

import os
import warnings

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import BayesianRidge

import sampla
from sampla.linear.logistic import expected_sigmoid

ROWS, COLUMNS = 200, 4
X = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).round(3) + 5
Y = X @ np.arange(4.0) + 0.1 * np.random.default_rng(1).standard_normal(ROWS)
WAYS = ("exact", "block-cg")
ALPHA, BETA = 0.5, 100.0


def ridge(x, y=Y, rows=None):
    """Mean of new targets at given precisions, from the normal equations in float64."""
    x, rows = np.asarray(x, dtype=float), np.asarray(x if rows is None else rows, dtype=float)
    centred = x - x.mean(0)
    theta = np.linalg.solve(BETA * centred.T @ centred + ALPHA * np.eye(x.shape[1]), BETA * centred.T @ (y - y.mean()))
    return y.mean() + (rows - x.mean(0)) @ theta


def fitted(x, y=Y, way="exact", **settings):
    settings = {"prior_precision": ALPHA, "noise_precision": BETA, "tol": 1e-6, "num_samples": 4, **settings}
    return sampla.BayesianLinearRegression(solver=way, progress=False, random_state=0, **settings).fit(x, y)


def repeated(make=sparse.csr_matrix, x=X):
    """Each entry in two parts, 3 x and -2 x, out of order."""
    whole = sparse.csr_matrix(x)
    data = np.stack([3 * whole.data, -2 * whole.data], axis=1).ravel()
    return make((data, np.repeat(whole.indices, 2), 2 * whole.indptr), shape=whole.shape)


def unsorted():
    whole = sparse.csr_matrix(np.ascontiguousarray(X[:, ::-1]))
    return sparse.csr_matrix((whole.data, COLUMNS - 1 - whole.indices, whole.indptr), shape=whole.shape)


SPARSE = {
    "repeats": repeated,
    "repeats, array": lambda: repeated(sparse.csr_array),
    "repeats, by columns": lambda: sparse.csc_matrix(repeated(x=np.ascontiguousarray(X.T)).T),
    "repeats, places": lambda: sparse.coo_matrix(
        (np.tile(X.ravel() / 2, 2), np.tile(np.indices(X.shape).reshape(2, -1), 2)), shape=X.shape
    ),
    "out of order": unsorted,
    "integers": lambda: sparse.csr_matrix((10 * X).astype("i1")),
}  # fmt: skip


def arrays_of(matrix):
    return [
        getattr(matrix, name).copy() for name in ("data", "indices", "indptr", "row", "col") if hasattr(matrix, name)
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_matrices_are_read_rightly_and_left_alone(name, way, monkeypatch):
    monkeypatch.setattr("sampla.linear.sources._ENTRIES", 300)  # several chunks
    matrix = SPARSE[name]()
    before, dense = arrays_of(matrix), matrix.toarray().astype(float)
    reg = fitted(matrix, way=way)
    np.testing.assert_allclose(reg.predict(matrix), ridge(dense), rtol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(before, arrays_of(matrix), strict=True))
    for chunks in ([(matrix, Y)], [(sparse.vstack([matrix]).tocsr(), Y)]):
        np.testing.assert_allclose(fitted(chunks, None, way).predict(dense), ridge(dense), rtol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(before, arrays_of(matrix), strict=True))


def test_classes_from_a_sparse_matrix_with_repeats():
    labels = (Y.mean() < Y).astype(int)
    expected = sampla.BayesianLogisticRegression(random_state=0).fit(X, labels)
    found = sampla.BayesianLogisticRegression(random_state=0).fit(repeated(), labels)
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-6)
    np.testing.assert_allclose(found.predict_proba(repeated()), expected.predict_proba(X), rtol=1e-6)


def private(path):
    mapped = np.load(path, mmap_mode="c")
    mapped -= mapped.mean(0)
    mapped[:, 1] *= 10
    return mapped


def written(path):
    mapped = np.load(path, mmap_mode="r+")
    mapped[:, 1] *= 10
    return mapped


def replaced(path):
    mapped = np.load(path, mmap_mode="r")
    np.save(f"{path}.new.npy", X[::-1].copy())
    os.replace(f"{path}.new.npy", path)
    return mapped


def deleted(path):
    mapped = np.load(path, mmap_mode="r")
    os.remove(path)
    return mapped


def moved_away(path):
    mapped = np.load(path, mmap_mode="r")
    os.rename(path, f"{path}.old")
    np.save(path, np.zeros_like(X))
    return mapped


MAPPED = {
    "copy on write, changed": private, "written": written, "file replaced": replaced, "file deleted": deleted,
    "another in its place": moved_away, "slice": lambda path: np.load(path, mmap_mode="r")[20:, 1:],
    "seen as an array": lambda path: np.asarray(np.load(path, mmap_mode="c")),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MAPPED)
def test_memmaps_are_what_the_array_holds(name, way, tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = MAPPED[name](str(tmp_path / "x.npy"))
    held, y = np.array(mapped), Y[len(Y) - len(mapped) :]
    reg = fitted(mapped, y, way)
    for rows in (mapped, held):
        np.testing.assert_allclose(reg.predict(rows), ridge(held, y), rtol=1e-5)
    np.testing.assert_array_equal(mapped, held)


TYPES = ("longdouble", ">f8", ">f4", "<i2", ">i4", "u2", "u8", "f2", "f4", "bool", "object")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_of_real_numbers(dtype, way, tmp_path):
    x, y = (10 * X - 48).clip(0).astype(dtype), (10 * Y).clip(0).astype(dtype)
    x[0], y[0] = (0, 0) if dtype == "bool" else (x[0], y[0])
    dense, targets = x.astype(float), y.astype(float)
    tolerance = {"rtol": 2e-3 if way == "block-cg" else 1e-5, "atol": 2e-3}
    settings = {"way": way, "tol": 1e-2 if dtype[-2:] in ("f2", "f4") else 1e-6}  # float32 reaches no more
    expected = ridge(dense, targets)
    np.testing.assert_allclose(fitted(x, y, **settings).predict(x), expected, **tolerance)
    np.testing.assert_allclose(
        fitted([(x[:90], y[:90]), (x[90:], y[90:])], None, **settings).predict(x), expected, **tolerance
    )
    if dtype != "object":
        np.save(tmp_path / "x.npy", x)
        np.testing.assert_allclose(
            fitted(np.load(tmp_path / "x.npy", mmap_mode="r"), y, **settings).predict(x), expected, **tolerance
        )


def torch_sparse(layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: sparse tensors by rows are new
        return torch.from_numpy(X).to_sparse(layout=layout)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_sparse_tensors(layout):
    x, y = torch_sparse(layout), torch.from_numpy(Y)
    np.testing.assert_allclose(fitted(x, y).predict(x), ridge(X), rtol=1e-6)
    np.testing.assert_allclose(fitted([(x, y)], None).predict(x), ridge(X), rtol=1e-6)
    places = torch.tensor([[0, 0, 1], [0, 0, 1]])
    twice = torch.sparse_coo_tensor(places, torch.ones(3).double(), (2, 2), check_invariants=True)  # (0, 0) twice
    np.testing.assert_allclose(
        fitted(twice, Y[:2]).predict(twice), ridge(np.diag([2.0, 1.0]), Y[:2]), rtol=1e-6
    )  # fmt: skip


REFUSED = {
    "complex X": (lambda: (X + 1j, Y), "Complex data not supported"),
    "complex y": (lambda: (X, Y + 1j), "Complex data not supported"),
    "complex tensor": (lambda: (torch.from_numpy(X + 1j), Y), "real numbers in X, got complex128"),
    "complex targets in a tensor": (lambda: (X, torch.from_numpy(Y + 1j)), "real numbers in y, got complex128"),
    "complex chunk": (lambda: ([(X + 1j, Y)], None), "real numbers in X, got complex128"),
    "complex sparse chunk": (lambda: ([(sparse.csr_matrix(X + 1j), Y)], None), "real numbers in X, got complex128"),
    "complex targets in a chunk": (lambda: ([(X, Y + 1j)], None), "real numbers in y, got complex128"),
    "complex weights in a chunk": (lambda: ([(X, Y, Y + 1j)], None), "real numbers in sample weights, got complex"),
    "complex sparse tensor": (lambda: (torch.from_numpy(X + 1j).to_sparse(), Y), "real numbers in X, got complex128"),
    "dates": (lambda: (X.astype("M8[s]"), Y), r"real numbers in X, got datetime64.* Convert to numbers"),
    "times": (lambda: (X, Y.astype("m8[s]")), r"real numbers in y, got timedelta64"),
    "dates in a chunk": (lambda: ([(X.astype("M8[s]"), Y)], None), r"real numbers in X, got datetime64"),
    "text in a chunk": (lambda: ([(X.astype(str), Y)], None), r"real numbers in X, got <U"),
    "blocks": (lambda: (torch_sparse(torch.sparse_csr).to_sparse_bsr((2, 2)), Y), r"by rows, columns or places, got"),
    "sparse targets": (lambda: (torch.from_numpy(X), torch.from_numpy(Y).to_sparse()), r"dense tensor as y"),
    "masked": (lambda: (np.ma.masked_greater(X, 7), Y), r"known numbers in X, got \d+ masked entries"),
    "masked targets": (lambda: (X, np.ma.masked_greater(Y, 30)), r"known numbers in y, got \d+ masked entries"),
    "too large to square": (lambda: (X * 1e200, Y), r"entries of X between .* got .* as the largest. Use other units"),
    "too small to square": (lambda: (X.astype("f4") * 1e-30, Y), r"entries of X between 1e-19 .*float32"),
    "nothing to learn the noise from": (lambda: (X, np.full(ROWS, 3.0)), r"targets that vary"),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        fitted(*make(), way="block-cg", noise_precision=None)


def test_complex_memmaps_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", X + 1j)
    with pytest.raises(ValueError, match="real numbers in X, got complex128"):
        fitted(np.load(tmp_path / "x.npy", mmap_mode="r"))


UNITS = [(1e-7, 1.0), (1e7, 1.0), (1.0, 1e7), (1.0, 1e-7), (1e-20, 1e20), (1e-100, 1.0)]


@pytest.mark.parametrize("prior", ["isotropic", "g-prior"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("of_x", "of_y"), UNITS)
def test_units_do_not_matter(of_x, of_y, way, prior):
    settings = {"prior_precision": None, "noise_precision": None, "tol": 1e-4, "num_samples": 16, "prior": prior}
    one, other = fitted(X, Y, way, **settings), fitted(of_x * X, of_y * Y, way, **settings)
    oracle = BayesianRidge(tol=1e-10, max_iter=5000).fit(X, Y)
    np.testing.assert_allclose(other.predict(of_x * X) / of_y, oracle.predict(X), rtol=1e-4)
    np.testing.assert_allclose(other.coef_ * of_x / of_y, one.coef_, rtol=1e-4, atol=1e-6)
    alpha = of_y**-2 * (1.0 if prior == "g-prior" else of_x**2)
    assert other.prior_precision_ == pytest.approx(one.prior_precision_ * alpha, rel=1e-3)
    assert other.noise_precision_ == pytest.approx(one.noise_precision_ / of_y**2, rel=1e-3)
    assert other.noise_precision_ * of_y**2 == pytest.approx(oracle.alpha_, rel=0.03)
    evidence = other.log_marginal_likelihood_ + (ROWS - 1) * np.log(of_y)
    assert evidence == pytest.approx(one.log_marginal_likelihood_, abs=0.05)
    std, expected = (reg.predict(x[:5], return_std=True)[1] for reg, x in ((other, of_x * X), (one, X)))
    np.testing.assert_allclose(std / of_y, expected, rtol=1e-3)
    draw, before = (reg.sample_y(x[:5], 2, random_state=0) for reg, x in ((other, of_x * X), (one, X)))
    np.testing.assert_allclose(draw / of_y, before, rtol=1e-3)
    if other.report_.fit is not None:
        assert other.report_.fit.prior_precision[0] == pytest.approx(other.prior_precision_)
        assert other.report_.fit.noise_precision == pytest.approx(other.noise_precision_)


@pytest.mark.parametrize("way", WAYS)
def test_given_precisions_are_in_the_units_of_the_user(way):
    """Two groups of columns far apart in size, each with its own units: the answer of the normal equations."""
    units = np.array([1e-8, 1e-8, 1e8, 1e8])
    reg = fitted(X * units, 1e6 * Y, way, prior_precision=1e-3, noise_precision=1e-10, groups=[0, 0, 1, 1], tol=1e-7)
    centred, y = (X - X.mean(0)) * units, 1e6 * (Y - Y.mean())
    expected = np.linalg.solve(1e-10 * centred.T @ centred + 1e-3 * np.eye(4), 1e-10 * centred.T @ y)
    np.testing.assert_allclose(
        reg.coef_ * units, expected * units, rtol=1e-4, atol=1e-3 * np.abs(expected * units).max()
    )
    np.testing.assert_allclose(reg.prior_precision_, 1e-3)


def test_groups_with_units_of_their_own():
    units = np.array([1e-9, 1e-9, 1e9, 1e9])
    settings = {"prior_precision": None, "noise_precision": None, "groups": [0, 0, 1, 1]}
    one, other = fitted(X, Y, **settings), fitted(X * units, Y, **settings)
    np.testing.assert_allclose(other.prior_precision_ / units[[0, 2]] ** 2, one.prior_precision_, rtol=1e-6)
    np.testing.assert_allclose(other.coef_ * units, one.coef_, rtol=1e-6)


@pytest.mark.parametrize("way", ["exact", "block-cg"])
@pytest.mark.parametrize("unit", [1e-7, 1e7])
@pytest.mark.parametrize("classes", [2, 3])
def test_units_do_not_matter_for_classes(classes, unit, way):
    rng = np.random.default_rng(0)
    y = (X[:, :classes] + rng.gumbel(size=(ROWS, classes))).argmax(1)
    settings = {"solver": way, "random_state": 0, "progress": False, "num_samples": 16, "tol": 1e-3}
    one, other = (sampla.BayesianLogisticRegression(**settings).fit(x, y) for x in (X, unit * X))
    np.testing.assert_allclose(other.coef_ * unit, one.coef_, rtol=1e-4, atol=1e-4)
    assert other.prior_precision_ == pytest.approx(one.prior_precision_ * unit**2, rel=1e-3)
    np.testing.assert_allclose(other.predict_proba(unit * X), one.predict_proba(X), atol=1e-3)
    fixed = [
        sampla.BayesianLogisticRegression(prior_precision=a, groups=[0, 0, 1, 1], **settings).fit(x, y)
        for x, a in ((X, 0.3), (unit * X, 0.3 * unit**2))
    ]
    np.testing.assert_allclose(fixed[1].coef_ * unit, fixed[0].coef_, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("samples", [4, 64])
@pytest.mark.parametrize("alpha", [None, 1e-6, 1e-10])
def test_separable_classes_keep_the_side_of_the_mode(alpha, samples):
    """However wide the posterior: averaging makes two classes less certain, never the other one."""
    rng = np.random.default_rng(1)
    truth = rng.standard_normal(20)
    x, new = rng.standard_normal((40, 20)), rng.standard_normal((300, 20))
    y, expected = (x @ truth > 0).astype(int), (new @ truth > 0).astype(int)
    clf = sampla.BayesianLogisticRegression(prior_precision=alpha, num_samples=samples, random_state=0).fit(x, y)
    mode = (new @ clf.coef_[0] + clf.intercept_[0] > 0).astype(int)
    np.testing.assert_array_equal(clf.predict(new), mode)
    assert clf.score(new, expected) > 0.75
    certain = np.abs(clf.predict_proba(new)[:, 1] - 0.5)
    alone = np.abs(1 / (1 + np.exp(-(new @ clf.coef_[0] + clf.intercept_[0]))) - 0.5)
    assert (certain <= alone + 1e-12).all()


@pytest.mark.parametrize("std", [0.0, 0.3, 2.99, 3.01, 20.0, 300.0])
def test_the_average_of_a_sigmoid(std):
    z = np.linspace(-12, 12, 2_000_001)
    weights = np.exp(-(z**2) / 2)
    means = np.array([-30.0, -2.0, 0.0, 1e-6, 0.5, 40.0])
    expected = [(weights / (1 + np.exp(-np.clip(m + std * z, -500, 500)))).sum() / weights.sum() for m in means]
    found = expected_sigmoid(torch.from_numpy(means), torch.full((6,), std).double()).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-10)
    assert (np.sign(found - 0.5) == np.sign(means))[[0, 1, 3, 4, 5]].all()
