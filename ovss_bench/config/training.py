"""What a method, a network or a retrieval bank was trained on: the facts that decide which results are comparable.

They are declared in the section `training` of recipes (configs/segmentor) and of the entries in configs/clip, vision, regions,
foreground and diffusion; for users' own files, in `<file>.tags.yaml` beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import MinLen

from ..errors import OvssError
from ..files import read_yaml
from .validation import Expected, choices, validate_all

BESIDE = ".tags.yaml"
# From least to most: the last value among several parts describes them all. Values certainly above "unknown" come after it.
SUPERVISION = (
    "none", "image-text pairs", "pseudo-labels", "masks without classes", "unknown", "masks", "concept labels and masks",
)  # fmt: skip
IMAGES_SEEN = ("no", "unlabelled", "unknown", "labelled")
NAMES_SEEN = ("no", "unknown", "yes")
SETTINGS = ("training-free", "annotation-free", "cross-dataset", "inductive", "transductive", "supervised", "unknown")
# Other spellings, of YAML and of other programs' manifests.
ALIASES = {False: "no", True: "yes", "captions": "image-text pairs", "yes (unlabelled)": "unlabelled"}
ALIASES |= dict.fromkeys(("yes (labelled)", "yes (labelled seen classes)"), "labelled")
Words = Annotated[str, MinLen(1), Expected("a text")]


@dataclass(frozen=True)
class Training:
    """`supervision` and `training_data` of the training, apart from CLIP's; `target_images_seen` and `target_names_seen`:
    whether it used images of the evaluated data set, including its training split, and names of its classes; `vocabulary`:
    whether it is fixed; `split_used_at_test`: whether the method distinguishes seen and unseen classes at test time;
    `extra_models`: networks needed for training only; `setting`: as papers call it."""

    supervision: Literal[SUPERVISION]  # pyright: ignore[reportInvalidTypeForm]
    training_data: Words = "none"
    target_images_seen: Literal[IMAGES_SEEN] = "no"  # pyright: ignore[reportInvalidTypeForm]
    target_names_seen: Literal[NAMES_SEEN] = "no"  # pyright: ignore[reportInvalidTypeForm]
    vocabulary: Literal["open", "fixed", "unknown"] = "open"
    split_used_at_test: Literal[NAMES_SEEN] = "no"  # pyright: ignore[reportInvalidTypeForm]
    extra_models: Words = "none"
    setting: Literal[SETTINGS] = "training-free"  # pyright: ignore[reportInvalidTypeForm]


FACTS = get_type_hints(Training, include_extras=True)
NAMES = tuple(field.name for field in fields(Training))
_unknown: dict[str, Any] = dict.fromkeys(NAMES, "unknown")
UNKNOWN = Training(**_unknown)
SECTIONS = ("per_dataset", "per_checkpoint")


def training_of(section: Any, where: str, dataset: str = "", checkpoint: str = "") -> Training:
    """The facts in a section `training`. Those for this data set (`per_dataset`) and checkpoint file (`per_checkpoint`) replace
    the others. Raises OvssError for anything invalid."""
    values = dict(_mapping(section, where))
    for part, name in zip(SECTIONS, (dataset, checkpoint), strict=True):
        inner = _mapping(values.pop(part, {}), f"{where}.{part}")
        for key, facts in inner.items():
            checked_facts(_mapping(facts, f"{where}.{part}.{key}"), f"{where}.{part}.{key}")
        values |= inner.get(name, {})
    if "supervision" not in values:
        raise OvssError(f"{where} lacks supervision: expected one of {', '.join(SUPERVISION)}.")
    return Training(**checked_facts(values, where))


def checked_facts(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The facts in their usual spelling. Raises OvssError for invalid ones."""
    usual = {name: ALIASES.get(value, value) if _is_choice(name, value) else value for name, value in values.items()}
    return validate_all(usual, FACTS, "fact about training", lambda _: where)


def beside(path: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """The tags file beside a user's file or folder, and its content; None if there is none."""
    file = Path(f"{path}{BESIDE}")
    return (file, _mapping(read_yaml(file, "tags"), str(file))) if file.is_file() else None


def most(order: tuple[str, ...], values: Any) -> str:
    """The value that comes last in this order."""
    return max(values, key=order.index)


def _is_choice(name: str, value: Any) -> bool:
    return bool(choices(FACTS.get(name))) and isinstance(value, str | bool)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise OvssError(f"{where}: expected {{NAME: VALUE}} with {', '.join(NAMES)}.")
    return value
