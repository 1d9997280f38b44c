"""The fairness tags of a result: what its method and all networks beside CLIP were trained on, and whether that included images
or class names of the data set. Results with different tags are not ranked together, and their averages say so."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..config.segmentor_file import lineage, merged
from ..config.training import IMAGES_SEEN, NAMES_SEEN, SUPERVISION, UNKNOWN, Training, beside, checked_facts, most, training_of
from ..files import config_names, load_config

GROUPS = {"vfm": "vision"} | {kind: kind for kind in ("regions", "foreground", "diffusion", "sam", "concepts")}
BANK = Training("none", "unlabelled images", target_images_seen="unknown", setting="annotation-free")
METHOD = ("setting", "training_data", "vocabulary", "split_used_at_test", "extra_models")  # tags of the method alone
NETWORK = ("supervision", "training_data", "target_images_seen", "target_names_seen")
TEXTS = {"names", "templates"}  # recipe values that always depend on the data set
OF_DATASET = re.compile(r".* per_(?:clip_)?dataset\.[^ ]*")  # origin of a recipe value set for the data set
Part = tuple[str, Training, str]  # name, facts, and where they are stated
UNSTATED = UNKNOWN, "nobody"
CONCEPT_FOLDER = replace(UNKNOWN, supervision="concept labels and masks"), "its layout, which is that of SAM 3"


def fairness(
    result: Mapping[str, Any],
    tags: Mapping[str, Any] | None = None,
    bank: Mapping[str, int] | None = None,
    files: bool = True,
    given: Container[str] = (),
) -> dict[str, Any]:
    """The field `fairness` of a result, from its other fields. `tags`: the tags in the manifest of label maps; `bank`: the
    `overlap` of the retrieval bank; `files`: whether to read tags files beside the files of the run; `given`: the kinds of
    auxiliary models that are objects without a name. Raises OvssError for invalid facts."""
    recipe = result["recipe"]
    values = {name: entry["value"] for name, entry in recipe.items()}
    parts = {"method": _method(result, values, tags, files)} | dict(_networks(result, values, files, given))
    if bank and bank["shared"]:
        name, facts, where = parts["bank"]
        parts["bank"] = name, replace(facts, target_images_seen="unlabelled"), where
    # All rows have CLIP's own training in common.
    trained = {kind: facts for kind, (_, facts, _) in parts.items() if kind != "clip"}
    supervision = most(SUPERVISION, (facts.supervision for facts in trained.values()))
    named = {kind: part for kind, part in parts.items() if kind != "method"}
    return {
        "supervision": supervision,
        "supervised": [kind for kind, facts in trained.items() if facts.supervision == supervision != "none"],
        **{tag: getattr(trained["method"], tag) for tag in METHOD},
        "target_images_seen": most(IMAGES_SEEN, (facts.target_images_seen for facts in trained.values())),
        "target_names_seen": most(NAMES_SEEN, (facts.target_names_seen for facts in trained.values())),
        "per_dataset_tuning": [name for name in recipe if name not in TEXTS and OF_DATASET.match(recipe[name]["origin"])],
        "networks": {
            kind: {"name": name} | {tag: getattr(facts, tag) for tag in NETWORK} for kind, (name, facts, _) in named.items()
        },
        "bank_overlap": dict(bank) if bank else None,
        "stated_by": list(dict.fromkeys(where for _, _, where in parts.values())),
    }


def overlap(listed: Iterable[str], evaluated: Sequence[str]) -> dict[str, int]:
    """How many images a bank lists, how many are evaluated, and how many of these the bank lists. Images are matched by file
    name, without folder and suffix."""
    bank = {PurePosixPath(name).stem for name in listed}
    shared = sum(PurePosixPath(image).name in bank for image in evaluated)
    return {"bank": len(bank), "evaluated": len(evaluated), "shared": shared}


def class_of(result: Mapping[str, Any]) -> str:
    """The supervision, and what was seen of the target. Results that agree in both may be ranked and averaged together. Empty
    for a result that was not read from a file and has no tags."""
    if (tags := result.get("fairness")) is None:
        return ""
    seen = {"images": tags["target_images_seen"], "names": tags["target_names_seen"]}
    marks = [f"target {what} {'seen' if value == 'yes' else value}" for what, value in seen.items() if value != "no"]
    return "; ".join([tags["supervision"], *marks])


def mark_of(result: Mapping[str, Any]) -> str:
    """The supervision, followed in parentheses by the networks that it comes from, unless the method has it, too. Empty for a
    result without tags."""
    if (tags := result.get("fairness")) is None:
        return ""
    networks = [] if "method" in tags["supervised"] else tags["supervised"]
    return tags["supervision"] + (f" ({', '.join(networks)})" if networks else "")


def order_of(mark: str) -> tuple[int, str]:
    """A sort key for the texts of `mark_of`: from least supervision to most."""
    return ("", *SUPERVISION).index(mark.partition(" (")[0]), mark


def mixed(classes: Mapping[str, str]) -> str | None:
    """The note on an average over members (data set -> `class_of`) of several classes; None if all are of the same class."""
    kinds = {kind: [name for name, each in classes.items() if each == kind] for kind in dict.fromkeys(classes.values())}
    if len(kinds) < 2:
        return None
    return "average of different settings: " + ", ".join(f"{kind} ({', '.join(names)})" for kind, names in kinds.items())


def _method(result: Mapping[str, Any], values: Mapping[str, Any], tags: Mapping[str, Any] | None, files: bool) -> Part:
    name = result["segmentor"]
    section, where = _section(name)
    paths = [source["name"] for kind, source in result["sources"].items() if kind not in (*GROUPS, "bank") and source["name"]]
    checkpoint = PurePosixPath(str(values.get("checkpoint") or "")).name
    facts = training_of(section, where, result["dataset"], checkpoint) if section else UNKNOWN
    stated = [(checked_facts(tags, "tags of manifest.json"), "manifest.json")] if tags else []
    stated += [(checked_facts(found[1], str(found[0])), found[0].name) for path in paths if files and (found := beside(path))]
    for changes, file in stated:
        facts, where = Training(**asdict(facts) | changes), file
    return name, facts, where


def _section(segmentor: str) -> tuple[Any, str]:
    """The section `training` of a recipe or None, and where it is stated: in its file, or in one that it extends."""
    files = lineage(segmentor.partition("+")[0])  # without steps
    section = merged(files).get("training")
    stated = (file.where for file in reversed(files) if file.content.get("training"))
    return (section, f"{next(stated)} training") if section else (None, "nobody")


def _networks(
    result: Mapping[str, Any], values: Mapping[str, Any], files: bool, given: Container[str]
) -> Iterator[tuple[str, Part]]:
    if result["clip"] != "none":
        yield "clip", _network("clip", result["clip"], None, False)
    for step in result["segmentor"].split("+")[1:]:
        known = load_config("step", step) if step in config_names("step") else {}
        facts = training_of(known["training"], f"configs/step/{step}.yaml training") if known.get("training") else UNKNOWN
        yield step, (step, facts, f"configs/step/{step}.yaml training" if known else "nobody")
    for kind, group in GROUPS.items():
        if name := values.get(kind):
            generator = result["sources"].get(kind, {}).get("generator")
            folder = kind == "concepts" and kind not in given  # unless `name` is an entry
            yield kind, _network(group, name, generator, files, CONCEPT_FOLDER if folder else UNSTATED)
            entry = load_config(group, name) if name in config_names(group) else {}
            if "encoder" in entry:
                yield f"{kind} encoder", _network("vision", entry["encoder"], None, False)
    if name := values.get("bank"):
        found = beside(name) if files else None
        stated = checked_facts(found[1], str(found[0])) if found else {}
        yield "bank", (name, Training(**asdict(BANK) | stated), found[0].name if found else "nobody")


def _network(group: str, name: str, generator: str | None, files: bool, unstated: tuple[Training, str] = UNSTATED) -> Part:
    """The facts of a network: those in the tags file beside it, else those of its entry in configs/<group>, found by its name,
    its `generator` or the name of the official file, else `unstated`."""
    if files and (found := beside(name)):
        return name, Training(**asdict(UNKNOWN) | checked_facts(found[1], str(found[0]))), found[0].name
    entries = {entry: load_config(group, entry) for entry in config_names(group)}
    official = (entry for entry, config in entries.items() if _official(config) == Path(name).name)
    plain = name.removesuffix("@image")  # see encoders.vision.OncePerImage
    entry = plain if plain in entries else generator or next(official, None)
    if entry not in entries:
        return name, *unstated
    where = f"configs/{group}/{entry}.yaml training"
    return name, training_of(entries[entry].get("training"), where), where


def _official(config: Mapping[str, Any]) -> str | None:
    """The name of an entry's official file or repository."""
    return config.get("file") or str(config.get("repo", "")).rpartition("/")[2] or None
