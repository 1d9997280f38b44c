"""Folders as MESS's own script leaves them, without one for the split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..registry import DATASETS
from .base import MissingData, SegDataset


@DATASETS.register_module(name="mess_flat")
class MessFlat(SegDataset):
    """Below `images` and `labels`, or, where these are not there, in the folders above them."""

    def __init__(self, name: str, config: dict[str, Any], root: str | Path | None = None) -> None:
        try:
            super().__init__(name, config, root)
        except MissingData as error:
            above = {key: Path(config[key]).parent.as_posix() for key in ("images", "labels")}
            try:
                super().__init__(name, config | above, root)
            except MissingData:
                raise error from None
