//! Lengths of time as they are typed: `90m`, `2h`, `7d`.

use adapters::store::HISTORY_KEPT;
use chrono::TimeDelta;

/// A whole number of minutes, hours or days, as far back as anything is remembered. For clap.
pub fn parse(text: &str) -> Result<TimeDelta, String> {
    const FORM: &str = "give a whole number and its unit, such as 90m, 2h or 7d";
    let (number, unit) = text.char_indices().next_back().map(|(at, unit)| (&text[..at], unit)).ok_or(FORM)?;
    let minutes = match unit {
        'm' => 1,
        'h' => 60,
        'd' => 24 * 60,
        _ => return Err(FORM.to_owned()),
    };
    let number: u32 = number.parse().map_err(|_| FORM)?;
    let length = TimeDelta::minutes(i64::from(number) * minutes);
    if length > HISTORY_KEPT {
        return Err(format!("nothing is remembered for longer than {}d", HISTORY_KEPT.num_days()));
    }
    if length.is_zero() {
        return Err("it is no time at all".to_owned());
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_hours_and_days_are_understood() {
        assert_eq!(parse("90m"), Ok(TimeDelta::minutes(90)));
        assert_eq!(parse("2h"), Ok(TimeDelta::hours(2)));
        assert_eq!(parse("30d"), Ok(TimeDelta::days(30)));
        for (text, says) in [
            ("", "a whole number"),
            ("h", "a whole number"),
            ("2", "a whole number"),
            ("2 hours", "a whole number"),
            ("-2h", "a whole number"),
            ("1.5h", "a whole number"),
            ("2é", "a whole number"),
            ("99999999999d", "a whole number"),
            ("4294967295d", "30d"),
            ("31d", "30d"),
            ("0m", "no time"),
        ] {
            assert!(parse(text).unwrap_err().contains(says), "{text}");
        }
    }
}
