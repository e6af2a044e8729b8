"""Checks that everything a run needs is in place. All problems are returned, none is raised.

Rank 0 checks data, checkpoint and disk; `environment` checks every rank's machine.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from megagpt import checkpoint
from megagpt.checkpoint import World
from megagpt.config.schema import Config, CorpusConfig, ModelConfig
from megagpt.data.conversations import read_conversations
from megagpt.data.corpus.text.mixture import LARGEST_EPOCHS
from megagpt.data.fim import fim_ids
from megagpt.data.identity import changes, identity
from megagpt.data.indexed import check_corpus, check_hashes, corpus_files
from megagpt.data.pair_loader import PairLoader
from megagpt.data.rankings import read_rankings
from megagpt.data.scored_pairs import read_sentence_pairs
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import MegaGPTError
from megagpt.plan.devices import GB
from megagpt.plan.parameters import total_parameters
from megagpt.train.schedules import describe_schedule, misfits

CHECKPOINT_BYTES = {"bf16": 14, "fp32": 12}
"""Checkpoint bytes per parameter by precision: the weight, two fp32 moments and, with bf16, the fp32 master weight."""
NOT_OF_THE_WEIGHTS = ("name", "hidden_dropout", "attention_dropout")
"""Fields of a model that do not change the meaning of its weights."""


def check_run(config: Config, max_epochs: float = LARGEST_EPOCHS, hashes: bool = False) -> tuple[list[str], list[str]]:
    """Problems of data, checkpoint and disk, and facts for the user.

    max_epochs: more passes over a corpus are a problem. hashes: whether to read the whole corpora and check hashes.
    """
    problems, facts = [], []
    data = partial(_data, max_epochs=max_epochs)
    for part in (_schedule, data, *[_hashes] * hashes, _checkpoint, _scoring_models, _disk):
        for is_problem, text in _guarded(part, config):
            (problems if is_problem else facts).append(text)
    return problems, facts


def data_files(config: Config) -> list[Path]:
    """Paths of the data files that every rank reads."""
    corpora = [path for corpus in _corpora(config) for path in corpus_files(corpus.path)]
    others = [*config.data.conversations, *config.data.rankings]
    others += [config.stage.held_out_edits] if config.stage.held_out_edits else []
    if config.stage.name == "embed":
        others += [*config.data.pairs, *filter(None, [config.embed.scored_pairs])]
    return [Path(config.data.tokenizer), *corpora, *map(Path, others)]


def _corpora(config: Config) -> tuple[CorpusConfig, ...]:
    """The corpora that the stage reads; stages that train on conversations, rankings or pairs read none."""
    return () if config.stage.name in ("edit", "sft", "reward", "embed") else config.data.corpora


Findings = Iterator[tuple[bool, str]]
"""(whether it is a problem, the text)."""


def _guarded(part: Callable[[Config], Findings], config: Config) -> Findings:
    try:
        yield from part(config)
    except (MegaGPTError, OSError) as error:
        yield True, str(error)


def _schedule(config: Config) -> Findings:
    """The schedule of a run whose length is known, and warnings about lengths that do not fit the run."""
    if config.optim.train_epochs is None and config.stage.name != "ppo":
        yield False, describe_schedule(config.optim)
        for warning in misfits(config.optim):
            yield False, f"warning: {warning}"


def _data(config: Config, max_epochs: float) -> Findings:
    """Checks the tokenizer, the data files, and that the corpora have enough tokens."""
    digest = None
    try:
        tokenizer = Tokenizer.load(config.data.tokenizer)
        digest = tokenizer.sha256
        if config.data.fim_rate:
            fim_ids(tokenizer)
        if tokenizer.vocab_size != config.model.vocab_size:
            too_small = tokenizer.vocab_size > config.model.vocab_size
            yield (
                too_small,
                (
                    f"the tokenizer {config.data.tokenizer} has {tokenizer.vocab_size} tokens, but model.vocab_size is "
                    f"{config.model.vocab_size}: set model.vocab_size={tokenizer.vocab_size}"
                ),
            )
    except MegaGPTError as error:
        yield True, str(error)
    if config.data.conversations:
        yield False, f"{len(read_conversations(config.data.conversations)):,} conversations"
    if config.data.rankings:
        yield False, f"{len(read_rankings(config.data.rankings)):,} prompts with ranked answers"
    if config.stage.name == "embed" and digest is not None:
        yield from _pairs(config)
    corpora = _corpora(config)
    weights = sum(corpus.weight for corpus in corpora)
    for corpus in corpora:
        try:
            yield from _corpus(config, corpus, corpus.weight / weights, digest, max_epochs)
        except MegaGPTError as error:
            yield True, str(error)


def _pairs(config: Config) -> Findings:
    """Checks that the pairs can form batches and fit between the delimiters, and that scored pairs can be read."""
    try:
        loader = PairLoader(config)
        count, batch = loader.pairs_per_epoch, config.optim.global_batch_size
        yield False, f"{count:,} pairs an epoch in {count // batch:,} steps, {loader.sample_tokens} tokens a pair"
    except MegaGPTError as error:
        yield True, str(error)
    if config.embed.scored_pairs:
        try:
            yield False, f"{len(read_sentence_pairs(Path(config.embed.scored_pairs))):,} pairs with scores"
        except MegaGPTError as error:
            yield True, str(error)


def _corpus(config: Config, corpus: CorpusConfig, share: float, digest: str | None, max_epochs: float) -> Findings:
    about = check_corpus(corpus.path)
    if digest is not None and about["tokenizer_sha256"] != digest:
        yield (
            True,
            f"{corpus.path} was tokenized with a tokenizer other than {config.data.tokenizer}: preprocess it again",
        )
    if about["max_token"] >= config.model.vocab_size:
        yield True, f"{corpus.path} holds token {about['max_token']}, but model.vocab_size is {config.model.vocab_size}"
    tokens = about["tokens"] * config.data.split[0]
    epochs = share * _text_tokens(config) / max(tokens, 1)
    text = f"{corpus.path}: {tokens:,.0f} training tokens, {share:.1%} of the mixture, {epochs:.2f} epochs"
    if epochs > max_epochs:
        text += (
            f", more than {max_epochs:g} (up to {LARGEST_EPOCHS} epochs are nearly as good as new data): add data, "
            "lower its weight or optim.train_tokens, or allow more (--max-epochs)"
        )
    yield epochs > max_epochs, text


def _text_tokens(config: Config) -> int:
    """Total number of tokens that the run reads from the corpora."""
    ppo = config.ppo
    if config.stage.name != "ppo":
        return config.optim.train_tokens
    return ppo.episodes * ppo.epochs * ppo.ptx_ratio * ppo.row_length if ppo.ptx_coefficient else 0


def _hashes(config: Config) -> Findings:
    """Checks that the corpora's files are unchanged since preprocessing."""
    paths = [corpus.path for corpus in _corpora(config)]
    for path in paths:
        try:
            unknown = check_hashes(path)
            yield False, unknown or f"{path}: its hashes are right"
        except MegaGPTError as error:
            yield True, str(error)


def _checkpoint(config: Config) -> Findings:
    """Checks that the checkpoint that the run would start from is valid and of the same model."""
    own, may_grow = Path(config.run_dir) / "checkpoints", False
    newest = checkpoint.find_newest(own, World()) if own.is_dir() else None
    if newest is None and config.checkpoint.load:
        newest, may_grow = checkpoint.find(Path(config.checkpoint.load), World()), True
    if newest is None:
        yield False, f"no checkpoint in {own}: the run starts from scratch"
        return
    manifest = checkpoint.read_manifest(newest)
    if not may_grow:
        yield from ((True, text) for text in changes(checkpoint.data_of(newest, manifest), identity(config)))
    saved = checkpoint.config_of(newest, manifest).model
    if may_grow and saved.vocab_size < config.model.vocab_size:
        saved = dataclasses.replace(saved, vocab_size=config.model.vocab_size)
    head = config.model.head
    if may_grow and head != "tokens" and saved.head in ("tokens", head):  # the head replaces the output projection
        saved = dataclasses.replace(saved, head=head, tie_embeddings=config.model.tie_embeddings)
    differing = [
        f"model.{field.name} ({getattr(saved, field.name)} there, {getattr(config.model, field.name)} here)"
        for field in dataclasses.fields(ModelConfig)
        if field.name not in NOT_OF_THE_WEIGHTS and getattr(saved, field.name) != getattr(config.model, field.name)
    ]
    if differing:
        yield True, f"{newest} is of another model: {', '.join(differing)}"
    else:
        yield False, f"the run starts from {newest}, which is valid"


def _scoring_models(config: Config) -> Findings:
    """Checks that the checkpoints of reward models and PPO's critic are valid and can score."""
    ppo = config.ppo
    wanted = {"stage.reward_model": config.stage.reward_model}
    if config.stage.name == "ppo":
        wanted |= {"ppo.reward_model": ppo.reward_model if ppo.reward == "model" else None, "ppo.critic": ppo.critic}
    for field, source in wanted.items():
        if source is None:
            continue
        folder = checkpoint.find(Path(source), World())
        saved = checkpoint.config_of(folder).model
        if field != "ppo.critic" and saved.head != "scalar":
            yield True, f"{field} ({source}) was never trained to score text: give a run of stage reward"
            continue
        yield False, f"{field}: {folder}, {saved.name} with a {saved.head} head, is valid"


def _disk(config: Config) -> Findings:
    """Checks the disk space for the kept checkpoints and one more, which exists while a new one is written."""
    folder = Path(config.run_dir)
    while not folder.exists():
        folder = folder.parent
    size = CHECKPOINT_BYTES[config.optim.precision] * total_parameters(config.model)
    if config.stage.name == "ppo":  # checkpoints also hold the critic and the average of the policy's weights
        scoring = dataclasses.replace(config.ppo.scoring_model or config.model, head="scalar")
        size += CHECKPOINT_BYTES[config.optim.precision] * total_parameters(scoring)
        size += 4 * total_parameters(config.model) if config.ppo.ema_decay else 0
    kept = config.checkpoint.keep_last + 1
    if config.checkpoint.keep_every:
        step_tokens = config.optim.global_batch_size * config.model.sequence_length
        kept += config.optim.train_tokens // step_tokens // config.checkpoint.keep_every
    there = sum(file.stat().st_size for file in Path(config.run_dir).glob("checkpoints/step_*/*"))
    free = shutil.disk_usage(folder).free + there
    text = (
        f"{kept} checkpoints of {size / GB:,.2f} GB at once, {kept * size / GB:,.1f} GB; {folder.resolve()} has "
        f"{free / GB:,.1f} GB for them"
    )
    if kept * size > free:
        text += ": lower checkpoint.keep_last, raise checkpoint.keep_every, or set runs_dir to another disk"
    yield kept * size > free, text
