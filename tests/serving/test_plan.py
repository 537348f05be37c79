"""Batches, delay and instances, read off what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lifedeploy.engines import registry
from lifedeploy.errors import ArtifactError, UsageError
from lifedeploy.serving.plan import Plan, measured, sizes_up_to, usual
from lifedeploy.targets.target import Target


def report(path: Path, rows: list[dict[str, Any]]) -> Path:
    usual = {
        "model": "m",
        "engine": "openvino",
        "precision": "bf16",
        "method": "life",
        "streams": 1,
        "latency_ms": {"p50": 1.0},
    }
    path.write_text(json.dumps({"schema": 1, "rows": [usual | row for row in rows]}))
    return path


def latency(batch: int, speed: float, **more: Any) -> dict[str, Any]:
    return {"mode": "latency", "batch": batch, "images_per_s": speed, **more}


def throughput(batch: int, speed: float, streams: int = 2) -> dict[str, Any]:
    return {"mode": "throughput", "batch": batch, "images_per_s": speed, "streams": streams}


def read(path: Path, most: int = 32) -> Plan:
    target = Target(name="m", path=path, engine=registry.get("openvino"), precision="bf16", method="life")
    return measured(path, target, most)


def test_the_smallest_batch_that_is_fast_enough_and_those_above_it(tmp_path):
    plan = read(report(tmp_path / "r.json", [latency(1, 80), latency(8, 190), latency(16, 195), latency(64, 300)]))
    # Of 195 img/s, 190 is more than 95 %; 64 images are more than a request may have here.
    assert plan.preferred == (8, 16)
    assert plan.max_batch == 32
    assert plan.instances == 1
    # One image alone takes 12,500 µs, one of eight 5,263.
    assert plan.delay_us == 7_237
    assert plan.measured.endswith("r.json")


def test_nobody_waits_for_a_batch_that_saves_nothing(tmp_path):
    plan = read(report(tmp_path / "r.json", [latency(1, 100), latency(8, 99)]))
    assert (plan.preferred, plan.delay_us) == ((1, 8), 0)


def test_as_many_instances_as_requests_in_flight_unless_these_are_slower(tmp_path):
    rows = [latency(1, 80), latency(8, 190), throughput(1, 120), throughput(8, 201, streams=4)]
    plan = read(report(tmp_path / "r.json", rows))
    assert (plan.instances, plan.preferred) == (4, (8,))
    rows = [latency(1, 80), latency(8, 200), throughput(1, 120), throughput(8, 190)]
    assert read(report(tmp_path / "s.json", rows)).instances == 1


def test_other_engines_and_requests_without_copies_say_nothing(tmp_path):
    other = [latency(8, 1e6, engine="onnxruntime"), latency(8, 1e6, method="dense"), latency(8, 1e6, precision="fp32")]
    other.append(latency(8, 1e6, model="another"))
    rows = [latency(1, 100, copies=True), latency(1, 900, copies=False), *other]
    assert read(report(tmp_path / "r.json", rows)).preferred == (1,)
    with pytest.raises(ArtifactError, match=r"says nothing of m on openvino bf16 at a batch up to 32"):
        read(report(tmp_path / "o.json", other))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"rows": [{}]}', '{"rows": [{"batch": -1}]}', '{"rows": 3}', "\x00", '{"rows": NaN}']
)
def test_what_is_no_report_is_refused(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ArtifactError):
        read(path)


def test_without_a_measurement_powers_of_two_and_no_waiting():
    assert usual(8) == Plan(max_batch=8, preferred=(1, 2, 4, 8))
    assert sizes_up_to(12) == [1, 2, 4, 8, 12]
    assert sizes_up_to(1) == [1]


def test_numbers_that_no_server_takes():
    with pytest.raises(UsageError, match="instances"):
        Plan(max_batch=8, preferred=(8,), instances=0)
    with pytest.raises(UsageError, match="images per batch"):
        Plan(max_batch=0, preferred=())
