// Sends the file as it is, not inside a form, and shows how much has been sent.
"use strict";

const form = document.getElementById("upload");
const button = form.querySelector("button");
const progress = form.querySelector("progress");
const status = form.querySelector(".status");
const received = document.getElementById("received");

function finish(words, failed) {
  progress.parentElement.hidden = true;
  button.disabled = false;
  status.textContent = words;
  status.classList.toggle("failed", failed);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const file = form.elements.file.files[0];
  const begin = performance.now();
  const request = new XMLHttpRequest(); // fetch() does not tell how much of an upload has been sent
  request.open("POST", form.action);
  request.setRequestHeader("Accept", "application/json");
  request.setRequestHeader("Content-Type", "application/octet-stream");
  request.upload.addEventListener("progress", (sent) => {
    progress.value = sent.total ? sent.loaded / sent.total : 1;
  });
  request.addEventListener("error", () => finish("No answer: the connection broke off.", true));
  request.addEventListener("load", () => {
    let answer = null;
    try {
      answer = JSON.parse(request.responseText);
    } catch {
      answer = { error: "The answer is not JSON." };
    }
    if (request.status !== 200) {
      finish(`${request.status}: ${answer.error}`, true);
      return;
    }
    for (const place of received.querySelectorAll("[data-received]")) {
      place.textContent = answer[place.dataset.received].toLocaleString("en");
    }
    received.hidden = false;
    const id = request.getResponseHeader("X-Connection-Id");
    const seconds = ((performance.now() - begin) / 1000).toFixed(2);
    finish(`Sent in ${seconds} s${id ? ` over connection ${id}` : ""}.`, false);
  });
  button.disabled = true;
  progress.value = 0;
  progress.parentElement.hidden = false;
  status.classList.remove("failed");
  status.textContent = "Sending…";
  received.hidden = true;
  request.send(file);
});
