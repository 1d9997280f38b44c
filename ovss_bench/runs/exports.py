"""Label maps that a run saves with `save_label_maps=DIR`, in the format that segmentor=labels reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..auxiliary.label_maps import Manifest
from ..errors import OvssError
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


def manifest_of(job: Job) -> Manifest:
    """What the manifest states about the label maps of a row."""
    segmentor, classes = job.segmentor, job.dataset.classes
    overridden = {name: str(value) for name, value in sorted(segmentor.recipe.overrides.items())}
    tags = {"clip": segmentor.clip.name, "weights_digest": segmentor.clip.weights_digest, "protocol": job.protocol}
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
