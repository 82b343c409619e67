"""A reconstruction in a folder: predictions to the last bit, and what does not belong to it refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sampla.core import checkpoint
from sampla.solvers import BlockCG
from sampla.tomography import FunctionOperator, LinearisedDIP, MatrixOperator, Recipe, UNet, ray_transform
from tomography_case import BINS, SIDE, VIEWS, digit, noisy, parallel, small_dip

FILE = "reconstruction.safetensors"
SHORT = Recipe(steps=3, start_steps=5)


def scan(dtype: torch.dtype = torch.float32) -> MatrixOperator:
    return ray_transform(parallel(), dtype)


def fitted(**settings) -> LinearisedDIP:
    """A float32 network with its exact solve in float64, a standard deviation for each measurement."""
    operator = settings.pop("operator", scan())
    sinogram, std = noisy(ray_transform(parallel(), torch.float64), digit())
    spread = torch.linspace(0.5, 2.0, BINS).expand(VIEWS, BINS) * std
    chosen = {"network": UNet(2, 4), "recipe": SHORT, "num_samples": 4, "noise_std": spread, "learn_noise": True}
    return small_dip(operator, **{**chosen, **settings}).fit(sinogram)


@pytest.fixture(scope="module")
def dip() -> LinearisedDIP:
    return fitted()


@pytest.fixture
def folder(dip: LinearisedDIP, tmp_path: Path) -> Path:
    dip.save(tmp_path / "new" / "fit")
    return tmp_path / "new" / "fit"


def assert_same(loaded: LinearisedDIP, dip: LinearisedDIP) -> None:
    here, there = loaded.posterior_.predict_image(), dip.posterior_.predict_image()
    assert torch.equal(here.mean, there.mean)
    assert torch.equal(here.deviations, there.deviations)
    assert here.floor == there.floor
    assert here.mean.dtype == there.mean.dtype
    assert torch.equal(loaded.reconstruction_, dip.reconstruction_)
    vectors = torch.randn(2, dip.posterior_.samples.shape[1], generator=torch.Generator().manual_seed(0))
    vectors = vectors.to(dip.posterior_.samples)
    assert torch.equal(loaded.posterior_.features.jvp(vectors), dip.posterior_.features.jvp(vectors))


def test_what_was_saved_is_loaded(dip, folder):
    before = torch.get_rng_state()
    loaded = LinearisedDIP.load(folder, scan())
    assert torch.equal(torch.get_rng_state(), before)
    assert [path.name for path in folder.iterdir()] == [FILE]
    assert_same(loaded, dip)
    assert loaded.noise_std_ == dip.noise_std_
    assert loaded.posterior_.pixel_noise == dip.posterior_.pixel_noise
    assert str(loaded.report_) == str(dip.report_)
    assert loaded.training_ == dip.training_
    assert torch.equal(loaded.input_, dip.input_)
    assert (loaded.seed, loaded.recipe, loaded.num_samples, loaded.learn_noise) == (0, SHORT, 4, True)
    assert torch.equal(loaded.noise_std, dip.noise_std)


def test_it_is_saved_again_and_fitted_again(dip, folder, tmp_path):
    loaded = LinearisedDIP.load(folder, scan())
    loaded.save(tmp_path / "again")
    (once, facts), (again, others) = (checkpoint.load(each / FILE) for each in (folder, tmp_path / "again"))
    assert facts == others
    assert once.keys() == again.keys()
    assert all(torch.equal(each, again[name]) for name, each in once.items())
    loaded.recipe = Recipe(steps=1, start_steps=1)
    sinogram, _ = noisy(ray_transform(parallel(), torch.float64), digit())
    assert not torch.equal(loaded.fit(sinogram).reconstruction_, dip.reconstruction_)


class Own(nn.Module):
    """With buffers, and weights that two names share."""

    def __init__(self, slope: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.slope = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1), slope
        self.again = self.first
        self.register_buffer("shift", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(nn.functional.leaky_relu(self.first(x), self.slope)) + self.shift


def test_a_network_of_ones_own_in_weight_space_and_known_noise(tmp_path):
    dip = fitted(network=Own(), solver=BlockCG(), tolerance=0.5, noise_std=1.0, learn_noise=False)
    dip.save(tmp_path)
    mine = Own()
    weights = {name: each.clone() for name, each in mine.state_dict().items()}
    assert_same(LinearisedDIP.load(tmp_path, scan(), mine), dip)
    assert all(torch.equal(each, weights[name]) for name, each in mine.state_dict().items())
    with pytest.raises(ValueError, match=r"expected network=, as .* with one of your own, Own, got none"):
        LinearisedDIP.load(tmp_path, scan())
    with pytest.raises(ValueError, match=r"expected the network that .* got one whose result differs by [\d.]+%"):
        LinearisedDIP.load(tmp_path, scan(), Own(slope=0.9))


def test_other_networks(folder):
    match = r"got another one: 'down.0.0.weight' is \(16, 8, 3, 3\) here, \(8, 4, 3, 3\) there. Build the same"
    with pytest.raises(ValueError, match=match):
        LinearisedDIP.load(folder, scan(), UNet(2, 8))
    with pytest.raises(ValueError, match=r"'again.bias' is .* here, missing there"):
        LinearisedDIP.load(folder, scan(), Own())


def test_other_operators(folder):
    views = ray_transform(parallel(views=VIEWS + 1))
    with pytest.raises(ValueError, match=r"number of measurements 276 for .*, got 299. Give the operator"):
        LinearisedDIP.load(folder, views)
    with pytest.raises(ValueError, match=r"image shape \(16, 16\) for .*, got \(12, 12\)"):
        LinearisedDIP.load(folder, ray_transform(parallel(side=12)))
    with pytest.raises(ValueError, match=r"type torch.float32 for .*, got torch.float64"):
        LinearisedDIP.load(folder, scan(torch.float64))
    other = MatrixOperator(scan().scipy[::-1], (SIDE, SIDE))
    with pytest.raises(ValueError, match=r"expected the operator that .* got one whose result differs by .* geometry"):
        LinearisedDIP.load(folder, other)


def test_operator_of_functions(dip, folder):
    inner = scan()
    pair = FunctionOperator(inner.forward, inner.adjoint, (SIDE, SIDE), inner.num_measurements, inner.like)
    torch.testing.assert_close(LinearisedDIP.load(folder, pair).reconstruction_, dip.reconstruction_)


def test_files_that_are_no_reconstruction(folder, tmp_path):
    path = folder / FILE
    content = path.read_bytes()
    with pytest.raises(FileNotFoundError, match=r"expected a file saved by sampla, found none at"):
        LinearisedDIP.load(tmp_path, scan())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is damaged or not a safetensors file"):
        LinearisedDIP.load(folder, scan())
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="is damaged: its numbers are not those that were saved"):
        LinearisedDIP.load(folder, scan())
    path.write_bytes(content)
    tensors, facts = checkpoint.load(path)
    checkpoint.save(path, tensors, {**facts, "version": 2})
    with pytest.raises(ValueError, match=r"expected version 1 or older .* written by a newer sampla. Update sampla"):
        LinearisedDIP.load(folder, scan())
    checkpoint.save(path, tensors, {"names": []})
    with pytest.raises(ValueError, match=r"expected a reconstruction in .* got another file of sampla's"):
        LinearisedDIP.load(folder, scan())


def test_file_of_a_newer_format(folder):
    with safe_open(folder / FILE, "pt") as file:
        metadata = file.metadata()
    save_file({"a": torch.zeros(1)}, folder / FILE, {**metadata, "format": "sampla-9"})
    with pytest.raises(ValueError, match=r"expected a file of format 'sampla-2', got 'sampla-9'.*another version"):
        LinearisedDIP.load(folder, scan())


def test_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match=r"expected a fitted LinearisedDIP to save, got none. Call fit first"):
        small_dip(scan(), network=UNet(2, 4)).save(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_file_is_json_and_numbers(folder):
    with safe_open(folder / FILE, "pt") as file:
        assert json.loads(file.metadata()["facts"])["fit"]["settings"]["seed"] == 0
