"""Segments a photo: writes the label map and an overlay with a legend, and prints the share of pixels of each class."""

from __future__ import annotations

from typing import Any

from ..auxiliary import SOURCES
from ..errors import OvssError, visible
from ..files import user_path, write_atomic
from .eval_options import EVAL
from .options import Command, Option, Text

GROUPS = {
    "Classes and pictures": (
        Option("classes", Text | None, None, 'classes separated by ";", synonyms by ","'),
        Option("background", bool, False, "the first class is the background: it gets the pixels of no other class"),
        Option("out", Text, "segmented", "folder for the label map and the overlay"),
    ),
    "Method": (
        Option("segmentor", Text, "sclip", "a method"),
        *(EVAL[name] for name in ("text", "refine", "clip", "weights", "recipe", "plugins")),
    ),
    "Auxiliary models, instead of those in the recipe": [EVAL[name] for name in SOURCES],
}


def run(words: list[str]) -> None:
    positional, options = COMMAND.parse(words)
    if len(positional) != 1:
        raise OvssError(f"expected one photo; got {' '.join(positional) or 'none'}.")
    names = [[name.strip() for name in entry.split(",")] for entry in (options["classes"] or "").split(";") if entry.strip()]
    if len(names) < 2:
        raise OvssError('give at least two classes, e.g. classes="cat; grass, lawn; sky": every pixel gets one of them.')
    from ..config.recipe import compose_recipe, hyperparameters
    from ..encoders.clip_spec import NO_CLIP, ClipSpec
    from ..image import read_image

    photo, method = user_path(positional[0]), options["segmentor"]
    uses_clip = hyperparameters(method)[1].uses_clip
    spec = ClipSpec.of(options["clip"], options["weights"]) if uses_clip else NO_CLIP
    overrides: dict[str, Any] = options["recipe"] | {
        name: options[name] for name in (*SOURCES, "text", "refine") if options[name] is not None
    }
    recipe = compose_recipe(method, clip=spec.label, overrides=overrides)
    image = read_image(photo)

    import numpy as np

    import ovss_bench as ob

    from ..encoders.clip_loading import load_spec
    from ..figures import legend_picture, palette, palette_image
    from ..progress import Progress

    clip = load_spec(spec, recipe.precision) if uses_clip else None
    if recipe.resize == "center_crop":  # protocol of a benchmark; a photo is segmented as a whole
        overrides = {"resize": "keep_ratio"} | overrides
    vocabulary = ob.Vocabulary.from_names(names, background=options["background"], templates=recipe.templates)
    segmentor = ob.build_segmentor(method, clip=clip, vocabulary=vocabulary, **overrides)
    segmentor.encode_text(Progress())
    label_map = ob.segment(segmentor, image, output_size=image.shape[:2]).label_map.cpu().numpy()
    if label_map.max() == len(names):  # pixels below a threshold of the method
        names.append(["no class"])
    colours = palette(len(names))
    labels, picture = (
        user_path(options["out"]) / f"{photo.stem}.{recipe.segmentor}.{kind}.png" for kind in ("labels", "picture")
    )
    write_atomic(labels, palette_image(label_map, colours).save)
    write_atomic(picture, legend_picture(image, label_map, [entry[0] for entry in names], colours).save)
    share = np.bincount(label_map.ravel(), minlength=len(names)) / label_map.size
    for c in np.argsort(-share, kind="stable"):
        print(f"{100 * share[c]:5.1f} %  {visible(', '.join(names[c]))}")
    print(f"label map: {labels}\npicture:   {picture}")


COMMAND = Command(
    __doc__,
    ('PHOTO classes="CLASS; CLASS" [NAME=VALUE ...]',),
    GROUPS,
    (
        'photo.jpg classes="cat; dog; grass, lawn"',
        'photo.jpg classes="wall, floor; cat" background=true',
        'photo.jpg classes="sky; sea" segmentor=gem',
    ),
    run,
)
