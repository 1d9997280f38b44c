"""From the patch logits of all windows of an image to what the segmentors make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OvssError
from ..ops.compose import compose
from ..ops.pamr import PAMR
from ..ops.scores import drop_small_classes, label, label_by_parts
from ..ops.windows import SlidingWindow
from ..segmentors.base import Segmentor, overrides
from ..stages import Stages
from ..types import ImageContext
from .forward import PendingImage, has_hooks, out_of_memory
from .prediction import Prediction

ROWS = 16  # of refined cosines at a time
PART_BYTES = {"cpu": 2**26, "cuda": 2**30}  # of cosines at full size that PAMR gets at a time


@torch.inference_mode()
def finish(
    segmentors: Sequence[Segmentor], image: PendingImage, *, keep_scores: bool, stages: Stages
) -> Callable[[], list[Prediction]]:
    """What the segmentors make of an image of which all windows are there, as a function that waits for it."""
    try:
        results = [_predict(segmentor, image, n, keep_scores, stages) for n, segmentor in enumerate(segmentors)]
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        height, width = image.contexts[0].original.shape[:2]
        raise OvssError(
            f"memory does not suffice for image {image.key} of {height} x {width} pixels (height x width). Use fewer "
            "segmentors at a time, a smaller recipe.short_side, or runtime.device=cpu."
        ) from error
    device, event = segmentors[0].clip.device, None
    if device.type == "cuda":
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))

    def deliver() -> list[Prediction]:
        if event:
            event.synchronize()
        for number, (_, finite) in enumerate(results):
            if not finite:
                raise _not_finite(segmentors[number], image, number)
        return [prediction for prediction, _ in results]

    return deliver


def _predict(
    segmentor: Segmentor, image: PendingImage, number: int, keep_scores: bool, stages: Stages
) -> tuple[Prediction, Tensor]:
    """What a segmentor, the `number`-th, makes of an image, and whether its scores are finite; on the way to this side of a
    GPU."""
    context = image.contexts[number]
    if overrides(segmentor, "image_scores"):
        with stages("image scores"):
            scores = segmentor.image_scores(context)
        finite = torch.isfinite(scores).all()
        if not finite:
            raise _not_finite(segmentor, image, number)
        with stages("decide"):
            scores = _without_small_classes(segmentor, scores)
            labels = nearest(segmentor.decide(scores, context), context.size)
    else:
        with stages("compose"):
            grids, absent = torch.stack(image.grids[number]), _absent(segmentor, context, image.key)
            if absent is not None:  # their maps stay finite, so that neither composition nor refinement makes NaN of infinity
                grids = grids.masked_fill(absent[:, None, None], 0)
            finite = torch.isfinite(grids).all()
            if has_hooks(segmentor) and not finite:
                raise _not_finite(segmentor, image, number)
            labels, scores = _labels(segmentor, grids, image.windows, context, keep_scores, absent)
    if overrides(segmentor, "correct"):
        with stages("correct"):
            labels = segmentor.correct(labels, context)
    shown = _to_host(segmentor.final_scores(scores)) if keep_scores else None
    prediction = Prediction(_to_host(labels), context.original.shape[:2], shown, segmentor.vocabulary.classes)
    return prediction, _to_host(finite)


def _labels(
    segmentor: Segmentor,
    grids: Tensor,
    windows: SlidingWindow,
    context: ImageContext,
    keep_scores: bool,
    absent: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The label map, and the scores if they are to be kept or the decision needs them."""
    recipe, vocabulary = segmentor.recipe, segmentor.vocabulary
    own_rule = overrides(segmentor, "scores") or overrides(segmentor, "decide")
    if own_rule or recipe.area_threshold or keep_scores:
        scores = None
        for rows, columns, cosines in _tiles(segmentor, grids, windows, context):
            if absent is not None:
                cosines = cosines.masked_fill(absent[:, None, None], -torch.inf)
            planes = segmentor.scores(cosines, replace(context, part=(rows, columns)))
            if scores is None:
                scores = planes.new_empty(len(planes), *context.size)
            scores[:, rows, columns] = planes
        scores = _without_small_classes(segmentor, scores)
        return segmentor.decide(scores, context), scores
    order = vocabulary.by_class[1].to(grids.device)
    if absent is not None:  # for the softmax it is the same to leave them out
        present = (~absent).nonzero()[:, 0].tolist()
        queries, group = zip(*((vocabulary.queries[q], vocabulary.group[q]) for q in present), strict=True)
        vocabulary = replace(vocabulary, queries=queries, group=group, given_features=None)
        order = absent.new_tensor(present, dtype=torch.int64)[vocabulary.by_class[1].to(grids.device)]
    rule = (vocabulary, recipe.logit_scale, recipe.threshold)
    if _is_refined(segmentor):
        return label_by_parts(_refined(segmentor, grids, windows, context, order), *rule), None
    labels = torch.empty(context.size, dtype=torch.int64, device=grids.device)
    for rows, columns, cosines in compose(grids[:, order], windows, context.size):
        labels[rows, columns] = label(cosines, *rule)
    return labels, None


def _absent(segmentor: Segmentor, context: ImageContext, key: object) -> Tensor | None:
    """Which queries (Q,) the method says cannot be in this image, if any."""
    absent = segmentor.absent(context) if overrides(segmentor, "absent") else None
    if absent is None:
        return None
    name, group = segmentor.recipe.segmentor, segmentor.vocabulary.group
    absent = torch.as_tensor(absent).to(segmentor.clip.device)
    if all(out or c < 0 for out, c in zip(absent.tolist(), group, strict=True)):
        raise OvssError(f"{name}.absent leaves no query of a class for image {key}. At least one class must be possible.")
    if segmentor.recipe.logit_scale == 0:
        raise OvssError(f"logit_scale=0: all queries would be equal, and {name} has absent ones. Use a logit_scale above 0.")
    return absent if absent.any() else None


def _without_small_classes(segmentor: Segmentor, scores: Tensor) -> Tensor:
    """The recipe's area threshold, where the planes are classes: with a decision of its own a method may have others."""
    share = segmentor.recipe.area_threshold
    if not share or overrides(segmentor, "decide"):
        return scores
    return drop_small_classes(scores, segmentor.vocabulary.background, share)


def _tiles(
    segmentor: Segmentor, grids: Tensor, windows: SlidingWindow, context: ImageContext
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, cosines (Q, rows, columns)) of parts of the result."""
    if _is_refined(segmentor):
        order = torch.arange(grids.shape[1], device=grids.device)
        cosines = torch.cat(list(_refined(segmentor, grids, windows, context, order)))
        for start in range(0, context.size[0], ROWS):
            rows = slice(start, start + ROWS)
            yield rows, slice(None), cosines[:, rows]
    else:
        for rows, columns, tile in compose(grids, windows, context.size):
            yield rows, columns, tile.movedim(-1, 0)


def _is_refined(segmentor: Segmentor) -> bool:
    return segmentor.recipe.pamr_steps > 0 or segmentor.refines


def _refined(
    segmentor: Segmentor, grids: Tensor, windows: SlidingWindow, context: ImageContext, order: Tensor
) -> Iterator[Tensor]:
    """Refined cosines (n, H, W) of the queries in `order`: PAMR takes some after the others, a method's own rule all."""
    recipe, smooth = segmentor.recipe, None
    if recipe.pamr_steps:
        guide = F.interpolate(context.pixels[None].to(grids.device), context.size, mode="bilinear")[0]
        smooth = PAMR(guide, recipe.pamr_steps, recipe.pamr_dilations)

    def smoothed(queries: Tensor) -> Tensor:
        cosines = grids.new_empty(len(queries), *context.size)
        for rows, columns, tile in compose(grids[:, queries], windows, context.size):
            cosines[:, rows, columns] = tile.movedim(-1, 0)
        return smooth(cosines) if smooth else cosines

    if segmentor.refines:
        yield segmentor.refine(smoothed(torch.arange(len(order))), context)[order]
    else:
        for queries in order.split(max(1, PART_BYTES[grids.device.type] // (4 * context.size[0] * context.size[1]))):
            yield smoothed(queries)


def _to_host(result: Tensor) -> Tensor:
    """On the way to the CPU, if it is on a GPU."""
    if result.device.type == "cpu":
        return result
    return torch.empty_like(result, device="cpu", pin_memory=True).copy_(result, non_blocking=True)


def _not_finite(segmentor: Segmentor, image: PendingImage, number: int) -> OvssError:
    """The error that names the image and the first window without finite scores, if the method goes by windows."""
    bad = [
        origin
        for origin, grid in zip(image.windows.origins, image.grids[number], strict=False)
        if grid is not None and not torch.isfinite(grid).all()
    ]
    where = f", window at (y, x) = {bad[0]}" if bad else ""
    return OvssError(
        f"{segmentor.recipe.segmentor} gives non-finite scores (NaN or infinity) in image {image.key}{where}. "
        f"Check the weights and the precision ({segmentor.clip.precision})."
    )


def nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w) -> (H, W), the nearest in OpenCV's sense: row floor(i h / H), column floor(j w / W)."""
    if labels.shape == size:
        return labels
    rows, columns = (torch.arange(new, device=labels.device) * old // new for new, old in zip(size, labels.shape, strict=True))
    return labels[rows[:, None], columns]
