"""Tests of new_method: run them with `pytest`."""

from pathlib import Path

import numpy as np
import pytest
import torch

import ovss_bench as ob

PLUGIN = Path(__file__).with_name("new_method.py")


@pytest.fixture(scope="module")
def segmentor():
    """With the class names of the demo."""
    ob.load_plugin(PLUGIN)
    vocabulary = ob.load_dataset("demo").vocabulary("demo", "notebook7")
    return ob.build_segmentor("new_method", clip=ob.load_clip("demo"), vocabulary=vocabulary)


def test_its_recipe_is_found(segmentor):
    assert "new_method.yaml" in segmentor.recipe.origins["sharpness"]


def test_windows_get_cosines_that_do_not_depend_on_their_neighbours(segmentor):
    pixels = torch.randn(3, 3, 48, 56, generator=torch.Generator().manual_seed(0))
    together = segmentor.patch_logits(ob.WindowBatch(pixels))
    assert together.shape[:2] == (3, len(segmentor.vocabulary.queries))
    assert together.isfinite().all()
    assert together.abs().max() <= 1.001
    alone = torch.cat([segmentor.patch_logits(ob.WindowBatch(window[None])) for window in pixels])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(40, 70), (1, 30), (200, 90)])
def test_images_of_all_sizes_get_a_label_map(segmentor, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    assert ob.segment(segmentor, image).label_map.shape == size


def test_the_demo_is_segmented(segmentor):
    result = ob.evaluate(segmentor, ob.load_dataset("demo"), limit=3)
    assert result.metrics["mIoU"] > 20  # chance is below 3
