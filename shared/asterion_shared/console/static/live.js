"use strict";
// Shows a page anew when its console says that it changed. Without it the page stays as it is.
(() => {
  const region = () => document.getElementById("live");
  if (!region() || !window.EventSource) return;
  let source = null;
  let busy = false;

  const note = (words) => {
    const place = document.getElementById("live-note");
    if (place) place.textContent = words;
  };

  const show = async () => {
    if (busy) return;
    busy = true;
    try {
      const answer = await fetch(location.href, { headers: { "X-Asterion-Live": "1" } });
      if (answer.redirected || !answer.ok) return location.reload();
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById("live");
      if (!fresh) return location.reload();
      const open = new Set([...region().querySelectorAll("details[open]")].map((d) => d.id));
      for (const detail of fresh.querySelectorAll("details")) if (open.has(detail.id)) detail.open = true;
      const done = region().querySelector("p.done");
      if (done) fresh.querySelector("main").prepend(done);
      const focused = document.activeElement && document.activeElement.id;
      region().replaceWith(fresh);
      document.title = page.title;
      if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
      note("This page updates by itself.");
    } catch {
      note("The console does not answer; this page is as it was last.");
    } finally {
      busy = false;
    }
  };

  const listen = () => {
    if (source) return;
    source = new EventSource(region().dataset.live);
    source.addEventListener("open", () => note("This page updates by itself."));
    source.addEventListener("changed", show);
    source.addEventListener("ended", () => location.reload());
    source.addEventListener("error", () => note("The console does not answer; this page is as it was last."));
  };

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      source?.close();
      source = null;
    } else {
      show();
      listen();
    }
  });
  listen();
})();
