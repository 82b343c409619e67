"""The demo's report: the text of the HTML page, and results.md, both filled from the summary of a run."""

from typing import Any

from sampla.apps.demo.evaluate import EM_WIDTH, MONTE_CARLO, NETWORK
from sampla.apps.demo.table import Row, Verdict
from sampla.apps.page import Page, Picture, render
from sampla.inference.trace import EMStep


def page(
    summary: dict[str, Any], certificate: str, rows: list[Row], verdicts: list[Verdict], pictures: list[Picture]
) -> Page:
    """The HTML report of a run.

    Args:
        summary: what summary.json holds.
        certificate: ``str(la.report_)``.
        rows: of the table.
        verdicts: on the targets.
        pictures: in the order in which they are shown.
    """
    met = sum(verdict.met for verdict in verdicts)
    return Page(
        title=f"Error bars for a network that reads {_noun(summary)}",
        summary=f"A trained network, and the same network with a posterior by sampla: {met} of {len(verdicts)} "
        "targets met on images that neither has seen.",
        story=_story(summary),
        verdicts=verdicts,
        columns=tuple(rows[0].values),
        rows=rows,
        notes=_notes(summary),
        certificate=certificate,
        pictures=pictures,
        costs=_costs(summary),
        excluded=summary["fit"]["excluded_parameters"],
        footer=_footer(summary),
    )


def results_markdown(
    summary: dict[str, Any],
    certificate: str,
    rows: list[Row],
    joint: list[Row],
    verdicts: list[Verdict],
    pictures: list[Picture],
) -> str:
    """results.md: command, machine, table, rotations, EM trace, certificate, cost.

    Args:
        summary: what summary.json holds.
        certificate: ``str(la.report_)``.
        rows: of the table.
        joint: rows of the joint NLL over rotations.
        verdicts: on the targets.
        pictures: in the order in which they are shown; their files lie beside the page.
    """
    return render(
        "results.md", data=summary["data"]["name"], settings=summary["settings"], footer=_footer(summary),
        story=_story(summary), verdicts=verdicts, rows=rows, notes=_notes(summary), joint=joint,
        trace=[{**row, "gamma_error": EMStep(**row).error_of_sum} for row in summary["fit"]["trace"]],
        certificate=certificate, costs=_costs(summary), pictures=pictures,
    )  # fmt: skip


def _noun(summary: dict[str, Any]) -> str:
    return {"digits": "handwritten digits", "mnist": "the digits of MNIST"}[summary["data"]["name"]]


def _story(summary: dict[str, Any]) -> list[str]:
    data, training, fit = summary["data"], summary["training"], summary["fit"]
    recipe = summary["settings"]["recipe"]
    return [
        f"A network of {summary['network']['parameters']:,} parameters was trained on {data['train']:,} images in the "
        f"usual way ({recipe['epochs']} epochs of AdamW with a one-cycle schedule), down to a training loss of "
        f"{training['loss']:.4f}. {data['test']:,} other images were held out.",
        f"sampla then asked which other weights explain the training images about as well. It linearised the network "
        f"at its trained weights and drew {fit['num_samples']} samples of that posterior, each accurate to about "
        f"{fit['solve_error']:.1%} of its size, with the strength of the prior found from the data. The "
        "weights themselves were not changed: the middle of sampla's prediction is the network's own.",
        "Where the samples agree, the network's answer stands; where they differ, its confidence is lowered. The "
        "table compares the two on the held-out images as they are, turned, and under noise.",
    ]


def _notes(summary: dict[str, Any]) -> list[str]:
    angle, fit = summary["tests"]["ood_angle"], summary["fit"]
    return [
        f"Targets compare {MONTE_CARLO} with the {NETWORK}. NLL: mean negative log-likelihood of a label, in nats. "
        "ECE: expected calibration error, 15 bins. Joint NLL: of groups of ten labels on two images repeated (dyadic "
        "sampling), in nats per group; the probit approximation has no joint distribution.",
        f"sampla takes the posterior's deviations times {fit['width']['marginal']:.2f} for probabilities and times "
        f"{fit['width']['joint']:.2f} for joint predictions, which leave-one-out on the training images prefers; the "
        f"column '{EM_WIDTH}' is the same posterior with factors of one (Monte Carlo).",
        f"AUROC: how well the functions' disagreement about the label (mutual information; without functions, the "
        f"entropy of the predicted probabilities) tells foreign images (turned by {angle} degrees, "
        "or with every pixel uniform noise) from held-out clean ones. Noise of a given standard deviation is added to "
        "pixels in [0, 1] and clipped to that range.",
    ]


def _costs(summary: dict[str, Any]) -> dict[str, str]:
    fit, seconds = summary["fit"], summary["seconds"]
    return {
        "Training": f"{seconds['training']:.1f} s",
        "Posterior": f"{seconds['fit']:.1f} s, {fit['passes']:.1f} passes over {fit['num_data']:,} images for each of "
        f"{fit['num_samples']} samples, {len(fit['trace'])} EM steps",
        "Evaluation": f"{seconds['evaluation']:.1f} s",
        "In all": f"{seconds['total']:.1f} s before drawing the pictures",
        "Samples": f"{fit['vector_bytes'] / 2**20:.2f} MiB",
        "Peak memory": f"{summary['peak_memory_bytes'] / 2**30:.2f} GiB for the whole process",
        "Machine": f"{summary['machine']['cores']} cores, {summary['machine']['threads']} threads used",
    }


def _footer(summary: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return f"Seed {summary['settings']['seed']}. {versions}."
