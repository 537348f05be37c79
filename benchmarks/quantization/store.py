"""results.json: what the scripts of this folder found, each under its own key, with machine and date."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lifedeploy.files import now, write_json
from lifedeploy.machine import describe

PATH = Path(__file__).parent / "results.json"


def read() -> dict[str, Any]:
    """Everything."""
    return json.loads(PATH.read_text(encoding="utf-8")) if PATH.is_file() else {}


def keep(key: str, found: Any, command: str) -> None:
    """Replace what is under ``key``."""
    entry = {"found": found, "machine": describe(), "date": now(), "command": command}
    write_json(PATH, read() | {key: entry})
