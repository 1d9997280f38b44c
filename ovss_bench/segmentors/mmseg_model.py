"""A network of mmsegmentation, by its config and checkpoint, run through mmseg's API (docs/outside.md)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..auxiliary.label_maps import plain_name
from ..config.hyperparameters import File
from ..config.registry import SEGMENTORS
from ..datasets.base import SegDataset
from ..datasets.lists import Sample
from ..datasets.mmseg_classes import mmseg_class
from ..encoders.checkpoints import weight_errors
from ..errors import OvssError, reading
from ..files import cache_dir, digest, write_text
from ..progress import Progress
from ..types import ImageContext
from .base import Segmentor

NOT_IN_CHECKPOINTS = ("num_batches_tracked", "relative_position_index")  # suffixes of buffers that weights may lack
ONLY_IN_TRAINING = ("auxiliary_head.", "data_preprocessor.")  # prefixes of keys that inference does not need


@SEGMENTORS.register_module(name="mmseg")
class MMSegModel(Segmentor):
    """Runs the network of `config` with the weights of `checkpoint` on the whole image, with the config's `test_pipeline` and
    `test_cfg`. Classes are matched by name; they must be those of the data set, in any order."""

    uses_clip = False
    outside = True
    requires = ("config", "checkpoint")
    config: File | None = None
    checkpoint: File | None = None

    @property
    def files(self) -> Mapping[str, Path]:
        """The config with everything that it inherits, written to one file in the cache."""
        with reading(f"config {self.config}", "Give a config of mmseg."):
            text = self.composed.pretty_text
        path = cache_dir() / "outside" / f"{digest(text)[:16]}.py"
        if not path.is_file():
            write_text(path, text)
        return {"composed config": path}

    @cached_property
    def composed(self) -> Any:
        """The config as mmengine's Config."""
        from mmengine import Config

        with reading(f"config {self.config}", "Give a config of mmseg."):
            config = Config.fromfile(str(self.config))
            _ = config.model.type, config.test_pipeline
        return config

    def begin(self, dataset: SegDataset, samples: Sequence[Sample], progress: Progress) -> None:
        """Loads the network before the first image."""
        _ = self.network, self.order

    @cached_property
    def loaded(self) -> dict[str, Any]:
        """The checkpoint, with its `state_dict` and `meta`."""
        from mmengine.logging import HistoryBuffer

        numpy: Any = np
        arrays = [numpy._core.multiarray._reconstruct, np.ndarray, np.dtype, *vars(np.dtypes).values()]
        # A checkpoint may hold the training log. It is not needed, but its buffers look up their methods by getattr.
        allowed: list[Any] = [HistoryBuffer, (_nothing, "builtins.getattr"), *(each for each in arrays if callable(each))]
        with weight_errors(f"checkpoint {self.checkpoint} cannot be read"), torch.serialization.safe_globals(allowed):
            content = torch.load(str(self.checkpoint), map_location="cpu", weights_only=True)
            return content if "state_dict" in content else {"state_dict": content}

    @cached_property
    def network(self) -> nn.Module:
        hint = "Check that the installed mmseg can build it."
        with redirect_stdout(StringIO()), warnings.catch_warnings(), reading(f"config {self.config}", hint):
            warnings.simplefilter("ignore")  # about optional parts of mmcv
            from mmengine.model import revert_sync_batchnorm
            from mmseg.apis import init_model

            network = revert_sync_batchnorm(init_model(self.composed.copy(), device="cpu"))
        state = {name.removeprefix("module."): tensor for name, tensor in self.loaded["state_dict"].items()}
        state = {name: tensor for name, tensor in state.items() if not name.startswith(ONLY_IN_TRAINING)}
        wanted = {name: t for name, t in network.state_dict().items() if not name.startswith(ONLY_IN_TRAINING)}
        missing = [name for name in wanted if name not in state and not name.endswith(NOT_IN_CHECKPOINTS)]
        problems = [f"it lacks {', '.join(missing[:5])} ({len(missing)} in all)"] if missing else []
        extra = [name for name in state if name not in wanted]
        problems += [f"the config has no {', '.join(extra[:5])} ({len(extra)} in all)"] if extra else []
        for name in state.keys() & wanted.keys():
            if state[name].shape != wanted[name].shape:
                problems.append(f"{name} is {tuple(state[name].shape)}, in the config {tuple(wanted[name].shape)}")
        if problems:
            what = f"checkpoint {self.checkpoint} does not fit {self.config}: {'; '.join(problems)}"
            raise OvssError(f"{what}. Give the config that it was trained with.")
        network.load_state_dict(state, strict=False)  # what may be missing was checked above
        return network.to(self.clip.device).eval()

    @cached_property
    def order(self) -> Tensor:
        """The data set's class for each output of the network (N,). Raises OvssError unless both have the same classes."""
        classes = self._stated_classes()
        owners = {plain_name(name): c for c, name in enumerate(self.vocabulary.classes)}
        owners |= {plain_name(q): c for q, c in zip(self.vocabulary.queries, self.vocabulary.group, strict=True) if c >= 0}
        unknown = [name for name in classes if plain_name(name) not in owners]
        order = [owners.get(plain_name(name), -1) for name in classes]
        absent = [name for c, name in enumerate(self.vocabulary.classes) if c not in order]
        if unknown or absent or len(set(order)) < len(order):
            what = f"{self.checkpoint} has other classes than the data set"
            names = f"unknown: {', '.join(unknown[:5]) or 'none'}; absent: {', '.join(absent[:5]) or 'none'}"
            hint = "Use the data set it was trained on, or export label maps with a class_map (docs/outside.md)."
            raise OvssError(f"{what} ({names}). {hint}")
        return self.tensor(torch.tensor(order))

    def _stated_classes(self) -> Sequence[str]:
        """The class names in the checkpoint, or else those of the config's data set. Raises OvssError if neither has any."""
        meta = self.loaded.get("meta") or {}
        stated = (meta.get("dataset_meta") or {}).get("classes") or meta.get("CLASSES")
        if stated:
            return stated
        dataset = (self.composed.get("test_dataloader") or {}).get("dataset") or {}
        if stated := (dataset.get("metainfo") or {}).get("classes"):
            return stated
        if "type" not in dataset:
            what = f"neither {self.checkpoint} (meta) nor {self.config} (test_dataloader) states the classes"
            raise OvssError(f"{what}. Set test_dataloader.dataset.metainfo.classes in the config.")
        return mmseg_class(dataset["type"]).METAINFO["classes"]

    @torch.inference_mode()
    def image_scores(self, context: ImageContext) -> Tensor:
        """The label map as the only plane (1, H, W)."""
        from mmseg.apis import inference_model

        network: Any = self.network
        network.cfg = self.composed.copy()  # a copy, as mmseg changes the pipeline for arrays
        result: Any = inference_model(network, context.original[..., ::-1].copy())
        return self.order[result.pred_sem_seg.data.long()].float()

    def decide(self, scores: Tensor, context: ImageContext) -> Tensor:
        return scores[0].long()


def _nothing(*_: Any) -> None:
    """Replaces `getattr` while a checkpoint is unpickled."""
