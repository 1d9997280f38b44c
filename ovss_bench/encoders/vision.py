"""Vision encoders besides CLIP, for `vfm=`: DINO, DINOv2, DINOv3, MAE, SAM and SAM 2, from any of their published formats."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from torch import Tensor, nn

from ..config.validation import Count, Fraction, validate
from ..errors import OvssError, unknown
from ..files import DAMAGES, WEIGHTS, config_names, data_files, digest, load_config, read_array, user_path, weights_folders
from ..image import STATISTICS, image_key
from ..ops.device import kept, to_device
from ..torch_defaults import ordinary_torch
from ..types import ImageContext, WindowBatch
from .checkpoints import on_meta, read_weights, state_digest, weight_errors
from .clip import PRECISIONS
from .hub import WEIGHTS_FOLDER, download_failed, hub
from .sam import SAM, SAM2, SAM2Encoder, SAMEncoder, sam2_names, sam2_size, sam_names
from .vit import PlainViT, plain_names

FEATURES = ("tokens", "q", "k", "v", "q+k")
ONCE_PER_IMAGE = "@image"  # at the end of a name
POSITIONS = ("offset", "size", "antialias", "bilinear")
TOKENS = {"cpu": 8192, "cuda": 65536}  # in one forward pass: bounds the memory


class VisionEncoder:
    """Features of windows or images, float32, on the device of the pixels. Encoders with the same weights share all blocks but
    the last on a batch of windows.

    `feature`: "tokens" (the output of the last block after the final norm), or "q", "k", "v" or "q+k" of the last block, heads
    concatenated; patches only. "tokens" of SAM and SAM 2 are the image embedding. `digest` depends on weights and settings
    only, not on the file; `weights` is the digest of the tensors.
    """

    def __init__(
        self, model: nn.Module, name: str, feature: str, precision: str, device: str | torch.device, weights: str
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False).to(device, PRECISIONS[precision])
        self.name, self.feature, self.precision = name, feature, precision
        settings = self.model.settings | {"architecture": self.model.architecture, "precision": precision}
        self.digest = digest(weights, json.dumps(settings | {"feature": feature}, sort_keys=True))
        self.trunk_digest = digest(weights, json.dumps(settings, sort_keys=True))
        self.device = torch.device(device)
        self.patch_size: int = self.model.patch_size

    @torch.inference_mode()
    def __call__(self, batch: WindowBatch) -> Tensor:
        """Windows (B, 3, H, W) normalised for CLIP -> (B, C, h, w).

        Undoes the normalisation with CLIP's exact statistics, even for windows normalised with rounded ones, as in the official
        code of ProxyCLIP, CorrCLIP and Trident.
        """
        return self.features(_renormalised(batch.pixels), batch.shared)

    @torch.inference_mode()
    def joined(self, batch: WindowBatch, join: Callable[[Tensor], Tensor]) -> Tensor:
        """The last block over the patches of all windows of an image: (C, H, W). `join` makes one map of the windows' maps (B,
        C, h, w), see `PlainViT.last_joined`. Raises OvssError for other encoders."""
        if not isinstance(self.model, PlainViT) or self.model.rotary:
            what = f"vision encoder '{self.name}' has no last block with learned positions to run on all windows together"
            raise OvssError(f"{what}. Use a DINO, DINOv2 or MAE.")
        parts = self.before_last(_renormalised(batch.pixels), batch.shared)
        tokens = torch.cat([tokens for tokens, _ in parts])
        return self.model.last_joined(tokens, parts[0][1], join).float().to(batch.pixels.device)

    @torch.inference_mode()
    def features(self, pixels: Tensor, shared: dict[Any, Any] | None = None) -> Tensor:
        """Pixels (B, 3, H, W) normalised with ImageNet's statistics -> (B, C, h, w). `shared` keeps, by encoder, the output of
        all blocks but the last for these pixels."""
        before = self.before_last(pixels, {} if shared is None else shared)
        return torch.cat([self.model.last(*part, self.feature).float() for part in before]).to(pixels.device)

    def before_last(self, pixels: Tensor, shared: dict[Any, Any]) -> list[Any]:
        if self.trunk_digest not in shared:
            shared[self.trunk_digest] = [self.model.before_last(part.to(self.device)) for part in self.parts(pixels)]
        return shared[self.trunk_digest]

    def parts(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The pixels, split into parts that fit into a forward pass."""
        height, width = pixels.shape[2:]
        if min(height, width) < self.patch_size:
            what = f"an image of {height}x{width} pixels is smaller than a patch of vision encoder '{self.name}'"
            raise OvssError(f"{what} ({self.patch_size}). Use larger windows or another encoder.")
        return pixels.split(max(TOKENS.get(self.device.type, TOKENS["cuda"]) // self.model.tokens(height, width), 1))


def _renormalised(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) normalised for CLIP -> normalised with ImageNet's statistics, float32."""
    mean, std, new_mean, new_std = _statistics(like=pixels)
    return (pixels.float() * std + mean - new_mean) / new_std


@kept(1)
def _statistics() -> Tensor:
    """Mean and standard deviation for CLIP, then ImageNet's (4, 3, 1, 1)."""
    return torch.tensor([*STATISTICS["clip_exact"], *STATISTICS["imagenet"]]).view(4, 3, 1, 1)


class OncePerImage:
    """A vision encoder that runs once per resized image instead of once per window. A window's features are sampled
    from those of the image at the window's patches (bilinear): cheaper where windows overlap, but not what the papers do."""

    def __init__(self, encoder: VisionEncoder) -> None:
        self.encoder, self.patch_size = encoder, encoder.patch_size
        self.digest = digest(encoder.digest, "once per image")

    @torch.inference_mode()
    def __call__(self, batch: WindowBatch) -> Tensor:
        """Windows (B, 3, H, W) normalised for CLIP -> (B, C, h, w)."""
        if batch.contexts is None or batch.images is None or batch.origins is None:
            return self.encoder(batch)  # whole images
        contexts, size = batch.contexts, batch.pixels.shape[2:]
        places = zip(batch.images.tolist(), batch.origins.tolist(), strict=True)
        return torch.cat([self.cut(contexts[image], origin, size) for image, origin in places])

    def cut(self, context: ImageContext, origin: Sequence[int], size: Sequence[int]) -> Tensor:
        """The features (1, C, h, w) of a window of this size (H, W) at its origin (y, x); outside the image, the nearest."""
        whole = self.of_image(context)
        points = [
            2 * (first / self.patch_size + torch.arange(side // self.patch_size, device=whole.device) + 0.5) / cells - 1
            for first, side, cells in zip(origin, size, whole.shape[2:], strict=True)
        ]
        grid = torch.stack(torch.meshgrid(points[1], points[0], indexing="xy"), -1)[None]
        return F.grid_sample(whole, grid.to(whole), mode="bilinear", padding_mode="border", align_corners=False)

    def of_image(self, context: ImageContext) -> Tensor:
        """The features (1, C, h, w) of the resized image, whose last row and column are repeated to fill the last patches."""
        height, width = context.pixels.shape[1:]
        key = ("resized image", self.patch_size)
        if key not in context.shared:
            missing = (0, -width % self.patch_size, 0, -height % self.patch_size)
            context.shared[key] = WindowBatch(F.pad(context.pixels[None], missing, mode="replicate"), contexts=[context])
        return context.shared[key].once(self.encoder)


class FeatureFolder:
    """Precomputed features of whole images (C-RADIOv3, ...), for methods whose encoder sees the whole image (CorrCLIPv2):
    `features` (C, h, w) in an npz file per image, named by its `image_key`."""

    patch_size = 1  # fits images of any size

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digest = digest("features", *(f"{file.name} {_checksums(file)}" for file in data_files(folder, "*.npz")))

    def __call__(self, batch: WindowBatch) -> Tensor:
        """The features (1, C, h, w) for a batch that is a single whole image."""
        if batch.contexts is None or batch.origins is not None or len(batch.contexts) != 1:
            what = f"the features in {self.folder} are of whole images, but the method passes windows to its encoder"
            raise OvssError(f"{what}. Give a vision encoder: vfm=NAME.")
        image = batch.contexts[0].original
        path = self.folder / f"{image_key(image)}.npz"
        try:
            features = read_array(path, "features")
            if features.ndim != 3 or features.dtype.kind not in "fiu" or not np.isfinite(features).all():
                raise ValueError(f"`features` are {features.dtype} of the shape {features.shape}, or hold NaN or infinity")
        except DAMAGES as error:
            what = f"features {path} of an image of {image.shape[0]} x {image.shape[1]} pixels (height x width) cannot be read"
            hint = "Expected an npz file with `features` (C, h, w), named by ob.image_key(image)."
            raise OvssError(f"{what}: {error}. {hint}") from error
        return to_device(torch.from_numpy(features.astype(np.float32))[None], batch.pixels.device)


def _checksums(file: Path) -> list[int]:
    """Checksums of the arrays in an npz file, from its zip directory, so that large files need not be read."""
    try:
        with zipfile.ZipFile(file) as archive:
            return [entry.CRC for entry in archive.infolist()]
    except (*DAMAGES, NotImplementedError):  # reported when the file is read
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
) -> VisionEncoder | OncePerImage | FeatureFolder:
    """A vision encoder from `name`, an entry of configs/vision, a file or a folder of precomputed features, or a `state_dict`.
    NAME@image: once per image, see `OncePerImage`.

    Patch, width, depth, the grid of the positions, registers, layer scale and the kind of feed-forward network follow from the
    tensors. `heads`: from the entry, the file's metadata, or the width of a published model; else it must be given.
    `layer_norm_eps`: by default 1e-6, for DINOv3 1e-5. `position`: how the position embedding is resampled, `offset` (the code
    of DINO and DINOv2), `antialias` (DINOv2 with registers), `size` (MAE) or `bilinear`; see ops/position.py. As in DINO, it is
    never resampled if the number of patches agrees and the input is square. `feature`: see `VisionEncoder`. The file of an
    entry is looked up in $OVSS_WEIGHTS, in the package and in torch's or huggingface's cache, or downloaded to the latter.

    Raises OvssError for an unknown name, a missing file, mismatched tensors, or an unknown number of heads.
    """
    feature = feature or "tokens"
    checked = {"feature": (feature, FEATURES), "precision": (precision, PRECISIONS), "position": (position, (None, *POSITIONS))}
    for key, (value, known) in checked.items():
        if value not in known:
            raise unknown(key, value, filter(None, known))
    label, settings = "state_dict", {}
    options = {"heads": heads, "layer_norm_eps": layer_norm_eps, "position": position}
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    if state_dict is None and str(name).endswith(ONCE_PER_IMAGE):
        find_vision(name)
        plain = str(name).removesuffix(ONCE_PER_IMAGE)
        encoder: Any = load_vision(plain, **given, feature=feature, precision=precision, device=device)
        return OncePerImage(encoder)
    if state_dict is None:
        if name and name not in config_names("vision") and user_path(name).is_dir():
            if given:
                raise OvssError(f"{name} is a folder of features: {', '.join(given)} would have no effect. Leave them out.")
            return FeatureFolder(user_path(name))
        path, settings = find_weights("vision", name)
        state_dict, metadata = read_weights(path)
        settings = {key: metadata[key] for key in ("heads", "layer_norm_eps") if key in metadata} | settings
        label = str(name) if name in config_names("vision") else path.name
    settings = settings | given
    try:
        with weight_errors("they cannot be put together"):
            for key, hint in {"heads": Count | None, "layer_norm_eps": Fraction | None}.items():
                validate(key, settings.get(key), hint)
            model, state = _build(state_dict, settings)
            pixels = torch.empty(1, 3, 2 * model.patch_size, 3 * model.patch_size, device="meta")
            on_meta(model, pixels, feature if isinstance(model, PlainViT) else "tokens")
    except OvssError as error:
        raise OvssError(f"the weights of vision encoder '{label}' do not fit: {error}") from error
    actual = {"architecture": model.architecture, "patch": model.patch_size}
    actual |= {key: getattr(model, key) for key in ("width", "depth", "heads")}
    differ = [f"{key} {value} instead of {settings[key]}" for key, value in actual.items() if settings.get(key, value) != value]
    if differ:
        raise OvssError(f"the weights of vision encoder '{label}' differ: {', '.join(differ)}. Give the file of this model.")
    if feature != "tokens" and not isinstance(model, PlainViT):
        raise OvssError(f"vision encoder '{label}' provides its image embedding only: use feature=tokens, not {feature}.")
    if position is not None and getattr(model, "position", None) is None:
        raise OvssError(f"vision encoder '{label}' never resamples its position embedding: leave position={position} out.")
    return VisionEncoder(model, label, feature, precision, device, state_digest(state))


def _build(state_dict: dict[str, Tensor], settings: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """The model that the names and shapes of the tensors determine, and the tensors under the model's names."""
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
    for name in config_names("vision"):
        entry = load_config("vision", name)
        if "sam2" in entry and (entry["width"], entry["depth"]) == sam2_size(state):
            return entry["sam2"]
    raise OvssError("width {} and depth {} do not match any SAM 2 in configs/vision.".format(*sam2_size(state)))


def find_vision(name: str | Path | None) -> None:
    """Raises OvssError for a name that `load_vision` does not know, without reading weights."""
    plain = str(name).removesuffix(ONCE_PER_IMAGE)
    if plain in config_names("vision") or not user_path(plain).is_dir():
        local_weights("vision", plain)
    elif plain != str(name):
        raise OvssError(f"vfm={name}: a folder holds features of whole images. Leave {ONCE_PER_IMAGE} out.")


def find_weights(group: str, name: str | Path | None) -> tuple[Path, dict[str, Any]]:
    """`local_weights`, downloaded if necessary."""
    path, entry = local_weights(group, name)
    return path or _download(group, str(name), entry), entry


def local_weights(group: str, name: str | Path | None) -> tuple[Path | None, dict[str, Any]]:
    """The file of a name, None if it must be downloaded, and its entry in configs/<group> (empty for a file without one).
    Raises OvssError for a name that is neither an entry nor a file.

    An entry states its official `file` and its origin: `url`, or `hub`, a repository on huggingface.co.
    """
    entries = {entry: load_config(group, entry) for entry in config_names(group)}
    if name in entries:
        entry = entries[str(name)]
        local = (folder / entry["file"] for folder in weights_folders())
        return next((path for path in local if path.is_file()), None), entry
    for path in (user_path(name or ""), *(folder / (name or "") for folder in weights_folders())):
        if path.is_file():
            return path, next((entry for entry in entries.values() if entry["file"] == path.name), {})
    if Path(name or "").suffix or os.sep in str(name):
        raise OvssError(f"weights {name} do not exist. Give the path of a file (safetensors, .pth, .pt or .bin).")
    raise unknown(group, name, entries)


def _download(group: str, name: str, entry: Mapping[str, Any]) -> Path:
    """The entry's file in torch's or huggingface's cache, downloaded if necessary."""
    if "url" not in entry and "hub" not in entry:
        raise OvssError(f"the weights of '{name}' belong to the package, but {WEIGHTS / entry['file']} is missing: reinstall.")
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
        source, option = entry.get("url") or f"https://huggingface.co/{entry['hub']}", {"vision": "vfm"}.get(group, group)
        hint = f"give the file ({option}=/path/to/{entry['file']}) or move it to {WEIGHTS_FOLDER}"
        raise download_failed(f"the weights of '{name}', {entry['file']},", source, error, hint) from error
