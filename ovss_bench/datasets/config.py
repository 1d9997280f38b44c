"""What configs/dataset and YAML files of one's own say about data sets, whether or not their files are here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from ..errors import OvssError, unknown
from ..evaluation.metrics import DatasetFacts
from ..files import CONFIGS, config_names, load_config, read_text, read_yaml, user_path
from ..vocabulary import read_names

KEYS = {  # what configs/dataset and YAML files of one's own may hold
    **dict.fromkeys(("extends", "loader", "mmseg", "full_name", "link", "licence", "names", "names_of"), "a text"),
    **dict.fromkeys(("images", "labels", "image_suffix", "label_suffix"), "a text, or a list of alternatives"),
    **dict.fromkeys(("background", "ignore_index", "object"), "a whole number, 0 or more"),
    "ids": "a text",
    "expected_images": "a whole number, 0 or more, or a list of those that count as complete",
    **dict.fromkeys(("unseen", "interest"), "a list of class numbers"),
    **dict.fromkeys(("check", "prepare"), "NAME: VALUE below it"),
    "folders": "a list of texts",
    "classes": "a list of names, or of lists of synonyms",
    "palette": "a list of [red, green, blue]",
    "reduce_zero_label": "true or false",
}


def names_path(dataset: str, names: str) -> Path:
    """The names file of a variant, or the given path."""
    path = CONFIGS / "names" / dataset / f"{names}.txt"
    if path.is_file():
        return path
    if user_path(names).is_file():
        return user_path(names)
    variants = [file.stem for file in path.parent.glob("*.txt")]
    raise unknown(f"names variant (or file) of {dataset}", names, variants)


def alternatives(value: str | list[str]) -> list[str]:
    """The names of a folder or suffix that may have several."""
    return [value] if isinstance(value, str) else value


def first_there(names: str | list[str], folder: Path) -> str:
    """The first of the names that is in a folder; if none is, the first."""
    names = alternatives(names)
    return next((name for name in names if (folder / name).exists()), names[0])


def first_suffix(suffixes: str | list[str], folder: Path) -> str:
    """The first of the suffixes that a file at any depth of a folder has; if none has, the first."""
    first, *others = alternatives(suffixes)
    names = [name for _, _, names in os.walk(folder, followlinks=True) for name in names if name[0] != "."] if others else []
    return next((suffix for suffix in (first, *others) if any(name.endswith(suffix) for name in names)), first)


def chosen(config: dict[str, Any], root: Path) -> dict[str, Any]:
    """A configuration with one folder and suffix of images and labels, where it names alternatives: what is in `root`."""
    folders = {key: first_there(config[key], root) for key in ("images", "labels")}
    suffixes = {f"{key[:-1]}_suffix": first_suffix(config[f"{key[:-1]}_suffix"], root / path) for key, path in folders.items()}
    return config | folders | suffixes


def pattern_of(config: dict[str, Any], kind: str) -> str:
    """The files of a `kind` (image, label) as texts show them: folder/<id>suffix, alternatives with | between them."""
    folder, suffix = ("|".join(alternatives(config[key])) for key in (f"{kind}s", f"{kind}_suffix"))
    return f"{folder}/<id>{suffix}"


def facts_of(name: str) -> DatasetFacts:
    """What the metrics must know of a data set that need not be here; of one that is not of configs/dataset, nothing."""
    return facts(dataset_config(name)[1]) if name in config_names("dataset") else DatasetFacts()


def facts(config: dict[str, Any]) -> DatasetFacts:
    """What the metrics must know of a data set with this configuration."""
    unseen, interest = (tuple(config.get(key, ())) for key in ("unseen", "interest"))
    return DatasetFacts(config.get("background"), unseen, config.get("object"), interest, config.get("ignore_index", 255))


def dataset_config(name: str | Path) -> tuple[str, dict[str, Any], Path | None]:
    """The name of a data set, its configuration with what it `extends`, and the folder of a YAML file of one's own."""
    if not isinstance(name, str | Path):
        raise OvssError(f"data set {name!r}: expected a name, or the path of a YAML file, not {type(name).__name__}.")
    path = user_path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in config_names("dataset"):
            raise unknown("dataset", name, config_names("dataset"))
        config = load_config("dataset", str(name))
        return str(name), _extended(config), None
    if not path.is_file():
        raise OvssError(f"data set file {path} does not exist. Known by name: {', '.join(config_names('dataset'))}.")
    if path.stem in config_names("dataset"):
        raise OvssError(f"data set file {path} has the name of a data set of this project. Give it another name.")
    return path.stem, _own(path), path.resolve().parent


def _extended(config: dict[str, Any]) -> dict[str, Any]:
    return dataset_config(config["extends"])[1] | config if "extends" in config else config


def _own(path: Path) -> dict[str, Any]:
    """The configuration of a data set of one's own: `images`, `labels`, `image_suffix`, `label_suffix`, and `classes` (a list,
    of which an entry may be a list of synonyms) or `names` (a names file); further keys as in configs/dataset."""
    config = read_yaml(path, "data set file")
    wanted = ("images", "labels", "image_suffix", "label_suffix")
    if not isinstance(config, dict):
        raise OvssError(f"data set file {path} is not a mapping. Expected the keys {', '.join(wanted)}, and names or classes.")
    written = yaml.load(read_text(path, "data set file"), yaml.BaseLoader)
    for key, value in config.items():
        if key not in KEYS:
            raise unknown(f"key in {path}", key, KEYS)
        if value is not None and ("text" in KEYS[key] or key == "classes"):
            value = config[key] = _as_written(value, written.get(key))
        if value is not None and not _fits(value, KEYS[key]):
            raise OvssError(f"data set file {path}: {key}={value!r}: expected {KEYS[key]}.")
    if config.get("extends") is not None and config["extends"] not in config_names("dataset"):
        raise unknown(f"dataset that {path} extends", config["extends"], config_names("dataset"))
    config = {key: value for key, value in config.items() if key != "extends" or value is not None}
    config = {key: value for key, value in _extended(config).items() if value is not None}
    missing = [key for key in wanted if key not in config]
    if "mmseg" not in config and not {"names", "classes"} & set(config):
        missing.append("names (a file with a line per class) or classes (a list)")
    if missing:
        raise OvssError(f"data set file {path} lacks {', '.join(missing)}.")
    entries = read_names(path.parent / config["names"])[0] if "names" in config else config.get("classes")
    if entries is not None:
        config["synonyms"] = [entry if isinstance(entry, list) else [str(entry)] for entry in entries]
        config["classes"] = [entry[0] for entry in config["synonyms"]]
    _check_classes(config, path)
    _check_facts(config.get("check", {}), path)
    return {"folders": ["."]} | config


def _as_written(value: Any, text: Any) -> Any:
    """Texts where YAML sees numbers, true and false, or nothing: `no`, `1e3`, `2007_000033`, `null` are good names."""
    if isinstance(value, list) and isinstance(text, list):
        return [_as_written(*pair) for pair in zip(value, text, strict=True)]
    return text if isinstance(text, str) and text and not isinstance(value, list | dict) else value


def _check_classes(config: dict[str, Any], path: Path) -> None:
    """Class numbers must be those of classes, where the file lists them."""
    count = len(config.get("classes", ()))
    for key in ("background", "object", "unseen", "interest") if count else ():
        value = config.get(key, [])
        wrong = [number for number in (value if isinstance(value, list) else [value]) if number >= count]
        if wrong:
            raise OvssError(f"data set file {path}: {key}={value}, but the classes are 0 to {count - 1}.")
    if config.get("ignore_index", 255) < count:
        raise OvssError(f"data set file {path}: ignore_index={config.get('ignore_index', 255)} is the number of a class.")
    if count and len(config.get("palette", config.get("classes"))) != count:
        raise OvssError(f"data set file {path}: palette has {len(config['palette'])} colours for {count} classes.")


def _check_facts(facts: dict[str, Any], path: Path) -> None:
    """What `check` may hold: a pattern of ids, their range, the numbers of images of other splits."""
    span, splits = facts.get("id_range"), facts.get("splits")
    try:
        re.compile(facts.get("ids") or "")
    except (TypeError, re.error) as error:
        raise OvssError(f"data set file {path}: check.ids={facts['ids']!r} is no regular expression: {error}.") from error
    if span is not None and not (isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)):
        raise OvssError(f"data set file {path}: check.id_range={span!r}: expected [first, last] of ids that are numbers.")
    if splits is not None and not isinstance(splits, dict):
        raise OvssError(f"data set file {path}: check.splits={splits!r}: expected NAME: NUMBER below it.")


def _fits(value: Any, kind: str) -> bool:
    """Whether a value is what KEYS says of it."""

    def number(item: Any) -> bool:
        return type(item) is int and item >= 0

    def listed(fits: Any) -> bool:
        return isinstance(value, list) and all(map(fits, value))

    def colour(item: Any) -> bool:
        return isinstance(item, list) and len(item) == 3 and all(type(part) is int and 0 <= part < 256 for part in item)

    def entry(item: Any) -> bool:
        return isinstance(item, str) or (isinstance(item, list) and bool(item) and all(isinstance(part, str) for part in item))

    checks = {
        "a text": lambda: isinstance(value, str),
        KEYS["images"]: lambda: isinstance(value, str) or (bool(value) and listed(lambda item: isinstance(item, str))),
        KEYS["expected_images"]: lambda: number(value) or (bool(value) and listed(number)),
        "a list of texts": lambda: bool(value) and listed(lambda item: isinstance(item, str)),
        "a list of class numbers": lambda: listed(number),
        "a whole number, 0 or more": lambda: number(value),
        "a list of [red, green, blue]": lambda: listed(colour),
        "true or false": lambda: isinstance(value, bool),
        "NAME: VALUE below it": lambda: isinstance(value, dict),
    }
    return checks.get(kind, lambda: bool(value) and listed(entry))()
