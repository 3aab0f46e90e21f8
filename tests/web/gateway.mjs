// A real stitching gateway in front of byok. It registers the server by introspection, adds its own
// table, whose rows hold ciphertexts, forwards a user's claims like Hasura, and joins each row to
// `byokReveal`. It does not replace a test with Hasura: it shows that an independent GraphQL
// implementation can use the server as a remote schema.
//
//   BYOK_URL=http://127.0.0.1:3741 BYOK_HASURA_SECRET=… BYOK_JWT=… node gateway.mjs
//
// BYOK_JWT: a token that the server accepts, whose default role may encrypt and decrypt (for any
// record id).

import { introspect, problemsOf } from "./introspection.mjs";
import { check, load, required, run } from "./packages.mjs";

const { graphql, print } = load("graphql");
const { buildHTTPExecutor } = load("@graphql-tools/executor-http");
const { makeExecutableSchema } = load("@graphql-tools/schema");
const { delegateToSchema } = load("@graphql-tools/delegate");
const { stitchSchemas } = load("@graphql-tools/stitch");
const { schemaFromExecutor } = load("@graphql-tools/wrap");

const RECORD = `gateway-${process.pid}-${Date.now()}`;
const ROWS = ["first", "second", "third", "δέκα ☂", ""];

/** The headers that Hasura forwards for this JWT: the role and every other x-hasura-* claim. */
function claimHeaders(jwt) {
  const claims = JSON.parse(Buffer.from(jwt.split(".")[1] ?? "", "base64url").toString());
  const found = [claims["https://hasura.io/jwt/claims"], ...Object.values(claims), claims]
    .map((value) => (typeof value === "string" && value.startsWith("{") ? JSON.parse(value) : value))
    .find((value) => value && typeof value === "object" && "x-hasura-default-role" in value);
  check(found, "BYOK_JWT has no x-hasura-default-role claim");
  const headers = { "x-hasura-role": found["x-hasura-default-role"] };
  for (const [name, value] of Object.entries(found)) {
    if (/^x-hasura-(?!allowed-roles$|default-role$|role$)/i.test(name)) headers[name.toLowerCase()] = String(value);
  }
  return headers;
}

/** The gateway: byok's schema, and local `notes` whose rows are revealed under one alias each. */
async function gateway(url, secret) {
  const requests = [];
  const http = buildHTTPExecutor({
    endpoint: `${url}/graphql`,
    method: "POST",
    headers: (request) => ({ ...(secret ? { "X-Byok-Secret": secret } : {}), ...request?.context?.forward }),
  });
  const executor = (request) => {
    requests.push(print(request.document));
    return http(request);
  };
  const byok = { schema: await schemaFromExecutor(executor), executor, batch: true };
  const notes = makeExecutableSchema({
    typeDefs: "type Note { id: ID! recordId: ID! ciphertext: String! } type Query { notes: [Note!]! }",
    resolvers: { Query: { notes: (_root, _args, context) => context.notes } },
  });
  const schema = stitchSchemas({
    subschemas: [byok, { schema: notes }],
    typeDefs: "extend type Note { decrypted: ByokRevealed }",
    resolvers: {
      Note: {
        decrypted: {
          selectionSet: "{ ciphertext recordId }",
          resolve: ({ ciphertext, recordId }, _args, context, info) =>
            delegateToSchema({
              schema: byok,
              operation: "query",
              fieldName: "byokReveal",
              args: { ciphertext, recordId },
              context,
              info,
            }),
        },
      },
    },
  });
  const ask = async (source, variableValues = {}, contextValue = {}) => {
    const { data, errors } = await graphql({ schema, source, variableValues, contextValue });
    return { data: JSON.parse(JSON.stringify(data ?? null)), errors: errors?.map((error) => error.toJSON()) };
  };
  return { ask, requests };
}

const ENCRYPT = `mutation Encrypt($plaintext: String!, $recordId: ID!) {
  byokEncrypt(plaintext: $plaintext, recordId: $recordId) { ciphertext keyVersion }
}`;
const DECRYPT = `mutation Decrypt($ciphertext: String!, $recordId: ID!) {
  byokDecrypt(ciphertext: $ciphertext, recordId: $recordId) { plaintext }
}`;

await run(async () => {
  const url = required("BYOK_URL");
  const secret = required("BYOK_HASURA_SECRET");
  const jwt = required("BYOK_JWT");

  const problems = problemsOf(await introspect(url, secret));
  check(problems.length === 0, "Hasura would refuse the schema", problems);

  const { ask, requests } = await gateway(url, secret);
  const asUser = { forward: { Authorization: `Bearer ${jwt}`, ...claimHeaders(jwt) } };

  // One round trip, as the user.
  const encrypted = await ask(ENCRYPT, { plaintext: "through the gateway", recordId: RECORD }, asUser);
  check(!encrypted.errors, "byokEncrypt failed", encrypted);
  const { ciphertext } = encrypted.data.byokEncrypt;
  check(/^byok:v1:[A-Za-z0-9_-]+$/.test(ciphertext), "byokEncrypt returned no token", encrypted);
  const decrypted = await ask(DECRYPT, { ciphertext, recordId: RECORD }, asUser);
  check(decrypted.data?.byokDecrypt?.plaintext === "through the gateway", "byokDecrypt returned another plaintext", decrypted);

  // Several aliases of byokReveal in one request: a failure is data, and does not affect other rows.
  const tokens = [];
  for (const plaintext of ROWS) {
    const answer = await ask(ENCRYPT, { plaintext, recordId: RECORD }, asUser);
    check(!answer.errors, `byokEncrypt of ${JSON.stringify(plaintext)} failed`, answer);
    tokens.push(answer.data.byokEncrypt.ciphertext);
  }
  const alias = (token, index, recordId) =>
    `f${index}: byokReveal(ciphertext: ${JSON.stringify(token)}, recordId: ${JSON.stringify(recordId)}) { value form error { code } }`;
  const fields = [...tokens.map((token, index) => alias(token, index, RECORD)), alias(tokens[0], tokens.length, "another record")];
  const before = requests.length;
  const revealed = await ask(`query { ${fields.join("\n")} }`, {}, asUser);
  check(!revealed.errors, "byokReveal returned an error instead of data", revealed);
  ROWS.forEach((plaintext, index) => {
    check(revealed.data[`f${index}`]?.value === plaintext, `alias f${index} has another value`, revealed);
    check(revealed.data[`f${index}`]?.error === null, `alias f${index} has an error`, revealed);
  });
  const failed = revealed.data[`f${ROWS.length}`];
  check(failed?.value === null && failed?.error?.code, "a token of another record was not refused as data", revealed);
  check(requests.length === before + 1, "the aliases were not one request", requests.slice(before));

  // A join: the gateway's own rows, each with its plaintext from byok.
  const notes = tokens.map((token, index) => ({ id: String(index), recordId: RECORD, ciphertext: token }));
  const joined = await ask("{ notes { id decrypted { value } } }", {}, { ...asUser, notes });
  check(!joined.errors, "the join failed", joined);
  check(joined.data.notes.every((note, index) => note.decrypted.value === ROWS[index]), "the join mixed up its rows", joined);

  // Nothing is decrypted without claims, or with claims without the shared secret.
  const anonymous = await ask(DECRYPT, { ciphertext, recordId: RECORD });
  check(anonymous.errors && !anonymous.data?.byokDecrypt, "a call without a role was served", anonymous);
  const { ask: askForged } = await gateway(url, undefined);
  const forged = await askForged(DECRYPT, { ciphertext, recordId: RECORD }, { forward: claimHeaders(jwt) });
  check(forged.errors && !forged.data?.byokDecrypt, "x-hasura-* headers counted without the shared secret", forged);

  return `ok: registered, encrypted, decrypted, revealed ${ROWS.length} aliases and ${ROWS.length} joined rows, refused 2 calls`;
});
