"""Vision encoders beside CLIP, for `vfm=`: DINO, DINOv2, DINOv3, MAE, SAM and SAM 2, by name (configs/vision), from a file in
any of their published formats, or from a state dict."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import numpy as np
import torch
from huggingface_hub import constants
from torch import Tensor, nn

from ..config.validation import Count, Fraction, validate
from ..errors import OvssError, unknown
from ..files import DAMAGES, WEIGHTS, config_names, data_files, digest, load_config, read_array, user_path, weights_folders
from ..image import STATISTICS, image_key
from ..torch_defaults import ordinary_torch
from .checkpoints import outline, read_weights, state_digest, weight_errors
from .clip import PRECISIONS
from .hub import hub
from .sam import SAM, SAM2, SAM2Encoder, SAMEncoder, sam2_names, sam2_size, sam_names
from .vit import PlainViT, plain_names

if TYPE_CHECKING:
    from ..types import WindowBatch

FEATURES = ("tokens", "q", "k", "v", "q+k")
POSITIONS = ("offset", "size", "antialias", "bilinear")
TOKENS = {"cpu": 8192, "cuda": 65536}  # in one forward pass: bounds the memory


class VisionEncoder:
    """Features of windows or images, float32, on the device that the pixels are on.

    `feature`: "tokens" (the output of the last block after the final norm), or "q", "k", "v" or "q+k" of the last block, heads
    concatenated; patches only. "tokens" of SAM and SAM 2 are the image embedding. `digest` depends on weights and settings
    only, not on the file.
    """

    def __init__(self, model: nn.Module, name: str, feature: str, precision: str, device: str | torch.device, sha: str) -> None:
        self.model: Any = model.eval().requires_grad_(False).to(device, PRECISIONS[precision])
        self.name, self.feature, self.precision, self.digest = name, feature, precision, sha
        self.device = torch.device(device)
        self.patch_size: int = self.model.patch_size

    @torch.inference_mode()
    def __call__(self, batch: WindowBatch) -> Tensor:
        """Windows (B, 3, H, W) normalised for CLIP -> (B, C, h, w).

        The normalisation is undone with CLIP's exact statistics, even if the windows were normalised with rounded ones, as in
        the official codes (ProxyCLIP, CorrCLIP, Trident).
        """
        pixels = batch.pixels.float()
        values = torch.tensor([*STATISTICS["clip_exact"], *STATISTICS["imagenet"]], device=pixels.device).view(4, 3, 1, 1)
        mean, std, new_mean, new_std = values
        return self.features((pixels * std + mean - new_mean) / new_std)

    @torch.inference_mode()
    def features(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) normalised with ImageNet's statistics -> (B, C, h, w)."""
        height, width = pixels.shape[2:]
        if min(height, width) < self.patch_size:
            raise OvssError(
                f"an image of {height}x{width} pixels is smaller than a patch of vision encoder '{self.name}' "
                f"({self.patch_size}). Use larger windows or another encoder."
            )
        images = max(TOKENS.get(self.device.type, TOKENS["cuda"]) // self.model.tokens(height, width), 1)
        parts = [self.model(part.to(self.device), self.feature).float() for part in pixels.split(images)]
        return torch.cat(parts).to(pixels.device)


class FeatureFolder:
    """Precomputed features of whole images (C-RADIOv3, ...), for methods whose encoder sees the whole image (CorrCLIPv2):
    `features` (C, h, w) in an npz file for each image, named by `image_key` of the image."""

    patch_size = 1  # any size

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digest = digest("features", *(f"{file.name} {_checksums(file)}" for file in data_files(folder, "*.npz")))

    def __call__(self, batch: WindowBatch) -> Tensor:
        """(1, C, h, w) of a batch that is a single whole image."""
        if batch.contexts is None or batch.origins is not None or len(batch.contexts) != 1:
            raise OvssError(f"the features in {self.folder} are of whole images, but the method passes windows to its encoder.")
        image = batch.contexts[0].original
        path = self.folder / f"{image_key(image)}.npz"
        try:
            features = read_array(path, "features")
            if features.ndim != 3 or features.dtype.kind not in "fiu" or not np.isfinite(features).all():
                raise ValueError(f"`features` are {features.dtype} of the shape {features.shape}, or hold NaN or infinity")
        except DAMAGES as error:
            raise OvssError(
                f"features {path} of an image of {image.shape[0]} x {image.shape[1]} pixels (height x width) cannot be read: "
                f"{error}. Expected an npz file with `features` (C, h, w), named by ob.image_key(image)."
            ) from error
        return torch.from_numpy(features.astype(np.float32))[None].to(batch.pixels.device)


def _checksums(file: Path) -> list[int]:
    """Checksums of the arrays in an npz file, from its directory, so that large files need not be read."""
    try:
        with zipfile.ZipFile(file) as archive:
            return [entry.CRC for entry in archive.infolist()]
    except (*DAMAGES, NotImplementedError):  # reported when it is read
        return []


@ordinary_torch()
def load_vision(
    name: str | Path | None = None,
    *,
    state_dict: dict[str, Tensor] | None = None,
    heads: int | None = None,
    layer_norm_eps: float | None = None,
    position: str | None = None,
    feature: str | None = None,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
) -> VisionEncoder | FeatureFolder:
    """A vision encoder: `name` is an entry of configs/vision (`dino_vitb8`, `demo`, ...), a file, or a folder of precomputed
    features; `state_dict` its tensors.

    Patch, width, depth, the grid of the positions, registers, layer scale and the kind of feed-forward network follow from the
    tensors. `heads` does not: it comes from the entry, the file's metadata, or the width if a published model has it; else it
    must be given. `layer_norm_eps`: by default 1e-6, for DINOv3 1e-5. `position`: how the position embedding is resampled,
    `offset` (the code of DINO and DINOv2), `antialias` (DINOv2 with registers), `size` (MAE) or `bilinear`; see
    ops/position.py. As in DINO it is never resampled if the number of patches agrees and the input is square. `feature`:
    "tokens" by default; see `VisionEncoder`. The file of an entry is searched in the folder given by the environment variable
    OVSS_WEIGHTS, in the package, then in the usual cache, to which it is downloaded.

    Raises OvssError for an unknown name, a missing file, mismatched tensors, or an unknown number of heads.
    """
    feature = feature or "tokens"
    for kind, value, known in (("feature", feature, FEATURES), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise unknown(kind, value, known)
    if position not in (None, *POSITIONS):
        raise unknown("position", position, POSITIONS)
    label, settings = "state_dict", {}
    if state_dict is None and name not in config_names("vision") and Path(name or "-").is_dir():
        return FeatureFolder(Path(name or "-"))
    if state_dict is None:
        path, settings = find_weights("vision", name)
        state_dict, metadata = read_weights(path)
        settings = {key: metadata[key] for key in ("heads", "layer_norm_eps") if key in metadata} | settings
        label = str(name) if name in config_names("vision") else path.name
    given = {"heads": heads, "layer_norm_eps": layer_norm_eps, "position": position}
    settings = settings | {key: value for key, value in given.items() if value is not None}
    try:
        with weight_errors("they cannot be put together"):
            _check(settings)
            model, state = _build(state_dict, settings)
            _rehearse(model, feature)
    except OvssError as error:
        raise OvssError(f"the weights of vision encoder '{label}' do not fit: {error}") from error
    names = {"architecture": "architecture", "patch": "patch_size", "width": "width", "depth": "depth", "heads": "heads"}
    found = {key: getattr(model, attribute) for key, attribute in names.items()}
    differ = [f"{key} {value} instead of {settings[key]}" for key, value in found.items() if settings.get(key, value) != value]
    if differ:
        raise OvssError(
            f"the weights of vision encoder '{label}' are those of another model: {', '.join(differ)}. Give the right file."
        )
    if feature != "tokens" and not isinstance(model, PlainViT):
        raise OvssError(f"vision encoder '{label}' provides its image embedding only: use feature=tokens, not {feature}.")
    if position is not None and getattr(model, "position", None) is None:
        raise OvssError(f"vision encoder '{label}' never resamples its position embedding: leave position={position} out.")
    described = model.settings | {"architecture": model.architecture, "feature": feature, "precision": precision}
    identity = digest(state_digest(state), json.dumps(described, sort_keys=True))
    return VisionEncoder(model, label, feature, precision, device, identity)


def _check(settings: Mapping[str, Any]) -> None:
    """Checks the settings that may come from a file's metadata."""
    for name, hint in {"heads": Count | None, "layer_norm_eps": Fraction | None}.items():
        validate(name, settings.get(name), hint)


def _rehearse(model: Any, feature: str) -> None:
    """A forward pass on the meta device, which checks at no cost that all shapes fit together."""
    pixels = torch.empty(1, 3, 2 * model.patch_size, 3 * model.patch_size, device="meta")
    with torch.inference_mode():
        torch.func.functional_call(model, outline(model), (pixels, "tokens" if not isinstance(model, PlainViT) else feature))


def _build(state_dict: dict[str, Tensor], settings: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """The model, built by the names and shapes of the tensors, and its tensors under its own names."""
    eps = settings.get("layer_norm_eps")
    if any(map(SAM2.fullmatch, state_dict)):
        state = sam2_names(state_dict)
        return SAM2Encoder(state, settings.get("sam2") or _sam2_settings(state), eps), state
    if any(map(SAM.fullmatch, state_dict)):
        state = sam_names(state_dict)
        return SAMEncoder(state, eps), state
    state = plain_names(state_dict)
    square = settings.get("square", any("decoder" in name for name in state_dict))  # only MAE's files hold a decoder
    rule = settings.get("position") or ("size" if square else "antialias" if "registers" in state else "offset")
    return PlainViT(state, settings.get("heads"), eps, rule, square), state


def _sam2_settings(state: dict[str, Tensor]) -> dict[str, Any]:
    """Settings of SAM 2 that do not follow from the tensors, from the entry of that size."""
    entries = [load_config("vision", name) for name in config_names("vision")]
    for entry in entries:
        if "sam2" in entry and (entry["width"], entry["depth"]) == sam2_size(state):
            return entry["sam2"]
    raise OvssError("width {} and depth {} do not match any SAM 2 in configs/vision.".format(*sam2_size(state)))


def find_weights(group: str, name: str | Path | None) -> tuple[Path, dict[str, Any]]:
    """The file of a name, and its entry in configs/<group> (empty for files without one).

    An entry gives its official `file` and its origin: `url`, or `hub`, a repository on huggingface.co.
    """
    folders = weights_folders()
    entries = {entry: load_config(group, entry) for entry in config_names(group)}
    if name in entries:
        name = str(name)
        entry = entries[name]
        for folder in folders:
            if (folder / entry["file"]).is_file():
                return folder / entry["file"], entry
        return _download(name, entry, {"vision": "vfm"}.get(group, group)), entry
    for path in (Path(name or ""), *(folder / (name or "") for folder in folders)):
        if user_path(path).is_file():
            return user_path(path), next((entry for entry in entries.values() if entry["file"] == path.name), {})
    if Path(name or "").suffix or os.sep in str(name):
        raise OvssError(f"weights {name} do not exist. Give the path of a file (safetensors, .pth, .pt or .bin).")
    raise unknown(group, name, entries)


def _download(name: str, entry: Mapping[str, Any], option: str) -> Path:
    """The entry's file in the usual cache, downloaded if necessary; `option` is the option that would give another file."""
    if "url" not in entry and "hub" not in entry:
        raise OvssError(
            f"the weights of '{name}' belong to the package, but {WEIGHTS / entry['file']} is missing. Reinstall it."
        )
    source = entry.get("url") or f"https://huggingface.co/{entry['hub']}"
    cached = Path(torch.hub.get_dir()) / "checkpoints" / entry["file"]
    try:
        if "hub" in entry:
            with hub():
                return Path(huggingface_hub.hf_hub_download(entry["hub"], entry["hub_file"]))
        if not cached.is_file():
            if constants.HF_HUB_OFFLINE:
                raise ConnectionError("HF_HUB_OFFLINE is set")
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(entry["url"], str(cached))
        return cached
    except Exception as error:
        raise OvssError(
            f"the weights of '{name}', {entry['file']}, are not on this machine and could not be downloaded from {source} "
            f"({type(error).__name__}). Download them by hand, then give the file ({option}=/path/to/{entry['file']}) or move "
            "it to the folder given by the environment variable OVSS_WEIGHTS."
        ) from error
