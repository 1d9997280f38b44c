"""What configs/dataset records about a split: its number of images (`expected_images`) and its ids (`check`).

If the id lists in use differ, there are several numbers; the first is the papers' number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any


def counts(config: Mapping[str, Any]) -> list[int]:
    """The numbers of images in use, the papers' number first; empty if none is known."""
    expected = config.get("expected_images")
    return [] if expected is None else [expected] if isinstance(expected, int) else list(expected)


def number(config: Mapping[str, Any], found: int) -> int | None:
    """The number of images in the split: `found` if that number is in use, else the papers' number; None if unknown."""
    known = counts(config)
    return found if found in known else next(iter(known), None)


def count_in_words(config: Mapping[str, Any], unknown: str) -> str:
    """The numbers joined by "or", or the text `unknown`."""
    return " or ".join(map(str, counts(config))) or unknown


def wrong_count(config: Mapping[str, Any], found: int, splits: dict[str, int] | None = None) -> str | None:
    """What is wrong with this number of images, or None. `splits`: name -> number of images of other splits."""
    if found and (not counts(config) or found in counts(config)):
        return None
    others = ((config.get("check") or {}).get("splits") or {}) | (splits or {})
    same = " and of ".join(split for split, images in others.items() if images == found)
    what = f"{found} images are listed, {count_in_words(config, 'some')} are expected"
    return f"{what}; {found} is the number of {same}" if same else what


def pattern(config: Mapping[str, Any]) -> str:
    """The known pattern and range of the ids, for messages; empty if unknown."""
    facts = config.get("check") or {}
    return ", ".join(filter(None, [facts.get("ids"), " to ".join(map(str, facts.get("id_range") or ()))]))


def foreign_ids(config: Mapping[str, Any], ids: Iterable[str]) -> list[str]:
    """The ids that cannot belong to this split: they do not match the pattern `ids`, or are outside `id_range`."""
    facts = config.get("check") or {}
    like, span = facts.get("ids"), facts.get("id_range")

    def belongs(name: str) -> bool:
        within = not span or (name.isdecimal() and span[0] <= int(name) <= span[1])
        return within and (not like or re.fullmatch(like, name) is not None)

    return [name for name in ids if not belongs(name)]


def doubts(config: Mapping[str, Any], ids: list[str]) -> list[str]:
    """Reasons why these ids may not be the split that papers report on."""
    wrong, foreign = wrong_count(config, len(ids)), foreign_ids(config, ids)
    reasons = [f"{wrong}; results are marked as partial"] if wrong else []
    if foreign:
        some = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        reasons.append(f"{len(foreign)} of {len(ids)} ids do not match this split ({pattern(config)}): {some}")
    return reasons
