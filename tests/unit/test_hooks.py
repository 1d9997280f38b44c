"""A plug-in that raises, or returns what cannot be, in each of its hooks: one error that says where, never a traceback."""

import inspect
import re
import signal

import numpy as np
import pytest
import torch

import ovss_bench as ob
from end_to_end.tools import run
from ovss_bench.cli.options import Option, parse_options
from ovss_bench.cli.run import run_tool
from ovss_bench.config.plugin_errors import plugin_errors
from ovss_bench.config.registry import load_plugin
from ovss_bench.process import Ended
from ovss_bench.segmentors.hooks import HOOKS

# What a method calls or has, and does not override.
NO_HOOKS = {"checked_recipe", "check", "_repr_html_", "hyperparameters", "with_recipe", "trunk", "compare", "own"}
NO_HOOKS |= {"cosines", "tensor", "unused", "embed", "window_embeddings", "image_embedding", "encode_text", "begin", "indices"}
NO_HOOKS |= {"decides_as", "image_labels", "check_windows", "enriched", "once", "image_cosines"}
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)

RAISES = """
import ovss_bench as ob

@ob.SEGMENTORS.register_module(name="bad")
class Bad(ob.{base}):
    def {hook}(self, *arguments):
        return {result}
    {more}
"""
NONSENSE = {  # what each hook may return instead of the right thing
    "group_features": [],
    "patch_logits": ["None", "arguments[0].pixels[:, :1]", "arguments[0].pixels.mean((2, 3))", "3"],
    "image_logits": ["None", "arguments[0].pixels[:, :1]", "arguments[0].pixels.mean((2, 3))"],
    "prior": ["3", "arguments[0].pixels > 0", "arguments[0].pixels.mean((1, 2))", "[0.0] * 5"],
    "mix": ["None", "arguments[2][:, :, 1:]", "arguments[2].long()"],
    "last_block": ["None", "arguments[1][:, :-1]", "arguments[1].numpy()"],
    "image_scores": ["None", "arguments[0].pixels[0]", "arguments[0].original"],
    "refine": ["None", "arguments[0][:, 1:]"],
    "scores": ["None", "arguments[0].argmax(0)", "arguments[0][0]"],
    "refine_scores": ["None", "arguments[0][0]", "arguments[0].long()"],
    "decide": [
        "None",
        "arguments[0]",
        "arguments[0].argmax(0) - 1",
        "arguments[0].argmax(0) + 99",
        "arguments[0].argmax(0)[1:]",
    ],
    "correct": ["None", "arguments[0].float()", "arguments[0][1:]", "arguments[0] - 100"],
}
MIX = "mix = lambda self, q, k, v, grid: v"


@pytest.fixture(scope="module")
def vocabulary():
    return ob.Vocabulary.from_features(torch.eye(5, 128) + 0.1)


def plugin(folder, hook, result):
    path = folder / "bad.py"
    base = "LastBlockSegmentor" if hook not in ("patch_logits", "image_logits", "image_scores") else "Segmentor"
    path.write_text(RAISES.format(hook=hook, result=result, base=base, more=MIX if hook != "mix" and base[0] == "L" else ""))
    load_plugin(path)
    return path


def used(vocabulary):
    return ob.segment(ob.build_segmentor("bad", clip=ob.load_clip("demo"), vocabulary=vocabulary), IMAGE)


def test_every_hook_is_watched():
    kinds = (ob.Segmentor, ob.LastBlockSegmentor)
    own = {name for kind in kinds for name, value in vars(kind).items() if callable(value) or value is None}
    own |= {name for name, value in vars(ob.Segmentor).items() if isinstance(value, classmethod)}
    assert {name for name in own if not name.startswith("__")} - NO_HOOKS == set(HOOKS) == set(NONSENSE)
    for name in HOOKS:
        defined = name in ("patch_logits", "last_block")
        assert inspect.isfunction(getattr(ob.LastBlockSegmentor, name)) == defined
        assert defined or getattr(ob.LastBlockSegmentor, name) is None


@pytest.mark.parametrize("hook", HOOKS)
def test_what_a_hook_raises_is_one_line_with_its_place(hook, tmp_path, vocabulary):
    path = plugin(tmp_path, hook, "1 / 0")
    words = rf"{hook} of 'bad': ZeroDivisionError: division by zero \({re.escape(str(path))}, line 7, in {hook}; debug=true"
    with pytest.raises(ob.OvssError, match=words) as caught:
        used(vocabulary)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("hook", "result"), [(hook, result) for hook, results in NONSENSE.items() for result in results])
def test_what_a_hook_must_not_return_is_named_with_what_is_expected(hook, result, tmp_path, vocabulary):
    path = plugin(tmp_path, hook, result)
    with pytest.raises(
        ob.OvssError, match=rf"^{hook} of 'bad' gives .*, expected a tensor \(.*{re.escape(str(path))}, line 6\)$"
    ):
        used(vocabulary)


BEFORE = {  # the class's body -> what is said before the first image
    "absent = None": r"'bad' defines absent, which is no longer a hook\. Use prior",
    "final_scores = None": r"'bad' defines final_scores, .*scores_sum_to_one",
    "needs = property(lambda self: {99})": r"needs of 'bad' gives \[99\], expected a set of blocks from 0 to \d+, as demo has",
    "needs = property(lambda self: [1])": r"needs of 'bad' gives \[1\], expected a set of blocks",
    "needs = property(lambda self: {'last'})": r"needs of 'bad' gives \{'last'\}, expected a set",
    "needs = property(lambda self: 1 / 0)": r"needs of 'bad': ZeroDivisionError.*bad\.py, line 6",
    "__init__ = lambda self, *arguments: 1 / 0": r"segmentor 'bad': ZeroDivisionError.*bad\.py, line 6",
    "patch_logits = ob.Segmentor.patch_logits": "'bad' has neither patch_logits nor image_logits nor image_scores",
    "mix = ob.LastBlockSegmentor.mix": "'bad' has neither mix nor last_block",
    "group = 0": r"group of 'bad' gives 0, expected a number of images, 1 or more",
    "group = property(lambda self: 1 / 0)": r"group of 'bad': ZeroDivisionError.*bad\.py, line 6",
    "sharpness: int = 2.5": r"sharpness=2\.5 \(from default of Bad\): expected a whole number",
    "sharpness: Sharp = 2.5": r"annotations of Bad of .*bad\.py cannot be read: NameError.*Sharp",
    "threshold: float = 0.5": r"declares the hyperparameter 'threshold', which is the name of a recipe value",
    "clip: str = 'mine'": r"declares the hyperparameter 'clip', which is the name of an attribute of every segmentor",
}


@pytest.mark.parametrize("body", BEFORE)
def test_what_can_be_known_is_said_before_the_first_image(body, tmp_path, vocabulary):
    mix = "" if body.startswith("mix") else MIX
    head = RAISES[: RAISES.index("    def")].lstrip().format(base="LastBlockSegmentor")
    (tmp_path / "bad.py").write_text(f"from __future__ import annotations\n{head}    {body}\n    {mix}\n")
    load_plugin(tmp_path / "bad.py")
    with pytest.raises(ob.OvssError, match=BEFORE[body]):
        ob.build_segmentor("bad", clip=ob.load_clip("demo"), vocabulary=vocabulary)


def test_a_class_that_is_no_segmentor(vocabulary):
    @ob.SEGMENTORS.register_module(name="bad")
    class Bad:
        pass

    with pytest.raises(ob.OvssError, match=r"Bad of .*test_hooks\.py is not a segmentor: derive it"):
        ob.build_segmentor("bad", clip=ob.load_clip("demo"), vocabulary=vocabulary)


LOADER = """
import ovss_bench as ob

@ob.DATASETS.register_module(name="bad")
class Bad(ob.SegDataset):
    def {hook}(self, *arguments):
        return {result}
"""


@pytest.mark.parametrize("hook", ["raw_label", "image", "label"])
@pytest.mark.parametrize("result", ["1 / 0", "None"])
def test_what_a_data_sets_plug_in_does_is_told_of_the_image(hook, result, tmp_path, voc):
    (tmp_path / "bad.py").write_text(LOADER.format(hook=hook, result=result))
    load_plugin(tmp_path / "bad.py")
    base = voc / "VOCdevkit/VOC2012"
    lines = [f"images: {base}/JPEGImages", f"labels: {base}/SegmentationClass", "image_suffix: .jpg", "label_suffix: .png"]
    (tmp_path / "mine.yaml").write_text("\n".join([*lines, "classes: [a, b, c]", "loader: bad"]))
    data = ob.load_dataset(tmp_path / "mine.yaml")
    with pytest.raises(
        ob.OvssError,
        match=r"1 of 1 images could not be evaluated(?s:.*)(bad\.py, line 7|line \d+, in |label of Bad in .*expected)",
    ):
        ob.evaluate("sclip", ob.load_clip("demo"), data, recipe={"names": None, "templates": "none"}, ids=[data.samples[0].id])


def test_the_tools_say_one_line_and_with_debug_the_traceback(tmp_path, vocabulary, monkeypatch, capsys):
    plugin(tmp_path, "mix", "1 / 0")
    arguments = ["plugins=[bad.py]", "segmentor=bad", "limit=1", "recipe.templates=none"]
    done = run("eval.py", *arguments, cwd=tmp_path, status=2)
    assert done.stderr.splitlines()[-1].startswith("error: mix of 'bad': ZeroDivisionError: division by zero (")
    segmentor = ob.build_segmentor("bad", clip=ob.load_clip("demo"), vocabulary=vocabulary)
    for debug in ("debug=false", "debug=true"):
        monkeypatch.setattr("sys.argv", ["tool.py", debug])
        with pytest.raises(SystemExit) as end:
            run_tool(lambda: segmentor.mix(1, 2, 3, 4))  # outside of the loop
        assert end.value.code == 2
        errors = capsys.readouterr().err
        assert errors.splitlines()[-1].startswith("error: ZeroDivisionError: division by zero (")
        assert ("Traceback" in errors) == (debug == "debug=true")
    assert parse_options(["limit=3", "debug=true"], [Option("limit", int, None)]) == {"limit": 3}
    with pytest.raises(KeyError):
        run_tool(lambda: {}["ours"])


def test_a_hook_that_exits_is_named_and_a_signal_is_not():
    method = ob.SEGMENTORS.get("sclip")
    own = type("Exits", (method,), {"__module__": "somebody"})
    with pytest.raises(ob.OvssError, match="scores: SystemExit: 3"), plugin_errors("scores", own):
        raise SystemExit(3)
    with pytest.raises(Ended), plugin_errors("scores", own):
        raise Ended(signal.SIGTERM)
