//! What people read of an outcome.

use std::fmt;

use chrono::TimeDelta;

use super::{Outcome, Skip, Standing};
use crate::notification::{Recipient, Told};
use crate::policy::NotDue;

/// A length of time as people read it: `2 h 10`, `35 min`, `9 min 5 s`, `40 s`, `under 1 s`.
pub struct Human(pub TimeDelta);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.num_seconds().max(0);
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        match (hours, minutes, seconds % 60) {
            (0, 0, 0) if self.0 > TimeDelta::zero() => f.write_str("under 1 s"),
            (0, 0, seconds) => write!(f, "{seconds} s"),
            (0, 1..10, seconds @ 1..) => write!(f, "{minutes} min {seconds} s"),
            (0, ..) => write!(f, "{minutes} min"),
            _ => write!(f, "{hours} h {minutes:02}"),
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDue(NotDue::Valid { left }) => write!(f, "valid for {}", Human(*left)),
            Self::NotDue(NotDue::RetryAt(at)) => {
                write!(f, "failed lately, retry at {}", at.format("%H:%M:%S"))
            }
            Self::NotDue(NotDue::NoExpiry) => f.write_str("valid, without a known expiry"),
            Self::Validated { left: Some(left) } => write!(f, "validated, valid for {}", Human(*left)),
            Self::Validated { left: None } => f.write_str("validated, valid without a known expiry"),
            Self::Unusable { why, .. } => write!(f, "validated, but {why}"),
            Self::NotValidated(reason) => write!(f, "could not be validated: {reason}"),
            Self::Leased => {
                f.write_str("another run is refreshing it, its row is locked, or it was deactivated just now")
            }
            Self::Superseded => f.write_str("another writer changed its tokens meanwhile, theirs stand"),
            Self::Stopped => {
                f.write_str("the cycle stopped early, or had no time for it: left to the next run")
            }
            Self::SetAside { until, reason } => {
                write!(f, "set aside until {}: {reason}", until.format("%H:%M:%S"))
            }
            Self::LeaseEnded => f.write_str("its lease ended before Twitch was asked: left to the next run"),
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recorded { kind, retry_at } => {
                write!(f, "{} recorded, retry at {}", kind.as_str(), retry_at.format("%H:%M:%S"))
            }
            Self::Repeated { retry_at } => {
                write!(f, "an earlier failure stands, retry at {}", retry_at.format("%H:%M:%S"))
            }
            Self::Noticed { retry_at, told } => {
                write!(f, "refusal recorded, retry at {}", retry_at.format("%H:%M:%S"))?;
                told.iter().try_for_each(|told| write!(f, "; {told}"))
            }
            Self::Deactivated { told } => {
                f.write_str("deactivated: the streamer has to reconnect")?;
                told.iter().try_for_each(|told| write!(f, "; {told}"))
            }
            Self::Superseded => f.write_str("the other writer's tokens stand"),
            Self::NotRecorded => f.write_str("nothing recorded"),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, recipient, devices, campaigns: _ } = self;
        match recipient {
            Recipient::Streamer => write!(f, "{name} (streamer)")?,
            Recipient::GameMaster(campaigns) => {
                write!(f, "{name} (game master of {})", campaigns.listed())?;
            }
        }
        match devices {
            0 => f.write_str(" can't be notified: no device, or notifications are off"),
            1 => f.write_str(" is notified on 1 device"),
            n => write!(f, " is notified on {n} devices"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refreshed { expires_at: Some(at) } => {
                write!(f, "refreshed, valid until {}", at.format("%H:%M:%S"))
            }
            Self::Refreshed { expires_at: None } => f.write_str("refreshed, expiry unknown"),
            Self::Granted { authorization, refreshed, .. } => {
                let token = if *refreshed { "refreshed" } else { "refreshed just before" };
                write!(f, "{token}, authorized until {}", authorization.expires_at.format("%H:%M:%S"))
            }
            Self::Failed { reason, standing, .. } => write!(f, "{reason} ({standing})"),
            Self::Skipped(skip) => skip.fmt(f),
            Self::WouldRefresh => f.write_str("would be refreshed"),
            Self::WouldValidate => f.write_str("would be validated"),
        }
    }
}
