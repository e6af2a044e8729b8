// Client of the server's API, which is OpenAI's: requests, server-sent events, and errors with advice.

const KEY = "megagpt.key";
const ADVICE = {
  401: "Give the key that the server was started with.",
  403: "Give a key that may do this.",
  404: "Load the page again to see which models the server has now.",
  413: "Send less text at once.",
  429: "The server answers as many at once as it can. Try again in a moment.",
  500: "What happened is in the server's log.",
  503: "The server is still loading its models, or is shutting down. Try again in a moment.",
};
const BY_CODE = {
  context_length_exceeded: "Shorten the text, or ask for fewer tokens.",
};

let askForKey = async () => false;

/** A failed request. `advice` says what to do, or is "". */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, advice = "" } = {}) {
    super(message);
    Object.assign(this, { status, code, advice });
  }
}

/** `ask` is called when the server requires a key; it resolves to true if the user gave one. */
export function whenKeyIsNeeded(ask) {
  askForKey = ask;
}

let key = null;

/** The key is kept until the tab is closed. */
export function setKey(given) {
  key = given;
  try {
    sessionStorage.setItem(KEY, given);
  } catch {
    // storage is disabled: the key is lost when the page is loaded again
  }
}

function storedKey() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

/** Parsed JSON of a GET. */
export const get = async (path, signal) => parsed(await send(path, { signal }));

/** Parsed JSON of a POST. */
export const post = async (path, body, signal) => parsed(await send(path, posted(body, signal)));

/** The parsed chunks of a streamed POST, as they arrive. */
export async function* stream(path, body, signal) {
  const response = await send(path, posted({ ...body, stream: true }, signal));
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw refusal(500, chunk, null);
    yield chunk;
  }
  throw new ApiError("The connection ended before the answer did.", {
    advice: "Try again. If it goes on, look at the server's log.",
  });
}

function posted(body, signal) {
  return { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal };
}

async function send(path, options) {
  key ??= storedKey();
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(new URL(`v1/${path}`, document.baseURI), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer.", {
      advice: "See whether it still runs, and whether this machine reaches it; then try again.",
    });
  }
  if (response.ok) return response;
  if (response.status === 401 && (await askForKey(Boolean(key)))) return send(path, options);
  const body = await response.json().catch(() => null);
  throw refusal(response.status, body, response.headers.get("Retry-After"));
}

function refusal(status, body, wait) {
  const { message, code } = body?.error ?? {};
  const later = wait && /^\d+$/.test(wait) ? `The server is busy. Try again in ${wait} s.` : null;
  const advice = later ?? BY_CODE[code] ?? ADVICE[status] ?? (status >= 500 ? ADVICE[500] : "");
  return new ApiError(message ? sentence(message) : `The server answered ${status}.`, { status, code, advice });
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

async function parsed(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server's answer cannot be read.", { status: response.status, advice: ADVICE[500] });
  }
}

/** The data of server-sent events; comments and other fields are ignored. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (waiting + value).split(/\r?\n/);
      waiting = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection broke off.", { advice: "See whether the server still runs, then try again." });
  } finally {
    reader.cancel().catch(() => {}); // frees the connection if the consumer stops early
  }
}
