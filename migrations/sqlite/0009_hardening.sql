-- An erasure takes the record's id out of the rows of its DEKs. What stays is its HMAC-SHA256 under a salt of 16 random
-- bytes that is kept nowhere: such a row is told from one of a DEK that never had a record.
ALTER TABLE np_byok_wrapped_deks ADD COLUMN record_hmac BLOB
    CHECK (record_hmac IS NULL OR (length(record_hmac) = 32 AND record_id IS NULL));
