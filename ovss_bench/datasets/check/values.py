"""Checks of label values: values changed by the file format, and classes lost in a conversion.

Common converters for iSAID and UAVid write `Image.fromarray(array, mode="P")` without a palette, which newer versions of Pillow
save as one-bit PNG files: all classes become 0 or 1 (mmsegmentation, issues 1504 and 1733).
"""

from __future__ import annotations

from collections.abc import Iterator

from .survey import Found, Pair, Survey, mistake

LARGE_SHARE = 0.9  # of the pixels
FEW_CLASSES = 4  # with fewer classes, a large share of one class is usual
FEWEST_MAPS = 3  # with fewer label maps, shares mean little


@mistake(
    "grey of fewer than 8 bits",
    "Grey PNG and TIFF files with 2 or 4 bits hold brightness, which is read as 0 to 255. Save the class numbers with 8 bits "
    "per pixel, or with a palette. {again}",
)
def stretched_grey(survey: Survey) -> Found:
    for pair in survey.labels:
        if pair.mode == "L" and pair.bits in (2, 4) and any(pair.values):
            factor, stored = 255 // (2**pair.bits - 1), sorted(pair.values)
            what = f"{pair.bits} bits of grey, which readers stretch to 8: {stored[-1] // factor} is read as {stored[-1]}"
            yield pair.label_path, what


@mistake(
    "too few bits for the classes",
    'Class numbers were truncated when the files were written. Image.fromarray(array, mode="P") does this with newer versions '
    "of Pillow: write Image.fromarray(array) in the converter instead, and convert again. {again}",
)
def too_few_bits(survey: Survey) -> Found:
    count = survey.count
    narrow = all(2**pair.bits < count for pair in survey.labels)
    for pair in survey.labels:
        beyond = [] if pair.palette is None or pair.bits >= 8 else sorted(pair.values.keys() - pair.palette.keys())
        if beyond:
            yield pair.label_path, f"{pair.bits} bits per pixel, and {beyond[-1]} is not in the palette of the file"
        elif narrow and pair.bits < 8:
            yield pair.label_path, f"{pair.bits} bits per pixel, as in all label maps, for {count} classes"


@mistake(
    "palette of another order",
    "Numbers and colours of these files contradict each other. If the colours are right, renumber the classes "
    "(ovss_bench.datasets.prepare.conversion.by_colour); if the numbers are right, the palette is harmless. {again}",
)
def other_palette(survey: Survey) -> Found:
    palette = [tuple(colour) for colour in survey.dataset.palette] if {"mmseg", "palette"} & survey.config.keys() else []
    coloured = [(pair, _class_colours(survey, pair, len(palette))) for pair in survey.labels]
    pairs = {pair for _, found in coloured for pair in found.values()}
    wrong = {(number, colour) for number, colour in pairs if palette[number] != colour}
    if len(wrong) < 2 or not {colour for _, colour in pairs} <= set(palette):  # an unrelated palette proves nothing
        return
    names = survey.dataset.classes
    for pair, found in coloured:
        moved = [(value, *entry) for value, entry in found.items() if entry in wrong]
        for value, number, colour in moved[:1]:
            what = f"{value} ({names[number]}) has the colour of {names[palette.index(colour)]}, {colour}, in its palette"
            yield pair.label_path, what


def _class_colours(survey: Survey, pair: Pair, count: int) -> dict[int, tuple[int, tuple[int, ...]]]:
    """Stored value -> (class, colour in the file), for the first `count` classes and colours other than black."""
    classes = {value: (survey.class_of[value], colour) for value, colour in (pair.palette or {}).items() if any(colour)}
    return {value: entry for value, entry in classes.items() if 0 <= entry[0] < count}


@mistake(
    "masks of 0 and 255",
    "255 means ignored, so the object would never be counted: it must be 1 (or, if white is the background, 0). Divide the "
    "masks by 255. {again}",
)
def black_and_white(survey: Survey) -> Found:
    count = survey.count
    certain = not survey.shifts and (count == 2 or (count > 2 and survey.whole))
    for pair in survey.labels if certain and set(survey.pixels) == {0, 255} and survey.foreign <= {255} else ():
        if 255 in pair.values:
            yield pair.label_path, f"holds 255, and no label map holds anything but 0 and 255, for {count} classes"


@mistake("everything ignored", "Are the labels empty, or in an encoding that must be converted first? {again}")
def all_ignored(survey: Survey) -> Found:
    if set(survey.histogram) == {survey.ignored} and survey.unexplained:
        yield survey.label_folder, f"all pixels of all label maps are ignored ({survey.ignored}): nothing would be evaluated"


@mistake(
    "hardly any classes",
    "A complete data set has more classes: a converter has probably lost them, or these are other masks. {again}",
)
def few_classes(survey: Survey) -> Found:
    count, present = survey.count, len(_counted(survey))
    if present and survey.whole and survey.unexplained and (10 * present < count or present == 1 < count):
        yield survey.label_folder, f"{present} of {count} classes occur in {len(survey.ids)} images"


@mistake(
    "one class nearly everywhere", "Other classes were probably lost in a conversion, or replaced by an image editor. {again}"
)
def one_class(survey: Survey) -> Found:
    name, share, usual = _largest(survey)
    if share > LARGE_SHARE and not usual and survey.unexplained and len(survey.labels) >= FEWEST_MAPS:
        yield survey.label_folder, f"{share:.1%} of the pixels that are not ignored are {name}"


def notes(survey: Survey) -> Iterator[str]:
    """Observations that may or may not be mistakes."""
    name, share, usual = _largest(survey)
    if share > LARGE_SHARE and usual:
        yield (
            f"{share:.1%} of the pixels that are not ignored are {name}; this is usual with few classes, or with small objects "
            "on a background. Otherwise, classes were lost or masks are inverted"
        )


def _largest(survey: Survey) -> tuple[str, float, bool]:
    """The most frequent class, its share, and whether a large share is usual: for the background, or with few classes."""
    counted, dataset = _counted(survey), survey.dataset
    if not counted:
        return "", 0.0, True
    value = max(counted, key=counted.get)
    usual = value == dataset.background or len(dataset.classes) < FEW_CLASSES
    return f"{value} {dataset.classes[value]}", counted[value] / sum(counted.values()), usual


def _counted(survey: Survey) -> dict[int, int]:
    return {value: pixels for value, pixels in survey.histogram.items() if 0 <= value < survey.count}


NOT_AS_STORED = (stretched_grey, too_few_bits, other_palette, black_and_white)
UNLIKELY = (all_ignored, few_classes, one_class)
