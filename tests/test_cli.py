"""`sampla demo` from the command line: all files at a tiny size, and what it says when it cannot start."""

import gzip
import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from sampla import LinearisedLaplace
from sampla.apps.commands import app
from sampla.apps.demo import evaluate
from sampla.apps.demo.data import digits
from sampla.apps.demo.evaluate import METHODS
from sampla.apps.demo.networks import network_for
from sampla.core import checkpoint

PICTURES = {"overview", "examples", "reliability", "rotation", "em_trace", "convergence"}
TINY = ["--samples", "3", "--epochs", "8", "--images", "80"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    result = CliRunner().invoke(app, ["demo", "--out", str(out), *TINY], catch_exceptions=False)
    assert result.exit_code == 0
    return out, result


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def write_mnist(folder):
    rng = np.random.default_rng(0)
    folder.mkdir()
    labels = np.arange(20) % 2
    for part in ("train", "t10k"):
        images = rng.integers(0, 128, (20, 28, 28)) + 127 * labels[:, None, None]
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(labels))


class TestFinished:
    def test_all_files_are_there(self, finished):
        out, _ = finished
        expected = {f"{name}.png" for name in PICTURES}
        expected |= {"summary.json", "report.html", "network.safetensors", "posterior.safetensors"}
        assert {path.name for path in out.iterdir()} == expected
        assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in PICTURES)

    def test_summary_holds_the_whole_table_and_the_verdicts(self, finished):
        summary = json.loads((finished[0] / "summary.json").read_text())
        assert [set(row["values"]) for row in summary["table"]] == [set(METHODS)] * len(summary["table"])
        assert {row["measure"] for row in summary["table"]} >= {"accuracy", "NLL", "ECE", "joint NLL, 10 labels"}
        assert len(summary["verdicts"]) == 6
        for verdict in summary["verdicts"]:
            rows = [row for row in summary["table"] if row["target"] == verdict["target"]]
            assert verdict["met"] == all(row["met"] for row in rows)
        assert summary["data"] == {"name": "digits", "train": 80, "test": 80}
        assert summary["fit"]["num_samples"] == 3
        assert summary["settings"]["seed"] == 0
        assert summary["peak_memory_bytes"] > 2**26
        assert {"python", "torch", "sampla"} <= set(summary["versions"])
        assert "NaN" not in (finished[0] / "summary.json").read_text()

    def test_the_report_is_one_self_contained_page(self, finished):
        html = (finished[0] / "report.html").read_text(encoding="utf-8")
        assert html.count("data:image/png;base64,") == len(PICTURES)
        assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", html)
        assert "url(" not in html
        assert "3 posterior samples of" in html
        for measure in ("joint NLL, 10 labels", "NLL, rotated by 180 degrees", "AUROC, pure noise"):
            assert measure in html

    def test_the_console_shows_table_verdicts_and_where_the_files_are(self, finished):
        out, result = finished
        assert re.search(r"accuracy +\d", result.output)
        assert re.search(r"(met|NOT MET) +joint NLL better", result.output)
        assert str(out / "report.html") in result.output

    def test_network_and_posterior_can_be_loaded_again(self, finished):
        data = digits(0)
        network = network_for("digits", data.train.images, 1)
        network.load_state_dict(checkpoint.load(finished[0] / "network.safetensors")[0])
        la = LinearisedLaplace.load(finished[0] / "posterior.safetensors", network.eval())
        assert la.predict(data.test.images[:4]).probs.shape == (4, 10)


def test_mnist_also_writes_results(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "ANGLES", (evaluate.OOD_ANGLE,))
    write_mnist(tmp_path / "mnist")
    out = tmp_path / "out"
    arguments = ["demo", "--data", "mnist", "--root", str(tmp_path), "--out", str(out), "--quiet", "--samples", "2"]
    result = CliRunner().invoke(app, [*arguments, "--epochs", "5", "--images", "20"], catch_exceptions=False)
    assert (result.exit_code, result.output) == (0, "")
    words = (out / "results.md").read_text()
    for part in ("sampla demo --data mnist", "## Targets", "## Table", "## EM trace", "## Certificate", "## Cost"):
        assert part in words
    summary = json.loads((out / "summary.json").read_text())
    assert all(f"\n| {row['measure']} | " in words for row in summary["table"])
    assert f"\n| {len(summary['fit']['trace'])} | " in words
    assert all(f"]({name}.png)" in words for name in PICTURES)
    assert str(tmp_path) not in words + (out / "summary.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "letters"], "'letters' is not one of 'digits', 'mnist'"),
        (["--data", "mnist"], "expected --root DIR with --data mnist"),
        (["--data", "mnist", "--root", "no-such-folder"], "found none at no-such-folder"),
        (["--samples", "1"], r"(greater than or equal to |x>=)2"),  # typer's own words, which differ with its version
        (["--seed", "-1"], r"(greater than or equal to |x>=)0"),
        (["--colour", "red"], "No such option"),
    ],
)
def test_what_cannot_be_is_said_with_exit_code_2(arguments, message, tmp_path):
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert re.search(message, " ".join(result.output.split()))
    assert not (tmp_path / "out").exists()


def test_damaged_mnist_is_said_with_exit_code_2(tmp_path):
    write_mnist(tmp_path / "mnist")
    file = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:200])
    result = CliRunner().invoke(app, ["demo", "--data", "mnist", "--root", str(tmp_path), "--out", str(tmp_path / "o")])
    assert result.exit_code == 2
    assert "damaged or was cut short" in " ".join(result.output.split())


def test_an_out_that_is_a_file_is_said_with_exit_code_2(tmp_path):
    (tmp_path / "taken").write_text("")
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "taken")])
    assert result.exit_code == 2
    assert "could not make the folder" in result.output
