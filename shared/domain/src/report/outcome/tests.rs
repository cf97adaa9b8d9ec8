//! The table: what was decided, by what the store has made of it.

use chrono::TimeDelta;
use uuid::Uuid;

use super::*;
use crate::attempt::Unusable;
use crate::clock::Monotonic;
use crate::evidence::Proof;
use crate::failure::{FailedUnder, Failure};
use crate::policy::NotDue;
use crate::ports::{Lease, PairMemory, StoreErrorKind};
use crate::recipient::Role;
use crate::schedule::Trigger;
use crate::streamer::{Streamer, StreamerId};
use crate::token::{AccessToken, RefreshToken, TokenPair};

fn now() -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(20_780)
}

fn later(minutes: i64) -> DateTime<Utc> {
    now() + TimeDelta::minutes(minutes)
}

fn attempt(resolution: Resolution) -> Attempt {
    let id = StreamerId(Uuid::nil());
    Attempt {
        streamer: Streamer::unnamed(id),
        lease: Lease {
            id,
            fence: 1,
            until: later(3),
            held_until: Monotonic::after_start(TimeDelta::minutes(3)),
            started_from: None,
            pair: None,
        },
        trigger: Trigger::Sweep,
        started_at: now(),
        ended_at: now(),
        expires_before: Some(later(7)),
        caller: None,
        grants: None,
        client_id: "ours".to_owned(),
        resolution,
    }
}

fn memory() -> PairMemory {
    PairMemory { expiry: Some(Expiry::At(later(240))), ..PairMemory::default() }
}

fn refreshed(unusable: Option<Unusable>) -> Resolution {
    let pair = TokenPair { access: AccessToken::new("a"), refresh: RefreshToken::new("r") };
    Resolution::Refreshed { pair, memory: memory(), unusable }
}

fn cause(alarm: Option<Alarm>) -> FailedRefresh {
    FailedRefresh {
        proof: Some(Proof::Nothing),
        was_refused: true,
        reason: "Invalid refresh token".to_owned(),
        alarm,
        twitch: TwitchHealth::Available,
        expires_at: Some(later(1)),
        memory: memory(),
    }
}

fn failed(verdict: Verdict) -> Resolution {
    let under = FailedUnder::Client("ours".to_owned());
    Resolution::Failed { cause: cause(None), verdict, retry_at: later(15), under }
}

fn error() -> StoreError {
    StoreError::new(StoreErrorKind::Away, "away")
}

fn recipients() -> Vec<Recipient> {
    vec![Recipient { name: "Aria".to_owned(), role: Role::Streamer, devices: 1, campaigns: Vec::new() }]
}

/// Of a refusal whose expiry is known.
fn refused(standing: Standing) -> Outcome {
    Outcome::Failed {
        kind: FailureKind::Refusal,
        reason: "Invalid refresh token".to_owned(),
        token_expires_at: Some(later(1)),
        standing,
        alarm: None,
        twitch: TwitchHealth::Available,
    }
}

/// An outcome that is lost, and why.
fn lost(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Failed {
            reason,
            standing: Standing::NotRecorded,
            alarm: Some(Alarm::NotStored),
            token_expires_at: None,
            ..
        } => Some(reason),
        _ => None,
    }
}

#[test]
fn what_is_stored_is_reported() {
    let authorization = Authorization::granted(now());
    let granted = |minutes, refreshed| Outcome::Granted {
        authorization,
        token_expires_at: Some(later(minutes)),
        refreshed,
    };
    let why = || Unusable::OtherUser("1".to_owned());
    let unusable = || Outcome::Skipped(Skip::Unusable { why: why(), expires_at: Some(later(240)) });
    let valid = || Skip::NotDue(NotDue::NoExpiry);
    let failure = Failure::first(FailureKind::Refusal, now());
    let outage = Failure::first(FailureKind::Outage, now());
    let (kind, retry_at) = (FailureKind::Refusal, later(15));
    let expires_at = Some(later(240));
    for (resolution, stored, expected) in [
        (refreshed(None), Stored::Written, Outcome::Refreshed { expires_at }),
        (refreshed(None), Stored::Granted(authorization), granted(240, true)),
        (refreshed(Some(why())), Stored::Written, unusable()),
        (
            Resolution::Completed { memory: memory(), unusable: None, granted: None },
            Stored::Written,
            Outcome::Refreshed { expires_at },
        ),
        (
            Resolution::Completed { memory: memory(), unusable: None, granted: Some(authorization) },
            Stored::Written,
            granted(240, true),
        ),
        (
            Resolution::Completed { memory: memory(), unusable: Some(why()), granted: None },
            Stored::Written,
            unusable(),
        ),
        (
            Resolution::Validated { memory: memory(), unusable: None },
            Stored::Written,
            Outcome::Skipped(Skip::Validated { left: Some(TimeDelta::minutes(240)) }),
        ),
        (Resolution::Validated { memory: memory(), unusable: Some(why()) }, Stored::Written, unusable()),
        (
            Resolution::Validated { memory: memory(), unusable: None },
            Stored::Superseded,
            Outcome::Skipped(Skip::Superseded),
        ),
        (failed(Verdict::Recorded(failure)), Stored::Written, refused(Standing::Recorded { kind, retry_at })),
        (
            failed(Verdict::Recorded(outage)),
            Stored::Written,
            refused(Standing::Recorded { kind: FailureKind::Outage, retry_at }),
        ),
        (failed(Verdict::Repeated(failure)), Stored::Written, refused(Standing::Repeated { retry_at })),
        (
            failed(Verdict::Recorded(failure)),
            Stored::Noticed(recipients()),
            refused(Standing::Noticed { retry_at, recipients: recipients() }),
        ),
        (failed(Verdict::Recorded(failure)), Stored::Superseded, Outcome::Skipped(Skip::Superseded)),
        (
            Resolution::Deactivate { cause: cause(None), before: None },
            Stored::Deactivated(recipients()),
            refused(Standing::Deactivated { recipients: recipients() }),
        ),
        (
            Resolution::Deactivate { cause: cause(None), before: None },
            Stored::Superseded,
            Outcome::Skipped(Skip::Superseded),
        ),
        (Resolution::Skipped(Skip::Leased), Stored::Written, Outcome::Skipped(Skip::Leased)),
        (Resolution::Skipped(valid()), Stored::Granted(authorization), granted(7, false)),
    ] {
        let case = format!("{resolution:?}, {stored:?}");
        assert_eq!(Outcome::of(&attempt(resolution), stored), expected, "{case}");
    }
}

#[test]
fn what_is_lost_is_reported_with_an_alarm() {
    let attempts = || {
        let verdict = Verdict::Recorded(Failure::first(FailureKind::Refusal, now()));
        [
            refreshed(None),
            failed(verdict),
            Resolution::Deactivate { cause: cause(None), before: None },
            Resolution::Validated { memory: memory(), unusable: None },
            Resolution::Skipped(Skip::Leased),
            Resolution::Panicked,
        ]
        .map(attempt)
    };
    let reported = |report: fn(&Attempt) -> Outcome| {
        attempts().map(|attempt| {
            let outcome = report(&attempt);
            lost(&outcome).map_or_else(|| format!("{outcome:?}"), ToOwned::to_owned)
        })
    };
    let all = [
        ("not stored", reported(|attempt| Outcome::not_stored(attempt, &error()))),
        ("row refused", reported(|attempt| Outcome::of(attempt, Stored::Refused(error())))),
        ("set aside", reported(|attempt| Outcome::set_aside(attempt, &error()))),
        ("not granted", reported(|attempt| Outcome::of(attempt, Stored::NotGranted(error())))),
    ];
    insta::assert_debug_snapshot!(all);
}

#[test]
fn a_new_pair_that_another_writer_has_overtaken_is_thrown_away_with_an_alarm() {
    let outcome = Outcome::of(&attempt(refreshed(None)), Stored::Superseded);
    let Outcome::Failed { standing: Standing::Superseded, alarm: Some(Alarm::NotStored), .. } = outcome
    else {
        panic!("{outcome:?}")
    };
}
