"""Downloads from huggingface.co without noise: what cannot be reached is not tried six times, and one error says so."""

from __future__ import annotations

import logging
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

SECONDS_TO_ANSWER = 5.0


@contextmanager
def hub() -> Iterator[None]:
    """Within, huggingface_hub has no warnings for single tries; where its server cannot be reached, it takes what is in its
    cache or fails at once. By itself it waits for half a minute and prints a dozen lines, even for files that it has."""
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
    """Whether a server takes connections. Behind a proxy that is not known, and taken to be so."""
    parts = urlsplit(address)
    if parts.scheme in urllib.request.getproxies():
        return True
    try:
        port = parts.port or {"http": 80}.get(parts.scheme, 443)
        socket.create_connection((parts.hostname, port), SECONDS_TO_ANSWER).close()
    except OSError:
        return False
    return True
