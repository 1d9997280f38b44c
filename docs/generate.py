"""Writes what README and docs state from the code: `python docs/generate.py` after a change of recipes or figures.

The tables stand between `<!-- NAME -->` and `<!-- end -->`; tests/unit/test_docs.py finds those that are out of date.
"""

import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import ovss_bench as ob
from ovss_bench.bench.methods import METHOD
from ovss_bench.bench.view import methods_view, of_methods, plot
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.suites import load_suite
from ovss_bench.figures import palette
from ovss_bench.files import config_names, load_config
from ovss_bench.runs.published import published_figures
from ovss_bench.runs.schema import schema

ROOT = Path(__file__).resolve().parent.parent
BESIDE_CLIP = ("vfm", "regions", "foreground", "diffusion", "bank", "concepts", "checkpoint")
BENCHMARKS = {
    "voc21": "VOC21", "voc20": "VOC20", "context60": "Ctx60", "context59": "Ctx59",
    "coco_object": "Object", "coco_stuff": "Stuff", "cityscapes": "City", "ade20k": "ADE",
}  # fmt: skip
TITLES = {
    "clip": "CLIP", "maskclip": "MaskCLIP", "sclip": "SCLIP", "clearclip": "ClearCLIP", "naclip": "NACLIP", "gem": "GEM",
    "cliptrase": "CLIPtrase", "resclip": "ResCLIP", "scclip": "SC-CLIP", "proxyclip": "ProxyCLIP", "corrclip": "CorrCLIP",
    "corrclip_v2": "CorrCLIPv2", "cliper": "CLIPer", "clip_diy": "CLIP-DIY",
    "sam3": "SAM 3", "segearth_ov3": "SegEarth-OV3", "active_sam": "ActiveSAM",
    "clip_dinoiser": "CLIP-DINOiser", "pacl": "PACL",
    "maskclip_plus": "MaskCLIP+", "tagclip": "TagCLIP",
}  # fmt: skip
PICTURE = ROOT / "docs" / "images" / "demo.png"
SPEED = ROOT / "docs" / "images" / "speed.png"
SCENES, METHODS = (21, 60, 77), ("clip", "naclip", "corrclip")


def variants(method: str) -> list[str]:
    """The recipes of a method, its own first."""
    recipes = {name: load_config("segmentor", name).get("method", name) for name in config_names("segmentor")}
    return sorted((name for name, of in recipes.items() if of == method), key=lambda name: (name != method, name))


def reproducible() -> dict[str, set[str]]:
    """Data sets for which a figure is published that a run of ours reproduces, by recipe."""
    figures = published_figures()
    figures = figures[figures["segmentor"] != ""]
    return {name: set(of["dataset"]) for name, of in figures.groupby("segmentor")}


def methods_table(pages: str) -> str:
    """Methods, what they take beside CLIP, and the benchmarks with a published figure of the very same run."""
    published, order = reproducible(), load_config("tools", "eval")["segmentor"]
    lines = [["method", "beside CLIP", *BENCHMARKS.values(), "also"], ["---", "---", *[":-:"] * len(BENCHMARKS), "---"]]
    for method in sorted(TITLES, key=lambda name: order.index(name) if name in order else len(order)):
        values = ob.compose_recipe(method).values()
        takes = [f"`{kind}={values[kind]}`" if values[kind] else f"`{kind}`" for kind in BESIDE_CLIP if kind in values]
        known = set().union(*(published.get(name, ()) for name in variants(method)))
        marks = ["●" if name in known else "" for name in BENCHMARKS]
        more = ", ".join(f"`{name}`" for name in sorted(known - BENCHMARKS.keys()))
        lines.append([f"[`{method}`]({pages}{method}.md)", " ".join(takes), *marks, more])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def datasets_table() -> str:
    """All data sets, and the recipes of which figures are published on them."""
    suites = {name: set(load_suite(name).datasets) for name in config_names("dataset/suite")}
    published = reproducible()
    lines = ["| data set | | suite | published figures of |", "| --- | --- | --- | --- |"]
    for name in config_names("dataset"):
        full_name = dataset_config(name)[1]["full_name"]
        within = " ".join(f"`suite/{suite}`" for suite, members in suites.items() if name in members)
        recipes = " ".join(f"`{recipe}`" for recipe, known in sorted(published.items()) if name in known)
        lines.append(f"| `{name}` | {full_name} | {within} | {recipes} |")
    return "\n".join(lines)


def field_rows(part: dict, name: str = "") -> list[str]:
    """The fields of result files with their descriptions in the schema."""
    rows = [f"| `{name}` | {part['description']} |"] if name and part.get("description") else []
    inner = {f"{name}.{key}".lstrip("."): value for key, value in part.get("properties", {}).items()}
    inner |= {f"{name}[]": part.get("items"), f"{name}.*": part.get("additionalProperties")}
    return rows + [row for key, value in inner.items() if isinstance(value, dict) for row in field_rows(value, key)]


def speed() -> list[dict[str, Any]]:
    """The measurements of tools/bench.py that are committed, a file per machine and number of threads."""
    return [json.loads(path.read_text()) for path in sorted((ROOT / "results" / "bench").glob("*.json"))]


def speed_tables() -> str:
    """For each machine what it is, how it was measured, and the ratios of all methods."""
    parts = []
    for measured in speed():
        machine, cases = measured["machine"], of_methods(measured["cases"])
        threads, rounds = (
            sorted({find(case) for case in cases.values()})
            for find in (lambda case: case["threads"], lambda case: len(case["seconds"][METHOD]))
        )
        load = median(load for case in cases.values() for load in case["load"])
        parts.append(
            f"{machine['device']} with {machine['processors']} processors, {', '.join(map(str, threads))} threads, torch "
            f"{machine['packages']['torch']}, Python {machine['python']}; medians of {' or '.join(map(str, rounds))} rounds; "
            f"load average {load:.0f} (median), with other programs.\n\n{methods_view(cases)}"
        )
    return "\n".join(parts).strip()


def tables() -> dict[Path, dict[str, str]]:
    """Text by marker, by file."""
    demo = {name: (ROOT / "results" / name / "table.md").read_text().strip() for name in ("demo", "demo_full")}
    return {
        ROOT / "README.md": {"methods": methods_table("docs/methods/")},
        ROOT / "docs" / "methods.md": {"methods": methods_table("methods/"), "datasets": datasets_table()},
        ROOT / "docs" / "demo.md": demo,
        ROOT / "docs" / "speed.md": {"methods": speed_tables()},
        ROOT / "docs" / "results.md": {"fields": "\n".join(["| field | |", "| --- | --- |", *field_rows(schema())])},
    }


def filled(text: str, parts: dict[str, str]) -> str:
    """The text with each part between its markers."""
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->\n", "\n<!-- end -->"
        text, found = re.subn(f"{begin}.*?{end[1:]}", lambda _, new=begin + part + end: new, text, flags=re.DOTALL)
        assert found == 1, name
    return text


def picture() -> Image.Image:
    """Image, ground truth and predictions on scenes of the demo, side by side."""
    data, clip = ob.load_dataset("demo"), ob.load_clip("demo")
    vocabulary = data.vocabulary("demo", "notebook7")
    segmentors = [ob.build_segmentor(method, clip=clip, vocabulary=vocabulary) for method in METHODS]
    rows = []
    for number in SCENES:
        image, ground_truth = data.image(data[number]), data.label(data[number])
        predicted = [ob.segment(segmentor, image).label_map.numpy() for segmentor in segmentors]
        rows.append([image, *(_coloured(labels, len(data.classes)) for labels in (ground_truth, *predicted))])
    side, gap, top = 150, 6, 22
    canvas = Image.new("RGB", ((side + gap) * len(rows[0]) - gap, top + (side * 3 // 4 + gap) * len(rows) - gap), "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(["image", "ground truth", *(TITLES[method] for method in METHODS)]):
        draw.text((column * (side + gap) + 2, 4), title, "black", font_size=14)
    for line, row in enumerate(rows):
        for column, panel in enumerate(row):
            sampling = Image.Resampling.NEAREST if column else Image.Resampling.BILINEAR
            shown = Image.fromarray(panel).resize((side, side * 3 // 4), sampling)
            canvas.paste(shown, (column * (side + gap), top + line * (side * 3 // 4 + gap)))
    return canvas


def _coloured(labels: np.ndarray, classes: int) -> np.ndarray:
    """A label map in colours: the background grey, pixels without a label white."""
    colours = np.concatenate([[[64, 64, 64]], palette(classes - 1), [[255, 255, 255]]]).astype(np.uint8)
    return colours[np.where(labels == 255, classes, labels)]


if __name__ == "__main__":
    for path, parts in tables().items():
        path.write_text(filled(path.read_text(), parts))
    picture().quantize(128).save(PICTURE, optimize=True)
    plot(of_methods(speed()[0]["cases"]), SPEED, only=METHOD)
