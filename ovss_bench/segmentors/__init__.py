"""Importing a module here registers its method."""

from . import (  # noqa: F401
    clearclip,
    clip,
    clip_diy,
    cliper,
    cliptrase,
    corrclip,
    corrclip_v2,
    gem,
    maskclip,
    naclip,
    proxyclip,
    resclip,
    scclip,
    sclip,
)
