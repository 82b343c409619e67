"""The medium experiment: a sparse-view phantom of 128 x 128 pixels, beside a noise-only model and MC-dropout DIP.

    python experiments/tomography_medium/run.py [--pixels 128] [--views 30]     # needs no data

Writes results.md and its pictures beside this file.
"""

import argparse
from pathlib import Path
from time import perf_counter

import torch

from sampla.apps.ct import Result, Settings, demo_scan, reconstruct
from sampla.apps.ct.illustrate import calibration_figure, images_figure
from sampla.apps.ct.run import pictures
from sampla.tomography import (
    PATCH_SIZES,
    ImagePredictive,
    ImageScores,
    Recipe,
    fixed_input,
    psnr_ssim,
    score,
    train,
    unet_for,
)

_DROPOUT, _PASSES = 0.05, 64
"""As in the literature on Monte Carlo dropout for deep image priors (Laves et al. 2020)."""


def dropout_dip(result: Result, seed: int) -> tuple[ImagePredictive, float]:
    """The same U-Net trained in the same way with dropout, which stays on: mean and spread of its outputs; seconds."""
    start = perf_counter()
    prepared = result.dip.prepare(result.scan.sinogram)
    shape = prepared.operator.image_shape
    network, given = unet_for(shape, seed, dropout=_DROPOUT), fixed_input(shape, seed)
    torch.manual_seed(seed)
    train(network, given, prepared.operator, prepared.measurements, prepared.noise_std, result.dip.recipe)
    network.train()
    with torch.no_grad():
        images = torch.cat([network(given)[0] for _ in range(_PASSES)]) * prepared.scale
    mean = images.mean(0)
    return ImagePredictive.stabilised(mean, images - mean), perf_counter() - start


def results(result: Result, scored: dict[str, ImageScores], command: str, seconds: dict[str, float]) -> str:
    """results.md."""
    scan, dip, reference = result.scan, result.dip, result.scan.reference
    assert reference is not None
    shape = " x ".join(map(str, scan.geometry.image_shape))
    lines = [
        f"# {shape} pixels from {scan.geometry.num_angles} views", "",
        f"Written by `{command}`. {scan.name}, {scan.geometry.num_bins} bins, white noise of 5 % of the mean; float32, "
        f"K = {len(dip.posterior_.samples)}, {torch.get_num_threads()} thread(s), torch {torch.__version__}. The same "
        "stabilisation for all (tomography/image.py). Measurement noise alone: what it would leave in a pixel if all "
        "others were known. Equal deviations: the root mean square of sampla's standard deviations in every pixel.", "",
        "| | PSNR, dB | SSIM | within 1 std (68.3 %) | 2 (95.4 %) | 3 (99.7 %) | rank correlation of std and error |",
        "|" + " ---: |" * 7,
    ]  # fmt: skip
    lines += [
        f"| {name} | {s.psnr:.2f} | {s.ssim:.3f} | "
        + " | ".join(f"{share:.1%}" for share in s.inside.values())
        + f" | {s.rank_correlation:.2f} |"
        for name, s in scored.items()
    ]
    quality = {name: pair for name, pair in result.quality.items() if name in result.references}
    lines += [f"| {name} | {p:.2f} | {s:.3f} |" + " |" * 4 for name, (p, s) in quality.items()]
    lines += ["", "## Log-likelihood of patches of the truth, nats per pixel", ""]
    lines += ["| | " + " | ".join(f"{size} x {size}" for size in PATCH_SIZES) + " |", "|" + " ---: |" * 5]
    lines += [
        f"| {name} | " + " | ".join(f"{s.log_prob[size]:.3f}" for size in PATCH_SIZES) + " |"
        for name, s in scored.items()
    ]
    lines += ["", "## Cost", "", *(f"- {name}: {value:.0f} s" for name, value in seconds.items()), ""]
    lines += ["## Certificate", "", f"```\n{dip.report_}\n{dip.plan_}\n```", "", "## Pictures", ""]
    names = ["overview", "samples", "calibration", "dropout"]
    lines += [f"![{name}]({name}.png)\n" for name in names]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--views", type=int, default=30)
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    scan = demo_scan(given.pixels, given.views)
    result = reconstruct(Settings(quiet=True, steps=given.steps), scan)
    dropped, seconds = dropout_dip(result, seed=0)
    assert scan.reference is not None
    assert result.scores is not None
    scored = {"sampla": result.scores} | result.alternatives | {"MC dropout": score(dropped, scan.reference)}
    for picture in pictures(result):
        (given.out / f"{picture.name}.png").write_bytes(picture.png)
    error = (scan.reference - dropped.mean).abs()
    panels = {
        "MC dropout": (dropped.mean, "image"), "its standard deviation": (dropped.std, "spread"),
        "its |error|": (error, "spread"),
    }  # fmt: skip
    (given.out / "dropout.png").write_bytes(images_figure(panels))
    ours = (scan.reference - result.predictive.mean).abs() / result.predictive.total_std
    both = {"sampla": ours, "MC dropout": error / dropped.total_std}
    (given.out / "calibration.png").write_bytes(calibration_figure(both))
    sizes = f"--pixels {given.pixels} --views {given.views} --steps {given.steps}"
    command = f"python experiments/tomography_medium/run.py {sizes}"
    training = result.dip.training_.seconds
    spent = {
        "training": training, "posterior": result.dip.report_.seconds - training, "MC dropout": seconds,
        "all of sampla's, references and scores included": result.seconds,
    }  # fmt: skip
    (given.out / "results.md").write_text(results(result, scored, command, spent), encoding="utf-8")
    print(f"dropout {psnr_ssim(dropped.mean, scan.reference)}; {scored}")


if __name__ == "__main__":
    main()
