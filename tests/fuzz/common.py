"""The criterion of the fuzzing tests: generated input, mostly invalid, gives an OvssError or a correct result within seconds.

A few hundred fixed inputs by default; `OVSS_FUZZ=10000 python -m pytest tests/fuzz` tries that many, new ones each time
(`--hypothesis-seed=1` repeats them).
"""

import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from ovss_bench.errors import OvssError

TOTAL = int(os.environ.get("OVSS_FUZZ", 400))
SECONDS = 30  # limit for every input


def inputs(share: float) -> settings:
    """The settings of a test with this share of all inputs."""
    return settings(
        max_examples=max(int(TOTAL * share), 5),
        derandomize="OVSS_FUZZ" not in os.environ,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def outcome(function: Callable[..., Any], *arguments: Any, errors: tuple = (OvssError,), **options: Any) -> Any:
    """The result of the function, or the error that it raised, which must be a sentence; anything else fails the test."""
    try:
        with within(SECONDS):
            return function(*arguments, **options)
    except errors as raised:
        error = raised
    assert len(str(error)) > 10, repr(error)
    return error


@contextmanager
def within(seconds: float):
    def stop(*_):
        raise AssertionError(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 300),
    st.sampled_from([10**6, 10**9, 2**40, 10**30, -(2**63)]),
    st.floats(width=32),
    st.text(max_size=8),
    st.sampled_from(["demo", "whole", "sclip", "clip", "fp32", "none", "null", "${oops}", "${oc.env:HOME}", "???", "1e5", "é"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=5
)


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """A file that is truncated, or in which bytes are changed, removed or inserted."""
    data = bytearray(content)
    for kind in draw(st.lists(st.sampled_from(["cut", "flip", "insert", "remove", "zero"]), min_size=1, max_size=3)):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.sampled_from([1, 1, 4, 64]))
        if kind == "cut":
            del data[at:]
        elif kind == "flip" and data:
            data[at] ^= draw(st.integers(1, 255))
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=length))
        elif kind == "remove":
            del data[at : at + length]
        elif kind == "zero":
            data[at : at + length] = bytes(len(data[at : at + length]))
    return bytes(data)
