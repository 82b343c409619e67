"""Other libraries: every example of examples/integrations runs where its library is installed (make integrations)."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "integrations"
EXAMPLES = {
    "huggingface": ("transformers", "peft", "accelerate"),
    "language_model": ("transformers", "accelerate"),
    "lightning_module": ("lightning",),
    "bayesian_optimisation": ("botorch",),
    "skorch_net": ("skorch",),
    "graphs": ("torch_geometric",),
    "metrics": ("torchmetrics",),
    "interatomic_potential": ("chgnet",),
}
_SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("default", "error::sampla.ConvergenceWarning")  # other libraries warn of their own
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in EXAMPLES[name]:
        pytest.importorskip(package, exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


def test_every_example_says_what_to_install() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(EXAMPLES)
    for name, packages in EXAMPLES.items():
        (line,) = re.findall(r"^pip install sampla (.*)$", (FOLDER / f"{name}.py").read_text(), re.MULTILINE)
        assert tuple(line.split()) == packages


def test_snippets_of_the_page_stand_in_the_examples() -> None:
    """So that they run as they stand there, where the library is."""
    snippets = _SNIPPET.findall((ROOT / "docs" / "integrations.md").read_text())
    examples = [path.read_text() for path in sorted(FOLDER.glob("*.py"))]
    assert len(snippets) >= len(EXAMPLES)
    missing = [snippet for snippet in snippets if not any(snippet in example for example in examples)]
    assert missing == []
