"""The policy as it answers: the model that learns itself, or a copy of it in another layout."""

from collections.abc import Sequence

from megagpt.config.schema import Config
from megagpt.data.tokenizer import Tokenizer
from megagpt.model.generation import Completion, GenerationConfig, Generator
from megagpt.parallel.engine import Engine
from megagpt.parallel.layouts import EngineInLayout
from megagpt.parallel.transfer import copy_weights
from megagpt.rl.offload import on_device


class Writer:
    """Answers prompts by the policy as it is."""

    def __init__(self, config: Config, policy: Engine, copy: Engine | None, tokenizer: Tokenizer) -> None:
        """`copy` takes the policy's weights over whenever it is to answer; without it the policy's modules do."""
        self.policy, self.copy, self.tokenizer, self.offload = policy, copy, tokenizer, config.ppo.offload
        engine = policy if copy is None else copy
        self.dims = engine.dims
        self.generator = Generator(engine.modules, config, tokenizer, config.ppo.generation_batch_size)

    def generate(
        self, prompts: Sequence[list[int]], settings: GenerationConfig, seeds: Sequence[int]
    ) -> list[Completion]:
        """Answers to this replica's prompts, see `Generator.generate`. Collective over all ranks."""
        if self.copy is None:
            return self.generator.generate(prompts, settings, seeds)
        with on_device(self.copy, self.offload):
            copy_weights(self.policy, self.copy)
            if not isinstance(self.copy, EngineInLayout):
                return self.generator.generate(prompts, settings, seeds)
            with self.copy.layout.active():
                return self.generator.generate(prompts, settings, seeds)
