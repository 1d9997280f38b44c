"""Published figures beside ours: levels, and the usual reasons for a gap."""

import hashlib
import json
import re

import pytest

import ovss_bench as ob
from ovss_bench.config.recipe import compose_recipe
from ovss_bench.datasets.config import facts_of, names_path
from ovss_bench.encoders.known_weights import known_weights, open_clip_addresses, stated_digest
from ovss_bench.evaluation.confusion import total
from ovss_bench.evaluation.metrics import metrics
from ovss_bench.files import config_names, load_config
from ovss_bench.reports import reproduced
from ovss_bench.reports.compare import Run
from ovss_bench.reports.compare_view import lines_of
from ovss_bench.reports.reproduced import checklist, compare_with_published, rounding
from ovss_bench.runs.code import known_code, source_digest
from ovss_bench.vocabulary import read_names
from unit.test_bootstrap import by_id, drawn


def published(**values):
    """A result for which a figure is published: naclip with ViT-B/16 on voc21 (64.07)."""
    run = "naclip", "vit_b16", "voc21"
    recipe = compose_recipe(run[0], clip=run[1], dataset=run[2])
    entries, _ = read_names(names_path("voc21", recipe.names))
    words = ob.Vocabulary.from_names(entries, background=0, templates=recipe.templates)
    source = source_digest(*known_code("naclip", "voc21", []))
    result = {
        **dict(zip(("segmentor", "clip", "dataset"), run, strict=True)),
        "protocol": "paper",
        "overridden": {},
        "partial": False,
        "images": {"expected": 1449, "evaluated": 1449, "failed": {}},
        "recipe": json.loads(json.dumps({name: {"value": value, "origin": "x"} for name, value in recipe.values().items()})),
        "per_class": [{"class": entry[0], "true": 1} for entry in entries],
        "weights_digest": "2" * 64,
        "names_digest": words.digest,
        "dataset_fingerprint": "4" * 64,
        "precision": "fp32",
        "sources": {},
        "provenance": {
            "command": "python tools/eval.py",
            "source_digest": source,
            "plugins": {},
        },
    }
    return result | values


def states(result):
    return {what: state for what, state, _ in checklist(result)}


def test_a_run_as_the_recipe_has_it_is_not_suspicious():
    found = states(published())
    assert set(found.values()) == {"ok", "not known"}
    assert {what for what, state in found.items() if state == "not known"} == {"weights", "data set"}


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("scale and threshold", {"recipe": {"threshold": 0.3}}),
        ("scale and threshold", {"recipe": {"logit_scale": 100}}),
        ("resize and windows", {"recipe": {"short_side": 448}}),
        ("refinement", {"recipe": {"pamr_dilations": [1, 2]}}),
        ("names and templates", {"recipe": {"templates": "photo"}}),
        ("encoder", {"recipe": {"activation": "gelu"}}),
        ("other settings", {"recipe": {"sigma": 3.0}}),
        ("texts", {"names_digest": "7" * 64}),
        ("precision", {"precision": "bf16"}),
        ("images", {"images": {"expected": 1449, "evaluated": 1448, "failed": {"x": "unreadable"}}}),
        ("images", {"images": {"expected": 10, "evaluated": 10, "failed": {}}}),
        ("code", {"provenance": {"source_digest": "0" * 64}}),
        ("plug-ins", {"provenance": {"plugins": {"mine.py": "0"}}}),
        ("weights", {"provenance": {"command": "python tools/eval.py clip=vit_b16 weights=my.pt"}}),
        ("weights", {"provenance": {"command": "python tools/eval.py clip=vit_b16:laion2b_s34b_b88k"}}),
        ("classes", {"per_class": {20: {"true": 0}}}),
    ],
    ids=str,
)
def test_the_usual_reasons_for_a_gap_are_found(what, change):
    result = published()
    for name, value in change.items():
        if name == "recipe":
            result["recipe"] |= {key: {"value": item, "origin": "x"} for key, item in value.items()}
        elif name == "per_class":
            for c, item in value.items():
                result["per_class"][c] |= item
        else:
            result[name] = result[name] | value if isinstance(value, dict) else value
    found = states(result)
    assert found[what] == "suspicious"
    others = {key for key, state in found.items() if state == "suspicious"} - {what}
    assert others <= {"texts"}


def test_the_digests_on_record_decide(monkeypatch):
    def config(group, name, load=reproduced.load_config):
        return load(group, name) | {"clip": {"weights_digest": "2" * 64}, "dataset": {"fingerprint": "4" * 64}}[group]

    monkeypatch.setattr(reproduced, "load_config", config)
    found = states(published())
    assert (found["weights"], found["data set"]) == ("ok", "ok")
    found = states(published(weights_digest="5" * 64, dataset_fingerprint="5" * 64))
    assert (found["weights"], found["data set"]) == ("suspicious", "suspicious")


def test_sources_without_a_record_are_named():
    source = {"name": "dino_vitb8", "digest": "8" * 64, "stand_in": False}
    (check,) = [check for check in checklist(published(sources={"vfm": source})) if check[0] == "vfm"]
    assert check[1] == "not known"
    assert "dino_vitb8, digest 888888888888" in check[2]


@pytest.mark.parametrize(("figure", "expected"), [(64.07, 0.005), (64.1, 0.05), (64.0, 0.05), (17.123, 0.0005)])
def test_rounding_is_half_of_the_last_printed_decimal(figure, expected):
    assert rounding(figure) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["voc21", "voc20", "inria", "chase_db1"])
def test_facts_of_data_sets_are_those_of_loaded_ones(name, prepared):
    assert facts_of(name) == ob.load_dataset(name, prepared(name)).facts


@pytest.mark.parametrize(
    ("shift", "level"), [(0.0, "equivalent"), (0.04, "equivalent"), (-30.0, "different"), (0.2, "inconclusive")]
)
def test_ours_is_held_against_the_figure(shift, level, monkeypatch, tmp_path):
    counts = by_id(drawn(6, 30, 21, 12))
    figure = round(100 * metrics(total(counts.values(), 21))["mIoU"], 1) + shift
    path = tmp_path / "naclip-0123456789ab.json"
    path.touch()
    figures = [
        {"miou": miou, "metric": "mIoU", "method": "naclip", "variant": "v", "source": s, "second_hand": second}
        for miou, s, second in ((figure, "README", False), (1.5, "a listing", True), (figure, "the same", True))
    ]
    run = Run(path, published(metrics={"mIoU": 5.0}), counts, {})
    monkeypatch.setattr(reproduced, "read_run", lambda _: run)
    monkeypatch.setattr(reproduced, "compare_published", lambda _: {"figures": figures, "why_not": None})
    ((found,), without) = compare_with_published(path, 0.1)
    assert (found["level"], without) == (level, [])
    difference = found["difference"]
    assert difference["low"] < difference["value"] < difference["high"]
    text = "\n".join(lines_of(found))
    assert "(v; README)" in text
    assert "also published: 1.5 (a listing)" in text
    assert "the same" not in text
    assert "ok          names and templates: names sclip, templates imagenet80" in text


@pytest.mark.parametrize(("shift", "says"), [(0.0, "inside"), (-30.0, "outside")])
def test_a_part_of_the_images_is_held_against_the_interval(shift, says, monkeypatch, tmp_path):
    counts = by_id(drawn(6, 30, 21, 12))
    ours = round(100 * metrics(total(counts.values(), 21))["mIoU"], 1)
    path = tmp_path / "naclip-0123456789ab.json"
    path.touch()
    figure = {"miou": ours + shift, "metric": "mIoU", "method": "naclip", "variant": "v", "source": "s", "second_hand": False}
    result = published(partial=True, images={"expected": 1449, "evaluated": 30, "failed": {}}, metrics={"mIoU": ours})
    monkeypatch.setattr(reproduced, "read_run", lambda _: Run(path, result, counts, {}))
    actual = reproduced.compare_published(result)
    assert (actual["figures"][0]["miou"], actual["why_not"]) == (64.07, "partial: 30 of 1449 images")
    monkeypatch.setattr(reproduced, "compare_published", lambda _: actual | {"figures": [figure]})
    ((found,), without) = compare_with_published(path, 0.1)
    assert (found["level"], without) == ({"inside": "inconclusive", "outside": "different"}[says], [])
    text = "\n".join(lines_of(found))
    assert "naclip (partial) with vit_b16 on voc21" in text
    assert "not the published run: partial: 30 of 1449 images" in text
    assert f"the published figure lies {says} our interval" in text
    assert "suspicious  images: 30 of 1449" in text


def test_weights_are_known_by_the_digest_of_their_file(tmp_path):
    stated = {name: stated_digest(url) for name, url in open_clip_addresses().items()}
    assert stated["ViT-B-16:openai"].startswith("5806e77cd80f8b59")
    openai = [name for name in config_names("clip") if load_config("clip", name)["pretrained"] == "openai"]
    for name in openai:
        assert len(stated[f"{load_config('clip', name)['architecture']}:openai"]) == 64, name
    assert all(re.fullmatch("|[0-9a-f]{8}|[0-9a-f]{64}", digest) for digest in stated.values())
    (tmp_path / "x.pt").write_bytes(b"weights")
    whole = hashlib.sha256(b"weights").hexdigest()
    addresses = {
        "A:openai": f"https://openaipublic.azureedge.net/clip/models/{whole}/A.pt",
        "B:laion": f"https://github.com/mlfoundations/open_clip/releases/b_16-laion-{whole[:8]}.pt",
        "C:other": f"https://example.org/{whole}/c-{whole[:8]}.pt",
        "D:openai": f"https://openaipublic.azureedge.net/clip/models/{whole[::-1]}/D.pt",
    }
    assert known_weights(tmp_path / "x.pt", addresses) == ["A:openai", "B:laion"]
    assert known_weights(tmp_path / "x.pt") == []


def test_known_weights_are_not_asked_about():
    given = published()["provenance"] | {"command": "python tools/eval.py clip=vit_b16 weights=my.pt"}
    (check,) = [check for check in checklist(published(provenance=given)) if check[0] == "weights"]
    assert check[1] == "suspicious"
    assert "the SHA-256 of weights=my.pt is not on record" in check[2]
    known = given | {"weights_known": ["ViT-B-16:openai"]}
    (check,) = [check for check in checklist(published(provenance=known)) if check[0] == "weights"]
    assert check[1:] == ("ok", "the file has the SHA-256 of ViT-B-16:openai")
