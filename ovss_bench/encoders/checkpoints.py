"""Reads weights from files: safetensors, PyTorch state dicts and OpenAI's TorchScript archives, without unsafe unpickling."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from ..errors import OvssError
from .torchscript import is_torchscript, read_torchscript

# The keys of open_clip's configuration of a plain ViT.
SIZES = {
    "": ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text"),
    "vision_cfg": ("image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"),
    "text_cfg": ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"),
}
# Keys under which training codes store the state dict (DINO: the teacher; FOUND: its decoder).
WRAPPERS = ("state_dict", "model", "teacher", "student", "decoder")


@contextmanager
def weight_errors(what: str) -> Iterator[None]:
    """Turns any exception into an OvssError that begins with `what`, for code that depends on the content of weights: parsers
    and mismatched tensors raise nearly anything. OvssErrors and out-of-memory errors of GPUs pass unchanged.
    """
    try:
        yield
    except (OvssError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = f"no {error.args[0]}" if isinstance(error, KeyError) and error.args else str(error).strip()
        raise OvssError(f"{what}: {reason[:600] or type(error).__name__}") from error


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file and its metadata: of safetensors (values parsed if they are JSON), and the activation of OpenAI's
    archives."""
    path = Path(path)
    try:
        content, metadata = _read(path)
        if isinstance(content, dict):
            content = next((content[name] for name in WRAPPERS if name in content), content)
        if not isinstance(content, dict) or not content:
            raise ValueError("it holds no state dict")
        for name, tensor in content.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise ValueError(f"it holds no state dict: {str(name)[:60]!r} is no tensor")
            if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or _is_expanded(tensor):
                raise ValueError(f"{name!r} is no plain tensor")
        return content, metadata
    except Exception as error:  # from a safetensors file, a zip file, a pickle, or a web page saved under such a name
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OvssError(
            f"weights {path} cannot be read safely: {reason}. Expected safetensors, a state dict saved by torch.save, or one "
            "of OpenAI's TorchScript archives."
        ) from error


def _read(path: Path) -> tuple[Any, dict[str, Any]]:
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "pt") as file:
            metadata = {name: _parsed(value) for name, value in (file.metadata() or {}).items()}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    if is_torchscript(path):
        # Only OpenAI released such archives, all trained with QuickGELU.
        return read_torchscript(path), {"activation": "quick_gelu"}
    with torch.serialization.safe_globals([argparse.Namespace]):  # in training checkpoints of DINO and MAE
        return torch.load(path, map_location="cpu", weights_only=True), {}


def _is_expanded(tensor: Tensor) -> bool:
    """Whether a tensor claims more elements than its storage has: a few bytes could claim to be a terabyte."""
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def as_float32(name: str, tensor: Tensor) -> Tensor:
    """Raises OvssError for tensors that are not floating point: quantised weights are useless without their scales."""
    if not tensor.is_floating_point():
        raise OvssError(f"tensor {name} is {tensor.dtype}, not of floating point; were these weights quantised?")
    return tensor.float()


def outline(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers on the meta device, for forward passes that only check shapes."""
    return {name: tensor.to("meta") for name, tensor in chain(model.named_parameters(), model.named_buffers())}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def stated_architecture(metadata: Mapping[str, Any]) -> str | dict[str, Any] | None:
    """The architecture in a file's metadata: open_clip's name, or a configuration that holds nothing but sizes, since open_clip
    would download something for other entries. Raises OvssError for anything else."""
    stated = metadata.get("architecture")
    if isinstance(stated, str | None):
        return stated
    for part, known in SIZES.items():
        sizes = stated.get(part) if part and isinstance(stated, dict) else stated
        if not isinstance(sizes, dict):
            raise OvssError(
                f"{part or 'architecture'} in the metadata is {str(sizes)[:60]}; expected a configuration of open_clip."
            )
        for key, value in sizes.items():
            if key not in known or not (key in SIZES or isinstance(value, bool | int | float)):
                raise OvssError(f"{part} {key} in the metadata is {str(value)[:60]}, which is not a size of a CLIP ViT.")
    return stated


def check_sizes(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> None:
    """Checks that a configuration, from metadata or single tensors, does not need more parameters than there are, before a
    model of wrong sizes exhausts the memory. Raises ValueError."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    needed = [text["vocab_size"] * text["width"], text["context_length"] ** 2, vision["width"] * vision["patch_size"] ** 2]
    needed += [config["embed_dim"] * tower["width"] for tower in (vision, text)]
    needed += [4 * tower["layers"] * tower["width"] ** 2 for tower in (vision, text)]  # of attention
    needed.append((vision["image_size"] // vision["patch_size"]) ** 2 * vision["width"])
    available = sum(tensor.numel() for tensor in state_dict.values())
    if min(needed) <= 0 or sum(needed) > available:
        raise ValueError(f"sizes {dict(config)} need at least {sum(needed)} parameters, the tensors have {available}.")


def openai_architecture(state_dict: dict[str, Tensor]) -> dict[str, Any]:
    """open_clip's configuration of a ViT in OpenAI's naming, inferred from the shapes; as in all of theirs, width/64 heads."""
    state_dict = _clean(state_dict)
    needed = "visual.conv1.weight visual.proj visual.positional_embedding ln_final.weight text_projection positional_embedding"
    missing = [name for name in [*needed.split(), "token_embedding.weight"] if name not in state_dict]
    if missing:
        raise OvssError(
            f"these weights are not a CLIP ViT in OpenAI's naming (no {', '.join(missing)}); give their open_clip architecture."
        )
    width, _, _, patch = state_dict["visual.conv1.weight"].shape
    text_width = state_dict["ln_final.weight"].shape[0]

    def layers(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in state_dict if name.startswith(prefix)})

    return {
        "embed_dim": state_dict["text_projection"].shape[1],
        "vision_cfg": {
            "image_size": patch * math.isqrt(state_dict["visual.positional_embedding"].shape[0] - 1),
            "patch_size": patch,
            "width": width,
            "layers": layers("visual.transformer.resblocks."),
            "head_width": 64,
        },
        "text_cfg": {
            "context_length": state_dict["positional_embedding"].shape[0],
            "vocab_size": state_dict["token_embedding.weight"].shape[0],
            "width": text_width,
            "heads": max(text_width // 64, 1),
            "layers": layers("transformer.resblocks."),
        },
    }


def adapt_state_dict(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors under the open_clip model's names, in float32 without a detour through half precision."""
    import open_clip

    whole = {name for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}  # counters of a ResNet
    state_dict = {name: t if name in whole else as_float32(name, t) for name, t in _clean(state_dict).items()}
    if isinstance(model, open_clip.CustomTextCLIP) and "positional_embedding" in state_dict:
        state_dict = open_clip.model.convert_to_custom_text_state_dict(state_dict)
    return {name: t.reshape(model.logit_scale.shape) if name == "logit_scale" else t for name, t in state_dict.items()}


def _clean(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix of distributed training and the extra entries of OpenAI's archives."""
    extra = {"input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask"}
    named = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    return {name: tensor for name, tensor in named.items() if name not in extra and not name.endswith("position_ids")}
