"""Writes the generated parts of README and docs: run `python docs/generate.py` after a change of recipes or figures.

They lie between `<!-- NAME -->` and `<!-- end -->`; tests/unit/test_docs.py fails if one is out of date.
"""

import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import ovss_bench as ob
from ovss_bench.bench.view import of_methods, plot
from ovss_bench.bench.ways import METHOD
from ovss_bench.config.recipe import segmentor_config
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.suites import load_suite
from ovss_bench.figures import palette
from ovss_bench.files import config_names, load_config
from ovss_bench.runs.published import published_figures
from ovss_bench.runs.schema import schema

sys.path.insert(0, str(Path(__file__).parent))

from costs import cost, prompts_table, run_tables, shared_table, speed_tables
from field import BENCHMARKS, BESIDE_CLIP, about, beside_clip, guide, speed, variants, with_page

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "demo.png"
SPEED = ROOT / "docs" / "images" / "speed.png"
SCENES, METHODS = (21, 60, 77), ("clip", "naclip", "corrclip")


def reproducible() -> dict[str, set[str]]:
    """By recipe, the data sets with a published figure that a run here reproduces."""
    figures = published_figures()
    figures = figures[figures["segmentor"] != ""]
    return {name: set(rows["dataset"]) for name, rows in figures.groupby("segmentor")}


def methods_list() -> str:
    """Links to the pages of all methods, grouped by what they need."""
    outside = "[label maps, other programs, mmsegmentation](docs/outside.md)"
    groups: dict[str, list[str]] = {"CLIP alone": [], "with other models": [], "trained": [], "external": [outside]}
    for method in with_page():
        trained = "checkpoint" in segmentor_config(method)[1].hyperparameters()
        group = "trained" if trained else "with other models" if beside_clip(method) else "CLIP alone"
        groups[group].append(f"[`{method}`](docs/methods/{method}.md)")
    return "\n".join(["| | |", "| --- | --- |", *(f"| {group} | {', '.join(links)} |" for group, links in groups.items())])


def methods_table() -> str:
    """Methods, their models beside CLIP, and the benchmarks with a published figure that a run here reproduces."""
    published = reproducible()
    lines = [["method", "beside CLIP", *BENCHMARKS.values(), "also"], ["---", "---", *[":-:"] * len(BENCHMARKS), "---"]]
    for method in with_page():
        known = set().union(*(published.get(name, ()) for name in variants(method)))
        marks = ["●" if name in known else "" for name in BENCHMARKS]
        more = ", ".join(f"`{name}`" for name in sorted(known - BENCHMARKS.keys()))
        lines.append([f"[`{method}`](methods/{method}.md)", beside_clip(method), *marks, more])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def datasets_table() -> str:
    """All data sets, and the recipes with a published figure that a run here reproduces."""
    suites = {name: set(load_suite(name).datasets) for name in config_names("dataset/suite")}
    published = reproducible()
    lines = ["| data set | | suite | published figures of |", "| --- | --- | --- | --- |"]
    for name in config_names("dataset"):
        full_name = dataset_config(name)[1]["full_name"]
        within = " ".join(f"`suite/{suite}`" for suite, members in suites.items() if name in members)
        recipes = " ".join(f"`{recipe}`" for recipe, known in sorted(published.items()) if name in known)
        lines.append(f"| `{name}` | {full_name} | {within} | {recipes} |")
    return "\n".join(lines)


def demo_models() -> str:
    """The models that methods use in the demo, beside those that they use with a published CLIP."""
    rows: dict[tuple[str, str], list[str]] = {}
    for row in load_config("table", "demo")["rows"]:
        values = {clip: ob.compose_recipe(row["segmentor"], clip=clip).values() for clip in ("vit_b16", "demo")}
        for kind in BESIDE_CLIP:
            published, here = (values[clip].get(kind) for clip in values)
            if published or here:
                models = (f"`{kind}={published or 'FILE'}`", f"`{Path(here).name}`" if here else "none")
                rows.setdefault(models, []).append(f"`{row['segmentor']}`")
    lines = [(published, here, ", ".join(methods)) for (published, here), methods in sorted(rows.items())]
    lines = [("published", "in the demo", "methods"), ("---", "---", "---"), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def field_rows(part: dict, name: str = "") -> list[str]:
    """The fields of result files, with their descriptions from the schema."""
    rows = [f"| `{name}` | {part['description']} |"] if name and part.get("description") else []
    inner = {f"{name}.{key}".lstrip("."): value for key, value in part.get("properties", {}).items()}
    inner |= {f"{name}[]": part.get("items"), f"{name}.*": part.get("additionalProperties")}
    return rows + [row for key, value in inner.items() if isinstance(value, dict) for row in field_rows(value, key)]


def tables() -> dict[Path, dict[str, str]]:
    """By file, the text for each marker."""
    demo = {name: (ROOT / "results" / name / "table.md").read_text().strip() for name in ("demo", "demo_full")}
    return {
        ROOT / "README.md": {"methods": methods_list()},
        ROOT / "docs" / "methods.md": {"guide": guide(), "methods": methods_table(), "datasets": datasets_table()},
        ROOT / "docs" / "demo.md": {"models": demo_models(), **demo},
        ROOT / "docs" / "speed.md": {
            "methods": speed_tables(),
            "prompts": prompts_table(),
            "shared": shared_table(),
            "runs": run_tables(),
        },
        ROOT / "docs" / "results.md": {"fields": "\n".join(["| field | |", "| --- | --- |", *field_rows(schema())])},
        **{ROOT / "docs" / "methods" / f"{method}.md": {"cost": cost(method)} for method in with_page()},
    }


def filled(text: str, parts: dict[str, str]) -> str:
    """The text, with each part put between its markers."""
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
    for column, title in enumerate(["image", "ground truth", *(about(method)["title"] for method in METHODS)]):
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
