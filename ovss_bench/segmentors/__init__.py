"""Methods, one file each. MODULES: by registered name the module of this package, which is imported on first use."""

MODULES = {
    "clearclip": "clearclip",
    "clip": "clip",
    "clip_diy": "clip_diy",
    "cliper": "cliper",
    "cliptrase": "cliptrase",
    "command": "command",
    "corrclip": "corrclip",
    "corrclip_v2": "corrclip_v2",
    "gem": "gem",
    "labels": "labels",
    "maskclip": "maskclip",
    "mmseg": "mmseg_model",
    "naclip": "naclip",
    "proxyclip": "proxyclip",
    "resclip": "resclip",
    "scclip": "scclip",
    "sclip": "sclip",
}
