"""The shadow GPU, and a tiny CLIP on it."""

import pytest

import ovss_bench as ob
from device.methods import PRECISIONS
from device.shadow import shadow_gpu
from parity.seeded import clip_state_dict


@pytest.fixture
def gpu(monkeypatch):
    with shadow_gpu(monkeypatch) as gpu:
        yield gpu


@pytest.fixture(scope="session")
def clips():
    """By precision, a tiny CLIP of twelve layers of width 64: on the CPU, and the same on the shadow GPU."""
    state, found = clip_state_dict(11, width=64, embed_dim=32), {}
    for precision in PRECISIONS:
        on_cpu = ob.load_clip(state_dict=state, precision=precision)
        with pytest.MonkeyPatch.context() as patch, shadow_gpu(patch):
            found[precision] = on_cpu, ob.load_clip(state_dict=state, precision=precision, device="cuda")
    return found
