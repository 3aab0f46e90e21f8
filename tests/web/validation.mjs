// Makes GraphQL documents and says of each what graphql-js finds wrong with it first: JSON, a list of pairs of the document and
// that, null for one that is valid. The same seed makes the same documents.
//
//   node validation.mjs schema.graphql SEED COUNT

import { readFileSync } from "node:fs";
import { documents } from "./documents.mjs";
import { load, run } from "./packages.mjs";

const { GraphQLError, Kind, buildSchema, parse, specifiedRules, validate, valueFromASTUntyped } = load("graphql");

/** All rules of GraphQL, and not the bound on introspection that graphql-js has beside them: ours is another. */
const RULES = specifiedRules.filter((rule) => rule.name !== "MaxIntrospectionDepthRule");

/** The schema, with what its own scalars take besides: the language of schemas has no word for it. */
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

/** Why graphql-js refuses a document; null where it does not. */
function refusedByGraphqlJs(schema, text) {
  let ast;
  try {
    ast = parse(text);
  } catch (error) {
    return `${error.message}`;
  }
  // graphql-js leaves that to the execution.
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
