"""Images that cannot fit into memory are refused before anything is computed for them; the others go on."""

import multiprocessing
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

import ovss_bench as ob
from ovss_bench.inference.engine import predict
from ovss_bench.inference.memory import free_memory
from parity.seeded import query_features
from stand_ins import sources_of

FORK = multiprocessing.get_context("fork")
WHOLE = {"resize": "none", "window": "whole", "scored_at": "original", "pad": "none", "pad_multiple": None}
IMAGES = {"a": (32, 48), "strip": (16, 16 * 30000), "b": (48, 32)}
MAPS = ["naclip", "cliptrase", "scclip", "sfp", "rf_clip", "resclip", "proxyclip", "corrclip", "corrclip_v2", "cliper"]


def in_half_a_gigabyte(work):
    """The result of `work` in a process that may take half a gigabyte more."""

    def limited():
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 2**29, taken + 2**29))
        torch.set_num_threads(1)
        answers.put(work())

    answers = FORK.SimpleQueue()
    child = FORK.Process(target=limited)
    child.start()
    answer = answers.get()
    child.join()
    return answer


@pytest.mark.parametrize("name", MAPS)
def test_an_image_that_needs_too_much_is_refused_with_its_size(name, tiny_clip, tiny_vocabulary):
    segmentor = ob.build_segmentor(name, clip=tiny_clip, vocabulary=tiny_vocabulary, **(WHOLE | sources_of(name)))
    images = [(key, np.zeros((*size, 3), np.uint8)) for key, size in IMAGES.items()]

    def work():
        return [(key, str(found) if isinstance(found, ob.OvssError) else None) for key, found in predict([segmentor], images)]

    outcomes = dict(in_half_a_gigabyte(work))
    assert list(outcomes) == list(IMAGES)
    assert outcomes["a"] is outcomes["b"] is None
    assert f"out of memory: {name} needs at least" in outcomes["strip"]
    assert "image strip of 16 x 480000 pixels" in outcomes["strip"]


def test_whole_maps_and_logits_count_too(tiny_clip):
    vocabulary = ob.Vocabulary.from_features(query_features(31, 300))
    segmentor = ob.build_segmentor("gem_original", clip=tiny_clip, vocabulary=vocabulary, **WHOLE)
    image = np.zeros((700, 1000, 3), np.uint8)
    ((_, outcome),) = in_half_a_gigabyte(lambda: [(k, str(v)) for k, v in predict([segmentor], [("large", image)])])
    assert "out of memory: gem_original needs at least" in outcome


def test_one_image_that_needs_too_much_is_refused_with_its_size(tiny_clip, tiny_vocabulary):
    segmentor = ob.build_segmentor("naclip", clip=tiny_clip, vocabulary=tiny_vocabulary, **WHOLE)

    def work():
        try:
            return str(ob.segment(segmentor, np.zeros((*IMAGES["strip"], 3), np.uint8)))
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    assert in_half_a_gigabyte(work).startswith("OvssError: out of memory: naclip needs at least")


def test_free_memory_is_what_the_kernel_says_at_most():
    free = free_memory(torch.device("cpu"))
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert 0 < free < 1024 * int(total.split()[1])
