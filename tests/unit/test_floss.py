"""FLOSS's step against the rule as the paper words it, written plainly; there are no arrays of the official code."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.inference.engine import predict
from parity.seeded import rgb_image

NAMES = [["sand", "beach"], ["water"], ["Snow Field"], ["grass"]]
SMALL = {"short_side": 96, "window": 48, "stride": 24, "pad": "none", "templates": "notebook7", "pamr_steps": 0}


@pytest.fixture(scope="module")
def clip():
    return ob.load_clip("demo")


def write(path, chosen):
    """A ranking in the published format; `chosen`: per class templates with the share of their pixels, in order."""
    classes = {
        name: {
            "entropy_ranking": [
                {"template_id": t, "entropy": 0.1 * rank, "pixel_percentage": share, "rank": rank}
                for rank, (t, share) in enumerate(entries)
            ]
        }
        for name, entries in chosen.items()
    }
    path.write_text(json.dumps({"model": "naclip", "dataset": "demo", "split": "train", "classes": classes}))
    return path


GOOD = {
    "sand": [(3, 1.0), (0, 2.0), (6, 0.0), (2, 0.5)],
    "water": [(5, 1.0), (1, 0.1)],
    "snowfield": [(4, 9.0)],
    "grass": [(6, 0.0), (2, 1.0), (3, 1.0)],
}
EXPERTS = [[3, 0], [3, 0], [5, 1], [4], [2, 3]]  # of each query, with top_n=2


def build(base, clip, ranking, **values):
    return ob.build_segmentor(base, clip=clip, vocabulary=NAMES, text="floss", ranking=ranking, **SMALL | {"top_n": 2} | values)


def expected(base, clip, segmentor, batch, unit):
    """Section 4, one pixel at a time."""
    plain = ob.build_segmentor(base, clip=clip, vocabulary=NAMES, **SMALL)
    seen, compare = [], plain.compare
    plain.compare = lambda embeddings, grid: seen.append((embeddings, grid)) or compare(embeddings, grid)
    plain.patch_logits(batch)
    (embeddings, grid), vocabulary = seen[0], segmentor.vocabulary
    embeddings = F.normalize(embeddings, dim=-1)

    def classifier(templates):
        rows = []
        for query in vocabulary.queries:
            row = clip.encode_text([vocabulary.prompts[t].replace("{}", query) for t in templates]).mean(0)
            rows.append(row / row.norm() if unit else row)
        return torch.stack(rows)

    banks = [classifier(range(7)), *map(classifier, EXPERTS)]
    size = batch.pixels.shape[2:]
    probabilities = []
    for bank in banks:
        patches = (100 * embeddings @ bank.T).softmax(-1).transpose(1, 2).unflatten(2, grid)
        probabilities.append(F.interpolate(patches, size, mode="bilinear"))
    result = probabilities[0].clone()
    for b, y, x in torch.cartesian_prod(*map(torch.arange, (len(result), *size))).tolist():
        firing = [e for e in range(5) if probabilities[1 + e][b, :, y, x].argmax() == e]
        if firing:
            winner = max(firing, key=lambda e: float(probabilities[1 + e][b, e, y, x]))
            result[b, :, y, x] = probabilities[1 + winner][b, :, y, x]
    return result


@pytest.mark.parametrize(("base", "unit"), [("naclip", True), ("maskclip", False), ("sclip", True)])
def test_experts_are_fused_in_every_window(base, unit, clip, tmp_path):
    segmentor = build(base, clip, write(tmp_path / "r.json", GOOD))
    batch = ob.WindowBatch(torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(1)))
    found, wanted = segmentor.patch_logits(batch), expected(base, clip, segmentor, batch, unit)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    usual = F.interpolate(
        (100 * ob.build_segmentor(base, clip=clip, vocabulary=NAMES, **SMALL).patch_logits(batch)).softmax(1),
        (24, 32),
        mode="bilinear",
    )
    assert (found - usual).abs().max() > 0.01


def test_a_ranking_moves_the_labels_of_a_picture(clip, tmp_path):
    scene = rgb_image(1, 96, 120)
    segmentor = build("naclip", clip, write(tmp_path / "r.json", GOOD))
    plain = ob.build_segmentor("naclip", clip=clip, vocabulary=NAMES, **SMALL)
    found, before = ob.segment(segmentor, scene), ob.segment(plain, scene)
    assert segmentor.recipe.segmentor == "naclip+floss"
    assert found.scores.isfinite().all()
    assert 0 < (found.label_map != before.label_map).float().mean() < 0.9


BAD = {
    "no such class": (GOOD | {"water": None}, {}, r"has no class 'water'"),
    "no pixels": (GOOD | {"water": [(1, 0.0)]}, {}, r"no template of the ranking .* predicts class 'water'"),
    "another list": (GOOD | {"water": [(79, 1.0)]}, {}, r"has template 79, but the recipe has 7 templates"),
    "none": (GOOD, {"ranking": None}, r"^naclip\+floss needs ranking: give ranking=VALUE\."),
    "refine": (GOOD, {"text": None, "refine": "floss"}, r"^refine=floss: give this step as text=floss\.$"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line(case, clip, tmp_path):
    chosen, values, words = BAD[case]
    path = write(tmp_path / "r.json", {name: entries for name, entries in chosen.items() if entries is not None})
    options = {"text": "floss", "ranking": path} | values
    with pytest.raises(ob.OvssError, match=words) as caught:
        ob.build_segmentor("naclip", clip=clip, vocabulary=NAMES, **SMALL | options).encode_text()
    assert "\n" not in str(caught.value)


def test_maskclip_takes_all_templates_for_a_class_without_pixels(clip, tmp_path):
    segmentor = build("maskclip", clip, write(tmp_path / "r.json", GOOD | {"water": [(1, 0.0)]}))
    segmentor.encode_text()
    torch.testing.assert_close(segmentor.bank[3], segmentor.bank[0])


def test_damaged_files_and_other_methods_are_refused(clip, tmp_path):
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(ob.OvssError, match=r"^ranking .*r\.json cannot be read \(KeyError: 'classes'\)\. Expected"):
        build("naclip", clip, tmp_path / "r.json").encode_text()
    good = write(tmp_path / "good.json", GOOD)
    changed = build("maskclip", clip, good, prompt_denoising=0.5)
    with pytest.raises(ob.OvssError, match=r"^maskclip\+floss: floss needs the cosines .* changes these\. Leave floss out"):
        ob.segment(changed, rgb_image(1, 60, 60))
    features = ob.Vocabulary.from_features(torch.eye(4, clip.model.text_projection.shape[1]))
    segmentor = ob.build_segmentor("naclip", clip=clip, vocabulary=features, text="floss", ranking=good)
    with pytest.raises(ob.OvssError, match=r"^naclip\+floss: floss needs names of classes"):
        segmentor.encode_text()


@pytest.mark.parametrize("base", ["naclip", "maskclip"])
def test_templates_are_ranked_by_the_entropy_of_what_they_predict(base, clip, tmp_path):
    data, options = ob.load_dataset("demo_small"), {"short_side": 96, "window": 48, "stride": 48, "pad": "none"}
    path = ob.rank_templates(base, clip, data, tmp_path / "r.json", limit=1, **options)
    vocabulary = data.vocabulary("demo", "notebook7")
    sums, counts = torch.zeros(7, 37).double(), torch.zeros(7, 37).double()
    for t, prompt in enumerate(vocabulary.prompts):
        one = ob.build_segmentor(
            base, clip=clip, vocabulary=replace(vocabulary, prompts=(prompt,)), pamr_steps=0, logit_scale=100, **options
        )
        one.scores_sum_to_one = False
        if base == "maskclip":  # averages probabilities
            logits = one.patch_logits
            one.patch_logits = lambda batch, logits=logits: (100 * logits(batch)).softmax(1)
            one.scores = lambda maps, context: torch.stack(
                [maps[[q for q, c in enumerate(vocabulary.group) if c == k]].amax(0) for k in range(37)]
            )
        images = [(sample.id, data.image(sample)) for sample in data.select(1, None)]
        for _, (found,) in predict([one], images, keep_scores=True):
            p, labels = found.scores, found.scores.argmax(0)
            entropy = -(p * (p + 1e-10).log()).sum(0)
            for c in labels.unique().tolist():
                sums[t, c] += entropy[labels == c].sum()
                counts[t, c] += (labels == c).sum()
    content = json.loads(path.read_text())
    assert (content["model"], content["dataset"], content["split"]) == (base, "demo_small", "train")
    assert list(content["classes"]) == [name.replace(" ", "") for name in vocabulary.classes]
    for c, entry in enumerate(content["classes"].values()):
        ranks = entry["entropy_ranking"]
        assert [each["rank"] for each in ranks] == [1, 2, 3, 4, 5, 6, 7]
        assert [each["entropy"] for each in ranks] == sorted(each["entropy"] for each in ranks)
        for each in ranks:
            t = each["template_id"]
            share = 100 * counts[t, c] / counts[t].sum()
            assert each["pixel_percentage"] == pytest.approx(float(share), abs=0.01)
            assert each["entropy"] == pytest.approx(float(sums[t, c] / counts[t, c].clamp(min=1)), rel=1e-2, abs=1e-4)
    with pytest.raises(ob.OvssError, match=r"^cliptrase has a decision of its own"):
        ob.rank_templates("cliptrase", clip, data, tmp_path / "c.json")
