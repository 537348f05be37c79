"""Types of what a file may say: numbers with a range, texts with a length, words of a closed list.

msgspec holds what is read against them and names the place; type checkers see plain ``int``, ``float`` and ``str``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from lifedeploy import reading
from lifedeploy.errors import ArtifactError, LifedeployError
from lifedeploy.limits import MOST_IN_BATCH
from lifedeploy.text import quoted

T = TypeVar("T")

ORDERINGS = ("order-once", "per-stage")
QUANTIZED = ("int8", "fp8")  # precisions that need calibration
HALVES = ("fp16", "bf16")
PRECISIONS = ("fp32", *HALVES, *QUANTIZED)

# How a graph shows attention: MatMul → Softmax → MatMul, one Attention operator (ONNX, opset 23), or ONNX Runtime's own
# operator for it (com.microsoft.MultiHeadAttention, a "contrib" operator, which no other runtime reads).
ATTENTIONS = ("products", "operator", "contrib")
# Quantised products as ONNX Runtime's integer operator or not, and the type of the second factor where that is computed
# too: without VNNI signed ones overflow in silence.
INTEGERS = ("none", "signed", "unsigned")
# What the last block computes: prefix tokens alone, where nothing else is read behind it, or all tokens.
LAST_BLOCKS = ("prefix", "full")
CROP_MODES = ("center", "squash")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
RANDOM_WEIGHTS: Final = "random"  # a method is called so too
WEIGHTS = (RANDOM_WEIGHTS, "pretrained", "trained", "file")
PREDICTORS = ("identity", "trained", "none")
KINDS = ("model", "calibrated", "engine")
SERVERS = ("triton", "ovms", "kserve", "docker")  # that packages are for; the last one has none
TRITON_BACKENDS = ("python", "onnxruntime", "openvino", "tensorrt")
COMPARED_AT = ("keep-rate", "macs", "speed")  # what is the same for all methods of a comparison
MODES = ("latency", "throughput")  # of a benchmark
DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "bfloat16", "float32", "float64",
)  # fmt: skip
# Field → its words, for messages: msgspec says only that a word is none of them.
_LISTS = {
    "form": ORDERINGS,
    "precision": PRECISIONS,
    "attention": ATTENTIONS,
    "integer": INTEGERS,
    "last_block": LAST_BLOCKS,
    "crop_mode": CROP_MODES,
    "mode": MODES,
    "interpolation": INTERPOLATIONS,
    "weights": WEIGHTS,
    "predictor": PREDICTORS,
    "kind": KINDS,
    "dtype": DTYPES,
}

MOST_CLASSES = 1_000_000
LARGEST_EXTENT = 8192  # pixels that an image for a model has in height or width

Count = Annotated[int, Meta(ge=0, le=2**53)]  # beyond, readers of JSON lose digits
Size = Annotated[int, Meta(ge=1, le=2**31)]
BatchSize = Annotated[int, Meta(ge=1, le=MOST_IN_BATCH)]
Extent = Annotated[int, Meta(ge=1, le=LARGEST_EXTENT)]  # height or width of an image, in pixels
Classes = Annotated[int, Meta(ge=0, le=MOST_CLASSES)]
Layer = Annotated[int, Meta(ge=1, le=1000)]
Patches = Annotated[int, Meta(ge=1, le=LARGEST_EXTENT**2)]
Number = Annotated[float, Meta(ge=-1e39, le=1e39)]  # as far as FP32 and BF16 reach
Positive = Annotated[float, Meta(gt=0, le=1e39)]
Share = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(gt=0, le=1)]
Name = Annotated[str, Meta(min_length=1, max_length=4096)]
Label = Annotated[str, Meta(max_length=4096)]  # of a class, which may have an empty name
Text = Annotated[str, Meta(max_length=65_536)]
# Python's $ alone also matches before a last line break: (?!\n) where the length does not forbid one.
# A method may be one that is not installed here: what is needed of it then is in its files.
MethodName = Annotated[str, Meta(pattern=r"^[a-z0-9]+([.-][a-z0-9]+)*$(?!\n)", max_length=40)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]  # SHA-256
MaybeDigest = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$(?!\n)", max_length=64)]  # '': none was taken
FileName = Annotated[str, Meta(min_length=1, max_length=255)]

if TYPE_CHECKING:  # a word of a list is a str to whoever works with it, and what may be missing may be None
    Maybe: TypeAlias = T | None
    Graph: TypeAlias = str
    Precision: TypeAlias = str
    Attention: TypeAlias = str
    Integer: TypeAlias = str
    LastBlock: TypeAlias = str
    CropMode: TypeAlias = str
    Mode: TypeAlias = str
    Interpolation: TypeAlias = str
    Weights: TypeAlias = str
    Predictor: TypeAlias = str
    Kind: TypeAlias = str
    DType: TypeAlias = str
else:

    class Maybe:
        """A fact that JSON may lack: ``None`` then, where null would be of another kind."""

        def __class_getitem__(cls, kind: Any) -> Any:
            return kind

    Graph = Literal[ORDERINGS]
    Precision = Literal[PRECISIONS]
    Attention = Literal[ATTENTIONS]
    Integer = Literal[INTEGERS]
    LastBlock = Literal[LAST_BLOCKS]
    CropMode = Literal[CROP_MODES]
    Mode = Literal[MODES]
    Interpolation = Literal[INTERPOLATIONS]
    Weights = Literal[WEIGHTS]
    Predictor = Literal[PREDICTORS]
    Kind = Literal[KINDS]
    DType = Literal[DTYPES]


def described(data: Any, kind: type[T], what: str) -> T:
    """Plain data as ``kind``; what is wrong is told in our words, with the place: ``$.spec.num_classes``.

    Raises:
        ArtifactError: something is missing, or of another type or size.
    """
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{what} is {_in_our_words(str(error), data)}") from error
    except LifedeployError as error:  # what the pieces together cannot be: a schedule that grows
        raise ArtifactError(f"{what} is wrong: {error.message}") from error
    except Exception as error:
        raise ArtifactError(f"{what} is wrong: {reading.reason(error)}") from error


def _in_our_words(said: str, data: Any) -> str:
    missing = re.fullmatch(r"Object missing required field `(.*?)`(?: - at `(.*)`)?", said, re.DOTALL)
    if missing:
        return f"incomplete: '{missing[1]}' is missing" + (f" at {missing[2]}" if missing[2] else "")
    wrong, _, place = said.replace("`", "").rpartition(" - at ")
    if not wrong:
        return f"wrong: {place[:1].lower()}{place[1:]}"
    value = _at(data, place)
    words = _LISTS.get(place.rpartition(".")[2])
    if wrong.startswith("Invalid enum value") and words:
        wrong = f"there are: {', '.join(words)}"
    return f"wrong at {place}: {quoted(value)}; {wrong[:1].lower()}{wrong[1:]}"


def _at(data: Any, place: str) -> Any:
    """What is at a place as msgspec writes it; '' where that cannot be told: ``[...]`` stands for any key."""
    for step in re.findall(r"\.([^.\[]+)|\[(\d+)\]", place):
        try:
            data = data[step[0]] if step[0] else data[int(step[1])]
        except (KeyError, IndexError, TypeError):
            return ""
    return data


def only(data: Any, names: Collection[str], what: str) -> None:
    """Make sure that an object has no keys but these.

    Raises:
        ArtifactError: it has; what that would change is not known.
    """
    unknown = [name for name in data if name not in names] if isinstance(data, Mapping) else []
    if unknown:
        raise ArtifactError(f"{what} is wrong: {quoted(unknown[0])} is unknown; there are: {', '.join(names)}")
