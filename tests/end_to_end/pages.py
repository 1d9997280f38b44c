"""What the tests of the HTML page show on it: a data set with names that a page must not take for its own text."""

import numpy as np
import yaml
from PIL import Image

FAST = {"resize": "none", "window": 48, "stride": 48}
SCRIPT = "<script>window.hacked = 1</script>"
CLASSES = ["grass", SCRIPT, "<img src=x onerror='window.hacked=1'>", '"]}</style><b>&lt;']
IDS = ["plain", "a<script>window.hacked=1<", 'it\'s "&amp;" {{ data }}', "Bücher/größe"]
SIZE = (48, 64)


def write_own(folder):
    """A data set of one's own whose classes and files have names that a page must not take for its own text."""
    random = np.random.default_rng(0)
    for image in IDS:
        for kind, shape, top in (("images", (*SIZE, 3), 256), ("labels", (6, 8), len(CLASSES))):
            path = folder / kind / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = random.integers(0, top, shape, np.uint8)
            if kind == "labels":
                content = np.kron(content, np.ones((8, 8), np.uint8))
                content[:2] = 255
            Image.fromarray(content).save(path)
    config = {"images": "images", "labels": "labels", "image_suffix": ".png", "label_suffix": ".png", "classes": CLASSES}
    (folder / "own.yaml").write_text(yaml.safe_dump(config))
    return folder / "own.yaml"
