// A receiver of webhooks with the npm library of Standard Webhooks. It verifies each delivery on
// standard input, an array of {headers, body}, with the secret in the first argument, and prints
// the documents that the library parsed.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const require = createRequire(process.env.BYOK_TEST_NODE_MODULES + "/");
const { Webhook } = require("standardwebhooks");

const webhook = new Webhook(process.argv[2]);
const deliveries = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(deliveries.map(({ headers, body }) => webhook.verify(body, headers))));
