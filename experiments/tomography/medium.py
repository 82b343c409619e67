"""The medium experiment: a sparse-view phantom of 128 x 128 pixels, beside a noise-only model and MC-dropout DIP.

    python -m experiments.tomography.medium [--pixels 128] [--views 30] [--steps N]     # needs no data

Writes OUT/results.md, results.json and pictures.
"""

from dataclasses import asdict
from time import perf_counter
from typing import Any

import torch

from experiments.common.command import parser, say
from experiments.common.page import RESULTS, provenance, write_page
from experiments.common.store import Store, save_arrays
from sampla.apps.ct import Result, Settings, demo_scan, reconstruct
from sampla.apps.ct.illustrate import calibration_figure, images_figure
from sampla.apps.ct.run import pictures
from sampla.tomography import PATCH_SIZES, ImagePredictive, Recipe, fixed_input, score, train, unet_for

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


def main() -> None:
    """Command line."""
    options = parser(__doc__, RESULTS / "tomography-medium")
    options.add_argument("--pixels", type=int, default=128)
    options.add_argument("--views", type=int, default=30)
    options.add_argument("--steps", type=int, default=Recipe().steps)
    given = options.parse_args()
    settings = {"pixels": given.pixels, "views": given.views, "steps": given.steps}
    store = Store(given.out / "results.json", settings, given.cache)
    scan = demo_scan(given.pixels, given.views)
    result = reconstruct(Settings(quiet=True, steps=given.steps), scan)
    dropped, seconds = dropout_dip(result, seed=0)
    assert scan.reference is not None
    assert result.scores is not None
    scored = {"sampla": result.scores} | result.alternatives | {"MC dropout": score(dropped, scan.reference)}
    given.out.mkdir(parents=True, exist_ok=True)
    for picture in pictures(result):
        (given.out / f"{picture.name}.png").write_bytes(picture.png)
    error = (scan.reference - dropped.mean).abs()
    panels = {
        "MC dropout": (dropped.mean, "image"), "its standard deviation": (dropped.std, "spread"),
        "its |error|": (error, "spread"),
    }  # fmt: skip
    (given.out / "dropout.png").write_bytes(images_figure(panels))
    ours = (scan.reference - result.predictive.mean).abs() / result.predictive.total_std
    (given.out / "calibration.png").write_bytes(
        calibration_figure({"sampla": ours, "MC dropout": error / dropped.total_std})
    )
    for name, predictive in {"sampla": result.predictive, "MC dropout": dropped}.items():
        arrays = {"mean": predictive.mean, "deviations": predictive.deviations, "truth": scan.reference}
        save_arrays(store.predictions(name), {key: value.numpy() for key, value in arrays.items()})
    training = result.dip.training_.seconds
    store.put("phantom", {
        "name": scan.name, "bins": scan.geometry.num_bins, "samples": len(result.dip.posterior_.samples),
        "scored": {name: asdict(scores) for name, scores in scored.items()},
        "quality": {name: pair for name, pair in result.quality.items() if name in result.references},
        "seconds": {
            "training": training, "posterior": result.dip.report_.seconds - training, "MC dropout": seconds,
            "all of sampla's, references and scores included": result.seconds,
        },
        "certificate": f"{result.dip.report_}\n{result.dip.plan_}",
    })  # fmt: skip
    write_page(given.out / "results.md", "experiments/tomography/medium.md.j2", **page(store))
    say(f"{ {name: scores.psnr for name, scores in scored.items()} }")


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    command = "experiments.tomography.medium " + " ".join(f"--{name} {v}" for name, v in store.settings.items())
    return {
        "provenance": provenance(store, command, "torch", f", {store.environment.get('threads')} thread(s)"),
        "settings": store.settings, "row": store.rows["phantom"], "patches": [str(size) for size in PATCH_SIZES],
        "pictures": ["overview", "samples", "calibration", "dropout"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
