// Registers the server as Hasura v2 would, as far as the answer to introspection goes: the query in
// Hasura's form (fragments inlined, seven levels of `ofType`), Hasura's headers (no role, no JWT),
// and the rules by which Hasura accepts a remote schema.
//
//   BYOK_URL=http://127.0.0.1:3741 [BYOK_HASURA_SECRET=…] node introspection.mjs

import { fileURLToPath } from "node:url";
import { check, load, required, run } from "./packages.mjs";

const typeReference = (depth) => (depth === 0 ? "kind name" : `kind name ofType { ${typeReference(depth - 1)} }`);
const TYPE_REFERENCE = typeReference(7);
const INPUT_VALUE = `name description type { ${TYPE_REFERENCE} } defaultValue`;

/** Hasura's introspection query. */
export const hasuraIntrospectionQuery = `query IntrospectionQuery {
  __schema {
    queryType { name }
    mutationType { name }
    subscriptionType { name }
    types {
      kind
      name
      description
      fields(includeDeprecated: true) {
        name
        description
        args { ${INPUT_VALUE} }
        type { ${TYPE_REFERENCE} }
        isDeprecated
        deprecationReason
      }
      inputFields { ${INPUT_VALUE} }
      interfaces { ${TYPE_REFERENCE} }
      enumValues(includeDeprecated: true) { name description isDeprecated deprecationReason }
      possibleTypes { ${TYPE_REFERENCE} }
    }
    directives { name description locations args { ${INPUT_VALUE} } }
  }
}`;

/** The body that Hasura posts at registration: no `variables` key. */
export const hasuraIntrospectionBody = { query: hasuraIntrospectionQuery, operationName: "IntrospectionQuery" };

/** The headers that Hasura sends at registration: its own two and the remote schema's. */
export function hasuraIntrospectionHeaders(secret) {
  const headers = { "Content-Type": "application/json", "User-Agent": "hasura-graphql-engine/v2.48.0" };
  return secret ? { ...headers, "X-Byok-Secret": secret } : headers;
}

/** Posts Hasura's introspection request and returns its JSON. Like Hasura, it ignores the status. */
export async function introspect(url, secret) {
  const response = await fetch(`${url}/graphql`, {
    method: "POST",
    headers: hasuraIntrospectionHeaders(secret),
    body: JSON.stringify(hasuraIntrospectionBody),
  });
  return response.json();
}

const BUILT_IN = new Set(["Int", "Float", "String", "Boolean", "ID"]);
const INPUT_KINDS = new Set(["SCALAR", "ENUM", "INPUT_OBJECT"]);
const OUTPUT_KINDS = new Set(["SCALAR", "ENUM", "OBJECT", "INTERFACE", "UNION"]);

/** Everything in the answer that Hasura would refuse, or that byok promises not to have. */
export function problemsOf(answer) {
  const { buildClientSchema, parseValue, validateSchema } = load("graphql");
  const problems = [];
  const schema = answer?.data?.__schema;
  if (!schema) return [`no data.__schema in the answer: ${JSON.stringify(answer).slice(0, 400)}`];
  if ("errors" in answer) problems.push("the answer has an `errors` key, which makes Hasura drop the data");
  const types = new Map(schema.types.map((type) => [type.name, type]));
  const own = schema.types.filter((type) => !type.name.startsWith("__"));

  const named = (reference, where) => {
    for (let at = reference, depth = 0; at; at = at.ofType, depth += 1) {
      if (depth > 7) problems.push(`${where}: more wrapping than the query can see`);
      if (at.kind !== "NON_NULL" && at.kind !== "LIST") {
        if (!types.has(at.name)) problems.push(`${where}: could not find type ${at.name}`);
        return types.get(at.name);
      }
      if (!at.ofType) problems.push(`${where}: ${at.kind} without ofType`);
    }
    return undefined;
  };
  const inputValue = (value, where) => {
    const type = named(value.type, where);
    if (type && !INPUT_KINDS.has(type.kind)) problems.push(`${where}: ${type.name} is no input type`);
    if (value.defaultValue === null || value.defaultValue === undefined) return;
    problems.push(`${where}: has a default, which every role's SDL would have to repeat`);
    try {
      parseValue(value.defaultValue);
    } catch {
      problems.push(`${where}: the default ${value.defaultValue} is no GraphQL literal`);
    }
  };
  const written = (reference) =>
    reference.kind === "NON_NULL" ? `${written(reference.ofType)}!`
    : reference.kind === "LIST" ? `[${written(reference.ofType)}]`
    : reference.name;

  // Roots
  const queryRoot = types.get(schema.queryType?.name);
  if (queryRoot?.kind !== "OBJECT") problems.push("there is no query root that is an object");
  if (schema.subscriptionType) problems.push("there is a subscription root: Hasura does not forward subscriptions");
  const roots = [schema.queryType?.name, schema.mutationType?.name].filter(Boolean);
  for (const root of roots) {
    for (const field of types.get(root)?.fields ?? []) {
      if (!field.name.startsWith("byok")) problems.push(`${root}.${field.name}: may clash with a table's or another remote's field`);
      if (field.type.kind === "NON_NULL") problems.push(`${root}.${field.name}: a root that is not nullable loses its neighbours' data`);
    }
  }

  for (const type of own) {
    const prefixed = type.name.startsWith("Byok") || roots.includes(type.name) || BUILT_IN.has(type.name);
    // Scalars named after PostgreSQL's types merge with those that Hasura makes from columns.
    const merges = type.kind === "SCALAR" && ["bigint", "jsonb", "timestamptz"].includes(type.name);
    if (!prefixed && !merges) problems.push(`${type.name}: may clash with another type`);

    if (type.kind === "OBJECT" || type.kind === "INTERFACE") {
      if (!type.fields?.length) problems.push(`${type.name}: no fields`);
      for (const field of type.fields ?? []) {
        const where = `${type.name}.${field.name}`;
        if (!Array.isArray(field.args)) problems.push(`${where}: no list of args`);
        for (const arg of field.args ?? []) inputValue(arg, `${where}(${arg.name})`);
        const result = named(field.type, where);
        if (result && !OUTPUT_KINDS.has(result.kind)) problems.push(`${where}: ${result.name} is no output type`);
      }
    }
    for (const reference of type.interfaces ?? []) {
      const wanted = named(reference, type.name);
      if (wanted?.kind !== "INTERFACE") problems.push(`${type.name}: implements ${reference.name}, no interface`);
      for (const field of wanted?.fields ?? []) {
        const found = type.fields.find(({ name }) => name === field.name);
        if (!found) problems.push(`${type.name}: lacks ${wanted.name}.${field.name}`);
        const names = new Set(field.args.map(({ name }) => name));
        for (const arg of found?.args ?? []) {
          const extra = !names.has(arg.name) && arg.type.kind === "NON_NULL";
          if (extra) problems.push(`${type.name}.${field.name}(${arg.name}): not null, and not in ${wanted.name}`);
        }
      }
    }
    if (type.kind === "UNION") {
      const members = (type.possibleTypes ?? []).map((member) => named(member, type.name));
      if (!members.length || members.some((member) => member?.kind !== "OBJECT")) problems.push(`${type.name}: a union needs objects`);
    }
    if (type.kind === "ENUM" && !type.enumValues?.length) problems.push(`${type.name}: an enum without values crashes Hasura`);
    if (type.kind === "INPUT_OBJECT") {
      if (!type.inputFields?.length) problems.push(`${type.name}: no input fields`);
      for (const field of type.inputFields ?? []) inputValue(field, `${type.name}.${field.name}`);
    }
  }
  for (const directive of schema.directives) {
    for (const arg of directive.args) named(arg.type, `@${directive.name}(${arg.name})`);
  }

  // Hasura matches the arguments of a join by the names of their types.
  const reveal = queryRoot?.fields?.find(({ name }) => name === "byokReveal");
  const revealArgs = Object.fromEntries((reveal?.args ?? []).map((arg) => [arg.name, written(arg.type)]));
  const wanted = { ciphertext: "String!", recordId: "ID", context: "jsonb" };
  for (const [name, type] of Object.entries(wanted)) {
    if (revealArgs[name] !== type) problems.push(`byokReveal(${name}): ${revealArgs[name]}, a join needs ${type}`);
  }

  try {
    problems.push(...validateSchema(buildClientSchema(answer.data)).map(({ message }) => message));
  } catch (error) {
    problems.push(`graphql-js cannot build a client schema: ${error.message}`);
  }
  return problems;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await run(async () => {
    const answer = await introspect(required("BYOK_URL"), process.env.BYOK_HASURA_SECRET);
    const problems = problemsOf(answer);
    check(problems.length === 0, "Hasura would refuse this schema, or byok promised otherwise", problems);
    return `ok: ${answer.data.__schema.types.length} types, as Hasura needs them`;
  });
}
