"""What a run states about itself before its first image: the fairness tags, and the manifest of the label maps that
`save_label_maps=DIR` saves, in the format that segmentor=labels reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..auxiliary.label_maps import Manifest
from ..auxiliary.sources import NamedSource
from ..config.training import NAMES
from ..errors import OvssError
from .fairness import fairness, overlap
from .jobs import Job
from .provenance import package_version


def refuse_maps(jobs: Sequence[Job], folder: str | None, output: str | Path | None) -> None:
    """Raises OvssError if the label maps of these rows cannot be saved and scored again."""
    if folder is None:
        return
    if output is None:
        raise OvssError(f"save_label_maps={folder} needs the folder of the results, too: output=DIR.")
    for job in jobs:
        scored_at = job.segmentor.recipe.scored_at
        if scored_at != "original":
            what = f"{job.name} on {job.dataset.name} is scored_at={scored_at}, not at the size of the images"
            raise OvssError(f"save_label_maps={folder}: {what}. Add recipe.scored_at=original, or leave save_label_maps out.")


def tags_of(job: Job, images: Sequence[str]) -> dict[str, Any]:
    """The fairness tags of a row on these images. Raises OvssError for invalid facts about training."""
    recipe, path = job.segmentor.recipe, job.segmentor.recipe.hyperparameters.get("path")
    stated = {
        "segmentor": job.name,
        "clip": job.segmentor.clip.name,
        "dataset": job.dataset.name,
        "sources": job.sources,
        "recipe": {name: {"value": value, "origin": recipe.origins[name]} for name, value in recipe.values().items()},
    }
    manifest_tags = Manifest.read(Path(path)).tags if isinstance(path, str) else None
    listed = getattr(job.segmentor.sources.get("bank"), "images", None)
    tags = {name: value for name, value in (manifest_tags or {}).items() if name in NAMES}
    objects = {kind for kind, source in job.segmentor.sources.items() if not isinstance(source, NamedSource)}
    return fairness(stated, tags, overlap(listed, images) if listed else None, given=objects)


def manifest_of(job: Job) -> Manifest:
    """The manifest of the label maps of a row."""
    segmentor, classes = job.segmentor, job.dataset.classes
    overridden = {name: str(value) for name, value in sorted(segmentor.recipe.overrides.items())}
    fair = tags_of(job, ())
    tags = {name: fair[name] for name in NAMES}
    tags |= {"clip": segmentor.clip.name, "weights_digest": segmentor.clip.weights_digest, "protocol": job.protocol}
    return Manifest(
        classes=classes,
        label_offset=0,
        void=len(classes),
        method=job.name,
        variant=" ".join(f"{name}={value}" for name, value in overridden.items()) or None,
        producer=f"ovss-bench {package_version('ovss-bench')}",
        dataset=job.dataset.name,
        tags=tags | {"fingerprint": job.fingerprint},
    )
