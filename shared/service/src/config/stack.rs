//! Settings of a deployed stack, for the command.

use tokens_aws::{Sdk, stack};

use super::{ConfigError, Source};

/// What a function's variables say of its own log.
const OF_THE_LOG: &str = "LOG_";

impl Source {
    /// With what the functions of this stack have in their environment, for what the environment here doesn't say.
    ///
    /// # Errors
    ///
    /// If the stack can't be read, or is not one of ours.
    pub async fn and_stack(mut self, name: &str, sdk: &Sdk) -> Result<Self, ConfigError> {
        let variables = stack::variables(sdk, name).await.map_err(|reason| {
            ConfigError(vec![format!(
                "--stack {name} can't be read: {reason}; check the stack's name and its region (AWS_REGION), that you are signed in, and \
                 that you may call cloudformation:DescribeStacks and lambda:GetFunctionConfiguration"
            )])
        })?;
        self.add_missing(variables.into_iter().filter(|(name, _)| !name.starts_with(OF_THE_LOG)));
        Ok(self)
    }
}
