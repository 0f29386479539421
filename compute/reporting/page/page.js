"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("report-data").textContent);
  const figures = JSON.parse(byId("report-figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 700px)");
  const order = decode(data.order, Int32Array);

  function decode(text, Type) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Type(bytes.buffer);
  }
  function element(tag, text, kind) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }
  function figure(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size < 1e-3 || size >= 1e5 ? value.toExponential(2) : String(Number(value.toPrecision(3)));
  }

  // -- matrices: what a cell stands for, and its colours ----------------------------------------------

  let chosen = byId("matrix").value;

  function value(matrix, code) {
    if (code === 0) return 0;
    const share = (code - matrix.first) / (matrix.last - matrix.first);
    if (!matrix.logarithmic) return matrix.low + share * (matrix.high - matrix.low);
    return matrix.low * (matrix.high / matrix.low) ** share;
  }
  // What the figures call.
  window.bankReport = {
    choose: (key) => choose(key),
    // By place in the matrices' order.
    name: (place) => data.names[order[Math.floor(place)]] ?? "",
    label: (place) => data.labels[order[Math.floor(place)]] ?? "",
    cell(key, code) {
      const matrix = data.matrices[key === "focus" ? chosen : key];
      if (code === 0) return matrix.logarithmic ? "0" : "–";
      return (matrix.cut && code === matrix.first ? "at most " : "") + figure(value(matrix, code));
    },
  };
  const coefficients = Object.values(data.matrices).filter((matrix) => matrix.logarithmic);
  const scale = {
    low: Math.min(...coefficients.map((matrix) => matrix.low)),
    high: Math.max(...coefficients.map((matrix) => matrix.high)),
  };
  // One in a hundred of an equal share is as good as nothing; below it the scale has no use for colours.
  scale.low = Math.max(scale.low, Math.min(0.01 / data.names.length, scale.high / 2));

  function limits(matrix) {
    return byId("one-scale").checked && matrix.logarithmic ? scale : matrix;
  }
  function palette(matrix) {
    const base = matrix.logarithmic ? data.palette : [...data.palette].reverse();
    const last = base.length - 1;
    const { low, high } = limits(matrix);
    const colours = base.map((colour, index) => {
      if (!matrix.logarithmic || low === matrix.low && high === matrix.high) return colour;
      const own = matrix.low * (matrix.high / matrix.low) ** (index / last);
      const share = Math.log(own / low) / Math.log(high / low);
      return base[Math.round(last * Math.min(1, Math.max(0, share)))];
    });
    return ["#00000000", ...colours];
  }
  function legend() {
    const matrix = data.matrices[chosen];
    const { low, high } = limits(matrix);
    const base = matrix.logarithmic ? data.palette : [...data.palette].reverse();
    const stops = base.filter((_, index) => index % 15 === 0 || index === base.length - 1);
    byId("legend-bar").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    byId("legend-low").textContent = (matrix.cut && low === matrix.low ? "at most " : "") + figure(low);
    byId("legend-high").textContent = figure(high);
    byId("legend-title").textContent = matrix.words + (matrix.logarithmic ? " (logarithmic colours)" : "");
  }

  // -- figures ----------------------------------------------------------------------------------------

  const buttons = document.querySelectorAll("button[data-matrix]");
  let plots; // the document of all Bokeh models
  const named = (name) => plots.get_model_by_name(name);

  function recolour() {
    for (const [key, matrix] of Object.entries(data.matrices)) named(`colours:${key}`).palette = palette(matrix);
    named("colours:focus").palette = palette(data.matrices[chosen]);
    legend();
  }
  function choose(key) {
    chosen = key;
    byId("matrix").value = key;
    const source = named(`matrix:${key}`).data;
    named("colours:focus").palette = palette(data.matrices[key]);
    named("focus").data = { image: source.get ? source.get("image") : source.image };
    for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.matrix === key);
    legend();
  }
  function unzoom() {
    const number = data.names.length;
    named("matrix_x").setv({ start: 0, end: number });
    named("matrix_y").setv({ start: number, end: 0 });
  }
  function theme(isDark) {
    const ink = isDark ? "#e6e9ed" : "#1c2127";
    const faint = isDark ? "#363d46" : "#d8dde3";
    const frame = isDark ? "#ffffff" : "#ff5a36";
    for (const model of plots.all_models ?? plots._all_models.values()) {
      if (model.type === "Figure") {
        const matrix = model.tags.includes("matrix");
        model.setv({
          background_fill_color: matrix ? (isDark ? "#2b3037" : "#e3e6ea") : null,
          border_fill_color: null, outline_line_color: faint,
        });
      } else if (/Axis$/.test(model.type)) {
        model.setv({
          axis_label_text_color: ink, major_label_text_color: ink, axis_line_color: faint, major_tick_line_color:
            model.major_tick_line_color === null ? null : faint, minor_tick_line_color: null,
        });
      } else if (model.type === "Grid") {
        model.setv({ grid_line_color: faint });
      } else if (model.type === "Legend") {
        model.setv({ label_text_color: ink });
      } else if (model.type === "Span") {
        model.setv({ line_color: ink });
      } else if (model.type === "Label") {
        model.setv({ text_color: ink });
      } else if (model.type === "GlyphRenderer" && (model.name ?? "").startsWith("frames:")) {
        model.glyph.setv({ line_color: frame });
      }
    }
  }
  function fit() {
    for (const axis of [...named("plot:focus").below, ...named("plot:focus").left]) axis.visible = !narrow.matches;
  }

  // -- the table of adapters --------------------------------------------------------------------------

  function sortable(table) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = element("button", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const numeric = head.classList.contains("number");
        const text = (row) => row.cells[column].textContent;
        const number = (row) => Number(text(row).replaceAll(",", "")) || 0;
        const compare = numeric ? (a, b) => number(a) - number(b)
          : (a, b) => text(a).localeCompare(text(b), "en", { numeric: true });
        const rows = [...body.rows].sort(compare);
        body.replaceChildren(...(up ? rows : rows.reverse()));
      });
    });
  }
  function filter() {
    const rows = [...byId("adapters").querySelectorAll("tbody tr")];
    const wanted = byId("filter").value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    byId("filter-count").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  }

  // -- one target -------------------------------------------------------------------------------------

  const unpacked = data.ways.map((way) => ({
    sources: decode(way.sources, Int32Array), weights: decode(way.weights, Float32Array),
    effective: decode(way.effective, Float32Array),
  }));

  function rowOf(cells, numeric) {
    const row = element("tr");
    cells.forEach((text, index) => {
      const cell = element(index ? "td" : "th", text, numeric.includes(index) ? "number" : undefined);
      if (!index) cell.scope = "row";
      row.append(cell);
    });
    return row;
  }
  function showTarget() {
    const target = Number(byId("target").value);
    const way = Number(byId("way").value);
    const { sources, weights, effective } = unpacked[way];
    const top = data.top;
    const rows = [];
    for (let place = target * top; place < (target + 1) * top; place++) {
      if (weights[place] > 0) rows.push([sources[place], weights[place]]);
    }
    const name = data.names[target];
    byId("target-name").textContent = name;
    const covered = rows.reduce((sum, [, weight]) => sum + weight, 0);
    byId("target-facts").textContent =
      `Group ${data.groups[target]}. ${data.ways[way].words}: effective number of sources ` +
      `${figure(effective[target])} of ${data.names.length - 1}. The ${rows.length} largest below make up ` +
      `${(100 * covered).toFixed(0)}% of the prediction.`;
    byId("sources").tBodies[0].replaceChildren(...rows.map(([source, weight]) =>
      rowOf([data.names[source], data.groups[source], figure(weight)], [2])));
    bars(rows);
    if (byId("scores")) showScores(target);
  }
  function bars(rows) {
    const label = (index) => data.labels[index];
    named("bar_names").factors = rows.map(([source]) => label(source)).reverse();
    named("bars").data = {
      source: rows.map(([source]) => label(source)), weight: rows.map(([, weight]) => weight),
      group: rows.map(([source]) => data.groups[source]), name: rows.map(([source]) => data.names[source]),
    };
  }
  function showScores(target) {
    const cell = (score) => (score === null ? "–" : score.toFixed(3));
    byId("scores").tBodies[0].replaceChildren(...(data.scores[target] ?? []).map(([system, scores]) =>
      rowOf([system, ...scores.map(cell)], scores.map((_, index) => index + 1))));
    byId("samples").replaceChildren(...(data.samples[target] ?? []).map(sample));
  }
  function sample({ prompt, reference, answers }) {
    const made = element("article", undefined, "sample");
    made.append(element("div", "Prompt", "lead"), element("pre", prompt), element("div", "Reference", "lead"),
      element("pre", reference), element("div", "Answers, each with the systems that gave it", "lead"));
    const list = element("dl");
    for (const [text, right, systems] of answers) {
      const who = element("dd");
      who.append(...systems.map((line) => element("div", line)));
      list.append(element("dt", text || "(empty)", right ? "right" : undefined), who);
    }
    made.append(list);
    return made;
  }
  function step(by) {
    const select = byId("target");
    const number = select.options.length;
    select.selectedIndex = (select.selectedIndex + by + number) % number;
    showTarget();
  }

  // -- start ------------------------------------------------------------------------------------------

  async function start() {
    document.querySelectorAll("table[data-sortable]").forEach(sortable);
    byId("filter").addEventListener("input", filter);
    await Bokeh.embed.embed_items({ report: figures.document },
      [{ docid: "report", roots: figures.roots, root_ids: Object.keys(figures.roots) }]);
    plots = Bokeh.documents[Bokeh.documents.length - 1];
    theme(dark.matches);
    fit();
    recolour();
    choose(chosen);
    showTarget();
    dark.addEventListener("change", () => theme(dark.matches));
    narrow.addEventListener("change", fit);
    window.addEventListener("beforeprint", () => theme(false));
    window.addEventListener("afterprint", () => theme(dark.matches));
    byId("one-scale").addEventListener("change", recolour);
    byId("matrix").addEventListener("change", (event) => choose(event.target.value));
    byId("unzoom").addEventListener("click", unzoom);
    for (const button of buttons) button.addEventListener("click", () => choose(button.dataset.matrix));
    byId("target").addEventListener("change", showTarget);
    byId("way").addEventListener("change", showTarget);
    byId("previous").addEventListener("click", () => step(-1));
    byId("next").addEventListener("click", () => step(1));
    document.documentElement.dataset.ready = "yes";
  }
  start();
})();
