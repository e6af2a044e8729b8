// Local storage between visits. Each conversation has its own entry, so that two open pages do not overwrite each
// other's conversations.

const PREFIX = "megagpt.";
const CHAT = `${PREFIX}chat.`;

let onFull = () => {};

/** Calls `listener` when the browser's storage is full or disabled. */
export function whenFull(listener) {
  onFull = listener;
}

/** A stored value, or `otherwise` if there is none or it is broken. */
export function load(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Stores a JSON value. */
export function save(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    onFull();
  }
}

const isTurn = (turn) => ["user", "assistant"].includes(turn?.role) && typeof turn.content === "string";

function isConversation(value) {
  return (
    typeof value?.id === "string" &&
    typeof value.changed === "number" &&
    Array.isArray(value.turns) &&
    value.turns.every(isTurn)
  );
}

/** A new empty conversation: {id, changed (milliseconds), title, system, turns: [{role, content, ...}]}. */
export function newConversation(system) {
  return {
    id: `${Date.now().toString(36)}-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`,
    changed: Date.now(),
    title: "",
    system,
    turns: [],
  };
}

/** All stored conversations, the latest first. Invalid entries are ignored. */
export function conversations() {
  return names()
    .filter((name) => name.startsWith(CHAT))
    .map((name) => load(name.slice(PREFIX.length), null))
    .filter(isConversation)
    .sort((a, b) => b.changed - a.changed);
}

function names() {
  try {
    return Array.from({ length: localStorage.length }, (_, place) => localStorage.key(place));
  } catch {
    return []; // storage is disabled
  }
}

export const keep = (conversation) => save(`chat.${conversation.id}`, conversation);

export function forget(conversation) {
  try {
    localStorage.removeItem(CHAT + conversation.id);
  } catch {
    onFull();
  }
}

/** Calls `listener` when another page of the same browser changes a conversation. */
export function whenChangedElsewhere(listener) {
  addEventListener("storage", (event) => {
    if (event.key === null || event.key.startsWith(CHAT)) listener();
  });
}
