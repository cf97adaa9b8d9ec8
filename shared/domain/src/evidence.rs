//! Whether a refusal is confirmed. Pure: what is known comes in, an answer goes out.
//!
//! Twitch once refused every refresh for hours. So a refusal alone proves nothing about a streamer's grant, and neither does
//! `/oauth2/validate` of a token that has expired anyway. What proves something: that there is nothing to ask about, that
//! Twitch called a token dead that had time left, or that it refreshed another streamer since.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use crate::streamer::StreamerId;

/// What a refused pair shows by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// There is nothing that Twitch could be asked about.
    NothingToAsk,
    /// Twitch called the access token dead before the expiry that it had given it.
    DeadBeforeExpiry,
    /// Nothing: the access token has expired, or its expiry is unknown.
    Nothing,
}

/// What became of refreshes under one client id, as far as it confirms refusals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The last success of each of these streamers: those of the last and of the one before it are enough.
    successes: HashMap<StreamerId, DateTime<Utc>>,
    /// The first refusal that is known of each of these streamers.
    refusals: HashMap<StreamerId, DateTime<Utc>>,
}

impl History {
    /// This streamer was refreshed then.
    pub fn add_success(&mut self, id: StreamerId, at: DateTime<Utc>) {
        let last = self.successes.entry(id).or_insert(at);
        *last = at.max(*last);
        if self.successes.len() > 2
            && let Some(oldest) = self.successes.iter().min_by_key(|(_, at)| **at).map(|(id, _)| *id)
        {
            self.successes.remove(&oldest);
        }
    }

    /// Twitch refused to refresh this streamer then.
    pub fn add_refusal(&mut self, id: StreamerId, at: DateTime<Utc>) {
        let first = self.refusals.entry(id).or_insert(at);
        *first = at.min(*first);
    }

    /// Adds what another part of the history knows.
    pub fn extend(&mut self, other: &Self) {
        other.successes.iter().for_each(|(id, at)| self.add_success(*id, *at));
        other.refusals.iter().for_each(|(id, at)| self.add_refusal(*id, *at));
    }

    /// Whether the refusal of this streamer, who was first refused at `refused_since`, is confirmed.
    #[must_use]
    pub fn confirms(&self, proof: Proof, id: StreamerId, refused_since: DateTime<Utc>) -> bool {
        match proof {
            Proof::NothingToAsk => true,
            _ if self.another_succeeded_since(id, refused_since) => true,
            Proof::DeadBeforeExpiry => !self.all_are_refused(),
            Proof::Nothing => false,
        }
    }

    fn another_succeeded_since(&self, id: StreamerId, since: DateTime<Utc>) -> bool {
        self.successes.iter().any(|(other, at)| *other != id && *at >= since)
    }

    /// Two or more were refused and nothing has succeeded since the first of them: Twitch is at fault.
    fn all_are_refused(&self) -> bool {
        let last_success = self.successes.values().max();
        self.refusals.values().filter(|at| Some(*at) > last_success).count() >= 2
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn id(n: u128) -> StreamerId {
        StreamerId(Uuid::from_u128(n))
    }

    fn at(minute: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::minutes(minute)
    }

    fn history(successes: &[(u128, i64)], refusals: &[(u128, i64)]) -> History {
        let mut history = History::default();
        for (n, minute) in successes {
            history.add_success(id(*n), at(*minute));
        }
        for (n, minute) in refusals {
            history.add_refusal(id(*n), at(*minute));
        }
        history
    }

    #[test]
    fn a_refusal_is_confirmed_by_its_own_pair_or_by_another_streamer() {
        use Proof::{DeadBeforeExpiry, Nothing, NothingToAsk};
        // Streamer 1 was first refused at minute 10.
        for (why, successes, refusals, confirmed) in [
            ("alone", &[][..], &[(1, 10)][..], [true, true, false]),
            ("its own success, before", &[(1, 5)], &[(1, 10)], [true, true, false]),
            ("another succeeded before", &[(2, 9)], &[(1, 10)], [true, true, false]),
            ("another succeeded in the same moment", &[(2, 10)], &[(1, 10)], [true, true, true]),
            ("another succeeded since", &[(2, 20)], &[(1, 10)], [true, true, true]),
            ("two are refused", &[], &[(1, 10), (2, 11)], [true, false, false]),
            ("two are refused after a success", &[(3, 9)], &[(1, 10), (2, 11)], [true, false, false]),
            ("two are refused, one since a success", &[(3, 12)], &[(1, 10), (2, 13)], [true, true, true]),
            ("another was refused before a success", &[(2, 9)], &[(1, 10), (3, 8)], [true, true, false]),
        ] {
            let history = history(successes, refusals);
            let found =
                [NothingToAsk, DeadBeforeExpiry, Nothing].map(|proof| history.confirms(proof, id(1), at(10)));
            assert_eq!(found, confirmed, "{why}");
        }
    }

    proptest! {
        /// However many parts it is put together from, and whatever is left out of it.
        #[test]
        fn two_successes_and_all_refusals_are_enough(
            successes in proptest::collection::vec((0_u128..6, 0_i64..50), 0..12),
            refusals in proptest::collection::vec((0_u128..6, 0_i64..50), 0..12),
            since in 0_i64..50,
        ) {
            let history = history(&successes, &refusals);
            let another = successes.iter().any(|(n, minute)| *n != 1 && *minute >= since);
            prop_assert_eq!(history.confirms(Proof::Nothing, id(1), at(since)), another);
            let last = successes.iter().map(|(_, minute)| *minute).max().unwrap_or(-1);
            let mut firsts = HashMap::new();
            for (n, minute) in &refusals {
                let first = firsts.entry(*n).or_insert(*minute);
                *first = (*first).min(*minute);
            }
            let all = firsts.values().filter(|first| **first > last).count() >= 2;
            prop_assert_eq!(history.confirms(Proof::DeadBeforeExpiry, id(1), at(since)), another || !all);
        }
    }
}
