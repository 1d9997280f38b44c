"""Labels, ids, oracle and constant predictors on the drawn scenes and on VOC, and what is said about bad files."""

import shutil
from collections import Counter

import mmseg.datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

import ovss_bench as ob
from miniatures.voc import write_label, write_voc
from ovss_bench.datasets.check.run import check
from ovss_bench.datasets.demo.loader import draw_demo
from ovss_bench.datasets.prepare.conversion import files
from ovss_bench.evaluation.confusion import confusion, total
from ovss_bench.evaluation.metrics import metrics
from ovss_bench.files import data_files, digest
from ovss_bench.ops.scores import Decision

EXPECTED = {"demo": 100, "demo_tune": 30, "voc21": 1449, "voc20": 1449}
VOC = "VOCdevkit/VOC2012"


@pytest.fixture(params=EXPECTED)
def dataset(request, voc):
    return ob.load_dataset(request.param, voc)


@pytest.fixture
def own_voc(tmp_path):
    """A miniature VOC that the test may damage."""
    write_voc(tmp_path, images=3)
    return tmp_path


def evaluated(dataset, predict):
    """Metrics in percent of predict(label) -> (H, W) over the data set."""
    labels = [dataset.label(sample) for sample in dataset.samples]
    records = [confusion(label, predict(label), len(dataset.classes), dataset.ignore_index) for label in labels]
    matrix = total(records, len(dataset.classes))
    return {name: 100 * value for name, value in metrics(matrix, dataset.facts).items()}


def test_an_oracle_gets_exactly_100(dataset):
    def oracle(label):
        known = torch.from_numpy(np.where(label == dataset.ignore_index, 0, label).astype(np.int64))
        scores = F.one_hot(known, len(dataset.classes)).permute(2, 0, 1).float()
        return Decision(dataset.vocabulary(None, "none")).from_scores(scores).numpy().astype(np.uint16)

    values = evaluated(dataset, oracle)
    plain = {name: value for name, value in values.items() if not name.endswith(("_cliper", "_cliptrase"))}
    assert set(plain.values()) == {100.0}
    assert all(values[name] > 95 for name in values)  # epsilons, and outlines that CLIPtrase takes for background


@pytest.mark.parametrize("constant", [0, 3, "last"])
def test_a_constant_predictor_gets_the_analytic_value(dataset, constant):
    constant = len(dataset.classes) - 1 if constant == "last" else constant
    pixels = Counter(np.concatenate([dataset.label(sample).ravel() for sample in dataset.samples]).tolist())
    del pixels[dataset.ignore_index]
    everything = sum(pixels.values())
    share = pixels[constant] / everything
    expected = {
        "mIoU": 100 * share / len({*pixels, constant}),
        "mAcc": 100 * (constant in pixels) / len(pixels),
        "aAcc": 100 * share,
        "fwIoU": 100 * share**2,
    }
    values = evaluated(dataset, lambda label: np.full(label.shape, constant, np.uint16))
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_samples_have_images_and_labels_of_one_size(dataset):
    assert dataset.expected_images == EXPECTED[dataset.name]
    assert len({sample.id for sample in dataset.samples}) == len(dataset.samples)
    for sample in dataset.samples[:5]:
        image, label = dataset.image(sample), dataset.label(sample)
        assert image.dtype == np.uint8
        assert image.shape == (*label.shape, 3)


def test_a_vocabulary_has_the_classes_of_the_data_set(dataset):
    vocabulary = dataset.vocabulary(None, "photo")
    assert vocabulary.classes == dataset.classes
    assert vocabulary.background == dataset.background
    assert len(dataset.palette) == len(dataset.classes)


def test_ids_are_those_of_the_list_in_its_order(voc):
    expected = (voc / VOC / "ImageSets/Segmentation/val.txt").read_text().split()
    assert [sample.id for sample in ob.load_dataset("voc21", voc).samples] == expected
    assert expected[0] == "2007_000033"


def test_images_in_folders_at_any_depth_are_listed_as_mmseg_lists_them(tmp_path):
    """But for hidden folders, which mmseg enters."""
    shown = ["b/10.png", "b/9.png", "a.png", "a/z.png", "a-b.png", "B.png"]
    for name in [*shown, ".folder/x.png", "b/.hidden.png", "note.txt", "c.jpg"]:
        for folder in ("images", "labels"):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).touch()
    (tmp_path / "images/linked").symlink_to(tmp_path / "images/b")
    (tmp_path / "mine.yaml").write_text(
        "{images: images, labels: labels, image_suffix: .png, label_suffix: .png, classes: [cat, dog]}"
    )
    theirs = mmseg.datasets.BaseSegDataset(
        data_root=str(tmp_path),
        data_prefix={"img_path": "images", "seg_map_path": "labels"},
        img_suffix=".png",
        pipeline=[],
        serialize_data=False,
    )
    dataset = ob.load_dataset(tmp_path / "mine.yaml")
    paths = [info["img_path"] for info in theirs.data_list if "/.folder/" not in info["img_path"]]
    assert [str(sample.image_path) for sample in dataset.listed] == paths
    assert len(dataset.listed) == len(shown) + 2  # two of them by the link, too


def written(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(folder / name)


ALTERNATIVES = """
{images: [photos, images], labels: [masks, gt], image_suffix: [.jpg, .png], label_suffix: [.png, .tif], classes: [cat, dog]}
"""


@pytest.mark.parametrize(
    "names",
    [
        ["photos/a.jpg", "masks/a.png"],
        ["images/a.png", "gt/a.tif"],
        ["photos/new/a.png", "gt/new/a.png", "images/b.jpg", "images/a.png"],  # the first folder and suffix that are there
    ],
    ids=str,
)
def test_folders_and_suffixes_may_have_alternatives(names, tmp_path):
    written(tmp_path, names)
    (tmp_path / "mine.yaml").write_text(ALTERNATIVES)
    dataset = ob.load_dataset(tmp_path / "mine.yaml")
    (sample,) = dataset.samples
    assert [sample.image_path, sample.label_path] == [tmp_path / name for name in names[:2]]
    assert dataset.label(sample).shape == (4, 5)


def test_what_is_missing_names_the_alternatives(tmp_path):
    (tmp_path / "mine.yaml").write_text(ALTERNATIVES)
    for names in ([], ["images/a.png"], ["gt/b.png"]):
        written(tmp_path, names)
        with pytest.raises(ob.OvssError) as error:
            _ = ob.load_dataset(tmp_path / "mine.yaml").samples
    assert "gt/a.png" in str(error.value)
    for words in ("photos|images/<id>.jpg|.png", "masks|gt/<id>.png|.tif"):
        shutil.rmtree(tmp_path / "gt", ignore_errors=True)
        with pytest.raises(ob.OvssError) as error:
            ob.load_dataset(tmp_path / "mine.yaml")
        assert words in str(error.value)


@pytest.mark.parametrize("value", ["[]", "[[3]]", "{a: b}"])
def test_alternatives_are_a_list_of_texts(value, tmp_path):
    (tmp_path / "mine.yaml").write_text(ALTERNATIVES.replace("[photos, images]", value))
    with pytest.raises(ob.OvssError, match=r"images=.*: expected a text, or a list of alternatives"):
        ob.load_dataset(tmp_path / "mine.yaml")


CLUTTERED = ["._a.png", ".a.png", ".ipynb_checkpoints/a-checkpoint.png", "@eaDir/a.png", "b/__MACOSX/._a.png", "__MACOSX/a.png"]


@pytest.mark.parametrize("mmseg_class", [None, "BaseSegDataset"])
def test_what_systems_and_tools_leave_is_no_image(mmseg_class, tmp_path):
    """Wherever images and labels are listed."""
    for name in ["a.png", "b/c.png", *CLUTTERED, ".DS_Store", "Thumbs.db"]:
        for folder in ("images", "labels"):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(b"\0\5\26\7")
    for folder in ("images", "labels"):
        for name in ("a.png", "b/c.png"):
            Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) % 2).save(tmp_path / folder / name)
    mine = tmp_path / "mine.yaml"
    extra = f", mmseg: {mmseg_class}" if mmseg_class else ""
    mine.write_text(f"{{images: images, labels: labels, image_suffix: .png, label_suffix: .png, classes: [cat, dog]{extra}}}")
    assert [sample.id for sample in ob.load_dataset(mine).samples] == ["a", "b/c"]
    assert [finding.what for finding in check(mine, workers=1, quiet=True).findings] == []
    assert [path.name for path in files(tmp_path / "images", "**/*.png")] == ["a.png", "c.png"]
    assert data_files(tmp_path / "images") == [tmp_path / "images/a.png", tmp_path / "images/b"]


def test_a_list_that_is_no_text_is_named(own_voc):
    (own_voc / VOC / "ImageSets/Segmentation/val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ob.OvssError, match=r"val\.txt cannot be read"):
        _ = ob.load_dataset("voc21", own_voc).samples


def test_a_class_that_mmseg_does_not_have_is_named(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    text = "{images: images, labels: labels, image_suffix: .png, label_suffix: .png, mmseg: VOCDataset}"
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ob.OvssError, match=r"'VOCDataset'.*PascalVOCDataset"):
        ob.load_dataset(tmp_path / "mine.yaml")


def test_voc21_labels_equal_mmsegs(voc):
    theirs = mmseg.datasets.PascalVOCDataset(
        ann_file="ImageSets/Segmentation/val.txt",
        data_root=str(voc / VOC),
        data_prefix={"img_path": "JPEGImages", "seg_map_path": "SegmentationClass"},
        pipeline=[],
        test_mode=True,
        serialize_data=False,
    )
    load, dataset = LoadAnnotations(), ob.load_dataset("voc21", voc)
    assert dataset.classes == tuple(theirs.metainfo["classes"])
    assert len(theirs) == len(dataset.samples) == 10
    for info, sample in zip(theirs.data_list, dataset.samples, strict=True):
        assert np.array_equal(dataset.label(sample), load(info)["gt_seg_map"])


def test_voc20_ignores_the_background_and_counts_from_zero(voc):
    full, foreground = ob.load_dataset("voc21", voc), ob.load_dataset("voc20", voc)
    assert foreground.classes == full.classes[1:]
    assert (full.background, foreground.background) == (0, None)
    seen = set()
    for one, other in zip(full.samples, foreground.samples, strict=True):
        label = full.label(one).astype(int)
        expected = np.where((label == 0) | (label == 255), 255, label - 1)
        assert np.array_equal(foreground.label(other), expected)
        seen |= set(np.unique(expected))
    assert seen == {*range(20), 255}


def test_a_data_root_may_come_from_the_environment(voc, monkeypatch):
    monkeypatch.setenv("OVSS_DATA", str(voc))
    assert len(ob.load_dataset("voc21").samples) == 10
    monkeypatch.delenv("OVSS_DATA")
    with pytest.raises(ob.OvssError, match=r"(?s)data_root=DIR.*OVSS_DATA.*SegmentationClass"):
        ob.load_dataset("voc21")


@pytest.mark.parametrize("inside", ["VOCdevkit", VOC])
def test_the_data_root_may_be_a_folder_inside(inside, voc):
    assert len(ob.load_dataset("voc21", voc / inside).samples) == 10


@pytest.mark.parametrize("name", ["voc21", "voc20"])
@pytest.mark.parametrize("missing", ["", f"{VOC}/JPEGImages", f"{VOC}/SegmentationClass", f"{VOC}/ImageSets"])
def test_a_missing_folder_prints_the_tree(name, missing, own_voc):
    shutil.rmtree(own_voc / missing)
    with pytest.raises(ob.OvssError) as error:
        ob.load_dataset(name, own_voc)
    expected = (name, str(own_voc), VOC, "JPEGImages/<id>.jpg", "SegmentationClass/<id>.png", "val.txt", "datasets.py list")
    for part in expected:
        assert part in str(error.value)


@pytest.mark.parametrize("file", ["JPEGImages/2007_000039.jpg", "SegmentationClass/2007_000039.png"])
def test_a_missing_file_is_listed(file, own_voc):
    (own_voc / VOC / file).unlink()
    with pytest.raises(ob.OvssError, match=rf"(?s)lacks 1 of its files.*{file}") as error:
        _ = ob.load_dataset("voc21", own_voc).samples
    assert f"Expected:\n  {own_voc / VOC}/\n    JPEGImages/<id>.jpg" in str(error.value)


def test_an_empty_list_of_ids_is_an_error(own_voc):
    (own_voc / VOC / "ImageSets/Segmentation/val.txt").write_text("")
    with pytest.raises(ob.OvssError, match="lists no image"):
        _ = ob.load_dataset("voc21", own_voc).samples


@pytest.mark.parametrize(("name", "close"), [("voc12", "voc21"), ("demo_tuen", "demo_tune")])
def test_an_unknown_data_set_lists_close_names(name, close):
    with pytest.raises(ob.OvssError, match=rf"unknown dataset '{name}'.*{close}"):
        ob.load_dataset(name)


def labelled(root, label):
    """Replaces the first label, which may be of any kind, and reads it."""
    path = root / VOC / "SegmentationClass/2007_000033.png"
    if isinstance(label, bytes):
        path.write_bytes(label)
    else:
        label.save(path)
    dataset = ob.load_dataset("voc21", root)
    return dataset.label(dataset.samples[0])


@pytest.mark.parametrize(("name", "values"), [("voc21", r"\[21, 254\]"), ("voc20", r"\[21, 254\]")])
def test_values_outside_the_classes_are_refused(name, values, own_voc):
    label = np.zeros((40, 50), np.uint8)
    label[:5, :5], label[5:, :5], label[:, 40:] = 254, 21, 255
    write_label(own_voc / VOC / "SegmentationClass/2007_000033.png", label)
    dataset = ob.load_dataset(name, own_voc)
    with pytest.raises(ob.OvssError, match=rf"2007_000033\.png holds the values {values}"):
        dataset.label(dataset.samples[0])


def test_values_beyond_a_byte_are_refused(own_voc):
    label = np.zeros((40, 50), np.uint16)
    label[3:9] = 256 + 7  # would be class 7 if it were cut to a byte
    with pytest.raises(ob.OvssError, match=r"2007_000033\.png.*263"):
        labelled(own_voc, Image.fromarray(label))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_labels_with_several_channels_are_refused(mode, own_voc):
    picture = Image.fromarray(np.zeros((40, 50), np.uint8)).convert(mode)
    with pytest.raises(ob.OvssError, match=r"2007_000033\.png has \d channels"):
        labelled(own_voc, picture)


@pytest.mark.parametrize("keep", [0, 0.02, 0.2, 0.5, 0.9, "text"])
def test_unreadable_labels_are_refused(keep, own_voc):
    data = (own_voc / VOC / "SegmentationClass/2007_000033.png").read_bytes()
    with pytest.raises(ob.OvssError, match=r"2007_000033\.png cannot be read"):
        labelled(own_voc, b"not a label" if keep == "text" else data[: int(keep * len(data))])


@pytest.mark.parametrize("size", [(40, 1), (1, 40), (1, 1)], ids=str)
def test_labels_one_pixel_wide_are_read(size, own_voc):
    label = np.full(size, 5, np.uint8)
    read = labelled(own_voc, Image.fromarray(label))
    assert read.shape == size
    assert (read == 5).all()


def test_a_label_of_another_size_than_its_image_is_refused(own_voc):
    dataset = ob.load_dataset("voc21", own_voc)
    height, width = dataset.label(dataset.samples[0]).shape
    with pytest.raises(ob.OvssError, match=rf"2007_000033\.png is {height} x {width} .* {width} x {height}"):
        dataset.label(dataset.samples[0], (width, height))


def test_select_spreads_a_limit_evenly(voc):
    dataset = ob.load_dataset("voc21", voc)
    everything = dataset.samples
    assert dataset.select() == dataset.select(10) == dataset.select(99) == everything
    assert dataset.select(1) == everything[:1]
    assert dataset.select(4) == [everything[i] for i in (0, 3, 6, 9)]
    for limit in (0, -2):
        with pytest.raises(ob.OvssError, match=f"limit={limit}"):
            dataset.select(limit)


def test_select_takes_ids_in_the_order_given(voc):
    dataset = ob.load_dataset("voc21", voc)
    chosen = [dataset.samples[5].id, dataset.samples[2].id]
    assert [sample.id for sample in dataset.select(ids=chosen)] == chosen
    with pytest.raises(ob.OvssError, match=r"'2007_00033'.*2007_000033"):
        dataset.select(ids=["2007_00033"])


def test_the_fingerprint_follows_ids_and_labels(own_voc):
    first = ob.load_dataset("voc21", own_voc).fingerprint
    assert ob.load_dataset("voc21", own_voc).fingerprint == first
    assert ob.load_dataset("voc20", own_voc).fingerprint != first
    write_label(own_voc / VOC / "SegmentationClass/2007_000033.png", np.zeros((40, 50), np.uint8))
    assert ob.load_dataset("voc21", own_voc).fingerprint != first


def test_drawing_is_deterministic(tmp_path):
    digests = []
    for name, seed in (("a", 2026), ("b", 2026), ("c", 7)):
        (tmp_path / name).mkdir()
        draw_demo(tmp_path / name, seed, 4)
        files = sorted(path for path in (tmp_path / name).rglob("*.png"))
        assert len(files) == 8
        digests.append(digest(*(path.read_bytes() for path in files)))
    assert digests[0] == digests[1] != digests[2]


def test_demo_has_every_feature_of_a_data_set():
    demo = ob.load_dataset("demo")
    labels = [demo.label(sample) for sample in demo.samples]
    pixels = np.bincount(np.concatenate([label.ravel() for label in labels]), minlength=256)
    assert len(demo.classes) == 37
    assert len(set(demo.classes)) == 37
    assert (pixels[:37] > 0).all()
    assert all((label == 255).any() for label in labels)
    assert demo.background == 0
    assert len(demo.unseen) >= 36 / 6
    assert all(120 <= label.shape[0] <= 160 and 168 <= label.shape[1] <= 208 for label in labels)
    groups = Counter(demo.vocabulary("demo", "photo").group)
    assert min(groups.values()) > 1


def test_demo_scenes_are_drawn_once(cache):
    first = ob.load_dataset("demo")
    before = [path.stat().st_mtime_ns for path in sorted(first.root.rglob("*.png"))]
    again = ob.load_dataset("demo")
    assert again.root == first.root
    assert str(again.root).startswith(cache)
    assert [path.stat().st_mtime_ns for path in sorted(again.root.rglob("*.png"))] == before
