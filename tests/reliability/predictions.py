"""Several threads ask one posterior at the same time."""

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from helpers import assert_unchanged, laplace, snapshot
from reliability.interrupts import BATCHES, X, network

THREADS = 4


def trials(count: int, seed: int, folder: Path, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:  # noqa: ARG001
    """So many predictions in all, on four threads: each must be to the bit what one thread gets."""
    model = network()
    la, verdicts, lock = laplace(model, prior="isotropic", seed=seed).fit(BATCHES), Counter[str](), threading.Lock()
    expected, before = la.predict(X).std, snapshot(model)

    def ask() -> None:
        for _ in range(count // THREADS):
            try:
                verdict = "right" if torch.equal(la.predict(X).std, expected) else "wrong"
            except Exception as error:
                verdict = "refused"
                say(f"{type(error).__name__}: {error}")
            with lock:
                verdicts[verdict] += 1

    threads = [threading.Thread(target=ask) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_unchanged(model, before)
    return {"tried": sum(verdicts.values()), "right": verdicts["right"], "refused": verdicts["refused"],
            "wrong": verdicts["wrong"]}  # fmt: skip
