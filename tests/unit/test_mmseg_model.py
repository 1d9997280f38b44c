"""segmentor=mmseg: a small network of mmseg's zoo with random weights, against a plain computation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub

import ovss_bench as ob
from stand_ins import mmseg_files


@pytest.fixture(scope="module")
def demo():
    return ob.load_dataset("demo")


@pytest.fixture(scope="module")
def files(tmp_path_factory, demo):
    return mmseg_files(tmp_path_factory.mktemp("mmseg"), demo.classes)


def segmentor(demo, config, checkpoint):
    return ob.build_segmentor("mmseg", vocabulary=demo.vocabulary(), config=str(config), checkpoint=str(checkpoint))


def plainly(network, image):
    """Normalised by ImageNet's statistics, through backbone and head, resized twice as in EncoderDecoder."""
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    pixels = ((torch.from_numpy(image).float() - mean) / std).permute(2, 0, 1)[None]
    with torch.inference_mode():
        logits = network.decode_head(network.backbone(pixels))
        return F.interpolate(logits, image.shape[:2], mode="bilinear")[0].argmax(0)


def changed(checkpoint, path, change):
    content = torch.load(checkpoint)
    change(content)
    torch.save(content, path)
    return path


def test_the_label_map_is_that_of_a_plain_computation(demo, files):
    ours, image = segmentor(demo, *files), demo.image(demo.samples[0])
    labels = ob.segment(ours, image).label_map
    expected = plainly(ours.network, image)
    assert len(expected.unique()) > 3
    assert (labels == expected).float().mean() > 0.999


def test_classes_are_identified_by_name(demo, files, tmp_path):
    image = demo.image(demo.samples[0])
    order = np.random.RandomState(0).permutation(len(demo.classes))

    def shuffle(content):
        content["meta"]["dataset_meta"]["classes"] = [demo.classes[c].upper() for c in order]

    one, other = segmentor(demo, *files), segmentor(demo, files[0], changed(files[1], tmp_path / "a.pth", shuffle))
    labels, shuffled = (ob.segment(each, image).label_map for each in (one, other))
    assert torch.equal(torch.from_numpy(order)[labels], shuffled)
    strange = changed(files[1], tmp_path / "b.pth", lambda c: c["meta"]["dataset_meta"]["classes"].__setitem__(0, "sky"))
    with pytest.raises(ob.OvssError, match="unknown: sky; absent: background"):
        ob.segment(segmentor(demo, files[0], strange), image)
    unstated = changed(files[1], tmp_path / "c.pth", lambda c: c.pop("meta"))
    with pytest.raises(ob.OvssError, match="states the classes"):
        ob.segment(segmentor(demo, files[0], unstated), image)
    config, metainfo = tmp_path / "stated.py", {"classes": demo.classes}
    config.write_text(f"{files[0].read_text()}\ntest_dataloader = dict(dataset=dict(metainfo={metainfo}))\n")
    assert torch.equal(ob.segment(segmentor(demo, config, unstated), image).label_map, labels)


def test_the_checkpoint_of_a_training_run_is_read_without_running_its_code(demo, files, tmp_path):
    """It holds a log, whose buffers are objects of mmengine; other objects are refused."""
    hub = MessageHub.get_instance("test")
    hub.update_scalar("train/loss", 0.5)
    image = demo.image(demo.samples[0])
    logged = changed(files[1], tmp_path / "a.pth", lambda content: content.update(message_hub=hub.state_dict()))
    one, other = (ob.segment(segmentor(demo, files[0], file), image).label_map for file in (files[1], logged))
    assert torch.equal(one, other)
    strange = changed(files[1], tmp_path / "b.pth", lambda content: content.update(more=tmp_path))
    with pytest.raises(ob.OvssError, match="cannot be read: Weights only load failed"):
        ob.segment(segmentor(demo, files[0], strange), image)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("decode_head.conv_seg.bias"), r"it lacks decode_head.conv_seg.bias \(1 in all\)"),
        (lambda state: state.update(more=torch.zeros(1)), r"the config has no more \(1 in all\)"),
        (lambda state: state.update({"decode_head.conv_seg.bias": torch.zeros(5)}), r"bias is \(5,\), in the config \(37,\)"),
    ],
)
def test_keys_that_do_not_fit_are_named(demo, files, tmp_path, change, words):
    bad = changed(files[1], tmp_path / "bad.pth", lambda content: change(content["state_dict"]))
    with pytest.raises(ob.OvssError, match=words):
        ob.segment(segmentor(demo, files[0], bad), demo.image(demo.samples[0]))


def test_files_that_are_none(demo, files, tmp_path):
    text = tmp_path / "text.py"
    text.write_text("model = ")
    with pytest.raises(ob.OvssError, match=r"config .*text\.py cannot be read"):
        ob.evaluate(segmentor(demo, text, files[1]), demo, limit=1)
    with pytest.raises(ob.OvssError, match=r"checkpoint .*text\.py cannot be read"):
        ob.evaluate(segmentor(demo, files[0], text), demo, limit=1)


def test_what_the_config_inherits_is_part_of_the_fingerprint(demo, files, tmp_path):
    base, config = tmp_path / "base.py", tmp_path / "config.py"
    config.write_text("_base_ = ['base.py']\n")
    found = []
    for scale in (64, 96):
        base.write_text(files[0].read_text().replace("type='PackSegInputs'", f"type='PackSegInputs'), dict(type='Note{scale}'"))
        found.append(segmentor(demo, config, files[1]).files["composed config"])
    assert found[0] != found[1]
    result = ob.evaluate(segmentor(demo, *files), demo, limit=2)
    assert (result.data["clip"], set(result.data["sources"])) == ("none", {"checkpoint", "composed config", "config"})
