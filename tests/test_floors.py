"""The house (docs/architecture.md): every module has a floor and imports only from the floors below it.

The rules are read off the source with ast, so that imports inside functions count as well.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sampla

FLOORS = (
    # Top floor last. A folder stands for all its modules; "" is the package's own __init__, the public names.
    ("no statistics", "core"),
    (
        "core: alone, under the others",
        "core.interrupts core.philox core.processes",
    ),
    (
        "core: alone",
        "core.allocator core.memory core.typing core.checks core.params core.progress core.rounding core.checkpoint "
        "core.operations",
    ),
    ("sums over processes", "distributed"),
    ("core: stacks of blocks", "core.stack"),
    (
        "core: inner products; when memory is short; what is given by name; keyed draws; kept passes",
        "core.blocks core.chunks core.arguments core.noise core.journal core.unpacking core.renamed",
    ),
    ("core: the user's inputs; numbers by parameter", "core.inputs core.by_parameter"),
    ("core: whether data are the same; data on their way", "core.hashes core.batch"),
    ("core: batches of what a loader yields", "core.items"),
    ("core: the user's data", "core.data"),
    ("MacKay's updates, of numbers and tensors", "inference.mackay"),
    ("Gaussian noise, of which that of each target is a kind", "likelihoods.gaussian"),
    ("nouns", "features likelihoods priors"),
    ("a prior that is known", "given_prior"),
    ("what a likelihood says of itself, tried on data; what outputs look like", "likelihoods.checks likelihoods.watch"),
    ("a few data of the linear model; the first look at all of them; passes elsewhere", "linear_batch survey parts"),
    ("averages over functions; densities with Gaussian noise", "posterior.averages posterior.density"),
    (
        "what samples say about new outputs; batches to be predicted",
        "posterior.outputs posterior.batches posterior.functions",
    ),
    ("targets as torch has them", "posterior.distributions"),
    ("the linear model, and what samples say about new data", "model posterior.predictive posterior.metrics"),
    ("what is said of an observation without it", "posterior.leave_one_out"),
    ("by which factors", "posterior.width"),
    ("what a product costs", "inference.tuning"),
    ("what samples are, to users", "posterior posterior.posterior"),
    ("verbs", "solvers"),
    ("one Krylov space of M; a basis in files", "inference.krylov inference.space_files"),
    ("the same over the outputs", "inference.output_space"),
    ("what follows from samples and from the space", "inference.evidence inference.quadrature"),
    ("what an EM step found", "inference.trace"),
    ("where EM's steps lead", "inference.steps"),
    ("what is asked of EM", "inference.settings"),
    ("which way a fit goes", "inference.route"),
    ("what the loop remembers", "inference.state"),
    ("exact traces; other coordinates", "inference.exact inference.coordinates"),
    ("what an E-step is", "inference.e_step"),
    ("what E-steps by a Krylov space share", "inference.space_step"),
    ("the ways of an E-step", "inference.krylov_step inference.moving_step inference.sampled_step"),
    ("the way by all outputs", "inference.dual_step"),
    ("the final solve", "inference.final"),
    ("the loop", "inference.infer"),
    ("new data", "inference.update"),
    (
        "before and after a fit",
        "inference inference.report inference.memory_plan inference.checkpointing inference.certificate inference.mode "
        "inference.more",
    ),
    ("what would be without a datum", "inference.influence inference.leave_one_out"),
    ("linear models: the user's rows; graphs over Dask's", "linear.sources linear.dask_parts"),
    ("linear models: rows that Dask holds", "linear.dask_source"),
    ("linear models: what a first pass says of the columns, and what is taken off them", "linear.columns"),
    ("linear models: regression in closed form", "linear.closed_form"),
    ("linear models: the other ways to answer", "linear.coefficients linear.logits linear.newton linear.iterative"),
    ("linear models: what scikit-learn passes, what is asked, what a fit says", "linear.inputs linear.settings"),
    (
        "what is asked of the types in it; attributes of its modules",
        "laplace.guards.precision laplace.guards.attributes laplace.guards.weights",
    ),
    ("what is asked of the user's network and of the settings", "laplace.guards laplace.choices"),
    ("what processes must agree on", "laplace.spread"),
    ("what a fit tells", "laplace.fitted"),
    ("what it tells of its data", "laplace.training_data"),
    ("what it tells of new inputs", "laplace.predicting"),
    ("more samples", "laplace.more"),
    ("new data for it", "laplace.update"),
    ("front doors", "laplace.linearised linear.regression linear.logistic"),
    ("trained networks", "laplace"),
    ("the estimators", "linear"),
    ("tomography: images and scans", "tomography.geometry tomography.operators tomography.unet tomography.image"),
    ("tomography: what is made of them", "tomography.rays tomography.fbp tomography.tv"),
    ("tomography: the deep image prior", "tomography.dip"),
    ("tomography: mistakes in a scan", "tomography.diagnosis"),
    (
        "tomography: the linear model",
        "tomography.projected tomography.plan tomography.variational_plan tomography.scores tomography.prepared "
        "tomography.differences",
    ),
    ("tomography: the mode of total variation", "tomography.mode"),
    ("tomography: a file of it", "tomography.keeping tomography.saving"),
    ("tomography: the weights of total variation", "tomography.reweighting"),
    ("tomography: front door", "tomography.linearised tomography.variational"),
    ("tomography", "tomography"),
    ("public names", ""),
    ("other libraries", "integrations"),
    ("apps: drawings", "apps.figures"),
    ("apps: a result as one page", "apps.page"),
    ("the demo: what it is given", "apps.demo.data apps.demo.networks"),
    ("the demo: what it does", "apps.demo.training apps.demo.evaluate"),
    ("the demo: what it shows", "apps.demo.table apps.demo.illustrate"),
    ("the demo: its report", "apps.demo.report"),
    ("the demo", "apps.demo"),
    ("sampla ct: what it is given and what it draws", "apps.ct.data apps.ct.illustrate apps.ct.report apps.ct.fitting"),
    ("sampla ct: what it does", "apps.ct.run"),
    ("sampla ct", "apps.ct"),
    ("the commands", "apps.commands"),
    ("command line", "apps.cli"),
    ("apps", "apps"),
)
MOST_LINES = 400
ONE_USER = {"safetensors": "core.checkpoint", "torch.distributed": "distributed"}
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"torch.load", "torch.save", "torch.jit.load", "numpy.load"}


@dataclass(frozen=True)
class Import:
    """One imported name: "features.network" if it is the package's own, otherwise as written."""

    name: str
    own: bool


@dataclass(frozen=True)
class House:
    """A package as source text; modules are named relative to it ("features.network", "" for its __init__)."""

    root: Path

    @cached_property
    def files(self) -> dict[str, Path]:
        parts = {path: path.relative_to(self.root).with_suffix("").parts for path in sorted(self.root.rglob("*.py"))}
        return {".".join(p[:-1] if p[-1] == "__init__" else p): path for path, p in parts.items()}

    @cached_property
    def nodes(self) -> dict[str, list[ast.AST]]:
        """Module -> all nodes of its source."""
        return {m: list(ast.walk(ast.parse(path.read_text()))) for m, path in self.files.items()}

    def imports(self, module: str) -> set[Import]:
        return {i for node in self.nodes[module] for i in self._of_node(node, module)}

    def graph(self) -> dict[str, set[str]]:
        """Module -> modules of the package that it imports."""
        return {m: {i.name for i in self.imports(m) if i.own} - {m} for m in self.files}

    def _of_node(self, node: ast.AST, module: str) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield self._resolved(alias.name)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                source = ".".join(filter(None, [*self._package_of(module, node.level), source]))
            for alias in node.names:
                longer = self._resolved(f"{source}.{alias.name}")
                known = not longer.own or longer.name in self.files
                yield longer if known else self._resolved(source)

    def _package_of(self, module: str, level: int) -> list[str]:
        is_package = self.files[module].name == "__init__.py"
        parts = [self.root.name, *filter(None, module.split("."))]
        return parts[: len(parts) - level + (1 if is_package else 0)]

    def _resolved(self, dotted: str) -> Import:
        first, _, rest = dotted.partition(".")
        return Import(rest, own=True) if first == self.root.name else Import(dotted, own=False)


def floor_of(module: str, floors: tuple[tuple[str, str], ...]) -> int | None:
    """The floor of the module, or of the nearest folder around it that the table lists."""
    table = {name: number for number, (_, names) in enumerate(floors) for name in names.split() or [""]}
    while module not in table and "." in module:
        module = module.rpartition(".")[0]
    return table.get(module)


def floor_violations(house: House, floors: tuple[tuple[str, str], ...]) -> list[str]:
    """Imports that do not point strictly down, apart from a folder's own _base and __init__."""
    found = []
    for module, targets in house.graph().items():
        here = floor_of(module, floors)
        if here is None:
            found.append(f"{module} has no floor: add it to FLOORS")
            continue
        for target in sorted(targets):
            there = floor_of(target, floors)
            if there is not None and there >= here and not _inside_folder(module, target, house):
                found.append(f"{module} (floor {here}) imports {target} (floor {there})")
    return found


def _inside_folder(module: str, target: str, house: House) -> bool:
    """A folder's __init__ may import its modules, and they may import the folder's private ones."""
    if house.files[module].name == "__init__.py" and module:
        return target.startswith(f"{module}.")
    folder, _, name = target.rpartition(".")
    return bool(folder) and folder == module.rpartition(".")[0] and name.startswith("_")


def ghosts(house: House, floors: tuple[tuple[str, str], ...]) -> list[str]:
    """Names in the table that no module has."""
    return [name for _, names in floors for name in names.split() if name not in house.files]


def cycle(house: House) -> list[str]:
    """The modules of one import cycle, or nothing."""
    try:
        TopologicalSorter(house.graph()).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def unsafe(house: House) -> list[str]:
    """Anything that could unpickle, and any use of a library that only one module may touch."""
    found = []
    for module in house.files:
        names = {i.name for i in house.imports(module) if not i.own}
        found += [f"{module} imports {n}" for n in sorted(names) if n.partition(".")[0] in UNSAFE_MODULES]
        used = names | _attributes(house.nodes[module])
        found += [f"{module} uses {n}" for n in sorted(used) if n in UNSAFE_CALLS]
        for library, owner in ONE_USER.items():
            own = module == owner or module.startswith(f"{owner}.")
            if not own and any(f"{n}.".startswith(f"{library}.") for n in used):
                found.append(f"{module} uses {library}, which only {owner} may")
    return found


def _attributes(nodes: list[ast.AST]) -> set[str]:
    """Dotted expressions such as torch.load, with np written out."""
    chains = [ast.unparse(n) for n in nodes if isinstance(n, ast.Attribute)]
    return {f"numpy.{c[3:]}" if c.startswith("np.") else c for c in chains}


def too_long(house: House, most: int = MOST_LINES) -> list[str]:
    """Files with more than ``most`` lines."""
    lengths = {m: len(path.read_text().splitlines()) for m, path in house.files.items()}
    return [f"{m or '__init__'} has {n} lines" for m, n in lengths.items() if n > most]


SAMPLA = House(Path(sampla.__file__).parent)


def test_imports_point_strictly_down() -> None:
    assert floor_violations(SAMPLA, FLOORS) == []


def test_table_names_only_what_exists() -> None:
    assert ghosts(SAMPLA, FLOORS) == []


def test_no_import_cycles() -> None:
    assert cycle(SAMPLA) == []


def test_nothing_unpickles_and_one_module_owns_each_file_format() -> None:
    assert unsafe(SAMPLA) == []


def test_files_are_short() -> None:
    assert too_long(SAMPLA) == []


# The checker itself: a made-up package that keeps every rule, and one change for each rule that breaks it.

GOOD = {
    "__init__.py": "from toy.top import door\n",
    "ground.py": "import json\n",
    "core/__init__.py": "",
    "core/checkpoint.py": "from safetensors import safe_open\n",
    "nouns/__init__.py": "from toy.nouns.one import One\n",
    "nouns/_base.py": "from toy import ground\n",
    "nouns/one.py": "from toy.nouns._base import Base\nimport torch\n",
    "nouns/two.py": "from ._base import Base\nfrom .. import ground\n",
    "top.py": "from toy.nouns import One\nimport toy.ground\n",
}
TOY_FLOORS = (("ground", "ground core core.checkpoint"), ("nouns", "nouns"), ("top", "top"), ("names", ""))


def _toy(folder: Path, changes: dict[str, str]) -> House:
    for name, text in {**GOOD, **changes}.items():
        path = folder / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return House(folder / "toy")


def _all_findings(house: House) -> list[str]:
    return [*floor_violations(house, TOY_FLOORS), *ghosts(house, TOY_FLOORS), *unsafe(house), *too_long(house)]


def test_checker_accepts_a_good_house(tmp_path: Path) -> None:
    house = _toy(tmp_path, {})
    assert _all_findings(house) == []
    assert cycle(house) == []
    assert house.graph()["nouns.two"] == {"nouns._base", "ground"}
    assert house.graph()["top"] == {"nouns", "ground"}


@pytest.mark.parametrize(
    ("name", "text", "finding"),
    [
        ("ground.py", "import toy.top\n", "ground (floor 0) imports top (floor 2)"),
        ("ground.py", "from .nouns import One\n", "ground (floor 0) imports nouns (floor 1)"),
        ("ground.py", "def f():\n    from toy import top\n", "ground (floor 0) imports top (floor 2)"),
        ("ground.py", "import toy\n", "ground (floor 0) imports  (floor 3)"),
        ("core/checkpoint.py", "from toy import ground\n", "core.checkpoint (floor 0) imports ground (floor 0)"),
        ("nouns/two.py", "from toy.nouns.one import One\n", "nouns.two (floor 1) imports nouns.one (floor 1)"),
        ("nouns/two.py", "from . import one\n", "nouns.two (floor 1) imports nouns.one (floor 1)"),
        ("attic.py", "", "attic has no floor: add it to FLOORS"),
        ("top.py", "import safetensors.torch\n", "top uses safetensors, which only core.checkpoint may"),
        ("top.py", "def f():\n    import pickle\n", "top imports pickle"),
        ("top.py", "import torch\ntorch.load('x')\n", "top uses torch.load"),
        ("top.py", "from torch import save\n", "top uses torch.save"),
        ("top.py", "import numpy as np\nnp.load('x')\n", "top uses numpy.load"),
        ("top.py", "import torch.distributed\n", "top uses torch.distributed, which only distributed may"),
        ("top.py", "\n" * (MOST_LINES + 1), f"top has {MOST_LINES + 1} lines"),
    ],
)  # fmt: skip
def test_checker_finds(tmp_path: Path, name: str, text: str, finding: str) -> None:
    assert _all_findings(_toy(tmp_path, {name: text})) == [finding]


def test_checker_finds_ghosts(tmp_path: Path) -> None:
    house = _toy(tmp_path, {})
    assert ghosts(house, (*TOY_FLOORS, ("attic", "attic"))) == ["attic"]


def test_checker_finds_cycles_made_inside_functions(tmp_path: Path) -> None:
    house = _toy(
        tmp_path, {"ground.py": "def f():\n    from toy import checkpoint\n", "checkpoint.py": "import toy.ground\n"}
    )
    assert set(cycle(house)) == {"ground", "checkpoint"}
