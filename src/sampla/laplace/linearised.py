"""The front door: error bars for a trained network."""

from dataclasses import asdict
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from torch import nn

from sampla.core.allocator import freed_memory_kept
from sampla.core.arguments import named
from sampla.core.checkpoint import plain, said_exactly
from sampla.core.checks import device_here, require
from sampla.core.chunks import Chunks
from sampla.core.data import CheckedLoader
from sampla.core.interrupts import deferred_interrupts
from sampla.core.journal import Journal
from sampla.core.memory import machine_explained
from sampla.core.progress import Progress
from sampla.core.renamed import renamed_argument
from sampla.core.typing import Loader
from sampla.core.unpacking import Unpack, unpacking
from sampla.distributed import Ranks, is_first, ranks_of, together, unwrapped
from sampla.features import (
    NetworkCall,
    NetworkFeatures,
    OutputName,
    Selection,
    network_dtypes,
    network_fingerprint,
    plain_parameters,
    select_parameters,
)
from sampla.inference.checkpointing import held, restore_chunks, restore_state, save_state, saved_noise
from sampla.inference.infer import infer
from sampla.inference.memory_plan import MemoryPlan, plan_memory
from sampla.inference.report import build_report
from sampla.inference.settings import EM, CurvatureAt, LinearModelKind
from sampla.laplace.choices import (
    Precision,
    call_name,
    check_numbers,
    check_options,
    checked_call,
    chosen_likelihood,
    chosen_prior,
    chosen_solver,
)
from sampla.laplace.guards import (
    apart,
    check_evaluation_mode,
    check_modules,
    not_finite_explained,
    only_device,
)
from sampla.laplace.spread import check_spread, check_together, checked_on_all
from sampla.laplace.training_data import REMEDY, Asked, found_width, kept_in
from sampla.laplace.update import TakesNewData, goes_on
from sampla.likelihoods import Likelihood
from sampla.model import LinearModel
from sampla.posterior.posterior import Posterior, load_posterior
from sampla.priors import Prior
from sampla.solvers import Solver


class LinearisedLaplace(TakesNewData):
    """Linearised Laplace with exact posterior samples (Antoran et al. 2023; docs/method.md, section 6).

    Args:
        model: any torch.nn.Module in evaluation mode; never changed.
        likelihood: "categorical", "gaussian" (noise learnt), "bernoulli", "poisson",
            "heteroscedastic-gaussian", or a Likelihood.
        prior: "g-prior", "isotropic", "layerwise", or a Prior; its precision is learnt unless it says learn=False.
        parameters: None for all that require grad except normalisation layers; names, patterns, "last-layer",
            modules or parameters of the model, or a predicate (see ``select_parameters``).
        num_samples: K, at least 2; a standard deviation is known to about 1 / sqrt(2 K) of itself.
        solver: "auto", "block-cg", "dense", "minibatch", "dual", "sgd", or a Solver.
        seed: of all noise.
        tolerance: function-space error of the samples, |phi(z - z*)|_B / |phi z*|_B.
        max_passes: products per sample at most, for each solve.
        em: when the loop over hyperparameters stops.
        curvature_at: "network" takes the likelihood's curvature B at the network's outputs, as linearised Laplace is
            defined; "linear-mode" at the mode of the linear model, which is the linear model's own Laplace
            approximation: dearer, and less underconfident when the network has fitted its training data to the last.
        linear_model: of which hyperparameters and evidence are: "surrogate", outputs J theta, or "tangent", outputs
            f + J (theta - w) with w the trained weights (docs/method.md, section 8). Predictions have f as their mean.
        log_evidence: whether to estimate log p(y); None: wherever something is learnt by solver="block-cg" or "dense".
        output: which entry of a network's dict, dataclass or tuple the likelihood is about, by name or index; None: the
            only floating-point tensor, or the entry "logits".
        call: how the network is called, where it takes no batch's inputs as they are: a function of the network and the
            inputs that returns its outputs, ``lambda net, graph: net(graph.x, graph.edge_index)``.
        chunks: (data, vectors) that go through the network at once; None measures what is fastest, if a pass is long
            enough for that to matter. Chunks change results by rounding only; give them (``report_.chunks`` has those
            of a fit) where two fits are to agree to the bit. A fit that goes on from a checkpoint keeps its own.
        precision: "full" takes every product in the network's own type. "auto" measures at the start of a long fit
            whether bfloat16, and convolutions with their channels last, are faster; "bfloat16" takes it in any case.
            It serves EM's products with M only: samples, those of EM too, are solved for in full precision, so that
            their stated error is that of the exact system. There is no log evidence then, unless asked for, which
            keeps "auto" at full precision.
        vectors_on: device on which vectors of all parameters live, "cpu" for a network on a GPU whose memory does not
            hold them: a pass brings the K it multiplies to the network and takes the result back. None: with the
            network. Needs block conjugate gradients.
        progress: show a bar on anything over two seconds.
        width: by which factors predictions take the posterior's standard deviations: "loo" finds them by leave-one-out
            on the training data, one for probabilities and one for joint predictions, for half a pass more, about a
            thousand evaluations of the likelihood for each observation (which show where the network is cheap beside
            its outputs), and a search for the linear mode where nothing is learnt; "em" leaves the posterior as it
            is; a number is the factor (docs/method.md, section 9). ``samples_`` are of the posterior itself.

    Raises:
        ValueError: for unknown names, K < 2, a model in train mode, a device that is not there, or vectors_on with
            another solver than block conjugate gradients.

    Example:
        >>> import torch, sampla
        >>> _ = torch.manual_seed(0)
        >>> x = torch.linspace(-1, 1, 40)[:, None]
        >>> y = torch.sin(3 * x) + 0.1 * torch.randn_like(x)
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).eval()
        >>> la = sampla.LinearisedLaplace(net, likelihood="gaussian").fit([(x, y)])
        >>> la.predict(x[:2]).std.shape
        torch.Size([2, 1])
    """

    @renamed_argument("autocast", "precision", "0.2.0", {None: "full", torch.bfloat16: "bfloat16"})
    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood = "categorical",
        prior: str | Prior = "g-prior",
        parameters: Selection = None,
        num_samples: int = 16,
        solver: str | Solver[Any] = "auto",
        seed: int = 0,
        *,
        tolerance: float = 0.02,
        max_passes: int = 200,
        em: EM | None = None,
        curvature_at: CurvatureAt = "network",
        linear_model: LinearModelKind = "surrogate",
        log_evidence: bool | None = None,
        output: OutputName = None,
        call: NetworkCall | None = None,
        chunks: tuple[int, int] | None = None,
        vectors_on: torch.device | str | None = None,
        progress: bool = True,
        width: Literal["loo", "em"] | float = "loo",
        precision: Precision = "full",
    ) -> None:
        super().__init__()
        fix = "Pass the trained network (of an ExportedProgram its module(), of skorch its module_)."
        require(isinstance(model, nn.Module), "a torch.nn.Module", type(model).__name__, fix)
        check_numbers(num_samples, seed, max_passes, tolerance)
        check_options(curvature_at, linear_model, log_evidence, precision, chunks, width)
        model = unwrapped(model)
        self.model = model
        self.likelihood, self.prior = chosen_likelihood(likelihood), chosen_prior(prior)
        self.names, self.excluded = select_parameters(model, parameters)
        check_modules(model, self.names)
        chosen = [p for name, p in plain_parameters(model).items() if name in set(self.names)]
        size = sum(p.numel() * (2 if p.is_complex() else 1) for p in chosen)
        self.vectors_on = None if vectors_on is None else device_here(vectors_on, "vectors_on")
        self.solver = chosen_solver(solver, size, self.vectors_on)
        self.num_samples, self.seed = int(num_samples), int(seed)  # of NumPy, they may overflow
        self.tolerance, self.max_passes = tolerance, max_passes
        self.em = EM() if em is None else named(em, {}, EM)
        self.curvature_at, self.linear_model, self.width = curvature_at, linear_model, width
        self.log_evidence, self.output, self.chunks, self.precision = log_evidence, output, chunks, precision
        self.call = checked_call(call)
        self._progress = Progress(progress and is_first())
        self._asked = self._settings()

    def fit(
        self,
        loader: Loader,
        checkpoint: str | Path | None = None,
        *,
        labels: str | None = None,
        unpack: Unpack | None = None,
    ) -> "LinearisedLaplace":
        """Find the hyperparameters and draw the samples.

        Args:
            loader: re-iterable of (x, y): the data the network was trained on, without augmentation. x is a tensor, a
                tuple (``model(*x)``) or a dict (``model(**x)``) of tensors, a list with one object for each datum, or
                one object for all of a batch, which is never cut (``model(x)``).
            checkpoint: a folder for the noise and the state after every EM step; a fit that finds them goes on there.
            labels: for batches that are one mapping: the entry that is y; x is all the rest.
            unpack: for batches of any other form: a function of the batch that returns (x, y).

        Returns:
            self.

        Raises:
            ValueError: for data that do not fit, NaN, an empty loader, a loader whose data change, or a network in
                train mode, with active dropout or with wrong derivatives. The network and earlier results stay.
        """
        start, asked, ranks = perf_counter(), self._settings(), ranks_of(loader, told=True)
        with (
            deferred_interrupts(), together(ranks, "fit"), apart(self.model, said=True) as ambient,
            freed_memory_kept(), machine_explained(REMEDY, kept_in(checkpoint)), held(checkpoint, ranks),
        ):  # fmt: skip
            features, data, adjoint = self._opened(loader, unpacking(labels, unpack), ranks, checkpoint is not None)
            identity = cache(lambda: self._identity(features, data))  # once a fit: it hashes the whole network
            chunks, journal = self._chunks_for(checkpoint, ranks), Journal(checkpoint, identity, ranks)
            model = LinearModel(features, self.likelihood, data, chunks=chunks, journal=journal)
            with journal.saved_on_failure(), data.kept_meanwhile(), not_finite_explained(features, data):
                inference = infer(
                    model, self.prior, self.solver,
                    num_samples=self.num_samples, seed=self.seed, em=self.em, tolerance=self.tolerance,
                    curvature_at=self.curvature_at, max_passes=self.max_passes, log_evidence=self.log_evidence,
                    say=self._progress.enter, noise=lambda draw: saved_noise(checkpoint, draw, identity(), model),
                    restore=lambda state: restore_state(checkpoint, state, identity()),
                    keep=lambda state: save_state(checkpoint, state, identity()),
                    updatable=goes_on(asked, self.likelihood),
                )  # fmt: skip
                fitted = model.replaced(likelihood=inference.model.likelihood)
                width, mode = found_width(asked, fitted, inference, self._progress.enter)
            words = self._describe_products(features, inference.model) + (
                "; torch.autocast around the fit put aside" if ambient else ""
            )
            words += "" if ranks is None else f"; data spread over {ranks.size} processes, each with all samples"
            spent = perf_counter() - start
            report = build_report(inference, data, self.excluded, adjoint, spent, self.tolerance, words, width)
            posterior = Posterior(
                features, inference.model.likelihood, inference.samples, asdict(report), identity()["network"],
                network_dtypes(self.model), width,
            )  # fmt: skip
            if report.seconds > 2:
                self._progress.say(report.summary)
            self._inference, self._report, self._posterior = inference, report, posterior
            self._error, self._mode, self._asked = None, mode, asked
            self._labels, self._unpack, self._takes_lists = labels, unpack, data.has_lists
            journal.end()
        return self

    def plan(self, loader: Loader, *, labels: str | None = None, unpack: Unpack | None = None) -> MemoryPlan:
        """What ``fit(loader)`` will need of memory; ``print`` it. Reads the loader once, and linearises a few data.

        Args: as for ``fit``.
        """
        ranks = ranks_of(loader, told=True)
        with (
            deferred_interrupts(), together(ranks, "plan"), apart(self.model, said=True), freed_memory_kept(),
            machine_explained(REMEDY, kept_in(None)),
        ):  # fmt: skip
            features, data, _ = self._opened(loader, unpacking(labels, unpack), ranks)
            model = LinearModel(features, self.likelihood, data, chunks=self._chunks_for())
            return plan_memory(
                model, self.prior, self.solver, self.em, self.num_samples,
                curvature_at=self.curvature_at, log_evidence=self.log_evidence,
                updatable=goes_on(self._settings(), self.likelihood),
            )  # fmt: skip

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: nn.Module,
        likelihood: Likelihood | None = None,
        vectors_on: torch.device | str | None = None,
        call: NetworkCall | None = None,
    ) -> "LinearisedLaplace":
        """A fitted LinearisedLaplace from its file and the network it was fitted to.

        Args:
            path: of the file.
            model: the same network with the same weights.
            likelihood: needed only for one of your own.
            vectors_on: where the samples are kept; every prediction takes them to the network. None: with the network.
            call: how the network is called, as in the fit.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged, foreign, or belongs to another network or other weights.
        """
        place, model = None if vectors_on is None else device_here(vectors_on, "vectors_on"), unwrapped(model)
        with deferred_interrupts(), torch.inference_mode(False):
            posterior = load_posterior(path, model, likelihood, place, call)
        loaded = cls(
            model, posterior.likelihood, parameters=list(posterior.layout.names), num_samples=len(posterior.samples),
            output=posterior.features.output, vectors_on=place, call=call,
        )  # fmt: skip
        loaded.excluded, loaded._posterior = posterior.facts["excluded_parameters"], posterior
        return loaded

    def _opened(
        self, loader: Loader, unpack: Unpack | None, ranks: Ranks | None, keeps: bool = False
    ) -> tuple[NetworkFeatures, CheckedLoader, float | None]:
        """The network as features and its data, both checked on the first batch, and the adjoint error."""
        check_evaluation_mode(self.model)
        device = only_device(self.model)
        features = NetworkFeatures(
            self.model, self.names, self.output, precision=self._allowed_precision, vectors_on=self.vectors_on,
            tangent=self.linear_model == "tangent", call=self.call,
        )  # fmt: skip
        if ranks is not None:
            check_spread(self.solver, self.precision)
            both = {"checkpoint": keeps, "chunks given": self.chunks is not None}
            check_together(ranks, {**self._chosen(features), **self._rest, **both})
        features = features.about(self.prior.mean_of(features.layout))
        data = CheckedLoader(loader, device, self._progress, unpack, self.likelihood.counted, ranks)
        first = data.first()
        adjoint = checked_on_all(features, first, ranks)
        if self._allowed_precision != "full" and first is not None:
            features.find_folds(first.rows(0, 2).inputs)
        if self.precision == "bfloat16" and first is not None:
            features.require_reduced(first.rows(0, 2).inputs)
        return features, data, adjoint

    def _settings(self) -> Asked:
        """What answers about a fit need of the settings, as they are now."""
        return Asked(
            self.model, self.em, self.curvature_at, self.tolerance, self.max_passes, self.seed, self.solver,
            self.width, self.log_evidence,
        )  # fmt: skip

    @property
    def _allowed_precision(self) -> Precision:
        """The precision asked for, if the evidence is not asked for as well, which needs products in full precision."""
        return "full" if self.log_evidence else self.precision

    def _describe_products(self, features: NetworkFeatures, model: LinearModel) -> str:
        put_aside = "; bfloat16 put aside: EM did not settle with it, works with samples or learns nothing"
        reduced = ("; EM's with M in bfloat16" if model.reduced else put_aside) if features.reduced else ""
        return features.products.description + reduced

    def _chunks_for(self, checkpoint: str | Path | None = None, ranks: Ranks | None = None) -> Chunks:
        chunks = Chunks(say=self._progress.say)
        if self.chunks is not None:
            chunks.prefer(self.chunks[0] * self.chunks[1], self.chunks[1], "given")
        else:
            restore_chunks(checkpoint, chunks, ranks)
        return chunks

    def _identity(self, features: NetworkFeatures, data: CheckedLoader) -> dict[str, Any]:
        """What must be equal for a checkpoint to belong to this fit."""
        return {"data": data.fingerprint, **self._chosen(features)}

    @property
    def _rest(self) -> dict[str, Any]:
        """Settings that a checkpoint need not share, but processes must."""
        names = "em", "tolerance", "max_passes", "width", "log_evidence", "vectors_on"
        return {name: getattr(self, name) for name in names}

    def _chosen(self, features: NetworkFeatures) -> dict[str, Any]:
        """The same but for the data: what one fit is."""
        return {
            "network": network_fingerprint(self.model),
            "parameters": self.names, "output": list(self.output) if isinstance(self.output, tuple) else self.output,
            **({} if self.call is None else {"call": call_name(self.call)}),
            "likelihood": plain(self.likelihood.config(), "likelihood"),
            "prior": [type(self.prior).__name__, said_exactly(vars(self.prior))],
            "solver": repr(self.solver),
            "curvature_at": self.curvature_at, "linear_model": self.linear_model,
            "type": [str(features.like.dtype), self.precision, features.device.type],
            "em": self.em.kind, "em_tolerance": self.em.tolerance,
            "num_samples": self.num_samples, "seed": self.seed,
        }  # fmt: skip
