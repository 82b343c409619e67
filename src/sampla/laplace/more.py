"""More samples for a fitted LinearisedLaplace."""

from dataclasses import asdict, replace
from time import perf_counter
from typing import Self

from sampla.core.allocator import freed_memory_kept
from sampla.core.checks import require_count
from sampla.core.interrupts import deferred_interrupts
from sampla.core.memory import machine_explained
from sampla.distributed import together
from sampla.inference.more import more_samples
from sampla.inference.report import with_more_samples
from sampla.laplace.guards import apart, check_evaluation_mode, check_weights
from sampla.laplace.predicting import Predicts
from sampla.laplace.training_data import REMEDY, SAVED


class DrawsMore(Predicts):
    """A fit that may go on to more samples."""

    def more(self, num_samples: int) -> Self:
        """Draw more samples of the same posterior, without EM; returns self.

        The samples that there are stay as they are, to the bit; the new ones are of the same prior and noise, solved
        for to the same tolerance, and the report's certificate is about all of them. Width and evidence stay those of
        the fit. A second call gives others than one call for both would.

        Args:
            num_samples: how many more.

        Raises:
            RuntimeError: before fit.
            ValueError: for less than one, or a posterior from a file, which has no training data.
        """
        require_count(num_samples, "the number of new samples", 1, "la.more(48) makes 64 of 16.")
        start, posterior, asked, report = perf_counter(), self._fitted(), self._asked, self.report_
        with (
            deferred_interrupts(), together(self._ranks, "more"), apart(asked.model, said=True), freed_memory_kept(),
            machine_explained(REMEDY, SAVED),
        ):  # fmt: skip
            check_evaluation_mode(asked.model)
            check_weights(posterior.features)
            inference = more_samples(
                self._inference, asked.solver, int(num_samples), seed=asked.seed, tolerance=asked.tolerance,
                max_passes=asked.max_passes, say=self._progress.enter,
            )  # fmt: skip
        report = with_more_samples(report, inference, perf_counter() - start)
        self._posterior = replace(posterior, samples=inference.samples, facts=asdict(report))
        self._inference, self._report, self._error = inference, report, None
        return self
