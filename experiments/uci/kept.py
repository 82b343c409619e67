"""Results kept as they come, so that a run that was cut off goes on where it stopped."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sampla


class Kept:
    """A JSON file of named results, each with the state of the library's source that it came from.

    Args:
        path: of the file.
        anew: compute results of the library again that came from another source.
    """

    def __init__(self, path: Path, anew: bool = False) -> None:
        self._path, self._anew, self.source = path, anew, _fingerprint()
        self.entries: dict[str, dict[str, Any]] = {}
        if path.is_file():
            self.entries = json.loads(path.read_text(encoding="utf-8"))

    def once(self, key: str, compute: Callable[[], dict[str, Any]], ours: bool) -> dict[str, Any]:
        """The kept result, or a new one; ``ours`` says whether it depends on the library."""
        found = self.entries.get(key)
        if found is None or (ours and self._anew and found["source"] != self.source):
            found = {"result": compute()} | ({"source": self.source} if ours else {})
            self.entries[key] = found
            self._write()
        result: dict[str, Any] = found["result"]
        return result

    def results(self, prefix: str) -> dict[str, dict[str, Any]]:
        """Rest of the key -> result, of the keys that begin so."""
        return {key.removeprefix(prefix): e["result"] for key, e in self.entries.items() if key.startswith(prefix)}

    def sources(self) -> set[str]:
        """States of the source that the results came from."""
        return {entry["source"] for entry in self.entries.values() if "source" in entry}

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self.entries, indent=0, sort_keys=True) + "\n", encoding="utf-8")
        part.replace(self._path)


def _fingerprint() -> str:
    """A hash of the library's source."""
    root, total = Path(sampla.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return total.hexdigest()[:12]
