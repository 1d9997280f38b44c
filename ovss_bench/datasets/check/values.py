"""Checks of label values: values changed by the file format, and data sets that lost classes.

Common converters of iSAID and UAVid write `Image.fromarray(array, mode="P")` without a palette, which newer versions of Pillow
save as PNG files of one bit: all classes become 0 or 1 (mmsegmentation, issues 1504 and 1733).
"""

from __future__ import annotations

from collections.abc import Iterator

from .survey import Found, Survey, mistake

MOST, TENTH, FEW, MAPS = 0.9, 10, 4, 3  # a share of the pixels; classes for one that occurs; few classes; label maps


@mistake(
    "grey of fewer than 8 bits",
    "PNG and TIFF files of 2 or 4 bits hold brightness, which is read as 0 to 255. Save the class numbers with 8 bits a "
    "pixel, or with a palette. {again}",
)
def stretched_grey(survey: Survey) -> Found:
    for seen in survey.labels:
        if seen.mode == "L" and seen.bits in (2, 4) and any(seen.values):
            factor, stored = 255 // (2**seen.bits - 1), sorted(seen.values)
            what = f"{seen.bits} bits of grey, which readers stretch to 8: {stored[-1] // factor} is read as {stored[-1]}"
            yield seen.sample.label_path, what


@mistake(
    "too few bits for the classes",
    'Class numbers were cut when the files were written. Converters that use Image.fromarray(array, mode="P") do so with '
    "newer versions of Pillow: write Image.fromarray(array) instead, and convert again. {again}",
)
def too_few_bits(survey: Survey) -> Found:
    count, labels = len(survey.dataset.classes), survey.labels
    narrow = all(2**seen.bits < count for seen in labels)
    for seen in labels:
        beyond = [] if seen.palette is None or seen.bits >= 8 else sorted(seen.values.keys() - seen.palette.keys())
        if beyond:
            yield seen.sample.label_path, f"{seen.bits} bits a pixel, and {beyond[-1]} is not in the palette of the file"
        elif narrow and seen.bits < 8:
            yield seen.sample.label_path, f"{seen.bits} bits a pixel, as in all label maps, for {count} classes"


@mistake(
    "palette of another order",
    "Numbers and colours of these files contradict each other. If the colours are right, number the classes anew "
    "(ovss_bench.datasets.prepare.conversion.by_colour); if the numbers are, the palette does no harm. {again}",
)
def other_palette(survey: Survey) -> Found:
    config = survey.dataset.config
    palette = [tuple(colour) for colour in survey.dataset.palette] if {"mmseg", "palette"} & config.keys() else []

    def classes(seen) -> dict[int, tuple[int, tuple[int, ...]]]:
        ruled = {value: (survey.ruled[value], colour) for value, colour in (seen.palette or {}).items() if any(colour)}
        return {value: pair for value, pair in ruled.items() if 0 <= pair[0] < len(palette)}

    coloured = [(seen, classes(seen)) for seen in survey.labels if palette]
    pairs = {pair for _, found in coloured for pair in found.values()}
    wrong = {(number, colour) for number, colour in pairs if palette[number] != colour}
    if len(wrong) < 2 or not {colour for _, colour in pairs} <= set(palette):  # a different palette proves nothing
        return
    for seen, found in coloured:
        moved = {value: pair for value, pair in found.items() if pair in wrong}
        for value, (number, colour) in list(moved.items())[:1]:
            names, other = survey.dataset.classes, palette.index(colour)
            yield (
                seen.sample.label_path,
                f"{value} ({names[number]}) has the colour of {names[other]}, {colour}, in its palette",
            )


@mistake(
    "masks of 0 and 255",
    "255 means ignored, so the object would never be counted: it must be 1 (or, if white is the background, 0). Divide the "
    "masks by 255. {again}",
)
def black_and_white(survey: Survey) -> Found:
    count = len(survey.dataset.classes)
    if set(survey.pixels) == {0, 255} and survey.foreign <= {255} and not survey.shifts and (count == 2 or survey.whole):
        for seen in survey.labels if count > 1 else ():
            if 255 in seen.values:
                yield seen.sample.label_path, f"holds 255, and no label map holds anything but 0 and 255, for {count} classes"


@mistake("everything ignored", "Are the labels empty, or in an encoding that must be converted first? {again}")
def all_ignored(survey: Survey) -> Found:
    ignored = survey.dataset.ignore_index
    if survey.pixels and set(survey.histogram) == {ignored} and survey.unexplained:
        yield _labels(survey), f"all pixels of all label maps are ignored ({ignored}): nothing would be evaluated"


@mistake(
    "hardly any classes",
    "The labels of a whole data set hold more: a converter has probably cut them, or these are masks of something else. "
    "{again}",
)
def few_classes(survey: Survey) -> Found:
    count, present = len(survey.dataset.classes), len(_counted(survey))
    if present and survey.whole and survey.unexplained and (present * TENTH < count or present == 1 < count):
        yield _labels(survey), f"{present} of {count} classes occur in {len(survey.ids)} images"


@mistake(
    "one class nearly everywhere", "Other classes were probably lost in a conversion, or replaced by an image editor. {again}"
)
def one_class(survey: Survey) -> Found:
    name, share, usual = _largest(survey)
    if share > MOST and not usual and survey.unexplained and len(survey.labels) >= MAPS:
        yield _labels(survey), f"{share:.1%} of the pixels that are not ignored are {name}"


def notes(survey: Survey) -> Iterator[str]:
    """Observations that may be correct or mistakes."""
    name, share, usual = _largest(survey)
    if share > MOST and usual:
        yield (
            f"{share:.1%} of the pixels that are not ignored are {name}; with few classes, or small objects before a "
            "background, that is usual. If it is not so here, other classes were lost, or masks are inverted"
        )


def _largest(survey: Survey) -> tuple[str, float, bool]:
    """The most frequent class, its share, and whether a large share is usual: for the background, or one of few classes."""
    counted, dataset = _counted(survey), survey.dataset
    if not counted:
        return "", 0.0, True
    value = max(counted, key=counted.get)
    usual = value == dataset.background or len(dataset.classes) < FEW
    return f"{value} {dataset.classes[value]}", counted[value] / sum(counted.values()), usual


def _counted(survey: Survey) -> dict[int, int]:
    return {value: pixels for value, pixels in survey.histogram.items() if 0 <= value < len(survey.dataset.classes)}


def _labels(survey: Survey):
    return survey.dataset.root / survey.dataset.config["labels"]


NOT_AS_STORED = (stretched_grey, too_few_bits, other_palette, black_and_white)
UNLIKELY = (all_ignored, few_classes, one_class)
