// The chat: shows one of the conversations that the browser stores.

import { writeAnswer } from "./answer.js";
import { listConversations } from "./conversations.js";
import { announce, button, byId, errorBox, grow, icon, isEnter, make, toast } from "./dom.js";
import { startStop } from "./run.js";
import { buildSettings } from "./settings.js";
import { conversations, forget, keep, load, newConversation, save, whenChangedElsewhere } from "./store.js";
import { editInPlace, turnElement } from "./turns.js";

const SETTINGS = ["temperature", "top_p", "max_tokens", "seed", "presence_penalty", "frequency_penalty", "stop"];
const NEAR_THE_END = 60; // pixels from the end within which the log scrolls with new text
const KEPT_EVERY = 1000; // milliseconds between saves while an answer is streamed

export function createChat(page) {
  const log = byId("log");
  const turns = byId("turns");
  const message = byId("message");
  let atTheEnd = true;
  let conversation = conversations().find((one) => one.id === load("conversation", "")) ?? newConversation("");
  const elements = new WeakMap(); // elements by turn
  const settings = buildSettings(byId("settings-chat"), "chat", SETTINGS);
  const answering = startStop(byId("send"), {
    work: (signal, again) => (again ? answer(signal) : send(signal)),
    show: showSend,
    failed,
  });

  function showSend(running) {
    byId("send").replaceChildren(icon(running ? "stop" : "send"));
    byId("send").setAttribute("aria-label", running ? "Stop" : "Send");
    byId("send").title = running ? "Stop (Esc)" : "Send (Enter)";
    byId("send").classList.toggle("running", running);
  }

  // Drawing

  function list() {
    listConversations(conversation.id, open, remove);
  }

  async function open(other) {
    await answering.stop();
    conversation = other;
    show();
  }

  function show() {
    save("conversation", conversation.id);
    byId("system").value = conversation.system;
    byId("title").value = conversation.title;
    draw();
    toTheEnd();
    list();
  }

  /** Draws the turns. Existing elements are kept, so that focus and selection stay. */
  function draw() {
    const wanted = conversation.turns.length ? conversation.turns.map(element) : [welcome()];
    wanted.forEach((one, place) => {
      if (turns.children[place] !== one) turns.insertBefore(one, turns.children[place] ?? null);
    });
    while (turns.children.length > wanted.length) turns.lastElementChild.remove();
    byId("told").textContent = conversation.system.trim() ? `System prompt: ${conversation.system}` : "";
    byId("chat").classList.toggle("empty", !conversation.turns.length);
  }

  function welcome() {
    const model = page.model("chat");
    const size = model?.context_length ? `, which reads up to ${model.context_length.toLocaleString("en")} tokens` : "";
    return make(
      "div",
      { class: "welcome" },
      make("h2", { text: "Talk to a model" }),
      model && make("p", { text: `This is ${model.id}${size}. Conversations are kept in this browser.` }),
    );
  }

  function element(turn) {
    const remove = turn.role === "user" ? removeTurn : null;
    const made = elements.get(turn) ?? turnElement(turn, { edit, remove, again });
    elements.set(turn, made);
    made.update({ last: turn === conversation.turns.at(-1) });
    return made;
  }

  /** Saves the conversation, and redraws the list. */
  function changed() {
    conversation.changed = Date.now();
    keep(conversation);
    list();
  }

  // User actions

  async function start() {
    await open(newConversation(conversation.system));
    message.focus();
  }

  async function remove(other) {
    if (other.id === conversation.id) await answering.stop();
    forget(other);
    if (other.id === conversation.id) await open(newConversation(other.system));
    list();
    toast("Conversation deleted.", () => {
      keep(other);
      open(other);
    });
  }

  async function removeTurn(turn) {
    await answering.stop();
    const before = structuredClone(conversation);
    const from = conversation.turns.indexOf(turn);
    const next = conversation.turns.findIndex((other, place) => place > from && other.role === "user");
    conversation.turns.splice(from, (next < 0 ? conversation.turns.length : next) - from);
    changed();
    draw();
    message.focus();
    toast("Message deleted.", () => {
      keep(before);
      open(before);
    });
  }

  async function edit(turn) {
    await answering.stop();
    const place = conversation.turns.indexOf(turn);
    if (place < 0) return; // the answer had not begun
    const user = turn.role === "user";
    editInPlace(turns.children[place], turn, user ? "Send" : "Save", (text) => {
      if (text !== null) {
        turn.content = text;
        if (user) conversation.turns.length = place + 1;
        changed();
      }
      draw();
      message.focus();
      if (text !== null && user) answering.start(true);
    });
  }

  function again(turn) {
    if (turn.role === "assistant") conversation.turns.pop();
    message.focus();
    answering.start(true);
  }

  function failed(error) {
    turns.append(
      errorBox(
        error,
        button("Try again", () => again(conversation.turns.at(-1))),
      ),
    );
    toTheEnd();
  }

  // Requests to the model

  async function send(signal) {
    const text = message.value;
    if (!text.trim()) return;
    message.value = "";
    grow(message);
    conversation.turns.push({ role: "user", content: text });
    changed();
    draw();
    await answer(signal);
  }

  async function answer(signal) {
    const model = page.model("chat");
    if (!model) throw page.missing("chat");
    const turn = { role: "assistant", content: "", model: model.id, ended: "broken" };
    const asked = conversation.turns.slice();
    conversation.turns.push(turn);
    draw();
    toTheEnd();
    announce("The answer is being written.");
    const follow = follower(elements.get(turn));
    follow();
    try {
      const { system } = conversation;
      const context = model.context_length ?? Infinity;
      await writeAnswer(turn, { system, asked, context, settings: settings(), signal, written: follow });
    } finally {
      if (signal.aborted) turn.ended = "stopped";
      if (!turn.content && turn.ended !== "stop") conversation.turns.pop();
      changed();
      draw();
      if (atTheEnd) toTheEnd();
      announce(turn.content);
    }
  }

  /** A function that draws the streamed answer in the next animation frame, and saves it from time to time. */
  function follower(article) {
    let kept = Date.now();
    let waiting = false;
    return () => {
      if (Date.now() - kept > KEPT_EVERY) {
        keep(conversation);
        kept = Date.now();
      }
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        article.update({ last: true, running: answering.running() });
        if (atTheEnd) toTheEnd();
      });
    };
  }

  function toTheEnd() {
    atTheEnd = true;
    log.scrollTop = log.scrollHeight;
  }

  message.addEventListener("input", () => grow(message));
  message.addEventListener("keydown", (event) => {
    if (isEnter(event)) {
      event.preventDefault();
      if (!answering.running()) answering.start();
    } else if (event.key === "ArrowUp" && !message.value && !answering.running()) {
      const last = conversation.turns.findLast((turn) => turn.role === "user");
      if (last) {
        event.preventDefault();
        edit(last);
      }
    }
  });
  byId("new-conversation").addEventListener("click", start);
  for (const name of ["system", "title"]) {
    byId(name).addEventListener("input", (event) => {
      conversation[name] = event.target.value;
      if (conversation.turns.length) changed();
    });
  }
  byId("system").addEventListener("change", draw);
  new ResizeObserver(() => {
    if (atTheEnd) toTheEnd();
    grow(message);
  }).observe(log);
  log.addEventListener("scroll", () => {
    atTheEnd = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_THE_END;
  });
  addEventListener("pagehide", () => answering.running() && keep(conversation));
  whenChangedElsewhere(() => list());

  return {
    ability: () => "chat",
    run: answering,
    opened: () => {
      if (!answering.running()) show();
      grow(message);
    },
  };
}
