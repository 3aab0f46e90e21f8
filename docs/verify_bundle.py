#!/usr/bin/env python3
"""Verifies a bundle of the audit log (docs/audit-log.md) without any code of byok, and stops at the first violation:
verify_bundle.py BUNDLE KEY [CHECKPOINT]. KEY is a public key, or several. Needs the package `cryptography`."""
import base64, collections, functools, hashlib, hmac, json, re, sys, unicodedata, uuid
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

NEXT = {"": ["header"], "header": ["key", "start"], "key": ["key", "start"], "end": []}  # else: whatever is below, or the end
WALK = {"skip": "count roots", "pruned": "count roots", "unreadable": "place leaf", "checkpoint": None, "end": "entries",
        "entry": "place tenant at id operation outcome means role user request detail items digest form reason ledger_hash "
                 "issuer extensions"}
KINDS = WALK | {"header": "format origin tenant log first from to size erasures_behind", "key": None, "start": "size roots"}
ITEM, PERSONAL = "dek_id key version source kms_request_id refused record", "hmac value salt"
LATER = "key_id wrapped_hash form wrapping_key_id"  # of an item, in form 2
FORM = "malformed-bundle: "
sha = lambda *parts: hashlib.sha256(b"".join(parts)).digest()
fields = lambda *values: b"".join(len(value).to_bytes(4, "big") + value for value in values)
text = lambda value: b"" if value is None else str.encode(value)  # fails for anything else
code = lambda value: b"" if value is None else b64(only(value, PERSONAL)["hmac"], 32)
hash32 = lambda value: b64(value, 32) if value is not None else b""
is_name = lambda value: re.fullmatch(r"[^\s+]+", value) is not None
root = lambda tree: functools.reduce(lambda right, left: sha(b"\1", left, right), [n for _, n in tree[::-1]] or [sha()])
check = lambda holds, finding: holds or sys.exit(finding)
array = lambda value: value if check(type(value) is list, FORM + "not a list") else []

def once(pairs):
    check(len(dict(pairs)) == len(pairs), FORM + "a member is there twice")
    return dict(pairs)

def only(value, names):  # an object with no other members than these
    check(names is None or set(value) <= set(names.split(" ")), FORM + "a member that is not known")
    return value

def integer(digits):
    check(digits != "-0", FORM + "not a number")
    return int(digits)

def number(value):
    check(type(value) is int and 0 <= value < 1 << 62, FORM + "not a number")
    return value

def b64(value, length):
    data = base64.b64decode(value, validate=True)
    check(len(data) == length and base64.b64encode(data).decode() == value, FORM + f"not {length} bytes in base64")
    return data

def identity(value):
    check(value is None or str(uuid.UUID(value)) == value, FORM + "not a UUID in its canonical form")
    return uuid.UUID(value).bytes if value else b""

def grow(tree, size, count, roots):  # `roots`: of the largest complete subtrees over the next `count` leaves
    for node in roots:
        check(count > 0, FORM + "more roots than these leaves have")
        level = min((size & -size or 1 << 62).bit_length(), count.bit_length()) - 1
        size, count = size + (1 << level), count - (1 << level)
        while tree and tree[-1][0] == level:  # two of one height become one
            level, node = level + 1, sha(b"\1", tree.pop()[1], node)
        tree.append((level, node))
    check(count == 0, FORM + "fewer roots than these leaves have")
    return size

def digest(tenant, entry):
    items, names, second = [], ("key", "version", "source", "kms_request_id", "refused"), "form" in entry
    check(not second or type(entry["form"]) is int and entry["form"] == 2, FORM + "a form of entries that is not known")
    for index, item in enumerate(array(entry["items"])):
        only(item, ITEM + " " + LATER)
        check(second or all(item.get(name) is None for name in LATER.split(" ")), FORM + "an item with what its form has not")
        said = [text(item.get(name)) for name in names] + [code(item.get("record"))]
        if second:
            said = [identity(item.get("key_id")), *said, hash32(item.get("wrapped_hash")), text(item.get("form"))]
            said += [identity(item.get("wrapping_key_id"))]
        grow(items, index, 1, [sha(b"\0", fields(identity(item.get("dek_id")), *said))])
    said = [str.encode(entry[name]) for name in ("operation", "outcome", "means", "role")]
    said += code(entry.get("user")), code(entry["request"]), text(entry.get("detail")), root(items)
    more = [array(pair) for pair in array(entry.get("extensions", []))]
    if second:
        names = [str.encode(name) for name, _ in more]
        check(all(one < other for one, other in zip(names, names[1:])), FORM + "extensions are not in their order")
        said += text(entry.get("reason")), hash32(entry.get("ledger_hash")), text(entry.get("issuer"))
        said += [str.encode(part) for pair in more for part in pair]
    else:
        absent = all(entry.get(name) is None for name in ("reason", "ledger_hash", "issuer")) and not more
        check(absent, FORM + "an entry with what its form has not")
    return sha(fields(b"byok-audit-entry/2" if second else b"byok-audit-entry/1", tenant, identity(entry["id"]), *said))

def key_of(value):  # a public key: its name, its id, and its 32 bytes
    name, said, data = value.split("+", 2)
    data = b64(data, 33)
    named = sha(f"{name}\n".encode(), data)[:4]
    check(is_name(name) and data[0] == 1 and named.hex() == said, FORM + "not a public key of a note's signer")
    return name, named, data[1:]

def note_of(note):  # what is signed, and the name, the id and the bytes of each signature
    small = len(note.encode()) <= 16 << 10 and not any(unicodedata.category(char) == "Cc" and char != "\n" for char in note)
    body, apart, lines = note.rpartition("\n\n")
    check(small and apart and lines.endswith("\n"), FORM + "not a checkpoint")
    signatures = []
    for line in lines[:-1].split("\n"):
        dash, name, data = line.split(" ", 2)
        decoded = base64.b64decode(data, validate=True)
        sound = dash == "\u2014" and is_name(name) and len(decoded) > 4 and base64.b64encode(decoded).decode() == data
        check(sound, FORM + "a signature that is none")
        signatures.append((name, decoded[:4], decoded[4:]))
    return body, signatures

def signed(note, keys, log):  # the size and the root of a checkpoint, if it is of this log and one of the keys has signed it
    body, signatures = note_of(note)
    origin, size, node = body.split("\n")[:3]
    check(origin and re.fullmatch("0|[1-9][0-9]*", size) and int(size) < 1 << 64, FORM + "not a checkpoint")
    check(origin == log, f"forged-checkpoint: the checkpoint of size {size} is of another log: {origin}")
    signers = ", ".join(f"{name}+{named.hex()}" for name, named, _ in signatures)
    named = [(key[2], one[2]) for key in keys for one in signatures if key[:2] == one[:2] and key[0] == log]
    check(named, f"wrong-key: no key that was given fits the checkpoint of size {size}: it says that it is signed with {signers}")
    for public, signature in named:
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(signature, f"{body}\n".encode())
        except InvalidSignature:
            continue
        return int(size), b64(node, 32)
    sys.exit(f"forged-checkpoint: the checkpoint of size {size} names a key that was given, and that key has not signed it")

def verify(path, keys, pinned=None):
    tree, size, gaps, prunes, entries, kind, closed, met = [], 0, [], [], 0, "", False, not pinned
    erased, hidden, awaiting = 0, 0, {kind: collections.deque(maxlen=1000) for kind in ("user", "record")}
    keys = [key_of(key) for key in keys.split()]
    for line in open(path, encoding="utf-8", newline="\n"):
        before, ((kind, value),) = kind, json.loads(line, object_pairs_hook=once, parse_int=integer).items()
        check(kind in NEXT.get(before, WALK) and line.endswith("\n"), FORM + f"{kind!r} after {before!r}")
        only(value, KINDS[kind])
        if kind == "header":
            head, tenant, place = value, bytes.fromhex(value["tenant"]), number(value["first"])
            check(value["format"] in ("byok-audit-bundle/1", "byok-audit-bundle/2"), FORM + kind)
            check(tenant.hex() == value["tenant"] and len(tenant) == 16, FORM + kind)
            check(value["origin"].endswith(f"/{number(value['log'])}") and value["log"] < 1 << 32, FORM + "of another log")
            check(type(value.get("erasures_behind", False)) is bool, FORM + "neither true nor false")
            check(place <= number(value["from"]) < number(value["to"]) <= place + number(value["size"]), FORM + "no such range")
            pinned = pinned and signed(open(pinned, encoding="utf-8", newline="").read(), keys, value["origin"])
        elif kind == "key":  # proves nothing: what counts is what was given
            check(key_of(value)[0] == head["origin"], FORM + "the key of another log")
        elif kind in ("start", "skip", "pruned"):
            place, count = head["first"] + size, number(value["size" if kind == "start" else "count"])
            check(kind != "start" or count <= head["from"] - place, FORM + "begins behind the range")
            check(kind == "start" or 0 < count <= head["size"] - size, FORM + "leaves that the last checkpoint does not speak of")
            if kind == "pruned" or kind == "skip" and place < head["to"] and place + count > head["from"]:
                gaps.append((place, place + count))
                hidden = place  # an erasure's entry may be among them
            size = grow(tree, size, count, [b64(node, 32) for node in array(value["roots"])])
        elif kind in ("entry", "unreadable"):
            place, entries = number(value["place"]), entries + 1
            check(place == head["first"] + size, f"removed-entry: place {head['first'] + size} is not there")
            check(kind == "entry", f"changed-field: the row of place {place} is no entry")
            check(head["format"].endswith("2") or "form" not in value, FORM + "an entry of a later form than the bundle")
            holds, named = digest(tenant, value) == b64(value["digest"], 32), value.get("tenant") is not None
            check(holds, f"{'wrong-tenant' if 'tenant' in value else 'changed-field'}: place {place}")
            check(not named, FORM + "an entry of this log that names a tenant")
            words = re.fullmatch("erase (user|record) 0 ([0-9]+)", value.get("detail") or "")
            if words and (value["operation"], value["outcome"]) == ("erase", "OK") and int(words[2]) <= place:
                while awaiting[words[1]] and awaiting[words[1]][0] < int(words[2]):
                    awaiting[words[1]].popleft()
            values = [("user", value.get("user")), ("user", value["request"])]
            for what, one in values + [("record", item.get("record")) for item in value["items"]]:
                salt = b64(one["salt"], 16) if one and one.get("salt") is not None else None
                if one and one.get("value") is None:
                    erased += 1
                    awaiting[what] += [] if awaiting[what] and awaiting[what][-1] == place else [place]
                elif one:
                    holds = salt and code(one) == hmac.digest(salt, str.encode(one["value"]), "sha256")
                    check(holds, f"changed-field: a personal value of place {place}")
            words = re.fullmatch("prune ([0-9]+) ([0-9]+) ([0-9]+)", value.get("detail") or "")
            if words and (value["operation"], value["outcome"], int(words[1])) == ("prune", "OK", head["log"]):
                first, past = int(words[2]), int(words[3])  # leaves: where the log begins is signed by nobody
                prunes += [(head["first"] + first, head["first"] + past)] if past <= size else []
            check(type(value["at"]) is int, FORM + "not a number")
            size = grow(tree, size, 1, [sha(b"\0", value["at"].to_bytes(8, "big", signed=True), b64(value["digest"], 32))])
        elif kind == "checkpoint":
            holds = signed(value, keys, head["origin"]) == (size, root(tree))
            check(holds, f"rewritten-history: not the checkpoint of size {size}")
        closed = kind == "checkpoint" and size == head["size"] or closed and kind == "end"
        if pinned and kind not in ("header", "key") and size == pinned[0]:
            met = check(root(tree) == pinned[1], "rewritten-history: not the log of the pinned checkpoint")
    check(kind == "end", FORM + "cut off")
    check(closed, "missing-checkpoint: no checkpoint covers all of it")
    for left, end in gaps:
        for first, past in sorted(prunes):
            left = past if first <= left < past else left
        oldest = left == head["first"] or left in [past for _, past in prunes]  # by a prune without an entry, or were removed
        kind = "unmarked-prune" if oldest else "removed-entry"
        check(left >= end, f"{kind}: from place {left} on, and no later entry says so")
    check(number(value["entries"]) == entries, FORM + "not the number of entries that the last line names")
    check(met, "pinned-not-shown: the bundle says nothing about the log at the pinned size")
    reaches = head["to"] == head["first"] + size and not head.get("erasures_behind", False)
    unsaid = sorted({*awaiting["user"], *awaiting["record"]})
    found = [place for place in unsaid if reaches and place >= hidden]  # for the others, an entry outside the range may say so
    check(not found, f"unmarked-erasure: place {[*found, 0][0]}: a value is not there, and no later entry says that it was "
                     f"erased; so at {len(found)} place(s)")
    said = f"places {head['from']} to before {head['to']} of {head['origin']}, tenant {tenant.hex()}, {entries} entries"
    said += f", {erased} values erased" if erased else ""
    return said + (f" (open: of {len(unsaid)} place(s) no entry that is shown says so)" if unsaid else "")

if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        print("usage: verify_bundle.py BUNDLE KEY [CHECKPOINT]\n\n  BUNDLE      a file that `byok audit export` wrote\n"
              "  KEY         the public key of the log, NAME+ID+KEY, or several, as `byok audit key` prints them\n"
              "  CHECKPOINT  a file with a checkpoint of the log that was saved elsewhere", file=sys.stderr)
        sys.exit(2)
    try:
        print(f"holds: {verify(*sys.argv[1:])}")
    except Exception as error:
        sys.exit(f"malformed-bundle: {error!r}")
