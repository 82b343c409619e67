"""Whether another process of this machine still runs."""

import os
from pathlib import Path


def runs(process: int) -> bool:
    """Whether a process of that number runs; one that has ended and has not been waited for does not.

    Args:
        process: its number on this machine.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, and belongs to somebody else
        return True
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # no such files on this system
        return True
    return state not in "ZX"
