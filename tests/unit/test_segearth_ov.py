"""SegEarth-OV and its upsamplers: kernels and filters pixel by pixel, JBU-one and JBU-stack, and which files are refused."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.encoders.feature_upsampler import filtered, kernels, load_upsampler, neighbours, reflected
from parity.seeded import rgb_image
from trained_heads import upsampler_state


def random(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def load(tmp_path):
    def load(state, patch=16):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.pt"
        torch.save(state, path)
        return load_upsampler(path, patch, "cpu")

    return load


def plain_step(state, name, x, pixels, side):
    """One doubling (C, h, w) -> (C, 2h, 2w) by loops over pixels, with PyTorch's own reflection."""
    part = {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}

    def layers(kind, maps):
        hidden = F.gelu(F.conv2d(maps, part[f"{kind}.0.weight"], part[f"{kind}.0.bias"]))
        return F.conv2d(hidden, part[f"{kind}.3.weight"], part[f"{kind}.3.bias"])

    height, width, r = 2 * x.shape[1], 2 * x.shape[2], side // 2
    guide = F.adaptive_avg_pool2d(pixels[None], (height, width))
    projected = F.pad(layers("range_proj", guide), (r, r, r, r), mode="reflect")[0]
    big = F.pad(F.interpolate(x[None], (height, width), mode="bicubic"), (r, r, r, r), mode="reflect")[0]
    temperature = min(max(math.exp(float(part["range_temp"])), 1e-4), 1e4)
    line = torch.linspace(-1, 1, side).tolist()
    gauss = torch.tensor([[math.exp(-(u * u + v * v) / (2 * float(part["sigma_spatial"]) ** 2)) for v in line] for u in line])
    result = torch.zeros(x.shape[0], height, width)
    for i in range(height):
        for j in range(width):
            near = projected[:, i : i + side, j : j + side]
            similarity = (near * projected[:, i + r, j + r, None, None]).sum(0)
            kernel = (temperature * similarity).flatten().softmax(0) * gauss.flatten()
            kernel = kernel / max(float(kernel.sum()), 1e-7)
            joint = torch.cat([kernel, guide[0, :, i, j]])[None, :, None, None]
            kernel = kernel + 0.1 * layers("fixup_proj", joint).flatten()
            result[:, i, j] = (big[:, i : i + side, j : j + side] * kernel.view(side, side)).sum((1, 2))
    return result


@pytest.mark.parametrize(("names", "side", "patch"), [(("up",), 5, 4), (("up1", "up2", "up3"), 3, 8)])
def test_upsampling_pixel_by_pixel(load, names, side, patch):
    state = upsampler_state(6, names, side)
    features, pixels = random(6, 4, 5), random(3, 4 * patch, 5 * patch, seed=4)
    found = load({f"upsampler.{key}": tensor for key, tensor in state.items()} | {"model.weight": random(2)}, patch)(
        features[None], pixels[None]
    )
    expected = features
    for step in range(patch.bit_length() - 1):
        expected = plain_step(state, names[step % len(names)], expected, pixels, side)
    correction = F.conv2d(expected[None], state["fixup_proj.1.weight"], state["fixup_proj.1.bias"])
    torch.testing.assert_close(found, expected[None] + 0.1 * correction, atol=1e-5, rtol=0)


def test_kernels_and_filters_of_many_channels(load):
    step = load(upsampler_state(6, ("up",), 5)).steps[0]
    guide, maps = random(1, 3, 9, 7), random(1, 20, 9, 7, seed=5)
    kernel = kernels(step, guide)
    assert kernel.shape == (1, 25, 9, 7)
    unfolded = F.unfold(F.pad(maps, (2, 2, 2, 2), mode="reflect"), 5).view(20, 25, 9, 7)
    torch.testing.assert_close(filtered(maps, kernel)[0], (unfolded * kernel).sum(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("length", "radius"), [(6, 2), (6, 5), (2, 5), (3, 7), (1, 3)])
def test_reflection_as_in_numpy(length, radius):
    assert reflected(length, radius).tolist() == np.pad(range(length), radius, mode="reflect").tolist()
    assert len(neighbours(torch.zeros(length, length), 2 * radius + 1)) == (2 * radius + 1) ** 2


def test_windows_smaller_than_the_kernel_get_a_label_map(tiny_clip, tiny_vocabulary, tmp_path):
    torch.save(upsampler_state(64, ("up",), 11), tmp_path / "one.pt")
    segmentor = ob.build_segmentor("segearth_ov", clip=tiny_clip, vocabulary=tiny_vocabulary, checkpoint=tmp_path / "one.pt")
    assert ob.segment(segmentor, rgb_image(3, 20, 30), short_side=20).label_map.shape == (20, 30)


@pytest.mark.parametrize("upsampled", [False, True])
def test_logits_from_open_clips_own_parts(upsampled, tiny_clip, tiny_vocabulary, tmp_path):
    torch.save(upsampler_state(64, ("up",), 3), tmp_path / "one.pt")
    options = {"checkpoint": tmp_path / "one.pt"} if upsampled else {}
    segmentor = ob.build_segmentor("segearth_ov", clip=tiny_clip, vocabulary=tiny_vocabulary, bias=-0.7, **options)
    batch = ob.WindowBatch(random(2, 3, 48, 64))
    found, last, visual = (
        segmentor.patch_logits(batch),
        tiny_clip.model.visual.transformer.resblocks[-1],
        tiny_clip.model.visual,
    )
    with torch.inference_mode():
        joint = F.linear(last.ln_1(batch.trunk.tokens), last.attn.in_proj_weight, last.attn.in_proj_bias)
        heads = joint.unflatten(2, (3, 2, 64)).permute(2, 0, 3, 1, 4)
        attention = sum((each @ each.transpose(-2, -1) / 8).softmax(-1) for each in heads)
        y = visual.ln_post(last.attn.out_proj((attention @ heads[2]).transpose(1, 2).flatten(2))) @ visual.proj
        bias = F.normalize(y[:, 0], dim=1) @ segmentor.text.T
        maps = y[:, 1:].transpose(1, 2).unflatten(2, (3, 4))
        if upsampled:
            maps = torch.cat([segmentor.upsampler(m[None], p[None]) for m, p in zip(maps, batch.pixels, strict=True)])
        cosines = torch.einsum("bchw,qc->bqhw", F.normalize(maps, dim=1), segmentor.text)
    torch.testing.assert_close(found, cosines - 0.7 * bias[..., None, None], atol=1e-5, rtol=0)
    assert found.shape[2:] == ((48, 64) if upsampled else (3, 4))


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "patch", "message"),
    [
        (lambda state: state, 14, "patches of 14 pixels"),
        (lambda state: without(state, "up.range_temp"), 16, "up.range_temp is missing"),
        (lambda state: state | {"other": torch.ones(2)}, 16, "other is unexpected"),
        (lambda state: {key: t for key, t in state.items() if "up." not in key}, 16, "doubles grids 0 times"),
        (lambda state: upsampler_state(6, ("up1", "up2"), 3), 16, "doubles grids 2 times, but patches of 16 pixels take 4"),
        (lambda state: upsampler_state(6, ("up",), 4), 16, "kernels of 16 weights"),
    ],
)
def test_files_that_do_not_fit(change, patch, message, load):
    with pytest.raises(ob.OvssError, match=message):
        load(change(upsampler_state(6, ("up",), 3)), patch)


def test_an_upsampler_of_another_clip_is_refused(tiny_clip, tiny_vocabulary, tmp_path):
    torch.save(upsampler_state(6, ("up",), 3), tmp_path / "one.pt")
    with pytest.raises(ob.OvssError, match=r"upsamples features of 6 channels, .* have 64"):
        ob.build_segmentor("segearth_ov", clip=tiny_clip, vocabulary=tiny_vocabulary, checkpoint=tmp_path / "one.pt")
