"""Self-attention maps of Stable Diffusion, for `diffusion=`, from one denoising step at a low noise level.

Checkpoints in the layout of diffusers: 1.x, 2.x and XL, by name (configs/diffusion) or folder.

Shapes: image (H, W, 3); S image_size; N = (S/8)^2 tokens at the resolution of the latents, fewer in deeper layers.
"""

# diffusers has no types for its exports, schedulers and configurations.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportOptionalCall=false

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OvssError, unknown
from ..files import config_names, digest, load_config, user_path
from ..torch_defaults import ordinary_torch
from .checkpoints import on_meta, state_digest, weight_errors
from .clip import PRECISIONS
from .hub import WEIGHTS_FOLDER, download_failed, hub, local_repository, short, whole_network

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

# The settings of CLIPer's code; the entries of configs/diffusion repeat them with their sources.
DEFAULTS = {"attention_layers": [-4, -6], "time_step": 45, "steps": 50}


class DiffusionAttention:
    """An image (H, W, 3) uint8 -> self-attention maps (heads, N, N), float32 with rows of sum 1, one per `attention_layers` in
    that order, on the device of the model.

    `attention_layers` index the attentions of the UNet in order of execution: in each transformer block its self-attention,
    then its cross-attention; negative ones count from the end. `time_step` indexes the `steps` of the schedule. The image is
    resized to `image_size` square. The noise is drawn on the CPU from `seed`, the same for every image, so that maps do not
    depend on previous images or the device (unseeded in the official code). `stand_in`: the demo's network with random weights.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: Any,  # diffusers' SchedulerMixin does not declare the methods of schedulers
        condition: dict[str, Any],
        *,
        name: str,
        attention_layers: Sequence[int],
        time_step: int,
        steps: int,
        image_size: int,
        seed: int,
        identity: str,
        stand_in: bool = False,
    ) -> None:
        self.unet, self.vae, self.scheduler, self.condition = unet, vae, scheduler, condition
        self.name, self.image_size, self.seed, self.digest, self.stand_in = name, image_size, seed, identity, stand_in
        scheduler.set_timesteps(steps)
        if not 0 <= time_step < len(scheduler.timesteps):
            count = len(scheduler.timesteps)
            raise OvssError(f"time_step={time_step}: the schedule of diffusion model '{name}' has {count} steps.")
        self.timestep = scheduler.timesteps[time_step]
        self._order = [int(layer) for layer in attention_layers]
        self._maps: dict[int, Tensor] = {}
        attentions = attentions_of(unet)
        for layer in set(self._order):
            if not -len(attentions) <= layer < len(attentions):
                raise OvssError(
                    f"attention layer {layer}: the UNet of diffusion model '{name}' has {len(attentions)} attentions."
                )
            if layer % 2:
                raise OvssError(f"attention layer {layer} is a cross-attention; self-attentions have even numbers.")
            recorder = _Recorder(attentions[layer].processor, self._maps, layer, len(set(self._order)))
            attentions[layer].set_processor(recorder)

    def rehearse(self) -> None:
        """A forward pass on the meta device, which checks at no cost that all shapes fit together."""
        noisy = self.scheduler.add_noise(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), self.timestep[None])
        self.scheduler.scale_model_input(noisy, self.timestep)
        pixels = torch.empty(1, 3, self.image_size, self.image_size, device="meta", dtype=self.vae.dtype)
        with suppress(_AllRecorded):
            latents = on_meta(self.vae.encoder, pixels).chunk(2, 1)[0].to(self.unet.dtype) * self.vae.config["scaling_factor"]
            on_meta(self.unet, latents, self.timestep.to("meta"), **_moved(self.condition, "meta", self.unet.dtype))
        self._maps.clear()

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> list[Tensor]:
        latents = self.latents(image)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(self.seed)).to(latents)
        noisy = self.scheduler.add_noise(latents, noise, self.timestep[None].to(latents.device))
        noisy = self.scheduler.scale_model_input(noisy, self.timestep).to(self.unet.dtype)
        self._maps.clear()
        with suppress(_AllRecorded):
            self.unet(noisy, self.timestep.to(noisy.device), **self.condition)
        maps = [self._maps[layer] for layer in self._order]
        self._maps.clear()
        return maps

    def latents(self, image: np.ndarray) -> Tensor:
        """(1, L, S/8, S/8) float32: the mean of the autoencoder's posterior, scaled as the UNet expects it."""
        device, side = self.vae.device, self.image_size
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].float() / 255
        # diffusers' image processor, which CLIPer's code calls, resizes tensors by nearest neighbours.
        pixels = 2 * F.interpolate(pixels, (side, side), mode="nearest") - 1
        posterior = self.vae.encode(pixels.to(self.vae.dtype))[0]
        return posterior.mean.float() * self.vae.config["scaling_factor"]


class _AllRecorded(Exception):
    """Raised inside the UNet once all maps are recorded: the rest need not run."""


class _Recorder:
    """An attention processor that first records the map of its layer. Other layers keep their fast processors."""

    def __init__(self, processor: Any, maps: dict[int, Tensor], layer: int, count: int) -> None:
        self.processor, self.maps, self.layer, self.count = processor, maps, layer, count

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        q, k = (attn.head_to_batch_dim(project(hidden_states)).float() for project in (attn.to_q, attn.to_k))
        self.maps[self.layer] = attn.get_attention_scores(q, k)
        if len(self.maps) == self.count:
            raise _AllRecorded
        return self.processor(attn, hidden_states, *args, **kwargs)


def attentions_of(unet: UNet2DConditionModel) -> list[Any]:  # `Attention` is declared to take diffusers' own processors only
    """All attentions in order of execution (`unet.attn_processors` has the middle block at the end)."""
    stages = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    blocks = [block for stage in stages for a in getattr(stage, "attentions", []) for block in a.transformer_blocks]
    return [attention for block in blocks for attention in (block.attn1, block.attn2)]


@ordinary_torch()
def load_diffusion(
    name: str | Path,
    *,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    attention_layers: Sequence[int] | None = None,
    time_step: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> DiffusionAttention:
    """Self-attention of a diffusion model: `name` is an entry of configs/diffusion or a folder in the layout of diffusers
    (`unet`, `vae`, `scheduler`, `text_encoder`, `tokenizer`; for SDXL, two each of the last two).

    An entry's repository is looked up by its last name in the folder given by the environment variable OVSS_WEIGHTS, then in
    the cache of huggingface_hub, or downloaded to the latter. Defaults come from the entry, else they are `attention_layers`
    [-4, -6], `time_step` 45 (of 50) and the size that the UNet was trained on. See `DiffusionAttention`.

    Raises OvssError for an unknown name, a missing or incomplete folder, or layers or time steps that the model lacks.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    dtype = PRECISIONS[precision]
    entry, source = find_diffusion(name)
    if source is None:
        from .diffusion_stand_in import build

        parts, condition = build(entry["weights_seed"], dtype)
        text = condition
    else:
        with nullcontext() if Path(source).is_dir() else hub():
            parts, condition, text = _read(str(source), str(name), dtype, device)
    given = {"attention_layers": attention_layers, "time_step": time_step, "image_size": image_size, "seed": seed}
    with weight_errors(f"diffusion model '{name}' cannot be used"):
        unet, vae, scheduler = parts
        trained_size = unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
        settings = DEFAULTS | {"image_size": trained_size, "seed": 0}
        settings |= {key: entry[key] for key in settings if key in entry}
        settings |= {key: value for key, value in given.items() if value is not None}
        settings["attention_layers"] = list(settings["attention_layers"])
        if unet.config.addition_embed_type == "text_time":  # SDXL is conditioned on original size, crop and target size
            side = settings["image_size"]
            condition["added_cond_kwargs"]["time_ids"] = torch.tensor([[side, side, 0, 0, side, side]])
        configs = [{key: value for key, value in part.config.items() if not key.startswith("_")} for part in parts]
        states = (state_digest(state) for state in (unet.state_dict(), vae.state_dict(), text))
        identity = digest(json.dumps([settings, configs], sort_keys=True, default=str), *states)
        for part in (unet, vae):
            part.eval().requires_grad_(False).to(device)
        labels = {"name": str(name), "identity": identity, "stand_in": source is None}
        model = DiffusionAttention(unet, vae, scheduler, _moved(condition, device, dtype), **labels, **settings)
        model.rehearse()
        return model


def _moved(condition: dict[str, Any], device: str | torch.device, dtype: torch.dtype) -> dict[str, Any]:
    return {k: _moved(v, device, dtype) if isinstance(v, dict) else v.to(device, dtype) for k, v in condition.items()}


def find_diffusion(name: str | Path) -> tuple[dict[str, Any], str | Path | None]:
    """The entry of configs/diffusion (empty for a folder), and the folder or repository (None for the stand-in). Raises
    OvssError for an unknown name or a missing folder."""
    if name in config_names("diffusion"):
        entry = load_config("diffusion", name)
        if entry.get("stand_in"):
            return entry, None
        return entry, local_repository(entry["repo"]) or entry["repo"]
    folder = user_path(name)
    if folder.is_dir():
        return {}, folder
    if os.sep in str(name):
        raise OvssError(f"diffusion model {name} does not exist. Give a folder in the layout of diffusers (unet, vae, ...).")
    raise unknown("diffusion", name, config_names("diffusion"))


def _read(source: str, name: str, dtype: torch.dtype, device: str | torch.device) -> tuple[tuple, dict[str, Any], dict]:
    """UNet, autoencoder and scheduler; the UNet's conditioning on the empty prompt; the tensors of the text encoders."""
    diffusers: Any = import_module("diffusers")  # it exports nothing to type checkers

    try:
        options = {"low_cpu_mem_usage": False, "torch_dtype": dtype}  # True would need accelerate
        unet = whole_network(diffusers.UNet2DConditionModel, source, subfolder="unet", **options)
        xl = unet.config.addition_embed_type == "text_time"
        if xl:
            options["torch_dtype"] = torch.float32  # SDXL's autoencoder overflows in half precision
        vae = whole_network(diffusers.AutoencoderKL, source, subfolder="vae", **options)
        kind = diffusers.PNDMScheduler.load_config(source, subfolder="scheduler")["_class_name"]
        if not issubclass(getattr(diffusers, kind), diffusers.SchedulerMixin):
            raise ValueError(f"{kind} is not a scheduler")
        scheduler = getattr(diffusers, kind).from_pretrained(source, subfolder="scheduler")
        condition, text = _empty_prompt(source, xl, dtype, device)
    except OvssError:
        raise
    except Exception as error:  # parsers and downloads raise nearly anything
        if Path(source).is_dir():
            raise OvssError(
                f"{source} is not a complete diffusion model in the layout of diffusers (unet, vae, scheduler, text_encoder, "
                f"tokenizer): {short(error)}. Copy or download it again."
            ) from error
        hint = f"give the folder (diffusion=/path/to/{source.rpartition('/')[2]}) or move it to {WEIGHTS_FOLDER}"
        repository = f"https://huggingface.co/{source}"
        raise download_failed(f"the weights of diffusion model '{name}'", repository, error, hint) from error
    return (unet, vae, scheduler), condition, text


@torch.inference_mode()
def _empty_prompt(
    source: str, xl: bool, dtype: torch.dtype, device: str | torch.device
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The UNet's conditioning on the prompt "", without guidance; and the tensors of the text encoders, for the digest."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    tensors, embeddings, pooled = {}, [], None
    for suffix, kind in (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection))[: 2 if xl else 1]:
        tokenizer = CLIPTokenizer.from_pretrained(source, subfolder=f"tokenizer{suffix}")
        model = whole_network(kind, source, subfolder=f"text_encoder{suffix}", dtype=dtype).eval()
        tensors |= {f"{suffix}.{key}": tensor for key, tensor in model.state_dict().items()}
        length = tokenizer.model_max_length
        tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        out = model.to(device)(tokens.to(device), output_hidden_states=True)
        embeddings.append(out.hidden_states[-2] if xl else out.last_hidden_state)
        pooled = out.text_embeds if suffix else None
    condition: dict[str, Any] = {"encoder_hidden_states": torch.cat(embeddings, -1)}
    return condition | ({"added_cond_kwargs": {"text_embeds": pooled}} if xl else {}), tensors
