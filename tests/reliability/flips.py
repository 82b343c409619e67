"""One bit flipped in a file: it is refused, or what is read is what was written."""

import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import sampla
from reliability.fits import batches, door, network, same

_KIND = "gaussian"
FILES = ("posterior.safetensors", "em-state.safetensors", "noise.safetensors")


def trials(count: int, seed: int, folder: Path, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """So many flips, over a posterior and the two files of a checkpoint in turn."""
    choose, found = random.Random(seed), {"tried": 0, "right": 0, "refused": 0, "wrong": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sampla.ConvergenceWarning)
        sound = folder / "sound"
        whole = door(_KIND).fit(batches(_KIND), checkpoint=sound)
        whole.save(sound / FILES[0])
        for number in range(count):
            place, name = folder / str(number), FILES[number % len(FILES)]
            shutil.copytree(sound, place)
            flip(place / name, choose)
            verdict = judged(place, name, whole)
            found["tried"] += 1
            found[verdict] += 1
            if verdict == "wrong":
                say(f"flip {number} of {name}: {verdict}")
            shutil.rmtree(place)
    return found


def flip(path: Path, choose: random.Random) -> None:
    """Change one bit of a file, anywhere in it."""
    content = bytearray(path.read_bytes())
    content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
    path.write_bytes(content)


def judged(place: Path, name: str, whole: sampla.LinearisedLaplace) -> str:
    """ "refused", with a message; "right", where the fit or the posterior is the same to the bit; or "wrong"."""
    try:
        if name == FILES[0]:
            found = sampla.LinearisedLaplace.load(place / name, network(2))
            equal = all(torch.equal(found.samples_[each], sample) for each, sample in whole.samples_.items())
            equal = equal and found.report_.to_dict() == whole.report_.to_dict()
        else:
            equal = same(whole, door(_KIND).fit(batches(_KIND), checkpoint=place))
    except ValueError:
        return "refused"
    return "right" if equal else "wrong"
