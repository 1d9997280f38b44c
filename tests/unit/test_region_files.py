"""Region maps in files: made, indexed, found by the content of an image; whose they are."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import ovss_bench as ob
from ovss_bench.auxiliary.regions import INDEX, load_regions, read_regions, write_regions
from ovss_bench.auxiliary.sources import stated
from ovss_bench.datasets.config import alternatives, dataset_config
from ovss_bench.errors import OvssError
from ovss_bench.files import config_names, load_config
from ovss_bench.runs.precompute import index_regions, precompute_regions
from ovss_bench.runs.published import generator as generator_of


@pytest.fixture(scope="module")
def dataset(voc):
    return ob.load_dataset("voc21", voc)


@pytest.fixture(scope="module")
def made(dataset, tmp_path_factory):
    """A folder of the regions of all images, not to be written to."""
    folder = tmp_path_factory.mktemp("made")
    precompute_regions(dataset, "demo", folder, quiet=True)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "folder")
    return tmp_path / "folder"


def test_a_folder_gives_what_made_it_gives(made, dataset):
    source, again = load_regions("demo"), load_regions(made)
    for sample in dataset.samples:
        image = dataset.image(sample)
        assert np.array_equal(again(image), source(image))
        with np.load(made / f"{sample.id}.npz") as file:
            assert np.array_equal(file["instance_mask"], source(image))
    assert again.digest == source.digest
    assert again.stand_in
    assert len(list(made.glob("*.npz"))) == 10


def test_a_folder_is_a_source_of_a_segmentor(made, dataset):
    """By name, as a recipe has it."""
    from ovss_bench.auxiliary.sources import named_source

    image = dataset.image(dataset.samples[0])
    source = named_source("regions", str(made), None, "fp32", "cpu")
    assert np.array_equal(source(image), load_regions("demo")(image))


def test_a_missing_image_names_the_folder_and_the_command(made, scene):
    with pytest.raises(
        OvssError, match=rf"{made} has no regions for this image of 40 x 56.*regions.py dataset=voc21 regions=demo"
    ):
        load_regions(made)(scene)
    with pytest.raises(OvssError, match="come in files and have no settings: leave scale out"):
        load_regions(made, scale=3)


def test_a_second_run_goes_on_where_the_first_stopped(dataset, folder, monkeypatch):
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    names = sorted(before)
    (folder / names[0]).unlink()
    index = json.loads((folder / INDEX).read_text())
    index["images"] = {key: file for key, file in index["images"].items() if file != names[1]}  # killed before it was noted
    (folder / INDEX).write_text(json.dumps(index))
    precompute_regions(dataset, "demo", folder, quiet=True)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert [name for name in names if after[name] != before[name]] == names[:2]
    assert len(json.loads((folder / INDEX).read_text())["images"]) == 10


def test_other_regions_never_mix_in(dataset, folder, scene):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OvssError, match=r"scale is 3000.0 there and 100.0 here.*out=DIR"):
        precompute_regions(dataset, "demo", folder, settings={"scale": 100}, quiet=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / INDEX).unlink()
    with pytest.raises(OvssError, match=r"\.npz, but no regions.json.*index"):
        precompute_regions(dataset, "demo", folder, quiet=True)


def test_an_image_that_was_changed_is_named(folder, voc, tmp_path):
    shutil.copytree(voc, tmp_path / "VOC")
    (first, *_) = sorted((tmp_path / "VOC").rglob("*.jpg"))
    Image.new("RGB", (50, 40)).save(first)
    changed = ob.load_dataset("voc21", tmp_path / "VOC")
    with pytest.raises(OvssError, match=rf"1 images have no regions.*\n  {first.stem}: .*another image of that name"):
        precompute_regions(changed, "demo", folder, quiet=True)
    (folder / f"{first.stem}.npz").unlink()
    precompute_regions(changed, "demo", folder, quiet=True)
    assert load_regions(folder)(np.zeros((40, 50, 3), np.uint8)).max() == 1
    assert len(load_regions(folder).files) == 10


def test_bad_images_are_listed_and_the_others_made(voc, tmp_path):
    shutil.copytree(voc, tmp_path / "VOC")
    bad = sorted((tmp_path / "VOC").rglob("*.jpg"))[3]
    bad.write_bytes(b"nothing")
    broken = ob.load_dataset("voc21", tmp_path / "VOC")
    with pytest.raises(OvssError, match=rf"1 images have no regions; .*\n  {bad.stem}: image .* cannot"):
        precompute_regions(broken, "demo", tmp_path / "out", quiet=True)
    assert len(load_regions(tmp_path / "out").files) == 9


def test_two_processes_do_not_write_to_one_folder(dataset, tmp_path):
    import fcntl

    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OvssError, match="another process is writing"):
            precompute_regions(dataset, "demo", tmp_path / "out", quiet=True)


def test_files_from_elsewhere_are_indexed(dataset, tmp_path):
    """PNG and npz of every depth, values kept: -1 for unsegmented, palette indices, more than 8 bits."""
    samples, maps = dataset.samples, {}
    types = [np.uint8, np.uint16, np.int64, np.float32]
    for number, sample in enumerate(samples):
        size = dataset.image(sample).shape[:2]
        values = np.arange(size[0] * size[1]).reshape(size) % (250 if number % 4 == 0 else 1000)
        maps[sample.id] = values - (number % 4 == 2)
        if number % 4 < 2:
            Image.fromarray(values.astype(types[number % 4])).save(tmp_path / f"{sample.id}.png")
        else:
            np.savez(tmp_path / f"{sample.id}.npz", instance_mask=maps[sample.id].astype(types[number % 4]))
    with pytest.raises(OvssError, match=rf"{tmp_path} has no regions.json.*regions.py index {tmp_path} dataset=NAME"):
        load_regions(tmp_path)
    index_regions(dataset, tmp_path, quiet=True)
    source = load_regions(tmp_path)
    for sample in samples:
        assert np.array_equal(source(dataset.image(sample)), maps[sample.id])
    assert not source.stand_in
    write_regions(tmp_path / f"{samples[2].id}.npz", maps[samples[2].id] + 1)
    index_regions(dataset, tmp_path, quiet=True)
    assert load_regions(tmp_path).digest != source.digest
    with pytest.raises(OvssError, match="files that came from elsewhere"):
        precompute_regions(dataset, "demo", tmp_path, quiet=True)


def test_an_index_names_what_is_missing_or_turned(dataset, folder):
    (folder / INDEX).unlink()
    first, second, third = (sample.id for sample in dataset.samples[:3])
    (folder / f"{first}.npz").unlink()
    write_regions(folder / f"{second}.npz", read_regions(folder / f"{second}.npz").T)
    (folder / f"{third}.npz").write_bytes(b"PK no zip")
    with pytest.raises(OvssError, match="3 images are not in the index; 7 are") as error:
        index_regions(dataset, folder, quiet=True)
    lines = str(error.value).splitlines()[1:]
    assert f"{first}: there is no {first}.npz or {first}.png in {folder}" in lines[0]
    assert "EXIF" in lines[1]
    assert "cannot be read" in lines[2]
    assert len(load_regions(folder).files) == 7


def test_the_index_of_made_regions_can_be_made_again(dataset, made, folder):
    """As when another version of a decoder reads other pixels."""
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {"images": {}}))
    index_regions(dataset, folder, quiet=True)
    assert json.loads((folder / INDEX).read_text()) == index | {"generator": None}
    (folder / INDEX).write_text("{")
    with pytest.raises(OvssError, match=r"regions.json is damaged.*index"):
        load_regions(folder)


# Whose maps a folder holds


def suffixed():
    """The data sets whose images have more than an extension behind their id."""
    configs = {name: dataset_config(name)[1] for name in config_names("dataset")}
    suffixes = {name: alternatives(config.get("image_suffix", ".x")) for name, config in configs.items()}
    return {name: configs[name] for name, (first, *_) in suffixes.items() if not first.startswith(".")}


@pytest.mark.parametrize("name", suffixed())
@pytest.mark.parametrize("form", ["id", "last part of the id", "id without folders", "stem", "stem with its folder"])
def test_maps_are_found_under_every_name_that_others_give_them(name, form, tmp_path):
    """CorrCLIP's are called as the image without its extension: frankfurt_000000_000294_leftImg8bit.npz."""
    config, ids = suffixed()[name], ("frankfurt/frankfurt_1", "lindau/lindau_1")
    root = tmp_path / "data" / config["folders"][0]
    for number, id in enumerate(ids, 1):
        for kind in ("image", "label"):
            path = root / config[f"{kind}s"] / f"{id}{config[f'{kind}_suffix']}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB" if kind == "image" else "L", (8, 6), number).save(path)
    if config.get("ids"):
        (root / config["ids"]).parent.mkdir(parents=True, exist_ok=True)
        (root / config["ids"]).write_text("\n".join(ids))
    dataset = ob.load_dataset(name, tmp_path / "data")
    for number, sample in enumerate(dataset.samples):
        stem = sample.image_path.stem
        names = {
            "id": sample.id,
            "last part of the id": sample.id.rpartition("/")[2],
            "id without folders": sample.id.replace("/", "_"),
            "stem": stem,
            "stem with its folder": f"{sample.id.partition('/')[0]}/{stem}",
        }
        write_regions(tmp_path / "maps" / f"{names[form]}.npz", np.full((6, 8), number + 5))
    index_regions(dataset, tmp_path / "maps", quiet=True)
    maps = load_regions(tmp_path / "maps")
    assert [int(maps(dataset.image(sample)).max()) for sample in dataset.samples] == [5, 6]


def test_more_than_one_data_set_has_such_suffixes():
    assert {"cityscapes", "dark_zurich", "cwfid"} <= set(suffixed())


def test_a_name_of_two_images_is_nobodys(tmp_path):
    for folder in ("a", "b"):
        for kind in ("images", "labels"):
            (tmp_path / kind / folder).mkdir(parents=True)
            Image.new("RGB" if kind == "images" else "L", (8, 6), ord(folder)).save(tmp_path / kind / folder / "1.png")
    (tmp_path / "own.yaml").write_text(
        "images: images\nlabels: labels\nimage_suffix: .png\nlabel_suffix: .png\nclasses: [x, y]\n"
    )
    dataset = ob.load_dataset(str(tmp_path / "own.yaml"))
    write_regions(tmp_path / "maps" / "1.npz", np.ones((6, 8)))
    with pytest.raises(OvssError, match=r"(?s)2 images are not in the index; 0 are.*there is no a/1.npz"):
        index_regions(dataset, tmp_path / "maps", quiet=True)


def test_a_folder_knows_its_generator(dataset, made, folder):
    assert load_regions(made).generator == "demo"
    precompute_regions(dataset, "demo", folder.with_name("other"), settings={"scale": 100}, limit=1, quiet=True)
    assert load_regions(folder.with_name("other")).generator is None
    with pytest.raises(OvssError, match=r"were made here, by demo. Leave regions=sam2_32 out"):
        index_regions(dataset, folder, generator="sam2_32", quiet=True)
    (folder / INDEX).unlink()
    index_regions(dataset, folder, quiet=True)
    assert load_regions(folder).generator is None
    index_regions(dataset, folder, generator="sam2_32", quiet=True)
    index_regions(dataset, folder, quiet=True)  # once said, it stays
    assert (load_regions(folder).generator, load_regions(folder).unconfirmed) == ("sam2_32", None)
    with pytest.raises(OvssError, match=r"unknown regions 'sam2_23'.*sam2_32"):
        index_regions(dataset, folder, generator="sam2_23", quiet=True)
    index = json.loads((folder / INDEX).read_text())
    entry = load_config("regions", "sam2_32")
    (folder / INDEX).write_text(json.dumps(index | {"regions": "sam2_32", "settings": entry | {"weights": "elsewhere"}}))
    assert load_regions(folder).generator == "sam2_32"
    assert "0.4" in load_regions(folder).unconfirmed


def test_a_result_says_whose_maps_it_had(dataset, folder, tmp_path):
    """And one that was written before finds it in an index that says so by now."""
    (folder / INDEX).unlink()
    index_regions(dataset, folder, quiet=True)
    source = stated(str(folder), load_regions(folder))
    assert set(source) == {"name", "digest", "stand_in"}
    assert generator_of(source) is None
    index_regions(dataset, folder, generator="entityseg", quiet=True)
    assert generator_of(source) == "entityseg"
    assert generator_of(source | {"digest": "0" * 64}) is None
    assert stated(str(folder), load_regions(folder)) == source | {"generator": "entityseg"}


def test_maps_of_a_generator_that_is_in_no_library_are_found_by_its_name(dataset, made, monkeypatch, tmp_path):
    monkeypatch.setenv("OVSS_WEIGHTS", str(tmp_path))
    with pytest.raises(
        OvssError, match=r"into the folder entityseg below .*OVSS_WEIGHTS.*regions.py index FOLDER .*=entityseg"
    ):
        load_regions("entityseg")
    halves = dataset.samples[:5], dataset.samples[5:]
    for name, samples in zip(("voc", "context"), halves, strict=True):
        (tmp_path / "entityseg" / name).mkdir(parents=True)
        for sample in samples:
            shutil.copy(made / f"{sample.id}.npz", tmp_path / "entityseg" / name)
        with pytest.raises(OvssError, match="5 images are not in the index; 5 are"):
            index_regions(dataset, tmp_path / "entityseg" / name, generator="entityseg", quiet=True)
    maps, own = load_regions("entityseg"), load_regions("demo")
    assert (maps.generator, maps.stand_in, len(maps.files)) == ("entityseg", False, 10)
    for sample in (halves[0][0], halves[1][0]):
        assert np.array_equal(maps(dataset.image(sample)), own(dataset.image(sample)))
    with pytest.raises(OvssError, match="come in files and have no settings: leave scale out"):
        load_regions("entityseg", scale=3)
    with pytest.raises(OvssError, match="there is nothing to make"):
        precompute_regions(dataset, "entityseg", tmp_path / "out", quiet=True)
    index = json.loads((tmp_path / "entityseg" / "voc" / INDEX).read_text())
    (tmp_path / "entityseg" / "voc" / INDEX).write_text(json.dumps(index | {"generator": None}))
    with pytest.raises(OvssError, match="are not all indexed as those of entityseg"):
        load_regions("entityseg")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5, 3), np.uint8), "shape"),
        (np.full((4, 5), 0.5), "whole numbers"),
        (np.full((4, 5), np.nan), "whole numbers"),
        (np.zeros((4, 5), "U1"), "whole numbers"),
        (np.zeros((5, 4), np.uint8), "5 x 4 pixels.*its image 4 x 5.*EXIF"),
    ],
)
def test_bad_region_files_are_refused(array, message, tmp_path):
    np.savez(tmp_path / "map.npz", instance_mask=array)
    with pytest.raises(OvssError, match=message):
        read_regions(tmp_path / "map.npz", (4, 5))


def test_files_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "map.npz", instance_mask=np.array([[{}]], dtype=object))
    with pytest.raises(OvssError, match="cannot be read"):
        read_regions(tmp_path / "map.npz")
    np.savez(tmp_path / "map.npz", other=np.zeros((2, 2)))
    with pytest.raises(OvssError, match="instance_mask"):
        read_regions(tmp_path / "map.npz")


@pytest.mark.parametrize(
    ("low", "high", "type"),
    [(0, 255, np.uint8), (0, 256, np.uint16), (-1, 3, np.int32), (0, 70000, np.int32)],
)
def test_files_are_small(low, high, type, tmp_path):
    regions = np.array([[low, high]], np.int32)
    write_regions(tmp_path / "map.npz", regions)
    with np.load(tmp_path / "map.npz") as file:
        assert file["instance_mask"].dtype == type
    assert np.array_equal(read_regions(tmp_path / "map.npz"), regions)
