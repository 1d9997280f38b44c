"""Methods, one file each: by name the module of this package that registers it, which is imported when it is first used."""

MODULES = {
    "clearclip": "clearclip",
    "clip": "clip",
    "clip_diy": "clip_diy",
    "cliper": "cliper",
    "cliptrase": "cliptrase",
    "corrclip": "corrclip",
    "corrclip_v2": "corrclip_v2",
    "gem": "gem",
    "maskclip": "maskclip",
    "naclip": "naclip",
    "proxyclip": "proxyclip",
    "resclip": "resclip",
    "scclip": "scclip",
    "sclip": "sclip",
}
