"""Results kept as they come, so that a run that was cut off goes on where it stopped."""

import hashlib
import json
from pathlib import Path
from typing import Any

import sampla


class Kept:
    """results.json: the settings of the run, and what every method gave.

    Args:
        path: of the file.
        settings: of this run.

    Raises:
        SystemExit: if the file belongs to a run with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path, self.settings = path, json.loads(json.dumps(settings))
        self.prepared: dict[str, Any] | None = None
        self.methods: dict[str, dict[str, Any]] = {}
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["settings"] != self.settings:
                raise SystemExit(
                    f"expected a results.json of a run with the same settings in {path.parent}, got another one: "
                    "give another --out, or remove the file."
                )
            self.prepared, self.methods = found["prepared"], found["methods"]

    def keep_prepared(self, found: dict[str, Any]) -> None:
        """What is known of images and networks; what was fitted to other ones is forgotten."""
        if self.prepared is None or self.prepared["fingerprint"] != found["fingerprint"]:
            self.methods = {}
        self.prepared = found
        self._write()

    def keep(self, key: str, found: dict[str, Any]) -> None:
        """What a method gave."""
        self.methods[key] = found
        self._write()

    def forget(self, key: str) -> None:
        """So that it runs again."""
        self.methods.pop(key, None)

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        everything = {"settings": self.settings, "prepared": self.prepared, "methods": self.methods}
        part.write_text(json.dumps(everything, separators=(",", ":")) + "\n", encoding="utf-8")
        part.replace(self._path)


def fingerprint() -> str:
    """A hash of the library's source."""
    root, total = Path(sampla.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return total.hexdigest()[:12]
