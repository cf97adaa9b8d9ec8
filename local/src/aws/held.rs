//! What the simulated services keep.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::faults::{Fault, Faults, Service};
use super::operator::Outputs;
use super::secrets::Versions;

/// All of it.
#[derive(Debug, Default)]
pub struct Held {
    /// The events that were taken, in their order.
    pub events: Vec<Event>,
    /// By group and name.
    pub(super) schedules: BTreeMap<(String, String), Schedule>,
    /// By name.
    pub(super) secrets: BTreeMap<String, Versions>,
    pub(super) faults: Faults,
    /// By name.
    pub(super) stacks: BTreeMap<String, Outputs>,
    /// Variables, by the function's name.
    pub(super) functions: BTreeMap<String, BTreeMap<String, String>>,
    requests: HashMap<Service, usize>,
}

/// A one-shot schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The schedule group.
    pub group: String,
    /// The name, unique in its group.
    pub name: String,
    /// The expression, `at(…)`.
    pub expression: String,
    /// The time zone that the expression is in.
    pub timezone: String,
    /// When it fires.
    pub at: DateTime<Utc>,
    /// `NONE` or `DELETE`.
    pub action_after_completion: String,
    /// The function.
    pub target_arn: String,
    /// The role under which it is invoked.
    pub role_arn: String,
    /// What it is invoked with.
    pub input: Value,
    /// In seconds.
    pub maximum_event_age: u32,
    /// Deliveries that are tried again.
    pub maximum_retry_attempts: u32,
    /// The queue for what could not be delivered.
    pub dead_letter_arn: Option<String>,
    /// It has fired, and was not to be deleted.
    pub completed: bool,
    pub(super) client_token: Option<String>,
}

impl Schedule {
    pub(super) fn arn(&self) -> String {
        format!(
            "arn:aws:scheduler:{}:{}:schedule/{}/{}",
            super::REGION,
            super::ACCOUNT,
            self.group,
            self.name
        )
    }
}

/// A schedule whose minute has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// When it was to fire.
    pub at: DateTime<Utc>,
    /// The schedule's name.
    pub name: String,
    /// The function to invoke.
    pub target_arn: String,
    /// With this.
    pub input: Value,
}

/// An event on a bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The bus's name.
    pub bus: String,
    /// Who says so.
    pub source: String,
    /// What kind of event it is.
    pub detail_type: String,
    /// What it says.
    pub detail: Value,
}

impl Held {
    /// The schedules, by group and name.
    pub fn schedules(&self) -> impl Iterator<Item = &Schedule> {
        self.schedules.values()
    }

    /// Requests that came to this service, whatever became of them.
    #[must_use]
    pub fn requests(&self, service: Service) -> usize {
        self.requests.get(&service).copied().unwrap_or(0)
    }

    /// Counts a request, and says which fault it meets.
    pub(super) fn count(&mut self, service: Service) -> Option<Fault> {
        *self.requests.entry(service).or_default() += 1;
        self.faults.take(service)
    }

    pub(super) fn take_due(&mut self, now: DateTime<Utc>) -> Vec<Due> {
        let mut due = Vec::new();
        self.schedules.retain(|_, schedule| {
            if schedule.completed || schedule.at > now {
                return true;
            }
            schedule.completed = true;
            due.push(Due {
                at: schedule.at,
                name: schedule.name.clone(),
                target_arn: schedule.target_arn.clone(),
                input: schedule.input.clone(),
            });
            schedule.action_after_completion != "DELETE"
        });
        due.sort_by_key(|one| one.at);
        due
    }
}
