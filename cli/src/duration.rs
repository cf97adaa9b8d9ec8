//! Lengths of time on the command line: `90m`, `2h`, `7d`.

use chrono::TimeDelta;

/// A whole number above zero, and its unit.
pub fn parse(text: &str) -> Result<TimeDelta, String> {
    let fault =
        || format!("`{text}` is no length of time: write a whole number and m, h or d, as in 90m, 2h or 7d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(fault)?;
    let number = Some(number)
        // What `parse` would take besides: a sign.
        .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|number| number.parse().ok())
        .filter(|number: &i64| *number > 0)
        .ok_or_else(fault)?;
    match unit {
        "m" => TimeDelta::try_minutes(number),
        "h" => TimeDelta::try_hours(number),
        "d" => TimeDelta::try_days(number),
        _ => return Err(fault()),
    }
    // Longer than any calendar.
    .filter(|length| *length < TimeDelta::days(365_000))
    .ok_or_else(|| format!("`{text}` is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit() {
        assert_eq!(parse("90m"), Ok(TimeDelta::minutes(90)));
        assert_eq!(parse("2h"), Ok(TimeDelta::hours(2)));
        assert_eq!(parse("7d"), Ok(TimeDelta::days(7)));
        assert_eq!(parse("007d"), Ok(TimeDelta::days(7)));
    }

    #[test]
    fn everything_else_is_refused_with_what_to_write() {
        for text in [
            "",
            "7",
            "d",
            "0d",
            "-1h",
            "+1h",
            "1.5h",
            "1 h",
            "7D",
            "7w",
            "h7",
            "7é",
            "é",
            "99999999999999999999m",
        ] {
            let fault = parse(text).unwrap_err();
            assert!(fault.contains(&format!("`{text}`")) && fault.contains("90m, 2h or 7d"), "{fault}");
        }
        for text in ["9223372036854775807d", "9223372036854775807m", "365000d"] {
            assert_eq!(parse(text), Err(format!("`{text}` is too long")));
        }
    }
}
