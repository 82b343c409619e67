"""Builds sdist and wheel, looks into both, and fits with the wheel in an environment of its own: `make release-check`.

What is wrong ends it with a sentence. The wheel and the sdist stay in build/release/dist.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
RELEASE = ROOT / "build" / "release"
LIMIT = 2 * 2**20
"""Bytes of an sdist: the library is text of about one MiB, which is compressed."""
SOURCE = {".py", ".md", ".j2", ".html", ".css", ".typed"}
AROUND = {
    "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "MANIFEST.in", "pyproject.toml", "PKG-INFO", "setup.cfg",
}  # fmt: skip
TESTED = ROOT / "constraints.txt"
SMOKE = """
import importlib, pkgutil, sys, warnings, torch
warnings.simplefilter("error")
warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated")  # torch.func.jvp imports it
import sampla
from importlib.metadata import version
from pathlib import Path
extra = ("sampla.apps", "sampla.integrations.botorch")  # these need more than the library does
for module in pkgutil.walk_packages(sampla.__path__, "sampla."):
    if not module.name.startswith(extra):
        importlib.import_module(module.name)
assert sampla.__version__ == sys.argv[1], f"expected version {sys.argv[1]}, got {sampla.__version__}"
assert Path(sampla.__file__).is_relative_to(sys.prefix), f"expected the installed library, got {sampla.__file__}"
torch.manual_seed(0)
x = torch.linspace(-1, 1, 60)[:, None]
y = (x[:, 0] > 0).long()
net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).eval()
la = sampla.LinearisedLaplace(net, num_samples=8, progress=False).fit([(x, y)])
expected = la.predict(x).log_prob(y)
assert torch.isfinite(expected).all()
la.save("posterior.safetensors")
torch.testing.assert_close(sampla.LinearisedLaplace.load("posterior.safetensors", net).predict(x).log_prob(y), expected)
X = torch.randn(80, 5).double().numpy()
assert (sampla.BayesianLinearRegression().fit(X, X[:, 0]).predict(X, return_std=True)[1] >= 0).all()
assert sampla.BayesianLogisticRegression().fit(X, X[:, 0] > 0).score(X, X[:, 0] > 0) > 0.9
print(f"it fits: python {sys.version.split()[0]},", ", ".join(f"{name} {version(name)}" for name in sys.argv[2:]))
"""


def main() -> None:
    """Everything, in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="of the environment that the wheel is tried in")
    parser.add_argument("--constraints", default=str(TESTED), help="a file for pip; '' for the newest versions")
    parser.add_argument("--lowest", action="store_true", help="the lowest versions that the wheel allows instead")
    parser.add_argument("--torch", default=tested_torch(), help="its exact version, in every case")
    parser.add_argument("--only-build", action="store_true", help="look into sdist and wheel, install nothing")
    arguments = parser.parse_args()
    sdist, wheel = build()
    check_sdist(sdist)
    check_wheel(wheel)
    if arguments.only_build:
        return
    needs = requirements(wheel)
    limits = [] if arguments.lowest or not arguments.constraints else ["-c", arguments.constraints]
    versions = lowest(needs) if arguments.lowest else []
    smoke(wheel, arguments.python, arguments.torch, [*limits, *versions], sorted(need.name for need in needs))


def tested_torch() -> str:
    """torch is asked for by an exact version, as make does: of a range pip may take a build of gigabytes."""
    return re.search(r"^torch==(\S+)$", TESTED.read_text(), re.MULTILINE)[1]


def build() -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    shutil.rmtree(RELEASE, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", str(RELEASE / "dist"), str(ROOT))
    (sdist,), (wheel,) = (RELEASE / "dist").glob("*.tar.gz"), (RELEASE / "dist").glob("*.whl")
    return sdist, wheel


def check_sdist(path: Path) -> None:
    """Sources and the files around them, nothing else, and little of it."""
    with tarfile.open(path) as archive:
        names = [PurePosixPath(*PurePosixPath(member.name).parts[1:]) for member in archive if member.isfile()]
    wrong = [str(name) for name in names if not belongs(name)]
    if wrong:
        sys.exit(f"expected sources alone in {path.name}, got {wrong}: leave them out in MANIFEST.in.")
    if path.stat().st_size > LIMIT:
        sys.exit(f"expected at most {LIMIT} bytes, got {path.stat().st_size} in {path.name}.")
    print(f"{path.name}: {len(names)} files, {path.stat().st_size / 2**20:.2f} MiB")


def belongs(name: PurePosixPath) -> bool:
    """Whether a file may be in an sdist."""
    if name.parts[0] == "src":
        return name.suffix in SOURCE or any(part.endswith(".egg-info") for part in name.parts)
    return str(name) in AROUND


def check_wheel(path: Path) -> None:
    """Every file of the library, and no other."""
    with zipfile.ZipFile(path) as archive:
        has = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [file for file in (ROOT / "src" / "sampla").rglob("*") if file.is_file()]
    wanted = {file.relative_to(ROOT / "src").as_posix() for file in files if "__pycache__" not in file.parts}
    if has != wanted:
        sys.exit(f"expected the files of src/sampla in {path.name}, got {sorted(has ^ wanted)} more or less.")


def requirements(wheel: Path) -> list[Requirement]:
    """What the library cannot do without, as its wheel says it."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    needs = [Requirement(line.removeprefix("Requires-Dist: ")) for line in lines if line.startswith("Requires-Dist: ")]
    return [need for need in needs if not (need.marker and "extra" in str(need.marker))]


def lowest(needs: list[Requirement]) -> list[str]:
    """The lowest version of each, for pip; torch is left out, whose version is asked for by itself."""
    found = []
    for need in needs:
        floors = [part.version for part in need.specifier if part.operator == ">="]
        if len(floors) != 1:
            sys.exit(f"expected one lowest version, as in {need.name}>=1.0, got {str(need)!r} in pyproject.toml.")
        found.append(f"{need.name}=={floors[0]}")
    return [version for version in found if not version.startswith("torch==")]


def smoke(wheel: Path, python: str, torch: str, versions: list[str], names: list[str]) -> None:
    """Installs the wheel into an environment that has nothing else, and fits there."""
    place = RELEASE / "venv"
    run(python, "-m", "venv", str(place)) if python != sys.executable else venv.create(place, with_pip=True)
    inside = str(place / "bin" / "python")
    pip = [inside, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--only-binary", ":all:", *versions, f"torch=={torch}", str(wheel))
    run(*pip, "check")
    run(inside, "-c", SMOKE, wheel.name.split("-")[1], *names, cwd=RELEASE)


def run(*command: str, cwd: Path = ROOT) -> None:
    """A command that must succeed."""
    code = subprocess.run(command, cwd=cwd, check=False).returncode
    if code:
        sys.exit(f"expected success, got exit status {code} of {' '.join(command)[:200]}")


if __name__ == "__main__":
    main()
