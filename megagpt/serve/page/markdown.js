// Text with code fences as elements. No other Markdown is rendered, and everything is set as text.

import { copyButton, make } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`\n]*$/;

/** Blocks of a text: {code: false, text} and {code: true, text, language}. The last fence may be open. */
export function blocks(text) {
  const found = [];
  let lines = [];
  let open = null; // the fence that is open: {mark, language}
  const close = () => {
    const body = lines.join("\n");
    if (open) found.push({ code: true, text: body, language: open.language });
    else if (body.trim()) found.push({ code: false, text: body.replace(/^\n+|\s+$/g, "") });
    lines = [];
  };
  for (const line of text.split("\n")) {
    const fence = FENCE.exec(line);
    if (open ? line.trim() !== "" && isEnd(line.trim(), open.mark) : fence) {
      close();
      open = open ? null : { mark: fence[1], language: fence[2] };
    } else {
      lines.push(line);
    }
  }
  close();
  return found;
}

const isEnd = (line, mark) => line.length >= mark.length && line === mark[0].repeat(line.length);

/** Puts a text into `place`, block by block. Unchanged blocks are kept, so that a selection stays. */
export function showText(place, text) {
  const wanted = blocks(text);
  wanted.forEach((block, number) => {
    const kind = block.code ? `code ${block.language}` : "text";
    let element = place.children[number];
    if (element?.dataset.kind !== kind) {
      const fresh = block.code ? codeBlock(block) : make("div", { class: "text" });
      fresh.dataset.kind = kind;
      if (element) element.replaceWith(fresh);
      else place.append(fresh);
      element = fresh;
    }
    const inner = element.querySelector("code") ?? element;
    if (element.dataset.source === block.text) return;
    element.dataset.source = block.text;
    if (block.code) inner.textContent = block.text;
    else inner.replaceChildren(...inline(block.text));
  });
  while (place.children.length > wanted.length) place.lastElementChild.remove();
}

function codeBlock({ language }) {
  const code = make("code");
  const head = make(
    "div",
    { class: "head" },
    make("span", { text: language || "text" }),
    copyButton(() => code.textContent, "Copy code"),
  );
  return make(
    "div",
    { class: "code" },
    head,
    make("pre", { tabindex: 0, "aria-label": `Code, ${language || "text"}` }, code),
  );
}

/** Text with `code` between single backticks. */
function inline(text) {
  return text.split(/(`[^`\n]+`)/).map((part, place) => (place % 2 ? make("code", { text: part.slice(1, -1) }) : part));
}
