// Who calls: service accounts, users, the token endpoint, the metadata server, impersonation, and what IAM lets each do.
// https://developers.google.com/identity/protocols/oauth2/service-account
// https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken

import { createPublicKey, generateKeyPairSync, randomBytes, randomUUID, verify } from "node:crypto";
import { atTheDoor, errorInfo, OAuthRefusal, Refusal } from "./status.mjs";

const PLATFORM = "https://www.googleapis.com/auth/cloud-platform";
const KNOWN_SCOPES = new Set([PLATFORM, "https://www.googleapis.com/auth/cloudkms", "https://www.googleapis.com/auth/iam"]);
const SKEW_SECONDS = 300;
const KMS_ADMIN = [
  "cloudkms.keyRings.create", "cloudkms.keyRings.get", "cloudkms.cryptoKeys.create", "cloudkms.cryptoKeys.get",
  "cloudkms.cryptoKeys.list", "cloudkms.cryptoKeys.update", "cloudkms.cryptoKeys.getIamPolicy",
  "cloudkms.cryptoKeys.setIamPolicy", "cloudkms.cryptoKeyVersions.create", "cloudkms.cryptoKeyVersions.get",
  "cloudkms.cryptoKeyVersions.list", "cloudkms.cryptoKeyVersions.update", "cloudkms.cryptoKeyVersions.destroy",
  "cloudkms.cryptoKeyVersions.restore",
];
const LOOK = ["cloudkms.locations.get", "cloudkms.locations.list", "resourcemanager.projects.get"];
// https://cloud.google.com/kms/docs/reference/permissions-and-roles
const ROLES = {
  "roles/cloudkms.cryptoKeyEncrypterDecrypter":
    ["cloudkms.cryptoKeyVersions.useToEncrypt", "cloudkms.cryptoKeyVersions.useToDecrypt", ...LOOK],
  "roles/cloudkms.cryptoKeyEncrypter": ["cloudkms.cryptoKeyVersions.useToEncrypt", ...LOOK],
  "roles/cloudkms.cryptoKeyDecrypter": ["cloudkms.cryptoKeyVersions.useToDecrypt", ...LOOK],
  "roles/cloudkms.viewer": ["cloudkms.keyRings.get", "cloudkms.cryptoKeys.get", "cloudkms.cryptoKeys.list",
    "cloudkms.cryptoKeyVersions.get", "cloudkms.cryptoKeyVersions.list", ...LOOK],
  "roles/cloudkms.admin": [...KMS_ADMIN, ...LOOK],
  "roles/iam.serviceAccountTokenCreator": ["iam.serviceAccounts.getAccessToken"],
};

const now = () => Date.now() / 1000;
const bytesOf = (part) => Buffer.from(part ?? "", "base64url");
const bearerChallenge = { "WWW-Authenticate": 'Bearer realm="https://accounts.google.com/", error="invalid_token"' };

export class Identity {
  accounts = new Map(); // email → { keys: Map(kid → public key), disabled, deleted }
  users = new Map(); // refresh token → { email, client_id, client_secret, revoked }
  tokens = new Map(); // access token → { email, scopes, expires, revoked }
  policies = new Map(); // resource → [{ role, members }]
  tokenSeconds = 3600;
  machine = null; // the email that the metadata server speaks for
  machineScopes = [PLATFORM];

  constructor(address) {
    this.address = address;
  }

  /** A key pair for tests to share; made here because making one takes a while. */
  static keyPair() {
    const { privateKey, publicKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
    return {
      private_key: privateKey.export({ type: "pkcs8", format: "pem" }),
      public_key: publicKey.export({ type: "spki", format: "pem" }),
    };
  }

  /** Registers an account with a public key, and gives what its key file holds but for the private key. */
  register({ email, public_key, kid = randomBytes(20).toString("hex") }) {
    const account = this.accounts.get(email) ?? { keys: new Map(), disabled: false, deleted: false };
    if (public_key) account.keys.set(kid, createPublicKey(public_key));
    this.accounts.set(email, account);
    return {
      type: "service_account", project_id: email.split("@")[1].split(".")[0], private_key_id: kid, client_email: email,
      client_id: "1".repeat(21), token_uri: `${this.address}/token`, universe_domain: "googleapis.com",
    };
  }

  issue(email, scopes, seconds = this.tokenSeconds) {
    const token = `ya29.${randomBytes(48).toString("base64url")}`;
    this.tokens.set(token, { email, scopes, expires: now() + seconds, revoked: false });
    return { access_token: token, expires_in: Math.max(0, Math.floor(seconds)), token_type: "Bearer" };
  }

  // The token endpoint.

  token(form) {
    switch (form.get("grant_type")) {
      case "urn:ietf:params:oauth:grant-type:jwt-bearer": return this.#byAssertion(form.get("assertion"));
      case "refresh_token": return this.#byRefreshToken(form);
      default: throw new OAuthRefusal("unsupported_grant_type", "Invalid grant_type: " + form.get("grant_type"));
    }
  }

  #byAssertion(assertion) {
    const parts = (assertion ?? "").split(".");
    let header, claims;
    try {
      [header, claims] = parts.slice(0, 2).map((part) => JSON.parse(bytesOf(part)));
    } catch {
      throw new OAuthRefusal("invalid_grant", "Invalid JWT: Failed to parse.");
    }
    const account = this.accounts.get(claims.iss);
    if (!account || account.deleted) throw new OAuthRefusal("invalid_grant", "Invalid grant: account not found");
    if (account.disabled) throw new OAuthRefusal("invalid_grant", "Invalid grant: account disabled");
    const keys = header.kid ? [account.keys.get(header.kid)] : [...account.keys.values()];
    const signed = Buffer.from(`${parts[0]}.${parts[1]}`);
    const good = header.alg === "RS256" && parts.length === 3 &&
      keys.some((key) => key && verify("sha256", signed, key, bytesOf(parts[2])));
    if (!good) throw new OAuthRefusal("invalid_grant", "Invalid JWT Signature.");
    // Any port of this machine: a test may stand a proxy before us.
    if (!/^(http:\/\/(127\.0\.0\.1|localhost):\d+|https:\/\/oauth2\.googleapis\.com)\/token$/.test(claims.aud))
      throw new OAuthRefusal("invalid_grant", "Invalid JWT: Failed audience check. The right audience is the token endpoint.");
    const { iat, exp } = claims;
    const inTime = Number.isInteger(iat) && Number.isInteger(exp) && iat < now() + SKEW_SECONDS && exp > now() - SKEW_SECONDS
      && exp > iat && exp - iat <= 3600;
    if (!inTime) throw new OAuthRefusal("invalid_grant", "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe.");
    const scopes = (claims.scope ?? "").split(" ").filter(Boolean);
    if (!scopes.length || scopes.some((scope) => !KNOWN_SCOPES.has(scope)))
      throw new OAuthRefusal("invalid_scope", "Invalid OAuth scope or ID token audience provided.");
    return this.issue(claims.iss, scopes);
  }

  #byRefreshToken(form) {
    const user = this.users.get(form.get("refresh_token"));
    if (user && (form.get("client_id") !== user.client_id || form.get("client_secret") !== user.client_secret))
      throw new OAuthRefusal("invalid_client", "The OAuth client was not found.", 401);
    if (!user || user.revoked) throw new OAuthRefusal("invalid_grant", "Token has been expired or revoked.");
    return { ...this.issue(user.email, [PLATFORM]), scope: PLATFORM };
  }

  // The metadata server.

  metadata(path, headers, recursive = false) {
    if (headers["metadata-flavor"] !== "Google" || headers["x-forwarded-for"])
      return { code: 403, type: "text/html", text: "<html><title>Error 403 (Forbidden)!!1</title></html>" };
    const all = "/computeMetadata/v1/instance/service-accounts/";
    const account = [`${all}default/`, `${all}${this.machine}/`].find((account) => path.startsWith(account));
    if (!account || !this.machine) return { code: 404, type: "text/html", text: "<html>404 Not Found</html>" };
    const what = path.slice(account.length);
    if (what === "" && recursive)
      return { code: 200, body: { aliases: ["default"], email: this.machine, scopes: this.machineScopes } };
    if (what === "email") return { code: 200, type: "application/text", text: this.machine };
    if (what !== "token") return { code: 404, type: "text/html", text: "<html>404 Not Found</html>" };
    // Like the real one, it gives the same token again until little of its time is left.
    const held = [...this.tokens].find(([, one]) => one.machine && one.email === this.machine && !one.revoked
      && one.expires - now() > Math.min(240, this.tokenSeconds / 4));
    if (held) return { code: 200, body: { access_token: held[0], expires_in: Math.floor(held[1].expires - now()), token_type: "Bearer" } };
    const body = this.issue(this.machine, this.machineScopes);
    this.tokens.get(body.access_token).machine = true;
    return { code: 200, body };
  }

  // IAM credentials.

  generateAccessToken(target, body, caller) {
    this.require(caller, "iam.serviceAccounts.getAccessToken", `projects/-/serviceAccounts/${target}`, "iam.googleapis.com");
    const account = this.accounts.get(target);
    if (account.disabled) throw new Refusal("FAILED_PRECONDITION", `Service account ${target} is disabled.`);
    const seconds = Number(/^(\d+)s$/.exec(body.lifetime ?? "3600s")?.[1]);
    const scopes = body.scope ?? [];
    if (!(seconds > 0 && seconds <= 3600) || !scopes.length || scopes.some((scope) => !KNOWN_SCOPES.has(scope)))
      throw new Refusal("INVALID_ARGUMENT", "Request contains an invalid argument.");
    const short = Math.min(seconds, this.tokenSeconds);
    const { access_token } = this.issue(target, scopes, short);
    return { accessToken: access_token, expireTime: new Date(Date.now() + short * 1000).toISOString().replace(/\.\d+Z/, "Z") };
  }

  // The checks before a service.

  /** The caller of a request, or the refusal that Google's front gives. `scopes` beside cloud-platform are enough. */
  caller(headers, method, scopes) {
    const token = /^Bearer (.+)$/.exec(headers.authorization ?? "")?.[1];
    const refuse = (reason, message) => atTheDoor("UNAUTHENTICATED", reason, message, { method }, bearerChallenge);
    const expected = "Expected OAuth 2 access token, login cookie or other valid authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project.";
    if (!token) throw refuse("CREDENTIALS_MISSING", `Request is missing required authentication credential. ${expected}`);
    const known = this.tokens.get(token);
    if (!known) throw refuse("ACCESS_TOKEN_TYPE_UNSUPPORTED", `Request had invalid authentication credentials. ${expected}`);
    if (known.revoked || known.expires <= now())
      throw refuse("ACCESS_TOKEN_EXPIRED", `Request had invalid authentication credentials. ${expected}`);
    const account = this.accounts.get(known.email);
    if (account?.disabled || account?.deleted)
      throw refuse("ACCOUNT_STATE_INVALID", `Request had invalid authentication credentials. ${expected}`);
    if (!known.scopes.some((scope) => scope === PLATFORM || scopes.includes(scope)))
      throw atTheDoor("PERMISSION_DENIED", "ACCESS_TOKEN_SCOPE_INSUFFICIENT", "Request had insufficient authentication scopes.", { method });
    return known.email;
  }

  permissions(email, resource) {
    const held = new Set();
    for (let at = resource; at; at = parentOf(at))
      for (const { role, members } of this.policies.get(at) ?? [])
        if (members.includes(`serviceAccount:${email}`) || members.includes(`user:${email}`))
          (ROLES[role] ?? []).forEach((permission) => held.add(permission));
    return held;
  }

  /** Whoever lacks the right does not learn whether the thing exists. */
  require(email, permission, resource, domain = "cloudkms.googleapis.com") {
    if (email === null || this.permissions(email, resource).has(permission)) return;
    throw new Refusal("PERMISSION_DENIED", `Permission '${permission}' denied on resource '${resource}' (or it may not exist).`,
      [errorInfo("IAM_PERMISSION_DENIED", domain, { permission, resource })]);
  }

  setPolicy(resource, bindings) {
    const unknown = bindings.find(({ role }) => !(role in ROLES));
    if (unknown) throw new Refusal("INVALID_ARGUMENT", `Role ${unknown.role} is not supported for this resource.`);
    this.policies.set(resource, bindings);
    return { version: 1, etag: Buffer.from(randomUUID()).toString("base64"), bindings };
  }
}

/** `projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/N` → the key → the ring → the location → the project. */
function parentOf(resource) {
  const parts = resource.split("/");
  return parts.length > 2 ? parts.slice(0, -2).join("/") : null;
}
