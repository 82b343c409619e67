"""Designs that Dask holds: the answers of the same numbers in memory, by threads and by a cluster; what is refused."""

import os
import re
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import sampla
from sampla.linear import dask_parts
from sampla.linear.dask_source import DaskSource

da = pytest.importorskip("dask.array")
dd = pytest.importorskip("dask.dataframe")
distributed = pytest.importorskip("distributed")

PAGE = Path(__file__).parents[1] / "docs" / "linear-models.md"
ROWS, COLUMNS = 300, 12
LENGTHS = (100, 0, 130, 1, 69)
SETTINGS = {"random_state": 0, "num_samples": 6, "progress": False}


@dataclass(frozen=True)
class Problem:
    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, COLUMNS)) + 1.0
    x = np.where(np.abs(x) > 0.5, x, 0.0)
    y = x @ rng.standard_normal((COLUMNS, 2)) + 0.5 * rng.standard_normal((ROWS, 2))
    return Problem(x, y, rng.gamma(2.0, size=ROWS))


def cut(array, lengths=LENGTHS):
    return da.from_array(array, chunks=(lengths, *array.shape[1:]))


def frames(problem, partitions=3):
    """X, y and weights as data frames."""
    frame = pd.DataFrame(problem.x, columns=[f"c{i}" for i in range(COLUMNS)])
    whole = dd.from_pandas(frame.assign(y=problem.y[:, 0], weights=problem.weights), npartitions=partitions)
    return whole[list(frame.columns)], whole["y"], whole["weights"]


def kinds(problem):
    """Name -> X, y and weights with the same numbers, in ways that Dask may hold them."""
    x, y, weights = problem.x, problem.y[:, 0], problem.weights
    rows, target, weight = frames(problem)
    return {
        "uneven chunks": lambda: (cut(x).rechunk({1: 5}), cut(y, (200, 100)), weights),
        "sparse": lambda: (cut(x, (100, 200)).map_blocks(sparse.csr_matrix), cut(y), cut(weights)),
        "frames": lambda: (rows, target, weight),
        "unknown sizes": lambda: (rows.to_dask_array(), target.to_dask_array(), weight),
        "y in memory": lambda: (cut(x), torch.from_numpy(y), list(weights)),
    }


def regression(solver, *data, **settings):
    return sampla.BayesianLinearRegression(solver=solver, **SETTINGS | settings).fit(*data)


def assert_same(found, expected, rows, tolerance=1e-10):
    """Hyperparameters, evidence, predictions and samples."""
    for name in ("coef_", "prior_precision_", "noise_precision_", "effective_dimension_", "log_marginal_likelihood_"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), tolerance, tolerance, err_msg=name)
    for one, other in zip(found.predict(rows, True), expected.predict(rows, True), strict=True):
        np.testing.assert_allclose(one, other, tolerance, tolerance)
    for one, other in zip(found.sample_coef(4), expected.sample_coef(4), strict=True):
        np.testing.assert_allclose(one, other, tolerance, tolerance)


@pytest.mark.filterwarnings("ignore:X (does not have valid|has) feature names:UserWarning")
@pytest.mark.parametrize("solver", ["exact", "block-cg"])
@pytest.mark.parametrize("kind", ["uneven chunks", "sparse", "frames", "unknown sizes", "y in memory"])
def test_regression_is_that_of_arrays(problem, kind, solver):
    expected = regression(solver, problem.x, problem.y[:, 0], problem.weights)
    found = regression(solver, *kinds(problem)[kind]())
    assert_same(found, expected, problem.x[:5])
    assert found.report_.num_rows == ROWS


@pytest.mark.parametrize("solver", ["exact", "block-cg"])
def test_several_outputs_with_full_noise_and_groups(problem, solver):
    settings = {"noise": "full", "groups": np.arange(COLUMNS) % 2, "prior": "g-prior"}
    expected = regression(solver, problem.x, problem.y, **settings)
    assert_same(regression(solver, cut(problem.x), cut(problem.y, (150, 150)), **settings), expected, problem.x[:5])


def test_fewer_rows_than_columns(problem):
    few = slice(0, COLUMNS - 2)
    expected = regression("exact", problem.x[few], problem.y[few, 0], noise_precision=4.0)
    x, y = cut(problem.x[few], (4, 6)), cut(problem.y[few, 0], (4, 6))
    found = regression("exact", x, y, noise_precision=4.0)
    assert found.report_.world == "dual"
    assert_same(found, expected, problem.x[:5])


@pytest.mark.parametrize("solver", ["exact", "block-cg"])
@pytest.mark.parametrize("classes", [2, 3])
def test_classes_are_those_of_arrays(problem, solver, classes):
    names = np.array(["a", "b", "c"])[:classes]
    labels = names[np.digitize(problem.y[:, 0], np.quantile(problem.y[:, 0], [0.3, 0.7][: classes - 1]))]
    expected = sampla.BayesianLogisticRegression(solver=solver, **SETTINGS).fit(problem.x, labels)
    found = sampla.BayesianLogisticRegression(solver=solver, **SETTINGS).fit(cut(problem.x), cut(labels))
    np.testing.assert_array_equal(found.classes_, expected.classes_)
    near = 1e-10 if solver == "exact" else 1e-8  # the search for the mode makes more of rounding
    for name in ("coef_", "intercept_", "prior_precision_", "log_marginal_likelihood_"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), near, near, err_msg=name)
    np.testing.assert_allclose(found.predict_proba(problem.x), expected.predict_proba(problem.x), atol=near)
    np.testing.assert_allclose(found.sample_coef(3)[0], expected.sample_coef(3)[0], atol=10 * near)


def test_float32_stays_float32(problem):
    x, y = problem.x.astype(np.float32), problem.y[:, 0].astype(np.float32)
    found = regression("block-cg", cut(x), cut(y))
    assert found._posterior.samples.dtype == torch.float32
    assert_same(found, regression("block-cg", x, y), x[:5], tolerance=1e-4)


def test_predictions_stay_with_dask(problem):
    fitted = regression("exact", problem.x, problem.y)
    mean, std = fitted.predict(cut(problem.x), return_std=True)
    assert isinstance(mean, da.Array)
    assert mean.chunks == (tuple(filter(None, LENGTHS)), (2,))
    for one, other in zip((mean, std), fitted.predict(problem.x, return_std=True), strict=True):
        np.testing.assert_allclose(one.compute(), other, 1e-12)
    labels = problem.y[:, 0] > 0
    clf = sampla.BayesianLogisticRegression(**SETTINGS).fit(problem.x, labels)
    rows = frames(problem)[0].to_dask_array()
    np.testing.assert_array_equal(clf.predict(rows).compute(), clf.predict(problem.x))
    np.testing.assert_allclose(clf.predict_log_proba(rows).compute(), clf.predict_log_proba(problem.x))


def shown_on_the_page(file):
    """What the page's snippet on such a file leaves behind, run where the files are."""
    shown = {"sampla": sampla}
    snippets = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (snippet,) = [each for each in snippets if file in each]
    exec(compile(snippet, PAGE.name, "exec"), shown)
    return shown


@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame:DeprecationWarning")  # Dask's own
def test_the_page_on_parquet(problem, tmp_path, monkeypatch):
    """As docs/linear-models.md shows it; names of columns are kept."""
    monkeypatch.chdir(tmp_path)
    rows, target, _ = frames(problem)
    rows.assign(y=target).to_parquet("rows")
    shown = shown_on_the_page("read_parquet")
    names = list(rows.columns)
    expected = sampla.BayesianLinearRegression().fit(pd.DataFrame(problem.x, columns=names), problem.y[:, 0])
    assert list(shown["reg"].feature_names_in_) == names
    assert_same(shown["reg"], expected, rows.head(5))
    np.testing.assert_allclose(shown["mean"].compute(), expected.predict(rows.compute()))


def test_the_page_on_zarr(problem, tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    monkeypatch.chdir(tmp_path)
    da.from_array(problem.x, chunks=(128, 5)).to_zarr("X.zarr")
    da.from_array(problem.y[:, 0], chunks=90).to_zarr("y.zarr")
    shown = shown_on_the_page("from_zarr")
    expected = sampla.BayesianLinearRegression().fit(problem.x, problem.y[:, 0])
    assert_same(shown["reg"], expected, problem.x[:5])
    np.testing.assert_allclose(shown["mean"].compute(), expected.predict(problem.x))


@pytest.mark.parametrize("path", ["X.zarr", Path("rows")])
def test_a_path_is_told_what_opens_it(problem, path):
    for estimator in (sampla.BayesianLinearRegression(), sampla.BayesianLogisticRegression()):
        with pytest.raises(ValueError, match=r"expected rows, got the path .*read_parquet.*from_zarr.*mmap_mode"):
            estimator.fit(path, problem.y[:, 0] > 0)


def test_what_is_cut_otherwise_is_cut_alike(problem):
    """Frames, and arrays of unknown sizes; Dask itself reads small files of one column together."""
    rows, target, _ = frames(problem)
    expected = regression("exact", problem.x, problem.y[:, 0])
    for y in (target.repartition(npartitions=2), target.repartition(npartitions=2).to_dask_array()):
        assert_same(regression("exact", rows.to_dask_array(), y), expected, problem.x[:5])


def refused(problem):
    """Name -> what is fitted, and the error's words."""
    x, y, target = problem.x, problem.y[:, 0], frames(problem)[1]
    hole, late = x.copy(), np.where(np.arange(ROWS) == 250, np.nan, y)
    hole[240, 3] = np.nan
    text = dd.from_pandas(pd.DataFrame({"a": ["x", "z"] * (ROWS // 2)}), npartitions=2)
    return {
        "NaN in X": lambda: ((cut(hole), cut(y)), r"part 4 of X \(rows from 231\): expected finite entries of X"),
        "NaN in y": lambda: ((cut(x), cut(late)), r"part 4 of X .* expected finite entries of y"),
        "short y": lambda: ((cut(x), cut(y[:200], (200,))), "expected 300 rows in y, as X has, got 200"),
        "short array": lambda: ((cut(x), y[:200]), "expected 300 rows in y, as X has, got 200"),
        "short series": lambda: ((cut(x), target.partitions[:2]), "expected 300 rows in y, as X has, got 200"),
        "no y": lambda: ((cut(x), None), "requires y to be passed"),
        "negative weights": lambda: ((cut(x), cut(y), cut(-problem.weights)), "sample weights of at least zero"),
        "text": lambda: ((text, y), "could not convert string to float"),
        "one axis": lambda: ((cut(y), cut(y)), "expected X of shape"),
        "other rows on every pass": lambda: (
            (cut(x).map_blocks(lambda block: block + np.random.default_rng().standard_normal(block.shape)), cut(y)),
            "expected the same 300 rows on every pass over the parts",
        ),
        "other lengths on every pass": lambda: (
            (da.Array(cut(x).dask, cut(x).name, ((100, 0, 100, 31, 69), (COLUMNS,)), x.dtype), y),
            r"part \d of X .*: expected shape \(\d+, 12\), got \(\d+, 12\)",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", refused(Problem(np.zeros((ROWS, COLUMNS)), np.zeros((ROWS, 2)), np.ones(ROWS))))
def test_bad_data_are_refused(problem, name):
    data, words = refused(problem)[name]()
    with pytest.raises(ValueError, match=words):
        regression("exact", *data)


def test_what_needs_rows_here_is_refused(problem):
    fitted = regression("exact", problem.x, problem.y[:, 0])
    for ask in (lambda x: fitted.predict(x, return_cov=True), fitted.sample_y):
        with pytest.raises(ValueError, match="expected rows in memory here, got Dask's"):
            ask(cut(problem.x))
    with pytest.raises(ValueError, match="X has 3 features"):
        fitted.predict(cut(problem.x[:, :3]))


def test_nothing_as_long_as_the_data_comes_here(problem, monkeypatch):
    """Of each graph the root alone is asked for; a few vectors of the columns' length are fewer numbers than rows."""
    sizes = []
    computed = dask_parts.computed

    def measured(root):
        value = computed(root)
        sizes.append(len(value.found) if hasattr(value, "found") and isinstance(value.found, list) else 0)
        tensors = value.found if sizes[-1] else []
        assert all(each.numel() < ROWS for each in tensors)
        return value

    monkeypatch.setattr("sampla.linear.dask_source.computed", measured)
    regression("block-cg", cut(problem.x), cut(problem.y[:, 0]))
    assert max(sizes) > 1
    with pytest.raises(AssertionError, match="lie in parts"):
        DaskSource(cut(problem.x)).chunks()


def test_x_and_y_of_one_array_are_read_once(problem):
    read = []

    def reading(block):
        read.append(len(block))
        return block

    both = cut(np.concatenate([problem.x, problem.y], axis=1), (100, 200)).map_blocks(reading, meta=problem.x[:0])
    found = regression("exact", both[:, :-2], both[:, -2:])
    assert read.count(200) == found.report_.passes == 2


@pytest.fixture(scope="module")
def cluster():
    """Two workers in threads of this process."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0", silence_logs=50
        ) as made,
        distributed.Client(made),
    ):
        yield made


ASKED = []
"""Rows of the parts that ``slowly`` was asked for, by workers in this process."""


def slowly(block):
    ASKED.append(len(block))
    time.sleep(0.01)
    return block


def test_a_cluster_and_one_that_loses_a_worker(problem, cluster):
    expected = regression("block-cg", problem.x, problem.y[:, 0])
    x, y = cut(problem.x).persist(), cut(problem.y[:, 0])
    assert_same(regression("block-cg", x, y), expected, problem.x[:5])
    with pytest.raises(ValueError, match=r"part \d of X .* expected finite entries"):
        regression("block-cg", x * np.nan, y)
    ASKED.clear()
    lost = next(iter(cluster.workers.values()))

    def lose():
        while len(ASKED) < 12:
            time.sleep(0.005)
        cluster.loop.add_callback(lambda: lost.close(executor_wait=False))

    losing = threading.Thread(target=lose, daemon=True)
    losing.start()
    assert_same(regression("block-cg", x.map_blocks(slowly, meta=problem.x[:0]), y), expected, problem.x[:5])
    losing.join()
    assert len(ASKED) > 12
    assert len(distributed.default_client().nthreads()) == 1


def test_a_cluster_without_workers_is_not_waited_for(problem, cluster, monkeypatch):
    """The last test with this cluster."""
    monkeypatch.setattr(dask_parts, "_LOOK", 0.05)
    monkeypatch.setattr(dask_parts, "_ALONE", 0.2)
    for worker in list(cluster.workers.values()):
        cluster.sync(worker.close, executor_wait=False)
    with pytest.raises(dask_parts.PartsLostError, match=r"has been without workers for 0\.2 s"):
        regression("block-cg", cut(problem.x), cut(problem.y[:, 0]))


def dying(folder, kills):
    """What kills the process of its worker: at the twelfth part that it is asked for, or at every one."""

    def asked(block):
        (folder / str(time.perf_counter_ns())).touch()
        if kills == "always" or (len(list(folder.iterdir())) >= 12 and not folder.with_name("killed").exists()):
            folder.with_name("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    folder.mkdir()
    return asked


def test_worker_processes_that_are_killed(problem, tmp_path, monkeypatch):
    """One with a nanny, which starts another; one of which every next one dies; and one after which none comes."""
    monkeypatch.setattr(dask_parts, "_LOOK", 0.1)
    expected = regression("block-cg", problem.x, problem.y[:, 0])
    settings = {"dashboard_address": ":0", "silence_logs": 60, "memory_limit": 0}
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, **settings) as made,
        distributed.Client(made) as client,
    ):
        first = client.run(os.getpid)
        x = cut(problem.x).persist()
        once = x.map_blocks(dying(tmp_path / "once", "once"), meta=problem.x[:0])
        assert_same(regression("block-cg", once, problem.y[:, 0]), expected, problem.x[:5])
        assert (tmp_path / "killed").exists()
        assert client.run(os.getpid).values() != first.values()
        made.scheduler.allowed_failures = 0
        always = x.map_blocks(dying(tmp_path / "always", "always"), meta=problem.x[:0])
        with pytest.raises(dask_parts.PartsLostError, match=r"could not compute a part of X.*more memory"):
            regression("block-cg", always, problem.y[:, 0])
        monkeypatch.setattr(dask_parts, "_ALONE", 0.2)
        made.scheduler.allowed_failures = 3
        for nanny in made.workers.values():
            nanny.close_gracefully()  # it starts no other
        alone = x.map_blocks(dying(tmp_path / "alone", "always"), meta=problem.x[:0])  # not what Dask knows has failed
        with pytest.raises(dask_parts.PartsLostError, match=r"has been without workers for 0\.2 s"):
            regression("block-cg", alone, problem.y[:, 0])
