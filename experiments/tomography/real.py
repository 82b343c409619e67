"""Real measurements: HTC2022 phantoms at 60, 30 and 15 views and a bell pepper at two doses, nothing set by hand.

    python -m experiments.tomography.real --root DIR [--only ta-60] [--factor 8]

DIR holds ct/htc2022_*.npz and ct/bell_pepper.npz. ``factor`` detector bins and pixels of the original become one. Each
case is reconstructed by the linearised deep image prior and by total variation as the prior (VariationalTV), and kept
in OUT/results.json, its pictures under OUT/cases, so that a run may be stopped; results.md is written anew from all
cases that are there.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from experiments.common.command import command, say
from experiments.common.page import RESULTS, table, write_page
from experiments.common.store import Store, save_arrays
from experiments.tomography.scans import CASES, load
from sampla.apps.ct import Settings, reconstruct
from sampla.apps.ct.illustrate import images_figure
from sampla.apps.ct.run import pictures, summarise
from sampla.tomography import PATCH_SIZES, VariationalTV, ray_transform, score

_PEERS = {"PSNR, dB: FBP": "filtered back-projection", "TV": "total variation", "DIP": "deep image prior"}
_BESIDE = "VariationalTV"


def run_case(store: Store, root: Path, case: str, factor: int, steps: int | None, out: Path) -> dict[str, Any]:
    """Reconstruct one case; its pictures and images are kept beside its summary."""
    result = reconstruct(Settings(quiet=True, method="network", steps=steps), load(root, case, factor))
    out.mkdir(parents=True, exist_ok=True)
    for picture in pictures(result):
        if picture.name != "samples":
            (out / f"{case}-{picture.name}.png").write_bytes(picture.png)
    save_arrays(store.predictions(case), mean=result.predictive.mean, deviations=result.predictive.deviations)
    return {**summarise(result), "factor": factor}


def run_variational(store: Store, root: Path, case: str, factor: int, out: Path) -> dict[str, Any]:
    """The same case with total variation as the prior, at its defaults."""
    scan, begun = load(root, case, factor), perf_counter()
    assert scan.reference is not None
    operator, learnt = ray_transform(scan.geometry), {"learn_noise": True, "progress": False}
    fitted = VariationalTV(operator, scan.noise_std, **learnt).fit(scan.sinogram)
    found = fitted.posterior_.predict_image()
    seconds = perf_counter() - begun
    out.mkdir(parents=True, exist_ok=True)
    error = (scan.reference - found.mean).abs()
    panels = {
        _BESIDE: (found.mean, "image"), "Standard deviation": (found.std, "spread"),
        "|Reference - reconstruction|": (error, "spread"),
    }  # fmt: skip
    (out / f"{case}-variational.png").write_bytes(images_figure(panels))
    save_arrays(store.predictions(f"{case}-variational"), mean=found.mean, deviations=found.deviations)
    return {
        "scores": asdict(score(found, scan.reference)), "seconds": seconds, "steps": len(fitted.steps_),
        "settled": fitted.settled_, "noise_std": fitted.noise_std_, "strength": fitted.strength_,
        "fit": fitted.report_.to_dict(),
    }  # fmt: skip


def _statuses(row: Any) -> list[str]:
    """Whether EM has settled, how the solve of the samples and the total variation ended, in a word each."""
    variation = row.get("total_variation")
    return [
        "settled" if row["fit"]["settled"] else "NOT settled",
        "converged" if row["fit"]["status"].startswith("reached") else "NOT converged",
        "not recorded" if variation is None else "converged" if variation["converged"] else "NOT converged",
    ]


def _within(scores: Any) -> str:
    return ", ".join(f"{share:.1%}" for share in scores["inside"].values())


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    found = {case: store.rows[case] for case in CASES if case in store.rows}
    beside = {case: store.rows[f"{case}/{_BESIDE}"] for case in found if f"{case}/{_BESIDE}" in store.rows}
    found = {case: row | {"beside": beside[case]} for case, row in found.items() if case in beside}
    columns = {
        "case": "{key}",
        "pixels": "{geometry[image_shape][0]} x {geometry[image_shape][1]}",
        "views x bins": lambda row: f"{len(row['geometry']['angles'])} x {row['geometry']['num_bins']}",
        **{head: f"{{quality[{name}][psnr]:.2f}}" for head, name in _PEERS.items()},
        _BESIDE: "{beside[scores][psnr]:.2f}",
        "within 1, 2, 3 std: DIP": lambda row: _within(row["scores"]),
        f"{_BESIDE} ": lambda row: _within(row["beside"]["scores"]),
        "rank correlation: DIP": "{scores[rank_correlation]:.2f}",
        f"{_BESIDE}  ": "{beside[scores][rank_correlation]:.2f}", "s: DIP": "{seconds:.0f}",
        f"{_BESIDE}   ": "{beside[seconds]:.0f}",
        "DIP: EM, solve, TV": lambda row: ", ".join(_statuses(row)),
        f"{_BESIDE}: weights, solve": lambda row: ", ".join(_settled(row["beside"])),
    }  # fmt: skip

    def density(row: Any, patch: int) -> str:
        own, *others = (s["log_prob"][str(patch)] for s in (row["scores"], *row["alternatives"].values()))
        variational = row["beside"]["scores"]["log_prob"][str(patch)]
        return f"{own:.2f}, **{variational:.2f}** ({', '.join(f'{other:.2f}' for other in others)})"

    sizes = [p for p in PATCH_SIZES if all(str(p) in row["scores"]["log_prob"] for row in found.values())]
    densities = {
        "case": "{key}",
        **{f"{p} x {p}": lambda row, p=p: density(row, p) for p in sizes},
        "gamma": lambda row: ", ".join(f"{sum(f['fit']['effective_dimension']):.0f}" for f in (row, row["beside"])),
        "noise": lambda row: f"{row['noise_std']:.3g}, {row['beside']['noise_std']:.3g}",
    }  # fmt: skip
    return {
        "cases": table(found, columns, left=len(columns)), "density": table(found, densities, left=len(densities)),
        "names": {case: row["name"] for case, row in found.items()}, "factor": store.settings["factor"],
        "samples": ", ".join(sorted({str(row["beside"]["fit"]["num_samples"]) for row in found.values()})),
    }  # fmt: skip


def _settled(row: Any) -> tuple[str, str]:
    reached = row["fit"]["status"].startswith("reached")
    return "settled" if row["settled"] else "NOT settled", "converged" if reached else "NOT converged"


def main() -> None:
    """Command line."""
    more = {"factor": (8, "bins that become one"), "steps": (int, "of training; by default the library's rule")}
    asked = command(__doc__, RESULTS / "tomography-real", "ct/", only=CASES, threads=None, **more)
    store = Store(asked.out / "results.json", {"factor": asked.factor, "steps": asked.steps}, asked.cache)
    for case in asked.only or CASES:
        work = partial(run_case, store, asked.root, case, asked.factor, asked.steps, asked.out / "cases")
        beside = partial(run_variational, store, asked.root, case, asked.factor, asked.out / "cases")
        seconds = [store.once(key, do)["seconds"] for key, do in ((case, work), (f"{case}/{_BESIDE}", beside))]
        say(f"{case}: {seconds[0]:.0f} s, {_BESIDE} {seconds[1]:.0f} s")
        write_page(asked.out / "results.md", "experiments/tomography/real.md.j2", **page(store))


if __name__ == "__main__":
    main()
