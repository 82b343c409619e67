"""BoTorch: a fitted network as a model whose posterior acquisition functions take."""

from typing import Any

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.posteriors import Posterior
from botorch.posteriors.gpytorch import GPyTorchPosterior
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from torch import Tensor

from sampla.core.checks import require
from sampla.laplace.linearised import LinearisedLaplace
from sampla.posterior.predictive import Predictive

_JITTER = 1e-6
"""Part of the mean variance that is added to each, as K samples give a covariance of rank K at most."""


class LaplaceModel(Model):
    """A fitted LinearisedLaplace of a regression network as a ``botorch`` model.

    ``posterior(X)`` is the Gaussian of the network's outputs, without or with noise, jointly over the q points of each
    batch: mean f(X), covariance s^2 / K sum_k J(X) z_k z_k' J(X)', of rank K at most, with the joint width s
    (docs/method.md, section 9). It can be differentiated by X, so that ``optimize_acqf`` works with analytic and with
    Monte Carlo acquisition functions. When data come, fit the network and the posterior anew, or ``la.update``.

    Give the fit width="em": the width that leave-one-out finds is about inputs like the data, and this is about others.

    Args:
        la: fitted, with a Gaussian likelihood, of a network from (n, d) to (n, m) or (n,).
        num_outputs: m.

    Example:
        >>> import torch, sampla
        >>> _ = torch.manual_seed(0)
        >>> x = torch.rand(20, 2)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).eval()
        >>> la = sampla.LinearisedLaplace(net, sampla.Gaussian(100.0), width="em", progress=False)
        >>> la = la.fit([(x, x[:, :1].sin())])
        >>> LaplaceModel(la).posterior(torch.rand(5, 3, 2)).rsample(torch.Size([4])).shape
        torch.Size([4, 5, 3, 1])
    """

    def __init__(self, la: LinearisedLaplace, num_outputs: int = 1) -> None:
        super().__init__()
        self.la, self._num_outputs = la, num_outputs

    @property
    def num_outputs(self) -> int:
        """Return m."""
        return self._num_outputs

    @property
    def batch_shape(self) -> torch.Size:
        """Return the shape of one model."""
        return torch.Size()

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
        **_: Any,
    ) -> Posterior:
        """The joint distribution of the outputs at the q points of each batch.

        Args:
            X: (..., q, d) points.
            output_indices: which outputs; None: all.
            observation_noise: whether of new targets, with the noise that the likelihood has; or variances of noise
                that broadcast to (..., q, m).
            posterior_transform: of BoTorch's.

        Returns:
            A ``GPyTorchPosterior`` of (..., q, m) numbers, in the type of X.

        Raises:
            ValueError: if the network has another number of outputs.
        """
        points = X.reshape(-1, X.shape[-1]).to(next(self.la.model.parameters()).dtype)
        pred = self.la.predict(points)
        size, shape = len(points), (*X.shape[:-1], self.num_outputs)
        require(
            pred.mean.numel() == size * self.num_outputs,
            f"a network with {self.num_outputs} outputs",
            f"outputs of shape {tuple(pred.mean.shape)} at {size} points",
            "Give LaplaceModel(la, num_outputs=...).",
        )
        mean = pred.mean.reshape(shape).to(X.dtype)
        deviations = (pred.joint_width * pred.deviations).reshape(-1, *shape).to(X.dtype)
        noise = self._noise(pred, observation_noise, shape).to(X)
        if output_indices is not None:
            mean, deviations, noise = (each[..., output_indices] for each in (mean, deviations, noise))
        found = GPyTorchPosterior(_normal(mean, deviations, noise))
        return found if posterior_transform is None else posterior_transform(found)

    def _noise(self, pred: Predictive, asked: bool | Tensor, shape: tuple[int, ...]) -> Tensor:
        """(..., q, m) variances to be added."""
        if isinstance(asked, Tensor):
            return asked.expand(shape)
        if not asked:
            return pred.mean.new_zeros(shape)
        return (pred.variance_total - pred.variance).reshape(shape)


def _normal(mean: Tensor, deviations: Tensor, noise: Tensor) -> MultivariateNormal:
    """The Gaussian of (..., q, m) outputs with (K, ..., q, m) deviations; the m outputs of a point stand together."""
    rows = deviations.flatten(-2).movedim(0, -1)
    covariance = rows @ rows.mT / len(deviations)
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).clamp_min(torch.finfo(mean.dtype).eps)
    covariance = covariance + torch.diag_embed(noise.flatten(-2) + _JITTER * scale)
    if mean.shape[-1] == 1:
        return MultivariateNormal(mean.squeeze(-1), covariance)
    return MultitaskMultivariateNormal(mean, covariance)
