"""The count of functions and files on a path: one call is followed, and configuration is left out."""

import pytest
import trace_calls as tool

from megagpt.config.schema import OptimConfig
from megagpt.train.schedules import describe_schedule, global_batch_size, learning_rate


def steps() -> None:
    optim = OptimConfig()
    for tokens in (1, 2):
        learning_rate(optim, tokens)
        describe_schedule(optim)
        global_batch_size(optim, tokens, 1)


def test_a_path_goes_from_one_function_to_the_end_of_another():
    path = tool.CallTrace("learning_rate", "describe_schedule", call=2)
    later = tool.CallTrace("global_batch_size", "global_batch_size", call=1)
    tool.trace([path, later], steps)
    assert [function for _, function in path.seen.values()] == ["learning_rate", "describe_schedule", "_parts"]
    assert [function for _, function in later.seen.values()] == ["global_batch_size"]
    assert path.files == {"megagpt/train/schedules.py"}  # the schedule itself is configuration
    assert path.file_changes == 0


def test_a_path_that_is_not_taken_is_an_error():
    with pytest.raises(LookupError, match="learning_rate was not called 3 times"):
        tool.trace([tool.CallTrace("learning_rate", "learning_rate", call=3)], steps)
