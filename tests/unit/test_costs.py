"""What the documentation states of measurements: tables by machine, and a paragraph for each method."""

import sys

import pytest

from ovss_bench.bench.view import goal, methods_view, shared_view
from ovss_bench.bench.ways import ALONE, BARE, FILES, METHOD
from pages import ROOT


def result(ratio, **more):
    times = {"seconds": {METHOD: [ratio], BARE: [1.0]}, "processor_seconds": {METHOD: [ratio], BARE: [1.0]}}
    spread = {METHOD: {"median": ratio, "least": ratio, "most": ratio}, BARE: {"median": 1.0, "least": 1.0, "most": 1.0}}
    case = {"method": True, "height": 512, "width": 683, "images": 1}
    found = {
        "case": case,
        "ratios": spread,
        "processor_ratios": spread,
        "agreement": {},
        "stages": {"encode": 1.0},
        "threads": 2,
    }
    return found | times | {"load": [0, 0], "memory_mib": {"before": 1, "peak": 1234}} | more


@pytest.fixture
def costs(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs"), *sys.path])
    import costs

    def measured(**cases):
        files = [{"machine": {}, "cases": cases}]
        monkeypatch.setattr(costs, "speed", lambda: files)
        monkeypatch.setattr(costs, "measured_case", lambda name: cases.get(name))
        return costs

    return measured


def test_the_table_says_which_goals_are_missed_and_which_functions_are_slowest():
    operations = {"ops/pamr.py pamr": 0.31, "ops/compose.py compose": 0.4}
    text = methods_view({"resclip": result(1.6, operations=operations), "naclip": result(1.05), "lavg": result(3.0)})
    lavg, naclip, resclip = (line.replace("\\", "") for line in text.strip().splitlines()[2:])
    assert "1.3, missed" in resclip
    assert "ops/compose.py compose 40 %, ops/pamr.py pamr 31 %" in resclip
    assert "| 1.1 |" in naclip
    assert "missed" not in naclip + lavg
    assert "1234" in lavg


def test_methods_that_change_the_last_block_only_have_a_goal_of_their_own():
    assert {name: goal(name) for name in ("clip", "sclip", "cliptrase", "pearl", "lavg", "proxyclip:given", "unknown")} == {
        "clip": 1.1, "sclip": 1.1, "cliptrase": 1.3, "pearl": None, "lavg": None, "proxyclip:given": 1.3, "unknown": None
    }  # fmt: skip


def test_runs_one_by_one_are_compared_with_one_run():
    times = {BARE: [1.0], FILES: [5.0], f"clip{ALONE}": [2.0], f"gem{ALONE}": [6.0], "ours, in memory": [4.0]}
    rows = [line.strip("| ").split(" | ") for line in shared_view({"processor_seconds": times}).strip().splitlines()[2:]]
    assert rows == [["clip", "1.00"], ["gem", "3.00"], ["all in one run", "2.50"], ["sum of separate runs", "4.00"]]


def test_a_page_states_cost_memory_and_the_largest_operation(costs):
    counted = {"clip_windows": 6, "other_passes": 1}
    text = costs(gem=result(1.25, operations={"ops/attention.py attend": 0.125}, counts=counted)).cost("gem")
    assert text.startswith("1.25 times the bare encoder passes that it needs, 6 of CLIP and 1 of other networks, on 512 × 683")
    assert "`ops/attention.py attend` takes the most time (12% of the total)" in text
    assert "448 × 598 pixels: 1234 MiB" in text
    prompts = {"prompts": 150, "skipped": 0.25}
    assert "150 prompts (25% need no masks)" in costs(sam3=result(0.8, counts=prompts)).cost("sam3")


def test_a_page_without_measurement_says_so(costs):
    assert costs().cost("gem").startswith("Not measured yet.")
    assert "No measurement is stored" in costs().shared_table()
    assert "No measurement is stored" in costs().prompts_table()
