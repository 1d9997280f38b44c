"""Configurations of data sets, from configs/dataset and from a user's YAML files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import Ge, Le, Len, MinLen

from ..config.validation import Expected, Images, validate_all
from ..errors import OvssError, unknown
from ..evaluation.metrics import DatasetFacts
from ..files import CONFIGS, config_names, load_config, read_text, read_yaml, user_path
from ..vocabulary import read_names

REQUIRED = ("images", "labels", "image_suffix", "label_suffix")
Texts = Annotated[list[str], MinLen(1), Expected("a list of texts")]
Alternatives = Annotated[str | Texts, Expected("a text, or a list of alternatives")]
Classes = Annotated[list[str | Texts], MinLen(1), Expected("a list of names, or of lists of synonyms")]
COUNTS = "a positive number of images, or a list of the numbers that count as complete"
Counts = Annotated[Images | Annotated[list[Images], MinLen(1)], Expected(COUNTS)]
Label = Annotated[int, Ge(0), Le(65535), Expected("a value of label maps, 0 to 65535")]
Labels = Annotated[list[Label], Expected("a list of class numbers")]
Colour = Annotated[list[Annotated[int, Ge(0), Le(255)]], Len(3, 3)]
Palette = Annotated[list[Colour], Expected("a list of [red, green, blue]")]
Section = Annotated[dict[str, Any], Expected("NAME: VALUE below it")]
Pattern = Annotated[re.Pattern, Expected("a regular expression")]
Splits = Annotated[dict[str, Any], Expected("NAME: NUMBER below it")]
Span = Annotated[list[int], Len(2, 2), Expected("[first, last] of numeric ids")]

TEXTS: dict[str, Any] = {
    **dict.fromkeys(("extends", "loader", "mmseg", "full_name", "link", "licence", "names", "names_of", "ids"), str),
    **dict.fromkeys(REQUIRED, Alternatives),
    "folders": Texts,
    "classes": Classes,
}
KEYS: dict[str, Any] = {  # of a data set's configuration; null removes a key inherited through `extends`
    **TEXTS,
    **dict.fromkeys(("background", "ignore_index", "object"), Label),
    **dict.fromkeys(("unseen", "interest"), Labels),
    **dict.fromkeys(("check", "prepare"), Section),
    "expected_images": Counts,
    "palette": Palette,
    "reduce_zero_label": bool,
}
CHECK: dict[str, Any] = {"ids": Pattern, "id_range": Span, "splits": Splits, "ignored": bool}  # keys below `check`


def names_path(dataset: str, names: str) -> Path:
    """The names file of a variant, or the path itself."""
    folder = CONFIGS / "names" / dataset
    for path in (folder / f"{names}.txt", user_path(names)):
        if path.is_file():
            return path
    raise unknown(f"names variant (or file) of {dataset}", names, [file.stem for file in folder.glob("*.txt")])


def alternatives(value: str | list[str]) -> list[str]:
    """A folder or suffix of a configuration as a list of alternative names."""
    return [value] if isinstance(value, str) else value


def pattern_of(config: dict[str, Any], kind: str) -> str:
    """The path pattern of a `kind` (image, label) for messages: folder/<id>suffix, with | between alternatives."""
    folder, suffix = ("|".join(alternatives(config[key])) for key in (f"{kind}s", f"{kind}_suffix"))
    return f"{folder}/<id>{suffix}"


def facts_of(name: str) -> DatasetFacts:
    """What the metrics need to know about a data set of configs/dataset, without reading its files; defaults otherwise."""
    return facts(dataset_config(name)[1]) if name in config_names("dataset") else DatasetFacts()


def facts(config: dict[str, Any]) -> DatasetFacts:
    """What the metrics need to know about a data set with this configuration."""
    unseen, interest = (tuple(config.get(key, ())) for key in ("unseen", "interest"))
    return DatasetFacts(config.get("background"), unseen, config.get("object"), interest, config.get("ignore_index", 255))


def dataset_config(name: str | Path) -> tuple[str, dict[str, Any], Path | None]:
    """The name of a data set, its configuration (merged with the one it `extends`), and the folder of a user's YAML file."""
    if not isinstance(name, str | Path):
        raise OvssError(f"data set {name!r}: expected a name or the path of a YAML file, not {type(name).__name__}.")
    path, known = user_path(name), config_names("dataset")
    if path.suffix not in (".yaml", ".yml"):
        if name not in known:
            raise unknown("dataset", name, known)
        return str(name), _extended(load_config("dataset", str(name))), None
    if not path.is_file():
        raise OvssError(f"data set file {path} does not exist. Known by name: {', '.join(known)}.")
    if path.stem in known:
        raise OvssError(f"data set file {path} has the name of a built-in data set. Rename it.")
    return path.stem, _from_file(path), path.resolve().parent


def _extended(config: dict[str, Any]) -> dict[str, Any]:
    return dataset_config(config["extends"])[1] | config if config.get("extends") else config


def _from_file(path: Path) -> dict[str, Any]:
    """The configuration in a user's file. Required are `images`, `labels`, `image_suffix`, `label_suffix`, and `classes` (a
    list of names, or of lists of synonyms) or `names` (a names file). Other keys are as in configs/dataset."""
    config = read_yaml(path, "data set file")
    if not isinstance(config, dict):
        raise OvssError(f"data set file {path} is not a mapping. Expected {', '.join(REQUIRED)}, and names or classes.")
    written = yaml.load(read_text(path, "data set file"), yaml.BaseLoader)
    config |= {key: _as_written(config[key], written.get(key)) for key in config if key in TEXTS and config[key] is not None}
    _validate(config, KEYS, f"data set file {path}")
    if config.get("extends") is not None and config["extends"] not in config_names("dataset"):
        raise unknown(f"dataset that {path} extends", config["extends"], config_names("dataset"))
    config = {key: value for key, value in _extended(config).items() if value is not None}
    missing = [key for key in REQUIRED if key not in config]
    if "mmseg" not in config and not {"names", "classes"} & set(config):
        missing.append("names (a file with one line per class) or classes (a list)")
    if missing:
        raise OvssError(f"data set file {path} lacks {', '.join(missing)}.")
    entries = read_names(path.parent / config["names"])[0] if "names" in config else config.get("classes")
    if entries is not None:
        config["synonyms"] = [entry if isinstance(entry, list) else [str(entry)] for entry in entries]
        config["classes"] = [entry[0] for entry in config["synonyms"]]
    _check_classes(config, path)
    _validate(config.get("check", {}), CHECK, f"check in data set file {path}")
    return {"folders": ["."]} | config


def _validate(values: dict[str, Any], hints: dict[str, Any], origin: str) -> None:
    validate_all(values, {key: hint | None for key, hint in hints.items()}, "key", lambda name: origin)


def _as_written(value: Any, text: Any) -> Any:
    """The original text where YAML parses a number, boolean or null: `no`, `1e3`, `2007_000033` and `null` are names."""
    if isinstance(value, list) and isinstance(text, list):
        return [_as_written(*pair) for pair in zip(value, text, strict=True)]
    return text if isinstance(text, str) and text and not isinstance(value, list | dict) else value


def _check_classes(config: dict[str, Any], path: Path) -> None:
    """Checks class numbers, `ignore_index` and the palette against the number of classes, if the file lists classes."""
    count = len(config.get("classes", ()))
    for key in ("background", "object", "unseen", "interest") if count else ():
        value = config.get(key, [])
        wrong = [number for number in (value if isinstance(value, list) else [value]) if number >= count]
        if wrong:
            raise OvssError(f"data set file {path}: {key}={value}, but the classes are numbered 0 to {count - 1}.")
    if config.get("ignore_index", 255) < count:
        raise OvssError(f"data set file {path}: ignore_index={config.get('ignore_index', 255)} is the number of a class.")
    if count and len(config.get("palette", config["classes"])) != count:
        raise OvssError(f"data set file {path}: palette has {len(config['palette'])} colours for {count} classes.")
