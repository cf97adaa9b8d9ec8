//! What is counted over many sessions.

use std::fmt;

use super::{Course, SESSION, Span};

/// A session's time without a live token, in seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Dead {
    total: u64,
    /// In one piece.
    longest: u64,
}

impl Dead {
    fn add(mut self, piece: u64) -> Self {
        self.total += piece;
        self.longest = self.longest.max(piece);
        self
    }
}

/// What is counted over many sessions; times in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) sessions: u64,
    /// Those that were without a live token for a second or more.
    pub(super) touched: u64,
    /// Those whose streamer was deactivated.
    pub(super) deactivated: u64,
    /// The time without a live token, all sessions together.
    pub(super) dead: u64,
    /// That of the worst session.
    pub(super) worst: u64,
    /// The longest such time in one piece.
    pub(super) longest: u64,
}

impl Figures {
    /// Adds sessions that share a course, given when they were granted, in order, and how long their first
    /// tokens lived.
    pub(super) fn add(&mut self, grants: &[u64], first_life: u64, course: &Course) {
        let (Some(earliest), Some(latest)) = (grants.first(), grants.last()) else { return };
        self.sessions += grants.len() as u64;
        if let Some(at) = course.deactivated {
            self.deactivated += grants.iter().filter(|grant| at < *grant + SESSION).count() as u64;
        }
        // What is over before the first of them ends, all have alike; the rest, each has up to its own end.
        let (shared, own): (Vec<_>, Vec<_>) = course
            .gaps()
            .filter(|gap| gap.from < latest + SESSION)
            .partition(|gap| gap.to <= earliest + SESSION);
        let shared = shared.iter().fold(Dead::default(), |dead, gap| dead.add(gap.to - gap.from));
        let first_refresh = course.lives.first().map_or(u64::MAX, |life| life.from);
        if shared.total == 0 && own.is_empty() && first_refresh <= earliest + first_life {
            return;
        }
        for grant in grants {
            let end = grant + SESSION;
            let mut dead = shared.add(Span { from: grant + first_life, to: first_refresh }.until(end));
            for gap in &own {
                dead = dead.add(gap.until(end));
            }
            self.touched += u64::from(dead.total > 0);
            self.dead += dead.total;
            self.worst = self.worst.max(dead.total);
            self.longest = self.longest.max(dead.longest);
        }
    }

    /// Share of the sessions that were touched, in tenths of a percent.
    pub(super) fn touched_share(&self) -> Tenths {
        Tenths::of(self.touched * 100, self.sessions)
    }

    /// Dead minutes of a session on average.
    pub(super) fn mean(&self) -> Tenths {
        Tenths::of(self.dead, self.sessions * 60)
    }

    /// The mean and the worst session's dead minutes, so rounded that a single second shows.
    pub(super) fn cell(&self) -> String {
        if self.dead == 0 {
            return "0".to_owned();
        }
        let mean = match self.mean() {
            Tenths(0) => "<0.1".to_owned(),
            mean => mean.to_string(),
        };
        format!("{mean}/{}", self.worst.div_ceil(60))
    }
}

/// A quotient, rounded to one decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tenths(u64);

impl Tenths {
    fn of(part: u64, whole: u64) -> Self {
        Self((part * 10 + whole / 2) / whole)
    }
}

impl fmt::Display for Tenths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 10, self.0 % 10)
    }
}
