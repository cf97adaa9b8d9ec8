//! Where signals go: EventBridge Scheduler for retries, an EventBridge bus for domain events. Both may be absent.

use tokens_aws::{RetryConfig, SignalsConfig};

use super::{ConfigError, Reader, Source};

/// What names a retry's schedule and what it calls; all three, or none.
const RETRY: [(&str, &str); 3] = [
    ("RETRY_GROUP", "the name of the schedule group that the retries are made in"),
    ("RETRY_TARGET_ARN", "the ARN of the function `retry-refresh`"),
    ("RETRY_ROLE_ARN", "the ARN of the role that lets EventBridge Scheduler invoke it"),
];

/// Reads where signals go, for a program that needs nothing else.
///
/// # Errors
///
/// With every fault found.
pub fn signals(source: &Source) -> Result<SignalsConfig, ConfigError> {
    let mut reader = Reader::new(source);
    let signals = reader.signals();
    reader.finish(Some(signals))
}

impl Reader<'_> {
    pub(super) fn signals(&mut self) -> SignalsConfig {
        SignalsConfig { retries: self.retries(), event_bus: self.event_bus() }
    }

    fn retries(&mut self) -> Option<RetryConfig> {
        let source = self.source;
        let dlq_arn = source.get("RETRY_DLQ_ARN");
        let [group, target_arn, role_arn] = RETRY.map(|(name, _)| source.get(name));
        let Some(set) = RETRY.map(|(name, _)| name).into_iter().find(|name| source.get(name).is_some())
        else {
            if dlq_arn.is_some() {
                let others = RETRY.map(|(name, _)| name).join(", ");
                self.fault(format!("RETRY_DLQ_ARN is set, and {others} are not: set them, or none"));
            }
            return None;
        };
        for (name, what) in RETRY {
            if source.get(name).is_none() {
                self.fault(format!("{name} is missing, and {set} is set: set it to {what}"));
            }
        }
        let (group, target_arn, role_arn) = (group?, target_arn?, role_arn?);
        if !is_name(group, 64) {
            self.fault(
                "RETRY_GROUP is not the name of a schedule group: 1 to 64 of the characters 0-9 a-z A-Z - _ .",
            );
        }
        if !is_arn(target_arn, "lambda", "function:") {
            self.fault("RETRY_TARGET_ARN is not of the form arn:aws:lambda:REGION:ACCOUNT:function:NAME");
        }
        if !is_arn(role_arn, "iam", "role/") {
            self.fault("RETRY_ROLE_ARN is not of the form arn:aws:iam::ACCOUNT:role/NAME");
        }
        if dlq_arn.is_some_and(|arn| !is_arn(arn, "sqs", "")) {
            self.fault("RETRY_DLQ_ARN is not of the form arn:aws:sqs:REGION:ACCOUNT:NAME");
        }
        Some(RetryConfig {
            group: group.to_owned(),
            target_arn: target_arn.to_owned(),
            role_arn: role_arn.to_owned(),
            dlq_arn: dlq_arn.map(str::to_owned),
        })
    }

    fn event_bus(&mut self) -> Option<String> {
        let bus = self.source.get("EVENT_BUS_NAME")?;
        if !is_name(&bus.replace('/', "."), 256) && !is_arn(bus, "events", "event-bus/") {
            self.fault("EVENT_BUS_NAME is neither an event bus's name nor arn:aws:events:REGION:ACCOUNT:event-bus/NAME");
        }
        Some(bus.to_owned())
    }
}

fn is_name(text: &str, longest: usize) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=longest).contains(&text.len()) && text.bytes().all(allowed)
}

/// Whether it is `arn:PARTITION:SERVICE:REGION:ACCOUNT:PREFIX…`. IAM is the one service here without regions.
fn is_arn(text: &str, service: &str, prefix: &str) -> bool {
    let parts: Vec<_> = text.splitn(6, ':').collect();
    let [arn, partition, of, region, account, resource] = parts.as_slice() else { return false };
    let name = resource.strip_prefix(prefix).unwrap_or_default();
    *arn == "arn"
        && partition.starts_with("aws")
        && *of == service
        && region.is_empty() == (service == "iam")
        && account.len() == 12
        && account.bytes().all(|byte| byte.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPLETE: [(&str, &str); 5] = [
        ("RETRY_GROUP", "token-refresh"),
        ("RETRY_TARGET_ARN", "arn:aws:lambda:eu-west-3:123456789012:function:retry-refresh:live"),
        ("RETRY_ROLE_ARN", "arn:aws:iam::123456789012:role/service/retry"),
        ("RETRY_DLQ_ARN", "arn:aws:sqs:eu-west-3:123456789012:retries-dlq"),
        ("EVENT_BUS_NAME", "token-refresh"),
    ];

    fn with(changes: &[(&'static str, &'static str)]) -> Result<SignalsConfig, ConfigError> {
        signals(&COMPLETE.iter().chain(changes).copied().collect())
    }

    fn faults(changes: &[(&'static str, &'static str)]) -> Vec<String> {
        with(changes).unwrap_err().0
    }

    #[test]
    fn each_half_may_be_absent() {
        let none: [(&str, &str); 0] = [];
        assert_eq!(signals(&Source::from_iter(none)).unwrap(), SignalsConfig::default());
        let all = with(&[]).unwrap();
        assert_eq!(all.retries.as_ref().unwrap().dlq_arn.as_deref(), Some(COMPLETE[3].1));
        assert_eq!(all.event_bus.as_deref(), Some("token-refresh"));
        assert_eq!(with(&[("EVENT_BUS_NAME", "")]).unwrap().retries, all.retries);
        assert_eq!(with(&[("RETRY_DLQ_ARN", "")]).unwrap().retries.unwrap().dlq_arn, None);
        let bus =
            [("RETRY_GROUP", ""), ("RETRY_TARGET_ARN", ""), ("RETRY_ROLE_ARN", ""), ("RETRY_DLQ_ARN", "")];
        assert_eq!(with(&bus).unwrap(), SignalsConfig { retries: None, event_bus: all.event_bus });
    }

    #[test]
    fn half_a_retry_is_a_fault_that_names_what_is_missing() {
        for (name, _) in RETRY {
            let faults = faults(&[(name, " ")]);
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(faults[0].starts_with(&format!("{name} is missing, and RETRY_")), "{faults:?}");
        }
        assert_eq!(faults(&[("RETRY_GROUP", ""), ("RETRY_ROLE_ARN", "")]).len(), 2);
        let queue = [("RETRY_GROUP", ""), ("RETRY_TARGET_ARN", ""), ("RETRY_ROLE_ARN", "")];
        assert!(faults(&queue)[0].starts_with("RETRY_DLQ_ARN is set, and RETRY_GROUP, "));
    }

    #[test]
    fn each_malformed_value_is_named() {
        for (name, value) in [
            ("RETRY_GROUP", "token refresh"),
            ("RETRY_TARGET_ARN", "retry-refresh"),
            ("RETRY_TARGET_ARN", "arn:aws:lambda:eu-west-3:12345:function:retry-refresh"),
            ("RETRY_TARGET_ARN", "arn:aws:sqs:eu-west-3:123456789012:function:retry-refresh"),
            ("RETRY_TARGET_ARN", "arn:aws:lambda::123456789012:function:retry-refresh"),
            ("RETRY_ROLE_ARN", "arn:aws:iam::123456789012:user/retry"),
            ("RETRY_ROLE_ARN", "arn:aws:iam::123456789012:role/"),
            ("RETRY_DLQ_ARN", "https://sqs.eu-west-3.amazonaws.com/123456789012/retries-dlq"),
            ("EVENT_BUS_NAME", "a bus"),
            ("EVENT_BUS_NAME", "arn:aws:events:eu-west-3:123456789012:rule/name"),
        ] {
            let faults = faults(&[(name, value)]);
            assert_eq!(faults.len(), 1, "{name}={value}: {faults:?}");
            assert!(faults[0].starts_with(name), "{faults:?}");
        }
        for bus in
            ["aws.partner/example.com/1", "arn:aws:events:eu-west-3:123456789012:event-bus/token-refresh"]
        {
            assert_eq!(with(&[("EVENT_BUS_NAME", bus)]).unwrap().event_bus.as_deref(), Some(bus));
        }
    }
}
