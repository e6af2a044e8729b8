// Similarity of texts: a matrix of cosines, and a map.

import { post } from "./api.js";
import { announce, button, byId, errorBox, make, svg } from "./dom.js";
import { named, startStop } from "./run.js";
import { buildSettings } from "./settings.js";
import { load, save } from "./store.js";
import { cosines, principal } from "./vectors.js";

const MOST_TEXTS = 200;
const MOST_ROWS = 40; // of the matrix
const LISTED = 8; // texts in the list of the most similar ones
const [WIDEST, NARROWEST, EDGE] = [640, 300, 34]; // of the map, in pixels
const LABEL = 28; // characters

const begin = (text, length) => (text.length > length ? `${text.slice(0, length).trimEnd()}...` : text);

export function createEmbeddings(page) {
  const area = byId("texts");
  const separator = byId("separator");
  const results = byId("compared");
  const settings = buildSettings(byId("settings-embeddings"), "embeddings", ["dimensions"]);
  const running = startStop(byId("compare"), { work: compare, show: named(byId("compare"), "Compare"), failed });

  function texts() {
    const parts = area.value.split(separator.value === "line" ? /\n/ : /\n[ \t]*\n/);
    return parts.map((text) => text.trim()).filter(Boolean);
  }

  async function compare(signal) {
    const model = page.model("embeddings");
    if (!model) throw page.missing("embeddings");
    const input = texts();
    if (input.length < 2)
      throw new Error(
        "Write at least two texts, each on a line of its own, or with an empty line between where each is a paragraph.",
      );
    if (input.length > MOST_TEXTS)
      throw new Error(
        `These are ${input.length} texts. The page compares ${MOST_TEXTS}; megagpt search map draws larger maps.`,
      );
    results.replaceChildren(make("p", { class: "waiting", text: "The model is reading" }));
    announce("The model is reading.");
    try {
      const { data } = await post(
        "embeddings",
        { model: model.id, input, encoding_format: "float", ...settings() },
        signal,
      );
      const vectors = data.sort((a, b) => a.index - b.index).map((one) => one.embedding);
      results.replaceChildren(...comparison(input, vectors, results.clientWidth));
      announce(`${input.length} texts compared.`);
    } finally {
      results.querySelector(".waiting")?.remove();
    }
  }

  function failed(error) {
    results.replaceChildren(
      errorBox(
        error,
        button("Try again", () => running.start()),
      ),
    );
  }

  const kept = load("texts", {});
  area.value = kept.text ?? "";
  separator.value = kept.separator === "paragraph" ? "paragraph" : "line";
  for (const field of [area, separator])
    field.addEventListener("input", () => save("texts", { text: area.value, separator: separator.value }));
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      running.start();
    }
  });

  return { ability: () => "embeddings", run: running, opened: () => {} };
}

/** Elements that show similarities: a map, neighbours of the selected text, the matrix. `room`: width in px. */
function comparison(texts, vectors, room) {
  const alike = cosines(vectors);
  const near = make("div", { class: "near" });
  const map = mapElement(texts, principal(vectors), room, choose);

  function choose(chosen) {
    const others = texts.map((_, place) => place).filter((place) => place !== chosen);
    others.sort((a, b) => alike[chosen][b] - alike[chosen][a]);
    const items = others
      .slice(0, LISTED)
      .map((place) =>
        make(
          "li",
          {},
          make(
            "button",
            { type: "button", on: { click: () => choose(place) } },
            make("b", { text: alike[chosen][place].toFixed(2) }),
            make("span", { text: begin(texts[place], 120) }),
          ),
        ),
      );
    near.replaceChildren(
      make("h3", { text: "Most like" }),
      make("p", { text: begin(texts[chosen], 300) }),
      make("ol", {}, ...items),
    );
    for (const [place, point] of map.points.entries()) point.setAttribute("aria-pressed", String(place === chosen));
  }

  choose(0);
  return [make("div", { class: "mapped" }, map.element, near), ...matrix(texts, alike)];
}

function mapElement(texts, { places, shares }, room, choose) {
  const width = Math.min(WIDEST, Math.max(NARROWEST, room));
  const size = [width, Math.round(Math.max(0.66 * width, 280))];
  const scale = Math.min(...[0, 1].map((axis) => (size[axis] - 2 * EDGE) / (spread(places, axis) || 1)));
  const middle = [0, 1].map(
    (axis) => (Math.max(...places.map((place) => place[axis])) + Math.min(...places.map((place) => place[axis]))) / 2,
  );
  const crowded = texts.length > 30;
  const points = places.map((place, number) => {
    const x = size[0] / 2 + (place[0] - middle[0]) * scale;
    const y = size[1] / 2 - (place[1] - middle[1]) * scale;
    const left = x > size[0] * 0.6;
    const label = svg(
      "text",
      { x: x + (left ? -11 : 11), y: y + 4, "text-anchor": left ? "end" : "start" },
      begin(texts[number], LABEL),
    );
    const title = svg("title", {}, begin(texts[number], 300));
    const dot = svg("circle", { cx: x, cy: y, r: crowded ? 4.5 : 6.5 });
    const point = svg(
      "g",
      { class: "point", tabindex: 0, role: "button", "aria-label": begin(texts[number], 120) },
      title,
      dot,
      ...(crowded ? [] : [label]),
    );
    point.addEventListener("click", () => choose(number));
    point.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose(number);
    });
    return point;
  });
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${size[0]} ${size[1]}`, role: "group", "aria-label": "Map of the texts" },
    ...points,
  );
  const share = Math.round(100 * (shares[0] + shares[1]));
  const note = `A map of the two directions in which the texts differ most, with ${share} % of their variance.`;
  return { points, element: make("figure", { class: "card map" }, drawing, make("figcaption", { text: note })) };
}

const spread = (places, axis) =>
  Math.max(...places.map((place) => place[axis])) - Math.min(...places.map((place) => place[axis]));

function matrix(texts, alike) {
  const shown = texts.slice(0, MOST_ROWS);
  const values = alike.flatMap((row, place) => row.slice(place + 1));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const cell = (row, column) => {
    const made = make("td", { text: alike[row][column].toFixed(2), class: row === column ? "self" : null });
    const shade = row === column ? 0 : (alike[row][column] - low) / (high - low || 1);
    made.style.setProperty("--alike", String(Math.max(0, shade)));
    return made;
  };
  const head = make(
    "thead",
    {},
    make(
      "tr",
      {},
      make("td"),
      ...shown.map((text, number) => make("th", { scope: "col", title: begin(text, 300), text: String(number + 1) })),
    ),
  );
  const rows = shown.map((text, row) =>
    make(
      "tr",
      {},
      make("th", { scope: "row", title: begin(text, 300) }, make("b", { text: String(row + 1) }), begin(text, LABEL)),
      ...shown.map((_, column) => cell(row, column)),
    ),
  );
  const table = make(
    "div",
    { class: "card scroll", tabindex: 0, role: "region", "aria-label": "Cosine of each two texts" },
    make("table", { class: "matrix" }, head, make("tbody", {}, ...rows)),
  );
  const left = texts.length > MOST_ROWS ? ` The first ${MOST_ROWS} of ${texts.length} texts.` : "";
  return [
    make("h2", { text: "Cosines" }),
    table,
    make("p", { class: "note", text: `1 is the same direction, 0 at right angles.${left}` }),
  ];
}
