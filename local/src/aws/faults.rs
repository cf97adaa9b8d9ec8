//! Faults that can be switched on.

/// One of the simulated services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// EventBridge Scheduler (REST, JSON).
    Scheduler,
    /// EventBridge (JSON 1.1).
    Events,
    /// Secrets Manager (JSON 1.1).
    Secrets,
    /// CloudFormation (Query).
    CloudFormation,
    /// Lambda (REST, JSON).
    Lambda,
    /// IAM Identity Center's portal (REST, JSON), whose requests have a token in place of a signature.
    Portal,
}

/// How a request can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Too many requests.
    Throttle,
    /// The service itself fails.
    ServerError,
    /// The caller may not do this.
    AccessDenied,
    /// The connection is closed without an answer.
    HangUp,
    /// The answer begins, and goes no further.
    Stall,
    /// Every second entry of a `PutEvents`, from the first on, is not taken; the answer is 200 all the same.
    FailEntries,
}

/// For each service the fault that is switched on, and how often it has yet to strike.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<(Service, Fault, usize)>);

impl Faults {
    pub(super) fn set(&mut self, service: Service, fault: Fault, times: usize) {
        self.0.retain(|(of, ..)| *of != service);
        self.0.push((service, fault, times));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The fault that the next request meets.
    pub(super) fn take(&mut self, service: Service) -> Option<Fault> {
        let (_, fault, times) = self.0.iter_mut().find(|(of, _, times)| *of == service && *times > 0)?;
        *times -= 1;
        Some(*fault)
    }
}
