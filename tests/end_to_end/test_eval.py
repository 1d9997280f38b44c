import json
import shutil
from concurrent.futures import ThreadPoolExecutor, wait
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ovss_bench as ob
from end_to_end.tools import evaluate, evaluate_here, results, run
from miniatures.voc import write_voc
from ovss_bench.cache import read_entry
from ovss_bench.evaluation.confusion import confusion, total
from ovss_bench.evaluation.metrics import metrics
from ovss_bench.evaluation.per_image import per_image
from ovss_bench.runs.evaluate import EvalResult
from ovss_bench.runs.grid import Grid
from ovss_bench.runs.store import read_counts

FAST = ["recipe.resize=none", "recipe.window=48", "recipe.stride=48"]  # a few windows per scene
SIX = ["clip", "maskclip", "sclip", "clearclip", "naclip", "gem"]
ALL = [*SIX, "cliptrase", "resclip", "scclip", "proxyclip", "corrclip", "corrclip_v2", "cliper", "clip_diy"]


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """The main job with its defaults on a few images. Other runs may replace its tables, so copies are kept."""
    folder = tmp_path_factory.mktemp("demo")
    done = evaluate("limit=2", cwd=folder)
    for suffix in ("csv", "md"):
        shutil.copy(folder / f"results/runs/table.{suffix}", folder / f"expected.{suffix}")
    return folder, done


def test_the_main_job_writes_a_row_for_each_segmentor(demo_run):
    folder, done = demo_run
    found = results(folder / "results/runs")
    assert sorted(found) == sorted(f"{name}/demo" for name in ALL)
    table = (folder / "expected.csv").read_text().splitlines()
    assert [line.split(" ")[0] for line in table[1:]] == ALL
    assert (folder / "expected.md").read_text().count("\n") == 2 + len(ALL)
    assert "Again: " in done.stdout
    assert all(name in done.stdout for name in ALL)
    for result in found.values():
        assert result["clip"] == "demo"
        assert result["partial"]
        assert result["images"] == {"expected": 100, "evaluated": 2, "failed": {}}
        assert 0 <= result["metrics"]["mIoU"] <= 100
        assert {"mIoU_seen", "mIoU_unseen", "hIoU"} <= result["metrics"].keys()
        assert all(value["origin"] for value in result["recipe"].values())


def test_what_stood_in_for_something_trained_is_said(demo_run):
    folder, done = demo_run
    found = results(folder / "results/runs")
    assert found["proxyclip/demo"]["sources"]["vfm"]["name"] == "demo"
    assert len(found["proxyclip/demo"]["sources"]["vfm"]["digest"]) == 64
    assert "cliper (partial) (stand-in diffusion)" in done.stdout
    assert "corrclip_v2 (partial) (stand-in regions)" in done.stdout
    assert done.stdout.count("stand-in") == 3


def test_sources_are_chosen_on_the_command_line_and_kept_on_request(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["segmentor=corrclip", "limit=2", "regions=slic", "runtime.feature_cache=kept", *FAST]
    evaluate_here(*arguments)
    (result,) = results(tmp_path / "results").values()
    assert result["sources"]["regions"]["name"] == "slic"
    assert result["overridden"]["regions"] == "slic"
    kept = sorted(tmp_path.glob("kept/*/*.safetensors"))
    assert len(kept) == 2
    with np.load(BytesIO(read_entry(kept[0])["npz"].numpy())) as file:
        assert file["array"].max() > 10
    before = [path.stat().st_mtime_ns for path in kept]
    evaluate_here(*arguments, "rerun=true")
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("kept/*/*.safetensors"))] == before
    again = results(tmp_path / "results")["corrclip/demo"]
    assert again["metrics"] == result["metrics"]


def test_everything_can_be_computed_again_from_the_counts_beside_a_result(demo_run):
    folder, _ = demo_run
    dataset = ob.load_dataset("demo")
    for path in (folder / "results/runs").rglob("*.npz"):
        counts, hashes, _ = read_counts(path)
        (result,) = [r for r in results(path.parent).values() if path.stem.startswith(f"{r['segmentor']}-")]
        again = metrics(total(counts.values(), 37), dataset.facts) | per_image(counts.values(), 37)
        assert {name: round(100 * value, 8) for name, value in again.items()} == result["metrics"]
        assert len(hashes) == 2


def test_a_finished_run_is_not_repeated_unless_asked(demo_run):
    folder, _ = demo_run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    again = evaluate("limit=2", cwd=folder)
    assert again.stderr.count("already done") == len(ALL)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")} == before
    evaluate("limit=2", "segmentor=sclip", "rerun=true", cwd=folder)
    assert sum(path.stat().st_mtime_ns != before[path] for path in before) == 1


def test_the_python_interface_gives_the_numbers_of_the_tool(demo_run, tmp_path):
    folder, _ = demo_run
    clip, dataset = ob.load_clip("demo"), ob.load_dataset("demo")
    segmentor = ob.build_segmentor("sclip", clip=clip, vocabulary=dataset.vocabulary("demo", "notebook7"))
    result = ob.evaluate(segmentor, dataset, limit=2, output=tmp_path)
    assert result.metrics == results(folder)["sclip/demo"]["metrics"]
    assert result.data["fingerprint"] == results(folder)["sclip/demo"]["fingerprint"]
    single = ob.segment(segmentor, dataset.image(dataset.samples[0])).label_map.numpy()
    counts, *_ = read_counts(result.path.with_suffix(".npz"))
    again = total([confusion(dataset.label(dataset.samples[0]), single, 37)], 37)
    assert abs(again - total([counts["scene_000"]], 37)).sum() <= 2  # another batch: a tie may fall otherwise


def test_segmentors_with_equal_recipes_share_one_trunk_pass(monkeypatch):
    dataset, passes = ob.load_dataset("demo"), []
    clip, trunk = ob.load_clip("demo"), ob.DenseCLIP.trunk
    monkeypatch.setattr(ob.DenseCLIP, "trunk", lambda *args, **options: passes.append(1) or trunk(*args, **options))
    from ovss_bench.runs.evaluate import make_job, run_jobs

    run_jobs([make_job("sclip", clip, dataset)], limit=2, quiet=True)
    alone = len(passes)
    passes.clear()
    run_jobs([make_job(name, clip, dataset) for name in SIX], limit=2, quiet=True)
    assert len(passes) == alone


def test_values_of_a_recipe_share_one_pass_also_in_a_grid(tmp_path):
    done = evaluate("-m", "segmentor=sclip", "recipe.threshold=0.1,0.3", "limit=2", *FAST, cwd=tmp_path)
    assert done.stderr.count("sclip on demo: 2 images in") == 1
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("*.json")]
    assert sorted(result["overridden"]["threshold"] for result in found) == [0.1, 0.3]
    assert all(result["timing"]["segmentors_in_pass"] == 2 for result in found)
    again = evaluate("segmentor=sclip", "recipe.threshold=[0.1,0.3]", "limit=2", *FAST, cwd=tmp_path)
    assert again.stderr.count("already done") == 2
    alone = evaluate("segmentor=sclip", "recipe.threshold=0.3", "limit=2", *FAST, "output=alone", cwd=tmp_path)
    assert alone.returncode == 0
    (one,) = results(tmp_path / "alone").values()
    (same,) = [result for result in found if result["overridden"]["threshold"] == 0.3]
    assert one["metrics"] == same["metrics"]
    assert one["fingerprint"] == same["fingerprint"]


def test_lists_where_a_list_is_one_value(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["segmentor=sclip", "limit=1", "recipe.pamr_steps=1", *FAST]
    evaluate_here(*arguments, "recipe.pamr_dilations=[2,4]", "output=one")
    evaluate_here(*arguments, "recipe.pamr_dilations=[[2,4],[4,8]]", "output=two")
    found = [json.loads(path.read_text()) for folder in ("one", "two") for path in (tmp_path / folder).rglob("*.json")]
    assert sorted(result["recipe"]["pamr_dilations"]["value"] for result in found) == [[2, 4], [2, 4], [4, 8]]


def test_a_profile_shows_the_stages_and_leaves_a_trace(tmp_path):
    done = evaluate("segmentor=sclip", "limit=1", "runtime.profile=true", *FAST, cwd=tmp_path)
    for stage in ("read", "resize", "encode", "last block", "compose", "read labels", "count", "store"):
        assert f"\n{stage} " in done.stderr
    (trace,) = tmp_path.rglob("*.trace.json")
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"encode", "last block", "compose", "aten::scaled_dot_product_attention"} <= names
    (result,) = [json.loads(path.read_text()) for path in tmp_path.rglob("sclip-*.json") if path != trace]
    assert result["timing"]["stages"]["encode"] > 0


def test_counts_do_not_depend_on_the_trunk_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["segmentor=[sclip,gem,scclip]", "limit=3", *FAST]
    for output, cache in (("none", "null"), ("first", "kept"), ("second", "kept")):
        evaluate_here(*arguments, f"output={output}", f"runtime.trunk_cache={cache}")
    assert list((tmp_path / "kept").rglob("*.safetensors"))
    none, *others = [results(tmp_path / output) for output in ("none", "first", "second")]
    for other in others:
        assert {key: result["per_class"] for key, result in other.items()} == {k: r["per_class"] for k, r in none.items()}


def test_dry_run_prints_every_value_with_its_origin_and_writes_nothing(tmp_path):
    done = evaluate("dry_run=true", "segmentor=naclip", "dataset=voc21", "clip=vit_b16", "recipe.sigma=3", cwd=tmp_path)
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "command line" in lines["sigma"]
    assert "configs/segmentor/naclip.yaml per_dataset.voc21" in lines["window"]
    assert "configs/recipe.yaml recipe" in lines["short_side"]
    assert "would stop" in done.stdout  # there is no data
    assert list(tmp_path.iterdir()) == []


def test_multirun_runs_a_grid_whose_tables_hold_all_rows(tmp_path):
    grid = ["-m", "segmentor=sclip,clip,sclippp", "output=a,b", "limit=1", *FAST]
    done = evaluate(*grid, cwd=tmp_path, status=2)
    assert done.stderr.count("error: unknown segmentor 'sclippp'") == 1  # and the runs after it are not kept from running
    tables = [(tmp_path / name / "table.csv").read_text() for name in "ab"]
    assert [line.split(" ")[0] for line in tables[0].splitlines()[1:]] == ["sclip", "clip"]
    assert tables[0] == tables[1]
    assert (tmp_path / "b" / "table.md").read_text().count("\n") == 4
    assert not list(tmp_path.glob(".grid*"))

    right = next(line for line in tables[0].splitlines() if line.startswith("clip"))
    wrong = right.replace(right.split(",")[4], "99.00", 1)
    (tmp_path / "expected.csv").write_text(tables[0].replace(right, wrong))
    grid = ["-m", "segmentor=clip,sclip", "output=a", "expect=expected.csv", "limit=1", *FAST]
    done = evaluate(*grid, cwd=tmp_path, status=1)
    assert done.stdout.count("different: ") == 1
    assert "All 1 rows agree with expected.csv" in done.stdout
    assert "segmentor=clip output=a " in done.stderr.splitlines()[-1]
    assert sorted((tmp_path / "a" / "table.csv").read_text().splitlines()) == sorted(tables[0].splitlines())


def test_runs_of_a_grid_end_in_any_order(demo_run, tmp_path):
    output = demo_run[0] / "results/runs"
    runs = {name: EvalResult({}, next(output.rglob(f"{name}-*.json"))) for name in ("clip", "sclip", "gem")}

    def together(number, name, output=output):
        with Grid(tmp_path, number).together([runs[name]], output) as results:
            return [result["segmentor"] for result in results]

    assert together(10, "gem") == ["gem"]
    assert together(9, "clip", tmp_path) == ["clip"]
    with ThreadPoolExecutor(1) as other:
        with Grid(tmp_path, 2).together([runs["sclip"]], output) as results:
            waiting = other.submit(together, 1, "clip")
            assert [result["segmentor"] for result in results] == ["sclip", "gem"]
            assert not wait([waiting], timeout=0.2).done
        assert waiting.result() == ["clip", "sclip", "gem"]


def test_the_unified_protocol_is_another_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sliding = [name for name in ALL if name != "clip_diy"]  # which has no use for windows
    evaluate_here(f"segmentor=[{','.join(sliding)}]", "limit=1", "protocol=unified", *FAST)
    found = results(tmp_path)
    assert sorted(found) == sorted(f"{name}/demo" for name in sliding)
    assert {result["timing"]["segmentors_in_pass"] for result in found.values()} == {len(sliding)}
    for result in found.values():
        assert result["recipe"]["pamr_steps"]["value"] == 0
        assert "protocol/unified.yaml" in result["recipe"]["pamr_steps"]["origin"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["segmentor=sclipp"], ["sclipp", "sclip"]),
        (["dataset=vocc21"], ["vocc21", "voc21"]),
        (["clip=vitb16"], ["vitb16", "vit_b16"]),
        (["protocol=fair"], ["fair", "unified"]),
        (["segmntor=sclip"], ["segmntor", "segmentor"]),
        (["recipe.treshold=0.1"], ["treshold", "threshold"]),
        (["recipe.window=-3"], ["window", "positive"]),
        (["recipe.threshold=abc"], ["threshold", "number"]),
        (["ids=[scene_00]"], ["scene_00", "scene_0"]),
        (["limit=0"], ["limit=0"]),
        (["segmentor=proxyclip", "vfm=dino_vitb9"], ["dino_vitb9", "dino_vitb8"]),
        (["segmentor=proxyclip", "vfm=missing.pth"], ["missing.pth"]),
        (["segmentor=proxyclip", "recipe.vfm=null"], ["proxyclip needs vfm"]),
        (["segmentor=corrclip", "regions=sam3"], ["sam3", "sam2_8"]),
        (["segmentor=sclip", "vfm=demo"], ["vfm", "sclip"]),
        (["segmentor=cliper", "diffusion=sd22"], ["sd22", "sd21_base"]),
        (["segmentor=clip_diy", "foreground=fond"], ["fond", "found"]),
        (["segmentor=corrclip_v2", "bank=bank.pt"], ["bank.pt"]),
        (["dataset=voc20", "recipe.threshold=0.3", "data_root=VOC"], ["threshold=0.3", "command line", "no background class"]),
        (["dataset=voc21"], ["data_root", "OVSS_DATA", "SegmentationClass"]),
        (["dataset=voc21", "data_root=nowhere"], ["nowhere", "JPEGImages", "ImageSets/Segmentation/val.txt"]),
        (["clip=vit_b16", "weights=missing.pt"], ["missing.pt"]),
        (["recipe.threshold=[0.1,0.2,0.1]"], ["recipe.threshold=[0.1, 0.2, 0.1]", "different"]),
        (["plugins=[missing.py]"], ["missing.py"]),
        (["plugins=[broken.py]"], ["broken.py", "ZeroDivisionError"]),
        (["recipe.names=animals"], ["animals", "demo"]),
        (["expect=nothing.csv", "limit=1", "segmentor=clip"], ["nothing.csv"]),
        (["output=broken.py/results", "limit=1"], ["broken.py", "output=DIR"]),
        (["output=/proc/results", "limit=1"], ["/proc/results", "output=DIR"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)
def test_bad_input_gets_one_clear_error(arguments, words, tmp_path, monkeypatch):
    write_voc(tmp_path / "VOC")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OVSS_DATA", raising=False)
    with pytest.raises(ob.OvssError) as error:
        evaluate_here(*arguments)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("arguments", [["segmentor=sclipp"], ["segmntor=sclip"], ["segmentor=[sclip"]])
def test_the_tool_prints_one_line_and_ends_with_status_2(arguments, tmp_path):
    done = evaluate(*arguments, cwd=tmp_path, status=2)
    assert done.stderr.startswith("error: ")


def test_expect_compares_with_a_table(demo_run, monkeypatch):
    folder, _ = demo_run
    monkeypatch.chdir(folder)
    assert evaluate_here("limit=2", "expect=expected.csv") == 0
    lines = (folder / "expected.csv").read_text().splitlines()
    cells = lines[3].split(",")
    column = lines[0].split(",").index("mIoU")
    cells[column] = f"{float(cells[column]) + 1:.2f}"
    (folder / "other.csv").write_text("\n".join([*lines[:3], ",".join(cells), *lines[4:]]) + "\n")
    different = evaluate("limit=2", "expect=other.csv", cwd=folder, status=1)
    assert different.stdout.count("different:") == 1
    assert "sclip" in different.stdout.split("different:")[1]


def test_a_run_without_a_labelled_pixel_says_so_and_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder, value in (("photos", 90), ("masks", 255)):
        (tmp_path / folder).mkdir()
        Image.new("L", (48, 48), value).save(tmp_path / folder / "a.png")
    Path("own.yaml").write_text(
        "images: photos\nlabels: masks\nimage_suffix: .png\nlabel_suffix: .png\nclasses: [sand, water]\n"
    )
    assert evaluate_here("segmentor=clip", "dataset=own.yaml") == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("error: clip on own: no mIoU, since none of the 1 images has a labelled pixel")
    shutil.copy("results/runs/table.csv", "expected.csv")
    assert evaluate_here("segmentor=clip", "dataset=own.yaml", "expect=expected.csv") == 0  # as expected
    Path("expected.csv").write_text(Path("expected.csv").read_text().replace("paper,none,", "paper,none,50"))
    assert evaluate_here("segmentor=clip", "dataset=own.yaml", "expect=expected.csv") == 1
    assert evaluate_here("segmentor=clip", "dataset=own.yaml", "shard=1/1", "output=parts") == 0
    merged = run("merge.py", "parts", cwd=tmp_path, status=2)
    assert "clip on own: no mIoU" in merged.stderr


def test_a_real_layout_with_weights_from_a_file(tmp_path, tiny_state_dict):
    import torch

    write_voc(tmp_path / "VOC", images=3)
    torch.save(tiny_state_dict, tmp_path / "tiny.pt")
    evaluate(
        "segmentor=[sclip,clearclip]",
        "dataset=[voc21,voc20]",
        "clip=tiny.pt",
        "data_root=VOC",
        "recipe.short_side=112",
        "recipe.window=112",
        "recipe.stride=56",
        "recipe.templates=none",
        cwd=tmp_path,
    )
    found = results(tmp_path / "results")
    assert sorted(found) == ["clearclip/voc20", "clearclip/voc21", "sclip/voc20", "sclip/voc21"]
    assert found["sclip/voc21"]["recipe"]["logit_scale"]["value"] == 65
    assert found["sclip/voc21"]["images"] == {"expected": 1449, "evaluated": 3, "failed": {}}
    assert found["sclip/voc21"]["partial"]
    assert len(found["sclip/voc20"]["per_class"]) == 20


def test_bad_images_are_named_and_the_others_are_kept(tmp_path, tiny_state_dict):
    import torch

    torch.save(tiny_state_dict, tmp_path / "tiny.pt")
    write_voc(tmp_path / "VOC", images=4)
    folder = tmp_path / "VOC/VOCdevkit/VOC2012"
    ids = (folder / "ImageSets/Segmentation/val.txt").read_text().split()
    photo = folder / f"JPEGImages/{ids[1]}.jpg"
    photo.write_bytes(photo.read_bytes()[:-400])
    label = Image.open(folder / f"SegmentationClass/{ids[2]}.png")
    label.resize((label.width // 2, label.height)).save(folder / f"SegmentationClass/{ids[2]}.png")
    arguments = [
        "segmentor=sclip",
        "dataset=voc21",
        "clip=tiny.pt",
        "data_root=VOC",
        "recipe.short_side=112",
        "recipe.window=112",
        "recipe.templates=none",
    ]
    done = evaluate(*arguments, cwd=tmp_path, status=2)
    assert f"{ids[1]}.jpg" in done.stderr
    assert f"{ids[2]}.png" in done.stderr
    assert "2 of 4 images" in done.stderr
    assert results(tmp_path / "results") == {}
    again = evaluate(*arguments, "runtime.skip_bad_images=true", cwd=tmp_path)
    assert "2 of 4 images are done" in again.stderr
    (result,) = results(tmp_path / "results").values()
    assert result["images"]["evaluated"] == 2
    assert sorted(result["images"]["failed"]) == sorted(ids[1:3])
    assert result["partial"]
