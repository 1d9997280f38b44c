"""Recipes that no publication confirms: they say why, and so does every result and table that shows their figures."""

import copy

import pytest
from PIL import Image

import ovss_bench as ob
from ovss_bench.config.recipe import compose_recipe
from ovss_bench.config.registry import RECIPES
from ovss_bench.datasets.suites import Average, Suite
from ovss_bench.files import config_names, load_config
from ovss_bench.reports.compare_view import lines_of, methods_table
from ovss_bench.reports.csv import csv
from ovss_bench.reports.html import Page, html
from ovss_bench.reports.latex import latex
from ovss_bench.reports.markdown import markdown
from ovss_bench.reports.papers import load_table, paper_view, side_by_side
from ovss_bench.reports.report import make_report
from ovss_bench.reports.reproduced import checklist
from ovss_bench.reports.results import averages_table, results_table
from ovss_bench.reports.terminal import lines
from ovss_bench.runs.load import frame_of
from ovss_bench.runs.published import compare_published, recipe_doubt, unconfirmed
from ovss_bench.runs.schema import validate_result
from parity.seeded import rgb_image

DOUBTED = ("pacl", "sam3", "sam3_paint")
WORDS = "recipe unconfirmed: as guessed"
TWO = Suite("s", "S", ("voc21", "ade20k"), (Average("both", ("voc21", "ade20k")),))


@pytest.fixture(scope="module")
def real():
    fast = {"resize": "none", "window": 48, "stride": 48}
    return ob.evaluate("clip", ob.load_clip("demo"), ob.load_dataset("demo"), recipe=fast, limit=1).data


def result(real, segmentor, dataset="voc21", doubt=None, value=10.0):
    """A complete result, with the field if there is a `doubt`."""
    new = copy.deepcopy(real) | {"segmentor": segmentor, "dataset": dataset, "partial": False, "overridden": {}}
    new["metrics"], new["clip"] = {"mIoU": value}, "vit_b16"
    new["provenance"] |= {"unconfirmed": doubt} if doubt else {}
    return new


def rendered(table):
    return [render(table) for render in (markdown, csv, html, lambda each: latex(each, "t"), lambda each: "".join(lines(each)))]


@pytest.mark.parametrize("segmentor", config_names("segmentor"))
def test_a_file_says_it_as_a_text_or_by_data_set(segmentor):
    found = load_config("segmentor", segmentor).get("unconfirmed")
    assert (found is not None) == (segmentor in DOUBTED)
    texts = found if isinstance(found, dict) else {"voc21": found}
    assert texts.keys() <= set(config_names("dataset"))
    assert recipe_doubt(segmentor, "voc21") == texts.get("voc21")
    assert recipe_doubt(f"{segmentor}+pamr", "voc21") == texts.get("voc21")


def test_drawn_scenes_have_no_published_recipe():
    assert [recipe_doubt("sam3", name) for name in ("demo", "demo_small")] == [None, None]


@pytest.mark.parametrize(
    ("text", "doubts"),
    [
        ("unconfirmed: why", ["why", "why"]),
        ("unconfirmed: {voc21: why}", ["why", None]),
        ("recipe: {logit_scale: 3}", [None, None]),
    ],
)
def test_recipes_of_plugins_have_it_too(text, doubts, tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text(f"method: sclip\n{text}\n")
    monkeypatch.setitem(RECIPES, "mine", file)
    compose_recipe("mine")
    assert [recipe_doubt("mine", name) for name in ("voc21", "ade20k")] == doubts


@pytest.mark.parametrize("text", ["[why]", "3", "", "{voc21: [why]}", "{voc21: {window: why}}"])
def test_anything_else_is_an_error(text, tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text(f"method: sclip\nunconfirmed: {text}\n")
    monkeypatch.setitem(RECIPES, "mine", file)
    with pytest.raises(ob.OvssError, match=r"mine\.yaml: unconfirmed: expected a text"):
        compose_recipe("mine")


def test_a_result_holds_it(tmp_path, monkeypatch):
    """For data of the user's own, too, as the recipe is the same."""
    (tmp_path / "mine.yaml").write_text(
        "method: sclip\nunconfirmed: as guessed\nrecipe: {resize: none, window: 48, stride: 48}\n"
    )
    monkeypatch.setitem(RECIPES, "mine", tmp_path / "mine.yaml")
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.fromarray(rgb_image(1, 48, 48)).save(tmp_path / "images/a.png")
    Image.fromarray(rgb_image(2, 48, 48)[..., 0] % 2).save(tmp_path / "labels/a.png")
    keys = "images: images\nlabels: labels\nimage_suffix: .png\nlabel_suffix: .png\nclasses: [a, b]\n"
    (tmp_path / "own.yaml").write_text(keys)
    data = ob.evaluate("mine", ob.load_clip("demo"), ob.load_dataset(tmp_path / "own.yaml")).data
    assert data["provenance"]["unconfirmed"] == "as guessed"
    assert validate_result(copy.deepcopy(data), "it") == data
    assert unconfirmed(data) == [WORDS]
    assert frame_of({"1": data})["unconfirmed"][0] == "as guessed"


def test_results_without_the_field_are_read_and_have_the_doubt_of_today(real):
    old = result(real, "sam3")
    assert "unconfirmed" not in validate_result(old, "it")["provenance"]
    assert unconfirmed(old) == [f"recipe unconfirmed: {load_config('segmentor', 'sam3')['unconfirmed']}"]
    assert unconfirmed(result(real, "sclip")) == []


def test_every_table_marks_it(real):
    rows = [result(real, "a", name, "as guessed") for name in TWO.datasets] + [result(real, "b", name) for name in TWO.datasets]
    by_path = {str(number): row for number, row in enumerate(rows)}
    report, averages = make_report(by_path, TWO), averages_table(TWO, rows)
    for table in (results_table(rows), make_report(by_path), report, averages):
        marked = {row.cells[0].text for row in table.rows if WORDS in [note for cell in row.cells for note in cell.notes]}
        assert marked == {"a"}
        assert all("as guessed" in text for text in rendered(table))


def test_an_average_over_single_unconfirmed_recipes_is_marked(real):
    rows = [result(real, "a", "voc21", "as guessed"), result(real, "a", "ade20k")]
    report = make_report({str(number): row for number, row in enumerate(rows)}, TWO)
    assert [cell.notes for cell in report.rows[0].cells[4:]] == [[WORDS], [], [WORDS]]


def test_the_page_marks_it(real):
    page = Page("t", {}, None, 0)
    page.add("a.json", result(real, "a", doubt="as guessed"), None)
    page.add("b.json", result(real, "b"), None)
    assert [run["marks"] for run in page.runs.values()] == [WORDS, ""]
    assert page.text().count("as guessed") == 3  # the mark, the footnote, the provenance


def test_comparisons_name_it(real):
    def side(name, doubts):
        facts = {"segmentor": name, "clip": "vit_b16", "dataset": "voc21", "protocol": "paper", "overridden": {}, "mIoU": 1.0}
        return facts | {"partial": False, "supervision": "none", "unconfirmed": doubts}

    comparison = {"level": "identical", "a": side("a", [WORDS]), "b": side("b", []), "images": {"compared": 1}}
    comparison |= {"settings": [], "contributing_classes": [], "contributing_images": []}
    assert f"  a: {WORDS}" in lines_of(comparison)
    table = methods_table([comparison | {"difference": {"value": 0.0, "low": 0.0, "high": 0.0}}])
    assert [cell.notes for cell in table.rows[0].cells[2:4]] == [[WORDS], []]


def test_it_has_no_difference_from_a_published_figure(real):
    ours = result(real, "sclip", value=59.0)
    assert compare_published(ours)["figures"][0]["difference"] is not None
    found = compare_published(result(real, "sclip", doubt="as guessed", value=59.0))
    assert {figure["difference"] for figure in found["figures"]} == {None}
    assert found["why_not"] == WORDS


def test_a_papers_table_marks_cells_and_averages(real):
    table = load_table("naclip")
    row = next(row for row in table.rows if row.segmentor and table.averages)
    name, members = next(iter(table.averages.items()))
    rows = [result(real, row.segmentor, dataset, "as guessed") | {"clip": row.clip} for dataset in members]
    for dataset, each in zip(members, rows, strict=True):
        each["overridden"] = row.overrides(dataset)
    cells = side_by_side(table, rows)
    view = paper_view(table, cells)
    shown = next(each for each in view.rows if each.cells[0].text == row.name)
    words, pairs = "with unconfirmed settings", zip(view.columns, shown.cells, strict=True)
    marked = {column.name for column, cell in pairs if words in cell.notes}
    assert marked >= {name, *members}
    assert WORDS in view.remarks


def test_the_checklist_names_it(real):
    checks = {what: (state, says) for what, state, says in checklist(result(real, "sam3") | {"clip": "none"})}
    state, says = checks["unconfirmed"]
    assert (state, says) == ("suspicious", f"recipe unconfirmed: {load_config('segmentor', 'sam3')['unconfirmed']}")
    assert checks["weights"] == ("ok", "the method uses no CLIP")
