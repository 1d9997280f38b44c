"use strict";
// Builds the page from the JSON block. Names become text nodes and attributes, never HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const shared = (number) => data.shared[number];
  const runs = Object.entries(data.runs).map(([id, run]) => ({ id, ...run, ...data.details[id] }));
  const byId = (id) => document.getElementById(id);
  const KEYS = ["segmentor", "dataset", "clip", "protocol", "supervision"];
  const LABELS = { segmentor: "segmentor", dataset: "data set", clip: "CLIP", protocol: "protocol", supervision: "supervision" };
  const AT_FIRST = new Set(["mIoU", "mAcc", "aAcc"]);

  // element("a", {href: "#x"}, "text", node): an attribute that is null or false is left out.
  function element(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("--")) node.style.setProperty(name, value);
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
  const signed = (value) => (value === null || value === undefined ? "–" : (value > 0 ? "+" : "") + value.toFixed(2));
  const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
  const has = (text, wanted) => wanted.every((word) => text.toLowerCase().includes(word));

  // A table that every column can sort. Column: {label, value(row), cell(row), numeric, name, title}; missing values go last.
  function sortable(columns, rows, decorate = () => {}) {
    const body = element("tbody");
    const lines = rows.map((row) => {
      const line = element("tr", {}, ...columns.map((column) =>
        element("td", { class: column.numeric ? "number" : null, "data-column": column.name }, column.cell(row))));
      decorate(line, row);
      body.append(line);
      return { line, row };
    });
    const heads = columns.map((column) => {
      const head = element("th", { scope: "col", class: column.numeric ? "number" : null, title: column.title, "data-column": column.name },
        element("button", { type: "button", onclick: () => sort(column, head) }, column.label));
      return head;
    });
    function sort(column, head) {
      const before = head.getAttribute("aria-sort");
      const up = before ? before === "descending" : !column.numeric;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const missing = (value) => value === null || value === undefined;
      lines.sort((a, b) => {
        const [x, y] = [column.value(a.row), column.value(b.row)];
        if (missing(x) || missing(y)) return missing(x) - missing(y);
        const order = column.numeric ? x - y : x.localeCompare(y, "en", { numeric: true });
        return up ? order : -order;
      });
      body.append(...lines.map(({ line }) => line));
    }
    return {
      node: element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body),
      filter(keep) {
        lines.forEach(({ line, row }) => { line.hidden = !keep(row); });
        return lines.filter(({ line }) => !line.hidden).length;
      },
      show(name, visible) {
        const index = columns.findIndex((column) => column.name === name);
        [heads[index], ...lines.map(({ line }) => line.children[index])].forEach((cell) => { cell.hidden = !visible; });
      },
    };
  }

  // The table of all runs

  const values = Object.fromEntries(KEYS.map((key) => [key, [...new Set(runs.map((run) => run[key]))].sort()]));
  const common = KEYS.filter((key) => values[key].length === 1);

  const top = {};
  for (const name of data.metrics) {
    for (const [dataset, kind] of runs.map((run) => [run.dataset, run.kind])) {
      const found = runs.filter((run) => run.dataset === dataset && run.kind === kind && run.metrics[name] !== null && run.metrics[name] !== undefined);
      if (found.length > 1) top[[name, dataset, kind].join("\n")] = Math.max(...found.map((run) => run.metrics[name]));
    }
  }

  function metricCell(run, name) {
    const value = run.metrics[name];
    const interval = name === "mIoU" && run.interval;
    const text = document.createElement("span");
    text.append(number(value));
    if (interval) text.append(element("br"), element("span", { class: "faint small", title: "95 % interval over images" }, `${number(interval[0])} to ${number(interval[1])}`));
    return text;
  }

  const metric = (name) => ({
    name, label: name, numeric: true, value: (run) => run.metrics[name], cell: (run) => metricCell(run, name),
  });
  const key = (name) => ({
    name, label: LABELS[name], value: (run) => run[name],
    cell: (run) => name === "segmentor"
      ? element("span", {}, element("a", { href: "#run-" + run.id }, run.segmentor), run.marks ? element("span", { class: "mark small" }, " " + run.marks) : null)
      : run[name],
  });
  const columns = [
    ...KEYS.map(key),
    ...data.metrics.slice(0, 1).map(metric),
    { name: "published", label: "published", numeric: true, value: (run) => run.published,
      cell: (run) => element("span", { title: run.published === null ? run.why_not : source(shared(run.figures)[0]) }, number(run.published)) },
    { name: "difference", label: "difference", numeric: true, title: "ours - published, points", value: (run) => run.difference, cell: (run) => signed(run.difference) },
    ...data.metrics.slice(1).map(metric),
    { name: "images", label: "images", numeric: true, value: (run) => run.images, cell: (run) => String(run.images) },
  ];
  const table = sortable(columns, runs, (line, run) => {
    line.dataset.run = run.id;
    line.addEventListener("click", (event) => { if (!event.target.closest("a")) location.hash = "run-" + run.id; });
    for (const cell of line.children) {
      const name = cell.dataset.column;
      if (common.includes(name) && name !== "segmentor") cell.classList.add("common");
      if (run.metrics[name] === top[[name, run.dataset, run.kind].join("\n")] && name in run.metrics) cell.classList.add("best");
    }
  });
  table.node.querySelectorAll("th").forEach((head) => { if (common.includes(head.dataset.column) && head.dataset.column !== "segmentor") head.classList.add("common"); });
  byId("table").append(table.node);
  byId("common").textContent = common.length ? `All: ${common.map((name) => `${LABELS[name]} ${values[name][0]}`).join(", ")}.` : "";

  const selects = KEYS.filter((name) => values[name].length > 1).map((name) => {
    const select = element("select", { name, oninput: filter }, element("option", { value: "" }, "all"),
      ...values[name].map((value) => element("option", { value }, value)));
    byId("filters").append(element("label", {}, LABELS[name] + " ", select));
    return select;
  });
  byId("search").addEventListener("input", filter);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());

  function filter() {
    const wanted = words(byId("search").value);
    const count = table.filter((run) =>
      has([...KEYS.map((name) => run[name]), run.marks].join(" "), wanted) &&
      selects.every((select) => !select.value || run[select.name] === select.value));
    byId("count").textContent = count === runs.length ? `${count} ${count === 1 ? "run" : "runs"}.` : `${count} of ${runs.length} runs.`;
  }

  for (const name of [...data.metrics, "images"]) {
    const box = element("input", { type: "checkbox", name, checked: AT_FIRST.has(name), oninput: () => table.show(name, box.checked) });
    byId("columns").querySelector("div").append(element("label", {}, box, " " + name));
    table.show(name, box.checked);
  }
  data.notes.forEach((note) => byId("notes").append(element("li", {}, note)));
  byId("notes").hidden = !data.notes.length;

  // One run

  function source(figure) {
    return `${figure.method}${figure.variant ? " " + figure.variant : ""}, ${figure.source}, ${figure.table}${figure.second_hand ? " (second-hand)" : ""}`;
  }

  const swatch = (colour) => (colour ? element("span", { class: "swatch", "--colour": colour }) : null);
  const section = (title, ...children) => element("section", {}, element("h3", {}, title), ...children);
  const scroll = (label, node, tall) => element("div", { class: tall ? "scroll tall" : "scroll", tabindex: "0", role: "region", "aria-label": label }, node);
  const lines = (heads, rows) => element("table", { class: "lines small" },
    element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {}, ...rows.map(([first, ...others]) => element("tr", {}, element("th", { scope: "row" }, first), ...others.map((cell) => element("td", {}, cell))))));

  function figures(run) {
    const known = shared(run.figures);
    const why = run.why_not ? element("p", {}, `Published: ${run.why_not}.`) : null;
    if (!known.length) return section("Published", why);
    return section("Published", why, scroll("Published figures", lines(["source", "metric", "published", "ours - published"],
      known.map((figure) => [source(figure), figure.metric, number(figure.miou, 1), signed(figure.difference)]))));
  }

  function classes(run, names, colours) {
    const rows = run.per_class.map(([iou, acc, predicted, target], index) => ({ index, name: names[index], iou, acc, predicted, target }));
    const view = sortable([
      { label: "#", numeric: true, value: (row) => -row.index, cell: (row) => String(row.index) },
      { label: "class", value: (row) => row.name, cell: (row) => element("span", {}, swatch(colours && colours[row.index]), row.name) },
      { label: "IoU", numeric: true, value: (row) => row.iou, cell: (row) => element("div", { class: "bar" }, number(row.iou), row.iou === null ? null : element("i", { "--value": row.iou })) },
      { label: "Acc", numeric: true, value: (row) => row.acc, cell: (row) => number(row.acc), title: "percent of the class's pixels that are predicted correctly" },
      { label: "ground truth", numeric: true, title: "pixels", value: (row) => row.target, cell: (row) => row.target.toLocaleString("en") },
      { label: "predicted", numeric: true, title: "pixels", value: (row) => row.predicted, cell: (row) => row.predicted.toLocaleString("en") },
    ], rows);
    const search = element("input", { type: "search", oninput: () => view.filter((row) => has(row.name, words(search.value))) });
    return section("Classes", element("div", { class: "controls" }, element("label", {}, "Search classes ", search)), scroll("Classes", view.node, true));
  }

  function confused(run, names) {
    const found = run.confusions;
    if (!found) return section("Confusions", element("p", {}, missing(run)));
    if (!found.pairs.length) return section("Confusions", element("p", {}, "No pixel is misclassified."));
    const name = (index) => (index < names.length ? names[index] : "(no class)");
    const title = (t, p, value) => t === p ? `${value.toFixed(1)} % of ${name(t)} is predicted correctly` : `${value.toFixed(1)} % of ${name(t)} is predicted as ${name(p)}`;
    const heat = element("table", { class: "heat" },
      element("thead", {}, element("tr", {}, element("td"), ...found.classes.map((p) => element("th", { scope: "col", title: name(p) }, element("span", {}, name(p)))))),
      element("tbody", {}, ...found.cells.map((row, i) => element("tr", {}, element("th", { scope: "row" }, name(found.classes[i])),
        ...row.map((value, j) => element("td", { class: i === j ? "right" : null, "--value": value, title: title(found.classes[i], found.classes[j], value) }, value < 0.5 ? "" : value.toFixed(0)))))));
    return section("Confusions", element("p", {}, "The confusions that cost the most IoU:"),
      element("ul", {}, ...found.pairs.map(([t, p, value, part]) =>
        element("li", {}, `${title(t, p, value)}, which is ${part.toFixed(1)} % of the pixels predicted as ${name(p)}`))),
      element("p", { class: "faint" }, "Rows: ground truth; columns: prediction; percent of the row's pixels."),
      scroll("Confusion heat map", heat));
  }

  const missing = (run) => run.why_no_counts || "Only the latest runs of a page have confusions and images. Make a page of this run's folder alone to see them.";

  function pictures(run, names, colours) {
    if (!run.pictures) return section("Images", element("p", {}, missing(run)));
    const groups = Object.entries(run.pictures).filter(([, entries]) => entries.length);
    const legend = element("p", { class: "small" }, "Error: ", ...data.errors.flatMap(([text, colour]) => [swatch(colour), text + "; "]),
      "white in the ground truth: ignored; black in the prediction: no class. Percentages: IoU in this image.");
    return section("Images", run.why_no_pictures ? element("p", { class: "note" }, run.why_no_pictures) : legend,
      ...groups.flatMap(([kind, entries]) => [element("h4", {}, kind[0].toUpperCase() + kind.slice(1)),
        element("div", { class: "pictures" }, ...entries.map((entry) => picture(entry, names, colours)))]));
  }

  function picture(entry, names, colours) {
    const title = element("div", {}, element("strong", {}, entry.id), ` mIoU ${number(entry.mIoU)}`);
    if (entry.why_not) title.append(element("p", { class: "note" }, entry.why_not));
    if (entry.input === undefined) return element("div", { class: "picture" }, title);
    const parts = { input: "input", target: "ground truth", prediction: "prediction", error: "error" };
    return element("div", { class: "picture" }, title,
      element("div", { class: "four" }, ...Object.entries(parts).map(([part, name]) => element("figure", {},
        element("img", { src: shared(entry[part]), alt: `${name} of ${entry.id}` }), element("figcaption", {}, name)))),
      element("ul", { class: "classes" }, ...entry.classes.map(([index, iou]) => element("li", {}, swatch(colours[index]), `${names[index]} ${number(iou, 1)} %`))));
  }

  function provenance(run) {
    const alike = runs.filter((other) => other.clip === run.clip && other.dataset === run.dataset);
    const unlike = /^(file|fingerprint|images|timing|peak_memory_mib|provenance\.command)/;
    const rows = run.provenance.map((line) => {
      const [field, value] = shared(line);
      const others = alike.flatMap((other) => other.provenance.filter((each) => shared(each)[0] === field));
      const odd = !unlike.test(field) && 2 * others.filter((each) => each === line).length < others.length;
      const described = element("span", { title: data.fields[field] }, field);
      return [described, element("span", {}, value, odd ? element("span", { class: "mark" }, " differs from most runs with this CLIP on this data set") : null)];
    });
    return element("details", { class: "drawer" }, element("summary", {}, "Provenance"), scroll("Provenance", lines(["field", "value"], rows)));
  }

  function show() {
    const run = runs.find(({ id }) => location.hash === "#run-" + id);
    const panel = byId("run");
    byId("table").querySelectorAll("tr[data-run]").forEach((line) => {
      if (run && line.dataset.run === run.id) line.setAttribute("aria-current", "true");
      else line.removeAttribute("aria-current");
    });
    panel.hidden = !run;
    panel.replaceChildren();
    if (!run) return;
    const names = shared(run.classes);
    const colours = run.colours === undefined ? null : shared(run.colours);
    const title = element("h2", { id: "run-title", tabindex: "-1" }, `${run.segmentor} on ${run.dataset} with ${run.clip}`);
    const metrics = Object.entries(run.metrics).map(([name, value]) => element("div", {}, element("dt", {}, name),
      element("dd", {}, number(value), name === "mIoU" && run.interval ? element("span", { class: "faint small" }, ` (${number(run.interval[0])} to ${number(run.interval[1])})`) : null)));
    panel.append(
      element("div", { class: "head" }, title, element("button", { type: "button", id: "close", onclick: close }, "Close")),
      element("p", {}, `Protocol ${run.protocol}, ${run.images} images. `, run.marks ? element("span", { class: "mark" }, run.marks) : null),
      element("dl", { class: "facts" }, ...metrics),
      figures(run), classes(run, names, colours), confused(run, names), pictures(run, names, colours),
      section("Recipe", scroll("Recipe", lines(["name", "value", "origin"], run.recipe.map((line) => shared(line))))),
      provenance(run),
    );
    title.focus({ preventScroll: true });
    panel.scrollIntoView();
  }

  function close() {
    const link = byId("table").querySelector("tr[aria-current] a");
    location.hash = "results";
    if (link) link.focus();
  }

  addEventListener("hashchange", show);
  addEventListener("keydown", (event) => { if (event.key === "Escape" && !byId("run").hidden) close(); });

  // Theme: the system's until another one is chosen. The choice is remembered if the browser allows storage for files.

  const theme = byId("theme");
  const remembered = (action) => { try { return action(localStorage); } catch { return null; } };
  const chosen = remembered((store) => store.getItem("theme"));
  if ([...theme.options].some((option) => option.value === chosen)) theme.value = chosen;
  const paint = () => { document.documentElement.style.colorScheme = theme.value; };
  theme.addEventListener("input", () => { paint(); remembered((store) => store.setItem("theme", theme.value)); });
  paint();
  filter();
  show();
})();
