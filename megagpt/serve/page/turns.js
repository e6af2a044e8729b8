// Draws one turn of a conversation, and the text area that edits it in place.

import { button, copyButton, grow, iconButton, isEnter, make } from "./dom.js";
import { showText } from "./markdown.js";

const SHORTEST = 0.1; // seconds; speeds over shorter times are not shown
const ENDED = { length: "Cut off at the limit of tokens.", stopped: "Stopped.", broken: "Broken off." };

/**
 * A turn as an element with `update({last, running})`, which draws what changed in `turn`; `last`: it is the last one,
 * which can be answered again, `running`: it is being written. `acts`: {edit, remove, again}, each called with the
 * turn; remove is null where the turn goes only with the one before it.
 */
export function turnElement(turn, acts) {
  const body = make("div", { class: "body" });
  const note = make("small", { class: "note" });
  const name = turn.role === "user" ? "You" : (turn.model ?? "Assistant");
  const again = iconButton("again", turn.role === "user" ? "Answer this" : "Answer again", () => acts.again(turn));
  const buttons = make(
    "div",
    { class: "actions" },
    copyButton(() => turn.content, "Copy"),
    iconButton("edit", "Edit", () => acts.edit(turn)),
    again,
    acts.remove && iconButton("trash", "Delete this message and its answer", () => acts.remove(turn)),
  );
  const element = make(
    "article",
    { class: `turn ${turn.role}`, "aria-label": name },
    make("h3", { text: name }),
    body,
    make("footer", {}, buttons, note),
  );
  element.update = ({ last, running = false }) => {
    if (element.classList.contains("editing")) return;
    again.hidden = !last;
    element.classList.toggle("running", running);
    element.setAttribute("aria-busy", String(running));
    showText(body, turn.content);
    note.textContent = running ? "" : about(turn);
  };
  return element;
}

/** The note below an answer: its length, its speed, and the reason of its end if it was not normal. */
function about(turn) {
  if (turn.role === "user") return "";
  const parts = [];
  if (turn.tokens) parts.push(turn.tokens === 1 ? "1 token" : `${turn.tokens.toLocaleString("en")} tokens`);
  if (turn.tokens > 1 && turn.seconds > SHORTEST) parts.push(`${rounded(turn.tokens / turn.seconds)} a second`);
  const length = parts.length ? [parts.join(", ")] : [];
  if (!turn.content && turn.ended === "stop") length.push("The model wrote nothing.");
  if (turn.leftOut) length.push(`${turn.leftOut} earlier messages did not fit and were left out.`);
  if (ENDED[turn.ended]) length.push(ENDED[turn.ended]);
  return length.join(" · ");
}

const rounded = (speed) => (speed < 10 ? speed.toFixed(1) : Math.round(speed).toLocaleString("en"));

/**
 * Puts a text area in place of a turn's text. `done(text)` is called with the new text, or with null when it shall stay
 * as it was; the element's next update draws the text again.
 */
export function editInPlace(element, turn, label, done) {
  const area = make("textarea", { class: "rewrite", "aria-label": "Edit the message" });
  area.value = turn.content;
  const end = (text) => {
    element.classList.remove("editing");
    done(text);
  };
  const save = () => end(area.value.trim() ? area.value : null);
  const cancel = () => end(null);
  area.addEventListener("input", () => grow(area));
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation(); // the key only ends the editing
      cancel();
    } else if (isEnter(event)) {
      event.preventDefault();
      save();
    }
  });
  element
    .querySelector(".body")
    .replaceChildren(area, make("div", { class: "row" }, button(label, save, "main"), button("Cancel", cancel)));
  element.classList.add("editing");
  grow(area);
  area.focus();
}
