// The keys of one vault or managed HSM: versions, attributes, soft delete, and real cryptography (node:crypto).
//
// Facts that decide what is refused here, from Microsoft's documentation ("Key types, algorithms, and operations", key
// attributes): a disabled version refuses every operation; outside `nbf`/`exp` a version refuses wrap and still unwraps.
// One report from a live vault (azure-sdk-for-python issue 45342) saw a disabled RSA version still wrap, since that needs
// its public half only: `disabledWraps` makes this stand-in do so too.

import { constants, createCipheriv, createDecipheriv, generateKeyPair, privateDecrypt, publicEncrypt, randomBytes } from "node:crypto";
import { promisify } from "node:util";

/** What the service refuses, as the answer that says so. */
export class Refusal extends Error {
  constructor(status, code, message, inner, headers = {}) {
    super(message);
    Object.assign(this, { status, code, inner, headers });
  }

  get body() {
    const innererror = this.inner ? { innererror: { code: this.inner } } : {};
    return { error: { code: this.code, message: this.message, ...innererror } };
  }
}

const makePair = promisify(generateKeyPair);
const pool = [];

/** The nth RSA key of a vault. Made once for all vaults, since making one is slow; within one vault all differ. */
function rsa(nth) {
  pool[nth] ??= makePair("rsa", { modulusLength: 2048 });
  return pool[nth];
}
rsa(0);
rsa(1);

const RSA_HASHES = { "RSA-OAEP": "sha1", "RSA-OAEP-256": "sha256" };
const AES_BYTES = { A128KW: 16, A192KW: 24, A256KW: 32 };
/** RFC 3394, 2.2.3.1. */
const AES_KW_IV = Buffer.alloc(8, 0xa6);
const VALIDITY_LEEWAY = 0;

const now = () => Math.floor(Date.now() / 1000);
const hex = () => randomBytes(16).toString("hex");
const decoded = (text) => {
  if (typeof text !== "string" || !/^[A-Za-z0-9_-]*={0,2}$/.test(text)) {
    throw new Refusal(400, "BadParameter", "The value is not base64url.");
  }
  return Buffer.from(text, "base64url");
};

export class Keys {
  constructor(kind) {
    Object.assign(this, { kind, base: "https://vault", live: new Map(), deleted: new Map(), made: 0, disabledWraps: false });
  }

  async create(name, { kty, key_size, key_ops, attributes = {} } = {}) {
    if (!/^[0-9a-zA-Z-]{1,127}$/.test(name)) throw new Refusal(400, "BadParameter", `The name ${name} is not valid.`);
    if (this.deleted.has(name)) {
      throw new Refusal(409, "Conflict", `Key ${name} is currently in a deleted but recoverable state.`, "ObjectIsDeletedButRecoverable");
    }
    kty ??= this.kind === "hsm" ? "RSA-HSM" : "RSA";
    const symmetric = kty === "oct-HSM";
    if (symmetric && this.kind !== "hsm") throw new Refusal(400, "BadParameter", "The key type oct-HSM is not supported by vaults.");
    if (!symmetric && kty !== "RSA" && kty !== "RSA-HSM") throw new Refusal(400, "BadParameter", `The key type ${kty} is not supported here.`);
    const material = symmetric ? { secret: randomBytes((key_size ?? 256) / 8) } : await rsa(this.made++);
    const version = {
      id: hex(), kty, key_ops: key_ops ?? ["wrapKey", "unwrapKey", "encrypt", "decrypt"], material,
      attributes: { enabled: true, created: now(), updated: now(), recoveryLevel: "Recoverable+Purgeable", recoverableDays: 90, ...attributes },
    };
    const key = this.live.get(name) ?? { name, versions: [] };
    this.live.set(name, key);
    key.versions.push(version);
    return this.bundle(key, version);
  }

  key(name) {
    const key = this.live.get(name);
    if (!key) throw this.notFound(name);
    return key;
  }

  version(key, id) {
    const version = id ? key.versions.find((one) => one.id === id) : key.versions.at(-1);
    if (!version) throw this.notFound(`${key.name}/${id}`);
    return version;
  }

  notFound(id) {
    return new Refusal(404, "KeyNotFound", `A key with (name/id) ${id} was not found in this key vault.`);
  }

  kid(key, version) {
    return `${this.base}/keys/${key.name}/${version.id}`;
  }

  bundle(key, version) {
    const jwk = version.material.publicKey?.export({ format: "jwk" }) ?? {};
    return {
      key: { kid: this.kid(key, version), kty: version.kty, key_ops: version.key_ops, n: jwk.n, e: jwk.e },
      attributes: version.attributes,
    };
  }

  item(key, version, withId = true) {
    return { kid: withId ? this.kid(key, version) : `${this.base}/keys/${key.name}`, attributes: version.attributes };
  }

  update(name, id, { attributes = {}, key_ops } = {}) {
    const key = this.key(name);
    const version = this.version(key, id);
    Object.assign(version.attributes, attributes, { updated: now() });
    if (key_ops) version.key_ops = key_ops;
    return this.bundle(key, version);
  }

  async rotate(name) {
    const key = this.key(name);
    const { kty, key_ops } = key.versions.at(-1);
    return this.create(name, { kty, key_ops });
  }

  delete(name) {
    const key = this.key(name);
    this.live.delete(name);
    this.deleted.set(name, key);
    key.deletedDate = now();
    return this.deletedBundle(name);
  }

  deletedBundle(name) {
    const key = this.deleted.get(name);
    if (!key) throw new Refusal(404, "KeyNotFound", `Deleted Key not found: ${name}`);
    return {
      ...this.bundle(key, key.versions.at(-1)), recoveryId: `${this.base}/deletedkeys/${name}`,
      deletedDate: key.deletedDate, scheduledPurgeDate: key.deletedDate + 90 * 86400,
    };
  }

  recover(name) {
    this.deletedBundle(name);
    this.live.set(name, this.deleted.get(name));
    this.deleted.delete(name);
    return this.bundle(this.key(name), this.key(name).versions.at(-1));
  }

  purge(name) {
    this.deletedBundle(name);
    this.deleted.delete(name);
  }

  /** `operation` is `wrapKey` or `unwrapKey`, spelled as in `key_ops`. */
  operate(operation, name, id, { alg, value } = {}) {
    const key = this.key(name);
    const version = this.version(key, id);
    const wraps = operation === "wrapKey";
    const { enabled, nbf, exp } = version.attributes;
    if (!enabled && !(wraps && this.disabledWraps && version.kty !== "oct-HSM")) {
      throw new Refusal(403, "Forbidden", `Operation ${operation} is not allowed on a disabled key.`, "KeyDisabled");
    }
    // Which inner code the service gives here is not documented: none is given, so that nobody relies on one.
    const valid = (nbf === undefined || now() + VALIDITY_LEEWAY >= nbf) && (exp === undefined || now() - VALIDITY_LEEWAY < exp);
    if (wraps && !valid) throw new Refusal(403, "Forbidden", `Operation ${operation} is not allowed on a key outside its validity period.`);
    if (!version.key_ops.includes(operation)) {
      throw new Refusal(403, "Forbidden", `Operation ${operation} is not permitted on this key.`, "KeyOperationForbidden");
    }
    const bytes = decoded(value);
    const result = version.kty === "oct-HSM" ? aes(wraps, version, alg, bytes) : rsaOaep(wraps, version, alg, bytes);
    return { kid: this.kid(key, version), value: result.toString("base64url") };
  }
}

function rsaOaep(wraps, { material }, alg, bytes) {
  const oaepHash = RSA_HASHES[alg];
  if (!oaepHash) throw new Refusal(400, "BadParameter", `Algorithm ${alg} is not valid for this key.`);
  const how = { padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash };
  try {
    return wraps ? publicEncrypt({ key: material.publicKey, ...how }, bytes) : privateDecrypt({ key: material.privateKey, ...how }, bytes);
  } catch {
    throw new Refusal(400, "BadParameter", "The parameter is incorrect.");
  }
}

function aes(wraps, { material: { secret } }, alg, bytes) {
  if (AES_BYTES[alg] !== secret.length) throw new Refusal(400, "BadParameter", `Algorithm ${alg} is not valid for this key.`);
  const name = `id-aes${secret.length * 8}-wrap`;
  try {
    const cipher = wraps ? createCipheriv(name, secret, AES_KW_IV) : createDecipheriv(name, secret, AES_KW_IV);
    return Buffer.concat([cipher.update(bytes), cipher.final()]);
  } catch {
    throw new Refusal(400, "BadParameter", "The parameter is incorrect.");
  }
}
