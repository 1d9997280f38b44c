"""LaVG: masks and their mean logits against plain loops, and where the masks come from."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.ops.crf import dense_crf
from ovss_bench.ops.pictures import cleaned, masks_at
from ovss_bench.segmentors.lavg import fitted
from parity.seeded import rgb_image
from stand_ins import regions, vfm

MASKS = np.zeros((3, 40, 60), bool)
MASKS[0, :20, :30] = MASKS[1, 10:30, 20:50] = MASKS[2, 35:, 55:] = True


@pytest.fixture
def build(tiny_clip, tiny_vocabulary):
    def of(**options):
        return ob.build_segmentor("lavg", clip=tiny_clip, vocabulary=tiny_vocabulary, **({"vfm": None} | options))

    return of


@pytest.mark.parametrize("clear", [False, True])
def test_every_mask_gets_the_mean_of_its_logits_and_the_first_counts(build, clear):
    own = build(regions=lambda image: MASKS, clear_background=clear)
    cosines = torch.randn(7, 5, 6, generator=torch.Generator().manual_seed(1))
    rest = ~MASKS.any(0, keepdims=True)
    masks = torch.from_numpy(np.concatenate([MASKS, rest]))
    logits = F.interpolate(cosines[None], (40, 60), mode="bilinear")[0]
    expected = logits.clone()
    for mask in reversed(masks):
        expected[:, mask] = logits[:, mask].mean(1, keepdim=True)
    if clear:  # the first three queries are the background's
        least = expected.min()
        expected[3:, masks[-1]] = least
    torch.testing.assert_close(own.grounded(cosines, masks), expected, atol=1e-6, rtol=0)


def test_a_mask_outside_of_the_window_changes_nothing(build):
    own, cosines = build(regions=lambda image: MASKS), torch.randn(7, 2, 2)
    masks = torch.tensor([[[False, False], [False, False]], [[True, False], [True, False]]])
    found = own.grounded(cosines, masks)
    assert torch.equal(found[:, :, 1], cosines[:, :, 1])  # in no mask: padding
    torch.testing.assert_close(found[:, :, 0], cosines[:, :, 0].mean(1, keepdim=True).expand(-1, 2))


def test_region_ids_are_masks_without_the_smallest(build):
    image = rgb_image(3, 60, 80)
    found = build(regions=regions).proposals(ob.ImageContext(image, image, torch.zeros(3, 60, 80), (60, 80)))
    ids = regions(image)
    assert [int(ids[mask][0]) for mask in found] == sorted(set(ids.flatten().tolist()) - {0})
    assert np.array_equal(found.any(0), ids != 0)
    assert found.sum(0).max() == 1


@pytest.mark.parametrize("crf", [False, True])
def test_masks_are_cut_from_the_features(build, crf):
    image = rgb_image(4, 60, 84)
    own = build(vfm=vfm, cut_side=96, cuts=3, crf=crf)
    found = own.proposals(ob.ImageContext(image, image, torch.zeros(3, 60, 84), (60, 84)))
    assert found.shape[1:] == (60, 84)
    assert 1 <= len(found) <= 3
    assert found.any()
    assert np.array_equal(found, own.proposals(ob.ImageContext(image, image, torch.zeros(3, 60, 84), (60, 84))))


def test_the_crf_moves_a_mask_to_the_edge_of_the_colours():
    image = np.full((40, 40, 3), 200, np.uint8)
    image[10:30, 10:30] = 40
    rough = np.zeros((40, 40), bool)
    rough[8:28, 12:32] = True
    assert np.array_equal(fitted(rough[None], image)[0], image[..., 0] == 40)


def test_a_crf_of_several_maps_is_that_of_each():
    image = torch.from_numpy(rgb_image(2, 24, 30)).float()
    maps = torch.rand(3, 2, 24, 30, generator=torch.Generator().manual_seed(2)).softmax(1)
    alone = torch.stack([dense_crf(each, image, steps=3) for each in maps])
    torch.testing.assert_close(dense_crf(maps, image, steps=3), alone, atol=1e-5, rtol=0)


def test_holes_are_filled_and_a_mask_that_shrinks_is_dropped():
    original = np.zeros((9, 9), bool)
    original[1:8, 1:8] = True
    holed = original.copy()
    holed[4, 4] = False
    assert np.array_equal(cleaned(holed, original), original)
    assert not cleaned(original & (np.arange(9) < 4), original).any()
    assert not masks_at([np.zeros((9, 9), bool)], (5, 5)).any()
    assert masks_at([], (5, 5)).shape == (0, 5, 5)


def test_one_of_both_sources_is_needed(build):
    with pytest.raises(ob.OvssError, match=r"lavg needs vfm.*or regions"):
        build()
