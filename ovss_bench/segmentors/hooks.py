"""Checks of a plug-in's hooks: an exception or a wrong return value becomes one error that names the hook, file and line."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Set
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ..config.plugin_errors import is_outside, plugin_errors
from ..errors import OvssError
from .base import LastBlockSegmentor, Segmentor

REMOVED = {  # hooks of earlier versions -> their successors
    "absent": "prior, which returns log-weights: -inf for an absent query, 0 for the others",
    "prepare": "context.by_products in the hook that needs the by-product first",
    "final_scores": "scores_sum_to_one = True",
}


def check_declarations(segmentor: Segmentor) -> Segmentor:
    """The segmentor, after all checks of its class that are possible before the first image. Raises OvssError."""
    method, depth = type(segmentor), segmentor.clip.depth
    name, where = segmentor.recipe.segmentor, _where(type(segmentor))
    if not (method.patch_logits or method.image_logits or method.image_scores):
        raise OvssError(f"{where}: '{name}' has neither patch_logits nor image_logits nor image_scores. Define one of them.")
    for hook, successor in REMOVED.items():
        if hasattr(method, hook):
            raise OvssError(f"{where}: '{name}' defines {hook}, which is no longer a hook. Use {successor}.")
    plain = LastBlockSegmentor
    by_last_block = segmentor.granularity == "window" and method.patch_logits is plain.patch_logits
    if by_last_block and method.last_block is plain.last_block and method.mix is None:
        raise OvssError(f"{where}: '{name}' has neither mix nor last_block. Define one of them.")
    with plugin_errors(f"group of '{name}'", method):
        group = segmentor.group
    if type(group) is not int or group < 1:
        raise OvssError(f"{where}: group of '{name}' gives {group!r}, expected a number of images, 1 or more.")
    for declared in ("needs", "needs_qkv"):
        with plugin_errors(f"{declared} of '{name}'", method):
            needs = getattr(segmentor, declared)
        if not isinstance(needs, Set) or any(type(block) is not int or not 0 <= block < depth for block in needs):
            shown = sorted(needs) if isinstance(needs, Set) and all(type(block) is int for block in needs) else needs
            raise OvssError(
                f"{where}: {declared} of '{name}' gives {shown}, expected a set of blocks from 0 to {depth - 1}, as "
                f"{segmentor.clip.name} has {depth}."
            )
    return segmentor


def guarded(segmentor: Segmentor) -> Segmentor:
    """A copy of a plug-in's segmentor whose hooks are checked at every call; this project's own segmentors unchanged."""
    if not is_outside(type(segmentor)):
        return segmentor
    watched = copy.copy(segmentor)
    # Other classes may use these two names for anything.
    foreign = () if isinstance(segmentor, LastBlockSegmentor) else ("mix", "last_block")
    for hook in HOOKS.keys() - set(foreign):
        if getattr(type(segmentor), hook, None):
            setattr(watched, hook, _watched(watched, hook))
    return watched


def _watched(segmentor: Segmentor, hook: str) -> Callable[..., Any]:
    method = getattr(segmentor, hook)
    name = segmentor.recipe.segmentor

    @wraps(method)
    def call(*arguments: Any) -> Any:
        with plugin_errors(f"{hook} of '{name}'", type(segmentor)):
            result = method(*arguments)
        expected = HOOKS[hook](segmentor, result, *arguments)
        if expected:
            given = f"a tensor {tuple(result.shape)} of {result.dtype}" if isinstance(result, Tensor) else type(result).__name__
            code = getattr(inspect.unwrap(method), "__code__", None)
            place = f"{code.co_filename}, line {code.co_firstlineno}" if code else _where(type(segmentor))
            raise OvssError(f"{hook} of '{name}' gives {given}, expected {expected} ({place})")
        return result

    return call


# Each check of a hook takes segmentor, result and arguments, and returns the expectation in words, or None if it is met.


def _floats(result: Any, *shape: int | None) -> str | None:
    """Expects floats of this shape; None: any length."""
    fits = isinstance(result, Tensor) and result.is_floating_point() and result.ndim == len(shape)
    if fits and all(wanted in (None, given) and given for wanted, given in zip(shape, result.shape, strict=True)):
        return None
    return f"a tensor ({', '.join('n' if side is None else str(side) for side in shape)}) of floats"


def _grids(segmentor: Segmentor, result: Any, windows: int) -> str | None:
    """Expects a grid for each window, or one over the whole image."""
    whole = isinstance(result, Tensor) and result.shape[:1] == (1,)
    return _floats(result, 1 if whole else windows, len(segmentor.vocabulary.queries), None, None)


def _labels(segmentor: Segmentor, result: Any, size: tuple[int, ...]) -> str | None:
    classes = len(segmentor.vocabulary.classes)
    fits = isinstance(result, Tensor) and result.dtype == torch.int64 and result.shape == size
    # On a GPU, reading the values would synchronise with the device.
    if fits and (result.device.type != "cpu" or not result.numel() or (result.min() >= 0 and result.max() <= classes)):
        return None
    return f"a tensor {tuple(size)} of int64 from 0 to {classes} (the number of classes means no class)"


def _decided(segmentor: Segmentor, result: Any, scores: Tensor, *_: Any) -> str | None:
    if segmentor.granularity == "image" and isinstance(result, Tensor) and result.ndim == 2:
        return _labels(segmentor, result, result.shape)  # of any size: the engine resizes it
    return _labels(segmentor, result, scores.shape[1:])


HOOKS: dict[str, Callable[..., str | None]] = {
    "patch_logits": lambda s, result, batch: _floats(result, len(batch.pixels), len(s.vocabulary.queries), None, None),
    "image_logits": lambda s, result, batch: _grids(s, result, len(batch.pixels)),
    "mix": lambda s, result, q, k, v, grid: _floats(result, *v.shape),
    "last_block": lambda s, result, block, x: _floats(result, *x.shape),
    "image_scores": lambda s, result, context: _floats(result, None, None, None),
    "refine": lambda s, result, cosines, *_: _floats(result, *cosines.shape),
    "group_features": lambda *_: None,
    "prior": lambda s, result, *_: None if result is None else _floats(result, len(s.vocabulary.queries)),
    "scores": lambda s, result, cosines, *_: _floats(result, None, *cosines.shape[1:]),
    "refine_scores": lambda s, result, planes, *_: _floats(result, *planes.shape),
    "decide": _decided,
    "correct": lambda s, result, label_map, *_: _labels(s, result, label_map.shape),
}


def _where(method: type) -> str:
    return getattr(sys.modules.get(method.__module__), "__file__", None) or method.__module__
