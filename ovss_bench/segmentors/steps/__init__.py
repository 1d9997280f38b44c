"""Parts of methods that can be added to others, one file each. MODULES: by registered name the module of this package."""

MODULES = {
    "floss": "floss",
    "freecp": "freecp",
    "image_engineering": "image_engineering",
    "lposs_pixels": "lposs_pixels",
    "pamr": "pamr",
    "region_vote": "region_vote",
    "tlp": "tlp",
}
