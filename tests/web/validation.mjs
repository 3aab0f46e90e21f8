// Makes GraphQL documents and prints the first error that graphql-js finds in each: JSON, a list of
// pairs of document and error, which is null for a valid document. The same seed makes the same
// documents.
//
//   node validation.mjs schema.graphql SEED COUNT

import { readFileSync } from "node:fs";
import { documents } from "./documents.mjs";
import { load, run } from "./packages.mjs";

const { GraphQLError, Kind, buildSchema, parse, specifiedRules, validate, valueFromASTUntyped } = load("graphql");

/** All rules of GraphQL, without graphql-js' own bound on introspection, which differs from ours. */
const RULES = specifiedRules.filter((rule) => rule.name !== "MaxIntrospectionDepthRule");

/** The schema, with the literals that its own scalars accept, which SDL cannot express. */
function schemaOf(text) {
  const schema = buildSchema(text);
  const hasEnum = (node) =>
    node.kind === Kind.ENUM ||
    (node.kind === Kind.LIST && node.values.some(hasEnum)) ||
    (node.kind === Kind.OBJECT && node.fields.some((field) => hasEnum(field.value)));
  const literal = (name, takes) => {
    schema.getType(name).parseLiteral = (node) => {
      if (!takes(node)) throw new GraphQLError(`not of type ${name}`);
      return valueFromASTUntyped(node, {});
    };
  };
  literal("jsonb", (node) => !hasEnum(node));
  literal("timestamptz", (node) => node.kind === Kind.STRING && /^\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)$/.test(node.value));
  return schema;
}

/** The reason why graphql-js refuses a document; null if it accepts it. */
function refusedByGraphqlJs(schema, text) {
  let ast;
  try {
    ast = parse(text);
  } catch (error) {
    return `${error.message}`;
  }
  // graphql-js checks that only on execution.
  const rootless = ast.definitions.some((each) => each.kind === Kind.OPERATION_DEFINITION && !schema.getRootType(each.operation));
  if (rootless) return "There is no root for the operation.";
  return validate(schema, ast, RULES)[0]?.message ?? null;
}

await run(async () => {
  const [file, seed, count] = process.argv.slice(2);
  const schema = schemaOf(readFileSync(file, "utf8"));
  const judged = documents(schema, Number(seed), Number(count)).map((text) => [text, refusedByGraphqlJs(schema, text)]);
  return JSON.stringify(judged);
});
