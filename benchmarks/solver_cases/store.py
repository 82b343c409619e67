"""Results kept as they come, so that an interrupted run goes on where it stopped."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sampla


def source_fingerprint() -> str:
    """A hash of the library's source: a row measured with another source is measured again."""
    root = Path(sampla.__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return total.hexdigest()[:12]


class Store:
    """A JSON file of named results, written after each one.

    Args:
        path: of the file.
        settings: what the results depend on beside the source; results of other settings are not used.
        reuse: also use results of another source of the library (the table then says so).
    """

    def __init__(self, path: Path, settings: dict[str, Any], reuse: bool = False) -> None:
        self._path, self._source, self._reuse = path, source_fingerprint(), reuse
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        usable = kept.get("settings") == settings
        self._entries: dict[str, Any] = kept["entries"] if usable else {}
        self._settings = settings

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """The kept result of this name, or a new one, which must be plain JSON."""
        found = self._entries.get(key)
        if found is None or not (self._reuse or found["source"] == self._source):
            found = {"source": self._source, "result": json.loads(json.dumps(compute()))}
            self._entries[key] = found
            self._write()
        return found["result"]

    def all(self) -> dict[str, Any]:
        """Everything of the present source (or, with reuse, of any): name -> result."""
        return {
            key: entry["result"]
            for key, entry in self._entries.items()
            if self._reuse or entry["source"] == self._source
        }

    def add_seconds(self, part: str, seconds: float) -> None:
        """Count time spent on a part, over all runs that went into the results."""
        entry = self._entries.get(f"seconds/{part}", {"source": self._source, "result": 0.0})
        known = entry["result"] if self._reuse or entry["source"] == self._source else 0.0
        self._entries[f"seconds/{part}"] = {"source": self._source, "result": known + seconds}
        self._write()

    @property
    def sources(self) -> dict[str, list[str]]:
        """The states of the source that the results of every part stem from."""
        found: dict[str, list[str]] = {}
        for key, entry in self._entries.items():
            part = "spectra" if key.startswith("solved/") else key.split("/")[0]
            known = found.setdefault(part, [])
            if (self._reuse or entry["source"] == self._source) and entry["source"] not in known:
                known.append(entry["source"])
        return {part: known for part, known in found.items() if known and part != "seconds"}

    @property
    def source(self) -> str:
        """The hash of the library's source."""
        return self._source

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps({"settings": self._settings, "entries": self._entries}), encoding="utf-8")
        part.replace(self._path)
