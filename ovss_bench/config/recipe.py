"""The recipe of a run: every value that changes mIoU, merged from the configuration files and the command line, each with its
origin.

Later layers override earlier ones: configs/recipe.yaml, configs/segmentor/<name>.yaml, then of both files `per_clip`,
`per_dataset` and `per_clip_dataset` (values for one CLIP on one data set), the protocol with the same sections, the command
line. Hydra cannot do this merge: it would fold the members of a list of segmentors into one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin, get_type_hints

from annotated_types import Ge, MinLen

from ..errors import OvssError, unknown
from ..files import config_names, load_config, read_yaml
from ..image import MOST, RESIZE_RULES
from .hyperparameters import Hyperparameters, Method, declared
from .registry import RECIPES, SEGMENTORS, load_installed, not_found
from .validation import Count, Expected, Fraction, Name, Number, Pixels, Whole, validate

# The keys of a segmentor's file, and the depth of the mapping below each.
DEPTHS = {"paper": 0, "method": 0, "recipe": 1, "per_clip": 2, "per_dataset": 2, "per_clip_dataset": 3}


class Stage(Enum):
    """Where in the pipeline a recipe value takes effect."""

    INPUT = auto()
    WINDOW = auto()
    ENCODER = auto()
    TEXT = auto()
    REFINEMENT = auto()
    DECISION = auto()
    SCORING = auto()


TRUNK = (Stage.INPUT, Stage.WINDOW, Stage.ENCODER)


@dataclass(frozen=True)
class At:
    """Where a recipe value takes effect. `beside`: only if that other value meets the condition. `in_methods`: methods may read
    it before its stage."""

    stage: Stage
    beside: tuple[str, Callable[[Any], bool]] | None = None
    in_methods: bool = False


Dilations = Annotated[tuple[Pixels, ...], MinLen(1), Expected(f"a list of positive numbers of pixels up to {MOST}")]


@dataclass(frozen=True)
class Recipe:
    """See configs/recipe.yaml for what each value means. `hyperparameters` are those of the `segmentor`.

    `origins` tell the reader where each value of both comes from; `common` names the values that were set for all methods, and
    `overrides` are those that were chosen for a run.
    """

    segmentor: str
    resize: Annotated[Literal[RESIZE_RULES], At(Stage.INPUT)]  # pyright: ignore[reportInvalidTypeForm]
    short_side: Annotated[Count, At(Stage.INPUT, beside=("resize", lambda rule: rule != "none"))]
    long_side: Annotated[Count, At(Stage.INPUT, beside=("resize", lambda rule: rule == "keep_ratio"))]
    window: Annotated[Pixels | Literal["whole"], At(Stage.WINDOW)]
    stride: Annotated[Count, At(Stage.WINDOW, beside=("window", lambda window: window != "whole"))]
    pad: Annotated[Literal["none", "center", "corner"], At(Stage.WINDOW)]
    pad_multiple: Annotated[Pixels | None, At(Stage.WINDOW, beside=("pad", lambda pad: pad != "none"))]
    normalize: Annotated[Literal["clip", "clip_exact", "imagenet"], At(Stage.INPUT)]
    position: Annotated[Literal["offset", "size", "antialias", "bilinear"], At(Stage.ENCODER)]
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
        for name in RECIPE_VALUES:  # unchanged: an int stays one where a float is allowed, as fingerprints are made of values
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
        """Names and values, the recipe's first, then the hyperparameters."""
        return {name: getattr(self, name) for name in RECIPE_VALUES} | self.hyperparameters

    def has_effect(self, name: str) -> bool:
        """Whether a value counts, given those beside it."""
        other, condition = BESIDE.get(name, (name, lambda value: True))
        return condition(getattr(self, other))

    @property
    def trunk_key(self) -> tuple[tuple[str, Any], ...]:
        """The values in which two segmentors with the same CLIP, in the same precision, must agree to share one pass of the
        trunk."""
        return tuple((name, getattr(self, name)) for name in names_at(*TRUNK) if name != "precision" and self.has_effect(name))

    def override(self, **values: Any) -> Recipe:
        """A copy with some recipe values replaced; None leaves a value alone."""
        return self.changed({name: value for name, value in values.items() if value is not None}, "argument")

    def changed(self, values: Mapping[str, Any], origin: str) -> Recipe:
        """A copy with other recipe values, as overrides from `origin`."""
        origins = self.origins | dict.fromkeys(values, origin)
        return replace(
            self, **values, origins=origins, common=self.common - values.keys(), overrides={**self.overrides, **values}
        )


RECIPE_HINTS = {
    name: hint for name, hint in get_type_hints(Recipe, include_extras=True).items() if get_origin(hint) is Annotated
}
_AT = {name: next(part for part in hint.__metadata__ if isinstance(part, At)) for name, hint in RECIPE_HINTS.items()}
RECIPE_VALUES = tuple(_AT)
BESIDE = {name: at.beside for name, at in _AT.items() if at.beside}


def names_at(*stages: Stage) -> tuple[str, ...]:
    """The recipe values of these stages."""
    return tuple(name for name, at in _AT.items() if at.stage in stages)


# All that patch logits may depend on, apart from the texts, of which a vocabulary has a digest.
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
    """The recipe of a registered segmentor or of a configuration in configs/segmentor (a variant of one).

    `overrides` may hold recipe values and hyperparameters of the segmentor. Raises OvssError for unknown names and bad values.
    """
    config, declaration = hyperparameters(segmentor)
    if protocol not in config_names("protocol"):
        raise unknown("protocol", protocol, config_names("protocol"))
    file = str(RECIPES.get(segmentor, f"configs/segmentor/{segmentor}.yaml"))
    base = ("configs/recipe.yaml", load_config(".", "recipe"), True)
    rules = (f"configs/protocol/{protocol}.yaml", load_config("protocol", protocol), True)
    sections = (("recipe",), ("per_clip", clip), ("per_dataset", dataset), ("per_clip_dataset", clip, dataset))
    layers = [(layer, section) for section in sections for layer in (base, (file, config, False))]
    layers += [(rules, section) for section in sections]
    values: dict[str, Any] = dict(declaration.defaults)
    origins = dict.fromkeys(values, f"default of {declaration.owner}")
    common: set[str] = set()
    for (path, content, for_all), section in layers:
        found = content
        for key in section:
            found = found.get(key) or {}
        values |= found
        origins |= {name: f"{path} {'.'.join(section)}" for name in found}
        common = common | found.keys() if for_all else common - found.keys()
    chosen = dict(overrides or {})
    values |= chosen
    origins |= dict.fromkeys(chosen, origin)
    for name in values:
        if name not in RECIPE_VALUES and name not in declaration.defaults:
            kind = f"recipe value or hyperparameter of {segmentor} (from {origins[name]})"
            raise unknown(kind, name, [*RECIPE_VALUES, *declaration.defaults])
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    folder = RECIPES[segmentor].parent if segmentor in RECIPES else None
    in_method = {name: declaration.checked(name, values.pop(name), origins[name], folder) for name in declaration.defaults}
    return Recipe(
        segmentor,
        **values,
        hyperparameters=in_method,
        origins=origins,
        common=frozenset(common - chosen.keys()),
        overrides=chosen,
    )


def segmentor_config(name: str) -> tuple[dict[str, Any], type]:
    """The configuration of a segmentor and its class. A registered method needs no file; the file of a variant names its
    `method`."""
    config = _config(name)
    method = SEGMENTORS.get(config.get("method", name))
    of_class(method)
    return config, method


def hyperparameters(name: str) -> tuple[dict[str, Any], Hyperparameters]:
    """The configuration of a segmentor and the hyperparameters of its method, without importing a method of this project."""
    config = _config(name)
    method = config.get("method", name)
    if method not in SEGMENTORS.registered and method in declared():
        return config, declared()[method]
    return config, of_class(SEGMENTORS.get(method))


def of_class(method: type) -> Hyperparameters:
    """The hyperparameters of a class. Raises OvssError for invalid declarations."""
    where = f"{method.__name__} of {getattr(sys.modules.get(method.__module__), '__file__', method.__module__)}"
    if not issubclass(method, Method):
        raise OvssError(f"{where} is not a segmentor: derive it from ob.Segmentor or ob.LastBlockSegmentor.")
    try:
        hints = get_type_hints(method)
    except Exception as error:  # an annotation may be any expression
        reason = f"{type(error).__name__}: {error}"
        raise OvssError(
            f"the annotations of {where} cannot be read: {reason}. Import the names in them at run time, too."
        ) from error
    defaults = {name: getattr(method, name) for name in hints if hasattr(method, name)}
    contract = next(base for base in method.__mro__ if Method in base.__bases__)
    for name in sorted(defaults.keys() & {*RECIPE_VALUES, "clip", "vocabulary", "recipe", "sources", *dir(contract)}):
        taken = "a recipe value" if name in RECIPE_VALUES else "an attribute of every segmentor"
        raise OvssError(f"{where} declares the hyperparameter '{name}', which is the name of {taken}. Give it another name.")
    return Hyperparameters(method.__name__, hints, defaults)


def own_recipe(name: str) -> str:
    """The recipe file of a segmentor; without one where it is looked for, and similar files that are not read."""
    if name in config_names("segmentor"):
        return f"configs/segmentor/{name}.yaml"
    if name in RECIPES:
        return str(RECIPES[name])
    method = segmentor_config(name)[1]
    file = getattr(sys.modules.get(method.__module__), "__file__", None)
    if file is None:
        return "none, since the method is not in a file"
    folder = Path(file).resolve().parent
    wanted = folder / "configs" / "segmentor" / f"{name}.yaml"
    notes = [f"none; it would be {wanted}"]
    if wanted.is_file():
        notes.append(f"which exists, but did not when the file was loaded, or it was not loaded by plugins=[{file}]")
    places = [folder.glob(f"{part}{name}.y*ml") for part in ("", "*/", "*/*/")]
    places += [folder.parent.glob(f"{part}{name}.y*ml") for part in ("", "*/", "configs/segmentor/")]
    near = {path for place in places for path in place}
    notes += [f"{path} is not read: move it there" for path in sorted(near - {wanted})]
    for other, path in sorted(RECIPES.items()):
        if path.parent == wanted.parent and other not in SEGMENTORS.names and "method" not in _read(path):
            notes.append(f"{path} belongs to no method: call it {wanted.name}, or write `method: {name}` in it")
    return "; ".join(notes)


def _config(name: str) -> dict[str, Any]:
    if name in config_names("segmentor"):
        return load_config("segmentor", name)
    if name not in RECIPES and name not in SEGMENTORS.names:
        load_installed(name)
    if name in RECIPES:
        return _read(RECIPES[name])
    if name not in SEGMENTORS.names:
        raise not_found("segmentor", name, segmentor_names())
    return {}


def segmentor_names() -> list[str]:
    """All values of `segmentor=`: the configurations and the registered methods, with those of installed plug-ins once these
    have been imported."""
    return sorted({*config_names("segmentor"), *SEGMENTORS.names, *RECIPES})


def _read(path: Path) -> dict[str, Any]:
    """A recipe of a plug-in. Raises OvssError for an invalid one."""
    config = read_yaml(path, "recipe")
    if not isinstance(config, dict):
        raise OvssError(f"recipe {path}: expected the keys {', '.join(DEPTHS)}.")
    for key, value in config.items():
        if key not in DEPTHS:
            raise unknown(f"key of recipe {path}", key, DEPTHS)
        _check_depth(value, DEPTHS[key], f"recipe {path}: {key}")
    return config


def _check_depth(value: Any, depth: int, where: str) -> None:
    """Raises OvssError for a section that is not `depth` mappings deep; it may be empty."""
    if not isinstance(value, dict | None if depth else str):
        raise OvssError(f"{where}: expected {'NAME: VALUE below it' if depth else 'a text'}.")
    for key, inner in (value or {}).items() if depth > 1 else ():
        _check_depth(inner, depth - 1, f"{where}.{key}")
