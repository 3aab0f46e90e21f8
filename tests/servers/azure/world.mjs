// One customer's Azure: a tenant's authority, IMDS, a key vault and a managed HSM, each on a port of its own, so that tests
// that run at once do not meet. What a request may do is decided here; what it does, in `keys` and `entra`.

import { randomUUID } from "node:crypto";
import http from "node:http";
import https from "node:https";
import { auditEvent } from "./audit.mjs";
import { control } from "./control.mjs";
import { Entra } from "./entra.mjs";
import { Keys, Refusal } from "./keys.mjs";

/** The data actions that each operation needs: of a vault (Azure RBAC), of a managed HSM (local RBAC), of an access policy. */
const ACTIONS = {
  read: ["vaults/keys/read", "managedHsm/keys/read/action", "get"],
  create: ["vaults/keys/create/action", "managedHsm/keys/create", "create"],
  update: ["vaults/keys/update/action", "managedHsm/keys/write/action", "update"],
  rotate: ["vaults/keys/rotate/action", "managedHsm/keys/rotate/action", "rotate"],
  delete: ["vaults/keys/delete", "managedHsm/keys/delete", "delete"],
  recover: ["vaults/keys/recover/action", "managedHsm/keys/deletedKeys/recover/action", "recover"],
  purge: ["vaults/keys/purge/action", "managedHsm/keys/deletedKeys/delete", "purge"],
  wrapKey: ["vaults/keys/wrap/action", "managedHsm/keys/wrap/action", "wrapKey"],
  unwrapKey: ["vaults/keys/unwrap/action", "managedHsm/keys/unwrap/action", "unwrapKey"],
};

const FORBIDDEN_BY = {
  ForbiddenByFirewall: "Client address is not authorized and caller is not a trusted service.",
  ForbiddenByConnection: "Public network access is disabled and request is not from a trusted service nor via an approved private link.",
};

/** A vault or managed HSM. */
class Vault {
  constructor(kind, entra, authority) {
    this.audience = kind === "hsm" ? "https://managedhsm.azure.net" : "https://vault.azure.net";
    Object.assign(this, { kind, entra, authority, keys: new Keys(kind), roles: [], policies: new Map(), mode: "rbac", closedBy: undefined, audit: [] });
  }

  challenge(error) {
    const about = error ? `, error="invalid_token", error_description="${error}"` : "";
    const value = `Bearer authorization="${this.authority}/${this.challengeTenant ?? this.entra.tenant}", resource="${this.challengeResource ?? this.audience}"${about}`;
    return new Refusal(401, "Unauthorized", error ?? "AKV10000: Request is missing a Bearer or PoP token.", undefined, { "WWW-Authenticate": value });
  }

  authenticate(headers) {
    const token = /^Bearer +(\S+)$/i.exec(headers.authorization ?? "")?.[1];
    if (!token) throw this.challenge();
    const claims = this.entra.check(token, this.audience);
    if (typeof claims === "string") throw this.challenge(claims);
    return claims;
  }

  authorize({ oid }, operation, name) {
    if (this.closedBy) throw new Refusal(403, "Forbidden", FORBIDDEN_BY[this.closedBy], this.closedBy);
    const [ofVault, ofHsm, ofPolicy] = ACTIONS[operation];
    if (this.mode === "policy") {
      if (this.policies.get(oid)?.includes(ofPolicy)) return;
      throw new Refusal(403, "Forbidden", `The user, group or application 'oid=${oid}' does not have keys ${ofPolicy} permission on key vault.`, "AccessDenied");
    }
    const action = `Microsoft.KeyVault/${this.kind === "hsm" ? ofHsm : ofVault}`.toLowerCase();
    const scopes = ["/", "/keys", `/keys/${name}`];
    const allowed = this.roles.some((role) => role.oid === oid && scopes.includes(role.scope) && role.actions.some((one) => one === "*" || one.toLowerCase() === action));
    if (allowed) return;
    throw new Refusal(403, "Forbidden", `Caller is not authorized to perform action on resource. Action: '${action}' Resource: '/keys/${name}' Assignment: (not found)`, "ForbiddenByRbac");
  }

  /** What operation a request is; its name is what it is counted under. */
  route(method, path) {
    const segments = path.split("/").filter(Boolean).map(decodeURIComponent);
    const [root, name, ...rest] = segments;
    const last = rest.at(-1)?.toLowerCase();
    const found = (operation, id) => ({ operation, name, id });
    if (root === "keys") {
      if (method === "GET") return found(name ? (last === "versions" ? "versions" : "read") : "list", rest[0]);
      if (method === "DELETE" && rest.length === 0) return found("delete");
      if (method === "PATCH") return found("update", rest[0]);
      if (method === "POST" && (last === "wrapkey" || last === "unwrapkey")) return found(last === "wrapkey" ? "wrapKey" : "unwrapKey", rest.length > 1 ? rest[0] : undefined);
      if (method === "POST" && (last === "create" || last === "rotate")) return found(last);
    }
    if (root === "deletedkeys" && name) {
      if (method === "GET") return found("readDeleted");
      if (method === "DELETE") return found("purge");
      if (method === "POST" && last === "recover") return found("recover");
    }
    throw new Refusal(404, "NotFound", "There is no such resource.");
  }

  /** Writes a request and its answer into the vault's log; `id` is the key's with its version, where one answered. */
  note(seen, status, id) {
    if (seen.route) this.audit.push(auditEvent(this.kind, seen, status, id));
  }

  async serve(seen) {
    const { method, url, headers, body } = seen;
    if (!url.searchParams.get("api-version")) throw new Refusal(400, "BadParameter", "The query parameter api-version is missing.");
    const { operation, name, id } = (seen.route = this.route(method, url.pathname));
    seen.claims = this.authenticate(headers);
    this.authorize(seen.claims, { list: "read", versions: "read", readDeleted: "read" }[operation] ?? operation, name ?? "");
    const keys = this.keys;
    // A key's id names the vault as the caller does: by its public name.
    keys.base = `https://${headers.host}`;
    switch (operation) {
      case "wrapKey":
      case "unwrapKey":
        return keys.operate(operation, name, id, json(body));
      case "create":
        return keys.create(name, json(body));
      case "rotate":
        return keys.rotate(name);
      case "read": {
        const key = keys.key(name);
        return keys.bundle(key, keys.version(key, id));
      }
      case "versions":
        return { value: keys.key(name).versions.map((version) => keys.item(keys.key(name), version)), nextLink: null };
      case "list":
        return { value: [...keys.live.values()].map((key) => keys.item(key, key.versions.at(-1), false)), nextLink: null };
      case "update":
        return keys.update(name, id, json(body));
      case "delete":
        return keys.delete(name);
      case "readDeleted":
        return keys.deletedBundle(name);
      case "recover":
        return keys.recover(name);
      case "purge":
        keys.purge(name);
        return undefined;
    }
    throw new Refusal(404, "NotFound", "There is no such resource.");
  }
}

function json(body) {
  try {
    return JSON.parse(body || "{}");
  } catch {
    throw new Refusal(400, "BadParameter", "The request body is not JSON.");
  }
}

/** The four services of one customer, their counters and the faults that wait for their next answers. */
export class World {
  static async start(tls, port = 0) {
    const world = new World();
    world.tls = tls;
    world.counters = {};
    world.faults = [];
    world.entra = new Entra(randomUUID());
    world.servers = [];
    const names = ["vault", "hsm", "authority", "imds"];
    world.addresses = { tenant: world.entra.tenant };
    for (const [index, name] of names.entries()) {
      const listen = (request, response) => world.handle(name, request, response);
      const server = name === "imds" ? http.createServer(listen) : https.createServer(tls, listen);
      server.keepAliveTimeout = 60_000;
      await new Promise((done, failed) => server.once("error", failed).listen(port === 0 ? 0 : port + index, "127.0.0.1", done));
      world.servers.push(server);
      world.addresses[name] = `${name === "imds" ? "http" : "https"}://127.0.0.1:${server.address().port}`;
    }
    for (const kind of ["vault", "hsm"]) {
      world[kind] = new Vault(kind, world.entra, world.addresses.authority);
    }
    return world;
  }

  count(target, what) {
    const counters = (this.counters[target] ??= {});
    counters[what] = (counters[what] ?? 0) + 1;
  }

  async handle(target, request, response) {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = Buffer.concat(chunks).toString("utf8");
    const url = new URL(request.url, this.addresses[target]);
    const seen = { method: request.method, url, headers: request.headers, body, address: request.socket.remoteAddress, began: Date.now() };
    const requestId = randomUUID();
    let answer;
    try {
      if (url.pathname.startsWith("/control/")) {
        answer = { status: 200, body: await control(this, target, seen) };
      } else {
        this.underWay = (this.underWay ?? 0) + 1;
        this.mostUnderWay = Math.max(this.mostUnderWay ?? 0, this.underWay);
        try {
          answer = await this.answer(target, seen, request.socket, response);
        } finally {
          this.underWay -= 1;
        }
      }
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      answer = { status: error.status, body: error.body, headers: error.headers };
    }
    if (!answer) return;
    const text = answer.text ?? (answer.body === undefined ? "" : JSON.stringify(answer.body));
    const status = answer.status === 200 && text === "" && answer.text === undefined ? 204 : answer.status;
    response.writeHead(status, {
      "Content-Type": "application/json; charset=utf-8", "Content-Length": Buffer.byteLength(text), ...(answer.foreign ? {} : { "x-ms-request-id": requestId }),
      "x-ms-keyvault-region": "westeurope", "x-ms-keyvault-service-version": "1.9.0.0", ...answer.headers,
    });
    response.end(text);
  }

  /** What this request is called in counters and faults. */
  operation(target, { method, url, headers }) {
    if (target === "authority") return url.pathname.endsWith("/token") ? "token" : "metadata";
    if (target === "imds") return "token";
    if (!headers.authorization) return "challenge";
    try {
      return this[target].route(method, url.pathname).operation;
    } catch {
      return "unknown";
    }
  }

  async answer(target, seen, socket, response) {
    const operation = this.operation(target, seen);
    this.count(target, operation);
    const fault = this.faults.find((one) => one.target === target && (!one.operation || one.operation === operation));
    if (fault) {
      fault.times -= 1;
      if (fault.times <= 0) this.faults.splice(this.faults.indexOf(fault), 1);
      if (fault.delay) await new Promise((done) => setTimeout(done, fault.delay));
      if (fault.reset) return void socket.destroy();
      // Not the service's own: it has no id of a request's, and stands in no log.
      if (fault.status) return { foreign: true, status: fault.status, headers: fault.headers ?? {}, text: typeof fault.body === "string" ? fault.body : fault.body && JSON.stringify(fault.body) };
    }
    const answer = await this.real(target, operation, seen);
    if (fault?.cut || fault?.corrupt || fault?.replace) return damage(fault, answer, response, socket);
    return answer;
  }

  async real(target, operation, seen) {
    const { method, url, headers, body } = seen;
    if (target === "imds") {
      if (method === "GET" && url.pathname === "/metadata/identity/oauth2/token") return this.entra.imds(headers, url.searchParams);
      if (method === "GET" && url.pathname === "/msi/token") return this.entra.endpoint(headers, url.searchParams);
      return { status: 404, body: { error: "not_found" } };
    }
    if (target === "authority") {
      const [tenant, ...path] = url.pathname.split("/").filter(Boolean);
      if (path.join("/") === "v2.0/.well-known/openid-configuration") return this.entra.metadata(this.addresses.authority, tenant);
      if (path.join("/") === "oauth2/v2.0/token" && method === "POST") return this.entra.token(tenant, new URLSearchParams(body));
      return { status: 404, body: { error: "not_found" } };
    }
    const vault = this[target];
    try {
      const body = await vault.serve(seen);
      vault.note(seen, 200, body?.kid ?? body?.key?.kid);
      return { status: 200, body };
    } catch (error) {
      vault.note(seen, error.status);
      throw error;
    }
  }
}

/** An answer that breaks off in the middle (`cut`), whose text is no longer JSON (`corrupt`), or that lies (`replace`). */
function damage(fault, answer, response, socket) {
  const text = JSON.stringify(answer.body);
  if (fault.corrupt) return { status: answer.status, text: `${text.slice(0, -2)}\u0000${text.slice(-1)}` };
  if (fault.replace) return { status: answer.status, text: JSON.stringify({ ...answer.body, ...fault.replace }) };
  response.writeHead(answer.status, { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(text) });
  response.write(text.slice(0, text.length / 2), () => socket.destroy());
  return undefined;
}
