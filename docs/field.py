"""The guide to the field in docs/methods.md: a row per method, from the registry, recipes, pages, parity checks and results."""

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

import ovss_bench as ob
from ovss_bench.bench.view import of_methods
from ovss_bench.bench.ways import METHOD
from ovss_bench.config.recipe import paper_method, parts
from ovss_bench.config.training import SUPERVISION, most
from ovss_bench.files import PACKAGE, config_names, load_config
from ovss_bench.runs.fairness import GROUPS
from ovss_bench.runs.published import published_figures
from ovss_bench.segmentors import MODULES
from ovss_bench.segmentors.steps import MODULES as STEPS

ROOT = Path(__file__).resolve().parent.parent
BESIDE_CLIP = ("vfm", "regions", "foreground", "diffusion", "sam", "concepts", "bank", "checkpoint")
BENCHMARKS = {
    "voc21": "VOC21", "voc20": "VOC20", "context60": "Ctx60", "context59": "Ctx59",
    "coco_object": "Object", "coco_stuff": "Stuff", "cityscapes": "City", "ade20k": "ADE",
}  # fmt: skip
CENTRED = ("year", "differences", "demo", "cost")
DIFFERENCES = "Differences from the official code"


@cache
def about(method: str) -> dict[str, str]:
    """`title` and `idea` from the docstring of the method's module, `venue` and `year` from its recipe's `paper`."""
    module = MODULES.get(method) or f"steps/{STEPS[method]}"
    text = " ".join(ast.get_docstring(ast.parse((PACKAGE / "segmentors" / f"{module}.py").read_text())).split())
    title, idea = re.match(r"(?:Vanilla )?([^(]+) \([^:]*: (.*)\.", text).groups()
    paper = parts(method)[0]["paper"]
    arxiv, (venue, year) = re.search(r"arXiv (\d\d)(\d\d\.\d+)", paper), venue_of(paper)
    return {
        "title": title,
        "idea": idea,
        "paper": f"[{arxiv[1]}{arxiv[2]}](https://arxiv.org/abs/{arxiv[1]}{arxiv[2]})" if arxiv else "",
        "venue": venue or ("arXiv" if arxiv else ""),
        "year": year or (f"20{arxiv[1]}" if arxiv else ""),
    }


def venue_of(paper: str) -> tuple[str, str]:
    """The venue and the year at the end of a recipe's `paper`, such as "CVPR 2026 Findings, arXiv ..."; empty without."""
    last = re.sub(r"(, (pages [\d-]+|\d+\(\d+\)|arXiv [\d.]+))+$", "", paper).split(", ")[-1]
    known = re.fullmatch(r"([A-Z]{2,}(?: [A-Z]\w+)*)(?: (\d{4})( [A-Z]\w+)?)?", last)
    return (known[1] + (known[3] or ""), known[2] or "") if known else ("", "")


def with_page() -> list[str]:
    """The methods that have a page, the oldest first."""
    pages = [path.stem for path in (ROOT / "docs" / "methods").glob("*.md")]
    return sorted(pages, key=lambda method: (about(method)["year"] or "9999", method))


def variants(method: str) -> list[str]:
    """The recipes of a method or a step, the one of the same name first."""
    recipes = (name for name in config_names("segmentor") if paper_method(name) == method)
    return sorted(recipes, key=lambda name: (name != method, name))


def beside_clip(method: str) -> str:
    """The models that a method uses beside CLIP, with the defaults of its recipe."""
    values = ob.compose_recipe(method).values()
    return " ".join(f"`{kind}={values[kind]}`" if values[kind] else f"`{kind}`" for kind in BESIDE_CLIP if kind in values)


def supervision(method: str) -> str:
    """What a method and the models of its recipe were trained on, apart from CLIP."""
    values = ob.compose_recipe(method).values()
    sections = [parts(method)[0]["training"]]
    sections += [load_config(group, values[kind])["training"] for kind, group in GROUPS.items() if values.get(kind)]
    return most(SUPERVISION, (section["supervision"] for section in sections))


@cache
def speed() -> list[dict[str, Any]]:
    """The committed measurements of tools/bench.py, one file per machine and number of threads, most cases first."""
    files = [json.loads(path.read_text()) for path in sorted((ROOT / "results" / "bench").glob("*.json"))]
    return sorted(files, key=lambda measured: -len(measured["cases"]))


def measured_case(name: str) -> dict[str, Any] | None:
    """The measurement of a case, from the first file that has it."""
    return next((each["cases"][name] for each in speed() if name in of_methods(each["cases"])), None)


def guide() -> str:
    """The table, in markdown."""
    demo = pd.read_csv(ROOT / "results" / "demo" / "table.csv").set_index("segmentor")["mIoU"]
    demo.index = demo.index.str.split().str[0]  # drops remarks such as "(stand-in regions)"
    checks = "".join(path.read_text() for path in (ROOT / "tests" / "parity").glob("checks_*.py"))
    checked = set(re.findall(r'"(\w+)"', " ".join(re.findall(r"^METHODS = \(.*\)", checks, re.MULTILINE))))
    rows = []
    for method in with_page():
        facts, page = about(method), (ROOT / "docs" / "methods" / f"{method}.md").read_text()
        section = re.search(rf"^## {DIFFERENCES}\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)[1]
        count = len(re.findall(r"^- ", section, re.MULTILINE))
        anchor = DIFFERENCES.lower().replace(" ", "-")
        names = [name for name in variants(method) if name in demo]
        cost = measured_case(method) or measured_case(f"{method}:given")
        rows.append(
            {
                "method": f"[{facts['title']}](methods/{method}.md)",
                "paper": facts["paper"],
                "venue": facts["venue"],
                "year": facts["year"],
                "idea": facts["idea"],
                "beside CLIP": beside_clip(method),
                "supervision": supervision(method),
                "differences": f"[{count}](methods/{method}.md#{anchor})",
                "parity": "official code" if method in checked else "formulas",
                "demo": f"{demo[names[0]]:.1f}" if names else "",
                "published": published(method),
                "cost": f"{cost['ratios'][METHOD]['median']:.1f}" if cost else "",
            }
        )
    lines = [list(rows[0]), [":-:" if name in CENTRED else "---" for name in rows[0]], *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def published(method: str) -> str:
    """The mean of a method's published figures on the benchmarks, else on other data sets; how many; who measured them.

    Figures of one source count: with ViT-B/16 before larger models, of the authors before others, on as many data sets as
    possible. They are those that a run of the method's recipe reproduces; if there are none, those of one variant that no run
    here reproduces."""
    figures = published_figures()
    figures = figures.assign(larger=figures["backbone"] != "ViT-B-16")
    on_benchmarks = figures["dataset"].isin(list(BENCHMARKS))
    others = "" if (figures.loc[on_benchmarks, "method"] == method).any() else " others"
    figures = figures if others else figures[on_benchmarks]
    here = figures[(figures["segmentor"] == method) & ~figures["larger"] & (figures["overrides"].map(len) == 0)]
    chosen = here if len(here) else figures[figures["method"] == method]
    if chosen.empty:
        return ""
    kinds = ["larger", "second_hand", "source", "metric"] + ([] if len(here) else ["variant", "backbone"])
    counts = chosen.groupby(kinds)["dataset"].nunique().reset_index(name="datasets")
    best = counts.sort_values(["larger", "second_hand", "datasets"], ascending=[True, True, False], kind="stable").iloc[0]
    chosen = chosen[(chosen[kinds] == best[kinds]).all(axis=1)].drop_duplicates("dataset")
    who = f"quoted by {quoting(best['source'])}" if best["second_hand"] else "authors"
    metric = "" if best["metric"] == "mIoU" else f" (`{best['metric']}`)"
    return f"{chosen['miou'].mean():.1f} on {len(chosen)}{others}{metric}, {who}" + ("" if len(here) else "; no run here")


def quoting(source: str) -> str:
    """Who quotes the figures of others, as named in a source."""
    known = re.search(r"quoted by ([^\s(;,]+)|^README of (\w+)|^([\w.-]+\.com) ", source)
    if known:
        return next(filter(None, known.groups()))
    return "a listing" if " listing" in source else re.split(r" README| issue|[,;(]", source)[0].strip()
