"""Downloads from huggingface.co without repeated attempts and warnings if the server is unreachable."""

from __future__ import annotations

import logging
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from ..errors import OvssError

SECONDS_TO_ANSWER = 5.0


@contextmanager
def hub() -> Iterator[None]:
    """In the block, huggingface_hub is quiet, and if its server is unreachable it uses its cache or fails at once. By default
    it retries for half a minute and prints a dozen lines, even for cached files."""
    from huggingface_hub import constants

    logger = logging.getLogger("huggingface_hub")
    offline, level = constants.HF_HUB_OFFLINE, logger.level
    constants.HF_HUB_OFFLINE = offline or not _answers(constants.ENDPOINT)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logger.setLevel(level)


def _answers(address: str) -> bool:
    """Whether a server accepts connections; assumed behind a proxy."""
    parts = urlsplit(address)
    if parts.scheme in urllib.request.getproxies():
        return True
    try:
        port = parts.port or {"http": 80}.get(parts.scheme, 443)
        socket.create_connection((parts.hostname, port), SECONDS_TO_ANSWER).close()
    except OSError:
        return False
    return True


def download_failed(what: str, source: str, reason: str, hint: str) -> OvssError:
    return OvssError(f"{what} are not on this machine and could not be downloaded from {source} ({reason}). {hint}")
