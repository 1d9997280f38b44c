"""ovss-bench: training-free open-vocabulary semantic segmentation, every method behind one interface.

import ovss_bench as ob
clip = ob.load_clip("demo")
vocabulary = ob.Vocabulary.from_names([["sky", "wall"], ["cat"], ["dog"]], background=True)
prediction = ob.segment(ob.build_segmentor("sclip", clip=clip, vocabulary=vocabulary), image)
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what is asked for is imported then: torch and open_clip take seconds, and many tools need neither
    from .datasets.base import SegDataset, load_dataset
    from .encoders.bank import RegionBank, load_bank
    from .encoders.clip import DenseCLIP, load_clip
    from .encoders.diffusion import load_diffusion
    from .encoders.foreground import load_foreground
    from .encoders.regions import load_regions
    from .encoders.sources import image_key
    from .encoders.vision import load_vision
    from .errors import OvssError
    from .hyperparameters import File, Folder
    from .image import normalize, read_image, resize
    from .inference.engine import make_scene, segment
    from .inference.prediction import Prediction
    from .inference.windows import SlidingWindow
    from .recipe import compose_recipe, segmentor_names
    from .registry import DATASETS, SEGMENTORS, load_plugin
    from .results.evaluated import EvalResult
    from .results.load import load_results
    from .results.run import Runtime, evaluate
    from .segmentors.attention import attend
    from .segmentors.base import LastBlockSegmentor, Scene, Segmentor, WindowBatch
    from .segmentors.build import build_segmentor
    from .vocabulary import Vocabulary

__all__ = [
    "DATASETS",
    "SEGMENTORS",
    "DenseCLIP",
    "EvalResult",
    "File",
    "Folder",
    "LastBlockSegmentor",
    "OvssError",
    "Prediction",
    "RegionBank",
    "Runtime",
    "Scene",
    "SegDataset",
    "Segmentor",
    "SlidingWindow",
    "Vocabulary",
    "WindowBatch",
    "attend",
    "build_segmentor",
    "compose_recipe",
    "evaluate",
    "image_key",
    "load_bank",
    "load_clip",
    "load_dataset",
    "load_diffusion",
    "load_foreground",
    "load_plugin",
    "load_regions",
    "load_results",
    "load_vision",
    "make_scene",
    "normalize",
    "read_image",
    "resize",
    "segment",
    "segmentor_names",
]

# name -> the module that it is in, as the imports above say
_MODULES = {
    alias.name: f"{__name__}.{node.module}"
    for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
    if isinstance(node, ast.ImportFrom) and node.level
    for alias in node.names
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
