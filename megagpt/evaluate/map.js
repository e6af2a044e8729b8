"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const COLORS = 12;
  const LISTED = 40;
  const SYMBOLS = ["circle", "diamond", "square", "cross"];
  const plot = document.getElementById("plot");
  const tip = document.getElementById("tip");
  const panel = document.getElementById("panel");
  const search = document.getElementById("search");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const count = data.x.length;
  const hidden = new Set();
  const folded = data.text.map((text) => text.toLowerCase());
  const members = data.names.map((_, group) => data.group.flatMap((own, point) => (own === group ? [point] : [])));
  let matches = null; // set of the points that the search found; null without a search
  let chosen = null;

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const color = (group) => css(`--g${group % COLORS}`);
  const size = count > 2500 ? 5 : count > 800 ? 6 : count > 200 ? 7.5 : 9;

  function element(tag, text, ...children) {
    const made = document.createElement(tag);
    if (text !== null) made.textContent = text; // never as HTML
    made.append(...children);
    return made;
  }

  const begin = (text, length) => (text.length > length ? `${text.slice(0, length).trimEnd()}...` : text);

  function groupTrace(points, group) {
    return {
      type: "scatter",
      mode: "markers",
      x: points.map((point) => data.x[point]),
      y: points.map((point) => data.y[point]),
      customdata: points,
      hoverinfo: "none",
      visible: !hidden.has(group),
      marker: {
        size: points.map((point) => (matches?.has(point) ? size + 2 : size)),
        symbol: SYMBOLS[Math.floor(group / COLORS) % SYMBOLS.length],
        color: color(group),
        opacity: points.map((point) => (!matches ? 0.75 : matches.has(point) ? 0.95 : 0.07)),
        line: { width: 0.5, color: css("--card") },
      },
    };
  }

  function rings() {
    if (chosen === null) return [];
    const ring = (points, width, size) => ({
      type: "scatter",
      mode: "markers",
      x: points.map((point) => data.x[point]),
      y: points.map((point) => data.y[point]),
      hoverinfo: "skip",
      marker: { size, symbol: "circle-open", color: css("--ink"), line: { width } },
    });
    return [ring(data.near[chosen], 1, size + 5), ring([chosen], 2.5, size + 9)];
  }

  function draw() {
    const axis = { visible: false, zeroline: false, showgrid: false };
    const range = (values) => {
      const [low, high] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
      const margin = 0.04 * (high - low) || 1;
      return [low - margin, high + margin];
    };
    const layout = {
      margin: { l: 4, r: 4, t: 4, b: 4 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      showlegend: false,
      hovermode: "closest",
      hoverdistance: 12,
      dragmode: "pan",
      uirevision: "kept",
      xaxis: { ...axis, range: range(data.x) },
      yaxis: { ...axis, range: range(data.y) },
    };
    for (const dot of document.querySelectorAll("[data-group] .dot")) dot.style.background = color(Number(dot.closest("[data-group]").dataset.group));
    const options = { responsive: true, displayModeBar: false, scrollZoom: true, doubleClick: "reset" };
    return Plotly.react(plot, members.map(groupTrace).concat(rings()), layout, options).then(() => {
      document.documentElement.dataset.drawn = String(count);
    });
  }

  function entry(point, cosine) {
    const label = begin(data.text[point].replace(/\s+/g, " "), 140);
    const button = element("button", null);
    button.append(cosine === null ? dot(point) : element("b", cosine.toFixed(3)), element("span", label));
    button.addEventListener("click", () => choose(point));
    return element("li", null, button);
  }

  function dot(point) {
    const made = element("i", null);
    made.className = "dot";
    made.style.cssText = `background: ${color(data.group[point])}; flex: none; margin-top: 5px;`;
    return made;
  }

  function list(points, cosines) {
    return element("ol", null, ...points.map((point, place) => entry(point, cosines ? cosines[place] : null)));
  }

  function fillPanel() {
    panel.replaceChildren();
    if (chosen !== null) {
      const head = element("h3", null, dot(chosen), `#${data.number[chosen]} · ${data.names[data.group[chosen]]}`);
      panel.append(head, element("pre", data.text[chosen]));
      panel.append(element("h3", "Most similar, by cosine"), list(data.near[chosen], data.cosine[chosen]));
    } else if (matches) {
      const found = [...matches];
      const more = found.length > LISTED ? `, of which these are the first ${LISTED}` : "";
      panel.append(element("h3", `${found.length.toLocaleString("en")} found${more}`), list(found.slice(0, LISTED), null));
    } else {
      panel.append(element("p", "Click a dot for its text and the documents that are most similar to it, or search."));
    }
    panel.scrollTop = 0;
  }

  function choose(point) {
    chosen = point;
    fillPanel();
    draw();
  }

  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    matches = wanted ? new Set(folded.flatMap((text, point) => (text.includes(wanted) ? [point] : []))) : null;
    document.getElementById("matches").textContent = matches ? `${matches.size.toLocaleString("en")} found` : "";
    choose(null);
  });
  for (const chip of document.querySelectorAll(".chip")) {
    chip.addEventListener("click", () => {
      const group = Number(chip.dataset.group);
      if (!hidden.delete(group)) hidden.add(group);
      chip.setAttribute("aria-pressed", String(!hidden.has(group)));
      draw();
    });
  }
  for (const button of document.querySelectorAll("[data-point]")) {
    button.addEventListener("click", () => {
      choose(Number(button.dataset.point));
      plot.scrollIntoView({ block: "nearest", behavior: "smooth" });
    });
  }
  dark.addEventListener("change", draw);
  fillPanel();
  draw().then(() => {
    plot.on("plotly_hover", ({ points: [point], event }) => {
      const own = point.customdata;
      if (own === undefined) return;
      tip.textContent = begin(data.text[own], 300);
      tip.hidden = false;
      const box = tip.parentElement.getBoundingClientRect();
      const [x, y] = [event.clientX - box.left, event.clientY - box.top];
      tip.style.left = `${Math.max(8, x + tip.offsetWidth + 24 > box.width ? x - tip.offsetWidth - 14 : x + 14)}px`;
      tip.style.top = `${Math.max(8, Math.min(y + 12, box.height - tip.offsetHeight - 8))}px`;
    });
    plot.on("plotly_unhover", () => { tip.hidden = true; });
    plot.on("plotly_click", ({ points: [point] }) => { if (point.customdata !== undefined) choose(point.customdata); });
  });
})();
