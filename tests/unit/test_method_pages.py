"""docs/methods: a page for every method, with all that can be set in it, and links that lead somewhere."""

import re

import pytest

import ovss_bench as ob
from ovss_bench.config.recipe import paper_method, segmentor_config
from ovss_bench.config.steps import OPTIONS
from ovss_bench.files import CONFIGS, config_names

PAGES = CONFIGS.parent / "docs" / "methods"
METHODS = sorted(set(map(paper_method, config_names("segmentor"))))
HEADINGS = [
    "Idea",
    "Settings",
    "Differences from the official code",
    "Ablation switches",
    "Parity",
    "Cost",
]
# What published figures may owe to the precision and the memory of the GPU that they were measured on.
CAVEATS = {
    "naclip": ("0.06 % of the labels", "When memory runs out"),
    "resclip": ("fp16", "out-of-memory"),
    "sclip": ("fp16", "memory runs out"),
    "clearclip": ("fp16",),
    "maskclip": ("fp16",),
    "corrclip": ("fp16", "NaN"),
    "corrclip_v2": ("fp16",),
    "cliper": ("fp16", "NaN"),
    "scclip": ("fp16", "NaN"),
    "proxyclip": ("fp16", "NaN", "`empty_rows=official` (the default"),
}


def page(method):
    return (PAGES / f"{method}.md").read_text()


def test_every_method_has_a_page_and_every_page_a_method():
    assert sorted(path.stem for path in PAGES.glob("*.md")) == METHODS
    own = ob.SEGMENTORS.module_dict.items()
    assert {name for name, method in own if method.uses_clip or "concepts" in method.requires} <= set(METHODS)
    assert set(METHODS) <= ob.SEGMENTORS.module_dict.keys() | ob.STEPS.module_dict.keys()


@pytest.mark.parametrize("method", METHODS)
def test_a_page_names_all_hyperparameters_and_nothing_else(method):
    text = page(method)
    assert re.findall(r"^## (.+)", text, re.MULTILINE) == HEADINGS
    own = segmentor_config(method)[1].hyperparameters()
    assert [name for name in own if not re.search(rf"\b{name}\b", text)] == []
    known = {*own, *ob.compose_recipe(method).values(), *OPTIONS}
    switches = text.partition("## Ablation switches")[2].partition("## Parity")[0]
    assert {name.removeprefix("recipe.") for name in re.findall(r"[`\s]([\w.]+)=", switches)} <= known


@pytest.mark.parametrize("method", sorted(CAVEATS))
def test_a_page_says_what_published_figures_may_hold(method):
    text = " ".join(page(method).split())
    assert all(words in text for words in CAVEATS[method])


@pytest.mark.parametrize("method", METHODS)
def test_links_lead_somewhere(method):
    for target in re.findall(r"\]\(([^)#]+)\)", page(method)):
        assert target.startswith("https://") or (PAGES / target).exists(), target
