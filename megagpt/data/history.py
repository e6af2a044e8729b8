"""A conversation that grows, shortened to fit a model's context."""

from dataclasses import dataclass, field

from megagpt.data.chat import Message, chat_prompt
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import DataError


@dataclass
class History:
    """The turns of a conversation so far, and the limits of its prompt."""

    tokenizer: Tokenizer
    window: int
    """Tokens of the model's context."""
    response_room: int
    """Tokens kept free for the next response, if the prompt allows it."""
    system: str | None = None
    """The system prompt."""
    turns: list[Message] = field(default_factory=list)

    def ask(self, text: str) -> tuple[list[int], int]:
        """Add a user's turn. Returns the prompt's token ids, and the number of oldest turns that it leaves out.

        Whole exchanges are left out, oldest first, until the prompt and `response_room` tokens fit. The system prompt
        and the new turn always stay. Raises DataError, and adds nothing, when they leave no room for a response.
        """
        head = [] if self.system is None else [Message("system", self.system)]
        turns = [*self.turns, Message("user", text)]
        for left_out in range(0, len(turns), 2):
            prompt = chat_prompt(self.tokenizer, [*head, *turns[left_out:]])
            if len(prompt) + self.response_room <= self.window:
                break
        if len(prompt) >= self.window:
            raise DataError(
                f"this takes {len(prompt)} tokens with the system prompt, but the model's context has {self.window}: "
                "shorten it"
            )
        self.turns = turns
        return prompt, left_out

    def respond(self, text: str) -> None:
        """Add the assistant's turn."""
        self.turns.append(Message("assistant", text))

    def undo(self) -> None:
        """Forget the last exchange."""
        while self.turns and self.turns.pop().role != "user":
            pass

    def reset(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.turns = []
