"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("data").textContent);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Plotly's error bars are distances from the point; a point without an interval has no bar.
  const reach = (series, ends, sign) => series.y.map((y, i) => (ends[i] === null ? 0 : sign * (ends[i] - y)));

  function drawn(series, place) {
    const common = { name: series.name, x: series.x, y: series.y };
    const color = css(`--run${place % 8}`);
    if (series.style === "bar") {
      const labels = series.text.length ? { text: series.text, textposition: "outside", cliponaxis: false } : {};
      return { ...common, ...labels, type: "bar", marker: { color } };
    }
    if (series.style === "reference") {
      return { ...common, type: "scatter", mode: "lines", line: { color: css("--reference"), width: 1.5, dash: "4px,3px" }, hoverinfo: "skip" };
    }
    const labels = series.text.length ? { text: series.text, hovertemplate: "%{y:.3f} (%{text})" } : {};
    if (series.style === "published") {
      const grey = css("--published");
      return { ...common, ...labels, type: "scatter", mode: "lines+markers", line: { color: grey, width: 1 }, marker: { color: grey, size: 4 }, showlegend: false };
    }
    const mode = series.x.length > 50 ? "lines" : "lines+markers";
    const intervals = series.low.length ? { error_y: { type: "data", symmetric: false, array: reach(series, series.high, 1), arrayminus: reach(series, series.low, -1), color, thickness: 1.2, width: 3 } } : {};
    return { ...common, ...labels, ...intervals, type: "scatter", mode, line: { color, width: 2 }, marker: { color, size: 6 } };
  }

  // The label after the last point of a line; on a logarithmic axis plotly needs the logarithm of the position.
  function labelled(series, axes) {
    const x = series.x[series.x.length - 1];
    return { x: axes.xaxis && axes.xaxis.type === "log" ? Math.log10(x) : x, y: series.y[series.y.length - 1], text: series.label, showarrow: false, xanchor: "left", xshift: 5, font: { size: 11, color: css("--muted") } };
  }

  function draw(chart, number) {
    const lines = { gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, automargin: true };
    const layout = {
      margin: { l: 46, r: 12, t: 24, b: 34 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: css("--sans"), size: 12, color: css("--muted") },
      showlegend: chart.series.length > 1,
      legend: { orientation: "h", x: 1, xanchor: "right", y: 1, yanchor: "bottom", itemclick: false, itemdoubleclick: false },
      annotations: chart.series.filter((series) => series.label).map((series) => labelled(series, chart.axes)),
      hovermode: chart.axes.hovermode ?? "x unified",
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") }, namelength: 40 },
      bargap: 0.25,
      xaxis: { ...lines, showgrid: false, showline: true, title: { text: chart.x, standoff: 6 }, ...chart.axes.xaxis },
      yaxis: { ...lines, rangemode: "tozero", title: { text: chart.y, standoff: 6 }, ...chart.axes.yaxis },
    };
    const colored = chart.series.filter((series) => series.style !== "published");
    const traces = chart.series.map((series) => drawn(series, colored.indexOf(series)));
    return Plotly.react(`plot${number}`, traces, layout, { responsive: true, displayModeBar: false });
  }

  // Charts in a collapsed group have no width, so they are drawn when it is opened.
  const place = (number) => document.getElementById(`plot${number}`);
  const drawWhere = (visible) => Promise.all(charts.map((chart, number) => visible(place(number)) && draw(chart, number)));

  function drawAll() {
    return drawWhere((element) => !element.closest("details:not([open])")).then(() => {
      document.documentElement.dataset.drawn = "yes";
    });
  }

  document.addEventListener("toggle", ({ target }) => target.open && drawWhere((element) => target.contains(element)), true);

  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  drawAll();
})();
