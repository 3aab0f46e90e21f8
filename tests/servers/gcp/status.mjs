// How Google answers: `google.rpc.Status` as JSON, and what its details look like.
// https://cloud.google.com/apis/design/errors, https://github.com/googleapis/googleapis/blob/master/google/rpc/error_details.proto

export const CODES = {
  INVALID_ARGUMENT: 400, FAILED_PRECONDITION: 400, UNAUTHENTICATED: 401, PERMISSION_DENIED: 403, NOT_FOUND: 404,
  ALREADY_EXISTS: 409, ABORTED: 409, RESOURCE_EXHAUSTED: 429, INTERNAL: 500, UNAVAILABLE: 503, DEADLINE_EXCEEDED: 504,
};

/** A refusal in Google's shape. */
export class Refusal extends Error {
  constructor(status, message, details = [], headers = {}) {
    super(message);
    Object.assign(this, { status, details, headers, code: CODES[status] });
  }

  body() {
    const error = { code: this.code, message: this.message, status: this.status };
    return { error: this.details.length ? { ...error, details: this.details } : error };
  }
}

/** A refusal of the token endpoint: RFC 6749, section 5.2. */
export class OAuthRefusal extends Error {
  constructor(error, description, code = 400) {
    super(description);
    Object.assign(this, { error, code, headers: {} });
  }

  body() {
    return { error: this.error, error_description: this.message };
  }
}

const type = (name) => `type.googleapis.com/google.rpc.${name}`;

export const errorInfo = (reason, domain, metadata) => ({ "@type": type("ErrorInfo"), reason, domain, metadata });

export const precondition = (kind, subject, description) =>
  ({ "@type": type("PreconditionFailure"), violations: [{ type: kind, subject, description }] });

export const badField = (field, description) =>
  ({ "@type": type("BadRequest"), fieldViolations: [{ field, description }] });

export const quotaFailure = (subject, description) =>
  ({ "@type": type("QuotaFailure"), violations: [{ subject, description }] });

/** One of the checks that stand before every service: its reason is from google/api/error_reason.proto. */
export const atTheDoor = (status, reason, message, metadata = {}, headers = {}) =>
  new Refusal(status, message, [errorInfo(reason, "googleapis.com", { service: "cloudkms.googleapis.com", ...metadata })], headers);
