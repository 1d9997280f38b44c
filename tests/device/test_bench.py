"""The benchmark on the shadow GPU: what `python tools/bench.py gpu device=cuda` runs, on images of a few pixels."""

import pytest

from device.shadow import REAL
from ovss_bench.bench import concepts, methods
from ovss_bench.bench.measure import measure
from ovss_bench.cli import bench
from ovss_bench.progress import Progress

SMALL = [
    "clip=demo",
    "device=cuda",
    "height=64",
    "width=90",
    "short_side=64",
    "window=48",
    "stride=24",
    "images=2",
    "workers=2",
]
SMALL += ["batch=4", "batches=[2,4]", "classes=5", "queries=5", "precision=fp32", "threads=1"]
METHODS = [
    "sclip",
    "proxyclip:given",
    "corrclip",
    "cliper:given",
    "trident",
    "clip_diy",
    "tagclip",
    "sam3",
]  # each kind of stand-in
# torch.compile and CUDA graphs need more than tensors.
CASES = bench.grouped("gpu") if REAL else ["gpu/b16", "gpu/precisions"]


@pytest.fixture
def small(monkeypatch):
    """`small(name)`: what is measured for a case, once and tiny."""
    for module in (methods, concepts):
        monkeypatch.setattr(module, "MEMORY_SIZE", (56, 70))
    _, options = bench.COMMAND.parse(SMALL)
    for name in bench.RUN:
        del options[name]
    chosen = {word.partition("=")[0] for word in SMALL}
    return lambda name: measure(bench.case_of(name, options, chosen), 1, Progress(True))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_measured_on_a_gpu(name, small, gpu):
    result = small(name)
    assert result["memory_mib"]["peak"] > result["memory_mib"]["before"]


@pytest.mark.parametrize("name", CASES)
def test_a_case_for_gpus_is_measured(name, small, gpu):
    result = small(name)
    assert all(each["equal_pixels"] >= 99.9 for each in result["agreement"].values())
