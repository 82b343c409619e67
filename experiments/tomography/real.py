"""Real measurements: HTC2022 phantoms at 60, 30 and 15 views and a bell pepper at two doses, nothing set by hand.

    python -m experiments.tomography.real --root DIR [--only ta-60] [--factor 8] [--alone]

DIR holds ct/htc2022_*.npz and ct/bell_pepper.npz. ``factor`` detector bins and pixels of the original become one. Each
case is reconstructed with total variation as the prior (VariationalTV) and, unless ``--alone`` is given, by the
linearised deep image prior. Each is kept in OUT/results.json, its pictures under OUT/cases, so that a run may be
stopped; results.md is written anew from all cases that are there.
"""

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

from experiments.common.command import command, say
from experiments.common.page import RESULTS, states, table, write_page
from experiments.common.store import Row, Store, save_arrays
from experiments.tomography.scans import CASES, load
from experiments.tomography.truth import TRUTH, beside
from sampla.apps.ct import Settings, reconstruct
from sampla.apps.ct.run import pictures, summarise
from sampla.tomography import PATCH_SIZES

_PEERS = {"PSNR, dB: FBP": "filtered back-projection", "TV": "total variation"}
_BESIDE = "VariationalTV"


def run_case(predictions: Path, fits: Path, asked: Namespace, case: str, method: str) -> dict[str, Any]:
    """Reconstruct one case by "network" or "variational"; its pictures and images are kept beside its summary.

    A fit that was cut off goes on from its folder in ``fits``.
    """
    name, out = case if method == "network" else f"{case}-{method}", asked.out / "cases"
    told = {"steps": asked.steps} if method == "network" else {}
    settings = Settings(quiet=True, method=method, checkpoint=fits / name, **told)
    result = reconstruct(settings, load(asked.root, case, asked.factor))
    out.mkdir(parents=True, exist_ok=True)
    for picture in pictures(result):
        if picture.name != "samples":
            (out / f"{name}-{picture.name}.png").write_bytes(picture.png)
    save_arrays(predictions, mean=result.predictive.mean, deviations=result.predictive.deviations)
    return {**summarise(result), "factor": asked.factor}


def _statuses(row: Any) -> list[str]:
    """How weights or EM, the solve of the samples and the total variation ended, in a word each."""
    settled = row["weights"].startswith("settled") if "weights" in row else row["fit"]["settled"]
    return [
        "settled" if settled else "NOT settled",
        "converged" if row["fit"]["status"].startswith("reached") else "NOT converged",
        "converged" if row["total_variation"]["converged"] else "NOT converged",
    ]


def _correlation(row: Any) -> str:
    """Of the deviations with the errors, and what exactly right deviations would have."""
    best = f" ({row[TRUTH]['rank_correlation']:.2f})" if TRUTH in row else ""
    return f"{row['scores']['rank_correlation']:.2f}{best}"


def _beside_truth(row: Any) -> str:
    return f"{row[TRUTH]['noise'] / row[TRUTH]['error']:.0%}: {_within(row[TRUTH])}" if TRUTH in row else "-"


def _within(scores: Any) -> str:
    return ", ".join(f"{share:.1%}" for share in scores["inside"].values())


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    found = {}
    for case in CASES:
        network, beside = store.rows.get(case), store.rows.get(f"{case}/{_BESIDE}")
        if (row := beside or network) is not None:  # the references are those at the noise of that one
            found[case] = row | {"network": network, "beside": beside}
    columns = {
        "case": "{key}",
        "pixels": "{geometry[image_shape][0]} x {geometry[image_shape][1]}",
        "views x bins": lambda row: f"{len(row['geometry']['angles'])} x {row['geometry']['num_bins']}",
        **{head: f"{{quality[{name}][psnr]:.2f}}" for head, name in _PEERS.items()},
        "DIP": _network(lambda row: f"{row['quality']['deep image prior']['psnr']:.2f}"),
        _BESIDE: _beside(lambda row: f"{row['quality']['variational total variation']['psnr']:.2f}"),
        "within 1, 2, 3 std: DIP": _network(lambda row: _within(row["scores"])),
        f"{_BESIDE} ": _beside(lambda row: _within(row["scores"])),
        f"noise of the truth, within 1, 2, 3 std with it: {_BESIDE}": _beside(_beside_truth),
        "rank correlation: DIP": _network(_correlation),
        f"{_BESIDE}  ": _beside(_correlation),
        "s: DIP": _network(lambda row: f"{row['seconds']:.0f}"),
        f"{_BESIDE}   ": _beside(lambda row: f"{row['seconds']:.0f}"),
        "DIP: EM, solve, TV": _network(lambda row: ", ".join(_statuses(row))),
        f"{_BESIDE}: weights, solve, TV": _beside(lambda row: ", ".join(_statuses(row))),
    }  # fmt: skip

    def density(row: Any, patch: int) -> str:
        def own(one: Any) -> str:
            return f"{one['scores']['log_prob'][str(patch)]:.2f}"

        others = ", ".join(f"{other['log_prob'][str(patch)]:.2f}" for other in row["alternatives"].values())
        return f"{_network(own)(row)}, **{_beside(own)(row)}** ({others})"

    sizes = [p for p in PATCH_SIZES if all(str(p) in row["scores"]["log_prob"] for row in found.values())]
    densities = {
        "case": "{key}",
        **{f"{p} x {p}": lambda row, p=p: density(row, p) for p in sizes},
        "gamma": _both(lambda row: f"{sum(row['fit']['effective_dimension']):.0f}"),
        "noise": _both(lambda row: f"{row['noise_std']:.3g}"),
    }  # fmt: skip
    return {
        "cases": table(found, columns, left=len(columns)), "density": table(found, densities, left=len(densities)),
        "names": {case: row["name"] for case, row in found.items()}, "factor": store.settings["factor"],
        "networks": [case for case, row in found.items() if row["network"]], "states": states(store),
        "alone": [case for case, row in found.items() if row["beside"]],
        "samples": ", ".join({str(row["beside"]["fit"]["num_samples"]) for row in found.values() if row["beside"]}),
    }  # fmt: skip


def _network(told: Any) -> Any:
    """A column of the network's row, which may not have been run."""
    return lambda row: told(row["network"]) if row["network"] else "not run"


def _beside(told: Any) -> Any:
    """The same of VariationalTV's."""
    return lambda row: told(row["beside"]) if row["beside"] else "not run"


def _both(told: Any) -> Any:
    return lambda row: f"{_network(told)(row)}, {_beside(told)(row)}"


def main() -> None:
    """Command line."""
    more = {
        "factor": (8, "bins that become one"), "steps": (int, "of training; by default the library's rule"),
        "alone": (False, f"{_BESIDE} only, without the network"),
    }  # fmt: skip
    asked = command(__doc__, RESULTS / "tomography-real", "ct/", only=CASES, anew=True, threads=None, **more)
    store = Store(asked.out / "results.json", {"factor": asked.factor, "steps": asked.steps}, asked.cache, asked.anew)
    for case in asked.only or CASES:
        for method in ("variational",) if asked.alone else ("variational", "network"):
            key = case if method == "network" else f"{case}/{_BESIDE}"
            row: Row = store.once(
                key,
                partial(run_case, store.predictions(key), store.cache / store.source, asked, case, method),
                measures={TRUTH: beside(asked.root, case, asked.factor)},
            )
            say(f"{case}, {method}: {row['seconds']:.0f} s")
            write_page(asked.out / "results.md", "experiments/tomography/real.md.j2", **page(store))


if __name__ == "__main__":
    main()
