"""Networks from huggingface.co: downloads, without retries or warnings if the server is unreachable, and their errors."""

from __future__ import annotations

import logging
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import OvssError
from ..files import weights_folders

SECONDS_TO_ANSWER = 5.0
WEIGHTS_FOLDER = "the folder given by the environment variable OVSS_WEIGHTS"


@contextmanager
def hub() -> Iterator[None]:
    """In the block, huggingface_hub is quiet, and with an unreachable server it uses its cache or fails at once. By default it
    retries for half a minute and prints a dozen lines, even for cached files."""
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
    """Whether a server accepts connections; behind a proxy, this is assumed."""
    parts = urlsplit(address)
    if parts.scheme in urllib.request.getproxies():
        return True
    try:
        port = parts.port or {"http": 80}.get(parts.scheme, 443)
        socket.create_connection((parts.hostname, port), SECONDS_TO_ANSWER).close()
        return True
    except OSError:
        return False


def local_repository(repo: str) -> Path | None:
    """The folder with the last name of a repository in the folders of weights; None if there is none."""
    return next((path for folder in weights_folders() if (path := folder / repo.rpartition("/")[2]).is_dir()), None)


def whole_network(kind: type, source: str, **options: Any) -> Any:
    """A network of diffusers or transformers. Raises OvssError for missing weights, which both would initialise at random."""
    model, report = kind.from_pretrained(source, output_loading_info=True, **options)
    if wrong := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        what = f"{len(wrong)} tensors of {kind.__name__} are missing or have another shape ({wrong[0]}, ...)"
        hint = "Copy or download it again, or give another folder or repository."
        raise OvssError(f"{source} does not hold all weights: {what}. {hint}")
    return model


def short(error: Exception) -> str:
    """The type and first line of an error from a parser or a download, without its full stop."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200].rstrip('. ')}"


def download_failed(what: str, source: str, error: Exception, hint: str) -> OvssError:
    problem = f"{what} are not on this machine and could not be downloaded from {source} ({short(error)})"
    return OvssError(f"{problem}. Download them by hand, then {hint}.")
