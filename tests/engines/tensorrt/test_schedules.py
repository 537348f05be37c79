"""What ``tune`` measures on a GPU, as far as that can be seen without: it builds, attention fused, sorted once."""

from __future__ import annotations

import pytest

from lifedeploy.artifact import Artifact
from lifedeploy.engines.base import BuildJob, BuildOptions
from lifedeploy.engines.tensorrt.rtx import TensorRTRtx
from lifedeploy.exporters import forms
from lifedeploy.exporters.reschedule import Reschedulable
from lifedeploy.schedule import Schedule


@pytest.mark.parametrize(
    ("method", "sorts", "write"),
    [
        ("dense", 0, lambda graph, path: graph.shortened(9, path)),
        ("life", 1, lambda graph, path: graph.rescheduled(Schedule.from_counts(16, 6, (12, 7, 3), (2, 3, 5)), path)),
        ("life", 1, lambda graph, path: graph.rescheduled(Schedule.from_counts(16, 6, (16, 5), (1, 4)), path)),
    ],
)
def test_shortened_models_and_other_schedules_build_with_all_attention_fused(
    rtx, exported, tmp_path, method, sorts, write
):
    export = Artifact.read(next(exported.glob("*/model.json"))).sibling(method)
    write(Reschedulable(export.path, export.manifest.spec), tmp_path / "written.onnx")
    forms.prepare(tmp_path / "written.onnx", TensorRTRtx.form("fp16", BuildOptions()), tmp_path / "formed.onnx")
    job = BuildJob(source=export, graph=tmp_path / "formed.onnx", folder=tmp_path, stem="model", precision="fp16")
    fusion = TensorRTRtx.build(job).details.fusion
    assert (fusion.attention, fusion.topk) == (6, sorts)
