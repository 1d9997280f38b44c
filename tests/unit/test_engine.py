"""What the loop does, counted: forward passes, windows in them, sizes of tensors, files read, images held."""

import gc
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ovss_bench as ob
from ovss_bench.bench.cases import on_clip_alone
from ovss_bench.bench.official import official_label_map
from ovss_bench.encoders.clip import default_precision
from ovss_bench.inference import finish
from ovss_bench.inference.engine import predict
from ovss_bench.inference.forward import Forward, batch_size
from ovss_bench.inference.trunk_cache import TrunkCache
from ovss_bench.ops.windows import SlidingWindow
from ovss_bench.process import in_threads
from ovss_bench.runs.evaluate import make_job, run_jobs
from ovss_bench.types import ImageContext
from parity.seeded import query_features, rgb_image
from stand_ins import sources_of

SMALL = {"short_side": 80, "window": 64, "stride": 32, "pad_multiple": None, "scored_at": "original", "pamr_steps": 0}
IMAGES = {f"image{n}": rgb_image(70 + n, *size) for n, size in enumerate([(120, 150), (50, 31), (100, 260), (90, 90)])}
CACHED = ["clip", "maskclip", "sclip", "clearclip", "naclip", "gem", "scclip", "resclip", "cliptrase", "corrclip", "proxyclip"]
WITHOUT_TRUNK = {"rf_clip", "tagclip_training_free"}  # no input of a block of theirs is that of the other methods


def build(name, clip, vocabulary, **options):
    crop = {"resize": "keep_ratio"} if ob.compose_recipe(name).resize == "center_crop" else {}
    used = {key: value for key, value in SMALL.items() if key not in ob.SEGMENTORS.get(name).unused()}
    return ob.build_segmentor(name, clip=clip, vocabulary=vocabulary, **(used | crop | sources_of(name) | options))


def label_maps(segmentors, images=IMAGES, **options):
    found = {key: [p.label_map for p in outcome] for key, outcome in predict(segmentors, images.items(), **options)}
    assert list(found) == list(images)
    return found


def equal(one, other):
    return all(torch.equal(a, b) for key in one for a, b in zip(one[key], other[key], strict=True))


@pytest.fixture
def passes(monkeypatch):
    """The number of windows of every pass of the trunk."""
    sizes, trunk = [], ob.DenseCLIP.trunk

    def counted(self, pixels, *arguments):
        sizes.append(len(pixels))
        return trunk(self, pixels, *arguments)

    monkeypatch.setattr(ob.DenseCLIP, "trunk", counted)
    return sizes


@pytest.mark.parametrize("name", ["clip", "sclip", "naclip"])
def test_the_loop_in_the_style_of_the_official_codes_gives_the_same_labels(name, tiny_clip, tiny_vocabulary):
    for options in ({}, {"threshold": 0.3}, {"pad": "center", "window": 50, "stride": 30}):
        segmentor = build(name, tiny_clip, tiny_vocabulary, **{"pad": "none", "position": "offset"} | options)
        for key, (labels,) in label_maps([segmentor], batch=5).items():
            assert (official_label_map(segmentor, IMAGES[key]) == labels).float().mean() > 0.9999


@pytest.mark.parametrize("name", CACHED)
def test_with_a_full_trunk_cache_no_trunk_runs_and_the_labels_are_the_same(name, tiny_clip, tiny_vocabulary, passes, tmp_path):
    segmentor = build(name, tiny_clip, tiny_vocabulary)
    expected = label_maps([segmentor], batch=5)
    first = label_maps([segmentor], batch=5, trunk_cache=TrunkCache(tmp_path, 1e9))
    passes.clear()
    again = label_maps([segmentor], batch=5, trunk_cache=TrunkCache(tmp_path, 1e9))
    if name != "cliptrase":  # its regions take a pass over the whole image
        assert passes == []
    assert equal(expected, first)
    assert equal(expected, again)


def test_methods_that_change_the_last_block_share_a_trunk_cache(tiny_clip, tiny_vocabulary, passes, tmp_path):
    segmentors = [build(name, tiny_clip, tiny_vocabulary, pad="none") for name in CACHED[:5]]
    label_maps(segmentors[:1], batch=5, trunk_cache=TrunkCache(tmp_path, 1e9))
    passes.clear()
    for segmentor in segmentors[1:]:
        label_maps([segmentor], batch=5, trunk_cache=TrunkCache(tmp_path, 1e9))
    assert passes == []
    label_maps(
        [build("sclip", tiny_clip, tiny_vocabulary, pad="none", stride=16)], batch=5, trunk_cache=TrunkCache(tmp_path, 1e9)
    )
    assert passes


def test_an_image_that_is_not_in_the_cache_is_encoded_among_those_that_are(tiny_clip, tiny_vocabulary, tmp_path):
    segmentor = build("sclip", tiny_clip, tiny_vocabulary)
    some = {key: IMAGES[key] for key in ("image0", "image3")}
    label_maps([segmentor], some, batch=5, trunk_cache=TrunkCache(tmp_path, 1e9))
    assert equal(label_maps([segmentor], batch=5, trunk_cache=TrunkCache(tmp_path, 1e9)), label_maps([segmentor], batch=5))


def test_thresholds_share_the_logits(tiny_clip, tiny_vocabulary, monkeypatch):
    calls, patch_logits = [], ob.LastBlockSegmentor.patch_logits
    monkeypatch.setattr(
        ob.LastBlockSegmentor, "patch_logits", lambda self, batch: calls.append(self) or patch_logits(self, batch)
    )
    segmentors = [build("sclip", tiny_clip, tiny_vocabulary, threshold=value) for value in (0.0, 0.3, 0.4)]
    together = label_maps(segmentors, batch=5)
    assert {id(segmentor) for segmentor in calls} == {id(segmentors[0])}
    for place, segmentor in enumerate(segmentors):
        alone = label_maps([segmentor], batch=5)
        assert all(torch.equal(maps[place], alone[key][0]) for key, maps in together.items())
    assert not equal({key: maps[:1] for key, maps in together.items()}, {key: maps[2:] for key, maps in together.items()})


def test_methods_in_one_run_share_the_trunk_and_give_the_labels_that_each_gives_alone(tiny_clip, tiny_vocabulary, passes):
    shared = {"pad": "none", "position": "offset", "normalize": "clip", "activation": None, "resize": "keep_ratio"}
    shared |= {"long_side": 2048, "threshold": 0}
    segmentors = {}
    for name in on_clip_alone():
        options = {key: value for key, value in shared.items() if key not in ob.SEGMENTORS.get(name).unused()}
        segmentors[name] = build(name, tiny_clip, tiny_vocabulary, **options)
    images = {key: IMAGES[key] for key in ("image0", "image1")}  # one of several windows, one smaller than a window
    together = label_maps(list(segmentors.values()), images, batch=5)
    windows = Counter(passes)
    alone = {}
    for name, segmentor in segmentors.items():
        passes.clear()
        found = label_maps([segmentor], images, batch=5)
        alone[name] = Counter(passes)
        place = list(segmentors).index(name)
        assert all(torch.equal(maps[place], found[key][0]) for key, maps in together.items()), name
    own = sum((alone[name] - alone["clip"] for name in segmentors), Counter())
    assert windows == alone["clip"] + own  # beside the shared trunk, what methods encode apart: altered windows, whole images
    assert {name for name in segmentors if alone[name] != alone["clip"]} == {"cliptrase", "itaclip", *WITHOUT_TRUNK}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_score_of_a_whole_image_that_is_not_finite_is_an_error(bad, tiny_clip, tiny_vocabulary, monkeypatch):
    segmentor = build("tagclip_training_free", tiny_clip, tiny_vocabulary)
    original = type(segmentor).image_scores

    def damaged(self, context):
        scores = original(self, context).clone()
        scores[1, 3, 7] = bad
        return scores

    monkeypatch.setattr(type(segmentor), "image_scores", damaged)
    with pytest.raises(ob.OvssError, match=r"non-finite scores .* in image image0"):
        label_maps([segmentor])


@pytest.mark.parametrize("batch", [None, 16])
def test_batches_are_halved_when_out_of_memory(batch, tiny_clip, tiny_vocabulary, monkeypatch):
    segmentor = build("sclip", tiny_clip, tiny_vocabulary)
    expected = label_maps([segmentor], batch=batch)
    sizes, trunk = [], ob.DenseCLIP.trunk

    def small(self, pixels, *arguments):
        sizes.append(len(pixels))
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return trunk(self, pixels, *arguments)

    monkeypatch.setattr(ob.DenseCLIP, "trunk", small)
    found = label_maps([segmentor], batch=batch)
    same = sum(int((a == b).sum()) for key in found for a, b in zip(found[key], expected[key], strict=True))
    assert same / sum(maps[0].numel() for maps in expected.values()) > 0.99999
    assert max(sizes) > 3
    first = next(place for place, size in enumerate(sizes) if size <= 3)
    assert max(sizes[first:]) <= 3  # what did not fit is not tried again


def test_a_window_that_does_not_fit_into_memory_is_an_error(tiny_clip, tiny_vocabulary, monkeypatch):
    def none(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(ob.DenseCLIP, "trunk", none)
    with pytest.raises(ob.OvssError, match="out of memory: one window"):
        label_maps([build("sclip", tiny_clip, tiny_vocabulary)])


def test_other_errors_of_a_pass_are_not_taken_for_out_of_memory(tiny_clip, tiny_vocabulary, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(ob.DenseCLIP, "trunk", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        label_maps([build("sclip", tiny_clip, tiny_vocabulary)])


def test_a_gpus_batch_is_what_its_free_memory_holds(monkeypatch):
    windows = SlidingWindow.of(336, 448, 224, 112, 16, "none")
    clip = SimpleNamespace(device=torch.device("cuda"), width=768, dtype=torch.float16)
    for free, expected in ((80e9, 65536 // 197), (2e9, 103), (1e6, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (int(free), 0))
        assert batch_size(windows, clip) == expected
    clip.device = torch.device("cpu")
    assert batch_size(windows, clip) == 12


def test_precision_is_fp32_on_a_cpu_and_fp16_on_a_gpu_unless_asked_for(tiny_clip):
    assert [default_precision(device) for device in ("cpu", "cuda", torch.device("cuda", 1))] == ["fp32", "fp16", "fp16"]
    assert tiny_clip.precision == "fp32"


class Largest(TorchDispatchMode):
    """The most bytes that a tensor made by an operator has, views of larger ones not counted."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, torch.Tensor):
                self.bytes = max(self.bytes, each.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_no_tensor_holds_all_queries_at_full_size(threshold, tiny_clip):
    image = {"large": rgb_image(1, 600, 800)}
    largest = {}
    for queries in (21, 1281):
        group = sorted(q % 21 for q in range(queries))
        vocabulary = ob.Vocabulary.from_features(query_features(31, queries), group, background=True)
        segmentor = build("sclip", tiny_clip, vocabulary, threshold=threshold)
        with Largest() as seen:
            label_maps([segmentor], image, batch=6)
        largest[queries] = seen.bytes
    assert largest[1281] < 1281 * 600 * 800 * 4 / 100
    assert largest[1281] - largest[21] < 16e6


@pytest.mark.parametrize(("name", "options"), [("naclip", {"pamr_steps": 2}), ("gem", {"min_max": True})])
def test_refined_maps_give_the_labels_of_the_class_scores(name, options, tiny_clip, monkeypatch):
    group = [0, 2, 0, 1, -1, 2, 3, 3]
    vocabulary = ob.Vocabulary.from_features(query_features(31, len(group)), group, background=True)
    segmentor = build(name, tiny_clip, vocabulary, threshold=0.3, **options)
    expected = {key: p.label_map for key, (p,) in predict([segmentor], IMAGES.items(), batch=5, keep_scores=True)}
    for bytes_at_a_time in (2**26, 3 * 4 * 120 * 150, 1):
        monkeypatch.setattr(finish, "PART_BYTES", {"cpu": bytes_at_a_time})
        for key, (labels,) in label_maps([segmentor], batch=5).items():
            assert (labels == expected[key]).float().mean() > 0.9999


def test_pamr_does_not_hold_all_queries_at_full_size(tiny_clip, monkeypatch):
    monkeypatch.setattr(finish, "PART_BYTES", {"cpu": 2**20})
    largest = {}
    for queries in (21, 421):
        vocabulary = ob.Vocabulary.from_features(query_features(31, queries), [q % 21 for q in range(queries)], background=True)
        segmentor = build("naclip", tiny_clip, vocabulary, threshold=0.2, pamr_steps=1)
        with Largest() as seen:
            label_maps([segmentor], {"one": rgb_image(1, 150, 200)}, batch=6)
        largest[queries] = seen.bytes
    assert largest[421] < 421 * 150 * 200 * 4 / 4
    assert largest[421] - largest[21] < 4e6


def test_label_maps_that_come_a_batch_later_as_from_a_gpu_are_the_same(tiny_clip, tiny_vocabulary, monkeypatch):
    segmentors = [build(name, tiny_clip, tiny_vocabulary, pad="none") for name in ("sclip", "clearclip")]
    expected, init = label_maps(segmentors, batch=5), Forward.__init__

    def on_gpu(self, *arguments):
        init(self, *arguments)
        self.on_gpu = True

    monkeypatch.setattr(Forward, "__init__", on_gpu)
    assert equal(label_maps(segmentors, batch=5), expected)


def test_without_windows_label_maps_come_an_image_later_not_at_the_end(tiny_clip, tiny_vocabulary, monkeypatch):
    segmentor, asked, init = build("clip_diy", tiny_clip, tiny_vocabulary), [], Forward.__init__
    expected = label_maps([segmentor])

    def on_gpu(self, *arguments):
        init(self, *arguments)
        self.on_gpu = True

    monkeypatch.setattr(Forward, "__init__", on_gpu)
    images = ((key, lambda key=key: asked.append(key) or IMAGES[key]) for key in [*IMAGES] * 5)
    before = [(key, len(asked), maps) for key, maps in predict([segmentor], images)]
    assert [key for key, *_ in before] == [*IMAGES] * 5
    assert before[0][1] < 10
    assert all(torch.equal(maps[0].label_map, expected[key][0]) for key, _, maps in before)


def test_an_image_that_does_not_fit_into_memory_is_an_error(tiny_clip, tiny_vocabulary, monkeypatch):
    def none(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(finish, "compose", none)
    with pytest.raises(ob.OvssError, match=r"out of memory: image image0 of 120 x 150 pixels"):
        label_maps([build("sclip", tiny_clip, tiny_vocabulary)])


def test_images_are_let_go_when_they_are_done(tiny_clip, tiny_vocabulary):
    segmentor = build("sclip", tiny_clip, tiny_vocabulary)
    most = 0
    for key, _ in predict([segmentor], ((n, rgb_image(n, 70, 90)) for n in range(60)), batch=4, workers=2):
        if key % 15 == 14:
            gc.collect()
            most = max(most, sum(isinstance(thing, ImageContext) for thing in gc.get_objects()))
    assert most <= 24  # two a image: those that are read ahead, and those with windows in the queue


def test_every_file_is_read_once_for_all_segmentors_and_class_sets(tiny_clip, voc, monkeypatch):
    reads = Counter()
    for name in ("image", "raw_label"):
        original = getattr(ob.SegDataset, name)

        def counted(self, sample, name=name, original=original):
            reads[name, self.name, sample.id] += 1
            return original(self, sample)

        monkeypatch.setattr(ob.SegDataset, name, counted)
    datasets = [ob.load_dataset(name, voc) for name in ("voc21", "voc20")]
    overrides = {"templates": "none", "threshold": 0.0, "area_threshold": 0.0, "pamr_steps": 0, "pad": "none", "short_side": 80}
    overrides |= {"window": 64, "stride": 32}
    jobs = [make_job(n, tiny_clip, d, overrides=overrides) for d in datasets for n in ("clip", "sclip", "clearclip")]
    run_jobs(jobs, limit=4, quiet=True)
    assert set(reads.values()) == {1}
    assert len(reads) == 4 + 2 * 4


def test_in_threads_keeps_the_order_and_what_came_before_an_end():
    assert list(in_threads(lambda n: n * n, range(30), 3)) == [n * n for n in range(30)]

    def items():
        yield from range(5)
        raise SystemExit(3)

    found = []

    def consume():
        for result in in_threads(str, items(), 2):
            found.append(result)

    with pytest.raises(SystemExit):
        consume()
    assert found == list("01234")


def test_compiled_blocks_give_the_same_labels(tiny_vocabulary, tiny_state_dict, monkeypatch):
    clip = ob.load_clip(state_dict=tiny_state_dict)
    segmentor = build("sclip", clip, tiny_vocabulary)
    expected = label_maps([segmentor], batch=5)
    compiled, real = [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compiled.append(options) or real(function, backend="eager")
    )
    segmentor.clip.compile()
    assert compiled == [{"dynamic": False}]
    assert equal(label_maps([segmentor], batch=5), expected)


def test_label_maps_are_of_the_vocabulary_with_distractors_and_unsorted_queries(tiny_clip):
    features = query_features(31, 7)
    group = [2, 0, -1, 1, 0, -1, 2]
    vocabulary = ob.Vocabulary.from_features(features, group, background=True)
    segmentor = build("sclip", tiny_clip, vocabulary, threshold=0.2)
    (fast,) = label_maps([segmentor], {"one": IMAGES["image0"]}, batch=5)["one"]
    ((_, (slow,)),) = predict([segmentor], [("one", IMAGES["image0"])], batch=5, keep_scores=True)
    assert (fast == slow.label_map).float().mean() > 0.9999
    assert len(np.unique(fast)) > 1
