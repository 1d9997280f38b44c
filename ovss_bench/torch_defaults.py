"""Isolation from PyTorch's global settings, so that results do not depend on those of a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def ordinary_torch() -> Iterator[None]:
    """Runs a block, or the decorated function, with PyTorch's defaults: default dtype and device, no autocast, fp32 matrix
    products in full precision, and no inference mode, which would turn loaded weights into inference tensors for good."""
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":  # a device mode intercepts every call, so only if needed
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        if (precision := torch.get_float32_matmul_precision()) != "highest":
            stack.callback(torch.set_float32_matmul_precision, precision)
            torch.set_float32_matmul_precision("highest")
        if torch.are_deterministic_algorithms_enabled():  # else operators without a deterministic implementation would raise
            warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
            stack.callback(torch.use_deterministic_algorithms, True, warn_only=warn_only)
            torch.use_deterministic_algorithms(False)
        yield
