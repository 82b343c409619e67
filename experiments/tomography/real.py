"""Real measurements: HTC2022 phantoms at 60, 30 and 15 views and a bell pepper at two doses, nothing set by hand.

    python -m experiments.tomography.real --root DIR [--only ta-60] [--factor 8]

DIR holds ct/htc2022_*.npz and ct/bell_pepper.npz. ``factor`` detector bins and pixels of the original become one. Each
case is kept in OUT/results.json, its pictures under OUT/cases, so that a run may be stopped; results.md is written anew
from all cases that are there.
"""

from functools import partial
from pathlib import Path
from typing import Any

from experiments.common.command import command, say
from experiments.common.page import RESULTS, table, write_page
from experiments.common.store import Store, save_arrays
from experiments.tomography.scans import CASES, load
from sampla.apps.ct import Settings, reconstruct
from sampla.apps.ct.run import pictures, summarise
from sampla.tomography import PATCH_SIZES

_PEERS = {"PSNR, dB: FBP": "filtered back-projection", "TV": "total variation", "DIP": "deep image prior"}


def run_case(store: Store, root: Path, case: str, factor: int, steps: int | None, out: Path) -> dict[str, Any]:
    """Reconstruct one case; its pictures and images are kept beside its summary."""
    result = reconstruct(Settings(quiet=True, steps=steps), load(root, case, factor))
    out.mkdir(parents=True, exist_ok=True)
    for picture in pictures(result):
        if picture.name != "samples":
            (out / f"{case}-{picture.name}.png").write_bytes(picture.png)
    save_arrays(store.predictions(case), mean=result.predictive.mean, deviations=result.predictive.deviations)
    return {**summarise(result), "factor": factor}


def _statuses(row: Any) -> list[str]:
    """Whether EM has settled, how the solve of the samples and the total variation ended, in a word each."""
    variation = row.get("total_variation")
    return [
        "settled" if row["fit"]["settled"] else "NOT settled",
        "converged" if row["fit"]["status"].startswith("reached") else "NOT converged",
        "not recorded" if variation is None else "converged" if variation["converged"] else "NOT converged",
    ]


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    found = {case: store.rows[case] for case in CASES if case in store.rows}
    columns = {
        "case": "{key}",
        "pixels": "{geometry[image_shape][0]} x {geometry[image_shape][1]}",
        "views x bins": lambda row: f"{len(row['geometry']['angles'])} x {row['geometry']['num_bins']}",
        **{head: f"{{quality[{name}][psnr]:.2f}}" for head, name in _PEERS.items()},
        "SSIM of DIP": "{scores[ssim]:.3f}",
        "within 1, 2, 3 std": lambda row: ", ".join(f"{s:.1%}" for s in row["scores"]["inside"].values()),
        "rank correlation": "{scores[rank_correlation]:.2f}", "steps": "{training[steps]}", "s": "{seconds:.0f}",
        "EM, solve, TV": lambda row: ", ".join(_statuses(row)),
    }  # fmt: skip

    def density(row: Any, patch: int) -> str:
        own, *others = (s["log_prob"][str(patch)] for s in (row["scores"], *row["alternatives"].values()))
        return f"{own:.2f} ({', '.join(f'{other:.2f}' for other in others)})"

    sizes = [p for p in PATCH_SIZES if all(str(p) in row["scores"]["log_prob"] for row in found.values())]
    densities = {
        "case": "{key}",
        **{f"{p} x {p}": lambda row, p=p: density(row, p) for p in sizes},
        "gamma": lambda row: f"{sum(row['fit']['effective_dimension']):.0f}", "noise": "{noise_std:.3g}",
    }  # fmt: skip
    return {
        "old": any("total_variation" not in row for row in found.values()),
        "cases": table(found, columns, left=len(columns)), "density": table(found, densities, left=len(densities)),
        "names": {case: row["name"] for case, row in found.items()},
    }  # fmt: skip


def main() -> None:
    """Command line."""
    more = {"factor": (8, "bins that become one"), "steps": (int, "of training; by default the library's rule")}
    asked = command(__doc__, RESULTS / "tomography-real", "ct/", only=CASES, threads=None, **more)
    store = Store(asked.out / "results.json", {"factor": asked.factor, "steps": asked.steps}, asked.cache)
    for case in asked.only or CASES:
        work = partial(run_case, store, asked.root, case, asked.factor, asked.steps, asked.out / "cases")
        say(f"{case}: {store.once(case, work)['seconds']:.0f} s")
        write_page(asked.out / "results.md", "experiments/tomography/real.md.j2", **page(store))


if __name__ == "__main__":
    main()
