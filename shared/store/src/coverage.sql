-- Dead and unknown time of the sessions that reach into [$1, $2), of which $2 is now. docs/operate.md says what
-- counts. One row for each gap; a session without any is only in the totals, which stand in every row.
--
-- The history is read through the index of each session's streamer, and nothing that grows is joined with anything
-- that grows: what the planner takes for small may be large, and the cost must stay that of what is read.
WITH unseen AS (
    SELECT m.id AS membership_id, m.streamer_id, m.campaign_id, m.poll_authorization_expires_at AS ends_at,
           coalesce(m.poll_authorization_granted_at, m.poll_authorization_expires_at - interval '12 hours') AS granted_at
    FROM public.campaign_memberships m
    CROSS JOIN LATERAL (SELECT FROM public.streamers WHERE id = m.streamer_id AND is_active LIMIT 1) active
    WHERE m.status = 'ACTIVE' AND m.poll_authorization_expires_at > $2 AND m.campaign_id IS NOT NULL
),
session AS (
    SELECT *, greatest(granted_at, $1) AS counts_from, least(ends_at, $2) AS counts_until
    FROM (
        SELECT membership_id, granted_at, streamer_id, campaign_id, ends_at FROM token_refresh.sessions
        UNION ALL
        -- What has begun since the last run remembered the sessions.
        SELECT membership_id, granted_at, streamer_id, campaign_id, ends_at FROM unseen
        WHERE NOT EXISTS (SELECT FROM token_refresh.sessions known
                          WHERE known.membership_id = unseen.membership_id AND known.granted_at = unseen.granted_at)
    ) AS known
    WHERE ends_at > $1 AND granted_at < $2 AND granted_at < ends_at
),
-- From one event to the next nothing was tried, and each tells of the token that was stored in between.
span AS (
    SELECT session.*, event.*
    FROM session
    CROSS JOIN LATERAL (
        SELECT ended_at AS begins_at, outcome, reason,
               CASE WHEN outcome <> 'superseded' THEN expires_after END AS promised,
               lead(ended_at) OVER later AS stops_at,
               lead(started_at) OVER later AS tried_at,
               lead(outcome) OVER later IN ('failed', 'deactivated') AS is_the_same_token_after,
               lead(reason) OVER later AS next_reason,
               lead(expires_before) OVER later AS expires_before,
               lead(expires_after) OVER later AS expires_after,
               min(ended_at) FILTER (WHERE outcome = 'deactivated' AND ended_at BETWEEN granted_at AND counts_until)
                   OVER () AS deactivated_at
        FROM (
            -- Since for ever; the last before the session; those in it; the first after it; what is stored now.
            SELECT 0 AS fence, NULL::timestamptz AS started_at, '-infinity'::timestamptz AS ended_at,
                   NULL AS outcome, NULL AS reason, NULL::timestamptz AS expires_before,
                   NULL::timestamptz AS expires_after
            UNION ALL
            (SELECT fence, started_at, ended_at, outcome, reason, expires_before, expires_after
             FROM token_refresh.refreshes
             WHERE streamer_id = session.streamer_id AND ended_at <= counts_from
             ORDER BY ended_at DESC, fence DESC LIMIT 1)
            UNION ALL
            SELECT fence, started_at, ended_at, outcome, reason, expires_before, expires_after
            FROM token_refresh.refreshes
            WHERE streamer_id = session.streamer_id AND ended_at > counts_from AND ended_at < counts_until
            UNION ALL
            (SELECT fence, started_at, ended_at, outcome, reason, expires_before, expires_after
             FROM token_refresh.refreshes
             WHERE streamer_id = session.streamer_id AND ended_at >= counts_until AND ended_at <= $2
             ORDER BY ended_at, fence LIMIT 1)
            UNION ALL
            SELECT 9223372036854775807, $2, $2, NULL, NULL,
                   (SELECT token_expires_at FROM public.streamers WHERE id = session.streamer_id), NULL
        ) known
        WINDOW later AS (ORDER BY ended_at, fence)
    ) event
    -- Two events at the same time leave nothing between them.
    WHERE stops_at > counts_from AND begins_at < counts_until AND begins_at < stops_at
),
-- The last word on the expiry is that of the next event. Where Twitch called the token invalid, it was so from then on
-- at the latest; where it called it valid, that is what counts. A deactivated streamer has no polls.
learnt AS (
    SELECT *,
           CASE WHEN is_the_same_token_after AND expires_after > tried_at THEN expires_after ELSE expires_before END
               AS stated,
           CASE WHEN is_the_same_token_after AND expires_after <= tried_at THEN expires_after END AS found_dead_at
    FROM span
    WHERE outcome IS DISTINCT FROM 'deactivated'
),
-- Alive until `doubtful_at`, dead from `dead_at` on. In between nobody knows: the expiry is not known, or the token is
-- that of another writer, who stored it at an unknown time. A validation corrects the promise by some seconds.
judged AS (
    SELECT *, least(found_dead_at, coalesce(stated, 'infinity')) AS dead_at,
           least(found_dead_at,
                 CASE WHEN promised IS NULL OR stated <= promised + interval '1 minute'
                      THEN coalesce(stated, begins_at) ELSE promised END) AS doubtful_at
    FROM learnt
),
piece AS (
    SELECT judged.membership_id, judged.granted_at, judged.streamer_id, judged.campaign_id, judged.ends_at,
           judged.deactivated_at, part.dead, part.reason,
           greatest(part.begins_at, judged.begins_at, counts_from) AS begins_at,
           least(part.stops_at, judged.stops_at, counts_until) AS stops_at
    FROM judged
    CROSS JOIN LATERAL (VALUES
        (true, dead_at, 'infinity', CASE
            WHEN outcome = 'failed' THEN 'failed: ' || coalesce(reason, 'no reason is on record')
            WHEN dead_at >= tried_at AND found_dead_at = dead_at
                THEN 'failed: ' || coalesce(next_reason, 'no reason is on record')
            WHEN dead_at >= tried_at THEN 'the refresh was under way'
            ELSE 'no refresh was tried' END),
        -- A token that another writer replaced, and that died before the session, is taken to be replaced by then.
        (false, CASE WHEN stated IS NOT NULL AND doubtful_at <= granted_at THEN dead_at ELSE doubtful_at END, dead_at,
         CASE WHEN stated IS NULL AND promised IS NULL THEN 'the expiry is not known'
              ELSE 'another writer stored a token at an unknown time' END)
    ) AS part (dead, begins_at, stops_at, reason)
    -- The first is what nearly all fail, before the pieces are looked at.
    WHERE judged.doubtful_at < least(judged.stops_at, counts_until)
      AND greatest(part.begins_at, judged.begins_at, counts_from) < least(part.stops_at, judged.stops_at, counts_until)
),
-- Pieces that touch are one gap.
touching AS (
    SELECT *, begins_at IS DISTINCT FROM lag(stops_at) OVER earlier AS is_first
    FROM piece
    WINDOW earlier AS (PARTITION BY membership_id, granted_at, dead ORDER BY begins_at)
),
numbered AS (
    SELECT *, count(*) FILTER (WHERE is_first)
                  OVER (PARTITION BY membership_id, granted_at, dead ORDER BY begins_at) AS number
    FROM touching
),
gap AS (
    SELECT membership_id, granted_at, streamer_id, campaign_id, ends_at, deactivated_at, dead,
           min(begins_at) AS begins_at, max(stops_at) AS stops_at, array_agg(reason ORDER BY begins_at) AS reasons
    FROM numbered
    GROUP BY membership_id, granted_at, streamer_id, campaign_id, ends_at, deactivated_at, dead, number
    -- The refresh of a grant ends when the session begins; a column of whole seconds may put the beginning before it.
    HAVING min(begins_at) > granted_at OR max(stops_at) - min(begins_at) >= interval '1 second'
),
total AS (
    SELECT count(*) AS sessions, sum(seconds) AS seconds
    FROM (SELECT sum(extract(epoch FROM least(stops_at, counts_until) - greatest(begins_at, counts_from))) AS seconds
          FROM learnt GROUP BY membership_id, granted_at) each
)
SELECT total.sessions AS "sessions!", coalesce(total.seconds, 0)::bigint AS "seconds!",
       gap.membership_id AS "membership_id?", gap.streamer_id AS "streamer_id?", s.twitch_login AS "login?",
       s.twitch_display_name AS "display_name?", gap.campaign_id AS "campaign_id?", c.name AS "campaign?",
       gap.granted_at AS "granted_at?: Moment", gap.ends_at AS "ends_at?: Moment", gap.deactivated_at AS "deactivated_at: Moment", gap.dead AS "dead?",
       gap.begins_at AS "begins_at: Moment", gap.stops_at AS "stops_at: Moment", gap.reasons
FROM total
LEFT JOIN gap ON true
LEFT JOIN public.streamers s ON s.id = gap.streamer_id
LEFT JOIN public.campaigns c ON c.id = gap.campaign_id
ORDER BY gap.membership_id, gap.granted_at, gap.begins_at
