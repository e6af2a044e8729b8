// Completion of a text, and insertion into a gap in it.

import { stream } from "./api.js";
import { announce, button, byId, copyButton, errorBox, make, toast } from "./dom.js";
import { named, startStop } from "./run.js";
import { buildSettings } from "./settings.js";
import { load, save } from "./store.js";
import { hideTip, pieces, tokenGroup } from "./tokens.js";

const GAP = "[insert]";
const SETTINGS = ["max_tokens", "temperature", "top_p", "n", "seed", "presence_penalty", "frequency_penalty", "stop"];
const ALTERNATIVES = 5;
const ENDED = { length: "Cut off at the limit of tokens.", stopped: "Stopped.", broken: "Broken off." };

export function createPlayground(page) {
  const prompt = byId("prompt");
  const results = byId("completions");
  const settings = buildSettings(byId("settings-playground"), "playground", SETTINGS, { max_tokens: 64 });
  const hasGap = () => prompt.value.includes(GAP);
  const running = startStop(byId("complete"), { work: complete, show: showButton, failed });
  let ability = "completions";

  function showButton(busy) {
    named(byId("complete"), hasGap() ? "Fill the gap" : "Complete")(busy);
  }

  function read() {
    save("prompt", prompt.value);
    const gaps = prompt.value.split(GAP).length - 1;
    byId("mark-gap").textContent = gaps ? "Remove the gap" : "Mark a gap";
    byId("prompt-note").textContent =
      gaps > 1
        ? `Keep one ${GAP}: a model fills one gap at a time.`
        : gaps
          ? `The model writes where ${GAP} stands.`
          : "Ctrl+Enter starts, Esc stops.";
    if (!running.running()) showButton(false);
    const needed = gaps ? "suffix" : "completions";
    if (needed !== ability) {
      ability = needed;
      page.abilityChanged("playground");
    }
  }

  /** Replaces the selection by the gap mark, or removes the mark. */
  function markGap() {
    if (hasGap()) prompt.value = prompt.value.replaceAll(GAP, "");
    else prompt.setRangeText(GAP, prompt.selectionStart, prompt.selectionEnd, "end");
    read();
    prompt.focus();
  }

  async function complete(signal) {
    const model = page.model("playground");
    const [prefix, suffix, more] = prompt.value.split(GAP);
    if (more !== undefined)
      throw new Error(`The text has more than one ${GAP}. Keep one: a model fills one gap at a time.`);
    if (!model) throw page.missing("playground");
    const inserted = suffix === undefined ? {} : { suffix };
    const body = { model: model.id, prompt: prefix, ...inserted, logprobs: ALTERNATIVES, ...settings() };
    const shown = Array.from({ length: body.n ?? 1 }, () => resultElement(prefix, suffix ?? "", use));
    hideTip();
    results.replaceChildren(...shown.map((result) => result.element));
    announce("The text is being written.");
    try {
      for await (const { choices } of stream("completions", body, signal)) {
        for (const choice of choices) shown[choice.index]?.add(choice);
      }
    } finally {
      for (const result of shown) result.end(signal.aborted);
      if (shown.every((result) => !result.began())) results.replaceChildren();
    }
    announce(shown.map((result) => result.text()).join("\n"));
  }

  function use(text) {
    const before = prompt.value;
    const put = (value) => {
      prompt.value = value;
      read();
      prompt.focus();
    };
    put(text);
    toast("The text is in the editor.", () => put(before));
  }

  function failed(error) {
    results.prepend(
      errorBox(
        error,
        button("Try again", () => running.start()),
      ),
    );
  }

  prompt.value = load("prompt", "");
  prompt.addEventListener("input", read);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      running.start();
    }
  });
  byId("mark-gap").addEventListener("click", markGap);

  return {
    ability: () => ability,
    run: running,
    opened: read,
  };
}

/** One completion between the given texts, with `add(choice)` for a chunk and `end(stopped)`. */
function resultElement(prefix, suffix, use) {
  let text = "";
  let ended = null;
  const logprobs = { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] };
  const place = make("mark");
  const note = make("small", { class: "note" });
  const whole = () => prefix + text + suffix;
  const footer = make(
    "footer",
    {},
    make(
      "div",
      { class: "actions" },
      copyButton(() => text, "Copy what was written"),
      button("Go on with this text", () => use(whole())),
    ),
    note,
  );
  const body = make(
    "div",
    { class: "body given" },
    make("span", { text: prefix }),
    place,
    make("span", { text: suffix }),
  );
  const element = make("article", { class: "card running", "aria-busy": "true" }, body, footer);

  function add(choice) {
    text += choice.text;
    for (const [name, list] of Object.entries(logprobs)) list.push(...(choice.logprobs?.[name] ?? []));
    ended = choice.finish_reason ?? ended;
    place.textContent = text;
  }

  function end(stopped) {
    const known = logprobs.tokens.length ? pieces(text, logprobs) : null;
    if (known) place.replaceChildren(tokenGroup(known));
    const mean = logprobs.token_logprobs.reduce((sum, value) => sum + value, 0) / logprobs.tokens.length;
    const count = known ? [`${logprobs.tokens.length} tokens, mean log-probability ${mean.toFixed(2)}`] : [];
    const empty = text || ended !== "stop" ? [] : ["The model wrote nothing."];
    const reason = ENDED[ended ?? (stopped ? "stopped" : "broken")];
    note.textContent = [...count, ...empty, ...(reason ? [reason] : [])].join(" · ");
    element.classList.remove("running");
    element.setAttribute("aria-busy", "false");
  }

  return { element, add, end, text: () => text, began: () => text !== "" || ended !== null };
}
