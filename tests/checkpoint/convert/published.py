"""Configs of published models and what was published beside them, from `published_configs.json`.

Each entry has `source`, the public text in which its sizes were looked up, `config`, and where keras-hub's presets or
the model's card count them, `parameters`.
"""

import json
from pathlib import Path

ENTRIES = json.loads((Path(__file__).parent / "published_configs.json").read_text())
PUBLISHED = {family: {name: entry["config"] for name, entry in models.items()} for family, models in ENTRIES.items()}
"""config.json by family and name of the model."""
PARAMETERS = {
    name: entry["parameters"] for models in ENTRIES.values() for name, entry in models.items() if "parameters" in entry
}
"""Published numbers of parameters by name of the model; a tied output projection is not counted twice."""
