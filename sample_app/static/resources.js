// Loads the thirty resources, counts the connections they came over, and draws when each came.
"use strict";

const form = document.getElementById("switch");
const COUNT = Number(form.dataset.resources);
const SVG = "http://www.w3.org/2000/svg";

/** What the latest load of each kind found, under "on" and "off". */
const found = {};
/** Which of them is drawn. */
let shown = form.dataset.keepalive;

/**
 * One resource: who brought it and when, in milliseconds since the page began.
 * @typedef {{number: number, key: ?string, connection: ?string, requests: ?number,
 *            begin: number, connect: number, ask: number, end: number, picture: Element}} Load
 */

/** @returns {Promise<Load>} */
async function load(number, keepalive) {
  const url = new URL(`/resources/${number}.svg?keepalive=${keepalive}`, location.href).href;
  const begin = performance.now();
  const response = await fetch(url, { cache: "no-store" });
  const text = await response.text();
  const end = performance.now();
  if (!response.ok) {
    throw new Error(`resource ${number} was answered with ${response.status}`);
  }
  const connection = response.headers.get("X-Connection-Id");
  return {
    number,
    url,
    // Two workers may use the same number.
    key: connection && `${response.headers.get("X-Worker-Pid")}-${connection}`,
    connection,
    requests: Number(response.headers.get("X-Connection-Requests")),
    begin,
    connect: begin,
    ask: begin,
    end,
    picture: new DOMParser().parseFromString(text, "image/svg+xml").documentElement,
  };
}

/** Put in the browser's own times; it makes them known a little after the answer itself. */
async function refine(loads) {
  const deadline = performance.now() + 500;
  const entryOf = (one) => performance.getEntriesByName(one.url, "resource").at(-1);
  while (!loads.every(entryOf) && performance.now() < deadline) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  for (const one of loads) {
    const entry = entryOf(one);
    if (entry && entry.requestStart) {
      const connects = entry.connectEnd > entry.connectStart;
      one.begin = entry.startTime;
      one.connect = connects ? entry.connectStart : entry.requestStart;
      one.ask = entry.requestStart;
      one.end = entry.responseEnd;
    }
  }
}

/** Load all resources at once; how many connections that takes is the browser's and the server's affair. */
async function measure(keepalive) {
  performance.clearResourceTimings();
  const numbers = Array.from({ length: COUNT }, (_, index) => index + 1);
  const loads = await Promise.all(numbers.map((number) => load(number, keepalive)));
  await refine(loads);
  const start = Math.min(...loads.map((one) => one.begin));
  for (const one of loads) {
    for (const moment of ["begin", "connect", "ask", "end"]) {
      one[moment] -= start;
    }
  }
  const known = loads.every((one) => one.key);
  const connections = new Set(loads.map((one) => one.key)).size;
  const opened = loads.filter((one) => one.requests === 1).length;
  const took = Math.max(...loads.map((one) => one.end));
  return { loads, known, connections, opened, took };
}

// --- showing -----------------------------------------------------------------------------------

function plural(count, what) {
  return `${count} ${what}${count === 1 ? "" : "s"}`;
}

function milliseconds(time) {
  return time < 10 ? time.toFixed(1) : time.toFixed(0);
}

function showFigures(keepalive) {
  const place = form.querySelector(`[data-result="${keepalive}"]`);
  const result = found[keepalive];
  place.querySelector("output").textContent = result.known ? result.connections : "?";
  place.querySelector(".unit").textContent = result.known && result.connections === 1 ? "connection" : "connections";
  const detail = result.known
    ? `${result.opened} of them new, ${milliseconds(result.took)} ms in all`
    : `${milliseconds(result.took)} ms in all`;
  place.querySelector(".detail").textContent = detail;
}

function verdict() {
  const { on, off } = found;
  const latest = found[shown];
  if (!latest.known) {
    return (
      `The ${COUNT} resources came in ${milliseconds(latest.took)} ms. Over how many connections cannot be told: ` +
      "this server is not keepalive_worker."
    );
  }
  if (on && off) {
    return (
      `The ${COUNT} resources took ${plural(on.connections, "connection")} with keep-alive ` +
      `and ${off.connections} without.`
    );
  }
  return (
    `The ${COUNT} resources took ${plural(latest.connections, "connection")} with keep-alive ${shown}. ` +
    `Now load them ${shown === "on" ? "without" : "with keep-alive on"} to compare.`
  );
}

function showTiles(loads) {
  const places = document.getElementById("tiles").children;
  for (const one of loads) {
    places[one.number - 1].firstElementChild.replaceChildren(document.importNode(one.picture, true));
  }
}

/** By connection, the earliest first, and by time within each; in their own order where nothing is known. */
function ordered(result) {
  if (!result.known) {
    return result.loads;
  }
  const first = new Map();
  for (const one of result.loads) {
    first.set(one.key, Math.min(one.ask, first.get(one.key) ?? Infinity));
  }
  const place = (one) => [first.get(one.key), one.key, one.requests];
  return [...result.loads].sort((one, other) => {
    const [a, b] = [place(one), place(other)];
    return a[0] - b[0] || a[1].localeCompare(b[1]) || a[2] - b[2];
  });
}

function showTable(rows) {
  const cells = rows.map((one) => [
    one.number,
    one.connection ?? "?",
    one.connection ? one.requests : "?",
    one.begin.toFixed(1),
    (one.connect - one.begin).toFixed(1),
    (one.ask - one.connect).toFixed(1),
    (one.end - one.ask).toFixed(1),
  ]);
  const lines = cells.map((row) => {
    const line = document.createElement("tr");
    line.append(
      ...row.map((text, index) => {
        const cell = document.createElement(index ? "td" : "th");
        if (!index) {
          cell.scope = "row";
        }
        cell.textContent = text;
        return cell;
      }),
    );
    return line;
  });
  document.getElementById("times").replaceChildren(...lines);
}

function draw(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) {
    element.setAttribute(attribute, value);
  }
  if (text !== undefined) {
    element.textContent = text;
  }
  return element;
}

/** A step of 1, 2 or 5 times a power of ten, for about *parts* steps in all. */
function niceStep(span, parts) {
  const power = 10 ** Math.floor(Math.log10(span / parts));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => span / step <= parts);
}

function showWaterfall(result) {
  const place = document.getElementById("waterfall");
  const rows = ordered(result);
  const width = Math.max(place.clientWidth, 260);
  const [row, top, left, right] = [16, 24, result.known ? 66 : 34, 34];
  const height = top + rows.length * row + 6;
  const span = Math.max(result.took, 0.1);
  const x = (time) => left + (time / span) * (width - left - right);
  const picture = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
  const label = result.known
    ? `${rows.length} resources on ${plural(result.connections, "connection")}, ${milliseconds(result.took)} ms in all`
    : `${rows.length} resources, ${milliseconds(result.took)} ms in all`;
  picture.setAttribute("aria-label", label);

  const band = draw("g", {});
  const grid = draw("g", {});
  const bars = draw("g", {});
  const step = niceStep(span, width < 500 ? 4 : 8);
  const digits = step < 1 ? 1 : 0;
  for (let time = 0; time <= span; time += step) {
    const at = x(time).toFixed(1);
    grid.append(
      draw("line", { class: "tick", x1: at, x2: at, y1: top - 4, y2: height - 4 }),
      draw("text", { class: "scale", x: at, y: 13, "text-anchor": "middle" }, `${time.toFixed(digits)} ms`),
    );
  }

  let bands = 0;
  rows.forEach((one, index) => {
    const y = top + index * row;
    const begins = index === 0 || rows[index - 1].key !== one.key;
    if (result.known && begins) {
      const length = rows.filter((other) => other.key === one.key).length;
      if (bands % 2 === 0) {
        band.append(draw("rect", { class: "band", x: 0, y, width, height: length * row, rx: 4 }));
      }
      bands += 1;
      bars.append(draw("text", { class: "connection-label", x: 8, y: y + 12 }, `no. ${one.connection}`));
    }
    const bar = (kind, from, to, thickness) => {
      const length = Math.max(x(to) - x(from), kind === "answering" ? 2 : 0);
      if (length > 0) {
        const edge = y + (row - thickness) / 2;
        const shape = { x: x(from).toFixed(1), y: edge, width: length.toFixed(1), height: thickness, rx: 1.5 };
        bars.append(draw("rect", { class: kind, ...shape }));
      }
    };
    bar("queued", one.begin, one.connect, 2);
    bar("connect", one.connect, one.ask, 10);
    bar("answering", one.ask, one.end, 10);
    bars.append(draw("text", { class: "scale", x: (x(one.end) + 5).toFixed(1), y: y + 12 }, one.number));
  });
  picture.append(band, grid, bars);
  place.replaceChildren(picture);
}

function show() {
  const result = found[shown];
  if (!result) {
    return;
  }
  for (const place of form.querySelectorAll("[data-result]")) {
    place.classList.toggle("shown", place.dataset.result === shown);
  }
  document.getElementById("verdict").textContent = verdict();
  showWaterfall(result);
  showTable(ordered(result));
}

// --- doing -------------------------------------------------------------------------------------

async function run(keepalive) {
  const buttons = form.querySelectorAll("button");
  const words = document.getElementById("verdict");
  words.classList.remove("failed");
  words.textContent = "Loading…";
  buttons.forEach((button) => button.setAttribute("aria-disabled", "true"));
  try {
    found[keepalive] = await measure(keepalive);
    shown = keepalive;
    showFigures(keepalive);
    showTiles(found[keepalive].loads);
    show();
  } catch (error) {
    words.classList.add("failed");
    words.textContent = `The resources could not be loaded: ${error.message}.`;
  }
  buttons.forEach((button) => button.removeAttribute("aria-disabled"));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const button = event.submitter;
  if (button.getAttribute("aria-disabled")) {
    return;
  }
  history.replaceState(null, "", `?keepalive=${button.value}`);
  run(button.value);
});

new ResizeObserver(() => show()).observe(document.getElementById("waterfall").parentElement);
run(shown);
