"""The mask generators of SAM and SAM 2 against a plain one."""

import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovss_bench.auxiliary.masks import boxes_of, paint, point_grid
from ovss_bench.errors import OvssError
from tiny_networks import SIDE, generator


def plain_generator(source, image):
    """The specification once more, mask by mask: corrclip.md section 4.2 and segment-anything's rules for what it keeps.

    Returns the map, the number of masks before the suppression, and after.
    """
    height, width = image.shape[:2]
    pixels, inside = source.frame(image)
    n, found = source.points_per_side, []
    for row in range(n):
        for column in range(n):
            point = [(column + 0.5) / n * inside[1], (row + 0.5) / n * inside[0]]
            with torch.no_grad():
                out = source.model(
                    pixel_values=pixels,
                    input_points=torch.tensor(point).view(1, 1, 1, 2),
                    multimask_output=source.multimask_output,
                )
            for small, iou in zip(out.pred_masks[0, 0], out.iou_scores[0, 0], strict=True):
                if source.kind == "sam":
                    small = F.interpolate(small[None, None], (SIDE, SIDE), mode="bilinear")[0, 0, : inside[0], : inside[1]]
                logits = F.interpolate(small[None, None], (height, width), mode="bilinear")[0, 0].numpy()
                threshold, offset = source.mask_threshold, source.stability_score_offset
                inner, outer = (logits > threshold + offset).sum(), (logits > threshold - offset).sum()
                unsure = source.pred_iou_thresh > 0 and iou <= source.pred_iou_thresh
                if unsure or outer == 0 or inner / outer < source.stability_score_thresh:
                    continue
                mask = logits > threshold
                ys, xs = np.nonzero(mask)
                found.append((float(iou), mask, (xs.min(), ys.min(), xs.max(), ys.max()) if len(xs) else (0, 0, 0, 0)))
    found.sort(key=lambda item: -item[0])
    kept = []
    for item in found:
        if all(overlap(item[2], other[2]) <= source.box_nms_thresh for other in kept):
            kept.append(item)
    regions = np.zeros((height, width), int)
    for number, (_, mask, _) in enumerate(sorted(kept, key=lambda item: item[1].sum()), 1):
        regions[mask] = number
    return regions, len(found), len(kept)


def overlap(a, b):
    across = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - across
    return across / union if union else 0


LOOSE = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.05}


class Blobs(torch.nn.Module):
    """In place of a network: round masks about the points, of sizes and sharpnesses that vary with the place, and a quality."""

    def get_image_embeddings(self, pixels):
        return pixels

    def forward(self, input_points, multimask_output, image_embeddings=None, pixel_values=None):
        points = input_points[0, :, 0]  # (n, 2)
        vary = (points @ torch.tensor([0.7, 1.3])).sin()[:, None] + torch.arange(3 if multimask_output else 1)
        cells = (torch.stack(torch.meshgrid(torch.arange(16), torch.arange(16), indexing="xy"), -1) + 0.5) * SIDE / 16
        distance = (cells[None] - points[:, None, None]).norm(dim=-1)[:, None]
        radius, sharpness = 9 + 6 * vary.cos(), 0.3 + 0.7 * vary.sin() ** 2
        logits = (radius[..., None, None] - distance) * sharpness[..., None, None]
        return types.SimpleNamespace(pred_masks=logits[None], iou_scores=(0.5 + 0.5 * (3 * vary).sin())[None])


CHANGES = [
    {},
    {"pred_iou_thresh": 0.6},
    {"stability_score_thresh": 0.6},
    {"stability_score_offset": 0.5, "stability_score_thresh": 0.6},
    {"mask_threshold": 0.7},
    {"box_nms_thresh": 0.3},
    {"multimask_output": False},
    {"points_per_batch": 7},
]


@pytest.mark.parametrize("changed", CHANGES, ids=str)
@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_filters_suppression_and_painting_agree_with_a_plain_generator(kind, changed, networks, scene):
    settings = {"points_per_side": 6, "pred_iou_thresh": 0.2, "stability_score_thresh": 0.2, "box_nms_thresh": 0.5}
    source = generator(networks, kind, **settings | changed)
    source.model = Blobs()
    expected, found, kept = plain_generator(source, scene)
    assert 2 < kept < found
    assert len(np.unique(expected)) > 2
    assert source.masks(scene).shape[0] == kept
    assert (source(scene) == expected).mean() > 0.999


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_networks_agree_with_a_plain_generator(kind, multimask, networks, scene):
    source = generator(networks, kind, **LOOSE, multimask_output=multimask, box_nms_thresh=1.0)
    source.pred_iou_thresh, source.stability_score_offset = -1e9, 0.0  # with these weights both scores are anything
    expected, found, _ = plain_generator(source, scene)
    assert found
    assert (source(scene) == expected).mean() > 0.999


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_inputs_are_those_of_transformers_processors(kind, networks, scene):
    """Within the rounding of pixels to whole grey levels, which the official codes do for SAM alone."""
    import transformers

    source = generator(networks, kind)
    square = {"height": SIDE, "width": SIDE}
    if kind == "sam":
        processor = transformers.SamImageProcessor(size={"longest_edge": SIDE}, pad_size=square)
    else:
        processor = transformers.Sam2ImageProcessor(size=square)
    for image in (scene, scene[:, :17], np.ascontiguousarray(scene.transpose(1, 0, 2))):
        inputs = processor(image, return_tensors="pt")
        pixels, inside = source.frame(image)
        assert (pixels - inputs["pixel_values"]).abs().max() <= 1.01 / 57  # a grey level after the normalisation
        if kind == "sam":
            assert list(inside) == inputs["reshaped_input_sizes"][0].tolist()
        small = torch.linspace(-3, 3, 256).sin().view(1, 1, 16, 16)
        sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
        options = {"pad_size": square} if kind == "sam" else {}
        theirs = processor.post_process_masks([small], *sizes, binarize=False, **options)[0]
        assert torch.allclose(source.enlarge(small, inside, image.shape[:2]), theirs, atol=1e-6)


def test_batches_of_points_do_not_matter(networks, scene):
    a, b = (generator(networks, "sam2", **LOOSE, points_per_batch=count)(scene) for count in (3, 64))
    assert (a == b).mean() > 0.999


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (40, 1), (2, 3)])
@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_generators_on_degenerate_images(kind, size, networks):
    for settings in (LOOSE, {"points_per_side": 2, "stability_score_thresh": 0.0, "pred_iou_thresh": 0.0}):
        regions = generator(networks, kind, **settings)(np.full((*size, 3), 128, np.uint8))
        assert (regions.shape, regions.dtype) == (size, np.int32)
        assert regions.min() >= 0


def test_nothing_found_is_all_zero(networks, scene):
    assert not generator(networks, "sam2", points_per_side=2, pred_iou_thresh=1.0)(scene).any()


@pytest.mark.parametrize(("kind", "precision"), [("sam2", "fp16"), ("sam", "autocast")])
def test_half_precision_stays_close(kind, precision, networks, scene):
    source = generator(networks, kind, **LOOSE)
    exact = source(scene)
    source.half = True
    if precision == "fp16":
        source.model.half()
    assert (source(scene) == exact).mean() > 0.9


def test_an_image_that_does_not_fit_into_memory_is_named(networks, scene, monkeypatch):
    source = generator(networks, "sam2", **LOOSE)

    def full(pixels):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(source.model, "get_image_embeddings", full)
    with pytest.raises(OvssError, match=r"40 x 56 pixels .* settings.points_per_batch=16"):
        source(scene)


def test_sam2_gives_its_single_mask_as_it_is(networks):
    assert generator(networks, "sam2").model.mask_decoder.dynamic_multimask_via_stability is False


def test_the_grid_of_points_goes_row_by_row():
    assert torch.allclose(point_grid(2), torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]))
    assert point_grid(1).tolist() == [[0.5, 0.5]]


def test_boxes_hold_the_last_pixel_and_are_zero_for_nothing():
    masks = torch.zeros(3, 5, 7, dtype=torch.bool)
    masks[0, 1:4, 2:6] = True
    masks[1, 4, 6] = True
    assert boxes_of(masks).tolist() == [[2, 1, 5, 3], [6, 4, 6, 4], [0, 0, 0, 0]]


def test_larger_masks_cover_smaller_ones():
    masks = np.zeros((4, 3, 5), bool)
    masks[0, :, :4] = True  # 12 pixels: last
    masks[1, 0, 3:] = True  # 2 pixels: first of its size
    masks[2, 2, 4] = True  # 1 pixel
    masks[3, 1, 3:] = True  # 2 pixels
    regions = paint(np.packbits(masks.reshape(4, -1), axis=1), (3, 5))
    assert regions.tolist() == [[4, 4, 4, 4, 2], [4, 4, 4, 4, 3], [4, 4, 4, 4, 1]]
    assert paint(np.empty((0, 2), np.uint8), (3, 5)).tolist() == [[0] * 5] * 3
