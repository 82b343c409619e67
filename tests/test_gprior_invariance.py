"""Why the g-prior: rescaling weights before a normalisation layer leaves the function, and so the error bars, alone."""

import copy

import pytest
import torch
from torch import nn

import sampla
from cases import batches, build_data, train
from dense import categorical_loss


@pytest.fixture(scope="module")
def network():
    """A convolution with bias, BatchNorm with the statistics of the data, and a readout, trained on digits."""
    images, digits, _ = build_data(150)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 10)]
        model = nn.Sequential(*layers).double()
        model[1].momentum = None  # running statistics are the plain average over all forward passes
        train(model.train(), categorical_loss, images, digits, steps=60)
    return model.eval(), images, digits


def rescaled(model, factor):
    """The same function with the convolution's weights and bias multiplied, and BatchNorm's statistics to match.

    (c a - c m) / sqrt(v' + eps) is unchanged when v' + eps = c^2 (v + eps).
    """
    other = copy.deepcopy(model)
    convolution, norm = other[0], other[1]
    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter.mul_(factor)
        norm.running_mean.mul_(factor)
        norm.running_var.copy_(factor**2 * (norm.running_var + norm.eps) - norm.eps)
    assert bool((norm.running_var > 0).all())
    return other


def variances(model, images, digits, prior):
    la = sampla.LinearisedLaplace(
        model, "categorical", prior, num_samples=8, progress=False, tolerance=1e-3,
        em=sampla.EM(tolerance=0.01, solve_tolerance=1e-3, mode_tolerance=1e-3, max_steps=100),
    )  # fmt: skip
    la.fit(batches(images, digits, 150))
    assert la.report_.excluded_parameters == dict.fromkeys(("1.weight", "1.bias"), "normalisation layer")
    return la.predict(images[:20]).variance


@pytest.mark.parametrize("prior", ["g-prior", "isotropic"])
def test_rescaling_before_batch_norm(network, prior):
    model, images, digits = network
    before = variances(model, images, digits, prior)
    for factor in (0.1, 10.0):
        other = rescaled(model, factor)
        torch.testing.assert_close(other(images), model(images), rtol=1e-10, atol=1e-10)
        moved = (variances(other, images, digits, prior) / before).log().abs()
        if prior == "g-prior":
            assert float(moved.max()) < 0.01
        else:
            assert float(moved.median()) > 0.1
