// Makes GraphQL documents for a schema: most start as valid ones and are then changed in one or two
// points. The same seed makes the same documents.

import { load } from "./packages.mjs";

const {
  Kind, parse, print, visit,
  getNamedType, getNullableType, isCompositeType, isEnumType, isInputObjectType, isListType, isNonNullType,
  SchemaMetaFieldDef, TypeMetaFieldDef,
} = load("graphql");

/** Introspection fields that graphql-js has and other servers may lack: no document uses them. */
const UNASKED = new Set(["isOneOf", "specifiedByURL", "isRepeatable", "description"]);
const UNASKED_ARGUMENTS = new Set(["includeDeprecated"]);
const MOMENTS = ['"2026-11-23T10:00:00Z"', '"2026-11-23T10:00:00.5+01:00"'];
const LITERALS = [
  "0", "-0", "7", "-1", "2147483647", "2147483648", "1.5", "1e3", "true", "false", "null", '""', '"a"', '"UTF8"', '"""block"""',
  '"\\u0041"', "UTF8", "BASE64", "OK", "ENCRYPT", "NOTHING", "[]", "{}", '["a"]', "[1, null]", "[[]]", '{a: "b"}', '{ciphertext: "c"}',
  '{plaintext: "p", encoding: UTF8}', '[{ciphertext: "c"}]', "{operation: AUDIT}", ...MOMENTS, '"yesterday"',
];
const NAMES = ["nothing", "status", "ciphertext", "Query", "ByokHealth", "ByokEncoding", "id", "__typename", "first", "F1", "v1"];
const TYPES = [
  "String", "String!", "Int", "Int!", "ID", "ID!", "Boolean", "Boolean!", "jsonb", "timestamptz", "ByokEncoding", "ByokEncoding!", "[String]",
  "[ByokDecryptItem!]!", "[ByokDecryptItem!]", "ByokDecryptItem!", "[ByokEncryptItem!]!", "ByokAuditFilter", "ByokHealth", "Nothing",
  "ByokOperation", "[[String!]!]!",
];

/** A generator of numbers from 0 to 1 (mulberry32). */
function numbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Returns the texts of `count` documents. */
export function documents(schema, seed, count) {
  const random = numbers(seed);
  const chance = (share) => random() < share;
  const below = (limit) => Math.floor(random() * limit);
  const pick = (list) => list[below(list.length)];
  const repeat = (from, to, make) => Array.from({ length: from + below(to - from + 1) }, make);

  function fieldsOf(type) {
    const fields = Object.values(type.getFields());
    if (type === schema.getQueryType()) fields.push(SchemaMetaFieldDef, TypeMetaFieldDef);
    if (type.name === "__Directive") return fields.filter((field) => ["name", "locations", "args"].includes(field.name));
    return type.name.startsWith("__") ? fields.filter((field) => !UNASKED.has(field.name)) : fields;
  }

  /** A valid document. */
  function valid() {
    let serial = 0;
    const name = (prefix) => `${prefix}${(serial += 1)}`;
    const fragments = [];

    function value(type, variables, depth) {
      if (variables && chance(0.3)) return variable(type, variables);
      if (isNonNullType(type)) return literal(type.ofType, variables, depth);
      return chance(0.1) ? "null" : literal(type, variables, depth);
    }

    function literal(type, variables, depth) {
      if (isListType(type)) {
        if (chance(0.15)) return literal(getNullableType(type.ofType), variables, depth);
        return `[${repeat(0, 2, () => value(type.ofType, variables, depth + 1)).join(" ")}]`;
      }
      if (isEnumType(type)) return pick(type.getValues()).name;
      if (isInputObjectType(type)) {
        const given = Object.values(type.getFields()).filter((field) => isNonNullType(field.type) || chance(0.4));
        return `{${given.map((field) => `${field.name}: ${value(field.type, variables, depth + 1)}`).join(" ")}}`;
      }
      switch (type.name) {
        case "Int": return pick(["0", "1", "-7", "2147483647", "-0"]);
        case "Boolean": return pick(["true", "false"]);
        case "ID": return pick(['"x"', "7", '""', '"""x"""']);
        case "timestamptz": return pick(MOMENTS);
        case "jsonb": return pick(['{record_id: "r"}', "{}", "[1]", '"x"', "1.5", "{a: {b: [null]}}"]);
        default: return pick(['""', '"x"', '"\\u{1F600}"', '"""a "b" c"""']);
      }
    }

    /** A variable that is valid for this type. */
    function variable(type, variables) {
      const known = [...variables].filter(([, definition]) => definition.wanted === String(type));
      if (known.length && chance(0.5)) return `$${pick(known)[0]}`;
      const named = name("v");
      const wanted = String(type);
      let [written, standard] = [wanted, ""];
      if (isNonNullType(type) && chance(0.25)) {
        written = String(type.ofType);
        standard = ` = ${literal(type.ofType, null, 0)}`;
      } else if (!isNonNullType(type) && chance(0.25)) {
        written = `${wanted}!`;
      } else if (chance(0.25)) {
        standard = ` = ${value(type, null, 0)}`;
      }
      variables.set(named, { wanted, text: `$${named}: ${written}${standard}` });
      return `$${named}`;
    }

    function directives(variables) {
      if (chance(0.88)) return "";
      const condition = () => (variables && chance(0.4) ? variable(schema.getDirective("skip").args[0].type, variables) : pick(["true", "false"]));
      return pick([["skip"], ["include"], ["include", "skip"]]).map((which) => ` @${which}(if: ${condition()})`).join("");
    }

    function field(type, variables, depth) {
      const chosen = pick(fieldsOf(type).filter((each) => depth < 4 || !isCompositeType(getNamedType(each.type))).concat(null));
      if (!chosen) return `${chance(0.5) ? `${name("a")}: ` : ""}__typename${directives(variables)}`;
      const given = chosen.args.filter((each) => !UNASKED_ARGUMENTS.has(each.name) && (isNonNullType(each.type) || chance(0.4)));
      const args = given.length ? `(${given.map((each) => `${each.name}: ${value(each.type, variables, 0)}`).join(", ")})` : "";
      const alias = args || chance(0.3) ? `${name("a")}: ` : "";
      const named = getNamedType(chosen.type);
      const inner = isCompositeType(named) ? ` ${selections(named, variables, depth + 1)}` : "";
      return `${alias}${chosen.name}${args}${directives(variables)}${inner}`;
    }

    function selection(type, variables, depth) {
      const draw = random();
      if (draw < 0.06 && depth < 4) return `... on ${type.name}${directives(variables)} ${selections(type, variables, depth + 1)}`;
      if (draw < 0.1 && depth < 4) return `...${directives(variables)} ${selections(type, variables, depth + 1)}`;
      if (draw < 0.18 && depth < 4 && fragments.length < 4) {
        const known = fragments.filter((each) => each.type === type && each.whole && !each.takes);
        if (known.length && chance(0.5)) return `...${pick(known).name}${directives(variables)}`;
        const before = variables.size;
        const fragment = { name: name("F"), type, whole: false };
        fragments.push(fragment);
        fragment.text = `fragment ${fragment.name} on ${type.name} ${selections(type, variables, depth + 1)}`;
        fragment.whole = true;
        // Its variables are defined only in the operation that it was made for.
        fragment.takes = variables.size > before || fragment.text.includes("$");
        return `...${fragment.name}${directives(variables)}`;
      }
      return field(type, variables, depth);
    }

    function selections(type, variables, depth) {
      return `{ ${repeat(1, depth < 2 ? 4 : 3, () => selection(type, variables, depth)).join(" ")} }`;
    }

    const several = chance(0.15);
    const operations = repeat(several ? 2 : 1, several ? 3 : 1, () => {
      const kind = chance(0.6) ? "query" : "mutation";
      const variables = new Map();
      const body = selections(kind === "query" ? schema.getQueryType() : schema.getMutationType(), variables, 0);
      const defined = [...variables.values()].map((each) => each.text).join(", ");
      if (kind === "query" && !several && !defined && chance(0.5)) return body;
      return `${kind}${several || chance(0.5) ? ` ${name("Q")}` : ""}${defined ? `(${defined})` : ""} ${body}`;
    });
    return [...operations, ...fragments.map((each) => each.text)].join("\n");
  }

  /** Every node of these kinds, with its key and its parent, which may be a list. */
  function nodesOf(ast, ...kinds) {
    const found = [];
    visit(ast, {
      enter(node, key, parent) {
        if (kinds.includes(node.kind)) found.push({ node, key, parent });
      },
    });
    return found;
  }

  const replace = ({ key, parent }, by) => {
    if (parent && by) parent[key] = by;
  };
  const copy = (node) => structuredClone(node);
  const valueOf = (text) => copy(parse(`{a(b: ${text})}`).definitions[0].selectionSet.selections[0].arguments[0].value);
  const typeOf = (text) => copy(parse(`query($a: ${text}) {a}`).definitions[0].variableDefinitions[0].type);
  const selectionsOf = (text) => copy(parse(`{${text}}`).definitions[0].selectionSet);
  const directiveOf = (text) => copy(parse(`{a ${text}}`).definitions[0].selectionSet.selections[0].directives[0]);
  const VALUES = [
    Kind.VARIABLE, Kind.INT, Kind.FLOAT, Kind.STRING, Kind.BOOLEAN, Kind.NULL, Kind.ENUM, Kind.LIST, Kind.OBJECT,
  ];

  /** Changes of a document, which usually make it invalid. */
  const changes = [
    (ast) => rename(pick(nodesOf(ast, Kind.FIELD, Kind.ARGUMENT, Kind.OBJECT_FIELD))?.node),
    (ast) => rename(pick(nodesOf(ast, Kind.FRAGMENT_SPREAD, Kind.FRAGMENT_DEFINITION, Kind.DIRECTIVE, Kind.NAMED_TYPE))?.node),
    (ast) => rename(pick(nodesOf(ast, Kind.VARIABLE))?.node),
    (ast) => {
      const value = pick(nodesOf(ast, ...VALUES).filter(({ parent }) => parent?.kind !== Kind.VARIABLE_DEFINITION));
      if (value) replace(value, valueOf(pick(LITERALS)));
    },
    (ast) => {
      const value = pick(nodesOf(ast, ...VALUES).filter(({ parent }) => parent?.kind !== Kind.VARIABLE_DEFINITION));
      if (value) replace(value, { kind: Kind.LIST, values: [value.node] });
    },
    (ast) => {
      const list = pick(nodesOf(ast, Kind.LIST).filter(({ node }) => node.values.length));
      if (list) replace(list, list.node.values[0]);
    },
    (ast) => {
      const definition = pick(nodesOf(ast, Kind.VARIABLE_DEFINITION))?.node;
      if (!definition) return;
      const type = definition.type;
      const loose = type.kind === Kind.NON_NULL_TYPE ? type.type : { kind: Kind.NON_NULL_TYPE, type };
      definition.type = pick([loose, typeOf(pick(TYPES)), { kind: Kind.LIST_TYPE, type }, loose]);
    },
    (ast) => {
      const definition = pick(nodesOf(ast, Kind.VARIABLE_DEFINITION))?.node;
      if (definition) definition.defaultValue = chance(0.4) ? undefined : valueOf(pick(LITERALS));
    },
    (ast) => drop(ast, Kind.ARGUMENT),
    (ast) => drop(ast, Kind.VARIABLE_DEFINITION),
    (ast) => drop(ast, Kind.FRAGMENT_SPREAD, Kind.FRAGMENT_DEFINITION, Kind.OBJECT_FIELD, Kind.FIELD),
    (ast) => double(ast, Kind.ARGUMENT, Kind.OBJECT_FIELD),
    (ast) => double(ast, Kind.VARIABLE_DEFINITION),
    (ast) => double(ast, Kind.FRAGMENT_DEFINITION, Kind.OPERATION_DEFINITION, Kind.DIRECTIVE, Kind.FIELD),
    (ast) => {
      const node = pick(nodesOf(ast, Kind.FIELD))?.node;
      if (node) node.selectionSet = node.selectionSet ? undefined : selectionsOf(pick(["x", "__typename", "status"]));
    },
    (ast) => {
      const [one, other] = [pick(nodesOf(ast, Kind.FIELD))?.node, pick(nodesOf(ast, Kind.FIELD))?.node];
      if (one && other) one.alias = copy(other.alias ?? other.name);
    },
    (ast) => {
      const node = pick(nodesOf(ast, Kind.FRAGMENT_DEFINITION))?.node;
      if (node) node.selectionSet.selections.push({ kind: Kind.FRAGMENT_SPREAD, name: copy(node.name), directives: [] });
    },
    (ast) => {
      const fields = nodesOf(ast, Kind.SELECTION_SET);
      const spread = pick(["... on ByokHealth { status }", "... on Query { __typename }", "... on jsonb { x }", "...F1", "...F2", "... { status }"]);
      pick(fields).node.selections.push(...selectionsOf(spread).selections);
    },
    (ast) => {
      const kinds = [
        Kind.OPERATION_DEFINITION, Kind.FRAGMENT_DEFINITION, Kind.VARIABLE_DEFINITION, Kind.FIELD, Kind.FRAGMENT_SPREAD, Kind.INLINE_FRAGMENT,
      ];
      const node = pick(nodesOf(ast, ...kinds)).node;
      const written = [
        "@skip(if: true)", "@include(if: $v1)", "@include", '@skip(if: "true")', "@nothing", "@deprecated", '@specifiedBy(url: "x")', "@oneOf",
        "@skip(if: true, x: 1)", "@include(if: null)",
      ];
      node.directives = [...(node.directives ?? []), directiveOf(pick(written))];
    },
    (ast) => {
      const operation = pick(nodesOf(ast, Kind.OPERATION_DEFINITION)).node;
      operation.operation = pick(["query", "mutation", "subscription"]);
    },
    (ast) => {
      const added = [
        "fragment Unused on Query { __typename }", "query Other { __typename }", "{ __typename }", "type T { a: Int }", "extend type Query { a: Int }",
        "fragment F1 on Nothing { a }", "fragment On on ByokEncoding { a }", "fragment Loop on Query { ...Loop }",
      ];
      ast.definitions.push(copy(parse(pick(added)).definitions[0]));
    },
    (ast) => {
      const operation = pick(nodesOf(ast, Kind.OPERATION_DEFINITION)).node;
      const more = parse(`query($${pick(["more", "v1", "v2"])}: ${pick(TYPES)}) {a}`).definitions[0].variableDefinitions;
      operation.variableDefinitions = [...(operation.variableDefinitions ?? []), ...copy(more)];
    },
  ];

  function rename(node) {
    if (!node?.name) return;
    node.name.value = chance(0.5) ? pick(NAMES) : `${node.name.value}x`;
  }

  function drop(ast, ...kinds) {
    const found = pick(nodesOf(ast, ...kinds).filter(({ parent }) => Array.isArray(parent) && parent.length > 1));
    if (found) found.parent.splice(found.parent.indexOf(found.node), 1);
  }

  function double(ast, ...kinds) {
    const found = pick(nodesOf(ast, ...kinds).filter(({ parent }) => Array.isArray(parent)));
    if (found) found.parent.splice(below(found.parent.length + 1), 0, copy(found.node));
  }

  /** A change of the text, after which it usually does not parse. */
  function misspelt(text) {
    const words = text.match(/"""[^]*?"""|"[^"]*"|\.\.\.|[A-Za-z0-9_]+|\s+|[^]/g);
    const at = below(words.length);
    const other = pick(["{", "}", "(", ")", "[", "]", ":", "$", "@", "!", "...", '"', "#", ",", " ", "on", "null", "0", "-", ".", "|", "&", "=", "true", "fragment"]);
    switch (below(3)) {
      case 0: words.splice(at, 1); break;
      case 1: words.splice(at, 0, other); break;
      default: words[at] = other;
    }
    return words.join("");
  }

  return Array.from({ length: count }, () => {
    const text = valid();
    if (chance(0.2)) return text;
    if (chance(0.12)) return misspelt(text);
    const ast = copy(parse(text, { noLocation: true }));
    for (let times = chance(0.75) ? 1 : 2; times > 0; times -= 1) pick(changes)(ast);
    return print(ast);
  });
}
