"""The files of published figures: what they must hold, and what is refused."""

import csv

import pytest

from ovss_bench.errors import OvssError
from ovss_bench.evaluation.metrics import RULES
from ovss_bench.files import PUBLISHED
from ovss_bench.runs.published import (
    COLUMNS,
    load_figures,
    parse_overrides,
    published_figures,
)

GOOD = {
    "method": "naclip",
    "variant": "default",
    "backbone": "ViT-B-16",
    "pretrained": "openai",
    "extra_model": "",
    "dataset": "voc21",
    "miou": "58.9",
    "postprocess": "none",
    "source": "README",
    "table": "Table 1",
    "second_hand": "no",
    "metric": "mIoU",
    "segmentor": "naclip",
    "clip": "vit_b16",
    "overrides": "pamr_steps=0",
}


def write(folder, *rows, columns=COLUMNS):
    with (folder / "naclip.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([row.values() for row in rows])
    return folder


def test_all_files_are_in_order():
    figures = published_figures()
    assert len(figures) == sum(len(path.read_text().splitlines()) - 1 for path in PUBLISHED.glob("*.csv"))
    assert len(figures) > 800
    assert figures["miou"].between(0, 100).all()
    assert not (figures[["method", "dataset", "source", "table", "metric"]] == "").any().any()
    assert set(figures["metric"]) <= set(RULES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"miou": "101"}, "miou=101.0: expected a percentage"),
        ({"miou": "-1"}, "0 to 100"),
        ({"miou": "0.5x"}, "miou='0.5x': expected a percentage"),
        ({"miou": ""}, "miou='': expected a percentage"),
        ({"miou": "nan"}, "miou=nan: expected a percentage"),
        ({"dataset": "voc2l"}, r"unknown value of dataset 'voc2l'.*voc21"),
        ({"metric": "mIoU_clipper"}, r"unknown value of metric 'mIoU_clipper'.*mIoU_cliper"),
        ({"second_hand": "maybe"}, "unknown value of second_hand 'maybe'"),
        ({"segmentor": "naclipp"}, r"unknown value of segmentor 'naclipp'.*naclip"),
        ({"clip": "vit_b61"}, r"unknown value of clip 'vit_b61'.*vit_b16"),
        ({"clip": "vit_l14"}, "clip vit_l14 is not ViT-B-16 with the weights openai"),
        ({"clip": "vit_b16", "pretrained": "laion2b_s34b_b88k"}, "clip vit_b16 is not ViT-B-16 with the weights laion2b"),
        ({"clip": ""}, "segmentor naclip needs a clip"),
        ({"dataset": "coco_stuff27"}, "segmentor naclip needs a clip, and a data set that can be evaluated"),
        ({"segmentor": ""}, "overrides need a segmentor"),
        ({"overrides": "pamr_step=0"}, r"'pamr_step'.*pamr_steps"),
        ({"overrides": "pamr_steps=few"}, "pamr_steps='few'"),
        ({"overrides": "pamr_steps"}, "expected name=value"),
        ({"overrides": "pamr_steps=0;"}, "expected name=value"),
        ({"overrides": "pamr_dilations=[8"}, "YAML"),
        ({"source": ""}, "source=.*: expected a text that is not empty"),
        ({"table": " "}, "table=.*: expected a text that is not empty"),
        ({"method": ""}, "method=.*: expected a text that is not empty"),
    ],
)
def test_what_cannot_be_right_is_refused_with_file_and_line(change, message, tmp_path):
    other = GOOD | {"dataset": "voc20"}
    with pytest.raises(OvssError, match=rf"naclip\.csv, line 3: .*{message}"):
        load_figures(write(tmp_path, other, GOOD | change))


def test_unknown_missing_and_reordered_columns_are_refused(tmp_path):
    for columns in ((*COLUMNS[:-1], "override"), COLUMNS[:-1], COLUMNS[::-1]):
        with pytest.raises(OvssError, match=r"naclip\.csv, line 1: expected the columns method, .*overrides; differing"):
            load_figures(write(tmp_path, columns=columns))


def test_rows_of_another_length_are_refused(tmp_path):
    with pytest.raises(OvssError, match=r"naclip\.csv, line 2: expected 15 values"):
        load_figures(write(tmp_path, GOOD | {"more": "x"}))
    with pytest.raises(OvssError, match=r"naclip\.csv, line 2: expected 15 values"):
        load_figures(write(tmp_path, {name: value for name, value in GOOD.items() if name != "overrides"}))


def test_the_same_cell_of_the_same_source_twice_is_refused(tmp_path):
    with pytest.raises(OvssError, match=r"line 3: the same figure as in .*line 2"):
        load_figures(write(tmp_path, GOOD, GOOD | {"miou": "59.0"}))
    assert len(load_figures(write(tmp_path, GOOD, GOOD | {"source": "another paper", "miou": "59.0"}))) == 2


def test_overrides_are_yaml():
    text = "pamr_steps=0;diffusion=null;window=whole;residual=false;pamr_dilations=[8, 16];bkg_thre=0.2"
    values = {
        "pamr_steps": 0,
        "diffusion": None,
        "window": "whole",
        "residual": False,
        "pamr_dilations": [8, 16],
        "bkg_thre": 0.2,
    }
    assert parse_overrides(text) == values
    assert parse_overrides("") == {}
