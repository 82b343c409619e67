"""What the page of reliability is filled with; the words are in reliability.md.j2."""

from typing import Any

from experiments.common.page import grid, provenance, states
from experiments.common.store import Store

WHAT = {
    "kills": "fits killed (SIGKILL), then gone on from their folder",
    "workers": "one of several workers killed, then started again by torchrun's agent",
    "flips": "bits flipped in files",
    "interrupts": "interrupts (SIGINT)",
    "predictions": "predictions on four threads",
    "certificates": "stated errors of small fits",
    "reduced": "stated errors of small fits, EM in bfloat16",
}
"""Name of a part -> what it tries; a part that has not been run has no line."""


def page(store: Store) -> dict[str, Any]:
    """What the template is filled with."""
    rows = {name: store.rows[name] for name in WHAT if name in store.rows}
    lines = [
        [WHAT[name], *(f"{row.get(n, 0):,}" for n in ("tried", "right", "refused", "wrong")), f"{row['seconds']:.0f} s"]
        for name, row in rows.items()
    ]
    machine = f", {store.environment['machine']}"
    head = ["what", "tried", "right", "refused", "wrong in silence", "took"]
    return {
        "provenance": provenance(store, "reliability", "torch numpy", machine),
        "states": states(store), "counts": grid(head, lines), "rows": rows,
    }  # fmt: skip
