"""Tables in GitHub's markdown."""

from __future__ import annotations

import re

from ..errors import visible
from .table import Markup, Table


def escape_markdown(text: str) -> str:
    text = visible(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


MARKUP = Markup(escape_markdown, "**{}**", "<ins>{}</ins>", "{}", "<sup>{}</sup>")


def markdown(table: Table) -> str:
    """Caption, table, remarks and footnotes, each a paragraph."""
    lines = [escape_markdown(table.caption), ""] if table.caption else []
    lines.append("| " + " | ".join(MARKUP.head(table)) + " |")
    lines.append("|" + "|".join(" ---: " if column.right else " --- " for column in table.shown) + "|")
    lines += ["| " + " | ".join(MARKUP.line(row, table)) + " |" for row in table.rows]
    return "\n".join([*lines, *(line for note in MARKUP.notes(table) for line in ("", note)), ""])
