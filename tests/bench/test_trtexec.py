"""NVIDIA's tool, as a script that says what the real one says."""

from __future__ import annotations

import pytest

from lifedeploy.artifact import TensorSpec
from lifedeploy.bench import trtexec
from lifedeploy.bench.report import Row, Setting, Subject
from lifedeploy.errors import EngineError
from lifedeploy.targets import contest

IMAGES = TensorSpec("images", "float32", (None, 3, 224, 224))


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """A trtexec on the PATH: its help names these flags, its answer is this text; what it was called with is kept."""

    def install(flags, answer, code=0):
        path = tmp_path / "trtexec"
        path.write_text(
            f"""#!/bin/sh
if [ "$1" = "--help" ]; then echo '{flags}'; exit 0; fi
echo "$@" >> {tmp_path}/calls
cat <<'END'
{answer}
END
exit {code}
"""
        )
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return tmp_path / "calls"

    return install


ANSWER = """[11/23/2026-10:00:00] [I] === Performance summary ===
[11/23/2026-10:00:00] [I] Throughput: 100.5 qps
[11/23/2026-10:00:00] [I] Latency: min = 9.9 ms, max = 12 ms, mean = 10 ms, median = 10.1 ms, percentile(99%) = 11 ms
[11/23/2026-10:00:00] [I] GPU Compute Time: min = 9.1 ms, max = 9.9 ms, mean = 9.6 ms, median = 9.5 ms, percentile(99%)
"""


def test_it_is_asked_without_copies_in_the_words_it_knows(tool, tmp_path):
    calls = tool("--useCudaGraph --noDataTransfers --loadEngine", ANSWER)
    found = trtexec.measure(trtexec.find("tensorrt"), tmp_path / "model.plan", (IMAGES,), 128)
    assert found == trtexec.Opinion(100.5 * 128, 9.5)
    lines = calls.read_text().splitlines()
    assert len(lines) == trtexec.RUNS
    assert lines[0].split() == [
        f"--loadEngine={tmp_path}/model.plan",
        "--duration=2",
        "--useCudaGraph",
        "--noDataTransfers",
        "--shapes=images:128x3x224x224",
    ]
    calls = tool("--loadEngine", ANSWER)  # a version whose defaults these are
    calls.unlink()
    trtexec.measure(trtexec.find("tensorrt"), tmp_path / "model.plan", (TensorSpec("images", "float32", (8, 3)),), 8)
    assert calls.read_text().splitlines()[0].split() == [f"--loadEngine={tmp_path}/model.plan", "--duration=2"]


def test_what_went_wrong_is_said(tool, tmp_path):
    tool("", "[I] loading\n[E] Error[6]: The engine plan file is not compatible\n&&&& FAILED", code=1)
    with pytest.raises(EngineError, match=r"trtexec failed: \[E\] Error\[6\]: The engine plan file is not compatible"):
        trtexec.measure(trtexec.find("tensorrt"), tmp_path / "model.plan", (IMAGES,), 1)
    tool("", "[I] Throughput: 3 qps")
    with pytest.raises(EngineError, match="trtexec told no GPU Compute Time"):
        trtexec.measure(trtexec.find("tensorrt"), tmp_path / "model.plan", (IMAGES,), 1)


def test_it_is_asked_only_where_it_is_and_for_plans(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert trtexec.find("tensorrt") is None
    assert trtexec.find("openvino") is None


def test_rows_carry_the_second_opinion(tool, tmp_path):
    tool("", ANSWER)
    facts = {"model": "m", "method": "life", "engine": "tensorrt", "precision": "fp16", "mac_ratio": 1.5}
    subject = Subject(**facts, weights="file", parity=None)
    setting = Setting(mode="latency", batch=2, streams=1, threads=1, copies=False)
    values = dict.fromkeys(Row.__dataclass_fields__) | {"images_per_s": 199.0}
    row = Row(**values | {"subject": subject, "setting": setting})
    asked = contest._asked_trtexec(row, tmp_path / "model.plan", (IMAGES,), lambda text: None)
    assert asked.trtexec == {"images_per_s": 201.0, "gpu_ms": 9.5, "share": pytest.approx(199 / 201)}
    tool("", "broken", code=1)
    asked = contest._asked_trtexec(row, tmp_path / "model.plan", (IMAGES,), lambda text: None)
    assert (asked.trtexec, asked.subject.note) == (None, "trtexec failed: broken")
