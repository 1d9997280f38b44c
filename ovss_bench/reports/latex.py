"""Tables in LaTeX, with booktabs."""

from __future__ import annotations

import re

from .table import Markup, Table
from .templates import render

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\symbol{34}", "`": r"\symbol{96}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # after the end of a line, they would be read as its options
    "-": "-{}", "–": "--", "−": "$-$",  # two hyphens would become a dash
}  # fmt: skip
LETTERS = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿ"  # supported by every engine and encoding


def escape_latex(text: str) -> str:
    """Escapes text; characters that fonts may lack are replaced by their code points."""

    def replace(match: re.Match) -> str:
        character = match[0]
        if character in SPECIAL:
            return SPECIAL[character]
        return character if character in LETTERS else rf"\texttt{{U+{ord(character):04X}}}"

    return re.sub(r"""[\\{}$&#%_^~<>|"`\[\]*]|-(?=-)|[^ -~]""", replace, " ".join(text.split()))


MARKUP = Markup(escape_latex, r"\textbf{{{}}}", r"\underline{{{}}}", r"{{\scriptsize {}}}", r"\textsuperscript{{{}}}", "$-$")


def latex(table: Table, label: str) -> str:
    """A table environment, no wider than the line, with remarks and footnotes below; its label is tab:`label`."""
    return render(
        "table.tex",
        caption=escape_latex(table.caption),
        label=label,
        alignment="".join("r" if column.right else "l" for column in table.shown),
        head=MARKUP.head(table),
        groups=[[MARKUP.line(row, table) for row in group] for group in table.groups()],
        notes=MARKUP.notes(table),
    )
