// One Entra tenant's token endpoint and the instance metadata service (IMDS) that gives tokens of managed identities.
// Tokens are JWTs that the vault really checks: signature, audience, tenant, time, revocation.

import { createHmac, createPublicKey, randomBytes, randomUUID, timingSafeEqual, verify } from "node:crypto";

const ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const EXCHANGE_AUDIENCE = "api://AzureADTokenExchange";

const now = () => Math.floor(Date.now() / 1000);
const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
const read = (text) => {
  try {
    return JSON.parse(Buffer.from(text, "base64url"));
  } catch {
    return undefined;
  }
};

/** The secret that an app's environment would hold. */
const IDENTITY_HEADER = "canary-identity-header";

const bad = (error, error_description, status = 400) => ({ status, body: { error, error_description } });

/** Status and OAuth error of each code that Entra documents and this endpoint gives. */
const AADSTS = {
  50001: [400, "invalid_resource", "The resource is disabled or doesn't exist."],
  53003: [400, "access_denied", "Access has been blocked by Conditional Access policies."],
  90002: [400, "invalid_request", "Tenant not found."],
  90033: [503, "temporarily_unavailable", "The directory service isn't available."],
  500011: [400, "invalid_resource", "The resource principal was not found in the tenant."],
  700016: [400, "unauthorized_client", "Application was not found in the directory."],
  700024: [401, "invalid_client", "Client assertion is not within its valid time range."],
  700213: [401, "invalid_client", "No matching federated identity record found for presented assertion subject."],
  700211: [401, "invalid_client", "No matching federated identity record found for presented assertion issuer."],
  700212: [401, "invalid_client", "No matching federated identity record found for presented assertion audience."],
  700027: [401, "invalid_client", "Client assertion failed signature validation."],
  7000112: [400, "unauthorized_client", "The application is disabled."],
  7000215: [401, "invalid_client", "Invalid client secret provided."],
  7000218: [401, "invalid_client", "The request body must contain 'client_assertion' or 'client_secret'."],
  7000222: [401, "invalid_client", "The provided client secret keys are expired."],
  70003: [400, "unsupported_grant_type", "The app returned an unsupported grant type."],
  70011: [400, "invalid_scope", "The provided value for the input parameter 'scope' is not valid."],
};

export class Entra {
  constructor(tenant) {
    Object.assign(this, {
      tenant, principals: new Map(), key: randomBytes(32), tokenSeconds: 3599, systemAssigned: undefined,
      audiences: new Set(["https://vault.azure.net", "https://managedhsm.azure.net"]),
    });
  }

  /** An application or managed identity: `secrets: [{value, expires?}]`, `federated: [{issuer, subject, audience?, key}]`. */
  add({ clientId = randomUUID(), oid = randomUUID(), secrets = [], federated = [], managed = false, systemAssigned = false } = {}) {
    const principal = { clientId, oid, secrets, federated, managed, disabled: false, blocked: false };
    this.principals.set(clientId, principal);
    if (systemAssigned) this.systemAssigned = principal;
    return principal;
  }

  issue(principal, audience) {
    const time = now();
    const claims = {
      aud: audience, iss: `https://sts.windows.net/${this.tenant}/`, iat: time, nbf: time, exp: time + this.tokenSeconds,
      appid: principal.clientId, oid: principal.oid, sub: principal.oid, tid: this.tenant, uti: randomUUID(), ver: "1.0",
    };
    const signed = `${part({ typ: "JWT", alg: "HS256" })}.${part(claims)}`;
    return { token: `${signed}.${this.sign(signed)}`, claims };
  }

  sign(text) {
    return createHmac("sha256", this.key).update(text).digest("base64url");
  }

  /** The claims of a token that holds for `audience`; else what the vault says of it. */
  check(token, audience) {
    const [head, body, signature] = token.split(".");
    const expected = Buffer.from(this.sign(`${head}.${body}`));
    const given = Buffer.from(signature ?? "");
    if (given.length !== expected.length || !timingSafeEqual(given, expected)) return "AKV10046: Unable to resolve the key used for signature validation.";
    const claims = read(body);
    if (claims.aud !== audience) return `AKV10022: Invalid audience. Expected ${audience}, found: ${claims.aud}.`;
    if (claims.tid !== this.tenant) return "AKV10032: Invalid issuer.";
    if (claims.exp <= now()) return "AKV10001: Token is expired.";
    return claims;
  }

  /** Every token given so far is worth nothing from now on. */
  revoke() {
    this.key = randomBytes(32);
  }

  failed(code) {
    const [status, error, text] = AADSTS[code];
    const trace = randomUUID();
    const description = `AADSTS${code}: ${text} Trace ID: ${trace} Correlation ID: ${randomUUID()} Timestamp: ${new Date().toISOString()}`;
    return { status, body: { error, error_description: description, error_codes: [code], timestamp: new Date().toISOString(), trace_id: trace, correlation_id: randomUUID() } };
  }

  /** The OIDC metadata that the vendor's libraries read before they ask for a token. */
  metadata(origin, tenant) {
    if (tenant !== this.tenant) return this.failed(90002);
    const base = `${origin}/${tenant}`;
    return { status: 200, body: { issuer: `${base}/v2.0`, token_endpoint: `${base}/oauth2/v2.0/token`, authorization_endpoint: `${base}/oauth2/v2.0/authorize`, jwks_uri: `${base}/discovery/v2.0/keys` } };
  }

  token(tenant, form) {
    if (tenant !== this.tenant) return this.failed(90002);
    if (form.get("grant_type") !== "client_credentials") return this.failed(70003);
    const principal = this.principals.get(form.get("client_id"));
    if (!principal || principal.managed && principal.federated.length === 0) return this.failed(700016);
    const refused = this.authenticate(principal, form);
    if (refused) return this.failed(refused);
    if (principal.disabled) return this.failed(7000112);
    if (principal.blocked) return this.failed(53003);
    const scope = form.get("scope") ?? "";
    if (!scope.endsWith("/.default")) return this.failed(70011);
    const audience = scope.slice(0, -"/.default".length);
    if (!this.audiences.has(audience)) return this.failed(500011);
    const { token } = this.issue(principal, audience);
    return { status: 200, body: { token_type: "Bearer", expires_in: this.tokenSeconds, ext_expires_in: this.tokenSeconds, access_token: token } };
  }

  authenticate(principal, form) {
    if (form.get("client_assertion_type") === ASSERTION_TYPE) return this.assertion(principal, form.get("client_assertion") ?? "");
    const given = form.get("client_secret");
    if (given === null) return 7000218;
    const secret = principal.secrets.find((one) => one.value === given);
    if (!secret) return 7000215;
    return secret.expires !== undefined && secret.expires <= now() ? 7000222 : undefined;
  }

  /** A workload's own token, signed by an issuer that the application trusts (federated identity credential). */
  assertion(principal, jwt) {
    const [head, body, signature] = jwt.split(".");
    const claims = read(body ?? "");
    if (!claims) return 700027;
    const ofIssuer = principal.federated.filter((one) => one.issuer === claims.iss);
    if (ofIssuer.length === 0) return 700211;
    const match = ofIssuer.find((one) => one.subject === claims.sub);
    if (!match) return 700213;
    if (![claims.aud].flat().includes(match.audience ?? EXCHANGE_AUDIENCE)) return 700212;
    if (!(claims.exp > now())) return 700024;
    const good = verify("sha256", Buffer.from(`${head}.${body}`), createPublicKey(match.key), Buffer.from(signature ?? "", "base64url"));
    return good ? undefined : 700027;
  }

  /** GET /metadata/identity/oauth2/token: answers only requests that say that they mean it. */
  imds(headers, query) {
    if (headers.metadata?.toLowerCase() !== "true" || headers["x-forwarded-for"]) return bad("invalid_request", "Required metadata header not specified");
    return this.identity(query);
  }

  /** GET /msi/token: what App Service and Container Apps name in IDENTITY_ENDPOINT, with the secret of IDENTITY_HEADER. */
  endpoint(headers, query) {
    if (headers["x-identity-header"] !== IDENTITY_HEADER) return bad("invalid_request", "The identity header is wrong", 401);
    return this.identity(query);
  }

  identity(query) {
    if (!query.get("api-version")) return bad("invalid_request", "api-version is missing");
    const clientId = query.get("client_id");
    const principal = clientId ? this.principals.get(clientId) : this.systemAssigned;
    if (!principal?.managed || principal.disabled) return bad("invalid_request", "Identity not found");
    const resource = query.get("resource")?.replace(/\/$/, "");
    if (!this.audiences.has(resource)) return bad("invalid_resource", `AADSTS500011: The resource principal named ${resource} was not found in the tenant.`);
    const { token, claims } = this.issue(principal, resource);
    return { status: 200, body: { access_token: token, client_id: principal.clientId, expires_in: String(this.tokenSeconds), expires_on: String(claims.exp), ext_expires_in: String(this.tokenSeconds), not_before: String(claims.nbf), resource, token_type: "Bearer" } };
  }
}
