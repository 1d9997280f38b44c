"""Every mistake of `CHECKS`, made in a miniature: found, named with its file, and no other kind beside it."""

import hashlib
import json
import shutil
import struct
import warnings
import zlib
from functools import cache

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import ovss_bench as ob
from miniatures import MINIATURES
from ovss_bench.config.registry import DATASETS
from ovss_bench.datasets.check.manifest import view
from ovss_bench.datasets.check.run import CHECKS, check
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.prepare.run import prepare

COUNT = "number of images"  # a miniature has fewer than are expected


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """`intact(name)`: the data root with the miniature, prepared, not to be written to."""

    @cache
    def of(name):
        root = tmp_path_factory.mktemp(name)
        MINIATURES[name](root)
        if "prepare" in dataset_config(name)[1]:
            prepare(name, root, workers=1, quiet=True)
        return root

    return of


@pytest.fixture
def copied(intact, tmp_path):
    """`copied(name)`: the data set, in a copy that the test may damage."""

    def of(name):
        shutil.copytree(intact(name), tmp_path, dirs_exist_ok=True)
        return ob.load_dataset(name, tmp_path)

    return of


def examined(dataset, root=None, **options):
    return check(dataset.name, root or data_root(dataset), workers=1, quiet=True, **options)


def data_root(dataset):
    """The folder from which the data set's folder is found."""
    first = next(folder for folder in dataset.config["folders"] if dataset.root.as_posix().endswith(folder) or folder == ".")
    return dataset.root if first == "." else dataset.root.parents[len(first.split("/")) - 1]


def altered(path, change):
    """Saves change(label) over a label map, in its own format."""
    with Image.open(path) as image:
        label, palette = np.array(image), image.getpalette()
    picture = change(label)
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    if palette and picture.mode == "L":
        picture.putpalette(palette)
    picture.save(path)


def label_paths(dataset):
    return [sample.label_path for sample in dataset.samples]


def test_every_kind_has_a_name_of_its_own():
    assert len({entry.kind for entry in CHECKS}) == len(CHECKS)


@pytest.mark.parametrize("name", MINIATURES)
def test_an_intact_data_set_has_no_findings(name, intact):
    report = check(name, intact(name), workers=1, quiet=True)
    assert [finding for finding in report.findings if finding.kind != COUNT] == []
    dataset = ob.load_dataset(name, intact(name))
    labels = [dataset.label(sample) for sample in dataset.samples]
    values, pixels = np.unique(np.concatenate([label.ravel() for label in labels]), return_counts=True)
    assert report.histogram == dict(zip(values.tolist(), pixels.tolist(), strict=True))
    assert report.classes_present == [value for value in values.tolist() if value != dataset.ignore_index]
    assert (report.images, report.root) == (len(dataset.samples), dataset.root)
    assert report.fingerprint == dataset.fingerprint
    listed = "".join(f"{name}\n" for name in sorted(sample.id for sample in dataset.samples))
    assert report.ids_digest == hashlib.sha256(listed.encode()).hexdigest()


def test_the_demo_has_no_findings():
    report = check("demo", quiet=True)
    assert (report.findings, report.images) == ([], 100)


# Each mistake: the data set, what is done to its files (it gives the files that must be named, None for any), words of what is
# said about them, words of the hint.
MISTAKES = {}


def mistake(kind, name, *said, hint):
    def register(make):
        MISTAKES[f"{kind}: {make.__name__}"] = (kind, name, make, said, hint)
        return make

    return register


@mistake("ids listed twice", "voc21", "2007_000033", hint="once")
def a_line_twice(dataset):
    path = dataset.root / dataset.config["ids"]
    path.write_text(path.read_text() + "2007_000033\n")
    return [path]


@mistake("missing ids", "voc21", "2012_000001 is in val.txt", hint="list")
def an_id_without_files(dataset):
    path = dataset.root / dataset.config["ids"]
    path.write_text(path.read_text() + "2012_000001\n")
    return [dataset.root / "JPEGImages/2012_000001.jpg"]


@mistake("label without image", "voc21", "there is no image JPEGImages/2007_000033.jpg", hint="JPEGImages/<id>.jpg")
def an_image_is_not_there(dataset):
    dataset.samples[0].image_path.unlink()
    return [dataset.samples[0].label_path]


@mistake("label without image", "ade20k", "there is no image", hint="images/validation/<id>.jpg")
def an_image_of_no_list_is_not_there(dataset):
    dataset.samples[0].image_path.unlink()
    return [dataset.samples[0].label_path]


@mistake("label without image", "ade20k", "there is no image", "there is", ".JPEG", hint="images/validation/<id>.jpg")
def an_image_of_another_suffix(dataset):
    path = dataset.samples[1].image_path
    path.rename(path.with_suffix(".JPEG"))
    return [dataset.samples[1].label_path]


@mistake("image without label", "ade20k", "there is no label annotations/validation/", hint="annotations/validation/<id>.png")
def a_label_is_not_there(dataset):
    dataset.samples[1].label_path.unlink()
    return [dataset.samples[1].image_path]


@mistake("image without label", "ade20k", "but there is", ".tif", hint="annotations/validation/<id>.png")
def labels_of_another_suffix(dataset):
    for path in label_paths(dataset):
        path.rename(path.with_suffix(".tif"))
    return [sample.image_path for sample in dataset.samples]


@mistake("image without label", "voc21", "but there is SegmentationClass/new/2007_000033.png", hint="move")
def a_label_in_another_folder(dataset):
    path = dataset.samples[0].label_path
    (path.parent / "new").mkdir()
    path.rename(path.parent / "new" / path.name)
    return [dataset.samples[0].image_path]


@mistake("ids of another split", "ade20k", "ADE_train_00000001", hint="papers report on")
def an_image_of_the_training_split(dataset):
    sample, paths = dataset.samples[0], []
    for path in (sample.image_path, sample.label_path):
        paths.append(path.with_stem("ADE_train_00000001"))
        path.rename(paths[-1])
    return paths[:1]


@mistake("list of another split", "voc21", "1 of 1 ids are in train.txt", "2007_000032", hint="official list")
def the_list_of_the_training_split(dataset):
    folder = (dataset.root / dataset.config["ids"]).parent
    shutil.copy(folder / "train.txt", folder / "val.txt")
    return [folder / "val.txt"]


@mistake("list of another split", "voc21", "1 of 5 ids are in train.txt", "2007_000032", hint="official list")
def training_and_validation_together(dataset):
    folder = (dataset.root / dataset.config["ids"]).parent
    (folder / "trainval.txt").write_text((folder / "train.txt").read_text() + (folder / "val.txt").read_text())
    shutil.copy(folder / "trainval.txt", folder / "val.txt")
    return [folder / "val.txt"]


@mistake("unreadable images", "voc21", hint="copy or download")
def images_empty_truncated_and_none(dataset):
    paths = [sample.image_path for sample in dataset.samples[:3]]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:-900])
    paths[2].write_text("<html>not found</html>")
    return paths


@mistake("unreadable images", "voc21", "16 bits a band, but 99 %", hint="save them with 8 ")
def an_image_of_12_bits(dataset):
    path = dataset.samples[0].image_path
    Image.fromarray(np.array(Image.open(path).convert("L")).astype(np.uint16) * 16).save(path, "PNG")
    return [path]


@mistake("unreadable labels", "voc21", "cannot be read", "bytes", hint="convert them again")
def labels_empty_truncated_and_none(dataset):
    paths = label_paths(dataset)[:3]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:-300])
    paths[2].write_text("<html>not found</html>")
    return paths


@mistake("unreadable labels", "ade847", "cannot be read", hint="convert them again")
def labels_of_16_bits_truncated(dataset):
    paths = label_paths(dataset)[:1]
    paths[0].write_bytes(paths[0].read_bytes()[:300])
    return paths


@mistake("labels saved as JPEG", "voc21", "a JPEG file", hint="to PNG")
def jpeg_under_the_name_of_png(dataset):
    paths = label_paths(dataset)[1:3]
    for path in paths:
        Image.fromarray(np.array(Image.open(path))).save(path, "JPEG")
    return paths


@mistake("labels saved as JPEG", "voc21", "a JPEG file", hint="to PNG")
def colours_as_jpeg(dataset):
    path = label_paths(dataset)[0]
    Image.open(path).convert("RGB").save(path, "JPEG")
    return [path]


def through_jpeg(quality):
    def change(label):
        Image.fromarray(label).save("label.jpg", quality=quality)
        return np.array(Image.open("label.jpg"))

    return change


@pytest.mark.parametrize("quality", [60, 75, 95])
@pytest.mark.parametrize("name", ["voc21", "voc20", "cityscapes", "ade20k", "coco_stuff"])
def test_a_png_that_was_a_jpeg_is_recognised(name, quality, copied, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = copied(name)
    paths = label_paths(dataset)[:2]
    for path in paths:
        altered(path, through_jpeg(quality))
    findings = [finding for finding in examined(dataset).findings if finding.kind != COUNT]
    assert {finding.kind for finding in findings} == {"labels saved as JPEG"}
    assert [finding.file for finding in findings] == paths
    assert "single pixels" in findings[0].what


@mistake("colours instead of class numbers", "voc21", "have colours of the data set's palette", hint="by_colour")
def a_palette_file_converted_to_colours(dataset):
    path = label_paths(dataset)[0]
    Image.open(path).convert("RGB").save(path)
    return [path]


@mistake("several channels", "voc21", "all channels are equal", hint="one channel")
def numbers_in_three_channels(dataset):
    path = label_paths(dataset)[0]
    altered(path, lambda label: np.stack([label] * 3, axis=-1))
    return [path]


@mistake("several channels", "ade20k", "colours such as (7, 7, 9)", hint="one channel")
def unknown_colours(dataset):
    path = label_paths(dataset)[0]
    altered(path, lambda label: np.full((*label.shape, 3), (7, 7, 9), np.uint8))
    return [path]


@mistake("16 bits saved in 8", "ade847", "8 bits a pixel, for 847 classes", hint="16 bits")
def one_map_of_8_bits(dataset):
    path = label_paths(dataset)[0]
    altered(path, lambda label: label.astype(np.uint8))
    return [path]


@mistake("16 bits saved in 8", "ade847", "holds 255, and no label holds more", hint="16 bits")
def maps_that_were_of_8_bits(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: label.astype(np.uint8).astype(np.uint16))
    return [path for path in label_paths(dataset) if 255 in np.array(Image.open(path))]


def lowered(label):
    return np.where((label == 0) | (label == 255), 255, label - 1).astype(np.uint8)


def raised(label):
    return np.where(label == 255, 0, label + 1).astype(np.uint8)


@mistake("zero label reduced twice", "ade20k", "holds 255, and no label holds 150", hint="official archive")
def ade_lowered(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: lowered(label))
    return label_paths(dataset)


@mistake("zero label reduced twice", "voc20", "holds 255, and no label holds 20", hint="official archive")
def voc_lowered(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: lowered(label))
    return label_paths(dataset)


@mistake("zero label not reduced", "cityscapes", "holds 19, and no label holds 255", hint="v - 1")
def counted_from_one(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: raised(label))
    return [path for path in label_paths(dataset) if 19 in np.array(Image.open(path))]


@mistake("values outside the classes", "voc21", "21 (", "254 (", "%", hint="Classes are 0 to 20, ignored pixels 255")
def foreign_values(dataset):
    path = label_paths(dataset)[2]

    def change(label):
        label[:20], label[20:30] = 21, 254
        return label

    altered(path, change)
    return [path]


@mistake("values outside the classes", "ade847", "847 (", hint="Classes are 0 to 846, ignored pixels 65535")
def foreign_values_of_16_bits(dataset):
    path = label_paths(dataset)[0]

    def change(label):
        label[:20] = 847
        return label

    altered(path, change)
    return [path]


@mistake("ignored pixels missing", "voc21", "no label has ignored pixels", hint="must be 255")
def outlines_became_background(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: np.where(label == 255, 0, label))
    return [dataset.root / "SegmentationClass"]


@mistake("ignored pixels that should not be", "coco_object", "of the pixels are ignored (255)", hint="must be a class")
def unlabelled_pixels_ignored(dataset):
    path = label_paths(dataset)[0]

    def change(label):
        label[:10] = 255
        return label

    altered(path, change)
    return [path]


@mistake(
    "ignored pixels that should not be",
    "whu_aerial",
    "of the pixels are ignored (255)",
    hint="the object is 255, and must be 1",
)
def masks_of_0_and_255(dataset):
    path = label_paths(dataset)[0]
    altered(path, lambda label: label * 255)
    return [path]


def packed_png(depth, values):
    """A PNG file of grey of 1, 2 or 4 bits a pixel."""
    shifts = np.arange(8 - depth, -1, -depth)
    groups = np.pad(values, ((0, 0), (0, -values.shape[1] % len(shifts)))).reshape(len(values), -1, len(shifts))
    rows = (groups.astype(int) << shifts).sum(-1).astype(np.uint8)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", values.shape[1], len(values), depth, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@mistake("grey of fewer than 8 bits", "isaid", "4 bits of grey", "is read as", hint="8 bits a pixel, or with a palette")
def four_bits_of_grey(dataset):
    paths = [path for path in label_paths(dataset) if np.array(Image.open(path)).max() < 16][:2]
    for path in paths:
        path.write_bytes(packed_png(4, np.array(Image.open(path))))
    return paths


@mistake("grey of fewer than 8 bits", "udd5", "2 bits of grey", "3 is read as 255", hint="8 bits a pixel, or with a palette")
def two_bits_of_grey(dataset):
    path = label_paths(dataset)[0]
    path.write_bytes(packed_png(2, np.array(Image.open(path)) % 4))
    return [path]


def as_the_known_converters_write(path):
    """Those of iSAID and UAVid: 1 bit a pixel with a palette of one colour (mmsegmentation, issue 1504)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.fromarray(np.array(Image.open(path)), mode="P").save(path)


@mistake("too few bits for the classes", "isaid", "1 bits a pixel", hint="newer versions of Pillow")
def all_labels_of_one_bit(dataset):
    for path in label_paths(dataset):
        as_the_known_converters_write(path)
    return label_paths(dataset)


@mistake(
    "too few bits for the classes", "uavid", "1 bits a pixel, and 1 is not in the palette", hint="newer versions of Pillow"
)
def one_label_of_one_bit(dataset):
    path = label_paths(dataset)[0]
    as_the_known_converters_write(path)
    return [path]


@mistake("too few bits for the classes", "udd5", "1 bits a pixel, as in all label maps, for 5 classes", hint="Pillow")
def all_labels_of_one_bit_of_grey(dataset):
    for path in label_paths(dataset):
        Image.fromarray(np.array(Image.open(path)) > 0).save(path)
    return label_paths(dataset)


@mistake("palette of another order", "voc21", "has the colour of", "in its palette", hint="contradict each other")
def classes_in_another_order_with_their_colours(dataset):
    """Every class number one higher, and so are the colours; 0 and 255 stay."""
    order = np.array([0, *range(2, 21), 1, *range(21, 256)], np.uint8)
    for path in label_paths(dataset):
        with Image.open(path) as image:
            label, palette = np.array(image), np.array(image.getpalette()).reshape(-1, 3)
        moved = palette.copy()
        moved[order[: len(palette)]] = palette
        picture = Image.fromarray(order[label])
        picture.putpalette(moved.astype(np.uint8).tobytes())
        picture.save(path)
    return label_paths(dataset)


@mistake("masks of 0 and 255", "whu_aerial", "no label map holds anything but 0 and 255", hint="Divide")
def all_masks_of_0_and_255(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: label * 255)
    return label_paths(dataset)


@mistake("everything ignored", "voc21", "all pixels of all label maps are ignored (255)", hint="encoding")
def empty_labels(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: np.full_like(label, 255))
    return [dataset.root / dataset.config["labels"]]


@mistake("everything ignored", "ade20k", "all pixels of all label maps are ignored (255)", hint="encoding")
def labels_of_zeros_that_are_reduced(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: np.zeros_like(label))
    return [dataset.root / dataset.config["labels"]]


@mistake("everything ignored", "ade20k", "all pixels of all label maps are ignored (255)", hint="encoding")
def empty_labels_of_a_set_that_is_reduced(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: np.full_like(label, 255))
    return [dataset.root / dataset.config["labels"]]


@mistake("hardly any classes", "cryonuseg", "1 of 2 classes occur in 30 images", hint="a converter has probably cut them")
def masks_without_an_object(dataset):
    """Of a whole set: of a part, it says nothing."""
    for path in label_paths(dataset):
        altered(path, lambda label: np.zeros_like(label))
    first, *_ = dataset.samples
    for number in range(len(dataset.samples), 30):
        for path in (first.image_path, first.label_path):
            shutil.copy(path, path.with_stem(f"{path.stem}_{number}"))
    return [dataset.root / dataset.config["labels"]]


@mistake("one class nearly everywhere", "isaid", "of the pixels that are not ignored are 1 ship", hint="lost in a conversion")
def all_that_is_something_became_ships(dataset):
    for path in label_paths(dataset):
        altered(path, lambda label: np.where(label == 255, 255, 1).astype(np.uint8))
    return [dataset.root / dataset.config["labels"]]


@mistake("labels of another size", "voc21", "pixels (height x width), its image", hint="original size")
def a_row_is_missing(dataset):
    path = label_paths(dataset)[0]
    altered(path, lambda label: label[:-1])
    return [path]


@mistake("labels of another size", "voc21", "pixels (height x width), its image", hint="not turned")
def a_label_turned(dataset):
    path = label_paths(dataset)[0]
    altered(path, lambda label: np.ascontiguousarray(label.T))
    return [path]


def test_sizes_are_said_in_full(copied):
    dataset = copied("voc21")
    height, width = dataset.label(dataset.samples[0]).shape
    a_label_turned(dataset)
    assert examined(dataset).findings[-1].what == f"{width} x {height} pixels (height x width), its image {height} x {width}"


@pytest.mark.parametrize(("kind", "name", "make", "said", "hint"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_found_and_named(kind, name, make, said, hint, copied):
    dataset = copied(name)
    files = make(dataset)
    report = examined(dataset)
    findings = [finding for finding in report.findings if finding.kind != COUNT]
    assert {finding.kind for finding in findings} == {kind}, findings
    assert [finding.file for finding in findings] == files
    for finding in findings:
        assert hint in finding.hint, finding.hint
        assert "{" not in finding.hint
    for words in said:
        assert all(words in finding.what for finding in findings), findings
    if "prepare" in dataset.config:
        command = f"prepare {name} data_root={data_root(dataset)} rerun=true"
        wanted = "{again}" in next(entry.hint for entry in CHECKS if entry.kind == kind)
        assert all((command in finding.hint) == wanted for finding in findings)


def test_every_kind_is_made_here():
    assert {kind for kind, *_ in MISTAKES.values()} | {COUNT} == {entry.kind for entry in CHECKS}


@pytest.fixture
def own(tmp_path):
    """A data set of one's own of three images: its YAML file and its folder."""
    rng = np.random.RandomState(0)
    for name in ("a", "b", "c"):
        for kind, suffix in (("images", ".png"), ("labels", ".png")):
            (tmp_path / kind).mkdir(exist_ok=True)
            shape = (20, 30, 3) if kind == "images" else (20, 30)
            Image.fromarray(rng.randint(0, 2, shape).astype(np.uint8).repeat(2, 0)).save(tmp_path / kind / f"{name}{suffix}")
    return tmp_path


def described(folder, **entries):
    lines = {"images": "images", "labels": "labels", "image_suffix": ".png", "label_suffix": ".png", "classes": "[sky, grass]"}
    path = folder / "mine.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in (lines | entries).items()))
    return path


@pytest.mark.parametrize("number", [2, 4])
def test_the_number_of_images_is_compared(number, own):
    report = check(described(own, expected_images=number), quiet=True)
    (finding,) = report.findings
    assert (finding.kind, finding.file) == (COUNT, own / "images")
    assert f"3 images are listed, {number} are expected" in finding.what
    assert "of another split" in finding.hint


def test_a_number_that_is_that_of_another_split_says_so(own):
    (own / "val.txt").write_text("a\nb\n")
    (own / "test.txt").write_text("x\ny\n")
    report = check(described(own, expected_images=3, ids="val.txt", check="{splits: {train: 2, trainval: 5}}"), quiet=True)
    (finding,) = report.findings
    assert finding.what.endswith("2 is the number of train and of test.txt")
    assert finding.file == own / "val.txt"


def masks_of(folder, value, share):
    """Masks of a data set of one's own in which a share of the pixels has this value, and the rest 0."""
    for path in (folder / "labels").glob("*.png"):
        label = np.zeros((40, 30), np.uint8)
        label[: round(40 * share)] = value
        Image.fromarray(label).save(path)


@pytest.mark.parametrize(
    ("value", "share", "entries", "noted"),
    [
        (1, 0.05, {}, "95.0% of the pixels that are not ignored are 0 sky"),
        (1, 0.05, {"background": 0}, "95.0% of the pixels that are not ignored are 0 sky"),
        (1, 0.05, {"background": 0, "classes": "[a, b, c, d, e, f]"}, "are 0 a"),
        (1, 0.95, {}, "95.0% of the pixels that are not ignored are 1 grass"),
        (1, 0.95, {"classes": "[a, b, c]"}, "are 1 b"),
        (1, 0.5, {}, None),
        (2, 0.5, {"background": 0, "classes": "[a, b, c, d, e, f]"}, None),
    ],
)
def test_one_frequent_class_is_a_note_where_that_is_usual(value, share, entries, noted, own):
    masks_of(own, value, share)
    report = check(described(own, **entries), quiet=True)
    assert report.findings == []
    shown = printed(report)
    assert "nothing is wrong" in shown
    assert (f"note: {report.notes[0]}" in shown and noted in shown) if noted else report.notes == []


@pytest.mark.parametrize(
    ("value", "share", "entries", "kind"),
    [
        (1, 0.95, {"classes": "[a, b, c, d]"}, "one class nearly everywhere"),
        (1, 0, {}, "hardly any classes"),
        (
            1,
            0.5,
            {"classes": f"[{', '.join(f'c{number}' for number in range(21))}]", "expected_images": 3},
            "hardly any classes",
        ),
        (255, 0.5, {}, "masks of 0 and 255"),
        (255, 0.5, {"background": 0, "classes": "[a, b, c]"}, "masks of 0 and 255"),
        (255, 1, {}, "everything ignored"),
    ],
)
def test_sets_of_lost_classes_are_found_in_one_s_own_data(value, share, entries, kind, own):
    masks_of(own, value, share)
    report = check(described(own, **entries), quiet=True)
    assert {finding.kind for finding in report.findings} == {kind}
    assert "nothing is wrong" not in printed(report)


def test_files_of_few_bits_that_lose_nothing_are_no_mistake(own):
    """As programs write that make PNG files smaller: as many bits as a file needs, with a palette of as many colours."""
    colours = bytes(range(60))
    for path, number in zip(sorted((own / "labels").glob("*.png")), (2, 4, 20), strict=True):
        picture = Image.fromarray((np.arange(40, dtype=np.uint8) // 2 % number)[:, None].repeat(30, 1))
        picture.putpalette(colours[: 3 * number])
        picture.save(path)
    names = ", ".join(f"c{number}" for number in range(20))
    assert [path.read_bytes()[24] for path in sorted((own / "labels").glob("*"))] == [1, 2, 8]
    report = check(described(own, classes=f"[{names}]"), quiet=True)
    assert report.findings == []


def test_a_folder_of_other_suffixes_lists_no_image(own):
    report = check(described(own, image_suffix=".jpg"), quiet=True)
    assert [(finding.kind, finding.file) for finding in report.findings] == [
        (COUNT, own / "images"),
        *(("label without image", own / "labels" / f"{name}.png") for name in "abc"),
    ]
    assert report.findings[1].what == "there is no image images/a.jpg; but there is a.png"
    assert (report.images, report.fingerprint, report.histogram) == (0, None, {})


def test_ids_may_be_folders_and_names_of_one_s_own_data_set(own):
    assert check(described(own), quiet=True).findings == []
    for name in "abc":
        (own / "images" / "deep").mkdir(exist_ok=True)
        (own / "images" / f"{name}.png").rename(own / "images" / "deep" / f"{name}.png")
    report = check(described(own), quiet=True)
    assert {finding.kind for finding in report.findings} == {"label without image", "image without label"}
    assert any("but there is labels/a.png" in finding.what for finding in report.findings)


def test_a_class_may_read_its_labels_in_its_own_way(own):
    @DATASETS.register_module(name="doubled")
    class Doubled(ob.SegDataset):
        def label(self, sample, size=None):
            return super().label(sample, size) * 2

    try:
        report = check(described(own, loader="doubled", classes="[sky, grass, road]"), quiet=True)
    finally:
        DATASETS.module_dict.pop("doubled")
    assert report.findings == []
    assert report.classes_present == [0, 2]


def test_classes_that_never_occur_are_a_note(own):
    report = check(described(own, classes="[sky, grass, road]"), quiet=True)
    assert report.findings == []
    shown = printed(report)
    assert "note: 1 of 3 classes never occur: 2 road" in shown
    assert "nothing is wrong" in shown


def printed(report):
    console = Console(width=200, soft_wrap=True)
    with console.capture() as capture:
        console.print(view(report))
    return capture.get()


def test_many_findings_show_five_files_and_one_hint(copied):
    dataset = copied("isaid")
    assert len(dataset.samples) == 5
    for path in [*label_paths(dataset), *(sample.image_path for sample in dataset.samples)]:
        path.write_bytes(b"")
    shown = printed(examined(dataset))
    assert shown.count("unreadable labels: 5") == 1
    assert shown.count("copy or convert") == 1
    assert all(f"  {path}: " in shown for path in label_paths(dataset))
    assert "and 1 more" not in shown
    assert "findings: 11" in shown
    for path in dataset.samples[0].label_path.parent.glob("*_RGB.png"):
        shutil.copy(path, path.with_name("Z" + path.name))
    assert "label without image: 5" in printed(examined(dataset))


@pytest.fixture
def manifest(intact, tmp_path):
    file = tmp_path / "manifest.json"
    check("voc21", intact("voc21"), out=file, quiet=True)
    return file


def test_a_manifest_holds_what_two_users_compare(manifest, intact):
    dataset = ob.load_dataset("voc21", intact("voc21"))
    content = json.loads(manifest.read_text())
    assert content["dataset"] == "voc21"
    assert content["images"] == 4
    assert content["fingerprint"] == dataset.fingerprint
    assert list(content["labels"]) == [sample.id for sample in dataset.samples]
    assert sum(content["histogram"].values()) == sum(dataset.label(sample).size for sample in dataset.samples)
    assert {finding.kind for finding in check("voc21", intact("voc21"), against=manifest, quiet=True).findings} == {COUNT}


def test_differences_from_a_manifest_are_findings(manifest, copied, monkeypatch):
    dataset = copied("voc21")
    first, second = dataset.samples[0], dataset.samples[1]

    def change(label):
        label[label == label[0, 0]] = 20
        return label

    altered(first.label_path, change)
    ids = dataset.root / dataset.config["ids"]
    ids.write_text(ids.read_text().replace(f"{second.id}\n", "2007_000032\n"))
    (ids.parent / "train.txt").unlink()
    found = {}
    for finding in examined(dataset, against=manifest).findings:
        found.setdefault(finding.kind, []).append((finding.file, finding.what))
    assert found["other ids than in the manifest"] == [
        (dataset.root / "SegmentationClass/2007_000032.png", "2007_000032 is only here"),
        (None, f"{second.id} is only in the manifest"),
    ]
    assert [file for file, _ in found["other labels than in the manifest"]] == [first.label_path]
    classes = [what for _, what in found["other pixels of a class than in the manifest"]]
    assert any(what.startswith("20 tvmonitor: ") for what in classes)
    assert "other bytes than in the manifest" not in found


def test_equal_labels_of_other_bytes_are_told_apart(manifest, copied):
    dataset = copied("voc21")
    path = dataset.samples[0].label_path
    with Image.open(path) as image:
        image.load()
        image.save(path, compress_level=1)
    findings = [finding for finding in examined(dataset, against=manifest).findings if finding.kind != COUNT]
    assert [finding.kind for finding in findings] == ["other bytes than in the manifest"]


OTHER = '{"dataset": "voc20", "histogram": {}, "labels": {}, "fingerprint": ""}'


@pytest.mark.parametrize("content", [None, "", "[]", "{}", OTHER, OTHER.replace("{}", "[]")])
def test_a_bad_manifest_is_an_error(content, tmp_path, intact):
    file = tmp_path / "manifest.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ob.OvssError, match=r"manifest\.json.*(cannot be read|no manifest|is of voc20, not of voc21)"):
        check("voc21", intact("voc21"), against=file, quiet=True)


def test_data_that_are_not_there_are_an_error(tmp_path):
    with pytest.raises(ob.OvssError, match="voc21"):
        check("voc21", tmp_path, quiet=True)


def test_processes_give_the_same_report(copied):
    dataset = copied("voc21")
    dataset.samples[0].label_path.write_bytes(b"")
    reports = [check("voc21", data_root(dataset), workers=workers, quiet=True) for workers in (1, 3)]
    assert reports[0] == reports[1]
