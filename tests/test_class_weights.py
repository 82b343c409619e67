"""Class weights and label smoothing: torch's own loss, its Hessian, and scores that are of the labels as they are."""

from typing import Any

import pytest
import torch
from torch.nn import functional

import dense
import sampla
from cases import randn
from sampla.likelihoods import Categorical
from sampla.linear_batch import LinearBatch
from sampla.model import LinearModel
from sampla.posterior.leave_one_out import left_out, mixing
from test_target_distributions import Network

WEIGHT = torch.tensor([0.5, 2.0, 1.3], dtype=torch.float64)
SETTINGS: dict[str, dict[str, Any]] = {
    "weights": {"weight": WEIGHT},
    "smoothing": {"label_smoothing": 0.2},
    "both": {"weight": WEIGHT, "label_smoothing": 0.2},
}
every = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
IGNORED = 7


def labels(*shape: int) -> torch.Tensor:
    found = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(0))
    found[0] = IGNORED
    return found


@every
@pytest.mark.parametrize("axis", [-1, -3])
def test_the_loss_is_torchs_own_and_log_prob_is_that_of_the_labels(settings: dict[str, Any], axis: int) -> None:
    outputs, targets = (randn(6, 3), labels(6)) if axis == -1 else (randn(4, 3, 2, 2), labels(4, 2, 2))
    likelihood = Categorical(axis, IGNORED, **settings)
    expected = functional.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="none", **settings)
    torch.testing.assert_close(likelihood.observation_loss(outputs, targets), expected)
    torch.testing.assert_close(likelihood.loss(outputs, targets), expected.reshape(len(outputs), -1).sum(1))
    plain = functional.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="none")
    torch.testing.assert_close(likelihood.log_prob(outputs, targets), -plain.reshape(len(outputs), -1).sum(1))


@every
def test_products_are_those_of_the_losses_hessian(settings: dict[str, Any]) -> None:
    network, x, targets = Network(3), randn(10, 2, seed=3), labels(10)
    outputs = network(x).detach()
    model = LinearModel(
        sampla.NetworkFeatures(network, tuple(n for n, _ in network.named_parameters())),
        Categorical(ignore_index=IGNORED, **settings), [(x, targets)],
    )  # fmt: skip
    jacobian = dense.jacobian(network, [n for n, _ in network.named_parameters()], x)

    def loss(f: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(f, y, ignore_index=IGNORED, reduction="sum", **settings)

    exact = dense.curvature(jacobian, dense.hessians(loss, outputs, targets))
    units = torch.eye(len(exact)).double()
    torch.testing.assert_close(model.curvature_product(units), exact)
    (batch,) = model.batches()
    assert isinstance(batch, LinearBatch)
    rooted = batch.features.vjp(batch.root_product(torch.eye(30).double().view(30, 10, 3)))
    torch.testing.assert_close(rooted.mT @ rooted, exact)
    theta = randn(1, len(exact), seed=4)
    leaf = theta[0].clone().requires_grad_()
    value = sum(loss(f, y) for f, y in zip(jacobian @ leaf, targets, strict=True))
    (gradient,) = torch.autograd.grad(value, leaf)
    found, slope = model.loss_gradient(theta)
    torch.testing.assert_close(torch.tensor(found).double(), value.detach())
    torch.testing.assert_close(slope[0], gradient)


def test_what_is_left_out_has_its_weight() -> None:
    """Against weights of the data, which are tested where they belong."""
    outputs, targets, deviations = randn(6, 3), torch.arange(6) % 3, 0.3 * randn(8, 6, 3, seed=1)
    mix = mixing(0, 8, outputs)
    own = left_out(Categorical(weight=WEIGHT), outputs, outputs, deviations, targets, mix)
    data = left_out(Categorical(), outputs, outputs, deviations, targets, mix, WEIGHT[targets])
    torch.testing.assert_close(own.leverage, data.leverage)
    torch.testing.assert_close(own.outputs, data.outputs)
    torch.testing.assert_close(own.log_prob([1.0], (1.0,)), data.log_prob([1.0], (1.0,)))


def test_a_fit_scores_labels_as_they_are_and_comes_back_from_its_file(tmp_path: Any) -> None:
    network, x, targets = Network(3).eval(), randn(30, 2, seed=3), torch.arange(30) % 3
    likelihood = sampla.Categorical(weight=WEIGHT, label_smoothing=0.1)
    la = sampla.LinearisedLaplace(network, likelihood, progress=False).fit([(x, targets)])
    pred = la.predict(x)
    expected = pred.probs.gather(1, targets[:, None])[:, 0].log()
    torch.testing.assert_close(pred.log_prob(targets), expected)
    la.save(tmp_path / "posterior.safetensors")
    again = sampla.LinearisedLaplace.load(tmp_path / "posterior.safetensors", network)
    assert again.likelihood.config() == la.likelihood.config()
    torch.testing.assert_close(again.likelihood.loss(pred.mean, targets), likelihood.loss(pred.mean, targets))


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"positive class weights \(C,\), got"):
        sampla.Categorical(weight=[1.0, -1.0])
    with pytest.raises(ValueError, match=r"label_smoothing in \[0, 1\), got 1.5"):
        sampla.Categorical(label_smoothing=1.5)
    with pytest.raises(ValueError, match="weights of 3 classes, got 2"):
        sampla.Categorical(weight=[1.0, 2.0]).check_targets(randn(4, 3), torch.zeros(4).long())
