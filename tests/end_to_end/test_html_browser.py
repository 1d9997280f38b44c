"""The HTML page: what a reader can do with it in a real browser."""

import json
import shutil

import numpy as np
import pytest

from end_to_end.pages import CLASSES, IDS, SCRIPT
from ovss_bench.reports.html import write_html
from pages import ROOT


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


def test_a_run_opens(opened, page_results):
    view = opened()
    open_run(view, "naclip")
    assert "Table 1" in view.locator("#run").inner_text()
    classes = view.get_by_role("region", name="Classes")
    assert classes.locator("tbody tr").count() == len(CLASSES)
    assert classes.locator(".bar i").count() == len(CLASSES)
    result = json.loads(next(page_results.rglob("naclip-*.json")).read_text())
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


def test_a_title_stays_text(opened, page_results, tmp_path):
    path = write_html(page_results, tmp_path / "titled.html", title=f"{{{{ data }}}} {SCRIPT} & more")
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
        view.get_by_label("Theme").select_option("system")
        assert (brightness(view)[0] < 128) == is_dark


def test_tables_of_the_site_sort(opened, tmp_path):
    """docs/sort.js, on a table as mkdocs writes it."""
    rows = [("SCLIP", "9.5"), ("CLIP", ""), ("naclip", "10.0"), ("GEM", "9.5")]
    body = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows)
    head = "<thead><tr><th>method</th><th>demo</th></tr></thead>"
    script = (ROOT / "docs" / "sort.js").read_text()
    page = tmp_path / "page.html"
    page.write_text(f"<article><table>{head}<tbody>{body}</tbody></table></article><script>{script}</script>")
    view = opened(path=page)

    def clicked(name):
        view.get_by_role("columnheader", name=name).click()
        return view.locator("td:first-child").all_inner_texts()

    assert clicked("demo") == ["SCLIP", "GEM", "naclip", "CLIP"]
    assert clicked("demo") == ["naclip", "SCLIP", "GEM", "CLIP"]
    assert clicked("method") == ["CLIP", "GEM", "naclip", "SCLIP"]
    assert clicked("demo") == ["GEM", "SCLIP", "naclip", "CLIP"]
