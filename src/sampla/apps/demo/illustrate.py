"""The demo's pictures: which data go into which drawing of ``sampla.apps.figures``, and the caption under it."""

from torch import Tensor

from sampla.apps.demo.data import ImageSet
from sampla.apps.demo.evaluate import EM_WIDTH, METHODS, MONTE_CARLO, NETWORK, PROBIT, Evaluation, SetScores
from sampla.apps.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    Example,
    Series,
    convergence_figure,
    curves_figure,
    em_figure,
    examples_figure,
    overview_figure,
    reliability_curve,
    reliability_figure,
    surest_and_least_sure,
)
from sampla.apps.page import Picture
from sampla.inference.report import FitReport

COLOURS = {NETWORK: GREY, MONTE_CARLO: BLUE, PROBIT: GREEN, EM_WIDTH: ORANGE}


def pictures(
    report: FitReport, evaluation: Evaluation, test: ImageSet, em_tolerance: float, tolerance: float
) -> list[Picture]:
    """Every picture of the demo, the overview first.

    Args:
        report: of the fit.
        evaluation: what was measured.
        test: the held-out images that ``evaluation.answers`` is about.
        em_tolerance: function-space error asked for within EM.
        tolerance: the same for the final samples.
    """
    return [
        _overview(evaluation, test),
        _examples(evaluation, test),
        _reliability(evaluation, test.labels),
        _rotation(evaluation),
        _em(report),
        Picture(
            "convergence", "How the solver converged",
            "How far the samples are from the exact ones, as a share of the size of a function draw, estimated from "
            "the last steps of the solver. Each EM step starts from the samples of the step before.",
            convergence_figure(
                report.trace if report.method == "samples" else [], report.solve_history, em_tolerance, tolerance
            ),
        ),
    ]  # fmt: skip


def examples(evaluation: Evaluation, test: ImageSet, count: int) -> dict[str, list[Example]]:
    """The images with the smallest and the largest predictive entropy."""
    surest, least = surest_and_least_sure(evaluation.answers.entropy(MONTE_CARLO), count)
    information = evaluation.answers.predictive.mutual_information
    return {
        "Most sure": [_example(evaluation, test, n, information) for n in surest],
        "Least sure": [_example(evaluation, test, n, information) for n in least],
    }


def _example(evaluation: Evaluation, test: ImageSet, n: int, information: Tensor) -> Example:
    probs = evaluation.answers.probs[MONTE_CARLO][n]
    entropy = float(evaluation.answers.entropy(MONTE_CARLO)[n])
    predicted = int(probs.argmax())
    return Example(
        test.images[n, 0], int(test.labels[n]), predicted, float(probs[predicted]), entropy, float(information[n])
    )


def _overview(evaluation: Evaluation, test: ImageSet) -> Picture:
    image = overview_figure(
        _reliability_curves(evaluation, test.labels, (NETWORK, MONTE_CARLO)),
        [s.strength for s in _rotated(evaluation)],
        _over_angles(evaluation, "joint_nll", (NETWORK, MONTE_CARLO)),
        examples(evaluation, test, 4),
        title="Turned images, ten labels jointly", xlabel="rotation, degrees", ylabel="joint NLL, nats",
        xticks=range(0, 181, 45),
    )  # fmt: skip
    caption = (
        "Left: how often the network alone and sampla are right when they claim a given confidence, on images neither "
        "has seen. Middle: what wrong claims about ten labels, on two images each repeated several times, cost as the "
        "images are turned. Right: the held-out images the posterior is most and least sure of, with the "
        "predicted digit and its probability (orange: wrong)."
    )
    return Picture("overview", "In one picture", caption, image)


def _examples(evaluation: Evaluation, test: ImageSet) -> Picture:
    caption = (
        "Held-out images with the smallest and the largest entropy of sampla's probabilities. Above each: the "
        "predicted digit and its probability. Below: the entropy, and the mutual information, which is the part of "
        "it that better-known parameters would remove (nats). Orange: the prediction is wrong."
    )
    image = examples_figure(examples(evaluation, test, 8))
    return Picture("examples", "What the posterior is most and least sure of", caption, image)


def _reliability(evaluation: Evaluation, labels: Tensor) -> Picture:
    caption = (
        "Held-out images, sorted by claimed confidence into ten bins: the share that is classified rightly in each. "
        "On the dashed line confidence and accuracy agree; below it the claim is too bold, above it too modest. "
        "Bigger dots stand for more images; bins with fewer than five are left out."
    )
    curves = _reliability_curves(evaluation, labels, METHODS)
    return Picture("reliability", "Is the confidence deserved?", caption, reliability_figure(curves))


def _rotation(evaluation: Evaluation) -> Picture:
    caption = (
        "The same held-out images, turned. Left: negative log-likelihood of one label. Right: joint negative "
        "log-likelihood of ten labels on two images, each repeated several times, which only a method that knows how "
        "its errors go together can lower. Lower is better."
    )
    panels = {
        "NLL of a label": _over_angles(evaluation, "nll", METHODS),
        "Joint NLL of ten labels": _over_angles(evaluation, "joint_nll", tuple(m for m in METHODS if m != PROBIT)),
    }
    x = [s.strength for s in _rotated(evaluation)]
    image = curves_figure(x, panels, xlabel="rotation, degrees", ylabel="nats", xticks=range(0, 181, 30))
    return Picture("rotation", "What happens when the images are turned", caption, image)


def _em(report: FitReport) -> Picture:
    caption = (
        "The strength of the prior is not set by hand: each EM step draws samples, reads off how many parameters the "
        "data determine, and adjusts the prior precision to it, until neither changes. Bars: one standard error."
    )
    return Picture("em_trace", "How the prior was found", caption, em_figure(report.trace, report.prior_groups))


def _rotated(evaluation: Evaluation) -> list[SetScores]:
    return [evaluation.clean, *evaluation.rotated]


def _over_angles(evaluation: Evaluation, measure: str, methods: tuple[str, ...]) -> list[Series]:
    sets = _rotated(evaluation)
    return [Series(name, [getattr(s.methods[name], measure) for s in sets], COLOURS[name]) for name in methods]


def _reliability_curves(
    evaluation: Evaluation, labels: Tensor, methods: tuple[str, ...]
) -> dict[str, tuple[str, list[tuple[float, float, int]]]]:
    probs = evaluation.answers.probs
    return {name: (COLOURS[name], reliability_curve(probs[name], labels)) for name in methods}
