"""Files of weights that are damaged, or made to break their reader: one line, no memory, no waiting."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lifedeploy.artifact import Workspace
from lifedeploy.errors import LifedeployError, UsageError, WeightsError
from lifedeploy.model import checkpoint, weights
from lifedeploy.model.raw import write_tensors
from lifedeploy.model.weights import ModelRequest
from tests.conftest import full_disk, make_tiny
from tests.model.test_checkpoint import SIZE, SMALL, small_model

SEEDS = 60  # of every kind: three hundred and sixty in all
GIB = 1024**3


def backbone_state() -> dict[str, Tensor]:
    return small_model()[0].backbone.state_dict()


def refused(path: Path, call: Callable[[Path], Any] = checkpoint.read) -> str:
    """What is said of a file, on one line that names it."""
    with pytest.raises(LifedeployError) as error:
        call(path)
    assert error.value.message.isprintable() and len(error.value.message) < 700
    assert error.value.exit_code == 1
    return error.value.message


def loaded(path: Path) -> Any:
    return weights.load(
        ModelRequest(backbone=SMALL, weights=str(path), image_size=SIZE), Workspace(path.parent / "none")
    )


def with_header(path: Path, header: object, data: bytes = b"") -> Path:
    """A safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


# --- written ----------------------------------------------------------------------------------------------------


def test_what_is_written_is_what_the_library_reads(tmp_path):
    tensors = {
        "half": torch.randn(3, 2).half(),
        "brain": torch.randn(4).bfloat16(),
        "double": torch.randn(2, 2, dtype=torch.float64).t(),
        "scalar": torch.tensor(3.5),
        "none": torch.zeros(0, 4),
        "numbers": torch.arange(5),
        "yes": torch.tensor([True, False]),
    }
    tensors["tied"] = tensors["half"]
    path = tmp_path / "all.safetensors"
    write_tensors(path, tensors, {"b": "ü\n\x01", "a": "2"})
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    assert checkpoint.read_header(path) == {"a": "2", "b": "ü\n\x01"}
    assert path.stat().st_mode & 0o777 == 0o666 & ~os.umask(os.umask(0o22))


def test_equal_models_give_equal_files_in_every_process(tmp_path):
    script = (
        "import sys, torch, pathlib\nfrom lifedeploy.model.raw import write_tensors\n"
        "tensors = {str(number): torch.arange(number) for number in range(9)}\n"
        "write_tensors(pathlib.Path(sys.argv[1]), tensors, {letter: letter for letter in 'abcdefgh'})"
    )
    found = set()
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.safetensors"
        environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", script, str(path)], check=True, env=environment)
        found.add(path.read_bytes())
    assert len(found) == 1
    for path in (tmp_path / "one.safetensors", tmp_path / "two.safetensors"):
        checkpoint.save(path, *make_tiny())
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_a_disk_that_fills_up_is_told_with_the_name_of_the_file(tmp_path):
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, *make_tiny())
    before = path.read_bytes()
    with full_disk(len(before) // 2), pytest.raises(OSError, match="File too large") as error:
        checkpoint.save(path, *make_tiny())
    assert error.value.filename == str(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# --- no regular file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_has_no_end_is_not_opened(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zeros{suffix}").symlink_to("/dev/zero")
    assert "is a pipe; expected a regular file" in refused(tmp_path / f"pipe{suffix}")
    assert "is a device; expected a regular file" in refused(tmp_path / f"zeros{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    assert "does not exist" in refused(tmp_path / f"folder{suffix}")
    assert "does not exist" in refused(tmp_path / f"a\0{suffix}")
    (tmp_path / f"empty{suffix}").touch()
    refused(tmp_path / f"empty{suffix}")


def test_headers_of_what_is_no_file_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    for call in (checkpoint.read_spec, checkpoint.read_classes, checkpoint.read_header):
        assert "is a pipe" in refused(tmp_path / "pipe.safetensors", call)


# --- safetensors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
        {"a": {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}},
        {"__metadata__": {"a": 1}},
        {"__metadata__": [1]},
        [1, 2],
        b"{" * 100_000,
        b"[" * 100_000,
        b'{"a": "\xff"}',
        b"\xef\xbb\xbf{}",
    ],
    ids=str,
)
def test_a_header_that_cannot_be_is_refused(tmp_path, header):
    path = with_header(tmp_path / "odd.safetensors", header, bytes(4))
    for call in (checkpoint.read, checkpoint.read_spec, checkpoint.read_classes):
        assert "is not a readable safetensors file" in refused(path, call)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (checkpoint.IMAGE_SIZE_KEY, text)
        for text in (
            '"224"',
            "0",
            "-1",
            "true",
            "1e400",
            "1e9",
            "[]",
            "[224]",
            "[1,2,3,4]",
            "{}",
            "null",
            "[" * 9999,
            "x",
        )
    ]
    + [
        (checkpoint.CLASSES_KEY, text)
        for text in ("3", "null", '{"a": 1}', '["a", null]', '["a", ["b"]]', "[true]", "[" * 9999, '["\\ud8"]')
    ]
    + [(checkpoint.SPEC_KEY, text) for text in ("3", "[]", "{}", '{"schedule": 1}', "[" * 9999, "\x00")],
)
def test_what_a_header_says_is_typed(tmp_path, key, text):
    path = tmp_path / "odd.safetensors"
    save_file(backbone_state(), path, metadata={key: text})
    refused(path, loaded)


def test_class_names_of_a_million_classes_do_not_fit_a_head_of_three(tmp_path):
    path = tmp_path / "many.safetensors"
    save_file(backbone_state(), path, metadata={"classes": json.dumps(list(range(1_000_000)))})
    assert "carries 1000000 class names for a head of 3 classes" in refused(path, loaded)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64], ids=str
)
def test_weights_of_another_type_are_refused(tmp_path, dtype):
    state = backbone_state()
    path = tmp_path / "odd.pth"
    torch.save(state | {"blocks.1.mlp.fc1.weight": state["blocks.1.mlp.fc1.weight"].to(dtype)}, path)
    assert "blocks.1.mlp.fc1.weight as" in refused(path, loaded)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    path = tmp_path / "odd.safetensors"
    model, spec = small_model()
    model.backbone.blocks[2].norm1.weight.data[5] = value
    checkpoint.save(path, model, spec)
    assert "holds NaN or infinity in backbone.blocks.2.norm1.weight" in refused(path, checkpoint.load)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.update(num_classes=900_000),
        lambda spec: spec.update(num_classes=10**12),
        lambda spec: spec["preprocess"].update(image_size=[10**9, 10**9]),
        lambda spec: spec["preprocess"].update(image_size=[8192, 8192]),
        lambda spec: spec["preprocess"].update(image_size=[65, 64]),
        lambda spec: spec.update(timm_name="\x1b[31mred"),
        lambda spec: spec.update(timm_name="resnet18"),
        lambda spec: spec.update(method="of-somebody"),
        lambda spec: spec.update(options={"temperature": -1.0}),
        lambda spec: spec.update(options={"colour": "red"}),
        lambda spec: spec.update(timm_name="hf-hub:somebody/something"),
        lambda spec: spec.update(timm_name="v" * 4000),
        lambda spec: spec.update(timm_name="deit_small_patch16_224.none"),
    ],
)
def test_a_model_that_cannot_be_is_not_made(tmp_path, change):
    model, spec = small_model(classes=())
    said = spec.to_dict()
    change(said)
    path = tmp_path / "odd.safetensors"
    write_tensors(path, model.state_dict(), {checkpoint.SPEC_KEY: json.dumps(said)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, checkpoint.load)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 * 1024  # KiB


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": "warm"}, "temperature is 'warm': expected float, got str"),
        ({"colour": "red"}, "'colour' is no option of life; there are: temperature"),
    ],
)
def test_options_that_the_method_has_not_are_the_files_fault(tmp_path, options, said):
    model, spec = small_model(classes=())
    path = tmp_path / "odd.safetensors"
    said_of_it = spec.to_dict() | {"options": options}
    write_tensors(path, model.state_dict(), {checkpoint.SPEC_KEY: json.dumps(said_of_it)})
    for call in (checkpoint.load, loaded):
        assert refused(path, call).endswith(f"is wrong at $.options: {said}")


# --- what is asked for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {"image_size": (10**9, 10**9)},
        {"image_size": (0, 64)},
        {"image_size": (-16, 64)},
        {"image_size": (8192, 8192)},
        {"num_classes": 10**12},
        {"num_classes": -1},
        {"options": {"temperature": float("nan")}},
        {"options": {"temperature": float("inf")}},
        {"backbone": "x" * 10**6},
        {"backbone": "deit\x1b[31m"},
        {"backbone": ""},
        {"weights_image_size": (10**9, 1)},
    ],
    ids=lambda asked: str(asked)[:40],
)
def test_a_request_that_cannot_be_meant_costs_nothing(tmp_path, asked):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError) as error:
        weights.load(ModelRequest(**({"backbone": "deit_s", "weights": "random"} | asked)), Workspace(tmp_path))
    assert error.value.message.isprintable() and len(error.value.message) < 700
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 * 1024  # KiB


# --- pickles ----------------------------------------------------------------------------------------------------


class Call:
    """Unpickling this calls ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def test_an_archive_that_declares_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    torch.save({"a": torch.zeros(64)}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        data = next(member for member in archive.infolist() if member.filename.endswith("/data/0"))
    declared = content.rindex(data.filename.encode()) - 46  # its entry in the central directory
    for offset in (20, 24):  # the compressed and the plain size
        content[declared + offset : declared + offset + 4] = (4_000_000_000).to_bytes(4, "little")
    path.write_bytes(content)
    assert "declares 4,000,000,000 bytes as" in refused(path)


def test_a_deflated_archive_that_grows_a_thousandfold_is_read_or_refused_by_what_is_there(tmp_path):
    plain, path = tmp_path / "plain.pth", tmp_path / "small.pth"
    torch.save(backbone_state(), plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    assert checkpoint.read(path).state.keys() == backbone_state().keys()
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as more:
        more.writestr("plain/data/zeros", bytes(64 * 1024**2))
    with pytest.raises(WeightsError, match="no weights are packed so small"):
        checkpoint.read(path)


def test_bytes_in_a_codec_that_doubles_them_are_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    text = b"X" + (9).to_bytes(4, "little") + b"a" * 9
    pickled = b"\x80\x02c_codecs\nencode\nq\x00" + text + b"X\x06\0\0\0latin1\x86R"
    pickled += b"q\x01h\x00h\x01X\x03\0\0\0hex\x86R" * 3 + b"."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    with pytest.raises(WeightsError, match="bytes in the codec 'hex'"):
        checkpoint.read(path)


@pytest.mark.parametrize("name", ["filler", "zipped filler", "deep", "expanded"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_small_pickle_takes_no_large_memory(tmp_path, name):
    path = tmp_path / "bomb.pth"
    match name:
        case "filler":
            path.write_bytes(pickle.dumps({"model": Call(bytearray, 64 * GIB)}, protocol=2))
        case "zipped filler":
            torch.save({"model": Call(bytearray, 64 * GIB)}, path)
        case "deep":
            path.write_bytes(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".")
        case _:
            torch.save({"head.weight": torch.zeros(1).expand(10**12)}, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 * 1024  # KiB


# --- mutations --------------------------------------------------------------------------------------------------


def mutated(content: bytes, seed: int) -> bytes:
    """A few bytes changed, cut out, doubled or put in; the beginning, where headers are, more often than the rest."""
    generator = random.Random(seed)
    data = bytearray(content)
    for _ in range(generator.randint(1, 6)):
        end = len(data) if generator.random() < 0.3 else min(len(data), 4000)
        at = generator.randrange(max(end, 1))
        match generator.randrange(6):
            case 0:
                data[at : at + 1] = bytes([generator.randrange(256)])
            case 1:
                del data[at : at + generator.randint(1, 64)]
            case 2:
                data[at:at] = data[at : at + generator.randint(1, 64)]
            case 3:
                data[at:at] = generator.randbytes(generator.randint(1, 8))
            case 4:
                data[at : at + 8] = generator.choice(
                    [b"\xff" * 8, b"\x00" * 8, b"99999999", b"\xef\xbb\xbf", b"[[[[[["]
                )
            case _:
                del data[generator.randrange(len(data) + 1) :]
    return bytes(data)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One small file of every kind."""
    folder = tmp_path_factory.mktemp("originals")
    model, spec = small_model()
    state = backbone_state()
    checkpoint.save(folder / "ours.safetensors", model, spec)
    save_file(state, folder / "plain.safetensors", metadata={"classes": '["a", "b", "c"]', "image_size": "64"})
    torch.save(state, folder / "zip.pth")
    torch.save(OrderedDict(state), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": state, "arch": SMALL, "args": {"model": SMALL, "img_size": 64}}, folder / "timm.pth")
    authors = {"score_predictor.0.in_conv.0.weight": torch.ones(64), "score_predictor.1.gate": torch.ones(3)}
    said = argparse.Namespace(model="deit_small", base_rate=0.7, base_keep_rate=0.7, input_size=64)
    torch.save({"model": state | authors, "args": said}, folder / "authors.pth")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["ours.safetensors", "plain.safetensors", "zip.pth", "legacy.pth", "timm.pth", "authors.pth"]
)
def test_a_damaged_file_is_read_or_refused_in_a_line(tmp_path, originals, name):
    path = tmp_path / name
    for seed in range(SEEDS):
        path.write_bytes(mutated(originals[name], seed))
        for call in (checkpoint.read_spec, checkpoint.read_classes, loaded):
            try:
                call(path)
            except LifedeployError as error:
                assert error.message.isprintable() and len(error.message) < 700, seed
