"""Real measurements: HTC2022 phantoms at 60, 30 and 15 views and a bell pepper at two doses, nothing set by hand.

    python experiments/tomography_real/run.py --root DIR [--cases ta-60 pepper-low ...] [--factor 8]

DIR holds ct/htc2022_*.npz and ct/bell_pepper.npz. ``factor`` detector bins and pixels of the original become one. Each
case is kept under cases/, so that a run may be stopped; results.md is written anew from all cases that are there.
"""

import argparse
import json
from pathlib import Path

from scans import CASES, load

from sampla.apps.ct import Settings, reconstruct
from sampla.apps.ct.run import pictures, summarise
from sampla.tomography import PATCH_SIZES


def run_case(root: Path, case: str, factor: int, steps: int | None, out: Path) -> None:
    """Reconstruct one case and keep its summary and pictures."""
    result = reconstruct(Settings(quiet=True, steps=steps), load(root, case, factor))
    for picture in pictures(result):
        if picture.name != "samples":
            (out / f"{case}-{picture.name}.png").write_bytes(picture.png)
    summary = {**summarise(result), "factor": factor}
    (out / f"{case}.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def results(found: dict[str, dict]) -> str:
    """results.md from the summaries of all cases."""
    lines = [
        "# Real measurements against the full-view reference", "",
        "Written by `python experiments/tomography_real/run.py --root DIR`; cases, binning and training steps as the "
        "tables say. The reference is the filtered back-projection from all views that comes with the data, averaged "
        "over blocks of pixels: it has noise and artefacts of its own, which count as errors here. Outside of the "
        "circle that every view sees those of HTC2022 are set to zero, for there is air; the pepper reaches beyond it "
        "and its reference is left as it is. Views are spread over a full turn. Every setting is the default.",
        "",
        "| case | pixels | views x bins | PSNR, dB: FBP | TV | DIP | SSIM of DIP | within 1, 2, 3 std | "
        "rank correlation | steps | s |", "|" + " --- |" * 11,
    ]  # fmt: skip
    for case, s in found.items():
        scan, scores, quality = s["geometry"], s["scores"], s["quality"]
        psnr = [quality[name]["psnr"] for name in ("filtered back-projection", "total variation", "deep image prior")]
        inside = ", ".join(f"{share:.1%}" for share in scores["inside"].values())
        lines.append(
            f"| {case} | {' x '.join(map(str, scan['image_shape']))} | {len(scan['angles'])} x {scan['num_bins']} | "
            + " | ".join(f"{p:.2f}" for p in psnr)
            + f" | {scores['ssim']:.3f} | {inside} | {scores['rank_correlation']:.2f} | {s['training']['steps']} | "
            f"{s['seconds']:.0f} |"
        )
    lines += ["", "## Log-likelihood of patches of the reference, nats per pixel", "",
        "In brackets, with one standard deviation for all pixels: what the measurement noise leaves in a pixel if all "
        "others are known; and the root mean square of sampla's own.", "",
    ]  # fmt: skip
    lines += ["| case | " + " | ".join(f"{p} x {p}" for p in PATCH_SIZES) + " | gamma | noise |", "|" + " --- |" * 7]
    for case, s in found.items():
        density, others = s["scores"]["log_prob"], [other["log_prob"] for other in s["alternatives"].values()]
        cells = " | ".join(
            f"{density[str(p)]:.2f} ({', '.join(f'{other[str(p)]:.2f}' for other in others)})" for p in PATCH_SIZES
        )
        lines.append(f"| {case} | {cells} | {sum(s['fit']['effective_dimension']):.0f} | {s['noise_std']:.3g} |")
    for case, s in found.items():
        lines += ["", f"## {s['name']}", "", f"![{case}](cases/{case}-overview.png)"]
        lines += ["", f"![calibration of {case}](cases/{case}-calibration.png)"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--factor", type=int, default=8)
    parser.add_argument("--steps", type=int, help="of training; by default the library's rule")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    kept = given.out / "cases"
    kept.mkdir(parents=True, exist_ok=True)
    for case in given.cases:
        run_case(given.root, case, given.factor, given.steps, kept)
        there = {name: kept / f"{name}.json" for name in CASES if (kept / f"{name}.json").exists()}
        found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in there.items()}
        (given.out / "results.md").write_text(results(found), encoding="utf-8")


if __name__ == "__main__":
    main()
