"""The commands: `sampla demo`, `sampla ct`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    help="Bayesian error bars for trained networks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


_ENTRIES = (
    "sinogram (views, bins) or counts and open_beam, image_shape, pixel, angles (radians) or angles_deg, num_bins, "
    "bin_width, for a fan beam source_origin and source_detector, and perhaps centre, mask, reference, region, unit"
)


class DataSet(StrEnum):
    """What the demo can be run on."""

    DIGITS = "digits"
    MNIST = "mnist"


@app.callback()
def main() -> None:
    """Bayesian error bars for trained networks."""


@app.command()
def demo(
    data: Annotated[DataSet, typer.Option(help="digits ships with scikit-learn; mnist needs --root.")] = DataSet.DIGITS,
    root: Annotated[Path | None, typer.Option(help="Folder that holds mnist/ with the four idx files.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for all that is written.")] = Path("sampla-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the training and all noise.")] = 0,
    samples: Annotated[int, typer.Option(min=2, help="K, the number of posterior samples.")] = 16,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars, no output but errors.")] = False,
    epochs: Annotated[int | None, typer.Option(hidden=True, min=1)] = None,
    images: Annotated[int | None, typer.Option(hidden=True, min=20)] = None,
) -> None:
    """Train a small network, give it error bars, and compare the two on images neither has seen."""
    from sampla.apps.demo import Settings, load_data, run_demo  # seconds of imports, needed only here

    settings = Settings(str(data), root, out, seed, samples, quiet, epochs, images, images)
    try:
        loaded = load_data(settings)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--root") from error
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"could not make the folder {out}: {error}", param_hint="--out") from error
    run_demo(settings, loaded, say=(lambda _: None) if quiet else typer.echo)


@app.command()
def ct(
    sinogram: Annotated[Path | None, typer.Argument(help=f"npz with {_ENTRIES}; or a TIFF.")] = None,
    geometry: Annotated[Path | None, typer.Option(help="JSON with those entries of the geometry, for a TIFF.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="A phantom seen from few directions; needs no data.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for all that is written.")] = Path("sampla-ct"),
    seed: Annotated[int, typer.Option(min=0, help="Of the network and all noise.")] = 0,
    samples: Annotated[
        int | None, typer.Option(min=2, help="K, the number of posterior samples; 128, and 16 of a network.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars, no output but errors.")] = False,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, mps.")] = "cpu",
    method: Annotated[
        Literal["network", "variational"],
        typer.Option(help="Total variation as the prior; or a deep image prior, linearised."),
    ] = "variational",
    page: Annotated[int | None, typer.Option("--slice", min=0, help="Of a stack; the middle one unless given.")] = None,
    centre: Annotated[
        str | None, typer.Option(help="Bins by which the axis is seen beside the detector's middle, or auto.")
    ] = None,
    bad_bins: Annotated[str, typer.Option(help="Detector bins to leave out, such as 3,17; from 0.")] = "",
    bad_views: Annotated[str, typer.Option(help="Views to leave out, likewise.")] = "",
    roi: Annotated[str, typer.Option(help="Region whose mean is wanted: rows and columns, such as 10:20,5:30.")] = "",
    unit: Annotated[str, typer.Option(help="Of the geometry's lengths, such as mm, for the report.")] = "",
    save: Annotated[Path | None, typer.Option(help="Folder for the fit itself, which its class loads.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Folder for a fit to go on from if it is stopped.")] = None,
    steps: Annotated[int | None, typer.Option(hidden=True, min=1)] = None,
    pixels: Annotated[int | None, typer.Option(hidden=True, min=8)] = None,
) -> None:
    """Reconstruct an image from a sinogram, with a standard deviation for every pixel and joint samples."""
    from sampla.apps.ct import Settings, adjusted, demo_scan, read_scan, run_ct  # seconds of imports, needed only here
    from sampla.core.checks import device_here

    if demo == (sinogram is not None):
        raise typer.BadParameter("expected a sinogram or --demo, and not both.", param_hint="SINOGRAM")
    say = (lambda _: None) if quiet else typer.echo
    try:
        device_here(device, "--device")
        if sinogram is None:
            scan = demo_scan(seed=seed) if pixels is None else demo_scan(pixels, seed=seed)
        else:
            scan = read_scan(sinogram, geometry, page)
        scan = adjusted(scan, centre, _numbers(bad_bins), _numbers(bad_views), roi, unit)
        out.mkdir(parents=True, exist_ok=True)
        run_ct(Settings(out, seed, samples, quiet, steps, device, method, save, checkpoint), scan, say)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise typer.BadParameter(str(error), param_hint="SINOGRAM") from error


def _numbers(text: str) -> list[int]:
    """Numbers between commas.

    Raises:
        ValueError: if they are none.
    """
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ValueError(f"expected whole numbers between commas, got {text!r}.") from error
