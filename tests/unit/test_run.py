"""What a run does with several data sets and segmentors: shared passes, filters, faults of one that leave others alone."""

import shutil

import numpy as np
import pytest
from PIL import Image

import ovss_bench as ob
from miniatures.voc import write_voc
from ovss_bench.auxiliary.sources import FeatureCache
from ovss_bench.datasets.suites import Average, expand, load_suite, mean_of
from ovss_bench.evaluation.boundary import boundary_total, mean_boundary_iou
from ovss_bench.evaluation.confusion import total
from ovss_bench.files import config_names
from ovss_bench.runs.evaluate import make_job, run_jobs
from ovss_bench.runs.store import RunStore, read_counts

FAST = {"resize": "none", "window": 48, "stride": 48, "pamr_steps": 0}


@pytest.fixture
def passes(monkeypatch):
    """The number of windows of each pass of the trunk."""
    seen, trunk = [], ob.DenseCLIP.trunk
    monkeypatch.setattr(
        ob.DenseCLIP,
        "trunk",
        lambda self, pixels, *args, **options: seen.append(len(pixels)) or trunk(self, pixels, *args, **options),
    )
    return seen


def run(jobs, **options):
    return run_jobs(jobs, quiet=True, **options)


def jobs_of(names, datasets, **recipe):
    clip = ob.load_clip("demo")
    return [make_job(name, clip, dataset, overrides=FAST | recipe) for dataset in datasets for name in names]


def test_two_class_sets_of_the_same_images_share_one_pass(voc, passes):
    both = [ob.load_dataset(name, voc) for name in ("voc21", "voc20")]
    alone = run(jobs_of(["sclip", "naclip"], both[:1])) + run(jobs_of(["sclip", "naclip"], both[1:]))
    windows = sum(passes)
    passes.clear()
    together = run(jobs_of(["sclip", "naclip"], both))
    assert sum(passes) == windows / 2
    assert [result.metrics for result in together] == [result.metrics for result in alone]
    assert [len(result.data["per_class"]) for result in together] == [21, 21, 20, 20]
    assert [result.data["fingerprint"] for result in together] == [result.data["fingerprint"] for result in alone]


def test_other_images_or_recipes_do_not_share(voc, passes, tmp_path):
    write_voc(tmp_path, images=10, seed=1)
    here, there = ob.load_dataset("voc21", voc), ob.load_dataset("voc20", tmp_path)
    assert len(run(jobs_of(["sclip"], [here, there]))) == 2
    separate = len(passes)
    passes.clear()
    run(jobs_of(["sclip"], [here]) + jobs_of(["sclip"], [here], window=56))
    assert len(passes) >= separate
    assert here.images_digest != there.images_digest


def test_a_shared_pass_goes_on_where_each_of_its_runs_stopped(voc, tmp_path, passes):
    both = [ob.load_dataset(name, voc) for name in ("voc21", "voc20")]
    first = run(jobs_of(["sclip"], both[:1]), output=tmp_path)
    passes.clear()
    again = run(jobs_of(["sclip"], both), output=tmp_path)
    assert passes
    assert again[0].metrics == first[0].metrics
    assert again[0].path == first[0].path
    assert len(again[1].data["per_class"]) == 20


def test_images_with_too_little_foreground_do_not_count(voc, tmp_path):
    dataset = ob.load_dataset("voc21", voc)
    truths = {sample.id: dataset.label(sample) for sample in dataset.samples}
    objects = {name: int(((truth > 0) & (truth < 255)).sum()) for name, truth in truths.items()}
    limit = sorted(objects.values())[5]
    kept = [name for name, count in objects.items() if count >= limit]

    def counts(limit=0, **options):
        (result,) = run(jobs_of(["sclip"], [dataset], min_foreground=limit), output=tmp_path, rerun=True, **options)
        matrix = total(read_counts(result.path.with_suffix(".npz"))[0].values(), 21)
        return [(row["correct"], row["predicted"], row["true"]) for row in result.data["per_class"]], matrix.tolist()

    assert counts(limit) == counts(ids=kept) != counts()


@pytest.mark.parametrize("change", ["reduce_zero_label: true", "ignore_index: 7", "object: 1", "unseen: [1]"])
def test_other_rules_of_the_labels_are_another_run(change, voc, tmp_path):
    lines = (
        f"images: {voc}/VOCdevkit/VOC2012/JPEGImages\nlabels: {voc}/VOCdevkit/VOC2012/SegmentationClass\nimage_suffix: .jpg\n"
    )
    digests = []
    for more in ("", change):
        (tmp_path / "mine.yaml").write_text(f"{lines}label_suffix: .png\nclasses: [a, b]\n{more}\n")
        digests.append(ob.load_dataset(tmp_path / "mine.yaml").fingerprint)
    assert digests[0] != digests[1]


def test_an_image_is_named_once(voc):
    dataset = ob.load_dataset("voc21", voc)
    name = dataset.samples[1].id
    with pytest.raises(ob.OvssError, match=f"{name} is named twice"):
        dataset.select(ids=[dataset.samples[0].id, name, name])


def test_a_precision_that_clip_does_not_have_is_an_error(tiny_clip, voc):
    dataset = ob.load_dataset("voc21", voc)
    with pytest.raises(ob.OvssError, match=r"precision=fp16 \(from .*\), but the CLIP was loaded in fp32"):
        make_job("sclip", tiny_clip, dataset, overrides={"precision": "fp16"})


def test_a_result_with_failed_images_is_done_only_for_those_who_leave_them_out(voc, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(voc, root)
    path = sorted(root.rglob("JPEGImages/*.jpg"))[1]
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    lenient = {"output": tmp_path / "runs", "runtime": ob.Runtime(skip_bad_images=True)}
    (first,) = run(jobs_of(["sclip"], [ob.load_dataset("voc21", root)]), **lenient)
    (again,) = run(jobs_of(["sclip"], [ob.load_dataset("voc21", root)]), **lenient)
    assert again.data["timing"] == first.data["timing"]  # not made again
    assert first.data["images"]["evaluated"] == 9
    with pytest.raises(ob.OvssError, match="1 of 10 images could not be evaluated"):
        run(jobs_of(["sclip"], [ob.load_dataset("voc21", root)]), output=tmp_path / "runs")


def test_a_source_without_a_digest_leaves_no_results(voc, tmp_path):
    dataset, clip = ob.load_dataset("voc21", voc), ob.load_clip("demo")
    vocabulary = dataset.vocabulary(None, "photo")
    segmentor = ob.build_segmentor("proxyclip", clip=clip, vocabulary=vocabulary, vfm=lambda batch: batch.pixels, **FAST)
    with pytest.raises(ob.OvssError, match="vfm is an object without a `digest`"):
        ob.evaluate(segmentor, dataset, limit=1, output=tmp_path)
    assert ob.evaluate(segmentor, dataset, limit=1).data["images"]["evaluated"] == 1


def test_a_run_that_goes_on_with_maps_makes_those_of_all_images(voc, tmp_path, monkeypatch):
    dataset, kept = ob.load_dataset("voc21", voc), tmp_path / "kept"

    def stop(store, *_):
        shutil.copytree(tmp_path / "runs", kept)
        raise ob.OvssError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(RunStore, "finish", stop)
        with pytest.raises(ob.OvssError, match="stopped"):
            run(jobs_of(["sclip"], [dataset]), output=tmp_path / "runs")
    (result,) = run(jobs_of(["sclip"], [dataset]), output=kept, runtime=ob.Runtime(maps=True))
    assert len(list(result.path.with_suffix(".maps").glob("*.png"))) == 10


def test_a_damaged_file_of_the_feature_cache_is_made_again(tmp_path):
    cache, image = FeatureCache(tmp_path), np.zeros((4, 5, 3), np.uint8)
    assert cache("maker", image, lambda: np.arange(3)).tolist() == [0, 1, 2]
    assert cache("maker", image, lambda: np.arange(9)).tolist() == [0, 1, 2]
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="is damaged"):
        assert cache("maker", image, lambda: np.arange(4)).tolist() == [0, 1, 2, 3]
    assert cache("maker", image, lambda: np.arange(9)).tolist() == [0, 1, 2, 3]


def test_objects_outside_of_the_centre_crop_do_not_make_an_image_count(voc):
    dataset = ob.load_dataset("voc21", voc)
    label = np.zeros((40, 80), np.uint8)
    label[5:20, :10] = 3
    cropped = dataset.scored(label, (40, 40), "center_crop", 0)
    assert cropped.shape == (40, 40)
    assert not cropped.any()
    assert dataset.scored(label, (40, 40), "center_crop", 1) is None
    assert np.array_equal(dataset.scored(label, (40, 80), "keep_ratio", 150), label)
    assert dataset.scored(label, (40, 80), "keep_ratio", 151) is None
    label[20, 50] = 255
    assert dataset.scored(label, (40, 40), "center_crop", 1) is None
    label[20, 50] = 7
    assert dataset.scored(label, (40, 40), "center_crop", 1).max() == 7


def test_boundary_iou_is_measured_on_request_and_kept_with_the_counts(voc, tmp_path):
    dataset = ob.load_dataset("voc21", voc)
    options = {"output": tmp_path, "runtime": ob.Runtime(boundary=True), "limit": 3}
    (plain,) = run(jobs_of(["sclip"], [dataset]), output=tmp_path, limit=3)
    (result,) = run(jobs_of(["sclip"], [dataset]), **options)
    assert "mBoundaryIoU" not in plain.metrics
    assert result.path != plain.path
    measured = result.metrics["mBoundaryIoU"]
    assert 0 < measured < result.metrics["mIoU"]
    counts, _, edges = read_counts(result.path.with_suffix(".npz"))
    assert list(edges) == list(counts)
    assert round(100 * mean_boundary_iou(boundary_total(edges.values(), 21)), 8) == measured
    (again,) = run(jobs_of(["sclip"], [dataset]), **options)
    assert again.metrics == result.metrics


def test_images_without_enough_foreground_are_left_out_where_the_official_codes_do_so():
    recipes = {
        ("clip_diy", "voc21", "paper"): 0,
        ("clip_diy", "coco_object", "paper"): 1000,
        ("clip_diy", "coco_object", "unified"): 0,
        ("cliptrase", "voc21", "paper"): 1,
        ("cliptrase_336", "context60", "paper"): 1,
        ("cliptrase", "coco_object", "paper"): 0,  # its labels hold stuff, too: no crop is without one
        ("cliptrase_336", "coco_object", "paper"): 0,
        ("cliptrase", "voc20", "paper"): 0,
        ("cliptrase", "voc21", "unified"): 0,
        ("sclip", "coco_object", "paper"): 0,
    }
    for (name, dataset, protocol), expected in recipes.items():
        assert ob.compose_recipe(name, dataset=dataset, protocol=protocol).min_foreground == expected


def test_methods_whose_own_code_runs_in_fp32_do_so_on_a_gpu_too(tiny_clip, voc):
    own = {name for name in config_names("segmentor") if ob.compose_recipe(name).precision == "fp32"}
    trained = {"clip_dinoiser", "denseclip", "maskclip_plus", "tagclip", "tagclip_cross", "zegclip", "floss_clip_dinoiser"}
    free = {
        "cliptrase",
        "cliptrase_336",
        "maskclip_original",
        "gem_original",
        "clip_diy",
        "lposs",
        "lposs_plus",
        "floss_maskclip",
    }
    assert own == trained | free | {"tagclip_training_free"}
    assert all(ob.compose_recipe(name, protocol="unified").precision is None for name in own)
    dataset = ob.load_dataset("voc21", voc)
    plain, precise = (make_job("sclip", tiny_clip, dataset, overrides=own) for own in ({}, {"precision": "fp32"}))
    assert plain.pass_key == precise.pass_key  # on a CPU the same


def test_a_fault_of_one_data_set_leaves_the_others_their_results(voc, tmp_path):
    write_voc(tmp_path, images=3, seed=1)
    good, bad = ob.load_dataset("voc21", voc), ob.load_dataset("voc20", tmp_path)
    bad.samples[1].image_path.write_bytes(b"no image")
    failures = []
    results = run(jobs_of(["sclip"], [bad, good]), limit=3, failures=failures)
    assert [result.data["dataset"] for result in results] == ["voc21"]
    assert len(failures) == 1
    assert bad.samples[1].id in str(failures[0])
    with pytest.raises(ob.OvssError, match=bad.samples[1].id):
        run(jobs_of(["sclip"], [bad, good]), limit=3)


@pytest.mark.parametrize("name", config_names("dataset/suite"))
def test_suites_name_data_sets_that_exist_and_average_all_of_them(name):
    suite = load_suite(f"suite/{name}")
    assert set(suite.datasets) <= set(config_names("dataset"))
    known = set(suite.datasets)
    averaged = set()
    for average in suite.averages:
        assert set(average.members) <= known
        known.add(average.name)
        averaged |= set(average.members)
    assert set(suite.datasets) <= averaged


def test_suites_have_the_sizes_that_papers_state():
    sclip8, aerial, mess = (load_suite(name) for name in ("sclip8", "remote_sensing", "mess"))
    assert [len(average.members) for average in sclip8.averages] == [3, 5, 8]
    assert [len(average.members) for average in aerial.averages] == [8, 4, 4, 1]
    assert [len(average.members) for average in mess.averages] == [4, 6, 5, 4, 4, 3, 22]


def test_suites_and_names_may_be_mixed_and_each_data_set_comes_once():
    names, suites = expand(["voc21", "suite/sclip8", "demo"])
    assert names[0] == "voc21"
    assert names[-1] == "demo"
    assert len(names) == 9
    assert [suite.name for suite in suites] == ["sclip8"]
    with pytest.raises(ob.OvssError, match=r"sclip9.*sclip8"):
        expand(["suite/sclip9"])


def test_averages_are_never_over_fewer_data_sets():
    averages = [Average("ab", ("a", "b")), Average("abc", ("ab", "c")), Average("object", ("a",), "IoU_object")]
    figures = {("a", "mIoU"): 10.0, ("b", "mIoU"): 20.0, ("c", "mIoU"): 45.0, ("a", "IoU_object"): 7.0}
    assert mean_of(averages, figures) == {"ab": (15.0, []), "abc": (30.0, []), "object": (7.0, [])}
    del figures["b", "mIoU"]
    assert mean_of(averages, figures) == {"ab": (None, ["b"]), "abc": (None, ["b"]), "object": (7.0, [])}


MINE = """\
images: photos
labels: masks
image_suffix: .jpg
label_suffix: .png
classes: [background, [bicycle, bike], bird]
"""


@pytest.fixture
def own_data(tmp_path, voc):
    """Photos and masks of three classes in folders of their own, and the five lines about them."""
    source = ob.load_dataset("voc21", voc)
    for folder in ("photos", "masks"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
    for sample in source.samples[:3]:
        shutil.copy(sample.image_path, tmp_path / "mine/photos")
        label = source.label(sample)
        Image.fromarray(np.where(label < 255, label % 3, 255).astype(np.uint8)).save(
            tmp_path / "mine/masks" / f"{sample.image_path.stem}.png"
        )
    (tmp_path / "mine/my_data.yaml").write_text(MINE)
    return tmp_path / "mine/my_data.yaml"


def test_own_data_in_five_lines(own_data):
    dataset = ob.load_dataset(own_data)
    assert dataset.classes == ("background", "bicycle", "bird")
    assert dataset.vocabulary(None, "photo").queries == ("background", "bicycle", "bike", "bird")
    assert len(dataset.samples) == 3
    (result,) = run(jobs_of(["sclip"], [dataset]))
    assert result.data["dataset"] == "my_data"
    assert 0 < result.metrics["mIoU"] < 100


def test_own_data_with_a_names_file(own_data):
    own_data.write_text(MINE.replace("classes: [background, [bicycle, bike], bird]", "names: names.txt\nbackground: 0"))
    (own_data.parent / "names.txt").write_text("floor, wall\nbicycle\nbird\n")
    dataset = ob.load_dataset(str(own_data))
    assert dataset.classes == ("floor", "bicycle", "bird")
    assert dataset.vocabulary(None, "photo").group == (0, 0, 1, 2)
    assert dataset.background == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("images: photos\n", ""), "lacks images"),
        (("classes: [background, [bicycle, bike], bird]\n", ""), "lacks names"),
        (("images:", "image:"), r"unknown key .*my_data.yaml\) 'image'.*images"),
        (("photos", "pictures"), r"(?s)not found.*pictures/<id>.jpg"),
        (("[background", "[[background"), "cannot be read"),
        (("bird]", "bird, bicycle]"), "'bicycle' is listed twice"),
        ((MINE, "- images"), "not a mapping"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_mistakes_in_own_data_are_explained(change, words, own_data):
    own_data.write_text(MINE.replace(*change))
    with pytest.raises(ob.OvssError, match=words):
        ob.load_dataset(own_data).vocabulary(None, "photo")


def test_own_data_may_not_take_the_name_of_another(own_data):
    other = own_data.rename(own_data.with_name("voc21.yaml"))
    with pytest.raises(ob.OvssError, match="has the name of a built-in data set"):
        ob.load_dataset(other)
    with pytest.raises(ob.OvssError, match="does not exist"):
        ob.load_dataset(own_data)
