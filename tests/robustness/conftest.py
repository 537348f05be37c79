"""Inputs that both harnesses copy from."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def inputs_at(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The option that says where they are: the first to need them makes them."""
    return f"--inputs={tmp_path_factory.mktemp('robustness') / 'inputs'}"
