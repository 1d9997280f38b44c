"""Inputs of the benchmark: CLIP with random or real weights, drawn images, and queries that distinguish patches."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ..auxiliary import SOURCES
from ..config.recipe import compose_recipe, segmentor_config
from ..config.registry import SEGMENTORS
from ..datasets.base import SegDataset, load_dataset
from ..datasets.demo.scenes import DEMO_CLOTHS, draw_scene
from ..encoders.clip import PRECISIONS, DenseCLIP, default_precision
from ..encoders.clip_loading import load_clip
from ..encoders.clip_spec import check_name
from ..errors import OvssError, unknown
from ..files import config_names
from ..image import normalize, resize
from ..inference.engine import make_context
from ..ops.position import resample_position
from ..ops.windows import SlidingWindow
from ..runs.evaluate import Job
from ..segmentors.base import Segmentor
from ..segmentors.build import build_segmentor
from ..vocabulary import Vocabulary
from .stand_ins import Given, Recorded, stand_in

KINDS = 8  # different drawn scenes; further files are copies, because drawing is slow
CLIP_ALONE = "clip_alone"  # stands for all methods of `on_clip_alone`; also the name of a case of configs/bench
Case = SimpleNamespace  # the options of `ovss bench` by name, see CASE in cli/bench.py


def jobs_of(case: Case, folder: Path) -> list[Job]:
    """The case's segmentors on its data set, or on images drawn into `folder`."""
    clip = clip_of(case)
    if case.dataset:
        dataset = load_dataset(case.dataset)
        names, templates = ("demo", "notebook7") if dataset.name == "demo" else (None, "photo")
        vocabulary = dataset.vocabulary(names, templates)
        options: dict[str, Any] = {}
    else:
        dataset = drawn_images(case, folder)
        options = {"resize": "keep_ratio", "short_side": case.short_side, "long_side": 2048, "pad": "none"}
        options |= {"window": case.window, "stride": case.stride, "threshold": case.threshold}
        options |= {"activation": None, "position": "offset", "normalize": "clip", "scored_at": "original"}
        vocabulary = queries_of(case, clip, dataset.image(dataset.samples[0]), case.threshold > 0)
    options["pamr_steps"] = 0
    names = on_clip_alone() if case.segmentor == [CLIP_ALONE] else case.segmentor
    jobs = []
    for name in names:
        unused, values = segmentor_config(name)[1].unused(), options
        if case.shape:
            values = recipe_for(name, clip, case.shape) | {"pamr_steps": 0}
        values = {option: value for option, value in values.items() if option not in unused}
        values |= {} if case.dataset else stand_ins_of(name, clip, given=True)
        jobs.append(Job(name, build_segmentor(name, clip=clip, vocabulary=vocabulary, **values), dataset, "paper"))
    return jobs


def recipe_for(segmentor: str, clip: DenseCLIP, dataset: str) -> dict[str, Any]:
    """The recipe values that a method changes for a data set, except class names and templates."""
    here, anywhere = (compose_recipe(segmentor, clip=clip.name, dataset=name).values() for name in (dataset, None))
    return {name: value for name, value in here.items() if value != anywhere[name] and name not in ("names", "templates")}


def stand_ins_of(segmentor: str, clip: DenseCLIP, given: bool) -> dict[str, Given | Recorded]:
    """A stand-in for each auxiliary model of a method, see `stand_in`."""
    feature = compose_recipe(segmentor, clip=clip.name).hyperparameters.get("feature")
    return {kind: stand_in(kind, clip, feature, given) for kind in taken(segmentor) if kind != "bank"}


def with_clip(job: Job, clip: DenseCLIP) -> Job:
    """The same job with a copy of `clip`, which may have other weights."""
    built = job.segmentor
    return replace(job, segmentor=type(built)(clip, built.vocabulary, built.recipe, built.sources))


def taken(segmentor: str) -> set[str]:
    """The kinds of auxiliary models that a method requires, or that its recipe names."""
    values, required = compose_recipe(segmentor).hyperparameters, segmentor_config(segmentor)[1].requires
    return {kind for kind in SOURCES if kind in required or values.get(kind)}


def on_clip_alone() -> list[str]:
    """The registered methods that need only CLIP: no auxiliary models, no trained weights."""
    methods = SEGMENTORS.module_dict.items()
    return sorted(
        name
        for name, method in methods
        if method.uses_clip and not taken(name) and "checkpoint" not in method.hyperparameters()
    )


def in_memory(dataset: SegDataset, limit: int) -> SegDataset:
    """The data set with `limit` images and labels held in memory."""
    other, samples = copy.copy(dataset), dataset.select(limit)
    images = {sample.id: dataset.image(sample) for sample in samples}
    labels = {sample.id: dataset.label(sample) for sample in samples}
    other.image = lambda sample: images[sample.id]
    other.label = lambda sample, size=None: labels[sample.id]
    return other


def windows_of(segmentor: Segmentor, image: np.ndarray) -> torch.Tensor:
    """All windows (B, 3, h, w) of an image, as input of the encoder."""
    context = make_context(image, segmentor)
    height, width = context.resized.shape[:2]
    windows = SlidingWindow.by(segmentor.recipe, height, width, segmentor.clip.patch_size)
    return torch.stack(windows.cut(context.pixels))


def bare_encoder(clip: DenseCLIP, grid: tuple[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """open_clip's forward pass of the image tower, which returns the class token, for windows of `grid` patches."""
    visual: Any = copy.copy(clip.model.visual)
    position = resample_position(visual.positional_embedding, grid, clip.stored_grid, "offset")
    visual._parameters = visual._parameters | {"positional_embedding": nn.Parameter(position, requires_grad=False)}

    @torch.inference_mode()
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return F.normalize(visual(pixels.to(clip.device, clip.dtype)).float(), dim=-1)

    return encode


def graphed(encode: Callable[[torch.Tensor], torch.Tensor], windows: torch.Tensor) -> Callable[[], None]:
    """A pass over windows on a GPU as a CUDA graph: the same kernels, which the CPU launches all at once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # PyTorch requires a warm-up on a side stream, which initialises libraries
        for _ in range(3):
            encode(windows)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        encode(windows)
    return graph.replay


def clip_of(case: Case) -> DenseCLIP:
    if case.clip in config_names("clip"):
        return load_clip(case.clip, precision=case.precision, device=case.device)
    check_name(case.clip)
    precision = case.precision or default_precision(case.device)
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    torch.manual_seed(0)
    model = open_clip.create_model(case.clip, precision=precision, force_quick_gelu=True)
    clip = DenseCLIP(model, open_clip.get_tokenizer(case.clip), case.clip, "quick_gelu")
    clip.to(case.device, precision)
    return clip


def drawn_images(case: Case, folder: Path) -> SegDataset:
    """A data set of drawn scenes (JPEG), whose labels (PNG) contain all classes."""
    if not 0 < case.classes <= case.queries:
        raise OvssError(f"classes={case.classes} queries={case.queries}: expected at least one query per class.")
    rng = np.random.RandomState(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for number in range(case.images):
        if number >= KINDS:
            for kind, suffix in (("images", "jpg"), ("labels", "png")):
                shutil.copy(folder / kind / f"{number % KINDS:04d}.{suffix}", folder / kind / f"{number:04d}.{suffix}")
            continue
        image, index = draw_scene(rng, case.height, case.width, list(DEMO_CLOTHS)[:12], number % 5, (60, 120))
        label = (index.astype(np.int32) * 37 + rng.randint(case.classes)) % case.classes
        Image.fromarray(image).save(folder / "images" / f"{number:04d}.jpg", quality=92)
        label = label.astype(np.uint8 if case.classes < 255 else np.uint16)
        Image.fromarray(label).save(folder / "labels" / f"{number:04d}.png")
    config: dict[str, Any] = {"images": "images", "labels": "labels", "image_suffix": ".jpg", "label_suffix": ".png"}
    config |= {"ignore_index": max(255, case.classes), "classes": [f"class {number}" for number in range(case.classes)]}
    config |= {"background": 0} if case.threshold else {}
    (folder / "drawn.yaml").write_text(json.dumps(config), "utf-8")
    return load_dataset(folder / "drawn.yaml")


def queries_of(case: Case, clip: DenseCLIP, image: np.ndarray, background: bool) -> Vocabulary:
    """Queries that give fragmented label maps even with random weights: mixtures of centred patch embeddings."""
    generator = torch.Generator().manual_seed(0)
    pixels = normalize(resize(image, "keep_ratio", case.short_side, 2048, clip.patch_size), "clip")
    _, height, width = pixels.shape
    windows = SlidingWindow.of(height, width, case.window, case.stride, clip.patch_size, "none").cut(pixels)
    trunk = clip.trunk(torch.stack(windows[:4]).to(clip.device))
    patches = clip.head(clip.block(-1, trunk.grid)(trunk.tokens)[:, 1:]).flatten(0, 1).cpu()
    patches = patches - patches.mean(0)
    mixed = torch.randn(case.queries, len(patches), generator=generator) @ patches
    synonyms = torch.randint(case.classes, (case.queries - case.classes,), generator=generator).tolist()
    return Vocabulary.from_features(mixed, sorted([*range(case.classes), *synonyms]), background=background)
