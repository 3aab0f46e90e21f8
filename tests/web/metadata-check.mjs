// Checks the Hasura metadata directory against byok's schema, with Hasura's own rules for
// permissions and relationships of remote schemas (graphql-engine,
// Hasura/RemoteSchema/SchemaCache).
//
//   node metadata-check.mjs SCHEMA.graphql METADATA_DIRECTORY

import { existsSync, readFileSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { check, load, run } from "./packages.mjs";

const { buildSchema, parse, print, validate, Kind } = load("graphql");
const YAML = load("yaml");

const BUILT_IN = new Set(["Int", "Float", "String", "Boolean", "ID"]);
const FILES = [
  "version.yaml",
  "remote_schemas.yaml",
  "databases/databases.yaml",
  "allow_list.yaml",
  "query_collections.yaml",
  "inherited_roles.yaml",
  "actions.yaml",
  "actions.graphql",
  "cron_triggers.yaml",
  "network.yaml",
  "rest_endpoints.yaml",
  "graphql_schema_introspection.yaml",
  "api_limits.yaml",
];

const problems = [];
const problem = (where, what) => problems.push(`${where}: ${what}`);

/** Reads a YAML file and the files it includes: `!include path`, relative to the including file. */
function readYaml(path) {
  const document = YAML.parseDocument(readFileSync(path, "utf8"), { strict: true, uniqueKeys: true });
  for (const fault of [...document.errors, ...document.warnings]) problem(path, fault.message);
  const include = (value) => {
    if (typeof value === "string" && value.startsWith("!include ")) {
      const included = join(dirname(path), value.slice("!include ".length));
      if (existsSync(included)) return readYaml(included);
      problem(path, `includes ${included}, which is not there`);
      return null;
    }
    if (Array.isArray(value)) return value.map(include);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, include(inner)]));
    }
    return value;
  };
  return include(document.toJS());
}

const exactlyOne = (object, ...keys) => keys.filter((key) => object?.[key] !== undefined).length === 1;
const byName = (nodes) => new Map((nodes ?? []).map((node) => [node.name.value, node]));
const baseName = (type) => (type.kind === Kind.NAMED_TYPE ? type.name.value : baseName(type.type));

function checkRemoteSchema(remote, sdl) {
  const { name, definition } = remote;
  const where = `remote schema ${name}`;
  if (!name || !definition) return problem(where, "needs a name and a definition");
  if (!exactlyOne(definition, "url", "url_from_env")) problem(where, "exactly one of url and url_from_env");
  const seconds = definition.timeout_seconds;
  if (seconds !== undefined && !(Number.isInteger(seconds) && seconds > 0)) problem(where, "timeout_seconds is no whole number");
  if (definition.forward_client_headers !== true) problem(where, "must forward the client's headers, its JWT among them");
  for (const header of definition.headers ?? []) {
    if (!header.name || !exactlyOne(header, "value", "value_from_env")) {
      problem(where, "a header needs a name and exactly one of value and value_from_env");
    }
    if (header.value !== undefined && /secret|token|key/i.test(header.name)) problem(where, `${header.name} holds a secret in the file`);
    if (/^(authorization|x-hasura-.*)$/i.test(header.name)) problem(where, `${header.name} would replace the caller's own`);
  }
  const roles = (remote.permissions ?? []).map(({ role }) => role);
  if (new Set(roles).size !== roles.length) problem(where, "a role has two permissions");
  for (const { role, definition: permission } of remote.permissions ?? []) {
    if (role === "admin") problem(where, "admin has every permission and may be given none");
    checkRole(`role ${role}`, permission?.schema ?? "", sdl);
  }
}

/** Checks a role's schema against the whole one. */
function checkRole(where, text, sdl) {
  let document;
  try {
    document = parse(text);
  } catch (error) {
    return problem(where, `its schema does not parse: ${error.message}`);
  }
  const types = new Map();
  let roots = null;
  for (const node of document.definitions) {
    if (node.kind === Kind.SCHEMA_DEFINITION) roots = new Map(node.operationTypes.map((root) => [root.operation, root.type.name.value]));
    else if (!node.kind.endsWith("TypeDefinition")) problem(where, `${node.kind} is not allowed`);
    else if (types.has(node.name.value)) problem(where, `${node.name.value} is defined twice`);
    else types.set(node.name.value, node);
  }
  const query = roots ? roots.get("query") : "Query";
  if (!types.has(query)) problem(where, "query root does not exist in the schema definition");
  for (const [operation, root] of roots ?? []) {
    if (!types.has(root)) problem(where, `its ${operation} root ${root} is not defined`);
    if (root !== sdl.roots.get(operation)) problem(where, `the ${operation} root is ${sdl.roots.get(operation)}, not ${root}`);
  }
  for (const [name, node] of types) {
    const whole = sdl.types.get(name);
    if (!whole) problem(where, `there is no type ${name}`);
    else if (whole.kind !== node.kind) problem(where, `${name} is of another kind`);
    else checkType(`${where}: ${name}`, node, whole, types);
    if (node.directives?.length) problem(where, `${name} has a directive`);
  }
}

function checkType(where, node, whole, types) {
  const subset = (items, wholeItems, what, inner) => {
    const all = byName(wholeItems);
    const seen = new Set();
    if (!items?.length) problem(where, `has no ${what}`);
    for (const item of items ?? []) {
      const name = item.name.value;
      if (seen.has(name)) problem(where, `${what} ${name} is there twice`);
      seen.add(name);
      if (!all.has(name)) problem(where, `there is no ${what} ${name}`);
      else inner?.(item, all.get(name));
    }
  };
  const sameType = (at, type, wholeType) => {
    if (print(type) !== print(wholeType)) problem(at, `is ${print(type)}, should be ${print(wholeType)}`);
    const base = baseName(type);
    if (!BUILT_IN.has(base) && !types.has(base)) problem(at, `uses ${base}, which the role's schema does not declare`);
  };
  const inputs = (at, values, wholeValues) => {
    const all = byName(wholeValues);
    const given = byName(values);
    for (const [name, value] of given) {
      if (!all.has(name)) {
        problem(at, `there is no ${name}`);
        continue;
      }
      const inner = `${at}(${name})`;
      sameType(inner, value.type, all.get(name).type);
      const defaults = [value, all.get(name)].map(({ defaultValue }) => (defaultValue ? print(defaultValue) : null));
      if (defaults[0] !== defaults[1]) problem(inner, `its default is ${defaults[0]}, should be ${defaults[1]}`);
      checkPreset(inner, value, types);
    }
    for (const [name, value] of all) {
      const needed = value.type.kind === Kind.NON_NULL_TYPE && !value.defaultValue;
      if (needed && !given.has(name)) problem(at, `lacks ${name}, which is not null`);
    }
  };

  switch (node.kind) {
    case Kind.OBJECT_TYPE_DEFINITION:
    case Kind.INTERFACE_TYPE_DEFINITION:
      subset(node.fields, whole.fields, "field", (field, wholeField) => {
        const at = `${where}.${field.name.value}`;
        sameType(at, field.type, wholeField.type);
        inputs(at, field.arguments, wholeField.arguments);
        if (field.directives.length) problem(at, "has a directive");
      });
      break;
    case Kind.INPUT_OBJECT_TYPE_DEFINITION:
      if (!node.fields?.length) problem(where, "has no fields");
      inputs(where, node.fields, whole.fields);
      break;
    case Kind.ENUM_TYPE_DEFINITION:
      subset(node.values, whole.values, "value");
      // A role gets all values of an enum or none, since an entry may have any of them.
      for (const { name } of whole.values) {
        if (!node.values?.some((value) => value.name.value === name.value)) problem(where, `lacks the value ${name.value}`);
      }
      break;
    case Kind.UNION_TYPE_DEFINITION:
      subset(node.types, whole.types, "member");
      break;
    case Kind.SCALAR_TYPE_DEFINITION:
      break;
    default:
      problem(where, `${node.kind} is not allowed`);
  }
}

/** Checks `@preset(value:, static:)`: a session variable needs a scalar or an enum, not a list. */
function checkPreset(where, value, types) {
  for (const directive of value.directives ?? []) {
    if (directive.name.value !== "preset") {
      problem(where, `@${directive.name.value} is not allowed`);
      continue;
    }
    const given = byName(directive.arguments);
    for (const name of given.keys()) if (name !== "value" && name !== "static") problem(where, `@preset takes no ${name}`);
    const preset = given.get("value")?.value;
    if (!preset) {
      problem(where, "@preset has no value");
      continue;
    }
    const fromSession =
      preset.kind === Kind.STRING && /^x-hasura-/i.test(preset.value) && given.get("static")?.value.value !== true;
    const type = value.type.kind === Kind.NON_NULL_TYPE ? value.type.type : value.type;
    const declared = types.get(baseName(type))?.kind;
    const single = type.kind === Kind.NAMED_TYPE && declared !== Kind.INPUT_OBJECT_TYPE_DEFINITION;
    if (fromSession && !single) problem(where, "a session variable can be preset only on a scalar or an enum");
  }
}

/** Checks remote relationships: they need a query of byok, existing arguments and joined columns. */
function checkTable(table, names, sdl) {
  const where = `table ${table?.table?.schema}.${table?.table?.name}`;
  for (const { name, definition } of table?.remote_relationships ?? []) {
    const target = definition?.to_remote_schema;
    const at = `${where}, ${name}`;
    if (!target) continue;
    if (!names.has(target.remote_schema)) problem(at, `there is no remote schema ${target.remote_schema}`);
    const [[fieldName, call] = []] = Object.entries(target.remote_field ?? {});
    const field = byName(sdl.types.get(sdl.roots.get("query")).fields).get(fieldName);
    if (!field) {
      problem(at, `${fieldName} is no query, and a relationship cannot reach a mutation`);
      continue;
    }
    const known = byName(field.arguments);
    const used = new Set();
    for (const [argument, value] of Object.entries(call.arguments ?? {})) {
      if (!known.has(argument)) problem(at, `${fieldName} has no argument ${argument}`);
      if (typeof value !== "string" || !value.startsWith("$")) continue;
      used.add(value.slice(1));
      if (!target.lhs_fields?.includes(value.slice(1))) problem(at, `${value} is not among lhs_fields`);
    }
    for (const column of target.lhs_fields ?? []) if (!used.has(column)) problem(at, `${column} is joined and not used`);
    for (const [argument, { type, defaultValue }] of known) {
      const needed = type.kind === Kind.NON_NULL_TYPE && !defaultValue;
      if (needed && !(argument in (call.arguments ?? {}))) problem(at, `${argument} is left to the caller of every row`);
    }
  }
}

await run(async () => {
  const [schemaPath, directory] = process.argv.slice(2);
  check(schemaPath && directory, "usage: node metadata-check.mjs SCHEMA.graphql METADATA_DIRECTORY");
  const source = readFileSync(schemaPath, "utf8");
  const schema = buildSchema(source);
  const sdl = {
    types: new Map(parse(source).definitions.filter((node) => node.name).map((node) => [node.name.value, node])),
    roots: new Map([
      ["query", schema.getQueryType()?.name],
      ["mutation", schema.getMutationType()?.name],
    ]),
  };

  for (const file of FILES) if (!existsSync(join(directory, file))) problem(file, "is not there");
  const read = (file) => readYaml(join(directory, file));
  for (const file of readdirSync(directory).filter((name) => name.endsWith(".yaml"))) read(file);
  if (read("version.yaml")?.version !== 3) problem("version.yaml", "is not version: 3");

  const remotes = read("remote_schemas.yaml");
  for (const remote of remotes) checkRemoteSchema(remote, sdl);
  const names = new Set(remotes.map(({ name }) => name));
  for (const database of read("databases/databases.yaml")) {
    for (const table of database.tables ?? []) checkTable(table, names, sdl);
    const folder = join(directory, "databases", database.name, "tables");
    const files = existsSync(folder) ? readdirSync(folder).length - 1 : 0;
    if (files !== (database.tables ?? []).length) problem(folder, "holds a file that tables.yaml does not include");
  }

  const collections = new Map(read("query_collections.yaml").map((collection) => [collection.name, collection]));
  for (const { collection } of read("allow_list.yaml")) {
    if (!collections.has(collection)) problem("allow_list.yaml", `there is no collection ${collection}`);
  }
  for (const { name, definition } of collections.values()) {
    for (const { name: operation, query } of definition.queries) {
      for (const error of validate(schema, parse(query))) problem(`collection ${name}, ${operation}`, error.message);
    }
  }

  check(problems.length === 0, "Hasura would not accept the metadata", problems);
  const roles = remotes.flatMap(({ permissions }) => (permissions ?? []).map(({ role }) => role));
  return `ok: ${remotes.length} remote schema, roles ${roles.join(", ")}`;
});
