"use strict";
(() => {
  const { methods, selected: first, specifications, panels, configurations } = JSON.parse(document.getElementById("data").textContent);
  const selected = new Set(first);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const chosen = { clock: "step" }; // and "log" or "linear" by kind of panel, once a reader has said so
  const views = [];

  async function draw(place) {
    const panel = panels[place];
    const clock = chosen.clock in panel.rows ? chosen.clock : "step";
    const scale = (panel.choices && chosen[panel.kind]) || panel.scale;
    const made = structuredClone(specifications[`${panel.kind}/${clock}/${scale}`]);
    const lists = Object.fromEntries(made.transform[0].flatten.map((name) => [name, []]));
    made.data = { values: panel.rows[clock].map((row) => ({ ...lists, ...row })) };
    made.description = panel.title;
    for (const one of made.params) one.value = one.name === "selected" ? [...selected] : panel.domain[scale];
    const settings = {
      mode: "vega-lite",
      renderer: "canvas",
      ast: true, // expressions are interpreted: the page forbids itself to make code of text
      actions: { export: true, source: false, compiled: false, editor: false },
      config: configurations[dark.matches ? "dark" : "light"],
      tooltip: { theme: dark.matches ? "dark" : "light" },
      downloadFileName: panel.title,
    };
    views[place]?.finalize();
    views[place] = await vegaEmbed(document.getElementById(`chart-${place}`), made, settings);
  }

  // From the top, one after the other, so that the page answers meanwhile; the last call wins.
  let call = 0;
  async function drawAll() {
    const mine = ++call;
    for (let place = 0; place < panels.length && mine === call; place++) {
      await draw(place);
      await new Promise((next) => setTimeout(next));
    }
    if (mine === call) document.body.dataset.drawn = "true";
  }

  document.getElementById("legend").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const method = methods[button.value];
    const shown = !selected.delete(method) && Boolean(selected.add(method));
    button.setAttribute("aria-pressed", shown);
    for (const one of views) one?.view.signal("selected", [...selected]).runAsync();
  });
  document.querySelector(".switches").addEventListener("change", (event) => {
    chosen[event.target.name] = event.target.value;
    drawAll();
  });
  dark.addEventListener("change", drawAll);

  // A column is sorted by its head, what has no number last.
  document.addEventListener("click", (event) => {
    const head = event.target.closest("table.scores thead th");
    if (!head) return;
    const up = head.ariaSort !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.ariaSort = up ? "ascending" : "descending";
    const body = head.closest("table").tBodies[0];
    const key = (row) => row.cells[head.cellIndex].dataset.value;
    const compare = (a, b) => {
      if (head.cellIndex === 0) return a.cells[0].textContent.localeCompare(b.cells[0].textContent) * (up ? 1 : -1);
      if (key(a) === undefined || key(b) === undefined) return (key(a) === undefined) - (key(b) === undefined);
      return (key(a) - key(b)) * (up ? 1 : -1);
    };
    body.append(...[...body.rows].sort(compare));
  });

  // The records that a number leads to are closed until then.
  const open = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (!target || target.tagName !== "DETAILS") return;
    target.open = true;
    target.scrollIntoView({ block: "center" });
  };
  addEventListener("hashchange", open);
  open();

  // On paper what is closed is lost: what the methods found is opened, the records stay in the files.
  addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll(".found details")) one.open = true;
  });

  drawAll();
})();
