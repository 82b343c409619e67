"""`sampla ct`: all files at a tiny size, what it reads, and what it says when it cannot."""

import json
import re
import sys

import numpy as np
import pytest
import tifffile
import torch
from typer.testing import CliRunner

from sampla.apps.commands import app
from sampla.apps.ct import Settings, adjusted, demo_scan, from_counts, read_scan, run_ct
from sampla.apps.ct.illustrate import coverage
from sampla.core import checkpoint
from sampla.tomography import Geometry, LinearisedDIP, VariationalTV, ray_transform

PICTURES = {"overview", "samples", "residual", "calibration"}
IMAGES = {"reconstruction", "std", "samples"}
TINY = ["--method", "network", "--samples", "3", "--steps", "20", "--quiet"]
SCAN = Geometry((12, 12), 1.0, (0.0, 0.8, 1.6, 2.4), 15, 1.0, 30.0, 60.0)


def run(*arguments):
    return CliRunner().invoke(app, ["ct", *map(str, arguments)], catch_exceptions=False)


def refused(*arguments):
    """The message, without the box and line breaks of the terminal."""
    result = run(*arguments)
    assert result.exit_code == 2
    return re.sub(r"[\s│]+", " ", result.output)


def sinogram(counts=False):
    rng = np.random.default_rng(0)
    bump = np.exp(-(((np.arange(15) - 7) / 4) ** 2)) * 2 + 0.01 * rng.standard_normal((4, 15))
    return np.round(1e4 * np.exp(-bump)) if counts else bump


def write_npz(path, **changes):
    entries = {"sinogram": sinogram(), **{k: v for k, v in SCAN.to_dict().items() if v is not None}, **changes}
    np.savez(path, **{k: v for k, v in entries.items() if v is not None})
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("ct") / "new" / "folder"
    assert run("--demo", "--pixels", 12, "--out", out, "--save", out.parent / "fit", *TINY).exit_code == 0
    return out


class TestDemo:
    def test_all_files_are_there(self, finished):
        expected = {f"{name}.png" for name in PICTURES} | {
            f"{name}.{kind}" for name in IMAGES for kind in ("npy", "tif")
        }
        expected |= {"summary.json", "report.html", "images.safetensors"}
        assert {path.name for path in finished.iterdir()} == expected
        assert all((finished / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in PICTURES)

    def test_images_are_those_of_the_summary(self, finished):
        tensors, facts = checkpoint.load(finished / "images.safetensors")
        assert tensors["samples"].shape == (3, 12, 12)
        deviations = tensors["samples"] - tensors["reconstruction"]
        torch.testing.assert_close(deviations.square().mean(0).sqrt(), tensors["std"], atol=1e-5, rtol=1e-3)
        for name in IMAGES:
            for found in (np.load(finished / f"{name}.npy"), tifffile.imread(finished / f"{name}.tif")):
                np.testing.assert_allclose(found, tensors[name], rtol=1e-6)
        summary = json.loads((finished / "summary.json").read_text())
        assert summary["mean_std"] == pytest.approx(float(tensors["std"].mean()))
        assert Geometry.from_dict(facts["geometry"]) == Geometry.from_dict(summary["geometry"])
        assert set(summary["scores"]["inside"]) == {"1", "2", "3"}
        assert set(summary["scores"]["log_prob"]) == {"1", "2", "3", "5", "8", "10"}
        assert set(summary["quality"]) == {"filtered back-projection", "total variation", "deep image prior"}
        assert summary["solver"] == "DenseDual"

    def test_the_fit_is_loaded_again(self, finished):
        tensors, facts = checkpoint.load(finished / "images.safetensors")
        dip = LinearisedDIP.load(finished.parent / "fit", ray_transform(Geometry.from_dict(facts["geometry"])))
        assert torch.equal(dip.reconstruction_, tensors["reconstruction"])
        assert torch.equal(dip.posterior_.predict_image().std, tensors["std"])

    def test_report_stands_alone(self, finished):
        page = (finished / "report.html").read_text()
        assert page.count("data:image/png;base64,") == 4
        assert not re.search(r"(src|href)=\"(?!data:)", page)
        assert "deep image prior" in page
        assert "What came out" not in page  # no targets for a scan


def test_npz_and_tiff_give_the_same_scan(tmp_path):
    from_npz = read_scan(write_npz(tmp_path / "scan.npz"))
    tifffile.imwrite(tmp_path / "scan.tif", sinogram().astype(np.float32))
    (tmp_path / "geometry.json").write_text(json.dumps(SCAN.to_dict()))
    from_tiff = read_scan(tmp_path / "scan.tif", tmp_path / "geometry.json")
    assert from_npz.geometry == from_tiff.geometry == SCAN
    assert torch.equal(from_npz.sinogram, from_tiff.sinogram)
    assert run(tmp_path / "scan.tif", "--geometry", tmp_path / "geometry.json", "--out", tmp_path, *TINY).exit_code == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["scores"] is None
    assert "no reference image" in (tmp_path / "report.html").read_text()


def test_counts_become_line_integrals_with_their_own_noise(tmp_path):
    counts = sinogram(counts=True)
    scan = read_scan(write_npz(tmp_path / "scan.npz", sinogram=None, counts=counts, open_beam=np.full(4, 1e4)))
    np.testing.assert_allclose(scan.sinogram, -np.log(counts / 1e4), rtol=1e-5)
    np.testing.assert_allclose(np.ptp(scan.noise_std.numpy() * counts**0.5), 0, atol=1e-3)
    draws = np.random.default_rng(1).poisson(counts, (2000, 4, 15))
    spread = np.std(-np.log(draws / 1e4), axis=0)
    ratio = spread / scan.noise_std.numpy()
    assert np.abs(ratio / ratio.mean() - 1).max() < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sinogram": sinogram().T}, r"a sinogram of shape \(4, 15\).*got \(15, 4\).*transposed"),
        ({"angles": np.zeros(0)}, "at least one angle, got none"),
        ({"sinogram": np.where(sinogram() > 1, np.nan, sinogram())}, "finite measurements"),
        ({"sinogram": None}, "an entry sinogram or counts.*open_beam"),
        ({"sinogram": None, "counts": sinogram(True)}, "open_beam beside counts"),
        ({"sinogram": None, "counts": -sinogram(True), "open_beam": 1e4}, "positive counts, got 60"),
        ({"sinogram": None, "counts": sinogram(True) * np.nan, "open_beam": 1e4}, "finite counts"),
        ({"sinogram": sinogram()[None, :, :-1]}, r"a stack of sinograms \(slices, 4, 15\).*got \(1, 4, 14\)"),
        ({"mask": np.ones((3, 15))}, r"a mask of shape \(4, 15\)"),
        ({"mask": np.zeros((4, 15))}, "measurements that count, got none"),
        ({"num_bins": None}, "without num_bins.*A scan.s entries are: sinogram"),
        ({"image_shape": (3, 3)}, "an image that can be halved"),
        ({"reference": np.zeros((5, 5))}, r"a reference of shape \(12, 12\)"),
        ({"sinogram": np.array([{}], dtype=object)}, "an npz file of plain arrays"),
    ],
)
def test_bad_npz(tmp_path, changes, message):
    assert re.search(message, refused(write_npz(tmp_path / "scan.npz", **changes), "--out", tmp_path, *TINY))


def test_bad_files(tmp_path):
    assert "expected a file at" in refused(tmp_path / "no.npz")
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    assert "an npz file of plain arrays" in refused(tmp_path / "bad.npz")
    (tmp_path / "bad.tif").write_bytes(b"no image")
    assert "a TIFF or npz file" in refused(tmp_path / "bad.tif")
    (tmp_path / "bad.json").write_text("{")
    assert "a geometry as JSON" in refused(write_npz(tmp_path / "scan.npz"), "--geometry", tmp_path / "bad.json")
    assert "a sinogram or --demo, and not both" in refused()
    assert "a sinogram or --demo, and not both" in refused(tmp_path / "scan.npz", "--demo")


@pytest.mark.parametrize("missing", ["astra", "skimage.data"])
def test_demo_without_the_extra(missing, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)
    assert "sampla[tomography]" in refused("--demo", "--out", tmp_path, *TINY)


def test_tiff_without_tifffile(monkeypatch, tmp_path):
    (tmp_path / "scan.tif").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert "reading TIFF needs tifffile" in refused(tmp_path / "scan.tif")


def test_demo_noise_is_what_it_says():
    scan = demo_scan(32, 10, 0.05)
    clean = demo_scan(32, 10, 0.0).sinogram
    assert float((scan.sinogram - clean).std() / clean.abs().mean()) == pytest.approx(0.05, rel=0.1)


def test_open_beam_of_each_view_counts():
    counts = np.array([[10.0, 20.0], [10.0, 20.0]])
    found, _ = from_counts(counts, np.array([100.0, 200.0]))
    np.testing.assert_allclose(found, np.log([[10, 5], [20, 10]]), rtol=1e-6)


def test_coverage_of_a_gaussian():
    ratio = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).abs()
    assert coverage(ratio, [0.5, 0.9]) == pytest.approx([0.5, 0.9], abs=0.01)


class TestScansOfPeople:
    """What comes with scans: dead bins, zero counts, stacks, an axis off the middle, regions."""

    def test_masked_bins_and_zero_counts_say_nothing(self, tmp_path):
        """Whatever is written there: the same files."""
        counts, wild = sinogram(counts=True), sinogram(counts=True)
        mask = np.ones((4, 15), dtype=bool)
        mask[:, 3] = False
        counts[:, 3], wild[:, 3], counts[1, 7], wild[1, 7] = 5, 1e6, 0, -3
        found = []
        for name, given in (("a", counts), ("b", wild)):
            path = write_npz(tmp_path / f"{name}.npz", sinogram=None, counts=given, open_beam=1e4, mask=mask)
            scan = read_scan(path)
            assert int((~scan.counted).sum()) == 5
            assert run(path, "--out", tmp_path / name, *TINY).exit_code == 0
            found.append(np.load(tmp_path / name / "samples.npy"))
            summary = json.loads((tmp_path / name / "summary.json").read_text())
            assert summary["measurements"] == 55
        np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-4)

    def test_options_say_the_same_as_entries(self, tmp_path):
        mask, region = np.ones((4, 15), dtype=bool), np.zeros((12, 12))
        mask[:, 3], mask[2], region[2:5, 3:9] = False, False, 1
        entries = read_scan(write_npz(tmp_path / "a.npz", mask=mask, region=region, unit="mm", centre=0.5))
        plain = read_scan(write_npz(tmp_path / "b.npz"))
        options = adjusted(plain, "0.5", [3], [2], "2:5,3:9", "mm")
        assert options.geometry == entries.geometry
        assert torch.equal(options.counted, entries.counted)
        assert torch.equal(options.region, entries.region)
        assert options.unit == entries.unit == "mm"

    @pytest.mark.parametrize("axis", [0, 1])
    def test_stacks(self, tmp_path, axis):
        stack = np.stack([sinogram(), 2 * sinogram(), 3 * sinogram()], axis).astype(np.float32)
        tifffile.imwrite(tmp_path / "scan.tif", stack, photometric="minisblack")
        (tmp_path / "scan.json").write_text(json.dumps({**SCAN.to_dict(), "unit": "cm"}))
        middle, last = (read_scan(tmp_path / "scan.tif", tmp_path / "scan.json", page) for page in (None, 2))
        np.testing.assert_allclose(middle.sinogram, 2 * sinogram(), rtol=1e-6)
        np.testing.assert_allclose(last.sinogram, 3 * sinogram(), rtol=1e-6)
        assert last.unit == "cm"
        assert "a slice from 0 to 2" in refused(
            tmp_path / "scan.tif", "--geometry", tmp_path / "scan.json", "--slice", 5
        )  # fmt: skip

    def test_region_and_unit_are_in_the_report(self, tmp_path):
        path = write_npz(tmp_path / "scan.npz")
        options = ("--roi", "2:5,3:9", "--unit", "mm", "--device", "cpu", "--out", tmp_path)
        assert run(path, *options, *TINY).exit_code == 0
        summary = json.loads((tmp_path / "summary.json").read_text())
        images = {name: np.load(tmp_path / f"{name}.npy")[..., 2:5, 3:9] for name in ("reconstruction", "samples")}
        assert summary["region"]["mean"] == pytest.approx(images["reconstruction"].mean(), rel=1e-4)
        means = images["samples"].mean((1, 2)) - images["reconstruction"].mean()
        assert summary["region"]["std"] == pytest.approx(np.sqrt((means**2).mean()), rel=1e-2)
        page = (tmp_path / "report.html").read_text()
        assert "Mean of the region of interest" in page
        assert "per mm" in page

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--roi", "2:5"), "a region as rows,columns"),
            (("--roi", "12:15,1:2"), "a region inside of the image"),
            (("--bad-bins", "15"), r"numbers of bins from 0 to 14, got \[15\]"),
            (("--bad-views", "a"), "whole numbers between commas"),
            (("--centre", "left"), "a number of bins or auto"),
            (("--centre", "auto"), "views that oppose each other"),
            (("--centre", "9"), "an axis of rotation that the detector sees"),
            (("--device", "nothing"), "device"),
        ],
    )
    def test_bad_options(self, tmp_path, options, message):
        assert re.search(message, refused(write_npz(tmp_path / "scan.npz"), *options, "--out", tmp_path, *TINY))

    def test_help_names_the_entries(self):
        text = re.sub(r"\s+", " ", run("--help").output)
        for name in ("image_shape", "angles_deg", "source_origin", "open_beam", "mask", "--centre", "--roi"):
            assert name in text


class TestTotalVariationAsThePrior:
    """What is done unless `--method network` is given."""

    def test_the_report_tells_of_weights_instead_of_a_training(self, tmp_path):
        result = run_ct(Settings(tmp_path, quiet=True, num_samples=8), demo_scan(16, 8), print)
        summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert result.fit.settled_
        assert "Total variation was the prior" in text
        assert "U-Net" not in text
        assert summary["weights"].startswith("settled in ")
        assert summary["misfit"] == pytest.approx(result.fit.misfit_)
        assert 0.2 < summary["misfit"] < 2
        assert summary["quality"]["variational total variation"]["psnr"] == pytest.approx(result.scores.psnr)

    def test_the_fit_is_saved_and_its_steps_are_kept(self, tmp_path):
        scan, fit, kept = demo_scan(16, 8), tmp_path / "fit", tmp_path / "kept"
        result = run_ct(Settings(tmp_path, quiet=True, num_samples=8, save=fit, checkpoint=kept), scan, print)
        loaded = VariationalTV.load(fit, ray_transform(scan.geometry))
        assert torch.equal(loaded.reconstruction_, result.fit.reconstruction_)
        assert len(list(kept.iterdir())) == len(loaded.steps_)

    def test_only_a_network_is_trained(self, tmp_path):
        with pytest.raises(ValueError, match="expected steps for the training of a network, got 3"):
            run_ct(Settings(tmp_path, steps=3), demo_scan(16, 8), print)
