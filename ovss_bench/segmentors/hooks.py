"""The hooks of plug-ins under watch: what they raise, and what they return that cannot be, is one error that names the hook."""

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


def checked(segmentor: Segmentor) -> Segmentor:
    """The segmentor, after a check of what can be known before the first image. Raises OvssError."""
    method, depth = type(segmentor), segmentor.clip.depth
    name = segmentor.recipe.segmentor
    if method.image_scores is Segmentor.image_scores:
        if method.patch_logits is Segmentor.patch_logits and method.image_logits is Segmentor.image_logits:
            raise OvssError(
                f"{_where(method)}: '{name}' has neither patch_logits nor image_logits nor image_scores. Override one of them."
            )
        plain = LastBlockSegmentor
        by_windows = method.image_logits is Segmentor.image_logits and method.patch_logits is plain.patch_logits
        if by_windows and method.last_block is plain.last_block and method.mix is plain.mix:
            raise OvssError(f"{_where(method)}: '{name}' has neither mix nor last_block. Override one of them.")
    for declared in ("needs", "needs_qkv"):
        with plugin_errors(f"{declared} of '{name}'", method):
            needs = getattr(segmentor, declared)
        if not isinstance(needs, Set) or any(type(block) is not int or not 0 <= block < depth for block in needs):
            shown = sorted(needs) if isinstance(needs, Set) and all(type(block) is int for block in needs) else needs
            raise OvssError(
                f"{_where(method)}: {declared} of '{name}' gives {shown}, expected a set of blocks from 0 to {depth - 1}, as "
                f"{segmentor.clip.name} has {depth}."
            )
    return segmentor


def guarded(segmentor: Segmentor) -> Segmentor:
    """A copy of a plug-in's segmentor whose hooks are watched; one of this project as it is."""
    if not is_outside(type(segmentor)):
        return segmentor
    own = copy.copy(segmentor)
    for hook in HOOKS:
        if hasattr(type(own), hook):
            setattr(own, hook, _watched(own, hook))
    return own


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


# What each hook must return: by segmentor, result and arguments the words for it, or None where it is so.


def _floats(result: Any, *shape: int | None) -> str | None:
    """Of this shape; None: any length."""
    fits = isinstance(result, Tensor) and result.is_floating_point() and result.ndim == len(shape)
    if fits and all(wanted in (None, given) and given for wanted, given in zip(shape, result.shape, strict=True)):
        return None
    return f"a tensor ({', '.join('n' if side is None else str(side) for side in shape)}) of floats"


def _labels(segmentor: Segmentor, result: Any, size: tuple[int, ...]) -> str | None:
    classes = len(segmentor.vocabulary.classes)
    fits = isinstance(result, Tensor) and result.dtype == torch.int64 and result.shape == size
    # On a GPU, looking at values would wait for them.
    if fits and (result.device.type != "cpu" or not result.numel() or (result.min() >= 0 and result.max() <= classes)):
        return None
    return f"a tensor {tuple(size)} of int64 from 0 to {classes} (the number of classes stands for no class)"


def _absent(segmentor: Segmentor, result: Any) -> str | None:
    queries = len(segmentor.vocabulary.queries)
    fits = isinstance(result, Tensor) and result.dtype == torch.bool and result.shape == (queries,)
    return None if fits or result is None else f"a tensor ({queries},) of bool, or None"


def _decided(segmentor: Segmentor, result: Any, scores: Tensor, *_: Any) -> str | None:
    by_images = type(segmentor).image_scores is not Segmentor.image_scores  # then of any size, and resized
    size = result.shape if by_images and isinstance(result, Tensor) and result.ndim == 2 else scores.shape[1:]
    return _labels(segmentor, result, size)


HOOKS: dict[str, Callable[..., str | None]] = {
    "prepare": lambda segmentor, result, *_: None,
    "patch_logits": lambda s, result, batch: _floats(result, len(batch.pixels), len(s.vocabulary.queries), None, None),
    "image_logits": lambda s, result, batch: _floats(result, len(batch.pixels), len(s.vocabulary.queries), None, None),
    "mix": lambda s, result, q, k, v, grid: _floats(result, *v.shape),
    "last_block": lambda s, result, block, x: _floats(result, *x.shape),
    "image_scores": lambda s, result, context: _floats(result, None, None, None),
    "refine": lambda s, result, cosines, *_: _floats(result, *cosines.shape),
    "absent": lambda s, result, *_: _absent(s, result),
    "scores": lambda s, result, cosines, *_: _floats(result, None, *cosines.shape[1:]),
    "decide": _decided,
    "correct": lambda s, result, label_map, *_: _labels(s, result, label_map.shape),
    "final_scores": lambda s, result, scores, *_: _floats(result, None, None, None),
}


def _where(method: type) -> str:
    return getattr(sys.modules.get(method.__module__), "__file__", None) or method.__module__
