// A stand-in for Google Cloud KMS: REST v1, the OAuth token endpoint, the metadata server and IAM credentials, on one port
// of this machine. The cryptography, the token checks and the refusals are real; the durations are not: what a test
// changes is true at once. Held to Google's own client by `vendor_check.py`. A test tool, never part of byok.
//
//   node kms.mjs [--port N]        prints its address as the first line
//
// Whatever `/v1/…` takes is taken at `/control/v1/…` without a token and without quota: that is the customer's hand.
// The rest of `/control/…` (POST, JSON) is what only Google itself could do:
//
//   keypair {}                                   a fresh key pair (PEM)
//   account {email, public_key?, kid?, disabled?, deleted?}   registers or changes one; answers its key file's fields
//   user {email, refresh_token, client_id, client_secret, revoked?}
//   token {email, scopes?, seconds?}             a token without a login
//   settings {token_seconds?, machine?, machine_scopes?}      `machine`: who the metadata server speaks for
//   revoke {email?}                              ends every token (of one)
//   quota {reads?, crypto?, window_ms?, retry_after?}         limits of a window; 300 and 60,000 a minute at first
//   fault {on, times?, delay_ms?, status?, body?, headers?, refuse?, alter?, alter_request?}   for the next calls
//   calm {}                                      takes back the faults that were not met yet
//   counters {}                                  calls by method since the start, refused ones included

import { createServer } from "node:http";
import { Identity } from "./identity.mjs";
import { Keys } from "./keys.mjs";
import { atTheDoor, errorInfo, OAuthRefusal, quotaFailure, Refusal } from "./status.mjs";

const MAX_BODY = 1 << 20;
const KMS_SCOPE = "https://www.googleapis.com/auth/cloudkms";
const IAM_SCOPE = "https://www.googleapis.com/auth/iam";

const KEY = "projects/[^/:]+/locations/[^/:]+/keyRings/[^/:]+/cryptoKeys/[^/:]+";
const VERSION = `${KEY}/cryptoKeyVersions/[^/:]+`;
const RING = "projects/[^/:]+/locations/[^/:]+/keyRings/[^/:]+";
const keys = new Keys();
let identity; // has to know its address
const counters = {};
const faults = [];
const quota = { reads: 300, crypto: 60_000, window_ms: 60_000, retry_after: null, began: Date.now(), used: { reads: 0, crypto: 0 } };

// method, path, name, permission, on what, quota, what it does
const METHODS = [
  ["POST", `(${VERSION}|${KEY}):encrypt`, "encrypt", "cloudkms.cryptoKeyVersions.useToEncrypt", "crypto",
    ([name], body, _, alter) => keys.encrypt(name, body, alter)],
  ["POST", `(${KEY}):decrypt`, "decrypt", "cloudkms.cryptoKeyVersions.useToDecrypt", "crypto",
    ([name], body, _, alter) => keys.decrypt(name, body, alter)],
  ["GET", `(${KEY})`, "getCryptoKey", "cloudkms.cryptoKeys.get", "reads", ([name]) => keys.key(name)],
  ["GET", `(${VERSION})`, "getCryptoKeyVersion", "cloudkms.cryptoKeyVersions.get", "reads", ([name]) => keys.version(name)],
  ["GET", `(${KEY})/cryptoKeyVersions`, "listCryptoKeyVersions", "cloudkms.cryptoKeyVersions.list", "reads", ([name]) => keys.versions(name)],
  ["POST", `(projects/[^/]+/locations/[^/]+)/keyRings`, "createKeyRing", "cloudkms.keyRings.create", null,
    ([parent], _, query) => keys.createRing(`${parent}/keyRings/${query.get("keyRingId")}`)],
  ["POST", `(${RING})/cryptoKeys`, "createCryptoKey", "cloudkms.cryptoKeys.create", null,
    ([parent], body, query) => keys.createKey(`${parent}/cryptoKeys/${query.get("cryptoKeyId")}`, body)],
  ["POST", `(${KEY})/cryptoKeyVersions`, "createCryptoKeyVersion", "cloudkms.cryptoKeyVersions.create", null, ([name]) => keys.createVersion(name)],
  ["POST", `(${KEY}):updatePrimaryVersion`, "updatePrimaryVersion", "cloudkms.cryptoKeys.update", null,
    ([name], body) => keys.setPrimary(name, body.cryptoKeyVersionId)],
  ["PATCH", `(${VERSION})`, "updateCryptoKeyVersion", "cloudkms.cryptoKeyVersions.update", null, ([name], body) => keys.setState(name, body.state)],
  ["POST", `(${VERSION}):destroy`, "destroyCryptoKeyVersion", "cloudkms.cryptoKeyVersions.destroy", null, ([name]) => keys.destroy(name)],
  ["POST", `(${VERSION}):restore`, "restoreCryptoKeyVersion", "cloudkms.cryptoKeyVersions.restore", null, ([name]) => keys.restore(name)],
  ["DELETE", `(${KEY})`, "deleteCryptoKey", "cloudkms.cryptoKeys.delete", null, ([name]) => keys.remove(name)],
  ["POST", `(${KEY}|${RING}|projects/[^/:]+|projects/-/serviceAccounts/[^/:]+):setIamPolicy`, "setIamPolicy", "cloudkms.cryptoKeys.setIamPolicy", null,
    ([name], body) => identity.setPolicy(name, body.policy?.bindings ?? [])],
  ["GET", `(${KEY}|${RING}):getIamPolicy`, "getIamPolicy", "cloudkms.cryptoKeys.getIamPolicy", "reads",
    ([name]) => ({ version: 1, etag: "ACAB", bindings: identity.policies.get(name) ?? [] })],
  // Needs no right; answers which of those asked for the caller has.
  ["POST", `(${KEY}|${RING}):testIamPermissions`, "testIamPermissions", null, "reads",
    ([name], body, _, __, caller) => ({ permissions: (body.permissions ?? []).filter((one) => identity.permissions(caller, name).has(one)) })],
];

async function serve(request, url, body) {
  const path = decodeURIComponent(url.pathname);
  if (path === "/token") {
    await pass("token");
    return { code: 200, body: identity.token(new URLSearchParams(body.toString())) };
  }
  if (path === "/" || path.startsWith("/computeMetadata/")) {
    if (path !== "/") await pass("metadata");
    const answer = identity.metadata(path, request.headers, url.searchParams.get("recursive") === "true");
    return { headers: { "Metadata-Flavor": "Google", Server: "Metadata Server for VM" }, ...answer };
  }
  const impersonated = /^\/v1\/projects\/-\/serviceAccounts\/([^/:]+):generateAccessToken$/.exec(path);
  if (impersonated && request.method === "POST") {
    await pass("generateAccessToken");
    const caller = identity.caller(request.headers, "google.iam.credentials.v1.IAMCredentials.GenerateAccessToken", [IAM_SCOPE]);
    return { code: 200, body: identity.generateAccessToken(impersonated[1], json(body), caller) };
  }
  const control = /^\/control\/v1\/(.*)$/.exec(path);
  const rest = control?.[1] ?? /^\/v1\/(.*)$/.exec(path)?.[1];
  for (const [verb, pattern, name, permission, kind, act] of METHODS) {
    const match = rest !== undefined && request.method === verb && new RegExp(`^${pattern}$`).exec(rest);
    if (!match) continue;
    if (control) return { code: 200, body: act(match.slice(1), json(body), url.searchParams, null, null) };
    const fault = await pass(name);
    const method = `google.cloud.kms.v1.KeyManagementService.${name[0].toUpperCase()}${name.slice(1)}`;
    const caller = identity.caller(request.headers, method, [KMS_SCOPE]);
    spend(kind, match[1].split("/")[1]);
    if (permission) identity.require(caller, permission, match[1]);
    const answer = act(match.slice(1), json(body), url.searchParams, fault?.alter_request, caller);
    return { code: 200, body: altered(answer, fault?.alter) };
  }
  if (path.startsWith("/control/") && request.method === "POST") return { code: 200, body: steer(path.slice(9), json(body)) };
  // Google's front answers what matches no method with a page.
  return { code: 404, type: "text/html; charset=UTF-8", text: "<!DOCTYPE html><title>Error 404 (Not Found)!!1</title><p>The requested URL was not found on this server. <ins>That’s all we know.</ins>" };
}

function json(body) {
  if (!body.length) return {};
  try {
    const value = JSON.parse(body.toString());
    if (value && typeof value === "object" && !Array.isArray(value)) return value;
  } catch { /* the same as below */ }
  throw new Refusal("INVALID_ARGUMENT", "Invalid JSON payload received. Unknown name or unexpected token.");
}

/** Counts a call, and does what a fault asks for before the call is looked at. */
async function pass(name) {
  counters[name] = (counters[name] ?? 0) + 1;
  const at = faults.findIndex(({ on }) => on === name || on === "any");
  if (at < 0) return null;
  const fault = faults[at];
  if (--fault.times <= 0) faults.splice(at, 1);
  if (fault.delay_ms) await new Promise((done) => setTimeout(done, fault.delay_ms));
  if (fault.refuse) {
    const { status, reason, domain = "googleapis.com", metadata = {}, details, message = "", headers } = fault.refuse;
    throw new Refusal(status, message, details ?? (reason ? [errorInfo(reason, domain, metadata)] : []), headers);
  }
  if (fault.status) throw Object.assign(new Error("as told"), { code: fault.status, headers: fault.headers ?? {}, raw: fault.body ?? "" });
  return fault;
}

/** Hosting projects have their limits by the second; one window is enough to see what a caller makes of it. */
function spend(kind, project) {
  if (!kind) return;
  if (Date.now() - quota.began >= quota.window_ms) Object.assign(quota, { began: Date.now(), used: { reads: 0, crypto: 0 } });
  if (++quota.used[kind] <= quota[kind]) return;
  counters.throttled = (counters.throttled ?? 0) + 1;
  const what = kind === "reads" ? "Read requests" : "Cryptographic requests";
  const headers = quota.retry_after === null ? {} : { "Retry-After": String(quota.retry_after) };
  const refusal = atTheDoor("RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED",
    `Quota exceeded for quota metric '${what}' and limit '${what} per minute' of service 'cloudkms.googleapis.com' for consumer 'project_number:1'.`,
    { consumer: `projects/${project}` }, headers);
  refusal.details.push(quotaFailure(`project:${project}`, what));
  throw refusal;
}

/** The answer with one thing wrong in it. */
function altered(answer, how) {
  const flipped = (text) => { const bytes = Buffer.from(text, "base64"); bytes[0] ^= 1; return bytes.toString("base64"); };
  switch (how) {
    case undefined: return answer;
    case "ciphertext": case "plaintext": return { ...answer, [how]: flipped(answer[how]) };
    case "ciphertextCrc32c": case "plaintextCrc32c": return { ...answer, [how]: String((Number(answer[how]) ^ 1) >>> 0) };
    case "name": return { ...answer, name: answer.name.replace("/cryptoKeys/", "/cryptoKeys/not-") };
    case "version": return { ...answer, name: answer.name.replace(/\d+$/, (number) => Number(number) + 1) };
    default: { // a field is missing
      const { [how]: _, ...rest } = answer;
      return rest;
    }
  }
}

function steer(what, body) {
  switch (what) {
    case "keypair": return Identity.keyPair();
    case "account": {
      const file = identity.register(body);
      const account = identity.accounts.get(body.email);
      for (const flag of ["disabled", "deleted"]) if (flag in body) account[flag] = body[flag];
      return file;
    }
    case "user": return identity.users.set(body.refresh_token, body) && {};
    case "token": return identity.issue(body.email, body.scopes ?? ["https://www.googleapis.com/auth/cloud-platform"], body.seconds);
    case "settings":
      identity.tokenSeconds = body.token_seconds ?? identity.tokenSeconds;
      identity.machine = body.machine ?? identity.machine;
      identity.machineScopes = body.machine_scopes ?? identity.machineScopes;
      return {};
    case "revoke":
      for (const token of identity.tokens.values()) token.revoked ||= !body.email || token.email === body.email;
      return {};
    case "quota": return Object.assign(quota, { began: Date.now(), used: { reads: 0, crypto: 0 } }, body);
    case "fault": return { pending: faults.push({ times: 1, ...body }) };
    case "calm": return { dropped: faults.splice(0).length };
    case "counters": return counters;
    default: throw new Refusal("NOT_FOUND", `no such control: ${what}`);
  }
}

const server = createServer(async (request, response) => {
  let answer;
  try {
    const chunks = [];
    let length = 0;
    for await (const chunk of request) {
      chunks.push(chunk);
      if ((length += chunk.length) > MAX_BODY) throw new Refusal("INVALID_ARGUMENT", "Request payload size exceeds the limit.");
    }
    answer = await serve(request, new URL(request.url, "http://stand.in"), Buffer.concat(chunks));
  } catch (error) {
    if (error instanceof Refusal || error instanceof OAuthRefusal) answer = { code: error.code, headers: error.headers, body: error.body() };
    else if (error.raw !== undefined) answer = { code: error.code, headers: error.headers, text: error.raw, type: error.headers["Content-Type"] ?? "application/json" };
    else answer = { code: 500, body: new Refusal("INTERNAL", String(error.stack)).body() };
  }
  const text = answer.text ?? JSON.stringify(answer.body);
  response.writeHead(answer.code, { "Content-Type": answer.type ?? "application/json; charset=UTF-8", "Content-Length": Buffer.byteLength(text), ...answer.headers });
  response.end(text);
});
server.keepAliveTimeout = 60_000;
const asked = process.argv.indexOf("--port");
server.listen(asked < 0 ? 0 : Number(process.argv[asked + 1]), "127.0.0.1", () => {
  const address = `http://127.0.0.1:${server.address().port}`;
  identity = new Identity(address);
  console.log(address);
});
// Ends with whoever started it: a test that was killed leaves none behind.
process.stdin.on("end", () => process.exit(0)).resume();
