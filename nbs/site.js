// Search, and where a page opens: the sidebar at the current page, a deep link at its place.
(() => {
  "use strict";

  // ---- which pages and sections a query finds. A page of the index is [address, title, keywords, other words, sections]
  const parts = (s) => s.toLowerCase().match(/[a-z0-9]+(?:[-_.+][a-z0-9]+)*/g) || [];
  const flat = (w) => w.replace(/[-_.+]/g, "");
  const bag = (s) => {                                   // words, also without their hyphens, and the pieces between them
    const res = new Set();
    for (const w of parts(s)) { res.add(w); res.add(flat(w)); for (const p of [...w.split(/[-_.+]/), ...w.split(/[.+]/)]) if (p.length > 1) { res.add(p); res.add(flat(p)); } }
    return res;
  };
  const hit = (words, w) => {                            // 1 for the word, less for its beginning
    if (words.has(w) || words.has(flat(w))) return 1;
    if (w.length < 3) return 0;
    for (const o of words) if (o.startsWith(w)) return 0.3 + 0.5 * w.length / o.length;
    return 0;
  };
  const prepared = (index) => index.map(([href, title, keys, rest, sections]) => ({
    href, title, titleBag: bag(title), rest: new Set(rest.split(" ")),
    keys: keys.toLowerCase().split(", ").filter(Boolean), keyBag: bag(keys),
    sections: sections.map(([anchor, head, text]) => ({ anchor, head, text, headBag: bag(head), textBag: bag(text) })),
  }));
  const rank = (pages, query, limit) => {
    const said = parts(query), whole = said.map(flat).join(" "), found = [];
    if (!said.length) return [];
    const rare = said.map((w) => {                       // a word that few sections hold says more
      let n = 0;
      for (const p of pages) for (const s of p.sections) if (hit(s.textBag, w) === 1 || hit(s.headBag, w) === 1) n += 1;
      return 1 + Math.log(1 + 2000 / (1 + n)) / 4;
    });
    for (const p of pages) {
      const pageHit = said.map((w) => Math.max(9 * hit(p.titleBag, w), 8 * hit(p.keyBag, w), p.rest.has(w) || p.rest.has(flat(w)) ? 1 : 0));
      const exact = p.keys.some((k) => parts(k).map(flat).join(" ") === whole) ? 60 : parts(p.title).map(flat).join(" ") === whole ? 50 : 0;
      p.sections.forEach((s, i) => {
        const own = said.map((w) => Math.max(7 * hit(s.headBag, w), 2 * hit(s.textBag, w)));
        const both = said.map((w, j) => rare[j] * Math.max(own[j], i ? 0.4 * pageHit[j] : pageHit[j]));
        const matched = both.filter((v) => v > 0).length / said.length;
        if (matched < 1 || (i && !own.some((v) => v > 0))) return;
        const name = parts(s.head).map(flat).join(" ") === whole ? 25 : 0;
        found.push({ page: p, section: s, score: both.reduce((a, b) => a + b, 0) + name + (i ? 0 : exact) });
      });
    }
    found.sort((a, b) => b.score - a.score);
    const count = new Map();                              // at most three places of one page
    return found.filter((f) => { const n = (count.get(f.page) || 0) + 1; count.set(f.page, n); return n <= 3; }).slice(0, limit || 20);
  };
  if (typeof module !== "undefined") { module.exports = { rank, prepared }; return; }

  const $ = (sel, root = document) => root.querySelector(sel);
  const $$ = (sel, root = document) => Array.from(root.querySelectorAll(sel));
  const offset = ($('meta[name="smalldocs:offset"]') || { content: "./" }).content;

  // ---- the search box
  let pages = null;
  const load = async () => {
    if (pages) return;
    try { pages = prepared(await (await fetch(offset + "search.json")).json()); } catch (e) { pages = []; }
  };
  const escape = (s) => s.replace(/[&<>"']/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" }[c]));
  const marked = (text, query) => {
    const words = query.split(/\s+/).filter((w) => w.length > 1).map((w) => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    if (!words.length) return escape(text);
    const parts = text.split(new RegExp("(" + words.join("|") + ")", "i"));
    return parts.map((t, i) => i % 2 ? "<mark>" + escape(t) + "</mark>" : escape(t)).join("");
  };
  $$(".site-search").forEach((box) => {
    const input = $("input", box), results = $(".site-search-results", box);
    results.id = "site-search-results";
    Object.entries({ role: "combobox", "aria-expanded": "false", "aria-controls": results.id, "aria-autocomplete": "list" }).forEach(([k, v]) => input.setAttribute(k, v));
    results.setAttribute("role", "listbox");
    results.setAttribute("aria-label", "Places found");
    let active = -1;
    const show = (html) => { results.innerHTML = html; results.classList.add("show"); input.setAttribute("aria-expanded", "true"); active = -1; };
    const hide = () => { results.classList.remove("show"); input.setAttribute("aria-expanded", "false"); };
    const run = async () => {
      const q = input.value.trim();
      if (q.length < 2) { hide(); return; }
      await load();
      const hits = rank(pages, q, 20);
      if (!hits.length) { show('<div class="search-none" role="option" aria-disabled="true">Nothing found</div>'); return; }
      show(hits.map(({ page, section }, i) => `<a class="search-result" role="option" id="site-search-${i}" href="${offset}${page.href}${section.anchor ? "#" + encodeURIComponent(section.anchor) : ""}">` +
        `<div class="search-result-title">${escape(page.title)}</div>` +
        (section.head ? `<div class="search-result-section">${escape(section.head)}</div>` : "") +
        `<div class="search-result-text">${marked(section.text, q)}</div></a>`).join(""));
    };
    let timer = null;
    input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(run, 100); });
    input.addEventListener("focus", () => { load(); if (input.value.trim().length > 1) run(); });
    input.addEventListener("keydown", (ev) => {
      const items = $$(".search-result", results);
      if (ev.key === "Escape") { hide(); input.blur(); return; }
      if (!items.length) return;
      if (ev.key === "ArrowDown" || ev.key === "ArrowUp") {
        ev.preventDefault();
        active = (active + (ev.key === "ArrowDown" ? 1 : -1) + items.length) % items.length;
        items.forEach((it, i) => { it.classList.toggle("active", i === active); it.setAttribute("aria-selected", String(i === active)); });
        input.setAttribute("aria-activedescendant", items[active].id);
        items[active].scrollIntoView({ block: "nearest" });
      } else if (ev.key === "Enter") { ev.preventDefault(); (items[active] || items[0]).click(); }
    });
    document.addEventListener("click", (ev) => { if (!box.contains(ev.target)) hide(); });
  });
  document.addEventListener("keydown", (ev) => {
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName);
    if ((ev.key === "/" && !typing && !ev.ctrlKey && !ev.metaKey) || ((ev.metaKey || ev.ctrlKey) && ev.key === "k")) {
      const box = $$(".site-search input").find((b) => b.offsetParent !== null);
      if (box) { ev.preventDefault(); box.focus(); }
    }
  });

  // ---- the sidebar opens at the current page
  const sidebar = $("#quarto-sidebar"), current = sidebar && $(".sidebar-link.active", sidebar);
  const toCurrent = () => {
    if (!current) return;
    const a = current.getBoundingClientRect(), b = sidebar.getBoundingClientRect();
    if (a.top < b.top || a.bottom > b.bottom) sidebar.scrollTop += a.top - b.top - sidebar.clientHeight / 3;
  };
  toCurrent();
  window.addEventListener("load", toCurrent);
  const menu = $(".quarto-btn-toggle"), glass = $("#quarto-sidebar-glass");
  if (menu && sidebar) {
    const told = () => {                                    // closed on a phone, its links are not on the way of the tab key
      const open = sidebar.classList.contains("show"), narrow = matchMedia("(max-width: 991.98px)").matches;
      menu.setAttribute("aria-expanded", String(open));
      sidebar.style.visibility = narrow && !open ? "hidden" : "";
    };
    menu.addEventListener("click", () => setTimeout(() => { told(); if (sidebar.classList.contains("show")) toCurrent(); }, 0));
    if (glass) glass.addEventListener("click", () => setTimeout(told, 0));
    document.addEventListener("keydown", (ev) => {
      if (ev.key === "Escape" && sidebar.classList.contains("show")) { menu.click(); menu.focus(); }
    });
    window.addEventListener("resize", told);
    told();
  }

  // ---- a deep link lands at its place, also when formulas and pictures have moved the text since
  let moved = false;
  ["wheel", "touchstart", "keydown", "mousedown"].forEach((k) => window.addEventListener(k, () => { moved = true; }, { once: true, passive: true }));
  const land = () => {
    const to = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!to || moved) return;
    for (let d = to.closest("details"); d; d = d.parentElement.closest("details")) d.open = true;
    to.scrollIntoView({ block: "start" });
  };
  window.addEventListener("load", () => { land(); if (document.fonts && document.fonts.ready) document.fonts.ready.then(land); });
  window.addEventListener("hashchange", () => { moved = false; land(); });
  $$(".page-contents a").forEach((a) => a.addEventListener("click", () => { a.closest("details").open = false; }));

  // ---- what scrolls sideways can be reached by the keyboard
  const reachable = () => $$("main pre, main .sd-table, main .cell-output-display, main table, main .katex-display").forEach((o) => {
    const scrolls = o.scrollWidth > o.clientWidth + 1 && getComputedStyle(o).overflowX !== "visible";
    if (scrolls && !o.hasAttribute("tabindex")) {
      o.tabIndex = 0;
      if (!o.hasAttribute("role") && o.tagName !== "TABLE") { o.setAttribute("role", "group"); o.setAttribute("aria-label", "Scrolls sideways"); }
    }
  });
  window.addEventListener("load", reachable);
  window.addEventListener("resize", reachable);
})();
