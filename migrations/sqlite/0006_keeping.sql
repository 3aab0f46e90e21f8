-- Entries are kept for as long as the operator says; a tenant on legal hold keeps all of its own.
CREATE TABLE np_byok_holds (
    tenant BLOB PRIMARY KEY NOT NULL REFERENCES np_byok_tenants,
    since  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Which entries were exported: `first` and up to, but without, `past`.
CREATE TABLE np_byok_exports (
    tenant BLOB NOT NULL REFERENCES np_byok_tenants,
    first  INTEGER NOT NULL,
    past   INTEGER NOT NULL CHECK (past > first),
    at     INTEGER NOT NULL,
    PRIMARY KEY (tenant, first, past)
) STRICT, WITHOUT ROWID;
