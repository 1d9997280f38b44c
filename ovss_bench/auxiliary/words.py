"""Word tables (configs/words): the prompts that a method uses for class names, and more general words for them."""

from __future__ import annotations

import re
from functools import lru_cache

from ..files import load_config


@lru_cache(maxsize=4)
def _tables(name: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    tables = load_config("words", name)
    return tables["canonical"], tables["hypernyms"]


def canonical(name: str, tables: str) -> str:
    """The word that the table has for this name, ignoring case and all but letters and digits; else the name itself."""
    return _tables(tables)[0].get(re.sub("[^a-z0-9]", "", name.lower()), name)


def hypernyms(name: str, tables: str) -> list[str]:
    """More general words of a canonical name; none for names outside of the table."""
    return _tables(tables)[1].get(name.lower(), [])
