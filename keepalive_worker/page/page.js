"use strict";
(() => {
  // Shows a report, fetches the next one from the page's own address, and draws what changed in between.
  // Nothing of a report is ever parsed as HTML: elements are made here and filled with text.

  /** Milliseconds between refreshes, and the longest wait while the server is away. */
  const REFRESH = 2000;
  const LONGEST_WAIT = 30000;
  /** Milliseconds from the first figures, or from those after a gap, to the next: soon there is a rate. */
  const FIRST_REFRESH = 1000;
  /** Milliseconds after which an answer is given up. */
  const PATIENCE = 10000;
  /** The page leaves the server alone for this many times as long as its answer took. */
  const REST = 10;
  /** Milliseconds that the sparklines show: at first, and at most. */
  const FIRST_WINDOW = 60000;
  const WINDOW = 180000;
  /** Milliseconds over which a rate is taken: a worker's figures reach the others only every so often. */
  const RATE_SPAN = 3900;
  /** Most rows in the table, as in __init__.py. */
  const MOST_ROWS = 1000;
  /** Seconds after which a worker should have reported again. */
  const STALE = 2;

  const NONE = "–";
  const UNNAMED = "unix socket";

  // --- numbers as people read them: figures.py in JavaScript ------------------------------------------------

  const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const TENTHS = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  const UNITS = ["B", "kB", "MB", "GB", "TB"];
  const isNumber = (value) => typeof value === "number";
  const two = (number) => String(number).padStart(2, "0");

  const count = (number) => (isNumber(number) ? WHOLE.format(number) : NONE);
  const decimal = (number) => (isNumber(number) ? TENTHS.format(Math.floor(number * 10 + 0.5) / 10) : NONE);
  const ratio = (part) => (isNumber(part) ? `${decimal(part * 100)} %` : NONE);

  function size(octets) {
    if (!isNumber(octets)) return NONE;
    if (octets < 1000) return `${Math.round(octets)} B`;
    let power = 1;
    while (octets / 1000 ** power >= 999.95 && power < UNITS.length - 1) power += 1;
    return `${decimal(octets / 1000 ** power)} ${UNITS[power]}`;
  }

  function duration(seconds) {
    if (!isNumber(seconds)) return NONE;
    const tenths = Math.max(0, Math.floor(seconds * 10 + 0.5));
    if (tenths < 600) return `${(tenths / 10).toFixed(1)} s`;
    const whole = Math.floor(seconds + 0.5);
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
    const minutes = Math.floor(seconds / 60 + 0.5);
    if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
    const hours = Math.floor(seconds / 3600 + 0.5);
    return `${Math.floor(hours / 24)} d ${two(hours % 24)} h`;
  }

  function bound(limit, unit) {
    if (unit === "requests") return count(limit);
    const short = (number) => String(Number(number.toPrecision(6)));
    if (limit < 1) return `${short(limit * 1000)} ms`;
    if (limit < 60) return `${short(limit)} s`;
    if (limit < 3600) return `${short(limit / 60)} min`;
    return `${short(limit / 3600)} h`;
  }

  /** A number for an axis, where there is no room: ``1.2k``. */
  const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
  /** A number of things per second: tenths where they matter. */
  const rate = (number) => (isNumber(number) && number >= 100 ? count(number) : decimal(number));
  const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

  // --- elements ---------------------------------------------------------------------------------------------

  const at = (id) => document.getElementById(id);

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  const html = (name, attributes = {}, ...children) =>
    fill(document.createElement(name), attributes, children);
  const svg = (name, attributes = {}, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

  /** Set a text only where it differs: what stays the same keeps the reader's selection. */
  function write(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  /** Tell a screen reader; for what has happened, not for figures. */
  function announce(text) {
    write(at("announcement"), text);
  }

  /** Put *elements* into *parent* in this order, moving only those that are elsewhere. */
  function arrange(parent, elements) {
    elements.forEach((element, index) => {
      if (parent.children[index] !== element) parent.insertBefore(element, parent.children[index] ?? null);
    });
    while (parent.children.length > elements.length) parent.lastElementChild.remove();
  }

  // --- what happened between two reports ---------------------------------------------------------------------

  let report = null;
  /** Reports of the last WINDOW milliseconds, oldest first; *gap*: nobody looked just before. */
  let samples = [];
  let counterReset = null;

  const totalsOf = (one) => one.totals ?? {};
  const RISING = ["connections_accepted", "requests", "requests_reused", "bytes_received", "bytes_sent"];

  function remember(next, gap) {
    const totals = totalsOf(next);
    const last = samples.at(-1);
    if (last && RISING.some((name) => totals[name] < last.totals[name])) {
      // Totals never go backwards while a server lives: this is another one, and its past is not ours.
      samples = [];
      counterReset = new Date();
      announce("The server was restarted; its counters began again.");
    }
    const workers = new Map((next.workers ?? []).map((worker) => [worker.pid, worker.requests]));
    const now = performance.now();
    samples.push({ time: now, totals, workers, gap });
    while (samples[0].time < now - WINDOW) samples.shift();
  }

  /** The sample that a rate at *index* is measured from, or null: the nearest that is old enough. */
  function earlier(index) {
    let best = null;
    for (let i = index; i > 0 && !samples[i].gap; i -= 1) {
      best = samples[i - 1];
      if (samples[index].time - best.time >= RATE_SPAN) break;
    }
    return best;
  }

  /** How much *measure* grew per second up to the sample at *index*; null where that cannot be said. */
  function growth(index, measure) {
    const from = earlier(index);
    if (!from) return null;
    const difference = measure(samples[index]) - measure(from);
    return difference >= 0 ? (1000 * difference) / (samples[index].time - from.time) : null;
  }

  function recentReuse(index) {
    const requests = growth(index, (sample) => sample.totals.requests);
    return requests ? growth(index, (sample) => sample.totals.requests_reused) / requests : null;
  }

  // --- key figures -------------------------------------------------------------------------------------------

  function tile(name, value, note) {
    const [, valueElement, noteElement] = at(`tile-${name}`).children;
    write(valueElement, value);
    write(noteElement, note);
  }

  /** Draw a line of *measure* over the time that is remembered; *top* fixes the upper end of its scale. */
  function sparkline(name, measure, top) {
    const box = at(`tile-${name}`).lastElementChild;
    const width = Math.max(40, box.clientWidth);
    const height = 28;
    const values = samples.map((_, index) => measure(index));
    const scale = top ?? Math.max(1, ...values.filter(isNumber));
    const now = samples.at(-1).time;
    const span = Math.max(FIRST_WINDOW, now - samples[0].time);
    const runs = [];
    let run = null;
    values.forEach((value, index) => {
      if (!isNumber(value)) {
        run = null;
        return;
      }
      if (!run || samples[index].gap) runs.push((run = []));
      const x = width - 2 - ((now - samples[index].time) / span) * (width - 4);
      run.push(`${x.toFixed(1)},${(height - 1.5 - (value / scale) * (height - 4)).toFixed(1)}`);
    });
    const drawing = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, focusable: "false" });
    drawing.append(svg("line", { class: "base", x1: 0, x2: width, y1: height - 0.5, y2: height - 0.5 }));
    for (const points of runs) {
      const [first] = points[0].split(",");
      const [end] = points.at(-1).split(",");
      const area = `${first},${height - 0.5} ${points.join(" ")} ${end},${height - 0.5}`;
      drawing.append(svg("polygon", { class: "area", points: area }));
      drawing.append(svg("polyline", { class: "line", points: points.join(" ") }));
    }
    if (isNumber(values.at(-1))) {
      const [x, y] = runs.at(-1).at(-1).split(",");
      drawing.append(svg("circle", { class: "now", cx: x, cy: y, r: 2 }));
    }
    box.replaceChildren(drawing);
  }

  function showFigures() {
    const totals = totalsOf(report);
    const open = totals.connections_open ?? 0;
    const idle = totals.connections_idle ?? 0;
    const active = totals.connections_active ?? 0;
    const requests = totals.requests ?? 0;
    const now = samples.length - 1;
    const perSecond = (name) => (index) => growth(index, (sample) => sample.totals[name]);
    const sent = perSecond("bytes_sent")(now);
    const received = perSecond("bytes_received")(now);
    const reuse = recentReuse(now);
    const rateOfBytes = (number) => (isNumber(number) ? `${size(number)}/s` : NONE);

    tile("open", count(open), `${count(totals.connections_accepted ?? 0)} accepted`);
    tile("idle", count(idle), `${ratio(open ? idle / open : null)} of open`);
    tile("active", count(active), `${ratio(open ? active / open : null)} of open`);
    tile("rate", rate(perSecond("requests")(now)), `${count(requests)} requests`);
    tile(
      "reuse",
      ratio(requests ? totals.reuse_ratio : null),
      isNumber(reuse) ? `${ratio(reuse)} just now` : `${count(totals.requests_reused ?? 0)} reused`,
    );
    tile(
      "sent",
      rateOfBytes(sent),
      isNumber(received)
        ? `received ${rateOfBytes(received)}`
        : `${size(totals.bytes_sent ?? 0)}, received ${size(totals.bytes_received ?? 0)}`,
    );

    const gauge = (name) => (index) => samples[index].totals[name] ?? null;
    const mostOpen = Math.max(1, ...samples.map((sample) => sample.totals.connections_open ?? 0));
    sparkline("open", gauge("connections_open"), mostOpen);
    sparkline("idle", gauge("connections_idle"), mostOpen);
    sparkline("active", gauge("connections_active"), mostOpen);
    sparkline("rate", perSecond("requests"));
    sparkline("reuse", recentReuse, 1);
    sparkline("sent", perSecond("bytes_sent"));
  }

  // --- reasons and histograms --------------------------------------------------------------------------------

  function showClosed() {
    const closed = totalsOf(report).closed ?? {};
    const body = at("closed");
    const rows = new Map([...body.rows].map((row) => [row.dataset.reason, row]));
    const total = Object.values(closed).reduce((sum, number) => sum + number, 0);
    const most = Math.max(0, ...Object.values(closed));
    for (const reason of Object.keys(closed)) {
      if (rows.has(reason)) continue;
      const bar = svg("svg", { class: "bar", "aria-hidden": "true" }, svg("rect", { height: "100%" }));
      const row = html("tr", { "data-reason": reason, "data-notable": "" });
      row.append(html("th", { scope: "row" }, reason), html("td", {}, bar, html("span")), html("td"));
      rows.set(reason, row);
    }
    for (const [reason, row] of rows) {
      const number = closed[reason] ?? 0;
      row.hidden = !number;
      const share = number ? Math.max(1, (100 * number) / most) : 0;
      row.querySelector("rect").setAttribute("width", `${share.toFixed(1)}%`);
      write(row.querySelector("span"), ratio(total ? number / total : null));
      write(row.lastElementChild, count(number));
    }
    const number = (row) => closed[row.dataset.reason] ?? 0;
    arrange(body, [...rows.values()].sort((one, other) => number(other) - number(one)));
    at("closed-none").hidden = total > 0;
  }

  function quantile(histogram, part, unit) {
    let last = 0;
    for (const bucket of histogram.buckets) {
      if (bucket.le === "+Inf") break;
      last = bucket.le;
      if (bucket.count >= part * histogram.count) return `≤ ${bound(last, unit)}`;
    }
    return `> ${bound(last, unit)}`;
  }

  function meanText(mean, unit) {
    if (unit === "requests") return decimal(mean);
    return mean >= 1 ? duration(mean) : bound(Math.floor(mean * 1000 + 0.5) / 1000, unit);
  }

  /** The mean, what can be told of the quantiles, and of how many that is. */
  function summary(histogram, unit) {
    if (!histogram.count) return ["", "None so far.", ""];
    const mean = histogram.sum / histogram.count;
    return [
      `mean ${meanText(mean, unit)}`,
      `50 % ${quantile(histogram, 0.5, unit)} · 95 % ${quantile(histogram, 0.95, unit)}`,
      `of ${count(histogram.count)}`,
    ];
  }

  function showHistogram(panel) {
    const histogram = totalsOf(report)[panel.id] ?? { buckets: [], sum: 0, count: 0 };
    const unit = panel.dataset.unit;
    let before = 0;
    let last = 0;
    const ranges = histogram.buckets.map((bucket) => {
      const number = bucket.count - before;
      before = bucket.count;
      const above = bucket.le === "+Inf";
      if (!above) last = bucket.le;
      return { number, above, label: `${above ? "over" : "up to"} ${bound(last, unit)}`, limit: last };
    });
    const share = (range) => ratio(histogram.count ? range.number / histogram.count : null);
    const body = panel.querySelector("tbody");
    while (body.rows.length < ranges.length) {
      body.append(html("tr", {}, html("th", { scope: "row" }), html("td"), html("td")));
    }
    ranges.forEach((range, index) => {
      const [label, number, part] = body.rows[index].cells;
      write(label, range.label);
      write(number, count(range.number));
      write(part, share(range));
    });
    summary(histogram, unit).forEach((text, index) => write(panel.querySelectorAll(".summary")[index], text));
    plot(panel.querySelector(".plot"), ranges, unit, share);
  }

  /** Round gridlines up to *most*: at most four of them, none of a fraction. */
  function gridlines(most) {
    const raw = most / 4;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = Math.max(1, [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= raw));
    return [1, 2, 3, 4].map((factor) => factor * step).filter((value) => value <= most);
  }

  function plot(box, ranges, unit, share) {
    const width = Math.max(200, box.clientWidth);
    const height = Math.max(110, box.clientHeight);
    const [left, bottom, top] = [30, 18, 6];
    const most = Math.max(1, ...ranges.map((range) => range.number));
    const column = (width - left) / Math.max(1, ranges.length);
    const level = (number) => height - bottom - (number / most) * (height - bottom - top);
    const drawing = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, focusable: "false" });
    for (const value of gridlines(most)) {
      const y = Math.round(level(value)) + 0.5;
      drawing.append(svg("line", { class: "grid", x1: left, x2: width, y1: y, y2: y }));
      drawing.append(svg("text", { x: left - 5, y: y + 3.5, "text-anchor": "end" }, COMPACT.format(value)));
    }
    let free = left - 20;
    ranges.forEach((range, index) => {
      const x = left + index * column;
      const y = range.number ? Math.min(level(range.number), level(0) - 1.5) : level(0);
      const bar = { class: "value", x: x + 1, y, width: Math.max(1, column - 2), height: level(0) - y };
      const title = svg("title", {}, `${range.label}: ${count(range.number)} (${share(range)})`);
      const area = svg("rect", { class: "area", x, y: top, width: column, height: height - bottom - top });
      drawing.append(svg("g", {}, title, area, svg("rect", bar)));
      // Requests come in whole numbers, so a column has a name; times do not, so its edge has one.
      const text = range.above ? "" : bound(range.limit, unit).replace(" ", "\u2009");
      const middle = unit === "requests" ? x + column / 2 : x + column;
      const half = text.length * 2.9;
      if (text && middle - half > free + 4 && middle + half <= width) {
        free = middle + half;
        if (unit !== "requests") {
          drawing.append(svg("line", { class: "base", x1: middle, x2: middle, y1: level(0), y2: level(0) + 4 }));
        }
        drawing.append(svg("text", { x: middle, y: height - 3, "text-anchor": "middle" }, text));
      }
    });
    drawing.append(svg("line", { class: "base", x1: left, x2: width, y1: level(0) + 0.5, y2: level(0) + 0.5 }));
    box.replaceChildren(drawing);
  }

  // --- tables ------------------------------------------------------------------------------------------------

  /** A row of *width* cells of which the first is its header, made once and then only written to. */
  function makeRow(texts) {
    const row = html("tr");
    texts.forEach((isText, index) => {
      const cell = index === 0 ? html("th", { scope: "row" }) : html("td");
      if (isText && index) cell.classList.add("text");
      row.append(cell);
    });
    return row;
  }

  function writeState(cell, state) {
    const label = cell.firstElementChild ?? cell.appendChild(html("span", { class: "state" }));
    if (label.dataset.state !== state) label.dataset.state = state;
    write(label, state);
  }

  /** Seconds from one ISO 8601 time to another. */
  function secondsBetween(start, end) {
    const seconds = (Date.parse(end) - Date.parse(start)) / 1000;
    return Number.isNaN(seconds) ? null : seconds;
  }

  const workerRows = new Map();

  function showWorkers() {
    const workers = report.workers ?? [];
    const mostOpen = Math.max(1, ...workers.map((worker) => worker.connections_open));
    const now = samples.length - 1;
    const shown = workers.map((worker) => {
      const row = workerRows.get(worker.pid) ?? makeRow([1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
      workerRows.set(worker.pid, row);
      const [pid, state, running, load, ...cells] = row.cells;
      if (!load.firstChild) {
        load.classList.add("load");
        const parts = [svg("rect", { height: "100%" }), svg("rect", { class: "second", height: "100%" })];
        load.append(svg("svg", { class: "bar", "aria-hidden": "true" }, ...parts));
      }
      const [idle, active] = load.firstChild.children;
      const share = (connections) => `${((100 * connections) / mostOpen).toFixed(1)}%`;
      idle.setAttribute("width", share(worker.connections_idle));
      active.setAttribute("x", share(worker.connections_idle));
      active.setAttribute("width", share(worker.connections_active));
      write(pid, String(worker.pid));
      writeState(state, worker.state);
      write(running, duration(secondsBetween(worker.started_at, report.generated_at)));
      const perSecond = growth(now, (sample) => sample.workers.get(worker.pid) ?? NaN);
      const figures = [
        count(worker.connections_open),
        count(worker.connections_idle),
        count(worker.connections_active),
        count(worker.requests),
        rate(perSecond),
        ratio(worker.requests ? worker.reuse_ratio : null),
        size(worker.bytes_received),
        size(worker.bytes_sent),
        isNumber(worker.figures_age) ? `${duration(worker.figures_age)} ago` : NONE,
      ];
      figures.forEach((text, index) => write(cells[index], text));
      row.classList.toggle("stale", worker.figures_age > STALE);
      return row;
    });
    arrange(at("workers"), shown);
    at("workers-none").hidden = workers.length > 0;
    const present = new Set(workers.map((worker) => worker.pid));
    for (const pid of workerRows.keys()) if (!present.has(pid)) workerRows.delete(pid);
  }

  const NATURAL = new Intl.Collator("en", { numeric: true });
  const plain = (name, format) => ({ text: (row) => format(row[name]), order: (row) => row[name] });
  const words = (name) => ({ words: true, text: (row) => String(row[name]), order: (row) => String(row[name]) });

  /** Columns by their data-key; *server*: the server's own order that brings these rows in. */
  const COLUMNS = {
    peer: { words: true, text: (row) => row.peer || UNNAMED, order: (row) => row.peer },
    worker_pid: { words: true, text: (row) => String(row.worker_pid), order: (row) => row.worker_pid },
    id: plain("id", count),
    state: words("state"),
    protocol: words("protocol"),
    requests: { ...plain("requests", count), server: "requests" },
    age: { ...plain("age", duration), server: "age" },
    idle: { ...plain("idle", duration), server: "idle" },
    closes_in: plain("closes_in", duration),
    bytes_received: { ...plain("bytes_received", size), server: "bytes" },
    bytes_sent: { ...plain("bytes_sent", size), server: "bytes" },
  };
  const HEADERS = [...at("table").tHead.rows[0].cells];
  const KEYS = HEADERS.map((header) => header.dataset.key);
  const SELECTIONS = { idle: "longest idle", age: "oldest", requests: "with most requests", bytes: "with most bytes" };
  const LIMITS = [...at("limit").options].map((option) => Number(option.value));

  const asked = new URLSearchParams(location.search);
  const view = {
    selection: Object.hasOwn(SELECTIONS, asked.get("sort")) ? asked.get("sort") : "idle",
    limit: Math.min(LIMITS.at(-1), Number.parseInt(asked.get("limit"), 10)) || LIMITS[0],
    key: "idle",
    descending: true,
    text: "",
    state: "",
  };
  view.key = view.selection === "bytes" ? "bytes_sent" : view.selection;

  let connectionRows = new Map();

  function compare(one, other) {
    const { order } = COLUMNS[view.key];
    const [a, b] = [order(one), order(other)];
    const missing = (a === null || a === undefined) - (b === null || b === undefined);
    if (missing) return missing;
    const difference = typeof a === "string" ? NATURAL.compare(a, b) : a - b;
    return (view.descending ? -difference : difference) || one.worker_pid - other.worker_pid || one.id - other.id;
  }

  function matches(row) {
    if (view.state && row.state !== view.state) return false;
    const text = view.text.trim().toLowerCase();
    if (!text) return true;
    const where = `${row.peer || UNNAMED} ${row.worker_pid} #${row.id} ${row.state} ${row.protocol}`;
    return text.split(/\s+/).every((word) => where.toLowerCase().includes(word));
  }

  function showConnections() {
    const all = report.connections ?? [];
    const open = Math.max(all.length, totalsOf(report).connections_open ?? 0);
    const matching = all.filter(matches).sort(compare);
    const shown = matching.slice(0, MOST_ROWS);
    const rows = new Map();
    for (const connection of shown) {
      const key = `${connection.worker_pid} ${connection.id}`;
      let row = connectionRows.get(key);
      if (!row) {
        row = makeRow(KEYS.map((name) => COLUMNS[name].words));
        row.cells[0].append(html("bdi"));
      }
      rows.set(key, row);
      KEYS.forEach((name, index) => {
        const cell = row.cells[index];
        if (name === "state") writeState(cell, connection.state);
        else write(name === "peer" ? cell.firstChild : cell, COLUMNS[name].text(connection));
      });
    }
    connectionRows = rows;
    arrange(at("rows"), [...rows.values()]);
    const whole = all.length < open ? `the ${count(all.length)} ${SELECTIONS[view.selection]} of ${count(open)}` : count(open);
    const filtered = view.text.trim() || view.state;
    const cut = shown.length < matching.length ? `first ${count(shown.length)} of ` : "";
    write(at("shown"), filtered ? `${cut}${count(matching.length)} match, of ${whole}` : `${cut}${whole}`);
    return matching.length;
  }

  function showOrder() {
    for (const header of HEADERS) {
      if (header.dataset.key !== view.key) header.removeAttribute("aria-sort");
      else header.setAttribute("aria-sort", view.descending ? "descending" : "ascending");
    }
  }

  function sortBy(key) {
    const column = COLUMNS[key];
    if (view.key === key) view.descending = !view.descending;
    else [view.key, view.descending] = [key, !column.words];
    showOrder();
    showConnections();
    if (column.server && column.server !== view.selection) {
      view.selection = column.server;
      wantOtherRows();
    }
  }

  /** Other rows are asked for: put that into the address, for reloads, and fetch them even while paused. */
  function wantOtherRows() {
    const url = new URL(location.href);
    url.searchParams.set("sort", view.selection);
    url.searchParams.set("limit", String(view.limit));
    history.replaceState(null, "", url);
    const open = totalsOf(report).connections_open ?? 0;
    const all = report.connections ?? [];
    if (all.length < open || all.length > view.limit) refresh();
  }

  // --- everything ----------------------------------------------------------------------------------------------

  function show() {
    const notes = [...(report.notes ?? [])];
    if (Date.now() - counterReset > WINDOW) counterReset = null;
    if (counterReset) notes.push(`The server was restarted before ${CLOCK.format(counterReset)}; counters began again.`);
    at("notes").hidden = !notes.length;
    if ([...at("notes").children].map((item) => item.textContent).join() !== notes.join()) {
      at("notes").replaceChildren(...notes.map((note) => html("li", {}, note)));
    }
    const made = new Date(report.generated_at);
    write(at("clock"), Number.isNaN(made.getTime()) ? String(report.generated_at) : CLOCK.format(made));
    at("clock").dateTime = report.generated_at;
    write(at("answered"), String(report.worker_pid));
    showFigures();
    showClosed();
    for (const panel of document.querySelectorAll(".histogram")) showHistogram(panel);
    showWorkers();
    showConnections();
  }

  // --- refreshing ------------------------------------------------------------------------------------------------

  let paused = false;
  let failures = 0;
  let gap = true;
  let timer = 0;
  /** The request under way, if any; an answer to another one is dropped. */
  let request = null;

  function mode(name, text) {
    at("status").dataset.mode = name;
    write(at("mode"), text);
  }

  function later(wait) {
    clearTimeout(timer);
    if (!paused && !document.hidden) timer = setTimeout(refresh, wait);
  }

  function address() {
    const url = new URL(location.href);
    // fetch() refuses an address with a name and password in it; the browser sends those it has anyway.
    url.username = url.password = url.hash = "";
    url.search = new URLSearchParams({ format: "json", sort: view.selection, limit: String(view.limit) });
    return url;
  }

  /** Fetch the next report; throws an Error whose message is for the reader. */
  async function fetchReport(signal) {
    let response;
    try {
      response = await fetch(address(), {
        signal,
        cache: "no-store",
        credentials: "same-origin",
        headers: { Accept: "application/json" },
      });
    } catch {
      throw new Error("The server does not answer.");
    }
    if (response.status === 403 || response.status === 401) {
      throw new Error(`The server does not let this page in any more (${response.status}).`);
    }
    if (!response.ok) throw new Error(`The server answers with an error (${response.status}).`);
    let next;
    try {
      next = await response.json();
    } catch {
      throw new Error("The server's answer broke off or is no report.");
    }
    if (typeof next?.totals !== "object") throw new Error("The server's answer is no report.");
    return next;
  }

  async function refresh() {
    stop();
    const mine = new AbortController();
    request = mine;
    const patience = setTimeout(() => mine.abort(), PATIENCE);
    const start = performance.now();
    let next = null;
    let problem = "";
    try {
      next = await fetchReport(mine.signal);
    } catch (error) {
      problem = error.message;
    }
    clearTimeout(patience);
    if (request !== mine) return;
    request = null;
    if (next) succeeded(next, performance.now() - start);
    else failed(problem);
  }

  /** No further refresh, and none that is under way. */
  function stop() {
    clearTimeout(timer);
    request?.abort();
    request = null;
  }

  function succeeded(next, took) {
    if (failures) {
      failures = 0;
      gap = true;
      at("away").hidden = true;
      announce("The server is back.");
    }
    const wait = gap ? FIRST_REFRESH : Math.max(REFRESH, REST * took);
    later(wait);
    report = next;
    remember(next, gap);
    gap = paused;
    show();
    showMode(wait);
  }

  function failed(problem) {
    failures += 1;
    const wait = Math.min(LONGEST_WAIT, REFRESH * 2 ** (failures - 1));
    later(wait);
    write(at("away-what"), problem);
    const then = paused || document.hidden ? "" : ` Trying again in ${wait / 1000} s.`;
    write(at("away-when"), `The figures are from ${at("clock").textContent}.${then}`);
    at("away").hidden = false;
    if (failures === 1) announce(`${problem} The page keeps trying.`);
    showMode();
  }

  function showMode(wait = REFRESH) {
    if (failures) mode("away", "No answer, figures from");
    else if (paused) mode("paused", "Paused at");
    else mode("live", wait > REFRESH ? `Live, every ${Math.round(wait / 1000)} s,` : "Live");
  }

  // --- what the reader does --------------------------------------------------------------------------------------

  function connectControls() {
    at("pause").addEventListener("click", () => {
      paused = !paused;
      gap = true;
      write(at("pause"), paused ? "Resume" : "Pause");
      if (paused) stop();
      else refresh();
      showMode();
    });
    at("retry").addEventListener("click", refresh);
    document.addEventListener("visibilitychange", () => {
      gap = true;
      if (document.hidden) stop();
      else if (!paused) refresh();
    });

    let telling = 0;
    const filter = () => {
      [view.text, view.state] = [at("filter").value, at("state").value];
      const matching = showConnections();
      clearTimeout(telling);
      telling = setTimeout(() => announce(`${count(matching)} connections match.`), 700);
    };
    at("filter").addEventListener("input", filter);
    at("state").addEventListener("change", filter);

    const limit = at("limit");
    if (!LIMITS.includes(view.limit)) {
      limit.prepend(html("option", { value: view.limit }, `${count(view.limit)} rows`));
    }
    limit.value = String(view.limit);
    limit.addEventListener("change", () => {
      view.limit = Number(limit.value);
      wantOtherRows();
    });

    for (const header of HEADERS) {
      const button = html("button", { type: "button" }, header.textContent);
      button.addEventListener("click", () => sortBy(header.dataset.key));
      header.replaceChildren(button);
    }
    showOrder();

    let width = 0;
    new ResizeObserver(([entry]) => {
      if (report && entry.contentRect.width !== width) show();
      width = entry.contentRect.width;
    }).observe(document.querySelector("main"));

    for (const id of ["pause", "tools"]) at(id).hidden = false;
    write(at("host"), location.host);
    document.title = `${location.host} – connections`;
  }

  document.documentElement.classList.add("drawn");
  connectControls();
  at("workers").replaceChildren();
  at("rows").replaceChildren();
  succeeded(JSON.parse(at("report").textContent), 0);
})();
