"""The recipe of a run: every value that changes mIoU, with its origin, merged from configuration files and command line.

Later layers override earlier ones: configs/recipe.yaml, configs/segmentor/<name>.yaml merged with the files that it extends,
then the sections `per_clip`, `per_dataset` and `per_clip_dataset` (values for one CLIP on one data set) of both, the protocol
with the same sections, the command line. Hydra cannot do this: it would merge a list of segmentors into one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import reduce
from itertools import product
from os.path import normpath
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin, get_type_hints

from annotated_types import Ge, MinLen

from ..errors import OvssError, unknown
from ..files import CONFIGS, WEIGHTS, config_names, load_config
from ..image import RESIZE_RULES
from ..types import MAX_SIDE
from .hyperparameters import Hyperparameters, Method, declared
from .registry import SEGMENTORS, STEPS, load_installed, not_found
from .segmentor_file import RECIPES, SegmentorFile, lineage, merged
from .steps import composed, with_steps
from .validation import Count, Expected, Fraction, Name, Number, Pixels, Whole, validate

Stage = Enum("Stage", ["INPUT", "WINDOW", "ENCODER", "TEXT", "REFINEMENT", "DECISION", "SCORING"])
TRUNK = (Stage.INPUT, Stage.WINDOW, Stage.ENCODER)


@dataclass(frozen=True)
class At:
    """The stage at which a recipe value takes effect. `beside`: another value, and the condition under which this one takes
    effect. `in_methods`: methods may read the value before its stage."""

    stage: Stage
    beside: tuple[str, Callable[[Any], bool]] | None = None
    in_methods: bool = False


Dilations = Annotated[tuple[Pixels, ...], MinLen(1), Expected(f"a list of positive numbers of pixels up to {MAX_SIDE}")]


@dataclass(frozen=True)
class Recipe:
    """The values are explained in configs/recipe.yaml. `hyperparameters` belong to the `segmentor`. `origins` states where each
    recipe value and hyperparameter comes from; `common` names those set for all methods; `overrides` are set for one run."""

    segmentor: str
    resize: Annotated[Literal[RESIZE_RULES], At(Stage.INPUT)]  # pyright: ignore[reportInvalidTypeForm]
    short_side: Annotated[Count, At(Stage.INPUT, beside=("resize", lambda rule: rule not in ("none", "up_to_patch")))]
    long_side: Annotated[Count, At(Stage.INPUT, beside=("resize", lambda rule: rule == "keep_ratio"))]
    window: Annotated[Pixels | Literal["whole"], At(Stage.WINDOW)]
    stride: Annotated[Count, At(Stage.WINDOW, beside=("window", lambda window: window != "whole"))]
    pad: Annotated[Literal["none", "center", "corner", "corner_black"], At(Stage.WINDOW)]
    pad_multiple: Annotated[Pixels | None, At(Stage.WINDOW, beside=("pad", lambda pad: pad != "none"))]
    normalize: Annotated[Literal["clip", "clip_exact", "imagenet"], At(Stage.INPUT)]
    position: Annotated[Literal["offset", "size", "grid", "antialias", "bilinear", "bilinear_fp16"], At(Stage.ENCODER)]
    activation: Annotated[Literal["gelu", "quick_gelu"] | None, At(Stage.ENCODER)]
    layer_norm_eps: Annotated[Fraction | None, At(Stage.ENCODER)]
    precision: Annotated[Literal["fp32", "fp16", "bf16"] | None, At(Stage.ENCODER)]
    names: Annotated[Name | None, At(Stage.TEXT)]
    templates: Annotated[Name, At(Stage.TEXT)]
    logit_scale: Annotated[Number, At(Stage.DECISION, in_methods=True)]
    threshold: Annotated[Number, At(Stage.DECISION)]
    area_threshold: Annotated[Number, At(Stage.DECISION)]
    pamr_steps: Annotated[Whole, At(Stage.REFINEMENT)]
    pamr_dilations: Annotated[Dilations, At(Stage.REFINEMENT, beside=("pamr_steps", bool), in_methods=True)]
    scored_at: Annotated[Literal["original", "resized", "short_448"], At(Stage.INPUT)]  # the size of an image context's result
    min_foreground: Annotated[int, Ge(0), Expected("a whole number, 0 or more"), At(Stage.SCORING)]
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict, compare=False)
    common: frozenset[str] = field(default=frozenset(), compare=False)
    overrides: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name in RECIPE_VALUES:  # fingerprints depend on the values as given: no int becomes a float
            validate(name, getattr(self, name), RECIPE_HINTS[name], self._origin(name), "recipe value ")
        if self.resize == "center_crop" and self.scored_at != "resized":
            raise self._wrong("scored_at", "resized, since the part that center_crop cuts off has no prediction")
        if self.window != "whole" and self.stride > self.window:
            raise self._wrong("stride", f"at most the window, {self.window}, or pixels between windows stay empty")

    def _origin(self, name: str) -> str:
        return self.origins.get(name, "the caller")

    def _wrong(self, name: str, expected: str) -> OvssError:
        return OvssError(f"recipe value {name}={getattr(self, name)!r} (from {self._origin(name)}): expected {expected}.")

    def values(self) -> dict[str, Any]:
        """The recipe values, then the hyperparameters."""
        return {name: getattr(self, name) for name in RECIPE_VALUES} | self.hyperparameters

    def has_effect(self, name: str) -> bool:
        """Whether a value has an effect, given the one that it depends on."""
        other, condition = BESIDE.get(name, (name, lambda value: True))
        return condition(getattr(self, other))

    @property
    def trunk_key(self) -> tuple[tuple[str, Any], ...]:
        """The values in which two segmentors with the same CLIP and precision must agree to share a pass of the trunk."""
        return tuple((name, getattr(self, name)) for name in names_at(*TRUNK) if name != "precision" and self.has_effect(name))

    def override(self, **values: Any) -> Recipe:
        """A copy with some recipe values replaced; None keeps a value."""
        return self.changed({name: value for name, value in values.items() if value is not None}, "argument")

    def changed(self, values: dict[str, Any], origin: str) -> Recipe:
        """A copy with other recipe values, as overrides from `origin`."""
        origins = self.origins | dict.fromkeys(values, origin)
        return replace(self, **values, origins=origins, common=self.common - values.keys(), overrides=self.overrides | values)


_HINTS = get_type_hints(Recipe, include_extras=True)
RECIPE_HINTS = {name: hint for name, hint in _HINTS.items() if get_origin(hint) is Annotated}
_AT = {name: next(part for part in hint.__metadata__ if isinstance(part, At)) for name, hint in RECIPE_HINTS.items()}
RECIPE_VALUES = tuple(_AT)
BESIDE = {name: at.beside for name, at in _AT.items() if at.beside}


def names_at(*stages: Stage) -> tuple[str, ...]:
    """The recipe values of these stages."""
    return tuple(name for name, at in _AT.items() if at.stage in stages)


# All values that patch logits may depend on, apart from the texts, which the digest of the vocabulary covers.
BEFORE_DECISION = {name for name, at in _AT.items() if at.in_methods} | set(names_at(*TRUNK))


def compose_recipe(
    segmentor: str,
    *,
    clip: str | None = None,
    dataset: str | None = None,
    protocol: str = "paper",
    overrides: Mapping[str, Any] | None = None,
    origin: str = "command line",
) -> Recipe:
    """The recipe of a registered segmentor or of a configuration in configs/segmentor (a variant of one), with steps as in
    config/steps.py. `overrides` may contain recipe values, hyperparameters of the segmentor, and `text` and `refine`, whose
    steps become part of the segmentor's name. Raises OvssError for unknown names and invalid values."""
    segmentor, overrides = with_steps(segmentor, overrides or {})
    declaration, files = hyperparameters(segmentor)[1], lineage(segmentor.partition("+")[0])
    if protocol not in config_names("protocol"):
        raise unknown("protocol", protocol, config_names("protocol"))
    layers = [(f"default of {declaration.owner}", declaration.defaults, False)]
    steps = parts(segmentor)[2]
    layers += [(f"default of step {step}", of_class(STEPS.get(step)).defaults, False) for step in steps]
    layers += [*_file_layers(segmentor, files, protocol, clip, dataset), (origin, overrides, False)]
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    common: set[str] = set()
    for source, layer, for_all in layers:
        values |= layer
        origins |= dict.fromkeys(layer, source)
        common = common | layer.keys() if for_all else common - layer.keys()
    for name in values:
        if name not in RECIPE_VALUES and name not in declaration.defaults:
            kind = f"recipe value or hyperparameter of {segmentor} (from {origins[name]})"
            raise unknown(kind, name, [*RECIPE_VALUES, *declaration.defaults])
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    plugins = [file.path.parent for file in reversed(files) if file.name in RECIPES]
    folders = (*plugins, WEIGHTS, CONFIGS) if len(plugins) < len(files) or not files else tuple(plugins)
    settings = {name: declaration.checked(name, values.pop(name), origins[name], folders) for name in declaration.defaults}
    return Recipe(segmentor, **values, hyperparameters=settings, origins=origins, common=frozenset(common), overrides=overrides)


def _file_layers(
    segmentor: str, files: list[SegmentorFile], protocol: str, clip: str | None, dataset: str | None
) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """The sections that apply, later ones overriding earlier ones: origin, values, and whether they are for all methods."""
    base = ("configs/recipe.yaml", load_config(".", "recipe"), True)
    known = config_names("step")
    # With steps, a value of the base method may lose its effect: it is noted like a value for all methods, not refused.
    methods = [(file.where, file.content, "+" in segmentor) for file in files]
    steps = [(f"configs/step/{step}.yaml", load_config("step", step), False) for step in parts(segmentor)[2] if step in known]
    rules = (f"configs/protocol/{protocol}.yaml", load_config("protocol", protocol), True)
    sections = (("recipe",), ("per_clip", clip), ("per_dataset", dataset), ("per_clip_dataset", clip, dataset))
    whole = merged(files)
    for keys, layer in [*product(sections, (base, *steps, *methods)), *product(sections, (rules,))]:
        path, content, for_all = layer
        values = _section(content, keys)
        if layer in methods:  # a file that extends this one may have removed its sections
            values = {name: value for name, value in values.items() if name in _section(whole, keys)}
        if values:
            yield f"{path} {'.'.join(keys)}", values, for_all


def _section(content: Any, keys: tuple[str | None, ...]) -> dict[str, Any]:
    return reduce(lambda section, key: section.get(key) or {}, keys, content)


def segmentor_config(name: str) -> tuple[dict[str, Any], type]:
    """The configuration and class of a segmentor. A registered method needs no file; a variant's file names its `method`."""
    config, method, steps = parts(name)
    kind = SEGMENTORS.get(method)
    kind = composed(name, kind, steps) if steps else kind
    of_class(kind)  # raises OvssError for invalid declarations
    return config, kind


def hyperparameters(name: str) -> tuple[dict[str, Any], Hyperparameters]:
    """The configuration of a segmentor and the hyperparameters of its method, without importing a method of this project."""
    config, method, steps = parts(name)
    if not steps and method not in SEGMENTORS.registered and method in declared():
        return config, declared()[method]
    return config, of_class(segmentor_config(name)[1])


def of_class(method: type) -> Hyperparameters:
    """The hyperparameters of a class. Raises OvssError for invalid declarations."""
    where = f"{method.__name__} of {getattr(sys.modules.get(method.__module__), '__file__', method.__module__)}"
    if not issubclass(method, Method):
        raise OvssError(f"{where} is not a segmentor: derive it from ob.Segmentor or ob.LastBlockSegmentor.")
    try:
        hints = get_type_hints(method)
    except Exception as error:  # an annotation may be any expression
        reason = f"{type(error).__name__}: {error}. Import the names in them at run time, too."
        raise OvssError(f"the annotations of {where} cannot be read: {reason}") from error
    defaults = {name: getattr(method, name) for name in hints if hasattr(method, name)}
    contract = next(base for base in method.__mro__ if Method in base.__bases__)
    for name in sorted(defaults.keys() & {*RECIPE_VALUES, "clip", "vocabulary", "recipe", "sources", *dir(contract)}):
        taken = "a recipe value" if name in RECIPE_VALUES else "an attribute of every segmentor"
        raise OvssError(f"{where} declares the hyperparameter '{name}', which is the name of {taken}. Give it another name.")
    return Hyperparameters(method.__name__, method.uses_clip, hints, defaults)


def own_recipe(name: str) -> str:
    """The recipe file of a segmentor. If it has none: where it is expected, and files of that name in the wrong place."""
    if "+" in name:
        base, *steps = name.split("+")
        files = [f"configs/step/{step}.yaml" for step in steps if step in config_names("step")]
        return ", ".join([own_recipe(base), *files])
    if files := lineage(name):
        return ", ".join(file.where for file in reversed(files))
    method = segmentor_config(name)[1]
    if method.__module__.startswith("ovss_bench."):
        return "none"
    file = getattr(sys.modules.get(method.__module__), "__file__", None)
    if file is None:
        return "none, since the method is not in a file"
    folder = Path(file).resolve().parent
    wanted = folder / "configs" / "segmentor" / f"{name}.yaml"
    notes = [f"none; it would be {wanted}"]
    if wanted.is_file():
        notes.append(f"which was created after {file} was loaded, or that file was not loaded by plugins=[{file}]")
    places = ("", "*/", "*/*/", "../", "../*/", "../configs/segmentor/")
    similar = {Path(normpath(path)) for place in places for path in folder.glob(f"{place}{name}.y*ml")}
    notes += [f"{path} is not read: move it there" for path in sorted(similar - {wanted})]
    for other, path in sorted(RECIPES.items()):
        is_variant = bool({"method", "extends"} & lineage(other)[-1].content.keys())
        if path.parent == wanted.parent and other not in SEGMENTORS.names and not is_variant:
            notes.append(f"{path} belongs to no method: rename it to {wanted.name}, or write `method: {name}` in it")
    return "; ".join(notes)


def parts(name: str) -> tuple[dict[str, Any], str, list[str]]:
    """The configuration of a segmentor, the registered name of its base method, and the names of its steps."""
    base, *steps = name.split("+")
    files = lineage(base)
    if not files and base not in SEGMENTORS.names:
        load_installed(base)
        files = lineage(base)
        if not files and base not in SEGMENTORS.names:
            raise not_found("segmentor", base, segmentor_names())
    # The file of a registered method may extend another method's file; a variant runs the method of the file that it extends.
    named = [file for file in files if "method" in file.content or file.name in SEGMENTORS.names]
    method, *included = (named[-1].content.get("method", named[-1].name) if named else base).split("+")
    return merged(files), method, [*included, *steps]


def paper_method(name: str) -> str:
    """The method that the paper of a recipe proposes: its last step, if it has steps."""
    _, method, steps = parts(name)
    return [method, *steps][-1]


def segmentor_names() -> list[str]:
    """All values of `segmentor=`: configurations and registered methods, also of installed plug-ins imported so far."""
    return sorted({*config_names("segmentor"), *SEGMENTORS.names, *RECIPES})
