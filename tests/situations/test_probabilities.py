"""Networks that return probabilities where logits are wanted are noticed; logits and log-probabilities are right."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sampla
from helpers import classifier, inputs, labels, laplace
from sampla.likelihoods.watch import OutputWatch


def _ending(layer: nn.Module) -> nn.Module:
    return nn.Sequential(classifier(), layer).eval()


class Pixels(nn.Module):
    """(n, 2) -> (n, 3, 2, 2) probabilities of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x).view(-1, 3, 2, 2).softmax(1)


def _several() -> Tensor:
    return torch.stack([inputs().sum(1) > 0, inputs()[:, 0] > 0, inputs()[:, 1] > 0.5], 1).float()


def _known() -> Tensor:
    targets = _several()
    targets[::3] = -1
    return targets


def _trained(ending: nn.Module = nn.Sigmoid(), targets: Callable[[], Tensor] = _several) -> nn.Module:  # noqa: B008
    """Sigmoids that say something of the targets, or what is in their place."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3))
    optimiser = torch.optim.Adam(body.parameters(), 0.05)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(body(inputs()), targets()).backward()
        optimiser.step()
    return nn.Sequential(body, ending).eval()


def _one_hot() -> Tensor:
    return nn.functional.one_hot(labels(), 3).float()


def _rare() -> Tensor:
    """Labels that hardly anything has: all logits are negative."""
    return (torch.arange(72).view(24, 3) % 24 == 0).float()


def _weak_logits() -> nn.Module:
    """Logits all of which lie in (0, 1), as those of labels that are one in two of three cases."""
    model = nn.Linear(2, 3)
    with torch.no_grad():
        model.weight.mul_(0.02)
        model.bias.fill_(0.6)
    return model.eval()


def _rates(of: Callable[[Tensor], Tensor]) -> nn.Module:
    """A network of which ``of`` makes rates 0.4 to 4 of counts."""

    class Rates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([0.5, -0.4]))

        def forward(self, x: Tensor) -> Tensor:
            return of(x @ self.weight)[:, None]

    return Rates()


def _counts() -> Tensor:
    return torch.poisson(_rates(torch.exp)(inputs()).detach(), generator=torch.Generator().manual_seed(0))


def _with_variances(log: bool) -> nn.Module:
    """Means of zero, and variances or their logarithms: those of ``_spread``."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([0.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            variance = torch.full_like(x[:, :1], -4.6)
            return torch.cat([x @ self.weight[:, None], variance if log else variance.exp()], 1)

    return Both()


def _spread() -> Tensor:
    return 0.1 * torch.randn(24, 1, generator=torch.Generator().manual_seed(0))


def _mostly_ones() -> Tensor:
    return (torch.arange(72).view(24, 3) % 3 > 0).float()


Case = tuple[Callable[[], nn.Module], sampla.Likelihood, Callable[[], Tensor], str]
RATES = "look like rates .*wants their logarithms"
LOG_SIGMOID = "look like log-probabilities .*seems to end in LogSigmoid"
NOT_SOFTMAX = "seems to end in Sigmoid. Categorical wants the logits.*bernoulli"
SOFTMAX, SIGMOID = "seems to end in Softmax.*LogSoftmax", "seems to end in Sigmoid. Bernoulli wants the logits"
CASES: dict[str, Case] = {
    "softmax": (lambda: _ending(nn.Softmax(-1)), sampla.Categorical(), labels, SOFTMAX),
    "softmax of pixels": (Pixels, sampla.Categorical(-3), lambda: labels()[:, None, None].expand(-1, 2, 2), SOFTMAX),
    "sigmoid": (_trained, sampla.Bernoulli(), _several, SIGMOID),
    "sigmoid, labels missing": (_trained, sampla.Bernoulli(ignore_value=-1), _known, SIGMOID),
    "log-sigmoid": (lambda: _trained(nn.LogSigmoid()), sampla.Bernoulli(), _several, LOG_SIGMOID),
    "sigmoid of one class": (lambda: _trained(targets=_one_hot), sampla.Categorical(), labels, NOT_SOFTMAX),
    "rare labels": (lambda: _trained(nn.Identity(), _rare), sampla.Bernoulli(), _rare, ""),
    "logits of one class in (0, 1)": (_weak_logits, sampla.Categorical(), labels, ""),
    "rates": (lambda: _rates(torch.exp), sampla.Poisson(), _counts, RATES),
    "rates of wide counts": (lambda: _rates(torch.exp), sampla.NegativeBinomial(9.0), _counts, RATES),
    "log rates": (lambda: _rates(lambda f: f), sampla.Poisson(), _counts, ""),
    "variances": (lambda: _with_variances(False), sampla.HeteroscedasticGaussian(), _spread, "look like variances"),
    "log variances": (lambda: _with_variances(True), sampla.HeteroscedasticGaussian(), _spread, ""),
    "logits": (classifier, sampla.Categorical(), labels, ""),
    "log-probabilities": (lambda: _ending(nn.LogSoftmax(-1)), sampla.Categorical(), labels, ""),
    "logits of yes and no": (classifier, sampla.Bernoulli(), _several, ""),
    "logits in (0, 1)": (_weak_logits, sampla.Bernoulli(), _mostly_ones, ""),
    "a regression in (0, 1)": (lambda: _ending(nn.Softmax(-1)), sampla.Gaussian(1.0), _several, ""),
}


@pytest.mark.parametrize("name", CASES)
def test_probabilities_are_noticed_and_nothing_else(name: str) -> None:
    make, likelihood, targets, match = CASES[name]
    la, data = laplace(make().eval(), likelihood), [(inputs(), targets())]
    if match:
        with pytest.warns(UserWarning, match=match) as caught:
            la.fit(data)
        assert len([w for w in caught if "look like" in str(w.message)]) == 1
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            la.fit(data)


def test_log_probabilities_have_the_posterior_of_logits() -> None:
    """B has no component along which all logits grow, and LogSoftmax changes nothing else."""
    prior = sampla.Isotropic(1.0, learn=False)
    results = []
    for model in (_ending(nn.LogSoftmax(-1)), classifier()):
        la = laplace(model.double(), prior=prior, num_samples=64).fit([(inputs().double(), labels())])
        results.append(la.predict(inputs().double()).probs)
    assert torch.allclose(results[0], results[1], rtol=1e-6)


@pytest.mark.filterwarnings("error")
def test_a_process_without_data_says_nothing_of_outputs() -> None:
    OutputWatch(sampla.Categorical()).warn()
