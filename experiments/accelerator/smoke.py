"""The tests that take a device, on this one: fits and all that can be asked of them, against the same on the CPU."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

from experiments.accelerator.stage import DONE, Cost, Place, Stage
from experiments.common.page import ROOT
from experiments.common.process import Case

_TESTS = "tests/test_second_device.py"
_FEW = "test_logistic_regression and exact"
_LOG = "smoke.txt"
_WORKERS = 8
_LIMIT = 150.0


def smoke(case: Case) -> Case:
    """Passed, failed, and the end of pytest's output."""
    place = Place.of(case)
    call = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore", "--tb=short", _TESTS]
    if find_spec("xdist") is not None and not place.tiny:
        call += ["-n", str(min(_WORKERS, os.cpu_count() or 1))]
    call += ["-k", _FEW] if place.tiny else []
    environment = os.environ | {"SAMPLA_SECOND_DEVICE": place.device}
    with (place.out / _LOG).open("w", encoding="utf-8") as log:
        limit = max(place.seconds - 5, 1) if place.tiny else min(_LIMIT, max(place.seconds - 5, 1))
        subprocess.run(call, cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=limit, check=False)
    text = (place.out / _LOG).read_text(encoding="utf-8")
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error|skipped)", text.splitlines()[-1])}
    failed = sorted(set(re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)))
    said = ", ".join(f"{count} {word}" for word, count in counts.items())
    said = said or f"no tests ran: {text.splitlines()[-1]}"
    return {"counts": counts, "failed tests": failed, DONE: f"{said}{': ' * bool(failed)}{', '.join(failed)[:300]}"}


def _cost(place: Place) -> Cost:
    return {"seconds": 5.0 if place.tiny else 60.0}


STAGES = (Stage("smoke", smoke, _cost, modules=("pytest",)),)
