"""Data sets: the loaders, by name the module of this package that registers it, which is imported when it is first used."""

MODULES = {"mmseg": "base", "coco_2014": "coco", "demo": "demo.loader"}
