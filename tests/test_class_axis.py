"""Classes on any axis and targets that do not count: segmentation and padded sequences against dense matrices."""

import pytest
import torch
from torch import nn

import sampla
from cases import randn
from dense import jacobian
from sampla.features import NetworkFeatures
from sampla.model import LinearModel

IGNORED = -100


class Segmenter(nn.Module):
    """Images to (n, C, H, W), or with the classes last to (n, H, W, C)."""

    def __init__(self, last):
        super().__init__()
        self.layer, self.last = nn.Conv2d(2, 3, 2, padding=1).double(), last

    def forward(self, images):
        outputs = self.layer(images).tanh() * 2
        return outputs.movedim(1, -1) if self.last else outputs


def problem(last=False):
    torch.manual_seed(0)
    network = Segmenter(last).eval()
    images = randn(5, 2, 3, 3)
    targets = torch.randint(0, 3, (5, 4, 4))
    targets[0], targets[1:, :, 0] = IGNORED, IGNORED  # a whole image and some pixels
    likelihood = sampla.Categorical(class_axis=-1 if last else -3, ignore_index=IGNORED)
    features = NetworkFeatures(network, [name for name, _ in network.named_parameters()])
    return network, images, targets, likelihood, LinearModel(features, likelihood, [(images, targets)])


def dense_curvature(network, images, targets):
    """M by a loop over the pixels that count, classes last."""
    with torch.no_grad():
        p = network(images).movedim(1, -1).softmax(-1)
    names = [name for name, _ in network.named_parameters()]
    whole = jacobian(network, names, images).reshape(5, 3, 16, -1).movedim(1, 2).reshape(5, 4, 4, 3, -1)
    matrix = torch.zeros(whole.shape[-1], whole.shape[-1]).double()
    for index in (targets != IGNORED).nonzero().tolist():
        at, prob = whole[tuple(index)], p[tuple(index)]
        matrix += at.mT @ (prob.diag() - prob[:, None] * prob) @ at
    return matrix


def test_products_and_noise_leave_out_what_does_not_count():
    network, images, targets, _, model = problem()
    exact = dense_curvature(network, images, targets)
    size = model.num_parameters
    torch.testing.assert_close(model.curvature_product(torch.eye(size).double()), exact)
    draws = model.draw_noise(0, 4000).data_part
    error = ((exact.square() + exact.diagonal() * exact.diagonal()[:, None]) / 4000).sqrt()
    assert float(((draws.mT @ draws / 4000 - exact) / error).abs().max()) < 4.5


def test_the_axis_makes_no_difference():
    _, _, targets, likelihood, model = problem()
    _, _, _, last, other = problem(last=True)
    theta, vector = randn(1, model.num_parameters, seed=1), randn(1, model.num_parameters, seed=2)
    torch.testing.assert_close(model.loss_gradient(theta), other.loss_gradient(theta))
    torch.testing.assert_close(model.newton_product(theta, vector), other.newton_product(theta, vector))
    outputs = randn(5, 3, 4, 4)
    torch.testing.assert_close(
        likelihood.log_prob(outputs, targets), last.log_prob(outputs.movedim(1, -1).contiguous(), targets)
    )
    vectors = randn(2, 5, 3, 4, 4, seed=3)
    for method in ("curvature_product", "curvature_root_product", "curvature_root_transpose_product"):
        found = getattr(likelihood, method)(outputs, vectors)
        moved = getattr(last, method)(outputs.movedim(1, -1), vectors.movedim(2, -1))
        torch.testing.assert_close(found, moved.movedim(-1, 2))


def test_the_loss_is_torchs_own():
    _, _, targets, likelihood, _ = problem()
    outputs = randn(5, 3, 4, 4)
    expected = nn.functional.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(-likelihood.log_prob(outputs, targets).sum(), expected)
    assert float(likelihood.log_prob(outputs, targets)[0]) == 0.0


def test_a_fit_predicts_classes_on_their_axis(tmp_path):
    network, images, targets, likelihood, _ = problem()
    la = sampla.LinearisedLaplace(network, likelihood, progress=False).fit([(images, targets)])
    pred = la.predict(images)
    torch.testing.assert_close(pred.probs.sum(1), torch.ones(5, 4, 4).double())
    assert pred.entropy.shape == (5, 4, 4)
    assert float(pred.log_prob(targets)[0]) == pytest.approx(0.0, abs=1e-12)
    la.save(tmp_path / "posterior.safetensors")
    again = sampla.LinearisedLaplace.load(tmp_path / "posterior.safetensors", network)
    torch.testing.assert_close(again.predict(images).probs, pred.probs)
    assert again.likelihood.ignore_index == IGNORED


def test_bad_axes_and_targets():
    _, _, targets, likelihood, _ = problem()
    with pytest.raises(ValueError, match=r"class axis counted from the end, got 1\. Use -1"):
        sampla.Categorical(class_axis=1)
    with pytest.raises(ValueError, match=r"class targets of shape \(5, 4, 4\) for logits of shape \(5, 3, 4, 4\)"):
        likelihood.check_targets(randn(5, 3, 4, 4), targets[:, :2])
    with pytest.raises(ValueError, match=r"labels in 0\.\.2 for 3 outputs, got labels from 0 to 7"):
        likelihood.check_targets(randn(5, 3, 4, 4), targets.clamp_min(0) + (targets == 2) * 5)
    likelihood.check_targets(randn(1, 3, 4, 4), targets[:1])  # nothing counts
