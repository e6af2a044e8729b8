// What the browser keeps between visits. Each conversation has an entry of its own, so that two open pages do not
// overwrite each other's.

const PREFIX = "megagpt.";
const CHAT = `${PREFIX}chat.`;

let onFull = () => {};

/** Calls `listener` when the browser has no room left, or is told to keep nothing. */
export function whenFull(listener) {
  onFull = listener;
}

/** A kept value, or `otherwise` when there is none or it is broken. */
export function load(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Keeps a value that JSON can hold. */
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

/** An empty conversation, not kept yet: {id, changed (milliseconds), title, system, turns: [{role, content, ...}]}. */
export function newConversation(system) {
  return {
    id: `${Date.now().toString(36)}-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`,
    changed: Date.now(),
    title: "",
    system,
    turns: [],
  };
}

/** All kept conversations, the latest first. Entries that are no conversations are passed over. */
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
    return []; // the browser is told to keep nothing
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
