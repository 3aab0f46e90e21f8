"""A receiver of webhooks with the Python library of Standard Webhooks: verifies each delivery of standard input, an array of
{headers, body}, with the secret that is the argument, and prints what the library parsed of each."""
import json, sys
from standardwebhooks import Webhook

webhook = Webhook(sys.argv[1])
print(json.dumps([webhook.verify(one["body"], one["headers"]) for one in json.load(sys.stdin)]))
