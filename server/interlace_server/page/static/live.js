// A job's page follows its events; where the stream is not there, the page goes on asking each second by itself.
"use strict";

(() => {
  const box = document.getElementById("follow");
  if (!box || !window.EventSource) return;
  const RARELY = 5000; // ms: the place in the queue moves without an event of this job
  let streams = false, due = null, asked = 0;
  const source = new EventSource(box.dataset.events);
  const changed = () => { due ??= setTimeout(() => { due = null; htmx.trigger("#job", "changed"); }, 250); };

  source.addEventListener("open", () => { streams = true; changed(); });
  source.addEventListener("error", () => { streams = false; });
  source.addEventListener("changed", changed);
  source.addEventListener("progress", (event) => {
    box.dispatchEvent(new CustomEvent("progress", { detail: JSON.parse(event.data) }));
    changed();
  });
  source.addEventListener("ended", () => { streams = false; source.close(); changed(); });
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.detail.elt.id !== "job") return;
    const polls = !event.detail.requestConfig.triggeringEvent;
    if (polls && streams && Date.now() - asked < RARELY) event.preventDefault();
    else asked = Date.now();
  });
})();
