"""Manifests: what stands beside an artifact and says what it is, where it came from and what was proven about it.

A manifest travels with files that others may have changed, so nothing in it is believed: every fact has a type and a
range, and every file that it names is one of its own folder or of the export above.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from lifedeploy import methods
from lifedeploy.errors import ArtifactError
from lifedeploy.files import now, write_json
from lifedeploy.kept import EARLIER_NAME, KeptTokens
from lifedeploy.reading import decode_json, read_bytes
from lifedeploy.records import (
    DetailsRecord,
    FormedRecord,
    GraphRecord,
    MacsRecord,
    OptionsRecord,
    ParityRecord,
    QuantizationRecord,
)
from lifedeploy.section import Section, keep_given, plain
from lifedeploy.spec import ModelSpec
from lifedeploy.text import quoted
from lifedeploy.tuned import TunedFor
from lifedeploy.typed import (
    QUANTIZED,
    Digest,
    DType,
    FileName,
    Kind,
    LastBlock,
    MaybeDigest,
    MethodName,
    Name,
    Precision,
    Size,
    Text,
    described,
)

SCHEMA = 1
# Facts that every manifest states; what has come since may be missing.
REQUIRED = (
    "kind", "file", "sha256", "spec", "graph", "inputs", "outputs", "macs", "parity", "reference", "checkpoint",
    "siblings", "versions", "created",
)  # fmt: skip
MOST_BATCH_PIXELS = 2**29  # pixels of one batch: 6 GiB of FP32
_WHAT = "the manifest"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. ``None`` in ``shape`` is a dynamic dimension; ``dtype`` is numpy's name."""

    name: Name
    dtype: DType
    shape: Annotated[tuple[Size | None, ...], Meta(max_length=8)]

    def __str__(self) -> str:
        dims = ", ".join("batch" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype} ({dims})"


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """How an engine was built.

    ``precision`` is what runs; ``note`` says why it is not what was asked for. ``pending`` says why the engine could
    not be held against PyTorch where it was built.
    """

    name: Name
    precision: Precision
    requested: Precision
    note: Text = ""
    source: Text = ""  # the ONNX file, relative to the engine's folder
    source_sha256: MaybeDigest = ""
    runtime: Text = ""  # the runtime's own version
    processor: Text = ""  # what it was built on
    files: dict[FileName, Digest] = field(default_factory=dict)  # every file of the engine → sha256
    options: OptionsRecord = field(default_factory=OptionsRecord)  # build options that were given
    graph: FormedRecord = field(default_factory=FormedRecord)  # the form that was compiled, and its own parity
    details: DetailsRecord = field(default_factory=DetailsRecord)  # what the runtime tells: fusion, profile …
    pending: Text = ""

    @property
    def label(self) -> str:
        """Name and precision, as tables show them."""
        return f"{self.name} {self.precision}"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What stands beside an artifact.

    ``graph`` describes the export (form, batch, options), ``macs`` the work per image, ``parity`` the evidence that
    the artifact computes what PyTorch computes, ``siblings`` the same weights under the other methods.
    """

    kind: Kind  # "model", "calibrated" (a quantised graph of a model) or "engine"
    file: FileName  # in the manifest's folder
    sha256: Digest
    spec: ModelSpec
    graph: GraphRecord = field(default_factory=GraphRecord)
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    macs: MacsRecord = field(default_factory=MacsRecord)
    parity: ParityRecord | None = None
    reference: Text = ""  # file with PyTorch's own answers, relative to the manifest's folder
    checkpoint: Text = ""
    siblings: dict[MethodName, FileName] = field(default_factory=dict)  # method → manifest, same folder
    tuned: TunedFor | None = None  # the machine that its schedule was chosen for, where it was
    engine: EngineRecord | None = None
    quantization: QuantizationRecord = field(default_factory=QuantizationRecord)  # how it was calibrated, at what cost
    versions: dict[Name, Text] = field(default_factory=dict)
    created: Text = field(default_factory=now)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, with what a reader looks for first at the top."""
        body: dict[str, Any] = plain(self)
        head = {
            "schema": SCHEMA,
            "kind": body.pop("kind"),
            "file": body.pop("file"),
            "sha256": body.pop("sha256"),
            "created": body.pop("created"),
            "method": self.spec.method,
            "weights": self.spec.provenance.weights,
        }
        return head | body

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """The inverse of :meth:`to_dict`. Further keys, which a later version may write, are passed over, or kept where
        they are in one of the sections of :mod:`lifedeploy.records`.

        Raises:
            ArtifactError: another schema; a fact is missing, or of another kind or size; a file is named that is none
                of this artifact's.
        """
        schema = data.get("schema")
        if type(schema) is not int or schema != SCHEMA:
            raise ArtifactError(f"manifest schema {quoted(schema)} is unknown; this version reads {SCHEMA}")
        missing = [name for name in REQUIRED if name not in data]
        if missing:
            raise ArtifactError(f"{_WHAT} is incomplete: '{missing[0]}' is missing")
        spec = ModelSpec.from_dict(data["spec"])
        given = {name: value for name, value in data.items() if not (name == "quantization" and value is None)}
        manifest = described(given, cls, _WHAT)
        for place, name, above in manifest._files():
            _require_plain(place, name, above=above)
        manifest._require_consistent()
        keep_given(manifest, given)
        return replace(manifest, spec=spec)

    def _files(self) -> Iterator[tuple[str, str, bool]]:
        """Files that are named: the place, the name, and whether it may be one of the export above."""
        yield "file", self.file, False
        yield from (("siblings", name, False) for name in self.siblings.values())
        derived = self.kind != "model"
        optional = [("reference", self.reference, self.kind == "engine"), ("checkpoint", self.checkpoint, derived)]
        if self.engine is not None:
            yield from (("engine.files", name, False) for name in self.engine.files)
            optional.append(("engine.source", self.engine.source, derived))
        if self.quantization.report is not None:
            yield "quantization.report", self.quantization.report, False
        yield from ((place, name, above) for place, name, above in optional if name)

    def _require_consistent(self) -> None:
        height, width = self.spec.image_size
        batch = self.graph.batch_size or 1
        if batch * height * width > MOST_BATCH_PIXELS:
            raise ArtifactError(
                f"{_WHAT} is wrong: batch {batch} of {height}x{width} px is larger than any model takes"
            )
        for tensor in self.inputs[:1]:
            if len(tensor.shape) == 4 and tensor.shape[1:] not in ((3, height, width), (height, width, 3)):
                raise ArtifactError(f"{_WHAT} is wrong: {tensor} is no input for images of {height}x{width} px")
        for tensor in self.outputs[:1]:
            if self.spec.num_classes and tensor.shape[1:] != (self.spec.num_classes,):
                raise ArtifactError(f"{_WHAT} is wrong: {tensor} is no output for {self.spec.num_classes} classes")
        attending = self.macs.query_tokens
        if attending is not None and (self.last_block == "prefix") != (attending[-1:] == (0,)):
            raise ArtifactError(
                f"{_WHAT} is wrong at $.graph.last_block: {self.last_block}, and in the last layer "
                f"{attending[-1] if attending else 0} patch tokens attend"
            )
        named = self.graph.kept or ()
        before = [layer for layer in self.spec.schedule.drop_layers if named and layer < min(named)]
        if any(self.spec.schedule.after(layer) < self.spec.schedule.patches for layer in before):
            raise ArtifactError(f"{_WHAT} is wrong at $.graph.kept: tokens leave after layer {before[0]} already")
        strange = [layer for layer in named if layer not in self.spec.schedule.drop_layers]
        if strange:
            raise ArtifactError(f"{_WHAT} is wrong at $.graph.kept: {strange[0]} is none of its drop layers")
        if self.engine and self.engine.files.get(self.file, self.sha256) != self.sha256:
            raise ArtifactError(f"{_WHAT} is wrong: engine.files has another SHA-256 of {self.file} than sha256")

    def require_complete(self, what: str) -> None:
        """Make sure that nothing is missing in the sections that are there, for readers that need all of it.

        Raises:
            ArtifactError: something is; it is named. ``what`` is what the manifest is called.
        """
        sections: list[tuple[str, Section]] = [("macs", self.macs)]
        if self.quantization or self.kind == "calibrated":
            sections.append(("quantization", self.quantization))
        if self.parity is not None:
            sections.append(("parity", self.parity))
        if self.engine is not None and self.engine.graph.parity is not None:
            sections.append(("engine.graph.parity", self.engine.graph.parity))
        lacking = [(place, name) for place, section in sections for name in section.missing()]
        if self.kind == "calibrated" and self.quantization.layers is None:
            lacking.append(("quantization", "layers"))
        for place, name in lacking:
            raise ArtifactError(f"{what}: {_WHAT} is incomplete: '{name}' is missing at $.{place}")
        if self.kind == "engine" and self.engine is None:
            raise ArtifactError(f"{what} describes no engine")
        macs = self.macs
        counts = (macs.per_layer, macs.attention_tokens, macs.query_tokens, macs.mlp_tokens)
        for layers in (len(count) for count in counts if count is not None):
            if layers != self.spec.schedule.depth:
                raise ArtifactError(f"{what}: {_WHAT} is wrong: MACs of {layers} of {self.spec.schedule.depth} layers")

    @property
    def last_block(self) -> LastBlock:
        """What the last block of its graph computes."""
        return self.graph.last_block or "full"

    @property
    def kept(self) -> KeptTokens:
        """Where its graph, and every engine of it, says which tokens it kept."""
        schedule = self.spec.schedule.under(self.last_block)
        if self.graph.kept is not None:
            return KeptTokens.of(schedule, self.graph.kept, parks=self.graph.parks)
        # Written before there were other methods: it ranks once, and says so under another name.
        if methods.role_of(self.spec.method) != methods.SLIMMED or not schedule.prunes:
            return KeptTokens.of(schedule, ())
        return replace(KeptTokens.of(schedule, (schedule.base_layer,)), names={schedule.base_layer: EARLIER_NAME})

    @property
    def predicts_lives(self) -> bool:
        """Whether its graph, and every engine of it, can be asked for the scores that lives are made of."""
        return bool(self.kept) and self.graph.kept is None if self.graph.scores is None else self.graph.scores

    @property
    def quantized_products(self) -> tuple[str, ...]:
        """Names of the products of a calibrated graph that are quantised."""
        return tuple(layer.name for layer in self.quantization.layers or () if layer.sqnr_db is not None)

    def write(self, path: Path) -> None:
        """Write the manifest to ``path``."""
        write_json(path, self.to_dict())


def read_manifest(path: Path) -> Manifest:
    """Read the manifest at ``path``.

    Raises:
        ArtifactError: missing, not JSON, or not one of ours.
    """
    data = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    facts = decode_json(data, Any, f"{path} is not a manifest: its JSON")
    if not isinstance(facts, dict):
        raise ArtifactError(f"{path} is not a manifest: expected a JSON object")
    try:
        return Manifest.from_dict(facts)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error.message}") from error


def _require_plain(place: str, name: str, *, above: bool) -> None:
    """Make sure that a file that is named is one of the artifact's folder; or, if it may be, of the export that this
    folder is in: ``../NAME``, or ``../int8/NAME`` of an engine of a calibrated graph.

    Raises:
        ArtifactError: it may lie elsewhere.
    """
    parts = name.split("/")
    if above and parts[0] == "..":
        parts = parts[1:]
        if len(parts) == 2 and parts[0] in QUANTIZED:
            parts = parts[1:]
    plain = len(parts) == 1 and name.isprintable() and parts[0] not in ("", ".", "..") and not set(name) & set("\\:")
    if not plain:
        expected = "a file of its own folder" + (" or of the export above" if above else "")
        raise ArtifactError(f"{_WHAT} is wrong at $.{place}: {quoted(name)}; expected {expected}")
