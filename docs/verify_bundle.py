#!/usr/bin/env python3
"""Verifies a bundle of the audit log (docs/audit-log.md) without any code of byok, and stops at the first thing that does
not hold: verify_bundle.py BUNDLE KEY [CHECKPOINT]. Needs the package `cryptography`, for Ed25519."""
import base64, functools, hashlib, hmac, json, sys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

b64, sha = base64.b64decode, lambda *parts: hashlib.sha256(b"".join(parts)).digest()
fields = lambda *values: b"".join(len(value).to_bytes(4, "big") + value for value in values)
uuid = lambda text: bytes.fromhex((text or "").replace("-", ""))
text = lambda value: b64(value["hmac"]) if isinstance(value, dict) else (value or "").encode()
check = lambda holds, finding: holds or sys.exit(finding)

def grow(tree, size, count, roots):  # `roots`: of the largest complete subtrees over the next `count` leaves
    for node in roots:
        level = min((size & -size or 1 << 62).bit_length(), count.bit_length()) - 1
        size, count = size + (1 << level), count - (1 << level)
        while tree and tree[-1][0] == level:  # two of one height become one
            level, node = level + 1, sha(b"\1", tree.pop()[1], node)
        tree.append((level, node))
    return size

def root(tree):
    return functools.reduce(lambda right, left: sha(b"\1", left, right), [node for _, node in tree[::-1]] or [sha()])

def digest(tenant, entry):
    items = []
    for index, item in enumerate(entry["items"]):
        names = "key", "version", "source", "kms_request_id", "refused", "record"
        grow(items, index, 1, [sha(b"\0", fields(uuid(item.get("dek_id")), *(text(item.get(name)) for name in names)))])
    names = "operation", "outcome", "means", "role", "user", "request", "detail"
    values = [text(entry.get(name)) for name in names]
    return sha(fields(b"byok-audit-entry/1", tenant, uuid(entry["id"]), *values, root(items)))

def signed(note, key):  # the size and the root that the note of this key says (c2sp.org/tlog-checkpoint)
    name, _, public = key.split("+", 2)
    body, signatures = note.rsplit("\n\n", 1)
    for signature in (line.split(" ")[2] for line in signatures.splitlines() if line.split(" ")[1] == name):
        if b64(signature)[:4] == sha(name.encode() + b"\n" + b64(public))[:4]:
            Ed25519PublicKey.from_public_bytes(b64(public)[1:]).verify(b64(signature)[4:], f"{body}\n".encode())
            return int(body.split("\n")[1]), b64(body.split("\n")[2]) if body.split("\n")[0] == name else None
    sys.exit("forged-checkpoint: the key has not signed it")

def verify(path, key, checkpoint=None):
    gaps, prunes, tree, closed, met = set(), set(), [], False, checkpoint is None
    pinned = checkpoint and signed(open(checkpoint, encoding="utf-8").read(), key)
    for (kind, value), in (json.loads(line).items() for line in open(path, encoding="utf-8")):
        if kind == "header":
            head, size = value, 0
        elif kind == "start":
            size = grow(tree, 0, value["size"], map(b64, value["roots"]))
        elif kind in ("skip", "pruned"):
            places = range(head["first"] + size, head["first"] + size + value["count"])
            outside = places.stop <= head["from"] or places.start >= head["to"]
            check(kind == "pruned" or outside, f"removed-entry: places {places} of the range are skipped")
            size = grow(tree, size, value["count"], map(b64, value["roots"]))
            gaps.update(places if kind == "pruned" else ())
        elif kind == "unreadable":
            sys.exit(f"changed-field: the row of place {value['place']} is no entry")
        elif kind == "entry":
            check(value["place"] == head["first"] + size, f"removed-entry: place {head['first'] + size} is not there")
            holds = digest(bytes.fromhex(head["tenant"]), value) == b64(value["digest"])
            check(holds, f"{'wrong-tenant' if 'tenant' in value else 'changed-field'}: place {value['place']}")
            for one in [value.get("user"), value["request"], *(item.get("record") for item in value["items"])]:
                if one and "value" in one:  # else it was erased
                    said = hmac.digest(b64(one["salt"]), one["value"].encode(), "sha256")
                    check(said == b64(one["hmac"]), f"changed-field: a personal value of place {value['place']}")
            if (value["operation"], value["outcome"]) == ("prune", "OK"):
                prunes.update(range(*map(int, value["detail"].split(" ")[1:])))
            size = grow(tree, size, 1, [sha(b"\0", value["at"].to_bytes(8, "big", signed=True), b64(value["digest"]))])
        elif kind == "checkpoint":
            check(signed(value, key) == (size, root(tree)), f"rewritten-history: not the log of the checkpoint of {size}")
        closed = size == head["size"] if kind == "checkpoint" else closed and kind == "end"
        if pinned and kind not in ("header", "key") and size == pinned[0]:
            met = check(root(tree) == pinned[1], "rewritten-history: not the log of the pinned checkpoint")
    check(kind == "end", "malformed-bundle: cut off")
    check(closed, "missing-checkpoint: nothing that was signed speaks of all of it")
    check(gaps <= prunes, f"unmarked-prune: no entry names {len(gaps - prunes)} places")
    check(met, "pinned-not-shown: the bundle says nothing about the log at the pinned size")

if __name__ == "__main__":
    try:
        verify(*sys.argv[1:])
    except Exception as error:
        sys.exit(f"{'forged-checkpoint' if 'Signature' in repr(error) else 'malformed-bundle'}: {error!r}")
    print("holds")
