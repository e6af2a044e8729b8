"""Checks that megagpt can use a checkpoint's tokenizer and chat template, before a conversion writes anything."""

import logging
import os
from pathlib import Path

from megagpt.checkpoint.convert.base import Source
from megagpt.data.chat import try_template
from megagpt.data.companions import SENTENCEPIECE
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import CheckpointError, DataError

log = logging.getLogger(__name__)

ADVICE = "to convert the weights alone, move it out of the folder"


def check_tokenizer(path: Path, source: Source) -> None:
    """Raises CheckpointError if the checkpoint has a tokenizer that megagpt cannot use.

    A chat template must render a conversation of a user and an assistant, and stay within the bounds of `chat_template`
    on sample conversations. If it does not show which words are the assistant's, a warning is logged: chat and
    generation work, but training on conversations does not.
    """
    file = source.tokenizer
    if file is None:
        if os.path.lexists(path / SENTENCEPIECE):
            raise CheckpointError(
                f"{path / SENTENCEPIECE} is a SentencePiece model, and there is no tokenizer.json, which megagpt reads:"
                f" let transformers write one (AutoTokenizer.from_pretrained, then save_pretrained); {ADVICE}"
            )
        return
    try:
        tokenizer = Tokenizer.load(file)
        size = len(tokenizer.token_bytes)
    except DataError as error:
        raise CheckpointError(f"{error}. {ADVICE.capitalize()}") from None
    if size > source.model.vocab_size:
        raise CheckpointError(f"{file} has {size:,} tokens, the model {source.model.vocab_size:,}: {ADVICE}")
    try:
        unlearnable = try_template(tokenizer)
    except DataError as error:
        raise CheckpointError(f"{path}: {error}. Mend the template, or remove it to convert without one") from None
    names = ", ".join(sorted(map(str, map(tokenizer.unspellable.name_of, tokenizer.end_ids))))
    start = "".join(map(str, map(tokenizer.unspellable.name_of, tokenizer.start_ids)))
    log.info("tokenizer: documents start with %s and end with %s; texts end with %s", start or "nothing",
             tokenizer.end_of_text, names)  # fmt: skip
    if unlearnable is not None:
        log.warning("%s. Until then it can be talked to, but not be trained on conversations", unlearnable)
