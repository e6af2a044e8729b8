"""A run on conversations by a model's own template that writes the date: it goes on the same on another day."""

import json
import logging

import pytest
from dist import run_distributed

from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import MegaGPTError
from tests.stages.test_supervised import _run, _stage

LENGTH, BATCH = 64, 4
TEMPLATE = (
    "{{ strftime_now('%d %B %Y') }}{% for m in messages %}{{ m.role + ':' + m.content + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def _runs(base: list[str], settings: list[str]) -> dict:
    """What a run says that goes on after a while, beside one that does not stop."""
    import datetime

    from megatron.core import parallel_state

    from megagpt.data import chat_template

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6, tzinfo=tz)

    warned: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warned.append(record.getMessage())
    logging.getLogger("megagpt.stages.weights").addHandler(handler)
    _stage(base)
    found = {"whole": _run([*settings, "run_name=whole"])["losses"]}
    _run([*settings, "run_name=parts", f"optim.train_tokens={2 * BATCH * LENGTH}"])
    found["warned"] = list(warned)
    chat_template.datetime = Later
    found["parts"] = _run([*settings, "run_name=parts"])["losses"]
    _run([*settings, "run_name=dated", "data.chat_date=1999-12-31", "model.norm_epsilon=0.01"])
    found["dated"] = warned[len(found["warned"]) :]
    try:
        _run([*settings, "run_name=parts", "data.chat_date=1999-12-31"])
    except MegaGPTError as error:
        found["refused"] = str(error)
        parallel_state.destroy_model_parallel()
    return found


@pytest.mark.slow
def test_the_day_does_not_matter_and_another_date_is_refused(overrides, tmp_path):
    given = dict(text.split("=", 1) for text in overrides)
    tokenizer = Tokenizer.load(given["data.tokenizer"])
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    talks = [[("user", f"to {n}?"), ("assistant", "be")] for n in range(40)]
    lines = [json.dumps({"messages": [{"role": role, "content": text} for role, text in talk]}) for talk in talks]
    (tmp_path / "talks.jsonl").write_text("\n".join(lines))
    run = [
        *overrides,
        f"runs_dir={tmp_path}",
        f"model.sequence_length={LENGTH}",
        "model.num_layers=1",
        "optim.ramp_start=null",
        "optim.ramp_tokens=0",
        "optim.warmup_tokens=0",
        f"optim.global_batch_size={BATCH}",
        f"optim.train_tokens={4 * BATCH * LENGTH}",
    ]
    settings = [
        *run,
        "stage=sft",
        f"checkpoint.load={tmp_path}/base",
        f"data.tokenizer={tmp_path}/tokenizer.json",
        f"data.conversations=[{tmp_path}/talks.jsonl]",
        "stage.eval_interval=0",
    ]
    base = [*run, "run_name=base", f"optim.train_tokens={BATCH * LENGTH}"]
    found = run_distributed(_runs, 1, base, settings)[0]
    assert len(found["whole"]) == 4 and found["parts"] == found["whole"]
    assert "data.chat_date is 1999-12-31, but the run was started with 2024-07-26" in found["refused"]
    assert found["warned"] == []
    assert found["dated"] == [
        f"model.norm_epsilon is 0.01, but the model of {tmp_path}/base/checkpoints/step_00000001 was trained with 1e-05"
    ]
