"""`load_clip`: a CLIP by name, by open_clip tag, from a file, or from a state dict, whose tensors determine the sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OvssError, unknown
from ..files import WEIGHTS, config_names, load_config, user_path
from ..torch_defaults import ordinary_torch
from .checkpoints import as_float32, read_weights, weight_errors
from .clip import ACTIVATIONS, LAYER_NORM_EPS, PRECISIONS, DenseCLIP, default_precision
from .clip_spec import ClipSpec, architectures, check_name, clip_label, refuse_path, weights_file
from .deferred import deferred
from .hub import download_failed, hub
from .known_weights import known_weights

# What open_clip imports for models other than plain ViTs, and torchvision for one function. It takes several seconds.
OTHERS = ("timm", "timm.layers", "transformers", "transformers.modeling_outputs", "torch._dynamo.utils")
# The keys of open_clip's configuration for a plain ViT.
SIZES = {
    "": ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text"),
    "vision_cfg": ("image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"),
    "text_cfg": ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"),
}


@ordinary_torch()
def load_clip(
    name: str | Path | None = None,
    *,
    pretrained: str | Path | None = None,
    state_dict: dict[str, Tensor] | None = None,
    activation: str | None = None,
    layer_norm_eps: float = LAYER_NORM_EPS,
    precision: str | None = None,
    device: str | torch.device = "cpu",
) -> DenseCLIP:
    """A CLIP ViT, split into its blocks.

    `name`: an entry of configs/clip (`demo`, `vit_b16`, ...), an open_clip architecture (`ViT-B-16`), or a file whose
    architecture follows from its tensors (OpenAI's TorchScript archives and state dicts) or is given in its metadata.
    `pretrained`: an open_clip tag or a local file for that architecture. `state_dict`: a state dict in OpenAI's naming.
    `activation`: `quick_gelu` or `gelu`; by default the one that the weights were trained with (QuickGELU for a state dict or
    file that does not state it, as for OpenAI's). Weights are cast to `precision`, by default fp32 on a CPU and fp16 on a GPU.

    Raises OvssError for an unknown name or tag, a missing file, mismatched tensors, or an architecture without a class token.
    """
    if not isinstance(name, str | Path | None):
        raise OvssError(f"clip {name!r}: expected a name or a file, not {type(name).__name__}.")
    precision = precision or default_precision(device)
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if activation not in (None, *ACTIVATIONS):
        raise unknown("activation", activation, ACTIVATIONS)
    with deferred(*OTHERS):
        import open_clip
    label = clip_label(name, pretrained)
    architecture, trained_with, known, metadata = None, None, [], {}
    if state_dict is None:
        architecture, path, trained_with, local = _find(name, pretrained)
        state_dict, metadata = read_weights(path)
        known = known_weights(path) if local and path.parent != WEIGHTS else []
        trained_with = trained_with or metadata.get("activation")
        if trained_with not in (None, *ACTIVATIONS):
            raise unknown(f"activation in the metadata of {path}", trained_with, ACTIVATIONS)
    with weight_errors(f"the weights of clip '{label}' do not fit its architecture"):
        architecture = architecture or _stated_architecture(metadata)
        config = _model_config(architecture, state_dict)
        quick = config.pop("quick_gelu", architecture is None)
        trained_with = trained_with or ("quick_gelu" if quick else "gelu")
        chosen: str = activation or trained_with
        model_class = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
        named = architecture if isinstance(architecture, str) else None
        if named is None:
            _check_sizes(config, state_dict)
        cast = None if precision == "fp32" else PRECISIONS[precision]
        model = model_class(**config, quick_gelu=chosen == "quick_gelu", cast_dtype=cast)
        model.load_state_dict(_adapted(state_dict, model), strict=True)
        tokenizer = _tokenizer(named, config["text_cfg"].get("context_length", 77))
        clip = DenseCLIP(model, tokenizer, label, chosen, layer_norm_eps)
        clip.weights_known = known
        clip.changed |= {"activation": chosen} if chosen != trained_with else {}
        clip.changed |= {"layer_norm_eps": layer_norm_eps} if layer_norm_eps != LAYER_NORM_EPS else {}
        clip.to(device, precision)
    return clip


def load_spec(spec: ClipSpec, precision: str | None = None, device: str = "cpu") -> DenseCLIP:
    return load_clip(spec.name, pretrained=spec.pretrained, precision=precision, device=device)


def patch_size_of(spec: ClipSpec) -> int | None:
    """In pixels, from the architecture or the metadata of bundled weights; None for a file, which would have to be read."""
    with deferred(*OTHERS):
        import open_clip
    entry = load_config("clip", spec.name) if spec.name in config_names("clip") else {}
    stated: Any = entry.get("architecture", spec.name)
    if not spec.pretrained and (bundled := WEIGHTS / entry.get("pretrained", "")).is_file():
        stated = _stated_architecture(read_weights(bundled)[1])
    if not isinstance(stated, dict):
        stated = open_clip.get_model_config(stated) if stated in architectures() else None
    return stated["vision_cfg"].get("patch_size") if stated else None


def _find(name: str | Path | None, pretrained: str | Path | None) -> tuple[str | None, Path, str | None, bool]:
    """open_clip's architecture, the weights file, the activation it was trained with, and whether the file is local rather than
    downloaded. Architecture and activation are None if neither configs/clip nor open_clip's table of tags states them."""
    import open_clip

    entry, architecture = {}, None
    if name in config_names("clip"):
        entry = load_config("clip", str(name))
        architecture, pretrained = entry.get("architecture"), pretrained or entry["pretrained"]
    elif name is not None and user_path(name).is_file():
        pretrained = name
    else:
        check_name(str(name))
        architecture = str(name)
    tags = open_clip.list_pretrained_tags_by_model(architecture) if architecture else []
    if pretrained is None:
        raise OvssError(f"clip '{name}' needs weights: give pretrained=TAG (one of {', '.join(tags)}) or a file.")
    pretrained = str(pretrained)
    if path := weights_file(pretrained):
        return architecture, path, entry.get("activation"), True
    if architecture is None or pretrained not in tags:
        refuse_path(pretrained)
        raise unknown(f"weights tag for {architecture}", pretrained, tags)
    config = open_clip.get_pretrained_cfg(architecture, pretrained)
    try:
        with hub():
            path = Path(open_clip.download_pretrained(config))
    except Exception as error:
        source = config.get("url") or f"https://huggingface.co/{str(config.get('hf_hub', '')).rstrip('/')}"
        hint = "give the path of the file: weights=/path/to/file"
        raise download_failed(f"the weights {architecture}/{pretrained}", source, error, hint) from error
    return architecture, path, entry.get("activation") or ("quick_gelu" if config.get("quick_gelu") else "gelu"), False


def _model_config(architecture: str | dict | None, state_dict: dict[str, Tensor]) -> dict[str, Any]:
    if isinstance(architecture, dict):
        return dict(architecture)
    if architecture is None:
        return _openai_architecture(state_dict)
    import open_clip

    if config := open_clip.get_model_config(architecture):
        return dict(config)
    raise unknown("open_clip architecture", architecture, architectures())


@cache
def _tokenizer(architecture: str | None, context_length: int) -> Callable:
    """open_clip's tokenizer for an architecture, else OpenAI's; cached, as reading a vocabulary is slow."""
    import open_clip

    return open_clip.get_tokenizer(architecture) if architecture else open_clip.SimpleTokenizer(context_length=context_length)


def _stated_architecture(metadata: Mapping[str, Any]) -> str | dict[str, Any] | None:
    """The architecture in a file's metadata: open_clip's name, or a configuration. Raises OvssError for entries other than
    sizes: they can make open_clip download models."""
    stated = metadata.get("architecture")
    if isinstance(stated, str | None):
        return stated
    for part, known in SIZES.items():
        sizes = stated.get(part) if part and isinstance(stated, dict) else stated
        if not isinstance(sizes, dict):
            raise OvssError(f"{part or 'architecture'} in the metadata is {str(sizes)[:60]}; expected an open_clip config.")
        for key, value in sizes.items():
            if key not in known or not (key in SIZES or isinstance(value, bool | int | float)):
                raise OvssError(f"{part} {key} in the metadata is {str(value)[:60]}, which is not a size of a CLIP ViT.")
    return stated


def _check_sizes(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> None:
    """Raises ValueError for a configuration that needs more parameters than the tensors have, and so could exhaust memory."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    needed = [text["vocab_size"] * text["width"], text["context_length"] ** 2, vision["width"] * vision["patch_size"] ** 2]
    needed += [config["embed_dim"] * tower["width"] for tower in (vision, text)]
    needed += [4 * tower["layers"] * tower["width"] ** 2 for tower in (vision, text)]  # attention
    needed.append((vision["image_size"] // vision["patch_size"]) ** 2 * vision["width"])
    available = sum(tensor.numel() for tensor in state_dict.values())
    if min(needed) <= 0 or sum(needed) > available:
        raise ValueError(f"sizes {dict(config)} need at least {sum(needed)} parameters, the tensors have {available}.")


def _openai_architecture(state_dict: dict[str, Tensor]) -> dict[str, Any]:
    """open_clip's configuration for a ViT in OpenAI's naming, inferred from the shapes. All of OpenAI's have width/64 heads."""
    state_dict = _clean(state_dict)
    needed = "visual.conv1.weight visual.proj visual.positional_embedding ln_final.weight text_projection positional_embedding"
    if missing := [name for name in [*needed.split(), "token_embedding.weight"] if name not in state_dict]:
        what = f"these weights are not a CLIP ViT in OpenAI's naming (no {', '.join(missing)})"
        raise OvssError(f"{what}; give their open_clip architecture.")
    width, _, _, patch = state_dict["visual.conv1.weight"].shape
    text_width = state_dict["ln_final.weight"].shape[0]

    def layers(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in state_dict if name.startswith(prefix)})

    side = patch * math.isqrt(state_dict["visual.positional_embedding"].shape[0] - 1)
    length, words = state_dict["positional_embedding"].shape[0], state_dict["token_embedding.weight"].shape[0]
    vision = {"image_size": side, "patch_size": patch, "width": width, "head_width": 64}
    text = {"context_length": length, "vocab_size": words, "width": text_width, "heads": max(text_width // 64, 1)}
    return {
        "embed_dim": state_dict["text_projection"].shape[1],
        "vision_cfg": vision | {"layers": layers("visual.transformer.resblocks.")},
        "text_cfg": text | {"layers": layers("transformer.resblocks.")},
    }


def _adapted(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors under the names of an open_clip model, in float32."""
    import open_clip

    counters = {name for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}  # of a ResNet
    state_dict = {name: t if name in counters else as_float32(name, t) for name, t in _clean(state_dict).items()}
    if isinstance(model, open_clip.CustomTextCLIP) and "positional_embedding" in state_dict:
        state_dict = open_clip.model.convert_to_custom_text_state_dict(state_dict)
    return {name: t.reshape(model.state_dict()[name].shape) if name == "logit_scale" else t for name, t in state_dict.items()}


def _clean(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Removes the prefix of distributed training and the extra entries of OpenAI's archives."""
    extra = {"input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask"}
    named = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    return {name: tensor for name, tensor in named.items() if name not in extra and not name.endswith("position_ids")}
