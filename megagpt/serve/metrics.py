"""Counts and times for Prometheus."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from megagpt.serve.interface import ServedModel

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Upper bounds of the histograms' buckets."""


class _Loads(Collector):
    """Collects the models' loads at the time of a scrape."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """One metric family for every field of Load."""
        labels = ["model"]
        running = GaugeMetricFamily("megagpt_running", "Completions or texts in work.", labels=labels)
        waiting = GaugeMetricFamily("megagpt_waiting", "Completions or texts that wait.", labels=labels)
        prompts = CounterMetricFamily("megagpt_prompt_tokens", "Tokens of prompts and texts.", labels=labels)
        reused = CounterMetricFamily("megagpt_reused_tokens", "Tokens of prompts found in the cache.", labels=labels)
        new = CounterMetricFamily("megagpt_new_tokens", "Generated tokens.", labels=labels)
        for model in self._models:
            load = model.load()
            running.add_metric([model.name], load.running)
            waiting.add_metric([model.name], load.waiting)
            prompts.add_metric([model.name], load.prompt_tokens)
            reused.add_metric([model.name], load.reused_tokens)
            new.add_metric([model.name], load.new_tokens)
        yield from (running, waiting, prompts, reused, new)


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Loads(models))
        self.requests = Counter("megagpt_requests", "Answered requests.", ["path", "status"], registry=self._registry)
        self.seconds = Histogram(
            "megagpt_request_seconds",
            "Time from a request's headers to the end of its response.",
            ["path"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self.first_token = Histogram(
            "megagpt_first_token_seconds",
            "Time from a request's body to its first token.",
            ["model"],
            buckets=SECONDS,
            registry=self._registry,
        )

    def text(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self._registry)
