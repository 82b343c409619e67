"""Builds sdist and wheel, looks into both, and fits with the wheel in an environment of its own: `make release-check`.

What is wrong ends it with a sentence. The wheel and the sdist stay in build/release/dist.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
RELEASE = ROOT / "build" / "release"
LIMIT = 2 * 2**20
"""Bytes of an sdist: the library is text of about one MiB, which is compressed."""
SOURCE = {".py", ".md", ".j2", ".html", ".css", ".typed"}
AROUND = {
    "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "MANIFEST.in", "pyproject.toml", "PKG-INFO", "setup.cfg",
}  # fmt: skip
SMOKE = """
import sys, torch, numpy as np, sampla
assert sampla.__version__ == sys.argv[1], f"expected version {sys.argv[1]}, got {sampla.__version__}"
assert not sampla.__file__.startswith(sys.argv[2]), f"expected the installed library, got {sampla.__file__}"
torch.manual_seed(0)
x = torch.linspace(-1, 1, 60)[:, None]
net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).eval()
la = sampla.LinearisedLaplace(net, num_samples=8, progress=False).fit([(x, (x[:, 0] > 0).long())])
assert torch.isfinite(la.predict(x).log_prob((x[:, 0] > 0).long())).all()
la.save("posterior.safetensors")
rng = np.random.default_rng(0)
X = rng.standard_normal((80, 5))
assert (sampla.BayesianLinearRegression().fit(X, X[:, 0]).predict(X, return_std=True)[1] >= 0).all()
print(f"it fits: torch {torch.__version__}, numpy {np.__version__}, python {sys.version.split()[0]}")
"""


def main() -> None:
    """Everything, in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="of the environment that the wheel is tried in")
    tested = str(ROOT / "constraints.txt")
    parser.add_argument("--constraints", default=tested, help="a file for pip; '' for the newest versions")
    parser.add_argument("--only-build", action="store_true", help="look into sdist and wheel, install nothing")
    arguments = parser.parse_args()
    sdist, wheel = build()
    check_sdist(sdist)
    check_wheel(wheel)
    if not arguments.only_build:
        smoke(wheel, arguments.python, arguments.constraints)


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


def smoke(wheel: Path, python: str, constraints: str) -> None:
    """Installs the wheel into an environment that has nothing else, and fits there."""
    place = RELEASE / "venv"
    run(python, "-m", "venv", str(place)) if python != sys.executable else venv.create(place, with_pip=True)
    inside = str(place / "bin" / "python")
    limits = ["-c", constraints] if constraints else []
    run(inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *limits, str(wheel))
    run(inside, "-m", "pip", "check", "--disable-pip-version-check")
    version = wheel.name.split("-")[1]
    run(inside, "-W", "error::DeprecationWarning:sampla", "-c", SMOKE, version, str(ROOT), cwd=RELEASE)


def run(*command: str, cwd: Path = ROOT) -> None:
    """A command that must succeed."""
    code = subprocess.run(command, cwd=cwd, check=False).returncode
    if code:
        sys.exit(f"expected success, got exit status {code} of {' '.join(command)[:200]}")


if __name__ == "__main__":
    main()
