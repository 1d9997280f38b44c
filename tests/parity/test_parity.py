"""Every array that the official codes returned, computed again by the library.

The modules `checks_*.py` say how: `METHODS` and `CHECKS`, of which the first whose pattern fits the name of an array counts.
`INPUTS` are arrays that the official code was given.
"""

import json
import re
from collections.abc import Iterator
from importlib import import_module

import pytest
import torch

import ovss_bench as ob

from . import reference as sets
from .checks_proxyclip import stand_in
from .common import build, compare
from .reference import METHODS, OWN, Reference

MODULES = [import_module(f"{__package__}.{path.stem}") for path in sorted(OWN.glob("checks_*.py"))]
CHECKS = {method: module.CHECKS for module in MODULES for method in module.METHODS}
INPUTS = {method: getattr(module, "INPUTS", ()) for module in MODULES for method in module.METHODS}


def arrays() -> Iterator[tuple[str, str]]:
    for method in METHODS:
        yield from ((method, array) for array in Reference(method).arrays or ["(no such file)"] if array not in INPUTS[method])


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


@pytest.mark.parametrize("method", METHODS)
def test_what_a_set_says_counts_before_our_own_copy(method: str, tmp_path, monkeypatch) -> None:
    """Every value by itself, at any depth; what the set leaves out is that of our own set."""
    own = json.loads((OWN / f"{method}.json").read_text())
    case = json.loads((OWN / "case.json").read_text()) | {"seed_offset": 1000, "overrides": {method: {"other_seed": 5}}}
    (tmp_path / "case.json").write_text(json.dumps(case))
    monkeypatch.setattr(sets, "CASE", tmp_path / "case.json")
    for path, _ in _leaves(own):
        changed = "changed"
        for key in reversed(path):
            changed = {key: changed}
        (tmp_path / f"{method}.json").write_text(json.dumps(changed))
        reference = Reference(method)
        assert dict(_leaves(reference.info)) == dict(_leaves(own)) | {path: "changed"}
        if path[0] == "hyperparameters":
            assert dict(_leaves(reference.hyperparameters))[path[1:]] == "changed"
    assert reference.seed("weights", 11) == 1011
    assert reference.seed("other", 11) == 5


def test_seeds_that_a_set_names_are_base_seeds(tmp_path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        "parity.checks_proxyclip.seeded.feature_map", lambda seed, *size: seen.append(seed) or torch.zeros(1, *size)
    )
    monkeypatch.setattr(sets, "CASE", tmp_path / "case.json")
    (tmp_path / "case.json").write_text(json.dumps(json.loads((OWN / "case.json").read_text()) | {"seed_offset": 1000}))
    (tmp_path / "proxyclip.json").write_text(json.dumps({"vfm": {"seed": 47}}))
    stand_in(Reference("proxyclip"), ob.WindowBatch(torch.zeros(2, 3, 32, 32)))
    assert seen == [1047, 1057]


def _leaves(info: dict, path: tuple = ()) -> Iterator[tuple[tuple, object]]:
    for key, value in info.items():
        yield from _leaves(value, (*path, key)) if isinstance(value, dict) and value else [((*path, key), value)]
