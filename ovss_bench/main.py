"""What tools/eval.py does with its composed configuration."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from .datasets.base import SegDataset, load_dataset
from .encoders.clip import DenseCLIP, clip_label, load_clip
from .encoders.sources import SOURCES
from .errors import OvssError, unknown
from .recipe import RECIPE_VALUES, compose_recipe, segmentor_config
from .registry import load_plugin
from .results.run import EvalResult, Job, Runtime, make_job, run_jobs
from .results.tables import differences, terminal, write_tables


def main(config: DictConfig) -> int:
    """Evaluates every segmentor on every data set of the configuration; returns the exit status (0, or 1 for a failed
    `expect`)."""
    options: dict[str, Any] = OmegaConf.to_container(config, resolve=True)
    for plugin in options["plugins"]:
        load_plugin(plugin)
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 200)
    names, datasets = _listed(options["segmentor"]), _listed(options["dataset"])
    options["recipe"] |= {kind: options[kind] for kind in SOURCES if options[kind] is not None}
    overrides = split_overrides(names, options["recipe"])
    runtime = options["runtime"]
    torch.set_num_threads(runtime["threads"] or os.cpu_count() or 1)
    if options["dry_run"]:
        for dataset in datasets:
            for name in names:
                _print_recipe(console, name, dataset, options, overrides[name])
        return 0
    loaded = [load_dataset(name, options["data_root"]) for name in datasets]
    clips: dict[str, DenseCLIP] = {}
    results: list[EvalResult] = []
    run = Runtime(runtime["batch"], runtime["workers"], runtime["skip_bad_images"], runtime["feature_cache"])
    for dataset in loaded:
        if dataset.expected_images not in (None, len(dataset.samples)):
            console.print(
                f"note: {dataset.name} has {len(dataset.samples)} images here, "
                f"{dataset.expected_images} are expected; the results are marked as partial"
            )
        jobs = [_job(name, dataset, options, overrides[name], clips) for name in names]
        results += run_jobs(
            jobs,
            dataset,
            limit=options["limit"],
            ids=options["ids"],
            output=options["output"],
            rerun=options["rerun"],
            runtime=run,
        )
    folder = Path(options["output"])
    table = write_tables([result.data for result in results], folder)
    console.print(terminal(table))
    console.print(
        f"Results: {folder}/ (table.md, table.csv; one JSON and one npz per row). Again: "
        f"{shlex.join([Path(sys.executable).name, *sys.argv])}",
        markup=False,
    )
    if options["expect"]:
        wrong = differences(table, options["expect"], options["tolerance"])
        for line in wrong:
            console.print(f"different: {line}", markup=False)
        if wrong:
            return 1
        console.print(f"All {len(table)} rows agree with {options['expect']} within {options['tolerance']} points of mIoU.")
    return 0


def split_overrides(names: Sequence[str], recipe: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """For each segmentor the overrides that concern it: recipe values all, hyperparameters those that it has."""
    own = {name: segmentor_config(name)[1].hyperparameters() for name in names}
    known = {*RECIPE_VALUES, *(key for keys in own.values() for key in keys)}
    for key in recipe:
        if key not in known:
            raise unknown(f"recipe value or hyperparameter of {', '.join(names)}", key, known)
    return {name: {key: value for key, value in recipe.items() if key in RECIPE_VALUES or key in own[name]} for name in names}


def _job(
    name: str, dataset: SegDataset, options: dict[str, Any], overrides: dict[str, Any], clips: dict[str, DenseCLIP]
) -> Job:
    clip_name, pretrained, label = _clip(options)
    recipe = compose_recipe(name, clip=label, dataset=dataset.name, protocol=options["protocol"], overrides=overrides)
    if recipe.precision not in clips:
        device = options["runtime"]["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
        clips[recipe.precision] = load_clip(clip_name, pretrained=pretrained, precision=recipe.precision, device=device)
    return make_job(name, clips[recipe.precision], dataset, options["protocol"], overrides)


def _clip(options: dict[str, Any]) -> tuple[str, str | None, str]:
    """Of `clip=NAME[:TAG]` and `weights=`: the name, the tag or file, and the name that recipes and results use."""
    name, _, tag = str(options["clip"]).partition(":")
    pretrained = options["weights"] or tag or None
    return name, pretrained, clip_label(name, pretrained)


def _print_recipe(console: Console, name: str, dataset: str, options: dict[str, Any], overrides: dict[str, Any]) -> None:
    """The composed recipe with the origin of each value, and what a run would read."""
    *_, clip = _clip(options)
    recipe = compose_recipe(name, clip=clip, dataset=dataset, protocol=options["protocol"], overrides=overrides)
    view = Table(
        "value",
        "",
        "origin",
        title=f"{name} on {dataset} with {clip}, protocol {options['protocol']}",
        title_justify="left",
        box=None,
    )
    for key, value in recipe.values().items():
        view.add_row(key, str(value), recipe.origins[key])
    console.print(view)
    try:
        data = load_dataset(dataset, options["data_root"])
        selected = len(data.select(options["limit"], options["ids"]))
        console.print(f"would read {selected} of {len(data.samples)} images from {data.root}", markup=False)
    except OvssError as error:
        console.print(f"would stop: {error}", markup=False)
    console.print(f"would write to {Path(options['output']) / dataset / clip}/\n", markup=False)


def _listed(value: Any) -> list[str]:
    names = value if isinstance(value, list) else [value]
    if not names or len(set(names)) < len(names):
        raise OvssError(f"{names}: expected one name, or a list of different names.")
    return [str(name) for name in names]
