// The list of conversations.

import { byId, iconButton, make } from "./dom.js";
import { conversations } from "./store.js";

const TITLE = 60; // characters

export function titleOf(conversation) {
  const first =
    conversation.title ||
    conversation.turns
      .find((turn) => turn.role === "user")
      ?.content.trim()
      .replace(/\s+/g, " ") ||
    "New conversation";
  return first.length > TITLE ? `${first.slice(0, TITLE).trimEnd()}...` : first;
}

/** Draws the list. `current`: id of the shown conversation; `open` and `remove` are called with a conversation. */
export function listConversations(current, open, remove) {
  const items = conversations().map((conversation) => {
    const title = titleOf(conversation);
    const show = make("button", {
      type: "button",
      class: "open",
      text: title,
      title,
      "aria-current": conversation.id === current ? "true" : null,
    });
    show.addEventListener("click", () => open(conversation));
    return make(
      "li",
      {},
      show,
      iconButton("trash", `Delete ${title}`, () => remove(conversation)),
    );
  });
  byId("conversations")
    .querySelector("ul")
    .replaceChildren(...items);
}
