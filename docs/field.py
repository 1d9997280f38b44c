"""The guide to the field in docs/methods.md: a row per method, from the registry, recipes, pages, parity checks and results."""

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

import ovss_bench as ob
from ovss_bench.bench.methods import METHOD
from ovss_bench.bench.view import of_methods
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
    paper = load_config("segmentor", method)["paper"]
    arxiv, known = (
        re.search(r"arXiv (\d\d)(\d\d\.\d+)", paper),
        re.search(r", ([A-Z]\w+)(?: (\d{4}))?(, pages [\d-]+)?(, arXiv.*)?$", paper),
    )
    venue = known[1] if known else "arXiv" if arxiv else ""
    return {
        "title": title,
        "idea": idea,
        "paper": f"[{arxiv[1]}{arxiv[2]}](https://arxiv.org/abs/{arxiv[1]}{arxiv[2]})" if arxiv else "",
        "venue": venue,
        "year": (known and known[2]) or (f"20{arxiv[1]}" if arxiv else ""),
    }


def with_page() -> list[str]:
    """The methods that have a page, the oldest first."""
    pages = [path.stem for path in (ROOT / "docs" / "methods").glob("*.md")]
    return sorted(pages, key=lambda method: (about(method)["year"] or "9999", method))


def variants(method: str) -> list[str]:
    """The recipes of a method, or with its step, its own first."""
    recipes = {
        name: load_config("segmentor", name).get("method", name).rpartition("+")[2] for name in config_names("segmentor")
    }
    return sorted((name for name, of in recipes.items() if of == method), key=lambda name: (name != method, name))


def beside_clip(method: str) -> str:
    """The models that a method takes beside CLIP, with the default of its recipe."""
    values = ob.compose_recipe(method).values()
    return " ".join(f"`{kind}={values[kind]}`" if values[kind] else f"`{kind}`" for kind in BESIDE_CLIP if kind in values)


def supervision(method: str) -> str:
    """What a method and the models of its recipe were trained on, apart from CLIP."""
    values = ob.compose_recipe(method).values()
    sections = [load_config("segmentor", method)["training"]]
    sections += [load_config(group, values[kind])["training"] for kind, group in GROUPS.items() if values.get(kind)]
    return most(SUPERVISION, (section["supervision"] for section in sections))


def speed() -> list[dict[str, Any]]:
    """The measurements of tools/bench.py that are committed, a file per machine and number of threads, the largest first."""
    files = [json.loads(path.read_text()) for path in sorted((ROOT / "results" / "bench").glob("*.json"))]
    return sorted(files, key=lambda measured: -len(measured["cases"]))


def guide() -> str:
    """The table, in markdown."""
    demo = pd.read_csv(ROOT / "results" / "demo" / "table.csv").set_index("segmentor")["mIoU"]
    demo.index = demo.index.str.split().str[0]  # without what stands beside the name, as "(stand-in regions)"
    costs = of_methods(speed()[0]["cases"])
    checks = "".join(path.read_text() for path in (ROOT / "tests" / "parity").glob("checks_*.py"))
    checked = set(re.findall(r'"(\w+)"', " ".join(re.findall(r"^METHODS = \(.*\)", checks, re.MULTILINE))))
    rows = []
    for method in with_page():
        facts, page = about(method), (ROOT / "docs" / "methods" / f"{method}.md").read_text()
        section = re.search(rf"^## {DIFFERENCES}\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)[1]
        count = len(re.findall(r"^- ", section, re.MULTILINE))
        anchor = DIFFERENCES.lower().replace(" ", "-")
        names = [name for name in variants(method) if name in demo]
        cost = costs.get(method) or costs.get(f"{method}:given")
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
    """The mean of a method's published figures on the benchmarks, ViT-B/16 and its own recipe, of the source that has most of
    them, its authors before others; their number; and who measured them."""
    figures = published_figures()
    own = (figures["segmentor"] == method) & figures["dataset"].isin(list(BENCHMARKS)) & (figures["backbone"] == "ViT-B-16")
    figures = figures[own & (figures["overrides"].map(len) == 0)]
    if figures.empty:
        return ""
    sources = figures.groupby(["second_hand", "source"])["dataset"].nunique().reset_index()
    best = sources.sort_values(["second_hand", "dataset"], ascending=[True, False]).iloc[0]
    chosen = figures[figures["source"] == best["source"]].drop_duplicates("dataset")
    who = "quoted by " + re.split(r" README|[,;(]", best["source"])[0].strip() if best["second_hand"] else "authors"
    return f"{chosen['miou'].mean():.1f} on {len(chosen)}, {who}"
