#!/usr/bin/env python3
"""Makes the vectors of the audit log: leaves.json, and bundle.jsonl with its key and a pinned checkpoint. Written from
docs/audit-log.md alone, it shares no code with byok nor with docs/verify_bundle.py. Needs the package `cryptography`.

The log has 10 entries: three that were pruned (places 0 to 2), one with every field of the first form, a batch of three
items, one that was erased, the one that says what was pruned, one with every field of the second form, and two more. The
bundle has places 0 to 7 of it. bundle-erased.jsonl has all of the same log when it had three entries more: two that say what
was erased, of users before place 10 and of records before place 6, and another. bundle-1.jsonl and checkpoint-5 are what this script made before entries had a second form:
they are not made any more, and verify for ever."""
import base64, hashlib, hmac, json, pathlib
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

HERE = pathlib.Path(__file__).parent
TENANT = bytes(range(16))
ORIGIN = "byok.example/acme/1"

def b64(data):
    return base64.b64encode(data).decode()

def fields(*values):
    return b"".join(len(value).to_bytes(4, "big") + value for value in values)

def mth(leaves):
    """RFC 6962, section 2.1, of hashes of leaves."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\1" + mth(leaves[:split]) + mth(leaves[split:])).digest()

def personal(value, number, erased=False):
    salt = bytes([number]) * 16
    code = b64(hmac.new(salt, value.encode(), hashlib.sha256).digest())
    return {"hmac": code} if erased else {"value": value, "salt": b64(salt), "hmac": code}

def uuid(number):
    text = f"{number:032x}"
    return "-".join([text[:8], text[8:12], text[12:16], text[16:20], text[20:]])

def item(number, **more):
    return {"dek_id": uuid(0x0193_0000_0000_7000_8000_0000_0000_0000 + number), "key": "customer/key", "version": "3", **more}

def entry(place, operation, items=(), user=None, detail=None, outcome="OK", means="jwt", role="service", erased=False):
    result = {"place": place, "at": 1_700_000_000_000_000 + place * 1_000_000,
              "id": uuid(0x018b_cfe5_6800_7000_8000_0000_0000_0000 + place),
              "operation": operation, "outcome": outcome, "means": means, "role": role}
    if user is not None:
        result["user"] = personal(user, 1, erased)
    result["request"] = personal(f"request-{place}", 2, erased)
    if detail is not None:
        result["detail"] = detail
    result["items"] = list(items)
    return result

def item_bytes(one, form):
    hash_of = base64.b64decode(one["record"]["hmac"]) if "record" in one else b""
    identity = lambda name: bytes.fromhex(one[name].replace("-", "")) if name in one else b""
    texts = [one.get(name, "").encode() for name in ("key", "version", "source", "kms_request_id", "refused")]
    if form == 1:
        return fields(identity("dek_id"), *texts, hash_of)
    wrapped = base64.b64decode(one["wrapped_hash"]) if "wrapped_hash" in one else b""
    return fields(identity("dek_id"), identity("key_id"), *texts, hash_of, wrapped, one.get("form", "").encode(),
                  identity("wrapping_key_id"))

def covered(one):
    form = one.get("form", 1)
    items = mth([hashlib.sha256(b"\0" + item_bytes(each, form)).digest() for each in one["items"]])
    user = base64.b64decode(one["user"]["hmac"]) if "user" in one else b""
    more = []
    if form == 2:
        ledger = base64.b64decode(one["ledger_hash"]) if "ledger_hash" in one else b""
        more = [one.get("reason", "").encode(), ledger, one.get("issuer", "").encode()]
        more += [part.encode() for pair in one.get("extensions", []) for part in pair]
    return fields(b"byok-audit-entry/%d" % form, TENANT, bytes.fromhex(one["id"].replace("-", "")), one["operation"].encode(),
                  one["outcome"].encode(), one["means"].encode(), one["role"].encode(), user,
                  base64.b64decode(one["request"]["hmac"]), one.get("detail", "").encode(), items, *more)

def leaf(one):
    digest = hashlib.sha256(covered(one)).digest()
    one["digest"] = b64(digest)
    return hashlib.sha256(b"\0" + one["at"].to_bytes(8, "big", signed=True) + digest).digest()

def checkpoint(key, size, root):
    body = f"{ORIGIN}\n{size}\n{b64(root)}\n"
    return f"{body}\n\u2014 {ORIGIN} {b64(key_id(key) + key.sign(body.encode()))}\n"

def public(key):
    return b"\1" + key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

def key_id(key):
    return hashlib.sha256(ORIGIN.encode() + b"\n" + public(key)).digest()[:4]

def main():
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    batch = [item(1, source="kms", kms_request_id="kms-1", record=personal("record-1", 3)),
             item(2, source="cache", record=personal("r\u00e9cord-2", 4)),
             {"refused": "DECRYPT_FAILED", "record": personal("record-3", 5)}]
    entries = [entry(place, "decrypt", [item(place)]) for place in range(3)]
    entries.append(entry(3, "encrypt", [item(3, source="kms", record=personal("record-3", 6))], user="user-7"))
    entries.append(entry(4, "decrypt", batch, user="", outcome="PARTIAL", means="hasura_secret"))
    entries.append(entry(5, "reveal", [item(5, record=personal("record-5", 7, erased=True))], user="user-8", erased=True))
    entries.append(entry(6, "prune", detail="prune 1 0 3", means="operator", role="operator"))
    made = item(7, source="kms", kms_request_id="kms-7", record=personal("record-7", 8), key_id=uuid(0x77),
                wrapped_hash=b64(hashlib.sha256(b"wrapped").digest()), form="mask", wrapping_key_id=uuid(0x78))
    second = entry(7, "encrypt", [made, {"refused": "DECRYPT_FAILED"}], user="user-9", outcome="PARTIAL")
    second |= {"form": 2, "reason": "support-case", "ledger_hash": b64(hashlib.sha256(b"ledger").digest()),
               "issuer": "https://id.example", "extensions": [["unknown", "\u00fc"], ["unlisted-refusals", "DECRYPT_FAILED=3"],
                                                              ["voids", uuid(0x018b_cfe5_6800_7000_8000_0000_0000_0003)]]}
    entries.append(second)
    entries += [entry(8, "audit", user="auditor") | {"form": 2}, entry(9, "encrypt", [item(8)])]
    leaves = [leaf(one) for one in entries]
    vectors = [{"tenant": TENANT.hex(), "entry": one, "items": [item_bytes(each, one.get("form", 1)).hex() for each in one["items"]],
                "covered": covered(one).hex(), "leaf": leaf(one).hex()} for one in entries[3:9]]
    (HERE / "leaves.json").write_text(json.dumps(vectors, indent=1) + "\n")
    lines = [{"header": {"format": "byok-audit-bundle/2", "origin": ORIGIN, "tenant": TENANT.hex(), "log": 1, "first": 0,
                         "from": 0, "to": 8, "size": 10}},
             {"key": f"{ORIGIN}+{key_id(key).hex()}+{b64(public(key))}"},
             {"start": {"size": 0, "roots": []}},
             {"pruned": {"count": 3, "roots": [b64(mth(leaves[:2])), b64(leaves[2])]}}]
    lines += [{"entry": one} for one in entries[3:5]]
    lines += [{"checkpoint": checkpoint(key, 5, mth(leaves[:5]))}]
    lines += [{"entry": one} for one in entries[5:8]]
    lines += [{"skip": {"count": 2, "roots": [b64(mth(leaves[8:]))]}},
              {"checkpoint": checkpoint(key, 10, mth(leaves))}, {"end": {"entries": 5}}]
    (HERE / "bundle.jsonl").write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    entries += [entry(10, "erase", detail="erase user 0 10", means="operator", role="operator") | {"form": 2},
                entry(11, "erase", detail="erase record 0 6", means="operator", role="operator") | {"form": 2},
                entry(12, "encrypt", [item(12, record=personal("record-12", 9))], user="user-12") | {"form": 2}]
    leaves = [leaf(one) for one in entries]
    header = lines[0]["header"] | {"to": 13, "size": 13}
    later = [{"header": header}, *lines[1:7], *({"entry": one} for one in entries[5:]),
             {"checkpoint": checkpoint(key, 13, mth(leaves))}, {"end": {"entries": 10}}]
    (HERE / "bundle-erased.jsonl").write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in later))
    (HERE / "key").write_text(lines[1]["key"] + "\n")
    assert (HERE / "checkpoint-5").read_text() == lines[6]["checkpoint"]

main()
