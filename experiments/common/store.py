"""Results as they come: one JSON file a run, a line for each row, and what was predicted in npz files beside it.

A run that was cut off goes on where it stopped. Scores are computed from the predictions, so that a new measure (a new
column) needs no new fit; predictions are large and stay in the cache, which no repository holds.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import sampla
from experiments.common.facts import environment

Arrays = Mapping[str, np.ndarray]
Measures = Mapping[str, Callable[[Arrays], Any]]
"""Name of a measure -> how it is computed from a row's predictions; plain JSON."""


class Row(dict[str, Any]):
    """One result: plain JSON by name, empty where nothing applies.

    Args:
        values: what was found.
        source: the state of the library's source that it depends on; None: it does not depend on the library.
    """

    def __init__(self, values: Any, source: str | None = None) -> None:
        super().__init__(json.loads(json.dumps(values, default=float)) or {})
        self.source = source

    @property
    def failed(self) -> bool:
        """Whether the row says why there is no result."""
        return "failed" in self


class Store:
    """A JSON file of rows, written after each one, and a folder of predictions.

    Args:
        path: of the JSON file.
        settings: what all rows depend on, plain JSON.
        cache: folder for predictions; None: ``cache/NAME`` beside the file.
        anew: compute rows again that depend on the library and come from another state of its source.

    Raises:
        SystemExit: if the file belongs to a run with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], cache: Path | None = None, anew: bool = False) -> None:
        self.path, self.settings, self._anew = path, json.loads(json.dumps(settings)), anew
        self.cache = cache or path.parent / "cache" / path.stem
        self.source, self.environment = fingerprint(), environment()
        self.rows: dict[str, Row] = {}
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["settings"] != self.settings:
                raise SystemExit(
                    f"expected results of a run with the same settings in {path}, got another one: give another --out, "
                    "or remove the file."
                )
            self.environment = found["environment"]
            self.rows = {key: Row(row["values"], row.get("source")) for key, row in found["rows"].items()}

    @classmethod
    def opened(cls, path: Path) -> "Store":
        """The store of a file, whatever its settings: for reading."""
        return cls(path, json.loads(path.read_text(encoding="utf-8"))["settings"])

    def once(self, key: str, compute: Callable[[], Any], ours: bool = True, measures: Measures | None = None) -> Row:
        """The row of this name, or a new one.

        Args:
            key: of the row, parts joined by "/".
            compute: its values; what it predicts goes to ``predictions(key)``.
            ours: whether the row depends on the library.
            measures: scores of the predictions; those that the row lacks are computed from the kept predictions.
        """
        row = self.put(key, compute(), ours) if self.lacks(key, ours) else self.rows[key]
        return self.scored(key, measures) if measures else row

    def lacks(self, key: str, ours: bool = True) -> bool:
        """Whether there is no row of this name, or one of another state of the library where such are computed anew."""
        row = self.rows.get(key)
        return row is None or (ours and self._anew and row.source != self.source)

    def put(self, key: str, values: Any, ours: bool = True) -> Row:
        """Keep a row."""
        self.rows[key], self.environment = Row(values, self.source if ours else None), environment()
        self._write()
        return self.rows[key]

    def scored(self, key: str, measures: Measures) -> Row:
        """The row with every measure, the missing ones computed from its predictions where these are kept."""
        row, path = self.rows[key], self.predictions(key)
        missing = [name for name in measures if name not in row]
        if missing and not row.failed and path.is_file():
            with np.load(path) as arrays:
                row |= Row({name: measures[name](arrays) for name in missing})
            self._write()
        return row

    def under(self, prefix: str) -> dict[str, Row]:
        """Rest of the key -> row, of the keys that begin so; without rows that say that nothing applies."""
        return {key.removeprefix(prefix): row for key, row in self.rows.items() if key.startswith(prefix) and row}

    def predictions(self, key: str) -> Path:
        """The file of what was predicted for a row."""
        return self.cache / "predictions" / f"{key}.npz"

    def _write(self) -> None:
        head = json.dumps({"settings": self.settings, "environment": self.environment})
        rows = ",\n".join(f"{json.dumps(key)}: {_line(row)}" for key, row in self.rows.items())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(f'{head[:-1]}, "rows": {{\n{rows}\n}}}}\n', encoding="utf-8")
        part.replace(self.path)


def _line(row: Row) -> str:
    source = {} if row.source is None else {"source": row.source}
    return json.dumps(source | {"values": row}, separators=(",", ":"))


def save_arrays(path: Path, **arrays: Any) -> None:
    """An npz file of arrays or of tensors on the CPU, there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, **arrays)
    part.replace(path)


def fingerprint() -> str:
    """A hash of the library's source."""
    root, total = Path(sampla.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return total.hexdigest()[:12]
