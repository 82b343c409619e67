"""What must be installed for what: the library alone needs no command line and no figures."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sampla
from sampla.apps import cli

PROJECT = Path(sampla.__file__).parents[2] / "pyproject.toml"
NEEDED = {"torch", "numpy", "scipy", "scikit-learn", "safetensors", "tqdm"}
BLOCKED = (
    "typer",
    "click",
    "rich",
    "matplotlib",
    "jinja2",
    "pandas",
    "astra",
    "skimage",
    "tifffile",
    "gpytorch",
    "dask",
    "distributed",
)


def names(requirements):
    return {each.partition(">")[0].partition("[")[0] for each in requirements}


def run(code):
    """In a process of its own, where importing what is blocked fails."""
    block = f"import sys\nfor name in {BLOCKED}: sys.modules[name] = None\n"
    return subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True, check=False)


def test_importing_sampla_needs_no_extra():
    project = tomllib.loads(PROJECT.read_text())["project"]
    assert names(project["dependencies"]) == NEEDED
    fit = "sampla.BayesianLinearRegression().fit([[0.0], [1.0], [3.0]], [1.0, 2.0, 2.0]).predict([[1.0]])"
    done = run(f"import sampla, sampla.tomography; {fit}; print(len(sampla.__all__))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(sampla.__all__))]


def test_the_command_says_what_to_install(monkeypatch):
    project = tomllib.loads(PROJECT.read_text())["project"]
    assert names(project["optional-dependencies"]["apps"]) == {"typer", "matplotlib", "jinja2"}
    assert project["scripts"]["sampla"] == "sampla.apps.cli:app"
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "jinja2" else object())
    with pytest.raises(SystemExit, match=r"^sampla's commands need jinja2: pip install 'sampla\[apps\]'$"):
        cli.app()


def test_the_command_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sampla", "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.app()
    assert ended.value.code == 0
    assert "demo" in capsys.readouterr().out
