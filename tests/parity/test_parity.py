"""Every array that the official codes returned, computed again by the library.

The modules `checks_*.py` say how: `METHODS` and `CHECKS`, of which the first whose pattern fits the name of an array counts.
"""

import re
from collections.abc import Iterator
from importlib import import_module

import pytest

import ovss_bench as ob

from .common import build, compare
from .reference import METHODS, OWN, Reference

MODULES = [import_module(f"{__package__}.{path.stem}") for path in sorted(OWN.glob("checks_*.py"))]
CHECKS = {method: module.CHECKS for module in MODULES for method in module.METHODS}


def arrays() -> Iterator[tuple[str, str]]:
    for method in METHODS:
        yield from ((method, array) for array in Reference(method).arrays or ["(no such file)"])


@pytest.mark.parametrize(("method", "array"), arrays())
def test_agrees_with_the_official_code(method: str, array: str) -> None:
    reference = Reference(method)
    known = [(compute, tolerance) for pattern, compute, tolerance in CHECKS[method] if re.fullmatch(pattern, array)]
    assert known, f"{reference.path} {array}: no test computes it"
    compute, tolerance = known[0]
    compare(compute(reference, array), reference.arrays[array], tolerance)


@pytest.mark.parametrize("array", ["official_logits", "official_refined"])
def test_activation_and_epsilon_may_come_with_the_weights(array: str) -> None:
    """The original MaskCLIP, said to `load_clip` instead of in the recipe."""
    reference = Reference("maskclip")
    segmentor = build(reference, array, clip={"activation": "gelu", "layer_norm_eps": 1e-6}, position="size")
    tolerance = next(tolerance for name, _, tolerance in CHECKS["maskclip"] if name == array)
    compare(segmentor.patch_logits(ob.WindowBatch(reference.pixels("square")))[0], reference.arrays[array], tolerance)
