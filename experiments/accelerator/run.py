"""One stage after the other, as long as each can end in time; what is found is written before the next begins."""

import shutil
import traceback
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from experiments.accelerator.stage import DONE, Place, Stage, assumed, estimate, floored
from experiments.common.devices import device_name
from experiments.common.process import Case
from experiments.common.store import Store

RESULTS, LINES, ARCHIVE = "results.json", "lines.txt", "results.zip"
_RESERVE = 5.0
"""Seconds kept for writing what was found."""
_MOST_BYTES = 16 * 2**20
"""Of a file that is brought back."""
_WEIGHTS = "*.safetensors"

Runner = Callable[..., Case]
"""As ``experiments.common.process.apart``: function, case, threads, seconds -> what it found, or "failed"."""


def opened(place: Place) -> Store:
    """The store of all stages."""
    settings = {"device": place.device.split(":")[0], "name": device_name(place.device), "tiny": place.tiny}
    return Store(place.out / RESULTS, settings, place.cache)


def run(
    stages: Sequence[Stage], place: Place, budget: float, start: float, runner: Runner, threads: int,
    back: Path | None = None,
) -> Store:  # fmt: skip
    """All stages that are not done, may run here and can end in time, in their order.

    Args:
        stages: most valuable first.
        place: where they run.
        budget: seconds.
        start: where they count from, of ``perf_counter``.
        runner: runs a stage.
        threads: of torch.
        back: folder in which everything that is to be brought back is put together after each stage; None: nowhere.
    """
    store = opened(place)
    place.out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        known = store.rows.get(stage.name)
        if known is not None and DONE in known:
            _say(place, start, f"{stage.name}: done before. {known[DONE]}")
            continue
        left = budget - (perf_counter() - start) - _RESERVE
        needed = estimate(stage.cost(place), rates(store, place), place.device)
        reason = stage.missing(place)
        if not reason and needed > left:
            reason = f"takes about {needed:.0f} s, and {max(left, 0):.0f} s are left"
        if reason:
            store.put(stage.name, {"skipped": reason}, ours=False)
            _say(place, start, f"{stage.name}: not begun, {reason}")
        else:
            begun = perf_counter()
            case = replace(place, seconds=left).case() | stage.more
            found = runner(stage.run, case, threads, seconds=left)
            spent = {"seconds": perf_counter() - begun, "expected": needed}
            store.put(stage.name, found | spent)
            said = found.get(DONE) or f"FAILED, {found['failed']}"
            _say(place, start, f"{stage.name}: {said} ({spent['seconds']:.0f} s, {needed:.0f} expected)")
        if back is not None:
            bring(place.out, back)
    return store


def rates(store: Store, place: Place) -> dict[str, float]:
    """FLOP/s of every kind of work: as a finished stage measured it, the last one first; else as assumed."""
    found = assumed(place.device)
    for row in store.rows.values():
        found |= floored(row.get("rates", {}))
    return found


def bring(out: Path, back: Path) -> None:
    """The lines and the weights as they are, all else that is small in one archive: few files, none of them large."""
    back.mkdir(parents=True, exist_ok=True)
    whole = [path for path in (out / LINES, *sorted(out.glob(_WEIGHTS))) if path.is_file()]
    small = [p for p in sorted(out.iterdir()) if p.is_file() and p not in whole and p.suffix not in (".zip", ".part")]
    for path in whole:
        if path.stat().st_size <= _MOST_BYTES and not _same(path, back / path.name):
            shutil.copyfile(path, back / path.name)
    part, room = back / f"{ARCHIVE}.part", _MOST_BYTES
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(small, key=lambda p: p.stat().st_size):
            room -= path.stat().st_size
            if room > 0:
                archive.write(path, path.name)
    part.replace(back / ARCHIVE)


def _same(path: Path, copy: Path) -> bool:
    return copy.is_file() and (copy.stat().st_size, copy.stat().st_mtime) >= (path.stat().st_size, path.stat().st_mtime)


def _say(place: Place, start: float, text: str) -> None:
    line = f"{perf_counter() - start:5.0f} s  {text}"
    print(line, flush=True)
    with (place.out / LINES).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def here(function: Callable[[Case], Case], case: Case, threads: int, seconds: float | None = None) -> Case:  # noqa: ARG001
    """A runner that stays in this process, which saves a start of torch for each stage: for tiny runs."""
    try:
        return function(case)
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
