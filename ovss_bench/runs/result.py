"""The result of an evaluation in Python."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class EvalResult:
    """The result of a run: `data` is the content of its JSON file, `path` the location of that file."""

    data: dict[str, Any]
    path: Path | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Every metric in percent."""
        return self.data["metrics"]

    @property
    def per_class(self) -> pd.DataFrame:
        """A row per class: metrics in percent and counts in pixels."""
        import pandas as pd

        return pd.DataFrame(self.data["per_class"]).set_index("class")

    def __repr__(self) -> str:
        return f"EvalResult({self.line})"

    @property
    def line(self) -> str:
        """What was evaluated, and mIoU, mAcc and aAcc."""
        shown = ", ".join(f"{name} {value:.2f}" for name, value in self.metrics.items() if name in ("mIoU", "mAcc", "aAcc"))
        return f"{self._title}: {shown}"

    @property
    def _title(self) -> str:
        data = self.data
        part = f", {data['images']['evaluated']} of {data['images']['expected']} images" if data["partial"] else ""
        return f"{data['segmentor']} on {data['dataset']} with {data['clip']}{part}"

    def _repr_html_(self) -> str:
        """Called by notebooks."""
        cells = "".join(f"<td>{'–' if value is None else f'{value:.2f}'}</td>" for value in self.metrics.values())
        names = "".join(f"<th>{escape(name)}</th>" for name in self.metrics)
        return f"<table><caption>{escape(self._title)}</caption><tr>{names}</tr><tr>{cells}</tr></table>"
