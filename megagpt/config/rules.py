"""Rules between fields. Each is a small function that yields a message for each violation.

A message names the fields with their values and the fix. `check` runs before any process group starts, so that a wrong
combination is reported within a second.
"""

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path

from megagpt.config.alignment_rules import ALIGNMENT_RULES
from megagpt.config.bounds import out_of_range
from megagpt.config.embedding_rules import EMBEDDING_RULES
from megagpt.config.explain import fields
from megagpt.config.fields import get, multiple
from megagpt.config.layout_rules import LAYOUT_RULES
from megagpt.config.load import raise_all
from megagpt.config.model_rules import MODEL_RULES
from megagpt.config.schema import Config, OptimConfig
from megagpt.config.task_rules import TASK_RULES


def check(config: Config, world_size: int) -> None:
    """Raises ConfigError that lists every rule which `config` breaks when it runs on `world_size` ranks."""
    problems: list[str] = []
    for rule in RULES:
        with suppress(ZeroDivisionError):  # a size of zero has its own message from `ranges`
            problems.extend(rule(config, world_size))
    raise_all(problems)


def ranges(config: Config, world_size: int) -> Iterator[str]:
    """Every number is within the range that its type gives."""
    yield from out_of_range(config)


def run_name(config: Config, world_size: int) -> Iterator[str]:
    """The run's name is the name of a folder."""
    if not re.fullmatch(r"\w[\w.-]*", config.run_name):
        yield (
            f"run_name ({config.run_name!r}) names a folder inside runs_dir ({config.runs_dir!r}): use letters, digits,"
            " '_', '-' and '.'; to write elsewhere set runs_dir"
        )


def no_text_is_empty(config: Config, world_size: int) -> Iterator[str]:
    """An empty text, for example from an unset shell variable, does not mean null."""
    for name, kind in fields().items():
        value = get(config, name)
        if kind == str | None and value is not None and not value.strip():
            yield f"{name} ({value!r}) is empty: give a path or name, or {name}=null for none"
        elif name == "runs_dir" and not value.strip():
            yield f"{name} ({value!r}) is empty: give a folder, or {name}=. for this one"


def fused_optimizer(config: Config, world_size: int) -> Iterator[str]:
    """DeepSpeed updates a parameter group in parts; Apex and Transformer Engine would count each part as a step."""
    if config.parallel.engine == "deepspeed" and config.optim.fused in ("apex", "te"):
        yield (
            f"optim.fused ({config.optim.fused}) counts the updates of parallel.engine (deepspeed) wrongly: set"
            " optim.fused=torch, or parallel.engine=megatron"
        )


def muon_has_its_engine(config: Config, world_size: int) -> Iterator[str]:
    """Muon updates whole matrices, which DeepSpeed's flat partitions do not have, and uses PyTorch's AdamW."""
    if config.optim.optimizer != "muon":
        return
    if config.parallel.engine == "deepspeed":
        yield (
            "optim.optimizer (muon) updates whole matrices, but parallel.engine is deepspeed, whose ZeRO hands its"
            " optimizer flat pieces: set parallel.engine=megatron, whose parallel.zero_stage=1 divides Muon's state"
            " too, or optim.optimizer=adam"
        )
    if config.optim.fused in ("apex", "te"):
        yield (
            f"optim.fused ({config.optim.fused}) does not combine with optim.optimizer (muon), which always uses"
            " PyTorch's AdamW: set optim.fused=auto or torch"
        )


def optimizer_options(config: Config, world_size: int) -> Iterator[str]:
    """Options of an optimizer or schedule that the run does not use would have no effect."""
    for field, wanted, names in (
        ("optimizer", "muon", ("muon_momentum", "muon_rms")),
        ("schedule", "wsd", ("decay_fraction", "decay_shape")),
    ):
        if (chosen := getattr(config.optim, field)) == wanted:
            continue
        for name in names:
            value, default = getattr(config.optim, name), OptimConfig.__dataclass_fields__[name].default
            if value != default:
                yield (
                    f"optim.{name} ({value}) is of optim.{field}={wanted}, but optim.{field} is {chosen}: set"
                    f" optim.{field}={wanted}, or leave optim.{name} at {default}"
                )


def batch_ramp(config: Config, world_size: int) -> Iterator[str]:
    """A batch ramp has a start and a length, and the batch grows."""
    optim = config.optim
    start, full = optim.ramp_start, optim.global_batch_size
    tokens = optim.published.ramp_tokens if optim.ramp_tokens is None else optim.ramp_tokens
    if optim.ramp_tokens if start is None else not tokens:
        shown = "null" if start is None else start
        yield (
            f"optim.ramp_start ({shown}) and optim.ramp_tokens ({tokens}) go together: set both for a batch that grows,"
            " or ramp_start=null for none"
        )
    if start is not None and start > full:
        yield f"optim.ramp_start ({start}) is above optim.global_batch_size ({full}): the batch grows, so lower it"


def warmup_before_decay(config: Config, world_size: int) -> Iterator[str]:
    """The decay, warm-up included, lasts at least as long as the warm-up."""
    schedule, optim = config.optim.lengths, config.optim
    if optim.schedule == "wsd" and schedule.warmup_tokens > optim.decay_begin:
        yield (
            f"optim.warmup_tokens ({schedule.warmup_tokens}) is above {optim.decay_begin}, where the decay of"
            f" optim.schedule (wsd) begins, as optim.decay_fraction ({optim.decay_fraction:g}) of optim.decay_tokens"
            f" ({schedule.decay_tokens}) says: lower the first or the second"
        )
    elif schedule.warmup_tokens > schedule.decay_tokens:
        yield (
            f"optim.warmup_tokens ({schedule.warmup_tokens}) is above optim.decay_tokens ({schedule.decay_tokens}),"
            " which includes it: lower the first or raise the second"
        )


def kept_checkpoints_exist(config: Config, world_size: int) -> Iterator[str]:
    """Only checkpoints that are written can be kept."""
    if config.checkpoint.keep_every and config.checkpoint.interval:
        yield from multiple(config, "checkpoint.keep_every", "checkpoint.interval")


def best_is_measured(config: Config, world_size: int) -> Iterator[str]:
    """Choosing a best checkpoint needs evaluations."""
    if config.checkpoint.best_metric is not None and not config.stage.eval_interval:
        yield (
            f"checkpoint.best_metric ({config.checkpoint.best_metric}) is compared at evaluations, but"
            " stage.eval_interval is 0: set it to a number of steps, or best_metric=null"
        )


def spikes_have_checkpoints(config: Config, world_size: int) -> Iterator[str]:
    """A run that goes back before a spike must still have a checkpoint from that time."""
    reliability, saving = config.reliability, config.checkpoint
    field, interval = "checkpoint.interval", saving.interval
    if saving.best_metric is not None and config.stage.eval_interval < interval:  # every evaluation may be the best
        field, interval = "stage.eval_interval", config.stage.eval_interval
    reach = (saving.keep_last - 1) * interval
    if reliability.spike_threshold and reach < reliability.spike_rewind:
        yield (
            f"reliability.spike_rewind ({reliability.spike_rewind}) reaches behind the {reach} steps for which there is"
            f" always a checkpoint, (checkpoint.keep_last ({saving.keep_last}) - 1) x {field} ({interval}): lower the"
            " first, keep more, or set reliability.spike_threshold=0"
        )


def spike_is_left_out(config: Config, world_size: int) -> Iterator[str]:
    """The range of skipped samples must include the spike."""
    rewind, skip = config.reliability.spike_rewind, config.reliability.spike_skip
    if skip <= rewind:
        yield (
            f"reliability.spike_skip ({skip}) steps from reliability.spike_rewind ({rewind}) steps before a spike do"
            f" not reach it: set spike_skip to {rewind + 1} or more"
        )


def stage_starts_from_a_model(config: Config, world_size: int) -> Iterator[str]:
    """All stages but pretrain start from a trained model, until the run has checkpoints of its own."""
    if config.stage.name != "pretrain" and not config.checkpoint.load:
        yield (
            f"stage.name ({config.stage.name}) continues from a trained model, but checkpoint.load is null: give its"
            " run folder, as in checkpoint.load=runs/pretrain_125m (when the run itself is resumed too), or set"
            " stage=pretrain"
        )


def epochs_need_conversations(config: Config, world_size: int) -> Iterator[str]:
    """Corpora are mixed by weight, so an epoch over all of them is not defined."""
    if config.optim.train_epochs is not None and config.stage.name in ("pretrain", "code"):
        yield (
            f"optim.train_epochs ({config.optim.train_epochs:g}) counts passes over conversations, but stage.name is"
            f" {config.stage.name}: set optim.train_epochs=null and optim.train_tokens"
        )


def edits_are_for_conversations(config: Config, world_size: int) -> Iterator[str]:
    """Only a model that learns from conversations can follow an instruction."""
    if config.stage.held_out_edits is not None and config.stage.name not in ("edit", "sft"):
        yield (
            f"stage.held_out_edits ({config.stage.held_out_edits}) are answered in stages edit and sft, but stage.name"
            f" is {config.stage.name}: set stage.held_out_edits=null"
        )


def rewards_are_of_responses(config: Config, world_size: int) -> Iterator[str]:
    """Only stage sft uses a reward model at evaluations. Every replica generates its responses by itself."""
    if config.stage.reward_model is None:
        return
    if config.stage.name != "sft":
        yield (
            f"stage.reward_model ({config.stage.reward_model}) is used in stage sft, but stage.name is"
            f" {config.stage.name}: set stage.reward_model=null; stage ppo has ppo.reward_model"
        )
    if not config.stage.eval_interval:
        yield (
            f"stage.reward_model ({config.stage.reward_model}) scores responses at evaluations, but"
            " stage.eval_interval is 0: set it to a number of steps, or stage.reward_model=null"
        )
    if config.parallel.zero_stage == 3:
        yield (
            f"stage.reward_model ({config.stage.reward_model}) scores responses that every replica generates itself,"
            " which parallel.zero_stage (3) does not allow: set it to 1 or 2, or stage.reward_model=null"
        )


def data_is_named(config: Config, world_size: int) -> Iterator[str]:
    """There is something to train on."""
    prepare = (
        "prepare it with `megagpt data tokenizer` and `megagpt data preprocess`, or use data=demo after `make train`"
    )
    if not config.data.tokenizer:
        yield f"data.tokenizer ('') is empty: give the path of a tokenizer.json; {prepare}"
    if config.stage.name == "reward":
        if not config.data.rankings:
            yield "data.rankings ([]) is empty, but stage.name is reward: give .jsonl files of ranked responses"
        return
    if config.stage.name == "embed":
        if not config.data.pairs:
            yield (
                "data.pairs ([]) is empty, but stage.name is embed: give .jsonl files of pairs, which"
                " `megagpt data pairs` makes"
            )
        return
    if config.stage.name in ("edit", "sft", "ppo"):
        if not config.data.conversations:
            yield f"data.conversations ([]) is empty, but stage.name is {config.stage.name}: give .jsonl files"
        return
    if not config.data.corpora:
        yield f"data.corpora ([]) is empty: give data.corpora=[{{path:PREFIX,weight:1}}]; {prepare}"
    for number, corpus in enumerate(config.data.corpora):
        if not corpus.path:
            yield f"data.corpora[{number}].path ('') is empty: give the prefix of a .bin and .idx file; {prepare}"
        if corpus.weight <= 0:
            yield (
                f"data.corpora[{number}].weight ({corpus.weight}) of {corpus.path!r} must be above 0: to leave a corpus"
                " out, take it off the list"
            )


def chat_date_is_a_date(config: Config, world_size: int) -> Iterator[str]:
    """Chat templates write it in many forms."""
    try:
        date.fromisoformat(config.data.chat_date)
    except ValueError:
        yield f"data.chat_date ({config.data.chat_date!r}) must be a date as YYYY-MM-DD, such as 2024-07-26"


def nothing_is_listed_twice(config: Config, world_size: int) -> Iterator[str]:
    """The samples of a file that is listed twice would be learnt twice."""
    data = config.data
    lists = {f"data.{name}": getattr(data, name) for name in ("conversations", "rankings", "pairs")}
    lists["data.corpora"] = tuple(corpus.path for corpus in data.corpora)
    for field, listed in lists.items():
        paths = [Path(path).absolute() for path in listed]
        for number, path in enumerate(listed):
            if (first := paths.index(paths[number])) < number:
                name = f"{field}[{number}]" + (".path" if field == "data.corpora" else "")
                sum_of = ", with the sum of the weights" if field == "data.corpora" else ""
                yield (
                    f"{name} ({path!r}) is the same as {field}[{first}], so each sample would be learnt twice: list it"
                    f" once{sum_of}"
                )


def split_is_whole(config: Config, world_size: int) -> Iterator[str]:
    """The shares of training, validation and test documents sum to 1."""
    split = config.data.split
    if min(split) < 0 or not split[0] or not math.isclose(sum(split), 1, abs_tol=1e-6):
        yield (
            f"data.split ({', '.join(map(str, split))}) must be shares of training, validation and test documents, the"
            f" first above 0 and none negative, that sum to 1; the sum is {sum(split):g}{_divided(split)}"
        )


def _divided(split: tuple[float, ...]) -> str:
    """Advice for shares that were given in percent or otherwise sum to 2 or more."""
    total = sum(split)
    if min(split) < 0 or not split[0] or total < 2:
        return ""
    return f": divide them by it, data.split=[{','.join(f'{share / total:.6g}' for share in split)}]"


RULES = (
    ranges,
    run_name,
    no_text_is_empty,
    *MODEL_RULES,
    *LAYOUT_RULES,
    fused_optimizer,
    muon_has_its_engine,
    optimizer_options,
    batch_ramp,
    warmup_before_decay,
    kept_checkpoints_exist,
    best_is_measured,
    spikes_have_checkpoints,
    spike_is_left_out,
    stage_starts_from_a_model,
    epochs_need_conversations,
    edits_are_for_conversations,
    rewards_are_of_responses,
    data_is_named,
    chat_date_is_a_date,
    nothing_is_listed_twice,
    split_is_whole,
    *ALIGNMENT_RULES,
    *EMBEDDING_RULES,
    *TASK_RULES,
)
