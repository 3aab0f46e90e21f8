-- A proof is of a key version, and a key version is of one of the tenant's keys: two keys may have one name.
CREATE UNIQUE INDEX np_byok_proofs_key_version ON np_byok_proofs (tenant, key_id, key_name, key_version);
