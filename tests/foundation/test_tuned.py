"""A tuned schedule as a file: written, read, and refused where it is of something else."""

from __future__ import annotations

import json

import pytest

from lifedeploy.errors import ArtifactError, ScheduleError, UsageError
from lifedeploy.schedule import Schedule
from lifedeploy.tuned import Tuned, TunedFor, read_tuned

FOR = TunedFor(
    engine="openvino", precision="bf16", runtime="2026.4.1", processor="a CPU (avx2)", mode="latency", batch=1
)
TUNED = Tuned(
    backbone="vit_tiny",
    method="life",
    image_size=(224, 224),
    patches=196,
    depth=12,
    counts=(127, 95, 63),
    drop_layers=(4, 7, 10),
    tuned_for=FOR,
    speedup=1.5,
    over_before=1.08,
    loss=0.3,
    loss_is="nats",
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tune.json"
    TUNED.write(path)
    return path


def changed(file, **facts):
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    return file


def test_it_comes_back_as_it_was(file):
    assert read_tuned(file) == TUNED
    assert read_tuned(file).schedule == Schedule.from_counts(196, 12, (127, 95, 63), (4, 7, 10))


@pytest.mark.parametrize(
    ("facts", "error", "said"),
    [
        ({"kind": "model"}, ArtifactError, 'expected a JSON object of kind "tuned-schedule"'),
        ({"schema": 2}, ArtifactError, "of schema 2; this version reads 1"),
        ({"schema": True}, ArtifactError, "of schema True; this version reads 1"),
        ({"counts": [127, 95]}, ScheduleError, "2 token counts"),
        ({"counts": [127, 95, 0]}, ArtifactError, r"\$\.counts"),
        ({"counts": [95, 127, 63]}, ScheduleError, "token counts grow from 95 to 127"),
        ({"counts": [197, 95, 63]}, ScheduleError, "token counts grow from 196 to 197"),
        ({"drop_layers": [4, 7, 13]}, ScheduleError, "drop layer 13 is out of range"),
        ({"drop_layers": ["4", 7, 10]}, ArtifactError, r"\$\.drop_layers"),
        ({"tuned_for": {}}, ArtifactError, "'engine' is missing"),
        ({"tuned_for": {**FOR.__dict__, "mode": "fast"}}, ArtifactError, "there are: latency, throughput"),
        ({"depth": 10**9}, ArtifactError, r"\$\.depth"),
    ],
)
def test_what_is_no_such_file_is_refused(file, facts, error, said):
    with pytest.raises(error, match=said) as refused:
        read_tuned(changed(file, **facts))
    assert str(file) in refused.value.message and "\n" not in refused.value.message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '{"kind": "tuned-schedule"', "NaN", "[" * 100_000])
def test_damaged_files_are_refused(file, text):
    file.write_text(text)
    with pytest.raises(ArtifactError, match=str(file)):
        read_tuned(file)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ArtifactError, match=str(path)):
            read_tuned(path)


def test_it_is_of_one_backbone_and_image_size():
    TUNED.require_of("vit_tiny", (224, 224), "life")
    TUNED.require_of("vit_tiny.in1k", (224, 224), "life")  # other weights
    with pytest.raises(UsageError, match="tuned for vit_tiny, and the model is vit_small"):
        TUNED.require_of("vit_small", (224, 224), "life")
    with pytest.raises(UsageError, match="images of 224x224 px, and the model takes 384x384 px") as refused:
        TUNED.require_of("vit_tiny", (384, 384), "life")
    assert "--img-size 224x224" in refused.value.hint
    with pytest.raises(UsageError, match="tuned for life, and the method is evit") as refused:
        TUNED.require_of("vit_tiny", (224, 224), "evit")
    assert refused.value.hint == "--counts 127,95,63 --drop-layers 4,7,10"


def test_it_says_what_is_another_elsewhere():
    here = {"engine": "openvino", "precision": "bf16", "runtime": "2026.4.1", "processor": "a CPU (avx2)"}
    assert FOR.unlike(**here) == "" == FOR.unlike(**here | {"processor": ""})
    for name, value in (
        ("engine", "onnxruntime"),
        ("precision", "fp32"),
        ("runtime", "2027"),
        ("processor", "another"),
    ):
        said = FOR.unlike(**here | {name: value})
        assert f"this is {value}, not {here[name]}: its counts" in said and said.count(" not ") == 2  # "may not be"
