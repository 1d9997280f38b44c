"""README, CONTRIBUTING and docs: links, anchors, code blocks, generated tables, and the site."""

import importlib.util
import re
import subprocess
import sys

import pytest
import yaml
from PIL import Image

import ovss_bench as ob
from ovss_bench.config.recipe import paper_method, parts
from ovss_bench.files import config_names, load_config
from ovss_bench.runs.evaluate import make_job, run_jobs
from ovss_bench.runs.published import published_figures
from pages import PAGES, ROOT, blocks

SITE = sorted((ROOT / "docs").rglob("*.md"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page):
    """The anchors of the headings, as GitHub and mkdocs make them."""
    headings = re.findall(
        r"^#+ (.+)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_resolve(page):
    for target in LINK.findall(page.read_text()):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page):
    for path in re.findall(r"`((?:ovss_bench|configs|tests|tools|docs|results/published)/[\w./-]*)`", page.read_text()):
        assert re.search("[A-Z]{4,}", path) or "my_" in path or "valueclip" in path or (ROOT / path).exists(), f"{page}: {path}"


def test_contributing_names_every_table_of_modules():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tables = [
        path for path in ROOT.glob("ovss_bench/**/__init__.py") if re.search("^MODULES = ", path.read_text(), re.MULTILINE)
    ]
    assert len(tables) == 4
    assert not [path for path in tables if f"`{path.relative_to(ROOT)}`" not in text]


def test_a_corruption_of_images_goes_where_contributing_says(tmp_path, voc):
    @ob.DATASETS.register_module(name="dark")
    class Dark(ob.SegDataset):
        def image(self, sample):
            return super().image(sample) // 2

    (tmp_path / "voc21_dark.yaml").write_text("extends: voc21\nloader: dark\n")
    data, clean = ob.load_dataset(tmp_path / "voc21_dark.yaml", voc), ob.load_dataset("voc21", voc)
    assert (data.image(data[0]) == clean.image(clean[0]) // 2).all()
    assert (data.label(data[0]) == clean.label(clean[0])).all()


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 130
    assert max(len(line) for line in lines if "|" not in line) <= 110


@pytest.mark.parametrize("code", [code for code in blocks("python") if "register_module" in code])
def test_plug_ins_are_short_and_compile(code):
    assert code.count("\n") <= 25
    compile(code, "page", "exec")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A folder with a result."""
    folder = tmp_path_factory.mktemp("evaluated")
    fast = {"resize": "none", "window": 48, "stride": 48}
    run_jobs(
        [make_job("clip", ob.load_clip("demo"), ob.load_dataset("demo"), overrides=fast)],
        limit=1,
        output=folder / "results" / "runs",
        quiet=True,
    )
    return folder


@pytest.mark.parametrize("code", [code for code in dict.fromkeys(blocks("python")) if "register_module" not in code])
def test_other_python_blocks_run(code, evaluated, monkeypatch, capsys):
    monkeypatch.chdir(evaluated)
    exec(compile(code, "page", "exec"), {})


def test_tables_are_those_that_are_generated():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for path, tables in generate.tables().items():
        assert generate.filled(path.read_text(), tables) == path.read_text(), f"{path}: run python docs/generate.py"
    assert set(generate.with_page()) == set(map(paper_method, config_names("segmentor")))


def test_the_guide_has_a_figure_of_each_method_that_has_any_and_says_who_measured_it(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    field, figures = importlib.import_module("field"), published_figures()
    for method in field.with_page():
        every = figures[figures["method"] == method]
        on_benchmarks = every[every["dataset"].isin(list(field.BENCHMARKS))]
        own = every if on_benchmarks.empty else on_benchmarks
        others = " others" if on_benchmarks.empty else ""
        found = re.fullmatch(
            rf"([\d.]+) on (\d){others}( \(`mIoU_\w+`\))?, (?:authors|quoted by (?:[\w.-]+|a listing))(; no run here)?",
            field.published(method),
        )
        assert bool(found) == bool(len(own)), method
        if found:
            here = own[(own["segmentor"] == method) & (own["overrides"].map(len) == 0) & (own["backbone"] == "ViT-B-16")]
            assert bool(found[4]) == here.empty, method
            assert own["miou"].min() <= float(found[1]) + 0.05, method
            assert float(found[1]) <= own["miou"].max() + 0.05, method
            assert int(found[2]) <= own["dataset"].nunique(), method


def test_the_guide_has_the_venue_that_a_recipe_states(monkeypatch):
    """Before pages, volume and number on arXiv, with or without a year, in one word or two."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    field = importlib.import_module("field")
    for method in field.with_page():
        paper, about = parts(method)[0]["paper"], field.about(method)
        dated = re.findall(r", ([A-Z]{2,}[A-Za-z ]*) (\d{4})\b", paper)
        undated = re.findall(r", ([A-Z]{2,})(?=,|$)", paper)
        if dated or undated:
            assert about["venue"].split()[0] == (dated or [undated])[-1][0].split()[0], method
            assert all(word in paper.split() or f"{word}," in paper.split() for word in about["venue"].split()), method
        else:
            assert about["venue"] in ("arXiv", ""), method
        assert not dated or about["year"] == dated[-1][1], method


@pytest.mark.parametrize("table", sorted({*config_names("table")} & {*config_names("segmentor")}))
def test_the_title_of_a_table_and_the_recipe_state_the_same_paper(table):
    stated = re.search(r"\(([^()]+)\)$", load_config("table", table)["title"])
    assert not stated or f", {stated[1]}" in parts(table)[0]["paper"]


def test_all_data_sets_and_options_are_somewhere():
    text = "".join(page.read_text() for page in PAGES)
    for name in [*config_names("dataset"), *(f"suite/{suite}" for suite in config_names("dataset/suite"))]:
        assert f"`{name}`" in text, name


def test_the_picture_is_small():
    picture = ROOT / "docs" / "images" / "demo.png"
    assert picture.stat().st_size < 200_000
    with Image.open(picture) as image:
        assert image.format == "PNG"


def test_the_site_has_all_pages(tmp_path):
    def places(nav):
        for entry in nav:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from places(value) if isinstance(value, list) else [value]

    nav = list(places(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(nav) == sorted(str(page.relative_to(ROOT / "docs")) for page in SITE)
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", str(ROOT / "mkdocs.yml"), "-d", str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "methods" / "sclip" / "index.html").exists()
