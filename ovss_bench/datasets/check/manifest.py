"""The report of a check, for the terminal and as a manifest, which lets two users compare their copies of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ...config.validation import Expected, Images, validate_all
from ...errors import OvssError, reading
from ...files import read_json
from ..base import SegDataset
from ..config import dataset_config

SHOWN = 5  # files shown per kind of mistake
Histogram = dict[Annotated[str, StringConstraints(pattern=r"^-?[0-9]{1,18}$")], int]
KEYS = {  # of a manifest; all but `dataset` are optional
    **dict.fromkeys(("dataset", "source", "ids_sha256"), str),
    "images": Images,
    "fingerprint": str | None,
    "histogram": Annotated[Histogram, Expected("class numbers and their pixels")],
    "labels": Annotated[dict[str, str], Expected("ids and the digests of their label maps")],
}


@dataclass(frozen=True)
class Finding:
    """One mistake: its kind (see `CHECKS`), the file or folder, what is wrong, and how to fix it."""

    kind: str
    file: Path | None
    what: str
    hint: str


@dataclass(frozen=True)
class Report:
    """The result of a check. `histogram`: class index -> pixels; `labels`: id -> digest of the label map;
    `fingerprint`: as in result files, None if files are missing, unreadable or listed twice; `ids_digest`: SHA-256 of the
    sorted ids, one per line; `notes`: observations that may not be mistakes."""

    name: str
    root: Path
    findings: list[Finding]
    images: int
    classes: tuple[str, ...]
    ignore_index: int
    histogram: dict[int, int]
    labels: dict[str, str]
    fingerprint: str | None
    ids_digest: str
    notes: list[str] = field(default_factory=list)

    def manifest(self) -> dict[str, Any]:
        """The facts to compare between two copies."""
        return {
            "dataset": self.name,
            "images": self.images,
            "ids_sha256": self.ids_digest,
            "fingerprint": self.fingerprint,
            "histogram": {str(value): pixels for value, pixels in self.histogram.items()},
            "labels": self.labels,
        }


def read_manifest(path: Path, name: str) -> dict[str, Any]:
    """Reads a manifest of this data set. Raises OvssError if it cannot be used."""
    dataset, hint = dataset_config(name)[0], "Expected a file written by check with out=FILE, or one of datasets/manifests."
    with reading(f"manifest {path}", hint):
        manifest = read_json(path)
    if not isinstance(manifest, dict) or "dataset" not in manifest:
        raise OvssError(f"{path} is no manifest. {hint}")
    try:
        validate_all(manifest, KEYS, "key")
    except OvssError as error:
        raise OvssError(f"{path} is no manifest: {error} {hint}") from error
    if manifest["dataset"] != dataset:
        raise OvssError(f"manifest {path} is for {manifest['dataset']}, not for {dataset}.")
    return manifest


def compare(report: Report, theirs: Mapping[str, Any], dataset: SegDataset) -> Iterator[Finding]:
    """The differences from the facts in a manifest."""
    hint = "One of the two copies is not the official data: check both."
    paths = {sample.id: sample.label_path for sample in dataset.listed}
    here, there = report.labels, theirs.get("labels", report.labels)
    if "labels" not in theirs and theirs.get("ids_sha256", report.ids_digest) != report.ids_digest:
        what = f"{report.images} images here, {theirs.get('images', 'unknown')} in the manifest, with other ids"
        yield Finding("other ids than in the manifest", None, what, hint)
    for what, ids in (("only here", here.keys() - there.keys()), ("only in the manifest", there.keys() - here.keys())):
        for name in sorted(ids):
            yield Finding("other ids than in the manifest", paths.get(name), f"{name} is {what}", hint)
    for name in sorted(here.keys() & there.keys()):
        if here[name] != there[name]:
            yield Finding("other labels than in the manifest", paths[name], "holds other class numbers", hint)
    ours, other = report.histogram, {int(value): n for value, n in theirs.get("histogram", report.histogram).items()}
    for value in sorted(ours.keys() | other.keys()):
        pixels = ours.get(value, 0), other.get(value, 0)
        if pixels[0] != pixels[1]:
            what = f"{value} {_name(report, value)}: {pixels[0]} pixels here, {pixels[1]} in the manifest"
            yield Finding("other pixels of a class than in the manifest", None, what, hint)
    fingerprints = {report.fingerprint, theirs.get("fingerprint", report.fingerprint)}
    if here == there and len(fingerprints) == 2 and None not in fingerprints:  # a copy that lacks files has none
        what = "ids and class numbers are the same, but image files differ in size, or label files in content"
        hint = "The images may be from another release or recompressed, which changes results. Label files that differ only in "
        hint += "encoding, as with another version of Pillow, are harmless."
        yield Finding("other bytes than in the manifest", None, what, hint)


def view(report: Report) -> Group:
    """A report for the terminal: facts, histogram, findings by kind."""
    facts = Table(box=None, pad_edge=False, show_header=False, title_justify="left")
    facts.title = Text(f"{report.name} in {report.root}", style="bold")
    facts.add_row("images", str(report.images))
    facts.add_row("fingerprint", report.fingerprint or "none: files are missing, unreadable or listed twice")
    facts.add_row("sha256 of the ids", report.ids_digest)
    histogram = Table(box=None, pad_edge=False)
    for column in ("value", "class", "pixels", "share"):
        histogram.add_column(column, justify="left" if column == "class" else "right", overflow="fold")
    total = sum(report.histogram.values())
    for value, pixels in report.histogram.items():
        histogram.add_row(str(value), Text(_name(report, value)), str(pixels), f"{pixels / total:.2%}")
    parts: list[Any] = [facts, Text(), histogram, Text()]
    absent = [f"{value} {name}" for value, name in enumerate(report.classes) if value not in report.histogram]
    if absent:
        parts.append(Text(f"note: {len(absent)} of {len(report.classes)} classes never occur: {', '.join(absent)}\n"))
    parts += [Text(f"note: {note}\n") for note in report.notes]
    for kind, group in groupby(report.findings, lambda finding: finding.kind):
        findings = list(group)
        parts.append(Text(f"{kind}: {len(findings)}", style="bold red"))
        parts += [Text("  " + (f"{each.file}: " if each.file else "") + each.what) for each in findings[:SHOWN]]
        more = f"  and {len(findings) - SHOWN} more\n" if len(findings) > SHOWN else ""
        parts.append(Text(f"{more}  -> {findings[0].hint}\n"))
    parts.append(Text(f"findings: {len(report.findings)}" if report.findings else "nothing is wrong"))
    return Group(*parts)


def _name(report: Report, value: int) -> str:
    if value == report.ignore_index:
        return "ignored"
    return report.classes[value] if 0 <= value < len(report.classes) else "(no class)"
