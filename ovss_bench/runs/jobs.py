"""Jobs: each is one segmentor with its recipe on one data set, identified by a fingerprint."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..auxiliary import SOURCES
from ..auxiliary.sources import NamedSource, describe, stated
from ..config.recipe import BESIDE, RECIPE_VALUES, Recipe, compose_recipe, of_class, segmentor_config
from ..datasets.base import Sample, SegDataset
from ..encoders.clip import DenseCLIP, default_precision
from ..encoders.clip_loading import load_spec
from ..encoders.clip_spec import NO_CLIP, ClipSpec
from ..encoders.no_clip import NoCLIP
from ..errors import OvssError
from ..files import CONFIGS, digest, path_digest
from ..image import resize
from ..ops.windows import SlidingWindow
from ..segmentors.base import Segmentor
from ..segmentors.build import instantiate
from ..segmentors.hooks import HOOKS
from ..vocabulary import Vocabulary
from .code import row_code, source_digest
from .plan import Plan
from .world import balance


@dataclass(frozen=True)
class Runtime:
    """Options that change numbers by rounding at most."""

    batch: int | None = None  # windows per forward pass; None: by the number of tokens
    workers: int = 2  # reader threads
    skip_bad_images: bool = False
    boundary: bool = False  # also measure mBoundaryIoU
    maps: bool = False  # save the label maps, for the pictures of a report
    save_label_maps: str | None = None  # folder for the label maps of each row, with a manifest
    feature_cache: str | None = None  # folder for region maps and other features, shared by runs
    trunk_cache: str | None = None  # folder for the tokens that enter the last block
    trunk_cache_gb: float = 20  # its maximum size
    compile: bool = False  # torch.compile for the blocks: a minute at the start, then faster
    profile: bool = False  # print the time of each stage, and write a trace

    @property
    def keeps_maps(self) -> bool:
        """Whether label maps are saved anywhere."""
        return self.maps or bool(self.save_label_maps)


@dataclass
class Job:
    """One segmentor with its recipe on one data set: one row of a table."""

    name: str
    segmentor: Segmentor
    dataset: SegDataset
    protocol: str
    fingerprint: str = ""
    first: bool = False  # evaluated before all others, in a separate pass

    @property
    def pass_key(self) -> tuple:
        """Equal for jobs that share one pass of the trunk. A value left to CLIP equals the same value in a recipe."""
        clip = self.segmentor.clip
        defaults = {"pad_multiple": clip.patch_size, "activation": clip.activation, "layer_norm_eps": clip.layer_norm_eps}
        key = self.segmentor.recipe.trunk_key
        values = tuple((name, defaults.get(name) if value is None else value) for name, value in key)
        return self.first, clip.weights_digest, clip.precision, self.dataset.images_digest, values

    @cached_property
    def code(self) -> tuple[dict[str, str], dict[str, str]]:
        """The digests of `row_code`."""
        return row_code((type(self.segmentor), type(self.dataset)), self.segmentor.sources)

    @cached_property
    def sources(self) -> dict[str, dict[str, Any]]:
        """The auxiliary models, files and folders of the method, as results state them."""
        values = self.segmentor.recipe.hyperparameters
        found = {kind: stated(values[kind], source) for kind, source in self.segmentor.sources.items()}
        paths = {name: values[name] for name in of_class(type(self.segmentor)).paths if values[name]}
        paths |= {name: str(path) for name, path in self.segmentor.files.items()}
        found |= {name: {"name": path, "digest": path_digest(path), "stand_in": False} for name, path in paths.items()}
        return dict(sorted(found.items()))


def make_job(
    name: str,
    clip: DenseCLIP,
    dataset: SegDataset,
    protocol: str = "paper",
    overrides: Mapping[str, Any] | None = None,
    origin: str = "command line",
) -> Job:
    """A job from the names of a segmentor and a protocol."""
    clip = clip if segmentor_config(name)[1].uses_clip else NoCLIP(clip.device)
    recipe = compose_recipe(name, clip=clip.name, dataset=dataset.name, protocol=protocol, overrides=overrides, origin=origin)
    return build_job(recipe, clip, dataset, protocol, origin)


def job_of_plan(plan: Plan, dataset: SegDataset, device: str) -> Job:
    if plan.clip is NO_CLIP:
        return build_job(plan.recipe, NoCLIP(device), dataset, plan.protocol)
    file = plan.clip.pretrained or plan.clip.name
    changed = os.stat(file).st_mtime_ns if os.path.isfile(file) else None
    clip = _loaded(plan.clip, plan.recipe.precision or default_precision(device), device, changed)
    return replace(build_job(plan.recipe, clip, dataset, plan.protocol), first=plan.first)


@lru_cache(maxsize=4)
def _loaded(clip: ClipSpec, precision: str, device: str, changed: int | None) -> DenseCLIP:
    """Rows, and runs of a grid in one process, share a loaded CLIP until its file changes."""
    return load_spec(clip, precision, device)


def build_job(recipe: Recipe, clip: DenseCLIP, dataset: SegDataset, protocol: str, origin: str = "command line") -> Job:
    """The segmentor of a composed recipe, with the data set's vocabulary. Raises OvssError for incompatible values."""
    method = segmentor_config(recipe.segmentor)[1]
    recipe = recipe.changed(_of_clip(clip, recipe), origin)
    refuse_idle(recipe, method)
    vocabulary = dataset.vocabulary(recipe.names, recipe.templates)
    return Job(recipe.segmentor, instantiate(method, clip, vocabulary, recipe), dataset, protocol)


def refuse_idle(recipe: Recipe, method: type[Segmentor]) -> None:
    """Raises OvssError for an override that has no effect because of another value."""
    for name, (other, _) in BESIDE.items():
        if name in recipe.overrides and name not in method.uses and not recipe.has_effect(name):
            given = f"{name}={recipe.overrides[name]} (from {recipe.origins[name]})"
            because = f"{other}={getattr(recipe, other)} (from {recipe.origins[other]})"
            raise OvssError(f"{given} has no effect with {because}. Leave {name} out, or change {other}.")


def job_of(segmentor: Segmentor, dataset: SegDataset, protocol: str, changes: Mapping[str, Any], kept: bool) -> Job:
    """A job for a segmentor from `build_segmentor`. Its differences from the recipe for the data set become overrides. Raises
    OvssError for those that a result cannot state and, if the result is `kept`, for auxiliary models without a digest."""
    name, clip, vocabulary = segmentor.recipe.segmentor, segmentor.clip, segmentor.vocabulary
    if len(vocabulary.classes) != len(dataset.classes):
        counts = f"the vocabulary has {len(vocabulary.classes)} classes, data set '{dataset.name}' has {len(dataset.classes)}"
        raise OvssError(f"{counts}. Use dataset.vocabulary(names, templates), or list its classes in order.")
    method = segmentor_config(name)[1]
    _refuse_replaced(segmentor, method)
    objects = {kind: source for kind, source in segmentor.sources.items() if not isinstance(source, NamedSource)}
    overrides = dict(segmentor.recipe.overrides)
    for each, value in (_changed_after_building(segmentor) | dict(changes)).items():
        objects.pop(each, None)
        if each in SOURCES and not isinstance(value, str | None):
            objects[each], value = value, describe(value)
        overrides[each] = value
    for kind, source in objects.items():
        if kept and not getattr(source, "digest", None):
            hint = "Give it an attribute `digest`, a text that changes with its behaviour, or leave output out."
            raise OvssError(f"{kind} is an object without a `digest`: its results could be taken for those of another. {hint}")
    recipe = compose_recipe(
        name, clip=clip.name, dataset=dataset.name, protocol=protocol, overrides=overrides, origin="argument"
    )
    name, method = recipe.segmentor, segmentor_config(recipe.segmentor)[1]  # with the steps in `changes`
    texts = _of_vocabulary(vocabulary, dataset, recipe)
    for each in texts.keys() & overrides.keys():
        hint = f"Build it with dataset.vocabulary(names, templates) of these, or leave {each} out."
        raise OvssError(f"{each}={overrides[each]} was given, but the segmentor's vocabulary has {each}={texts[each]}. {hint}")
    recipe = recipe.changed(texts | _of_clip(clip, recipe), "argument")
    vocabulary = replace(vocabulary, unseen=dataset.facts.unseen)
    return Job(name, instantiate(method, clip, vocabulary, recipe, objects), dataset, protocol)


def _refuse_replaced(segmentor: Segmentor, method: type[Segmentor]) -> None:
    """Raises OvssError for a segmentor whose methods are not those of the registered class, and for recipe values set on it."""
    replaced = [each for each in vars(segmentor) if each in HOOKS or callable(getattr(method, each, None))]
    if type(segmentor) is not method or replaced:
        what = f"has a {replaced[0]} of its own" if replaced else f"is a {type(segmentor).__name__}"
        raise OvssError(
            f"the segmentor {what}, but '{segmentor.recipe.segmentor}' is {method.__name__} of {method.__module__}, which the "
            "result would name. Register your class under another name (ob.SEGMENTORS.register_module), and use that name."
        )
    for each in sorted(vars(segmentor).keys() & set(RECIPE_VALUES)):
        value = vars(segmentor)[each]
        hint = f"Build it with {each}={value!r}, or use evaluate(..., recipe={{'{each}': {value!r}}})."
        raise OvssError(f"{each} was set on the segmentor, which reads it from its recipe. {hint}")


def _changed_after_building(segmentor: Segmentor) -> dict[str, Any]:
    """Hyperparameters and auxiliary models that were set on the object after it was built."""
    changed = {}
    for name, built in (segmentor.recipe.hyperparameters | segmentor.sources).items():
        value = getattr(segmentor, name)
        value = str(value) if isinstance(value, Path) else value
        if value is not built and (name in SOURCES or type(value) is not type(built) or value != built):
            changed[name] = value
    return changed


def _of_clip(clip: DenseCLIP, recipe: Recipe) -> dict[str, Any]:
    """The non-default options of a loaded CLIP that the recipe does not set."""
    options = dict(clip.changed)
    if not isinstance(clip, NoCLIP) and clip.precision != default_precision(clip.device):
        options["precision"] = clip.precision
    return {name: value for name, value in options.items() if getattr(recipe, name) is None}


def _of_vocabulary(vocabulary: Vocabulary, dataset: SegDataset, recipe: Recipe) -> dict[str, Any]:
    """The names and templates of a vocabulary that differ from the recipe's. Names are stated as a variant of the data set's
    names, or else by a digest."""
    if dataset.vocabulary(recipe.names, recipe.templates).digest == vocabulary.digest:
        return {}
    folder = CONFIGS / "names" / dataset.config.get("names_of", dataset.name)
    variants = (recipe.names, None, *sorted(path.stem for path in folder.glob("*.txt")))
    same = [each for each in variants if dataset.vocabulary(each, vocabulary.templates).digest == vocabulary.digest]
    found = {"names": same[0] if same else f"given: {vocabulary.digest[:16]}", "templates": vocabulary.templates}
    return {name: value for name, value in found.items() if getattr(recipe, name) != value}


def fingerprint(job: Job, samples: Sequence[Sample], boundary: bool = False) -> str:
    """A digest of everything a run's numbers depend on: recipe, weights, vocabulary, data, precision, code, selected images."""
    segmentor, dataset, clip = job.segmentor, job.dataset, job.segmentor.clip
    chosen = "" if len(samples) == len(dataset.samples) else "\n".join(sample.id for sample in samples)
    paths = of_class(type(segmentor)).paths.keys() & job.sources.keys()  # represented by the digest of their content
    parts = [
        job.name,
        repr(sorted((name, value) for name, value in segmentor.recipe.values().items() if name not in paths)),
        clip.weights_digest,
        repr((clip.precision, clip.activation, clip.layer_norm_eps, clip.text_activation)),
        *(f"{kind} {source['digest'] or ''}" for kind, source in job.sources.items()),
        *(["boundary"] if boundary else []),
    ]
    return digest(*parts, segmentor.vocabulary.digest, dataset.fingerprint, source_digest(*job.code), chosen)


def in_groups(images: Sequence[tuple[Sample, ...]], jobs: Sequence[Job]) -> list[list[tuple[Sample, ...]]]:
    """Splits images into groups that are evaluated together (see `Segmentor.group`)."""
    unit = math.lcm(*(job.segmentor.group for job in jobs))
    return [list(images[start : start + unit]) for start in range(0, len(images), unit)]


def split_evenly(images: Sequence[tuple[Sample, ...]], parts: int, jobs: Sequence[Job]) -> list[list[tuple[Sample, ...]]]:
    """Splits images into `parts` lists with about equal numbers of patches over all windows. Groups stay together."""
    recipe, patch = jobs[0].segmentor.recipe, jobs[0].segmentor.clip.patch_size

    @cache
    def cost(size: tuple[int, int]) -> int:
        resized = resize(np.zeros((*size[::-1], 3), np.uint8), recipe.resize, recipe.short_side, recipe.long_side, patch)
        windows = SlidingWindow.by(recipe, resized.shape[0], resized.shape[1], patch)
        return len(windows.origins) * windows.rows.cells * windows.columns.cells

    def size(image: Path) -> tuple[int, int]:
        try:
            with Image.open(image) as picture:
                return picture.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # the reader reports it
            return 1, 1

    if parts == 1:
        return [list(images)]
    groups = in_groups(images, jobs)
    costs = [sum(cost(size(sample.image_path)) for sample, *_ in group) for group in groups]
    return [[image for number in part for image in groups[number]] for part in balance(costs, parts)]
