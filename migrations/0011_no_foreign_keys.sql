-- No foreign key of ours leads to a table of the application's: it would keep the application's own migrations from dropping that table, and
-- would be lost with it. What is left of a streamer that was deleted, the next sweep deletes, for which a login needs DELETE: each that may
-- UPDATE these rows is given it.
-- Behind a long reader of the application's table, the application and our writes would wait for this one.
SET LOCAL lock_timeout = '5s';
DO $$
DECLARE
    ours record;
BEGIN
    FOR ours IN
        SELECT conrelid::pg_catalog.regclass AS relation, conname FROM pg_catalog.pg_constraint
        WHERE contype = 'f' AND conrelid = 'token_refresh.streamers'::pg_catalog.regclass
    LOOP
        EXECUTE pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', ours.relation, ours.conname);
    END LOOP;
    FOR ours IN
        SELECT DISTINCT acl.grantee::pg_catalog.regrole AS login
        FROM pg_catalog.pg_class c CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) acl
        WHERE c.oid = 'token_refresh.streamers'::pg_catalog.regclass AND acl.privilege_type = 'UPDATE' AND acl.grantee <> 0
          AND NOT pg_catalog.has_table_privilege(acl.grantee, c.oid, 'DELETE')
    LOOP
        EXECUTE pg_catalog.format('GRANT DELETE ON token_refresh.streamers TO %s', ours.login);
    END LOOP;
END
$$;
