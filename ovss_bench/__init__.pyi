from .auxiliary.bank import RegionBank, load_bank
from .auxiliary.foreground import load_foreground
from .auxiliary.regions import load_regions
from .config.hyperparameters import File, Folder
from .config.recipe import compose_recipe, segmentor_names
from .config.registry import DATASETS, SEGMENTORS, STEPS, load_plugin
from .datasets.base import SegDataset, load_dataset
from .encoders.clip import DenseCLIP
from .encoders.clip_loading import load_clip
from .encoders.diffusion import load_diffusion
from .encoders.vision import load_vision
from .errors import OvssError
from .image import image_key, normalize, read_image, resize
from .inference.engine import make_context, segment
from .inference.prediction import Prediction
from .ops.attention import attend
from .ops.windows import SlidingWindow
from .runs.evaluate import evaluate
from .runs.jobs import Runtime
from .runs.load import load_results
from .runs.rankings import rank_templates
from .runs.result import EvalResult
from .segmentors.base import LastBlockSegmentor, Segmentor
from .segmentors.build import build_segmentor
from .segmentors.steps.base import LabelStep, PixelStep, ScoreStep, TextStep, WindowStep
from .types import ImageContext, WindowBatch
from .vocabulary import Vocabulary

__all__ = [
    "DATASETS",
    "SEGMENTORS",
    "STEPS",
    "DenseCLIP",
    "EvalResult",
    "File",
    "Folder",
    "ImageContext",
    "LabelStep",
    "LastBlockSegmentor",
    "OvssError",
    "PixelStep",
    "Prediction",
    "RegionBank",
    "Runtime",
    "ScoreStep",
    "SegDataset",
    "Segmentor",
    "SlidingWindow",
    "TextStep",
    "Vocabulary",
    "WindowBatch",
    "WindowStep",
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
    "make_context",
    "normalize",
    "rank_templates",
    "read_image",
    "resize",
    "segment",
    "segmentor_names",
]
