// A page's part follows what happens; where the stream is not there, the part goes on asking by itself.
"use strict";

(() => {
  const box = document.getElementById("follow");
  if (!box || !window.EventSource) return;
  const part = box.dataset.part;
  const rarely = Number(box.dataset.rarely); // ms: the place in the queue moves without an event of this reader's jobs
  const address = new URL(box.dataset.events, location);
  let source = null, streams = false, ended = false, due = null, asked = 0;
  const changed = () => { due ??= setTimeout(() => { due = null; htmx.trigger(`#${part}`, "changed"); }, 250); };
  const seen = (event) => { address.searchParams.set("after", event.lastEventId); };
  const close = () => { streams = false; source?.close(); source = null; };

  const open = () => {
    if (source || ended) return;
    source = new EventSource(address);
    source.addEventListener("open", () => { streams = true; changed(); });
    source.addEventListener("error", () => { streams = false; });
    source.addEventListener("changed", (event) => { seen(event); changed(); });
    source.addEventListener("progress", (event) => {
      seen(event);
      box.dispatchEvent(new CustomEvent("progress", { detail: JSON.parse(event.data) }));
      changed();
    });
    source.addEventListener("ended", () => { ended = true; close(); changed(); });
  };
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.detail.elt.id !== part) return;
    const polls = !event.detail.requestConfig.triggeringEvent;
    if (polls && (document.hidden || (streams && Date.now() - asked < rarely))) event.preventDefault();
    else asked = Date.now();
  });
  // A browser has six connections to a server for all its tabs: one that nobody looks at holds none.
  document.addEventListener("visibilitychange", () => { if (document.hidden) close(); else open(); });
  if (!document.hidden) open();
})();
