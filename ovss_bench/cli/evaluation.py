"""One run of `ovss eval`, after Hydra has composed its options."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from .. import progress
from ..auxiliary import SOURCES
from ..config.plugin_errors import is_outside
from ..config.recipe import own_recipe, segmentor_config
from ..config.registry import load_plugin
from ..datasets.base import load_dataset
from ..datasets.config import dataset_config
from ..errors import OvssError, print_error
from ..reports.papers import load_table
from ..runs.plan import Plan, load_datasets, plans_of
from ..runs.published import recipe_doubt
from ..runs.world import Shard, World
from .eval_options import checked_options

if TYPE_CHECKING:
    from ..runs.grid import Grid


def main(config: DictConfig, world: World | None = None, grid: Grid | None = None) -> int:
    """Evaluates methods on data sets; returns the exit status: 0, 1 for a failed `expect`, 2 if a data set could not be
    evaluated or had no labelled pixel. Only rank 0 prints and writes tables; in a `grid` they include its other runs."""
    world = world or World()
    console = progress.console(quiet=world.rank > 0)
    composed: Any = OmegaConf.to_container(config, resolve=True)
    options = checked_options(composed)
    runtime = options["runtime"]
    with world.together():
        for plugin in options["plugins"]:
            load_plugin(plugin)
        shard = Shard.of(options["shard"])
        paper = load_table(options["table"]) if options["table"] else None
        plans, suites = plans_of(options, paper)

        import torch  # takes seconds, so after all checks that do not need it

        from ..reports.summary import summarize
        from ..runs.evaluate import run_jobs
        from ..runs.jobs import Runtime, job_of_plan

        torch.set_num_threads(world.threads(runtime["threads"]))
        runtime["device"] = world.device(runtime["device"])
        if options["dry_run"]:
            for plan in plans:
                _print_recipe(console, plan, options)
            return 0
        for name in dict.fromkeys(plan.segmentor for plan in plans):
            if is_outside(segmentor_config(name)[1]):
                console.print(f"recipe of {name}: {own_recipe(name)}")
        collected = bool(suites or paper)  # if so, missing data sets are listed, and the others evaluated
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
    """Prints the composed recipe with the origin of each value, and what a run would read and write."""
    from ..auxiliary.sources import check_source
    from ..encoders.clip_loading import patch_size_of
    from ..runs.jobs import refuse_idle

    recipe, clip, dataset, refused, data = plan.recipe, plan.clip.label, plan.dataset_name, None, None
    background = dataset_config(plan.dataset)[1].get("background")  # if the data set is missing
    try:
        data = load_dataset(plan.dataset, options["data_root"])
        background, selected = data.background, len(data.select(options["limit"], options["ids"]))
    except OvssError as error:
        refused = error
    try:
        method = segmentor_config(plan.segmentor)[1]
        refuse_idle(recipe, method)
        recipe = method.checked_recipe(recipe)
        method.check(recipe, has_background=background is not None)
        if method.joins_patches and (patch := patch_size_of(plan.clip)):
            method.check_windows(recipe, patch)
        for kind in SOURCES:
            if name := recipe.hyperparameters.get(kind):
                check_source(kind, name)
    except OvssError as error:
        refused = error
    console.print(f"recipe of {plan.segmentor}: {own_recipe(plan.segmentor)}")
    title = f"{plan.segmentor} on {dataset} with {clip}, protocol {plan.protocol}"
    view = Table("value", "", "origin", title=title, title_justify="left", box=None)
    for key, value in recipe.values().items():
        view.add_row(key, str(value), recipe.origins[key])
    console.print(view)
    if doubt := recipe_doubt(plan.segmentor, dataset):
        console.print(f"recipe unconfirmed: {doubt}", markup=False)
    if refused or not data:
        console.print(f"would stop: {refused}\n", markup=False)
        return
    console.print(f"would read {selected} of {len(data.samples)} images from {data.root}")
    console.print(f"would write to {Path(options['output']) / dataset / clip}/\n")
