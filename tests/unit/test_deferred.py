"""Imports that are put off until something is done with what was imported, and those of the package itself."""

import subprocess
import sys

import open_clip
import pytest

import ovss_bench as ob
from ovss_bench.encoders.clip_spec import architectures
from ovss_bench.encoders.deferred import deferred


@pytest.fixture
def late(tmp_path, monkeypatch):
    """The name of a module that can be imported, and has not been."""
    (tmp_path / "late_module.py").write_text("class Thing:\n    kind = 'real'\n\ndef double(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "late_module"
    sys.modules.pop("late_module", None)


def test_a_module_is_imported_when_something_is_done_with_its_names(late):
    with deferred(late):
        import late_module
        from late_module import Thing, double
    assert late not in sys.modules
    annotation = Thing | None if hasattr(Thing, "__or__") else Thing
    assert annotation is Thing
    assert late not in sys.modules
    assert double(3) == 6
    assert late in sys.modules
    assert Thing.kind == "real"
    assert isinstance(sys.modules[late].Thing(), Thing)
    assert late_module.double(4) == 8


def test_what_is_imported_already_stays_as_it_is(late):
    import late_module

    with deferred(late):
        import late_module as again
    assert again is late_module is sys.modules[late]


def test_an_error_leaves_nothing_behind(late):
    with pytest.raises(ZeroDivisionError), deferred(late):
        _ = 1 / 0
    assert late not in sys.modules
    with deferred(late):
        from late_module import nothing
    with pytest.raises(AttributeError, match="nothing"):
        nothing()


def test_the_package_has_all_its_names():
    assert set(ob.__all__) <= set(dir(ob))
    for name in ob.__all__:
        assert getattr(ob, name) is not None
    with pytest.raises(AttributeError, match="load_clp"):
        _ = ob.load_clp


def test_the_registries_show_everything():
    code = "import ovss_bench as ob; print(len(ob.DATASETS), 'coco_2014' in repr(ob.DATASETS), 'sclip' in repr(ob.SEGMENTORS))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["3", "True", "True"], done.stderr


def test_open_clip_s_other_models_can_still_be_made():
    """In a process of its own, in which nothing else has imported open_clip."""
    code = """
import sys
import ovss_bench as ob
ob.load_clip("demo")
assert not {"timm", "transformers", "torch._dynamo"} & sys.modules.keys()
import open_clip
model = open_clip.CustomTextCLIP(
    embed_dim=8,
    vision_cfg={"timm_model_name": "resnet10t", "timm_pool": "avg", "image_size": 32},
    text_cfg={"width": 8, "heads": 1, "layers": 1, "vocab_size": 10},
)
print(type(model.visual).__name__, "timm" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["TimmModel", "True"], done.stderr


def test_architectures_are_known_without_open_clip(monkeypatch):
    known = [name for name in open_clip.list_models() if not name.startswith("tiny-")]  # registered by test_clip.py
    monkeypatch.delitem(sys.modules, "open_clip")
    assert sorted(architectures()) == sorted(known)
    assert "open_clip" not in sys.modules
