// What a browser adds to the console: live refresh, selection, keys, local times. Every page works without it.
"use strict";
(() => {
  const $ = (css, root = document) => root.querySelector(css);
  const $$ = (css, root = document) => [...root.querySelectorAll(css)];
  const live = $("#live");
  const list = $("body.list") && live;
  const incident = $("body.incident") && live;
  const stored = (name, where = "localStorage") => { try { return window[where].getItem(name); } catch { return null; } };
  const store = (name, value, where = "localStorage") => { try { window[where].setItem(name, value); } catch { /* it holds for this page */ } };
  const TAB = "sessionStorage";
  const unhide = (element) => element && element.removeAttribute("hidden");
  const spoken = $("#spoken");
  // To a screen reader, once.
  const speak = (text) => { if (spoken && spoken.textContent !== text) spoken.textContent = text; };

  // --- Times ---

  const age = (seconds) => {
    const s = Math.max(0, Math.floor(seconds)), m = Math.floor(s / 60), h = Math.floor(s / 3600);
    if (s < 60) return `${s}s`;
    if (m < 60) return `${m}m`;
    if (h < 24) return h < 10 && m % 60 ? `${h}h ${m % 60}m` : `${h}h`;
    return `${Math.floor(h / 24)}d`;
  };
  const MODES = ["Ages", "Local time", "UTC"].slice(0, new Date().getTimezoneOffset() ? 3 : 2);
  let mode = Math.max(0, MODES.indexOf(stored("times")));
  const nextMode = () => (mode + 1) % MODES.length;
  const HOUR = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  const tellTimes = () => {
    for (const time of $$("#live time:not([data-fixed])")) {
      const at = new Date(time.dateTime), seconds = (Date.now() - at) / 1000;
      if (!time.dataset.utc) {
        time.dataset.utc = time.title || `${at.toISOString().slice(0, 19).replace("T", " ")} UTC`;
        time.dataset.relative = /^\d+[smhd]/.test(time.textContent) ? "1" : "";
      }
      time.title = `${time.dataset.utc} (${at.toLocaleString()} local)`;
      if (!time.dataset.relative) continue;
      const today = Math.abs(seconds) < 43200;
      const zone = mode > 1 && { timeZone: "UTC" };
      const text = mode && list ? (today ? at.toLocaleTimeString([], { ...HOUR, ...zone })
        : at.toLocaleDateString([], { month: "short", day: "numeric", ...zone })) : age(seconds);
      if (time.textContent !== text) time.textContent = text;
      if (time.closest(".c-seen")) time.classList.toggle("recent", seconds < 120);
    }
    for (const span of $$("[data-local]")) {
      const at = new Date(span.dataset.local);
      span.textContent = at.getTimezoneOffset() ? ` (${at.toLocaleTimeString([], HOUR)} local)` : "";
    }
    const button = $("[data-times]");
    if (button) button.textContent = MODES[nextMode()];
  };
  const turnTimes = () => { mode = nextMode(); store("times", MODES[mode]); tellTimes(); };

  // --- Selection ---

  const severityOf = (row) => $(".c-severity", row).classList[1];
  const boxes = () => $$("#rows tbody input[name=ids]");
  const rows = () => $$("#rows tbody tr");
  const chosen = () => boxes().filter((box) => box.checked);
  let here = null;  // the id of the row that the keys are on
  const tellSelection = () => {
    const picked = chosen(), all = $("[name=all]");
    const counts = {};
    for (const box of boxes()) box.closest("tr").classList.toggle("on", box.checked);
    for (const row of rows()) $(".c-title a", row).dataset.id = row.dataset.id;  // the second line of a comfortable row
    for (const box of picked) { const severity = severityOf(box.closest("tr")); counts[severity] = (counts[severity] || 0) + 1; }
    const words = Object.entries(counts).map(([severity, count]) => `${count} ${severity}`).join(", ");
    const label = $("#selected");
    if (label) label.textContent = picked.length ? `${picked.length} selected: ${words}` : "";
    for (const button of $$("#bar button[name=move]")) button.disabled = !picked.length && !(all && all.checked);
    const head = $("[data-all]");
    if (head) { head.checked = picked.length > 0 && picked.length === boxes().length; head.indeterminate = picked.length > 0 && !head.checked; }
  };
  let last = null;
  const pick = (box, on, range) => {
    const all = boxes(), from = all.indexOf(last), to = all.indexOf(box);
    if (range && from >= 0) for (const each of all.slice(Math.min(from, to), Math.max(from, to) + 1)) each.checked = on;
    box.checked = on; last = box; tellSelection();
  };
  const stand = (row) => {
    for (const each of rows()) each.classList.toggle("here", each === row);
    here = row ? row.dataset.id : null;
    if (row) { $(".c-title a", row).focus({ preventScroll: true }); row.scrollIntoView({ block: "nearest" }); }
  };
  const standing = () => rows().find((row) => row.dataset.id === here) || null;
  // After an act the keys go on where they were. A row that has left made place for the next.
  const place = (id) => store("place", `${id} ${rows().indexOf(standing())}`, TAB);
  let resume = 0;
  const goOn = () => {
    const [id, at] = (stored("place", TAB) || "").split(" ");
    store("place", "", TAB);
    here = id;
    if (standing()) stand(standing()); else { here = null; resume = Math.max(0, at || 0); }
  };

  // --- Live ---

  let etag = live ? live.dataset.etag : "", paused = false, timer = 0, out = false, busyUntil = 0;
  const state = $("#state");
  const clock = () => new Date().toLocaleTimeString([], { hour12: false });
  let lastGood = clock();
  const say = (text, late) => {
    if (!state) return;
    if (text && (late || incident)) speak(text);
    const span = $("span", state);
    if (incident) state.hidden = !text;
    state.classList.toggle("late", !!late);
    if (span.textContent !== text) span.textContent = text;
  };
  let said = 0;  // until when a change that somebody else made stays told
  const sayState = () => incident ? Date.now() > said && say("") : say(paused ? "Paused" : `Live · ${lastGood}`);
  const tell = (text) => { said = Date.now() + 30000; say(text); };
  const occupied = () => chosen().length > 0 || !!$("#rows tbody:hover") || !!$("#rows tbody tr.here") ||
    !!(document.activeElement && document.activeElement.closest("#rows tbody"));

  const replaceIfOther = (id, fresh) => {
    const old = $(`#${id}`), next = $(`#${id}`, fresh);
    if (old && next && old.innerHTML !== next.innerHTML) old.replaceWith(document.adoptNode(next));
  };
  const cellsFrom = (row, fresh) => {
    row.className = [fresh.className, ...["on", "here"].filter((name) => row.classList.contains(name))].join(" ");
    [...fresh.children].forEach((cell, index) => {
      const mine = row.children[index];
      if (index && mine && mine.dataset.was !== cell.innerHTML && mine.innerHTML !== cell.innerHTML) {
        const focused = mine.contains(document.activeElement) && $$("a", mine).indexOf(document.activeElement);
        mine.dataset.was = cell.innerHTML;
        mine.replaceChildren(...[...cell.childNodes].map((node) => document.importNode(node, true)));
        if (focused !== false && $$("a", mine)[focused]) $$("a", mine)[focused].focus({ preventScroll: true });
      }
    });
  };
  // The strip takes a line above the table: while somebody points at a row it neither comes nor goes there.
  const mergeStrip = (fresh) => {
    const old = $("#strip"), next = $("#strip", fresh), stands = old.children.length && !old.classList.contains("floating");
    const busy = occupied();
    if (busy && stands && !next.children.length) { old.classList.add("over"); return; }
    if (busy && !stands) next.classList.add("floating");
    old.replaceWith(document.adoptNode(next));
  };
  let waiting = null;
  const mergeList = (fresh) => {
    mergeStrip(fresh); replaceIfOther("views", fresh); replaceIfOther("total", fresh);
    const everything = $("#everything");
    if (everything) {
      replaceIfOther("matching", fresh);
      everything.hidden = $("#matching").hidden;
      if (everything.hidden) $("input", everything).checked = false;
    }
    const body = $("#rows tbody"), next = $("#rows tbody", fresh);
    if (!body || !next) { if (!!body !== !!next && !occupied()) location.reload(); else if (body) for (const row of rows()) row.classList.add("gone"); return; }
    const known = new Map(rows().map((row) => [row.dataset.id, row]));
    const coming = [...next.children];
    const ids = new Set(coming.map((row) => row.dataset.id));
    for (const row of coming) if (known.has(row.dataset.id)) cellsFrom(known.get(row.dataset.id), row);
    const left = [...known.values()].filter((row) => !ids.has(row.dataset.id) && !row.classList.contains("gone"));
    for (const [id, row] of known) row.classList.toggle("gone", !ids.has(id));
    if (left.length <= 5) left.forEach(tellGone);
    const added = coming.filter((row) => !known.has(row.dataset.id));
    waiting = added.length ? next : null;
    const news = $("#news");
    const critical = added.filter((row) => severityOf(row) === "critical").length;
    const words = `${added.length} new${critical ? `: ${critical} critical` : ""}`;
    if (waiting) speak(words);
    if (waiting && occupied()) {
      $("button", news).textContent = words;
      unhide(news);
    } else if (waiting) insertWaiting();
    else news.hidden = true;
  };
  // Why a row left: what its page says now.
  const tellGone = async (row) => {
    try {
      const reply = await fetch(`${row.dataset.id}/`, { headers: { "X-Fragment": "rows" }, redirect: "error" });
      const head = $("#head", new DOMParser().parseFromString(await reply.text(), "text/html"));
      const cell = $(".c-status", row);
      cell.dataset.was = "";  // it is told anew should the row come back
      if (row.classList.contains("gone")) cell.replaceChildren(document.adoptNode($(".chip", head)), ` ${head.dataset.by || ""}`);
    } catch { /* it is grey all the same */ }
  };
  const insertWaiting = () => {
    const body = $("#rows tbody"), known = new Map(rows().map((row) => [row.dataset.id, row]));
    let after = null;
    for (const row of [...waiting.children]) {
      let mine = known.get(row.dataset.id);
      if (!mine) {
        mine = document.importNode(row, true);
        mine.classList.add("fresh");
        if (after) after.after(mine); else body.prepend(mine);
      }
      after = mine;
    }
    waiting = null; $("#news").hidden = true; tellSelection();
  };
  let polls = 0;  // an answer that a later question has overtaken is dropped
  const poll = async () => {
    clearTimeout(timer);
    const began = performance.now(), mine = ++polls;
    try {
      const reply = await fetch(location.pathname + location.search, { headers: { "X-Fragment": "rows", "If-None-Match": etag }, cache: "no-store", redirect: "manual", signal: AbortSignal.timeout(10000) });
      const text = await reply.text();
      if (mine !== polls) return;
      if (reply.type === "opaqueredirect") { signedOut(); return; }
      if (reply.status !== 304) {
        if (!reply.ok) throw new Error(String(reply.status));
        const fresh = new DOMParser().parseFromString(text, "text/html");
        const whole = list ? mergeList(fresh) : window.mergePage(fresh, tell);
        etag = whole !== false && reply.headers.get("ETag") || "";
        tellSelection();
      }
      if (out) { await askSession(); out = false; }
      if (list && state.classList.contains("late")) speak("Live again");
      lastGood = clock(); sayState(); tellTimes();
    } catch { if (mine !== polls) return; say(`Not live since ${lastGood}, retrying`, true); }
    if (performance.now() - began > 500) busyUntil = Date.now() + 60000;
    plan();
  };
  const plan = () => {
    clearTimeout(timer);
    if (paused || document.hidden) return;
    const seconds = Date.now() < busyUntil ? 30 : Number(live.dataset.seconds);
    timer = setTimeout(poll, seconds * 1000);
  };
  const signedOut = () => {
    out = true;
    say("Signed out", true);
    const link = document.createElement("a");
    link.href = location.href; link.target = "_blank"; link.textContent = "Signed out: sign in again";
    if (state) { state.hidden = false; $("span", state).replaceChildren(link); }
    timer = setTimeout(poll, 15000);
  };
  const pause = () => {
    paused = !paused;
    speak(paused ? "Paused" : "Live again");
    $("[data-pause]").textContent = paused ? "Resume" : "Pause";
    sayState();
    if (paused) clearTimeout(timer); else poll();
  };

  // --- The login's end ---

  const session = $("#session");
  let askAt = session ? Date.now() + (session.dataset.left - session.dataset.warning) * 1000 : Infinity;
  let asked = 0;
  const askSession = async (counts) => {
    askAt = Date.now() + 15000;
    const mine = ++asked;
    const { ask, warning } = session.dataset;
    const reply = await fetch(ask, { headers: counts ? {} : { "X-Fragment": "session" }, cache: "no-store", redirect: "manual" });
    if (reply.type === "opaqueredirect") { tellSession("Your session has ended.", true); return; }
    const { left, longest, token } = await reply.json();
    if (mine !== asked) return;  // a late answer says what was
    // Whoever signs in gets a new token, and the forms of a page from before would be refused.
    for (const field of $$("[name=csrfmiddlewaretoken]")) field.value = token;
    if (left > warning) { askAt = Date.now() + (left - warning) * 1000; session.replaceChildren(); told = ""; return; }
    tellSession(`Your session ends in ${Math.ceil(left / 60)} min.`, longest <= warning);
  };
  // What stands there is not made anew, and keeps the focus. It is spoken when it comes, in its last minute, at its end.
  let told = "";
  const tellSession = (text, whole) => {
    if (!told || / 1 min|ended/.test(text)) speak(told = text);
    const name = whole ? "a" : "button";
    if (!$(name, session)) {
      const act = document.createElement(name);
      act.textContent = whole ? "Sign in again" : "Stay signed in";
      if (whole) Object.assign(act, { href: `${session.dataset.again}&next=${encodeURIComponent(location.pathname)}`, target: "_blank" });
      else { act.type = "button"; act.addEventListener("click", () => askSession(true).then(() => askSession()).catch(() => {})); }
      session.replaceChildren(document.createElement("span"), act);
    }
    if ($("span", session).textContent !== text) $("span", session).textContent = text;
  };
  const watchSession = () => { if (!document.hidden && Date.now() >= askAt) askSession().catch(() => {}); };
  setInterval(watchSession, 5000);
  document.addEventListener("visibilitychange", watchSession);

  // --- Asking first: the page that asks, as a dialog over this one ---

  document.addEventListener("submit", async (event) => {
    const form = event.target, button = event.submitter;
    if (!live || !button || button.name !== "move" || !["escalate", "resolve"].includes(button.value) || form.closest("dialog")) return;
    event.preventDefault();
    try {
      const reply = await fetch(form.action, { method: "POST", body: new FormData(form, button), redirect: "manual" });
      const card = reply.ok && $(".confirm form.card", new DOMParser().parseFromString(await reply.text(), "text/html"));
      if (!card) { const back = new FormData(form).get("next"); if (back === location.pathname + location.search) location.reload(); else location.assign(back); return; }
      const asking = document.createElement("dialog");
      asking.id = "asking";
      asking.setAttribute("aria-labelledby", "asked");
      asking.append(document.adoptNode(card));
      $("a.button", asking).addEventListener("click", (click) => { click.preventDefault(); asking.close(); });
      asking.addEventListener("close", () => { asking.remove(); button.focus(); });
      document.body.append(asking);
      asking.showModal();
      $("[autofocus]", asking).focus();
    } catch { withMove(form, button).submit(); }
  });
  const withMove = (form, button) => {
    const move = document.createElement("input");
    Object.assign(move, { type: "hidden", name: button.name, value: button.value });
    form.append(move);
    return form;
  };

  // --- Services, suggested as one types ---

  const suggest = (form) => {
    const field = $("[name=service]", form), options = $("datalist", form);
    let wait = 0, asked = "";
    field.addEventListener("input", (event) => {
      const picked = !event.inputType || event.inputType === "insertReplacementText";
      if (picked && [...options.options].some((option) => option.value === field.value)) { form.requestSubmit(); return; }
      clearTimeout(wait);
      wait = setTimeout(async () => {
        const wanted = asked = field.value.trim();
        try {
          const reply = await fetch(`${form.dataset.services}?q=${encodeURIComponent(wanted)}`, { redirect: "error" });
          const names = reply.ok ? (await reply.json()).services : [];
          if (wanted === asked) options.replaceChildren(...names.map((name) => Object.assign(document.createElement("option"), { value: name })));
        } catch { /* what is typed is asked for all the same */ }
      }, 150);
    });
  };

  // --- Menus: closed by Escape, and by whatever is done elsewhere ---

  document.addEventListener("click", (event) => { for (const menu of $$("details.menu[open], details.note[open]")) if (!menu.contains(event.target)) menu.open = false; });
  document.addEventListener("keydown", (event) => {
    const menu = event.key === "Escape" && event.target.closest("details.menu[open], details.note[open]");
    if (menu) { menu.open = false; $("summary", menu).focus(); event.stopImmediatePropagation(); }
  });

  // --- Keys ---

  const dialog = $("#keys"), off = $("[data-keys-off]");
  const press = (name) => {
    if (list) {
      const box = standing() && $("input[name=ids]", standing());  // whoever may only read has none
      if (!chosen().length && box) pick(box, true);
      if (!chosen().length) return;
    }
    const button = $(list ? `#bar button[value=${name}]` : `#act-${name}`);
    if (button) button.click();
  };
  const step = (by) => {
    const all = rows(), at = all.indexOf(standing());
    if (all.length) stand(all[Math.min(all.length - 1, Math.max(0, at < 0 ? (by > 0 ? resume : all.length - 1) : at + by))]);
  };
  const follow = (css) => { const link = standing() && $(css, standing()); if (link) link.click(); };
  const toggleHere = (range) => { const box = standing() && $("input[name=ids]", standing()); if (box) pick(box, !box.checked, range); };
  const filters = () => {
    const fold = $("#show-filters"), first = $("#filters a");
    if (getComputedStyle(fold).display !== "none") fold.click();
    if (first.offsetParent) first.focus();
  };
  const KEYS = {
    j: () => step(1), k: () => step(-1), ArrowDown: () => step(1), ArrowUp: () => step(-1),
    x: () => toggleHere(false), X: () => toggleHere(true),
    o: () => (list ? follow(".c-tickets a[target]") : $("#tickets a[target]") && $("#tickets a[target]").click()),
    a: () => press("acknowledge"), e: () => press("escalate"), r: () => press("resolve"),
    "/": () => $("#q") && $("#q").focus(), f: () => list && filters(),
    p: () => list && pause(), t: () => list && turnTimes(), ".": () => poll(),
    u: () => { if (incident) { place(location.pathname.split("/").at(-2)); location.href = $("#site-name a").href + (stored("asked", TAB) || ""); } },
    "?": () => dialog.showModal(),
    Escape: () => { for (const box of chosen()) box.checked = false; stand(null); tellSelection(); if (document.activeElement) document.activeElement.blur(); },
  };
  document.addEventListener("keydown", (event) => {
    if (!live || event.ctrlKey || event.altKey || event.metaKey || event.isComposing || $("dialog[open]")) return;
    const typing = event.target.closest("input:not([type=checkbox]), textarea, select, [contenteditable]");
    if (typing) { if (event.key === "Escape") typing.blur(); return; }
    if (stored("keys") === "off" && event.key !== "Escape") return;
    const act = KEYS[event.key];
    if (!act) return;
    if (event.key.startsWith("Arrow") && !rows().length) return;
    event.preventDefault();
    act();
  });

  // --- Beginning ---

  const toast = $(".messagelist[role=status]");
  if (toast) setTimeout(() => speak(toast.innerText), 300);  // what is there from the beginning is not spoken
  if (!live) return;
  const help = $("[data-keys]");
  unhide(help);
  help.addEventListener("click", () => dialog.showModal());
  off.checked = stored("keys") === "off";
  off.addEventListener("change", () => store("keys", off.checked ? "off" : "on"));
  if (list) {
    unhide(state);
    unhide($("[data-times]")); unhide($("[data-density]"));
    const density = $("[data-density]");
    const setDensity = (name) => { document.body.classList.toggle("comfortable", name === "comfortable"); density.textContent = name === "comfortable" ? "Compact" : "Comfortable"; };
    setDensity(stored("density") || (matchMedia("(pointer: coarse)").matches ? "comfortable" : "compact"));
    density.addEventListener("click", () => { const next = document.body.classList.contains("comfortable") ? "compact" : "comfortable"; store("density", next); setDensity(next); });
    $("[data-times]").addEventListener("click", turnTimes);
    $("[data-pause]").addEventListener("click", pause);
    $("#news button").addEventListener("click", () => waiting && insertWaiting());
    live.addEventListener("click", (event) => { if (event.target.matches("#rows tbody input[name=ids]")) pick(event.target, event.target.checked, event.shiftKey); });
    live.addEventListener("change", (event) => {
      if (event.target.matches("[data-all]")) for (const box of boxes()) box.checked = event.target.checked;
      if (event.target.matches("[data-all], [name=all]")) tellSelection();
    });
    suggest($("#by-service"));
    store("asked", location.search, TAB);
    document.addEventListener("submit", () => here && place(here));
    goOn();
    addEventListener("pageshow", tellSelection);
    tellSelection();
    sayState();
  } else {
    if (location.hash.startsWith("#act-") && document.getElementById(location.hash.slice(1))) document.getElementById(location.hash.slice(1)).focus();
  }
  document.addEventListener("pointerover", (event) => {
    const cut = event.target.closest("h1, .c-title, .c-service, .c-status");
    if (cut) cut.title = cut.scrollWidth > cut.clientWidth || cut.scrollHeight > cut.clientHeight + 4 ? cut.textContent : "";
  });
  document.addEventListener("visibilitychange", () => { if (document.hidden) clearTimeout(timer); else if (!paused) poll(); });
  setInterval(tellTimes, 30000);
  tellTimes();
  plan();
})();
