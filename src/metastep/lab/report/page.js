"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)");
  const hidden = new Set();
  const chosen = { clock: "step", loss: "log", rate: "linear" };
  const panels = [
    { id: "train_loss", scale: "loss", format: ".4g" },
    { id: "valid_loss", scale: "loss", format: ".4g" },
    data.metric === "accuracy"
      ? { id: "valid_metric", scale: null, format: ".2%", ticks: ".0%" }
      : { id: "valid_metric", scale: "loss", format: ".4g" },
    { id: "lr", scale: "rate", format: ".3g" },
  ];
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: coarse.matches ? false : "hover",
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
    toImageButtonOptions: { format: "png", scale: 2 },
  };

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const faint = (colour, alpha) => {
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    return `rgba(${r},${g},${b},${alpha})`;
  };
  const isLog = (panel) => panel.scale !== null && chosen[panel.scale] === "log";

  // The ends of the y axis: all that finished runs reach, so that a run that blew up does not flatten the others.
  function ends(values, log) {
    const usable = values.filter((value) => value !== null && (!log || value > 0));
    if (!usable.length) return log ? [0.1, 1] : [0, 1];
    let low = usable.reduce((a, b) => Math.min(a, b));
    const high = usable.reduce((a, b) => Math.max(a, b));
    if (log) {
      low = Math.max(low, high / 1e5); // a cosine that ends in zero would take the whole axis
      const room = Math.max((high / low) ** 0.06, 1.03);
      return [low / room, high * room];
    }
    const room = 0.06 * (high - low) || 0.1 * Math.abs(high) || 0.5;
    return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
  }

  // Labelled powers of ten where there are several of them, else steps of 1, 2, 5.
  function logTicks([low, high]) {
    const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
    const decades = Math.log10(high / low);
    const digits = decades > 2.6 ? [1] : decades > 0.9 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
    const values = [];
    for (let power = first; power <= last; power++)
      for (const digit of digits) {
        const value = Number((digit * 10 ** power).toPrecision(3));
        if (value >= low && value <= high) values.push(value);
      }
    return values.length >= 2 ? { tickvals: values, ticktext: values.map(tickText) } : { nticks: 5 };
  }
  const tickText = (value) =>
    value >= 1e5 || value < 1e-3
      ? `${Number((value / 10 ** Math.floor(Math.log10(value) + 1e-9)).toPrecision(2))}e${Math.floor(Math.log10(value) + 1e-9)}`
      : String(value);

  // One polygon per stretch without gaps: out along the highest seed, back along the lowest.
  function polygons(band, floor) {
    const [x, y] = [[], []];
    let start = 0;
    for (let at = 0; at <= band.x.length; at++) {
      if (at < band.x.length && band.low[at] !== null) continue;
      const xs = band.x.slice(start, at);
      x.push(...xs, ...xs.slice().reverse(), null);
      y.push(...band.high.slice(start, at), ...band.low.slice(start, at).reverse().map((v) => Math.max(v, floor)), null);
      start = at + 1;
    }
    return { x, y };
  }

  function traces(panel) {
    const log = isLog(panel);
    const shown = data.series.filter((one) => !hidden.has(one.label));
    const bands = shown.map((one) => one.bands[panel.id][chosen.clock]).filter(Boolean);
    const lost = shown.flatMap((one) => one.diverged.map((run) => run.curves[panel.id][chosen.clock]));
    let reached = bands.flatMap((band) => [...band.low, ...band.high]);
    if (!reached.length) reached = lost.flatMap((curve) => curve.y);
    const [bottom, top] = ends(reached, log);
    const [areas, lines] = [[], []];
    for (const one of [...shown].reverse().sort((a, b) => a.learned - b.learned)) {
      const colour = css(`--line-${one.slot}`);
      const band = one.bands[panel.id][chosen.clock];
      const name = escaped(one.label);
      if (band) {
        if (one.runs > 1)
          areas.push({
            ...polygons(band, log ? bottom : -Infinity),
            type: "scatter", mode: "lines", fill: "toself", fillcolor: faint(colour, dark.matches ? 0.2 : 0.15),
            line: { width: 0 }, hoverinfo: "skip", name,
          });
        lines.push({
          x: band.x, y: band.mean, name, type: "scatter", mode: band.x.length > 1 ? "lines" : "markers",
          line: { color: colour, width: one.learned ? 3.2 : 2, dash: one.dash },
          marker: { color: colour, size: 7 },
          customdata: band.low.map((low, at) => [low, band.high[at]]),
          hovertemplate: one.runs > 1
            ? `%{y:${panel.format}} (%{customdata[0]:${panel.format}} to %{customdata[1]:${panel.format}})`
            : `%{y:${panel.format}}`,
        });
      }
      for (const run of one.diverged) lines.push(...diverged(run, panel, name, colour, bottom, top));
    }
    return { traces: [...areas, ...lines], range: [bottom, top] };
  }

  function diverged(run, panel, label, colour, bottom, top) {
    const { x, y } = run.curves[panel.id][chosen.clock];
    let last = y.length - 1;
    while (last >= 0 && y[last] === null) last--;
    if (last < 0) return [];
    const name = `${label}, seed ${run.seed}: diverged`;
    return [
      { x, y, name, type: "scatter", mode: "lines", line: { color: colour, width: 1.5, dash: "dot" }, hovertemplate: `%{y:${panel.format}}` },
      {
        x: [x[last]], y: [Math.min(Math.max(y[last], bottom), top)], name, type: "scatter", mode: "markers", hoverinfo: "skip",
        marker: { symbol: "x-thin", size: 10, color: colour, line: { width: 2.5, color: colour } }, cliponaxis: false,
      },
    ];
  }

  function layout(yaxis) {
    const [ink, muted, rule, surface] = ["--ink", "--muted", "--rule", "--surface"].map(css);
    const axis = { gridcolor: rule, zeroline: false, automargin: true, tickfont: { size: 12, color: muted }, fixedrange: coarse.matches };
    return {
      paper_bgcolor: surface, plot_bgcolor: surface, showlegend: false, hovermode: "x unified", hoverdistance: 40,
      font: { family: getComputedStyle(document.documentElement).fontFamily, color: ink, size: 12 },
      hoverlabel: { bgcolor: surface, bordercolor: rule, font: { color: ink, size: 12 }, namelength: 24 },
      margin: { l: 48, r: 14, t: 14, b: 44 },
      xaxis: {
        ...axis, showgrid: false, showline: true, linecolor: rule, nticks: 7,
        title: { text: chosen.clock === "step" ? "steps" : "seconds of training", font: { size: 12, color: muted }, standoff: 8 },
        hoverformat: chosen.clock === "step" ? ",d" : ".3~s",
      },
      yaxis: { ...axis, ...yaxis, exponentformat: "power" },
    };
  }
  const yaxis = (range, log, ticks) =>
    log
      ? { type: "log", range: range.map(Math.log10), ...logTicks(range) }
      : { type: "linear", range, tickformat: ticks, nticks: 6 };

  function blend(part) {
    const [from, to, at] = part < 0.5 ? ["--early", "--middle", part * 2] : ["--middle", "--late", part * 2 - 1];
    const mixed = [1, 3, 5].map((k) => {
      const [a, b] = [css(from), css(to)].map((colour) => parseInt(colour.slice(k, k + 2), 16));
      return Math.round(a + (b - a) * at).toString(16).padStart(2, "0");
    });
    return `#${mixed.join("")}`;
  }

  function drawLayers(one, place) {
    const log = chosen.rate === "log";
    const lines = one.names.map((name, at) => ({
      x: one[chosen.clock], y: one.rates[at], name: escaped(name), type: "scatter", mode: "lines",
      line: { width: 2, color: blend(one.names.length > 1 ? at / (one.names.length - 1) : 0) },
      hovertemplate: "%{y:.3g} at %{x:,}",
    }));
    const range = ends(one.rates.flat(), log);
    Plotly.react(`layers-${place}`, lines, { ...layout(yaxis(range, log)), hovermode: "closest" }, config);
  }

  function draw() {
    for (const panel of panels) {
      const made = traces(panel);
      Plotly.react(panel.id, made.traces, layout(yaxis(made.range, isLog(panel), panel.ticks)), config);
    }
    data.layers.forEach(drawLayers);
  }

  function fillLegend() {
    const dashes = { solid: "", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3" };
    for (const one of data.series) {
      const button = document.createElement("button");
      button.type = "button";
      button.classList.toggle("learned", one.learned);
      button.setAttribute("aria-pressed", "true");
      button.title = "show or hide";
      button.innerHTML = `<svg width="22" height="8" aria-hidden="true"><path d="M1 4H21" fill="none" stroke-linecap="round"/></svg><span></span>`;
      button.querySelector("path").style.cssText =
        `stroke:var(--line-${one.slot});stroke-width:${one.learned ? 4 : 3};stroke-dasharray:${dashes[one.dash]}`;
      button.querySelector("span").textContent = one.label;
      button.addEventListener("click", () => {
        const show = hidden.delete(one.label);
        if (!show) hidden.add(one.label);
        button.setAttribute("aria-pressed", String(show));
        draw();
      });
      document.getElementById("legend").append(button);
    }
  }

  function makeSortable(table) {
    const body = table.tBodies[0];
    const valueOf = (row, at) => row.cells[at].dataset.value;
    table.querySelectorAll("thead th").forEach((head, at) => {
      head.querySelector("button")?.addEventListener("click", () => {
        const falling = head.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const rows = [...body.rows].sort((a, b) => {
          const [left, right] = [valueOf(a, at), valueOf(b, at)];
          if (left === "" || right === "") return (left === "") - (right === ""); // no number: last either way
          const order = at ? Number(left) - Number(right) : left.localeCompare(right, undefined, { numeric: true });
          return falling ? -order : order;
        });
        body.append(...rows);
      });
    });
  }

  fillLegend();
  makeSortable(document.getElementById("results"));
  for (const input of document.querySelectorAll(".switch input"))
    input.addEventListener("change", () => {
      chosen[input.name] = input.value;
      draw();
    });
  dark.addEventListener("change", draw);
  draw();
})();
