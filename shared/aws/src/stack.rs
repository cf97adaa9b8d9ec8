//! What a deployed stack says of itself: its outputs, and through them the variables of its functions.

use std::collections::BTreeMap;

use aws_sdk_cloudformation::Client as CloudFormation;
use aws_sdk_cloudformation::types::Stack;
use aws_sdk_lambda::Client as Lambda;

use super::{Failure, Sdk};

/// The outputs of template.yaml that name the functions whose variables the command needs: of two that have the same
/// variable, the first counts.
const FUNCTIONS: [&str; 2] = ["ScheduledRefreshName", "NotifyName"];

/// What these functions' environments say together.
///
/// # Errors
///
/// If the stack can't be read, or is not one of ours. The text holds no secret.
pub async fn variables(sdk: &Sdk, stack: &str) -> Result<BTreeMap<String, String>, String> {
    read(sdk, stack).await.map_err(|failure| failure.reason)
}

async fn read(sdk: &Sdk, stack: &str) -> Result<BTreeMap<String, String>, Failure> {
    let config = sdk.config().await?;
    let described = CloudFormation::new(config).describe_stacks().stack_name(stack).send().await?;
    let lambda = Lambda::new(config);
    let mut variables = BTreeMap::new();
    for output in FUNCTIONS {
        let outputs = described.stacks().iter().flat_map(Stack::outputs);
        let function =
            outputs.filter(|one| one.output_key() == Some(output)).find_map(|one| one.output_value());
        let function = function.ok_or_else(|| {
            Failure::refused(format!(
                "it has no output {output}, as a stack of template.yaml has once it is deployed"
            ))
        })?;
        let found = lambda.get_function_configuration().function_name(function).send().await?;
        let environment = found.environment().and_then(|environment| environment.variables());
        let environment = environment.ok_or_else(|| {
            Failure::refused(format!(
                "the variables of {function} can't be read: may you use the key that encrypts them?"
            ))
        })?;
        for (name, value) in environment {
            variables.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    Ok(variables)
}
