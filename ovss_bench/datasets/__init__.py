"""Data sets. MODULES maps the name of each loader to its module in this package, which is imported on first use."""

MODULES = {"mmseg": "base", "coco_2014": "coco", "demo": "demo.loader"}
