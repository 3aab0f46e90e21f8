// Drives the GraphiQL page in a real headless Chromium, as a person would: logs in with a JWT, runs
// the Encrypt example, passes its ciphertext to the Decrypt example and sees the plaintext; reloads
// and finds the edits again; logs out and sees nothing. Also checks that the page violates no
// content security policy, sends no request to another host, and stores nothing in the browser
// except edits without plaintexts, in the tab's session storage.
//
//   BYOK_URL=http://127.0.0.1:3741 BYOK_JWT=… [SCREENSHOT=page.png] node browser.mjs
//
// BYOK_JWT: a token whose default role may encrypt, decrypt (for any record id) and see the health.
// BYOK_TEST_CHROMIUM: the browser (default /usr/bin/chromium).
// BYOK_TEST_DARK=1: use the dark colour scheme.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { check, load, required, run } from "./packages.mjs";

const { chromium } = load("playwright-core");

const PLAINTEXT = "the quick brown fox, ünïcode ☂";
const RECORD = `browser-${process.pid}-${Date.now()}`;
const VARIABLES = ".graphiql-editor-tool .graphiql-editor:not(.hidden)";
const ARGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** Collects every violation of what the page may do. */
async function watch(context, page, origin) {
  const faults = [];
  context.on("request", (request) => {
    const url = new URL(request.url());
    if (url.origin !== origin && url.protocol !== "data:") faults.push(`a request to another host: ${request.url()}`);
  });
  context.on("requestfailed", (request) => faults.push(`a request failed: ${request.url()} ${request.failure()?.errorText}`));
  context.on("response", (response) => {
    if (response.status() >= 400) faults.push(`HTTP ${response.status()} for ${response.url()}`);
  });
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) faults.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => faults.push(`page error: ${error.message}`));
  await page.exposeFunction("reportViolation", (text) => faults.push(text));
  await page.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => {
      window.reportViolation(`content security policy: ${event.violatedDirective} ${event.blockedURI}`);
    });
  });
  return faults;
}

/** Sets the text of one of GraphiQL's editors. */
const setEditor = (page, selector, text) =>
  page.evaluate(([at, value]) => document.querySelector(`${at} .CodeMirror`).CodeMirror.setValue(value), [selector, text]);

/** Runs the operation of the tab `name` with these variables, and returns the JSON shown. */
async function execute(page, name, variables) {
  const isOpen = await page.locator(".graphiql-tab-active", { hasText: name }).count();
  if (!isOpen) await page.locator(".graphiql-tab-button", { hasText: name }).click();
  // GraphiQL reads the operation's name a moment after it has loaded the tab's text.
  await page.waitForFunction(
    (expected) => document.querySelector(".graphiql-query-editor .CodeMirror").CodeMirror.operationName === expected,
    name,
  );
  const shown = () => page.evaluate(() => document.querySelector(".result-window .CodeMirror")?.CodeMirror.getValue() ?? "");
  if (variables) {
    await setEditor(page, VARIABLES, JSON.stringify(variables, null, 2));
  }
  const answered = page.waitForResponse((response) => new URL(response.url()).pathname === "/graphql");
  await page.locator("button.graphiql-execute-button").click();
  const answer = await (await answered).json();
  for (let attempt = 0; attempt < 100; attempt += 1) {
    try {
      const text = await shown();
      if (JSON.stringify(JSON.parse(text)) === JSON.stringify(answer)) return answer;
    } catch {
      // Not there yet.
    }
    await page.waitForTimeout(50);
  }
  throw new Error(`GraphiQL does not show the answer ${JSON.stringify(answer)} but ${await shown()}`);
}

async function visit(context, url, jwt) {
  const page = context.pages()[0] ?? (await context.newPage());
  const faults = await watch(context, page, new URL(url).origin);
  const introspected = page.waitForResponse((response) => new URL(response.url()).pathname === "/graphql");
  const opened = await page.goto(`${url}/graphiql`, { waitUntil: "load" });
  check(opened.status() === 200, "GET /graphiql", opened.status());
  check((await opened.allHeaders())["content-security-policy"]?.startsWith("default-src 'none'"), "no strict policy");
  const schema = await (await introspected).json();
  check(schema.data?.__schema, "GraphiQL could not introspect", schema);

  await page.locator("#token").fill("not a token");
  await page.locator("#login").click();
  check((await page.locator("#problem").textContent()).includes("not a JWT"), "an invalid token was accepted");
  await page.locator("#token").fill(jwt);
  await page.locator("#login").click();
  const whoami = await page.locator("#whoami").textContent();
  check(/\S+ · \S+/.test(whoami), "the page does not show user and role", whoami);

  const health = await execute(page, "Health");
  check(!health.errors, "the Health example fails", health);
  const example = await execute(page, "Encrypt");
  check(!example.errors, "the Encrypt example fails as it stands", example);
  const encrypted = await execute(page, "Encrypt", { plaintext: PLAINTEXT, recordId: RECORD, field: "note" });
  const ciphertext = encrypted.data?.byokEncrypt?.ciphertext;
  check(ciphertext?.startsWith("byok:v1:"), "the Encrypt example fails with other variables", encrypted);
  const given = { ciphertext, recordId: RECORD, field: "note" };
  await page.locator(".graphiql-tab-button", { hasText: "Decrypt" }).click();
  await page.waitForFunction(
    ([at, expected]) => document.querySelector(`${at} .CodeMirror`).CodeMirror.getValue().includes(expected),
    [VARIABLES, ciphertext],
  );
  const started = await execute(page, "Decrypt");
  check(started.data?.byokDecrypt?.plaintext === PLAINTEXT, "the Decrypt tab does not start with the new token", started);
  const unfinished = await execute(page, "Decrypt", { recordId: RECORD });
  check(unfinished.errors?.[0]?.message.includes('"$ciphertext" is required'), "a missing variable is not named", unfinished);
  const decrypted = await execute(page, "Decrypt", given);
  check(decrypted.data?.byokDecrypt?.plaintext === PLAINTEXT, "the Decrypt example returns another plaintext", decrypted);
  if (process.env.SCREENSHOT) await page.screenshot({ path: process.env.SCREENSHOT });

  const stored = await page.evaluate(async () => ({
    local: Object.entries(localStorage),
    session: Object.entries(sessionStorage),
    databases: await indexedDB.databases(),
    cookies: document.cookie,
  }));
  check(
    !stored.local.length && stored.session.length === 1 && !stored.databases.length && !stored.cookies,
    "the page left something in the browser's storage",
    stored,
  );
  check(stored.session[0][1].includes(ciphertext), "the page does not keep the edits", stored);
  for (const secret of [PLAINTEXT, "sensitive-data", jwt]) {
    check(!JSON.stringify(stored).includes(secret), "the page keeps a plaintext or a token", stored);
  }
  check((await context.cookies()).length === 0, "the server set a cookie");
  const held = await page.evaluate(() => document.documentElement.outerHTML + document.querySelector("#token").value);
  check(!held.includes(jwt), "the page shows the token after login");

  await page.reload({ waitUntil: "load" });
  await page.locator(".graphiql-tab-button", { hasText: "Decrypt" }).click();
  await page.waitForFunction(
    ([at, expected]) => document.querySelector(`${at} .CodeMirror`)?.CodeMirror.getValue().includes(expected),
    [VARIABLES, ciphertext],
  );
  await page.locator("#token").fill(jwt);
  await page.locator("#login").click();

  await page.locator("#logout").click();
  check((await page.evaluate(() => sessionStorage.length)) === 0, "the page keeps edits after logout");
  check((await page.locator("#whoami").textContent()) === "", "the page still shows a user after logout");
  check(faults.length === 0, "the page did something that it may not", faults); // Checked before a refusal, which the browser may log.
  const refused = await execute(page, "Decrypt", given);
  check(refused.errors && !refused.data?.byokDecrypt, "a decrypt without a token was served", refused);
  return `ok: ${whoami} encrypted and decrypted in ${context.browser()?.version() ?? "Chromium"}`;
}

await run(async () => {
  const url = required("BYOK_URL").replace(/\/$/, "");
  const jwt = required("BYOK_JWT");
  const profile = await mkdtemp(join(tmpdir(), "byok-browser-"));
  try {
    const context = await chromium.launchPersistentContext(profile, {
      executablePath: process.env.BYOK_TEST_CHROMIUM || "/usr/bin/chromium",
      args: ARGS,
      viewport: { width: 1280, height: 800 },
      colorScheme: process.env.BYOK_TEST_DARK ? "dark" : "light",
      timeout: 60_000,
    });
    try {
      context.setDefaultTimeout(20_000);
      return await visit(context, url, jwt);
    } finally {
      await context.close();
    }
  } finally {
    await rm(profile, { recursive: true, force: true, maxRetries: 5 });
  }
});
