"""From the patch logits of all windows of an image to its predictions: compose, refine, score, decide, correct."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import OvssError
from ..ops.compose import compose, composed_maps
from ..ops.enlarge import resized_maps
from ..ops.nearest import opencv_nearest
from ..ops.pamr import PAMR
from ..ops.scores import by_class
from ..ops.windows import SlidingWindow
from ..segmentors.base import Segmentor
from ..stages import Stages
from ..types import ImageContext
from .forward import PendingImage, out_of_memory
from .prediction import Prediction

ROWS = 16  # rows of refined cosines that are scored at a time
PART_BYTES = {"cpu": 2**26, "cuda": 2**30}  # full-size cosines that PAMR refines at a time


@torch.inference_mode()
def finish(
    segmentors: Sequence[Segmentor], image: PendingImage, *, keep_scores: bool, stages: Stages
) -> Callable[[], list[Prediction]]:
    """Computes the predictions for an image without missing windows. The returned function waits for the GPU."""
    try:
        results = [_predict(segmentor, image, n, keep_scores, stages) for n, segmentor in enumerate(segmentors)]
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        height, width = image.contexts[0].original.shape[:2]
        raise OvssError(
            f"out of memory: image {image.key} of {height} x {width} pixels (height x width). Use fewer segmentors at a time, "
            "a smaller recipe.short_side, or runtime.device=cpu."
        ) from error
    device, event = segmentors[0].clip.device, None
    if device.type == "cuda":
        event = torch.cuda.current_stream(device).record_event()

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
    """The prediction of the `number`-th segmentor, and whether its scores are finite; both are being copied to the CPU."""
    context = image.contexts[number]
    if segmentor.granularity == "image":
        with stages("image scores"):
            found = None if keep_scores else segmentor.image_labels(context)
            labels, scores = found or (None, segmentor.image_scores(context))
        finite = _all_finite(scores)
        if not finite:
            raise _not_finite(segmentor, image, number)
        with stages("decide"):
            if labels is None:
                labels, scores = _decided(segmentor, scores, context)
            labels = opencv_nearest(labels, context.size)
    else:
        with stages("compose"):
            # The queries of a cell side by side in memory, as composition needs them.
            grids = torch.stack([grid.movedim(0, -1) for grid in image.grids[number]]).movedim(-1, 1)
            bias = _prior(segmentor, context, image.key)
            if bias is not None:  # maps of absent queries must be finite: composition and refinement turn infinity into NaN
                grids = grids.masked_fill((bias == -torch.inf)[:, None, None], 0)
            finite = _all_finite(grids.movedim(1, -1))
            if not segmentor.only_logits and not finite:
                raise _not_finite(segmentor, image, number)
            # Methods that attend across windows may return one grid over the whole image.
            windows = image.windows if len(grids) == len(image.windows.origins) else image.windows.joined
            labels, scores = _labels(segmentor, grids, windows, context, keep_scores, bias)
    if segmentor.correct:
        with stages("correct"):
            labels = segmentor.correct(labels, context)
    shown = None
    if keep_scores:
        shown = _to_host(scores / scores.sum(0, keepdim=True) if segmentor.scores_sum_to_one else scores)
    return Prediction(_to_host(labels), context.original.shape[:2], shown, segmentor.vocabulary.classes), _to_host(finite)


def _labels(
    segmentor: Segmentor, grids: Tensor, windows: SlidingWindow, context: ImageContext, keep_scores: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The label map, and the scores if `keep_scores` or if the decision needs them."""
    decision = segmentor.decision
    if segmentor.scores or segmentor.refine_scores or segmentor.decide or decision.area_threshold or keep_scores:
        scores = None
        for rows, columns, cosines in _tiles(segmentor, grids, windows, context):
            if bias is not None:
                cosines = cosines + bias[:, None, None]
            part = replace(context, part=(rows, columns))
            planes = segmentor.scores(cosines, part) if segmentor.scores else decision.class_scores(cosines)
            if scores is None:
                scores = _like(planes, context.size)
            scores[:, rows, columns] = planes
        return _decided(segmentor, scores, context)
    order = by_class(segmentor.vocabulary, like=grids)[1]
    bias = None if bias is None else bias[order]
    if _is_refined(segmentor):
        parts = _refined(segmentor, grids, windows, context, order)
        return decision.from_cosines((cosines.movedim(0, -1) for cosines in parts), bias), None
    labels = torch.empty(context.size, dtype=torch.int64, device=grids.device)
    grids = grids if segmentor.vocabulary.is_by_class else grids[:, order]
    for rows, columns, cosines in compose(grids, windows, context.size):
        labels[rows, columns] = decision.from_cosines([cosines], bias)
    return labels, None


def _like(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Uninitialised planes of a larger size; the values of a pixel are adjacent in memory if they are in `planes`."""
    count = len(planes)
    return planes.new_empty(*size, count).movedim(-1, 0) if planes.stride(0) == 1 else planes.new_empty(count, *size)


def _prior(segmentor: Segmentor, context: ImageContext, key: object) -> Tensor | None:
    """What the method's prior, if any, adds to the cosines of the queries (Q,): log-weights divided by the logit scale."""
    weights = segmentor.prior(context) if segmentor.prior else None
    if weights is None:
        return None
    name, scale = segmentor.recipe.segmentor, segmentor.recipe.logit_scale
    listed = weights.tolist()
    if not all(weight < torch.inf for weight in listed):
        raise OvssError(f"{name}.prior gives NaN or +infinity for image {key}. Log-weights are finite, or -infinity.")
    if all(weight == -torch.inf or c < 0 for weight, c in zip(listed, segmentor.vocabulary.group, strict=True)):
        raise OvssError(f"{name}.prior leaves no query of a class for image {key}. At least one class must be possible.")
    if scale == 0:
        raise OvssError(f"logit_scale=0 makes all queries equal, but {name} has a prior. Use a logit_scale above 0.")
    return weights.to(segmentor.clip.device).float() / scale


def _decided(segmentor: Segmentor, scores: Tensor, context: ImageContext) -> tuple[Tensor, Tensor]:
    """The label map and the scores. Only the default decision has an area threshold: other planes may not be classes."""
    if segmentor.refine_scores:
        scores = segmentor.refine_scores(scores, context)
    if segmentor.decide:
        return segmentor.decide(scores, context), scores
    decision = segmentor.decision
    if decision.area_threshold:
        scores = decision.without_small_classes(scores)
    return decision.from_scores(scores), scores


def _tiles(
    segmentor: Segmentor, grids: Tensor, windows: SlidingWindow, context: ImageContext
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yields (rows, columns, cosines (Q, rows, columns)) of parts of the result."""
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
    """Refined cosines (n, H, W) of the queries in `order`: in parts for PAMR, all together for the hook `refine`."""
    recipe, smooth = segmentor.recipe, None
    if recipe.pamr_steps:
        guide = resized_maps(context.pixels.to(grids.device), context.size)
        smooth = PAMR(guide, recipe.pamr_steps, recipe.pamr_dilations)

    def smoothed(queries: Tensor) -> Tensor:
        cosines = composed_maps(grids[:, queries], windows, context.size, contiguous=segmentor.refines and not smooth)
        return smooth(cosines) if smooth else cosines

    if segmentor.refines:
        cosines = smoothed(torch.arange(len(order), device=grids.device)).contiguous()
        yield segmentor.refine(cosines, context)[order]
    else:
        for queries in order.split(max(1, PART_BYTES[grids.device.type] // (4 * context.size[0] * context.size[1]))):
            yield smoothed(queries)


def _to_host(result: Tensor) -> Tensor:
    """The tensor, or an asynchronous copy from the GPU."""
    if result.device.type == "cpu":
        return result
    return torch.empty_like(result, device="cpu", pin_memory=True).copy_(result, non_blocking=True)


def _all_finite(scores: Tensor) -> Tensor:
    """bool (), in one pass without temporary planes: with a NaN, both minimum and maximum are NaN."""
    return torch.stack(scores.aminmax()).isfinite().all() if scores.numel() else scores.new_ones((), dtype=torch.bool)


def _not_finite(segmentor: Segmentor, image: PendingImage, number: int) -> OvssError:
    """The error, with the image and the first window with non-finite scores, if the method uses windows."""
    grids = zip(image.windows.origins, image.grids[number], strict=False)
    bad = [origin for origin, grid in grids if grid is not None and not torch.isfinite(grid).all()]
    where = f", window at (y, x) = {bad[0]}" if bad else ""
    return OvssError(
        f"{segmentor.recipe.segmentor} gives non-finite scores (NaN or infinity) in image {image.key}{where}. "
        f"Check the weights and the precision ({segmentor.clip.precision})."
    )
