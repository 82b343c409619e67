"""What `make release-check` lets through, and one version everywhere."""

import importlib.util
import re
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import sampla

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sdist(path: Path, *names: str, size: int = 10) -> Path:
    (path / "content").write_bytes(bytes(range(256)) * (size // 256 + 1))
    with tarfile.open(path / "sampla-1.tar", "w") as archive:
        for name in names:
            archive.add(path / "content", f"sampla-1/{name}")
    return path / "sampla-1.tar"


@pytest.mark.parametrize(
    "stray", ["experiments/results/mnist/results.json", "tests/test_x.py", "src/sampla/x.npz", "docs/images/demo.png"]
)
def test_data_and_tests_are_kept_out_of_the_sdist(release: ModuleType, tmp_path: Path, stray: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(stray)):
        release.check_sdist(sdist(tmp_path, "PKG-INFO", "src/sampla/__init__.py", stray))


def test_an_sdist_of_sources_passes_unless_it_is_large(release: ModuleType, tmp_path: Path) -> None:
    release.check_sdist(sdist(tmp_path, "LICENSE", "src/sampla/py.typed", "src/sampla.egg-info/SOURCES.txt"))
    with pytest.raises(SystemExit, match="at most"):
        release.check_sdist(sdist(tmp_path, "LICENSE", size=release.LIMIT))


def test_a_wheel_has_every_file_of_the_library(release: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "sampla-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sampla/__init__.py", "")
    with pytest.raises(SystemExit, match=r"sampla/apps/templates/"):
        release.check_wheel(path)


def test_one_version_everywhere() -> None:
    """pyproject.toml reads that of the package."""
    (cited,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    newest = re.search(r"^## \[(\d[\d.]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1)
    assert cited == newest == sampla.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", cited)
