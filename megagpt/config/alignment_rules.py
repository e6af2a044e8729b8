"""Rules of learning from a reward. See `rules.py`."""

from collections.abc import Iterator

from megagpt.config.fields import nearest_multiples
from megagpt.config.schema import Config


def only_rewards_are_scalars(config: Config, world_size: int) -> Iterator[str]:
    """Stage reward trains a model that scores; all others train models that write."""
    stage, head = config.stage.name, config.model.head
    if (stage == "reward") != (head == "scalar"):
        wanted = "scalar" if stage == "reward" else "tokens"
        yield f"model.head ({head}) does not go with stage.name ({stage}): set model.head={wanted}"


def episodes_have_a_reward(config: Config, world_size: int) -> Iterator[str]:
    """A reward model has to be named."""
    if config.stage.name == "ppo" and config.ppo.reward == "model" and not config.ppo.reward_model:
        yield (
            "ppo.reward (model) needs ppo.reward_model, which is null: give the run folder of stage reward, or set"
            " ppo.reward=checker for prompts whose records say how answers are checked"
        )


def episodes_fit_the_context(config: Config, world_size: int) -> Iterator[str]:
    """The longest prompt with the longest answer is within the model's context."""
    ppo, length = config.ppo, config.model.sequence_length
    if config.stage.name == "ppo" and ppo.row_length > length:
        yield (
            f"ppo.max_prompt_tokens ({ppo.max_prompt_tokens}) + ppo.max_new_tokens ({ppo.max_new_tokens}) ="
            f" {ppo.row_length} is above model.sequence_length ({length}): lower one of the first two"
        )


def iterations_are_whole_steps(config: Config, world_size: int) -> Iterator[str]:
    """The answers of an iteration are learnt from in whole steps."""
    count, batch = config.ppo.rollout_batch_size, config.optim.global_batch_size
    if config.stage.name == "ppo" and count % batch:
        yield (
            f"ppo.rollout_batch_size ({count}) is not a multiple of optim.global_batch_size ({batch}):"
            f" {nearest_multiples(count, batch)}"
        )


def ppo_has_no_ramp(config: Config, world_size: int) -> Iterator[str]:
    """Steps of an iteration have one size."""
    if config.stage.name == "ppo" and config.optim.ramp_start is not None:
        yield (
            f"optim.ramp_start ({config.optim.ramp_start}) lets the batch grow, but stage.name is ppo, whose iterations"
            " are whole steps: set optim.ramp_start=null and optim.ramp_tokens=0"
        )


def pretraining_gradients_have_text(config: Config, world_size: int) -> Iterator[str]:
    """PPO-ptx trains on the corpora too."""
    ppo = config.ppo
    if config.stage.name == "ppo" and ppo.ptx_coefficient and not config.data.corpora:
        yield (
            f"ppo.ptx_coefficient ({ppo.ptx_coefficient:g}) adds the loss on data.corpora, which is empty: name the"
            " pretraining corpora, or set ppo.ptx_coefficient=0"
        )


def ppo_generates_with_whole_parameters(config: Config, world_size: int) -> Iterator[str]:
    """Replicas answer prompts independently, which parameters shared out among them do not allow."""
    if config.stage.name == "ppo" and config.parallel.zero_stage == 3:
        yield (
            "parallel.zero_stage (3) shares out parameters among replicas, which answer prompts independently in stage"
            " ppo: set it to 1 or 2, with parallel.tensor_parallel_size for models that do not fit"
        )
