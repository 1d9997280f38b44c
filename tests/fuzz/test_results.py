"""Modified result files and counts."""

import copy
import json
import shutil
import warnings

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

import ovss_bench as ob
from fuzz.common import VALUES, damaged, inputs, outcome
from ovss_bench.reports.compare import compare_paths
from ovss_bench.reports.compare_view import lines_of
from ovss_bench.reports.csv import csv
from ovss_bench.reports.html import write_html
from ovss_bench.reports.latex import latex
from ovss_bench.reports.markdown import markdown
from ovss_bench.reports.report import interval_of, make_report
from ovss_bench.reports.reproduced import compare_with_published
from ovss_bench.reports.results import write_results
from ovss_bench.reports.terminal import terminal
from ovss_bench.runs.evaluate import make_job, run_jobs
from ovss_bench.runs.load import frame_of, load_results, read_results, result_paths
from ovss_bench.runs.schema import VERSION, schema, validate_result
from ovss_bench.runs.store import read_counts, read_result

# Text that breaks files and terminals, or that a language of tables could take for its own, and numbers that no format holds.
NASTY = st.sampled_from(
    ["\ud800", "\udc80", "[/red]", "[link=x]", "</script>", "|", "\x1b[31m", float("nan"), 10**400, -1e308, 2**53 + 1]
)

FAST = {"resize": "none", "window": 48, "stride": 48}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The path of a result of two scenes."""
    folder = tmp_path_factory.mktemp("results")
    job = make_job("clip", ob.load_clip("demo"), ob.load_dataset("demo"), overrides=FAST)
    run_jobs([job], limit=2, output=folder, quiet=True)
    return result_paths(folder)[0]


@st.composite
def changed(draw, content):
    """A copy in which single values are replaced, removed or added."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        part, depth = content, draw(st.integers(0, 4))
        while depth and (keys := list(part if isinstance(part, dict) else range(len(part)))):
            inner = part[draw(st.sampled_from(keys))]
            if not isinstance(inner, dict | list) or not inner:
                break
            part, depth = inner, depth - 1
        keys = list(part if isinstance(part, dict) else range(len(part)))
        key = draw(st.sampled_from(keys)) if keys else None
        kind = draw(st.sampled_from(["replace", "remove", "add"]))
        if kind == "replace" and keys:
            part[key] = draw(NASTY | VALUES)
        elif kind == "remove" and keys:
            del part[key]
        elif isinstance(part, dict):
            part[draw(NASTY.filter(lambda key: isinstance(key, str)) | st.text(max_size=4))] = draw(NASTY | VALUES)
    return content


@st.composite
def reworded(draw, content):
    """A copy that still matches the schema, with some texts and names replaced."""
    content = copy.deepcopy(content)
    texts = NASTY.filter(lambda text: isinstance(text, str) and text.isascii()) | st.text(
        st.characters(codec="utf-8"), max_size=8
    )
    for _ in range(draw(st.integers(1, 4))):
        key = draw(st.sampled_from(["segmentor", "clip", "dataset", "protocol", "class", "overridden", "failed"]))
        if key == "class":
            draw(st.sampled_from(content["per_class"]))["class"] = draw(texts)
        elif key == "overridden":
            content[key][draw(texts)] = draw(texts | st.integers(0, 9))
        elif key == "failed":
            content["images"]["failed"][draw(texts)] = draw(texts)
        else:
            content[key] = draw(texts)
    return content


def show(path):
    """Everything derived from a result: tables in all formats, the page, comparisons."""
    results, _ = read_results(path.parent)
    report = make_report(results, published=True, interval=interval_of)
    folder = path.parent / "shown"
    texts = [markdown(report), csv(report), latex(report, "fuzzed"), frame_of(results).to_csv()]
    with (folder.with_suffix(".txt")).open("w", encoding="utf-8") as file:
        Console(file=file, markup=False).print(terminal(write_results(list(results.values()), folder)))
        file.writelines(texts)
    write_html(path.parent, folder / "report.html", partial=True, images=1)
    compared = compare_paths(path, path)
    json.dumps([lines_of(comparison) for comparison in compared], ensure_ascii=False).encode("utf-8", "backslashreplace")
    outcome(compare_with_published, path)  # nothing is published of the demo


def read(path):
    """Read as in the tools: one file, and a data frame."""
    found = outcome(read_result, path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        frame = outcome(load_results, path.parent, partial=True)
    if isinstance(found, ob.OvssError):
        assert path.name in str(found)
        assert told
        assert frame.empty
    else:
        outcome(show, path)
        assert found["schema_version"] == VERSION
        assert validate_result(found, "it") == found
        assert len(frame) == 1
        known = found["metrics"].get("mIoU")
        assert known is None or frame["mIoU"][0] == known
    return found


@inputs(0.1)
@given(draw=st.data())
def test_changed_results(result, tmp_path_factory, draw):
    known = json.loads(result.read_text())
    path = tmp_path_factory.getbasetemp() / "json" / result.name
    path.parent.mkdir(exist_ok=True)
    shutil.copy(result.with_suffix(".npz"), path.with_suffix(".npz"))
    path.write_text(json.dumps(draw.draw(changed(known) | reworded(known))))
    read(path)


@inputs(0.05)
@given(draw=st.data())
@example(b"[" * 100_000)
@example(b'{"schema_version": ' + b"1" * 5000 + b"}")
@example(b'{"schema_version": 2.0}')
@example(b"\xff\xfe{}")
def test_damaged_results(result, tmp_path_factory, draw):
    path = tmp_path_factory.getbasetemp() / "text" / result.name
    path.parent.mkdir(exist_ok=True)
    shutil.copy(result.with_suffix(".npz"), path.with_suffix(".npz"))
    path.write_bytes(draw if isinstance(draw, bytes) else draw.draw(damaged(result.read_bytes())))
    read(path)


def same(one, other):
    return all(a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a) for a, b in zip(one, other, strict=True))


@inputs(0.15)
@given(draw=st.data())
def test_damaged_counts_are_never_read_as_others(result, tmp_path_factory, draw):
    """Any changed byte gives an error or the original content."""
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    counts = result.with_suffix(".npz")
    path.write_bytes(draw.draw(damaged(counts.read_bytes())))
    found = outcome(read_counts, path)
    if isinstance(found, ob.OvssError):
        assert str(path) in str(found)
    else:
        assert same(found, read_counts(counts))


@inputs(0.03)
@given(draw=st.data())
def test_counts_of_another_form_are_refused(result, tmp_path_factory, draw):
    """Arrays that are missing or have other shapes and types, without a checksum, as in older files."""
    path = tmp_path_factory.getbasetemp() / "other.npz"
    content = dict(np.load(result.with_suffix(".npz")))
    del content["checksum"]
    name = draw.draw(st.sampled_from(sorted(content)))
    other = [
        np.zeros(0),
        np.array(3),
        np.array("x"),
        content[name][:-1] if content[name].ndim else content[name],
        np.ones((2, 2)),
    ]
    replacement = draw.draw(st.sampled_from([None, *range(len(other))]))
    if replacement is None:
        del content[name]
    else:
        content[name] = other[replacement]
    np.savez(path, **content)
    found = outcome(read_counts, path)
    if not isinstance(found, ob.OvssError):
        assert same(found, read_counts(result.with_suffix(".npz")))


def test_the_schema_is_strict_about_everything_that_it_describes():
    """A field without a type could contain anything."""

    def walk(part, where):
        if part.get("type") == "object" or "properties" in part:
            assert "additionalProperties" in part, where
        for key, inner in part.get("properties", {}).items():
            walk(inner, f"{where}.{key}")

    walk(schema(), "result")
