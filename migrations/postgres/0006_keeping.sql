-- Entries are kept for as long as the operator says; a tenant on legal hold keeps all of its own. The serving role reads
-- this and changes none of it.
CREATE TABLE np_byok_holds (
    tenant bytea PRIMARY KEY REFERENCES np_byok_tenants,
    since  timestamptz NOT NULL DEFAULT now()
);

-- Which entries were exported: `first` and up to, but without, `past`.
CREATE TABLE np_byok_exports (
    tenant bytea NOT NULL REFERENCES np_byok_tenants,
    first  bigint NOT NULL,
    past   bigint NOT NULL CHECK (past > first),
    at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, first, past)
);
