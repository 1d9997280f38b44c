"""Every data set of configs/dataset, on its miniature: prepared from the official archives, read, and measured."""

import warnings

import mmseg.datasets
import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.evaluation import IoUMetric
from mmseg.registry import DATASETS as MMSEG
from mmseg.structures import SegDataSample

import ovss_bench as ob
from end_to_end.tools import evaluate_here, results
from miniatures import MINIATURES
from ovss_bench.datasets.check.run import check
from ovss_bench.datasets.config import dataset_config
from ovss_bench.datasets.prepare.run import prepare
from ovss_bench.evaluation.confusion import confusion, total
from ovss_bench.evaluation.metrics import areas, metrics
from ovss_bench.files import config_names
from ovss_bench.reports.datasets import class_count

NAMES = [name for name in config_names("dataset") if dataset_config(name)[1].get("loader") != "demo"]


@pytest.fixture(params=NAMES)
def dataset(request, prepared):
    return ob.load_dataset(request.param, prepared(request.param))


def test_every_data_set_has_a_miniature():
    assert sorted(MINIATURES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_says_what_users_ask(name):
    _, config, _ = dataset_config(name)
    assert {"full_name", "licence", "link", "folders", "images", "labels", "image_suffix", "label_suffix"} <= set(config)
    assert config.get("background") is None or config["background"] >= 0


def test_a_miniature_has_a_few_images_and_many_classes(dataset):
    assert 3 <= len(dataset.samples) <= 12
    values = set()
    for sample in dataset.samples:
        image = dataset.image(sample)
        label = dataset.label(sample, image.shape[:2])
        values |= set(np.unique(label).tolist())
    assert len(values - {dataset.ignore_index}) >= min(len(dataset.classes), 3), values


def test_preparing_again_changes_nothing(dataset, prepared):
    def times():
        return {path: path.stat().st_mtime_ns for path in dataset.root.rglob("*") if path.is_file() and path.name != ".lock"}

    before = times()
    if "prepare" in dataset.config:
        prepare(dataset.name, prepared(dataset.name), quiet=True)
    assert times() == before


def theirs(dataset):
    """The data set in mmseg's class, or in that for all."""
    config, options = dataset.config, {}
    if "classes" in config:
        options["metainfo"] = {"classes": config["classes"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MMSEG.get(config.get("mmseg", mmseg.datasets.BaseSegDataset.__name__))(
            ann_file=config.get("ids", ""),
            data_root=str(dataset.root),
            data_prefix={"img_path": config["images"], "seg_map_path": config["labels"]},
            img_suffix=config["image_suffix"],
            seg_map_suffix=config["label_suffix"],
            reduce_zero_label=config.get("reduce_zero_label", False),
            pipeline=[],
            serialize_data=False,
            **options,
        )


def test_classes_and_images_are_those_of_mmseg(dataset):
    other = theirs(dataset)
    assert tuple(name.strip() for name in other.metainfo["classes"]) == dataset.classes
    assert [info["img_path"] for info in other.data_list] == [str(sample.image_path) for sample in dataset.listed]
    if "palette" not in dataset.config:
        assert [list(colour) for colour in other.metainfo["palette"]] == dataset.palette
    if dataset.config.get("loader") != "coco_2014":  # whose labels have other names than the images
        assert [info["seg_map_path"] for info in other.data_list] == [str(sample.label_path) for sample in dataset.listed]
    assert class_count(dataset.name) == len(dataset.classes)


def test_labels_are_those_of_mmseg(dataset):
    """Through its own annotation loader; it reads 8 bits only."""
    if dataset.ignore_index > 255:
        pytest.skip("16-bit labels, which mmseg's loader folds into 8")
    other = theirs(dataset)
    load = LoadAnnotations(reduce_zero_label=None, imdecode_backend="pillow")
    infos = {info["img_path"]: info for info in map(other.get_data_info, range(len(other)))}
    for sample in dataset.samples:
        info = infos[str(sample.image_path)] | {"seg_map_path": str(sample.label_path), "seg_fields": []}
        assert np.array_equal(load(info)["gt_seg_map"], dataset.label(sample)), sample


@pytest.fixture(scope="module")
def oracle():
    """A segmentor that knows the labels: `oracle(dataset)`."""
    labels = {}

    @ob.SEGMENTORS.register_module(name="oracle")
    class Oracle(ob.Segmentor):
        def image_scores(self, scene):
            return torch.zeros(1, 1, 1)

        def decide(self, scores, scene):
            return labels[ob.image_key(scene.original)]

    clip = ob.load_clip("demo")

    def of(dataset):
        for sample in dataset.samples:
            label = dataset.label(sample)
            known = np.where(label == dataset.ignore_index, 0, label).astype(np.int64)
            labels[ob.image_key(dataset.image(sample))] = torch.from_numpy(known)
        features = torch.eye(len(dataset.classes), clip.model.visual.proj.shape[1])
        vocabulary = ob.Vocabulary.from_features(features + 0.1, background=dataset.background)
        return ob.build_segmentor("oracle", clip=clip, vocabulary=vocabulary)

    yield of
    ob.SEGMENTORS.module_dict.pop("oracle")


def test_an_oracle_gets_exactly_100(dataset, oracle):
    result = ob.evaluate(oracle(dataset), dataset)
    left_out = {"mIoU_cliper", "mAcc_cliper", "mIoU_cliptrase", "mIoU_quirk255"}  # below 100 by definition
    assert {name: value for name, value in result.metrics.items() if name not in left_out and value != 100.0} == {}
    assert result.metrics["mIoU_cliper"] > 99.99
    assert result.data["images"]["failed"] == {}


def test_counts_are_those_of_mmsegs_metric(dataset):
    """From label maps of a fixed seed, with the data set's settings."""
    rng = np.random.RandomState(0)
    count, ignored = len(dataset.classes), dataset.ignore_index
    metric = IoUMetric(ignore_index=ignored)
    metric.dataset_meta = {"classes": dataset.classes}
    records = []
    for sample in dataset.samples:
        label = dataset.label(sample)
        prediction = np.where(
            rng.rand(*label.shape) < 0.6, np.where(label == ignored, 0, label), rng.randint(0, count, label.shape)
        )
        data = SegDataSample(
            gt_sem_seg=PixelData(data=torch.from_numpy(label)[None].long()),
            pred_sem_seg=PixelData(data=torch.from_numpy(prediction)[None].long()),
        )
        metric.process({}, [data.to_dict()])
        records.append(confusion(label, prediction, count, ignored))
    theirs = [sum(part).numpy() for part in zip(*metric.results, strict=True)]
    matrix = total(records, count)
    correct, predicted, true = areas(matrix)
    for ours, other in zip((correct, predicted + true - correct, predicted, true), theirs, strict=True):
        assert np.array_equal(ours, other)
    values = metrics(matrix, dataset.facts)
    for name, value in metric.compute_metrics(metric.results).items():
        assert round(100 * values[name], 2) == pytest.approx(value, abs=1e-9)


def test_check_finds_nothing_wrong(dataset, prepared):
    report = check(dataset.name, prepared(dataset.name), workers=1, quiet=True)
    assert [finding for finding in report.findings if finding.kind != "number of images"] == []


def test_the_tool_evaluates_them_all_at_once(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        root = prepared(name)
    fast = [
        "recipe.resize=square",
        "recipe.short_side=64",
        "recipe.window=whole",
        "recipe.templates=photo",
        "recipe.threshold=0",
    ]
    assert evaluate_here("segmentor=clip", f"dataset=[{','.join(NAMES)}]", f"data_root={root}", *fast) == 0
    found = results(tmp_path)
    assert sorted(found) == [f"clip/{name}" for name in NAMES]
    for result in found.values():
        assert result["images"]["evaluated"] >= 3
        assert 0 <= result["metrics"]["mIoU"] <= 100
        assert result["published"]["why_not"]
