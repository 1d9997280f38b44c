"""Turns class names with synonyms, prompt templates and a background class into text features, cached on disk by content."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import OvssError, unknown
from .files import CONFIGS, cache_dir, digest, read_lines, user_path

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from .encoders.clip import DenseCLIP
    from .progress import Progress

PROMPTS_AT_ONCE = 4096  # per call of `encode_text`; bounds the memory


def _packaged(name: str) -> tuple[str, ...]:
    return tuple(line for _, line in read_lines(CONFIGS / "templates" / f"{name}.txt", "templates file"))


# Copies of the official lists, so that no release of open_clip changes them. Each file names its source.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "imagenet80": _packaged("imagenet80"),
    "maskclip85": _packaged("imagenet80") + _packaged("maskclip5"),
    "notebook7": _packaged("notebook7"),
    "car15": _packaged("car15"),
    "zegclip15": _packaged("zegclip15"),
    "photo": ("a photo of a {}.",),
    "photo_bare": ("a photo of a {}",),
    "none": ("{}",),
}


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Queries and their classes. `group[q]` is the class of query q; -1 marks a distractor, which takes part in the softmax but
    belongs to no class. `background` is the index of the background class, or None. `classes` are display names. `templates`
    names the set or file of the `prompts`, texts with one `{}` each. `unseen`: classes that zero-shot methods are not trained
    on, by the data set's split; it is part of the data set's fingerprint, not of `digest`."""

    queries: tuple[str, ...]
    group: tuple[int, ...]
    classes: tuple[str, ...]
    background: int | None = None
    templates: str = "imagenet80"
    prompts: tuple[str, ...] = field(default=TEMPLATES["imagenet80"], repr=False)
    given_features: Tensor | None = field(default=None, repr=False)
    unseen: tuple[int, ...] = field(default=(), repr=False)

    @classmethod
    def from_names(
        cls,
        names: Sequence[str | Sequence[str]],
        *,
        background: bool | int | None = False,
        templates: str = "imagenet80",
        distractors: Sequence[str] = (),
        classes: Sequence[str] | None = None,
    ) -> Vocabulary:
        """`names`: an entry per class, a name or a list of synonyms. `templates`: see `read_templates`. Raises OvssError for an
        empty entry or a class listed twice."""
        prompts = read_templates(templates)
        synonyms = [[entry] if isinstance(entry, str) else entry for entry in names]
        if not synonyms:
            raise OvssError("a vocabulary needs at least one class name.")
        first: dict[str, int] = {}
        for i, entry in enumerate(synonyms):
            if not isinstance(entry, list | tuple) or not all(isinstance(name, str) for name in entry):
                raise OvssError(f"class {i} is {entry!r}: expected a name, or a list of synonyms.")
            if not entry or not all(query.strip() for query in entry):
                raise OvssError(f"class {i} has an empty name among {entry}. Every class needs a name; none may be empty.")
            if entry[0] in first:
                places = f"as class {first[entry[0]]} and as class {i}"
                raise OvssError(f"class '{entry[0]}' is listed twice: {places}. Merge the two or rename one.")
            first[entry[0]] = i
        queries = [query for entry in synonyms for query in entry] + list(distractors)
        group = [i for i, entry in enumerate(synonyms) for _ in entry] + [-1] * len(distractors)
        shown = tuple(classes) if classes is not None else tuple(entry[0] for entry in synonyms)
        if len(shown) != len(synonyms):
            raise OvssError(f"the names list {len(synonyms)} classes, the data set has {len(shown)}.")
        return cls(tuple(queries), tuple(group), shown, _background(background, len(shown)), str(templates), prompts)

    @classmethod
    def from_file(cls, path: str | Path, **options) -> Vocabulary:
        """Reads a names file (see `read_names`). The options are those of `from_names`."""
        names, distractors = read_names(path)
        return cls.from_names(names, distractors=distractors, **options)

    @classmethod
    def from_features(
        cls, features: Tensor | np.ndarray, group: Sequence[int] | None = None, *, background: bool | int | None = False
    ) -> Vocabulary:
        """Uses the given text features (Q, E) and normalises their rows. `group` defaults to one class per query."""
        import torch
        import torch.nn.functional as F

        features = torch.as_tensor(features)
        group = tuple(range(len(features))) if group is None else tuple(int(g) for g in group)
        if len(group) != len(features):
            raise OvssError(f"{len(features)} text features but {len(group)} entries in group; give one class per feature.")
        count = max(group, default=-1) + 1
        if count < 1:
            raise OvssError("no text feature belongs to a class: all are distractors (group -1).")
        names = tuple(f"query {q}" for q in range(len(group)))
        classes = tuple(f"class {c}" for c in range(count))
        given = F.normalize(features.float().cpu(), dim=-1)
        return cls(names, group, classes, _background(background, count), "none", TEMPLATES["none"], given)

    def __repr__(self) -> str:
        words = f"{len(self.queries)} queries of {len(self.classes)} classes ({', '.join(self.classes[:4])}"
        background = "none" if self.background is None else repr(self.classes[self.background])
        more = ", ..." if len(self.classes) > 4 else ""
        return f"Vocabulary({words}{more}), background {background}, templates {self.templates})"

    @property
    def digest(self) -> str:
        """SHA-256 of queries, groups, background and templates (or of the given features)."""
        given = b"" if self.given_features is None else self.given_features.numpy().tobytes()
        return digest(*self.queries, repr(self.group), repr(self.background), *self.prompts, given)

    @cached_property
    def foreground(self) -> list[int]:
        """The queries of all classes except the background, without distractors."""
        return [q for q, c in enumerate(self.group) if c not in (-1, self.background)]

    @cached_property
    def by_class(self) -> tuple[Tensor, Tensor]:
        """The classes of all queries except distractors, ascending, so that ties go to the lowest class; and the order of the
        queries by class, distractors last."""
        import torch

        order = sorted(range(len(self.group)), key=lambda q: (self.group[q] < 0, self.group[q]))
        classes = torch.tensor([self.group[q] for q in order if self.group[q] >= 0])
        return classes, torch.tensor(order)

    @cached_property
    def is_by_class(self) -> bool:
        """Whether the queries are in the order of `by_class`."""
        return list(range(len(self.group))) == self.by_class[1].tolist()

    def features(self, clip: DenseCLIP, progress: Progress | None = None) -> Tensor:
        """Unit text features (Q, E) float32 on the device of `clip`: each prompt is normalised, averaged over templates, and
        normalised again. They are cached on disk by weights, queries and templates."""
        if self.given_features is not None:
            return self.given_features.to(clip.device)
        from .cache import read_entry, write_entry

        context = str(getattr(clip.tokenizer, "context_length", ""))
        weights = (clip.weights_digest, clip.text_activation, clip.precision)
        key = digest("text features 2", *weights, context, *self.prompts, "|", *self.queries)
        path = cache_dir() / "text" / f"{key}.safetensors"
        entry = read_entry(path)
        if entry is None:
            entry = {"features": self._encoded(clip, progress)}
            write_entry(path, entry)
        return entry["features"].to(clip.device)

    def _encoded(self, clip: DenseCLIP, progress: Progress | None) -> Tensor:
        """Text features, in batches of queries of similar length, since the longest query determines the cost of a batch."""
        import torch
        import torch.nn.functional as F

        from .progress import Progress

        unique = sorted(dict.fromkeys(self.queries), key=len)
        count = max(PROMPTS_AT_ONCE // len(self.prompts), 1)
        title = f"texts of {clip.name}, {len(unique)} names x {len(self.prompts)} templates"
        parts = []
        with (progress or Progress(quiet=True)).start(title, len(unique) * len(self.prompts), "prompts") as task:
            for i in range(0, len(unique), count):
                batch = unique[i : i + count]
                prompts = [prompt.replace("{}", query) for query in batch for prompt in self.prompts]
                parts.append(clip.encode_text(prompts, task.advance).view(len(batch), len(self.prompts), -1).mean(1).cpu())
        features = F.normalize(torch.cat(parts), dim=-1)
        row = {query: i for i, query in enumerate(unique)}
        return features[[row[query] for query in self.queries]]


def read_templates(name: str | Path) -> tuple[str, ...]:
    """The templates of a set in `TEMPLATES` or of a file: one per line, with one `{}`; skips empty lines and comments."""
    if name in TEMPLATES:
        return TEMPLATES[str(name)]
    path = user_path(name)
    if not path.is_file():
        if path.suffix or os.sep in str(name):
            hint = f"Give a text file with a template per line, such as 'a photo of a {{}}.', or one of {', '.join(TEMPLATES)}."
            raise OvssError(f"templates file {name} does not exist. {hint}")
        raise unknown("template set (or file)", name, TEMPLATES)
    templates = {n: line for n, line in read_lines(path, "templates file", "UTF-8 text, a template per line") if line}
    for number, line in templates.items():
        if line.count("{}") != 1:
            where = f"templates file {path}, line {number}: {line[:60]!r}"
            raise OvssError(f"{where} contains {{}} {line.count('{}')} times. Write it once, in place of the class name.")
    if not templates:
        raise OvssError(f"templates file {path} is empty. Expected a template per line, such as 'a photo of a {{}}.'")
    return tuple(templates.values())


def read_names(path: str | Path) -> tuple[list[list[str]], list[str]]:
    """The classes and the distractors of a names file: a line per class, synonyms separated by commas, a query with a comma in
    double quotes, surrounding white space ignored. A line `distractors: ...` lists queries without a class; lines that begin
    with `#` are comments. Warns about semicolons, which separate classes in `ovss segment` only."""
    lines = read_lines(path, "names file", "UTF-8 text, a line per class, synonyms separated by commas")
    suspect = [number for number, line in lines if ";" in line]
    if suspect:
        more = f" and {len(suspect) - 1} others" if suspect[1:] else ""
        hint = (
            "In a file every line is a class, its synonyms separated by commas; ';' separates classes of `ovss segment` only."
        )
        note = f"names file {path}, line {suspect[0]}{more}: the ';' is taken as part of a name. {hint}"
        warnings.warn(note, stacklevel=1)  # one place for all files, so that Python shows it once
    names: list[list[str]] = []
    distractors: list[str] = []
    first: dict[str, int] = {}
    for number, line in lines:
        entry = _split(line.removeprefix("distractors:"), path)
        if not all(entry):
            where = f"names file {path}, line {number}"
            raise OvssError(f"{where}: an empty name. Expected a class per line, its synonyms separated by commas.")
        if line.startswith("distractors:"):
            distractors += entry
            continue
        if entry[0] in first:
            raise OvssError(f"names file {path}: class '{entry[0]}' is listed twice, in lines {first[entry[0]]} and {number}.")
        first[entry[0]] = number
        names.append(entry)
    if not names:
        raise OvssError(f"names file {path} is empty. Expected a line per class.")
    return names, distractors


def _split(line: str, path: str | Path) -> list[str]:
    try:
        return [query.strip() for query in next(csv.reader([line], skipinitialspace=True, strict=True), []) or [""]]
    except csv.Error as error:
        hint = "Expected names separated by commas, and double quotes, if any, around a whole name."
        raise OvssError(f"names file {path}: the line {line[:60]!r} cannot be split ({error}). {hint}") from error


def _background(background: bool | int | None, count: int) -> int | None:
    if background is None or background is False:
        return None
    index = 0 if background is True else int(background)
    if not 0 <= index < count:
        raise OvssError(f"background class {index} is not among the {count} classes.")
    return index
