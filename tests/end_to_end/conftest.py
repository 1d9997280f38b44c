"""An HTML page, which its tests open as a file and in a browser."""

import json

import pytest

import ovss_bench as ob
from end_to_end.pages import FAST, write_own
from ovss_bench.reports.html import write_html
from ovss_bench.runs.evaluate import Runtime, make_job, run_jobs


@pytest.fixture(scope="session")
def page_data(tmp_path_factory):
    return write_own(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def page_results(tmp_path_factory, page_data):
    """Three runs with label maps, one of them said to be published, one without, and a partial one."""
    folder, clip = tmp_path_factory.mktemp("results"), ob.load_clip("demo")
    own, demo = ob.load_dataset(page_data), ob.load_dataset("demo")
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


@pytest.fixture(scope="session")
def page(tmp_path_factory, page_results, page_data):
    return write_html(page_results, tmp_path_factory.mktemp("page") / "report.html", datasets=[page_data], partial=True)
