"""What a run keeps in memory per image, and that its files are those that a whole array in memory would give."""

import gc
import sys
import tracemalloc
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import pytest

import ovss_bench as ob
from ovss_bench.evaluation.boundary import DTYPE as EDGES
from ovss_bench.evaluation.confusion import DTYPE, total
from ovss_bench.evaluation.metrics import DatasetFacts, areas
from ovss_bench.files import read_arrays
from ovss_bench.runs.merge import make_result
from ovss_bench.runs.spill import Joined, Spill, SpilledRecords, savez
from ovss_bench.runs.store import IMAGES_PER_SHARD, RunStore, disagreements, read_counts

CLASSES, PAIRS = 171, 1000
BYTES_PER_IMAGE = 500  # ids, hashes and places, in dictionaries; the records of an image are 8,000


def records(number, pairs=PAIRS):
    random = np.random.RandomState(number)
    pixels = random.randint(1, 1000, pairs)
    used = np.sort(random.choice(CLASSES * (CLASSES + 1), pairs, replace=False))
    return np.array([(*divmod(at, CLASSES + 1), n) for at, n in zip(used.tolist(), pixels.tolist(), strict=True)], DTYPE)


KINDS = [records(number) for number in range(8)]
BORDERS = [np.array([(c, c + kind, 2 * c + 9) for c in range(40)], EDGES) for kind in range(8)]


def store(folder, **options):
    return RunStore(folder, "set", "clip", "method", "0123456789abcdef" * 4, **options)


def fill(run, images):
    for number in range(images):
        kind = number % len(KINDS)
        run.add(f"image{number:06}", KINDS[kind].copy(), f"{number:016x}", BORDERS[kind].copy())
    run.flush()


def bytes_kept(root):
    """The sizes of all objects that can be reached from one, with the data of arrays, without code."""
    seen, left, size = set(), [root], 0
    while left:
        one = left.pop()
        if id(one) not in seen and not isinstance(one, type | ModuleType | FunctionType):
            seen.add(id(one))
            size += sys.getsizeof(one)
            left += gc.get_referents(one)
    return size


def test_the_memory_of_a_run_does_not_grow_with_the_counts(tmp_path):
    sizes = []
    for images in (10 * IMAGES_PER_SHARD, 40 * IMAGES_PER_SHARD):
        with store(tmp_path / str(images)) as run:
            fill(run, images)
            sizes.append(bytes_kept(run))
        with store(tmp_path / str(images)) as resumed:
            assert len(resumed.counts) == len(resumed.edges) == images
            assert bytes_kept(resumed) < sizes[-1] + images * BYTES_PER_IMAGE  # names of its own
    assert sizes[1] - sizes[0] < 30 * IMAGES_PER_SHARD * BYTES_PER_IMAGE


def finished(folder, images):
    """The peak of what is allocated while the result and its counts are computed and written."""
    head = {"per_class": [{"class": str(c)} for c in range(CLASSES)], "images": {"expected": images}, "segmentor": "method"}
    head |= {
        "dataset": "set",
        "clip": "clip",
        "protocol": "paper",
        "overridden": {},
        "timing": {"seconds": 1, "images": images},
    }
    with store(folder) as run:
        fill(run, images)
        names = list(run.counts)
        make_result(head, DatasetFacts(), run.counts, run.edges, names, {})  # what is cached does not count
        tracemalloc.start()
        result = make_result(head, DatasetFacts(), run.counts, run.edges, names, {})
        assert not disagreements(result, run.counts, names)
        run._write_counts(run.counts_path, names, run.counts, run.edges)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def test_the_end_of_a_run_needs_no_more_memory_for_more_images(tmp_path):
    few, many = (finished(tmp_path / str(images), images) for images in (32, 128))
    assert many - few < 96 * 2 * BYTES_PER_IMAGE


def test_what_was_spilled_is_what_was_added_in_any_order(tmp_path):
    spill = Spill(tmp_path / "new")
    first, second = SpilledRecords(spill, DTYPE), SpilledRecords(spill, DTYPE)  # two runs of a pass
    for number, kind in enumerate(KINDS):
        first.add(str(number), kind)
        second.add(str(number), kind[number:])
    wide = np.array([(1, 2, 3)], [("pixels", np.int64), ("truth", np.int32), ("prediction", np.uint8)])
    second.add("other widths", wide)
    first.add("0", KINDS[1])
    first.add("none", KINDS[0][:0])
    for number in (5, 1, 7):
        assert np.array_equal(first[str(number)], KINDS[number])
        assert np.array_equal(second[str(number)], KINDS[number][number:])
    assert np.array_equal(first["0"], KINDS[1])
    assert len(first["none"]) == 0
    assert second["other widths"].tolist() == [(2, 3, 1)]
    assert "8" not in first
    assert sorted(first) == [*"01234567", "none"]
    assert list((tmp_path / "new").iterdir()) == []  # nothing is left by a killed process
    spill.close()


def test_a_folder_that_cannot_hold_it_is_reported():
    with pytest.raises(ob.OvssError, match=r"cannot write /proc/spill.*output=DIR"):
        Spill(Path("/proc/spill")).put(b"counts")


def test_counts_are_written_as_numpy_would(tmp_path):
    images = [f"image{number}" for number in (3, 1, 2)]
    with store(tmp_path) as run:
        for number, image in enumerate(images):
            run.add(image, KINDS[number], str(number), BORDERS[number])
        run.flush()
        run._write_counts(tmp_path / "ours.npz", images, run.counts, run.edges)
    with np.load(tmp_path / "ours.npz") as file:
        content = dict(file)
    assert content["records"].tolist() == np.concatenate(KINDS[:3]).tolist()
    np.savez_compressed(tmp_path / "theirs.npz", **content)
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "theirs.npz").read_bytes()
    counts, hashes, edges = read_counts(tmp_path / "ours.npz")
    assert list(counts) == list(hashes) == list(edges) == images
    assert np.array_equal(np.stack(areas(total(counts.values(), CLASSES))), np.stack(areas(total(KINDS[:3], CLASSES))))


def test_arrays_are_read_as_numpy_does(tmp_path):
    arrays = {
        "text": np.array(["a", "straße"]),
        "scalar": np.array("x"),
        "empty": np.empty((0, 3), np.float32),
        "no records": KINDS[0][:0],
        "records": KINDS[0],
        "columns first": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
    }
    path = tmp_path / "arrays.npz"
    savez(path, {name: array for name, array in arrays.items() if array.flags.c_contiguous})
    assert {name: array.tolist() for name, array in read_arrays(path).items()} == {
        name: array.tolist() for name, array in arrays.items() if array.flags.c_contiguous
    }
    np.savez(path, **arrays)
    with np.load(path) as file:
        for name, array in read_arrays(path).items():
            assert array.dtype == file[name].dtype
            assert np.array_equal(array, file[name])
    np.savez(path, code=np.array([{}], object))
    with pytest.raises(ValueError, match="OBJECT"):
        read_arrays(path)


def test_joined_records_are_one_array():
    joined = Joined({str(number): kind for number, kind in enumerate(KINDS)}, ["2", "0"], DTYPE)
    whole = np.concatenate([KINDS[2], KINDS[0]])
    assert (joined.shape, joined.nbytes, b"".join(joined.pieces())) == (whole.shape, whole.nbytes, whole.tobytes())
