"""Where a stage writes its samples."""

import json
from types import SimpleNamespace

from megagpt.config.schema import Config
from megagpt.stages.base import BaseStage
from megagpt.train.state import TrainState


def test_samples_from_before_the_first_step_are_kept_beside_later_ones(tmp_path):
    (tmp_path / "run").mkdir()
    stage = BaseStage(Config(runs_dir=str(tmp_path)), SimpleNamespace(sample_tokens=8), None)
    stage.engine = SimpleNamespace(dims=SimpleNamespace(rank=0))
    for step, text in ((0, "noise"), (5, "early"), (9, "late")):
        stage.write_samples(TrainState(step=step), [{"prompt": "a", "text": text}])
    kept = {
        name: [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]
        for name in ("samples_before.jsonl", "samples.jsonl")
    }
    assert kept == {
        "samples_before.jsonl": [{"step": 0, "prompt": "a", "text": "noise"}],
        "samples.jsonl": [{"step": 9, "prompt": "a", "text": "late"}],
    }
