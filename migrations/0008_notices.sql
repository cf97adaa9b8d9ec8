-- A notification names all campaigns of a game master that a deactivation concerns, where there was one for each.

-- `campaign_id` and `campaign_name` are those of the first, which the version before reads. Only the first names are kept;
-- how many campaigns there are is in `campaign_count`. NULL where the version before wrote: one campaign, or none.
ALTER TABLE token_refresh.outbox
    ADD COLUMN IF NOT EXISTS campaign_names text[],
    ADD COLUMN IF NOT EXISTS campaign_count integer;
