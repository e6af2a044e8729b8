"use strict";
(() => {
  const { runs, panels } = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const hidden = new Set();
  let axis = "tokens";

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const runColor = (run) => css(`--run${run % 8}`);

  // With one run, evaluations and each curve of a task have their own colours; with several runs, colours are runs.
  const evaluated = (trace) => ["points", "last"].includes(trace.style);
  const color = (trace) => runColor(runs.length > 1 ? trace.run : trace.series ?? (evaluated(trace) ? 1 : trace.run));
  const symbols = ["circle", "square", "diamond", "cross", "triangle-up"];

  function drawn(trace, panel) {
    const several = runs.length > 1;
    const overlaid = several && panel.traces.some((other) => other.style === "line");
    const style = {
      faint: { mode: "lines", line: { width: 1 }, opacity: 0.28, hoverinfo: "skip" },
      line: { mode: "lines", line: { width: 2 } },
      points: { mode: overlaid ? "markers" : "lines+markers", line: { width: 1.5 }, marker: { size: trace.y.length > 50 ? 3 : 6 } },
      last: { mode: "markers", marker: { size: 11, symbol: "diamond" } },
    }[trace.style];
    const label = trace.style === "line" && panel.traces.every((other) => other.style !== "faint") ? panel.title : trace.label;
    return {
      ...style,
      type: "scatter",
      x: trace[axis],
      y: trace.y,
      line: { ...style.line, color: color(trace) },
      marker: { ...style.marker, symbol: style.marker?.symbol ?? symbols[(trace.series ?? 0) % 5], color: color(trace) },
      name: several ? `${runs[trace.run]}, ${label}` : label,
      showlegend: !several && trace.style !== "faint",
      visible: !hidden.has(trace.run),
      hovertemplate: trace.style === "faint" ? undefined : `%{y:${panel.hover}}`,
    };
  }

  function reference(line, panel) {
    const xs = panel.traces.flatMap((trace) => trace[axis]).filter((x) => x !== null);
    return {
      type: "scatter",
      mode: "lines+text",
      x: [xs.reduce((a, b) => Math.min(a, b), Infinity), xs.reduce((a, b) => Math.max(a, b), -Infinity)],
      y: [line.y, line.y],
      text: ["", `${line.label}  ${line.y.toFixed(2)}`],
      textposition: "bottom left",
      cliponaxis: false,
      textfont: { color: css("--muted"), size: 12 },
      line: { color: css("--reference"), width: 1.5, dash: "4px,3px" },
      hoverinfo: "skip",
      showlegend: false,
    };
  }

  // With several runs colours are runs, so the legend distinguishes the curves of a task by symbols.
  function symbolKeys(panel) {
    const labels = new Map(runs.length > 1 ? panel.traces.filter((trace) => trace.series !== undefined).map((trace) => [trace.series, trace.label]) : []);
    const key = (series, label) => ({ type: "scatter", mode: "markers", x: [null], y: [null], name: label, marker: { symbol: symbols[series % 5], color: css("--muted"), size: 6 }, hoverinfo: "skip", showlegend: true });
    return [...labels].map(([series, label]) => key(series, label));
  }

  function draw(panel, index) {
    const traces = panel.traces.map((trace) => drawn(trace, panel)).concat(panel.references.map((line) => reference(line, panel)), symbolKeys(panel));
    const lines = { gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, automargin: true };
    const layout = {
      margin: { l: 46, r: 12, t: 24, b: 34 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: css("--sans"), size: 12, color: css("--muted") },
      showlegend: traces.filter((trace) => trace.showlegend).length > 1,
      legend: { orientation: "h", x: 1, xanchor: "right", y: 1, yanchor: "bottom", itemclick: false, itemdoubleclick: false },
      hovermode: "x unified",
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") }, namelength: 40 },
      xaxis: {
        ...lines,
        showgrid: false,
        rangemode: "tozero",
        showline: true,
        tickformat: axis === "tokens" ? "~s" : ",d",
        hoverformat: axis === "tokens" ? ".4~s" : ",d",
        title: { text: axis === "tokens" ? "tokens" : "steps", standoff: 6, font: { size: 12 } },
      },
      yaxis: {
        ...lines,
        type: panel.logarithmic ? "log" : "linear",
        rangemode: panel.fromZero ? "tozero" : "normal",
        tickformat: panel.ticks,
        nticks: index === 0 ? 7 : panel.logarithmic ? 4 : 6,
      },
    };
    const options = { responsive: true, displayModeBar: false };
    return Plotly.react(`plot${index}`, traces, layout, options);
  }

  function drawAll() {
    for (const dot of document.querySelectorAll("[data-color]")) dot.style.background = runColor(Number(dot.dataset.color));
    return Promise.all(panels.map(draw)).then(() => {
      document.documentElement.dataset.drawn = axis;
    });
  }

  for (const button of document.querySelectorAll("[data-axis]")) {
    button.addEventListener("click", () => {
      axis = button.dataset.axis;
      for (const other of document.querySelectorAll("[data-axis]")) other.setAttribute("aria-pressed", String(other === button));
      drawAll();
    });
  }
  for (const chip of document.querySelectorAll("[data-run]")) {
    chip.addEventListener("click", () => {
      const run = Number(chip.dataset.run);
      if (!hidden.delete(run)) hidden.add(run);
      chip.setAttribute("aria-pressed", String(!hidden.has(run)));
      drawAll();
    });
  }
  dark.addEventListener("change", drawAll);
  drawAll();
})();
