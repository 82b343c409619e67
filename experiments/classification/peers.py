"""laplace-torch on the same network and the same images, with its own tuning of the prior precision.

Its weight samples are pushed through the same linearised network as sampla's, K of them with the same Monte Carlo
average: what differs is the posterior alone, and there is a joint distribution to score. The library's own predictions,
which know its variances without sampling, are scored on the clean images beside them.
"""

import warnings
from collections.abc import Callable
from copy import deepcopy
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from experiments.classification.experiment import Task
from experiments.classification.methods import Fitted, linearised
from experiments.common.networks import without_normalisation

SCALAR, LAYERWISE = "scalar", "layerwise"
_TUNING_STEPS = 100  # of Adam by laplace-torch on its marginal likelihood: its default
_KRON_BATCH = 100  # images at once where no Jacobian is formed
_PROBE = 1500  # side of the matrix whose factorisation says what one of side P would take
_COPIES = 5  # (P, P) matrices that laplace-torch holds: the Hessian, its sum with the prior, a factor, a scale, a copy


def parametric(subset: str, structure: str, prior: str = SCALAR) -> Callable[[Task], Fitted]:
    """A Laplace approximation of laplace-torch.

    Args:
        subset: "all" or "last_layer".
        structure: "diag", "kron" or "full".
        prior: structure of the prior precision.
    """

    def fit(task: Task) -> Fitted:
        from laplace import Laplace  # an experiment's own dependency: no one else needs it

        network, settings = without_normalisation(deepcopy(task.network)), task.settings
        la = Laplace(network, "classification", subset_of_weights=subset, hessian_structure=structure)
        start = process_time()
        la.fit(_loader(task, _KRON_BATCH if structure == "kron" else settings.laplace_batch))
        fitted = process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it always warns that link_approx is probit
            la.optimize_prior_precision(pred_type="glm", method="marglik", prior_structure=prior, n_steps=_TUNING_STEPS)
        tuned = process_time()
        torch.manual_seed(settings.seed)
        samples = (la.sample(settings.samples) - la.mean).detach()
        names = _names(network, samples.shape[1])
        facts = {
            "prior_precision": la.prior_precision.detach().flatten().tolist(), "samples": len(samples),
            "curvature_seconds": fitted - start, "tuning_seconds": tuned - fitted,
        }  # fmt: skip

        def own(x: Tensor) -> dict[str, Tensor]:
            parts = x.split(settings.laplace_batch)
            return {"its own probit": torch.cat([la(p, pred_type="glm", link_approx="probit").detach() for p in parts])}

        return Fitted(linearised(task.network, names, samples, settings.draws), facts, own)

    return fit


def ella(task: Task) -> Fitted:
    """ELLA (Deng et al. 2022) of laplace-torch: a Nystrom basis from some images, the prior by grid search.

    Its covariance lies in the span of the basis: samples are the basis times normal weights with its precision.
    """
    from laplace import Laplace

    network, settings = without_normalisation(deepcopy(task.network)), task.settings
    la = Laplace(
        network, "classification", subset_of_weights="all", hessian_structure="gp", functional_approximation="nystrom",
        subsample_size=min(settings.ella_points, len(task.data.train)), n_eigenvalues=settings.ella_rank,
    )  # fmt: skip
    start = process_time()
    la.fit(_loader(task, settings.laplace_batch))
    fitted = process_time()
    few = _loader(task, settings.laplace_batch, held_out=500)
    la.optimize_prior_precision(val_loader=few, grid_size=9)
    generator = torch.Generator().manual_seed(settings.seed)
    normal = torch.randn(settings.ella_rank, settings.samples, generator=generator)
    inside = torch.linalg.solve_triangular(la.chol_precision.mT, normal, upper=True)  # covariance of the precision
    samples = (la.dual_directions @ inside).mT.detach().contiguous()
    facts = {
        "prior_precision": [float(la.prior_precision)], "samples": len(samples),
        "curvature_seconds": fitted - start, "tuning_seconds": process_time() - fitted,
    }  # fmt: skip
    return Fitted(linearised(task.network, _names(network, samples.shape[1]), samples, settings.draws), facts)


def full_if_it_fits(task: Task, most_bytes: float, most_seconds: float) -> dict[str, Any]:
    """What laplace-torch's full Laplace would take, from one measured factorisation, and whether that fits."""
    network = without_normalisation(deepcopy(task.network))
    size = sum(p.numel() for p in network.parameters() if p.requires_grad)
    matrix = torch.eye(_PROBE) + 0.1 / _PROBE
    start = process_time()
    torch.linalg.cholesky(matrix)
    once = (process_time() - start) * (size / _PROBE) ** 3
    start = process_time()
    matrix @ matrix
    product = (process_time() - start) / (2 * _PROBE**3)  # seconds for one operation
    classes = task.data.train.labels.max().item() + 1
    curvature = 2 * len(task.data.train) * classes * size**2 * product
    seconds, memory = curvature + (_TUNING_STEPS + 1) * once, 4.0 * _COPIES * size**2
    fits = memory <= most_bytes and seconds <= most_seconds
    return {"parameters": size, "bytes": memory, "seconds": seconds, "fits": fits}


def _loader(task: Task, batch: int, held_out: int = 0) -> DataLoader[Any]:
    images = task.data.held_out.rows(slice(held_out)) if held_out else task.data.train
    return DataLoader(TensorDataset(images.images, images.labels), batch_size=batch)


def _names(network: nn.Module, size: int) -> list[str]:
    """Names of the parameters that a sample of this size is about: all that require grad, or the last of them."""
    names, left = list[str](), size
    for name, parameter in reversed([(n, p) for n, p in network.named_parameters() if p.requires_grad]):
        if left > 0:
            names.insert(0, name)
            left -= parameter.numel()
    if left:
        raise ValueError(f"expected samples of whole parameter tensors, got {size:,} numbers")
    return names
