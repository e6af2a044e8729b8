// Editing by instruction, with the changes shown word by word.

import { post } from "./api.js";
import { countWords, difference } from "./diff.js";
import { announce, button, byId, copyButton, errorBox, isEnter, make, toast } from "./dom.js";
import { named, startStop } from "./run.js";
import { buildSettings } from "./settings.js";
import { load, save } from "./store.js";

const SETTINGS = ["temperature", "top_p", "n"];

export function createEdits(page) {
  const input = byId("edit-input");
  const instruction = byId("instruction");
  const results = byId("edited");
  const settings = buildSettings(byId("settings-edits"), "edits", SETTINGS);
  const running = startStop(byId("edit"), { work: edit, show: named(byId("edit"), "Edit"), failed });

  async function edit(signal) {
    const model = page.model("edits");
    if (!model) throw page.missing("edits");
    if (!instruction.value.trim()) {
      instruction.focus();
      throw new Error("Write in the instruction what shall be changed.");
    }
    const before = input.value;
    results.replaceChildren(make("p", { class: "waiting", text: "The model is editing" }));
    announce("The model is editing.");
    try {
      const { choices } = await post(
        "edits",
        { model: model.id, input: before, instruction: instruction.value, ...settings() },
        signal,
      );
      results.replaceChildren(...choices.map(({ text }) => resultElement(before, text, use)));
      announce(results.querySelector(".note").textContent);
    } finally {
      results.querySelector(".waiting")?.remove();
    }
  }

  function use(text) {
    const before = input.value;
    const put = (value) => {
      input.value = value;
      save("edit", { input: value, instruction: instruction.value });
      input.focus();
    };
    put(text);
    toast("The edited text is in the editor.", () => put(before));
  }

  function failed(error) {
    results.replaceChildren(
      errorBox(
        error,
        button("Try again", () => running.start()),
      ),
    );
  }

  const kept = load("edit", {});
  input.value = kept.input ?? "";
  instruction.value = kept.instruction ?? "";
  for (const field of [input, instruction]) {
    field.addEventListener("input", () => save("edit", { input: input.value, instruction: instruction.value }));
    field.addEventListener("keydown", (event) => {
      const asked = field === instruction ? isEnter(event) : event.key === "Enter" && (event.ctrlKey || event.metaKey);
      if (!asked) return;
      event.preventDefault();
      running.start();
    });
  }

  return { ability: () => "edits", run: running, opened: () => {} };
}

/** An edited text: its differences, or the new text. */
function resultElement(before, after, use) {
  const parts = difference(before, after);
  const tags = { same: "span", out: "del", in: "ins" };
  const changes = make("div", { class: "body" }, ...parts.map(([kind, text]) => make(tags[kind], { text })));
  const result = make("div", { class: "body", text: after, hidden: true });
  const views = [
    ["Changes", changes],
    ["Result", result],
  ];
  const choices = views.map(([label, view]) =>
    make("button", {
      type: "button",
      text: label,
      "aria-pressed": String(view === changes),
      on: { click: () => show(view) },
    }),
  );

  function show(chosen) {
    views.forEach(([, view], place) => {
      view.hidden = view !== chosen;
      choices[place].setAttribute("aria-pressed", String(view === chosen));
    });
  }

  const note = make("small", { class: "note", text: summary(parts) });
  const actions = make(
    "div",
    { class: "actions" },
    copyButton(() => after, "Copy the result"),
    button("Edit this further", () => use(after)),
  );
  return make(
    "article",
    { class: "card" },
    make("div", { class: "switch", role: "group", "aria-label": "What is shown" }, ...choices),
    changes,
    result,
    make("footer", {}, actions, note),
  );
}

function summary(parts) {
  const count = (number) => (number === 1 ? "1 word" : `${number} words`);
  if (parts.every(([kind]) => kind === "same")) return "Nothing was changed.";
  const [out, into] = [countWords(parts, "out"), countWords(parts, "in")];
  if (!out && !into) return "Only white space was changed.";
  return `${count(out)} out, ${count(into)} in.`;
}
