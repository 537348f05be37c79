"""A model repository for NVIDIA Triton: the model, and an ensemble from the bytes of images to classes.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lifedeploy import __version__
from lifedeploy.artifact import Artifact, TensorSpec
from lifedeploy.engines.device import DeviceEngine
from lifedeploy.engines.wire import WORDS
from lifedeploy.errors import ArtifactError, UsageError
from lifedeploy.files import compact_json, write_text
from lifedeploy.machine import cores
from lifedeploy.serving import pbtxt
from lifedeploy.serving.pbtxt import Word, entries
from lifedeploy.serving.record import plain
from lifedeploy.serving.served import Served
from lifedeploy.spec import QUANTIZED
from lifedeploy.targets.target import Target
from lifedeploy.text import printable

# Backend → the engines whose files it opens, and what it calls the main one.
_OPENS = {
    "onnxruntime": ((".onnx",), "model.onnx"),
    "openvino": ((".xml",), "model.xml"),
    "tensorrt": ((".plan",), "model.plan"),
}
_PARTS = (".onnx", ".xml", ".bin", ".plan", ".data", ".weight")  # endings of the files of an engine
IMAGE, CLASSES, PROBABILITIES = "image", "classes", "probabilities"
# In the place of Python's folder for bytecode, which would run in the place of the code and which nobody could check.
_NO_BYTECODE = "A file, so that no bytecode is kept here.\n"
_CODE = '"""Of lifedeploy; what it does is in lifedeploy.serving.backend."""\n\n' + (
    "from lifedeploy.serving.backend import {role} as TritonPythonModel  # noqa: F401\n"
)


def code(role: str) -> str:
    """The ``model.py`` of a role in Triton's Python backend: one import, so that a package holds no code of its own."""
    return _CODE.format(role=role)


def usual_backend(target: Target) -> str:
    """What opens an engine best: Triton's own backend, where it runs the same file in the same way."""
    # ONNX Runtime computes integers as our sessions tell it to, and its backend in Triton tells it nothing.
    untold = target.precision in QUANTIZED and target.engine.keeps_graph_precision
    return "python" if untold else target.engine.triton_backend


def require_backend(served: Served, backend: str) -> None:
    """Make sure that a backend can open the engine.

    Raises:
        UsageError: it opens other files, or is fixed to a batch that a server does not fill.
    """
    if backend == "python":
        return
    endings, _ = _OPENS[backend]
    path = served.artifact.path
    if path.suffix not in endings:
        raise UsageError(
            f"Triton's {backend} backend opens {' or '.join(endings)}, and {path} is none",
            hint="--backend python opens every engine",
        )
    batch, smallest = served.input.shape[0], served.smallest_batch
    if batch is not None or smallest > 1:
        built = f"fixed to batch {batch}" if batch is not None else f"built for {smallest} images and more"
        raise UsageError(
            f"{path} is {built}, and Triton's {backend} backend fills no batch",
            hint="--backend python does; or build it for smaller batches too",
        )


def write(folder: Path, served: Served, backend: str, needs: dict[str, str]) -> tuple[str, ...]:
    """Write the repository into ``folder``; its models, the model itself first, then the ensemble.

    Raises:
        UsageError: as :func:`require_backend`.
    """
    require_backend(served, backend)
    spec = served.artifact.manifest.spec
    images = f"{served.name}_images"
    # Kept tokens that our own code asks an engine for are in no file that Triton's own backends open.
    given = served.outputs if backend == "python" else served.artifact.manifest.outputs
    _model(folder / served.name, served, backend, given, needs)
    preprocess = f"{served.name}_preprocess"
    _python(folder / preprocess, "Preprocess", _preprocess(preprocess, served))
    names = [served.name, images, preprocess]
    steps = [
        _step(preprocess, {IMAGE: IMAGE}, {served.input.name: "pixels"}),
        _step(served.name, {served.input.name: "pixels"}, {output.name: output.name for output in given}),
    ]
    outputs = [_tensor(output) for output in given]
    if served.top:
        classes = f"{served.name}_classes"
        _python(folder / classes, "Classes", _classes(classes, served))
        write_text(folder / classes / "1" / "classes.json", compact_json(list(spec.classes)))
        named = {CLASSES: CLASSES, PROBABILITIES: PROBABILITIES}
        steps.append(_step(classes, {served.logits.name: served.logits.name}, named))
        outputs += _class_outputs(served.top)
        names.append(classes)
    (folder / images / "1").mkdir(parents=True)
    config = {
        "name": images,
        "platform": "ensemble",
        "max_batch_size": served.plan.max_batch,
        "input": [_image()],
        "output": outputs,
        "ensemble_scheduling": {"step": steps},
        "version_policy": _version(),
        "parameters": _parameters(_facts(served)),
    }
    # Every model needs the folder of a version, and not every way of copying takes empty ones along.
    write_text(folder / images / "1" / "README", "An ensemble has no file of its own; its steps are in config.pbtxt.\n")
    write_text(folder / images / "config.pbtxt", pbtxt.message(config))
    return tuple(names)


def _model(folder: Path, served: Served, backend: str, given: Sequence[TensorSpec], needs: dict[str, str]) -> None:
    """The model itself: an engine in a version's folder, and how it is asked."""
    plan, artifact, kind = served.plan, served.artifact, served.target.engine
    version = folder / "1"
    version.mkdir(parents=True)
    facts = _facts(served) | needs
    config: dict[str, Any] = {"name": served.name, "backend": backend, "max_batch_size": plan.max_batch}
    if backend == "python":
        copy(served, version)
        _code(version, "Model")
    else:
        config["default_model_filename"] = _OPENS[backend][1]
        _copy_files(served, version, _OPENS[backend][1])
        facts |= _backend_parameters(served, backend)
    config |= {
        "input": [_tensor(served.input)],
        "output": [_tensor(output) for output in given],
        "dynamic_batching": {
            "preferred_batch_size": list(plan.preferred),
            "max_queue_delay_microseconds": plan.delay_us,
        },
        "instance_group": [_instances(plan.instances, gpu=issubclass(kind, DeviceEngine))],
        "model_warmup": [_warm_up(served.input, batch) for batch in plan.preferred],
        "version_policy": _version(),
        "parameters": _parameters(facts),
    }
    classes = artifact.manifest.spec.classes
    if classes:
        config["output"][0]["label_filename"] = "labels.txt"
        write_text(folder / "labels.txt", "".join(f"{printable(name)}\n" for name in classes))
    write_text(folder / "config.pbtxt", pbtxt.message(config, _comment(served, needs)))


def _facts(served: Served) -> dict[str, str]:
    """What whoever asks the server may want to know of the model, and holds against its own."""
    artifact, target = served.artifact, served.target
    engine = artifact.manifest.engine
    return {
        "lifedeploy": __version__,
        "engine": target.engine.name,
        "precision": target.precision,
        "method": target.method,
        "backbone": artifact.manifest.spec.backbone,
        "weights": target.weights,
        "tokens": "-".join(map(str, artifact.manifest.spec.stages)),
        "sha256": artifact.manifest.sha256,
        "source_sha256": engine.source_sha256 if engine else "",
    }


def _parameters(facts: Mapping[str, str]) -> list[dict[str, Any]]:
    return entries({name: {"string_value": value} for name, value in plain(facts).items()})


def _comment(served: Served, needs: dict[str, str]) -> str:
    unmeasured = "nothing was measured: lifedeploy package --bench FILE takes a report"
    lines = [
        f"{served.artifact.name}, {served.target.engine.name} {served.target.precision}",
        f"batches, delay and instances: {served.plan.measured or unmeasured}",
        *(f"needs {name} {version}" for name, version in needs.items()),
    ]
    return "\n".join(map(printable, lines))


def _instances(count: int, *, gpu: bool = False) -> dict[str, Any]:
    # One GPU: else there would be as many instances on each, and our own engines are on the first.
    return (
        {"kind": Word("KIND_GPU"), "count": count, "gpus": [0]} if gpu else {"kind": Word("KIND_CPU"), "count": count}
    )


def _backend_parameters(served: Served, backend: str) -> dict[str, str]:
    """What a backend of Triton's own has to be told, of precision and of threads.

    https://github.com/triton-inference-server/openvino_backend, and onnxruntime_backend: parameters.
    """
    if backend == "openvino" and served.target.precision == "bf16":
        return {"HINT_BF16": "YES"}
    if backend == "onnxruntime" and served.plan.instances > 1:
        return {"intra_op_thread_count": str(max(1, cores() // served.plan.instances))}  # else each takes all cores
    return {}


def copy(served: Served, folder: Path) -> None:
    """The engine with its manifest, so that it is opened as any other is: after its hashes were compared.

    Raises:
        ArtifactError: the manifest names a file that is no part of an engine: a server might run it.
    """
    artifact = served.artifact
    shutil.copyfile(artifact.manifest_path, folder / "model.json")  # of dense and first-k it has another name
    for path in _parts(artifact):
        shutil.copyfile(path, folder / path.name)


def _parts(artifact: Artifact) -> tuple[Path, ...]:
    """The files of an engine.

    Raises:
        ArtifactError: its manifest names one that is no part of any.
    """
    strange = next((path for path in artifact.files if path.suffix not in _PARTS), None)
    if strange is not None:
        raise ArtifactError(
            f"{artifact.manifest_path} names {strange.name}, which is no part of an engine",
            hint="build it again with lifedeploy build-engine",
        )
    return artifact.files


def _copy_files(served: Served, folder: Path, main: str) -> None:
    """The engine's files under the names that a backend looks for."""
    stem = Path(main).stem
    for path in _parts(served.artifact):
        shutil.copyfile(path, folder / (main if path == served.artifact.path else f"{stem}{path.suffix}"))


def _preprocess(name: str, served: Served) -> dict[str, Any]:
    manifest = served.artifact.manifest
    facts = {
        "preprocess": json.dumps(asdict(manifest.spec.preprocess)),
        "in_graph": json.dumps(manifest.graph.with_preprocess),
        "dtype": served.input.dtype,
    }
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": served.plan.max_batch,
        "input": [_image()],
        "output": [_tensor(served.input)],
        "instance_group": [_instances(served.plan.instances)],
        "version_policy": _version(),
        "parameters": entries({key: {"string_value": value} for key, value in facts.items()}),
    }


def _classes(name: str, served: Served) -> dict[str, Any]:
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": served.plan.max_batch,
        "input": [_tensor(served.logits)],
        "output": _class_outputs(served.top),
        "instance_group": [_instances(1)],
        "version_policy": _version(),
        "parameters": entries({"top": {"string_value": str(served.top)}}),
    }


def _python(folder: Path, role: str, config: dict[str, Any]) -> None:
    (folder / "1").mkdir(parents=True)
    _code(folder / "1", role)
    write_text(folder / "config.pbtxt", pbtxt.message(config))


def _code(version: Path, role: str) -> None:
    write_text(version / "model.py", code(role))
    write_text(version / "__pycache__", _NO_BYTECODE)


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    """A tensor without its batch, which ``max_batch_size`` stands for."""
    return {
        "name": spec.name,
        "data_type": Word(f"TYPE_{WORDS[spec.dtype]}"),
        "dims": [size or -1 for size in spec.shape[1:]],
    }


def _image() -> dict[str, Any]:
    return {"name": IMAGE, "data_type": Word("TYPE_STRING"), "dims": [1]}


def _class_outputs(top: int) -> list[dict[str, Any]]:
    return [
        {"name": CLASSES, "data_type": Word("TYPE_STRING"), "dims": [top]},
        {"name": PROBABILITIES, "data_type": Word("TYPE_FP32"), "dims": [top]},
    ]


def _step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> dict[str, Any]:
    return {"model_name": model, "model_version": -1, "input_map": entries(inputs), "output_map": entries(outputs)}


def _warm_up(spec: TensorSpec, batch: int) -> dict[str, Any]:
    # Random floats of Triton are random bits: some are no numbers, and neither is then the answer.
    data = {"random_data": True} if spec.dtype == "uint8" else {"zero_data": True}
    images = {"data_type": Word(f"TYPE_{WORDS[spec.dtype]}"), "dims": list(spec.shape[1:]), **data}
    return {"name": f"batch {batch}", "batch_size": batch, "inputs": entries({spec.name: images})}


def _version() -> dict[str, Any]:
    return {"latest": {"num_versions": 1}}
