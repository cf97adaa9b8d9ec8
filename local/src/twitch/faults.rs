//! Which faults are switched on: for one streamer or for all, on one endpoint or on all, for a number of requests or until
//! cleared.

use std::collections::HashMap;

use super::{
    accounts::AccountId,
    fault::{Endpoint, Fault, FaultRule},
};

/// The streamers that a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Target {
    All,
    Streamer(AccountId),
}

/// The faults that are switched on: one at most for each target and endpoint.
#[derive(Default)]
pub(super) struct Faults {
    active: HashMap<(Target, Endpoint), Active>,
}

struct Active {
    fault: Fault,
    /// How many more requests it hits; none if it stays until cleared.
    remaining: Option<u32>,
}

impl Faults {
    pub(super) fn set(&mut self, target: Target, rule: FaultRule) {
        let endpoints = rule.endpoint.as_ref().map_or(rule.fault.endpoints(), std::slice::from_ref);
        for endpoint in endpoints {
            let key = (target, *endpoint);
            if rule.times == Some(0) {
                self.active.remove(&key);
            } else {
                self.active.insert(key, Active { fault: rule.fault, remaining: rule.times });
            }
        }
    }

    pub(super) fn clear(&mut self, target: Target) {
        self.active.retain(|(of, _), _| *of != target);
    }

    /// The fault that hits a request, which counts as one of its times. A streamer's own goes before the one for all.
    pub(super) fn hit(&mut self, streamer: Option<AccountId>, endpoint: Endpoint) -> Option<Fault> {
        let own = streamer.and_then(|id| self.take((Target::Streamer(id), endpoint)));
        own.or_else(|| self.take((Target::All, endpoint)))
    }

    fn take(&mut self, key: (Target, Endpoint)) -> Option<Fault> {
        let active = self.active.get_mut(&key)?;
        let fault = active.fault;
        if let Some(remaining) = &mut active.remaining {
            *remaining -= 1;
            if *remaining == 0 {
                self.active.remove(&key);
            }
        }
        Some(fault)
    }
}
