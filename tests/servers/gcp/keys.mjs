// Keys: their rings, versions and states, and what encrypt and decrypt do with them.
// https://cloud.google.com/kms/docs/reference/rest/v1/projects.locations.keyRings.cryptoKeys/encrypt

import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";
import { badField, precondition, Refusal } from "./status.mjs";

const KIB = 1024;
/** Before the id of the version in a ciphertext; in base64 it reads `CiQ`, as Google's do. */
const PREFIX = Buffer.from([0x0a, 0x24, 0x00]);
const ID_BYTES = 32;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const STATES = ["ENABLED", "DISABLED", "DESTROY_SCHEDULED", "DESTROYED", "PENDING_GENERATION"];

/** Google's clients send enums by number, `curl` by name. */
const PURPOSES = { 1: "ENCRYPT_DECRYPT", 9: "MAC" };
const PROTECTIONS = { 1: "SOFTWARE", 2: "HSM", 3: "EXTERNAL" };
const STATE_NUMBERS = { 1: "ENABLED", 2: "DISABLED", 3: "DESTROYED", 4: "DESTROY_SCHEDULED", 5: "PENDING_GENERATION" };

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0x82f63b78 : byte >>> 1;
  return byte;
});

/** CRC32C, Castagnoli's polynomial reflected (RFC 3720, appendix B.4). */
export function crc32c(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ byte) & 0xff];
  return (crc ^ 0xffffffff) >>> 0;
}

export class Keys {
  rings = new Set();
  keys = new Map(); // name → { protection, purpose, primary, versions: Map(number → { id, key, state }) }

  // What the customer does.

  createRing(name) {
    if (this.rings.has(name)) throw new Refusal("ALREADY_EXISTS", `KeyRing ${name} already exists.`);
    this.rings.add(name);
    return { name, createTime: new Date().toISOString() };
  }

  createKey(name, { purpose, versionTemplate } = {}) {
    purpose = PURPOSES[purpose] ?? purpose;
    const protection = PROTECTIONS[versionTemplate?.protectionLevel] ?? versionTemplate?.protectionLevel ?? "SOFTWARE";
    const ring = name.split("/cryptoKeys/")[0];
    if (!this.rings.has(ring)) throw new Refusal("NOT_FOUND", `KeyRing ${ring} not found.`);
    if (this.keys.has(name)) throw new Refusal("ALREADY_EXISTS", `CryptoKey ${name} already exists.`);
    if (purpose !== "ENCRYPT_DECRYPT" && purpose !== "MAC")
      throw new Refusal("INVALID_ARGUMENT", "A CryptoKey must have a purpose.", [badField("crypto_key.purpose", "required")]);
    this.keys.set(name, { protection, purpose, primary: null, versions: new Map() });
    this.createVersion(name);
    this.setPrimary(name, "1");
    return this.key(name);
  }

  createVersion(name) {
    const key = this.#key(name);
    const number = key.versions.size + 1;
    key.versions.set(number, { id: randomBytes(ID_BYTES), key: randomBytes(32), state: "ENABLED" });
    return this.version(`${name}/cryptoKeyVersions/${number}`);
  }

  setPrimary(name, number) {
    const key = this.#key(name);
    this.#version(`${name}/cryptoKeyVersions/${number}`);
    key.primary = Number(number);
    return this.key(name);
  }

  setState(versionName, state) {
    const version = this.#version(versionName);
    state = STATE_NUMBERS[state] ?? state;
    if (!STATES.includes(state)) throw new Refusal("INVALID_ARGUMENT", "state is not one.", [badField("crypto_key_version.state", "unknown")]);
    if (version.state === "DESTROYED") throw notEnabled(versionName, version.state);
    version.state = state;
    if (state === "DESTROYED") version.key.fill(0);
    return this.version(versionName);
  }

  destroy(versionName) {
    const { state } = this.#version(versionName);
    if (state !== "ENABLED" && state !== "DISABLED") throw notEnabled(versionName, state);
    return { ...this.setState(versionName, "DESTROY_SCHEDULED"), destroyTime: new Date(Date.now() + 30 * 86_400_000).toISOString() };
  }

  restore(versionName) {
    const { state } = this.#version(versionName);
    if (state !== "DESTROY_SCHEDULED") throw notEnabled(versionName, state);
    return this.setState(versionName, "DISABLED");
  }

  remove(name) {
    this.#key(name);
    this.keys.delete(name);
    return {};
  }

  key(name) {
    const { purpose, primary, protection } = this.#key(name);
    return {
      name, purpose, versionTemplate: { protectionLevel: protection, algorithm: "GOOGLE_SYMMETRIC_ENCRYPTION" },
      ...(primary ? { primary: this.version(`${name}/cryptoKeyVersions/${primary}`) } : {}),
    };
  }

  version(name) {
    const { state } = this.#version(name);
    return { name, state, protectionLevel: this.#key(name.split("/cryptoKeyVersions/")[0]).protection, algorithm: "GOOGLE_SYMMETRIC_ENCRYPTION" };
  }

  versions(name) {
    const all = [...this.#key(name).versions.keys()].map((number) => this.version(`${name}/cryptoKeyVersions/${number}`));
    return { cryptoKeyVersions: all, totalSize: all.length };
  }

  // What we do. `alter` changes what arrived before it is looked at, as a broken machine on the way would.

  encrypt(name, body, alter = null) {
    const [keyName, number] = name.split("/cryptoKeyVersions/");
    const key = this.#key(keyName);
    const plaintext = bytesField(body, "plaintext", true);
    const aad = bytesField(body, "additionalAuthenticatedData");
    if (alter === "plaintext" && plaintext.length) plaintext[0] ^= 1;
    const verifiedPlaintextCrc32c = checked(body, "plaintext", plaintext);
    const verifiedAdditionalAuthenticatedDataCrc32c = checked(body, "additionalAuthenticatedData", aad);
    sizes(key, [["plaintext", plaintext], ["additional_authenticated_data", aad]]);
    purpose(key, keyName);
    if (!number && !key.primary)
      throw new Refusal("FAILED_PRECONDITION", `CryptoKey ${keyName} has no primary version.`);
    const versionName = `${keyName}/cryptoKeyVersions/${number ?? key.primary}`;
    const version = this.#enabled(versionName);
    const nonce = randomBytes(NONCE_BYTES);
    const cipher = createCipheriv("aes-256-gcm", version.key, nonce).setAAD(aad);
    const ciphertext = Buffer.concat([PREFIX, version.id, nonce, cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]);
    return {
      name: versionName, ciphertext: ciphertext.toString("base64"), ciphertextCrc32c: String(crc32c(ciphertext)),
      // Proto3's JSON leaves out what is false.
      ...(verifiedPlaintextCrc32c && { verifiedPlaintextCrc32c }),
      ...(verifiedAdditionalAuthenticatedDataCrc32c && { verifiedAdditionalAuthenticatedDataCrc32c }),
      protectionLevel: key.protection,
    };
  }

  decrypt(name, body, alter = null) {
    const key = this.#key(name);
    const ciphertext = bytesField(body, "ciphertext", true);
    const aad = bytesField(body, "additionalAuthenticatedData");
    if (alter === "ciphertext" && ciphertext.length) ciphertext[ciphertext.length - 1] ^= 1;
    checked(body, "ciphertext", ciphertext);
    checked(body, "additionalAuthenticatedData", aad);
    sizes(key, [["ciphertext", ciphertext], ["additional_authenticated_data", aad]]);
    purpose(key, name);
    const body_ = ciphertext.subarray(PREFIX.length + ID_BYTES);
    const id = ciphertext.subarray(PREFIX.length, PREFIX.length + ID_BYTES);
    const [number] = [...key.versions].find(([, version]) => version.id.equals(id)) ?? [];
    if (!number || !ciphertext.subarray(0, PREFIX.length).equals(PREFIX) || body_.length < NONCE_BYTES + TAG_BYTES)
      throw new Refusal("INVALID_ARGUMENT", "Decryption failed: verify that 'name' refers to the correct CryptoKey.");
    const version = this.#enabled(`${name}/cryptoKeyVersions/${number}`);
    try {
      const decipher = createDecipheriv("aes-256-gcm", version.key, body_.subarray(0, NONCE_BYTES)).setAAD(aad)
        .setAuthTag(body_.subarray(-TAG_BYTES));
      const plaintext = Buffer.concat([decipher.update(body_.subarray(NONCE_BYTES, -TAG_BYTES)), decipher.final()]);
      return {
        plaintext: plaintext.toString("base64"), plaintextCrc32c: String(crc32c(plaintext)),
        ...(number === key.primary && { usedPrimary: true }), protectionLevel: key.protection,
      };
    } catch {
      throw new Refusal("INVALID_ARGUMENT", "Decryption failed: the ciphertext is invalid.");
    }
  }

  #key(name) {
    const key = this.keys.get(name);
    if (!key) throw new Refusal("NOT_FOUND", `CryptoKey ${name} not found.`);
    return key;
  }

  #version(name) {
    const [keyName, number] = name.split("/cryptoKeyVersions/");
    const version = this.#key(keyName).versions.get(Number(number));
    if (!version) throw new Refusal("NOT_FOUND", `CryptoKeyVersion ${name} not found.`);
    return version;
  }

  #enabled(name) {
    const version = this.#version(name);
    if (version.state !== "ENABLED") throw notEnabled(name, version.state);
    return version;
  }
}

const notEnabled = (name, state) => new Refusal("FAILED_PRECONDITION", `${name} is not enabled, current state is: ${state}.`,
  [precondition(`KEY_${state}`, name, `${name} is not enabled, current state is: ${state}.`)]);

/** `bytes` in proto3's JSON: base64 of either alphabet. */
function bytesField(body, name, required = false) {
  const text = body[name] ?? "";
  if (typeof text !== "string" || !/^[A-Za-z0-9+/_-]*={0,2}$/.test(text))
    throw new Refusal("INVALID_ARGUMENT", `Invalid value at '${name}' (TYPE_BYTES), Base64 decoding failed for "${text}"`, [badField(name, "Base64 decoding failed")]);
  if (required && !text) throw new Refusal("INVALID_ARGUMENT", `${name} is required.`, [badField(name, "required")]);
  return Buffer.from(text, "base64");
}

/** Whether a checksum came and fits; one that does not fit is refused. */
function checked(body, name, bytes) {
  const sent = body[`${name}Crc32c`];
  if (sent === undefined || sent === null) return false;
  if (!/^\d+$/.test(String(sent)) || Number(sent) !== crc32c(bytes))
    throw new Refusal("INVALID_ARGUMENT", `The checksum in field ${name}_crc32c did not match the data in field ${name}.`);
  return true;
}

function sizes(key, fields) {
  const total = fields.reduce((sum, [, bytes]) => sum + bytes.length, 0);
  if (key.protection === "HSM" && total > 8 * KIB + (fields[0][0] === "ciphertext" ? 2 * KIB : 0))
    throw new Refusal("INVALID_ARGUMENT", "The combined length of the fields must be no larger than 8KiB for an HSM key.");
  for (const [name, bytes] of fields)
    if (bytes.length > 64 * KIB + (name === "ciphertext" ? KIB : 0))
      throw new Refusal("INVALID_ARGUMENT", `${name} must be no larger than 64KiB.`, [badField(name, "too large")]);
}

function purpose(key, name) {
  if (key.purpose !== "ENCRYPT_DECRYPT")
    throw new Refusal("FAILED_PRECONDITION", `The purpose of ${name} is ${key.purpose}, which this method does not support.`);
}
