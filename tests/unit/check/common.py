"""Helpers of the tests of `check`, and the mistakes that they make."""

import numpy as np
from PIL import Image
from rich.console import Console

from ovss_bench.datasets.check.manifest import view
from ovss_bench.datasets.check.run import check

COUNT = "number of images"  # a miniature has fewer than are expected


def examined(dataset, root=None, **options):
    return check(dataset.name, root or data_root(dataset), workers=1, quiet=True, **options)


def data_root(dataset):
    """The folder from which the data set's folder is found."""
    first = next(folder for folder in dataset.config["folders"] if dataset.root.as_posix().endswith(folder) or folder == ".")
    return dataset.root if first == "." else dataset.root.parents[len(first.split("/")) - 1]


def altered(path, change):
    """Saves change(label) over a label map, in its own format."""
    with Image.open(path) as image:
        label, palette = np.array(image), image.getpalette()
    picture = change(label)
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    if palette and picture.mode == "L":
        picture.putpalette(palette)
    picture.save(path)


def label_paths(dataset):
    return [sample.label_path for sample in dataset.samples]


# Each mistake: the data set, what is done to its files (it gives the files that must be named, None for any), words of what is
# said about them, words of the hint.
MISTAKES = {}


def mistake(kind, name, *said, hint):
    def register(make):
        MISTAKES[f"{kind}: {make.__name__}"] = (kind, name, make, said, hint)
        return make

    return register


def through_jpeg(quality):
    def change(label):
        Image.fromarray(label).save("label.jpg", quality=quality)
        return np.array(Image.open("label.jpg"))

    return change


def described(folder, **entries):
    lines = {"images": "images", "labels": "labels", "image_suffix": ".png", "label_suffix": ".png", "classes": "[sky, grass]"}
    path = folder / "mine.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in (lines | entries).items()))
    return path


def masks_of(folder, value, share):
    """Masks of a data set of one's own in which a share of the pixels has this value, and the rest 0."""
    for path in (folder / "labels").glob("*.png"):
        label = np.zeros((40, 30), np.uint8)
        label[: round(40 * share)] = value
        Image.fromarray(label).save(path)


def printed(report):
    console = Console(width=200, soft_wrap=True)
    with console.capture() as capture:
        console.print(view(report))
    return capture.get()
