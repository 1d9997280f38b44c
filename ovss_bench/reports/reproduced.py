"""A run against the published figure that it should reproduce, and the usual reasons for a gap, checked by its provenance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config.recipe import Stage, compose_recipe, names_at
from ..datasets.config import dataset_config, facts_of, names_path
from ..datasets.expected import number
from ..errors import OvssError
from ..evaluation.bootstrap import interval
from ..files import config_names, load_config
from ..runs.code import known_code, source_digest
from ..runs.load import result_paths
from ..runs.published import compare_published, generator, meant, settings, unconfirmed, weights_of
from ..vocabulary import Vocabulary, read_names
from .compare import DECIMALS, Run, read_run

# The recipe values that each of the usual reasons is about; hyperparameters are "other settings".
REASONS = {
    "names and templates": names_at(Stage.TEXT),
    "resize and windows": names_at(Stage.INPUT, Stage.WINDOW, Stage.SCORING),
    "scale and threshold": names_at(Stage.DECISION),
    "refinement": names_at(Stage.REFINEMENT),
    "encoder": names_at(Stage.ENCODER),
}
OK, SUSPICIOUS, UNKNOWN = "ok", "suspicious", "not known"
Check = tuple[str, str, str]  # what, state, what there is to say


def compare_with_published(path: str | Path, tolerance: float = 0.1) -> tuple[list[dict[str, Any]], list[str]]:
    """A comparison, in points of the figure's metric, of a result file or of each in a folder that has a published figure; and
    why the others have none. The levels, of which the first that holds counts:

    - equivalent: ours is the figure, as far as it was printed, within `tolerance`; never of a part of the images;
    - different: the 95 % interval of ours excludes the figure;
    - inconclusive: another sample of images could make up for the difference.

    `caveat` says what keeps a run from being the published one: a part of the images, or settings that nobody published.

    Raises OvssError if there is nothing to compare with.
    """
    comparisons, reasons = [], []
    for file in result_paths(path):
        run = read_run(file)
        published = compare_published(run.result)
        if published["figures"]:
            comparisons.append(_comparison(run, published, tolerance))
        else:
            reasons.append(f"{run.result['segmentor']} on {run.result['dataset']}: {published['why_not']}")
    if not comparisons:
        raise OvssError(f"no published figure is meant for {path}. " + "; ".join(dict.fromkeys(reasons)))
    return comparisons, reasons


def _comparison(run: Run, published: Mapping[str, Any], tolerance: float) -> dict[str, Any]:
    figure, *others = published["figures"]
    ours = interval(run.counts.values(), len(run.classes), figure["metric"], facts_of(run.result["dataset"]))
    value, low, high = (round(100 * number - figure["miou"], DECIMALS) for number in (ours.value, ours.low, ours.high))
    level = "different" if low > 0 or high < 0 else "inconclusive"
    if not run.result["partial"] and abs(value) <= tolerance + rounding(figure["miou"]):
        level = "equivalent"
    return {
        "level": level,
        "run": run.facts(),
        "ours": round(100 * ours.value, DECIMALS),
        "figure": figure,
        "others": [other for other in others if other["miou"] != figure["miou"]],
        "difference": {"value": value, "low": low, "high": high},
        "tolerance": tolerance,
        "caveat": published["why_not"],
        "checklist": [{"what": what, "state": state, "says": says} for what, state, says in checklist(run.result)],
    }


def rounding(figure: float) -> float:
    """What the printing of a figure may have taken from it: half a unit of its last decimal (64.0 comes as 64)."""
    return 0.5 * 10.0 ** -max(len(f"{figure:.10g}".partition(".")[2]), 1)


def checklist(result: Mapping[str, Any]) -> Iterator[Check]:
    """The usual reasons why a figure is missed, each as ok, suspicious or not known."""
    yield _weights(result)
    yield from _recipe(result)
    yield _names(result)
    yield _precision(result)
    yield from _data(result)
    yield from _code(result)


def _weights(result: Mapping[str, Any]) -> Check:
    entry = load_config("clip", result["clip"]) if result["clip"] in config_names("clip") else {}
    known, digest, what = entry.get("weights_digest"), result["weights_digest"], "weights"
    if known is not None:
        if digest == known:
            return what, OK, f"the digest {digest[:12]} is that of {result['clip']}"
        return what, SUSPICIOUS, f"the digest is {digest[:12]}, that of {result['clip']} is {known[:12]}"
    if weights_of(result):  # of another CLIP than this they would not have come here
        return what, OK, f"the file has the SHA-256 of {weights_of(result)[0]}"
    given = [
        word for word in result["provenance"]["command"].split() if word.startswith(("weights=", f"clip={result['clip']}:"))
    ]
    if given:
        return what, SUSPICIOUS, f"{given[0]} was given, whose SHA-256 is none of those on record here; digest {digest[:12]}"
    return what, UNKNOWN, f"digest {digest[:12]}; no digest of {result['clip']} is on record here"


def _recipe(result: Mapping[str, Any]) -> Iterator[Check]:
    """The recipe against that of the figure: the paper's, with what was overridden and is known to be meant by the figure."""
    run = result["segmentor"], result["clip"], result["dataset"]
    overrides = settings(*run, meant(result))
    values = compose_recipe(run[0], clip=run[1], dataset=run[2], overrides=overrides).values()
    wanted = json.loads(json.dumps({name: value for name, value in values.items() if name != "precision"}))
    found = {name: entry["value"] for name, entry in result["recipe"].items() if name != "precision"}
    found |= {kind: maps for kind, maps in ((kind, generator(source)) for kind, source in result["sources"].items()) if maps}
    known = {name for names in REASONS.values() for name in names}
    others = tuple(name for name in dict.fromkeys([*wanted, *found]) if name not in known)
    for what, names in {**REASONS, "other settings": others}.items():
        wrong = [
            f"{name} is {found.get(name)}, the recipe has {wanted.get(name)}"
            for name in names
            if found.get(name) != wanted.get(name)
        ]
        said = ", ".join(f"{name} {'not set' if found[name] is None else found[name]}" for name in names if name in found)
        yield what, SUSPICIOUS if wrong else OK, "; ".join(wrong) or said or "none"


def _names(result: Mapping[str, Any]) -> Check:
    """Names, synonyms, templates and background as they were put to the text encoder, against the files that are here."""
    what, recipe = "texts", {name: entry["value"] for name, entry in result["recipe"].items()}
    classes = [entry["class"] for entry in result["per_class"]]
    try:
        name, config, _ = dataset_config(result["dataset"])
        entries, distractors = config.get("synonyms") or classes, []
        if recipe["names"] is not None:
            entries, distractors = read_names(names_path(config.get("names_of", name), recipe["names"]))
        options = {"templates": recipe["templates"], "distractors": distractors, "classes": classes}
        here = Vocabulary.from_names(entries, background=config.get("background"), **options).digest
    except OvssError as error:
        return what, UNKNOWN, str(error)
    if here == result["names_digest"]:
        return what, OK, f"the digest {here[:12]} is that of the names {recipe['names'] or 'of the data set'}"
    return what, SUSPICIOUS, f"the digest is {result['names_digest'][:12]}, that of the names that are here {here[:12]}"


def _precision(result: Mapping[str, Any]) -> Check:
    run = result["segmentor"], result["clip"], result["dataset"]
    wanted, found = compose_recipe(run[0], clip=run[1], dataset=run[2]).precision, result["precision"]
    usual = (wanted,) if wanted else ("fp32", "fp16")
    return "precision", *((OK, found) if found in usual else (SUSPICIOUS, f"{found}, the recipe has {' or '.join(usual)}"))


def _data(result: Mapping[str, Any]) -> Iterator[Check]:
    images, dataset = result["images"], result["dataset"]
    expected = number(dataset_config(dataset)[1], images["expected"]) or images["expected"]
    complete = images["evaluated"] == expected and not images["failed"]
    says = f"{images['evaluated']} of {expected}" + (f", {len(images['failed'])} failed" if images["failed"] else "")
    yield "images", OK if complete else SUSPICIOUS, says
    empty = [entry["class"] for entry in result["per_class"] if not entry["true"]]
    if empty:
        yield (
            "classes",
            SUSPICIOUS,
            f"{len(empty)} of {len(result['per_class'])} never occur in the labels: {', '.join(empty[:5])}",
        )
    known, found = load_config("dataset", dataset).get("fingerprint"), result["dataset_fingerprint"]
    hint = f"python tools/datasets.py check {dataset} against=MANIFEST compares with another copy"
    if known is None:
        yield "data set", UNKNOWN, f"fingerprint {found[:12]}; none is on record here. {hint}"
    else:
        says = f"fingerprint {found[:12]}" + ("" if found == known else f", that of the official data is {known[:12]}. {hint}")
        yield "data set", OK if found == known else SUSPICIOUS, says


def _code(result: Mapping[str, Any]) -> Iterator[Check]:
    source = result["provenance"]
    known = known_code(result["segmentor"], result["dataset"], result["sources"])
    if known and not source["plugins"]:
        same = source["source_digest"] == source_digest(*known)
        says = "as it is here" if same else "of another version than this: run again to be sure"
        yield "code", OK if same else SUSPICIOUS, says
    if source["plugins"]:
        yield "plug-ins", SUSPICIOUS, f"loaded were {', '.join(source['plugins'])}"
    doubts = unconfirmed(result)
    if doubts:
        yield "generator", SUSPICIOUS, "; ".join(doubts)
    for kind, other in result["sources"].items():
        digest = (other["digest"] or "none")[:12]
        yield kind, UNKNOWN, f"{other['name']}, digest {digest}; no digest of it is on record here"
