// The diagnostic log of a vault, category `AuditEvent`, as a storage account gets it ("Azure Key Vault logging"): refused
// requests and those without a token stand in it too; what a request carries does not.

/** What each operation is called there. */
const NAMES = {
  read: "KeyGet", versions: "KeyListVersions", list: "KeyList", create: "KeyCreate", rotate: "KeyRotate", update: "KeyUpdate",
  delete: "KeyDelete", readDeleted: "KeyGetDeleted", recover: "KeyRecover", purge: "KeyPurge", wrapKey: "KeyWrap", unwrapKey: "KeyUnwrap",
};

/** `route` is what was asked, `claims` those of the token, where it was good. */
export function auditEvent(kind, { began, route, url, headers, claims, address }, status, id) {
  const name = url.host.replaceAll(/[.:]/g, "-").toUpperCase();
  const claim = claims && { "http://schemas.microsoft.com/identity/claims/objectidentifier": claims.oid, appid: claims.appid };
  return {
    // Seven digits, of which we know three.
    time: new Date(began).toISOString().replace("Z", "0000Z"),
    category: "AuditEvent",
    operationName: NAMES[route.operation],
    resultType: "Success",
    resultSignature: { 200: "OK", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found" }[status] ?? String(status),
    resultDescription: "",
    durationMs: String(Date.now() - began),
    callerIpAddress: address,
    // The caller's, or none.
    correlationId: headers["x-ms-client-request-id"] ?? "",
    identity: claim ? { claim } : {},
    properties: {
      id: id ?? `https://${headers.host}/keys/${[route.name, route.id].filter(Boolean).join("/")}`,
      clientInfo: headers["user-agent"] ?? "",
      requestUri: `https://${headers.host}${url.pathname}${url.search}`,
      httpStatusCode: status,
    },
    resourceId: `/SUBSCRIPTIONS/S/RESOURCEGROUPS/G/PROVIDERS/MICROSOFT.KEYVAULT/${kind === "hsm" ? "MANAGEDHSMS" : "VAULTS"}/${name}`,
    operationVersion: url.searchParams.get("api-version") ?? "",
  };
}
