// Answers the overview's forms in place. Without this file they open their answers as pages.
"use strict";

/** The most characters of an answer that stay on the page. */
const SHOWN = 20000;

/** Which connection an answer came over, in words; empty where the server does not say. */
function connectionOf(response) {
  const id = response.headers.get("X-Connection-Id");
  return id ? ` · connection ${id}, request ${response.headers.get("X-Connection-Requests")}` : "";
}

/** Which connection of the whole server that was: two workers may use the same number. */
function keyOf(response) {
  return `${response.headers.get("X-Worker-Pid")}-${response.headers.get("X-Connection-Id")}`;
}

function milliseconds(since) {
  const passed = performance.now() - since;
  return passed < 1000 ? `${Math.round(passed)} ms` : `${(passed / 1000).toFixed(2)} s`;
}

/** Where a form shows what it got. */
class Answer {
  constructor(form) {
    const place = form.querySelector(".answer");
    this.status = place.querySelector(".status");
    this.text = place.querySelector("pre");
    place.hidden = false;
  }

  clear() {
    this.text.textContent = "";
    this.say("…");
  }

  say(words, failed = false) {
    this.status.textContent = words;
    this.status.classList.toggle("failed", failed);
  }

  add(text) {
    const follows = this.text.textContent !== "";
    this.text.textContent = (this.text.textContent + text).slice(-SHOWN);
    if (follows) {
      this.text.scrollTop = this.text.scrollHeight;
    }
  }
}

/** Fetch, and show the body as it arrives. */
async function showText(answer, request, signal) {
  const begin = performance.now();
  try {
    const response = await fetch(request, { cache: "no-store", signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      answer.add(part.value);
      answer.say(`${response.status} · so far ${milliseconds(begin)}${connectionOf(response)}`, !response.ok);
    }
    answer.say(`${response.status} · ${milliseconds(begin)}${connectionOf(response)}`, !response.ok);
  } catch (error) {
    answer.say(signal.aborted ? `Stopped after ${milliseconds(begin)}.` : `No answer: ${error.message}.`, true);
  }
}

/** Listen until the server says that it was the last event. */
function showEvents(answer, url, signal) {
  return new Promise((resolve) => {
    const source = new EventSource(url);
    let heard = 0;
    const end = (words, failed) => {
      source.close();
      answer.say(words, failed);
      resolve();
    };
    source.addEventListener("tick", (event) => {
      heard += 1;
      answer.add(`${event.data}\n`);
      answer.say(`${heard} heard so far`);
    });
    source.addEventListener("end", () => end(`${heard} heard, that was the last.`, false));
    source.addEventListener("error", () => end(`The stream broke off after ${heard}.`, true));
    signal.addEventListener("abort", () => end(`Stopped after ${heard}.`, true));
  });
}

/** One WebSocket for the page, opened with the first message. */
let socket = null;

function sendMessage(answer, url, message) {
  const send = () => {
    answer.add(`→ ${message}\n`);
    socket.send(message);
  };
  if (socket && socket.readyState === WebSocket.OPEN) {
    send();
    return;
  }
  answer.clear();
  const address = new URL(url);
  address.protocol = address.protocol.replace("http", "ws");
  socket = new WebSocket(address);
  socket.addEventListener("open", () => {
    answer.say("Open.");
    send();
  });
  socket.addEventListener("message", (event) => answer.add(`← ${event.data}\n`));
  socket.addEventListener("close", (event) => answer.say(`Closed (${event.code}).`, event.code !== 1000));
}

/** Run one call of a form; its button stops it meanwhile. */
async function run(form, work) {
  if (form.stop) {
    form.stop.abort();
    return;
  }
  const button = form.querySelector("button");
  const label = button.textContent;
  form.stop = new AbortController();
  button.textContent = "Stop";
  const answer = new Answer(form);
  answer.clear();
  await work(answer, form.stop.signal);
  form.stop = null;
  button.textContent = label;
}

for (const form of document.querySelectorAll("form[data-call]")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const fields = new FormData(form);
    if (form.dataset.call === "json") {
      const request = new Request(form.action, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: fields.get("json"),
      });
      run(form, (answer, signal) => showText(answer, request, signal));
    } else if (form.dataset.call === "websocket") {
      sendMessage(new Answer(form), form.action, fields.get("message"));
    } else {
      const query = new URLSearchParams(fields).toString();
      const url = query ? `${form.action}?${query}` : form.action;
      const show = form.dataset.call === "events" ? showEvents : showText;
      run(form, (answer, signal) => show(answer, url, signal));
    }
  });
}

/** Ask for this page once more, and show what it says about its connection now. */
async function askAgain() {
  const panel = document.getElementById("connection");
  const asked = document.getElementById("asked");
  try {
    const response = await fetch("/", { cache: "no-store", headers: { Accept: "text/html" } });
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const facts = page.querySelector(".facts");
    if (!facts) {
      asked.textContent = `Answered with ${response.status}.`;
      return;
    }
    panel.querySelector(".facts").replaceWith(facts);
    const id = response.headers.get("X-Connection-Id");
    const requests = response.headers.get("X-Connection-Requests");
    const same = keyOf(response) === panel.dataset.connection;
    panel.dataset.connection = keyOf(response);
    asked.textContent = same
      ? `Connection ${id} again: request no. ${requests} on it.`
      : `Connection ${id} this time, ${requests === "1" ? "a new one" : `with request no. ${requests}`}.`;
  } catch (error) {
    asked.textContent = `No answer: ${error.message}.`;
  }
}

document.getElementById("ask-again").addEventListener("click", askAgain);
