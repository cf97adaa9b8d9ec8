-- What requests need: who asked, and a game master's own channel.

-- Who asked for a refresh, if it was somebody: the ARN that AWS IAM knows them by.
ALTER TABLE token_refresh.refreshes ADD COLUMN IF NOT EXISTS caller text;

-- The channel of a user.
CREATE INDEX IF NOT EXISTS token_refresh_streamers_user_idx ON streamers (user_id);
