"""Data sets. MODULES: by registered name of a loader the module of this package, which is imported on first use."""

MODULES = {"mmseg": "base", "coco_2014": "coco", "demo": "demo.loader"}
