"use strict";
(() => {
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const root = document.documentElement;
  const MOST_ROWS = 500;  // of the numbers of a chart that are shown; its CSV has all

  const make = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };
  const button = (text, name, act) => {
    const made = make("button", { type: "button", "aria-label": name }, text);
    made.addEventListener("click", act);
    return made;
  };

  // Files -----------------------------------------------------------------------------------------------------------

  const save = (name, content, type) => {
    const link = make("a", { href: URL.createObjectURL(new Blob([content], { type })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const SUM = /^[-+][\d\s.,%±+\-–()[\]]*(e[-+]?\d+)?( ?[KMGTP]?B)?$/i;  // numbers alone call nothing
  const cell = (value) => {
    let text = value === null || value === undefined ? "" : String(value);
    // a spreadsheet must not take a name for a formula
    if (typeof value !== "number" && /^[=+\-@\t\r\n]/.test(text) && !SUM.test(text)) text = "'" + text;
    return /[",;\t\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  };
  const saveCsv = (name, lines) =>
    save(`${name}.csv`, lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n", "text/csv;charset=utf-8");

  // Light and dark --------------------------------------------------------------------------------------------------

  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const kept = (theme) => {
    try {  // a page from a file may have no storage; then it remembers until it is loaded again
      if (theme) sessionStorage.setItem("fedquilt-theme", theme);
      return sessionStorage.getItem("fedquilt-theme");
    } catch { return null; }
  };
  const toggle = document.querySelector("button.theme");
  const showTheme = () => {
    toggle.textContent = isDark() ? "\u2600 Light" : "\u263e Dark";
    toggle.setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`);
  };
  if (kept()) root.dataset.theme = kept();
  toggle.hidden = false;
  showTheme();
  const changed = () => { showTheme(); drawn.forEach((view, box) => draw(box)); };
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    kept(root.dataset.theme);
  });
  new MutationObserver(changed).observe(root, { attributeFilter: ["data-theme"] });
  system.addEventListener("change", () => { if (!root.dataset.theme) changed(); });

  // Charts ----------------------------------------------------------------------------------------------------------

  // Okabe and Ito's palette, without the colour that cannot be seen on the ground
  const LIGHT = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9"];
  const DARK = ["#56B4E9", "#E69F00", "#2BC59A", "#E3A0C8", "#F2F2F2", "#F0E442", "#FF8A3D"];
  const DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 3], [4, 1, 1, 1]];
  const looks = (narrow) => {
    const dark = isDark(), ink = dark ? "#e8ecf0" : "#1b2026", faint = dark ? "#a3aebb" : "#55606c";
    const line = dark ? "#2c343d" : "#e3e7ec", palette = dark ? DARK : LIGHT;
    return {
      background: null, font: "system-ui, sans-serif",
      view: { stroke: null }, range: { category: palette, symbol: ["circle"] },
      mark: { color: palette[0] }, bar: { color: palette[0] }, circle: { color: palette[0] }, line: { strokeWidth: 1.8 },
      axis: { labelColor: faint, titleColor: faint, domainColor: line, tickColor: line, gridColor: line,
        labelLimit: narrow ? 90 : 160, titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 12 },
      axisXQuantitative: { tickCount: narrow ? 5 : 8 },
      legend: { labelColor: ink, titleColor: faint, titleFontWeight: "normal", orient: "bottom", direction: "horizontal",
        columns: narrow ? 1 : 3, labelLimit: narrow ? 260 : 220, symbolSize: 140, symbolStrokeWidth: 2.2,
        gradientLength: 160, gradientThickness: 10 },
    };
  };
  const objects = (chart, only) => {
    const rows = only === undefined ? chart.rows : chart.rows.filter((row) => String(row[0]) === only);
    return rows.map((row) => Object.fromEntries(chart.fields.map((field, at) => [field, row[at]])));
  };
  // a method has one look in all charts, also where others have no line
  const withOneLook = (spec, chart, rows) => {
    if (chart.heads[chart.fields.indexOf("series")] !== "method") return;
    const there = [...new Set(rows.map((row) => row.series))], domain = [...new Set([...data.methods, ...there])];
    for (const { encoding } of spec.layer ?? [spec]) {
      for (const name of ["color", "strokeDash", "fill"].filter((one) => encoding[one])) {
        const channel = encoding[name];
        // bands have no legend: with the same domain, Vega-Lite would make one of theirs and that of the lines
        channel.scale = { domain: name === "fill" ? [...domain, ""] : domain };
        if (channel.legend) channel.legend = { ...channel.legend, values: there };
      }
    }
  };
  const drawn = new Map();
  const turns = new Map();
  const chartOf = (box) => data.charts[box.dataset.chart ?? box.closest("figure").dataset.chart];
  const draw = async (box) => {
    const chart = chartOf(box), turn = (turns.get(box) ?? 0) + 1;
    turns.set(box, turn);
    try {
      const spec = structuredClone(data.specs[chart.spec]);
      const rows = objects(chart, box.dataset.only);
      spec.datasets = { rows };
      withOneLook(spec, chart, rows);
      const config = looks(box.clientWidth < 560);
      config.range.dash = DASHES;
      const place = make("div");
      place.style.width = "100%";
      box.replaceChildren(place);
      const result = await vegaEmbed(place, spec, {
        ast: true, renderer: "svg", actions: false, defaultStyle: false, config,
        tooltip: { disableDefaultStyle: true, theme: "page" },
      });
      if (turns.get(box) !== turn) { result.finalize(); return; }
      drawn.get(box)?.finalize();
      drawn.set(box, result);
      box.dataset.drawn = "yes";
    } catch (error) {
      box.classList.add("failed");
      box.textContent = `This chart could not be drawn: ${error.message}`;
      console.error(error);
    }
  };
  const boxes = [...document.querySelectorAll(".drawing")];
  const watcher = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) { watcher.unobserve(target); draw(target); }
    }
  }, { rootMargin: "400px" });
  boxes.forEach((box) => watcher.observe(box));
  addEventListener("beforeprint", () => boxes.filter((box) => !drawn.has(box) && !box.closest("[hidden]")).forEach(draw));

  const lines = (chart) => [chart.heads, ...chart.rows];
  for (const figure of document.querySelectorAll("figure.chart")) {
    const name = figure.dataset.chart, chart = data.charts[name], box = figure.querySelector(".drawing");
    const picture = async (type) => {
      if (!drawn.has(box)) await draw(box);
      const address = await drawn.get(box).view.toImageURL(type, 2);
      make("a", { href: address, download: `${name}.${type}` }).click();
    };
    const details = figure.querySelector("details.numbers");
    details.before(make("div", { class: "tools" },
      button("CSV", `Save the numbers of ${chart.title} as CSV`, () => saveCsv(name, lines(chart))),
      button("SVG", `Save the picture of ${chart.title} as SVG`, () => picture("svg")),
      button("PNG", `Save the picture of ${chart.title} as PNG`, () => picture("png"))));
    details.addEventListener("toggle", () => {
      if (details.querySelector("table")) return;
      const head = make("tr", {}, ...chart.heads.map((text) => make("th", { scope: "col" }, text)));
      const body = chart.rows.slice(0, MOST_ROWS).map((row) =>
        make("tr", {}, ...row.map((value, at) => make(at ? "td" : "th", at ? {} : { scope: "row" }, value ?? "-"))));
      const table = make("table", {}, make("caption", {}, make("span", {}, chart.title)), make("thead", {}, head), make("tbody", {}, ...body));
      details.append(make("div", { class: "wide", role: "region", "aria-label": `Numbers of ${chart.title}`, tabindex: "0" }, table));
      if (chart.rows.length > MOST_ROWS) {
        details.append(make("p", { class: "note" }, `The first ${MOST_ROWS} of ${chart.rows.length} rows; the CSV has all.`));
      }
      sortable(table);
    });
  }
  for (const place of document.querySelectorAll(".tools[data-shared]")) {
    const name = place.dataset.shared, chart = data.charts[name];
    place.append(button("CSV", `Save ${chart.title} as CSV`, () => saveCsv(name, lines(chart))));
  }

  // Tables ----------------------------------------------------------------------------------------------------------

  const UNITS = { B: 1, KB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, PB: 1e15 };
  const number = (text) => {
    const found = /^([-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?)\s*([KMGTP]?B)?(?:\s|%|$)/i.exec(text);
    return found ? Number(found[1].replaceAll(",", "")) * (UNITS[found[2]] ?? 1) : text === "inf" ? Infinity : NaN;
  };
  const compared = (one, other) => {
    const [left, right] = [number(one), number(other)];
    if (!Number.isNaN(left) && !Number.isNaN(right)) return left - right || one.localeCompare(other);
    if (Number.isNaN(left) !== Number.isNaN(right)) return Number.isNaN(left) ? 1 : -1;
    return one.localeCompare(other, undefined, { numeric: true });
  };
  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, at) => {
      const texts = [...body.rows].slice(0, 50).map((row) => row.cells[at].textContent);
      if (at && texts.some((text) => text !== "-" && Number.isNaN(number(text)))) {
        [head, ...[...body.rows].map((row) => row.cells[at])].forEach((one) => one.classList.add("text"));
      }
      const text = head.textContent;
      head.replaceChildren(make("button", { type: "button", class: "sort" }, text));
      head.setAttribute("aria-sort", "none");
      head.firstChild.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((one) => one.setAttribute("aria-sort", one === head ? (down ? "descending" : "ascending") : "none"));
        const missing = (row) => row.cells[at].textContent === "-";
        const order = [...body.rows].sort((one, other) =>
          missing(one) - missing(other) ||  // what is not there stands last, whichever way
          (down ? -1 : 1) * compared(one.cells[at].textContent, other.cells[at].textContent));
        body.append(...order);
      });
    });
  }
  document.querySelectorAll("main table").forEach((table, at) => {
    sortable(table);
    const title = table.caption?.textContent ?? `table ${at + 1}`;
    const name = title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
    const texts = () => [...table.rows].map((row) => [...row.cells].map((one) => one.textContent));
    table.closest(".wide").after(make("div", { class: "tools" },
      button("CSV", `Save the table ${title} as CSV`, () => saveCsv(name, texts()))));
  });

  // Clients ---------------------------------------------------------------------------------------------------------

  const filter = document.querySelector("form.filter");
  if (filter) {
    const deck = document.querySelector(".cards"), cards = [...deck.children];
    const up = deck.dataset.lower ? -1 : 1;
    const score = (card, order) => {
      if (order === "id") return Number(card.dataset.id);
      if (card.dataset.score === "") return Infinity;
      return Number(card.dataset.score) * (order === "worst" ? up : -up);
    };
    const show = () => {
      const { words, seed, group, order } = Object.fromEntries(new FormData(filter));
      const wanted = words.trim().toLowerCase();
      const own = cards.filter((card) => !seed || card.dataset.seed === seed);
      for (const card of cards) {
        card.hidden = !own.includes(card) || !card.dataset.words.includes(wanted) || !!group && card.dataset.group !== group;
      }
      deck.append(...[...cards].sort((one, other) => score(one, order) - score(other, order)));
      filter.querySelector("output").textContent = `${own.filter((card) => !card.hidden).length} of ${own.length} shown`;
    };
    filter.addEventListener("input", show);
    if (filter.querySelector("[name=seed]")) show();  // of one seed at a time
    filter.addEventListener("submit", (event) => event.preventDefault());
  }

  // Texts and sections ----------------------------------------------------------------------------------------------

  for (const details of document.querySelectorAll("details[data-file]")) {
    const name = details.dataset.file;
    const text = details.querySelector("pre").textContent;
    details.querySelector("summary").after(make("div", { class: "tools" },
      button("Save", `Save ${name}`, () => save(name, text, "text/plain;charset=utf-8"))));
  }
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const reader = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) {
        links.forEach((link) => link.removeAttribute("aria-current"));
        links.get(target.id)?.setAttribute("aria-current", "true");
      }
    }
  }, { rootMargin: "-25% 0px -65% 0px" });
  document.querySelectorAll("main section").forEach((section) => reader.observe(section));
})();
