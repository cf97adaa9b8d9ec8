//! Times in the application's columns. PostgreSQL knows `infinity`, and years that chrono doesn't; both end sqlx's own
//! decoding with a panic. `sqlx.toml` says which columns are read as this instead.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type, ValueRef};
use tokens_domain::authorization::NO_END;

/// As PostgreSQL has it: microseconds since 2000, where the least and the greatest number are `-infinity` and `infinity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment(i64);

/// In microseconds.
const DAY: i64 = 86_400_000_000;

/// From 1970 to 2000, in microseconds.
const TO_2000: i64 = 946_684_800_000_000;

impl Moment {
    /// `None`: infinite, or after the year 9999.
    pub(super) fn known(self) -> Option<DateTime<Utc>> {
        let at = DateTime::from_timestamp_micros(self.0.checked_add(TO_2000)?)?;
        Some(at).filter(|at| *at < NO_END)
    }

    /// When something ends that may go on for ever, or may always have been over.
    pub(super) fn end(self) -> DateTime<Utc> {
        let endless = if self.0 > 0 { NO_END } else { DateTime::UNIX_EPOCH };
        self.known().unwrap_or(endless)
    }

    /// The first moment of a day, in days since 2000.
    fn of_days(days: i32) -> Self {
        Self(match days {
            i32::MIN => i64::MIN,
            i32::MAX => i64::MAX,
            days => i64::from(days).saturating_mul(DAY),
        })
    }
}

/// What ends after the year 9999 is as if it never did. PostgreSQL counts in microseconds and stores no time that is [`NO_END`].
impl From<DateTime<Utc>> for Moment {
    fn from(at: DateTime<Utc>) -> Self {
        Self(if at < NO_END { at.timestamp_micros() - TO_2000 } else { i64::MAX })
    }
}

impl Type<Postgres> for Moment {
    fn type_info() -> PgTypeInfo {
        <DateTime<Utc> as Type<Postgres>>::type_info()
    }
}

impl Decode<'_, Postgres> for Moment {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        if *value.type_info() == <NaiveDate as Type<Postgres>>::type_info() {
            let days = <i32 as Decode<Postgres>>::decode(value)?;
            return Ok(Self::of_days(days));
        }
        // With a time zone or without, it is the same number; without one, it is taken to be UTC.
        <i64 as Decode<Postgres>>::decode(value).map(Self)
    }
}

impl Encode<'_, Postgres> for Moment {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Encode::<Postgres>::encode(self.0, buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::Value;

    use super::*;

    /// sqlx's own decoding of a time panics over `infinity`.
    #[test]
    fn every_time_that_a_query_answers_is_a_moment() {
        let settings = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/sqlx.toml")).unwrap();
        let overrides = |table: &str, column: &str| {
            let section = settings.split(&format!("table-overrides.'{table}']")).nth(1).unwrap_or_default();
            section.split("[macros").next().unwrap_or_default().contains(&format!("'{column}' = "))
        };
        let mut times = 0;
        for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.sqlx")).unwrap() {
            let query: Value = serde_json::from_slice(&fs::read(file.unwrap().path()).unwrap()).unwrap();
            for column in query["describe"]["columns"].as_array().unwrap() {
                let of_time = ["Timestamptz", "Timestamp", "Date"];
                if !column["type_info"].as_str().is_some_and(|kind| of_time.contains(&kind)) {
                    continue;
                }
                times += 1;
                let origin = &column["origin"]["Table"];
                let is_overridden = origin["table"]
                    .as_str()
                    .zip(origin["name"].as_str())
                    .is_some_and(|(table, name)| overrides(table, name));
                let is_annotated = column["name"].as_str().unwrap().ends_with(": Moment");
                assert!(is_overridden || is_annotated, "{column} of {}", query["query"]);
            }
        }
        assert!(times > 40, "{times}");
    }

    #[test]
    fn a_day_is_its_first_moment() {
        let at = |text: &str| Moment::from(text.parse::<DateTime<Utc>>().unwrap());
        assert_eq!(Moment::of_days(0), at("2000-01-01T00:00:00Z"));
        assert_eq!(Moment::of_days(-1), at("1999-12-31T00:00:00Z"));
        assert_eq!(Moment::of_days(i32::MAX), Moment(i64::MAX));
        assert_eq!(Moment::of_days(i32::MAX - 1).known(), None);
    }

    #[test]
    fn every_number_is_a_time_or_none() {
        for number in [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX - 1, i64::MAX] {
            let moment = Moment(number);
            assert_eq!(moment.known().is_some(), number.abs_diff(0) <= 1, "{number}");
            assert_eq!(moment.end() > DateTime::UNIX_EPOCH, number >= -1, "{number}");
        }
        for text in ["-4712-01-01T00:00:00Z", "1999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"] {
            let at: DateTime<Utc> = text.parse().unwrap();
            assert_eq!(Moment::from(at).known(), Some(at));
            assert_eq!(Moment::from(at).end(), at);
        }
        assert_eq!(Moment::from(Moment(i64::MAX).end()), Moment(i64::MAX));
    }
}
