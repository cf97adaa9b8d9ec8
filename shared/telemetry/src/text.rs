//! What people read of an outcome, in the log and from the command.

use std::fmt;

use chrono::TimeDelta;
use tokens_domain::notification::{Recipient, Role};
use tokens_domain::policy::NotDue;
use tokens_domain::report::{Outcome, Skip, Standing, Unusable};

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

/// What people read of an [`Outcome`] or of a part of it.
pub struct Text<'a, T>(pub &'a T);

impl fmt::Display for Text<'_, Skip> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Skip::NotDue(NotDue::Valid { left }) => write!(f, "valid for {}", Human(*left)),
            Skip::NotDue(NotDue::RetryAt(at)) => {
                write!(f, "failed lately, retry at {}", at.format("%H:%M:%S"))
            }
            Skip::NotDue(NotDue::NoExpiry) => f.write_str("valid, without a known expiry"),
            Skip::Validated { left: Some(left) } => write!(f, "validated, valid for {}", Human(*left)),
            Skip::Validated { left: None } => f.write_str("validated, valid without a known expiry"),
            Skip::Unusable { why, .. } => write!(f, "validated, but {}", Text(why)),
            Skip::NotValidated(reason) => write!(f, "could not be validated: {reason}"),
            Skip::Leased => {
                f.write_str("another run is refreshing it, its row is locked, or it was deactivated just now")
            }
            Skip::Superseded => f.write_str("another writer changed its tokens meanwhile, theirs stand"),
            Skip::Stopped => {
                f.write_str("the cycle stopped early, or had no time for it: left to the next run")
            }
            Skip::SetAside { until, reason } => {
                write!(f, "set aside until {}: {reason}", until.format("%H:%M:%S"))
            }
            Skip::LeaseEnded => f.write_str("its lease ended before Twitch was asked: left to the next run"),
        }
    }
}

impl fmt::Display for Text<'_, Unusable> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            why @ Unusable::OtherClient(_) => write!(f, "{why}: check TWITCH_CLIENT_ID"),
            why => why.fmt(f),
        }
    }
}

impl fmt::Display for Text<'_, Standing> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Standing::Recorded { kind, retry_at } => {
                write!(f, "{} recorded, retry at {}", kind.as_str(), retry_at.format("%H:%M:%S"))
            }
            Standing::Repeated { retry_at } => {
                write!(f, "an earlier failure stands, retry at {}", retry_at.format("%H:%M:%S"))
            }
            Standing::Noticed { retry_at, recipients } => {
                write!(f, "refusal recorded, retry at {}", retry_at.format("%H:%M:%S"))?;
                recipients.iter().try_for_each(|one| write!(f, "; {}", Text(one)))
            }
            Standing::Deactivated { recipients } => {
                f.write_str("deactivated: the streamer has to reconnect")?;
                recipients.iter().try_for_each(|one| write!(f, "; {}", Text(one)))
            }
            Standing::Superseded => f.write_str("the other writer's tokens stand"),
            Standing::NotRecorded => f.write_str("nothing recorded"),
        }
    }
}

impl fmt::Display for Text<'_, Recipient> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Recipient { name, role, devices, campaigns: _ } = self.0;
        match role {
            Role::Streamer => write!(f, "{name} (streamer)")?,
            Role::GameMaster(campaigns) => {
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

impl fmt::Display for Text<'_, Outcome> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Outcome::Refreshed { expires_at: Some(at) } => {
                write!(f, "refreshed, valid until {}", at.format("%H:%M:%S"))
            }
            Outcome::Refreshed { expires_at: None } => f.write_str("refreshed, expiry unknown"),
            Outcome::Granted { authorization, refreshed, .. } => {
                let token = if *refreshed { "refreshed" } else { "refreshed just before" };
                write!(f, "{token}, authorized until {}", authorization.expires_at.format("%H:%M:%S"))
            }
            Outcome::Failed { reason, standing, .. } => write!(f, "{reason} ({})", Text(standing)),
            Outcome::Skipped(skip) => Text(skip).fmt(f),
            Outcome::WouldRefresh => f.write_str("would be refreshed"),
            Outcome::WouldValidate => f.write_str("would be validated"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_times_keep_their_seconds() {
        for (milliseconds, text) in [
            (-1, "0 s"),
            (0, "0 s"),
            (1, "under 1 s"),
            (999, "under 1 s"),
            (13_000, "13 s"),
            (60_000, "1 min"),
            (119_999, "1 min 59 s"),
            (599_000, "9 min 59 s"),
            (659_000, "10 min"),
            (7_830_000, "2 h 10"),
        ] {
            assert_eq!(Human(TimeDelta::milliseconds(milliseconds)).to_string(), text);
        }
    }
}
