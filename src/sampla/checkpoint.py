"""Tensors and JSON in one safetensors file, written whole or not at all; nothing is ever unpickled."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "sampla-1"


def save(path: str | Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and JSON facts to ``path``, replacing it only once all is on the disk.

    Raises:
        OSError: if it cannot be written (no such folder, no permission, disk full); the old file is as it was.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    contiguous = {name: _owned(tensor.detach().cpu().contiguous()) for name, tensor in tensors.items()}
    try:
        save_file(contiguous, partial, {"format": FORMAT, "facts": json.dumps(facts)})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"could not write {path} ({sum(t.nbytes for t in contiguous.values()):,} bytes): {error}. Check that the "
            "folder exists, that you may write there, and that the disk has room."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _owned(tensor: Tensor) -> Tensor:
    """A copy if the tensor is a part of another one: the format refuses tensors that share memory."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``save`` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or another program's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a file saved by sampla, found none at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or not a safetensors file ({error}): it may have been cut short; save it again."
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"expected a file of format {FORMAT!r}, got {metadata.get('format')!r} in {path}: it was "
            "written by another program or another version of sampla."
        )
    return tensors, json.loads(metadata["facts"])
