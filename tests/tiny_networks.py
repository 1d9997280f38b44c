"""Tiny networks with random weights that several tests load, and how their results are compared."""

import torch
from timm.models.vision_transformer import VisionTransformer

from ovss_bench.auxiliary.regions import load_regions
from ovss_bench.encoders.vision import load_vision

SIZES = {"width": 32, "layers": 3, "patch_size": 8, "resolution": 32}  # of the tiny DINO
SIDE = 64  # of the input of the tiny SAM and SAM 2


def generator(networks, kind, **settings):
    name = {"sam": "sam_vith", "sam2": "sam2_hiera_large"}[kind]
    return load_regions(name, weights=str(networks[kind]), **settings)


def shake(model, seed=1):
    """Random values everywhere, also where an initialisation leaves zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim == 1 else 0.15))
    return model.eval()


def images(*size, count=2):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(2))


def as_map(tokens, grid):
    return tokens.transpose(1, 2).unflatten(2, grid)


def close(actual, expected, atol=2e-5):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=atol)


def vit(size=(32, 32), **options):
    return VisionTransformer(size, 8, embed_dim=32, depth=3, num_heads=2, num_classes=0, global_pool="", **options)


def loaded(state, **options):
    return load_vision(state_dict=dict(state), **({"heads": 2} | options))
