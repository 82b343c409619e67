"""Pages of experiments and benchmarks: each is what its store and its template give, to the digit; all modules load."""

import ast
import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest
from benchmarks import predict, projection, scale
from benchmarks.engine import __main__ as engine
from benchmarks.linear import page as linear
from benchmarks.solvers import page as solvers
from experiments.classification import cifar10, cifar100, mnist, report
from experiments.common.page import render
from experiments.common.store import Store
from experiments.influence import lds
from experiments.regression import uci_page
from experiments.tomography import large, real
from experiments.width import page as width

from reliability import page as reliability

ROOT = Path(__file__).resolve().parents[1]


def _classification(experiment, elsewhere=False):
    return lambda store: report.page(experiment, store) | {"picture": True, "elsewhere": elsewhere}


PAGES = {
    "experiments/results/mnist/results": ("experiments/classification/page", _classification(mnist.EXPERIMENT)),
    "experiments/results/cifar10/results": ("experiments/classification/page", _classification(cifar10.EXPERIMENT)),
    "experiments/results/cifar100-subset/results": (
        "experiments/classification/page",
        _classification(cifar100.EXPERIMENT, elsewhere=True),
    ),
    "experiments/results/influence/results": ("experiments/influence/results", lds.page),
    "experiments/results/uci/results": ("experiments/regression/uci", uci_page.page),
    "experiments/results/tomography-real/results": ("experiments/tomography/real", real.page),
    "experiments/results/tomography-real-256/results": ("experiments/tomography/real", real.page),
    "experiments/results/tomography-large/results": ("experiments/tomography/large", large.page),
    "experiments/results/width/results": ("experiments/width/page", width.page),
    "docs/reliability": ("tests/reliability/reliability", reliability.page),
    "benchmarks/engine": ("benchmarks/engine/engine", engine.page),
    "benchmarks/linear_models": ("benchmarks/linear/linear_models", linear.page),
    "benchmarks/predict": ("benchmarks/predict", predict.page),
    "benchmarks/solvers": ("benchmarks/solvers/solvers", solvers.page),
}
NEED_AN_EXTRA = {"curvlinops", "gpytorch", "linear_operator", "jax", "torchmetrics", "laplace"}
MODULES = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for folder in ("experiments", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)


def _source(module):
    path = ROOT / module.replace(".", "/")
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


def rendered(name):
    template, page = PAGES[name]
    return render(f"{template}.md.j2", **page(Store.opened(ROOT / f"{name}.json")))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_its_store_gives(name):
    assert rendered(name) == (ROOT / f"{name}.md").read_text(encoding="utf-8")


def test_the_projection_is_what_its_inputs_give():
    page = render("benchmarks/scaling.md.j2", **projection.page(projection.Measured.read()))
    assert page == (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_a_ring_of_two_sends_everything_once():
    pair = projection.Cluster("pair", 2, 1.0, 1.0, bandwidth=8.0, latency=0.25)
    assert pair.ring(32.0) == 32.0 / 8 + 2 * 0.25
    assert pair.on(1).ring(32.0) == 0
    assert pair.on(4).ring(32.0) == 1.5 * 32 / 8 + 6 * 0.25


def test_designs_by_chunk_are_the_same_in_each_way(tmp_path):
    """benchmarks.scale at its tiny size, without the processes."""
    pytest.importorskip("dask.array")
    store = Store(tmp_path / "scale.json", {"quick": True})
    sizes = scale.DESIGNS[True]
    for rows in sizes["rows"]:
        for way in scale.WAYS:
            case = {"rows": rows, "columns": sizes["columns"], "chunk": sizes["chunk"], "way": way}
            store.once(f"designs/{rows}/{way}", lambda case=case: scale.fitted(case))
    evidence = [row["evidence"] for row in store.rows.values()]
    assert evidence[0] == pytest.approx(evidence[1], rel=1e-12)
    assert evidence[0] == pytest.approx(evidence[2], rel=1e-12)
    ranks = scale.RANKS[True] | {"one": [2.0], "all": [1.0], "apart": 1e-7, "passes": 3.0, "ranks": 2}
    ranks |= {"alone": [2.5], "cpu": {"one": [1.9], "all": [1.0]}}
    store.put("ranks", ranks)
    added = {"1": 12e6, "2": 9e6}
    store.put("space", scale.SPACE[True] | {"added": added, "parameters": 100_000, "vectors": 16})
    text = render("benchmarks/scale.md.j2", **scale.page(store))
    assert "- **met** two processes at least 1.7 times as fast as one: 2.00 times" in text
    assert (
        "- **met** a process holds its slice of the Krylov space alone: 0.47 of the space's bytes less on each" in text
    )
    assert text.count("| Dask, two threads |") == len(sizes["rows"])


@pytest.mark.parametrize("module", MODULES)
def test_every_module_loads(module):
    """Of those that need an extra, so much at least that nothing else is missing."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in NEED_AN_EXTRA:
            raise


@pytest.mark.parametrize(
    "module", [name for name in MODULES if "command(" in _source(name) and "def main(" in _source(name)]
)
def test_every_script_has_the_same_words_for_the_same_things(module, monkeypatch, capsys):
    try:
        script = importlib.import_module(module)
    except ModuleNotFoundError:
        pytest.skip("needs an extra")
    monkeypatch.setattr("sys.argv", [module, "--help"])
    with pytest.raises(SystemExit) as left:
        script.main(*([mnist.EXPERIMENT] if module.endswith("runner") else []))
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert "--out" in printed
    assert "--threads" in printed


def test_every_import_of_a_script_is_installed_by_an_extra():
    """`experiments`, with the peers of requirements.txt; JAX is in an environment of its own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    peers = (ROOT / "experiments" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    needed = [*project["dependencies"], *peers]
    for extra in ("apps", "tomography", "dask", "experiments"):
        needed += extras[extra]
    installed = {re.split(r"[=>\[]", line)[0] for line in needed}
    assert {"sampla[apps,tomography]", "sampla[dask]"} <= set(extras["experiments"])
    named = {"sklearn": "scikit-learn", "skimage": "scikit-image", "PIL": "pillow", "laplace": "laplace-torch"}
    named["curvlinops"] = "curvlinops-for-pytorch"
    imported = set()
    for module in MODULES:
        for node in ast.walk(ast.parse(_source(module))):
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
    imported -= sys.stdlib_module_names | {"jax", "sampla", "experiments", "benchmarks", "tests"}
    assert {named.get(name, name) for name in imported} <= installed


def test_no_script_changes_the_path():
    for folder in ("experiments", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "sys.path" + ".insert" not in path.read_text(encoding="utf-8"), path
