"""One run of `ovss eval`, after Hydra has composed its options."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from .. import progress
from ..config.plugin_errors import is_outside
from ..config.recipe import own_recipe, segmentor_config
from ..config.registry import load_plugin
from ..datasets.base import load_dataset
from ..errors import OvssError, print_error
from ..reports.papers import load_table
from ..reports.summary import summarize
from ..runs.evaluate import run_jobs
from ..runs.grid import Grid
from ..runs.jobs import Runtime, refuse_idle
from ..runs.plan import Plan, job_of_plan, load_datasets, plans_of
from ..runs.world import Shard, World
from .eval_options import checked_options


def main(config: DictConfig, world: World | None = None, grid: Grid | None = None) -> int:
    """Evaluates methods on data sets; returns the exit status: 0, 1 for a failed `expect`, 2 if a data set could not be
    evaluated or had no labelled pixel. Only rank 0 prints and writes tables; in a `grid` they include its other runs."""
    world = world or World()
    console = progress.console(quiet=world.rank > 0)
    composed: Any = OmegaConf.to_container(config, resolve=True)
    options = checked_options(composed)
    runtime = options["runtime"]
    torch.set_num_threads(world.threads(runtime["threads"]))
    runtime["device"] = world.device(runtime["device"])
    with world.together():
        for plugin in options["plugins"]:
            load_plugin(plugin)
        shard = Shard.of(options["shard"])
        paper = load_table(options["table"]) if options["table"] else None
        plans, suites = plans_of(options, paper)
        if options["dry_run"]:
            for plan in plans:
                _print_recipe(console, plan, options)
            return 0
        for name in dict.fromkeys(plan.segmentor for plan in plans):
            if is_outside(segmentor_config(name)[1]):
                console.print(f"recipe of {name}: {own_recipe(name)}")
        collected = bool(suites or paper)  # they evaluate the data sets that are present, and name the others
        datasets, absent = load_datasets(dict.fromkeys(plan.dataset for plan in plans), options["data_root"], collected)
        for dataset in datasets.values():
            for doubt in dataset.doubts:
                console.print(f"note: {dataset.name}: {doubt}")
        jobs = [job_of_plan(plan, datasets[plan.dataset], runtime["device"]) for plan in plans if plan.dataset in datasets]
    failures: list[OvssError] | None = [] if len(datasets) > 1 else None
    given = {name: options[name] for name in ("limit", "ids", "output", "rerun")} | {"quiet": world.rank > 0}
    runtime = {name: value for name, value in runtime.items() if name not in ("device", "threads")}
    given["runtime"] = Runtime(**runtime, save_label_maps=options["save_label_maps"])
    results = run_jobs(jobs, failures=failures, shard=shard, world=world, **given)
    status = summarize(console, results, suites, paper, options, world, grid) if results else 0
    for name, error in absent.items():
        console.print(f"missing: {name}: {str(error).splitlines()[0]} (python tools/datasets.py list {name})")
    for error in (failures or ()) if world.rank == 0 else ():
        if options["debug"]:
            traceback.print_exception(error)
        print_error(error)
    return 2 if failures else status


def _print_recipe(console: Console, plan: Plan, options: dict[str, Any]) -> None:
    """The composed recipe with the origin of each value, and what a run would read and write."""
    recipe, clip, dataset, refused = plan.recipe, plan.clip.label, plan.dataset_name, None
    try:
        method = segmentor_config(plan.segmentor)[1]
        refuse_idle(recipe, method)
        recipe = method.checked_recipe(recipe)
    except OvssError as error:
        refused = error
    console.print(f"recipe of {plan.segmentor}: {own_recipe(plan.segmentor)}")
    title = f"{plan.segmentor} on {dataset} with {clip}, protocol {plan.protocol}"
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
