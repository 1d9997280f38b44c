"""The demo's stand-in for a diffusion model: diffusers' modules at a fraction of the size, with weights from a seed.

It is untrained and has no weights file. The autoencoder's weights are set so that its latents are smoothed colours; the UNet's
are random, with three restrictions that make its attention follow similar colours: convolutions mix channels at random but
blur in space; residual branches are small; queries and keys of self-attentions are the tokens themselves, so that products
decrease with distance. It shows how such maps are used, not what Stable Diffusion knows.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LATENTS, WIDTH, SIDE = 3, 32, 128  # channels of the latents and of the UNet; side of the image in pixels
SCALING = 3.0  # factor of the latents, beside which the noise of the time step is small
SHARPNESS = 16.0  # factor inside the softmax of attention
BRANCH = 0.2  # scale of residual branches


@torch.no_grad()
def build(seed: int, dtype: torch.dtype) -> tuple[tuple[Any, Any, Any], dict[str, Any]]:
    """UNet, autoencoder and scheduler; and a single token as the output of the text encoder."""
    import diffusers

    # The schedule of Stable Diffusion 1.x and 2.x.
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = diffusers.PNDMScheduler(**betas, skip_prk_steps=True, steps_offset=1)
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=LATENTS,
        out_channels=LATENTS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(WIDTH, WIDTH),
        layers_per_block=2,  # three attentions in the last stage, as in Stable Diffusion: -4 and -6 are its first two
        cross_attention_dim=WIDTH,
        attention_head_dim=1,  # despite its name, the number of heads
        norm_num_groups=WIDTH,
    )
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(2 * LATENTS,) * 3,
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=1,
        sample_size=SIDE,
        scaling_factor=SCALING,
        mid_block_add_attention=False,
    )
    _smooth_colours(vae)
    _restricted_random(unet, seed)
    for model in (unet, vae):
        nn.Module.to(model, dtype)  # the method of diffusers warns that this is unusual
    return (unet, vae, scheduler), {"encoder_hidden_states": _normal(seed, "condition", (1, 1, WIDTH))}


def _normal(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """A random stream for each name, so that the order of the parameters does not matter."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(f"{seed} {name}".encode())).standard_normal(shape)).float()


def _smooth_colours(vae: Any) -> None:
    """Latents are the three colours, averaged over 9x9 pixels (weighted towards the centre), with mean square 1 over the image.

    Each colour is carried in two channels, x and -x, with joint mean 0, so that the normalisation only scales; and
    silu(x) - silu(-x) = x.
    """
    for name, parameter in vae.named_parameters():
        parameter.fill_(parameter.ndim == 1 and name.endswith("weight"))  # residual blocks add nothing, norms only normalise
    encoder = vae.encoder
    halvings = [block.downsamplers[0].conv for block in encoder.down_blocks if block.downsamplers]
    for channel in range(2 * LATENTS):
        colour, sign = channel // 2, 1 - 2 * (channel % 2)
        encoder.conv_in.weight[channel, colour] = sign / 9
        for conv in halvings:
            conv.weight[channel, channel] = 1 / 9
        encoder.conv_out.weight[colour, channel, 1, 1] = sign
    vae.quant_conv.weight[:LATENTS, :LATENTS, 0, 0] = torch.eye(LATENTS)


def _restricted_random(unet: Any, seed: int) -> None:
    blur = torch.outer(*2 * [torch.tensor([0.25, 0.5, 0.25])])
    for name, parameter in unet.named_parameters():
        if parameter.ndim == 4 and parameter.shape[-1] == 3:
            mixture = _normal(seed, name, (*parameter.shape[:2], 1, 1)) * parameter.shape[1] ** -0.5
            parameter.copy_(mixture * blur)
        elif parameter.ndim > 1:
            parameter.copy_(_normal(seed, name, tuple(parameter.shape)) * parameter[0].numel() ** -0.5)
        else:
            parameter.fill_(name.endswith("weight"))
        if name.endswith(("conv2.weight", "to_out.0.weight", "net.2.weight")):
            parameter.mul_(BRANCH)
    for name, module in unet.named_modules():
        if name.endswith("attn1"):
            for projection in (module.to_q, module.to_k):
                projection.weight.copy_(torch.eye(WIDTH) * SHARPNESS**0.5)
        if name.split(".")[-1] == "norm" and "attentions" in name:
            # An offset before the LayerNorm: without it, tokens near the mean of the image would be blown up.
            module.bias.copy_(_normal(seed, name, (WIDTH,)))
