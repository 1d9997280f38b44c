"""What a single plug-in method needs: the examples of docs/extending.md, and what must hold for each hook."""

import re
from pathlib import Path

import pytest
import torch

import ovss_bench as ob
from ovss_bench.inference.engine import predict
from ovss_bench.inference.trunk_cache import TrunkCache
from parity.seeded import query_features, rgb_image

EXAMPLES = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs/extending.md").read_text(), re.DOTALL)
IMAGES = {f"image{n}": rgb_image(80 + n, *size) for n, size in enumerate([(70, 110), (40, 30), (64, 90)])}
SMALL = {"short_side": 80, "window": 64, "stride": 32, "pad": "center", "logit_scale": 10.0}
SCLIP = ob.SEGMENTORS.get("sclip")


@pytest.fixture(scope="module")
def vocabulary():
    return ob.Vocabulary.from_features(query_features(31, 8), [0, 2, -1, 1, 2, 0, 3, -1], background=True)


def build(method, clip, vocabulary, **values):
    return method(clip, vocabulary, ob.compose_recipe("sclip", overrides=SMALL | values))


def predictions(*segmentors, **options):
    return dict(predict(segmentors, IMAGES.items(), batch=5, **options))


def agree(one, other):
    return all((one[key][0].label_map == other[key][0].label_map).float().mean() > 0.9995 for key in IMAGES)


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: re.search(r'name="(\w+)"', code)[1])
def test_the_examples_run_as_plug_ins(code, tmp_path, tiny_clip, vocabulary):
    assert code.count("\n") <= 25
    (tmp_path / "example.py").write_text(code)
    ob.load_plugin(tmp_path / "example.py")
    name = ("sclip+" if "ob.STEPS" in code else "") + re.search(r'name="(\w+)"', code)[1]
    few = {"keep": 3} if name == "likely" else {}
    segmentor = ob.build_segmentor(name, clip=tiny_clip, vocabulary=vocabulary, **SMALL, **few)
    plain = predictions(build(SCLIP, tiny_clip, vocabulary))
    found = predictions(segmentor)
    assert any(not torch.equal(found[key][0].label_map, plain[key][0].label_map) for key in IMAGES)
    data = ob.load_dataset("demo")
    segmentor = ob.build_segmentor(name, clip="demo", vocabulary=data.vocabulary("demo", "notebook7"))
    assert ob.evaluate(segmentor, data, limit=2).metrics["mIoU"] > 20


class Seen(SCLIP):
    """Remembers which parts of which images it got."""

    uses = ("logit_scale",)

    def scores(self, cosines, context=None):
        part = context.by_products.setdefault("seen", torch.zeros(context.size, dtype=torch.int64))[context.part]
        assert part.shape == cosines.shape[1:]
        part += 1
        self.contexts[context.id] = context
        return self.decision.class_scores(cosines)


@pytest.mark.parametrize("steps", [0, 1])
def test_scores_see_the_context_and_which_part_of_it(steps, tiny_clip, vocabulary):
    segmentor = build(Seen, tiny_clip, vocabulary, threshold=0.3, pamr_steps=steps)
    segmentor.contexts = {}
    assert agree(predictions(segmentor), predictions(build(SCLIP, tiny_clip, vocabulary, threshold=0.3, pamr_steps=steps)))
    assert segmentor.contexts.keys() == IMAGES.keys()
    for key, context in segmentor.contexts.items():
        assert (context.by_products["seen"] == 1).all()
        assert (context.original == IMAGES[key]).all()


ABSENT = torch.tensor([False, True, True, False, True, False, False, False])


class Without(SCLIP):
    """Without the queries of class 2 and a distractor; its cosines of them are anything."""

    value = -torch.inf

    def prior(self, context):
        return torch.zeros(len(ABSENT)).masked_fill(ABSENT, -torch.inf)

    def patch_logits(self, batch):
        return super().patch_logits(batch).masked_fill(ABSENT[:, None, None], self.value)


class WithoutOwnScores(Without):
    uses = ("logit_scale",)

    def scores(self, cosines, context):
        return self.decision.class_scores(cosines)


@pytest.mark.parametrize("keep_scores", [False, True])
@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("method", [Without, WithoutOwnScores])
@pytest.mark.parametrize("value", [-torch.inf, torch.nan, 1.0])
def test_absent_queries_have_no_part(value, method, steps, keep_scores, tiny_clip, vocabulary, monkeypatch):
    """As if they were not in the vocabulary at all."""
    monkeypatch.setattr(method, "value", value)
    left = (~ABSENT).nonzero()[:, 0].tolist()
    group = [vocabulary.group[q] for q in left]
    reduced = ob.Vocabulary.from_features(vocabulary.given_features[left], group, background=True)
    rules = {"threshold": 0.3, "pamr_steps": steps}
    found = predictions(build(method, tiny_clip, vocabulary, **rules), keep_scores=keep_scores)
    assert agree(found, predictions(build(SCLIP, tiny_clip, reduced, **rules), keep_scores=keep_scores))
    for (prediction,) in found.values():
        assert 2 not in prediction.label_map
        if keep_scores:
            assert prediction.scores.isfinite().all()
            assert (prediction.scores[2] == 0).all()


class Weighted(SCLIP):
    """Every query counts so much more than the others."""

    weights = torch.tensor([3.0, 0.5, 1.0, 7.0, 0.1, 1.0, 2.0, 0.3])

    def prior(self, context):
        return self.weights.log()


class WeightedByHand(SCLIP):
    """The same, written into the scores."""

    uses = ("logit_scale",)

    def scores(self, cosines, context):
        weighted = (self.recipe.logit_scale * cosines).exp() * Weighted.weights[:, None, None]
        probabilities = weighted / weighted.sum(0)
        group = torch.tensor(self.vocabulary.group)
        return torch.stack([probabilities[group == c].amax(0) for c in range(4)])


@pytest.mark.parametrize("keep_scores", [False, True])
@pytest.mark.parametrize("steps", [0, 1])
def test_a_prior_weighs_the_queries_in_the_softmax(steps, keep_scores, tiny_clip, vocabulary):
    rules = {"threshold": 0.3, "pamr_steps": steps}
    found = predictions(build(Weighted, tiny_clip, vocabulary, **rules), keep_scores=keep_scores)
    expected = predictions(build(WeightedByHand, tiny_clip, vocabulary, **rules), keep_scores=keep_scores)
    assert agree(found, expected)
    assert not agree(found, predictions(build(SCLIP, tiny_clip, vocabulary, **rules)))
    for key in IMAGES if keep_scores else ():
        torch.testing.assert_close(found[key][0].scores, expected[key][0].scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.tensor([1.0, 1, 0, 1, 1, 1, 1, 0]).log(), None),
        (torch.tensor([0.0, 0, 1, 0, 0, 0, 0, 1]).log(), "leaves no query of a class for image image0"),
        (torch.tensor([0.0] * 7 + [torch.nan]), r"prior gives NaN or \+infinity for image image0"),
        (torch.tensor([0.0] * 7 + [torch.inf]), r"prior gives NaN or \+infinity for image image0"),
        (torch.zeros(7), r"a tensor \(7,\) of torch\.float32, expected a tensor \(8\) of floats"),
        (torch.zeros(8, dtype=torch.bool), r"a tensor \(8,\) of torch\.bool, expected"),
    ],
)
def test_priors_that_mean_nothing_are_refused(weights, message, tiny_clip, vocabulary, monkeypatch):
    monkeypatch.setattr(Weighted, "prior", lambda self, context: weights)
    segmentor = build(Weighted, tiny_clip, vocabulary)
    if message is None:
        predictions(segmentor)
    else:
        with pytest.raises(ob.OvssError, match=message):
            predictions(segmentor)


def test_infinity_that_is_not_declared_is_still_refused(tiny_clip, vocabulary, monkeypatch):
    monkeypatch.setattr(Without, "prior", lambda self, context: None)
    with pytest.raises(ob.OvssError, match=r"non-finite scores .* image image0, window at"):
        predictions(build(Without, tiny_clip, vocabulary))


class Asking(SCLIP):
    """Asks for both embeddings, and keeps them."""

    def prior(self, context):
        self.found["image", context.id] = self.image_embedding(context)

    def patch_logits(self, batch):
        self.found["windows", len(self.found)] = self.window_embeddings(batch)
        return super().patch_logits(batch)


def test_embeddings_are_computed_once_for_all_rows(tiny_clip, vocabulary, monkeypatch):
    segmentors = [build(Asking, tiny_clip, vocabulary, threshold=value) for value in (0.0, 0.2, 0.4)]
    calls, embeddings = [], ob.DenseCLIP.embeddings
    monkeypatch.setattr(ob.DenseCLIP, "embeddings", lambda self, trunk: calls.append(1) or embeddings(self, trunk))
    for segmentor in segmentors:
        segmentor.found = {}
    predictions(*segmentors)
    first, *others = [segmentor.found for segmentor in segmentors]
    assert len(calls) == len(first)
    for key, value in first.items():
        assert all(other[key] is value for other in others)
        torch.testing.assert_close(value.norm(dim=-1), torch.ones(value.shape[:-1]))


def test_the_embedding_is_open_clips_own(tiny_clip, vocabulary):
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    expected = tiny_clip.model.encode_image(pixels, normalize=True)
    found = build(SCLIP, tiny_clip, vocabulary).window_embeddings(ob.WindowBatch(pixels))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


class AtOnce(SCLIP):
    """Window by window, but asked for all windows of an image."""

    def image_logits(self, batch):
        assert len({*batch.images.tolist()}) == len(batch.contexts) == 1
        self.calls.append((batch.contexts[0].id, len(batch.pixels), [tuple(origin) for origin in batch.origins.tolist()]))
        return super().patch_logits(batch)


def test_all_windows_of_an_image_come_at_once_and_compose_as_windows_do(tiny_clip, vocabulary, tmp_path, monkeypatch):
    segmentor, sizes, trunk = build(AtOnce, tiny_clip, vocabulary), [], ob.DenseCLIP.trunk
    monkeypatch.setattr(ob.DenseCLIP, "trunk", lambda self, x, *rest: sizes.append(len(x)) or trunk(self, x, *rest))
    expected = predictions(build(SCLIP, tiny_clip, vocabulary))
    passes = [*sizes]
    for cache in (None, TrunkCache(tmp_path, 1e9), TrunkCache(tmp_path, 1e9)):
        sizes.clear()
        segmentor.calls = []
        assert agree(predictions(segmentor, trunk_cache=cache), expected)
        assert sizes in (passes, [])  # the trunk runs in the same batches, or not at all
        assert [name for name, *_ in segmentor.calls] == list(IMAGES)
        for name, count, origins in segmentor.calls:
            context = ob.make_context(IMAGES[name], segmentor)
            assert origins == ob.SlidingWindow.by(segmentor.recipe, *context.resized.shape[:2], 16).origins
            assert count == len(origins) > 1
    assert sizes == []


def test_rows_with_and_without_all_windows_share_a_pass(tiny_clip, vocabulary):
    segmentors = [build(AtOnce, tiny_clip, vocabulary), build(SCLIP, tiny_clip, vocabulary)]
    segmentors[0].calls = []
    for one, other in predictions(*segmentors).values():
        assert (one.label_map == other.label_map).float().mean() > 0.9995


@pytest.mark.parametrize("hook", ["scores", "refine", "prior"])
def test_a_hook_that_was_set_on_the_object_is_not_dropped_silently(hook, tiny_clip):
    data = ob.load_dataset("demo")
    segmentor = ob.build_segmentor("sclip", clip=tiny_clip, vocabulary=data.vocabulary(None, "none"))
    setattr(segmentor, hook, lambda *arguments: arguments[0])
    with pytest.raises(ob.OvssError, match=f"has a {hook} of its own, but 'sclip'"):
        ob.evaluate(segmentor, data, limit=1)
