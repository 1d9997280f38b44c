"""Steps of methods that compose with other methods: `sclip+region_vote` names SCLIP with the step region_vote.

The options `text` and `refine` append steps to the name of a segmentor. A segmentor with steps is a class derived from the
steps, the last first, and from the base method, so each step calls what comes before it by `super()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from ..errors import OvssError
from .plugin_errors import is_outside
from .registry import STEPS

OPTIONS = ("text", "refine")
JOINED = ("requires", "positive", "in_fp32", "uses")  # declarations of a segmentor that steps add to


def with_steps(name: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a segmentor with the steps that `text` and `refine` among the values name (one or a list), and the other
    values. Raises OvssError for unknown steps, those of the other option, and an order in which they do not run."""
    rest = dict(values)
    for option in OPTIONS:
        given = rest.pop(option, None)
        steps = [given] if isinstance(given, str) else given or []
        if not isinstance(steps, list | tuple) or not all(isinstance(step, str) for step in steps):
            raise OvssError(f"{option}={given!r}: expected the name of a step, or a list of names.")
        for step in steps:
            if STEPS.get(step).option != option:
                raise OvssError(f"{option}={step}: give this step as {STEPS.get(step).option}={step}.")
            name = f"{name}+{step}"
    for first, second in pairwise(name.split("+")[1:]):
        if STEPS.get(first).place > STEPS.get(second).place:
            raise OvssError(f"{name}: {second} always acts before {first}. Write it before {first}, too.")
    return name, rest


def composed(name: str, base: type, steps: Sequence[str]) -> type:
    """The class of a base method with steps, the same for the same classes. Raises OvssError for steps that do not fit."""
    found = [STEPS.get(step) for step in steps]
    for number, (step, kind) in enumerate(zip(steps, found, strict=True)):
        twice = kind in found[:number] or issubclass(base, kind)
        reason = f"{step} is already part of it" if twice else kind.refusal(base)
        if reason:
            raise OvssError(f"{name}: {reason}. Leave {step} out, or use another segmentor.")
    return _composed(base, tuple(found))


@cache
def _composed(base: type, steps: tuple[type, ...]) -> type:
    declared: dict[str, Any] = {
        key: tuple(dict.fromkeys(each for kind in (base, *steps) for each in getattr(kind, key))) for key in JOINED
    }
    module = next(
        (kind.__module__ for kind in (*steps, base) if is_outside(kind)), base.__module__
    )  # then its hooks are checked
    declared |= {"__module__": module, "__doc__": base.__doc__}
    bottom = base
    if base.image_logits and any(step.patch_logits for step in steps):  # these get all windows of an image, too
        bottom = type(base.__name__, (base,), {"__module__": base.__module__, "patch_logits": base.image_logits})
        declared["image_logits"] = lambda self, batch: self.patch_logits(batch)
    return type(base.__name__, (*reversed(steps), bottom), declared)
