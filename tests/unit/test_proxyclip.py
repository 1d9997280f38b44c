"""What parity does not cover: windows that are not square, ablations, bounded memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.segmentors.attention import cosine_matrix, proxy_attention, value_map
from stand_ins import vfm


def build(clip, vocabulary, **options):
    return ob.build_segmentor("proxyclip", clip=clip, vocabulary=vocabulary, **({"vfm": vfm} | options))


def windows(count=3, height=64, width=96):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(4))


def test_logits_are_on_the_grid_of_the_features(tiny_clip, tiny_vocabulary):
    logits = build(tiny_clip, tiny_vocabulary).patch_logits(ob.WindowBatch(windows()))
    assert logits.shape == (3, 7, 8, 12)


def test_every_window_has_its_own_mean(tiny_clip, tiny_vocabulary):
    segmentor, pixels = build(tiny_clip, tiny_vocabulary), windows() * torch.tensor([0.1, 1, 4]).view(3, 1, 1, 1)
    together = segmentor.patch_logits(ob.WindowBatch(pixels))
    for one, expected in zip(pixels, together, strict=True):
        torch.testing.assert_close(segmentor.patch_logits(ob.WindowBatch(one[None]))[0], expected)


def test_attention_is_what_the_paper_says():
    similarity = cosine_matrix(torch.randn(20, 5, generator=torch.Generator().manual_seed(1)))
    scores = 3.0 * (similarity - 1.2 * similarity.mean())
    scores[scores < 0] = -torch.inf
    torch.testing.assert_close(proxy_attention(similarity), scores.softmax(-1))


def test_rows_without_anything_above_the_mean_attend_to_themselves():
    attention = proxy_attention(cosine_matrix(torch.ones(4, 3)))
    assert torch.equal(attention, torch.eye(4))


@pytest.mark.parametrize("ablation", [{"normalisation": False}, {"masking": False}, {"beta": 1.0}, {"gamma": 1.0}])
def test_ablations_change_the_result(ablation, tiny_clip, tiny_vocabulary):
    batch = ob.WindowBatch(windows())
    full, less = (build(tiny_clip, tiny_vocabulary, **options).patch_logits(batch) for options in ({}, ablation))
    assert (full - less).abs().max() > 1e-4


def test_values_keep_their_place_on_grids_that_are_not_square(tiny_clip):
    trunk = tiny_clip.trunk(windows(1))
    block = tiny_clip.block(-1, trunk.grid)
    values = value_map(block, trunk.tokens, (8, 12))
    coarse = value_map(block, trunk.tokens, trunk.grid)
    assert trunk.grid == (4, 6)
    expected = F.interpolate(coarse[0].T.unflatten(1, trunk.grid)[None], (8, 12), mode="bilinear")
    torch.testing.assert_close(values[0].T.unflatten(1, (8, 12)), expected[0])


def test_the_features_are_computed_once_for_all_segmentors(tiny_clip, tiny_vocabulary):
    calls = []

    def counting(batch):
        calls.append(len(batch.pixels))
        return vfm(batch)

    batch = ob.WindowBatch(windows())
    for beta in (1.0, 1.2):
        build(tiny_clip, tiny_vocabulary, vfm=counting, beta=beta).patch_logits(batch)
    assert calls == [3]


def test_evaluate_keeps_what_was_given_and_loads_what_is_named(voc, tiny_clip):
    dataset = ob.load_dataset("voc20", voc)
    options = {"short_side": 64, "window": 64, "stride": 64, "pad_multiple": None, "templates": "none"}
    segmentor = build(tiny_clip, dataset.vocabulary("clearclip", "none"), **options)
    result = ob.evaluate(segmentor, dataset, limit=1)
    assert result.data["sources"]["vfm"]["name"] == "given: stand_ins.vfm"
    again = ob.evaluate(segmentor, dataset, limit=1, recipe={"vfm": "demo"})
    assert again.data["sources"]["vfm"]["name"] == "demo"
    assert len(again.data["sources"]["vfm"]["digest"]) == 64


def test_missing_features_are_asked_for(tiny_clip, tiny_vocabulary):
    with pytest.raises(ob.OvssError, match="proxyclip needs vfm"):
        build(tiny_clip, tiny_vocabulary, vfm=None)


LARGE = """
import resource, numpy as np, open_clip, torch
import ovss_bench as ob
from parity.seeded import clip_state_dict, dino_state_dict
torch.manual_seed(0)
clip = ob.load_clip(state_dict=clip_state_dict(1, width=768, layers=2, embed_dim=512))
dino = ob.load_vision(state_dict=dino_state_dict(2, width=768, layers=2), heads=12)
vocabulary = ob.Vocabulary.from_features(torch.randn(21, 512))
segmentor = ob.build_segmentor("proxyclip", clip=clip, vocabulary=vocabulary, vfm=dino, short_side=448, window=448)
image = np.random.RandomState(0).randint(0, 256, (300, 1100, 3)).astype(np.uint8)
assert ob.segment(segmentor, image).label_map.shape == image.shape[:2]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def test_windows_of_448_pixels_on_dino_b8_stay_below_4_gb():
    """Twelve windows. Ten blocks of ViT-B less in each encoder leave the peak where it is, but for 0.6 GB of weights."""
    tests = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", LARGE], cwd=tests, capture_output=True, text=True, check=True)
    assert float(done.stdout) + 0.6 < 4
