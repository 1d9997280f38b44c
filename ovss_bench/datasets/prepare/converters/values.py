"""Raw label maps: reading MATLAB files, and replacing values with errors that name the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from ....errors import OvssError


def read_matlab(path: Path, field: str) -> np.ndarray:
    """(H, W) int32: one field of a .mat file."""
    try:
        return loadmat(path, variable_names=[field])[field].astype(np.int32)
    except FileNotFoundError:
        raise
    except Exception as error:  # for damaged files scipy raises many kinds of errors
        raise OvssError(
            f"{path} is not a readable MATLAB file with the field {field}: {error}. Unpack the official archive again."
        ) from error


def replace(label: np.ndarray, values: Mapping[int, int], path: Path) -> np.ndarray:
    """(H, W) of any integers -> (H, W) uint16: `values[v]` for each v, all at once, never in a chain.

    Raises OvssError for a map of colours and for a v that is not among `values`, which are not negative.
    """
    if label.ndim != 2:
        raise OvssError(f"{path} has {label.shape[-1]} channels, expected one of class numbers. Is it the official file?")
    last = max(values) + 1
    table = np.full(last + 1, -1, np.int32)
    table[list(values)] = list(values.values())
    result = table[label.astype(np.int32).clip(-1, last)]  # values outside the table map to its last entry
    if result.min() < 0:
        foreign = np.unique(label[result < 0])[:8].tolist()
        raise OvssError(f"{path} holds the values {foreign}, which the official labels never have. Is it the official file?")
    return result.astype(np.uint16)
