"""The entry of the command line: says what to install where the extra is missing."""

import sys
from importlib.util import find_spec

_NEEDED = ("typer", "matplotlib", "jinja2")


def app() -> None:
    """Run `sampla`."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        sys.exit(f"sampla's commands need {', '.join(missing)}: pip install 'sampla[apps]'")
    from sampla.apps.commands import app as commands  # only now: it imports them

    commands()


if __name__ == "__main__":
    app()
