// The smallest set of removed and inserted words that turns one text into another: Myers' algorithm (1986).

const MOST_CHANGES = 2000; // with more, the whole texts are shown as removed and inserted, because the search is slow

const WORDS = /[\p{L}\p{N}_]+|\s+|[^\p{L}\p{N}_\s]/gu;

const words = (text) => text.match(WORDS) ?? [];

/** Parts of the two texts in order: [kind, text], where kind is "same", "out" or "in". */
export const difference = (before, after) =>
  joined(changes(words(before), words(after)).map(([kind, list]) => [kind, list.join("")]));

/** The same for two lists; the parts contain lists. */
export function changes(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end += 1;
  const middle = between(a.slice(start, a.length - end), b.slice(start, b.length - end));
  return [["same", a.slice(0, start)], ...middle, ["same", a.slice(a.length - end)]];
}

function between(a, b) {
  const trace = search(a, b);
  if (trace === null)
    return [
      ["out", a],
      ["in", b],
    ];
  const parts = [];
  let x = a.length;
  let y = b.length;
  for (let changes = trace.length - 1; changes > 0; changes -= 1) {
    const reached = trace[changes - 1]; // position in `a` that each diagonal reached with one change fewer
    const diagonal = x - y;
    const down =
      diagonal === -changes || (diagonal !== changes && at(reached, diagonal - 1) < at(reached, diagonal + 1));
    const from = down ? diagonal + 1 : diagonal - 1;
    const oldX = at(reached, from);
    const oldY = oldX - from;
    const shared = down ? x - oldX : y - oldY;
    parts.push(["same", a.slice(x - shared, x)]);
    parts.push(down ? ["in", [b[oldY]]] : ["out", [a[oldX]]]);
    x = oldX;
    y = oldY;
  }
  parts.push(["same", a.slice(0, x)]);
  return parts.reverse();
}

const at = (reached, diagonal) => reached[diagonal + (reached.length - 1) / 2] ?? -1;

/** For every number of changes, the position in `a` that each diagonal reaches; null if there are too many changes. */
function search(a, b) {
  const trace = [];
  for (let changes = 0; changes <= Math.min(a.length + b.length, MOST_CHANGES); changes += 1) {
    const reached = new Int32Array(2 * changes + 1).fill(-1);
    for (let diagonal = -changes; diagonal <= changes; diagonal += 2) {
      let x = 0;
      if (changes > 0) {
        const before = trace[changes - 1];
        const down =
          diagonal === -changes || (diagonal !== changes && at(before, diagonal - 1) < at(before, diagonal + 1));
        x = down ? at(before, diagonal + 1) : at(before, diagonal - 1) + 1;
      }
      while (x < a.length && x - diagonal < b.length && a[x] === b[x - diagonal]) x += 1;
      reached[diagonal + changes] = x;
      if (x >= a.length && x - diagonal >= b.length) {
        trace.push(reached);
        return trace;
      }
    }
    trace.push(reached);
  }
  return null;
}

/**
 * Neighbours of one kind become one part; what goes out stands before what comes in. A space between two words that
 * both became others is taken to be replaced with them, since "old words" for "new ones" is easier to read.
 */
function joined(parts) {
  const result = [];
  let out = "";
  let into = "";
  let same = "";
  const flush = () => {
    if (out.endsWith(" ") && into.endsWith(" ")) [out, into, same] = [out.slice(0, -1), into.slice(0, -1), ` ${same}`];
    if (out) result.push(["out", out]);
    if (into) result.push(["in", into]);
    if (same) result.push(["same", same]);
    out = into = same = "";
  };
  for (const [kind, text] of parts) {
    if (kind === "same") {
      same += text;
      continue;
    }
    if (same === " " && out && into) {
      out += same;
      into += same;
      same = "";
    } else if (same) {
      flush();
    }
    if (kind === "out") out += text;
    else into += text;
  }
  flush();
  return result;
}

/** Number of words in the parts of a kind. */
export const countWords = (parts, kind) =>
  parts
    .filter(([one]) => one === kind)
    .reduce((sum, [, text]) => sum + words(text).filter((word) => word.trim()).length, 0);
