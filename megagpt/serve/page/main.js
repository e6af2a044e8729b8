// The page: tabs, the models, the settings panel and the API key. Each tab is in its own file.

import { setKey, whenKeyIsNeeded } from "./api.js";
import { createChat } from "./chat.js";
import { button, byId, errorBox, toast } from "./dom.js";
import { createEdits } from "./edits.js";
import { createEmbeddings } from "./embeddings.js";
import { choose, chosen, fetchModels, fillPicker, missing } from "./models.js";
import { sheet } from "./panels.js";
import { createPlayground } from "./playground.js";
import { load, save, whenFull } from "./store.js";
import { hideTip } from "./tokens.js";

const TABS = ["chat", "playground", "edits", "embeddings"];

let models = null; // null until the server has answered
let tab = null;

/** The page's interface for the tabs. */
const page = {
  /** The model that a tab uses, or null. */
  model: (name) => chosen(models ?? [], name, views[name].ability()),
  /** The error that explains why a tab has no model. */
  missing: (name) => missing(models ?? [], views[name].ability()),
  /** A tab calls this when the ability that it needs has changed. */
  abilityChanged: (name) => {
    if (name === tab) showModels();
  },
};

const views = {
  chat: createChat(page),
  playground: createPlayground(page),
  edits: createEdits(page),
  embeddings: createEmbeddings(page),
};
const settings = sheet({ opener: byId("open-settings"), element: byId("settings"), closer: byId("close-settings") });
const conversations = sheet({ opener: byId("open-conversations"), element: byId("conversations") });

function open(name) {
  tab = TABS.includes(name) ? name : "chat";
  for (const one of TABS) {
    const current = one === tab;
    byId(one).hidden = !current;
    byId(`settings-${one}`).hidden = !current;
    byId(`tab-${one}`).setAttribute("aria-selected", String(current));
    byId(`tab-${one}`).tabIndex = current ? 0 : -1;
  }
  document.body.dataset.tab = tab;
  save("tab", tab);
  history.replaceState(null, "", `#${tab}`);
  conversations.close();
  showModels();
  views[tab].opened();
}

function showModels() {
  if (models === null) return;
  fillPicker(byId("model"), models, tab, views[tab].ability());
  byId("trouble").replaceChildren(
    ...(page.model(tab) ? [] : [errorBox(page.missing(tab), button("Look again", refresh))]),
  );
}

async function refresh() {
  try {
    models = await fetchModels();
  } catch (error) {
    byId("trouble").replaceChildren(errorBox(error, button("Try again", refresh)));
    return;
  }
  showModels();
  views[tab].opened();
}

/** Resolves to true if the user gave a key. `refused`: the server refused the previous key. */
function askForKey(refused) {
  const dialog = byId("key-dialog");
  byId("key-note").textContent = refused
    ? "It did not take the last one. Check it and try again."
    : "Whoever started the server knows it.";
  byId("key").value = "";
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        if (dialog.returnValue === "use") setKey(byId("key").value.trim());
        resolve(dialog.returnValue === "use");
      },
      { once: true },
    );
  });
}

function moveTab(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const place = step
    ? (TABS.indexOf(tab) + step + TABS.length) % TABS.length
    : { Home: 0, End: TABS.length - 1 }[event.key];
  if (place === undefined) return;
  event.preventDefault();
  open(TABS[place]);
  byId(`tab-${tab}`).focus();
}

for (const name of TABS) byId(`tab-${name}`).addEventListener("click", () => open(name));
for (const form of document.querySelectorAll("main form"))
  form.addEventListener("submit", (event) => event.preventDefault());
document.querySelector("[role=tablist]").addEventListener("keydown", moveTab);
addEventListener("hashchange", () => open(location.hash.slice(1)));
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || byId("key-dialog").open) return;
  hideTip();
  const { run } = views[tab];
  if (run.running()) run.stop();
  else if (!settings.close()) conversations.close();
});
byId("model").addEventListener("change", (event) => {
  choose(tab, event.target.value);
  views[tab].opened();
});
byId("no-key").addEventListener("click", () => byId("key-dialog").close());
whenKeyIsNeeded(askForKey);
whenFull(() => toast("The browser keeps no more: delete old conversations, or let this page store data."));

open(location.hash.slice(1) || load("tab", "chat"));
refresh();
