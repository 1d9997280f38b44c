"""LPOSS and LPOSS+: the places of patches, synonyms, other grids, and what follows the patches."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.inference.engine import predict
from ovss_bench.ops.graphs import cell_centres, patch_affinity, propagate_patches, propagate_pixels
from ovss_bench.ops.windows import SlidingWindow
from parity.seeded import query_features, rgb_image
from stand_ins import vfm

IMAGE = rgb_image(7, 80, 100)


def build(clip, group=(0, 0, 1, 2), name="lposs", **options):
    vocabulary = ob.Vocabulary.from_features(query_features(31, len(group)), group=group)
    given = {"vfm": vfm, "short_side": 80, "window": 64, "stride": 32}
    return ob.build_segmentor(name, clip=clip, vocabulary=vocabulary, **(given | options))


def all_windows(segmentor, image=IMAGE):
    """The batch of all windows, and their starts."""
    scene = ob.make_context(image, segmentor)
    windows = SlidingWindow.by(segmentor.recipe, *scene.resized.shape[:2], segmentor.clip.patch_size)
    origins = torch.tensor(windows.origins)
    images = torch.zeros(len(origins), dtype=torch.int64)
    return ob.WindowBatch(torch.stack(windows.cut(scene.pixels)), origins, images, [scene])


def test_places_are_centres_in_the_resized_image(tiny_clip):
    segmentor = build(tiny_clip)
    places = cell_centres(segmentor.windows(ob.make_context(IMAGE, segmentor)), (4, 4)).view(-1, 4, 4, 2)
    assert len(places) == 6  # at 0 and 16, and at 0, 32 and 36
    assert places[0, 0].tolist() == [[8, 8], [8, 24], [8, 40], [8, 56]]
    assert places[5, 3].tolist() == [[16 + 56, 36 + 8 + 16 * column] for column in range(4)]


def test_places_in_windows_that_are_padded_on_both_sides():
    """A window of 20 pixels in 32, six of them before it."""
    windows = SlidingWindow.of(20, 64, 64, 32, 16, "center")
    assert cell_centres(windows, (2, 4)).tolist() == [[-6 + 8 + 16 * y, 8 + 16 * x] for y in range(2) for x in range(4)]


def test_one_graph_joins_all_windows(tiny_clip):
    """On the encoder's finer grid; the scores of a window depend on the others."""
    segmentor = build(tiny_clip)
    batch = all_windows(segmentor)
    found = segmentor.image_logits(batch)
    cosines = F.interpolate(segmentor.patch_logits(batch), (8, 8), mode="bilinear")
    features = F.normalize(vfm(batch), dim=1).permute(0, 2, 3, 1).reshape(-1, 12)
    affinity = patch_affinity(features, cell_centres(segmentor.windows(batch.contexts[0]), (8, 8)), 400, 3.0, 0.01, 1.0)
    expected = propagate_patches(cosines.permute(0, 2, 3, 1).flatten(0, 2), affinity, 0.95, 10, 1e-6)
    torch.testing.assert_close(found.permute(0, 2, 3, 1).flatten(0, 2), expected)
    batch.pixels[-1] = 0
    other = segmentor.image_logits(ob.WindowBatch(batch.pixels, batch.origins, batch.images, batch.contexts))
    assert not torch.allclose(found[:1], other[:1], atol=1e-3)


def test_lposs_and_lposs_plus_propagate_once(tiny_clip):
    """Any other setting or vocabulary has scores of its own; each image has, too."""
    given = [{}, {"name": "lposs_plus", "tau": 0.2, "r": 5}, {"k": 9}, {"vfm": lambda batch: vfm(batch)}, {"group": (0, 1, 1)}]
    segmentors = [build(tiny_clip, **options) for options in given]
    images = {"first": IMAGE, "second": rgb_image(8, 80, 100)}
    expected = [{name: ob.segment(s, image).label_map for name, image in images.items()} for s in segmentors]
    with mock.patch("ovss_bench.segmentors.lposs.propagate_patches", wraps=propagate_patches) as propagated:
        for name, found in predict(segmentors, images.items()):
            for prediction, maps in zip(found, expected, strict=True):
                assert torch.equal(prediction.label_map, maps[name])
    assert propagated.call_count == 4 * len(images)


def test_without_propagation_it_is_maskclip(tiny_clip):
    batch = all_windows(build(tiny_clip))
    own = build(tiny_clip, alpha=0.0, vfm=lambda batch: vfm(batch)[:, :, ::2, ::2])
    maskclip = ob.build_segmentor("maskclip", clip=tiny_clip, vocabulary=own.vocabulary, position="grid")
    torch.testing.assert_close(own.image_logits(batch), maskclip.patch_logits(ob.WindowBatch(batch.pixels)))


@pytest.mark.parametrize("plus", [False, True])
def test_synonyms_count_by_the_best_before_the_map_is_enlarged(plus, tiny_clip):
    segmentor = build(tiny_clip, name="lposs_plus" if plus else "lposs", short_side=64, stride=64, tau=0.1)
    image = rgb_image(7, 150, 150)  # one window
    batch = all_windows(segmentor, image)
    maps = F.interpolate(segmentor.image_logits(batch), (64, 64), mode="bilinear")[0]
    if plus:
        maps = propagate_pixels(maps, batch.contexts[0].resized, 0.1)
    planes = torch.stack([torch.maximum(maps[0], maps[1]), maps[2], maps[3]])
    expected = F.interpolate(planes[None], (150, 150), mode="bilinear")[0]
    prediction = ob.segment(segmentor, image)
    torch.testing.assert_close(prediction.scores, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(prediction.label_map, prediction.scores.argmax(0))


def test_it_is_composed_a_second_time_only_where_the_order_matters(tiny_clip):
    assert build(tiny_clip).refines
    assert build(tiny_clip, group=(0, 1, 2), name="lposs_plus").refines
    one_each = build(tiny_clip, group=(0, 1, -1, 2))
    assert not one_each.refines
    logits = one_each.image_logits(batch := all_windows(one_each))
    batch.contexts[0].by_products["logits"] = logits
    refined = one_each.refine(torch.zeros(4, 80, 100), batch.contexts[0])
    scores = one_each.scores(refined, batch.contexts[0])
    torch.testing.assert_close(ob.segment(one_each, IMAGE).scores, scores, rtol=0, atol=1e-5)


def test_a_class_without_queries_wins_nowhere(tiny_clip):
    """Even where all scores are negative."""
    segmentor = build(tiny_clip, group=(0, 2, 2))
    planes = segmentor.scores(torch.full((3, 2, 2), -1.0), ob.make_context(IMAGE, segmentor))
    assert planes[1].isneginf().all()
    assert (segmentor.decide(planes, ob.make_context(IMAGE, segmentor)) == 0).all()
