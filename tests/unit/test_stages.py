"""Stages of a run: exclusive times of stages inside others, and stages of their own for the models beside CLIP."""

import threading
import time
from contextlib import suppress

import pytest
import torch

import ovss_bench as ob
from ovss_bench import stages as stages_module
from ovss_bench.auxiliary.sources import STAGES
from ovss_bench.inference.engine import make_context, predict
from ovss_bench.runs.evaluate import make_job, run_jobs
from ovss_bench.runs.jobs import Runtime
from ovss_bench.segmentors.base import IMAGES_PER_PASS
from ovss_bench.stages import Stages, of_source, within
from parity.seeded import rgb_image
from stand_ins import SOURCES, sources_of

READING = {"read", "resize"}  # in a thread of their own
SMALL = {"short_side": 80, "window": 64, "stride": 32, "pad_multiple": None, "pamr_steps": 0}
TAKING = ["proxyclip", "corrclip", "corrclip_v2", "clip_diy", "cliper"]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(stages_module.time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_a_stage_inside_another_counts_once(clock):
    stages = Stages()
    with stages("last block"):
        clock(1)
        with within("vision encoder"):
            clock(2)
            with within("encode"):
                clock(4)
            clock(8)
        with within("regions"):
            clock(16)
        clock(32)
    with stages("last block"):
        clock(64)
    assert stages.seconds == {"last block": 1 + 32 + 64, "vision encoder": 2 + 8, "encode": 4, "regions": 16}
    assert stages.calls == {"last block": 2, "vision encoder": 1, "encode": 1, "regions": 1}


def test_a_stage_that_fails_is_closed(clock):
    stages = Stages()
    with stages("last block"):
        with suppress(KeyError), within("regions"):
            clock(1)
            raise KeyError
        clock(2)
    assert stages.seconds == {"last block": 2, "regions": 1}
    with within("regions"):  # none is open
        clock(4)
    assert stages.seconds["regions"] == 1


def test_threads_do_not_nest(clock):
    stages = Stages()

    def other():
        with within("regions"), stages("read"):
            clock(1)

    with stages("compose"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert stages.seconds == {"compose": 1, "read": 1}


def test_models_that_the_run_does_not_know_have_no_stage(clock):
    known, unknown = (lambda: clock(1)), (lambda: clock(2))
    stages = Stages()
    stages.sources = {id(known): "regions"}
    with stages("last block"):
        for source in (known, unknown):
            with of_source(source):
                source()
    assert stages.seconds == {"last block": 2, "regions": 1}


def build(name, clip, vocabulary, **sources):
    used = {key: value for key, value in SMALL.items() if key not in ob.SEGMENTORS.get(name).unused()}
    return ob.build_segmentor(name, clip=clip, vocabulary=vocabulary, **used, **sources)


@pytest.mark.parametrize("name", TAKING)
def test_models_beside_clip_have_stages_of_their_own(name, tiny_clip, tiny_vocabulary):
    calls = {}

    def counted(kind):
        def source(argument):
            calls[kind] = calls.get(kind, 0) + 1
            return SOURCES[kind](argument)

        return source

    segmentor = build(name, tiny_clip, tiny_vocabulary, **{kind: counted(kind) for kind in sources_of(name)})
    stages, images = Stages(), {n: rgb_image(70 + n, 120, 150) for n in range(2)}
    began = time.perf_counter()
    assert len(list(predict([segmentor], images.items(), stages=stages))) == len(images)
    elapsed = time.perf_counter() - began
    found = {stage for stage in STAGES.values() if stage in stages.seconds}
    assert found == {STAGES[kind] for kind in calls} != set()
    assert all(stages.calls[STAGES[kind]] == count for kind, count in calls.items())
    assert stages.calls["encode"]
    assert 0 < sum(seconds for stage, seconds in stages.seconds.items() if stage not in READING) <= elapsed


def test_every_kind_of_model_is_covered():
    measured = {kind for name in (*TAKING, "trident") for kind in sources_of(name)}
    assert measured == STAGES.keys() == SOURCES.keys() - {"concepts"}  # whose parts have stages: test_concepts.py


def test_results_state_the_stages_of_named_models():
    job = make_job("corrclip", ob.load_clip("demo"), ob.load_dataset("demo"))
    (result,) = run_jobs([job], limit=1, quiet=True, runtime=Runtime(profile=True))
    assert {"vision encoder", "regions", "encode", "last block", "compose"} <= result.data["timing"]["stages"].keys()


def test_passes_inside_hooks_are_in_the_stage_encode(tiny_clip, tiny_vocabulary):
    """CLIP-DIY encodes its patches in a hook, 32 at a time."""
    segmentor, image, stages = build("clip_diy", tiny_clip, tiny_vocabulary, foreground=None), rgb_image(70, 120, 150), Stages()
    patches = sum(cosines[0].numel() for cosines in segmentor.patch_cosines(make_context(image, segmentor)))
    list(predict([segmentor], [(0, image)], stages=stages))
    assert stages.calls["encode"] == -(-patches // IMAGES_PER_PASS)


def test_the_record_of_a_long_run_ends_early(tmp_path, monkeypatch):
    monkeypatch.setattr(stages_module, "TRACED", 2)
    stages = Stages(traced=True)
    for name in ("first stage", "second stage", "third stage"):
        with stages(name):
            torch.ones(2).exp()
    stages.write_trace(tmp_path / "trace.json")
    recorded = (tmp_path / "trace.json").read_text()
    assert "first stage" in recorded
    assert "third stage" not in recorded
    assert stages.calls["third stage"] == 1


def test_a_run_in_another_thread_is_recorded_too(tmp_path, monkeypatch):
    monkeypatch.setattr(stages_module, "TRACED", 2)

    def run(name, count):
        stages = Stages(traced=True)
        for number in range(count):
            with stages(f"stage {number}"):
                torch.ones(2).exp()
        stages.write_trace(tmp_path / name)

    for name, count in (("whole", 1), ("ended", 3)):
        thread = threading.Thread(target=run, args=(name, count))
        thread.start()
        thread.join()
        assert "stage 0" in (tmp_path / name).read_text()
    assert "stage 2" not in (tmp_path / "ended").read_text()
