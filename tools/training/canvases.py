"""Training data of the demo encoders (drawn scenes of seen cloths), and the state that their trainings share."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import nn

from ovss_bench.datasets.demo.scenes import ALL_CLOTHS, GROUNDS, draw_scene

CANVAS = 72
SEEN = [cloth for cloth in ALL_CLOTHS if cloth.seen]
MEAN, STD = np.array(open_clip.OPENAI_DATASET_MEAN, np.float32), np.array(open_clip.OPENAI_DATASET_STD, np.float32)


def draw_canvas(seed: int) -> tuple[np.ndarray, np.ndarray, list[int], int]:
    """A scene of 1 to 4 seen cloths, its index map, the cloths (indices into SEEN) and the ground."""
    rng = np.random.RandomState(seed % 2**32)
    cloths = rng.choice(len(SEEN), rng.choice([1, 1, 2, 3, 4]), replace=False).tolist()
    ground = rng.randint(len(GROUNDS))
    return (*draw_scene(rng, CANVAS, CANVAS, [SEEN[i] for i in cloths], ground), cloths, ground)


def draw_canvases(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray, list[int], int]]:
    with multiprocessing.Pool() as pool:
        return pool.map(draw_canvas, range(seed * 10_000_019, seed * 10_000_019 + count), chunksize=500)


class Training:
    """Steps, log, weights and checkpoint of a training in a folder. Resumes from the last checkpoint.

    `parts`: objects with a state dict, such as models, optimizer and schedule.
    """

    def __init__(self, out: Path, steps: int, every: int, parts: dict[str, Any]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.steps, self.every, self.parts = out, steps, every, parts
        self.checkpoint, self.start, self.spent = out / "checkpoint.pt", 0, 0.0
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(state[name])
            self.start, self.spent = state["step"], state["seconds"]
            print(f"resuming from step {self.start}", flush=True)
        self.began, self.losses = time.monotonic(), []

    def due(self, step: int, loss: float) -> bool:
        """Records the loss of a step. Returns whether it is time to `keep`."""
        self.losses.append(loss)
        return (step + 1) % self.every == 0 or step + 1 == self.steps

    def keep(self, step: int, name: str, model: nn.Module, metadata: dict[str, str] | None = None, **measured: float) -> None:
        """Writes the weights in half precision to demo_NAME.safetensors, a line of the log, and the checkpoint. The checkpoint
        comes last, because the steps before it are not repeated after a kill."""
        weights = self.out / f"demo_{name}.safetensors"
        half = {key: tensor.half().contiguous() for key, tensor in model.state_dict().items() if tensor.is_floating_point()}
        save_file(half, weights.with_suffix(".tmp"), metadata)
        weights.with_suffix(".tmp").replace(weights)
        done, seconds = step + 1, self.spent + time.monotonic() - self.began
        row = {"step": done, "seconds": round(seconds), "loss": round(float(np.mean(self.losses)), 4)}
        row |= {name: round(value, 2) for name, value in measured.items()}
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        print(f"{row}  {(self.steps - done) * seconds / done / 60:.0f} min left", flush=True)
        self.losses = []
        state = {name: part.state_dict() for name, part in self.parts.items()} | {"step": done, "seconds": seconds}
        torch.save(state, self.checkpoint.with_suffix(".tmp"))
        self.checkpoint.with_suffix(".tmp").replace(self.checkpoint)
