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


def wheel_that_needs(path: Path, *needs: str) -> Path:
    with zipfile.ZipFile(path / "sampla-1-py3-none-any.whl", "w") as archive:
        archive.writestr("sampla-1.dist-info/METADATA", "\n".join(f"Requires-Dist: {need}" for need in needs))
    return path / "sampla-1-py3-none-any.whl"


def test_the_lowest_versions_are_those_of_the_wheel(release: ModuleType, tmp_path: Path) -> None:
    """Of what the library cannot do without; torch is asked for by itself."""
    wheel = wheel_that_needs(tmp_path, "torch>=2.6", "numpy>=1.26", "scipy<2,>=1.11.1", 'typer>=0.19; extra == "apps"')
    assert release.lowest(release.requirements(wheel)) == ["numpy==1.26", "scipy==1.11.1"]


@pytest.mark.parametrize("need", ["numpy", "numpy<3"])
def test_what_has_no_lowest_version_is_named(release: ModuleType, tmp_path: Path, need: str) -> None:
    with pytest.raises(SystemExit, match=f"got '{need}'"):
        release.lowest(release.requirements(wheel_that_needs(tmp_path, need)))


def test_torch_is_the_one_that_make_installs(release: ModuleType) -> None:
    """By an exact version: of a range pip may take a build of gigabytes."""
    assert f"torch=={release.tested_torch()}\n" in (ROOT / "Makefile").read_text()


def test_one_version_everywhere() -> None:
    """pyproject.toml reads that of the package."""
    (cited,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    newest = re.search(r"^## \[(\d[\d.]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1)
    assert cited == newest == sampla.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", cited)
