"""Compares a run with the published figure that it should reproduce, and checks the usual reasons for a gap."""

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

# The recipe values behind each usual reason; hyperparameters are "other settings".
REASONS = {
    "names and templates": names_at(Stage.TEXT),
    "resize and windows": names_at(Stage.INPUT, Stage.WINDOW, Stage.SCORING),
    "scale and threshold": names_at(Stage.DECISION),
    "refinement": names_at(Stage.REFINEMENT),
    "encoder": names_at(Stage.ENCODER),
}
OK, SUSPICIOUS, UNKNOWN = "ok", "suspicious", "not known"
Check = tuple[str, str, str]  # what, state, explanation


def compare_with_published(path: str | Path, tolerance: float = 0.1) -> tuple[list[dict[str, Any]], list[str]]:
    """Compares a result file, or every result in a folder, with its published figure. Returns the comparisons, in points of
    the figure's metric, and why other results have no figure. The level is the first of these that applies:

    - equivalent: our value equals the figure within `tolerance` and the figure's rounding; never for partial results;
    - different: the 95 % interval of our value excludes the figure;
    - inconclusive: the difference may be due to the sample of images.

    `caveat` says why a run is not exactly the published one: partial, or with unpublished settings. Raises OvssError if no
    result has a published figure.
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
        raise OvssError(f"no published figure belongs to {path}. " + "; ".join(dict.fromkeys(reasons)))
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
    """The largest rounding error of a printed figure: half a unit of its last decimal (64 counts as 64.0)."""
    return 0.5 * 10.0 ** -max(len(f"{figure:.10g}".partition(".")[2]), 1)


def checklist(result: Mapping[str, Any]) -> Iterator[Check]:
    """The usual reasons why a run misses a figure, each as ok, suspicious or not known."""
    yield _weights(result)
    yield from _recipe(result)
    yield _names(result)
    yield _precision(result)
    yield from _data(result)
    yield from _code(result)


def _weights(result: Mapping[str, Any]) -> Check:
    clip, digest = result["clip"], result["weights_digest"][:12]
    known = (load_config("clip", clip) if clip in config_names("clip") else {}).get("weights_digest")
    words = result["provenance"]["command"].split()
    options = [word for word in words if word.startswith(("weights=", f"clip={clip}:"))]
    if clip == "none":
        check = OK, "the method uses no CLIP"
    elif known == result["weights_digest"]:
        check = OK, f"the digest {digest} is that of {clip}"
    elif known is not None:
        check = SUSPICIOUS, f"the digest is {digest}, that of {clip} is {known[:12]}"
    elif weights_of(result):  # weights of another CLIP have no published figures
        check = OK, f"the file has the SHA-256 of {weights_of(result)[0]}"
    elif options:
        check = SUSPICIOUS, f"the SHA-256 of {options[0]} is not on record; digest {digest}"
    else:
        check = UNKNOWN, f"digest {digest}; no digest of {clip} is on record"
    return "weights", *check


def _recipe(result: Mapping[str, Any]) -> Iterator[Check]:
    """Compares the recipe with the paper's, including the overrides that the published figure implies."""
    run = result["segmentor"], result["clip"], result["dataset"]
    values = compose_recipe(run[0], clip=run[1], dataset=run[2], overrides=settings(*run, meant(result))).values()
    wanted = json.loads(json.dumps({name: value for name, value in values.items() if name != "precision"}))
    found = {name: entry["value"] for name, entry in result["recipe"].items() if name != "precision"}
    found |= {kind: maps for kind, maps in ((kind, generator(source)) for kind, source in result["sources"].items()) if maps}
    known = {name for names in REASONS.values() for name in names}
    others = tuple(name for name in dict.fromkeys([*wanted, *found]) if name not in known)
    for what, names in {**REASONS, "other settings": others}.items():
        differing = [name for name in names if found.get(name) != wanted.get(name)]
        wrong = "; ".join(f"{name} is {found.get(name)}, the recipe has {wanted.get(name)}" for name in differing)
        said = ", ".join(f"{name} {'not set' if found[name] is None else found[name]}" for name in names if name in found)
        yield what, SUSPICIOUS if wrong else OK, wrong or said or "none"


def _names(result: Mapping[str, Any]) -> Check:
    """Compares names, synonyms, templates and background of the prompts with the files in configs/names."""
    what, recipe = "texts", {name: entry["value"] for name, entry in result["recipe"].items()}
    classes = [entry["class"] for entry in result["per_class"]]
    try:
        name, config, _ = dataset_config(result["dataset"])
        entries, distractors = config.get("synonyms") or classes, []
        if recipe["names"] is not None:
            entries, distractors = read_names(names_path(config.get("names_of", name), recipe["names"]))
        options = {"templates": recipe["templates"], "distractors": distractors, "classes": classes}
        current = Vocabulary.from_names(entries, background=config.get("background"), **options).digest
    except OvssError as error:
        return what, UNKNOWN, str(error)
    if current == result["names_digest"]:
        return what, OK, f"the digest {current[:12]} is that of the names {recipe['names'] or 'of the data set'}"
    return what, SUSPICIOUS, f"the digest is {result['names_digest'][:12]}, that of the current names {current[:12]}"


def _precision(result: Mapping[str, Any]) -> Check:
    run = result["segmentor"], result["clip"], result["dataset"]
    wanted, found = compose_recipe(run[0], clip=run[1], dataset=run[2]).precision, result["precision"]
    usual = (wanted,) if wanted else ("fp32", "fp16")
    return "precision", *((OK, found) if found in usual else (SUSPICIOUS, f"{found}, the recipe has {' or '.join(usual)}"))


def _data(result: Mapping[str, Any]) -> Iterator[Check]:
    images, dataset, classes = result["images"], result["dataset"], result["per_class"]
    expected = number(dataset_config(dataset)[1], images["expected"]) or images["expected"]
    complete = images["evaluated"] == expected and not images["failed"]
    says = f"{images['evaluated']} of {expected}" + (f", {len(images['failed'])} failed" if images["failed"] else "")
    yield "images", OK if complete else SUSPICIOUS, says
    if empty := [entry["class"] for entry in classes if not entry["true"]]:
        yield "classes", SUSPICIOUS, f"{len(empty)} of {len(classes)} never occur in the labels: {', '.join(empty[:5])}"
    known, found = load_config("dataset", dataset).get("fingerprint"), result["dataset_fingerprint"]
    hint = f"python tools/datasets.py check {dataset} against=MANIFEST compares with another copy"
    if known is None:
        yield "data set", UNKNOWN, f"fingerprint {found[:12]}; none is on record. {hint}"
    else:
        says = f"fingerprint {found[:12]}" + ("" if found == known else f", that of the official data is {known[:12]}. {hint}")
        yield "data set", OK if found == known else SUSPICIOUS, says


def _code(result: Mapping[str, Any]) -> Iterator[Check]:
    source = result["provenance"]
    known = known_code(result["segmentor"], result["dataset"], result["sources"])
    if known and not source["plugins"]:
        same = source["source_digest"] == source_digest(*known)
        yield "code", OK if same else SUSPICIOUS, "the current version" if same else "of another version: run again to be sure"
    if source["plugins"]:
        yield "plug-ins", SUSPICIOUS, f"loaded: {', '.join(source['plugins'])}"
    if doubts := unconfirmed(result):
        yield "unconfirmed", SUSPICIOUS, "; ".join(doubts)
    for kind, other in result["sources"].items():
        yield kind, UNKNOWN, f"{other['name']}, digest {(other['digest'] or 'none')[:12]}; no digest of it is on record"
