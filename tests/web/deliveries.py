"""A receiver of webhooks with the Python library of Standard Webhooks. It verifies each delivery on
standard input, an array of {headers, body}, with the secret in the first argument, and prints the
documents that the library parsed."""
import json, sys
from standardwebhooks import Webhook

webhook = Webhook(sys.argv[1])
print(json.dumps([webhook.verify(one["body"], one["headers"]) for one in json.load(sys.stdin)]))
