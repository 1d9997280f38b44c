"""Tables of words (configs/words): the names under which a method asks for classes, and more general words for them."""

from __future__ import annotations

import re
from functools import lru_cache

from ..files import load_config


@lru_cache(maxsize=4)
def _tables(name: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    tables = load_config("words", name)
    return tables["canonical"], tables["hypernyms"]


def canonical(name: str, tables: str) -> str:
    """The name that stands for this one in the table, whatever its case, spaces and hyphens; else the name itself."""
    return _tables(tables)[0].get(re.sub("[^a-z0-9]", "", name.lower()), name)


def hypernyms(name: str, tables: str) -> list[str]:
    """More general words of a canonical name; none for names outside of the table."""
    return _tables(tables)[1].get(name.lower(), [])
