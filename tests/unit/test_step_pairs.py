"""What a step may change in a method, and what it needs of it, for every pair that composes."""

import inspect
import re
from functools import partial

import pytest
import torch

import ovss_bench as ob
from parity.seeded import rgb_image
from stand_ins import METHODS, SOURCES, STEPS
from unit.test_steps import build


def fits(step, method):
    return not issubclass(method, step) and not step.refusal(method)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_gives_a_method_no_source_that_it_does_without(step):
    """Or the step would change the method: LaVG cuts its own masks unless it has regions."""
    kind = ob.STEPS.get(step)
    for name in METHODS:
        method = ob.SEGMENTORS.get(name)
        if fits(kind, method):
            assert {*kind.hyperparameters()} & {*method.hyperparameters()} & SOURCES.keys() <= {*method.requires}, name


@pytest.mark.parametrize("name", [name for name in METHODS if fits(ob.STEPS.get("image_engineering"), ob.SEGMENTORS.get(name))])
def test_windows_are_altered_for_methods_that_see_nothing_else_of_the_image(name, tiny_clip, tiny_vocabulary):
    """Altered windows belong to no image; a method that looks at it would silently do something else."""
    values = {
        "proxyclip": {"empty_rows": "diagonal"},
        "cliptrase": {"resize": "keep_ratio"},
        "itaclip": {"img_engineering": False},
    }
    segmentor = build(name, tiny_clip, tiny_vocabulary, **values.get(name, {}))
    altered = partial(build, f"{name}+image_engineering", tiny_clip, tiny_vocabulary, **values.get(name, {}))
    context = ob.make_context(rgb_image(70, 120, 150), segmentor)
    pixels = context.pixels[None, :, :64, :64]
    first = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    with_image, alone = (
        segmentor.patch_logits(batch) for batch in (ob.WindowBatch(pixels, *first, [context]), ob.WindowBatch(pixels))
    )
    if torch.equal(with_image, alone):
        altered()
        return
    with pytest.raises(ob.OvssError, match=r"the whole image, which altered windows do not have\. Set") as caught:
        altered()
    setting, value = re.search(r"Set (\w+)=(\w+)", str(caught.value)).groups()
    altered(**{setting: {"false": False}.get(value, value)})


def attributes(kind):
    """What a class and its bases below the contract of all methods define, or set on an object."""
    classes = [each for each in kind.__mro__ if each.__module__.startswith("ovss_bench.segmentors.")]
    own = [each for each in classes if not each.__module__.endswith(".base")]
    code = "".join(map(inspect.getsource, own))
    return {name for each in own for name in vars(each)} | set(re.findall(r"self\.(\w+)(?:, self\.\w+)* = ", code))


@pytest.mark.parametrize("step", STEPS)
def test_a_step_replaces_nothing_of_a_method_but_hooks(step):
    """A method's own attribute of the same name would be lost without an error."""
    kind, contract = ob.STEPS.get(step), set(dir(ob.LastBlockSegmentor))
    for method in map(ob.SEGMENTORS.get, METHODS):
        if not issubclass(method, kind) and not kind.refusal(method):
            shared = SOURCES.keys() & method.hyperparameters().keys()
            assert not (attributes(kind) & attributes(method)) - contract - shared, method
