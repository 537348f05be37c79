"""Weights against their graph, at image sizes of every shape: nothing is lost on the way through the files."""

from __future__ import annotations

from functools import partial

import pytest

from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.model import backbones, checkpoint
from lifedeploy.workflows.verify import VerifyRequest, verify
from tests.model.conftest import described, emptied

DEPTH = 3  # with one drop: the deeper layers are the same again
# Rows and columns of patches: as many as usual in another shape (which is where the number alone misleads), wider than
# high and higher than wide. Weights alone come back at these sizes and at any other in tests/model/test_positions.py.
GRIDS = ((2, 8), (3, 7), (9, 4))
FAMILIES = ("plain", "distilled", "registers", "deit3", "dinov2", "mean-pooled")
# Each family at two of them, each grid in four families.
CASES = [(family, grid) for number, family in enumerate(FAMILIES) for grid in GRIDS if grid != GRIDS[number % 3]]


@pytest.mark.parametrize(
    ("family", "grid"), [pytest.param(*case, id=f"{case[0]}-{case[1][0]}x{case[1][1]}") for case in CASES]
)
def test_weights_and_graph_compute_the_same_at_every_size(tmp_path, monkeypatch, family, grid):
    patch = 14 if family == "dinov2" else 8
    model, spec = described(family, (grid[0] * patch, grid[1] * patch), depth=DEPTH)
    checkpoint.save(tmp_path / "weights.safetensors", model, spec)
    exporter.save(exporter.trace(model, spec, GraphOptions()), tmp_path / "model.onnx", metadata={})
    monkeypatch.setattr(backbones, "create", partial(emptied, depth=DEPTH))
    found = verify(VerifyRequest(tmp_path / "weights.safetensors", tmp_path / "model.onnx")).parity
    assert found.passed
    assert 0 < found.max_rel < 5e-6
