// The byok page: a bar that holds a JWT for as long as the page is open, and GraphiQL below it. The token lives in the
// closure of this file and nowhere else: not in the browser's storage, not in a cookie, not in GraphiQL's own state. What is
// edited outlives a reload, in this tab's own storage, which ends with the tab: documents and variables, in which every text is
// emptied that could be a plaintext. No answer is kept.
"use strict";

(() => {
  const ENDPOINT = "/graphql";
  const byId = (id) => document.getElementById(id);

  /** @type {{ token: string, role: string, defaultRole: string } | null} */
  let session = null;

  const EXAMPLES = [
    {
      query: `# Encrypts a value for one record.
# Keep the ciphertext in your own table.
mutation Encrypt(
  $plaintext: String!
  $recordId: ID!
  $field: String
) {
  byokEncrypt(
    plaintext: $plaintext
    recordId: $recordId
    field: $field
  ) {
    ciphertext
    keyVersion
  }
}
`,
      variables: { plaintext: "sensitive-data", recordId: "user-123", field: "note" },
    },
    {
      query: `# Takes what Encrypt answered, with the
# same record id and field.
mutation Decrypt(
  $ciphertext: String!
  $recordId: ID!
  $field: String
) {
  byokDecrypt(
    ciphertext: $ciphertext
    recordId: $recordId
    field: $field
  ) {
    plaintext
  }
}
`,
      variables: { ciphertext: "byok:v1:", recordId: "user-123", field: "note" },
    },
    { query: "# Can the key be used now?\nquery Health {\n  byokHealth {\n    status\n  }\n}\n", variables: null },
  ];

  const KEPT_AS = "byok-edits";
  /** The arguments and variables whose texts are kept: none of them is a plaintext. */
  const KEPT = new Set([
    "after", "ciphertext", "encoding", "field", "from", "id", "name", "operation", "outcome", "record_id", "recordId", "until", "user",
  ]);
  const NO_TOKEN = "byok:v1:";

  /** A document without the texts that could be plaintexts. */
  const scrubDocument = (text) =>
    text.replace(/(?:(\w+)\s*:\s*)?("""[^]*?"""|"(?:\\.|[^"\\\n])*")/g, (all, name, literal) =>
      KEPT.has(name) ? all : `${all.slice(0, -literal.length)}""`,
    );

  /** Variables without the texts that could be plaintexts; null while they are no JSON. */
  function scrubVariables(text) {
    try {
      const value = JSON.parse(text, (key, inner) => (typeof inner === "string" && !KEPT.has(key) ? "" : inner));
      return JSON.stringify(value, null, 2);
    } catch {
      return null;
    }
  }

  /** Keeps what is edited over a reload. A browser may refuse to: then it does not. */
  function keepEdits(tabs) {
    const kept = tabs.map(({ query, variables }) => ({
      query: scrubDocument(query ?? ""),
      variables: variables ? scrubVariables(variables) : null,
    }));
    try {
      sessionStorage.setItem(KEPT_AS, JSON.stringify(kept));
    } catch {
      // Full, or turned off.
    }
  }

  function keptEdits() {
    try {
      const kept = JSON.parse(sessionStorage.getItem(KEPT_AS));
      return Array.isArray(kept) && kept.length ? kept : null;
    } catch {
      return null;
    }
  }

  function forgetEdits() {
    try {
      sessionStorage.removeItem(KEPT_AS);
    } catch {
      // Turned off: there are none.
    }
  }

  /** What the last encrypt answered, with what is needed to decrypt it; what of that the Decrypt tab was given already. */
  let made = null;
  let given = null;

  function noticeMade({ variables }, answer) {
    const ciphertext = answer?.data?.byokEncrypt?.ciphertext;
    if (typeof ciphertext === "string") made = { ciphertext, recordId: variables?.recordId, field: variables?.field };
  }

  /** The Decrypt tab's variables with the token that was made, unless somebody has put in another one. */
  function withMade(tab) {
    if (!made || !/\bbyokDecrypt\b/.test(tab?.query ?? "")) return null;
    let variables;
    try {
      variables = JSON.parse(tab.variables || "{}");
    } catch {
      return null;
    }
    if (![undefined, "", NO_TOKEN, given].includes(variables.ciphertext) || variables.ciphertext === made.ciphertext) return null;
    given = made.ciphertext;
    return JSON.stringify({ ...variables, ...made }, null, 2);
  }

  /** The JSON object in one part of a JWT. Throws where there is none. */
  function jwtPart(part) {
    const bytes = Uint8Array.from(atob(part.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
    const value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    if (value === null || typeof value !== "object" || Array.isArray(value)) throw new TypeError("not an object");
    return value;
  }

  /** A claim as an object of lower-cased `x-hasura-*` keys, or null. Hasura also allows the object as a JSON string. */
  function hasuraClaims(claim) {
    let value = claim;
    if (typeof value === "string") {
      try {
        value = JSON.parse(value);
      } catch {
        return null;
      }
    }
    if (value === null || typeof value !== "object" || Array.isArray(value)) return null;
    const entries = Object.entries(value).map(([key, v]) => [key.toLowerCase(), v]);
    return entries.some(([key]) => key.startsWith("x-hasura-")) ? Object.fromEntries(entries) : null;
  }

  /** What the token says of its bearer. Nothing here is verified: that is the server's part, at every request. */
  function readToken(token) {
    const parts = token.split(".");
    if (parts.length !== 3) throw new TypeError("three parts");
    jwtPart(parts[0]);
    const claims = jwtPart(parts[1]);
    // Whatever namespace the issuer uses, it is the claim that holds x-hasura-* keys; without one, the token itself.
    const found = Object.values(claims).map(hasuraClaims).find(Boolean) ?? hasuraClaims(claims) ?? {};
    const text = (value) => (typeof value === "string" || typeof value === "number" ? String(value) : "");
    const defaultRole = text(found["x-hasura-default-role"]);
    const allowed = Array.isArray(found["x-hasura-allowed-roles"]) ? found["x-hasura-allowed-roles"].map(text) : [];
    return {
      user: text(found["x-hasura-user-id"]) || text(claims.sub) || "unnamed",
      defaultRole,
      roles: [...new Set(defaultRole ? [defaultRole, ...allowed] : allowed)].filter(Boolean),
      expires: typeof claims.exp === "number" ? new Date(claims.exp * 1000) : null,
    };
  }

  /** Shows user and role. The role is also in the list of roles, if there is one: then it is said, but not seen, here. */
  function showBearer(user, role) {
    const [name, roleName] = [document.createElement("b"), document.createElement("span")];
    name.textContent = user;
    roleName.textContent = ` · ${role || "no role in the token"}`;
    roleName.classList.toggle("said-only", !byId("role").hidden);
    byId("whoami").replaceChildren(name, roleName);
  }

  function showExpiry(expires) {
    const expired = expires !== null && expires <= new Date();
    byId("expiry").textContent =
      expires === null ? "" : expired ? "expired" : `until ${expires.toLocaleString([], { dateStyle: "medium", timeStyle: "short" })}`;
  }

  function logIn() {
    const field = byId("token");
    const token = field.value.trim().replace(/^Bearer\s+/i, "");
    let bearer;
    try {
      bearer = readToken(token);
    } catch {
      byId("problem").textContent = token ? "That is not a JWT." : "Paste a JWT first.";
      field.focus();
      return;
    }
    field.value = "";
    byId("problem").textContent = "";
    session = { token, role: bearer.roles[0] ?? "", defaultRole: bearer.defaultRole };

    const select = byId("role");
    select.replaceChildren(...bearer.roles.map((role) => new Option(role, role)));
    select.hidden = bearer.roles.length < 2;
    select.onchange = () => {
      session.role = select.value;
      showBearer(bearer.user, session.role);
    };
    showBearer(bearer.user, session.role);
    showExpiry(bearer.expires);
    byId("logged-out").hidden = true;
    byId("logged-in").hidden = false;
    byId("logout").focus();
  }

  function logOut() {
    session = null;
    made = null;
    forgetEdits();
    byId("whoami").replaceChildren();
    byId("role").replaceChildren();
    byId("expiry").textContent = "";
    byId("logged-in").hidden = true;
    byId("logged-out").hidden = false;
    byId("token").focus();
  }

  /** GraphiQL's fetcher: one POST to this server, with the token and, if it is not the default, the chosen role. */
  async function fetcher(parameters, options) {
    const headers = new Headers(options?.headers ?? {});
    headers.set("Content-Type", "application/json");
    if (session) {
      headers.set("Authorization", `Bearer ${session.token}`);
      if (session.role && session.role !== session.defaultRole) headers.set("X-Hasura-Role", session.role);
    }
    let response;
    try {
      response = await fetch(ENDPOINT, {
        method: "POST",
        headers,
        body: JSON.stringify(parameters),
        credentials: "omit",
        cache: "no-store",
        redirect: "error",
      });
    } catch {
      return { errors: [{ message: `The server does not answer at ${ENDPOINT}.` }] };
    }
    try {
      const answer = await response.json();
      noticeMade(parameters, answer);
      return answer;
    } catch {
      return { errors: [{ message: `The server answered HTTP ${response.status} without JSON.` }] };
    }
  }

  byId("login").addEventListener("click", logIn);
  byId("logout").addEventListener("click", logOut);
  byId("token").addEventListener("keydown", (event) => {
    if (event.key === "Enter") logIn();
  });

  const { GraphiQL, React, ReactDOM } = window;
  const examples = EXAMPLES.map(({ query, variables }) => ({ query, variables: variables ? JSON.stringify(variables, null, 2) : null }));
  const tabs = (keptEdits() ?? examples).map(({ query, variables }) => ({ query, variables, headers: null }));
  const root = ReactDOM.createRoot(byId("graphiql"));

  /** Shows the page; `variables` are those of the tab that is open. */
  function show(variables) {
    const page = React.createElement(
      GraphiQL,
      {
        fetcher,
        storage: null, // GraphiQL's word for: keep nothing, its tabs and history included
        shouldPersistHeaders: false,
        showPersistHeadersSettings: false,
        forcedTheme: "system",
        defaultEditorToolsVisibility: "variables",
        defaultTabs: tabs,
        variables,
        onTabChange,
      },
      React.createElement(GraphiQL.Logo, null, "GraphiQL"),
    );
    root.render(page);
  }

  let openTab = 0;
  function onTabChange({ tabs: open, activeTabIndex }) {
    keepEdits(open);
    const variables = activeTabIndex === openTab ? null : withMade(open[activeTabIndex]);
    openTab = activeTabIndex;
    // GraphiQL fills its editors once this is over.
    if (variables) setTimeout(() => show(variables));
  }

  show(tabs[0].variables); // the first tab shows these, not its own
})();
