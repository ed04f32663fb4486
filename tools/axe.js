// Look at the built site in a browser.   node tools/axe.js [axe|width|anchors|shots] [page ...]
//   axe      axe-core on ten pages, wide and narrow, light and dark: stops at a violation that is critical or serious
//   width    what is wider than its box at 1280 pixels, on every page; the page itself must never scroll sideways at 1280 or 390
//   anchors  deep links of ten pages land below the header, wide and narrow
//   shots    pictures of ten pages in .cache/shots
// Needs `make docs`, a chromium (or CHROMIUM=path) and npm, which fetches axe-core and puppeteer-core into .cache/axe once.
"use strict";
const fs = require("fs"), path = require("path"), http = require("http"), { spawnSync } = require("child_process"), { createRequire } = require("module");
const root = path.dirname(__dirname), docs = path.join(root, "_docs"), home = path.join(root, ".cache", "axe");
const PAGES = ["index", "tutorials/first_model", "data/samples", "data/clothes_changing_sets", "evaluation/metrics", "evaluation/ranked_lists",
  "training/learner", "baselines/cal", "hsgl/results", "data_cards/prcc"];
const SIZES = { wide: { width: 1280, height: 800 }, narrow: { width: 390, height: 844 } };

const found = (names) => names.find((n) => n && (n.includes("/") ? fs.existsSync(n) : spawnSync("which", [n]).status === 0));
const stop = (text) => { console.log("axe: " + text); process.exit(2); };
const chromium = found([process.env.CHROMIUM, "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]);
if (!chromium) stop("no chromium is here; nothing was looked at");
if (!fs.existsSync(path.join(docs, "index.html"))) stop("_docs is not built: make docs");
if (!fs.existsSync(path.join(home, "node_modules", "axe-core"))) {
  fs.mkdirSync(home, { recursive: true });
  const res = spawnSync("npm", ["install", "--prefix", home, "--no-audit", "--no-fund", "--silent", "axe-core@4", "puppeteer-core@24"], { stdio: ["ignore", "ignore", "inherit"] });
  if (res.status !== 0) stop("npm could not fetch axe-core and puppeteer-core; nothing was looked at");
}
const load = createRequire(path.join(home, "x.js")), puppeteer = load("puppeteer-core");

const KINDS = { html: "text/html", css: "text/css", js: "text/javascript", json: "application/json", png: "image/png", svg: "image/svg+xml", woff2: "font/woff2" };
const server = http.createServer((req, res) => {
  const file = path.join(docs, decodeURIComponent(req.url.split(/[?#]/)[0]).replace(/\/$/, "/index.html"));
  if (!file.startsWith(docs) || !fs.existsSync(file) || fs.statSync(file).isDirectory()) { res.writeHead(404); res.end(); return; }
  res.writeHead(200, { "content-type": KINDS[file.split(".").pop()] || "application/octet-stream" });
  fs.createReadStream(file).pipe(res);
});
const all = (dir = docs) => fs.readdirSync(dir, { withFileTypes: true }).flatMap((e) => e.name === "site_libs" ? [] : e.isDirectory() ? all(path.join(dir, e.name))
  : e.name.endsWith(".html") ? [path.relative(docs, path.join(dir, e.name)).replace(/\.html$/, "")] : []);

const open = async (browser, base, page, size, scheme, hash = "") => {
  const tab = await browser.newPage();
  await tab.setViewport(SIZES[size]);
  await tab.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  tab.outside = [];
  tab.on("request", (r) => { if (!/^(data|blob):/.test(r.url()) && !r.url().startsWith(base)) tab.outside.push(r.url()); });
  await tab.goto(`${base}${page}.html${hash}`, { waitUntil: "load", timeout: 60000 });
  await new Promise((r) => setTimeout(r, 150));
  return tab;
};

const jobs = {
  async axe(browser, base, pages) {
    const source = fs.readFileSync(load.resolve("axe-core"), "utf8"), counts = {};
    let bad = 0;
    for (const page of pages) for (const size of Object.keys(SIZES)) for (const scheme of ["light", "dark"]) {
      const tab = await open(browser, base, page, size, scheme);
      await tab.evaluate(source);
      const { violations } = await tab.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
      for (const v of violations) {
        counts[v.impact] = (counts[v.impact] || 0) + 1;
        if (v.impact === "critical" || v.impact === "serious") bad += 1;
        console.log(`${page} ${size} ${scheme}: ${v.impact} ${v.id} (${v.nodes.length}): ${v.nodes[0].html.slice(0, 160).replace(/\s+/g, " ")}`
          + (v.id === "color-contrast" ? ` ${v.nodes[0].any[0].message}` : ""));
      }
      for (const u of tab.outside) { bad += 1; console.log(`${page} ${size} ${scheme}: asks ${u}`); }
      await tab.close();
    }
    console.log(`axe: ${pages.length} pages, wide and narrow, light and dark: ${JSON.stringify(counts)}`);
    return bad;
  },
  async width(browser, base, pages, given) {
    let bad = 0;
    for (const page of given ? pages : all()) for (const size of Object.keys(SIZES)) {
      const tab = await open(browser, base, page, size, "light");
      const res = await tab.evaluate((wide) => {
        const out = [], root = document.documentElement;
        if (root.scrollWidth > root.clientWidth + 1) out.push(`page ${root.scrollWidth} > ${root.clientWidth}`);
        const cut = (sel, name) => document.querySelectorAll(sel).forEach((o) => {
          if (o.clientWidth && o.checkVisibility({ contentVisibilityAuto: true }) && o.scrollWidth > o.clientWidth + 1) out.push(`${name} ${o.scrollWidth} > ${o.clientWidth}: ${o.innerText.trim().slice(0, 60).replace(/\s+/g, " ")}`);
        });
        if (wide) { cut("main .cell-output pre", "output"); cut("main pre.sourceCode", "code"); cut("main .math.display, main .katex-display", "formula"); cut("main .sd-table, main .cell-output-display", "table"); }
        return out;
      }, size === "wide");
      for (const o of res) { console.log(`${page} ${size}: ${o}`); if (o.startsWith("page")) bad += 1; }
      await tab.close();
    }
    return bad;
  },
  async anchors(browser, base, pages) {
    let bad = 0;
    for (const page of pages) for (const size of Object.keys(SIZES)) {
      const first = await open(browser, base, page, size, "light");
      const ids = await first.evaluate(() => [...document.querySelectorAll("main [data-anchor-id]")].map((o) => o.dataset.anchorId));
      await first.close();
      for (const id of [ids[0], ids[Math.floor(ids.length / 2)], ids[ids.length - 2]].filter(Boolean)) {
        const tab = await open(browser, base, page, size, "light", "#" + encodeURIComponent(id));
        await new Promise((r) => setTimeout(r, 400));
        const [top, header, rest] = await tab.evaluate((i) => {
          const o = document.querySelector(`[data-anchor-id="${i}"]`).getBoundingClientRect(), root = document.documentElement;
          return [o.top, document.querySelector("#quarto-header").getBoundingClientRect().bottom, root.scrollHeight - root.clientHeight - window.scrollY];
        }, id);
        const ok = top >= header - 1 && (top < header + 120 || rest < 3);
        if (!ok) { bad += 1; console.log(`${page}#${id} ${size}: heading at ${Math.round(top)}, header ends at ${Math.round(header)}`); }
        await tab.close();
      }
    }
    console.log(`axe: deep links of ${pages.length} pages: ${bad} land elsewhere`);
    return bad;
  },
  async shots(browser, base, pages) {
    const to = path.join(root, ".cache", "shots");
    fs.mkdirSync(to, { recursive: true });
    for (const page of pages) for (const size of Object.keys(SIZES)) for (const scheme of ["light", "dark"]) {
      const tab = await open(browser, base, page, size, scheme);
      await tab.screenshot({ path: path.join(to, `${page.replace(/\//g, "-")}-${size}-${scheme}.png`) });
      await tab.close();
    }
    console.log(`axe: pictures in ${path.relative(root, to)}`);
    return 0;
  },
};

(async () => {
  const [job = "axe", ...given] = process.argv.slice(2);
  if (!jobs[job]) stop(`there is no job ${job}: ${Object.keys(jobs).join(", ")}`);
  const own = given.length ? given : PAGES;
  const missing = own.filter((p) => !fs.existsSync(path.join(docs, `${p}.html`)));
  if (missing.length) stop(`no page ${missing.join(", ")}`);
  await new Promise((r) => server.listen(0, "127.0.0.1", r));
  const base = `http://127.0.0.1:${server.address().port}/`;
  const browser = await puppeteer.launch({ executablePath: spawnSync("which", [chromium]).stdout.toString().trim() || chromium, headless: true, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
  let bad = 1;
  try { bad = await jobs[job](browser, base, own, given.length > 0); }
  finally { await browser.close(); server.close(); }
  process.exit(bad ? 1 : 0);
})();
