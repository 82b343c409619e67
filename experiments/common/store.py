"""Results as they come: one JSON file a run, a line for each row, and what was predicted in npz files beside it.

A run that was cut off goes on where it stopped. Scores are computed from the predictions, so that a new measure (a new
column) needs no new fit; predictions are large and stay in the cache, which no repository holds.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sampla
from experiments.common.facts import environment

Arrays = Mapping[str, np.ndarray]
Measures = Mapping[str, Callable[[Arrays], Any]]
"""Name of a measure -> how it is computed from a row's predictions; plain JSON."""


@dataclass(frozen=True)
class Row:
    """One result: plain JSON by name, and the state of the library's source that it depends on."""

    key: str
    """Parts joined by "/"."""
    values: dict[str, Any]
    source: str | None = None
    """None: the result does not depend on the library."""

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str, default: Any = None) -> Any:
        """A value, or the default where the row has none of this name."""
        return self.values.get(name, default)

    @property
    def failed(self) -> bool:
        """Whether the row says why there is no result."""
        return "failed" in self.values


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
        self.source = fingerprint()
        self.environment: dict[str, Any] = {}
        self.rows: dict[str, Row] = {}
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["settings"] != self.settings:
                raise SystemExit(
                    f"expected results of a run with the same settings in {path}, got another one: give another --out, "
                    "or remove the file."
                )
            self.environment = found["environment"]
            self.rows = {key: Row(key, row["values"], row.get("source")) for key, row in found["rows"].items()}

    @classmethod
    def opened(cls, path: Path) -> "Store":
        """The store of a file, whatever its settings: for reading."""
        return cls(path, json.loads(path.read_text(encoding="utf-8"))["settings"])

    def once(self, key: str, compute: Callable[[], Any], ours: bool = True, measures: Measures | None = None) -> Row:
        """The row of this name, or a new one.

        Args:
            key: of the row.
            compute: its values; what it predicts goes to ``predictions(key)``.
            ours: whether the row depends on the library.
            measures: scores of the predictions; those that the row lacks are computed from the kept predictions.
        """
        row = self.rows.get(key)
        if row is None or (ours and self._anew and row.source != self.source):
            row = self.put(key, compute(), ours)
        return self.scored(key, measures) if measures else row

    def put(self, key: str, values: Any, ours: bool = True) -> Row:
        """Keep a row."""
        self.rows[key] = row = Row(key, json.loads(json.dumps(values, default=float)), self.source if ours else None)
        self.environment = environment()
        self._write()
        return row

    def scored(self, key: str, measures: Measures) -> Row:
        """The row with every measure, the missing ones computed from its predictions where these are kept."""
        row, path = self.rows[key], self.predictions(key)
        missing = {name: measure for name, measure in measures.items() if name not in row}
        if row.failed or not missing or not path.is_file():
            return row
        with np.load(path) as arrays:
            found = {name: measure(arrays) for name, measure in missing.items()}
        self.rows[key] = row = Row(key, row.values | json.loads(json.dumps(found, default=float)), row.source)
        self._write()
        return row

    def forget(self, key: str) -> None:
        """So that it is computed again."""
        self.rows.pop(key, None)

    def under(self, prefix: str) -> dict[str, Row]:
        """Rest of the key -> row, of the keys that begin so; without rows that say that nothing applies."""
        found = {key: row for key, row in self.rows.items() if key.startswith(prefix) and row.values is not None}
        return {key.removeprefix(prefix): row for key, row in found.items()}

    @property
    def sources(self) -> list[str]:
        """States of the library's source that the rows come from."""
        return list(dict.fromkeys(row.source for row in self.rows.values() if row.source is not None))

    def predictions(self, key: str) -> Path:
        """The file of what was predicted for a row."""
        return self.cache / "predictions" / f"{key}.npz"

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps({"settings": self.settings, "environment": self.environment})
        rows = ",\n".join(f"{json.dumps(key)}: {_line(row)}" for key, row in self.rows.items())
        part = self.path.with_suffix(".part")
        part.write_text(f'{head[:-1]}, "rows": {{\n{rows}\n}}}}\n', encoding="utf-8")
        part.replace(self.path)


def _line(row: Row) -> str:
    source = {} if row.source is None else {"source": row.source}
    return json.dumps(source | {"values": row.values}, separators=(",", ":"))


def save_arrays(path: Path, arrays: Arrays) -> None:
    """An npz file, there as a whole or not at all."""
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
