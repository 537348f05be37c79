"""Files that an ONNX file has its weights in: whoever opens it reads them too, so a manifest has to vouch for them."""

from __future__ import annotations

import mmap
from pathlib import Path

from lifedeploy import graphs
from lifedeploy.reading import foreign, require_regular

_KEY = b"location"  # https://github.com/onnx/onnx/blob/main/docs/ExternalData.md


def onnx_files(path: Path) -> tuple[Path, ...]:
    """An ONNX file, and the files that it has weights in. Ours have none.

    Raises:
        ArtifactError: it is none, or it points out of its folder.
    """
    if not require_regular(path) or not _mentions(path, _KEY):
        return (path,)  # the word is in every file that has any: nothing need be parsed
    model = graphs.read(path)
    sparse = [part for tensor in model.graph.sparse_initializer for part in (tensor.values, tensor.indices)]
    names = {
        entry.value
        for tensor in (*graphs.tensors_of(model), *sparse)
        if graphs.is_outside(tensor)
        for entry in tensor.external_data
        if entry.key == _KEY.decode()
    }
    return (path, *(path.parent / name for name in sorted(names)))


def _mentions(path: Path, word: bytes) -> bool:
    with foreign(str(path)), path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(word) >= 0
