"""README, CONTRIBUTING and docs: their pages, links, code blocks and commands."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"(?:^|(?<=\s))(?:\S*tools/(\w+)\.py|ovss (?!-)([\w-]+))(?= |$)")


@dataclass(frozen=True)
class Command:
    """A line of a page that runs one of our commands."""

    page: str
    line: str
    name: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {self.line}"


def blocks(language: str, *pages: Path) -> list[str]:
    """The code blocks of a language, of all pages by default."""
    text = "\n".join(page.read_text() for page in pages or PAGES)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> Iterator[Command]:
    """All commands of the pages, each once: in bash blocks, in workflows, and `python tools/X.py` in the text, unless it has
    an ellipsis or placeholders in capitals."""
    seen = set()
    for page in PAGES:
        inline = re.findall(r"`(python tools/[^`\n]+ [^`\n]+)`", page.read_text())
        runs = re.findall(r"run: (.+)", "".join(blocks("yaml", page)))
        for line in [*"".join(blocks("bash", page)).replace("\\\n", " ").splitlines(), *runs, *inline]:
            found = COMMAND.search(line)
            if not found or "..." in line or re.search(r"\b[A-Z]{4,}\b", line):
                continue
            words = tuple(shlex.split(line[found.end() :], comments=True))
            name = (found[1] or found[2]).replace("_", "-")
            if (name, words) not in seen:
                seen.add((name, words))
                yield Command(page.name, line.strip(), name, words)
