"""What tools/eval.py does with its composed configuration."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from .. import progress
from ..auxiliary.sources import SOURCES
from ..config.plugin_errors import is_outside, plugin_errors
from ..config.recipe import RECIPE_VALUES, compose_recipe, own_recipe, segmentor_config
from ..config.registry import load_plugin
from ..datasets.base import MissingData, SegDataset, load_dataset
from ..datasets.config import dataset_config
from ..datasets.suites import Suite, expand
from ..encoders.clip import DenseCLIP, clip_label, default_precision, load_clip
from ..errors import OvssError, print_error, unknown
from ..reports.averages import terminal_averages, write_averages
from ..reports.paper_view import terminal_paper, write_paper
from ..reports.papers import PaperTable, load_table
from ..reports.tables import differences, frame, terminal, without_labels, write_tables
from ..runs.evaluate import run_jobs
from ..runs.grid import Grid
from ..runs.jobs import Job, Runtime, make_job, refuse_idle
from ..runs.result import EvalResult
from ..runs.world import Shard, World
from .options import checked_options


@dataclass(frozen=True)
class Plan:
    """A row to come: what is to be evaluated with what."""

    segmentor: str
    clip: str  # NAME[:TAG]
    dataset: str
    overrides: dict[str, Any]


def main(config: DictConfig, world: World | None = None, grid: Grid | None = None) -> int:
    """Evaluates what the configuration names; returns the exit status: 0, 1 for a failed `expect`, 2 if some of several data
    sets could not be evaluated, or had no labelled pixel. Of the processes of a `world` only rank 0 prints, and writes tables;
    those of a `grid` hold the rows of its other runs, too."""
    world = world or World()
    console = progress.console(quiet=world.rank > 0)
    options = checked_options(OmegaConf.to_container(config, resolve=True))
    runtime = options["runtime"]
    torch.set_num_threads(world.threads(runtime["threads"]))
    runtime["device"] = world.device(runtime["device"])
    with world.together():
        for plugin in options["plugins"]:
            load_plugin(plugin)
        shard = Shard.of(options["shard"])
        paper = load_table(options["table"]) if options["table"] else None
        plans, suites = _plans(options, paper)
        for name in dict.fromkeys(plan.segmentor for plan in plans) if not options["dry_run"] else ():
            if is_outside(segmentor_config(name)[1]):
                console.print(f"recipe of {name}: {own_recipe(name)}")
        if options["dry_run"]:
            for plan in plans:
                _print_recipe(console, plan, options)
            return 0
        collected = bool(suites or paper)  # of these, what is here is evaluated, and the rest is told
        datasets, absent = _load(dict.fromkeys(plan.dataset for plan in plans), options["data_root"], collected)
        for dataset in datasets.values():
            for doubt in dataset.doubts:
                console.print(f"note: {dataset.name}: {doubt}")
        jobs = [_job(plan, datasets[plan.dataset], options) for plan in plans if plan.dataset in datasets]
    failures: list[OvssError] | None = [] if len(datasets) > 1 else None
    results = run_jobs(
        jobs,
        limit=options["limit"],
        ids=options["ids"],
        output=options["output"],
        rerun=options["rerun"],
        runtime=Runtime(**{name: value for name, value in runtime.items() if name not in ("device", "threads")}),
        quiet=world.rank > 0,
        failures=failures,
        shard=shard,
        world=world,
    )
    status = _show(console, results, suites, paper, options, world, grid) if results else 0
    for name, error in absent.items():
        console.print(f"not here: {name}: {str(error).splitlines()[0]} (python tools/datasets.py list {name})")
    if not world.rank:
        for error in failures or ():
            if options["debug"]:
                traceback.print_exception(error)
            print_error(error)
    return 2 if failures else status


def _show(
    console: Console,
    results: list[EvalResult],
    suites: list[Suite],
    paper: PaperTable | None,
    options: dict[str, Any],
    world: World,
    grid: Grid | None,
) -> int:
    """Prints and writes the tables; the exit status, by `expect`, to which only the run's own rows matter."""
    folder, own = Path(options["output"]), [result.data for result in results]
    with grid.together(results, folder) if grid else nullcontext(own) as shown:
        console.print(terminal(write_tables(shown, folder)))
        for suite in suites:
            console.print(terminal_averages(suite, write_averages(suite, shown, folder)))
        if paper:
            console.print(terminal_paper(paper, write_paper(paper, shown, folder)))
    console.print(
        f"Results: {folder}/ (table.md, table.csv; one JSON and one npz per row). Again: "
        f"{shlex.join([*world.launcher, *sys.argv])}",
    )
    if options["expect"]:
        wrong = differences(frame(own), options["expect"], options["tolerance"])
        for line in wrong:
            console.print(f"different: {line}")
        if wrong:
            return 1
        console.print(f"All {len(own)} rows agree with {options['expect']} within {options['tolerance']} points of mIoU.")
        return 0
    for line in (unlabelled := without_labels(own)):
        print_error(line)
    return 2 if unlabelled else 0


def _plans(options: dict[str, Any], paper: PaperTable | None) -> tuple[list[Plan], list[Suite]]:
    """The grid of segmentors and data sets, or of a paper's table."""
    own = options["recipe"] | {kind: options[kind] for kind in SOURCES if options[kind] is not None}
    if paper:
        rows = [row for row in paper.rows if row.segmentor]
        overrides = split_overrides([row.segmentor for row in rows], own)
        return [
            Plan(row.segmentor, row.clip, dataset, row.overrides(dataset) | chosen)
            for dataset in paper.datasets
            for row in rows
            for chosen in overrides[row.segmentor]
        ], []
    names = _listed(options["segmentor"])
    datasets, suites = expand(_listed(options["dataset"]))
    overrides = split_overrides(names, own)
    clip = str(options["clip"])
    return [Plan(name, clip, dataset, own) for dataset in datasets for name in names for own in overrides[name]], suites


def _load(names: Iterable[str], root: str | None, skip_missing: bool) -> tuple[dict[str, SegDataset], dict[str, MissingData]]:
    """The data sets that are here, and why the others are not. Raises MissingData if that is all, or any if none may be
    missing."""
    datasets, absent = {}, {}
    for name in names:
        try:
            datasets[name] = load_dataset(name, root)
            with plugin_errors(f"data set '{name}'", type(datasets[name])):
                _ = datasets[name].samples
        except MissingData as error:
            if not skip_missing:
                raise
            datasets.pop(name, None)
            absent[name] = error
    if not datasets:
        raise next(iter(absent.values()))
    return datasets, absent


def split_overrides(names: Sequence[str], recipe: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """For each segmentor the overrides that concern it: recipe values all, hyperparameters those that it has. A list in the
    place of one value stands for several, and the rows are all combinations of them."""
    own = {name: segmentor_config(name)[1].hyperparameters() for name in names}
    known = {*RECIPE_VALUES, *(key for keys in own.values() for key in keys)}
    for key in recipe:
        if key not in known:
            raise unknown(f"recipe value or hyperparameter of {', '.join(names)}", key, known)

    def choices(name: str, key: str, value: Any) -> list[tuple[str, Any]]:
        is_list = key == "pamr_dilations" or isinstance(own[name].get(key), tuple)
        several = isinstance(value, list) and value and (not is_list or isinstance(value[0], list))
        if several and len(set(map(repr, value))) < len(value):
            raise OvssError(f"recipe.{key}={value}: expected one value, or different ones.")
        return [(key, item) for item in value] if several else [(key, value)]

    return {
        name: [
            dict(chosen)
            for chosen in product(*(choices(name, *item) for item in recipe.items() if item[0] in {*RECIPE_VALUES, *own[name]}))
        ]
        for name in names
    }


def _job(plan: Plan, dataset: SegDataset, options: dict[str, Any]) -> Job:
    name, pretrained, label = _clip(plan.clip, options["weights"])
    protocol = options["protocol"]
    recipe = compose_recipe(plan.segmentor, clip=label, dataset=dataset.name, protocol=protocol, overrides=plan.overrides)
    file = Path(pretrained or name)
    changed = file.stat().st_mtime_ns if os.path.isfile(file) else None
    device = options["runtime"]["device"]
    clip = _loaded(name, pretrained, recipe.precision or default_precision(device), device, changed)
    return make_job(plan.segmentor, clip, dataset, protocol, plan.overrides)


@lru_cache(maxsize=4)
def _loaded(name: str, pretrained: str | None, precision: str, device: str, changed: int | None) -> DenseCLIP:
    """Rows, and the runs of a grid in one process, share what they load, unless its file has changed."""
    return load_clip(name, pretrained=pretrained, precision=precision, device=device)


def _clip(clip: str, weights: str | None) -> tuple[str, str | None, str]:
    """Of `clip=NAME[:TAG]` and `weights=`: the name, the tag or file, and the name that recipes and results use."""
    name, _, tag = clip.partition(":")
    pretrained = weights or tag or None
    return name, pretrained, clip_label(name, pretrained)


def _print_recipe(console: Console, plan: Plan, options: dict[str, Any]) -> None:
    """The composed recipe with the origin of each value, and what a run would read."""
    *_, clip = _clip(plan.clip, options["weights"])
    dataset, protocol = dataset_config(plan.dataset)[0], options["protocol"]
    recipe = compose_recipe(plan.segmentor, clip=clip, dataset=dataset, protocol=protocol, overrides=plan.overrides)
    try:
        refuse_idle(recipe)
        recipe, refused = segmentor_config(plan.segmentor)[1].checked_recipe(recipe), None
    except OvssError as error:
        refused = error
    title = f"{plan.segmentor} on {dataset} with {clip}, protocol {protocol}"
    console.print(f"recipe of {plan.segmentor}: {own_recipe(plan.segmentor)}")
    view = Table("value", "", "origin", title=title, title_justify="left", box=None)
    for key, value in recipe.values().items():
        view.add_row(key, str(value), recipe.origins[key])
    console.print(view)
    if refused:
        console.print(f"would stop: {refused}\n")
        return
    try:
        data = load_dataset(plan.dataset, options["data_root"])
        selected = len(data.select(options["limit"], options["ids"]))
        console.print(f"would read {selected} of {len(data.samples)} images from {data.root}")
    except OvssError as error:
        console.print(f"would stop: {error}")
    console.print(f"would write to {Path(options['output']) / dataset / clip}/\n")


def _listed(value: Any) -> list[str]:
    names = value if isinstance(value, list) else [value]
    if not names or len(set(names)) < len(names):
        raise OvssError(f"{names}: expected one name, or a list of different names.")
    return [str(name) for name in names]
