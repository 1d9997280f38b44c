"""Methods whose by-products depend on a group of consecutive images: the same groups, however a run is carried out."""

import pytest
import torch

import ovss_bench as ob
from ovss_bench.inference.engine import predict
from ovss_bench.runs.evaluate import make_job, run_jobs
from ovss_bench.runs.merge import merge, part_folders
from ovss_bench.runs.world import Shard
from parity.seeded import rgb_image

FAST = {"resize": "none", "window": 48, "stride": 48, "pamr_steps": 0, "pad": "none", "templates": "none", "threshold": 0.0}
IMAGES = {f"image{n}": rgb_image(90 + n, 40 + 9 * n, 70 - 5 * n) for n in range(7)}
SEEN = []


def register(name, size):
    @ob.SEGMENTORS.register_module(name=name)
    class Grouped(ob.SEGMENTORS.get("sclip")):
        """The queries that the images of a group have in common weigh more."""

        group = size

        def patch_logits(self, batch):
            for context in batch.contexts:
                context.by_products["windows"] = context.by_products.get("windows", 0) + 1
            return super().patch_logits(batch)

        def group_features(self, contexts):
            assert all(context.by_products["windows"] for context in contexts)  # all windows of the group are done
            SEEN.append(tuple(context.id for context in contexts))
            return torch.stack([self.image_embedding(context) for context in contexts]).mean(0)

        def prior(self, context):
            return 100 * self.text @ context.group

    return name


@pytest.fixture(autouse=True)
def methods():
    SEEN.clear()
    return register("grouped", 3), register("paired", 2)


def groups(images, size):
    return [tuple(images[start : start + size]) for start in range(0, len(images), size)]


def label_maps(segmentors, images=IMAGES, **options):
    return {key: [each.label_map for each in found] for key, found in predict(segmentors, images.items(), **options)}


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 64}, {"workers": 3}, {"keep_scores": True}], ids=str)
def test_groups_do_not_depend_on_batches_readers_or_other_segmentors(options, methods, tiny_clip, tiny_vocabulary):
    grouped, paired, plain = (
        ob.build_segmentor(name, clip=tiny_clip, vocabulary=tiny_vocabulary, **FAST) for name in (*methods, "sclip")
    )
    expected = [label_maps([each], batch=4) for each in (grouped, paired, plain)]
    assert [*SEEN] == groups(list(IMAGES), 3) + groups(list(IMAGES), 2)
    assert not all(torch.equal(expected[0][key][0], expected[2][key][0]) for key in IMAGES)
    SEEN.clear()
    together = label_maps([grouped, plain, paired], **options)
    assert sorted(SEEN) == sorted(groups(list(IMAGES), 3) + groups(list(IMAGES), 2))
    assert list(together) == list(IMAGES)
    for key, maps in together.items():
        for found, number in zip(maps, (0, 2, 1), strict=True):
            assert (found == expected[number][key][0]).float().mean() > 0.999


def test_images_that_cannot_be_read_are_left_out_of_their_group(methods, tiny_clip, tiny_vocabulary):
    def fail():
        raise ob.OvssError("damaged")

    segmentor = ob.build_segmentor(methods[0], clip=tiny_clip, vocabulary=tiny_vocabulary, **FAST)
    found = dict(predict([segmentor], (IMAGES | {"image1": fail}).items()))
    assert [*SEEN] == [("image0", "image2"), ("image3", "image4", "image5"), ("image6",)]
    assert str(found["image1"]) == "damaged"


def evaluated(root, output, names=("grouped",), shard=None, **options):
    clip, dataset = ob.load_clip("demo"), ob.load_dataset("voc21", root)
    jobs = [make_job(name, clip, dataset, overrides=FAST) for name in names]
    return run_jobs(jobs, output=output, shard=Shard.of(shard), quiet=True, **options)


def counts(result):
    return result.data["per_class"]


def test_an_interrupted_run_evaluates_unfinished_groups_whole(voc, tmp_path, monkeypatch):
    (expected,) = evaluated(voc, tmp_path / "whole")
    ids = [sample.id for sample in ob.load_dataset("voc21", voc).samples]
    assert [*SEEN] == groups(ids, 3)
    damaged, image = ids[4], ob.SegDataset.image

    def unreadable(self, sample):
        if sample.id == damaged:
            raise ob.OvssError("damaged")
        return image(self, sample)

    monkeypatch.setattr(ob.SegDataset, "image", unreadable)
    with pytest.raises(ob.OvssError, match="1 of 10 images could not be evaluated"):
        evaluated(voc, tmp_path / "again")
    monkeypatch.undo()
    SEEN.clear()
    (resumed,) = evaluated(voc, tmp_path / "again")
    assert [*SEEN] == [tuple(ids[3:6])]
    assert counts(resumed) == counts(expected)


@pytest.mark.parametrize("count", [2, 3])
def test_shards_keep_groups_together(count, voc, tmp_path):
    expected = evaluated(voc, tmp_path / "whole", ("grouped", "paired"))
    whole = sorted(SEEN)
    SEEN.clear()
    for number in range(1, count + 1):
        evaluated(voc, tmp_path / "parts", ("grouped", "paired"), f"{number}/{count}")
    assert sorted(SEEN) == whole
    found = {result["segmentor"]: result for result, _ in map(merge, part_folders(tmp_path / "parts"))}
    for result in expected:
        assert found[result.data["segmentor"]]["per_class"] == counts(result)
