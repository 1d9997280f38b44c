"""CASS where the reference outputs do not reach: single queries and texts, ties, and what the encoder sees."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import ovss_bench as ob
from ovss_bench.segmentors.cass import as_seen, to_range
from parity.seeded import clip_input, query_features, rgb_image
from stand_ins import vfm


@pytest.fixture
def build(tiny_clip):
    def of(count=6, **options):
        vocabulary = ob.Vocabulary.from_features(query_features(31, count))
        return ob.build_segmentor("cass", clip=tiny_clip, vocabulary=vocabulary, vfm=vfm, **options)

    return of


@pytest.mark.parametrize("size", [(48, 48), (40, 72)])
def test_the_encoder_sees_compressed_colours_in_a_square(size):
    pixels = clip_input(rgb_image(3, *size))
    colours = (pixels[0].movedim(0, -1) * torch.tensor([0.229, 0.224, 0.255]) + torch.tensor([0.485, 0.456, 0.406])) * 255
    side = min(size)
    square = np.array(Image.fromarray(colours.numpy().astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC))
    torch.testing.assert_close(as_seen(pixels), clip_input(square), atol=1e-5, rtol=0)


def test_texts_move_one_by_one_without_groups(build):
    """At a threshold of 0 each text is its own group, and all of them move."""
    own = build(h_threshold=0.0, mean_vector_weight=0.5)
    patches = F.normalize(query_features(5, 20)[None], dim=-1)
    found = own.adjusted_text(patches, torch.zeros(1, 6))[0]
    for text, moved in zip(own.text, found, strict=True):
        best = (patches[0] @ text).topk(2).indices
        mean = F.normalize(patches[0][best].mean(0), dim=-1)
        torch.testing.assert_close(moved, F.normalize(0.5 * text + 0.5 * mean, dim=-1))


def test_of_a_group_only_the_likeliest_text_moves(build):
    own = build(h_threshold=100.0, mean_vector_weight=0.5)
    assert own.clusters == [0] * 6
    patches = F.normalize(query_features(5, 20)[None], dim=-1)
    similarity = torch.tensor([[0.1, 0.2, 0.9, 0.3, 0.0, -0.1]])
    changed = (own.adjusted_text(patches, similarity)[0] != own.text).any(1)
    assert changed.tolist() == [False, False, True, False, False, False]


def test_without_weights_it_is_the_graph_of_clip_alone(build, tiny_clip):
    """NACLIP's attention among patches, without the class token."""
    own = build(scale_factor=0.0, mean_vector_weight=0.0, global_semantics_weight=0.0, sigma=5.0)
    batch = ob.WindowBatch(clip_input(rgb_image(4, 64, 96)))
    trunk = own.trunk(batch)
    block = tiny_clip.block(-1, trunk.grid)
    _, k, v = (part[:, :, 1:] for part in block.qkv(block.ln_1(trunk.tokens)))
    y, x = (axis.flatten().float() for axis in torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij"))
    gauss = torch.exp(-((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2) / 50)
    attention = (k @ k.transpose(2, 3) / 8 + gauss).softmax(-1)
    expected = own.compare(tiny_clip.project(block.project(attention @ v)), trunk.grid)
    torch.testing.assert_close(own.patch_logits(batch), expected, atol=1e-5, rtol=0)


def test_similarities_are_of_the_whole_image_or_of_the_window(build):
    image = rgb_image(6, 120, 200)
    small = {"short_side": 80, "window": 64, "stride": 32}
    maps = [ob.segment(build(whole_image=whole, **small), image).scores for whole in (True, False)]
    assert (maps[0] - maps[1]).abs().max() > 1e-3
    whole = [ob.segment(build(whole_image=each, **small | {"window": "whole"}), image).scores for each in (True, False)]
    assert torch.equal(*whole)


def test_heads_that_differ_in_number_are_refused(build):
    own = build()
    own.vfm = lambda batch: batch.pixels[..., ::8, ::8]
    with pytest.raises(ob.OvssError, match="cass pairs the 2 heads of CLIP with those of vfm, whose 3 channels"):
        own.patch_logits(ob.WindowBatch(clip_input(rgb_image(1, 64, 64))))


def test_a_constant_map_gets_the_lower_end_of_the_range():
    assert to_range(torch.ones(1, 3), torch.tensor([[2.0, 5.0]]), (1,)).tolist() == [[2.0, 2.0, 2.0]]
