"""The HTML page: what it holds, and what a reader can do with it in a real browser."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

import ovss_bench as ob
from ovss_bench.errors import OvssError
from ovss_bench.evaluation.confusion import confusion, total
from ovss_bench.evaluation.metrics import areas
from ovss_bench.reports.html import confusions, write_html
from ovss_bench.reports.overlays import choose, image_ious
from ovss_bench.runs.evaluate import Runtime, make_job, run_jobs
from ovss_bench.runs.load import read_results
from ovss_bench.runs.store import RunStore, read_counts

FAST = {"resize": "none", "window": 48, "stride": 48}
SCRIPT = "<script>window.hacked = 1</script>"
CLASSES = ["grass", SCRIPT, "<img src=x onerror='window.hacked=1'>", '"]}</style><b>&lt;']
IDS = ["plain", "a<script>window.hacked=1<", 'it\'s "&amp;" {{ data }}', "Bücher/größe"]
SIZE = (48, 64)


def write_own(folder):
    """A data set of one's own whose classes and files have names that a page must not take for its own text."""
    random = np.random.default_rng(0)
    for image in IDS:
        for kind, shape, top in (("images", (*SIZE, 3), 256), ("labels", (6, 8), len(CLASSES))):
            path = folder / kind / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = random.integers(0, top, shape, np.uint8)
            if kind == "labels":
                content = np.kron(content, np.ones((8, 8), np.uint8))
                content[:2] = 255
            Image.fromarray(content).save(path)
    config = {"images": "images", "labels": "labels", "image_suffix": ".png", "label_suffix": ".png", "classes": CLASSES}
    (folder / "own.yaml").write_text(yaml.safe_dump(config))
    return folder / "own.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_own(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data):
    """Three runs with label maps, one of them said to be published, one without, and a partial one."""
    folder, clip = tmp_path_factory.mktemp("results"), ob.load_clip("demo")
    own, demo = ob.load_dataset(data), ob.load_dataset("demo")
    jobs = [make_job(name, clip, own, overrides=FAST) for name in ("clip", "maskclip", "naclip")]
    run_jobs(jobs, output=folder, runtime=Runtime(maps=True), quiet=True)
    run_jobs([make_job("sclip", clip, own, "unified", FAST)], output=folder, quiet=True)
    run_jobs([make_job("clip", clip, demo, overrides=FAST)], limit=1, output=folder, quiet=True)
    path = next(folder.rglob("naclip-*.json"))
    result = json.loads(path.read_text())
    figure = {"miou": 12.5, "metric": "mIoU", "method": "NACLIP", "variant": "", "source": "arXiv", "table": "Table 1"}
    result["published"] = {"figures": [figure | {"second_hand": False, "difference": -1.25}], "why_not": None}
    path.write_text(json.dumps(result))
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory, folder, data):
    return write_html(folder, tmp_path_factory.mktemp("page") / "report.html", datasets=[data], partial=True)


def content(path):
    """The JSON block of a page, `shared` in its place."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1]
    found = json.loads(text)
    return {"shared": found["shared"], "notes": found["notes"]} | {
        key: run | found["details"].get(key, {}) for key, run in found["runs"].items()
    }


def run_of(page, segmentor, dataset="own"):
    found = content(page)
    return next(
        run for run in found.values() if isinstance(run, dict) and (run["segmentor"], run["dataset"]) == (segmentor, dataset)
    ), found["shared"]


def picture(uri):
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_the_same_results_give_the_same_bytes(page, folder, data, tmp_path):
    again = write_html(folder, tmp_path / "again.html", datasets=[data], partial=True)
    assert again.read_bytes() == page.read_bytes()


def test_pictures_show_what_was_evaluated(page, folder, data):
    run, shared = run_of(page, "naclip")
    own = ob.load_dataset(data)
    samples = {sample.id: sample for sample in own.samples}
    entries = [entry for entries in run["pictures"].values() for entry in entries]
    assert sorted(entry["id"] for entry in entries) == sorted(IDS)
    colours = np.array([list(bytes.fromhex(colour[1:])) for colour in shared[run["colours"]]])
    maps = next(folder.rglob("naclip-*.maps"))
    for entry in entries:
        truth = own.label(samples[entry["id"]])
        label_map = np.array(Image.open(maps / f"{entry['id']}.png"))
        counted = truth != 255
        assert np.array_equal(picture(shared[entry["prediction"]]), colours[label_map])
        assert np.array_equal(picture(shared[entry["truth"]])[counted], colours[truth[counted]])
        error = picture(shared[entry["error"]])
        right, wrong, ignored = (np.unique(error[mask], axis=0) for mask in masks(truth, label_map))
        assert len(right) == len(wrong) == len(ignored) == 1
        assert len(np.unique([right, wrong, ignored], axis=0)) == 3
        assert picture(shared[entry["input"]]).shape == (*SIZE, 3)
        assert {c for c, _ in entry["classes"]} == set(np.unique([truth[counted], label_map[counted]]).tolist())


@pytest.mark.parametrize(
    ("change", "size"),
    [
        ({"resize": "center_crop", "short_side": 48, "scored_at": "resized"}, (48, 48)),
        ({"resize": "keep_ratio", "short_side": 96, "scored_at": "resized"}, (96, 128)),
    ],
)
def test_pictures_are_of_what_was_scored(data, tmp_path, change, size):
    job = make_job("clip", ob.load_clip("demo"), ob.load_dataset(data), overrides={**FAST, **change})
    run_jobs([job], output=tmp_path, runtime=Runtime(maps=True), quiet=True)
    run, shared = run_of(write_html(tmp_path, tmp_path / "page.html", datasets=[data]), "clip")
    entries = [entry for entries in run["pictures"].values() for entry in entries]
    assert len(entries) == len(IDS)
    for entry in entries:
        assert {picture(shared[entry[part]]).shape for part in ("input", "truth", "prediction", "error")} == {(*size, 3)}


def masks(truth, label_map):
    counted = truth != 255
    return counted & (truth == label_map), counted & (truth != label_map), ~counted


def test_figures_are_those_of_the_results(page, folder):
    for path, result in read_results(folder)[0].items():
        run, shared = run_of(page, result["segmentor"], result["dataset"])
        assert run["metrics"] == {name: None if v is None else round(v, 2) for name, v in result["metrics"].items()}
        assert shared[run["classes"]] == [c["class"] for c in result["per_class"]]
        records = read_counts(path.with_suffix(".npz"))[0]
        matrix = total(records.values(), len(result["per_class"]))
        for t, p, percent, predicted in run["confusions"]["pairs"]:
            assert t != p
            assert percent == pytest.approx(100 * matrix[t, p] / matrix[t, :].sum(), abs=0.06)
            assert predicted == pytest.approx(100 * matrix[t, p] / matrix[:-1, p].sum(), abs=0.06)
        if len(records) > 1:
            assert run["interval"][0] <= run["metrics"]["mIoU"] <= run["interval"][1]
    assert (run_of(page, "naclip")[0]["published"], run_of(page, "naclip")[0]["difference"]) == (12.5, -1.25)


def test_partial_results_only_if_asked_for(folder, tmp_path):
    found = content(write_html(folder, tmp_path / "page.html"))
    assert len(found) == 2 + 4
    assert found["notes"] == ["1 partial results are left out."]
    with pytest.raises(OvssError, match="1 of 1 results are partial \\(partial=true"):
        write_html(folder / "demo", tmp_path / "page.html")


def test_what_is_missing_is_said(folder, data, tmp_path):
    missing, _ = run_of(write_html(folder, tmp_path / "page.html"), "naclip")  # the data set is not named
    assert "Pictures need the data set. unknown dataset 'own'" in missing["why_no_pictures"]
    assert missing["pictures"]["best"][0].keys() == {"id", "mIoU"}
    other = tmp_path / "results"
    shutil.copytree(folder, other)
    path = next(other.rglob("maskclip-*.json"))
    (path.with_suffix(".maps") / "plain.png").unlink()
    changed = path.with_suffix(".maps") / f"{IDS[1]}.png"
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(changed)
    next(other.rglob("clip-*.json")).write_text("{")
    next(other.rglob("naclip-*.npz")).write_text("{")
    found = write_html(other, tmp_path / "other.html", datasets=[data])
    run, _ = run_of(found, "maskclip")
    why = {entry["id"]: entry.get("why_not", "") for entries in run["pictures"].values() for entry in entries}
    assert "cannot be read" in why["plain"]
    assert "changed since the run" in why[IDS[1]]
    assert why[IDS[2]] == ""
    assert "is damaged" in run_of(found, "naclip")[0]["why_no_counts"]
    assert "runtime.maps=true" in run_of(found, "sclip")[0]["why_no_pictures"]
    assert any("cannot be read" in note for note in content(found)["notes"])


def test_best_worst_and_random_images():
    ious = {f"image {i}": float(i) for i in range(50)}
    chosen = choose(ious, 12, "seed")
    assert chosen["best"] == [f"image {i}" for i in (49, 48, 47, 46)]
    assert chosen["worst"] == [f"image {i}" for i in (0, 1, 2, 3)]
    other = choose({image: -iou for image, iou in ious.items()}, 12, "seed")
    assert chosen["random"] == other["random"]
    assert len({name for names in chosen.values() for name in names}) == 12
    assert chosen["random"] != choose(ious, 12, "another seed")["random"]
    few = choose({"a": 1.0, "b": 2.0, "c": 3.0}, 12, "seed")
    assert sorted(name for names in few.values() for name in names) == ["a", "b", "c"]
    assert choose({}, 12, "seed") == {"best": [], "worst": [], "random": []}


def test_the_iou_of_an_image_is_that_of_the_classes_in_its_truth():
    truth, prediction = np.array([[0, 0, 1, 255]]), np.array([[0, 2, 1, 1]])
    nothing = np.full((1, 4), 255)
    counts = {"some": confusion(truth, prediction, 3), "nothing": confusion(nothing, prediction, 3)}
    assert image_ious(counts, 3) == {"some": pytest.approx(75)}


def test_confusions_are_ranked_by_what_they_cost():
    matrix = np.zeros((4, 4), np.int64)
    matrix[0, 0], matrix[0, 1] = 10000, 50  # little of class 0, but most of what is called class 1
    matrix[1, 1], matrix[2, 2], matrix[2, 3] = 10, 60, 20
    matrix[3, 0] = 10**6  # without truth
    found = confusions(matrix)
    assert found["pairs"] == [[0, 1, 0.5, 83.3], [2, 3, 25.0, 100.0]]
    assert found["classes"] == [0, 1, 2, 3]
    assert found["cells"] == [[99.5, 0.5, 0.0, 0.0], [0.0, 100.0, 0.0, 0.0], [0.0, 0.0, 75.0, 25.0]]
    assert confusions(np.zeros((848, 848), np.int64)) == {"pairs": [], "classes": [], "cells": []}


def test_many_pictures_stay_small(folder, tmp_path):
    """20 runs of 100 images shall stay below 15 MB: here 5 of the images, from which the rest is reckoned."""
    demo, random = ob.load_dataset("demo"), np.random.default_rng(0)
    classes, runs, kept = len(demo.classes), 20, 5
    result = json.loads(next(folder.rglob("naclip-*.json")).read_text())
    result |= {"dataset": "demo", "images": {"expected": len(demo.samples), "evaluated": kept, "failed": {}}}
    for i in range(runs):
        with RunStore(tmp_path, "demo", "demo", "naclip", f"{i:012x}".ljust(64, "0")) as store:
            result["fingerprint"] = store.fingerprint
            for sample in demo.samples[:kept]:
                truth = demo.label(sample)
                label_map = np.where(truth == 255, 0, truth).astype(np.uint16)
                label_map[random.random(truth.shape) < 0.05] = 1
                store.add(sample.id, confusion(truth, label_map, classes), "0", None, label_map)
            numbers = np.stack(areas(total(store.counts.values(), classes)), 1).tolist()
            names = "correct", "predicted", "true"
            result["per_class"] = [result["per_class"][0] | dict(zip(names, row, strict=True)) for row in numbers]
            store.finish(result, list(store.counts))
    path = write_html(tmp_path, tmp_path / "page.html", images=100)
    assert path.read_text().count("data:image/") > runs * kept
    assert path.stat().st_size * 100 / kept < 15e6


# In a browser


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[test]'")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium is installed; on Debian: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, page):
    """`opened(width, ...)`: the page in a window of its own. In the end there must be no error and no request elsewhere."""
    views, trouble = [], []

    def open_page(width=1400, path=page, **options):
        view = browser.new_context(viewport={"width": width, "height": 900}, **options).new_page()
        view.set_default_timeout(15000)
        view.on("console", lambda message: trouble.append(message.text))
        view.on("pageerror", lambda error: trouble.append(str(error)))
        view.on("request", lambda request: request.url.startswith(("file:", "data:")) or trouble.append(request.url))
        view.goto(path.as_uri())
        views.append(view)
        return view

    yield open_page
    for view in views:
        assert view.evaluate("window.hacked") is None
        view.context.close()
    assert trouble == []


def column(view, name):
    cells = view.locator(f"#table tbody tr:not([hidden]) td[data-column='{name}']")
    return [text.split()[0] for text in cells.all_inner_texts()]


def open_run(view, segmentor, dataset="own"):
    rows = view.locator(f"#table tbody tr:has(td[data-column='dataset']:text-is('{dataset}'))")
    rows.get_by_role("link", name=segmentor, exact=True).click()
    view.get_by_role("heading", name=f"{segmentor} on {dataset} with demo").wait_for()


def test_the_table_sorts(opened):
    view = opened()
    head = view.get_by_role("columnheader", name="mIoU", exact=True)
    head.get_by_role("button").click()
    values = [float(text) for text in column(view, "mIoU")]
    assert len(values) == 5
    assert values == sorted(values, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").click()
    assert [float(text) for text in column(view, "mIoU")] == sorted(values)
    view.get_by_role("button", name="segmentor").click()
    assert column(view, "segmentor") == ["clip", "clip", "maskclip", "naclip", "sclip"]
    assert head.get_attribute("aria-sort") is None
    view.get_by_role("button", name="published").click()
    assert column(view, "published") == ["12.50", "–", "–", "–", "–"]
    assert column(view, "difference")[0] == "-1.25"
    view.get_by_role("button", name="published").click()
    assert column(view, "published")[0] == "12.50", "missing values stay last"


def test_the_table_filters(opened):
    view = opened()
    assert view.locator("#count").inner_text() == "5 runs."
    view.get_by_label("Search", exact=False).first.fill("CLIP own")
    assert sorted(column(view, "segmentor")) == ["clip", "maskclip", "naclip", "sclip"]
    assert view.locator("#count").inner_text() == "4 of 5 runs."
    view.get_by_role("combobox", name="protocol").select_option("unified")
    assert column(view, "segmentor") == ["sclip"]
    view.get_by_label("Search", exact=False).first.fill("partial")
    assert column(view, "segmentor") == []
    view.get_by_role("combobox", name="protocol").select_option("")
    assert column(view, "dataset") == ["demo"]


def test_columns_can_be_chosen(opened):
    view = opened()
    assert not view.get_by_role("columnheader", name="mDice").is_visible()
    view.get_by_text("Columns", exact=True).click()
    view.get_by_label("mDice").check()
    assert view.get_by_role("columnheader", name="mDice").is_visible()
    assert len(column(view, "mDice")) == 5


def test_a_run_opens(opened, folder):
    view = opened()
    open_run(view, "naclip")
    assert "Table 1" in view.locator("#run").inner_text()
    classes = view.get_by_role("region", name="Classes")
    assert classes.locator("tbody tr").count() == len(CLASSES)
    assert classes.locator(".bar i").count() == len(CLASSES)
    result = json.loads(next(folder.rglob("naclip-*.json")).read_text())
    widths = classes.locator(".bar i").evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().width)")
    ious = [c["IoU"] for c in result["per_class"]]
    assert np.argsort(widths).tolist() == np.argsort(ious).tolist()
    classes.get_by_role("button", name="IoU").click()
    assert classes.locator("tbody tr td:nth-child(2)").first.inner_text() == CLASSES[int(np.argmax(ious))]
    view.get_by_label("Search classes").fill("gras")
    assert classes.locator("tbody tr:visible").count() == 1
    heat = view.get_by_role("region", name="Confusion heat map")
    assert heat.locator("tbody th").all_inner_texts() == CLASSES
    assert heat.locator("tbody td.right").count() == len(CLASSES)
    view.wait_for_function("[...document.images].every(image => image.complete)")
    images = view.locator("#run img")
    assert images.count() == 4 * len(IDS)
    assert images.evaluate_all("images => images.every(image => image.naturalWidth === 64)")
    assert "configs/recipe.yaml" in view.get_by_role("region", name="Recipe").inner_text()
    assert not view.get_by_role("region", name="Provenance").is_visible()
    view.locator("summary", has_text="Provenance").click()
    assert result["fingerprint"] in view.get_by_role("region", name="Provenance").inner_text()


def test_what_a_run_lacks_is_said(opened):
    view = opened()
    open_run(view, "sclip")
    assert "repeat it with runtime.maps=true" in view.locator("#run").inner_text()
    assert view.locator("#run img").count() == 0
    assert IDS[1] in view.locator("#run").inner_text(), "images are listed with their IoU all the same"


def test_a_link_leads_to_a_run_and_back(opened, page):
    view = opened()
    open_run(view, "maskclip")
    address = view.url
    open_run(view, "clip", "demo")
    view.go_back()
    view.get_by_role("heading", name="maskclip on own").wait_for()
    view.goto("about:blank")
    view.goto(address)
    view.get_by_role("heading", name="maskclip on own").wait_for()


def test_the_keyboard_is_enough(opened):
    view = opened()

    def tab_to(script):
        for _ in range(60):
            view.keyboard.press("Tab")
            if view.evaluate(f"(node => {script})(document.activeElement)"):
                return
        raise AssertionError(f"not reached: {script}")

    tab_to("node.textContent === 'mIoU'")
    view.keyboard.press("Enter")
    tab_to("node.closest('td') && node.textContent === 'maskclip'")
    view.keyboard.press("Enter")
    view.get_by_role("heading", name="maskclip on own").wait_for()
    assert view.evaluate("document.activeElement.id") == "run-title"
    tab_to("node.tagName === 'SUMMARY' && node.textContent === 'Provenance'")
    view.keyboard.press("Enter")
    assert view.get_by_role("region", name="Provenance").is_visible()
    view.keyboard.press("Escape")
    view.locator("#run").wait_for(state="hidden")
    assert view.evaluate("document.activeElement.textContent") == "maskclip"


def test_names_stay_text(opened, page):
    text = page.read_text()
    assert SCRIPT not in text
    assert text.count("<script") == 2
    view = opened()
    open_run(view, "naclip")
    shown = view.locator("#run").inner_text()
    assert all(name in shown for name in [*CLASSES, *IDS])
    assert view.evaluate("document.scripts.length") == 2
    assert view.locator("#run b, #run script, #run style").count() == 0
    assert view.evaluate("window.hacked") is None


def test_a_title_stays_text(opened, folder, tmp_path):
    path = write_html(folder, tmp_path / "titled.html", title=f"{{{{ data }}}} {SCRIPT} & more")
    view = opened(path=path)
    assert view.title() == view.locator("h1").inner_text() == f"{{{{ data }}}} {SCRIPT} & more"


@pytest.mark.parametrize("width", [400, 1400])
def test_it_fits(opened, width):
    view = opened(width)

    def overflow():
        return view.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    assert overflow() == 0
    assert view.get_by_role("columnheader", name="mIoU", exact=True).bounding_box()["x"] < width - 60
    view.get_by_text("Columns", exact=True).click()
    for box in view.locator("#columns input").all():
        box.check()
    open_run(view, "naclip")
    view.locator("summary", has_text="Provenance").click()
    assert overflow() == 0
    sizes = view.locator("td:visible, th:visible, p:visible, li:visible").evaluate_all(
        "nodes => nodes.map(node => parseFloat(getComputedStyle(node).fontSize))"
    )
    assert min(sizes) >= 13
    for image in view.locator("#run img").all()[:4]:
        box = image.bounding_box()
        assert box["width"] > 100
        assert box["x"] + box["width"] <= width


def test_dark_and_light(opened):
    def brightness(view):
        """Of ground and text."""
        script = "name => getComputedStyle(document.body)[name].match(/[0-9.]+/g).slice(0, 3).map(Number)"
        return [np.mean(view.evaluate(script, name)) for name in ("backgroundColor", "color")]

    for scheme, is_dark in (("light", False), ("dark", True)):
        view = opened(color_scheme=scheme)
        ground, text = brightness(view)
        assert (ground < text) == is_dark
        assert abs(ground - text) > 150
        view.get_by_label("Theme").select_option("light" if is_dark else "dark")
        ground, text = brightness(view)
        assert (ground < text) != is_dark
        view.reload()
        assert view.get_by_label("Theme").input_value() == ("light" if is_dark else "dark"), "remembered"
        view.get_by_label("Theme").select_option("as the system")
        assert (brightness(view)[0] < 128) == is_dark
