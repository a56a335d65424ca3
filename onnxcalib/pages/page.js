"use strict";
const found = JSON.parse(document.getElementById("data").textContent);
const drawn = new Map(); // element -> what is drawn in it

// Plots: colours are those of the style sheet, for light and dark pages and for paper.
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const fill = (value) => {
  if (typeof value === "string") return value.startsWith("--") ? colour(value) : value;
  if (Array.isArray(value)) return value.map(fill);
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, fill(v)]));
  return value;
};
const config = () => {
  const [text, quiet, line] = ["--text", "--quiet", "--line"].map(colour);
  const font = getComputedStyle(document.body).fontFamily;
  const labels = { labelFont: font, titleFont: font, labelColor: quiet, titleColor: quiet, titleFontWeight: "normal", labelFontSize: 12, titleFontSize: 12 };
  return {
    background: null, font, view: { stroke: null },
    axis: { ...labels, gridColor: line, domainColor: line, tickColor: line, gridOpacity: 0.7, titlePadding: 8 },
    axisX: { grid: false }, legend: { ...labels, labelColor: text, symbolType: "circle", symbolOpacity: 1, offset: 4 }, text: { color: text, font },
    mark: { color: colour("--one") }, title: { color: text, font, fontWeight: "normal", anchor: "start", fontSize: 13 },
  };
};
async function draw(element) {
  const { spec, rows } = found.charts[element.dataset.chart];
  drawn.get(element)?.finalize();
  drawn.set(element, null);
  const whole = { width: "container", autosize: { type: "fit", contains: "padding" }, ...fill(found.specs[spec]), data: { values: rows } };
  const result = await window.vegaEmbed(element, whole, { actions: false, renderer: "svg", config: config(), defaultStyle: false });
  element.querySelector("svg")?.setAttribute("aria-hidden", "true");
  drawn.set(element, result);
}
// One after the other once the page stands, all of them: what is printed was not scrolled to.
const later = window.requestIdleCallback ?? setTimeout;
later(async () => { for (const element of document.querySelectorAll("figure > .chart")) await draw(element); });
const again = () => { for (const element of drawn.keys()) draw(element); };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
matchMedia("print").addEventListener("change", again);

// Tables: sorted by a click on a header, filtered by text and by choices, rows opened for their plots.
function setUp(table) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const filters = document.getElementById(`${table.id}-filters`);
  const find = filters.querySelector("input"), choices = [...filters.querySelectorAll("select")];
  const count = filters.querySelector("output");
  const close = (row) => {
    if (!row.opened) return;
    for (const chart of row.opened.querySelectorAll(".chart")) { drawn.get(chart)?.finalize(); drawn.delete(chart); }
    row.opened.remove();
    row.opened = null;
    row.querySelector("button.open").setAttribute("aria-expanded", "false");
  };
  const open = (row) => {
    row.opened = document.createElement("tr");
    const cell = row.opened.insertCell(), plots = cell.appendChild(document.createElement("div"));
    cell.colSpan = heads.length;
    plots.className = "plots";
    row.after(row.opened);
    row.querySelector("button.open").setAttribute("aria-expanded", "true");
    for (const key of row.dataset.plots.split(" ")) {
      const figure = plots.appendChild(document.createElement("figure"));
      const caption = figure.appendChild(document.createElement("figcaption"));
      const chart = figure.appendChild(document.createElement("div"));
      caption.textContent = found.charts[key].text;
      Object.assign(chart, { className: "chart", role: "img", ariaLabel: found.charts[key].text });
      chart.dataset.chart = key;
      draw(chart);
    }
  };
  const filter = () => {
    const wanted = find.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = row.textContent.toLowerCase().includes(wanted)
        && choices.every((each) => !each.value || row.cells[each.dataset.column].textContent === each.value);
      row.hidden = !fits;
      if (!fits) close(row);
      shown += fits;
    }
    count.textContent = shown === rows.length ? "" : `${shown} of ${rows.length}`;
  };
  const value = (row, place, number) => {
    const cell = row.cells[place];
    if (!number) return cell.textContent;
    const text = cell.dataset.sort ?? cell.textContent.replace(/[^-0-9.e]/g, "");
    return text === "" || isNaN(text) ? null : Number(text);
  };
  const sort = (place) => {
    const head = heads[place], number = head.classList.contains("number");
    const way = head.ariaSort === "ascending" ? -1 : 1;
    for (const each of heads) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
    const keys = new Map(rows.map((row) => [row, value(row, place, number)]));
    rows.sort((a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)];
      if (x === null || y === null) return (x === null) - (y === null); // what is not known comes last
      return way * (number ? x - y : x.localeCompare(y, "en", { numeric: true }));
    });
    for (const row of rows) { body.append(row); if (row.opened) row.after(row.opened); }
  };
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(place));
    head.replaceChildren(button);
  });
  for (const row of rows) {
    if (!row.dataset.plots) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "open";
    button.textContent = row.cells[0].textContent;
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => (row.opened ? close(row) : open(row)));
    row.cells[0].replaceChildren(button);
  }
  for (const each of [find, ...choices]) each.addEventListener("input", filter);
  filters.hidden = false;
}
for (const table of document.querySelectorAll("table.searched")) setUp(table);

// Text to copy.
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch { // pages of files may not reach the clipboard: the text is selected in its place
      getSelection().selectAllChildren(source);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
