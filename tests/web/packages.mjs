// Where these scripts get their npm packages and settings from.
//
// The packages are installed outside the checkout, so `import "graphql"` would not find them (an ES
// module does not read NODE_PATH). `load` resolves from BYOK_TEST_NODE_MODULES, the path of that
// node_modules folder, or from NODE_PATH. All packages are loaded as CommonJS, so that they share
// one `graphql`.

import { createRequire } from "node:module";
import { delimiter, join, resolve } from "node:path";

const modules = process.env.BYOK_TEST_NODE_MODULES || (process.env.NODE_PATH ?? "").split(delimiter)[0];

/** Loads one npm package by name. */
export function load(name) {
  if (!modules) throw new Error("set BYOK_TEST_NODE_MODULES to the node_modules folder that holds the test packages");
  return createRequire(join(resolve(modules), "..", "from-here.js"))(name);
}

/** The value of an environment variable that must be set. */
export function required(name) {
  const value = process.env[name];
  if (!value) throw new Error(`set ${name}`);
  return value;
}

/** Runs `main`; prints what it returns, or why it failed, and sets the exit code: 0 or 1. */
export async function run(main) {
  try {
    console.log(await main());
  } catch (error) {
    console.error(error?.stack ?? error);
    process.exitCode = 1;
  }
}

/** Throws an error with `message` and `seen` unless `condition` holds. */
export function check(condition, message, seen) {
  if (!condition) throw new Error(seen === undefined ? message : `${message}\nseen: ${JSON.stringify(seen, null, 2)}`);
}
