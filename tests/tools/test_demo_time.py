"""The time that the demo says it will take."""

import sys

import demo_time
import pytest

from megagpt.errors import ConfigError


def say(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["demo_time.py", *arguments])
    demo_time.main()
    return capsys.readouterr().out


@pytest.mark.parametrize(("share", "said"), [(1.0, "7 minutes"), (5.0, "84 seconds")])
def test_a_faster_machine_takes_less_time(share, said, monkeypatch, capsys):
    monkeypatch.setitem(demo_time.WORK, "train", 840.0)
    monkeypatch.setattr(demo_time, "machine_rate", lambda ranks: ranks * share * demo_time.REFERENCE)
    assert f"make train takes about {said} from here" in say(monkeypatch, capsys, "train", "--ranks", "2")


def test_the_rate_counts_products_over_the_clock():
    rate = demo_time.process_rate(0.02)
    assert 1e8 < rate < 1e13  # from a slow core to more than any core has


def test_without_a_gpu_the_larger_demo_is_refused(monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="DEVICE=cuda needs a GPU"):
        say(monkeypatch, capsys, "--need-gpu")
