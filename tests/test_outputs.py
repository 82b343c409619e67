"""Outputs of other shapes: padded sequences, labels that nobody gave, images, and a vocabulary of 50,000."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sampla
from cases import linear_model, randn
from dense import curvature, jacobian
from networks import Tied
from sampla.features import NetworkFeatures

IGNORED, MISSING = -100, -1.0


def features_of(model: nn.Module) -> NetworkFeatures:
    return NetworkFeatures(model, [name for name, _ in model.named_parameters()])


# Sequences with padding


class Language(nn.Module):
    """A masked transformer as libraries have it: keyword inputs, logits in a dict, (n, L, V)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4, padding_idx=0)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, dropout=0.0)
        self.head = nn.Linear(4, 9)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        hidden = self.layer(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        return {"logits": self.head(hidden), "hidden": hidden}


def language_problem(padding: int = 0) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Language().double().eval()
        tokens = torch.randint(1, 9, (6, 5))
    mask = torch.arange(5) < torch.tensor([5, 3, 4, 1, 5, 2])[:, None]
    inputs = {"input_ids": tokens.where(mask, padding), "attention_mask": mask.long()}
    return model, inputs, tokens.roll(-1, 1).where(mask, IGNORED)


def test_padded_sequences_have_the_curvature_of_their_own_tokens() -> None:
    model, inputs, targets = language_problem()
    likelihood = sampla.Categorical(ignore_index=IGNORED)
    linear = linear_model(features_of(model), likelihood, [(inputs, targets)])
    names = linear.features.layout.names

    class Logits(nn.Module):
        def named_parameters(self, *_: Any, **__: Any) -> Any:
            return model.named_parameters()

        def forward(self, **kwargs: Tensor) -> Tensor:
            return model(**kwargs)["logits"]

    whole = jacobian(Logits(), names, inputs).view(6, 5, 9, -1)
    p = model(**inputs)["logits"].detach().softmax(-1)
    weights = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    expected = curvature(whole[targets != IGNORED], weights[targets != IGNORED])
    torch.testing.assert_close(linear.curvature_product(torch.eye(len(expected)).double()), expected)


def test_what_stands_in_the_padding_makes_no_difference() -> None:
    """Also to a whole fit; keyword inputs are cut with the batch."""
    found = []
    for padding in (0, 7):
        model, inputs, targets = language_problem(padding)
        la = sampla.LinearisedLaplace(
            model, sampla.Categorical(ignore_index=IGNORED), "isotropic", num_samples=3, progress=False
        )
        la.fit([(inputs, targets)])
        found.append((la.prior_precision_, la.predict(inputs).variance[targets != IGNORED]))
        assert la.report_.products == "forward mode; attention in its mathematical form"
    torch.testing.assert_close(*found)


# Several labels at once


def multi_label(known: bool) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)).double().eval()
    targets = (randn(8, 5, seed=1) > 0).double()
    if not known:
        targets[:, 1] = targets[2] = MISSING
    return model, randn(8, 3), targets


@pytest.mark.parametrize("known", [True, False])
def test_labels_that_nobody_gave_are_left_out(known: bool) -> None:
    model, x, targets = multi_label(known)
    likelihood = sampla.Bernoulli(ignore_value=MISSING)
    linear = linear_model(features_of(model), likelihood, [(x, targets)])
    p = model(x).detach().sigmoid()
    weights = torch.diag_embed(p * (1 - p) * (targets != MISSING))
    expected = curvature(jacobian(model, linear.features.layout.names, x), weights)
    torch.testing.assert_close(linear.curvature_product(torch.eye(len(expected)).double()), expected)
    draws = linear.draw_noise(0, 4000).data_part
    error = ((expected.square() + expected.diagonal() * expected.diagonal()[:, None]) / 4000).sqrt().clamp_min(1e-12)
    assert float(((draws.mT @ draws / 4000 - expected) / error).abs().max()) < 4.5
    loss = torch.where(targets == MISSING, 0.0, -torch.log(torch.where(targets == 1, p, 1 - p))).sum(1)
    torch.testing.assert_close(likelihood.log_prob(model(x).detach(), targets), -loss)


def test_a_fit_with_missing_labels_comes_back_from_its_file(tmp_path: Any) -> None:
    model, x, targets = multi_label(known=False)
    la = sampla.LinearisedLaplace(model, sampla.Bernoulli(ignore_value=MISSING), progress=False).fit([(x, targets)])
    pred = la.predict(x)
    assert pred.probs.shape == (8, 5)
    assert float(pred.log_prob(targets)[2]) == pytest.approx(0.0, abs=1e-12)  # nothing was asked
    la.save(tmp_path / "posterior.safetensors")
    again = sampla.LinearisedLaplace.load(tmp_path / "posterior.safetensors", model)
    assert again.likelihood.ignore_value == MISSING  # type: ignore[attr-defined]
    torch.testing.assert_close(again.predict(x).log_prob(targets), pred.log_prob(targets))


def test_missing_labels_must_not_look_like_labels() -> None:
    with pytest.raises(ValueError, match=r"an ignore_value outside \[0, 1\], got 0. Use a number that is no label"):
        sampla.Bernoulli(ignore_value=0)
    _, x, targets = multi_label(known=False)
    with pytest.raises(ValueError, match=r"labels in \[0, 1\], got values from -1 to 1.*ignore_value for labels"):
        sampla.Bernoulli().check_targets(targets, targets)
    sampla.Bernoulli(ignore_value=MISSING).check_targets(targets[2:3], targets[2:3])
    assert x.shape == (8, 3)


# Images


@pytest.mark.parametrize("structure", ["diagonal", "full"])
def test_images_have_one_noise_for_all_pixels(structure: Any) -> None:
    model = nn.Conv2d(1, 2, 3, padding=1).double().eval()
    x, y = randn(4, 1, 5, 6), randn(4, 2, 5, 6, seed=1)
    la = sampla.LinearisedLaplace(model, sampla.Gaussian(structure=structure), progress=False)
    match = rf"outputs \(n, C\) or \(n, length, C\) for {structure} noise, got \(4, 2, 5, 6\). Use scalar noise"
    with pytest.raises(ValueError, match=match):
        la.fit([(x, y)])


def test_image_to_image_regression_is_bayesian_linear_regression() -> None:
    """A convolution is linear in its weights: the exact posterior is a formula."""
    model = nn.Conv2d(1, 1, 3, padding=1).double().eval()
    x, y = randn(4, 1, 5, 6), randn(4, 1, 5, 6, seed=1)
    prior, noise = sampla.Isotropic(2.0, learn=False), sampla.Gaussian(9.0)
    la = sampla.LinearisedLaplace(model, noise, prior, num_samples=4000, solver="dense", width="em", progress=False)
    la.fit([(x, y)])
    rows = jacobian(model, ["weight", "bias"], x).flatten(0, 1)
    covariance = torch.linalg.inv(9 * rows.mT @ rows + 2 * torch.eye(10).double())
    exact = ((rows @ covariance) * rows).sum(1).view(4, 1, 5, 6)
    found = la.predict(x)
    assert found.std.shape == (4, 1, 5, 6)
    z = (found.variance / exact - 1) / (2 / 4000) ** 0.5
    assert float(z.abs().max()) < 4.5


# A large vocabulary


class Largest(TorchDispatchMode):
    """Sees how many numbers the largest tensor of a computation has."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numbers = max(self.numbers, leaf.numel())
        return result


def test_a_vocabulary_of_fifty_thousand() -> None:
    """A language model with tied weights, 150,000 parameters: products only, nothing of size V x V or N x V x K."""
    vocabulary, count, length, samples = 50_000, 16, 1, 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tied(vocabulary).eval()
        tokens = torch.randint(0, vocabulary, (count, length))
    loader = [(part, part.roll(1, 0)) for part in tokens.split(8)]
    prior = sampla.Isotropic(1.0, learn=False)
    la = sampla.LinearisedLaplace(model, "categorical", prior, num_samples=samples, progress=False)
    with Largest() as largest:
        la.fit(loader)
    assert la.report_.solve_error < 0.02
    assert la.report_.num_parameters == 3 * vocabulary + 12
    assert largest.numbers <= 8 * length * vocabulary * (samples + 1) < 0.01 * vocabulary**2  # the samples and the mode
    pred = la.predict(tokens[:2])
    assert pred.variance.shape == (2, length, vocabulary)
    assert bool((pred.variance > 0).all())


@pytest.mark.parametrize("axis", [-1, -2])
def test_many_outputs_are_taken_vector_by_vector_with_the_same_result(axis: int) -> None:
    """The three products with 3 x 30,000 logits against p v - p (p'v) and its root."""
    shape = (3, 30_000, 1) if axis == -2 else (3, 1, 30_000)
    likelihood, outputs, vectors = sampla.Categorical(class_axis=axis), randn(*shape), randn(2, *shape, seed=1)
    p = outputs.exp() / outputs.exp().sum(axis, keepdim=True)
    dots = {name: (w * vectors).sum(axis, keepdim=True) for name, w in (("p", p), ("root", p.sqrt()))}
    found = likelihood.curvature_product(outputs, vectors)
    torch.testing.assert_close(found, p * vectors - p * dots["p"])
    found = likelihood.curvature_root_product(outputs, vectors)
    torch.testing.assert_close(found, p.sqrt() * vectors - p * dots["root"])
    found = likelihood.curvature_root_transpose_product(outputs, vectors)
    torch.testing.assert_close(found, p.sqrt() * vectors - p.sqrt() * dots["p"])


def test_a_checkpoint_belongs_to_the_output_that_was_chosen(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            hidden = self.a(x)
            return {"first": hidden, "second": hidden + self.b(x)}

    torch.manual_seed(0)
    net, data = Two().eval(), [(torch.randn(8, 2), torch.arange(8) % 3)]
    sampla.LinearisedLaplace(net, num_samples=2, output="second", progress=False).fit(data, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="one with other output"):
        sampla.LinearisedLaplace(net, num_samples=2, output="first", progress=False).fit(data, checkpoint=tmp_path)
