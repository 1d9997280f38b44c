"""Steps of methods that can be added to other methods: `sclip+region_vote` names SCLIP with the step region_vote.

The options `text` and `refine` append steps to the name of a segmentor. The class of a segmentor with steps derives from the
steps, last first, and from the base method, so each step calls the one before it by `super()`."""

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
    """The name of a segmentor with the steps that `text` and `refine` list in `values` (one or several), and the other values.
    Raises OvssError for unknown steps, for steps of the other option, and for steps in the wrong order."""
    rest = dict(values)
    for option in OPTIONS:
        value = rest.pop(option, None)
        steps = [value] if isinstance(value, str) else value or []
        if not isinstance(steps, list | tuple) or not all(isinstance(step, str) for step in steps):
            raise OvssError(f"{option}={value!r}: expected the name of a step, or a list of names.")
        for step in steps:
            if STEPS.get(step).option != option:
                raise OvssError(f"{option}={step}: give this step as {STEPS.get(step).option}={step}.")
            name = f"{name}+{step}"
    for first, second in pairwise(name.split("+")[1:]):
        if STEPS.get(first).place > STEPS.get(second).place:
            raise OvssError(f"{name}: {second} always acts before {first}. Write it before {first}, too.")
    return name, rest


def composed(name: str, base: type, steps: Sequence[str]) -> type:
    """The class of a base method with steps; equal arguments give the same class. Raises OvssError for incompatible steps."""
    kinds = [STEPS.get(step) for step in steps]
    for number, (step, kind) in enumerate(zip(steps, kinds, strict=True)):
        twice = kind in kinds[:number] or issubclass(base, kind)
        reason = f"{step} is already part of it" if twice else kind.refusal(base)
        if reason:
            raise OvssError(f"{name}: {reason}. Leave {step} out, or use another segmentor.")
    return _composed(base, tuple(kinds))


@cache
def _composed(base: type, steps: tuple[type, ...]) -> type:
    declared: dict[str, Any] = {
        key: tuple(dict.fromkeys(each for kind in (base, *steps) for each in getattr(kind, key))) for key in JOINED
    }
    # Hooks of classes from outside this package are checked.
    module = next((kind.__module__ for kind in (*steps, base) if is_outside(kind)), base.__module__)
    declared |= {"__module__": module, "__doc__": base.__doc__}
    bottom = base
    if base.image_logits and any(step.patch_logits for step in steps):  # these then get all windows of an image, too
        bottom = type(base.__name__, (base,), {"__module__": base.__module__, "patch_logits": base.image_logits})
        declared["image_logits"] = lambda self, batch: self.patch_logits(batch)
    return type(base.__name__, (*reversed(steps), bottom), declared)
