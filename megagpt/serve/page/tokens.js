// Generated text token by token, with each token's probability and alternatives.

import { byId, make } from "./dom.js";

const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return share >= 0.1 ? `${share.toFixed(1)} %` : "under 0.1 %";
};

/** A token with visible signs for spaces and line breaks. */
const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ | $/g, "␣") || "(nothing)";

/**
 * Pieces of a completion's text: {text, logprob, top: [[text, logprob], ...]}. `logprobs` are the API's lists; null
 * when they do not tell how the text is made of tokens.
 */
export function pieces(text, { tokens, token_logprobs, top_logprobs, text_offset }) {
  const characters = Array.from(text); // offsets count characters; string indices count UTF-16 units
  const first = text_offset[0] ?? 0; // some servers count from the start of the prompt
  const starts = [...text_offset.map((place) => Math.min(place - first, characters.length)), characters.length];
  if (starts.some((place, number) => !Number.isInteger(place) || place < (starts[number - 1] ?? 0))) return null;
  const made = tokens.map((token, number) => ({
    text: characters.slice(starts[number], starts[number + 1]).join(""),
    logprob: token_logprobs[number],
    top: Object.entries(top_logprobs?.[number] ?? {}).sort((a, b) => b[1] - a[1]),
  }));
  return made.filter((piece) => piece.text !== "");
}

/** Elements of the pieces, in a group in which the arrow keys move the focus. */
export function tokenGroup(list) {
  const group = make("span", {
    class: "tokens",
    role: "group",
    "aria-label": "Generated text; the arrow keys walk through its tokens",
  });
  for (const piece of list) {
    const token = make("span", {
      class: "token",
      text: piece.text,
      tabindex: group.children.length ? -1 : 0,
      "aria-describedby": "tip",
    });
    token.style.setProperty("--unlikely", String(Math.min(1, Math.max(0, -piece.logprob / 4))));
    for (const event of ["pointerenter", "focus"]) token.addEventListener(event, () => showTip(token, piece));
    for (const event of ["pointerleave", "blur"]) token.addEventListener(event, hideTip);
    group.append(token);
  }
  group.addEventListener("keydown", (event) => {
    const next = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    if (!next) return;
    event.preventDefault();
    event.target[next]?.focus();
  });
  group.addEventListener("focusin", ({ target }) => {
    for (const token of group.children) token.tabIndex = token === target ? 0 : -1;
  });
  return group;
}

function showTip(token, { text, logprob, top }) {
  const tip = byId("tip");
  const others = top.map(([other, value]) => {
    const bar = make("i");
    bar.style.width = `${100 * Math.exp(value)}%`;
    return make(
      "tr",
      { class: other === text ? "chosen" : null },
      make("th", { scope: "row", text: visible(other) }),
      make("td", { text: percent(value) }),
      make("td", { class: "bar" }, bar),
    );
  });
  const head = make(
    "p",
    {},
    make("b", { text: visible(text) }),
    ` ${percent(logprob)}, log-probability ${logprob.toFixed(2)}`,
  );
  tip.replaceChildren(head, ...(others.length ? [make("table", {}, make("tbody", {}, ...others))] : []));
  tip.hidden = false;
  const [box] = token.getClientRects();
  const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${below ? box.bottom + 6 : Math.max(8, box.top - tip.offsetHeight - 6)}px`;
}

export function hideTip() {
  byId("tip").hidden = true;
}
