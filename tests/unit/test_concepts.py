"""The concept segmenter on the tiny network, and what the methods on it skip."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ovss_bench as ob
from ovss_bench.auxiliary.words import canonical, hypernyms
from ovss_bench.encoders.concepts import ConceptSegmenter, load_concepts, tokens
from ovss_bench.files import config_names, load_config
from ovss_bench.inference.engine import predict
from ovss_bench.ops.concept_maps import BestTwo
from ovss_bench.types import ImageContext
from parity.seeded import rgb_image
from stand_ins import METHODS, ON_CLIP, PRESETS
from stand_ins import concepts as function

IMAGE = rgb_image(22, 60, 84)
WORDS = ["background", "aeroplane", ["boat", "ship"], "person", "wall-brick", "sky", "grass", "dog", "tie"]
METHODS = [name for name in [*METHODS, *PRESETS] if name not in ON_CLIP]


@pytest.fixture(scope="module")
def tiny() -> ConceptSegmenter:
    return load_concepts("demo")


def counting(tiny, prompts_per_pass=None) -> ConceptSegmenter:
    """The same network with counters of its own."""
    own = ConceptSegmenter(tiny.model, name="tiny", identity=tiny.digest)
    own.prompts_per_pass = prompts_per_pass
    return own


def build(name, source, background=True, **options):
    vocabulary = ob.Vocabulary.from_names(WORDS, background=background, templates="none")
    small = {"preview_resolution": 112} if name == "active_sam" else {}
    return ob.build_segmentor(name, vocabulary=vocabulary, concepts=source, **(small | options))


def test_prompts_together_or_alone_give_the_same(tiny):
    """All outputs, for 1, 4 and 7 prompts in a pass."""
    words = [word if isinstance(word, str) else word[0] for word in WORDS][:7]
    seen, texts = tiny.image(IMAGE), tiny.texts(words)
    found = tiny.detect(seen, texts)
    masks, semantic = tiny.masks(seen, found, range(7))
    for step in (1, 4):
        for start in range(0, 7, step):
            some = slice(start, start + step)
            part = tiny.detect(seen, texts[some])
            assert torch.allclose(part.scores, found.scores[some], rtol=0, atol=1e-4)
            ours, dense = tiny.masks(seen, part, range(len(part.objects)))
            assert torch.allclose(ours, masks[some], rtol=0, atol=1e-3)
            assert torch.allclose(dense, semantic[some], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_class_maps_do_not_depend_on_the_chunks(tiny, name):
    """Within 1e-4 for 1 and 7 prompts in a pass, as masks are all made."""
    one, seven = (
        ob.segment(build(name, counting(tiny, count), confidence=0.2, early_skip=False), IMAGE).scores for count in (1, 7)
    )
    assert one.max() > 0
    assert (one - seven).abs().le(1e-4).float().mean() > 0.999


@pytest.mark.parametrize("threshold", [0.0, 0.3])
@pytest.mark.parametrize("name", METHODS)
def test_skipping_changes_no_label(tiny, name, threshold):
    """With fewer masks; the margin rule of ActiveSAM and the ungated heads have no bound."""
    if name == "sam3_paint" and threshold:
        threshold = 0.4
    label_maps, networks = [], []
    for skip in (False, True):
        networks.append(counting(tiny, 3))
        options = {"prob_thd": threshold, "confidence": 0.4, "early_skip": skip}
        segmentor = build(name, networks[-1], **options)
        context = ImageContext(IMAGE, IMAGE, torch.empty(0), IMAGE.shape[:2])
        label_maps.append(segmentor.decide(segmentor.image_scores(context), context))
        made = networks[-1].decoded["masks"]
        asked = segmentor.observed["prompts"]
        assert asked == 10
        assert segmentor.observed["prompts_without_masks"] == asked - made
    assert torch.equal(*label_maps)
    assert networks[0].decoded["masks"] == 10
    if not (name == "active_sam" and threshold):
        assert networks[1].decoded["masks"] < 10 or threshold == 0


@pytest.mark.parametrize("name", ["sam3", "segearth_ov3"])
def test_prompts_that_are_certainly_absent_get_no_masks(tiny, name):
    """All of them, if no presence can exceed the threshold."""
    network = counting(tiny)
    ob.segment(build(name, network, confidence=1.0, prob_thd=1.0), IMAGE)
    assert network.decoded == {"detect": 10, "masks": 0}


def test_prompts_are_encoded_once_per_vocabulary(tiny):
    network = counting(tiny)
    first = network.texts(["dog", "cat"])
    assert network.texts(("dog", "cat")) is first
    assert network.settings(geometry_token=False, precision="fp32").texts(["dog", "cat"]) is first
    assert network.texts(["cat", "dog"]) is not first


def test_the_preview_shares_the_tensors_and_makes_no_masks(tiny):
    network = counting(tiny)
    segmentor = build("active_sam", network, pruner_max_active=4, quantile_alpha=0.5)
    active = segmentor.active(IMAGE)
    assert 0 < len(active) <= 4
    assert network.decoded == {"detect": 10, "masks": 0}
    ours, other = (dict(encoder.named_parameters()) for encoder in (network.model.vision_encoder, network._encoder(112)))
    assert all(other[name].data_ptr() == tensor.data_ptr() for name, tensor in ours.items())
    result = ob.segment(segmentor, IMAGE)
    decoded = {segmentor.vocabulary.group[segmentor.rows[place]] for place in active}
    assert {c for c, plane in enumerate(result.scores) if plane.any()} <= decoded


def test_chosen_prompts_are_the_upper_quantile(tiny):
    segmentor = build("active_sam", counting(tiny), pruner_max_active=9, quantile_alpha=0.2)
    presence = segmentor.preview(IMAGE)
    assert sorted(segmentor.active(IMAGE)) == sorted(presence.topk(2).indices.tolist())  # 10 - ceil(0.8 * 9)


def test_the_geometry_token_and_the_mask_of_the_prompt_count(tiny):
    plain = tiny.settings(geometry_token=False, precision="fp32")
    words = ["dog", "traffic light"]
    with_token, without = (network.detect(network.image(IMAGE), network.texts(words)).objects for network in (tiny, plain))
    assert (with_token - without).abs().max() > 0.1
    inputs = {"input_ids": tokens(words), "attention_mask": (tokens(words) != 0).long()}
    with torch.inference_mode():
        theirs = tiny.model(pixel_values=plain.image(IMAGE).pixels.expand(2, -1, -1, -1), **inputs)
    assert torch.allclose(without, theirs.pred_logits, rtol=0, atol=1e-4)


def test_chunks_follow_from_the_memory(tiny):
    """About half a gigabyte a prompt at the full size, so a handful on a CPU, and fewer at a larger size."""
    assert tiny.chunk() == 32
    full = counting(tiny)
    full.model = type("Model", (), {"config": full_config(), "text_projection": tiny.model.text_projection})
    assert 2 <= full.chunk() <= 8
    assert full.chunk(672) > full.chunk()


def full_config():
    from transformers import Sam3Config

    return Sam3Config()


def test_a_function_stands_for_the_network():
    """Whose outputs are those of the network, called at once."""
    scores = ob.segment(build("segearth_ov3", function, early_skip=False), IMAGE).scores
    assert scores.shape == (9, 60, 84)
    network = load_concepts("demo")
    whole = ob.segment(build("segearth_ov3", lambda image, prompts: network(image, prompts), early_skip=False), IMAGE).scores
    parts = ob.segment(build("segearth_ov3", network, early_skip=False), IMAGE).scores
    assert torch.allclose(whole, parts, rtol=0, atol=1e-4)
    with pytest.raises(ob.OvssError, match="takes no context tokens"):
        ob.segment(build("active_sam", function), IMAGE)


def test_windows_are_averaged_and_mirroring_twice_is_nothing(tiny):
    segmentor = build("segearth_ov3", function, slide_crop=40, slide_stride=40, early_skip=False)
    views = segmentor.views(60, 84)
    assert [(y.start, y.stop, x.start, x.stop) for y, x, _ in views][-1] == (20, 60, 44, 84)
    scores = ob.segment(segmentor, IMAGE).scores
    corner = ob.segment(build("segearth_ov3", function, early_skip=False), np.ascontiguousarray(IMAGE[:40, :40])).scores
    assert torch.allclose(scores[:, :20, :40], corner[:, :20], atol=1e-6)
    both = ob.segment(build("segearth_ov3", function, mirror=True, early_skip=False), IMAGE).scores
    flipped = np.ascontiguousarray(IMAGE[:, ::-1])
    other = ob.segment(build("segearth_ov3", function, mirror=True, early_skip=False), flipped).scores.flip(-1)
    assert torch.allclose(both, other, atol=1e-6)


def test_folders_of_the_image_and_of_the_video_model_load(tiny, tmp_path, monkeypatch):
    tiny.model.save_pretrained(tmp_path / "sam3")
    own = load_concepts(tmp_path / "sam3")
    assert torch.equal(own(IMAGE, ["dog"])[1], tiny(IMAGE, ["dog"])[1])
    monkeypatch.setenv("OVSS_WEIGHTS", str(tmp_path))
    assert load_concepts("sam3").digest == own.digest
    assert not own.stand_in
    assert tiny.stand_in


# What may be wrong with a folder: the file that is changed, its new content (None: none) and the error.
BROKEN = {
    "damaged weights": (
        "model.safetensors",
        "broken",
        r"is not a complete SAM 3 .*: SafetensorError: .*[^.]\. Copy or download",
    ),
    "no weights": ("model.safetensors", None, r"is not a complete SAM 3 .*: OSError: .*[^.]\. Copy or download it again\.$"),
    "no configuration": ("config.json", None, r"is not a complete SAM 3 .*: config\.json cannot be read \(FileNotFoundError"),
    "no JSON": ("config.json", "{", r"is not a complete SAM 3 .*: config\.json cannot be read \(JSONDecodeError"),
    "no type": ("config.json", "[]", r"is not a complete SAM 3 .*: config\.json cannot be read \(TypeError"),
    "another model": ("config.json", '{"model_type": "bert"}', r"holds a model of type 'bert', not a SAM 3\. Give the folder"),
}


@pytest.mark.parametrize(("file", "content", "words"), BROKEN.values(), ids=BROKEN)
def test_a_wrong_folder_is_one_line(file, content, words, tiny, tmp_path):
    tiny.model.save_pretrained(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(ob.OvssError, match=words) as caught:
        load_concepts(tmp_path)
    assert "\n" not in str(caught.value)


def test_errors(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("ovss_bench.encoders.hub._answers", lambda address: False)
    monkeypatch.setenv("OVSS_WEIGHTS", str(tmp_path))
    with pytest.raises(ob.OvssError, match=r"gated: request access .*hf auth login.*concepts=/path/to/sam3"):
        load_concepts("sam3")
    with pytest.raises(ob.OvssError, match="unknown concepts"):
        load_concepts("sam4")
    with pytest.raises(ob.OvssError, match="no background class"):
        build("sam3", function, background=False, prob_thd=0.3)
    with pytest.raises(ob.OvssError, match="needs heads=instance"):
        build("sam3", function, combine="paint")
    with pytest.raises(ob.OvssError, match="slide_crop"):
        build("segearth_ov3", function, slide_crop=40, slide_stride=50)
    with pytest.raises(ob.OvssError, match="needs concepts"):
        build("sam3", None)


@pytest.mark.parametrize("name", config_names("concepts"))
def test_entries_state_a_licence(name):
    assert load_config("concepts", name)["licence"]


def test_names_are_rewritten():
    assert [canonical(name, "active_sam") for name in ("wall-brick", "Traffic Light", "tie", "dog")] == [
        "brick wall",
        "traffic light",
        "necktie",
        "dog",
    ]
    assert hypernyms("scissors", "active_sam") == ["compound lever", "edge tool"]
    assert hypernyms("no such word", "active_sam") == []


SHARED = [
    ({}, 1),
    ({"geometry_token": [True, False, True]}, 1),  # made of the same features
    ({"autocast": ["fp32", "bf16", "fp16"]}, 3),
    ({"mirror": [False, True, True]}, 5),  # views are not kept
]


@pytest.mark.parametrize(("options", "passes"), SHARED, ids=str)
def test_the_methods_of_a_run_encode_an_image_once(tiny, options, passes):
    """If network and precision are the same; the maps are those of a run with one method."""
    network, names = counting(tiny), ("sam3", "sam3_paint", "active_sam")
    given = [{name: values[number] for name, values in options.items()} for number in range(len(names))]
    segmentors = [build(name, network, **each) for name, each in zip(names, given, strict=True)]
    images = [("a", IMAGE), ("b", IMAGE[::-1].copy())]
    together = dict(predict(segmentors, images))
    assert network.encoded == {168: passes * len(images)}
    for number, segmentor in enumerate(segmentors):
        for key, (alone,) in predict([segmentor], images):
            assert torch.equal(together[key][number].label_map, alone.label_map)


def test_the_preview_is_shared_too(tiny):
    network = counting(tiny)
    small = {"pruner_max_active": 4, "quantile_alpha": 0.5}
    segmentors = [build("sam3", network), *(build("active_sam", network, **small, confidence=value) for value in (0.2, 0.3))]
    dict(predict(segmentors, [("a", IMAGE)]))
    assert network.encoded == {168: 1, 112: 1}


@pytest.mark.parametrize("values", [2, 3, 1000])
def test_the_best_two_classes_are_those_of_all_maps(values):
    """With many equal values and several maps of a class, in any order."""
    draw = torch.Generator().manual_seed(values)
    maps = torch.randint(values, (12, 9, 11), generator=draw) / values
    classes = torch.randint(5, (12,), generator=draw).tolist()
    leading, planes = BestTwo((9, 11), maps), torch.zeros(5, 9, 11)
    for c, plane in zip(classes, maps, strict=True):
        leading.add(c, plane)
        planes[c] = torch.maximum(planes[c], plane)
        assert torch.equal(leading.labels, planes.argmax(0))
        assert torch.equal(torch.stack([leading.best, leading.second]), planes.topk(2, 0).values)


@pytest.mark.parametrize("options", [{}, {"prob_thd": 0.45}, {"mirror": True, "prob_thd": 0.3}, {"slide_crop": 64}], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_labels_without_class_maps_are_those_of_the_class_maps(tiny, name, options):
    options = {"confidence": 0.2, "slide_stride": 32} | options
    whole, labels = (build(name, counting(tiny, 3), **options) for _ in range(2))
    ((_, (expected,)),) = predict([whole], [("a", IMAGE)], keep_scores=True)
    ((_, (given,)),) = predict([labels], [("a", IMAGE)])
    assert given.scores is None
    assert len(given.label_map.unique()) > 1
    assert torch.equal(given.label_map, expected.label_map)
    assert whole.observed == labels.observed


def test_a_subclass_with_a_rule_of_its_own_gets_all_class_maps(tiny):
    class Least(ob.SEGMENTORS.get("sam3")):
        def decide(self, scores, context):
            return scores.argmin(0)

    plain = build("sam3", tiny)
    own = Least(plain.clip, plain.vocabulary, plain.recipe, plain.sources)
    ((_, (given,)),) = predict([own], [("a", IMAGE)])
    assert torch.equal(given.label_map, ob.segment(own, IMAGE).scores.argmin(0))


MANY = """
import numpy as np, torch
import ovss_bench as ob
from ovss_bench.bench.memory import peak_memory
from ovss_bench.inference.engine import predict
names = [f"class {number}" for number in range(847)]
segmentor = ob.build_segmentor("sam3", vocabulary=names, concepts="demo", confidence=0.2)
image = np.random.RandomState(0).randint(0, 256, (480, 640, 3)).astype(np.uint8)
found = peak_memory(lambda: list(predict([segmentor], [(0, image)])), torch.device("cpu"))
assert segmentor.observed["prompts_without_masks"] < 847
print(found["peak"] - found["before"])
"""


def test_847_classes_take_less_memory_than_their_maps():
    """MiB for 640 x 480 pixels, where the maps of all classes would take 993, and other passes of the tiny network 200."""
    done = subprocess.run(
        [sys.executable, "-c", MANY], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 600
