"""Reading CLIP weights from files: safetensors, PyTorch state dicts and OpenAI's TorchScript archives. Nothing is unpickled
unsafely."""

from __future__ import annotations

import argparse
import json
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from ..errors import OvssError

# Under which names training codes store the state dict that counts (DINO: the teacher; FOUND: its decoder).
WRAPPERS = ("state_dict", "model", "teacher", "student", "decoder")


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file and what its metadata says: safetensors' own (JSON where it is), and the activation of OpenAI's
    archives."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                metadata = {name: _parsed(value) for name, value in (file.metadata() or {}).items()}
                return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
        if zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist()):
            # Only OpenAI released such archives, and all of them were trained with QuickGELU, whatever architecture is named.
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict()), {"activation": "quick_gelu"}
        with torch.serialization.safe_globals([argparse.Namespace]):  # DINO's and MAE's training checkpoints keep their options
            content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, dict):
            content = next((content[name] for name in WRAPPERS if name in content), content)
        if not isinstance(content, dict) or not content or not all(isinstance(t, Tensor) for t in content.values()):
            raise ValueError("it holds no state dict")
        return content, {}
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, safetensors.SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OvssError(
            f"weights {path} cannot be read safely: {reason}. Expected safetensors, a state dict saved by "
            "torch.save, or one of OpenAI's TorchScript archives."
        ) from error


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def openai_architecture(state_dict: dict[str, Tensor]) -> dict[str, Any]:
    """open_clip's configuration of a ViT in OpenAI's naming, told from the shapes; heads are width/64, as in all of theirs."""
    state_dict = _clean(state_dict)
    telling = "visual.conv1.weight visual.proj visual.positional_embedding ln_final.weight text_projection positional_embedding"
    missing = [name for name in [*telling.split(), "token_embedding.weight"] if name not in state_dict]
    if missing:
        raise OvssError(
            f"these weights are not a CLIP ViT in OpenAI's naming (no {', '.join(missing)}); name their open_clip architecture."
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
    """The tensors as the open_clip model names them, in float32 without a detour through half precision."""
    import open_clip

    state_dict = {name: t.float() if t.is_floating_point() else t for name, t in _clean(state_dict).items()}
    if isinstance(model, open_clip.CustomTextCLIP) and "positional_embedding" in state_dict:
        state_dict = open_clip.model.convert_to_custom_text_state_dict(state_dict)
    return {name: t.reshape(model.logit_scale.shape) if name == "logit_scale" else t for name, t in state_dict.items()}


def _clean(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix of distributed training and without what OpenAI's archives store beside the weights."""
    extra = {"input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask"}
    named = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    return {name: tensor for name, tensor in named.items() if name not in extra and not name.endswith("position_ids")}
