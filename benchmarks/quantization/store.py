"""results.json: what the scripts of this folder found, under its own key and the processor that it was found on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lifedeploy.files import now, write_json
from lifedeploy.machine import describe, identity

PATH = Path(__file__).parent / "results.json"


def read(key: str) -> dict[str, dict[str, Any]]:
    """Processor → what was found there under ``key``, with machine, date and command; none: nothing yet."""
    found: dict[str, dict[str, Any]] = _all().get(key, {})
    return found


def here(key: str) -> dict[str, Any]:
    """What was found under ``key`` on a processor like this one; empty: nothing yet."""
    found: dict[str, Any] = read(key).get(identity(), {}).get("found", {})
    return found


def keep(key: str, found: Any, command: str) -> None:
    """Replace what is under ``key`` for this processor."""
    entry = {"found": found, "machine": describe(), "date": now(), "command": command}
    write_json(PATH, _all() | {key: read(key) | {identity(): entry}})


def _all() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8")) if PATH.is_file() else {}
    return found
