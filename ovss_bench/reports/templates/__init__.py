"""Templates of the page, and of tables in HTML and LaTeX."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
# Jinja's default delimiters, such as {%, occur in LaTeX.
LATEX = {
    **{"block_start_string": "<%", "block_end_string": "%>", "comment_start_string": "<#", "comment_end_string": "#>"},
    **{"variable_start_string": "<<", "variable_end_string": ">>"},
}


def render(name: str, **values: Any) -> str:
    """Fills in the template of this name. In HTML, values are escaped unless marked safe."""
    return _environment(name.endswith(".tex")).get_template(name).render(values)


@cache
def _environment(is_latex: bool) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    options: dict[str, Any] = dict.fromkeys(("trim_blocks", "lstrip_blocks", "keep_trailing_newline"), True)
    options |= LATEX if is_latex else {}
    return Environment(loader=FileSystemLoader(FOLDER), undefined=StrictUndefined, autoescape=not is_latex, **options)
