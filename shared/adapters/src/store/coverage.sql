-- Dead and unknown minutes of the sessions that reach into [$1, $2), of which $2 is now. docs/coverage.md says what
-- counts. One row for each gap; a session without any is only in the totals, which stand in every row.
WITH session AS (
    SELECT membership_id, granted_at, streamer_id, campaign_id, ends_at,
           -- In an order that no data can make a range refuse.
           tstzrange(greatest(granted_at, $1), greatest(granted_at, $1, least(ends_at, $2))) AS counted
    FROM token_refresh.sessions
    WHERE ends_at > $1 AND granted_at < $2
),
-- All that is known of these streamers' tokens, in its order, between the beginning of time and what is stored now.
event AS (
    SELECT streamer_id, fence, started_at, ended_at, outcome, reason, expires_before, expires_after
    FROM token_refresh.refreshes
    WHERE ended_at <= $2 AND streamer_id IN (SELECT streamer_id FROM session)
    UNION ALL
    SELECT streamer_id, 0, NULL, '-infinity', NULL, NULL, NULL, NULL
    FROM session GROUP BY streamer_id
    UNION ALL
    SELECT seen.streamer_id, 9223372036854775807, $2, $2, NULL, NULL, s.token_expires_at, NULL
    FROM (SELECT streamer_id FROM session GROUP BY streamer_id) seen LEFT JOIN streamers s ON s.id = seen.streamer_id
),
-- From one event to the next nothing was tried: each says something of the token that was stored in between.
span AS (
    SELECT streamer_id, outcome, reason, ended_at AS begins_at,
           CASE WHEN outcome <> 'superseded' THEN expires_after END AS promised,
           lead(ended_at) OVER later AS stops_at,
           lead(started_at) OVER later AS tried_at,
           lead(outcome) OVER later IN ('failed', 'deactivated') AS is_the_same_token_after,
           lead(reason) OVER later AS next_reason,
           lead(expires_before) OVER later AS expires_before,
           lead(expires_after) OVER later AS expires_after
    FROM event
    WINDOW later AS (PARTITION BY streamer_id ORDER BY ended_at, fence)
),
-- The last word on the expiry is that of the next event. Where Twitch called the token invalid, it was so from then on
-- at the latest; where it called it valid, that is what counts.
learnt AS (
    SELECT *,
           CASE WHEN is_the_same_token_after AND expires_after > tried_at THEN expires_after ELSE expires_before END
               AS stated,
           CASE WHEN is_the_same_token_after AND expires_after <= tried_at THEN expires_after END AS found_dead_at
    FROM span
    WHERE stops_at IS NOT NULL AND outcome IS DISTINCT FROM 'deactivated'
),
-- Alive until `doubtful_at`, dead from `dead_at` on. In between nobody knows: the expiry is not known, or the token is
-- that of another writer, who stored it at an unknown time. A validation corrects the promise by some seconds.
judged AS (
    SELECT *,
           greatest(begins_at, least(stops_at, found_dead_at, coalesce(stated, 'infinity'))) AS dead_at,
           greatest(begins_at, least(stops_at, found_dead_at,
               CASE WHEN promised IS NULL OR stated <= promised + interval '1 minute' THEN coalesce(stated, begins_at)
                    ELSE promised END)) AS doubtful_at
    FROM learnt
),
piece AS (
    SELECT session.membership_id, session.granted_at, part.dead, part.during * session.counted AS during, part.reason
    FROM session
    JOIN judged ON judged.streamer_id = session.streamer_id AND judged.doubtful_at < judged.stops_at
               AND judged.doubtful_at < session.ends_at AND judged.stops_at > session.granted_at
    CROSS JOIN LATERAL (VALUES
        (true, tstzrange(dead_at, stops_at), CASE
            WHEN outcome = 'failed' THEN 'failed: ' || coalesce(reason, 'no reason is on record')
            WHEN found_dead_at = dead_at AND dead_at >= tried_at
                THEN 'failed: ' || coalesce(next_reason, 'no reason is on record')
            WHEN dead_at >= tried_at THEN 'the refresh was under way'
            ELSE 'no refresh was tried' END),
        -- A token that was replaced by another writer's before the session is taken to have been so before it.
        (false, tstzrange(CASE WHEN stated IS NOT NULL AND doubtful_at <= session.granted_at THEN dead_at
                          ELSE doubtful_at END, dead_at), CASE
            WHEN stated IS NULL AND promised IS NULL THEN 'the expiry is not known'
            ELSE 'another writer stored a token, nobody knows when' END)
    ) AS part (dead, during, reason)
    WHERE part.during && session.counted
),
gap AS (
    SELECT membership_id, granted_at, dead, unnest(range_agg(during)) AS during
    FROM piece
    GROUP BY membership_id, granted_at, dead
),
explained AS (
    SELECT gap.membership_id, gap.granted_at, gap.dead, gap.during,
           array_agg(piece.reason ORDER BY piece.during) AS reasons
    FROM gap
    JOIN piece ON piece.membership_id = gap.membership_id AND piece.granted_at = gap.granted_at
              AND piece.dead = gap.dead AND piece.during <@ gap.during
    GROUP BY gap.membership_id, gap.granted_at, gap.dead, gap.during
),
-- A deactivated streamer has no polls: no part of a session.
inactive AS (
    SELECT streamer_id, range_agg(tstzrange(begins_at, stops_at)) AS during
    FROM span
    WHERE outcome = 'deactivated' AND stops_at IS NOT NULL
    GROUP BY streamer_id
),
active AS (
    SELECT session.*, tstzmultirange(counted) - coalesce(inactive.during, '{}') AS during,
           lower(tstzmultirange(counted) * inactive.during) AS deactivated_at
    FROM session LEFT JOIN inactive ON inactive.streamer_id = session.streamer_id
),
total AS (
    SELECT count(*) AS sessions,
           sum((SELECT sum(extract(epoch FROM upper(part) - lower(part))) FROM unnest(during) part)) AS seconds
    FROM active
    WHERE NOT isempty(during)
)
SELECT total.sessions AS "sessions!", coalesce(total.seconds, 0)::bigint AS "seconds!",
       active.membership_id AS "membership_id?", active.streamer_id AS "streamer_id?", s.twitch_login AS "login?",
       s.twitch_display_name AS "display_name?", active.campaign_id AS "campaign_id?", c.name AS "campaign?",
       active.granted_at AS "granted_at?", active.ends_at AS "ends_at?", active.deactivated_at,
       explained.dead AS "dead?", lower(explained.during) AS begins_at, upper(explained.during) AS stops_at,
       explained.reasons
FROM total
LEFT JOIN (explained JOIN active USING (membership_id, granted_at)) ON true
LEFT JOIN streamers s ON s.id = active.streamer_id
LEFT JOIN campaigns c ON c.id = active.campaign_id
ORDER BY active.membership_id, active.granted_at, explained.during
