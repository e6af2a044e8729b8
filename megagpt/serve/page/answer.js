// Asking a model for the next turn of a conversation.

import { stream } from "./api.js";

const ROOM = 256; // tokens of the context that are kept free for an answer without a max_tokens setting

/**
 * Writes an answer into `turn` as it comes: its content, why it ended, its tokens and seconds. `asked`: the turns
 * before it, `settings`: fields of the request, `written()` is called for every piece. Where they do not fit into the
 * `context` of so many tokens the oldest exchanges are left out; `turn.leftOut` says how many messages these are.
 */
export async function writeAnswer(turn, { system, asked, context, settings, signal, written }) {
  const told = system.trim() ? [{ role: "system", content: system }] : [];
  const { max_tokens, ...rest } = settings;
  const length = max_tokens === undefined ? {} : { max_completion_tokens: max_tokens };
  turn.leftOut = firstThatFits(told, asked, context - (max_tokens ?? Math.min(ROOM, context / 2)));
  for (;;) {
    const messages = [...told, ...asked.slice(turn.leftOut).map(({ role, content }) => ({ role, content }))];
    const body = { model: turn.model, messages, ...rest, ...length, stream_options: { include_usage: true } };
    try {
      return await read(stream("chat/completions", body, signal), turn, messages, written);
    } catch (error) {
      const next = nextExchange(asked, turn.leftOut);
      if (error.code !== "context_length_exceeded" || next < 0) throw error;
      turn.leftOut = next;
    }
  }
}

const nextExchange = (turns, from) => turns.findIndex((turn, place) => place > from && turn.role === "user");

const characters = (messages) => messages.reduce((sum, { content }) => sum + content.length, 0);

/**
 * The first of the turns from which all that follow have room, as far as the last answer tells how many tokens a
 * character takes. The last exchange is never left out: the server says whether that fits.
 */
function firstThatFits(told, asked, room) {
  const density = asked.findLast((turn) => turn.density)?.density;
  let first = 0;
  while (density && density * characters([...told, ...asked.slice(first)]) > room) {
    const next = nextExchange(asked, first);
    if (next < 0) break;
    first = next;
  }
  return first;
}

async function read(chunks, turn, messages, written) {
  let began = null; // time of the first text
  for await (const { choices, usage } of chunks) {
    const [choice] = choices;
    if (choice?.delta?.content) {
      began ??= performance.now();
      turn.content += choice.delta.content;
      written();
    }
    if (choice?.finish_reason) turn.ended = choice.finish_reason;
    if (usage) {
      turn.tokens = usage.completion_tokens;
      turn.density = usage.total_tokens / (characters(messages) + turn.content.length);
    }
  }
  if (began !== null) turn.seconds = (performance.now() - began) / 1000;
}
