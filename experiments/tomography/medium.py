"""The medium experiment: a phantom of 128 x 128 pixels from few views, beside total variation as the prior and others.

    python -m experiments.tomography.medium [--pixels 128] [--views 30] [--steps N]     # needs no data

Writes OUT/results.md, results.json and pictures.
"""

from dataclasses import asdict
from typing import Any

from experiments.common.command import command, say
from experiments.common.page import RESULTS, provenance, write_page
from experiments.common.store import Store, save_arrays
from experiments.tomography.dropout import dropout_dip
from sampla.apps.ct import Settings, demo_scan, reconstruct
from sampla.apps.ct.fitting import weights
from sampla.apps.ct.illustrate import calibration_figure, images_figure
from sampla.apps.ct.run import pictures
from sampla.tomography import LinearisedDIP, Recipe, VariationalTV, ray_transform, score


def main() -> None:
    """Command line."""
    more = {"pixels": (128, "of a side"), "views": (30, "angles"), "steps": (Recipe().steps, "of training")}
    asked = command(__doc__, RESULTS / "tomography-medium", anew=True, threads=None, **more)
    settings = {"pixels": asked.pixels, "views": asked.views, "steps": asked.steps}
    store = Store(asked.out / "results.json", settings, asked.cache, asked.anew)
    scan = demo_scan(asked.pixels, asked.views)
    result = reconstruct(Settings(quiet=True, method="network", steps=asked.steps), scan)
    assert isinstance(result.fit, LinearisedDIP)
    dropped, seconds = dropout_dip(result.fit, scan.sinogram)
    variation = VariationalTV(ray_transform(scan.geometry), progress=False).fit(scan.sinogram)
    beside = variation.posterior_.predict_image()
    assert scan.reference is not None
    assert result.scores is not None
    scored = {"sampla": result.scores} | result.alternatives
    scored |= {"VariationalTV": score(beside, scan.reference), "MC dropout": score(dropped, scan.reference)}
    asked.out.mkdir(parents=True, exist_ok=True)
    error, wrong = (scan.reference - dropped.mean).abs(), (scan.reference - beside.mean).abs()
    panels = {
        "VariationalTV": (beside.mean, "image"), "its standard deviation": (beside.std, "spread"),
        "its |error|": (wrong, "spread"),
    }  # fmt: skip
    variational = images_figure(panels)
    panels = {
        "MC dropout": (dropped.mean, "image"), "its standard deviation": (dropped.std, "spread"),
        "its |error|": (error, "spread"),
    }  # fmt: skip
    ours = (scan.reference - result.predictive.mean).abs() / result.predictive.total_std
    drawn = {picture.name: picture.png for picture in pictures(result)} | {"dropout": images_figure(panels)}
    drawn["variational"] = variational
    ratios = {"sampla": ours, "VariationalTV": wrong / beside.total_std, "MC dropout": error / dropped.total_std}
    drawn["calibration"] = calibration_figure(ratios)
    for name, picture in drawn.items():
        (asked.out / f"{name}.png").write_bytes(picture)
    for name, found in {"sampla": result.predictive, "VariationalTV": beside, "MC dropout": dropped}.items():
        save_arrays(store.predictions(name), mean=found.mean, deviations=found.deviations, truth=scan.reference)
    training = result.fit.training_.seconds
    store.put("phantom", {
        "name": scan.name, "bins": scan.geometry.num_bins, "samples": len(result.fit.posterior_.samples),
        "scored": {name: asdict(scores) for name, scores in scored.items()},
        "quality": {name: pair for name, pair in result.quality.items() if name in result.references},
        "cost": {
            "training": training, "posterior": result.fit.report_.seconds - training,
            "VariationalTV": variation.report_.seconds, "MC dropout": seconds,
            "all of sampla's, references and scores included": result.seconds,
        },
        "certificate": f"{result.fit.report_}\n{result.fit.plan_}",
        "certificate of VariationalTV": f"weights {weights(variation)}\n{variation.report_}",
    })  # fmt: skip
    write_page(asked.out / "results.md", "experiments/tomography/medium.md.j2", **page(store))
    say(f"{ {name: scores.psnr for name, scores in scored.items()} }")


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    call = "experiments.tomography.medium " + " ".join(f"--{name} {v}" for name, v in store.settings.items())
    return {
        "provenance": provenance(store, call, "torch", f", {store.environment['threads']} thread(s)"),
        "settings": store.settings, "row": store.rows["phantom"],
        "pictures": ["overview", "samples", "calibration", "variational", "dropout"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
