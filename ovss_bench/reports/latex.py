"""Tables of results in LaTeX, with booktabs."""

from __future__ import annotations

import re

from .markdown import Markup
from .table import Report

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\symbol{34}", "`": r"\symbol{96}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # the end of a line would take them for its options
    "-": "-{}", "–": "--", "−": "$-$",  # two hyphens would become a dash
}  # fmt: skip
LETTERS = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿ"  # what every engine and encoding has


def escape(text: str) -> str:
    """Text as it is, whatever is in it: characters that fonts may lack become their number."""

    def replace(match: re.Match) -> str:
        character = match[0]
        if character in SPECIAL:
            return SPECIAL[character]
        return character if character in LETTERS else rf"\texttt{{U+{ord(character):04X}}}"

    return re.sub(r"""[\\{}$&#%_^~<>|"`\[\]*]|-(?=-)|[^ -~]""", replace, " ".join(text.split()))


MARKUP = Markup(escape, r"\textbf{{{}}}", r"\underline{{{}}}", r"{{\scriptsize {}}}", r"\textsuperscript{{{}}}")

# \begin{document} makes \@nodocument nothing.
HEAD = r"""% Needs \usepackage{booktabs,graphicx} where it is \input; compiled itself it makes a page.
\expandafter\ifx\csname @nodocument\endcsname\relax
  \let\endofpage\relax
\else
  \documentclass{article}
  \usepackage[landscape,margin=1cm]{geometry}
  \usepackage{booktabs,graphicx}
  \def\endofpage{\end{document}}
  \begin{document}
\fi
"""


def latex(report: Report, name: str) -> str:
    """A table, shrunk to the width of the line if it is wider, with remarks and footnotes below; its label is tab:`name`."""
    rule = "l" * len(report.labels) + "r" * len(report.columns)
    groups = [[" & ".join(MARKUP.line(row, report)) + r" \\" for row in group] for group in report.groups()]
    body = "\n\\midrule\n".join("\n".join(group) for group in groups)
    notes = [
        *map(escape, report.remarks),
        *(f"{MARKUP.mark.format(mark)} {escape(note)}" for note, mark in report.marks.items()),
    ]
    return f"""{HEAD}\\begin{{table}}
\\centering
\\caption{{{escape(report.caption)}}}
\\label{{tab:{name}}}
\\smallskip
\\resizebox{{\\ifdim\\width>\\linewidth \\linewidth\\else\\width\\fi}}{{!}}{{%
\\begin{{tabular}}{{{rule}}}
\\toprule
{" & ".join(MARKUP.head(report))} \\\\
\\midrule
{body}
\\bottomrule
\\end{{tabular}}}}
\\par\\smallskip
\\begin{{minipage}}{{\\linewidth}}\\footnotesize\\raggedright
{chr(10).join(note + chr(92) + "par" for note in notes)}
\\end{{minipage}}
\\end{{table}}
\\endofpage
"""
