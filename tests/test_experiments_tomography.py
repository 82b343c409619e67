"""Error bars scored beside a reference that has noise of its own (experiments/tomography/truth.py)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from experiments.tomography import truth

from sampla.apps.ct import Scan
from sampla.tomography import Geometry, filtered_back_projection, ray_transform

_VIEWS, _BINS, _SIDE, _BLOCK = 180, 48, 48, 2


def _geometry():
    return Geometry((_SIDE, _SIDE), 1.0, tuple(np.arange(_VIEWS) * 2 * np.pi / _VIEWS), _BINS, 1.0)


def _scan(noise):
    """Views of a disc with white noise."""
    rows, columns = np.mgrid[:_SIDE, :_SIDE] - (_SIDE - 1) / 2
    disc = torch.from_numpy((np.hypot(rows, columns + 5) < 12).astype(np.float32))
    views = ray_transform(_geometry()).forward(disc[None])[0].double().view(_VIEWS, _BINS).numpy()
    return views + noise * np.random.default_rng(1).standard_normal(views.shape)


def test_noise_of_a_reference_is_that_of_back_projections_of_noise_whatever_the_object():
    known = np.hypot(*(np.mgrid[:24, :24] - 11.5)) < 10
    images = [
        filtered_back_projection(np.random.default_rng(seed).standard_normal((_VIEWS, _BINS)), _geometry())
        for seed in range(10, 30)
    ]
    means = np.stack(images).reshape(-1, 24, _BLOCK, 24, _BLOCK).mean((2, 4))[:, known]
    found = truth.reference_noise(_scan(1.0), _geometry(), _BLOCK, known)
    assert found == pytest.approx(np.sqrt(np.square(means).mean()), rel=0.1)
    middle = np.zeros((24, 24), bool)
    middle[11:13, 11:13] = True  # where a pixel stays in its bin, differences without signs cancel
    trials = [
        truth.noise_of_views(np.random.default_rng(seed).standard_normal((_VIEWS, _BINS)), seed) for seed in range(40)
    ]
    each = [filtered_back_projection(one, _geometry()).reshape(24, 2, 24, 2).mean((1, 3))[middle] for one in trials]
    wanted = np.square(np.stack(images).reshape(-1, 24, 2, 24, 2).mean((2, 4))[:, middle]).mean()
    assert np.square(each).mean() == pytest.approx(wanted, rel=0.35)


def test_error_bars_are_those_of_image_and_reference_together(monkeypatch):
    torch.manual_seed(0)
    shape, noise = (60, 60), 0.03
    spread = torch.linspace(0.01, 0.05, 60).expand(shape)
    image = torch.rand(shape)
    deviations = spread * torch.randn(400, *shape)
    reference = image + spread * torch.randn(shape) + noise * torch.randn(shape)
    reference[0] = torch.nan
    scan = Scan("made", torch.zeros(2, 2), _geometry(), None, reference)
    monkeypatch.setattr(truth, "load", lambda *_: scan)
    monkeypatch.setattr(truth, "every_view", lambda *_: (None, None))
    monkeypatch.setattr(truth, "reference_noise", lambda *_: noise)
    found = truth.beside(Path(), "made", 1)({"mean": image.numpy(), "deviations": deviations.numpy()})
    for share, expected in zip(found["inside"].values(), (0.683, 0.954, 0.997), strict=True):
        assert share == pytest.approx(expected, abs=0.025)
    missed = (image - reference)[1:]
    assert found["error"] == pytest.approx(float(missed.square().mean().sqrt()), rel=1e-5)
    seen = float(torch.corrcoef(torch.stack([torch.argsort(torch.argsort(v.flatten())).double() for v in
                                             (deviations.square().mean(0)[1:], missed.abs())]))[0, 1])  # fmt: skip
    assert found["rank_correlation"] == pytest.approx(seen, abs=0.05)
