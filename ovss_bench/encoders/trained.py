"""Reads checkpoints of trained networks: every tensor must be known, and sizes follow from shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from ..errors import OvssError
from .checkpoints import read_weights

Shape = tuple[int | str, ...]
SHOWN = 8  # problems in an error


def read_trained(
    path: str | Path,
    required: Mapping[str, Shape] | Callable[[Iterable[str]], Mapping[str, Shape]],
    *,
    optional: Sequence[Mapping[str, Shape]] = (),
    ignorable: Sequence[str] = (),
    prefix: str = "",
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The required and optional tensors of a checkpoint, in float32, and the sizes that follow from their shapes.

    `required` maps tensor names to shapes, or makes such a map from the names in the file. `optional` lists groups in further
    maps; a file holds all tensors of a group or none. A size is a number, or a name (`"D"`; with a factor, `"3D"`) that stands
    for the same number in all shapes. A `*` in a tensor name stands for the numbers 0 to n-1, for example of blocks; n is among
    the sizes, under the name up to and including the `*`. `ignorable`: shell patterns of names that are not needed.
    `prefix`: if any name begins with it, only the tensors whose names do are read, without it.

    The state dict may be wrapped (checkpoints.WRAPPERS) and have the prefix `module.` of parallel training. Raises an
    OvssError that names the file and the tensors that are missing, unexpected or of the wrong shape or type.
    """
    state = read_weights(path)[0]
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if prefix and any(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    sizes: dict[str, int] = {}
    shapes = dict(_numbered(required(state) if callable(required) else required, state, sizes))
    for group in (dict(_numbered(group, state, sizes)) for group in optional):
        shapes |= group if group.keys() & state.keys() else {}
    problems = [f"{name} is missing" for name in shapes if name not in state]
    shapes = {name: shape for name, shape in shapes.items() if name in state}
    others = [name for name in state if name not in shapes]
    problems += [f"{name} is unexpected" for name in others if not any(fnmatchcase(name, mask) for mask in ignorable)]
    problems += [f"{name} is {state[name].dtype}" for name in shapes if not state[name].is_floating_point()]
    problems += _misfits(shapes, state, sizes)
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise OvssError(f"checkpoint {path} does not fit: {'; '.join(problems[:SHOWN])}{more}.")
    return {name: state[name].float() for name in shapes}, sizes


def check_channels(what: str, expected: int, channels: int, clip: str) -> None:
    """Raises OvssError unless the features of a `clip` have as many channels as a checkpoint expects; `what` names both."""
    if expected != channels:
        hint = "Use the CLIP that it was trained with."
        raise OvssError(f"{what} of {expected} channels, but those of clip '{clip}' have {channels}. {hint}")


def _numbered(shapes: Mapping[str, Shape], state: Mapping[str, Tensor], sizes: dict[str, int]) -> Iterator[tuple[str, Shape]]:
    """The shapes with every `*` replaced by 0 up to the highest number in the state dict, at least 0."""
    for name, shape in shapes.items():
        stem, star, rest = name.partition("*")
        if star and stem + star not in sizes:
            found = [re.match(re.escape(stem) + r"(\d{1,3})\b", key) for key in state]
            sizes[stem + star] = 1 + max((int(match[1]) for match in found if match), default=0)
        yield from ((f"{stem}{i}{rest}", shape) for i in range(sizes[stem + star])) if star else [(name, shape)]


def _misfits(shapes: Mapping[str, Shape], state: Mapping[str, Tensor], sizes: dict[str, int]) -> Iterator[str]:
    """Yields what is wrong with the shapes, and adds to `sizes` those that they define."""
    origins: dict[str, str] = {}
    for tensor, expected in shapes.items():
        found = tuple(state[tensor].shape)
        parts = [_parts(size) for size in expected]
        for side, (factor, name) in zip(found, parts, strict=False):
            if name and name not in sizes and side % factor == 0 and len(found) == len(expected):
                sizes[name], origins[name] = side // factor, tensor
        if found != tuple(factor * sizes.get(name, -1) if name else factor for factor, name in parts):
            where = {name: f", with {name}={sizes[name]} from {origins[name]}" for _, name in parts if name in origins}
            shown = f"({', '.join(map(str, expected))})"
            yield f"{tensor} has the shape {found} instead of {shown}{''.join(where.values())}"


def _parts(size: int | str) -> tuple[int, str]:
    """12 -> (12, ""), "D" -> (1, "D"), "3D" -> (3, "D")."""
    name = str(size).lstrip("0123456789")
    factor = str(size).removesuffix(name)
    return int(factor or 1), name
