"""The demo's tables: their scenes, what their rows share, and the order in which rows appear."""

from dataclasses import replace

import numpy as np
import pytest

import ovss_bench as ob
from ovss_bench.auxiliary import SOURCES
from ovss_bench.config.steps import OPTIONS as STEP_OPTIONS
from ovss_bench.encoders.vit import PlainViT
from ovss_bench.reports.papers import load_table
from ovss_bench.runs.evaluate import make_job, run_jobs
from ovss_bench.runs.jobs import job_of_plan
from ovss_bench.runs.plan import OUTSIDE, plans_of
from ovss_bench.runs.store import read_counts

FAST = {"resize": "none", "pamr_steps": 0}
IDS = ["scene_003", "scene_099"]
OPTIONS = {"recipe": {}, "protocol": "paper", "weights": None}
OPTIONS |= dict.fromkeys((*SOURCES, *OUTSIDE, *STEP_OPTIONS))


def jobs_of(*names, dataset="demo_small", **recipe):
    clip, data = ob.load_clip("demo"), ob.load_dataset(dataset)
    return [make_job(name, clip, data, overrides=FAST | recipe) for name in names]


@pytest.fixture(scope="module")
def passes():
    """The names of the segmentors of each pass of table=demo, in the order of the table."""
    found, dataset = {}, ob.load_dataset("demo_small")
    for plan in plans_of(OPTIONS, load_table("demo"))[0]:
        found.setdefault(job_of_plan(plan, dataset, "cpu").pass_key, []).append(plan.segmentor)
    return list(found.values())


def test_the_small_demo_is_every_third_scene_with_every_class():
    small, full = ob.load_dataset("demo_small"), ob.load_dataset("demo")
    ids = [f"scene_{number:03d}" for number in range(0, 100, 3)]
    assert [sample.id for sample in small] == ids == [sample.id for sample in full.select(limit=34)]
    assert small.expected_images == len(small) == 34
    assert small.classes == full.classes
    seen = set()
    for sample in small:
        label = small.label(sample)
        assert np.array_equal(label, full.label(full[sample.id]))
        assert np.array_equal(small.image(sample), full.image(full[sample.id]))
        seen |= set(np.unique(label))
    assert seen == {*range(37), 255}


def test_the_full_table_has_rows_of_the_small_one_in_the_same_order():
    small, full = load_table("demo"), load_table("demo_full")
    names = [row.segmentor for row in full.rows]
    assert [replace(row, first=False) for row in small.rows if row.segmentor in names] == list(full.rows)
    assert (small.datasets, full.datasets) == (("demo_small",), ("demo",))


def test_the_counts_of_a_scene_are_those_of_the_full_demo(tmp_path):
    counts = []
    for dataset in ("demo_small", "demo"):
        results = run_jobs(jobs_of("clip", "corrclip", dataset=dataset), ids=IDS, output=tmp_path, quiet=True)
        counts.append([read_counts(result.path.with_suffix(".npz"))[:2] for result in results])
    for (small, hashes), (full, known) in zip(*counts, strict=True):
        assert hashes == known
        assert small.keys() == full.keys() == set(IDS)
        assert all(np.array_equal(small[image], full[image]) for image in IDS)


def test_rows_with_the_same_windows_share_a_pass_whatever_their_order(passes):
    assert passes[0] == ["clip"]  # the first row on the screen
    of_windows = next(names for names in passes if "sclip" in names)
    assert of_windows[:7] == ["maskclip", "sclip", "clearclip", "naclip", "gem", "cliptrase", "scclip"]
    assert {"sfp", "pearl", "clip_dinoiser"} <= set(of_windows)
    assert any({"lposs", "lposs_plus"} <= set(names) for names in passes)
    assert any(names[:4] == ["resclip", "proxyclip", "corrclip", "corrclip_v2"] for names in passes)  # whoever states the patch


def test_a_vision_encoder_sees_each_window_and_each_image_once(monkeypatch):
    """Methods that take other features of it share all blocks but the last; methods that see the whole image share that."""
    seen, compute = [], PlainViT.before_last

    def counting(self, pixels):
        if pixels.device.type != "meta":  # a check of the weights while they are loaded
            seen.extend([tuple(pixels.shape[2:])] * len(pixels))
        return compute(self, pixels)

    monkeypatch.setattr(PlainViT, "before_last", counting)

    def shapes(*jobs):
        seen.clear()
        run_jobs(jobs, ids=IDS, quiet=True)
        return sorted(seen)

    windows, whole = shapes(*jobs_of("proxyclip")), shapes(*jobs_of("corrclip_v2"))
    assert set(windows) == {(56, 56)}
    assert [shape for shape in whole if shape != (56, 56)] == whole
    assert len(whole) == len(IDS)
    others = jobs_of("corrclip_v2", tau=5.0)
    assert shapes(*jobs_of("proxyclip", "corrclip", "corrclip_v2"), *others) == sorted(windows + whole)


def test_region_maps_are_computed_once_for_methods_with_other_features(monkeypatch):
    from ovss_bench.auxiliary.regions import Felzenszwalb

    calls, compute = [], Felzenszwalb.__call__
    monkeypatch.setattr(Felzenszwalb, "__call__", lambda self, image: calls.append(image.shape) or compute(self, image))
    run_jobs(jobs_of("corrclip", "corrclip_v2"), ids=IDS, quiet=True)
    assert len(calls) == len(IDS)


def test_rows_are_printed_as_they_are_done_the_cheapest_pass_first(capsys):
    jobs = [*jobs_of("sclip", "clearclip"), *jobs_of("gem", window="whole")]
    results = run_jobs([*jobs, replace(jobs_of("clip")[0], first=True)], ids=IDS)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("row ")]
    assert [line.split(": ")[1].split()[0] for line in lines] == ["clip", "gem", "sclip", "clearclip"]
    assert [line.split(",")[0] for line in lines] == [f"row {number} of 4" for number in range(1, 5)]
    assert f"mIoU {results[0].metrics['mIoU']:.2f}" in lines[2]
    assert [result.data["segmentor"] for result in results] == ["sclip", "clearclip", "gem", "clip"]


def test_models_of_other_rows_are_not_loaded_before_the_first(monkeypatch, capsys):
    """They take longer than the row itself."""
    from ovss_bench.runs import evaluate

    order, original = [], evaluate.fingerprint
    monkeypatch.setattr(evaluate, "fingerprint", lambda job, *rest: order.append(job.name) or original(job, *rest))
    monkeypatch.setattr(evaluate.Progress, "say", lambda self, line: order.append(line.split(",")[0]))
    run_jobs([*jobs_of("sclip"), replace(jobs_of("clip")[0], first=True)], ids=IDS)
    assert [entry for entry in order if entry in ("clip", "sclip", "row 1 of 2")] == ["clip", "row 1 of 2", "sclip"]
