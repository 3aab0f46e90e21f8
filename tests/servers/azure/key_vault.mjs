// A stand-in for Azure Key Vault, Managed HSM, Entra's token endpoint and IMDS, for tests. Loopback only.
//
//   node key_vault.mjs --cert FILE --key FILE [--port N]
//
// It prints one line of JSON, the addresses of a first customer's services: `vault`, `hsm`, `authority` (HTTPS with that
// certificate), `imds` (HTTP) and the `tenant`; with `--port N` these are N to N+3. `POST /control/worlds` on any of them
// gives another customer's. It ends when its standard input does.
//
// What is real: RSA-OAEP and AES-KW, versions and their attributes, soft delete, tokens and their checks, role
// assignments and access policies. What is not: everything behind them. `vendor_check.py` runs Microsoft's own clients
// against it.

import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { World } from "./world.mjs";

const { values } = parseArgs({ options: { cert: { type: "string" }, key: { type: "string" }, port: { type: "string", default: "0" } } });
const tls = { cert: readFileSync(values.cert), key: readFileSync(values.key) };
const world = await World.start(tls, Number(values.port));
console.log(JSON.stringify(world.addresses));
process.stdin.resume().on("end", () => process.exit(0));
