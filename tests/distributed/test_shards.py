"""shard=I/N and tools/merge.py: independent parts, merged into one result."""

import json
import shutil
from pathlib import Path

import pytest

import ovss_bench as ob
from distributed.started import counted
from end_to_end.tools import run as run_tool
from miniatures.voc import write_voc
from ovss_bench.runs.evaluate import make_job, run_jobs
from ovss_bench.runs.load import result_paths
from ovss_bench.runs.merge import merge, part_folders
from ovss_bench.runs.store import read_result
from ovss_bench.runs.world import Shard
from stand_ins import METHODS, method_of
from trained_networks import weights_of

# Values that make what happens in a window depend on the whole image, where the demo's recipe has others.
BEYOND_WINDOWS = {"lposs_plus": {}, "rf_clip": {"image_level": "image"}}
FAST = {"resize": "none", "window": 48, "stride": 48, "pamr_steps": 0}


def evaluate(root, output, shard=None, names=("sclip",), **options):
    clip, dataset = ob.load_clip("demo"), ob.load_dataset("voc21", root)
    jobs = [make_job(name, clip, dataset, overrides=FAST) for name in names]
    return run_jobs(jobs, output=output, shard=Shard.of(shard), quiet=True, **options)


def merged(folder):
    return {result["segmentor"]: result for result, _ in map(merge, part_folders(folder))}


@pytest.fixture(scope="module")
def whole(voc, tmp_path_factory):
    """The results of a run in one process, with boundaries, and their folder."""
    folder = tmp_path_factory.mktemp("whole")
    runtime = ob.Runtime(boundary=True)
    results = evaluate(voc, folder, None, ("sclip", "naclip"), runtime=runtime)
    return {result.data["segmentor"]: read_result(result.path) for result in results}, folder


@pytest.mark.parametrize("count", [1, 3, 11])
def test_any_split_gives_the_same_result(count, whole, voc, tmp_path):
    expected, folder = whole
    for number in range(count, 0, -1):
        options = {"names": ("sclip", "naclip"), "runtime": ob.Runtime(boundary=True)}
        assert evaluate(voc, tmp_path, f"{number}/{count}", **options) == []
    merged(tmp_path)
    found = {path.name.split("-")[0]: read_result(path) for path in result_paths(tmp_path)}
    assert counted(tmp_path) == counted(folder)
    assert not list(tmp_path.rglob("*.shards"))
    for name, result in found.items():
        assert result["provenance"]["world_size"] == count
        assert result["timing"]["images"] == 10
        measured = {"timing": 0, "provenance": 0, "peak_memory_mib": 0}
        assert result | measured == expected[name] | measured
        assert list(result) == list(expected[name])


def small(name):
    """Values for quick runs of a method on the demo CLIP, with random weights where it needs trained ones."""
    method, values = method_of(name), {"short_side": 56, "window": 48, "stride": 24, "pamr_steps": 0}
    if ob.compose_recipe(name, clip="demo").resize == "up_to_patch":
        values = {"pamr_steps": 0}
    needed = {"concepts": "demo"} if "concepts" in method.requires else {}
    if "checkpoint" in method.requires and not ob.compose_recipe(name, clip="demo").hyperparameters["checkpoint"]:
        needed = {key: str(value) if isinstance(value, Path) else value for key, value in weights_of(name, 128).items()}
    return {key: value for key, value in values.items() if key not in method.unused()} | needed


def test_every_method_and_step_counts_the_same_in_shards_in_any_order_and_with_any_batch(voc, tmp_path):
    """A shard holds one image, the other run both in the opposite order, with windows of both in a batch."""
    clip, dataset = ob.load_clip("demo"), ob.load_dataset("voc20", voc)
    ranks = [{"template_id": t, "pixel_percentage": 1.0} for t in range(3)]
    (tmp_path / "ranking.json").write_text(
        json.dumps({"classes": {name.replace(" ", ""): {"entropy_ranking": ranks} for name in dataset.classes}})
    )
    sources = {"region_vote": {"regions": "demo"}, "floss": {"ranking": str(tmp_path / "ranking.json")}}
    values = {f"maskclip+{step}": sources.get(step, {}) for step in ob.STEPS.modules}
    values |= {name: {} for name in METHODS} | BEYOND_WINDOWS
    jobs = [make_job(name, clip, dataset, overrides=small(name) | own) for name, own in values.items()]
    ids = [sample.id for sample in dataset.samples][:2]
    run_jobs(jobs, output=tmp_path / "whole", ids=ids[::-1], quiet=True)
    for number in (1, 2):
        run_jobs(jobs, output=tmp_path / "parts", ids=ids, shard=Shard(number, 2), quiet=True, runtime=ob.Runtime(batch=5))
    merged(tmp_path / "parts")
    found = counted(tmp_path / "parts")
    assert found.keys() == values.keys()
    assert found == counted(tmp_path / "whole")


def test_parts_of_several_machines_may_be_copied_together(whole, voc, tmp_path):
    for number in (1, 2):
        evaluate(voc, tmp_path / f"machine{number}", f"{number}/2", ("sclip",), runtime=ob.Runtime(boundary=True))
        shutil.copytree(tmp_path / f"machine{number}", tmp_path / "all", dirs_exist_ok=True)
    assert merged(tmp_path / "all")["sclip"]["metrics"] == whole[0]["sclip"]["metrics"]


def test_what_is_missing_is_told_and_the_same_command_without_shard_finishes_too(whole, voc, tmp_path):
    for number in (1, 3):
        evaluate(voc, tmp_path, f"{number}/3", runtime=ob.Runtime(boundary=True))
    with pytest.raises(ob.OvssError, match=r"3 of 10 images are missing: .*shard=2/3\.$"):
        merged(tmp_path)
    (result,) = evaluate(voc, tmp_path, runtime=ob.Runtime(boundary=True))
    assert result.data["timing"]["images"] == 3
    assert result.metrics == whole[0]["sclip"]["metrics"]


def test_the_tool_prints_the_table_of_what_it_has_merged(voc, tmp_path):
    for number in (1, 2):
        evaluate(voc, tmp_path / "runs", f"{number}/2")
    evaluate(voc, tmp_path / "runs", "1/2", ("naclip",))
    done = run_tool("merge.py", "runs", cwd=tmp_path, status=2)
    assert done.stderr.startswith("error: runs/voc21/demo/naclip-")
    assert len(done.stderr.splitlines()) == 1
    (path,) = tmp_path.rglob("sclip-*.json")
    assert f"{read_result(path)['metrics']['mIoU']:.2f}" in done.stdout


def test_a_folder_without_parts_is_reported(tmp_path):
    with pytest.raises(ob.OvssError, match=r"there are no parts to merge in .*shard=I/N"):
        merged(tmp_path)


def test_a_finished_shard_is_not_repeated_and_a_damaged_one_is(voc, tmp_path):
    for number in (1, 2):
        evaluate(voc, tmp_path, f"{number}/2")
    (folder,) = part_folders(tmp_path)
    parts = {path: path.read_bytes() for path in folder.glob("part-*")}
    evaluate(voc, tmp_path, "2/2")
    assert {path: path.read_bytes() for path in folder.glob("part-*")} == parts
    part = folder / "part-1-of-2.json"
    part.write_bytes(parts[part].replace(b"sclip", b"sclap"))
    shard = sorted(folder.glob("*.npz"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ob.OvssError, match=r"(?s)part-1-of-2.json is damaged.*npz is damaged.*images are missing.*shard=1/2"):
        merge(folder)
    for number in (1, 2):
        part.unlink(missing_ok=True)
        evaluate(voc, tmp_path, f"{number}/2")
    (expected,) = evaluate(voc, tmp_path / "whole")
    assert merged(tmp_path)["sclip"]["metrics"] == expected.metrics


def test_images_that_failed_are_in_the_merged_result(tmp_path):
    write_voc(tmp_path / "VOC", images=5)
    bad = ob.load_dataset("voc21", tmp_path / "VOC").samples[2]
    bad.image_path.write_bytes(b"no image")
    for number in (1, 2):
        evaluate(tmp_path / "VOC", tmp_path / "runs", f"{number}/2", runtime=ob.Runtime(skip_bad_images=True))
    result = merged(tmp_path / "runs")["sclip"]
    assert result["partial"]
    assert result["images"]["evaluated"] == 4
    assert list(result["images"]["failed"]) == [bad.id]


def test_parts_of_different_machines_are_reported(voc, tmp_path, monkeypatch):
    evaluate(voc, tmp_path, "1/2")
    monkeypatch.setattr("ovss_bench.runs.provenance._processor", lambda: "Another 3000")
    evaluate(voc, tmp_path, "2/2")
    _, notes = merge(*part_folders(tmp_path))
    assert len(notes) == 1
    assert notes[0].startswith("the parts were evaluated with different device: ")
    assert "Another 3000" in notes[0]


def test_rerun_of_a_shard_leaves_the_others_alone(voc, tmp_path):
    for number in (1, 2):
        evaluate(voc, tmp_path, f"{number}/2")
    before = set(tmp_path.rglob("*.npz"))
    evaluate(voc, tmp_path, "2/2", rerun=True)
    assert before < set(tmp_path.rglob("*.npz"))
    assert merged(tmp_path)["sclip"]["images"]["evaluated"] == 10
