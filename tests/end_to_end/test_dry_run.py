"""A dry run stops with the same error as the run: all that a method can refuse before weights and images are read."""

import ast
import inspect
import re
import textwrap

import pytest
from PIL import Image

import ovss_bench as ob
from ovss_bench.auxiliary import SOURCES
from ovss_bench.encoders.clip_loading import patch_size_of
from ovss_bench.encoders.clip_spec import ClipSpec
from ovss_bench.files import config_names
from ovss_bench.segmentors import MODULES
from ovss_bench.segmentors.base import Segmentor
from stand_ins import STEPS

from .tools import evaluate_here

MINE = ("dataset=mine.yaml", "data_root=.")  # a data set without a background class
KNOWN = [(name, ob.SEGMENTORS.get(name)) for name in MODULES]
KINDS = [*(method for _, method in KNOWN), *map(ob.STEPS.get, STEPS)]
SHARES = [(name, share) for name, method in KNOWN for share in method.shares]
JOINING = [name for name, method in KNOWN if method.joins_patches]
# By class with a `check` of its own: command lines that it refuses.
REFUSED = {
    "Segmentor": [
        ("segmentor=maskclip", "recipe.threshold=0.5", *MINE),
        ("segmentor=naclip", "refine=pamr", "recipe.pamr_iterations=0"),
        ("segmentor=proxyclip", "recipe.vfm=null"),
        ("segmentor=tagclip",),
        ("segmentor=sclip", "text=floss"),
        *[(f"segmentor={name}", f"recipe.{share}={value}") for name, share in SHARES for value in (-0.1, 1.1)],
        *[(f"segmentor={name}", "clip=demo", "recipe.window=60", "recipe.stride=30") for name in JOINING],
    ],
    "ActiveSAM": [
        ("segmentor=active_sam", "concepts=demo", "recipe.quantile_alpha=0"),
        ("segmentor=active_sam", "concepts=demo", "recipe.preview_resolution=0"),
    ],
    "CLIPDINOiser": [("segmentor=clip_dinoiser", "recipe.apply_found=true", *MINE)],
    "CLIPDIY": [("segmentor=clip_diy", "recipe.stride_divisor=0")],
    "ConceptSegmentor": [
        ("segmentor=sam3", "concepts=demo", "recipe.slide_crop=4", "recipe.slide_stride=5"),
        ("segmentor=sam3", "recipe.prob_thd=0.5", *MINE),
    ],
    "LaVG": [("segmentor=lavg", "recipe.vfm=null", "recipe.regions=null")],
    "SAM3": [("segmentor=sam3", "concepts=demo", "recipe.combine=paint", "recipe.heads=semantic")],
    "TagCLIP": [("segmentor=zegclip", f"checkpoint={__file__}", "recipe.trusty=both")],
    "FLOSS": [("segmentor=clip_dinoiser", "text=floss", f"recipe.ranking={__file__}", "recipe.apply_found=true")],
    "ImageEngineering": [("segmentor=itaclip", "refine=image_engineering", "recipe.img_engineering=true")],
    "PixelPropagation": [("segmentor=lposs_plus", "refine=lposs_pixels")],
    "PAMRStep": [("segmentor=sclip", "refine=pamr", "recipe.pamr_steps=10")],
    "RegionVote": [("segmentor=corrclip", "refine=region_vote")],
}


def test_every_class_with_a_check_is_tried():
    checks = {each.__name__ for kind in KINDS for each in kind.__mro__ if issubclass(each, Segmentor) and "check" in vars(each)}
    assert checks == REFUSED.keys()


# Names of auxiliary models that a method of each kind refuses; "." is a folder without what it should hold.
NAMES = [(kind, name) for kind in SOURCES for name in ("nope", "nope.pt", "no/where")]
NAMES += [("vfm", "nope@image"), ("vfm", ".@image"), ("regions", "."), ("regions", "entityseg"), ("concepts", ".")]
TAKING = {kind: next(name for name, method in KNOWN if kind in method.hyperparameters()) for kind in SOURCES}
LINES = [*(words for lines in REFUSED.values() for words in lines)]
LINES += [(f"segmentor={TAKING[kind]}", f"{kind}={name}") for kind, name in NAMES]


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_a_dry_run_states_the_error_of_the_run(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "images: .\nlabels: .\nimage_suffix: .jpg\nlabel_suffix: .png\nclasses: [grass, sand]\n"
    )
    Image.new("RGB", (32, 32)).save("a.jpg")
    Image.new("L", (32, 32)).save("a.png")
    with pytest.raises(ob.OvssError) as refused:
        evaluate_here(*words, "limit=1")
    assert evaluate_here(*words, "dry_run=true") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"would stop: {' '.join(str(refused.value).split())}" in shown


def test_patches_are_known_without_the_weights():
    sides = {name: patch_size_of(ClipSpec.of(name)) for name in config_names("clip")}
    assert sides.pop("demo") == ob.load_clip("demo").patch_size
    assert sides == {name: int(re.match(r"vit_[a-z](\d+)", name)[1]) for name in sides}
    assert patch_size_of(ClipSpec.of("ViT-B-32:openai")) == 32
    assert patch_size_of(ClipSpec.of("demo", weights=__file__)) is None


def conditions(method):
    """The place and the condition of each error that a method raises after it is built."""
    for name, function in vars(method).items():
        code = getattr(getattr(function, "fget", None) or getattr(function, "func", function), "__code__", None)
        if code is None or name == "__init__":
            continue
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(code)))):
            if isinstance(node, ast.If) and any(isinstance(each, ast.Raise) for each in node.body):
                yield f"{method.__name__}.{name}", node.test


def test_what_the_recipe_alone_decides_is_refused_before_the_first_image():
    """An error whose condition reads nothing but hyperparameters and recipe values belongs into `check`."""
    found = []
    for method in {each for kind in KINDS for each in kind.__mro__ if issubclass(each, Segmentor)}:
        own = {"recipe", *method.hyperparameters()}
        for place, test in conditions(method):
            attributes = [node for node in ast.walk(test) if isinstance(node, ast.Attribute)]
            read = {node.attr for node in attributes if ast.unparse(node.value) == "self"}
            if {node.id for node in ast.walk(test) if isinstance(node, ast.Name)} == {"self"} and read <= own:
                found.append(f"{place}: {ast.unparse(test)}")
    assert not found
