"""Methods, one file each. MODULES: by registered name the module of this package, which is imported on first use."""

MODULES = {
    "clearclip": "clearclip",
    "clip": "clip",
    "clip_dinoiser": "clip_dinoiser",
    "clip_diy": "clip_diy",
    "cliper": "cliper",
    "cliptrase": "cliptrase",
    "corrclip": "corrclip",
    "corrclip_v2": "corrclip_v2",
    "gem": "gem",
    "maskclip": "maskclip",
    "maskclip_plus": "maskclip_plus",
    "naclip": "naclip",
    "pacl": "pacl",
    "proxyclip": "proxyclip",
    "resclip": "resclip",
    "scclip": "scclip",
    "sclip": "sclip",
    "tagclip": "tagclip",
}
