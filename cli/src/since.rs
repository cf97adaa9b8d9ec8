//! Lengths of time as they are typed: `90m`, `2h`, `7d`, `1h 30m`.

use adapters::store::HISTORY_KEPT;
use chrono::TimeDelta;

/// A length of time, as far back as anything is remembered. For clap.
pub fn parse(text: &str) -> Result<TimeDelta, String> {
    let length = humantime::parse_duration(text).map_err(|error| format!("{error}: give 90m, 2h or 7d"))?;
    let length = TimeDelta::from_std(length).unwrap_or(TimeDelta::MAX);
    if length > HISTORY_KEPT {
        return Err(format!("nothing is remembered for longer than {}d", HISTORY_KEPT.num_days()));
    }
    if length.is_zero() {
        return Err("a length of zero selects nothing".to_owned());
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_limited_to_what_is_remembered() {
        assert_eq!(parse("90m"), Ok(TimeDelta::minutes(90)));
        assert_eq!(parse("30d"), Ok(TimeDelta::days(30)));
        for (text, says) in [
            ("", "90m, 2h or 7d"),
            ("2", "90m, 2h or 7d"),
            ("-2h", "90m, 2h or 7d"),
            ("99999999999999999999d", "90m, 2h or 7d"),
            ("99999999999d", "30d"),
            ("31d", "30d"),
            ("0m", "zero"),
        ] {
            assert!(parse(text).unwrap_err().contains(says), "{text}");
        }
    }
}
