// The customer's hand: what a test does to keys, identities, roles and the network, and what it counts. Paths below
// `/control/` of any service's address; JSON in, JSON out; needs no token.

import { Refusal } from "./keys.mjs";
import { World } from "./world.mjs";

export async function control(world, target, { method, url, body }) {
  const [what, name, act] = url.pathname.split("/").filter(Boolean).slice(1).map(decodeURIComponent);
  const given = JSON.parse(body || "{}");
  const vault = world[target === "hsm" ? "hsm" : "vault"];
  const { keys } = vault;
  const { entra } = world;
  switch (`${method} ${what}`) {
    // Another customer, with ports of its own.
    case "POST worlds":
      return (await World.start(world.tls)).addresses;

    // Keys: without `act`, a new key or a new version of it.
    case "POST keys":
      if (act === "attributes") return keys.update(name, given.version, given);
      if (act === "recover") return keys.recover(name);
      if (act === "purge") return keys.purge(name), {};
      return keys.create(name, given);
    case "DELETE keys":
      return keys.delete(name);
    case "GET keys":
      return { exists: keys.live.has(name), versions: keys.live.get(name)?.versions.map(({ id }) => id) ?? [] };

    // Identities: POST adds one, PATCH changes one (`disabled`, `blocked`, `secrets`, `federated`).
    case "POST principals":
      return entra.add(given);
    case "PATCH principals":
      return Object.assign(entra.principals.get(name), given);
    case "DELETE principals":
      entra.principals.delete(name);
      return {};

    // What they may do: role assignments `{oid, scope, actions}`, or access policies `{oid, permissions}`.
    case "POST roles":
      vault.roles.push(given);
      return {};
    case "DELETE roles":
      vault.roles = vault.roles.filter(({ oid }) => oid !== name);
      return {};
    case "POST policies":
      vault.policies.set(given.oid, given.permissions);
      return {};
    // `mode` (`rbac` or `policy`), `closedBy` (`ForbiddenByFirewall`, `ForbiddenByConnection`, null), `disabledWraps`; and
    // what the challenge names: `authority`, `challengeTenant`,
    // `challengeResource`.
    case "POST vault": {
      const { disabledWraps, ...rest } = given;
      if (disabledWraps !== undefined) keys.disabledWraps = disabledWraps;
      Object.assign(vault, rest);
      return {};
    }

    // Its log so far, in records of a diagnostic setting's.
    case "GET audit":
      return vault.audit;

    // Tokens: how long new ones live, and the end of all that were given.
    case "POST tokens":
      entra.tokenSeconds = given.seconds;
      return {};
    case "DELETE tokens":
      entra.revoke();
      return {};

    // `{target, operation?, times?}` and one of `status` (with `headers`, `body`), `reset`, `cut`, `corrupt`, `replace`;
    // `delay` (ms) alone or before one of these. An AADSTS code gives the authority's answer for it.
    case "POST faults": {
      const { aadsts, ...fault } = given;
      if (aadsts) Object.assign(fault, entra.failed(aadsts), { target: "authority", operation: "token" });
      world.faults.push({ times: 1, ...fault });
      return {};
    }
    case "DELETE faults":
      world.faults = [];
      return {};

    case "GET counters":
      return { ...world.counters, mostUnderWay: world.mostUnderWay ?? 0 };
    case "DELETE counters":
      world.counters = {};
      world.mostUnderWay = 0;
      return {};
  }
  throw new Refusal(404, "NotFound", "There is no such control.");
}
