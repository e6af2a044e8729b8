// Elements, icons and small helpers. Text is always set as text, never as HTML, because models' output is untrusted.

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  copy: "M7 7V4.5L8.5 3H15.5L17 4.5V11.5L15.5 13H13M4.5 7H11.5L13 8.5V15.5L11.5 17H4.5L3 15.5V8.5Z",
  check: "M4 10.5 8.2 15 16 5.5",
  edit: "M4 16V13L13 4 16 7 7 16ZM11 6 14 9",
  trash: "M4 6H16M8 6V4H12V6M5.5 6 6.3 16.5H13.7L14.5 6M8.5 9V13.5M11.5 9V13.5",
  again: "M16 10A6 6 0 1 1 14.2 5.7L16 7.5M16 3.5V7.5H12",
  send: "M10 16V4M5 9 10 4 15 9",
  stop: "M6 6H14V14H6Z",
};

/** An element. `props`: class, text and on (listeners by event) are special, others are attributes. */
export function make(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name === "class") made.className = value;
    else if (name === "on")
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

export const icon = (name) =>
  svg("svg", { viewBox: "0 0 20 20", class: `icon ${name}`, "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));

/** A button with an icon, and a name for screen readers and on hover. */
export const iconButton = (name, label, click) =>
  make("button", { type: "button", class: "quiet", "aria-label": label, title: label, on: { click } }, icon(name));

export const byId = (id) => document.getElementById(id);

/** Announces a text to screen readers. */
export function announce(text) {
  byId("status").textContent = "";
  byId("status").textContent = text;
}

let hiding = 0;

/** A short message at the bottom, with a button that calls `undo` if it is given. */
export function toast(text, undo = null) {
  const place = byId("toast");
  const hide = () => place.replaceChildren();
  const back = () => {
    hide();
    undo();
  };
  place.replaceChildren(
    make(
      "div",
      {},
      make("span", { text }),
      undo && make("button", { type: "button", text: "Undo", on: { click: back } }),
    ),
  );
  clearTimeout(hiding);
  hiding = setTimeout(hide, undo ? 8000 : 2500);
}

/** Copies the result of `text()`, and shows success on the button. */
export function copyButton(text, label = "Copy") {
  const button = iconButton("copy", label, async () => {
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      toast("The browser does not let this page copy: mark the text and copy it by hand.");
      return;
    }
    button.replaceChildren(icon("check"));
    announce("Copied.");
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

/** Lets a text area grow with its text, up to the style sheet's maximum height. */
export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

/** An error message in place: what went wrong, what to do, and buttons. */
export function errorBox(error, ...buttons) {
  return make(
    "div",
    { class: "error", role: "alert" },
    make("p", { text: error.message }),
    error.advice ? make("p", { class: "advice", text: error.advice }) : null,
    buttons.length ? make("div", { class: "row" }, ...buttons) : null,
  );
}

export const button = (text, click, kind = "plain") =>
  make("button", { type: "button", class: kind, text, on: { click } });

/** Whether a key press submits: Enter without modifiers, and not the end of an input method's composition. */
export const isEnter = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;
