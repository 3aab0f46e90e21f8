// Waits for a new dev-mode Vault, then gives it what tests expect: transit at transit/, a key
// `byok`, no creation of keys by encrypting with an unknown name, and a file audit device.
// usage: node vault-setup.mjs PID ADDRESS TOKEN AUDIT-FILE
const [pid, address, token, auditFile] = process.argv.slice(2);
const deadline = Date.now() + 60_000;

function fail(message) {
  console.error(`vault-setup: ${message}`);
  process.exit(1);
}

async function call(method, path, body) {
  const response = await fetch(`${address}/v1/${path}`, {
    method,
    headers: { "X-Vault-Token": token },
    body: body && JSON.stringify(body),
  });
  if (!response.ok) fail(`${method} ${path}: ${response.status} ${await response.text()}`);
  return response;
}

// Whoever answers on the port must be our server: another one would not know the token.
for (;;) {
  try {
    process.kill(Number(pid), 0);
  } catch {
    fail("the server ended");
  }
  try {
    const response = await fetch(`${address}/v1/auth/token/lookup-self`, { headers: { "X-Vault-Token": token } });
    if (response.ok) break;
  } catch {
    // not listening yet
  }
  if (Date.now() > deadline) fail("no answer within 60 s");
  await new Promise((resolve) => setTimeout(resolve, 50));
}

await call("POST", "sys/mounts/transit", { type: "transit" });
await call("POST", "transit/keys/byok", { type: "aes256-gcm96" });
await call("POST", "transit/config/keys", { disable_upsert: true });
// Last, so that the log starts with what the tests do.
await call("POST", "sys/audit/file", { type: "file", options: { file_path: auditFile } });
