-- The writes of heads, entries and DEKs are functions that run as the tables' owner. They are called with the rights of the
-- serving role, which needs no right to write these tables itself; the release before this one still does (the step after
-- this one ends that). Each name in them is qualified: whoever may create objects in a schema of the path must not replace
-- what they find. The schema's name is in the setting `byok.schema` of this transaction.
SET LOCAL search_path = pg_catalog, pg_temp;

DO $append$
DECLARE
    home  text := current_setting('byok.schema');
    named text;
BEGIN
    -- Appends entries to a tenant's log, with their new DEKs, in one statement: the head is compared and swapped, and
    -- everything else is inserted only if that succeeds. Returns no row's values (null) if the head is another one, if the gate
    -- is closed, or if a key in use does not meet its requirement. Each array has one element for each key in use, entry, or
    -- DEK. The first argument is the column that the tables can be distributed by.
    EXECUTE format($function$
CREATE FUNCTION %1$I.np_byok_append(
    log_tenant bytea, log_size bigint, log_frontier bytea, next_frontier bytea,
    gate_revision bigint,
    fence_key_ids bytea[], fence_key_names text[], fence_key_versions text[],
    fence_epochs bigint[], fence_revisions bigint[], fence_ages bigint[],
    entry_times timestamptz[], entry_ids uuid[], entry_operations text[], entry_outcomes text[], entry_means text[],
    entry_roles text[], entry_users text[], entry_user_salts bytea[], entry_user_hmacs bytea[],
    entry_requests text[], entry_request_salts bytea[], entry_request_hmacs bytea[],
    entry_item_counts integer[], entry_records text[], entry_items bytea[], entry_details text[], entry_digests bytea[],
    dek_ids uuid[], dek_records text[], dek_wrapped bytea[], dek_key_ids bytea[], dek_key_names text[],
    dek_key_versions text[], dek_wrap_schemes smallint[], dek_times timestamptz[], dek_macs bytea[], dek_record_macs bytea[],
    OUT read_at timestamptz, OUT proven_at timestamptz[]
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    -- Here and not before the call: on a distributed table this is the node that commits.
    IF current_setting('synchronous_commit') NOT IN ('on', 'remote_apply') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    WITH head AS (
        UPDATE %1$I.np_byok_heads h SET size = h.size + cardinality(entry_ids), frontier = next_frontier
        WHERE h.tenant = log_tenant AND h.size = log_size AND h.frontier = log_frontier
            -- The gate: the tenant is not locked, and is served as it was when the batch's calls began. Whoever changes
            -- this row appends to the log as well, so a statement that waited for the head does not find it again.
            AND (gate_revision IS NULL OR EXISTS (
                SELECT 1 FROM %1$I.np_byok_tenants t WHERE t.uid = log_tenant AND t.revision = gate_revision AND NOT t.locked))
            -- The fence: each key in use meets its requirement when the statement begins. After a wait for the head's
            -- row, this is checked again only if that row was written, so what counts is the age returned below.
            AND NOT EXISTS (
                SELECT 1 FROM unnest(fence_key_ids, fence_key_names, fence_key_versions, fence_epochs, fence_revisions,
                    fence_ages) AS f(key_id, key_name, key_version, epoch, revision, age)
                LEFT JOIN %1$I.np_byok_proofs p ON p.tenant = log_tenant AND p.key_id = f.key_id
                    AND p.key_name = f.key_name AND p.key_version = f.key_version
                WHERE (
                    (f.epoch IS NULL OR (p.posture = 'active' AND p.epoch = f.epoch))
                    AND (f.revision IS NULL OR p.revision = f.revision)
                    AND (f.age IS NULL OR p.proven_at
                        BETWEEN clock_timestamp() - f.age * interval '1 microsecond' AND clock_timestamp())
                ) IS NOT TRUE)
        RETURNING h.tenant
    ), entries AS (
        INSERT INTO %1$I.np_byok_audit (tenant, seq, at, id, operation, outcome, means, role, user_id, user_salt,
            user_hmac, request_id, request_salt, request_hmac, item_count, records, items, detail, digest)
        SELECT log_tenant, log_size + e.place - 1, e.at, e.id, e.operation, e.outcome, e.means, e.role, e.user_id,
            e.user_salt, e.user_hmac, e.request_id, e.request_salt, e.request_hmac, e.item_count, e.records::jsonb, e.items,
            e.detail, e.digest
        FROM head, unnest(
            entry_times, entry_ids, entry_operations, entry_outcomes, entry_means, entry_roles,
            entry_users, entry_user_salts, entry_user_hmacs,
            entry_requests, entry_request_salts, entry_request_hmacs,
            entry_item_counts, entry_records, entry_items, entry_details, entry_digests
        ) WITH ORDINALITY AS e(
            at, id, operation, outcome, means, role,
            user_id, user_salt, user_hmac,
            request_id, request_salt, request_hmac,
            item_count, records, items, detail, digest, place)
    ), deks AS (
        INSERT INTO %1$I.np_byok_wrapped_deks
            (tenant, id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme, created_at, mac, record_mac)
        SELECT log_tenant, d.* FROM head, unnest(
            dek_ids, dek_records, dek_wrapped, dek_key_ids, dek_key_names, dek_key_versions, dek_wrap_schemes,
            dek_times, dek_macs, dek_record_macs
        ) AS d(id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme, created_at, mac, record_mac)
    )
    SELECT clock_timestamp(), ARRAY(
        SELECT p.proven_at FROM unnest(fence_key_ids, fence_key_names, fence_key_versions)
            WITH ORDINALITY AS f(key_id, key_name, key_version, place)
        JOIN %1$I.np_byok_proofs p USING (key_id, key_name, key_version) WHERE p.tenant = log_tenant ORDER BY f.place)
    INTO read_at, proven_at FROM head;
END $body$
    $function$, home);

    -- Takes the lock of the head's row, for which writers queue, and returns the head under that lock.
    EXECUTE format($function$
CREATE FUNCTION %1$I.np_byok_lock_head(log_tenant bytea)
RETURNS TABLE (size bigint, log integer, first bigint, frontier bytea)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    RETURN QUERY SELECT h.size, h.log, h.first, h.frontier FROM %1$I.np_byok_heads h WHERE h.tenant = log_tenant FOR UPDATE;
END $body$
    $function$, home);

    -- Inserts DEKs without entries. Returns the ids whose rows now hold what was to be inserted, so that a retry reports what
    -- the first attempt did, and leaves out an id that holds a different DEK.
    EXECUTE format($function$
CREATE FUNCTION %1$I.np_byok_insert_deks(
    dek_tenant bytea, dek_ids uuid[], dek_records text[], dek_wrapped bytea[], dek_key_ids bytea[], dek_key_names text[],
    dek_key_versions text[], dek_wrap_schemes smallint[], dek_times timestamptz[], dek_macs bytea[], dek_record_macs bytea[]
) RETURNS SETOF uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    RETURN QUERY
    INSERT INTO %1$I.np_byok_wrapped_deks AS o
        (tenant, id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme, created_at, mac, record_mac)
    SELECT dek_tenant, d.* FROM unnest(
        dek_ids, dek_records, dek_wrapped, dek_key_ids, dek_key_names, dek_key_versions, dek_wrap_schemes,
        dek_times, dek_macs, dek_record_macs
    ) AS d(id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme, created_at, mac, record_mac)
    ON CONFLICT (tenant, id) DO UPDATE SET wrapped = o.wrapped
        WHERE o.wrapped = EXCLUDED.wrapped AND o.record_id IS NOT DISTINCT FROM EXCLUDED.record_id
    RETURNING o.id;
END $body$
    $function$, home);

    -- Replaces the wrapped bytes of DEKs, and returns the ids of those that have the new content now. A row that already has it
    -- counts, so that a retry reports what the first attempt did, and keeps a MAC that it was given since. A row that was
    -- sealed between read and write loses its MAC, unless it was sealed when it was read.
    EXECUTE format($function$
CREATE FUNCTION %1$I.np_byok_rewrap_deks(
    dek_tenant bytea, dek_ids uuid[],
    old_wrapped bytea[], old_key_ids bytea[], old_key_names text[], old_key_versions text[], old_wrap_schemes smallint[],
    new_wrapped bytea[], new_key_ids bytea[], new_key_names text[], new_key_versions text[], new_wrap_schemes smallint[],
    new_macs bytea[]
) RETURNS SETOF uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    RETURN QUERY
    UPDATE %1$I.np_byok_wrapped_deks d SET wrapped = r.wrapped, key_id = r.key_id, key_name = r.key_name,
        key_version = r.key_version, wrap_scheme = r.wrap_scheme, rewrapped_at = now(), mac = CASE
            WHEN (d.wrapped, d.key_id, d.key_name, d.key_version, d.wrap_scheme)
                = (r.wrapped, r.key_id, r.key_name, r.key_version, r.wrap_scheme) THEN d.mac
            ELSE r.mac END
    FROM unnest(dek_ids, old_wrapped, old_key_ids, old_key_names, old_key_versions, old_wrap_schemes,
        new_wrapped, new_key_ids, new_key_names, new_key_versions, new_wrap_schemes, new_macs)
        AS r(id, from_wrapped, from_key_id, from_key_name, from_key_version, from_wrap_scheme,
            wrapped, key_id, key_name, key_version, wrap_scheme, mac)
    WHERE d.tenant = dek_tenant AND d.id = r.id AND (
        (d.wrapped, d.key_id, d.key_name, d.key_version, d.wrap_scheme)
            = (r.from_wrapped, r.from_key_id, r.from_key_name, r.from_key_version, r.from_wrap_scheme)
        OR (d.wrapped, d.key_id, d.key_name, d.key_version, d.wrap_scheme)
            = (r.wrapped, r.key_id, r.key_name, r.key_version, r.wrap_scheme))
    RETURNING d.id;
END $body$
    $function$, home);

    -- Gives rows their MACs, and returns how many. Leaves out each row that differs by now in anything else.
    EXECUTE format($function$
CREATE FUNCTION %1$I.np_byok_seal_deks(
    dek_tenant bytea, dek_ids uuid[], dek_records text[], dek_wrapped bytea[], dek_key_ids bytea[], dek_key_names text[],
    dek_key_versions text[], dek_wrap_schemes smallint[], new_macs bytea[], new_record_macs bytea[]
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    sealed bigint;
BEGIN
    UPDATE %1$I.np_byok_wrapped_deks d SET mac = r.mac, record_mac = r.record_mac
    FROM unnest(dek_ids, dek_records, dek_wrapped, dek_key_ids, dek_key_names, dek_key_versions, dek_wrap_schemes,
        new_macs, new_record_macs)
        AS r(id, record_id, wrapped, key_id, key_name, key_version, wrap_scheme, mac, record_mac)
    WHERE d.tenant = dek_tenant AND d.id = r.id AND d.record_id IS NOT DISTINCT FROM r.record_id AND r.mac IS NOT NULL
        AND (d.wrapped, d.key_id, d.key_name, d.key_version, d.wrap_scheme)
            = (r.wrapped, r.key_id, r.key_name, r.key_version, r.wrap_scheme);
    GET DIAGNOSTICS sealed = ROW_COUNT;
    RETURN sealed;
END $body$
    $function$, home);

    -- Creates a tenant, its empty log, and its first key, which is the one of the deployment's configuration. Returns 1 if the
    -- tenant exists with this uid and name, now or already; 0 if another tenant has its name or its uid.
    EXECUTE format($function$
CREATE FUNCTION %1$I.np_byok_create_tenant(new_uid bytea, new_name text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    there bigint;
BEGIN
    INSERT INTO %1$I.np_byok_tenants (uid, name) VALUES (new_uid, new_name) ON CONFLICT DO NOTHING;
    IF FOUND THEN
        INSERT INTO %1$I.np_byok_heads (tenant) VALUES (new_uid);
        INSERT INTO %1$I.np_byok_keys (tenant, id, label, owner, state, revision)
            VALUES (new_uid, decode(repeat('00', 16), 'hex'), 'default', 'customer', 'current', 0);
    END IF;
    SELECT count(*) INTO there FROM %1$I.np_byok_tenants t WHERE t.uid = new_uid AND t.name = new_name;
    RETURN there;
END $body$
    $function$, home);

    FOREACH named IN ARRAY ARRAY['np_byok_append', 'np_byok_lock_head', 'np_byok_insert_deks', 'np_byok_rewrap_deks',
        'np_byok_seal_deks', 'np_byok_create_tenant']
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %I.%I FROM PUBLIC', home, named);
    END LOOP;
END $append$;
