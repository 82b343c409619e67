"""A reconstruction that is stopped anywhere goes on from its folder, and comes to the same image to the bit."""

import pytest
import torch

from sampla import EM
from sampla.solvers import DenseDual, KrylovDual, OutputProducts
from sampla.tomography import Recipe, linearised, ray_transform
from tomography_case import digit, noisy, parallel, small_dip

SHORT = Recipe(steps=20, start_steps=20)


class StoppedError(Exception):
    """In the place of a kill."""


@pytest.fixture(scope="module")
def scan():
    operator = ray_transform(parallel(views=6), torch.float64)
    return operator, noisy(operator, digit())[0]


def by_space(operator, **more):
    settings = {
        "noise_std": 0.01,
        "num_samples": 3,
        "recipe": SHORT,
        "solver": KrylovDual(),
        "em": EM(method="outputs"),
    }
    return small_dip(operator, **(settings | more))


@pytest.fixture(scope="module")
def whole(scan):
    return by_space(scan[0]).fit(scan[1])


@pytest.mark.parametrize("after", [0, 4, 11])
def test_a_fit_over_the_measurements_goes_on(scan, whole, tmp_path, monkeypatch, after):
    """Stopped in a product of EM's space or of the final solve."""
    operator, sinogram = scan
    taken, right = 0, OutputProducts._product

    def product(self, vectors):
        nonlocal taken
        if taken == after:
            raise StoppedError
        taken += 1
        return right(self, vectors)

    with monkeypatch.context() as context:
        context.setattr(OutputProducts, "_product", product)
        with pytest.raises(StoppedError):
            by_space(operator).fit(sinogram, checkpoint=tmp_path)
    trained = []
    monkeypatch.setattr(linearised, "train", lambda *_, **__: trained.append(1))
    again = by_space(operator).fit(sinogram, checkpoint=tmp_path)
    assert not trained
    assert torch.equal(again.posterior_.samples, whole.posterior_.samples)
    assert again.report_.prior_precision == whole.report_.prior_precision
    assert again.training_.misfits == whole.training_.misfits


def test_what_is_kept_is_of_one_scan_and_one_recipe(scan, tmp_path):
    operator, sinogram = scan
    first = small_dip(operator, num_samples=2, recipe=SHORT, solver=DenseDual())
    first.fit(sinogram, checkpoint=tmp_path)
    samples = first.posterior_.samples
    first.fit(sinogram, checkpoint=tmp_path)  # the same object, trained by now
    assert torch.equal(first.posterior_.samples, samples)
    with pytest.raises(ValueError, match=r"a checkpoint of this fit.*other noise, scan"):
        small_dip(operator, num_samples=2, recipe=SHORT).fit(1.01 * sinogram, checkpoint=tmp_path)
    longer = Recipe(steps=21, start_steps=20)
    with pytest.raises(ValueError, match="other recipe"):
        small_dip(operator, num_samples=2, recipe=longer).fit(sinogram, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="other num_samples"):
        small_dip(operator, num_samples=4, recipe=SHORT, solver=DenseDual()).fit(sinogram, checkpoint=tmp_path)
