"""A model repository for OpenVINO Model Server: the model in a version's folder, and the file that lists it.

https://docs.openvino.ai/2026/model-server/ovms_docs_parameters.html
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from lifedeploy.errors import UsageError
from lifedeploy.files import write_json, write_text
from lifedeploy.reading import foreign
from lifedeploy.serving.served import Served
from lifedeploy.text import printable

_OPENS = (".xml",)  # what ONNX Runtime has optimised holds operators of its own, and passed its gate there
# Precision → OpenVINO's word. A quantised graph's remainder is left to the server's processor, as our engine does it.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def require_servable(served: Served) -> None:
    """Make sure that the server opens the engine, and takes requests of any size up to the largest.

    Raises:
        UsageError: it opens other files, or the model is fixed to a batch that the server does not fill.
    """
    path, batch = served.artifact.path, served.input.shape[0]
    if path.suffix not in _OPENS:
        raise UsageError(
            f"OpenVINO Model Server opens {' or '.join(_OPENS)}, and {path} is none",
            hint="lifedeploy build-engine --engine openvino builds one",
        )
    if batch not in (None, 1):
        raise UsageError(
            f"{path} is fixed to batch {batch}: OpenVINO Model Server would refuse requests of fewer images",
            hint="export with a dynamic batch, or with --batch-size 1",
        )


def write(folder: Path, served: Served, backend: str, needs: dict[str, str]) -> tuple[str, ...]:
    """Write the repository into ``folder``; its one model.

    Raises:
        UsageError: as :func:`require_servable`.
    """
    require_servable(served)
    version = folder / served.name / "1"
    version.mkdir(parents=True)
    for path in served.artifact.files:
        shutil.copyfile(path, version / f"model{path.suffix}")
    write_json(folder / "config.json", {"model_config_list": [{"config": config(served)}]})
    classes = served.artifact.manifest.spec.classes
    if classes:  # the server answers with logits, and reads no labels: they are for who asks it
        write_text(folder / "labels.txt", "".join(f"{printable(name)}\n" for name in classes))
    write_text(folder / "README", _readme(served, needs))
    return (served.name,)


def config(served: Served) -> dict[str, Any]:
    """The model's entry in ``config.json``. Its path is relative to that file, wherever the folder is mounted."""
    plan = served.plan
    batch = "1" if plan.max_batch == 1 else f"1:{plan.max_batch}"
    shape = ",".join([batch, *(str(size) for size in served.input.shape[1:])])
    # Streams and a hint of performance exclude each other: where both are set, it is undefined which one counts.
    plugin = {"NUM_STREAMS": str(plan.instances)}
    if served.target.precision in _HINTS:
        plugin["INFERENCE_PRECISION_HINT"] = _HINTS[served.target.precision]
    return {
        "name": served.name,
        "base_path": served.name,
        # One size is compiled as such, which is faster. A range is one model for all sizes in it; with "auto", or a
        # number in batch_size, the server would compile the model anew whenever a request has another size.
        "shape": f"({shape})",
        "nireq": plan.instances,
        "target_device": "CPU",
        "plugin_config": plugin,
    }


def outputs(served: Served) -> tuple[str, ...]:
    """What the server answers with: all outputs of the file.

    An IR of ours may tell what was kept as further ones. Our own engine takes them out before it compiles, the server
    does not; the file stays the one that passed the gate.
    """
    path, given = served.artifact.path, [spec.name for spec in served.artifact.manifest.outputs]
    if path.suffix == ".onnx":
        return tuple(given)
    with foreign(str(path)):
        graph = ElementTree.parse(path).getroot()
        ports = {
            (layer.get("id"), port.get("id")): port.get("names", "").partition(",")[0]
            for layer in graph.iter("layer")
            for port in layer.iterfind("output/port")
        }
        results = {layer.get("id") for layer in graph.iter("layer") if layer.get("type") == "Result"}
        told = [
            ports[edge.get("from-layer"), edge.get("from-port")]
            for edge in graph.iter("edge")
            if edge.get("to-layer") in results
        ]
    return tuple(sorted(told, key=lambda name: given.index(name) if name in given else len(given)))


def _readme(served: Served, needs: dict[str, str]) -> str:
    plan = served.plan
    preprocess = served.artifact.manifest.spec.preprocess
    size = "x".join(map(str, preprocess.image_size))
    prepared = (
        f"pixels of {size}, RGB, 0 to 255, resized and cropped; the model normalises them"
        if served.artifact.manifest.graph.with_preprocess
        else f"images of {size}, RGB, normalised by mean {preprocess.mean} and standard deviation {preprocess.std}"
    )
    lines = [
        f"{served.artifact.name}, {served.target.engine.name} {served.target.precision}, for OpenVINO Model Server",
        "",
        "Start it, in a container that has this folder at /models:",
        "  ovms --config_path /models/config.json --rest_bind_address 127.0.0.1 --rest_port 8000 \\",
        "       --grpc_bind_address 127.0.0.1 --port 9000",
        "",
        f"model    {served.name}, protocol KServe v2, 1 to {plan.max_batch} images a request",
        f"input    {served.input}: {prepared}",
        f"outputs  {', '.join(outputs(served))}",
        "         The server answers with all of them; name one in the request to get that one alone.",
        "         The class of a place in the logits is the line of labels.txt.",
        *(f"needs    {name} {version} or later" for name, version in needs.items()),
    ]
    return "\n".join(map(printable, lines)) + "\n"
