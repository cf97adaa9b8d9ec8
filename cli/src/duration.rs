//! Lengths of time as they are typed: `90m`, `2h`, `7d`, `1h 30m`. For clap.

use chrono::TimeDelta;
use tokens_store::HISTORY_KEPT;

/// A length of time above zero.
pub fn parse(text: &str) -> Result<TimeDelta, String> {
    let length = humantime::parse_duration(text)
        .map_err(|error| format!("{error}: give a length such as 90m, 2h or 7d"))?;
    if length.is_zero() {
        return Err("it must be longer than zero".to_owned());
    }
    TimeDelta::from_std(length).map_err(|_| "it is too long".to_owned())
}

/// The same, as far back as anything is remembered.
pub fn parse_remembered(text: &str) -> Result<TimeDelta, String> {
    let length = parse(text)?;
    if length > HISTORY_KEPT {
        return Err(format!("nothing is remembered for longer than {}d", HISTORY_KEPT.num_days()));
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_above_zero_and_limited_to_what_is_remembered() {
        for (text, length) in
            [("90s", TimeDelta::seconds(90)), ("90m", TimeDelta::minutes(90)), ("30d", TimeDelta::days(30))]
        {
            assert_eq!((parse(text), parse_remembered(text)), (Ok(length), Ok(length)));
        }
        for (text, says) in [
            ("", "90m, 2h or 7d"),
            ("2", "90m, 2h or 7d"),
            ("-2h", "90m, 2h or 7d"),
            ("99999999999999999999d", "90m, 2h or 7d"),
            ("99999999999999y", "90m, 2h or 7d"),
            ("0m", "longer than zero"),
        ] {
            assert!(parse(text).unwrap_err().contains(says), "{text}");
        }
        for text in ["99999999999d", "31d"] {
            assert!(parse(text).is_ok() && parse_remembered(text).unwrap_err().contains("30d"), "{text}");
        }
    }
}
