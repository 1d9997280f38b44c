"""Metrics from a confusion matrix, in float64 and fractions; only views round and turn them into percent (metrics.md)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def areas(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(C, C+1) -> pixels per class: correct, predicted, true."""
    return np.diagonal(matrix).copy(), matrix[:, : len(matrix)].sum(0), matrix.sum(1)


def class_metrics(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """IoU and Acc (recall) per class as mmseg's IoUMetric has them: NaN for 0/0, so a class that never occurs and is never
    predicted has no IoU, and one that is only predicted has IoU 0 and no Acc."""
    correct, predicted, true = areas(matrix)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"IoU": correct / (predicted + true - correct), "Acc": correct / true}


def metrics(matrix: np.ndarray, unseen: Sequence[int] = (), background: int | None = None) -> dict[str, float]:
    """mIoU, mAcc, aAcc, fwIoU (over the classes that occur), and, where classes are marked unseen, the mIoU of seen and unseen
    classes without the background, and their harmonic mean. NaN where nothing can be averaged."""
    per_class = class_metrics(matrix)
    correct, _, true = areas(matrix)
    pixels = true.sum()
    occurs = true > 0
    result = {
        "mIoU": _mean(per_class["IoU"]),
        "mAcc": _mean(per_class["Acc"]),
        "aAcc": correct.sum() / pixels if pixels else np.nan,
        "fwIoU": (true[occurs] * per_class["IoU"][occurs]).sum() / pixels if pixels else np.nan,
    }
    if unseen:
        new = np.isin(np.arange(len(matrix)), unseen)
        seen = ~new & (np.arange(len(matrix)) != background)
        s, u = _mean(per_class["IoU"][seen]), _mean(per_class["IoU"][new])
        result |= {"mIoU_seen": s, "mIoU_unseen": u, "hIoU": 2 * s * u / (s + u) if s + u else 0.0}
    return {name: float(value) for name, value in result.items()}


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values[~np.isnan(values)])) if not np.isnan(values).all() else float("nan")
