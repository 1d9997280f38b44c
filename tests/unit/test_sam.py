"""SAM for prompts, on a tiny network: the attention and the masks are those of transformers' own passes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.auxiliary.masks import framed, load_network
from ovss_bench.auxiliary.sam import load_sam
from parity.seeded import rgb_image
from tiny_networks import SIDE


@pytest.fixture(scope="module")
def sam(networks):
    found = load_sam(networks["sam"])
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # transformers initialises these with zeros
        for name in ("rel_pos_h", "rel_pos_w"):
            table = getattr(found.model.vision_encoder.layers[-1].attn, name)
            table.copy_(torch.randn(table.shape, generator=generator))
    return found


@pytest.mark.parametrize("size", [(40, 64), (64, 64), (90, 40)])
def test_the_attention_is_that_of_the_last_block(size, sam):
    image = rgb_image(5, *size)
    pixels, inside = framed(image, SIDE)
    layer, seen = sam.model.vision_encoder.layers[-1], []
    hook = layer.attn.register_forward_hook(lambda module, inputs, output: seen.append((inputs, output)), with_kwargs=False)
    again = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        sam.model.vision_encoder(pixels)
        hook.remove()
        again.remove()
        entering = layer.layer_norm1(seen[0])
        expected, maps = type(layer.attn).__mro__[1].forward(layer.attn, entering)
    encoded = sam(image)
    height, width = (side // 16 for side in inside)
    whole = maps.view(2, 4, 4, 4, 4)[:, :height, :width, :height, :width].reshape(2, height * width, -1)
    torch.testing.assert_close(torch.stack([encoded.attention[k] for k in range(2)]), whole, atol=1e-5, rtol=0)
    assert encoded.values.shape == (2, 16, height, width)
    if size == (64, 64):  # all cells: the block's output follows from both
        mixed = torch.stack([encoded.attention[k] @ encoded.values[k].flatten(1).T for k in range(2)], 1)
        torch.testing.assert_close(layer.attn.proj(mixed.flatten(1)).view(1, 4, 4, -1), expected, atol=1e-4, rtol=1e-4)


def test_masks_are_those_of_transformers(sam):
    image = rgb_image(6, 40, 64)
    boxes, points = torch.tensor([[0.0, 64, 512, 400], [256, 0, 900, 600]]), torch.tensor([[100.0, 200], [500, 300]])
    logits, iou = sam(image).decode(boxes, points, torch.full((8, 10), 0.01))
    pixels, inside = framed(image, SIDE)
    with torch.no_grad():
        output = sam.model(
            pixel_values=pixels,
            input_points=points[None, :, None] / 16,
            input_labels=torch.ones(1, 2, 1),
            input_boxes=boxes[None] / 16,
            input_masks=F.pad(torch.full((8, 10), 0.01), (0, 6, 0, 8))[None, None],
            multimask_output=False,
        )
    expected = F.interpolate(output.pred_masks[0], (SIDE, SIDE), mode="bilinear")[..., : inside[0], : inside[1]]
    torch.testing.assert_close(logits, F.interpolate(expected, (40, 64), mode="bilinear")[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(iou, output.iou_scores[0, :, 0])
    assert not torch.equal(logits[0], logits[1])


def test_the_digest_is_that_of_the_weights(networks, sam):
    assert load_sam(networks["sam"]).digest == load_sam(str(networks["sam"])).digest
    assert load_network("SamModel", str(networks["sam"])) is not sam.model


def test_an_unknown_name_is_an_error():
    with pytest.raises(ob.OvssError, match=r"sam_vitx.*sam_vitb"):
        load_sam("sam_vitx")


def test_a_narrow_image_has_at_least_one_cell(sam):
    assert sam(np.zeros((2, 100, 3), np.uint8)).values.shape[2:] == (1, 4)
