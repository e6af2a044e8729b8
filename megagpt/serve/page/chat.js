// The chat: one conversation at a time, of those that the browser keeps.

import { stream } from "./api.js";
import { listConversations } from "./conversations.js";
import { announce, button, byId, errorBox, grow, icon, isEnter, make, toast } from "./dom.js";
import { startStop } from "./run.js";
import { buildSettings } from "./settings.js";
import { conversations, forget, keep, load, newConversation, save, whenChangedElsewhere } from "./store.js";
import { editInPlace, turnElement } from "./turns.js";

const SETTINGS = ["temperature", "top_p", "max_tokens", "seed", "presence_penalty", "frequency_penalty", "stop"];
const NEAR_THE_END = 60; // pixels within which the log follows what is written
const KEPT_EVERY = 1000; // milliseconds, while an answer is written

export function createChat(page) {
  const log = byId("log");
  const turns = byId("turns");
  const message = byId("message");
  let atTheEnd = true;
  let conversation = conversations().find((one) => one.id === load("conversation", "")) ?? newConversation("");
  const settings = buildSettings(byId("settings-chat"), "chat", SETTINGS);
  const answering = startStop(byId("send"), { work: (signal, again) => (again ? answer(signal) : send(signal)), show: showSend, failed });

  function showSend(running) {
    byId("send").replaceChildren(icon(running ? "stop" : "send"));
    byId("send").setAttribute("aria-label", running ? "Stop" : "Send");
    byId("send").title = running ? "Stop (Esc)" : "Send (Enter)";
    byId("send").classList.toggle("running", running);
  }

  // What is shown

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
    list();
  }

  function draw() {
    turns.replaceChildren(...conversation.turns.map(element));
    if (!conversation.turns.length) turns.append(welcome());
    byId("told").textContent = conversation.system.trim() ? `System prompt: ${conversation.system}` : "";
    byId("chat").classList.toggle("empty", !conversation.turns.length);
    log.scrollTop = log.scrollHeight;
  }

  function welcome() {
    const model = page.model("chat");
    const size = model?.context_length ? `, which reads up to ${model.context_length.toLocaleString("en")} tokens` : "";
    return make("div", { class: "welcome" }, make("h2", { text: "Talk to a model" }), model && make("p", { text: `This is ${model.id}${size}. Conversations are kept in this browser.` }));
  }

  function element(turn) {
    const last = turn === conversation.turns.at(-1);
    const user = turn.role === "user";
    return turnElement(turn, { edit, remove: user ? removeTurn : null, again: last ? again : null });
  }

  /** Keeps the conversation, and draws the list anew. */
  function changed() {
    conversation.changed = Date.now();
    keep(conversation);
    list();
  }

  // What people do

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
    if (place < 0) return; // an answer that had not begun
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
    turns.append(errorBox(error, button("Try again", () => again(conversation.turns.at(-1)))));
    log.scrollTop = log.scrollHeight;
  }

  // Talking to the model

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
    announce("The answer is being written.");
    const article = turns.lastElementChild;
    article.update(true);
    try {
      await write(turn, asked, signal, () => follow(article));
    } finally {
      if (signal.aborted) turn.ended = "stopped";
      if (!turn.content && turn.ended !== "stop") conversation.turns.pop();
      changed();
      const place = isNearEnd() ? Infinity : log.scrollTop;
      draw();
      log.scrollTop = Math.min(place, log.scrollHeight);
      announce(turn.content);
    }
  }

  const isNearEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_THE_END;

  function follow(article) {
    const following = isNearEnd();
    article.update(true);
    if (following) log.scrollTop = log.scrollHeight;
  }

  /** Writes an answer into `turn`, leaving the oldest exchanges out when they do not fit. */
  async function write(turn, asked, signal, written) {
    const system = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
    for (;;) {
      const messages = [...system, ...asked.slice(turn.leftOut ?? 0).map(({ role, content }) => ({ role, content }))];
      const { max_tokens, ...rest } = settings();
      const length = max_tokens === undefined ? {} : { max_completion_tokens: max_tokens };
      const body = { model: turn.model, messages, ...rest, ...length, stream_options: { include_usage: true } };
      try {
        return await read(stream("chat/completions", body, signal), turn, written);
      } catch (error) {
        const next = asked.findIndex((other, place) => place > (turn.leftOut ?? 0) && other.role === "user");
        if (error.code !== "context_length_exceeded" || next < 0) throw error;
        turn.leftOut = next;
      }
    }
  }

  async function read(chunks, turn, written) {
    let began = null; // when the first text came
    let kept = Date.now();
    let waiting = 0;
    try {
      for await (const { choices, usage } of chunks) {
        const [choice] = choices;
        if (choice?.delta?.content) {
          began ??= performance.now();
          turn.content += choice.delta.content;
          waiting ||= requestAnimationFrame(() => {
            waiting = 0;
            written();
          });
        }
        if (choice?.finish_reason) turn.ended = choice.finish_reason;
        if (usage) turn.tokens = usage.completion_tokens;
        if (Date.now() - kept > KEPT_EVERY) {
          keep(conversation);
          kept = Date.now();
        }
      }
      if (began !== null) turn.seconds = (performance.now() - began) / 1000;
    } finally {
      cancelAnimationFrame(waiting);
    }
  }

  message.addEventListener("input", () => grow(message));
  message.addEventListener("keydown", (event) => {
    if (isEnter(event)) {
      event.preventDefault();
      if (!answering.running()) answering.start();
    } else if (event.key === "ArrowUp" && !message.value) {
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
    if (atTheEnd) log.scrollTop = log.scrollHeight;
    grow(message);
  }).observe(log);
  log.addEventListener("scroll", () => {
    atTheEnd = isNearEnd();
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
