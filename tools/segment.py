"""Segments a photo: `python tools/segment.py photo.jpg --classes "cat; dog; grass, lawn" segmentor=sclip clip=vit_b16`."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ovss_bench.cli.startup

# isort: split

import numpy as np

import ovss_bench as ob
from ovss_bench.auxiliary.sources import SOURCES
from ovss_bench.cli.options import parse_options, run_tool
from ovss_bench.encoders.clip import ClipSpec
from ovss_bench.errors import OvssError, visible
from ovss_bench.figures import legend_picture, palette, palette_image
from ovss_bench.files import user_path, write_atomic
from ovss_bench.image import read_image
from ovss_bench.progress import Progress

OPTIONS = {"segmentor": "sclip", "clip": "demo", "weights": None, "plugins": [], "recipe": {}} | dict.fromkeys(SOURCES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--classes", required=True, help='classes separated by ";", synonyms by ","')
    parser.add_argument("--background", action="store_true", help="the first class is the background: what no other fits")
    parser.add_argument("--out", type=Path, default=Path("segmented"), help="folder of the two pictures (default: segmented)")
    parser.add_argument("options", nargs="*", help=f"{' '.join(f'{key}=' for key in OPTIONS)} as in tools/eval.py")
    arguments = parser.parse_intermixed_args()
    run_tool(lambda: segment(arguments))


def segment(arguments: argparse.Namespace) -> None:
    options = parse_options(arguments.options, OPTIONS)
    names = [[name.strip() for name in entry.split(",")] for entry in arguments.classes.split(";") if entry.strip()]
    if len(names) < 2:
        raise OvssError('give at least two classes, e.g. --classes "cat; grass, lawn; sky": every pixel gets the best of them.')
    photo, out = user_path(arguments.photo), user_path(arguments.out)
    image = read_image(photo)
    spec = ClipSpec.of(str(options["clip"]), options["weights"])
    overrides = options["recipe"] | {kind: options[kind] for kind in SOURCES if options[kind] is not None}
    recipe = ob.compose_recipe(options["segmentor"], clip=spec.label, overrides=overrides)
    clip = spec.load(recipe.precision)
    if recipe.resize == "center_crop":  # a benchmark's protocol; a photo is wanted whole
        overrides = {"resize": "keep_ratio"} | overrides
    vocabulary = ob.Vocabulary.from_names(names, background=arguments.background, templates=recipe.templates)
    segmentor = ob.build_segmentor(options["segmentor"], clip=clip, vocabulary=vocabulary, **overrides)
    segmentor.encode_text(Progress())
    label_map = ob.segment(segmentor, image, output_size=image.shape[:2]).label_map.cpu().numpy()
    if label_map.max() == len(names):  # where a method with thresholds of its own finds none
        names.append(["no class"])
    colours = palette(len(names))
    stem = f"{photo.stem}.{options['segmentor']}"
    labels, picture = out / f"{stem}.labels.png", out / f"{stem}.picture.png"
    write_atomic(labels, palette_image(label_map, colours).save)
    write_atomic(picture, legend_picture(image, label_map, [entry[0] for entry in names], colours).save)
    share = np.bincount(label_map.ravel(), minlength=len(names)) / label_map.size
    for c in np.argsort(-share, kind="stable"):
        print(f"{100 * share[c]:5.1f} %  {visible(', '.join(names[c]))}")
    print(f"label map: {labels}\npicture:   {picture}")


if __name__ == "__main__":
    main()
