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


@pytest.fixture(scope="module")
def repository() -> ModuleType:
    spec = importlib.util.spec_from_file_location("repository", ROOT / "docs" / "hooks" / "repository.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def files(repository: ModuleType) -> Files:
    config = MkDocsConfig()
    config.load_dict({"site_name": "sampla", "docs_dir": str(ROOT / "docs"), "site_dir": "site"})
    config.validate()
    config.plugins._current_plugin = "repository"  # as MkDocs sets it around an event
    some = [File(uri, config.docs_dir, "site", False) for uri in ("start.md", "how-to/README.md", "method.md")]
    return repository.on_files(Files(some), config)


@pytest.mark.parametrize(
    ("page", "link", "turned"),
    [
        ("start.md", "[a](how-to/README.md#b)", "[a](how-to/README.md#b)"),
        ("start.md", "[a](../CHANGELOG.md)", "[a](CHANGELOG.md)"),
        ("how-to/README.md", "[a](../../examples/regression.py)", "[a](../examples/regression.md)"),
        ("how-to/README.md", "[a](../../experiments/README.md#c)", "[a](../experiments/README.md#c)"),
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
