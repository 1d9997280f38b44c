"""The share of the masks that methods on a concept segmenter do not make, in the timing of results."""

import pytest

import ovss_bench as ob
from ovss_bench.encoders.no_clip import NoCLIP
from ovss_bench.runs.evaluate import make_job, run_jobs
from ovss_bench.runs.merge import merge, part_folders
from ovss_bench.runs.world import Shard
from ovss_bench.segmentors.concepts import ConceptSegmentor

LIMIT = 3


def jobs(*names):
    data = ob.load_dataset("demo")
    return [make_job(name, NoCLIP(), data, overrides={"concepts": "demo", "confidence": 0.4}) for name in names]


def share(result):
    counts = result["observed"]
    return round(counts["prompts_without_masks"] / counts["prompts"], 4)


@pytest.fixture(scope="module")
def whole():
    """Results of two methods in one pass, and the prompts that their common network was asked for, and gave masks for."""
    both = jobs("sam3", "segearth_ov3")
    decoded = both[0].segmentor.segmenter.decoded
    before = dict(decoded)
    results = [result.data for result in run_jobs(both, limit=LIMIT, quiet=True)]
    return results, {name: count - before[name] for name, count in decoded.items()}


def test_each_method_of_a_pass_has_its_own_share(whole):
    results, decoded = whole
    counts = [result["observed"] for result in results]
    assert sum(each["prompts"] for each in counts) == decoded["detect"]
    assert sum(each["prompts"] - each["prompts_without_masks"] for each in counts) == decoded["masks"]
    shares = [result["timing"]["skipped"]["masks"] for result in results]
    assert shares == [share(result) for result in results]
    assert 0 < shares[1] < shares[0] < 1


def test_the_parts_of_a_run_add_up(whole, tmp_path):
    for number in (1, 2):
        assert run_jobs(jobs("sam3"), limit=LIMIT, output=tmp_path, shard=Shard(number, 2), quiet=True) == []
    merged, notes = merge(part_folders(tmp_path)[0])
    assert notes == []
    assert merged["observed"] == whole[0][0]["observed"]
    assert merged["timing"]["skipped"] == whole[0][0]["timing"]["skipped"]


def test_a_resumed_run_has_the_share_of_its_own_images(whole, tmp_path, monkeypatch):
    """As all of its timing; it is printed, too."""
    ordinary, seen = ConceptSegmentor.image_labels, []

    def stopped(self, context):
        seen.append(context.id)
        if len(seen) == LIMIT:
            raise KeyboardInterrupt
        return ordinary(self, context)

    monkeypatch.setattr(ConceptSegmentor, "image_labels", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs("sam3"), limit=LIMIT, output=tmp_path, quiet=True)
    (result,) = run_jobs(jobs("sam3"), limit=LIMIT, output=tmp_path, quiet=True)
    timing = result.data["timing"]
    assert 0 < timing["images"] == len(seen) - LIMIT < LIMIT
    assert timing["skipped"]["masks"] == share(result.data)
    assert result.data["observed"]["prompts"] == whole[0][0]["observed"]["prompts"] * timing["images"] // LIMIT


def test_the_end_of_a_run_says_it(capsys):
    (result,) = run_jobs(jobs("sam3"), limit=1)
    assert f"sam3 on demo: {100 * share(result.data):.1f} % of the masks skipped" in capsys.readouterr().err


def test_methods_that_skip_nothing_have_no_share():
    fast = {"resize": "none", "window": 48, "stride": 48}
    result = ob.evaluate("clip", ob.load_clip("demo"), ob.load_dataset("demo"), recipe=fast, limit=1)
    assert "skipped" not in result.data["timing"]
