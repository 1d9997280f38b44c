"""`python -m ovss_bench.segmentors` writes hyperparameters.json, after a change to the hyperparameters of a method."""

import json

from ..config.hyperparameters import TABLE, as_table
from ..config.recipe import of_class
from ..config.registry import SEGMENTORS
from ..files import write_text
from . import MODULES

table = as_table({name: of_class(SEGMENTORS.get(name)) for name in MODULES})
lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in table.items())
write_text(TABLE, "{\n" + ",\n".join(lines) + "\n}\n")
