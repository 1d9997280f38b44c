"""The recipe of a run: every number that moves mIoU, merged from the configuration files and the command line, each with its
origin.

Order, the later wins: configs/recipe.yaml, configs/segmentor/<name>.yaml, both files' `per_clip`, both files' `per_dataset`,
both files' `per_clip_dataset` (values that only hold for a CLIP on a data set), the protocol with the same sections, the
command line. Hydra cannot do this merge: it would fold the members of a list of segmentors into one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from ..errors import OvssError, unknown
from ..files import config_names, load_config, read_yaml
from ..image import MOST, RESIZE_RULES
from .hyperparameters import Hyperparameters, Method, declared

CHOICES = {
    "resize": RESIZE_RULES,
    "pad": ("none", "center", "corner"),
    "normalize": ("clip", "clip_exact", "imagenet"),
    "position": ("offset", "size", "antialias", "bilinear"),
    "scored_at": ("original", "resized", "short_448"),
    "precision": ("fp32", "fp16", "bf16", None),
    "activation": ("gelu", "quick_gelu", None),
}
# The keys of a segmentor's file, and how many mappings deep each is.
DEPTHS = {"paper": 0, "method": 0, "recipe": 1, "per_clip": 2, "per_dataset": 2, "per_clip_dataset": 3}
_NOT_VALUES = ("segmentor", "hyperparameters", "origins", "overrides")


@dataclass(frozen=True)
class Recipe:
    """See configs/recipe.yaml for what each value means. `hyperparameters` are those of the `segmentor` that it is for.

    `origins` say, to the reader, where each value of both comes from; `overrides` are those that were chosen for a run.
    """

    segmentor: str
    resize: str
    short_side: int
    long_side: int
    window: int | str
    stride: int
    pad: str
    pad_multiple: int | None
    normalize: str
    position: str
    activation: str | None
    layer_norm_eps: float | None
    precision: str | None
    names: str | None
    templates: str
    logit_scale: float
    threshold: float
    area_threshold: float
    pamr_steps: int
    pamr_dilations: tuple[int, ...]
    scored_at: str
    min_foreground: int
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict, compare=False)
    overrides: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        hints = get_type_hints(Recipe)
        for name, value in self.values(hyperparameters=False).items():
            if name in CHOICES:
                if value not in CHOICES[name]:
                    raise unknown(f"value of {name}", value, map(str, CHOICES[name]))
            elif name == "layer_norm_eps":
                if value is not None and not (isinstance(value, float) and 0 < value < 1):
                    raise self._wrong(name, value, "a positive number below 1, or null")
            elif name == "pad_multiple":
                if value is not None and not _positive(value):
                    raise self._wrong(name, value, f"a positive number of pixels up to {MOST}, or null")
            elif name == "window":
                if value != "whole" and not _positive(value):
                    raise self._wrong(name, value, f"a positive number of pixels up to {MOST}, or whole")
            elif name == "pamr_dilations":
                if not isinstance(value, tuple) or not value or not all(map(_positive, value)):
                    raise self._wrong(name, value, f"a list of positive numbers of pixels up to {MOST}")
            elif hints[name] is int and name not in ("pamr_steps", "min_foreground"):
                if not _positive(value):
                    raise self._wrong(name, value, f"a positive whole number up to {MOST}")
            elif hints[name] in (int, float):
                whole = hints[name] is int
                number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
                if not number or not 0 <= value < 1e30:  # beyond, 32 bits hold infinity only
                    raise self._wrong(name, value, f"a {'whole ' if whole else ''}number, 0 or more")
            elif value is not None and not isinstance(value, str):
                raise self._wrong(name, value, "a name")
        if self.resize == "center_crop" and self.scored_at != "resized":
            raise self._wrong("scored_at", self.scored_at, "resized, since what center_crop cuts off has no label")
        if self.window != "whole" and self.stride > self.window:
            raise self._wrong("stride", self.stride, f"at most the window, {self.window}, or pixels between windows stay empty")

    def _wrong(self, name: str, value: Any, expected: str) -> OvssError:
        return OvssError(f"recipe value {name}={value!r} (from {self.origins.get(name, 'the caller')}): expected {expected}.")

    def values(self, hyperparameters: bool = True) -> dict[str, Any]:
        """Names and values, the recipe's first, then the segmentor's."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_VALUES}
        return own | (self.hyperparameters if hyperparameters else {})

    @property
    def trunk_key(self) -> tuple:
        """What two segmentors with the same CLIP, in the same precision, must agree on to share one pass of the trunk."""
        sides = {"keep_ratio": (self.short_side, self.long_side), "none": ()}.get(self.resize, (self.short_side,))
        windows = (self.window,) if self.window == "whole" else (self.window, self.stride)
        encoder = (self.normalize, self.position, self.activation, self.layer_norm_eps)
        return self.resize, *sides, *windows, self.pad, self.pad_multiple, *encoder, self.scored_at

    def override(self, **values: Any) -> Recipe:
        """A copy with some recipe values replaced; None leaves a value alone."""
        given = {name: value for name, value in values.items() if value is not None}
        origins = self.origins | dict.fromkeys(given, "argument")
        return replace(self, **given, origins=origins, overrides=self.overrides | given)


RECIPE_VALUES = tuple(f.name for f in fields(Recipe) if f.name not in _NOT_VALUES)


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
    from .registry import RECIPES

    config, own = hyperparameters(segmentor)
    values = dict(own.defaults)
    origins = dict.fromkeys(values, f"default of {own.owner}")
    if protocol not in config_names("protocol"):
        raise unknown("protocol", protocol, config_names("protocol"))
    base = ("configs/recipe.yaml", load_config(".", "recipe"))
    given = (str(RECIPES.get(segmentor, f"configs/segmentor/{segmentor}.yaml")), config)
    rules = (f"configs/protocol/{protocol}.yaml", load_config("protocol", protocol))
    sections = (("recipe",), ("per_clip", clip), ("per_dataset", dataset), ("per_clip_dataset", clip, dataset))
    for section in sections:
        for file, content in (base, given):
            _merge(values, origins, content, file, section)
    for section in sections:
        _merge(values, origins, rules[1], rules[0], section)
    for name, value in (overrides or {}).items():
        values[name], origins[name] = value, origin
    for name in values:
        if name not in RECIPE_VALUES and name not in own.defaults:
            raise unknown(
                f"recipe value or hyperparameter of {segmentor} (from {origins[name]})", name, [*RECIPE_VALUES, *own.defaults]
            )
    beside = RECIPES[segmentor].parent if segmentor in RECIPES else None
    for name in own.defaults:
        if name in own.paths:
            values[name] = own.located(name, values[name], beside)
        else:
            own.check(name, values[name])
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    own_values = {name: values.pop(name) for name in own.defaults}
    given = dict(overrides or {})
    return Recipe(segmentor=segmentor, **values, hyperparameters=own_values, origins=origins, overrides=given)


def segmentor_config(name: str) -> tuple[dict[str, Any], type]:
    """The configuration of a segmentor and its class, of this project or of a plug-in. A registered method needs no file; a
    variant's file names its `method`."""
    from .registry import SEGMENTORS

    config = _config(name)
    method = SEGMENTORS.get(config.get("method", name))
    of_class(method)
    return config, method


def hyperparameters(name: str) -> tuple[dict[str, Any], Hyperparameters]:
    """The configuration of a segmentor and what can be set in its method, for which this project's methods need not be
    imported."""
    from .registry import SEGMENTORS

    config = _config(name)
    method = config.get("method", name)
    if method not in SEGMENTORS.registered and method in declared():
        return config, declared()[method]
    return config, of_class(SEGMENTORS.get(method))


def of_class(method: type) -> Hyperparameters:
    """What can be set in a method, by its class. Raises OvssError for declarations that cannot be."""
    where = f"{method.__name__} of {getattr(sys.modules.get(method.__module__), '__file__', method.__module__)}"
    if not issubclass(method, Method):
        raise OvssError(f"{where} is no segmentor: derive it from ob.Segmentor or ob.LastBlockSegmentor.")
    try:
        hints = get_type_hints(method)
    except Exception as error:  # an annotation may be any expression
        reason = f"{type(error).__name__}: {error}"
        raise OvssError(
            f"the annotations of {where} cannot be read: {reason}. Import what they name when the file runs, too."
        ) from error
    defaults = {name: getattr(method, name) for name in hints if hasattr(method, name)}
    contract = next(base for base in method.__mro__ if Method in base.__bases__)
    for name in defaults:
        taken = "a recipe value" if name in RECIPE_VALUES else "what every segmentor has"
        if name in RECIPE_VALUES or name in ("clip", "vocabulary", "recipe", "sources") or name in dir(contract):
            raise OvssError(
                f"{where} declares the hyperparameter '{name}', which is the name of {taken}. Give it another name."
            )
    return Hyperparameters(method.__name__, hints, defaults)


def own_recipe(name: str) -> str:
    """Which recipe file a segmentor has, or that it has none, where it would be looked for, and similar files that are not
    read."""
    from .registry import RECIPES, SEGMENTORS

    if name in config_names("segmentor"):
        return f"configs/segmentor/{name}.yaml"
    if name in RECIPES:
        return str(RECIPES[name])
    method = segmentor_config(name)[1]
    file = getattr(sys.modules.get(method.__module__), "__file__", None)
    if file is None:
        return "none, as the method is in no file"
    folder = Path(file).resolve().parent
    wanted = folder / "configs" / "segmentor" / f"{name}.yaml"
    notes = [f"none; it would be {wanted}"]
    if wanted.is_file():
        notes.append(f"which is there, but was not when the file was loaded, or it was not loaded by plugins=[{file}]")
    patterns = [f"{part}{name}.{suffix}" for part in ("", "*/", "*/*/") for suffix in ("yaml", "yml")]
    near = {path for pattern in patterns for path in folder.glob(pattern)}
    near |= {path for pattern in patterns[:4] for path in folder.parent.glob(pattern)}
    near |= {path for pattern in patterns[:2] for path in (folder.parent / "configs" / "segmentor").glob(pattern)}
    notes += [f"{path} is not read: move it there" for path in sorted(near - {wanted})]
    for other, path in sorted(RECIPES.items()):
        if path.parent == wanted.parent and other not in SEGMENTORS.registered and "method" not in _read(path):
            notes.append(f"{path} is of no method: call it {wanted.name}, or write `method: {name}` in it")
    return "; ".join(notes)


def _config(name: str) -> dict[str, Any]:
    from .registry import RECIPES, SEGMENTORS, load_installed, not_found

    if name in config_names("segmentor"):
        return load_config("segmentor", name)
    if name not in RECIPES and name not in SEGMENTORS.module_dict:
        load_installed(name)
    if name in RECIPES:
        return _read(RECIPES[name])
    if name not in SEGMENTORS.module_dict:
        raise not_found("segmentor", name, segmentor_names())
    return {}


def segmentor_names() -> list[str]:
    """Everything that `segmentor=` takes: the configurations and the registered methods. Installed plug-ins are among them once
    one was asked for."""
    from .registry import RECIPES, SEGMENTORS

    return sorted({*config_names("segmentor"), *declared(), *SEGMENTORS.registered, *RECIPES})


def _read(path: Path) -> dict[str, Any]:
    """A recipe of a plug-in. Raises OvssError for what has not the form of one."""
    config = read_yaml(path, "recipe")
    if not isinstance(config, dict):
        raise OvssError(f"recipe {path}: expected the keys {', '.join(DEPTHS)}.")
    for key, value in config.items():
        if key not in DEPTHS:
            raise unknown(f"key of recipe {path}", key, DEPTHS)
        _check_depth(value, DEPTHS[key], f"recipe {path}: {key}")
    return config


def _check_depth(value: Any, depth: int, where: str) -> None:
    """Whether a section is as many mappings deep as it must be; one that is left empty holds nothing."""
    fits = isinstance(value, dict | None) if depth else isinstance(value, str)
    if not fits:
        raise OvssError(f"{where}: expected {'NAME: VALUE below it' if depth else 'a text'}.")
    for key, inner in (value or {}).items() if depth > 1 else ():
        _check_depth(inner, depth - 1, f"{where}.{key}")


def _merge(values: dict, origins: dict, content: Mapping, file: str, section: tuple[str | None, ...]) -> None:
    """Adds what a file says under a path of keys, such as per_clip.demo."""
    part = content
    for key in section:
        part = part.get(key) or {}
    for name, value in part.items():
        values[name], origins[name] = value, f"{file} {'.'.join(section)}"


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST
