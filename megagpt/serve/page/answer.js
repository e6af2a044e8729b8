// Asking a model for the next turn of a conversation.

import { stream } from "./api.js";

/**
 * Writes an answer into `turn` as it comes: its content, why it ended, its tokens and seconds. `asked`: the turns
 * before it, `settings`: fields of the request, `written()` is called for every piece. Where they do not fit into the
 * model's context the oldest exchanges are left out, and `turn.leftOut` says how many messages these are.
 */
export async function writeAnswer(turn, { system, asked, settings, signal, written }) {
  const told = system.trim() ? [{ role: "system", content: system }] : [];
  const { max_tokens, ...rest } = settings;
  const length = max_tokens === undefined ? {} : { max_completion_tokens: max_tokens };
  for (;;) {
    const messages = [...told, ...asked.slice(turn.leftOut ?? 0).map(({ role, content }) => ({ role, content }))];
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
  for await (const { choices, usage } of chunks) {
    const [choice] = choices;
    if (choice?.delta?.content) {
      began ??= performance.now();
      turn.content += choice.delta.content;
      written();
    }
    if (choice?.finish_reason) turn.ended = choice.finish_reason;
    if (usage) turn.tokens = usage.completion_tokens;
  }
  if (began !== null) turn.seconds = (performance.now() - began) / 1000;
}
