-- The version of the oldest programs that work on this schema. A program whose version is older than the schema starts, unless its version is
-- below this one. A migration that takes away what programs of this version read or write replaces the function.
CREATE OR REPLACE FUNCTION token_refresh.minimum_version() RETURNS bigint
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS 'SELECT 5::bigint';

-- Every login asks, also where functions are not everyone's by default.
GRANT EXECUTE ON FUNCTION token_refresh.minimum_version() TO PUBLIC;
