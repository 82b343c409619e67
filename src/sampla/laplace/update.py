"""New data for a fitted LinearisedLaplace."""

from dataclasses import asdict, replace
from time import perf_counter
from typing import Self

from sampla.core.allocator import freed_memory_kept
from sampla.core.batch import Batch
from sampla.core.checks import require
from sampla.core.data import CheckedLoader
from sampla.core.inputs import describe_inputs
from sampla.core.interrupts import deferred_interrupts
from sampla.core.memory import is_of_the_machine, machine_explained
from sampla.core.typing import Loader
from sampla.distributed import together
from sampla.features import NetworkFeatures
from sampla.inference.report import build_report
from sampla.inference.update import kept_of, updated
from sampla.laplace.guards import apart, check_evaluation_mode, check_weights
from sampla.laplace.more import DrawsMore
from sampla.laplace.training_data import REMEDY, SAVED, Asked, found_width
from sampla.likelihoods import Likelihood
from sampla.solvers import BlockCG, Dense


class TakesNewData(DrawsMore):
    """A fit to which new data can be added."""

    def update(self, loader: Loader) -> Self:
        """Add new data to those of the fit, without starting over; returns self.

        The posterior becomes that of all data, old and new, as one fit to them would have it: the same noise, solved
        for to the same tolerance, with the same certificate. Samples start where they are, EM from the hyperparameters
        that it has found; the width is measured anew, and the report is about all data. A g-prior keeps its scales.
        The network's weights stay, so this is for new data of the kind it was trained on.

        Of data spread over processes each gives its part of the new ones, as in the fit.

        The loader of the fit is read again, a few times (``report_.sweeps``): the posterior of all data cannot be had
        from the old samples and the new data alone, because K samples tell the old posterior's covariance to
        1 / sqrt(K) only. The evidence is estimated if the fit was asked for it by log_evidence=True.

        Args:
            loader: of new data only, in the form that ``fit`` was given; as many times readable.

        Raises:
            RuntimeError: before fit.
            ValueError: for a posterior from a file, with curvature_at="linear-mode" or by a stochastic solver; data of
                another kind, or that the fit has had. The posterior stays as it was.
        """
        start, posterior, asked, before = perf_counter(), self._fitted(), self._asked, self.report_
        kept = kept_of(self._inference)
        assert self._inference is not None
        with (
            deferred_interrupts(), together(self._ranks, "update"), apart(asked.model, said=True), freed_memory_kept(),
            machine_explained(REMEDY, SAVED),
        ):  # fmt: skip
            check_evaluation_mode(asked.model)
            check_weights(posterior.features)
            old = self._inference.model.data
            assert isinstance(old, CheckedLoader)
            new = old.behind(loader, kept.survey.numbers)
            first = new.first()
            if first is not None:
                old.require_kind(first)
                _require_taken(posterior.features, first)
            found = updated(
                self._inference, new, asked.solver, seed=asked.seed, em=asked.em, tolerance=asked.tolerance,
                max_passes=asked.max_passes, log_evidence=asked.log_evidence, mode=self._mode,
                say=self._progress.enter,
            )  # fmt: skip
            inference, model = found.inference, found.inference.model
            own, products = model.replaced(features=posterior.features), model.ledger.products
            with model.data.kept_meanwhile():
                width, mode = found_width(asked, own, inference, self._progress.enter)
        spent = perf_counter() - start
        report = build_report(
            inference, model.data, before.excluded_parameters, before.adjoint_error, before.seconds + spent,
            asked.tolerance, before.products, width,
        )  # fmt: skip
        passes = (found.products + model.ledger.products - products) / len(inference.samples)
        row = {"num_data": new.num_data, "passes": passes, "seconds": spent}
        report = replace(report, updates=[*before.updates, row])
        self._posterior = replace(
            posterior, likelihood=model.likelihood, samples=inference.samples, facts=asdict(report), width=width
        )
        self._inference, self._report, self._error, self._mode = inference, report, None, mode
        return self


def goes_on(asked: Asked, likelihood: Likelihood) -> bool:
    """Whether a fit so asked can be gone on with when new data come: the M of the old ones stays, and its solver takes
    the old samples as a start."""
    return isinstance(asked.solver, (BlockCG, Dense)) and not asked.at_mode(likelihood)


def _require_taken(features: NetworkFeatures, batch: Batch) -> None:
    """Refuse inputs that the network does not take.

    Raises:
        ValueError: with their sizes, and what the network says.
    """
    try:
        features.evaluate(batch.rows(0, 1).inputs)
    except Exception as error:  # whatever a network of the user's raises
        if is_of_the_machine(error):
            raise
        fitting, got = "new data that the network takes", f"{describe_inputs(batch.inputs)}, of which it says: {error}"
        require(False, fitting, got, "Give inputs of the sizes that the fit had.")
