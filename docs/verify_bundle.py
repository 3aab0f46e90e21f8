#!/usr/bin/env python3
"""Verifies a bundle of the audit log (docs/audit-log.md) without any code of byok, up to the first thing that does not
hold: verify_bundle.py BUNDLE KEY [CHECKPOINT]. Needs the package `cryptography`, for Ed25519."""
import base64, functools, hashlib, hmac, json, sys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

b64, sha = base64.b64decode, lambda *parts: hashlib.sha256(b"".join(parts)).digest()
fields = lambda *values: b"".join(len(value).to_bytes(4, "big") + value for value in values)
uuid = lambda text: bytes.fromhex((text or "").replace("-", ""))
text = lambda value: b64(value["hmac"]) if isinstance(value, dict) else (value or "").encode()
root = lambda tree: functools.reduce(lambda right, left: sha(b"\1", left, right), [n for _, n in tree[::-1]] or [sha()])
check = lambda holds, finding: holds or sys.exit(finding)

def grow(tree, size, count, roots):  # `roots`: of the largest complete subtrees over the next `count` leaves
    for node in roots:
        level = min((size & -size or 1 << 62).bit_length(), count.bit_length()) - 1
        size, count = size + (1 << level), count - (1 << level)
        while tree and tree[-1][0] == level:  # two of one height become one
            level, node = level + 1, sha(b"\1", tree.pop()[1], node)
        tree.append((level, node))
    return size

def digest(tenant, entry):
    items, names = [], ("key", "version", "source", "kms_request_id", "refused", "record")
    for index, item in enumerate(entry["items"]):
        grow(items, index, 1, [sha(b"\0", fields(uuid(item.get("dek_id")), *(text(item.get(name)) for name in names)))])
    names = "operation", "outcome", "means", "role", "user", "request", "detail"
    said = [text(entry.get(name)) for name in names]
    return sha(fields(b"byok-audit-entry/1", tenant, uuid(entry["id"]), *said, root(items)))

def signed(note, key):  # the size and the root of a checkpoint, if it is of the key's log and the key has signed it
    (name, _, public), (body, signatures) = key.split("+", 2), note.rsplit("\n\n", 1)
    for signer, signature in (line.split(" ")[1:] for line in signatures.splitlines()):
        if signer == name == body.split("\n")[0] and b64(signature)[:4] == sha(f"{name}\n".encode(), b64(public))[:4]:
            Ed25519PublicKey.from_public_bytes(b64(public)[1:]).verify(b64(signature)[4:], f"{body}\n".encode())
            return int(body.split("\n")[1]), b64(body.split("\n")[2])
    sys.exit("forged-checkpoint: this key has not signed it")

def verify(path, key, pinned=None):
    tree, size, gaps, prunes, closed, met = [], 0, set(), set(), False, not pinned
    pinned = pinned and signed(open(pinned, encoding="utf-8").read(), key)
    for (kind, value), in (json.loads(line).items() for line in open(path, encoding="utf-8")):
        if kind == "header":
            head, place = value, value["first"]
        elif kind in ("start", "skip", "pruned"):
            place, count = head["first"] + size, value["size" if kind == "start" else "count"]
            inside = place < head["to"] and place + count > head["from"]
            gaps.update(range(place, place + count) if kind == "pruned" or kind == "skip" and inside else ())
            size = grow(tree, size, count, map(b64, value["roots"]))
        elif kind in ("entry", "unreadable"):
            place = value["place"]
            check(place == head["first"] + size, f"removed-entry: place {head['first'] + size} is not there")
            check(kind == "entry", f"changed-field: the row of place {place} is no entry")
            holds = digest(bytes.fromhex(head["tenant"]), value) == b64(value["digest"])
            check(holds, f"{'wrong-tenant' if 'tenant' in value else 'changed-field'}: place {place}")
            for one in [value.get("user"), value["request"], *(item.get("record") for item in value["items"])]:
                holds = not one or "value" not in one or text(one) == hmac.digest(b64(one["salt"]), one["value"].encode(), "sha256")
                check(holds, f"changed-field: a personal value of place {place}")
            if (value["operation"], value["outcome"]) == ("prune", "OK"):
                prunes.update(range(*map(int, value["detail"].split(" ")[1:])))
            size = grow(tree, size, 1, [sha(b"\0", value["at"].to_bytes(8, "big", signed=True), b64(value["digest"]))])
        elif kind == "checkpoint":
            check(signed(value, key) == (size, root(tree)), f"rewritten-history: not the checkpoint of size {size}")
        closed = kind == "checkpoint" and size == head["size"] or closed and kind == "end"
        if pinned and kind not in ("header", "key") and size == pinned[0]:
            met = check(root(tree) == pinned[1], "rewritten-history: not the log of the pinned checkpoint")
    check(kind == "end", "malformed-bundle: cut off")
    check(closed, "missing-checkpoint: nothing that was signed speaks of all of it")
    left = min(gaps - prunes, default=None)  # the oldest go by a prune that nothing says, others were removed
    kind = "unmarked-prune" if left == head["first"] or left and left - 1 in prunes else "removed-entry"
    check(left is None, f"{kind}: from place {left} on, and no later entry says so")
    check(met, "pinned-not-shown: the bundle says nothing about the log at the pinned size")

if __name__ == "__main__":
    try:
        verify(*sys.argv[1:])
    except Exception as error:
        sys.exit(f"{'forged-checkpoint' if 'Signature' in repr(error) else 'malformed-bundle'}: {error!r}")
    print("holds")
