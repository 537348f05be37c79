"""``training.json``, written by several processes side by side, and ``TRAINING.md`` made of it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import write_report

from lifedeploy.files import write_json


@dataclass(frozen=True)
class Ledger:
    """The results at one image size."""

    results: Path
    lock: Path
    key: str  # e.g. 224px

    def run(self) -> dict[str, Any]:
        """What is there now."""
        return self._entry(self._read())

    def update(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the entry, as it is by now, and write it down with its report."""
        with self.lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            data = self._read()
            change(self._entry(data))
            write_json(self.results, data)
            write_report(self.results, self.results.with_name("TRAINING.md"))

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.results.read_text()) if self.results.is_file() else {"runs": {}}
        return found

    def _entry(self, data: dict[str, Any]) -> dict[str, Any]:
        entry: dict[str, Any] = data["runs"].setdefault(self.key, {"cells": {}})
        return entry
