"""How often the CPU waits for the shadow GPU, and what it copies there, counted: it waits for no window or tile, and copies
constants only once."""

from collections import Counter

import pytest
import torch

import ovss_bench as ob
from device.methods import STEPPED, branches, build, predictions, vocabulary
from device.shadow import REAL
from ovss_bench.bench.stand_ins import given_experts
from ovss_bench.inference import finish
from ovss_bench.ops import compose
from ovss_bench.ops.device import to_device
from ovss_bench.segmentors.steps.floss import FLOSS
from parity.seeded import rgb_image
from stand_ins import METHODS

pytestmark = pytest.mark.skipif(REAL, reason="about the shadow GPU")

NAMES = [*METHODS, *STEPPED]
# Waits that grow with the number of windows or batches: method, function -> why.
PER_WINDOW = {
    "lavg": {"LaVG.panoptic_cut": "once an image: eigenproblems and components of data-dependent size are solved on the CPU"},
    "cass": {
        "CASS.pairs": "once a batch: SciPy solves the assignment of the heads on the CPU",
    },
    "corrclip": {
        "merge_regions": "scikit-learn's DBSCAN clusters the regions of a window on the CPU",
        "class_tokens": "once a batch: the number of regions in its windows is the number of tokens",
    },
    "corrclip_v2": {
        "merge_regions": "as in corrclip; off by default",
        "class_tokens": "as in corrclip",
    },
    "tagclip_training_free": {"TagCLIPTrainingFree.image_tags": "once an image, if it has a box to look at again"},
}
TRANSFORMERS = {
    "Sam3DetrEncoder._prepare_multilevel_features": "a shape, by transformers",
    "Sam3GeometryEncoder._encode_boxes": "a shape, by transformers",
}
INSIDE = {
    "Sam3DetrDecoder._get_coords": "a shape, by transformers",
    "_ignore_bidirectional_mask_sdpa": "whether all tokens of the prompts are valid, by transformers",
}
CHUNK = "once a chunk of prompts in each window (`slide_crop`): presence decides which masks are made"
PER_WINDOW["segearth_ov3"] = TRANSFORMERS | INSIDE | {"Concepts.on_host": CHUNK}
PER_WINDOW["ov_stitcher"] = {"class_tokens": "as in corrclip"}
PER_WINDOW["sclip+floss"] = {"where_true": "once a batch: in how many cells each expert may fire"}
PER_WINDOW["sclip+freecp"] = {
    "Purification.refined": "once a batch: OpenCV finds the boxes of the maps",
    "Purification.unambiguous": "once a batch: SciPy groups classes, OpenCV finds their boxes; then the best of each crop",
}
# Copies to the GPU of what belongs to a single image, beside its pixels: method, function -> what is copied.
REGIONS = {"region_map": "the regions, an array of NumPy"}
FEATURES = {"image_features": "the pixels at their original size, and the features, which pass through the run's cache"}
PER_IMAGE = {
    "corrclip": REGIONS | {"merge_regions": "the clusters of DBSCAN"},
    "corrclip_v2": REGIONS | FEATURES | {"merge_regions": "the clusters of DBSCAN"},
    "cass": {"CASS.pairs": "the pairs of heads"},
    "trident": {
        "Trident.correlated": "SAM's values and attention, which a stand-in computes on the CPU",
        "Trident.correct": "the masks of a stand-in for SAM's decoder",
    },
    "lavg": {
        "LaVG.masks": "the masks, which pass through the run's cache",
        "LaVG.panoptic_cut": "the image as a square, resized by Pillow",
    },
    "cliptrase": {
        "CLIPtrase.clusters": "the clusters of scikit-learn's DBSCAN",
        "CLIPtrase.voting_regions": "the maps after SciPy's median filter",
    },
    "cliper": FEATURES | {"CLIPer.propagate": "the attention maps of a diffusion model on the CPU"},
    "lposs": {"propagate_pixels": "the colours of the image, by scikit-image"},
    "clip_diy": {
        "Segmentor.embed": "the patches, resized by OpenCV",
        "CLIPDIY.patch_cosines": "their embeddings, which pass through the run's cache",
        "CLIPDIY.image_cosines": "the foreground, an array of NumPy",
    },
    "tagclip_training_free": {
        "TagCLIPTrainingFree.image_tags": "the places inside a box of OpenCV",
        "TagCLIPTrainingFree.boxes": "the boxes of OpenCV",
        "Segmentor.indices": "the tags",
        "TagCLIPTrainingFree.with_crf": "the image at its own size",
    },
}
CONCEPTS = TRANSFORMERS | {
    "ConceptSegmenter._features": "the pixels at the network's size, resized by torchvision on the CPU as in the official code",
    "PromptMaps.prompt_maps": "the instances that count",
}
PER_IMAGE["sam3"] = CONCEPTS | {"ConceptSegmenter.masks": "the prompts that get masks"}
PER_IMAGE["segearth_ov3"] = CONCEPTS | {"ConceptSegmentor.mean_maps": "how many windows cover a pixel"}
PER_IMAGE["active_sam"] = CONCEPTS | {"chosen": "the prompts that the preview chooses"}
PER_IMAGE["sclip+freecp"] = {
    "Purification.refined": "the boxes of OpenCV",
    "Purification.unambiguous": "the classes that stay",
}
PER_IMAGE["sclip+lposs_pixels"] = PER_IMAGE["lposs"]
PER_IMAGE["sclip+region_vote"] = {"RegionVote.correct": "the regions, an array of NumPy"}
PER_IMAGE["ov_stitcher"] = PER_IMAGE["corrclip"]
NARROW, WIDE = (96, 96), (96, 192)  # 4 and 8 windows in batches of 4


@pytest.fixture(autouse=True)
def without_texts(monkeypatch):
    monkeypatch.setattr(FLOSS, "classifiers", given_experts)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Many tiles for each image, and PAMR in parts."""
    monkeypatch.setitem(compose.TILE_BYTES, "cuda", 2**14)
    monkeypatch.setattr(compose, "TILE_COLUMNS", 16)
    monkeypatch.setitem(finish.PART_BYTES, "cuda", 2**18)


def observed(segmentor, gpu, size):
    """(waits, uploads) for the second of two images of a size."""
    segmentor.encode_text()
    predictions(segmentor, {"first": rgb_image(1, *size)})
    gpu.waits.clear()
    gpu.uploads.clear()
    predictions(segmentor, {"second": rgb_image(2, *size)})
    return list(gpu.waits), list(gpu.uploads)


class Seen:
    """What is observed for a method: `waits` and `uploads` for an image of few windows and tiles, `more`: waits for many."""

    def __init__(self, segmentor, gpu):
        self.only_logits = segmentor.only_logits
        self.waits, self.uploads = observed(segmentor, gpu, NARROW)
        self.more, _ = observed(segmentor, gpu, WIDE)

    def growth(self, exempt=()):
        """Waits for the image of many windows and tiles beyond those for that of few, by operation, function and line."""
        few, many = (Counter(wait[:3] for wait in waits if wait.function not in exempt) for waits in (self.waits, self.more))
        return many - few

    def constants(self, exempt=()):
        """What is copied to the GPU for a second image of the same size, except its pixels."""
        return [upload for upload in self.uploads if upload.function not in {"_read_ahead", *exempt}]


@pytest.fixture(scope="module")
def known():
    return {}


@pytest.fixture
def seen(known, clips, gpu):
    """`seen(name)`: `Seen` of a method by the values that it runs with, observed once."""

    def of(name):
        if name not in known:
            segmentors = [(values, build(name, clips["fp32"][1], **values)) for values in branches(name)]
            known[name] = [(values, Seen(segmentor, gpu)) for values, segmentor in segmentors]
        return known[name]

    return of


@pytest.mark.parametrize("name", NAMES)
def test_waits_do_not_grow_with_windows_and_tiles(name, seen):
    for values, runs in seen(name):
        assert not runs.growth(PER_WINDOW.get(name, ())), values


@pytest.mark.parametrize("name", NAMES)
def test_constants_are_copied_once(name, seen):
    for values, runs in seen(name):
        assert not runs.constants(PER_IMAGE.get(name, ())), values


@pytest.mark.parametrize("name", NAMES)
def test_a_method_without_hooks_after_its_logits_never_waits(name, seen):
    for values, runs in seen(name):
        waits = [wait for wait in runs.waits + runs.more if wait.function not in PER_WINDOW.get(name, ())]
        assert not (runs.only_logits and waits), values


@pytest.mark.parametrize(("table", "noted"), [(PER_WINDOW, "waits"), (PER_IMAGE, "uploads")], ids=["waits", "copies"])
def test_exemptions_are_needed(table, noted, seen):
    """An exemption whose reason no longer holds is removed."""
    assert table.keys() <= set(NAMES)
    for name, functions in table.items():
        assert functions.keys() <= {event.function for _, runs in seen(name) for event in getattr(runs, noted)}, name


# The checks above fail for methods that do it wrong.


def register(name, **members):
    ob.SEGMENTORS.register_module(name=name)(type(name, (ob.SEGMENTORS.get("sclip"),), {"__module__": __name__, **members}))


def sclip(self, batch):
    return ob.SEGMENTORS.get("sclip").patch_logits(self, batch)


def item_per_window(self, batch):
    logits = sclip(self, batch)
    return torch.stack([window / max(window.max().item(), 1.0) for window in logits])


def mask_per_window(self, batch):
    logits = sclip(self, batch)
    for window in logits:
        window[window < window[window > 0].mean()] *= 0.9
    return logits


def copy_per_batch(self, batch):
    logits = sclip(self, batch)
    return logits * torch.ones(logits.shape[1:]).to(logits.device)


def tile_to_host(self, cosines, context):
    return self.decision.class_scores(to_device(torch.from_numpy(cosines.numpy(force=True)), cosines.device))


@pytest.mark.parametrize(
    ("members", "operation"),
    [
        ({"patch_logits": item_per_window}, "item"),
        ({"patch_logits": mask_per_window}, "index by a mask"),
        ({"patch_logits": copy_per_batch}, "to from pageable memory"),
        ({"scores": tile_to_host, "uses": ("logit_scale",)}, "numpy(force=True)"),
    ],
    ids=["item", "mask", "copy", "tile"],
)
def test_a_wait_per_window_or_tile_is_found(members, operation, clips, gpu):
    register("wrong", **members)
    segmentor = ob.build_segmentor("wrong", clip=clips["fp32"][1], vocabulary=vocabulary(), short_side=80, window=64, stride=32)
    found = Seen(segmentor, gpu).growth()
    assert {wait[0] for wait in found} == {operation}
    assert all("test_waits.py" in wait[2] for wait in found)


def test_a_constant_that_is_copied_for_every_image_is_found(clips, gpu):
    register("wrong", patch_logits=copy_per_batch)
    segmentor = ob.build_segmentor("wrong", clip=clips["fp32"][1], vocabulary=vocabulary(), short_side=80, window=64, stride=32)
    assert {copy.function for copy in Seen(segmentor, gpu).constants()} == {"copy_per_batch"}
