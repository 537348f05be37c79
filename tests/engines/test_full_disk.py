"""A build that cannot be written whole ends in an error that names the file."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from lifedeploy.artifact import Workspace
from lifedeploy.engines import registry
from lifedeploy.engines.base import BuildJob, EngineOptions
from lifedeploy.errors import EngineError, LifedeployError
from tests.conftest import full_disk


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_full_disk_is_noticed_by_whoever_writes(exported, tmp_path, engine):
    source = Workspace(exported).latest_export()
    with full_disk(64 * 1024), pytest.raises((OSError, LifedeployError)) as caught:
        registry.get(engine).build(
            BuildJob(source=source, graph=source.path, folder=tmp_path, stem="model", precision="fp32")
        )
    assert str(tmp_path / "model.") in str(caught.value)


def test_a_script_or_answers_of_another_kind_are_refused_by_the_fake_engine(exported, tmp_path):
    source = Workspace(exported).latest_export()
    for path in (source.folder / "fake-fp32").iterdir():
        shutil.copy(path, tmp_path)
    script = tmp_path / "model.fake.json"
    text = script.read_text()
    for wrong in (
        "{}",
        "[",
        text.replace('"gmacs": ', '"gmacs": 1e9'),
        text.replace("float32", "object"),
        '{"a":' * 9999,
    ):
        script.write_text(wrong)
        with pytest.raises(EngineError, match=r"model\.fake\.json, a script of the fake engine, cannot be read"):
            registry.get("fake")(script, EngineOptions()).open()
    script.write_text(text)
    np.savez(tmp_path / "model.npz", **{"life/x/logits": np.zeros(3)})
    with pytest.raises(EngineError, match=r"the answer life/x/logits is of shape \(3,\)"):
        registry.get("fake")(script, EngineOptions()).open()
