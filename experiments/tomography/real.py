"""Real measurements: HTC2022 phantoms at 60, 30 and 15 views and a bell pepper at two doses, nothing set by hand.

    python -m experiments.tomography.real --root DIR [--cases ta-60 pepper-low ...] [--factor 8]

DIR holds ct/htc2022_*.npz and ct/bell_pepper.npz. ``factor`` detector bins and pixels of the original become one. Each
case is kept in OUT/results.json, its pictures under OUT/cases, so that a run may be stopped; results.md is written anew
from all cases that are there.
"""

from functools import partial
from pathlib import Path
from typing import Any

from experiments.common.command import parser, say
from experiments.common.page import RESULTS, grid, table, write_page
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
    arrays = {"mean": result.predictive.mean, "deviations": result.predictive.deviations}
    save_arrays(store.predictions(case), {name: value.numpy() for name, value in arrays.items()})
    return {**summarise(result), "factor": factor}


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    found = [(case, store.rows[case]) for case in CASES if case in store.rows]
    columns = {
        "case": lambda pair: pair[0],
        "pixels": lambda pair: " x ".join(map(str, pair[1]["geometry"]["image_shape"])),
        "views x bins": lambda pair: f"{len(pair[1]['geometry']['angles'])} x {pair[1]['geometry']['num_bins']}",
        **{head: lambda pair, n=name: f"{pair[1]['quality'][n]['psnr']:.2f}" for head, name in _PEERS.items()},
        "SSIM of DIP": lambda pair: f"{pair[1]['scores']['ssim']:.3f}",
        "within 1, 2, 3 std": lambda pair: ", ".join(f"{s:.1%}" for s in pair[1]["scores"]["inside"].values()),
        "rank correlation": lambda pair: f"{pair[1]['scores']['rank_correlation']:.2f}",
        "steps": lambda pair: f"{pair[1]['training']['steps']}",
        "s": lambda pair: f"{pair[1]['seconds']:.0f}",
    }
    density = []
    for case, row in found:
        own, others = row["scores"]["log_prob"], [other["log_prob"] for other in row["alternatives"].values()]
        cells = [f"{own[str(p)]:.2f} ({', '.join(f'{o[str(p)]:.2f}' for o in others)})" for p in PATCH_SIZES]
        density.append([case, *cells, f"{sum(row['fit']['effective_dimension']):.0f}", f"{row['noise_std']:.3g}"])
    head = ["case", *(f"{p} x {p}" for p in PATCH_SIZES), "gamma", "noise"]
    return {
        "cases": table(found, columns, left=len(columns)), "density": grid(head, density, left=len(head)),
        "names": {case: row["name"] for case, row in found},
    }  # fmt: skip


def main() -> None:
    """Command line."""
    options = parser(__doc__, RESULTS / "tomography-real", "ct/")
    options.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    options.add_argument("--factor", type=int, default=8)
    options.add_argument("--steps", type=int, help="of training; by default the library's rule")
    given = options.parse_args()
    store = Store(given.out / "results.json", {"factor": given.factor, "steps": given.steps}, given.cache)
    for case in given.cases:
        work = partial(run_case, store, given.root, case, given.factor, given.steps, given.out / "cases")
        say(f"{case}: {store.once(case, work)['seconds']:.0f} s")
        write_page(given.out / "results.md", "experiments/tomography/real.md.j2", **page(store))


if __name__ == "__main__":
    main()
