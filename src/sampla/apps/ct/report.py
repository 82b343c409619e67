"""The report of `sampla ct`: the text of the HTML page, filled from the summary of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sampla.apps.page import Page, Picture

_CALIBRATED = {1: 0.683, 2: 0.954, 3: 0.997}


@dataclass(frozen=True)
class Row:
    """One line of the table: a method and its figures."""

    measure: str
    values: tuple[str, ...]
    met: bool = False

    def cells(self) -> tuple[str, ...]:
        """As the table shows them."""
        return self.values

    def verdict(self) -> str:
        """There are no targets for a user's own scan."""
        return ""


def page(summary: dict[str, Any], certificate: str, pictures: Sequence[Picture]) -> Page:
    """The HTML report of a run.

    Args:
        summary: what summary.json holds.
        certificate: ``str(dip.report_)``.
        pictures: in the order in which they are shown.
    """
    shape = " x ".join(map(str, summary["geometry"]["image_shape"]))
    views = len(summary["geometry"]["angles"])
    return Page(
        title=f"{summary['name']}: reconstruction with error bars",
        summary=f"{shape} pixels from {views} views, with {summary['fit']['num_samples']} joint samples of what else "
        "the image might be.",
        story=_story(summary),
        verdicts=[],
        columns=("PSNR, dB", "SSIM"),
        rows=[
            Row(name, (f"{found['psnr']:.2f}", f"{found['ssim']:.3f}")) for name, found in summary["quality"].items()
        ],
        notes=_notes(summary),
        certificate=certificate,
        pictures=pictures,
        costs=_costs(summary),
        excluded=summary["fit"]["excluded_parameters"],
        footer=", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
    )


def _story(summary: dict[str, Any]) -> list[str]:
    fit, unit = summary["fit"], f" per {summary['unit']}" if summary["unit"] else ""
    told = [f"Warning: {summary['warning']}"] if summary["warning"] else []
    told += [
        *(_of_network(summary) if "training" in summary else _of_variation(summary)),
        f"It misses the measurements by {summary['misfit']:.2f} times the noise that their neighbours on the detector "
        f"show. Nothing was tuned for this image.",
        f"The average standard deviation of a pixel is {summary['mean_std']:.3g}{unit}, from {fit['num_samples']} "
        f"posterior samples ({summary['solver']}: the solve {fit['status']}).",
    ]
    if summary["region"] is not None:
        region = summary["region"]
        told.append(f"Mean of the region of interest: {region['mean']:.5g} +- {region['std']:.2g}{unit}.")
    return told


def _of_network(summary: dict[str, Any]) -> list[str]:
    training, fit = summary["training"], summary["fit"]
    return [
        f"A U-Net of {fit['num_parameters']:,} parameters was trained on this sinogram alone, from the image of least "
        f"total variation ({training['start_steps'] + training['steps']} steps). It was linearised, and the strength "
        f"of its prior and {_noise(summary)} were found by EM ({summary['noise_std']:.4g}).",
    ]


def _of_variation(summary: dict[str, Any]) -> list[str]:
    return [
        f"Total variation was the prior, bounded by Gaussians whose weights {summary['weights']}; its strength is the "
        f"one that predicts measurements best that are left out, and {_noise(summary)} was found with it "
        f"({summary['noise_std']:.4g}).",
    ]


def _noise(summary: dict[str, Any]) -> str:
    return "a common factor of the given deviations" if summary["noise_is_relative"] else "the noise of a measurement"


def _notes(summary: dict[str, Any]) -> list[str]:
    scores = summary["scores"]
    variation = f"The total variation image {summary['total_variation']['status']}."
    if scores is None:
        return [
            variation,
            "There is no reference image for this scan, so nothing is said here about errors that were made.",
        ]
    inside = ", ".join(f"{scores['inside'][k]:.1%} within {k} ({p:.1%})" for k, p in _CALIBRATED.items())
    others = [other["log_prob"] for other in summary["alternatives"].values()]
    density = "; ".join(
        f"{size} x {size}: {value:.3f} (" + ", ".join(f"{other[size]:.3f}" for other in others) + ")"
        for size, value in scores["log_prob"].items()
    )
    return [
        variation,
        f"Share of the pixels within 1, 2, 3 standard deviations, and what a Gaussian would have: {inside}. Rank "
        f"correlation of the standard deviation with the absolute error: {scores['rank_correlation']:.2f}.",
        f"Log-likelihood of patches of the reference, nats per pixel, and in brackets with one standard deviation for "
        f"all pixels ({', '.join(summary['alternatives'])}): {density}. Covariances are shrunk towards their diagonal.",
    ]


def _costs(summary: dict[str, Any]) -> dict[str, str]:
    fit, training = summary["fit"], summary.get("training", {"seconds": 0.0})
    costs = {
        "Training": f"{training['seconds']:.1f} s",
        "Posterior": f"{fit['seconds'] - training['seconds']:.1f} s, {fit['passes']:.1f} products for each of "
        f"{fit['num_samples']} samples",
        "In all": f"{summary['seconds']:.1f} s",
        "Memory": summary.get("plan", ""),
    }
    return costs if "training" in summary else {name: costs[name] for name in ("Posterior", "In all")}
