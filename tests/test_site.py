"""The documentation site: what its hooks do to pages. `make docs-check` tells whether it builds."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("mkdocs")
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repository() -> ModuleType:
    return hook("repository")


@pytest.fixture
def files(repository: ModuleType) -> Files:
    config = MkDocsConfig()
    config.load_dict({"site_name": "sampla", "docs_dir": str(ROOT / "docs"), "site_dir": "site"})
    config.validate()
    config.plugins._current_plugin = "repository"  # as MkDocs sets it around an event
    uris = ("start.md", "how-to/README.md", "method.md", "tutorials/regression.md")
    some = [File(uri, config.docs_dir, "site", False) for uri in uris]
    return repository.on_files(Files(some), config)


@pytest.mark.parametrize(
    ("page", "link", "turned"),
    [
        ("start.md", "[a](how-to/README.md#b)", "[a](how-to/README.md#b)"),
        ("start.md", "[a](../CHANGELOG.md)", "[a](CHANGELOG.md)"),
        ("how-to/README.md", "[a](../../examples/regression.py)", "[a](../examples/regression.md)"),
        ("how-to/README.md", "[a](../../experiments/README.md#c)", "[a](../experiments/README.md#c)"),
        ("start.md", "[a](tutorials/regression.py)", "[a](tutorials/regression.md)"),
        ("experiments/README.md", "[a](../docs/method.md)", "[a](../method.md)"),
        ("start.md", "[the tests](../tests/test_site.py)", "the tests"),
        ("start.md", "[a](nowhere.md)", "[a](nowhere.md)"),  # the strict build complains
        ("start.md", "[a](https://example.org/x)", "[a](https://example.org/x)"),
    ],
)
def test_links_lead_to_pages_of_the_site(
    repository: ModuleType, files: Files, page: str, link: str, turned: str
) -> None:
    assert repository.turned(link, files.get_file_from_path(page), files) == turned


def test_a_table_is_the_first_below_its_heading(repository: ModuleType) -> None:
    page = "experiments/results/uci/results.md"
    table = repository.table(page, "Mean test log-like")
    assert table.count("\n") == 11
    below = (ROOT / page).read_text().split("## Mean test log-likelihood")[1]
    assert below.split("\n\n")[1].strip() == table.strip()
    with pytest.raises(PluginError, match="expected a table"):
        repository.table(page, "No such heading")


def test_public_names_are_those_that_packages_list(repository: ModuleType) -> None:
    import sampla

    assert set(sampla.__all__) < repository.public_names()
    assert "ray_transform" in repository.public_names()


SCRIPT = """# %% [markdown]
# # A title
#
# Words.

# %%
import matplotlib.pyplot as plt
a = 2
print("two")
f"and {a + 1}"

# %%
plt.plot([1, a])
"""


def test_a_tutorial_shows_code_output_and_pictures() -> None:
    tutorials = hook("tutorials")
    page, pictures = tutorials.executed(SCRIPT, "t")
    text = tutorials.written(SCRIPT, "t", page)
    assert text.startswith("# A title\n\nWords.\n")
    assert "```text\ntwo\nand 3\n```" in text
    assert text.index("and 3") < text.index("plt.plot") < text.index("(t-2-0.png)")
    assert [picture[1:4] for picture in pictures.values()] == [b"PNG"]
    assert list(pictures) == ["t-2-0.png"]
    shown = tutorials.written(SCRIPT, "t", {})
    assert "plt.plot" in shown
    assert "png" not in shown
    kinds = [cell["cell_type"] for cell in tutorials.notebook(SCRIPT)["cells"]]
    assert kinds == ["markdown", "code", "code"]


def test_a_warning_in_a_tutorial_ends_the_build() -> None:
    with pytest.raises(UserWarning, match="beware"):
        hook("tutorials").executed("# %%\nimport warnings\nwarnings.warn('beware')\n", "t")
