// Forms for the settings of a request, saved in the browser, and the request's fields for them.

import { make } from "./dom.js";
import { load, save } from "./store.js";

const FIELDS = {
  temperature: {
    label: "Temperature",
    note: "0 takes the likeliest token; more is more varied.",
    from: 0,
    to: 2,
    step: 0.05,
    usual: 1,
  },
  top_p: {
    label: "Top p",
    note: "Choose among the likeliest tokens that have this probability together.",
    from: 0.05,
    to: 1,
    step: 0.05,
    usual: 1,
  },
  max_tokens: { label: "Max tokens", note: "Empty: as the server decides.", whole: true, from: 1 },
  n: { label: "Results", note: "Written side by side, each with its own random numbers.", whole: true, from: 1, to: 8 },
  seed: {
    label: "Seed",
    note: "The same seed and text give the same result. Empty: another one each time.",
    whole: true,
  },
  presence_penalty: {
    label: "Presence penalty",
    note: "Above 0, tokens that came once come less often.",
    from: -2,
    to: 2,
    step: 0.1,
    usual: 0,
  },
  frequency_penalty: {
    label: "Frequency penalty",
    note: "Above 0, tokens come less the more often they came.",
    from: -2,
    to: 2,
    step: 0.1,
    usual: 0,
  },
  stop: {
    label: "Stop at",
    note: "Up to four, one a line; \\n is a line break. The answer ends before the first of them.",
    lines: 4,
  },
  dimensions: {
    label: "Numbers a vector",
    note: "Fewer than the model's own, for models that were trained for it. Empty: all.",
    whole: true,
    from: 1,
  },
};

/** Appends a field for each of `names` to `place`. `defaults`: initial values of fields that are not empty. */
export function buildSettings(place, view, names, defaults = {}) {
  const values = { ...defaults, ...load(`settings.${view}`, {}) };
  const changed = (name, value) => {
    values[name] = value;
    save(`settings.${view}`, values);
  };
  const fields = names.map((name) => field(view, name, values[name], (value) => changed(name, value)));
  const reset = make("button", { type: "button", class: "plain", text: "Back to the usual values" });
  reset.addEventListener("click", () => {
    for (const name of names) {
      values[name] = defaults[name];
      const input = place.querySelector(`#${view}-${name}`);
      input.value = shown(name, defaults[name]);
      input.dispatchEvent(new Event("reset"));
    }
    save(`settings.${view}`, values);
  });
  place.append(...fields, reset);
  return () => request(names, values);
}

const shown = (name, value) => String(value ?? FIELDS[name].usual ?? "");

function field(view, name, value, changed) {
  const { label, note, from, to, step, usual, lines } = FIELDS[name];
  const id = `${view}-${name}`;
  const props = { id, "aria-describedby": `${id}-note` };
  const about = make("small", { id: `${id}-note`, text: note });
  if (lines) {
    const area = make("textarea", { ...props, rows: 2, spellcheck: "false", autocomplete: "off" });
    area.value = shown(name, value);
    area.addEventListener("input", () => changed(area.value));
    return make("div", { class: "field" }, make("label", { for: id, text: label }), area, about);
  }
  if (usual === undefined) {
    const input = make("input", {
      ...props,
      type: "number",
      inputmode: "numeric",
      min: from,
      max: to,
      step: 1,
      autocomplete: "off",
    });
    input.value = shown(name, value);
    input.addEventListener("input", () => changed(input.value));
    return make("div", { class: "field" }, make("label", { for: id, text: label }), input, about);
  }
  const output = make("output", { for: id });
  const input = make("input", { ...props, type: "range", min: from, max: to, step });
  const show = () => {
    output.textContent = String(Number(input.value));
  };
  input.value = shown(name, value);
  input.addEventListener("input", () => {
    show();
    changed(Number(input.value));
  });
  input.addEventListener("reset", show);
  show();
  return make("div", { class: "field" }, make("label", { for: id }, label, output), input, about);
}

/** The fields of a request; empty and default values are left out. */
function request(names, values) {
  const body = {};
  for (const name of names) {
    const { whole, lines, usual, from = -Infinity, to = Infinity } = FIELDS[name];
    const value = values[name];
    if (lines) {
      const strings = String(value ?? "")
        .split("\n")
        .filter(Boolean)
        .slice(0, lines)
        .map(unescape);
      if (strings.length) body[name] = strings;
    } else if (whole) {
      const number = Math.trunc(Number(value));
      if (value !== "" && value !== undefined && Number.isSafeInteger(number))
        body[name] = Math.min(Math.max(number, from), to);
    } else if (Number.isFinite(value) && value !== usual) {
      body[name] = value;
    }
  }
  return body;
}

const ESCAPES = { n: "\n", t: "\t", r: "\r", "\\": "\\" };
const unescape = (line) => line.replace(/\\([ntr\\])/g, (_, letter) => ESCAPES[letter]);
