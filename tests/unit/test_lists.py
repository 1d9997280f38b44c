"""Lists as people have them: what is unambiguous is read, all else is refused with its line; and every image counts once."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

import ovss_bench as ob
from miniatures.drawing import encoded, write_files
from ovss_bench.datasets.check.run import check
from ovss_bench.datasets.prepare.archives import Archive, extract
from ovss_bench.datasets.prepare.conversion import CONVERTERS, Task
from ovss_bench.datasets.prepare.run import prepare
from ovss_bench.evaluation.confusion import confusion
from ovss_bench.files import below, digest, read_lines, read_yaml
from ovss_bench.progress import Progress
from ovss_bench.runs.evaluate import make_job, run_jobs
from ovss_bench.runs.merge import merge, part_folders
from ovss_bench.runs.precompute import index_regions, precompute_regions
from ovss_bench.runs.store import RunStore, read_counts
from ovss_bench.runs.world import Shard
from ovss_bench.vocabulary import read_names

IDS = ["a", "b", "sub/c", "d 1", "e#2", "f.jpg"]
CONFIG = {
    "images": "photos",
    "labels": "masks",
    "image_suffix": ".jpg",
    "label_suffix": "_m.png",
    "classes": ["ground", "thing"],
    "ids": "val.txt",
}
FAST = {"resize": "none", "window": 48, "stride": 48, "pamr_steps": 0}


@pytest.fixture
def own(tmp_path):
    """A data set of one's own; `own(text)` loads it with that list, and keywords change its configuration."""
    noise = np.random.RandomState(0).randint(0, 256, (48, 48, 3), np.uint8)
    for number, name in enumerate(IDS):
        label = encoded((noise[..., 0] > 99 + number).astype(np.uint8), "PNG")
        write_files(tmp_path, {f"photos/{name}.jpg": encoded(noise + np.uint8(number), "JPEG"), f"masks/{name}_m.png": label})

    def load(text, **changes):
        (tmp_path / "val.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        (tmp_path / "mine.yaml").write_text(json.dumps(CONFIG | changes))
        return ob.load_dataset(tmp_path / "mine.yaml")

    return load


READ = {
    "plain": ("a\nb\n", ["a", "b"]),
    "mark": (b"\xef\xbb\xbfa\nb\n", ["a", "b"]),
    "two files put together": ("\ufeffa\n\ufeffb\n".encode(), ["a", "b"]),
    "UTF-16": ("a\nb\n".encode("utf-16"), ["a", "b"]),
    "UTF-16, other order": (b"\xfe\xff" + "a\nb\n".encode("utf-16-be"), ["a", "b"]),
    "Windows": ("a\r\nb\r\n", ["a", "b"]),
    "white space, empty lines": ("\n  a \t\n\n\nb\u00a0\n \n", ["a", "b"]),
    "no end": ("a\nb", ["a", "b"]),
    "comments": ("# val\na  # the first\n#b\nb\n", ["a", "b"]),
    "suffixes of images": ("a.jpg\nsub/c.jpg\n", ["a", "sub/c"]),
    "suffixes of labels": ("a_m.png\nsub/c_m.png\n", ["a", "sub/c"]),
    "with the folder": ("photos/a.jpg\nphotos/sub/c.jpg\n", ["a", "sub/c"]),
    "columns": ("photos/a.jpg masks/a_m.png\nphotos/sub/c.jpg\tmasks/sub/c_m.png\n", ["a", "sub/c"]),
    "columns with commas": ("photos/a.jpg,masks/a_m.png\n", ["a"]),
    "columns of DeepLab": ("/photos/a.jpg /masks/a_m.png\n", ["a"]),
    "columns without folders": ("a.jpg a_m.png\n", ["a"]),
    "dots": ("./a\nsub//c\n", ["a", "sub/c"]),
    "names that look like something else": ("d 1\ne#2\nf.jpg\n", ["d 1", "e#2", "f.jpg"]),
}


@pytest.mark.parametrize("case", READ)
def test_lists_as_people_have_them(case, own):
    text, ids = READ[case]
    for options in ({}, {"mmseg": "PascalVOCDataset", "classes": None}):
        assert [sample.id for sample in own(text, **options).samples] == ids


WRONG = {
    "outside": ("a\n../../p/evil\n", "line 2: '../../p/evil' cannot be the name"),
    "outside by a folder": ("a\n\nsub/../../x\n", "line 3: .*'\\.\\.'"),
    "absolute": ("a\n/etc/passwd\n", "line 2: '/etc/passwd' cannot be the name"),
    "outside in columns": ("../x.jpg ../x_m.png\n", "line 1: "),
    "absolute columns": ("/etc/x.jpg /etc/x_m.png\n", "line 1: '/etc/x.jpg' is not in photos"),
    "another label": ("photos/a.jpg masks/b_m.png\n", "line 1: the label of a is masks/a_m.png .*, not masks/b"),
    "another folder of labels": ("photos/a.jpg other/a_m.png\n", "line 1: .* not other/a_m.png"),
    "twice": ("a\nb\n\na\n", r"a \(line 1\) and a \(line 4\)"),
    "twice in two forms": ("a\n./a\na.jpg\nphotos/a.jpg masks/a_m.png\n", r"3 images more .*a \(line 1\) and a \(line 2\)"),
    "not there": ("a\nnothing\n", r"photos/nothing\.jpg \(line 2 of the list\)"),
    "too long": ("a\n" + "x" * 300 + "\n", r"\(line 2 of the list\)"),
    "no text": (b"a\nb\n\xe9\n", r"val\.txt cannot be read: line 3: .*Expected UTF-8 text, an id per line"),
    "UTF-16 without its mark": ("a\nb\n".encode("utf-16-le"), "line 1: it holds NUL characters, .* UTF-16 without"),
    "control characters": ("a\nb\x07\n", "line 2: 'b.*x07' cannot be the name"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_in_a_list_is_told_with_its_line(case, own):
    text, message = WRONG[case]
    with pytest.raises(ob.OvssError, match=message):
        _ = own(text).samples


def test_one_pair_of_files_under_two_ids_counts_once(own, tmp_path):
    for folder, suffix in (("photos", ".jpg"), ("masks", "_m.png")):
        (tmp_path / folder / f"g{suffix}").symlink_to(tmp_path / folder / f"a{suffix}")
        os.link(tmp_path / folder / f"b{suffix}", tmp_path / folder / f"h{suffix}")
        (tmp_path / folder / "again").symlink_to(tmp_path / folder)  # which os.walk follows as far as the system lets it
    for text in ("a\ng\n", "b\nh\n", "a\nagain/a\n"):
        with pytest.raises(ob.OvssError, match=r"lists 1 images more than once.* \(line 1\) and .* \(line 2\)"):
            _ = own(text).samples
        kinds = [finding.kind for finding in check(tmp_path / "mine.yaml", quiet=True, workers=1).findings]
        assert "ids listed twice" in kinds
    with pytest.raises(ob.OvssError, match="more than once"):
        _ = own("", ids=None).samples
    label = (tmp_path / "masks/b_m.png").read_bytes()
    shutil.copy(tmp_path / "photos/a.jpg", tmp_path / "photos/k.jpg")  # of equal content, but two images
    (tmp_path / "masks/k_m.png").write_bytes(label)
    assert len(own("a\nk\n").samples) == 2


def test_ids_are_chosen_once(own):
    dataset = own("a\nb\nsub/c\n")
    assert [sample.id for sample in dataset.select(ids=["b.jpg", "a"])] == ["b", "a"]
    for ids, message in ((["a", "a"], "named twice"), (["a", "a.jpg"], "named twice"), ([], "empty"), (["/a"], "image id")):
        with pytest.raises(ob.OvssError, match=message):
            dataset.select(ids=ids)


def test_all_texts_have_one_reader(tmp_path):
    path = tmp_path / "names.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes("# mine\nSee, Größe\r\nWald\n\n".encode(encoding))
        assert read_names(path) == ([["See", "Größe"], ["Wald"]], [])
        assert read_lines(path, "list") == [(2, "See, Größe"), (3, "Wald")]
        path.write_bytes("a: [ö, 1]\n".encode(encoding))
        assert read_yaml(path, "file") == {"a": ["ö", 1]}
    for text in ("sky\ndistractors: sea\n\ncat\n", "sky\ncat\ndistractors:\n", "sky\ncat\ndistractors: sea,, lake\n"):
        path.write_text(text)
        with pytest.raises(ob.OvssError, match="line 3: an empty name"):
            read_names(path)


# What is counted.


@pytest.fixture(scope="module")
def result():
    """A result of the right form."""
    job = make_job("clip", ob.load_clip("demo"), ob.load_dataset("demo"), overrides=FAST)
    return run_jobs([job], limit=1, quiet=True)[0]


@pytest.fixture
def finished(tmp_path, result):
    """`finished(change)`: the end of a run of three images, of which something was changed before."""
    truth = np.random.RandomState(0).randint(0, 3, (9, 11))
    records = confusion(truth, np.where(truth == 2, 1, truth), 3)
    true = (3 * np.bincount(truth.ravel())).tolist()
    numbers = zip((true[0], true[1], 0), (true[0], true[1] + true[2], 0), true, strict=True)
    per_class = [
        {"class": "", "IoU": 1.0, "Acc": 1.0} | dict(zip(("correct", "predicted", "true"), each, strict=True))
        for each in numbers
    ]

    def end(change=lambda result, images: None):
        data = result.data | {
            "images": {"expected": 3, "evaluated": 3, "failed": {}},
            "per_class": [dict(c) for c in per_class],
        }
        images = ["a", "b", "c"]
        change(data, images)
        with RunStore(tmp_path, "set", "clip", "method", data["fingerprint"]) as store:
            for image in "abc":
                store.add(image, records, "hash")
            store.finish(data, images)

    return end


DISAGREEMENTS = {
    "counted twice": lambda result, images: images.append("a"),
    "no counts": lambda result, images: images.append("d"),
    "number of images": lambda result, images: result["images"].update(evaluated=5),
    "evaluated and failed": lambda result, images: result["images"].update(failed={"b": "damaged"}),
    "pixels per class": lambda result, images: result["per_class"][1].update(predicted=1),
}


@pytest.mark.parametrize("reason", DISAGREEMENTS)
def test_a_result_and_its_counts_agree_before_one_is_written(reason, finished, tmp_path):
    with pytest.raises(ob.OvssError, match=f"the result contradicts its counts.*{reason}"):
        finished(DISAGREEMENTS[reason])
    assert not list(tmp_path.glob("set/clip/method-*.json"))
    assert not list(tmp_path.glob("set/clip/method-*.npz"))
    assert list(tmp_path.glob("set/clip/method-*.shards/*.npz"))  # what was counted is kept
    finished()
    (path,) = tmp_path.glob("set/clip/method-*.json")
    assert path.with_suffix(".npz").is_file()


def test_counts_that_hold_an_image_twice_are_damaged(finished, tmp_path):
    finished()
    (path,) = tmp_path.glob("set/clip/*.npz")
    content = dict(np.load(path))
    del content["checksum"]
    content["images"][1] = "a"
    np.savez(path, **content)
    with pytest.raises(ob.OvssError, match="holds an image twice"):
        read_counts(path)


def test_parts_that_list_other_images_are_not_merged(own, tmp_path):
    dataset, clip = own("a\nb\nsub/c\n"), ob.load_clip("demo")
    for number in (1, 2):
        job = make_job("clip", clip, dataset, overrides=FAST)
        run_jobs([job], output=tmp_path / "out", shard=Shard(number, 2), quiet=True)
    (folder,) = part_folders(tmp_path / "out")
    part = sorted(folder.glob("part-*.json"))[1]
    before = part.read_text()
    for images in ('["a", "b", "b"]', '["a", "b"]'):
        text = before.split("\n")[1].replace('["a", "b", "sub/c"]', images)
        part.write_text(f"{digest(text)}\n{text}\n")
        with pytest.raises(ob.OvssError, match="lists an image twice, or the parts list different images"):
            merge(folder)
    part.write_text(before)
    result, _ = merge(folder)
    assert result["images"] == {"expected": 3, "evaluated": 3, "failed": {}}


# What is written lies below its folder.

OUTSIDE = ["../evil", "../../../../p/evil", "/tmp/evil", "sub/../../evil", "a\0b", "link/evil"]


@pytest.fixture
def folder(tmp_path):
    """A folder with a link that leads out of it."""
    (tmp_path / "top/folder").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "top/folder/link").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "top/folder"


class Stubborn(ob.SegDataset):
    """A plug-in's data set, whose ids nobody has checked."""

    evil = ""

    @property
    def samples(self):
        (sample, *_) = super().listed
        return [type(sample)(self.evil, sample.image_path, sample.label_path)]


def write_maps(folder, name, own):
    with RunStore(folder.parent, "set", "clip", "method", "0" * 64) as store:
        maps = store.result_path.with_suffix(".maps")
        if not maps.exists():
            folder.rename(maps)
        store.add(name, np.zeros(0), "", None, np.zeros((3, 4), np.uint16))


def write_results(folder, name, own):
    RunStore(folder, name, "clip", "method", "0" * 64)
    RunStore(folder, "set", "clip", name, "0" * 64)


def write_regions(folder, name, own):
    dataset = own("a\n")
    dataset.__class__ = type("Evil", (Stubborn,), {"evil": name})
    precompute_regions(dataset, "slic", folder, quiet=True)


def read_index(folder, name, own):
    precompute_regions(own("a\n"), "slic", folder, quiet=True)
    index = json.loads((folder / "regions.json").read_text())
    index["images"] = dict.fromkeys(index["images"], name)
    (folder / "regions.json").write_text(json.dumps(index))
    ob.load_regions(folder)(own("a\n").image(own("a\n").samples[0]))


def make_index(folder, name, own):
    dataset = own("a\n")
    dataset.__class__ = type("Evil", (Stubborn,), {"evil": name})
    index_regions(dataset, folder, quiet=True)


def write_converted(folder, name, own):
    own("a\n", prepare={"converter": "evil"}, labels="other", folders=["top/folder"])
    CONVERTERS._module_dict["evil"] = lambda base: iter([Task(Path.touch, (base / name,), (base / name,))])
    try:
        prepare(folder.parents[1] / "mine.yaml", folder.parents[1], quiet=True, workers=1)
    finally:
        del CONVERTERS._module_dict["evil"]


def write_unpacked(folder, name, own):
    with zipfile.ZipFile(folder.parents[1] / "a.zip", "w") as archive:
        archive.writestr(f"x/{name}", b"evil")
    extract(folder.parents[1] / "a.zip", Archive("a.zip", {"x": "."}), folder, Progress(quiet=True))


WRITERS = [write_maps, write_results, write_regions, read_index, make_index, write_converted, write_unpacked]
# Who has no links to fear but those that the user made: data sets are often linked to other disks.
LINKS_ALLOWED = (write_results, write_converted, write_unpacked)
HARMLESS = {(write_unpacked, "/tmp/evil"), (write_unpacked, "a\0b")}  # of a zip: below its folder, and cut


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_nothing_is_written_outside_its_folder(writer, folder, own, tmp_path):
    own("a\n")
    before = {path for path in tmp_path.rglob("*") if "top" not in path.parts}
    for name in OUTSIDE:
        if (writer, name) in HARMLESS or ("link" in name and writer in LINKS_ALLOWED):
            continue
        with pytest.raises(ob.OvssError):
            print(name, writer(folder, name, own))
        left = {path for path in tmp_path.rglob("*") if "top" not in path.parts} - before
        assert {path.name for path in left} <= {"a.zip"}
        assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize("name", [*OUTSIDE, "", "."])
def test_names_below_a_folder(name, folder):
    with pytest.raises(ob.OvssError):
        below(folder, name)
    assert below(folder, "./b//c.png") == folder / "b/c.png"
    assert below(folder, "link/x", links=True) == folder / "link/x"


@pytest.mark.parametrize("name", [".Trash-0/files/x.jpg", ".x/a.jpg", "sub/._a.jpg", "@eaDir/a.jpg", "sub/Thumbs.db"])
def test_what_is_hidden_is_no_image(name, own, tmp_path):
    write_files(tmp_path, {f"photos/{name}": b""})
    assert [sample.id for sample in own("", ids=None).samples] == sorted(IDS)
