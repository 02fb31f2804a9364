// What a browser adds where there is something to copy, and to the page of one incident, whose parts are exchanged as
// they change. It runs before console.js, which changes what the server wrote.
"use strict";
(() => {
  const $ = (css, root = document) => root.querySelector(css);
  const $$ = (css, root = document) => [...root.querySelectorAll(css)];

  // What the server said of a part, but for what differs each time: its age and its token.
  const PARTS = ["head", "cause", "anomalies", "timeline", "tickets", "facts", "others"];
  const essence = (part) => part.outerHTML.replace(/(<time [^>]*>)[^<]*/g, "$1").replace(/(name="csrfmiddlewaretoken" value=)"[^"]*"/g, "$1");
  const shown = {};
  for (const id of PARTS) if ($(`#${id}`)) shown[id] = essence($(`#${id}`));
  const HOW = { open: "reopened" };
  window.mergePage = (fresh, tell) => {
    const before = $("#head").dataset.status, now = $("#head", fresh).dataset;
    if (now.status !== before) tell(`${now.by || "Somebody"} ${HOW[now.status] || now.status} this just now`);
    let whole = true;
    for (const id of PARTS) {
      const old = $(`#${id}`), next = $(`#${id}`, fresh);
      if (!old || !next || shown[id] === essence(next)) continue;
      const selected = getSelection();
      if (!selected.isCollapsed && old.contains(selected.anchorNode)) { whole = false; continue; }  // somebody copies it
      shown[id] = essence(next);
      for (const open of $$("details[id]", old)) { const same = next.querySelector(`#${open.id}`); if (same) same.open = open.open; }
      const focused = old.contains(document.activeElement) && document.activeElement.id, note = $("textarea", old);
      if (note && note.value && $("textarea", next)) $("textarea", next).replaceWith(note);  // as far as it is written
      old.replaceWith(document.adoptNode(next));
      if (focused && document.getElementById(focused)) document.getElementById(focused).focus({ preventScroll: true });
    }
    offerCopies();
    return whole;
  };

  // --- Copying ---

  const offerCopies = () => {
    if (!navigator.clipboard) return;
    for (const button of $$("[data-copy-link], [data-copy-from], [data-copy-of]")) button.removeAttribute("hidden");
    const link = $("[data-copy-link]");
    if (link) link.dataset.copy = location.origin + location.pathname;
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy], [data-copy-from], [data-copy-of]");
    if (!button || !navigator.clipboard) return;
    const { copy, copyFrom, copyOf } = button.dataset;
    const reply = copyFrom && await fetch(copyFrom, { headers: { Accept: "*/*" } });
    const text = copy || (copyOf ? $$("li", document.getElementById(copyOf)).map((line) => line.textContent).join("\n") : reply.ok && await reply.text());
    if (text) await navigator.clipboard.writeText(text);
    const spoken = $("#spoken"), words = button.textContent, outcome = text ? "Copied" : "It could not be read";
    spoken.textContent = outcome;
    if (copy) button.classList.add("copied"); else button.textContent = outcome;
    setTimeout(() => {
      if (copy) button.classList.remove("copied"); else button.textContent = words;
      if (spoken.textContent === outcome) spoken.textContent = "";  // so that the next time is spoken too
    }, 1500);
  });

  offerCopies();
})();
