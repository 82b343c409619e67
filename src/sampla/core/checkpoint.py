"""Tensors and JSON in one safetensors file, written whole or not at all and checked as a whole; nothing is unpickled.

A SHA-256 over every tensor (its name, type, shape and bytes) and the facts lies in the file's metadata. A file in which
a single bit has changed is refused instead of read with altered numbers.
"""

import hashlib
import json
import os
import socket
import stat
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sampla.core.processes import runs

FORMAT = "sampla-2"
_UNCHECKED = "sampla-1"
"""The format before there was a checksum: still read, as it is."""
_TRIES = 100
"""Readings of a file that is replaced meanwhile."""


def save(path: str | Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and JSON facts to ``path``, replacing it only once all is on the disk.

    A symbolic link stays one: the file that it points to is replaced. Permissions follow the umask. What a writer that
    was killed has left beside the file is removed.

    Raises:
        TypeError: for facts that JSON does not know (see ``plain``); nothing is written then.
        OSError: if it cannot be written (no such folder, no permission, disk full); the old file is as it was.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name}.{_writer()}.partial")
    contiguous = {name: _owned(tensor.detach().cpu().contiguous()) for name, tensor in tensors.items()}
    text = json.dumps(plain(facts, "facts"))
    try:
        _remove_orphans(target)
        mode = _usual_mode(partial)
        save_file(contiguous, partial, {"format": FORMAT, "facts": text, "sha256": digest(contiguous, text)})
        partial.chmod(mode)
        _on_disk(partial)
        os.replace(partial, target)
        _on_disk(target.parent)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"could not write {path} ({sum(t.nbytes for t in contiguous.values()):,} bytes): {error}. Check that the "
            "folder exists, that you may write there, and that the disk has room."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def plain(value: Any, where: str) -> Any:
    """A value as JSON knows it: numbers of NumPy and torch become Python's, arrays and tensors lists.

    Args:
        value: nested mappings and sequences of numbers, text, booleans and None.
        where: what it is, for the message.

    Raises:
        TypeError: naming the first entry that is none of these.
    """
    if isinstance(value, Mapping):
        return {str(name): plain(entry, f"{where}[{name!r}]") for name, entry in value.items()}
    if isinstance(value, (np.generic, np.ndarray, Tensor)) and not isinstance(value, (float, str)):
        return plain(value.tolist(), where)
    if isinstance(value, (list, tuple)):
        return [plain(entry, f"{where}[{number}]") for number, entry in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"expected numbers, text, lists and mappings of them in {where}, got {type(value).__name__}.")


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``save`` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, even by a bit, or another program's.
        OSError: if it is replaced again and again while it is read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a file saved by sampla, found none at {path}")
    for _ in range(_TRIES):
        seen = _version(path)
        try:
            return _read(path)
        except ValueError:  # safetensors opens a path twice: header and numbers may be those of two files
            if _version(path) == seen:
                raise
    raise OSError(f"{path} was replaced {_TRIES} times while it was being read: load it when it is no longer written.")


def _version(path: Path) -> tuple[int, int, int]:
    """What differs between a file and the one that replaces it."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except Exception as error:  # a damaged header fails in whatever reads it first: UTF-8, JSON, types, shapes
        raise ValueError(
            f"{path} is damaged or not a safetensors file ({error}): it may have been cut short; save it again."
        ) from error
    if metadata.get("format") not in (FORMAT, _UNCHECKED) or "facts" not in metadata:
        raise ValueError(
            f"expected a file of format {FORMAT!r}, got {metadata.get('format')!r} in {path}: it was "
            "written by another program or another version of sampla."
        )
    text = metadata["facts"]
    if metadata["format"] == FORMAT and metadata.get("sha256") != digest(tensors, text):
        raise ValueError(
            f"{path} is damaged: its numbers are not those that were saved (the checksum differs). Save it again, or "
            "take a copy."
        )
    return tensors, json.loads(text)


def digest(tensors: Mapping[str, Tensor], facts: str = "") -> str:
    """SHA-256 of all names, types, shapes and bytes, in the order of the names, and of the facts; hexadecimal."""
    total = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        total.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            total.update(tensor.cpu().resolve_conj().contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def said_exactly(values: Mapping[str, Any]) -> str:
    """Attributes in the order of their names as text, tensors by what ``digest`` says, as their own would leave out."""

    def said(value: Any) -> Any:
        if isinstance(value, Tensor):
            return f"tensor {digest({'': value})}"
        if isinstance(value, Mapping) and any(isinstance(each, Tensor) for each in value.values()):
            return {name: said(each) for name, each in value.items()}
        return value

    return repr(sorted((name, said(value)) for name, value in values.items()))


def _owned(tensor: Tensor) -> Tensor:
    """A copy if the tensor is a part of another one: the format refuses tensors that share memory."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _writer() -> str:
    """Who writes: no other thread, process or machine on the same folder has this name."""
    return f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"


def _remove_orphans(target: Path) -> None:
    """Partial files of this machine's processes that are no more, for the same target."""
    host = socket.gethostname()
    for left in target.parent.glob(f".{target.name}.{host}.*.partial"):
        process = left.name.removesuffix(".partial").split(".")[-2]
        if process.isdecimal() and not runs(int(process)):
            left.unlink(missing_ok=True)


def _usual_mode(path: Path) -> int:
    """Permissions that the umask gives a new file: asked by making one, because setting the umask is process-wide."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
    return stat.S_IMODE(path.stat().st_mode)


def _on_disk(path: Path) -> None:
    """Have the system write out a file, or a folder's entries where the file system knows such a thing."""
    if not path.is_dir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        return
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
