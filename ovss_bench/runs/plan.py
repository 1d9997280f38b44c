"""The rows to evaluate, each with its recipe: segmentors times data sets, or the rows of a paper's table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from ..auxiliary import SOURCES
from ..config.plugin_errors import plugin_errors
from ..config.recipe import RECIPE_HINTS, Recipe, compose_recipe, hyperparameters
from ..config.steps import OPTIONS, with_steps
from ..config.validation import is_list
from ..datasets.base import MissingData, SegDataset, load_dataset
from ..datasets.config import dataset_config
from ..datasets.suites import Suite, expand
from ..encoders.clip_spec import NO_CLIP, ClipSpec
from ..errors import OvssError, unknown
from ..segmentors import OUTSIDE

if TYPE_CHECKING:
    from ..reports.papers import PaperTable


@dataclass(frozen=True)
class Plan:
    """A row to evaluate: a segmentor with its recipe and a CLIP on a data set."""

    recipe: Recipe
    clip: ClipSpec
    dataset: str  # name or file, as given
    dataset_name: str
    protocol: str
    first: bool = False  # see PaperRow

    @property
    def segmentor(self) -> str:
        return self.recipe.segmentor


def plans_of(options: dict[str, Any], paper: PaperTable | None) -> tuple[list[Plan], list[Suite]]:
    """The rows for all segmentors and data sets, or for a paper's table, and the suites of the data sets."""
    given = options["recipe"] | {kind: options[kind] for kind in (*SOURCES, *OUTSIDE) if options[kind] is not None}
    if paper:
        if any(options[option] for option in OPTIONS):
            raise OvssError(
                f"table={options['table']} states its rows: leave text and refine out, or replace the table by segmentor=NAME."
            )
        rows, suites = [(row.segmentor, row) for row in paper.rows if row.segmentor], []
        cells = [
            (name, str(row.clip), dataset, row.overrides(dataset), row.first)
            for dataset in paper.datasets
            for name, row in rows
        ]
    else:
        steps = {option: options[option] for option in OPTIONS}
        names = [with_steps(name, steps)[0] for name in _listed(options["segmentor"])]
        datasets, suites = expand(_listed(options["dataset"]))
        cells = [(name, str(options["clip"]), dataset, {}, False) for dataset in datasets for name in names]
    overrides = split_overrides(dict.fromkeys(segmentor for segmentor, *_ in cells), given)
    known = {dataset: dataset_config(dataset)[0] for _, _, dataset, *_ in cells}
    plans, protocol = [], options["protocol"]
    for segmentor, text, dataset, values, first in cells:
        uses_clip = hyperparameters(segmentor)[1].uses_clip
        clip, name = ClipSpec.of(text, options["weights"]) if uses_clip else NO_CLIP, known[dataset]
        for chosen in overrides[segmentor]:
            recipe = compose_recipe(segmentor, clip=clip.label, dataset=name, protocol=protocol, overrides=values | chosen)
            plans.append(Plan(recipe, clip, dataset, name, protocol, first))
    return plans, suites


def load_datasets(
    names: Iterable[str], root: str | None, skip_missing: bool
) -> tuple[dict[str, SegDataset], dict[str, MissingData]]:
    """The data sets found, and the errors of the missing ones. Raises MissingData if all are missing or, without
    `skip_missing`, if one is."""
    datasets, absent = {}, {}
    for name in names:
        try:
            dataset = load_dataset(name, root)
            with plugin_errors(f"data set '{name}'", type(dataset)):
                _ = dataset.samples
            datasets[name] = dataset
        except MissingData as error:
            if not skip_missing:
                raise
            absent[name] = error
    if not datasets:
        raise next(iter(absent.values()))
    return datasets, absent


def split_overrides(names: Iterable[str], recipe: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The overrides of each segmentor: recipe values, and those hyperparameters that it has. Lists of values give a row for
    each combination."""
    hints = {name: RECIPE_HINTS | hyperparameters(name)[1].hints for name in names}
    known = {key for found in hints.values() for key in found}
    for key in recipe:
        if key not in known:
            raise unknown(f"recipe value or hyperparameter of {', '.join(names)}", key, known)
    combinations = {}
    for name, found in hints.items():
        choices = {key: _choices(key, value, found[key]) for key, value in recipe.items() if key in found}
        combinations[name] = [dict(zip(choices, chosen, strict=True)) for chosen in product(*choices.values())]
    return combinations


def _choices(key: str, value: Any, hint: Any) -> list[Any]:
    """The values of a list that stands for several rows; otherwise the single value, in a list."""
    if not isinstance(value, list) or not value or (is_list(hint) and not isinstance(value[0], list)):
        return [value]
    if len(set(map(repr, value))) < len(value):
        raise OvssError(f"recipe.{key}={value}: expected one value, or different ones.")
    return value


def _listed(value: Any) -> list[str]:
    names = value if isinstance(value, list) else [value]
    if not names or len(set(names)) < len(names):
        raise OvssError(f"{names}: expected one name, or a list of different names.")
    return [str(name) for name in names]
