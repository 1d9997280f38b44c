"""Figures published in papers, repositories and third-party listings (results/published/*.csv), compared with our runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from annotated_types import Ge, Le, Predicate

from ..config.segmentor_file import lineage, merged
from ..config.validation import Expected, validate_all
from ..datasets.config import dataset_config
from ..errors import OvssError, reading
from ..evaluation.metrics import RULES
from ..files import PUBLISHED, config_names, load_config, user_path

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "method", "variant", "backbone", "pretrained", "extra_model", "dataset", "miou", "postprocess", "source",
    "table", "second_hand", "metric", "segmentor", "clip", "overrides",
)  # fmt: skip
Filled = Annotated[str, Predicate(lambda text: bool(text.strip())), Expected("a text that is not empty")]
# Data sets of published figures that are not evaluated here: unseen classes of a zero-shot split, other classes, noisy images.
NOT_EVALUATED = ("voc12_unseen", "context_unseen", "coco_stuff_unseen", "coco_stuff27", "voc20_speckle_noise_1")


@cache
def published_figures() -> pd.DataFrame:
    """All published figures, one per row, in the order of the files; see `load_figures`."""
    return load_figures(PUBLISHED)


def load_figures(folder: Path) -> pd.DataFrame:
    """The CSV files of a folder as one table: `miou` in percent, `second_hand` as a bool, `overrides` as a dictionary.
    `segmentor`, `clip` and the recipe's `overrides` identify the run that should reproduce a figure; they are empty if none
    does. Raises OvssError with file and line for anything invalid."""
    import pandas as pd

    from ..config.recipe import segmentor_names  # imports OpenCV and mmengine, which a table of results does not need

    hints = dict.fromkeys(COLUMNS, str) | {
        "miou": Annotated[float, Ge(0), Le(100), Expected("a percentage, 0 to 100")],
        **dict.fromkeys(("method", "source", "table"), Filled),
        "dataset": Literal[(*config_names("dataset"), *NOT_EVALUATED)],
        "metric": Literal[tuple(RULES)],
        "second_hand": Literal["yes", "no"],
        "segmentor": Literal[("", *segmentor_names())],
        "clip": Literal[("", "none", *config_names("clip"))],
    }
    rows, seen = [], {}
    for path in sorted(folder.glob("*.csv")):
        with reading(path, "Expected UTF-8 text, values separated by commas."), path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                wrong = sorted(set(reader.fieldnames or ()) ^ set(COLUMNS)) or "another order"
                raise OvssError(f"{path}, line 1: expected the columns {', '.join(COLUMNS)}; differing: {wrong}.")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                with located(where):
                    rows.append(_figure(row, hints))
                key = tuple(row[column] for column in COLUMNS if column != "miou")
                if key in seen:
                    raise OvssError(f"{where}: the same figure as in {seen[key]}. Keep one of the two.")
                seen[key] = where
    return pd.DataFrame(rows, columns=COLUMNS)


def compare_published(result: Mapping[str, Any]) -> dict[str, Any]:
    """The published figures that a result (the content of its file) should reproduce, the authors' own first, each with the
    result's `difference` in points. `why_not` says why there is no figure, or no difference (partial, unconfirmed settings)."""
    if why_not := _not_comparable(result):
        return {"figures": [], "why_not": why_not}
    run = (result["segmentor"], result["clip"], result["dataset"], meant(result))
    figures = figures_of(*run)
    if not figures:
        return {"figures": [], "why_not": "; ".join([_nothing_for(*run), *_unnamed_maps(result)])}
    images = result["images"]
    partial = [f"partial: {images['evaluated']} of {images['expected']} images"] if result["partial"] else []
    why_not = "; ".join([*partial, *unconfirmed(result)]) or None
    for figure in figures:
        ours = None if why_not else result["metrics"].get(figure["metric"])
        figure["difference"] = None if ours is None else round(ours - figure["miou"], 2)
    return {"figures": figures, "why_not": why_not}


def meant(result: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides of a result. A folder of region maps is replaced by its generator, as recipes name it."""
    overrides, generators = result["overridden"], {k: generator(source) for k, source in result.get("sources", {}).items()}
    return {name: generators.get(name) or value for name, value in overrides.items()}


def generator(source: Mapping[str, Any]) -> str | None:
    """The entry of configs/regions that generated a folder of region maps, according to the result or to a later index."""
    if "generator" in source or not source.get("name"):
        return source.get("generator")
    folder = user_path(source["name"])
    if not folder.is_dir():
        return None
    from ..auxiliary.regions import RegionFolder  # imports PyTorch

    try:
        maps = RegionFolder(folder)
    except OvssError:
        return None
    return maps.generator if maps.digest == source["digest"] else None


def unconfirmed(result: Mapping[str, Any]) -> list[str]:
    """One sentence for a recipe and for each source with unpublished settings, which may differ from those of the paper."""
    doubt = result.get("provenance", {}).get("unconfirmed") or _known_doubt(result["segmentor"], result["dataset"])
    sentences = [f"recipe unconfirmed: {doubt}"] if doubt else []
    for kind, source in result.get("sources", {}).items():
        doubt = source.get("unconfirmed")
        if kind == "regions" and source.get("name") in config_names("regions"):
            doubt = load_config("regions", source["name"]).get("unconfirmed")
        if doubt:
            sentences.append(f"settings of the generator unconfirmed: {source.get('generator', source['name'])}, {doubt}")
    return sentences


def recipe_doubt(segmentor: str, dataset: str) -> str | None:
    """Why the recipe for a data set may differ from that of the published figures: `unconfirmed` in its file, or in one that
    it extends, is a text, or a text for each data set. None for drawn scenes, which have no published figures."""
    doubt = merged(lineage(segmentor.partition("+")[0])).get("unconfirmed")
    return None if _drawn(dataset) else doubt.get(dataset) if isinstance(doubt, dict) else doubt


@cache
def _known_doubt(segmentor: str, dataset: str) -> str | None:
    """`recipe_doubt` of the project's recipes, for results that were written before this field existed."""
    return recipe_doubt(segmentor, dataset) if segmentor.partition("+")[0] in config_names("segmentor") else None


def _drawn(dataset: str) -> bool:
    """Whether a data set consists of the demo's drawn scenes."""
    return dataset in config_names("dataset") and dataset_config(dataset)[1].get("loader") == "demo"


def why_not_joined(figure: Mapping[str, Any]) -> str | None:
    """Why no run reproduces a figure (a row of `published_figures`): its method is missing, or the reason in the first matching
    entry of results/published/reasons.yaml. None if a run reproduces it, or no entry matches."""
    if figure["segmentor"]:
        return None
    if figure["method"] not in methods():
        return f"{figure['method']} is not implemented here"
    return next((rule["reason"] for rule in reasons() if _fits(rule, figure)), None)


@cache
def methods() -> frozenset[str]:
    """The methods with a recipe; for a recipe with steps, the last step."""
    from ..config.recipe import paper_method  # imports mmengine, as above

    return frozenset(map(paper_method, config_names("segmentor")))


@cache
def reasons() -> list[dict[str, Any]]:
    """The entries of results/published/reasons.yaml: `reason`, and by column the matching value, or a list of them."""
    return yaml.safe_load((PUBLISHED / "reasons.yaml").read_text(encoding="utf-8"))


def _fits(rule: Mapping[str, Any], figure: Mapping[str, Any]) -> bool:
    columns = {column: values if isinstance(values, list) else [values] for column, values in rule.items()}
    return all(figure[column] in values for column, values in columns.items() if column != "reason")


def figures_of(segmentor: str, clip: str, dataset: str, overrides: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every figure that this run should reproduce, the authors' own first. Papers may disagree."""
    run = segmentor, clip, dataset
    figures = figures_with(segmentor=segmentor, clip=clip, dataset=dataset)
    same = [settings(*run, published) == settings(*run, overrides) for published in figures["overrides"]]
    return as_records(figures.loc[same]) if same else []


def as_records(figures: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of `published_figures` in the form of result files, first-hand figures first."""
    columns = ["miou", "metric", "method", "variant", "source", "table", "second_hand"]
    return figures.sort_values("second_hand", kind="stable").loc[:, columns].to_dict("records")


def settings(segmentor: str, clip: str, dataset: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that have an effect: neither those equal to the recipe's value nor the precision, which only rounds."""
    return dict(_settings(segmentor, clip, dataset, json.dumps(overrides, default=str)))


@cache
def _settings(segmentor: str, clip: str, dataset: str, text: str) -> dict[str, Any]:
    from ..config.recipe import compose_recipe

    overrides = json.loads(text)
    recipe, changed = (compose_recipe(segmentor, clip=clip, dataset=dataset, overrides=o).values() for o in ({}, overrides))
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
    """The kinds of sources that were replaced by a stand-in."""
    return [kind for kind, source in result.get("sources", {}).items() if source["stand_in"]]


def _figure(row: Mapping[Any, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a file, parsed. Raises OvssError for anything invalid."""
    if None in row or None in row.values():
        raise OvssError(f"expected {len(COLUMNS)} values.")
    try:
        miou: Any = float(row["miou"])
    except ValueError:
        miou = row["miou"]
    values = validate_all({**row, "miou": miou}, hints, "column")
    if row["clip"] not in ("", "none"):
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
    return values | {"second_hand": row["second_hand"] == "yes", "overrides": overrides}


@contextmanager
def located(where: str) -> Iterator[None]:
    """Prefixes an OvssError with its place."""
    try:
        yield
    except OvssError as error:
        raise OvssError(f"{where}: {error}") from error


def _not_comparable(result: Mapping[str, Any]) -> str | None:
    """Why the result cannot reproduce any published figure."""
    dataset = result["dataset"]
    if result["clip"] == "demo":
        return "the demo CLIP is this project's own"
    if _drawn(dataset):
        return f"the drawn scenes of {dataset} are this project's own"
    if result["protocol"] != "paper":
        return f"protocol {result['protocol']}: published figures are the methods' own settings"
    if kinds := stand_ins(result):
        return f"stand-in {', '.join(kinds)}"
    entry, known = load_config("clip", result["clip"]) if result["clip"] in config_names("clip") else None, weights_of(result)
    if entry and known and f"{entry['architecture']}:{entry['pretrained']}" not in known:
        return f"by their digest the weights are those of {known[0]}, not those of {result['clip']}"
    return None


def weights_of(result: Mapping[str, Any]) -> list[str]:
    """ARCHITECTURE:TAG of the weights in the checkpoint of a result's CLIP, if its digest is known."""
    return result.get("provenance", {}).get("weights_known", [])


def _unnamed_maps(result: Mapping[str, Any]) -> list[str]:
    """What to do if the index of a folder of region maps names no generator."""
    folder, source = result["overridden"].get("regions"), result.get("sources", {}).get("regions")
    if folder in (None, *config_names("regions")) or source is None or generator(source):
        return []
    command = f"python tools/regions.py index {folder} dataset={result['dataset']} regions=ENTRY"
    return [
        f"the index of {folder} does not say that its maps are those of an entry of configs/regions; if they are: {command}"
    ]


def _nothing_for(segmentor: str, clip: str, dataset: str, overrides: Mapping[str, Any]) -> str:
    """Why there is no figure for this run, and which similar figures there are."""
    similar = figures_with(segmentor=segmentor, clip=clip, dataset=dataset)
    run = segmentor if clip == "none" else f"{segmentor} with {clip}"
    if len(similar):
        known = dict.fromkeys(_shown(published) or "the unchanged recipe" for published in similar["overrides"])
        published = f"figures for {run} on {dataset} are published with {' or '.join(known)}"
        given = _shown(settings(segmentor, clip, dataset, overrides))
        return f"overridden: {given}; {published}" if given else f"{published} only"
    parts = [f"no figure is published for {run} on {dataset}"]
    if len(clips := figures_with(segmentor=segmentor, dataset=dataset)["clip"].unique()):
        parts.append(f"on {dataset} there are figures with {', '.join(clips)}")
    if len(datasets := figures_with(segmentor=segmentor, clip=clip)["dataset"].unique()):
        parts.append(f"{'' if clip == 'none' else f'with {clip} '}there are figures on {', '.join(datasets)}")
    if len(parts) == 1 and len(others := figures_with(segmentor=segmentor)):
        parts.append(f"there are figures with {', '.join(others['clip'].unique())} on {', '.join(others['dataset'].unique())}")
    method, architecture = _config("segmentor", segmentor, "method"), _config("clip", clip, "architecture")
    unmatched = figures_with(method=method, dataset=dataset, segmentor="")
    if clip != "none":
        unmatched = unmatched.loc[unmatched["clip"].isin(["", clip]) & unmatched["backbone"].isin(["", architecture])]
    if len(unmatched):
        shown = [f"{figure['miou']:g} ({figure['variant']})" for figure in as_records(unmatched)[:3]]
        parts.append(f"for {method} with different or unstated settings there is {', '.join(shown)}")
        parts += dict.fromkeys(filter(None, map(why_not_joined, unmatched.to_dict("records"))))
    return "; ".join(parts)


def _config(group: str, name: str, key: str) -> str:
    """A value of a configuration, by default the name itself."""
    return load_config(group, name).get(key, name) if name in config_names(group) else name


def figures_with(**values: str) -> pd.DataFrame:
    """The published figures with these values in their columns."""
    figures = published_figures()
    for column, value in values.items():
        figures = figures.loc[figures[column] == value]
    return figures


def _shown(overrides: Mapping[str, Any]) -> str:
    """As on the command line."""
    texts = {name: yaml.safe_dump(value, default_flow_style=True).splitlines()[0] for name, value in overrides.items()}
    return " ".join(f"{name}={text}" for name, text in texts.items())
