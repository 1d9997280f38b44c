"""The time and peak memory of a call."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MIB = 2**20


def timed(way: Callable[[], Any], device: torch.device) -> tuple[float, float, float, float]:
    """Seconds, processor seconds of all threads, memory before the call, and peak memory; in MiB, of the process or the GPU."""
    gc.collect()
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / MIB
    else:
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", "utf-8")  # resets VmHWM
    began, busy = time.perf_counter(), time.process_time()
    way()
    if gpu:
        torch.cuda.synchronize()
    spent, busy = time.perf_counter() - began, time.process_time() - busy
    return spent, busy, before, torch.cuda.max_memory_allocated() / MIB if gpu else _resident("VmHWM")


def peak_memory(way: Callable[[], Any], device: torch.device) -> dict[str, int]:
    """Memory in MiB `before` a call and at its `peak`. Freed memory is returned to the system first; otherwise a call that
    reuses it would seem to need none. (`timed` alone does not, because getting memory back takes time.)"""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # not in musl
        libc.malloc_trim(0)
    _, _, before, peak = timed(way, device)
    return {"before": round(before), "peak": round(peak)}


def _resident(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text("utf-8"), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0
