"""A case for every method on a concept segmenter: its cost compared with the bare passes over image, texts and all prompts, and
the number of prompts that its decoders saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..config.recipe import compose_recipe
from ..encoders.concepts import load_concepts
from ..inference.engine import predict
from ..ops.pictures import stretch
from ..segmentors.build import build_segmentor
from .cases import Case, drawn_images
from .memory import peak_memory
from .watch import Watched, own_operations
from .ways import BARE, MEMORY_SIZE, METHOD, Ways

FULL_SIDE, PREVIEW = 1008, 112  # pixels: SAM 3's input; the preview for smaller networks, two thirds of the demo's input


def concept_ways(case: Case, folder: Path) -> Ways:
    """The ways to measure for the case's method, with its recipe for an unknown data set. Both costs include the texts, which
    are encoded for every image."""
    segmentor, image = _built(case, folder)
    network, stages = segmentor.segmenter, Watched()
    queries = [segmentor.vocabulary.queries[query] for query in segmentor.rows]

    def run(image: Any = image) -> None:
        network.forget()
        fresh = segmentor.with_recipe(segmentor.recipe)  # without encoded texts
        with stages.watching():
            list(predict([fresh], [(0, image)], stages=stages))

    def bare() -> None:
        network.forget()
        texts, features = network.texts(queries), network.image(image)
        for start in range(0, len(queries), network.chunk()):
            chunk = texts[start : start + network.chunk()]
            network.masks(features, network.detect(features, chunk), range(len(chunk)))

    memory = peak_memory(lambda: run(stretch(image, MEMORY_SIZE, "bilinear")), network.device)
    before = dict(network.decoded)
    run()
    counts = {part: network.decoded[part] - before[part] for part in before}
    bare()
    stages.clear()
    counts |= {"prompts": len(queries), "skipped": round(1 - counts["masks"] / len(queries), 4)}
    ways = {BARE: bare, METHOD: run}
    return Ways(ways, stages.seconds, {}, network.device, memory, counts, lambda: own_operations(stages.samples, False), True)


def _built(case: Case, folder: Path) -> tuple[Any, np.ndarray]:
    """The method with the case's concept segmenter and a drawn image (H, W, 3) uint8."""
    (method,) = case.segmentor
    network = load_concepts(case.concepts, precision=case.precision or "fp32", device=case.device)
    options: dict[str, Any] = {"preview_resolution": PREVIEW} if network.side < FULL_SIDE else {}
    options = {name: value for name, value in options.items() if name in compose_recipe(method).hyperparameters}
    dataset = drawn_images(case, folder)
    names = [[f"class {number}"] for number in range(case.classes)]
    segmentor = build_segmentor(method, vocabulary=names, concepts=network, **options)
    return segmentor, dataset.image(dataset.samples[0])
