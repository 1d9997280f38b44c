"""Lists, tables, manifests, templates, indices and folders of maps, and what runs leave: shards, parts, label maps, grids."""

import copy
import csv
import io
import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import ovss_bench as ob
from fuzz.common import VALUES, damaged, inputs, outcome
from fuzz.test_pictures import encoded, picture
from fuzz.test_results import FAST, NASTY, changed
from fuzz.test_texts import GOOD, LINES, written
from fuzz.test_weights import IMAGE, MAP, use_features, use_regions
from miniatures.drawing import write_files
from ovss_bench.auxiliary.regions import write_index, write_regions
from ovss_bench.auxiliary.sources import FeatureCache
from ovss_bench.datasets.check.manifest import compare, read_manifest, view
from ovss_bench.datasets.check.run import check
from ovss_bench.files import PUBLISHED, digest
from ovss_bench.progress import console
from ovss_bench.reports.csv import csv as to_csv
from ovss_bench.reports.html import write_html
from ovss_bench.reports.results import differences, results_table
from ovss_bench.runs.evaluate import Runtime, make_job, run_jobs
from ovss_bench.runs.grid import Grid
from ovss_bench.runs.load import read_results, result_paths
from ovss_bench.runs.merge import merge, part_folders
from ovss_bench.runs.published import load_figures
from ovss_bench.runs.store import RunStore, dump, read_counts
from ovss_bench.runs.world import Shard
from ovss_bench.vocabulary import read_templates


@st.composite
def broken(draw, content: bytes) -> bytes:
    """A JSON file, damaged or with single values changed."""
    if draw(st.booleans()):
        return draw(damaged(content))
    return json.dumps(draw(changed(json.loads(content)))).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A data set's YAML file, three images with labels, and a list of them."""
    folder = tmp_path_factory.mktemp("listed")
    names = ["a", "b c", "sub/d"]
    files = {f"photos/{name}.png": encoded(picture("RGB", (9, 12), 1), "PNG") for name in names}
    files |= {f"masks/{name}.png": encoded(picture("L", (9, 12), 1, 3), "PNG") for name in names}
    write_files(folder, files | {"ids.txt": "\n".join(names).encode()})
    return written(folder / "own.yaml", GOOD | {"ids": "ids.txt"})


ID = st.sampled_from(["a", "b c", "sub/d", "a.png", "photos/a.png", "/photos/a.png /masks/a.png", "photos/a.png masks/b c.png"])
ID |= st.sampled_from(["../a", "/a", "./a", "# a", "a # b", "a,b", "a;b", "", "\ufeffa", "x" * 5000, "a\0", "\udc80"]) | LINES
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32"])


@inputs(0.04)
@given(lines=st.lists(ID, max_size=4), encoding=ENCODINGS, end=st.sampled_from(["\n", "\r\n", "\r", ""]))
def test_lists_of_ids(own, lines, encoding, end):
    text = end.join(lines).encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")
    own.with_name("ids.txt").write_bytes(text)

    def use():
        dataset = ob.load_dataset(own)
        return [dataset.label(sample) for sample in dataset.samples], dataset.samples, dataset.fingerprint

    found = outcome(use)
    if not isinstance(found, ob.OvssError):
        _, samples, _ = found
        assert 0 < len({sample.id for sample in samples}) == len(samples)
        assert all(sample.image_path.resolve().is_relative_to(own.parent / "photos") for sample in samples)


@inputs(0.03)
@given(lines=st.lists(LINES | st.sampled_from(["a photo of a {}.", "{} {}", "{", "# {}"]), max_size=3), encoding=ENCODINGS)
def test_templates(tmp_path_factory, lines, encoding):
    path = tmp_path_factory.getbasetemp() / "templates.txt"
    path.write_bytes("\n".join(lines).encode(encoding, "replace"))
    found = outcome(read_templates, path)
    if isinstance(found, ob.OvssError):
        assert str(path) in str(found)
    else:
        assert found
        assert all(template.count("{}") == 1 for template in found)


@pytest.fixture(scope="module")
def report(own):
    own.with_name("ids.txt").write_text("a\nb c\nsub/d\n")
    return check(own, workers=1, quiet=True)


@inputs(0.04)
@given(draw=st.data())
def test_manifests(own, report, draw):
    path = own.with_name("manifest.json")
    path.write_bytes(draw.draw(broken(json.dumps(report.manifest()).encode())))

    def use():
        findings = list(compare(report, read_manifest(path, own), ob.load_dataset(own)))
        shown = console()
        with shown.capture():
            shown.print(view(replace(report, findings=findings)))

    own.with_name("ids.txt").write_text("a\nb c\nsub/d\n")
    outcome(use)


ARRAYS = st.sampled_from(
    [MAP, MAP[:5], MAP.T, MAP[..., None], MAP + 0.5, MAP * np.nan, MAP.astype("<U3"), MAP - 10**12, MAP[:0]]
)


@inputs(0.03)
@given(draw=st.data(), array=ARRAYS)
def test_region_indices_and_maps(tmp_path_factory, draw, array):
    folder = tmp_path_factory.mktemp("regions")
    write_regions(folder / "a.npz", MAP)
    index = {"digest": "x", "regions": "slic", "settings": {"n": 3}, "stand_in": False, "command": "again", "generator": None}
    write_index(folder, index | {"contents": {}, "images": {ob.image_key(IMAGE): "a.npz"}})
    if draw.draw(st.booleans()):
        np.savez(folder / "a.npz", **{draw.draw(st.sampled_from(["instance_mask", "x"])): array})
    else:
        path = folder / "regions.json"
        path.write_bytes(draw.draw(broken(path.read_bytes())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = outcome(lambda: use_regions(folder) if array is MAP else ob_regions(folder))
    assert found is None or isinstance(found, ob.OvssError)
    shutil.rmtree(folder)


def ob_regions(folder):
    from ovss_bench.auxiliary.regions import RegionFolder

    assert RegionFolder(folder)(IMAGE).shape == IMAGE.shape[:2]


@inputs(0.03)
@given(draw=st.data(), array=ARRAYS, name=st.sampled_from(["features", "x"]))
def test_feature_folders(tmp_path_factory, draw, array, name):
    folder = tmp_path_factory.mktemp("features")
    path = folder / f"{ob.image_key(IMAGE)}.npz"
    np.savez(path, **{name: draw.draw(st.sampled_from([array, np.ones((2, 3, 4)), np.ones((2, 0, 4)), np.array({}, object)]))})
    path.write_bytes(draw.draw(st.just(path.read_bytes()) | damaged(path.read_bytes())))
    outcome(use_features, folder)
    shutil.rmtree(folder)


@inputs(0.02)
@given(draw=st.data())
def test_entries_of_the_feature_cache_are_right_or_made_anew(tmp_path_factory, draw):
    cache, array = FeatureCache(tmp_path_factory.getbasetemp() / "features"), np.arange(12.0).reshape(3, 4)
    assert np.array_equal(cache("maker", IMAGE, lambda: array), array)
    (path,) = cache.folder.rglob("*.safetensors")
    path.write_bytes(draw.draw(damaged(path.read_bytes())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(outcome(cache, "maker", IMAGE, lambda: array), array)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """What two shards of a run leave, and the result that they make."""
    folder = tmp_path_factory.mktemp("parts")
    for number in (1, 2):
        job = make_job("clip", ob.load_clip("demo"), ob.load_dataset("demo"), overrides=FAST)
        run_jobs([job], limit=2, output=folder / "whole", quiet=True, shard=Shard(number, 2))
    copied = shutil.copytree(folder / "whole", folder / "merged")
    return part_folders(folder / "whole")[0], merge(part_folders(copied)[0])[0]


@inputs(0.01)
@given(draw=st.data())
def test_damaged_shards_and_parts_are_never_read_as_others(parts, tmp_path_factory, draw):
    source, right = parts
    root = tmp_path_factory.mktemp("shards")
    folder = shutil.copytree(source, root / source.relative_to(source.parents[2]))
    path = draw.draw(st.sampled_from(sorted(path for path in folder.iterdir() if not path.name.startswith("lock"))))
    if path.suffix == ".json" and draw.draw(st.booleans()):  # by hand, with its checksum
        text = json.dumps(draw.draw(changed(json.loads(path.read_text().partition("\n")[2]))))
        path.write_text(f"{digest(text)}\n{text}\n")
        outcome(merge, folder)
    else:
        path.write_bytes(draw.draw(damaged(path.read_bytes())))
        found = outcome(merge, folder)
        if not isinstance(found, ob.OvssError):
            assert dump({"per_class": found[0]["per_class"]}) == dump({"per_class": right["per_class"]})
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A folder of a result with its label maps."""
    folder = tmp_path_factory.mktemp("maps")
    job = make_job("clip", ob.load_clip("demo"), ob.load_dataset("demo"), overrides=FAST)
    run_jobs([job], limit=1, output=folder, quiet=True, runtime=Runtime(maps=True))
    return folder


@inputs(0.02)
@given(draw=st.data(), other=st.sampled_from(["RGB", "L", "I", "F", "P"]), size=st.sampled_from([(96, 128), (3, 3)]))
def test_label_maps_of_results(shown, draw, other, size):
    (path,) = shown.rglob("*.maps/*.png")
    known = path.read_bytes()
    kind = "TIFF" if other in "IF" else "PNG"
    path.write_bytes(draw.draw(damaged(known) | st.just(encoded(picture(other, size, 1), kind))))
    outcome(write_html, shown, shown / "report.html", partial=True, images=1)
    path.write_bytes(known)


@inputs(0.02)
@given(draw=st.data())
@example("1\0")
def test_tables_that_are_expected(shown, tmp_path_factory, draw):
    results = list(read_results(shown)[0].values())
    path = tmp_path_factory.getbasetemp() / "expected.csv"
    known = to_csv(results_table(results)).encode()
    cells = NASTY.map(repr) | st.sampled_from(["", "x", "-", "inf", '"', "1e999"])
    text = known.decode().replace(known.decode().split(",")[-2], draw if isinstance(draw, str) else draw.draw(cells))
    content = text.encode("utf-8", "replace")
    path.write_bytes(content if isinstance(draw, str) else draw.draw(st.just(content) | damaged(content)))
    lines = outcome(differences, results, path, 0.1)
    assert isinstance(lines, ob.OvssError) or all(isinstance(line, str) for line in lines)


@inputs(0.02)
@given(draw=st.data())
def test_published_figures_of_ones_own(tmp_path_factory, draw):
    folder = tmp_path_factory.getbasetemp() / "published"
    folder.mkdir(exist_ok=True)
    with (PUBLISHED / "sclip.csv").open(encoding="utf-8", newline="") as file:
        known = [row for row in csv.DictReader(file) if row["segmentor"]]
    rows = draw.draw(st.lists(st.sampled_from(range(len(known))), min_size=1, max_size=3, unique=True))
    rows = [dict(known[row]) for row in rows]
    key = draw.draw(st.sampled_from([None, "overrides", "overrides", *known[0]]))
    if key:
        values = st.sampled_from(["a=b", "window=", "x", "window={", "window=224;window=1", "window=448"]) | VALUES.map(str)
        rows[0][key] = draw.draw(values)
    text = io.StringIO()
    writer = csv.DictWriter(text, known[0])
    writer.writeheader()
    writer.writerows(rows)
    some = text.getvalue().encode("utf-8", "replace")
    (folder / "own.csv").write_bytes(draw.draw(st.just(some) | damaged(some)))
    outcome(load_figures, folder)


@inputs(0.02)
@given(draw=st.data())
def test_records_of_a_grid(shown, tmp_path_factory, draw):
    folder = tmp_path_factory.mktemp("grid")
    (path,) = result_paths(shown)
    result = ob.EvalResult(json.loads(path.read_text()), path)
    record = json.dumps({"output": str(shown.resolve()), "results": [str(path.resolve())]}).encode()
    (folder / "000007.json").write_bytes(draw.draw(broken(record)))

    def use():
        with Grid(folder, 1).together([result], shown) as results:
            return copy.copy(results)

    outcome(use)
    shutil.rmtree(folder)


@inputs(0.02)
@given(draw=st.data())
def test_shards_of_an_interrupted_run(parts, tmp_path_factory, draw):
    """A damaged shard is thrown away, and what is read of the others is what was written."""
    source, right = parts
    root = tmp_path_factory.mktemp("resumed")
    folder = shutil.copytree(source, root / source.relative_to(source.parents[2]))
    keys = [right[key] for key in ("dataset", "clip", "segmentor", "fingerprint")]
    with RunStore(root, *keys, helper=True) as store:
        store.read()
        whole = dict(store.counts)
    path = draw.draw(st.sampled_from(sorted(folder.glob("[0-9]*.npz"))))
    path.write_bytes(draw.draw(damaged(path.read_bytes())))
    with RunStore(root, *keys) as store:
        assert store.damaged or store.counts.keys() == whole.keys()
        assert all(np.array_equal(counts, whole[image]) for image, counts in store.counts.items())
    shutil.rmtree(root)


def test_what_has_failed_before(own, report, shown, tmp_path):
    """One of each kind that once was a traceback."""
    (path,) = result_paths(shown)
    grid, figures = tmp_path / "000007.json", tmp_path / "own.csv"
    for content in (b"{", b"[]", b"\xff"):
        grid.write_bytes(content)
        with pytest.raises(ob.OvssError, match="000007"), Grid(tmp_path, 1).together([], tmp_path):
            pass
    figures.write_bytes((PUBLISHED / "sclip.csv").read_bytes() + b"\xff")
    with pytest.raises(ob.OvssError, match=r"own\.csv"):
        load_figures(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(report.manifest() | {"histogram": {"sky": 3}}))
    with pytest.raises(ob.OvssError, match=r"manifest\.json.*class numbers"):
        read_manifest(manifest, own)
    counts = dict(np.load(path.with_suffix(".npz")))
    np.savez(
        tmp_path / "counts.npz", **{name: array for name, array in counts.items() if name not in ("checksum", "fingerprint")}
    )
    with pytest.raises(ob.OvssError, match=r"counts\.npz is damaged"):
        read_counts(tmp_path / "counts.npz")
    with pytest.raises(ob.OvssError, match="another run"):
        read_counts(path.with_suffix(".npz"), classes=0)
