//! Lengths of time as they are typed: `90m`, `2h`, `7d`, `1h 30m`.

use adapters::store::HISTORY_KEPT;
use chrono::TimeDelta;

/// A length of time, as far back as anything is remembered. For clap.
pub fn parse(text: &str) -> Result<TimeDelta, String> {
    let length = humantime::parse_duration(text)
        .map_err(|error| format!("{error}: give a length such as 90m, 2h or 7d"))?;
    let length = TimeDelta::from_std(length).unwrap_or(TimeDelta::MAX);
    if length > HISTORY_KEPT {
        return Err(format!("nothing is remembered for longer than {}d", HISTORY_KEPT.num_days()));
    }
    if length.is_zero() {
        return Err("a length of zero selects nothing".to_owned());
    }
    Ok(length)
}

/// How long something may take. For clap.
pub fn parse_time(text: &str) -> Result<TimeDelta, String> {
    let time = humantime::parse_duration(text).map_err(|error| format!("{error}: give 90s, 10m or 1h"))?;
    if time.is_zero() {
        return Err("no time at all is too little".to_owned());
    }
    TimeDelta::from_std(time).map_err(|_| "that is too long: give 90s, 10m or 1h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_limit_is_any_length_but_zero() {
        assert_eq!(parse_time("90s"), Ok(TimeDelta::seconds(90)));
        assert_eq!(parse_time("10m"), Ok(TimeDelta::minutes(10)));
        for (text, says) in [("", "90s"), ("10", "90s"), ("0s", "too little"), ("99999999999999y", "")] {
            assert!(parse_time(text).unwrap_err().contains(says), "{text}");
        }
    }

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
