"""Auxiliary models, which methods use besides CLIP. MODULES maps each kind to a module, whose function load_<last part of its
name> loads such models and whose find_<...> refuses the same names without reading weights. A run imports only the modules that
it needs, and only their code is part of its fingerprint (runs/code.py)."""

MODULES = {
    "vfm": "encoders.vision",
    "regions": "auxiliary.regions",
    "foreground": "auxiliary.foreground",
    "diffusion": "encoders.diffusion",
    "sam": "auxiliary.sam",
    "bank": "auxiliary.bank",
    "concepts": "encoders.concepts",
}
SOURCES = tuple(MODULES)
