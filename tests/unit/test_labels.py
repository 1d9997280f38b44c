"""segmentor=labels: maps of any format score what they should, and everything wrong with a folder is reported at once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ovss_bench as ob
from miniatures.voc import write_voc
from ovss_bench.auxiliary.label_files import mask, run_lengths
from ovss_bench.auxiliary.label_maps import LabelMaps, Manifest
from ovss_bench.datasets.lists import Sample, foreign_names
from ovss_bench.encoders import clip_loading
from ovss_bench.runs.load import result_paths
from ovss_bench.runs.store import read_counts

LIMIT = 4


@pytest.fixture(scope="module")
def demo():
    return ob.load_dataset("demo")


def truth(dataset, sample):
    return dataset.label(sample).astype(np.int64)


def png(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(values)).save(path)


def write(dataset, folder, change=lambda values: values, dtype=np.uint8, limit=LIMIT):
    """The ground truth of some images as label maps, changed."""
    for sample in dataset.select(limit):
        png(folder / f"{sample.id}.png", change(truth(dataset, sample)).astype(dtype))
    return folder


def score(dataset, path, limit=LIMIT, **recipe):
    return ob.evaluate("labels", dataset, recipe={"path": str(path)} | recipe, limit=limit)


def problems(dataset, path, **recipe):
    with pytest.raises(ob.OvssError) as caught:
        score(dataset, path, **recipe)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_ground_truth_scores_100(demo, tmp_path, dtype):
    result = score(demo, write(demo, tmp_path, dtype=dtype))
    assert {result.metrics[name] for name in ("mIoU", "mAcc", "aAcc", "fwIoU")} == {100}
    assert (result.data["clip"], result.data["weights_digest"]) == ("none", "")
    assert result.data["sources"]["path"]["name"] == str(tmp_path)


def test_no_clip_is_loaded_and_no_text_encoded(demo, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a CLIP was used")

    monkeypatch.setattr(clip_loading, "load_clip", refuse)
    monkeypatch.setattr(ob.Vocabulary, "features", refuse)
    assert score(demo, write(demo, tmp_path)).metrics["mIoU"] == 100


def test_shifted_classes_score_nothing_and_are_noticed(demo, tmp_path):
    count = len(demo.classes)
    folder = write(demo, tmp_path, lambda t: np.where(t == 255, 255, (t + 1) % count))
    text = problems(demo, folder)
    assert "look shifted by one" in text
    assert "label_offset=-1" in text
    assert score(demo, folder, label_offset=0).metrics["mIoU"] < 1


def test_a_class_may_be_stored_as_255(demo, tmp_path):
    offset = len(demo.classes) - 256
    folder = write(demo, tmp_path, lambda t: np.where(t == 255, 0, t - offset), limit=None)
    assert max(np.max(Image.open(path)) for path in folder.rglob("*.png")) == 255
    assert score(demo, folder, limit=None, label_offset=offset).metrics["mIoU"] == 100


def test_maps_without_a_class_score_nothing(demo, tmp_path):
    result = score(demo, write(demo, tmp_path, lambda t: np.full_like(t, 255)))
    assert (result.metrics["mIoU"], result.metrics["aAcc"]) == (0, 0)
    assert all(row["predicted"] == 0 for row in result.data["per_class"])


def test_a_class_that_is_left_out_is_a_miss_of_that_class_only(demo, tmp_path):
    """With the background void, every other class stays perfect."""
    result = score(demo, write(demo, tmp_path, lambda t: np.where(t == 0, 255, t)))
    for row in result.data["per_class"]:
        expected = 0 if row["class"] == "background" else row["true"]
        assert (row["correct"], row["predicted"]) == (expected, expected)


def test_an_offset_of_the_values(demo, tmp_path):
    """As mmseg's ADE20K export: 0 is unlabelled, the classes count from 1."""
    folder = write(demo, tmp_path, lambda t: np.where(t == 255, 0, t + 1))
    assert score(demo, folder, label_offset=-1).metrics["mIoU"] == 100
    Manifest(label_offset=-1).write(folder)
    assert score(demo, folder).metrics["mIoU"] == 100


def test_everything_wrong_is_reported_at_once(demo, tmp_path):
    folder, samples = write(demo, tmp_path, limit=7), demo.select(7)
    (folder / f"{samples[0].id}.png").unlink()
    values = truth(demo, samples[1])
    png(folder / f"{samples[1].id}.png", np.stack([values] * 3, -1).astype(np.uint8))
    png(folder / f"{samples[2].id}.png", truth(demo, samples[2])[:-1].astype(np.uint8))
    png(folder / f"{samples[3].id}.png", (truth(demo, samples[3]) * 0 + 77).astype(np.uint8))
    (folder / f"{samples[4].id}.png").write_bytes(b"no picture")
    (folder / f"{samples[5].id}.png").unlink()
    np.save(folder / f"{samples[5].id}.npy", values.astype(np.float32))
    text = problems(demo, folder, limit=7)
    lines = text.splitlines()
    assert "of 7 images" in lines[0]
    assert len(lines) == 7
    height, width = truth(demo, samples[2]).shape
    for number, words in enumerate(
        ["lack a file", "(RGB)", f"({height - 1} x {width}, image {height} x {width})", "(77)", "cannot be read", "float32"]
    ):
        (line,) = [line for line in lines[1:] if samples[number].id in line]
        assert line.startswith("  1 ")
        assert words in line


def test_missing_files_and_other_sizes_can_be_accepted(demo, tmp_path):
    folder, (first, second, *_) = write(demo, tmp_path), demo.select(LIMIT)
    (folder / f"{first.id}.png").unlink()
    plain = truth(demo, second)
    png(folder / f"{second.id}.png", plain.repeat(2, 0).repeat(2, 1).astype(np.uint8))
    result = score(demo, folder, allow_missing=True, resize_maps=True)
    assert result.data["overridden"] == {"allow_missing": True, "path": str(folder), "resize_maps": True}
    labels = truth(demo, first)
    missed, pixels = np.bincount(labels[labels != 255]), sum(row["true"] for row in result.data["per_class"])
    assert sum(row["correct"] for row in result.data["per_class"]) == pixels - missed.sum()


def test_a_palette_that_is_not_of_the_classes(demo, tmp_path):
    """A coloured picture saved with a palette: its indices count the colours by how they occur."""
    folder = write(demo, tmp_path)
    palette = np.array(demo.palette, np.uint8)
    sample = demo.select(LIMIT)[1]
    values = np.where(truth(demo, sample) == 255, 0, truth(demo, sample))
    colours = Image.fromarray(palette[values]).quantize(len(np.unique(values)), dither=Image.Dither.NONE)
    order = np.random.RandomState(0).permutation(len(palette))
    right, wrong = (Image.fromarray(which.astype(np.uint8), "P") for which in (values, np.argsort(order)[values]))
    right.putpalette(palette.ravel().tolist())
    wrong.putpalette(palette[order].ravel().tolist())
    assert colours.mode == "P"
    right.save(folder / f"{sample.id}.png")
    score(demo, folder)
    for picture in (wrong, colours):
        picture.save(folder / f"{sample.id}.png")
        assert "palette whose indices are not the classes" in problems(demo, folder)


def test_the_order_of_the_classes_is_checked_by_name(demo, tmp_path):
    classes = list(demo.classes)
    folder = write(demo, tmp_path)
    Manifest(classes=tuple(name.upper().replace(" ", "_") for name in classes)).write(folder)
    assert score(demo, folder).metrics["mIoU"] == 100
    order = np.random.RandomState(0).permutation(len(classes))
    write(demo, tmp_path, lambda t: np.where(t == 255, 255, np.argsort(order)[np.minimum(t, len(classes) - 1)]))
    shuffled = Manifest(classes=tuple(classes[c] for c in order), label_offset=0)
    shuffled.write(folder)
    assert f"'{classes[order[0]]}' there, 'background' here" in problems(demo, folder)
    Manifest(classes=shuffled.classes, class_map={}).write(folder)
    assert score(demo, folder).metrics["mIoU"] == 100
    theirs = tuple("ground" if name == "background" else name for name in shuffled.classes)
    Manifest(classes=theirs, class_map={}).write(folder)
    assert "no class 'ground'" in problems(demo, folder)
    Manifest(classes=theirs, class_map={"ground": "background"}).write(folder)
    assert score(demo, folder).metrics["mIoU"] == 100
    Manifest(classes=theirs, class_map={"ground": None}).write(folder)
    assert score(demo, folder).data["per_class"][0]["IoU"] == 0
    Manifest(classes=theirs, class_map={"ground": None, "sky": "background"}).write(folder)
    assert "class_map names 'sky'" in problems(demo, folder)
    Manifest(classes=tuple(classes[:-1])).write(folder)
    assert f"lists {len(classes) - 1} classes, demo has {len(classes)}" in problems(demo, folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "not a JSON object"),
        ("{", "cannot be read"),
        ('{"offset": 1}', "unknown field"),
        ('{"label_offset": "1"}', "label_offset='1'"),
        ('{"class_map": {"a": 1}}', "class_map"),
    ],
)
def test_an_invalid_manifest(demo, tmp_path, content, words):
    (tmp_path / "manifest.json").write_text(content)
    assert words in problems(demo, write(demo, tmp_path))


def test_the_stated_void_replaces_the_default(demo, tmp_path):
    folder = write(demo, tmp_path)
    Manifest(void=(99, 100)).write(folder)
    assert "expected 0 to 36, or 99 or 100 for no class: " in problems(demo, folder)
    write(demo, tmp_path, lambda t: np.where(t == 255, 99, t))
    assert score(demo, folder).metrics["mIoU"] == 100


def test_many_classes_need_16_bits(tmp_path):
    """255 is a class there, 65535 is none."""
    manifest = Manifest()
    assert manifest.voids(255) == {-1, 255, 65535}
    assert manifest.voids(256) == {-1, 65535}

    class Many(ob.SegDataset):
        classes, palette, samples, ignore_index = tuple(f"class {n}" for n in range(847)), [], [], 65535

        def __init__(self):
            self.name = "many"

    sample = Sample("a", tmp_path / "a.jpg", tmp_path / "a.png")
    Many.samples = [sample]
    values = np.array([[0, 255, 256], [846, 65535, 1]], np.uint16)
    png(tmp_path / "a.png", values)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "I;16"
    maps = LabelMaps(tmp_path, Many(), [{name} for name in Many.classes])
    assert maps.read("a", (2, 3)).tolist() == [[0, 255, 256], [846, 847, 1]]
    values[0, 0] = 847
    png(tmp_path / "a.png", values)
    with pytest.raises(ob.OvssError, match="847"):
        maps.read("a", (2, 3))


def test_a_folder_below_with_the_name_of_the_data_set(demo, tmp_path):
    write(demo, tmp_path / "demo")
    assert score(demo, tmp_path).metrics["mIoU"] == 100


def test_files_are_found_by_any_unambiguous_name():
    samples = [Sample(name, Path(f"images/{name}.png"), Path(f"labels/{name}.png")) for name in ("a/1", "a/2", "b/1")]
    assert foreign_names(samples) == {"a/1": ["a/1", "a_1"], "a/2": ["a/2", "2", "a_2"], "b/1": ["b/1", "b_1"]}


def test_another_content_is_another_run(demo, tmp_path):
    folder = write(demo, tmp_path / "maps")
    one, again = (score(demo, folder).data["fingerprint"] for _ in range(2))
    png(folder / f"{demo.select(LIMIT)[0].id}.png", truth(demo, demo.select(LIMIT)[0]).astype(np.uint16))
    assert one == again != score(demo, folder).data["fingerprint"]


# COCO's run lengths. The texts come from the README and the tests of other implementations of the format.


def plain_text(counts):
    """cocoapi's rleToString, step by step as in maskApi.c."""
    text = ""
    for i, count in enumerate(counts):
        x, more = count - (counts[i - 2] if i > 2 else 0), True
        while more:
            c = x & 0x1F
            x >>= 5
            more = x != -1 if c & 0x10 else x != 0
            text += chr((c | 0x20 if more else c) + 48)
    return text


def test_compressed_run_lengths():
    rng = np.random.RandomState(0)
    for size in (1, 2, 3, 50):
        counts = rng.randint(0, 100000, size).tolist()
        assert run_lengths(plain_text(counts)) == counts
    assert mask({"size": [2, 3], "counts": [1, 2, 3]}).tolist() == [[0, 1, 0], [1, 0, 0]]
    with pytest.raises(ValueError, match="add up to 5, expected 2 x 3"):
        mask({"size": [2, 3], "counts": [5]})


def test_run_lengths_of_detectron2(demo, tmp_path):
    entries = []
    for sample in demo.select(LIMIT):
        values = truth(demo, sample)
        for c in np.unique(values[values != 255]).tolist():
            flat = np.concatenate([[0], (values == c).T.ravel(), [0]])
            flips = np.flatnonzero(np.diff(flat))
            counts = np.diff(np.concatenate([[0], flips, [values.size]])).tolist()
            counts = counts if flips[-1] < values.size else counts[:-1]
            segmentation = {"size": list(values.shape), "counts": plain_text(counts)}
            entries.append({"file_name": f"x/images/{sample.id}.png", "category_id": c, "segmentation": segmentation})
    file = tmp_path / "sem_seg_predictions.json"
    file.write_text(json.dumps(entries))
    for path in (file, tmp_path):
        assert score(demo, path).metrics["mIoU"] == 100
    lost = entries[0]["file_name"]
    file.write_text(json.dumps([entry for entry in entries if entry["file_name"] != lost]))
    assert "1 are not listed" in problems(demo, file)
    file.write_text(json.dumps([{"category_id": 1}]))
    assert "KeyError: 'segmentation'" in problems(demo, file)


# Saving label maps of any run, and scoring them again.


def counts_of(folder):
    (path,) = result_paths(folder)
    return {name: counts.tobytes() for name, counts in read_counts(path.with_suffix(".npz"))[0].items()}


@pytest.mark.parametrize("name", ["voc21", "voc20"])
def test_saved_label_maps_score_the_same(tmp_path, name):
    write_voc(tmp_path / "data", images=4)
    dataset, clip = ob.load_dataset(name, tmp_path / "data"), ob.load_clip("demo")
    recipe = {"resize": "none", "window": 48, "stride": 48}
    runtime = ob.Runtime(save_label_maps=str(tmp_path / "maps"))
    first = ob.evaluate("clip", clip, dataset, recipe=recipe, output=tmp_path / "one", runtime=runtime)
    folder = next((tmp_path / "maps" / name).glob("demo/clip-*"))
    again = ob.evaluate("labels", dataset, recipe={"path": str(folder)}, output=tmp_path / "two")
    assert counts_of(tmp_path / "one") == counts_of(tmp_path / "two")
    assert first.metrics == again.metrics
    stated = Manifest.read(folder)
    assert (stated.method, stated.dataset, stated.classes) == ("clip", name, tuple(dataset.classes))
    # A finished run is repeated only if maps are missing.
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    ob.evaluate("clip", clip, dataset, recipe=recipe, output=tmp_path / "one", runtime=runtime)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    lost = next(folder.glob("*.png"))
    content = lost.read_bytes()
    lost.unlink()
    ob.evaluate("clip", clip, dataset, recipe=recipe, output=tmp_path / "one", runtime=runtime)
    assert lost.read_bytes() == content


def test_label_maps_that_could_not_be_scored_again_are_refused(demo, tmp_path):
    clip, runtime = ob.load_clip("demo"), ob.Runtime(save_label_maps=str(tmp_path / "maps"))
    with pytest.raises(ob.OvssError, match="needs the folder of the results"):
        ob.evaluate("clip", clip, demo, limit=1, runtime=runtime)
    recipe = {"scored_at": "short_448"}
    with pytest.raises(ob.OvssError, match="scored_at=short_448, not at the size"):
        ob.evaluate("clip", clip, demo, recipe=recipe, limit=1, output=tmp_path / "one", runtime=runtime)


def test_a_method_without_clip_has_no_recipe_of_it(demo, tmp_path):
    folder = write(demo, tmp_path)
    for name, value in (("short_side", 100), ("templates", "none"), ("precision", "fp16"), ("threshold", 0.5)):
        assert f"{name}={value} (from argument) has no effect on labels" in problems(demo, folder, **{name: value})
    with pytest.raises(ob.OvssError, match="labels needs path: give path=VALUE"):
        ob.evaluate("labels", demo)
    segmentor = ob.build_segmentor("labels", vocabulary=demo.vocabulary(), path=str(folder))
    assert ob.evaluate(segmentor, demo, limit=LIMIT).metrics["mIoU"] == 100
    with pytest.raises(ob.OvssError, match="finds label maps by the images of a data set"):
        ob.segment(segmentor, np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ob.OvssError, match="clip: expected a loaded CLIP"):
        ob.build_segmentor("clip", vocabulary=demo.vocabulary())
    assert torch.equal(segmentor.decide(torch.tensor([[[1.0, 36.0]]]), None), torch.tensor([[1, 36]]))


def test_saved_label_maps_of_16_bits(prepared, tmp_path):
    """With 847 classes, files have 8 or 16 bits, as their largest class needs."""
    dataset, clip = ob.load_dataset("ade847", prepared("ade847")), ob.load_clip("demo")
    runtime = ob.Runtime(save_label_maps=str(tmp_path / "maps"))
    ob.evaluate("clip", clip, dataset, recipe={"templates": "none"}, output=tmp_path / "one", runtime=runtime)
    folder = next((tmp_path / "maps").rglob("manifest.json")).parent
    assert "I;16" in {Image.open(path).mode for path in folder.rglob("*.png")}
    ob.evaluate("labels", dataset, recipe={"path": str(folder)}, output=tmp_path / "two")
    assert counts_of(tmp_path / "one") == counts_of(tmp_path / "two")
