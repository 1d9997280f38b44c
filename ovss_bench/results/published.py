"""Figures that papers, their repositories and listings state (results/published/*.csv), and which of them a result of ours is
to be held against."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import OvssError, unknown
from ..evaluation.metrics import RULES
from ..files import PUBLISHED, config_names, load_config
from ..recipe import compose_recipe, segmentor_names

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "method", "variant", "backbone", "pretrained", "extra_model", "dataset", "miou", "postprocess", "source",
    "table", "second_hand", "metric", "segmentor", "clip", "overrides",
)  # fmt: skip
# Figures were published on these, too, but nothing here evaluates them: only the unseen classes of a zero-shot split, other
# classes, or images with noise.
NOT_EVALUATED = ("voc12_unseen", "context_unseen", "coco_stuff_unseen", "coco_stuff27", "voc20_speckle_noise_1")


@cache
def published_figures() -> pd.DataFrame:
    """All published figures, a row each, in the order of the files; see `load_figures`."""
    return load_figures(PUBLISHED)


def load_figures(folder: Path) -> pd.DataFrame:
    """The CSV files of a folder as one table: `miou` in percent, `second_hand` as a truth value, `overrides` as a dictionary.

    `segmentor`, `clip` and `overrides` (beside the recipe) name the run of ours that reproduces the figure, empty where none
    does. Raises OvssError with file and line for what cannot be right.
    """
    import pandas as pd

    choices = {
        "dataset": [*config_names("dataset"), *NOT_EVALUATED],
        "metric": list(RULES),
        "second_hand": ["yes", "no"],
        "segmentor": ["", *segmentor_names()],
        "clip": ["", *config_names("clip")],
    }
    rows, seen = [], {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                wrong = sorted(set(reader.fieldnames or ()) ^ set(COLUMNS)) or "another order"
                raise OvssError(f"{path}, line 1: expected the columns {', '.join(COLUMNS)}; differing: {wrong}.")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                try:
                    rows.append(_checked(row, choices))
                except OvssError as error:
                    raise OvssError(f"{where}: {error}") from error
                key = tuple(row[column] for column in COLUMNS if column != "miou")
                if key in seen:
                    raise OvssError(f"{where}: the same figure as in {seen[key]}. Keep one of the two.")
                seen[key] = where
    return pd.DataFrame(rows, columns=COLUMNS)


def compare_published(result: Mapping[str, Any]) -> dict[str, Any]:
    """The published figures for a result (the dictionary of its file), the authors' own first, and what ours is above them:
    `difference` in points, None if the result is partial. `why_not` is a sentence where there is nothing to compare with."""
    why_not = _not_comparable(result)
    if why_not:
        return {"figures": [], "why_not": why_not}
    run = (result["segmentor"], result["clip"], result["dataset"], result["overridden"])
    figures = figures_of(*run)
    if not figures:
        return {"figures": [], "why_not": _nothing_for(*run)}
    if result["partial"]:
        images = result["images"]
        why_not = f"partial: {images['evaluated']} of {images['expected']} images"
    for figure in figures:
        ours = None if why_not else result["metrics"].get(figure["metric"])
        figure["difference"] = None if ours is None else round(ours - figure["miou"], 2)
    return {"figures": figures, "why_not": why_not}


def figures_of(segmentor: str, clip: str, dataset: str, overrides: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every figure that this run is said to reproduce, the authors' own before those that others quote or measured.
    Papers may disagree."""
    here = _select(segmentor=segmentor, clip=clip, dataset=dataset)
    if here.empty:
        return []
    wanted = settings(segmentor, clip, dataset, overrides)
    return listed(here[[settings(segmentor, clip, dataset, own) == wanted for own in here["overrides"]]])


def listed(figures: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of `published_figures` as result files hold them, first-hand ones first."""
    columns = ["miou", "metric", "method", "variant", "source", "table", "second_hand"]
    return figures.sort_values("second_hand", kind="stable")[columns].to_dict("records")


def settings(segmentor: str, clip: str, dataset: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that change something: one to the value that the recipe has anyway does not, and the precision only
    rounds."""
    return dict(_settings(segmentor, clip, dataset, json.dumps(overrides, default=str)))


@cache
def _settings(segmentor: str, clip: str, dataset: str, text: str) -> dict[str, Any]:
    overrides = json.loads(text)
    recipe, changed = (
        compose_recipe(segmentor, clip=clip, dataset=dataset, overrides=given).values() for given in ({}, overrides)
    )
    return {name: changed[name] for name in overrides if name != "precision" and changed[name] != recipe[name]}


def parse_overrides(text: str) -> dict[str, Any]:
    """`name=value;name=value`, values in YAML."""
    pairs = [pair.partition("=") for pair in text.split(";") if text]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise OvssError(f"overrides '{text}': expected name=value;name=value.")
    try:
        return {name: yaml.safe_load(value) for name, _, value in pairs}
    except yaml.YAMLError as error:
        raise OvssError(f"overrides '{text}': values must be YAML.") from error


def stand_ins(result: Mapping[str, Any]) -> list[str]:
    """The kinds of sources for which something else stood in."""
    return [kind for kind, source in result.get("sources", {}).items() if source["stand_in"]]


def _checked(row: Mapping[str, str], choices: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A row of a file with its values parsed; `choices`: what columns may hold. Raises OvssError for what cannot be right."""
    if None in row or None in row.values():
        raise OvssError(f"expected {len(COLUMNS)} values.")
    for column in ("method", "source", "table"):
        if not row[column].strip():
            raise OvssError(f"{column} is empty. Every figure says whose it is and where it stands.")
    try:
        miou = float(row["miou"])
    except ValueError:
        miou = float("nan")
    if not 0 <= miou <= 100:
        raise OvssError(f"miou is '{row['miou']}', expected a number of percent, 0 to 100.")
    for column, known in choices.items():
        if row[column] not in known:
            raise unknown(column, row[column], filter(None, known))
    if row["clip"]:
        clip = load_config("clip", row["clip"])
        if (clip["architecture"], clip["pretrained"]) != (row["backbone"], row["pretrained"]):
            raise OvssError(f"clip {row['clip']} is not {row['backbone']} with the weights {row['pretrained']}.")
    overrides = parse_overrides(row["overrides"])
    if row["segmentor"]:
        if not row["clip"] or row["dataset"] in NOT_EVALUATED:
            raise OvssError(f"segmentor {row['segmentor']} needs a clip, and a data set that can be evaluated.")
        settings(row["segmentor"], row["clip"], row["dataset"], overrides)
    elif overrides:
        raise OvssError("overrides need a segmentor.")
    return {**row, "miou": miou, "second_hand": row["second_hand"] == "yes", "overrides": overrides}


def _not_comparable(result: Mapping[str, Any]) -> str | None:
    """Why no published figure can be meant, whatever the figures are."""
    dataset = result["dataset"]
    if result["clip"] == "demo":
        return "the demo CLIP is this project's own"
    if dataset in config_names("dataset") and load_config("dataset", dataset).get("loader") == "demo":
        return f"the drawn scenes of {dataset} are this project's own"
    if result["protocol"] != "paper":
        return f"protocol {result['protocol']}: published figures are the methods' own settings"
    kinds = stand_ins(result)
    return f"stand-in {', '.join(kinds)}" if kinds else None


def _nothing_for(segmentor: str, clip: str, dataset: str, overrides: Mapping[str, Any]) -> str:
    """What there is in the place of a figure for this run."""
    here = _select(segmentor=segmentor, clip=clip, dataset=dataset)
    if len(here):
        known = dict.fromkeys(_shown(own) or "the recipe as it is" for own in here["overrides"])
        published = f"figures for {segmentor} with {clip} on {dataset} are published with {' or '.join(known)}"
        given = _shown(settings(segmentor, clip, dataset, overrides))
        return f"overridden: {given}; {published}" if given else f"{published} only"
    own = _select(segmentor=segmentor)
    parts = [f"no figure is published for {segmentor} with {clip} on {dataset}"]
    others = own[own["dataset"] == dataset]["clip"].unique()
    if len(others):
        parts.append(f"on {dataset} there are figures with {', '.join(others)}")
    others = own[own["clip"] == clip]["dataset"].unique()
    if len(others):
        parts.append(f"with {clip} there are figures on {', '.join(others)}")
    if len(parts) == 1 and len(own):
        parts.append(f"there are figures with {', '.join(own['clip'].unique())} on {', '.join(own['dataset'].unique())}")
    method = (
        load_config("segmentor", segmentor).get("method", segmentor) if segmentor in config_names("segmentor") else segmentor
    )
    unmatched = _select(method=method, dataset=dataset, segmentor="")
    unmatched = unmatched[unmatched["clip"].isin(["", clip])]
    if len(unmatched):
        shown = [f"{figure['miou']:g} ({figure['variant']})" for figure in listed(unmatched)[:3]]
        parts.append(f"of {method} in settings that are others or not stated there is {', '.join(shown)}")
    return "; ".join(parts)


def _select(**values: str) -> pd.DataFrame:
    """The published figures with these values."""
    figures = published_figures()
    for column, value in values.items():
        figures = figures[figures[column] == value]
    return figures


def _shown(overrides: Mapping[str, Any]) -> str:
    """As on the command line."""
    texts = {name: yaml.safe_dump(value, default_flow_style=True).splitlines()[0] for name, value in overrides.items()}
    return " ".join(f"{name}={text}" for name, text in texts.items())
